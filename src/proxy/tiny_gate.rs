//! tiny_http: the gate through which every client connection comes in, with its first request.
//!
//! What tiny_http does here: it parses the request's head a second time and admits it. A worker
//! writes a canonical head (method and target) to a private connection and waits until that request
//! comes out of tiny_http's queue. One request is in the gate at a time, and a gate that failed is
//! never used again, so what comes out is what went in.
//!
//! What it costs: two switches of threads for a connection, about a quarter of the instructions of
//! a small request. That is why later requests of a connection don't pass it again.
//!
//! What tiny_http 0.12 does when it faces a network (it hangs on bursts of connections, aborts on
//! large declared bodies, ends accepting on EMFILE, deadlocks on HTTP/2.0, panics on resets, takes
//! heads without limit) can't be reached from here: it has one connection, made when the process
//! starts to serve, after which the socket's path is gone; it sees heads that we wrote, never a body,
//! and never writes.
//!
//! tiny_http can't be stopped once the path is gone, so there is one gate for as long as the process
//! lives. A gate that fails, or takes longer than [`PATIENCE`], is passed by from then on: a request
//! doesn't need it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tiny_http::Server;

use crate::http::head::Head;
use crate::system::{self, Hex};

/// How long a request may take to come out of the gate.
const PATIENCE: Duration = Duration::from_secs(1);
/// The queue is looked at so often before waiting for it: its thread needs about as long to parse
/// a head as ours to fall asleep and wake up.
const YIELDS: u32 = 100;

/// The gate of this process; none in it once it has failed.
static GATE: OnceLock<Mutex<Option<Gate>>> = OnceLock::new();

struct Gate {
    server: Server,
    connection: UnixStream,
}

/// Opens the gate, unless it is open: a socket in a fresh directory below the first of `places` that
/// can hold one.
pub(super) fn open(places: &[PathBuf]) -> io::Result<()> {
    if GATE.get().is_some() {
        return Ok(());
    }
    let mut last = io::Error::new(ErrorKind::NotFound, "no directory for a private socket");
    for place in places {
        match Gate::start_below(place) {
            // If another thread was faster, its gate is as good.
            Ok(gate) => {
                GATE.get_or_init(|| Mutex::new(Some(gate)));
                return Ok(());
            }
            Err(error) => {
                last = io::Error::new(error.kind(), format!("{}: {error}", place.display()));
            }
        }
    }
    Err(last)
}

/// Lets a request pass.
pub(super) fn pass(head: &Head) {
    if let Some(gate) = GATE.get() {
        pass_through(gate, head.method.as_str(), &head.target);
    }
}

fn pass_through(gate: &Mutex<Option<Gate>>, method: &str, target: &str) {
    let mut gate = system::lock(gate);
    if let Some(open) = &mut *gate
        && let Err(error) = open.pass(method, target)
    {
        log::error!("tiny_http is passed by from now on: {error}");
        *gate = None;
    }
}

impl Gate {
    fn start_below(place: &Path) -> io::Result<Self> {
        let dir = place.join(format!("ollana-{}", Hex(&system::random::<8>()?)));
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let path = dir.join("gate");
        let ends = UnixListener::bind(&path)
            .and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
        let _ = fs::remove_dir_all(&dir);
        let (listener, connection) = ends?;
        connection.set_write_timeout(Some(PATIENCE))?;
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let mut gate = Gate { server, connection };
        gate.pass("GET", "/")?;
        Ok(gate)
    }

    fn pass(&mut self, method: &str, target: &str) -> io::Result<()> {
        let head = [method, " ", target, " HTTP/1.1\r\n\r\n"].concat();
        self.connection.write_all(head.as_bytes())?;
        // Dropping a request makes tiny_http answer it; dropping its writer does not.
        drop(self.receive()?.into_writer());
        Ok(())
    }

    fn receive(&self) -> io::Result<tiny_http::Request> {
        for _ in 0..YIELDS {
            if let Some(request) = self.server.try_recv()? {
                return Ok(request);
            }
            std::thread::yield_now();
        }
        self.server.recv_timeout(PATIENCE)?.ok_or(ErrorKind::TimedOut.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A gate behind which nobody is: what is written is never read, and nothing comes out.
    fn dead() -> (Gate, UnixStream) {
        let path = std::env::temp_dir()
            .join(format!("ollana-dead-{}", Hex(&system::random::<8>().unwrap())));
        let server = Server::from_listener(UnixListener::bind(&path).unwrap(), None).unwrap();
        fs::remove_file(&path).unwrap();
        let (connection, far) = UnixStream::pair().unwrap();
        connection.set_write_timeout(Some(PATIENCE)).unwrap();
        (Gate { server, connection }, far)
    }

    #[test]
    fn a_gate_that_breaks_holds_up_requests_once() {
        // The write breaks in the middle of the head, or all of it is written and nothing comes.
        for target in ["/x".repeat(1 << 20), "/x".to_owned()] {
            let (gate, _far) = dead();
            let gate = Mutex::new(Some(gate));
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| pass_through(&gate, "GET", &target));
                }
            });
            // The first waits for the gate, the others for the first.
            let took = start.elapsed();
            assert!(took < 4 * PATIENCE, "{took:?}");
            assert!(took >= PATIENCE / 2 && gate.lock().unwrap().is_none());
            let start = Instant::now();
            pass_through(&gate, "GET", &target);
            assert!(start.elapsed() < PATIENCE / 2, "passed by");
        }
    }
}
