//! The keys of a running daemon: which there are, where they must be used, and which servers and
//! streams have which.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::pairing::identity::{Identity, KeyId};
use crate::pairing::key_files::{self, KeyFiles, Stamps};
use crate::pairing::{noise::Key, peers::Peer, stream::Stream, tokens::Tokens};
use crate::system::lock;

/// Keys tried against a server at once. If there are more, they take turns.
const MAX_TRIES: usize = 16;
/// Servers whose key is remembered.
const MAX_SERVERS: usize = 1024;
/// From one try of an unconfirmed key with a server to the next.
const TRY_AGAIN: Duration = Duration::from_secs(3);

/// What to try with a server, in this order.
#[derive(Debug)]
pub(crate) struct KeysToTry {
    pub(crate) keys: Vec<Key>,
    /// Whether it has proved to have one.
    pub(crate) has_key: bool,
    /// How many it has refused before these, and whether no others are left then.
    pub(crate) refused: usize,
    pub(crate) are_last: bool,
    /// Whether to talk to it in clear if it takes none of all keys.
    pub(crate) then_plain: bool,
}

/// The keys of a running daemon.
#[derive(Debug)]
pub struct Keyring {
    pub(super) own: Identity,
    files: KeyFiles,
    unpaired: Option<bool>,
    pub(crate) tokens: Tokens,
    state: Mutex<State>,
    /// How often the keys have changed.
    changes: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    peers: Vec<Peer>,
    stamps: Stamps,
    has_complained: bool,
    /// Keys that were confirmed by use, which isn't written down yet.
    confirmed: Vec<KeyId>,
    servers: HashMap<SocketAddr, Server>,
    /// How many keys servers have refused, where there are more than are tried at once.
    refused: HashMap<SocketAddr, usize>,
    /// The open streams that are encrypted, and the key of each.
    streams: Vec<(KeyId, Weak<Stream>)>,
}

#[derive(Debug, Default)]
struct Server {
    /// The key that it has proved to have; `None` if it knows no handshakes.
    key: Option<KeyId>,
    /// When it was last asked for an unconfirmed key.
    tried: Option<Instant>,
}

impl State {
    /// A machine has proved to have this key.
    fn confirm(&mut self, id: KeyId) {
        let open = self.peers.iter_mut().find(|peer| peer.id() == id && !peer.is_confirmed);
        if let Some(peer) = open {
            log::info!("key confirmed machine={:?} key={id}", peer.name);
            peer.is_confirmed = true;
            self.confirmed.push(id);
            // In another order from now on.
            self.refused.clear();
        }
    }

    fn peer(&self, id: KeyId) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.id() == id)
    }

    /// Whether the machine at this address may have taken up a new key by now.
    fn may_know_new(&self, address: SocketAddr) -> bool {
        let tried = self.servers.get(&address).and_then(|server| server.tried);
        self.peers.iter().any(|peer| !peer.is_confirmed)
            && tried.is_none_or(|at| at.elapsed() > TRY_AGAIN)
    }

    fn has_key(&self, address: SocketAddr) -> bool {
        self.servers.get(&address).is_some_and(|server| server.key.is_some())
    }
}

impl Keyring {
    /// Reads a daemon's keys. `unpaired` says whether machines without a key are talked to; by
    /// default they are while there are no keys, or none that another machine is known to have.
    pub(crate) fn open(
        own: Identity,
        state_dir: Option<&Path>,
        key_file: Option<&Path>,
        unpaired: Option<bool>,
    ) -> Result<Self, String> {
        let (state_dir, key_file) = (state_dir.map(Path::to_owned), key_file.map(Path::to_owned));
        let files = KeyFiles { state_dir, key_file };
        let (files, peers, stamps) = files.read_in_time()?;
        let tokens = Tokens::open(files.state_dir.clone());
        let state = State { peers, stamps, ..State::default() };
        let (state, changes) = (Mutex::new(state), AtomicUsize::new(0));
        Ok(Keyring { own, files, unpaired, tokens, state, changes })
    }

