//! `ollana models`: which server has which model, and how fast it is there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::status::{self, is_loaded, name};
use super::table::{
    Cell, Row, Style, Tone, bytes, figure, list, number, speed, table, time, titled, word, wrap,
};
use super::{daemon, screen};
use crate::cli::Tool;
use crate::ollama::model_name::ModelName;

pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let (_, state) = daemon::state(&tool.settings, "/ollana/status")?;
    if tool.has("json") {
        let place = |(server, model): &(&Value, &Value)| {
            let mut place = (*model).clone();
            place["server"] = server["name"].clone();
            place["health"] = server.get("health").cloned().unwrap_or_else(|| AWAY.into());
            place["since_s"] = server["since_s"].clone();
            place
        };
        let model = |places: &Places<'_>| {
            let servers: Value = places.iter().map(place).collect();
            json!({ "name": label(places), "versions": versions(places), "servers": servers })
        };
        let models: Value = by_model(&state).values().map(model).collect();
        return super::print(&format!("{:#}\n", json!({ "version": 1, "models": models })));
    }
    super::print(&format!("{}\n", lines(&state, screen::style()).join("\n")))
}

/// In JSON, the health of a server that was up before and can't be used now.
const AWAY: &str = "away";

/// The servers that have a model, and its entry in each one's list.
type Places<'a> = Vec<(&'a Value, &'a Value)>;

/// Characters of a digest that are shown, as `ollama list` does.
const DIGEST: usize = 12;

fn by_model(state: &Value) -> BTreeMap<String, Places<'_>> {
    let away = list(state, "away");
    // What is remembered of a server that is down says since when, too.
    let is_told =
        |server: &&Value| !away.iter().any(|it| it["id"].is_u64() && it["id"] == server["id"]);
    let mut models: BTreeMap<String, Places<'_>> = BTreeMap::new();
    for server in list(state, "servers").iter().filter(is_told).chain(away) {
        for model in list(server, "models") {
            let label = word(model, "name");
            // Programs may write one name in several ways.
            let name = ModelName::parse(&label).map_or(label, |name| name.as_str().to_owned());
            models.entry(name).or_default().push((server, model));
        }
    }
    models
}

/// The name as the first of the servers writes it.
fn label(places: &Places<'_>) -> String {
    places.first().map_or(String::new(), |(_, model)| word(model, "name"))
}

/// Which version of the model it is, where servers have several: the newest one is what programs
/// see in their lists.
fn version(server: &Value, facts: &Value) -> String {
    let digest: String = word(facts, "digest").chars().take(DIGEST).collect();
    let modified: String =
        word(facts, "modified_at").chars().take("2026-08-20T10:11".len()).collect();
    format!("on {}: {digest}, modified {}", name(server), modified.replace('T', " "))
}

/// Whether it is the version that the first server has, as far as digests tell.
fn compared(facts: &Value, first: &Value) -> &'static str {
    match [facts, first].map(|facts| word(facts, "digest")) {
        [one, other] if one.is_empty() || other.is_empty() => "",
        [one, other] if one == other => "same version",
        _ => "other version",
    }
}

/// Each version of a model, and the servers that have it, in JSON; none as long as no digest is known.
fn versions(places: &Places<'_>) -> Value {
    let mut versions: Vec<(String, Vec<&Value>)> = Vec::new();
    for (server, facts) in places {
        let digest = word(facts, "digest");
        let name = &server["name"];
        match versions.iter_mut().find(|(known, _)| *known == digest) {
            Some((_, servers)) => servers.push(name),
            None if digest.is_empty() => {}
            None => versions.push((digest, vec![name])),
        }
    }
    let version =
        |(digest, servers): &(String, Vec<&Value>)| json!({ "digest": digest, "servers": servers });
    versions.iter().map(version).collect()
}

fn has_versions(places: &Places<'_>) -> bool {
    let digests = places.iter().map(|(_, facts)| word(facts, "digest"));
    let mut digests = digests.filter(|digest| !digest.is_empty());
    let first = digests.next();
    digests.any(|digest| Some(digest) != first)
}

