//! How clients find servers on a LAN: UDP datagrams of 80 to 512 bytes (layout: [`packet`]).
//!
//! ```text
//!  client ──PROBE, broadcast on each interface──► UDP 11436   server: responder
//!     │   ◄──ANNOUNCE, to where the probe came from ──────────────┘
//!     └──► Manager: a sighting; a health check decides
//! ```
//!
//! This room knows of datagrams, sockets and keys. It asks the Manager's room only for what a server
//! announces, hands sightings to it, and knows nothing of health checks and choices. Its parts:
//! [`schedule`] when probes are sent, [`matching`] which answers count, `client` and `responder` the
//! two sides, `rate_limit` how many answers a source gets, `scan` a single look for commands.
//!
//! # A probe
//!
//! - goes out on every interface that is up, can broadcast, and isn't a container's or a virtual
//!   machine's, from a socket of its own with a port that the kernel chose; to the loopback
//!   interface too. Where none is suitable, it goes to 255.255.255.255. Interfaces are listed
//!   every second (`src/net/lane.rs`);
//! - at 0, 50, 150, 350 and 1000 ms, then every 5 s ± 10 % (`--probe-interval`). The burst starts over
//!   when interfaces or keys have changed, and when the machine has slept for more than 5 s;
//! - has 16 random bytes, the nonce, which are new in each round;
//! - is 128 bytes long. An answer is never longer than its probe, so a forged source can't be flooded
//!   with more than was sent;
//! - is sent once with each key, at most 16 keys in a round, and once without if machines without keys
//!   are talked to (`--unpaired`). With a key it names the key, and its authentication code covers the
//!   address that it is sent from, so that nobody else can send it again.
//!
//! # A server answers
//!
//! - with an ANNOUNCE to the probe's source, from an address at which its proxy is reached. If the
//!   probe named a key, the answer is authenticated with it;
//! - only probes from loopback or its own subnets, of addresses that may connect (`--allow`, `--deny`);
//!   probes without a key only if it talks to machines without keys. Others get silence;
//! - 10 at once and then 5 a second for a source, and 2000 a second in all;
//! - a probe of nothing but the four bytes of magic, as older versions send it, with the same four
//!   bytes;
//! - and says GOODBYE to the last 64 clients when it stops.
//!
//! # A client believes
//!
//! an answer that repeats the nonce of one of its last three rounds, is authenticated with the key of
//! its probe, comes from loopback or one of its subnets, and isn't its own server's. Without a key, an
//! answer counts only where machines without keys are talked to, and not if it claims to be a server
//! that is paired. Four bytes of magic mean a server at TCP port 11435.
//!
//! Nothing of this makes a server usable. An ANNOUNCE only proposes the address that it came from,
//! and a GOODBYE only causes a check: `/api/version` over HTTP decides. A server that is silent here
//! is not removed while its checks succeed.

mod client;
pub mod matching;
pub mod packet;
mod rate_limit;
mod responder;
pub(crate) mod scan;
pub mod schedule;

use std::net::SocketAddr;

pub(crate) use client::{Client, ClientSetup};
pub(crate) use responder::{Responder, ServerSetup};

/// Most datagrams that are taken from one socket before the others, and the end of the thread, get
/// their turn.
const BATCH: usize = 64;

/// What a received datagram was.
enum Verdict {
    /// A probe that was answered, or an answer that counts.
    Good,
    /// Malformed, or another protocol's.
    Bad,
    /// Well-formed, but it doesn't count.
    Ignored,
}

fn bad_packet(source: SocketAddr, error: packet::DecodeError) -> Verdict {
    log::debug!("bad packet addr={source} reason={error}");
    Verdict::Bad
}

/// How many datagrams had each [`Verdict`].
#[derive(Default)]
struct Counts([u64; 3]);

impl Counts {
    fn count(&mut self, verdict: Verdict) {
        self.0[verdict as usize] += 1;
    }

    fn log(&self, side: &str) {
        let [good, bad, ignored] = self.0;
        log::debug!("{side} ends good={good} bad={bad} ignored={ignored}");
    }
}
