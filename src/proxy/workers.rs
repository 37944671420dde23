//! The elastic pool of workers. A worker serves one connection at a time, request after request, and
//! ends after a while without one.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::answers::OwnAnswer;
use super::connection::{Connection, Next};
use super::exchange::{self, Context, End};
use super::parking::Parking;
use super::rejector::{Rejected, reject};
use super::tiny_gate;
use crate::pairing::secure::{self, Accepted};
use crate::system::{self, lock};
use crate::upstream::Upstream;
use crate::upstream::exchange_io::{self, ExchangeIo};

const IDLE_TIME: Duration = Duration::from_secs(20);
/// Address space in bytes that must be free before another worker starts, where it is limited.
const HEADROOM: usize = 24 << 20;

pub(super) struct Shared {
    pub(super) context: Context,
    pub(super) workers: Workers,
    pub(super) parking: Arc<Parking>,
    /// Whether this process may have only so much address space.
    pub(super) is_memory_limited: bool,
}

impl Shared {
    pub(super) fn new(context: Context, parking: Arc<Parking>) -> Self {
        let is_memory_limited = system::is_memory_limited();
        Shared { context, workers: Workers::default(), parking, is_memory_limited }
    }
}

/// The workers without work, last come first served, so that surplus ones end.
#[derive(Default)]
pub(super) struct Workers {
    idle: Mutex<Idle>,
    alive: AtomicUsize,
    gone: Condvar,
}

#[derive(Default)]
struct Idle {
    waiting: Vec<(u64, Sender<Box<Connection>>)>,
    next: u64,
    is_dismissed: bool,
}

