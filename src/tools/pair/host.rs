//! The machine that shows the code: everybody may connect, and nobody holds anybody else up.

use crate::system;
use std::cmp::Reverse;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{HALF, KEPT, Own, Problem, STEP, TRIES, failed, keep, open, seal};
use crate::access::addresses;
use crate::discovery::packet::{self, Datagram, Kind, Packet};
use crate::net::interfaces::Subnets;
use crate::net::socket;
use crate::pairing::code::Code;
use crate::pairing::noise::{self, Broken, Greeted, Introduction, Key, OVERHEAD, Purpose, Session};
use crate::pairing::peers::Peer;

/// How long a code can be used.
pub(super) const LIFE: Duration = Duration::from_secs(180);
/// Connections that are listened to at once, however many want to be heard.
const GUESTS: usize = 64;

/// The place where the code is awaited.
pub(super) struct Host {
    listener: TcpListener,
    ear: UdpSocket,
    port: u16,
}

impl Host {
    pub(super) fn open(port: u16) -> Result<Host, Problem> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let refused = |error: io::Error| match error.kind() {
            ErrorKind::AddrInUse => Problem::Busy(port),
            _ => failed("cannot listen")(error),
        };
        let listener = socket::listen(any).map_err(refused)?;
        let ear = UdpSocket::bind(any).map_err(refused)?;
        ear.set_nonblocking(true).map_err(refused)?;
        Ok(Host { listener, ear, port })
    }

    /// Shows a code, and waits for somebody who has it.
    pub(super) fn show(&self, own: &Own, life: Duration) -> Result<Peer, Problem> {
        let code = Code::new(system::random().map_err(failed("cannot get random bytes"))?);
        println!("Type this on the other machine within 3 minutes:\n\n  ollana pair {code}\n");
        let _ = io::stdout().flush();
        let key = code.key();
        let deadline = Instant::now() + life;
        let mut guests: Vec<Guest> = Vec::new();
        let mut wrong = 0;
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Err(Problem::Expired);
            }
            self.wait(&guests, deadline - now);
            self.answer_search(own);
            self.let_in(&mut guests);
            let mut at = 0;
            while let Some(guest) = guests.get_mut(at) {
                match guest.listen(own, &key) {
                    Ok(None) => {
                        at += 1;
                        continue;
                    }
                    Ok(Some(peer)) => return Ok(peer),
                    Err(Visit::Wrong) => {
                        wrong += 1;
                        println!("{} typed a wrong code ({wrong} of {TRIES})", guest.from);
                        if wrong == TRIES {
                            return Err(Problem::Guessed);
                        }
                    }
                    Err(Visit::Nothing) => {}
                    Err(Visit::BrokeOff(error)) => {
                        println!("{} broke off: {error}; it can try again", guest.from);
                    }
                    Err(Visit::Unkept(problem)) => return Err(problem),
                }
                guests.swap_remove(at);
            }
        }
    }

    /// Waits until somebody says something, connects, or has said nothing for too long.
    fn wait(&self, guests: &[Guest], most: Duration) {
        let now = Instant::now();
        let until = guests.iter().map(|guest| guest.deadline.saturating_duration_since(now));
        let time = until.fold(most, Duration::min);
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let mut fds =
            vec![PollFd::new(&self.ear, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(guests.iter().map(|guest| PollFd::new(&guest.stream, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&time));
    }

    /// Lets in those who wait at the door. Where there are too many, one of those leaves who come
    /// from the address with the most, and of these the one that came first.
    fn let_in(&self, guests: &mut Vec<Guest>) {
        for _ in 0..GUESTS {
            let Ok((stream, from)) = self.listener.accept() else { return };
            let from = from.ip();
            if !addresses::is_local_address(from) && !Subnets::now().contain(from) {
                continue;
            }
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                continue;
            }
            if guests.len() == GUESTS {
                let company =
                    |guest: &Guest| guests.iter().filter(|g| g.from == guest.from).count();
                let rank = |guest: &Guest| (Reverse(company(guest)), guest.deadline);
                let leaving = (0..guests.len()).min_by_key(|at| rank(&guests[*at]));
                guests.swap_remove(leaving.unwrap_or(0));
            }
            guests.push(Guest::new(stream, from));
        }
    }

    /// Tells those who look for a machine that shows a code where it is.
    fn answer_search(&self, own: &Own) {
        let mut buffer = [0; packet::MAX_LEN + 1];
        for _ in 0..16 {
            let Ok((len, from)) = self.ear.recv_from(&mut buffer) else { return };
            let Ok(Packet::V1(probe)) = packet::decode(&buffer[..len]) else { continue };
            if probe.kind != Kind::Probe || !Subnets::now().contain(from.ip()) {
                continue;
            }
            let introduction = &own.introduction;
            let answer = Datagram {
                name: introduction.name.clone(),
                ..Datagram::probe(own.introduction.identity, probe.nonce)
            };
            let answer = Datagram { kind: Kind::Announce, http_port: self.port, ..answer };
            let _ = self.ear.send_to(&answer.encode(len), from);
        }
    }
}

/// A connection that paired nobody.
enum Visit {
    /// A handshake with another code.
    Wrong,
    /// No handshake at all, which is no guess.
    Nothing,
    /// It had the code, but then something happened on the way.
    BrokeOff(io::Error),
    /// The key can't be kept.
    Unkept(Problem),
}

/// Somebody who has connected to the machine that shows the code. Nobody is waited for.
struct Guest {
    stream: TcpStream,
    from: IpAddr,
    deadline: Instant,
    /// Its present message, of which `heard` bytes have come.
    message: Vec<u8>,
    heard: usize,
    met: Option<Met>,
}

/// What is known of a guest that has the code.
struct Met {
    session: Session,
    peer: Introduction,
    half: [u8; HALF],
}

impl Guest {
    fn new(stream: TcpStream, from: IpAddr) -> Guest {
        let message = vec![0; Purpose::Pairing.hello_len()];
        Guest { stream, from, deadline: Instant::now() + STEP, message, heard: 0, met: None }
    }

    /// Takes what it says: the new peer once it has said all.
    fn listen(&mut self, own: &Own, key: &Key) -> Result<Option<Peer>, Visit> {
        while self.hear().map_err(|error| self.gone(error))? {
            match self.met.take() {
                None => self.meet(own, key)?,
                Some(met) => return self.agree(own, met).map(Some),
            }
        }
        Ok(None)
    }

    /// Whether its message is here as a whole.
    fn hear(&mut self) -> io::Result<bool> {
        while self.heard < self.message.len() {
            match socket::try_read(&self.stream, &mut self.message[self.heard..])? {
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(n) => self.heard += n,
                None if Instant::now() >= self.deadline => return Err(ErrorKind::TimedOut.into()),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn gone(&self, error: io::Error) -> Visit {
        if self.met.is_some() { Visit::BrokeOff(error) } else { Visit::Nothing }
    }

    /// Answers its handshake, and gives it half a key.
    fn meet(&mut self, own: &Own, key: &Key) -> Result<(), Visit> {
        let answered = noise::answer(Purpose::Pairing, key, &own.introduction, &self.message);
        let (mut reply, Greeted { mut session, peer }) = match answered {
            Ok(answered) => answered,
            Err(Broken::Key) => return Err(Visit::Wrong),
            Err(_) => return Err(Visit::Nothing),
        };
        let half: [u8; HALF] = system::random().map_err(Visit::BrokeOff)?;
        reply.extend(seal(&mut session, &half).map_err(Visit::BrokeOff)?);
        // A new connection takes this little at once.
        match socket::try_write(&self.stream, &reply).map_err(Visit::BrokeOff)? {
            n if n == reply.len() => {}
            _ => return Err(Visit::BrokeOff(ErrorKind::WriteZero.into())),
        }
        self.deadline = Instant::now() + STEP;
        self.message = vec![0; HALF + OVERHEAD];
        self.heard = 0;
        self.met = Some(Met { session, peer, half });
        Ok(())
    }

    /// Takes its half of the key, and keeps the whole.
    fn agree(&mut self, own: &Own, mut met: Met) -> Result<Peer, Visit> {
        let theirs = open::<HALF>(&mut met.session, &mut self.message).map_err(Visit::BrokeOff)?;
        let key = Key::of_halves(&met.half, &theirs);
        let peer = keep(own, &met.peer, key).map_err(Visit::Unkept)?;
        // If this gets lost, the other machine says that it failed, and pairing again mends it.
        let kept = seal(&mut met.session, KEPT);
        let _ = kept.and_then(|record| socket::try_write(&self.stream, &record));
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairing::identity::Identity;

    #[test]
    fn who_says_nothing_in_time_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut guest = Guest::new(stream, from.ip());
        assert!(matches!(guest.hear(), Ok(false)) && guest.deadline > Instant::now());
        guest.deadline = Instant::now();
        assert_eq!(guest.hear().unwrap_err().kind(), ErrorKind::TimedOut);
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
        let shown = host.show(&own, Duration::from_millis(300));
        assert!(matches!(shown, Err(Problem::Expired)));
        assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < STEP);
    }
}
