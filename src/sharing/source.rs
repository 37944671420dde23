//! A blob as a stream of pieces: sought among the neighbours, and taken from one after the other.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use http::Method;

use super::ask::{self, Asker};
use super::{Blob, LOOK, Lapse, Neighbour, Sharing, Wanted, Work};
use crate::system;
use crate::upstream::describe_io;
use crate::upstream::exchange_io::{self, ExchangeIo};

/// Bytes of a piece, and pieces that may wait for their reader.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// A piece that isn't full by then goes on nevertheless.
const PIECE_TIME: Duration = Duration::from_millis(50);
/// Between two questions to one neighbour: it may finish the blob meanwhile.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether neighbours were found, for so long from the beginning.
const SOON: Duration = Duration::from_millis(50);
const EARLY: Duration = Duration::from_secs(2);
/// A donor that fails so often in the middle is left.
const FAILURES: usize = 3;
/// A donor that brings less than `LEAST` bytes in this time of waiting for it is left: the registry is
/// hardly slower.
const PATIENCE: Duration = Duration::from_secs(10);
const LEAST: u64 = 10 << 20;

/// Bytes of a blob, and who gave them.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    pub(super) donor: Arc<str>,
    pub(super) address: SocketAddr,
}

/// A search for somebody who has a blob. Dropping it ends the search.
#[derive(Debug)]
pub(crate) struct Seek {
    found: Receiver<Source>,
    wanted: Option<Wanted>,
}

/// A blob on its way from the neighbours: its pieces in order, all of them or too few. Dropping it ends
/// the way.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) blob: Blob,
    /// Who has it.
    pub(crate) donor: Arc<str>,
    pieces: Receiver<Piece>,
    used: Sender<Vec<u8>>,
    pub(super) work: Work,
    pub(super) wanted: Option<Wanted>,
}

impl Seek {
    /// The source, if there is one by then. Its first bytes are on their way already.
    pub(crate) fn found_within(&mut self, time: Duration) -> Option<Source> {
        let source = self.found.recv_timeout(time).ok()?;
        Some(Source { wanted: self.wanted.take(), ..source })
    }
}

