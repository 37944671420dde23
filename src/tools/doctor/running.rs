//! The options of the ollana that runs here: a service gets them from files of its own, so its state
//! is asked for them.

use std::net::SocketAddr;

use serde_json::Value;

use super::ask::{self, LOCALHOST};
use super::report::Report;
use crate::cli::Tool;
use crate::config::{DISCOVERY_PORT, ModeChoice, Settings, parse_host_port, parse_ollama};
use crate::pairing::keyring::Keyring;
use crate::tools::daemon;
use crate::tools::status::state;
use crate::tools::table::{list, number, word};

/// The daemon's state, as `ollana status --json` prints it; null when none runs.
#[derive(Debug, Default)]
pub(super) struct Running(Value);

impl Running {
    pub(super) fn ask(settings: &Settings) -> Self {
        // Another program on one of the ports might never answer a request for the state.
        let is_ours = |address: &SocketAddr| {
            ask::get(settings, *address, &[LOCALHOST])
                .is_ok_and(|answer| ask::is_from_ollana(&answer))
        };
        let Some(address) = daemon::places(settings).into_iter().find(is_ours) else {
            return Running::default();
        };
        let there = Settings { listen: vec![address], share: Vec::new(), ..settings.clone() };
        let state = daemon::state(&there, "/ollana/status?brief");
        Running(state.map(|(_, state)| state).unwrap_or_default())
    }

    /// The options of this command, and where there are none, the daemon's.
    pub(super) fn settings(&self, tool: &Tool) -> Settings {
        let mut settings = tool.settings.clone();
        let given = |origin: &str| {
            let servers = list(&self.0, "servers").iter();
            let given = servers.filter(|server| word(server, "origin") == origin);
            given.map(|server| word(server, "given")).collect::<Vec<String>>()
        };
        if settings.ollama.is_none() {
            settings.ollama = given("local").first().and_then(|url| parse_ollama(url).ok());
        }
        // Client and server mode follow from what is found; this one doesn't.
        if settings.mode == ModeChoice::Auto && word(&self.0["machine"], "mode") == "both" {
            settings.mode = ModeChoice::Both;
        }
        if settings.servers.is_empty() {
            let parse = |name: &String| parse_host_port(name, 0).ok();
            settings.servers = given("named").iter().filter_map(parse).collect();
        }
        // Somebody may ask for the usual port, and means it.
        let is_asked = tool.given.iter().any(|option| option.starts_with("--discovery-port="));
        if !is_asked && settings.discovery_port == DISCOVERY_PORT {
            settings.discovery_port = self.discovery_port().unwrap_or(DISCOVERY_PORT);
        }
        settings
    }

    /// TCP ports at which other machines reach ollana: by the options of this command, or where the
    /// daemon listens.
    pub(super) fn lan_ports(&self, settings: &Settings) -> Vec<u16> {
        let listens = daemon::listens(&self.0);
        let is_told = !settings.listen.is_empty() || !settings.share.is_empty();
        if is_told || listens.is_empty() {
            return settings.lan_ports();
        }
        Settings { mode: ModeChoice::Server, listen: listens, ..Settings::default() }.lan_ports()
    }

    /// The UDP port that the daemon asks or answers at: it is told as `to port 11436/udp`, as
    /// `0.0.0.0:11436/udp`, or as `off`, for which the port is 0.
    fn discovery_port(&self) -> Option<u16> {
        let told = word(&self.0["machine"], "discovery");
        match told.as_str() {
            "off" => Some(0),
            told => told.strip_suffix("/udp")?.rsplit([' ', ':']).next()?.parse().ok(),
        }
    }

    /// Whether the daemon has keys that this command can't read, or, where none runs, would have:
    /// `are_hidden` tells that a service's keys are root's to see. If so, says that too: without a key,
    /// paired machines are silent or refuse us.
    pub(super) fn hides_keys(
        &self,
        report: &mut Report,
        keyring: &Keyring,
        are_hidden: bool,
    ) -> bool {
        if self.0.is_null() && are_hidden {
            report.hint(
                "this machine is paired, and only root may read its keys",
                "sudo ollana doctor",
            );
            return true;
        }
        let known = keyring.keys().len() as f64;
        let keys = number(&self.0["machine"], "keys");
        if keys <= known {
            return false;
        }
        report.hint(
            format!("of ollana's keys ({keys}), this command may see {known}"),
            "sudo ollana doctor, with the --key-file that ollana has",
        );
        true
    }

    /// What it says to set on this machine.
    pub(super) fn advice(&self) -> Option<String> {
        sentence(&self.0["machine"], "advice")
    }

    /// Why other machines can't have the models of this one, although they may.
    pub(super) fn unshared(&self) -> Option<String> {
        let sharing = &self.0["machine"]["share_models"];
        sentence(sharing, "problem").filter(|_| word(sharing, "with") != "off")
    }

