//! What has happened so far, counted where it happens: requests, bytes, tokens, failures.
//!
//! Counting is a handful of relaxed additions on the way of a request; only failures and long
//! work (pulls, uploads) take a lock. Every label is one of a fixed list, and what belongs to a
//! server lives and goes with the pool's entry for it, so nothing that the network says makes
//! this grow. It must not know what is done with the counts.

mod counter;
mod share;
mod sources;
mod transfers;
mod work;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::net::untrusted_text::printable;
use crate::system::lock;

use self::transfers::Transfers;
use self::work::Work;

pub(crate) use counter::{BOUNDS, Counter, Histogram};
pub(crate) use share::Share;
pub(crate) use transfers::{FROM, Transfer, TransferGuard, Words};

/// Failures remembered with their reasons.
const MAX_FAILURES: usize = 32;

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
    pub(crate) const ALL: [(Kind, &'static str); 4] = [
        (Kind::Generate, "generate"),
        (Kind::Embed, "embed"),
        (Kind::Manage, "manage"),
        (Kind::Other, "other"),
    ];
}

/// Classes of how requests end; 499 stands for a client that left.
pub(crate) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "left"];

/// Why requests fail; what isn't in the list counts as the last.
pub(crate) const CAUSES: [&str; 16] = [
    "unreached",
    "upstream",
    "busy",
    "broken",
    "left",
    "host",
    "origin",
    "policy",
    "unpaired",
    "token",
    "loop",
    "body",
    "request",
    "full",
    "own",
    "other",
];

/// Why a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    Unreached,
    /// The server failed before its answer.
    Failed,
    Busy,
    /// The connection was kept from an earlier request and had died.
    Stale,
}

impl Retry {
    pub(crate) const ALL: [(Retry, &'static str); 4] = [
        (Retry::Unreached, "unreached"),
        (Retry::Failed, "failed"),
        (Retry::Busy, "busy"),
        (Retry::Stale, "stale"),
    ];
}

/// Goes with every pick of a server.
pub(crate) type Tally = Arc<Done>;

#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) requests: Counter,
    /// Those of them that failed by the server's fault.
    pub(crate) failures: Counter,
    pub(crate) bytes_up: Counter,
    pub(crate) bytes_down: Counter,
    pub(crate) tokens: Counter,
}

/// Two tallies are the same if they count for the same server.
impl PartialEq for Done {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Done {}

#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) at: Instant,
    /// What the client was answered; 0 if its answer broke off or another server was tried.
    pub(crate) status: u16,
    pub(crate) cause: &'static str,
    pub(crate) method: String,
    /// Without its query.
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// How many places for connections a proxy has, and how many are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) connections: usize,
    /// Of these, the most that one other machine has.
    pub(crate) most_of_one: usize,
    pub(crate) max: usize,
    /// Places that one other machine may have, if as many are free.
    pub(crate) max_per_source: usize,
}

/// Knows how many connections a proxy has; for those who may not know of proxies.
pub(crate) trait ConnectionCounts: Debug + Send + Sync {
    fn usage(&self) -> Usage;
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: [[Counter; CLASSES.len()]; Kind::ALL.len()],
    failures: [Counter; CAUSES.len()],
    pub(crate) retries: [Counter; Retry::ALL.len()],
    /// From a request's head to the first byte of its answer.
    pub(crate) first_byte: [Histogram; Kind::ALL.len()],
    /// Time that queued requests waited.
    pub(crate) queue_wait: Histogram,
    /// What all servers have done, those included that are forgotten.
    pub(crate) all: Done,
    recent: Mutex<VecDeque<Failure>>,
    pub(crate) transfers: Transfers,
    pub(crate) work: Work,
}

impl Counters {
    pub(crate) fn request(&self, kind: Kind, status: u16, first_byte: Option<Duration>) {
        let class = match status {
            499 => 5,
            status => usize::from(status / 100).clamp(1, 5) - 1,
        };
        self.requests[kind as usize][class].add(1);
        if let Some(time) = first_byte {
            self.first_byte[kind as usize].add(time);
        }
    }

    pub(crate) fn requests(&self, kind: Kind) -> [u64; CLASSES.len()] {
        std::array::from_fn(|class| self.requests[kind as usize][class].value())
    }

    pub(crate) fn requests_in_all(&self) -> u64 {
        self.requests.iter().flatten().map(Counter::value).sum()
    }

    /// Something failed that nobody has to hear of.
    pub(crate) fn failed(&self, cause: &str) {
        let at = CAUSES.iter().position(|known| *known == cause).unwrap_or(CAUSES.len() - 1);
        self.failures[at].add(1);
    }

    /// Something failed; it is remembered for a while.
    pub(crate) fn note(&self, mut failure: Failure) {
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
    pub(crate) fn failures(&self) -> [u64; CAUSES.len()] {
        std::array::from_fn(|at| self.failures[at].value())
    }

    /// The last failures, the newest first.
    pub(crate) fn recent_failures(&self) -> Vec<Failure> {
        lock(&self.recent).iter().rev().cloned().collect()
    }

    pub(crate) fn retried(&self, why: Retry) {
        self.retries[why as usize].add(1);
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
    }
}
