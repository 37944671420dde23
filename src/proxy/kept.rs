//! What was received of a request's body and is kept, to be looked at or for another try, in memory
//! that all exchanges share.
//!
//! To be looked at is worth more: without that, a request may go to a server that hasn't its model.
//! So large bodies are kept for another try only while half of the memory is left, and to be looked at
//! they take up to three quarters, and wait for more. A part of the last quarter is for their first
//! bytes, which mostly name the model, and one for a single one of those that wait: bodies of which
//! each has come in part would wait for one another for ever. The rest is for small ones.

use std::mem::take;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::system::bytes::Bytes;
use crate::upstream::exchange_io::Fault;

/// Bodies up to this size get memory as long as there is any.
const SMALL_BODY: usize = 64 * 1024;
/// Between two looks whether there is memory.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of memory for kept bodies, shared by all exchanges.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicUsize,
    total: usize,
    /// One of those that wait has its turn.
    is_turn_taken: AtomicBool,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let is_turn_taken = AtomicBool::new(false);
        Budget { left: AtomicUsize::new(bytes), total: bytes, is_turn_taken }
    }

    /// Room for a body of a length that may be known, of which so many bytes are kept for another try.
    pub(super) fn keep(&self, limit: usize, length: Option<u64>) -> Kept<'_> {
        let is_large = length.is_some_and(|length| length > SMALL_BODY as u64);
        let loan = Loan { is_large, ..self.lend() };
        Kept { bytes: Bytes::new(), is_whole: true, limit, loan }
    }

    /// A loan that takes up nothing yet.
    pub(super) fn lend(&self) -> Loan<'_> {
        Loan { budget: self, bytes: 0, is_large: false, has_turn: false }
    }

    /// Whether so much can be had besides the share of a body.
    pub(super) fn has_beside_share(&self, bytes: usize) -> bool {
        bytes <= self.total / 4
    }

    /// What a body may take that has to be looked at: not all, for the sake of others.
    pub(super) fn share(&self) -> usize {
        (self.total / 2).max(SMALL_BODY.min(self.total / 4 * 3))
    }
}

/// Memory of a [`Budget`]; goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Loan<'a> {
    budget: &'a Budget,
    bytes: usize,
    /// It is for a body that is known to be no small one.
    is_large: bool,
    has_turn: bool,
}

impl Loan<'_> {
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        // Some large bodies must not keep all small ones from being looked at.
        let (is_start, total) = (self.bytes + bytes <= SMALL_BODY, self.budget.total);
        let spared = if is_start && !self.is_large {
            0
        } else if self.has_turn {
            total / 8
        } else if is_start {
            total / 16 * 3
        } else {
            total / 4
        };
        self.take(bytes, spared)
    }

    /// Takes so many bytes if that leaves what is spared for others.
    fn take(&mut self, bytes: usize, spared: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes).filter(|left| *left >= spared);
        let is_lent = self.budget.left.fetch_update(Relaxed, Relaxed, take).is_ok();
        self.bytes += if is_lent { bytes } else { 0 };
        is_lent
    }

    /// Grows once others have given back enough. False if that isn't waited for; a fault when the
    /// client has left, or its patience, which is for all waits of one look, has ended.
    pub(super) fn await_growth(
        &mut self,
        bytes: usize,
        patience: &mut Option<Duration>,
        has_client_left: impl Fn() -> bool,
    ) -> Result<bool, Fault> {
        let begun = Instant::now();
        while !self.grow(bytes) {
            let Some(most) = *patience else { return Ok(false) };
            if has_client_left() {
                return Err(Fault::ClientLeft);
            }
            if begun.elapsed() >= most {
                return Err(Fault::NoMemoryForBody);
            }
            self.has_turn |= !self.budget.is_turn_taken.swap(true, Relaxed);
            sleep(LOOK);
        }
        *patience = patience.map(|most| most.saturating_sub(begun.elapsed()));
        Ok(true)
    }

    /// What has its turn needs no more.
    pub(super) fn end_turn(&mut self) {
        if take(&mut self.has_turn) {
            self.budget.is_turn_taken.store(false, Relaxed);
        }
    }

    /// Whether others may soon have none, because of large ones like this.
    pub(super) fn is_scarce(&self) -> bool {
        let is_large = self.is_large || self.bytes > SMALL_BODY;
        is_large && self.budget.left.load(Relaxed) < self.budget.total / 2
    }

    /// Gives so many bytes back, if it has as many.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.left.fetch_add(bytes, Relaxed);
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.end_turn();
        self.shrink(self.bytes);
    }
}

/// The part of a body that was received, as long as it fits the limit and the budget.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    pub(super) bytes: Bytes,
    /// Everything received so far can be sent again.
    pub(super) is_whole: bool,
    /// Bytes that are kept for another try. To look at a body may take more, which are kept too while
    /// there is enough memory.
    pub(super) limit: usize,
    pub(super) loan: Loan<'a>,
}

