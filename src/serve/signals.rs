//! What ends the process, and what has it open its log anew.
//!
//! | | Linux, macOS, the BSDs | Windows |
//! |---|---|---|
//! | ends it, a second one at once | SIGTERM, SIGINT | Ctrl-C, Ctrl-Break |
//! | ends it in the middle of all | | the console's end, log-off, shutdown |
//! | opens the log file anew | SIGHUP | |
//!
//! Windows ends a program as soon as its handler returns from the console's end, and `ctrlc`'s returns at
//! once: streams are cut then as if the program were killed.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::Settings;
use crate::net::socket::{self, Local};
use crate::system::stop_flag;

pub(super) struct Signals {
    pub(super) stop: Arc<AtomicBool>,
    /// Set by us: what ends it does so at once from then on.
    pub(super) exit_at_next: Arc<AtomicBool>,
    pub(super) hangup: Arc<AtomicBool>,
    /// Has a byte for each signal.
    pub(super) arrived: Local,
}

impl Signals {
    pub(super) fn register(settings: &Settings) -> io::Result<Self> {
        let (arrived, handler) = socket::pair()?;
        let stop = Arc::clone(stop_flag());
        let [exit_at_next, hangup]: [Arc<AtomicBool>; 2] = Default::default();
        let signals = Signals { stop, exit_at_next, hangup, arrived };
        signals.handle(handler, settings)?;
        Ok(signals)
    }

    /// Takes the byte of a signal that has arrived.
    pub(super) fn take(&mut self) -> bool {
        self.arrived.read_exact(&mut [0]).is_ok()
    }

    /// SIGHUP is handled where there is a log file or no terminal. Otherwise it ends the process,
    /// whose terminal has gone.
    #[cfg(unix)]
    fn handle(&self, mut handler: Local, settings: &Settings) -> io::Result<()> {
        use std::io::{IsTerminal, Write, stderr, stdin};
        use std::sync::atomic::Ordering::SeqCst;

        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        use signal_hook::{flag, low_level::pipe};

        for signal in [SIGTERM, SIGINT] {
            // What remembers a signal comes first: with anything else, one would be caught and lost.
            flag::register(signal, Arc::clone(&self.stop))?;
            pipe::register(signal, handler.try_clone()?)?;
            let exit = Arc::clone(&self.exit_at_next);
            flag::register_conditional_shutdown(signal, 128 + signal, exit)?;
        }
        if self.stop.load(SeqCst) {
            // It may have come between the two.
            let _ = handler.write_all(&[0]);
        }
        let has_terminal = stdin().is_terminal() || stderr().is_terminal();
        if settings.log_file.is_some() || settings.daemon || !has_terminal {
            flag::register(SIGHUP, Arc::clone(&self.hangup))?;
            pipe::register(SIGHUP, handler)?;
        }
        Ok(())
    }

    #[cfg(windows)]
    fn handle(&self, mut handler: Local, _: &Settings) -> io::Result<()> {
        use std::io::Write;
        use std::sync::atomic::Ordering::SeqCst;

        let (stop, exit_at_next) = (Arc::clone(&self.stop), Arc::clone(&self.exit_at_next));
        let handle = move || {
            if exit_at_next.load(SeqCst) {
                std::process::exit(130);
            }
            stop.store(true, SeqCst);
            let _ = handler.write_all(&[0]);
        };
        ctrlc::set_handler(handle).map_err(io::Error::other)
    }
}
