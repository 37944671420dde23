//! Arguments → logging → run → exit code.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::process::ExitCode;

use log::LevelFilter;
use ollana::cli::{self, Command};
use ollana::config::LogFormat;
use ollana::log::{Journal, JsonLogger, Lines, TIME};
use ollana::serve::background;
use ollana::{serve, tools};

fn main() -> ExitCode {
    let settings = match cli::parse(std::env::args_os(), &|name| std::env::var_os(name)) {
        Ok(Command::Serve(settings)) => settings,
        Ok(Command::Tool(tool)) => return tools::run(&tool),
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
    if let Some(code) = background::launch(&settings) {
        return code;
    }
    background::leave_session();
    let (journal, lines) = match Journal::start(settings.log_file.as_deref(), settings.log_format) {
        Ok(journal) => journal,
        Err(error) => {
            let file = settings.log_file.unwrap_or_default();
            eprintln!("ollana: cannot open the log file {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    // Either fails only if a logger is set already, and there is none.
    match settings.log_format {
        LogFormat::Text => log_text(settings.log_level, lines),
        LogFormat::Json => {
            let _ = log::set_boxed_logger(Box::new(JsonLogger::new(settings.log_level, lines)));
            log::set_max_level(settings.log_level);
        }
    }
    let code = match serve::run(&settings, &journal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ollana: {error}");
            ExitCode::FAILURE
        }
    };
    journal.finish();
    code
}

fn log_text(level: LevelFilter, lines: Lines) {
    let format = simplelog::ConfigBuilder::new()
        .set_time_format_custom(TIME)
        .set_thread_level(simplelog::LevelFilter::Debug)
        .set_thread_mode(simplelog::ThreadLogMode::Names)
        .set_target_level(simplelog::LevelFilter::Off)
        .set_location_level(simplelog::LevelFilter::Off)
        .add_filter_allow_str("ollana")
        .build();
    let _ = simplelog::WriteLogger::init(level, format, lines);
}
