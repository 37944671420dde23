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
use crate::manager::pool::Notice;
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

/// A probe that was sent on a lane, with one of the keys or without.
struct Asked {
    nonce: Nonce,
    lane: usize,
    key: Option<usize>,
    at: Instant,
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
    asked: Vec<Asked>,
    seen: Vec<(SocketAddr, usize)>,
    ready: VecDeque<Answer>,
    /// Machines that say why they can't be used; the same rules hold for them.
    pub(crate) notices: Vec<Notice>,
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
            notices: Vec::new(),
        }
    }

    /// Ends within this time from now.
    pub(crate) fn end_within(&mut self, time: Duration) {
        self.times.end = self.times.end.min(self.start.elapsed() + time);
    }

    fn send_round(&mut self) {
        self.rounds += 1;
        for (at, (lane, failed)) in self.lanes.iter().zip(&mut self.errors).enumerate() {
            let from = lane.source();
            for key in (0..self.keys.len()).map(Some).chain([None]) {
                let Ok(nonce) = system::random() else { continue };
                let sealing = key.map(|key| &self.keys[key]);
                let probe = matching::probe(Datagram::probe(self.own, nonce), sealing, from);
                self.asked.push(Asked { nonce, lane: at, key, at: Instant::now() });
                *failed = lane.send(&probe).err();
            }
        }
    }

    fn receive(&mut self, at: usize) {
        let lanes = self.lanes;
        let lane = &lanes[at];
        let mut buffer = [0; packet::MAX_LEN + 1];
        while let Ok(received) = lane::receive(&lane.socket, &mut buffer) {
            let Some((len, source)) = received else { continue };
            let Some(answer) = self.read(&buffer[..len], source, at) else { continue };
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

    fn take_notice(&mut self, told: Datagram, bytes: &[u8], source: SocketAddr) {
        let asked = self.asked.iter().find(|asked| asked.nonce == told.nonce);
        let Some(Asked { key, .. }) = asked else { return };
        let is_genuine = key.is_none_or(|key| packet::is_authentic(bytes, None, &self.keys[key]));
        let why = matching::why(&told, key.is_some(), is_genuine, true);
        let Datagram { sender: identity, name, .. } = told;
        let from = source.ip();
        let is_new = self.notices.iter().all(|known| known.identity != identity);
        let of_address = self.notices.iter().filter(|known| known.from == from).count();
        let has_room = self.notices.len() < MAX_ANSWERS && of_address < MAX_OF_ADDRESS;
        if let Some(why) = why.filter(|_| is_new && has_room && identity != self.own) {
            self.notices.push(Notice { identity, name, from, why });
        }
    }

    fn read(&mut self, bytes: &[u8], source: SocketAddr, lane: usize) -> Option<Answer> {
        let (identity, told, asked) = match packet::decode(bytes).ok()? {
            Packet::Legacy => {
                let told = Datagram::probe(self.own, Nonce::default());
                let told = Datagram { http_port: SERVER_PORT, flags: flags::OLLAMA_UP, ..told };
                // It does not say to which probe: to the first one, unless that was lost.
                (None, told, self.asked.iter().find(|asked| asked.lane == lane)?)
            }
            Packet::V1(told) if told.kind == Kind::Announce && told.http_port != 0 => {
                let asked = self.asked.iter().find(|asked| asked.nonce == told.nonce)?;
                (Some(told.sender), told, asked)
            }
            Packet::V1(told) if told.is_notice() => {
                self.take_notice(told, bytes, source);
                return None;
            }
            Packet::V1(_) => return None,
        };
        Some(Answer {
            identity,
            name: told.name,
            address: SocketAddr::new(source.ip(), told.http_port),
            interface: self.lanes[lane].name.clone(),
            ollama_up: told.flags & flags::OLLAMA_UP != 0,
            version: told.version,
            in_flight: told.in_flight,
            round_trip: asked.at.elapsed(),
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
                // What has come by now answers earlier probes.
                (0..self.lanes.len()).for_each(|at| self.receive(at));
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::thread;

    use super::*;
    use crate::discovery::schedule::DISCOVER;
    use crate::net::interfaces::Interface;

    /// A server of an older version, which is slower than the next round of probes.
    #[test]
    fn the_time_of_an_answer_counts_from_its_probe() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let answering = thread::spawn(move || {
            let mut buffer = [0; packet::MAX_LEN];
            let probes = [0; 2].map(|_| server.recv_from(&mut buffer).unwrap().1);
            server.send_to(&packet::encode_legacy(), probes[0]).unwrap();
        });
        let lanes = [Lane::open(&Interface::loopback(), port).unwrap()];
        let mut scan = Scan::new(&lanes, Identity([1; 16]), &[], DISCOVER);
        let answer = scan.next().expect("an answer");
        answering.join().unwrap();
        let least = (DISCOVER.rounds[1] - DISCOVER.rounds[0]).mul_f64(0.9);
        assert!(answer.round_trip >= least, "{:?}", answer.round_trip);
    }
}
