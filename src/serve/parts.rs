//! The parts of a daemon, each made from the settings and from what all parts share.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use http::HeaderValue;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::error::{StartError, system};
use super::mode::Mode;
use super::state_dir::{self, host_name};
use crate::access::host::HostRule;
use crate::config::{OllamaUrl, Settings};
use crate::discovery::{Client, ClientSetup, Responder, ServerSetup};
use crate::http::fields;
use crate::manager::liveness::{Checkers, Ticker, job_queue};
use crate::manager::pool::{Input, Pool, Rules};
use crate::manager::wake::Wake;
use crate::manager::{self, Job, Mailbox, Presence, store};
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::proxy::Budget;
use crate::proxy::Proxy;
use crate::proxy::connections::Connections;
use crate::proxy::exchange::{Context, Side};
use crate::system::{self, THREAD_STACK};

/// Ports from here on are ephemeral: they are another server's at the next start.
const EPHEMERAL_PORTS: u16 = 32768;
/// Descriptors that a connection takes: its own and its upstream's. And those for all else.
const DESCRIPTORS: u64 = 2;
const SPARE_DESCRIPTORS: u64 = 64;
/// Bytes of address space that a connection takes besides its thread's stack, and all else takes.
const CONNECTION_MEMORY: u64 = 128 << 10;
const SPARE_MEMORY: u64 = 64 << 20;

/// What all parts share.
pub(super) struct Parts<'a> {
    settings: &'a Settings,
    mode: Mode,
    ollama: OllamaUrl,
    /// New for each start; tells a loop of proxies by their `Via` fields.
    instance: u32,
    identity: Identity,
    hostname: String,
    mailbox: Mailbox,
    pub(super) presence: Arc<Presence>,
    keyring: Arc<Keyring>,
}

impl Parts<'_> {
    /// Reads identity and keys, and starts the Manager, whose jobs go to the checkers.
    pub(super) fn start<'a>(
        settings: &'a Settings,
        mode: Mode,
        server: &[TcpListener],
    ) -> Result<(Parts<'a>, manager::Handle, Receiver<Job>), StartError> {
        let instance = u32::from_ne_bytes(system::random().map_err(system("get random bytes"))?);
        let dir = settings.state_dir.as_deref();
        // The identity goes with the port, so that two servers on one machine are two.
        let port = server.first().and_then(|listener| listener.local_addr().ok());
        let port = port.map(|address| address.port()).filter(|port| *port < EPHEMERAL_PORTS);
        let identity = state_dir::identity(dir.filter(|_| port.is_some()), port.unwrap_or(0))
            .map_err(system("get random bytes"))?;
        let keyring = Keyring::open(identity, dir, settings.key_file.as_deref(), settings.unpaired)
            .map_err(StartError::Keys)?;
        let ollama = settings.ollama_url();
        let (jobs, job_receiver) = job_queue();
        let patience = manager::Patience {
            expected: settings.timing.wait_timeout,
            busy: settings.timing.queue_timeout,
            wake: (!settings.wake.is_empty()).then_some(settings.timing.wake_timeout),
        };
        let pool = new_pool(settings, mode, &ollama, instance);
        let manager =
            manager::Handle::start(pool, jobs, patience).map_err(system("start the manager"))?;
        let parts = Parts {
            settings,
            mode,
            ollama,
            instance,
            identity,
            hostname: host_name(),
            mailbox: manager.mailbox(),
            presence: manager.presence(),
            keyring: Arc::new(keyring),
        };
        Ok((parts, manager, job_receiver))
    }

    pub(super) fn start_checkers(&self, jobs: &Receiver<Job>) -> Result<Checkers, StartError> {
        let settings = self.settings;
        let wake = (!settings.wake.is_empty()).then(|| Wake {
            sleepers: settings.wake.clone(),
            interfaces: settings.interfaces.clone(),
            dir: settings.state_dir.clone(),
        });
        Checkers::start(
            jobs,
            &self.mailbox,
            &settings.timing,
            &self.keyring,
            self.mode.is_server().then_some(&self.ollama),
            memory(settings).filter(|_| self.mode.is_client()),
            wake.as_ref(),
        )
        .map_err(system("start the checkers"))
    }

    pub(super) fn start_ticker(&self) -> Result<Ticker, StartError> {
        self.mailbox.try_send(Input::Tick);
        Ticker::start(self.mailbox.clone(), Arc::clone(&self.keyring))
            .map_err(system("start the ticker"))
    }

    pub(super) fn start_proxy(
        &self,
        side: Side,
        listeners: Vec<TcpListener>,
    ) -> Result<Proxy, StartError> {
        let settings = self.settings;
        let limits = &settings.limits;
        let most = affordable_connections(limits.max_connections);
        let names = settings.hosts.iter().cloned().chain([self.hostname.to_ascii_lowercase()]);
        let is_server = side == Side::Server;
        let own_name = HeaderValue::from_str(&self.hostname).ok();
        let context = Context {
            settings: settings.clone(),
            side,
            mailbox: self.mailbox.clone(),
            presence: Arc::clone(&self.presence),
            models_dir: state_dir::models_dir().filter(|_| is_server),
            via: fields::via_value(self.instance),
            machine: self.hostname.clone(),
            own_name: own_name.filter(|_| is_server),
            identity: HeaderValue::from_str(&self.identity.to_string()).ok(),
            prefix: self.ollama.prefix.clone(),
            hosts: HostRule::new(names),
            budget: Budget::new(limits.replay_budget),
            keyring: Arc::clone(&self.keyring),
            connections: Arc::new(Connections::new(most, limits.max_connections_per_source)),
        };
        let places = state_dir::private_places(settings.state_dir.as_deref());
        Proxy::start(context, listeners, &places).map_err(system("start the proxy"))
    }

    /// The server's side of discovery; `http` is where its proxy listens.
    pub(super) fn start_responder(
        &self,
        http: &[SocketAddr],
    ) -> Result<Option<Responder>, StartError> {
        let port = self.settings.discovery_port;
        if port == 0 || !self.mode.is_server() {
            return Ok(None);
        }
        Responder::start(ServerSetup {
            port,
            http: http.to_vec(),
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
        .map_err(|error| StartError::Discovery(port, error))
    }

    /// The client's side of discovery.
    pub(super) fn start_discovery(&self) -> Result<Option<Client>, StartError> {
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

/// Where servers are remembered; nowhere without discovery, which finds them.
fn memory(settings: &Settings) -> Option<&Path> {
    settings.state_dir.as_deref().filter(|_| settings.discovery_port != 0)
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
        pool.recall(now, memory(settings).map(store::recall).unwrap_or_default());
    }
    pool
}

/// As many connections as this process may have descriptors and address space for. One too many is
/// turned away with 503, whereas a process that runs out of memory ends.
fn affordable_connections(wanted: usize) -> usize {
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
