//! Nothing of a stream stays in a proxy: gates let the next token go only when the one before has
//! been read at the other end.

mod support;

use support::{End, Fake, Gate, Ollama, Random, Sum, Way, chunk, ndjson};

/// Tokens of one stream.
const TOKENS: usize = 20;

/// A gate per step of a stream.
fn gates(count: usize) -> Vec<Gate> {
    (0..count).map(|_| Gate::new()).collect()
}

/// Sends `head`, then each token once the token before was read, framed by `frame`.
fn paced(
    head: &'static str,
    gates: Vec<Gate>,
    frame: fn(&str) -> Vec<u8>,
    end: &'static [u8],
) -> Fake {
    Fake::unlike_ollama(move |call| {
        call.read_body();
        call.send(head);
        for (n, gate) in gates.iter().enumerate() {
            call.wait(gate, &format!("the client to read what comes before token {n}"));
            call.send(frame(&token(n)));
        }
        call.send(end);
        if end.is_empty() {
            call.close();
        }
    })
}

fn token(n: usize) -> String {
    format!("{{\"response\":\"{n}\",\"done\":{}}}\n", n + 1 == TOKENS)
}

#[test]
fn each_token_arrives_before_the_next_one_exists() {
    let sse = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
               Transfer-Encoding: chunked\r\n\r\n";
    let until_close = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n";
    for way in Way::ALL {
        for (name, head, target, version, end) in [
            ("lines", ndjson(), "/api/chat", "1.1", &b"0\r\n\r\n"[..]),
            ("events", sse, "/v1/chat/completions", "1.1", b"0\r\n\r\n"),
            ("until close", until_close, "/api/generate", "1.1", b""),
            ("to an HTTP/1.0 client", ndjson(), "/api/chat", "1.0", b"0\r\n\r\n"),
        ] {
            let gates = gates(TOKENS);
            let frame: fn(&str) -> Vec<u8> =
                if end.is_empty() { |t| t.as_bytes().to_vec() } else { |t| chunk(t) };
            let fake = paced(head, gates.clone(), frame, end);
            let chain = way.to(&fake);
            let mut client = chain.connect();
            client.send(format!(
                "POST {target} HTTP/{version}\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"
            ));
            // The head comes while no byte of the body exists.
            assert_eq!(client.head_of("POST").status(), 200, "{way:?} {name}");
            for (n, gate) in gates.iter().enumerate() {
                gate.open();
                let got = client.read_until(b"\n");
                assert_eq!(String::from_utf8_lossy(&got), token(n), "{way:?} {name}");
            }
            assert_eq!(client.rest(), (Vec::new(), End::Whole), "{way:?} {name}");
        }
    }
}

