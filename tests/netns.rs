//! Several hosts on one machine: network namespaces, bridges, real broadcasts, the real binary.
//!
//! ```text
//!   namespace h1          h2            h3
//!   Ollama, ollana        ollana        curl's part
//!      eth0 ─┐             │eth0         │eth0        10.80.B.N/24, no default route
//!            └─ p1 ─ br0 ─ p2 ───────────┘            namespace "switch"
//! ```
//!
//! They need root and `ip` (some also `nft`); elsewhere they say so once and pass. Each test has
//! hosts of its own, so they run side by side. What a fault may cost is in the constants of
//! [`netns::watch`]; a test prints what it measured and allows twice that and 5 s for a busy machine,
//! with `OLLANA_STRICT` set, as `make netns` does, twice that only.
#![cfg(target_os = "linux")]

mod support;

/// The parts that the tests are made of, and the tests.
mod netns {
    mod daemon;
    mod http;
    mod lan;
    mod ollama;
    mod packets;
    mod watch;

    mod basics;
    mod comeback;
    mod copies;
    mod doctor;
    mod failover;
    mod hangup;
    mod homes;
    mod hostile;
    mod impostor;
    mod interfaces;
    mod models;
    mod outages;
    mod paired;
    mod plain;
    mod policy;
    mod pulls;
    mod roles;
    mod sharing;
    mod skipping;
    mod takeover;
    mod waking;
    mod windows;
    mod zones;

    pub(crate) use comeback::{IS_OLLAMA, serve_as_ollama};
}

/// What a copy of this program does that is called as Ollama is: `ollama serve --exact`.
#[test]
fn serve() {
    if let Ok(start) = std::env::var(netns::IS_OLLAMA) {
        netns::serve_as_ollama(&start);
    }
}
