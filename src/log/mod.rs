//! The log: lines for people or as JSON, to stderr, systemd's journal or a file.
//!
//! A logger hands whole lines to a bounded queue, and a thread writes them, so that no request ever
//! waits for a log line: neither for a pipe that nobody reads nor for a disk that is full. Must not
//! know what is logged.
//!
//! - [`start`] sets the process's logger up.
//! - [`LogWriter`] reopens the file after a rotation, and waits for the last lines.

mod json;
mod text;
mod writer;

use std::io::{self, Write as _};
use std::sync::Mutex;
use std::thread;

use log::{Log, Metadata, Record};

use crate::config::{LogFormat, Settings};
use crate::system::lock;
use writer::LineSender;

pub use writer::LogWriter;

/// Starts the writer and sets the process's logger, once.
///
/// # Errors
/// When the log file can't be opened.
pub fn start(settings: &Settings) -> io::Result<LogWriter> {
    let level = settings.log_level;
    let (writer, lines) = LogWriter::start(settings.log_file.as_deref(), settings.log_format)?;
    // Either fails only if a logger is set already, and there is none.
    match settings.log_format {
        LogFormat::Text => {
            let format = simplelog::ConfigBuilder::new()
                .set_time_format_custom(text::TIME)
                .set_thread_level(simplelog::LevelFilter::Debug)
                .set_thread_mode(simplelog::ThreadLogMode::Names)
                .set_target_level(simplelog::LevelFilter::Off)
                .set_location_level(simplelog::LevelFilter::Off)
                .add_filter_allow_str("ollana")
                .build();
            let _ = simplelog::WriteLogger::init(level, format, lines);
        }
        LogFormat::Json => {
            let _ = log::set_boxed_logger(Box::new(JsonLogger(Mutex::new(lines))));
            log::set_max_level(level);
        }
    }
    Ok(writer)
}

/// Writes JSON; simplelog does the same for text.
struct JsonLogger(Mutex<LineSender>);

impl Log for JsonLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target().starts_with("ollana")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let thread = thread::current();
            let line = json::line(record.level(), thread.name(), &record.args().to_string());
            let _ = lock(&self.0).write_all(&line);
        }
    }

    fn flush(&self) {
        let _ = lock(&self.0).flush();
    }
}
