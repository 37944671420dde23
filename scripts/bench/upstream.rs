//! The stand-in for Ollama: one thread, one epoll, so that it costs little of the two cores that
//! it shares with the proxies under test.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ollana::http::body::{ChunkDecoder, Step};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::answers::{BLOCK, LAST_CHUNK, Patterns, Plan, Query, document, head, token_chunk};
use super::measure::now_ns;

const LISTENER: u64 = u64::MAX;

/// Something that a measurement waits for.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A `hang` or `once` request came, with its whole target.
    Arrived { id: u64, target: String },
    /// Whoever sent it closed the connection.
    Left { id: u64, at_ns: u64 },
}

/// The running stand-in. It ends with the process.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) events: Receiver<Event>,
}

impl Upstream {
    pub(crate) fn start() -> io::Result<Upstream> {
        Self::start_at(([127, 0, 0, 1], 0).into())
    }

    pub(crate) fn start_at(address: SocketAddr) -> io::Result<Upstream> {
        let listener: TcpListener = ollana::net::socket::listen(address)?;
        let address = listener.local_addr()?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let (sender, events) = channel();
        let server = Server {
            listener,
            epoll,
            sender,
            connections: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            seen: HashSet::new(),
            scratch: vec![0; BLOCK],
            patterns: Patterns::new(),
            serial: 0,
        };
        thread::Builder::new().name("upstream".to_owned()).spawn(move || server.run())?;
        Ok(Upstream { address, events })
    }
}

enum Body {
    Length(u64),
    Chunked(ChunkDecoder),
}

struct Connection {
    stream: TcpStream,
    serial: u64,
    /// Part of a head.
    input: Vec<u8>,
    /// The rest of the request's body.
    body: Option<Body>,
    received: u64,
    plan: Option<Plan>,
    /// Who is told when this connection ends.
    id: Option<u64>,
    output: Vec<u8>,
    is_waiting_to_write: bool,
    is_watched_for_write: bool,
}

struct Server {
    listener: TcpListener,
    epoll: OwnedFd,
    sender: Sender<Event>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    timers: BinaryHeap<Reverse<(u64, usize, u64)>>,
    seen: HashSet<u64>,
    scratch: Vec<u8>,
    patterns: Patterns,
    serial: u64,
}

impl Server {
    fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            let timeout = self.timers.peek().map(|Reverse((due, ..))| {
                let left = due.saturating_sub(now_ns());
                Timespec {
                    tv_sec: (left / 1_000_000_000) as i64,
                    tv_nsec: (left % 1_000_000_000) as i64,
                }
            });
            events.clear();
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            );
            if waited.is_err_and(|errno| errno != rustix::io::Errno::INTR) {
                return;
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    at => self.tend(at as usize),
                }
            }
            self.send_due_tokens();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let at = self.free.pop().unwrap_or(self.connections.len());
            let data = EventData::new_u64(at as u64);
            let flags = EventFlags::IN | EventFlags::RDHUP;
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_err() || epoll::add(&self.epoll, &stream, data, flags).is_err() {
                if at < self.connections.len() {
                    self.free.push(at);
                }
                continue;
            }
            self.serial += 1;
            let connection = Connection {
                stream,
                serial: self.serial,
                input: Vec::new(),
                body: None,
                received: 0,
                plan: None,
                id: None,
                output: Vec::new(),
                is_waiting_to_write: false,
                is_watched_for_write: false,
            };
            match self.connections.get_mut(at) {
                Some(slot) => *slot = Some(connection),
                None => self.connections.push(Some(connection)),
            }
        }
    }

    /// Reads and writes what can be; a connection that ended or broke is dropped.
    fn tend(&mut self, at: usize) {
        let Some(mut connection) = self.connections.get_mut(at).and_then(Option::take) else {
            return;
        };
        let alive = self.read(at, &mut connection).and_then(|()| {
            connection.write()?;
            connection.watch(&self.epoll, at)
        });
        if alive.is_ok() {
            self.connections[at] = Some(connection);
            return;
        }
        if let Some(id) = connection.id {
            let _ = self.sender.send(Event::Left { id, at_ns: now_ns() });
        }
        self.free.push(at);
    }

    fn read(&mut self, at: usize, connection: &mut Connection) -> io::Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = loop {
            match connection.stream.read(&mut scratch) {
                Ok(0) => break Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    if let Err(error) = self.take_in(at, connection, &scratch[..n]) {
                        break Err(error);
                    }
                    // Less than there was room for: nothing is left, at least not much.
                    if n < scratch.len() {
                        break Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        self.scratch = scratch;
        result
    }

    fn take_in(&mut self, at: usize, c: &mut Connection, mut bytes: &[u8]) -> io::Result<()> {
        if c.body.is_none() {
            c.input.extend_from_slice(bytes);
            let mut slots = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut slots);
            let parsed = request.parse(&c.input).map_err(io::Error::other)?;
            let httparse::Status::Complete(len) = parsed else { return Ok(()) };
            let field = |name: &str| {
                request.headers.iter().find(|f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value)
            };
            c.body = Some(match field("transfer-encoding") {
                Some(_) => Body::Chunked(ChunkDecoder::default()),
                None => {
                    let length = field("content-length").and_then(|v| std::str::from_utf8(v).ok());
                    Body::Length(length.and_then(|v| v.parse().ok()).unwrap_or(0))
                }
            });
            c.received = 0;
            let target = request.path.unwrap_or_default().to_owned();
            self.plan(c, &target);
            let head = std::mem::take(&mut c.input);
            return self.take_in(at, c, &head[len..]);
        }
        let done = match &mut c.body {
            Some(Body::Length(left)) => {
                c.received += bytes.len() as u64;
                *left = left.saturating_sub(bytes.len() as u64);
                *left == 0
            }
            Some(Body::Chunked(decoder)) => loop {
                match decoder.step(bytes).map_err(io::Error::other)? {
                    Step::Data { skip, len } => {
                        c.received += len as u64;
                        bytes = &bytes[skip + len..];
                    }
                    Step::More => break false,
                    Step::End { .. } => break true,
                }
            },
            None => false,
        };
        if done {
            c.body = None;
            self.begin(at, c);
        }
        Ok(())
    }

    /// Decides on the answer, before the body is read.
    fn plan(&mut self, c: &mut Connection, target: &str) {
        let query = Query::of(target);
        c.id = query.number("hang").or(query.number("once")).or(query.number("id"));
        let mut waits = query.number("hang").is_some();
        if let Some(id) = query.number("hang").or(query.number("once")) {
            let _ = self.sender.send(Event::Arrived { id, target: target.to_owned() });
            waits |= self.seen.insert(id);
        }
        c.plan = Some(if waits { Plan::Hang } else { self.patterns.plan(&query, c.serial) });
    }

    /// The whole request is here: the answer begins.
    fn begin(&mut self, at: usize, c: &mut Connection) {
        match &c.plan {
            Some(Plan::Document) => {
                let body = document(c.received);
                c.output
                    .extend_from_slice(head(&format!("Content-Length: {}", body.len())).as_bytes());
                c.output.extend_from_slice(body.as_bytes());
                c.plan = None;
            }
            Some(Plan::Tokens { due_ns, .. }) => {
                self.timers.push(Reverse((*due_ns, at, c.serial)));
            }
            Some(Plan::Bulk { end, tail, .. }) => {
                let framing = if tail.is_empty() {
                    format!("Content-Length: {end}")
                } else {
                    "Transfer-Encoding: chunked".to_owned()
                };
                c.output.extend_from_slice(head(&framing).as_bytes());
            }
            Some(Plan::Hang) | None => {}
        }
    }

    fn send_due_tokens(&mut self) {
        while let Some(Reverse((due, at, serial))) = self.timers.peek().copied() {
            if due > now_ns() {
                return;
            }
            self.timers.pop();
            let slot = self.connections.get_mut(at).and_then(Option::as_mut);
            let Some(connection) = slot.filter(|c| c.serial == serial) else { continue };
            if let Some(next) = connection.next_token() {
                self.timers.push(Reverse((next, at, serial)));
            }
            // A failure shows up as an event of the socket, too.
            let _ = connection.write().and_then(|()| connection.watch(&self.epoll, at));
        }
    }
}

