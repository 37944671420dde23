//! Wiring: detects the mode, starts every thread, and ends them in the right order.
//!
//! ```text
//!  start:  identity ─► listeners ─► Manager + checkers + ticker ─► proxy ─► discovery
//!  stop:   acceptors ─► discovery (goodbye) ─► streams finish or are cut ─► ticker ─► Manager
//! ```

pub mod background;
mod listeners;
mod mode;
mod ollama_watch;
mod role;
pub mod state_dir;
mod supervise;
pub mod systemd;
mod watchdog;

use crate::system;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::access::host::HostRule;
use crate::config::{OllamaUrl, Settings};
use crate::discovery::{Client, ClientSetup, Responder, ServerSetup};
use crate::http::fields;
use crate::manager::liveness::{Checkers, Ticker, job_queue};
use crate::manager::pool::{Input, Pool, Rules};
use crate::manager::store;
use crate::manager::wake::Wake;
use crate::manager::{self, About, Mailbox, Presence};
use crate::pairing::identity::Identity;
use crate::pairing::keyring::{Keyring, KeysError};
use crate::proxy::Budget;
use crate::proxy::Proxy;
use crate::proxy::connections::Connections;
use crate::proxy::exchange::{Context, Side};
use crate::system::THREAD_STACK;
use http::HeaderValue;

pub use mode::Mode;
pub(crate) use mode::ask;
pub use supervise::run;

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
    /// The keys can't be used.
    Keys(KeysError),
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
            StartError::Keys(error) => write!(f, "{error}"),
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
    /// The client's first.
    proxies: Vec<Proxy>,
    finder: Option<Client>,
    responder: Option<Responder>,
    ticker: Option<Ticker>,
    manager: Option<manager::Handle>,
    checkers: Option<Checkers>,
    presence: Arc<Presence>,
}

/// What the parts of a daemon have in common.
struct Common<'a> {
    settings: &'a Settings,
    mode: Mode,
    ollama: OllamaUrl,
    instance: u32,
    identity: Identity,
    hostname: String,
    mailbox: Mailbox,
    presence: Arc<Presence>,
    keyring: Arc<Keyring>,
}

impl Daemon {
    /// Detects the mode and starts everything.
    ///
    /// # Errors
    /// [`StartError`] says what can't be had and what to do.
    pub fn start(settings: &Settings) -> Result<Daemon, StartError> {
        Self::start_unless(settings, &AtomicBool::new(false))
    }

    /// The same, but `stopping` ends the wait for an Ollama that is about to start.
    fn start_unless(settings: &Settings, stopping: &AtomicBool) -> Result<Daemon, StartError> {
        let (mode, why) = mode::choose(settings, &settings.ollama_url(), stopping);
        Self::start_as(settings, mode, &why)
    }

    /// The same in this mode.
    fn start_as(settings: &Settings, mode: Mode, why: &str) -> Result<Daemon, StartError> {
        let ollama = settings.ollama_url();
        let client_listeners =
            if mode.is_client() { listeners::client(settings, mode, &ollama)? } else { Vec::new() };
        let server_listeners =
            if mode.is_server() { listeners::server(settings, mode)? } else { Vec::new() };
        let instance = u32::from_ne_bytes(system::random().map_err(system("get random bytes"))?);
        let dir = settings.state_dir.as_deref();
        let identity = identity(&server_listeners, dir).map_err(system("get random bytes"))?;

        let key_file = settings.key_file.as_deref();
        let keyring =
            Keyring::open(identity, dir, key_file, settings.unpaired).map_err(StartError::Keys)?;
        let keyring = Arc::new(keyring);

        let (jobs, job_receiver) = job_queue();
        let patience = manager::Patience {
            expected: settings.timing.wait_timeout,
            busy: settings.timing.queue_timeout,
            wake: (!settings.wake.is_empty()).then_some(settings.timing.wake_timeout),
        };
        let wake = patience.wake.map(|_| Wake {
            sleepers: settings.wake.clone(),
            interfaces: settings.interfaces.clone(),
            dir: settings.state_dir.clone(),
        });
        let pool = new_pool(settings, mode, &ollama, instance);
        let manager =
            manager::Handle::start(pool, jobs, patience).map_err(system("start the manager"))?;
        let common = Common {
            settings,
            mode,
            instance,
            identity,
            hostname: host_name(),
            mailbox: manager.mailbox(),
            presence: manager.presence(),
            keyring,
            ollama,
        };
        let mailbox = &common.mailbox;
        let local = mode.is_server().then_some(&common.ollama);
        let memory = dir.filter(|_| mode.is_client() && settings.discovery_port != 0);
        let checkers = Checkers::start(
            &job_receiver,
            mailbox,
            &settings.timing,
            &common.keyring,
            local,
            memory,
            wake.as_ref(),
        )
        .map_err(system("start the checkers"))?;
        mailbox.offer(Input::Tick);
        let ticker = Ticker::start(mailbox.clone(), Arc::clone(&common.keyring))
            .map_err(system("start the ticker"))?;
        let mut proxies = Vec::new();
        for (side, listeners) in
            [(Side::Client, client_listeners), (Side::Server, server_listeners)]
        {
            if !listeners.is_empty() {
                proxies.push(common.start_proxy(side, listeners)?);
            }
        }
        let mut daemon = Daemon {
            mode,
            proxies,
            finder: None,
            responder: None,
            ticker: Some(ticker),
            manager: Some(manager),
            checkers: Some(checkers),
            presence: Arc::clone(&common.presence),
        };
        // A failure from here on drops the daemon, which ends what was started.
        daemon.responder = common.start_responder(&daemon)?;
        daemon.finder = common.start_finder()?;
        daemon.announce(why, settings);
        Ok(daemon)
    }

