//! The answering side: probes in, announcements out.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{self, Datagram, Kind, Nonce, Packet, flags};
use super::{BATCH, Counts, SideThread, rate_limit::RateLimit};
use crate::access::addresses::AddressLists;
use crate::manager::Presence;
use crate::net::lane::{self, bind_udp};
use crate::net::{interfaces::RecentSubnets, socket::Waker};
use crate::pairing::{identity::Identity, keyring::Keyring, noise::Key};

/// Most clients that get a goodbye when we stop: those that were answered last.
const MAX_GOODBYES: usize = 64;

#[derive(Debug)]
pub(crate) struct ServerSetup {
    pub(crate) port: u16,
    /// Where our proxy listens.
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) identity: Identity,
    /// This process's client, which isn't answered.
    pub(crate) own_client: Identity,
    pub(crate) instance: u32,
    pub(crate) name: String,
    /// Whether bare four-byte probes are answered.
    pub(crate) legacy: bool,
    /// Whether other machines may manage models here.
    pub(crate) is_managed: bool,
    pub(crate) reach: AddressLists,
    pub(crate) presence: Arc<Presence>,
    pub(crate) keyring: Arc<Keyring>,
    /// This machine was a server, and its Ollama was stopped: no proxy listens.
    pub(crate) is_away: bool,
}

/// The thread that answers probes; it says goodbye when it is stopped.
#[derive(Debug)]
pub(crate) struct Responder {
    /// Where it gets probes.
    pub(crate) address: SocketAddr,
    _thread: SideThread,
}

/// An address of our proxy, and how to announce it.
struct Endpoint {
    http: SocketAddrV4,
    /// Bound to the proxy's address, if it has only one: clients take an answer's source for it.
    socket: Option<UdpSocket>,
}

impl Responder {
    /// Fails when the port is taken.
    pub(crate) fn start(setup: ServerSetup) -> io::Result<Self> {
        // A proxy that only loopback reaches isn't announced on the LAN.
        let only_loopback = setup.http.iter().all(|address| address.ip().is_loopback());
        let bind = if only_loopback && !setup.is_away {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let socket = bind_udp(bind, setup.port)?;
        let address = socket.local_addr()?;
        let mut endpoints = Vec::new();
        for http in &setup.http {
            let SocketAddr::V4(http) = *http else { continue };
            let is_any = http.ip().is_unspecified();
            let socket = if is_any { None } else { Some(bind_udp(*http.ip(), 0)?) };
            endpoints.push(Endpoint { http, socket });
        }
        if endpoints.is_empty() && !setup.is_away {
            log::warn!("the proxy listens on IPv6 alone, which the discovery can't announce");
        }
        let answerer = Answerer {
            setup,
            socket,
            endpoints,
            limit: RateLimit::new(Instant::now()),
            notices: RateLimit::new(Instant::now()),
            subnets: RecentSubnets::new(),
            answered: VecDeque::new(),
            spare: None,
        };
        let thread = SideThread::start("responder", move |stop| answerer.run(stop))?;
        Ok(Responder { address, _thread: thread })
    }
}

/// Which of its own addresses a client can reach: those on loopback are for this machine. Of several
/// it is the one on the client's subnet, `shared` with so many bits; clients drop an answer of
/// another network.
fn nearest(
    own: impl Iterator<Item = Ipv4Addr>,
    client: IpAddr,
    shared: impl Fn(Ipv4Addr) -> Option<u8>,
) -> Option<usize> {
    let fits = |(_, own): &(usize, Ipv4Addr)| client.is_loopback() || !own.is_loopback();
    let bits = |own: Ipv4Addr| if own.is_unspecified() { Some(0) } else { shared(own) };
    let nearest = own.enumerate().filter(fits).min_by_key(|(_, own)| Reverse(bits(*own)));
    nearest.map(|(at, _)| at)
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
    /// What says that there is no answer must not use up what answers may.
    notices: RateLimit,
    subnets: RecentSubnets,
    answered: VecDeque<Answered>,
    /// Sends what the endpoint's socket has no room for.
    spare: Option<UdpSocket>,
}

impl Answerer {
    fn run(mut self, stop: &Waker) {
        let mut buffer = [0; packet::MAX_LEN + 1];
        let mut counts = Counts::default();
        let mut is_broken = false;
        loop {
            let mut fds = [
                PollFd::new(&stop.watched, PollFlags::IN),
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
                match lane::receive(&self.socket, &mut buffer) {
                    Ok(Some((len, source))) => {
                        let bytes = &buffer[..len];
                        counts.count(bytes, source, |packet| self.answer(packet, bytes, source));
                    }
                    Ok(None) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => {
                        log::debug!("receiving probes failed reason={error}");
                        is_broken = true;
                        break;
                    }
                }
            }
        }
        for answered in std::mem::take(&mut self.answered).iter().rev() {
            self.send(Kind::Goodbye, answered, packet::FIXED_LEN);
        }
        counts.log("responder");
    }

    /// Answers a probe if it may have an answer; whether it got one.
    fn answer(&mut self, packet: Packet, bytes: &[u8], source: SocketAddr) -> bool {
        let now = Instant::now();
        let ip = source.ip();
        if source.port() == 0
            || !self.subnets.contain(now, ip)
            || !self.setup.reach.admits(ip, ip.is_loopback(), |_| true)
        {
            return false;
        }
        match packet {
            Packet::Legacy => {
                self.setup.legacy
                    && !self.setup.is_away
                    && self.setup.keyring.takes_unpaired()
                    && self.limit.allows(now, ip)
                    && self.send_bytes(&packet::encode_legacy(), source)
            }
            Packet::V1(datagram) => {
                datagram.kind == Kind::Probe
                    && ![self.setup.identity, self.setup.own_client].contains(&datagram.sender)
                    && self.announce(now, &datagram, source, bytes)
            }
        }
    }

