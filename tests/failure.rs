//! An Ollama that dies within an answer: the client is told in the stream's own format, exactly
//! once, and the answer never looks whole.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Call, Chain, Client, End, Fake, Gate, INFERENCE, Ollama, Way, World, chunk};

/// The promise is 200 ms; this allows for a busy machine. Nothing else ends such a wait for minutes.
const SOON: Duration = Duration::from_secs(4);

/// A request for a stream in the words of every API.
const STREAM: &str = r#"{"model":"m","prompt":"a","input":"a","max_tokens":5,"stream":true,
    "messages":[{"role":"user","content":"a"}]}"#;

#[derive(Clone, Copy, Debug)]
enum Death {
    Close,
    Reset,
}

impl Death {
    const ALL: [Death; 2] = [Death::Close, Death::Reset];

    fn befall(self, call: &mut Call<'_>) {
        match self {
            Death::Close => call.close(),
            Death::Reset => call.reset(),
        }
    }
}

/// What a client saw of an answer that broke off.
struct Broken {
    /// What came after the death.
    rest: String,
    end: End,
}

/// Asks for `target`; the fake sends `sent` and dies when the client has read all of the body in it.
fn broken(way: Way, death: Death, request: &str, sent: &[u8], read: &[u8]) -> Broken {
    let gate = Gate::new();
    let (theirs, answer) = (gate.clone(), sent.to_vec());
    let fake = Fake::unlike_ollama(move |call| {
        call.read_body();
        call.send(&answer);
        call.wait(&theirs, "the client to read the start of the answer");
        death.befall(call);
    });
    let chain = way.to(&fake);
    let mut client = chain.connect();
    client.send(request);
    let method = request.split(' ').next().unwrap();
    assert_eq!(client.head_of(method).status(), 200, "{way:?} {death:?}");
    let got = client.read_until(read);
    assert_eq!(got, read, "{way:?} {death:?}");
    let died = Instant::now();
    gate.open();
    let (rest, end) = client.rest();
    let took = died.elapsed();
    let target = request.split(' ').nth(1).unwrap();
    println!("{target}, {way:?}, {death:?}: told after {} µs ({end:?})", took.as_micros());
    assert!(took < SOON, "{way:?} {death:?}: told only after {took:?}");
    assert_eq!(fake.count(), 1, "{way:?} {death:?}: a started answer is never asked for again");
    Broken { rest: String::from_utf8(rest).unwrap(), end }
}

fn head(content_type: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n")
        .into_bytes()
}

fn post(target: &str) -> String {
    String::from_utf8(support::post(target, "{}")).unwrap()
}

#[test]
fn a_stream_of_lines_ends_with_one_error_line() {
    for way in Way::ALL {
        for death in Death::ALL {
            let line = b"{\"response\":\"a\"}\n";
            let sent = [head("application/x-ndjson"), chunk(line)].concat();
            let Broken { rest, end } = broken(way, death, &post("/api/generate"), &sent, line);
            assert_ne!(end, End::Whole, "{way:?} {death:?}: {rest}");
            let lines: Vec<Value> =
                rest.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            assert_eq!(lines.len(), 1, "{way:?} {death:?}: exactly one error line: {rest}");
            let message = lines[0]["error"].as_str().unwrap();
            assert!(
                message.contains("127.0.0.1:"),
                "{way:?} {death:?}: names the server: {message}"
            );
        }
    }
}

#[test]
fn a_broken_line_is_ended_before_the_error() {
    for way in Way::ALL {
        for death in Death::ALL {
            let begun = b"{\"response\":\"a\"}\n{\"resp";
            for framed in [chunk(begun), b"ff\r\n{\"response\":\"a\"}\n{\"resp".to_vec()] {
                let sent = [head("application/x-ndjson; charset=utf-8"), framed].concat();
                let Broken { rest, end } = broken(way, death, &post("/api/chat"), &sent, begun);
                assert_ne!(end, End::Whole, "{way:?} {death:?}: {rest}");
                let error = rest.strip_prefix('\n').unwrap_or_else(|| panic!("{way:?}: {rest:?}"));
                let value: Value = serde_json::from_str(error).unwrap();
                assert!(value["error"].is_string(), "{way:?} {death:?}: {rest}");
                assert_eq!(error.lines().count(), 1, "{way:?} {death:?}: {rest}");
            }
        }
    }
}