#[test]
fn chunks_of_a_line_stay_in_step_with_their_length() {
    // A body of known length that trickles is passed on as it comes, too.
    for way in Way::ALL {
        let gates = gates(10);
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n";
        let theirs = gates.clone();
        let fake = Fake::unlike_ollama(move |call| {
            call.send(head);
            for gate in &theirs {
                call.wait(gate, "the client to read five bytes");
                call.send("12345");
            }
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        client.send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head_of("GET").length(), Some(50), "{way:?}");
        for gate in &gates {
            gate.open();
            assert_eq!(client.read_until(b"5"), b"12345", "{way:?}");
        }
        assert_eq!(client.rest(), (Vec::new(), End::Whole), "{way:?}");
    }
}

#[test]
fn what_comes_with_the_head_leaves_with_it() {
    for way in Way::ALL {
        let gate = Gate::new();
        let held = gate.clone();
        let fake = Fake::unlike_ollama(move |call| {
            call.read_body();
            call.send([ndjson().as_bytes(), &chunk("{\"a\":1}\n")].concat());
            call.wait(&held, "the client to read the first line");
            call.send("0\r\n\r\n");
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        client.send(support::post("/api/chat", "{}"));
        assert_eq!(client.head_of("POST").status(), 200, "{way:?}");
        assert_eq!(client.read_until(b"\n"), b"{\"a\":1}\n", "{way:?}");
        gate.open();
        assert_eq!(client.rest(), (Vec::new(), End::Whole), "{way:?}");
    }
}

#[test]
fn half_a_chunk_is_passed_on() {
    for way in Way::ALL {
        let gate = Gate::new();
        let held = gate.clone();
        let fake = Fake::unlike_ollama(move |call| {
            call.read_body();
            call.send(ndjson());
            call.send("a\r\n12345");
            call.wait(&held, "the client to read half a chunk");
            call.send("67890\r\n0\r\n\r\n");
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        client.send(
            "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        client.send("6\r\nabc");
        fake.wait(&format!("half a chunk of the body, {way:?}"), |state| {
            // The next hop may frame it as it likes.
            let raw = &state.records.first()?.raw_body;
            raw.windows(3).any(|three| three == b"abc").then_some(())
        });
        client.send("def\r\n0\r\n\r\n");
        assert_eq!(client.head_of("POST").status(), 200, "{way:?}");
        assert_eq!(client.read_until(b"5"), b"12345", "{way:?}");
        gate.open();
        assert_eq!(client.rest(), (b"67890".to_vec(), End::Whole), "{way:?}");
        assert_eq!(fake.request(0).body, b"abcdef", "{way:?}");
    }
}

#[test]
fn a_line_of_8_mb_arrives_intact() {
    for way in Way::ALL {
        let mut line = Random::new(8).bytes(8 << 20);
        line.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
        line.push(b'\n');
        let sent = Sum::of(&line);
        let fake = Fake::unlike_ollama(move |call| {
            call.read_body();
            call.send(ndjson());
            call.send_chunk(&line);
            call.send("0\r\n\r\n");
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        client.send(support::post("/api/chat", "{}"));
        assert_eq!(client.head_of("POST").status(), 200, "{way:?}");
        assert_eq!(client.drain(), (sent, End::Whole), "{way:?}");
    }
}

#[test]
fn an_upload_streams() {
    for way in Way::ALL {
        // What isn't JSON is refused once it is whole.
        for (target, status) in [("/api/blobs/sha256:", 201), ("/api/chat", 400)] {
            let fake = Ollama::with(&["m"]);
            let chain = way.to(&fake);
            let mut client = chain.connect();
            for (n, framing) in
                ["Content-Length: 50", "Transfer-Encoding: chunked"].iter().enumerate()
            {
                let digest = if status == 201 { format!("{n:064}") } else { String::new() };
                client.send(format!(
                    "POST {target}{digest} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
                ));
                for part in 1..=10 {
                    let data = "12345";
                    client.send(if n == 0 { data.into() } else { chunk(data) });
                    // Only then does the client send the next part.
                    fake.wait(&format!("part {part} of an upload, {way:?} {framing}"), |state| {
                        let record = state.records.get(n)?;
                        (record.body.len() == part * 5).then_some(())
                    });
                }
                if n == 1 {
                    assert!(!fake.request(n).is_whole, "{way:?}: ended before the client did");
                    client.send("0\r\n\r\n");
                }
                assert_eq!(client.answer_to("POST").status(), status, "{way:?} {framing}");
                assert!(fake.request(n).is_whole, "{way:?} {framing}");
            }
        }
    }
}

#[test]
fn an_interim_answer_stops_no_upload() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            call.send("HTTP/1.1 100 Continue\r\n\r\n");
            call.read_part();
            call.send("HTTP/1.1 102 Processing\r\n\r\n");
            let body = call.read_body();
            call.answer("201 Created", "text/plain", body);
        });
        let chain = way.to(&fake);
        for (framing, pieces, end) in [
            ("Content-Length: 6", ["abc", "def"], ""),
            ("Transfer-Encoding: chunked", ["3\r\nabc\r\n", "3\r\ndef\r\n"], "0\r\n\r\n"),
        ] {
            let mut client = chain.connect();
            let index = fake.count();
            client.send(format!(
                "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
            ));
            for (n, piece) in pieces.iter().enumerate() {
                client.send(piece);
                fake.wait(&format!("part {n}, {way:?} {framing}"), |state| {
                    (state.records.get(index)?.body.len() == 3 * (n + 1)).then_some(())
                });
            }
            client.send(end);
            let answer = client.answer_to("POST");
            assert_eq!((answer.status(), &*answer.text()), (201, "def"), "{way:?} {framing}");
            assert_eq!(fake.request(index).body, b"abcdef", "{way:?} {framing}");
        }
    }
}

#[test]
fn bulk_goes_both_ways_unchanged() {
    for way in Way::ALL {
        let block = Random::new(16).bytes(1 << 20);
        let mut sum = Sum::default();
        (0..16).for_each(|_| sum.add(&block));
        let down = block.clone();
        let fake = Fake::unlike_ollama(move |call| {
            let (length, hash) = call.drain_body();
            if call.target() == "/up" {
                return call.answer("200 OK", "text/plain", format!("{length} {hash}"));
            }
            call.send("HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n");
            for _ in 0..16 {
                call.send(&down);
            }
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        client.send("GET /down HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head_of("GET").length(), Some(16 << 20));
        assert_eq!(client.drain(), (sum.get(), End::Whole), "{way:?} down");
        let (length, hash) = sum.get();
        for framing in ["Content-Length: 16777216", "Transfer-Encoding: chunked"] {
            client.send(format!("POST /up HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"));
            for _ in 0..16 {
                client.send(if framing.starts_with('C') { block.clone() } else { chunk(&block) });
            }
            if framing.starts_with('T') {
                client.send("0\r\n\r\n");
            }
            assert_eq!(client.answer_to("POST").text(), format!("{length} {hash}"), "{way:?} up");
        }
    }
}
