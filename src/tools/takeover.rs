//! `ollana takeover`: moves an Ollama that systemd runs to another port, so that this machine's
//! programs find the pooled view at Ollama's own. `--undo` moves it back.
//!
//! For each of the two services it writes a file of variables and a drop-in that names it, and nothing
//! else. It says so first, and puts everything back if Ollama or ollana doesn't come up as planned.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{print, say};
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
pub(super) const OLLANA: &str = "ollana.service";
/// The last drop-in of a unit wins.
const DROP_IN: &str = "zz-ollana-takeover.conf";
/// The drop-in's variables. Those of any file win over what units set themselves, and the last file's
/// over other files' (systemd.exec(5), EnvironmentFile=), such as /etc/default/ollana's.
const VARIABLES: &str = "zz-ollana-takeover.env";
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
    let plan = Plan { takes, has_ollama: is_loaded(OLLAMA), has_ollana: is_loaded(OLLANA) };
    plan.check(&tool.settings)?;
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
        say(&format!("{reason}; putting it back"));
        let back = plan.give_back(&tool.settings);
        let state = back.map_or_else(|e| format!("not back: {e}"), |()| "back as it was".into());
        return Err(format!("{reason} ({state})"));
    }
    say("done");
    if !plan.has_ollana {
        let flags = format!(" --mode both --ollama http://127.0.0.1:{MOVED_PORT}");
        say(&format!("now start: ollana{}", if takes { &flags } else { "" }));
    }
    Ok(())
}

/// What will be done: shown first, then carried out.
struct Plan {
    takes: bool,
    /// Whether systemd has a service of Ollama. It may be gone since a takeover.
    has_ollama: bool,
    /// Whether systemd runs ollana too.
    has_ollana: bool,
}

impl Plan {
    /// The error says why it can't be done, and what to do about it.
    fn check(&self, settings: &Settings) -> Result<(), String> {
        if !self.takes {
            if !files().any(|file| Path::new(&file).exists()) {
                return Err("nothing to undo: there was no takeover".to_owned());
            }
            if self.has_ollama && !self.has_ollana && is_ollana(settings) {
                return Err(format!(
                    "an ollana that systemd doesn't run listens on port {OLLAMA_PORT}; stop it first"
                ));
            }
            return Ok(());
        }
        if !self.has_ollama {
            return Err(format!(
                "systemd runs no {OLLAMA} here; start Ollama yourself with \
                 OLLAMA_HOST=127.0.0.1:{MOVED_PORT}, and ollana with \
                 --mode both --ollama http://127.0.0.1:{MOVED_PORT}"
            ));
        }
        if Path::new(&drop_in(OLLAMA)).exists() {
            return Err("done already; --undo gives the port back".to_owned());
        }
        match other_option(&shown(OLLANA, "ExecStart")) {
            Some(option) => Err(format!(
                "{OLLANA} starts ollana with {option}, which wins over what a takeover sets; first \
                 give it its options anew, without {option}: sudo ollana service install OPTION \
                 ... (or none: service remove, then service install)"
            )),
            None => Ok(()),
        }
    }

    fn show(&self) {
        let moved =
            format!("to 127.0.0.1:{MOVED_PORT}; port {OLLAMA_PORT} shows all models of the LAN.");
        let to = if self.takes { &moved } else { "back to where it was." };
        say(&format!("Ollama moves {to}"));
        for (file, text) in self.written() {
            say(&format!("  write    {file}"));
            text.lines().for_each(|line| say(&shown_line(line)));
        }
        for file in files().filter(|file| !self.takes && Path::new(file).exists()) {
            say(&format!("  remove   {file}"));
        }
        if self.has_ollama {
            say(&format!("  restart  {OLLAMA} (answers under way are cut)"));
        }
        if self.has_ollana {
            say(&format!("  restart  {OLLANA}"));
        }
    }

    /// The files of a takeover with their texts; a file is there before the drop-in that names it.
    fn written(&self) -> Vec<(String, String)> {
        let mut set = Vec::new();
        if self.takes {
            set.push((OLLAMA, format!("OLLAMA_HOST=127.0.0.1:{MOVED_PORT}")));
        }
        if self.takes && self.has_ollana {
            let lines =
                options().map(|(name, value)| format!("OLLANA_{}={value}", name.to_uppercase()));
            set.push((OLLANA, lines.join("\n")));
        }
        let files = set.into_iter().flat_map(|(unit, text)| {
            let named = format!("[Service]\nEnvironmentFile={}", variables(unit));
            [(variables(unit), text), (drop_in(unit), named)]
        });
        files.collect()
    }

