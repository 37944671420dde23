//! One client's connection: heads in, and how it is closed.
//!
//! Every byte from the network is met here first, under a size limit and a deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connections::Place;
use crate::access::permissions::Caller;
use crate::config::{Limits, Timing};
use crate::http::head::{self, Head, HeadLimits, MAX_EMPTY_LINES, Refusal};
use crate::pairing::stream::{self, Stream};
use crate::upstream::buffers::{LARGE, SMALL};

/// How long a worker waits for a request before the connection is [parked](super::parking).
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// A connection in a reserved place has so long to say what it wants.
const RESERVE_TIME: Duration = Duration::from_secs(1);
/// An unread request is drained for so long before the close, so that the client gets to read the
/// answer instead of a reset. `ollama create` sends a blob of which the server doesn't read a
/// byte if it has it already; Go's own server lingers as long.
const LINGER_TIME: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Arc<Stream>,
    pub(super) peer: SocketAddr,
    caller: Caller,
    /// `buffer[start..end]` was received and not used yet; what is behind it is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that are read at a time: few, until a client sends faster than that.
    read_size: usize,
    /// The client has just been answered, so its next request is hardly here yet.
    is_answered: bool,
    /// Whether its first byte was looked at, which tells if it is encrypted.
    pub(super) is_greeted: bool,
    /// Whether its first request has passed the gate.
    pub(super) has_passed: bool,
    /// When it has to be gone, unless a request comes.
    deadline: Instant,
    /// Bytes of the present request's body that were taken from the connection.
    pub(super) body_bytes: u64,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Next {
    Head(Box<Head>),
    /// Something that isn't served; to be answered, then closed.
    Refused(Refusal),
    /// Nothing for now.
    Quiet,
    /// Nothing more: closed, idle for too long, or we are stopping.
    Closed,
}