impl Workers {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        lock(&self.idle)
    }

    /// Gives a connection to an idle worker, or back.
    fn hand_over(&self, connection: Box<Connection>) -> Result<(), Box<Connection>> {
        match self.idle().waiting.pop() {
            // An idle worker's channel is empty and has room for one.
            Some((_, worker)) => worker.try_send(connection).map_err(|error| error.into_inner()),
            None => Err(connection),
        }
    }

    /// Waits for the next connection of a worker; none when it is to end.
    fn next_connection(&self, idle_time: Duration) -> Option<Box<Connection>> {
        let (worker, work) = bounded(1);
        let mut idle = self.idle();
        if idle.is_dismissed {
            return None;
        }
        let number = idle.next;
        idle.next += 1;
        idle.waiting.push((number, worker));
        drop(idle);
        if let Ok(connection) = work.recv_timeout(idle_time) {
            return Some(connection);
        }
        self.idle().waiting.retain(|(other, _)| *other != number);
        // One may have been handed over in the meantime.
        work.try_recv().ok()
    }

    /// Ends the idle workers, and the others once they are idle.
    pub(super) fn dismiss(&self) {
        let mut idle = self.idle();
        idle.is_dismissed = true;
        idle.waiting.clear();
    }

    fn ended(&self) {
        let _idle = self.idle();
        self.alive.fetch_sub(1, SeqCst);
        self.gone.notify_all();
    }

    /// Waits until all have ended; false when the time is up before.
    pub(super) fn wait_gone(&self, timeout: Duration) -> bool {
        let guard = self.idle();
        let waited = self.gone.wait_timeout_while(guard, timeout, |_| self.alive.load(SeqCst) > 0);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

/// Gives a connection to an idle worker or to a new one; its client hears of it if none can be had.
pub(super) fn serve(shared: &Arc<Shared>, rejected: &Rejected, connection: Box<Connection>) {
    let Err(connection) = shared.workers.hand_over(connection) else { return };
    let (stream, peer) = (Arc::clone(&connection.stream), connection.peer);
    if shared.is_memory_limited && !has_headroom() {
        log::debug!("turned away addr={peer} reason=\"no memory for another worker\"");
        drop(connection);
    } else if let Err(error) = start(shared, connection) {
        log::error!("cannot start a worker: {error}; answering 503");
    } else {
        return;
    }
    reject(rejected, stream, OwnAnswer::Full);
}

/// Whether there is address space left for what the workers at hand may still need. Without it an
/// allocation would fail, and that ends the process.
fn has_headroom() -> bool {
    let mut probe: Vec<u8> = Vec::new();
    let reserved = probe.try_reserve_exact(HEADROOM).is_ok();
    std::hint::black_box(&probe);
    reserved
}

/// Starts a worker with its first connection, which gives up its place if no thread can be had.
fn start(shared: &Arc<Shared>, first: Box<Connection>) -> io::Result<()> {
    let own = Arc::clone(shared);
    shared.workers.alive.fetch_add(1, SeqCst);
    let started = system::spawn("worker", move || {
        let upstream = Upstream::new(&own.context.settings.timing, &own.context.keyring);
        Worker { shared: own, upstream }.run(Some(first));
    });
    started.map(drop).inspect_err(|_| shared.workers.ended())
}

struct Worker {
    shared: Arc<Shared>,
    upstream: Upstream,
}

impl Worker {
    fn run(self, mut connection: Option<Box<Connection>>) {
        while let Some(present) = connection {
            // A defect that one connection hits must not end the others, nor this worker.
            if catch_unwind(AssertUnwindSafe(|| self.serve(present))).is_err() {
                // It holds the client's connection, too.
                exchange_io::with(ExchangeIo::end);
                log::error!("a worker panicked; its connection was closed");
            }
            connection = self.shared.workers.next_connection(IDLE_TIME);
        }
        let Worker { shared, upstream } = self;
        drop(upstream);
        shared.workers.ended();
    }

    fn serve(&self, mut connection: Box<Connection>) {
        let context = &self.shared.context;
        let timing = &context.settings.timing;
        if !connection.is_greeted {
            match connection.begins_soon() {
                Ok(true) => {}
                Ok(false) => return self.shared.parking.park(connection),
                Err(_) => return,
            }
            connection.is_greeted = true;
            match secure::accept(&context.keyring, &connection.stream, timing.head_timeout) {
                Accepted::Plain => {}
                Accepted::Encrypted => connection.expect_within(timing.head_timeout),
                Accepted::Refused => return,
            }
        }
        loop {
            let head = match connection.next_head(timing, &context.settings.limits) {
                Next::Closed => return,
                Next::Quiet => return self.shared.parking.park(connection),
                Next::Refused(refusal) => {
                    context.presence.counters().failed("request");
                    let peer = connection.peer;
                    log::debug!("refused a head addr={peer} reason={:?}", refusal.reason);
                    let answer = OwnAnswer::Head(refusal).write_last();
                    if connection.stream.write_all(&answer, timing.head_timeout).is_ok() {
                        connection.close_gently();
                    }
                    return;
                }
                Next::Head(head) => head,
            };
            if !std::mem::replace(&mut connection.has_passed, true) {
                tiny_gate::pass(&head);
            }
            match exchange::run(context, &self.upstream, &mut connection, &head) {
                End::Keep => connection.set_answered(timing.idle_timeout),
                End::Close => return connection.close_gently(),
                End::Cut => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener, TcpStream};
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::super::connections::{Connections, Process};
    use super::*;
    use crate::pairing::stream::Stream;

    #[test]
    fn no_connection_waits_for_a_worker_that_has_gone() {
        const COUNT: usize = 5000;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = listener.local_addr().expect("its address");
        let stream = Arc::new(Stream::new(TcpStream::connect(peer).expect("a connection")));
        let connections = Arc::new(Connections::new(COUNT, COUNT, Process::of_its_own(COUNT)));
        let connect = || {
            let place = connections.enter(&stream, IpAddr::from([127, 0, 0, 1])).expect("a place");
            Box::new(Connection::new(Arc::clone(&stream), peer, place, IDLE_TIME))
        };
        let (workers, served) = (Workers::default(), AtomicUsize::new(0));
        let is_over = AtomicBool::new(false);
        let mut given_back = 0;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                // They lose patience about as often as they get one.
                scope.spawn(|| {
                    while !is_over.load(SeqCst) {
                        let next = workers.next_connection(Duration::from_micros(20));
                        served.fetch_add(usize::from(next.is_some()), SeqCst);
                    }
                });
            }
            for _ in 0..COUNT {
                given_back += usize::from(workers.hand_over(connect()).is_err());
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while connections.len() > 0 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            is_over.store(true, SeqCst);
        });
        let served = served.load(SeqCst);
        assert_eq!((served + given_back, connections.len()), (COUNT, 0), "{given_back} given back");
        workers.dismiss();
        assert!(
            workers.next_connection(IDLE_TIME).is_none() && workers.hand_over(connect()).is_err()
        );
    }
}
