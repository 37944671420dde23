//! Finding each other: UDP broadcasts on the client, answers on the server.
//!
//! ```text
//!  client: announcer ──PROBE──► every interface's broadcast address        server: responder
//!          listener  ◄─ANNOUNCE (unicast, from where its HTTP is reached) ─┘
//!             └──► Manager: Sighted, which only proposes; a health check decides
//! ```
//!
//! Packets that aren't ours, or answer none of our last probes, or come from another link, are
//! counted and dropped.

mod client;
pub mod matching;
pub mod packet;
mod responder;
mod scan;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::interfaces::Subnets;
use crate::system::THREAD_STACK;

pub use client::{Client, ClientSetup};
pub use responder::{Responder, ServerSetup};
pub use scan::{Answer, Way, scan};

/// Packets taken from one socket at a time, so that a flood can keep us neither from the other
/// sockets nor from stopping.
const BATCH: usize = 64;
/// How long the known subnets are relied on: listing them costs more than all else about a packet.
const LINKS_AGE: Duration = Duration::from_secs(2);
const STRANGER_AGE: Duration = Duration::from_millis(100);

/// This machine's subnets, listed anew when they are needed and old.
#[derive(Debug)]
struct RecentSubnets {
    links: Subnets,
    listed: Instant,
}

impl RecentSubnets {
    fn new() -> Self {
        RecentSubnets { links: Subnets::now(), listed: Instant::now() }
    }

    /// Whether an address is on one of them. One that isn't may be on an interface that just came
    /// up, so for it the list must be younger.
    fn contain(&mut self, now: Instant, ip: IpAddr) -> bool {
        let age = now.saturating_duration_since(self.listed);
        if age < LINKS_AGE && (self.links.contain(ip) || age < STRANGER_AGE) {
            return self.links.contain(ip);
        }
        *self = RecentSubnets { links: Subnets::now(), listed: now };
        self.links.contain(ip)
    }
}

/// What happened to received packets.
#[derive(Debug, Default)]
pub struct Counters {
    /// Probes answered, or announcements passed on.
    pub good: AtomicU64,
    /// Not ours, or malformed.
    pub bad: AtomicU64,
    /// Well-formed, but from another link, for another probe, or too many.
    pub ignored: AtomicU64,
}

impl Counters {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    fn log(&self, who: &str) {
        log::debug!(
            "{who} ends good={} bad={} ignored={}",
            self.good.load(Relaxed),
            self.bad.load(Relaxed),
            self.ignored.load(Relaxed)
        );
    }
}

/// A UDP socket without address sharing: with it, only one of several sockets would get a packet.
fn bind_udp(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(address, port)).into())?;
    Ok(socket.into())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(THREAD_STACK).spawn(run)
}
