//! ureq's transport: one connection to an upstream, on a non-blocking socket.
//!
//! What an exchange promises (see [`exchange_io`]) has to be kept where its bytes move, and those of
//! the upstream move in ureq's reads and writes.

use std::io::{self, ErrorKind};
use std::mem::take;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::Authority;
use rustix::event::PollFlags;
use ureq::Timeout;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use super::buffers::{GrowingBuffers, LARGE, SMALL};
use super::exchange_io::{self, Attempt, ExchangeIo, Fault, Phase, Woken};
use super::hope::Hope;
use crate::net::socket::{self, UNACKNOWLEDGED};
use crate::pairing::keyring::Keyring;
use crate::pairing::secure::{self, SecureError};
use crate::pairing::stream::Stream;

/// A request on a connection that was used before must be acknowledged within this: a machine of a
/// LAN does that in milliseconds, and one that has gone or moved never. Then a new connection tells
/// which.
const PROOF_TIME: Duration = Duration::from_secs(1);
/// An answer that comes before this is proof enough, and costs no system call.
const PROMPT: Duration = Duration::from_millis(300);

/// Our URIs hold addresses, so there is nothing to look up (and no thread to do it in).
#[derive(Debug)]
pub(super) struct Literal;

impl Resolver for Literal {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
        let address = authority.parse().map_err(|_| ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        addresses.push(address);
        Ok(addresses)
    }
}

#[derive(Debug)]
pub(super) struct IoConnector {
    pub(super) keyring: Arc<Keyring>,
}

impl Connector for IoConnector {
    type Out = IoTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let address = details.addrs.first().copied().ok_or(ureq::Error::HostNotFound)?;
        let Attempt { client, is_lan, half_closed, connect, patience, .. } =
            exchange_io::with(|io| io.attempt.clone());
        let left = details.timeout.not_zero().map(|timeout| *timeout);
        let until = left.map(|left| Instant::now() + left);
        let timeout = left.into_iter().chain(connect).min().unwrap_or(UNACKNOWLEDGED);
        // Of one that may be half closed, its end tells nothing; and connecting is short.
        let client = client.filter(|_| half_closed.is_zero());
        let try_once = || match is_lan {
            true => secure::connect(&self.keyring, address, timeout, until, client.as_deref()),
            false => secure::connect_plain(address, timeout, client.as_deref()),
        };
        let start = Instant::now();
        let is_worth_it = |error: &SecureError| {
            let is_late =
                matches!(error, SecureError::Connect(it) if it.kind() == ErrorKind::TimedOut);
            let may_wait =
                |(time, hope): &(Duration, Hope)| start.elapsed() < *time && !hope.is_gone();
            is_late && patience.as_ref().is_some_and(may_wait)
        };
        let key_changes = self.keyring.changes();
        let mut stream = try_once();
        // Each try sends a SYN at once and another one after a second, more than the kernel would.
        while stream.as_ref().err().is_some_and(is_worth_it) {
            stream = try_once();
        }
        Ok(Some(IoTransport {
            stream: stream.map_err(connect_error)?,
            address,
            is_lan,
            keyring: Arc::clone(&self.keyring),
            key_changes,
            buffers: GrowingBuffers::default(),
            held: Vec::new(),
            requests: 0,
            state: State::Idle,
            unacknowledged: UNACKNOWLEDGED,
        }))
    }
}

fn connect_error(error: SecureError) -> ureq::Error {
    let give_up = |fault| exchange_io::with(|io| io.give_up(fault));
    match error {
        SecureError::Connect(error) => match error.kind() {
            ErrorKind::TimedOut => ureq::Error::Timeout(Timeout::Connect),
            ErrorKind::ConnectionAborted => give_up(Fault::ClientLeft).into(),
            _ => {
                if socket::is_shortage(&error) {
                    give_up(Fault::OutOfResources);
                }
                error.into()
            }
        },
        error => io::Error::new(ErrorKind::PermissionDenied, error.to_string()).into(),
    }
}

