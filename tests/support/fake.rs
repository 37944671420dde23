//! A server that does what a test tells it: HTTP/1.1 on a bare socket, one thread per connection.
//! It is what an `Ollama` is made of; by itself it is for what no Ollama ever sends.
//!
//! A script is a closure over a [`Call`]; it runs once per request, and its lines are the steps:
//! send these bytes, wait for that gate, read the body, reset. What daemons ask on their own account
//! (the version, the lists of models) is answered apart from it, so that health checks pass.
//! Everything else is recorded byte for byte.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use socket2::SockRef;

use super::call::{Call, read};
use super::http::Head;
use super::ollama::{World, checked};
use super::system::{raise_descriptors, sees_shutdown};
use super::{PATIENCE, lock};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The peer closed it.
    Eof,
    /// The peer reset it.
    Reset,
    /// The script did.
    ByUs,
}

/// One connection to the fake.
#[derive(Clone, Debug)]
pub struct Connection {
    pub opened: Instant,
    pub closed: Option<(Instant, Closed)>,
    stream: Option<Arc<TcpStream>>,
}

/// One request as it was received.
#[derive(Clone, Debug)]
pub struct Record {
    /// Index of its connection.
    pub connection: usize,
    pub head: Head,
    /// The body's bytes with their framing, as far as they were read.
    pub raw_body: Vec<u8>,
    /// The body without framing.
    pub body: Vec<u8>,
    /// Whether the body's framing says that it arrived whole.
    pub is_whole: bool,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct State {
    pub connections: Vec<Connection>,
    pub records: Vec<Record>,
    /// Health checks answered.
    pub checks: usize,
    failures: Vec<String>,
    alive: usize,
}

type Script = dyn Fn(&mut Call<'_>) + Send + Sync;
/// The whole answer to what daemons ask on their own account; none for other requests.
type Checks = dyn Fn(&Head) -> Option<Vec<u8>> + Send + Sync;

pub(super) struct Shared {
    checks: Box<Checks>,
    script: Box<Script>,
    state: Mutex<State>,
    changed: Condvar,
    is_stopping: AtomicBool,
}

/// The server itself. Dropping it ends all its threads and fails if a script panicked.
pub struct Fake {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Fake {
    /// One whose script answers whatever is asked, paths and models that no Ollama knows too: for
    /// broken framing, odd fields, a death at a chosen byte. Everything else is for an `Ollama`.
    pub fn unlike_ollama(script: impl Fn(&mut Call<'_>) + Send + Sync + 'static) -> Self {
        let world = World::default();
        Fake::start_checked(move |head| checked(&world, head), script)
    }

    /// Starts to serve on a free port of 127.0.0.1.
    pub fn start_checked(
        checks: impl Fn(&Head) -> Option<Vec<u8>> + Send + Sync + 'static,
        script: impl Fn(&mut Call<'_>) + Send + Sync + 'static,
    ) -> Self {
        static RAISED: Once = Once::new();
        RAISED.call_once(raise_descriptors);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a fake Ollama");
        let shared = Arc::new(Shared {
            checks: Box::new(checks),
            script: Box::new(script),
            state: Mutex::default(),
            changed: Condvar::new(),
            is_stopping: AtomicBool::new(false),
        });
        let address = listener.local_addr().expect("local address");
        let mut fake = Fake { address, shared, acceptor: None };
        fake.accept_on(listener);
        fake
    }

    /// One that answers every request with the same bytes, after its body.
    pub fn unlike_ollama_saying(answer: impl AsRef<[u8]>) -> Self {
        let answer = answer.as_ref().to_vec();
        Fake::unlike_ollama(move |call| {
            call.read_body();
            call.send(&answer);
        })
    }

    fn accept_on(&mut self, listener: TcpListener) {
        // The kernel cuts this to what it allows; the default of 128 is too few for some tests.
        SockRef::from(&listener).listen(4096).expect("a longer queue");
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(thread::spawn(move || {
            loop {
                let accepted = listener.accept();
                if shared.is_stopping.load(SeqCst) {
                    return;
                }
                // It fails for a connection that is gone already.
                if let Ok((stream, _)) = accepted {
                    shared.adopt(stream);
                }
            }
        }));
    }

    /// Dies as a process does: the port refuses, and all connections are closed.
    pub fn kill(&mut self) {
        self.shared.is_stopping.store(true, SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = TcpStream::connect(self.address);
            let _ = acceptor.join();
        }
        let streams: Vec<_> =
            lock(&self.shared.state).connections.iter().filter_map(|c| c.stream.clone()).collect();
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.wait("the fake's connections to end", |state| (state.alive == 0).then_some(()));
    }

    /// Is there again, on the same port.
    pub fn restart(&mut self) {
        self.shared.is_stopping.store(false, SeqCst);
        let listener = TcpListener::bind(self.address).expect("bind the same port again");
        self.accept_on(listener);
    }

    /// Waits until the state has what is looked for.
    pub fn wait<T>(&self, awaited: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(seen) = look(&state) {
                return seen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {awaited}: {}", describe(&state));
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// What the state says right now.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.shared.state))
    }

    /// Waits for the request with this index (health checks don't count).
    pub fn request(&self, index: usize) -> Record {
        self.wait(&format!("request {index}"), |state| state.records.get(index).cloned())
    }

    /// Waits until a request's body has arrived whole.
    pub fn whole_request(&self, index: usize) -> Record {
        self.wait(&format!("the whole of request {index}"), |state| {
            state.records.get(index).filter(|record| record.is_whole).cloned()
        })
    }

    /// Requests so far.
    pub fn count(&self) -> usize {
        self.look(|state| state.records.len())
    }

    /// Waits until the connection that carried a request is closed: how and when.
    pub fn closed(&self, request: usize) -> (Instant, Closed) {
        self.wait(&format!("the connection of request {request} to close"), |state| {
            state.connections[state.records.get(request)?.connection].closed
        })
    }
}

fn describe(state: &State) -> String {
    let requests: Vec<String> = state
        .records
        .iter()
        .rev()
        .take(5)
        .map(|record| {
            let [method, target, _] = &record.head.start;
            let closed = state.connections[record.connection].closed.map(|(_, how)| how);
            let (bytes, whole) = (record.body.len(), record.is_whole);
            format!("{method} {target:.60} ({bytes} bytes, whole: {whole}, closed: {closed:?})")
        })
        .collect();
    format!("{} requests, the last: {requests:?} {:?}", state.records.len(), state.failures)
}

impl Drop for Fake {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        self.kill();
        let failures = self.look(|state| state.failures.clone());
        assert!(failures.is_empty(), "a script of the fake failed: {failures:?}");
    }
}

impl Shared {
    fn adopt(self: &Arc<Self>, stream: TcpStream) {
        let stream = Arc::new(stream);
        let _ = stream.set_nodelay(true);
        sees_shutdown(&stream);
        let number = {
            let mut state = lock(&self.state);
            state.connections.push(Connection {
                opened: Instant::now(),
                closed: None,
                stream: Some(Arc::clone(&stream)),
            });
            state.alive += 1;
            state.connections.len() - 1
        };
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            shared.serve(&stream, number);
            shared.update(|state| {
                let connection = &mut state.connections[number];
                connection.stream = None;
                connection.closed.get_or_insert((Instant::now(), Closed::ByUs));
                drop(stream);
                state.alive -= 1;
            });
        });
        thread.expect("a thread for a connection of the fake");
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut lock(&self.state));
        self.changed.notify_all();
        changed
    }

    pub(super) fn note_closed(&self, connection: usize, how: Closed) {
        self.update(|state| {
            state.connections[connection].closed.get_or_insert((Instant::now(), how));
        });
    }

    fn serve(&self, stream: &TcpStream, connection: usize) {
        let mut input = Vec::new();
        let mut earlier = 0;
        loop {
            let Some(head) = Head::take(&mut input) else {
                match read(stream, &mut input) {
                    Ok(_) => continue,
                    Err(how) => return self.note_closed(connection, how),
                }
            };
            if let Some(answer) = (self.checks)(&head) {
                self.update(|state| state.checks += 1);
                if (&*stream).write_all(&answer).is_err() {
                    return self.note_closed(connection, Closed::Reset);
                }
                earlier += 1;
                continue;
            }
            let record = self.update(|state| {
                let is_whole = !head.is_chunked() && head.length().unwrap_or(0) == 0;
                state.records.push(Record {
                    connection,
                    head: head.clone(),
                    raw_body: input.clone(),
                    body: Vec::new(),
                    is_whole,
                });
                state.records.len() - 1
            });
            let mut call = Call::new(self, stream, &mut input, head, [connection, record, earlier]);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.script)(&mut call))) {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                self.update(|state| state.failures.push(text.unwrap_or_default()));
                return;
            }
            if call.has_ended() {
                return;
            }
            call.read_body();
            earlier += 1;
        }
    }
}
