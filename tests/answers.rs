//! What the client gets is what the Ollama answered: status, fields and body, over one hop and over
//! both. Besides what Ollama answers, what it might one day, or a proxy in front of it.

mod support;

use support::{
    Account, Answer, Client, End, Fake, Model, Ollama, Way, World, chunked, post, request,
};

/// What a client gets for one request if the fake answers with these bytes, and then closes if
/// `closes`.
fn relayed(way: Way, answer: impl AsRef<[u8]>, closes: bool, request: &str) -> Answer {
    let answer = answer.as_ref().to_vec();
    let fake = Fake::unlike_ollama(move |call| {
        call.read_body();
        call.send(&answer);
        if closes {
            call.close();
        }
    });
    let answer = way.to(&fake).connect().ask(request);
    assert_eq!(fake.count(), 1, "{way:?}: asked once");
    answer
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
const HEAD: &str = "HEAD /x HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Everything that Ollama frames, words or refuses in a way of its own.
fn requests() -> Vec<Vec<u8>> {
    let all = |model: &str, streams: bool| {
        format!(
            r#"{{"model":"{model}","prompt":"a","input":"a","max_tokens":5,"stream":{streams},
                "messages":[{{"role":"user","content":"a"}}]}}"#
        )
    };
    let mut requests = Vec::new();
    for target in support::INFERENCE {
        for (model, streams) in [("m", true), ("m", false), ("x:cloud", false), ("none", true)] {
            requests.push(post(target, all(model, streams)));
        }
        requests.push(post(target, "{"));
    }
    for (method, target, body) in [
        ("POST", "/api/show", r#"{"model":"m"}"#),
        ("POST", "/api/show", r#"{"model":"x:cloud"}"#),
        ("POST", "/api/show", r#"{"model":"none"}"#),
        ("POST", "/api/pull", r#"{"model":"none"}"#),
        ("POST", "/api/pull", r#"{"model":"none","stream":false}"#),
        ("POST", "/api/push", r#"{"model":"none"}"#),
        ("POST", "/api/push", r#"{"model":"m"}"#),
        ("POST", "/api/create", r#"{"model":"none"}"#),
        ("POST", "/api/copy", r#"{"source":"none","destination":"other"}"#),
        ("POST", "/api/me", ""),
        ("POST", "/api/signout", ""),
        ("DELETE", "/api/delete", r#"{"model":"none"}"#),
        ("GET", "/v1/models/m", ""),
        ("GET", "/v1/models/none", ""),
        ("GET", "/api/status", ""),
        ("GET", "/api/experimental/model-recommendations", ""),
        ("HEAD", "/api/tags", ""),
        ("HEAD", "/api/version", ""),
        ("HEAD", "/api/blobs/sha256:00", ""),
        ("HEAD", "/v1/models", ""),
        ("GET", "/api/chat", ""),
        ("PUT", "/api/show", "{}"),
        ("GET", "/none", ""),
        ("GET", "/v1/none", ""),
    ] {
        requests.push(request(method, target, body));
    }
    requests
}

#[test]
fn what_ollama_answers_arrives_as_it_is() {
    for account in [Account::SignedIn, Account::SignedOut] {
        let mut world = World { account, registry: Some(Vec::new()), ..World::with(&["m"]) };
        world.models.push(Model::cloud("x:cloud"));
        // Long enough for chunks.
        world.tokens = 200;
        let ollama = Ollama::start(world);
        let chains = Way::ALL.map(|way| way.to(&ollama));
        for request in requests() {
            let text = String::from_utf8_lossy(&request).into_owned();
            let method = text.split(' ').next().expect("a method");
            let ask = |mut client: Client| {
                client.send(&request);
                let answer = client.answer_to(method);
                // The request itself may have changed it.
                ollama.change(|world| world.account = account);
                answer
            };
            let direct = ask(Client::connect(ollama.address));
            for chain in &chains {
                let through = ask(chain.connect());
                let seen = |answer: &Answer| {
                    let kind = answer.head.one("content-type");
                    let allow = answer.head.one("allow");
                    let length = answer.head.length();
                    (answer.status(), kind, allow, length, answer.text(), answer.end)
                };
                assert_eq!(seen(&through), seen(&direct), "{:?}: {text}", chain.way);
            }
        }
    }
}

#[test]
fn any_status_passes() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            let status = call.target()[1..].to_owned();
            call.answer(&format!("{status} Whatever"), "text/plain", status);
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for status in [200, 201, 202, 206, 300, 301, 302, 307, 400, 401, 403, 404, 409, 418, 422] {
            let answer = client.get(&format!("/{status}"));
            assert_eq!((answer.status(), answer.text()), (status, status.to_string()), "{way:?}");
        }
        for status in [429, 451, 499, 500, 501, 502, 503, 504, 599, 999] {
            let answer = client.get(&format!("/{status}"));
            assert_eq!((answer.status(), answer.text()), (status, status.to_string()), "{way:?}");
        }
    }
}

#[test]
fn each_framing_arrives_whole() {
    for way in Way::ALL {
        for size in [0, 1, 4096, 200_000] {
            let body: Vec<u8> = (0..size).map(|n: usize| (n % 253) as u8).collect();
            let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
            let answer = relayed(way, [length.as_bytes(), &body].concat(), false, GET);
            assert_eq!(answer.head.length(), Some(size), "{way:?} {:?}", answer.head);
            assert!(answer.body == body && answer.end == End::Whole, "{way:?} length {size}");

            let pieces: Vec<&[u8]> = body.chunks(body.len().div_ceil(3).max(1)).collect();
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let whole = [head.as_bytes(), &chunked(&pieces)].concat();
            let answer = relayed(way, whole, false, GET);
            assert!(answer.head.is_chunked(), "{way:?} {:?}", answer.head);
            assert!(answer.body == body && answer.end == End::Whole, "{way:?} chunked {size}");

            for version in ["1.1", "1.0"] {
                let head = format!("HTTP/{version} 200 OK\r\nContent-Type: x/y\r\n\r\n");
                let answer = relayed(way, [head.as_bytes(), &body].concat(), true, GET);
                assert!(answer.head.is_chunked(), "{way:?} {:?}", answer.head);
                assert!(answer.body == body && answer.end == End::Whole, "{way:?} close {size}");
            }
        }
    }
}

#[test]
fn a_head_request_gets_the_length_and_no_body() {
    for way in Way::ALL {
        for (fields, length) in [
            ("Content-Length: 17\r\n", Some("17")),
            ("Content-Length: 0\r\n", Some("0")),
            ("Transfer-Encoding: chunked\r\n", None),
            ("", None),
        ] {
            let fake = Fake::unlike_ollama_saying(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            let chain = way.to(&fake);
            let mut client = chain.connect();
            for _ in 0..2 {
                let answer = client.ask(HEAD);
                assert_eq!(answer.status(), 200, "{way:?} {fields}");
                assert_eq!(
                    answer.head.one("content-length").as_deref(),
                    length,
                    "{way:?} {fields}"
                );
            }
            assert_eq!(fake.request(1).head.method(), "HEAD");
        }
    }
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    for way in Way::ALL {
        for (head, length) in [
            ("204 No Content\r\n", None),
            ("304 Not Modified\r\nETag: \"e\"\r\n", None),
            ("304 Not Modified\r\nContent-Length: 1234\r\n", Some("1234")),
            ("304 Not Modified\r\nTransfer-Encoding: chunked\r\n", None),
        ] {
            let fake = Fake::unlike_ollama_saying(format!("HTTP/1.1 {head}\r\n"));
            let chain = way.to(&fake);
            let mut client = chain.connect();
            for _ in 0..2 {
                let answer = client.ask(GET);
                assert_eq!(answer.status().to_string(), head[..3], "{way:?}");
                assert_eq!(answer.head.one("content-length").as_deref(), length, "{way:?} {head}");
                assert!(!answer.head.has("transfer-encoding"), "{way:?} {head}");
            }
            assert!(!client.has_unread(), "{way:?} {head}");
        }
        // A length that a 204 must not have (RFC 9110 §8.6) promises no body either, and isn't passed on.
        let fake = Fake::unlike_ollama_saying(
            "HTTP/1.1 204 No Content
Content-Length: 5

",
        );
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for _ in 0..2 {
            let answer = client.ask(GET);
            assert_eq!(
                (answer.status(), answer.head.has("content-length")),
                (204, false),
                "{way:?}"
            );
        }
    }
}

#[test]
fn interim_answers_are_dropped() {
    for way in Way::ALL {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX-A: b\r\n\r\n\
            HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
            HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let fake = Fake::unlike_ollama_saying(text);
        let chain = way.to(&fake);
        let post = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
        for request in [GET, post] {
            let mut client = chain.connect();
            client.send(request);
            let head = client.head_of("GET");
            assert_eq!(head.status(), 200, "{way:?}: an interim answer was passed on");
            assert!(!head.has("link") && !head.has("x-a"), "{way:?}: {head:?}");
            assert_eq!(client.rest(), (b"ok".to_vec(), End::Whole), "{way:?}");
        }
    }
}

/// What follows an interim answer at once doesn't count as its head, however much it is.
#[test]
fn a_large_answer_may_follow_an_interim_one_at_once() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            call.read_body();
            let head =
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n";
            call.send([head.as_bytes(), &[b'x'; 200_000]].concat());
        });
        let chain = way.to(&fake);
        // A large request has a large buffer, in which both arrive.
        for size in [2, 90_000] {
            let answer = chain.connect().post("/api/show", " ".repeat(size));
            assert_eq!((answer.status(), answer.body.len()), (200, 200_000), "{way:?}");
        }
    }
}

#[test]
fn an_http_1_0_client_gets_no_chunks() {
    let old = "GET /x HTTP/1.0\r\n\r\n";
    for way in Way::ALL {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n\
            3\r\ntwo\r\n0\r\n\r\n";
        let close = "HTTP/1.1 200 OK\r\n\r\nonetwo";
        for (text, closes) in [(chunked, false), (close, true)] {
            let answer = relayed(way, text, closes, old);
            assert_eq!((&*answer.text(), answer.end), ("onetwo", End::Whole), "{way:?}");
            assert!(!answer.head.has("transfer-encoding"), "{way:?} {:?}", answer.head);
            assert!(!answer.head.has("content-length"), "{way:?} {:?}", answer.head);
        }
        let fake = Fake::unlike_ollama_saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let chain = way.to(&fake);
        for fields in ["", "Connection: keep-alive\r\n"] {
            let mut client = chain.connect();
            let answer = client.ask(format!("GET /x HTTP/1.0\r\n{fields}\r\n"));
            assert_eq!((answer.head.length(), &*answer.text()), (Some(2), "ok"), "{way:?}");
            assert_eq!(client.expect_close(), End::CutByClose, "{way:?}");
        }
    }
}

#[test]
fn fields_in_order_whatever_their_values() {
    for way in Way::ALL {
        let high: Vec<u8> = (0x80..=0xff).collect();
        let long = "l".repeat(8000);
        let mut text =
            b"HTTP/1.1 200 OK\r\nDate: now\r\nServer: fake\r\nSet-Cookie: a=1\r\nX-Empty:\r\n\
            X-High: "
                .to_vec();
        text.extend_from_slice(&high);
        text.extend_from_slice(
            format!(
                "\r\nSet-Cookie: b=2\r\nset-cookie:  c=3 \r\nContent-Encoding: gzip\r\n\
                 X-Long: {long}\r\nVia: 1.0 fred\r\nContent-Length: 4\r\n\r\nGZIP"
            )
            .as_bytes(),
        );
        let answer = relayed(way, text, false, GET);
        let head = &answer.head;
        assert_eq!(head.all("set-cookie"), ["a=1", "b=2", "c=3"], "{way:?}");
        let value = head.fields.iter().find(|(name, _)| name == "x-high").map(|(_, value)| value);
        assert_eq!(value, Some(&high), "{way:?}");
        for (name, want) in [
            ("date", "now"),
            ("server", "fake"),
            ("x-empty", ""),
            ("content-encoding", "gzip"),
            ("x-long", &long),
        ] {
            assert_eq!(head.one(name).as_deref(), Some(want), "{way:?} {name}");
        }
        let via = head.all("via");
        assert_eq!((via.len(), &*via[0]), (1 + way.hops(), "1.0 fred"), "{way:?} {via:?}");
        assert!(via[1..].iter().all(|via| via.starts_with("1.1 ollana-")), "{way:?} {via:?}");
        assert!(head.one("x-ollana-server").is_some_and(|name| !name.is_empty()), "{way:?}");
        assert_eq!(answer.body, b"GZIP", "{way:?}: neither decoded nor encoded");
    }
}

/// An Ollama doesn't speak for the proxies: what it says with their fields would make them try
/// again, or take the server for another.
#[test]
fn an_ollama_does_not_speak_for_the_proxies() {
    for way in Way::ALL {
        let text = "HTTP/1.1 503 Busy\r\nX-Ollana-Error: unreached\r\nX-Ollana-Open: manage\r\n\
            X-Ollana-Identity: 00000000000000000000000000000000\r\nContent-Length: 2\r\n\r\nok";
        let head = relayed(way, text, false, GET).head;
        for name in ["x-ollana-error", "x-ollana-open", "x-ollana-identity"] {
            assert!(!head.has(name), "{way:?}: {name}");
        }
    }
}

#[test]
fn fields_of_one_hop_stay_there() {
    for way in Way::ALL {
        let text = "HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-Hop: 2\r\n\
            Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nTrailer: X-T\r\nUpgrade: h2c\r\n\
            Content-Length: 2\r\n\r\nok";
        let fake = Fake::unlike_ollama(move |call| {
            call.send(text);
            call.close();
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for n in 0..2 {
            let head = client.ask(GET).head;
            for name in
                ["connection", "x-hop", "keep-alive", "proxy-connection", "trailer", "upgrade"]
            {
                assert!(!head.has(name), "{way:?} request {n}: {name} {:?}", head.all(name));
            }
        }
    }
}

#[test]
fn trailers_and_chunk_extensions_end_here() {
    for way in Way::ALL {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n\
            3;ext=1\r\none\r\n0;last\r\nX-T: v\r\n\r\n";
        let fake = Fake::unlike_ollama_saying(text);
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for _ in 0..2 {
            let answer = client.ask(GET);
            assert_eq!((&*answer.text(), answer.end), ("one", End::Whole), "{way:?}");
        }
    }
}

#[test]
fn bytes_behind_an_answer_are_no_answer() {
    for way in Way::ALL {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nevil",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            let fake = Fake::unlike_ollama_saying(text);
            let chain = way.to(&fake);
            let mut client = chain.connect();
            for n in 0..3 {
                let answer = client.ask(GET);
                assert_eq!((&*answer.text(), answer.end), ("hello", End::Whole), "{way:?} {n}");
                assert!(!client.has_unread(), "{way:?} {n}: {text:?}");
            }
        }
    }
}

#[test]
fn a_redirect_is_passed_on() {
    for way in Way::ALL {
        let trap = Fake::unlike_ollama_saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let location = format!("http://{}/api/chat", trap.address);
        for status in [301, 302, 303, 307, 308] {
            let text = format!(
                "HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            );
            let answer = relayed(way, text, false, GET);
            assert_eq!(answer.status(), status, "{way:?}");
            assert_eq!(answer.head.one("location"), Some(location.clone()), "{way:?}");
        }
        assert_eq!(trap.look(|state| state.connections.len()), 0, "{way:?}: was followed");
    }
}

#[test]
fn an_answer_before_the_end_of_the_body_is_passed_on() {
    // Ollama answers a blob that it has already without reading a byte of it.
    let digest = format!("sha256:{}", "0".repeat(64));
    for way in Way::ALL {
        for (framing, part) in [
            ("Content-Length: 50000000", "x".repeat(100_000)),
            // Where Go can't know how much is to come, it reads on for 256 KiB.
            ("Transfer-Encoding: chunked", format!("493e0\r\n{}\r\n", "x".repeat(300_000))),
        ] {
            let ollama = Ollama::with(&[]);
            ollama.change(|world| world.blobs.push(digest.clone()));
            let chain = way.to(&ollama);
            let mut client = chain.connect();
            client.send(format!(
                "POST /api/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{part}"
            ));
            let answer = client.answer_to("POST");
            assert_eq!((answer.status(), answer.end), (200, End::Whole), "{way:?} {framing}");
            // The rest of the body can't be told from a next request, so there is none.
            assert_eq!(
                answer.head.one("connection").as_deref(),
                Some("close"),
                "{way:?} {framing}"
            );
            assert!(!ollama.request(0).is_whole, "{way:?} {framing}");
        }
        // One that answers and reads on, as no Ollama does.
        let fake = Fake::unlike_ollama(|call| {
            call.answer("200 OK", "text/plain", "have it");
            call.hang_reading();
        });
        let chain = way.to(&fake);
        let mut client = chain.connect();
        let head =
            "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n";
        client.send(format!("{head}{}", "x".repeat(100_000)));
        let answer = client.answer_to("POST");
        assert_eq!((answer.status(), &*answer.text()), (200, "have it"), "{way:?}");
        assert_eq!(answer.head.one("connection").as_deref(), Some("close"), "{way:?}");
    }
}

#[test]
fn big_heads_pass() {
    for way in Way::ALL {
        let fields: String = (0..40).map(|n| format!("X-{n}: {}\r\n", "v".repeat(600))).collect();
        let text = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
        let answer = relayed(way, text, false, GET);
        assert_eq!((answer.status(), &*answer.text()), (200, "ok"), "{way:?}");
        assert_eq!(answer.head.fields.iter().filter(|(name, _)| name != "via").count(), 42);
    }
}