    fn announce(&self, why: &str, settings: &Settings) {
        let listen: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let discovery = match self.discovery_address() {
            Some(address) => format!("{address}/udp"),
            None if self.finder.is_some() => format!("to port {}/udp", settings.discovery_port),
            None => "off".to_owned(),
        };
        self.presence.describe(About {
            name: host_name(),
            mode: self.mode.to_string(),
            why: why.to_owned(),
            listen: self.addresses(),
            discovery: discovery.clone(),
            connections: self.proxies.iter().map(|proxy| Arc::clone(proxy.connections())).collect(),
            timing: settings.timing.clone(),
            started: Instant::now(),
        });
        log::info!(
            "ready mode={} why={why:?} listen={} discovery={discovery}",
            self.mode,
            listen.join(",")
        );
    }

    /// Client, server or both.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where the proxies listen, the client's first.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.proxies.iter().flat_map(|proxy| proxy.addresses().iter().copied()).collect()
    }

    /// Where the discovery answers, if it does.
    pub fn discovery_address(&self) -> Option<SocketAddr> {
        self.responder.as_ref().map(Responder::address)
    }

    /// Whether a backend is ready, and what it is like.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Client connections now.
    pub fn connections(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.connections().len()).sum()
    }

    /// Accepts no more, says goodbye, lets streams finish for up to `drain`, then cuts them. True
    /// if none was cut. Every thread of ours has ended when it returns.
    pub fn stop(mut self, drain: Duration) -> bool {
        self.end(drain)
    }

    /// Accepts no more and says goodbye; streams go on.
    fn retire(&mut self) {
        self.proxies.iter_mut().for_each(Proxy::stop_accepting);
        self.responder = None;
        self.finder = None;
    }

    fn end(&mut self, drain: Duration) -> bool {
        self.retire();
        let deadline = Instant::now() + drain;
        let mut finished = true;
        for proxy in &mut self.proxies {
            finished &= proxy.finish(deadline.saturating_duration_since(Instant::now()));
        }
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

fn new_pool(settings: &Settings, mode: Mode, ollama: &OllamaUrl, seed: u32) -> Pool {
    let rules = Rules {
        health_interval: settings.timing.health_interval,
        health_timeout: settings.timing.health_timeout,
        rise: settings.limits.rise,
        fall: settings.limits.fall,
        max_servers: settings.limits.max_servers,
        inventories: mode.is_client(),
        max_in_flight: settings.limits.max_in_flight,
        pins: settings.pins.clone(),
        bans: settings.bans.clone(),
        preferred: settings.preferred.clone(),
    };
    let mut pool = Pool::new(rules, u64::from(seed));
    let now = Instant::now();
    if mode.is_server() {
        pool.add_local(now, ollama.server());
    }
    if mode.is_client() {
        settings.servers.iter().for_each(|server| pool.add_named(now, server.clone()));
        let dir = settings.state_dir.as_deref().filter(|_| settings.discovery_port != 0);
        pool.recall(now, dir.map(store::recall).unwrap_or_default());
    }
    pool
}

/// The identity goes with the port, so that two servers on one machine are two.
fn identity(server: &[TcpListener], dir: Option<&Path>) -> io::Result<Identity> {
    match server.first().map(TcpListener::local_addr) {
        // Ports of the ephemeral range are another's at the next start.
        Some(Ok(address)) if address.port() < 32768 => state_dir::identity(dir, address.port()),
        _ => state_dir::identity(None, 0),
    }
}

impl Common<'_> {
    fn start_proxy(&self, side: Side, listeners: Vec<TcpListener>) -> Result<Proxy, StartError> {
        let settings = self.settings;
        let limits = &settings.limits;
        let most = affordable_connections(limits.max_connections);
        let connections = Arc::new(Connections::new(most, limits.max_connections_per_source));
        let names = settings.hosts.iter().cloned().chain([self.hostname.to_ascii_lowercase()]);
        let is_server = side == Side::Server;
        let own_name = HeaderValue::from_str(&self.hostname).ok();
        let context = Context {
            mailbox: self.mailbox.clone(),
            presence: Arc::clone(&self.presence),
            models_dir: state_dir::models_dir().filter(|_| is_server),
            via: fields::via_value(self.instance),
            side,
            own_name: own_name.filter(|_| is_server),
            identity: HeaderValue::from_str(&self.identity.to_string()).ok(),
            prefix: self.ollama.prefix.clone(),
            wakes: !settings.wake.is_empty(),
            hosts: HostRule::new(names),
            status_from: settings.status_from.clone(),
            policy: settings.policy,
            origins: settings.origins.clone(),
            reach: settings.reach.clone(),
            machine: self.hostname.clone(),
            timing: settings.timing.clone(),
            limits: limits.clone(),
            budget: Budget::new(limits.replay_budget),
            keyring: Arc::clone(&self.keyring),
            connections,
        };
        let places = state_dir::private_places(settings.state_dir.as_deref());
        Proxy::start(context, listeners, &places).map_err(system("start the proxy"))
    }

    fn start_responder(&self, daemon: &Daemon) -> Result<Option<Responder>, StartError> {
        let port = self.settings.discovery_port;
        if port == 0 || !self.mode.is_server() {
            return Ok(None);
        }
        let server = daemon.proxies.last().map(Proxy::addresses).unwrap_or_default();
        Responder::start(ServerSetup {
            port,
            http: server.to_vec(),
            identity: self.identity,
            instance: self.instance,
            name: self.hostname.clone(),
            legacy: self.settings.legacy,
            is_managed: self.settings.policy.manage,
            reach: self.settings.reach.clone(),
            presence: Arc::clone(&self.presence),
            keyring: Arc::clone(&self.keyring),
        })
        .map(Some)
        .map_err(|error| StartError::Discovery { port, error })
    }

    fn start_finder(&self) -> Result<Option<Client>, StartError> {
        let port = self.settings.discovery_port;
        if port == 0 || !self.mode.is_client() {
            return Ok(None);
        }
        Client::start(ClientSetup {
            port,
            interval: self.settings.timing.probe_interval,
            interfaces: self.settings.interfaces.clone(),
            identity: self.identity,
            mailbox: self.mailbox.clone(),
            keyring: Arc::clone(&self.keyring),
        })
        .map(Some)
        .map_err(system("start the discovery"))
    }
}

