//! The proxies: HTTP from clients on one side, an upstream on the other.
//!
//! ```text
//!  acceptor, one per address ──► an idle worker, or a new one ──► connection: next_head()
//!      │ no place: 503 / 429                                          │
//!      └──► rejector                                                  ▼
//!                                        tiny_gate, once a connection ──► exchange::run
//! ```
//!
//! A connection on which nothing comes goes from its worker to the parking, and from there to a worker again.
//!
//! The room owns client connections, their limits, their threads and their exchanges. It knows
//! nothing of how servers are found or chosen; it asks the Manager for one. [`Proxy`] is all that
//! other rooms start and stop; [`exchange::Context`] is what they give it.
//!
//! No wait is without an end:
//!
//! | who waits | for | at the latest until |
//! |---|---|---|
//! | acceptor | a connection | the proxy is stopped (its waker) |
//! | rejector | a connection to turn away | the acceptors have ended (its queue closes) |
//! | idle worker | a connection | 20 s, or it is dismissed (its channel closes) |
//! | worker | its handshake or a head | 100 ms for the first byte, then `head_timeout`, or it gives way |
//! | parking | bytes on the connections that workers left | `idle_timeout`, it gives way, the proxy is stopped |
//! | worker | the gate | 1 s to write, 1 s to read; then nobody waits for it any more |
//! | worker | what servers have, for an alias | `wait_timeout` |
//! | worker | a lease | the Manager's answer, its time in the queue, or the client leaves |
//! | worker | a connection to the upstream | `connect_timeout`, `patient_connect_timeout` |
//! | worker | memory for what it has to look at | `queue_timeout`, the client leaves |
//! | worker | bytes of the request's body | `body_timeout` (a turn costs 256 KiB in it), an early answer, it gives way |
//! | worker | room at the upstream or the client | `stall_timeout`, the client leaves |
//! | worker | an answer, or more of it | it comes, the upstream's TCP ends, the client leaves |
//! | worker | the client to read the last answer | half a second |
//! | who stops the proxy | its streams, then its workers | `drain_timeout`, 2 s |

mod acceptor;
mod answers;
mod connection;
pub(crate) mod connections;
pub(crate) mod exchange;
mod kept;
mod pace;
mod parking;
mod rejector;
mod request_body;
mod tiny_gate;
mod workers;
mod zstd;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use self::acceptor::Acceptor;
use self::connections::Connections;
use self::exchange::Context;
use self::parking::{Attendant, Parking};
use self::rejector::Rejected;
use self::workers::Shared;
use crate::library::Library;
use crate::net::socket::{Local, Waker};

pub use self::exchange::Attempts;
pub(crate) use self::kept::Budget;

/// How long a request that has begun to come may take to come when the process ends.
const HEAD_TIME: Duration = Duration::from_millis(500);
/// How long workers may take to notice that their connections were cut.
const CUT_TIME: Duration = Duration::from_secs(2);

/// A running proxy.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    /// Where it listens.
    pub(crate) addresses: Vec<SocketAddr>,
    waker: Arc<Waker>,
    /// The acceptors, and the parking's.
    threads: Vec<JoinHandle<()>>,
    rejector: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts to serve these listeners. `places` are directories in which a private socket may be
    /// made, best first.
    pub(crate) fn start(
        context: Context,
        listeners: Vec<TcpListener>,
        places: &[PathBuf],
    ) -> io::Result<Self> {
        tiny_gate::open(places)?;
        let (rejected, rejector) = rejector::start()?;
        let (parking, bell) = Parking::new()?;
        // A failure from here on drops the proxy, which ends what was started.
        let mut proxy = Proxy {
            shared: Arc::new(Shared::new(context, parking)),
            addresses: Vec::new(),
            waker: Arc::new(Waker::new()?),
            threads: Vec::new(),
            rejector: Some(rejector),
        };
        proxy.start_threads(listeners, bell, rejected)?;
        Ok(proxy)
    }

    /// `rejected` is gone when this returns, also with an error, so that the rejector can end.
    fn start_threads(
        &mut self,
        listeners: Vec<TcpListener>,
        bell: Local,
        rejected: Rejected,
    ) -> io::Result<()> {
        let (shared, tell) = (Arc::clone(&self.shared), rejected.clone());
        let go_on = move |connection| workers::serve(&shared, &tell, connection);
        self.threads.push(Attendant::start(&self.shared.parking, bell, &self.waker, go_on)?);
        for listener in listeners {
            self.addresses.push(listener.local_addr()?);
            let rejected = rejected.clone();
            let acceptor = Acceptor::start(listener, &self.shared, &self.waker, rejected)?;
            self.threads.push(acceptor);
        }
        Ok(())
    }

    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.shared.context.connections
    }

    pub(crate) fn library(&self) -> Option<&Arc<Library>> {
        self.shared.context.library.as_ref()
    }

    /// Accepts no more and closes idle connections; streams go on.
    pub(crate) fn stop_accepting(&mut self) {
        self.waker.wake();
        for thread in self.threads.drain(..).chain(self.rejector.take()) {
            let _ = thread.join();
        }
        self.connections().drain();
    }

    /// Waits for the streams, up to `timeout`; then cuts them. True if none was cut.
    pub(crate) fn finish(&mut self, timeout: Duration) -> bool {
        self.stop_accepting();
        let connections = self.connections();
        let mut finished = connections.wait_empty(timeout.min(HEAD_TIME));
        if !finished {
            connections.end_headless();
            finished = connections.wait_empty(timeout.saturating_sub(HEAD_TIME));
        }
        if !finished {
            log::warn!("time is up, cutting connections={}", connections.len());
            connections.cut();
        }
        self.shared.workers.dismiss();
        if !self.shared.workers.wait_gone(CUT_TIME) {
            log::warn!("threads of the proxy did not end in time");
        }
        finished
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}
