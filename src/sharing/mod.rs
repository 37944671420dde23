//! Taking a model's blobs from other machines of the LAN, so that none is downloaded twice in one
//! house.
//!
//! ```text
//!  seeker ──HEAD /ollana/blobs/DIGEST──► every neighbour at once
//!    │ the first that has it: GET, with Range from where the last one stopped
//!    ▼
//!  Source: pieces, in a bounded channel ──► Put: POST /api/blobs/DIGEST of the own Ollama
//! ```
//!
//! The room knows blobs by digest and size alone. What comes is hashed before Ollama gets the last of it,
//! so a neighbour that lies only wastes time. It knows nothing of exchanges and of how neighbours are
//! found: `serve` gives it [`Neighbours`]. A blob has one thread that seeks and then streams, and one that
//! puts. Both end within a moment ([`LOOK`]) when what they work for is dropped.

mod ask;
mod put;
mod registry;
mod source;
mod uploads;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use crate::config::Timing;
use crate::http::target::percent_encode;
use crate::library::Digest;
use crate::pairing::keyring::Keyring;
use crate::system::lock;

pub(crate) use self::ask::Refusal;
pub(crate) use self::put::Put;
pub(crate) use self::registry::{Registry, addresses, is_for_a_moment};
pub(crate) use self::source::Seek;
pub(crate) use self::uploads::{Came, Part, Uploads};

/// Blobs that are sought or taken at once. The pulls that are more stay with the registry.
const MOST: usize = 16;

/// How often threads that wait look whether their work is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// A donor whose bytes were wrong once, or too slow twice, within so long isn't asked again for the rest
/// of it, but where it is wanted by name. Once may have been its cable.
const SHUNNED: Duration = Duration::from_secs(10 * 60);
/// So many such failures are remembered.
const MOST_LAPSES: usize = 64;

/// In what a donor failed that wasted time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lapse {
    Slow,
    Wrong,
}

/// How long a machine may take to say what a model consists of: its Ollama may have to look.
pub(crate) const MANIFEST_TIME: Duration = Duration::from_secs(10);

/// So long neighbours may take to be found where somebody waits for them.
const NOTICE: Duration = Duration::from_secs(1);

/// A machine that may have what this one lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) name: String,
    /// Where its proxy is.
    pub(crate) address: SocketAddr,
}

impl Neighbour {
    /// Whether people mean this machine by `name`: its name, or its address with or without the port.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        let is_ip = || name.parse() == Ok(self.address.ip());
        let is_address = || name.parse() == Ok(self.address);
        name.eq_ignore_ascii_case(&self.name) || is_ip() || is_address()
    }
}

/// Who can be asked.
pub(crate) trait Neighbours: Send + Sync + Debug {
    /// Those that are known now, this machine left out. It doesn't wait; where nobody is known yet, it
    /// begins to look, and the next call tells more.
    fn look(&self) -> Vec<Neighbour>;
}

/// Where a machine has a model's manifest for those that copy it.
pub(crate) fn manifest_path(model: &str) -> String {
    format!("/ollana/manifests/{}", percent_encode(model))
}

/// Who may give a blob.
#[derive(Clone, Debug)]
pub(crate) enum Donors {
    Anybody,
    /// The machine of this name. There is the registry besides.
    Named(String),
    /// The machine at this address, and nobody else. While it says that it lacks the blob, it is asked
    /// for the manifest at this path: where its Ollama pushes, it knows no blobs but those of manifests
    /// that it has given since its start.
    Only(SocketAddr, String),
}

