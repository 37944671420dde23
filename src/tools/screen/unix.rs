//! The terminal of Linux, macOS and the BSDs: its size, its keys, and the signals that end a command.

use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::low_level::pipe;

/// Columns and lines.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some((size.ws_col.into(), size.ws_row.into()))
}

/// Whether colours and the like are no text to it.
pub(super) fn follows_escapes() -> bool {
    true
}

/// Keys are read as they are pressed, until this is dropped.
pub(super) struct Keys {
    stopped: UnixStream,
    resized: UnixStream,
    is_terminal: bool,
    before: Option<Termios>,
}

impl Keys {
    pub(super) fn open() -> io::Result<Self> {
        let (stopped, handler) = UnixStream::pair()?;
        let (resized, window) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            pipe::register(signal, handler.try_clone()?)?;
        }
        pipe::register(SIGWINCH, window)?;
        resized.set_nonblocking(true)?;
        let before = tcgetattr(io::stdin()).ok();
        if let Some(mut quiet) = before.clone() {
            quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
        }
        Ok(Keys { stopped, resized, is_terminal: io::stdin().is_terminal(), before })
    }

    /// Waits for a key, a signal, another size, or until the time is up; true if it is to end.
    pub(super) fn end_within(&mut self, time: Duration) -> bool {
        let keys = if self.is_terminal { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&self.stopped, PollFlags::IN),
            PollFd::new(&self.resized, PollFlags::IN),
            PollFd::from_borrowed_fd(rustix::stdio::stdin(), keys),
        ];
        if poll(&mut fds, Timespec::try_from(time).ok().as_ref()).is_err() {
            return false; // Interrupted; the handlers' sockets tell by what.
        }
        let [has_stopped, _, key] = fds.map(|fd| fd.revents());
        if !has_stopped.is_empty() {
            let _ = self.stopped.read(&mut [0]);
            return true;
        }
        let _ = self.resized.read(&mut [0; 64]);
        if self.is_terminal && !key.is_empty() {
            let mut pressed = [0; 64];
            let n = io::stdin().read(&mut pressed).unwrap_or(0);
            // Ctrl-D, q, or no terminal any more.
            return n == 0 || pressed[..n].iter().any(|key| matches!(key, b'q' | b'Q' | 4));
        }
        false
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
