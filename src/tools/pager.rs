//! Texts that may be longer than the terminal.

use std::io::{self, IsTerminal, Write};
use std::process::{Child, Command, Stdio};

use super::screen;

/// Writes to standard output; by way of `$PAGER` or less if that is a terminal with fewer lines.
pub(super) fn show(text: &str) {
    let is_long = io::stdout().is_terminal() && text.lines().count() >= screen::size().1;
    match is_long.then(start).flatten() {
        Some(mut pager) => {
            if let Some(mut input) = pager.stdin.take() {
                // A reader who leaves early has seen enough.
                let _ = input.write_all(text.as_bytes());
            }
            let _ = pager.wait();
        }
        // A closed pipe (`ollana --help | head`) is no failure.
        None => drop(io::stdout().write_all(text.as_bytes())),
    }
}

fn start() -> Option<Child> {
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less -FRX".to_owned());
    let mut words = pager.split_whitespace();
    Command::new(words.next()?).args(words).stdin(Stdio::piped()).spawn().ok()
}