fn lines(state: &Value, style: Style) -> Vec<String> {
    let models = by_model(state);
    if models.is_empty() {
        return why_none(state).iter().flat_map(|line| wrap(line, style.width)).collect();
    }
    let columns = titled("!MODEL SERVER >SIZE STATE >TOK/S");
    let mut rows = Vec::new();
    for places in models.values() {
        for (at, (server, facts)) in places.iter().enumerate() {
            let is_away = server.get("health").is_none();
            let state = match (status::state(server).is_up(), is_loaded(facts)) {
                _ if is_away => Cell(away_for(server), Tone::Bad),
                (false, _) => Cell("server down".to_owned(), Tone::Bad),
                (true, true) => Cell(loaded(facts), Tone::Good),
                (true, false) => "on disk".into(),
            };
            let title = match at {
                0 => Cell(label(places), Tone::Bold),
                _ => Cell(compared(facts, places[0].1).to_owned(), Tone::Faint),
            };
            rows.push(Row::Cells(vec![
                title,
                name(server).into(),
                figure(facts, "size").map_or("-".to_owned(), bytes).into(),
                state,
                speed(number(facts, "tokens_per_s")).into(),
            ]));
        }
        if has_versions(places) {
            let notes = places.iter().map(|(server, facts)| version(server, facts));
            rows.extend(notes.map(|note| Row::Note(note, Tone::Faint)));
        }
    }
    table(&columns, &rows, style)
}

/// Why no model is known; that there is none, only a server can say.
fn why_none(state: &Value) -> Vec<String> {
    let servers = list(state, "servers");
    if servers.is_empty() && list(state, "away").is_empty() {
        return vec!["no server found yet, so there are no models".to_owned()];
    }
    let up: Vec<&Value> = servers.iter().filter(|server| status::state(server).is_up()).collect();
    if up.is_empty() {
        return vec!["no server is up, so no models are known: ollana status".to_owned()];
    }
    let unknown = up.iter().filter_map(|server| match word(server, "models_problem") {
        problem if !problem.is_empty() => Some(format!("{}: {problem}", name(server))),
        _ if server["models"].is_null() => {
            Some(format!("{} has not told yet which models it has", name(server)))
        }
        _ => None,
    });
    let unknown: Vec<String> = unknown.collect();
    match unknown.is_empty() {
        true => {
            vec!["no server that is up has a model; get one with: ollama pull llama3.2".to_owned()]
        }
        false => unknown,
    }
}

fn away_for(server: &Value) -> String {
    format!("away for {}", time(number(server, "since_s")))
}

