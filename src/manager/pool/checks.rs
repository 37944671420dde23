//! Health checks: when they are due, and what their results change.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{
    Action, Backend, BackendId, CheckResult, FIRST_RETRY, Health, INVENTORY_AGE, LEGACY_RETRY,
    LONGEST_RETRY, MAX_ADDRESSES, MAX_CHECKS, MAX_DOUBTFUL, MAX_VERIFICATIONS, Origin, Pool, Rules,
    Transition,
};

impl Pool {
    pub(super) fn checked(
        &mut self,
        now: Instant,
        id: BackendId,
        result: CheckResult,
        actions: &mut Vec<Action>,
    ) {
        self.abandoned.retain(|(abandoned, _)| *abandoned != id);
        let found_at = match &result {
            CheckResult::Healthy { address, .. } => Some(*address),
            _ => None,
        };
        self.note_check(now, id, result, actions);
        if let Some(address) = found_at {
            self.drop_twins(id, address);
        }
    }

    /// A server that the user named is one backend, even if it was announced, or remembered, before
    /// its name was resolved. The other one goes when nobody uses it.
    fn drop_twins(&mut self, id: BackendId, address: SocketAddr) {
        if self.backends.iter().any(|b| b.id == id && matches!(b.origin, Origin::Named(_))) {
            let is_twin = |b: &Backend| {
                b.is_discovered() && b.in_flight == 0 && b.addresses.contains(&address)
            };
            self.backends.retain(|b| b.id == id || !is_twin(b));
        }
    }

