//! Non-blocking TCP sockets: waiting on one while another is watched, options, listeners.
//!
//! Every socket of the data path is non-blocking, and every wait is one `poll` that also sees
//! the other side of the exchange leave.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::os;
pub(crate) use super::os::{
    HANGUP, Local, Private, SHUTDOWN_LOOK, drain_before_writable, limit_unacknowledged, pair,
    private_listener, send_file, wait,
};

/// Pending connections that the kernel keeps for us (it caps this at `somaxconn`).
const BACKLOG: i32 = 4096;

/// Whether these events of a watched peer mean that it has left.
pub(crate) fn has_left(stream: &TcpStream, events: PollFlags) -> bool {
    match events {
        _ if is_broken(stream, events) => true,
        _ if events.intersects(os::ENDED) => true,
        // Of input, Windows names but a part.
        _ => events.intersects(PollFlags::IN) && matches!(stream.peek(&mut [0]), Ok(0)),
    }
}

/// Whether the connection is broken both ways, so that nothing can be sent any more.
pub(crate) fn is_broken(stream: &TcpStream, events: PollFlags) -> bool {
    events.intersects(os::BROKEN) || os::is_reset(stream)
}

/// Whether a peer is seen to have left, without waiting: by [`HANGUP`] or, without events, only if
/// the connection is broken.
pub(crate) fn is_gone(stream: &TcpStream, by: PollFlags) -> bool {
    let look = wait((stream, by), None, Some(Duration::ZERO));
    look.is_ok_and(|(events, _)| !events.is_empty() && has_left(stream, events))
}

/// Whether there is no descriptor or memory for a socket.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(os::is_shortage)
}

/// Bytes that have arrived and were not read.
pub(crate) fn unread(stream: &TcpStream) -> u64 {
    rustix::io::ioctl_fionread(stream).unwrap_or(0)
}

/// Reads what has arrived; `None` when nothing has.
pub(crate) fn try_read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    at_once(|| stream.read(buffer))
}

/// Writes as much as the kernel takes now; 0 when it takes nothing.
pub(crate) fn try_write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    at_once(|| stream.write(bytes)).map(Option::unwrap_or_default)
}

fn at_once(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Windows says so of a peer that has vanished; here it stands for something else.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {
                return Err(io::Error::new(ErrorKind::ConnectionReset, error));
            }
            done => return done.map(Some),
        }
    }
}

/// Unacknowledged bytes are given up after this: a vanished peer shows within about 11 s.
pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Makes a connected socket fit for streaming: non-blocking, no delay, keepalive, and a limit on
/// how long sent bytes may stay unacknowledged.
pub(crate) fn prepare(stream: &TcpStream, unacknowledged: Duration) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    // A peer that vanished while nothing is under way is noticed after 3 + 8 × 1 seconds; and one on a
    // bad radio link has as many chances to answer.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(3))
        .with_interval(Duration::from_secs(1))
        .with_retries(8);
    os::keep_alive(stream, &keepalive)?;
    limit_unacknowledged(stream, unacknowledged)
}

/// Connects within `timeout`, else fails with `TimedOut`; with `ConnectionAborted` as soon as
/// `watched` has left.
pub(crate) fn connect(
    address: SocketAddr,
    watched: Option<&TcpStream>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Err(error) = socket.connect(&address.into()) {
        if Errno::from_io_error(&error) != Some(os::IN_PROGRESS) {
            return Err(error);
        }
        let near = os::LOOPBACK_TIME.filter(|_| address.ip().is_loopback());
        let patience = near.map_or(timeout, |near| near.min(timeout));
        let wait_for = |watched: Option<&TcpStream>| {
            let watched = watched.map(|stream| (stream, HANGUP));
            wait((&socket, PollFlags::OUT), watched, Some(patience))
        };
        let (mut own, other) = wait_for(watched)?;
        let is_left = watched.is_some_and(|stream| has_left(stream, other));
        if own.is_empty() && !other.is_empty() && !is_left {
            // The next request is waiting there; its hang-up can't be seen.
            own = wait_for(None)?.0;
        }
        if own.is_empty() {
            return Err(match () {
                () if is_left => ErrorKind::ConnectionAborted,
                () if patience < timeout => ErrorKind::ConnectionRefused,
                () => ErrorKind::TimedOut,
            }
            .into());
        }
        socket.take_error()?.map_or(Ok(()), Err)?;
    }
    Ok(socket.into())
}

