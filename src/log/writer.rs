//! The log's queue and the thread that writes it.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{json, text};
use crate::config::LogFormat;
use crate::system::{self, files};

/// Lines that may wait to be written; more are lost.
const LOG_QUEUE: usize = 1024;
/// Bytes of a log file before another one is begun, beside which one old file is kept.
const MAX_FILE: u64 = 10_000_000;
/// For the last lines, at the end of the process.
const LAST_LINES: Duration = Duration::from_millis(200);
/// For the reason of a sudden end, which is worth more.
const FLUSH_TIME: Duration = Duration::from_secs(1);

enum Entry {
    Line(Vec<u8>),
    /// Only wakes the thread, to look at [`Shared`].
    Wake,
    End(Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    /// Lines that were not written: the queue was full, or the disk.
    lost: AtomicU64,
    reopen: AtomicBool,
}

/// The logger's side: cuts its text into lines and never waits for them to be written, because a
/// log that nobody reads (`2>&1 | less`) must not stop requests.
pub(super) struct LineSender {
    line: Vec<u8>,
    writer: LogWriter,
}

/// Handle of the log's thread.
#[derive(Clone, Debug)]
pub struct LogWriter {
    shared: Arc<Shared>,
    queue: Sender<Entry>,
}

impl LogWriter {
    /// Starts the thread. Lines go to `file`, or to stderr without one. If no thread can be had,
    /// lines are lost and requests are served. Fails if the file can't be opened.
    pub(super) fn start(file: Option<&Path>, format: LogFormat) -> io::Result<(Self, LineSender)> {
        let place = match file {
            Some(path) => {
                let path = path.to_owned();
                let (path, file) =
                    files::in_time(move || files::append(&path).map(|file| (path, file)))?;
                Place::File { path, file, most: MAX_FILE }
            }
            None if is_journal() && format == LogFormat::Text => Place::Journald,
            None => Place::Stderr,
        };
        let shared = Arc::new(Shared::default());
        let (queue, lines) = bounded(LOG_QUEUE);
        let thread = WriterThread { place, format, shared: Arc::clone(&shared), is_torn: false };
        let _ = system::spawn("log", move || thread.run(&lines));
        let writer = LogWriter { shared, queue };
        Ok((writer.clone(), LineSender { line: Vec::new(), writer }))
    }

    /// Opens the file anew, because the old one was rotated away.
    pub(crate) fn reopen(&self) {
        self.shared.reopen.store(true, SeqCst);
        // A full queue wakes the thread too.
        let _ = self.queue.try_send(Entry::Wake);
    }

    /// Waits a moment for the last lines.
    pub fn finish(&self) {
        self.finish_within(LAST_LINES);
    }

    /// Waits so long for a place in the queue, and then for what is before it.
    pub(super) fn finish_within(&self, time: Duration) {
        let (told, end) = bounded(1);
        if self.queue.send_timeout(Entry::End(told), time).is_ok() {
            let _ = end.recv_timeout(time);
        }
    }
}

impl Write for LineSender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n")
            && self.writer.queue.try_send(Entry::Line(std::mem::take(&mut self.line))).is_err()
        {
            self.writer.shared.lost.fetch_add(1, SeqCst);
        }
        Ok(bytes.len())
    }

    /// Waits until what came before is written, but not for ever.
    fn flush(&mut self) -> io::Result<()> {
        self.writer.finish_within(FLUSH_TIME);
        Ok(())
    }
}

/// Whether stderr is systemd's journal (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    system::is_stderr(&stream)
}

enum Place {
    Stderr,
    Journald,
    File {
        path: PathBuf,
        file: File,
        /// Bytes from which on it is put aside.
        most: u64,
    },
}

struct WriterThread {
    place: Place,
    format: LogFormat,
    shared: Arc<Shared>,
    /// Whether the last write ended within a line.
    is_torn: bool,
}

impl WriterThread {
    fn run(mut self, queue: &Receiver<Entry>) {
        for entry in queue {
            if self.shared.reopen.swap(false, SeqCst) {
                self.reopen();
            }
            match entry {
                // A closed or full place is no reason to stop.
                Entry::Line(line) => self.write(line),
                Entry::Wake => {}
                Entry::End(told) => drop(told.send(())),
            }
        }
    }

    /// The old file is kept until the new one can be had.
    fn reopen(&mut self) {
        let Place::File { path, file, most } = &mut self.place else { return };
        match files::append(path) {
            Ok(new) => (*file, *most, self.is_torn) = (new, MAX_FILE, false),
            Err(error) => {
                let message = format!("cannot reopen the log file path={path:?} reason={error:?}");
                let line = self.own_line(&message);
                self.write(line);
            }
        }
    }

    /// Begins another file once this one is long: not everywhere does somebody else do that. A link or
    /// a device stays as it is.
    fn rotate(&mut self) {
        let Place::File { path, file, most } = &mut self.place else { return };
        let about = file.metadata().ok().filter(|about| about.is_file());
        let Some(length) = about.map(|about| about.len()).filter(|length| length >= most) else {
            return;
        };
        // What is written about a failure is no reason to try again.
        let least = std::mem::replace(most, length + MAX_FILE);
        match files::set_aside(path, least) {
            Ok(true) => self.reopen(),
            Ok(false) => *most = u64::MAX,
            Err(error) => {
                let message = format!("cannot rename the log file path={path:?} reason={error:?}");
                let line = self.own_line(&message);
                self.write(line);
            }
        }
    }

    fn write(&mut self, line: Vec<u8>) {
        self.rotate();
        let lost = self.shared.lost.swap(0, SeqCst);
        let mut bytes = if self.is_torn { b"\n".to_vec() } else { Vec::new() };
        if lost > 0 {
            bytes.extend(self.own_line(&format!("log lines lost lines={lost}")));
        }
        match self.place {
            Place::Journald => bytes.extend(text::for_journald(&line)),
            _ => bytes.extend(line),
        }
        let Err(written) = self.put(&bytes) else {
            self.is_torn = false;
            return;
        };
        self.shared.lost.fetch_add(lost + 1, SeqCst);
        if written > 0 {
            self.is_torn = !self.take_back(written);
        }
    }

    /// Writes all of it, or tells how much was written.
    fn put(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut written = 0;
        while written < bytes.len() {
            let result = match &mut self.place {
                Place::Stderr | Place::Journald => io::stderr().write(&bytes[written..]),
                Place::File { file, .. } => file.write(&bytes[written..]),
            };
            match result {
                Ok(n) if n > 0 => written += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Err(written),
            }
        }
        Ok(())
    }

    /// Removes the beginning of a line whose end found no room.
    fn take_back(&self, bytes: usize) -> bool {
        let Place::File { file, .. } = &self.place else { return false };
        let length = file.metadata().ok().filter(|data| data.is_file()).map(|data| data.len());
        let rest = length.and_then(|length| length.checked_sub(bytes as u64));
        rest.is_some_and(|rest| file.set_len(rest).is_ok())
    }

    /// A line of the log about the log.
    fn own_line(&self, message: &str) -> Vec<u8> {
        match self.format {
            LogFormat::Json => json::line(log::Level::Warn, Some("log"), message),
            _ if matches!(self.place, Place::Journald) => format!("<4>{message}\n").into_bytes(),
            LogFormat::Text => format!("{} [WARN] {message}\n", text::now()).into_bytes(),
        }
    }
}
