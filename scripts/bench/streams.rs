//! Many token streams at once: how long each token is on its way.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::children::Failable;
use super::measure::{Cpu, now_ns, resident_kib, threads};

/// Tokens per second and stream, as of a mid-sized model on a desktop.
pub(crate) const RATE: u64 = 25;
/// Tokens aren't counted for so long after the last stream began; halfway through, /proc is read,
/// so that this delays no token that counts.
const SETTLE_NS: u64 = 200_000_000;
/// Pause between two new streams; a thousand callers don't come in one packet.
const PACE_NS: u64 = 500_000;
const MARK: &[u8] = b"\"t\":";
const DIGITS: usize = 20;

/// Who is asked, and for how much.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) streams: usize,
    /// The proxies' processes, if their resources are to be read.
    pub(crate) pids: Vec<u32>,
}

/// What one plan showed.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Nanoseconds between the making of a token and its reading; sorted.
    pub(crate) delays: Vec<u64>,
    /// CPU time of the proxies per token, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) resident_kib: u64,
    pub(crate) threads: u64,
}

struct Stream {
    socket: TcpStream,
    plan: usize,
    /// The last bytes of the read before, where a mark may have been split.
    tail: Vec<u8>,
    tokens: u64,
    is_whole: bool,
}

/// Runs all plans at the same time, for `window` once all streams have begun. An error unless
/// every token of every stream arrived.
pub(crate) fn run(plans: &[Plan], window: Duration) -> Failable<Vec<Outcome>> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut order: Vec<usize> = Vec::new();
    for nth in 0..plans.iter().map(|plan| plan.streams).max().unwrap_or(0) {
        order.extend((0..plans.len()).filter(|at| nth < plans[*at].streams));
    }
    let ramp_ns = order.len() as u64 * PACE_NS;
    let counted_from = now_ns() + ramp_ns + SETTLE_NS;
    let counted_to = counted_from + window.as_nanos() as u64;
    let whole_ns = ramp_ns + SETTLE_NS + window.as_nanos() as u64;
    let tokens = whole_ns * RATE / 1_000_000_000 + 2;
    let mut streams: Vec<Stream> = Vec::with_capacity(order.len());
    let mut outcomes: Vec<Outcome> = plans.iter().map(|_| Outcome::default()).collect();
    let mut marks: Vec<(u64, Cpu)> = Vec::new();
    let mut is_measured = false;
    let mut open = order.len();
    let mut next_start = now_ns();
    let mut events = Vec::with_capacity(256);
    let mut scratch = vec![0; 64 * 1024];
    let give_up = counted_to + 30_000_000_000;
    while open > 0 {
        let now = now_ns();
        if now > give_up {
            return Err(format!("{open} of {} streams do not end", order.len()).into());
        }
        if streams.len() < order.len() && now >= next_start {
            let plan = order[streams.len()];
            let at = streams.len() as u64;
            streams.push(begin(&epoll, plans[plan].address, plan, at, tokens)?);
            next_start += PACE_NS;
        }
        if marks.is_empty() && now >= counted_from - SETTLE_NS / 2 {
            marks = plans.iter().map(|plan| (now_ns(), Cpu::of(&plan.pids))).collect();
        }
        if !is_measured && now >= counted_to {
            is_measured = true;
            for ((plan, outcome), (since, cpu)) in plans.iter().zip(&mut outcomes).zip(&marks) {
                let seconds = (now_ns() - since) as f64 / 1e9;
                let tokens = seconds * (plan.streams as u64 * RATE) as f64;
                outcome.cpu_us = Cpu::of(&plan.pids).since(cpu).as_secs_f64() * 1e6 / tokens;
            }
            for (plan, outcome) in plans.iter().zip(&mut outcomes) {
                outcome.resident_kib = resident_kib(&plan.pids);
                outcome.threads = threads(&plan.pids);
            }
        }
        let timeout = if streams.len() < order.len() {
            next_start.saturating_sub(now_ns())
        } else {
            // Often enough for the marks, whatever arrives.
            5_000_000
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.min(999_999_999) as i64 };
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        for event in &events {
            let stream = &mut streams[event.data.u64() as usize];
            let n = match stream.socket.read(&mut scratch) {
                Ok(0) => return Err("a stream broke off".into()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                other => other?,
            };
            let now = now_ns();
            let is_counted = (counted_from..counted_to).contains(&now);
            let delays = &mut outcomes[stream.plan].delays;
            stream.take_in(&scratch[..n], |sent| {
                if is_counted {
                    delays.push(now.saturating_sub(sent));
                }
            });
            if stream.is_whole {
                if stream.tokens != tokens {
                    return Err(format!("{} of {tokens} tokens came", stream.tokens).into());
                }
                epoll::delete(&epoll, &stream.socket)?;
                open -= 1;
            }
        }
    }
    for outcome in &mut outcomes {
        outcome.delays.sort_unstable();
    }
    Ok(outcomes)
}

fn begin(
    epoll: &OwnedFd,
    address: SocketAddr,
    plan: usize,
    at: u64,
    tokens: u64,
) -> Failable<Stream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let body = "{\"model\":\"bench\",\"prompt\":\"Why is the sky blue?\"}";
    let head = format!(
        "POST /api/generate?tokens={tokens}&gap_us={} HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        1_000_000 / RATE,
        body.len()
    );
    socket.write_all(head.as_bytes())?;
    socket.set_nonblocking(true)?;
    epoll::add(epoll, &socket, EventData::new_u64(at), EventFlags::IN)?;
    Ok(Stream { socket, plan, tail: Vec::new(), tokens: 0, is_whole: false })
}

impl Stream {
    /// Looks for tokens in what was read; tells the time at which each was sent.
    fn take_in(&mut self, bytes: &[u8], mut told: impl FnMut(u64)) {
        let joined;
        let mut rest = if self.tail.is_empty() {
            bytes
        } else {
            joined = [&self.tail, bytes].concat();
            &joined[..]
        };
        self.is_whole = rest.ends_with(b"\r\n0\r\n\r\n");
        while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK) {
            let Some(digits) = rest.get(at + MARK.len()..at + MARK.len() + DIGITS) else { break };
            let sent = digits.iter().fold(0, |n: u64, d| n * 10 + u64::from(d.wrapping_sub(b'0')));
            self.tokens += 1;
            told(sent);
            rest = &rest[at + MARK.len() + DIGITS..];
        }
        let kept = rest.len().min(MARK.len() + DIGITS + 8);
        self.tail = rest[rest.len() - kept..].to_vec();
    }
}
