//! Arguments → logging → run → exit code.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::process::ExitCode;

use ollana::cli::{self, Command};
use ollana::journal::Journal;
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
    let (journal, lines) = Journal::start();
    // It fails only if a logger is set already, and there is none.
    let _ = simplelog::WriteLogger::init(settings.log_level, format, lines);
    let code = match serve::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ollana: {error}");
            ExitCode::FAILURE
        }
    };
    journal.finish();
    code
}
