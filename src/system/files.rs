//! Files that are replaced as a whole, and the disk below them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Gid, OFlags, Uid};
use rustix::process::{getegid, geteuid, getgroups};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Hex, random};

/// Bytes of a file that are read; none of ours is longer.
const MAX_FILE: u64 = 4 << 20;

/// Makes a directory, and those above it, that only its owner may enter.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Does something below `dir`. Root does it as the owner of `dir`, who may be another user (the
/// service's, for `sudo ollana pair`): what is made there belongs to that user, and links that the
/// user has put there lead root to nothing that the user couldn't change anyway.
///
/// # Errors
/// Root may not act as somebody else, as in a container without that right.
pub(crate) fn as_owner_of<T>(dir: &Path, work: impl FnOnce() -> T) -> io::Result<T> {
    let _acting = Acting::as_owner_of(dir)?;
    Ok(work())
}

/// The thread acts as another user until this is dropped.
struct Acting {
    group: Gid,
    groups: Vec<Gid>,
}

impl Acting {
    /// `None` if there is nothing to change.
    fn as_owner_of(dir: &Path) -> io::Result<Option<Self>> {
        let Some(owner) = owner_of(dir).filter(|_| geteuid().is_root()) else { return Ok(None) };
        if owner.uid() == 0 {
            return Ok(None);
        }
        let acting = Acting { group: getegid(), groups: getgroups()? };
        set_thread_groups(&[])?;
        set_thread_res_gid(None, Gid::from_raw(owner.gid()), None)?;
        set_thread_res_uid(None, Uid::from_raw(owner.uid()), None)?;
        Ok(Some(acting))
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        // The saved user is root, so these can't fail; and if they did, less would be allowed.
        let _ = set_thread_res_uid(None, Uid::ROOT, None);
        let _ = set_thread_res_gid(None, self.group, None);
        let _ = set_thread_groups(&self.groups);
    }
}

/// Of the path, or of the nearest directory above it that exists. Of a link it is the link's owner,
/// unless that is root, who is trusted to link to the right place.
fn owner_of(path: &Path) -> Option<fs::Metadata> {
    let about = |path: &Path| match fs::symlink_metadata(path).ok()? {
        link if link.is_symlink() && link.uid() == 0 => fs::metadata(path).ok(),
        about => Some(about),
    };
    path.ancestors().find_map(about)
}

/// Opens a plain file. Anything else is an error: a FIFO would make its reader wait.
pub(crate) fn open_plain(options: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let file = options.custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a plain file")),
    }
}

/// The text of a plain file below `dir`.
pub(crate) fn read(dir: &Path, path: &Path) -> io::Result<String> {
    as_owner_of(dir, || {
        let mut text = String::new();
        open_plain(fs::File::options().read(true), path)?
            .take(MAX_FILE)
            .read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// Replaces a private file, mode 0600, that belongs to the owner of `dir`, which is made if need
/// be. Readers, and a power cut, find the old text or the new one.
pub(crate) fn replace(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    as_owner_of(dir, || {
        make_private_dir(dir)?;
        replace_with(path, text, 0o600)
    })?
}

/// The same for a file that everybody may read, as far as the umask allows.
pub(crate) fn replace_readable(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    as_owner_of(dir, || replace_with(path, text, 0o666))?
}

fn replace_with(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    // Each write has a new file of its own: two threads, or two processes, may write at once.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", Hex(&random::<8>()?)));
    let temporary = Path::new(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
    let written = writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(temporary);
        return written;
    }
    // Makes the new name last. Not every file system can do that for a directory; without it, a
    // power cut in the next seconds brings the old file back, whole.
    let _ = path.parent().map(|dir| fs::File::open(dir)?.sync_all());
    Ok(())
}

/// Bytes free on the disk that holds a directory.
pub(crate) fn free_space(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::thread;

    use super::*;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("ollana-files-{}", Hex(&random::<8>().unwrap())))
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn writers_at_once_never_leave_a_part_of_a_file() {
        let dir = folder();
        let path = dir.join("servers.json");
        let text = |n: usize| n.to_string().repeat(20_000);
        replace(&dir, &path, &text(0)).unwrap();
        thread::scope(|scope| {
            let (dir, path) = (&dir, &path);
            let writers: Vec<_> = (1..5)
                .map(|n| {
                    scope.spawn(move || (0..20).for_each(|_| replace(dir, path, &text(n)).unwrap()))
                })
                .collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                let found = fs::read_to_string(path).unwrap();
                assert!((0..5).any(|n| found.trim_end() == text(n)), "{} bytes", found.len());
            }
        });
        assert_eq!(names(&dir), ["servers.json"], "nothing else is left");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_was_loose_becomes_private_and_what_fails_leaves_nothing() {
        let dir = folder();
        let path = dir.join("peers");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        replace_readable(&std::env::temp_dir().join("nowhere/peers"), "").unwrap_err();
        make_private_dir(&dir).unwrap();
        replace_readable(&path, "1").unwrap();
        assert_ne!(mode(&path) & 0o400, 0);
        replace(&dir, &path, "2").unwrap();
        assert_eq!((mode(&path), mode(&dir)), (0o600, 0o700));
        assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");
        fs::create_dir(dir.join("folder")).unwrap();
        replace(&dir, &dir.join("folder"), "3").unwrap_err();
        let mut left = names(&dir);
        left.sort();
        assert_eq!(left, ["folder", "peers"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
