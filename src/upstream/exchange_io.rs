//! What the two sockets of one exchange know of each other.
//!
//! A worker thread serves one exchange at a time, with one blocking call after another. The
//! io lets the innermost of them, ureq's transport, keep three promises:
//!
//! - it never blocks on the upstream without seeing the client leave;
//! - it never blocks while bytes for the client are still in our memory (the *outbox*);
//! - it notices an answer that comes while the request's body is still being sent.
//!
//! Only the worker's own thread locks it, so the lock is never contended; ureq's traits ask for
//! `Sync`.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::PollFlags;

use crate::net::socket::{self, HANGUP, UNACKNOWLEDGED};
use crate::pairing::stream::{self, Stream};
use crate::system::lock;

/// A client may pause for the whole stall time-out once its answer is longer than this, which
/// its kernel takes even while nobody reads. Up to there, a client that acknowledges nothing
/// has vanished.
const PROMPT_BYTES: usize = 32 * 1024;

/// Why an exchange can't go on, where it isn't the upstream's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client closed its connection or reset it.
    ClientLeft,
    /// The client didn't read what we sent for too long.
    ClientStalled,
    /// No descriptor or memory for a connection to the upstream.
    OutOfResources,
}

/// How far one attempt to reach an upstream has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes went to the upstream.
    pub sent: bool,
    /// The connection had served another request before.
    pub reused: bool,
    /// Bytes of an answer came.
    pub received: bool,
    /// The answer began before the whole body was sent; the rest of it isn't sent.
    pub answered_early: bool,
    /// What ended the exchange on our or the client's side.
    pub fault: Option<Fault>,
}

/// What is known of an attempt before it starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attempt {
    /// Keep the request's head until its body's first bytes, which are at hand, so that both leave
    /// in one packet.
    pub holds_head: bool,
    /// The body is worth larger buffers.
    pub is_large: bool,
    /// The upstream is another machine's proxy, not this machine's Ollama: keys count.
    pub is_lan: bool,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Arc<Stream>>,
    upstream: Option<Arc<Stream>>,
    outbox: Vec<u8>,
    /// Bytes that the client got in this attempt, up to [`PROMPT_BYTES`].
    answered: usize,
    progress: Progress,
    attempt: Attempt,
    /// What the upstream sent while the body was on its way turned out to be no answer.
    ignores_input: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct ExchangeIo {
    state: Mutex<State>,
    stall: Duration,
}

/// What a wait on the upstream ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The awaited event.
    Ready,
    /// The upstream has answered although it wasn't asked for input.
    Answered,
    /// Nothing in time.
    TimedOut,
}