/// Listens with a long queue, so that a burst of connections isn't dropped by the kernel.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    os::take_over_port(&socket)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Makes the close a reset, so that the peer can't take what it got for a whole answer.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // Without the option, the close is an ordinary one; nothing better can be done then.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Wakes threads that poll `watched` for reading. There is no way back to sleep.
#[derive(Debug)]
pub(crate) struct Waker {
    keep: Local,
    pub(crate) watched: Local,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let (keep, watched) = pair()?;
        Ok(Waker { keep, watched })
    }

    /// Makes `watched` readable, now and for good.
    pub(crate) fn wake(&self) {
        // The second time it fails, and needn't succeed.
        let _ = self.keep.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let near = connect(listener.local_addr().unwrap(), None, Duration::from_secs(5)).unwrap();
        wait((&listener, PollFlags::IN), None, Some(Duration::from_secs(5))).unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            prepare(stream, Duration::from_secs(10)).unwrap();
        }
        (near, far)
    }

    #[test]
    fn waiting_sees_the_other_side_leave_behind_unread_bytes() {
        let (a, _a_far) = pair();
        let (b, b_far) = pair();
        let long = Some(Duration::from_secs(10));
        (&b_far).write_all(b"pipelined").unwrap();
        let none = wait((&a, PollFlags::IN), Some((&b, HANGUP)), Some(Duration::ZERO)).unwrap();
        assert!(!has_left(&b, none.1), "{none:?}");
        drop(b_far);
        let (own, other) = wait((&a, PollFlags::IN), Some((&b, HANGUP)), long).unwrap();
        assert!(own.is_empty());
        if cfg!(target_os = "linux") {
            assert!(has_left(&b, other), "{other:?}");
        }
    }

    #[test]
    fn waiting_sees_what_another_thread_shuts_down() {
        let long = Some(Duration::from_secs(10));
        let none = PollFlags::empty();
        for (how, asked, is_seen) in [
            (Shutdown::Read, PollFlags::IN, has_left as fn(&TcpStream, PollFlags) -> bool),
            (Shutdown::Both, PollFlags::IN, has_left),
            (Shutdown::Both, none, is_broken),
        ] {
            for is_second in [false, true] {
                let (a, _a_far) = pair();
                let (b, _b_far) = pair();
                let start = Instant::now();
                let (events, others) = std::thread::scope(|scope| {
                    let (first, second) = match is_second {
                        false => ((&a, asked), None),
                        true => ((&b, PollFlags::IN), Some((&a, asked))),
                    };
                    let waiting = scope.spawn(move || wait(first, second, long).unwrap());
                    std::thread::sleep(Duration::from_millis(50));
                    a.shutdown(how).unwrap();
                    waiting.join().unwrap()
                });
                let events = if is_second { others } else { events };
                assert!(is_seen(&a, events), "{how:?} {asked:?} {is_second} {events:?}");
                assert!(start.elapsed() < Duration::from_secs(5), "{how:?} {asked:?} {is_second}");
            }
        }
    }

    #[test]
    fn a_refused_connect_says_so() {
        let port = listen("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap();
        let error = connect(port, None, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_waker_stays_awake() {
        let waker = Waker::new().unwrap();
        let zero = Some(Duration::ZERO);
        assert!(wait((&waker.watched, PollFlags::IN), None, zero).unwrap().0.is_empty());
        waker.wake();
        waker.wake();
        for _ in 0..2 {
            assert!(!wait((&waker.watched, PollFlags::IN), None, zero).unwrap().0.is_empty());
        }
    }
}
