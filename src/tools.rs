//! The commands besides `serve`: each does one thing, prints, and exits.

mod takeover;

use std::process::ExitCode;

use crate::cli::{Tool, Verb};

/// Runs a command; exit code 0 means that it was done, 1 that it couldn't be.
pub fn run(tool: &Tool) -> ExitCode {
    let done = match tool.verb {
        Verb::Takeover => takeover::run(tool),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("ollana: {reason}");
            ExitCode::FAILURE
        }
    }
}
