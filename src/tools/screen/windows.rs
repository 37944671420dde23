//! The console of Windows: its size and its keys, which a thread reads as they are pressed; Ctrl-C and
//! the console's end.

use std::io;
use std::thread;
use std::time::Duration;

use console::{Key, Term};
use crossbeam_channel::{Receiver, bounded};

/// Columns and lines. Asking also has the console follow escape sequences.
pub(super) fn size() -> Option<(usize, usize)> {
    let _ = follows_escapes();
    let (lines, columns) = Term::stdout().size_checked()?;
    Some((columns.into(), lines.into()))
}

/// Has the console follow escape sequences, which is off at a program's start; whether it does.
pub(super) fn follows_escapes() -> bool {
    Term::stdout().features().colors_supported()
}

pub(super) struct Keys(Receiver<()>);

impl Keys {
    pub(super) fn open() -> io::Result<Self> {
        let (ended, end) = bounded(1);
        let handler = ended.clone();
        ctrlc::set_handler(move || {
            let _ = handler.try_send(());
        })
        .map_err(io::Error::other)?;
        // It ends with the process: nothing else ends a read of the console.
        thread::spawn(move || {
            while let Ok(key) = Term::stdout().read_key() {
                if matches!(key, Key::Char('q' | 'Q' | '\u{4}') | Key::CtrlC | Key::Escape) {
                    break;
                }
            }
            let _ = ended.try_send(());
        });
        Ok(Keys(end))
    }

    /// Waits for a key that ends it, or until the time is up; true if it is to end.
    pub(super) fn end_within(&mut self, time: Duration) -> bool {
        self.0.recv_timeout(time).is_ok()
    }
}
