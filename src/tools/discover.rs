//! `ollana discover`: who answers on the LAN now, and through which interface. Needs no daemon.

use serde_json::{Value, json};

use super::screen;
use super::table::{Align, Cell, Row, Style, Tone, clean, round_trip, table, wrap};
use crate::cli::Tool;
use crate::discovery::{Answer, Way, scan};

/// Looks around once and prints who answered.
///
/// # Errors
/// When nobody did.
pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let port = match tool.settings.discovery_port {
        0 => return Err("--discovery-port 0 turns the discovery off".to_owned()),
        port => port,
    };
    let keys = super::keyring(&tool.settings).map_err(|error| error.to_string())?.keys();
    let (ways, answers) = scan(port, &tool.settings.interfaces, &keys)
        .map_err(|error| format!("cannot look for servers: {error}"))?;
    let text = match tool.has("json") {
        true => format!("{:#}\n", written(&ways, &answers)),
        false => format!("{}\n", lines(&ways, &answers, screen::style()).join("\n")),
    };
    super::print(&text)?;
    match answers.is_empty() {
        true => Err("nobody answered; is ollana running in server mode there, and does a \
                     firewall let UDP 11436 and TCP 11435 through?"
            .to_owned()),
        false => Ok(()),
    }
}

fn written(ways: &[Way], answers: &[Answer]) -> Value {
    let answers: Vec<Value> = answers
        .iter()
        .map(|a| {
            json!({
                "name": a.name, "address": a.address, "interface": a.interface,
                "ollama_up": a.ollama_up, "ollama": version(a), "in_flight": a.in_flight,
                "round_trip_ms": a.time.as_micros() as f64 / 1e3, "legacy": a.is_legacy,
            })
        })
        .collect();
    let ways: Vec<Value> = ways
        .iter()
        .map(|w| json!({ "interface": w.name, "from": w.from, "to": w.to, "error": w.error }))
        .collect();
    json!({ "version": 1, "probed": ways, "servers": answers })
}

fn version(answer: &Answer) -> Option<String> {
    let version = answer.version;
    let known = version != Default::default();
    known.then(|| version.to_string())
}

fn lines(ways: &[Way], answers: &[Answer], style: Style) -> Vec<String> {
    let mut out = Vec::new();
    if !answers.is_empty() {
        let columns = [
            ("SERVER", Align::Left),
            ("ADDRESS", Align::Left),
            ("THROUGH", Align::Left),
            ("OLLAMA", Align::Left),
            ("BUSY", Align::Right),
            ("TIME", Align::Right),
        ];
        let row = |answer: &Answer| {
            let (ollama, tone) = match (answer.is_legacy, answer.ollama_up) {
                (true, _) => ("older ollana".to_owned(), Tone::Plain),
                (false, false) => ("not running".to_owned(), Tone::Bad),
                (false, true) => (version(answer).unwrap_or("up".to_owned()), Tone::Good),
            };
            let name = if answer.name.is_empty() { "-" } else { answer.name.as_str() };
            Row::Cells(vec![
                Cell { text: clean(name), tone: Tone::Bold },
                answer.address.to_string().into(),
                clean(&answer.interface).into(),
                Cell { text: ollama, tone },
                answer.in_flight.to_string().into(),
                round_trip(answer.time.as_secs_f64() * 1e3).into(),
            ])
        };
        let rows: Vec<Row> = answers.iter().map(row).collect();
        out.extend(table(&columns, &rows, style));
        out.push(String::new());
    }
    for way in ways {
        let told = match &way.error {
            None => format!("probed {} by {}", way.to, clean(&way.name)),
            Some(why) => format!("no probe to {} by {}: {why}", way.to, clean(&way.name)),
        };
        out.extend(wrap(&told, style.width));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;
    use crate::ollama::version::OllamaVersion;

    #[test]
    fn answers_at_80_columns() {
        let at = |host: u8| SocketAddr::from(([192, 168, 1, host], 11435));
        let answer = |name: &str, host, ollama_up| Answer {
            name: name.to_owned(),
            address: at(host),
            interface: "eth0".to_owned(),
            ollama_up,
            version: OllamaVersion { major: 0, minor: 13, patch: u16::from(ollama_up) },
            in_flight: 2,
            time: Duration::from_micros(840),
            is_legacy: false,
        };
        let way = |error: Option<&str>| Way {
            name: "eth0".to_owned(),
            from: Ipv4Addr::new(192, 168, 1, 2),
            to: SocketAddr::from(([192, 168, 1, 255], 11436)),
            error: error.map(str::to_owned),
        };
        let want = "\
SERVER   ADDRESS             THROUGH  OLLAMA       BUSY    TIME
desktop  192.168.1.20:11435  eth0     0.13.1          2  0.8 ms
n?s      192.168.1.5:11435   eth0     not running     2  0.8 ms

probed 192.168.1.255:11436 by eth0
no probe to 192.168.1.255:11436 by eth0: Network is down";
        let answers = [answer("desktop", 20, true), answer("n\x07s", 5, false)];
        let ways = [way(None), way(Some("Network is down"))];
        let style = Style { width: 80, is_coloured: false };
        assert_eq!(lines(&ways, &answers, style).join("\n"), want);
    }
}