impl Connection {
    /// Puts one line into the output; tells when the next is due.
    fn next_token(&mut self) -> Option<u64> {
        let Some(Plan::Tokens { left, gap_ns, due_ns, has_begun }) = &mut self.plan else {
            return None;
        };
        if !std::mem::replace(has_begun, true) {
            self.output.extend_from_slice(head("Transfer-Encoding: chunked").as_bytes());
        }
        *left -= 1;
        *due_ns += *gap_ns;
        self.output.extend_from_slice(token_chunk(now_ns()).as_bytes());
        if *left == 0 {
            self.output.extend_from_slice(LAST_CHUNK);
            self.plan = None;
            return None;
        }
        Some(*due_ns)
    }

    fn write(&mut self) -> io::Result<()> {
        self.is_waiting_to_write = false;
        if !self.output.is_empty() {
            let n = self.write_some(None)?;
            self.output.drain(..n);
            if !self.output.is_empty() {
                self.is_waiting_to_write = true;
                return Ok(());
            }
        }
        while let Some(Plan::Bulk { pattern, at, end, tail }) = &self.plan {
            let start = (at % pattern.len() as u64) as usize;
            let len = (pattern.len() - start).min((end - at) as usize);
            if len == 0 {
                self.output.extend_from_slice(tail);
                self.plan = None;
                return self.write();
            }
            let pattern = std::sync::Arc::clone(pattern);
            let n = self.write_some(Some(&pattern[start..start + len]))?;
            if let Some(Plan::Bulk { at, .. }) = &mut self.plan {
                *at += n as u64;
            }
            if n < len {
                self.is_waiting_to_write = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes `bytes`, or else the output; 0 while nothing can be written.
    fn write_some(&mut self, bytes: Option<&[u8]>) -> io::Result<usize> {
        match self.stream.write(bytes.unwrap_or(&self.output)) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            other => other,
        }
    }

    fn watch(&mut self, epoll: &OwnedFd, at: usize) -> io::Result<()> {
        if self.is_watched_for_write != self.is_waiting_to_write {
            self.is_watched_for_write = self.is_waiting_to_write;
            let mut flags = EventFlags::IN | EventFlags::RDHUP;
            flags.set(EventFlags::OUT, self.is_waiting_to_write);
            epoll::modify(epoll, &self.stream, EventData::new_u64(at as u64), flags)?;
        }
        Ok(())
    }
}
