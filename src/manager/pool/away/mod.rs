//! Servers that are away: whose models a request is told of instead of another machine's "not
//! found", what is listed of those that can be woken, and how one is forgotten.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::{Remembered, Told};
use super::records::{Had, Record, Who};
use super::{Backend, BackendId, Known, NoPick, Pool, Verdict, Wanted};
use crate::config::{Sleeper, elapsed};
use crate::ollama::inventory::Inventory;
use crate::ollama::model_name::ModelName;

/// A remembered server that can't be used now.
#[derive(Clone, Debug)]
pub(crate) struct AwayNow {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Its entry in the pool, unless that was dropped.
    pub(crate) backend: Option<BackendId>,
    /// Time since it was well.
    pub(crate) since: Duration,
    pub(crate) models: Arc<Inventory>,
}

/// What came of the wish to forget a server.
#[derive(Clone, Debug)]
pub(crate) enum Forgot {
    /// These are forgotten.
    Done(Vec<Known>),
    /// It is up, and would be known again at once.
    IsUp,
    /// There is none of that name, but these.
    Unknown(Vec<String>),
}

/// The only server with a model, which can't be used.
#[derive(Debug)]
pub(super) struct AbsentOwner {
    /// For people: where the model is, and why that doesn't help.
    pub(super) sentence: String,
    /// A check that is under way may show that it is well.
    may_recover: bool,
}

impl From<AbsentOwner> for NoPick {
    fn from(owner: AbsentOwner) -> Self {
        let AbsentOwner { sentence, may_recover } = owner;
        if may_recover { NoPick::NoneUp(sentence) } else { NoPick::OwnerAway(sentence) }
    }
}

impl Backend {
    /// Whether requests that don't ask for it may go there now.
    fn is_usable(&self) -> bool {
        self.gets_work() && self.addresses.confirmed().is_some()
    }

    pub(super) fn who(&self) -> Who<'_> {
        let (identity, addresses) = (self.claims.identity, &self.addresses.known[..]);
        Who { identity, addresses, given: self.given() }
    }

    /// What is to be remembered of it, if that is known and it can be used.
    fn told(&self) -> Option<Told<'_>> {
        Some(Told {
            who: self.who(),
            name: self.short_name(),
            address: self.addresses.confirmed().filter(|_| self.gets_work())?,
            at: self.health.passed_at?,
            inventory: self.models.inventory.as_ref()?,
            is_newcomer: self.claims.is_newcomer,
        })
    }
}

impl Pool {
    /// Writes down what a server has that was asked, and forgets what is long ago; whether that is
    /// news.
    pub(super) fn remember(&mut self, now: Instant, asked: Option<BackendId>) -> bool {
        // A daemon that doesn't choose has no use for it.
        if !self.rules.inventories {
            return false;
        }
        let asked = self.backends.iter().find(|b| Some(b.id) == asked);
        let is_news = asked.and_then(Backend::told).is_some_and(|told| self.memory.learn(told));
        if is_news {
            let backends = &self.backends;
            let is_there =
                |it: &Remembered| backends.iter().any(|b| b.is_usable() && it.is(b.who()));
            self.memory.make_room(now, is_there);
        }
        let is_over = self.memory.expire(now);
        self.look_for_absent();
        is_news || is_over
    }

    pub(super) fn remembered(&self, now: Instant) -> Vec<Known> {
        let known = |it: &Remembered| Known {
            identity: it.identity,
            name: it.name.clone(),
            address: it.address,
            is_present: false,
            had: Some(Had { ago: it.age(now), ..it.had.clone() }),
        };
        self.memory.servers.iter().map(known).collect()
    }

    /// The pool's entry of a remembered server; of several, one that can be used.
    fn backend_of(&self, it: &Remembered) -> Option<&Backend> {
        self.backends.iter().filter(|b| it.is(b.who())).max_by_key(|b| b.is_usable())
    }

    /// The remembered servers that can't be used now, and their entries in the pool.
    fn absent(&self) -> impl Iterator<Item = (&Remembered, Option<&Backend>)> {
        let all = self.memory.servers.iter().map(|it| (it, self.backend_of(it)));
        all.filter(|(_, own)| !own.is_some_and(Backend::is_usable))
    }

    fn look_for_absent(&mut self) {
        let has_absent = self.absent().next().is_some();
        self.memory.has_absent = has_absent;
    }

    /// Whether a server is remembered that can't be used now.
    pub(crate) fn has_absent(&self) -> bool {
        self.memory.has_absent
    }

    pub(crate) fn away(&self, now: Instant) -> Vec<AwayNow> {
        let now = |(it, backend): (&Remembered, Option<&Backend>)| AwayNow {
            name: it.name.clone(),
            address: it.address,
            backend: backend.map(|b| b.id),
            since: it.age(now),
            models: Arc::clone(&it.had.models),
        };
        self.absent().map(now).collect()
    }

    /// Names and models of those that are away and can be woken, so that programs may ask for them.
    pub(crate) fn sleeping(&self) -> Vec<(String, Arc<Inventory>)> {
        let is_meant = |it: &Remembered, sleeper: &Sleeper| match sleeper {
            // Whose it is, only the network knows.
            Sleeper::Mac(_) => true,
            Sleeper::Server(name) => it.is_called(name),
        };
        let can_be_woken = |it: &Remembered| self.rules.wake.iter().any(|wake| is_meant(it, wake));
        let sleeping = self.absent().filter(|(it, _)| can_be_woken(it));
        sleeping.map(|(it, _)| (it.name.clone(), Arc::clone(&it.had.models))).collect()
    }

