//! A request's body on its way in: what is still to come, and what was kept for another try.

use std::io::{self, ErrorKind, Read};
use std::mem::{replace, take};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::connections::DRIP;
use super::kept::{Budget, Kept};
use super::pace::{Pace, Rate};
use crate::counters::Transfer;
use crate::http::body::{ChunkDecoder, Step};
use crate::http::head::{Framing, Head};
use crate::ollama::model_name::ModelName;
use crate::ollama::subject::Scan;
use crate::system::bytes::Bytes;
use crate::upstream::buffers::{LARGE, SMALL};
use crate::upstream::exchange_io::{self, Fault, Woken};

/// Declared bytes that are skipped when the answer comes before them. Skipping 32 KiB takes about
/// 60 ns, so this costs 0.1 s; without a limit, a made-up length would keep a core busy for years.
const LONGEST_GAP: u64 = 64 << 30;
/// How long a body's first bytes may come behind its head before they drip: a packet's way over a radio
/// link. Who opens many connections has it for each, so it is short.
const FIRST_BYTES: Duration = Duration::from_millis(100);
/// Bytes within the body time-out of a body that takes up a turn at a server.
const HURRIED: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct RequestBody<'a> {
    /// What is still to come.
    rest: Rest,
    awaits_continue: bool,
    pub(super) kept: Kept<'a>,
    /// What is still to be looked at while it is sent.
    pub(super) watch: Option<Watch<'a>>,
    /// Bytes handed to upstreams, every attempt counted.
    pub(super) sent: u64,
    /// Where its progress is shown, if it is an upload.
    pub(super) transfer: Option<Arc<Transfer>>,
    /// How long its connection doesn't give way.
    place: Option<Pace>,
    /// Set if it takes up a turn at a server before it is whole.
    turn: Option<Pace>,
}

/// Looks at a body on its way, because what comes late may name another model.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    pub(super) scan: Scan,
    /// The model by which the server was chosen.
    pub(super) chosen_for: Option<String>,
    /// Models that some server may not run.
    pub(super) banned: &'a [(ModelName, String)],
}

impl Watch<'_> {
    fn sees_turn(&mut self, bytes: &[u8]) -> bool {
        self.scan.push(bytes);
        self.has_turned()
    }

    /// Whether the body has named a model that the chosen server may not be right for.
    pub(super) fn has_turned(&self) -> bool {
        let named = self.scan.model();
        match &self.chosen_for {
            Some(model) => named != Some(model),
            None => {
                let named = named.and_then(ModelName::parse);
                named.is_some_and(|named| self.banned.iter().any(|(banned, _)| *banned == named))
            }
        }
    }
}

#[derive(Debug)]
enum Rest {
    Done,
    Length(u64),
    Chunked(ChunkDecoder),
}

impl Rest {
    /// The most bytes of data that may still come.
    fn at_most(&self) -> u64 {
        match self {
            Rest::Done => 0,
            Rest::Length(left) => *left,
            Rest::Chunked(_) => u64::MAX,
        }
    }

    /// Bytes that are at least still to be taken from the socket, if so many are in our buffer.
    fn unreceived(&self, received: usize) -> u64 {
        let at_least = match self {
            Rest::Done => 0,
            Rest::Length(left) => *left,
            Rest::Chunked(_) => 1,
        };
        at_least.saturating_sub(received as u64)
    }

    fn advance(&mut self, n: usize) {
        match self {
            Rest::Length(left) if *left > n as u64 => *left -= n as u64,
            Rest::Length(_) => *self = Rest::Done,
            Rest::Done | Rest::Chunked(_) => {}
        }
    }
}

impl<'a> RequestBody<'a> {
    /// The body that follows `head`; up to `limit` bytes are kept for another try.
    pub(super) fn new(head: &Head, limit: usize, budget: &'a Budget) -> Self {
        let length = match head.framing {
            Framing::Length(length) => Some(length),
            Framing::Empty | Framing::Chunked => None,
        };
        RequestBody {
            rest: match head.framing {
                Framing::Empty => Rest::Done,
                Framing::Length(length) => Rest::Length(length),
                Framing::Chunked => Rest::Chunked(ChunkDecoder::default()),
            },
            awaits_continue: head.expects_continue && head.framing != Framing::Empty,
            kept: budget.keep(limit, length),
            watch: None,
            sent: 0,
            transfer: None,
            place: None,
            turn: None,
        }
    }

    /// From now on it is given up if it comes too slowly, by the time-out for when nothing comes.
    pub(super) fn hurry(&mut self, connection: &Connection, timeout: Duration) {
        let rate = Rate { bytes: HURRIED, time: timeout };
        self.turn = Some(Pace::new(rate, timeout, connection.body_bytes));
    }

