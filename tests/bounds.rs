//! Every limit and every deadline, each with the answer that tells the client of it.

mod support;

use std::time::{Duration, Instant};

use ollana::config::{ModeChoice, Settings};
use ollana::serve::Daemon;
use support::{
    Client, Closed, End, Fake, MODEL, Ollama, Way, chunk, client_settings, eventually,
    free_tcp_port, ndjson, request, server_settings,
};

const SHORT: Duration = Duration::from_millis(300);
/// Deadlines are late by no more than this.
const SLACK: Duration = Duration::from_secs(4);

fn short(set: fn(&mut Settings) -> &mut Duration) -> impl Fn(&mut Settings) {
    move |settings| *set(settings) = SHORT
}

/// That something took the short time-out, not less and not much more.
fn assert_on_time(start: Instant, what: &str) {
    let took = start.elapsed();
    // The daemon's clock starts a little before the client sees what it starts from.
    assert!(took >= SHORT * 3 / 4, "{what}: too early, after {took:?}");
    assert!(took < SHORT + SLACK, "{what}: too late, after {took:?}");
}

/// The status of an answer, after which the connection is closed in order.
fn last_status(client: &mut Client, what: &str) -> u16 {
    let answer = client.answer_to("POST");
    assert_eq!(answer.end, End::Whole, "{what}: {answer:?}");
    assert!(answer.json()["error"].is_string(), "{what}: {}", answer.text());
    assert_eq!(answer.head.one("connection").as_deref(), Some("close"), "{what}");
    let (rest, end) = client.read_to_close();
    assert!(rest.is_empty() && end == End::CutByClose, "{what}: then {rest:?}, {end:?}");
    answer.status()
}

#[test]
fn a_slow_head_is_cut() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.with(&fake, short(|settings| &mut settings.timing.head_timeout));
        for begun in ["G", "GET / HTTP/1.1\r\nHost: localhost\r\n"] {
            let mut client = chain.connect();
            let start = Instant::now();
            client.send(begun);
            assert_eq!(last_status(&mut client, begun), 408, "{way:?}");
            assert_on_time(start, begun);
        }
        // A byte now and then buys no time.
        let mut client = chain.connect();
        client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let start = Instant::now();
        let heard = (0..500).any(|_| {
            client.try_send("x");
            client.stream.peek(&mut [0]).is_ok()
        });
        assert!(heard, "{way:?}: a trickled head was never cut");
        assert_on_time(start, "a trickled head");
        assert_eq!(fake.count(), 0, "{way:?}");
    }
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.with(&fake, short(|settings| &mut settings.timing.idle_timeout));
        // The clock here starts before the daemon's, so that "too early" means it.
        let start = Instant::now();
        let mut unused = chain.connect();
        assert_eq!(unused.expect_close(), End::CutByClose, "{way:?}");
        assert_on_time(start, "a connection without a request");
        let mut used = chain.connect();
        let start = Instant::now();
        assert_eq!(used.get(MODEL).status(), 200, "{way:?}");
        assert_eq!(used.expect_close(), End::CutByClose, "{way:?}");
        assert_on_time(start, "a connection after its request");
    }
}

/// Longer than a worker waits for a request before it leaves the connection to the one thread that
/// watches all quiet ones.
const QUIET: Duration = Duration::from_millis(250);

#[test]
fn a_connection_that_was_quiet_goes_on_with_whatever_comes() {
    let get = || request("GET", MODEL, "");
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.with(&fake, |_| {});
        let mut client = chain.connect();
        let mut goes_on = |pieces: &[&[u8]], answers: usize| {
            std::thread::sleep(QUIET);
            for piece in pieces {
                client.send(piece);
                std::thread::sleep(QUIET);
            }
            for _ in 0..answers {
                let answer = client.answer_to("GET");
                assert_eq!((answer.status(), answer.end), (200, End::Whole), "{way:?}: {pieces:?}");
            }
        };
        let whole = get();
        let (head, rest) = whole.split_at(whole.len() / 2);
        let body = request("POST", "/api/show", r#"{"model": "m"}"#);
        let (before, behind) = body.split_at(body.len() - 5);
        goes_on(&[&whole], 1); // Its first bytes.
        goes_on(&[head, rest], 1);
        goes_on(&[b"\r", b"\n", &whole], 1);
        goes_on(&[&[whole.clone(), whole.clone(), head.to_vec()].concat(), rest], 3);
        goes_on(&[before, behind, &whole], 2);
    }
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    for way in Way::ALL {
        for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
            let fake = Ollama::with(&["m"]);
            let chain = way.with(&fake, short(|settings| &mut settings.timing.body_timeout));
            let mut client = chain.connect();
            let head =
                format!("POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
            let start = Instant::now();
            client.send(head + "5\r\nhello\r\n");
            assert_eq!(last_status(&mut client, framing), 408, "{way:?}");
            assert_on_time(start, framing);
            let (_, how) = fake.closed(0);
            assert_ne!(how, Closed::ByUs, "{way:?} {framing}");
            assert!(!fake.request(0).is_whole, "{way:?} {framing}");
        }
    }
}

