//! What servers had when they were last well, with bounds that no stranger can stretch.
//!
//! A server is its identity; one that doesn't tell any is the name that the user gave it, or its
//! address. Only a server that gets work is remembered, so an announcement alone does nothing. A
//! stranger could still claim every popular model, and leave: a newcomer is remembered for a day
//! only, has little room, and never takes the place of a server that was known before.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::records::{Had, Known, Who};
use crate::ollama::inventory::Inventory;
use crate::pairing::identity::Identity;

/// For how long a server that is away is remembered, and one that was met within its last hour.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);
const NEWCOMER_REMEMBERED: Duration = Duration::from_secs(24 * 3600);
pub(super) const MAX_REMEMBERED: usize = 64;
/// Bytes of their lists: of one server, of one that is a newcomer, of all. A model takes some 500.
const MAX_BYTES: usize = 512 << 10;
const NEWCOMER_BYTES: usize = 64 << 10;
pub(super) const MAX_BYTES_IN_ALL: usize = 2 << 20;

#[derive(Clone, Debug)]
pub(super) struct Remembered {
    pub(super) identity: Option<Identity>,
    pub(super) name: String,
    pub(super) address: SocketAddr,
    /// `ago` is that at the moment `at`.
    pub(super) had: Had,
    at: Instant,
    /// The inventory that `had.models` was made of.
    source: Weak<Inventory>,
}

impl Remembered {
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.had.ago + now.saturating_duration_since(self.at)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.age(now) > if self.had.is_newcomer { NEWCOMER_REMEMBERED } else { REMEMBERED }
    }

    /// Whether it is this server.
    pub(super) fn is(&self, who: Who<'_>) -> bool {
        (self.had.given.is_some() && self.had.given.as_ref() == who.given)
            || who.is(self.identity, self.address)
    }

    pub(super) fn who(&self) -> Who<'_> {
        Who { given: self.had.given.as_ref(), ..Who::of(self.identity, &self.address) }
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        self.who().is_called(name, &self.name)
    }

    /// Whether this server has taken its place: it has told which one it is since, or has been
    /// installed anew under the same name at the same address.
    fn is_succeeded_by(&self, told: &Told<'_>) -> bool {
        let is_namesake = self.name == told.name && !told.is_newcomer;
        let is_there = told.address == self.address;
        self.is(told.who) || (is_there && (self.identity.is_none() || is_namesake))
    }
}

/// What a server told when it was well.
pub(super) struct Told<'a> {
    pub(super) who: Who<'a>,
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) at: Instant,
    pub(super) inventory: &'a Arc<Inventory>,
    pub(super) is_newcomer: bool,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) servers: Vec<Remembered>,
    /// Whether one of them can't be used now.
    pub(super) has_absent: bool,
}

impl Memory {
    pub(super) fn push(&mut self, now: Instant, known: &Known) {
        let Some(had) = known.had.clone() else { return };
        let Known { identity, address, .. } = *known;
        let name = known.name.clone();
        self.servers.push(Remembered {
            identity,
            name,
            address,
            had,
            at: now,
            source: Weak::new(),
        });
        self.expire(now);
        self.make_room(now, |_| false);
    }

    /// This machine slept, while its clock stood still.
    pub(super) fn slept(&mut self, time: Duration) {
        self.servers.iter_mut().for_each(|it| it.had.ago += time);
    }

    /// Takes up that a server was well, and what it had; whether that is news.
    pub(super) fn learn(&mut self, told: Told<'_>) -> bool {
        let source = Arc::downgrade(told.inventory);
        let own = self.servers.iter().position(|it| it.is(told.who));
        if let Some(own) = own.map(|own| &mut self.servers[own])
            && own.source.ptr_eq(&source)
            && (own.had.is_newcomer, own.address) == (told.is_newcomer, told.address)
        {
            // A sleep of this machine since then has made it longer ago, and stays counted.
            if own.at < told.at {
                (own.at, own.had.ago, own.had.stamp) = (told.at, Duration::ZERO, None);
            }
            return false;
        }
        let most = if told.is_newcomer { NEWCOMER_BYTES } else { MAX_BYTES };
        let new = Remembered {
            identity: told.who.identity,
            name: told.name.clone(),
            address: told.address,
            had: Had {
                models: Arc::new(told.inventory.on_disk(most)),
                given: told.who.given.cloned(),
                ago: Duration::ZERO,
                stamp: None,
                is_newcomer: told.is_newcomer,
            },
            at: told.at,
            source,
        };
        let old = own.map(|own| self.servers.remove(own));
        let before = self.servers.len();
        self.servers.retain(|it| !it.is_succeeded_by(&told));
        let has_replaced = self.servers.len() < before;
        let facts = |it: &Remembered| (it.name.clone(), it.address, it.had.is_newcomer);
        let is_same =
            old.is_some_and(|old| facts(&old) == facts(&new) && old.had.models == new.had.models);
        self.servers.push(new);
        has_replaced || !is_same
    }

    /// Forgets what is long ago; whether there was any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.servers.len();
        self.servers.retain(|it| !it.is_over(now));
        self.servers.len() < before
    }

    /// Forgets what there is no room for: newcomers first, and those last that are there.
    pub(super) fn make_room(&mut self, now: Instant, is_there: impl Fn(&Remembered) -> bool) {
        let bytes = |all: &[Remembered]| all.iter().map(|it| it.had.models.bytes()).sum::<usize>();
        while self.servers.len() > MAX_REMEMBERED || bytes(&self.servers) > MAX_BYTES_IN_ALL {
            let weakest = (0..self.servers.len()).max_by_key(|at| {
                let it = &self.servers[*at];
                (it.had.is_newcomer, !is_there(it), it.age(now))
            });
            weakest.map(|at| self.servers.remove(at));
        }
    }
}
