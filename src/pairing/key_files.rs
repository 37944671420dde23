//! The files that hold keys: `keys/peers` below the state directory, and that of `--key-file`.
//!
//! Another user who can read them can pass for any of the peers, so loose permissions are an
//! error. An error's text names the file and says what to do.

use std::fmt;
use std::fs::{self, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::pairing::identity::KeyId;
use crate::pairing::marks;
use crate::pairing::peers::{self, Peer, Unreadable};
use crate::system::failed;
use crate::system::files::{self, Stamp};

/// Bytes of a file of keys that are read; a longer one is damaged.
const MAX_FILE: u64 = 64 * 1024;
const LOCK: &str = "lock";
/// How long others may change the keys before us, and how often that is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(10);
const WITHOUT: &str = "or run 'ollana pair' again; to go on without: ollana unpair --all";

pub(super) fn unusable<E: fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    failed(format!("cannot use the keys in {}", path.display()))
}

/// Fails if other users can read `path` or what is in it.
fn check_private(path: &Path, about: &fs::Metadata, mode: u32) -> Result<(), String> {
    match files::is_open_to_others(about) {
        false => Ok(()),
        true => Err(format!("keys are open to others; fix it: chmod {mode:o} {}", path.display())),
    }
}

fn file_in(state_dir: &Path) -> PathBuf {
    state_dir.join("keys/peers")
}

/// Reads a file that no other user may read; `None` if it doesn't exist.
fn read_private(path: &Path) -> Result<Option<String>, String> {
    let file = match files::open_plain(fs::File::options().read(true), path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unusable(path))?,
    };
    check_private(path, &file.metadata().map_err(unusable(path))?, 0o600)?;
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(unusable(path))?;
    Ok(Some(text))
}

/// The machines that this one is paired with. Keys that were there and are gone are an error:
/// without them a daemon would talk in clear to the machines that it is paired with.
pub fn load(state_dir: &Path) -> Result<Vec<Peer>, String> {
    let path = file_in(state_dir);
    let load = || match load_from(&path)? {
        Some(peers) => Ok(peers),
        None => match marks::lost(state_dir) {
            Some(what) => Err(unusable(&path)(format!("{what}, {WITHOUT}"))),
            None => Ok(Vec::new()),
        },
    };
    files::as_owner_of(state_dir, load).map_err(unusable(&path))?
}

/// Fails if no keys could be kept here. Those that are gone still are after this.
pub(crate) fn prepare(state_dir: &Path) -> Result<(), String> {
    let path = file_in(state_dir);
    let is_lost =
        || Ok::<_, String>(load_from(&path)?.is_none() && marks::lost(state_dir).is_some());
    match files::as_owner_of(state_dir, is_lost).map_err(unusable(&path))?? {
        true => Ok(()),
        false => update(state_dir, |_| Ok(())),
    }
}

/// The machines that have the key in this file.
pub(crate) fn peer_of(key_file: &Path) -> Result<Peer, String> {
    let missing = || unusable(key_file)(io::Error::from(ErrorKind::NotFound));
    let text = read_private(key_file)?.ok_or_else(missing)?;
    peers::parse_secret(&text).map(Peer::of_key_file).map_err(unusable(key_file))
}

/// `None` if there is no file.
fn load_from(path: &Path) -> Result<Option<Vec<Peer>>, String> {
    let text = read_in_private(path)?;
    text.map(|text| peers::parse(&text).map_err(unusable(path))).transpose()
}

/// As [`read_private`], of a folder that is private too.
pub(super) fn read_in_private(path: &Path) -> Result<Option<String>, String> {
    if let Some(folder) = path.parent()
        && let Ok(about) = fs::metadata(files::way(folder))
    {
        check_private(folder, &about, 0o700)?;
    }
    read_private(path)
}

/// Changes the list of paired machines; changes at the same time wait for each other. A file that
/// can't be read is never overwritten.
pub fn update<T>(
    state_dir: &Path,
    change: impl FnOnce(&mut Vec<Peer>) -> Result<T, Unreadable>,
) -> Result<T, String> {
    let path = file_in(state_dir);
    let change = || {
        let _lock = lock(path.parent().unwrap_or(state_dir)).map_err(unusable(&path))?;
        let known = load_from(&path)?;
        if known.is_none() && marks::lost(state_dir).is_none() {
            // Else a mark whose keys could not be written would tell that keys are gone.
            files::replace(state_dir, &path, &peers::format(&[])).map_err(unusable(&path))?;
        }
        let mut peers = known.unwrap_or_default();
        let result = change(&mut peers).map_err(unusable(&path))?;
        // A mark without keys would be the lesser evil.
        if !peers.is_empty() {
            marks::set(state_dir, true).map_err(unusable(&path))?;
        }
        files::replace(state_dir, &path, &peers::format(&peers)).map_err(unusable(&path))?;
        if peers.is_empty() {
            marks::set(state_dir, false).map_err(unusable(&path))?;
        }
        Ok(result)
    };
    files::as_owner_of(state_dir, change).map_err(unusable(&path))?
}

