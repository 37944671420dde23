//! A busy server is alive: only local inference counts towards a limit and waits for its turn, and
//! only Ollama's own overload teaches a limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::config::Settings;

use crate::support::{
    Account, Answer, Call, Chain, Client, End, Fake, Gate, Ollama, PATIENCE, Way, World, chunk,
    eventually, ndjson, post, request,
};

/// Longer than any answer takes that waits for nothing, on a busy machine too; a turn is waited for
/// until [`PATIENCE`] ends.
const AT_ONCE: Duration = Duration::from_secs(6);

const OVERLOAD: &str = "server busy, please try again.  maximum pending requests exceeded";

/// A machine whose only turn a stream takes until the gate opens, with no place to wait for another.
fn full(gate: &Gate) -> Ollama {
    let world = World::with(&["alpha"]);
    Ollama::start(World { parallel: 1, queue: 0, hold: Some(gate.clone()), ..world })
}

/// An error in the dialect of the path.
fn error_of(path: &str, message: &str) -> String {
    match path {
        "/v1/messages" => {
            format!(r#"{{"type":"error","error":{{"type":"api_error","message":"{message}"}}}}"#)
        }
        path if path.starts_with("/v1/") => format!(
            r#"{{"error":{{"message":"{message}","type":"api_error","param":null,"code":null}}}}"#
        ),
        _ => format!(r#"{{"error":"{message}"}}"#),
    }
}

/// A stream that stays under way until the gate opens.
fn stream(chain: &Chain) -> Client {
    let mut client = chain.connect();
    client.send(post("/api/generate", r#"{"model":"alpha","prompt":"held"}"#));
    assert_eq!(client.head_of("POST").status(), 200);
    client.read_until(b"\n");
    client
}

/// Asks, and gives up where the answer doesn't come at once.
fn at_once(chain: &Chain, what: &str, bytes: impl AsRef<[u8]>) -> Answer {
    let start = Instant::now();
    let answer = chain.connect().ask(bytes);
    let took = start.elapsed();
    assert!(took < AT_ONCE, "{:?}: {what} waited for {took:?}", chain.way);
    answer
}

/// Whether local inference waits; afterwards it is over.
fn waits(chain: &Chain, gate: &Gate, stream: &mut Client) -> bool {
    let mut client = chain.connect();
    client.send(chat("alpha"));
    let socket = client.stream.try_clone().expect("a socket");
    let mut own_eye = chain.connect();
    let is_answered = eventually("an answer, or a place in the queue", || {
        socket.set_nonblocking(true).expect("a socket");
        let is_answered = socket.peek(&mut [0]).is_ok();
        socket.set_nonblocking(false).expect("a socket");
        let waiting = own_eye.get("/ollana/status").json()["queue"]["length"].as_u64();
        (is_answered || waiting > Some(0)).then_some(is_answered)
    });
    gate.open();
    assert_eq!(client.answer_to("POST").status(), 200);
    stream.rest();
    !is_answered
}

/// What must neither wait nor count, whatever is under way.
fn exempt() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(&str, &str, String)> = Vec::new();
    for path in ["/", "/api/version", "/api/tags", "/api/ps", "/api/status", "/v1/models"] {
        all.push(("GET", path, String::new()));
        all.push(("HEAD", path, String::new()));
    }
    all.push(("GET", "/v1/models/alpha", String::new()));
    all.push(("OPTIONS", "/api/chat", String::new()));
    all.push(("GET", "/ollana/health", String::new()));
    all.push(("HEAD", "/api/blobs/sha256:00", String::new()));
    for path in ["/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/me"] {
        all.push(("POST", path, r#"{"model":"alpha"}"#.to_owned()));
    }
    all.push(("DELETE", "/api/delete", r#"{"model":"other"}"#.to_owned()));
    all.push(("POST", "/api/blobs/sha256:00", "blob".to_owned()));
    let text = "x".repeat(70_000);
    for body in [
        r#"{"model":"gpt-oss:120b-cloud","messages":[]}"#.to_owned(),
        r#"{"model":"kimi:cloud"}"#.to_owned(),
        r#"{"model":"KIMI:Cloud"}"#.to_owned(),
        r#"{"model":"kimi:clou\u0064"}"#.to_owned(),
        format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"model":"kimi:cloud"}}"#),
        r#"{"model":"alpha","keep_alive":0}"#.to_owned(),
    ] {
        all.push(("POST", "/api/chat", body.clone()));
        all.push(("POST", "/v1/messages", body));
    }
    all.retain(|(_, path, body)| *path != "/v1/messages" || body.contains("loud"));
    let named = |(method, path, body): &(&str, &str, String)| {
        (format!("{method} {path} {body:.60}"), request(method, path, body))
    };
    all.iter().map(named).collect()
}

#[test]
fn only_local_inference_waits_behind_a_limit() {
    for way in Way::ALL {
        for is_set in [true, false] {
            let gate = Gate::new();
            let ollama = full(&gate);
            let chain = way.with(&ollama, |settings: &mut Settings| {
                settings.limits.max_in_flight = u32::from(is_set);
            });
            let mut stream = stream(&chain);
            if !is_set {
                let refused = chain.connect().ask(chat("alpha"));
                assert_eq!(refused.status(), 503, "{way:?}");
                assert!(refused.text().contains(OVERLOAD), "{way:?}: {}", refused.text());
            }
            // An answer's end may be read before its turn is over.
            ollama.change(|world| (world.hold, world.queue) = (None, 512));
            for (what, bytes) in exempt() {
                let status = at_once(&chain, &what, bytes).status();
                assert!(status < 500, "{way:?}: {what}: {status}");
            }
            assert!(waits(&chain, &gate, &mut stream), "{way:?}: no limit holds (set: {is_set})");
        }
    }
}

/// What is under way without being local inference takes nobody's turn.
#[test]
fn a_cloud_stream_and_a_pull_take_no_turn() {
    for way in Way::ALL {
        for path in ["/api/chat", "/api/pull"] {
            let gate = Gate::new();
            let ollama = Ollama::with(&["alpha"]);
            let held = gate.clone();
            ollama.change(|world| {
                let pull = move |call: &mut Call<'_>| {
                    call.read_body();
                    call.send(ndjson());
                    call.send_chunk("{\"status\":\"pulling manifest\"}\n");
                    call.wait(&held, "the pull to end");
                    call.send("0\r\n\r\n");
                };
                world.script.insert("/api/pull".to_owned(), Arc::new(pull));
                world.hold = Some(gate.clone());
            });
            let chain = way.with(&ollama, |settings| settings.limits.max_in_flight = 1);
            let mut under_way = chain.connect();
            under_way.send(match path {
                "/api/chat" => chat("x:cloud"),
                _ => post(path, r#"{"model":"alpha"}"#),
            });
            under_way.head_of("POST");
            under_way.read_until(b"\n");
            ollama.change(|world| world.hold = None);
            assert_eq!(at_once(&chain, "a chat", chat("alpha")).status(), 200, "{way:?} {path}");
            gate.open();
            under_way.rest();
        }
    }
}

/// A refusal: to what request, with which status and body, and whether it teaches a limit.
struct Refusal {
    path: &'static str,
    model: &'static str,
    status: &'static str,
    error: String,
    teaches: bool,
}

fn refusals() -> Vec<Refusal> {
    const BUSY: &str = "503 Service Unavailable";
    const QUOTA: &str = "429 Too Many Requests";
    let usage = "you have reached your weekly usage limit";
    let row = |path, model, status, message: &str, teaches| {
        let error = error_of(path, message);
        Refusal { path, model, status, error, teaches }
    };
    let mut all = Vec::new();
    for path in [
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/messages",
    ] {
        all.push(row(path, "alpha", BUSY, OVERLOAD, true));
    }
    for path in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
        all.push(row(path, "x:cloud", QUOTA, usage, false));
        all.push(row(path, "x:cloud", BUSY, OVERLOAD, false));
        all.push(row(path, "alpha", QUOTA, OVERLOAD, false));
        all.push(row(path, "alpha", BUSY, "the model is loading", false));
    }
    all.push(row("/api/me", "", BUSY, "account unavailable", false));
    all.push(row("/api/me", "", BUSY, OVERLOAD, false));
    all.push(row("/api/show", "alpha", BUSY, OVERLOAD, false));
    all.push(row("/api/pull", "alpha", BUSY, OVERLOAD, false));
    all
}

#[test]
fn only_ollamas_own_overload_teaches_a_limit() {
    for way in [Way::OneHop, Way::TwoHops] {
        for Refusal { path, model, status, error, teaches } in refusals() {
            let name = format!("{way:?}: {path} {model:?} {status} {error}");
            let gate = Gate::new();
            let (held, refusal) = (gate.clone(), error.clone());
            let fake = Fake::unlike_ollama(move |call: &mut Call<'_>| {
                let body = String::from_utf8_lossy(&call.read_body()).into_owned();
                if body.contains("\"held\"") {
                    call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    call.send_chunk("{}\n");
                    call.wait(&held, "the stream's turn to end");
                    call.send("0\r\n\r\n");
                } else if body.contains("refuse") {
                    call.answer(status, "application/json; charset=utf-8", &refusal);
                } else {
                    call.answer("200 OK", "application/json", "{}");
                }
            });
            let chain = way.to(&fake);
            let mut stream = stream(&chain);
            let body = format!(r#"{{"model":"{model}","a":"refuse"}}"#);
            let answer = chain.connect().post(path, body);
            assert_eq!((answer.status().to_string(), answer.text()), (status[..3].into(), error));
            assert_eq!(waits(&chain, &gate, &mut stream), teaches, "{name}");
        }
    }
}

/// What is looked at of a refusal reaches the client as it came: its bytes, its framing, its end.
#[test]
fn a_refusal_is_passed_on_as_it_came() {
    let long = format!(r#"{{"error":"{}"}}"#, "y".repeat(50_000));
    for way in Way::ALL {
        let gate = Gate::new();
        let (later, whole) = (gate.clone(), long.clone());
        let fake = Fake::unlike_ollama(move |call| {
            let body = String::from_utf8_lossy(&call.read_body()).into_owned();
            let head = "HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nRetry-After: 7\r\n";
            let length = |length: usize| format!("{head}Content-Length: {length}\r\n\r\n");
            match &*body {
                r#"{"a":"long"}"# => {
                    call.send(length(whole.len()));
                    call.send(&whole);
                }
                r#"{"a":"chunks"}"# => {
                    call.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
                    call.send(chunk(&whole));
                    call.send("0\r\n\r\n");
                }
                r#"{"a":"slow"}"# => {
                    call.send(length(4));
                    call.send("ab");
                    call.wait(&later, "the client to have the first half");
                    call.send("cd");
                }
                r#"{"a":"cut"}"# => {
                    call.send(length(4));
                    call.send("ab");
                    call.close();
                }
                _ => {
                    call.send(length(0));
                }
            }
        });
        let chain = way.to(&fake);
        let ask = |what: &str| chain.connect().post("/api/chat", format!(r#"{{"a":"{what}"}}"#));
        for what in ["long", "chunks"] {
            let answer = ask(what);
            assert_eq!((answer.status(), answer.text()), (503, long.clone()), "{way:?}: {what}");
            assert_eq!(answer.head.one("retry-after").as_deref(), Some("7"));
        }
        assert_eq!((ask("none").status(), ask("none").text().as_str()), (503, ""), "{way:?}");
        let cut = ask("cut");
        assert!(cut.status() == 502 || cut.end != End::Whole, "{way:?}: {cut:?}");
        let mut client = chain.connect();
        client.send(post("/api/chat", r#"{"a":"slow"}"#));
        assert_eq!(client.head_of("POST").status(), 503, "{way:?}");
        assert_eq!(client.read_until(b"ab"), b"ab");
        gate.open();
        assert_eq!(client.rest().0, b"cd", "{way:?}");
        eventually("the leases to be back", || {
            (chain.front().presence().in_flight() == 0).then_some(())
        });
    }
}

/// An Ollama with one model, whose inference streams until the gate opens.
fn held(gate: &Gate, model: &str) -> Ollama {
    Ollama::start(World { hold: Some(gate.clone()), ..World::with(&[model]) })
}

fn chat(model: &str) -> Vec<u8> {
    post(
        "/api/chat",
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#),
    )
}

/// A client's proxy in front of these, or of their servers' proxies, that knows so many models.
fn client_of(hops: usize, ollamas: &[&Ollama], models: usize, tweak: fn(&mut Settings)) -> Chain {
    let fakes: Vec<&Fake> = ollamas.iter().map(|ollama| &***ollama).collect();
    let chain = match hops {
        1 => Chain::direct(&fakes, tweak),
        _ => Chain::start(Way::TwoHops, &fakes, tweak),
    };
    let lists = || chain.connect().get("/api/tags").json()["models"].as_array().map_or(0, Vec::len);
    eventually("all models to be known", || (lists() == models).then_some(()));
    chain
}

#[test]
fn who_waits_for_one_server_delays_nobody_at_another() {
    for hops in [1, 2] {
        let gate = Gate::new();
        let (a, b) = (held(&gate, "alpha"), Ollama::with(&["beta"]));
        let chain = client_of(hops, &[&a, &b], 2, |settings| {
            settings.limits.max_in_flight = 1;
            // The 256th of a slow machine waits longer than a minute.
            settings.timing.queue_timeout = 100 * PATIENCE;
        });
        let mut waiting: Vec<Client> = (0..257).map(|_| chain.connect()).collect();
        for client in &mut waiting {
            client.send(chat("alpha"));
        }
        // One is served, 256 wait.
        let length = || chain.connect().get("/ollana/status").json()["queue"]["length"].as_u64();
        eventually("all of them to wait", || (length() == Some(256)).then_some(()));
        assert_eq!(chain.connect().ask(chat("alpha")).status(), 503, "{hops} hops: one too many");
        let answer = at_once(&chain, "another server's model", chat("beta"));
        assert_eq!(answer.status(), 200, "{hops} hops");
        gate.open();
        let codes = waiting.iter_mut().map(|client| client.answer_to("POST").status());
        assert_eq!(codes.filter(|status| *status != 200).count(), 0, "{hops} hops");
    }
}

#[test]
fn what_two_servers_refuse_goes_to_the_third() {
    for hops in [1, 2] {
        let full = |other| {
            let world = World::with(&["alpha", other]);
            Ollama::start(World { parallel: 0, queue: 0, ..world })
        };
        let (a, b, c) = (full("one"), full("two"), Ollama::with(&["alpha", "three"]));
        let chain = client_of(hops, &[&a, &b, &c], 4, |_| {});
        let answer = chain.connect().ask(chat("alpha"));
        assert_eq!(answer.status(), 200, "{hops} hops: {}", answer.text());
        drop(c);
        let answer = chain.connect().ask(chat("alpha"));
        assert!(answer.text().contains("maximum pending requests"), "{hops}: {}", answer.text());
    }
}

/// A stream on a full machine, a spent quota, an account that can't be asked: the server is asked
/// on, lists what it has, and is called down by nobody.
#[test]
fn a_full_server_with_a_spent_quota_answers_all_that_needs_no_turn() {
    for way in [Way::OneHop, Way::TwoHops] {
        let gate = Gate::new();
        let (parallel, queue, hold) = (1, 0, Some(gate.clone()));
        let world = World { parallel, queue, hold, quota_spent: true, ..World::with(&["alpha"]) };
        let ollama = Ollama::start(world);
        let chain = way.to(&ollama);
        let mut stream = chain.connect();
        stream.send(chat("alpha"));
        stream.head_of("POST");
        let cloud = chat("gpt-oss:120b-cloud");
        assert_eq!(at_once(&chain, "a cloud model", cloud.clone()).status(), 429, "{way:?}");
        ollama.change(|world| world.account = Account::Offline);
        at_once(&chain, "the account", post("/api/me", ""));
        assert_eq!(at_once(&chain, "an overload", chat("alpha")).status(), 503, "{way:?}");
        for round in 0..3 {
            for path in ["/api/version", "/api/tags", "/api/ps", "/v1/models"] {
                let what = format!("{path}, round {round}");
                assert_eq!(at_once(&chain, &what, request("GET", path, "")).status(), 200);
            }
            let show = post("/api/show", r#"{"model":"alpha"}"#);
            assert_eq!(at_once(&chain, "show", show).status(), 200, "{way:?}");
            at_once(&chain, "a cloud model", cloud.clone());
            let up = |daemon: &ollana::serve::Daemon| daemon.presence().is_up();
            assert!(chain.servers.iter().chain(&chain.client).all(up), "{way:?}: called down");
            std::thread::sleep(Duration::from_millis(400));
        }
        gate.open();
        stream.rest();
    }
}
