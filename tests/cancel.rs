//! A client that leaves stops the work: the Ollama's socket is closed within milliseconds, across
//! both hops, and what it got of an upload never looks whole.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{
    CHAT, Call, Client, Closed, End, Fake, Gate, MODEL, Ollama, Way, World, chunk, eventually,
    queues, request, soon,
};

/// The promise is 100 ms; this allows for a busy machine.
const SOON: Duration = Duration::from_millis(500);

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Close,
    Reset,
}

impl Leaving {
    const ALL: [Leaving; 2] = [Leaving::Close, Leaving::Reset];

    fn go(self, client: Client) -> Instant {
        match self {
            Leaving::Close => client.leave(),
            Leaving::Reset => client.reset(),
        }
    }
}

/// How long after `left` the fake's connection of its first request is closed.
fn closed_after(fake: &Fake, left: Instant, phase: &str) -> Duration {
    let (at, how) = fake.closed(0);
    let took = at.saturating_duration_since(left);
    println!("{phase}: closed after {} µs ({how:?})", took.as_micros());
    assert_ne!(how, Closed::ByUs, "{phase}: the fake gave up first");
    took
}

/// A stream of lines, or as many as its tokens are.
const STREAM: &str = r#"{"model":"m","prompt":"hi"}"#;

/// An upload that the Ollama wants.
fn blob() -> String {
    format!("/api/blobs/sha256:{}", "0".repeat(64))
}

/// A machine on which a model takes its time to be loaded.
fn loading() -> World {
    World { loading: Some(Gate::new()), ..World::with(&["m"]) }
}

