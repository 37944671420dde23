//! The answering side: probes in, announcements out.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BATCH, Counters, RecentSubnets, bind_udp, spawn};
use crate::access::addresses::AddressLists;
use crate::discovery::packet::{self, Datagram, Kind, Nonce, Packet, flags};
use crate::manager::Presence;
use crate::net::socket::Waker;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::pairing::noise::Key;

/// Answers to one address: a burst of 10, then 5 a second.
const PER_SOURCE: (u32, u32) = (10, 5);
/// Answers in all, a second. They are never longer than the probes, so this only bounds our own
/// work; it is above what a whole /24 may ask, so that a flood can't use up an honest share.
const IN_ALL: (u32, u32) = (2000, 2000);
/// Sources that are told apart; fixed, whatever a flood claims to be.
const SOURCES: usize = 256;
/// Clients that are told when we leave.
const MAX_FAREWELLS: usize = 64;

/// What the answering side needs.
#[derive(Debug)]
pub struct ServerSetup {
    /// UDP port to answer on.
    pub port: u16,
    /// Where our proxy listens.
    pub http: Vec<SocketAddr>,
    /// Who we are.
    pub identity: Identity,
    /// New at each start.
    pub instance: u32,
    /// For people.
    pub name: String,
    /// Whether bare four-byte probes are answered.
    pub legacy: bool,
    /// Whether other machines may manage models here.
    pub is_managed: bool,
    /// Which machines may know of us.
    pub reach: AddressLists,
    /// What there is to announce.
    pub presence: Arc<Presence>,
    /// Who may ask.
    pub keyring: Arc<Keyring>,
}

