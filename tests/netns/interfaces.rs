//! Addresses and interfaces: several, none yet, changing, or not meant for a LAN.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{get, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, TOKENS, token_line};
use super::outages::entries;
use super::watch::{judge, limits, takes, throughout};

/// A server with an Ollama of this name.
fn server(host: &Host, name: &str) -> (Ollama, Daemon) {
    (Ollama::start(host, name), Daemon::start(host, &[]))
}

fn is_up(client: &Daemon, times: usize) -> Option<()> {
    (client.count("server up ") == times).then_some(())
}

#[test]
fn a_servers_new_address_is_used() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (host, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let (_ollama, mut daemon) = server(&host, "gpu");
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    host.ip(&["address", "delete", "10.80.0.1/24", "dev", "eth0"]);
    host.ip(&["address", "add", "10.80.0.77/24", "broadcast", "+", "dev", "eth0"]);
    takes("new address to first answer", limits::MOVED, || works(&client));
    // Beyond the next probe, after which the old address may still be thought of.
    throughout(Duration::from_secs(7), || {});
    works(&client).expect("still an answer");
    daemon.assert_alive();
    daemon.kill();
    assert_eq!(entries(&client), 1);
    drop(client_daemon);
}

#[test]
fn a_clients_new_address_does_no_harm() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (host, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let (_ollama, _daemon) = server(&host, "gpu");
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    let asked = || send(&client, "POST", "/api/show", "{}").expect("sent").answer();
    assert_eq!(asked().expect("an answer").status, 200, "now there is a connection to keep");
    client.ip(&["address", "delete", "10.80.0.2/24", "dev", "eth0"]);
    client.ip(&["address", "add", "10.80.0.99/24", "broadcast", "+", "dev", "eth0"]);
    client_daemon.wait_for("network changed");
    let start = Instant::now();
    assert_eq!(asked().expect("an answer").status, 200);
    judge("a request after a change of address", start.elapsed(), limits::RETRIED);
    takes("own new address to first answer", limits::BACK, || works(&client));
}

#[test]
fn two_ways_to_one_server_are_one_entry() {
    let Some(mut lan) = Lan::new(2) else { return };
    let both = [("eth0", 0), ("eth1", 1)];
    let (host, client) = (lan.host(&both), lan.host(&both));
    let (_ollama, daemon) = server(&host, "gpu");
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    // Until answers to a probe have come through both interfaces, and were tried.
    throughout(Duration::from_secs(3), || works(&client).expect("an answer"));
    for lost in ["eth0", "eth1"] {
        host.part(lost);
        throughout(Duration::from_millis(100), || {});
        takes("one way lost to first answer", limits::BACK, || works(&client));
        throughout(Duration::from_secs(3), || works(&client).expect("an answer by the other way"));
        host.rejoin(lost);
        // Both ways have to be known again before the other one may go.
        throughout(Duration::from_secs(7), || works(&client).expect("an answer"));
    }
    daemon.kill();
    assert_eq!(entries(&client), 1, "two addresses, one server");
    drop(client_daemon);
}

#[test]
fn servers_behind_several_interfaces_are_found_without_any_default_route() {
    let Some(mut lan) = Lan::new(3) else { return };
    let one = lan.host(&[("eth0", 0)]);
    let other = lan.host(&[("eth0", 1)]);
    let client = lan.host(&[("eth0", 0), ("eth1", 1), ("eth2", 2)]);
    let (one_ollama, _one) = server(&one, "one");
    let (other_ollama, _other) = server(&other, "other");
    let client_daemon = Daemon::start(&client, &[]);
    takes("both found", limits::FOUND, || is_up(&client_daemon, 2));
    let _held =
        [1, 2].map(|_| send(&client, "POST", "/v1/audio/transcriptions", "{}").expect("sent"));
    takes("a request at each", limits::RETRIED, || {
        let held = |ollama: &Ollama| ollama.requests("/v1/audio/transcriptions") == 1;
        (held(&one_ollama) && held(&other_ollama)).then_some(())
    });
}

/// A copied disk, or a cloned virtual machine: both have the same identity, and which one is the
/// original, nobody can tell. The second one steps in when the first is away.
#[test]
fn a_cloned_machine_is_a_server_of_its_own_and_held_back() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [one, clone, client] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let (_one_ollama, one_daemon) = server(&one, "one");
    let identity = "ollana/identity-11435";
    std::fs::create_dir_all(clone.dir().join("ollana")).expect("a place for it");
    std::fs::copy(one.dir().join(identity), clone.dir().join(identity)).expect("its identity");
    let (clone_ollama, clone_daemon) = server(&clone, "clone");
    let client_daemon = Daemon::start(&client, &[]);
    takes("both found", limits::FOUND, || is_up(&client_daemon, 2));
    client_daemon.wait_for("server contested, gets no requests");
    one_daemon.kill();
    throughout(Duration::from_secs(1), || works(&client).expect("the other one's answer"));
    assert!(clone_ollama.requests("/api/tags") > 0);
    clone_daemon.kill();
    assert_eq!(entries(&client), 2);
}

