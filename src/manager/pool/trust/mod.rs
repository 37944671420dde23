//! Who is who: servers that were met before, and those that come in the name or at the address of
//! one of them.
//!
//! Without keys an identity is a mere claim, and whoever hears it can repeat it. Three things hold
//! all the same: the first that is met under a name or an address keeps it, however often the
//! daemons restart; a second one gets no request while that one is well, and people are told; what
//! a server says of itself in its first hour wins it nothing over those that were known before.
//! Whom the user names (`--server`) gets work in any case.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Action, Backend, Health, Origin, Pool, Transition};
use crate::pairing::identity::Identity;

/// Servers remembered.
const MAX_RECORDS: usize = 64;
/// So long a server is a newcomer. So long, too, one must be well in the name of another that is
/// away before it is taken for its successor.
const PROBATION: Duration = Duration::from_secs(3600);
/// People are told of the same server at most so often.
const TOLD_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// A server that was well at some time, as it is kept between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it said that it is; older servers don't.
    pub identity: Option<Identity>,
    /// What it called itself.
    pub name: String,
    /// Where it was.
    pub address: SocketAddr,
    /// Whether it was found by itself and well when this was written down.
    pub is_present: bool,
}

/// A server that has been well, and what it is known by. Of two records with the same name or
/// address the earlier one owns it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    identity: Identity,
    name: String,
    address: SocketAddr,
    /// When it was met, if that was in this run.
    met: Option<Instant>,
    /// When it was last well in this run.
    seen: Option<Instant>,
}

/// What tells against a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// For people: what is odd about it.
    pub reason: String,
    /// It gets no request, because the server whose place it claims is well.
    pub is_held_back: bool,
    /// It has been taken for a successor, so nobody needs to be told any more.
    pub is_settled: bool,
}

impl Record {
    fn is_called(&self, name: &str) -> bool {
        !name.is_empty() && self.name.eq_ignore_ascii_case(name)
    }

    fn is_newcomer(&self, now: Instant) -> bool {
        self.met.is_some_and(|met| now.saturating_duration_since(met) < PROBATION)
    }
}

impl Backend {
    /// Whether another server, which is well, has more right to its name, address or identity.
    pub(super) fn is_held_back(&self) -> bool {
        self.contest.as_ref().is_some_and(|contest| contest.is_held_back)
    }

    /// Whether it may hold back others: it is well, and isn't held back itself, or two that swapped
    /// their names would both idle.
    fn is_well(&self) -> bool {
        self.serves() && !self.is_unreached
    }

    /// Whether requests may go there.
    pub(super) fn serves(&self) -> bool {
        self.health == Health::Ready && !self.is_held_back()
    }
}

impl Pool {
    /// Takes up what was known in earlier runs. Those that were well when that was written down are
    /// tried at once, and forgotten like any other.
    pub fn recall(&mut self, now: Instant, known: Vec<Known>) {
        for Known { identity, name, address, is_present } in known {
            if let Some(identity) = identity.filter(|_| self.records.len() < MAX_RECORDS) {
                let name = name.clone();
                self.records.push(Record { identity, name, address, met: None, seen: None });
            }
            let is_there = self.backends.iter().any(|b| b.addresses.contains(&address));
            if is_present && !is_there && self.backends.len() < self.rules.max_servers {
                self.add(now, Origin::Discovered, vec![address]).name = name;
            }
        }
    }

    /// What is worth knowing in the next run.
    pub fn memorable(&self) -> Vec<Known> {
        let is_ready = |b: &&Backend| b.is_discovered() && b.serves();
        let ready: Vec<&Backend> = self.backends.iter().filter(is_ready).collect();
        let recorded = self.records.iter().map(|record| Known {
            identity: Some(record.identity),
            name: record.name.clone(),
            address: record.address,
            is_present: ready.iter().any(|b| b.identity == Some(record.identity)),
        });
        let nameless = ready.iter().filter(|b| b.identity.is_none()).filter_map(|b| {
            let (name, address) = (b.name.clone(), *b.addresses.first()?);
            Some(Known { identity: None, name, address, is_present: true })
        });
        recorded.chain(nameless).collect()
    }

    /// Looks at who claims what, writes down who is well, and tells people what is odd.
    pub(super) fn review(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for at in 0..self.backends.len() {
            let contest = self.contest(at);
            let is_held_back = contest.as_ref().is_some_and(|contest| contest.is_held_back);
            if !is_held_back && self.write_down(now, at, contest.is_some()) {
                actions.push(Action::Remember);
            }
            let record = self.record_of(at);
            let backend = &self.backends[at];
            let is_newcomer =
                backend.is_discovered() && record.is_none_or(|record| record.is_newcomer(now));
            let backend = &mut self.backends[at];
            backend.is_newcomer = is_newcomer;
            let within = |time| move |at: &Instant| now.saturating_duration_since(*at) < time;
            let forgery = backend.forged_at.filter(within(PROBATION)).map(|_| Contest {
                reason: "another identity is announced from its address".to_owned(),
                is_held_back: false,
                is_settled: false,
            });
            let contest = contest.or(forgery);
            let is_told = backend.told_at.as_ref().is_some_and(within(TOLD_AGAIN));
            if let Some(contest) = contest.as_ref().filter(|c| !c.is_settled && !is_told)
                && let Some(address) = backend.addresses.first().copied()
            {
                backend.told_at = Some(now);
                let Contest { reason, is_held_back, .. } = contest.clone();
                let name = backend.label();
                actions.push(Action::Report(Transition::Contested {
                    name,
                    address,
                    reason,
                    is_held_back,
                }));
            }
            backend.contest = contest;
        }
    }

