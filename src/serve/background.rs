//! `--daemon` for boxes without a service manager, and `--pid-file`.
//!
//! ```text
//!  ollana --daemon ──► the same program again
//!       │ ◄── "ready" on a pipe, or the pipe's end ──┤
//!       └► says so and exits 0, or with its code     └► detaches from the terminal and its session
//! ```
//!
//! Who ends the start has ended it: until then Ctrl-C reaches both, and nobody is left to read "ready"
//! once the first process is killed.

use std::io::{self, Read, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::cli::BACKGROUND_VARIABLE as STAGE;
use crate::config::Settings;
use crate::log::LogWriter;
use crate::system::{self, failed, files};

const READY: &[u8] = b"ready";

/// Starts the program again in the background and waits until it is ready. `None` in the process
/// that is to serve.
pub fn launch(settings: &Settings) -> Option<ExitCode> {
    if std::env::var_os(STAGE).is_some() {
        return None;
    }
    if settings.daemon && cfg!(windows) {
        system::to_stderr(
            "ollana: there is no --daemon on Windows; this starts it at log-in, without a\n    \
             window: ollana service install",
        );
        return Some(ExitCode::from(2));
    }
    let failed = |error| {
        system::to_stderr(&format!("ollana: cannot start in the background: {error}"));
        ExitCode::FAILURE
    };
    settings.daemon.then(|| start(settings).unwrap_or_else(failed))
}

fn start(settings: &Settings) -> io::Result<ExitCode> {
    // It has our stderr until it is ready, so that its complaints are seen.
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = Vec::new();
    child.stdout.take().map(|mut pipe| pipe.read_to_end(&mut told)).transpose()?;
    if told == READY {
        let file = settings.log_file.as_deref().map(|file| format!("log: {}", file.display()));
        let log = file.as_deref().unwrap_or("no log from here on, --log-file FILE keeps one");
        let pid = child.id();
        system::to_stderr(&format!("ollana runs in the background, pid {pid} ({log})"));
        return Ok(ExitCode::SUCCESS);
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(if code == 0 { 1 } else { code }))
}

/// In the second process: tells the first one that it serves, and closes its descriptors. Fails
/// where there is no /dev/null, and if the first one has ended.
pub(super) fn detach(journal: &LogWriter) -> io::Result<()> {
    if std::env::var_os(STAGE).is_none() {
        return Ok(());
    }
    journal.finish(); // The log up to here goes to the terminal.
    system::leave_session();
    let told = || stdout().write_all(READY).and_then(|()| stdout().flush());
    // Nobody reads standard error any more.
    system::leave_terminal(told)?.inspect_err(|error| {
        log::error!("not started: the command that started it has ended reason={error}");
    })
}

/// The process number in a file; dropping it removes the file.
pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// The error names the file.
    pub(super) fn write(path: &Path) -> Result<Self, String> {
        let (owned, own) = (path.to_owned(), std::process::id().to_string());
        let written = files::in_time(move || files::replace_readable(&owned, &own));
        written.map(|()| PidFile(path.to_owned())).map_err(failed(path.display()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A process that was started since then may have written its own number.
        let (path, own) = (self.0.clone(), std::process::id().to_string());
        let _ = files::at_the_end(move || {
            let dir = path.parent().unwrap_or(&path);
            match files::read(dir, &path) {
                Ok(text) if text.trim() == own => files::remove(dir, &path),
                _ => Ok(()),
            }
        });
    }
}