#[test]
fn heads_of_any_size_up_to_the_limit() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let head = |fields: usize, size: usize| {
            let field = |n| format!("X-{n}: {}\r\n", "v".repeat(size));
            let fields: String = (0..fields).map(field).collect();
            format!("GET {MODEL} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
        };
        for (fields, size) in [(90, 10), (7, 8000), (4, 15_000)] {
            let answer = chain.connect().ask(head(fields, size));
            assert_eq!(answer.status(), 200, "{way:?}: {fields} fields of {size}");
        }
        let count = fake.count();
        for (fields, size) in [(100, 10), (9, 8000), (1, 17_000), (1, 70_000), (2000, 100)] {
            let mut client = chain.connect();
            client.try_send(head(fields, size));
            let what = format!("{way:?}: {fields} fields of {size}");
            assert_eq!(last_status(&mut client, &what), 431, "{what}");
        }
        let mut client = chain.connect();
        client.send(request("GET", &format!("/{}", "x".repeat(17_000)), ""));
        assert!(matches!(last_status(&mut client, "a long target"), 414 | 431), "{way:?}");
        for method in [4100, 65, 40_000].map(|len| "M".repeat(len)) {
            let mut client = chain.connect();
            client.try_send(request(&method, "/api/x", ""));
            let what = format!("{way:?}: a method of {}", method.len());
            assert_eq!(last_status(&mut client, &what), 501, "{what}");
        }
        assert_eq!(fake.count(), count, "{way:?}");
    }
}

#[test]
fn connections_over_the_limit_are_told() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.with(&fake, |settings| {
            // Behind the front, there is the front's own traffic too.
            if way == Way::OneHop || settings.mode == ModeChoice::Client {
                settings.limits.max_connections = 8;
            }
        });
        let mut held: Vec<Client> = Vec::new();
        for n in 0..8 {
            let mut client = chain.connect();
            assert_eq!(client.get(MODEL).status(), 200, "{way:?}: connection {n}");
            held.push(client);
        }
        for n in 0..5 {
            let mut client = chain.connect();
            client.try_send(request("GET", "/api/status", ""));
            let answer = client.answer_to("GET");
            assert_eq!((answer.status(), answer.end), (503, End::Whole), "{way:?} {n}");
            assert!(answer.head.has("retry-after"), "{way:?} {n}: {:?}", answer.head);
            assert!(answer.json()["error"].is_string(), "{way:?} {n}");
            assert_eq!(client.expect_close(), End::CutByClose, "{way:?} {n}");
        }
        // Those that are in are served, and a place that gets free is used.
        assert_eq!(held[3].get(MODEL).status(), 200, "{way:?}");
        held.pop();
        eventually("a place to be free", || {
            (chain.connect().get(MODEL).status() == 200).then_some(())
        });
    }
}

#[test]
fn a_reader_that_stalls_is_cut() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            call.read_body();
            call.send(ndjson());
            let deadline = Instant::now() + 2 * support::PATIENCE;
            while call.send(chunk(vec![b'x'; 64 * 1024])) && Instant::now() < deadline {}
        });
        let chain = way.with(&fake, short(|settings| &mut settings.timing.stall_timeout));
        let mut client = chain.connect();
        let start = Instant::now();
        client.send(support::post("/api/chat", "{}"));
        let (at, how) = fake.closed(0);
        let took = at.saturating_duration_since(start);
        println!("{way:?}: a stalled reader was cut after {} ms", took.as_millis());
        assert_eq!(how, Closed::Reset, "{way:?}");
        assert!(took >= SHORT && took < 3 * SLACK, "{way:?}: cut after {took:?}");
        eventually("the connection to end", || (chain.front().connections() == 0).then_some(()));
    }
}

