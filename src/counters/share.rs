//! Memory that lists of models share, whoever holds them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes in all.
const MAX: usize = 32 << 20;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Some of these bytes, given back when it is dropped.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Share(usize);

impl Share {
    /// Takes more; false if so much isn't left.
    pub(crate) fn grow(&mut self, by: usize) -> bool {
        let more = |taken: usize| taken.checked_add(by).filter(|taken| *taken <= MAX);
        let is_granted = TAKEN.fetch_update(Relaxed, Relaxed, more).is_ok();
        self.0 += if is_granted { by } else { 0 };
        is_granted
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Relaxed);
    }
}
