//! The list of paired machines: the text of its file, and how the list changes. Pure.
//!
//! ```text
//! {"peers":[{"name":"desktop","identity":"…32 digits","key":"…64 digits","added":1795392000}]}
//! ```
//!
//! Pairing can be interrupted at any point, and then one machine may have a key that the other
//! doesn't. So a new key is `"unconfirmed":true` until the other machine is known to have it, and
//! until then the keys before it count as well. The newest is the last.

use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD;
use serde_json::{Value, json};

use crate::net::untrusted_text::{cut, printable};
use crate::pairing::identity::{Identity, KeyId, MAX_NAME};
use crate::pairing::noise::Key;
use crate::system::{Hex, parse_hex};

const MAX_PEERS: usize = 64;
/// Keys of one machine: the one that is in use, and what interrupted pairings left.
const MAX_KEYS: usize = 4;

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
    /// Whether the machine is known to have the key too.
    pub is_confirmed: bool,
}

impl Peer {
    /// The key of a key file, whose owners are not known.
    pub fn of_key_file(key: Key) -> Self {
        Peer { name: "key file".to_owned(), identity: None, key, added: 0, is_confirmed: true }
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
            Unreadable::TooMany => write!(f, "more than {MAX_PEERS} machines"),
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
    let list = root["peers"].as_array().ok_or(Unreadable::Form("no list of machines"))?;
    if list.len() > MAX_PEERS * MAX_KEYS {
        return Err(Unreadable::TooMany);
    }
    list.iter()
        .map(|entry| peer(entry).ok_or(Unreadable::Form("a machine without its key")))
        .collect()
}

fn peer(entry: &Value) -> Option<Peer> {
    let text = |name: &str| entry[name].as_str();
    let name = text("name").filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
    Some(Peer {
        name: printable(name),
        identity: Some(Identity::parse(text("identity")?)?),
        key: Key::new(parse_hex(text("key")?)?),
        added: entry["added"].as_u64()?,
        is_confirmed: entry["unconfirmed"] != true,
    })
}

/// The file's text, one machine a line.
pub(crate) fn format(peers: &[Peer]) -> String {
    let line = |peer: &Peer| {
        let identity = peer.identity.map(|identity| identity.to_string());
        let key = Hex(peer.key.bytes()).to_string();
        let mut entry =
            json!({"name": peer.name, "identity": identity, "key": key, "added": peer.added});
        if !peer.is_confirmed {
            entry["unconfirmed"] = true.into();
        }
        entry.to_string()
    };
    let lines: Vec<String> = peers.iter().map(line).collect();
    format!("{{\"peers\":[\n{}\n]}}", lines.join(",\n"))
}

/// Adds a machine, unless there are too many, and returns its name, which gets a number where
/// another machine has the same name. The keys that it had stay until the new one is confirmed.
pub fn add(peers: &mut Vec<Peer>, new: Peer) -> Result<String, Unreadable> {
    let (identity, id, is_confirmed) = (new.identity, new.id(), new.is_confirmed);
    peers.retain(|peer| peer.identity != identity || peer.id() != id);
    let machines: HashSet<_> = peers.iter().map(|peer| peer.identity).collect();
    if machines.len() >= MAX_PEERS && !machines.contains(&identity) {
        return Err(Unreadable::TooMany);
    }
    let base = if new.name.is_empty() { "unnamed".to_owned() } else { new.name };
    let mut name = base.clone();
    let mut suffixes = (2..).map(|n| format!("-{n}"));
    while peers.iter().any(|peer| peer.identity != identity && peer.name == name)
        && let Some(suffix) = suffixes.next()
    {
        name = format!("{}{suffix}", cut(&base, MAX_NAME - suffix.len()));
    }
    peers.push(Peer { name: name.clone(), is_confirmed: false, ..new });
    let of_it = || peers.iter().enumerate().filter(|(_, peer)| peer.identity == identity);
    if of_it().count() > MAX_KEYS {
        let oldest = of_it().find(|(_, peer)| !peer.is_confirmed).map(|(at, _)| at);
        oldest.map(|at| peers.remove(at));
    }
    for peer in peers.iter_mut().filter(|peer| peer.identity == identity) {
        peer.name.clone_from(&name);
    }
    if is_confirmed {
        confirm(peers, id);
    }
    Ok(name)
}

/// The machine has proved to have this key: those before it have had their time.
pub(crate) fn confirm(peers: &mut Vec<Peer>, id: KeyId) {
    let Some(at) = peers.iter().position(|peer| peer.id() == id) else { return };
    peers[at].is_confirmed = true;
    let identity = peers[at].identity;
    let mut positions = 0..;
    peers.retain(|peer| positions.next() >= Some(at) || peer.identity != identity);
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
        let (name, key) = (name.to_owned(), Key::new([n; 32]));
        Peer { name, identity, key, added: 1_795_392_000, is_confirmed: true }
    }

    /// Another key of it, as an interrupted pairing leaves it.
    fn again(n: u8, name: &str, key: u8) -> Peer {
        Peer { key: Key::new([key; 32]), is_confirmed: false, ..machine(n, name) }
    }

    fn keys(peers: &[Peer]) -> Vec<u8> {
        peers.iter().map(|peer| peer.key.bytes()[0]).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        for peers in [vec![], vec![machine(1, "pi")], vec![machine(1, "a\"b"), again(2, "ä", 3)]] {
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
        let many: Vec<Peer> = (0..=256).map(|n| machine(n as u8, "x")).collect();
        assert_eq!(parse(&format(&many)), Err(Unreadable::TooMany));
        assert_eq!(parse(&format(&many[..256])).unwrap().len(), 256);
    }

    #[test]
    fn the_old_key_stays_until_the_new_one_is_confirmed() {
        let mut peers = vec![machine(1, "pi"), machine(2, "desk")];
        for key in [11, 12] {
            assert_eq!(add(&mut peers, again(1, "pie", key)).unwrap(), "pie");
        }
        assert_eq!(keys(&peers), [1, 2, 11, 12]);
        assert!(peers.iter().all(|peer| peer.name != "pi"), "one machine, one name");
        confirm(&mut peers, Key::new([11; 32]).id());
        assert_eq!(keys(&peers), [2, 11, 12]);
        assert_eq!(
            peers.iter().map(|one| one.is_confirmed).collect::<Vec<_>>(),
            [true, true, false]
        );
        confirm(&mut peers, Key::new([9; 32]).id());
        assert_eq!(keys(&peers), [2, 11, 12], "nobody's key");
        for key in 13..20 {
            add(&mut peers, again(1, "pie", key)).unwrap();
        }
        assert_eq!(keys(&peers), [2, 11, 17, 18, 19], "bounded, and the one in use stays");
        confirm(&mut peers, Key::new([19; 32]).id());
        assert_eq!(keys(&peers), [2, 19]);
        assert_eq!(add(&mut peers, machine(1, "pie")).unwrap(), "pie");
        assert_eq!(keys(&peers), [2, 1]);
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