/// What a connection is in the midst of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Sending,
    /// The request was sent; nothing of the answer came.
    Awaiting(Proof),
    Receiving,
}

/// Whether a connection that was used before still leads to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It does, or it is new.
    Given,
    Awaited,
    /// No answer came soon: now the kernel ends the connection unless the request was acknowledged.
    Demanded,
}

#[derive(Debug)]
pub(super) struct IoTransport {
    stream: Arc<Stream>,
    address: SocketAddr,
    is_lan: bool,
    keyring: Arc<Keyring>,
    /// The keyring's, when it was connected.
    key_changes: usize,
    buffers: GrowingBuffers,
    /// The head of a request, until the first bytes of its body.
    held: Vec<u8>,
    requests: u32,
    state: State,
    /// How long sent bytes may stay unacknowledged, as the socket was told.
    unacknowledged: Duration,
}

impl IoTransport {
    fn limit_unacknowledged(&mut self, limit: Duration) {
        if self.unacknowledged != limit {
            // If this fails, the system's own limits hold; nothing is lost.
            let _ = socket::limit_unacknowledged(self.stream.socket(), limit);
            self.unacknowledged = limit;
        }
    }

    fn begin_sending(&mut self) {
        self.state = State::Sending;
        self.buffers.begin_answer();
        self.requests += 1;
        let stall = exchange_io::with(|io| {
            io.is_reused = self.requests > 1;
            io.phase = Phase::Sending { upstream: Arc::clone(&self.stream), heeds_input: true };
            io.attempt.is_large.then_some(io.attempt.stall)
        });
        self.limit_unacknowledged(stall.map_or(UNACKNOWLEDGED, |stall| stall.max(UNACKNOWLEDGED)));
    }

    fn send_held(&mut self) -> io::Result<()> {
        if !self.held.is_empty() {
            exchange_io::with(|io| io.send_upstream(&self.stream, &self.held))?;
            self.held.clear();
        }
        Ok(())
    }

    fn finish_sending(&mut self) -> io::Result<()> {
        self.send_held()?;
        // A reader that pauses closes the window, and what waits before it looks like the bytes that
        // a vanished peer doesn't acknowledge. So the limit for those holds once none wait.
        if exchange_io::with(|io| io.attempt.is_large) {
            exchange_io::with(|io| io.drain_upstream(&self.stream))?;
        }
        exchange_io::with(|io| io.advance(Phase::Awaiting));
        self.limit_unacknowledged(UNACKNOWLEDGED);
        let proof = if self.requests > 1 { Proof::Awaited } else { Proof::Given };
        self.state = State::Awaiting(proof);
        Ok(())
    }

    /// Reads once; `None` when nothing is there, `Some(0)` at the end.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        let space = self.buffers.input_append_buf();
        let len = space.len();
        // Unlike an end of file, a reset can't be the end of an answer.
        let read =
            self.stream.try_read(space).map_err(|e| io::Error::new(ErrorKind::BrokenPipe, e))?;
        let Some(n) = read else { return Ok(None) };
        self.buffers.was_filled = n == len;
        self.buffers.input_appended(n);
        if n > 0 && self.state != State::Receiving {
            self.state = State::Receiving;
            exchange_io::with(|io| io.advance(Phase::Receiving));
            self.limit_unacknowledged(UNACKNOWLEDGED);
        }
        Ok(Some(n))
    }
}

impl Drop for IoTransport {
    /// A request that was given up half-way: a plain close would leave its last bytes queued in
    /// front of the FIN, and an Ollama that doesn't read would never hear of it.
    fn drop(&mut self) {
        if self.state == State::Sending {
            socket::reset_on_close(self.stream.socket());
        }
    }
}

