//! `ollana service install|remove|status|firewall`: has this machine start ollana by itself, and lets
//! the LAN through its firewall. Each says what it does; `--dry-run` only says it.
//!
//! | system | who installs | what starts ollana | when |
//! |---|---|---|---|
//! | Linux | root | systemd, else OpenRC, else a SysV script | at boot |
//! | | a user | the user's systemd | at log-in |
//! | macOS | root, a user | launchd | at boot, at log-in |
//! | Windows | a user | the registry's key `Run` | at log-in |
//!
//! What is started is the program that runs this, with the options that it was given, or else those
//! that the installed service has: an upgrade gives none. Which system this is, is asked when it runs:
//! what is done on each is tried on all of them.

mod firewall;
mod host;
mod launchd;
mod log_in;
mod plan;
mod scripts;
mod systemd;

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};
use std::{env, mem};

use super::say;
use crate::cli::{self, Tool};
use crate::config::Settings;
use host::Host;
use plan::Step;

/// What starts ollana.
trait Manager {
    /// As it is called; `install.sh` shows it.
    fn name(&self) -> &'static str;
    /// The error says what is to be done first.
    fn install(&self, host: &Host) -> Result<Vec<Step>, String>;
    /// Undoes it; everything that isn't there is left out.
    fn remove(&self, host: &Host) -> Vec<Step>;
    /// The file, or the value of the registry, that has ollana started.
    fn place(&self, host: &Host) -> String;
    /// The words of the command that it starts, if it starts one, without options of its own.
    fn command(&self, host: &Host) -> Option<Vec<String>>;
    fn program(&self, host: &Host) -> Option<String> {
        self.command(host)?.into_iter().next()
    }
    /// The variables that it is started with.
    fn variables(&self, host: &Host) -> Vec<(String, String)> {
        systemd::variables(host)
    }
    fn is_running(&self, host: &Host) -> bool;
    /// What else there is to know once it runs.
    fn hint(&self) -> &'static str {
        ""
    }
}

/// What is wrong with the command line.
pub(super) fn misread(tool: &Tool) -> Option<String> {
    let action = tool.operand();
    if !tool.has("undo") || action == "firewall" {
        return None;
    }
    let instead =
        if action == "install" { "; what undoes it is: ollana service remove" } else { "" };
    Some(format!("service {action} does not take --undo{instead}"))
}

pub(super) fn run(tool: &Tool) -> ExitCode {
    let done = Host::here(tool).and_then(|mut host| {
        let is_dry = tool.has("dry-run");
        match tool.operand() {
            "install" => install(&mut host, is_dry),
            "remove" => remove(&host, is_dry),
            "firewall" => settings(&mut host, tool)
                .and_then(|settings| firewall::run(&host, &settings, is_dry, tool.has("undo"))),
            _ => return status(&host),
        }
        .map(|()| ExitCode::SUCCESS)
    });
    done.unwrap_or_else(|reason| super::complain(&reason, 1))
}

fn manager(host: &Host) -> Result<Box<dyn Manager>, String> {
    let has = |path: &str| host.path(path).exists();
    Ok(match (host.system.as_str(), host.is_root()) {
        ("windows", _) => Box::new(log_in::LogIn),
        ("macos", _) => Box::new(launchd::Launchd),
        ("linux", true) if has("/run/systemd/system") => Box::new(systemd::Systemd),
        ("linux", true) if has("/sbin/openrc-run") => Box::new(scripts::OpenRc),
        ("linux", true) if has("/etc/init.d") => Box::new(scripts::SysV),
        ("linux", false) if host.succeeds(&["systemctl", "--user", "show-environment"]) => {
            Box::new(systemd::UserSystemd)
        }
        ("linux", false) if has("/etc/init.d") || has("/run/systemd/system") => {
            return Err("services are root's here: use sudo".to_owned());
        }
        (system, _) => {
            return Err(format!(
                "ollana knows no service manager of this machine ({system}); have it start this at \
                 boot: {} serve --daemon",
                host.program.display()
            ));
        }
    })
}

