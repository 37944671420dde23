//! Machines that share their Ollama and use others', and clients that remember servers.

use std::time::Instant;

use rustix::process::Signal;

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{get, send};
use super::lan::{Host, Lan, can_filter};
use super::ollama::Ollama;
use super::watch::{judge, limits, takes};

/// Where Ollama is on a machine whose own port belongs to ollana.
const ASIDE: &str = "127.0.0.1:21434";

fn sharing(host: &Host, name: &str) -> (Ollama, Daemon) {
    let ollama = Ollama::listen(host, ASIDE, name);
    (ollama, Daemon::start(host, &["--mode", "both", "--ollama", ASIDE]))
}

#[test]
fn machines_share_and_use_each_others_ollama() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [one, other, client] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let (one_ollama, one_daemon) = sharing(&one, "one");
    let (other_ollama, other_daemon) = sharing(&other, "other");
    let client_daemon = Daemon::start(&client, &[]);
    for daemon in [&one_daemon, &other_daemon, &client_daemon] {
        let both = || (daemon.count("server up ") == 2).then_some(());
        takes("both found", limits::NOTICED, both);
    }
    // Two at once go to two machines, whoever asks.
    let _held = [&one, &one]
        .map(|host| send(host, "POST", "/v1/audio/transcriptions", "{}").expect("sent"));
    takes("a request at each", limits::RETRIED, || {
        let held = |ollama: &Ollama| ollama.requests("/v1/audio/transcriptions") == 1;
        (held(&one_ollama) && held(&other_ollama)).then_some(())
    });
    drop(one_ollama);
    takes("own Ollama's stop to the other's answer", limits::OLLAMA_CHANGED, || works(&one));
    drop(other_ollama);
    for host in [&one, &other, &client] {
        takes("no Ollama at all to 503", limits::SILENT, || is_without_server(host));
        let start = Instant::now();
        let answer = get(host, "/api/tags").expect("an answer");
        judge("503 without any Ollama", start.elapsed(), limits::REFUSING);
        assert!(answer.is_error(503), "{answer:?}");
    }
    let _one_ollama = Ollama::listen(&one, ASIDE, "one");
    for host in [&one, &other, &client] {
        takes("Ollama's start to first answer", limits::OLLAMA_CHANGED, || works(host));
    }
}

#[test]
fn servers_of_the_last_run_need_no_broadcast() {
    let Some(mut lan) = Lan::new(1) else { return };
    if !can_filter() {
        return;
    }
    let [server, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, "gpu");
    let _server_daemon = Daemon::start(&server, &[]);
    let mut daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    client.nft("input", "meta l4proto udp drop");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let daemon = Daemon::spawn(&client, &[]);
    takes("start to first answer without discovery", limits::FOUND, || works(&client));
    daemon.kill();
    let _daemon = Daemon::spawn(&client, &[]);
    takes("killed and started to first answer", limits::FOUND, || works(&client));
}
