//! Which key each server has shown to have, and which streams depend on which key.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Weak};

use crate::pairing::identity::KeyId;
use crate::pairing::stream::Stream;

/// Servers whose key is remembered.
pub(super) const MAX_SERVERS: usize = 1024;

/// The key that a server has proved to have, by address; `None` if it knows no handshakes.
#[derive(Debug, Default)]
pub(super) struct ServerKeys(pub(super) HashMap<SocketAddr, Option<KeyId>>);

impl ServerKeys {
    pub(super) fn known(&self, address: SocketAddr) -> Option<Option<KeyId>> {
        self.0.get(&address).copied()
    }

    pub(super) fn has_key(&self, address: SocketAddr) -> bool {
        self.known(address).flatten().is_some()
    }

    /// A server that once had a key keeps it.
    pub(super) fn note(&mut self, address: SocketAddr, key: Option<KeyId>) {
        // What many machines announce can't fill our memory, nor make us forget who has a key.
        if self.0.len() >= MAX_SERVERS {
            self.0.retain(|_, key| key.is_some());
        }
        if self.0.len() >= MAX_SERVERS {
            return; // An address without an entry is asked for its key each time.
        }
        let known = self.0.entry(address).or_default();
        *known = key.or(*known);
    }

    /// Forgets servers whose key is gone, and servers without one: they may have one now.
    pub(super) fn forget(&mut self, is_valid: impl Fn(KeyId) -> bool) {
        self.0.retain(|_, key| key.is_some_and(&is_valid));
    }
}

/// The open streams that are encrypted, and the key of each.
#[derive(Debug, Default)]
pub(super) struct KeyedStreams(Vec<(KeyId, Weak<Stream>)>);

impl KeyedStreams {
    pub(super) fn add(&mut self, id: KeyId, stream: &Arc<Stream>) {
        if self.0.len() == self.0.capacity() {
            self.0.retain(|(_, stream)| stream.strong_count() > 0);
        }
        self.0.push((id, Arc::downgrade(stream)));
    }

    /// Ends the streams whose key is gone.
    pub(super) fn cut(&mut self, is_valid: impl Fn(KeyId) -> bool) {
        self.0.retain(|(id, stream)| match stream.upgrade() {
            Some(stream) if !is_valid(*id) => {
                let _ = stream.socket().shutdown(Shutdown::Both);
                false
            }
            stream => stream.is_some(),
        });
    }
}
