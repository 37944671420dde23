//! One member of the pool, put together of its sub-states.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::health::Checked;
use super::{Addresses, BackendId, Claims, Health, Load, Models, Origin, Pick, State, Verdict};
use crate::access::permissions::Permission;
use crate::config::ServerName;
use crate::counters::Tally;
use crate::pairing::identity::Identity;
use crate::upstream::{Hope, Target};

/// After this time down and unseen, a discovered server is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) id: BackendId,
    pub(super) origin: Origin,
    /// When it was announced or found well last.
    pub(super) last_seen: Instant,
    /// What it has done; goes with every pick.
    pub(crate) tally: Tally,
    /// Goes with every pick too.
    pub(super) hope: Hope,
    /// Where it was well, as long as that is hoped for.
    pub(super) hoped_for: Option<SocketAddr>,
    pub(crate) addresses: Addresses,
    pub(crate) claims: Claims,
    pub(crate) health: Health,
    pub(crate) load: Load,
    pub(crate) models: Models,
}

impl Backend {
    /// Ends the hope of those who still connect to where it isn't any more.
    pub(super) fn update_hope(&mut self) {
        let place = self.addresses.confirmed().filter(|_| self.health.down_reason().is_none());
        if place != std::mem::replace(&mut self.hoped_for, place) {
            self.hope.end();
        }
    }

    /// What its checks and its claims make it. While it is passed over ([`Load::pause`]), that is
    /// the state of a ready one.
    pub(super) fn state(&self) -> State {
        match self.health.verdict {
            Verdict::New => State::New,
            Verdict::Down(_) => State::Down,
            Verdict::Ready if self.claims.is_quarantined() => State::Quarantined,
            Verdict::Ready => State::Ready,
        }
    }

    pub(super) fn gets_work(&self) -> bool {
        self.state().gets_work()
    }

    /// Whether the last checks found it well at the address in use, whatever else tells against it.
    pub(super) fn is_verified(&self) -> bool {
        self.health.is_ready() && !self.addresses.in_doubt
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.origin, Origin::Local(_))
    }

    pub(super) fn is_discovered(&self) -> bool {
        matches!(self.origin, Origin::Discovered | Origin::Legacy)
    }

    /// Whether it was announced but has never been well.
    pub(super) fn is_stranger(&self) -> bool {
        self.is_discovered() && self.health.round_trip.is_none()
    }

    /// Whether the user didn't name it, and it isn't known for long either.
    pub(super) fn is_newcomer(&self) -> bool {
        self.is_stranger() || self.claims.is_newcomer
    }

    /// Whether it is a stranger that was asked and had its chance.
    pub(super) fn has_failed_first(&self) -> bool {
        self.is_stranger() && self.health.failures > 0 && self.load.in_flight == 0
    }

    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        let is_long = |since: Instant| now.saturating_duration_since(since) >= FORGET_AFTER;
        let is_gone = match self.health.verdict {
            Verdict::New => true,
            Verdict::Ready => false,
            Verdict::Down(_) => is_long(self.health.since),
        };
        self.is_discovered() && is_long(self.last_seen) && is_gone && self.load.in_flight == 0
    }

    /// The name that the user or this machine's configuration gave.
    pub(super) fn given(&self) -> Option<&ServerName> {
        match &self.origin {
            Origin::Local(server) | Origin::Named(server) => Some(server),
            Origin::Discovered | Origin::Legacy => None,
        }
    }

    pub(super) fn label(&self) -> String {
        let address = || self.addresses.first().map_or(String::new(), |it| it.to_string());
        let place = self.given().map_or_else(address, ToString::to_string);
        let name = &self.claims.name;
        if name.is_empty() { place } else { format!("{name} ({place})") }
    }

    /// Its name, else what the user calls it, or where it is.
    pub(super) fn short_name(&self) -> String {
        match &self.origin {
            _ if !self.claims.name.is_empty() => self.claims.name.clone(),
            Origin::Named(server) => server.to_string(),
            _ => self.addresses.first().map_or(String::new(), |it| it.to_string()),
        }
    }

    /// Whether it is an Ollama of another machine without a proxy of ours; `None` until it was well.
    pub(crate) fn is_plain(&self) -> Option<bool> {
        let tells = !self.claims.name.is_empty() || self.claims.identity.is_some();
        let is_known = self.health.round_trip.is_some();
        is_known.then_some(!tells && !self.is_local())
    }

    /// Whether an announcement of this identity from this address is about it. An address that it
    /// doesn't use may be another server's by now.
    pub(super) fn is_at(&self, address: SocketAddr, identity: Option<Identity>) -> bool {
        let is_other = identity.is_some_and(|it| self.claims.is_contradicted_by(it));
        self.addresses.first() == Some(address)
            || (self.addresses.known.contains(&address) && !is_other)
    }

    /// Whether people mean this server by `name`.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let own = if self.claims.is_quarantined() { "" } else { &self.claims.name };
        self.who().is_called(name, own)
    }

    /// What it lets us do. A server that the user named and that doesn't say is no proxy of ours.
    pub(super) fn permission(&self) -> Permission {
        let is_open = self.claims.management_open || !self.is_discovered();
        let unsaid = if is_open { Permission::Manage } else { Permission::Use };
        self.claims.permission.unwrap_or(unsaid)
    }

    /// What to check next: a candidate, then what its name means, then the address in use.
    pub(super) fn next_target(&mut self) -> Option<(Target, Checked)> {
        // Whether it is well where it is used comes first.
        if !self.health.is_doubtful()
            && let Some(candidate) = self.addresses.candidate.take()
        {
            return Some((Target::Address(candidate), Checked::Candidate));
        }
        self.target()
    }

    /// What its name means, or the address in use.
    pub(super) fn target(&self) -> Option<(Target, Checked)> {
        if let Some(server) = self.given() {
            return Some((Target::Name(server.clone()), Checked::Name));
        }
        let address = self.addresses.first()?;
        Some((Target::Address(address), Checked::InUse(address)))
    }

    /// `None` while its name hasn't been resolved yet.
    pub(super) fn pick(&self) -> Option<Pick> {
        Some(Pick {
            id: self.id,
            address: self.addresses.first()?,
            name: self.short_name(),
            is_local: self.is_local(),
            is_exempt: false,
            is_sole: false,
            is_trial: false,
            hope: self.hope.clone(),
            tally: self.tally.clone(),
        })
    }
}
