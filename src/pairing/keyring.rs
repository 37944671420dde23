//! The keys of this machine: where they are kept, who may have which connection, and what becomes
//! of connections whose key is taken away.
//!
//! Keys are kept in `keys/peers` below the state directory, and in the file of `--key-file`.
//! Whoever else can read them could be any of the peers, so loose permissions are an error.

use crate::system;
use crate::system::lock;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::pairing::identity::{Identity, KeyId};
use crate::pairing::noise::{Introduction, Key};
use crate::pairing::peers::{self, Peer, Unreadable};
use crate::pairing::stream::Stream;

/// Keys that are tried on a server of which it isn't known which one it has.
const MAX_TRIES: usize = 16;
/// Addresses of which it is remembered how they are reached.
const MAX_WAYS: usize = 1024;
/// Longest file of keys that is read.
const MAX_FILE: u64 = 64 * 1024;

/// Why the keys can't be had.
#[derive(Debug)]
pub enum KeysError {
    /// Others may read or change them.
    Loose {
        /// The file or folder.
        path: PathBuf,
        /// What it should be.
        mode: u32,
    },
    /// The file can't be used.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: Unreadable,
    },
    /// Something of the system.
    System {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeysError::Loose { path, mode } => {
                let path = path.display();
                write!(f, "keys are open to others; fix it: chmod {mode:o} {path}")
            }
            KeysError::Unreadable { path, why } => {
                write!(f, "cannot use the keys in {}: {why}", path.display())
            }
            KeysError::System { path, error } => {
                write!(f, "cannot use the keys in {}: {error}", path.display())
            }
        }
    }
}

fn system(path: &Path) -> impl Fn(io::Error) -> KeysError {
    move |error| KeysError::System { path: path.to_owned(), error }
}

/// Where the keys of a state directory are.
pub fn file_in(state_dir: &Path) -> PathBuf {
    state_dir.join("keys/peers")
}

/// Reads a file that nobody else may read; nothing if there is none.
fn read_private(path: &Path) -> Result<Option<String>, KeysError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(system(path)(error)),
    };
    let about = file.metadata().map_err(system(path))?;
    if about.mode() & 0o077 != 0 {
        return Err(KeysError::Loose { path: path.to_owned(), mode: 0o600 });
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text)
        .map_err(system(path))?;
    Ok(Some(text))
}

/// The machines that this one is paired with.
///
/// # Errors
/// [`KeysError`] says what to do.
pub fn load(state_dir: &Path) -> Result<Vec<Peer>, KeysError> {
    let path = file_in(state_dir);
    if let Some(folder) = path.parent()
        && let Ok(about) = fs::metadata(folder)
        && about.mode() & 0o077 != 0
    {
        return Err(KeysError::Loose { path: folder.to_owned(), mode: 0o700 });
    }
    let text = read_private(&path)?.unwrap_or_default();
    peers::parse(&text).map_err(|why| KeysError::Unreadable { path, why })
}

/// Changes the list of paired machines; what `change` returns. Whoever changes it at the same
/// time waits.
///
/// # Errors
/// [`KeysError`]; a file that isn't understood is never overwritten.
pub fn update<T>(
    state_dir: &Path,
    change: impl FnOnce(&mut Vec<Peer>) -> Result<T, Unreadable>,
) -> Result<T, KeysError> {
    let path = file_in(state_dir);
    let folder = path.parent().unwrap_or(state_dir);
    let fail = system(&path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(&fail)?;
    let own = |path: &Path| system::files::give_to_owner_of(state_dir, path);
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => own(folder).map_err(&fail)?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(fail(error)),
    }
    let open = |path: &Path| {
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    };
    let lock_path = folder.join("lock");
    let lock = open(&lock_path).map_err(&fail)?;
    own(&lock_path).map_err(&fail)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| fail(errno.into()))?;
    let mut peers = load(state_dir)?;
    let result = change(&mut peers);
    let result = result.map_err(|why| KeysError::Unreadable { path: path.clone(), why })?;
    // A new file in the old one's place: a power cut leaves the one or the other.
    let temporary = folder.join("peers.new");
    let write = || {
        let mut file = open(&temporary)?;
        own(&temporary)?;
        writeln!(file, "{}", peers::format(&peers))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(&fail)?;
    Ok(result)
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Encrypted, with this key.
    Key(KeyId),
    /// In clear: it has no key.
    Plain,
}

/// What to try on a server, in this order.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// Keys that it may have.
    pub keys: Vec<Key>,
    /// Whether to talk to it in clear when it knows none of them.
    pub plain: bool,
}

/// The keys of a running daemon.
#[derive(Debug)]
pub struct Keyring {
    own: Identity,
    state_dir: Option<PathBuf>,
    key_file: Option<PathBuf>,
    unpaired: Option<bool>,
    state: Mutex<State>,
}

