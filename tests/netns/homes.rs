//! Broken homes. Of each, `ollana doctor`, `ollana status` and the error of a request, which is what
//! Ollama's own command prints, name the true cause; and the fix works.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use super::basics::works;
use super::daemon::Daemon;
use super::doctor::{assert_says, doctor};
use super::http::{get, post};
use super::lan::{Host, Lan, can_filter, key_in};
use super::ollama::Ollama;
use super::watch::{limits, takes};

/// What a check finds, and a request that waits for a server, are known by then.
const KNOWN: Duration = Duration::from_secs(20);

/// Two machines: one with Ollama, which serves, and one without.
struct Home {
    lan: Lan,
    server: Host,
    client: Host,
}

impl Home {
    /// `None` where there are no namespaces.
    fn new() -> Option<Home> {
        let mut lan = Lan::new(1)?;
        let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
        Some(Home { lan, server, client })
    }

    fn serve(&self) -> (Ollama, Daemon) {
        let ollama = Ollama::start(&self.server, "gpu");
        (ollama, Daemon::start(&self.server, &["--mode", "server"]))
    }

    /// Starts the client's ollana, which finds the server.
    fn join(&self) -> Daemon {
        let daemon = Daemon::start(&self.client, &[]);
        self.is_mended();
        daemon
    }

    fn is_mended(&self) {
        takes("it works", limits::NOTICED * 2, || works(&self.client));
    }

    /// What doctor, status and the error say.
    fn says(&self, [of_doctor, of_status, of_error]: [&str; 3]) {
        takes("status says it", KNOWN, || status(&self.client).contains(of_status).then_some(()));
        takes("the error says it", KNOWN, || error(&self.client).contains(of_error).then_some(()));
        let (code, findings) = doctor(&self.client, &[]);
        assert_eq!(code, 1, "{findings:#?}");
        assert_says(&findings, "w", of_doctor);
    }
}

