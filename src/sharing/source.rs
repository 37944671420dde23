//! A blob as a stream of pieces: sought among the neighbours, and taken from one after the other.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use http::{Method, StatusCode};

use super::ask::{self, Asker};
use super::{Blob, Donors, LOOK, Lapse, MANIFEST_TIME, Neighbour, Refusal, Sharing, Wanted, Work};
use crate::system::{self, lock};
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
/// Where nobody else has it: how long nothing may come, as the donor may be started anew or have to push
/// the layer from its beginning, and how long it has to say that it has the blob no more.
const SILENCE: Duration = Duration::from_secs(120);
const SURE: Duration = Duration::from_secs(5);

/// Bytes of a blob, and who gave them.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    pub(super) donor: Arc<str>,
    pub(super) address: SocketAddr,
}

/// What the only machine that may give a blob has said last instead.
pub(super) type Said = Arc<Mutex<Option<Refusal>>>;

/// A search for somebody who has a blob. Dropping it ends the search.
#[derive(Debug)]
pub(crate) struct Seek {
    found: Receiver<Source>,
    wanted: Option<Wanted>,
    refusal: Said,
    /// It was given up.
    pub(crate) is_over: bool,
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
    pub(super) refusal: Said,
    pub(super) work: Work,
    pub(super) wanted: Option<Wanted>,
}

impl Seek {
    /// The source, if there is one by then. Its first bytes are on their way already.
    pub(crate) fn found_within(&mut self, time: Duration) -> Option<Source> {
        let found = self.found.recv_timeout(time);
        self.is_over |= matches!(found, Err(RecvTimeoutError::Disconnected));
        let source = found.ok()?;
        Some(Source { wanted: self.wanted.take(), ..source })
    }

    /// What the only machine that may give it has said last instead.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        lock(&self.refusal).clone()
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
            Err(RecvTimeoutError::Disconnected) => {
                let refusal = lock(&self.refusal).as_ref().map(Refusal::to_string);
                let reason = refusal.unwrap_or_else(|| "nobody is left who has it".to_owned());
                Err(io::Error::other(reason))
            }
        }
    }

    /// Gives the memory of a piece back.
    pub(super) fn reuse(&self, piece: Piece) {
        let _ = self.used.try_send(piece.bytes);
    }
}

impl Sharing {
    /// Looks for one of these machines that has a blob; asks again and again until it is found or the
    /// result is dropped. `None` if too many are sought already.
    pub(crate) fn seek(&self, blob: Blob, donors: Donors) -> Option<Seek> {
        let (wanted, work) = self.begin()?;
        let (announce, found) = bounded(1);
        let refusal = Arc::default();
        let seeker = Seeker {
            asker: Asker::new(self),
            sharing: self.clone(),
            blob,
            donors,
            refusal: Arc::clone(&refusal),
            lacks_since: None,
            quiet_since: Instant::now(),
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
        Some(Seek { found, wanted: Some(wanted), refusal, is_over: false })
    }
}

struct Seeker {
    sharing: Sharing,
    asker: Asker,
    blob: Blob,
    donors: Donors,
    /// What the only one has said last, and since when it says that it lacks the blob.
    refusal: Said,
    lacks_since: Option<Instant>,
    /// Since when nothing comes.
    quiet_since: Instant,
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
        let refusal = Arc::clone(&self.refusal);
        let source = Source { blob, donor: name, pieces, used, refusal, work, wanted: None };
        if announce.send(source).is_err() {
            return;
        }
        loop {
            let before = self.at;
            let Ended::Left { reason, is_slow } = self.copy(&mut donor, &pass, &unused) else {
                return;
            };
            // What has kept its connection gives to nobody else.
            let Donor { neighbour: Neighbour { name, address }, bytes } = donor;
            drop(bytes);
            log::warn!("donor failed name={name:?} at={} reason={reason:?}", self.at);
            let mut time = SILENCE;
            if !self.is_only() {
                time = EARLY;
                self.failed.push(address);
                let failures = self.failed.iter().filter(|failed| **failed == address).count();
                if is_slow || self.at == before || failures >= FAILURES {
                    self.left.push(address);
                }
                self.asked.clear();
                self.quiet_since = Instant::now();
            }
            if is_slow {
                self.sharing.remember(address, Lapse::Slow);
            }
            donor = match self.search(time) {
                Some(donor) => donor,
                // The channel closes before the blob's end.
                None => return,
            };
        }
    }

    fn has_others(&self) -> bool {
        matches!(self.donors, Donors::Anybody)
    }

    /// Whether nobody else gives it, and no registry.
    fn is_only(&self) -> bool {
        matches!(self.donors, Donors::Only(..))
    }

    /// Asks again and again until nothing has come for so long, or nobody wants the blob: it may be that
    /// neighbours are just being looked for.
    fn search(&mut self, time: Duration) -> Option<Donor> {
        let start = Instant::now();
        loop {
            // Who was waited for long may be back now.
            if let Some(donor) = self.find() {
                return Some(donor);
            }
            let lacks = self.lacks_since.is_some_and(|since| since.elapsed() >= SURE);
            if lacks || self.quiet_since.elapsed() >= time {
                return None;
            }
            let pause = if start.elapsed() < EARLY { SOON } else { AGAIN };
            if !self.work.is_wanted_after(pause) {
                return None;
            }
        }
    }

