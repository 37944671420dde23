//! Places of those that get blobs: [`DONATIONS`], so that a machine isn't busy with giving. Who takes
//! next to nothing keeps his only as long as nobody else wants it. And which blobs Ollama can push.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::library::Digest;
use crate::pairing::stream::Stream;
use crate::system::lock;

/// Bytes that are read and sent at a time.
pub(super) const PIECE: usize = 256 << 10;
/// Blobs that are remembered of the manifests that others got; and of one manifest, at most. Models of
/// tensors have thousands.
pub(super) const MOST_BLOBS: usize = 256;
/// Blobs that are given at once.
pub(super) const DONATIONS: usize = 2;
/// Who takes less than `LEAST` bytes in this time loses his place once another one wants it.
const MINUTE: Duration = Duration::from_secs(60);
const LEAST: u64 = 16 << 20;

/// Places of those that get blobs, and what is known of blobs that Ollama pushes.
#[derive(Debug, Default)]
pub(crate) struct Donations {
    taken: Arc<Mutex<Vec<Arc<Course>>>>,
    pub(super) pushes: Pushes,
}

/// A place, free again when it is dropped.
pub(super) struct Donation {
    course: Arc<Course>,
    taken: Arc<Mutex<Vec<Arc<Course>>>>,
}

/// How fast somebody takes a blob.
#[derive(Debug)]
struct Course {
    stream: Arc<Stream>,
    pace: Mutex<Pace>,
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    /// The minute under way, and bytes that were taken in it.
    since: Instant,
    bytes: u64,
    /// Whether they were too few in the last one.
    was_slow: bool,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Pace { since: now, bytes: 0, was_slow: false }
    }

    fn take(&mut self, now: Instant, bytes: u64) {
        if now.saturating_duration_since(self.since) >= MINUTE {
            *self = Pace { was_slow: self.is_slow(now), ..Pace::new(now) };
        }
        self.bytes += bytes;
    }

    fn is_slow(&self, now: Instant) -> bool {
        let is_over = now.saturating_duration_since(self.since) >= MINUTE;
        if is_over { self.bytes < LEAST } else { self.was_slow && self.bytes < LEAST }
    }
}

impl Donations {
    pub(super) fn is_full(&self) -> bool {
        let now = Instant::now();
        lock(&self.taken).iter().filter(|it| !lock(&it.pace).is_slow(now)).count() >= DONATIONS
    }

    /// A place for one more. Who takes too little gives his up.
    pub(super) fn begin(&self, stream: &Arc<Stream>) -> Option<Donation> {
        let now = Instant::now();
        let mut taken = lock(&self.taken);
        if taken.len() >= DONATIONS {
            let slow = taken.iter().position(|it| lock(&it.pace).is_slow(now))?;
            let slow = taken.swap_remove(slow);
            let _ = slow.stream.socket().shutdown(Shutdown::Both);
        }
        let course = Course { stream: Arc::clone(stream), pace: Mutex::new(Pace::new(now)) };
        let course = Arc::new(course);
        taken.push(Arc::clone(&course));
        Some(Donation { course, taken: Arc::clone(&self.taken) })
    }
}

impl Donation {
    /// So many bytes were taken.
    pub(super) fn take(&self, bytes: u64) {
        lock(&self.course.pace).take(Instant::now(), bytes);
    }
}

impl Drop for Donation {
    fn drop(&mut self) {
        lock(&self.taken).retain(|other| !Arc::ptr_eq(other, &self.course));
    }
}

/// A blob of a model that Ollama has pushed the manifest of.
#[derive(Clone, Debug)]
pub(super) struct Pushable {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) model: String,
}

/// What is known of blobs that Ollama can push.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    known: Mutex<VecDeque<Pushable>>,
    one: Mutex<()>,
}

impl Pushes {
    pub(super) fn find(&self, digest: &Digest) -> Option<Pushable> {
        lock(&self.known).iter().find(|known| known.digest == *digest).cloned()
    }

    pub(super) fn remember(&self, model: &str, layers: &[(String, u64)]) {
        let mut known = lock(&self.known);
        for (digest, size) in layers {
            let Some(digest) = Digest::parse(digest) else { continue };
            known.retain(|it| it.digest != digest);
            known.push_back(Pushable { digest, size: *size, model: model.to_owned() });
        }
        let most = known.len().saturating_sub(MOST_BLOBS);
        known.drain(..most);
    }

    /// The place of the one that pushes a blob.
    pub(super) fn begin(&self) -> Option<MutexGuard<'_, ()>> {
        match self.one.try_lock() {
            Ok(one) => Some(one),
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    fn pair() -> (Arc<Stream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(Stream::new(near)), listener.accept().unwrap().0)
    }

    #[test]
    fn places_come_back() {
        let (donations, (stream, _far)) = (Donations::default(), pair());
        let held: Vec<_> = (0..DONATIONS).map_while(|_| donations.begin(&stream)).collect();
        assert_eq!(held.len(), DONATIONS);
        assert!(donations.is_full() && donations.begin(&stream).is_none());
        drop(held);
        assert!(!donations.is_full() && donations.begin(&stream).is_some());
    }

    #[test]
    fn who_takes_next_to_nothing_has_a_pace_for_that() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        // Bytes per second, and whether that is too slow after so many seconds.
        for (rate, want) in [
            (LEAST / 58, [false, false, false]),
            (LEAST, [false, false, false]),
            (LEAST / 61, [false, true, true]),
            (1, [false, true, true]),
            (0, [false, true, true]),
        ] {
            let mut pace = Pace::new(start);
            for at in 1..=190 {
                let now = start + second * at;
                if rate > 0 {
                    pace.take(now, rate);
                }
                let want = want[(at / 65) as usize];
                if at % 65 > 3 && at % 65 < 55 {
                    assert_eq!(pace.is_slow(now), want, "{rate} a second, at {at} s");
                }
            }
        }
        // Fast at first; and one that stalled and has caught up.
        let mut pace = Pace::new(start);
        pace.take(start + second, 100 * LEAST);
        assert!(!pace.is_slow(start + second * 59));
        pace.take(start + second * 61, 1);
        assert!(!pace.is_slow(start + second * 100) && pace.is_slow(start + second * 122));
        pace.take(start + second * 123, LEAST);
        assert!(!pace.is_slow(start + second * 124));
    }

    #[test]
    fn who_is_slow_gives_his_place_to_another() {
        let (donations, (slow, far), (other, _far)) = (Donations::default(), pair(), pair());
        let held: Vec<_> = (0..DONATIONS).map_while(|_| donations.begin(&slow)).collect();
        let long_ago = Instant::now().checked_sub(2 * MINUTE).unwrap();
        *lock(&held[0].course.pace) = Pace::new(long_ago);
        assert!(!donations.is_full(), "he can be turned out");
        let new = donations.begin(&other).expect("his place");
        assert_eq!(far.peek(&mut [0]).unwrap(), 0, "his connection is closed");
        assert!(donations.is_full() && donations.begin(&other).is_none());
        drop(held);
        assert!(!donations.is_full());
        drop(new);
        assert_eq!(lock(&donations.taken).len(), 0);
    }
}
