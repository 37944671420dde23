//! The commands besides `serve`: each does one thing, prints, and exits. Nothing but `main` knows
//! of them; [`run`] runs one, [`show`] shows a text of the help.

mod completions;
mod cp;
mod daemon;
mod discover;
mod doctor;
mod firewalld;
mod forget;
mod man;
mod models;
mod pair;
mod peers;
mod progress;
mod pull;
mod qr;
mod screen;
mod service;
mod status;
mod table;
mod takeover;
mod token;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use crate::cli::{self, Tool, Verb};
use crate::config::Settings;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::system::{self, SERVICE_DIR, failed};

/// How long a command waits for a name server.
const NAME_TIME: Duration = Duration::from_secs(5);

/// Why [`say`] couldn't write, if it couldn't.
static UNSAID: OnceLock<String> = OnceLock::new();

/// Runs a command; exit code 0 means that it was done, 1 that it couldn't be, 2 that it
/// wasn't told what to do.
pub fn run(tool: &Tool) -> ExitCode {
    let code = carry_out(tool);
    match UNSAID.get() {
        Some(reason) => complain(&format!("some of what it said is lost: {reason}"), 1),
        None => code,
    }
}

fn carry_out(tool: &Tool) -> ExitCode {
    let done = match tool.verb {
        Verb::Completions => print(&completions::script(tool.operand())),
        Verb::Cp => return cp::run(tool),
        Verb::Doctor => return doctor::run(tool),
        Verb::Forget => forget::run(tool),
        Verb::Man => print(&man::page()),
        Verb::Pair => match pair::misread(tool) {
            Some(reason) => return complain(&reason, 2),
            None => pair::run(tool),
        },
        Verb::Peers => peers::list(tool),
        Verb::Pull => return pull::run(tool),
        Verb::Service => match service::misread(tool) {
            Some(reason) => return complain(&reason, 2),
            None => return service::run(tool),
        },
        Verb::Unpair => peers::remove(tool),
        Verb::Discover => discover::run(tool),
        Verb::Models => models::run(tool),
        Verb::Status => status::run(tool),
        Verb::Takeover => match takeover::absent(std::env::consts::OS) {
            Some(instead) => return complain(&instead, 2),
            None => takeover::run(tool),
        },
        Verb::Token => match token::misread(tool) {
            Some(reason) => return complain(&reason, 2),
            None => token::run(tool),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => complain(&reason, 1),
    }
}

/// Says what is wrong; the exit code.
fn complain(reason: &str, code: u8) -> ExitCode {
    system::to_stderr(&table::wrap(&format!("ollana: {reason}"), 80).join("\n"));
    ExitCode::from(code)
}

/// Shows a text of the help.
pub fn show(text: &str) -> ExitCode {
    screen::page(text);
    ExitCode::SUCCESS
}

/// Writes to standard output at once. Whether there is still a reader: one that has seen enough
/// (`| head`) is no failure.
fn put(text: &str) -> Result<bool, String> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).map_err(failed("cannot write")),
    }
}

/// Writes what a command is there to show.
fn print(text: &str) -> Result<(), String> {
    put(text).map(drop)
}

/// Writes a line about what a command does. The command goes on if it can't be written, so that nothing
/// is done by half; [`run`] fails at its end.
fn say(line: &str) {
    if let Err(reason) = put(&format!("{line}\n")) {
        let _ = UNSAID.set(reason);
    }
}

/// The keys of this machine's ollana, as far as we may see them.
fn keyring(settings: &Settings) -> Result<Keyring, String> {
    let dir = state_dir(settings).ok().or_else(|| settings.state_dir.clone());
    let file = settings.key_file.as_deref();
    Keyring::open(Identity([0; 16]), dir.as_deref(), file, settings.unpaired)
}

/// Where keys are kept: the place that was named, else the service's, else the user's own.
fn state_dir(settings: &Settings) -> Result<PathBuf, String> {
    let env = |name: &str| std::env::var_os(name);
    let default = cli::default_state_dir(&env);
    let is_named = settings.state_dir != default || env("STATE_DIRECTORY").is_some();
    // It may be a link to where only root can look.
    if !is_named
        && let Some(dir) = SERVICE_DIR.filter(|dir| Path::new(dir).symlink_metadata().is_ok())
    {
        return (system::user() == Some(0)).then(|| dir.into()).ok_or(format!(
            "the ollana that the system runs keeps its keys in {dir}: use sudo, or name \
             another place with --state-dir DIR"
        ));
    }
    settings.state_dir.clone().ok_or_else(|| "no place for keys; try --state-dir DIR".to_owned())
}
