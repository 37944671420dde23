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
//! Windows has no such paths, and on loopback other users of the machine could connect. There its
//! listener is made to fail once it has our connection, with which it ends accepting for good; and a
//! request that came from elsewhere, in the moments before, ends the gate. It isn't answered, nor is
//! it dropped: tiny_http would read it to its declared end.
//!
//! tiny_http can't be stopped once the path is gone, so there is one gate for as long as the process
//! lives. A gate that fails, or takes longer than [`PATIENCE`], is passed by from then on: a request
//! doesn't need it.

use std::io::{self, ErrorKind, Write};
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tiny_http::{Listener, Server};

use crate::http::head::Head;
use crate::net::socket::{self, Local, Private};
use crate::system;

/// How long a request may take to come out of the gate.
const PATIENCE: Duration = Duration::from_secs(1);
/// The queue is looked at so often before waiting for it: its thread needs about as long to parse
/// a head as ours to fall asleep and wake up.
const YIELDS: u32 = 100;
/// How often it is tried to end its accepting, and how long one try may take.
const TRIES: u32 = 50;
const TRY: Duration = Duration::from_millis(20);

/// The gate of this process; none in it once it has failed.
static GATE: OnceLock<Mutex<Option<Gate>>> = OnceLock::new();

struct Gate<C = Local> {
    /// Never dropped, as requests of others may be in its queue.
    server: ManuallyDrop<Server>,
    connection: C,
    /// Where tiny_http sees our connection come from, if others could come too.
    own: Option<SocketAddr>,
}

