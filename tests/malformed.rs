//! Heads that two readers could understand differently are refused, and nothing of them, nor of
//! what a smuggler hides behind them, reaches the Ollama. Answers like that don't reach the client.

mod support;

use std::time::{Duration, Instant};

use support::{Client, End, Fake, MODEL, Ollama, Way, eventually, post, request};

/// What Ollama says of a path that it does not have.
const NO_PATH: &str = "404 page not found";
/// What a smuggler would like to be seen as a request of its own.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Heads that may not be served. The bodies of those that have one are whole.
const MALFORMED: &[&str] = &[
    // Two framings, or one that can be read in two ways (CVE-2026-66752 and its kin).
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5 5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5.0\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: \"5\"\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5;\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked;x=1\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HEAD /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    // Line ends and characters.
    "POST /x HTTP/1.1\nHost: localhost\nContent-Length: 5\n\nhello",
    "POST /x HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n",
    "POST /x HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n0\r\n\r\n",
    "GET /x HTTP/1.1\nHost: localhost\r\n\r\n",
    "GET /x HTTP/1.1\nHost: localhost\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX: y\n\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX: y\rZ: w\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX: y\0\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX: y\x07\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX: y\x7f\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX: y\r\n folded\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\n\tX: y\r\n\r\n",
    "GET /x HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX\u{e9}: y\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nX Y: z\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\n: y\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
    "\rGET /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "\r\n\r\n\r\n\r\n\r\nGET /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    // Hosts.
    "GET /x HTTP/1.1\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost : localhost\r\n\r\n",
    // Request lines.
    "GET https://localhost/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET http://evil.example/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET http://localhost/x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "GET http://localhost@evil.example/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET http://localhost/x HTTP/1.1\r\n\r\n",
    "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET @evil.example:80/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /x#fragment HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /\u{e9} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /x y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /x\ty HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET  /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /x  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    " GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "G\u{e9}T /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET(x) /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /x\r\nHost: localhost\r\n\r\n",
    "GET /x HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "GET /x HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "GET /x HTTP/0.9\r\nHost: localhost\r\n\r\n",
    "GET /x http/1.1\r\nHost: localhost\r\n\r\n",
    "GET /x HTTP/1.1 x\r\nHost: localhost\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\n\r\n",
];

#[test]
fn ambiguous_heads_reach_nobody() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        for text in MALFORMED {
            for hidden in ["", HIDDEN] {
                let mut client = chain.connect();
                client.send([text.as_bytes(), hidden.as_bytes()].concat());
                let answer = client.answer_to("POST");
                let status = answer.status();
                let is_refusal = matches!(status, 400 | 403 | 414 | 417 | 431 | 501 | 505);
                assert!(is_refusal && answer.end == End::Whole, "{way:?} {text:?}: {answer:?}");
                let (rest, _) = client.read_to_close();
                assert!(rest.is_empty(), "{way:?} {text:?}: answered twice: {rest:?}");
            }
        }
        let seen = fake
            .look(|state| state.records.iter().map(|r| r.head.start.clone()).collect::<Vec<_>>());
        assert!(seen.is_empty(), "{way:?}: reached the Ollama: {seen:?}");
        // And the daemon is as well as before.
        assert_eq!(chain.connect().get(MODEL).status(), 200, "{way:?}");
    }
}

#[test]
fn noise_is_no_request() {
    let fake = Ollama::with(&["m"]);
    let chain = Way::OneHop.to(&fake);
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client's first bytes\r\n\r\n";
    let mut noises = vec![hello.to_vec(), b"\xff\xfe\xfd\r\n\r\n".to_vec(), vec![0; 5000]];
    let mut random = support::Random::new(5);
    noises.extend((0..50).map(|n| {
        let mut bytes = random.bytes(10 + n * 40);
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes
    }));
    for noise in noises {
        let mut client = chain.connect();
        client.send(&noise);
        let (answer, _) = client.read_to_close();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"), "{answer}");
    }
    assert_eq!(fake.count(), 0, "noise reached the Ollama");
}