    /// How long it may be waited for now.
    fn begin_wait(&mut self, connection: &Connection) -> Duration {
        let (now, bytes) = (Instant::now(), connection.body_bytes);
        let place = self.place.get_or_insert_with(|| Pace::new(DRIP, FIRST_BYTES, 0));
        connection.place.await_body(Some(now + place.begin_wait(now, bytes)));
        self.turn.as_mut().map_or(Duration::MAX, |turn| turn.begin_wait(now, bytes))
    }

    fn end_wait(&mut self, connection: &Connection) {
        let now = Instant::now();
        connection.place.await_body(None);
        for pace in self.place.iter_mut().chain(&mut self.turn) {
            pace.end_wait(now);
        }
    }

    /// Whether all of it has been received, so that the connection can serve another request.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.rest, Rest::Done)
    }

    /// Whether its first bytes can be sent without waiting for the client.
    pub(super) fn is_at_hand(&self, connection: &Connection) -> bool {
        !self.kept.bytes.is_empty() || !connection.received().is_empty()
    }

    fn count(&mut self, n: usize) {
        self.sent += n as u64;
        if let Some(transfer) = &self.transfer {
            transfer.advance(n as u64);
        }
    }
}

/// Reads a request's body for one attempt: what was kept first, then the connection.
pub(super) struct BodyReader<'a, 'b> {
    connection: &'a mut Connection,
    body: &'a mut RequestBody<'b>,
    /// How long the client may send nothing.
    timeout: Duration,
    /// What doesn't come within this time isn't waited for.
    pause: Option<Duration>,
    /// How long it may still wait for memory, if it does.
    pub(super) patience: Option<Duration>,
    /// Bytes of `kept` that this attempt has had.
    replayed: usize,
    /// Bytes that this attempt was given in place of those that an early answer made needless.
    skipped: u64,
}

fn give_up(fault: Fault) -> io::Error {
    exchange_io::with(|io| io.give_up(fault))
}

impl<'a, 'b> BodyReader<'a, 'b> {
    pub(super) fn new(
        connection: &'a mut Connection,
        body: &'a mut RequestBody<'b>,
        timeout: Duration,
    ) -> Self {
        BodyReader {
            connection,
            body,
            timeout,
            pause: None,
            patience: None,
            replayed: 0,
            skipped: 0,
        }
    }

    /// Receives and keeps more of the body before it is sent, if there is more, it comes within the
    /// pause, and there is room within `most` bytes. If it can't be received, the exchange is given
    /// up.
    pub(super) fn fetch(&mut self, most: usize, pause: Option<Duration>) -> io::Result<()> {
        let RequestBody { rest, kept, .. } = &mut *self.body;
        let before = kept.bytes.len();
        let size = if before < SMALL { SMALL } else { LARGE };
        let room = rest.at_most().min(size.min(most.saturating_sub(before)) as u64) as usize;
        let mut no_patience = None;
        let patience = if pause.is_some() { &mut no_patience } else { &mut self.patience };
        let has_left = || exchange_io::with(|io| io.has_client_left());
        // Nothing is taken that can't be kept: it was not sent yet, so it would be lost.
        if kept.is_whole
            && room > 0
            && kept.loan.await_growth(room, patience, has_left).map_err(give_up)?
        {
            if kept.bytes.grow(room).is_err() {
                kept.loan.shrink(room);
                return Ok(());
            }
            let mut bytes = replace(&mut kept.bytes, Bytes::new());
            self.pause = pause;
            let read = self.receive(&mut bytes[before..]);
            self.pause = None;
            let n = *read.as_ref().unwrap_or(&0);
            bytes.truncate(before + n);
            let kept = &mut self.body.kept;
            kept.bytes = bytes;
            kept.loan.shrink(room - n);
            read?;
        }
        Ok(())
    }

    pub(super) fn kept(&self) -> &[u8] {
        &self.body.kept.bytes
    }

