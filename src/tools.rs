//! The commands besides `serve`: each does one thing, prints, and exits.

mod completions;
mod doctor;
mod man;
mod pair;
mod peers;
mod takeover;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{self, Tool, Verb};
use crate::config::Settings;

/// Where an ollana that the system runs keeps what it keeps.
const SERVICE_DIR: &str = "/var/lib/ollana";

/// Runs a command; exit code 0 means that it was done, 1 that it couldn't be.
pub fn run(tool: &Tool) -> ExitCode {
    let done = match tool.verb {
        Verb::Completions => {
            completions::script(tool.operands.first().map(String::as_str)).map(print)
        }
        Verb::Doctor => return doctor::run(tool),
        Verb::Man => {
            print(man::page());
            Ok(())
        }
        Verb::Pair => pair::run(tool).map_err(|problem| problem.to_string()),
        Verb::Peers => peers::list(tool),
        Verb::Unpair => peers::remove(tool),
        Verb::Takeover => takeover::run(tool).map_err(|problem| problem.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("ollana: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: String) {
    // A closed pipe (`ollana man | head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Where keys are kept: the place that was named, else the service's, else the user's own.
fn state_dir(settings: &Settings) -> Result<PathBuf, String> {
    let env = |name: &str| std::env::var_os(name);
    let default = cli::default_state_dir(&env);
    let is_named = settings.state_dir != default || env("STATE_DIRECTORY").is_some();
    // It may be a link to where only root can look.
    if !is_named && Path::new(SERVICE_DIR).symlink_metadata().is_ok() {
        if rustix::process::geteuid().is_root() {
            return Ok(SERVICE_DIR.into());
        }
        return Err(format!(
            "the ollana that the system runs keeps its keys in {SERVICE_DIR}: use sudo, or name \
             another place with --state-dir DIR"
        ));
    }
    settings.state_dir.clone().ok_or_else(|| "no place for keys; try --state-dir DIR".to_owned())
}
