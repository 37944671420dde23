//! The other machines: servers that come, go and misbehave, and whoever pretends to be one.

use std::net::SocketAddr;
use std::sync::Arc;

use ollana::discovery::packet::{Datagram, Kind, Nonce, flags};
use ollana::ollama::inventory::Inventory;
use ollana::ollama::version::OllamaVersion;
use ollana::pairing::identity::Identity;

use crate::support::Random;

/// A model that every server has.
pub(crate) const COMMON: &str = "common";
/// Models that some servers have.
pub(crate) const OTHERS: [&str; 3] = ["small", "large", "rare"];
/// Addresses at which nobody was ever a server.
const FIRST_ROGUE: u8 = 200;

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Well,
    /// Its Ollama doesn't answer, so it refuses all work.
    NoOllama,
    /// Its Ollama is full: 503.
    Busy,
    /// The process is gone, its machine is up.
    Dead,
    /// Stopped: connections are taken, nothing is answered.
    Frozen,
}

/// A machine with an Ollama.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) identity: Identity,
    /// New at each start; what runs on an earlier one is lost.
    pub(crate) instance: u32,
    /// One per interface.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) condition: Condition,
    /// Whether packets get there.
    pub(crate) is_linked: bool,
    pub(crate) inventory: Arc<Inventory>,
}

impl Server {
    pub(crate) fn is_well(&self) -> bool {
        self.condition == Condition::Well && self.is_linked
    }

    fn can_talk(&self) -> bool {
        self.is_linked && !matches!(self.condition, Condition::Dead | Condition::Frozen)
    }
}

/// What a connection to an address meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    Server(usize),
    Refusal,
    Silence,
}

/// Everything on the other side of the cable.
#[derive(Debug)]
pub(crate) struct Lan {
    pub(crate) servers: Vec<Server>,
    /// Our own cable.
    pub(crate) is_cut: bool,
    /// One packet of so many is lost; 0 means none.
    pub(crate) loss: usize,
    /// Forged announcements per probe.
    pub(crate) forged: usize,
    next_host: u8,
}

pub(crate) fn host(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 11435))
}

impl Lan {
    pub(crate) fn new(random: &mut Random, servers: usize) -> Lan {
        let mut lan = Lan { servers: Vec::new(), is_cut: false, loss: 0, forged: 0, next_host: 1 };
        for number in 0..servers {
            let mut models = vec![COMMON];
            models.extend(OTHERS.iter().filter(|_| random.is_one_in(2)));
            let entries: Vec<String> =
                models.iter().map(|name| format!("{{\"name\":\"{name}\"}}")).collect();
            let tags = format!("{{\"models\":[{}]}}", entries.join(","));
            let interfaces = if random.is_one_in(4) { 2 } else { 1 };
            let addresses = (0..interfaces).map(|_| lan.new_address()).collect();
            lan.servers.push(Server {
                identity: Identity([number as u8 + 1; 16]),
                instance: 1,
                addresses,
                condition: if random.is_one_in(3) { Condition::Dead } else { Condition::Well },
                is_linked: true,
                inventory: Arc::new(Inventory::new([&tags, "", ""], None)),
            });
        }
        lan
    }

    /// One that was no server's before.
    pub(crate) fn new_address(&mut self) -> SocketAddr {
        self.next_host += 1;
        // Addresses come back, as they do from DHCP, but not soon.
        if self.next_host == FIRST_ROGUE {
            self.next_host = 1;
        }
        host(self.next_host)
    }

    /// Addresses that were a server's, and are nobody's now.
    pub(crate) fn given_up(&self) -> Vec<SocketAddr> {
        let is_free = |address: &SocketAddr| {
            !self.servers.iter().any(|server| server.addresses.contains(address))
        };
        (2..=self.next_host).map(host).filter(is_free).collect()
    }

    pub(crate) fn meets(&self, address: SocketAddr) -> Meeting {
        if self.is_cut {
            return Meeting::Silence;
        }
        let at = self.servers.iter().position(|server| server.addresses.contains(&address));
        match at.map(|at| (at, &self.servers[at])) {
            Some((_, server)) if !server.is_linked => Meeting::Silence,
            Some((_, server)) if server.condition == Condition::Dead => Meeting::Refusal,
            Some((at, _)) => Meeting::Server(at),
            // Whoever only pretends, or an address that was given up.
            None if address.ip().to_string().ends_with(['1', '3', '5', '7', '9']) => {
                Meeting::Refusal
            }
            None => Meeting::Silence,
        }
    }

    /// Announcements in answer to a probe, and where they come from.
    pub(crate) fn answers(&self, nonce: Nonce, random: &mut Random) -> Vec<(Datagram, SocketAddr)> {
        if self.is_cut {
            return Vec::new();
        }
        let mut answers = Vec::new();
        for server in self.servers.iter().filter(|server| server.can_talk()) {
            for address in &server.addresses {
                if self.loss == 0 || !random.is_one_in(self.loss) {
                    answers.push((announcement(server, nonce), *address));
                }
            }
        }
        for _ in 0..self.forged {
            answers.push(self.forgery(nonce, random));
        }
        answers
    }

    /// An announcement by somebody who hears everything that is broadcast.
    fn forgery(&self, nonce: Nonce, random: &mut Random) -> (Datagram, SocketAddr) {
        let model = random.pick(&self.servers);
        let mut forged = announcement(model, nonce);
        if random.is_one_in(2) {
            forged.sender = Identity([random.next() as u8; 16]);
        }
        if random.is_one_in(4) {
            forged.instance = random.next() as u32;
        }
        match random.below(8) {
            0 => forged.nonce[0] ^= 1,
            1 => forged.kind = Kind::Goodbye,
            _ => {}
        }
        // Now and then in the name of a server's own address, as if it were spoofed.
        let from = match random.is_one_in(8) {
            true => model.addresses[0],
            false => host(FIRST_ROGUE + random.below(50) as u8),
        };
        (forged, from)
    }
}

fn announcement(server: &Server, nonce: Nonce) -> Datagram {
    Datagram {
        kind: Kind::Announce,
        nonce,
        sender: server.identity,
        http_port: 11435,
        flags: if server.condition == Condition::NoOllama { 0 } else { flags::OLLAMA_UP },
        capabilities: 0,
        version: OllamaVersion::default(),
        in_flight: 0,
        instance: server.instance,
        name: format!("server{}", server.identity.0[0]),
        key: None,
    }
}
