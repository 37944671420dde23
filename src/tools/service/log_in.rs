//! Windows: at the user's log-in, as Ollama itself is started there. This needs no administrator.
//!
//! The registry's key `Run` has the command. Console programs get a window; `conhost --headless` is the
//! console without one. The process is found again by the number that it writes into its file; it
//! ends, and lets its streams finish, when that file is gone.

use std::path::PathBuf;

use super::Manager;
use super::host::Host;
use super::plan::{self, Step, run};
use crate::cli;

const KEY: &str = r"HKCU\Software\Microsoft\Windows\CurrentVersion\Run";
const VALUE: &str = "Ollana";
const CONSOLE: &str = "conhost.exe --headless ";
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
        words.insert(2, "--at-log-in".to_owned());
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

    fn program(&self, _: &Host) -> Option<String> {
        let line = self.line()?;
        let words = line.strip_prefix(CONSOLE).unwrap_or(&line);
        let program = words.strip_prefix('"').and_then(|quoted| quoted.split('"').next());
        program.or_else(|| words.split(' ').next()).map(str::to_owned)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_c_runtime() {
        for (word, want) in [
            (r"C:\Programs\ollana.exe", r"C:\Programs\ollana.exe"),
            (r"C:\My Programs\ollana.exe", r#""C:\My Programs\ollana.exe""#),
            (r"--state-dir=C:\a b\", r#""--state-dir=C:\a b\\""#),
            (r#"a"b"#, r#""a\"b""#),
            (r#"a\"b"#, r#""a\\\"b""#),
            ("", r#""""#),
        ] {
            assert_eq!(quoted(word), want);
        }
    }
}
