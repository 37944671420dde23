//! `ollana discover`: who answers on the LAN now, and through which interface. Needs no daemon.

use std::io;

use serde_json::{Value, json};

use super::screen;
use super::table::{Cell, Row, Style, Tone, clean, round_trip, table, titled, wrap};
use crate::cli::Tool;
use crate::discovery::scan::{Answer, Scan};
use crate::discovery::schedule::DISCOVER;
use crate::manager::pool::Notice;
use crate::net::interfaces::probed_interfaces;
use crate::net::lane::Lane;
use crate::net::untrusted_text::printable_whole;
use crate::pairing::identity::Identity;
use crate::system;

/// A lane, and why the last probe on it couldn't be sent.
type Probed<'a> = (&'a Lane, Option<String>);

pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let port = tool.settings.discovery_port;
    if port == 0 {
        return Err("--discovery-port 0 turns the discovery off".to_owned());
    }
    let keys = super::keyring(&tool.settings)?.keys();
    let failed = |error: io::Error| format!("cannot look for servers: {error}");
    let own = Identity(system::random().map_err(failed)?);
    let (lanes, mut unusable) = Lane::open_all(&probed_interfaces(&tool.settings.interfaces), port);
    if let Some((_, error)) = unusable.pop().filter(|_| lanes.is_empty()) {
        return Err(failed(error));
    }
    let mut scan = Scan::new(&lanes, own, &keys, DISCOVER);
    let mut answers: Vec<Answer> = scan.by_ref().collect();
    answers.sort_by_key(|answer| (answer.address, answer.interface.clone()));
    let errors = scan.errors.iter().map(|error| error.as_ref().map(ToString::to_string));
    let probed: Vec<Probed<'_>> = lanes.iter().zip(errors).collect();
    let is_used = |notice: &Notice| answers.iter().any(|it| it.identity == Some(notice.identity));
    let notices: Vec<Notice> = scan.notices.into_iter().filter(|it| !is_used(it)).collect();
    let text = match tool.has("json") {
        true => format!("{:#}", written(&probed, &answers, &notices)),
        false => lines(&probed, &answers, &notices, screen::style()).join("\n"),
    };
    super::print(&(text + "\n"))?;
    match (answers.is_empty(), notices.is_empty()) {
        (false, _) => Ok(()),
        (true, false) => Err("no server here can be used".to_owned()),
        (true, true) => Err("nobody answered; is ollana running in server mode there, and does a \
                             firewall let UDP 11436 and TCP 11435 through?"
            .to_owned()),
    }
}

fn written(probed: &[Probed<'_>], answers: &[Answer], notices: &[Notice]) -> Value {
    let answer = |a: &Answer| {
        json!({
            "name": a.name, "address": a.address, "interface": a.interface,
            "ollama_up": a.ollama_up, "ollama": version(a), "in_flight": a.in_flight,
            "round_trip_ms": a.round_trip.as_micros() as f64 / 1e3,
            "legacy": a.identity.is_none(),
        })
    };
    let lane = |(lane, error): &Probed<'_>| {
        let Lane { name, from, to, .. } = lane;
        json!({ "interface": name, "from": from, "to": to, "error": error })
    };
    let notice = |it: &Notice| json!({ "name": it.name, "from": it.from, "why": it.why.word() });
    json!({
        "version": 1,
        "probed": probed.iter().map(lane).collect::<Value>(),
        "servers": answers.iter().map(answer).collect::<Value>(),
        "unusable": notices.iter().map(notice).collect::<Value>(),
    })
}

fn version(answer: &Answer) -> Option<String> {
    (answer.version != Default::default()).then(|| answer.version.to_string())
}

fn lines(
    probed: &[Probed<'_>],
    answers: &[Answer],
    notices: &[Notice],
    style: Style,
) -> Vec<String> {
    let mut out = Vec::new();
    if !answers.is_empty() {
        let columns = titled("!SERVER ADDRESS THROUGH OLLAMA >BUSY >TIME");
        let row = |answer: &Answer| {
            let ollama = match (answer.identity.is_none(), answer.ollama_up) {
                (true, _) => "older ollana".into(),
                (false, false) => Cell("not running".to_owned(), Tone::Bad),
                (false, true) => Cell(version(answer).unwrap_or("up".to_owned()), Tone::Good),
            };
            let name = if answer.name.is_empty() { "-" } else { answer.name.as_str() };
            Row::Cells(vec![
                Cell(clean(name), Tone::Bold),
                answer.address.to_string().into(),
                clean(&answer.interface).into(),
                ollama,
                answer.in_flight.to_string().into(),
                round_trip(answer.round_trip.as_secs_f64() * 1e3).into(),
            ])
        };
        let rows: Vec<Row> = answers.iter().map(row).collect();
        out.extend(table(&columns, &rows, style));
        out.push(String::new());
    }
    for notice in notices {
        out.extend(wrap(&printable_whole(&notice.sentence()), style.width));
    }
    for (Lane { name, to, .. }, error) in probed {
        let told = match error {
            None => format!("probed {to} by {}", clean(name)),
            Some(why) => format!("no probe to {to} by {}: {why}", clean(name)),
        };
        out.extend(wrap(&told, style.width));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::manager::pool::Unusable;
    use crate::net::interfaces::Interface;
    use crate::ollama::version::OllamaVersion;

    #[test]
    fn answers_at_80_columns() {
        let at = |host: u8| SocketAddr::from(([192, 168, 1, host], 11435));
        let answer = |name: &str, host, ollama_up| Answer {
            identity: Some(Identity([host; 16])),
            name: name.to_owned(),
            address: at(host),
            interface: "eth0".to_owned(),
            ollama_up,
            version: OllamaVersion { major: 0, minor: 13, patch: u16::from(ollama_up) },
            in_flight: 2,
            round_trip: Duration::from_micros(840),
        };
        let mut lane = Lane::open(&Interface::loopback(), 11436).unwrap();
        (lane.name, lane.to) = ("eth0".to_owned(), "192.168.1.255:11436".parse().unwrap());
        let want = "\
SERVER   ADDRESS             THROUGH  OLLAMA       BUSY    TIME
desktop  192.168.1.20:11435  eth0     0.13.1          2  0.8 ms
n?s      192.168.1.5:11435   eth0     not running     2  0.8 ms

attic answers paired machines only: run 'ollana pair' on both
probed 192.168.1.255:11436 by eth0
no probe to 192.168.1.255:11436 by eth0: Network is down";
        let answers = [answer("desktop", 20, true), answer("n\x07s", 5, false)];
        let probed = [(&lane, None), (&lane, Some("Network is down".to_owned()))];
        let style = Style { width: 80, is_coloured: false };
        let attic = Notice {
            identity: Identity([9; 16]),
            name: "attic".to_owned(),
            from: at(9).ip(),
            why: Unusable::KeyRequired,
        };
        assert_eq!(lines(&probed, &answers, &[attic], style).join("\n"), want);
    }
}
