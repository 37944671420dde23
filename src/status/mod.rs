//! The state of this daemon as others get to see it: JSON, Prometheus' text, and the page that
//! shows both.
//!
//! What is known is gathered once per question, in a [`View`]; the files below write it down. No
//! I/O: the Manager and the counters are asked, and strings come out.

mod json;
mod metrics;

use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::manager::pool::{HealthNow, Rest, ServerNow};
use crate::manager::{About, Presence, Snapshot};
use crate::pairing::keyring::Keyring;

pub use json::{brief, full};
pub use metrics::write as metrics;

/// The page at `/ollana/`.
pub const PAGE: &str = include_str!("page.html");

/// Longest wait that is nothing to worry about.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// Everything that is known at one moment.
pub struct View<'a> {
    /// What this daemon is.
    pub about: &'a About,
    /// What the Manager knows.
    pub snapshot: &'a Snapshot,
    /// What has happened.
    pub counters: &'a Counters,
    /// Who is talked to with which key.
    pub keyring: &'a Keyring,
    /// Whether requests can be served.
    pub is_ready: bool,
    /// Now.
    pub now: Instant,
}

impl<'a> View<'a> {
    /// Puts it together.
    pub fn new(
        about: &'a About,
        snapshot: &'a Snapshot,
        presence: &'a Presence,
        keyring: &'a Keyring,
        now: Instant,
    ) -> Self {
        let counters = presence.counters();
        View { about, snapshot, counters, keyring, is_ready: presence.is_up(), now }
    }

    /// Whether the hop to this server is encrypted. This machine's own Ollama is no hop.
    fn encrypts(&self, server: &ServerNow) -> Option<bool> {
        let address = server.addresses.first().filter(|_| server.origin != "local")?;
        self.keyring.encrypts(*address)
    }

    /// What people should know, worst first.
    pub fn warnings(&self) -> Vec<String> {
        let servers = &self.snapshot.servers;
        let mut warnings = Vec::new();
        if servers.is_empty() {
            warnings.push("no Ollama server found on the LAN yet".to_owned());
        } else if !self.is_ready {
            warnings.push("no server is ready: requests are answered with 503".to_owned());
        }
        for server in servers {
            let name = &server.name;
            match (&server.health, server.rest) {
                (HealthNow::Down(reason), _) => warnings.push(format!("{name} is down: {reason}")),
                (_, Some(Rest::Ejected(_))) => {
                    warnings.push(format!("{name} rests, because requests failed there"));
                }
                _ => {}
            }
            if let Some(contest) = server.contest.as_ref().filter(|contest| !contest.is_settled) {
                let what = match contest.is_held_back {
                    true => "it gets no requests (if it is yours: --server ADDRESS)",
                    false => "it is used all the same",
                };
                warnings.push(format!("{name}: {}; {what}", contest.reason));
            }
        }
        if let Some(wait) = self.snapshot.longest_wait.filter(|wait| *wait > LONG_WAIT) {
            warnings.push(format!("a request has waited {} s for a server", wait.as_secs()));
        }
        if let Some((old, new)) = version_skew(servers) {
            warnings.push(format!("Ollama's versions differ: {old} to {new}"));
        }
        warnings
    }
}

/// The lowest and the highest version, if they differ in more than the last part.
fn version_skew(servers: &[ServerNow]) -> Option<(String, String)> {
    use crate::ollama::version::OllamaVersion;
    let ready = servers.iter().filter(|s| s.health == HealthNow::Ready && !s.version.is_empty());
    let mut versions: Vec<(OllamaVersion, &str)> =
        ready.map(|s| (OllamaVersion::parse(&s.version), s.version.as_str())).collect();
    versions.sort();
    let ((low, old), (high, new)) = (versions.first()?, versions.last()?);
    let differ = (low.major, low.minor) != (high.major, high.minor);
    differ.then(|| ((*old).to_owned(), (*new).to_owned()))
}