    /// Asks those that weren't asked lately: the first that has the blob, and gives it.
    fn find(&mut self) -> Option<Donor> {
        let now = Instant::now();
        self.asked.retain(|(_, at)| now.saturating_duration_since(*at) < AGAIN);
        let mut due = self.sharing.look();
        due.retain(|neighbour| self.donors.may_be(neighbour));
        if self.is_only() && due.is_empty() {
            self.hear(Some(Refusal::Other("it is not up".to_owned())));
        }
        due.retain(|Neighbour { address, .. }| {
            let is_asked = self.asked.iter().any(|(asked, _)| asked == address);
            // Who is wanted by name is asked nevertheless.
            let is_shunned = self.has_others() && self.sharing.is_shunned(*address);
            !is_asked && !self.left.contains(address) && !is_shunned
        });
        self.asked.extend(due.iter().map(|neighbour| (neighbour.address, now)));
        if self.is_only() {
            return due.pop().and_then(|neighbour| self.begin(neighbour));
        }
        for some in due.chunks(ask::AT_ONCE) {
            for neighbour in ask::all(&self.sharing, &self.blob, some) {
                if !self.work.is_wanted() {
                    return None;
                }
                let donor = self.begin(neighbour);
                if donor.is_some() {
                    return donor;
                }
            }
        }
        None
    }

    fn begin(&mut self, neighbour: Neighbour) -> Option<Donor> {
        let refusal = match self.asker.ask(Method::GET, &neighbour, &self.blob, self.at) {
            Ok(bytes) => {
                self.hear(None);
                return Some(Donor { neighbour, bytes });
            }
            Err(refusal) => refusal,
        };
        log::debug!("no donor name={:?} reason={:?}", neighbour.name, refusal.to_string());
        let Donors::Only(_, manifest) = &self.donors else { return None };
        let refusal = match refusal {
            Refusal::Lacks => self.lacks(&neighbour, manifest),
            refusal => refusal,
        };
        self.hear(Some(refusal));
        None
    }

    /// Who lacks a blob may have it once it was asked for the manifest, and is believed if it answers.
    fn lacks(&self, neighbour: &Neighbour, manifest: &str) -> Refusal {
        match self.asker.status(neighbour, manifest, MANIFEST_TIME) {
            Ok(StatusCode::OK | StatusCode::NOT_FOUND) => Refusal::Lacks,
            Ok(status) => format!("answers with status {status}").into(),
            Err(reason) => reason.into(),
        }
    }

    /// What the only one says now.
    fn hear(&mut self, refusal: Option<Refusal>) {
        let now = Instant::now();
        let lacks = refusal == Some(Refusal::Lacks);
        self.lacks_since = lacks.then(|| self.lacks_since.unwrap_or(now));
        if refusal == Some(Refusal::Busy) {
            // Its turn comes.
            self.quiet_since = now;
        }
        *lock(&self.refusal) = refusal;
    }

    /// Passes on what a donor sends.
    fn copy(
        &mut self,
        donor: &mut Donor,
        pass: &Sender<Piece>,
        unused: &Receiver<Vec<u8>>,
    ) -> Ended {
        let name: Arc<str> = Arc::from(donor.neighbour.name.as_str());
        let (begun, mut waited, mut got) = (self.at, Duration::ZERO, 0);
        while self.at < self.blob.size {
            let mut bytes = unused.try_recv().unwrap_or_default();
            bytes.resize(PIECE.min(usize::try_from(self.blob.size - self.at).unwrap_or(PIECE)), 0);
            let start = Instant::now();
            // The first bytes may take long to come where Ollama pushes the layer from its beginning.
            let patience = match self.is_only() && self.at == begun {
                true => SILENCE.saturating_sub(self.quiet_since.elapsed()).max(PATIENCE),
                false => PATIENCE,
            };
            let filled = match self.fill(&mut donor.bytes, &mut bytes, patience) {
                Ok(0) => return Ended::Done,
                Ok(filled) => filled,
                // Where only one will do, slow is better than nothing.
                Err(reason) => {
                    let is_slow = self.has_others() && start.elapsed() >= PATIENCE;
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
            self.quiet_since = Instant::now();
            if waited >= PATIENCE {
                if got < LEAST && self.has_others() {
                    return Ended::Left { reason: "is too slow".to_owned(), is_slow: true };
                }
                (waited, got) = (Duration::ZERO, 0);
            }
        }
        Ended::Done
    }

    /// Reads a piece, or as much of it as comes soon; 0 bytes once nobody wants more.
    fn fill(
        &self,
        donor: &mut dyn Read,
        piece: &mut [u8],
        patience: Duration,
    ) -> Result<usize, String> {
        let start = Instant::now();
        let mut filled = 0;
        while filled < piece.len() && (filled == 0 || start.elapsed() < PIECE_TIME) {
            let until = Instant::now() + LOOK;
            exchange_io::with(|io| io.look_until = Some(until));
            match donor.read(&mut piece[filled..]) {
                Ok(0) => return Err("it ended early".to_owned()),
                Ok(n) => filled += n,
                Err(_) if !self.work.is_wanted() => return Ok(0),
                Err(_) if Instant::now() >= until && start.elapsed() < patience => {}
                // What came before is good; the next read fails again.
                Err(_) if filled > 0 => break,
                Err(error) => return Err(describe_io(&error)),
            }
        }
        Ok(filled)
    }
}
