//! Windows: at the user's log-in, as Ollama itself is started there. This needs no administrator.
//!
//! The registry's key `Run` has the command. Console programs get a window; `conhost --headless` is the
//! console without one. The process is found again by the number that it writes into its file; it
//! ends, and lets its streams finish, when that file is gone.

use std::mem;
use std::path::PathBuf;

use super::Manager;
use super::host::Host;
use super::plan::{self, Step, run};
use crate::cli;

const KEY: &str = r"HKCU\Software\Microsoft\Windows\CurrentVersion\Run";
const VALUE: &str = "Ollana";
const CONSOLE: &str = "conhost.exe --headless ";
const AT_LOG_IN: &str = "--at-log-in";
/// Characters of a command in this key that Windows takes.
const MOST: usize = 260;

pub(super) struct LogIn;

fn pid_file() -> Option<PathBuf> {
    Some(cli::pid_file_at_log_in(&cli::default_state_dir(&|name| std::env::var_os(name))?))
}

impl Manager for LogIn {
    fn name(&self) -> &'static str {
        "log-in"
    }

    fn install(&self, host: &Host) -> Result<Vec<Step>, String> {
        let mut words = host.command();
        words.insert(2, AT_LOG_IN.to_owned());
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let line = format!("{CONSOLE}{}", line.join(" "));
        if line.chars().count() > MOST {
            return Err(format!(
                "at log-in, Windows takes a command of at most {MOST} characters, and this one is \
                 longer: {line}; make options variables instead, such as: setx OLLANA_SERVER PC"
            ));
        }
        let mut steps = self.ended(host);
        steps.extend(pid_file().and_then(|file| Some(Step::Folder(file.parent()?.to_owned()))));
        steps.push(run(&["reg", "add", KEY, "/v", VALUE, "/t", "REG_SZ", "/d", &line, "/f"]));
        words[0] = host.path(&words[0]).display().to_string();
        steps.push(Step::Start(words));
        Ok(steps)
    }

    fn remove(&self, host: &Host) -> Vec<Step> {
        let mut steps = self.ended(host);
        if self.line().is_some() {
            steps.push(run(&["reg", "delete", KEY, "/v", VALUE, "/f"]));
        }
        steps
    }

    fn place(&self, _: &Host) -> String {
        format!("{KEY}, {VALUE}")
    }

    /// The registry is shown in an encoding that is not UTF-8: where a letter can't be read, it is most
    /// likely the program that asks.
    fn program(&self, host: &Host) -> Option<String> {
        let shown = self.command(host)?.into_iter().next()?;
        let is_read = !shown.contains(char::REPLACEMENT_CHARACTER);
        Some(if is_read { shown } else { host.program.display().to_string() })
    }

    fn command(&self, _: &Host) -> Option<Vec<String>> {
        let line = self.line()?;
        let mut words = words(line.strip_prefix(CONSOLE).unwrap_or(&line));
        words.retain(|word| word != AT_LOG_IN);
        (!words.is_empty()).then_some(words)
    }

    fn is_running(&self, host: &Host) -> bool {
        self.pid(host).is_some()
    }
}

impl LogIn {
    fn line(&self) -> Option<String> {
        let said = plan::said(&["reg", "query", KEY, "/v", VALUE]);
        Some(said.split_once("REG_SZ")?.1.trim().to_owned())
    }

    /// The process that was started at log-in, while it runs. A number in a file may be another
    /// program's by now.
    fn pid(&self, host: &Host) -> Option<u32> {
        let pid: u32 = host.text(&pid_file()?).trim().parse().ok()?;
        let listed =
            plan::said(&["tasklist", "/fi", &format!("PID eq {pid}"), "/fo", "csv", "/nh"]);
        listed.to_lowercase().contains("ollana").then_some(pid)
    }

    /// Has it end.
    fn ended(&self, host: &Host) -> Vec<Step> {
        let file = pid_file().map(Step::Remove);
        file.into_iter().chain(self.pid(host).map(Step::End)).collect()
    }
}

/// A word as the C runtime takes command lines apart.
fn quoted(word: &str) -> String {
    if !word.is_empty() && !word.contains([' ', '\t', '"']) {
        return word.to_owned();
    }
    let (mut text, mut backslashes) = ("\"".to_owned(), 0);
    for c in word.chars() {
        if c == '"' {
            text.push_str(&"\\".repeat(backslashes + 1));
        }
        backslashes = if c == '\\' { backslashes + 1 } else { 0 };
        text.push(c);
    }
    text + &"\\".repeat(backslashes) + "\""
}

/// The words of a command, as the C runtime takes it apart: backslashes count in front of a quote only.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let (mut backslashes, mut is_quoted) = (0, false);
    for c in line.chars() {
        if c == '\\' {
            backslashes += 1;
            continue;
        }
        let is_escaped = c == '"' && backslashes % 2 == 1;
        let meant = if c == '"' { backslashes / 2 } else { backslashes };
        word.push_str(&"\\".repeat(meant));
        backslashes = 0;
        match c {
            '"' if !is_escaped => is_quoted = !is_quoted,
            ' ' | '\t' if !is_quoted => words.push(mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word + &"\\".repeat(backslashes));
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_c_runtime_and_found_again() {
        for (word, want) in [
            (r"C:\Programs\ollana.exe", r"C:\Programs\ollana.exe"),
            (r"C:\My Programs\ollana.exe", r#""C:\My Programs\ollana.exe""#),
            (r"--state-dir=C:\a b\", r#""--state-dir=C:\a b\\""#),
            (r#"a"b"#, r#""a\"b""#),
            (r#"a\"b"#, r#""a\\\"b""#),
            ("", r#""""#),
        ] {
            assert_eq!(quoted(word), want);
            let all = [word, "serve", word].into_iter().filter(|word| !word.is_empty());
            assert_eq!(words(&format!("{want} serve {want}")), all.collect::<Vec<_>>());
        }
    }
}
