//! Layout of the discovery datagrams, version 1. Pure: bytes in, values out.
//!
//! Big-endian, 80 bytes, then optional type-length-value records up to 512 bytes in all:
//!
//! ```text
//!  0  4  magic 0x4C414E41 "LANA"      40  2  HTTP port of the proxy (0 in a probe)
//!  4  1  version, 1                   42  2  flags
//!  5  1  1 PROBE 2 ANNOUNCE 3 GOODBYE 44  2  capabilities
//!  6  2  length of the datagram       46  4  Ollama version: u8.u8.u16
//!  8 16  nonce, echoed in the answer  50  2  requests in flight
//! 24 16  sender's identity            52  4  instance, new at each start
//! 64 16  authentication code, or 0    56  8  zero
//! 80  …  records: type u8, length u8, value; 1 name, 2 key id; type 0 is one byte of padding
//! ```
//!
//! A server on a usual port (below 32768) keeps its identity; others, and clients, have a new one at
//! each start. An announcement with port 0 says why its sender can't be used. The authentication code
//! is keyed BLAKE2s over the whole datagram, with zeros in the code's own place, and behind it, for a
//! probe, the 16 bytes of the (IPv4-mapped) IPv6 address that it is sent from. A datagram of nothing
//! but the magic is a probe, or an answer, of older versions.

use std::fmt;
use std::net::IpAddr;

use crate::net::untrusted_text::{cut, is_printable};
use crate::ollama::version::OllamaVersion;
use crate::pairing::identity::{Identity, KeyId, MAX_NAME};
use crate::pairing::noise::Key;

const MAGIC: u32 = 0x4C41_4E41;
/// Length of a datagram without records.
pub const FIXED_LEN: usize = 80;
/// Longest datagram that is read.
pub const MAX_LEN: usize = 512;
/// Length of the probes we send, so that an answer has room for a name of 46 bytes.
pub const PROBE_LEN: usize = 128;

const VERSION: u8 = 1;
const KINDS: [Kind; 3] = [Kind::Probe, Kind::Announce, Kind::Goodbye];
const RECORD_PADDING: u8 = 0;
const RECORD_NAME: u8 = 1;
const RECORD_KEY: u8 = 2;
// The authentication code's place.
const CODE: std::ops::Range<usize> = 64..80;

/// Random bytes of a probe that its answers repeat.
pub type Nonce = [u8; 16];

/// A client's question, a server's answer, or that the server is about to stop.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Probe = 1,
    Announce = 2,
    Goodbye = 3,
}

/// Bits of the flags field.
pub mod flags {
    /// The server's Ollama answers.
    pub const OLLAMA_UP: u16 = 1;
    /// Requests need a key.
    pub const KEY_REQUIRED: u16 = 1 << 1;
    /// The hop is encrypted.
    pub const ENCRYPTED: u16 = 1 << 2;
    // Bit 3 is reserved: no new work, please.
    /// Pull, create and delete are allowed.
    pub const MANAGEMENT_OPEN: u16 = 1 << 4;
}

/// One datagram of version 1; the table above describes its fields.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub kind: Kind,
    pub nonce: Nonce,
    pub sender: Identity,
    pub http_port: u16,
    pub flags: u16,
    /// Reserved for features that both sides must know of; 0.
    pub capabilities: u16,
    pub version: OllamaVersion,
    pub in_flight: u16,
    pub instance: u32,
    /// Of the sender's machine, or empty. At most [`MAX_NAME`] bytes are sent.
    pub name: String,
    /// The key that a probe is authenticated with, as its answer shall be.
    pub key: Option<KeyId>,
}

/// A received datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// The bare magic of older versions.
    Legacy,
    /// Version 1.
    V1(Datagram),
}

