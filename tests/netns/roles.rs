//! The role follows what is on the machine while ollana runs.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::basics::works;
use super::daemon::Daemon;
use super::http::{get, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, all_lines};
use super::watch::{judge, limits, takes, throughout, until};
use crate::support::script;

/// An Ollama that went is replaced by the LAN's: five seconds of grace, ten between two changes.
const BECOMES_CLIENT: Duration = Duration::from_secs(11);
/// Ollama's port is free this long after its program was opened.
const ROOM: Duration = Duration::from_millis(100);
/// How long a program that starts waits for what it needs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program called `ollama` on a host; it does nothing but run.
fn install(host: &Host) -> String {
    let program = host.dir().join("ollama");
    script(&program, "#!/bin/sh\nsleep 30\n");
    program.to_string_lossy().into_owned()
}

fn run(host: &Host, program: &str, word: &str) -> Child {
    let mut command = Command::new(program);
    command.arg(word).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    host.run(|| command.spawn()).expect("it runs")
}

fn end(mut child: Child) {
    child.kill().expect("it is there");
    child.wait().expect("its end");
}

/// Binds Ollama's port as soon as it can be had.
fn take_port(host: &Host, since: Instant) -> Ollama {
    let is_free = || host.run(|| std::net::TcpListener::bind("127.0.0.1:11434").is_ok());
    until("Ollama's port to be free", PATIENCE, || is_free().then_some(()));
    judge("Ollama's start to its port being free", since.elapsed(), ROOM);
    Ollama::start(host, "own")
}

#[test]
fn an_ollama_that_starts_later_gets_its_port_and_is_shared_and_streams_survive() {
    gets_its_port(&[]);
}

/// What a client is told to listen on is no server's, or there would be none while Ollama runs.
#[test]
fn an_ollama_that_starts_later_gets_the_addresses_that_were_told() {
    gets_its_port(&["--listen", "127.0.0.1:11434", "--listen", "127.0.0.2:11434"]);
}

fn gets_its_port(options: &[&str]) {
    let Some(mut lan) = Lan::new(1) else { return };
    let [far, here, third] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let far_ollama = Ollama::start(&far, "far");
    let _far_daemon = Daemon::start(&far, &[]);
    let program = install(&here);
    let daemon = Daemon::start_in(&here, here.dir(), options);
    takes("found", limits::FOUND, || works(&here));
    far_ollama.release(1);
    let mut stream = send(&here, "POST", "/api/chat", "{}").expect("sent").head().expect("a head");
    assert_eq!(stream.status, 200);

    let start = Instant::now();
    let process = run(&here, &program, "serve");
    let own = take_port(&here, start);
    takes("Ollama's start to sharing it", limits::OLLAMA_CHANGED, || {
        (daemon.count("ready mode=server") == 1).then_some(())
    });
    let _third_daemon = Daemon::start(&third, &[]);
    takes("its model on the LAN", limits::NOTICED, || {
        get(&third, "/api/tags").is_ok_and(|a| a.body.contains("own")).then_some(())
    });
    far_ollama.release(usize::MAX);
    assert_eq!(stream.rest(), Ok(all_lines("far")), "the stream of the old role");

    // Stopped for good.
    let start = Instant::now();
    drop(own);
    end(process);
    takes("Ollama's end to the LAN's answers", BECOMES_CLIENT, || works(&here));
    assert!(start.elapsed() > Duration::from_secs(4), "a restart isn't an end");
    // The first answer may come before the line of the log.
    let told = || (daemon.count("ready mode=") >= 3).then_some(());
    until("client, server, client", PATIENCE, told);
    assert_eq!(daemon.count("ready mode="), 3);
}

/// The machine becomes a client, on which no proxy listens for others.
#[test]
fn a_server_whose_ollama_was_stopped_says_so() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [desktop, nas, client] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let [ollama, shared] = [&desktop, &nas].map(|host| Ollama::start(host, "gpu"));
    let desktop_daemon = Daemon::start_as(&desktop, "desktop", &[]);
    let _nas = Daemon::start_as(&nas, "nas", &["--mode", "server"]);
    let daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || (daemon.count("server up ") == 2).then_some(()));
    drop([ollama, shared]);
    let state = || get(&client, "/ollana/status").map(|answer| answer.body).unwrap_or_default();
    let is_told = |name: &str| {
        state().contains(&format!("\"reason\":\"Ollama isn't running on {name}\"")).then_some(())
    };
    until("told by a server", PATIENCE, || is_told("nas"));
    until("it to be a client", PATIENCE, || {
        (desktop_daemon.count("ready mode=client") == 1).then_some(())
    });
    until("told by a client", PATIENCE, || is_told("desktop"));
    // A server that is down and says nothing is forgotten after a minute.
    throughout(Duration::from_secs(70), || {});
    is_told("desktop").expect("it is told as long as it is so");
    let answer = get(&client, "/api/tags").expect("an answer");
    assert!(answer.body.contains("Ollama isn't running on desktop"), "{answer:?}");
    // Who comes later hears it as well.
    let late = Daemon::start(&lan.host(&[("eth0", 0)]), &[]);
    late.wait_for("no server found in 5 s: ");
    late.wait_for("[WARN] Ollama isn't running on desktop");
    let own = get(&desktop, "/ollana/status").expect("its state").body;
    assert!(!own.contains("isn't running on desktop"), "{own}");
    let _ollama = Ollama::start(&nas, "gpu");
    takes("used again", limits::OLLAMA_CHANGED, || works(&client));
    is_told("desktop").expect("the other one is still told of");
}

#[test]
fn ollamas_commands_change_nothing_and_a_failed_start_costs_a_moment() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [far, here] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _far_ollama = Ollama::start(&far, "far");
    let _far_daemon = Daemon::start(&far, &[]);
    let program = install(&here);
    // This one has a port of its own.
    let other = run(&here, &program, "serve");
    let daemon = Daemon::start_in(&here, here.dir(), &[]);
    takes("found", limits::FOUND, || works(&here));
    for _ in 0..3 {
        end(run(&here, &program, "list"));
    }
    throughout(Duration::from_millis(300), || {
        assert!(get(&here, "/api/version").is_ok_and(|answer| answer.status == 200));
    });
    assert_eq!(daemon.count("leaving its port"), 0);
    let failing = run(&here, &program, "serve");
    daemon.wait_for("leaving its port");
    end(failing);
    takes("nobody came for the port", Duration::from_secs(6), || works(&here));
    until("client again", PATIENCE, || (daemon.count("ready mode=client") == 2).then_some(()));
    // It isn't believed again so soon.
    let failing = run(&here, &program, "serve");
    throughout(Duration::from_millis(300), || {
        assert!(get(&here, "/api/version").is_ok_and(|answer| answer.status == 200));
    });
    end(failing);
    end(other);
}
