//! Arguments → logging → run → exit code.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use ollana::cli::{self, Command};
use ollana::serve;

fn main() -> ExitCode {
    let settings = match cli::parse(std::env::args_os(), &|name| std::env::var_os(name)) {
        Ok(Command::Serve(settings)) => settings,
        Ok(Command::Print(text)) => {
            // A closed pipe (`ollana --help | head`) is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("ollana: {error}");
            return ExitCode::from(2);
        }
    };
    let format = simplelog::ConfigBuilder::new()
        .set_time_format_custom(simplelog::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        ))
        .set_thread_level(simplelog::LevelFilter::Debug)
        .set_thread_mode(simplelog::ThreadLogMode::Names)
        .set_target_level(simplelog::LevelFilter::Off)
        .set_location_level(simplelog::LevelFilter::Off)
        .add_filter_allow_str("ollana")
        .build();
    let (queue, lines) = bounded(LOG_QUEUE);
    // It fails only if a logger is set already, and there is none.
    let _ = simplelog::WriteLogger::init(settings.log_level, format, Lines::new(queue.clone()));
    // Without the thread, lines are lost and requests are served.
    let _ = thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&lines));
    let code = match serve::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ollana: {error}");
            ExitCode::FAILURE
        }
    };
    let (told, end) = bounded(1);
    if queue.send_timeout(Entry::End(told), LAST_LINES).is_ok() {
        let _ = end.recv_timeout(LAST_LINES);
    }
    code
}

/// Lines that may wait for whoever reads our log; more are lost.
const LOG_QUEUE: usize = 1024;
/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_millis(200);

enum Entry {
    Line(Vec<u8>),
    End(Sender<()>),
}

/// Takes the logger's text apart into lines and never waits for them to be written: a log that
/// nobody reads (`2>&1 | less`) must not stop requests.
struct Lines {
    line: Vec<u8>,
    lost: u64,
    queue: Sender<Entry>,
}

impl Lines {
    fn new(queue: Sender<Entry>) -> Self {
        Lines { line: Vec::new(), lost: 0, queue }
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
