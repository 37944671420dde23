//! Arguments → logging → run → exit code.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

use ollana::cli::{self, Command};
use ollana::serve::background;
use ollana::system::to_stderr;
use ollana::{log, serve, tools};

fn main() -> ExitCode {
    let parsed = cli::parse(std::env::args_os(), &|name| std::env::var_os(name));
    let unknown = cli::unknown_variables(std::env::vars_os().map(|(name, _)| name));
    let mut settings = match parsed {
        Ok(Command::Serve(settings)) => settings,
        Ok(Command::Tool(tool)) => {
            unknown.iter().for_each(|unknown| to_stderr(&format!("ollana: {unknown}")));
            return tools::run(&tool);
        }
        Ok(Command::Print(text)) => return tools::show(&text),
        Err(error) => {
            to_stderr(&format!("ollana: {error}"));
            return ExitCode::from(2);
        }
    };
    settings.warnings = unknown;
    ollana::system::keep_one_heap();
    if let Some(code) = background::launch(&settings) {
        return code;
    }
    let log = match log::start(&settings) {
        Ok(log) => log,
        Err(error) => {
            let file = settings.log_file.unwrap_or_default();
            let file = file.display();
            to_stderr(&format!("ollana: cannot open the log file {file}: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = match serve::run(&settings, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            to_stderr(&format!("ollana: {error}"));
            ExitCode::FAILURE
        }
    };
    log.finish();
    code
}
