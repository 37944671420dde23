//! The two sockets of the exchange that a thread serves, and the order in which its bytes move.
//!
//! ```text
//!  phase          bytes move                              the thread waits for
//!  Connecting     none                                    the upstream, or the client's hang-up
//!  Sending        client ─► request body ─► transport     the client's bytes, or an early answer;
//!                                          ─► upstream    room at the upstream, likewise
//!  AnsweredEarly  the rest of the body isn't sent         the upstream, or the client's hang-up
//!  Awaiting       none                                    the upstream, or the client's hang-up
//!  Receiving      upstream ─► transport ─► relay          the upstream, or the client's hang-up;
//!                          ─► outbox ─► client            room at the client
//!  GivenUp        none: the client's or our own fault
//! ```
//!
//! Three promises are kept here, and only here: a thread never waits for the upstream without
//! seeing the client leave, it never waits while bytes for the client are in our memory (the
//! outbox), and it notices an answer that comes while the request's body is still being sent.
//! A client that has ended its side behind its request may be waiting or gone: where the endpoint
//! says so, it is answered for a while, and only a reset tells that it has left.
//!
//! ureq owns the transport, but calls it and the body's reader on the thread that sends the request.
//! So the exchange belongs to that thread ([`with`]), and nothing has to be locked.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::hope::Hope;
use crate::net::socket::{self, HANGUP, UNACKNOWLEDGED};
use crate::pairing::stream::{self, Stream};

/// A client's kernel takes this many bytes of an answer even while nobody reads them. Up to here, a
/// client that acknowledges nothing has vanished; behind it, it may pause for the stall time-out.
const KERNEL_BUFFER: usize = 32 * 1024;

/// Why an exchange is given up, where it isn't the upstream's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    ClientLeft,
    /// The client didn't read what we sent within the stall time-out.
    ClientStalled,
    /// No descriptor or memory for a connection to the upstream.
    OutOfResources,
    BodyMalformed(&'static str),
    /// The client sent nothing of the body within the body time-out, or too little while it had a turn.
    BodyTooSlow,
    /// The bodies of others took up all memory for them for as long as a request waits.
    NoMemoryForBody,
    /// The answer came first, and the body declares more bytes than can be skipped.
    BodyTooLong,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// None for health checks and tools.
    pub(crate) client: Option<Arc<Stream>>,
    /// The body's first bytes are at hand, so the head waits for them and both leave in one packet.
    pub(crate) holds_head: bool,
    /// The body is worth larger buffers and more patience.
    pub(crate) is_large: bool,
    /// The upstream is another machine's proxy, not this machine's Ollama: keys count.
    pub(crate) is_lan: bool,
    /// A kept connection will do, because nothing is lost if that has died. A new one can't be stale;
    /// what must not be sent twice needs one.
    pub(crate) may_reuse: bool,
    /// How long connecting may take; none for as long as usual.
    pub(crate) connect: Option<Duration>,
    /// How long it is tried again while there is hope, where no other upstream would do.
    pub(crate) patience: Option<(Duration, Hope)>,
    /// How long a peer may take nothing of what we send.
    pub(crate) stall: Duration,
    /// So long a client is answered that has ended its side behind its request, and may be gone. At
    /// zero, it has left.
    pub(crate) half_closed: Duration,
}

/// How far an attempt has come. It only moves forward.
#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Connecting,
    /// `heeds_input` ends with an interim response, behind which input tells nothing.
    Sending {
        upstream: Arc<Stream>,
        heeds_input: bool,
    },
    AnsweredEarly,
    Awaiting,
    Receiving,
    GivenUp(Fault),
}

/// How an attempt failed that brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Unreached,
    /// The connection had served another request before, and may have died since.
    Stale,
    /// The upstream has got some of the request.
    Unanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    Ready,
    /// The upstream has answered although the request isn't sent yet.
    Answered,
    TimedOut,
}

/// The exchange of a thread; see the module's text.
#[derive(Debug, Default)]
pub(crate) struct ExchangeIo {
    pub(super) attempt: Attempt,
    pub(super) phase: Phase,
    /// The connection has served another request before.
    pub(super) is_reused: bool,
    outbox: Vec<u8>,
    /// Bytes that the client got in this attempt, up to [`KERNEL_BUFFER`].
    answered: usize,
    /// Reading the answer fails then, and may go on afterwards.
    pub(crate) look_until: Option<Instant>,
    /// The answer's body comes in chunks, and begins behind its head.
    pub(super) begins_chunks: bool,
    /// Bytes of the request's body that, at least, weren't taken from the client's socket.
    pub(crate) unreceived: u64,
    /// The client has ended its side, and is waited with until then.
    half_closed_until: Option<Instant>,
}

thread_local! {
    static CURRENT: RefCell<ExchangeIo> = RefCell::default();
}

/// Uses the exchange of this thread. `act` must not call this again.
pub(crate) fn with<T>(act: impl FnOnce(&mut ExchangeIo) -> T) -> T {
    CURRENT.with_borrow_mut(act)
}

