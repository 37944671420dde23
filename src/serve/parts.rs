//! The parts of a daemon, each made from the settings and from what all parts share.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use http::HeaderValue;

use super::listeners::plain;
use super::mode::Mode;
use super::neighbours::{OfPool, OfScan};
use super::state_dir::{self, host_name};
use crate::access::host::HostRule;
use crate::access::permissions::ShareModels;
use crate::config::{SERVER_PORT, ServerName, Settings};
use crate::discovery::{Client, ClientSetup, Responder, ServerSetup};
use crate::http::fields;
use crate::library::Library;
use crate::manager::liveness::{Checker, Checkers, Ticker, job_queue};
use crate::manager::pool::{Had, Input, Known, Pool, Rules};
use crate::manager::store::{self, Macs};
use crate::manager::wake::Wake;
use crate::manager::{self, Job, Mailbox, Presence};
use crate::pairing::{identity::Identity, keyring::Keyring};
use crate::proxy::exchange::{Context, Donations, Side};
use crate::proxy::{
    Budget, Proxy,
    connections::{Connections, Process},
};
use crate::sharing::{Neighbours, Sharing};
use crate::system::{self, THREAD_STACK, failed, keeper::Keeper};

/// Ports from here on are ephemeral: they are another server's at the next start.
const EPHEMERAL_PORTS: u16 = 32768;
/// Descriptors that a connection takes: its own and its upstream's. And those for all else.
const DESCRIPTORS: u64 = 2;
const SPARE_DESCRIPTORS: u64 = 64;
/// How often a store of models that can't be read is looked for.
const LIBRARY_LOOK: Duration = Duration::from_secs(60);
/// Client connections of this process.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
/// Bytes of address space that a connection takes besides its thread's stack, and all else takes.
const CONNECTION_MEMORY: u64 = 128 << 10;
const SPARE_MEMORY: u64 = 64 << 20;

pub(super) struct Parts<'a> {
    settings: &'a Settings,
    mode: Mode,
    /// New for each start; tells a loop of proxies by their `Via` fields.
    instance: u32,
    identity: Identity,
    mailbox: Mailbox,
    pub(super) presence: Arc<Presence>,
    keyring: Arc<Keyring>,
    keeper: Arc<Keeper>,
    sharing: Sharing,
    /// The store of the models that this machine shares.
    library: Option<Arc<Library>>,
}

impl<'a> Parts<'a> {
    /// Reads identity and keys, and starts the Manager, whose jobs go to the checkers.
    pub(super) fn start(
        settings: &'a Settings,
        mode: Mode,
        server: &[TcpListener],
        keeper: &Arc<Keeper>,
    ) -> Result<(Self, manager::Handle, Receiver<Job>), String> {
        let no_random = || failed("cannot get random bytes");
        let instance = u32::from_ne_bytes(system::random().map_err(no_random())?);
        let dir = settings.state_dir.as_deref();
        // The identity goes with the port, so that two servers on one machine are two.
        let address = server.first().and_then(|listener| listener.local_addr().ok());
        let port = address.map_or(0, |address| address.port());
        let port = if port < EPHEMERAL_PORTS { port } else { 0 };
        let identity = state_dir::identity(dir, port).map_err(no_random())?;
        let key_file = settings.key_file.as_deref();
        let keyring = Keyring::open(identity, dir, key_file, settings.unpaired)?;
        let (jobs, job_receiver) = job_queue();
        let timing = &settings.timing;
        let patience = manager::Patience {
            expected: timing.wait_timeout,
            busy: timing.queue_timeout,
            wake: (!settings.wake.is_empty()).then_some(timing.wake_timeout),
        };
        let pool = new_pool(settings, mode, instance);
        let memory = settings.state_dir.clone().filter(|_| mode.is_client());
        let memory = memory.map(|dir| manager::Memory::new(dir, Arc::clone(keeper)));
        let manager = manager::Handle::start(pool, jobs, patience, memory)
            .map_err(failed("cannot start the manager"))?;
        let (mailbox, presence) = (manager.mailbox(), manager.presence());
        let (keyring, keeper) = (Arc::new(keyring), Arc::clone(keeper));
        let neighbours: Arc<dyn Neighbours> = match mode.is_client() {
            true => Arc::new(OfPool(mailbox.clone())),
            false => Arc::new(OfScan::new(settings, identity, &keyring)),
        };
        let library = mode.is_server().then(|| find_library(settings));
        let sharing = Sharing::new(neighbours, settings.timing.clone(), Arc::clone(&keyring));
        if settings.discovery_port == 0 {
            presence.explain_silence("the discovery is off, and there is no --server".to_owned());
        }
        let parts = Parts {
            settings,
            mode,
            instance,
            identity,
            mailbox,
            presence,
            keyring,
            keeper,
            sharing,
            library,
        };
        Ok((parts, manager, job_receiver))
    }

