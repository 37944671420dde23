//! Bytes are proof of life; slow networks and slow readers.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ollana::config::Settings;

use crate::support::{Chain, Client, Fake, Ollama, Way, World, eventually, post};

/// A chat whose body has about so many bytes.
fn chat(bytes: usize) -> Vec<u8> {
    let text = "x".repeat(bytes);
    let body = format!(
        r#"{{"model":"alpha","stream":false,"messages":[{{"role":"user","content":"{text}"}}]}}"#
    );
    post("/api/chat", body)
}

/// On a kept connection, a body of which an Ollama reads so much before it pauses arrives whole.
fn pauses_for(pause: Duration, read: usize, body: usize) {
    let ollama =
        Ollama::start(World { reads_then_pauses: Some((read, pause)), ..World::with(&["alpha"]) });
    std::thread::scope(|scope| {
        for way in Way::ALL {
            let ollama = &ollama;
            scope.spawn(move || {
                let chain = way.to(ollama);
                let mut client = chain.connect();
                assert_eq!(client.ask(chat(10)).status(), 200, "{way:?}");
                let answer = client.ask(chat(body));
                assert_eq!(answer.status(), 200, "{way:?}: {}", answer.text());
            });
        }
    });
}

#[test]
fn a_reader_that_pauses_is_alive() {
    pauses_for(Duration::from_millis(2500), 1 << 20, 8 << 20);
}

/// What is pooled carries its small requests, and a slow reader's large ones go through.
#[test]
fn a_steady_slow_reader_is_alive() {
    let fake = Fake::unlike_ollama(|call| {
        let mut bytes = 0;
        while let Some(part) = call.read_part() {
            bytes += part.len();
            if bytes >= 100_000 {
                bytes = 0;
                sleep(Duration::from_millis(100));
            }
        }
        call.answer("200 OK", "application/json", "{\"done\":true}");
    });
    std::thread::scope(|scope| {
        for way in Way::ALL {
            for path in ["/api/chat", "/v1/audio/transcriptions", "/api/blobs/sha256:00"] {
                let fake = &fake;
                scope.spawn(move || {
                    let chain = way.to(fake);
                    let mut client = chain.connect();
                    client.get("/api/version");
                    assert_eq!(client.post(path, "{}").status(), 200, "{way:?} {path}");
                    let answer = client.post(path, vec![b' '; 3 << 20]);
                    assert_eq!(answer.status(), 200, "{way:?} {path}: {}", answer.text());
                });
            }
        }
    });
}

/// The network's own limit for unacknowledged bytes is no limit for a reader either.
#[test]
fn a_reader_that_pauses_for_long_is_alive() {
    pauses_for(Duration::from_millis(12_500), 100_000, 2 << 20);
}

/// A kept connection that has died costs nobody an answer, whatever the size of the body.
#[test]
fn a_stale_connection_costs_no_large_body() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            if call.earlier > 0 {
                call.read_part();
                return call.reset();
            }
            let (bytes, _) = call.drain_body();
            call.answer("200 OK", "text/plain", bytes.to_string());
        });
        for budget in [64 << 20, 0] {
            let chain = way.with(&fake, |settings| settings.limits.replay_budget = budget);
            for size in [100, 10_000, 100_000, 5 << 20] {
                let mut client = chain.connect();
                assert_eq!(client.get("/first").status(), 200, "{way:?}");
                for _ in 0..2 {
                    let answer = client.post("/api/chat", vec![b' '; size]);
                    assert_eq!(answer.text(), size.to_string(), "{way:?} {size} of {budget}");
                }
            }
        }
    }
}

/// Two checks in a row that get no answer take a server out, so this long tells that it stays.
const SEVERAL_CHECKS: Duration = Duration::from_secs(6);

/// Whether a daemon calls one of its servers down.
fn calls_down(daemon: SocketAddr) -> bool {
    let status = Client::connect(daemon).get("/ollana/status").json();
    let servers = status["servers"].as_array().expect("servers");
    servers.iter().any(|server| server["health"] == "down")
}

/// No daemon calls a server down for this long.
fn stays_up(chain: &Chain, time: Duration, mut meanwhile: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < time {
        for daemon in chain.servers.iter().chain(&chain.client) {
            let is_down = calls_down(daemon.addresses()[0]);
            assert!(!is_down, "{:?}: called down after {:?}", chain.way, start.elapsed());
        }
        meanwhile();
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_slow_version_is_no_death() {
    let slow = Duration::from_millis(1800);
    let ollama = Ollama::start(World { version_takes: slow, ..World::with(&["alpha"]) });
    std::thread::scope(|scope| {
        for way in Way::ALL {
            let ollama = &ollama;
            scope.spawn(move || {
                let chain = way.to(ollama);
                stays_up(&chain, SEVERAL_CHECKS, || {});
                assert_eq!(chain.connect().ask(chat(10)).status(), 200, "{way:?}");
            });
        }
        scope.spawn(|| {
            let other = Ollama::with(&["beta"]);
            let chain = Chain::direct(&[&ollama, &other], |_| {});
            stays_up(&chain, SEVERAL_CHECKS, || {});
            assert_eq!(chain.connect().ask(chat(10)).status(), 200, "two servers");
        });
    });
}

/// The version never comes, but tokens do.
#[test]
fn tokens_are_proof_of_life() {
    let token_takes = Duration::from_millis(200);
    let ollama = Ollama::start(World { token_takes, tokens: 1000, ..World::with(&["alpha"]) });
    let other = Ollama::with(&["beta"]);
    let chains = [
        Way::TwoHops.to(&ollama),
        Chain::direct(&[&ollama, &other], |_| {}),
        Chain::start(Way::Paired, &[&ollama, &other], |_| {}),
    ];
    let mut clients = chains.each_ref().map(Chain::connect);
    for client in &mut clients {
        client.send(post("/api/generate", r#"{"model":"alpha","prompt":"hi"}"#));
        client.head_of("POST");
    }
    ollama.change(|world| world.version_takes = Duration::from_millis(4500));
    stays_up(&chains[0], SEVERAL_CHECKS, || {
        for client in &mut clients {
            client.read_until(b"\n");
        }
        for chain in &chains[1..] {
            assert!(!calls_down(chain.address()), "two servers, {:?}", chain.way);
        }
    });
    ollama.change(|world| world.version_takes = Duration::ZERO);
    for client in clients {
        client.leave();
    }
}

/// It answers no check for long, but what it is for.
#[test]
fn the_only_server_is_tried() {
    let ollama = Ollama::with(&["alpha"]);
    let other = Ollama::with(&["beta"]);
    let impatient = |settings: &mut Settings| {
        settings.timing.health_timeout = Duration::from_millis(500);
    };
    let both = [&ollama, &other];
    let chains = [Chain::direct(&both, impatient), Chain::start(Way::TwoHops, &both, impatient)];
    ollama.change(|world| world.version_takes = Duration::from_secs(4));
    for chain in &chains {
        eventually("one to be down", || calls_down(chain.address()).then_some(()));
        for n in 0..5 {
            let answer = chain.connect().ask(chat(10));
            assert_eq!(answer.status(), 200, "{:?} {n}: {}", chain.way, answer.text());
        }
    }
    ollama.change(|world| world.version_takes = Duration::ZERO);
}
