//! Which server gets a request.
//!
//! 1. Only servers that get work, at an address that a check has confirmed, not yet tried, and not
//!    ruled out by a header or a flag.
//! 2. Those that have the model. If none of them has it, the first check of a server that the user
//!    named is waited for; then come those whose models are unknown. If none of them has it but
//!    one that is away has or had it (`memory`), that is said; only a model that nobody has goes
//!    anywhere, for Ollama's own answer. Where it is known that the model can't do what the request
//!    needs, such as tools, it doesn't go, unless that is known of all (`told`).
//!    Where nobody is up that could do it, one that is down is tried, as long as nothing has told that
//!    it can't.
//! 3. Of these, the ones that aren't full; those that the user named before those that were found;
//!    those that didn't answer the conversation with an error, nor the model with three in a row;
//!    where the model is loaded; of those, where the prompt isn't too long for it, or where it has the
//!    context that the request sets; where it isn't known to be split between a graphics card and main
//!    memory; where it is known to do what is needed. But for the prompt's length, a step is skipped
//!    if the better ones are clearly busier. A cloud's model runs on any of them: first on those that
//!    list it, last on those whose account has just not done, or whose Ollama keeps from the cloud.
//! 4. Among equals: those that are not passed over and didn't just fail, preferred ones, the
//!    conversation's last one unless it is clearly busier, then the least work weighed by learned
//!    speed, then those known for longer than an hour, then the nearest.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

mod told;

use super::away::AbsentOwner;
use super::{Backend, BackendId, LastChoice, NoPick, Pick, Pool, State, Wanted};
use crate::ollama::endpoints::Task;
use crate::ollama::model_name::ModelName;

const MAX_CONVERSATIONS: usize = 4096;
/// Clients remembered that upload parts of a model.
const MAX_BUILDS: usize = 64;
/// A loaded model, or another advantage, isn't worth waiting behind so many more requests than
/// elsewhere.
const CLEARLY_BUSIER: u32 = 4;
/// So long after an announced server went down, its address isn't another machine's yet.
const TRUSTED_WHILE_DOWN: Duration = Duration::from_secs(60);

