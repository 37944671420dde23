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

fn user_log(host: &Host) -> PathBuf {
    host.home().join("Library/Logs/ollana")
}

/// What ollana is told in front of the options that were given.
fn own_options(host: &Host) -> Vec<String> {
    match host.is_root() {
        true => vec![format!("--state-dir={STATE}"), format!("--log-file={LOG}/ollana.log")],
        false => vec![format!("--log-file={}", user_log(host).join("ollana.log").display())],
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
        // Options that were given come last, and win.
        words.splice(2..2, own_options(host));
        let mut user = "";
        if host.is_root() {
            host.check_program()?;
            let (state, log) = (host.path(STATE), host.path(LOG));
            let [state_path, log_path] = [&state, &log].map(|dir| dir.display().to_string());
            user = "\n    <key>UserName</key>\n    <string>nobody</string>";
            steps.extend([Step::Folder(state), Step::Folder(log)]);
            steps.push(run(&["chown", "nobody", &state_path, &log_path]));
        } else {
            steps.push(Step::Folder(user_log(host)));
        }
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

    fn command(&self, host: &Host) -> Option<Vec<String>> {
        let text = host.text(&plist(host));
        let (_, array) = text.split_once("<key>ProgramArguments</key>")?;
        let array = array.split("</array>").next()?.split("<string>").skip(1);
        let mut words: Vec<String> =
            array.filter_map(|word| word.split("</string>").next()).map(unescaped).collect();
        for option in own_options(host) {
            let name = option.split_inclusive('=').next().unwrap_or_default();
            if words.get(2).is_some_and(|word| word.starts_with(name)) {
                words.remove(2);
            }
        }
        (!words.is_empty()).then_some(words)
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

fn unescaped(word: &str) -> String {
    word.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}
