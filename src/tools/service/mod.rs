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
//! What is started is the program that runs this, with the options that it was given. Which system
//! this is, is asked when it runs: what is done on each is tried on all of them.

mod firewall;
mod host;
mod launchd;
mod log_in;
mod plan;
mod scripts;
mod systemd;

use std::process::{Command, ExitCode, Stdio};

use crate::cli::Tool;
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
    /// The program that it starts, if it starts one.
    fn program(&self, host: &Host) -> Option<String>;
    fn is_running(&self, host: &Host) -> bool;
    /// What else there is to know once it runs.
    fn hint(&self) -> &'static str {
        ""
    }
}

pub(super) fn run(tool: &Tool) -> ExitCode {
    let done = Host::here(tool).and_then(|host| {
        let is_dry = tool.has("dry-run");
        match tool.operand() {
            "install" => install(&host, is_dry),
            "remove" => remove(&host, is_dry),
            "firewall" => firewall::run(&host, &tool.settings, is_dry, tool.has("undo")),
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

fn install(host: &Host, is_dry: bool) -> Result<(), String> {
    let manager = manager(host)?;
    let steps = manager.install(host)?;
    println!("starts {} ({})", host.command().join(" "), manager.name());
    plan::follow(&steps, is_dry)?;
    if is_dry {
        return Ok(());
    }
    plan::wait("it does not run; its log says why, and so does: ollana doctor", || {
        manager.is_running(host)
    })?;
    println!("ollana runs. If something doesn't work: ollana doctor");
    if !manager.hint().is_empty() {
        println!("{}", manager.hint());
    }
    Ok(())
}

fn remove(host: &Host, is_dry: bool) -> Result<(), String> {
    let manager = manager(host)?;
    let steps = manager.remove(host);
    if manager.program(host).is_none() && steps.iter().all(Step::is_nothing) {
        println!("not installed ({})", manager.name());
        return Ok(());
    }
    plan::follow(&steps, is_dry)?;
    if !is_dry {
        println!("removed; keys and what ollana remembers are left");
    }
    Ok(())
}

/// Exit code 0: it runs.
fn status(host: &Host) -> Result<ExitCode, String> {
    let manager = manager(host)?;
    println!("manager    {}", manager.name());
    let Some(program) = manager.program(host) else {
        println!("installed  no");
        return Ok(ExitCode::FAILURE);
    };
    let version = Command::new(host.path(&program)).arg("--version").stdin(Stdio::null()).output();
    let version = version.ok().filter(|output| output.status.success());
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let is_running = manager.is_running(host);
    println!("installed  {}", manager.place(host));
    println!("program    {program}");
    println!("version    {}", version.as_deref().unwrap_or("unknown: it can't be run"));
    println!("running    {}", if is_running { "yes" } else { "no" });
    Ok(if is_running { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
