//! Sleeps of this machine, in which its clock stood still: what people are told of how long ago
//! something was counts them.

use std::time::{Duration, Instant};

/// The last ones that are remembered one by one; those before count as one.
const MOST: usize = 64;
/// A sleep is seen so long after its end at most.
const SEEN_AFTER: Duration = Duration::from_secs(1);

/// When each sleep ended, and how long it was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sleeps(Vec<(Instant, Duration)>);

impl Sleeps {
    pub(super) fn add(&mut self, now: Instant, time: Duration) {
        if self.0.len() >= MOST {
            let (_, time) = self.0.remove(0);
            self.0[0].1 += time;
        }
        self.0.push((now.checked_sub(SEEN_AFTER).unwrap_or(now), time));
    }

    /// How long ago something was.
    pub(crate) fn age(&self, at: Instant, now: Instant) -> Duration {
        let slept = self.0.iter().filter(|(end, _)| *end > at).map(|(_, time)| *time);
        now.saturating_duration_since(at) + slept.sum::<Duration>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_a_sleep_is_longer_ago() {
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut sleeps = Sleeps::default();
        assert_eq!(sleeps.age(start, at(60)), hour);
        sleeps.add(at(30), hour * 8);
        sleeps.add(at(50), hour);
        for (then, want) in [(at(0), hour * 10), (at(40), hour + hour / 3), (at(55), hour / 12)] {
            assert_eq!(sleeps.age(then, at(60)), want);
        }
        // What happened on waking up, before the sleep was seen.
        assert_eq!(sleeps.age(at(50) - Duration::from_millis(500), at(60)).as_secs(), 600);
        for _ in 0..2 * MOST {
            sleeps.add(at(59), hour);
        }
        assert_eq!(
            sleeps.age(start, at(60)),
            hour * (10 + 2 * MOST as u32),
            "it never grows shorter"
        );
    }
}
