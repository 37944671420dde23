//! `ollana status`: the servers, the queue and this machine, once or every second.

use std::time::Duration;

use serde_json::Value;

use super::table::{
    Cell, Row, Style, Tone, bytes, figure, fit, left, list, number, round_trip, speed, table, time,
    titled, width, word, words, wrap,
};
use super::{daemon, screen};
use crate::cli::Tool;
use crate::config::SERVER_PORT;
use crate::manager::pool::State;
use crate::net::untrusted_text::printable_whole;

/// Between two requests for the state, with `--watch`.
const PAUSE: Duration = Duration::from_secs(1);
/// Servers that are away, one line each.
const MOST_AWAY: usize = 8;

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
    if !screen::can_redraw() {
        while super::put(&format!("{}\n\n", look(screen::style())?.join("\n")))? {
            std::thread::sleep(PAUSE);
        }
        return Ok(());
    }
    screen::show(PAUSE, &|style| look(style).unwrap_or_else(|reason| wrap(&reason, style.width)))
}

fn lines(json: &Value, style: Style) -> Vec<String> {
    let mut out = servers(json, style);
    out.push(String::new());
    let mut say = |label: &str, text: String, tone: Tone| {
        // Wrapping makes one blank of several, so dots stand for those behind the label.
        let mut wrapped = wrap(&format!("{label:.<10} {text}"), style.width);
        let said = wrapped[0].get(label.len().max(10)..).unwrap_or_default();
        wrapped[0] = format!("{label:<10}{said}");
        out.extend(wrapped.iter().map(|line| style.paint(&fit(line, style.width), tone)));
    };
    let away = || list(json, "away").iter().filter(|server| server["id"].is_null());
    away().take(MOST_AWAY).for_each(|server| say("away", lasting(server), Tone::Plain));
    if let Some(more) = away().count().checked_sub(MOST_AWAY).filter(|more| *more > 0) {
        say("away", format!("and {more} more servers (ollana models)"), Tone::Plain);
    }
    say("queue", queue(json), Tone::Plain);
    for transfer in list(json, "transfers") {
        say(&word(transfer, "kind"), progress(transfer), Tone::Plain);
    }
    if let Some(told) = sharing(json) {
        say("sharing", told, Tone::Plain);
    }
    for alias in list(json, "aliases") {
        say("alias", stands_for(alias), Tone::Plain);
    }
    let machine = &json["machine"];
    match (&machine["awake"]["kept"], word(&machine["awake"], "problem").as_str()) {
        (Value::Bool(true), _) => say("sleep", "not while requests run".to_owned(), Tone::Plain),
        (_, "") => {}
        (_, why) => say("sleep", format!("can't be kept from it: {why}"), Tone::Plain),
    }
    let (name, uptime) = (word(machine, "name"), time(number(machine, "uptime_s")));
    say("this", format!("{name}, {} for {uptime}", word(machine, "mode")), Tone::Plain);
    say("listens on", words(machine, "listen").join(" "), Tone::Plain);
    say("discovery", word(machine, "discovery"), Tone::Plain);
    say("clients", connections(json), Tone::Plain);
    say("keys", keys(machine), Tone::Plain);
    if !list(json, "tokens").is_empty() {
        say("tokens", tokens(json), Tone::Plain);
    }
    for warning in list(json, "warnings").iter().filter_map(Value::as_str) {
        say("warning", printable_whole(warning), Tone::Bad);
    }
    out
}

