//! `ollana token add|list|remove`: what devices that can't run ollana show instead of a key.

use std::collections::HashSet;
use std::io::{self, IsTerminal};
use std::path::Path;

use serde_json::Value;

use super::peers::date;
use super::table::{figure, list, number, time, word};
use super::{daemon, keyring, qr, say, screen, state_dir};
use crate::cli::Tool;
use crate::config::Settings;
use crate::net::interfaces::broadcast_interfaces;
use crate::pairing::tokens::{self, Token};
use crate::serve::host_name;
use crate::system::to_stderr;

/// What is wrong with the command line.
pub(super) fn misread(tool: &Tool) -> Option<String> {
    match (tool.operand(), tool.operands.get(1)) {
        ("list", Some(name)) => Some(format!("token list does not take {name:?}")),
        ("list", None) => None,
        (action, None) => Some(format!("token {action} takes a NAME: ollana token {action} phone")),
        ("add", Some(name)) if !tokens::is_name(name) => Some(format!(
            "token add {name:?}: expected up to 32 letters, digits, hyphens, dots and underscores"
        )),
        _ => None,
    }
}

pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let settings = &tool.settings;
    let dir = state_dir(settings)?;
    let name = tool.operands.get(1).map_or("", String::as_str);
    let running = || daemon::state(settings, "/ollana/status?brief").ok().map(|(_, json)| json);
    match tool.operand() {
        "add" => {
            let secret = tokens::add(&dir, name)?;
            super::print(&format!("{secret}\n"))?;
            // Apart, so that a script gets the token alone.
            let advice = advice(name, settings, running().as_ref());
            to_stderr((picture(&secret) + &advice).trim_end());
            Ok(())
        }
        "list" => super::print(&table(&tokens::load(&dir)?, running().as_ref())),
        _ => remove(&dir, name),
    }
}

/// A new token for a camera, where somebody sees it.
fn picture(secret: &str) -> String {
    match io::stderr().is_terminal() && screen::has_colours() {
        true => format!("\n{}", qr::drawn(secret)),
        false => String::new(),
    }
}

fn remove(dir: &Path, name: &str) -> Result<(), String> {
    if !tokens::remove(dir, name)? {
        return Err(format!("no token is called {name:?}; 'ollana token list' shows them"));
    }
    say(&format!(
        "the token of {name} is worth nothing any more; a running ollana refuses it in a second"
    ));
    Ok(())
}

/// How a new token is used, in lines of at most 80 columns.
fn advice(name: &str, settings: &Settings, running: Option<&Value>) -> String {
    let is_open = match running {
        Some(json) => json["machine"]["unpaired"] == true,
        None => keyring(settings).is_ok_and(|keyring| keyring.takes_unpaired()),
    };
    let places = places(settings, running);
    let addresses: String =
        places.iter().map(|it| format!("  http://{it}\n  http://{it}/v1\n")).collect();
    let to = match places.is_empty() {
        true => {
            "The ollana that runs here answers programs of this machine only: make the token\n\
             on a machine with Ollama, or start this one with --listen 0.0.0.0:11434.\n"
        }
        false => "to this address, or to the one with /v1 if a base URL of OpenAI is asked for:\n",
    };
    let rest = match is_open {
        true => {
            "Machines without a token may use this one, too. To end that, start ollana here\n\
             with --unpaired off (ollana help token).\n"
        }
        false => "Without a token, only paired machines may use this one.\n",
    };
    format!(
        "\nThis is the token of {name}. It is not shown again.\n\
         The device sends it as its API key, that is with every request, as the field\n  \
         Authorization: Bearer TOKEN\n{to}{addresses}{rest}"
    )
}

