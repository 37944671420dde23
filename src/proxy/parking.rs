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
use crate::net::socket::{self, Local, Waker};
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
        let attendant = Attendant { parking, bell, waker, parked: Vec::new(), go_on };
        system::spawn_vital("parking", move || attendant.run())
    }

    fn run(mut self) {
        while let Some((has_rung, has_news)) = self.wait() {
            let now = Instant::now();
            for (connection, has_news) in take(&mut self.parked).into_iter().zip(has_news) {
                if has_news && connection.is_open() {
                    (self.go_on)(connection);
                } else if !has_news && connection.deadline() > now {
                    self.parked.push(connection);
                }
            }
            if has_rung {
                let _ = (&self.bell).read(&mut [0]);
                let mut arrivals = lock(&self.parking.arrivals);
                self.parked.extend(arrivals.iter_mut().flat_map(take));
            }
        }
        *lock(&self.parking.arrivals) = None;
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