impl Pool {
    /// Picks the server for a request and counts it in; `tried` ones are passed over.
    ///
    /// # Errors
    /// [`NoPick`] says why there is none.
    pub fn pick(
        &mut self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Result<Pick, NoPick> {
        let is_exempt = wanted.is_exempt;
        let (mut able, is_sole, is_trial) = match self.able(now, tried, wanted) {
            // After it, one might be asked that is not as good.
            Ok(one) if let [only] = one[..] => {
                let is_last = self.able(now, &[tried, &[only.id]].concat(), wanted).is_err();
                (one, is_last, false)
            }
            Ok(some) => (some, false, false),
            Err(none) => (vec![self.worth_a_trial(now, tried, wanted, none)?], false, true),
        };
        able.retain(|b| is_exempt || !b.load.is_full(self.rules.max_in_flight));
        let best = self.best(now, &self.warmest(now, able, wanted), wanted).and_then(Backend::pick);
        let pick = Pick { is_exempt, is_sole, is_trial, ..best.ok_or(NoPick::Busy)? };
        self.remember_choice(pick.id, wanted);
        self.transfer(pick.id, 1, u32::from(is_exempt));
        Ok(pick)
    }

    /// The servers of which any could do a request, busy or not.
    pub(crate) fn able_ids(
        &self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Vec<BackendId> {
        let able = self.able(now, tried, wanted);
        able.unwrap_or_default().iter().map(|b| b.id).collect()
    }

    /// The server that every request gets, while there is no choice and nothing to count. Not
    /// counted in.
    pub fn sole(&self, now: Instant, local_only: bool) -> Option<Pick> {
        if self.rules.max_in_flight > 0 {
            return None;
        }
        // A server that is away may be the only one with a model, so it counts too. What was only
        // announced gets no work before a check.
        let mut choice = self.backends.iter().filter(|b| !b.is_stranger());
        let sole = match (local_only, choice.next(), choice.next()) {
            (true, ..) => self.local()?,
            (false, Some(one), None) if self.rules.bans.is_empty() && !self.has_absent() => one,
            (false, ..) => return None,
        };
        let load = &sole.load;
        // What ends a row of errors has to be told, too.
        let is_troubled = load.is_passed_over(now)
            || load.failed_recently(now)
            || load.learned_limit.is_some()
            || sole.models.has_errors();
        let may_go = local_only || (sole.gets_work() && sole.is_verified());
        let pick = if may_go && !is_troubled { sole.pick() } else { None };
        pick.map(|pick| Pick { is_sole: true, ..pick })
    }

    /// A server that is down but may be well again, for a request that nobody else could do. One
    /// request at a time finds out, and after a failure none for a moment. Where others may have come
    /// in its place, a check has to show that they haven't.
    fn worth_a_trial(
        &self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
        none: NoPick,
    ) -> Result<&Backend, NoPick> {
        let may_be_well = |b: &&Backend| {
            let is_known_still = !b.is_discovered()
                || now.saturating_duration_since(b.health.since) < TRUSTED_WHILE_DOWN;
            b.state() == State::Down
                && b.health.is_unanswered
                && b.health.round_trip.is_some()
                && is_known_still
                && b.addresses.confirmed().is_some()
                && !b.claims.is_quarantined()
                && !b.load.is_passed_over(now)
                && !tried.contains(&b.id)
        };
        let model = wanted.model.as_ref();
        let is_right = |b: &&Backend| match &wanted.server {
            Some(server) => b.is_called(server),
            None => model.is_none_or(|model| !is_listed(&self.rules.bans, model, b)),
        };
        let could = |b: &&Backend| {
            let is_unknown = b.models.inventory.is_none() || b.models.stale_since.is_some();
            model.is_none_or(|model| model.is_cloud() || is_unknown || b.models.has(model))
        };
        let down = self.backends.iter().filter(|_| wanted.may_try && !wanted.local_only);
        let down = down.filter(may_be_well).filter(is_right).filter(could);
        // The one that was well last.
        let best =
            down.max_by_key(|b| (model.is_some_and(|model| b.models.has(model)), b.health.since));
        match (best, none) {
            (Some(best), _) if best.load.in_flight == 0 => Ok(best),
            // Others share the fate of the one that tries.
            (Some(_), NoPick::Away(reason) | NoPick::OwnerAway(reason)) => {
                Err(NoPick::NoneUp(reason))
            }
            (_, none) => Err(none),
        }
    }

    /// Servers that are up and allowed.
    fn eligible(
        &self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Result<Vec<&Backend>, NoPick> {
        let is_asked_for = |b: &Backend| wanted.server.as_ref().is_some_and(|it| b.is_called(it));
        let is_up = |b: &&Backend| match wanted.local_only {
            true => b.is_local() && b.addresses.first().is_some(),
            false => {
                b.addresses.confirmed().is_some()
                    && (b.gets_work() || (b.state() == State::Quarantined && is_asked_for(b)))
            }
        };
        let up = self.backends.iter().filter(is_up);
        let mut all: Vec<&Backend> = up.filter(|b| !tried.contains(&b.id)).collect();
        if all.is_empty() {
            return Err(match self.absent_owner(now, tried, wanted) {
                Some(owner) if !tried.is_empty() => owner.into(),
                // Another one that may be up in a moment may have it too.
                Some(owner) => NoPick::NoneUp(owner.sentence),
                None => NoPick::NoneUp(self.explain(wanted.local_only)),
            });
        }
        if let Some(name) = &wanted.server {
            all.retain(|b| is_asked_for(b));
            if all.is_empty() {
                return Err(NoPick::Away(format!("no server called {name:?} is up")));
            }
            return Ok(all);
        }
        let Some(model) = &wanted.model else { return Ok(all) };
        let (banned, all): (Vec<&Backend>, Vec<&Backend>) =
            all.into_iter().partition(|b| is_listed(&self.rules.bans, model, b));
        let has = |b: &&Backend| b.models.has(model);
        let may_have = |b: &&Backend| has(b) || b.models.may_have_more();
        let is_elsewhere = matches!(wanted.task, Task::Build | Task::Pull)
            || all.iter().any(may_have)
            || !banned.iter().any(has);
        if all.is_empty() || !is_elsewhere {
            let model = model.as_str();
            return Err(NoPick::Away(format!("no server that is up may run {model:?}")));
        }
        Ok(prefer(all, |b| is_listed(&self.rules.pins, model, b)))
    }

    /// Of the eligible ones, those that can do it, busy or not.
    fn able(
        &self,
        now: Instant,
        tried: &[BackendId],
        wanted: &Wanted,
    ) -> Result<Vec<&Backend>, NoPick> {
        let eligible = self.eligible(now, tried, wanted)?;
        let absent_owner = || self.absent_owner(now, tried, wanted);
        if matches!(wanted.task, Task::Build | Task::Pull) {
            return self.able_to_store(eligible, wanted, absent_owner);
        }
        let Some(model) = wanted.bound_model() else { return Ok(eligible) };
        let owners = only(&eligible, |b| b.models.has(model));
        if owners.is_empty() {
            // One that the user named, or this machine's, may have it, and says so in a moment.
            // A request that was elsewhere doesn't wait for it.
            let is_unasked = |b: &&Backend| {
                !b.is_discovered() && b.state() == State::New && b.health.may_recover(now)
            };
            if let Some(unasked) = self.backends.iter().find(is_unasked)
                && wanted.server.is_none()
                && tried.is_empty()
            {
                return Err(NoPick::NoneUp(format!("{}: being checked", unasked.label())));
            }
            // They may have models that we don't know of.
            let unknown = only(&eligible, |b| b.models.may_have_more());
            if !unknown.is_empty() {
                return Ok(unknown);
            }
            return absent_owner().map_or(Ok(eligible), |owner| Err(owner.into()));
        }
        let able = prefer(owners, |b| b.permission() >= wanted.needs);
        let able = told::capable(able, model, wanted);
        // A busy one is worth waiting for where the other would only answer with an error.
        let is_ejected = |b: &Backend| wanted.task == Task::Use && b.models.is_ejected(now, model);
        Ok(prefer(able, |b| !is_ejected(b)))
    }

    /// Of those that can do it and are free, those where it is done soonest.
    fn warmest<'a>(
        &self,
        now: Instant,
        free: Vec<&'a Backend>,
        wanted: &Wanted,
    ) -> Vec<&'a Backend> {
        if !matches!(wanted.task, Task::Use | Task::Unload) {
            return free;
        }
        let authorized = |free| prefer(free, |b: &Backend| !b.load.is_unauthorized(now));
        let model = match &wanted.model {
            // It may be about the account.
            None => return authorized(free),
            Some(model) if model.is_cloud() => {
                let free = told::unless_all(free, |b| !b.models.is_cloudless());
                return prefer(authorized(free), |b| b.models.has(model));
            }
            Some(model) => model,
        };
        if !free.iter().any(|b| b.models.has(model)) {
            return free;
        }
        let warm = self.warm(free, model, wanted);
        told::surely_capable(warm, model, wanted)
    }

    /// Of those that have the model, those where it is loaded.
    fn warm<'a>(
        &self,
        free: Vec<&'a Backend>,
        model: &ModelName,
        wanted: &Wanted,
    ) -> Vec<&'a Backend> {
        // Servers that the user named, and this machine's Ollama, come before those that merely
        // announce themselves.
        let owners = prefer(free, |b| !b.is_discovered());
        // An error is passed on, so who got one isn't sent there again.
        let last_choice = self.last_choice(wanted);
        let has_erred = |b: &Backend| {
            wanted.task == Task::Use && last_choice.is_some_and(|it| it.id == b.id && it.has_erred)
        };
        let owners = prefer(owners, |b| !has_erred(b));
        // Where the conversation was just now it is loaded, whether that has been told yet or not.
        let was_there = |b: &Backend| {
            let is_untold = b.load.in_flight > 0 || b.models.stale_since.is_some();
            last_choice.is_some_and(|last| last.is_good(b)) && b.models.has(model) && is_untold
        };
        // Believe a newcomer's "loaded" only if no established server has the model.
        let is_believed = believed(&owners);
        let is_loaded =
            |b: &Backend| is_believed(b) && (b.models.has_loaded(model) || was_there(b));
        if wanted.task == Task::Unload {
            return prefer(owners, is_loaded);
        }
        let loaded = unless_busier(owners, is_loaded);
        if !loaded.iter().all(|b| is_loaded(b)) {
            return loaded;
        }
        told::well_loaded(loaded, model, wanted)
    }

    /// Of the eligible ones, those that are as good as any for a new model.
    fn able_to_store<'a>(
        &self,
        eligible: Vec<&'a Backend>,
        wanted: &Wanted,
        absent_owner: impl Fn() -> Option<AbsentOwner>,
    ) -> Result<Vec<&'a Backend>, NoPick> {
        // From another model, a new one can be made only where that is.
        let base = wanted.model.as_ref().filter(|_| wanted.task == Task::Build);
        let has_base = |b: &Backend| base.is_some_and(|model| b.models.has(model));
        let is_bound = eligible.iter().any(|b| has_base(b));
        if let Some(owner) = absent_owner().filter(|_| base.is_some() && !is_bound) {
            return Err(owner.into());
        }
        let able = prefer(prefer(eligible, has_base), |b| b.permission() >= wanted.needs);
        if wanted.task == Task::Build {
            let build = self.builds.iter().find(|(client, _)| Some(*client) == wanted.client);
            let same = only(&able, |b| build.is_some_and(|(_, id)| b.id == *id));
            if !same.is_empty() {
                return Ok(same);
            }
        }
        if is_bound {
            return Ok(able);
        }
        let room = |b: &Backend| b.models.inventory.as_ref().and_then(|known| known.room);
        let most = able.iter().filter_map(|b| room(b)).max();
        Ok(prefer(able, |b| most.is_some() && room(b) == most))
    }

    fn best<'a>(&self, now: Instant, free: &[&'a Backend], wanted: &Wanted) -> Option<&'a Backend> {
        let told_speed = |b: &Backend| b.models.speeds.get(wanted.model.as_ref()?).copied();
        // A newcomer isn't faster than the fastest established server by what it says.
        let established = free.iter().filter(|b| !b.claims.is_newcomer);
        let fastest = established.filter_map(|b| told_speed(b)).reduce(f64::max);
        let speed = |b: &Backend| match (told_speed(b), fastest) {
            (Some(told), Some(fastest)) if b.claims.is_newcomer => Some(told.min(fastest)),
            (told, _) => told,
        };
        let known: Vec<f64> = free.iter().filter_map(|b| speed(b)).collect();
        let usual =
            if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let least = free.iter().map(|b| b.load.in_flight).min().unwrap_or(0);
        let last = self.last_choice(wanted);
        free.iter().copied().min_by_key(|b| {
            let in_flight = b.load.in_flight;
            let rank = self.rules.preferred.iter().position(|name| b.is_called(name));
            let continues = last.is_some_and(|last| last.is_good(b)) && in_flight <= least + 1;
            // Relative time until a new request is done, in thousandths.
            let work = f64::from(in_flight + 1) * usual / speed(b).unwrap_or(usual).max(0.01);
            let distance = b.health.round_trip.map_or(u128::MAX, |rtt| rtt.as_millis() / 2);
            (
                b.load.is_passed_over(now),
                b.load.failed_recently(now) || b.health.is_doubtful(),
                rank.unwrap_or(usize::MAX),
                !continues,
                (work * 1000.0) as u64,
                b.claims.is_newcomer,
                distance,
                b.id,
            )
        })
    }

    fn last_choice(&self, wanted: &Wanted) -> Option<LastChoice> {
        let conversation = wanted.conversation?;
        self.conversations.iter().rfind(|last| last.conversation == conversation).copied()
    }

    /// A conversation was answered with an error.
    pub(super) fn remember_error(&mut self, id: BackendId, conversation: u64) {
        let last = LastChoice { conversation, id, has_erred: true };
        push_bounded(&mut self.conversations, last, MAX_CONVERSATIONS);
    }

    fn remember_choice(&mut self, id: BackendId, wanted: &Wanted) {
        if let Some(conversation) = wanted.conversation {
            let last = LastChoice { conversation, id, has_erred: false };
            push_bounded(&mut self.conversations, last, MAX_CONVERSATIONS);
        }
        if let (Task::Build, Some(client)) = (wanted.task, wanted.client) {
            self.builds.retain(|(known, _): &(IpAddr, _)| *known != client);
            push_bounded(&mut self.builds, (client, id), MAX_BUILDS);
        }
    }
}