/// Why a received datagram is dropped.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Neither 4 bytes nor [`FIXED_LEN`] to [`MAX_LEN`].
    Size(usize),
    Magic(u32),
    Version(u8),
    Kind(u8),
    Length(u16),
    Reserved,
    Record,
    /// The name is too long, not UTF-8, or not printable.
    Name,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Size(n) => write!(f, "datagram of {n} bytes"),
            DecodeError::Magic(m) => write!(f, "magic 0x{m:08x}"),
            DecodeError::Version(v) => write!(f, "version {v}"),
            DecodeError::Kind(k) => write!(f, "kind {k}"),
            DecodeError::Length(n) => write!(f, "length field {n}"),
            DecodeError::Reserved => write!(f, "reserved bytes in use"),
            DecodeError::Record => write!(f, "record past the end"),
            DecodeError::Name => write!(f, "name not printable"),
        }
    }
}

/// A probe, or an answer, of older versions.
pub fn encode_legacy() -> [u8; 4] {
    MAGIC.to_be_bytes()
}

impl Datagram {
    /// A probe without a key.
    pub fn probe(sender: Identity, nonce: Nonce) -> Self {
        Datagram {
            kind: Kind::Probe,
            nonce,
            sender,
            http_port: 0,
            flags: 0,
            capabilities: 0,
            version: OllamaVersion::default(),
            in_flight: 0,
            instance: 0,
            name: String::new(),
            key: None,
        }
    }

    /// Whether it announces that its sender can't be used.
    pub fn is_notice(&self) -> bool {
        self.kind == Kind::Announce && self.http_port == 0
    }

