//! The records behind a handshake. The only importer of ring.
//!
//! AES-256-GCM where both machines compute AES in hardware: it is several times faster than
//! ChaCha20-Poly1305, which all other pairs use. Without the instructions, ring's AES is slow,
//! though it leaks nothing through tables.

use std::fmt;
use std::ops::Range;

use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::key::derive;
use super::{NoiseError, TAG};

/// Bytes that sealing adds to a record.
pub const OVERHEAD: usize = 2 + TAG;
/// Most bytes in one record.
pub(crate) const MAX_RECORD: usize = u16::MAX as usize - TAG;
/// Records after which a key is replaced by one from which the old one can't be computed.
pub(super) const REKEY_AFTER: u64 = 1 << 16;

/// Whether this machine computes AES, and GCM's checksum, in hardware.
pub(super) fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes"); // Rust's name for both
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// The two keys of one connection, one for each direction.
pub struct Session {
    outgoing: Direction,
    incoming: Direction,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session(AES {})", self.uses_aes())
    }
}

struct Direction {
    secret: [u8; 32],
    key: LessSafeKey,
    /// Number of the next record.
    records: u64,
}

impl Direction {
    fn new(algorithm: &'static Algorithm, secret: [u8; 32]) -> Result<Self, NoiseError> {
        // Both ciphers take every key of 32 bytes.
        let key = UnboundKey::new(algorithm, &secret).map_err(|_| NoiseError::WrongKey)?;
        Ok(Direction { secret, key: LessSafeKey::new(key), records: 0 })
    }

    /// Records are counted on over a change of the key, so no number is used twice.
    fn nonce(&self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.records.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn advance(&mut self) -> Result<(), NoiseError> {
        self.records += 1;
        if self.records.is_multiple_of(REKEY_AFTER) {
            let records = self.records;
            let secret = derive(&self.secret, b"ollana rekey", b"");
            *self = Direction { records, ..Direction::new(self.key.algorithm(), secret)? };
        }
        Ok(())
    }
}

impl Session {
    /// `secrets` are the keys for sealing and for opening.
    pub(super) fn new(secrets: ([u8; 32], [u8; 32]), uses_aes: bool) -> Result<Self, NoiseError> {
        let algorithm = if uses_aes { &AES_256_GCM } else { &CHACHA20_POLY1305 };
        let outgoing = Direction::new(algorithm, secrets.0)?;
        Ok(Session { outgoing, incoming: Direction::new(algorithm, secrets.1)? })
    }

    pub(super) fn uses_aes(&self) -> bool {
        self.outgoing.key.algorithm() == &AES_256_GCM
    }

    /// Seals at most `MAX_RECORD` bytes into a record at the start of `out`, which must have room
    /// for [`OVERHEAD`] more; returns the record's length.
    pub fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, NoiseError> {
        let len = plain.len() + OVERHEAD;
        let (length, record) =
            out.get_mut(..len).and_then(<[u8]>::split_first_chunk_mut).ok_or(NoiseError::Record)?;
        *length = u16::try_from(len - 2).map_err(|_| NoiseError::Record)?.to_be_bytes();
        let (text, tag) = record.split_at_mut(plain.len());
        text.copy_from_slice(plain);
        let Direction { key, .. } = &self.outgoing;
        let made = key.seal_in_place_separate_tag(self.outgoing.nonce(), Aad::empty(), text);
        tag.copy_from_slice(made.map_err(|_| NoiseError::Record)?.as_ref());
        self.outgoing.advance()?;
        Ok(len)
    }

    /// Length of the record that starts with these bytes, its two bytes of length included.
    pub(crate) fn record_len(bytes: &[u8]) -> Option<usize> {
        Some(usize::from(u16::from_be_bytes(*bytes.first_chunk()?)) + 2)
    }

    /// Opens a whole record in its place; returns where in it the bytes are. An empty record is
    /// the peer's clean end. Fails if it isn't the next record; nothing may be read after that.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Range<usize>, NoiseError> {
        let sealed = record.get_mut(2..).ok_or(NoiseError::Record)?;
        let Direction { key, .. } = &self.incoming;
        let plain = key.open_in_place(self.incoming.nonce(), Aad::empty(), sealed);
        let n = plain.map_err(|_| NoiseError::Record)?.len();
        self.incoming.advance()?;
        Ok(2..2 + n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_were_used_enough_are_gone_and_numbers_go_on() {
        for uses_aes in [true, false] {
            let mut session = Session::new(([1; 32], [2; 32]), uses_aes).unwrap();
            let mut record = [0; 1 + OVERHEAD];
            session.outgoing.records = REKEY_AFTER - 2;
            session.seal(b"1", &mut record).unwrap();
            assert_eq!(session.outgoing.secret, [1; 32]);
            let nonce = *session.outgoing.nonce().as_ref();
            session.seal(b"2", &mut record).unwrap();
            let sealed = record;
            assert_ne!(session.outgoing.secret, [1; 32]);
            assert_ne!(session.outgoing.nonce().as_ref(), &nonce);
            // The new key is really the one in use.
            let mut old = Session::new(([2; 32], [1; 32]), uses_aes).unwrap();
            old.incoming.records = REKEY_AFTER - 1;
            assert!(old.open(&mut sealed.clone()).is_ok(), "the last one of the old key");
            session.seal(b"3", &mut record).unwrap();
            let mut stolen = Session::new(([2; 32], [1; 32]), uses_aes).unwrap();
            stolen.incoming.records = REKEY_AFTER;
            assert!(stolen.open(&mut record).is_err());
        }
    }
}
