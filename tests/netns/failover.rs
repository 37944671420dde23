//! Two servers, one of which fails; and an Ollama that fails behind its server.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{Call, get, open, post, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, TOKENS, all_lines, token_line};
use super::watch::{judge, limits, takes, throughout, until};

/// A server with its Ollama.
struct Server {
    host: Host,
    name: &'static str,
    ollama: Ollama,
    daemon: Daemon,
}

fn start(lan: &mut Lan, name: &'static str) -> Server {
    let host = lan.host(&[("eth0", 0)]);
    let ollama = Ollama::start(&host, name);
    let daemon = Daemon::start(&host, &["--manage", "on"]);
    Server { host, name, ollama, daemon }
}

/// Two servers and a client that knows both.
struct Pair {
    /// The one that the client uses now, for the other has a request to work on.
    used: Server,
    other: Server,
    client: Host,
    client_daemon: Daemon,
    _held: Call,
}

fn pair(lan: &mut Lan) -> Pair {
    let (one, other) = (start(lan, "one"), start(lan, "other"));
    let client = lan.host(&[("eth0", 0)]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("both found", limits::FOUND, || (client_daemon.count("server up ") == 2).then_some(()));
    let held = send(&client, "POST", "/v1/audio/transcriptions", "{}").expect("sent");
    let reached = |server: &Server| server.ollama.requests("/v1/audio/transcriptions") == 1;
    let (one_is_busy, _) = until("the held request at a server", Duration::from_secs(20), || {
        (reached(&one) || reached(&other)).then(|| reached(&one))
    });
    let (used, other) = if one_is_busy { (other, one) } else { (one, other) };
    Pair { used, other, client, client_daemon, _held: held }
}

/// The name of the server that a client uses now.
fn serving(client: &Host) -> String {
    let answer = post(client, "/v1/images/generations").expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body.trim_start_matches("{\"status\":\"").trim_end_matches("\"}").to_owned()
}

#[test]
fn requests_move_to_the_other_server() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon, _held } = pair(&mut lan);
    used.daemon.kill();
    let start = Instant::now();
    assert_eq!(serving(&client), other.name, "the very next request");
    judge("killed, next request answered", start.elapsed(), limits::NEXT_AFTER_REFUSAL);
    throughout(Duration::from_secs(1), || assert_eq!(serving(&client), other.name));
    assert_eq!(client_daemon.count("server down "), 1);
    let daemon = Daemon::start(&used.host, &[]);
    let what = "restarted to up";
    takes(what, limits::BACK, || (client_daemon.count("server up ") == 3).then_some(()));
    drop(daemon);
}

#[test]
fn an_answer_that_has_not_begun_comes_from_another_server() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon: _client, _held } = pair(&mut lan);
    used.ollama.release(0);
    other.ollama.release(0);
    let call = send(&client, "POST", "/api/chat", "{\"model\":\"m\"}").expect("sent");
    let reached = |server: &Server| (server.ollama.requests("/api/chat") == 1).then_some(());
    until("the request at the server", Duration::from_secs(20), || reached(&used));
    used.daemon.kill();
    let what = "killed before the first byte to the other server";
    let other_reached = || (other.ollama.requests("/api/chat") == 1).then_some(());
    takes(what, limits::RETRIED, other_reached);
    other.ollama.release(TOKENS);
    let answer = call.answer().expect("an answer");
    assert_eq!((answer.status, answer.body), (200, all_lines(other.name)));
    let sent = used.ollama.requests("/api/chat") + other.ollama.requests("/api/chat");
    assert_eq!(sent, 2, "once each");
}

#[test]
fn what_must_not_be_repeated_fails_once() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon: _client, _held } = pair(&mut lan);
    let mut call = open(
        &client,
        "127.0.0.1:11434".parse().expect("an address"),
        "POST",
        "/api/blobs/sha256:00",
        1_000_000,
    )
    .expect("sent");
    call.upload(&[7; 100_000]).expect("sent");
    until("the upload at the server", Duration::from_secs(20), || {
        (used.ollama.received() >= 100_000).then_some(())
    });
    used.daemon.kill();
    let start = Instant::now();
    let answer = call.answer();
    judge("killed while uploading to the error", start.elapsed(), limits::BROKEN);
    assert!(answer.as_ref().is_ok_and(|answer| answer.is_error(502)), "{answer:?}");
    assert_eq!(other.ollama.requests("/api/blobs/sha256:00"), 0, "never sent twice");
    assert_eq!(serving(&client), other.name);
}

