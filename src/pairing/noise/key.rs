//! The secret that two machines share, and the keys derived from it. The only importer of blake2.

use std::fmt;

use blake2::Blake2sMac;
use blake2::digest::consts::{U16, U32};
use blake2::digest::{FixedOutput, KeyInit, Mac, Update};

use crate::pairing::identity::KeyId;

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
    /// The bytes must be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        Key(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that a pairing code stands for while two machines pair.
    pub(crate) fn of_code(code: &str) -> Self {
        let mut key = derive(&[0; 32], b"ollana code", code.as_bytes());
        for _ in 0..STRETCH {
            key = derive(&key, b"ollana stretch", code.as_bytes());
        }
        Key(key)
    }

    /// The key of two halves, of which each machine made one.
    pub(crate) fn of_halves(first: &[u8; 32], second: &[u8; 32]) -> Self {
        Key(derive(first, b"ollana pair", second))
    }

    /// The key that a token stands for: random, so that it needs no stretching.
    pub(crate) fn of_token(token: &str) -> Self {
        Key(derive(&[0; 32], b"ollana token", token.as_bytes()))
    }

    /// Names the key without telling it.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&derive(&self.0, b"ollana key id", b"")[..8]);
        KeyId(id)
    }

    pub(super) fn handshake_key(&self) -> [u8; 32] {
        derive(&self.0, b"ollana hop", b"")
    }

    fn mac(&self, bytes: &[u8]) -> Option<Blake2sMac<U16>> {
        let key = derive(&self.0, b"ollana discovery", b"");
        Some(<Blake2sMac<U16> as KeyInit>::new_from_slice(&key).ok()?.chain(bytes))
    }

    /// The code that proves that a datagram comes from a machine with this key, or that a token was right.
    pub fn authenticate(&self, bytes: &[u8]) -> [u8; 16] {
        self.mac(bytes).map(|mac| mac.finalize_fixed().into()).unwrap_or_default()
    }

    /// Whether such a code is right; takes the same time for every wrong one.
    pub fn verifies(&self, bytes: &[u8], code: &[u8; 16]) -> bool {
        self.mac(bytes).is_some_and(|mac| mac.verify(code.into()).is_ok())
    }
}

/// A key for one use, derived from another key.
pub(super) fn derive(key: &[u8; 32], label: &[u8], data: &[u8]) -> [u8; 32] {
    // Keys of 32 bytes are always taken; so they are by `mac`.
    let Ok(mac) = <Blake2sMac<U32> as KeyInit>::new_from_slice(key) else { return [0; 32] };
    mac.chain([label.len() as u8]).chain(label).chain(data).finalize_fixed().into()
}
