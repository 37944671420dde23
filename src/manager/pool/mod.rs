//! The state of the backends: sightings, health, ejection, expiry, and the choice for a request.
//!
//! Pure: no sockets, no threads, no clock. Time comes in with each input, actions go out into
//! a list. Only the Manager's thread owns one.
//!
//! ```text
//!  Sighted ──► New ──check ok──► Ready ──refused, or `fall` silent checks──► Down
//!               ▲                  │  ▲                                       │
//!               │        3 failed  ▼  │ a trial request succeeds              │ check ok
//!               │        requests Ejected                                     ▼
//!               └──────────────── (removed after 60 s down and unseen)      Ready
//! ```
//!
//! An announcement only proposes a server; a health check of the packet's source address
//! decides. Silence of announcements alone never removes a server; failed health does.

mod checks;
mod choice;
mod history;
mod snapshot;
mod trust;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::permissions::Permission;
use crate::config::{SERVER_PORT, ServerName};
use crate::counters::Tally;
use crate::ollama::inventory::Inventory;
use crate::ollama::model_name::ModelName;
use crate::ollama::version::OllamaVersion;
use crate::pairing::identity::Identity;

pub use crate::upstream::health_check::{CheckResult, Target};
pub use choice::{NoPick, Pick, Wanted};
pub use history::{History, Series};
pub use snapshot::{HealthNow, Rest, ServerNow};
pub use trust::{Contest, Known};

/// Health checks that may run at once. More would only wait, and those that wait can't be put in
/// another order.
pub const MAX_CHECKS: usize = 8;
/// Of these, checks of servers whose last one failed: whoever stays silent takes his time, and must
/// not hold up the checks of the others.
const MAX_DOUBTFUL: usize = 5;
/// Of these in turn, checks of announced servers that were never well.
const MAX_VERIFICATIONS: usize = 3;
/// Servers that one address may announce, loopback apart: one machine runs few, and whoever
/// announces more must not fill the pool.
const MAX_PER_ADDRESS: usize = 4;
/// Addresses kept per server (a machine has few interfaces).
const MAX_ADDRESSES: usize = 4;
/// A discovered server that is down and unseen for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Pauses between checks of a server that is down: from, and up to. However long it was away, a
/// named server and this machine's Ollama are used within 3 s of being back.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_millis(1600);
/// Requests wait for a server that was well until so long ago.
const FRESHLY_DOWN: Duration = Duration::from_secs(2);
/// Requests that fail in a row before a server is ejected.
const STRIKES: u32 = 3;
/// First ejection; doubled each time, up to [`LONGEST_EJECTION`].
const FIRST_EJECTION: Duration = Duration::from_secs(1);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// A server that answered 429 or 503 is passed over for so long while others can do.
const COOL_DOWN: Duration = Duration::from_secs(1);
/// A server's lists of models are asked for again after this.
const INVENTORY_AGE: Duration = Duration::from_secs(4);
/// Models that may be loaded or unloaded through us between two looks at a server.
const MAX_LOADED_SINCE: usize = 16;
/// Ollama still lists a model as loaded for a moment after it was told to unload it.
const UNLOADING: Duration = Duration::from_millis(500);
/// Models whose speed is remembered per server.
const MAX_SPEEDS: usize = 64;
/// A learned limit of concurrent requests is lifted after this long without a busy answer.
const LIMIT_AGE: Duration = Duration::from_secs(60);
/// A bare four-byte answer that led nowhere isn't followed again before this.
const LEGACY_RETRY: Duration = Duration::from_secs(60);

/// Names a backend for as long as the pool lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(u32);

impl BackendId {
    /// As a number, for programs that look at the state.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// How the pool knows of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The Ollama of this machine.
    Local(ServerName),
    /// Named with `--server`; never forgotten.
    Named(ServerName),
    /// Answered a probe.
    Discovered,
    /// Answered a probe with bare magic; its port is a guess.
    Legacy,
}

/// An announcement, already matched to one of our probes.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Source address of the packet with the announced HTTP port.
    pub address: SocketAddr,
    /// The server's persistent identity.
    pub identity: Identity,
    /// New at each start of the server.
    pub instance: u32,
    /// Its name; may be empty.
    pub name: String,
    /// Whether it says that its Ollama answers.
    pub ollama_up: bool,
    /// Whether it says that other machines may manage its models.
    pub management_open: bool,
}