/// Where a device of the LAN reaches the ollana of this machine.
fn places(settings: &Settings, running: Option<&Value>) -> Vec<String> {
    let listen = running.map_or_else(|| settings.lan_addresses(), daemon::listens);
    let own = broadcast_interfaces(&[]);
    let mut places = Vec::new();
    for address in listen.into_iter().filter(|address| !address.ip().is_loopback()) {
        let port = address.port();
        match address.ip().is_unspecified() {
            true if own.is_empty() => places.push(format!("{}:{port}", host_name())),
            true => places.extend(own.iter().map(|one| format!("{}:{port}", one.address))),
            false => places.push(address.to_string()),
        }
    }
    // Of IPv4 and IPv6.
    let mut seen = HashSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// At most 80 columns wide.
fn table(tokens: &[Token], running: Option<&Value>) -> String {
    if tokens.is_empty() {
        return "no tokens; 'ollana token add NAME' makes one\n".to_owned();
    }
    let row = |name: &str, added: &str, count: &str, last: &str| {
        format!("{name:<32}  {added:<10}  {count:>8}  {last}").trim_end().to_owned() + "\n"
    };
    let rows = tokens.iter().map(|token| {
        let used = running.map(|json| list(json, "tokens")).unwrap_or_default();
        let used = used.iter().find(|it| word(it, "name") == token.name);
        let count = used.map_or("-".to_owned(), |it| number(it, "requests").to_string());
        let last = used.and_then(|it| figure(it, "last_s")).map(|s| format!("{} ago", time(s)));
        row(&token.name, &date(token.added), &count, &last.unwrap_or("-".to_owned()))
    });
    row("NAME", "ADDED", "REQUESTS", "LAST USED") + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_a_device_reaches_this_machine() {
        let settings = Settings::default();
        let at = |listen: Value| places(&settings, Some(&json!({"machine": {"listen": listen}})));
        let own = broadcast_interfaces(&[]).len().max(1);
        let all = at(json!(["127.0.0.1:11434", "0.0.0.0:7", "[::]:7"]));
        assert!(all.len() == own && all.iter().all(|it| it.ends_with(":7")), "{all:?}");
        assert!(at(json!(["127.0.0.1:11434", "[::1]:11434"])).is_empty(), "a client");
        assert_eq!(at(json!(["10.0.0.7:11435", "[fd00::7]:9"])), ["10.0.0.7:11435", "[fd00::7]:9"]);
        assert!(places(&settings, None).iter().all(|it| it.ends_with(":11435")));
        for (listen, want) in [
            ("10.0.0.7:8", "\n  http://10.0.0.7:8/v1\n"),
            ("127.0.0.1:11434", "--listen 0.0.0.0:11434"),
        ] {
            for is_open in [true, false] {
                let json = json!({"machine": {"listen": [listen], "unpaired": is_open}});
                let told = advice("phone", &settings, Some(&json));
                assert!(told.contains(want), "{told}");
                assert_eq!(told.contains("--unpaired off"), is_open, "{told}");
                assert!(told.lines().all(|line| line.len() <= 80), "{told}");
            }
        }
    }

    #[test]
    fn the_table_tells_what_is_known() {
        let dir = std::env::temp_dir().join(format!("ollana-token-table-{}", std::process::id()));
        let long = "x".repeat(32);
        tokens::add(&dir, "tv").unwrap();
        tokens::add(&dir, &long).unwrap();
        let tokens = tokens::load(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let json = json!({"tokens": [{"name": "tv", "requests": 12345678, "last_s": 7800.0}]});
        let text = table(&tokens, Some(&json));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("tv ") && lines[1].ends_with("  12345678  2 h 10 m ago"),
            "{text}"
        );
        assert!(
            lines[2].starts_with(&long) && lines[2].ends_with("-  -"),
            "not taken up yet: {text}"
        );
        assert!(lines.iter().all(|line| line.len() <= 80), "{text}");
        assert!(table(&tokens, None).lines().nth(1).unwrap().ends_with("-  -"));
        assert!(table(&[], None).contains("ollana token add NAME"));
    }
}
