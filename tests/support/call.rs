//! One request in the hands of a fake's script.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::fake::{Closed, Shared};
use super::http::{Dechunker, Head, chunk, read_once, take_front};
use super::random::Sum;
use super::system::closed;
use super::{Gate, PATIENCE};

/// Reads once, behind what is there; the end as an error.
pub(super) fn read(stream: &TcpStream, input: &mut Vec<u8>) -> Result<(), Closed> {
    loop {
        return match read_once(stream, input) {
            Ok(0) => Err(Closed::Eof),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::TimedOut => continue,
            Err(_) => Err(Closed::Reset),
        };
    }
}

/// One request under way, in the hands of the script.
pub struct Call<'a> {
    pub head: Head,
    /// Index of the connection, and of the request, in the state.
    pub connection: usize,
    pub record: usize,
    /// Requests that the connection carried before, health checks included.
    pub earlier: usize,
    shared: &'a Shared,
    stream: &'a TcpStream,
    input: &'a mut Vec<u8>,
    dechunker: Dechunker,
    left: usize,
    keeps: bool,
    ends: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        stream: &'a TcpStream,
        input: &'a mut Vec<u8>,
        head: Head,
        [connection, record, earlier]: [usize; 3],
    ) -> Self {
        let left = head.length().unwrap_or(0);
        let dechunker = Dechunker::default();
        let (keeps, ends) = (true, false);
        Call {
            head,
            connection,
            record,
            earlier,
            shared,
            stream,
            input,
            dechunker,
            left,
            keeps,
            ends,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ends
    }

    /// How much of the body is still to be read, where its length is known.
    pub(super) fn unread(&self) -> Option<usize> {
        match self.head.is_chunked() {
            true => self.dechunker.is_done.then_some(0),
            false => Some(self.left),
        }
    }
}

impl Call<'_> {
    pub fn target(&self) -> &str {
        self.head.target()
    }

    /// Sends these bytes; false when the peer is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = (&*self.stream).write_all(bytes.as_ref());
        if sent.is_err() {
            self.shared.note_closed(self.connection, Closed::Reset);
            self.ends = true;
        }
        sent.is_ok()
    }

    pub fn send_chunk(&mut self, data: impl AsRef<[u8]>) -> bool {
        self.send(chunk(data))
    }

    /// An answer of known length.
    pub fn answer(&mut self, status: &str, content_type: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
        );
        self.send([head.as_bytes(), body].concat());
    }

    /// Waits for a gate, and fails the test if it stays shut.
    pub fn wait(&self, gate: &Gate, awaited: &str) {
        assert!(gate.wait(), "the fake waited in vain: {awaited}");
    }

    /// Takes more of the body; none at its end. What the peer cut short ends the call.
    pub fn read_part(&mut self) -> Option<Vec<u8>> {
        loop {
            let part = if self.head.is_chunked() {
                if self.dechunker.is_done {
                    return None;
                }
                self.dechunker.take(self.input).expect("well-formed chunks")
            } else if self.left == 0 {
                return None;
            } else {
                let n = self.left.min(self.input.len());
                self.left -= n;
                Some(take_front(self.input, n)).filter(|part| !part.is_empty())
            };
            let is_whole =
                if self.head.is_chunked() { self.dechunker.is_done } else { self.left == 0 };
            if let Some(part) = part {
                let (record, keeps) = (self.record, self.keeps);
                self.shared.update(|state| {
                    let record = &mut state.records[record];
                    record.is_whole = is_whole;
                    if keeps {
                        record.body.extend_from_slice(&part);
                    }
                });
                return Some(part).filter(|part| !part.is_empty());
            }
            let filled = self.input.len();
            match read(self.stream, self.input) {
                Ok(_) if self.keeps => {
                    let received = &self.input[filled..];
                    self.shared.update(|state| {
                        state.records[self.record].raw_body.extend_from_slice(received);
                    });
                }
                Ok(_) => {}
                Err(how) => {
                    self.shared.note_closed(self.connection, how);
                    self.ends = true;
                    return None;
                }
            }
        }
    }

    /// The whole body, as far as it comes.
    pub fn read_body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(part) = self.read_part() {
            body.extend_from_slice(&part);
        }
        body
    }

    /// Keeps nothing of the body in the record.
    pub fn keep_no_body(&mut self) {
        self.keeps = false;
    }

    /// Reads the body without keeping it: its length and hash.
    pub fn drain_body(&mut self) -> (u64, u64) {
        self.keep_no_body();
        let mut sum = Sum::default();
        while let Some(part) = self.read_part() {
            sum.add(&part);
        }
        sum.get()
    }

    /// Reads nothing more and waits until the peer closes.
    pub fn hang(&mut self) {
        // Longer than any client waits, so that its failure is the one to be reported.
        self.note_left(3 * PATIENCE);
        self.ends = true;
    }

    /// Closes its half, and the rest when the peer closes or half a second is over, without reading
    /// on.
    pub fn close_half(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = closed(self.stream, Duration::from_millis(500));
        self.close();
    }

    /// Whether the peer has closed its half or everything, right now.
    pub fn has_left(&mut self) -> bool {
        self.note_left(Duration::ZERO)
    }

    fn note_left(&self, within: Duration) -> bool {
        let how = closed(self.stream, within);
        if let Some(how) = how {
            self.shared.note_closed(self.connection, how);
        }
        how.is_some()
    }

    /// Reads on, body or not, until the peer closes.
    pub fn hang_reading(&mut self) {
        while self.read_part().is_some() {}
        if !self.ends {
            self.hang();
        }
    }

    /// Closes: a FIN behind what was sent.
    pub fn close(&mut self) {
        self.shared.note_closed(self.connection, Closed::ByUs);
        let _ = self.stream.shutdown(Shutdown::Both);
        self.ends = true;
    }

    /// Resets at once; what was sent may get lost.
    pub fn reset(&mut self) {
        let _ = SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
        self.shared.note_closed(self.connection, Closed::ByUs);
        self.ends = true;
    }
}
