//! Pulls and uploads on their way through.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;

use crate::net::untrusted_text::printable;
use crate::system::lock;

/// Pulls and uploads shown at once; more are served, but not shown.
const MAX_TRANSFERS: usize = 64;

#[derive(Debug)]
pub(crate) struct Transfer {
    /// `pull`, `push`, `create` or `upload`.
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) since: Instant,
    /// Bytes of the layer or blob under way (0 if unknown), and how many of them are done.
    total: AtomicU64,
    done: AtomicU64,
    /// Bytes seen passing or told to have passed, over all layers, for the speed.
    moved: AtomicU64,
    server: Mutex<String>,
    state: Mutex<String>,
}

impl Transfer {
    /// The first word about a layer only tells where it stands, which may be far where an earlier
    /// pull broke off.
    fn set(&self, done: u64, total: u64) {
        let before = self.done.swap(done, Relaxed);
        if self.total.swap(total, Relaxed) == total {
            self.moved.fetch_add(done.saturating_sub(before), Relaxed);
        }
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.moved.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn goes_to(&self, server: &str) {
        *lock(&self.server) = printable(server);
    }

    /// Bytes done, bytes in all (0 if unknown), and bytes moved since the start.
    pub(crate) fn progress(&self) -> (u64, u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed), self.moved.load(Relaxed))
    }

    /// Where it goes, and what is being done.
    pub(crate) fn words(&self) -> (String, String) {
        (lock(&self.server).clone(), lock(&self.state).clone())
    }

    /// Reads a line of a pull, push or create: what is done, of which layer, and how far that is.
    pub(crate) fn read(&self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return };
        if let Some(status) = line.get("status").and_then(Value::as_str) {
            let mut state = lock(&self.state);
            if *state != status {
                *state = printable(status);
            }
        }
        let number = |member: &str| line.get(member).and_then(Value::as_u64);
        match (number("completed"), number("total")) {
            (done, Some(total)) => self.set(done.unwrap_or(0).min(total), total),
            // A step that has no measure, such as "verifying sha256 digest".
            (_, None) => self.total.store(0, Relaxed),
        }
    }
}

/// All that are under way, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transfers(Arc<Mutex<Vec<Arc<Transfer>>>>);

impl Transfers {
    /// A pull or an upload begins. `None` when so many are under way that one more isn't shown.
    pub(crate) fn begin(
        &self,
        kind: &'static str,
        name: &str,
        total: u64,
    ) -> Option<TransferGuard> {
        let mut list = lock(&self.0);
        if list.len() >= MAX_TRANSFERS {
            return None;
        }
        let transfer = Arc::new(Transfer {
            kind,
            name: printable(name),
            since: Instant::now(),
            total: AtomicU64::new(total),
            done: AtomicU64::default(),
            moved: AtomicU64::default(),
            server: Mutex::default(),
            state: Mutex::default(),
        });
        list.push(Arc::clone(&transfer));
        Some(TransferGuard { transfer, list: self.clone() })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Transfer>> {
        lock(&self.0).clone()
    }
}

/// A transfer's place in the list; dropping it takes the transfer out.
#[derive(Debug)]
pub(crate) struct TransferGuard {
    transfer: Arc<Transfer>,
    list: Transfers,
}

impl std::ops::Deref for TransferGuard {
    type Target = Arc<Transfer>;

    fn deref(&self) -> &Arc<Transfer> {
        &self.transfer
    }
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        lock(&self.list.0).retain(|other| !Arc::ptr_eq(other, &self.transfer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_shown_are_bounded() {
        let transfers = Transfers::default();
        let mut held: Vec<_> = (0..100).filter_map(|_| transfers.begin("pull", "m", 0)).collect();
        assert_eq!(held.len(), MAX_TRANSFERS);
        held.truncate(1);
        assert_eq!(transfers.all().len(), 1);
    }

    #[test]
    fn a_transfers_speed_counts_every_layer() {
        let transfers = Transfers::default();
        let pull = transfers.begin("pull", "m", 0).expect("room");
        pull.set(60, 100); // Taken up where an earlier one broke off.
        pull.set(100, 100);
        pull.set(5, 10); // The next layer.
        assert_eq!(pull.progress(), (5, 10, 40));
        pull.read(br#"{"status":"pulling 12ab","digest":"x","total":10,"completed":7}"#);
        assert_eq!(pull.words().1, "pulling 12ab");
        pull.read(b"no JSON");
        assert_eq!(pull.progress(), (7, 10, 42));
    }
}
