//! Requests as unusual clients write them.

use std::net::Shutdown;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ollana::config::ModeChoice;

use crate::support::{
    Answer, Call, Chain, Client, End, Fake, Gate, Ollama, PATIENCE, Way, World, chunk, eventually,
    post, queues, soon,
};

/// The promise is 100 ms; one of three attempts keeps to this on a busy machine too.
const SOON: Duration = Duration::from_millis(500);

/// What an Ollama was asked last: its method and target. The answer must be the one that it gave.
fn seen(ollama: &Ollama, answer: &Answer) -> String {
    let served = ollama.served().pop().expect("something served");
    assert_eq!(
        (answer.status(), answer.end),
        (served.status, End::Whole),
        "{served:?}: {answer:?}"
    );
    let head = ollama.request(served.record).head;
    format!("{} {}", head.method(), head.target())
}

/// A program that ends its side behind its request: `nc -N`.
fn half_closing(address: std::net::SocketAddr, request: impl AsRef<[u8]>) -> Client {
    let mut client = Client::connect(address);
    client.send(request);
    client.stream.shutdown(Shutdown::Write).expect("a half-close");
    client
}

#[test]
fn half_closed_reads_are_answered() {
    for way in Way::ALL {
        let gate = Gate::new();
        let held = gate.clone();
        let fake = Fake::unlike_ollama(move |call: &mut Call<'_>| {
            call.read_body();
            call.wait(&held, "the half-close to be seen");
            call.answer("200 OK", "text/plain", vec![b'x'; 100_000]);
        });
        let chain = way.to(&fake);
        let requests = [
            "GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\n\r\n".into(),
            "GET /v1/models/m HTTP/1.0\r\n\r\n".into(),
            "GET /v1/models/m HTTP/1.0\n\n".into(),
            post("/api/show", "{\"model\":\"m\"}"),
            post("/api/copy", "{\"source\":\"m\",\"destination\":\"n\"}"),
            post("/api/blobs/sha256:00", "{}"),
        ];
        let mut clients: Vec<Client> = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            let request: &Vec<u8> = request;
            clients.push(half_closing(chain.address(), request));
            fake.whole_request(index);
        }
        // Cancelling takes milliseconds.
        sleep(Duration::from_millis(100));
        gate.open();
        for (client, request) in clients.iter_mut().zip(&requests) {
            let answer = client.answer_to("GET");
            let what = String::from_utf8_lossy(request).into_owned();
            assert_eq!((answer.status(), answer.body.len()), (200, 100_000), "{way:?} {what}");
            assert_eq!(client.expect_close(), End::CutByClose, "{way:?} {what}");
        }
        for target in ["/api/version", "/api/tags", "/api/ps", "/v1/models", "/ollana/health"] {
            for version in ["1.0\r\nConnection: close", "1.1\r\nHost: localhost"] {
                let request = format!("GET {target} HTTP/{version}\r\n\r\n");
                let answer = half_closing(chain.address(), &request).answer_to("GET");
                assert_eq!((answer.status(), answer.end), (200, End::Whole), "{way:?} {request}");
            }
        }
        eventually("every connection to end", || (chain.front().connections() == 0).then_some(()));
    }
}

#[test]
fn half_closed_work_is_cancelled() {
    for way in Way::ALL {
        for target in ["/api/chat", "/v1/embeddings", "/v1/audio/transcriptions", "/api/pull"] {
            let fake = Fake::unlike_ollama(|call| {
                call.read_body();
                call.hang();
            });
            let chain = way.to(&fake);
            soon(&format!("{way:?} {target}: closed"), SOON, || {
                let (mut client, number) = (chain.connect(), fake.count());
                client.send(post(target, "{\"model\":\"m\"}"));
                fake.whole_request(number);
                let start = Instant::now();
                client.stream.shutdown(Shutdown::Write).expect("a half-close");
                let (at, _) = fake.closed(number);
                let (answer, _) = client.read_to_close();
                assert!(answer.is_empty(), "{way:?} {target}: {answer:?}");
                at.saturating_duration_since(start)
            });
        }
    }
}

