//! The course of the last minutes: one point every two seconds.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::events::BackendId;

/// Between two points.
pub(crate) const STEP: Duration = Duration::from_secs(2);
/// Four minutes of them.
const POINTS: usize = 120;

/// Numbers of the last minutes, oldest first, and the last count that was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    points: VecDeque<u32>,
    before: u64,
}

impl Series {
    fn push(&mut self, value: u64) {
        if self.points.len() >= POINTS {
            self.points.pop_front();
        }
        self.points.push_back(u32::try_from(value).unwrap_or(u32::MAX));
    }

    /// Adds by how much a count has grown.
    fn push_growth(&mut self, count: u64) {
        self.push(count.saturating_sub(self.before));
        self.before = count;
    }

    pub(crate) fn values(&self) -> impl ExactSizeIterator<Item = u32> {
        self.points.iter().copied()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    recorded: Option<Instant>,
    /// Requests that ended in each step.
    pub(crate) requests: Series,
    /// Requests that waited at its end.
    pub(crate) queue: Series,
    /// Of each server: tokens written in each step, and requests it had at its end.
    pub(crate) servers: HashMap<BackendId, (Series, Series)>,
}

impl History {
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.recorded.is_none_or(|at| now.saturating_duration_since(at) >= STEP)
    }

    /// Adds a point: requests that wait, requests that have ended so far, and of each server the
    /// tokens so far and the requests it has.
    pub(crate) fn record(
        &mut self,
        now: Instant,
        queue: usize,
        requests: u64,
        servers: impl Iterator<Item = (BackendId, u64, u32)>,
    ) {
        // Nothing is made up for the time that this machine slept.
        self.recorded = Some(now);
        self.requests.push_growth(requests);
        self.queue.push(queue as u64);
        let mut before = std::mem::take(&mut self.servers); // What was forgotten goes with it.
        for (id, tokens, in_flight) in servers {
            let mut course = before.remove(&id).unwrap_or_default();
            course.0.push_growth(tokens);
            course.1.push(u64::from(in_flight));
            self.servers.insert(id, course);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_differences_and_bounded() {
        let (mut history, t0) = (History::default(), Instant::now());
        let (a, b) = (BackendId(1), BackendId(2));
        assert!(history.is_due(t0));
        for n in 0..500u32 {
            let now = t0 + STEP * n;
            assert!(history.is_due(now), "{n}");
            let servers = [(a, u64::from(n) * 10, n), (b, 7, 0)];
            history.record(now, n as usize, u64::from(n) * 3, servers.into_iter());
            assert!(!history.is_due(now + STEP / 2));
        }
        let (tokens, in_flight) = &history.servers[&a];
        assert_eq!(tokens.values().len(), POINTS);
        assert!(tokens.values().all(|n| n == 10));
        assert_eq!(in_flight.values().last(), Some(499));
        assert!(history.requests.values().all(|n| n == 3));
        assert_eq!(history.queue.values().next(), Some(380));
        history.record(t0, 0, 0, [(b, 7, 0)].into_iter());
        assert!(!history.servers.contains_key(&a));
        let last = history.servers[&b].0.values().last();
        assert_eq!(last, Some(0));
    }
}
