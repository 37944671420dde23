//! How long a request's body is waited for: each byte that comes buys time. (A token bucket.)

use std::time::{Duration, Instant};

/// So many bytes buy so much time, and nobody has more than that to spare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

/// What is left of a body's time. Only waiting uses it up: all else isn't its sender's doing.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    left: Duration,
    /// Bytes of the body that are paid out.
    counted: u64,
    waits_since: Instant,
}

impl Pace {
    /// Of a body of which so many bytes have come.
    pub(super) fn new(rate: Rate, left: Duration, bytes: u64) -> Self {
        Pace { rate, left, counted: bytes, waits_since: Instant::now() }
    }

    /// It is waited for from now on, and so many bytes have come in all. How long it may last.
    pub(super) fn begin_wait(&mut self, now: Instant, bytes: u64) -> Duration {
        let new = bytes.saturating_sub(self.counted).min(self.rate.bytes);
        let bought = self.rate.time.mul_f64(new as f64 / self.rate.bytes as f64);
        self.left = (self.left + bought).min(self.rate.time);
        self.counted = bytes;
        self.waits_since = now;
        self.left
    }

    pub(super) fn end_wait(&mut self, now: Instant) {
        self.left = self.left.saturating_sub(now.saturating_duration_since(self.waits_since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_buy_time_to_wait_for_more() {
        let second = Duration::from_secs(1);
        let rate = Rate { bytes: 1000, time: 10 * second };
        // Bytes per second of waiting, seconds that pass otherwise each time, and when too few are left.
        for (bytes, elsewhere, want) in [
            (0, 0, Some(10)),
            (0, 60, Some(10)),
            (50, 60, Some(19)),
            (100, 0, None),
            (101, 60, None),
        ] {
            let (mut now, mut come) = (Instant::now(), 7);
            let mut pace = Pace::new(rate, 10 * second, come);
            let mut waits = 0..1000;
            let over = waits.find(|_| {
                let left = pace.begin_wait(now, come);
                now += second;
                pace.end_wait(now);
                now += second * elsewhere;
                come += bytes;
                left < second
            });
            assert_eq!(over, want, "{bytes} a second");
        }
        // However many come at once, they buy no more than that.
        let mut pace = Pace::new(rate, Duration::ZERO, 0);
        assert_eq!(pace.begin_wait(Instant::now(), 1), 10 * second / 1000);
        assert_eq!(pace.begin_wait(Instant::now(), u64::MAX), 10 * second);
    }
}
