//! Tells clients that can't come in why, and closes their connections.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::answers::OwnAnswer;
use crate::pairing::stream::Stream;
use crate::system;

/// Connections that wait for their answer; beyond it they are just closed.
const QUEUE: usize = 256;
/// How long a client may take to leave, and how often that is looked at.
const LEAVE_TIME: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(5);

/// Where rejected connections go, with the answer that they get.
pub(super) type Rejected = Sender<(Arc<Stream>, OwnAnswer)>;

pub(super) fn reject(rejected: &Rejected, stream: Arc<Stream>, answer: OwnAnswer) {
    // A full queue closes the connection, which is an answer too.
    let _ = rejected.try_send((stream, answer));
}

/// Starts the thread, which ends when the last sender is gone.
pub(super) fn start() -> io::Result<(Rejected, JoinHandle<()>)> {
    let (rejected, queue) = bounded(QUEUE);
    Ok((rejected, system::spawn_vital("rejector", move || run(&queue))?))
}

/// Answers, and waits a moment for the clients to leave: bytes that nobody reads would turn the
/// close into a reset that overtakes the answer. A client that keeps sending holds up nobody.
fn run(queue: &Receiver<(Arc<Stream>, OwnAnswer)>) {
    let mut leaving: Vec<(Arc<Stream>, Instant)> = Vec::new();
    loop {
        let next = queue.recv_timeout(if leaving.is_empty() { Duration::MAX } else { LOOK });
        let now = Instant::now();
        match next {
            Ok((stream, answer)) => {
                let socket = stream.socket();
                let answer = answer.write_last();
                // A new connection takes this little at once, or it is gone.
                if socket.set_nonblocking(true).is_ok()
                    && matches!(stream.try_write(&answer), Ok(n) if n == answer.len())
                    && socket.shutdown(Shutdown::Write).is_ok()
                {
                    leaving.push((stream, now + LEAVE_TIME));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        leaving.retain(|(stream, deadline)| {
            let read = stream.try_read(&mut [0; 4096]);
            now < *deadline && matches!(read, Ok(None) | Ok(Some(1..)))
        });
    }
}
