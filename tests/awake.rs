//! A server's machine doesn't fall asleep while it has work. A stand-in for logind's `systemd-inhibit`
//! writes down when it holds its lock and when not.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::Signal;
use support::{Client, Gate, Ollama, Process, World, eventually, post};

/// Takes every lock.
const LAX: &str = "#!/bin/sh
echo \"held $1\" >>\"$0.log\"; cat; echo released >>\"$0.log\"
";
/// As polkit has it for a user who isn't at the machine.
const STRICT: &str = "#!/bin/sh
case $1 in *sleep*) echo 'Failed to inhibit: Access denied' >&2; exit 1 ;; esac
echo \"held $1\" >>\"$0.log\"; cat; echo released >>\"$0.log\"
";
const NEVER: &str = "#!/bin/sh
echo \"asked $1\" >>\"$0.log\"; echo 'Failed to inhibit: Access denied' >&2; exit 1
";

struct Logind(PathBuf);

impl Logind {
    fn new(name: &str, script: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ollana-{}-{name}", std::process::id()));
        support::script(&dir.join("systemd-inhibit"), script);
        Logind(dir)
    }

    /// A server in front of this Ollama, and its address.
    fn server(&self, ollama: &Ollama, more: &str) -> (Process, SocketAddr) {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.0.display());
        let arguments = format!(
            "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} {more}",
            ollama.address
        );
        let server =
            Process::with_env(&arguments, &[("PATH", &path), ("OLLANA_KEEP_AWAKE", "10m")]);
        let address = server.address();
        (server, address)
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("systemd-inhibit.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn says(&self, lines: &[&str]) {
        eventually(&format!("{lines:?} of systemd-inhibit"), || {
            (self.log() == lines).then_some(())
        });
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Its answers go on when the gate is opened.
fn slow(gate: &Gate) -> Ollama {
    Ollama::start(World { hold: Some(gate.clone()), ..World::with(&["m"]) })
}

fn chat() -> Vec<u8> {
    post("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"?"}]}"#)
}

#[test]
fn a_request_keeps_it_awake_until_some_time_after_its_end() {
    let (logind, gate) = (Logind::new("lax", LAX), Gate::new());
    let ollama = slow(&gate);
    let (server, address) = logind.server(&ollama, "--keep-awake 1s");
    let mut client = Client::connect(address);
    // Lists are what every machine asks for all the time.
    assert_eq!(client.get("/api/version").status(), 200);
    client.send(chat());
    logind.says(&["held --what=sleep:idle"]);
    let told = Client::connect(address).get("/ollana/status").text();
    assert!(told.contains("\"awake\":{\"kept\":true"), "{told}");
    gate.open();
    assert_eq!(client.answer_to("POST").status(), 200);
    logind.says(&["held --what=sleep:idle", "released"]);
    server.line("this machine may sleep again");
}

#[test]
fn it_may_sleep_when_ollana_is_killed() {
    let (logind, gate) = (Logind::new("killed", LAX), Gate::new());
    let ollama = slow(&gate);
    let (mut server, address) = logind.server(&ollama, "");
    let mut client = Client::connect(address);
    client.send(chat());
    logind.says(&["held --what=sleep:idle"]);
    server.signal(Signal::KILL);
    server.exit();
    logind.says(&["held --what=sleep:idle", "released"]);
    gate.open();
}

#[test]
fn who_may_not_forbid_sleep_forbids_idling() {
    let (logind, gate) = (Logind::new("strict", STRICT), Gate::new());
    let ollama = slow(&gate);
    let (_server, address) = logind.server(&ollama, "");
    let mut client = Client::connect(address);
    client.send(chat());
    logind.says(&["held --what=idle"]);
    gate.open();
    assert_eq!(client.answer_to("POST").status(), 200);
}

#[test]
fn a_refusal_is_told_once_and_stops_nothing() {
    let (logind, gate) = (Logind::new("never", NEVER), Gate::new());
    let ollama = slow(&gate);
    let (server, address) = logind.server(&ollama, "");
    let mut client = Client::connect(address);
    client.send(chat());
    let says = "Failed to inhibit: Access denied";
    server.line(&format!("this machine can't be kept awake while it has work: {says}"));
    let told = || {
        let status = Client::connect(address).get("/ollana/status").text();
        status.contains(says).then_some(())
    };
    eventually("the refusal in the state", told);
    gate.open();
    assert_eq!(client.answer_to("POST").status(), 200);
    assert_eq!(logind.log(), ["asked --what=sleep:idle", "asked --what=idle"]);
}

#[test]
fn off_asks_nobody() {
    let (logind, gate) = (Logind::new("off", LAX), Gate::new());
    gate.open();
    let ollama = slow(&gate);
    let (server, address) = logind.server(&ollama, "--keep-awake off");
    let mut client = Client::connect(address);
    client.send(chat());
    assert_eq!(client.answer_to("POST").status(), 200);
    drop(server);
    assert_eq!(logind.log(), [""; 0]);
}
