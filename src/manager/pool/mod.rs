//! The state of the servers: sightings, health, ejection, expiry, and the choice for a request.
//!
//! Pure: no sockets, no threads, no clock. Time comes in with each input, actions go out into
//! a list. Only the Manager's thread owns a [`Pool`].
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
//!
//! [`Pool::handle`] decides with `sightings`, `checks` (within their `places`) and `trust`,
//! [`Pool::pick`] with `choice`; `unmet` says what of the rules came to nothing, `notices` why
//! machines can't be used. A `backend` is put together of `addresses`, `claims`, `health`, `load` and
//! `models`. What it had outlives it in `memory`, for `away`.

mod addresses;
mod away;
mod backend;
mod checks;
mod choice;
mod claims;
mod events;
mod health;
pub(crate) mod history;
mod load;
mod memory;
mod models;
mod notices;
mod places;
mod records;
mod sightings;
mod sleeps;
mod snapshot;
mod state;
mod trust;
mod unmet;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use self::addresses::Addresses;
use self::claims::{Claims, Standing};
use self::events::Origin;
use self::health::{Health, Verdict};
use self::load::Load;
use self::memory::Memory;
use self::places::Places;
use self::records::Records;
use crate::config::ServerName;
use crate::counters::Tally;
use crate::ollama::inventory::Inventory;
use crate::ollama::model_name::ModelName;
use crate::ollama::version::OllamaVersion;
use crate::upstream::Hope;

pub use events::{
    Action, BackendId, CheckId, Input, NoPick, Notice, Outcome, Pick, Report, Rules, Sighting,
    Transition, Unusable, Wanted,
};
pub use places::{MAX_CHECKS, MAX_LISTS};
pub use records::{Had, Known};

pub(crate) use away::{AwayNow, Forgot};
pub(crate) use backend::Backend;
pub(crate) use history::History;
pub(crate) use models::Models;
pub(crate) use sleeps::Sleeps;
pub(crate) use snapshot::ServerNow;
pub(crate) use state::{QUARANTINED, State};

/// All servers.
#[derive(Debug)]
pub struct Pool {
    rules: Rules,
    pub(super) backends: Vec<Backend>,
    next_id: u32,
    /// State of the jitter's generator (xorshift; quality doesn't matter here).
    random: u64,
    /// Oldest first.
    conversations: VecDeque<LastChoice>,
    /// Clients that upload parts of a model, and where to.
    builds: VecDeque<(IpAddr, BackendId)>,
    places: Places,
    records: Records,
    memory: Memory,
    pub(crate) sleeps: Sleeps,
    /// Somebody wants to see the models until then.
    watched_until: Option<Instant>,
    notices: Vec<Standing>,
    /// When another machine's server was up for the first time.
    first_up: Option<Instant>,
    /// What follows from the input that is being handled.
    actions: Vec<Action>,
}

/// Where a conversation went last.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LastChoice {
    conversation: u64,
    id: BackendId,
    /// It was answered with an error there.
    has_erred: bool,
}