/// How a request on a backend ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer of any status.
    Answered,
    /// The connection was refused or timed out; nothing was sent.
    Unreachable,
    /// The backend failed before or within its answer.
    Failed,
    /// It answered 429 or 503.
    Overloaded,
    /// The client left, or we ourselves were at fault.
    Void,
}

/// What a finished request taught.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// From the request's head to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Tokens per second that the server generated for this model.
    pub speed: Option<(ModelName, f64)>,
    /// It changed what models the server has.
    pub changed_models: bool,
    /// It left this model in memory, or took it out.
    pub loaded: Option<(ModelName, bool)>,
}

impl Report {
    /// Whether the pool has to know, beyond the count of requests in flight.
    pub fn is_news(&self) -> bool {
        self.is_trouble() || self.changed_models || self.speed.is_some()
    }

    /// Whether the backend did badly.
    pub fn is_trouble(&self) -> bool {
        !matches!(self.outcome, Outcome::Answered | Outcome::Void)
    }
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Self {
        Report { outcome, first_byte: None, speed: None, changed_models: false, loaded: None }
    }
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A server announced itself.
    Sighted(Sighting),
    /// An older server answered from this address.
    LegacySighted(IpAddr),
    /// A server says that it leaves.
    Farewell {
        /// Who says it.
        identity: Identity,
        /// Where the packet came from.
        from: IpAddr,
    },
    /// A health check ended.
    Checked(BackendId, CheckResult),
    /// A request ended that [`Pool::pick`] counted in.
    Finished(BackendId, Report),
    /// A request ended that was counted elsewhere.
    Noted(BackendId, Report),
    /// Somebody looks at the state, and wants to see models too.
    Watched,
    /// Time has passed.
    Tick,
}

/// What the Manager has to get done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask this target for `/api/version`, and for its models if told so; report
    /// [`Input::Checked`].
    Check(BackendId, Target, bool),
    /// Tell people.
    Report(Transition),
    /// Write down what is known now ([`Pool::memorable`]).
    Remember,
}

/// An edge in a backend's life, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields' names say it all")]
pub enum Transition {
    /// It gets work from now on.
    Up { name: String, address: SocketAddr, version: String },
    /// It gets none.
    Down { name: String, reason: String },
    /// Its requests fail, so it rests.
    Ejected { name: String, pause: Duration },
    /// It was forgotten.
    Forgotten { name: String },
    /// It moved.
    Moved { name: String, address: SocketAddr },
    /// It has the name, the address or the identity of another one.
    Contested { name: String, address: SocketAddr, reason: String, is_held_back: bool },
    /// The pool is full.
    Refused { address: SocketAddr },
}

/// What the pool goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Pause between two checks of a backend that is up.
    pub health_interval: Duration,
    /// A check that hasn't reported by then is counted as silent.
    pub health_timeout: Duration,
    /// Good checks in a row before a backend gets work.
    pub rise: u32,
    /// Silent checks in a row before it gets none.
    pub fall: u32,
    /// Most backends.
    pub max_servers: usize,
    /// Whether to ask what models they have.
    pub inventories: bool,
    /// Requests that a backend may have at once; 0 means that it is learned from busy answers.
    pub max_in_flight: u32,
    /// Models that go to the named servers while one of them is up.
    pub pins: Vec<(ModelName, String)>,
    /// Models that never go to the named servers.
    pub bans: Vec<(ModelName, String)>,
    /// Servers that come first while they are up, best first.
    pub preferred: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Health {
    /// Never answered a check.
    New,
    Ready,
    Down {
        since: Instant,
        reason: String,
    },
}