/// `ollana status`, in one line.
fn status(host: &Host) -> String {
    let output = host.run(|| host.ollana(&[]).arg("status").output()).expect("ollana runs");
    let text = [output.stdout, output.stderr].map(|it| String::from_utf8(it).expect("text"));
    text.concat().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn error(host: &Host) -> String {
    post(host, "/api/chat").map(|answer| answer.body).unwrap_or_default()
}

#[test]
fn ollama_is_stopped() {
    let Some(home) = Home::new() else { return };
    let _server = Daemon::start(&home.server, &["--mode", "server"]);
    let _client = Daemon::start(&home.client, &[]);
    let says = "Ollama isn't running on h1";
    home.says(["ollana runs on h1 (10.80.0.1:11435), but Ollama doesn't", says, says]);
    let (_, findings) = doctor(&home.server, &[]);
    assert_says(&findings, "wrong Ollama here", "no Ollama to share at http://127.0.0.1:11434");
    let _ollama = Ollama::start(&home.server, "gpu");
    home.is_mended();
}

#[test]
fn ollama_is_on_another_port() {
    let Some(home) = Home::new() else { return };
    let _ollama = Ollama::listen(&home.server, "127.0.0.1:11500", "gpu");
    let daemon = Daemon::start(&home.server, &["--mode", "server"]);
    let _client = Daemon::start(&home.client, &[]);
    let says = "Ollama isn't running on h1";
    home.says(["ollana runs on h1 (10.80.0.1:11435), but Ollama doesn't", says, says]);
    drop(daemon);
    let _server = Daemon::start(&home.server, &["--ollama", "127.0.0.1:11500"]);
    home.is_mended();
}

#[test]
fn ollana_is_stopped() {
    let Some(home) = Home::new() else { return };
    let (_ollama, server) = home.serve();
    let _client = home.join();
    server.kill();
    let says = "connection refused: nothing listens there";
    home.says(["h1 (10.80.0.1:11435) is on, but neither ollana nor an open Ollama", says, says]);
    let _server = Daemon::start(&home.server, &["--mode", "server"]);
    home.is_mended();
}

#[test]
fn only_an_open_ollama_is_left() {
    let Some(home) = Home::new() else { return };
    let _ollama = Ollama::listen(&home.server, "0.0.0.0:11434", "gpu");
    let server = Daemon::start(&home.server, &["--mode", "server"]);
    let client = home.join();
    server.kill();
    let says = "connection refused: nothing listens there";
    home.says(["runs no ollana (TCP 11435 is closed), but something on 11434", says, says]);
    drop(client);
    let _client = Daemon::start(&home.client, &["--server", "10.80.0.1"]);
    home.is_mended();
}

/// A firewall on a server that has been in use.
fn a_firewall_says(rule: &str, says: [&str; 3]) {
    if !can_filter() {
        return;
    }
    let Some(home) = Home::new() else { return };
    let (_ollama, _server) = home.serve();
    let _client = home.join();
    home.server.nft("input", rule);
    home.says(says);
    home.server.without_rules();
    home.is_mended();
}

#[test]
fn a_firewall_drops_requests() {
    let says = "connecting timed out: it is off, or a firewall drops it";
    let of_doctor = "answers UDP 11436, but TCP 11435 doesn't: a firewall there drops it";
    a_firewall_says("iifname eth0 tcp dport 11435 drop", [of_doctor, says, says]);
}

#[test]
fn a_firewall_rejects_requests() {
    let says = "connection refused: nothing listens there";
    let of_doctor = "answers UDP 11436, but refuses TCP 11435: connection refused";
    let rule = "iifname eth0 tcp dport 11435 reject with tcp reset";
    a_firewall_says(rule, [of_doctor, says, says]);
}

#[test]
fn a_firewall_drops_everything() {
    let says = "connecting timed out: it is off, or a firewall drops it";
    let of_doctor = "h1 (10.80.0.1:11435) is on, but a firewall there drops TCP 11435";
    let rule = "iifname eth0 meta l4proto { tcp, udp } drop";
    a_firewall_says(rule, [of_doctor, says, says]);
}

#[test]
fn a_firewall_drops_probes() {
    if !can_filter() {
        return;
    }
    let Some(home) = Home::new() else { return };
    home.server.nft("input", "iifname eth0 udp dport 11436 drop");
    let (_ollama, _server) = home.serve();
    let client = Daemon::start(&home.client, &[]);
    let says = "no Ollama server found on the LAN";
    home.says(["no server of the LAN answered a broadcast on eth0", says, says]);
    let (_, findings) = doctor(&home.server, &[]);
    assert_says(&findings, "wrong firewall", "drops UDP 11436");
    // One of the two that the doctor tells; the other is to open it.
    drop(client);
    let _client = Daemon::start(&home.client, &["--server", "10.80.0.1"]);
    home.is_mended();
}

#[test]
fn the_server_is_off() {
    let Some(home) = Home::new() else { return };
    // Linux takes half a minute to doubt a hardware address that it has just used; here 1 s.
    home.client.run(|| {
        for (name, value) in [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1")] {
            fs::write(format!("/proc/sys/net/ipv4/neigh/eth0/{name}"), value).expect("a setting");
        }
    });
    let (_ollama, _server) = home.serve();
    let _client = home.join();
    home.server.part("eth0");
    let of_doctor = "is off, asleep, or has another address, or the Wi-Fi keeps machines apart";
    home.says([of_doctor, "h1 is down: ", "no Ollama server is ready (h1 (10.80.0.1:11435): "]);
    home.server.rejoin("eth0");
    home.is_mended();
}

#[test]
fn the_server_wants_a_key() {
    let Some(home) = Home::new() else { return };
    let key = key_in(home.server.dir());
    let _ollama = Ollama::start(&home.server, "gpu");
    let key_file = ["--key-file", key.to_str().expect("a path")];
    let _server = Daemon::start(&home.server, &[&key_file[..], &["--mode", "server"]].concat());
    let client = Daemon::start(&home.client, &[]);
    let says = "h1 answers paired machines only: run 'ollana pair' on both";
    home.says([says, says, says]);
    drop(client);
    let _client = Daemon::start(&home.client, &key_file);
    home.is_mended();
}

#[test]
fn the_client_wants_a_key() {
    let Some(home) = Home::new() else { return };
    let key = key_in(home.client.dir());
    let (_ollama, server) = home.serve();
    let key_file = ["--key-file", key.to_str().expect("a path")];
    let _client = Daemon::start(&home.client, &key_file);
    let says = "this machine talks to paired machines only, and h1 isn't one";
    takes("status says it", KNOWN, || status(&home.client).contains(says).then_some(()));
    takes("the error says it", KNOWN, || error(&home.client).contains(says).then_some(()));
    let (_, findings) = doctor(&home.client, &key_file);
    assert_says(&findings, "wrong servers", "it is not paired with this machine");
    drop(server);
    let _server = Daemon::start(&home.server, &[&key_file[..], &["--mode", "server"]].concat());
    home.is_mended();
}

#[test]
fn the_server_is_on_another_network() {
    let Some(mut lan) = Lan::new(2) else { return };
    let (server, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 1)]));
    let router = lan.host(&[("eth0", 0), ("eth1", 1)]);
    let home = Home { lan, server, client };
    let (_ollama, _server) = home.serve();
    let _client = Daemon::start(&home.client, &["--server", "10.80.0.1"]);
    let says = "network is unreachable";
    let of_doctor = "is on another network, and network is unreachable";
    home.says([of_doctor, says, says]);
    let (_, findings) = doctor(&home.client, &[]);
    assert_says(&findings, "wrong servers", "this machine is 10.80.1.2/24, the server 10.80.0.1");
    router.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("a router");
    for (host, bridge) in [(&home.server, 0), (&home.client, 1)] {
        host.ip(&["route", "add", "default", "via", &router.address(bridge).to_string()]);
    }
    home.is_mended();
    drop(home.lan);
}

