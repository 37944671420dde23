//! Sees that Ollama is being started on this machine while this daemon has its port: the kernel
//! tells when Ollama's program file is opened, which is before it runs; the list of processes tells
//! whether it is `ollama serve`. Ollama binds its port some ten milliseconds later, when this daemon
//! has left it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

/// From the opening of the file until the process has its new name, at most.
const EXEC_TIME: Duration = Duration::from_millis(500);
/// How long one look at the processes may take, however often the file is opened meanwhile.
const MAX_LOOK: Duration = Duration::from_secs(2);
/// Pauses between looks at the processes; each is used eight times, the last from then on.
const PAUSES_MS: [u64; 3] = [1, 2, 10];

pub(super) struct OllamaWatch {
    /// Readable when the program's file was opened.
    pub(super) inotify: OwnedFd,
    /// Where the program may be installed.
    programs: Vec<PathBuf>,
    /// Processes that ran before the watch began.
    known: Vec<PathBuf>,
}

impl OllamaWatch {
    /// `None` where the kernel has no inotify.
    pub(super) fn new() -> Option<Self> {
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from);
        let folders = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(usual);
        let programs = folders.map(|dir| dir.join("ollama")).collect();
        let mut watch = OllamaWatch { inotify, programs, known: Vec::new() };
        watch.restart();
        Some(watch)
    }

    /// Begins anew: processes that run now aren't being started.
    pub(super) fn restart(&mut self) {
        self.watch_programs();
        self.take_events();
        self.known = processes();
    }

    /// Watches the files that are installed now; an upgrade replaces them.
    fn watch_programs(&self) {
        let events = WatchFlags::OPEN | WatchFlags::ATTRIB | WatchFlags::MOVE_SELF;
        for program in &self.programs {
            let _ = add_watch(&self.inotify, program, events);
        }
    }

    fn take_events(&self) -> bool {
        let mut any = false;
        while rustix::io::read(&self.inotify, &mut [0; 1024]).is_ok_and(|n| n > 0) {
            any = true;
        }
        any
    }

    /// Whether the program's file was opened and Ollama's server is being started.
    pub(super) fn is_starting(&self) -> bool {
        if !self.take_events() {
            return false;
        }
        self.watch_programs();
        let mut seen = self.known.clone();
        let start = Instant::now();
        let (mut last_event, mut looks) = (start, 0);
        while last_event.elapsed() < EXEC_TIME && start.elapsed() < MAX_LOOK {
            for process in processes() {
                if seen.contains(&process) {
                    continue;
                }
                // The arguments appear a moment after the name.
                match is_server(&process) {
                    Some(true) => return true,
                    Some(false) => seen.push(process),
                    None => {}
                }
            }
            let pause = Timespec::try_from(Duration::from_millis(PAUSES_MS[looks / 8])).ok();
            looks = (looks + 1).min(PAUSES_MS.len() * 8 - 1);
            let _ = poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], pause.as_ref());
            if self.take_events() {
                (last_event, looks) = (Instant::now(), 0);
            }
        }
        false
    }
}

/// The processes in this network namespace that run Ollama's program.
fn processes() -> Vec<PathBuf> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let is_ours = |process: &PathBuf| {
        // Such as `ollama`, or `.ollama-wrapped` where a script starts it.
        let is_named = |name: Vec<u8>| name.windows(6).any(|part| part == b"ollama");
        let is_ollama = fs::read(process.join("comm")).is_ok_and(is_named);
        // A container has a network of its own. Where that can't be told, it is taken for this one.
        is_ollama && fs::read_link(process.join("ns/net")).map_or(true, |net| own == Some(net))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.map(|entry| entry.path()).filter(is_ours).collect()
}

/// Whether a process is `ollama serve`; `None` while that can't be told.
fn is_server(process: &Path) -> Option<bool> {
    let words = fs::read(process.join("cmdline")).ok().filter(|words| !words.is_empty())?;
    Some(words.split(|byte| *byte == 0).any(|word| word == b"serve"))
}
