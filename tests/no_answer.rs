//! Where there is no answer to pass on, the client gets one in the shape of the API that it called:
//! soon, with the reason, and never a 404 that `ollama run` would take for a missing model.

mod support;

use std::time::{Duration, Instant};

use ollana::config::Settings;
use ollana::serve::Daemon;
use support::{
    Answer, Chain, Client, End, Fake, MODEL, Ollama, Way, client_settings, eventually,
    free_tcp_port, server_settings, soon,
};

/// Half of what [`patient`] daemons wait for a server.
const SOON: Duration = Duration::from_secs(5);

/// So that what waits for a server, or for its next check, is told from what a busy machine takes.
fn patient(settings: &mut Settings) {
    settings.timing.wait_timeout = 2 * SOON;
    settings.timing.health_interval = 12 * SOON;
}

/// The error's text, from where the API of this target has it.
fn message(target: &str, answer: &Answer) -> String {
    let media = answer.head.one("content-type").unwrap_or_default();
    assert!(media.starts_with("application/json"), "{target}: {media}");
    let json = answer.json();
    let message = if target.starts_with("/v1/messages") {
        assert_eq!(json["type"], "error", "{target}: {json}");
        assert!(json["error"]["type"].is_string(), "{target}: {json}");
        &json["error"]["message"]
    } else if target.starts_with("/v1/") {
        for member in ["type", "param", "code"] {
            assert!(json["error"].get(member).is_some(), "{target}: {json}");
        }
        &json["error"]["message"]
    } else {
        &json["error"]
    };
    message.as_str().unwrap_or_else(|| panic!("{target}: no message in {json}")).to_owned()
}

/// Requests of every dialect; only the first of them may be sent again.
const REPEATABLE: usize = 4;
const TARGETS: [&str; 7] = [
    "/api/chat",
    "/api/show",
    "/v1/chat/completions",
    "/v1/messages?beta=true",
    "/v1/models/x",
    "/api/pull",
    "/api/blobs/sha256:00",
];

#[test]
fn an_ollama_that_dies_before_its_answer() {
    for way in Way::ALL {
        for reset in [false, true] {
            let fake = Fake::unlike_ollama(move |call| {
                call.read_body();
                if reset { call.reset() } else { call.close() }
            });
            let chain = way.with(&fake, patient);
            for target in TARGETS {
                let mut client = chain.connect();
                let asked = Instant::now();
                let answer = client.post(target, "{}");
                let took = asked.elapsed();
                println!("{target}, {way:?}, reset: {reset}: told after {} µs", took.as_micros());
                assert!(took < SOON, "{way:?} {target}: told only after {took:?}");
                assert_eq!((answer.status(), answer.end), (502, End::Whole), "{way:?} {target}");
                let message = message(target, &answer);
                let address = fake.address.to_string();
                assert!(message.contains(&address), "{way:?} {target}: names no server: {message}");
                let reason = ["connection closed early", "connection reset"];
                assert!(reason.iter().any(|reason| message.contains(reason)), "{message}");
            }
            for (n, target) in TARGETS.iter().enumerate() {
                let times = fake.look(|state| {
                    state.records.iter().filter(|record| record.head.target() == *target).count()
                });
                // On a connection from the pool, inference may be tried again on a new one.
                let most = if n < REPEATABLE { 2 } else { 1 };
                assert!((1..=most).contains(&times), "{way:?} {target}: sent {times} times");
            }
        }
    }
}

#[test]
fn answers_that_are_not_http() {
    for way in Way::ALL {
        let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(200_000));
        for bad in [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.1 \r\n\r\n",
            "HTTP/1.1 abc OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-Half: ",
            "HT",
            &long,
        ] {
            let bytes = bad.to_owned();
            let fake = Fake::unlike_ollama(move |call| {
                call.read_body();
                call.send(&bytes);
                call.close();
            });
            let chain = way.with(&fake, patient);
            let mut client = chain.connect();
            let asked = Instant::now();
            let answer = client.post("/api/chat", "{}");
            assert!(asked.elapsed() < SOON, "{way:?} {bad:.60?}: after {:?}", asked.elapsed());
            assert_eq!((answer.status(), answer.end), (502, End::Whole), "{way:?} {bad:.60?}");
            message("/api/chat", &answer);
        }
    }
}

