//! One client's connection: heads in, bodies in, errors out, and how it is closed.
//!
//! Every byte from the network is met here first, under a size limit and a deadline.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};
use rustix::event::PollFlags;

use crate::access::permissions::Caller;
use crate::config::{Limits, Timing};
use crate::counters::Transfer;
use crate::http::body::{ChunkDecoder, Step};
use crate::http::fields::{self, AnswerFraming};
use crate::http::head::{self, Framing, Head, HeadLimits, Refusal};
use crate::ollama::errors::Dialect;
use crate::pairing::stream::{self, Stream};
use crate::proxy::connections::Entry;
use crate::upstream::exchange_io::{ExchangeIo, Woken};

/// What is read at a time: little, until a client sends faster than that.
const READ_SIZE: usize = 4 * 1024;
const LARGE_READ_SIZE: usize = 32 * 1024;
/// A connection in the reserve has so long to say what it wants.
const RESERVE_TIME: Duration = Duration::from_secs(1);
/// An unread request is drained for so long before the close, so that the client gets to read the
/// answer instead of a reset. `ollama create` sends a blob of which the server doesn't read a
/// byte if it has it already; Go's own server lingers as long.
const LINGER_TIME: Duration = Duration::from_millis(500);
/// Declared bytes that are skipped when the answer comes before them. Skipping 32 KiB takes about
/// 60 ns, so this costs 0.1 s; without a limit, a made-up length would keep a core busy for years.
const LONGEST_GAP: u64 = 64 << 30;

/// A client's connection.
#[derive(Debug)]
pub struct Downstream {
    stream: Arc<Stream>,
    peer: SocketAddr,
    caller: Caller,
    /// `buffer[start..end]` was received and not used yet; what is behind it is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    read_size: usize,
    /// The first request is due as soon as the rest of a head.
    is_unproven: bool,
    /// It was just answered, so its next request is hardly there yet.
    is_rested: bool,
    body_bytes: u64,
    entry: Entry,
}

/// What a connection has next.
#[derive(Debug)]
pub enum Next {
    /// A request.
    Head(Box<Head>),
    /// Something that isn't served; to be answered, then closed.
    Refused(Refusal),
    /// Nothing more: closed, idle for too long, or we are stopping.
    Closed,
}

impl Downstream {
    /// A connection that was just accepted.
    pub fn new(stream: Arc<Stream>, peer: SocketAddr, entry: Entry) -> Self {
        let local = stream.socket().local_addr().ok().map(|local| local.ip());
        let caller = Caller::of(peer.ip(), local);
        let buffer = Vec::new();
        Downstream {
            stream,
            peer,
            caller,
            buffer,
            start: 0,
            end: 0,
            read_size: READ_SIZE,
            is_unproven: false,
            is_rested: false,
            body_bytes: 0,
            entry,
        }
    }

    /// The way to the client.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Who called.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The peer has shaken hands, which anyone can who repeats what he heard; only a request proves
    /// that he has the key. It is due soon.
    pub fn expect_at_once(&mut self) {
        self.is_unproven = true;
    }

    /// Bytes of the present request's body that were taken from the connection.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether it was let in beyond the limit, to look at the state.
    pub fn is_reserve(&self) -> bool {
        self.entry.is_reserve()
    }

    /// What kind of caller that is.
    pub fn caller(&self) -> Caller {
        if self.stream.key().is_some() { Caller::Paired } else { self.caller }
    }

