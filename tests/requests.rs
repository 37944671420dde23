//! What the Ollama gets is what the client sent: method, target, fields and body, over one hop and
//! over both.

mod support;

use support::{CHAT, Client, End, Fake, MODEL, Ollama, Record, Way, chunked};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A GET with these field lines.
fn get(fields: &str) -> String {
    format!("GET {MODEL} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// One that isn't about a model: of those that are, `Via` is hidden.
fn get_status(fields: &str) -> String {
    format!("GET /api/status HTTP/1.1\r\n{fields}\r\n")
}

/// An upload that no Ollama here has had before.
fn blob(number: usize) -> String {
    format!("/api/blobs/sha256:{number:064}")
}

/// What arrives when this is sent; the answer must be the Ollama's, whatever it says.
fn arrives(ollama: &Ollama, client: &mut Client, request: impl AsRef<[u8]>) -> Record {
    let index = ollama.count();
    let answer = client.ask(request.as_ref());
    let text = String::from_utf8_lossy(request.as_ref()).into_owned();
    let served = ollama.wait_served(index + 1)[index].clone();
    let seen = (answer.status(), answer.end);
    assert_eq!(seen, (served.status, End::Whole), "{text:.300} → {answer:?}");
    ollama.request(index)
}

#[test]
fn methods_with_and_without_bodies() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        for method in
            ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB", "M-SEARCH", "get"]
        {
            // An OPTIONS to a name is answered where it arrives.
            let bare = format!("{method} /api/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            let record = arrives(&ollama, &mut client, &bare);
            assert_eq!(record.head.start, [method, "/api/x", "HTTP/1.1"], "{way:?}");
            assert!(record.raw_body.is_empty(), "{way:?} {method}: {record:?}");
            assert!(!record.head.is_chunked(), "{way:?} {method}: {record:?}");
            // Ollama's clients send a POST without a body; Go's server wants a length all the same.
            let wants_length = matches!(method, "POST" | "PUT" | "PATCH");
            let length = record.head.one("content-length");
            assert_eq!(length.as_deref(), wants_length.then_some("0"), "{way:?} {method}");

            let body = format!(
                "{method} /api/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello"
            );
            let record = arrives(&ollama, &mut client, &body);
            assert_eq!(record.head.method(), method, "{way:?}");
            assert_eq!(record.head.one("content-length").as_deref(), Some("5"), "{way:?} {method}");
            assert_eq!(record.raw_body, b"hello", "{way:?} {method}");
        }
    }
}

#[test]
fn an_empty_body_of_length_zero_keeps_its_length() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let request = "POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
        let record = arrives(&ollama, &mut chain.connect(), request);
        assert_eq!(record.head.one("content-length").as_deref(), Some("0"), "{way:?}");
    }
}

#[test]
fn targets_byte_for_byte() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        for target in [
            "/",
            "/?",
            "/a??b",
            "/api/show?name=a%20b&x=%2F%00%ff&&=",
            "/a//b/../c/./d/",
            "//evil.example:80/x",
            "/@evil.example:80/",
            "/x?u=http://evil.example/@:80",
            "/!$&'()*+,;=:@-._~?!$&'()*+,;=:@-._~/?",
            "/%zz%",
            "/{a}|[b]\"?{c}|[d]",
            "/UPPER/lower/MiXeD",
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let record = arrives(&ollama, &mut client, request);
            assert_eq!(record.head.target(), target, "{way:?}");
        }
        let long = format!("/{}", "x".repeat(9000));
        let request = format!("GET {long} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(arrives(&ollama, &mut client, request).head.target(), long, "{way:?}");
        let asterisk = "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let record = arrives(&ollama, &mut client, asterisk);
        assert_eq!(record.head.start, ["OPTIONS", "*", "HTTP/1.1"], "{way:?}");
    }
}

#[test]
fn bodies_in_the_framing_they_came_in() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        for size in [1, 2, 4095, 4096, 4097, 70_000, 1_000_000] {
            let body: Vec<u8> = (0..size).map(|n: usize| (n % 251) as u8).collect();
            let record = arrives(&ollama, &mut client, support::post(&blob(2 * size), &body));
            assert!(record.is_whole && record.body == body, "{way:?} length {size}");
            assert_eq!(record.head.length(), Some(size), "{way:?}");
            assert!(!record.head.has("transfer-encoding"), "{way:?} length {size}");

            let pieces: Vec<&[u8]> = body.chunks(body.len().div_ceil(3)).collect();
            let target = blob(2 * size + 1);
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            let request = [head.as_bytes(), &chunked(&pieces)].concat();
            let record = arrives(&ollama, &mut client, request);
            assert!(record.is_whole && record.body == body, "{way:?} chunked {size}");
            assert!(record.head.is_chunked(), "{way:?} chunked {size}");
            assert!(!record.head.has("content-length"), "{way:?} chunked {size}");
        }
        let head =
            "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n";
        let record = arrives(&ollama, &mut client, format!("{head}0\r\n\r\n"));
        assert!(record.is_whole && record.raw_body == b"0\r\n\r\n", "{way:?}: {record:?}");
        let odd = "5;name=\"v\"\r\nhello\r\n00006\r\n world\r\n0\r\nX-Trailer: t\r\n\r\n";
        let record = arrives(&ollama, &mut client, format!("{head}{odd}"));
        assert_eq!(record.body, b"hello world", "{way:?}");
        assert!(!record.raw_body.windows(4).any(|w| w == b"name" || w == b"X-Tr"), "{record:?}");
    }
}