    /// Answers a probe whose key we have, or that has none where none is needed; others are told so.
    /// Only as many as the rate limit lets through are verified, because that costs most.
    fn announce(&mut self, now: Instant, probe: &Datagram, from: SocketAddr, bytes: &[u8]) -> bool {
        let keyring = &self.setup.keyring;
        let key = probe.key.and_then(|id| keyring.key(id));
        let is_known = if probe.key.is_some() { key.is_some() } else { keyring.takes_unpaired() };
        let is_forged = |key| !packet::is_authentic(bytes, Some(from.ip()), key);
        if !is_known {
            let flag = if keyring.takes_unpaired() { 0 } else { flags::KEY_REQUIRED };
            return self.notices.allows(now, from.ip())
                && self.notify(flag, (from, probe.nonce), None, bytes.len());
        }
        if !self.limit.allows(now, from.ip()) || key.as_ref().is_some_and(is_forged) {
            return false;
        }
        if self.setup.is_away {
            return self.notify(0, (from, probe.nonce), key.as_ref(), bytes.len());
        }
        self.answered.retain(|old| old.client != from || old.key.is_some() != key.is_some());
        self.answered.truncate(MAX_GOODBYES - 1);
        let answered = Answered { client: from, nonce: probe.nonce, key };
        let is_sent = self.send(Kind::Announce, &answered, bytes.len());
        self.answered.push_front(answered);
        is_sent
    }

    /// Says that this machine can't be used, and by the flag why.
    fn notify(
        &mut self,
        flags: u16,
        (to, nonce): (SocketAddr, Nonce),
        key: Option<&Key>,
        room: usize,
    ) -> bool {
        let ServerSetup { identity, instance, ref name, .. } = self.setup;
        let notice = Datagram::probe(identity, nonce);
        let (kind, name) = (Kind::Announce, name.clone());
        let mut bytes = Datagram { kind, flags, instance, name, ..notice }.encode(room);
        if let Some(key) = key {
            packet::authenticate(&mut bytes, None, key);
        }
        self.send_bytes(&bytes, to)
    }

    fn endpoint(&self, client: SocketAddr) -> Option<&Endpoint> {
        let shared = |own: Ipv4Addr| self.subnets.shared(own.into(), client.ip());
        let own = self.endpoints.iter().map(|endpoint| *endpoint.http.ip());
        self.endpoints.get(nearest(own, client.ip(), shared)?)
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
            http_port: endpoint.http.port(),
            flags,
            version: presence.version(),
            in_flight: u16::try_from(presence.in_flight()).unwrap_or(u16::MAX),
            instance: self.setup.instance,
            name: self.setup.name.clone(),
            ..Datagram::probe(self.setup.identity, *nonce)
        }
        .encode(room);
        if let Some(key) = key {
            packet::authenticate(&mut bytes, None, key);
        }
        self.send_bytes(&bytes, *client)
    }

    fn send_bytes(&mut self, bytes: &[u8], client: SocketAddr) -> bool {
        let endpoint = self.endpoint(client);
        if endpoint.is_none() && !self.setup.is_away {
            return false;
        }
        let own = endpoint.map_or(Ipv4Addr::UNSPECIFIED, |endpoint| *endpoint.http.ip());
        let socket = endpoint.and_then(|endpoint| endpoint.socket.as_ref()).unwrap_or(&self.socket);
        let mut sent = socket.send_to(bytes, client);
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
        sent.inspect_err(|error| log::debug!("answer not sent addr={client} reason={error}"))
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interfaces::share_prefix;

    #[test]
    fn a_client_hears_of_the_address_in_its_own_network() {
        const ALL: &str = "0.0.0.0";
        let cases: [(&[&str], &str, Option<&str>); 9] = [
            (&["192.168.1.5", "10.0.0.5"], "192.168.1.9", Some("192.168.1.5")),
            (&["192.168.1.5", "10.0.0.5"], "10.0.0.9", Some("10.0.0.5")),
            // Of no network that it listens on, the first is as good as any.
            (&["192.168.1.5", "10.0.0.5"], "172.16.0.9", Some("192.168.1.5")),
            (&["192.168.1.5", ALL], "172.16.0.9", Some(ALL)),
            (&[ALL, "10.0.0.5"], "10.0.0.9", Some("10.0.0.5")),
            (&["127.0.0.1", "10.0.0.5"], "192.168.1.9", Some("10.0.0.5")),
            (&["127.0.0.1"], "10.0.0.9", None),
            (&["10.0.0.5"], "127.0.0.1", Some("10.0.0.5")),
            (&[], "10.0.0.9", None),
        ];
        for (own, client, want) in cases {
            let ip = |text: &&str| -> Ipv4Addr { text.parse().unwrap() };
            let client: IpAddr = client.parse().unwrap();
            let shared = |own: Ipv4Addr| share_prefix(own.into(), client, 24).then_some(24);
            let found = nearest(own.iter().map(ip), client, shared).map(|at| own[at]);
            assert_eq!(found, want, "{own:?}, {client}");
        }
    }
}
