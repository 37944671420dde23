//! The downstream HTTP side: acceptors, and the elastic pool of workers behind the intake.
//!
//! ```text
//!  acceptor (one per address) ──► an idle worker, or a new one ──► porch: next_head()
//!      │ full: 503 / 429                                             │
//!      └──► usher: answers and closes those who can't come in        ▼
//!                                                 intake (tiny_http) ──► exchange::run
//! ```
//!
//! A worker tends one connection at a time and goes home after a while without one.

pub mod connection;
pub mod connections;
pub mod exchange;
pub mod tiny_gate;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, getrlimit};

use crate::access::permissions::Caller;
use crate::net::interfaces::Subnets;
use crate::net::socket::{self, Waker};
use crate::pairing::secure::{self, Opening};
use crate::pairing::stream::Stream;
use crate::proxy::connection::{Downstream, Next, error_answer};
use crate::proxy::connections::{Connections, Full};
use crate::proxy::exchange::{Context, End};
use crate::proxy::tiny_gate::{Arrival, Intake};
use crate::system::THREAD_STACK;
use crate::system::lock;
use crate::upstream::Upstream;

/// An idle worker goes home after this.
const WORKER_IDLE: Duration = Duration::from_secs(20);
/// Connections that wait to be turned away; beyond it they are just closed.
const USHER_QUEUE: usize = 256;
/// How long one of them may take to leave, and how often they are looked at.
const USHER_TIME: Duration = Duration::from_millis(100);
const USHER_LOOK: Duration = Duration::from_millis(5);
/// Pause after the kernel had no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Address space that must be free before another worker starts, where it is limited.
const HEADROOM: usize = 24 << 20;
/// How long workers may take to notice that their connections were cut.
const CUT_TIME: Duration = Duration::from_secs(2);

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    waker: Arc<Waker>,
    acceptors: Vec<JoinHandle<()>>,
    usher: Option<JoinHandle<()>>,
}

struct Shared {
    /// Whether this process may have only so much address space.
    is_memory_limited: bool,
    context: Context,
    intake: Intake,
    workers: Workers,
}

impl Proxy {
    /// Starts to serve these listeners.
    ///
    /// # Errors
    /// When the private socket or a thread can't be had.
    pub fn start(
        context: Context,
        listeners: Vec<TcpListener>,
        places: &[PathBuf],
    ) -> io::Result<Self> {
        let intake = Intake::start(places)?;
        let shared = Arc::new(Shared {
            is_memory_limited: getrlimit(Resource::As).current.is_some(),
            context,
            intake,
            workers: Workers::default(),
        });
        let waker = Arc::new(Waker::new()?);
        let (turned_away, queue) = bounded(USHER_QUEUE);
        let usher = spawn("usher", move || usher(&queue))?;
        let mut addresses = Vec::new();
        let mut acceptors = Vec::new();
        for listener in listeners {
            addresses.push(listener.local_addr()?);
            let acceptor = Acceptor {
                listener,
                shared: Arc::clone(&shared),
                waker: Arc::clone(&waker),
                turned_away: turned_away.clone(),
                is_short: false,
            };
            acceptors.push(spawn("acceptor", move || acceptor.run())?);
        }
        Ok(Proxy { shared, addresses, waker, acceptors, usher: Some(usher) })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Who is connected.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.shared.context.connections
    }

    /// Accepts no more and closes idle connections; streams go on.
    pub fn stop_accepting(&mut self) {
        self.waker.wake();
        for acceptor in self.acceptors.drain(..) {
            let _ = acceptor.join();
        }
        if let Some(usher) = self.usher.take() {
            let _ = usher.join();
        }
        self.shared.context.connections.drain();
    }