#[test]
fn odd_but_clear_heads_are_served() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        for text in [
            "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
            "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:chunked \r\n\r\n0\r\n\r\n",
            "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 005\r\n\r\nhello",
            "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length:\t5\t\r\n\r\nhello",
            "GET /x HTTP/1.1\r\nHost:\r\n\r\n",
            "GET /x HTTP/1.1\r\nhOsT: LOCALHOST:1\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: localhost\r\nX:\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: localhost\r\nX: \"a\\\"b\"\t,;\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: ,, ,\r\n\r\n",
            "GET /x HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
        ] {
            let mut client = chain.connect();
            let answer = client.ask(text);
            assert_eq!((answer.status(), &*answer.text()), (404, NO_PATH), "{way:?} {text:?}");
        }
    }
}

#[test]
fn a_head_in_single_bytes_is_the_same_head() {
    let fake = Ollama::with(&["m"]);
    let chain = Way::OneHop.to(&fake);
    let whole = request("POST", "/x?y", "hello");
    let mut client = chain.connect();
    for byte in &whole {
        client.send([*byte]);
    }
    assert_eq!(client.answer_to("POST").text(), NO_PATH);
    assert_eq!(fake.request(0).body, b"hello");
}

#[test]
fn refusals_are_read_by_clients_that_are_still_sending() {
    // A close with unread bytes is a reset, which can overtake the answer.
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| call.close());
        let chain = way.to(&fake);
        let body = vec![b'x'; 8 << 20];
        for (head, status) in [
            ("Host: evil.example\r\nContent-Length: 8388608", 403),
            ("Host: localhost\r\nContent-Length: 8388608\r\nContent-Length: 8388608", 400),
            ("Host: localhost\r\nTransfer-Encoding: identity", 501),
            ("Host: localhost\r\nTransfer-Encoding: chunked", 400),
            ("Host: localhost\r\nContent-Length: 8388608", 502),
        ] {
            let mut client: Client = chain.connect();
            client.send(format!("POST /api/blobs/x HTTP/1.1\r\n{head}\r\n\r\n"));
            // A reset would end the sending; so all of it goes through, whatever becomes of it.
            assert!(client.try_send(&body), "{way:?} {head:?}: reset while sending");
            let answer = client.answer_to("POST");
            assert_eq!((answer.status(), answer.end), (status, End::Whole), "{way:?} {head:?}");
            assert!(answer.json()["error"].is_string(), "{way:?} {head:?}");
        }
        eventually("every connection to end", || (chain.front().connections() == 0).then_some(()));
    }
}

/// An upstream that keeps its connection open behind such an answer: whoever waits for more of it
/// waits for ever.
fn saying(answer: impl Into<Vec<u8>>) -> Fake {
    let answer = answer.into();
    Fake::unlike_ollama(move |call| {
        call.read_body();
        call.send(&answer);
        call.hang();
    })
}