/// The machines have proved to have these keys.
pub(crate) fn confirm(state_dir: &Path, ids: Vec<KeyId>) -> Result<(), String> {
    update(state_dir, |peers| {
        ids.into_iter().for_each(|id| peers::confirm(peers, id));
        Ok(())
    })
}

/// Makes the folder of keys if need be, and waits until nobody else changes them, but not for ever.
/// Closing the file ends the lock.
pub(super) fn lock(folder: &Path) -> io::Result<fs::File> {
    files::make_private_dir(folder)?;
    let mut options = fs::File::options();
    files::private(&mut options).write(true).create(true).truncate(false);
    let lock = files::open_plain(&mut options, &folder.join(LOCK))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = lock.try_lock() {
        match error {
            TryLockError::Error(error) if error.kind() != ErrorKind::Interrupted => {
                return Err(error);
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other("another program keeps them locked"));
        }
        thread::sleep(LOCK_LOOK);
    }
    Ok(lock)
}

/// Of both files.
pub(super) type Stamps = [Option<Stamp>; 2];

/// Where a daemon's keys come from.
#[derive(Debug, Default)]
pub(super) struct KeyFiles {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
}

impl KeyFiles {
    pub(super) fn read(&self) -> Result<Vec<Peer>, String> {
        let mut peers = self.state_dir.as_deref().map(load).transpose()?.unwrap_or_default();
        if let Some(dir) = self.state_dir.as_deref().filter(|_| !peers.is_empty()) {
            marks::renew(dir);
        }
        if let Some(path) = &self.key_file {
            peers.push(peer_of(path)?);
        }
        Ok(peers)
    }

    /// The keys and the files' stamps, for a start that must not wait for ever.
    pub(super) fn read_in_time(self) -> Result<(Self, Vec<Peer>, Stamps), String> {
        let place = self.state_dir.as_deref().map(file_in).or_else(|| self.key_file.clone());
        let read = move || {
            // Stamped before they are read: a change in between is read again.
            let stamps = self.stamps();
            Ok(self.read().map(|peers| (self, peers, stamps)))
        };
        files::in_time(read).map_err(unusable(&place.unwrap_or_default()))?
    }

