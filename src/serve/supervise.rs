//! The process from start to end, and its changes of role.
//!
//! A change of role is another daemon: the old one leaves its ports and lets its streams finish
//! while the new one serves.

use std::io::{ErrorKind, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::background::{self, PidFile};
use super::error::system;
use super::mode::ask;
use super::ollama_watch::OllamaWatch;
use super::role::{LocalOllama, Role, Step};
use super::signals::Signals;
use super::systemd::Notifier;
use super::watchdog::Watchdog;
use super::{Daemon, Mode, StartError};
use crate::config::{ModeChoice, Settings};
use crate::log::LogWriter;
use crate::upstream::CheckResult;

/// Signals this close together are one.
const SAME_SIGNAL: Duration = Duration::from_millis(5);
/// How often Ollama's address is looked at, and how often while its port is left free for it.
const LOOK: Duration = Duration::from_millis(1000);
const CLOSE_LOOK: Duration = Duration::from_millis(100);
/// How long Ollama may take to answer such a look.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Runs a daemon until SIGINT or SIGTERM; a second signal exits at once. SIGHUP opens the log file
/// anew.
///
/// # Errors
/// When it can't be started.
pub fn run(settings: &Settings, journal: &LogWriter) -> Result<(), StartError> {
    let mut signals = Signals::register(settings).map_err(system("handle signals"))?;
    // Watched before the daemon takes Ollama's port, so that no start of Ollama is missed. Without
    // a watch the role never changes, and Ollama's port isn't taken from it.
    let watch = match settings.mode {
        ModeChoice::Auto => OllamaWatch::new(),
        _ => None,
    };
    let daemon = Daemon::start_unless(settings, &signals.stop)?;
    let pid_file = settings.pid_file.as_deref().map(PidFile::write).transpose();
    let _pid_file = pid_file.map_err(system("write the pid file"))?;
    let watchdog = Watchdog::new(Notifier::from_env(&|name| std::env::var_os(name)));
    watchdog.notifier.ready();
    background::detach(journal).map_err(system("leave the terminal"))?;
    let mut supervisor = Supervisor {
        settings,
        role: watch.is_some().then(|| Role::new(daemon.mode())),
        present: Some(daemon),
        retired: Vec::new(),
        watch,
        watchdog,
    };
    while !(supervisor.wait(&mut signals) && signals.stop.load(SeqCst)) {
        if signals.hangup.swap(false, SeqCst) {
            journal.reopen();
        }
        supervisor.follow();
    }
    supervisor.watchdog.notifier.stopping();
    // timeout(1) signals its child and then its child's group, which is one wish, not two.
    thread::sleep(SAME_SIGNAL);
    signals.exit_at_next.store(true, SeqCst);
    let drain = settings.timing.drain_timeout;
    log::info!(
        "stopping, a second signal exits at once connections={} drain_s={}",
        supervisor.connections(),
        drain.as_secs()
    );
    let start = Instant::now();
    let finished = supervisor.stop(start + drain);
    log::info!("stopped cut={} after_ms={}", !finished, start.elapsed().as_millis());
    Ok(())
}

struct Supervisor<'a> {
    settings: &'a Settings,
    /// The daemon of the present role; `None` while Ollama's port is left free.
    present: Option<Daemon>,
    /// Daemons of earlier roles that have streams to finish.
    retired: Vec<Daemon>,
    /// `None` where the mode was asked for, and stays.
    role: Option<Role>,
    watch: Option<OllamaWatch>,
    watchdog: Watchdog,
}

impl Supervisor<'_> {
    /// The watch on Ollama, while the present daemon has its port.
    fn port_watch(&self) -> Option<&OllamaWatch> {
        let daemon = self.present.as_ref().filter(|daemon| daemon.mode() == Mode::Client)?;
        let port = self.settings.ollama_url().port;
        let has_port = daemon.addresses().iter().any(|address| address.port() == port);
        self.watch.as_ref().filter(|_| has_port)
    }

    fn connections(&self) -> usize {
        self.present.iter().chain(&self.retired).map(Daemon::connections).sum()
    }

    /// Waits for something to do; true when it is a signal.
    fn wait(&self, signals: &mut Signals) -> bool {
        let look = if self.present.is_none() { CLOSE_LOOK } else { LOOK };
        let look = self.role.as_ref().map(|_| look);
        let timeout = look.into_iter().chain(self.watchdog.interval()).min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![PollFd::new(&signals.arrived, PollFlags::IN)];
        fds.extend(self.port_watch().map(|watch| PollFd::new(watch, PollFlags::IN)));
        let _ = poll(&mut fds, timeout.as_ref());
        let is_signal = !fds[0].revents().is_empty();
        is_signal && signals.arrived.read_exact(&mut [0]).is_ok()
    }

    /// Fits the role to what this machine shows.
    fn follow(&mut self) {
        self.watchdog.report(Instant::now(), self.present.as_ref().map(Daemon::presence));
        self.retired.retain(|daemon| daemon.connections() > 0);
        let Some(mut role) = self.role.take() else { return };
        let step = if self.port_watch().is_some_and(OllamaWatch::is_starting) {
            role.ollama_starts(Instant::now())
        } else {
            let ollama = self.look();
            role.observe(Instant::now(), ollama)
        };
        match step {
            Step::Stay => {}
            Step::FreePort => {
                self.retire();
                log::info!("Ollama is being started, leaving its port to it");
            }
            Step::Become(mode) => self.change_to(mode, &mut role),
        }
        self.role = Some(role);
    }

    fn retire(&mut self) {
        if let Some(mut daemon) = self.present.take() {
            daemon.retire();
            self.retired.push(daemon);
        }
    }

    fn change_to(&mut self, mode: Mode, role: &mut Role) {
        let ollama = self.settings.ollama_url();
        self.retire();
        let why = match mode {
            Mode::Client => format!("Ollama at {ollama} has gone"),
            _ => format!("Ollama answers at {ollama}"),
        };
        if let Some(watch) = &mut self.watch {
            watch.restart();
        }
        match Daemon::start_as(self.settings, mode, &why) {
            Ok(daemon) => self.present = Some(daemon),
            Err(error) => {
                // A later look tries again, in the mode that fits then.
                log::warn!("cannot become mode={mode}: {error}");
                role.failed(Instant::now());
            }
        }
    }

    /// What Ollama's address shows.
    fn look(&self) -> LocalOllama {
        let ollama = self.settings.ollama_url();
        let own = self.present.as_ref();
        if own.is_some_and(|own| own.mode() == Mode::Server && own.presence().is_local_up()) {
            return LocalOllama::Answers;
        }
        if self.port_watch().is_some() {
            return LocalOllama::Absent; // The port is ours.
        }
        let address = (ollama.host.as_str(), ollama.port).to_socket_addrs();
        let address = address.ok().and_then(|mut addresses| addresses.next());
        let connected = address.map(|address| TcpStream::connect_timeout(&address, ANSWER_TIME));
        match connected {
            Some(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => LocalOllama::Absent,
            _ => match ask(self.settings, &ollama, ANSWER_TIME) {
                CheckResult::Healthy { .. } => LocalOllama::Answers,
                _ => LocalOllama::Silent,
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
