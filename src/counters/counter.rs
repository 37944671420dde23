//! Numbers that only grow, and how often something took how long.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the histograms' buckets, in seconds: a LAN answers in milliseconds, a model that
/// has to be loaded takes minutes.
pub(crate) const BOUNDS: [f64; 12] =
    [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// One for each bound, and one for what is above.
    buckets: [Counter; BOUNDS.len() + 1],
    sum_micros: Counter,
}

impl Histogram {
    pub(crate) fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at].add(1);
        self.sum_micros.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many are in each bucket, the last one being above every bound.
    pub(crate) fn buckets(&self) -> [u64; BOUNDS.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].value())
    }

    pub(crate) fn sum(&self) -> f64 {
        self.sum_micros.value() as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
