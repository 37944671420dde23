//! systemd: as root for the whole machine, as a user for that user.

use std::path::{Path, PathBuf};

use super::host::Host;
use super::plan::{Step, attempt, run};
use super::{Manager, words};
use crate::tools::takeover;

const UNIT: &str = include_str!("../../../scripts/service/ollana.service");
const USER_UNIT: &str = include_str!("../../../scripts/service/ollana.user.service");
const GENERATOR: &str = include_str!("../../../scripts/service/ollana.generator");
const RULES: &str = include_str!("../../../scripts/service/ollana.rules");
pub(super) const DEFAULTS: &str = include_str!("../../../scripts/service/ollana.default");
/// In a unit, what is started.
const COMMAND: &str = "@PREFIX@/bin/ollana serve";

const PLACE: &str = "/etc/systemd/system/ollana.service";
/// Where packages have it.
const PACKAGED: &[&str] = &["/lib/systemd/system", "/usr/lib/systemd/system"];

pub(super) struct Systemd;

fn generator(host: &Host) -> PathBuf {
    host.path("/etc/systemd/system-generators/ollana")
}

/// Where polkit is.
fn rules(host: &Host) -> Option<PathBuf> {
    let folder = host.path("/etc/polkit-1/rules.d");
    folder.is_dir().then(|| folder.join("ollana.rules"))
}

pub(super) fn defaults(host: &Host) -> PathBuf {
    host.path("/etc/default/ollana")
}

/// What that file sets, and after it what a takeover does.
pub(super) fn variables(host: &Host) -> Vec<(String, String)> {
    let files = [defaults(host), host.path(&takeover::variables(takeover::OLLANA))];
    let text = files.map(|file| host.text(&file)).join("\n");
    let set = text.lines().filter_map(|line| line.trim().split_once('='));
    let plain = |value: &str| value.trim_matches(['"', '\'']).to_owned();
    set.map(|(name, value)| (name.to_owned(), plain(value))).collect()
}

/// The unit of a package that has installed ollana.
fn packaged(host: &Host) -> Option<PathBuf> {
    PACKAGED.iter().map(|dir| host.path(dir).join("ollana.service")).find(|path| path.is_file())
}

/// Removes what a takeover has set for both services, with the folders that are empty then.
fn moved_back(host: &Host) -> Vec<Step> {
    let files: Vec<PathBuf> =
        takeover::files().map(|file| host.path(&file)).filter(|file| file.exists()).collect();
    let mut folders: Vec<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    folders.dedup();
    let emptied = |folder: &&Path| attempt(&["rmdir", &folder.display().to_string()]);
    let emptied: Vec<Step> = folders.iter().map(emptied).collect();
    files.into_iter().map(Step::Remove).chain(emptied).collect()
}

impl Manager for Systemd {
    fn name(&self) -> &'static str {
        "systemd"
    }

    fn install(&self, host: &Host) -> Result<Vec<Step>, String> {
        host.check_program()?;
        if let Some(packaged) = packaged(host) {
            return Err(format!(
                "a package has installed {}: systemctl enable --now ollana starts it, and \
                 /etc/default/ollana has its options",
                packaged.display()
            ));
        }
        let generator = generator(host);
        let mut steps = vec![
            Step::Write(host.path(PLACE), unit(UNIT, host)),
            Step::WriteNew(defaults(host), DEFAULTS.to_owned()),
            Step::Write(generator.clone(), GENERATOR.to_owned()),
            run(&["chmod", "755", &generator.display().to_string()]),
        ];
        steps.extend(rules(host).map(|file| Step::Write(file, RULES.to_owned())));
        steps.extend([
            run(&["systemctl", "daemon-reload"]),
            run(&["systemctl", "enable", "--quiet", "ollana.service"]),
            run(&["systemctl", "restart", "ollana.service"]),
        ]);
        Ok(steps)
    }

    fn remove(&self, host: &Host) -> Vec<Step> {
        let is_installed = host.path(PLACE).exists();
        let mut steps = Vec::new();
        if is_installed {
            steps.extend([
                attempt(&["systemctl", "disable", "--now", "--quiet", "ollana.service"]),
                Step::Remove(host.path(PLACE)),
                Step::Remove(generator(host)),
                Step::RemoveUnchanged(defaults(host), DEFAULTS.to_owned()),
            ]);
            steps.extend(rules(host).map(Step::Remove));
        }
        // Without an ollana, programs find Ollama at its own port only.
        let has_other = !is_installed && packaged(host).is_some();
        let moved = if has_other { Vec::new() } else { moved_back(host) };
        let is_moved = !moved.is_empty();
        steps.extend(moved);
        if is_installed || is_moved {
            steps.push(run(&["systemctl", "daemon-reload"]));
        }
        if is_moved {
            steps.push(attempt(&["systemctl", "try-restart", "ollama.service"]));
        }
        steps
    }

    fn place(&self, host: &Host) -> String {
        host.path(PLACE).display().to_string()
    }

    fn command(&self, host: &Host) -> Option<Vec<String>> {
        started(&host.text(&host.path(PLACE)))
    }

    fn is_running(&self, host: &Host) -> bool {
        host.succeeds(&["systemctl", "is-active", "--quiet", "ollana.service"])
    }

    fn hint(&self) -> &'static str {
        "Its variables are in /etc/default/ollana."
    }
}