#[test]
fn openai_events_end_with_one_error_event() {
    for way in Way::ALL {
        for death in Death::ALL {
            for target in ["/v1/chat/completions", "/v1/completions"] {
                let event = b"data: {\"choices\":[]}\n\n";
                let sent = [head("text/event-stream"), chunk(event)].concat();
                let Broken { rest, end } = broken(way, death, &post(target), &sent, event);
                assert_ne!(end, End::Whole, "{way:?} {death:?}: {rest}");
                let data = rest.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\n"));
                let data = data.unwrap_or_else(|| panic!("{way:?} {death:?}: {rest:?}"));
                let value: Value = serde_json::from_str(data).unwrap();
                assert!(value["error"]["message"].is_string(), "{way:?} {death:?}: {rest}");
                assert!(!rest.contains("[DONE]"), "{way:?} {death:?}: {rest}");
            }
        }
    }
}

#[test]
fn anthropic_events_end_with_one_error_event() {
    for way in Way::ALL {
        for death in Death::ALL {
            let event = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
            let sent = [head("text/event-stream; charset=utf-8"), chunk(event)].concat();
            let Broken { rest, end } = broken(way, death, &post("/v1/messages"), &sent, event);
            assert_ne!(end, End::Whole, "{way:?} {death:?}: {rest}");
            let data = rest.strip_prefix("event: error\ndata: ");
            let data = data.and_then(|text| text.strip_suffix("\n\n"));
            let data = data.unwrap_or_else(|| panic!("{way:?} {death:?}: {rest:?}"));
            let value: Value = serde_json::from_str(data).unwrap();
            assert_eq!(value["type"], "error", "{way:?} {death:?}: {rest}");
            assert!(value["error"]["message"].is_string(), "{way:?} {death:?}: {rest}");
        }
    }
}

#[test]
fn nothing_is_added_where_it_would_be_taken_for_data() {
    for way in Way::ALL {
        for death in Death::ALL {
            let json = [head("application/json"), chunk("{\"a\":")].concat();
            let Broken { rest, end } = broken(way, death, &post("/api/show"), &json, b"{\"a\":");
            assert!(rest.is_empty() && end != End::Whole, "{way:?} {death:?}: {rest:?} {end:?}");

            for media in ["application/x-ndjson", "application/octet-stream"] {
                let length = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: 900\r\n\r\nhello"
                );
                let request = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
                let Broken { rest, end } = broken(way, death, request, length.as_bytes(), b"hello");
                assert!(
                    rest.is_empty() && end != End::Whole,
                    "{way:?} {death:?}: {rest:?} {end:?}"
                );
            }
        }
    }
}

