//! Broken networks, and what `ollana doctor` says about them: the right line, and its exit code.

use std::net::TcpListener;
use std::process::Command;

use super::basics::works;
use super::daemon::Daemon;
use super::lan::{Host, Lan, can_filter, key_in};
use super::ollama::Ollama;
use super::watch::{limits, takes};

/// What the doctor says on a host: its exit code, and its findings as `level area: text`.
pub(super) fn doctor(host: &Host, args: &[&str]) -> (i32, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(["doctor", "--json"]).args(args);
    command.env_clear().env("PATH", path).env("XDG_STATE_HOME", host.dir());
    let output = host.run(|| command.output()).expect("ollana runs");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().map(str::to_owned);
    let findings = report["findings"].as_array().expect("findings").iter().map(|finding| {
        let part = |key| text(finding, key).expect("text");
        if finding["level"] == "warn" || finding["level"] == "wrong" {
            assert!(text(finding, "fix").is_some(), "without a fix: {finding}");
        }
        format!("{} {}: {}", part("level"), part("area"), part("text"))
    });
    (output.status.code().expect("an exit code"), findings.collect())
}

#[track_caller]
pub(super) fn assert_says(findings: &[String], start: &str, words: &str) {
    let is_it = |finding: &&String| finding.starts_with(start) && finding.contains(words);
    assert!(findings.iter().any(|f| is_it(&f)), "{start}… {words:?} in {findings:#?}");
}

/// How many findings ask for something to be done.
pub(super) fn complaints(findings: &[String]) -> usize {
    let is_one = |finding: &&String| finding.starts_with("wrong ") || finding.starts_with("warn ");
    findings.iter().filter(is_one).count()
}

#[test]
fn a_network_that_works_is_well() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &[]);
    let daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    let found = format!("{}:11435", server.address(0));
    for round in ["with a daemon", "without one"] {
        let (code, findings) = doctor(&client, &[]);
        assert_eq!((code, complaints(&findings)), (0, 0), "{round}: {findings:#?}");
        assert_says(&findings, "ok servers", &found);
        assert_says(&findings, "ok servers", "found through eth0");
        assert_says(&findings, "ok interfaces", "broadcasts go to 10.80.0.255");
        if round == "with a daemon" {
            assert_says(&findings, "ok ports", "127.0.0.1:11434: ollana");
            daemon.signal(rustix::process::Signal::KILL);
            takes("gone", limits::REFUSING, || super::http::get(&client, "/").err().map(|_| ()));
        } else {
            assert_says(&findings, "note ports", "127.0.0.1:11434 is free");
        }
    }
    let (code, findings) = doctor(&server, &[]);
    assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
    assert_says(&findings, "ok Ollama here", "answers at http://127.0.0.1:11434");
    assert_says(&findings, "ok ports", "0.0.0.0:11435: ollana");
    assert_says(&findings, "ok servers", "own server answers UDP 11436");
}

/// A service has its options from a file; the doctor is called without any.
#[test]
fn what_the_running_ollana_goes_by_is_known() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let key = key_in(client.dir());
    let key = key.to_str().expect("a path");
    // As a takeover leaves it.
    let _ollama = Ollama::listen(&server, "127.0.0.1:11438", "gpu");
    let both = ["--mode", "both", "--ollama", "127.0.0.1:11438", "--key-file", key];
    let _server = Daemon::start(&server, &both);
    let address = server.address(0).to_string();
    let _client =
        Daemon::start(&client, &["--key-file", key, "--server", &address, "--discovery-port", "0"]);
    takes("found", limits::FOUND, || works(&client));
    let (code, findings) = doctor(&server, &[]);
    assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
    assert_says(&findings, "ok Ollama here", "answers at http://127.0.0.1:11438");
    let (code, findings) = doctor(&client, &[]);
    assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
    assert_says(&findings, "note servers: of ollana's keys (1)", "may see 0");
    assert_says(&findings, "ok servers", "the ollana that runs here uses it");
    let (code, findings) = doctor(&client, &["--key-file", key]);
    assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
    assert_says(&findings, "ok servers", ", encrypted, HTTP ");
}

#[test]
fn a_house_with_another_discovery_port_is_well() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let port = ["--discovery-port", "12000"];
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &port);
    let _client = Daemon::start(&client, &port);
    takes("found", limits::FOUND, || works(&client));
    for (host, what) in [(&server, "own server answers UDP 12000"), (&client, "found through eth0")]
    {
        let (code, findings) = doctor(host, &[]);
        assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
        assert_says(&findings, "ok servers", what);
    }
    // Where the port is another one by mistake, that is seen and said.
    let (code, findings) = doctor(&client, &["--discovery-port", "11436"]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "warn servers", "answers HTTP, but not UDP 11436");
}

#[test]
fn a_tunnel_carries_no_broadcasts_and_what_to_do_is_said() {
    let Some(mut lan) = Lan::new(1) else { return };
    let client = lan.host(&[("eth0", 0)]);
    let ip = |words: &str| {
        let run = || Command::new("ip").args(words.split(' ')).output();
        client.run(run).is_ok_and(|output| output.status.success())
    };
    let is_made = ip("tuntap add dev tailscale0 mode tun")
        && ip("address add 100.101.1.2/32 dev tailscale0")
        && ip("link set tailscale0 up");
    if !is_made {
        return eprintln!("skipped: a tunnel can't be made here");
    }
    let (_, findings) = doctor(&client, &[]);
    let tunnel = "tailscale0 100.101.1.2 is a tunnel, such as a VPN's: no broadcasts there";
    assert_says(&findings, "note interfaces: ", tunnel);
    let text = {
        let mut command = client.ollana(&[]);
        client.run(|| command.arg("doctor").output()).expect("ollana runs").stdout
    };
    let text = String::from_utf8(text).expect("text");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("--server desktop.tailnet-name"), "{text}");
}

