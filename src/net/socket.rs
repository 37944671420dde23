//! Non-blocking TCP sockets: waiting on one while another is watched, options, listeners.
//!
//! Every socket of the data path is non-blocking, and every wait is one `poll` that also sees
//! the other side of the exchange leave.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Pending connections that the kernel keeps for us (it caps this at `somaxconn`).
const BACKLOG: i32 = 4096;

/// Events that tell that a peer has closed its side. Where the kernel has no such event, input
/// is watched instead and [`has_left`] looks closer.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const HANGUP: PollFlags = PollFlags::RDHUP;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const HANGUP: PollFlags = PollFlags::IN;

const BROKEN: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

/// Waits until one of the sockets has one of its events; returns what each has. No events on either
/// means that the time is up. A signal starts the time over.
pub(crate) fn wait(
    first: (&impl AsFd, PollFlags),
    second: Option<(&TcpStream, PollFlags)>,
    timeout: Option<Duration>,
) -> io::Result<(PollFlags, PollFlags)> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let first = PollFd::new(first.0, first.1);
    let mut fds = match second {
        Some((stream, events)) => [first, PollFd::new(stream, events)],
        None => [first.clone(), first],
    };
    let used = if second.is_some() { 2 } else { 1 };
    retry_on_intr(|| poll(&mut fds[..used], timeout.as_ref()))?;
    Ok((fds[0].revents(), fds[1].revents()))
}

/// Whether these events of a watched peer mean that it has left.
pub(crate) fn has_left(stream: &TcpStream, events: PollFlags) -> bool {
    match events {
        _ if is_broken(events) => true,
        _ if events.contains(PollFlags::IN) => matches!(stream.peek(&mut [0]), Ok(0)),
        _ => events.intersects(HANGUP),
    }
}

/// Whether the connection is broken both ways, so that nothing can be sent any more.
pub(crate) fn is_broken(events: PollFlags) -> bool {
    events.intersects(BROKEN)
}

/// Whether a peer is seen to have left, without waiting: by [`HANGUP`] or, without events, only if
/// the connection is broken.
pub(crate) fn is_gone(stream: &TcpStream, by: PollFlags) -> bool {
    let look = wait((stream, by), None, Some(Duration::ZERO));
    look.is_ok_and(|(events, _)| !events.is_empty() && has_left(stream, events))
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
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    limit_unacknowledged(stream, unacknowledged)
}

/// Sets TCP_USER_TIMEOUT where there is one. It also ends connections whose peer announces a
/// zero window for that long, so it must not be shorter than a stall that is allowed.
pub(crate) fn limit_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(stream).set_tcp_user_timeout(Some(limit))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (stream, limit);
    Ok(())
}

/// Makes a socket writable only once the peer's window has taken all that was sent, or as usual again,
/// where the kernel can tell that.
pub(crate) fn drain_before_writable(stream: &TcpStream, drains: bool) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // If this fails, the socket is writable as usual. Zero stands for the system's default.
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(u32::from(drains));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (stream, drains);
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
        if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) {
            return Err(error);
        }
        let watching = watched.map(|stream| (stream, HANGUP));
        let (own, other) = wait((&socket, PollFlags::OUT), watching, Some(timeout))?;
        if own.is_empty() {
            let is_left = watched.is_some_and(|stream| has_left(stream, other));
            let kind = if is_left { ErrorKind::ConnectionAborted } else { ErrorKind::TimedOut };
            return Err(kind.into());
        }
        socket.take_error()?.map_or(Ok(()), Err)?;
    }
    Ok(socket.into())
}

/// Listens with a long queue, so that a burst of connections isn't dropped by the kernel.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Only lets us take a port over from connections in TIME_WAIT, not from another listener.
    socket.set_reuse_address(true)?;
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
    keep: UnixStream,
    pub(crate) watched: UnixStream,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let (keep, watched) = UnixStream::pair()?;
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