#[test]
fn the_servers_name_is_misspelled() {
    let Some(home) = Home::new() else { return };
    fs::write(home.client.dir().join("hosts"), "10.80.0.1 desktop\n").expect("its names");
    let (_ollama, _server) = home.serve();
    let client = Daemon::start(&home.client, &["--server", "dekstop", "--discovery-port", "0"]);
    home.says(["--server dekstop", "dekstop", "dekstop"]);
    drop(client);
    let _client = Daemon::start(&home.client, &["--server", "desktop", "--discovery-port", "0"]);
    home.is_mended();
}

#[test]
fn an_interface_is_misspelled() {
    let Some(home) = Home::new() else { return };
    let (_ollama, _server) = home.serve();
    let client = Daemon::start(&home.client, &["--interface", "eht0"]);
    takes("status says it", KNOWN, || status(&home.client).contains("eht0").then_some(()));
    let (_, findings) = doctor(&home.client, &["--interface", "eht0"]);
    assert_says(&findings, "wrong interfaces", "eht0");
    drop(client);
    let _client = home.join();
}

#[test]
fn a_disk_was_copied() {
    let Some(mut home) = Home::new() else { return };
    let (_ollama, server) = home.serve();
    let clone = home.lan.host(&[("eth0", 0)]);
    let identity = "ollana/identity-11435";
    fs::create_dir_all(clone.dir().join("ollana")).expect("a place for it");
    fs::copy(home.server.dir().join(identity), clone.dir().join(identity)).expect("a copy");
    let _other_ollama = Ollama::start(&clone, "clone");
    let other = Daemon::start(&clone, &["--mode", "server"]);
    let client = home.join();
    let says = "has the identity of";
    takes("status says it", KNOWN, || status(&home.client).contains(says).then_some(()));
    let (code, findings) = doctor(&home.client, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "warn servers", says);
    drop((other, client, server));
    fs::remove_file(clone.dir().join(identity)).expect("its identity");
    let _servers = [&home.server, &clone].map(|host| Daemon::start(host, &["--mode", "server"]));
    let _client = home.join();
    let is_clear = || (!status(&home.client).contains(says)).then_some(());
    takes("it is no copy any more", KNOWN, is_clear);
}

#[test]
fn the_clients_cable_is_out() {
    let Some(home) = Home::new() else { return };
    let (_ollama, _server) = home.serve();
    let _client = home.join();
    home.client.ip(&["link", "set", "eth0", "down"]);
    home.says([
        "eth0 is down: nothing leaves through it",
        "h1 is down: ",
        "(h1 (10.80.0.1:11435): ",
    ]);
    home.client.ip(&["link", "set", "eth0", "up"]);
    home.is_mended();
}

