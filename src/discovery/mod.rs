//! How clients find servers on a LAN: UDP datagrams of 80 to 512 bytes (layout: [`packet`]).
//!
//! ```text
//!  client ──PROBE, broadcast on each interface──► UDP 11436   server: responder
//!     │   ◄──ANNOUNCE, to where the probe came from ──────────────┘
//!     └──► Manager: a sighting; a health check decides
//! ```
//!
//! `ollana help protocol` (`src/cli/help/protocol.txt`) describes it to users. This room knows of
//! datagrams, sockets and keys. It asks the Manager's room only for what a server announces, hands
//! sightings to it, and knows nothing of health checks and choices. Its parts: [`schedule`] when
//! probes are sent, [`matching`] which answers count, `client` and `responder` the two sides,
//! `rate_limit` how many answers a source gets, or gives, `scan` a single look for commands.
//!
//! - A probe goes out on every interface that is up, can broadcast, and isn't a container's or a
//!   virtual machine's, and on the loopback interface; where none is suitable, to 255.255.255.255.
//!   The burst starts over when interfaces or keys have changed, which are listed every second, and
//!   when the machine has slept for more than 5 s.
//! - A round has a probe for each key, at most 16, and one without a key if machines without keys are
//!   talked to (`--unpaired`). A key's code covers the address that the probe is sent from, so that
//!   nobody else can send it again.
//! - A server answers from an address at which its proxy is reached, in the client's network if
//!   there is one, and only addresses that may connect (`--allow`, `--deny`). A forged source can't
//!   be flooded: an answer is never longer than its probe, and there are 2000 a second in all. The
//!   last 64 clients get a GOODBYE.
//! - A machine that can't be used says why, in an announcement without a port: a key is required, the
//!   probe's key isn't known, or Ollama was stopped. That is shown, and decides nothing.
//! - An answer without a key counts only where machines without keys are talked to, and not if it
//!   claims to be a server that is paired. No answer of a client's own server counts.
//! - Nothing of this makes a server usable. An ANNOUNCE only proposes the address that it came from,
//!   and a GOODBYE only causes a check: `/api/version` over HTTP decides. A server that is silent
//!   here is not removed while its checks succeed.

mod client;
pub mod matching;
pub mod packet;
mod rate_limit;
mod responder;
pub(crate) mod scan;
pub mod schedule;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::net::socket::Waker;
use crate::system::spawn_vital;
use packet::Packet;

pub(crate) use client::{Client, ClientSetup};
pub(crate) use responder::{Responder, ServerSetup};

/// Most datagrams that are taken from one socket before the others, and the end of the thread, get
/// their turn.
const BATCH: usize = 64;

/// A thread of one side; dropping this stops and joins it.
#[derive(Debug)]
struct SideThread {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl SideThread {
    /// `run` returns once the waker is awake.
    fn start(name: &'static str, run: impl FnOnce(&Waker) + Send + 'static) -> io::Result<Self> {
        let waker = Arc::new(Waker::new()?);
        let stop = Arc::clone(&waker);
        Ok(SideThread { waker, thread: Some(spawn_vital(name, move || run(&stop))?) })
    }
}

impl Drop for SideThread {
    fn drop(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of the datagrams that one side received.
#[derive(Default)]
struct Counts {
    good: u64,
    bad: u64,
    ignored: u64,
}

impl Counts {
    /// Hands a datagram on, and counts it; `accept` tells whether it is a probe that was answered, or
    /// an answer that counts.
    fn count(&mut self, bytes: &[u8], source: SocketAddr, accept: impl FnOnce(Packet) -> bool) {
        match packet::decode(bytes).map(accept) {
            Ok(true) => self.good += 1,
            Ok(false) => self.ignored += 1,
            Err(error) => {
                log::debug!("bad packet addr={source} reason={error}");
                self.bad += 1;
            }
        }
    }

    fn log(&self, side: &str) {
        let Counts { good, bad, ignored } = self;
        log::debug!("{side} ends good={good} bad={bad} ignored={ignored}");
    }
}
