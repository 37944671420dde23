//! The process from start to end: signals, and changes of role while it runs.
//!
//! A change of role is another daemon: the old one leaves its ports, lets its streams finish and
//! is gone; the new one starts beside it.

use std::io::{self, IsTerminal, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::mode::ask;
use super::ollama_watch::Arrivals;
use super::role::{Role, Sight, Step};
use super::watchdog::Pulse;
use super::{Daemon, Mode, StartError, system};
use crate::config::{ModeChoice, Settings};
use crate::log::LogWriter;
use crate::manager::pool::CheckResult;
use crate::serve::background::{self, PidFile};
use crate::serve::systemd::Notifier;

/// Signals this close together are one.
const SAME_SIGNAL: Duration = Duration::from_millis(5);
/// How often Ollama's address is looked at, and while it is about to come.
const LOOK: Duration = Duration::from_millis(1000);
const CLOSE_LOOK: Duration = Duration::from_millis(100);
/// How long it may take to answer then.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Runs a daemon until SIGINT or SIGTERM; a second signal exits at once. SIGHUP opens the log file
/// anew, if there is one; it ends only who was started from a terminal, which has gone then.
///
/// # Errors
/// When it can't be started.
pub fn run(settings: &Settings, journal: &LogWriter) -> Result<(), StartError> {
    let asked = Arc::new(AtomicBool::new(false));
    let stopping = Arc::new(AtomicBool::new(false));
    let (mut bell, handler) = UnixStream::pair().map_err(system("handle signals"))?;
    for signal in [SIGTERM, SIGINT] {
        let flag = Arc::clone(&stopping);
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag)
            .map_err(system("handle signals"))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))
            .map_err(system("handle signals"))?;
        let bell = handler.try_clone().map_err(system("handle signals"))?;
        signal_hook::low_level::pipe::register(signal, bell).map_err(system("handle signals"))?;
    }
    let rotated = Arc::new(AtomicBool::new(false));
    let has_terminal = std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
    if settings.log_file.is_some() || settings.daemon || !has_terminal {
        let flag = Arc::clone(&rotated);
        signal_hook::flag::register(SIGHUP, flag).map_err(system("handle signals"))?;
        signal_hook::low_level::pipe::register(SIGHUP, handler)
            .map_err(system("handle signals"))?;
    }
    // Before the daemon has Ollama's port, so that no arrival is missed. Where arrivals can't be
    // seen, Ollama's port isn't taken from it.
    let is_auto = settings.mode == ModeChoice::Auto;
    let arrivals = if is_auto { Arrivals::new() } else { None };
    let daemon = Daemon::start_unless(settings, &asked)?;
    let pid_file = settings.pid_file.as_deref().map(PidFile::write).transpose();
    let _pid_file = pid_file.map_err(system("write the pid file"))?;
    let notifier = Notifier::from_env(&|name| std::env::var_os(name));
    notifier.ready();
    background::let_go(journal).map_err(system("leave the terminal"))?;
    let pulse = Pulse::new(notifier.clone());
    let role = arrivals.is_some().then(|| Role::new(daemon.mode()));
    let present = Some(daemon);
    let mut daemons = Daemons { settings, present, retired: Vec::new(), role, arrivals, pulse };
    while !(daemons.wait(&mut bell) && asked.load(SeqCst)) {
        if rotated.swap(false, SeqCst) {
            journal.reopen();
        }
        daemons.follow();
    }
    notifier.stopping();
    // timeout(1) signals its child and then its child's group, which is one wish, not two.
    std::thread::sleep(SAME_SIGNAL);
    stopping.store(true, SeqCst);
    let drain = settings.timing.drain_timeout;
    log::info!(
        "stopping, a second signal exits at once connections={} drain_s={}",
        daemons.connections(),
        drain.as_secs()
    );
    let start = Instant::now();
    let finished = daemons.stop(start + drain);
    log::info!("stopped cut={} after_ms={}", !finished, start.elapsed().as_millis());
    Ok(())
}

