//! Files that are replaced as a whole, and the disk below them, which may take for ever.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::os::{self, Acting};
pub(crate) use super::os::{
    Advice, Folder, Kind, advise, file_number, free_space, is_in_page_cache, is_open_to_others,
    make_open_dir, make_private_dir, path_from, private, read_exact_at, taken_space, way,
};
use super::{Hex, is_stopping, random, spawn};

/// Bytes of a file that are read; none of ours is longer.
const MAX_FILE: u64 = 4 << 20;
/// How long a disk may take. A mount whose server is gone takes for ever.
const PATIENCE: Duration = Duration::from_secs(3);
const LAST_PATIENCE: Duration = Duration::from_millis(500);
/// How often a thread that waits for a disk looks whether the process is to end.
const LOOK: Duration = Duration::from_millis(50);
/// A new file that is as old as this isn't being written any more.
const UNFINISHED: Duration = Duration::from_secs(60 * 60);
/// Threads that a disk may hold for ever.
const MAX_STUCK: usize = 8;

/// Does something with files on a thread of its own, and waits for it until the process is to end.
///
/// # Errors
/// Those of `work`, and `TimedOut` for a disk that doesn't answer.
pub(crate) fn in_time<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(PATIENCE, &is_stopping, work)
}

/// The same at the end of the process, and not for long.
pub(crate) fn at_the_end<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(LAST_PATIENCE, &|| false, work)
}

fn within<T: Send + 'static>(
    patience: Duration,
    is_over: &dyn Fn() -> bool,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // Threads whose result nobody waits for any more.
    static STUCK: AtomicUsize = AtomicUsize::new(0);
    let silent = || io::Error::new(ErrorKind::TimedOut, "the disk does not answer");
    if STUCK.load(SeqCst) >= MAX_STUCK {
        return Err(silent());
    }
    let (done, result) = bounded(1);
    // Set by the first of the two to end.
    let is_over_for_one = Arc::new(AtomicBool::new(false));
    let is_over_for_us = Arc::clone(&is_over_for_one);
    spawn("disk", move || {
        let _ = done.send(work());
        if is_over_for_one.swap(true, SeqCst) {
            STUCK.fetch_sub(1, SeqCst);
        }
    })?;
    let deadline = Instant::now() + patience;
    loop {
        match result.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline && !is_over() => {}
            Err(_) => break,
        }
    }
    STUCK.fetch_add(1, SeqCst);
    if is_over_for_us.swap(true, SeqCst) {
        STUCK.fetch_sub(1, SeqCst);
    }
    Err(silent())
}

/// Does something below `dir`. Root does it as the first owner on the way there who isn't root (the
/// service's user, for `sudo ollana pair`): what is made there belongs to that user, and links that
/// the user has put there lead root to nothing that the user couldn't change anyway. The work uses
/// what is here, or asks [`way`] for each file.
///
/// # Errors
/// Root may not act as somebody else, as in a container without that right.
pub(crate) fn as_owner_of<T>(dir: &Path, work: impl FnOnce() -> T) -> io::Result<T> {
    let _acting = Acting::as_owner_of(dir)?;
    Ok(work())
}

/// Opens a plain file. Anything else is an error: a FIFO would make its reader wait.
pub(crate) fn open_plain(options: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let file = os::without_waiting(options).open(way(path))?;
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
        replace_with(path, text, true)
    })?
}

/// The same for a file that everybody may read, whatever the umask.
pub(crate) fn replace_readable(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    as_owner_of(dir, || replace_with(path, text, false))?
}

/// Removes a file, with what writes of it that were cut off have left: it may be a secret.
pub(crate) fn remove(dir: &Path, path: &Path) -> io::Result<()> {
    as_owner_of(dir, || {
        let path = &*way(path);
        fs::remove_file(path)?;
        remove_unfinished(path, Duration::ZERO);
        Ok(())
    })?
}

/// Opens a file to append to it. As root, what others have put there is changed as they could change it
/// themselves.
pub(crate) fn append(path: &Path) -> io::Result<fs::File> {
    as_owner_of(path, || os::append(path))?
}

