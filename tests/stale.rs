//! Connections to the Ollama that went stale: the client never hears of them, and what must not be
//! sent twice isn't.

mod support;

use std::thread;

use support::{CHAT, Client, Fake, INFERENCE, NEVER_TWICE, Ollama, Random, Way, request};

#[test]
fn a_connection_that_goes_stale_as_it_is_used() {
    for way in Way::ALL {
        for reset in [false, true] {
            // Each connection carries one request; the next one finds it closing.
            let fake = Fake::unlike_ollama(move |call| {
                call.read_body();
                match (call.earlier, reset) {
                    (0, _) => call.answer("200 OK", "text/plain", "ok"),
                    (_, true) => call.reset(),
                    (_, false) => call.close(),
                }
            });
            let chain = way.to(&fake);
            let mut client = chain.connect();
            for n in 0..3 {
                for target in INFERENCE {
                    let answer = client.post(target, "{\"model\":\"m\"}");
                    assert_eq!(answer.text(), "ok", "{way:?} reset: {reset}, {n} {target}");
                }
                assert_eq!(client.get("/x").text(), "ok", "{way:?} reset: {reset}, {n}");
            }
            let stale = fake.look(|state| state.records.len()) - 3 * (INFERENCE.len() + 1);
            assert!(stale > 0, "{way:?}: no connection went stale, so nothing was tested");
            for (method, target) in NEVER_TWICE {
                let before = fake.count();
                let answer = client.ask(request(method, target, "{}"));
                assert_eq!(answer.text(), "ok", "{way:?} reset: {reset}, {method} {target}");
                assert_eq!(fake.count(), before + 1, "{way:?} {method} {target}: sent twice");
            }
        }
    }
}

#[test]
fn a_connection_that_goes_stale_with_half_a_body_sent() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            if call.earlier > 0 {
                call.read_part();
                return call.close();
            }
            let body = call.read_body();
            call.answer("200 OK", "text/plain", body);
        });
        let chain = way.to(&fake);
        for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
            let mut client = chain.connect();
            assert_eq!(client.get("/first").status(), 200, "{way:?}");
            let asked = fake.count();
            client.send(format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"));
            let is_chunked = framing.starts_with('T');
            client.send(if is_chunked { "5\r\nhello\r\n" } else { "hello" });
            // Half of it is known to have arrived before the rest of it is sent.
            fake.wait("the first half", |state| {
                state.records.get(asked).filter(|record| !record.body.is_empty()).map(|_| ())
            });
            client.send(if is_chunked { "5\r\nworld\r\n0\r\n\r\n" } else { "world" });
            let answer = client.answer_to("POST");
            assert_eq!(answer.text(), "helloworld", "{way:?} {framing}: {:?}", answer.head);
        }
    }
}

#[test]
fn connections_closed_right_behind_the_answer() {
    for way in Way::ALL {
        // Without a word of it in the answer: the next request may be under way already.
        let fake = Fake::unlike_ollama(|call| {
            call.read_body();
            call.answer("200 OK", "text/plain", "ok");
            call.close();
        });
        let chain = way.to(&fake);
        let address = chain.address();
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    let mut random = Random::new(seed);
                    for n in 0..100 {
                        let answer = match random.below(3) {
                            0 => client.get("/x"),
                            1 => client.post("/api/chat", "{}"),
                            _ => client.post("/api/pull", "{}"),
                        };
                        assert_eq!(answer.text(), "ok", "{way:?} request {n}: {:?}", answer.head);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let twice = fake.look(|state| {
            let pulls = state.records.iter().filter(|record| record.head.target() == "/api/pull");
            pulls.count()
        });
        let wanted: usize = (0..4)
            .map(|seed| {
                let mut random = Random::new(seed);
                (0..100).filter(|_| random.below(3) == 2).count()
            })
            .sum();
        assert_eq!(twice, wanted, "{way:?}: pulls that arrived");
    }
}

#[test]
fn an_ollama_that_restarts_between_two_requests() {
    for way in Way::ALL {
        let mut ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        let pull = r#"{"model":"m","stream":false}"#;
        for n in 0..5 {
            assert_eq!(client.post("/api/chat", CHAT).status(), 200, "{way:?} before restart {n}");
            assert_eq!(client.post("/api/pull", pull).status(), 200, "{way:?} before restart {n}");
            ollama.kill();
            ollama.restart();
        }
    }
}