fn servers(json: &Value, style: Style) -> Vec<String> {
    let servers = list(json, "servers");
    if servers.is_empty() {
        return vec!["no server found yet: is ollana running on a machine with Ollama?".to_owned()];
    }
    let columns = titled("!SERVER ADDRESS STATE >TRIP OLLAMA KEY >BUSY >TOK/S >BYTES");
    let mut rows = Vec::new();
    for server in servers {
        let state = state(server);
        let tone = match state {
            State::Ready => Tone::Good,
            State::CoolingDown => Tone::Plain,
            State::Quarantined | State::OutlierEjected | State::Down => Tone::Bad,
            State::New => Tone::Faint,
        };
        let limit = figure(server, "limit").map_or(String::new(), |limit| format!("/{limit}"));
        rows.push(Row::Cells(vec![
            Cell(name(server), Tone::Bold),
            address(server).into(),
            Cell(state.label().to_owned(), tone),
            figure(server, "round_trip_ms").map_or("-".to_owned(), round_trip).into(),
            Some(word(server, "ollama")).filter(|v| !v.is_empty()).unwrap_or("-".into()).into(),
            match server["encrypted"].as_bool() {
                Some(true) => Cell("yes".to_owned(), Tone::Good),
                Some(false) => "no".into(),
                None => "-".into(),
            },
            format!("{}{limit}", number(server, "in_flight")).into(),
            speed(number(server, "tokens_per_s")).into(),
            bytes(number(server, "bytes_up") + number(server, "bytes_down")).into(),
        ]));
        if state == State::Down {
            let since = time(number(server, "since_s"));
            rows.push(Row::Note(format!("for {since}: {}", word(server, "reason")), Tone::Bad));
        }
        if server["plain"] == true {
            let note = "a plain Ollama, without ollana: no encryption, found by name only";
            rows.push(Row::Note(note.to_owned(), Tone::Faint));
        }
        let loaded = list(server, "models").iter().filter(|model| is_loaded(model));
        let loaded: Vec<String> = loaded.map(|model| word(model, "name")).collect();
        if !loaded.is_empty() {
            rows.push(Row::Note(fit_list("loaded: ", &loaded, style.width - 4), Tone::Plain));
        }
    }
    table(&columns, &rows, style)
}

pub(super) fn is_loaded(model: &Value) -> bool {
    model["loaded"] == true
}

/// The state that `/ollana/status` tells of a server.
pub(super) fn state(server: &Value) -> State {
    State::parse(&word(server, "health"), &word(server, "trust"), &word(server, "rest"))
}

/// The server's name; empty if only its address is known.
pub(super) fn name(server: &Value) -> String {
    match word(server, "origin").as_str() {
        "local" => "this machine".to_owned(),
        _ => word(server, "name"),
    }
}

/// The address in use, without the port if that is the usual one.
fn address(server: &Value) -> String {
    let address = words(server, "addresses").into_iter().next();
    let address = address.unwrap_or_else(|| word(server, "given"));
    address.strip_suffix(&format!(":{SERVER_PORT}")).unwrap_or(&address).to_owned()
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
        out.extend([gap, name]);
    }
    out
}

/// An alias and its model.
fn stands_for(alias: &Value) -> String {
    let (name, model) = (word(alias, "name"), word(alias, "model"));
    match model.as_str() {
        "" => format!("{name}: no server that is up has {}", words(alias, "models").join(" or ")),
        model => format!("{name} stands for {model}"),
    }
}

fn keys(machine: &Value) -> String {
    match (number(machine, "keys") as u64, machine["unpaired"] == true) {
        (0, true) => "none: requests cross the LAN unencrypted (ollana pair)".to_owned(),
        (0, false) => "none, and machines without one are refused (ollana pair)".to_owned(),
        (n, true) => format!("{n}; machines without one are talked to unencrypted"),
        (n, false) => format!("{n}; only machines that have one are talked to, encrypted"),
    }
}

/// The tokens and how many requests came with each.
fn tokens(json: &Value) -> String {
    let told = list(json, "tokens").iter().map(|token| {
        let last = figure(token, "last_s").map(|s| format!(", the last {} ago", time(s)));
        let (name, count) = (word(token, "name"), number(token, "requests"));
        format!("{name}: {count} requests{}", last.unwrap_or_default())
    });
    told.collect::<Vec<_>>().join("; ")
}

/// A server that was up before, and that the pool has dropped since.
fn lasting(server: &Value) -> String {
    let models = match number(server, "model_count") as u64 {
        0 => "no models",
        1 => "1 model",
        n => &format!("{n} models"),
    };
    let since = time(number(server, "since_s"));
    format!("{} since {since} ago, with {models}", word(server, "name"))
}

fn queue(json: &Value) -> String {
    let queue = &json["queue"];
    match (number(queue, "length") as u64, figure(queue, "longest_wait_s").map(time)) {
        (0, _) => "empty".to_owned(),
        (n, Some(longest)) => format!("{n} waiting, the longest for {longest}"),
        (n, None) => format!("{n} waiting"),
    }
}

