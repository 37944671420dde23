//! The machine that shows the code. Every machine of the LAN may connect, and none keeps another
//! from being heard.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{CONFIRMED, HALF, KEPT, Own, STEP_TIMEOUT, keep};
use crate::access::addresses;
use crate::discovery::packet::{self, Datagram, Kind, Packet};
use crate::net::{interfaces::Subnets, lane, socket};
use crate::pairing::noise::{Introduction, Key, NoiseError, Purpose};
use crate::pairing::secure::{self, SecureError};
use crate::pairing::{code::PairingCode, key_files, peers::Peer, stream::Stream};
use crate::system::{self, failed};
use crate::tools::{print, say};

/// How long a code can be used.
pub(super) const CODE_LIFE: Duration = Duration::from_secs(180);
/// Wrong codes after which an address isn't listened to any more, so that nobody can end the code
/// for others; and after which it is void for all, however many addresses took part.
const MAX_WRONG: u32 = 5;
const MAX_WRONG_OF_ALL: u32 = 300;
/// Connections that are read from at once, however many there are.
const MAX_CONNECTIONS: usize = 64;
const EXPIRED: &str = "nobody typed the code in time; run it again for a new one";

pub(super) struct Host {
    listener: TcpListener,
    /// Receives the probes of machines that look for this one.
    probes: UdpSocket,
    port: u16,
}

impl Host {
    #[cfg(test)]
    pub(super) fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }

    pub(super) fn open(port: u16) -> Result<Host, String> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let refused = |error: io::Error| match error.kind() {
            ErrorKind::AddrInUse => {
                format!("port {port} is taken: another 'ollana pair' waits here; end it first")
            }
            _ => failed("cannot listen")(error),
        };
        let listener = socket::listen(any).map_err(refused)?;
        let probes = UdpSocket::bind(any).map_err(refused)?;
        probes.set_nonblocking(true).map_err(refused)?;
        Ok(Host { listener, probes, port })
    }

    /// Shows a code, and waits until a machine on which it was typed has paired.
    pub(super) fn show(&self, own: &Own, life: Duration) -> Result<Peer, String> {
        let code = system::random().map(PairingCode::new);
        let code = code.map_err(failed("cannot get random bytes"))?;
        print(&format!(
            "Type this on the other machine within 3 minutes:\n\n  ollana pair {code}\n\n"
        ))?;
        self.wait_for(own, &code, life)
    }

    /// Waits until a machine on which this code was typed has paired.
    pub(super) fn wait_for(
        &self,
        own: &Own,
        code: &PairingCode,
        life: Duration,
    ) -> Result<Peer, String> {
        let key = code.key();
        let deadline = Instant::now() + life;
        let mut connections: Vec<Connection> = Vec::new();
        let mut wrong = Wrong::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(EXPIRED.to_owned());
            }
            self.wait(&connections, left);
            self.answer_probes(own);
            self.accept(&mut connections, &wrong);
            let mut at = 0;
            while let Some(connection) = connections.get_mut(at) {
                let from = connection.from;
                match connection.advance(own, &key) {
                    Ok(None) => {
                        at += 1;
                        continue;
                    }
                    Ok(Some(peer)) => return Ok(peer),
                    Err(Failure::WrongCode) if wrong.is_over(from) => {}
                    Err(Failure::WrongCode) => {
                        let n = wrong.count(from);
                        say(&format!("{from} typed a wrong code ({n} of {MAX_WRONG})"));
                        if n == MAX_WRONG {
                            say(&format!(
                                "{from} isn't heard any more; for a new code, run it again"
                            ));
                        }
                    }
                    Err(Failure::NoHandshake) => {}
                    Err(Failure::BrokeOff(error)) => {
                        say(&format!("{from} broke off: {error}; it can try again"));
                    }
                    Err(Failure::NotKept(reason)) => return Err(reason),
                }
                if wrong.of_all == MAX_WRONG_OF_ALL {
                    return Err(format!(
                        "the code was typed wrong {MAX_WRONG_OF_ALL} times; run it again for a new one"
                    ));
                }
                connections.swap_remove(at);
            }
        }
    }

    /// Waits for bytes, for a connection, or until a connection has been silent for too long.
    fn wait(&self, connections: &[Connection], most: Duration) {
        let now = Instant::now();
        let left = connections.iter().map(|one| one.deadline.saturating_duration_since(now));
        let time = Timespec::try_from(left.fold(most, Duration::min)).ok();
        let mut fds = vec![PollFd::new(&self.probes, PollFlags::IN)];
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        fds.extend(connections.iter().map(|one| PollFd::new(one.stream.socket(), PollFlags::IN)));
        let _ = poll(&mut fds, time.as_ref());
    }

    /// Accepts machines of the LAN. Where there are too many connections, one is closed: of the
    /// address with the most, the oldest.
    fn accept(&self, connections: &mut Vec<Connection>, wrong: &Wrong) {
        for _ in 0..MAX_CONNECTIONS {
            let Ok((stream, from)) = self.listener.accept() else { return };
            let from = from.ip();
            let is_near = addresses::is_local_address(from) || Subnets::now().contain(from);
            let is_set = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if !is_near || is_set.is_err() || wrong.is_over(from) {
                continue;
            }
            if connections.len() == MAX_CONNECTIONS {
                let of_address = |from| connections.iter().filter(|one| one.from == from).count();
                let rank = |one: &Connection| (Reverse(of_address(one.from)), one.deadline);
                let closed = (0..connections.len()).min_by_key(|at| rank(&connections[*at]));
                connections.swap_remove(closed.unwrap_or(0));
            }
            connections.push(Connection::new(stream, from));
        }
    }

    fn answer_probes(&self, own: &Own) {
        let mut buffer = [0; packet::MAX_LEN + 1];
        for _ in 0..16 {
            let Ok(received) = lane::receive(&self.probes, &mut buffer) else { return };
            let Some((len, from)) = received else { continue };
            let Ok(Packet::V1(probe)) = packet::decode(&buffer[..len]) else { continue };
            if probe.kind != Kind::Probe || !Subnets::now().contain(from.ip()) {
                continue;
            }
            let Introduction { name, identity, .. } = own.introduction.clone();
            let probe = Datagram::probe(identity, probe.nonce);
            let answer = Datagram { kind: Kind::Announce, http_port: self.port, name, ..probe };
            let _ = self.probes.send_to(&answer.encode(len), from);
        }
    }
}

