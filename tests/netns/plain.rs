//! PCs with an Ollama and no ollana, named by the user: which port it is, is found by itself.

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::doctor::{assert_says, complaints, doctor};
use super::http::get;
use super::lan::{Host, Lan};
use super::ollama::Ollama;
use super::watch::{limits, takes};

const ANYWHERE: &str = "0.0.0.0:11434";

/// The first server of the state.
fn server(host: &Host) -> serde_json::Value {
    let answer = get(host, "/ollana/status").expect("the state");
    let state: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    state["servers"][0].clone()
}

#[test]
fn a_name_is_enough() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [pc, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let ollama = Ollama::listen(&pc, ANYWHERE, "gpu");
    let address = pc.address(0).to_string();
    let _client = Daemon::start(&client, &["--server", &address]);
    takes("found on Ollama's port", limits::FOUND, || works(&client));
    let plain = server(&client);
    assert_eq!((&plain["name"], &plain["plain"]), (&address.as_str().into(), &true.into()));
    assert_eq!(plain["addresses"][0], format!("{address}:11434"));
    for args in [&["--server", &address][..], &[]] {
        let (code, findings) = doctor(&client, args);
        assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
        assert_says(&findings, "ok servers", "a plain Ollama");
        assert_says(&findings, "ok servers", "without ollana: no encryption, found by name only");
        assert!(!findings.iter().any(|finding| finding.contains("11436/udp")), "{findings:#?}");
    }
    // Where there is an ollana, that is used, and no longer than that.
    let daemon = Daemon::start(&pc, &["--mode", "server"]);
    takes("ollana is preferred", limits::MOVED, || {
        let now = server(&client);
        (now["plain"] == false && now["addresses"][0] == format!("{address}:11435")).then_some(())
    });
    drop(daemon);
    takes("ollana is gone", limits::MOVED, || {
        let now = server(&client);
        (now["health"] == "ready" && now["addresses"][0] == format!("{address}:11434"))
            .then_some(())
    });
    drop(ollama);
    takes("nothing is there", limits::SILENT, || is_without_server(&client));
    let reason = server(&client)["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("refused, and so on port 11434"), "{reason}");
    let (code, findings) = doctor(&client, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong servers", "is on, but neither ollana nor an open Ollama runs");
}

/// As on a PC whose firewall drops what it doesn't know.
#[test]
fn a_port_that_says_nothing_does_not_hide_the_other() {
    if !super::lan::can_filter() {
        return;
    }
    let Some(mut lan) = Lan::new(1) else { return };
    let [pc, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::listen(&pc, ANYWHERE, "gpu");
    pc.nft("input", "iifname eth0 tcp dport 11435 drop");
    let address = pc.address(0).to_string();
    let _client = Daemon::start(&client, &["--server", &address, "--discovery-port", "0"]);
    takes("found on Ollama's port", limits::FOUND, || works(&client));
    assert_eq!(server(&client)["plain"], true);
}

#[test]
fn over_ipv6_alone() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [pc, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    for (host, address) in [(&pc, "fd00::a/64"), (&client, "fd00::c/64")] {
        host.ip(&["-6", "address", "add", address, "dev", "eth0", "nodad"]);
    }
    let _ollama = Ollama::listen(&pc, "[::]:11434", "gpu");
    let _client = Daemon::start(&client, &["--server", "fd00::a", "--discovery-port", "0"]);
    takes("found on Ollama's port", limits::FOUND, || works(&client));
    assert_eq!(server(&client)["addresses"][0], "[fd00::a]:11434");
    assert_eq!(server(&client)["name"], "[fd00::a]");
}

/// A name of two addresses, as of a PC with two networks, one of which is unplugged.
#[test]
fn a_name_with_two_addresses() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [pc, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::listen(&pc, ANYWHERE, "gpu");
    let names = format!("10.80.0.99 pc\n{} pc\n", pc.address(0));
    std::fs::write(client.dir().join("hosts"), names).expect("a file of names");
    let _client = Daemon::start(&client, &["--server", "pc", "--discovery-port", "0"]);
    takes("found at the second address", limits::NOTICED, || works(&client));
    let server = server(&client);
    assert_eq!((&server["name"], &server["plain"]), (&"pc".into(), &true.into()));
    assert_eq!(server["addresses"][0], format!("{}:11434", pc.address(0)));
}
