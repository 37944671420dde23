//! The command line: arguments and `OLLANA_…` variables → [`Command`], and everything that is
//! shown of them.
//!
//! Two tables, `topics::TOPICS` with every option and `commands::COMMANDS`, are the only place
//! where an option or a command is written. From them come parsing, help, man page, completions
//! and "did you mean". Must not know how commands are run.

pub(crate) mod commands;
mod help;
mod nearest;
pub(crate) mod options;
mod parse;
#[cfg(test)]
mod tests;
pub(crate) mod topics;

pub(crate) use commands::Verb;
pub(crate) use nearest::did_you_mean;
pub(crate) use parse::{BACKGROUND_VARIABLE, default_state_dir, pid_file_at_log_in};
pub use parse::{Command, Tool, UsageError, parse, unknown_variables};
