//! The asking side: probes out on every interface, announcements in.

use crate::system;
use crate::system::lock;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};

use super::{BATCH, Counters, RecentSubnets, bind_udp, spawn};
use crate::discovery::matching::{self, Expected, Received, Schedule};
use crate::discovery::packet::{self, Datagram};
use crate::manager::Mailbox;
use crate::manager::pool::Input;
use crate::net::interfaces::{Interface, broadcast_interfaces};
use crate::net::socket;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::{Keyring, Way};
use crate::pairing::noise::Key;

/// How often interfaces and the clock of sleep are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// More sleep than this between two looks means that the network may be another.
const SLEPT: Duration = Duration::from_secs(5);

/// Keys that are asked with in one round; with more, they take turns.
const KEYS: usize = 16;

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
    /// Whom to ask.
    pub keyring: Arc<Keyring>,
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
    keyring: Arc<Keyring>,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Arc<Lane>>,
    expected: Expected,
}

/// One way out: a socket of its own, so that the packet leaves there with the right source.
#[derive(Debug)]
struct Lane {
    socket: UdpSocket,
    own: Ipv4Addr,
    target: SocketAddr,
    name: String,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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
            state: Mutex::new(State { lanes: Vec::new(), expected: Expected::new(setup.identity) }),
            bell,
            counters: Counters::default(),
            keyring: Arc::clone(&setup.keyring),
        });
        let (stop, stopped) = bounded(0);
        let mailbox = setup.mailbox.clone();
        let keys = setup.keyring.keys();
        let mut announcer = Announcer {
            setup,
            shared: Arc::clone(&shared),
            instance: u32::from_ne_bytes(system::random()?),
            interfaces: Vec::new(),
            keys,
            first_key: 0,
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
    keys: Vec<Key>,
    /// Whose turn it is.
    first_key: usize,
    /// The last send error that was logged.
    complained: Option<ErrorKind>,
}

impl Announcer {
    fn run(mut self, stopped: &Receiver<()>) {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, self.setup.interval);
        let mut slept = time_slept();
        let mut next_look = start + LOOK;
        loop {
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK;
                let slept_now = time_slept();
                let woke = slept_now.saturating_sub(slept) >= SLEPT;
                slept = slept_now;
                let keys = self.setup.keyring.keys();
                let has_new_keys = self.keys != keys;
                self.keys = keys;
                let has_moved = self.refresh_lanes() || woke;
                if has_moved {
                    log::info!("network changed, looking for servers at once");
                }
                if has_moved || has_new_keys {
                    self.setup.mailbox.network_changed();
                    schedule.restart(now);
                }
            }
            if now >= schedule.due() {
                self.probe();
                let [random] = system::random().unwrap_or([128]);
                schedule.sent(now, random);
            }
            let pause = schedule.due().min(next_look).saturating_duration_since(Instant::now());
            if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
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
                    lanes.push(Arc::new(Lane { socket, own, target, name: name.to_owned() }));
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

    /// One probe per key, and one without, if machines without a key are talked to.
    fn probe(&mut self) {
        let takes_unpaired = self.setup.keyring.takes_unpaired();
        let turn = self.keys.iter().cycle().skip(self.first_key).take(self.keys.len().min(KEYS));
        let keys = turn.cloned().map(Some).chain(takes_unpaired.then_some(None));
        let mut round = Vec::new();
        for key in keys {
            let Ok(nonce) = system::random() else { return };
            round.push((nonce, key));
        }
        self.first_key = (self.first_key + KEYS) % self.keys.len().max(1);
        let lanes = {
            let mut state = self.shared.state();
            state.expected.asked(round.clone());
            state.lanes.clone()
        };
        let mut failed = None;
        for lane in lanes {
            let from = socket::source(lane.own, lane.target);
            for (nonce, key) in &round {
                let probe = Datagram::probe(self.setup.identity, *nonce);
                let probe = Datagram { instance: self.instance, ..probe };
                let bytes = matching::probe(probe, key.as_ref(), from);
                if let Err(error) = lane.socket.send_to(&bytes, lane.target) {
                    log::debug!("probe not sent through name={} reason={error}", lane.name);
                    failed = Some(error);
                }
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
    let mut buffer = [0; packet::MAX_LEN + 1];
    let mut links = RecentSubnets::new();
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
    links: &mut RecentSubnets,
    bytes: &[u8],
    source: SocketAddr,
    mailbox: &Mailbox,
) {
    let counters = &shared.counters;
    let now = Instant::now();
    let packet = match packet::decode(bytes) {
        Ok(packet) => packet,
        Err(error) => {
            log::debug!("bad packet addr={source} reason={error}");
            return Counters::count(&counters.bad);
        }
    };
    let is_on_link = || links.contain(now, source.ip());
    let keyring = &shared.keyring;
    let is_open = |about: Option<(Identity, SocketAddr)>| {
        let is_paired = about.is_some_and(|(who, address)| keyring.is_paired(who, address));
        keyring.takes_unpaired() && !is_paired
    };
    let received = Received { packet, bytes, source };
    let accepted = shared.state().expected.accept(received, is_open, is_on_link);
    match accepted {
        Some((input, key)) => {
            if let (Input::Sighted(sighting), Some(key)) = (&input, key) {
                keyring.note(sighting.address, Way::Key(key.id()));
            }
            Counters::count(&counters.good);
            mailbox.offer(input);
        }
        None => Counters::count(&counters.ignored),
    }
}