#[test]
fn fields_in_order_whatever_their_values() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let high: Vec<u8> = (0x80..=0xff).collect();
        let long = "l".repeat(12_000);
        let mut request =
            b"GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\nX-Twice: 1\r\nX-Empty:\r\n\
            X-High: "
                .to_vec();
        request.extend_from_slice(&high);
        request.extend_from_slice(
            format!(
                "\r\nx-twice:  2 \r\nX-TWICE: 3, 4\r\nX-Tab: a\tb\r\n!#$%&'*+-.^_`|~9: odd\r\n\
                 Authorization: Bearer k\r\nCookie: a=b\r\nCookie: c=d\r\nX-Empty: \r\n\
                 User-Agent: test/1\r\nAccept: text/x\r\nAccept-Encoding: zstd\r\n\
                 X-Long: {long}\r\n\r\n"
            )
            .as_bytes(),
        );
        let head = arrives(&ollama, &mut chain.connect(), request).head;
        assert_eq!(head.all("x-twice"), ["1", "2", "3, 4"], "{way:?}");
        assert_eq!(head.all("x-empty"), ["", ""], "{way:?}");
        assert_eq!(head.all("cookie"), ["a=b", "c=d"], "{way:?}");
        let value = head.fields.iter().find(|(name, _)| name == "x-high").map(|(_, value)| value);
        assert_eq!(value, Some(&high), "{way:?}");
        for (name, want) in [
            ("x-tab", "a\tb"),
            ("!#$%&'*+-.^_`|~9", "odd"),
            ("authorization", "Bearer k"),
            ("user-agent", "test/1"),
            ("accept", "text/x"),
            ("accept-encoding", "zstd"),
            ("x-long", &long),
        ] {
            assert_eq!(head.one(name).as_deref(), Some(want), "{way:?} {name}");
        }
    }
}

#[test]
fn no_field_is_made_up_but_via_and_host() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let request = get_status("Host: pi.local\r\nVia: 1.0 fred\r\n");
        let head = arrives(&ollama, &mut chain.connect(), request).head;
        assert_eq!(head.one("host"), Some(ollama.address.to_string()), "{way:?}");
        let via = head.all("via");
        assert_eq!(via.len(), 1 + way.hops(), "{way:?}: {via:?}");
        assert_eq!(via[0], "1.0 fred");
        assert!(via[1..].iter().all(|via| via.starts_with("1.1 ollana-")), "{way:?}: {via:?}");
        let different: std::collections::HashSet<_> = via.iter().collect();
        assert_eq!(different.len(), via.len(), "{way:?}: each hop has its own: {via:?}");
        let others: Vec<_> =
            head.fields.iter().filter(|(name, _)| name != "host" && name != "via").collect();
        assert!(others.is_empty(), "{way:?}: {others:?}");
    }
}

#[test]
fn fields_of_one_hop_stay_there() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let fields = "Host: localhost\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
            Connection: x-other , ,\r\nX-Other: 2\r\nX-Other: 3\r\nProxy-Connection: keep-alive\r\n\
            TE: trailers\r\nTrailer: X-T\r\nUpgrade: websocket\r\nX-End: 4\r\n";
        let head = arrives(&ollama, &mut chain.connect(), get_status(fields)).head;
        for name in [
            "connection",
            "x-hop",
            "keep-alive",
            "x-other",
            "proxy-connection",
            "te",
            "trailer",
            "upgrade",
        ] {
            assert!(!head.has(name), "{way:?}: {name} was passed on: {:?}", head.all(name));
        }
        assert_eq!(head.one("x-end").as_deref(), Some("4"), "{way:?}");
        // A field that frames the message stays whatever Connection says of it.
        let named = "POST /api/show HTTP/1.1\r\nHost: localhost\r\nConnection: content-length, host\r\n\
            Content-Length: 5\r\n\r\nhello";
        let record = arrives(&ollama, &mut chain.connect(), named);
        assert_eq!((record.head.length(), &*record.body), (Some(5), &b"hello"[..]), "{way:?}");
        assert_eq!(record.head.one("host"), Some(ollama.address.to_string()), "{way:?}");
    }
}

