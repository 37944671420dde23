//! What differs between operating systems about sockets. Nothing else in this room asks which one it
//! runs on.
//!
//! | | Linux | macOS, FreeBSD | Windows |
//! |---|---|---|---|
//! | a peer's end behind unread bytes | is seen | macOS sees it | is seen |
//! | a peer that acknowledges nothing | is given up as told | after the system's time | after the system's time |
//! | what `poll` tells of input | what was asked for | the same | `RDNORM` alone |
//! | `poll` and a shutdown by us | it tells of it | the same | it may tell nothing |
//! | a connect that nobody takes | is refused at once | the same | after 2 s; on loopback 0.4 s here |
//! | sockets between our own threads | a socket pair | the same | loopback TCP |

use std::io;
#[cfg(any(windows, test))]
use std::net::Ipv4Addr;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::AsFd;
use rustix::io::retry_on_intr;

pub(crate) use system::*;

/// The longest time that every system's `poll` takes.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// Waits until one of the sockets has one of its events; returns what each has. No events on either
/// means that the time is up. A signal starts the time over.
pub(crate) fn poll(
    first: (&impl AsFd, PollFlags),
    second: Option<(&TcpStream, PollFlags)>,
    timeout: Option<Duration>,
) -> io::Result<(PollFlags, PollFlags)> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout.min(LONGEST)).ok());
    let first = PollFd::new(first.0, first.1);
    let mut fds = match second {
        Some((stream, events)) => [first, PollFd::new(stream, events)],
        None => [first.clone(), first],
    };
    let used = if second.is_some() { 2 } else { 1 };
    retry_on_intr(|| rustix::event::poll(&mut fds[..used], timeout.as_ref()))?;
    Ok((fds[0].revents(), fds[1].revents()))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::fs::File;
    use std::io::{self, ErrorKind};
    use std::net::TcpStream;
    use std::time::Duration;

    use rustix::event::PollFlags;
    use rustix::fd::AsFd;
    use rustix::io::Errno;
    use socket2::SockRef;

    pub(crate) use super::unix::*;

    /// Events to ask for, to hear that a peer has ended its side.
    pub(crate) const HANGUP: PollFlags = PollFlags::RDHUP;
    /// Events that tell it.
    pub(crate) const ENDED: PollFlags = PollFlags::RDHUP;
    /// Events that tell that nothing goes either way any more.
    pub(crate) const BROKEN: PollFlags =
        PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

    /// Whether a connection is broken of which [`BROKEN`] doesn't tell it.
    pub(crate) fn is_reset(_: &impl AsFd) -> bool {
        false
    }

    pub(crate) fn limit_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
        SockRef::from(stream).set_tcp_user_timeout(Some(limit))
    }

    pub(crate) fn drain_before_writable(stream: &TcpStream, drains: bool) {
        // If this fails, the socket is writable as usual. Zero stands for the system's default.
        let _ = SockRef::from(stream).set_tcp_notsent_lowat(u32::from(drains));
    }

    /// Has the kernel send bytes of a file, which don't come into our memory. Returns how many; none
    /// if the socket has no room.
    pub(crate) fn send_file(
        socket: &TcpStream,
        file: &File,
        at: u64,
        most: usize,
    ) -> io::Result<Option<usize>> {
        let mut offset = at;
        match rustix::fs::sendfile(socket, file, Some(&mut offset), most) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(sent) => Ok(Some(sent)),
            Err(Errno::INTR) => Ok(Some(0)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
mod system {
    pub(crate) use super::others::*;
    pub(crate) use super::unix::*;
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, DirBuilder};
    use std::io;
    use std::net::TcpStream;
    use std::os::unix::fs::DirBuilderExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::time::Duration;

    use rustix::io::Errno;
    use socket2::{SockRef, Socket, TcpKeepalive};

    use super::Private;
    use crate::system::{Hex, random};

    /// What a connect says that isn't through yet.
    pub(crate) const IN_PROGRESS: Errno = Errno::INPROGRESS;
    /// After this, nobody takes a connection to this machine itself.
    pub(crate) const LOOPBACK_TIME: Option<Duration> = None;
    /// How often to look whether a socket was shut down by us, as far as `poll` doesn't tell it.
    pub(crate) const SHUTDOWN_LOOK: Option<Duration> = None;

    pub(crate) use super::poll as wait;

    pub(crate) fn is_shortage(error: Errno) -> bool {
        matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)
    }

    pub(crate) fn keep_alive(stream: &TcpStream, keepalive: &TcpKeepalive) -> io::Result<()> {
        SockRef::from(stream).set_tcp_keepalive(keepalive)
    }

    /// Lets us take a port over from connections in TIME_WAIT, not from another listener.
    pub(crate) fn take_over_port(socket: &Socket) -> io::Result<()> {
        socket.set_reuse_address(true)
    }

    /// One end of a connection within this process.
    pub(crate) type Local = UnixStream;

    pub(crate) fn pair() -> io::Result<(Local, Local)> {
        UnixStream::pair()
    }

    /// Its path is in a fresh directory below `place`, which is gone when this returns.
    pub(crate) fn private_listener(place: &Path) -> io::Result<Private<UnixListener, Local>> {
        let dir = place.join(format!("ollana-{}", Hex(&random::<8>()?)));
        DirBuilder::new().mode(0o700).create(&dir)?;
        let path = dir.join("gate");
        let ends = UnixListener::bind(&path)
            .and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
        // To look into the directory would take a descriptor, of which there may be none.
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&dir);
        let (listener, connection) = ends?;
        Ok(Private { listener, connection, reachable: None })
    }
}