/// As an Ollama without us answers half-closing clients, and two of them behind a client proxy.
#[test]
fn half_closing_clients_are_served_as_ollama_serves_them() {
    let ollamas: [Ollama; 2] = std::array::from_fn(|_| {
        Ollama::start(World { hold: Some(Gate::new()), ..World::with(&["alpha"]) })
    });
    let [a, b] = &ollamas;
    let chains = [
        Chain::direct(&[a, b], |_| {}),
        Chain::start(Way::TwoHops, &[a, b], |_| {}),
        Chain::start(Way::Paired, &[a, b], |_| {}),
    ];
    for address in [a.address].into_iter().chain(chains.iter().map(Chain::address)) {
        let show = post("/api/show", "{\"model\":\"alpha\"}");
        let get = |target: &str| format!("GET {target} HTTP/1.0\r\n\r\n").into_bytes();
        let reads = ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/v1/models/alpha"];
        for request in reads.map(get).into_iter().chain([show]) {
            let answer = half_closing(address, &request).answer_to("GET");
            let what = String::from_utf8_lossy(&request);
            assert_eq!((answer.status(), answer.end), (200, End::Whole), "{address} {what}");
        }
        let before = a.served().len() + b.served().len();
        let mut client = Client::connect(address);
        client.send(post("/api/chat", "{\"model\":\"alpha\",\"messages\":[{}]}"));
        client.head_of("POST");
        client.stream.shutdown(Shutdown::Write).expect("a half-close");
        let cancelled =
            |ollama: &Ollama| ollama.served().last().is_some_and(|one| one.is_cancelled);
        eventually("the chat to be cancelled", || {
            let is_done = a.served().len() + b.served().len() > before;
            (is_done && (cancelled(a) || cancelled(b))).then_some(())
        });
    }
}

/// The kernel tells of the end although bytes in front of it are unread, because the Ollama is slow.
#[test]
fn a_half_closed_upload_arrives_whole() {
    for way in Way::ALL {
        // A daemon that didn't run for a while only looked as if it had no room.
        let was_in_front = (0..5).any(|_| half_closes_behind_unread(way));
        assert!(was_in_front, "{way:?}: all was read each time");
    }
}

/// Whether something was unread when the client's end came.
fn half_closes_behind_unread(way: Way) -> bool {
    const PIECE: usize = 40 << 10;
    let gate = Gate::new();
    let held = gate.clone();
    let fake = Fake::unlike_ollama(move |call| {
        assert!(held.wait_for(3 * PATIENCE), "the half-close was awaited in vain");
        call.read_body();
        call.answer("201 Created", "text/plain", "");
    });
    let chain = way.to(&fake);
    let mut client = chain.connect();
    client.send("POST /api/blobs/sha256:00 HTTP/1.1\r\nHost: localhost\r\n");
    client.send("Transfer-Encoding: chunked\r\n\r\n");
    // What fits into the buffers on the way depends on the kernel: it gets more until some is left.
    let mut size = 0;
    while !are_unread(&client) {
        client.send(chunk("x".repeat(PIECE)));
        size += PIECE;
    }
    client.send("0\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).expect("a half-close");
    let was_in_front = are_unread(&client);
    gate.open();
    assert_eq!(client.answer_to("POST").status(), 201, "{way:?} {size}");
    assert_eq!(fake.request(0).body.len(), size, "{way:?}");
    was_in_front
}

/// Whether the daemon leaves bytes of this client unread, once all have gone as far as they go. An end
/// itself counts as one.
fn are_unread(client: &Client) -> bool {
    let (mut last, mut since) = ((0, 0), Instant::now());
    eventually("all to have gone as far as it goes", || {
        let now = queues(client);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        let is_settled = now.1 == 0 || since.elapsed() > Duration::from_secs(1);
        is_settled.then_some(now.0 == 0 && now.1 > 1)
    })
}

/// A program that has gone altogether looks like one that waits until something is sent to it.
#[test]
fn a_read_for_nobody_ends() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| call.hang());
        let chain = way.with(&fake, |settings| {
            settings.timing.half_closed_timeout = Duration::from_millis(300);
        });
        let start = Instant::now();
        let client = half_closing(chain.address(), "GET /v1/models/m HTTP/1.0\r\n\r\n");
        let (at, _) = fake.closed(0);
        assert!(at - start < Duration::from_secs(10), "{way:?}: after {:?}", at - start);
        drop(client);
        // A reset says at once that nobody waits.
        soon(&format!("{way:?}: closed"), SOON, || {
            let (mut client, number) = (chain.connect(), fake.count());
            client.send("GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\n\r\n");
            fake.request(number);
            let left = client.reset();
            fake.closed(number).0.saturating_duration_since(left)
        });
    }
}

