//! A network that fails: partitions, power cuts, loss, and servers that come and go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{Call, open, post, send};
use super::lan::{Host, Lan, can_filter};
use super::ollama::{Ollama, all_lines, token_line};
use super::watch::{judge, limits, takes, throughout, until};

/// A server and a client that knows it.
fn server_and_client(lan: &mut Lan) -> (Host, Ollama, Daemon, Host, Daemon) {
    let server = lan.host(&[("eth0", 0)]);
    let client = lan.host(&[("eth0", 0)]);
    let ollama = Ollama::start(&server, "gpu");
    let server_daemon = Daemon::start(&server, &["--manage", "on"]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    (server, ollama, server_daemon, client, client_daemon)
}

#[test]
fn a_partition_heals() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, _ollama, _server_daemon, client, client_daemon) = server_and_client(&mut lan);
    for (round, seconds) in [(1, 1), (2, 6)] {
        server.part("eth0");
        let down = || (client_daemon.count("server down ") == round).then_some(());
        takes("parted to out of rotation", limits::SILENT, down);
        let start = Instant::now();
        is_without_server(&client).expect("a 503");
        judge("503 while parted", start.elapsed(), limits::REFUSING);
        throughout(Duration::from_secs(seconds), || {});
        server.rejoin("eth0");
        takes("healed to first answer", limits::BACK, || works(&client));
        // It is tried before a check has told that it is back.
        let up = || (client_daemon.count("server up ") == 1 + round).then_some(());
        takes("healed to one line per edge", limits::BACK, up);
    }
}

#[test]
fn a_power_cut_ends_requests_in_an_error() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, ollama, _server_daemon, client, client_daemon) = server_and_client(&mut lan);
    ollama.release(1);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    assert_eq!(stream.line().expect("a token"), token_line("gpu", 1));
    let waiting = send(&client, "POST", "/v1/audio/transcriptions", "{}").expect("sent");
    let held = || (ollama.requests("/v1/audio/transcriptions") == 1).then_some(());
    until("the held request at Ollama", Duration::from_secs(20), held);
    server.cut_power();
    let start = Instant::now();
    let down = || (client_daemon.count("server down ") == 1).then_some(());
    takes("power cut to out of rotation", limits::SILENT, down);
    let end = stream.rest().expect_err("no clean end");
    judge("power cut to the stream's error", start.elapsed(), limits::VANISHED);
    assert!(end.starts_with("{\"error\":\""), "an error that people see: {end}");
    let answer = waiting.answer().expect("an answer");
    judge("power cut to the error of what waits", start.elapsed(), limits::VANISHED);
    // On a connection that had served before, it was tried once more, at a server that is known to be down.
    assert!(answer.is_error(502) || answer.is_error(503), "{answer:?}");
    assert!(answer.body.contains("h1"), "{answer:?}");
}

/// The server's machine lives on without its clients' streams when those have lost power.
#[test]
fn a_client_that_loses_power_frees_ollama() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (_server, ollama, _server_daemon, client, _client_daemon) = server_and_client(&mut lan);
    ollama.release(1);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    assert_eq!(stream.line().expect("a token"), token_line("gpu", 1));
    client.cut_power();
    takes("client's power cut to Ollama's socket closed", limits::VANISHED, || ollama.left());
}

#[test]
fn servers_are_found_through_a_lossy_network() {
    let Some(mut lan) = Lan::new(1) else { return };
    if !can_filter() {
        return;
    }
    let server = lan.host(&[("eth0", 0)]);
    let _ollama = Ollama::start(&server, "gpu");
    let _server_daemon = Daemon::start(&server, &[]);
    // Three in a row, then seven that pass: chance would make the test fail now and then.
    server.nft("input", "meta l4proto udp numgen inc mod 10 < 3 drop");
    for _ in 0..5 {
        let client = lan.host(&[("eth0", 0)]);
        let _client_daemon = Daemon::start(&client, &[]);
        takes("found with 30 % of the probes lost", limits::FOUND, || works(&client));
    }
}

/// Once connected, a tenth of all packets may go: slow, but nothing breaks.
#[test]
fn streams_survive_a_lossy_network() {
    let Some(mut lan) = Lan::new(1) else { return };
    if !can_filter() {
        return;
    }
    let (_server, _ollama, _server_daemon, client, mut client_daemon) = server_and_client(&mut lan);
    client.nft("input", "iifname eth0 tcp flags & syn == 0 numgen random mod 100 < 10 drop");
    for _ in 0..10 {
        let answer = post(&client, "/api/chat").expect("an answer");
        assert_eq!((answer.status, answer.body), (200, all_lines("gpu")));
    }
    client_daemon.assert_alive();
}

