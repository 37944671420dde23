//! Small requests: one after another on one connection, on a new connection each, or on many at
//! once.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::children::Failable;

/// A chat's first byte is what people wait for, so latency is measured with one.
const CHAT: &str = "POST /api/chat HTTP/1.1\r\nHost: localhost:11434\r\n\
    User-Agent: bench\r\nAccept: application/x-ndjson\r\nContent-Type: application/json\r\n\
    Content-Length: 109\r\n\r\n{\"model\":\"bench\",\"messages\":[{\"role\":\"user\",\
    \"content\":\"Why is the sky blue? Answer in one short sentence.\"}]}";
/// Throughput is measured with the smallest request there is.
const TAGS: &str = "GET /api/tags HTTP/1.1\r\nHost: localhost:11434\r\nUser-Agent: bench\r\n\r\n";
/// An answer that takes longer than this is a failure of the benchmark.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Chat,
    Tags,
}

impl Ask {
    fn bytes(self) -> &'static [u8] {
        match self {
            Ask::Chat => CHAT.as_bytes(),
            Ask::Tags => TAGS.as_bytes(),
        }
    }
}

/// What a run of small requests took.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds from the request to the first byte of its answer; sorted.
    pub(crate) first_bytes: Vec<u64>,
}

/// The length of the whole answer at the start of `bytes`, once its head is there.
fn answer_length(bytes: &[u8]) -> Failable<Option<usize>> {
    let mut slots = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    if response.code != Some(200) {
        return Err(format!("an answer of status {:?}", response.code).into());
    }
    let length = response.headers.iter().find(|f| f.name.eq_ignore_ascii_case("content-length"));
    let Some(length) = length else {
        // In chunks, as the other ollana sends every answer on.
        return Ok(Some(bytes.len()).filter(|_| bytes.ends_with(b"\r\n0\r\n\r\n")));
    };
    Ok(Some(head + std::str::from_utf8(length.value)?.parse::<usize>()?))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends one request and reads its answer; returns how long the first byte took since `began`.
fn exchange(stream: &mut TcpStream, ask: Ask, began: Instant) -> Failable<u64> {
    let mut buffer = [0; 4096];
    let mut filled = 0;
    let mut first_byte = 0;
    stream.write_all(ask.bytes())?;
    loop {
        let n = stream.read(&mut buffer[filled..])?;
        if n == 0 {
            return Err("an answer broke off".into());
        }
        if filled == 0 {
            first_byte = began.elapsed().as_nanos() as u64;
        }
        filled += n;
        if answer_length(&buffer[..filled])? == Some(filled) {
            return Ok(first_byte);
        }
    }
}

/// One request after another, on one connection or each on a new one.
pub(crate) fn one_by_one(
    address: SocketAddr,
    ask: Ask,
    duration: Duration,
    new_connections: bool,
) -> Failable<Load> {
    let mut kept = connect(address)?;
    let mut first_bytes = Vec::new();
    let start = Instant::now();
    while start.elapsed() < duration {
        let began = Instant::now();
        first_bytes.push(if new_connections {
            exchange(&mut connect(address)?, ask, began)?
        } else {
            exchange(&mut kept, ask, began)?
        });
    }
    let elapsed = start.elapsed();
    first_bytes.sort_unstable();
    Ok(Load { requests: first_bytes.len() as u64, elapsed, first_bytes })
}

/// So many requests on one connection.
pub(crate) fn exactly(address: SocketAddr, ask: Ask, requests: u64) -> Failable<()> {
    let mut stream = connect(address)?;
    for _ in 0..requests {
        exchange(&mut stream, ask, Instant::now())?;
    }
    Ok(())
}

/// So many connections, each of which has had one answer.
pub(crate) fn connections(address: SocketAddr, count: usize) -> Failable<Vec<TcpStream>> {
    let one = |_| {
        let mut stream = connect(address)?;
        exchange(&mut stream, Ask::Tags, Instant::now())?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

struct Caller {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    began: Instant,
}

impl Caller {
    fn ask(&mut self, ask: Ask) -> io::Result<()> {
        self.filled = 0;
        self.began = Instant::now();
        // A few hundred bytes always fit an empty socket buffer.
        self.stream.write_all(ask.bytes())
    }
}

/// Every one of `connections` asks again as soon as it is answered.
pub(crate) fn all_at_once(
    address: SocketAddr,
    ask: Ask,
    connections: usize,
    duration: Duration,
) -> Failable<Load> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut callers = Vec::new();
    for at in 0..connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(&epoll, &stream, EventData::new_u64(at as u64), EventFlags::IN)?;
        callers.push(Caller { stream, buffer: vec![0; 4096], filled: 0, began: Instant::now() });
    }
    for caller in &mut callers {
        caller.ask(ask)?;
    }
    let mut first_bytes = Vec::new();
    let mut requests = 0;
    let mut events = Vec::with_capacity(64);
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let start = Instant::now();
    while start.elapsed() < duration {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        if events.is_empty() {
            return Err("nobody is answered any more".into());
        }
        for event in &events {
            let caller = &mut callers[event.data.u64() as usize];
            let n = match caller.stream.read(&mut caller.buffer[caller.filled..]) {
                Ok(0) => return Err("an answer broke off".into()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                other => other?,
            };
            if caller.filled == 0 {
                first_bytes.push(caller.began.elapsed().as_nanos() as u64);
            }
            caller.filled += n;
            if answer_length(&caller.buffer[..caller.filled])? == Some(caller.filled) {
                requests += 1;
                caller.ask(ask)?;
            }
        }
    }
    let elapsed = start.elapsed();
    first_bytes.sort_unstable();
    Ok(Load { requests, elapsed, first_bytes })
}
