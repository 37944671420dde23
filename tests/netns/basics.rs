//! Finding a server and losing it: what everybody sees who runs `ollana` and nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;

use super::daemon::Daemon;
use super::http::{get, open, post, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, TOKENS, all_lines, token_line};
use super::watch::{judge, limits, takes, throughout, until};

/// Whether a client's request is answered by an Ollama.
pub(crate) fn works(client: &Host) -> Option<()> {
    get(client, "/api/tags").ok().filter(|answer| answer.status == 200).map(|_| ())
}

/// Whether a client says by itself that there is no server.
pub(crate) fn is_without_server(client: &Host) -> Option<()> {
    get(client, "/api/tags").ok().filter(|answer| answer.is_error(503)).map(|_| ())
}

#[test]
fn clients_find_the_server_and_stream() {
    let Some(mut lan) = Lan::new(1) else { return };
    let server = lan.host(&[("eth0", 0)]);
    let clients = [lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)])];
    let ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &[]);
    for client in &clients {
        let daemon = Daemon::spawn(client, &[]);
        takes("start to first answer", limits::FOUND, || works(client));
        // Answers may come before their lines in the log.
        daemon.wait_for("] ready mode=client");
        for address in ["127.0.0.1:11434", "[::1]:11434"] {
            ollama.release(1);
            let address: SocketAddr = address.parse().expect("an address");
            let mut call = open(client, address, "POST", "/api/chat", 2).expect("connected");
            call.upload(b"{}").expect("sent");
            let mut stream = call.head().expect("an answer");
            assert_eq!(stream.status, 200);
            assert_eq!(stream.field("content-type"), Some("application/x-ndjson"));
            for number in 1..=TOKENS {
                let line = stream.line().expect("a token");
                assert_eq!(line, token_line("gpu", number), "through {address}");
                // Only now that the client has it may the next one go.
                ollama.release(number + 1);
            }
            assert_eq!(stream.rest(), Ok(String::new()), "a clean end");
        }
    }
    assert_eq!(ollama.requests("/api/chat"), 4);
}

#[test]
fn a_server_that_starts_later_is_found() {
    let Some(mut lan) = Lan::new(1) else { return };
    let server = lan.host(&[("eth0", 0)]);
    let client = lan.host(&[("eth0", 0)]);
    let _client = Daemon::start(&client, &[]);
    let answer = get(&client, "/api/tags").expect("an answer without any server");
    assert!(answer.is_error(503), "{answer:?}");
    let answer = get(&client, "/v1/models").expect("an answer without any server");
    assert!(answer.status == 503 && answer.body.contains("\"message\""), "{answer:?}");
    let _ollama = Ollama::start(&server, "gpu");
    // Past the burst of probes at the client's start.
    throughout(Duration::from_millis(1300), || {});
    let _server = Daemon::start(&server, &[]);
    takes("server's start to first answer", limits::NOTICED, || works(&client));
}

#[test]
fn a_client_says_once_why_it_finds_nobody() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (alone, cut_off) = (lan.host(&[("eth0", 0)]), lan.host(&[]));
    let (silent, server) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    for (host, args, why) in [
        (&alone, &[][..], "nobody answered on eth0; does ollana run on the machine with Ollama"),
        (&cut_off, &[], "no interface can broadcast; is this machine on a network?"),
        (&silent, &["--discovery-port", "0"], "the discovery is off, and there is no --server"),
    ] {
        let daemon = Daemon::start(host, args);
        daemon.wait_for(&format!("no server found in 5 s: {why}"));
        daemon.wait_for("ollana doctor says more");
        throughout(Duration::from_millis(1300), || {});
        assert_eq!(daemon.count("no server found"), 1);
    }
    let args = ["--server", &server.address(0).to_string()];
    Daemon::start(&silent, &args).wait_for("no server found in 5 s: no Ollama server is ready (");
    let _ollama = Ollama::start(&server, "gpu");
    let daemon = Daemon::start(&server, &[]);
    throughout(Duration::from_millis(6500), || {});
    assert_eq!(daemon.count("no server found"), 0, "a server looks for none");
}

#[test]
fn a_killed_server_is_used_again_when_it_is_back() {
    let Some(mut lan) = Lan::new(1) else { return };
    let server = lan.host(&[("eth0", 0)]);
    let client = lan.host(&[("eth0", 0)]);
    let _ollama = Ollama::start(&server, "gpu");
    let mut daemon = Daemon::start(&server, &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    for round in 1..=2 {
        daemon.kill();
        takes("killed to 503", limits::REFUSING, || is_without_server(&client));
        daemon = Daemon::start(&server, &[]);
        takes("restarted to first answer", limits::BACK, || works(&client));
        // A request is tried before a check has passed.
        let up = || (client_daemon.count("server up ") == 1 + round).then_some(());
        takes("restarted to one line per edge", limits::BACK, up);
        assert_eq!(client_daemon.count("server down "), round, "one line per edge");
    }
}

#[test]
fn a_server_that_stops_says_goodbye_and_finishes_its_streams() {
    let Some(mut lan) = Lan::new(1) else { return };
    let server = lan.host(&[("eth0", 0)]);
    let client = lan.host(&[("eth0", 0)]);
    let ollama = Ollama::start(&server, "gpu");
    let mut daemon = Daemon::start(&server, &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    ollama.release(1);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    assert_eq!(stream.line().expect("a token"), token_line("gpu", 1));
    daemon.signal(Signal::TERM);
    let ((), took) = until("server down", limits::SILENT, || {
        (client_daemon.count("server down ") == 1).then_some(())
    });
    judge("SIGTERM to out of rotation", took, limits::BROKEN);
    takes("SIGTERM to 503", limits::REFUSING, || is_without_server(&client));
    ollama.release(TOKENS);
    let rest: String = (2..=TOKENS).map(|number| token_line("gpu", number)).collect();
    assert_eq!(stream.rest(), Ok(rest), "streams finish");
    assert!(daemon.wait().success());
    let _daemon = Daemon::start(&server, &[]);
    takes("restarted to first answer", limits::BACK, || works(&client));
    // A list may come before the check that makes it one for chats.
    let up = || (client_daemon.count("server up ") >= 2).then_some(());
    takes("restarted to in rotation", limits::BACK, up);
    assert_eq!(post(&client, "/api/chat").expect("an answer").body, all_lines("gpu"));
}