#[test]
fn an_offer_of_http_2_is_passed_over() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        // What Java's client sends with its first request.
        let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
            HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n";
        let body = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n";
        let head = arrives(&ollama, &mut client, format!("{body}{offer}\r\n{{}}")).head;
        for name in ["connection", "upgrade", "http2-settings"] {
            assert!(!head.has(name), "{way:?}: {name}");
        }
        let head = arrives(&ollama, &mut client, get(offer)).head;
        assert!(!head.has("upgrade"), "{way:?}: the same connection serves the next request");
    }
}

#[test]
fn continue_is_given_here_and_not_asked_for_there() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        for (n, framing) in ["Content-Length: 5", "Transfer-Encoding: chunked"].iter().enumerate() {
            let target = blob(n);
            client.send(format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\n\
                 {framing}\r\n\r\n"
            ));
            let interim = client.head_of("POST");
            assert_eq!(interim.status(), 100, "{way:?} {framing}: {interim:?}");
            client.send(if framing.starts_with('C') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" });
            let answer = client.answer_to("POST");
            assert_eq!(answer.status(), 201, "{way:?} {framing}");
        }
        for index in 0..2 {
            let record = ollama.whole_request(index);
            assert!(!record.head.has("expect"), "{way:?}: {record:?}");
            assert_eq!(record.body, b"hello", "{way:?}");
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for way in Way::ALL {
        let names: Vec<String> = (0..20).map(|n| format!("m{n}:latest")).collect();
        let ollama = Ollama::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        let mut all = Vec::new();
        for (n, name) in names.iter().enumerate() {
            let body = format!("{{\"model\":\"{name}\",\"prompt\":\"hi\"}}");
            all.extend_from_slice(&match n % 3 {
                0 => format!("GET /v1/models/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .into_bytes(),
                1 => support::post("/api/generate", body),
                _ => [
                    "POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                        .as_bytes(),
                    &chunked(&[&body.as_bytes()[..5], &body.as_bytes()[5..]]),
                ]
                .concat(),
            });
        }
        client.send(&all);
        for (n, name) in names.iter().enumerate() {
            let answer = client.answer_to("POST");
            assert_eq!(answer.head.is_chunked(), n % 3 == 1, "{way:?}: {:?}", answer.head);
            assert!(answer.text().contains(name), "{way:?} {name}: {}", answer.text());
        }
        assert!(!client.has_unread(), "{way:?}: bytes behind the last answer");
    }
}

#[test]
fn connections_are_kept_on_both_sides() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        for n in 0..3 {
            let record = arrives(&ollama, &mut client, support::post("/api/chat", CHAT));
            assert_eq!(record.connection, ollama.request(0).connection, "{way:?}: request {n}");
        }
        assert_eq!(arrives(&ollama, &mut client, get("")).connection, ollama.request(0).connection);
        client.send(get("Connection: close\r\n"));
        let answer = client.answer_to("GET");
        assert_eq!(answer.head.one("connection").as_deref(), Some("close"), "{way:?}");
        assert_eq!(client.expect_close(), End::CutByClose, "{way:?}");
    }
}

#[test]
fn the_path_of_the_ollama_url_is_kept() {
    let short = ("/behind/this".to_owned(), "/api/chat?a=b".to_owned());
    // Each fits a small buffer, both together don't.
    let long =
        (format!("/behind{}", "/this".repeat(300)), format!("/api/chat?{}", "b".repeat(3000)));
    for (prefix, target) in [short, long] {
        for way in Way::ALL {
            let fake = Fake::unlike_ollama_saying(OK);
            let chain = way.with(&fake, |settings| {
                if let Some(url) = &mut settings.ollama {
                    url.prefix = prefix.clone();
                }
            });
            // What is behind the path takes it away again; an Ollama itself knows no such path.
            assert_eq!(chain.connect().post(&target, "{}").status(), 200, "{way:?}");
            assert_eq!(fake.request(0).head.target(), prefix.clone() + &target, "{way:?}");
        }
    }
}

#[test]
fn an_http_1_0_request_needs_no_host() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut client = chain.connect();
        let record = arrives(&ollama, &mut client, "GET /v1/models/m HTTP/1.0\r\n\r\n");
        assert_eq!(record.head.start, ["GET", MODEL, "HTTP/1.1"], "{way:?}");
        assert_eq!(client.expect_close(), End::CutByClose, "{way:?}");
    }
}

#[test]
fn a_value_that_cannot_be_carried_is_not_the_servers_fault() {
    // ureq refuses it, whatever server it is for.
    for way in Way::ALL {
        let ollama = Ollama::with(&["m"]);
        let chain = way.to(&ollama);
        let mut request = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\n".to_vec();
        request.extend_from_slice(b"Authorization: Digest username=\"\xe9\"\r\n");
        request.extend(format!("Content-Length: {}\r\n\r\n{CHAT}", CHAT.len()).as_bytes());
        for n in 0..5 {
            let status = chain.connect().ask(&request).status();
            assert!(matches!(status, 200 | 400), "{way:?} {n}: {status}");
        }
    }
}
