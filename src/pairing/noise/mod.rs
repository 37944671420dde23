//! What makes a hop private: keys, the handshake and the records. Pure: bytes in, bytes out.
//!
//! The only importer of snow and blake2. A connection between two paired machines starts with
//! `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, one message each way, and goes on in records:
//!
//! ```text
//!  caller ──► F5 'L' 'N' purpose │ key id, 8 │ e, 32 │ sealed: introduction, tag 16
//!  caller ◄── e, 32 │ sealed: introduction, tag 16
//!  both   ──► length, 2, big-endian │ sealed bytes, tag 16       an empty record is the end
//! ```
//!
//! The twelve bytes in clear are the handshake's prologue. The first message proves that the
//! caller has the key before the answerer computes or sends anything (psk0), and carries nothing
//! that does harm when it is replayed: whoever replays it can't read the answer nor go on. Both
//! sides add fresh keys, so a key that is stolen later opens no recorded connection. Identities
//! are exchanged so that nobody can be made to talk to himself.
//!
//! Records carry no number; both sides count. A record that is changed, left out, repeated or out
//! of turn doesn't open, and then the connection is over. Their keys are those that Noise splits
//! off; which cipher they are for, both sides know from the introductions, which nobody else can
//! read or change.

mod session;

use std::fmt;

use blake2::digest::consts::{U16, U32};
use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use snow::{Builder, HandshakeState};

pub use self::session::{MAX_RECORD, OVERHEAD, Session};
use crate::pairing::identity::{Identity, KeyId, MAX_NAME};

/// First byte of a handshake. No HTTP request starts with it.
pub const FIRST_BYTE: u8 = 0xF5;
/// Bytes of the first message that are not sealed.
const CLEAR: usize = 12;
const EPHEMERAL: usize = 32;
const TAG: usize = 16;
/// Rounds of hashing that a pairing code goes through: some milliseconds on a small ARM.
const STRETCH: u32 = 1 << 15;

/// A secret that two machines share.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

impl Key {
    /// A key of these bytes, which must be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        Key(bytes)
    }

    /// The secret itself, for the file that keeps it.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that a short code stands for while two machines pair.
    pub fn of_code(code: &str) -> Self {
        let mut key = derive(&[0; 32], b"ollana code", code.as_bytes());
        for _ in 0..STRETCH {
            key = derive(&key, b"ollana stretch", code.as_bytes());
        }
        Key(key)
    }

    /// The key of two halves, of which each machine made one.
    pub fn of_halves(first: &[u8; 32], second: &[u8; 32]) -> Self {
        Key(derive(first, b"ollana pair", second))
    }

    /// Its public name.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&derive(&self.0, b"ollana key id", b"")[..8]);
        KeyId(id)
    }

    fn psk(&self) -> [u8; 32] {
        derive(&self.0, b"ollana hop", b"")
    }

    fn mac(&self, bytes: &[u8]) -> Option<blake2::Blake2sMac<U16>> {
        let key = derive(&self.0, b"ollana discovery", b"");
        Some(<blake2::Blake2sMac<U16> as KeyInit>::new_from_slice(&key).ok()?.chain(bytes))
    }

    /// The code that proves that a datagram comes from somebody with this key.
    pub fn authenticate(&self, bytes: &[u8]) -> [u8; 16] {
        // Keys of 32 bytes are always taken.
        self.mac(bytes).map(|mac| mac.finalize_fixed().into()).unwrap_or_default()
    }

    /// Whether that code is right; takes as long for every wrong one.
    pub fn verifies(&self, bytes: &[u8], code: &[u8; 16]) -> bool {
        self.mac(bytes).is_some_and(|mac| mac.verify(code.into()).is_ok())
    }
}

/// One of the keys that come from a key, each for one use.
fn derive(key: &[u8; 32], label: &[u8], data: &[u8]) -> [u8; 32] {
    // Keys of 32 bytes are always taken.
    let Ok(mac) = <blake2::Blake2sMac<U32> as KeyInit>::new_from_slice(key) else { return [0; 32] };
    mac.chain([label.len() as u8]).chain(label).chain(data).finalize_fixed().into()
}

/// Why a peer isn't talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It isn't the beginning of a handshake of this version.
    Form,
    /// The key is another, or the bytes were changed on the way.
    Key,
    /// It is ourselves.
    Mirror,
    /// A record was changed, left out, repeated, or is longer than allowed.
    Record,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Form => "not a handshake of this version",
            Broken::Key => "the keys differ (pair the machines again: ollana pair)",
            Broken::Mirror => "that is this machine itself",
            Broken::Record => "encrypted bytes were changed on the way",
        })
    }
}

/// What a handshake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Requests between paired machines.
    Hop,
    /// Becoming a pair: the key is a code that was typed.
    Pairing,
}

/// Who somebody is: an identity, and while pairing a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Kept by a server, new for each process of a client.
    pub identity: Identity,
    /// Whether it computes AES in hardware.
    pub has_aes: bool,
    /// For people; only while pairing.
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
            let end = (0..=MAX_NAME.min(self.name.len()))
                .rev()
                .find(|end| self.name.is_char_boundary(*end));
            let name = &self.name.as_bytes()[..end.unwrap_or(0)];
            out.push(name.len() as u8);
            out.extend_from_slice(name);
        }
        out.resize(purpose.introduction_len(), 0);
        out
    }

    /// Reads one; `None` if it isn't what somebody says who keeps to the rules.
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
        let name = name.chars().filter(|c| !c.is_control()).collect();
        Some(Introduction { identity: Identity(*identity), has_aes: abilities & 1 == 1, name })
    }
}

