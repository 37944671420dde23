//! The terminal: its width and colours, a pager for long texts, and `--watch`, which redraws it
//! until somebody quits.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use super::table::{Style, Tone, width};

/// Columns and lines of a terminal that doesn't tell.
const USUAL: (usize, usize) = (80, 24);
/// Tables are never narrower.
const LEAST: usize = 40;

/// To the alternate screen without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

pub(super) fn style() -> Style {
    let is_terminal = io::stdout().is_terminal();
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let width = if is_terminal { size().0.max(LEAST) } else { USUAL.0 };
    Style { width, is_coloured: is_terminal && colours }
}

/// Columns and lines of the terminal.
pub(super) fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or(USUAL, |size| (size.ws_col.into(), size.ws_row.into()))
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

/// Gives the terminal its screen and its modes back when dropped.
struct Restore(Option<rustix::termios::Termios>);

impl Restore {
    fn enter() -> io::Result<Self> {
        send(ENTER)?;
        let before = tcgetattr(io::stdin()).ok();
        if let Some(mut quiet) = before.clone() {
            quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
        }
        Ok(Restore(before))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = send(LEAVE);
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Draws every `pause` until `q`, a signal, or the end of the terminal.
pub(super) fn show(pause: Duration, draw: &dyn Fn(Style) -> Vec<String>) -> Result<(), String> {
    let failed = |error: io::Error| format!("the terminal: {error}");
    let (mut stopped, handler) = UnixStream::pair().map_err(failed)?;
    let (mut resized, window) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let handler = handler.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, handler).map_err(failed)?;
    }
    signal_hook::low_level::pipe::register(SIGWINCH, window).map_err(failed)?;
    resized.set_nonblocking(true).map_err(failed)?;
    let has_keys = io::stdin().is_terminal();
    let _restore = Restore::enter().map_err(failed)?;
    loop {
        paint(draw).map_err(failed)?;
        let keys = if has_keys { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&stopped, PollFlags::IN),
            PollFd::new(&resized, PollFlags::IN),
            PollFd::from_borrowed_fd(rustix::stdio::stdin(), keys),
        ];
        if poll(&mut fds, Timespec::try_from(pause).ok().as_ref()).is_err() {
            continue; // Interrupted; the handlers' sockets tell by what.
        }
        let [has_stopped, _, key] = fds.map(|fd| fd.revents());
        if !has_stopped.is_empty() {
            let _ = stopped.read(&mut [0]);
            return Ok(());
        }
        let _ = resized.read(&mut [0; 64]);
        if has_keys && !key.is_empty() {
            let mut pressed = [0; 64];
            let n = io::stdin().read(&mut pressed).unwrap_or(0);
            // Ctrl-D, q, or no terminal any more.
            if n == 0 || pressed[..n].iter().any(|key| matches!(key, b'q' | b'Q' | 4)) {
                return Ok(());
            }
        }
    }
}

/// Draws over what is there, in one write: nothing is cleared first, so nothing flickers.
fn paint(draw: &dyn Fn(Style) -> Vec<String>) -> io::Result<()> {
    let (style, (_, height)) = (style(), size());
    let mut lines = draw(style);
    let room = height.saturating_sub(2).max(1);
    if lines.len() > room {
        let left = lines.len() + 1 - room;
        lines.truncate(room - 1);
        lines.push(format!("... and {left} more lines (without --watch they are all shown)"));
    }
    let mut text = String::from("\x1b[?2026h\x1b[H");
    for line in lines {
        text.extend([&line, "\x1b[K\r\n"]);
    }
    let hint = "q quits";
    text.push_str("\x1b[J");
    if width(hint) <= style.width {
        text.push_str(&format!("\x1b[{height};1H{}", style.paint(hint, Tone::Faint)));
    }
    send(&(text + "\x1b[?2026l"))
}