#[test]
fn a_stream_that_breaks_off_is_an_error() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon: _client, _held } = pair(&mut lan);
    used.ollama.release(2);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    for number in 1..=2 {
        assert_eq!(stream.line().expect("a token"), token_line(used.name, number));
    }
    used.daemon.kill();
    let start = Instant::now();
    let end = stream.rest().expect_err("no clean end");
    judge("killed mid-stream to the error", start.elapsed(), limits::BROKEN);
    assert!(end.starts_with("{\"error\":\""), "an error that people see: {end}");
    assert_eq!(other.ollama.requests("/api/chat"), 0, "never retried");
    assert_eq!(post(&client, "/api/chat").expect("an answer").body, all_lines(other.name));
}

#[test]
fn a_frozen_server_loses_new_requests_and_keeps_its_stream() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon, _held } = pair(&mut lan);
    used.ollama.release(1);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    assert_eq!(stream.line().expect("a token"), token_line(used.name, 1));
    used.daemon.signal(Signal::STOP);
    let down = || (client_daemon.count("server down ") == 1).then_some(());
    takes("frozen to out of rotation", limits::SILENT, down);
    assert_eq!(serving(&client), other.name);
    used.ollama.release(TOKENS);
    used.daemon.signal(Signal::CONT);
    let up = || (client_daemon.count("server up ") == 3).then_some(());
    takes("thawed to in rotation", limits::BACK, up);
    let rest: String = (2..=TOKENS).map(|number| token_line(used.name, number)).collect();
    assert_eq!(stream.rest(), Ok(rest), "the stream is whole");
}

#[test]
fn a_server_that_swallows_connections_is_passed_over() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon, _held } = pair(&mut lan);
    let address = format!("{}/24", used.host.address(0));
    used.host.ip(&["address", "delete", &address, "dev", "eth0"]);
    let start = Instant::now();
    // Pulls get a connection of their own, which hangs; chats may meet an old one.
    let answer = post(&client, "/api/pull").expect("an answer");
    judge("swallowed to the next server's answer", start.elapsed(), limits::NEXT_AFTER_SILENCE);
    assert!(answer.status == 200 && answer.body.contains(other.name), "{answer:?}");
    let down = || (client_daemon.count("server down ") == 1).then_some(());
    takes("swallowing to out of rotation", limits::SILENT, down);
    throughout(Duration::from_secs(1), || assert_eq!(serving(&client), other.name));
}

#[test]
fn a_request_on_an_old_connection_to_a_vanished_server_is_rescued() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Pair { used, other, client, client_daemon: _client, _held } = pair(&mut lan);
    // Leaves a connection to the server behind, for the next chat.
    assert_eq!(post(&client, "/api/chat").expect("an answer").body, all_lines(used.name));
    used.host.part("eth0");
    let start = Instant::now();
    let answer = post(&client, "/api/chat").expect("an answer");
    judge("vanished to the other server's answer", start.elapsed(), limits::NEXT_AFTER_STALE);
    assert_eq!((answer.status, answer.body), (200, all_lines(other.name)));
}

#[test]
fn ollama_stops_and_starts_behind_its_server() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [host, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let mut ollama = Ollama::start(&host, "gpu");
    // Left to itself, it might take the port of an Ollama that stays away for too long.
    let mut daemon = Daemon::start(&host, &["--mode", "server"]);
    let mut client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    for round in 1..=3 {
        ollama.release(1);
        let call = send(&client, "POST", "/api/chat", "{}").expect("sent");
        let mut stream = call.head().expect("head");
        assert_eq!(stream.line().expect("a token"), token_line("gpu", 1));
        drop(ollama);
        let stopped = Instant::now();
        let end = stream.rest().expect_err("no clean end");
        judge("Ollama's death to the stream's error", stopped.elapsed(), limits::BROKEN);
        assert!(end.starts_with("{\"error\":\""), "an error that people see: {end}");
        let answer = get(&client, "/api/tags").expect("an answer");
        assert!(answer.status >= 500 && answer.body.starts_with("{\"error\":"), "{answer:?}");
        takes("Ollama's stop to 503", limits::OLLAMA_CHANGED, || is_without_server(&client));
        let what = "Ollama's stop to out of rotation";
        let down = || (client_daemon.count("server down ") == round).then_some(());
        takes(what, limits::OLLAMA_CHANGED, down);
        // Long enough for the checks to become rare.
        throughout(Duration::from_secs(2), || {});
        ollama = Ollama::start(&host, "gpu");
        takes("Ollama's start to first answer", limits::OLLAMA_CHANGED, || works(&client));
    }
    daemon.assert_alive();
    client_daemon.assert_alive();
}
