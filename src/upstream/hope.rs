//! Whether it is still worth connecting to an address, for as long as TCP takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Of whoever knows the upstream, and of those who connect to it: theirs is gone once that one has
/// called the upstream down, or has another address for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hope {
    given: u32,
    now: Arc<AtomicU32>,
}

impl Hope {
    /// Takes it from all who have a clone, and begins anew.
    pub(crate) fn end(&mut self) {
        self.given = self.given.wrapping_add(1);
        self.now.store(self.given, Relaxed);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.now.load(Relaxed) != self.given
    }
}

impl PartialEq for Hope {
    fn eq(&self, other: &Self) -> bool {
        self.given == other.given && Arc::ptr_eq(&self.now, &other.now)
    }
}

impl Eq for Hope {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_for_all_who_were_given_it() {
        let mut own = Hope::default();
        let (old, same) = (own.clone(), own.clone());
        assert!(old == same && !old.is_gone());
        own.end();
        assert!(old.is_gone() && same.is_gone() && !own.is_gone());
        assert!(own.clone() != old && !own.clone().is_gone());
    }
}
