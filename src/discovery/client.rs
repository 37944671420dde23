//! The asking side: probes out on every interface, announcements in.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};

use super::{BATCH, Counters, RecentLinks, bind_udp, spawn};
use crate::interfaces::{Interface, broadcast_interfaces};
use crate::manager::Mailbox;
use crate::pool::{Input, Sighting};
use crate::state;
use crate::wire::{self, Datagram, Identity, Kind, Nonce, OllamaVersion, Packet, flags};

/// Probes after the start and after a change of the network, in milliseconds from then.
const BURST: [u64; 5] = [0, 50, 150, 350, 1000];
/// How often interfaces and the clock of sleep are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Answers count for so many of our last probes.
const NONCES: usize = 3;
/// More sleep than this between two looks means that the network may be another.
const SLEPT: Duration = Duration::from_secs(5);

/// What the asking side needs.
#[derive(Debug)]
pub struct ClientSetup {
    /// UDP port of the servers.
    pub port: u16,
    /// Pause between two probes.
    pub interval: Duration,
    /// Interfaces to use; empty means every suitable one.
    pub interfaces: Vec<String>,
    /// Who we are, for our own server not to be taken for another.
    pub identity: Identity,
    /// Where sightings go.
    pub mailbox: Mailbox,
}

/// The announcer's and the listener's threads; dropping it stops and joins both.
#[derive(Debug)]
pub struct Client {
    stop: Option<Sender<()>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Written when the lanes changed, closed when we are stopping.
    bell: UnixStream,
    counters: Counters,
    own: Identity,
}

#[derive(Debug, Default)]
struct State {
    lanes: Vec<Arc<Lane>>,
    nonces: VecDeque<Nonce>,
}

/// One way out: a socket of its own, so that the packet leaves there with the right source.
#[derive(Debug)]
struct Lane {
    socket: UdpSocket,
    target: SocketAddr,
    name: String,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Starts to look for servers.
    ///
    /// # Errors
    /// When threads or random bytes can't be had. A missing network is no error.
    pub fn start(setup: ClientSetup) -> io::Result<Self> {
        let (bell, ear) = UnixStream::pair()?;
        ear.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            bell,
            counters: Counters::default(),
            own: setup.identity,
        });
        let (stop, stopped) = bounded(0);
        let mailbox = setup.mailbox.clone();
        let mut announcer = Announcer {
            setup,
            shared: Arc::clone(&shared),
            instance: u32::from_ne_bytes(state::random()?),
            interfaces: Vec::new(),
            complained: None,
        };
        // Before any thread runs, so that the first answer finds its lane.
        announcer.refresh_lanes();
        let mut client =
            Client { stop: Some(stop), shared: Arc::clone(&shared), threads: Vec::new() };
        client.threads.push(spawn("listener", move || listen(&shared, &ear, &mailbox))?);
        client.threads.push(spawn("announcer", move || announcer.run(&stopped))?);
        Ok(client)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.shared.bell.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.counters.log("discovery");
    }
}

struct Announcer {
    setup: ClientSetup,
    shared: Arc<Shared>,
    instance: u32,
    interfaces: Vec<Interface>,
    /// The last send error that was logged.
    complained: Option<ErrorKind>,
}

impl Announcer {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut origin = Instant::now();
        let mut sent = 0;
        let mut slept = time_slept();
        let mut next_look = origin + LOOK;
        let mut next_probe = origin;
        loop {
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK;
                let slept_now = time_slept();
                let woke = slept_now.saturating_sub(slept) >= SLEPT;
                slept = slept_now;
                if self.refresh_lanes() || woke {
                    log::info!("network changed, looking for servers at once");
                    (origin, sent, next_probe) = (now, 0, now);
                }
            }
            if now >= next_probe {
                self.probe();
                sent += 1;
                next_probe = match BURST.get(sent) {
                    Some(at) => origin + Duration::from_millis(*at),
                    None => now + self.jittered_interval(),
                };
            }
            let pause = next_probe.min(next_look).saturating_duration_since(Instant::now());
            if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// The interval ± 10 %, so that many clients don't ask in step.
    fn jittered_interval(&self) -> Duration {
        let [byte] = state::random().unwrap_or([128]);
        self.setup.interval * (900 + u32::from(byte) * 200 / 255) / 1000
    }

    /// Makes the lanes fit the interfaces; true if there was a change after the start.
    fn refresh_lanes(&mut self) -> bool {
        let interfaces = broadcast_interfaces(&self.setup.interfaces);
        let first = self.shared.state().lanes.is_empty();
        if !first && interfaces == self.interfaces {
            return false;
        }
        let port = self.setup.port;
        let to = |ip: Ipv4Addr| SocketAddr::V4(SocketAddrV4::new(ip, port));
        let mut ways: Vec<(Ipv4Addr, SocketAddr, &str)> = interfaces
            .iter()
            .map(|interface| (interface.address, to(interface.broadcast), interface.name.as_str()))
            .collect();
        if ways.is_empty() && self.setup.interfaces.is_empty() {
            // Leaves by the default route alone, which is better than nothing.
            ways.push((Ipv4Addr::UNSPECIFIED, to(Ipv4Addr::BROADCAST), "default route"));
        }
        ways.push((Ipv4Addr::LOCALHOST, to(Ipv4Addr::LOCALHOST), "loopback"));
        let mut lanes = Vec::new();
        for (own, target, name) in ways {
            match bind_udp(own, 0) {
                Ok(socket) => {
                    lanes.push(Arc::new(Lane { socket, target, name: name.to_owned() }));
                }
                Err(error) => log::debug!("no probes through name={name} reason={error}"),
            }
        }
        let names: Vec<&str> = lanes.iter().map(|lane| lane.name.as_str()).collect();
        log::debug!("probing through {names:?}");
        self.interfaces = interfaces;
        self.shared.state().lanes = lanes;
        let _ = (&self.shared.bell).write_all(&[1]);
        !first
    }