#[test]
fn a_reset_ends_even_what_has_no_framing_in_a_failure() {
    // After a plain close nobody can know that such an answer was to be longer.
    for way in Way::ALL {
        let sent = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n{\"a\":1}\n";
        let Broken { rest, end } =
            broken(way, Death::Reset, &post("/api/chat"), sent, b"{\"a\":1}\n");
        assert_ne!(end, End::Whole, "{way:?}: {rest}");
    }
}

#[test]
fn an_http_1_0_client_sees_a_reset() {
    for way in Way::ALL {
        for death in Death::ALL {
            for (media, target) in
                [("application/x-ndjson", "/api/chat"), ("application/octet-stream", "/x")]
            {
                let sent = [head(media), chunk("hello\n")].concat();
                let request = format!("POST {target} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}");
                let Broken { end, .. } = broken(way, death, &request, &sent, b"hello\n");
                // Anything else is how a whole answer ends.
                assert_eq!(end, End::CutByReset, "{way:?} {death:?} {media}");
            }
        }
    }
}

#[test]
fn a_server_proxy_that_ends_is_no_better_than_an_ollama_that_dies() {
    let ollama = Ollama::start(World { hold: Some(Gate::new()), ..World::with(&["m"]) });
    let mut chain = Way::TwoHops.to(&ollama);
    let mut client = chain.connect();
    client.send(support::post("/api/chat", STREAM));
    client.head_of("POST");
    client.read_until(b"\n");
    let died = Instant::now();
    chain.servers.clear();
    let (rest, end) = client.rest();
    assert!(died.elapsed() < SOON, "told only after {:?}", died.elapsed());
    assert_ne!(end, End::Whole);
    let rest = String::from_utf8(rest).unwrap();
    let line: Value = serde_json::from_str(&rest).unwrap();
    assert!(line["error"].is_string(), "{rest}");
}

/// What Ollama streams on each of its paths ends in an error of that path.
#[test]
fn every_stream_of_ollamas_ends_in_an_error() {
    for way in Way::ALL {
        for target in INFERENCE.iter().filter(|target| !target.contains("embed")) {
            let gate = Gate::new();
            let world = World { hold: Some(gate.clone()), ..World::with(&["m"]) };
            let mut ollama = Ollama::start(world);
            let chain = way.to(&ollama);
            let mut client = chain.connect();
            client.send(support::post(target, STREAM));
            assert_eq!(client.head_of("POST").status(), 200, "{way:?} {target}");
            client.piece().expect("a first token");
            ollama.kill();
            gate.open();
            let (rest, end) = client.rest();
            let rest = String::from_utf8(rest).unwrap();
            assert_ne!(end, End::Whole, "{way:?} {target}: {rest}");
            let last = rest.lines().rfind(|line| !line.is_empty()).expect("a last line");
            let last = last.strip_prefix("data: ").unwrap_or(last);
            let error: Value = serde_json::from_str(last).expect("JSON");
            let error = if error["response"].is_object() { &error["response"] } else { &error };
            let message = error["error"]["message"].as_str().or(error["error"].as_str());
            assert!(message.is_some_and(|text| text.contains("127.0.0.1:")), "{target}: {rest}");
            assert!(!rest.contains("[DONE]"), "{way:?} {target}: {rest}");
            assert_eq!(ollama.count(), 1, "{way:?} {target}: asked for again");
        }
    }
}

#[test]
fn an_error_that_ollama_told_itself_stays_the_only_one() {
    for way in Way::ALL {
        for death in Death::ALL {
            let lines =
                b"{\"response\":\"a\"}\n{\"error\":\"model runner has unexpectedly stopped\"}\n";
            let sent = [head("application/x-ndjson"), chunk(lines)].concat();
            let Broken { rest, end } = broken(way, death, &post("/api/chat"), &sent, lines);
            assert_ne!(end, End::Whole, "{way:?} {death:?}");
            assert_eq!(rest, "", "{way:?} {death:?}");
        }
    }
}

#[test]
fn one_broken_stream_leaves_the_others_alone() {
    for way in Way::ALL {
        let gate = Gate::new();
        let theirs = gate.clone();
        let fake = Fake::unlike_ollama(move |call| {
            call.read_body();
            call.send(support::ndjson());
            call.send_chunk("{\"a\":1}\n");
            call.wait(&theirs, "every client to read its first line");
            if call.target() == "/api/generate" {
                return call.reset();
            }
            call.send_chunk("{\"a\":2}\n");
            call.send("0\r\n\r\n");
        });
        let chain: Chain = way.to(&fake);
        let mut clients: Vec<Client> = (0..8).map(|_| chain.connect()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(post(if n % 2 == 0 { "/api/generate" } else { "/api/chat" }));
            client.head_of("POST");
            client.read_until(b"\n");
        }
        gate.open();
        for (n, client) in clients.iter_mut().enumerate() {
            let (rest, end) = client.rest();
            let is_whole = end == End::Whole && rest == b"{\"a\":2}\n";
            assert_eq!(is_whole, n % 2 == 1, "{way:?} stream {n}: {end:?}");
        }
    }
}