    /// Waits for bytes; 0 at the body's end, after the pause, or when an answer has come.
    fn receive(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut n = Some(self.take_received(out)?);
            if n == Some(0) && !self.body.is_done() {
                n = self.take_from_socket(out)?;
            }
            if let Some(n) = n {
                if n > 0 || self.body.is_done() {
                    self.connection.body_bytes += n as u64;
                    let unreceived = self.body.rest.unreceived(self.connection.received().len());
                    exchange_io::with(|io| io.unreceived = unreceived);
                    return Ok(n);
                }
                continue;
            }
            if take(&mut self.body.awaits_continue) {
                exchange_io::with(|io| io.push(b"HTTP/1.1 100 Continue\r\n\r\n"));
            }
            let client = &self.connection.stream;
            let timeout = self.pause.unwrap_or(self.timeout);
            let timeout = timeout.min(self.body.begin_wait(self.connection));
            let woken = exchange_io::with(|io| io.wait_client(client, timeout));
            self.body.end_wait(self.connection);
            match woken? {
                Woken::Ready => {}
                Woken::TimedOut if self.pause.is_some() => return Ok(0),
                Woken::TimedOut => return Err(give_up(Fault::BodyTooSlow)),
                Woken::Answered => return Ok(0),
            }
        }
    }

    /// Puts bytes that are in the connection's buffer into `out`; 0 when there are none.
    fn take_received(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.body.rest {
            Rest::Done => Ok(0),
            Rest::Length(left) => {
                let received = self.connection.received();
                let n = left.min(out.len().min(received.len()) as u64) as usize;
                out[..n].copy_from_slice(&received[..n]);
                self.body.rest.advance(n);
                self.connection.consume(n);
                Ok(n)
            }
            Rest::Chunked(_) => self.take_chunks(out),
        }
    }

    /// Puts the data of as many chunks into `out` as are here, so that a body of tiny ones costs
    /// hardly more than any other.
    fn take_chunks(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Rest::Chunked(decoder) = &mut self.body.rest {
            let received = self.connection.received();
            // The decoder must not be told of data that `out` can't take.
            let window = &received[..received.len().min(out.len() - filled)];
            if window.is_empty() {
                break;
            }
            let used = match decoder.step(window) {
                Ok(Step::Data { skip, len }) => {
                    out[filled..filled + len].copy_from_slice(&window[skip..skip + len]);
                    filled += len;
                    skip + len
                }
                Ok(Step::More) => window.len(),
                Ok(Step::End { skip }) => {
                    self.body.rest = Rest::Done;
                    skip
                }
                Err(reason) => return Err(give_up(Fault::BodyMalformed(reason))),
            };
            self.connection.consume(used);
        }
        Ok(filled)
    }

    /// Reads the socket: bulk of known length straight into `out`, anything else by way of the
    /// connection's buffer. `None` when nothing is there.
    fn take_from_socket(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        let length = match self.body.rest {
            Rest::Length(left) => Some(left.min(out.len() as u64) as usize),
            Rest::Done | Rest::Chunked(_) => None,
        };
        let read = match length {
            Some(most) => self.connection.stream.try_read(&mut out[..most]),
            None => self.connection.fill(),
        };
        match read {
            Ok(None) => {}
            Ok(Some(0)) | Err(_) => return Err(give_up(Fault::ClientLeft)),
            Ok(Some(_)) if length.is_none() => return self.take_received(out).map(Some),
            Ok(Some(n)) => self.body.rest.advance(n),
        }
        read
    }

    /// The answer is already there. The transport sends nothing more, but ureq wants the body's
    /// declared length before it reads the answer; chunks may simply end.
    fn fill_the_gap(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.body.rest {
            Rest::Length(left) if left > LONGEST_GAP => Err(give_up(Fault::BodyTooLong)),
            // Another attempt may still need the real bytes, so none of them is used up.
            Rest::Length(left) => {
                let n = (left - self.skipped).min(out.len() as u64) as usize;
                self.skipped += n as u64;
                Ok(n)
            }
            Rest::Done | Rest::Chunked(_) => Ok(0),
        }
    }
}

impl Drop for BodyReader<'_, '_> {
    fn drop(&mut self) {
        self.body.kept.loan.end_turn();
    }
}

impl Read for BodyReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(kept) =
            self.body.kept.bytes.get(self.replayed..).filter(|kept| !kept.is_empty())
        {
            let n = kept.len().min(out.len());
            out[..n].copy_from_slice(&kept[..n]);
            let is_last = n == kept.len();
            self.replayed += n;
            self.body.count(n);
            let kept = &mut self.body.kept;
            // Another try is worth less than that others can be looked at.
            if is_last && kept.loan.is_scarce() {
                kept.release();
            }
            return Ok(n);
        }
        let is_answered_early = || exchange_io::with(|io| io.is_answered_early());
        let n = if is_answered_early() { 0 } else { self.receive(out)? };
        if n == 0 && is_answered_early() {
            return self.fill_the_gap(out);
        }
        self.body.kept.push(&out[..n]);
        if let Some(watch) = &mut self.body.watch
            && watch.sees_turn(&out[..n])
        {
            // Not one of the kinds that ureq takes for the end of a body.
            return Err(io::Error::new(ErrorKind::BrokenPipe, "the body names another model"));
        }
        self.body.count(n);
        self.replayed += n;
        Ok(n)
    }
}
