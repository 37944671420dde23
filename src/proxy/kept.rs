//! What was received of a request's body and is kept for another try, in memory that all exchanges
//! share.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::system::bytes::Bytes;

/// Bodies up to this size get memory as long as there is any.
const SMALL_BODY: usize = 64 * 1024;

/// Bytes of memory for kept bodies, shared by all exchanges.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicUsize,
    total: usize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Budget { left: AtomicUsize::new(bytes), total: bytes }
    }

    /// Room for a body, of which so many bytes are kept for another try.
    pub(super) fn keep(&self, limit: usize) -> Kept<'_> {
        Kept { bytes: Bytes::new(), is_whole: true, limit, loan: self.lend() }
    }

    /// A loan that takes up nothing yet.
    pub(super) fn lend(&self) -> Loan<'_> {
        Loan { budget: self, bytes: 0 }
    }

    /// What a body may take that has to be looked at: not all, for the sake of others.
    pub(super) fn share(&self) -> usize {
        (self.total / 2).max(SMALL_BODY.min(self.total))
    }
}

/// Memory of a [`Budget`]; goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Loan<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Loan<'_> {
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        // Some large bodies must not keep all small ones from being looked at.
        let is_small = self.bytes + bytes <= SMALL_BODY;
        let spared = if is_small { 0 } else { self.budget.total / 4 };
        let take = |left: usize| left.checked_sub(bytes).filter(|left| *left >= spared);
        let is_lent = self.budget.left.fetch_update(Relaxed, Relaxed, take).is_ok();
        self.bytes += if is_lent { bytes } else { 0 };
        is_lent
    }

    /// Whether others may soon have none.
    pub(super) fn is_scarce(&self) -> bool {
        self.budget.left.load(Relaxed) < self.budget.total / 2
    }

    pub(super) fn shrink(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.left.fetch_add(bytes, Relaxed);
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
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
        if self.reserve(before + bytes.len()) && self.bytes.grow(bytes.len()).is_ok() {
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
        if !(is_kept && self.loan.grow(more)) {
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