fn is_listed(list: &[(ModelName, String)], model: &ModelName, b: &Backend) -> bool {
    list.iter().any(|(listed, server)| listed == model && b.is_called(server))
}

/// The last choices, oldest first; the oldest goes when there are too many.
fn push_bounded<T: PartialEq>(list: &mut VecDeque<T>, entry: T, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    if list.back() != Some(&entry) {
        list.push_back(entry);
    }
}

fn only<'a>(all: &[&'a Backend], keep: impl Fn(&Backend) -> bool) -> Vec<&'a Backend> {
    all.iter().copied().filter(|b| keep(b)).collect()
}

/// Whether it counts what one of these says of itself: a newcomer's word does only among newcomers.
fn believed(all: &[&Backend]) -> impl Fn(&Backend) -> bool + use<> {
    let has_established = all.iter().any(|b| !b.claims.is_newcomer);
    move |b| !(b.claims.is_newcomer && has_established)
}

/// Those that are better, unless each of them has clearly more to do than one of the others.
fn unless_busier(mut all: Vec<&Backend>, is_better: impl Fn(&Backend) -> bool) -> Vec<&Backend> {
    let least = |is_meant: &dyn Fn(&Backend) -> bool| {
        all.iter().filter(|b| is_meant(b)).map(|b| b.load.in_flight).min()
    };
    if let (Some(better), Some(least)) = (least(&is_better), least(&|_| true))
        && better < least + CLEARLY_BUSIER
    {
        all.retain(|b| is_better(b));
    }
    all
}

/// Those that are better; if there is none, all.
fn prefer(mut all: Vec<&Backend>, is_better: impl Fn(&Backend) -> bool) -> Vec<&Backend> {
    if all.iter().any(|b| is_better(b)) {
        all.retain(|b| is_better(b));
    }
    all
}

#[cfg(test)]
mod tests;
