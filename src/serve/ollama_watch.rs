//! Signs that somebody starts Ollama on this machine while we have its port.
//!
//! The kernel tells when Ollama's program file is opened, which is before it runs; the processes
//! tell whether it is `ollama serve`. Ollama takes some ten milliseconds from there to the moment
//! in which it wants its port, so that we are gone by then.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

/// The file is opened this long before the process has its new name, at most.
const EXEC_TIME: Duration = Duration::from_millis(500);
/// However many signs there are, the rest has to go on.
const LONGEST: Duration = Duration::from_secs(2);
/// How often the processes are looked at: at once often, then less.
const LOOKS_MS: [u64; 3] = [1, 2, 10];

/// A watch on Ollama's program.
pub(super) struct Arrivals {
    watch: OwnedFd,
    places: Vec<PathBuf>,
    /// Those that run already have what they need.
    known: Vec<PathBuf>,
}

impl Arrivals {
    /// Where Ollama may be installed. `None` where the kernel can't tell.
    pub(super) fn new() -> Option<Self> {
        let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from);
        let folders = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(usual);
        let mut places: Vec<PathBuf> = folders.map(|dir| dir.join("ollama")).collect();
        places.sort();
        places.dedup();
        let mut arrivals = Arrivals { watch, places, known: Vec::new() };
        arrivals.forget();
        Some(arrivals)
    }

    /// Begins anew: what runs by now is no arrival.
    pub(super) fn forget(&mut self) {
        self.refresh();
        self.take_signs();
        self.known = processes();
    }

    /// Readable when there is a sign.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Watches what is installed now; an upgrade puts another file in the place of the old one.
    fn refresh(&self) {
        let signs = WatchFlags::OPEN | WatchFlags::ATTRIB | WatchFlags::MOVE_SELF;
        for place in &self.places {
            let _ = add_watch(&self.watch, place, signs);
        }
    }

    fn take_signs(&self) -> bool {
        let mut events = [0; 1024];
        let mut has_sign = false;
        while rustix::io::read(&self.watch, &mut events).is_ok_and(|n| n > 0) {
            has_sign = true;
        }
        has_sign
    }

    /// Whether there was a sign, and Ollama's server is being started.
    pub(super) fn is_starting(&self) -> bool {
        if !self.take_signs() {
            return false;
        }
        self.refresh();
        let mut seen = self.known.clone();
        let start = Instant::now();
        let (mut last_sign, mut looks) = (start, 0);
        while last_sign.elapsed() < EXEC_TIME && start.elapsed() < LONGEST {
            for process in processes() {
                if seen.contains(&process) {
                    continue;
                }
                // The words come a moment after the name.
                match is_server(&process) {
                    Some(true) => return true,
                    Some(false) => seen.push(process),
                    None => {}
                }
            }
            let pause = Duration::from_millis(LOOKS_MS[looks / 8]);
            looks = (looks + 1).min(LOOKS_MS.len() * 8 - 1);
            let pause = Timespec::try_from(pause).ok();
            let _ = poll(&mut [PollFd::new(&self.watch, PollFlags::IN)], pause.as_ref());
            if self.take_signs() {
                (last_sign, looks) = (Instant::now(), 0);
            }
        }
        false
    }
}

/// The processes in our network that run Ollama's program.
fn processes() -> Vec<PathBuf> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let is_ours = |process: &PathBuf| {
        // Such as `ollama`, or `.ollama-wrapped` where a script starts it.
        let is_named = |name: Vec<u8>| name.windows(6).any(|part| part == b"ollama");
        let is_ollama = fs::read(process.join("comm")).is_ok_and(is_named);
        // A container's network isn't ours; where that can't be told, it is taken for ours.
        let net = || fs::read_link(process.join("ns/net"));
        is_ollama && net().map_or(true, |net| own.as_ref() == Some(&net))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.map(|entry| entry.path()).filter(is_ours).collect()
}

/// Whether a process is `ollama serve`; `None` while that can't be told.
fn is_server(process: &Path) -> Option<bool> {
    let words = fs::read(process.join("cmdline")).ok().filter(|words| !words.is_empty())?;
    Some(words.split(|byte| *byte == 0).any(|word| word == b"serve"))
}
