//! This machine, as far as its services go: which system it is, who asks, and what is to be started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::Tool;
use crate::system::{self, failed};

/// Folders that a system's service doesn't see, or may find empty after a boot.
const UNSEEN: &[&str] =
    &["/home", "/root", "/Users", "/tmp", "/var/tmp", "/private", "/run", "/dev/shm"];

pub(super) struct Host {
    /// As `std::env::consts::OS` names it.
    pub(super) system: String,
    /// The user's number, where users have one.
    pub(super) user: Option<u32>,
    /// Everything that isn't the user's is below it: `/`.
    root: PathBuf,
    /// The program to start: this one.
    pub(super) program: PathBuf,
    /// The options to start it with.
    pub(super) options: Vec<String>,
}

impl Host {
    pub(super) fn here(tool: &Tool) -> Result<Self, String> {
        let program =
            std::env::current_exe().map_err(failed("cannot tell which program this is"))?;
        let mut host = Host {
            system: std::env::consts::OS.to_owned(),
            user: system::user(),
            root: PathBuf::from("/"),
            program,
            options: tool.given.clone(),
        };
        if cfg!(debug_assertions) {
            host.pretend();
        }
        match host.options.iter().find(|option| option.contains(char::is_control)) {
            Some(option) => Err(format!("{option:?} has control characters")),
            None => Ok(host),
        }
    }

    /// For tests, in builds for tests only: another system, user and root.
    fn pretend(&mut self) {
        let told = std::env::var("OLLANA_TEST_HOST").unwrap_or_default();
        if let [system, user, root] = told.split(' ').collect::<Vec<_>>()[..] {
            (self.system, self.user, self.root) = (system.into(), user.parse().ok(), root.into());
            if let Ok(inside) = self.program.strip_prefix(root) {
                self.program = Path::new("/").join(inside);
            }
        }
    }

    pub(super) fn is_root(&self) -> bool {
        self.user == Some(0)
    }

    /// A place of the system's.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A folder that a variable names.
    pub(super) fn folder(&self, variable: &str) -> Option<PathBuf> {
        std::env::var_os(variable).map(PathBuf::from).filter(|dir| !dir.as_os_str().is_empty())
    }

    pub(super) fn home(&self) -> PathBuf {
        self.folder("HOME").unwrap_or_else(|| self.root.clone())
    }

    pub(super) fn text(&self, path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    /// The program's path as text, and everything that it is given.
    pub(super) fn command(&self) -> Vec<String> {
        let words = [self.program.display().to_string(), "serve".to_owned()];
        words.into_iter().chain(self.options.iter().cloned()).collect()
    }

    /// Whether a service that is no user's can run the program.
    pub(super) fn check_program(&self) -> Result<(), String> {
        if UNSEEN.iter().any(|place| self.program.starts_with(place)) {
            return Err(format!(
                "the system's services don't see {}; copy it to /usr/local/bin and run it from there",
                self.program.display()
            ));
        }
        Ok(())
    }

    pub(super) fn succeeds(&self, words: &[&str]) -> bool {
        let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    }

    pub(super) fn has_program(&self, name: &str) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
    }
}
