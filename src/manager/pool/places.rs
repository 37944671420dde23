//! The checkers' places: which checks may run at once, so that nobody holds up those of the others.
//!
//! A place is free again when its check has reported, not when nobody waits for that any more.

use std::net::IpAddr;

use super::events::{BackendId, CheckId};

/// Health checks that may run at once. More would only wait, and those that wait can't be put in
/// another order.
pub const MAX_CHECKS: usize = 8;
/// Of these, checks that may take long: the others are for servers that answered fast until now.
const MAX_LONG: usize = 6;
/// Of these in turn, checks of servers that are down, so that one that has just fallen silent doesn't
/// wait for them.
const MAX_DOWN: usize = 5;
/// Checks of newcomers: the other places are kept for the servers that the user named, and for
/// those that are known for long.
const MAX_NEWCOMERS: usize = 6;
/// Of these, checks of newcomers that were never well, are slow, in doubt or down, of which anyone can
/// announce many: one per address, so many of a kind, and so many in all.
pub(super) const MAX_STRANGERS: usize = 3;
const MAX_SLOW: usize = 2;
const MAX_DOUBTFUL: usize = 3;
const MAX_FALLEN: usize = 2;
const MAX_BURDENS: usize = 5;
/// Besides the checks: lists that take too long to be asked for in passing, and those of newcomers.
pub const MAX_LISTS: usize = 2;
const MAX_NEWCOMERS_LISTS: usize = 1;
/// Checks of one server that didn't report in time. It isn't asked again before one has.
const MAX_STUCK: usize = 2;

/// Why a newcomer's check may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Burden {
    Stranger,
    Slow,
    /// Its last check failed.
    Doubtful,
    Fallen,
}

/// What a check is expected to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) is_list: bool,
    pub(super) is_long: bool,
    pub(super) is_down: bool,
    pub(super) is_newcomer: bool,
    pub(super) burden: Option<Burden>,
    /// Where the server is, if that isn't this machine.
    pub(super) at: Option<IpAddr>,
}

/// The places that are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Vec<(CheckId, Kind)>,
    last: u64,
}

impl Places {
    /// Takes a place for a check of this server, if it may have one.
    pub(super) fn take(&mut self, backend: BackendId, kind: Kind) -> Option<CheckId> {
        if !self.has_room(backend, kind) {
            return None;
        }
        self.last += 1;
        let id = CheckId { backend, number: self.last };
        self.taken.push((id, kind));
        Some(id)
    }

    /// The check has reported.
    pub(super) fn free(&mut self, id: CheckId) {
        self.taken.retain(|(taken, _)| *taken != id);
    }

    fn has_room(&self, backend: BackendId, kind: Kind) -> bool {
        let taken = |is_such: &dyn Fn(&Kind) -> bool| {
            self.taken.iter().filter(|(_, it)| it.is_list == kind.is_list && is_such(it)).count()
        };
        if self.taken.iter().filter(|(id, _)| id.backend == backend).count() > MAX_STUCK {
            return false;
        }
        if kind.is_list {
            return taken(&|_| true) < MAX_LISTS
                && (!kind.is_newcomer || taken(&|it| it.is_newcomer) < MAX_NEWCOMERS_LISTS);
        }
        let of_its_kind = kind.burden.map(|burden| match burden {
            Burden::Stranger => MAX_STRANGERS,
            Burden::Slow => MAX_SLOW,
            Burden::Doubtful => MAX_DOUBTFUL,
            Burden::Fallen => MAX_FALLEN,
        });
        let is_neighbour = |it: &Kind| it.burden.is_some() && it.at.is_some() && it.at == kind.at;
        let may_burden = |most| {
            taken(&|it| it.burden.is_some()) < MAX_BURDENS
                && taken(&|it| it.burden == kind.burden) < most
                && taken(&is_neighbour) == 0
        };
        taken(&|_| true) < MAX_CHECKS
            && (!kind.is_long || taken(&|it| it.is_long) < MAX_LONG)
            && (!kind.is_down || taken(&|it| it.is_down) < MAX_DOWN)
            && (!kind.is_newcomer || taken(&|it| it.is_newcomer) < MAX_NEWCOMERS)
            && of_its_kind.is_none_or(may_burden)
    }
}

#[cfg(test)]
mod tests;
