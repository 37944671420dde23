//! The stand-in itself, asked without a proxy: it is as strict as Ollama is.

use std::net::Shutdown;
use std::thread;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::support::{Account, Client, Gate, Model, Ollama, World, chunk, post, request};

fn connect(ollama: &Ollama) -> Client {
    Client::connect(ollama.address)
}

fn ask(ollama: &Ollama, path: &str, body: &str) -> (u16, String) {
    let answer = connect(ollama).post(path, body);
    (answer.status(), answer.text())
}

#[test]
fn a_model_that_it_does_not_have_is_404_in_the_dialect_of_the_path() {
    let ollama = Ollama::with(&["alpha"]);
    let beta = r#"{"model":"beta","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"input":"a"}"#;
    let text = "{\"error\":\"model 'beta' not found\"}";
    for path in ["/api/chat", "/api/generate", "/api/delete"] {
        let method = if path == "/api/delete" { "DELETE" } else { "POST" };
        let answer = connect(&ollama).ask(request(method, path, beta));
        assert_eq!((answer.status(), answer.text().as_str()), (404, text), "{path}");
    }
    let show = ask(&ollama, "/api/show", beta);
    assert_eq!(show, (404, "{\"error\":\"model 'beta:latest' not found\"}".to_owned()));
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"] {
        let (status, text) = ask(&ollama, path, beta);
        assert_eq!(status, 404, "{path}");
        assert!(text.contains("\"type\":\"not_found_error\",\"param\":null"), "{path}: {text}");
    }
    let (status, text) = ask(&ollama, "/v1/messages", beta);
    assert!(status == 404 && text.contains("\"request_id\":\"req_"), "{status} {text}");
    assert_eq!(connect(&ollama).get("/v1/models/beta").status(), 404);
    assert_eq!(ollama.served_models(), ["beta"; 10]);
}