/// Opens the gate, unless it is open: a socket in a fresh directory below the first of `places` that
/// can hold one.
pub(super) fn open(places: &[PathBuf]) -> io::Result<()> {
    if GATE.get().is_some() {
        return Ok(());
    }
    let mut last = io::Error::new(ErrorKind::NotFound, "no directory for a private socket");
    for place in places {
        let start = || {
            let ends = socket::private_listener(place)?;
            ends.connection.set_write_timeout(Some(PATIENCE))?;
            Gate::start(ends)
        };
        match start() {
            // If another thread was faster, its gate is as good.
            Ok(gate) => {
                GATE.get_or_init(|| Mutex::new(gate));
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

fn pass_through<C: Write>(gate: &Mutex<Option<Gate<C>>>, method: &str, target: &str) {
    let mut gate = system::lock(gate);
    if let Some(open) = &mut *gate
        && let Err(error) = open.pass(method, target)
    {
        log::error!("requests no longer pass tiny_http: {error}");
        *gate = None;
    }
}

impl<C: Write> Gate<C> {
    /// None if other programs can get in, so that requests are to pass it by.
    fn start(ends: Private<impl Into<Listener>, C>) -> io::Result<Option<Self>> {
        let (own, door) = ends.reachable.unzip();
        let server = Server::from_listener(ends.listener, None).map_err(io::Error::other)?;
        let server = ManuallyDrop::new(server);
        let mut gate = Gate { server, connection: ends.connection, own };
        let passed = gate.pass("GET", "/");
        let Some(door) = door else { return passed.map(|()| Some(gate)) };
        let closed = gate.close(&door);
        if let Err(error) = passed.and(closed) {
            log::warn!("requests don't pass tiny_http, which others could reach: {error}");
            return Ok(None);
        }
        Ok(Some(gate))
    }

    /// Ends tiny_http's accepting by an error: of a listener that doesn't wait any more, or of a
    /// connection that is gone before it is accepted.
    fn close(&self, door: &TcpListener) -> io::Result<()> {
        door.set_nonblocking(true)?;
        let mut others = Ok(());
        for _ in 0..TRIES {
            if let Ok(stream) = socket::connect(door.local_addr()?, None, TRY) {
                socket::reset_on_close(&stream);
            }
            match self.server.recv_timeout(TRY) {
                // Its thread says so, and ends.
                Err(_) => return others,
                Ok(None) => {}
                Ok(Some(request)) => others = Err(foreign(request)),
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    fn pass(&mut self, method: &str, target: &str) -> io::Result<()> {
        let head = [method, " ", target, " HTTP/1.1\r\n\r\n"].concat();
        self.connection.write_all(head.as_bytes())?;
        let request = self.receive()?;
        if request.remote_addr().copied() != self.own {
            return Err(foreign(request));
        }
        // Dropping a request makes tiny_http answer it; dropping its writer does not.
        drop(request.into_writer());
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

/// Somebody else has connected; nothing passes the gate after this.
fn foreign(request: tiny_http::Request) -> io::Error {
    std::mem::forget(request);
    io::Error::other("another program is connected to it")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;
    use crate::net::os::loopback_listener;
    use crate::net::socket::pair;

    /// A gate behind which nobody is: what is written is never read, and nothing comes out.
    fn dead() -> (Gate, Local) {
        let ends = socket::private_listener(&std::env::temp_dir()).unwrap();
        let server = ManuallyDrop::new(Server::from_listener(ends.listener, None).unwrap());
        let (connection, far) = pair().unwrap();
        connection.set_nonblocking(false).unwrap();
        connection.set_write_timeout(Some(PATIENCE)).unwrap();
        (Gate { server, connection, own: None }, far)
    }

    /// As on Windows.
    #[test]
    fn nobody_else_gets_into_a_gate_on_loopback() {
        let ends = loopback_listener().unwrap();
        let address = ends.connection.peer_addr().unwrap();
        let mut gate = Gate::start(ends).unwrap().expect("closed");
        let deadline = Instant::now() + Duration::from_secs(20);
        // Its thread ends a moment later.
        while TcpStream::connect(address).is_ok() {
            assert!(Instant::now() < deadline, "it goes on accepting");
        }
        for _ in 0..100 {
            gate.pass("GET", "/").unwrap();
        }
    }

    /// What tiny_http must not read to its end, which takes as much memory.
    const ENDLESS: &[u8] = b"POST / HTTP/1.0\r\nContent-Length: 9999999999999999\r\n\r\n";

    #[test]
    fn who_got_into_the_gate_before_it_closed_ends_it() {
        let ends = loopback_listener().unwrap();
        let address = ends.connection.peer_addr().unwrap();
        let mut others = [(); 2].map(|()| TcpStream::connect(address).unwrap());
        let gate = Gate::start(ends).unwrap();
        let gate = Mutex::new(Some(gate.expect("they have said nothing")));
        others.iter_mut().for_each(|other| other.write_all(ENDLESS).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while gate.lock().unwrap().is_some() {
            assert!(Instant::now() < deadline, "it passes for ours");
            pass_through(&gate, "GET", "/");
        }
        for mut other in others {
            other.set_read_timeout(Some(PATIENCE / 2)).unwrap();
            assert!(other.read(&mut [0]).is_err(), "it is dropped, with which it is answered");
        }
    }

    #[test]
    fn who_speaks_to_the_gate_before_it_has_started_keeps_nothing_from_starting() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut others = [(); 2].map(|()| TcpStream::connect(address).unwrap());
        others.iter_mut().for_each(|other| other.write_all(ENDLESS).unwrap());
        let connection = TcpStream::connect(address).unwrap();
        let reachable = connection.local_addr().unwrap();
        let reachable = Some((reachable, listener.try_clone().unwrap()));
        let ends = Private { listener, connection, reachable };
        // Whatever tiny_http hears first.
        let gate = Mutex::new(Gate::start(ends).expect("no reason to fail"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while gate.lock().unwrap().is_some() {
            assert!(Instant::now() < deadline, "it passes for ours");
            pass_through(&gate, "GET", "/");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_ok() {
            assert!(Instant::now() < deadline, "it goes on accepting");
        }
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