    fn take(&self, settings: &Settings) -> Result<(), String> {
        for (file, text) in self.written() {
            write(Path::new(&file), &text).map_err(failed(format!("cannot write {file}")))?;
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
        for file in files() {
            remove(Path::new(&file)).map_err(failed(format!("cannot remove {file}")))?;
        }
        systemctl(&["daemon-reload"])?;
        // ollana has the port that Ollama is to bind.
        if self.has_ollana {
            systemctl(&["stop", OLLANA])?;
        }
        let answered = match self.has_ollama {
            true => systemctl(&["restart", OLLAMA])
                .and_then(|()| wait_for_ollama(settings, &settings.ollama_url())),
            false => Ok(()),
        };
        if self.has_ollana {
            systemctl(&["start", OLLANA])?;
        }
        answered
    }
}

/// A line of a file; the longest names another file.
fn shown_line(line: &str) -> String {
    format!("    {line}")
}

fn drop_in(unit: &str) -> String {
    format!("{UNITS}/{unit}.d/{DROP_IN}")
}

pub(super) fn variables(unit: &str) -> String {
    format!("{UNITS}/{unit}.d/{VARIABLES}")
}

/// Every file that a takeover may have written, in the order in which they can go.
pub(super) fn files() -> impl Iterator<Item = String> {
    [OLLAMA, OLLANA].into_iter().flat_map(|unit| [drop_in(unit), variables(unit)])
}

/// What ollana is told by variables, as options.
fn options() -> [(&'static str, String); 2] {
    [("mode", "both".to_owned()), ("ollama", format!("http://127.0.0.1:{MOVED_PORT}"))]
}

/// The option in a service's command, as systemd shows it, that tells ollana something else. Options
/// win over all variables.
fn other_option(command: &str) -> Option<String> {
    let command = command.replace('=', " ");
    let words: Vec<&str> = command.split_whitespace().collect();
    let options = options().map(|(name, value)| (format!("--{name}"), value));
    let is_other =
        |pair: &[&str]| options.iter().any(|(option, value)| pair[0] == option && pair[1] != value);
    words.windows(2).find(|pair| is_other(pair)).map(|pair| pair[0].to_owned())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let head = "# Made by `ollana takeover`; `ollana takeover --undo` removes it.";
    fs::write(path, format!("{head}\n{text}\n"))
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
    shown(unit, "LoadState").trim() == "loaded"
}

/// A property of a unit; empty if there is no systemd.
fn shown(unit: &str, property: &str) -> String {
    let shown = Command::new("systemctl").args(["show", "-p", property, "--value", unit]).output();
    shown.map(|shown| String::from_utf8_lossy(&shown.stdout).into_owned()).unwrap_or_default()
}

fn systemctl(args: &[&str]) -> Result<(), String> {
    let what = format!("systemctl {}", args.join(" "));
    say(&format!("  {what}"));
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
    if !io::stdin().is_terminal() || print("Go on? [y/N] ").is_err() {
        return false;
    }
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_fits_80_columns() {
        let plan = Plan { takes: true, has_ollama: true, has_ollana: true };
        let lines = plan
            .written()
            .into_iter()
            .flat_map(|(_, text)| text.lines().map(shown_line).collect::<Vec<String>>());
        let widest = lines.max_by_key(String::len).unwrap();
        assert!(widest.len() <= 80 && widest.contains("EnvironmentFile="), "{widest}");
    }

    #[test]
    fn options_that_win_over_variables_are_found() {
        let shown = |options: &str| {
            let start = "{ path=/usr/bin/ollana ; argv[]=/usr/bin/ollana serve";
            format!("{start}{options} ; ignore_errors=no ; pid=0 ; code=(null) ; status=0/0 }}")
        };
        for (options, want) in [
            ("", None),
            (" --mode=both --ollama http://127.0.0.1:11438 --host=mode", None),
            (" --listen=127.0.0.1:11434 --mode=server", Some("--mode")),
            (" --mode client", Some("--mode")),
            (" --mode both --ollama=http://127.0.0.1:1", Some("--ollama")),
        ] {
            assert_eq!(other_option(&shown(options)).as_deref(), want, "{options}");
        }
        assert_eq!(other_option(""), None);
    }

    #[test]
    fn without_systemd_it_says_what_to_do_instead() {
        assert_eq!(absent("linux"), None);
        for (system, set) in [("windows", "setx OLLAMA_HOST"), ("macos", "launchctl setenv")] {
            let instead = absent(system).unwrap();
            assert!(instead.contains(set) && instead.contains("install --mode both"), "{instead}");
        }
    }
}
