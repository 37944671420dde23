//! Who is who: servers that were met before, and those that come in the name or at the address of
//! one of them.
//!
//! Without keys an identity is a mere claim, and anyone who hears it can repeat it. Three things
//! hold all the same: the first server that is met under a name or an address keeps it, however
//! often the daemons restart; a second one gets no request while the first is well, and people are
//! told; what a server says of itself in its first hour wins it nothing over those that were known
//! before. A server that the user names (`--server`) gets work in any case.

use std::time::{Duration, Instant};

use super::claims::IdentityConflict;
use super::records::{Record, Who, is_within_probation};
use super::{Action, Backend, Known, Origin, Pool, Transition, Verdict};

/// People are told of the same server at most so often.
const TOLD_AGAIN: Duration = Duration::from_secs(24 * 3600);

impl Backend {
    /// Whether it may quarantine others: it is well, and isn't quarantined itself, or two that
    /// swapped their names would both idle.
    fn is_well(&self) -> bool {
        self.gets_work() && !self.health.is_unreached
    }

    /// Notes what tells against it: this, or announcements that contradict it. People are told now
    /// and then.
    fn judge(&mut self, now: Instant, conflict: Option<IdentityConflict>) -> Option<Transition> {
        let is_forged = self.claims.forged_at.is_some_and(|at| is_within_probation(at, now));
        let forgery = || IdentityConflict {
            reason: "another identity is announced from its address".to_owned(),
            ..IdentityConflict::default()
        };
        self.claims.conflict = conflict.or_else(|| is_forged.then(forgery));
        let conflict = self.claims.conflict.clone().filter(|conflict| !conflict.is_settled)?;
        let is_recent = |told: Instant| now.saturating_duration_since(told) < TOLD_AGAIN;
        let address = self.addresses.first()?;
        if self.claims.told_at.is_some_and(is_recent) {
            return None;
        }
        self.claims.told_at = Some(now);
        let (name, IdentityConflict { reason, is_quarantined, .. }) = (self.label(), conflict);
        Some(Transition::IdentityConflict { name, address, reason, is_quarantined })
    }
}

impl Pool {
    /// Takes up what was known in earlier runs. Those that were well when that was written down are
    /// tried at once, and forgotten like any other.
    pub fn recall(&mut self, now: Instant, known: Vec<Known>) {
        for known in known {
            self.memory.push(now, &known);
            let Known { identity, name, address, is_present, .. } = known;
            if let Some(identity) = identity {
                let name = name.clone();
                self.records.push(Record { identity, name, address, met: None, seen: None });
            }
            let is_there = self.backends.iter().any(|b| b.addresses.known.contains(&address));
            if is_present && !is_there && self.backends.len() < self.rules.max_servers {
                self.add(now, Origin::Discovered, vec![address]).claims.name = name;
            }
        }
    }

    /// What is worth knowing in the next run.
    pub fn memorable(&self, now: Instant) -> Vec<Known> {
        let mut remembered = self.remembered(now);
        let present: Vec<&Backend> = self.working().filter(|b| b.is_discovered()).collect();
        let recorded = self.records.0.iter().map(|record| Known {
            identity: Some(record.identity),
            name: record.name.clone(),
            address: record.address,
            is_present: present.iter().any(|b| b.claims.identity == Some(record.identity)),
            had: None,
        });
        let nameless = present.iter().filter(|b| b.claims.identity.is_none()).filter_map(|b| {
            let (name, address) = (b.claims.name.clone(), b.addresses.first()?);
            Some(Known { identity: None, name, address, is_present: true, had: None })
        });
        let mut all: Vec<Known> = recorded.chain(nameless).collect();
        for known in &mut all {
            let own = |it: &mut Known| it.is(Who::of(known.identity, &known.address));
            known.had = remembered.extract_if(.., own).next().and_then(|it| it.had);
        }
        all.extend(remembered);
        all
    }

