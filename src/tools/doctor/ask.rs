//! Questions: HTTP of the plainest kind, and probes of the discovery.

use crate::system;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::discovery::matching;
use crate::discovery::packet::{self, Datagram, Kind, Nonce, Packet};
use crate::net::interfaces::Interface;
use crate::net::socket;
use crate::pairing::identity::Identity;
use crate::pairing::noise::Key;

/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// When probes are sent; the answers to the last have the rest of two seconds.
const PROBES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(900)];
pub(super) const SCAN: Duration = Duration::from_millis(1900);
/// Longest answer that is read.
const MOST: u64 = 64 * 1024;

/// An answer over HTTP.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// A field's value.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    }

    /// Whether a proxy of ours was involved.
    pub(super) fn is_from_ollana(&self) -> bool {
        self.field("via").is_some_and(|via| via.contains(" ollana-"))
            || self.field("x-ollana-error").is_some()
    }

    /// Ollama's version, if this tells one.
    pub(super) fn version(&self) -> Option<String> {
        let start = self.body.find('{')?;
        let end = self.body.rfind('}')?;
        let json: serde_json::Value = serde_json::from_str(self.body.get(start..=end)?).ok()?;
        Some(json.get("version")?.as_str()?.chars().take(64).collect())
    }
}

/// `GET /api/version` with these further fields, `Host` among them.
///
/// # Errors
/// When nobody answers in time.
pub(super) fn get(address: SocketAddr, fields: &str) -> io::Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /api/version HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while (bytes.len() as u64) < MOST {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                bytes.extend_from_slice(&piece[..n]);
                if is_whole(&bytes) {
                    break;
                }
            }
            Err(error) if bytes.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("this is no HTTP"))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Whether an answer of known length, or in chunks, is all there: not everybody closes when asked.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
        || (head.contains("\ntransfer-encoding:") && body.ends_with("0\r\n\r\n"))
}

/// Who answered a probe.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) from: SocketAddr,
    pub(super) http_port: u16,
    pub(super) name: String,
    /// The way that the probe took, such as an interface's name.
    pub(super) through: String,
    pub(super) round_trip: Duration,
}

/// Where a probe goes.
pub(super) struct Way {
    pub(super) own: Ipv4Addr,
    pub(super) target: SocketAddrV4,
    pub(super) name: String,
}

/// The ways of a broadcast.
pub(super) fn broadcasts(interfaces: &[Interface], port: u16) -> Vec<Way> {
    let way = |interface: &Interface| Way {
        own: interface.address,
        target: SocketAddrV4::new(interface.broadcast, port),
        name: interface.name.clone(),
    };
    let own = Ipv4Addr::LOCALHOST;
    let loopback = Way { own, target: SocketAddrV4::new(own, port), name: "loopback".to_owned() };
    interfaces.iter().map(way).chain([loopback]).collect()
}

/// Sends probes on all ways and listens for [`SCAN`]: who answered, and the ways that can't be
/// used. Each address counts once per way.
pub(super) fn scan(ways: &[Way], keys: &[Key]) -> (Vec<Heard>, Vec<(String, io::Error)>) {
    let mut failed = Vec::new();
    let mut sockets = Vec::new();
    for way in ways {
        let socket = UdpSocket::bind((way.own, 0)).and_then(|socket| {
            socket.set_broadcast(true)?;
            socket.set_read_timeout(Some(Duration::from_millis(5)))?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => sockets.push((way, socket, Vec::<(Nonce, Instant)>::new())),
            Err(error) => failed.push((way.name.clone(), error)),
        }
    }
    let start = Instant::now();
    let mut heard: Vec<Heard> = Vec::new();
    let mut sent = 0;
    let own = Identity(system::random().unwrap_or_default());
    while start.elapsed() < SCAN && !sockets.is_empty() {
        if PROBES.get(sent).is_some_and(|at| start.elapsed() >= *at) {
            sent += 1;
            for (way, socket, asked) in &mut sockets {
                for key in keys.iter().map(Some).chain([None]) {
                    let nonce: Nonce = system::random().unwrap_or_default();
                    asked.push((nonce, Instant::now()));
                    let from = socket::source(way.own, way.target.into());
                    let probe = matching::probe(Datagram::probe(own, nonce), key, from);
                    let result = socket.send_to(&probe, way.target);
                    if let (1, Err(error)) = (sent, result) {
                        failed.push((way.name.clone(), error));
                        break;
                    }
                }
            }
        }
        for (way, socket, asked) in &sockets {
            let mut bytes = [0; packet::MAX_LEN];
            let Ok((n, from)) = socket.recv_from(&mut bytes) else { continue };
            let Ok(Packet::V1(answer)) = packet::decode(&bytes[..n]) else { continue };
            let Some((_, at)) = asked.iter().find(|(nonce, _)| *nonce == answer.nonce) else {
                continue;
            };
            let is_known = heard.iter().any(|one| one.from == from && one.through == way.name);
            if answer.kind == Kind::Announce && !is_known {
                heard.push(Heard {
                    from,
                    http_port: answer.http_port,
                    name: answer.name,
                    through: way.name.clone(),
                    round_trip: at.elapsed(),
                });
            }
        }
    }
    (heard, failed)
}
