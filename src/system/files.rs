//! Files that are replaced as a whole, and the disk below them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{Hex, random};

/// Makes a directory, and those above it, that only its owner may enter.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Gives a file that root wrote to the owner of `dir`: the daemon may be another user.
pub(crate) fn give_to_owner_of(dir: &Path, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(dir)?;
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
}

/// Replaces a private file, mode 0600, that belongs to the owner of `dir`, which is made if need
/// be. Readers, and a power cut, find the old text or the new one.
pub(crate) fn replace(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    make_private_dir(dir)?;
    replace_with(path, text, 0o600, Some(dir))
}

/// The same for a file that everybody may read, as far as the umask allows.
pub(crate) fn replace_readable(path: &Path, text: &str) -> io::Result<()> {
    replace_with(path, text, 0o666, None)
}

fn replace_with(path: &Path, text: &str, mode: u32, owner_of: Option<&Path>) -> io::Result<()> {
    // Each write has a new file of its own: two threads, or two processes, may write at once.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", Hex(&random::<8>()?)));
    let temporary = Path::new(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
    let written = owner_of
        .map_or(Ok(()), |dir| give_to_owner_of(dir, temporary))
        .and_then(|()| writeln!(file, "{text}"))
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
