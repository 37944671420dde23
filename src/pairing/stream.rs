//! One TCP connection of the data path, plain or encrypted: what is read and written is the same.
//!
//! An encrypted stream keeps the promises of a plain socket, on which the exchange relies: received
//! bytes that were decrypted, or can be, count as readable; a record that the kernel didn't take
//! whole counts as unwritten; a connection that ends without the peer's closing record is an
//! error, not an end.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;

use crate::net::socket::{self, HANGUP};
use crate::pairing::identity::KeyId;
use crate::pairing::noise::{Broken, MAX_RECORD, OVERHEAD, Session};

/// What an encrypted stream starts with for received records; enough for tokens …
const SMALL: usize = 2 * 1024;
/// … and what it grows to while they fill it: the longest record and more.
const LARGE: usize = 128 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    records: OnceLock<Box<Mutex<Records>>>,
    key: OnceLock<KeyId>,
}

impl Stream {
    /// A plain one, for now.
    pub fn new(socket: TcpStream) -> Self {
        Stream { socket, records: OnceLock::new(), key: OnceLock::new() }
    }

    /// From here on, both sides send records.
    pub fn encrypt(&self, session: Session, key: KeyId) {
        let _ = self.key.set(key);
        let _ = self.records.set(Box::new(Mutex::new(Records::new(session))));
    }

    /// The key that the peer has proved to have; none on a plain stream.
    pub fn key(&self) -> Option<KeyId> {
        self.key.get().copied()
    }