#[test]
fn container_bridges_hear_no_probes() {
    let Some(mut lan) = Lan::new(2) else { return };
    let host = lan.host(&[("eth0", 0)]);
    let container = lan.host(&[("eth0", 1)]);
    let client = lan.host(&[("eth0", 0), ("docker0", 1)]);
    let ear = container.run(|| UdpSocket::bind("0.0.0.0:11436")).expect("the discovery's port");
    ear.set_nonblocking(true).expect("an ear that doesn't block");
    let (_ollama, _daemon) = server(&host, "gpu");
    let _client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    throughout(Duration::from_secs(2), || {
        let heard = ear.recv_from(&mut [0; 512]);
        assert!(heard.is_err(), "a probe through docker0: {heard:?}");
    });
    // Unless asked for, which also shows that the ear hears.
    let _other = Daemon::spawn(
        &client,
        &["--listen", "127.0.0.1:21434", "--interface", "docker0", "--mode", "client"],
    );
    takes("asked for to heard", limits::FOUND, || ear.recv_from(&mut [0; 512]).ok());
}

#[test]
fn an_interface_that_appears_later_is_used() {
    let Some(mut lan) = Lan::new(2) else { return };
    let (near, far) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 1)]));
    let (_near_ollama, _near) = server(&near, "near");
    let (_far_ollama, _far) = server(&far, "far");
    let mut client = lan.host(&[]);
    let client_daemon = Daemon::start(&client, &[]);
    is_without_server(&client).expect("a 503");
    // Longer than the first probes are dense.
    throughout(Duration::from_millis(2500), || {});
    client.add_cable("eth0", 0);
    takes("first interface to first answer", limits::BACK, || works(&client));
    client.add_cable("wlan0", 1);
    takes("second interface to second server", limits::BACK, || is_up(&client_daemon, 2));
}

#[test]
fn own_link_goes_down_and_up() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (host, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 0)]));
    let (ollama, _daemon) = server(&host, "gpu");
    let mut client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    ollama.release(1);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    assert_eq!(stream.line().expect("a token"), token_line("gpu", 1));
    for (round, seconds) in [(1, 0), (2, 4)] {
        client.ip(&["link", "set", "eth0", "down"]);
        takes("link down to 503", limits::SILENT, || is_without_server(&client));
        throughout(Duration::from_secs(seconds), || {});
        client.ip(&["link", "set", "eth0", "up"]);
        takes("link up to first answer", limits::BACK, || works(&client));
        if round == 1 {
            // A short pause is nothing that a stream can't bear.
            ollama.release(TOKENS);
            let rest: String = (2..=TOKENS).map(|number| token_line("gpu", number)).collect();
            assert_eq!(stream.rest(), Ok(rest));
        }
    }
    client_daemon.assert_alive();
}

#[test]
fn a_named_server_is_reached_through_a_router() {
    let Some(mut lan) = Lan::new(2) else { return };
    let (host, client) = (lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 1)]));
    let router = lan.host(&[("eth0", 0), ("eth1", 1)]);
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("forwarding");
    for (host, bridge) in [(&host, 0), (&client, 1)] {
        let gateway = router.address(bridge).to_string();
        host.ip(&["route", "add", "default", "via", &gateway]);
    }
    let (_ollama, daemon) = server(&host, "gpu");
    let named = format!("{}:11435", host.address(0));
    let client_daemon = Daemon::start(&client, &["--server", &named]);
    takes("found", limits::FOUND, || works(&client));
    daemon.kill();
    takes("killed to 503", limits::REFUSING, || is_without_server(&client));
    let _daemon = Daemon::start(&host, &[]);
    takes("restarted to first answer", limits::BACK, || works(&client));
    // Without the name there is no way to know of it.
    drop(client_daemon);
    let _client_daemon = Daemon::start(&client, &[]);
    throughout(Duration::from_secs(1), || is_without_server(&client).expect("a 503"));
    let answer = get(&client, "/api/tags").expect("an answer");
    assert!(answer.body.contains("no Ollama server found"), "{answer:?}");
}

#[test]
fn a_server_that_listens_on_two_networks_is_found_in_both() {
    let Some(mut lan) = Lan::new(2) else { return };
    let host = lan.host(&[("eth0", 0), ("eth1", 1)]);
    let [one, other] = [0, 1].map(|network| format!("{}:11435", host.address(network)));
    let _ollama = Ollama::start(&host, "gpu");
    let _daemon = Daemon::start(&host, &["--mode", "server", "--listen", &one, "--listen", &other]);
    for network in [0, 1] {
        let client = lan.host(&[("eth0", network)]);
        let _client_daemon = Daemon::start(&client, &[]);
        takes("found", limits::FOUND, || works(&client));
    }
}
