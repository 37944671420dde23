//! What other threads may know without asking: updated after every event.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fast_path::{FastPath, Slot};
use super::pool::{BackendId, Pool};
use crate::access::permissions::ShareModels;
use crate::config::Timing;
use crate::counters::{ConnectionCounts, Counters};
use crate::library::Library;
use crate::ollama::version::OllamaVersion;
use crate::system::lock;

/// What this daemon is, for those who look at its state.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    /// `client`, `server` or `both`.
    pub(crate) mode: String,
    pub(crate) why: String,
    /// Where its proxies listen, the client's first.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where its discovery goes or answers.
    pub(crate) discovery: String,
    /// Of each proxy, the client's first.
    pub(crate) connections: Vec<Arc<dyn ConnectionCounts>>,
    pub(crate) timing: Timing,
    /// Whom the models of this machine's Ollama are given.
    pub(crate) share_models: ShareModels,
    /// A server's.
    pub(crate) library: Option<Arc<Library>>,
    pub(crate) started: Instant,
}

/// What is known of the Manager without asking it.
#[derive(Debug, Default)]
pub struct Presence {
    is_up: AtomicBool,
    is_local_up: AtomicBool,
    version: AtomicU32,
    in_flight: AtomicU32,
    backends: AtomicU32,
    has_absent: AtomicBool,
    has_limit: AtomicBool,
    events_handled: AtomicU32,
    network_changed_at: Mutex<Option<Instant>>,
    counters: Counters,
    about: Mutex<Option<Arc<About>>>,
    advice: Mutex<Option<String>>,
    silence: Mutex<Option<String>>,
    awake: Mutex<(bool, Option<String>)>,
    /// For this machine's programs.
    own_path: Slot,
    /// For the LAN: only ever the local Ollama.
    lan_path: Slot,
}

impl Presence {
    pub(super) fn update(&self, pool: &Pool) {
        self.is_up.store(pool.ready() > 0, Relaxed);
        self.is_local_up.store(pool.is_local_ready(), Relaxed);
        self.version.store(pool.announced_version().to_bits(), Relaxed);
        self.in_flight.store(pool.in_flight(), Relaxed);
        self.backends.store(pool.len() as u32, Relaxed);
        self.has_absent.store(pool.has_absent(), Relaxed);
        self.has_limit.store(pool.has_limit(), Relaxed);
        self.event_handled();
    }

    /// Whether any server gets work.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    pub(crate) fn is_local_up(&self) -> bool {
        self.is_local_up.load(Relaxed)
    }

    /// The local Ollama's version, or the lowest of the servers that get work.
    pub(crate) fn version(&self) -> OllamaVersion {
        OllamaVersion::from_bits(self.version.load(Relaxed))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed) + self.count_published(|_| true)
    }

    /// Servers in any state.
    pub fn backends(&self) -> u32 {
        self.backends.load(Relaxed)
    }

    /// Whether there are several servers, such as are remembered and away included: then it matters
    /// which model a request is about.
    pub(crate) fn has_choice(&self) -> bool {
        self.backends() > 1 || self.has_absent.load(Relaxed)
    }

    /// Whether some server is known to take so many requests at once and no more.
    pub(crate) fn has_limit(&self) -> bool {
        self.has_limit.load(Relaxed)
    }

    /// Changes whenever the Manager has handled an event, which tells that it is alive.
    pub(crate) fn events_handled(&self) -> u32 {
        self.events_handled.load(Relaxed)
    }

    pub(crate) fn event_handled(&self) {
        self.events_handled.fetch_add(1, Relaxed);
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn describe(&self, about: About) {
        *lock(&self.about) = Some(Arc::new(about));
    }

    pub(crate) fn about(&self) -> Option<Arc<About>> {
        lock(&self.about).clone()
    }

    /// What to set on this machine, for people.
    pub(crate) fn advise(&self, advice: Option<String>) {
        *lock(&self.advice) = advice;
    }

    pub(crate) fn advice(&self) -> Option<String> {
        lock(&self.advice).clone()
    }

    /// Whether this machine is kept awake, or why it can't be.
    pub(crate) fn tell_awake(&self, is_held: bool, problem: Option<String>) {
        *lock(&self.awake) = (is_held, problem);
    }

    pub(crate) fn awake(&self) -> (bool, Option<String>) {
        lock(&self.awake).clone()
    }

    /// Why the discovery finds nobody, most likely; for people.
    pub(crate) fn explain_silence(&self, why: String) {
        *lock(&self.silence) = Some(why);
    }

    pub(crate) fn silence(&self) -> Option<String> {
        lock(&self.silence).clone()
    }

    /// Whether the network has changed within this time, or the machine has slept: connections
    /// from before may lead nowhere.
    pub(crate) fn is_network_new(&self, time: Duration) -> bool {
        lock(&self.network_changed_at).is_some_and(|at| at.elapsed() <= time)
    }

    /// The network has changed, or the machine has slept.
    pub(crate) fn note_network_change(&self) {
        *lock(&self.network_changed_at) = Some(Instant::now());
    }

    pub(super) fn slot(&self, local_only: bool) -> &Slot {
        if local_only { &self.lan_path } else { &self.own_path }
    }

    pub(super) fn in_flight_unasked(&self, id: BackendId) -> u32 {
        self.count_published(|path| path.pick.id == id)
    }

    fn count_published(&self, is_meant: impl Fn(&FastPath) -> bool) -> u32 {
        let paths = [&self.own_path, &self.lan_path].map(Slot::published);
        paths.iter().flatten().filter(|path| is_meant(path)).map(|path| path.count()).sum()
    }
}
