//! Runs the daemon: chooses its mode, starts every thread, follows the local Ollama from role to
//! role, and ends the threads in the right order. [`run`] is the process, [`Daemon`] one role of it.
//!
//! This room only wires the others: it knows no HTTP, no datagram and no rule of choice.
//!
//! ```text
//!  start:  listeners ─► identity and keys ─► Manager, checkers, ticker ─► proxies ─► discovery
//!  stop:   acceptors ─► discovery (goodbye) ─► streams finish or are cut ─► ticker
//!          ─► checks that wait ─► Manager; checks under way are left alone
//! ```

mod awake;
pub mod background;
mod listeners;
mod mode;
mod neighbours;
mod ollama_watch;
mod parts;
mod role;
mod signals;
pub(crate) mod state_dir;
mod supervise;
mod systemd;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::discovery::{Client, Responder};
use crate::manager::liveness::{Checkers, Ticker};
use crate::manager::{self, About, Presence};
use crate::proxy::{Proxy, exchange::Side};
use crate::system::{failed, keeper::Keeper};

use awake::Awake;
use mode::Mode;
pub(crate) use mode::ask;
use parts::Parts;
pub(crate) use state_dir::host_name;
pub use supervise::run;

fn start_keeper() -> Result<Arc<Keeper>, String> {
    Keeper::start().map_err(failed("cannot start the thread that writes files"))
}

/// A running daemon. Dropping it ends it at once; [`stop`](Self::stop) lets streams finish.
pub struct Daemon {
    mode: Mode,
    /// The client's first.
    proxies: Vec<Proxy>,
    discovery: Option<Client>,
    responder: Option<Responder>,
    /// Tells that this machine, which was a server, has no Ollama any more.
    away: Option<Responder>,
    ticker: Option<Ticker>,
    manager: Option<manager::Handle>,
    checkers: Option<Checkers>,
    awake: Option<Awake>,
    presence: Arc<Presence>,
}

impl Daemon {
    /// Chooses the mode and starts everything. The error says what failed and what to do.
    pub fn start(settings: &Settings) -> Result<Daemon, String> {
        let (mode, why) = mode::choose(settings, &AtomicBool::new(false))?;
        Self::start_as(settings, mode, &why, &start_keeper()?, false)
    }

    fn start_as(
        settings: &Settings,
        mode: Mode,
        why: &str,
        keeper: &Arc<Keeper>,
        was_server: bool,
    ) -> Result<Daemon, String> {
        let client = listeners::client(settings, mode)?;
        let server = listeners::server(settings, mode)?;
        let (parts, manager, jobs) = Parts::start(settings, mode, &server, keeper)?;
        // A failure from here on drops the daemon, which ends what was started.
        let mut daemon = Daemon {
            mode,
            proxies: Vec::new(),
            discovery: None,
            responder: None,
            away: None,
            ticker: None,
            manager: Some(manager),
            checkers: None,
            awake: None,
            presence: Arc::clone(&parts.presence),
        };
        daemon.checkers = Some(parts.start_checkers(&jobs)?);
        daemon.ticker = Some(parts.start_ticker()?);
        let keep_awake = settings.keep_awake.filter(|_| mode.is_server());
        daemon.awake = keep_awake.map(|time| Awake::start(Arc::clone(&daemon.presence), time));
        for (side, listeners) in [(Side::Client, client), (Side::Server, server)] {
            if !listeners.is_empty() {
                daemon.proxies.push(parts.start_proxy(side, listeners)?);
            }
        }
        let has_discovery = settings.discovery_port != 0;
        if let Some(proxy) = daemon.proxies.last().filter(|_| has_discovery && mode.is_server()) {
            daemon.responder = Some(parts.start_responder(&proxy.addresses)?);
        }
        if has_discovery && mode.is_client() {
            daemon.discovery = Some(parts.start_discovery()?);
            daemon.away = if was_server { parts.start_away() } else { None };
        }
        daemon.describe(why, settings);
        Ok(daemon)
    }

    fn describe(&self, why: &str, settings: &Settings) {
        let listen: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let discovery = match self.discovery_address() {
            Some(address) => format!("{address}/udp"),
            None if self.discovery.is_some() => format!("to port {}/udp", settings.discovery_port),
            None => "off".to_owned(),
        };
        self.presence.describe(About {
            name: host_name(),
            mode: self.mode.to_string(),
            why: why.to_owned(),
            listen: self.addresses(),
            discovery: discovery.clone(),
            connections: self
                .proxies
                .iter()
                .map(|proxy| Arc::clone(proxy.connections()) as _)
                .collect(),
            timing: settings.timing.clone(),
            share_models: settings.share_models,
            library: self.proxies.iter().find_map(Proxy::library).cloned(),
            started: Instant::now(),
        });
        let listen = listen.join(",");
        log::info!("ready mode={} why={why:?} listen={listen} discovery={discovery}", self.mode);
    }

    /// Where the proxies listen, the client's first.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.proxies.iter().flat_map(|proxy| proxy.addresses.iter().copied()).collect()
    }

    /// Where the discovery answers, if it does.
    pub fn discovery_address(&self) -> Option<SocketAddr> {
        self.responder.as_ref().map(|responder| responder.address)
    }

    /// What the Manager shows of its state.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Client connections now.
    pub fn connections(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.connections().len()).sum()
    }

    /// Accepts no more, says goodbye, lets streams finish for up to `drain`, then cuts them. True
    /// if none was cut. Every thread of this daemon has ended when it returns, but for checks under way.
    pub fn stop(mut self, drain: Duration) -> bool {
        self.end(drain)
    }

    /// Accepts no more and says goodbye; streams go on.
    fn retire(&mut self) {
        self.proxies.iter_mut().for_each(Proxy::stop_accepting);
        self.responder = None;
        self.away = None;
        self.discovery = None;
    }

    fn end(&mut self, drain: Duration) -> bool {
        self.retire();
        let deadline = Instant::now() + drain;
        let mut finished = true;
        for proxy in &mut self.proxies {
            finished &= proxy.finish(deadline.saturating_duration_since(Instant::now()));
        }
        self.ticker = None;
        self.checkers = None;
        self.manager = None;
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
