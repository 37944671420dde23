//! Health checks: when they are due, and what their results change.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::health::{Checked, FIRST_RETRY, RunningCheck, spread};
use super::models::Models;
use super::places::{Burden, Kind};
use super::{Action, Backend, CheckId, Origin, Pool, Rules, Transition, Verdict};
use crate::ollama::version::OllamaVersion;
use crate::upstream::{CheckResult, CheckTime};

/// So much more overdue than the one before it a server's check has to be, and one that decides.
const AHEAD: Duration = Duration::from_millis(250);
const FAR_AHEAD: Duration = Duration::from_secs(5);
/// Newcomers that make a crowd, if all of them are yet to be well or are down: their checks are
/// brief, so that an honest one's turn comes.
const CROWD: usize = 8;
/// Time of a brief check: on a LAN a server connects and answers within it, unless it is hard up.
const BRIEF: CheckTime = CheckTime {
    connect: Some(Duration::from_millis(300)),
    answer: Duration::from_millis(500),
    lists: None,
};
/// Lists that are asked for apart have so many times as long as one answer.
pub(super) const LIST_TIMES: u32 = 2;
/// A bare four-byte answer that led nowhere isn't followed again before this.
const LEGACY_RETRY: Duration = Duration::from_secs(60);

impl Pool {
    pub(super) fn checked(&mut self, now: Instant, id: CheckId, result: CheckResult) {
        self.places.free(id);
        let well_at = match &result {
            CheckResult::Healthy { address, .. } => Some(*address),
            _ => None,
        };
        let inventories = self.asks_for_models(now);
        let terms = Terms { now, jitter: self.jitter(), rules: &self.rules, inventories };
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id.backend) else { return };
        if let Some((_, asked_at)) = backend.models.asked.take_if(|(asked, _)| *asked == id) {
            let transition = backend.listed(now, asked_at, result);
            self.actions.extend(transition.map(Action::Report));
            return;
        }
        // Who waited for it has given it up.
        let Some(check) = backend.health.running.take_if(|check| check.id == id) else { return };
        if let Some(address) = well_at.filter(|_| backend.is_another(check.of, &result)) {
            let refusal = CheckResult::Refused("another server is there".to_owned());
            let transition = backend.checked(terms, check, refusal, None);
            backend.addresses.drop_alternative(address);
            self.actions.extend(transition.map(Action::Report));
            return;
        }
        let transition = backend.checked(terms, check, result, well_at);
        if matches!(transition, Some(Transition::Up { .. })) {
            backend.load.came_up(now);
            backend.models.came_up();
        }
        let identity = backend.claims.identity;
        self.actions.extend(transition.map(Action::Report));
        // A server that the user named is one entry, even if it was announced, or remembered,
        // before its name was resolved. The other one goes when nobody uses it.
        let is_named = matches!(backend.origin, Origin::Named(_));
        if let Some(address) = well_at.filter(|_| is_named) {
            let is_twin = |b: &Backend| {
                b.is_discovered() && b.load.in_flight == 0 && b.is_at(address, identity)
            };
            self.backends.retain(|b| !is_twin(b));
        }
    }

    /// Starts the checks that are due, as many as may run.
    pub(super) fn start_checks(&mut self, now: Instant) {
        let inventories = self.asks_for_models(now);
        let due = self.backends.iter().enumerate().filter(|(_, b)| b.health.is_due(now));
        let mut due: Vec<usize> = due.map(|(at, _)| at).collect();
        due.sort_by_cached_key(|at| self.urgency(*at));
        for at in due {
            let (kind, time) = (kind_of(&self.backends[at]), self.check_time(at));
            let backend = &mut self.backends[at];
            let is_well = backend.is_verified();
            let wants_inventory =
                inventories && !backend.models.are_slow && backend.models.is_due(now);
            if backend.target().is_some()
                && let Some(id) = self.places.take(backend.id, kind)
                && let Some((target, of)) = backend.next_target()
            {
                let bytes = backend.tally.bytes_down.value();
                backend.health.running = Some(RunningCheck {
                    id,
                    since: now,
                    bytes,
                    has_answered: false,
                    of,
                    wants_inventory,
                });
                backend.health.checked_at = Some(now);
                // Meanwhile nobody asks where it is used.
                let is_brief = is_well && of == Checked::Candidate;
                let time = if is_brief { BRIEF } else { time };
                self.actions.push(Action::Check(id, target, wants_inventory, time));
            }
        }
        if inventories {
            self.ask_for_lists(now);
        }
    }

    /// Asks for lists that are too slow for a check, apart from the checks.
    fn ask_for_lists(&mut self, now: Instant) {
        let usual = self.rules.health_timeout;
        let is_due = |b: &Backend| {
            let Models { are_slow, asked, .. } = &b.models;
            *are_slow && asked.is_none() && b.models.is_due(now) && b.is_verified()
        };
        let due = self.backends.iter().enumerate().filter(|(_, b)| is_due(b));
        let mut due: Vec<usize> = due.map(|(at, _)| at).collect();
        due.sort_by_key(|at| self.backends[*at].models.due);
        for at in due {
            let backend = &mut self.backends[at];
            if let Some((target, _)) = backend.target()
                && let Some(id) =
                    self.places.take(backend.id, Kind { is_list: true, ..kind_of(backend) })
            {
                backend.models.asked = Some((id, now));
                let time = CheckTime { lists: Some(usual * LIST_TIMES), ..CheckTime::of(usual) };
                self.actions.push(Action::Check(id, target, true, time));
            }
        }
    }

    /// Which check comes first: those that decide, then the most overdue ones, where servers that
    /// were there before others are ahead of them. Of servers that are down those come first that are
    /// heard of, and those whose last check took no time; of strangers those that are few at their
    /// address, and last of all those that have failed.
    fn urgency(&self, at: usize) -> (bool, bool, (bool, bool), usize, Instant) {
        let backend = &self.backends[at];
        let health = &backend.health;
        let is_stranger = backend.is_stranger();
        let is_weak = is_stranger && health.failures > 0;
        let is_deciding = health.is_doubtful() && !health.is_slow();
        let is_away = backend.is_discovered() && !health.is_ready();
        let is_unheard = health.checked_at.is_some_and(|at| backend.last_seen <= at);
        let rank = self.backends.iter().filter(|b| b.id < backend.id).count();
        let ahead = if is_deciding { FAR_AHEAD } else { AHEAD };
        let others = match backend.addresses.first().filter(|_| is_stranger) {
            Some(first) => self.backends.iter().filter(|b| b.addresses.has_ip(first.ip())).count(),
            None => 0,
        };
        (
            is_weak,
            !is_deciding,
            (is_away && is_unheard, is_away && health.was_long()),
            others,
            health.next_check + ahead * rank as u32,
        )
    }

    /// How long the next check of a server may take.
    fn check_time(&self, at: usize) -> CheckTime {
        let backend = &self.backends[at];
        let is_waited_for = |b: &&Backend| b.is_newcomer() && !b.health.is_ready();
        let is_crowded = || self.backends.iter().filter(is_waited_for).count() > CROWD;
        // Strangers have another chance, after all others.
        let is_brief = !backend.is_stranger() || backend.health.failures == 0;
        match is_brief && is_waited_for(&backend) && is_crowded() {
            true => BRIEF,
            false => backend.check_time(self.rules.health_timeout),
        }
    }

    fn jitter(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % 401) as u32
    }
}