/// The daemon of the present role, and those of earlier ones that have streams to finish.
struct Daemons<'a> {
    settings: &'a Settings,
    /// None while room is made for Ollama.
    present: Option<Daemon>,
    retired: Vec<Daemon>,
    /// Where the mode was chosen by what was there.
    role: Option<Role>,
    arrivals: Option<Arrivals>,
    pulse: Pulse,
}

impl Daemons<'_> {
    /// The watch on arrivals, while we have what they want.
    fn watch(&self) -> Option<&Arrivals> {
        let daemon = self.present.as_ref().filter(|daemon| daemon.mode() == Mode::Client)?;
        let port = self.settings.ollama_url().port;
        let has_port = daemon.addresses().iter().any(|address| address.port() == port);
        self.arrivals.as_ref().filter(|_| has_port)
    }

    fn connections(&self) -> usize {
        self.present.iter().chain(&self.retired).map(Daemon::connections).sum()
    }

    /// Waits for something to do; true when it is a signal.
    fn wait(&self, bell: &mut UnixStream) -> bool {
        let is_close = self.present.is_none();
        let look = if is_close { CLOSE_LOOK } else { LOOK };
        let look = self.role.as_ref().map(|_| look).into_iter().chain(self.pulse.interval()).min();
        let look = look.and_then(|look| Timespec::try_from(look).ok());
        let rings = {
            let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
            fds.extend(
                self.watch().iter().map(|a| PollFd::from_borrowed_fd(a.as_fd(), PollFlags::IN)),
            );
            let _ = poll(&mut fds, look.as_ref());
            !fds[0].revents().is_empty()
        };
        rings && bell.read_exact(&mut [0]).is_ok()
    }

    /// Fits the role to what this machine shows.
    fn follow(&mut self) {
        self.pulse.tell(Instant::now(), self.present.as_ref().map(Daemon::presence));
        self.retired.retain(|daemon| daemon.connections() > 0);
        let Some(mut role) = self.role.take() else { return };
        let step = if self.watch().is_some_and(Arrivals::is_starting) {
            role.arrival(Instant::now())
        } else {
            let sight = self.sight();
            role.look(Instant::now(), sight)
        };
        match step {
            Step::Stay => {}
            Step::MakeRoom => {
                self.retire();
                log::info!("Ollama is being started, leaving its port to it");
            }
            Step::Become(mode) => self.become_(mode, &mut role),
        }
        self.role = Some(role);
    }

    fn retire(&mut self) {
        if let Some(mut daemon) = self.present.take() {
            daemon.retire();
            self.retired.push(daemon);
        }
    }

    fn become_(&mut self, mode: Mode, role: &mut Role) {
        let ollama = self.settings.ollama_url();
        self.retire();
        let why = match mode {
            Mode::Client => format!("Ollama at {ollama} has gone"),
            _ => format!("Ollama answers at {ollama}"),
        };
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.forget();
        }
        match Daemon::start_as(self.settings, mode, &why) {
            Ok(daemon) => self.present = Some(daemon),
            Err(error) => {
                // Tried again with the next look, as whatever fits then.
                log::warn!("cannot become mode={mode}: {error}");
                role.failed(Instant::now());
            }
        }
    }

    /// What Ollama's address shows.
    fn sight(&self) -> Sight {
        let ollama = self.settings.ollama_url();
        let own = self.present.as_ref();
        if own.is_some_and(|own| own.mode() == Mode::Server && own.presence().is_local_up()) {
            return Sight::Answers;
        }
        if self.watch().is_some() {
            return Sight::Nobody; // The port is ours.
        }
        let address = (ollama.host.as_str(), ollama.port).to_socket_addrs();
        let address = address.ok().and_then(|mut addresses| addresses.next());
        let connected = address.map(|address| TcpStream::connect_timeout(&address, ANSWER_TIME));
        match connected {
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Sight::Nobody,
            _ => match ask(self.settings, &ollama, ANSWER_TIME) {
                CheckResult::Healthy { .. } => Sight::Answers,
                _ => Sight::Silent,
            },
        }
    }

    fn stop(mut self, deadline: Instant) -> bool {
        self.retire();
        let mut finished = true;
        for daemon in self.retired {
            finished &= daemon.stop(deadline.saturating_duration_since(Instant::now()));
        }
        finished
    }
}
