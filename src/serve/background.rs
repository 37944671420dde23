//! `--daemon` for boxes without a service manager, and `--pid-file`.
//!
//! ```text
//!  ollana --daemon ──► the same program again, in a session of its own
//!       │ ◄── "ready" on a pipe, or the pipe's end ──┤
//!       └► says so and exits 0, or with its code     └► lets go of the terminal
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::config::Settings;
use crate::log::LogWriter;

/// Tells the second process that it is the second.
const STAGE: &str = "OLLANA_BACKGROUND";
const READY: &[u8] = b"ready";

/// Starts the program again in the background and waits until it is ready. `None`: this is it.
pub fn launch(settings: &Settings) -> Option<ExitCode> {
    if !settings.daemon || std::env::var_os(STAGE).is_some() {
        return None;
    }
    Some(start(settings).unwrap_or_else(|error| {
        eprintln!("ollana: cannot start in the background: {error}");
        ExitCode::FAILURE
    }))
}

fn start(settings: &Settings) -> io::Result<ExitCode> {
    // Its stderr is ours until it is ready, so that its complaints are read.
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut told)?;
    }
    if told == READY {
        let log = match &settings.log_file {
            Some(file) => format!("log: {}", file.display()),
            None => "no log from here on, --log-file FILE keeps one".to_owned(),
        };
        eprintln!("ollana runs in the background, pid {} ({log})", child.id());
        return Ok(ExitCode::SUCCESS);
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(if code == 0 { 1 } else { code }))
}

/// In the second process: leaves the terminal's session, so that its end isn't ours.
pub fn leave_session() {
    if std::env::var_os(STAGE).is_some() {
        // It fails only for the leader of a group, which a started process isn't.
        let _ = rustix::process::setsid();
    }
}

/// In the second process: tells the first one that we serve, and lets go of its descriptors.
///
/// # Errors
/// When there is no /dev/null.
pub fn let_go(journal: &LogWriter) -> io::Result<()> {
    if std::env::var_os(STAGE).is_none() {
        return Ok(());
    }
    journal.finish(); // What was said so far goes to whoever started us.
    let nowhere = fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    // Whoever started us may have been killed.
    let mut stdout = io::stdout();
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    rustix::stdio::dup2_stdout(&nowhere)?;
    Ok(())
}

/// Our process number in a file; dropping it removes the file.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it.
    ///
    /// # Errors
    /// When it can't be written; the text names it.
    pub fn write(path: &Path) -> io::Result<Self> {
        // A reader finds the old number or the new one, never half of it.
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let text = format!("{}\n", std::process::id());
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
        written.map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another one that was started since then may have put its own there.
        let own = std::process::id().to_string();
        if fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == own) {
            let _ = fs::remove_file(&self.0);
        }
    }
}