pub(super) struct UserSystemd;

fn user_place(host: &Host) -> PathBuf {
    let config = host.folder("XDG_CONFIG_HOME").unwrap_or_else(|| host.home().join(".config"));
    config.join("systemd/user/ollana.service")
}

impl Manager for UserSystemd {
    fn name(&self) -> &'static str {
        "systemd --user"
    }

    fn install(&self, host: &Host) -> Result<Vec<Step>, String> {
        let systems = PACKAGED.iter().map(|dir| host.path(dir).join("ollana.service"));
        if let Some(unit) = systems.chain([host.path(PLACE)]).find(|path| path.is_file()) {
            let unit = unit.display();
            return Err(format!(
                "the system runs ollana already ({unit}): sudo ollana service status"
            ));
        }
        Ok(vec![
            Step::Write(user_place(host), unit(USER_UNIT, host)),
            run(&["systemctl", "--user", "daemon-reload"]),
            run(&["systemctl", "--user", "enable", "--quiet", "ollana.service"]),
            run(&["systemctl", "--user", "restart", "ollana.service"]),
        ])
    }

    fn remove(&self, host: &Host) -> Vec<Step> {
        if !user_place(host).exists() {
            return Vec::new();
        }
        vec![
            attempt(&["systemctl", "--user", "disable", "--now", "--quiet", "ollana.service"]),
            Step::Remove(user_place(host)),
            run(&["systemctl", "--user", "daemon-reload"]),
        ]
    }

    fn place(&self, host: &Host) -> String {
        user_place(host).display().to_string()
    }

    fn command(&self, host: &Host) -> Option<Vec<String>> {
        started(&host.text(&user_place(host)))
    }

    /// Its unit names no file of them.
    fn variables(&self, _: &Host) -> Vec<(String, String)> {
        Vec::new()
    }

    fn is_running(&self, host: &Host) -> bool {
        host.succeeds(&["systemctl", "--user", "is-active", "--quiet", "ollana.service"])
    }

    fn hint(&self) -> &'static str {
        "It starts when you log in; at boot, too, after: loginctl enable-linger"
    }
}

fn unit(template: &str, host: &Host) -> String {
    let words: Vec<String> = host
        .command()
        .iter()
        .enumerate()
        .map(|(at, word)| {
            // A program's path isn't looked through for variables.
            if at == 0 { quoted(word) } else { quoted(word).replace('$', "$$") }
        })
        .collect();
    template.replace(COMMAND, &words.join(" "))
}

/// A word as systemd.service(5) and systemd.syntax(7) have it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=,+@".contains(c);
    let word = word.replace('%', "%%");
    if word.chars().all(|c| is_plain(c) || c == '%' || c == '$') {
        return word;
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The words of the command that a unit starts.
fn started(unit: &str) -> Option<Vec<String>> {
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
    let mut words = words(line, '"', true);
    words.iter_mut().for_each(|word| *word = word.replace("%%", "%"));
    words.iter_mut().skip(1).for_each(|word| *word = word.replace("$$", "$"));
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_and_found_again() {
        for (word, want) in [
            ("/usr/local/bin/ollana", "/usr/local/bin/ollana"),
            ("/opt/my tools/ollana", "\"/opt/my tools/ollana\""),
            ("/opt/100%/ollana", "/opt/100%%/ollana"),
            ("/a\"b\\c d/ollana", "\"/a\\\"b\\\\c d/ollana\""),
            ("--pin=llama3.2:1b=desktop", "--pin=llama3.2:1b=desktop"),
            ("--key-file=/a;b", "\"--key-file=/a;b\""),
            ("--host=a'b", "\"--host=a'b\""),
        ] {
            assert_eq!(quoted(word), want);
            let unit = format!("x\nExecStart={want} serve {want}");
            assert_eq!(started(&unit), Some([word, "serve", word].map(str::to_owned).into()));
        }
        // As systemd takes it for a variable only behind the program.
        let words = ["/opt/$$/ollana", "--host=$HOME", "--prefer=$$ %%h \\$"].map(str::to_owned);
        let line = "ExecStart=/opt/$$/ollana --host=$$HOME \"--prefer=$$$$ %%%%h \\\\$$\"";
        assert_eq!(started(line), Some(words.into()));
        assert_eq!(started("[Unit]\n"), None);
    }
}
