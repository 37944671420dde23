//! Accepts connections on one address, and gives each to a worker or to the rejector.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::answers::OwnAnswer;
use super::connection::Connection;
use super::connections::Full;
use super::rejector::{Rejected, reject};
use super::workers::{self, Shared};
use crate::access::permissions::Caller;
use crate::net::interfaces::Subnets;
use crate::net::socket::{self, Waker};
use crate::pairing::stream::Stream;
use crate::system;

/// Pause after the kernel had no descriptor or memory for a connection.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Acceptor {
    listener: TcpListener,
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    rejected: Rejected,
    /// Whether the shortage under way was logged.
    is_short: bool,
}

impl Acceptor {
    /// Starts its thread, which ends when `waker` wakes it.
    pub(super) fn start(
        listener: TcpListener,
        shared: &Arc<Shared>,
        waker: &Arc<Waker>,
        rejected: Rejected,
    ) -> io::Result<JoinHandle<()>> {
        let (shared, waker) = (Arc::clone(shared), Arc::clone(waker));
        let acceptor = Acceptor { listener, shared, waker, rejected, is_short: false };
        system::spawn_vital("acceptor", move || acceptor.run())
    }

    fn run(mut self) {
        // Closed when descriptors run out, so that clients can be told instead of left waiting.
        let mut spare = None;
        loop {
            // Before a connection takes it: without a spare, the one after that couldn't be told.
            spare = spare.or_else(|| self.listener.try_clone().ok());
            let mut accepted = match spare {
                Some(_) => self.accept(),
                None => Err(ErrorKind::OutOfMemory.into()),
            };
            if let Err(error) = &accepted
                && error.kind() != ErrorKind::WouldBlock
                && spare.take().is_some()
            {
                accepted = self.reject_for_shortage(error);
            }
            let is_over = match accepted {
                Ok(()) => false,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(),
                Err(_) => self.pause(),
            };
            if is_over {
                return;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((socket, peer)) => {
                self.is_short = false;
                self.let_in(socket, peer);
                Ok(())
            }
            Err(error) => match error.kind() {
                // Its client has gone; Windows calls that a reset, Wine a missing connection.
                ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::NotConnected => Ok(()),
                ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The kernel says that it is short even if nobody is waiting; a descriptor was just closed.
    fn reject_for_shortage(&mut self, error: &io::Error) -> io::Result<()> {
        let (socket, peer) = self.listener.accept()?;
        if !self.admits(&socket, peer) {
            socket::reset_on_close(&socket);
            return Ok(());
        }
        if !std::mem::replace(&mut self.is_short, true) {
            log::error!("cannot accept connections: {error}; answering 503");
        }
        reject(&self.rejected, Arc::new(Stream::new(socket)), OwnAnswer::Full);
        Ok(())
    }

    /// Waits for a connection; true when we are stopping.
    fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(&self.waker.watched, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        !fds[0].revents().is_empty()
    }

    fn pause(&self) -> bool {
        let waited = socket::wait((&self.waker.watched, PollFlags::IN), None, Some(PAUSE));
        matches!(waited, Ok((events, _)) if !events.is_empty())
    }

    fn let_in(&self, socket: TcpStream, peer: SocketAddr) {
        // Those that were reset before we came to them cost nothing more, so that whoever waits behind a
        // storm of them doesn't wait long.
        if !matches!(socket.take_error(), Ok(None)) {
            return;
        }
        let context = &self.shared.context;
        if !self.admits(&socket, peer) {
            log::debug!("refused a client that may not connect addr={peer}");
            socket::reset_on_close(&socket);
            return;
        }
        if socket::prepare(&socket, socket::UNACKNOWLEDGED).is_err() {
            return; // It is gone already.
        }
        let stream = Arc::new(Stream::new(socket));
        let place = match context.connections.enter(&stream, peer.ip()) {
            Ok(place) => place,
            Err(full) => {
                log::debug!("turned away addr={peer} reason={full:?}");
                context.presence.counters().failed("full");
                let answer = match full {
                    Full::Total => OwnAnswer::Full,
                    Full::Source => OwnAnswer::FullForSource,
                };
                return reject(&self.rejected, stream, answer);
            }
        };
        let idle = context.settings.timing.idle_timeout;
        let connection = Box::new(Connection::new(stream, peer, place, idle));
        workers::serve(&self.shared, &self.rejected, connection);
    }

    fn admits(&self, socket: &TcpStream, peer: SocketAddr) -> bool {
        let local = socket.local_addr().ok().map(|local| local.ip());
        let is_own = Caller::of(peer.ip(), local) == Caller::Own;
        let reach = &self.shared.context.settings.reach;
        reach.admits(peer.ip(), is_own, |ip| Subnets::now().contain(ip))
    }
}
