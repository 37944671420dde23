//! Which backend gets a request.
//!
//! 1. Only backends that are up, not yet tried, not in another's name (`trust`), and not ruled out
//!    by a header or a flag.
//! 2. Those that have the model: loaded before on disk before unknown. If none of them has it but
//!    one that is away does, that is said; only a model that nobody has goes anywhere, for Ollama's
//!    own answer.
//! 3. Among equals: those that don't rest and didn't just fail, preferred ones, the conversation's
//!    last one unless it is clearly busier, then the least work weighed by learned speed, then those
//!    known for longer than an hour, then the nearest.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Backend, BackendId, Health, Origin, Pool};
use crate::access::permissions::Permission;
use crate::counters::Tally;
use crate::ollama::endpoints::Task;
use crate::ollama::model_name::ModelName;

/// Conversations remembered.
const MAX_CONVERSATIONS: usize = 4096;
/// Clients remembered that upload parts of a model.
const MAX_BUILDS: usize = 64;
/// A loaded model isn't worth waiting behind so many more requests than elsewhere.
const CLEARLY_BUSIER: u32 = 4;
/// A backend that failed is passed over for so long while others can do.
const RECENT: Duration = Duration::from_secs(5);

/// What a request needs.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The kind of work.
    pub task: Task,
    /// The model it names.
    pub model: Option<ModelName>,
    /// The server that the client asks for by name or address.
    pub server: Option<String>,
    /// Who asks.
    pub client: Option<IpAddr>,
    /// Tells a conversation from others; the same in all of its requests.
    pub conversation: Option<u64>,
    /// What the server has to allow for it.
    pub needs: Permission,
    /// Only the Ollama of this machine will do, whatever its last check said: the LAN asks us.
    pub local_only: bool,
}

/// A backend picked for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Whose `in_flight` was raised; ends with [`Input::Finished`](super::Input::Finished).
    pub id: BackendId,
    /// Where to connect.
    pub address: SocketAddr,
    /// For the log and `X-Ollana-Server`.
    pub name: String,
    /// Whether it is the Ollama of this machine.
    pub is_local: bool,
    /// Where to count what it does.
    pub tally: Tally,
}

impl Pick {
    /// What to call it in a message.
    pub fn label(&self) -> String {
        let address = self.address;
        if self.is_local {
            format!("Ollama at {address}")
        } else if self.name == address.to_string() {
            format!("server {address}")
        } else {
            format!("server {} ({address})", self.name)
        }
    }
}

/// Why there is no backend for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPick {
    /// None is up, or none is left to try.
    NoneUp(String),
    /// All that could do have as many requests as they take.
    Busy,
    /// Only servers that are away could do.
    Away(String),
}

impl Backend {
    fn is_resting(&self, now: Instant) -> bool {
        let later = |until: Option<Instant>| until.is_some_and(|until| now < until);
        later(self.cooling_until) || later(self.ejected_until)
            // After its rest, an ejected backend gets one request at a time until one succeeds.
            || (self.ejected_until.is_some() && self.in_flight > 0)
    }

    fn failed_recently(&self, now: Instant) -> bool {
        self.failed_at.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }

    fn has(&self, model: &ModelName) -> bool {
        self.inventory.as_ref().is_some_and(|inventory| inventory.has(model))
    }

    pub(super) fn has_loaded(&self, model: &ModelName) -> bool {
        // What went through us is younger than what was asked.
        if let Some((_, is_loaded)) = self.loaded_since.iter().rfind(|(name, _)| name == model) {
            return *is_loaded;
        }
        self.inventory.as_ref().is_some_and(|inventory| inventory.has_loaded(model))
    }

    /// Whether people mean this backend by `name`.
    fn is_called(&self, name: &str) -> bool {
        let is_host = |server: &crate::config::ServerName| {
            server.host.eq_ignore_ascii_case(name) || server.to_string() == name
        };
        let named = match &self.origin {
            Origin::Local(server) | Origin::Named(server) => is_host(server),
            Origin::Discovered | Origin::Legacy => false,
        };
        let is_address =
            |address: &SocketAddr| address.to_string() == name || address.ip().to_string() == name;
        named
            || (!self.name.is_empty()
                && self.name.eq_ignore_ascii_case(name)
                && !self.is_held_back())
            || self.addresses.iter().any(is_address)
    }

