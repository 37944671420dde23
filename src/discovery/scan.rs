//! A single look for servers, for commands: probes on some lanes, and the answers to them. Whether an
//! answer is authentic isn't verified: it is shown, and what is tried with it is the command's.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{self, Datagram, Kind, Nonce, Packet, flags};
use super::{matching, schedule::ScanTimes};
use crate::config::SERVER_PORT;
use crate::net::lane::{self, Lane};
use crate::ollama::version::OllamaVersion;
use crate::pairing::{identity::Identity, noise::Key};
use crate::system;

/// Most answers that are taken, in all and of one address; a LAN has fewer.
const MAX_ANSWERS: usize = 1024;
const MAX_OF_ADDRESS: usize = 8;

/// A server that answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// `None` of an older version, which tells nothing but that it is there.
    pub(crate) identity: Option<Identity>,
    pub(crate) name: String,
    /// Where its HTTP is.
    pub(crate) address: SocketAddr,
    pub(crate) interface: String,
    pub(crate) ollama_up: bool,
    pub(crate) version: OllamaVersion,
    pub(crate) in_flight: u16,
    pub(crate) round_trip: Duration,
}

/// Iterates over the answers as they come, one for each server and lane, until the time is up.
pub(crate) struct Scan<'a> {
    lanes: &'a [Lane],
    /// Why the last probe on each lane couldn't be sent.
    pub(crate) errors: Vec<Option<io::Error>>,
    own: Identity,
    keys: &'a [Key],
    times: ScanTimes,
    start: Instant,
    rounds: usize,
    asked: Vec<(Nonce, Instant)>,
    seen: Vec<(SocketAddr, usize)>,
    ready: VecDeque<Answer>,
}

impl<'a> Scan<'a> {
    /// Probes name `own` as their sender. Each round has one without a key and one for each key,
    /// since paired servers answer nothing else.
    pub(crate) fn new(lanes: &'a [Lane], own: Identity, keys: &'a [Key], times: ScanTimes) -> Self {
        Scan {
            lanes,
            errors: lanes.iter().map(|_| None).collect(),
            own,
            keys,
            times,
            start: Instant::now(),
            rounds: 0,
            asked: Vec::new(),
            seen: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// Ends within this time from now.
    pub(crate) fn end_within(&mut self, time: Duration) {
        self.times.end = self.times.end.min(self.start.elapsed() + time);
    }

    fn send_round(&mut self) {
        self.rounds += 1;
        for (lane, failed) in self.lanes.iter().zip(&mut self.errors) {
            let from = lane.source();
            for key in self.keys.iter().map(Some).chain([None]) {
                let Ok(nonce) = system::random() else { continue };
                let probe = matching::probe(Datagram::probe(self.own, nonce), key, from);
                self.asked.push((nonce, Instant::now()));
                *failed = lane.send(&probe).err();
            }
        }
    }

    fn receive(&mut self, at: usize) {
        let lane = &self.lanes[at];
        let mut buffer = [0; packet::MAX_LEN + 1];
        while let Ok(received) = lane::receive(&lane.socket, &mut buffer) {
            let Some((len, source)) = received else { continue };
            let Some(answer) = self.read(&buffer[..len], source, &lane.name) else { continue };
            let place = (answer.address, at);
            let of_address = |(other, lane): &&(SocketAddr, usize)| {
                *lane == at && other.ip() == answer.address.ip()
            };
            let is_many = self.seen.iter().filter(of_address).count() >= MAX_OF_ADDRESS;
            if self.seen.len() < MAX_ANSWERS && !is_many && !self.seen.contains(&place) {
                self.seen.push(place);
                self.ready.push_back(answer);
            }
        }
    }

    fn read(&self, bytes: &[u8], source: SocketAddr, interface: &str) -> Option<Answer> {
        let (identity, told, asked) = match packet::decode(bytes).ok()? {
            Packet::Legacy => {
                let told = Datagram::probe(self.own, Nonce::default());
                let told = Datagram { http_port: SERVER_PORT, flags: flags::OLLAMA_UP, ..told };
                (None, told, self.asked.last()?)
            }
            Packet::V1(told) if told.kind == Kind::Announce && told.http_port != 0 => {
                let asked = self.asked.iter().find(|(nonce, _)| *nonce == told.nonce)?;
                (Some(told.sender), told, asked)
            }
            Packet::V1(_) => return None,
        };
        Some(Answer {
            identity,
            name: told.name,
            address: SocketAddr::new(source.ip(), told.http_port),
            interface: interface.to_owned(),
            ollama_up: told.flags & flags::OLLAMA_UP != 0,
            version: told.version,
            in_flight: told.in_flight,
            round_trip: asked.1.elapsed(),
        })
    }
}

impl Iterator for Scan<'_> {
    type Item = Answer;

    fn next(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.ready.pop_front() {
                return Some(answer);
            }
            let now = self.start.elapsed();
            if now >= self.times.end || self.lanes.is_empty() {
                return None;
            }
            if self.times.rounds.get(self.rounds).is_some_and(|at| now >= *at) {
                self.send_round();
            }
            let next = self.times.rounds.get(self.rounds).unwrap_or(&self.times.end);
            let pause = next.min(&self.times.end).saturating_sub(self.start.elapsed());
            let mut fds: Vec<PollFd<'_>> =
                self.lanes.iter().map(|lane| PollFd::new(&lane.socket, PollFlags::IN)).collect();
            if poll(&mut fds, Timespec::try_from(pause).ok().as_ref()).is_ok_and(|n| n > 0) {
                (0..self.lanes.len()).for_each(|at| self.receive(at));
            }
        }
    }
}
