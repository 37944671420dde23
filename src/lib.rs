//! Ollama over LAN.
//!
//! ```text
//!  program ──► ClientProxy ──────── LAN ────────► ServerProxy ──► Ollama
//!              127.0.0.1:11434                    0.0.0.0:11435   127.0.0.1:11434
//!                  ▲ lease                            ▲ lease
//!               Manager ◄─ sightings ─ listener    Manager ◄─ checks ─ checkers
//!                  ▲  └─ jobs ─► checkers             │ Presence
//!               ticker      announcer ──UDP 11436──► responder
//! ```
//!
//! Both proxies are the same code; they differ in where they listen and what is in their pool:
//! the LAN's servers, or the one local Ollama.
//!
//! # Threads
//!
//! | thread | owns | blocks on |
//! |---|---|---|
//! | `acceptor`, one per address | a listening socket | `accept` |
//! | `worker`, elastic | one client connection and its upstream connection | both, in one `poll` |
//! | `usher` | connections that can't come in | its queue |
//! | `manager` | the pool | its mailbox |
//! | `ticker` | nothing | its clock |
//! | `log` | stderr or the log file | its queue; what it writes to |
//! | `checker` × 8 | a connection to the backend being checked | its queue |
//! | `announcer`, `listener` (client) | UDP sockets, one per interface | its clock; `poll` |
//! | `responder` (server) | the UDP port | `poll` |
//!
//! # Rooms, highest first; imports go down only
//!
//! | room | owns |
//! |---|---|
//! | [`tools`] | the commands besides `serve` |
//! | [`serve`] | modes and their changes, wiring, shutdown, supervision |
//! | [`proxy`] | client connections, exchanges |
//! | [`discovery`] | datagrams: their schedule, matching, answers |
//! | [`status`] | what is shown of the state: JSON, metrics, page |
//! | [`manager`] | the pool of backends, the queue, liveness |
//! | [`upstream`] | requests to an upstream through ureq |
//! | [`pairing`] | identities, keys, encrypted streams |
//! | [`cli`] | command line, help |
//! | [`log`](mod@log) | the log's writer |
//! | [`config`] | settings |
//! | [`access`] | who may do what |
//! | [`ollama`] | what is known of Ollama's API |
//! | [`http`] | HTTP/1.1 messages |
//! | [`counters`] | plain counts that everybody may raise |
//! | [`net`] | sockets, interfaces, untrusted text |
//! | [`system`] | random bytes, locks, threads, files |
//!
//! # Invariants
//!
//! - No byte of the network reaches tiny_http, and no target can name another host than the leased
//!   one.
//! - Nothing of an answer stays in our memory while we wait for more of it.
//! - Whoever waits on one side of an exchange sees the other side leave.
//! - A request ends with a whole answer, an explicit error, or a connection that is cut; never
//!   with a short answer that looks whole.
//! - A lease is always given back, with its outcome.
//! - A machine that we have a key of is never talked to in clear.
//! - Only a health check of the source address makes an announced server usable.
//! - Another machine gets what [`access`] knows to be harmless, and nothing that it doesn't know.

// The documentation is for people who change this program, private items included.
#![allow(rustdoc::private_intra_doc_links)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod access;
pub mod cli;
pub mod config;
pub mod counters;
pub mod discovery;
pub mod http;
pub mod log;
pub mod manager;
pub mod net;
pub mod ollama;
pub mod pairing;
pub mod proxy;
pub mod serve;
pub mod status;
pub mod system;
pub mod tools;
pub mod upstream;
