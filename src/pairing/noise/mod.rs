//! What makes a connection between paired machines private. Pure: bytes in, bytes out. The only
//! importer of snow.
//!
//! A connection starts with `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, one message each way, and
//! goes on in records:
//!
//! ```text
//!  initiator ──► F5 'L' 'N' purpose │ key id, 8 │ e, 32 │ sealed: introduction, tag 16
//!  initiator ◄── e, 32 │ sealed: introduction, tag 16
//!  both      ──► length, 2, big-endian │ sealed bytes, tag 16       an empty record is the end
//! ```
//!
//! The twelve bytes in clear are the handshake's prologue. The first message proves that the
//! initiator has the key before the responder computes or sends anything (psk0); an attacker who
//! replays it can't read the answer nor go on. Both sides add fresh keys, so a key that is stolen
//! later opens no recorded connection. Identities are exchanged so that a machine can't be made to
//! talk to itself; the introductions also decide the cipher.
//!
//! Records carry no number; both sides count. A record that is changed, left out, repeated or out
//! of turn doesn't open, and then the connection is over.

mod key;
mod session;

use std::fmt;

use snow::{Builder, HandshakeState};

pub use self::key::Key;
pub(crate) use self::session::MAX_RECORD;
pub use self::session::{OVERHEAD, Session};
use crate::net::untrusted_text::{cut, printable};
use crate::pairing::identity::{Identity, KeyId, MAX_NAME};

/// First byte of a handshake. No HTTP request starts with it.
pub const FIRST_BYTE: u8 = 0xF5;
const PROLOGUE: usize = 12;
const EPHEMERAL: usize = 32;
const TAG: usize = 16;

/// Why a handshake failed, or a record doesn't open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseError {
    /// Not a handshake of this version.
    Malformed,
    /// The peer has another key, or the bytes were changed on the way.
    WrongKey,
    /// The peer is this machine.
    OwnIdentity,
    /// A record was changed, left out, repeated, or is longer than allowed.
    Record,
}

impl fmt::Display for NoiseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoiseError::Malformed => "not a handshake of this version",
            NoiseError::WrongKey => "the keys differ (pair the machines again: ollana pair)",
            NoiseError::OwnIdentity => "that is this machine itself",
            NoiseError::Record => "encrypted bytes were changed on the way",
        })
    }
}

impl From<snow::Error> for NoiseError {
    fn from(_: snow::Error) -> Self {
        NoiseError::Malformed
    }
}

/// What a handshake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Requests between paired machines.
    Requests = 1,
    /// Making two machines a pair: the key is that of a typed code.
    Pairing = 2,
}

impl Purpose {
    fn prologue(self, id: KeyId) -> [u8; PROLOGUE] {
        let mut prologue = [0; PROLOGUE];
        prologue[..4].copy_from_slice(&[FIRST_BYTE, b'L', b'N', self as u8]);
        prologue[4..].copy_from_slice(&id.0);
        prologue
    }

    /// The id of a code's key would help to find the code, so it isn't sent.
    fn key_id(self, key: &Key) -> KeyId {
        match self {
            Purpose::Requests => key.id(),
            Purpose::Pairing => KeyId([0; 8]),
        }
    }

    /// In bytes.
    pub const fn introduction_len(self) -> usize {
        match self {
            Purpose::Requests => 16 + 1,
            Purpose::Pairing => 16 + 1 + 1 + MAX_NAME,
        }
    }

    /// In bytes, of the first message.
    pub const fn hello_len(self) -> usize {
        PROLOGUE + self.reply_len()
    }

    /// In bytes, of the second message.
    pub const fn reply_len(self) -> usize {
        EPHEMERAL + self.introduction_len() + TAG
    }

    /// The key that a first message names; `None` if it is none, or of another version.
    pub fn read_id(self, hello: &[u8]) -> Option<KeyId> {
        let id = KeyId(*hello.get(4..PROLOGUE)?.first_chunk()?);
        (hello.len() == self.hello_len() && hello[..PROLOGUE] == self.prologue(id)).then_some(id)
    }
}

/// What each side tells of itself in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Of the machine or, for a client, of the process.
    pub identity: Identity,
    /// Whether it computes AES in hardware.
    pub has_aes: bool,
    /// For people; only sent while pairing.
    pub name: String,
}

impl Introduction {
    /// This machine, without a name.
    pub fn of(identity: Identity) -> Self {
        Introduction { identity, has_aes: session::has_aes(), name: String::new() }
    }

    /// Always as many bytes, so that they don't tell how long the name is.
    pub fn encode(&self, purpose: Purpose) -> Vec<u8> {
        let mut out = self.identity.0.to_vec();
        out.push(self.has_aes.into());
        if purpose == Purpose::Pairing {
            let name = cut(&self.name, MAX_NAME);
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
        }
        out.resize(purpose.introduction_len(), 0);
        out
    }