#[test]
fn an_ollama_that_is_down_and_comes_back() {
    for way in Way::ALL {
        let mut fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let mut client = chain.connect();
        assert_eq!(client.get(MODEL).status(), 200, "{way:?}");
        fake.kill();
        let died = Instant::now();
        for target in TARGETS {
            let answer = chain.connect().post(target, "{}");
            assert!(matches!(answer.status(), 502 | 503), "{way:?} {target}: {answer:?}");
            message(target, &answer);
        }
        // For the first two seconds requests wait for a server that may just restart.
        assert!(
            died.elapsed() < Duration::from_secs(7),
            "{way:?}: answers took {:?}",
            died.elapsed()
        );
        eventually("the daemon to see that its backend is down", || {
            (!chain.front().presence().is_up()).then_some(())
        });
        println!("{way:?}: down after {} ms", died.elapsed().as_millis());
        let answer = client.get(MODEL);
        assert!(matches!(answer.status(), 502 | 503), "{way:?}: {answer:?}");
        fake.restart();
        let started = Instant::now();
        eventually("the daemon to use its backend again", || {
            (chain.connect().get(MODEL).status() == 200).then_some(())
        });
        println!("{way:?}: up after {} ms", started.elapsed().as_millis());
        assert_eq!(client.get(MODEL).status(), 200, "{way:?}: on the connection from before");
    }
}

#[test]
fn no_server_is_a_503_in_time_and_never_a_404() {
    let port = free_tcp_port();
    let mut settings = client_settings(&[port]);
    settings.timing.wait_timeout = Duration::from_millis(300);
    let daemon = Daemon::start(&settings).unwrap();
    for target in TARGETS {
        // Not 1.5 s, as without the setting.
        soon(target, Duration::from_secs(1), || {
            let mut client = Client::connect(daemon.addresses()[0]);
            let asked = Instant::now();
            let answer = client.post(target, "{}");
            let took = asked.elapsed();
            assert_eq!(answer.status(), 503, "{target}");
            assert!(answer.head.has("retry-after"), "{target}");
            let message = message(target, &answer);
            assert!(message.contains(&port.to_string()), "{target}: names no server: {message}");
            took
        });
    }
    // `ollama` starts with this one, and tells only of the next one's failure. Its answer has no
    // body, so that must work.
    let mut client = Client::connect(daemon.addresses()[0]);
    for _ in 0..2 {
        let answer = client.ask("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(answer.status(), 200);
        assert!(!client.has_unread(), "a body after HEAD");
    }
    // The server starts later, and nobody has to restart anything.
    let mut fake = Ollama::with(&["m"]);
    fake.kill();
    fake.address = port;
    fake.restart();
    eventually("the server to be used", || (client.get(MODEL).status() == 200).then_some(()));
}

#[test]
fn nobody_to_ask_at_all() {
    let mut settings = client_settings(&[]);
    patient(&mut settings);
    let daemon = Daemon::start(&settings).unwrap();
    let mut client = Client::connect(daemon.addresses()[0]);
    let asked = Instant::now();
    let answer = client.post("/api/show", "{}");
    assert_eq!(answer.status(), 503);
    assert!(message("/api/show", &answer).contains("no Ollama server"), "{}", answer.text());
    assert!(asked.elapsed() < SOON, "nothing is expected, so there is nothing to wait for");
}

#[test]
fn a_request_waits_for_a_server_that_is_being_checked() {
    // The first check takes a moment; a request that comes right at the start must not fail.
    let fake = Ollama::with(&["m"]);
    let daemon = Daemon::start(&server_settings(fake.address)).unwrap();
    assert_eq!(Client::connect(daemon.addresses()[0]).get(MODEL).status(), 200);
    let daemon = Daemon::start(&client_settings(&[fake.address])).unwrap();
    assert_eq!(Client::connect(daemon.addresses()[0]).get(MODEL).status(), 200);
}

#[test]
fn a_head_request_that_fails_has_no_body() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| call.close());
        let chain: Chain = way.to(&fake);
        let mut client = chain.connect();
        for _ in 0..2 {
            let answer = client.ask("HEAD /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(answer.status(), 502, "{way:?}");
            assert!(answer.head.length().is_some_and(|length| length > 0), "{way:?}");
            assert!(!client.has_unread(), "{way:?}: a body after HEAD");
        }
    }
}