    /// No keys at all, for asking this machine's own Ollama.
    pub(crate) fn none() -> Self {
        let (files, tokens, state, changes) = Default::default();
        Keyring { own: Identity([0; 16]), files, unpaired: None, tokens, state, changes }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Writes down which keys were confirmed, and reads the files, that of the tokens too, again if
    /// they changed. Streams whose key is gone are cut.
    pub(crate) fn refresh(&self) {
        self.tokens.refresh();
        self.write_confirmed();
        let stamps = self.files.stamps();
        if self.state().stamps == stamps {
            return;
        }
        let read = self.files.read();
        let mut state = self.state();
        let State { peers, streams, servers, .. } = &mut *state;
        match read {
            Ok(mut new) => {
                for peer in &mut new {
                    peer.is_confirmed |=
                        peers.iter().any(|old| old.id() == peer.id() && old.is_confirmed);
                }
                let is_valid = |id: KeyId| new.iter().any(|peer| peer.id() == id);
                for peer in peers.iter().filter(|peer| !is_valid(peer.id())) {
                    log::info!("key gone machine={:?} key={}", peer.name, peer.id());
                }
                for peer in new.iter().filter(|new| peers.iter().all(|old| old.id() != new.id())) {
                    log::info!("key taken up machine={:?} key={}", peer.name, peer.id());
                }
                streams.retain(|(id, stream)| match stream.upgrade() {
                    Some(stream) if !is_valid(*id) => {
                        let _ = stream.socket().shutdown(Shutdown::Both);
                        false
                    }
                    stream => stream.is_some(),
                });
                // Those without a key may have one now. The newest of a machine's keys takes the
                // place of the older ones.
                let newest = |id: KeyId| {
                    let whose = peers.iter().find(|peer| peer.id() == id)?.identity?;
                    new.iter().rfind(|peer| peer.identity == Some(whose)).map(Peer::id)
                };
                servers.retain(|_, server| {
                    let replaced = server.key.filter(|id| !is_valid(*id)).and_then(newest);
                    (server.key, server.tried) = (replaced.or(server.key), None);
                    server.key.is_some_and(is_valid)
                });
                *peers = new;
                self.changes.fetch_add(1, Relaxed);
                state.refused.clear();
                state.stamps = stamps;
                state.has_complained = false;
            }
            // The present keys stay; the next call reads again.
            Err(error) => {
                if !std::mem::replace(&mut state.has_complained, true) {
                    log::error!("keys not taken up: {error}");
                }
            }
        }
    }

    fn write_confirmed(&self) {
        let ids = std::mem::take(&mut self.state().confirmed);
        let Some(dir) = self.files.state_dir.as_deref().filter(|_| !ids.is_empty()) else { return };
        if let Err(error) = key_files::confirm(dir, ids.clone()) {
            let mut state = self.state();
            if !std::mem::replace(&mut state.has_complained, true) {
                log::error!("not written down that a key was confirmed: {error}");
            }
            state.confirmed.extend(ids);
        }
    }

    pub(crate) fn has_keys(&self) -> bool {
        !self.state().peers.is_empty()
    }

    pub(crate) fn key(&self, id: KeyId) -> Option<Key> {
        self.state().peer(id).map(|peer| peer.key.clone())
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.state().peers.iter().map(|peer| peer.key.clone()).collect()
    }

    fn allows_unpaired(&self, state: &State) -> bool {
        self.unpaired.unwrap_or(!state.peers.iter().any(|peer| peer.is_confirmed))
    }

    /// Whether machines of the LAN without a key are talked to.
    pub(crate) fn takes_unpaired(&self) -> bool {
        self.allows_unpaired(&self.state())
    }

    /// Whether there is a confirmed key for this identity or address, so that a machine there that shows no
    /// key must not be talked to.
    pub(crate) fn is_paired(&self, identity: Identity, address: SocketAddr) -> bool {
        let state = self.state();
        let is_its = |peer: &Peer| peer.is_confirmed && peer.identity == Some(identity);
        state.has_key(address) || state.peers.iter().any(is_its)
    }

    /// The server at this address has proved to have this key or, with `None`, knows no handshakes.
    /// One that once had a key keeps it.
    pub(crate) fn note(&self, address: SocketAddr, key: Option<KeyId>) {
        let mut state = self.state();
        key.into_iter().for_each(|id| state.confirm(id));
        state.refused.remove(&address);
        let servers = &mut state.servers;
        // What many machines announce can't fill our memory, nor make us forget who has a key.
        if servers.len() >= MAX_SERVERS {
            servers.retain(|_, server| server.key.is_some());
        }
        // An address without an entry is asked for its key each time.
        if servers.len() < MAX_SERVERS {
            let known = servers.entry(address).or_default();
            known.key = key.or(known.key);
        }
    }

    /// The server at this address has refused so many keys, one after the other.
    pub(crate) fn note_refused(&self, address: SocketAddr, count: usize) {
        let mut state = self.state();
        let are_many = state.peers.len() > MAX_TRIES;
        let refused = &mut state.refused;
        if are_many && (refused.len() < MAX_SERVERS || refused.contains_key(&address)) {
            let known = refused.entry(address).or_default();
            *known = count.max(*known);
        }
    }

    /// What to try with the server at this address. A server that is known to have a key is never
    /// talked to in clear.
    pub(crate) fn keys_to_try(&self, address: SocketAddr) -> KeysToTry {
        let mut state = self.state();
        let takes_unpaired = self.allows_unpaired(&state);
        let is_open = state.may_know_new(address);
        let State { peers, servers, refused, .. } = &mut *state;
        let mut server = servers.get_mut(&address);
        let known = server.as_ref().map(|server| server.key);
        if known == Some(None) && takes_unpaired && !is_open {
            let (has_key, refused, are_last) = (false, 0, true);
            return KeysToTry { keys: Vec::new(), has_key, refused, are_last, then_plain: true };
        }
        if let Some(server) = server.as_mut().filter(|_| is_open) {
            server.tried = Some(Instant::now());
        }
        let known = known.flatten();
        let whose = peers.iter().find(|peer| Some(peer.id()) == known).and_then(|it| it.identity);
        let rank = |peer: &&Peer| {
            let may_be_its = known.is_none() || peer.identity == whose;
            let is_new = is_open && !peer.is_confirmed && may_be_its;
            (!is_new, Some(peer.id()) != known)
        };
        // Of several new ones, the last is the likeliest.
        let mut likely: Vec<&Peer> = peers.iter().rev().collect();
        likely.sort_by_cached_key(rank);
        let refused = refused.get(&address).copied().unwrap_or(0);
        let count = likely.len();
        likely.rotate_left(refused % count.max(1));
        let are_last = refused + MAX_TRIES >= count;
        let keys = likely.into_iter().take(MAX_TRIES).map(|peer| peer.key.clone()).collect();
        let has_key = state.has_key(address);
        let then_plain = takes_unpaired && !has_key;
        KeysToTry { keys, has_key, refused, are_last, then_plain }
    }

    /// Whether what goes to this server is encrypted; `None` for a server that has shown no key
    /// yet and may not be talked to in clear.
    pub(crate) fn encrypts(&self, address: SocketAddr) -> Option<bool> {
        let state = self.state();
        let has_key = state.has_key(address);
        (has_key || self.allows_unpaired(&state)).then_some(has_key)
    }

    /// Differs once the keys have changed.
    pub(crate) fn changes(&self) -> usize {
        self.changes.load(Relaxed)
    }

    /// Whether a connection in clear, made after so many changes, is used again. A new one may find out that
    /// the machine has a new key.
    pub(crate) fn keeps_plain(&self, address: SocketAddr, changes: usize) -> bool {
        let state = self.state();
        let asks = state.servers.contains_key(&address) && state.may_know_new(address);
        !asks
            && changes == self.changes()
            && !state.has_key(address)
            && self.allows_unpaired(&state)
    }

    /// From now on, the stream is cut when its key goes. False if the key is gone already.
    pub(crate) fn watch(&self, stream: &Arc<Stream>) -> bool {
        let Some(id) = stream.key() else { return true };
        let mut state = self.state();
        state.confirm(id);
        if state.streams.len() == state.streams.capacity() {
            state.streams.retain(|(_, stream)| stream.strong_count() > 0);
        }
        state.streams.push((id, Arc::downgrade(stream)));
        state.peer(id).is_some()
    }
}

#[cfg(test)]
mod tests;