    /// Waits for the streams, up to `timeout`; then cuts them. True if none was cut.
    pub fn finish(&mut self, timeout: Duration) -> bool {
        self.stop_accepting();
        let connections = &self.shared.context.connections;
        let finished = connections.wait_empty(timeout);
        if !finished {
            log::warn!("time is up, cutting connections={}", connections.len());
            connections.cut();
        }
        self.shared.workers.dismiss();
        if !self.shared.workers.wait_gone(CUT_TIME) {
            log::warn!("workers left behind");
        }
        finished
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(THREAD_STACK).spawn(run)
}

struct Acceptor {
    listener: TcpListener,
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    turned_away: Sender<(Arc<Stream>, u16)>,
    /// Whether the shortage under way was logged.
    is_short: bool,
}

impl Acceptor {
    fn run(mut self) {
        // Given up when descriptors run out, so that clients can be told instead of left waiting.
        let mut spare = None;
        loop {
            // Before a connection takes it: without a spare, the one after that couldn't be told.
            spare = spare.or_else(|| self.listener.try_clone().ok());
            if spare.is_none() {
                if self.pause() {
                    return;
                }
                continue;
            }
            let stopped = match self.listener.accept() {
                Ok((socket, peer)) => {
                    self.is_short = false;
                    self.let_in(socket, peer);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    // The kernel says so even if nobody is waiting; the spare one tells.
                    spare = None;
                    match self.listener.accept() {
                        Ok((socket, peer)) if !self.admits(&socket, peer) => {
                            socket::reset_on_close(&socket);
                            false
                        }
                        Ok((socket, _)) => {
                            if !std::mem::replace(&mut self.is_short, true) {
                                log::error!("cannot accept connections: {error}; answering 503");
                            }
                            self.turn_away(Arc::new(Stream::new(socket)), 503);
                            false
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(),
                        Err(_) => self.pause(),
                    }
                }
            };
            if stopped {
                return;
            }
        }
    }

    /// Waits for a connection; true when we are stopping.
    fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(&self.waker.watched, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        !fds[0].revents().is_empty()
    }

    fn pause(&self) -> bool {
        let waited = socket::wait((&self.waker.watched, PollFlags::IN), None, Some(ACCEPT_PAUSE));
        matches!(waited, Ok((events, _)) if !events.is_empty())
    }

    fn let_in(&self, socket: TcpStream, peer: SocketAddr) {
        let context = &self.shared.context;
        if !self.admits(&socket, peer) {
            log::debug!("refused a peer that may not connect addr={peer}");
            socket::reset_on_close(&socket);
            return;
        }
        if socket::prepare(&socket, socket::UNACKNOWLEDGED).is_err() {
            return; // It is gone already.
        }
        let stream = Arc::new(Stream::new(socket));
        let entry = match context.connections.enter(&stream, peer.ip()) {
            Ok(entry) => entry,
            Err(full) => {
                log::debug!("turned away addr={peer} reason={full:?}");
                context.presence.counters().failed("full");
                return self.turn_away(stream, if full == Full::Source { 429 } else { 503 });
            }
        };
        let connection = Box::new(Downstream::new(Arc::clone(&stream), peer, entry));
        let Err(connection) = self.shared.workers.hand_over(connection) else { return };
        if self.shared.is_memory_limited && !has_headroom() {
            log::debug!("turned away addr={peer} reason=\"no memory for another worker\"");
            drop(connection);
            return self.turn_away(stream, 503);
        }
        // In a slot, to have it back when no thread can be started for it.
        let slot = Arc::new(Mutex::new(Some(connection)));
        let shared = Arc::clone(&self.shared);
        let first = Arc::clone(&slot);
        self.shared.workers.hired();
        let spawned = spawn("worker", move || {
            let connection = lock(&first).take();
            Worker::new(shared).run(connection);
        });
        if let Err(error) = spawned {
            self.shared.workers.left();
            log::error!("cannot start a worker: {error}; answering 503");
            self.turn_away(stream, 503);
        }
    }

    fn admits(&self, socket: &TcpStream, peer: SocketAddr) -> bool {
        let local = socket.local_addr().ok().map(|local| local.ip());
        let is_own = Caller::of(peer.ip(), local) == Caller::Own;
        self.shared.context.reach.admits(peer.ip(), is_own, |ip| Subnets::now().contain(ip))
    }

    fn turn_away(&self, stream: Arc<Stream>, status: u16) {
        // A full queue closes the connection, which is an answer too.
        let _ = self.turned_away.try_send((stream, status));
    }
}

/// Whether there is address space left for what the workers at hand may still need. Without it an
/// allocation would fail, and that ends the process.
fn has_headroom() -> bool {
    let mut probe: Vec<u8> = Vec::new();
    let reserved = probe.try_reserve_exact(HEADROOM).is_ok();
    std::hint::black_box(&probe);
    reserved
}

/// Answers those who can't come in, and waits a moment for them to leave: unread bytes would turn
/// the close into a reset that overtakes the answer. Whoever keeps sending holds up nobody.
fn usher(queue: &Receiver<(Arc<Stream>, u16)>) {
    let mut leaving: Vec<(Arc<Stream>, Instant)> = Vec::new();
    loop {
        let next = if leaving.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(USHER_LOOK)
        };
        let now = Instant::now();
        match next {
            Ok((stream, status)) => {
                let socket = stream.socket();
                let message = match status {
                    429 => "too many connections from your address",
                    _ => "too many connections",
                };
                let answer = error_answer(status, message, "full");
                // A new connection takes this little at once, or it is gone.
                if socket.set_nonblocking(true).is_ok()
                    && matches!(stream.try_write(&answer), Ok(n) if n == answer.len())
                    && socket.shutdown(Shutdown::Write).is_ok()
                {
                    leaving.push((stream, now + USHER_TIME));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        leaving.retain(|(stream, deadline)| {
            let read = stream.try_read(&mut [0; 4096]);
            now < *deadline && matches!(read, Ok(None) | Ok(Some(1..)))
        });
    }
}

/// The workers without work, last come first served, so that surplus ones go home.
#[derive(Default)]
struct Workers {
    idle: Mutex<Idle>,
    alive: AtomicUsize,
    gone: Condvar,
}

#[derive(Default)]
struct Idle {
    hands: Vec<(u64, Sender<Box<Downstream>>)>,
    next: u64,
    is_dismissed: bool,
}

impl Workers {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        lock(&self.idle)
    }

    /// Gives a connection to an idle worker, or back.
    fn hand_over(&self, connection: Box<Downstream>) -> Result<(), Box<Downstream>> {
        match self.idle().hands.pop() {
            // An idle worker's channel is empty and has room for one.
            Some((_, hand)) => hand.try_send(connection).map_err(|error| error.into_inner()),
            None => Err(connection),
        }
    }

    /// A worker waits for work: its number and where the work comes, or nothing when all are
    /// dismissed.
    fn wait_for_work(&self) -> Option<(u64, Receiver<Box<Downstream>>)> {
        let mut idle = self.idle();
        if idle.is_dismissed {
            return None;
        }
        let number = idle.next;
        idle.next += 1;
        let (hand, work) = bounded(1);
        idle.hands.push((number, hand));
        Some((number, work))
    }

    /// A worker doesn't wait any longer. Work that was handed to it before is still to come.
    fn retract(&self, number: u64) {
        self.idle().hands.retain(|(other, _)| *other != number);
    }

    fn dismiss(&self) {
        let mut idle = self.idle();
        idle.is_dismissed = true;
        idle.hands.clear();
    }

    fn hired(&self) {
        self.alive.fetch_add(1, SeqCst);
    }

    fn left(&self) {
        let _idle = self.idle();
        self.alive.fetch_sub(1, SeqCst);
        self.gone.notify_all();
    }

    fn wait_gone(&self, timeout: Duration) -> bool {
        let guard = self.idle();
        let waited = self.gone.wait_timeout_while(guard, timeout, |_| self.alive.load(SeqCst) > 0);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

struct Worker {
    shared: Arc<Shared>,
    upstream: Upstream,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        let upstream = Upstream::new(&shared.context.timing, &shared.context.keyring);
        Worker { shared, upstream }
    }

    fn run(self, mut connection: Option<Box<Downstream>>) {
        while let Some(present) = connection {
            // A defect that one connection hits must not end the others, nor this worker.
            if catch_unwind(AssertUnwindSafe(|| self.tend(present))).is_err() {
                log::error!("a worker panicked; its connection was closed");
            }
            connection = self.next_connection();
        }
        self.shared.workers.left();
    }

    fn next_connection(&self) -> Option<Box<Downstream>> {
        let (number, work) = self.shared.workers.wait_for_work()?;
        let connection = work.recv_timeout(WORKER_IDLE).ok();
        if connection.is_none() {
            self.shared.workers.retract(number);
        }
        connection.or_else(|| work.try_recv().ok())
    }

    /// Serves a connection, request after request. The intake, which its first request passes, may
    /// swap it for another.
    fn tend(&self, mut connection: Box<Downstream>) {
        let context = &self.shared.context;
        let timing = &context.timing;
        let stream = Arc::clone(connection.stream());
        match secure::answer(&context.keyring, &stream, timing.idle_timeout, timing.head_timeout) {
            Opening::Plain => {}
            Opening::Paired => connection.expect_at_once(),
            Opening::Refused => return,
        }
        drop(stream);
        let mut is_admitted = false;
        loop {
            let head = match connection.next_head(&context.timing, &context.limits) {
                Next::Closed => return,
                Next::Refused(refusal) => {
                    context.presence.counters().failed("request");
                    log::debug!(
                        "refused a head addr={} reason={:?}",
                        connection.peer(),
                        refusal.reason
                    );
                    let answer = error_answer(refusal.status, refusal.reason, "request");
                    let stall = context.timing.head_timeout;
                    if connection.stream().write_all(&answer, stall).is_ok() {
                        connection.close_gently();
                    }
                    return;
                }
                Next::Head(head) => head,
            };
            let mut arrival = Arrival { connection, head };
            if !std::mem::replace(&mut is_admitted, true) {
                arrival = self.shared.intake.admit(arrival).unwrap_or_else(|own| {
                    log::error!("the intake lost a request; serving it without");
                    own
                });
            }
            let end =
                exchange::run(context, &self.upstream, &mut arrival.connection, &arrival.head);
            connection = arrival.connection;
            match end {
                End::Keep => connection.set_idle(),
                End::Close => return connection.close_gently(),
                End::Cut => return,
            }
        }
    }
}