/// What a check's result is judged by.
#[derive(Clone, Copy)]
struct Terms<'a> {
    now: Instant,
    rules: &'a Rules,
    jitter: u32,
    /// Whether checks ask for models.
    inventories: bool,
}

impl Backend {
    /// How long a check may take, where one of a server that is well may take `usual`. One that
    /// decides isn't left to a lost packet, and a machine at its limit isn't down for ever; but what
    /// can't be connected to, or was never well, holds a checker no longer than it must.
    pub(super) fn check_time(&self, usual: Duration) -> CheckTime {
        let deciding = usual * 5 / 2;
        let (connect, answer) = match self.health.verdict {
            Verdict::Ready if self.health.is_doubtful() => (Some(deciding), deciding),
            Verdict::Ready => (None, usual),
            _ if !self.is_stranger() => (None, deciding * 2),
            _ if self.health.failures > 0 => (None, deciding),
            _ => (None, usual),
        };
        CheckTime { connect, answer, lists: None }
    }

    fn checked(
        &mut self,
        terms: Terms<'_>,
        check: RunningCheck,
        result: CheckResult,
        well_at: Option<SocketAddr>,
    ) -> Option<Transition> {
        if result == CheckResult::Void {
            self.health.next_check = terms.now + FIRST_RETRY;
            return None;
        }
        let is_well = well_at.is_some();
        match check.of {
            // Anyone who hears an announcement can repeat its identity, so a server that is well
            // never moves: the new address is used once the old one has failed.
            Checked::Candidate if !(is_well && self.addresses.in_doubt) => {
                self.addresses.candidate_checked(well_at);
                self.health.next_check = terms.now;
                return None;
            }
            // It was announced elsewhere meanwhile, and this says nothing about there.
            Checked::InUse(asked) if !is_well && self.addresses.first() != Some(asked) => {
                self.health.next_check = terms.now;
                return None;
            }
            _ => {}
        }
        self.health.is_unanswered =
            matches!(result, CheckResult::Silent(_) | CheckResult::Unreached(_));
        if !is_well {
            self.health.cost(terms.now.saturating_duration_since(check.since));
        }
        let has_sent = check.has_answered || self.tally.bytes_down.value() > check.bytes;
        match result {
            CheckResult::Silent(_)
                if has_sent && !self.is_stranger() && !self.addresses.in_doubt =>
            {
                self.proved_alive(terms)
            }
            CheckResult::Refused(reason) | CheckResult::Unreached(reason) => {
                self.failed(terms, reason, true)
            }
            CheckResult::Silent(reason) => self.failed(terms, reason, false),
            well => self.passed(terms, check, well),
        }
    }

