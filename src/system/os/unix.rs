//! Linux, macOS and the BSDs. Long because all that differs from Windows is in one file.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

pub(crate) use self::acting::{Acting, way};
use super::{Advice, Entry, Kind};
pub(crate) use std::fs::rename;

/// Where an ollana that the system runs keeps what it keeps.
pub(crate) const SERVICE_DIR: Option<&str> =
    Some(if cfg!(target_os = "macos") { "/var/db/ollana" } else { "/var/lib/ollana" });

pub(crate) fn is_memory_limited() -> bool {
    address_space().is_some()
}

/// Starts this program again with one heap of glibc's, from which freed memory goes back to the system.
/// Else each of sixteen threads has one, which reserves 64 MB and keeps what a load has ever needed of it.
/// Threads keep a few freed pieces each, so that they don't wait for each other at the one heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_one_heap() {
    use std::os::unix::process::CommandExt;
    const ARENAS: &str = "MALLOC_ARENA_MAX";
    /// Bytes that are free at the heap's end before they go back; of a block that has pages of its own.
    const FREE: &str = "65536";
    const LARGE: &str = "65536";
    if std::env::var_os(ARENAS).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let limits =
            [(ARENAS, "1"), ("MALLOC_TRIM_THRESHOLD_", FREE), ("MALLOC_MMAP_THRESHOLD_", LARGE)];
        // This returns only if it failed; then it takes more memory.
        let _ = std::process::Command::new(program).arg0(name).args(arguments).envs(limits).exec();
    }
}

/// Nothing else reserves any.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_one_heap() {}

fn clock(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// The number of the user that this process acts as.
pub(crate) fn user() -> Option<u32> {
    Some(rustix::process::geteuid().as_raw())
}

/// Has Windows start a program without a window.
pub(crate) fn without_console(_: &mut std::process::Command) {}

pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Has this process have as many descriptors as it may: how many.
pub(crate) fn most_descriptors() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that isn't allowed, the present limit holds.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current
}

/// Bytes of address space that this process may have, if they are limited.
pub(crate) fn address_space() -> Option<u64> {
    getrlimit(Resource::As).current
}

/// The end of the terminal's session ends this process no more. Fails only for the leader of a process
/// group, which a child isn't.
pub(crate) fn leave_session() {
    let _ = rustix::process::setsid();
}

/// Closes standard error, does something, closes standard output. Fails where there is no /dev/null.
pub(crate) fn leave_terminal<T>(between: impl FnOnce() -> T) -> io::Result<T> {
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    let done = between();
    rustix::stdio::dup2_stdout(&nowhere)?;
    Ok(done)
}

/// Time since this machine booted, by the clock that counts sleep, where there is one.
pub(crate) fn time_since_boot() -> Option<Duration> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return Some(clock(ClockId::Boottime));
    #[cfg(target_vendor = "apple")]
    return Some(clock(ClockId::Monotonic));
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    None
}

/// How long this machine has slept since some moment; zero where that can't be told.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn time_slept() -> Duration {
    time_since_boot().unwrap_or_default().saturating_sub(clock(ClockId::Monotonic))
}

/// Here the monotonic clock counts sleep, and std's doesn't.
#[cfg(target_vendor = "apple")]
pub(crate) fn time_slept() -> Duration {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<(Duration, Instant)> =
        LazyLock::new(|| (clock(ClockId::Monotonic), Instant::now()));
    let (counted, start) = *START;
    clock(ClockId::Monotonic).saturating_sub(counted).saturating_sub(start.elapsed())
}

/// The kernel's table of its neighbours' hardware addresses.
pub(crate) fn neighbours() -> String {
    // A service of systemd sees of /proc processes alone, its own among them (`ProcSubset=pid`).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return fs::read_to_string("/proc/self/net/arp").unwrap_or_default();
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    super::output_of("arp", &["-an"])
}

/// Whether stderr is this stream, as systemd names it.
pub(crate) fn is_stderr(stream: &str) -> bool {
    let about = rustix::fs::fstat(io::stderr());
    about.is_ok_and(|about| stream == format!("{}:{}", about.st_dev, about.st_ino))
}

pub(crate) fn path_from(bytes: &[u8]) -> Option<PathBuf> {
    Some(OsString::from_vec(bytes.to_vec()).into())
}

/// By which a file or folder is known, whatever the paths to it.
pub(crate) fn file_number(about: &Metadata) -> Option<(u64, u64)> {
    Some((about.dev(), about.ino()))
}

