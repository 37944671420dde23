//! Where a server is: the address in use, those that may do if it fails, and one to be tried.

use std::net::{IpAddr, SocketAddr};

/// Addresses kept per server (a machine has few interfaces).
pub(super) const MAX_ADDRESSES: usize = 4;

#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// The first is in use; the others are tried when it fails.
    pub(crate) known: Vec<SocketAddr>,
    /// Whether the first one is there because another failed or was announced, and no check has
    /// confirmed it yet. Anyone can have announced it, so it gets no work before.
    pub(super) in_doubt: bool,
    /// An announced further address of a server that is up, kept as an alternative once a check
    /// has passed; or an alternative that may be another server's by now.
    pub(super) candidate: Option<SocketAddr>,
    /// Those whose checks have failed, and whether by a refusal, since one passed or all had failed.
    pub(super) failed: Vec<(SocketAddr, bool)>,
}

impl Addresses {
    /// The address in use, whether confirmed or not.
    pub(crate) fn first(&self) -> Option<SocketAddr> {
        self.known.first().copied()
    }

    /// The address in use, unless it waits for a check.
    pub(super) fn confirmed(&self) -> Option<SocketAddr> {
        self.first().filter(|_| !self.in_doubt)
    }

    pub(super) fn has_ip(&self, ip: IpAddr) -> bool {
        self.known.iter().any(|known| known.ip() == ip)
    }

    /// Puts an address first, confirmed by a check or not, and keeps the others as alternatives
    /// unless it is the only one.
    pub(super) fn put_first(&mut self, address: SocketAddr, is_confirmed: bool, is_only: bool) {
        self.known.retain(|known| *known != address && !is_only);
        self.known.insert(0, address);
        self.known.truncate(MAX_ADDRESSES);
        self.in_doubt = !is_confirmed;
        if is_confirmed {
            self.failed.clear();
        }
    }

    /// A check of the address in use failed: the next one that wasn't tried may do. Once all have
    /// failed, whether each of them refused; an old address may be a machine's that has no server.
    pub(super) fn turn(&mut self, is_refusal: bool) -> Option<bool> {
        self.failed.extend(self.first().map(|first| (first, is_refusal)));
        let is_untried =
            |known: &SocketAddr| !self.failed.iter().any(|(failed, _)| failed == known);
        // Announcements of further addresses must not put off the end for ever.
        let may_go_on = self.failed.len() < MAX_ADDRESSES;
        let next = self.known.iter().position(is_untried).filter(|_| may_go_on);
        if self.known.len() > 1 {
            self.known.rotate_left(next.unwrap_or(1));
            self.in_doubt = true;
        }
        if next.is_some() {
            return None;
        }
        let have_refused = self.failed.iter().all(|(_, is_refusal)| *is_refusal);
        self.failed.clear();
        Some(is_refusal && have_refused)
    }

    /// Whether another address is in use, because the check of the last one failed.
    pub(super) fn is_turned(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The candidate was checked, and is an alternative if it was well at this address. Whatever
    /// else was announced meanwhile has to wait: the address in use is checked next.
    pub(super) fn candidate_checked(&mut self, well_at: Option<SocketAddr>) {
        self.candidate = None;
        let has_room = self.known.len() < MAX_ADDRESSES;
        self.known.extend(well_at.filter(|new| has_room && !self.known.contains(new)));
    }

    /// It is another server's by now.
    pub(super) fn drop_alternative(&mut self, address: SocketAddr) {
        let first = self.first();
        self.known.retain(|known| *known != address || Some(*known) == first);
    }
}