/// A machine on which this befalls every request.
fn with_fate(fate: fn(&mut Call<'_>)) -> World {
    World { fate: Some(Arc::new(fate)), ..World::with(&["m"]) }
}

/// Runs a phase on every way and in every manner of leaving. `act` brings the client into the
/// phase.
fn in_phase(name: &str, world: impl Fn() -> World, act: impl Fn(&mut Client, &Ollama)) {
    for way in Way::ALL {
        for leaving in Leaving::ALL {
            let phase = format!("{name}, {way:?}, {leaving:?}");
            soon(&phase, SOON, || {
                let ollama = Ollama::start(world());
                let chain = way.to(&ollama);
                let mut client = chain.connect();
                act(&mut client, &ollama);
                let left = leaving.go(client);
                let took = closed_after(&ollama, left, &phase);
                eventually("the daemon to let go of the connection", || {
                    (chain.front().connections() == 0).then_some(())
                });
                took
            });
        }
    }
}

#[test]
fn while_waiting_for_the_first_byte() {
    in_phase("waiting", loading, |client, ollama| {
        client.send(support::post("/api/chat", CHAT));
        ollama.whole_request(0);
    });
    let reading = || with_fate(|call| call.hang_reading());
    in_phase("waiting, never sent twice", reading, |client, ollama| {
        client.send(support::post("/api/pull", r#"{"model":"m"}"#));
        ollama.whole_request(0);
    });
    // What only reads is answered to clients that have ended their half, so it isn't this.
    in_phase("waiting, no body", reading, |client, ollama| {
        client.send(request("GET", "/x", ""));
        ollama.request(0);
    });
}

#[test]
fn while_a_next_request_is_waiting_behind() {
    in_phase("pipelining", loading, |client, ollama| {
        client.send(support::post("/api/chat", CHAT));
        ollama.whole_request(0);
        client.send(request("GET", MODEL, ""));
    });
}

#[test]
fn between_two_tokens() {
    let pausing = || World { hold: Some(Gate::new()), ..World::with(&["m"]) };
    in_phase("between tokens", pausing, |client, _| {
        client.send(support::post("/api/generate", STREAM));
        client.head_of("POST");
        client.read_until(b"\n");
    });
}

#[test]
fn in_the_midst_of_a_flood() {
    let flooding = || World { tokens: usize::MAX, ..World::with(&["m"]) };
    in_phase("flood", flooding, |client, _| {
        client.send(support::post("/api/generate", STREAM));
        client.head_of("POST");
        client.read_until(b"\n");
    });
}

#[test]
fn while_uploading() {
    let reading = || World::with(&["m"]);
    for target in [&*blob(), "/api/chat"] {
        in_phase("uploading, length", reading, |client, ollama| {
            client.send(format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhello"
            ));
            received(ollama, 5);
        });
        in_phase("uploading, chunked", reading, |client, ollama| {
            client.send(format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n"
            ));
            received(ollama, 5);
        });
    }
}

#[test]
fn while_uploading_to_an_ollama_that_reads_nothing() {
    let stalled = || with_fate(|call| call.hang());
    for framing in ["Content-Length: 900000000", "Transfer-Encoding: chunked"] {
        let head = format!("POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
        let piece = |size| {
            let data = vec![b'x'; size];
            if framing.starts_with('C') { data } else { chunk(data) }
        };
        // So little that all of it fits in between, and every hop waits for the client.
        in_phase(&format!("stalled, {framing}, little sent"), stalled, |client, ollama| {
            client.send(&head);
            client.send(piece(10_000));
            ollama.request(0);
        });
    }
}

#[test]
fn while_every_hop_waits_to_write() {
    for way in Way::ALL {
        soon(&format!("stalled, {way:?}"), SOON, || {
            let fake = Fake::unlike_ollama(|call| call.hang());
            let chain = way.to(&fake);
            let mut client = chain.connect();
            client.send(
                "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n",
            );
            fake.request(0);
            let mut sent = 0;
            while is_taken(&client) {
                assert!(sent < 64 << 20, "{way:?}: {sent} bytes were swallowed");
                sent += 512 * 1024;
                client.send(vec![b'x'; 512 * 1024]);
            }
            // A FIN queues behind bytes that the daemon has no room for, where nobody can see it;
            // then only a reset tells it anything.
            let leaving = if queues(&client).0 == 0 { Leaving::Close } else { Leaving::Reset };
            let left = leaving.go(client);
            let phase = format!("stalled, {sent} bytes, {way:?} {leaving:?}");
            let took = closed_after(&fake, left, &phase);
            assert!(!fake.request(0).is_whole, "{way:?}");
            took
        });
    }
}

#[test]
fn while_the_clients_own_buffer_is_full() {
    for way in Way::ALL {
        for framing in ["Content-Length: 900000000", "Transfer-Encoding: chunked"] {
            let phase = format!("client blocked, {way:?}, {framing}");
            soon(&phase, SOON, || {
                let fake = Fake::unlike_ollama(|call| call.hang());
                let chain = way.to(&fake);
                let mut client = chain.connect();
                client.send(format!(
                    "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
                ));
                client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                let block = chunk([b'x'; 1 << 20]);
                let blocked = (0..200).any(|_| !client.try_send(&block));
                assert!(blocked, "{way:?} {framing}: 200 MB were swallowed");
                let left = client.reset();
                let took = closed_after(&fake, left, &phase);
                assert!(!fake.request(0).is_whole, "{way:?}");
                took
            });
        }
    }
}

#[test]
fn a_truncated_upload_never_looks_whole() {
    for way in Way::ALL {
        for (framing, part) in [
            ("Content-Length: 6", "hello"),
            ("Content-Length: 6", ""),
            ("Transfer-Encoding: chunked", ""),
            ("Transfer-Encoding: chunked", "5"),
            ("Transfer-Encoding: chunked", "5\r\nhel"),
            ("Transfer-Encoding: chunked", "5\r\nhello"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nX-Trailer: t\r\n"),
        ] {
            let ollama = Ollama::with(&["m"]);
            let chain = way.to(&ollama);
            let mut client = chain.connect();
            client.send(format!(
                "POST {} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{part}",
                blob()
            ));
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            let (answer, _) = client.read_to_close();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(!answer.starts_with("HTTP/1.1 2"), "{way:?} {framing} {part:?}: {answer}");
            // Either nothing of it got there, or what did ended with its connection.
            if ollama.count() > 0 {
                ollama.closed(0);
                let record = ollama.request(0);
                assert!(!record.is_whole, "{way:?} {framing} {part:?}: {record:?}");
                assert!(!record.raw_body.ends_with(b"0\r\n\r\n"), "{way:?} {part:?}: {record:?}");
            }
        }
    }
}

#[test]
fn malformed_chunks_end_the_upload() {
    for way in Way::ALL {
        for bad in ["5\r\nhelloX", "x\r\n", "-1\r\n", "5 \r\nhello\r\n", "\r\n", "5\nhello\n0\n\n"]
        {
            let ollama = Ollama::with(&["m"]);
            let chain = way.to(&ollama);
            let mut client = chain.connect();
            client.send(format!(
                "POST {} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
                 4\r\ngood\r\n",
                blob()
            ));
            received(&ollama, 4);
            client.send(bad);
            let answer = client.answer_to("POST");
            assert_eq!((answer.status(), answer.end), (400, End::Whole), "{way:?} {bad:?}");
            assert!(answer.json()["error"].is_string(), "{way:?} {bad:?}: {}", answer.text());
            assert_eq!(client.expect_close(), End::CutByClose, "{way:?} {bad:?}");
            ollama.closed(0);
            assert!(!ollama.request(0).is_whole, "{way:?} {bad:?}");
        }
    }
}

#[test]
fn the_next_client_is_served_after_a_cancelled_one() {
    for way in Way::ALL {
        let gate = Gate::new();
        let held = gate.clone();
        let fake = Fake::unlike_ollama(move |call| {
            call.read_body();
            if call.target() == "/api/chat" {
                return call.hang();
            }
            call.wait(&held, "the first client to leave");
            call.answer("200 OK", "text/plain", "served");
        });
        let chain = way.to(&fake);
        let mut first = chain.connect();
        first.send(support::post("/api/chat", "{}"));
        fake.whole_request(0);
        let mut second = chain.connect();
        second.send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
        fake.request(1);
        first.leave();
        fake.closed(0);
        gate.open();
        assert_eq!(second.answer_to("GET").text(), "served", "{way:?}");
    }
}

/// Waits until the fake has so much of the first request's body.
fn received(fake: &Fake, size: usize) {
    fake.wait(&format!("{size} bytes of an upload"), |state| {
        (state.records.first()?.body.len() >= size).then_some(())
    });
}

/// Whether the daemon takes what the client has sent; false once it stays where it is.
fn is_taken(client: &Client) -> bool {
    let mut last = (0, 0);
    let mut changed = Instant::now();
    eventually("the client's bytes to be taken, or to stay", || {
        let now = queues(client);
        if now != last {
            (last, changed) = (now, Instant::now());
        }
        (now == (0, 0) || changed.elapsed() > Duration::from_millis(200)).then_some(now == (0, 0))
    })
}
