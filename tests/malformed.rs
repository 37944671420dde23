//! Heads that two readers could understand differently are refused, and nothing of them, nor of
//! what a smuggler hides behind them, reaches the Ollama.

mod support;

use support::{Client, End, Fake, Way, eventually, request};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
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
        let fake = Fake::unlike_ollama_saying(OK);
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
        assert_eq!(chain.connect().get("/x").text(), "ok", "{way:?}");
    }
}

#[test]
fn noise_is_no_request() {
    let fake = Fake::unlike_ollama_saying(OK);
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
        let fake = Fake::unlike_ollama_saying(OK);
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
            assert_eq!((answer.status(), &*answer.text()), (200, "ok"), "{way:?} {text:?}");
        }
    }
}

#[test]
fn a_head_in_single_bytes_is_the_same_head() {
    let fake = Fake::unlike_ollama_saying(OK);
    let chain = Way::OneHop.to(&fake);
    let whole = request("POST", "/x?y", "hello");
    let mut client = chain.connect();
    for byte in &whole {
        client.send([*byte]);
    }
    assert_eq!(client.answer_to("POST").text(), "ok");
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