    /// Whether another server has answered at an address that was only tried: it has it by now.
    fn is_another(&self, of: Checked, result: &CheckResult) -> bool {
        let is_tried = match of {
            Checked::Candidate => true,
            Checked::InUse(_) => self.addresses.in_doubt && self.addresses.known.len() > 1,
            Checked::Name => false,
        };
        let CheckResult::Healthy { identity: Some(identity), .. } = result else { return false };
        is_tried && self.claims.is_contradicted_by(*identity)
    }

    fn passed(
        &mut self,
        Terms { now, rules, jitter, inventories }: Terms<'_>,
        check: RunningCheck,
        result: CheckResult,
    ) -> Option<Transition> {
        let CheckResult::Healthy {
            address,
            round_trip,
            version,
            name,
            identity,
            open,
            saved,
            inventory,
        } = result
        else {
            return None;
        };
        let is_moved = self.health.is_ready() && self.addresses.is_turned();
        let moved = is_moved.then(|| Transition::Moved { name: self.label(), address });
        let is_up = self.health.passed(now, round_trip, rules.rise);
        self.last_seen = now;
        self.health.version_number = OllamaVersion::parse(&version);
        self.health.version = version;
        self.health.saved = saved;
        self.claims.checked(now, identity, name, open);
        self.addresses.put_first(address, true, !self.is_discovered());
        let has_answered = inventory.as_ref().is_some_and(|inventory| inventory.is_known());
        self.models.are_slow |= check.wants_inventory && inventory.is_none();
        let are_slow = self.models.are_slow;
        let again = self.models.told(now, check.since, inventory).filter(|_| inventories);
        self.health.next_check = match again {
            Some(again) if has_answered => again,
            Some(again) if !are_slow => again + spread(FIRST_RETRY, jitter),
            _ => now + spread(rules.health_interval, jitter),
        };
        let version = || self.health.version.clone();
        let up = || Transition::Up { name: self.label(), address, version: version() };
        moved.or_else(|| is_up.then(up)).or_else(|| self.list_problem())
    }

    /// Its lists were asked for apart. Whether it is well, its checks say.
    fn listed(
        &mut self,
        now: Instant,
        asked_at: Instant,
        result: CheckResult,
    ) -> Option<Transition> {
        let inventory = match result {
            CheckResult::Healthy { address, inventory, .. }
                if self.addresses.confirmed() == Some(address) =>
            {
                inventory
            }
            _ => None,
        };
        self.models.told_apart(now, asked_at, inventory);
        self.list_problem()
    }

    /// What has changed of the problems with its lists.
    fn list_problem(&mut self) -> Option<Transition> {
        let Models { problem, reported, .. } = &mut self.models;
        if problem == reported {
            return None;
        }
        reported.clone_from(problem);
        Some(Transition::Lists { name: self.label(), problem: self.models.problem.clone() })
    }

    /// A check got no answer while answers to requests came: the server has much to do, or the network
    /// loses packets.
    fn proved_alive(&mut self, Terms { now, rules, jitter, .. }: Terms<'_>) -> Option<Transition> {
        let again = now + spread(rules.health_interval, jitter);
        self.last_seen = now;
        let is_up = self.health.proved_alive(now, again);
        let (name, version) = (self.label(), self.health.version.clone());
        let address = self.addresses.first()?;
        is_up.then_some(Transition::Up { name, address, version })
    }

    fn failed(&mut self, terms: Terms<'_>, reason: String, is_refusal: bool) -> Option<Transition> {
        let Terms { now, rules, jitter, .. } = terms;
        self.health.back_off(now, jitter);
        if self.origin == Origin::Legacy && self.is_stranger() {
            self.health.next_check = now + LEGACY_RETRY;
        }
        // Another of its addresses may do; health changes once all have failed.
        let Some(is_refusal) = self.addresses.turn(is_refusal) else {
            self.health.next_check = now;
            return None;
        };
        // What strangers announce is not worth a line each.
        let is_news = self.health.is_ready() || !self.is_stranger();
        let is_down = self.health.failed(now, &reason, is_refusal, rules.fall);
        (is_down && is_news).then(|| Transition::Down { name: self.label(), reason })
    }
}

/// What a check of this server is expected to be.
fn kind_of(backend: &Backend) -> Kind {
    let health = &backend.health;
    let is_newcomer = backend.is_newcomer();
    let is_down = health.failures > 0 && !health.is_ready();
    let burden = match () {
        () if !is_newcomer => None,
        () if backend.is_stranger() => Some(Burden::Stranger),
        () if is_down => Some(Burden::Fallen),
        () if health.is_slow() => Some(Burden::Slow),
        () => (health.failures > 0).then_some(Burden::Doubtful),
    };
    Kind {
        is_list: false,
        is_long: burden.is_some() || health.failures > 0 || health.is_slow(),
        is_down,
        is_newcomer,
        burden,
        at: backend.addresses.first().map(|at| at.ip()).filter(|ip| !ip.is_loopback()),
    }
}
