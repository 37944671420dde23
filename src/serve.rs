//! Wiring: detects the mode, starts every thread, and ends them in the right order.
//!
//! ```text
//!  start:  identity ─► listeners ─► Manager + checkers + ticker ─► proxy ─► discovery
//!  stop:   acceptors ─► discovery (goodbye) ─► streams finish or are cut ─► ticker ─► Manager
//! ```

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::HeaderValue;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::{ModeChoice, OLLAMA_PORT, OllamaUrl, SERVER_PORT, ServerName, Settings};
use crate::discovery::{Client, ClientSetup, Responder, ServerSetup};
use crate::downstream::Budget;
use crate::exchange::{Context, Side};
use crate::guard::HostRule;
use crate::headers;
use crate::liveness::{Checkers, Ticker, job_queue};
use crate::manager::{self, Presence};
use crate::pool::{CheckResult, Pool, Rules, Target};
use crate::proxy::Proxy;
use crate::registry::Registry;
use crate::socket;
use crate::state;
use crate::upstream::{Check, Upstream};

/// How long the local Ollama may take to answer at start-up.
const DETECTION_TIME: Duration = Duration::from_secs(2);

/// What this daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Uses the LAN's servers.
    Client,
    /// Shares the local Ollama.
    Server,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Client => "client",
            Mode::Server => "server",
        })
    }
}

/// Why a daemon can't start; exit code 1.
#[derive(Debug)]
pub enum StartError {
    /// An HTTP address can't be had.
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
        /// What to do.
        hint: String,
    },
    /// The discovery's port can't be had.
    Discovery {
        /// Which.
        port: u16,
        /// Why.
        error: io::Error,
    },
    /// Something else of the system.
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { address, error, hint } => {
                write!(f, "cannot listen on {address}: {} ({hint})", plain(error))
            }
            StartError::Discovery { port, error } => write!(
                f,
                "cannot listen on UDP port {port}: {} (is another ollana server running here? \
                 try --discovery-port N)",
                plain(error)
            ),
            StartError::System { what, error } => write!(f, "cannot {what}: {error}"),
        }
    }
}

fn plain(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "address in use".to_owned(),
        ErrorKind::AddrNotAvailable => "not an address of this machine".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System { what, error }
}

/// A running daemon. Dropping it ends it at once; [`stop`](Self::stop) lets streams finish.
pub struct Daemon {
    mode: Mode,
    proxy: Proxy,
    discovery: Discovery,
    ticker: Option<Ticker>,
    manager: Option<manager::Handle>,
    checkers: Option<Checkers>,
    presence: Arc<Presence>,
}

enum Discovery {
    Off,
    Client { _threads: Client },
    Server(Responder),
}

impl Daemon {
    /// Detects the mode and starts everything.
    ///
    /// # Errors
    /// [`StartError`] says what can't be had and what to do.
    pub fn start(settings: &Settings) -> Result<Daemon, StartError> {
        raise_descriptor_limit();
        let ollama = settings.ollama_url();
        let (mode, why) = choose_mode(settings, &ollama);
        let listeners = listen(settings, mode, &ollama)?;
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("read a listener's address"))?;
        let instance = u32::from_ne_bytes(state::random().map_err(system("get random bytes"))?);
        let hostname = host_name();

        let (jobs, job_receiver) = job_queue();
        let pool = new_pool(settings, mode, &ollama, instance);
        let patience = manager::Patience {
            expected: settings.timing.wait_timeout,
            busy: settings.timing.queue_timeout,
        };
        let manager =
            manager::Handle::start(pool, jobs, patience).map_err(system("start the manager"))?;
        let mailbox = manager.mailbox();
        let presence = manager.presence();
        let local = (mode == Mode::Server).then_some(&ollama);
        let checkers = Checkers::start(&job_receiver, &mailbox, &settings.timing, local)
            .map_err(system("start the checkers"))?;
        mailbox.offer(crate::pool::Input::Tick);
        let ticker = Ticker::start(mailbox.clone()).map_err(system("start the ticker"))?;