#[derive(Clone, Debug)]
struct Backend {
    id: BackendId,
    origin: Origin,
    identity: Option<Identity>,
    /// Whether it said so itself when it was checked; announcements can be forged.
    is_confirmed: bool,
    /// Another identity was announced from its address.
    contradicted: Option<Identity>,
    /// When a check showed that this was forged.
    forged_at: Option<Instant>,
    /// A request couldn't connect; the check that follows tells more.
    is_unreached: bool,
    /// What tells against it.
    contest: Option<Contest>,
    /// When people were told of that.
    told_at: Option<Instant>,
    /// Whether it was met in the last hour.
    is_newcomer: bool,
    instance: u32,
    name: String,
    /// The first is in use; the others are tried when it fails.
    addresses: Vec<SocketAddr>,
    /// Whether the first one is there because another failed, and no check has confirmed it yet.
    in_doubt: bool,
    /// An announced further address of a backend that is up; kept as an alternative once a check
    /// has passed.
    candidate: Option<SocketAddr>,
    /// Whether the check under way is the candidate's.
    checking_candidate: bool,
    /// Where the check under way goes, if that isn't told by a name.
    checking_address: Option<SocketAddr>,
    health: Health,
    /// Since when it has that health.
    since: Instant,
    /// What it has done; goes with every pick.
    tally: Tally,
    /// Checks in a row that contradict the present health.
    streak: u32,
    /// Failed checks in a row, for the backoff.
    failures: u32,
    next_check: Instant,
    checking_since: Option<Instant>,
    /// When the last check began.
    checked_at: Option<Instant>,
    round_trip: Option<Duration>,
    version: String,
    /// Whether it announces that its models may be managed.
    management_open: bool,
    /// What it lets us do, as its proxy told when it was checked.
    open: Option<Permission>,
    in_flight: u32,
    last_seen: Instant,
    strikes: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
    cooling_until: Option<Instant>,
    failed_at: Option<Instant>,
    inventory: Option<Arc<Inventory>>,
    /// When to ask for the inventory again.
    inventory_due: Instant,
    /// Since when the inventory is known to be out of date.
    inventory_stale: Option<Instant>,
    /// Models that requests have loaded or unloaded since, oldest first.
    loaded_since: Vec<(ModelName, bool)>,
    first_byte: Option<Duration>,
    speeds: HashMap<ModelName, f64>,
    /// Learned from a busy answer: how many requests it takes, and when that was.
    learned_limit: Option<(u32, Instant)>,
}

impl Backend {
    fn label(&self) -> String {
        let place = match (&self.origin, self.addresses.first()) {
            (Origin::Local(server) | Origin::Named(server), _) => server.to_string(),
            (_, Some(address)) => address.to_string(),
            (_, None) => String::new(),
        };
        if self.name.is_empty() { place } else { format!("{} ({place})", self.name) }
    }

    /// Its name, or where it is.
    fn short_name(&self) -> String {
        match self.addresses.first() {
            Some(address) if self.name.is_empty() => address.to_string(),
            _ => self.name.clone(),
        }
    }

    fn next_target(&mut self) -> Option<Target> {
        // What is left of a check that never reported is over.
        self.checking_address = None;
        self.checking_candidate = self.candidate.is_some();
        if let Some(candidate) = self.candidate.take() {
            return Some(Target::Address(candidate));
        }
        match &self.origin {
            Origin::Local(server) | Origin::Named(server) => Some(Target::Name(server.clone())),
            _ => {
                self.checking_address = self.addresses.first().copied();
                self.checking_address.map(Target::Address)
            }
        }
    }

    /// Puts an address first and keeps the others as alternatives. A named backend has one
    /// address, the one that its name means now.
    fn use_address(&mut self, address: SocketAddr) {
        self.addresses.retain(|known| *known != address);
        if matches!(self.origin, Origin::Local(_) | Origin::Named(_)) {
            self.addresses.clear();
        }
        self.addresses.insert(0, address);
        self.addresses.truncate(MAX_ADDRESSES);
    }

    /// Whether it may get work: it is up, at an address that a check has confirmed.
    fn is_usable(&self) -> bool {
        self.health == Health::Ready && !self.in_doubt
    }

    /// Whether it is known from announcements, not from the user.
    fn is_discovered(&self) -> bool {
        matches!(self.origin, Origin::Discovered | Origin::Legacy)
    }

    /// Whether it was announced but has never been well.
    fn is_stranger(&self) -> bool {
        self.is_discovered() && self.round_trip.is_none()
    }