/// The responder's thread; dropping it says goodbye, stops and joins it.
#[derive(Debug)]
pub struct Responder {
    waker: Arc<Waker>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// One way to reach our proxy: its port, and the socket whose source address leads there.
struct Door {
    http: SocketAddr,
    /// For a proxy on one address: answers must come from it.
    socket: Option<UdpSocket>,
}

impl Responder {
    /// Starts to answer probes.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(setup: ServerSetup) -> io::Result<Self> {
        // Whom only loopback can reach has nothing to say on the LAN.
        let only_loopback = setup.http.iter().all(|address| address.ip().is_loopback());
        let bind = if only_loopback { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let socket = bind_udp(bind, setup.port)?;
        let address = socket.local_addr()?;
        let mut doors = Vec::new();
        for http in setup.http.iter().filter(|http| http.is_ipv4()) {
            let socket = match http.ip() {
                IpAddr::V4(ip) if !ip.is_unspecified() => Some(bind_udp(ip, 0)?),
                _ => None,
            };
            doors.push(Door { http: *http, socket });
        }
        if doors.is_empty() {
            log::warn!("the proxy listens on IPv6 alone, which the discovery can't announce");
        }
        let waker = Arc::new(Waker::new()?);
        let loop_waker = Arc::clone(&waker);
        let answerer = Answerer {
            setup,
            socket,
            doors,
            counters: Counters::default(),
            limiter: Limiter::new(Instant::now()),
            links: RecentSubnets::new(),
            farewells: VecDeque::new(),
            spare: None,
        };
        let thread = spawn("responder", move || answerer.run(&loop_waker))?;
        Ok(Responder { waker, address, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client that is told when we leave.
struct Farewell {
    client: SocketAddr,
    nonce: Nonce,
    key: Option<Key>,
}

struct Answerer {
    setup: ServerSetup,
    socket: UdpSocket,
    doors: Vec<Door>,
    counters: Counters,
    limiter: Limiter,
    links: RecentSubnets,
    farewells: VecDeque<Farewell>,
    /// Sends what the proper socket doesn't take.
    spare: Option<UdpSocket>,
}

impl Answerer {
    fn run(mut self, waker: &Waker) {
        let mut buffer = [0; packet::MAX_LEN + 1];
        let mut is_broken = false;
        loop {
            let mut fds = [
                PollFd::new(&waker.watched, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            // A socket that reports nothing but errors must not make us spin.
            let pause = Timespec { tv_sec: 1, tv_nsec: 0 };
            let used = if is_broken { 1 } else { 2 };
            let _ = poll(&mut fds[..used], is_broken.then_some(&pause));
            if !fds[0].revents().is_empty() {
                break;
            }
            is_broken = false;
            for _ in 0..BATCH {
                match self.socket.recv_from(&mut buffer) {
                    Ok((len, source)) => self.receive(&buffer[..len], source),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // An ICMP error of an earlier answer, or a signal.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        log::debug!("receiving probes failed reason={error}");
                        is_broken = true;
                        break;
                    }
                }
            }
        }
        for Farewell { client, nonce, key } in std::mem::take(&mut self.farewells) {
            self.send(Kind::Goodbye, nonce, client, packet::FIXED_LEN, key.as_ref());
        }
        self.counters.log("responder");
    }

    fn receive(&mut self, bytes: &[u8], source: SocketAddr) {
        let packet = match packet::decode(bytes) {
            Ok(packet) => packet,
            Err(error) => {
                log::debug!("bad packet addr={source} reason={error}");
                return Counters::count(&self.counters.bad);
            }
        };
        let now = Instant::now();
        if source.port() == 0
            || !self.links.contain(now, source.ip())
            || !self.setup.reach.admits(source.ip(), source.ip().is_loopback(), |_| true)
        {
            return Counters::count(&self.counters.ignored);
        }
        let answered = match packet {
            Packet::Legacy => {
                self.setup.legacy
                    && self.setup.keyring.takes_unpaired()
                    && self.limiter.allows(now, source.ip())
                    && self.send_bytes(&packet::encode_legacy(), source)
            }
            Packet::V1(datagram) => {
                datagram.kind == Kind::Probe
                    && datagram.sender != self.setup.identity
                    && self.announce(now, &datagram, source, bytes)
            }
        };
        let counters = &self.counters;
        Counters::count(if answered { &counters.good } else { &counters.ignored });
    }

    /// Answers a probe, unless it is one too many, or has no key where one is needed, or a key that
    /// isn't ours. Only what the limiter lets through is verified.
    fn announce(
        &mut self,
        now: Instant,
        probe: &Datagram,
        source: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let keyring = &self.setup.keyring;
        let key = match probe.key {
            Some(id) => keyring.key(id),
            None => None,
        };
        let is_known = if probe.key.is_some() { key.is_some() } else { keyring.takes_unpaired() };
        if !is_known || !self.limiter.allows(now, source.ip()) {
            return false;
        }
        if let Some(key) = &key
            && !packet::split_code(bytes, Some(source.ip()))
                .is_some_and(|(covered, code)| key.verifies(&covered, &code))
        {
            return false;
        }
        let room = bytes.len();
        self.farewells.retain(|old| old.client != source || old.key.is_some() != key.is_some());
        if self.farewells.len() >= MAX_FAREWELLS {
            self.farewells.pop_front();
        }
        let sent = self.send(Kind::Announce, probe.nonce, source, room, key.as_ref());
        self.farewells.push_back(Farewell { client: source, nonce: probe.nonce, key });
        sent
    }

    /// The door that a client can use: loopback ones are for this machine.
    fn door(&self, client: SocketAddr) -> Option<&Door> {
        let fits = |door: &&Door| client.ip().is_loopback() || !door.http.ip().is_loopback();
        self.doors.iter().find(fits)
    }

    fn send(
        &mut self,
        kind: Kind,
        nonce: Nonce,
        client: SocketAddr,
        room: usize,
        key: Option<&Key>,
    ) -> bool {
        let Some(door) = self.door(client) else { return false };
        let presence = &self.setup.presence;
        let mut flags = if presence.is_local_up() { flags::OLLAMA_UP } else { 0 };
        if key.is_some() {
            flags |= flags::ENCRYPTED;
        }
        if !self.setup.keyring.takes_unpaired() {
            flags |= flags::KEY_REQUIRED;
        }
        if self.setup.is_managed {
            flags |= flags::MANAGEMENT_OPEN;
        }
        let mut bytes = Datagram {
            kind,
            nonce,
            sender: self.setup.identity,
            http_port: door.http.port(),
            flags,
            capabilities: 0,
            version: presence.version(),
            in_flight: u16::try_from(presence.in_flight()).unwrap_or(u16::MAX),
            instance: self.setup.instance,
            name: self.setup.name.clone(),
            key: None,
        }
        .encode(room);
        if let Some(key) = key {
            packet::authenticate(&mut bytes, None, |bytes| key.authenticate(bytes));
        }
        self.send_bytes(&bytes, client)
    }

    fn send_bytes(&mut self, bytes: &[u8], client: SocketAddr) -> bool {
        let Some(door) = self.door(client) else { return false };
        let own = match (&door.socket, door.http.ip()) {
            (Some(_), IpAddr::V4(ip)) => ip,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let mut sent = door.socket.as_ref().unwrap_or(&self.socket).send_to(bytes, client);
        // Answers to forged sources wait until the kernel has found out that nobody is there, and
        // fill the socket's buffer meanwhile. Each new socket has an empty one; that the limiter
        // allows 2000 answers a second bounds what waits.
        if is_full(&sent) {
            if let Some(spare) = &self.spare {
                sent = spare.send_to(bytes, client);
            }
            if is_full(&sent) {
                self.spare = bind_udp(own, 0).ok();
                if let Some(spare) = &self.spare {
                    sent = spare.send_to(bytes, client);
                }
            }
        }
        match sent {
            Ok(_) => true,
            Err(error) => {
                log::debug!("answer not sent addr={client} reason={error}");
                false
            }
        }
    }
}

fn is_full(sent: &io::Result<usize>) -> bool {
    sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Token buckets in a table of fixed size.
struct Limiter {
    all: Bucket,
    sources: Vec<(Option<IpAddr>, Bucket)>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Thousandths of an answer.
    level: u64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant, (burst, _): (u32, u32)) -> Self {
        Bucket { level: u64::from(burst) * 1000, filled: now }
    }

    fn take(&mut self, now: Instant, (burst, per_second): (u32, u32)) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_millis().min(60_000) as u64;
        if passed > 0 {
            let most = u64::from(burst) * 1000;
            self.level = (self.level + passed * u64::from(per_second)).min(most);
            self.filled = now;
        }
        let has = self.level >= 1000;
        if has {
            self.level -= 1000;
        }
        has
    }
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Limiter {
            all: Bucket::full(now, IN_ALL),
            sources: vec![(None, Bucket::full(now, PER_SOURCE)); SOURCES],
        }
    }

    /// Whether this source may have an answer now. Sources that share a slot share its rate,
    /// unless the slot was quiet for a second.
    fn allows(&mut self, now: Instant, source: IpAddr) -> bool {
        let slot = match source {
            // The last byte tells the hosts of a /24 apart without collisions.
            IpAddr::V4(ip) => usize::from(ip.octets()[3]),
            IpAddr::V6(ip) => usize::from(ip.octets()[15]),
        } % SOURCES;
        let (owner, bucket) = &mut self.sources[slot];
        let quiet = now.saturating_duration_since(bucket.filled) >= Duration::from_secs(1);
        if *owner != Some(source) && (quiet || owner.is_none()) {
            *owner = Some(source);
            *bucket = Bucket::full(now, PER_SOURCE);
        }
        bucket.take(now, PER_SOURCE) && self.all.take(now, IN_ALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_rate_whatever_the_others_do() {
        let t0 = Instant::now();
        let mut limiter = Limiter::new(t0);
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut answered = 0;
        for ms in 0..10_000 {
            answered += u32::from(limiter.allows(t0 + Duration::from_millis(ms), ip(1)));
        }
        assert!((55..=60).contains(&answered), "{answered} in 10 s");
        // 253 spoofed neighbours, each as often as it can, and one honest client.
        for ms in 0..1000 {
            let now = t0 + Duration::from_millis(20_000 + ms);
            for n in 2..255 {
                limiter.allows(now, ip(n));
            }
            if ms % 200 == 0 {
                assert!(limiter.allows(now, ip(1)), "honest probe at {ms} ms");
            }
        }
    }
}
