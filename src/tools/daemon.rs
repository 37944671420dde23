//! Finds the running daemon and asks it for its state.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use super::table::list;
use crate::config::{OLLAMA_PORT, POOLED_PORT, SERVER_PORT, Settings};
use crate::upstream;

/// Addresses where a daemon with these settings may listen.
pub(super) fn places(settings: &Settings) -> Vec<SocketAddr> {
    if settings.listen.is_empty() && settings.share.is_empty() {
        let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        return [OLLAMA_PORT, POOLED_PORT, SERVER_PORT].map(here).to_vec();
    }
    settings.listen.iter().chain(&settings.share).copied().map(reached).collect()
}

/// Where the daemon of this state listens.
pub(super) fn listens(state: &Value) -> Vec<SocketAddr> {
    let told = list(&state["machine"], "listen").iter();
    told.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// Where a program that listens on this address is reached on its own machine.
pub(super) fn reached(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

/// Asks the daemon for the JSON at `target`; the error is a sentence.
pub(super) fn state(settings: &Settings, target: &str) -> Result<(SocketAddr, Value), String> {
    let places = places(settings);
    let (mut refusal, mut other) = (None, String::new());
    for address in &places {
        let (status, text) = match upstream::fetch(&settings.timing, *address, target) {
            Ok(answer) => answer,
            Err(error) => {
                if error.kind() == ErrorKind::TimedOut {
                    other = format!("; {address} doesn't answer in time");
                }
                continue;
            }
        };
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        if status == 200 && json.get("version") == Some(&Value::from(1)) {
            return Ok((*address, json));
        }
        let why = json.get("error").and_then(Value::as_str).map(super::table::clean);
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        let answers = format!("{address} answers {status}{why}");
        match status {
            403 => refusal = Some(answers),
            // What isn't ours has no such path.
            200 | 404 => {}
            _ => other = format!("; {answers}"),
        }
    }
    let places: Vec<String> = places.iter().map(ToString::to_string).collect();
    Err(refusal.unwrap_or_else(|| {
        let asked = places.join(", ") + &other;
        // It may be too busy.
        let none = if other.is_empty() { "no ollana runs" } else { "no ollana answers" };
        match super::keyring(settings) {
            Err(error) if super::state_dir(settings).is_ok() => {
                format!("{none} on this machine (asked {asked}), and none would: {error}")
            }
            _ => format!(
                "{none} on this machine (asked {asked}); start it with: ollana, \
                 or say where it is with --listen"
            ),
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_answer_that_refuses_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings { listen: vec![address], ..Settings::default() };
        for (head, body, want) in [
            ("503 x", "{\"error\":\"too many connections\"}", "503: too many connections"),
            ("502 x", "<html>", "502"),
            ("401 x", "", "401"),
        ] {
            let length = body.len();
            let answer = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{body}");
            let error = thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _ = stream.read(&mut [0; 4096]).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                state(&settings, "/ollana/status").unwrap_err()
            });
            let want = format!(
                "no ollana answers on this machine (asked {address}; {address} answers {want});"
            );
            assert!(error.starts_with(&want), "{error}");
        }
        // Nobody accepts: the system does, and no answer comes.
        let error = state(&settings, "/ollana/status").unwrap_err();
        assert!(error.contains(&format!("; {address} doesn't answer in time);")), "{error}");
    }

    #[test]
    fn it_is_looked_for_where_it_listens() {
        let text = |settings: &Settings| -> Vec<String> {
            places(settings).iter().map(ToString::to_string).collect()
        };
        let mut settings = Settings::default();
        assert_eq!(text(&settings), ["127.0.0.1:11434", "127.0.0.1:11437", "127.0.0.1:11435"]);
        settings.listen = ["0.0.0.0:7", "[::]:8", "10.0.0.1:9"].map(|a| a.parse().unwrap()).into();
        assert_eq!(text(&settings), ["127.0.0.1:7", "[::1]:8", "10.0.0.1:9"]);
    }
}