/// Connections and their limits, of each proxy.
fn connections(json: &Value) -> String {
    let of = |proxy| {
        let [now, max, each] = ["now", "max", "max_per_source"].map(|of| number(proxy, of));
        format!("{now} of {max} connections, at most {each} from one address")
    };
    let proxies = list(&json["limits"], "connections");
    proxies.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn progress(transfer: &Value) -> String {
    let done = number(transfer, "done");
    // Of the first moment, nothing can be said.
    let rate = figure(transfer, "bytes_per_s").filter(|rate| *rate > 0.0);
    let rate = rate.map_or(String::new(), |rate| format!(", {}/s", bytes(rate)));
    let far = match figure(transfer, "total") {
        Some(total) => {
            let percent = (done / total.max(1.0) * 100.0).floor();
            let left =
                figure(transfer, "left_s").map_or(String::new(), |s| format!(", {}", left(s)));
            format!("{percent:.0} % of {}{}{rate}{left}", bytes(total), source(transfer))
        }
        None if done > 0.0 => format!("{}{rate}", bytes(done)),
        None => word(transfer, "state"),
    };
    let server = match transfer["is_here"] == true {
        true => "this machine".to_owned(),
        false => word(transfer, "server"),
    };
    format!("{} on {server}: {far}", fit(&word(transfer, "name"), 40)).trim_start().to_owned()
}

/// Who gives the bytes of a pull.
fn source(transfer: &Value) -> String {
    match (word(transfer, "from"), transfer["names_layers"].as_bool()) {
        _ if word(transfer, "kind") != "pull" => String::new(),
        (from, _) if !from.is_empty() => format!(", from {from}"),
        (_, Some(true)) => ", from the registry".to_owned(),
        (_, Some(false)) => ", from the registry (this kind of model can't be shared)".to_owned(),
        (_, None) => String::new(),
    }
}

/// Who gets this machine's models, and what did not have to be downloaded; nothing if there is
/// nothing to tell.
fn sharing(json: &Value) -> Option<String> {
    let (whom, shared) = (&json["machine"]["share_models"], &json["shared"]);
    let [saved, given] = ["saved_in_house", "given"].map(|of| number(shared, of));
    let whom = match word(whom, "with").as_str() {
        "" => None,
        "off" => Some("no models (--share-models off)".to_owned()),
        _ if !whom["problem"].is_null() => Some("no models, see the warning".to_owned()),
        "paired" => Some("models with paired machines".to_owned()),
        _ => Some("models with other machines".to_owned()),
    };
    let tell = |n: f64, what| (n > 0.0).then(|| format!("{} {what}", bytes(n)));
    let told = [whom, tell(saved, "not downloaded again"), tell(given, "given to others")];
    let told: Vec<String> = told.into_iter().flatten().collect();
    (!told.is_empty()).then(|| told.join(", "))
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
                "keys": 1, "unpaired": true, "share_models": {"with": "on", "problem": null}},
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
            "away": [{"id": 1, "name": "nas", "since_s": 12.0, "model_count": 3},
                {"id": null, "name": "attic", "since_s": 7800.0, "model_count": 12}],
            "transfers": [{"kind": "pull", "name": "llama3.3:70b", "server": "desktop",
                "done": 16e9, "total": 38e9, "bytes_per_s": 112e6, "left_s": 196, "from": "nas",
                "names_layers": true}],
            "shared": {"registry": 1e9, "servers": [{"name": "nas", "bytes": 42e9}],
                "saved": 1e9, "saved_in_house": 41e9, "given": 1.2e10},
            "aliases": [{"name": "fast", "model": "llama3.2:1b", "models": ["qwen3", "llama3.2:1b"]},
                {"name": "gpt-4o", "model": null, "models": ["a", "b"]}],
            "tokens": [{"name": "phone", "requests": 12, "last_s": 7800.0},
                {"name": "tv", "requests": 0, "last_s": null}],
            "warnings": ["nas is down: connection refused"],
        })
    }

    #[test]
    fn the_readme_shows_it() {
        let readme = include_str!("../../README.md");
        let shown = readme.split("$ ollana status\n").nth(1).unwrap_or_default();
        let shown = shown.split('…').next().unwrap_or_default();
        let mut json = picture();
        json["servers"][0]["models"] = json!([{"name": "llama3.2:1b", "loaded": true}]);
        json["servers"][1] = json!({"name": "nas", "addresses": ["192.168.1.5:11435"],
            "encrypted": false, "health": "down", "since_s": 12.0, "ollama": "0.13.1",
            "reason": "connection refused: nothing listens there", "bytes_down": 2.1e6});
        let said = lines(&json, Style { width: 80, is_coloured: false }).join("\n");
        assert!(said.starts_with(shown) && shown.lines().count() == 5, "{shown}\n{said}");
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

away       attic since 2 h 10 m ago, with 12 models
queue      3 waiting, the longest for 4 s
pull       llama3.3:70b on desktop: 42 % of 38 GB, from nas, 112 MB/s, 3 min
    left
sharing    models with other machines, 41 GB not downloaded again, 12 GB given
    to others
alias      fast stands for llama3.2:1b
alias      gpt-4o: no server that is up has a or b
this       laptop, client for 2 h 10 m
listens on 127.0.0.1:11434 [::1]:11434
discovery  to port 11436/udp
clients    4 of 2048 connections, at most 1024 from one address
keys       1; machines without one are talked to unencrypted
tokens     phone: 12 requests, the last 2 h 10 m ago; tv: 0 requests
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
        json["warnings"] = json!([long, "y ".repeat(200) + "end"]);
        for (width_, is_coloured) in [(80, false), (60, false), (200, false)] {
            for line in lines(&json, Style { width: width_, is_coloured }) {
                assert!(width(&line) <= width_, "{line}");
            }
        }
        let style = Style { width: 80, is_coloured: false };
        assert!(lines(&json, style).last().is_some_and(|line| line.ends_with("y end")));
        let names: Vec<String> = (0..9).map(|n| format!("model{n}")).collect();
        assert_eq!(fit_list("loaded: ", &names, 40), "loaded: model0, model1, and 7 more");
    }

    #[test]
    fn a_pull_says_where_its_bytes_come_from() {
        let mut pull = json!({"kind": "pull", "name": "m", "server": "nas", "done": 0,
            "total": 100e6, "bytes_per_s": 0, "left_s": null});
        for (names_layers, bytes_per_s, left, want) in [
            (json!(true), 0, json!(null), "m on nas: 0 % of 100 MB, from the registry"),
            (
                json!(true),
                1_000_000,
                json!(95),
                "m on nas: 0 % of 100 MB, from the registry, 1.0 MB/s, 2 min left",
            ),
            (
                json!(false),
                2_000_000,
                json!(50),
                "m on nas: 0 % of 100 MB, from the registry (this kind of model can't be shared), 2.0 MB/s, 50 s left",
            ),
            // An ollana of before.
            (json!(null), 0, json!(null), "m on nas: 0 % of 100 MB"),
        ] {
            pull["names_layers"] = names_layers;
            pull["bytes_per_s"] = bytes_per_s.into();
            pull["left_s"] = left;
            assert_eq!(progress(&pull), want);
        }
        let create = json!({"kind": "create", "name": "m", "server": "127.0.0.1:11434",
            "is_here": true, "done": 50e6,
            "total": 100e6, "bytes_per_s": 5e6, "names_layers": true});
        assert_eq!(progress(&create), "m on this machine: 50 % of 100 MB, 5.0 MB/s");
    }

    #[test]
    fn it_says_who_gets_the_models() {
        for (with, problem, given, want) in [
            (json!(null), json!(null), 0.0, None),
            (json!("on"), json!(null), 0.0, Some("models with other machines")),
            (json!("paired"), json!(null), 0.0, Some("models with paired machines")),
            (json!("off"), json!("x"), 0.0, Some("no models (--share-models off)")),
            (json!("on"), json!("x"), 0.0, Some("no models, see the warning")),
            (json!(null), json!(null), 2e9, Some("2.0 GB given to others")),
        ] {
            let state = json!({"machine": {"share_models": {"with": with, "problem": problem}},
                "shared": {"given": given}});
            assert_eq!(sharing(&state).as_deref(), want, "{state}");
        }
    }

    #[test]
    fn without_servers_it_says_what_to_do() {
        let style = Style { width: 80, is_coloured: true };
        let empty = json!({"servers": [], "machine": {}});
        assert!(lines(&empty, style)[0].contains("is ollana running"));
    }
}