impl Kept<'_> {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.is_whole || bytes.is_empty() {
            return;
        }
        let before = self.bytes.len();
        let is_room = !self.loan.is_scarce() && self.reserve(before + bytes.len());
        if is_room && self.bytes.grow(bytes.len()).is_ok() {
            self.bytes[before..].copy_from_slice(bytes);
        } else {
            self.release();
        }
    }

    /// Makes sure that a body of this length can be kept, if there is room for it.
    pub(super) fn reserve(&mut self, length: usize) -> bool {
        let lacking = length.saturating_sub(self.loan.bytes);
        self.is_whole && length <= self.limit && (lacking == 0 || self.loan.grow(lacking))
    }

    /// The body won't be sent again.
    pub(super) fn release(&mut self) {
        self.is_whole = false;
        self.replace(Bytes::new());
    }

    /// Puts other bytes in the place of some, if there is memory for them. The kept ones are the body's
    /// first.
    pub(super) fn splice(&mut self, place: Range<usize>, other: &[u8]) -> bool {
        let behind = place.start + other.len();
        let more = other.len().saturating_sub(place.len());
        let before = self.bytes.len();
        let is_kept = self.is_whole && place.end <= before;
        // A name's few bytes, of which nobody else is deprived.
        if !(is_kept && self.loan.take(more, 0)) {
            return false;
        }
        if self.bytes.grow(more).is_err() {
            self.loan.shrink(more);
            return false;
        }
        self.bytes.copy_within(place.end..before, behind);
        self.bytes[place.start..behind].copy_from_slice(other);
        let length = before - place.len() + other.len();
        self.loan.shrink(self.bytes.len() - length);
        self.bytes.truncate(length);
        true
    }

    /// Puts another body in the place of one that was kept as a whole.
    pub(super) fn replace(&mut self, body: Bytes) {
        self.loan.shrink(self.loan.bytes);
        self.loan.grow(body.len());
        self.bytes = body;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;
    const MIB: usize = 1024 * KIB;

    fn waits(loan: &mut Loan<'_>, bytes: usize) -> Result<bool, Fault> {
        loan.await_growth(bytes, &mut Some(Duration::from_millis(50)), || false)
    }

    #[test]
    fn one_of_those_that_wait_is_always_helped_and_small_ones_are() {
        let budget = Budget::new(64 * MIB);
        let large = || budget.keep(4 * MIB, Some(4 << 20)).loan;
        let (mut first, mut second, mut rest) = (large(), large(), large());
        assert!(first.grow(MIB) && second.grow(MIB) && rest.grow(46 * MIB));
        assert!(!first.grow(1), "three quarters are taken");
        // The first bytes of large ones have a part of the last quarter, however many they are.
        let mut starts: Vec<_> = (0..100).map(|_| large()).collect();
        assert_eq!(starts.iter_mut().filter_map(|it| it.grow(64 * KIB).then_some(())).count(), 64);
        assert_eq!(waits(&mut first, 3 * MIB), Ok(true), "it is its turn");
        assert_eq!(waits(&mut second, 3 * MIB), Err(Fault::NoMemoryForBody));
        drop(first);
        assert_eq!(waits(&mut second, 3 * MIB), Ok(true), "its turn has come");
        second.end_turn();
        assert!((0..100).all(|_| budget.keep(0, None).loan.grow(64 * KIB)), "small ones");
        let gone = rest.await_growth(MIB, &mut Some(Duration::MAX), || true);
        assert_eq!(gone, Err(Fault::ClientLeft));
        assert_eq!(rest.await_growth(MIB, &mut None, || false), Ok(false), "it doesn't wait");
        drop((second, rest, starts));
        assert_eq!(budget.left.load(Relaxed), 64 * MIB);
    }

    #[test]
    fn large_bodies_are_kept_for_another_try_while_half_of_the_memory_is_left() {
        let budget = Budget::new(MIB);
        let keep = |size: usize| {
            let mut kept = budget.keep(4 * MIB, Some(size as u64));
            kept.push(&vec![0; size]);
            kept
        };
        let large: Vec<_> = (0..9).map(|_| keep(100 * KIB)).collect();
        let kept = large.iter().filter(|kept| kept.is_whole).count();
        assert_eq!(kept, 6, "the last one that began with half of it left");
        assert!(keep(10 * KIB).is_whole, "small ones");
        drop(large);
        assert!(keep(100 * KIB).is_whole);
    }

    #[test]
    fn what_one_body_may_have_it_can_have() {
        for total in [0, 1, 4096, 65_536, 100_000, 200_000, MIB, 64 * MIB] {
            let budget = Budget::new(total);
            for length in [None, Some(u64::MAX)] {
                let mut loan = budget.keep(0, length).loan;
                assert!(loan.grow(budget.share()), "{total} {length:?}");
            }
        }
    }
}