    fn received(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether bytes of what follows the head are already here.
    pub fn has_received(&self) -> bool {
        !self.received().is_empty()
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Reads once; `None` when nothing is there, `Some(0)` at the end.
    fn fill(&mut self) -> io::Result<Option<usize>> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let most = self.end + self.read_size;
        if self.buffer.len() < most {
            self.buffer.resize(most, 0);
        }
        let result = self.stream.try_read(&mut self.buffer[self.end..most]);
        let n = *result.as_ref().ok().and_then(Option::as_ref).unwrap_or(&0);
        self.end += n;
        if n == self.read_size {
            self.read_size = LARGE_READ_SIZE;
        }
        result
    }

    /// Waits for the next head: for its first byte up to the idle time-out, for the rest up to the
    /// head's deadline.
    pub fn next_head(&mut self, timing: &Timing, limits: &Limits) -> Next {
        let limits = HeadLimits { max_bytes: limits.max_head, max_fields: limits.max_fields };
        let mut scanned = 0;
        let is_unproven = std::mem::take(&mut self.is_unproven);
        let idle = if is_unproven { timing.head_timeout } else { timing.idle_timeout };
        let most = if self.is_reserve() { RESERVE_TIME } else { Duration::MAX };
        let mut deadline = Instant::now() + idle.min(most);
        let mut has_begun = false;
        self.body_bytes = 0;
        loop {
            if !self.received().is_empty() && !has_begun {
                has_begun = true;
                deadline = Instant::now() + timing.head_timeout.min(most);
                if !self.entry.set_busy() {
                    return Next::Refused(Refusal { status: 503, reason: "ollana is stopping" });
                }
            }
            match head::find_end(self.received(), scanned, limits) {
                Ok(Some(len)) => {
                    let parsed = head::parse(&self.received()[..len], limits);
                    self.consume(len);
                    return match parsed {
                        Ok(head) => Next::Head(Box::new(head)),
                        Err(refusal) => Next::Refused(refusal),
                    };
                }
                Ok(None) => scanned = self.received().len(),
                Err(refusal) => return Next::Refused(refusal),
            }
            if !std::mem::take(&mut self.is_rested) {
                match self.fill() {
                    Ok(Some(0)) | Err(_) => return Next::Closed,
                    Ok(Some(_)) => continue,
                    Ok(None) => {}
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match stream::wait((&*self.stream, PollFlags::IN), None, Some(left)) {
                Ok((events, _)) if events.is_empty() => {
                    let slow = Refusal { status: 408, reason: "the head took too long" };
                    return if has_begun { Next::Refused(slow) } else { Next::Closed };
                }
                Ok(_) => {}
                Err(_) => return Next::Closed,
            }
        }
    }

    /// An answer begins that may take minutes: nothing is received before it has ended.
    pub fn let_buffer_go(&mut self) {
        if !self.has_received() {
            self.buffer = Vec::new();
        }
    }

    /// The exchange is over; the connection waits for the next one.
    pub fn set_idle(&mut self) {
        if !self.has_received() {
            // A large head or body leaves no large buffer behind on an idle connection.
            self.buffer.truncate(READ_SIZE);
            self.buffer.shrink_to(READ_SIZE);
            self.read_size = READ_SIZE;
        }
        self.is_rested = true;
        self.entry.set_idle();
    }

    /// Closes after an answer that left part of a request unread.
    pub fn close_gently(&self) {
        self.stream.finish();
        let deadline = Instant::now() + LINGER_TIME;
        let mut scratch = [0; READ_SIZE];
        while Instant::now() < deadline {
            match self.stream.try_read(&mut scratch) {
                Ok(Some(0)) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let waited = stream::wait((&*self.stream, PollFlags::IN), None, Some(left));
                    if !matches!(waited, Ok((events, _)) if !events.is_empty()) {
                        return;
                    }
                }
            }
        }
    }
}

/// The bytes of an answer that we make ourselves.
pub fn json_answer(
    status: StatusCode,
    mut fields: HeaderMap,
    body: &str,
    is_head: bool,
    close: bool,
) -> Vec<u8> {
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    fields.insert(http::header::CONTENT_TYPE, json);
    let length = body.len() as u64;
    let framing = if is_head { AnswerFraming::None } else { AnswerFraming::Length(length) };
    let mut out = Vec::with_capacity(512 + body.len());
    fields::write_answer_head(&mut out, status, &fields, framing, Some(length), close);
    if !is_head {
        out.extend_from_slice(body.as_bytes());
    }
    out
}

/// The fields of an error that we make ourselves.
pub fn error_fields(status: u16, cause: &'static str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(fields::ERROR_FIELD, HeaderValue::from_static(cause));
    if matches!(status, 429 | 503) {
        fields.insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    fields
}

/// The bytes of an error in Ollama's shape, for a connection that is closed after it.
pub fn error_answer(status: u16, message: &str, cause: &'static str) -> Vec<u8> {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Dialect::Ollama.error(status, message).to_string();
    json_answer(code, error_fields(status, cause), &body, false, true)
}

/// Memory for kept bodies, shared by all exchanges.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Budget {
    /// So many bytes in all.
    pub fn new(bytes: usize) -> Self {
        Budget(AtomicUsize::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Relaxed);
    }
}

/// Why a request's body can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// The client left before the end.
    ClientLeft,
    /// Its chunks are malformed.
    Malformed(&'static str),
    /// Nothing came for too long.
    TooSlow,
    /// The answer was there first, and more was declared to follow than can be skipped.
    TooLong,
}

/// A request's body on its way in: what is still to come, and what was kept for another try.
#[derive(Debug)]
pub struct BodyState<'a> {
    rest: Rest,
    awaits_continue: bool,
    kept: Vec<u8>,
    /// Bytes that may be kept; 0 once something was let go.
    keep_limit: usize,
    is_whole: bool,
    /// The rest of it stays unread, because the answer was there first.
    is_abandoned: bool,
    budget: &'a Budget,
    reserved: usize,
    /// Bytes handed to upstreams, every attempt counted.
    pub sent: u64,
    /// Where its progress is shown, if it is an upload.
    pub transfer: Option<Arc<Transfer>>,
    /// What went wrong, if anything.
    pub fault: Option<BodyFault>,
}

#[derive(Debug)]
enum Rest {
    Done,
    Length(u64),
    Chunked(ChunkDecoder),
}

impl<'a> BodyState<'a> {
    /// The body that follows `head`; up to `keep_limit` bytes are kept for another try.
    pub fn new(head: &Head, keep_limit: usize, budget: &'a Budget) -> Self {
        BodyState {
            rest: match head.framing {
                Framing::Empty => Rest::Done,
                Framing::Length(length) => Rest::Length(length),
                Framing::Chunked => Rest::Chunked(ChunkDecoder::default()),
            },
            awaits_continue: head.expects_continue && head.framing != Framing::Empty,
            kept: Vec::new(),
            keep_limit,
            is_whole: true,
            is_abandoned: false,
            budget,
            reserved: 0,
            sent: 0,
            transfer: None,
            fault: None,
        }
    }