    fn note_check(
        &mut self,
        now: Instant,
        id: BackendId,
        result: CheckResult,
        actions: &mut Vec<Action>,
    ) {
        let jitter = self.jitter();
        let Rules { health_interval, rise, fall, .. } = self.rules;
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) else { return };
        let Some(asked_at) = backend.checking_since.take() else {
            return; // It was given up before it reported.
        };
        let was_candidate = std::mem::take(&mut backend.checking_candidate);
        if result == CheckResult::Void {
            backend.next_check = now + FIRST_RETRY;
            return;
        }
        let is_well = matches!(result, CheckResult::Healthy { .. });
        if was_candidate && !(is_well && backend.in_doubt) {
            // Whoever hears an announcement can repeat its identity, so a backend that is well
            // never moves: the new address is used once the old one has failed.
            if let CheckResult::Healthy { address, .. } = result
                && backend.addresses.len() < MAX_ADDRESSES
                && !backend.addresses.contains(&address)
            {
                backend.addresses.push(address);
            }
            // The address in use comes next, however many others were announced meanwhile.
            backend.candidate = None;
            backend.next_check = now;
            return;
        }
        let asked = backend.checking_address.take();
        if !is_well && asked.is_some_and(|asked| backend.addresses.first() != Some(&asked)) {
            // It was announced elsewhere meanwhile, and this says nothing about there.
            backend.next_check = now;
            return;
        }
        match result {
            CheckResult::Healthy {
                address,
                round_trip,
                version,
                name,
                identity,
                open,
                inventory,
            } => {
                // Each failed check has turned to the next address.
                let turns = backend.failures as usize;
                if backend.health == Health::Ready
                    && !turns.is_multiple_of(backend.addresses.len().max(1))
                {
                    let name = backend.label();
                    actions.push(Action::Report(Transition::Moved { name, address }));
                }
                backend.failures = 0;
                backend.last_seen = now;
                backend.version = version;
                backend.open = open;
                backend.is_confirmed = identity.is_some();
                backend.is_unreached = false;
                let claimed = backend.contradicted.take();
                if let Some(identity) = identity {
                    backend.identity = Some(identity);
                    if claimed.is_some_and(|claimed| claimed != identity) {
                        backend.forged_at = Some(now);
                    }
                }
                if let Some(name) = name {
                    backend.name = name;
                }
                let has_answered = inventory.is_some();
                if let Some(inventory) = inventory {
                    backend.inventory = Some(inventory);
                    backend.inventory_due = now + INVENTORY_AGE;
                    // An answer to an earlier question says nothing about the change.
                    if backend.inventory_stale.is_some_and(|since| since <= asked_at) {
                        backend.inventory_stale = None;
                        backend.loaded_since.clear();
                    }
                }
                backend.round_trip = Some(match backend.round_trip {
                    Some(old) => (old * 3 + round_trip) / 4,
                    None => round_trip,
                });
                backend.use_address(address);
                backend.in_doubt = false;
                backend.next_check = now + jitter.spread(health_interval);
                if let Some(since) = backend.inventory_stale {
                    let again = since.max(now);
                    backend.inventory_due = again;
                    backend.next_check =
                        if has_answered { again } else { again + jitter.spread(FIRST_RETRY) };
                }
                if backend.health == Health::Ready {
                    backend.streak = 0;
                    return;
                }
                backend.streak += 1;
                if backend.streak >= rise {
                    backend.streak = 0;
                    backend.health = Health::Ready;
                    backend.since = now;
                    actions.push(Action::Report(Transition::Up {
                        name: backend.label(),
                        address,
                        version: backend.version.clone(),
                    }));
                }
            }
            CheckResult::Void => {}
            CheckResult::Refused(reason) => {
                Self::check_failed(backend, now, reason, true, fall, jitter, actions);
            }
            CheckResult::Silent(reason) => {
                Self::check_failed(backend, now, reason, false, fall, jitter, actions);
            }
        }
    }

    fn check_failed(
        backend: &mut Backend,
        now: Instant,
        reason: String,
        definite: bool,
        fall: u32,
        jitter: Jitter,
        actions: &mut Vec<Action>,
    ) {
        backend.failures += 1;
        let pause = FIRST_RETRY.saturating_mul(1 << backend.failures.min(6).saturating_sub(1));
        backend.next_check = now + jitter.spread(pause.min(LONGEST_RETRY));
        if backend.origin == Origin::Legacy {
            backend.next_check = now + LEGACY_RETRY;
        }
        if backend.addresses.len() > 1 {
            // Another of its addresses may do; health changes once all have failed.
            backend.addresses.rotate_left(1);
            // Anyone can have announced the other one, so it gets no work before its own check.
            backend.in_doubt = true;
            if !(backend.failures as usize).is_multiple_of(backend.addresses.len()) {
                backend.next_check = now;
                return;
            }
        }
        match &mut backend.health {
            Health::Down { reason: old, .. } => {
                backend.streak = 0;
                *old = reason;
            }
            Health::New if !definite && backend.streak + 1 < fall => backend.streak += 1,
            Health::Ready if !definite && backend.streak + 1 < fall => {
                backend.streak += 1;
                backend.next_check = now;
            }
            was => {
                let was_ready = *was == Health::Ready;
                backend.streak = 0;
                backend.health = Health::Down { since: now, reason: reason.clone() };
                backend.since = now;
                // Whatever strangers announce is not worth a line each.
                let told = was_ready || !backend.is_stranger();
                if told {
                    let name = backend.label();
                    actions.push(Action::Report(Transition::Down { name, reason }));
                }
            }
        }
    }

    /// Starts the checks that are due, as many as may run. Silent servers, of which anyone can
    /// announce many, leave places for the others.
    pub(super) fn start_checks(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let running = |kind: &dyn Fn(&Backend) -> bool| {
            let checked = self.backends.iter().filter(|b| b.checking_since.is_some());
            checked.filter(|b| kind(b)).count() + self.abandoned.len()
        };
        let mut places = MAX_CHECKS.saturating_sub(running(&|_| true));
        let mut doubtful = MAX_DOUBTFUL.saturating_sub(running(&|b| b.failures > 0));
        let mut strange = MAX_VERIFICATIONS.saturating_sub(running(&Backend::is_stranger));
        let inventories = self.rules.inventories || self.is_watched(now);
        let mut due: Vec<&mut Backend> = self
            .backends
            .iter_mut()
            .filter(|b| b.checking_since.is_none() && b.next_check <= now)
            .collect();
        // Strangers that have failed come last. Among equals those that were heard of since, then
        // whoever was asked longest ago, so that none waits for ever.
        due.sort_by_key(|b| {
            (b.is_stranger() && b.failures > 0, !b.is_heard(), b.checked_at, b.next_check)
        });
        for backend in due {
            let (is_stranger, is_doubtful) = (backend.is_stranger(), backend.failures > 0);
            if places == 0 || (is_stranger && strange == 0) || (is_doubtful && doubtful == 0) {
                continue;
            }
            let wants_inventory = inventories && backend.inventory_due <= now;
            if let Some(target) = backend.next_target() {
                places -= 1;
                strange -= usize::from(is_stranger);
                doubtful -= usize::from(is_doubtful);
                backend.checking_since = Some(now);
                backend.checked_at = Some(now);
                actions.push(Action::Check(backend.id, target, wants_inventory));
            }
        }
    }

    fn jitter(&mut self) -> Jitter {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Jitter((self.random % 401) as u32)
    }
}

/// 0 to 400 thousandths, spread around the middle.
#[derive(Clone, Copy)]
struct Jitter(u32);

impl Jitter {
    /// `pause` ± 20 %.
    fn spread(self, pause: Duration) -> Duration {
        pause * (800 + self.0) / 1000
    }
}