/// Whether other users may read or change it, or what is in it.
pub(crate) fn is_open_to_others(about: &Metadata) -> bool {
    about.mode() & 0o077 != 0
}

/// Makes a directory, and those above it, that only its owner may enter.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(way(dir))
}

/// Makes a directory that everybody may enter, whatever the umask; one that is there stays as it is.
pub(crate) fn make_open_dir(dir: &Path) -> io::Result<()> {
    let dir = &*way(dir);
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    // Where a file system has no modes, there is nothing to do.
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    Ok(())
}

/// Lets everybody read a file, whatever the umask.
pub(crate) fn make_readable(file: &File) {
    let _ = file.set_permissions(fs::Permissions::from_mode(0o644));
}

/// What is made with these options is for its owner alone.
pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

/// Opening waits for nobody: a FIFO would make its reader wait.
pub(crate) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(OFlags::NONBLOCK.bits() as i32)
}

/// Opens a file to append to it, mode 0640. A FIFO that nobody reads is an error, not a wait.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    let path = &*way(path);
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // In a folder of many, such as /tmp, a link can appear between the look and the opening.
    let is_link = fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink());
    let (flags, new) = match is_link {
        true => (flags, OFlags::CREATE),
        false => (flags | OFlags::NOFOLLOW, OFlags::CREATE | OFlags::EXCL),
    };
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let file = match rustix::fs::open(path, flags, mode) {
        Err(Errno::NOENT) => rustix::fs::open(path, flags | new, mode),
        opened => opened,
    };
    Ok(file?.into())
}

/// Bytes free on the disk that holds a directory.
pub(crate) fn free_space(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

/// Bytes of the disk that a file takes: holes take none.
pub(crate) fn taken_space(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.blocks().saturating_mul(512))
}

pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(buffer, at)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn advise(file: &File, bytes: Range<u64>, advice: Advice) {
    let advice = match advice {
        Advice::Sequential => rustix::fs::Advice::Sequential,
        Advice::DontNeed => rustix::fs::Advice::DontNeed,
    };
    let length = std::num::NonZeroU64::new(bytes.end - bytes.start);
    let _ = rustix::fs::fadvise(file, bytes.start, length, advice);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn advise(_: &File, _: Range<u64>, _: Advice) {}

/// Whether a byte of a file can be read without its disk.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn is_in_page_cache(file: &File, at: u64) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut byte = [0];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT).is_ok_and(|n| n == 1)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn is_in_page_cache(_: &File, _: u64) -> bool {
    false
}

/// A folder in which files are opened without following links.
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// It may be a link itself, or behind one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder(openat(CWD, path, flags, Mode::empty())?))
    }

    pub(crate) fn folder(&self, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Folder(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// A plain file; what would make its reader wait is none.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("not a plain file")),
        }
    }

    /// What a link in it names.
    pub(crate) fn link(&self, name: &str) -> io::Result<OsString> {
        let link = readlinkat(&self.0, name, Vec::new())?;
        Ok(OsString::from_vec(link.into_bytes()))
    }

    pub(crate) fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
        let entries = Dir::read_from(&self.0)?;
        Ok(entries.map(|entry| {
            let entry = entry?;
            let kind = match entry.file_type() {
                FileType::Directory => Kind::Folder,
                FileType::Unknown => Kind::Unknown,
                _ => Kind::Other,
            };
            Ok(Entry { name: OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(), kind })
        }))
    }
}

/// Links on the way to a file that are followed.
const MAX_LINKS: usize = 32;

/// A part of a path.
#[cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    expect(dead_code, reason = "only whether there is one counts there")
)]
struct Owned {
    /// Where it is, without links.
    place: PathBuf,
    about: Metadata,
    /// The path to it as it was asked for, and what a link in that has to go on with.
    asked: PathBuf,
    behind: PathBuf,
}