impl Transport for IoTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        if self.state == State::Receiving && exchange_io::with(|io| take(&mut io.begins_chunks)) {
            self.buffers.begin_chunks();
        }
        if self.buffers.wanted_output < LARGE {
            let is_large = exchange_io::with(|io| io.attempt.is_large);
            self.buffers.wanted_output = if is_large { LARGE } else { SMALL };
        }
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        if self.state != State::Sending {
            self.begin_sending();
        }
        if exchange_io::with(|io| take(&mut io.attempt.holds_head)) || !self.held.is_empty() {
            let is_head = self.held.is_empty();
            self.held.extend_from_slice(&self.buffers.output[..amount]);
            return if is_head { Ok(()) } else { Ok(self.send_held()?) };
        }
        Ok(exchange_io::with(|io| io.send_upstream(&self.stream, &self.buffers.output[..amount]))?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        match self.state {
            State::Sending => self.finish_sending()?,
            // The answer comes in pieces, perhaps for minutes.
            State::Receiving => self.buffers.settle(),
            State::Idle | State::Awaiting(_) => {}
        }
        // Everything that was read before is with the client before more is read.
        exchange_io::with(ExchangeIo::flush)?;
        let limit = timeout.for_read();
        // One for all waits below: what comes of chunks' framing isn't seen by ureq, and buys no time.
        let deadline = limit.not_zero().map(|limit| Instant::now() + *limit);
        // Bulk data is usually there already; tokens never are.
        let mut is_likely = self.buffers.was_filled;
        loop {
            self.buffers.check()?;
            if is_likely && let Some(n) = self.receive()? {
                // Of chunks, all that came may be what ureq needn't see.
                if n > 0 && self.buffers.input().is_empty() {
                    continue;
                }
                return Ok(n > 0);
            }
            let proof = match self.state {
                State::Awaiting(proof) => proof,
                _ => Proof::Given,
            };
            let look = exchange_io::with(|io| io.look_until);
            let until = look.into_iter().chain(deadline).min();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let proof_time = match proof {
                Proof::Given => None,
                Proof::Awaited => Some(PROMPT),
                Proof::Demanded => Some(PROOF_TIME * 2),
            };
            let wait = left.into_iter().chain(proof_time).min();
            let woken =
                exchange_io::with(|io| io.wait_upstream(&self.stream, PollFlags::IN, wait))?;
            match (woken, proof) {
                (Woken::Ready | Woken::Answered, _) => is_likely = true,
                (Woken::TimedOut, Proof::Awaited) if wait != left => {
                    self.limit_unacknowledged(PROOF_TIME);
                    self.state = State::Awaiting(Proof::Demanded);
                }
                // Without an error by now it was acknowledged; the answer may take minutes.
                (Woken::TimedOut, Proof::Demanded) if wait != left => {
                    self.limit_unacknowledged(UNACKNOWLEDGED);
                    self.state = State::Awaiting(Proof::Given);
                }
                (Woken::TimedOut, _) => return Err(ureq::Error::Timeout(limit.reason)),
            }
        }
    }

    /// ureq asks when it puts a connection into its pool, right after an answer, and when it takes
    /// it out again: what the first look would cost a system call to see, the second sees.
    fn is_open(&mut self) -> bool {
        if self.state == State::Receiving {
            self.state = State::Idle;
            // Among what others free, its memory would keep theirs from going back.
            let (is_of_client, is_whole) =
                exchange_io::with(|io| (io.attempt.client.is_some(), !io.is_answered_early()));
            self.buffers.rest(is_of_client);
            // Behind a request that wasn't sent whole nothing may follow.
            return is_whole;
        }
        // The machine may have been paired since this connection was made.
        let is_plain = self.stream.key().is_none() && self.is_lan;
        if is_plain && !self.keyring.keeps_plain(self.address, self.key_changes) {
            return false;
        }
        let mut next = [0];
        self.stream.is_drained()
            && matches!(self.stream.socket().peek(&mut next), Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}