impl Connection {
    /// `idle` is how long it may wait for a request.
    pub(super) fn new(stream: Arc<Stream>, peer: SocketAddr, place: Place, idle: Duration) -> Self {
        let local = stream.socket().local_addr().ok().map(|local| local.ip());
        Connection {
            caller: Caller::of(peer.ip(), local),
            stream,
            peer,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            read_size: SMALL,
            is_answered: false,
            is_greeted: false,
            has_passed: false,
            deadline: Instant::now() + if place.is_reserve() { RESERVE_TIME } else { idle },
            body_bytes: 0,
            place,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The peer has shaken hands, which anyone can who repeats what he heard. Only a request proves that
    /// he has the key, and it has to come within this time.
    pub(super) fn expect_within(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    pub(super) fn caller(&self) -> Caller {
        if self.stream.key().is_some() { Caller::Paired } else { self.caller }
    }

    /// Whether the caller is a program of this machine, whatever key it has.
    pub(super) fn is_own(&self) -> bool {
        self.caller == Caller::Own
    }

    pub(super) fn received(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once into the buffer; `None` when nothing is there, `Some(0)` at the end.
    pub(super) fn fill(&mut self) -> io::Result<Option<usize>> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let most = self.end + self.read_size;
        if self.buffer.len() < most {
            self.buffer.resize(most, 0);
        }
        let read = self.stream.try_read(&mut self.buffer[self.end..most])?;
        let n = read.unwrap_or(0);
        self.end += n;
        if n == self.read_size {
            self.read_size = LARGE;
        }
        Ok(read)
    }

    /// Waits for the next head: for its first byte for [`QUIET`] at a time, for the rest up to the head's
    /// deadline.
    pub(super) fn next_head(&mut self, timing: &Timing, limits: &Limits) -> Next {
        let limits = HeadLimits { max_bytes: limits.max_head, max_fields: limits.max_fields };
        let mut scanned = 0;
        let mut is_answered = std::mem::take(&mut self.is_answered);
        let mut reads_first = !is_answered;
        let most = if self.place.is_reserve() { RESERVE_TIME } else { Duration::MAX };
        let mut deadline = self.deadline;
        let mut has_begun = false;
        let mut empty_lines = 0;
        self.body_bytes = 0;
        loop {
            while empty_lines < MAX_EMPTY_LINES
                && let Some(len) = head::empty_line(self.received())
            {
                self.consume(len);
                empty_lines += 1;
                scanned = 0;
            }
            // Half an empty line isn't the beginning of a request.
            let is_empty = matches!(self.received(), b"" | b"\r");
            if is_empty && std::mem::take(&mut is_answered) {
                self.place.set_idle();
            }
            if !is_empty && !has_begun {
                has_begun = true;
                deadline = Instant::now() + timing.head_timeout.min(most);
                if !self.place.begin_head() {
                    return Next::Refused(Refusal { status: 503, reason: "ollana is stopping" });
                }
            }
            match head::find_end(self.received(), scanned, limits) {
                Ok(Some(len)) => {
                    let parsed = head::parse(&self.received()[..len], limits);
                    self.consume(len);
                    if !self.place.begin_request() {
                        return Next::Closed;
                    }
                    return match parsed {
                        Ok(head) => Next::Head(Box::new(head)),
                        Err(refusal) => Next::Refused(refusal),
                    };
                }
                Ok(None) => scanned = self.received().len(),
                Err(refusal) => return Next::Refused(refusal),
            }
            if std::mem::replace(&mut reads_first, true) {
                match self.fill() {
                    Ok(Some(0)) | Err(_) => return Next::Closed,
                    Ok(Some(_)) => continue,
                    Ok(None) => {}
                }
            }
            let patience = if self.received().is_empty() { QUIET } else { Duration::MAX };
            match self.wait_for(patience, deadline) {
                Ok(true) => {}
                Ok(false) if has_begun => {
                    let reason = "the head took too long";
                    return Next::Refused(Refusal { status: 408, reason });
                }
                Ok(false) if Instant::now() < deadline => return Next::Quiet,
                Ok(false) | Err(_) => return Next::Closed,
            }
        }
    }

    /// Waits for the first byte for [`QUIET`]; false when none came.
    pub(super) fn begins_soon(&self) -> io::Result<bool> {
        self.wait_for(QUIET, self.deadline)
    }

    /// Waits for bytes; false when the time is up before.
    fn wait_for(&self, patience: Duration, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now()).min(patience);
        let (events, _) = stream::wait((&self.stream, PollFlags::IN), None, Some(left))?;
        Ok(!events.is_empty())
    }

    /// Whether it goes on, as far as the kernel knows.
    pub(super) fn is_open(&self) -> bool {
        match self.stream.socket().peek(&mut [0]) {
            Ok(n) => n > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Gives its memory up while nothing is expected.
    pub(super) fn rest(&mut self) {
        self.release_buffer();
        self.is_answered = false;
    }

    /// An answer begins that may take minutes: nothing is received before it has ended.
    pub(super) fn release_buffer(&mut self) {
        if self.received().is_empty() {
            self.buffer = Vec::new();
        }
    }

    /// The exchange is over; the connection waits for the next one.
    pub(super) fn set_answered(&mut self, idle: Duration) {
        if self.received().is_empty() {
            // A large head or body leaves no large buffer behind on an idle connection.
            self.buffer.truncate(SMALL);
            self.buffer.shrink_to(SMALL);
            self.read_size = SMALL;
        }
        self.is_answered = true;
        self.deadline = Instant::now() + idle;
    }

    /// Closes after an answer that left part of a request unread.
    pub(super) fn close_gently(&self) {
        self.stream.finish();
        let deadline = Instant::now() + LINGER_TIME;
        let mut scratch = [0; SMALL];
        while Instant::now() < deadline {
            match self.stream.try_read(&mut scratch) {
                Ok(Some(1..)) => {}
                Ok(None) if self.wait_for(LINGER_TIME, deadline).unwrap_or(false) => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{IpAddr, TcpListener, TcpStream};

    use super::super::connections::{Connections, Full, Process};
    use super::*;

    const IDLE: Duration = Duration::from_millis(200);

    #[test]
    fn behind_its_request_a_connection_is_idle_whatever_empty_lines_follow() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let pair = || {
            let far = TcpStream::connect(listener.local_addr().expect("it")).expect("a connection");
            let (near, peer) = listener.accept().expect("its other end");
            near.set_nonblocking(true).expect("non-blocking");
            (Arc::new(Stream::new(near)), peer, far)
        };
        for behind in ["", "\r\n", "\n", "\r\n\r\n", "\r", "\r\n\r"] {
            let connections = Arc::new(Connections::new(2, 2, Process::of_its_own(usize::MAX)));
            let enter = |stream: &Arc<Stream>, address: [u8; 4]| {
                connections.enter(stream, IpAddr::from(address))
            };
            let (own, newcomer) = ([127, 0, 0, 1], [10, 0, 0, 1]);
            let pairs = [pair(), pair(), pair()];
            let busy = enter(&pairs[0].0, own).expect("a place");
            assert!(busy.begin_head() && busy.begin_request());
            let (near, peer, far) = &pairs[1];
            let place = enter(near, own).expect("a place");
            let mut connection = Connection::new(Arc::clone(near), *peer, place, IDLE);
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\n\r\n{behind}");
            (&*far).write_all(request.as_bytes()).expect("sent");
            let next = connection.next_head(&Timing::default(), &Limits::default());
            assert!(matches!(next, Next::Head(_)), "{behind:?}: {next:?}");
            let full = enter(&pairs[2].0, newcomer).err();
            assert_eq!(full, Some(Full::Total), "{behind:?}: it has a request");
            connection.set_answered(IDLE);
            let next = connection.next_head(&Timing::default(), &Limits::default());
            assert!(matches!(next, Next::Quiet | Next::Closed), "{behind:?}: {next:?}");
            assert!(enter(&pairs[2].0, newcomer).is_ok(), "{behind:?}: it doesn't give way");
        }
    }
}
