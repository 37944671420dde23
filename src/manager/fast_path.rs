//! The fast path: the one backend that a request would get anyway, leased without asking.
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
    /// Requests that have the backend this way; `None` once the pick was retracted.
    users: Mutex<Option<u32>>,
}

impl FastPath {
    fn enter(&self) -> bool {
        lock(&self.users).as_mut().map(|users| *users += 1).is_some()
    }

    /// A request has ended. False when the pick was retracted: then the Manager counts, and has to
    /// be told.
    pub(super) fn leave(&self) -> bool {
        lock(&self.users).as_mut().map(|users| *users -= 1).is_some()
    }

    pub(super) fn count(&self) -> u32 {
        lock(&self.users).unwrap_or(0)
    }
}

/// Where the Manager publishes a pick.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Arc<FastPath>>>);

impl Slot {
    /// Uses the published pick, if there is one.
    pub(super) fn enter(&self) -> Option<Arc<FastPath>> {
        self.published().filter(|path| path.enter())
    }

    pub(super) fn published(&self) -> Option<Arc<FastPath>> {
        lock(&self.0).clone()
    }

    /// The slot must be empty, or the count of its pick is lost.
    pub(super) fn publish(&self, pick: Pick) {
        *lock(&self.0) = Some(Arc::new(FastPath { pick, users: Mutex::new(Some(0)) }));
    }

    /// Empties the slot. The pick that was there, and how many requests have it, all of which will
    /// report.
    pub(super) fn retract(&self) -> Option<(Pick, u32)> {
        let path = lock(&self.0).take()?;
        let count = lock(&path.users).take().unwrap_or(0);
        Some((path.pick.clone(), count))
    }
}