/// Wrong codes that were typed.
#[derive(Default)]
struct Wrong {
    of_all: u32,
    of: HashMap<IpAddr, u32>,
}

impl Wrong {
    /// How many the address has typed, with this one.
    fn count(&mut self, from: IpAddr) -> u32 {
        self.of_all += 1;
        let n = self.of.entry(from).or_default();
        *n += 1;
        *n
    }

    fn is_over(&self, from: IpAddr) -> bool {
        self.of.get(&from).is_some_and(|n| *n >= MAX_WRONG)
    }
}

enum Failure {
    WrongCode,
    /// Doesn't count as a guess.
    NoHandshake,
    /// The code was right, but the rest failed.
    BrokeOff(io::Error),
    /// The key can't be kept.
    NotKept(String),
}

/// A connection to the machine that shows the code. It is never waited for.
struct Connection {
    stream: Stream,
    from: IpAddr,
    /// When the present message must be complete.
    deadline: Instant,
    /// The present message, of which `received` bytes have come.
    message: Vec<u8>,
    received: usize,
    step: Step,
}

/// What comes next from the machine on which the code is typed.
enum Step {
    Handshake,
    /// It has proved to have the code; ours is the other half.
    Half(Introduction, [u8; HALF]),
    /// We have kept the key.
    Kept(Peer),
}

impl Connection {
    fn new(socket: TcpStream, from: IpAddr) -> Connection {
        let (stream, deadline) = (Stream::new(socket), Instant::now() + STEP_TIMEOUT);
        let message = vec![0; Purpose::Pairing.hello_len()];
        Connection { stream, from, deadline, message, received: 0, step: Step::Handshake }
    }

