//! What a server keeps across restarts: its identity. And where it may keep it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::Mac;
use crate::pool::Known;
use crate::wire::Identity;

/// Random bytes of the system.
///
/// # Errors
/// When the system has no random source.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// The identity of the server on this port, made at its first start.
///
/// It goes with the port, so that two servers on one machine are two. Without a place to keep
/// it, or with an ephemeral port, it lasts as long as the process.
///
/// # Errors
/// When the system has no random source.
pub fn identity(dir: Option<&Path>, port: u16) -> io::Result<Identity> {
    let fresh = Identity(random()?);
    let (Some(dir), true) = (dir, port != 0) else { return Ok(fresh) };
    let path = dir.join(format!("identity-{port}"));
    match load(&path) {
        Ok(Some(identity)) => return Ok(identity),
        Ok(None) => {}
        Err(error) => {
            log::warn!("identity not kept, unreadable path={path:?} reason={error}");
            return Ok(fresh);
        }
    }
    if let Err(error) = replace(dir, &path, &fresh.to_string()) {
        log::warn!("identity not kept, try --state-dir path={path:?} reason={error}");
    }
    Ok(fresh)
}

fn load(path: &Path) -> io::Result<Option<Identity>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let identity = Identity::parse(text.trim());
    identity.map(Some).ok_or_else(|| io::Error::other("not 32 hexadecimal digits"))
}

/// What root writes is for a daemon that may be another user, to whom its directory belongs.
///
/// # Errors
/// When it can't be given away.
pub fn give_to_owner_of(dir: &Path, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(dir)?;
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
}

/// Writes a new file and renames it, so that a power cut leaves the old one or the new one.
fn replace(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    give_to_owner_of(dir, &temporary)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Writes down which servers there are, for [`recall`]. Failing only costs the next start a moment.
pub fn remember(dir: &Path, servers: &[Known]) {
    let list: Vec<_> = servers
        .iter()
        .map(|Known { identity, name, address, is_present }| {
            let identity = identity.map(|identity| identity.to_string());
            serde_json::json!({
                "address": address, "name": name, "identity": identity, "present": is_present,
            })
        })
        .collect();
    let text = serde_json::Value::from(list).to_string();
    if let Err(error) = replace(dir, &dir.join("servers.json"), &text) {
        log::debug!("servers not remembered dir={dir:?} reason={error}");
    }
}

/// The servers of earlier runs, in the order in which they were met.
pub fn recall(dir: &Path) -> Vec<Known> {
    let text = fs::read_to_string(dir.join("servers.json")).unwrap_or_default();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let member =
        |entry: &serde_json::Value, name: &str| Some(entry.get(name)?.as_str()?.to_owned());
    let server = |entry: &serde_json::Value| {
        Some(Known {
            identity: member(entry, "identity").and_then(|text| Identity::parse(&text)),
            name: member(entry, "name")?,
            address: member(entry, "address")?.parse().ok()?,
            is_present: entry.get("present") != Some(&false.into()),
        })
    };
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(server).collect()
}

/// Writes down the hardware addresses of servers, for [`recall_macs`].
pub fn remember_macs(dir: &Path, macs: &[(String, Mac)]) {
    let text =
        serde_json::Value::from_iter(macs.iter().map(|(name, mac)| (&**name, mac.to_string())));
    if let Err(error) = replace(dir, &dir.join("wake.json"), &text.to_string()) {
        log::warn!("hardware addresses not kept, try --state-dir dir={dir:?} reason={error}");
    }
}

/// The hardware addresses that were kept, by server.
pub fn recall_macs(dir: &Path) -> Vec<(String, Mac)> {
    let text = fs::read_to_string(dir.join("wake.json")).unwrap_or_default();
    let map: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).unwrap_or_default();
    map.into_iter().filter_map(|(name, mac)| Some((name, mac.as_str()?.parse().ok()?))).collect()
}

/// Where the local Ollama keeps its models, if that can be told.
pub fn models_dir() -> Option<PathBuf> {
    let named = std::env::var_os("OLLAMA_MODELS").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ollama/models"));
    // The second is where Ollama's installer has its service keep them.
    let service = Path::new("/usr/share/ollama/.ollama/models").to_owned();
    [named, Some(service), home].into_iter().flatten().find(|dir| dir.is_dir())
}

/// Bytes free on the disk that holds a directory.
pub fn free_space(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

/// Directories in which the private socket may be made, best first.
pub fn private_places(state_dir: Option<&Path>) -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let mut places: Vec<PathBuf> =
        ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(variable).collect();
    places.push(std::env::temp_dir());
    if let Some(dir) = state_dir
        && fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).is_ok()
    {
        places.push(dir.to_owned());
    }
    places
}

#[cfg(test)]
mod tests {
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
    #[test]
    fn what_root_writes_is_for_whom_the_folder_belongs_to() {
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

    #[test]
    fn servers_are_recalled_and_junk_is_not() {
        let dir = std::env::temp_dir().join(format!("ollana-state-{:?}", random::<8>().unwrap()));
        assert_eq!(recall(&dir), []);
        let known = |identity, is_present| Known {
            identity,
            name: "d\"esk".to_owned(),
            address: "10.0.0.7:11435".parse().unwrap(),
            is_present,
        };
        let servers = [known(Some(Identity([0xA7; 16])), true), known(None, false)];
        remember(&dir, &servers);
        assert_eq!(recall(&dir), servers);
        for junk in ["", "{}", "[{\"address\":\"x\",\"name\":\"\"}]", "[1]"] {
            fs::write(dir.join("servers.json"), junk).unwrap();
            assert_eq!(recall(&dir), [], "{junk}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
