//! The terminal: its width and colours, a pager for long texts, and `--watch`, which redraws it
//! until somebody quits.

#[cfg(test)]
pub(super) mod tests;
#[cfg_attr(windows, path = "windows.rs")]
mod unix;

use std::io::{self, IsTerminal, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use unix::Keys;

use super::table::{Style, Tone, width};

/// Nothing is cut for a file or a program.
const UNCUT: usize = usize::MAX / 2;
/// Columns and lines of a terminal that doesn't tell.
const USUAL: (usize, usize) = (80, 24);
/// Tables are never narrower.
const LEAST: usize = 40;

/// To the alternate screen without a cursor, and back. Lines that are too long for a narrow terminal
/// aren't continued below, which would push the first ones off the screen.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

pub(super) fn style() -> Style {
    let is_terminal = io::stdout().is_terminal();
    let width = if is_terminal { size().0.max(LEAST) } else { UNCUT };
    Style { width, is_coloured: is_terminal && has_colours() }
}

/// Whether a terminal here shows colours, and its user wants them.
pub(super) fn has_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        && unix::follows_escapes()
}

/// Whether standard output can be drawn over: a terminal that takes escape sequences.
pub(super) fn can_redraw() -> bool {
    io::stdout().is_terminal() && unix::follows_escapes()
}

/// Columns and lines of the terminal.
pub(super) fn size() -> (usize, usize) {
    unix::size().filter(|(columns, lines)| *columns > 0 && *lines > 0).unwrap_or(USUAL)
}

/// Writes to standard output; by way of `$PAGER` or less if that is a terminal with fewer lines.
pub(super) fn page(text: &str) {
    let is_long = io::stdout().is_terminal() && text.lines().count() >= size().1;
    // A reader who leaves early (`ollana --help | head`) has seen enough.
    let Some(mut pager) = is_long.then(start_pager).flatten() else {
        return drop(io::stdout().write_all(text.as_bytes()));
    };
    if let Some(mut input) = pager.stdin.take() {
        let _ = input.write_all(text.as_bytes());
    }
    let _ = pager.wait();
}

fn start_pager() -> Option<Child> {
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less -FRX".to_owned());
    let mut words = pager.split_whitespace();
    Command::new(words.next()?).args(words).stdin(Stdio::piped()).spawn().ok()
}

/// Writes at once.
fn send(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Gives the terminal its screen back when dropped.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = send(LEAVE);
    }
}

/// Draws every `pause` until `q`, a signal, or the end of the terminal.
pub(super) fn show(pause: Duration, draw: &dyn Fn(Style) -> Vec<String>) -> Result<(), String> {
    let failed = |error: io::Error| format!("the terminal: {error}");
    let mut keys = Keys::open().map_err(failed)?;
    send(ENTER).map_err(failed)?;
    let _restore = Restore;
    loop {
        paint(draw).map_err(failed)?;
        if keys.end_within(pause) {
            return Ok(());
        }
    }
}

/// Draws over what is there, in one write: nothing is cleared first, so nothing flickers.
fn paint(draw: &dyn Fn(Style) -> Vec<String>) -> io::Result<()> {
    let (style, (_, height)) = (style(), size());
    send(&picture(draw(style), style, height))
}

fn picture(mut lines: Vec<String>, style: Style, height: usize) -> String {
    let room = height.saturating_sub(2).max(1);
    if lines.len() > room {
        let left = lines.len() + 1 - room;
        lines.truncate(room - 1);
        lines.push(format!("... and {left} more lines (without --watch they are all shown)"));
    }
    let mut text = String::from("\x1b[?2026h\x1b[H") + &over(lines);
    let hint = "q quits";
    text.push_str("\x1b[J");
    if width(hint) <= style.width {
        text.push_str(&format!("\x1b[{height};1H{}", style.paint(hint, Tone::Faint)));
    }
    text + "\x1b[?2026l"
}

/// Lines that are written over those that are there. What was there is erased in front of the text:
/// behind one that fills the line, the cursor stands on its last character, which would go too.
pub(super) fn over(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().map(|line| format!("\x1b[K{line}\r\n")).collect()
}
