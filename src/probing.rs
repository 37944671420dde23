//! When a client asks who is there, and which answers count. Pure.
//!
//! Probes go out in a burst at the start and after a change of the network, then at an interval.
//! An answer counts if it repeats the nonce of one of the last three probes, comes from the same
//! link, and isn't our own. It only proposes: a health check of the packet's source decides.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::pool::{Input, Sighting};
use crate::wire::{Datagram, Identity, Kind, Nonce, Packet, flags};

/// Probes after the start and after a change of the network, in milliseconds from then.
const BURST: [u64; 5] = [0, 50, 150, 350, 1000];
/// Answers count for so many of our last probes.
const NONCES: usize = 3;

/// When the next probe is due.
#[derive(Debug)]
pub struct Schedule {
    interval: Duration,
    origin: Instant,
    sent: usize,
    due: Instant,
}

impl Schedule {
    /// The first is due at once.
    pub fn new(now: Instant, interval: Duration) -> Self {
        Schedule { interval, origin: now, sent: 0, due: now }
    }

    /// Starts over: the network may be another.
    pub fn restart(&mut self, now: Instant) {
        *self = Schedule::new(now, self.interval);
    }

    /// When the next probe is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// A probe was sent. A random byte keeps many clients from asking in step: it moves the next
    /// probe by up to 10 % of the interval.
    pub fn sent(&mut self, now: Instant, random: u8) {
        self.sent += 1;
        self.due = match BURST.get(self.sent) {
            Some(at) => self.origin + Duration::from_millis(*at),
            None => now + self.interval * (900 + u32::from(random) * 200 / 255) / 1000,
        };
    }
}

/// Which answers count.
#[derive(Debug)]
pub struct Expected {
    own: Identity,
    nonces: VecDeque<Nonce>,
}

impl Expected {
    /// None do before the first probe. `own` is who we are, so that our own server isn't taken for
    /// another.
    pub fn new(own: Identity) -> Self {
        Expected { own, nonces: VecDeque::with_capacity(NONCES + 1) }
    }

    /// A probe with this nonce is on its way.
    pub fn asked(&mut self, nonce: Nonce) {
        self.nonces.push_back(nonce);
        if self.nonces.len() > NONCES {
            self.nonces.pop_front();
        }
    }

    /// What a packet means, if it counts. `is_on_link` is asked last, because it costs most.
    pub fn accept(
        &self,
        packet: Packet,
        source: SocketAddr,
        is_on_link: impl FnOnce() -> bool,
    ) -> Option<Input> {
        let input = match packet {
            Packet::Legacy => Input::LegacySighted(source.ip()),
            Packet::V1(datagram) => self.answer(datagram, source)?,
        };
        is_on_link().then_some(input)
    }

    fn answer(&self, datagram: Datagram, source: SocketAddr) -> Option<Input> {
        if !self.nonces.contains(&datagram.nonce) || datagram.sender == self.own {
            return None;
        }
        match datagram.kind {
            Kind::Announce if datagram.http_port != 0 => Some(Input::Sighted(Sighting {
                address: SocketAddr::new(source.ip(), datagram.http_port),
                identity: datagram.sender,
                instance: datagram.instance,
                name: datagram.name,
                ollama_up: datagram.flags & flags::OLLAMA_UP != 0,
            })),
            Kind::Goodbye => Some(Input::Farewell { identity: datagram.sender, from: source.ip() }),
            Kind::Announce | Kind::Probe => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::OllamaVersion;

    #[test]
    fn a_burst_then_an_interval_that_varies() {
        let t0 = Instant::now();
        let interval = Duration::from_secs(5);
        let mut schedule = Schedule::new(t0, interval);
        let mut at = Vec::new();
        for _ in 0..7 {
            let due = schedule.due();
            at.push((due - t0).as_millis());
            schedule.sent(due, 128);
        }
        assert_eq!(at[..5], [0, 50, 150, 350, 1000]);
        assert_eq!((at[5] - at[4], at[6] - at[5]), (5000, 5000));
        // A probe that went out late in the burst doesn't move the next one.
        schedule.restart(t0);
        schedule.sent(t0 + Duration::from_millis(40), 0);
        assert_eq!(schedule.due(), t0 + Duration::from_millis(50));
        for (random, ms) in [(0, 4500), (255, 5500)] {
            let mut schedule = Schedule { sent: 9, ..Schedule::new(t0, interval) };
            schedule.sent(t0, random);
            assert_eq!(schedule.due() - t0, Duration::from_millis(ms));
        }
    }

    fn announcement(nonce: u8) -> Datagram {
        Datagram {
            kind: Kind::Announce,
            nonce: [nonce; 16],
            sender: Identity([7; 16]),
            http_port: 11435,
            flags: flags::OLLAMA_UP,
            capabilities: 0,
            version: OllamaVersion::default(),
            in_flight: 0,
            instance: 1,
            name: "desk".to_owned(),
        }
    }

    #[test]
    fn only_answers_to_the_last_three_probes_count() {
        let source: SocketAddr = "10.0.0.2:11436".parse().expect("address");
        let mut expected = Expected::new(Identity([1; 16]));
        let counts = |expected: &Expected, datagram: Datagram| {
            expected.accept(Packet::V1(datagram), source, || true).is_some()
        };
        assert!(!counts(&expected, announcement(0)), "nothing was asked");
        for nonce in 1..=5 {
            expected.asked([nonce; 16]);
        }
        let counted: Vec<u8> =
            (0..=6).filter(|nonce| counts(&expected, announcement(*nonce))).collect();
        assert_eq!(counted, [3, 4, 5]);
        let input = expected.accept(Packet::V1(announcement(4)), source, || true);
        let Some(Input::Sighted(sighting)) = input else { panic!("{input:?}") };
        assert_eq!(sighting.address.to_string(), "10.0.0.2:11435", "the packet's own source");
        assert!(sighting.ollama_up && sighting.name == "desk");
        let away = expected.accept(Packet::V1(announcement(4)), source, || false);
        assert!(away.is_none(), "from another link");
        let own = Datagram { sender: Identity([1; 16]), ..announcement(4) };
        assert!(!counts(&expected, own), "our own server");
        let nowhere = Datagram { http_port: 0, ..announcement(4) };
        assert!(!counts(&expected, nowhere));
        let probe = Datagram { kind: Kind::Probe, ..announcement(4) };
        assert!(!counts(&expected, probe));
        let farewell = Datagram { kind: Kind::Goodbye, ..announcement(4) };
        assert!(counts(&expected, farewell));
        assert!(expected.accept(Packet::Legacy, source, || true).is_some());
        assert!(expected.accept(Packet::Legacy, source, || false).is_none());
    }
}
