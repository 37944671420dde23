//! Bytes are proof of life; slow networks and slow readers.

use std::thread::sleep;
use std::time::Duration;

use crate::support::{Fake, Ollama, Way, World, post};

/// A chat whose body has about so many bytes.
fn chat(bytes: usize) -> Vec<u8> {
    let text = "x".repeat(bytes);
    let body = format!(
        r#"{{"model":"alpha","stream":false,"messages":[{{"role":"user","content":"{text}"}}]}}"#
    );
    post("/api/chat", body)
}

#[test]
fn a_reader_that_pauses_is_alive() {
    let ollama = Ollama::start(World {
        reads_then_pauses: Some((1 << 20, Duration::from_millis(2500))),
        ..World::with(&["alpha"])
    });
    std::thread::scope(|scope| {
        for way in Way::ALL {
            let ollama = &ollama;
            scope.spawn(move || {
                let chain = way.to(ollama);
                let mut client = chain.connect();
                assert_eq!(client.ask(chat(10)).status(), 200, "{way:?}");
                let answer = client.ask(chat(8 << 20));
                assert_eq!(answer.status(), 200, "{way:?}: {}", answer.text());
            });
        }
    });
}

/// What is pooled carries its small requests, and a slow reader's large ones go through.
#[test]
fn a_steady_slow_reader_is_alive() {
    let fake = Fake::start(|call| {
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
    let ollama = Ollama::start(World {
        reads_then_pauses: Some((100_000, Duration::from_millis(12_500))),
        ..World::with(&["alpha"])
    });
    let chain = Way::OneHop.to(&ollama);
    let mut client = chain.connect();
    assert_eq!(client.ask(chat(10)).status(), 200);
    let answer = client.ask(chat(2 << 20));
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

/// A kept connection that has died costs nobody an answer, whatever the size of the body.
#[test]
fn a_stale_connection_costs_no_large_body() {
    for way in Way::ALL {
        let fake = Fake::start(|call| {
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
