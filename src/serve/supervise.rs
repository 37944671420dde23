//! The process from start to end, its signals and its changes of role: each is another daemon,
//! beside which the old one lets its streams finish.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::background::{self, PidFile};
use super::mode::{self, Mode, ask};
use super::role::{LocalOllama, Role, Step};
use super::signals::Signals;
use super::systemd::{Notifier, Watchdog};
use super::{Daemon, ollama_watch::OllamaWatch, start_keeper};
use crate::config::{ModeChoice, OllamaUrl, Settings};
use crate::log::LogWriter;
use crate::net::interfaces::unknown_interfaces;
use crate::net::untrusted_text::printable;
use crate::net::{names, socket};
use crate::system::{failed, keeper::Keeper};
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
pub fn run(settings: &Settings, journal: &LogWriter) -> Result<(), String> {
    let mut signals = Signals::register(settings).map_err(failed("cannot handle signals"))?;
    match serve(settings, journal, &mut signals) {
        // What a signal ends before it is ready hasn't failed.
        Err(error) if signals.stop.load(SeqCst) => {
            log::info!("stopped before it was ready reason={error:?}");
            Ok(())
        }
        ended => ended,
    }
}

fn serve(settings: &Settings, journal: &LogWriter, signals: &mut Signals) -> Result<(), String> {
    let odd = settings.warnings.iter().cloned();
    odd.chain(unknown_interfaces(&settings.interfaces)).for_each(|odd| log::warn!("{odd}"));
    let keeper = start_keeper()?;
    // Watched before the daemon takes Ollama's port, so that no start of Ollama is missed. Without
    // a watch the role never changes, and Ollama's port isn't taken from it.
    let watch = (settings.mode == ModeChoice::Auto)
        .then(|| OllamaWatch::new(settings.state_dir.as_deref(), &keeper));
    let watch = watch.flatten();
    let (mode, why) = mode::choose(settings, &signals.stop)?;
    let role = watch.is_some().then(|| Role::new(mode));
    let watchdog = Watchdog::new(Notifier::from_env(&|name| std::env::var_os(name)));
    let mut supervisor = Supervisor {
        settings,
        role,
        present: None,
        retired: Vec::new(),
        watch,
        advice: None,
        was_server: mode == Mode::Server,
        watchdog,
        keeper,
        stop: Arc::clone(&signals.stop),
    };
    if mode == Mode::Server {
        supervisor.learn();
    } else if settings.mode == ModeChoice::Auto
        && supervisor.watch.is_none()
        && settings.takes_ollamas_port()
    {
        supervisor.say_unseen("this system has no inotify left");
    }
    supervisor.present = Some(Daemon::start_as(settings, mode, &why, &supervisor.keeper, false)?);
    supervisor.advise();
    let pid_file = settings.pid_file.as_deref().map(PidFile::write).transpose();
    let _pid_file = pid_file.map_err(failed("cannot write the pid file"))?;
    supervisor.watchdog.notifier.ready();
    background::detach(journal).map_err(failed("cannot leave the terminal"))?;
    // Where Windows has started it, nothing else says that it is to end.
    let dismissed =
        || settings.at_log_in && settings.pid_file.as_ref().is_some_and(|file| !file.exists());
    while !((supervisor.wait(signals) && signals.stop.load(SeqCst)) || dismissed()) {
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
    let daemons = supervisor.present.iter().chain(&supervisor.retired);
    let connections: usize = daemons.map(Daemon::connections).sum();
    let seconds = drain.as_secs();
    log::info!(
        "stopping, a second signal exits at once connections={connections} drain_s={seconds}"
    );
    let start = Instant::now();
    let mut finished = true;
    supervisor.retire();
    for daemon in supervisor.retired {
        finished &= daemon.stop(drain.saturating_sub(start.elapsed()));
    }
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
    /// What to set, as Ollama's start can't be seen here.
    advice: Option<String>,
    /// Whether this machine shared an Ollama in this run.
    was_server: bool,
    watchdog: Watchdog,
    keeper: Arc<Keeper>,
    /// Set when the process is to stop.
    stop: Arc<AtomicBool>,
}

impl Supervisor<'_> {
    /// The watch on Ollama, while the present daemon has its port.
    fn port_watch(&self) -> Option<&OllamaWatch> {
        let daemon = self.present.as_ref().filter(|daemon| daemon.mode == Mode::Client)?;
        let port = self.settings.ollama_url().port;
        let has_port = daemon.addresses().iter().any(|address| address.port() == port);
        self.watch.as_ref().filter(|_| has_port)
    }

    /// Waits for something to do; true when it is a signal.
    fn wait(&self, signals: &mut Signals) -> bool {
        let look = if self.present.is_none() { CLOSE_LOOK } else { LOOK };
        let look = (self.role.is_some() || self.settings.at_log_in).then_some(look);
        let timeout = look.into_iter().chain(self.watchdog.interval()).min();
        OllamaWatch::wait(self.port_watch(), &signals.arrived, timeout) && signals.take()
    }

    fn follow(&mut self) {
        self.watchdog.report(Instant::now(), self.present.as_ref().map(Daemon::presence));
        self.retired.retain(|daemon| daemon.connections() > 0);
        let Some(mut role) = self.role.take() else { return };
        let has_port = self.port_watch().is_some();
        let watch = self.watch.as_mut().filter(|_| has_port);
        let step = if watch.is_some_and(|watch| watch.is_starting(&self.stop)) {
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
        if self.present.as_ref().is_some_and(|daemon| daemon.mode == Mode::Server) {
            self.learn();
            self.advise();
        }
    }

    /// While Ollama has the port that a client would take: remembers its program, or says what to
    /// do where that can't be seen.
    fn learn(&mut self) {
        let ollama = self.settings.ollama_url();
        let Some(watch) = self.watch.as_mut().filter(|_| self.settings.takes_ollamas_port()) else {
            return;
        };
        match watch.learn(Instant::now(), ollama.port) {
            Some(Ok(())) => self.advice = None,
            // One that has just gone says nothing about where it was.
            Some(Err(_)) if is_absent(&ollama) => watch.learn_soon(),
            Some(Err(reason)) => self.say_unseen(&reason),
            None => {}
        }
    }

    /// Says once what to set where Ollama's start can't be seen.
    fn say_unseen(&mut self, reason: &str) {
        let advice = format!(
            "Ollama's start can't be seen here ({}): once it has been away, it doesn't get port {} \
             back from ollana; start ollana with --mode server",
            printable(reason),
            self.settings.ollama_url().port
        );
        if self.advice.as_ref() != Some(&advice) {
            log::warn!("{advice}");
            self.advice = Some(advice);
        }
    }

    fn advise(&self) {
        self.present.iter().for_each(|daemon| daemon.presence().advise(self.advice.clone()));
    }

    fn retire(&mut self) {
        if let Some(mut daemon) = self.present.take() {
            daemon.retire();
            self.retired.push(daemon);
        }
    }

    fn change_to(&mut self, mode: Mode, role: &mut Role) {
        self.retire();
        let ollama = self.settings.ollama_url();
        let why = match mode {
            Mode::Client => format!("Ollama at {ollama} has gone"),
            _ => format!("Ollama answers at {ollama}"),
        };
        if let Some(watch) = &mut self.watch {
            watch.restart();
        }
        if mode == Mode::Server {
            self.learn();
        }
        self.was_server |= mode == Mode::Server;
        match Daemon::start_as(self.settings, mode, &why, &self.keeper, self.was_server) {
            Ok(daemon) => {
                self.present = Some(daemon);
                self.advise();
            }
            Err(error) => {
                // A later look tries again, in the mode that fits then.
                log::warn!("cannot become mode={mode}: {error}");
                role.failed(Instant::now());
            }
        }
    }

    fn look(&self) -> LocalOllama {
        let ollama = self.settings.ollama_url();
        let own = self.present.as_ref();
        if own.is_some_and(|own| own.mode == Mode::Server && own.presence().is_local_up()) {
            return LocalOllama::Answers;
        }
        if self.port_watch().is_some() {
            return LocalOllama::Absent; // The port is ours.
        }
        let start = Instant::now();
        if is_absent(&ollama) {
            return LocalOllama::Absent;
        }
        let left = ANSWER_TIME.saturating_sub(start.elapsed());
        let answers = || matches!(ask(self.settings, &ollama, left), CheckResult::Healthy { .. });
        if !left.is_zero() && answers() { LocalOllama::Answers } else { LocalOllama::Silent }
    }
}

/// Whether no program has Ollama's port.
fn is_absent(ollama: &OllamaUrl) -> bool {
    let addresses = names::resolve(&ollama.host, ollama.port, ANSWER_TIME);
    let connected = addresses.map(|all| socket::connect(all[0], None, ANSWER_TIME));
    matches!(connected, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}