#[test]
fn bare_line_feeds_are_served_where_there_is_no_body() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        for (request, wanted) in [
            ("GET /v1/models/m HTTP/1.0\n\n", "GET /v1/models/m"),
            ("GET /v1/models/m HTTP/1.0\nUser-Agent: check\nAccept: */*\n\n", "GET /v1/models/m"),
            ("GET /v1/models/m HTTP/1.1\nHost: localhost\n\n", "GET /v1/models/m"),
            ("\nGET /v1/models/m HTTP/1.1\nHost: localhost\n\n", "GET /v1/models/m"),
            ("DELETE /api/delete HTTP/1.0\n\n", "DELETE /api/delete"),
        ] {
            let mut client = chain.connect();
            // Byte by byte, and with another request behind it, which isn't read.
            for byte in request.as_bytes() {
                client.send([*byte]);
            }
            client.try_send("GET /v1/models/other HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answer = client.answer_to("GET");
            assert_eq!(seen(&fake, &answer), wanted, "{way:?} {request:?}");
            let (rest, end) = client.read_to_close();
            assert!(rest.is_empty() && end == End::CutByClose, "{way:?} {request:?}: {rest:?}");
        }
        let before = fake.count();
        for request in [
            "POST /api/show HTTP/1.0\nContent-Length: 2\n\n{}",
            "POST /api/show HTTP/1.0\nContent-Length: 0\n\n",
            "POST /api/show HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n0\r\n\r\n",
            "POST /api/show HTTP/1.1\nHost: localhost\nContent-Length: 2\r\n\r\n{}",
            "GET /v1/models/m HTTP/1.0\nX: y\r\n\r\n",
            "GET /v1/models/m HTTP/1.0\r\nX: y\n\n",
            "GET /v1/models/m HTTP/1.0\n\r\n",
            "GET /v1/models/m HTTP/1.0\r\n\n",
            "GET /v1/models/m HTTP/1.0\nX: y\rZ: w\n\n",
            "GET /v1/models/m HTTP/1.0\nX: y\n z\n\n",
            "GET /v1/models/m HTTP/1.1\n\n",
        ] {
            let answer = chain.connect().ask(request);
            assert_eq!(answer.status(), 400, "{way:?} {request:?}: {}", answer.text());
        }
        assert_eq!(fake.count(), before, "{way:?}");
    }
}

#[test]
fn an_absolute_target_of_this_machine_is_served() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let place = chain.address();
        let mut client = chain.connect();
        for (line, host, wanted) in [
            (format!("GET http://{place}/v1/models/m"), format!("{place}"), "GET /v1/models/m"),
            (format!("GET http://{place}/v1/models/m"), "localhost".into(), "GET /v1/models/m"),
            (
                "GET HTTP://localhost/v1/models/m?a=b".into(),
                "x.local".into(),
                "GET /v1/models/m?a=b",
            ),
            ("GET http://[fe80::1%25eth0]:1/v1/models/m".into(), "".into(), "GET /v1/models/m"),
            ("DELETE http://localhost/api/delete".into(), "localhost".into(), "DELETE /api/delete"),
        ] {
            let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let answer = client.ask(&request);
            assert_eq!(seen(&fake, &answer), wanted, "{way:?} {request:?}");
        }
        for target in ["/api/version", "/api/tags", "/ollana/health"] {
            let answer = client.get(&format!("http://{place}{target}"));
            assert_eq!(answer.status(), 200, "{way:?} {target}");
        }
        let before = fake.count();
        for (line, host, status) in [
            ("GET http://evil.example/v1/models/m", "localhost", 403),
            ("GET http://localhost/v1/models/m", "evil.example", 403),
            ("GET http://evil.example/v1/models/m", "evil.example", 403),
            ("GET http://evil.example/ollana/status", "localhost", 403),
            ("GET http://localhost@evil.example/v1/models/m", "localhost", 400),
            ("GET http://evil.example@localhost/v1/models/m", "localhost", 400),
            ("GET http:///v1/models/m", "localhost", 400),
            ("GET http:/v1/models/m", "localhost", 400),
            ("GET http://localhost/v1/models/m#x", "localhost", 400),
            ("GET http://localhost:1:2/v1/models/m", "localhost", 403),
            ("GET http://local\\host/v1/models/m", "localhost", 403),
            ("GET https://localhost/v1/models/m", "localhost", 400),
            ("GET ftp://localhost/v1/models/m", "localhost", 400),
            ("CONNECT localhost:11434", "localhost:11434", 501),
            ("CONNECT http://localhost/", "localhost", 501),
        ] {
            let mut client = chain.connect();
            let answer = client.ask(format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(answer.status(), status, "{way:?} {line}: {}", answer.text());
            assert_eq!(client.expect_close(), End::CutByClose, "{way:?} {line}");
        }
        assert_eq!(fake.count(), before, "{way:?}");
    }
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let mut client = chain.connect();
        let show = post("/api/show", "{\"model\":\"m\"}");
        let get = b"GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice();
        let blank = b"\r\n".as_slice();
        for request in [[blank, &show, blank].concat(), [get, b"\n"].concat(), get.to_vec()] {
            client.send(&request);
            assert_eq!(client.answer_to("POST").status(), 200, "{way:?} {request:?}");
        }
        // In pieces, on a connection that had been answered.
        for byte in [blank, get].concat() {
            client.send([byte]);
        }
        assert_eq!(client.answer_to("GET").status(), 200, "{way:?}");
        client.send(b"\r\n".repeat(100));
        assert_eq!(client.answer_to("GET").status(), 400, "{way:?}");
    }
}