    pub(super) fn stamps(&self) -> Stamps {
        [self.state_dir.as_deref().map(file_in), self.key_file.clone()]
            .map(|path| files::stamp(&path?))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::pairing::identity::Identity;
    use crate::pairing::noise::Key;
    use crate::system::random;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("ollana-keys-{:?}", random::<8>().unwrap()))
    }

    fn machine(n: u8) -> Peer {
        let identity = Some(Identity([n; 16]));
        Peer {
            name: format!("m{n}"),
            identity,
            key: Key::new([n; 32]),
            added: 0,
            is_confirmed: true,
        }
    }

    #[test]
    fn keys_are_kept_for_nobody_else() {
        let dir = folder();
        assert_eq!(load(&dir).unwrap(), []);
        update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
        assert_eq!(load(&dir).unwrap(), [machine(1)]);
        let file = file_in(&dir);
        #[cfg(unix)]
        keys_are_open_to_nobody_else(&dir);
        fs::write(&file, "{broken").unwrap();
        assert!(update(&dir, |_| Ok(())).unwrap_err().to_string().contains("not JSON"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "{broken", "never overwritten");
        fs::write(&file, "").unwrap();
        assert!(load(&dir).unwrap_err().contains("blank"), "as after a power cut");
        for gone in [&file, &dir.join("keys")] {
            let _ = fs::remove_file(gone).or_else(|_| fs::remove_dir_all(gone));
            assert!(load(&dir).unwrap_err().contains("are gone"), "and not talked without");
            prepare(&dir).unwrap();
            assert!(load(&dir).unwrap_err().contains("are gone"), "not by what may come");
        }
        update(&dir, |peers| peers::add(peers, machine(2))).unwrap();
        assert_eq!(load(&dir).unwrap(), [machine(2)]);
        let clear = |peers: &mut Vec<Peer>| {
            peers.clear();
            Ok(())
        };
        update(&dir, clear).unwrap();
        assert_eq!(load(&dir).unwrap(), []);
        fs::remove_dir_all(dir.join("keys")).unwrap();
        assert_eq!(load(&dir).unwrap(), [], "none were there");
        fs::remove_dir_all(&dir).unwrap();
    }

    /// By a full disk or a signal, wherever it is cut off.
    #[test]
    fn a_first_write_that_fails_makes_nobody_miss_keys() {
        let dir = folder();
        drop(lock(&dir.join("keys")).unwrap());
        assert_eq!(load(&dir).unwrap(), [], "cut off behind the lock");
        let cut_off = |is_marked: bool| {
            let change = |_: &mut Vec<Peer>| {
                if is_marked {
                    marks::set(&dir, true).unwrap();
                }
                Err::<(), _>(Unreadable::TooMany)
            };
            update(&dir, change).unwrap_err();
        };
        for is_marked in [false, true] {
            cut_off(is_marked);
            assert_eq!(load(&dir).unwrap(), [], "behind the mark: {is_marked}");
        }
        update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
        fs::remove_file(file_in(&dir)).unwrap();
        cut_off(true);
        assert!(load(&dir).unwrap_err().contains("are gone"), "those that were there");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[cfg(unix)]
    fn keys_are_open_to_nobody_else(dir: &Path) {
        let file = file_in(dir);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        for (path, loose, tight) in [(&file, 0o640, 0o600), (&dir.join("keys"), 0o750, 0o700)] {
            set_mode(path, loose);
            let error = load(dir).unwrap_err().to_string();
            assert!(error.ends_with(&format!("chmod {tight:o} {}", path.display())), "{error}");
            assert!(update(dir, |_| Ok(())).is_err());
            set_mode(path, tight);
        }
    }

    /// `sudo ollana pair` for a daemon that is another user.
    #[cfg(unix)]
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

    /// systemd keeps the states of services with users of their own in a folder that only root can pass,
    /// and links to them.
    #[cfg(unix)]
    #[test]
    fn root_gets_to_files_of_a_user_who_could_not() {
        use std::os::unix::fs::{chown, symlink};

        if !rustix::process::geteuid().is_root() {
            return;
        }
        let outside = folder();
        let (private, link) = (outside.join("private"), outside.join("link"));
        fs::create_dir_all(private.join("ollana/deeper")).unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        chown(private.join("ollana"), Some(12345), Some(12345)).unwrap();
        chown(private.join("ollana/deeper"), Some(12345), Some(12345)).unwrap();
        symlink("private/ollana", &link).unwrap();
        symlink("private/ollana/deeper", outside.join("deep")).unwrap();
        for dir in
            [link, private.join("ollana/below"), outside.join("deep"), outside.join("deep/on")]
        {
            fs::create_dir_all(&dir).unwrap();
            chown(&dir, Some(12345), Some(12345)).unwrap();
            prepare(&dir).unwrap();
            update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
            assert_eq!(load(&dir).unwrap(), [machine(1)], "{dir:?}");
            for name in ["keys", "keys/peers", "keys/lock", "paired"] {
                assert_eq!(fs::metadata(dir.join(name)).unwrap().uid(), 12345, "{dir:?} {name}");
            }
            update(&dir, |peers| {
                peers.clear();
                Ok(())
            })
            .unwrap();
            assert!(!dir.join("paired").exists(), "{dir:?}");
            // What goes wrong there is told of the file as it is called.
            fs::write(dir.join("keys/peers"), "{broken").unwrap();
            let error = load(&dir).unwrap_err();
            assert!(error.contains(&dir.join("keys/peers").display().to_string()), "{error}");
        }
        fs::remove_dir_all(&outside).unwrap();
    }

    /// The service's user puts something in the way of `sudo ollana pair`.
    #[cfg(unix)]
    #[test]
    fn planted_links_lead_root_nowhere() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (outside, dir) = (folder(), folder());
        fs::create_dir(&outside).unwrap();
        set_mode(&outside, 0o755);
        for planted in ["keys", "keys/lock", "keys/peers"] {
            let target = outside.join("secret");
            fs::write(&target, "root's").unwrap();
            set_mode(&target, 0o600);
            fs::create_dir(&dir).unwrap();
            let place = dir.join(planted);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            let target = if planted == "keys" { &outside } else { &target };
            std::os::unix::fs::symlink(target, &place).unwrap();
            for path in [&dir, &dir.join("keys")] {
                std::os::unix::fs::lchown(path, Some(12345), Some(12345)).unwrap();
                set_mode(path, 0o700);
            }
            let result = update(&dir, |peers| peers::add(peers, machine(1)));
            assert!(result.is_err(), "{planted}");
            let left: Vec<_> =
                fs::read_dir(&outside).unwrap().map(|it| it.unwrap().file_name()).collect();
            assert_eq!(left, ["secret"], "{planted}");
            let secret = outside.join("secret");
            assert_eq!(fs::read_to_string(&secret).unwrap(), "root's", "{planted}");
            assert_eq!(fs::metadata(&secret).unwrap().uid(), 0, "{planted}");
            fs::remove_dir_all(&dir).unwrap();
        }
        assert!(rustix::process::geteuid().is_root(), "root again");
        fs::remove_dir_all(&outside).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_an_error_and_no_wait() {
        let dir = folder();
        for fifo in ["keys/peers", "keys/lock"] {
            fs::create_dir_all(dir.join("keys")).unwrap();
            set_mode(&dir.join("keys"), 0o700);
            let path = dir.join(fifo);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                0,
            )
            .unwrap();
            let error = update(&dir, |peers| peers::add(peers, machine(1))).unwrap_err();
            assert!(error.contains(dir.to_str().unwrap()), "{error}");
            let error = peer_of(&path).map(drop).unwrap_err();
            assert!(error.contains(dir.to_str().unwrap()), "{error}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }

    #[cfg(unix)]
    fn set_mode(path: &Path, mode: u32) {
        if !path.is_symlink() {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}
