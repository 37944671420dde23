//! One look around: who answers probes now, and through which interface.

use crate::system;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::bind_udp;
use crate::discovery::matching;
use crate::discovery::packet::{self, Datagram, Kind, Nonce, Packet, flags};
use crate::net::interfaces::broadcast_interfaces;
use crate::net::socket;
use crate::ollama::version::OllamaVersion;
use crate::pairing::identity::Identity;
use crate::pairing::noise::Key;

/// When probes are sent, in milliseconds from the start: one may get lost.
const PROBES: [u64; 3] = [0, 150, 500];
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(1200);
/// Answers that are kept; a LAN has fewer.
const MAX_ANSWERS: usize = 256;

/// A way out, and whether a probe left there.
#[derive(Clone, Debug)]
pub struct Way {
    /// The interface, or `loopback`, or `default route`.
    pub name: String,
    /// Where from.
    pub from: Ipv4Addr,
    /// Where to.
    pub to: SocketAddr,
    /// Why no probe could be sent.
    pub error: Option<String>,
}

/// A server that answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its name; may be empty.
    pub name: String,
    /// Where its HTTP is.
    pub address: SocketAddr,
    /// Through which interface the answer came.
    pub interface: String,
    /// Whether it says that its Ollama answers.
    pub ollama_up: bool,
    /// Its Ollama's version.
    pub version: OllamaVersion,
    /// Requests it has.
    pub in_flight: u16,
    /// From the last probe to the answer.
    pub time: Duration,
    /// Answered as older versions do, without any of this.
    pub is_legacy: bool,
}

/// Probes every interface (or the `wanted` ones) and collects the answers; with the keys too, since
/// paired servers answer nothing else.
///
/// # Errors
/// When there are no random bytes, or no socket at all.
pub fn scan(port: u16, wanted: &[String], keys: &[Key]) -> io::Result<(Vec<Way>, Vec<Answer>)> {
    let (mut ways, sockets) = lanes(port, wanted)?;
    let own = Identity(system::random()?);
    let start = Instant::now();
    let (mut sent, mut last_probe) = (0, start);
    let mut nonces: Vec<Nonce> = Vec::new();
    let mut answers: Vec<Answer> = Vec::new();
    let mut buffer = [0; packet::MAX_LEN + 1];
    while start.elapsed() < PATIENCE {
        if let Some(at) = PROBES.get(sent)
            && start.elapsed() >= Duration::from_millis(*at)
        {
            for key in keys.iter().map(Some).chain([None]) {
                let nonce = system::random()?;
                nonces.push(nonce);
                for (way, socket) in ways.iter_mut().zip(&sockets) {
                    let from = socket::source(way.from, way.to);
                    let probe = matching::probe(Datagram::probe(own, nonce), key, from);
                    way.error = socket.send_to(&probe, way.to).err().map(|error| error.to_string());
                }
            }
            (sent, last_probe) = (sent + 1, Instant::now());
        }
        let next = PROBES.get(sent).map_or(PATIENCE, |at| Duration::from_millis(*at));
        let left = next.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        let mut fds: Vec<PollFd<'_>> =
            sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        let time = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        if !matches!(poll(&mut fds, Some(&time)), Ok(1..)) {
            continue;
        }
        for (way, socket) in ways.iter().zip(&sockets) {
            while let Ok((len, source)) = socket.recv_from(&mut buffer) {
                let time = last_probe.elapsed();
                let answer = read(&buffer[..len], source, &nonces, &way.name, time);
                let is_new = |answer: &Answer| {
                    let same =
                        |a: &Answer| a.address == answer.address && a.interface == answer.interface;
                    !answers.iter().any(same) && answers.len() < MAX_ANSWERS
                };
                if let Some(answer) = answer.filter(is_new) {
                    answers.push(answer);
                }
            }
        }
    }
    answers.sort_by_key(|answer| (answer.address, answer.interface.clone()));
    Ok((ways, answers))
}

/// A socket on each way out; those without one say why.
fn lanes(port: u16, wanted: &[String]) -> io::Result<(Vec<Way>, Vec<UdpSocket>)> {
    let to = |ip: Ipv4Addr| SocketAddr::V4(SocketAddrV4::new(ip, port));
    let way = |name: &str, from, to| Way { name: name.to_owned(), from, to, error: None };
    let mut ways: Vec<Way> = broadcast_interfaces(wanted)
        .iter()
        .map(|interface| way(&interface.name, interface.address, to(interface.broadcast)))
        .collect();
    if ways.is_empty() && wanted.is_empty() {
        ways.push(way("default route", Ipv4Addr::UNSPECIFIED, to(Ipv4Addr::BROADCAST)));
    }
    ways.push(way("loopback", Ipv4Addr::LOCALHOST, to(Ipv4Addr::LOCALHOST)));
    let mut sockets = Vec::new();
    let mut last = None;
    ways.retain(|way| match bind_udp(way.from, 0) {
        Ok(socket) => {
            sockets.push(socket);
            true
        }
        Err(error) => {
            last = Some(error);
            false
        }
    });
    match last {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok((ways, sockets)),
    }
}

fn read(
    bytes: &[u8],
    source: SocketAddr,
    nonces: &[Nonce],
    interface: &str,
    time: Duration,
) -> Option<Answer> {
    let interface = interface.to_owned();
    match packet::decode(bytes).ok()? {
        Packet::V1(datagram) => {
            let fits = datagram.kind == Kind::Announce && datagram.http_port != 0;
            (fits && nonces.contains(&datagram.nonce)).then(|| Answer {
                name: datagram.name.clone(),
                address: SocketAddr::new(source.ip(), datagram.http_port),
                interface,
                ollama_up: datagram.flags & flags::OLLAMA_UP != 0,
                version: datagram.version,
                in_flight: datagram.in_flight,
                time,
                is_legacy: false,
            })
        }
        Packet::Legacy => Some(Answer {
            name: String::new(),
            address: SocketAddr::new(source.ip(), crate::config::SERVER_PORT),
            interface,
            ollama_up: true,
            version: OllamaVersion::default(),
            in_flight: 0,
            time,
            is_legacy: true,
        }),
    }
}
