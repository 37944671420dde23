//! Servers with different models.

use std::time::Duration;

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
