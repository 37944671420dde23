//! The servers of a house: what they have, how they are, and what their Ollamas do.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::config::ServerName;
use ollana::manager::pool::{Input, Pool, Rules};
use ollana::ollama::inventory::Inventory;
use ollana::pairing::identity::Identity;

use crate::client::Client;

/// Health checks give up after this.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_millis(1500);

pub(crate) fn rules(chooses: bool) -> Rules {
    Rules {
        health_interval: Duration::from_secs(1),
        health_timeout: CHECK_TIMEOUT,
        rise: 1,
        fall: 2,
        max_servers: 64,
        inventories: chooses,
        max_in_flight: 0,
        pins: Vec::new(),
        bans: Vec::new(),
        aliases: ollana::ollama::aliases::Aliases::default(),
        preferred: Vec::new(),
        wake: Vec::new(),
    }
}

/// A server's daemon, in front of its own Ollama.
fn daemon(now: Instant, seed: u32) -> Client {
    let mut pool = Pool::new(rules(false), seed.into());
    pool.add_local(now, ServerName { host: "127.0.0.1".to_owned(), port: 11434 });
    Client::new(now, pool)
}

/// A machine with an Ollama and a server's daemon.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    /// New at each start.
    pub(crate) instance: u32,
    pub(crate) address: SocketAddr,
    pub(crate) is_awake: bool,
    pub(crate) models: BTreeSet<String>,
    inventory: Option<Arc<Inventory>>,
    /// Its account's quota of the cloud is used up.
    pub(crate) is_quota_spent: bool,
    /// Requests that its Ollama works on at once, and that may wait besides.
    pub(crate) parallel: usize,
    pub(crate) queue: usize,
    /// Those that it works on, and those that wait.
    pub(crate) working: Vec<usize>,
    pub(crate) pending: VecDeque<usize>,
    /// How long its version takes while it works.
    pub(crate) version_takes: Duration,
    /// Since when everything about it is as it is.
    pub(crate) stable_since: Instant,
    pub(crate) daemon: Client,
}

impl Server {
    pub(crate) fn new(now: Instant, number: u8, name: &str, models: &[&str]) -> Self {
        Server {
            name: name.to_owned(),
            identity: Identity([number + 1; 16]),
            instance: 1,
            address: SocketAddr::from(([10, 0, 0, 10 + number], 11435)),
            is_awake: true,
            models: models.iter().map(|name| (*name).to_owned()).collect(),
            inventory: None,
            is_quota_spent: false,
            parallel: 1,
            queue: 1,
            working: Vec::new(),
            pending: VecDeque::new(),
            version_takes: Duration::from_millis(2),
            stable_since: now,
            daemon: daemon(now, 1),
        }
    }

    /// Its daemon is started anew.
    pub(crate) fn start(&mut self, now: Instant) {
        self.instance += 1;
        self.stable_since = now;
        self.daemon = daemon(now, self.instance);
    }

    pub(crate) fn has(&self, model: &str) -> bool {
        self.models.contains(model)
    }

    /// Its models, as a check tells them.
    pub(crate) fn inventory(&mut self) -> Arc<Inventory> {
        let models = &self.models;
        let make = || {
            let entry = |name: &String| format!("{{\"name\":\"{name}\",\"digest\":\"{name}\"}}");
            let entries: Vec<String> = models.iter().map(entry).collect();
            let tags = format!("{{\"models\":[{}]}}", entries.join(","));
            Arc::new(Inventory::new([&tags, "", ""], None))
        };
        Arc::clone(self.inventory.get_or_insert_with(make))
    }

    pub(crate) fn change_models(&mut self, change: impl FnOnce(&mut BTreeSet<String>) -> bool) {
        change(&mut self.models);
        self.inventory = None;
    }

    /// The version's time now.
    pub(crate) fn answer_time(&self) -> Duration {
        if self.working.is_empty() { Duration::from_millis(2) } else { self.version_takes }
    }

    /// What a program of ours hears of it by a probe.
    pub(crate) fn sighting(&self) -> Input {
        Input::Sighted(ollana::manager::pool::Sighting {
            address: self.address,
            identity: self.identity,
            instance: self.instance,
            name: self.name.clone(),
            ollama_up: true,
            management_open: false,
        })
    }
}