    /// The servers that it knows by themselves: the address in use, and the name.
    pub(super) fn servers(&self) -> impl Iterator<Item = (SocketAddr, String)> {
        let is_found = |server: &&Value| {
            matches!(server["origin"].as_str(), Some("discovered" | "remembered"))
        };
        list(&self.0, "servers").iter().filter(is_found).filter_map(|server| {
            let address = list(server, "addresses").first()?.as_str()?.parse().ok()?;
            Some((address, word(server, "name")))
        })
    }

    /// Servers that claim to be another one, or to have its name: their name, and which.
    pub(super) fn contested(&self) -> impl Iterator<Item = (String, String)> {
        let is_contested = |server: &&Value| word(server, "trust") != "known";
        let servers = list(&self.0, "servers").iter().filter(is_contested);
        let named = servers.map(|server| (word(server, "name"), word(server, "contest")));
        named.filter(|(_, contest)| !contest.is_empty())
    }

    pub(super) fn uses(&self, address: SocketAddr) -> bool {
        let address = address.to_string();
        list(&self.0, "servers").iter().any(|server| {
            let mut addresses = list(server, "addresses").iter();
            state(server).gets_work() && addresses.any(|one| *one == address.as_str())
        })
    }
}

/// A member's text, however long, which the report makes printable.
fn sentence(json: &Value, member: &str) -> Option<String> {
    json[member].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::{self, Command};

    #[test]
    fn the_lans_ports_are_those_that_the_daemon_has_unless_others_are_told() {
        let both = json!(["127.0.0.1:11437", "0.0.0.0:9000", "[::]:9000"]);
        for (options, listens, want) in [
            ("", both.clone(), &[9000][..]),
            ("--listen=0.0.0.0:8", both, &[8]),
            ("", json!(["127.0.0.1:11434", "[::1]:11434"]), &[]),
            // None runs.
            ("", json!([]), &[11435]),
        ] {
            let words = ["ollana", "doctor"].into_iter().chain(options.split_terminator(' '));
            let Ok(Command::Tool(tool)) = cli::parse(words.map(Into::into), &|_| None) else {
                panic!("{options}")
            };
            let running = Running(json!({"machine": {"listen": listens}}));
            assert_eq!(running.lan_ports(&running.settings(&tool)), want, "{options} {listens}");
        }
    }

    #[test]
    fn the_port_is_the_daemons_unless_one_is_asked_for() {
        let table = [
            ("", "to port 12000/udp", 12000),
            ("", "0.0.0.0:12000/udp", 12000),
            ("", "[::]:12000/udp", 12000),
            ("", "off", 0),
            // There is no daemon, or one that says something else some day.
            ("", "", 11436),
            ("", "to nobody", 11436),
            ("--discovery-port=12001", "to port 12000/udp", 12001),
            ("--discovery-port=11436", "to port 12000/udp", 11436),
            ("--discovery-port=0", "to port 12000/udp", 0),
        ];
        for (option, told, want) in table {
            let words = ["ollana", "doctor", option].into_iter().filter(|word| !word.is_empty());
            let Ok(Command::Tool(tool)) = cli::parse(words.map(Into::into), &|_| None) else {
                panic!("a command with {option}");
            };
            let running = Running(json!({ "machine": { "discovery": told } }));
            assert_eq!(running.settings(&tool).discovery_port, want, "{option} {told}");
        }
    }

    #[test]
    fn keys_that_only_root_may_read_are_told_of_where_no_daemon_tells() {
        let none = Keyring::none();
        let hides = |running: Running, are_hidden: bool| {
            let mut report = Report::default();
            let hides = running.hides_keys(&mut report, &none, are_hidden);
            assert!(report.is_well());
            (hides, report.findings.into_iter().map(|finding| finding.text).collect::<String>())
        };
        let running = |keys: u32| Running(json!({ "machine": { "keys": keys } }));
        let root = "this machine is paired, and only root may read its keys";
        assert_eq!(hides(Running::default(), true), (true, root.to_owned()));
        assert_eq!(hides(Running::default(), false), (false, String::new()));
        assert_eq!(hides(running(0), true), (false, String::new()));
        assert!(hides(running(1), true).1.starts_with("of ollana's keys (1)"));
    }

    #[test]
    fn what_this_machine_says_is_told_to_its_end() {
        let said = format!("a long path {} and its end", "x".repeat(300));
        let machine = json!({ "advice": said, "share_models": { "problem": said, "with": "lan" } });
        let running = Running(json!({ "machine": machine }));
        assert_eq!([running.advice(), running.unshared()], [Some(said.clone()), Some(said)]);
        assert_eq!(Running::default().advice(), None);
    }
}