    /// Whether it has announced itself since it was asked last.
    fn is_heard(&self) -> bool {
        self.checked_at.is_none_or(|at| self.last_seen > at)
    }

    /// Whether it is a stranger that was asked and had its chance.
    fn has_failed_first(&self) -> bool {
        self.is_stranger() && self.failures > 0 && self.in_flight == 0
    }

    fn is_forgettable(&self, now: Instant) -> bool {
        let unseen = now.saturating_duration_since(self.last_seen) >= FORGET_AFTER;
        let discovered = self.is_discovered();
        let down = match self.health {
            Health::Down { since, .. } => now.saturating_duration_since(since) >= FORGET_AFTER,
            Health::New => true,
            Health::Ready => false,
        };
        discovered && unseen && down && self.in_flight == 0
    }
}

/// All backends.
#[derive(Debug)]
pub struct Pool {
    rules: Rules,
    backends: Vec<Backend>,
    next_id: u32,
    /// State of the jitter's generator (xorshift; quality doesn't matter here).
    random: u64,
    /// Conversations and where they went last, oldest first.
    conversations: VecDeque<(u64, BackendId)>,
    /// Clients that upload parts of a model, and where to.
    builds: VecDeque<(IpAddr, BackendId)>,
    /// Strangers that gave way while they were being checked, and since when they were.
    abandoned: Vec<(BackendId, Instant)>,
    /// Servers that were well at some time, the earliest first.
    records: Vec<trust::Record>,
    /// Somebody wants to see the models until then.
    watched_until: Option<Instant>,
}

impl Pool {
    /// An empty pool; `seed` only spreads the retries.
    pub fn new(rules: Rules, seed: u64) -> Self {
        Pool {
            rules,
            backends: Vec::new(),
            next_id: 0,
            random: seed | 1,
            conversations: VecDeque::new(),
            builds: VecDeque::new(),
            abandoned: Vec::new(),
            records: Vec::new(),
            watched_until: None,
        }
    }

    /// Adds the Ollama of this machine.
    pub fn add_local(&mut self, now: Instant, server: ServerName) {
        self.add(now, Origin::Local(server), Vec::new());
    }

    /// The servers that are ready: addresses, and the names that they go by.
    pub fn present(&self) -> Vec<(SocketAddr, Vec<String>)> {
        let ready = self.backends.iter().filter(|b| b.serves());
        let names = |b: &Backend| match &b.origin {
            Origin::Named(server) => vec![b.name.clone(), server.host.clone(), server.to_string()],
            _ => vec![b.name.clone()],
        };
        ready.filter_map(|b| Some((*b.addresses.first()?, names(b)))).collect()
    }

    /// Adds a server that the user named.
    pub fn add_named(&mut self, now: Instant, server: ServerName) {
        if !self.backends.iter().any(|b| b.origin == Origin::Named(server.clone())) {
            self.add(now, Origin::Named(server), Vec::new());
        }
    }

    /// Decides what follows from an input.
    pub fn handle(&mut self, now: Instant, input: Input, actions: &mut Vec<Action>) {
        let is_about_servers = match &input {
            Input::Finished(_, report) | Input::Noted(_, report) => {
                report.outcome == Outcome::Unreachable
            }
            Input::Watched | Input::Farewell { .. } => false,
            _ => true,
        };
        match input {
            Input::Sighted(sighting) => self.sighted(now, sighting, actions),
            Input::LegacySighted(ip) => self.legacy_sighted(now, ip, actions),
            Input::Farewell { identity, from } => {
                for backend in &mut self.backends {
                    let here = backend.addresses.iter().any(|address| address.ip() == from);
                    if here && backend.identity == Some(identity) {
                        backend.next_check = now;
                    }
                }
            }
            Input::Checked(id, result) => self.checked(now, id, result, actions),
            Input::Finished(id, report) => {
                self.count_out(id);
                self.finished(now, id, report, actions);
            }
            Input::Noted(id, report) => self.finished(now, id, report, actions),
            Input::Watched => self.watched(now),
            Input::Tick => self.forget(now, actions),
        }
        if is_about_servers {
            self.review(now, actions);
        }
        self.start_checks(now, actions);
    }

