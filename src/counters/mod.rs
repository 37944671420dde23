//! What has happened so far, counted where it happens: requests, bytes, tokens, failures.
//!
//! Counting is a handful of relaxed additions on the way of a request; only failures and long
//! work (pulls, uploads) take a lock. Every label is one of a fixed list, and what belongs to a
//! server lives and goes with the pool's entry for it, so nothing that the network says makes
//! this grow.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::net::untrusted_text::printable;
use crate::system::lock;

/// Failures remembered with their reasons.
const MAX_FAILURES: usize = 32;
/// Pulls and uploads shown at once; more are served, but not shown.
const MAX_TRANSFERS: usize = 64;

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a request is for, as far as counting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model writes.
    Generate,
    /// A model makes vectors.
    Embed,
    /// Pull, push, create, copy, delete, blobs.
    Manage,
    /// Anything else: lists, versions, what programs ask in passing.
    Other,
}

impl Kind {
    /// All of them, with their labels.
    pub const ALL: [(Kind, &'static str); 4] = [
        (Kind::Generate, "generate"),
        (Kind::Embed, "embed"),
        (Kind::Manage, "manage"),
        (Kind::Other, "other"),
    ];
}

/// Classes of how requests end; 499 stands for a client that left.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "left"];

/// Why requests fail; what isn't in the list counts as the last.
pub const CAUSES: [&str; 15] = [
    "unreached",
    "upstream",
    "busy",
    "broken",
    "left",
    "host",
    "origin",
    "policy",
    "unpaired",
    "loop",
    "body",
    "request",
    "full",
    "own",
    "other",
];

/// Why a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The server wasn't reached.
    Unreached,
    /// It failed before its answer.
    Failed,
    /// It answered that it is busy.
    Busy,
    /// The connection was kept from an earlier request and had died.
    Stale,
}

impl Retry {
    /// All of them, with their labels.
    pub const ALL: [(Retry, &'static str); 4] = [
        (Retry::Unreached, "unreached"),
        (Retry::Failed, "failed"),
        (Retry::Busy, "busy"),
        (Retry::Stale, "stale"),
    ];
}

/// Upper bounds of the histograms' buckets, in seconds: a LAN answers in milliseconds, a model that
/// has to be loaded takes minutes.
pub const BOUNDS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is above.
    buckets: [Counter; BOUNDS.len() + 1],
    sum_micros: Counter,
}

impl Histogram {
    /// Counts one.
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at].add(1);
        self.sum_micros.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many are in each bucket, the last one being above every bound.
    pub fn buckets(&self) -> [u64; BOUNDS.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].value())
    }

    /// Seconds in all.
    pub fn sum(&self) -> f64 {
        self.sum_micros.value() as f64 / 1e6
    }
}

/// What one server has done: a handle that goes with every pick of it.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Done>);

/// The counts of a [`Tally`].
#[derive(Debug, Default)]
pub struct Done {
    /// Requests that ended.
    pub requests: Counter,
    /// Those of them that failed by its fault.
    pub failures: Counter,
    /// Bytes of request bodies sent to it.
    pub bytes_up: Counter,
    /// Bytes of its answers' bodies.
    pub bytes_down: Counter,
    /// Tokens that it wrote.
    pub tokens: Counter,
}

impl std::ops::Deref for Tally {
    type Target = Done;

    fn deref(&self) -> &Done {
        &self.0
    }
}

/// Two handles are the same if they count for the same server.
impl PartialEq for Tally {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tally {}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub at: Instant,
    /// What the client was answered; 0 if its answer broke off or another server was tried.
    pub status: u16,
    /// One of [`CAUSES`].
    pub cause: &'static str,
    /// Of the request.
    pub method: String,
    /// Of the request, without its query.
    pub path: String,
    /// Why, for people.
    pub reason: String,
}

/// A pull or an upload on its way through.
#[derive(Debug)]
pub struct Transfer {
    /// `pull`, `push`, `create` or `upload`.
    pub kind: &'static str,
    /// Which model or blob.
    pub name: String,
    /// Since when.
    pub since: Instant,
    /// Bytes of the layer or blob under way, and how many of them are done.
    total: AtomicU64,
    done: AtomicU64,
    /// Bytes seen passing or told to have passed, over all layers, for the speed.
    moved: AtomicU64,
    server: Mutex<String>,
    state: Mutex<String>,
}

