//! What makes a connection between paired machines private: keys, the handshake and the records.
//! Pure: bytes in, bytes out. The only importer of snow.
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
//! initiator has the key before the responder computes or sends anything (psk0), and carries
//! nothing that does harm when it is replayed: an attacker who replays it can't read the answer
//! nor go on. Both sides add fresh keys, so a key that is stolen later opens no recorded
//! connection. Identities are exchanged so that a machine can't be made to talk to itself.
//!
//! Records carry no number; both sides count. A record that is changed, left out, repeated or out
//! of turn doesn't open, and then the connection is over. Their keys are those that Noise splits
//! off. The introductions, which nobody else can read or change, decide the cipher.

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

/// What a handshake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Requests between paired machines.
    Requests,
    /// Making two machines a pair: the key is that of a typed code.
    Pairing,
}

impl Purpose {
    fn prologue(self, id: KeyId) -> [u8; PROLOGUE] {
        let mut prologue = [0; PROLOGUE];
        let number = match self {
            Purpose::Requests => 1,
            Purpose::Pairing => 2,
        };
        prologue[..4].copy_from_slice(&[FIRST_BYTE, b'L', b'N', number]);
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

    /// Length of an introduction in bytes.
    pub const fn introduction_len(self) -> usize {
        match self {
            Purpose::Requests => 16 + 1,
            Purpose::Pairing => 16 + 1 + 1 + MAX_NAME,
        }
    }

    /// Length of the first message in bytes.
    pub const fn hello_len(self) -> usize {
        PROLOGUE + self.reply_len()
    }

    /// Length of the second message in bytes.
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

    /// Its bytes: always as many, so that they don't tell how long the name is.
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

    /// Reads one; `None` if it breaks the rules.
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
        let (identity, has_aes) = (Identity(*identity), abilities & 1 == 1);
        Some(Introduction { identity, has_aes, name: printable(name) })
    }
}

fn builder<'a>(key: &'a [u8; 32], prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    let pattern = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse()?;
    Builder::new(pattern).prologue(prologue)?.psk(0, key)
}

/// The side that has sent the first message and awaits the second.
pub struct Initiator {
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

/// Starts a handshake; the bytes are the first message.
///
/// # Errors
/// Only when the system has no random bytes.
pub fn initiate(
    purpose: Purpose,
    key: &Key,
    own: &Introduction,
) -> Result<(Initiator, Vec<u8>), NoiseError> {
    let prologue = purpose.prologue(purpose.key_id(key));
    let started = (|| {
        let mut state = builder(&key.handshake_key(), &prologue)?.build_initiator()?;
        let mut hello = vec![0; purpose.hello_len()];
        hello[..PROLOGUE].copy_from_slice(&prologue);
        state.write_message(&own.encode(purpose), &mut hello[PROLOGUE..])?;
        Ok::<_, snow::Error>((Initiator { state, purpose, own: own.clone() }, hello))
    })();
    started.map_err(|_| NoiseError::Malformed)
}

impl Initiator {
    /// Takes the second message.
    ///
    /// # Errors
    /// When it doesn't come from a machine with the key, or from this machine.
    pub fn finish(mut self, reply: &[u8]) -> Result<Established, NoiseError> {
        if reply.len() != self.purpose.reply_len() {
            return Err(NoiseError::Malformed);
        }
        let mut introduction = vec![0; self.purpose.introduction_len()];
        self.state.read_message(reply, &mut introduction).map_err(|_| NoiseError::WrongKey)?;
        establish(self.state, self.purpose, &introduction, &self.own)
    }
}

/// Answers a first message with the second one.
///
/// # Errors
/// When it doesn't come from a machine with the key, or from this machine. Nothing may be sent
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
    let key = key.handshake_key();
    let mut state = builder(&key, prologue)
        .and_then(Builder::build_responder)
        .map_err(|_| NoiseError::Malformed)?;
    let mut introduction = vec![0; purpose.introduction_len()];
    state.read_message(message, &mut introduction).map_err(|_| NoiseError::WrongKey)?;
    let mut reply = vec![0; purpose.reply_len()];
    state.write_message(&own.encode(purpose), &mut reply).map_err(|_| NoiseError::Malformed)?;
    Ok((reply, establish(state, purpose, &introduction, own)?))
}

fn establish(
    mut state: HandshakeState,
    purpose: Purpose,
    introduction: &[u8],
    own: &Introduction,
) -> Result<Established, NoiseError> {
    let peer = Introduction::decode(purpose, introduction).ok_or(NoiseError::Malformed)?;
    if peer.identity == own.identity {
        return Err(NoiseError::OwnIdentity);
    }
    if !state.is_handshake_finished() {
        return Err(NoiseError::WrongKey);
    }
    let (initiator, responder) = state.dangerously_get_raw_split();
    let secrets = match state.is_initiator() {
        true => (initiator, responder),
        false => (responder, initiator),
    };
    let session = Session::new(secrets, own.has_aes && peer.has_aes)?;
    Ok(Established { session, peer })
}

#[cfg(test)]
mod tests;