#[test]
fn the_probes_port_is_taken() {
    let Some(home) = Home::new() else { return };
    let taken = home.server.run(|| UdpSocket::bind("0.0.0.0:11436")).expect("the port");
    let _ollama = Ollama::start(&home.server, "gpu");
    let server = Daemon::spawn(&home.server, &["--mode", "server"]);
    server.wait_for("cannot listen on UDP port 11436: address in use");
    let _client = Daemon::start(&home.client, &[]);
    let says = "no Ollama server found on the LAN";
    home.says(["no server of the LAN answered a broadcast on eth0", says, says]);
    let (code, findings) = doctor(&home.server, &[]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong servers", "UDP 11436 is held by");
    drop((taken, server));
    let _server = Daemon::start(&home.server, &["--mode", "server"]);
    home.is_mended();
}

#[test]
fn another_program_has_ollamas_port() {
    let Some(home) = Home::new() else { return };
    let (_ollama, _server) = home.serve();
    let taken = home.client.run(|| TcpListener::bind("127.0.0.1:11434")).expect("the port");
    let client = Daemon::spawn(&home.client, &["--mode", "client"]);
    client.wait_for("cannot listen on 127.0.0.1:11434: address in use");
    let (code, findings) = doctor(&home.client, &["--mode", "client"]);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(
        &findings,
        "wrong ports: 127.0.0.1:11434 is held by",
        "neither as Ollama nor as ollana",
    );
    drop((taken, client));
    let _client = home.join();
}

#[test]
fn a_firewall_here_drops_answers() {
    if !can_filter() {
        return;
    }
    let Some(home) = Home::new() else { return };
    let (_ollama, _server) = home.serve();
    home.client.nft("input", "iifname eth0 udp sport 11436 drop");
    let _client = Daemon::start(&home.client, &[]);
    let says = "no Ollama server found on the LAN";
    home.says(["no server of the LAN answered a broadcast on eth0", says, says]);
    let (_, findings) = doctor(&home.client, &[]);
    assert_says(&findings, "note firewall: not judged", "udp sport 11436 drop");
    home.client.without_rules();
    home.is_mended();
}

#[test]
fn the_keys_are_not_the_same() {
    let Some(home) = Home::new() else { return };
    let [of_server, of_client] = [&home.server, &home.client].map(|host| key_in(host.dir()));
    fs::write(&of_client, "0dd5".repeat(16)).expect("another key");
    let key_file = |path: &PathBuf| format!("--key-file={}", path.display());
    let _ollama = Ollama::start(&home.server, "gpu");
    let _server = Daemon::start(&home.server, &["--mode", "server", &key_file(&of_server)]);
    let (key, named) = (key_file(&of_client), ["--server", "10.80.0.1"]);
    let client = Daemon::start(&home.client, &[&named[..], &[&key]].concat());
    let says = "it does not take our key (pair again: ollana pair)";
    takes("status says it", KNOWN, || status(&home.client).contains(says).then_some(()));
    takes("the error says it", KNOWN, || error(&home.client).contains(says).then_some(()));
    let (code, findings) = doctor(&home.client, &[&named[..], &[&key]].concat());
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong servers", "h1 answers paired machines only");
    drop(client);
    fs::copy(&of_server, &of_client).expect("the same key");
    let _client = Daemon::start(&home.client, &[&named[..], &[&key]].concat());
    home.is_mended();
}

#[test]
fn the_server_keeps_the_client_out() {
    let Some(home) = Home::new() else { return };
    let key_file = [&home.server, &home.client]
        .map(|host| format!("--key-file={}", key_in(host.dir()).display()));
    let _ollama = Ollama::start(&home.server, "gpu");
    let serve = ["--mode", "server", &key_file[0]];
    let deny = ["--deny", &home.client.address(0).to_string()];
    let server = Daemon::start(&home.server, &[&serve[..], &deny].concat());
    let options = ["--server", "10.80.0.1", &key_file[1]];
    let _client = Daemon::start(&home.client, &options);
    let says = "does its --allow or --deny keep this machine's address out?";
    takes("status says it", KNOWN, || status(&home.client).contains(says).then_some(()));
    takes("the error says it", KNOWN, || error(&home.client).contains(says).then_some(()));
    let (code, findings) = doctor(&home.client, &options);
    assert_eq!(code, 1, "{findings:#?}");
    assert_says(&findings, "wrong servers", says);
    drop(server);
    let _server = Daemon::start(&home.server, &serve);
    home.is_mended();
}

/// What the doctor asks in order to be refused is no failure of anybody.
#[test]
fn the_doctors_own_requests_are_no_failures() {
    let Some(home) = Home::new() else { return };
    let (_ollama, _server) = home.serve();
    // Not asked before it has found the server, which would be a failure.
    let client = Daemon::start(&home.client, &[]);
    client.wait_for("server up");
    let (code, findings) = doctor(&home.client, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    let state = get(&home.client, "/ollana/status").expect("the state").body;
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    assert_eq!(state["failures"], serde_json::json!([]));
}
