//! Clients that leave: Ollama must not go on working for nobody.

use std::time::{Duration, Instant};

use super::basics::works;
use super::daemon::Daemon;
use super::http::{open, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, token_line};
use super::watch::{judge, limits, takes, until};

struct Setting {
    ollama: Ollama,
    client: Host,
    _daemons: [Daemon; 2],
}

fn setting(lan: &mut Lan) -> Setting {
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let ollama = Ollama::start(&server, "gpu");
    let daemons = [Daemon::start(&server, &["--manage", "on"]), Daemon::start(&client, &[])];
    takes("found", limits::FOUND, || works(&client));
    Setting { ollama, client, _daemons: daemons }
}

/// Waits until Ollama's socket is closed and judges how long that took since `start`.
pub(super) fn closed(ollama: &Ollama, what: &str, start: Instant) {
    let (left, _) = until(what, Duration::from_secs(20), || ollama.left().filter(|at| *at > start));
    judge(what, left - start, limits::HUNG_UP);
}

#[test]
fn while_waiting_for_the_first_token() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { ollama, client, _daemons } = setting(&mut lan);
    ollama.release(0);
    for round in 1..=3 {
        let call = send(&client, "POST", "/api/chat", "{}").expect("sent");
        let reached = || (ollama.requests("/api/chat") == round).then_some(());
        until("the request at Ollama", Duration::from_secs(20), reached);
        let start = Instant::now();
        call.hang_up();
        closed(&ollama, "hang-up while waiting", start);
    }
}

#[test]
fn while_streaming() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { ollama, client, _daemons } = setting(&mut lan);
    ollama.release(1);
    for _ in 0..3 {
        let call = send(&client, "POST", "/api/chat", "{}").expect("sent");
        let mut stream = call.head().expect("an answer");
        assert_eq!(stream.line().expect("a token"), token_line("gpu", 1));
        let start = Instant::now();
        stream.hang_up();
        closed(&ollama, "hang-up while streaming", start);
    }
}

#[test]
fn while_uploading() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { ollama, client, _daemons } = setting(&mut lan);
    let address = "127.0.0.1:11434".parse().expect("an address");
    for round in 1..=3 {
        let target = "/api/blobs/sha256:00";
        let mut call = open(&client, address, "POST", target, 50_000_000).expect("sent");
        call.upload(&[7; 1_000_000]).expect("sent");
        let arrived = || (ollama.received() >= round * 900_000).then_some(());
        until("the upload at Ollama", Duration::from_secs(20), arrived);
        let start = Instant::now();
        call.hang_up();
        closed(&ollama, "hang-up while uploading", start);
    }
}