impl Transfer {
    /// So much of so much is done. The first word about a layer only tells where it stands, which
    /// may be far where an earlier pull broke off.
    pub fn set(&self, done: u64, total: u64) {
        let before = self.done.swap(done, Relaxed);
        if self.total.swap(total, Relaxed) == total {
            self.moved.fetch_add(done.saturating_sub(before), Relaxed);
        }
    }

    /// So much more is done.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.moved.fetch_add(bytes, Relaxed);
    }

    /// What the server says it is doing.
    pub fn describe(&self, state: &str) {
        let mut present = lock(&self.state);
        if *present != state {
            *present = printable(state);
        }
    }

    /// Where it goes.
    pub fn goes_to(&self, server: &str) {
        *lock(&self.server) = printable(server);
    }

    /// Bytes done, bytes in all (0 if unknown), and bytes moved since the start.
    pub fn progress(&self) -> (u64, u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed), self.moved.load(Relaxed))
    }

    /// Where it goes, and what is being done.
    pub fn words(&self) -> (String, String) {
        (lock(&self.server).clone(), lock(&self.state).clone())
    }
}

/// A transfer's place in the list of those under way; dropping it takes it out.
#[derive(Debug)]
pub struct Underway {
    transfer: Arc<Transfer>,
    list: Arc<Mutex<Vec<Arc<Transfer>>>>,
}

impl Transfer {
    /// Reads a line of a pull, push or create: what is done, of which layer, and how far that is.
    pub fn read(&self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<serde_json::Value>(line) else { return };
        if let Some(status) = line.get("status").and_then(serde_json::Value::as_str) {
            self.describe(status);
        }
        let number = |member: &str| line.get(member).and_then(serde_json::Value::as_u64);
        match (number("completed"), number("total")) {
            (done, Some(total)) => self.set(done.unwrap_or(0).min(total), total),
            // A step that has no measure, such as "verifying sha256 digest".
            (_, None) => self.total.store(0, Relaxed),
        }
    }
}

impl std::ops::Deref for Underway {
    type Target = Arc<Transfer>;

    fn deref(&self) -> &Arc<Transfer> {
        &self.transfer
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        lock(&self.list).retain(|other| !Arc::ptr_eq(other, &self.transfer));
    }
}

/// All counts of a daemon.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [[Counter; CLASSES.len()]; Kind::ALL.len()],
    failures: [Counter; CAUSES.len()],
    retries: [Counter; Retry::ALL.len()],
    first_byte: [Histogram; Kind::ALL.len()],
    /// How long requests waited for a busy server, or for one that was being checked.
    pub queue_wait: Histogram,
    /// What all servers have done, those included that are forgotten.
    pub all: Done,
    recent: Mutex<VecDeque<Failure>>,
    transfers: Arc<Mutex<Vec<Arc<Transfer>>>>,
}

impl Counters {
    /// A request ended with this status.
    pub fn request(&self, kind: Kind, status: u16, first_byte: Option<Duration>) {
        let class = match status {
            499 => 5,
            status => usize::from(status / 100).clamp(1, 5) - 1,
        };
        self.requests[kind as usize][class].add(1);
        if let Some(time) = first_byte {
            self.first_byte[kind as usize].add(time);
        }
    }

    /// Requests of this kind, by class.
    pub fn requests(&self, kind: Kind) -> [u64; CLASSES.len()] {
        std::array::from_fn(|class| self.requests[kind as usize][class].value())
    }

    /// Requests of any kind.
    pub fn requests_in_all(&self) -> u64 {
        self.requests.iter().flatten().map(Counter::value).sum()
    }

    /// From a request's head to the first byte of its answer.
    pub fn first_byte(&self, kind: Kind) -> &Histogram {
        &self.first_byte[kind as usize]
    }

    /// Something failed that nobody has to hear of.
    pub fn failed(&self, cause: &str) {
        let at = CAUSES.iter().position(|known| *known == cause).unwrap_or(CAUSES.len() - 1);
        self.failures[at].add(1);
    }