    fn probe(&mut self) {
        let Ok(nonce) = state::random() else { return };
        let bytes = Datagram {
            kind: Kind::Probe,
            nonce,
            sender: self.shared.own,
            http_port: 0,
            flags: 0,
            capabilities: 0,
            version: OllamaVersion::default(),
            in_flight: 0,
            instance: self.instance,
            name: String::new(),
        }
        .encode(wire::PROBE_LEN);
        let lanes = {
            let mut state = self.shared.state();
            state.nonces.push_back(nonce);
            if state.nonces.len() > NONCES {
                state.nonces.pop_front();
            }
            state.lanes.clone()
        };
        let mut failed = None;
        for lane in lanes {
            if let Err(error) = lane.socket.send_to(&bytes, lane.target) {
                log::debug!("probe not sent through name={} reason={error}", lane.name);
                failed = Some(error);
            }
        }
        // Never permanent: the next probe tries again. One line per change.
        let kind = failed.as_ref().map(io::Error::kind);
        if let (Some(error), true) = (&failed, kind != self.complained) {
            log::warn!("cannot send probes on every interface: {error}{}", hint(error));
        }
        self.complained = kind;
    }
}

fn hint(error: &io::Error) -> &'static str {
    if cfg!(target_os = "macos") && error.kind() == ErrorKind::HostUnreachable {
        " (allow ollana in System Settings > Privacy & Security > Local Network)"
    } else if error.kind() == ErrorKind::PermissionDenied {
        " (does a firewall forbid outgoing UDP?)"
    } else {
        ""
    }
}

/// How long this machine has slept since it booted: the clock that counts sleep minus the one
/// that doesn't.
fn time_slept() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::time::{ClockId, clock_gettime};
        let read = |clock| {
            let time = clock_gettime(clock);
            Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.max(0) as u32)
        };
        read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic))
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Duration::ZERO
}

/// Receives on all lanes until the bell's other side is closed.
fn listen(shared: &Shared, ear: &UnixStream, mailbox: &Mailbox) {
    let mut buffer = [0; wire::MAX_LEN + 1];
    let mut links = RecentLinks::new();
    loop {
        let lanes = shared.state().lanes.clone();
        let mut fds = vec![PollFd::new(ear, PollFlags::IN)];
        fds.extend(lanes.iter().map(|lane| PollFd::new(&lane.socket, PollFlags::IN)));
        if poll(&mut fds, None).is_err() {
            continue; // Interrupted.
        }
        if !fds[0].revents().is_empty() {
            let mut ear = ear;
            match ear.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {} // New lanes.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        for (lane, fd) in lanes.iter().zip(&fds[1..]) {
            if fd.revents().is_empty() {
                continue;
            }
            for _ in 0..BATCH {
                let Ok((len, source)) = lane.socket.recv_from(&mut buffer) else { break };
                receive(shared, &mut links, &buffer[..len], source, mailbox);
            }
        }
    }
}

fn receive(
    shared: &Shared,
    links: &mut RecentLinks,
    bytes: &[u8],
    source: SocketAddr,
    mailbox: &Mailbox,
) {
    let counters = &shared.counters;
    let now = Instant::now();
    let datagram = match wire::decode(bytes) {
        Ok(Packet::V1(datagram)) => datagram,
        Ok(Packet::Legacy) if links.contain(now, source.ip()) => {
            Counters::count(&counters.good);
            return mailbox.offer(Input::LegacySighted(source.ip()));
        }
        Ok(Packet::Legacy) => return Counters::count(&counters.ignored),
        Err(error) => {
            log::trace!("bad packet addr={source} reason={error}");
            return Counters::count(&counters.bad);
        }
    };
    let answers_us = shared.state().nonces.contains(&datagram.nonce);
    if !answers_us || datagram.sender == shared.own || !links.contain(now, source.ip()) {
        return Counters::count(&counters.ignored);
    }
    match datagram.kind {
        Kind::Announce if datagram.http_port != 0 => {
            Counters::count(&counters.good);
            mailbox.offer(Input::Sighted(Sighting {
                address: SocketAddr::new(source.ip(), datagram.http_port),
                identity: datagram.sender,
                instance: datagram.instance,
                name: datagram.name,
                ollama_up: datagram.flags & flags::OLLAMA_UP != 0,
            }));
        }
        Kind::Goodbye => {
            Counters::count(&counters.good);
            mailbox.offer(Input::Farewell { identity: datagram.sender, from: source.ip() });
        }
        Kind::Announce | Kind::Probe => Counters::count(&counters.ignored),
    }
}