/// Whether a client is seen to have left, by what its connection tells without waiting.
pub(crate) fn has_left(client: &Stream, half_closed: Duration) -> bool {
    socket::is_gone(client.socket(), leaves_by(half_closed))
}

/// What tells it: that the client has ended its side, unless it may still be answered then.
fn leaves_by(half_closed: Duration) -> PollFlags {
    if half_closed.is_zero() { HANGUP } else { PollFlags::empty() }
}

impl ExchangeIo {
    /// Starts an attempt. What was meant for the client before is dropped.
    pub(crate) fn begin(&mut self, attempt: Attempt) {
        let mut outbox = take(&mut self.outbox); // Its memory serves the next answer.
        outbox.clear();
        *self = ExchangeIo { attempt, outbox, ..ExchangeIo::default() };
    }

    pub(crate) fn end(&mut self) {
        if let Some(client) = self.attempt.client.take()
            && self.answered >= KERNEL_BUFFER
        {
            // The next answer starts short again. If this fails, the longer limit holds.
            let _ = socket::limit_unacknowledged(client.socket(), UNACKNOWLEDGED);
        }
        self.phase = Phase::default();
    }

    pub(crate) fn is_answered_early(&self) -> bool {
        matches!(self.phase, Phase::AnsweredEarly)
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        match self.phase {
            Phase::GivenUp(fault) => Some(fault),
            _ => None,
        }
    }

    pub(crate) fn failure(&self) -> Failure {
        match self.phase {
            Phase::Connecting => Failure::Unreached,
            Phase::Sending { .. } | Phase::Awaiting if self.is_reused => Failure::Stale,
            _ => Failure::Unanswered,
        }
    }

    /// Whether the client is seen to have left.
    pub(crate) fn has_client_left(&self) -> bool {
        let Attempt { client, half_closed, .. } = &self.attempt;
        client.as_ref().is_some_and(|client| has_left(client, *half_closed))
    }

    /// Gives the exchange up; returns the error that ends the call it happened in.
    pub(crate) fn give_up(&mut self, fault: Fault) -> io::Error {
        self.phase = Phase::GivenUp(fault);
        // Not one of the kinds that ureq takes for the end of a body.
        io::Error::new(ErrorKind::BrokenPipe, "the exchange was given up")
    }

    /// The transport has sent all that it gets of the request, or read the answer's first bytes.
    pub(super) fn advance(&mut self, phase: Phase) {
        if !self.is_answered_early() {
            self.phase = phase;
        }
    }

