//! A machine that comes in the name of a server that is known, or at its address.

use rustix::process::Signal;

use super::basics::works;
use super::daemon::Daemon;
use super::http::{get, post};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, all_lines};
use super::watch::{limits, takes, until};

/// What the client's status says.
fn status(client: &Host) -> serde_json::Value {
    let answer = get(client, "/ollana/status").expect("the state");
    serde_json::from_str(&answer.body).expect("JSON")
}

fn trust(client: &Host, address: std::net::Ipv4Addr) -> Option<String> {
    let state = status(client);
    let servers = state["servers"].as_array()?;
    let is_at = |server: &&serde_json::Value| {
        server["addresses"][0] == format!("{address}:11435") && server["health"] == "ready"
    };
    Some(servers.iter().find(is_at)?["trust"].as_str()?.to_owned())
}

fn goes_to(client: &Host, ollama: &str) {
    for _ in 0..8 {
        let answer = post(client, "/api/chat").expect("an answer");
        assert_eq!(answer.body, all_lines(ollama));
    }
}

#[test]
fn another_machine_in_the_name_of_a_known_server_gets_no_prompts() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, client, rogue] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let _gpu = Ollama::start(&server, "gpu");
    let mut known = Daemon::start(&server, &[]);
    let mut client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    let trap = Ollama::start(&rogue, "trap");
    let _impostor = Daemon::start_as(&rogue, &server.name(), &[]);
    let held_back = || trust(&client, rogue.address(0)).filter(|trust| trust == "held_back");
    takes("seen through", limits::NOTICED * 2, held_back);
    goes_to(&client, "gpu");
    assert_eq!(client_daemon.count("server contested, gets no requests"), 1);
    let warnings = status(&client)["warnings"].to_string();
    assert!(
        warnings.contains("was another machine") && warnings.contains("--server"),
        "{warnings}"
    );
    // Nor after a restart of the client, whoever answers first.
    client_daemon.signal(Signal::TERM);
    assert!(client_daemon.wait().success());
    let _client_daemon = Daemon::start(&client, &[]);
    takes("found again", limits::FOUND, || works(&client));
    goes_to(&client, "gpu");
    until("the impostor's return", limits::NOTICED * 4, held_back);
    goes_to(&client, "gpu");
    assert_eq!(trap.requests("/api/chat"), 0, "no prompt was seen by the impostor");
    // Whoever has only the impostor left uses it, and is told.
    known.signal(Signal::KILL);
    known.wait();
    takes("the only one left", limits::NOTICED * 2, || {
        let answer = post(&client, "/api/chat").ok()?;
        (answer.body == all_lines("trap")).then_some(())
    });
    assert_eq!(trust(&client, rogue.address(0)).as_deref(), Some("contested"));
}
