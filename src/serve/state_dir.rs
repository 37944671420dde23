//! What a daemon keeps on disk, its identity, and what it finds on this machine.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::pairing::identity::{Identity, MAX_NAME};
use crate::system::{self, files, random};

/// The identity of the server on this port, made at its first start. Without a directory, or with
/// port 0, it lasts as long as the process. Fails when the system has no random source.
pub(crate) fn identity(dir: Option<&Path>, port: u16) -> io::Result<Identity> {
    let fresh = Identity(random()?);
    let (Some(dir), true) = (dir.map(Path::to_owned), port != 0) else { return Ok(fresh) };
    let kept = files::in_time(move || Ok(kept_identity(&dir, port, fresh)));
    Ok(kept.unwrap_or_else(|error| {
        log::warn!("identity not kept reason={error}");
        fresh
    }))
}

fn kept_identity(dir: &Path, port: u16, fresh: Identity) -> Identity {
    let path = dir.join(format!("identity-{port}"));
    let kept = files::read(dir, &path).and_then(|text| {
        Identity::parse(text.trim()).ok_or_else(|| io::Error::other("not 32 hexadecimal digits"))
    });
    match kept {
        Ok(identity) => return identity,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Err(error) = files::replace(dir, &path, &fresh.to_string()) {
                log::warn!("identity not kept, try --state-dir path={path:?} reason={error}");
            }
        }
        Err(error) => log::warn!("identity not kept, unreadable path={path:?} reason={error}"),
    }
    fresh
}

/// The host's name, as far as it can be printed.
pub(crate) fn host_name() -> String {
    system::host_name().chars().filter(char::is_ascii_graphic).take(MAX_NAME).collect()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Directories in which the private socket may be made, best first.
pub(super) fn private_places(state_dir: Option<&Path>) -> Vec<PathBuf> {
    let runtime = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(variable);
    let state_dir = state_dir.filter(|dir| files::make_private_dir(dir).is_ok());
    runtime.chain([std::env::temp_dir()]).chain(state_dir.map(Path::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_identity_is_kept_per_port() {
        let dir = std::env::temp_dir().join(format!("ollana-state-{:?}", random::<8>().unwrap()));
        let first = identity(Some(&dir), 11435).unwrap();
        assert_eq!(identity(Some(&dir), 11435).unwrap(), first);
        assert_ne!(identity(Some(&dir), 11436).unwrap(), first);
        assert_ne!(identity(Some(&dir), 0).unwrap(), identity(Some(&dir), 0).unwrap());
        fs::write(dir.join("identity-11435"), "broken").unwrap();
        assert_ne!(identity(Some(&dir), 11435).unwrap(), first);
        let kept = fs::read_to_string(dir.join("identity-11435")).unwrap();
        assert_eq!(kept, "broken", "never overwrites what it doesn't understand");
        fs::remove_dir_all(&dir).unwrap();
    }

    /// `sudo ollana pair` makes the identity of a daemon that is another user.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_root_writes_is_for_whom_the_folder_belongs_to() {
        use std::os::unix::fs::MetadataExt;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = std::env::temp_dir().join(format!("ollana-state-{:?}", random::<8>().unwrap()));
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(12345), Some(12346)).unwrap();
        identity(Some(&dir), 11435).unwrap();
        let about = fs::metadata(dir.join("identity-11435")).unwrap();
        assert_eq!((about.uid(), about.gid()), (12345, 12346));
        fs::remove_dir_all(&dir).unwrap();
    }
}
