//! One TCP connection of the data path, plain or encrypted.
//!
//! An encrypted stream behaves as a plain socket, on which the exchange relies: received bytes that
//! were decrypted, or can be, count as readable; a record that the kernel didn't take whole counts
//! as unwritten; a connection that ends without the peer's closing record is an error, not an end.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use rustix::event::PollFlags;

use crate::net::socket;
use crate::pairing::{identity::KeyId, noise::Session, records::Records};
use crate::system::lock;

/// Only one thread at a time reads or writes.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    encryption: OnceLock<Box<(KeyId, Mutex<Records>)>>,
}

impl Stream {
    /// A plain stream.
    pub fn new(socket: TcpStream) -> Self {
        Stream { socket, encryption: OnceLock::new() }
    }

    /// From now on, both sides send records.
    pub fn encrypt(&self, session: Session, key: KeyId) {
        let _ = self.encryption.set(Box::new((key, Mutex::new(Records::new(session)))));
    }

    /// The key that the peer has proved to have; `None` on a plain stream.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.encryption.get().map(|encryption| encryption.0)
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn records(&self) -> Option<MutexGuard<'_, Records>> {
        self.encryption.get().map(|encryption| lock(&encryption.1))
    }

    /// Reads what is there; `None` when nothing is, 0 when the peer has ended its side. Fails with
    /// `InvalidData` for a record that doesn't open, `ConnectionReset` for an end without a closing
    /// record.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.records() {
            None => socket::try_read(&self.socket, buffer),
            Some(mut records) => records.read(&self.socket, buffer),
        }
    }

    /// As [`try_read`](Self::try_read), without taking the bytes; `WouldBlock` when there are none.
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
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.records() {
            None => socket::try_write(&self.socket, bytes),
            Some(mut records) => records.write(&self.socket, bytes),
        }
    }

    /// Fails with `TimedOut` for a peer that takes nothing for `stall`, `BrokenPipe` for one that
    /// left. One that has only ended its side may still read.
    pub(crate) fn write_all(&self, bytes: &[u8], stall: Duration) -> io::Result<()> {
        self.write_watching(bytes, stall, PollFlags::empty())
    }

    /// As [`write_all`](Self::write_all), but with [`HANGUP`](socket::HANGUP) among the watched
    /// events, a peer that has ended its side has left.
    pub(crate) fn write_watching(
        &self,
        mut bytes: &[u8],
        stall: Duration,
        mut watched: PollFlags,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.try_write(bytes)?;
            bytes = &bytes[n..];
            if n > 0 {
                continue;
            }
            self.wait_for_room(stall, &mut watched)?;
        }
        Ok(())
    }

    /// Waits until the kernel may take more. `watched` tells nothing any more, and is emptied, once the
    /// next request is waiting there.
    pub(crate) fn wait_for_room(&self, stall: Duration, watched: &mut PollFlags) -> io::Result<()> {
        loop {
            let wanted = (&self.socket, PollFlags::OUT | *watched);
            let (events, _) = socket::wait(wanted, None, Some(stall))?;
            if events.is_empty() {
                return Err(ErrorKind::TimedOut.into());
            }
            if socket::has_left(&self.socket, events) {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if events.contains(PollFlags::OUT) {
                return Ok(());
            }
            *watched = PollFlags::empty();
        }
    }

    /// Ends this side: what was sent is all there is.
    pub(crate) fn finish(&self) {
        if let Some(mut records) = self.records() {
            records.finish(&self.socket);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Whether no received bytes wait in this process. The kernel may still have some.
    pub fn is_drained(&self) -> bool {
        self.records().is_none_or(|records| !records.has_input())
    }
}

/// As [`socket::wait`]; bytes that wait in this process count as input.
pub(crate) fn wait(
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
