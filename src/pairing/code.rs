//! The pairing code, which one machine shows and which is typed on the other: 50 random bits in
//! Crockford's base 32, where no letter looks like a digit. Pure.
//!
//! 50 bits are enough because the machine that shows the code accepts some hundred guesses within
//! three minutes, five of each address. An attacker who records the handshake can try codes offline, but each try costs 2^15
//! rounds of hashing, and the code that is found opens nothing: both sides add fresh keys.

use std::fmt;

use crate::pairing::noise::Key;

const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LENGTH: usize = 10;

/// A code in its canonical form, without the hyphen. It has no `Debug`, so no log shows it.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub struct PairingCode(String);

impl PairingCode {
    pub(crate) fn new(random: [u8; 8]) -> Self {
        let bits = u64::from_be_bytes(random);
        let digit = |at: usize| char::from(DIGITS[(bits >> (5 * at) & 31) as usize]);
        PairingCode((0..LENGTH).map(digit).collect())
    }

    /// Reads a typed code: upper or lower case, with blanks and hyphens, `o` for `0`, `i` and `l`
    /// for `1`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.chars().filter(|c| !matches!(c, '-' | ' '));
        let digits = digits.map(|c| match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            c => c,
        });
        let digits: String = digits.collect();
        let is_code = digits.len() == LENGTH && digits.bytes().all(|c| DIGITS.contains(&c));
        is_code.then_some(PairingCode(digits))
    }

    /// The key that it stands for. Takes some milliseconds, on purpose.
    pub fn key(&self) -> Key {
        Key::of_code(&self.0)
    }
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = self.0.split_at(LENGTH / 2);
        write!(f, "{first}-{second}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        for random in [[0; 8], [255; 8], *b"whatever"] {
            let code = PairingCode::new(random);
            let shown = code.to_string();
            assert_eq!(shown.len(), 11);
            let sloppy = format!(" {} ", shown.to_uppercase().replace('-', " ").replace('0', "O"));
            for typed in [shown.clone(), shown.replace('-', ""), sloppy, shown.replace('1', "l")] {
                assert_eq!(PairingCode::parse(&typed), Some(code.clone()), "{typed}");
            }
        }
    }

    #[test]
    fn other_words_are_no_codes() {
        for text in ["", "k7pm2", "k7pm2-xvd9u", "k7pm2-xvd9qq", "k7pm2_xvd9q", "192.168.1.20", "ä"]
        {
            assert_eq!(PairingCode::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_bit_counts() {
        let codes = (0..50).map(|bit| PairingCode::new((1u64 << bit).to_be_bytes()).0);
        let mut codes: Vec<String> = codes.chain([PairingCode::new([0; 8]).0]).collect();
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), 51);
    }
}