#[test]
fn an_ollama_that_stops_reading_is_given_up() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| call.hang());
        let chain = way.with(&fake, short(|settings| &mut settings.timing.stall_timeout));
        let mut client = chain.connect();
        client.send(
            "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n",
        );
        client.stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let block = vec![b'x'; 256 * 1024];
        let start = Instant::now();
        eventually("the daemon to answer instead of waiting for ever", || {
            client.try_send(&block);
            client.stream.peek(&mut [0]).is_ok().then_some(())
        });
        let took = start.elapsed();
        println!("{way:?}: a stalled Ollama was given up after {} ms", took.as_millis());
        assert!(took >= SHORT && took < 4 * SLACK, "{way:?}: given up after {took:?}");
        let answer = client.answer_to("POST");
        assert_eq!((answer.status(), answer.end), (502, End::Whole), "{way:?}");
        let (_, how) = fake.closed(0);
        assert_ne!(how, Closed::ByUs, "{way:?}");
    }
}

#[test]
fn a_long_silence_of_the_ollama_is_no_matter() {
    // A cold model takes minutes to load; every other deadline is shorter than this silence, and longer
    // than what a busy machine takes for the rest.
    const SHORT: Duration = Duration::from_secs(1);
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            call.read_body();
            let silence = Instant::now() + 4 * SHORT;
            eventually("the silence to end", || (Instant::now() > silence).then_some(()));
            call.answer("200 OK", "text/plain", "at last");
        });
        let chain = way.with(&fake, |settings| {
            let timing = &mut settings.timing;
            timing.head_timeout = SHORT;
            timing.idle_timeout = SHORT;
            timing.body_timeout = SHORT;
            timing.stall_timeout = SHORT;
            timing.wait_timeout = SHORT;
            timing.connect_timeout = SHORT;
            timing.health_timeout = SHORT;
        });
        assert_eq!(chain.connect().post("/api/chat", "{}").text(), "at last", "{way:?}");
    }
}

#[test]
fn a_request_that_comes_back_is_refused_at_once() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        chain.connect().get("/api/status");
        // Every proxy that it went through knows it again, wherever its mark stands.
        for via in fake.request(0).head.all("via") {
            for field in [via.clone(), format!("1.0 fred, {via}"), format!("{via}, 1.1 other")] {
                let ask =
                    format!("GET /api/status HTTP/1.1\r\nHost: localhost\r\nVia: {field}\r\n\r\n");
                let answer = chain.connect().ask(ask);
                assert_eq!((answer.status(), answer.end), (508, End::Whole), "{way:?} {field}");
                assert!(answer.json()["error"].is_string(), "{way:?}: {}", answer.text());
            }
        }
        let answer = chain.connect().ask(
            "GET /api/status HTTP/1.1\r\nHost: localhost\r\nVia: 1.1 ollana-00000000, 1.1 ollana\r\n\r\n",
        );
        assert_eq!(answer.status(), 200, "{way:?}: others of our kind are no loop");
        assert_eq!(fake.count(), 2, "{way:?}");
    }
}

#[test]
fn proxies_that_lead_to_themselves_are_never_ready() {
    let [own, one, two] = [free_tcp_port(), free_tcp_port(), free_tcp_port()];
    let listening = |mut settings: Settings, address| {
        settings.listen = vec![address];
        settings.timing.wait_timeout = SHORT;
        Daemon::start(&settings).unwrap()
    };
    let daemons = [
        listening(server_settings(own), own),
        listening(client_settings(&[two]), one),
        listening(client_settings(&[one]), two),
    ];
    for address in [own, one, two] {
        let start = Instant::now();
        let answer = Client::connect(address).post("/api/chat", "{}");
        assert!(matches!(answer.status(), 503 | 508), "{answer:?}");
        assert!(answer.json()["error"].is_string(), "{}", answer.text());
        assert!(start.elapsed() < 2 * SLACK, "after {:?}", start.elapsed());
    }
    assert!(daemons.iter().all(|daemon| !daemon.presence().is_up()));
    let connections: usize = daemons.iter().map(Daemon::connections).sum();
    assert!(connections < 30, "{connections} connections: a check goes round and round");
}