impl Donors {
    fn may_be(&self, neighbour: &Neighbour) -> bool {
        match self {
            Donors::Anybody => true,
            Donors::Named(name) => neighbour.is_called(name),
            Donors::Only(address, _) => neighbour.address == *address,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    digest: String,
    pub(crate) size: u64,
}

impl Blob {
    /// `None` unless the digest is `sha256:` and 64 digits in lower case, as Ollama writes it.
    pub(crate) fn new(digest: &str, size: u64) -> Option<Self> {
        Digest::parse(digest).map(|_| Blob { digest: digest.to_owned(), size })
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// As Ollama calls it in the lines of a pull.
    pub(crate) fn short(&self) -> &str {
        &self.digest["sha256:".len()..][..12]
    }
}

/// What all that take blobs share.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    neighbours: Arc<dyn Neighbours>,
    timing: Timing,
    keyring: Arc<Keyring>,
    taken: Arc<AtomicUsize>,
    copies: Arc<AtomicUsize>,
    /// The last ones, and when.
    lapses: Arc<Mutex<VecDeque<(SocketAddr, Instant, Lapse)>>>,
}

impl Sharing {
    pub(crate) fn new(
        neighbours: Arc<dyn Neighbours>,
        timing: Timing,
        keyring: Arc<Keyring>,
    ) -> Self {
        let (taken, copies, lapses) = Default::default();
        Sharing { neighbours, timing, keyring, taken, copies, lapses }
    }

    fn remember(&self, donor: SocketAddr, lapse: Lapse) {
        let mut lapses = lock(&self.lapses);
        if lapses.len() >= MOST_LAPSES {
            lapses.pop_front();
        }
        lapses.push_back((donor, Instant::now(), lapse));
        drop(lapses);
        if self.is_shunned(donor) {
            log::warn!("donor not asked any more addr={donor} for_s={}", SHUNNED.as_secs());
        }
    }

    fn is_shunned(&self, donor: SocketAddr) -> bool {
        let lapses = lock(&self.lapses);
        let of_late =
            |it: &&(SocketAddr, Instant, Lapse)| it.0 == donor && it.1.elapsed() < SHUNNED;
        let mut its = lapses.iter().filter(of_late);
        its.clone().any(|(_, _, lapse)| *lapse == Lapse::Wrong) || its.nth(1).is_some()
    }

    /// Who can be asked; see [`Neighbours::look`].
    pub(crate) fn look(&self) -> Vec<Neighbour> {
        self.neighbours.look()
    }

    /// A neighbour of which this machine can copy a model, if one says so soon.
    pub(crate) fn who_gives(&self, model: &str) -> Option<Neighbour> {
        let until = Instant::now() + NOTICE;
        let target = manifest_path(model);
        let mut asked: Vec<SocketAddr> = Vec::new();
        loop {
            // Some may be found only now.
            let mut new = self.look();
            new.retain(|neighbour| !asked.contains(&neighbour.address));
            asked.extend(new.iter().map(|neighbour| neighbour.address));
            let found = ask::first(self, &target, &new);
            if found.is_some() || Instant::now() >= until {
                return found;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// A copy of a model begins.
    pub(crate) fn begin_copy(&self) -> Turn {
        let is_only_one = self.copies.fetch_add(1, SeqCst) == 0;
        Turn { is_only_one, _place: Place(Arc::clone(&self.copies)) }
    }

    /// A place for one more blob, if there is one.
    fn begin(&self) -> Option<(Wanted, Work)> {
        let take = |taken| (taken < MOST).then_some(taken + 1);
        self.taken.fetch_update(SeqCst, SeqCst, take).ok()?;
        let (wanted, unwanted) = bounded(0);
        let place = Arc::new(Place(Arc::clone(&self.taken)));
        Some((Wanted { _alive: wanted }, Work { unwanted, _place: place }))
    }
}

/// Held by whom the work is done for.
#[derive(Debug)]
struct Wanted {
    _alive: Sender<()>,
}

/// Held by the threads that do it.
#[derive(Clone, Debug)]
struct Work {
    unwanted: Receiver<()>,
    _place: Arc<Place>,
}

impl Work {
    fn is_wanted(&self) -> bool {
        self.unwanted.try_recv() != Err(TryRecvError::Disconnected)
    }

    /// Whether it is still wanted after so long; false as soon as it isn't.
    fn is_wanted_after(&self, time: Duration) -> bool {
        self.unwanted.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

/// A copy of a model under way.
#[derive(Debug)]
pub(crate) struct Turn {
    /// No other one was under way: names for a moment are left over.
    pub(crate) is_only_one: bool,
    _place: Place,
}

/// A place among those that are counted; free again when it is dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests;