    fn record_of(&self, at: usize) -> Option<&Record> {
        let identity = self.backends[at].identity?;
        self.records.iter().find(|record| record.identity == identity)
    }

    /// Whose name, address or identity a backend has. One that never passed a check is no matter.
    fn contest(&self, at: usize) -> Option<Contest> {
        let backend = &self.backends[at];
        let address = *backend.addresses.first()?;
        if backend.round_trip.is_none() || matches!(backend.origin, Origin::Local(_)) {
            return None;
        }
        let own = self.record_of(at);
        // Of two with one identity it is the other one, unless the user named it.
        let rank = |b: &Backend| {
            let is_elsewhere = own.is_none_or(|own| b.addresses.first() != Some(&own.address));
            (b.is_discovered(), is_elsewhere, b.id)
        };
        let is_first =
            |b: &&Backend| b.is_well() && b.identity == backend.identity && rank(b) < rank(backend);
        if let Some(twin) =
            self.backends.iter().filter(|_| backend.identity.is_some()).find(is_first)
        {
            return Some(Contest {
                reason: format!("has the identity of {}", twin.label()),
                is_held_back: backend.is_discovered(),
                is_settled: false,
            });
        }
        let is_other = |owner: &&Record| Some(owner.identity) != backend.identity;
        // Two servers on one machine have one name.
        let by_name = (self.records.iter().find(|record| record.is_called(&backend.name)))
            .filter(|owner| is_other(owner) && owner.address.ip() != address.ip());
        // One that is known may move to where another was.
        let by_address = (self.records.iter().find(|record| record.address == address))
            .filter(|owner| is_other(owner) && own.is_none());
        let owner = by_name.or(by_address)?;
        let is_settled = own.is_some_and(|own| own.is_called(&backend.name));
        let reason = match (by_name, &owner.name) {
            (Some(_), name) => format!("{name:?} was another machine, at {}", owner.address),
            (None, name) if name.is_empty() => "another machine was at its address".to_owned(),
            (None, name) => format!("at its address was another machine, {name:?}"),
        };
        let is_held_back = backend.is_discovered() && self.may_be_well(owner, at);
        Some(Contest { reason, is_held_back, is_settled: is_settled && !is_held_back })
    }

    /// Whether a known server is well in another place than this backend, or wasn't asked yet.
    fn may_be_well(&self, owner: &Record, except: usize) -> bool {
        let is_there = |b: &Backend| match b.health {
            Health::Ready => b.is_well() && b.identity == Some(owner.identity),
            Health::New => b.failures == 0 && b.addresses.first() == Some(&owner.address),
            Health::Down { .. } => false,
        };
        self.backends.iter().enumerate().any(|(at, b)| at != except && is_there(b))
    }

    /// Writes down what a backend that is well is known by; whether that is news. What belongs to
    /// another it gets once that one has been away for long, and behind it.
    fn write_down(&mut self, now: Instant, at: usize, is_contested: bool) -> bool {
        let backend = &self.backends[at];
        let (Some(identity), Some(address)) = (backend.identity, backend.addresses.first()) else {
            return false;
        };
        if !backend.is_usable() || matches!(backend.origin, Origin::Local(_)) {
            return false;
        }
        let is_long = |since: Instant| now.saturating_duration_since(since) >= PROBATION;
        let own = self.records.iter().position(|record| record.identity == identity);
        let is_same = |r: &Record| {
            r.address == *address && (r.is_called(&backend.name) || r.name == backend.name)
        };
        let met = own.map_or(Some(now), |own| self.records[own].met);
        match own {
            Some(own) if is_same(&self.records[own]) => {
                self.records[own].seen = Some(now);
                return false;
            }
            _ if !is_contested => {}
            _ => {
                let claimed = self.records.iter().filter(|r| {
                    r.identity != identity && (r.address == *address || r.is_called(&backend.name))
                });
                let is_away = |r: &Record| r.seen.is_none_or(is_long);
                if !is_long(backend.since) || !claimed.into_iter().all(is_away) {
                    return false;
                }
            }
        }
        let (name, address) = (backend.name.clone(), *address);
        let record = Record { identity, name, address, met, seen: Some(now) };
        match own {
            Some(own) if !is_contested => self.records[own] = record,
            Some(own) => {
                self.records.remove(own);
                self.records.push(record);
            }
            None if self.make_room_for_record() => self.records.push(record),
            None => return false,
        }
        true
    }

    /// The newest of those that aren't there gives way, so that many new names can't make the old
    /// ones forgotten.
    fn make_room_for_record(&mut self) -> bool {
        if self.records.len() < MAX_RECORDS {
            return true;
        }
        let is_there = |r: &Record| self.backends.iter().any(|b| b.identity == Some(r.identity));
        let absent = self.records.iter().rposition(|record| !is_there(record));
        absent.is_some_and(|at| {
            self.records.remove(at);
            true
        })
    }
}

#[cfg(test)]
mod tests;
