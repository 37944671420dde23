//! Health checks: when they are due, and what their results change.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::health::{Checked, FIRST_RETRY, RunningCheck, spread};
use super::models::Models;
use super::{Action, Backend, BackendId, MAX_CHECKS, Origin, Pool, Rules, Transition, Verdict};
use crate::upstream::{CheckResult, CheckTime};

/// Of [`MAX_CHECKS`], checks of servers whose last one failed: a silent server takes its time, and
/// must not hold up the checks of the others.
const MAX_DOUBTFUL: usize = 5;
/// Of these in turn, checks of announced servers that were never well.
pub(super) const MAX_VERIFICATIONS: usize = 3;
/// A bare four-byte answer that led nowhere isn't followed again before this.
const LEGACY_RETRY: Duration = Duration::from_secs(60);

impl Pool {
    pub(super) fn checked(&mut self, now: Instant, id: BackendId, result: CheckResult) {
        self.abandoned.retain(|(abandoned, _)| *abandoned != id);
        let well_at = match &result {
            CheckResult::Healthy { address, .. } => Some(*address),
            _ => None,
        };
        let terms = Terms { now, jitter: self.jitter(), rules: &self.rules };
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) else { return };
        let transition = backend.checked(terms, result, well_at);
        self.actions.extend(transition.map(Action::Report));
        // A server that the user named is one backend, even if it was announced, or remembered,
        // before its name was resolved. The other one goes when nobody uses it.
        let is_named = matches!(backend.origin, Origin::Named(_));
        if let Some(address) = well_at.filter(|_| is_named) {
            let is_twin = |b: &Backend| {
                b.is_discovered() && b.load.in_flight == 0 && b.addresses.known.contains(&address)
            };
            self.backends.retain(|b| !is_twin(b));
        }
    }

    /// Starts the checks that are due, as many as may run. Silent servers, of which anyone can
    /// announce many, leave places for the others.
    pub(super) fn start_checks(&mut self, now: Instant) {
        let left = |most: usize, kind: fn(&Backend) -> bool| {
            let running = self.backends.iter().filter(|b| b.health.running.is_some() && kind(b));
            most.saturating_sub(running.count() + self.abandoned.len())
        };
        let mut places = left(MAX_CHECKS, |_| true);
        let mut doubtful = left(MAX_DOUBTFUL, |b| b.health.failures > 0);
        let mut strange = left(MAX_VERIFICATIONS, Backend::is_stranger);
        let inventories = self.rules.inventories || self.is_watched(now);
        let mut due: Vec<&mut Backend> =
            self.backends.iter_mut().filter(|b| b.health.is_due(now)).collect();
        // Strangers that have failed come last. Among equals those that were heard of since, then
        // those asked longest ago, so that none waits for ever.
        due.sort_by_key(|b| {
            let health = &b.health;
            let is_weak = b.is_stranger() && health.failures > 0;
            let is_unheard = health.checked_at.is_some_and(|at| b.last_seen <= at);
            (is_weak, is_unheard, health.checked_at, health.next_check)
        });
        for backend in due {
            let (is_stranger, is_doubtful) = (backend.is_stranger(), backend.health.failures > 0);
            if places == 0 || (is_stranger && strange == 0) || (is_doubtful && doubtful == 0) {
                continue;
            }
            let wants_inventory = inventories && backend.models.due.is_none_or(|due| due <= now);
            if let Some((target, of)) = backend.next_target() {
                places -= 1;
                strange -= usize::from(is_stranger);
                doubtful -= usize::from(is_doubtful);
                backend.health.running = Some(RunningCheck {
                    since: now,
                    bytes: backend.tally.bytes_down.value(),
                    has_answered: false,
                    of,
                });
                backend.health.checked_at = Some(now);
                self.actions.push(Action::Check(backend.id, target, wants_inventory));
            }
        }
    }

    /// How long the check of a backend may take.
    pub fn check_time(&self, id: BackendId) -> CheckTime {
        let usual = self.rules.health_timeout;
        let backend = self.backends.iter().find(|b| b.id == id);
        backend.map_or(CheckTime::of(usual), |b| b.check_time(usual))
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
        CheckTime { connect, answer }
    }

    fn checked(
        &mut self,
        terms: Terms<'_>,
        result: CheckResult,
        well_at: Option<SocketAddr>,
    ) -> Option<Transition> {
        // A check that is no longer known was given up before it reported.
        let check = self.health.running.take()?;
        if result == CheckResult::Void {
            self.health.next_check = terms.now + FIRST_RETRY;
            return None;
        }
        let is_well = well_at.is_some();
        match check.of {
            // Anyone who hears an announcement can repeat its identity, so a backend that is well
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
            well => self.passed(terms, check.since, well),
        }
    }

    fn passed(
        &mut self,
        Terms { now, rules, jitter }: Terms<'_>,
        asked_at: Instant,
        result: CheckResult,
    ) -> Option<Transition> {
        let CheckResult::Healthy { address, round_trip, version, name, identity, open, inventory } =
            result
        else {
            return None;
        };
        let is_moved = self.health.is_ready() && self.addresses.is_turned(self.health.failures);
        let moved = is_moved.then(|| Transition::Moved { name: self.label(), address });
        let is_up = self.health.passed(now, round_trip, rules.rise);
        self.last_seen = now;
        self.health.version = version;
        self.claims.checked(now, identity, name, open);
        self.addresses.put_first(address, true, !self.is_discovered());
        let has_answered = inventory.as_ref().is_some_and(|inventory| inventory.is_known());
        self.health.next_check = match self.models.told(now, asked_at, inventory) {
            Some(again) if has_answered => again,
            Some(again) => again + spread(FIRST_RETRY, jitter),
            None => now + spread(rules.health_interval, jitter),
        };
        let version = || self.health.version.clone();
        let up = || Transition::Up { name: self.label(), address, version: version() };
        moved.or_else(|| is_up.then(up)).or_else(|| self.list_problem())
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
    fn proved_alive(&mut self, Terms { now, rules, jitter }: Terms<'_>) -> Option<Transition> {
        let again = now + spread(rules.health_interval, jitter);
        self.last_seen = now;
        let is_up = self.health.proved_alive(now, again);
        let (name, version) = (self.label(), self.health.version.clone());
        let address = self.addresses.first()?;
        is_up.then_some(Transition::Up { name, address, version })
    }

    fn failed(&mut self, terms: Terms<'_>, reason: String, is_refusal: bool) -> Option<Transition> {
        let Terms { now, rules, jitter } = terms;
        self.health.back_off(now, jitter);
        if self.origin == Origin::Legacy {
            self.health.next_check = now + LEGACY_RETRY;
        }
        // Another of its addresses may do; health changes once all have failed.
        if self.addresses.turn(self.health.failures) {
            self.health.next_check = now;
            return None;
        }
        // What strangers announce is not worth a line each.
        let is_news = self.health.is_ready() || !self.is_stranger();
        let is_down = self.health.failed(now, &reason, is_refusal, rules.fall);
        (is_down && is_news).then(|| Transition::Down { name: self.label(), reason })
    }
}
