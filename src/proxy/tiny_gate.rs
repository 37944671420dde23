//! tiny_http as parser and queue of the worker pool, where no byte of the network reaches it.
//!
//! The only importer of tiny_http, behind one call: [`Intake::admit`].
//!
//! ```text
//!  worker ── canonical head: method, target, exchange number ──► private socket
//!    │                                                              │ tiny_http parses
//!    └── recv() ◄──────────── queue, first come first served ◄──────┘
//! ```
//!
//! What tiny_http 0.12 does when it faces a network (hangs on bursts of connections, aborts on
//! large declared bodies, ends accepting on EMFILE, deadlocks on HTTP/2.0, panics on resets,
//! takes heads without limit) can't be reached from here: it has one connection, made at
//! start-up, after which the socket's path is gone; it sees heads that we wrote ourselves, never a
//! body, and is never asked to write.
//!
//! A worker that hands its request in takes the next one out, which may be another worker's: the
//! connection goes with the request, so it doesn't matter who serves whom, and a request needs
//! one thread, not two.
//!
//! A connection comes in with its first request; those that follow it stay with the worker that has
//! it, because it waits for nobody then. Two thread switches each, a quarter of all instructions of
//! a small request, would be spent on finding that out.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::http::head::Head;
use crate::proxy::connection::Downstream;
use crate::system::lock;

/// A request waits this long for the queue before we look whether it got lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// The queue is looked at so often before waiting for it: its thread needs about as long to parse
/// a head as ours to fall asleep and wake up.
const YIELDS: u32 = 100;
/// Field that carries the exchange's number.
const NUMBER_FIELD: &str = "X";

/// A request that passed the porch, with the connection that it came on.
#[derive(Debug)]
pub struct Arrival {
    /// The client's connection.
    pub connection: Box<Downstream>,
    /// The vetted head.
    pub head: Box<Head>,
}

/// The queue in front of the workers.
pub struct Intake {
    server: tiny_http::Server,
    line: Mutex<UnixStream>,
    arrivals: Mutex<HashMap<u64, Arrival>>,
    next: AtomicU64,
}

impl Intake {
    /// Starts tiny_http on a private socket in a fresh directory below one of `places`, connects
    /// to it, and removes the directory.
    ///
    /// # Errors
    /// When none of the places can hold a socket.
    pub fn start(places: &[PathBuf]) -> io::Result<Self> {
        let mut last = io::Error::new(ErrorKind::NotFound, "no directory for a private socket");
        for place in places {
            match Self::start_below(place) {
                Ok(intake) => return Ok(intake),
                Err(error) => {
                    last = io::Error::new(error.kind(), format!("{}: {error}", place.display()))
                }
            }
        }
        Err(last)
    }

    fn start_below(place: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let dir = place.join(format!("ollana-{:016x}", u64::from_ne_bytes(random)));
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let started = Self::start_in(&dir.join("intake"));
        let _ = fs::remove_dir_all(&dir);
        started
    }

    fn start_in(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let line = UnixStream::connect(path)?;
        // A queue that takes nothing for so long is broken; the request gets an answer then.
        line.set_write_timeout(Some(PATIENCE))?;
        let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        let intake = Intake {
            server,
            line: Mutex::new(line),
            arrivals: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
        };
        intake.write(&canonical_head("GET", "/", u64::MAX))?;
        match intake.server.recv_timeout(Duration::from_secs(5))? {
            Some(_) => Ok(intake),
            None => Err(ErrorKind::TimedOut.into()),
        }
    }

    fn arrivals(&self) -> MutexGuard<'_, HashMap<u64, Arrival>> {
        lock(&self.arrivals)
    }

    fn write(&self, head: &[u8]) -> io::Result<()> {
        lock(&self.line).write_all(head)
    }

    /// Hands a request in and takes the next one out.
    ///
    /// # Errors
    /// The own request, if the queue lost it.
    pub fn admit(&self, arrival: Arrival) -> Result<Arrival, Arrival> {
        let number = self.next.fetch_add(1, Relaxed);
        let head = canonical_head(arrival.head.method.as_str(), &arrival.head.target, number);
        self.arrivals().insert(number, arrival);
        let written = self.write(&head);
        while written.is_ok() {
            let mut early = Ok(None);
            for _ in 0..YIELDS {
                early = self.server.try_recv();
                if !matches!(early, Ok(None)) {
                    break;
                }
                std::thread::yield_now();
            }
            if matches!(early, Ok(None)) {
                early = self.server.recv_timeout(PATIENCE);
            }
            match early {
                Ok(Some(request)) => {
                    if let Some(arrival) = self.claim(request) {
                        return Ok(arrival);
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        loop {
            if let Some(own) = self.arrivals().remove(&number) {
                return Err(own);
            }
            // Somebody else has taken it, so there is one in the queue for us.
            if let Ok(Some(request)) = self.server.recv_timeout(PATIENCE)
                && let Some(arrival) = self.claim(request)
            {
                return Ok(arrival);
            }
        }
    }

    /// The arrival that a request of the queue stands for. Unknown numbers are dropped.
    fn claim(&self, request: tiny_http::Request) -> Option<Arrival> {
        let field = request.headers().iter().find(|field| field.field.equiv(NUMBER_FIELD));
        let number = field?.value.as_str().parse().ok()?;
        let arrival = self.arrivals().remove(&number);
        // Dropping a request makes tiny_http answer it; dropping its writer does not.
        drop(request.into_writer());
        arrival
    }
}

fn canonical_head(method: &str, target: &str, number: u64) -> Vec<u8> {
    let number = number.to_string();
    let words = [method, " ", target, " HTTP/1.1\r\n", NUMBER_FIELD, ": ", &number, "\r\n\r\n"];
    words.concat().into_bytes()
}