/// Puts a plain file of at least so many bytes aside, as NAME.1 in the place of the one before. False if
/// it isn't a plain file; where a shorter one is, or none, somebody else has put it aside.
pub(crate) fn set_aside(path: &Path, length: u64) -> io::Result<bool> {
    as_owner_of(path, || {
        let about = match fs::symlink_metadata(way(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            about => about?,
        };
        if about.is_file() && about.len() >= length {
            let mut old = path.as_os_str().to_owned();
            old.push(".1");
            let (path, old) = (&*way(path), &*way(Path::new(&old)));
            os::rename(path, old)?;
        }
        Ok(about.is_file())
    })?
}

/// By which a change of a file shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    number: Option<(u64, u64)>,
    changed: Option<SystemTime>,
    length: u64,
}

/// While it stays the same, so does the file; `None` without a file.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let about = fs::metadata(path).ok()?;
    let (number, changed) = (os::file_number(&about), about.modified().ok());
    Some(Stamp { number, changed, length: about.len() })
}

fn replace_with(path: &Path, text: &str, is_private: bool) -> io::Result<()> {
    let path = &*way(path);
    // Each write has a new file of its own: two threads, or two processes, may write at once.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", Hex(&random::<8>()?)));
    let temporary = Path::new(&temporary);
    let mut options = fs::File::options();
    if is_private {
        os::private(&mut options);
    }
    let mut file = options.write(true).create_new(true).open(temporary)?;
    if !is_private {
        os::make_readable(&file);
    }
    let written = writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .and_then(|()| os::rename(temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(temporary);
        return written;
    }
    // Makes the new name last. Not every file system can do that for a directory, and Windows never;
    // without it, a power cut in the next seconds brings the old file back, whole.
    let _ = path.parent().map(|dir| fs::File::open(dir)?.sync_all());
    remove_unfinished(path, UNFINISHED);
    Ok(())
}

/// Removes the new files of writes that a power cut or a signal cut off, if they are as old as that.
fn remove_unfinished(path: &Path, age: Duration) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return;
    };
    let is_one = |other: &str| {
        let random = other.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let random = random.and_then(|rest| rest.strip_suffix(".new"));
        random.is_some_and(|it| it.len() == 16 && it.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let is_old = |entry: &fs::DirEntry| {
        let written = entry.metadata().and_then(|about| about.modified());
        // Of a time to come, as it is when the clock was set back, nobody knows more than that.
        written.is_ok_and(|at| at.elapsed().unwrap_or_default() >= age)
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_one) && is_old(&entry) {
            let _ = fs::remove_file(dir.join(entry.file_name()));
        }
    }
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
    fn what_a_power_cut_left_of_a_write_goes_with_the_next() {
        let dir = folder();
        let path = dir.join("key");
        replace(&dir, &path, "first").unwrap();
        let leave = |name: &str, age: Duration| {
            let file = fs::File::create_new(dir.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        leave("key.0123456789abcdef.new", UNFINISHED + PATIENCE);
        leave("key.0123456789abcde0.new", UNFINISHED / 2);
        let others = ["key.0123456789abcdef.old", "key.mine.new", "other.0123456789abcdef.new"];
        others.iter().for_each(|name| leave(name, UNFINISHED * 2));
        let later = fs::File::create_new(dir.join("key.0123456789abcde1.new")).unwrap();
        later.set_modified(SystemTime::now() + UNFINISHED).unwrap();
        replace(&dir, &path, "second").unwrap();
        let sorted = || {
            let mut names = names(&dir);
            names.sort();
            names
        };
        let young = ["key.0123456789abcde0.new", "key.0123456789abcde1.new"];
        assert_eq!(sorted(), ["key", young[0], young[1], others[0], others[1], others[2]]);
        remove(&dir, &path).unwrap();
        assert_eq!(sorted(), others, "a secret that is removed has no copy");
        fs::remove_dir_all(dir).unwrap();
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
    fn a_disk_that_hangs_is_given_up_and_holds_few_threads() {
        let (gate, hang) = bounded::<()>(0);
        let start = Instant::now();
        for _ in 0..3 {
            let hang = hang.clone();
            let work = move || hang.recv().map_err(io::Error::other);
            let given_up = within(Duration::from_millis(60), &|| false, work);
            assert_eq!(given_up.unwrap_err().kind(), ErrorKind::TimedOut);
        }
        let stuck = hang.clone();
        let ended = within(PATIENCE, &|| true, move || stuck.recv().map_err(io::Error::other));
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::TimedOut, "the process ends");
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        let work = || {
            thread::sleep(LOOK);
            Ok(())
        };
        let many = || in_time(work);
        thread::scope(|scope| {
            let all: Vec<_> = (0..4 * MAX_STUCK).map(|_| scope.spawn(many)).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        drop(gate);
    }

    #[test]
    fn more_than_may_be_stuck_are_served_in_turn() {
        let slow = || {
            in_time(|| {
                thread::sleep(Duration::from_millis(50));
                Ok(())
            })
        };
        thread::scope(|scope| {
            let all: Vec<_> = (0..2 * MAX_STUCK).map(|_| scope.spawn(slow)).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
    }

    /// A user's folder, the links in it, and root's files around it.
    #[cfg(unix)]
    #[test]
    fn root_is_led_nowhere_by_a_log_or_a_pid_file() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};

        use rustix::process::geteuid;
        if !geteuid().is_root() {
            return;
        }
        let (outside, dir) = (folder(), folder());
        for path in [&outside, &dir, &outside.join("sub")] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let secret = outside.join("sub/secret");
        fs::write(&secret, "root's").unwrap();
        chown(&dir, Some(12345), Some(12345)).unwrap();
        for (name, target) in [
            ("log", secret.clone()),
            ("new", outside.join("sub/new")),
            ("up", outside.clone()),
            ("self", "self".into()),
        ] {
            symlink(target, dir.join(name)).unwrap();
            lchown(dir.join(name), Some(12345), Some(12345)).unwrap();
        }
        // A link of a user's in a folder of root's, as in /tmp, and one of root's to the user's.
        symlink(&secret, outside.join("planted")).unwrap();
        lchown(outside.join("planted"), Some(12345), Some(12345)).unwrap();
        symlink(&dir, outside.join("roots")).unwrap();
        let ways = ["log", "new", "up/sub/secret", "up/sub/new", "self"].map(|way| dir.join(way));
        let others = ["planted", "roots/log", "roots/up/sub/new"].map(|way| outside.join(way));
        for way in ways.iter().chain(&others) {
            let error = append(way).expect_err(&format!("{way:?}"));
            assert_ne!(error.kind(), ErrorKind::NotFound, "{way:?} {error}");
            assert!(!matches!(set_aside(way, 0), Ok(true)) || !way.exists(), "{way:?}");
            if way.parent() != Some(&dir) && way.parent() != Some(&outside.join("roots")) {
                replace_readable(way, "1").map(|()| assert_eq!(*way, others[0])).unwrap_or(());
            }
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "root's");
        assert_eq!(names(&outside.join("sub")), ["secret"]);
        let own = dir.join("own");
        append(&own).unwrap().write_all(b"1").unwrap();
        append(&own).unwrap().write_all(b"2").unwrap();
        let aside = dir.join("aside");
        append(&aside).unwrap().write_all(b"5").unwrap();
        symlink(&secret, dir.join("aside.1")).unwrap();
        assert!(set_aside(&aside, 2).unwrap() && aside.exists(), "it is shorter");
        assert!(set_aside(&aside, 1).unwrap() && !aside.exists());
        assert_eq!(fs::read_to_string(dir.join("aside.1")).unwrap(), "5");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "root's");
        replace_readable(&dir.join("pid"), "3").unwrap();
        for (name, text) in [("own", "12"), ("pid", "3\n")] {
            assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), text);
            assert_eq!(fs::metadata(dir.join(name)).unwrap().uid(), 12345, "{name}");
        }
        // Links of root's are followed, as to a larger disk.
        symlink(outside.join("larger"), outside.join("link")).unwrap();
        append(&outside.join("link")).unwrap().write_all(b"4").unwrap();
        assert_eq!(fs::read_to_string(outside.join("larger")).unwrap(), "4");
        assert!(geteuid().is_root(), "root again");
        [outside, dir].iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
    }

    #[test]
    fn what_was_loose_becomes_private_and_what_fails_leaves_nothing() {
        let dir = folder();
        let path = dir.join("peers");
        #[cfg(unix)]
        let mode = |path: &Path| {
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap()) & 0o777
        };
        replace_readable(&std::env::temp_dir().join("nowhere/peers"), "").unwrap_err();
        make_private_dir(&dir).unwrap();
        replace_readable(&path, "1").unwrap();
        #[cfg(unix)]
        assert_eq!(mode(&path), 0o644);
        replace(&dir, &path, "2").unwrap();
        #[cfg(unix)]
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
