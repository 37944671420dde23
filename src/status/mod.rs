//! The state of this daemon as others get to see it: JSON, Prometheus' text, and the page that
//! shows both.
//!
//! What is known is gathered once per question, in a [`View`]; the files below write it down. No
//! I/O: the Manager and the counters are asked, and strings come out.

mod json;
mod metrics;

use std::time::{Duration, Instant};

use crate::access::permissions::ShareModels;
use crate::counters::Counters;
use crate::manager::pool::{ServerNow, State};
use crate::manager::{About, Snapshot};
use crate::ollama::version::OllamaVersion;
use crate::pairing::keyring::Keyring;

pub(crate) use json::{forgotten, write as json};
pub(crate) use metrics::write as metrics;

/// The page at `/ollana/`.
pub const PAGE: &str = include_str!("page.html");

/// Longest wait that is nothing to worry about.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// No machine can have saved so many bytes: a petabyte.
const MOST_SAVED: u64 = 1_000_000_000_000_000;

/// Everything that is known at one moment.
pub(crate) struct View<'a> {
    pub(crate) about: &'a About,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) counters: &'a Counters,
    pub(crate) keyring: &'a Keyring,
    pub(crate) is_ready: bool,
    /// What to set on this machine.
    pub(crate) advice: Option<String>,
    /// Whether this machine is kept awake, or why it can't be.
    pub(crate) awake: (bool, Option<String>),
    /// What its user may have misspelled.
    pub(crate) odd: Vec<String>,
    pub(crate) now: Instant,
}

impl View<'_> {
    /// Whether the hop to this server is encrypted. This machine's own Ollama is no hop.
    fn encrypts(&self, server: &ServerNow) -> Option<bool> {
        let address = server.backend.addresses.first().filter(|_| server.origin != "local")?;
        self.keyring.encrypts(address)
    }

    /// Bytes of models that this machine and the servers did not have to download. What a server
    /// says that can't be is left out.
    pub(crate) fn saved_in_house(&self) -> u64 {
        let servers = self.snapshot.servers.iter().map(|server| server.backend.health.saved);
        let own = self.counters.transfers.sources.saved.value();
        servers.filter(|saved| *saved < MOST_SAVED).fold(own, u64::saturating_add)
    }

    /// What people should know, worst first.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let servers = &self.snapshot.servers;
        let mut warnings = Vec::new();
        if servers.is_empty() {
            warnings.push("no Ollama server found on the LAN yet".to_owned());
        } else if !self.is_ready {
            warnings.push("no server is ready: requests are answered with 503".to_owned());
        }
        for server in servers {
            let name = &server.name;
            let backend = &server.backend;
            if let Some(reason) = backend.health.down_reason() {
                warnings.push(format!("{name} is down: {reason}"));
            } else if matches!(server.pause, Some((State::OutlierEjected, _))) {
                warnings.push(format!("{name} rests, because requests failed there"));
            }
            if let Some(problem) = &backend.models.problem {
                warnings.push(format!("the models of {name} may be incomplete: {problem}"));
            }
            if let Some(conflict) = backend.claims.conflict.as_ref().filter(|it| !it.is_settled) {
                let what = match conflict.is_quarantined {
                    true => "it gets no requests (if it is yours: --server ADDRESS)",
                    false => "it is used all the same",
                };
                warnings.push(format!("{name}: {}; {what}", conflict.reason));
            }
        }
        if let Some(wait) = self.snapshot.longest_wait.filter(|wait| *wait > LONG_WAIT) {
            warnings.push(format!("a request has waited {} s for a server", wait.as_secs()));
        }
        if let Some((old, new)) = version_skew(servers) {
            warnings.push(format!("Ollama's versions differ: {old} to {new}"));
        }
        let shares = self.about.share_models != ShareModels::Off;
        let library = self.about.library.as_ref().filter(|_| shares);
        warnings.extend(library.and_then(|library| library.problem()));
        warnings.extend(self.advice.clone());
        warnings.extend(self.odd.iter().chain(&self.snapshot.notes).cloned());
        warnings
    }
}

/// The lowest and the highest version, if they differ in more than the last part.
fn version_skew(servers: &[ServerNow]) -> Option<(String, String)> {
    let up = servers.iter().filter(|server| server.state.is_up());
    let versions = up.map(|server| &server.backend.health.version).filter(|it| !it.is_empty());
    let versions = versions.map(|version| (OllamaVersion::parse(version), version));
    let ((low, old), (high, new)) = (versions.clone().min()?, versions.max()?);
    let differ = (low.major, low.minor) != (high.major, high.minor);
    differ.then(|| (old.clone(), new.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_called_the_same_everywhere() {
        // JSON's health, trust and rest; in tables; on the page.
        for (state, [health, trust, rest], table, page) in [
            (State::New, ["new", "new", ""], "new", "being checked"),
            (State::Ready, ["ready", "known", ""], "ready", "ready"),
            (State::CoolingDown, ["ready", "contested", "busy"], "busy", "busy"),
            (State::OutlierEjected, ["ready", "known", "ejected"], "rests", "rests"),
            (State::Quarantined, ["ready", "held_back", "ejected"], "held", "held"),
            (State::Down, ["down", "held_back", "busy"], "down", "down"),
        ] {
            assert_eq!(State::parse(health, trust, rest), state);
            assert_eq!((state.health(), state.label()), (health, table));
            assert_eq!(state.gets_work(), matches!(table, "ready" | "busy" | "rests"));
            assert!(PAGE.contains(&format!("'{page}'")), "{page}");
        }
    }
}
