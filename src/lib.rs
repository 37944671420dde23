//! Ollama over LAN.
//!
//! ```text
//!  program ──► client's proxy ────── LAN ──────► server's proxy ──► Ollama
//!              127.0.0.1:11434                   0.0.0.0:11435      127.0.0.1:11434
//!                  ▲ lease                           ▲ lease
//!               Manager ◄─ sightings ─ discovery  Manager ◄─ checks ─ checkers
//!                  ▲  └─ checks ─► checkers  │       │ presence
//!               ticker                       └─UDP 11436─► responder
//! ```
//!
//! Both proxies are the same code; they differ in where they listen and what is in their pool:
//! the LAN's servers, or the one local Ollama.
//!
//! # The life of a request
//!
//! 1. `proxy/acceptor` accepts the connection, `proxy/connections` has a place for it, `proxy/workers` a
//!    thread.
//! 2. `pairing/secure` takes the handshake of a paired machine; from then on `pairing/stream` decrypts.
//! 3. `proxy/connection` waits for a head, `http/head` parses it; a connection's first one passes
//!    `proxy/tiny_gate`.
//! 4. `proxy/exchange` checks `access/host`, `access/cors` and `access/permissions`; what the request
//!    means, `ollama/endpoints` says.
//! 5. `exchange/own_paths`, `exchange/routes` and `exchange/lists` answer what needs no upstream.
//! 6. `exchange/look` looks for the model in the body (`ollama/subject`); `manager` gives a lease: through
//!    `manager/fast_path` while there is no choice, else through `manager/queue` and `manager/pool`.
//! 7. `exchange/forward` sends it: `upstream/transport` and `proxy/request_body` move its bytes, in the
//!    order of `upstream/exchange_io`.
//! 8. `exchange/relay` passes the answer on, every read before the next; `exchange/observed` reads along.
//! 9. A failure before the answer goes to another server if `exchange/retry` allows; what can't be
//!    answered gets a row of `proxy/answers`. The lease goes back with its outcome.
//!
//! # The life of a datagram
//!
//! 1. `discovery/schedule` says when a client probes; `net/lane` has a socket on each interface.
//! 2. `discovery/client` sends the probe, which `discovery/packet` writes and `pairing/keyring`
//!    authenticates.
//! 3. `discovery/responder` reads it at the server: the source must be on-link (`net/interfaces`) and
//!    allowed (`access/addresses`), and within `discovery/rate_limit`.
//! 4. Its answer tells what `manager` knows of the local Ollama.
//! 5. `discovery/matching` lets the client believe it only if it answers one of the last probes.
//! 6. `manager/pool` takes the sighting as a proposal and asks for a check.
//! 7. A checker (`manager/liveness`) asks the packet's source address (`upstream/health_check`); only
//!    its answer makes the server usable.
//!
//! # Threads
//!
//! | thread | owns | blocks on |
//! |---|---|---|
//! | `acceptor`, one per address | a listening socket | `accept` |
//! | `worker`, elastic | one client connection and its upstream connection | both, in one `poll` |
//! | `parking` | kept connections without a request | all of them, in one `poll` |
//! | `rejector` | connections that can't come in | its queue |
//! | `manager` | the pool | its mailbox |
//! | `ticker` | nothing | its clock |
//! | `keeper` | what is remembered, as it is written | its queue; the disk |
//! | `log` | stderr or the log file | its queue; what it writes to |
//! | `checker` × 10 | a connection to the server being checked | its queue |
//! | `resolver`, up to 16 | a name that is looked up | the name server |
//! | `detection`, at the start | nothing | the local Ollama's answer |
//! | `seeker`, `putter`, one each per layer | a layer from the LAN, on its way into Ollama | both ends, or its queue |
//! | `registry`, one per copy | a manifest, for the own Ollama | a connection, or the copy's end |
//! | `knocker`, up to 8 per check | a way to a server of several | a connection, half a check's time |
//! | `asker`, up to 32 per seeker | a question to one machine | its answer, 2 s |
//! | `scan` | one look around for a server's pulls | `poll`, 1.2 s |
//! | `discovery` (client) | a UDP socket per interface | `poll` |
//! | `responder` (server) | the UDP port | `poll` |
//!
//! If one of them panics, the process ends with exit code 70 and its service manager starts it
//! again; but a panicking `worker` ends its connection only, and a panicking `log` the log.
//!
//! # Rooms, highest first; imports go down only
//!
//! | room | owns | to change, for example |
//! |---|---|---|
//! | [`tools`] | the commands besides `serve` | what `ollana doctor` says |
//! | [`serve`] | modes and their changes, wiring, shutdown, supervision | who yields Ollama's port |
//! | [`proxy`] | client connections and exchanges | how a hang-up reaches Ollama; the text of a 503 |
//! | [`discovery`] | datagrams: schedule, matching, answers | the timing of probes |
//! | [`status`] | what is shown of the state: JSON, metrics, page | a metric |
//! | [`sharing`] | taking a model's blobs from other machines | whom a pull asks |
//! | [`manager`] | the pool of servers, the queue, liveness | which server gets a request |
//! | [`upstream`] | requests to an upstream through ureq | what a health check asks |
//! | [`pairing`] | identities, keys, tokens, encrypted streams | the handshake |
//! | [`cli`] | command line, help | an option |
//! | [`log`](mod@log) | the log's writer | the form of a line |
//! | [`config`] | settings | a default |
//! | [`library`] | Ollama's store of models on this disk | which blobs others may have |
//! | [`access`] | who may do what | what a phone may do |
//! | [`ollama`] | what is known of Ollama's API | a new endpoint; what `ollama list` merges |
//! | [`http`] | HTTP/1.1 messages | which heads are refused |
//! | [`counters`] | plain counts that every room may raise | a histogram's buckets |
//! | [`net`] | sockets, interfaces, untrusted text | which interfaces are used |
//! | [`system`] | random bytes, locks, threads, files | how files are written |
//!
//! # Invariants
//!
//! - No byte of the network reaches tiny_http, and no target can name another host than the leased
//!   one.
//! - Nothing of an answer stays in our memory while we wait for more of it.
//! - A thread that waits on one side of an exchange sees the other side leave.
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
pub(crate) mod library;
pub mod log;
pub mod manager;
pub mod net;
pub mod ollama;
pub mod pairing;
pub mod proxy;
pub mod serve;
pub mod sharing;
pub mod status;
pub mod system;
pub mod tools;
pub mod upstream;