/// Tells whether a file is still the one that was read.
type Stamp = Option<(u64, i64, i64, u64)>;

#[derive(Debug, Default)]
struct State {
    peers: Vec<Peer>,
    stamps: [Stamp; 2],
    has_complained: bool,
    ways: HashMap<SocketAddr, Way>,
    streams: Vec<(KeyId, Weak<Stream>)>,
}

impl Keyring {
    /// A daemon's keys. `unpaired` says whether machines without a key are talked to; without a
    /// word, they are as long as there are no keys.
    ///
    /// # Errors
    /// [`KeysError`] says what to do.
    pub fn open(
        own: Identity,
        state_dir: Option<&Path>,
        key_file: Option<&Path>,
        unpaired: Option<bool>,
    ) -> Result<Self, KeysError> {
        let keyring = Keyring {
            own,
            state_dir: state_dir.map(Path::to_owned),
            key_file: key_file.map(Path::to_owned),
            unpaired,
            state: Mutex::default(),
        };
        let stamps = keyring.stamps();
        let peers = keyring.read()?;
        *keyring.state() = State { peers, stamps, ..State::default() };
        Ok(keyring)
    }

    /// No keys at all, for asking this machine's own Ollama.
    pub fn none() -> Self {
        Keyring {
            own: Identity([0; 16]),
            state_dir: None,
            key_file: None,
            unpaired: None,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn read(&self) -> Result<Vec<Peer>, KeysError> {
        let mut peers = match &self.state_dir {
            Some(dir) => load(dir)?,
            None => Vec::new(),
        };
        if let Some(path) = &self.key_file {
            let missing = || system(path)(ErrorKind::NotFound.into());
            let text = read_private(path)?.ok_or_else(missing)?;
            let unreadable = |why| KeysError::Unreadable { path: path.clone(), why };
            peers.push(Peer::of_key_file(peers::parse_secret(&text).map_err(unreadable)?));
        }
        Ok(peers)
    }

    fn stamps(&self) -> [Stamp; 2] {
        let stamp = |path: Option<PathBuf>| {
            let about = fs::metadata(path?).ok()?;
            Some((about.ino(), about.mtime(), about.mtime_nsec(), about.len()))
        };
        [stamp(self.state_dir.as_deref().map(file_in)), stamp(self.key_file.clone())]
    }

    /// Looks whether the files changed. Connections whose key is gone are cut.
    pub fn refresh(&self) {
        let stamps = self.stamps();
        if self.state().stamps == stamps {
            return;
        }
        let read = self.read();
        let mut state = self.state();
        let State { peers, streams, ways, .. } = &mut *state;
        match read {
            Ok(new) => {
                let is_known = |id: KeyId| new.iter().any(|peer| peer.id() == id);
                for peer in peers.iter().filter(|peer| !is_known(peer.id())) {
                    log::info!("key gone peer={:?} key={}", peer.name, peer.id());
                }
                for peer in new.iter().filter(|new| peers.iter().all(|old| old.id() != new.id())) {
                    log::info!("key taken up peer={:?} key={}", peer.name, peer.id());
                }
                streams.retain(|(id, stream)| {
                    let stream = stream.upgrade();
                    if let Some(stream) = stream.as_ref().filter(|_| !is_known(*id)) {
                        let _ = stream.socket().shutdown(Shutdown::Both);
                    }
                    stream.is_some() && is_known(*id)
                });
                ways.retain(|_, way| matches!(way, Way::Key(id) if is_known(*id)));
                *peers = new;
                state.stamps = stamps;
                state.has_complained = false;
            }
            // Read again at the next look; the keys at hand stay until then.
            Err(error) => {
                if !std::mem::replace(&mut state.has_complained, true) {
                    log::error!("keys not taken up: {error}");
                }
            }
        }
    }

    /// Who we are in handshakes.
    pub fn introduction(&self) -> Introduction {
        Introduction::of(self.own)
    }

    /// Whether there are any keys.
    pub fn has_keys(&self) -> bool {
        !self.state().peers.is_empty()
    }

    /// Whether machines of the LAN without a key are talked to.
    pub fn takes_unpaired(&self) -> bool {
        self.unpaired.unwrap_or_else(|| !self.has_keys())
    }

    /// The key of this name.
    pub fn key(&self, id: KeyId) -> Option<Key> {
        self.state().peers.iter().find(|peer| peer.id() == id).map(|peer| peer.key.clone())
    }

    /// What the machine with this key is called.
    pub fn name(&self, id: KeyId) -> Option<String> {
        self.state().peers.iter().find(|peer| peer.id() == id).map(|peer| peer.name.clone())
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        self.state().peers.iter().map(|peer| peer.key.clone()).collect()
    }

    /// Whether a machine that shows no key is one that we have a key of, or sits at such a one's
    /// address: it must not be talked to in clear.
    pub fn is_paired(&self, identity: Identity, address: SocketAddr) -> bool {
        let state = self.state();
        let has_key = |way| matches!(way, Some(Way::Key(_)));
        state.peers.iter().any(|peer| peer.identity == Some(identity))
            || has_key(state.ways.get(&address).copied())
    }

    /// The server at this address has shown how it is reached. Who once had a key stays with it.
    pub fn note(&self, address: SocketAddr, way: Way) {
        let mut state = self.state();
        // What many machines announce can't fill our memory, nor make us forget who has a key.
        if state.ways.len() >= MAX_WAYS {
            state.ways.retain(|_, way| *way != Way::Plain);
        }
        if state.ways.len() >= MAX_WAYS {
            return; // An address without an entry is asked for its key each time.
        }
        let known = state.ways.entry(address).or_insert(way);
        if way != Way::Plain {
            *known = way;
        }
    }

    /// How to reach the server at this address. One that is known to have a key is never talked
    /// to in clear.
    pub fn ways(&self, address: SocketAddr) -> Ways {
        let takes_unpaired = self.takes_unpaired();
        let state = self.state();
        let known = state.ways.get(&address).copied();
        if known == Some(Way::Plain) && takes_unpaired {
            return Ways { keys: Vec::new(), plain: true };
        }
        let is_first = |peer: &&Peer| known == Some(Way::Key(peer.id()));
        let first = state.peers.iter().filter(is_first);
        let others = state.peers.iter().filter(|peer| !is_first(peer));
        let keys = first.chain(others).take(MAX_TRIES).map(|peer| peer.key.clone()).collect();
        Ways { keys, plain: takes_unpaired && !matches!(known, Some(Way::Key(_))) }
    }

    /// Whether what goes to this server is encrypted; `None` while that isn't known, and where it
    /// may not go in clear and has not shown a key yet.
    pub fn encrypts(&self, address: SocketAddr) -> Option<bool> {
        let has_key = matches!(self.state().ways.get(&address), Some(Way::Key(_)));
        if has_key {
            return Some(true);
        }
        self.allows_plain(address).then_some(false)
    }

    /// Whether requests may go to this server in clear.
    pub fn allows_plain(&self, address: SocketAddr) -> bool {
        let state = self.state();
        let is_open = self.unpaired.unwrap_or(state.peers.is_empty());
        is_open && !matches!(state.ways.get(&address), Some(Way::Key(_)))
    }

    /// A connection depends on its key from now on. False when that is gone already.
    pub fn watch(&self, stream: &Arc<Stream>) -> bool {
        let Some(id) = stream.key() else { return true };
        let mut state = self.state();
        if state.streams.len() == state.streams.capacity() {
            state.streams.retain(|(_, stream)| stream.strong_count() > 0);
        }
        state.streams.push((id, Arc::downgrade(stream)));
        state.peers.iter().any(|peer| peer.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pairing::noise::{self, Purpose};
    use crate::system::random;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("ollana-keys-{:?}", random::<8>().unwrap()))
    }

    fn machine(n: u8) -> Peer {
        let identity = Some(Identity([n; 16]));
        Peer { name: format!("m{n}"), identity, key: Key::new([n; 32]), added: 0 }
    }

    fn open(dir: &Path, unpaired: Option<bool>) -> Keyring {
        Keyring::open(Identity([0; 16]), Some(dir), None, unpaired).unwrap()
    }

    #[test]
    fn keys_are_kept_for_nobody_else() {
        let dir = folder();
        assert_eq!(load(&dir).unwrap(), []);
        update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
        assert_eq!(load(&dir).unwrap(), [machine(1)]);
        let file = file_in(&dir);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for (path, loose, tight) in [(&file, 0o640, 0o600), (&dir.join("keys"), 0o750, 0o700)] {
            set(path, loose);
            let error = load(&dir).unwrap_err().to_string();
            assert!(error.ends_with(&format!("chmod {tight:o} {}", path.display())), "{error}");
            assert!(update(&dir, |_| Ok(())).is_err());
            set(path, tight);
        }
        fs::write(&file, "{broken").unwrap();
        assert!(update(&dir, |_| Ok(())).unwrap_err().to_string().contains("not JSON"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "{broken", "never overwritten");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_key_file_is_a_peer() {
        let dir = folder();
        fs::create_dir(&dir).unwrap();
        let path = dir.join("secret");
        let open = || Keyring::open(Identity([0; 16]), None, Some(&path), None);
        assert!(open().is_err(), "a file that isn't there");
        fs::write(&path, "00".repeat(32)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(open().unwrap().keys(), [Key::new([0; 32])]);
        fs::write(&path, "hunter2").unwrap();
        assert!(open().unwrap_err().to_string().contains("32 bytes"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn keys_come_and_go_without_a_restart() {
        let dir = folder();
        let keyring = open(&dir, None);
        assert!(keyring.takes_unpaired());
        for n in [1, 2] {
            update(&dir, |peers| peers::add(peers, machine(n))).unwrap();
        }
        keyring.refresh();
        assert!(keyring.keys().len() == 2 && !keyring.takes_unpaired());
        let file = file_in(&dir);
        fs::write(&file, "damaged").unwrap();
        keyring.refresh();
        assert_eq!(keyring.keys().len(), 2, "a damaged file opens no door");
        fs::remove_file(&file).unwrap();
        update(&dir, |peers| peers::add(peers, machine(2))).unwrap();
        keyring.refresh();
        assert_eq!(keyring.keys(), [machine(2).key]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn who_has_a_key_is_never_talked_to_in_clear() {
        let dir = folder();
        for n in [1, 2] {
            update(&dir, |peers| peers::add(peers, machine(n))).unwrap();
        }
        let address = "10.0.0.7:11435".parse().unwrap();
        for unpaired in [None, Some(false), Some(true)] {
            let keyring = open(&dir, unpaired);
            let ways = keyring.ways(address);
            assert_eq!((ways.keys.len(), ways.plain), (2, unpaired == Some(true)));
            assert_eq!(keyring.allows_plain(address), unpaired == Some(true));
            assert_eq!(keyring.encrypts(address), (unpaired == Some(true)).then_some(false));
            keyring.note(address, Way::Key(machine(2).id()));
            let ways = keyring.ways(address);
            assert_eq!(ways.keys, [machine(2).key, machine(1).key], "the likely one first");
            assert!(!ways.plain);
            assert!(keyring.is_paired(Identity([9; 16]), address));
            assert!(keyring.is_paired(Identity([1; 16]), "10.0.0.8:1".parse().unwrap()));
            assert!(!keyring.is_paired(Identity([9; 16]), "10.0.0.8:1".parse().unwrap()));
            keyring.note(address, Way::Plain);
            let ways = keyring.ways(address);
            assert_eq!((ways.keys.len(), ways.plain), (2, false), "there is no way back");
            assert!(!keyring.allows_plain(address));
            let other = "10.0.0.9:11435".parse().unwrap();
            keyring.note(other, Way::Plain);
            let ways = keyring.ways(other);
            assert_eq!(ways.plain, unpaired == Some(true));
            assert_eq!(ways.keys.len(), if ways.plain { 0 } else { 2 });
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn no_flood_makes_us_forget_who_has_a_key() {
        let dir = folder();
        update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
        let keyring = open(&dir, Some(true));
        let address = |n: usize| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 11435));
        keyring.note(address(0), Way::Key(machine(1).id()));
        for n in 1..3 * MAX_WAYS {
            keyring.note(address(n), Way::Plain);
        }
        assert!(!keyring.ways(address(0)).plain && !keyring.allows_plain(address(0)));
        assert!(keyring.state().ways.len() <= MAX_WAYS);
        for n in 0..MAX_WAYS {
            keyring.note(address(n), Way::Key(machine(1).id()));
        }
        keyring.note(address(MAX_WAYS), Way::Key(machine(1).id()));
        assert_eq!(keyring.state().ways.len(), MAX_WAYS);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_key_that_goes_during_a_handshake_is_missed() {
        let dir = folder();
        update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
        let keyring = open(&dir, None);
        let stream = |key: Key| {
            let who = |n| Introduction::of(Identity([n; 16]));
            let (_, hello) = noise::call(Purpose::Hop, &key, &who(1)).unwrap();
            let (_, greeted) = noise::answer(Purpose::Hop, &key, &who(2), &hello).unwrap();
            let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
            let stream = Stream::new(std::os::fd::OwnedFd::from(socket).into());
            stream.encrypt(greeted.session, key.id());
            Arc::new(stream)
        };
        assert!(keyring.watch(&stream(machine(1).key)));
        assert!(!keyring.watch(&stream(machine(2).key)), "nobody would cut it");
        fs::remove_dir_all(&dir).unwrap();
    }

    /// `sudo ollana pair` for a daemon that is another user.
    #[test]
    fn all_files_belong_to_whom_the_folder_belongs_to() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = folder();
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(12345), Some(12345)).unwrap();
        update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
        for name in ["keys", "keys/peers", "keys/lock"] {
            assert_eq!(fs::metadata(dir.join(name)).unwrap().uid(), 12345, "{name}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