    /// The bytes to send, at most `room` of them ([`FIXED_LEN`] to [`PROBE_LEN`]): the name is cut to
    /// fit, and a probe is padded, so that its answer may be as long.
    pub fn encode(&self, room: usize) -> Vec<u8> {
        let room = room.clamp(FIXED_LEN, PROBE_LEN);
        let mut out = Vec::with_capacity(room);
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&[VERSION, self.kind as u8, 0, 0]);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.sender.0);
        out.extend_from_slice(&self.http_port.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.capabilities.to_be_bytes());
        out.extend_from_slice(&self.version.to_bits().to_be_bytes());
        out.extend_from_slice(&self.in_flight.to_be_bytes());
        out.extend_from_slice(&self.instance.to_be_bytes());
        out.resize(FIXED_LEN, 0);
        if let Some(key) = self.key.filter(|_| room >= FIXED_LEN + 10) {
            out.extend_from_slice(&[RECORD_KEY, 8]);
            out.extend_from_slice(&key.0);
        }
        let name = cut(&self.name, room.saturating_sub(out.len() + 2));
        if !name.is_empty() {
            // The name has at most MAX_NAME (46) bytes, so its length fits a byte.
            out.extend_from_slice(&[RECORD_NAME, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        if self.kind == Kind::Probe {
            // Padding bytes are records of their own, so they need no length.
            out.resize(room, RECORD_PADDING);
        }
        let length = (out.len() as u16).to_be_bytes();
        out[6..8].copy_from_slice(&length);
        out
    }
}

/// Puts the key's authentication code into a datagram. `from` is the address that a probe is sent
/// from, and `None` for answers.
pub fn authenticate(datagram: &mut [u8], from: Option<IpAddr>, key: &Key) {
    let code = key.authenticate(&covered(datagram, from));
    if let Some(place) = datagram.get_mut(CODE) {
        place.copy_from_slice(&code);
    }
}

/// Whether a datagram has the key's authentication code. `from` as in [`authenticate`].
pub fn is_authentic(datagram: &[u8], from: Option<IpAddr>, key: &Key) -> bool {
    let code = datagram.get(CODE).and_then(<[u8]>::first_chunk);
    code.is_some_and(|code| key.verifies(&covered(datagram, from), code))
}

fn covered(datagram: &[u8], from: Option<IpAddr>) -> Vec<u8> {
    let mut covered = datagram.to_vec();
    if let Some(place) = covered.get_mut(CODE) {
        place.fill(0);
    }
    match from {
        Some(IpAddr::V4(ip)) => covered.extend(ip.to_ipv6_mapped().octets()),
        Some(IpAddr::V6(ip)) => covered.extend(ip.octets()),
        None => {}
    }
    covered
}

/// Reads a datagram of ours. Its authentication code isn't looked at.
pub fn decode(bytes: &[u8]) -> Result<Packet, DecodeError> {
    let size = DecodeError::Size(bytes.len());
    let mut rest = bytes;
    let magic = u32::from_be_bytes(take(&mut rest).map_err(|_| size)?);
    if magic != MAGIC {
        return Err(DecodeError::Magic(magic));
    }
    if bytes.len() == 4 {
        return Ok(Packet::Legacy);
    }
    if !(FIXED_LEN..=MAX_LEN).contains(&bytes.len()) {
        return Err(size);
    }
    let [version, kind] = take(&mut rest)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let known = KINDS.into_iter().find(|known| *known as u8 == kind);
    let kind = known.ok_or(DecodeError::Kind(kind))?;
    let length = u16::from_be_bytes(take(&mut rest)?);
    if usize::from(length) != bytes.len() {
        return Err(DecodeError::Length(length));
    }
    let nonce = take(&mut rest)?;
    let sender = Identity(take(&mut rest)?);
    let mut datagram = Datagram {
        kind,
        http_port: u16::from_be_bytes(take(&mut rest)?),
        flags: u16::from_be_bytes(take(&mut rest)?),
        capabilities: u16::from_be_bytes(take(&mut rest)?),
        version: OllamaVersion::from_bits(u32::from_be_bytes(take(&mut rest)?)),
        in_flight: u16::from_be_bytes(take(&mut rest)?),
        instance: u32::from_be_bytes(take(&mut rest)?),
        ..Datagram::probe(sender, nonce)
    };
    let reserved: [u8; 8] = take(&mut rest)?;
    if reserved != [0; 8] {
        return Err(DecodeError::Reserved);
    }
    let _authentication: [u8; 16] = take(&mut rest)?;
    while let Ok([record]) = take(&mut rest) {
        if record == RECORD_PADDING {
            continue;
        }
        let [len] = take(&mut rest)?;
        let value = rest.split_off(..usize::from(len)).ok_or(DecodeError::Record)?;
        match record {
            RECORD_NAME => datagram.name = printable_name(value).ok_or(DecodeError::Name)?,
            RECORD_KEY => {
                let id = value.try_into().map_err(|_| DecodeError::Record)?;
                datagram.key = Some(KeyId(id));
            }
            _ => {}
        }
    }
    Ok(Packet::V1(datagram))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (taken, left) = rest.split_first_chunk().ok_or(DecodeError::Record)?;
    *rest = left;
    Ok(*taken)
}

fn printable_name(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?;
    (name.len() <= MAX_NAME && name.chars().all(is_printable)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: Kind) -> Datagram {
        Datagram {
            kind,
            nonce: *b"0123456789abcdef",
            sender: Identity(*b"ABCDEFGHIJKLMNOP"),
            http_port: 11435,
            flags: flags::OLLAMA_UP | flags::MANAGEMENT_OPEN,
            capabilities: 0,
            version: OllamaVersion { major: 0, minor: 13, patch: 1025 },
            in_flight: 7,
            instance: 0xDEAD_BEEF,
            name: "pi".to_owned(),
            key: None,
        }
    }

    #[test]
    fn announcement_has_the_documented_bytes() {
        let mut want = Vec::new();
        want.extend_from_slice(&[0x4C, 0x41, 0x4E, 0x41, 1, 2, 0, 84]);
        want.extend_from_slice(b"0123456789abcdef");
        want.extend_from_slice(b"ABCDEFGHIJKLMNOP");
        want.extend_from_slice(&[0x2C, 0xAB, 0, 17, 0, 0, 0, 13, 4, 1, 0, 7]);
        want.extend_from_slice(&[0xDE, 0xAD, 0xBE, 0xEF]);
        want.extend_from_slice(&[0; 24]);
        want.extend_from_slice(&[1, 2, b'p', b'i']);
        assert_eq!(sample(Kind::Announce).encode(PROBE_LEN), want);
        want.truncate(FIXED_LEN);
        want[7] = 80;
        assert_eq!(sample(Kind::Announce).encode(FIXED_LEN), want, "a short probe's answer");
    }

    #[test]
    fn round_trip_and_no_amplification() {
        for kind in [Kind::Probe, Kind::Announce, Kind::Goodbye] {
            let mut datagram = sample(kind);
            assert_eq!(decode(&datagram.encode(PROBE_LEN)), Ok(Packet::V1(datagram.clone())));
            datagram.name = "ä".repeat(40);
            let bytes = datagram.encode(PROBE_LEN);
            assert!(bytes.len() <= PROBE_LEN, "{} bytes", bytes.len());
            let Ok(Packet::V1(back)) = decode(&bytes) else { panic!("{bytes:?}") };
            assert_eq!(back.name, "ä".repeat(23));
        }
        let keyed = Datagram { key: Some(KeyId(*b"keykeyid")), ..sample(Kind::Probe) };
        assert_eq!(decode(&keyed.encode(PROBE_LEN)), Ok(Packet::V1(keyed)));
        assert_eq!(sample(Kind::Probe).encode(PROBE_LEN).len(), PROBE_LEN);
        assert_eq!(decode(&encode_legacy()), Ok(Packet::Legacy));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = sample(Kind::Announce).encode(PROBE_LEN);
        for len in (0..bytes.len()).filter(|len| *len != 4) {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let mut long = bytes.clone();
        long.resize(MAX_LEN + 1, 0);
        assert_eq!(decode(&long), Err(DecodeError::Size(MAX_LEN + 1)));
    }

    #[test]
    fn every_single_byte_mutation_is_refused_or_means_something_else() {
        let original = sample(Kind::Announce);
        let bytes = original.encode(PROBE_LEN);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut mutated = bytes.clone();
                mutated[at] ^= 1 << bit;
                match decode(&mutated) {
                    // Bytes 64 to 79 are the authentication code, which isn't part of the value.
                    Ok(Packet::V1(other)) if (64..80).contains(&at) => assert_eq!(other, original),
                    Ok(Packet::V1(other)) => assert_ne!(other, original, "byte {at} bit {bit}"),
                    Ok(Packet::Legacy) => panic!("byte {at} bit {bit} made it a legacy packet"),
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn refusals_name_their_reason() {
        let good = sample(Kind::Probe).encode(PROBE_LEN);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes).unwrap_err()
        };
        assert_eq!(with(0, 0), DecodeError::Magic(0x0041_4E41));
        assert_eq!(with(4, 2), DecodeError::Version(2));
        assert_eq!(with(5, 9), DecodeError::Kind(9));
        assert_eq!(with(7, 0), DecodeError::Length(0));
        assert_eq!(with(56, 1), DecodeError::Reserved);
        assert_eq!(with(81, 200), DecodeError::Record);
        assert_eq!(with(82, 0x1b), DecodeError::Name);
        assert_eq!(decode(b"LAN"), Err(DecodeError::Size(3)));
    }

    #[test]
    fn ollama_versions() {
        let v = |major, minor, patch| OllamaVersion { major, minor, patch };
        assert_eq!(OllamaVersion::parse("0.5.4"), v(0, 5, 4));
        assert_eq!(OllamaVersion::parse("0.13.1-rc0"), v(0, 13, 1));
        assert_eq!(OllamaVersion::parse("0.5.4-ipexllm-20250331"), v(0, 5, 4));
        for unknown in ["", "1", "1.2", "1.2.3.4", "a.b.c", "300.0.0"] {
            assert_eq!(OllamaVersion::parse(unknown), v(0, 0, 0), "{unknown:?}");
        }
        assert_eq!(OllamaVersion::from_bits(v(1, 2, 777).to_bits()), v(1, 2, 777));
        assert!(v(0, 13, 0) > v(0, 9, 9));
    }
}
