//! The course of the last minutes: one point every two seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::events::BackendId;

/// Between two points.
const STEP: Duration = Duration::from_secs(2);
/// Four minutes of them.
const POINTS: usize = 120;

/// Numbers of the last minutes, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(VecDeque<u32>);

impl Series {
    fn push(&mut self, value: u32) {
        if self.0.len() >= POINTS {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    pub(crate) fn values(&self) -> impl ExactSizeIterator<Item = u32> {
        self.0.iter().copied()
    }
}

/// What one server did.
#[derive(Clone, Debug)]
struct Course {
    id: BackendId,
    tokens_before: u64,
    tokens: Series,
    in_flight: Series,
}

/// What all did.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    recorded: Option<Instant>,
    requests_before: u64,
    /// Requests that ended in each step.
    pub(crate) requests: Series,
    /// Requests that waited at its end.
    pub(crate) queue: Series,
    servers: Vec<Course>,
}

impl History {
    pub(crate) fn step(&self) -> Duration {
        STEP
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.recorded.is_none_or(|at| now.saturating_duration_since(at) >= STEP)
    }

    /// Adds a point: requests that wait, requests that have ended so far, and of each server the
    /// tokens so far and the requests it has.
    pub(super) fn record(
        &mut self,
        now: Instant,
        queue: usize,
        requests: u64,
        servers: impl Iterator<Item = (BackendId, u64, u32)>,
    ) {
        let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        // Nothing is made up for the time that this machine slept.
        self.recorded = Some(now);
        self.requests.push(clamp(requests.saturating_sub(self.requests_before)));
        self.requests_before = requests;
        self.queue.push(clamp(queue as u64));
        let mut courses = Vec::with_capacity(self.servers.len());
        for (id, tokens, in_flight) in servers {
            let known = self.servers.iter().position(|course| course.id == id);
            let mut course = known.map(|at| self.servers.swap_remove(at)).unwrap_or(Course {
                id,
                tokens_before: 0,
                tokens: Series::default(),
                in_flight: Series::default(),
            });
            course.tokens.push(clamp(tokens.saturating_sub(course.tokens_before)));
            course.tokens_before = tokens;
            course.in_flight.push(in_flight);
            courses.push(course);
        }
        self.servers = courses; // What was forgotten goes.
    }

    /// Of one server: tokens written in each step, and requests it had at its end.
    pub(crate) fn server(&self, id: BackendId) -> Option<(&Series, &Series)> {
        let course = self.servers.iter().find(|course| course.id == id)?;
        Some((&course.tokens, &course.in_flight))
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
        let (tokens, in_flight) = history.server(a).expect("known");
        assert_eq!(tokens.values().len(), POINTS);
        assert!(tokens.values().all(|n| n == 10));
        assert_eq!(in_flight.values().last(), Some(499));
        assert!(history.requests.values().all(|n| n == 3));
        assert_eq!(history.queue.values().next(), Some(380));
        history.record(t0, 0, 0, [(b, 7, 0)].into_iter());
        assert!(history.server(a).is_none());
        let last = history.server(b).and_then(|(tokens, _)| tokens.values().last());
        assert_eq!(last, Some(0));
    }
}