    pub(super) fn start_checkers(&self, jobs: &Receiver<Job>) -> Result<Checkers, String> {
        let settings = self.settings;
        let macs = |dir| Arc::new(Macs::recall(dir, Arc::clone(&self.keeper)));
        let wake = (!settings.wake.is_empty()).then(|| Wake {
            sleepers: settings.wake.clone(),
            interfaces: settings.interfaces.clone(),
            macs: settings.state_dir.clone().map(macs),
        });
        let checker = Checker {
            mailbox: self.mailbox.clone(),
            timing: settings.timing.clone(),
            keyring: Arc::clone(&self.keyring),
            local: self.mode.is_server().then(|| settings.ollama_url()),
            wake,
        };
        Checkers::start(jobs, &checker).map_err(failed("cannot start the checkers"))
    }

    pub(super) fn start_ticker(&self) -> Result<Ticker, String> {
        self.mailbox.try_send(Input::Tick);
        Ticker::start(self.mailbox.clone(), Arc::clone(&self.keyring), Arc::clone(&self.keeper))
            .map_err(failed("cannot start the ticker"))
    }

    pub(super) fn start_proxy(
        &self,
        side: Side,
        listeners: Vec<TcpListener>,
    ) -> Result<Proxy, String> {
        let settings = self.settings;
        let limits = &settings.limits;
        let process = Process { max: affordable_connections(), taken: &CONNECTIONS };
        let proxies = if self.mode == Mode::Both { 2 } else { 1 };
        let (wanted, most) = (limits.max_connections, process.max / proxies);
        if most < wanted {
            log::warn!("limits of this process allow fewer connections wanted={wanted} max={most}");
        }
        let most = most.min(wanted);
        let machine = host_name();
        let names = settings.hosts.iter().cloned().chain([machine.to_ascii_lowercase()]);
        let is_server = side == Side::Server;
        let own_name = HeaderValue::from_str(&machine).ok();
        let context = Context {
            settings: settings.clone(),
            side,
            mailbox: self.mailbox.clone(),
            presence: Arc::clone(&self.presence),
            library: self.library.clone(),
            donations: Donations::default(),
            via: fields::via_value(self.instance),
            machine,
            own_name: own_name.filter(|_| is_server),
            identity: HeaderValue::from_str(&self.identity.to_string()).ok(),
            prefix: settings.ollama_url().prefix,
            hosts: HostRule::new(names),
            budget: Budget::new(limits.replay_budget),
            keyring: Arc::clone(&self.keyring),
            sharing: self.sharing.clone(),
            connections: Arc::new(Connections::new(
                most,
                limits.max_connections_per_source,
                process,
            )),
        };
        let places = state_dir::private_places(settings.state_dir.as_deref());
        Proxy::start(context, listeners, &places).map_err(failed("cannot start the proxy"))
    }

    pub(super) fn start_responder(&self, http: &[SocketAddr]) -> Result<Responder, String> {
        self.start_responder_as(self.identity, http)
    }

