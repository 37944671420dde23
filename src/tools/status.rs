//! `ollana status`: the servers, the queue and this machine, once or every second.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::Value;

use super::table::{
    Align, Cell, Row, Style, Tone, bytes, clean, figure, fit, list, round_trip, speed, table, time,
    width, word, wrap,
};
use super::{daemon, screen};
use crate::cli::Tool;
use crate::config::SERVER_PORT;
use crate::manager::pool::State;

/// Between two requests for the state, with `--watch`.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints the state. Fails when no daemon runs.
pub(super) fn run(tool: &Tool) -> Result<(), String> {
    if tool.has("json") {
        let (_, json) = daemon::state(&tool.settings, "/ollana/status")?;
        return super::print(&format!("{json:#}\n"));
    }
    let look = |style| {
        let (_, json) = daemon::state(&tool.settings, "/ollana/status?brief")?;
        Ok::<_, String>(lines(&json, style))
    };
    let first = look(screen::style())?.join("\n");
    if !tool.has("watch") {
        return super::print(&format!("{first}\n"));
    }
    if !io::stdout().is_terminal() {
        loop {
            super::print(&format!("{}\n\n", look(screen::style())?.join("\n")))?;
            io::stdout().flush().map_err(|error| error.to_string())?;
            std::thread::sleep(PAUSE);
        }
    }
    screen::show(PAUSE, &|style| look(style).unwrap_or_else(|reason| wrap(&reason, style.width)))
}

fn lines(json: &Value, style: Style) -> Vec<String> {
    let mut out = servers(json, style);
    out.push(String::new());
    let mut say = |label: &str, text: String, tone: Tone| {
        let mut wrapped = wrap(&format!("{label:<11}{text}"), style.width);
        // Wrapping has made one blank of those behind the label.
        wrapped[0] = format!("{label:<11}{}", wrapped[0][label.len()..].trim_start());
        out.extend(wrapped.iter().map(|line| style.paint(&fit(line, style.width), tone)));
    };
    say("queue", queue(json), Tone::Plain);
    for transfer in list(json, "transfers") {
        say(&word(transfer, "kind"), progress(transfer), Tone::Plain);
    }
    let machine = json.get("machine").unwrap_or(&Value::Null);
    let listen: Vec<String> =
        list(machine, "listen").iter().filter_map(Value::as_str).map(clean).collect();
    let uptime = time(figure(machine, "uptime_s").unwrap_or(0.0));
    let name = word(machine, "name");
    say("this", format!("{name}, {} for {uptime}", word(machine, "mode")), Tone::Plain);
    say("listens on", listen.join(" "), Tone::Plain);
    say("discovery", word(machine, "discovery"), Tone::Plain);
    say("clients", connections(json), Tone::Plain);
    say("keys", keys(machine), Tone::Plain);
    for warning in list(json, "warnings").iter().filter_map(Value::as_str) {
        say("warning", clean(warning), Tone::Bad);
    }
    out
}