        let limits = &settings.limits;
        let registry =
            Arc::new(Registry::new(limits.max_connections, limits.max_connections_per_source));
        let names = settings.hosts.iter().cloned().chain([hostname.to_ascii_lowercase()]);
        let context = Context {
            mailbox: mailbox.clone(),
            via: headers::via_value(instance),
            presence: Arc::clone(&presence),
            models_dir: local.and_then(|_| state::models_dir()),
            side: match mode {
                Mode::Client => Side::Client,
                Mode::Server => Side::Server,
            },
            own_name: local.and_then(|_| HeaderValue::from_str(&hostname).ok()),
            prefix: local.map(|url| url.prefix.clone()).unwrap_or_default(),
            hosts: HostRule::new(names),
            timing: settings.timing.clone(),
            limits: limits.clone(),
            budget: Budget::new(limits.replay_budget),
            registry,
        };
        let places = state::private_places(settings.state_dir.as_deref());
        let proxy = Proxy::start(context, listeners, &places).map_err(system("start the proxy"))?;
        let discovery = start_discovery(
            settings,
            mode,
            &addresses,
            instance,
            hostname,
            &mailbox,
            Arc::clone(&presence),
        )?;
        let daemon = Daemon {
            mode,
            proxy,
            discovery,
            ticker: Some(ticker),
            manager: Some(manager),
            checkers: Some(checkers),
            presence,
        };
        daemon.announce(&why, settings);
        Ok(daemon)
    }

    fn announce(&self, why: &str, settings: &Settings) {
        let listen: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let discovery = match (&self.discovery, self.discovery_address()) {
            (Discovery::Off, _) => "off".to_owned(),
            (_, Some(address)) => format!("{address}/udp"),
            (_, None) => format!("to port {}/udp", settings.discovery_port),
        };
        log::info!(
            "ready mode={} why={why:?} listen={} discovery={discovery}",
            self.mode,
            listen.join(",")
        );
    }

    /// Client or server.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where the proxy listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.proxy.addresses()
    }

    /// Where the discovery answers, in server mode.
    pub fn discovery_address(&self) -> Option<SocketAddr> {
        match &self.discovery {
            Discovery::Server(responder) => Some(responder.address()),
            _ => None,
        }
    }

    /// Whether a backend is ready, and what it is like.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Client connections now.
    pub fn connections(&self) -> usize {
        self.proxy.connections()
    }

    /// Accepts no more, says goodbye, lets streams finish for up to `drain`, then cuts them. True
    /// if none was cut. Every thread of ours has ended when it returns.
    pub fn stop(mut self, drain: Duration) -> bool {
        self.end(drain)
    }

    fn end(&mut self, drain: Duration) -> bool {
        self.proxy.stop_accepting();
        self.discovery = Discovery::Off;
        let finished = self.proxy.finish(drain);
        self.ticker = None;
        self.manager = None;
        if let Some(checkers) = self.checkers.take() {
            checkers.join();
        }
        finished
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.manager.is_some() {
            self.end(Duration::ZERO);
        }
    }
}

/// Runs a daemon until SIGINT or SIGTERM; a second signal exits at once.
///
/// # Errors
/// When it can't be started.
pub fn run(settings: &Settings) -> Result<(), StartError> {
    let stopping = Arc::new(AtomicBool::new(false));
    let (mut bell, handler) = UnixStream::pair().map_err(system("handle signals"))?;
    for signal in [SIGTERM, SIGINT] {
        let flag = Arc::clone(&stopping);
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag)
            .map_err(system("handle signals"))?;
        let bell = handler.try_clone().map_err(system("handle signals"))?;
        signal_hook::low_level::pipe::register(signal, bell).map_err(system("handle signals"))?;
    }
    let daemon = Daemon::start(settings)?;
    while let Err(error) = bell.read_exact(&mut [0]) {
        log::debug!("waiting for a signal: {error}");
    }
    stopping.store(true, SeqCst);
    let drain = settings.timing.drain_timeout;
    log::info!(
        "stopping connections={} drain_s={} (a second signal exits at once)",
        daemon.connections(),
        drain.as_secs()
    );
    let start = Instant::now();
    let finished = daemon.stop(drain);
    log::info!("stopped cut={} after_ms={}", !finished, start.elapsed().as_millis());
    Ok(())
}

/// The mode and, for people, the reason.
fn choose_mode(settings: &Settings, ollama: &OllamaUrl) -> (Mode, String) {
    match settings.mode {
        ModeChoice::Client => return (Mode::Client, "asked for".to_owned()),
        ModeChoice::Server => return (Mode::Server, format!("asked for, sharing {ollama}")),
        ModeChoice::Auto => {}
    }
    match ask_ollama(settings, ollama) {
        CheckResult::Healthy { version, .. } => {
            (Mode::Server, format!("Ollama {version} answers at {ollama}"))
        }
        CheckResult::Refused(reason) | CheckResult::Silent(reason) => {
            (Mode::Client, format!("no Ollama at {ollama}: {reason}"))
        }
        CheckResult::Void => (Mode::Client, format!("{ollama} could not be asked")),
    }
}

fn ask_ollama(settings: &Settings, ollama: &OllamaUrl) -> CheckResult {
    let target = Target::Name(ServerName { host: ollama.host.clone(), port: ollama.port });
    let check = Check {
        target: &target,
        local: Some(ollama),
        wants_inventory: false,
        timeout: DETECTION_TIME,
    };
    check.run(&Upstream::new(&settings.timing))
}

