//! What is going to be done, step by step: shown, then carried out.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::system::{self, failed, files};
use crate::tools::say;

/// How long a service may take to run, or to be gone: streams get half a minute.
const PATIENCE: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(200);

pub(super) enum Step {
    Folder(PathBuf),
    Write(PathBuf, String),
    /// Nothing if there is one.
    WriteNew(PathBuf, String),
    Remove(PathBuf),
    /// Nothing if somebody has changed it since.
    RemoveUnchanged(PathBuf, String),
    Run(Vec<String>),
    /// It may fail: what it undoes may not be there.
    Try(Vec<String>),
    /// Waits until a command fails.
    Await(Vec<String>),
    /// Starts a program that stays.
    Start(Vec<String>),
    /// Waits for the end of a process of Windows, and ends it if it goes on.
    End(u32),
}

pub(super) fn run(words: &[&str]) -> Step {
    Step::Run(words.iter().map(|word| (*word).to_owned()).collect())
}

pub(super) fn attempt(words: &[&str]) -> Step {
    Step::Try(words.iter().map(|word| (*word).to_owned()).collect())
}

impl Step {
    /// Whether there is nothing to do for it.
    pub(super) fn is_nothing(&self) -> bool {
        match self {
            Step::Folder(path) | Step::WriteNew(path, _) => path.exists(),
            Step::Remove(path) => path.symlink_metadata().is_err(),
            Step::RemoveUnchanged(path, text) => {
                fs::read_to_string(path).map_or(true, |found| found.trim_end() != text.trim_end())
            }
            Step::Try(_) | Step::Await(_) => true,
            Step::Write(..) | Step::Run(_) | Step::Start(_) | Step::End(_) => false,
        }
    }

    fn carry_out(&self) -> Result<(), String> {
        let of = |path: &PathBuf| format!("cannot change {}", path.display());
        match self {
            Step::Folder(path) => fs::create_dir_all(path).map_err(failed(of(path))),
            Step::Write(path, text) | Step::WriteNew(path, text) => {
                path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed(of(path)))?;
                files::replace_readable(path, text.trim_end()).map_err(failed(of(path)))
            }
            Step::Remove(path) | Step::RemoveUnchanged(path, _) => match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(of(path))(error)),
                _ => Ok(()),
            },
            Step::Run(words) => execute(words),
            Step::Try(words) => {
                let _ = execute(words);
                Ok(())
            }
            Step::Await(words) => {
                wait(&format!("still there: {}", words.join(" ")), || execute(words).is_err())
            }
            Step::Start(words) => start(words),
            Step::End(pid) => {
                let pid = pid.to_string();
                let listed = ["tasklist", "/fi", &format!("PID eq {pid}"), "/fo", "csv", "/nh"];
                let is_gone = || !said(&listed).contains(&format!("\"{pid}\""));
                wait("", is_gone)
                    .or_else(|_| execute(&["taskkill", "/f", "/pid", &pid].map(str::to_owned)))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Folder(path) => write!(f, "make    {}", path.display()),
            Step::Write(path, _) | Step::WriteNew(path, _) => {
                write!(f, "write   {}", path.display())
            }
            Step::Remove(path) | Step::RemoveUnchanged(path, _) => {
                write!(f, "remove  {}", path.display())
            }
            Step::Run(words) | Step::Try(words) => write!(f, "run     {}", words.join(" ")),
            Step::Await(words) => write!(f, "await   the end of {}", words.join(" ")),
            Step::Start(words) => write!(f, "start   {}", words.join(" ")),
            Step::End(pid) => write!(f, "end     process {pid}"),
        }
    }
}

/// Shows every step that changes something, and carries it out unless this is only to show them.
pub(super) fn follow(steps: &[Step], is_dry: bool) -> Result<(), String> {
    for step in steps {
        if step.is_nothing() && !matches!(step, Step::Try(_) | Step::Await(_)) {
            continue;
        }
        say(&format!("  {step}"));
        if !is_dry {
            step.carry_out()?;
        }
    }
    Ok(())
}

/// Runs a command to its end; the error is what it complains of.
fn execute(words: &[String]) -> Result<(), String> {
    let what = words.join(" ");
    let output = command(words).output().map_err(failed(format!("cannot run {what}")))?;
    if output.status.success() {
        return Ok(());
    }
    // Some programs of Windows complain on standard output.
    let complaint = [output.stderr, output.stdout].concat();
    let complaint = String::from_utf8_lossy(&complaint);
    let line = complaint.lines().map(str::trim).find(|line| !line.is_empty());
    Err(format!("{what} failed: {}", line.unwrap_or("no reason given").escape_debug()))
}

/// What a command prints, if it succeeds.
pub(super) fn said(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().ok();
    let output = output.filter(|output| output.status.success());
    output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default()
}

fn start(words: &[String]) -> Result<(), String> {
    let mut command = command(words);
    system::without_console(command.stdout(Stdio::null()).stderr(Stdio::null()));
    command.spawn().map(drop).map_err(failed(format!("cannot start {}", words.join(" "))))
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

/// Waits until something is so.
pub(super) fn wait(complaint: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return Err(complaint.to_owned());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
