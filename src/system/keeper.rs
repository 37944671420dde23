//! Writes files on a thread of its own, so that nobody else waits for a disk. Of each subject only
//! the latest work waits: a disk that is slow, or gone, never gets the old after the new, and what
//! waits for it is bounded.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{lock, spawn_vital};

/// For what still waits at the end.
const LAST_WORK: Duration = Duration::from_millis(500);

/// A file or another thing that is kept, and whose: work on the same one replaces older work.
pub(crate) type Subject = (&'static str, u64);
type Work = Box<dyn FnOnce() + Send>;

/// Handle of the thread. Dropping it waits a moment for what still waits.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    entered: AtomicU64,
    leader: AtomicU64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    waiting: VecDeque<(Subject, Work)>,
    is_busy: bool,
    is_over: bool,
}

impl Keeper {
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        spawn_vital("keeper", move || own.run())?;
        Ok(Arc::new(Keeper { shared, entered: AtomicU64::new(0), leader: AtomicU64::new(0) }))
    }

    /// A number that nobody else has, for the subjects of one user.
    pub(crate) fn enter(&self) -> u64 {
        self.entered.fetch_add(1, SeqCst) + 1
    }

    /// The same for the user that takes the place of those before.
    pub(crate) fn lead(&self) -> u64 {
        let number = self.enter();
        self.leader.store(number, SeqCst);
        number
    }

    pub(crate) fn is_led_by(&self, number: u64) -> bool {
        self.leader.load(SeqCst) == number
    }

    /// Does this soon, instead of what waits with the same subject. Never waits.
    pub(crate) fn put(&self, subject: Subject, work: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.shared.state);
        state.waiting.retain(|(of, _)| *of != subject);
        state.waiting.push_back((subject, Box::new(work)));
        self.shared.changed.notify_all();
    }

    /// Waits until nothing waits; false if that takes longer.
    fn finish(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = lock(&self.shared.state);
        state.is_over = true;
        self.shared.changed.notify_all();
        while state.is_busy || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if !self.finish(LAST_WORK) {
            log::warn!("not all was written down: the disk does not answer");
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = lock(&self.state);
        while let Some(mut present) = self.next(state) {
            if let Some((_, work)) = present.waiting.pop_front() {
                present.is_busy = true;
                drop(present);
                work();
                present = lock(&self.state);
                present.is_busy = false;
            }
            self.changed.notify_all();
            state = present;
        }
    }

    /// Waits for work; `None` when there is none and none can come.
    fn next<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Option<MutexGuard<'a, State>> {
        while state.waiting.is_empty() {
            if state.is_over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Some(state)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{bounded, unbounded};

    use super::*;

    #[test]
    fn a_disk_that_hangs_holds_nobody_and_gets_the_latest() {
        let keeper = Keeper::start().unwrap();
        let (entered, inside) = bounded(1);
        let (gate, hang) = bounded::<()>(0);
        let (done, order) = unbounded();
        keeper.put(("first", 0), move || {
            entered.send(()).unwrap();
            let _ = hang.recv();
        });
        inside.recv().unwrap();
        for n in 0..1000 {
            let done = done.clone();
            keeper.put((["a", "b"][n % 2], 0), move || done.send(n).unwrap());
        }
        assert!(!keeper.finish(Duration::from_millis(20)), "it hangs");
        drop(gate);
        drop(keeper);
        drop(done);
        assert_eq!(order.iter().collect::<Vec<_>>(), [998, 999]);
    }
}