/// How much of a loaded model is on the GPU, if that is known.
fn loaded(facts: &Value) -> String {
    match (figure(facts, "size_vram"), figure(facts, "size_loaded")) {
        (Some(on_card), Some(all)) if all > 0.0 => {
            format!("loaded, {:.0} % on GPU", (on_card / all * 100.0).min(100.0))
        }
        _ => "loaded".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_at_80_columns() {
        let state = json!({"servers": [
            {"name": "desktop", "origin": "discovered", "health": "ready", "models": [
                {"name": "llama3.2:1b", "size": 1.3e9, "loaded": true, "size_vram": 15e8,
                 "digest": "4c27", "size_loaded": 2e9, "tokens_per_s": 98.21},
                {"name": "qwen3:8b", "size": 5.2e9, "loaded": false}]},
            {"name": "nas", "origin": "named", "health": "down", "models": [
                {"name": "llama3.2:1b", "size": 1.3e9, "loaded": false, "tokens_per_s": 7.0,
                 "digest": "4c27"}]},
            {"id": 7, "name": "workshop", "origin": "named", "health": "down", "models": null},
        ], "away": [
            {"id": 7, "name": "workshop", "since_s": 7800.0, "models": [
                {"name": "gemma3:27b", "size": 17.4e9, "loaded": false}]},
            {"id": null, "name": "attic", "since_s": 273600.0, "models": [
                {"name": "qwen3:8b", "size": 5.2e9, "loaded": false}]},
        ]});
        let want = "\
MODEL        SERVER     SIZE  STATE             TOK/S
gemma3:27b   workshop  17 GB  away for 2 h 10 m  -
llama3.2:1b  desktop  1.3 GB  loaded, 75 % on GPU   98.2
same version nas      1.3 GB  server down            7.0
qwen3:8b     desktop  5.2 GB  on disk                  -
             attic    5.2 GB  away for 3 d 4 h   -";
        let style = Style { width: 80, is_coloured: false };
        let got = lines(&state, style).join("\n");
        let squeeze = |text: &str| {
            text.lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(squeeze(&got), squeeze(want), "\n{got}");
        assert!(lines(&json!({}), style)[0].contains("no server"));
    }

    #[test]
    fn without_models_it_is_told_why() {
        let server = |health: &str, models: Value, problem: Value| {
            let mut server = json!({"name": health, "health": health, "models": models});
            server["models_problem"] = problem;
            server
        };
        let style = Style { width: 80, is_coloured: false };
        let down = server("down", Value::Null, Value::Null);
        let empty = server("ready", json!([]), Value::Null);
        let unknown = server("ready", Value::Null, Value::Null);
        let broken = server("ready", Value::Null, json!("/api/tags: no JSON"));
        for (servers, want) in [
            (json!([]), "no server found yet"),
            (json!([down]), "no server is up, so no models are known"),
            (json!([server("new", Value::Null, Value::Null)]), "no server is up, so"),
            (json!([empty, down]), "no server that is up has a model; get one with"),
            (json!([empty, unknown]), "ready has not told yet which models it has"),
            (json!([empty, broken]), "ready: /api/tags: no JSON"),
            (json!([server("ready", json!([]), json!("cut"))]), "ready: cut"),
        ] {
            let said = lines(&json!({ "servers": servers }), style);
            assert!(said.join("\n").starts_with(want) && said.len() == 1, "{servers}: {said:?}");
        }
        let away = json!({ "away": [{ "name": "attic", "models": [] }] });
        assert!(lines(&away, style)[0].contains("no server is up"));
    }

    #[test]
    fn versions_of_a_model_are_told_apart() {
        let model = |name: &str, digest: char, day| {
            json!({"name": name, "size": 1.3e9, "loaded": false, "digest": digest.to_string().repeat(64),
                "modified_at": format!("2026-08-{day}T10:11:12.5+02:00")})
        };
        let server =
            |name: &str, models: Value| json!({"name": name, "health": "ready", "models": models});
        let state = json!({"servers": [
            server("desktop", json!([model("Alpha:latest", 'a', 20), model("beta:1b", 'c', 20)])),
            server("nas", json!([model("alpha", 'b', 21), model("beta:1b", 'c', 21)])),
            server("attic", json!([model("alpha", 'a', 22)])),
        ]});
        let of = |name: &str| versions(&by_model(&state)[name]);
        let digest = |digit: char| digit.to_string().repeat(64);
        let want = json!([
            { "digest": digest('a'), "servers": ["desktop", "attic"] },
            { "digest": digest('b'), "servers": ["nas"] },
        ]);
        assert_eq!(of("alpha:latest"), want);
        assert_eq!(
            of("beta:1b"),
            json!([{ "digest": digest('c'), "servers": ["desktop", "nas"] }])
        );
        let style = Style { width: 80, is_coloured: false };
        let text = lines(&state, style).join("\n");
        for line in [
            "    on desktop: aaaaaaaaaaaa, modified 2026-08-20 10:11",
            "    on nas: bbbbbbbbbbbb, modified 2026-08-21 10:11",
        ] {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
        assert_eq!(text.matches("lpha").count(), 1, "{text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("GB")).collect();
        for (row, start) in [
            (0, "Alpha:latest   desktop "),
            (1, "other version  nas "),
            (2, "same version   attic "),
            (4, "same version   nas "),
        ] {
            assert!(rows[row].starts_with(start), "{text}");
        }
        assert!(!text.contains("cccc") && text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
