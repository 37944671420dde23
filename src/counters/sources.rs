//! Where the bytes of pulled models came from, and how many were spared the way from the registry.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::counter::Counter;
use crate::system::lock;

/// Servers that are counted by name; all others together are [`OTHERS`].
const MAX_SERVERS: usize = 64;
const OTHERS: &str = "others";
/// Characters of a name by which servers are told apart; a label of the metrics has room for more.
const MAX_NAME: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// From where the model's name leads to, as a rule over the internet.
    pub(crate) registry: Counter,
    /// Of layers that came from the house and are right: what comes in vain isn't saved.
    pub(crate) saved: Counter,
    /// To other machines of the house.
    pub(crate) given: Counter,
    servers: Mutex<BTreeMap<String, u64>>,
}

impl Sources {
    /// Bytes came from this server, whose name is printable; from the registry if it is empty.
    pub(super) fn add(&self, server: &str, bytes: u64) {
        if server.is_empty() {
            return self.registry.add(bytes);
        }
        let mut servers = lock(&self.servers);
        let name: String = server.chars().take(MAX_NAME).collect();
        let is_known = servers.contains_key(&name) || servers.len() < MAX_SERVERS;
        let count = servers.entry(if is_known { name } else { OTHERS.to_owned() }).or_default();
        *count = count.saturating_add(bytes);
    }

    /// Bytes by the name of the server that gave them.
    pub(crate) fn servers(&self) -> Vec<(String, u64)> {
        lock(&self.servers).iter().map(|(name, bytes)| (name.clone(), *bytes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let sources = Sources::default();
        let long = "x".repeat(1000);
        (0..1000).for_each(|n| sources.add(&format!("{n}{long}"), 2));
        sources.add(&format!("7{long}"), 1);
        let servers = sources.servers();
        assert_eq!(servers.len(), MAX_SERVERS + 1);
        assert_eq!(servers.iter().map(|(_, bytes)| bytes).sum::<u64>(), 2001);
        assert!(servers.iter().all(|(name, _)| name.len() <= MAX_NAME));
        let count = |start: &str| {
            servers.iter().find(|(name, _)| name.starts_with(start)).map(|(_, bytes)| *bytes)
        };
        assert_eq!((count("7x"), count(OTHERS)), (Some(3), Some(2 * (1000 - MAX_SERVERS as u64))));
        assert_eq!(sources.registry.value(), 0);
    }
}
