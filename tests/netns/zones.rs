//! Servers with nothing but a link-local address (`fe80::…`), which means a machine only together
//! with the interface that leads to it.

use std::fs;
use std::time::Duration;

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{get, post};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, TOKENS, all_lines};
use super::watch::{limits, takes, until};

/// Of the server on its link.
const SERVER: &str = "fe80::a";

/// Gives an interface a link-local address at once, without looking whether another has it.
fn link_local(host: &Host, address: &str, interface: &str) {
    let address = format!("{address}/64");
    host.ip(&["-6", "address", "add", &address, "dev", interface, "nodad"]);
}

fn server(lan: &mut Lan, bridge: u8) -> (Host, Ollama, Daemon) {
    let server = lan.host(&[("eth0", bridge)]);
    link_local(&server, SERVER, "eth0");
    let ollama = Ollama::start(&server, "gpu");
    ollama.release(TOKENS);
    let daemon =
        Daemon::start(&server, &["--mode", "server", "--listen", "[::]:11435", "--manage", "on"]);
    (server, ollama, daemon)
}

fn client(host: &Host, server: &str) -> Daemon {
    Daemon::start(host, &["--mode", "client", "--discovery-port", "0", "--server", server])
}

#[test]
fn a_server_is_named_with_its_interface() {
    let Some(mut lan) = Lan::new(2) else { return };
    let (_server, _ollama, _daemon) = server(&mut lan, 1);
    let host = lan.host(&[("eth0", 0), ("eth1", 1)]);
    link_local(&host, "fe80::c0", "eth0");
    link_local(&host, "fe80::c1", "eth1");
    let number = host.run(|| {
        fs::read_to_string("/proc/thread-self/net/if_inet6").expect("addresses").lines().find_map(
            |line| {
                let mut columns = line.split_whitespace();
                let number = columns.nth(1).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                number.filter(|_| line.ends_with(" eth1"))
            },
        )
    });
    let number = number.expect("the number of eth1");
    for name in [
        format!("[{SERVER}%eth1]:11435"),
        format!("[{SERVER}%25eth1]"),
        format!("{SERVER}%eth1"),
        format!("[{SERVER}%{number}]:11435"),
    ] {
        let daemon = client(&host, &name);
        takes(&format!("{name} found"), limits::FOUND, || works(&host));
        for _ in 0..3 {
            let answer = post(&host, "/api/chat").expect("an answer");
            assert_eq!((answer.status, answer.body), (200, all_lines("gpu")), "{name}");
        }
        let state = get(&host, "/ollana/status").expect("the state").body;
        let address = format!("[{SERVER}%{number}]:11435");
        assert!(state.contains(&address), "{name}: {state}");
        daemon.kill();
    }
}

#[test]
fn an_interface_may_come_later() {
    let Some(mut lan) = Lan::new(1) else { return };
    let (_server, _ollama, _daemon) = server(&mut lan, 0);
    let mut host = lan.host(&[]);
    let daemon = client(&host, &format!("[{SERVER}%eth7]:11435"));
    takes("refused", limits::REFUSING, || is_without_server(&host));
    daemon.wait_for("there is no network interface eth7 with an address");
    host.add_cable("eth7", 0);
    link_local(&host, "fe80::c0", "eth7");
    until("the server", Duration::from_secs(20), || works(&host));
}

/// Files and most resolvers tell such an address without its interface.
#[test]
fn a_name_may_stand_for_a_link_local_address() {
    let Some(mut lan) = Lan::new(2) else { return };
    let (_server, _ollama, _daemon) = server(&mut lan, 1);
    let host = lan.host(&[("eth0", 0), ("eth1", 1)]);
    link_local(&host, "fe80::c0", "eth0");
    link_local(&host, "fe80::c1", "eth1");
    fs::write(host.dir().join("hosts"), format!("{SERVER} desk\n")).expect("a file of names");
    let _daemon = client(&host, "desk");
    until("the server", Duration::from_secs(20), || works(&host));
    let answer = post(&host, "/api/chat").expect("an answer");
    assert_eq!((answer.status, answer.body), (200, all_lines("gpu")));
}
