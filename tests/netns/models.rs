//! Servers with different models.

use std::time::Duration;

use rustix::process::Signal;

use super::daemon::Daemon;
use super::http::{get, send};
use super::lan::Lan;
use super::ollama::{Ollama, all_lines};
use super::watch::{limits, takes};

#[test]
fn three_servers_with_different_models_are_one() {
    let Some(mut lan) = Lan::new(1) else { return };
    let names = ["red", "green", "blue"];
    let mut servers = names.map(|name| {
        let host = lan.host(&[("eth0", 0)]);
        let ollama = Ollama::start(&host, name);
        Some((ollama, Daemon::start(&host, &[]), host))
    });
    let client = lan.host(&[("eth0", 0)]);
    let _daemon = Daemon::start(&client, &[]);
    let listed = || get(&client, "/api/tags").map(|answer| answer.body).unwrap_or_default();
    let chat = |name: &str| {
        let body = format!("{{\"model\":\"{name}\",\"messages\":[]}}");
        send(&client, "POST", "/api/chat", &body).expect("sent").answer().expect("an answer")
    };
    takes("all models listed", limits::NOTICED, || {
        let all = listed();
        names.iter().all(|name| all.contains(name)).then_some(())
    });
    for name in names {
        for _ in 0..3 {
            assert_eq!(chat(name).body, all_lines(name), "the one that has it answers");
        }
    }
    // One is switched off; its model isn't missing but away, the others' work on.
    drop(servers[1].take());
    let answer = chat("green");
    assert!(answer.status != 404, "a 404 would start a download: {answer:?}");
    assert_eq!(chat("red").body, all_lines("red"));
    assert_eq!(chat("blue").body, all_lines("blue"));
    takes("the list is honest", Duration::from_secs(3), || {
        (!listed().contains("green")).then_some(())
    });
    let answer = chat("green");
    assert!(answer.is_error(503) && answer.body.contains("green"), "{answer:?}");
}

#[test]
fn a_found_server_that_sleeps_is_remembered_over_a_restart() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [desktop, nas, client] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let asleep = (Ollama::start(&desktop, "green"), Daemon::start(&desktop, &[]));
    let (_red, _nas) = (Ollama::start(&nas, "red"), Daemon::start(&nas, &[]));
    let mut daemon = Daemon::start(&client, &[]);
    let listed = || get(&client, "/api/tags").map(|answer| answer.body).unwrap_or_default();
    let both = || (listed().contains("green") && listed().contains("red")).then_some(());
    takes("both models listed", limits::NOTICED, both);
    drop(asleep);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let _daemon = Daemon::start(&client, &[]);
    takes("the other one found", limits::FOUND, || listed().contains("red").then_some(()));
    let body = r#"{"model":"green"}"#;
    for target in ["/api/show", "/api/chat", "/v1/chat/completions"] {
        let call = send(&client, "POST", target, body).expect("sent");
        let answer = call.answer().expect("an answer");
        assert!(answer.is_error(503), "a 404 would start a download: {target} {answer:?}");
        assert!(answer.body.contains("which is away, last seen"), "{target} {answer:?}");
    }
}