/// Bad Wi-Fi: what gets through without us gets through with us, and takes as long.
#[test]
fn requests_survive_a_bad_radio_link() {
    for (loss, most_failed) in [(20, 0), (30, 1)] {
        let Some(mut lan) = Lan::new(1) else { return };
        if !can_filter() {
            return;
        }
        let (server, _ollama, _server_daemon, client, mut client_daemon) =
            server_and_client(&mut lan);
        let rule = format!("iifname eth0 numgen random mod 100 < {loss} drop");
        server.nft("input", &rule);
        client.nft("input", &rule);
        let ask = |address: IpAddr, port| {
            let body = b"{\"model\":\"m\"}";
            let to = SocketAddr::new(address, port);
            let call = open(&client, to, "POST", "/api/chat", body.len());
            let sent = call.and_then(|mut call| call.upload(body).map(|()| call));
            sent.and_then(Call::answer).is_ok_and(|answer| answer.body == all_lines("gpu"))
        };
        let ways = [(IpAddr::V4(Ipv4Addr::LOCALHOST), 11434), (server.address(0).into(), 11435)];
        let failed: Vec<usize> = std::thread::scope(|scope| {
            let asks = |(address, port)| {
                scope.spawn(move || (0..12).filter(|_| !ask(address, port)).count())
            };
            let threads = ways.map(asks);
            threads.into_iter().map(|thread| thread.join().expect("asked")).collect()
        });
        let downs = client_daemon.count("server down ");
        println!(
            "{loss} % lost: of 12 {} failed, {} directly, {downs} downs",
            failed[0], failed[1]
        );
        assert!(failed[0] <= most_failed + failed[1], "{failed:?} failed, {downs} downs");
        client_daemon.assert_alive();
    }
}

/// The kernel repeats a lost SYN after a second; the only server is worth waiting for that.
#[test]
fn a_lost_handshake_is_repeated() {
    let Some(mut lan) = Lan::new(1) else { return };
    if !can_filter() {
        return;
    }
    let (server, _ollama, _server_daemon, client, client_daemon) = server_and_client(&mut lan);
    let first_syn = "tcp dport 11435 tcp flags & (syn | ack) == syn tcp sport != @seen";
    server.nft("input", &format!("{first_syn} add @seen {{ tcp sport }} drop"));
    for _ in 0..3 {
        let start = Instant::now();
        // It is never sent twice, so it gets a connection of its own.
        let answer = post(&client, "/api/pull").expect("an answer");
        judge("handshake lost to answer", start.elapsed(), limits::NEXT_AFTER_SILENCE);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(client_daemon.count("server down "), 0, "nor is it out of rotation");
}

#[test]
fn a_flapping_server_is_one_entry_and_one_line_per_edge() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, ollama, mut server_daemon, client, mut client_daemon) =
        server_and_client(&mut lan);
    let half = Duration::from_millis(500);
    let answered = |client: &Host| {
        let answer = post(client, "/api/chat").expect("an answer, whatever it is");
        assert!(answer.body == all_lines("gpu") || answer.status >= 500, "{answer:?}");
    };
    let mut edges = 1;
    for flap in 0..10 {
        if flap % 2 == 0 {
            server_daemon.kill();
        } else {
            server_daemon.signal(Signal::TERM);
            server_daemon.wait();
        }
        throughout(half, || answered(&client));
        server_daemon = Daemon::start(&server, &[]);
        throughout(half, || answered(&client));
        edges += 2;
    }
    client_daemon.assert_alive();
    // One for the edge, and perhaps one for the request that met it.
    let lines = client_daemon.count("[INFO] ") + client_daemon.count("[WARN] ");
    assert!(lines <= 2 * edges, "{lines} lines for {edges} edges");
    let ups = client_daemon.count("server up ");
    let downs = client_daemon.count("server down ");
    assert!(ups + downs <= edges, "{ups} ups and {downs} downs for {edges} edges");
    takes("flapping ended to first answer", limits::BACK, || works(&client));
    server_daemon.kill();
    assert_eq!(entries(&client), 1);
    drop(ollama);
}

/// How many servers a client knows of, none of which must be ready.
pub(crate) fn entries(client: &Host) -> usize {
    let what = "a 503 that lists the servers";
    let answer = takes(what, limits::SILENT, || {
        post(client, "/api/chat").ok().filter(|answer| answer.is_error(503))
    });
    answer.body.matches(":11435)").count()
}