    /// Without an address of a proxy it says that this machine's Ollama was stopped.
    fn start_responder_as(
        &self,
        identity: Identity,
        http: &[SocketAddr],
    ) -> Result<Responder, String> {
        let port = self.settings.discovery_port;
        let setup = ServerSetup {
            port,
            http: http.to_vec(),
            identity,
            own_client: self.identity,
            instance: self.instance,
            name: host_name(),
            legacy: self.settings.legacy,
            is_managed: self.settings.policy.manage,
            reach: self.settings.reach.clone(),
            presence: Arc::clone(&self.presence),
            keyring: Arc::clone(&self.keyring),
            is_away: http.is_empty(),
        };
        Responder::start(setup).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::AddrInUse => {
                    " (is another ollana server running here? try --discovery-port N)"
                }
                _ => "",
            };
            format!("cannot listen on UDP port {port}: {}{hint}", plain(&error))
        })
    }

    /// Has those who look for the server that this machine was hear that its Ollama was stopped.
    pub(super) fn start_away(&self) -> Option<Responder> {
        let settings = self.settings;
        let given = settings.server_listen();
        let listen = given.first().map_or(SERVER_PORT, SocketAddr::port);
        let is_far = given.iter().all(|address| address.ip().is_loopback());
        if settings.discovery_port == 0 || (is_far && !given.is_empty()) {
            return None;
        }
        let identity = state_dir::identity(settings.state_dir.as_deref(), listen).ok()?;
        let told = self.start_responder_as(identity, &[]);
        told.inspect_err(|reason| {
            log::debug!("others aren't told that Ollama was stopped: {reason}")
        })
        .ok()
    }

    pub(super) fn start_discovery(&self) -> Result<Client, String> {
        let setup = ClientSetup {
            port: self.settings.discovery_port,
            interval: self.settings.timing.probe_interval,
            interfaces: self.settings.interfaces.clone(),
            identity: self.identity,
            mailbox: self.mailbox.clone(),
            keyring: Arc::clone(&self.keyring),
        };
        Client::start(setup).map_err(failed("cannot start the discovery"))
    }
}

/// The store of this machine's models, which is looked for until it can be read: Ollama may come later.
fn find_library(settings: &Settings) -> Arc<Library> {
    let library = Arc::new(Library::find(settings.ollama_url().port));
    if settings.share_models != ShareModels::Off {
        let (weak, gone) = (Arc::downgrade(&library), library.gone());
        // Its disk may be slow.
        let _ = system::spawn("library", move || {
            let mut told = None;
            while let Some(looked) = weak.upgrade().map(|library| library.look()) {
                match looked {
                    Ok(models) => return log::debug!("models to share count={models}"),
                    Err(reason) if told.as_ref() != Some(&reason) => {
                        log::warn!("{reason}");
                        told = Some(reason);
                    }
                    Err(_) => {}
                }
                if gone.recv_timeout(LIBRARY_LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
    }
    library
}

/// The servers of earlier runs that these settings still lead to.
fn recall(settings: &Settings, mode: Mode) -> Vec<Known> {
    let is_found = settings.discovery_port != 0;
    let local = mode.is_server().then(|| settings.ollama_url().server());
    let is_given =
        |given: &ServerName| settings.servers.contains(given) || local.as_ref() == Some(given);
    let mut servers = settings.state_dir.as_deref().map(store::recall).unwrap_or_default();
    for known in &mut servers {
        known.is_present &= is_found;
        let is_known = known.identity.is_some();
        let is_reached = |had: &Had| match &had.given {
            Some(given) => is_given(given) || (is_found && is_known),
            None => is_found,
        };
        known.had.take_if(|had| !is_reached(had));
    }
    servers
}

fn new_pool(settings: &Settings, mode: Mode, seed: u32) -> Pool {
    let rules = Rules {
        health_interval: settings.timing.health_interval,
        health_timeout: settings.timing.health_timeout,
        rise: settings.limits.rise,
        fall: settings.limits.fall,
        max_servers: settings.limits.max_servers,
        // Which models are stubs of the cloud's, only the list tells.
        inventories: mode.is_client() || !settings.policy.cloud,
        max_in_flight: settings.limits.max_in_flight,
        pins: settings.pins.clone(),
        bans: settings.bans.clone(),
        aliases: settings.aliases.clone(),
        preferred: settings.preferred.clone(),
        wake: settings.wake.clone(),
    };
    let mut pool = Pool::new(rules, u64::from(seed));
    let now = Instant::now();
    if mode.is_server() {
        pool.add_local(now, settings.ollama_url().server());
    }
    if mode.is_client() {
        settings.servers.iter().for_each(|server| pool.add_named(now, server.clone()));
        pool.recall(now, recall(settings, mode));
    }
    pool
}

/// As many connections as this process may have descriptors and address space for. One too many is
/// turned away with 503, whereas a process that runs out of memory ends.
fn affordable_connections() -> usize {
    let share = |all: Option<u64>, spare, each| Some(all?.saturating_sub(spare) / each);
    let memory = THREAD_STACK as u64 + CONNECTION_MEMORY;
    let descriptors = share(system::most_descriptors(), SPARE_DESCRIPTORS, DESCRIPTORS);
    let most =
        descriptors.into_iter().chain(share(system::address_space(), SPARE_MEMORY, memory)).min();
    usize::try_from(most.unwrap_or(u64::MAX)).unwrap_or(usize::MAX).max(8)
}
