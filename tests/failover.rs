//! Two servers: what one of them can't do, the other one does, if asking again can't do harm.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::config::Settings;
use serde_json::Value;
use support::{
    Call, Chain, Client, End, Fake, Gate, INFERENCE, NEVER_TWICE, Ollama, Served, Way, World,
    chunk, eventually, request, soon,
};

/// Less than any time-out on the way.
const SOON: Duration = Duration::from_secs(1);

/// A request for inference in the words of every API.
const BODY: &str = r#"{"model":"m","prompt":"why","input":"why","max_tokens":5,"stream":false,
    "messages":[{"role":"user","content":"why"}]}"#;

/// What becomes of a request instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// Closes when it has read the whole request.
    Close,
    /// Resets when it has read the whole request.
    Reset,
    /// Closes when it has read a part of the body.
    CloseHalfWay,
    /// Answers with this status, as no Ollama does.
    Status(&'static str),
}

/// An Ollama with the model `m`, and one that only holds requests.
struct Server(Ollama);

const HELD: &str = "/v1/models/held";

impl Server {
    fn start(gate: Gate) -> Self {
        let mut world = World::with(&["m"]);
        let hold = move |call: &mut Call<'_>| {
            call.wait(&gate, "the test to end");
            call.answer("200 OK", "text/plain", "");
        };
        world.script.insert(HELD.to_owned(), Arc::new(hold));
        Server(Ollama::start(world))
    }

    fn set(&self, deed: Deed) {
        self.0.change(|world| world.fate = Some(Arc::new(move |call| act(call, deed))));
    }

    /// It has no turn for anybody.
    fn fill(&self) {
        self.0.change(|world| (world.parallel, world.queue) = (0, 0));
    }
}

fn act(call: &mut Call<'_>, deed: Deed) {
    if deed == Deed::CloseHalfWay {
        call.read_part();
        return call.close();
    }
    call.read_body();
    match deed {
        Deed::Reset => call.reset(),
        Deed::Status(status) => call.answer(status, "text/plain", status),
        _ => call.close(),
    }
}

/// Two servers that are both up. The second one has requests under way for as long as the test
/// lasts, so that the next request goes to the first one first.
struct Two {
    chain: Chain,
    servers: [Server; 2],
    gate: Gate,
    _holders: Vec<Client>,
}

impl Two {
    /// `direct`: a client proxy takes the fakes for its servers; else each has its server proxy.
    fn start(direct: bool, tweak: impl Fn(&mut Settings)) -> Self {
        let gate = Gate::new();
        let servers = [Server::start(gate.clone()), Server::start(gate.clone())];
        // The checks must not tell of a death before a request does.
        let rarely = |settings: &mut Settings| {
            settings.timing.health_interval = Duration::from_secs(60);
            tweak(settings);
        };
        let ollamas = [&servers[0].0, &servers[1].0];
        let chain = match direct {
            true => Chain::direct(&ollamas, rarely),
            false => Chain::start(Way::TwoHops, &ollamas, rarely),
        };
        let ask = |server: usize, target: &str| {
            let behind = chain.servers.get(server).map(|daemon| daemon.addresses()[0]);
            let name = behind.unwrap_or(ollamas[server].address);
            let mut client = chain.connect();
            client.send(format!(
                "GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Ollana-Server: {name}\r\n\r\n"
            ));
            client
        };
        for server in 0..2 {
            eventually("both servers to be up", || {
                (ask(server, "/api/status").answer_to("GET").status() == 200).then_some(())
            });
        }
        let holders = (0..3).map(|_| ask(1, HELD)).collect();
        ollamas[1].wait("requests to be held", |state| {
            let held = state.records.iter().filter(|record| record.head.target() == HELD);
            (held.count() == 3).then_some(())
        });
        Two { chain, servers, gate, _holders: holders }
    }

    fn first(&self) -> &Server {
        &self.servers[0]
    }

    fn second(&self) -> &Server {
        &self.servers[1]
    }

    /// How often each server was asked for this target.
    fn asked(&self, target: &str) -> [usize; 2] {
        [self.first(), self.second()].map(|server| {
            server.0.look(|state| {
                state.records.iter().filter(|record| record.head.target() == target).count()
            })
        })
    }
}

impl Two {
    /// What the second server's handlers did last, and the body that it was asked with.
    fn last(&self) -> (Served, Vec<u8>) {
        let ollama = &self.second().0;
        let served = ollama.served().pop().expect("something served");
        let body = ollama.whole_request(served.record).body;
        (served, body)
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        self.gate.open();
    }
}

const WAYS: [bool; 2] = [true, false];