#[cfg(windows)]
mod system {
    use std::io;
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::event::PollFlags;
    use rustix::fd::AsFd;
    use rustix::io::Errno;
    use socket2::{SockRef, Socket, TcpKeepalive};

    use super::Private;
    pub(crate) use super::others::*;

    pub(crate) const IN_PROGRESS: Errno = Errno::WOULDBLOCK;
    /// A connect is tried again half a second later, and so on for two; a listener is met by the first try.
    pub(crate) const LOOPBACK_TIME: Option<Duration> = Some(Duration::from_millis(400));

    /// How often is looked whether a peer that has ended its side takes more: that it has is told
    /// again and again.
    const LOOK: Duration = Duration::from_millis(5);
    /// How often is looked whether another of our threads has shut a socket down, of which `poll` may
    /// tell nothing.
    const LOOK_FOR_SHUTDOWN: Duration = Duration::from_millis(500);
    pub(crate) const SHUTDOWN_LOOK: Option<Duration> = Some(LOOK_FOR_SHUTDOWN);

    /// The sockets don't block.
    pub(crate) fn wait(
        first: (&impl AsFd, PollFlags),
        second: Option<(&TcpStream, PollFlags)>,
        timeout: Option<Duration>,
    ) -> io::Result<(PollFlags, PollFlags)> {
        let until = timeout.map(|timeout| Instant::now() + timeout.min(super::LONGEST));
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let pause = left.unwrap_or(LOOK_FOR_SHUTDOWN).min(LOOK_FOR_SHUTDOWN);
            let (one, other) = super::poll(first, second, Some(pause))?;
            let told = (
                super::told(first.1, one, || is_reset(first.0)),
                second.map_or(PollFlags::empty(), |(stream, asked)| {
                    super::told(asked, other, || is_reset(stream))
                }),
            );
            let is_told = |told: (PollFlags, PollFlags)| !told.0.union(told.1).is_empty();
            if is_told(told) {
                return Ok(told);
            }
            let shut_down = (
                shut_down(first.0, first.1),
                second.map_or(PollFlags::empty(), |(stream, asked)| shut_down(stream, asked)),
            );
            let is_over = left.is_some_and(|left| left <= pause);
            let is_quiet = one.is_empty() && other.is_empty();
            if is_told(shut_down) || (is_over && is_quiet) || left == Some(Duration::ZERO) {
                return Ok(shut_down);
            }
            if !is_quiet {
                thread::sleep(LOOK.min(pause));
            }
        }
    }

    /// What a socket that we have shut down has of the events that are asked for: its end, or that
    /// nothing goes either way any more.
    fn shut_down(socket: &impl AsFd, asked: PollFlags) -> PollFlags {
        let fd = socket.as_fd();
        let socket = SockRef::from(&fd);
        match socket.peek(&mut [MaybeUninit::uninit()]) {
            Ok(0) if asked.intersects(PollFlags::IN) => PollFlags::HUP,
            // Of a peer that has ended its side too; then we may still send.
            Ok(0) if socket.send(&[]).is_err_and(|e| is_shut_down(&e)) => PollFlags::ERR,
            _ => PollFlags::empty(),
        }
    }

    fn is_shut_down(error: &io::Error) -> bool {
        Errno::from_io_error(error) == Some(Errno::SHUTDOWN)
    }

    pub(crate) fn is_shortage(error: Errno) -> bool {
        matches!(error, Errno::MFILE | Errno::NOBUFS)
    }

    /// The times come first, the number of tries behind them: older systems don't have that.
    pub(crate) fn keep_alive(stream: &TcpStream, keepalive: &TcpKeepalive) -> io::Result<()> {
        let _ = SockRef::from(stream).set_tcp_keepalive(keepalive);
        Ok(())
    }

    /// A port is free here as soon as nobody listens; the option would take it from a listener.
    pub(crate) fn take_over_port(_: &Socket) -> io::Result<()> {
        Ok(())
    }

    pub(crate) type Local = TcpStream;

    pub(crate) fn pair() -> io::Result<(Local, Local)> {
        let ends = super::loopback_pair()?;
        // As `wait` needs them.
        ends.0.set_nonblocking(true)?;
        ends.1.set_nonblocking(true)?;
        Ok(ends)
    }

    pub(crate) fn private_listener(_: &Path) -> io::Result<Private<TcpListener, Local>> {
        super::loopback_listener()
    }
}

