//! Windows.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Advice, Entry, Kind};

/// FILE_FLAG_OPEN_REPARSE_POINT: a link is opened, not what it leads to.
const LINK_ITSELF: u32 = 0x0020_0000;

/// It runs as the user who has logged on.
pub(crate) const SERVICE_DIR: Option<&str> = None;

/// A limit would be that of a job, and those are for memory in use.
pub(crate) fn is_memory_limited() -> bool {
    false
}

pub fn keep_one_heap() {}

pub(crate) fn user() -> Option<u32> {
    None
}

pub(crate) fn without_console(command: &mut std::process::Command) {
    use std::os::windows::process::CommandExt;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0200;
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    command.creation_flags(CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP);
}

pub(crate) fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default().to_lowercase()
}

pub(crate) fn most_descriptors() -> Option<u64> {
    None
}

pub(crate) fn address_space() -> Option<u64> {
    None
}

pub(crate) fn leave_session() {}

pub(crate) fn leave_terminal<T>(between: impl FnOnce() -> T) -> io::Result<T> {
    Ok(between())
}

pub(crate) fn time_since_boot() -> Option<Duration> {
    None
}

/// Can't be told; a machine that wakes up has its interfaces come up anew, which shows.
pub(crate) fn time_slept() -> Duration {
    Duration::ZERO
}

pub(crate) fn neighbours() -> String {
    super::output_of("arp", &["-a"])
}

pub(crate) fn is_stderr(_: &str) -> bool {
    false
}

pub(crate) fn path_from(bytes: &[u8]) -> Option<PathBuf> {
    str::from_utf8(bytes).ok().map(PathBuf::from)
}

pub(crate) fn file_number(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// It is for whom its folder is for.
pub(crate) fn is_open_to_others(_: &Metadata) -> bool {
    false
}

pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(dir)
}

pub(crate) fn make_open_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(dir)
}

pub(crate) fn make_readable(_: &File) {}

pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

pub(crate) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

pub(crate) fn append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

/// A file that another program has open, if only to look for viruses, can't be replaced at the moment.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let start = Instant::now();
    loop {
        match fs::rename(from, to) {
            Err(error) if is_in_use(&error) && start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    const SHARING_VIOLATION: i32 = 32;
    error.kind() == io::ErrorKind::PermissionDenied
        || error.raw_os_error() == Some(SHARING_VIOLATION)
}

pub(crate) fn free_space(dir: &Path) -> Option<u64> {
    fs4::available_space(dir).ok()
}

/// The most that a file may take of the disk: std doesn't tell its holes.
pub(crate) fn taken_space(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

pub(crate) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.seek_read(buffer, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => (buffer, at) = (&mut buffer[read..], at + read as u64),
        }
    }
    Ok(())
}

pub(crate) fn advise(_: &File, _: Range<u64>, _: Advice) {}

pub(crate) fn is_in_page_cache(_: &File, _: u64) -> bool {
    false
}

/// A folder in which files are opened without following links. Only who may change the folder could
/// put one there between the look and the opening.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(path.to_owned(), &fs::metadata(path)?)
    }

    fn of(path: PathBuf, about: &Metadata) -> io::Result<Self> {
        match about.is_dir() {
            true => Ok(Folder(path)),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(crate) fn folder(&self, name: &str) -> io::Result<Self> {
        let path = self.0.join(name);
        let about = fs::symlink_metadata(&path)?;
        Self::of(path, &about)
    }

    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        let file = File::options().read(true).custom_flags(LINK_ITSELF).open(self.0.join(name))?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("not a plain file")),
        }
    }

    pub(crate) fn link(&self, name: &str) -> io::Result<OsString> {
        Ok(fs::read_link(self.0.join(name))?.into())
    }

    pub(crate) fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
        Ok(fs::read_dir(&self.0)?.map(|entry| {
            let entry = entry?;
            let kind = match entry.file_type() {
                Ok(about) if about.is_dir() => Kind::Folder,
                Ok(_) => Kind::Other,
                Err(_) => Kind::Unknown,
            };
            Ok(Entry { name: entry.file_name(), kind })
        }))
    }
}

/// There is no other user to act as: what an administrator makes here is for whom the folder is for.
pub(crate) struct Acting;

pub(crate) fn way(path: &Path) -> Cow<'_, Path> {
    Cow::Borrowed(path)
}

impl Acting {
    pub(crate) fn as_owner_of(_: &Path) -> io::Result<Option<Self>> {
        Ok(None)
    }
}
