//! That this machine had keys, kept outside their folder. Without its keys, a paired machine would
//! talk in clear to those that it is paired with.
//!
//! | mark | tells that the keys are gone when |
//! |---|---|
//! | `paired` in the state directory | their folder was removed, or not restored |
//! | `paired` in the configuration | the state directory was, or it is another since an update |
//!
//! The second lists state directories, one a line, and goes with the last of them. For a service,
//! only root can write it: with `sudo ollana pair`. Where both are gone, nothing here knows, but
//! paired machines still refuse what comes in clear.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::cli::default_state_dir;
use crate::system::{SERVICE_DIR, files};

const MARK: &str = "paired";
const TEXT: &str = "This machine has keys, in keys/peers.";

fn env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn is_service(state_dir: &Path) -> bool {
    let is_its_own = |dir| env("STATE_DIRECTORY").is_some() || state_dir == Path::new(dir);
    SERVICE_DIR.is_some_and(is_its_own)
}

/// The mark in the configuration.
fn elsewhere(state_dir: &Path) -> Option<PathBuf> {
    if is_service(state_dir) {
        return Some("/etc/ollana/paired".into());
    }
    let dir = |name| env(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let config = match cfg!(windows) {
        true => dir("APPDATA"),
        false => dir("XDG_CONFIG_HOME").or_else(|| Some(dir("HOME")?.join(".config"))),
    };
    config.map(|config| config.join("ollana").join(MARK))
}

fn folder(mark: &Path) -> &Path {
    mark.parent().unwrap_or(mark)
}

fn listed(mark: &Path) -> io::Result<Vec<String>> {
    let is_none =
        |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    match files::read(folder(mark), mark) {
        Err(error) if is_none(&error) => Ok(Vec::new()),
        text => {
            let text = text?;
            // Older versions left an empty line when the last directory went.
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            Ok(lines.map(str::to_owned).collect())
        }
    }
}

const GONE: &str = "they were there and are gone; put them back";

/// What is known of keys that aren't in this directory.
pub(super) fn lost(state_dir: &Path) -> Option<String> {
    if files::way(&state_dir.join(MARK)).symlink_metadata().is_ok() {
        return Some(GONE.to_owned());
    }
    let elsewhere = elsewhere(state_dir)?;
    let listed = match listed(&elsewhere) {
        Ok(listed) => listed,
        Err(error) => {
            return Some(format!(
                "whether there were any is written in {}, which ollana cannot read: {error}; \
                 make it readable",
                elsewhere.display()
            ));
        }
    };
    if listed.iter().any(|dir| Path::new(dir) == state_dir) {
        return Some(GONE.to_owned());
    }
    // Another directory that somebody named has keys of its own, or none.
    let is_default = default_state_dir(&env).as_deref() == Some(state_dir);
    let other = listed.first().filter(|_| is_default)?;
    Some(format!("this machine is paired, and its keys are in {other}; name it with --state-dir"))
}

/// Whether the configuration tells of keys. Everybody may read that, and the keys only their owner.
pub(crate) fn is_marked(state_dir: &Path) -> bool {
    elsewhere(state_dir).is_some_and(|mark| listed(&mark).is_ok_and(|dirs| !dirs.is_empty()))
}

/// Marks or unmarks the state directory, as there are keys in it or none.
pub(super) fn set(state_dir: &Path, has_keys: bool) -> io::Result<()> {
    let mark = state_dir.join(MARK);
    match (has_keys, files::way(&mark).symlink_metadata().is_ok()) {
        (true, false) => files::replace(state_dir, &mark, TEXT),
        (false, true) => files::remove(state_dir, &mark),
        _ => Ok(()),
    }
}

/// The same in the configuration, where everybody may read it: it has only paths, and a service is
/// another user than who pairs.
pub(crate) fn set_elsewhere(state_dir: &Path, has_keys: bool) -> io::Result<()> {
    let (Some(mark), Some(own)) = (elsewhere(state_dir), state_dir.to_str()) else { return Ok(()) };
    let mut listed = listed(&mark)?;
    let is_listed = listed.iter().any(|dir| dir == own);
    match has_keys {
        true if is_listed => return Ok(()),
        true => listed.push(own.to_owned()),
        false if listed.is_empty() => return Ok(()),
        false => listed.retain(|dir| dir != own),
    }
    let folder = folder(&mark);
    if listed.is_empty() {
        return files::remove(folder, &mark);
    }
    files::as_owner_of(folder, || files::make_open_dir(folder))??;
    files::replace_readable(&mark, &listed.join("\n"))
}

/// At a daemon's start: keys of an older version aren't marked yet. Failing costs little.
pub(super) fn renew(state_dir: &Path) {
    let is_default = default_state_dir(&env).as_deref() == Some(state_dir);
    let marked = set(state_dir, true);
    let elsewhere = match is_default && !is_service(state_dir) {
        true => set_elsewhere(state_dir, true),
        false => Ok(()),
    };
    if let Err(error) = marked.and(elsewhere) {
        log::debug!("not marked that there are keys reason={error}");
    }
}