/// How long an answer may take to be refused, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Heads of answers that aren't passed on, and what the client is told.
#[test]
fn answers_whose_body_nobody_could_read_are_refused() {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let coding = "transfer coding";
    let long = "x".repeat(40_000);
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let rows: &[(&str, &str)] = &[
        ("1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: chunked, chunked", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: chunked, gzip", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: gzip", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 20", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 20", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: xchunked", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: chunked;q=1", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: \"chunked\"", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: chunk ed", coding),
        ("1.1 200 OK\r\nTransfer-Encoding:", coding),
        ("1.1 200 OK\r\nTransfer-Encoding: \u{e9}, chunked", coding),
        ("1.0 200 OK\r\nTransfer-Encoding: chunked", coding),
        // Whatever is said beside it, the field is one of them.
        ("1.1 502 Bad\r\nTransfer-Encoding: deflate, chunked", coding),
        ("1.1 302 Found\r\nLocation: /\r\nTransfer-Encoding: br, chunked", coding),
        ("1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6", "content-length"),
        ("1.1 200 OK\r\nContent-Length: 5, 6", "content-length"),
        ("1.1 200 OK\r\nContent-Length: -5", "content-length"),
        ("1.1 200 OK\r\nContent-Length: +5", "content-length"),
        ("1.1 200 OK\r\nContent-Length: 0x5", "content-length"),
        ("1.1 200 OK\r\nContent-Length: 5 5", "content-length"),
        ("1.1 200 OK\r\nContent-Length:", "content-length"),
        ("1.1 200 OK\r\nContent-Length: 99999999999999999999999", "content-length"),
        ("1.1 200 OK\r\nX: y\r\n folded\r\nContent-Length: 5", "not HTTP"),
        ("1.1 200 OK\r\nContent-Length : 5", "not HTTP"),
        ("1.1 200 OK\r\nX: y\0\r\nContent-Length: 5", "not HTTP"),
        (&format!("1.1 200 OK\r\nX: {long}\r\nContent-Length: 5"), "head is too large"),
        (&format!("1.1 200 {long}\r\nContent-Length: 5"), "head is too large"),
        (&format!("1.1 200 OK\r\n{many}Content-Length: 5"), "head is too large"),
        (&format!("1.1 103 Hints\r\nX: {long}\r\n\r\nHTTP/1.1 200 OK"), "head is too large"),
        // Without an end, so far.
        (&format!("1.1 200 OK\r\nX: {long}"), "head is too large"),
    ];
    for way in Way::ALL {
        for (head, reason) in rows {
            let fake = saying(format!("HTTP/{head}\r\n\r\n{chunks}"));
            let chain = way.to(&fake);
            for target in ["/api/chat", "/x"] {
                let start = Instant::now();
                let answer = chain.connect().ask(post(target, "{}"));
                let what = format!("{way:?} {head:.70?}: {answer:?}");
                assert_eq!((answer.status(), answer.end), (502, End::Whole), "{what}");
                let said = answer.json()["error"].as_str().map(str::to_owned).unwrap_or_default();
                assert!(said.to_lowercase().contains(&reason.to_lowercase()), "{what}");
                assert!(said.contains(&fake.address.port().to_string()), "{what}");
                assert!(!answer.head.has("transfer-encoding"), "{what}");
                assert!(start.elapsed() < AT_ONCE, "{what} after {:?}", start.elapsed());
            }
        }
    }
}

/// Chunks of an answer that are one body to everybody.
#[test]
fn chunks_of_an_answer_arrive_whatever_their_frames_look_like() {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x=y;".repeat(50));
    let trailer = format!("5\r\nhello\r\n0\r\nX: {}\r\nY: z\r\n\r\n", "x".repeat(4000));
    let rows: &[&str] = &[
        "5\r\nhello\r\n0\r\n\r\n",
        "005\r\nhello\r\n000\r\n\r\n",
        "5    \r\nhello\r\n0\t\r\n\r\n",
        "5;a\r\nhello\r\n0;b=c\r\n\r\n",
        "5;name=\"a quoted; value\"\r\nhello\r\n0\r\n\r\n",
        "2;x=0123456789abcdefghij\r\nhe\r\n3 \t;y\r\nllo\r\n0\r\n\r\n",
        &long,
        "1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        &trailer,
    ];
    for way in Way::ALL {
        for body in rows {
            for head in ["Transfer-Encoding: chunked", "Transfer-Encoding:\tCHUNKED "] {
                // What two readers could take differently, RFC 9112 §6.3 decides: the chunks count.
                for length in ["", "Content-Length: 3\r\n"] {
                    let fake = saying(format!("HTTP/1.1 200 OK\r\n{length}{head}\r\n\r\n{body}"));
                    let chain = way.to(&fake);
                    let answer = chain.connect().ask(request("GET", MODEL, ""));
                    let what = format!("{way:?} {head:?} {length:?} {body:.60?}: {answer:?}");
                    assert_eq!((answer.end, &*answer.text()), (End::Whole, "hello"), "{what}");
                    assert!(!answer.head.has("content-length"), "{what}");
                }
            }
        }
        // In single bytes too.
        let fake = Fake::unlike_ollama(|call| {
            call.read_body();
            call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for byte in b"5;extension=of-some-length\r\nhello\r\n0\r\nX: y\r\n\r\n" {
                call.send([*byte]);
            }
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for _ in 0..3 {
            let answer = client.ask(request("GET", MODEL, ""));
            assert_eq!((answer.end, &*answer.text()), (End::Whole, "hello"), "{way:?}");
        }
    }
}

/// Chunks that aren't: an error at once, with the reason, and never a whole answer.
#[test]
fn chunks_of_an_answer_that_are_none_are_an_error_at_once() {
    let (long, trailer) = ("x".repeat(40_000), "x".repeat(9000));
    let rows: &[&str] = &[
        "2\nno\r\n0\r\n\r\n",
        "2 2\r\nno\r\n0\r\n\r\n",
        "2\r\nno\n0\r\n\r\n",
        "2\r\nno\r\n0\n\r\n",
        "2\r\nno\r\n0\r\n\n",
        "2\r\nno\r\n0\r\nX: y\n\r\n",
        "2;a\nno\r\n0\r\n\r\n",
        "2\r\nno\r\n5\n",
        "\n2\r\nno\r\n0\r\n\r\n",
        "\r\n2\r\nno\r\n0\r\n\r\n",
        "+2\r\nno\r\n0\r\n\r\n",
        "-2\r\nno\r\n0\r\n\r\n",
        "0x2\r\nno\r\n0\r\n\r\n",
        "2_0\r\nno\r\n0\r\n\r\n",
        " 2\r\nno\r\n0\r\n\r\n",
        "g\r\nno\r\n0\r\n\r\n",
        ";x\r\nno\r\n0\r\n\r\n",
        "2\r\r\nno\r\n0\r\n\r\n",
        "2\r\nnone\r\n0\r\n\r\n",
        "2\r\nno0\r\n\r\n",
        "2\r\nno, this goes on without any end of a line",
        "hello",
        "hello, this is no chunk at all",
        "{\"error\":\"x\"}\n",
        "10000000000000000\r\nno",
        "fffffffffffffffff\r\nno",
        "2\r\nno\r\n0\r\nno colon\r\n\r\n",
        "2\r\nno\r\n0\r\n X: y\r\n\r\n",
        &format!("2;{long}"),
        &format!("2;{long}\r\nno\r\n0\r\n\r\n"),
        &format!("2\r\nno\r\n0\r\nX: {trailer}"),
    ];
    for way in Way::ALL {
        for body in rows {
            for pieces in [1, 2] {
                // Behind the head, or with it.
                let text = body.as_bytes().to_vec();
                let fake = Fake::unlike_ollama(move |call| {
                    call.read_body();
                    let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
                                 Transfer-Encoding: chunked\r\n\r\n";
                    if pieces == 1 {
                        call.send([head, &text[..]].concat());
                    } else {
                        call.send(head);
                        std::thread::sleep(Duration::from_millis(5));
                        call.send(&text);
                    }
                    call.hang();
                });
                let chain = way.to(&fake);
                let start = Instant::now();
                let answer = chain.connect().ask(post("/api/chat", "{}"));
                let what = format!("{way:?} {body:.60?} in {pieces}: {answer:?}");
                assert_ne!(answer.end, End::Whole, "{what}");
                assert!(answer.text().contains("malformed chunks"), "{what}");
                assert!(start.elapsed() < AT_ONCE, "{what} after {:?}", start.elapsed());
            }
        }
    }
}