    /// What it lets us do. A server that the user named and that doesn't say is no proxy of ours.
    fn permission(&self) -> Permission {
        let unsaid = if self.management_open || !self.is_discovered() {
            Permission::Manage
        } else {
            Permission::Use
        };
        self.open.unwrap_or(unsaid)
    }

    fn is_full(&self, most: u32) -> bool {
        let limit = match (most, self.learned_limit) {
            (0, Some((learned, _))) => learned,
            (0, None) => return false,
            (set, _) => set,
        };
        self.in_flight >= limit
    }
}

impl Pool {
    /// Picks the backend for a request and counts it in; `tried` ones are passed over.
    ///
    /// # Errors
    /// [`NoPick`] says why there is none.
    pub fn pick(
        &mut self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Result<Pick, NoPick> {
        let eligible = self.eligible(tried, wanted)?;
        let able = self.able(eligible, tried, wanted)?;
        let free: Vec<usize> = able
            .into_iter()
            .filter(|at| !self.backends[*at].is_full(self.rules.max_in_flight))
            .collect();
        if free.is_empty() {
            return Err(NoPick::Busy);
        }
        let at = self.best(now, &free, wanted);
        self.remember(at, wanted);
        let backend = &mut self.backends[at];
        backend.in_flight += 1;
        let address = backend.addresses.first().copied();
        let address = address.ok_or_else(|| NoPick::NoneUp("no address".to_owned()))?;
        let is_local = matches!(backend.origin, Origin::Local(_));
        let (name, tally) = (backend.short_name(), backend.tally.clone());
        Ok(Pick { id: backend.id, address, name, is_local, tally })
    }

    /// The backend that every request gets, while there is no choice and nothing to count. Not
    /// counted in.
    pub fn sole(&self, now: Instant, local_only: bool) -> Option<Pick> {
        if self.rules.max_in_flight > 0 {
            return None;
        }
        let is_local = |b: &&Backend| matches!(b.origin, Origin::Local(_));
        let sole = match (local_only, &self.backends[..]) {
            (true, all) => all.iter().find(is_local)?,
            // A server that is away may be the only one with a model, so it counts too.
            (false, [one]) if self.rules.bans.is_empty() && one.is_usable() => one,
            (false, _) => return None,
        };
        let troubled =
            sole.is_resting(now) || sole.failed_recently(now) || sole.learned_limit.is_some();
        let address = sole.addresses.first().copied().filter(|_| !troubled)?;
        let is_local = is_local(&sole);
        let (name, tally) = (sole.short_name(), sole.tally.clone());
        Some(Pick { id: sole.id, address, name, is_local, tally })
    }

    /// Backends that are up and allowed.
    fn eligible(&self, tried: &[BackendId], wanted: &Wanted) -> Result<Vec<usize>, NoPick> {
        let usable = |backend: &Backend| {
            let up = match backend.origin {
                Origin::Local(_) => wanted.local_only || backend.is_usable(),
                _ => !wanted.local_only && backend.is_usable(),
            };
            // Whom the user asks for by address is meant.
            let is_meant = |name: &String| backend.is_called(name);
            let up =
                up && (!backend.is_held_back() || wanted.server.as_ref().is_some_and(is_meant));
            up && !backend.addresses.is_empty() && !tried.contains(&backend.id)
        };
        let all: Vec<usize> =
            (0..self.backends.len()).filter(|at| usable(&self.backends[*at])).collect();
        if all.is_empty() {
            return Err(NoPick::NoneUp(self.explain(wanted.local_only)));
        }
        if let Some(name) = &wanted.server {
            let called: Vec<usize> =
                all.into_iter().filter(|at| self.backends[*at].is_called(name)).collect();
            if called.is_empty() {
                return Err(NoPick::Away(format!("no server called {name:?} is up")));
            }
            return Ok(called);
        }
        let Some(model) = &wanted.model else { return Ok(all) };
        let listed = |list: &[(ModelName, String)], at: usize| {
            list.iter().any(|(m, server)| m == model && self.backends[at].is_called(server))
        };
        let allowed: Vec<usize> =
            all.into_iter().filter(|at| !listed(&self.rules.bans, *at)).collect();
        if allowed.is_empty() {
            let model = model.as_str();
            return Err(NoPick::Away(format!("no server that is up may run {model:?}")));
        }
        let pinned: Vec<usize> =
            allowed.iter().copied().filter(|at| listed(&self.rules.pins, *at)).collect();
        Ok(if pinned.is_empty() { allowed } else { pinned })
    }

    /// Of the eligible ones, those that are as good as any for this work.
    fn able(
        &self,
        eligible: Vec<usize>,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Result<Vec<usize>, NoPick> {
        let of = |keep: &dyn Fn(&Backend) -> bool| -> Vec<usize> {
            eligible.iter().copied().filter(|at| keep(&self.backends[*at])).collect()
        };
        if matches!(wanted.task, Task::Build | Task::Pull) {
            return Ok(self.able_to_store(eligible, wanted));
        }
        let Some(model) = wanted.model.as_ref().filter(|model| !model.is_cloud()) else {
            return Ok(eligible);
        };
        let owners = self.allowing(of(&|b| b.has(model)), wanted);
        if owners.is_empty() {
            let unknown = of(&|b| b.inventory.is_none() || b.inventory_stale.is_some());
            if !unknown.is_empty() {
                return Ok(unknown);
            }
            return match self.absent_owner(model, tried) {
                Some(owner) if wanted.server.is_none() => Err(NoPick::Away(owner)),
                _ => Ok(eligible),
            };
        }
        // Whom the user named, and this machine's own Ollama, come before whoever announces itself.
        let most = self.rules.max_in_flight;
        let trusted = |b: &Backend| !b.is_discovered() && !b.is_full(most);
        let trusted: Vec<usize> =
            owners.iter().copied().filter(|at| trusted(&self.backends[*at])).collect();
        let owners = if trusted.is_empty() { owners } else { trusted };
        let of = |keep: &dyn Fn(&Backend) -> bool| -> Vec<usize> {
            owners.iter().copied().filter(|at| keep(&self.backends[*at])).collect()
        };
        // Where the conversation was just now it is loaded, whether that has been told yet or not.
        let last = self.last_of(wanted);
        let is_news = |b: &Backend| b.in_flight > 0 || b.inventory_stale.is_some();
        let was_there = |b: &Backend| Some(b.id) == last && b.has(model) && is_news(b);
        // That it is loaded counts from a newcomer only where there is nobody else.
        let is_old = |at: &usize| !self.backends[*at].is_newcomer;
        let has_old = owners.iter().any(is_old);
        let is_believed = |b: &Backend| !(b.is_newcomer && has_old);
        let loaded = of(&|b| is_believed(b) && (b.has_loaded(model) || was_there(b)));
        let least = |of: &[usize]| of.iter().map(|at| self.backends[*at].in_flight).min();
        let idle_elsewhere = match (least(&loaded), least(&owners)) {
            (Some(loaded), Some(least)) => loaded >= least + CLEARLY_BUSIER,
            _ => true,
        };
        let stay = wanted.task == Task::Unload || !idle_elsewhere;
        Ok(if !loaded.is_empty() && stay { loaded } else { owners })
    }

    /// Those that allow what is wanted; if none does, all, so that one of them says so.
    fn allowing(&self, all: Vec<usize>, wanted: &Wanted) -> Vec<usize> {
        let allows = |at: &usize| self.backends[*at].permission() >= wanted.needs;
        let open: Vec<usize> = all.iter().copied().filter(allows).collect();
        if open.is_empty() { all } else { open }
    }

    /// Of the eligible ones, those that are as good as any for a new model.
    fn able_to_store(&self, eligible: Vec<usize>, wanted: &Wanted) -> Vec<usize> {
        // From another model, a new one can be made only where that is.
        let base = wanted.model.as_ref().filter(|_| wanted.task == Task::Build);
        let has_base = |at: &usize| base.is_some_and(|model| self.backends[*at].has(model));
        let owners: Vec<usize> = eligible.iter().copied().filter(has_base).collect();
        let all = if owners.is_empty() { &eligible } else { &owners };
        let all = self.allowing(all.clone(), wanted);
        let build = self.builds.iter().find(|(client, _)| Some(*client) == wanted.client);
        let is_same = |at: &usize| build.is_some_and(|(_, id)| self.backends[*at].id == *id);
        let same: Vec<usize> = all.iter().copied().filter(is_same).collect();
        if wanted.task == Task::Build && !same.is_empty() {
            return same;
        }
        if !owners.is_empty() {
            return all;
        }
        let room = |at: &usize| self.backends[*at].inventory.as_ref().and_then(|i| i.room);
        let most = all.iter().filter_map(room).max();
        let roomy: Vec<usize> =
            all.iter().copied().filter(|at| most.is_some() && room(at) == most).collect();
        if roomy.is_empty() { all } else { roomy }
    }

    /// Where the conversation went last.
    fn last_of(&self, wanted: &Wanted) -> Option<BackendId> {
        let conversation = wanted.conversation?;
        self.conversations.iter().rfind(|(known, _)| *known == conversation).map(|(_, id)| *id)
    }

    /// A backend that has the model but is not up, or was tried in vain, for people.
    fn absent_owner(&self, model: &ModelName, tried: &[BackendId]) -> Option<String> {
        let owner = self.backends.iter().find(|b| {
            b.has(model) && (tried.contains(&b.id) || matches!(b.health, Health::Down { .. }))
        })?;
        let reason = match &owner.health {
            Health::Down { reason, .. } => reason.as_str(),
            _ => "it does not answer",
        };
        Some(format!(
            "model {:?} is on server {}, which is away: {reason}",
            model.as_str(),
            owner.label()
        ))
    }

    fn best(&self, now: Instant, free: &[usize], wanted: &Wanted) -> usize {
        let speed = |backend: &Backend| {
            wanted.model.as_ref().and_then(|model| backend.speeds.get(model).copied())
        };
        // Nobody is faster for having said so in his first hour.
        let old = free.iter().map(|at| &self.backends[*at]).filter(|b| !b.is_newcomer);
        let fastest = old.filter_map(speed).reduce(f64::max);
        let speed = |backend: &Backend| match (speed(backend), fastest) {
            (Some(said), Some(fastest)) if backend.is_newcomer => Some(said.min(fastest)),
            (said, _) => said,
        };
        let known: Vec<f64> = free.iter().filter_map(|at| speed(&self.backends[*at])).collect();
        let usual =
            if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let least = free.iter().map(|at| self.backends[*at].in_flight).min().unwrap_or(0);
        let last = self.last_of(wanted);
        let key = |at: &usize| {
            let backend = &self.backends[*at];
            let rank = self.rules.preferred.iter().position(|name| backend.is_called(name));
            let continues = Some(backend.id) == last && backend.in_flight <= least + 1;
            // Relative time until a new request is done, in thousandths.
            let work = f64::from(backend.in_flight + 1) * usual
                / speed(backend).unwrap_or(usual).max(0.01);
            let distance = backend.round_trip.map_or(u128::MAX, |rtt| rtt.as_millis() / 2);
            (
                backend.is_resting(now),
                backend.failed_recently(now),
                rank.unwrap_or(usize::MAX),
                Reverse(continues),
                (work * 1000.0) as u64,
                backend.is_newcomer,
                distance,
                backend.id,
            )
        };
        free.iter().copied().min_by_key(key).unwrap_or(free[0])
    }

    fn remember(&mut self, at: usize, wanted: &Wanted) {
        let id = self.backends[at].id;
        if let Some(conversation) = wanted.conversation {
            if self.conversations.len() >= MAX_CONVERSATIONS {
                self.conversations.pop_front();
            }
            let same = self.conversations.back() == Some(&(conversation, id));
            if !same {
                self.conversations.push_back((conversation, id));
            }
        }
        if let (Task::Build, Some(client)) = (wanted.task, wanted.client) {
            self.builds.retain(|(known, _)| *known != client);
            if self.builds.len() >= MAX_BUILDS {
                self.builds.pop_front();
            }
            self.builds.push_back((client, id));
        }
    }
}