    /// Reads what is there; returns the new peer once its last message is complete.
    fn advance(&mut self, own: &Own, key: &Key) -> Result<Option<Peer>, Failure> {
        while self.receive().map_err(|error| match self.step {
            Step::Handshake => Failure::NoHandshake,
            _ => Failure::BrokeOff(error),
        })? {
            match std::mem::replace(&mut self.step, Step::Handshake) {
                Step::Handshake => self.answer_handshake(own, key)?,
                Step::Half(peer, half) => {
                    let mut theirs = [0; HALF];
                    theirs.copy_from_slice(&self.message);
                    let key = Key::of_halves(&half, &theirs);
                    let peer = keep(own, peer, key).map_err(Failure::NotKept)?;
                    self.say(KEPT)?;
                    self.go_on_to(Step::Kept(peer), KEPT.len());
                }
                Step::Kept(_) if self.message != KEPT => {
                    return Err(Failure::BrokeOff(ErrorKind::InvalidData.into()));
                }
                Step::Kept(peer) => {
                    key_files::confirm(&own.state_dir, vec![peer.id()])
                        .map_err(Failure::NotKept)?;
                    // If this gets lost, the first use confirms the key over there.
                    let _ = self.say(CONFIRMED);
                    return Ok(Some(peer));
                }
            }
        }
        Ok(None)
    }

    /// The nearly empty buffer of a new connection takes this at once.
    fn say(&self, message: &[u8]) -> Result<(), Failure> {
        match self.stream.try_write(message).map_err(Failure::BrokeOff)? == message.len() {
            true => Ok(()),
            false => Err(Failure::BrokeOff(ErrorKind::WriteZero.into())),
        }
    }

    fn go_on_to(&mut self, step: Step, len: usize) {
        (self.step, self.message, self.received) = (step, vec![0; len], 0);
        self.deadline = Instant::now() + STEP_TIMEOUT;
    }

    /// Whether the present message is complete.
    fn receive(&mut self) -> io::Result<bool> {
        while self.received < self.message.len() {
            match self.stream.try_read(&mut self.message[self.received..])? {
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(n) => self.received += n,
                None if Instant::now() >= self.deadline => return Err(ErrorKind::TimedOut.into()),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Answers the handshake, and sends half a key.
    fn answer_handshake(&mut self, own: &Own, key: &Key) -> Result<(), Failure> {
        let me = &own.introduction;
        let answered = secure::respond(&self.stream, Purpose::Pairing, key, me, &self.message);
        let peer = answered.map_err(|error| match error {
            SecureError::Handshake(NoiseError::WrongKey) => Failure::WrongCode,
            SecureError::Connect(error) => Failure::BrokeOff(error),
            _ => Failure::NoHandshake,
        })?;
        let half = system::random().map_err(Failure::BrokeOff)?;
        self.say(&half)?;
        self.go_on_to(Step::Half(peer, half), HALF);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairing::identity::Identity;

    #[test]
    fn who_says_nothing_in_time_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(stream, from.ip());
        assert!(matches!(connection.receive(), Ok(false)) && connection.deadline > Instant::now());
        connection.deadline = Instant::now();
        assert_eq!(connection.receive().unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_code_lives_no_longer_for_those_who_connect() {
        let host = Host::open(0).ok().unwrap();
        let own = Own {
            state_dir: std::env::temp_dir(),
            introduction: Introduction::of(Identity([1; 16])),
        };
        let address =
            SocketAddr::from(([127, 0, 0, 1], host.listener.local_addr().unwrap().port()));
        let _silent = TcpStream::connect(address).unwrap();
        let start = Instant::now();
        let waited = host.wait_for(&own, &PairingCode::new([0; 8]), Duration::from_millis(300));
        assert_eq!(waited, Err(EXPIRED.to_owned()));
        assert_eq!(CODE_LIFE, Duration::from_secs(3 * 60), "as it says, and README.md");
        assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < STEP_TIMEOUT);
    }
}
