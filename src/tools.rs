//! The commands besides `serve`: each does one thing, prints, and exits.

mod completions;
mod man;
mod takeover;

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{Tool, Verb};

/// Runs a command; exit code 0 means that it was done, 1 that it couldn't be.
pub fn run(tool: &Tool) -> ExitCode {
    let done = match tool.verb {
        Verb::Completions => {
            completions::script(tool.operands.first().map(String::as_str)).map(print)
        }
        Verb::Man => {
            print(man::page());
            Ok(())
        }
        Verb::Takeover => takeover::run(tool).map_err(|problem| problem.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("ollana: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: String) {
    // A closed pipe (`ollana man | head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