/// The first part of the path whose owner isn't root, and so decides what is behind it. Links of
/// root's are followed: root is trusted to link to the right place.
fn owner_of(path: &Path) -> Option<Owned> {
    let path = std::path::absolute(path).ok()?;
    let mut asked = path.components();
    // What links that were followed have put in front of it.
    let mut parts = VecDeque::new();
    let (mut at, mut links) = (PathBuf::new(), 0);
    loop {
        let next: OsString = match parts.pop_front() {
            Some(part) => part,
            None => asked.next()?.as_os_str().to_owned(),
        };
        if next == ".." {
            at.pop();
            continue;
        }
        let here = at.join(next);
        let about = fs::symlink_metadata(&here).ok()?;
        if about.uid() != 0 {
            let rest = asked.as_path().components().count();
            let count = path.components().count() - rest;
            return Some(Owned {
                place: here,
                about,
                asked: path.components().take(count).collect(),
                behind: parts.iter().collect(),
            });
        }
        if !about.is_symlink() {
            at = here;
            continue;
        }
        links += 1;
        let target = fs::read_link(&here).ok().filter(|_| links <= MAX_LINKS)?;
        let target = target.components().rev();
        target.for_each(|it| parts.push_front(it.as_os_str().to_owned()));
    }
}

/// Acting as the user to whom a folder belongs.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod acting {
    use std::borrow::Cow;
    use std::cell::RefCell;
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use rustix::fs::{Gid, Mode, OFlags, Uid, open};
    use rustix::process::{getegid, geteuid, getgroups};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

    use super::Owned;

    /// The thread acts as another user until this is dropped.
    pub(crate) struct Acting {
        group: Gid,
        groups: Vec<Gid>,
    }

    /// The user's folder, which may lie behind one of root's that the user can't pass: systemd keeps
    /// the states of services in /var/lib/private.
    struct Reached {
        asked: PathBuf,
        way: PathBuf,
        _folder: OwnedFd,
    }

    thread_local! {
        static REACHED: RefCell<Option<Reached>> = const { RefCell::new(None) };
    }

    /// The way to a file for whoever the thread acts as.
    pub(crate) fn way(path: &Path) -> Cow<'_, Path> {
        REACHED.with_borrow(|reached| match reached {
            Some(reached) => match path.strip_prefix(&reached.asked) {
                Ok(rest) if rest.as_os_str().is_empty() => Cow::Owned(reached.way.clone()),
                Ok(rest) => Cow::Owned(reached.way.join(rest)),
                Err(_) => Cow::Borrowed(path),
            },
            None => Cow::Borrowed(path),
        })
    }

    fn reach(owned: Owned) -> Option<Reached> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = open(&owned.place, flags, Mode::empty()).ok()?;
        let way = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let way = way.is_dir().then(|| way.join(owned.behind))?;
        Some(Reached { asked: owned.asked, way, _folder: folder })
    }

    impl Acting {
        /// Root acts as the first owner on the way there who isn't root; `None` if there is nothing to
        /// change.
        pub(crate) fn as_owner_of(dir: &Path) -> io::Result<Option<Self>> {
            let Some(owned) = geteuid().is_root().then(|| super::owner_of(dir)).flatten() else {
                return Ok(None);
            };
            let (user, group) = (owned.about.uid(), owned.about.gid());
            let acting = Acting { group: getegid(), groups: getgroups()? };
            REACHED.set(reach(owned));
            set_thread_groups(&[])?;
            set_thread_res_gid(None, Gid::from_raw(group), None)?;
            set_thread_res_uid(None, Uid::from_raw(user), None)?;
            Ok(Some(acting))
        }
    }

    impl Drop for Acting {
        fn drop(&mut self) {
            // The saved user is root, so these can't fail; and if they did, less would be allowed.
            let _ = set_thread_res_uid(None, Uid::ROOT, None);
            let _ = set_thread_res_gid(None, self.group, None);
            let _ = set_thread_groups(&self.groups);
            REACHED.set(None);
        }
    }
}

/// Here a thread can't be another user, and root would be led by links of the user's.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod acting {
    use std::borrow::Cow;
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    pub(crate) struct Acting;

    /// The user of the service on macOS.
    const NOBODY: u32 = u32::MAX - 1;

    pub(crate) fn way(path: &Path) -> Cow<'_, Path> {
        Cow::Borrowed(path)
    }

    impl Acting {
        pub(crate) fn as_owner_of(dir: &Path) -> io::Result<Option<Self>> {
            match super::owner_of(dir).filter(|_| rustix::process::geteuid().is_root()) {
                None => Ok(None),
                Some(owner) => {
                    let user = match owner.about.uid() {
                        NOBODY => "nobody".to_owned(),
                        other => format!("'#{other}'"),
                    };
                    Err(io::Error::other(format!(
                        "it belongs to a user: run this as that one, with sudo -u {user} ollana ... \
                         --state-dir {}",
                        dir.display()
                    )))
                }
            }
        }
    }
}