impl ExchangeIo {
    /// A io whose peers may stall for so long.
    pub fn new(stall: Duration) -> Self {
        ExchangeIo { state: Mutex::new(State::default()), stall }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How long a peer may stall.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Starts an attempt for this client (none for health checks).
    pub fn begin(&self, client: Option<Arc<Stream>>, attempt: Attempt) {
        let mut state = self.state();
        let outbox = std::mem::take(&mut state.outbox);
        *state = State { client, outbox, attempt, ..State::default() };
        state.outbox.clear();
    }

    /// Lets go of the sockets.
    pub fn end(&self) {
        let mut state = self.state();
        if let Some(client) = state.client.take().filter(|_| state.answered >= PROMPT_BYTES) {
            // The next answer starts short again. Without it the longer limit holds.
            let _ = socket::limit_unacknowledged(client.socket(), UNACKNOWLEDGED);
        }
        state.upstream = None;
    }

    /// How far the attempt has come.
    pub fn progress(&self) -> Progress {
        let state = self.state();
        Progress { ..state.progress }
    }

    /// Whether the body is worth larger buffers and more patience.
    pub(crate) fn is_large(&self) -> bool {
        self.state().attempt.is_large
    }

    /// Whether the upstream is another machine's proxy.
    pub(crate) fn is_lan(&self) -> bool {
        self.state().attempt.is_lan
    }

    /// Whether to keep these bytes back; true at most once per attempt.
    pub(crate) fn take_holds_head(&self) -> bool {
        std::mem::take(&mut self.state().attempt.holds_head)
    }

    /// Whether the rest of the request is to be dropped.
    pub fn answered_early(&self) -> bool {
        self.state().progress.answered_early
    }

    /// The transport is about to send on this socket.
    pub(crate) fn sending(&self, upstream: &Arc<Stream>, reused: bool) {
        let mut state = self.state();
        state.progress.sent = true;
        state.progress.reused = reused;
        if state.upstream.is_none() {
            state.upstream = Some(Arc::clone(upstream));
        }
    }

    /// The transport has read something.
    pub(crate) fn received(&self) {
        self.state().progress.received = true;
    }

    pub(crate) fn client(&self) -> Option<Arc<Stream>> {
        self.state().client.clone()
    }

    /// Records a fault and returns the error that ends the call it happened in.
    pub(crate) fn fail(&self, fault: Fault) -> io::Error {
        self.state().progress.fault = Some(fault);
        // Not one of the kinds that ureq takes for the end of a body.
        io::Error::new(ErrorKind::BrokenPipe, "the exchange was given up")
    }

    /// Waits for an event of the upstream while watching the client, after the outbox is flushed.
    pub(crate) fn wait_upstream(
        &self,
        upstream: &Stream,
        events: PollFlags,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        self.flush()?;
        let client = self.client();
        let mut watched = client.as_deref().map(|client| (client, HANGUP));
        loop {
            let (own, other) = stream::wait((upstream, events), watched, timeout)?;
            if let Some((client, _)) = watched.filter(|_| !other.is_empty()) {
                if socket::has_left(client.socket(), other) {
                    return Err(self.fail(Fault::ClientLeft));
                }
                if own.is_empty() {
                    watched = None; // The next request is waiting there; its hang-up can't be seen.
                    continue;
                }
            }
            let wanted = PollFlags::OUT.intersection(events);
            return Ok(if own.is_empty() {
                Woken::TimedOut
            } else if !wanted.is_empty() && !own.intersects(wanted) {
                Woken::Answered
            } else {
                Woken::Ready
            });
        }
    }

    /// Waits for bytes of the client's body while watching the upstream for an early answer.
    ///
    /// # Errors
    /// Those of poll(2), and when the upstream closes its connection.
    pub fn wait_client(&self, client: &Stream, timeout: Duration) -> io::Result<Woken> {
        self.flush()?;
        let upstream = {
            let state = self.state();
            state.upstream.clone().filter(|_| !state.ignores_input)
        };
        let watched = upstream.as_deref().map(|upstream| (upstream, PollFlags::IN));
        let (own, other) = stream::wait((client, PollFlags::IN), watched, Some(timeout))?;
        if let Some(upstream) = upstream.as_deref().filter(|_| !other.is_empty())
            && self.note_answer(upstream)?
        {
            return Ok(Woken::Answered);
        }
        Ok(if own.is_empty() && other.is_empty() { Woken::TimedOut } else { Woken::Ready })
    }

    /// Looks at what the upstream sent while the body is on its way: true for an answer, false for
    /// an interim response.
    ///
    /// # Errors
    /// When it closed the connection instead. What was kept of the body can be sent elsewhere.
    pub(crate) fn note_answer(&self, upstream: &Stream) -> io::Result<bool> {
        let mut start = [0; 10];
        let is_interim = match upstream.peek(&mut start) {
            // Not one of the kinds that ureq takes for the end of a body.
            Ok(0) => return Err(ErrorKind::ConnectionReset.into()),
            Ok(n) => n == 10 && start.starts_with(b"HTTP/1.") && start[9] == b'1',
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        state.ignores_input |= is_interim;
        state.progress.answered_early |= !is_interim;
        Ok(!is_interim)
    }

    /// Whether input of the upstream during the upload tells anything.
    pub(crate) fn heeds_input(&self) -> bool {
        !self.state().ignores_input
    }

    /// Puts bytes for the client into the outbox. They leave with [`flush`](Self::flush), at the
    /// latest before anyone waits.
    pub fn push(&self, bytes: &[u8]) {
        self.state().outbox.extend_from_slice(bytes);
    }

    /// Sends the outbox to the client.
    ///
    /// # Errors
    /// After recording the [`Fault`].
    pub fn flush(&self) -> io::Result<()> {
        self.send(&[])
    }

    /// Sends the outbox, then these bytes.
    ///
    /// # Errors
    /// After recording the [`Fault`].
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let (client, mut outbox, grown) = {
            let mut state = self.state();
            if state.outbox.is_empty() && bytes.is_empty() {
                return Ok(());
            }
            let before = state.answered;
            state.answered = PROMPT_BYTES.min(before + state.outbox.len() + bytes.len());
            let grown = before < PROMPT_BYTES && state.answered == PROMPT_BYTES;
            (state.client.clone(), std::mem::take(&mut state.outbox), grown)
        };
        let Some(client) = client else { return Ok(()) };
        if grown {
            let _ = socket::limit_unacknowledged(client.socket(), self.stall.max(UNACKNOWLEDGED));
        }
        let mut result = client.write_all(&outbox, self.stall);
        if result.is_ok() {
            result = client.write_all(bytes, self.stall);
        }
        outbox.clear();
        self.state().outbox = outbox; // Its memory serves the next answer.
        result.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => self.fail(Fault::ClientStalled),
            _ => self.fail(Fault::ClientLeft),
        })
    }
}
