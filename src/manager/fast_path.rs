//! A standing offer: the one backend that a request would get anyway, had without asking.
//!
//! Most proxies have no choice: a server has its own Ollama, most homes have one server. Asking the
//! Manager's thread and telling it the end costs two wake-ups per request, which is more than all
//! else that a small request costs. So while there is no choice, the Manager hangs out the pick,
//! and workers count themselves in and out on it. When that changes it takes the offer down, and
//! with it the count: whoever took it by then reports to the Manager as usual.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::manager::pool::Pick;
use crate::system::lock;

/// What workers may take without asking.
#[derive(Debug)]
pub struct Offer {
    /// The backend.
    pub pick: Pick,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    count: u32,
    is_withdrawn: bool,
}

impl Offer {
    /// An offer that nobody has taken yet.
    pub fn new(pick: Pick) -> Self {
        Offer { pick, taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        lock(&self.taken)
    }

    fn take(&self) -> bool {
        let mut taken = self.taken();
        taken.count += u32::from(!taken.is_withdrawn);
        !taken.is_withdrawn
    }

    /// Gives it back. False when it was withdrawn: then the Manager counts, and has to be told.
    pub fn give_back(&self) -> bool {
        let mut taken = self.taken();
        taken.count -= u32::from(!taken.is_withdrawn);
        !taken.is_withdrawn
    }

    /// Takes the offer down; returns how many have it, all of whom will report.
    pub fn withdraw(&self) -> u32 {
        let mut taken = self.taken();
        taken.is_withdrawn = true;
        std::mem::take(&mut taken.count)
    }

    /// How many have it.
    pub fn count(&self) -> u32 {
        self.taken().count
    }
}

/// Where the Manager hangs an offer out.
#[derive(Debug, Default)]
pub struct Board(Mutex<Option<Arc<Offer>>>);

impl Board {
    fn offer(&self) -> MutexGuard<'_, Option<Arc<Offer>>> {
        lock(&self.0)
    }

    /// Takes what is offered, if anything is.
    pub fn take(&self) -> Option<Arc<Offer>> {
        self.offer().clone().filter(|offer| offer.take())
    }

    /// What is offered.
    pub fn look(&self) -> Option<Arc<Offer>> {
        self.offer().clone()
    }

    /// Replaces what is offered.
    pub fn hang_out(&self, offer: Option<Arc<Offer>>) {
        *self.offer() = offer;
    }
}
