//! The log's way to stderr, which may be a pipe that nobody reads: a queue and a thread, so that no
//! request ever waits for a log line.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::THREAD_STACK;

/// Lines that may wait for whoever reads our log; more are lost.
const LOG_QUEUE: usize = 1024;
/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_millis(200);

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    End(Sender<()>),
}

/// Takes the logger's text apart into lines and never waits for them to be written: a log that
/// nobody reads (`2>&1 | less`) must not stop requests.
#[derive(Debug)]
pub struct Lines {
    line: Vec<u8>,
    lost: u64,
    queue: Sender<Entry>,
}

/// The way to the log's thread.
#[derive(Debug)]
pub struct Journal {
    queue: Sender<Entry>,
}

impl Journal {
    /// Starts the thread; the logger writes to what comes with it. Without a thread, lines are lost
    /// and requests are served.
    pub fn start() -> (Self, Lines) {
        let (queue, lines) = bounded(LOG_QUEUE);
        let _ = thread::Builder::new()
            .name("log".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || write_lines(&lines));
        let lines = Lines { line: Vec::new(), lost: 0, queue: queue.clone() };
        (Journal { queue }, lines)
    }

    /// Waits a moment for the last lines.
    pub fn finish(&self) {
        let (told, end) = bounded(1);
        if self.queue.send_timeout(Entry::End(told), LAST_LINES).is_ok() {
            let _ = end.recv_timeout(LAST_LINES);
        }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            if self.lost > 0 {
                self.line.splice(..0, format!("({} lines lost) ", self.lost).into_bytes());
            }
            match self.queue.try_send(Entry::Line(std::mem::take(&mut self.line))) {
                Ok(()) => self.lost = 0,
                Err(_) => self.lost += 1,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(queue: &Receiver<Entry>) {
    for entry in queue {
        match entry {
            // A closed or full stderr is no reason to stop.
            Entry::Line(line) => drop(io::stderr().write_all(&line)),
            Entry::End(told) => drop(told.send(())),
        }
    }
}
