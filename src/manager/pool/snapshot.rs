//! The state of the servers as people and programs get to see it.

use std::time::{Duration, Instant};

use super::{Backend, Origin, Pool, Sleeps, State};
use crate::ollama::aliases::Alias;
use crate::ollama::inventory::is_had;

/// Somebody who looked so recently is looking still.
const WATCH: Duration = Duration::from_secs(10);

/// A server at one moment, and what follows from the moment.
#[derive(Clone, Debug)]
pub(crate) struct ServerNow {
    pub(crate) backend: Backend,
    pub(crate) name: String,
    /// `local`, `named`, `discovered`, or `remembered` from an earlier run.
    pub(crate) origin: &'static str,
    /// The host and port that the user gave.
    pub(crate) given: Option<String>,
    pub(crate) state: State,
    /// For how long it has had that health.
    pub(crate) since: Duration,
    /// As which state, and for how long, it is passed over; told even of a server that gets no
    /// work anyway.
    pub(crate) pause: Option<(State, Duration)>,
    pub(crate) limit: Option<u32>,
}

impl Backend {
    fn now(&self, now: Instant, max_in_flight: u32, sleeps: &Sleeps) -> ServerNow {
        let given = self.given().map(ToString::to_string);
        let name = Some(self.short_name()).filter(|name| !name.is_empty());
        let pause = self.load.pause(now);
        ServerNow {
            backend: self.clone(),
            name: name.or_else(|| given.clone()).unwrap_or_default(),
            origin: match &self.origin {
                Origin::Local(_) => "local",
                Origin::Named(_) => "named",
                // A server that was announced in this run has said which one it is.
                Origin::Discovered if self.claims.identity.is_none() => "remembered",
                Origin::Discovered | Origin::Legacy => "discovered",
            },
            given,
            state: match (self.state(), pause) {
                (State::Ready, Some((pause, _))) => pause,
                (state, _) => state,
            },
            since: sleeps.age(self.health.since, now),
            pause,
            limit: self.load.limit(max_in_flight),
        }
    }

    fn lacks_inventory(&self) -> bool {
        self.health.is_ready() && self.models.inventory.is_none()
    }
}

impl Pool {
    /// All servers as they are now, in the order in which they came.
    pub(crate) fn snapshot(&self, now: Instant) -> Vec<ServerNow> {
        let most = self.rules.max_in_flight;
        let mut servers: Vec<ServerNow> =
            self.backends.iter().map(|b| b.now(now, most, &self.sleeps)).collect();
        servers.sort_by_key(|server| server.backend.id);
        servers
    }

    /// What each alias stands for now.
    pub(crate) fn aliases(&self) -> Vec<(Alias, Option<String>)> {
        if self.rules.aliases.is_empty() {
            return Vec::new();
        }
        let servers = self.inventories();
        let model = |alias: &Alias| alias.model(|model| is_had(&servers, model)).map(str::to_owned);
        self.rules.aliases.all().iter().map(|alias| (alias.clone(), model(alias))).collect()
    }

    /// Whether checks ask for models.
    pub(super) fn asks_for_models(&self, now: Instant) -> bool {
        self.rules.inventories || self.is_watched(now)
    }

    pub(crate) fn is_watched(&self, now: Instant) -> bool {
        self.watched_until.is_some_and(|until| now < until)
    }

    /// A daemon that has no choice doesn't ask for models unless somebody looks.
    pub(super) fn watched(&mut self, now: Instant) {
        let is_first = !self.is_watched(now);
        self.watched_until = Some(now + WATCH);
        let asks = |b: &&mut Backend| is_first && b.lacks_inventory() && b.health.running.is_none();
        self.backends.iter_mut().filter(asks).for_each(|b| b.health.next_check = now);
    }

    /// Whether what a ready server has is not known.
    pub(crate) fn lacks_inventory(&self) -> bool {
        self.backends.iter().any(Backend::lacks_inventory)
    }
}
