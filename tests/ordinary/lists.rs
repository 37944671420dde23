//! Merged lists, token counts, errors in the newest shapes.

use std::sync::Arc;

use ollana::config::Settings;
use ollana::ollama::model_name::ModelName;
use serde_json::{Value, json};

use crate::support::{Call, Chain, Model, Ollama, Way, World, eventually, post, request};

const WAYS: [Way; 2] = [Way::OneHop, Way::TwoHops];

fn state(chain: &Chain) -> Value {
    chain.connect().get("/ollana/status").json()
}

#[test]
fn tokens_are_counted_as_ollama_counts_them() {
    let ollama = Ollama::with(&["alpha"]);
    for tokens in [12, 100] {
        ollama.change(|world| world.tokens = tokens);
        for (path, body) in [
            (
                "/v1/messages",
                json!({"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}),
            ),
            ("/v1/responses", json!({"input": "x"})),
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]})),
            (
                "/v1/chat/completions",
                json!({"messages": [{"role": "user", "content": "x"}],
                       "stream_options": {"include_usage": true}}),
            ),
            ("/v1/completions", json!({"prompt": "x"})),
            ("/api/generate", json!({"prompt": "x", "logprobs": true, "top_logprobs": 20})),
            ("/api/chat", json!({"messages": [{"role": "user", "content": "x"}]})),
        ] {
            for streams in [true, false] {
                let mut body = body.clone();
                (body["model"], body["stream"]) = ("alpha".into(), streams.into());
                for way in WAYS {
                    let chain = way.to(&ollama);
                    let answer = chain.connect().post(path, body.to_string());
                    assert_eq!(answer.status(), 200, "{way:?} {path}: {}", answer.text());
                    let counted = eventually("the request to be counted", || {
                        let totals = state(&chain)["totals"].clone();
                        (totals["requests"] == 1).then(|| totals["tokens"].clone())
                    });
                    assert_eq!(counted, tokens, "{way:?} {path} {body}");
                }
            }
        }
    }
}

fn model(name: &str, digest: char, day: u32) -> Model {
    let digest = digest.to_string().repeat(64);
    Model { digest, modified_at: format!("2026-08-{day}T10:00:00Z"), ..Model::local(name) }
}

fn holding(models: &[Model]) -> Ollama {
    Ollama::start(World { models: models.to_vec(), ..World::default() })
}

/// A client proxy in front of these, one hop and two.
fn fronts(ollamas: &[&Ollama], tweak: impl Fn(&mut Settings)) -> [Chain; 2] {
    [Chain::direct(ollamas, &tweak), Chain::start(Way::TwoHops, ollamas, &tweak)]
}

/// The names and the first digits of the digests in a merged list.
fn tags(chain: &Chain) -> Vec<String> {
    let answer = chain.connect().get("/api/tags").json();
    let models = answer["models"].as_array().expect("models").iter();
    let text = |model: &Value, member: &str| model[member].as_str().unwrap_or("-").to_owned();
    models.map(|model| format!("{}={:.1}", text(model, "name"), text(model, "digest"))).collect()
}

fn lists(chain: &Chain, want: &[&str]) {
    eventually(&format!("the list {want:?}"), || (tags(chain) == want).then_some(()));
}

#[test]
fn a_name_with_two_digests_is_listed_once() {
    let a = holding(&[model("alpha", 'a', 20), model("beta", 'b', 20)]);
    let b = holding(&[model("ALPHA", 'c', 21), model("beta", 'd', 19)]);
    for chain in fronts(&[&a, &b], |_| {}) {
        lists(&chain, &["ALPHA:latest=c", "beta:latest=b"]);
        let openai = chain.connect().get("/v1/models").json();
        assert_eq!(openai["data"].as_array().map(Vec::len), Some(2), "{openai}");
        let state = state(&chain);
        let digests: Vec<&str> = (state["servers"].as_array().expect("servers").iter())
            .flat_map(|server| server["models"].as_array().expect("models"))
            .filter_map(|model| model["digest"].as_str().map(|digest| &digest[..1]))
            .collect();
        assert_eq!(digests, ["a", "b", "c", "d"]);
    }
}