/// What this machine calls itself, as far as it can be printed.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    name.chars().filter(|c| c.is_ascii_graphic()).take(46).collect()
}

/// What a connection takes: its own descriptor and its upstream's.
const DESCRIPTORS: u64 = 2;
/// Descriptors for everything else.
const SPARE_DESCRIPTORS: u64 = 64;
/// Address space that a connection takes besides its thread's stack, and what all else takes.
const CONNECTION_MEMORY: u64 = 128 << 10;
const SPARE_MEMORY: u64 = 64 << 20;

/// As many connections as this process may have descriptors and address space for: one too many is
/// turned away with 503, whereas memory that runs out ends a process.
fn affordable_connections(wanted: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    // Where that isn't allowed, the present limit holds.
    let _ = setrlimit(Resource::Nofile, descriptors);
    let by_descriptors = getrlimit(Resource::Nofile)
        .current
        .map(|limit| limit.saturating_sub(SPARE_DESCRIPTORS) / DESCRIPTORS);
    let by_memory = getrlimit(Resource::As).current.map(|limit| {
        limit.saturating_sub(SPARE_MEMORY) / (THREAD_STACK as u64 + CONNECTION_MEMORY)
    });
    let most = [by_descriptors, by_memory].into_iter().flatten().min().unwrap_or(u64::MAX).max(4);
    if most < wanted as u64 {
        log::warn!("limits of this process allow fewer connections wanted={wanted} max={most}");
    }
    usize::try_from(most).map_or(wanted, |most| wanted.min(most))
}