    /// Sends bytes of the request, unless an answer comes first.
    pub(crate) fn send_upstream(&mut self, upstream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.is_answered_early() {
            match upstream.try_write(bytes) {
                Ok(0) => drop(self.await_room(upstream)?),
                Ok(n) => bytes = &bytes[n..],
                // It closed while we were sending: an answer may be there to read nevertheless.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ) && self.note_input(upstream).unwrap_or(false) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the upstream's window has taken all that was sent, or an answer comes.
    pub(super) fn drain_upstream(&mut self, upstream: &Stream) -> io::Result<()> {
        socket::drain_before_writable(upstream.socket(), true);
        let mut drained = Ok(false);
        while matches!(drained, Ok(false)) && !self.is_answered_early() {
            drained = self.await_room(upstream);
        }
        socket::drain_before_writable(upstream.socket(), false);
        drained.map(drop)
    }

    /// Waits until the upstream takes more of the request. False when it has sent something instead.
    fn await_room(&mut self, upstream: &Stream) -> io::Result<bool> {
        let events = match self.phase {
            Phase::Sending { heeds_input: true, .. } => PollFlags::OUT | PollFlags::IN,
            _ => PollFlags::OUT,
        };
        match self.wait_upstream(upstream, events, Some(self.attempt.stall))? {
            Woken::Ready => return Ok(true),
            Woken::TimedOut => return Err(ErrorKind::TimedOut.into()),
            Woken::Answered => drop(self.note_input(upstream)?),
        }
        Ok(false)
    }

    /// Waits for an event of the upstream while watching the client, after the outbox is flushed.
    pub(crate) fn wait_upstream(
        &mut self,
        upstream: &Stream,
        events: PollFlags,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        self.flush()?;
        let hangup = self.hangup();
        let mut watched = self.attempt.client.as_deref().map(|client| (client, hangup));
        loop {
            let left =
                self.half_closed_until.map(|at| at.saturating_duration_since(Instant::now()));
            let wait = timeout.into_iter().chain(left).min();
            let (own, other) = stream::wait((upstream, events), watched, wait)?;
            if let Some((client, _)) = watched.filter(|_| !other.is_empty()) {
                if !socket::has_left(client.socket(), other) {
                    // The rest of the body or the next request is waiting there, so that of a
                    // hang-up only a reset can be seen.
                    watched = Some((client, PollFlags::empty()));
                } else if self.may_be_half_closed(client, other) {
                    self.half_closed_until = Some(Instant::now() + self.attempt.half_closed);
                    watched = Some((client, PollFlags::empty()));
                } else {
                    return Err(self.give_up(Fault::ClientLeft));
                }
                if own.is_empty() {
                    continue;
                }
            }
            if own.is_empty() && left.is_some() && left == wait {
                return Err(self.give_up(Fault::ClientLeft));
            }
            let wanted = PollFlags::OUT.intersection(events);
            return Ok(match own {
                _ if own.is_empty() => Woken::TimedOut,
                _ if !wanted.is_empty() && !own.intersects(wanted) => Woken::Answered,
                _ => Woken::Ready,
            });
        }
    }

    /// The events by which the client leaves, besides a broken connection.
    fn hangup(&self) -> PollFlags {
        if self.half_closed_until.is_some() { PollFlags::empty() } else { HANGUP }
    }

    /// Whether a client that has ended its side may be one that waits for the answer: it has sent the
    /// whole request, the end of which may be unread in the kernel. A proxy of ours doesn't do that.
    fn may_be_half_closed(&self, client: &Stream, events: PollFlags) -> bool {
        !self.attempt.half_closed.is_zero()
            && !socket::is_broken(client.socket(), events)
            && client.key().is_none()
            && (self.unreceived == 0 || self.unreceived <= socket::unread(client.socket()))
    }

    /// Waits for bytes of the client's body while watching the upstream for an early answer; an error
    /// also when the upstream closes its connection.
    pub(crate) fn wait_client(&mut self, client: &Stream, timeout: Duration) -> io::Result<Woken> {
        self.flush()?;
        let upstream = match &self.phase {
            Phase::Sending { upstream, heeds_input: true } => Some(Arc::clone(upstream)),
            _ => None,
        };
        let watched = upstream.as_deref().map(|upstream| (upstream, PollFlags::IN));
        let (own, other) = stream::wait((client, PollFlags::IN), watched, Some(timeout))?;
        if let Some(upstream) = upstream.as_deref().filter(|_| !other.is_empty())
            && self.note_input(upstream)?
        {
            return Ok(Woken::Answered);
        }
        Ok(if own.is_empty() && other.is_empty() { Woken::TimedOut } else { Woken::Ready })
    }

    /// Looks at what the upstream sent while the body is on its way: true for an answer, false for
    /// an interim response, an error when it closed the connection instead. What was kept of the body
    /// can be sent elsewhere.
    fn note_input(&mut self, upstream: &Stream) -> io::Result<bool> {
        let mut start = [0; 10];
        let is_interim = match upstream.peek(&mut start) {
            // Not one of the kinds that ureq takes for the end of a body.
            Ok(0) => return Err(ErrorKind::ConnectionReset.into()),
            Ok(n) => n == 10 && start.starts_with(b"HTTP/1.") && start[9] == b'1',
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        match &mut self.phase {
            Phase::Sending { heeds_input, .. } if is_interim => *heeds_input = false,
            phase if !is_interim => *phase = Phase::AnsweredEarly,
            _ => {}
        }
        Ok(!is_interim)
    }

    /// Puts bytes for the client into the outbox. They leave with [`flush`](Self::flush), at the
    /// latest before the thread waits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.send(&[])
    }

    /// Sends the outbox to the client, then these bytes. If it fails, the exchange is given up.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.outbox.is_empty() && bytes.is_empty() {
            return Ok(());
        }
        let Attempt { client: Some(client), stall, .. } = &self.attempt else { return Ok(()) };
        let stall = *stall;
        let before = self.answered;
        self.answered = KERNEL_BUFFER.min(before + self.outbox.len() + bytes.len());
        if before < KERNEL_BUFFER && self.answered == KERNEL_BUFFER {
            let _ = socket::limit_unacknowledged(client.socket(), stall.max(UNACKNOWLEDGED));
        }
        let hangup = leaves_by(self.attempt.half_closed);
        let sent = client
            .write_watching(&self.outbox, stall, hangup)
            .and_then(|()| client.write_watching(bytes, stall, hangup));
        self.outbox.clear();
        sent.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => self.give_up(Fault::ClientStalled),
            _ => self.give_up(Fault::ClientLeft),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use super::*;
    use crate::net::os::loopback_pair;

    #[test]
    fn who_ends_its_side_may_wait_for_the_answer_if_all_can_be_here() {
        let half_closed = Duration::from_secs(9);
        for (sent, unreceived, half_closed, may_wait) in [
            (0, 0, half_closed, true),
            (7, 7, half_closed, true),
            // The last chunk is among them, or they are in front of a cut.
            (7, 1, half_closed, true),
            (7, 8, half_closed, false),
            (0, 1, half_closed, false),
            (7, 7, Duration::ZERO, false),
        ] {
            let (mut near, far) = loopback_pair().unwrap();
            near.write_all(&vec![b'x'; sent]).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            let client = Arc::new(Stream::new(far));
            let (events, _) = stream::wait((&client, HANGUP), None, None).unwrap();
            let attempt =
                Attempt { client: Some(Arc::clone(&client)), half_closed, ..Attempt::default() };
            let io = ExchangeIo { attempt, unreceived, ..ExchangeIo::default() };
            let row = format!("{unreceived} of {sent}, {half_closed:?}");
            assert_eq!(io.may_be_half_closed(&client, events), may_wait, "{row}");
        }
    }
}
