//! Datagrams that no honest ollana sends, and what it takes to send them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use ollana::discovery::packet::{Datagram, Kind, Nonce, PROBE_LEN};
use ollana::ollama::version::OllamaVersion;
use ollana::pairing::identity::Identity;
use socket2::{Domain, Protocol, Socket, Type};

use super::lan::Host;

/// UDP port of the discovery.
pub(crate) const DISCOVERY: u16 = 11436;

/// Numbers without any pattern that matters, the same in each run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self) -> [u8; 16] {
        let (high, low) = (u128::from(self.next()), u128::from(self.next()));
        (high << 64 | low).to_be_bytes()
    }
}

/// A probe as a client sends it.
pub(crate) fn probe(nonce: Nonce) -> Vec<u8> {
    datagram(Kind::Probe, nonce, [1; 16], 0)
}

/// An announcement of a server that doesn't have to exist.
pub(crate) fn announcement(nonce: Nonce, sender: [u8; 16], port: u16) -> Vec<u8> {
    datagram(Kind::Announce, nonce, sender, port)
}

fn datagram(kind: Kind, nonce: Nonce, sender: [u8; 16], http_port: u16) -> Vec<u8> {
    Datagram {
        kind,
        nonce,
        sender: Identity(sender),
        http_port,
        flags: u16::from(kind == Kind::Announce),
        capabilities: 0,
        version: OllamaVersion::default(),
        in_flight: 0,
        instance: u32::from_be_bytes([sender[0], sender[1], sender[2], sender[3]]),
        name: String::new(),
        key: None,
    }
    .encode(PROBE_LEN)
}

/// A UDP socket on a host; reads give up after a while.
pub(crate) fn udp(host: &Host, address: &str, patience: Duration) -> UdpSocket {
    let socket = host.run(|| UdpSocket::bind(address)).expect("a UDP port");
    socket.set_read_timeout(Some(patience)).expect("a limit");
    socket
}

/// Hears a client's probe by its broadcast: the bytes and whom to answer.
pub(crate) fn overhear(ear: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 512];
    let (len, client) = ear.recv_from(&mut buffer).expect("a client's probe");
    (buffer[..len].to_vec(), client)
}

/// The nonce of a probe.
pub(crate) fn nonce_of(probe: &[u8]) -> Nonce {
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&probe[8..24]);
    nonce
}

/// Sends UDP packets with any source address.
pub(crate) struct Spoofer(Socket);

impl Spoofer {
    /// Sending from this host.
    pub(crate) fn new(host: &Host) -> Spoofer {
        /// IPPROTO_RAW: the packets come with their IP head.
        const RAW: i32 = 255;
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)));
        Spoofer(host.run(open).expect("a raw socket"))
    }

    /// Sends one; the kernel fills in the lengths that are left out and the head's checksum.
    pub(crate) fn send(&self, from: SocketAddrV4, to: SocketAddrV4, data: &[u8]) -> io::Result<()> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(from.ip().octets());
        packet.extend(to.ip().octets());
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend((data.len() as u16 + 8).to_be_bytes());
        packet.extend([0, 0]); // No checksum, which UDP over IPv4 allows.
        packet.extend(data);
        self.0.send_to(&packet, &SocketAddr::V4(to).into()).map(|_| ())
    }
}
