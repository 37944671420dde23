//! How many answers a server gives and a client takes: token buckets, one per source and one for
//! all. Pure.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Answers that may be given at once, and how many a second after that.
#[derive(Clone, Copy)]
struct Rate(u64, u64);

const PER_SOURCE: Rate = Rate(10, 5);
/// Answers are never longer than the probes, so this only bounds our own work. It is above what a
/// whole /24 may get, so that a flood can't use up an honest source's share.
const IN_ALL: Rate = Rate(2000, 2000);
/// Sources that are told apart. The table never grows, however many a flood pretends to be.
const SOURCES: usize = 256;

pub(crate) struct RateLimit {
    all: Bucket,
    /// By the last byte of the address, which tells the hosts of a /24 apart.
    sources: Vec<(Option<IpAddr>, Bucket)>,
}

impl RateLimit {
    pub(crate) fn new(now: Instant) -> Self {
        let source = (None, Bucket::full(now, PER_SOURCE));
        RateLimit { all: Bucket::full(now, IN_ALL), sources: vec![source; SOURCES] }
    }

    /// Whether this source may have an answer now. Sources with the same last byte share a bucket,
    /// unless it wasn't asked for a second.
    pub(crate) fn allows(&mut self, now: Instant, source: IpAddr) -> bool {
        let last_byte = match source {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        let (owner, bucket) = &mut self.sources[usize::from(last_byte)];
        let is_quiet = now.saturating_duration_since(bucket.filled) >= Duration::from_secs(1);
        if *owner != Some(source) && (is_quiet || owner.is_none()) {
            *owner = Some(source);
            *bucket = Bucket::full(now, PER_SOURCE);
        }
        bucket.take(now, PER_SOURCE) && self.all.take(now, IN_ALL)
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Thousandths of an answer.
    level: u64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant, Rate(burst, _): Rate) -> Self {
        Bucket { level: burst * 1000, filled: now }
    }

    fn take(&mut self, now: Instant, Rate(burst, per_second): Rate) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_millis().min(60_000) as u64;
        if passed > 0 {
            self.level = (self.level + passed * per_second).min(burst * 1000);
            self.filled = now;
        }
        let left = self.level.checked_sub(1000);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_rate_whatever_the_others_do() {
        let t0 = Instant::now();
        let mut limit = RateLimit::new(t0);
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut answered = 0;
        for ms in 0..10_000 {
            answered += u32::from(limit.allows(t0 + Duration::from_millis(ms), ip(1)));
        }
        assert!((55..=60).contains(&answered), "{answered} in 10 s");
        // 253 spoofed neighbours, each as often as it can, and one honest client.
        for ms in 0..1000 {
            let now = t0 + Duration::from_millis(20_000 + ms);
            for n in 2..255 {
                limit.allows(now, ip(n));
            }
            if ms % 200 == 0 {
                assert!(limit.allows(now, ip(1)), "honest probe at {ms} ms");
            }
        }
    }
}
