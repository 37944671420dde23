//! launchd: a daemon of the machine as root, an agent of the user otherwise.

use std::path::PathBuf;

use super::Manager;
use super::host::Host;
use super::plan::{self, Step, attempt, run};

const PLIST: &str = include_str!("../../../scripts/service/org.ollana.ollana.plist");
const LABEL: &str = "org.ollana.ollana";
/// The state and the log of the machine's daemon, which is nobody's.
const STATE: &str = "/var/db/ollana";
const LOG: &str = "/var/log/ollana";

pub(super) struct Launchd;

/// Of the machine, or of this user.
fn domain(host: &Host) -> String {
    host.user.filter(|user| *user != 0).map_or("system".to_owned(), |user| format!("gui/{user}"))
}

fn service(host: &Host) -> String {
    format!("{}/{LABEL}", domain(host))
}

fn plist(host: &Host) -> PathBuf {
    let name = format!("{LABEL}.plist");
    match host.is_root() {
        true => host.path("/Library/LaunchDaemons").join(name),
        false => host.home().join("Library/LaunchAgents").join(name),
    }
}

impl Manager for Launchd {
    fn name(&self) -> &'static str {
        "launchd"
    }

    fn install(&self, host: &Host) -> Result<Vec<Step>, String> {
        let (service, plist) = (service(host), plist(host));
        let mut steps = Vec::new();
        let mut words = host.command();
        let mut user = "";
        if host.is_root() {
            host.check_program()?;
            let (state, log) = (host.path(STATE), host.path(LOG));
            let [state_path, log_path] = [&state, &log].map(|dir| dir.display().to_string());
            words.extend([format!("--state-dir={STATE}"), format!("--log-file={LOG}/ollana.log")]);
            user = "\n    <key>UserName</key>\n    <string>nobody</string>";
            steps.extend([Step::Folder(state), Step::Folder(log)]);
            steps.push(run(&["chown", "nobody", &state_path, &log_path]));
        } else {
            let logs = host.home().join("Library/Logs/ollana");
            words.push(format!("--log-file={}", logs.join("ollana.log").display()));
            steps.push(Step::Folder(logs));
        }
        // Options that were given come last, and win.
        words[2..].rotate_left(host.options.len());
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("\n        <string>{}</string>", escaped(word)))
            .collect();
        let text = PLIST.replace("@ARGUMENTS@", &words.concat()).replace("@USER@", user);
        steps.extend([
            Step::Write(plist.clone(), text),
            attempt(&["launchctl", "bootout", &service]),
            // Streams finish first, and until then nothing else can have the name.
            Step::Await(["launchctl", "print", &service].map(str::to_owned).into()),
            run(&["launchctl", "enable", &service]),
            run(&["launchctl", "bootstrap", &domain(host), &plist.display().to_string()]),
        ]);
        Ok(steps)
    }

    fn remove(&self, host: &Host) -> Vec<Step> {
        vec![
            attempt(&["launchctl", "bootout", &service(host)]),
            Step::Await(["launchctl", "print", &service(host)].map(str::to_owned).into()),
            Step::Remove(plist(host)),
        ]
    }

    fn place(&self, host: &Host) -> String {
        plist(host).display().to_string()
    }

    fn program(&self, host: &Host) -> Option<String> {
        let text = host.text(&plist(host));
        let (_, words) = text.split_once("<key>ProgramArguments</key>")?;
        let (_, word) = words.split_once("<string>")?;
        let word = word.split("</string>").next()?;
        Some(word.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    }

    fn is_running(&self, host: &Host) -> bool {
        plan::said(&["launchctl", "print", &service(host)])
            .lines()
            .any(|line| line.trim() == "state = running")
    }
}

fn escaped(word: &str) -> String {
    word.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