    /// Whether a machine that may be woken is away and may do this request: nothing tells that it
    /// can't.
    pub(crate) fn may_wake_for(&self, wanted: &Wanted) -> bool {
        self.rules.wake.iter().any(|sleeper| match sleeper {
            // Whose it is, only the network knows.
            Sleeper::Mac(_) => true,
            Sleeper::Server(name) => self.may_do_once_awake(name, wanted),
        })
    }

    /// Whether a machine that goes by this name is away and may do it. Of one that isn't known,
    /// nothing is ruled out.
    fn may_do_once_awake(&self, sleeper: &str, wanted: &Wanted) -> bool {
        let (memory, model) = (&self.memory.servers, wanted.bound_model());
        let remembered = memory.iter().map(|it| {
            let is_up = self.backends.iter().any(|b| b.is_verified() && it.is(b.who()));
            let may_have = model.is_none_or(|model| it.had.models.has(model));
            (it.who(), it.name.as_str(), !is_up && may_have)
        });
        let others = self.backends.iter().filter(|b| !memory.iter().any(|it| it.is(b.who())));
        let others = others.map(|b| {
            let has = |model| b.models.has(model) || b.models.may_have_more();
            (b.who(), b.claims.name.as_str(), !b.is_verified() && model.is_none_or(has))
        });
        let is_it = |(who, own, _): &(Who<'_>, &str, bool)| who.is_called(sleeper, own);
        let known: Vec<_> = remembered.chain(others).filter(is_it).collect();
        let may_do =
            |&(who, own, may): &(Who<'_>, &str, bool)| may && self.may_go(wanted, who, own);
        known.is_empty() || known.iter().any(may_do)
    }

    /// Whether neither the client nor the user's rules keep a request from this server.
    fn may_go(&self, wanted: &Wanted, who: Who<'_>, own: &str) -> bool {
        let is_banned = |(model, server): &(ModelName, String)| {
            wanted.model.as_ref() == Some(model) && who.is_called(server, own)
        };
        let is_asked_for = wanted.server.as_ref().is_none_or(|server| who.is_called(server, own));
        is_asked_for && !self.rules.bans.iter().any(is_banned)
    }

    /// A server that has the model, where no eligible one has it: one that is away, or was tried
    /// in vain. None if the client asks for a certain server.
    pub(super) fn absent_owner(
        &self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Option<AbsentOwner> {
        let has_choice = wanted.server.is_none() && !wanted.local_only;
        // Any server may have a cloud's model; but one of an earlier version says that it hasn't.
        let model = wanted.bound_model().or(wanted.model.as_ref().filter(|_| !tried.is_empty()));
        let model = model.filter(|_| has_choice)?;
        let remembered =
            self.memory.servers.iter().filter(|it| it.had.models.has(model)).map(|it| {
                let own = self.backend_of(it);
                (it.name.clone(), Some(it.age(now)), own)
            });
        let told = self.backends.iter().filter(|b| b.models.has(model));
        let told = told.map(|b| (b.short_name(), None, Some(b)));
        let mut owners = remembered.chain(told);
        owners.find_map(|(name, age, own)| {
            let for_now =
                own.map_or(Duration::ZERO, |b| now.saturating_duration_since(b.health.since));
            let since = elapsed(age.unwrap_or(for_now).as_secs());
            let away = |reason: &str| format!("which is away, last seen {since} ago{reason}");
            let is_tried = own.is_some_and(|b| tried.contains(&b.id));
            let (state, may_recover) = match own.map(|b| (b, &b.health.verdict)) {
                None => (away(""), false),
                Some(_) if is_tried => (away(": it does not answer"), false),
                Some((b, _)) if b.is_usable() => return None,
                Some((_, Verdict::Down(reason))) => (away(&format!(": {reason}")), false),
                Some((b, _)) => match b.claims.conflict.as_ref().filter(|it| it.is_quarantined) {
                    Some(conflict) => {
                        (format!("which gets no requests: {}", conflict.reason), false)
                    }
                    // A request that was elsewhere doesn't wait for it.
                    None => ("which is being checked".to_owned(), tried.is_empty()),
                },
            };
            let server = match own {
                Some(b) if b.is_local() => "this machine's Ollama".to_owned(),
                _ => format!("server {name:?}"),
            };
            let sentence = format!("model {:?} is on {server}, {state}", model.as_str());
            Some(AbsentOwner { sentence, may_recover })
        })
    }

    /// Forgets what is known of a server by this name that isn't up.
    pub(crate) fn forget_server(&mut self, now: Instant, name: &str) -> Forgot {
        let all = self.memorable(now);
        if !all.iter().any(|known| known.is_called(name)) {
            let mut names: Vec<String> = all.into_iter().map(|known| known.name).collect();
            names.sort();
            names.dedup();
            return Forgot::Unknown(names);
        }
        let is_up =
            |known: &Known| self.backends.iter().any(|b| b.health.is_ready() && known.is(b.who()));
        let gone: Vec<Known> =
            all.into_iter().filter(|known| known.is_called(name) && !is_up(known)).collect();
        if gone.is_empty() {
            return Forgot::IsUp;
        }
        let is_gone = |who: Who<'_>| gone.iter().any(|known| known.is(who));
        self.memory.servers.retain(|it| !is_gone(Who::of(it.identity, &it.address)));
        let is_kept = |it: &Record| !is_gone(Who::of(Some(it.identity), &it.address));
        self.records.0.retain(is_kept);
        let down = self.backends.iter_mut().filter(|b| !b.health.is_ready() && is_gone(b.who()));
        down.for_each(|b| b.models.inventory = None);
        self.look_for_absent();
        Forgot::Done(gone)
    }
}

#[cfg(test)]
mod tests;
