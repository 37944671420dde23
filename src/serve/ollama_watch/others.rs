//! Every system but Linux: the list of processes is looked at while Ollama is installed. Each process is
//! made room for once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::net::socket::{self, Local};
use crate::system::keeper::Keeper;

const PAUSE: Duration = Duration::from_secs(2);

pub(in crate::serve) struct OllamaWatch {
    /// Where the program may be installed.
    usual: Vec<PathBuf>,
    /// Processes that room was made for.
    known: Vec<String>,
    looked: Option<Instant>,
}

impl OllamaWatch {
    pub(in crate::serve) fn new(_: Option<&Path>, _: &Arc<Keeper>) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = format!("ollama{}", std::env::consts::EXE_SUFFIX);
        let usual = ["/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
        let app = PathBuf::from("/Applications/Ollama.app");
        let own = std::env::var_os("LOCALAPPDATA").map(PathBuf::from);
        let own = own.map(|dir| dir.join("Programs").join("Ollama"));
        let folders = std::env::split_paths(&path).chain(usual).chain(own);
        let usual = folders.map(|dir| dir.join(&program)).chain([app]).collect();
        Some(OllamaWatch { usual, known: Vec::new(), looked: None })
    }

    /// An Ollama that runs already may still be on its way to its port: it counts.
    pub(in crate::serve) fn restart(&mut self) {}

    /// Where Ollama's program is needn't be known.
    pub(in crate::serve) fn learn(&mut self, _: Instant, _: u16) -> Option<Result<(), String>> {
        None
    }

    pub(in crate::serve) fn learn_soon(&mut self) {}

    pub(in crate::serve) fn is_starting(&mut self, _: &AtomicBool) -> bool {
        if self.looked.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        self.looked = Some(Instant::now());
        if !self.usual.iter().any(|file| file.exists()) {
            return false;
        }
        let running = processes();
        self.known.retain(|known| running.contains(known));
        let new: Vec<String> =
            running.into_iter().filter(|process| !self.known.contains(process)).collect();
        let is_any = !new.is_empty();
        self.known.extend(new);
        is_any
    }

    /// Waits for a signal, or until the time is up; true for a signal.
    pub(in crate::serve) fn wait(
        _: Option<&Self>,
        signals: &Local,
        time: Option<Duration>,
    ) -> bool {
        let waited = socket::wait((signals, PollFlags::IN), None, time);
        waited.is_ok_and(|(events, _)| !events.is_empty())
    }
}

/// The numbers of the processes that are Ollama's server, or its app, which starts the server.
fn processes() -> Vec<String> {
    let words: &[&str] = match std::env::consts::OS {
        "windows" => &["tasklist", "/fo", "csv", "/nh"],
        _ => &["ps", "-axo", "pid=,args="],
    };
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let text = output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    listed(&text.unwrap_or_default())
}

fn listed(text: &str) -> Vec<String> {
    let of_app = |line: &str| {
        let fields: Vec<&str> = line.split("\",\"").collect();
        let is_app = fields[0].trim_start_matches('"').eq_ignore_ascii_case("ollama app.exe");
        is_app.then(|| fields.get(1).copied().unwrap_or_default().to_owned())
    };
    let of_server = |line: &str| {
        let (pid, command) = line.trim().split_once(' ')?;
        let mut words = command.split_whitespace();
        let program = words.next()?.rsplit('/').next()?;
        let is_server = program == "ollama" && matches!(words.next(), Some("serve" | "start"));
        (is_server || program == "Ollama").then(|| pid.to_owned())
    };
    text.lines().filter_map(|line| of_app(line).or_else(|| of_server(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_and_the_app_count_and_programs_that_use_them_do_not() {
        let unix = "  71 /usr/local/bin/ollama serve\n  72 ollama run llama3.2\n \
                    73 /Applications/Ollama.app/Contents/MacOS/Ollama hidden\n 74 ollana serve\n";
        assert_eq!(listed(unix), ["71", "73"]);
        let windows = "\"System\",\"4\",\"Services\",\"0\",\"1 K\"\r\n\
                       \"ollama app.exe\",\"512\",\"Console\",\"1\",\"9,000 K\"\r\n\
                       \"ollama.exe\",\"513\",\"Console\",\"1\",\"9,000 K\"\r\n";
        assert_eq!(listed(windows), ["512"]);
    }
}
