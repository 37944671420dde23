//! The list of paired machines: the text of its file, and how the list changes. Pure.
//!
//! ```text
//! {"peers":[{"name":"desktop","identity":"…32 digits","key":"…64 digits","added":1795392000}]}
//! ```

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD;
use serde_json::{Value, json};

use crate::net::untrusted_text::{cut, printable};
use crate::pairing::identity::{Identity, KeyId, MAX_NAME};
use crate::pairing::noise::Key;
use crate::system::{Hex, parse_hex};

const MAX_PEERS: usize = 64;

/// A machine that we share a key with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What the machine calls itself, with a number behind it where two have the same name.
    pub name: String,
    /// `None` for the key of a key file, which any number of machines may have.
    pub identity: Option<Identity>,
    /// The secret that is shared with it.
    pub key: Key,
    /// When it was paired, in seconds since 1970 by this machine's clock; 0 when unknown.
    pub added: u64,
}

impl Peer {
    /// The key of a key file, whose owners are not known.
    pub fn of_key_file(key: Key) -> Self {
        Peer { name: "key file".to_owned(), identity: None, key, added: 0 }
    }

    /// Names its key.
    pub fn id(&self) -> KeyId {
        self.key.id()
    }
}

/// Why a file of keys can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Not JSON of the documented form.
    Form(&'static str),
    /// More machines than may be paired.
    TooMany,
    /// Not 64 hexadecimal digits, nor 44 characters of base64.
    Secret,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Form(what) => write!(f, "damaged, {what}"),
            Unreadable::TooMany => write!(f, "more than {MAX_PEERS} peers"),
            Unreadable::Secret => f.write_str(
                "expected a secret of 32 bytes in hexadecimal or base64, such as \
                 'openssl rand -hex 32' makes",
            ),
        }
    }
}

/// Reads the file of paired machines, as a whole or not at all. A blank one is damaged: one
/// without machines has an empty list.
pub(crate) fn parse(text: &str) -> Result<Vec<Peer>, Unreadable> {
    if text.trim().is_empty() {
        return Err(Unreadable::Form("it is blank"));
    }
    let root: Value = serde_json::from_str(text).map_err(|_| Unreadable::Form("not JSON"))?;
    let list = root["peers"].as_array().ok_or(Unreadable::Form("no list of peers"))?;
    if list.len() > MAX_PEERS {
        return Err(Unreadable::TooMany);
    }
    list.iter().map(|entry| peer(entry).ok_or(Unreadable::Form("a peer without its key"))).collect()
}

fn peer(entry: &Value) -> Option<Peer> {
    let text = |name: &str| entry[name].as_str();
    let name = text("name").filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
    Some(Peer {
        name: printable(name),
        identity: Some(Identity::parse(text("identity")?)?),
        key: Key::new(parse_hex(text("key")?)?),
        added: entry["added"].as_u64()?,
    })
}

/// The file's text, one machine a line.
pub(crate) fn format(peers: &[Peer]) -> String {
    let line = |peer: &Peer| {
        let identity = peer.identity.map(|identity| identity.to_string());
        let key = Hex(peer.key.bytes()).to_string();
        json!({"name": peer.name, "identity": identity, "key": key, "added": peer.added})
            .to_string()
    };
    let lines: Vec<String> = peers.iter().map(line).collect();
    format!("{{\"peers\":[\n{}\n]}}", lines.join(",\n"))
}

/// Adds a machine, unless there are too many, and returns its name, which gets a number where
/// another machine has the same name. A machine with the same identity is replaced.
pub fn add(peers: &mut Vec<Peer>, new: Peer) -> Result<String, Unreadable> {
    peers.retain(|peer| peer.identity != new.identity);
    if peers.len() >= MAX_PEERS {
        return Err(Unreadable::TooMany);
    }
    let base = if new.name.is_empty() { "unnamed".to_owned() } else { new.name };
    let mut name = base.clone();
    let mut suffixes = (2..).map(|n| format!("-{n}"));
    while peers.iter().any(|peer| peer.name == name)
        && let Some(suffix) = suffixes.next()
    {
        name = format!("{}{suffix}", cut(&base, MAX_NAME - suffix.len()));
    }
    peers.push(Peer { name: name.clone(), ..new });
    Ok(name)
}