/// A listener for one connection, which this process has made.
pub(crate) struct Private<L, C> {
    pub(crate) listener: L,
    pub(crate) connection: C,
    /// Where other programs of this machine can connect too: the connection's own address, by which it
    /// is known, and another handle of the listener, to end it with.
    pub(crate) reachable: Option<(SocketAddr, TcpListener)>,
}

#[cfg(any(windows, test))]
pub(crate) fn loopback_listener() -> io::Result<Private<TcpListener, TcpStream>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let connection = TcpStream::connect(listener.local_addr()?)?;
    connection.set_nodelay(true)?;
    let reachable = Some((connection.local_addr()?, listener.try_clone()?));
    Ok(Private { listener, connection, reachable })
}

/// What counts of a socket's events on Windows, which tells of a peer that has ended its side even
/// whom it doesn't concern: whoever asks for no input wants to know only of a reset.
#[cfg(any(windows, test))]
fn told(asked: PollFlags, events: PollFlags, is_reset: impl FnOnce() -> bool) -> PollFlags {
    if !events.contains(PollFlags::HUP) || asked.intersects(PollFlags::IN) {
        return events;
    }
    let others = events.difference(PollFlags::HUP);
    if is_reset() { others.union(PollFlags::ERR) } else { others }
}

/// Two ends of a connection over loopback. Other programs of this machine may connect in between;
/// what isn't the own end is closed.
#[cfg(any(windows, test))]
pub(crate) fn loopback_pair() -> io::Result<(TcpStream, TcpStream)> {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let own = near.local_addr()?;
    // Ours is in the queue, so there is an end to those before it.
    loop {
        match listener.accept() {
            Ok((far, peer)) if peer == own => return Ok((near, far)),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What all systems but Linux have in common.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod others {
    use std::fs::File;
    use std::io::{self, ErrorKind, Write};
    use std::mem::MaybeUninit;
    use std::net::TcpStream;
    use std::time::Duration;

    use rustix::event::PollFlags;
    use rustix::fd::AsFd;
    use socket2::SockRef;

    use crate::system::files;

    /// Bytes of a file that are read at a time.
    const PIECE: usize = 64 << 10;

    /// There is no event to ask for; input is looked at more closely.
    pub(crate) const HANGUP: PollFlags = PollFlags::IN;
    /// macOS and Windows tell it as soon as a peer has ended its side, the BSDs if we have as well.
    pub(crate) const ENDED: PollFlags = PollFlags::HUP;
    pub(crate) const BROKEN: PollFlags = PollFlags::ERR.union(PollFlags::NVAL);

    pub(crate) fn is_reset(stream: &impl AsFd) -> bool {
        let is_none = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted);
        let looked = SockRef::from(&stream.as_fd()).peek(&mut [MaybeUninit::uninit()]);
        looked.is_err_and(|error| !is_none(error.kind()))
    }

    pub(crate) fn limit_unacknowledged(_: &TcpStream, _: Duration) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn drain_before_writable(_: &TcpStream, _: bool) {}

    pub(crate) fn send_file(
        mut socket: &TcpStream,
        file: &File,
        at: u64,
        most: usize,
    ) -> io::Result<Option<usize>> {
        let mut piece = vec![0; PIECE.min(most)];
        files::read_exact_at(file, &mut piece, at)?;
        match socket.write(&piece) {
            Ok(sent) => Ok(Some(sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn of_a_peer_that_has_ended_its_side_only_what_was_asked_for_counts() {
        const END: PollFlags = PollFlags::HUP;
        let out = PollFlags::OUT;
        for (asked, events, is_reset, want) in [
            (PollFlags::IN, PollFlags::RDNORM, false, PollFlags::RDNORM),
            (PollFlags::IN, END, false, END),
            (PollFlags::IN | out, END | out, false, END | out),
            (out, END, false, PollFlags::empty()),
            (out, END | out, false, out),
            (PollFlags::empty(), END, false, PollFlags::empty()),
            (PollFlags::empty(), END, true, PollFlags::ERR),
            (out, END, true, PollFlags::ERR),
            (out, PollFlags::empty(), true, PollFlags::empty()),
        ] {
            assert_eq!(told(asked, events, || is_reset), want, "{asked:?} {events:?} {is_reset}");
        }
    }

    #[test]
    fn a_pair_over_loopback_is_of_this_process() {
        let (mut near, mut far) = loopback_pair().unwrap();
        assert_eq!(near.local_addr().unwrap(), far.peer_addr().unwrap());
        near.write_all(b"a").unwrap();
        far.read_exact(&mut [0]).unwrap();
        assert!(TcpStream::connect(far.local_addr().unwrap()).is_err(), "nobody else gets in");
    }
}