    /// Whether all of it has been received, so that the connection can serve another request.
    pub fn is_done(&self) -> bool {
        matches!(self.rest, Rest::Done) && !self.is_abandoned
    }

    /// Whether everything received so far can be sent again.
    pub fn is_replayable(&self) -> bool {
        self.is_whole && self.fault.is_none()
    }

    /// What was kept of it.
    pub fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Puts another body in the place of one that was kept as a whole.
    pub fn replace(&mut self, body: Vec<u8>) {
        self.budget.give_back(std::mem::take(&mut self.reserved));
        self.kept = body;
    }

    /// Whether its first bytes can be sent without waiting for the client.
    pub fn is_at_hand(&self, connection: &Downstream) -> bool {
        !self.kept.is_empty() || connection.has_received()
    }

    /// Takes as much of the budget, up to `most` bytes, as can be kept for sure.
    fn reserve(&self, most: usize) -> usize {
        let room = self.keep_limit.saturating_sub(self.kept.len()).min(most);
        if self.budget.take(room) { room } else { 0 }
    }

    /// It won't be sent again; what was kept is let go.
    pub fn let_go(&mut self) {
        self.is_whole = false;
        self.kept = Vec::new();
        self.budget.give_back(std::mem::take(&mut self.reserved));
    }

    fn count(&mut self, n: usize) {
        self.sent += n as u64;
        if let Some(transfer) = &self.transfer {
            transfer.advance(n as u64);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !self.is_whole || bytes.is_empty() {
            return;
        }
        let fits = self.kept.len() + bytes.len() <= self.keep_limit;
        if fits && self.budget.take(bytes.len()) {
            self.reserved += bytes.len();
            self.kept.extend_from_slice(bytes);
        } else {
            self.let_go();
        }
    }
}

impl Drop for BodyState<'_> {
    fn drop(&mut self) {
        self.budget.give_back(self.reserved);
    }
}

/// Reads a request's body for one attempt: what was kept first, then the connection.
pub struct BodyReader<'a, 'b> {
    /// Where it comes from.
    pub connection: &'a mut Downstream,
    /// How far it has come.
    pub state: &'a mut BodyState<'b>,
    /// The exchange's other side.
    pub io: &'a ExchangeIo,
    /// A client that sends nothing for so long has failed.
    pub idle_timeout: Duration,
    /// Bytes of `kept` that this attempt has had.
    replayed: usize,
    /// Bytes that this attempt was given in place of those that an early answer made needless.
    skipped: u64,
}

impl<'a, 'b> BodyReader<'a, 'b> {
    /// For a new attempt.
    pub fn new(
        connection: &'a mut Downstream,
        state: &'a mut BodyState<'b>,
        io: &'a ExchangeIo,
        idle_timeout: Duration,
    ) -> Self {
        state.is_abandoned = false;
        BodyReader { connection, state, io, idle_timeout, replayed: 0, skipped: 0 }
    }
}

impl BodyReader<'_, '_> {
    fn fail(&mut self, fault: BodyFault) -> io::Error {
        self.state.fault = Some(fault);
        io::Error::new(ErrorKind::BrokenPipe, "the request's body broke off")
    }

