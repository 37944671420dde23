//! SIGTERM and SIGINT stop the process, SIGHUP opens the log file anew.

use std::io::{self, IsTerminal, stderr, stdin};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::config::Settings;

/// The signals that came.
pub(super) struct Signals {
    pub(super) stop: Arc<AtomicBool>,
    /// Set by us: SIGTERM and SIGINT exit at once from then on.
    pub(super) exit_at_next: Arc<AtomicBool>,
    pub(super) hangup: Arc<AtomicBool>,
    /// Has a byte for each signal.
    pub(super) arrived: UnixStream,
}

impl Signals {
    /// SIGHUP is handled where there is a log file or no terminal. Otherwise it ends the process,
    /// whose terminal has gone.
    pub(super) fn register(settings: &Settings) -> io::Result<Self> {
        let (arrived, handler) = UnixStream::pair()?;
        let [stop, exit_at_next, hangup]: [Arc<AtomicBool>; 3] = Default::default();
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&exit_at_next))?;
            flag::register(signal, Arc::clone(&stop))?;
            pipe::register(signal, handler.try_clone()?)?;
        }
        let has_terminal = stdin().is_terminal() || stderr().is_terminal();
        if settings.log_file.is_some() || settings.daemon || !has_terminal {
            flag::register(SIGHUP, Arc::clone(&hangup))?;
            pipe::register(SIGHUP, handler)?;
        }
        Ok(Signals { stop, exit_at_next, hangup, arrived })
    }
}
