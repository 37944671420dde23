//! Health checks: when they are due, and what their results change.

use std::time::{Duration, Instant};

use super::{
    Action, Backend, BackendId, CheckResult, FIRST_RETRY, FORGET_AFTER, Health, INVENTORY_AGE,
    LEGACY_RETRY, LONG_RETRY, MAX_VERIFICATIONS, Origin, Pool, Rules, SHORT_RETRY, Transition,
};

impl Pool {
    pub(super) fn checked(
        &mut self,
        now: Instant,
        id: BackendId,
        result: CheckResult,
        actions: &mut Vec<Action>,
    ) {
        let jitter = self.jitter();
        let Rules { health_interval, rise, fall, .. } = self.rules;
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) else { return };
        if backend.checking_since.take().is_none() {
            return; // It was given up before it reported.
        }
        let was_candidate = std::mem::take(&mut backend.checking_candidate);
        if result == CheckResult::Void {
            backend.next_check = now + FIRST_RETRY;
            return;
        }
        if was_candidate && !matches!(result, CheckResult::Healthy { .. }) {
            backend.next_check = now;
            return; // The announced address leads nowhere; the backend is as well as before.
        }
        match result {
            CheckResult::Healthy { address, round_trip, version, name, inventory } => {
                backend.failures = 0;
                backend.last_seen = now;
                backend.version = version;
                if let Some(name) = name {
                    backend.name = name;
                }
                if let Some(inventory) = inventory {
                    backend.inventory = Some(inventory);
                    backend.inventory_due = now + INVENTORY_AGE;
                }
                backend.round_trip = Some(match backend.round_trip {
                    Some(old) => (old * 3 + round_trip) / 4,
                    None => round_trip,
                });
                if was_candidate && backend.addresses.first() != Some(&address) {
                    let name = backend.label();
                    actions.push(Action::Report(Transition::Moved { name, address }));
                }
                backend.use_address(address);
                backend.next_check = now + jitter.spread(health_interval);
                if backend.health == Health::Ready {
                    backend.streak = 0;
                    return;
                }
                backend.streak += 1;
                if backend.streak >= rise {
                    backend.streak = 0;
                    backend.health = Health::Ready;
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
        let longest = match backend.health {
            Health::Down { since, .. } if now.saturating_duration_since(since) > FORGET_AFTER => {
                LONG_RETRY
            }
            _ => SHORT_RETRY,
        };
        backend.next_check = now + jitter.spread(pause.min(longest));
        if backend.origin == Origin::Legacy {
            backend.next_check = now + LEGACY_RETRY;
        }
        if backend.addresses.len() > 1 {
            // Another of its addresses may do; health changes once all have failed.
            backend.addresses.rotate_left(1);
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
                let told = was_ready || !matches!(backend.origin, Origin::Legacy);
                if told {
                    let name = backend.label();
                    actions.push(Action::Report(Transition::Down { name, reason }));
                }
            }
        }
    }

    pub(super) fn start_checks(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut verifying = self
            .backends
            .iter()
            .filter(|b| b.health == Health::New && b.checking_since.is_some())
            .count();
        for backend in &mut self.backends {
            let due = backend.checking_since.is_none() && backend.next_check <= now;
            let is_new = backend.health == Health::New;
            if !due || (is_new && verifying >= MAX_VERIFICATIONS) {
                continue;
            }
            if let Some(target) = backend.next_target() {
                verifying += usize::from(is_new);
                backend.checking_since = Some(now);
                let wants_inventory = self.rules.inventories && backend.inventory_due <= now;
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