#[test]
fn keys_come_in_any_case_and_the_last_one_counts() {
    let ollama = Ollama::with(&["alpha"]);
    for (body, status) in [
        (r#"{"Model":"alpha"}"#, 200),
        (r#"{"model":"beta","MODEL":"alpha"}"#, 200),
        (r#"{"model":"alpha","model":"beta"}"#, 404),
        (r#"{"MODEL":"alpha","model":null}"#, 200),
        (r#"{"model":"ALPHA:Latest"} and more"#, 200),
        (r#"{"model":7}"#, 400),
        (r#"{"model":"alpha""#, 400),
        ("", 400),
    ] {
        assert_eq!(ask(&ollama, "/api/generate", body).0, status, "{body}");
    }
}

#[test]
fn zstd_is_decoded_where_ollama_does() {
    let ollama = Ollama::with(&["alpha"]);
    let body = br#"{"model":"alpha","input":"hi","messages":[{}],"max_tokens":1}"#.as_slice();
    let body = compress_to_vec(body, CompressionLevel::Fastest);
    let send = |path: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        connect(&ollama).ask([head.as_bytes(), &body].concat()).status()
    };
    for path in ["chat/completions", "completions", "embeddings", "responses", "messages"] {
        assert_eq!(send(&format!("/v1/{path}")), 200, "{path}");
    }
    assert_eq!(send("/api/chat"), 400);
}

#[test]
fn a_form_has_its_fields_in_any_order() {
    let ollama = Ollama::with(&["alpha"]);
    let file = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
                Content-Type: audio/wav\r\n\r\nRIFF\r\n--not the boundary\r\n";
    let model = "Content-Disposition: form-data; name=\"model\"\r\n\r\nalpha\r\n";
    for parts in [[file, model], [model, file]] {
        let body = format!("--x\r\n{}--x\r\n{}--x--\r\n", parts[0], parts[1]);
        let head = format!(
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = connect(&ollama).ask(head + &body);
        assert_eq!(answer.text(), "{\"text\":\"token0 token1 token2\"}\n");
    }
}

#[test]
fn cloud_models_need_the_account() {
    let ollama = Ollama::start(World {
        models: vec![Model::local("alpha"), Model::cloud("gpt-oss:120b-cloud")],
        ..World::default()
    });
    let chat = |model: &str| {
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user"}}]}}"#);
        ask(&ollama, "/api/chat", &body)
    };
    let tags = connect(&ollama).get("/api/tags").json();
    let stub = &tags["models"][1];
    assert_eq!(stub["remote_model"], "gpt-oss:120b");
    assert_eq!(stub["remote_host"], "https://ollama.com:443");
    assert!(tags["models"][0].get("remote_model").is_none(), "{tags}");
    let names = ["gpt-oss:120b-cloud", "gpt-oss:120b:cloud", "other:cloud"];
    for name in names {
        assert_eq!(chat(name).0, 200, "{name}");
    }
    assert_eq!(chat("alpha:local").0, 200);
    assert_eq!(chat("gpt-oss:120b:local").0, 404);
    assert_eq!(chat("alpha:local:cloud").0, 400);
    for (account, quota_spent, status, text, me) in [
        (Account::SignedOut, false, 401, "signin_url", 401),
        (Account::SignedIn, true, 429, "weekly usage limit", 200),
        (Account::Offline, false, 502, "no such host", 503),
    ] {
        ollama.change(|world| (world.account, world.quota_spent) = (account, quota_spent));
        for name in names {
            let answer = chat(name);
            assert!(answer.0 == status && answer.1.contains(text), "{name}: {answer:?}");
        }
        assert_eq!(ask(&ollama, "/api/me", "").0, me);
    }
    assert!(ollama.served().iter().any(|served| served.used_account));
}

#[test]
fn only_too_many_for_this_machine_is_busy() {
    let hold = Gate::new();
    let world = World { parallel: 1, queue: 1, hold: Some(hold.clone()), ..World::with(&["a"]) };
    let ollama = Ollama::start(world);
    let body = r#"{"model":"a","prompt":"hi"}"#;
    thread::scope(|scope| {
        let mut first = connect(&ollama);
        first.send(post("/api/generate", body));
        first.head_of("POST");
        let second = scope.spawn(|| ask(&ollama, "/api/generate", body).0);
        ollama.wait_waiting(1);
        let busy = "server busy, please try again.  maximum pending requests exceeded";
        let third = ask(&ollama, "/api/generate", body);
        assert_eq!(third, (503, format!("{{\"error\":\"{busy}\"}}")));
        let body = r#"{"model":"x:cloud","prompt":"hi","stream":false}"#;
        let cloud = scope.spawn(|| ask(&ollama, "/api/generate", body).0);
        hold.open();
        assert_eq!(second.join().unwrap(), 200);
        assert_eq!(cloud.join().unwrap(), 200);
    });
    let loaded = connect(&ollama).get("/api/ps").json()["models"][0].clone();
    assert_eq!((&loaded["context_length"], &loaded["size_vram"]), (&4096.into(), &loaded["size"]));
    let listed = connect(&ollama).get("/api/tags").json()["models"][0].clone();
    assert_eq!(listed["details"]["context_length"], 131_072);
    assert_eq!(listed["capabilities"], serde_json::json!(["completion", "tools"]));
    ask(&ollama, "/api/generate", r#"{"model":"a","keep_alive":0}"#);
    assert_eq!(connect(&ollama).get("/api/ps").text(), "{\"models\":[]}");
}

#[test]
fn paths_and_methods_are_those_of_its_router() {
    let ollama = Ollama::with(&["alpha"]);
    for (method, path, host, status, text) in [
        ("GET", "//api/tags", "localhost", 301, "Moved Permanently"),
        ("GET", "/api/tags/", "localhost", 301, "Moved Permanently"),
        ("POST", "/api/show/", "localhost", 307, ""),
        ("GET", "/api/nothing", "localhost", 404, "404 page not found"),
        ("GET", "/api/chat", "localhost", 405, "405 method not allowed"),
        ("OPTIONS", "/api/chat", "localhost:11434", 204, ""),
        ("OPTIONS", "/api/chat", "127.0.0.1:11434", 405, "405 method not allowed"),
        ("OPTIONS", "/nothing", "desk.local", 204, ""),
        ("GET", "/api/status", "example.org", 403, ""),
        ("GET", "/api/status", "192.168.1.7", 200, "\"disabled\":false"),
        ("HEAD", "/", "", 200, ""),
        ("HEAD", "/api/ps", "localhost", 405, ""),
        ("PUT", "/api/chat", "localhost", 405, "405 method not allowed"),
        ("FROB", "/x", "localhost", 404, "404 page not found"),
        ("GET", "/api/%74ags", "localhost", 200, "models"),
        ("GET", "/api/%zz", "localhost", 400, "400 Bad Request"),
        ("OPTIONS", "*", "localhost", 200, ""),
        ("GET", "*", "localhost", 400, "400 Bad Request"),
    ] {
        let answer =
            connect(&ollama).ask(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let seen = answer.text();
        assert!(
            answer.status() == status && seen.contains(text) && seen.is_empty() == text.is_empty(),
            "{method} {path} {host}: {} {seen}",
            answer.status()
        );
    }
}

#[test]
fn streams_have_the_order_of_ollamas_fields() {
    let ollama = Ollama::with(&["a"]);
    let body = r#"{"model":"a","prompt":"hi","logprobs":true}"#;
    let (_, text) = ask(&ollama, "/api/generate", body);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[3].find("eval_count") < lines[3].find("logprobs"), "{}", lines[3]);
    for line in &lines {
        serde_json::from_str::<serde_json::Value>(line).expect("JSON");
    }
    ollama.change(|world| world.calls_tool = true);
    for path in ["/api/generate", "/api/chat"] {
        let body = r#"{"model":"a","prompt":"hi","messages":[{}],"logprobs":true}"#;
        let (_, text) = ask(&ollama, path, body);
        let last = text.lines().last().expect("a line");
        serde_json::from_str::<serde_json::Value>(last).expect("JSON");
        let is_before = last.find("prompt_eval_count") < last.find("tool_calls");
        assert_eq!(is_before, path == "/api/generate", "{last}");
    }
    let body = r#"{"model":"a","messages":[{}],"max_tokens":9,"stream":true,
                   "stream_options":{"include_usage":true}}"#;
    let (_, text) = ask(&ollama, "/v1/messages", body);
    assert!(text.split_inclusive("\n\n").all(|event| event.matches('\n').count() == 3), "{text}");
    let (_, text) = ask(&ollama, "/v1/chat/completions", body);
    assert!(text.contains("\"usage\":{") && text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    let (_, text) = ask(&ollama, "/v1/responses", body);
    assert!(text.contains("event: response.completed\ndata: {\"response\":"), "{text}");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    assert!(data.clone().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert_eq!(data.count(), 11);
}

#[test]
fn a_client_that_half_closes_gets_what_is_short_and_no_inference() {
    let hold = Gate::new();
    let ollama = Ollama::start(World { hold: Some(hold), ..World::with(&["a"]) });
    let mut client = connect(&ollama);
    client.send("GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).expect("half a close");
    assert_eq!(client.answer_to("GET").status(), 200);
    let mut client = connect(&ollama);
    client.send(post("/api/chat", r#"{"model":"a","messages":[{}]}"#));
    client.stream.shutdown(Shutdown::Write).expect("half a close");
    client.read_to_close();
    assert!(ollama.served()[0].is_cancelled);
}

/// A blob that it has already, or whose name isn't a digest, is answered at once.
#[test]
fn an_upload_that_it_does_not_want_is_not_read() {
    let ollama = Ollama::with(&[]);
    let digest = format!("sha256:{}", "0".repeat(64));
    ollama.change(|world| world.blobs.push(digest.clone()));
    for (name, status) in [(digest.as_str(), 200), ("x", 400)] {
        for framing in ["Content-Length: 50000000", "Transfer-Encoding: chunked"] {
            let mut client = connect(&ollama);
            client.send(format!(
                "POST /api/blobs/{name} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
            ));
            // Go reads on for so long, if it can't know how much will come.
            if framing.starts_with('T') {
                client.send(chunk(vec![b'x'; 300 << 10]));
            }
            let answer = client.answer_to("POST");
            assert_eq!(answer.status(), status, "{name} {framing}");
            assert_eq!(answer.head.one("connection").as_deref(), Some("close"), "{framing}");
        }
    }
    // An upload that is cut short leaves nothing behind.
    let cut = format!("sha256:{}", "1".repeat(64));
    let mut client = connect(&ollama);
    client.send(format!(
        "POST /api/blobs/{cut} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhello"
    ));
    client.stream.shutdown(Shutdown::Write).expect("half a close");
    client.read_to_close();
    let head = request("HEAD", &format!("/api/blobs/{cut}"), "");
    assert_eq!(connect(&ollama).ask(head).status(), 404);
}

#[test]
fn what_changes_models_changes_the_lists() {
    let ollama = Ollama::with(&["alpha"]);
    let names = || {
        let tags = connect(&ollama).get("/api/tags").json();
        let models = tags["models"].as_array().expect("models").clone();
        models.iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (_, text) = ask(&ollama, "/api/pull", r#"{"model":"beta:7b"}"#);
    assert!(text.ends_with("{\"status\":\"success\"}\n"), "{text}");
    ask(&ollama, "/api/pull", r#"{"name":"gpt-oss:120b:cloud"}"#);
    ask(&ollama, "/api/copy", r#"{"source":"alpha","destination":"gamma"}"#);
    assert_eq!(names(), ["alpha:latest", "beta:7b", "gpt-oss:120b-cloud", "gamma:latest"]);
    let delete = |name: &str| {
        let body = format!(r#"{{"model":"{name}"}}"#);
        connect(&ollama).ask(request("DELETE", "/api/delete", body)).status()
    };
    assert_eq!(["alpha", "gpt-oss:120b:cloud", "beta:7b:local"].map(delete), [200; 3]);
    assert_eq!(names(), ["gamma:latest"]);
    let blob = format!("/api/blobs/sha256:{}", "0a".repeat(32));
    for (method, status) in [("HEAD", 404), ("POST", 201), ("HEAD", 200), ("POST", 200)] {
        assert_eq!(connect(&ollama).ask(request(method, &blob, "data")).status(), status);
    }
}
