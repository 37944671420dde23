//! When probes are sent. Pure.
//!
//! A running client sends a burst at its start, and again when the network or the keys have changed;
//! then one round of probes at an interval. Commands that look for servers once have a list each.

use std::time::{Duration, Instant};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// From the start of a burst to each of its rounds.
const BURST: [Duration; 5] = [ms(0), ms(50), ms(150), ms(350), ms(1000)];
/// How much a round after the burst may be early or late, in thousandths of the interval.
const JITTER: u32 = 100;

/// How often a client looks whether interfaces or keys have changed, or the machine has slept.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A machine that has slept longer than this may be in another network.
pub(crate) const SLEPT: Duration = Duration::from_secs(5);

/// When the next round of a running client is due.
#[derive(Debug)]
pub struct Schedule {
    interval: Duration,
    burst_start: Instant,
    sent: usize,
    due: Instant,
}

impl Schedule {
    /// A burst from now on, then a round every `interval`.
    pub fn new(now: Instant, interval: Duration) -> Self {
        Schedule { interval, burst_start: now, sent: 0, due: now }
    }

    /// Another burst.
    pub fn restart(&mut self, now: Instant) {
        *self = Schedule::new(now, self.interval);
    }

    /// When to send the next round.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// A round was sent. `random` is the jitter, which keeps many clients from asking in step: 0
    /// makes the next round 10 % early, 255 as late.
    pub fn sent(&mut self, now: Instant, random: u8) {
        self.sent += 1;
        self.due = match BURST.get(self.sent) {
            Some(at) => self.burst_start + *at,
            None => {
                let jitter = u32::from(random) * 2 * JITTER / 255;
                now + self.interval * (1000 - JITTER + jitter) / 1000
            }
        };
    }
}

/// A command's rounds, and until when it takes answers, from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanTimes {
    pub(crate) rounds: &'static [Duration],
    pub(crate) end: Duration,
}

/// `ollana discover`: a datagram may get lost.
pub(crate) const DISCOVER: ScanTimes =
    ScanTimes { rounds: &[ms(0), ms(150), ms(500)], end: ms(1200) };
/// `ollana doctor`: the answers to the last round have a second.
pub(crate) const DOCTOR: ScanTimes =
    ScanTimes { rounds: &[ms(0), ms(300), ms(900)], end: ms(1900) };
/// `ollana pair CODE`: the other machine may be about to show its code.
pub(crate) const PAIR: ScanTimes =
    ScanTimes { rounds: &[ms(0), ms(100), ms(300), ms(700), ms(1500), ms(3000)], end: ms(5000) };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_an_interval_that_varies() {
        let t0 = Instant::now();
        let interval = Duration::from_secs(5);
        let mut schedule = Schedule::new(t0, interval);
        let mut at = Vec::new();
        for _ in 0..7 {
            let due = schedule.due();
            at.push((due - t0).as_millis());
            schedule.sent(due, 128);
        }
        assert_eq!(at[..5], [0, 50, 150, 350, 1000]);
        assert_eq!((at[5] - at[4], at[6] - at[5]), (5000, 5000));
        // A probe that went out late in the burst doesn't move the next one.
        schedule.restart(t0);
        schedule.sent(t0 + Duration::from_millis(40), 0);
        assert_eq!(schedule.due(), t0 + Duration::from_millis(50));
        for (random, ms) in [(0, 4500), (255, 5500)] {
            let mut schedule = Schedule { sent: 9, ..Schedule::new(t0, interval) };
            schedule.sent(t0, random);
            assert_eq!(schedule.due() - t0, Duration::from_millis(ms));
        }
    }
}