    /// Counts in requests that were counted elsewhere until now.
    pub fn adopt(&mut self, id: BackendId, requests: u32) {
        if let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) {
            backend.in_flight += requests;
        }
    }

    fn count_out(&mut self, id: BackendId) {
        if let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) {
            backend.in_flight = backend.in_flight.saturating_sub(1);
        }
    }

    /// Whether a backend that isn't ready may be in a moment: it is new and wasn't asked yet, or it
    /// was well until a moment ago, as while an Ollama restarts.
    pub fn expects_backend(&self, now: Instant) -> bool {
        self.backends.iter().any(|b| match &b.health {
            Health::New => b.failures == 0,
            Health::Ready => b.in_doubt,
            Health::Down { since, .. } => {
                let is_fresh = now.saturating_duration_since(*since) < FRESHLY_DOWN;
                is_fresh && b.round_trip.is_some()
            }
        })
    }

    /// Backends that get work.
    pub fn ready(&self) -> usize {
        self.backends.iter().filter(|b| b.serves()).count()
    }

    /// The lowest Ollama version among the ready backends.
    pub fn version(&self) -> OllamaVersion {
        let ready = self.backends.iter().filter(|b| b.serves());
        ready.map(|b| OllamaVersion::parse(&b.version)).min().unwrap_or_default()
    }

    /// The version to announce: the local Ollama's, if there is one.
    pub fn announced_version(&self) -> OllamaVersion {
        let local = self.backends.iter().find(|b| matches!(b.origin, Origin::Local(_)));
        local.map_or_else(|| self.version(), |b| OllamaVersion::parse(&b.version))
    }

    /// Backends, ready or not.
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Whether a ready backend's inventory is known to be out of date.
    pub fn has_stale_inventory(&self) -> bool {
        self.backends.iter().any(|b| b.serves() && b.inventory_stale.is_some())
    }

    /// What the ready backends have, with their names.
    pub fn inventories(&self) -> Vec<(String, Arc<Inventory>)> {
        let ready = self.backends.iter().filter(|b| b.serves());
        ready.filter_map(|b| Some((b.short_name(), Arc::clone(b.inventory.as_ref()?)))).collect()
    }

    /// Requests in flight over all backends.
    pub fn in_flight(&self) -> u32 {
        self.backends.iter().map(|b| b.in_flight).sum()
    }

    /// Whether the Ollama of this machine is ready.
    pub fn is_local_ready(&self) -> bool {
        let is_local = |b: &&Backend| matches!(b.origin, Origin::Local(_));
        self.backends.iter().find(is_local).is_some_and(|b| b.health == Health::Ready)
    }

    /// Why there is no backend, for people.
    pub fn explain(&self, local_only: bool) -> String {
        let state = |b: &Backend| match &b.health {
            Health::Down { reason, .. } => format!("{}: {reason}", b.label()),
            Health::New => format!("{}: not checked yet", b.label()),
            Health::Ready if b.in_doubt => format!("{}: being checked", b.label()),
            Health::Ready if b.is_held_back() => {
                let reason = b.contest.as_ref().map_or("", |contest| &contest.reason);
                format!("{}: not trusted, {reason}", b.label())
            }
            Health::Ready => format!("{}: tried", b.label()),
        };
        let is_local = |b: &&Backend| matches!(b.origin, Origin::Local(_));
        if let Some(local) = self.backends.iter().find(is_local).filter(|_| local_only) {
            return format!("Ollama does not answer ({})", state(local));
        }
        if self.backends.is_empty() {
            return "no Ollama server found on the LAN".to_owned();
        }
        let states: Vec<String> = self.backends.iter().take(8).map(state).collect();
        format!("no Ollama server is ready ({})", states.join("; "))
    }

    fn add(&mut self, now: Instant, origin: Origin, addresses: Vec<SocketAddr>) -> &mut Backend {
        let id = BackendId(self.next_id);
        self.next_id += 1;
        self.backends.push(Backend {
            id,
            origin,
            identity: None,
            is_confirmed: false,
            contradicted: None,
            forged_at: None,
            is_unreached: false,
            contest: None,
            told_at: None,
            is_newcomer: false,
            instance: 0,
            name: String::new(),
            addresses,
            in_doubt: false,
            candidate: None,
            checking_candidate: false,
            checking_address: None,
            health: Health::New,
            since: now,
            tally: Tally::default(),
            streak: 0,
            failures: 0,
            next_check: now,
            checking_since: None,
            checked_at: None,
            round_trip: None,
            version: String::new(),
            management_open: false,
            open: None,
            in_flight: 0,
            last_seen: now,
            strikes: 0,
            ejections: 0,
            ejected_until: None,
            cooling_until: None,
            failed_at: None,
            inventory: None,
            inventory_due: now,
            inventory_stale: None,
            loaded_since: Vec::new(),
            first_byte: None,
            speeds: HashMap::new(),
            learned_limit: None,
        });
        let last = self.backends.len() - 1;
        &mut self.backends[last]
    }

    fn sighted(&mut self, now: Instant, sighting: Sighting, actions: &mut Vec<Action>) {
        let Sighting { address, identity, instance, name, ollama_up, management_open } = sighting;
        // Same address first. The same identity elsewhere is the same server if it is the same
        // run of it, or if the old place has stopped to answer; else it may be a copied disk.
        let known =
            self.backends.iter().position(|b| b.addresses.contains(&address)).or_else(|| {
                self.backends.iter().position(|b| {
                    b.identity == Some(identity)
                        && b.is_discovered()
                        && (b.instance == instance || matches!(b.health, Health::Down { .. }))
                })
            });
        let backend = match known {
            Some(at) => &mut self.backends[at],
            None => {
                if !self.may_announce(address.ip()) || !self.make_room(now) {
                    actions.push(Action::Report(Transition::Refused { address }));
                    return;
                }
                self.add(now, Origin::Discovered, vec![address])
            }
        };
        backend.last_seen = now;
        let claims_another = backend.identity.is_some_and(|own| own != identity);
        if claims_another && backend.is_confirmed && backend.is_usable() {
            // Anyone can send that from a forged source. The server itself is asked.
            backend.contradicted = Some(identity);
            let again = backend.checked_at.map_or(now, |at| at + FIRST_RETRY);
            backend.next_check = backend.next_check.min(again.max(now));
            return;
        }
        let is_new_run = backend.instance != instance;
        let is_new_address = !backend.addresses.contains(&address);
        if !backend.is_usable() {
            // Of all its places this is the likeliest, which a check has to show.
            backend.use_address(address);
            backend.in_doubt = true;
        } else if is_new_address {
            backend.candidate = Some(address);
        }
        if backend.origin == Origin::Legacy {
            backend.origin = Origin::Discovered; // It has been updated.
        }
        backend.identity = Some(identity);
        backend.instance = instance;
        backend.management_open = management_open;
        if !name.is_empty() && !backend.is_confirmed {
            backend.name = name;
        }
        let ready = backend.health == Health::Ready;
        if is_new_run || is_new_address || !ready || !ollama_up {
            backend.next_check = now;
        }
    }

    fn legacy_sighted(&mut self, now: Instant, ip: IpAddr, actions: &mut Vec<Action>) {
        let address = SocketAddr::new(ip, SERVER_PORT);
        let known = |b: &&mut Backend| b.addresses.iter().any(|known| known.ip() == ip);
        if let Some(backend) = self.backends.iter_mut().find(known) {
            backend.last_seen = now;
        } else if self.make_room(now) {
            self.add(now, Origin::Legacy, vec![address]);
        } else {
            actions.push(Action::Report(Transition::Refused { address }));
        }
    }

    fn may_announce(&self, ip: IpAddr) -> bool {
        let from_there = |b: &&Backend| b.addresses.iter().any(|known| known.ip() == ip);
        ip.is_loopback() || self.backends.iter().filter(from_there).count() < MAX_PER_ADDRESS
    }

    /// Makes room for one more; only servers that never answered or are down give way: those that
    /// have failed their very first checks whenever room is needed, others once they are forgotten.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.backends.len() < self.rules.max_servers {
            return true;
        }
        let weakest = self
            .backends
            .iter()
            .enumerate()
            .filter(|(_, b)| b.has_failed_first() || b.is_forgettable(now))
            .min_by_key(|(_, b)| (!b.has_failed_first(), b.checking_since.is_some(), b.last_seen))
            .map(|(at, _)| at);
        let Some(at) = weakest else { return false };
        let gone = self.backends.swap_remove(at);
        self.abandoned.extend(gone.checking_since.map(|since| (gone.id, since)));
        true
    }

    fn finished(&mut self, now: Instant, id: BackendId, report: Report, actions: &mut Vec<Action>) {
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) else { return };
        let loaded =
            report.loaded.filter(|(model, is_loaded)| backend.has_loaded(model) != *is_loaded);
        if let (Some((model, false)), Some(inventory)) = (&loaded, &backend.inventory) {
            backend.inventory = Some(Arc::new(inventory.unloaded(model)));
            let at = now + UNLOADING;
            backend.inventory_due = at;
            backend.inventory_stale = Some(at);
            backend.next_check = backend.next_check.min(at);
        }
        if report.changed_models || matches!(loaded, Some((_, true))) {
            backend.inventory_due = now;
            backend.inventory_stale = Some(now);
            backend.next_check = now;
        }
        if let Some(loaded) = loaded {
            if backend.loaded_since.len() >= MAX_LOADED_SINCE {
                backend.loaded_since.remove(0);
            }
            backend.loaded_since.push(loaded);
        }
        if let Some(first_byte) = report.first_byte {
            backend.first_byte = Some(match backend.first_byte {
                Some(old) => (old * 3 + first_byte) / 4,
                None => first_byte,
            });
        }
        if let Some((model, speed)) = report.speed.filter(|(_, speed)| speed.is_finite()) {
            if backend.speeds.len() >= MAX_SPEEDS && !backend.speeds.contains_key(&model) {
                backend.speeds.clear(); // Rare, and learned again with the next answers.
            }
            let known = backend.speeds.entry(model).or_insert(speed);
            *known = (*known * 3.0 + speed) / 4.0;
        }
        let outcome = report.outcome;
        match outcome {
            Outcome::Void => {}
            Outcome::Answered => {
                backend.strikes = 0;
                backend.ejections = 0;
                backend.ejected_until = None;
                backend.failed_at = None;
            }
            Outcome::Overloaded => {
                backend.cooling_until = Some(now + COOL_DOWN);
                // It took the others. If there are none, others than we keep it busy.
                if backend.in_flight > 0 {
                    backend.learned_limit = Some((backend.in_flight, now));
                }
            }
            Outcome::Unreachable | Outcome::Failed => {
                backend.is_unreached |= outcome == Outcome::Unreachable;
                // Ask it at once whether it is well; the answer decides about its health.
                backend.next_check = now;
                backend.failed_at = Some(now);
                backend.strikes += 1;
                if outcome == Outcome::Unreachable {
                    backend.cooling_until = Some(now + COOL_DOWN);
                }
                if backend.strikes >= STRIKES {
                    backend.strikes = 0;
                    let pause = FIRST_EJECTION
                        .saturating_mul(1 << backend.ejections.min(8))
                        .min(LONGEST_EJECTION);
                    backend.ejections += 1;
                    backend.ejected_until = Some(now + pause);
                    let name = backend.label();
                    actions.push(Action::Report(Transition::Ejected { name, pause }));
                }
            }
        }
    }

    fn forget(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_recent =
            |since: Instant| now.saturating_duration_since(since) <= self.rules.health_timeout * 4;
        self.abandoned.retain(|(_, since)| is_recent(*since));
        for backend in &mut self.backends {
            let overdue = |since: Instant| {
                now.saturating_duration_since(since) > self.rules.health_timeout * 4
            };
            let lifted = |(_, at): (u32, Instant)| now.saturating_duration_since(at) > LIMIT_AGE;
            if backend.learned_limit.is_some_and(lifted) {
                backend.learned_limit = None;
            }
            if backend.checking_since.is_some_and(overdue) {
                backend.checking_since = None; // The job was dropped; ask again.
            }
        }
        self.backends.retain(|backend| {
            let forget = backend.is_forgettable(now);
            if forget {
                let name = backend.label();
                actions.push(Action::Report(Transition::Forgotten { name }));
            }
            !forget
        });
    }
}

#[cfg(test)]
mod tests;