    /// Looks at who claims what, writes down who is well, and tells people what is odd.
    pub(super) fn review(&mut self, now: Instant) {
        for at in 0..self.backends.len() {
            let conflict = self.conflict(at);
            let is_quarantined = conflict.as_ref().is_some_and(|conflict| conflict.is_quarantined);
            if !is_quarantined && self.write_down(now, at, conflict.is_some()) {
                self.actions.push(Action::Remember);
            }
            let is_new = self.record_of(at).is_none_or(|record| record.is_newcomer(now));
            let backend = &mut self.backends[at];
            backend.claims.is_newcomer = backend.is_discovered() && is_new;
            self.actions.extend(backend.judge(now, conflict).map(Action::Report));
        }
    }

    fn record_of(&self, at: usize) -> Option<&Record> {
        let identity = self.backends[at].claims.identity?;
        self.records.0.iter().find(|record| record.identity == identity)
    }

    /// Whose name, address or identity a server has. One that never passed a check is no matter.
    fn conflict(&self, at: usize) -> Option<IdentityConflict> {
        let backend = &self.backends[at];
        let claims = &backend.claims;
        let address = backend.addresses.first()?;
        if backend.health.round_trip.is_none() || backend.is_local() {
            return None;
        }
        let own = self.record_of(at);
        if let Some(original) = self.original_of(backend, own) {
            let reason = format!("has the identity of {}", original.label());
            let is_quarantined = backend.is_discovered();
            return Some(IdentityConflict { reason, is_quarantined, is_settled: false });
        }
        let is_other = |owner: &&Record| Some(owner.identity) != claims.identity;
        // Two servers on one machine have one name.
        let by_name = (self.records.0.iter().find(|record| record.is_called(&claims.name)))
            .filter(|owner| is_other(owner) && owner.address.ip() != address.ip());
        // One that is known may move to where another was.
        let by_address = (self.records.0.iter().find(|record| record.address == address))
            .filter(|owner| is_other(owner) && own.is_none());
        let owner = by_name.or(by_address)?;
        let reason = match (by_name, &owner.name) {
            (Some(_), name) => format!("{name:?} was another machine, at {}", owner.address),
            (None, name) if name.is_empty() => "another machine was at its address".to_owned(),
            (None, name) => format!("at its address was another machine, {name:?}"),
        };
        let is_quarantined = backend.is_discovered() && self.may_be_well(owner, at);
        let is_successor = own.is_some_and(|own| own.is_called(&claims.name));
        let is_settled = is_successor && !is_quarantined;
        Some(IdentityConflict { reason, is_quarantined, is_settled })
    }

    /// The server of which this one is a copy: of two with one identity the copy is the one that
    /// the user didn't name, then the one that isn't where it is known to be, then the later one.
    fn original_of(&self, copy: &Backend, own: Option<&Record>) -> Option<&Backend> {
        let identity = copy.claims.identity?;
        let rank = |b: &Backend| {
            let is_elsewhere = own.is_none_or(|own| b.addresses.first() != Some(own.address));
            (b.is_discovered(), is_elsewhere, b.id)
        };
        let same = self.backends.iter().filter(|b| b.claims.identity == Some(identity));
        same.filter(|b| b.is_well()).find(|b| rank(b) < rank(copy))
    }

    /// Whether a known server is well in another place than this one, or wasn't asked yet.
    fn may_be_well(&self, owner: &Record, except: usize) -> bool {
        let is_there = |b: &Backend| match b.health.verdict {
            Verdict::Ready => b.is_well() && b.claims.identity == Some(owner.identity),
            Verdict::New => b.health.failures == 0 && b.addresses.first() == Some(owner.address),
            Verdict::Down(_) => false,
        };
        self.backends.iter().enumerate().any(|(at, b)| at != except && is_there(b))
    }

    /// Writes down what a server that is well is known by; whether that is news.
    fn write_down(&mut self, now: Instant, at: usize, is_contested: bool) -> bool {
        let backend = &self.backends[at];
        let claims = &backend.claims;
        let (Some(identity), Some(address)) = (claims.identity, backend.addresses.confirmed())
        else {
            return false;
        };
        if !backend.is_verified() || backend.is_local() {
            return false;
        }
        let is_there = |record: &Record| {
            self.backends.iter().any(|b| b.claims.identity == Some(record.identity))
        };
        let who = (identity, claims.name.as_str(), address);
        self.records.write_down(now, who, (backend.health.since, is_contested), is_there)
    }
}

#[cfg(test)]
mod tests;
