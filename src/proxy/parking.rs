//! Connections on which nothing has come for a while. One thread watches all of them, so that a program
//! which keeps a connection and asks nothing costs no thread and no buffer.
//!
//! A worker parks its connection when it has waited for [`QUIET`](super::connection::QUIET). When bytes
//! come, a worker goes on with it, as if nothing had been; when its time is up, or its client leaves, it
//! is closed here.

use std::io::{self, Read, Write};
use std::mem::take;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::Connection;
use crate::net::socket::{self, Local, SHUTDOWN_LOOK, Waker};
use crate::system::{self, lock};

/// Pause after the kernel couldn't watch.
const PAUSE: Duration = Duration::from_millis(50);

/// In boxes, since what stays parked is moved at each wake-up.
type Parked = Vec<Box<Connection>>;

/// Where workers leave connections.
#[derive(Debug)]
pub(super) struct Parking {
    /// Those that the thread hasn't seen yet; `None` once it has ended.
    arrivals: Mutex<Option<Parked>>,
    bell: Local,
}

impl Parking {
    /// And what its thread hears the bell with.
    pub(super) fn new() -> io::Result<(Arc<Self>, Local)> {
        let (bell, heard) = socket::pair()?;
        Ok((Arc::new(Parking { arrivals: Mutex::new(Some(Vec::new())), bell }), heard))
    }

    /// Closes the connection if the proxy is stopping.
    pub(super) fn park(&self, mut connection: Box<Connection>) {
        connection.rest();
        if let Some(arrivals) = &mut *lock(&self.arrivals) {
            arrivals.push(connection);
            // One byte is enough for all that wait, so there is always room for it.
            if arrivals.len() == 1 {
                let _ = (&self.bell).write(&[0]);
            }
        }
    }
}

pub(super) struct Attendant<F> {
    parking: Arc<Parking>,
    bell: Local,
    waker: Arc<Waker>,
    parked: Parked,
    /// When to look next whether connections have given way, where `poll` may not tell it.
    next_look: Option<Instant>,
    go_on: F,
}

impl<F: Fn(Box<Connection>) + Send + 'static> Attendant<F> {
    /// Starts the thread, which ends when `waker` wakes it, and closes what is parked then. `go_on` gets
    /// connections on which something has come.
    pub(super) fn start(
        parking: &Arc<Parking>,
        bell: Local,
        waker: &Arc<Waker>,
        go_on: F,
    ) -> io::Result<JoinHandle<()>> {
        let (parking, waker) = (Arc::clone(parking), Arc::clone(waker));
        let next_look = SHUTDOWN_LOOK.map(|pause| Instant::now() + pause);
        let attendant = Attendant { parking, bell, waker, parked: Vec::new(), next_look, go_on };
        system::spawn_vital("parking", move || attendant.run())
    }

    fn run(mut self) {
        while let Some((has_rung, has_news)) = self.wait() {
            self.sort(has_news, Instant::now());
            if has_rung {
                let _ = (&self.bell).read(&mut [0]);
                let mut arrivals = lock(&self.parking.arrivals);
                self.parked.extend(arrivals.iter_mut().flat_map(take));
            }
        }
        *lock(&self.parking.arrivals) = None;
    }

    /// Passes on what has news and goes on; keeps what has none and isn't over yet.
    fn sort(&mut self, has_news: Vec<bool>, now: Instant) {
        let looks = self.next_look.is_some_and(|at| at <= now);
        if looks {
            self.next_look = SHUTDOWN_LOOK.map(|pause| now + pause);
        }
        for (connection, has_news) in take(&mut self.parked).into_iter().zip(has_news) {
            let is_over = (has_news || looks) && !connection.is_open();
            if has_news && !is_over {
                (self.go_on)(connection);
            } else if !is_over && connection.deadline() > now {
                self.parked.push(connection);
            }
        }
    }

    /// Waits until something happens: whether there are arrivals, and which of the parked connections
    /// have news. None when the proxy is stopping.
    fn wait(&self) -> Option<(bool, Vec<bool>)> {
        let mut fds = vec![
            PollFd::new(&self.waker.watched, PollFlags::IN),
            PollFd::new(&self.bell, PollFlags::IN),
        ];
        fds.extend(self.parked.iter().map(|it| PollFd::new(it.stream.socket(), PollFlags::IN)));
        let next = self.parked.iter().map(|connection| connection.deadline()).min();
        let next = next.map(|next| self.next_look.map_or(next, |look| look.min(next)));
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        if poll(&mut fds, left.as_ref()).is_err() {
            thread::sleep(PAUSE); // For want of memory, it fails at once.
        }
        let mut has_news = fds.iter().map(|fd| !fd.revents().is_empty());
        let (is_over, has_rung) = (has_news.next()?, has_news.next()?);
        (!is_over).then(|| (has_rung, has_news.collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};

    use super::super::connections::{Connections, Process};
    use super::*;
    use crate::pairing::stream::Stream;

    /// Where `poll` doesn't tell it, as on Windows.
    #[test]
    fn what_has_given_way_is_found_without_being_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let connections = Arc::new(Connections::new(9, 9, Process::of_its_own(9)));
        let mut clients = Vec::new();
        let mut connect = || {
            let address = listener.local_addr().expect("its address");
            clients.push(TcpStream::connect(address).expect("a connection"));
            let (near, peer) = listener.accept().expect("its other end");
            near.set_nonblocking(true).expect("non-blocking");
            let stream = Arc::new(Stream::new(near));
            let place = connections.enter(&stream, IpAddr::from([10, 0, 0, 1])).expect("a place");
            Box::new(Connection::new(stream, peer, place, Duration::from_secs(60)))
        };
        let (leaving, staying) = (connect(), connect());
        leaving.stream.socket().shutdown(Shutdown::Read).expect("shut down");
        let stays = staying.peer;
        let (parking, bell) = Parking::new().expect("a bell");
        let waker = Arc::new(Waker::new().expect("a waker"));
        let (parked, now) = (vec![leaving, staying], Instant::now());
        let go_on = drop::<Box<Connection>>;
        let mut attendant = Attendant { parking, bell, waker, parked, next_look: Some(now), go_on };
        attendant.sort(vec![false; 2], now - Duration::from_millis(1));
        assert_eq!(attendant.parked.len(), 2, "it isn't time yet");
        attendant.sort(vec![false; 2], now);
        let left: Vec<_> = attendant.parked.iter().map(|it| it.peer).collect();
        assert_eq!((left, connections.len()), (vec![stays], 1));
    }
}