    /// Puts received bytes into `out`; 0 when there are none.
    fn take_received(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.state.rest {
            Rest::Done => Ok(0),
            Rest::Length(left) => {
                let received = &self.connection.buffer[self.connection.start..self.connection.end];
                let n = (*left).min(out.len().min(received.len()) as u64) as usize;
                out[..n].copy_from_slice(&received[..n]);
                *left -= n as u64;
                if *left == 0 {
                    self.state.rest = Rest::Done;
                }
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
        while let Rest::Chunked(decoder) = &mut self.state.rest {
            let received = &self.connection.buffer[self.connection.start..self.connection.end];
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
                    self.state.rest = Rest::Done;
                    skip
                }
                Err(reason) => return Err(self.fail(BodyFault::Malformed(reason))),
            };
            self.connection.consume(used);
        }
        Ok(filled)
    }

    /// Reads the socket: bulk of known length straight into `out`, anything else by way of the
    /// connection's buffer. `None` when nothing is there.
    fn take_from_socket(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        let direct = matches!(self.state.rest, Rest::Length(_));
        let result = match &mut self.state.rest {
            Rest::Length(left) => {
                let most = (*left).min(out.len() as u64) as usize;
                self.connection.stream.try_read(&mut out[..most])
            }
            _ => self.connection.fill(),
        };
        match result {
            Ok(None) => Ok(None),
            Ok(Some(0)) | Err(_) => Err(self.fail(BodyFault::ClientLeft)),
            Ok(Some(n)) if direct => {
                if let Rest::Length(left) = &mut self.state.rest {
                    *left -= n as u64;
                    if *left == 0 {
                        self.state.rest = Rest::Done;
                    }
                }
                Ok(Some(n))
            }
            Ok(Some(_)) => self.take_received(out).map(Some),
        }
    }

    fn next_bytes(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.await_bytes(out)?;
        self.connection.body_bytes += n as u64;
        Ok(n)
    }

    fn await_bytes(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.take_received(out)?;
            if n > 0 || matches!(self.state.rest, Rest::Done) {
                return Ok(n);
            }
            match self.take_from_socket(out)? {
                Some(n) if n > 0 || matches!(self.state.rest, Rest::Done) => return Ok(n),
                Some(_) => continue,
                None => {}
            }
            if std::mem::take(&mut self.state.awaits_continue) {
                self.io.push(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            let stream = Arc::clone(&self.connection.stream);
            match self.io.wait_client(&stream, self.idle_timeout)? {
                Woken::Ready => {}
                Woken::TimedOut => return Err(self.fail(BodyFault::TooSlow)),
                Woken::Answered => return Ok(0),
            }
        }
    }
}

impl BodyReader<'_, '_> {
    /// Receives and keeps the body until `is_enough` says so of what is kept, it has ended, or
    /// `most` bytes are kept.
    ///
    /// # Errors
    /// When it can't be received; the fault is recorded.
    pub fn prefetch(&mut self, most: usize, is_enough: &dyn Fn(&[u8]) -> bool) -> io::Result<()> {
        let mut piece = vec![0; READ_SIZE];
        while self.state.is_whole && self.state.kept.len() < most && !is_enough(&self.state.kept) {
            // Nothing is taken that can't be kept: it was not sent yet, so it would be lost.
            let room = self.state.reserve(READ_SIZE.min(most - self.state.kept.len()));
            let read = if room == 0 { Ok(0) } else { self.next_bytes(&mut piece[..room]) };
            let n = *read.as_ref().unwrap_or(&0);
            self.state.kept.extend_from_slice(&piece[..n]);
            self.state.reserved += n;
            self.state.budget.give_back(room - n);
            if read? == 0 {
                break;
            }
        }
        Ok(())
    }
}

impl Read for BodyReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(replay) = self.state.kept.get(self.replayed..).filter(|kept| !kept.is_empty()) {
            let n = replay.len().min(out.len());
            out[..n].copy_from_slice(&replay[..n]);
            self.replayed += n;
            self.state.count(n);
            return Ok(n);
        }
        if self.io.answered_early() {
            return self.fill_the_gap(out);
        }
        let n = self.next_bytes(out)?;
        if n == 0 && self.io.answered_early() {
            return self.fill_the_gap(out);
        }
        self.state.keep(&out[..n]);
        self.state.count(n);
        self.replayed += n;
        Ok(n)
    }
}

impl BodyReader<'_, '_> {
    /// The answer is already there. The transport sends nothing more, but ureq wants the body's
    /// declared length before it reads the answer; chunks may simply end.
    fn fill_the_gap(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.state.is_abandoned = true;
        match self.state.rest {
            Rest::Length(left) if left > LONGEST_GAP => Err(self.fail(BodyFault::TooLong)),
            // Another attempt may still need the real bytes, so none of them is used up.
            Rest::Length(left) => {
                let n = (left - self.skipped).min(out.len() as u64) as usize;
                self.skipped += n as u64;
                Ok(n)
            }
            _ => Ok(0),
        }
    }
}