    /// `None` if it breaks the rules.
    pub fn decode(purpose: Purpose, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != purpose.introduction_len() {
            return None;
        }
        let (identity, rest) = bytes.split_first_chunk()?;
        let (abilities, rest) = rest.split_first()?;
        let name = match rest.split_first() {
            Some((len, name)) => std::str::from_utf8(name.get(..usize::from(*len))?).ok()?,
            None => "",
        };
        let has_aes = abilities & 1 == 1;
        Some(Introduction { identity: Identity(*identity), has_aes, name: printable(name) })
    }
}

fn builder<'a>(key: &'a [u8; 32], prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    let pattern = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse()?;
    Builder::new(pattern).prologue(prologue)?.psk(0, key)
}

/// One side of a handshake.
pub struct Handshake {
    state: HandshakeState,
    purpose: Purpose,
    own: Introduction,
}

/// A finished handshake. The peer has proved to have the key.
#[derive(Debug)]
pub struct Established {
    /// Seals and opens the records that follow.
    pub session: Session,
    /// The other machine.
    pub peer: Introduction,
}

/// Starts a handshake; the bytes are the first message. Fails only without random bytes.
pub fn initiate(
    purpose: Purpose,
    key: &Key,
    own: &Introduction,
) -> Result<(Handshake, Vec<u8>), NoiseError> {
    let prologue = purpose.prologue(purpose.key_id(key));
    let state = builder(&key.handshake_key(), &prologue)?.build_initiator()?;
    let mut handshake = Handshake { state, purpose, own: own.clone() };
    let hello = [&prologue[..], &handshake.write()?].concat();
    Ok((handshake, hello))
}

/// As [`initiate`], with a line end in the message: an HTTP server that knows no handshakes may read a
/// whole line before it answers that this is no request, as Go's does, which is Ollama's.
pub(crate) fn initiate_with_line(
    purpose: Purpose,
    key: &Key,
    own: &Introduction,
) -> Result<(Handshake, Vec<u8>), NoiseError> {
    // No byte of a message can be chosen. Those behind the prologue look random, so that two of nine
    // messages of requests have a line end.
    loop {
        let (handshake, hello) = initiate(purpose, key, own)?;
        if hello.contains(&b'\n') {
            return Ok((handshake, hello));
        }
    }
}

impl Handshake {
    fn write(&mut self) -> Result<Vec<u8>, NoiseError> {
        let mut message = vec![0; self.purpose.reply_len()];
        self.state.write_message(&self.own.encode(self.purpose), &mut message)?;
        Ok(message)
    }

    fn read(&mut self, message: &[u8]) -> Result<Introduction, NoiseError> {
        let mut bytes = vec![0; self.purpose.introduction_len()];
        self.state.read_message(message, &mut bytes).map_err(|_| NoiseError::WrongKey)?;
        let peer = Introduction::decode(self.purpose, &bytes).ok_or(NoiseError::Malformed)?;
        if peer.identity == self.own.identity { Err(NoiseError::OwnIdentity) } else { Ok(peer) }
    }

    fn establish(mut self, peer: Introduction) -> Result<Established, NoiseError> {
        let (first, second) = self.state.dangerously_get_raw_split();
        let secrets = if self.state.is_initiator() { (first, second) } else { (second, first) };
        let session = Session::new(secrets, self.own.has_aes && peer.has_aes)?;
        Ok(Established { session, peer })
    }

    /// Takes the second message. Fails if it doesn't come from a machine with the key, or comes
    /// from this machine.
    pub fn finish(mut self, reply: &[u8]) -> Result<Established, NoiseError> {
        if reply.len() != self.purpose.reply_len() {
            return Err(NoiseError::Malformed);
        }
        let peer = self.read(reply)?;
        self.establish(peer)
    }
}

/// Answers a first message with the second one. Fails as [`Handshake::finish`]; nothing may be sent
/// then.
pub fn respond(
    purpose: Purpose,
    key: &Key,
    own: &Introduction,
    hello: &[u8],
) -> Result<(Vec<u8>, Established), NoiseError> {
    if purpose.read_id(hello) != Some(purpose.key_id(key)) {
        return Err(NoiseError::Malformed);
    }
    let (prologue, message) = hello.split_at(PROLOGUE);
    let state = builder(&key.handshake_key(), prologue)?.build_responder()?;
    let mut handshake = Handshake { state, purpose, own: own.clone() };
    let peer = handshake.read(message)?;
    let reply = handshake.write()?;
    Ok((reply, handshake.establish(peer)?))
}

#[cfg(test)]
mod tests;