/// Ollama reads neither of them (`ListHandler`, `PsHandler`, `ListMiddleware`), and programs send both: its
/// own gateway for Claude Desktop asks for `/v1/models?limit=1000`.
#[test]
fn a_query_or_a_body_takes_nothing_from_a_list() {
    let (a, b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
    for ollama in [&a, &b] {
        ollama.change(|world| world.loaded.extend(world.models.iter().map(|it| it.name.clone())));
    }
    for chain in fronts(&[&a, &b], |_| {}) {
        eventually("both models", || (tags(&chain).len() == 2).then_some(()));
        for path in ["/api/tags", "/v1/models", "/api/ps", "/api/version"] {
            let plain = eventually("the merged list", || {
                let plain = chain.connect().get(path);
                let servers = plain.head.one("x-ollana-server").unwrap_or_default();
                servers.contains(", ").then_some(plain)
            });
            for query in ["?", "?limit=1000", "?client_version=1.2&x"] {
                let answer = chain.connect().get(&format!("{path}{query}"));
                assert_eq!(answer.text(), plain.text(), "{path}{query}");
            }
            // A body stays unread, so the connection ends.
            let answer = chain.connect().ask(request("GET", path, r#"{"name":"alpha"}"#));
            assert_eq!(answer.text(), plain.text(), "{path} with a body");
            assert_eq!(answer.head.one("connection").as_deref(), Some("close"), "{path}");
        }
    }
}

#[test]
fn what_would_not_be_chosen_is_not_listed() {
    let a = holding(&[model("alpha", 'a', 20), model("beta", 'b', 20)]);
    let b = holding(&[model("alpha", 'c', 21)]);
    let alpha = ModelName::parse("alpha").expect("a name");
    let tweak = |settings: &mut Settings| {
        if let Some(second) = settings.servers.get(1) {
            settings.bans = vec![(alpha.clone(), second.to_string())];
        }
    };
    for chain in fronts(&[&a, &b], tweak) {
        lists(&chain, &["alpha:latest=a", "beta:latest=b"]);
        let openai = chain.connect().get("/v1/models").json();
        assert_eq!(openai["data"].as_array().map(Vec::len), Some(2), "{openai}");
    }
    // Banned wherever it is, it can't be used at all.
    let tweak = |settings: &mut Settings| {
        let servers = settings.servers.iter().map(|server| (alpha.clone(), server.to_string()));
        settings.bans = servers.collect();
    };
    for chain in fronts(&[&a, &b], tweak) {
        lists(&chain, &["beta:latest=b"]);
    }
}

#[test]
fn odd_entries_cost_no_others() {
    let a = Ollama::with(&["alpha"]);
    let odd = r#"{"models":[{"name":"one:latest","x":"\ud800"},{"name":"two:latest","size":1e999},
        {"name":"three:latest","size":-1.5,"unknown":{"deep":[1,2.50]},"name":"three:latest"},
        {"name":7},"five",{"broken" "x"},{"name":"six:latest","x":"a CONTROL b"}]}"#;
    let odd = odd.replace("CONTROL", "\u{1}\n");
    let b = Ollama::start(World {
        raw_lists: [("/api/tags".to_owned(), odd)].into(),
        ..World::with(&["one", "two", "three", "six"])
    });
    for chain in fronts(&[&a, &b], |_| {}) {
        let list = eventually("both servers' models", || {
            let answer = chain.connect().get("/api/tags");
            // Before the other one is known it is passed on as it is, and is none.
            let list: Value = serde_json::from_slice(&answer.body).ok()?;
            (list["models"].as_array().map(Vec::len) == Some(5)).then(|| answer.text())
        });
        assert!(list.contains(r#""unknown":{"deep":[1,2.50]}"#), "as it came: {list}");
        for name in ["one", "two", "three", "six"] {
            let body = json!({"model": name}).to_string();
            assert_eq!(chain.connect().post("/api/show", body).status(), 200, "{name}");
        }
        let warnings = state(&chain)["warnings"].to_string();
        assert!(warnings.contains("3 entries of /api/tags can't be read"), "{warnings}");
    }
}

#[test]
fn long_lists_are_whole() {
    let a = Ollama::with(&["alpha"]);
    let names: Vec<String> = (0..3000).map(|n| format!("model{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let b = Ollama::with(&names);
    for chain in fronts(&[&a, &b], |_| {}) {
        eventually("3,001 models", || (tags(&chain).len() == 3001).then_some(()));
        let openai = chain.connect().get("/v1/models").json();
        assert_eq!(openai["data"].as_array().map(Vec::len), Some(3001));
        let answer = chain.connect().post("/api/show", r#"{"model":"model2999"}"#);
        assert_eq!(answer.status(), 200);
        assert!(state(&chain)["servers"][1]["models_problem"].is_null());
    }
}

type Answer = fn(&mut Call<'_>);

#[test]
fn the_last_good_list_outlives_errors() {
    let a = Ollama::with(&["alpha"]);
    let failing: [(&str, Answer); 3] = [
        ("status 500", |call| call.answer("500 Internal Server Error", "application/json", "{}")),
        ("no end", |call| call.answer("200 OK", "application/json", r#"{"models":[{"name":"x"},"#)),
        ("no list", |call| call.answer("200 OK", "text/html", "<html>")),
    ];
    for (what, answer) in failing {
        let b = Ollama::with(&["beta"]);
        let names = |chain: &Chain| -> Vec<String> {
            tags(chain)
                .iter()
                .map(|tag| tag.split('=').next().unwrap_or_default().to_owned())
                .collect()
        };
        let both = ["alpha:latest", "beta:latest"];
        for chain in fronts(&[&a, &b], |_| {}) {
            eventually("both models", || (names(&chain) == both).then_some(()));
            b.change(|world| {
                world.script.insert("/api/tags".to_owned(), Arc::new(answer));
            });
            // A change of its models has it asked again.
            chain.connect().post("/api/copy", r#"{"source":"beta","destination":"gamma"}"#);
            eventually(what, || {
                let server = state(&chain)["servers"][1].clone();
                let problem = server["models_problem"].as_str()?.to_owned();
                assert_eq!(server["health"], "ready", "{what}");
                problem.contains(what).then_some(())
            });
            assert_eq!(names(&chain), both, "{what}");
            b.change(|world| *world = World::with(&["beta"]));
        }
    }
}

/// The end of a stream from an Ollama that dies after its first token.
fn broken_end(way: Way, path: &str, body: &str, token: &str) -> String {
    let gate = crate::support::Gate::new();
    let world = World { hold: Some(gate.clone()), ..World::with(&["alpha"]) };
    let mut ollama = Ollama::start(world);
    let chain = way.to(&ollama);
    let mut client = chain.connect();
    client.send(post(path, body));
    assert_eq!(client.head_of("POST").status(), 200, "{way:?} {path}");
    let start = client.read_until(token.as_bytes());
    ollama.kill();
    gate.open();
    let (rest, _) = client.rest();
    String::from_utf8([start, rest].concat()).expect("text")
}

#[test]
fn broken_streams_end_as_their_api_says() {
    for way in WAYS {
        let body = r#"{"model":"alpha","input":"x","stream":true}"#;
        let text = broken_end(way, "/v1/responses", body, "response.output_text.delta\"}\n\n");
        let (before, failed) = text.rsplit_once("event: ").expect("events");
        let data = failed.strip_prefix("response.failed\ndata: ");
        let data = data.unwrap_or_else(|| panic!("{way:?}: {text}"));
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["type"], "response.failed", "{way:?}");
        assert_eq!(data["sequence_number"], before.matches("event: ").count(), "{way:?} {text}");
        assert_eq!(data["response"]["id"], "resp_7", "{way:?}");
        assert_eq!(data["response"]["status"], "failed", "{way:?}");
        assert!(data["response"]["error"]["message"].is_string(), "{way:?} {data}");

        let body = r#"{"model":"alpha","max_tokens":5,"stream":true,
            "messages":[{"role":"user","content":"x"}]}"#;
        let text = broken_end(way, "/v1/messages", body, "token0 \"}}\n\n");
        let data = text.rsplit_once("event: error\ndata: ").expect("an error").1;
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!((&data["type"], &data["error"]["type"]), (&json!("error"), &json!("api_error")));
    }
}

#[test]
fn errors_of_our_own_have_the_newest_shapes() {
    for way in WAYS {
        let mut ollama = Ollama::with(&["alpha"]);
        let chain = way.with(&ollama, |settings| {
            settings.timing.wait_timeout = std::time::Duration::from_millis(100);
        });
        ollama.kill();
        let ask = |path: &str| {
            let answer = chain.connect().post(path, r#"{"model":"alpha"}"#);
            assert!(matches!(answer.status(), 502 | 503), "{way:?} {}", answer.text());
            (answer.status(), answer.json())
        };
        let (_, error) = ask("/v1/chat/completions");
        assert_eq!(error["error"]["type"], "api_error", "{way:?} {error}");
        assert!(error["error"]["param"].is_null() && error["error"]["code"].is_null());
        let (status, error) = ask("/v1/messages");
        let kind = if status == 503 { "overloaded_error" } else { "api_error" };
        assert_eq!(error["error"]["type"], kind, "{way:?} {error}");
        let id = error["request_id"].as_str().unwrap_or_default();
        assert!(id.starts_with("req_") && id.len() > 10, "{way:?} {error}");
        assert_ne!(ask("/v1/messages").1["request_id"], id, "{way:?}");
    }
}

#[test]
fn via_stays_out_of_ollamas_cloud() {
    let ollama = Ollama::with(&["alpha"]);
    for way in WAYS {
        let chain = way.to(&ollama);
        let inference =
            r#"{"model":"gpt-oss:120b-cloud","messages":[{"role":"user","content":"x"}]}"#;
        for (path, body) in [
            ("/v1/chat/completions", inference),
            ("/api/chat", inference),
            ("/api/chat", r#"{"model":"alpha:cloud","messages":[{"role":"user","content":"x"}]}"#),
            ("/api/show", r#"{"model":"gpt-oss:120b-cloud"}"#),
        ] {
            let before = ollama.count();
            chain.connect().post(path, body);
            let head = ollama.request(before).head;
            assert!(head.all("via").is_empty() && head.all("forwarded").is_empty(), "{way:?}");
            // Ollama copies what `Connection` doesn't name.
            let named = head.all("connection").join(",").to_ascii_lowercase();
            let named: Vec<&str> = named.split(',').map(str::trim).collect();
            for (name, value) in &head.fields {
                let is_kept = name.starts_with("x-ollana-") && !named.contains(&name.as_str());
                assert!(!is_kept, "{way:?} {name}: {value:?}");
            }
            // A request that comes back is known all the same.
            let hidden = head.all("x-ollana-via").pop().expect("the proxies' marks");
            let again = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Ollana-Via: {hidden}\r\n\
                 Connection: x-ollana-via\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            assert_eq!(chain.connect().ask(again).status(), 508, "{way:?} {path}");
        }
        let before = ollama.count();
        chain.connect().get("/v1/models/gpt-oss:120b-cloud");
        assert!(ollama.request(before).head.all("via").is_empty(), "{way:?}");
        let before = ollama.count();
        chain.connect().post("/api/generate", r#"{"model":"alpha","prompt":"x"}"#);
        assert_eq!(ollama.request(before).head.all("via").len(), way.hops(), "{way:?}");
    }
}
