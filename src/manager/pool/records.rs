//! Servers that have been well, and the name and address that each is known by.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::ServerName;
use crate::ollama::inventory::Inventory;
use crate::pairing::identity::Identity;

pub(super) const MAX_RECORDS: usize = 64;
/// Probation: a server first met less than an hour ago is a newcomer. A server that answers in the
/// name of another one, which is away, must be well for as long to be taken for its successor.
pub(super) const PROBATION: Duration = Duration::from_secs(3600);

/// A server that was well at some time, as it is kept between two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// What it said that it is; older servers don't.
    pub identity: Option<Identity>,
    /// What it called itself.
    pub name: String,
    /// Where it was.
    pub address: SocketAddr,
    /// Whether it was found by itself and well when this was written down.
    pub is_present: bool,
    /// What it had, if that is known and not too long ago.
    pub had: Option<Had>,
}

/// What a server had when it was last well.
#[derive(Clone, Debug, PartialEq)]
pub struct Had {
    pub(crate) models: Arc<Inventory>,
    /// The host and port by which the user named it, if that was so.
    pub(crate) given: Option<ServerName>,
    /// How long ago it was well.
    pub(crate) ago: Duration,
    /// The same as an earlier run wrote it down, in seconds since 1970.
    pub(crate) stamp: Option<u64>,
    pub(crate) is_newcomer: bool,
}

/// What tells a server from others: its identity, and for want of one its addresses.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) identity: Option<Identity>,
    pub(super) addresses: &'a [SocketAddr],
    /// The host and port that the user gave.
    pub(super) given: Option<&'a ServerName>,
}

impl<'a> Who<'a> {
    pub(super) fn of(identity: Option<Identity>, address: &'a SocketAddr) -> Self {
        Who { identity, addresses: std::slice::from_ref(address), given: None }
    }

    /// Whether it is the server with this identity or, for want of one, at this address.
    pub(super) fn is(self, identity: Option<Identity>, address: SocketAddr) -> bool {
        match (identity, self.identity) {
            (None, None) => self.addresses.contains(&address),
            (one, other) => one == other,
        }
    }

    /// Whether people mean it by `name`; `own` is what it calls itself, if that counts.
    pub(super) fn is_called(self, name: &str, own: &str) -> bool {
        let is_given =
            |given: &ServerName| given.host.eq_ignore_ascii_case(name) || given.to_string() == name;
        let is_address =
            |address: &SocketAddr| address.to_string() == name || address.ip().to_string() == name;
        (!own.is_empty() && own.eq_ignore_ascii_case(name))
            || self.given.is_some_and(is_given)
            || self.addresses.iter().any(is_address)
    }
}

impl Known {
    /// Whether people mean it by `name`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        let given = self.had.as_ref().and_then(|had| had.given.as_ref());
        Who { given, ..Who::of(self.identity, &self.address) }.is_called(name, &self.name)
    }

    pub(super) fn is(&self, who: Who<'_>) -> bool {
        who.is(self.identity, self.address)
    }
}

/// Of two records with the same name or address the earlier one owns it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) identity: Identity,
    pub(super) name: String,
    pub(super) address: SocketAddr,
    /// When it was met, if that was in this run.
    pub(super) met: Option<Instant>,
    /// When it was last well in this run.
    pub(super) seen: Option<Instant>,
}

impl Record {
    pub(super) fn is_called(&self, name: &str) -> bool {
        !name.is_empty() && self.name.eq_ignore_ascii_case(name)
    }

    pub(super) fn is_at(&self, name: &str) -> bool {
        Who::of(Some(self.identity), &self.address).is_called(name, "")
    }

    pub(super) fn is_newcomer(&self, now: Instant) -> bool {
        self.met.is_some_and(|met| is_within_probation(met, now))
    }

    /// Whether it wasn't well for so long that another may take its place.
    fn is_away(&self, now: Instant) -> bool {
        self.seen.is_none_or(|seen| !is_within_probation(seen, now))
    }
}

pub(super) fn is_within_probation(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < PROBATION
}

/// The earliest first.
#[derive(Debug, Default)]
pub(super) struct Records(pub(super) Vec<Record>);

impl Records {
    /// Takes up what was known in an earlier run.
    pub(super) fn push(&mut self, record: Record) {
        if self.0.len() < MAX_RECORDS {
            self.0.push(record);
        }
    }

    /// Writes down that a server is well, and since when; whether that is news. A name, address or
    /// identity of another server (`is_contested`) is recorded once the other has been away for
    /// long, and behind the other's record.
    pub(super) fn write_down(
        &mut self,
        now: Instant,
        (identity, name, address): (Identity, &str, SocketAddr),
        (well_since, is_contested): (Instant, bool),
        is_there: impl Fn(&Record) -> bool,
    ) -> bool {
        let own = self.0.iter().position(|record| record.identity == identity);
        if let Some(own) = own.map(|own| &mut self.0[own])
            && own.address == address
            && (own.is_called(name) || own.name == name)
        {
            own.seen = Some(now);
            return false;
        }
        let is_claimed =
            |r: &&Record| r.identity != identity && (r.address == address || r.is_called(name));
        let may_succeed = || self.0.iter().filter(is_claimed).all(|r| r.is_away(now));
        if is_contested && (is_within_probation(well_since, now) || !may_succeed()) {
            return false;
        }
        let met = own.map_or(Some(well_since), |own| self.0[own].met);
        let record = Record { identity, name: name.to_owned(), address, met, seen: Some(now) };
        match own {
            Some(own) if !is_contested => self.0[own] = record,
            Some(own) => {
                self.0.remove(own);
                self.0.push(record);
            }
            None if self.make_room(is_there) => self.0.push(record),
            None => return false,
        }
        true
    }

    /// The newest of those that aren't there gives way, so that many new names can't make the old
    /// ones forgotten.
    fn make_room(&mut self, is_there: impl Fn(&Record) -> bool) -> bool {
        if self.0.len() < MAX_RECORDS {
            return true;
        }
        let absent = self.0.iter().rposition(|record| !is_there(record));
        absent.map(|at| self.0.remove(at)).is_some()
    }
}