/// A program that sends too much behind a body hasn't begun another request.
#[test]
fn an_empty_line_begins_no_request() {
    let fake = Ollama::with(&["m"]);
    for way in Way::ALL {
        let chain = way.with(&fake, |settings| {
            // Behind the front, no client is late on purpose.
            if way == Way::OneHop || settings.mode == ModeChoice::Client {
                settings.timing.head_timeout = Duration::from_millis(100);
            }
        });
        for stray in ["\r\n", "\n", "\r"] {
            let mut client = chain.connect();
            assert_eq!(client.post("/api/show", "{\"model\":\"m\"}").status(), 200);
            client.send(stray);
            sleep(Duration::from_millis(200));
            client.send(if stray == "\r" { "\n" } else { "" });
            assert_eq!(client.get("/v1/models/m").status(), 200, "{way:?} {stray:?}");
        }
    }
}

#[test]
fn queries_may_have_characters_that_a_uri_has_not() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for (query, wanted) in [
            (&b"q=\"x\""[..], "q=%22x%22"),
            (b"q=<x>|{y}^`\\[]'", "q=%3Cx%3E|{y}^`\\[]'"),
            ("q=\u{e9}\u{1f600}".as_bytes(), "q=%C3%A9%F0%9F%98%80"),
            (b"q=\xe9\xff", "q=%E9%FF"),
            (b"q=%zz&%", "q=%zz&%"),
            (b"q=?\"?", "q=?%22?"),
        ] {
            let request =
                [b"GET /v1/models/m?", query, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat();
            let answer = client.ask(&request);
            let wanted = format!("GET /v1/models/m?{wanted}");
            assert_eq!((answer.status(), seen(&fake, &answer)), (200, wanted), "{way:?} {query:?}");
        }
        let answer = client.get("/v1/models/a<b>`c");
        assert_eq!(seen(&fake, &answer), "GET /v1/models/a%3Cb%3E%60c");
        for query in [&b"a b"[..], b"a\tb", b"a\0b", b"a\x7fb", b"a\x1bb", b"a#b", b"\"#b"] {
            let request =
                [b"GET /v1/models/m?", query, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat();
            let status = chain.connect().ask(&request).status();
            assert!(matches!(status, 400 | 505), "{way:?} {query:?}: {status}");
        }
    }
}

#[test]
fn a_host_may_have_a_zone() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        for host in ["[fe80::1%eth0]:11434", "[fe80::1%25eth0]:11434", "[fe80::1%3]", "[::1%lo]"] {
            let request = format!("GET /v1/models/m HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(chain.connect().ask(&request).status(), 200, "{way:?} {host}");
        }
        for host in ["[evil.example%eth0]", "[fe80::1%]", "[fe80::1%a b]", "localhost%eth0"] {
            let request = format!("GET /v1/models/m HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(chain.connect().ask(&request).status(), 403, "{way:?} {host}");
        }
    }
}
