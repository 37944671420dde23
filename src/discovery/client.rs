//! The asking side: probes out on every lane, announcements in.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::matching::{self, Expected, Question, Received};
use super::packet::{self, Datagram, Packet};
use super::schedule::{LOOK_INTERVAL, SLEPT, Schedule};
use super::{BATCH, Counts, SideThread, rate_limit::RateLimit};
use crate::manager::{Mailbox, pool::Input};
use crate::net::interfaces::{RecentSubnets, probed_interfaces};
use crate::net::lane::{self, Lane, Lanes};
use crate::net::socket::Waker;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::pairing::noise::Key;
use crate::system;

/// Most keys that one round of probes is sent with. If there are more, they take turns.
const KEYS: usize = 16;

#[derive(Debug)]
pub(crate) struct ClientSetup {
    pub(crate) port: u16,
    /// Pause between two rounds of probes after a burst.
    pub(crate) interval: Duration,
    /// Interfaces to use; empty means every suitable one.
    pub(crate) interfaces: Vec<String>,
    pub(crate) identity: Identity,
    pub(crate) mailbox: Mailbox,
    pub(crate) keyring: Arc<Keyring>,
}

/// The thread that sends probes and takes answers.
#[derive(Debug)]
pub(crate) struct Client {
    _thread: SideThread,
}

impl Client {
    /// A missing network is no error.
    pub(crate) fn start(setup: ClientSetup) -> io::Result<Self> {
        let mut asker = Asker {
            instance: u32::from_ne_bytes(system::random()?),
            lanes: Lanes::default(),
            keys: setup.keyring.keys(),
            first_key: 0,
            expected: Expected::new(setup.identity),
            subnets: RecentSubnets::new(),
            limit: RateLimit::new(Instant::now()),
            notice_limit: RateLimit::new(Instant::now()),
            logged_error: None,
            setup,
        };
        let thread = SideThread::start("discovery", move |stop| asker.run(stop))?;
        Ok(Client { _thread: thread })
    }
}

struct Asker {
    setup: ClientSetup,
    instance: u32,
    lanes: Lanes,
    keys: Vec<Key>,
    /// The first of the keys whose turn it is.
    first_key: usize,
    expected: Expected,
    subnets: RecentSubnets,
    limit: RateLimit,
    /// Notices must not use up what announcements may.
    notice_limit: RateLimit,
    logged_error: Option<ErrorKind>,
}