impl LastChoice {
    /// Whether the conversation was here, and may go on here.
    fn is_good(self, b: &Backend) -> bool {
        self.id == b.id && !self.has_erred
    }
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
            places: Places::default(),
            records: Records::default(),
            memory: Memory::default(),
            sleeps: Sleeps::default(),
            watched_until: None,
            notices: Vec::new(),
            first_up: None,
            actions: Vec::new(),
        }
    }

    /// Adds this machine's Ollama.
    pub fn add_local(&mut self, now: Instant, server: ServerName) {
        self.add(now, Origin::Local(server), Vec::new());
    }

    /// Adds a server that the user named.
    pub fn add_named(&mut self, now: Instant, server: ServerName) {
        if !self.backends.iter().any(|b| b.origin == Origin::Named(server.clone())) {
            self.add(now, Origin::Named(server), Vec::new());
        }
    }

    fn add(&mut self, now: Instant, origin: Origin, addresses: Vec<SocketAddr>) -> &mut Backend {
        let id = BackendId(self.next_id);
        self.next_id += 1;
        self.backends.push(Backend {
            id,
            origin,
            last_seen: now,
            tally: Tally::default(),
            hope: Hope::default(),
            hoped_for: None,
            addresses: Addresses { known: addresses, ..Addresses::default() },
            claims: Claims::default(),
            health: Health::new(now),
            load: Load::default(),
            models: Models::default(),
        });
        let last = self.backends.len() - 1;
        &mut self.backends[last]
    }

    /// Decides what follows from an input, and adds it to `actions`.
    pub fn handle(&mut self, now: Instant, input: Input, actions: &mut Vec<Action>) {
        let is_about_servers = match &input {
            Input::Finished(_, report) | Input::Noted(_, report) => {
                report.outcome == Outcome::Unreachable
            }
            Input::Watched | Input::Farewell { .. } | Input::Woken => false,
            _ => true,
        };
        // Of which it is known anew what it has.
        let asked = match &input {
            Input::Checked(id, _) => Some(id.backend),
            Input::Finished(id, report) | Input::Noted(id, report) => {
                report.removed.is_some().then_some(*id)
            }
            _ => None,
        };
        match input {
            Input::Sighted(sighting) => self.sighted(now, sighting),
            Input::LegacySighted(ip) => self.legacy_sighted(now, ip),
            Input::Noticed(notice) => self.noticed(now, notice),
            Input::Farewell { identity, from } => {
                let is_it = |b: &&mut Backend| {
                    b.addresses.has_ip(from) && b.claims.identity == Some(identity)
                };
                self.backends.iter_mut().filter(is_it).for_each(|b| b.health.prompt(now));
            }
            Input::Checked(id, result) => self.checked(now, id, result),
            Input::Finished(id, report) => {
                self.count_out(id, report.is_exempt);
                self.finished(now, id, report);
            }
            Input::Noted(id, report) => self.finished(now, id, report),
            Input::Watched => self.watched(now),
            Input::Slept(time) => {
                self.sleeps.add(now, time);
                self.memory.slept(time);
            }
            // Only who waits for that wants to know.
            Input::Woken => {}
            Input::Tick => self.forget(now),
        }
        if is_about_servers {
            self.review(now);
            self.note_first_up(now);
            self.explain_downs(now);
            self.backends.iter_mut().for_each(Backend::update_hope);
        }
        if (is_about_servers || asked.is_some()) && self.remember(now, asked) {
            self.actions.push(Action::Remember);
        }
        self.start_checks(now);
        actions.append(&mut self.actions);
    }

    /// Counts in requests that were counted elsewhere until now, some of them exempt from limits.
    pub(crate) fn transfer(&mut self, id: BackendId, requests: u32, exempt: u32) {
        let it = self.backends.iter_mut().find(|b| b.id == id);
        it.into_iter().for_each(|b| {
            b.load.in_flight += requests;
            b.load.exempt += exempt;
        });
    }

    fn count_out(&mut self, id: BackendId, is_exempt: bool) {
        let it = self.backends.iter_mut().find(|b| b.id == id && b.load.in_flight > 0);
        it.into_iter().for_each(|b| {
            b.load.in_flight -= 1;
            b.load.exempt = b.load.exempt.saturating_sub(u32::from(is_exempt));
        });
    }

    fn finished(&mut self, now: Instant, id: BackendId, mut report: Report) {
        let inventories = self.asks_for_models(now);
        if let Some((_, Some(conversation))) = report.erred {
            self.remember_error(id, conversation);
        }
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) else { return };
        let outcome = report.outcome;
        // Also an answer that wasn't passed on because another server may do better.
        if let Some(check) = &mut backend.health.running {
            check.has_answered |= outcome.is_answer();
        }
        let is_known = outcome == Outcome::Unreachable && backend.health.down_reason().is_some();
        // That a server which is down can't be reached is no news.
        let told = if is_known { Outcome::TurnedAway } else { outcome };
        let failed = backend.load.finished(now, told, report.first_byte).map(|pause| (None, pause));
        // What a cloud's model answers is the same everywhere.
        let erred = report.erred.take().filter(|(model, _)| !model.is_cloud());
        let erred = erred.and_then(|(model, _)| {
            let pause = backend.models.erred(now, model.clone())?;
            Some((Some(model), pause))
        });
        for (model, pause) in failed.into_iter().chain(erred) {
            let name = backend.label();
            self.actions.push(Action::Report(Transition::OutlierEjected { name, model, pause }));
        }
        let again = backend.models.finished(now, report).filter(|_| inventories);
        // After a failure it is asked at once whether it is well, as after an answer that it gave while
        // it was down; the answer decides about its health.
        let has_answered = matches!(outcome, Outcome::Answered | Outcome::Erred);
        let was_tried = has_answered && backend.health.down_reason().is_some();
        let is_odd = was_tried || matches!(outcome, Outcome::Unreachable | Outcome::Failed);
        if is_odd || again == Some(now) {
            backend.health.next_check = now;
        } else if let Some(again) = again {
            backend.health.check_by(again);
        }
        backend.health.is_unreached |= outcome == Outcome::Unreachable;
    }

    /// Whether a server that gets no work now may in a moment.
    pub fn expects_backend(&self, now: Instant) -> bool {
        let is_between = |b: &Backend| b.health.is_ready() && b.addresses.in_doubt;
        let is_on_trial = |b: &Backend| b.state() == State::Down && b.load.in_flight > 0;
        let may_be = |b: &Backend| b.health.may_recover(now) || is_between(b) || is_on_trial(b);
        self.backends.iter().any(may_be)
    }

    /// Servers that get work.
    pub fn ready(&self) -> usize {
        self.working().count()
    }

    fn working(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|b| b.gets_work())
    }

    /// Name and address of each server that is up, this machine's Ollama left out.
    pub(crate) fn others_up(&self) -> Vec<(String, SocketAddr)> {
        let others = self.working().filter(|b| !b.is_local());
        others.filter_map(|b| Some((b.short_name(), b.addresses.confirmed()?))).collect()
    }

    fn local(&self) -> Option<&Backend> {
        self.backends.iter().find(|b| b.is_local())
    }

    pub(crate) fn has_local(&self) -> bool {
        self.local().is_some()
    }

    pub(crate) fn is_local_ready(&self) -> bool {
        self.local().is_some_and(Backend::gets_work)
    }

    /// The servers that get work: addresses, and the names that they go by.
    pub(crate) fn present(&self) -> Vec<(SocketAddr, Vec<String>)> {
        let names = |b: &Backend| match &b.origin {
            Origin::Named(server) => {
                vec![b.claims.name.clone(), server.host.clone(), server.to_string()]
            }
            _ => vec![b.claims.name.clone()],
        };
        self.working().filter_map(|b| Some((b.addresses.first()?, names(b)))).collect()
    }

    /// The lowest Ollama version among the servers that get work.
    pub(crate) fn version(&self) -> OllamaVersion {
        let versions = self.working().map(|b| b.health.version_number);
        versions.min().unwrap_or_default()
    }

    /// The version to announce: the local Ollama's, if there is one.
    pub(crate) fn announced_version(&self) -> OllamaVersion {
        let local = self.local().map(|b| b.health.version_number);
        local.unwrap_or_else(|| self.version())
    }

    /// Servers in any state.
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Requests in flight over all servers.
    pub fn in_flight(&self) -> u32 {
        self.backends.iter().map(|b| b.load.in_flight).sum()
    }

    /// Whether it is known of some server how many requests it takes at once.
    pub(crate) fn has_limit(&self) -> bool {
        self.backends.iter().any(|b| b.load.limit(self.rules.max_in_flight).is_some())
    }

    /// Whether an inventory is known to be out of date.
    pub(crate) fn has_stale_inventory(&self) -> bool {
        self.working().any(|b| b.models.stale_since.is_some() || b.models.are_coming())
    }

    /// What programs get to see: of each server that gets work, the models that it would be chosen
    /// for.
    pub(crate) fn inventories(&self) -> Vec<(String, Arc<Inventory>)> {
        let known = |b: &'_ Backend| b.models.inventory.clone();
        let is_called = |rule: &(ModelName, String), model: &ModelName, b: &Backend| {
            rule.0 == *model && b.is_called(&rule.1)
        };
        let Rules { pins, bans, .. } = &self.rules;
        let is_pinned =
            |model: &ModelName, b: &Backend| pins.iter().any(|pin| is_called(pin, model, b));
        let is_hidden = |model: &ModelName, b: &Backend| {
            bans.iter().any(|ban| is_called(ban, model, b))
                || (!is_pinned(model, b) && self.working().any(|other| is_pinned(model, other)))
                // Requests go to those that the user named.
                || (b.is_discovered()
                    && self.working().any(|other| !other.is_discovered() && other.models.has(model)))
        };
        let shown =
            |b: &Backend| Some((b.short_name(), known(b)?.without(|model| is_hidden(model, b))));
        self.working().filter(|b| b.addresses.confirmed().is_some()).filter_map(shown).collect()
    }

    /// Why there is no server, for people.
    pub(crate) fn explain(&self, local_only: bool) -> String {
        let state = |b: &Backend| {
            let (label, conflict) = (b.label(), b.claims.conflict.as_ref());
            match &b.health.verdict {
                Verdict::Down(reason) => format!("{label}: {reason}"),
                Verdict::New => format!("{label}: not checked yet"),
                Verdict::Ready if b.addresses.in_doubt => format!("{label}: being checked"),
                Verdict::Ready => match conflict.filter(|conflict| conflict.is_quarantined) {
                    Some(conflict) => format!("{label}: not trusted, {}", conflict.reason),
                    None => format!("{label}: tried"),
                },
            }
        };
        if let Some(local) = self.local().filter(|_| local_only) {
            return format!("Ollama does not answer ({})", state(local));
        }
        if self.backends.is_empty() {
            let unusable = self.strangers().take(3).map(|it| it.notice.sentence());
            let none = "no Ollama server found on the LAN".to_owned();
            return [none].into_iter().chain(unusable).collect::<Vec<_>>().join("; ");
        }
        let states: Vec<String> = self.backends.iter().take(8).map(state).collect();
        format!("no Ollama server is ready ({})", states.join("; "))
    }
}

#[cfg(test)]
mod tests;
