//! `ollana takeover`: moves an Ollama that systemd runs to another port, so that this machine's
//! programs find the pooled view at Ollama's own. `--undo` moves it back.
//!
//! It changes two drop-ins and nothing else, says so first, and puts everything back if Ollama or
//! ollana doesn't come up as planned.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::Tool;
use crate::config::{OLLAMA_PORT, OllamaUrl, Settings};
use crate::serve::ask;
use crate::system::{self, failed};
use crate::upstream::CheckResult;

/// Where Ollama goes; 11435 to 11437 are ollana's.
const MOVED_PORT: u16 = 11438;
/// Where an administrator's changes to units go.
const UNITS: &str = "/etc/systemd/system";
const OLLAMA: &str = "ollama.service";
const OLLANA: &str = "ollana.service";
/// The last drop-in of a unit wins.
const DROP_IN: &str = "zz-ollana-takeover.conf";
/// How long a service may take to start; Ollama looks for GPUs first.
const START_TIME: Duration = Duration::from_secs(30);
/// Pause between questions whether it has started, and how long each may take.
const POLL: Duration = Duration::from_millis(200);
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// What to do instead where no systemd runs Ollama.
pub(super) fn absent(system: &str) -> Option<String> {
    let set = match system {
        "windows" => "setx OLLAMA_HOST",
        "macos" => "launchctl setenv OLLAMA_HOST",
        _ => return None,
    };
    Some(format!(
        "takeover is for an Ollama that systemd runs; here, move Ollama yourself ({set} \
         127.0.0.1:{MOVED_PORT}, then quit Ollama and start it again), and then: ollana service \
         install --mode both --ollama http://127.0.0.1:{MOVED_PORT}"
    ))
}

pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let takes = !tool.has("undo");
    if !is_loaded(OLLAMA) {
        return Err(format!(
            "systemd runs no {OLLAMA} here; start Ollama yourself with \
             OLLAMA_HOST=127.0.0.1:{MOVED_PORT}, and ollana with \
             --mode both --ollama http://127.0.0.1:{MOVED_PORT}"
        ));
    }
    let plan = Plan { takes, has_ollana: is_loaded(OLLANA) };
    match (takes, drop_in(OLLAMA).exists()) {
        (true, true) => return Err("done already; --undo gives the port back".to_owned()),
        (false, false) => return Err("nothing to undo: there was no takeover".to_owned()),
        _ => {}
    }
    if !takes && !plan.has_ollana && is_ollana(&tool.settings) {
        return Err(format!(
            "an ollana that systemd doesn't run listens on port {OLLAMA_PORT}; stop it first"
        ));
    }
    plan.show();
    if system::user() != Some(0) {
        return Err("this changes system services; run it with sudo".to_owned());
    }
    if !tool.has("yes") && !is_confirmed() {
        return Err("nothing was changed; --yes goes ahead".to_owned());
    }
    if !takes {
        plan.give_back(&tool.settings)?;
    } else if let Err(reason) = plan.take(&tool.settings) {
        println!("{reason}; putting it back");
        let back = plan.give_back(&tool.settings);
        let state = back.map_or_else(|e| format!("not back: {e}"), |()| "back as it was".into());
        return Err(format!("{reason} ({state})"));
    }
    println!("done");
    if !plan.has_ollana {
        let flags = format!(" --mode both --ollama http://127.0.0.1:{MOVED_PORT}");
        println!("now start: ollana{}", if takes { &flags } else { "" });
    }
    Ok(())
}

/// What will be done: shown first, then carried out.
struct Plan {
    takes: bool,
    /// Whether systemd runs ollana too.
    has_ollana: bool,
}

impl Plan {
    fn show(&self) {
        let moved =
            format!("to 127.0.0.1:{MOVED_PORT}; port {OLLAMA_PORT} shows all models of the LAN.");
        println!("Ollama moves {}", if self.takes { &moved } else { "back to where it was." });
        let verb = if self.takes { "write " } else { "remove" };
        for (unit, text) in self.drop_ins() {
            println!("  {verb}   {}", drop_in(unit).display());
            for line in text.lines().filter(|_| self.takes) {
                println!("             {line}");
            }
        }
        println!("  restart  {OLLAMA} (answers under way are cut)");
        if self.has_ollana {
            println!("  restart  {OLLANA}");
        }
    }