#[test]
fn a_firewall_on_the_server() {
    if !can_filter() {
        return;
    }
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &[]);
    server.nft("input", "iifname eth0 udp dport 11436 drop");
    let address = server.address(0).to_string();
    let (code, findings) = doctor(&client, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong servers", "no server of the LAN answered a broadcast on eth0");
    let (code, findings) = doctor(&client, &["--server", &address]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "warn servers", "answers HTTP, but not UDP 11436");
    let (code, findings) = doctor(&server, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong firewall", "drops UDP 11436");
}

#[test]
fn a_firewall_in_front_of_http() {
    if !can_filter() {
        return;
    }
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &[]);
    server.nft("input", "iifname eth0 tcp dport 11435 drop");
    let (code, findings) = doctor(&client, &[]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "wrong servers", "answers UDP 11436, but TCP 11435 doesn't");
}

#[test]
fn a_firewall_on_the_client() {
    if !can_filter() {
        return;
    }
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &[]);
    // As most firewalls do: an answer comes in only from where the question went.
    client.nft("input", "iifname eth0 ct state new drop");
    let address = server.address(0).to_string();
    let (code, findings) = doctor(&client, &["--server", &address]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "warn servers", "answers UDP sent to it, but no broadcast of ours");
}

#[test]
fn a_server_without_ollama() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let _server = Daemon::start(&server, &["--mode", "server"]);
    let (code, findings) = doctor(&server, &[]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "wrong Ollama here", "no Ollama to share at http://127.0.0.1:11434");
    let (code, findings) = doctor(&client, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(
        &findings,
        "wrong servers",
        "ollana runs on h1 (10.80.0.1:11435), but Ollama doesn't",
    );
}

#[test]
fn a_port_that_another_program_has() {
    let Some(mut lan) = Lan::new(1) else { return };
    let host = lan.host(&[("eth0", 0)]);
    let taken = host.run(|| TcpListener::bind("127.0.0.1:11434")).expect("the port");
    let (code, findings) = doctor(&host, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    let id = std::process::id();
    let holder = format!("(process {id}), which answers neither as Ollama nor as ollana");
    assert_says(&findings, "wrong ports: 127.0.0.1:11434 is held by", &holder);
    drop(taken);
    let taken = host.run(|| std::net::UdpSocket::bind("0.0.0.0:11436")).expect("the port");
    let _ollama = Ollama::start(&host, "gpu");
    let (code, findings) = doctor(&host, &[]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "wrong servers: UDP 11436 is held by", "no ollana answers there");
    drop(taken);
}

#[test]
fn a_server_on_another_subnet() {
    let Some(mut lan) = Lan::new(2) else { return };
    let server = lan.host(&[("eth0", 0)]);
    let client = lan.host(&[("eth0", 1)]);
    let router = lan.host(&[("eth0", 0), ("eth1", 1)]);
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("a router");
    for (host, bridge) in [(&server, 0), (&client, 1)] {
        host.ip(&["route", "add", "default", "via", &router.address(bridge).to_string()]);
    }
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start(&server, &[]);
    let address = server.address(0).to_string();
    let (code, findings) = doctor(&client, &[]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "wrong servers", "no server of the LAN answered a broadcast on eth0");
    let (code, findings) = doctor(&client, &["--server", &address]);
    assert_eq!((code, complaints(&findings)), (0, 0), "{findings:#?}");
    assert_says(&findings, "note servers", "on another subnet, which broadcasts don't reach");
}

#[test]
fn an_ollama_that_the_network_can_use() {
    let Some(mut lan) = Lan::new(1) else { return };
    let host = lan.host(&[("eth0", 0)]);
    let _ollama = Ollama::listen(&host, "0.0.0.0:11434", "gpu");
    let (code, findings) = doctor(&host, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "warn Ollama here", "Ollama itself answers the network at 10.80.0.");
}

/// Without a manager of networks, the address stays when the cable is out.
#[test]
fn an_interface_that_is_down() {
    let Some(mut lan) = Lan::new(1) else { return };
    let host = lan.host(&[("eth0", 0)]);
    host.ip(&["link", "set", "eth0", "down"]);
    let (code, findings) = doctor(&host, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong servers", "eth0 is down: nothing leaves through it");
    assert!(!findings.iter().any(|finding| finding.contains("os error")), "{findings:#?}");
}

#[test]
fn no_network_at_all() {
    let Some(mut lan) = Lan::new(1) else { return };
    let host = lan.host(&[]);
    let (code, findings) = doctor(&host, &[]);
    assert_eq!((code, complaints(&findings)), (1, 1), "{findings:#?}");
    assert_says(&findings, "wrong interfaces", "no interface to broadcast on");
    host.ip(&["link", "set", "lo", "down"]);
    let (code, findings) = doctor(&host, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong this machine", "the loopback interface is down");
}
