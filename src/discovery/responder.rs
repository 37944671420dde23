//! The answering side: probes in, announcements out.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BATCH, Counts, Verdict, bad_packet};
use crate::access::addresses::AddressLists;
use crate::discovery::packet::{self, Datagram, Kind, Nonce, Packet, flags};
use crate::discovery::rate_limit::RateLimit;
use crate::manager::Presence;
use crate::net::interfaces::RecentSubnets;
use crate::net::lane::bind_udp;
use crate::net::socket::Waker;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::pairing::noise::Key;
use crate::system::spawn;

/// Most clients that get a goodbye when we stop: those that were answered last.
const MAX_GOODBYES: usize = 64;

#[derive(Debug)]
pub(crate) struct ServerSetup {
    /// UDP port to answer on.
    pub(crate) port: u16,
    /// Where our proxy listens.
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) identity: Identity,
    /// New at each start.
    pub(crate) instance: u32,
    /// Shown to people.
    pub(crate) name: String,
    /// Whether bare four-byte probes are answered.
    pub(crate) legacy: bool,
    /// Whether other machines may manage models here.
    pub(crate) is_managed: bool,
    /// The addresses that may get answers.
    pub(crate) reach: AddressLists,
    /// What is announced.
    pub(crate) presence: Arc<Presence>,
    pub(crate) keyring: Arc<Keyring>,
}