/// Reads the one secret of a key file.
pub fn parse_secret(text: &str) -> Result<Key, Unreadable> {
    let text = text.trim();
    let from_base64 = || {
        let mut bytes = [0; 33];
        let unpadded = text.strip_suffix('=').unwrap_or(text);
        let n = STANDARD_NO_PAD.decode_slice(unpadded, &mut bytes).ok()?;
        bytes[..n].try_into().ok()
    };
    parse_hex(text).or_else(from_base64).map(Key::new).ok_or(Unreadable::Secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(n: u8, name: &str) -> Peer {
        let identity = Some(Identity([n; 16]));
        Peer { name: name.to_owned(), identity, key: Key::new([n; 32]), added: 1_795_392_000 }
    }

    #[test]
    fn what_is_written_is_read() {
        for peers in [vec![], vec![machine(1, "pi")], vec![machine(1, "a\"b"), machine(2, "ä")]] {
            assert_eq!(parse(&format(&peers)), Ok(peers));
        }
        assert_eq!(parse(" \n"), Err(Unreadable::Form("it is blank")));
    }

    #[test]
    fn every_truncation_is_refused() {
        let text = format(&[machine(1, "pi")]);
        for len in 1..text.len() {
            assert!(parse(&text[..len]).is_err(), "{:?}", &text[..len]);
        }
    }

    #[test]
    fn damage_is_refused_as_a_whole() {
        let text = format(&[machine(1, "pi"), machine(2, "desk")]);
        for (part, other) in [
            ("0202020202", "0x02020202"),
            ("0101", ""),
            ("\"desk\"", "7"),
            ("\"desk\"", "\"\""),
            ("\"key\"", "\"yek\""),
            ("1795392000", "\"now\""),
            ("\"peers\"", "\"pears\""),
            ("[", "{"),
        ] {
            assert!(parse(&text.replacen(part, other, 1)).is_err(), "{part} as {other}");
        }
        let many: Vec<Peer> = (0..65).map(|n| machine(n, "x")).collect();
        assert_eq!(parse(&format(&many)), Err(Unreadable::TooMany));
    }

    #[test]
    fn pairing_again_replaces_and_names_stay_apart() {
        let mut peers = Vec::new();
        assert_eq!(add(&mut peers, machine(1, "raspberrypi")).unwrap(), "raspberrypi");
        assert_eq!(add(&mut peers, machine(2, "raspberrypi")).unwrap(), "raspberrypi-2");
        assert_eq!(add(&mut peers, machine(3, "raspberrypi")).unwrap(), "raspberrypi-3");
        assert_eq!(add(&mut peers, machine(2, "raspberrypi")).unwrap(), "raspberrypi-2");
        assert_eq!(add(&mut peers, machine(4, "")).unwrap(), "unnamed");
        assert_eq!(peers.len(), 4);
        let long = "ä".repeat(23);
        assert_eq!(add(&mut peers, machine(5, &long)).unwrap(), long);
        assert_eq!(add(&mut peers, machine(6, &long)).unwrap().len(), 46);
        for n in 7..65 {
            add(&mut peers, machine(n, "x")).unwrap();
        }
        assert_eq!(add(&mut peers, machine(65, "x")), Err(Unreadable::TooMany));
    }

    #[test]
    fn secrets_are_read_in_two_ways() {
        let key = Key::new(std::array::from_fn(|n| n as u8));
        let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        for text in [hex, &hex.to_uppercase(), &format!("{base64}=\n"), base64] {
            assert_eq!(parse_secret(text).as_ref(), Ok(&key), "{text}");
        }
        for text in
            ["", "secret", &hex[2..], &base64[1..], &format!("{base64}A"), &format!("{hex}0")]
        {
            assert_eq!(parse_secret(text), Err(Unreadable::Secret), "{text}");
        }
        let unclean = format!("{}9", &base64[..42]);
        assert_eq!(parse_secret(&unclean), Err(Unreadable::Secret), "stray bits");
    }
}
