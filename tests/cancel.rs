//! A client that leaves stops the work: the Ollama's socket is closed within milliseconds, across
//! both hops, and what it got of an upload never looks whole.

mod support;

use std::time::{Duration, Instant};

use support::{Call, Client, Closed, End, Fake, Gate, Way, chunk, eventually, ndjson, queues};

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

/// The fake's connection of its first request must close soon after `left`.
fn assert_closed_soon(fake: &Fake, left: Instant, phase: &str) {
    let (at, how) = fake.closed(0);
    let took = at.saturating_duration_since(left);
    println!("{phase}: closed after {} µs ({how:?})", took.as_micros());
    assert_ne!(how, Closed::ByUs, "{phase}: the fake gave up first");
    assert!(took < SOON, "{phase}: closed only after {took:?}");
}

/// Runs a phase on every way and in every manner of leaving. `act` brings the client into the
/// phase.
fn in_phase(
    name: &str,
    script: impl Fn(&mut Call<'_>) + Copy + Send + Sync + 'static,
    act: impl Fn(&mut Client, &Fake),
) {
    for way in Way::ALL {
        for leaving in Leaving::ALL {
            let fake = Fake::unlike_ollama(script);
            let chain = way.to(&fake);
            let mut client = chain.connect();
            act(&mut client, &fake);
            let left = leaving.go(client);
            assert_closed_soon(&fake, left, &format!("{name}, {way:?}, {leaving:?}"));
            eventually("the daemon to let go of the connection", || {
                (chain.front().connections() == 0).then_some(())
            });
        }
    }
}

#[test]
fn while_waiting_for_the_first_byte() {
    let waiting = |call: &mut Call<'_>| {
        call.read_body();
        call.hang();
    };
    in_phase("waiting", waiting, |client, fake| {
        client.send(support::post("/api/chat", "{}"));
        fake.whole_request(0);
    });
    in_phase("waiting, never sent twice", waiting, |client, fake| {
        client.send(support::post("/api/pull", "{}"));
        fake.whole_request(0);
    });
    in_phase("waiting, no body", waiting, |client, fake| {
        client.send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
        fake.request(0);
    });
}

#[test]
fn while_a_next_request_is_waiting_behind() {
    let waiting = |call: &mut Call<'_>| {
        call.read_body();
        call.hang();
    };
    in_phase("pipelining", waiting, |client, fake| {
        client.send(support::post("/api/chat", "{}"));
        fake.whole_request(0);
        client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n");
    });
}

#[test]
fn between_two_tokens() {
    let pausing = |call: &mut Call<'_>| {
        call.read_body();
        call.send(ndjson());
        call.send_chunk("{\"response\":\"a\"}\n");
        call.hang();
    };
    in_phase("between tokens", pausing, |client, _| {
        client.send(support::post("/api/chat", "{}"));
        client.head_of("POST");
        client.read_until(b"\n");
    });
}

#[test]
fn in_the_midst_of_a_flood() {
    let flooding = |call: &mut Call<'_>| {
        call.read_body();
        call.send(ndjson());
        let deadline = Instant::now() + support::PATIENCE;
        while call.send_chunk([b'x'; 8000]) && Instant::now() < deadline {}
    };
    in_phase("flood", flooding, |client, _| {
        client.send(support::post("/api/chat", "{}"));
        client.head_of("POST");
        client.read_until(b"x");
    });
}

#[test]
fn while_uploading() {
    let reading = |call: &mut Call<'_>| call.hang_reading();
    for target in ["/api/blobs/sha256:00", "/api/chat"] {
        in_phase("uploading, length", reading, |client, fake| {
            client.send(format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhello"
            ));
            received(fake, 5);
        });
        in_phase("uploading, chunked", reading, |client, fake| {
            client.send(format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n"
            ));
            received(fake, 5);
        });
    }
}

#[test]
fn while_uploading_to_an_ollama_that_reads_nothing() {
    let stalled = |call: &mut Call<'_>| call.hang();
    for framing in ["Content-Length: 900000000", "Transfer-Encoding: chunked"] {
        let head = format!("POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
        let piece = |size| {
            let data = vec![b'x'; size];
            if framing.starts_with('C') { data } else { chunk(data) }
        };
        // So little that all of it fits in between, and every hop waits for the client.
        in_phase(&format!("stalled, {framing}, little sent"), stalled, |client, fake| {
            client.send(&head);
            client.send(piece(10_000));
            fake.request(0);
        });
    }
}

#[test]
fn while_every_hop_waits_to_write() {
    for way in Way::ALL {
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
        // A FIN queues behind bytes that the daemon has no room for, where nobody can see it; then
        // only a reset tells it anything.
        let leaving = if queues(&client).0 == 0 { Leaving::Close } else { Leaving::Reset };
        let left = leaving.go(client);
        assert_closed_soon(&fake, left, &format!("stalled, {sent} bytes, {way:?} {leaving:?}"));
        assert!(!fake.request(0).is_whole, "{way:?}");
    }
}

#[test]
fn while_the_clients_own_buffer_is_full() {
    for way in Way::ALL {
        for framing in ["Content-Length: 900000000", "Transfer-Encoding: chunked"] {
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
            assert_closed_soon(&fake, left, &format!("client blocked, {way:?}, {framing}"));
            assert!(!fake.request(0).is_whole, "{way:?}");
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
            let fake = Fake::unlike_ollama_saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            let chain = way.to(&fake);
            let mut client = chain.connect();
            client.send(format!(
                "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{part}"
            ));
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            let (answer, _) = client.read_to_close();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(!answer.starts_with("HTTP/1.1 200"), "{way:?} {framing} {part:?}: {answer}");
            // Either nothing of it got there, or what did ended with its connection.
            if fake.count() > 0 {
                fake.closed(0);
                let record = fake.request(0);
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
            let fake = Fake::unlike_ollama_saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            let chain = way.to(&fake);
            let mut client = chain.connect();
            client.send(
                "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
                 4\r\ngood\r\n",
            );
            received(&fake, 4);
            client.send(bad);
            let answer = client.answer_to("POST");
            assert_eq!((answer.status(), answer.end), (400, End::Whole), "{way:?} {bad:?}");
            assert!(answer.json()["error"].is_string(), "{way:?} {bad:?}: {}", answer.text());
            assert_eq!(client.expect_close(), End::CutByClose, "{way:?} {bad:?}");
            fake.closed(0);
            assert!(!fake.request(0).is_whole, "{way:?} {bad:?}");
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