    /// Something failed; it is remembered for a while.
    pub fn note(&self, mut failure: Failure) {
        self.failed(failure.cause);
        failure.method = printable(&failure.method);
        failure.path = printable(failure.path.split('?').next().unwrap_or_default());
        failure.reason = printable(&failure.reason);
        let mut recent = lock(&self.recent);
        if recent.len() >= MAX_FAILURES {
            recent.pop_front();
        }
        recent.push_back(failure);
    }

    /// Failures by cause, in the order of [`CAUSES`].
    pub fn failures(&self) -> [u64; CAUSES.len()] {
        std::array::from_fn(|at| self.failures[at].value())
    }

    /// The last failures, the newest first.
    pub fn recent_failures(&self) -> Vec<Failure> {
        lock(&self.recent).iter().rev().cloned().collect()
    }

    /// A request is sent again.
    pub fn retried(&self, why: Retry) {
        self.retries[why as usize].add(1);
    }

    /// How often requests were sent again for this.
    pub fn retries(&self, why: Retry) -> u64 {
        self.retries[why as usize].value()
    }

    /// Long work begins. `None` when so much is under way that one more isn't shown.
    pub fn begin(&self, kind: &'static str, name: &str, total: u64) -> Option<Underway> {
        let mut list = lock(&self.transfers);
        if list.len() >= MAX_TRANSFERS {
            return None;
        }
        let transfer = Arc::new(Transfer {
            kind,
            name: printable(name),
            since: Instant::now(),
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            server: Mutex::default(),
            state: Mutex::default(),
        });
        list.push(Arc::clone(&transfer));
        drop(list);
        Some(Underway { transfer, list: Arc::clone(&self.transfers) })
    }

    /// Long work under way, the oldest first.
    pub fn transfers(&self) -> Vec<Arc<Transfer>> {
        lock(&self.transfers).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(n: usize) -> Failure {
        Failure {
            at: Instant::now(),
            status: 502,
            cause: "upstream",
            method: "POST".to_owned(),
            path: format!("/api/chat?secret={n}"),
            reason: format!("{n}{}", "x".repeat(1000)),
        }
    }

    #[test]
    fn every_status_and_cause_has_a_place() {
        let counters = Counters::default();
        for status in [0, 99, 100, 200, 308, 404, 499, 503, 999] {
            counters.request(Kind::Other, status, None);
        }
        assert_eq!(counters.requests(Kind::Other), [3, 1, 1, 1, 2, 1]);
        assert_eq!(counters.requests_in_all(), 9);
        for (at, (kind, _)) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
        for (at, (why, _)) in Retry::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at);
        }
        counters.failed("busy");
        counters.failed("a cause that was invented later");
        assert_eq!((counters.failures()[2], counters.failures()[CAUSES.len() - 1]), (1, 1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let counters = Counters::default();
        (0..100).for_each(|n| counters.note(failure(n)));
        let recent = counters.recent_failures();
        assert_eq!(recent.len(), MAX_FAILURES);
        assert!(recent[0].reason.starts_with("99x"), "the newest comes first");
        assert_eq!(
            (recent[0].reason.len(), recent[0].path.as_str()),
            (crate::net::untrusted_text::MOST, "/api/chat")
        );
        let mut held: Vec<_> = (0..100).filter_map(|_| counters.begin("pull", "m", 0)).collect();
        assert_eq!(held.len(), MAX_TRANSFERS);
        held.truncate(1);
        assert_eq!(counters.transfers().len(), 1);
    }

    #[test]
    fn times_fall_into_buckets() {
        let times = Histogram::default();
        for ms in [0, 5, 6, 400_000] {
            times.add(Duration::from_millis(ms));
        }
        let buckets = times.buckets();
        assert_eq!((buckets[0], buckets[1], buckets[BOUNDS.len()]), (2, 1, 1));
        assert_eq!(times.sum(), 400.011);
    }

    #[test]
    fn a_transfers_speed_counts_every_layer() {
        let counters = Counters::default();
        let pull = counters.begin("pull", "m", 0).expect("room");
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