#[test]
fn inference_moves_on_from_a_server_that_dies_before_its_first_byte() {
    for direct in WAYS {
        for deed in [Deed::Close, Deed::Reset] {
            for target in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
                let name = format!("{target}, {deed:?}, direct: {direct}");
                soon(&name, SOON, || {
                    let two = Two::start(direct, |_| {});
                    two.first().set(deed);
                    let asked = Instant::now();
                    let answer = two.chain.connect().post(target, BODY);
                    let took = asked.elapsed();
                    println!("{name}: answered after {} µs", took.as_micros());
                    assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
                    assert_eq!(two.last().1, BODY.as_bytes(), "{name}");
                    assert_eq!(two.asked(target)[1], 1, "{name}: asked {:?}", two.asked(target));
                    took
                });
            }
        }
    }
}

#[test]
fn all_inference_may_be_asked_for_again() {
    let two = Two::start(true, |_| {});
    for target in INFERENCE {
        two.first().set(Deed::Close);
        assert_eq!(two.chain.connect().post(target, BODY).status(), 200, "{target}");
    }
}

#[test]
fn both_servers_die() {
    for direct in WAYS {
        let two = Two::start(direct, |_| {});
        two.first().set(Deed::Close);
        two.second().set(Deed::Close);
        let answer = two.chain.connect().post("/api/chat", BODY);
        assert_eq!((answer.status(), answer.end), (502, End::Whole), "direct: {direct}");
        assert!(answer.json()["error"].is_string(), "{}", answer.text());
    }
}

