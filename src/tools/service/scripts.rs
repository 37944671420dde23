//! OpenRC and SysV scripts: a script in /etc/init.d, and a user that it runs as.

use super::host::Host;
use super::plan::{Step, attempt, run};
use super::systemd::{DEFAULTS, defaults};
use super::{Manager, words};

const OPENRC: &str = include_str!("../../../scripts/service/ollana.openrc");
const SYSV: &str = include_str!("../../../scripts/service/ollana.init");
const PLACE: &str = "/etc/init.d/ollana";
/// What stands for them in the scripts.
const PROGRAM: &str = "@PROGRAM@";
const OPTIONS: &str = "@OPTIONS@";

pub(super) struct OpenRc;
pub(super) struct SysV;

impl Manager for OpenRc {
    fn name(&self) -> &'static str {
        "openrc"
    }

    fn install(&self, host: &Host) -> Result<Vec<Step>, String> {
        // OpenRC reads the arguments as shell words once more.
        let options = options(host).replace('\'', "'\\''");
        let mut steps = common(host, &OPENRC.replace(OPTIONS, &options))?;
        steps.push(run(&["rc-update", "add", "ollana", "default"]));
        steps.push(run(&["rc-service", "ollana", "restart"]));
        Ok(steps)
    }

    fn remove(&self, host: &Host) -> Vec<Step> {
        removed(host, &[&["rc-service", "ollana", "stop"], &["rc-update", "del", "ollana"]], &[])
    }

    fn place(&self, host: &Host) -> String {
        host.path(PLACE).display().to_string()
    }

    fn command(&self, host: &Host) -> Option<Vec<String>> {
        let options = filled(host, OPENRC, OPTIONS).unwrap_or_default();
        Some([program(host, OPENRC)?, read(&options.replace("'\\''", "'"))].concat())
    }

    fn is_running(&self, host: &Host) -> bool {
        host.succeeds(&["rc-service", "ollana", "status"])
    }
}

impl Manager for SysV {
    fn name(&self) -> &'static str {
        "sysv"
    }

    fn install(&self, host: &Host) -> Result<Vec<Step>, String> {
        let mut steps = common(host, &SYSV.replace(" @OPTIONS@", &options(host)))?;
        if host.has_program("update-rc.d") {
            steps.push(run(&["update-rc.d", "ollana", "defaults"]));
        } else if host.has_program("chkconfig") {
            steps.push(run(&["chkconfig", "--add", "ollana"]));
        }
        steps.push(run(&[&self.place(host), "restart"]));
        Ok(steps)
    }

    fn remove(&self, host: &Host) -> Vec<Step> {
        let script = self.place(host);
        // The first wants the script to be gone, the other one to be there.
        if host.has_program("update-rc.d") {
            removed(host, &[&[&script, "stop"]], &[&["update-rc.d", "ollana", "remove"]])
        } else {
            removed(host, &[&[&script, "stop"], &["chkconfig", "--del", "ollana"]], &[])
        }
    }

    fn place(&self, host: &Host) -> String {
        host.path(PLACE).display().to_string()
    }

    fn command(&self, host: &Host) -> Option<Vec<String>> {
        let options = filled(host, SYSV, OPTIONS).unwrap_or_default();
        Some([program(host, SYSV)?, read(&options)].concat())
    }

    fn is_running(&self, host: &Host) -> bool {
        host.succeeds(&[&self.place(host), "status"])
    }
}

/// The script, its variables, and its user, who may read the models of a system's Ollama.
fn common(host: &Host, script: &str) -> Result<Vec<Step>, String> {
    host.check_program()?;
    let place = host.path(PLACE);
    let program = quoted(&host.program.display().to_string());
    let mut steps = vec![
        Step::Write(place.clone(), script.replace(PROGRAM, &program)),
        run(&["chmod", "755", &place.display().to_string()]),
        Step::WriteNew(defaults(host), DEFAULTS.to_owned()),
    ];
    if !host.succeeds(&["id", "ollana"]) {
        if host.has_program("useradd") {
            #[rustfmt::skip]
            steps.push(run(&[
                "useradd", "--system", "--user-group", "--no-create-home", "--home-dir",
                "/var/lib/ollana", "--shell", "/bin/false", "ollana",
            ]));
        } else {
            #[rustfmt::skip]
            steps.extend([attempt(&["addgroup", "-S", "ollana"]), run(&[
                "adduser", "-S", "-D", "-H", "-h", "/var/lib/ollana", "-s", "/bin/false", "-G",
                "ollana", "ollana",
            ])]);
        }
    }
    if host.text(&host.path("/etc/group")).lines().any(|line| line.starts_with("ollama:")) {
        steps.push(match host.has_program("usermod") {
            true => run(&["usermod", "-a", "-G", "ollama", "ollana"]),
            false => run(&["addgroup", "ollana", "ollama"]),
        });
    }
    Ok(steps)
}

/// The user is left, as the state is its.
fn removed(host: &Host, before: &[&[&str]], behind: &[&[&str]]) -> Vec<Step> {
    if !host.path(PLACE).exists() {
        return Vec::new();
    }
    let mut steps: Vec<Step> = before.iter().map(|words| attempt(words)).collect();
    steps.push(Step::Remove(host.path(PLACE)));
    steps.push(Step::RemoveUnchanged(defaults(host), DEFAULTS.to_owned()));
    steps.extend(behind.iter().map(|words| run(words)));
    steps
}

/// What the installed script has where its template has this mark.
fn filled(host: &Host, template: &str, mark: &str) -> Option<String> {
    let (before, behind) = template.split_once(mark)?;
    let (start, end) = (before.rsplit('\n').next()?, behind.split('\n').next()?);
    let script = host.text(&host.path(PLACE));
    let found = script.lines().find_map(|line| line.strip_prefix(start)?.strip_suffix(end))?;
    Some(found.to_owned())
}

fn program(host: &Host, template: &str) -> Option<Vec<String>> {
    Some(read(&filled(host, template, PROGRAM)?)).filter(|words| words.len() == 1)
}

/// The words that `quoted` has made.
fn read(text: &str) -> Vec<String> {
    words(text, '\'', false)
}

/// The options for a shell, each behind a blank.
fn options(host: &Host) -> String {
    host.options.iter().map(|word| format!(" {}", quoted(word))).collect()
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