fn new_pool(settings: &Settings, mode: Mode, ollama: &OllamaUrl, seed: u32) -> Pool {
    let rules = Rules {
        health_interval: settings.timing.health_interval,
        health_timeout: settings.timing.health_timeout,
        rise: settings.limits.rise,
        fall: settings.limits.fall,
        max_servers: settings.limits.max_servers,
        inventories: mode == Mode::Client,
        max_in_flight: settings.limits.max_in_flight,
        pins: settings.pins.clone(),
        bans: settings.bans.clone(),
        preferred: settings.preferred.clone(),
    };
    let mut pool = Pool::new(rules, u64::from(seed));
    let now = Instant::now();
    match mode {
        Mode::Server => {
            let local = ServerName { host: ollama.host.clone(), port: ollama.port };
            pool.add_local(now, local);
        }
        Mode::Client => {
            settings.servers.iter().for_each(|server| pool.add_named(now, server.clone()));
        }
    }
    pool
}

/// Binds the given addresses, or the mode's own. On a machine without IPv6, [::1] is left out.
fn listen(
    settings: &Settings,
    mode: Mode,
    ollama: &OllamaUrl,
) -> Result<Vec<TcpListener>, StartError> {
    let own: &[SocketAddr] = match mode {
        Mode::Client => &[
            SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), OLLAMA_PORT),
            SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), OLLAMA_PORT),
        ],
        Mode::Server => {
            &[SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVER_PORT)]
        }
    };
    let (wanted, are_own) =
        if settings.listen.is_empty() { (own, true) } else { (&settings.listen[..], false) };
    let mut listeners = Vec::new();
    for address in wanted {
        match socket::listen(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error)
                if are_own && address.is_ipv6() && !listeners.is_empty() && !is_taken(&error) =>
            {
                log::debug!("no IPv6 loopback here: {error}");
            }
            Err(error) => {
                let hint = if is_taken(&error) {
                    who_holds(settings, mode, *address, ollama)
                } else {
                    "choose another with --listen ADDR:PORT".to_owned()
                };
                return Err(StartError::Listen { address: *address, error, hint });
            }
        }
    }
    Ok(listeners)
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrInUse
}

/// Asks whoever holds an address who it is, to say what to do.
fn who_holds(settings: &Settings, mode: Mode, address: SocketAddr, ollama: &OllamaUrl) -> String {
    let host = if address.ip().is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        address.ip().to_string()
    };
    let url = OllamaUrl { host, port: address.port(), prefix: String::new() };
    match (ask_ollama(settings, &url), mode) {
        (CheckResult::Healthy { .. }, Mode::Client) => {
            format!("Ollama is running there; share it with --mode server, which serves {ollama}")
        }
        (CheckResult::Healthy { .. }, Mode::Server) => {
            "Ollama is running there; choose another address with --listen ADDR:PORT".to_owned()
        }
        (CheckResult::Refused(reason), _) if reason.contains("ollana") => {
            "another ollana is running there already; a second one needs --listen ADDR:PORT"
                .to_owned()
        }
        _ => "another program has it, see ss -ltnp; choose another with --listen ADDR:PORT"
            .to_owned(),
    }
}

fn start_discovery(
    settings: &Settings,
    mode: Mode,
    addresses: &[SocketAddr],
    instance: u32,
    name: String,
    mailbox: &manager::Mailbox,
    presence: Arc<Presence>,
) -> Result<Discovery, StartError> {
    let port = settings.discovery_port;
    if port == 0 {
        return Ok(Discovery::Off);
    }
    match mode {
        Mode::Client => Client::start(ClientSetup {
            port,
            interval: settings.timing.probe_interval,
            interfaces: settings.interfaces.clone(),
            mailbox: mailbox.clone(),
        })
        .map(|client| Discovery::Client { _threads: client })
        .map_err(system("start the discovery")),
        Mode::Server => {
            // With port 0 the identity goes with the process, like the port itself.
            let asked = settings.listen.first().map_or(SERVER_PORT, SocketAddr::port);
            let identity = state::identity(settings.state_dir.as_deref(), asked)
                .map_err(system("get random bytes"))?;
            Responder::start(ServerSetup {
                port,
                http: addresses.to_vec(),
                identity,
                instance,
                name,
                legacy: settings.legacy,
                presence,
            })
            .map(Discovery::Server)
            .map_err(|error| StartError::Discovery { port, error })
        }
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    name.chars().filter(|c| c.is_ascii_graphic()).take(46).collect()
}

/// A connection costs two descriptors, and the usual soft limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it isn't allowed, the present limit holds and shortage is handled.
    let _ = setrlimit(Resource::Nofile, limit);
}