fn install(host: &mut Host, is_dry: bool) -> Result<(), String> {
    let manager = manager(host)?;
    let is_told = !host.options.is_empty();
    if !is_told {
        host.options = kept_options(&*manager, host);
        understood(&host.options, &|_| None).map_err(|reason| {
            format!(
                "the installed service has options that can't be kept ({}): {reason}; nothing was \
                 changed; name those that it is to have: ollana service install OPTION ...",
                host.options.join(" ")
            )
        })?;
    }
    let host = &*host;
    let steps = manager.install(host)?;
    say(&format!("starts {} ({})", host.command().join(" "), manager.name()));
    if !is_told && !host.options.is_empty() {
        say("with the options that it had; to change them, name all: ollana service install \
             OPTION ...");
    }
    plan::follow(&steps, is_dry)?;
    if is_dry {
        return Ok(());
    }
    plan::wait("it does not run; its log says why, and so does: ollana doctor", || {
        manager.is_running(host)
    })?;
    say("ollana runs. If something doesn't work: ollana doctor");
    if !manager.hint().is_empty() {
        say(manager.hint());
    }
    Ok(())
}

/// The settings of the service that a firewall is opened for: by the options that are told now, else
/// those with which it is installed, and by its variables.
fn settings(host: &mut Host, tool: &Tool) -> Result<Settings, String> {
    // Their firewalls know programs.
    if matches!(host.system.as_str(), "windows" | "macos") {
        return Ok(tool.settings.clone());
    }
    // Where a user has no service, there may be root's.
    let own = manager(host).ok().filter(|manager| manager.program(host).is_some());
    let manager = own.unwrap_or_else(|| Box::new(systemd::Systemd));
    if host.options.is_empty() {
        host.options = kept_options(&*manager, host);
    }
    let set = manager.variables(host);
    let of_service = |name: &str| set.iter().rfind(|(known, _)| known == name);
    let variable = |name: &str| {
        let value = || of_service(name).map(|(_, value)| OsString::from(value));
        // The others were read with this command's options.
        name.starts_with("OLLANA_").then(|| env::var_os(name).or_else(value)).flatten()
    };
    understood(&host.options, &variable).map_err(|reason| {
        format!(
            "the options of the service can't be read: {reason}; name them: ollana service firewall \
             OPTION ..."
        )
    })
}

/// The options of the installed service.
fn kept_options(manager: &dyn Manager, host: &Host) -> Vec<String> {
    let command = manager.command(host).unwrap_or_default();
    command.into_iter().skip(1).skip_while(|word| word == "serve").collect()
}

/// The settings that options of a service make. An error if this program doesn't take them: they are
/// another version's.
fn understood(
    options: &[String],
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Settings, String> {
    // The registry is shown in an encoding that is not UTF-8.
    if options.concat().contains(char::REPLACEMENT_CHARACTER) {
        return Err("not all letters can be read".to_owned());
    }
    let words = ["ollana", "serve"].into_iter().chain(options.iter().map(String::as_str));
    match cli::parse(words.map(OsString::from), variable) {
        Ok(cli::Command::Serve(settings)) => Ok(*settings),
        Ok(_) => Err("with them, it serves nobody".to_owned()),
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

/// The words of a command, of which `quote` holds blanks together. A backslash takes the character
/// behind it as it is, but within quotes only if it `escapes_quoted` ones, too.
fn words(text: &str, quote: char, escapes_quoted: bool) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' if escapes_quoted || !is_quoted => word.extend(rest.next()),
            ' ' if !is_quoted => words.push(mem::take(&mut word)),
            c if c == quote => is_quoted = !is_quoted,
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn remove(host: &Host, is_dry: bool) -> Result<(), String> {
    let manager = manager(host)?;
    let steps = manager.remove(host);
    if manager.program(host).is_none() && steps.iter().all(Step::is_nothing) {
        say(&format!("not installed ({})", manager.name()));
        return Ok(());
    }
    plan::follow(&steps, is_dry)?;
    if !is_dry {
        say("removed; keys and what ollana remembers are left, and what was opened for it in a \
             firewall: ollana service firewall --undo");
    }
    Ok(())
}

/// Exit code 0: it runs.
fn status(host: &Host) -> Result<ExitCode, String> {
    let manager = manager(host)?;
    say(&format!("manager    {}", manager.name()));
    let Some(program) = manager.program(host) else {
        say("installed  no");
        return Ok(ExitCode::FAILURE);
    };
    let version = Command::new(host.path(&program)).arg("--version").stdin(Stdio::null()).output();
    let version = version.ok().filter(|output| output.status.success());
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let is_running = manager.is_running(host);
    say(&format!("installed  {}", manager.place(host)));
    say(&format!("program    {program}"));
    say(&format!("version    {}", version.as_deref().unwrap_or("unknown: it can't be run")));
    say(&format!("running    {}", if is_running { "yes" } else { "no" }));
    Ok(if is_running { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
