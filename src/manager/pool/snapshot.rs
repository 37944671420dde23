//! The state of the backends as people and programs get to see it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Backend, BackendId, Contest, Health, History, Origin, Pool};
use crate::counters::Tally;
use crate::ollama::inventory::Inventory;
use crate::ollama::model_name::ModelName;

/// Whoever looked so recently is looking still.
const WATCH: Duration = Duration::from_secs(10);

/// Whether a server gets work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthNow {
    /// It was never checked, or not well yet.
    New,
    /// It does.
    Ready,
    /// It doesn't, for this reason.
    Down(String),
}

/// Why a server that is ready is passed over while others can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It said that it is busy, or could not be reached just now.
    Cooling(Duration),
    /// Its requests failed; so long it gets none, then one at a time until one succeeds.
    Ejected(Duration),
}

/// A server at one moment.
#[derive(Clone, Debug)]
pub struct ServerNow {
    /// Names it for as long as the daemon runs.
    pub id: BackendId,
    /// Its name, or where it is.
    pub name: String,
    /// `local`, `named`, `discovered`, or `remembered` from an earlier run.
    pub origin: &'static str,
    /// The host and port that the user gave.
    pub given: Option<String>,
    /// The first is in use.
    pub addresses: Vec<SocketAddr>,
    /// What tells against it, if it has the name, the address or the identity of another.
    pub contest: Option<Contest>,
    /// Whether it was met in the last hour.
    pub is_newcomer: bool,
    /// Whether it gets work.
    pub health: HealthNow,
    /// For how long it has had that health.
    pub since: Duration,
    /// Whether and for how long it is passed over.
    pub rest: Option<Rest>,
    /// Of a health check, smoothed.
    pub round_trip: Option<Duration>,
    /// Ollama's version as it wrote it; empty if unknown.
    pub version: String,
    /// Requests.
    pub in_flight: u32,
    /// Requests that it takes at once, if that is known.
    pub limit: Option<u32>,
    /// From a request's head to the first byte of its answer, smoothed.
    pub first_byte: Option<Duration>,
    /// Tokens per second, learned from its answers.
    pub speeds: Vec<(ModelName, f64)>,
    /// What it has, if that is known.
    pub inventory: Option<Arc<Inventory>>,
    /// Models that were loaded or unloaded since the inventory was taken, oldest first.
    pub loaded_since: Vec<(ModelName, bool)>,
    /// What it has done.
    pub tally: Tally,
}

impl ServerNow {
    /// Whether the model is in its memory.
    pub fn has_loaded(&self, model: &ModelName) -> bool {
        match self.loaded_since.iter().rfind(|(name, _)| name == model) {
            Some((_, is_loaded)) => *is_loaded,
            None => self.inventory.as_ref().is_some_and(|known| known.has_loaded(model)),
        }
    }

    /// The learned speed with this model.
    pub fn speed(&self, model: &ModelName) -> Option<f64> {
        self.speeds.iter().find(|(name, _)| name == model).map(|(_, speed)| *speed)
    }
}

impl Backend {
    fn now(&self, now: Instant, max_in_flight: u32) -> ServerNow {
        let (origin, given) = match &self.origin {
            Origin::Local(server) => ("local", Some(server.to_string())),
            Origin::Named(server) => ("named", Some(server.to_string())),
            // Whatever was announced in this run has said who it is.
            Origin::Discovered if self.identity.is_none() => ("remembered", None),
            Origin::Discovered | Origin::Legacy => ("discovered", None),
        };
        let left = |until: Option<Instant>| {
            until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
        };
        let rest = match (self.ejected_until, left(self.cooling_until)) {
            (Some(until), _) => Some(Rest::Ejected(until.saturating_duration_since(now))),
            (None, Some(left)) => Some(Rest::Cooling(left)),
            (None, None) => None,
        };
        let limit = match max_in_flight {
            0 => self.learned_limit.map(|(limit, _)| limit),
            set => Some(set),
        };
        let mut speeds: Vec<(ModelName, f64)> =
            self.speeds.iter().map(|(model, speed)| (model.clone(), *speed)).collect();
        speeds.sort_by(|(a, _), (b, _)| a.cmp(b));
        ServerNow {
            id: self.id,
            name: match &given {
                Some(place) if self.short_name().is_empty() => place.clone(),
                _ => self.short_name(),
            },
            origin,
            given,
            addresses: self.addresses.clone(),
            contest: self.contest.clone(),
            is_newcomer: self.is_newcomer,
            health: match &self.health {
                Health::New => HealthNow::New,
                Health::Ready => HealthNow::Ready,
                Health::Down { reason, .. } => HealthNow::Down(reason.clone()),
            },
            since: now.saturating_duration_since(self.since),
            rest,
            round_trip: self.round_trip,
            version: self.version.clone(),
            in_flight: self.in_flight,
            limit,
            first_byte: self.first_byte,
            speeds,
            inventory: self.inventory.clone(),
            loaded_since: self.loaded_since.clone(),
            tally: self.tally.clone(),
        }
    }
}

impl Pool {
    /// All backends as they are now, in the order in which they came.
    pub fn snapshot(&self, now: Instant) -> Vec<ServerNow> {
        let most = self.rules.max_in_flight;
        let mut servers: Vec<ServerNow> = self.backends.iter().map(|b| b.now(now, most)).collect();
        servers.sort_by_key(|server| server.id);
        servers
    }

    /// Writes down where things stand, for the course of the last minutes.
    /// `taken` knows of requests that the pool doesn't count.
    pub fn record(
        &self,
        history: &mut History,
        now: Instant,
        queue: usize,
        requests: u64,
        taken: &dyn Fn(BackendId) -> u32,
    ) {
        let busy = |b: &Backend| b.in_flight + taken(b.id);
        let servers = self.backends.iter().map(|b| (b.id, b.tally.tokens.value(), busy(b)));
        history.record(now, queue, requests, servers);
    }

    /// Whether somebody has looked just now.
    pub fn is_watched(&self, now: Instant) -> bool {
        self.watched_until.is_some_and(|until| now < until)
    }

    /// A daemon that has no choice doesn't ask for models unless somebody looks.
    pub(super) fn watched(&mut self, now: Instant) {
        let is_first = !self.is_watched(now);
        self.watched_until = Some(now + WATCH);
        for backend in &mut self.backends {
            let is_unknown = backend.inventory.is_none() && backend.health == Health::Ready;
            if is_first && is_unknown && backend.checking_since.is_none() {
                backend.next_check = now;
            }
        }
    }

    /// Whether what a ready backend has is not known.
    pub fn lacks_inventory(&self) -> bool {
        self.backends.iter().any(|b| b.health == Health::Ready && b.inventory.is_none())
    }
}
