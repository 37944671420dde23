//! The fast path: the one server that a request would get anyway, leased without asking.
//!
//! Most proxies have no choice: a server has its own Ollama, most homes have one server. Asking the
//! Manager's thread and telling it the end costs two wake-ups per request, which is more than all
//! else that a small request costs. So while there is no choice, the Manager publishes the pick,
//! and workers count themselves in and out on it. When that changes it retracts the pick, and takes
//! over the count: workers that have it by then report to the Manager as usual.

use std::sync::{Arc, Mutex};

use super::pool::Pick;
use crate::system::lock;

#[derive(Debug)]
pub(crate) struct FastPath {
    pub(super) pick: Pick,
    /// Requests that have the server this way; `None` once the pick was retracted.
    users: Mutex<Option<Users>>,
}

/// How many use a pick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Users {
    pub(super) all: u32,
    /// Those that no limit holds for.
    pub(super) exempt: u32,
}

impl FastPath {
    fn enter(&self, is_exempt: bool) -> bool {
        let mut users = lock(&self.users);
        let Some(users) = users.as_mut() else { return false };
        users.all += 1;
        users.exempt += u32::from(is_exempt);
        true
    }

    /// A request has ended. False when the pick was retracted: then the Manager counts, and has to
    /// be told.
    pub(super) fn leave(&self, is_exempt: bool) -> bool {
        let mut users = lock(&self.users);
        let Some(users) = users.as_mut() else { return false };
        users.all -= 1;
        users.exempt -= u32::from(is_exempt);
        true
    }

    pub(super) fn count(&self) -> u32 {
        lock(&self.users).map_or(0, |users| users.all)
    }
}

/// Where the Manager publishes a pick.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Arc<FastPath>>>);

impl Slot {
    /// Uses the published pick, if there is one.
    pub(super) fn enter(&self, is_exempt: bool) -> Option<Arc<FastPath>> {
        self.published().filter(|path| path.enter(is_exempt))
    }

    pub(super) fn published(&self) -> Option<Arc<FastPath>> {
        lock(&self.0).clone()
    }

    /// The slot must be empty, or the count of its pick is lost.
    pub(super) fn publish(&self, pick: Pick) {
        *lock(&self.0) =
            Some(Arc::new(FastPath { pick, users: Mutex::new(Some(Users::default())) }));
    }

    /// Empties the slot. The pick that was there, and how many requests have it, all of which will
    /// report.
    pub(super) fn retract(&self) -> Option<(Pick, Users)> {
        let path = lock(&self.0).take()?;
        let users = lock(&path.users).take().unwrap_or_default();
        Some((path.pick.clone(), users))
    }
}
