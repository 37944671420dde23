//! The records of an encrypted [`Stream`](super::stream::Stream): what was received and isn't read,
//! what was sealed and isn't sent.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::ops::Range;

use crate::net::socket;
use crate::pairing::noise::{MAX_RECORD, NoiseError, OVERHEAD, Session};

/// Bytes that the buffer for received records starts with; enough for tokens …
const SMALL: usize = 2 * 1024;
/// … and what it grows to while they fill it: the longest record and more.
const LARGE: usize = 128 * 1024;

#[derive(Debug)]
pub(super) struct Records {
    session: Session,
    /// `received[opened]` was opened in its place and isn't read yet; `received[sealed]`, behind
    /// it, came from the socket and isn't opened yet.
    received: Vec<u8>,
    opened: Range<usize>,
    sealed: Range<usize>,
    /// `outgoing[unsent]` waits for the kernel to take it: the rest of a record of which the caller
    /// was told that nothing was written.
    outgoing: Vec<u8>,
    unsent: Range<usize>,
    has_ended: bool,
    /// A record didn't open. Trying again could succeed, since a failure overwrites the record.
    is_damaged: bool,
    last_record_len: usize,
}

impl From<NoiseError> for io::Error {
    fn from(error: NoiseError) -> Self {
        io::Error::new(ErrorKind::InvalidData, error.to_string())
    }
}

impl Records {
    pub(super) fn new(session: Session) -> Self {
        Records {
            session,
            received: Vec::new(),
            opened: 0..0,
            sealed: 0..0,
            outgoing: Vec::new(),
            unsent: 0..0,
            has_ended: false,
            is_damaged: false,
            last_record_len: 0,
        }
    }

    /// Length of the next record, if all of it is here.
    fn next_record(&self) -> Option<usize> {
        let received = &self.received[self.sealed.clone()];
        Session::record_len(received).filter(|len| *len <= received.len())
    }

    pub(super) fn has_input(&self) -> bool {
        !self.opened.is_empty() || self.next_record().is_some()
    }

    pub(super) fn read(&mut self, socket: &TcpStream, out: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.open_more(socket)? {
            return Ok(None);
        }
        let mut filled = self.take(out);
        // A record that doesn't open fails at the next call again.
        while filled < out.len() && matches!(self.open(), Ok(true)) {
            filled += self.take(&mut out[filled..]);
        }
        Ok(Some(filled))
    }

    pub(super) fn peek(&mut self, socket: &TcpStream, out: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.open_more(socket)?.then(|| self.copy(out)))
    }

    fn take(&mut self, out: &mut [u8]) -> usize {
        let n = self.copy(out);
        self.opened.start += n;
        n
    }

    fn copy(&self, out: &mut [u8]) -> usize {
        let n = self.opened.len().min(out.len());
        out[..n].copy_from_slice(&self.received[self.opened.start..self.opened.start + n]);
        n
    }

    /// Opens records until there are bytes to read or the end; false when the socket has no more.
    fn open_more(&mut self, socket: &TcpStream) -> io::Result<bool> {
        while self.opened.is_empty() && !self.has_ended {
            if !self.open()? && !self.receive(socket)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens the next record in its place, if all of it is here. The bytes of the one before must
    /// have been read.
    fn open(&mut self) -> io::Result<bool> {
        let Some(len) = self.next_record().filter(|_| !self.has_ended) else { return Ok(false) };
        if self.is_damaged {
            return Err(NoiseError::Record.into());
        }
        let start = self.sealed.start;
        let record = &mut self.received[start..start + len];
        let plain = self.session.open(record).inspect_err(|_| self.is_damaged = true)?;
        self.opened = start + plain.start..start + plain.end;
        self.sealed.start += len;
        self.last_record_len = len;
        self.has_ended = plain.is_empty();
        Ok(true)
    }

    /// Takes more from the socket, once all opened bytes are read; false when it has no more.
    fn receive(&mut self, socket: &TcpStream) -> io::Result<bool> {
        if self.sealed.is_empty() {
            (self.sealed, self.opened) = (0..0, 0..0);
            // Small records after bulk mean tokens or idleness: give the large buffer back.
            if self.received.len() > SMALL && self.last_record_len <= SMALL / 2 {
                self.received = Vec::new();
            }
        }
        let wanted = Session::record_len(&self.received[self.sealed.clone()]).unwrap_or(2);
        let size = self.received.len();
        if self.sealed.end == size || self.sealed.start + wanted > size {
            self.received.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
            // It grows for a record longer than all before, and for reads that fill it.
            let size = if self.sealed.len() * 2 >= size { size * 2 } else { size };
            self.received.resize(size.clamp(SMALL, LARGE).max(wanted), 0);
        }
        let n = socket::try_read(socket, &mut self.received[self.sealed.end..])?;
        if n == Some(0) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        self.sealed.end += n.unwrap_or(0);
        Ok(n.is_some())
    }

    pub(super) fn write(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        if self.unsent.is_empty() {
            self.seal(&bytes[..bytes.len().min(MAX_RECORD)])?;
        }
        while !self.unsent.is_empty() {
            match socket::try_write(socket, &self.outgoing[self.unsent.clone()])? {
                0 => return Ok(0),
                n => self.unsent.start += n,
            }
        }
        Ok(self.unsent.end - OVERHEAD)
    }

    fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        let size = plain.len() + OVERHEAD;
        if self.outgoing.len() < size || (self.outgoing.len() > 2 * SMALL && size <= SMALL / 2) {
            self.outgoing = vec![0; size.max(SMALL / 2)];
        }
        self.unsent = 0..self.session.seal(plain, &mut self.outgoing)?;
        Ok(())
    }

    /// Sends the closing record, unless half a record was sent: then nothing can end cleanly.
    pub(super) fn finish(&mut self, socket: &TcpStream) {
        if self.unsent.is_empty() && self.seal(&[]).is_ok() {
            let _ = socket::try_write(socket, &self.outgoing[self.unsent.clone()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::net::os::loopback_pair;
    use crate::pairing::identity::Identity;
    use crate::pairing::noise::{Introduction, Key, Purpose, initiate, respond};

    /// ring overwrites with zeros what doesn't open, so a record of zeros would open then.
    #[test]
    fn what_did_not_open_once_never_opens() {
        let key = Key::new([1; 32]);
        let machine = |n| Introduction::of(Identity([n; 16]));
        let (initiator, hello) = initiate(Purpose::Requests, &key, &machine(1)).unwrap();
        let (reply, mut far) = respond(Purpose::Requests, &key, &machine(2), &hello).unwrap();
        let mut records = Records::new(initiator.finish(&reply).unwrap().session);
        let (socket, mut peer) = loopback_pair().unwrap();
        let mut sealed = [0; 1 + OVERHEAD];
        loop {
            far.session.seal(b"x", &mut sealed).unwrap();
            if sealed[2] == 0 {
                break;
            }
            peer.write_all(&sealed).unwrap();
            assert_eq!(records.read(&socket, &mut [0; 9]).unwrap(), Some(1));
        }
        sealed[2] = 1;
        peer.write_all(&sealed).unwrap();
        for _ in 0..2 {
            let error = records.read(&socket, &mut [0; 9]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
    }
}