    /// The units and what is set in each.
    fn drop_ins(&self) -> Vec<(&'static str, String)> {
        let address = format!("127.0.0.1:{MOVED_PORT}");
        let mut all = vec![(OLLAMA, format!("Environment=OLLAMA_HOST={address}"))];
        if self.has_ollana {
            let mode = "Environment=OLLANA_MODE=both";
            all.push((OLLANA, format!("{mode}\nEnvironment=OLLANA_OLLAMA=http://{address}")));
        }
        all
    }

    fn take(&self, settings: &Settings) -> Result<(), String> {
        for (unit, text) in self.drop_ins() {
            write(&drop_in(unit), &text).map_err(failed(format!("cannot write for {unit}")))?;
        }
        systemctl(&["daemon-reload"])?;
        systemctl(&["restart", OLLAMA])?;
        wait_for_ollama(settings, &local(MOVED_PORT))?;
        if self.has_ollana {
            systemctl(&["restart", OLLANA])?;
            let complaint = format!("ollana does not answer at port {OLLAMA_PORT}");
            wait(&complaint, || is_ollana(settings))?;
        }
        Ok(())
    }

    fn give_back(&self, settings: &Settings) -> Result<(), String> {
        for (unit, _) in self.drop_ins() {
            remove(&drop_in(unit)).map_err(failed(format!("cannot remove for {unit}")))?;
        }
        systemctl(&["daemon-reload"])?;
        // ollana has the port that Ollama is to bind.
        if self.has_ollana {
            systemctl(&["stop", OLLANA])?;
        }
        systemctl(&["restart", OLLAMA])?;
        let answered = wait_for_ollama(settings, &settings.ollama_url());
        if self.has_ollana {
            systemctl(&["start", OLLANA])?;
        }
        answered
    }
}

fn drop_in(unit: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d")).join(DROP_IN)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let head = "# Made by `ollana takeover`; `ollana takeover --undo` removes it.\n[Service]\n";
    fs::write(path, format!("{head}{text}\n"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Fails if there are drop-ins of others, which is right.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

fn is_loaded(unit: &str) -> bool {
    let query = ["show", "-p", "LoadState", "--value", unit];
    let shown = Command::new("systemctl").args(query).output();
    shown.is_ok_and(|shown| shown.stdout.trim_ascii() == b"loaded")
}

fn systemctl(args: &[&str]) -> Result<(), String> {
    let what = format!("systemctl {}", args.join(" "));
    println!("  {what}");
    let output = Command::new("systemctl").args(args).output();
    let output = output.map_err(failed(format!("cannot run {what}")))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let line = complaint.lines().next().unwrap_or("no reason given").escape_debug();
    Err(format!("{what} failed: {line}"))
}

fn local(port: u16) -> OllamaUrl {
    OllamaUrl { host: "127.0.0.1".to_owned(), port, prefix: String::new() }
}

fn wait_for_ollama(settings: &Settings, url: &OllamaUrl) -> Result<(), String> {
    wait(&format!("Ollama does not answer at {url}"), || {
        matches!(ask(settings, url, ANSWER_TIME), CheckResult::Healthy { .. })
    })
}

fn is_ollana(settings: &Settings) -> bool {
    let answer = ask(settings, &local(OLLAMA_PORT), ANSWER_TIME);
    matches!(answer, CheckResult::Refused(reason) if reason.contains("ollana"))
}

fn wait(complaint: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < START_TIME {
        if is_so() {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    Err(format!("{complaint} after {} s", START_TIME.as_secs()))
}

fn is_confirmed() -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    print!("Go on? [y/N] ");
    let _ = io::stdout().flush();
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_systemd_it_says_what_to_do_instead() {
        assert_eq!(absent("linux"), None);
        for (system, set) in [("windows", "setx OLLAMA_HOST"), ("macos", "launchctl setenv")] {
            let instead = absent(system).unwrap();
            assert!(instead.contains(set) && instead.contains("install --mode both"), "{instead}");
        }
    }
}