impl Purpose {
    fn clear(self, id: KeyId) -> [u8; CLEAR] {
        let mut clear = [0; CLEAR];
        let number = match self {
            Purpose::Hop => 1,
            Purpose::Pairing => 2,
        };
        clear[..4].copy_from_slice(&[FIRST_BYTE, b'L', b'N', number]);
        clear[4..].copy_from_slice(&id.0);
        clear
    }

    /// A code's name would help to find the code.
    fn key_id(self, key: &Key) -> KeyId {
        match self {
            Purpose::Hop => key.id(),
            Purpose::Pairing => KeyId([0; 8]),
        }
    }

    /// Length of an introduction.
    pub const fn introduction_len(self) -> usize {
        match self {
            Purpose::Hop => 16 + 1,
            Purpose::Pairing => 16 + 1 + 1 + MAX_NAME,
        }
    }

    /// Length of the first message.
    pub const fn hello_len(self) -> usize {
        CLEAR + self.reply_len()
    }

    /// Length of the second message.
    pub const fn reply_len(self) -> usize {
        EPHEMERAL + self.introduction_len() + TAG
    }

    /// Which key a first message means; `None` if it is none, or of another version.
    pub fn read_id(self, hello: &[u8]) -> Option<KeyId> {
        let id = KeyId(*hello.get(4..CLEAR)?.first_chunk()?);
        (hello.len() == self.hello_len() && hello[..CLEAR] == self.clear(id)).then_some(id)
    }
}

fn builder<'a>(psk: &'a [u8; 32], clear: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    let pattern = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse()?;
    Builder::new(pattern).prologue(clear)?.psk(0, psk)
}

/// A caller that awaits the second message.
pub struct Caller {
    state: HandshakeState,
    purpose: Purpose,
    own: Introduction,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({:?})", self.purpose)
    }
}

/// A handshake that is done.
#[derive(Debug)]
pub struct Greeted {
    /// What the connection goes on with.
    pub session: Session,
    /// Who the other is; it has the key.
    pub peer: Introduction,
}

/// Starts a handshake: the caller and the first message.
///
/// # Errors
/// Only when the system has no random bytes.
pub fn call(purpose: Purpose, key: &Key, own: &Introduction) -> Result<(Caller, Vec<u8>), Broken> {
    let clear = purpose.clear(purpose.key_id(key));
    let started = (|| {
        let mut state = builder(&key.psk(), &clear)?.build_initiator()?;
        let mut hello = vec![0; purpose.hello_len()];
        hello[..CLEAR].copy_from_slice(&clear);
        state.write_message(&own.encode(purpose), &mut hello[CLEAR..])?;
        Ok::<_, snow::Error>((Caller { state, purpose, own: own.clone() }, hello))
    })();
    started.map_err(|_| Broken::Form)
}

impl Caller {
    /// Takes the second message.
    ///
    /// # Errors
    /// [`Broken`] when it doesn't come from somebody with the key, or from ourselves.
    pub fn finish(mut self, reply: &[u8]) -> Result<Greeted, Broken> {
        if reply.len() != self.purpose.reply_len() {
            return Err(Broken::Form);
        }
        let mut sealed = vec![0; self.purpose.introduction_len()];
        self.state.read_message(reply, &mut sealed).map_err(|_| Broken::Key)?;
        greeted(self.state, self.purpose, &sealed, &self.own)
    }
}

/// Answers a first message: the second one, and the session.
///
/// # Errors
/// [`Broken`] when it doesn't come from somebody with the key, or from ourselves. Nothing is to be
/// sent then.
pub fn answer(
    purpose: Purpose,
    key: &Key,
    own: &Introduction,
    hello: &[u8],
) -> Result<(Vec<u8>, Greeted), Broken> {
    if purpose.read_id(hello) != Some(purpose.key_id(key)) {
        return Err(Broken::Form);
    }
    let (clear, message) = hello.split_at(CLEAR);
    let psk = key.psk();
    let mut state = builder(&psk, clear)
        .and_then(|builder| builder.build_responder())
        .map_err(|_| Broken::Form)?;
    let mut sealed = vec![0; purpose.introduction_len()];
    state.read_message(message, &mut sealed).map_err(|_| Broken::Key)?;
    let mut reply = vec![0; purpose.reply_len()];
    state.write_message(&own.encode(purpose), &mut reply).map_err(|_| Broken::Form)?;
    Ok((reply, greeted(state, purpose, &sealed, own)?))
}

fn greeted(
    mut state: HandshakeState,
    purpose: Purpose,
    sealed: &[u8],
    own: &Introduction,
) -> Result<Greeted, Broken> {
    let peer = Introduction::decode(purpose, sealed).ok_or(Broken::Form)?;
    if peer.identity == own.identity {
        return Err(Broken::Mirror);
    }
    if !state.is_handshake_finished() {
        return Err(Broken::Key);
    }
    let (callers, answerers) = state.dangerously_get_raw_split();
    let secrets = if state.is_initiator() { (callers, answerers) } else { (answerers, callers) };
    let session = Session::new(secrets, own.has_aes && peer.has_aes)?;
    Ok(Greeted { session, peer })
}

#[cfg(test)]
mod tests;
