//! Whom this machine's pulls may ask for blobs: the servers of the pool where there are some, else those
//! that a look around finds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::config::{ServerName, Settings};
use crate::discovery::scan::Scan;
use crate::discovery::schedule::DISCOVER;
use crate::manager::Mailbox;
use crate::net::interfaces::probed_interfaces;
use crate::net::lane::Lane;
use crate::net::names;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::sharing::{Neighbour, Neighbours};
use crate::system::{self, lock};

/// What a look around has found is good for so long: less than a donor is looked for when one has died,
/// so that a machine which has just come back is found.
const FRESH: Duration = Duration::from_secs(1);
/// Machines that are remembered of it.
const MOST: usize = 64;

/// Of a daemon that uses the LAN's servers: those that are up.
#[derive(Debug)]
pub(super) struct OfPool(pub(super) Mailbox);

impl Neighbours for OfPool {
    fn look(&self) -> Vec<Neighbour> {
        let up = self.0.others_up().into_iter();
        up.map(|(name, address)| Neighbour { name, address }).collect()
    }
}

/// Of a daemon that is only a server, which doesn't look around otherwise.
#[derive(Debug)]
pub(super) struct OfScan {
    servers: Vec<ServerName>,
    interfaces: Vec<String>,
    /// 0: only the servers that the user has named.
    port: u16,
    own: Identity,
    keyring: Arc<Keyring>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    neighbours: Vec<Neighbour>,
    scanned: Option<Instant>,
    is_scanning: bool,
}

impl OfScan {
    pub(super) fn new(settings: &Settings, own: Identity, keyring: &Arc<Keyring>) -> Self {
        OfScan {
            servers: settings.servers.clone(),
            interfaces: settings.interfaces.clone(),
            port: settings.discovery_port,
            own,
            keyring: Arc::clone(keyring),
            seen: Arc::default(),
        }
    }

    /// Looks around in a thread of its own, unless that was done a moment ago.
    fn scan(&self, seen: &mut Seen) {
        if seen.is_scanning || seen.scanned.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let (interfaces, port) = (self.interfaces.clone(), self.port);
        let (own, keyring) = (self.own, Arc::clone(&self.keyring));
        let shared = Arc::clone(&self.seen);
        let scan = move || {
            let (lanes, _) = Lane::open_all(&probed_interfaces(&interfaces), port);
            let keys = keyring.keys();
            let mut met = Vec::new();
            if let Ok(asker) = system::random() {
                for answer in Scan::new(&lanes, Identity(asker), &keys, DISCOVER) {
                    let who = (answer.identity, answer.address);
                    let is_met = |(identity, address): &(Option<Identity>, SocketAddr)| {
                        *address == who.1 || (identity.is_some() && *identity == who.0)
                    };
                    if who.0 == Some(own) || met.len() >= MOST || met.iter().any(is_met) {
                        continue;
                    }
                    met.push(who);
                    let name = Some(answer.name).filter(|name| !name.is_empty());
                    let name = name.unwrap_or_else(|| answer.address.to_string());
                    let found = Neighbour { name, address: answer.address };
                    let known = &mut lock(&shared).neighbours;
                    known.retain(|neighbour| neighbour.address != found.address);
                    known.push(found);
                }
            }
            let mut seen = lock(&shared);
            seen.neighbours
                .retain(|known| met.iter().any(|(_, address)| *address == known.address));
            (seen.is_scanning, seen.scanned) = (false, Some(Instant::now()));
        };
        // Without a thread, the next call tries again.
        seen.is_scanning = system::spawn("scan", scan).is_ok();
    }
}

impl Neighbours for OfScan {
    fn look(&self) -> Vec<Neighbour> {
        let mut all = {
            let mut seen = lock(&self.seen);
            if self.port != 0 {
                self.scan(&mut seen);
            }
            seen.neighbours.clone()
        };
        for server in &self.servers {
            // Only an ollana gives models. A name that isn't known yet is looked up meanwhile.
            let port = server.ports()[0];
            for address in names::resolve(&server.host, port, Duration::ZERO).unwrap_or_default() {
                if all.iter().all(|known| known.address != address) {
                    all.push(Neighbour { name: server.host.clone(), address });
                }
            }
        }
        all
    }
}