fn servers(json: &Value, style: Style) -> Vec<String> {
    let servers = list(json, "servers");
    if servers.is_empty() {
        return vec!["no server found yet: is ollana running on a machine with Ollama?".to_owned()];
    }
    let columns = [
        ("SERVER", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("TRIP", Align::Right),
        ("OLLAMA", Align::Left),
        ("KEY", Align::Left),
        ("BUSY", Align::Right),
        ("TOK/S", Align::Right),
        ("BYTES", Align::Right),
    ];
    let mut rows = Vec::new();
    for server in servers {
        let state = state(server);
        let tone = match state {
            State::Ready => Tone::Good,
            State::CoolingDown => Tone::Plain,
            State::Quarantined | State::OutlierEjected | State::Down => Tone::Bad,
            State::New => Tone::Faint,
        };
        let number = |member| figure(server, member).unwrap_or(0.0);
        let busy = match figure(server, "limit") {
            Some(limit) => format!("{}/{limit}", number("in_flight")),
            None => format!("{}", number("in_flight")),
        };
        let trip = figure(server, "round_trip_ms").map_or("-".to_owned(), round_trip);
        rows.push(Row::Cells(vec![
            Cell { text: name(server), tone: Tone::Bold },
            address(server).into(),
            Cell { text: state.label().to_owned(), tone },
            trip.into(),
            Some(word(server, "ollama")).filter(|v| !v.is_empty()).unwrap_or("-".into()).into(),
            match server.get("encrypted").and_then(Value::as_bool) {
                Some(true) => Cell { text: "yes".to_owned(), tone: Tone::Good },
                Some(false) => "no".into(),
                None => "-".into(),
            },
            busy.into(),
            speed(number("tokens_per_s")).into(),
            bytes(number("bytes_up") + number("bytes_down")).into(),
        ]));
        if state == State::Down {
            let since = time(number("since_s"));
            let why = format!("for {since}: {}", word(server, "reason"));
            rows.push(Row::Note(why, Tone::Bad));
        }
        let loaded: Vec<String> = list(server, "models")
            .iter()
            .filter(|m| is_loaded(m))
            .map(|m| word(m, "name"))
            .collect();
        if !loaded.is_empty() {
            rows.push(Row::Note(fit_list("loaded: ", &loaded, style.width - 4), Tone::Plain));
        }
    }
    table(&columns, &rows, style)
}

pub(super) fn is_loaded(model: &Value) -> bool {
    model.get("loaded") == Some(&Value::Bool(true))
}

/// The state that `/ollana/status` tells of a server.
pub(super) fn state(server: &Value) -> State {
    State::parse(&word(server, "health"), &word(server, "trust"), &word(server, "rest"))
}

/// The server's name; empty if only its address is known.
pub(super) fn name(server: &Value) -> String {
    let name = word(server, "name");
    match word(server, "origin").as_str() {
        "local" => "this machine".to_owned(),
        _ => name,
    }
}

/// The address in use, without the port if that is the usual one.
fn address(server: &Value) -> String {
    let address = list(server, "addresses").first().and_then(Value::as_str).map(clean);
    let address = address.unwrap_or_else(|| word(server, "given"));
    let usual = format!(":{SERVER_PORT}");
    address.strip_suffix(&usual).unwrap_or(&address).to_owned()
}

/// As many names as fit, and how many are left out.
fn fit_list(label: &str, names: &[String], most: usize) -> String {
    let mut out = label.to_owned();
    for (at, name) in names.iter().enumerate() {
        let gap = if at > 0 { ", " } else { "" };
        let rest = names.len() - at;
        let more = format!(", and {rest} more");
        let end = if rest > 1 { width(&more) } else { 0 };
        if at > 0 && width(&out) + width(gap) + width(name) + end > most {
            return out + &more;
        }
        out.push_str(gap);
        out.push_str(name);
    }
    out
}

fn keys(machine: &Value) -> String {
    let is_open = machine.get("unpaired") == Some(&Value::Bool(true));
    match (figure(machine, "keys").unwrap_or(0.0) as u64, is_open) {
        (0, true) => "none: requests cross the LAN unencrypted (ollana pair)".to_owned(),
        (0, false) => "none, and machines without one are refused (ollana pair)".to_owned(),
        (n, true) => format!("{n}; machines without one are talked to unencrypted"),
        (n, false) => format!("{n}; only machines that have one are talked to, encrypted"),
    }
}

fn queue(json: &Value) -> String {
    let queue = json.get("queue").unwrap_or(&Value::Null);
    let waiting = figure(queue, "length").unwrap_or(0.0);
    let longest = figure(queue, "longest_wait_s").map(time);
    match (waiting as u64, longest) {
        (0, _) => "empty".to_owned(),
        (n, Some(longest)) => format!("{n} waiting, the longest for {longest}"),
        (n, None) => format!("{n} waiting"),
    }
}

/// Connections and their limits, of each proxy.
fn connections(json: &Value) -> String {
    let limits = json.get("limits").unwrap_or(&Value::Null);
    let number = |proxy, member| figure(proxy, member).unwrap_or(0.0);
    let proxies = list(limits, "connections");
    let of = |proxy| {
        let (now, max) = (number(proxy, "now"), number(proxy, "max"));
        format!(
            "{now} of {max} connections, at most {} from one address",
            number(proxy, "max_per_source")
        )
    };
    proxies.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn progress(transfer: &Value) -> String {
    let number = |member| figure(transfer, member).unwrap_or(0.0);
    let name = word(transfer, "name");
    let server = word(transfer, "server");
    let rate = bytes(number("bytes_per_s"));
    let far = match figure(transfer, "total") {
        Some(total) => {
            let percent = (number("done") / total.max(1.0) * 100.0).floor();
            format!("{percent:.0} % of {}, {rate}/s", bytes(total))
        }
        None if number("done") > 0.0 => format!("{}, {rate}/s", bytes(number("done"))),
        None => word(transfer, "state"),
    };
    format!("{} on {server}: {far}", fit(&name, 40))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn picture() -> Value {
        json!({
            "version": 1,
            "machine": {"name": "laptop", "mode": "client", "uptime_s": 7800,
                "listen": ["127.0.0.1:11434", "[::1]:11434"], "discovery": "to port 11436/udp",
                "keys": 1, "unpaired": true},
            "limits": {"connections": [{"now": 4, "max": 2048, "max_per_source": 1024}]},
            "queue": {"length": 3, "longest_wait_s": 4.2},
            "servers": [
                {"name": "desktop", "origin": "discovered", "addresses": ["192.168.1.20:11435"],
                 "encrypted": true,
                 "health": "ready", "rest": null, "round_trip_ms": 0.42, "ollama": "0.13.1",
                 "in_flight": 2, "limit": 4, "tokens_per_s": 41.2, "bytes_up": 1e9,
                 "bytes_down": 3e8, "models": [{"name": "llama3.2:1b", "loaded": true},
                 {"name": "other", "loaded": false}, {"name": "evil\u{1b}[2J", "loaded": true}]},
                {"name": "nas", "origin": "named", "given": "nas:9999", "addresses": [],
                 "health": "down", "reason": "connection refused", "since_s": 12.0,
                 "in_flight": 0, "limit": null, "models": null},
            ],
            "transfers": [{"kind": "pull", "name": "llama3.3:70b", "server": "desktop",
                "done": 16e9, "total": 38e9, "bytes_per_s": 11e6}],
            "warnings": ["nas is down: connection refused"],
        })
    }

    #[test]
    fn the_picture_at_80_columns() {
        let style = Style { width: 80, is_coloured: false };
        let want = "\
SERVER   ADDRESS       STATE    TRIP  OLLAMA  KEY  BUSY  TOK/S   BYTES
desktop  192.168.1.20  ready  0.4 ms  0.13.1  yes   2/4   41.2  1.3 GB
    loaded: llama3.2:1b, evil?[2J
nas      nas:9999      down        -  -       -       0      -     0 B
    for 12 s: connection refused

queue      3 waiting, the longest for 4 s
pull       llama3.3:70b on desktop: 42 % of 38 GB, 11 MB/s
this       laptop, client for 2 h 10 m
listens on 127.0.0.1:11434 [::1]:11434
discovery  to port 11436/udp
clients    4 of 2048 connections, at most 1024 from one address
keys       1; machines without one are talked to unencrypted
warning    nas is down: connection refused";
        assert_eq!(lines(&picture(), style).join("\n"), want);
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        let mut json = picture();
        let long = "x".repeat(300);
        json["servers"] = (0..64)
            .map(|n| {
                let models: Vec<Value> = (0..100)
                    .map(|m| json!({"name": format!("{long}{m}"), "loaded": true}))
                    .collect();
                json!({"name": format!("{n}{long}"), "origin": "discovered", "health": "ready",
                    "addresses": ["[2001:db8:1111:2222:3333:4444:5555:6666]:65535"],
                    "ollama": &long, "models": models})
            })
            .collect();
        json["warnings"] = json!([long, "y ".repeat(200)]);
        for (width_, is_coloured) in [(80, false), (60, false), (200, false)] {
            for line in lines(&json, Style { width: width_, is_coloured }) {
                assert!(width(&line) <= width_, "{line}");
            }
        }
        let names: Vec<String> = (0..9).map(|n| format!("model{n}")).collect();
        assert_eq!(fit_list("loaded: ", &names, 40), "loaded: model0, model1, and 7 more");
    }

    #[test]
    fn without_servers_it_says_what_to_do() {
        let style = Style { width: 80, is_coloured: true };
        let empty = json!({"servers": [], "machine": {}});
        assert!(lines(&empty, style)[0].contains("is ollana running"));
    }
}