/// The responder's thread; dropping it says goodbye, stops and joins it.
#[derive(Debug)]
pub(crate) struct Responder {
    waker: Arc<Waker>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// An address of our proxy, and how to announce it.
struct Endpoint {
    http: SocketAddr,
    /// Bound to the proxy's address, if it has only one: clients take an answer's source for it.
    socket: Option<UdpSocket>,
}

impl Responder {
    /// Fails when the port is taken.
    pub(crate) fn start(setup: ServerSetup) -> io::Result<Self> {
        // A proxy that only loopback reaches isn't announced on the LAN.
        let only_loopback = setup.http.iter().all(|address| address.ip().is_loopback());
        let bind = if only_loopback { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let socket = bind_udp(bind, setup.port)?;
        let address = socket.local_addr()?;
        let mut endpoints = Vec::new();
        for http in setup.http.iter().filter(|http| http.is_ipv4()) {
            let socket = match http.ip() {
                IpAddr::V4(ip) if !ip.is_unspecified() => Some(bind_udp(ip, 0)?),
                _ => None,
            };
            endpoints.push(Endpoint { http: *http, socket });
        }
        if endpoints.is_empty() {
            log::warn!("the proxy listens on IPv6 alone, which the discovery can't announce");
        }
        let waker = Arc::new(Waker::new()?);
        let loop_waker = Arc::clone(&waker);
        let answerer = Answerer {
            setup,
            socket,
            endpoints,
            limit: RateLimit::new(Instant::now()),
            subnets: RecentSubnets::new(),
            answered: VecDeque::new(),
            spare: None,
        };
        let thread = spawn("responder", move || answerer.run(&loop_waker))?;
        Ok(Responder { waker, address, thread: Some(thread) })
    }

    /// Where it gets probes.
    pub(crate) fn address(&self) -> SocketAddr {
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

/// A client that gets a goodbye.
struct Answered {
    client: SocketAddr,
    nonce: Nonce,
    key: Option<Key>,
}

struct Answerer {
    setup: ServerSetup,
    socket: UdpSocket,
    endpoints: Vec<Endpoint>,
    limit: RateLimit,
    subnets: RecentSubnets,
    answered: VecDeque<Answered>,
    /// Sends what the endpoint's socket has no room for.
    spare: Option<UdpSocket>,
}

impl Answerer {
    fn run(mut self, waker: &Waker) {
        let mut buffer = [0; packet::MAX_LEN + 1];
        let mut counts = Counts::default();
        let mut is_broken = false;
        loop {
            let mut fds = [
                PollFd::new(&waker.watched, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            // A socket that reports nothing but errors is left alone for a second.
            let pause = Timespec { tv_sec: 1, tv_nsec: 0 };
            let used = if is_broken { 1 } else { 2 };
            let _ = poll(&mut fds[..used], is_broken.then_some(&pause));
            if !fds[0].revents().is_empty() {
                break;
            }
            is_broken = false;
            for _ in 0..BATCH {
                match self.socket.recv_from(&mut buffer) {
                    Ok((len, source)) => counts.count(self.receive(&buffer[..len], source)),
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock => break,
                        // An ICMP error of an earlier answer, or a signal.
                        ErrorKind::ConnectionRefused | ErrorKind::Interrupted => {}
                        _ => {
                            log::debug!("receiving probes failed reason={error}");
                            is_broken = true;
                            break;
                        }
                    },
                }
            }
        }
        for answered in std::mem::take(&mut self.answered) {
            self.send(Kind::Goodbye, &answered, packet::FIXED_LEN);
        }
        counts.log("responder");
    }

    fn receive(&mut self, bytes: &[u8], source: SocketAddr) -> Verdict {
        let packet = match packet::decode(bytes) {
            Ok(packet) => packet,
            Err(error) => return bad_packet(source, error),
        };
        let now = Instant::now();
        let ip = source.ip();
        if source.port() == 0
            || !self.subnets.contain(now, ip)
            || !self.setup.reach.admits(ip, ip.is_loopback(), |_| true)
        {
            return Verdict::Ignored;
        }
        let is_answered = match packet {
            Packet::Legacy => {
                self.setup.legacy
                    && self.setup.keyring.takes_unpaired()
                    && self.limit.allows(now, ip)
                    && self.send_bytes(&packet::encode_legacy(), source)
            }
            Packet::V1(datagram) => {
                datagram.kind == Kind::Probe
                    && datagram.sender != self.setup.identity
                    && self.announce(now, &datagram, source, bytes)
            }
        };
        if is_answered { Verdict::Good } else { Verdict::Ignored }
    }

    /// Answers a probe whose key we have, or that has none where none is needed. Only as many as the
    /// rate limit lets through are verified, because that costs most.
    fn announce(
        &mut self,
        now: Instant,
        probe: &Datagram,
        client: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let keyring = &self.setup.keyring;
        let key = probe.key.and_then(|id| keyring.key(id));
        let is_known = if probe.key.is_some() { key.is_some() } else { keyring.takes_unpaired() };
        let is_authentic = |key| packet::is_authentic(bytes, Some(client.ip()), key);
        if !is_known
            || !self.limit.allows(now, client.ip())
            || !key.as_ref().is_none_or(is_authentic)
        {
            return false;
        }
        self.answered.retain(|old| old.client != client || old.key.is_some() != key.is_some());
        if self.answered.len() >= MAX_GOODBYES {
            self.answered.pop_front();
        }
        let answered = Answered { client, nonce: probe.nonce, key };
        let is_sent = self.send(Kind::Announce, &answered, bytes.len());
        self.answered.push_back(answered);
        is_sent
    }

    /// The endpoint that a client can reach: those on loopback are for this machine.
    fn endpoint(&self, client: SocketAddr) -> Option<&Endpoint> {
        let fits = |one: &&Endpoint| client.ip().is_loopback() || !one.http.ip().is_loopback();
        self.endpoints.iter().find(fits)
    }

    /// Sends a datagram of at most `room` bytes.
    fn send(&mut self, kind: Kind, to: &Answered, room: usize) -> bool {
        let Answered { client, nonce, key } = to;
        let Some(endpoint) = self.endpoint(*client) else { return false };
        let presence = &self.setup.presence;
        let bit = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
        let flags = bit(presence.is_local_up(), flags::OLLAMA_UP)
            | bit(key.is_some(), flags::ENCRYPTED)
            | bit(!self.setup.keyring.takes_unpaired(), flags::KEY_REQUIRED)
            | bit(self.setup.is_managed, flags::MANAGEMENT_OPEN);
        let mut bytes = Datagram {
            kind,
            nonce: *nonce,
            sender: self.setup.identity,
            http_port: endpoint.http.port(),
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
            packet::authenticate(&mut bytes, None, key);
        }
        self.send_bytes(&bytes, *client)
    }

    fn send_bytes(&mut self, bytes: &[u8], client: SocketAddr) -> bool {
        let Some(endpoint) = self.endpoint(client) else { return false };
        let own = match (&endpoint.socket, endpoint.http.ip()) {
            (Some(_), IpAddr::V4(ip)) => ip,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let mut sent = endpoint.socket.as_ref().unwrap_or(&self.socket).send_to(bytes, client);
        // Answers to forged sources wait until the kernel has found out that nobody is there, and
        // fill the socket's buffer meanwhile. Each new socket has an empty one. What waits is
        // bounded by the rate limit.
        for is_new in [false, true] {
            if !sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                break;
            }
            if is_new {
                self.spare = bind_udp(own, 0).ok();
            }
            if let Some(spare) = &self.spare {
                sent = spare.send_to(bytes, client);
            }
        }
        if let Err(error) = &sent {
            log::debug!("answer not sent addr={client} reason={error}");
        }
        sent.is_ok()
    }
}