#[test]
fn a_server_that_dies_with_half_a_body_sent() {
    for direct in WAYS {
        let (begun, rest) = BODY.split_at(20);
        let length = format!("Content-Length: {}", BODY.len());
        for framing in [&length, "Transfer-Encoding: chunked"] {
            let two = Two::start(direct, |_| {});
            two.first().set(Deed::CloseHalfWay);
            let name = format!("{framing}, direct: {direct}");
            let is_chunked = framing.starts_with('T');
            let mut client = two.chain.connect();
            client.send(format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"));
            // A client proxy that has a choice waits for the model's name, but not for more.
            let frame = |text: &str| if is_chunked { chunk(text) } else { text.into() };
            client.send(frame(begun));
            // The second server has what came so far before the client sends any more.
            for server in &two.servers {
                server.0.wait(&format!("half a body, {name}"), |state| {
                    let chat = state.records.iter().find(|r| r.head.target() == "/api/chat")?;
                    (chat.body == begun.as_bytes()).then_some(())
                });
            }
            client.send(frame(rest));
            client.send(if is_chunked { "0\r\n\r\n" } else { "" });
            let answer = client.answer_to("POST");
            assert_eq!((answer.status(), two.last().1), (200, BODY.into()), "{name}");
        }
    }
}

#[test]
fn a_body_that_was_not_kept_is_not_asked_for_again() {
    let body = BODY.replacen("why", &"x".repeat(10_000), 1);
    for direct in WAYS {
        for (limit, budget) in [(4096, 64 << 20), (4 << 20, 4096)] {
            let two = Two::start(direct, |settings| {
                settings.limits.replay_limit = limit;
                settings.limits.replay_budget = budget;
            });
            let name = format!("limit {limit}, budget {budget}, direct: {direct}");
            let answer = two.chain.connect().post("/api/chat", &body);
            assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
            two.first().set(Deed::Close);
            let before = two.asked("/api/chat");
            let answer = two.chain.connect().post("/api/chat", &body);
            assert_eq!((answer.status(), answer.end), (502, End::Whole), "{name}");
            assert!(answer.json()["error"].is_string(), "{name}: {}", answer.text());
            let after = two.asked("/api/chat");
            assert_eq!([after[0] - 1, after[1]], before, "{name}: asked");
        }
    }
}

#[test]
fn memory_for_bodies_is_given_back() {
    let body = BODY.replacen("why", &"x".repeat(10_000), 1);
    let two = Two::start(true, |settings| settings.limits.replay_budget = 25_000);
    for n in 0..20 {
        assert_eq!(two.chain.connect().post("/api/chat", &body).status(), 200, "request {n}");
    }
    // Uploads that are cut short, too.
    for _ in 0..20 {
        let mut client = two.chain.connect();
        let before = two.asked("/api/generate").iter().sum::<usize>();
        let mut whole = request("POST", "/api/generate", &body);
        whole.truncate(5000);
        client.send(whole);
        eventually("half a request to arrive", || {
            (two.asked("/api/generate").iter().sum::<usize>() > before).then_some(())
        });
        client.leave();
    }
    two.first().set(Deed::Close);
    eventually("the last of them to end", || (two.chain.front().connections() == 3).then_some(()));
    let answer = two.chain.connect().post("/api/chat", &body);
    assert_eq!((answer.status(), two.last().1), (200, body.into()), "kept, and asked for again");
}

#[test]
fn never_twice_means_never() {
    for direct in WAYS {
        for deed in [Deed::Close, Deed::Reset, Deed::CloseHalfWay] {
            let two = Two::start(direct, |_| {});
            two.first().set(deed);
            two.second().set(deed);
            for (method, target) in NEVER_TWICE {
                let name = format!("{method} {target}, {deed:?}, direct: {direct}");
                let answer = two.chain.connect().ask(request(method, target, "{\"model\":\"m\"}"));
                assert_eq!((answer.status(), answer.end), (502, End::Whole), "{name}");
                let asked: usize = two.asked(target).iter().sum();
                assert_eq!(asked, 1, "{name}: asked {:?}", two.asked(target));
            }
        }
    }
}

#[test]
fn a_refused_connection_is_no_matter_for_any_method() {
    for direct in WAYS {
        let requests =
            NEVER_TWICE.iter().copied().chain([("POST", "/api/chat"), ("GET", "/v1/models/m")]);
        for (method, target) in requests {
            let name = format!("{method} {target}, direct: {direct}");
            soon(&name, SOON, || {
                let mut two = Two::start(direct, |_| {});
                two.servers[0].0.kill();
                let asked = Instant::now();
                let answer = two.chain.connect().ask(request(method, target, BODY));
                let took = asked.elapsed();
                println!("{name}: answered after {} µs", took.as_micros());
                let (served, body) = two.last();
                assert_eq!(answer.status(), served.status, "{name}");
                match (target, direct) {
                    // The proxy beside Ollama has it answer in lines.
                    ("/api/pull", false) => {
                        let json =
                            |body: &[u8]| -> Value { serde_json::from_slice(body).expect("JSON") };
                        let mut want = json(BODY.as_bytes());
                        want["stream"] = true.into();
                        assert_eq!(json(&body), want, "{name}");
                    }
                    _ => assert_eq!(body, Vec::from(BODY), "{name}"),
                }
                assert_eq!(two.asked(target), [0, 1], "{name}: asked");
                took
            });
        }
    }
}

#[test]
fn a_busy_server_that_restarted_is_used_again_at_once() {
    const STREAMS: usize = 30;
    let mut two = Two::start(true, |settings| {
        settings.preferred = settings.servers.iter().take(1).map(ToString::to_string).collect();
    });
    // They end when their connection does.
    two.first().0.change(|world| {
        (world.tokens, world.token_takes) = (10_000, Duration::from_millis(20));
    });
    let body = BODY.replace("false", "true");
    let mut clients: Vec<Client> = (0..STREAMS).map(|_| two.chain.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(request("POST", "/api/chat", &body)));
    clients.iter_mut().for_each(|client| assert_eq!(client.head_of("POST").status(), 200));
    assert_eq!(two.asked("/api/chat"), [STREAMS, 0]);
    two.servers[0].0.kill();
    clients.iter_mut().for_each(|client| assert_ne!(client.rest().1, End::Whole));
    two.first().0.change(|world| *world = World::with(&["m"]));
    let becomes = |two: &Two, health: &str| {
        eventually(&format!("the first server to be {health}"), || {
            let status = two.chain.connect().get("/ollana/status").json();
            (status["servers"][0]["health"] == health).then_some(())
        });
    };
    becomes(&two, "down");
    two.servers[0].0.restart();
    becomes(&two, "ready");
    assert_eq!(two.chain.connect().post("/api/chat", BODY).status(), 200);
    assert_eq!(two.asked("/api/chat"), [STREAMS + 1, 0]);
}

#[test]
fn an_overloaded_server_is_left_for_the_other() {
    for direct in WAYS {
        // A machine without a turn, and an account without any more quota.
        for (what, body) in
            [("full", BODY.to_owned()), ("spent", BODY.replace("\"m\"", "\"x:cloud\""))]
        {
            let two = Two::start(direct, |_| {});
            two.first().fill();
            two.first().0.change(|world| world.quota_spent = true);
            let name = format!("{what}, direct: {direct}");
            let answer = two.chain.connect().post("/api/chat", &body);
            assert_eq!((answer.status(), two.last().1), (200, body.into()), "{name}");
            assert_eq!(two.asked("/api/chat"), [1, 1], "{name}: asked");
        }
        // What must not be asked for twice keeps its answer; the server may have begun.
        for status in ["503 Service Unavailable", "429 Too Many Requests"] {
            let two = Two::start(direct, |_| {});
            two.first().set(Deed::Status(status));
            two.second().set(Deed::Status(status));
            let answer = two.chain.connect().post("/api/pull", "{\"model\":\"m\"}");
            assert_eq!(answer.text(), status, "{status}, direct: {direct}");
            let asked = two.asked("/api/pull").iter().sum::<usize>();
            assert_eq!(asked, 1, "{status}, direct: {direct}: asked");
        }
    }
}

#[test]
fn an_overload_of_all_servers_is_passed_on() {
    type Change = fn(&mut World);
    let full = |world: &mut World| (world.parallel, world.queue) = (0, 0);
    let spent = |world: &mut World| world.quota_spent = true;
    let rows: [(&str, u16, &str, Change); 2] = [
        ("m", 503, "maximum pending requests exceeded", full),
        ("x:cloud", 429, "weekly usage limit", spent),
    ];
    for (model, status, text, change) in rows {
        let body = BODY.replace("\"m\"", &format!("\"{model}\""));
        for way in Way::ALL {
            let ollama = Ollama::with(&["m"]);
            ollama.change(change);
            let answer = way.to(&ollama).connect().post("/api/chat", &body);
            assert_eq!(answer.status(), status, "{way:?}");
            assert!(answer.text().contains(text), "{way:?}: {}", answer.text());
            assert_eq!(ollama.count(), 1, "{way:?}: asked once");
        }
        for direct in WAYS {
            let two = Two::start(direct, |_| {});
            two.servers.iter().for_each(|server| server.0.change(change));
            let answer = two.chain.connect().post("/api/chat", &body);
            assert_eq!(answer.status(), status, "direct: {direct}");
            assert!(answer.text().contains(text), "direct: {direct}: {}", answer.text());
            assert_eq!(two.asked("/api/chat"), [1, 1], "direct: {direct}");
        }
    }
    // Somebody's gateway says when to come back.
    for way in Way::ALL {
        let fake = Fake::unlike_ollama_saying(
            "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy",
        );
        let answer = way.to(&fake).connect().post("/api/chat", BODY);
        assert_eq!(answer.head.one("retry-after").as_deref(), Some("7"), "{way:?}");
    }
}

#[test]
fn a_request_that_is_refused_as_wrong_stays_refused() {
    for direct in WAYS {
        // What Ollama refuses itself: no JSON, no name, two places to run at.
        for body in ["{", r#"{"model":7}"#, r#"{"model":"m:local:cloud"}"#] {
            let two = Two::start(direct, |_| {});
            let answer = two.chain.connect().post("/api/chat", body);
            assert_eq!(answer.status(), 400, "{body}, direct: {direct}: {}", answer.text());
            let asked = two.asked("/api/chat").iter().sum::<usize>();
            assert_eq!(asked, 1, "{body}, direct: {direct}");
        }
        for status in ["400 Bad Request", "404 Not Found", "422 Unprocessable", "500 Internal"] {
            let two = Two::start(direct, |_| {});
            two.first().set(Deed::Status(status));
            let answer = two.chain.connect().post("/api/chat", BODY);
            assert_eq!(answer.text(), status, "direct: {direct}");
            assert_eq!(two.asked("/api/chat"), [1, 0], "{status}, direct: {direct}");
        }
    }
}

#[test]
fn a_server_that_answers_inference_with_errors_is_left_for_the_other() {
    const ERROR: &str = "500 Internal Server Error";
    for direct in WAYS {
        let two = Two::start(direct, |_| {});
        two.first().set(Deed::Status(ERROR));
        let ask = |target| two.chain.connect().post(target, BODY).status();
        // What isn't inference tells nothing of the model.
        for _ in 0..5 {
            assert_eq!(ask("/api/show"), 500, "direct: {direct}");
        }
        assert_eq!(two.asked("/api/show"), [5, 0], "direct: {direct}");
        // The second time, the same conversation goes elsewhere.
        let first = || two.chain.connect().get("/ollana/status").json()["servers"][0].clone();
        assert_eq!(ask("/api/chat"), 500, "direct: {direct}");
        eventually("the error to be noted", || {
            let first = first();
            (first["failures"] == 1 && first["in_flight"] == 0).then_some(())
        });
        assert_eq!(ask("/api/chat"), 200, "direct: {direct}");
        assert_eq!(two.asked("/api/chat"), [1, 1], "direct: {direct}");
        assert_eq!(first()["failures"], 1, "direct: {direct}");
    }
}