    /// The socket below, to watch it, to set options, or to end it.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Only one thread at a time reads or writes, so this never waits.
    fn records(&self) -> Option<MutexGuard<'_, Records>> {
        Some(self.records.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what is there; `None` when nothing is, 0 at the peer's end.
    ///
    /// # Errors
    /// Those of read(2), except interruptions and "would block"; `InvalidData` for a record that
    /// doesn't open, `ConnectionReset` for an end without a closing record.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.records() {
            None => socket::try_read(&self.socket, buffer),
            Some(mut records) => records.read(&self.socket, buffer),
        }
    }

    /// Looks at what is there without taking it; as [`try_read`](Self::try_read), with
    /// `WouldBlock` when nothing is.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.records() {
            None => self.socket.peek(buffer),
            Some(mut records) => {
                records.peek(&self.socket, buffer)?.ok_or(ErrorKind::WouldBlock.into())
            }
        }
    }

    /// Writes what the kernel takes now; 0 when it takes nothing more. After a 0, the next call
    /// must come with the same bytes: some of their record may be on the way.
    ///
    /// # Errors
    /// Those of write(2), except interruptions and "would block".
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.records() {
            None => socket::try_write(&self.socket, bytes),
            Some(mut records) => records.write(&self.socket, bytes),
        }
    }

    /// Writes all of it; a peer that takes nothing for `stall`, or leaves, is given up.
    ///
    /// # Errors
    /// `TimedOut` for a stalled peer, `BrokenPipe` for one that left, otherwise those of write(2).
    pub fn write_all(&self, mut bytes: &[u8], stall: Duration) -> io::Result<()> {
        let mut watched = HANGUP;
        while !bytes.is_empty() {
            match self.try_write(bytes)? {
                0 => {
                    let (events, _) =
                        socket::wait((&self.socket, PollFlags::OUT | watched), None, Some(stall))?;
                    if events.is_empty() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    if socket::has_left(&self.socket, events) {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                    if !events.contains(PollFlags::OUT) {
                        watched = PollFlags::empty(); // The next request is waiting there.
                    }
                }
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Says that nothing more comes; what was sent before is whole.
    pub fn finish(&self) {
        if let Some(mut records) = self.records() {
            records.finish(&self.socket);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Whether nothing was received that is still to be read, as far as that is known here.
    pub fn is_drained(&self) -> bool {
        self.records().is_none_or(|records| !records.has_input())
    }
}

/// Waits until one of the streams has one of its events, as `socket::wait` does. Bytes that wait in
/// our own memory count as input.
///
/// # Errors
/// Those of poll(2), except interruptions.
pub fn wait(
    first: (&Stream, PollFlags),
    second: Option<(&Stream, PollFlags)>,
    timeout: Option<Duration>,
) -> io::Result<(PollFlags, PollFlags)> {
    let held = |(stream, events): (&Stream, PollFlags)| match events.contains(PollFlags::IN) {
        true if !stream.is_drained() => PollFlags::IN,
        _ => PollFlags::empty(),
    };
    let (of_first, of_second) = (held(first), second.map_or(PollFlags::empty(), held));
    let is_held = !of_first.union(of_second).is_empty();
    let timeout = if is_held { Some(Duration::ZERO) } else { timeout };
    let second = second.map(|(stream, events)| (stream.socket(), events));
    let (one, other) = socket::wait((first.0.socket(), first.1), second, timeout)?;
    Ok((one | of_first, other | of_second))
}

/// The records of an encrypted stream.
#[derive(Debug)]
struct Records {
    session: Session,
    /// `received[ready]` was opened in its place and isn't read yet; `received[unread]`, behind it,
    /// came from the socket and isn't opened yet.
    received: Vec<u8>,
    ready: Range<usize>,
    unread: Range<usize>,
    /// `sealed[unsent]` waits for the kernel to take it; it holds `promised` bytes of a caller who
    /// was told that nothing of them was written.
    sealed: Vec<u8>,
    unsent: Range<usize>,
    promised: usize,
    has_ended: bool,
    /// Length of the record opened last.
    last: usize,
}

fn broken(error: Broken) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error.to_string())
}

impl Records {
    fn new(session: Session) -> Self {
        let none = 0..0;
        Records {
            session,
            received: Vec::new(),
            ready: none.clone(),
            unread: none.clone(),
            sealed: Vec::new(),
            unsent: none,
            promised: 0,
            has_ended: false,
            last: 0,
        }
    }

    /// Length of the next record, if it is here as a whole.
    fn next_record(&self) -> Option<usize> {
        let received = &self.received[self.unread.clone()];
        Session::record_len(received).filter(|len| *len <= received.len())
    }

    fn has_input(&self) -> bool {
        !self.ready.is_empty() || self.next_record().is_some()
    }

    /// Takes more from the socket, once all that was opened is read: `None` when nothing is there.
    fn receive(&mut self, socket: &TcpStream) -> io::Result<Option<()>> {
        if self.unread.is_empty() {
            self.unread = 0..0;
            self.ready = 0..0;
            self.let_go();
        }
        let wanted = Session::record_len(&self.received[self.unread.clone()]).unwrap_or(2);
        if self.unread.end == self.received.len()
            || self.unread.start + wanted > self.received.len()
        {
            self.received.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            // A record longer than what there was before, or reads that fill all there is.
            let is_tight = self.unread.len() * 2 >= self.received.len();
            let size = if is_tight { self.received.len() * 2 } else { self.received.len() };
            self.received.resize(size.clamp(SMALL, LARGE).max(wanted), 0);
        }
        match socket::try_read(socket, &mut self.received[self.unread.end..])? {
            None => Ok(None),
            Some(0) => Err(ErrorKind::ConnectionReset.into()),
            Some(n) => {
                self.unread.end += n;
                Ok(Some(()))
            }
        }
    }

    /// Opens the next record in its place, if it is here as a whole. What was opened before must
    /// have been read.
    fn open(&mut self) -> io::Result<bool> {
        let Some(len) = self.next_record().filter(|_| !self.has_ended) else { return Ok(false) };
        let start = self.unread.start;
        let record = &mut self.received[start..start + len];
        let plain = self.session.open(record).map_err(broken)?;
        self.ready = start + plain.start..start + plain.end;
        self.unread.start += len;
        self.last = len;
        self.has_ended = plain.is_empty();
        Ok(true)
    }

    /// Whether there is something to read, or the end; takes it from the socket if need be.
    fn await_ready(&mut self, socket: &TcpStream) -> io::Result<bool> {
        while self.ready.is_empty() && !self.has_ended {
            if !self.open()? && self.receive(socket)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&mut self, socket: &TcpStream, out: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.await_ready(socket)? {
            return Ok(None);
        }
        let mut filled = self.take(out);
        // A record that doesn't open fails again at the next call.
        while filled < out.len() && matches!(self.open(), Ok(true)) {
            filled += self.take(&mut out[filled..]);
        }
        Ok(Some(filled))
    }

    fn take(&mut self, out: &mut [u8]) -> usize {
        let n = self.show(out);
        self.ready.start += n;
        n
    }

    fn show(&self, out: &mut [u8]) -> usize {
        let n = self.ready.len().min(out.len());
        out[..n].copy_from_slice(&self.received[self.ready.start..self.ready.start + n]);
        n
    }

    fn peek(&mut self, socket: &TcpStream, out: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.await_ready(socket)?.then(|| self.show(out)))
    }

    /// Behind bulk, little records mean tokens or idleness, for which little memory is enough.
    fn let_go(&mut self) {
        if self.received.len() > SMALL && self.last <= SMALL / 2 {
            self.received = Vec::new();
        }
    }

    fn write(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        if self.unsent.is_empty() {
            self.seal(&bytes[..bytes.len().min(MAX_RECORD)])?;
        }
        while !self.unsent.is_empty() {
            match socket::try_write(socket, &self.sealed[self.unsent.clone()])? {
                0 => return Ok(0),
                n => self.unsent.start += n,
            }
        }
        Ok(self.promised)
    }

    fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        let size = plain.len() + OVERHEAD;
        if self.sealed.len() < size || (self.sealed.len() > 2 * SMALL && size <= SMALL / 2) {
            self.sealed = vec![0; size.max(SMALL / 2)];
        }
        let n = self.session.seal(plain, &mut self.sealed).map_err(broken)?;
        self.unsent = 0..n;
        self.promised = plain.len();
        Ok(())
    }

    fn finish(&mut self, socket: &TcpStream) {
        // Behind half a record nothing can be whole.
        if self.unsent.is_empty() && self.seal(&[]).is_ok() {
            let _ = socket::try_write(socket, &self.sealed[self.unsent.clone()]);
        }
    }
}