impl Asker {
    fn run(&mut self, stop: &Waker) {
        self.refresh_lanes();
        let start = Instant::now();
        let mut schedule = Schedule::new(start, self.setup.interval);
        let mut slept = system::time_slept();
        let mut next_look = start + LOOK_INTERVAL;
        let mut counts = Counts::default();
        loop {
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK_INTERVAL;
                let slept_now = system::time_slept();
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
                    self.setup.mailbox.presence.note_network_change();
                    schedule.restart(now);
                }
            }
            if now >= schedule.due() {
                self.probe();
                let [random] = system::random().unwrap_or([128]);
                schedule.sent(now, random);
            }
            let pause = schedule.due().min(next_look).saturating_duration_since(Instant::now());
            if !self.wait(stop, pause) {
                break;
            }
            self.receive(&mut counts);
        }
        counts.log("discovery");
    }

    /// Waits for answers; false when it is to stop.
    fn wait(&self, stop: &Waker, pause: Duration) -> bool {
        let mut fds = vec![PollFd::new(&stop.watched, PollFlags::IN)];
        fds.extend(self.lanes.open.iter().map(|lane| PollFd::new(&lane.socket, PollFlags::IN)));
        // When it is interrupted, reading finds nothing.
        let _ = poll(&mut fds, Timespec::try_from(pause).ok().as_ref());
        fds[0].revents().is_empty()
    }

    /// Whether there are other lanes now than before.
    fn refresh_lanes(&mut self) -> bool {
        let interfaces = probed_interfaces(&self.setup.interfaces);
        let has_changed = self.lanes.refresh(interfaces, |it| Lane::open(it, self.setup.port));
        if has_changed {
            let names: Vec<&str> = self.lanes.open.iter().map(|lane| lane.name.as_str()).collect();
            log::debug!("probing through {names:?}");
        }
        has_changed
    }

    /// One round: a probe per key, and one without if machines without a key are talked to.
    fn probe(&mut self) {
        let takes_unpaired = self.setup.keyring.takes_unpaired();
        let turn = self.keys.iter().cycle().skip(self.first_key).take(self.keys.len().min(KEYS));
        let keys = turn.cloned().map(Some).chain(takes_unpaired.then_some(None));
        let questions = keys.map(|key| Ok((system::random()?, key)));
        let Ok(round) = questions.collect::<io::Result<Vec<Question>>>() else { return };
        self.first_key = (self.first_key + KEYS) % self.keys.len().max(1);
        self.expected.asked(round.clone());
        let mut failed = None;
        for lane in &self.lanes.open {
            let from = lane.source();
            for (nonce, key) in &round {
                let probe = Datagram::probe(self.setup.identity, *nonce);
                let probe = Datagram { instance: self.instance, ..probe };
                let bytes = matching::probe(probe, key.as_ref(), from);
                if let Err(error) = lane.send(&bytes) {
                    log::debug!("probe not sent through name={} reason={error}", lane.name);
                    failed = Some(error);
                }
            }
        }
        self.setup.mailbox.presence.explain_silence(self.silence(failed.as_ref()));
        // The next round tries again. One line per change.
        let kind = failed.as_ref().map(io::Error::kind);
        if let (Some(error), true) = (&failed, kind != self.logged_error) {
            log::warn!("cannot send probes on every interface: {error}{}", hint(error));
        }
        self.logged_error = kind;
    }

    /// Why nobody answers, most likely.
    fn silence(&self, failed: Option<&io::Error>) -> String {
        let lanes = self
            .lanes
            .open
            .iter()
            .filter(|lane| !(lane.from.is_loopback() || lane.from.is_unspecified()));
        let names: Vec<&str> = lanes.map(|lane| lane.name.as_str()).collect();
        match failed {
            _ if names.is_empty() => "no interface can broadcast; is this machine on a network? \
                 (across a VPN: --server HOST)"
                .to_owned(),
            Some(error) => format!("probes can't be sent: {error}{}", hint(error)),
            None => format!(
                "nobody answered on {}; does ollana run on the machine with Ollama, in this subnet, \
                 and does its firewall let UDP {} in?",
                names.join(", "),
                self.setup.port
            ),
        }
    }

    fn receive(&mut self, counts: &mut Counts) {
        let mut buffer = [0; packet::MAX_LEN + 1];
        for at in 0..self.lanes.open.len() {
            for _ in 0..BATCH {
                let lane = &self.lanes.open[at];
                let Ok(received) = lane::receive(&lane.socket, &mut buffer) else { break };
                let Some((len, source)) = received else { continue };
                let bytes = &buffer[..len];
                counts.count(bytes, source, |packet| self.accept(packet, bytes, source));
            }
        }
    }

    /// Passes an answer that counts on to the Manager; whether it does.
    fn accept(&mut self, packet: Packet, bytes: &[u8], source: SocketAddr) -> bool {
        let keyring = &self.setup.keyring;
        let is_open = |about: Option<(Identity, SocketAddr)>| {
            keyring.takes_unpaired() && !about.is_some_and(|(who, at)| keyring.is_paired(who, at))
        };
        let is_notice = matches!(&packet, Packet::V1(told) if told.is_notice());
        let limit = if is_notice { &mut self.notice_limit } else { &mut self.limit };
        let (subnets, now) = (&mut self.subnets, Instant::now());
        // A server answers no faster than this.
        let is_taken = || subnets.contain(now, source.ip()) && limit.allows(now, source.ip());
        let received = Received { packet, bytes, source };
        let Some((input, key)) = self.expected.accept(received, is_open, is_taken) else {
            return false;
        };
        if let (Input::Sighted(sighting), Some(key)) = (&input, key) {
            keyring.note(sighting.address, Some(key.id()));
        }
        self.setup.mailbox.announce(input);
        true
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::HostUnreachable if cfg!(target_os = "macos") => {
            " (allow ollana in System Settings > Privacy & Security > Local Network)"
        }
        ErrorKind::PermissionDenied => " (does a firewall forbid outgoing UDP?)",
        _ => "",
    }
}
