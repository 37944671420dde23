//! Linux: the kernel tells when Ollama's program file is opened, which is before it runs; the list of
//! processes tells whether it is `ollama serve`. Ollama binds its port some ten milliseconds later, when
//! this daemon has left it.
//!
//! The files are those of the PATH, and those that Ollama was seen to run from ([`programs`]).

mod programs;

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};

use crate::net::socket::Local;
use crate::system::keeper::Keeper;
use programs::{Program, processes};

/// From the opening of the file until the process has its new name, at most.
const EXEC_TIME: Duration = Duration::from_millis(500);
/// How long one look at the processes may take, however often the file is opened meanwhile.
const MAX_LOOK: Duration = Duration::from_secs(2);
/// Pauses between looks at the processes; each is used eight times, the last from then on.
const PAUSES_MS: [u64; 3] = [1, 2, 10];
/// How often an Ollama whose start can't be seen is looked at again.
const LEARN_AGAIN: Duration = Duration::from_secs(60);

pub(in crate::serve) struct OllamaWatch {
    /// Readable when the program's file was opened, or put into its folder.
    inotify: OwnedFd,
    /// Where the program may be installed.
    usual: Vec<PathBuf>,
    /// What Ollama was seen to run from, remembered in `dir`.
    programs: Vec<Program>,
    dir: Option<PathBuf>,
    keeper: Arc<Keeper>,
    /// Of the process that was learnt from; readable while it lives.
    life: Option<File>,
    learn_at: Option<Instant>,
    /// Processes that ran before the watch began.
    known: Vec<PathBuf>,
}

impl OllamaWatch {
    /// `None` where the kernel has no inotify.
    pub(in crate::serve) fn new(dir: Option<&Path>, keeper: &Arc<Keeper>) -> Option<Self> {
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/bin", "/usr/bin", "/snap/bin"].map(PathBuf::from);
        let folders = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(usual);
        let mut watch = OllamaWatch {
            inotify,
            usual: folders.map(|dir| dir.join("ollama")).collect(),
            programs: dir.map(programs::recall).unwrap_or_default(),
            dir: dir.map(Path::to_owned),
            keeper: Arc::clone(keeper),
            life: None,
            learn_at: None,
            known: Vec::new(),
        };
        watch.restart();
        Some(watch)
    }

    /// Begins anew: processes that run now aren't being started.
    pub(in crate::serve) fn restart(&mut self) {
        self.watch_programs();
        self.take_events();
        self.known = processes(&self.programs).into_iter().map(|process| process.dir).collect();
    }

    fn remember(&self) {
        let Some(dir) = self.dir.clone() else { return };
        let programs = self.programs.clone();
        self.keeper.put(("programs", 0), move || programs::remember(&dir, &programs));
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.usual.iter().chain(self.programs.iter().map(|program| &program.file))
    }

    /// Watches the files that are installed now; an upgrade replaces them, or what links to them.
    fn watch_programs(&self) {
        for file in self.files() {
            let _ = self.watch(file);
        }
    }

    /// Watches a file and, for one that is put in its place, its folder.
    fn watch(&self, file: &Path) -> io::Result<()> {
        let folder_events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let folder = file.parent().unwrap_or(file);
        let folder = add_watch(&self.inotify, folder, folder_events);
        let events = WatchFlags::OPEN | WatchFlags::ATTRIB | WatchFlags::MOVE_SELF;
        match add_watch(&self.inotify, file, events) {
            Err(rustix::io::Errno::NOENT) => folder,
            watched => watched,
        }
        .map(drop)
        .map_err(io::Error::from)
    }

    /// Whether something happened to one of the programs.
    fn take_events(&self) -> bool {
        let mut any = false;
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let is_of_folder = event.events().intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            let name = event.file_name().map(|name| name.to_bytes());
            any |= !is_of_folder
                || self.files().any(|file| {
                    let file = file.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes);
                    file == name
                });
        }
        any
    }

    /// Remembers the program of the Ollama that answers at this port of this machine. The error
    /// says why its start couldn't be seen; `None` is no news.
    pub(in crate::serve) fn learn(
        &mut self,
        now: Instant,
        port: u16,
    ) -> Option<Result<(), String>> {
        let lives = self.life.as_ref().is_some_and(|life| life.read_at(&mut [0], 0).is_ok());
        if lives || self.learn_at.is_some_and(|at| now < at) {
            return None;
        }
        let learnt = self.learn_programs(port);
        self.learn_at = learnt.is_err().then(|| now + LEARN_AGAIN);
        Some(learnt)
    }

    /// Has [`learn`](Self::learn) not wait.
    pub(in crate::serve) fn learn_soon(&mut self) {
        self.learn_at = None;
    }

    fn learn_programs(&mut self, port: u16) -> Result<(), String> {
        self.life = None;
        let process = programs::holder(port, &self.programs)?;
        let found = process.programs();
        let mut unseen = Err("where its program is can't be seen".to_owned());
        if process.is_hidden() && self.usual.iter().any(|file| file.is_file()) {
            unseen = Ok(());
        }
        for Program { file, .. } in &found {
            match self.watch(file) {
                Ok(()) => unseen = Ok(()),
                Err(error) if unseen.is_err() => {
                    unseen = Err(format!("{} can't be watched: {error}", file.display()));
                }
                Err(_) => {}
            }
        }
        unseen?;
        if programs::add(&mut self.programs, found) {
            self.remember();
        }
        self.life = process.life();
        Ok(())
    }

    /// Whether the program's file was opened and Ollama's server is being started. Looks no more
    /// when the process is to stop.
    pub(in crate::serve) fn is_starting(&mut self, stopping: &AtomicBool) -> bool {
        let any = self.take_events();
        self.watch_programs();
        if !any {
            return false;
        }
        let mut seen = self.known.clone();
        let start = Instant::now();
        let (mut last_event, mut looks) = (start, 0);
        while last_event.elapsed() < EXEC_TIME
            && start.elapsed() < MAX_LOOK
            && !stopping.load(SeqCst)
        {
            for process in processes(&self.programs) {
                if seen.contains(&process.dir) {
                    continue;
                }
                match process.is_server() {
                    Some(true) => return true,
                    Some(false) => seen.push(process.dir),
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

    /// Waits for a signal, for something that happens to a watched program, or until the time is up;
    /// true for a signal.
    pub(in crate::serve) fn wait(
        watch: Option<&Self>,
        signals: &Local,
        time: Option<Duration>,
    ) -> bool {
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        fds.extend(watch.map(|watch| PollFd::new(&watch.inotify, PollFlags::IN)));
        let _ = poll(&mut fds, time.as_ref());
        !fds[0].revents().is_empty()
    }
}