impl Source {
    /// The next piece; `None` when nothing comes within `time`.
    ///
    /// # Errors
    /// Nothing more comes.
    pub(super) fn next(&self, time: Duration) -> io::Result<Option<Piece>> {
        match self.pieces.recv_timeout(time) {
            Ok(piece) => Ok(Some(piece)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Gives the memory of a piece back.
    pub(super) fn reuse(&self, piece: Piece) {
        let _ = self.used.try_send(piece.bytes);
    }
}

impl Sharing {
    /// Looks for a machine that has a blob, or whether `only` the one of this name has it; asks again
    /// and again until it is found or the result is dropped. `None` if too many are sought already.
    pub(crate) fn seek(&self, blob: Blob, only: Option<String>) -> Option<Seek> {
        let (wanted, work) = self.begin()?;
        let (announce, found) = bounded(1);
        let seeker = Seeker {
            asker: Asker::new(self),
            sharing: self.clone(),
            blob,
            only,
            work,
            asked: Vec::new(),
            failed: Vec::new(),
            left: Vec::new(),
            at: 0,
        };
        let run = move || {
            seeker.run(&announce);
            exchange_io::with(ExchangeIo::end);
        };
        system::spawn("seeker", run).ok()?;
        Some(Seek { found, wanted: Some(wanted) })
    }
}

struct Seeker {
    sharing: Sharing,
    asker: Asker,
    blob: Blob,
    only: Option<String>,
    work: Work,
    /// Whom it has asked, and when last.
    asked: Vec<(SocketAddr, Instant)>,
    /// Donors that failed in the middle, once for each time.
    failed: Vec<SocketAddr>,
    /// Donors that brought nothing, or too little, or failed too often.
    left: Vec<SocketAddr>,
    /// Bytes that have been passed on.
    at: u64,
}

/// A neighbour that has begun to send the blob.
struct Donor {
    neighbour: Neighbour,
    bytes: Box<dyn Read>,
}

/// How a donor ended.
enum Ended {
    /// Everything was passed on, or nobody wants more.
    Done,
    /// It failed, or it is too slow.
    Left { reason: String, is_slow: bool },
}

impl Seeker {
    fn run(mut self, announce: &Sender<Source>) {
        let Some(mut donor) = self.search(Duration::MAX) else { return };
        let (pass, pieces) = bounded(PIECES);
        let (used, unused) = bounded(PIECES + 1);
        let (blob, work) = (self.blob.clone(), self.work.clone());
        let name = Arc::from(donor.neighbour.name.as_str());
        let source = Source { blob, donor: name, pieces, used, work, wanted: None };
        if announce.send(source).is_err() {
            return;
        }
        loop {
            let before = self.at;
            let Ended::Left { reason, is_slow } = self.copy(&mut donor, &pass, &unused) else {
                return;
            };
            let Neighbour { name, address } = donor.neighbour;
            log::warn!("donor failed name={name:?} at={} reason={reason:?}", self.at);
            self.failed.push(address);
            let failures = self.failed.iter().filter(|failed| **failed == address).count();
            if is_slow || self.at == before || failures >= FAILURES {
                self.left.push(address);
            }
            if is_slow {
                self.sharing.remember(address, Lapse::Slow);
            }
            self.asked.clear();
            donor = match self.search(EARLY) {
                Some(donor) => donor,
                // The channel closes before the blob's end.
                None => return,
            };
        }
    }

    /// Asks again and again for so long, or until nobody wants the blob: it may be that neighbours are
    /// just being looked for.
    fn search(&mut self, time: Duration) -> Option<Donor> {
        let start = Instant::now();
        loop {
            if let Some(donor) = self.find() {
                return Some(donor);
            }
            let pause = if start.elapsed() < EARLY { SOON } else { AGAIN };
            if start.elapsed() >= time || !self.work.is_wanted_after(pause) {
                return None;
            }
        }
    }

    /// Asks those that weren't asked lately: the first that has the blob, and gives it.
    fn find(&mut self) -> Option<Donor> {
        let now = Instant::now();
        self.asked.retain(|(_, at)| now.saturating_duration_since(*at) < AGAIN);
        let mut due = self.sharing.look();
        due.retain(|neighbour| {
            let address = neighbour.address;
            let is_meant = self.only.as_ref().is_none_or(|only| neighbour.is_called(only));
            let is_asked = self.asked.iter().any(|(asked, _)| *asked == address);
            is_meant
                && !is_asked
                && !self.left.contains(&address)
                && !self.sharing.is_shunned(address)
        });
        self.asked.extend(due.iter().map(|neighbour| (neighbour.address, now)));
        for some in due.chunks(ask::AT_ONCE) {
            for neighbour in ask::all(&self.sharing, &self.blob, some) {
                if !self.work.is_wanted() {
                    return None;
                }
                match self.asker.ask(Method::GET, &neighbour, &self.blob, self.at) {
                    Ok(bytes) => return Some(Donor { neighbour, bytes }),
                    Err(reason) => {
                        log::debug!("no donor name={:?} reason={reason:?}", neighbour.name);
                    }
                }
            }
        }
        None
    }

    /// Passes on what a donor sends.
    fn copy(
        &mut self,
        donor: &mut Donor,
        pass: &Sender<Piece>,
        unused: &Receiver<Vec<u8>>,
    ) -> Ended {
        let name: Arc<str> = Arc::from(donor.neighbour.name.as_str());
        let (mut waited, mut got) = (Duration::ZERO, 0);
        while self.at < self.blob.size {
            let mut bytes = unused.try_recv().unwrap_or_default();
            bytes.resize(PIECE.min(usize::try_from(self.blob.size - self.at).unwrap_or(PIECE)), 0);
            let start = Instant::now();
            let filled = match self.fill(&mut donor.bytes, &mut bytes) {
                Ok(0) => return Ended::Done,
                Ok(filled) => filled,
                // Where only one will do, slow is better than nothing.
                Err(reason) => {
                    let is_slow = self.only.is_none() && start.elapsed() >= PATIENCE;
                    return Ended::Left { reason, is_slow };
                }
            };
            waited += start.elapsed();
            got += filled as u64;
            bytes.truncate(filled);
            let address = donor.neighbour.address;
            if pass.send(Piece { bytes, donor: Arc::clone(&name), address }).is_err() {
                return Ended::Done;
            }
            self.at += filled as u64;
            if waited >= PATIENCE {
                if got < LEAST && self.only.is_none() {
                    return Ended::Left { reason: "is too slow".to_owned(), is_slow: true };
                }
                (waited, got) = (Duration::ZERO, 0);
            }
        }
        Ended::Done
    }

    /// Reads a piece, or as much of it as comes soon; 0 bytes once nobody wants more.
    fn fill(&self, donor: &mut dyn Read, piece: &mut [u8]) -> Result<usize, String> {
        let start = Instant::now();
        let mut filled = 0;
        while filled < piece.len() && (filled == 0 || start.elapsed() < PIECE_TIME) {
            let until = Instant::now() + LOOK;
            exchange_io::with(|io| io.look_until = Some(until));
            match donor.read(&mut piece[filled..]) {
                Ok(0) => return Err("it ended early".to_owned()),
                Ok(n) => filled += n,
                Err(_) if !self.work.is_wanted() => return Ok(0),
                Err(_) if Instant::now() >= until && start.elapsed() < PATIENCE => {}
                // What came before is good; the next read fails again.
                Err(_) if filled > 0 => break,
                Err(error) => return Err(describe_io(&error)),
            }
        }
        Ok(filled)
    }
}
