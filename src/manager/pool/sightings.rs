//! Announcements: which server one is about, and who has to give way in a full pool.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::claims::Proof;
use super::{Action, Backend, Origin, Pool, Sighting, Transition};
use crate::config::SERVER_PORT;

/// Servers that one address may announce, loopback apart: one machine runs few, and an attacker who
/// announces more must not fill the pool.
const MAX_PER_ADDRESS: usize = 4;

impl Pool {
    pub(super) fn sighted(&mut self, now: Instant, sighting: Sighting) {
        let Sighting { address, identity, instance, ollama_up, .. } = sighting;
        // Same address first. The same identity elsewhere is the same server if it is the same
        // run of it, or if the old place has stopped to answer; else it may be a copied disk.
        // Another identity at an address that isn't in use is another server, or a forgery: until
        // a check has told which, it changes nothing.
        let is_same = |b: &Backend| {
            b.claims.identity == Some(identity)
                && b.is_discovered()
                && (b.claims.instance == instance || b.health.down_reason().is_some())
        };
        let known = (self.backends.iter().position(|b| b.is_at(address, Some(identity))))
            .or_else(|| self.backends.iter().position(is_same));
        let backend = match known {
            Some(at) => &mut self.backends[at],
            None if self.check_alternatives(now, address) => return,
            None => {
                if !self.may_announce(address.ip()) || !self.make_room(now, address.ip()) {
                    self.actions.push(Action::Report(Transition::Refused { address }));
                    return;
                }
                self.add(now, Origin::Discovered, vec![address])
            }
        };
        backend.last_seen = now;
        if backend.claims.is_contradicted_by(identity) && backend.is_verified() {
            // Anyone can send that from a forged source. The server itself is asked.
            backend.claims.proof = Proof::Contradicted(identity, instance);
            backend.health.prompt(now);
            return;
        }
        let is_new_run = backend.claims.instance != instance;
        let is_new_address = !backend.addresses.known.contains(&address);
        if !backend.is_verified() {
            // Of all its places this is the likeliest, which a check has to show.
            backend.addresses.put_first(address, false, !backend.is_discovered());
        } else if is_new_address {
            backend.addresses.candidate = Some(address);
        }
        if backend.origin == Origin::Legacy {
            backend.origin = Origin::Discovered; // It has been updated.
        }
        backend.claims.announced(sighting);
        if is_new_run || is_new_address || !backend.health.is_ready() || !ollama_up {
            backend.health.prompt(now);
        }
    }

    pub(super) fn legacy_sighted(&mut self, now: Instant, ip: IpAddr) {
        let address = SocketAddr::new(ip, SERVER_PORT);
        if let Some(backend) = self.backends.iter_mut().find(|b| b.addresses.has_ip(ip)) {
            backend.last_seen = now;
            if backend.addresses.first().is_none_or(|first| first.ip() != ip) {
                self.check_alternatives(now, address);
            }
        } else if self.make_room(now, ip) {
            self.add(now, Origin::Legacy, vec![address]);
        } else {
            self.actions.push(Action::Report(Transition::Refused { address }));
        }
    }

    /// Has those servers checked that have this address as an alternative; whether there are any.
    fn check_alternatives(&mut self, now: Instant, address: SocketAddr) -> bool {
        let mut has_any = false;
        for backend in &mut self.backends {
            if backend.addresses.known.contains(&address) {
                backend.addresses.candidate = Some(address);
                backend.health.prompt(now);
                has_any = true;
            }
        }
        has_any
    }

    fn may_announce(&self, ip: IpAddr) -> bool {
        let from_there =
            self.backends.iter().filter(|b| b.addresses.has_ip(ip) && !b.has_failed_first());
        ip.is_loopback() || from_there.count() < MAX_PER_ADDRESS
    }

    /// Makes room for one more at this address; only servers that never answered or are down give
    /// way: those that have failed their very first checks whenever room is needed, others once they
    /// are forgotten, and strangers of an address that has more of them.
    fn make_room(&mut self, now: Instant, ip: IpAddr) -> bool {
        if self.backends.len() < self.rules.max_servers {
            return true;
        }
        let weakness =
            |b: &Backend| (!b.has_failed_first(), b.health.running.is_some(), b.last_seen);
        let weakest = (self.backends.iter().enumerate())
            .filter(|(_, b)| b.has_failed_first() || b.is_forgettable(now))
            .min_by_key(|(_, b)| weakness(b));
        let gone = weakest.map(|(at, _)| at).or_else(|| self.crowding(ip));
        gone.map(|at| self.backends.swap_remove(at)).is_some()
    }

    /// A stranger that waits for its first check, of the address that has most, if this one has
    /// fewer.
    fn crowding(&self, ip: IpAddr) -> Option<usize> {
        let strangers =
            |ip| self.backends.iter().filter(|b| b.is_stranger() && b.addresses.has_ip(ip)).count();
        let waits = |b: &Backend| b.is_stranger() && b.health.running.is_none();
        let most = (self.backends.iter().enumerate())
            .filter(|(_, b)| waits(b))
            .filter_map(|(at, b)| Some((strangers(b.addresses.first()?.ip()), at)));
        most.max().filter(|(count, _)| *count > strangers(ip) + 1).map(|(_, at)| at)
    }

    /// Time has passed: forgets servers that are gone, lost checks, and old limits.
    pub(super) fn forget(&mut self, now: Instant) {
        let usual = self.rules.health_timeout;
        // The version, then three lists.
        let is_lost = |since: Instant, version: Duration| {
            now.saturating_duration_since(since) > version + usual * 3
        };
        for backend in &mut self.backends {
            backend.load.lift_old_limit(now);
            // Its checker hangs; ask again.
            let version = backend.check_time(usual).answer;
            backend.health.running.take_if(|check| is_lost(check.since, version));
            backend.models.asked.take_if(|(_, since)| is_lost(*since, usual * 2));
        }
        for gone in self.backends.extract_if(.., |b| b.is_forgettable(now)) {
            self.actions.push(Action::Report(Transition::Forgotten { name: gone.label() }));
        }
    }
}
