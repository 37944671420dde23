//! Programs that ask for a name which stands for other models.

use ollana::config::Settings;
use serde_json::{Value, json};

use crate::support::{Chain, Model, Ollama, Way, World, eventually, post, request};

fn named(settings: &mut Settings) {
    for alias in ["gpt-4o=qwen3:8b,llama3.2", "text-embedding-3-small=nomic", "whisper-1=voice"] {
        settings.aliases.add(alias).expect("an alias");
    }
}

/// A client proxy in front of these, one hop and two, plain and encrypted.
fn fronts(ollamas: &[&Ollama]) -> [Chain; 3] {
    [
        Chain::direct(ollamas, named),
        Chain::start(Way::TwoHops, ollamas, named),
        Chain::start(Way::Paired, ollamas, named),
    ]
}

fn body_of(ollama: &Ollama) -> Vec<u8> {
    let served = ollama.served().pop().expect("something served");
    ollama.request(served.record).body
}

#[test]
fn the_first_model_that_somebody_has_answers() {
    let a = Ollama::with(&["alpha"]);
    let b = Ollama::with(&["llama3.2"]);
    for chain in fronts(&[&a, &b]) {
        for (path, body) in [
            ("/api/chat", r#"{"model":"gpt-4o","messages":[{"role":"user","content":"gpt-4o"}]}"#),
            ("/api/generate", r#"{"prompt":"x","stream":false,"Model" : "GPT-4o:latest"}"#),
            ("/api/show", r#"{"name":"gpt-4o"}"#),
            (
                "/api/generate",
                r#"{"model":"gpt-4o","model":"x","mod\u0065l":"gpt\u002d4o","prompt":"x"}"#,
            ),
            (
                "/v1/chat/completions",
                r#"{"model":"gpt-4o","messages":[{"role":"user","content":"x"}]}"#,
            ),
            ("/v1/responses", r#"{"input":"x","model":"gpt-4o"}"#),
            (
                "/v1/messages",
                r#"{"max_tokens":9,"messages":[{"role":"user","content":"x"}],"model":"gpt-4o"}"#,
            ),
            ("/api/show", r#"{"model":"gpt-4o"}"#),
            ("/api/generate", r#"{"model":"gpt-4o","keep_alive":0}"#),
        ] {
            let answer = chain.connect().post(path, body);
            assert_eq!(answer.status(), 200, "{:?} {path} {body}: {}", chain.way, answer.text());
            assert_eq!(b.served_models().last().map(String::as_str), Some("llama3.2"), "{body}");
            let sent = String::from_utf8(body_of(&b)).expect("text");
            let want = body.replace(
                "{\"model\":\"gpt-4o\",\"messages\"",
                "{\"model\":\"llama3.2\",\"messages\"",
            );
            if path == "/api/chat" {
                assert_eq!(sent, want, "only the model's name is another one");
            }
        }
        // What the answer says is true.
        let chat = json!({"model": "gpt-4o", "stream": false, "messages": [{"role": "user", "content": "x"}]});
        let answer = chain.connect().post("/api/chat", chat.to_string()).json();
        assert_eq!(answer["model"], "llama3.2", "{answer}");
    }
    assert!(a.served_models().iter().all(|model| model != "llama3.2"));
    // Now there is a better one.
    a.change(|world| world.models.push(Model::local("qwen3:8b")));
    let chain = Chain::direct(&[&a, &b], named);
    eventually("the better one to be known", || {
        let answer = chain.connect().post("/api/show", r#"{"model":"gpt-4o"}"#);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        (a.served_models().last().map(String::as_str) == Some("qwen3:8b")).then_some(())
    });
}

#[test]
fn a_body_of_any_form_is_understood() {
    let ollama = Ollama::with(&["llama3.2"]);
    for chain in fronts(&[&ollama]) {
        // In chunks, in pieces, and behind more than a buffer holds.
        let long = "x".repeat(300_000);
        let body = format!(r#"{{"prompt":"{long}","model":"gpt-4o","stream":false}}"#);
        let mut client = chain.connect();
        client.send(
            "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        for piece in body.as_bytes().chunks(70_001) {
            client.send(format!("{:x}\r\n", piece.len()));
            client.send(piece);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        let answer = client.answer_to("POST");
        assert_eq!(answer.status(), 200, "{:?}: {}", chain.way, answer.text());
        assert_eq!(body_of(&ollama), body.replace("gpt-4o", "llama3.2").into_bytes());
        // Packed, which Ollama takes too.
        let body = r#"{"messages":[{"role":"user","content":"x"}],"model":"gpt-4o"}"#;
        let packed = ruzstd::encoding::compress_to_vec(
            body.as_bytes(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\n\
             Content-Length: {}\r\n\r\n",
            packed.len()
        );
        let answer = chain.connect().ask([head.as_bytes(), &packed].concat());
        assert_eq!(answer.status(), 200, "{:?}: {}", chain.way, answer.text());
        let served = ollama.served().pop().expect("something served");
        let head = ollama.request(served.record).head;
        assert_eq!(head.one("content-encoding"), None, "it is sent as it is read");
        assert_eq!(body_of(&ollama), body.replace("gpt-4o", "llama3.2").into_bytes());
    }
}

#[test]
fn a_name_in_a_form_or_a_path_is_understood() {
    let ollama = Ollama::with(&["voice", "llama3.2"]);
    for chain in fronts(&[&ollama]) {
        let form = |model: &str| {
            format!(
                "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nwhisper-1\r\n\
                 --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b--\r\n"
            )
        };
        let ask = |target: &str, body: &str| {
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
                 Content-Type: multipart/form-data; boundary=b\r\n\r\n{body}",
                body.len()
            );
            chain.connect().ask(head)
        };
        let path = "/v1/audio/transcriptions";
        let answer = ask(path, &form("whisper-1"));
        assert_eq!(answer.status(), 200, "{:?}: {}", chain.way, answer.text());
        assert_eq!(body_of(&ollama), form("voice").into_bytes());
        let nameless = form("x").replace("\"model\"", "\"other\"");
        let answer = ask(&format!("{path}?a=b&model=whisper-1"), &nameless);
        assert_eq!(answer.status(), 200, "{:?}: {}", chain.way, answer.text());
        let answer = chain.connect().get("/v1/models/gpt-4o");
        assert_eq!((answer.status(), &answer.json()["id"]), (200, &json!("llama3.2")));
    }
}

#[test]
fn aliases_are_listed_as_far_as_somebody_has_their_model() {
    let a = Ollama::with(&["alpha", "llama3.2"]);
    let b = Ollama::with(&["nomic"]);
    let names = |chain: &Chain, target: &str| {
        let answer = chain.connect().get(target).json();
        let list = ["models", "data"].into_iter().find_map(|list| answer[list].as_array());
        let name =
            |entry: &Value| entry.get("name").unwrap_or(&entry["id"]).as_str().map(str::to_owned);
        let mut names: Vec<String> = list.into_iter().flatten().filter_map(name).collect();
        names.sort();
        names
    };
    for ollamas in [&[&a][..], &[&a, &b]] {
        for chain in fronts(ollamas) {
            let mut tags = vec!["alpha:latest", "gpt-4o:latest", "llama3.2:latest"];
            let mut ids = vec!["alpha:latest", "gpt-4o", "llama3.2:latest"];
            if ollamas.len() > 1 {
                tags.extend(["nomic:latest", "text-embedding-3-small:latest"]);
                ids.extend(["nomic:latest", "text-embedding-3-small"]);
            }
            eventually("the aliases in the lists", || {
                let told = (names(&chain, "/api/tags"), names(&chain, "/v1/models"));
                (told.0 == tags && told.1 == ids).then_some(())
            });
            chain.connect().post("/api/generate", r#"{"model":"gpt-4o","prompt":"x"}"#);
            eventually("the model in memory by its own name", || {
                (names(&chain, "/api/ps") == ["llama3.2:latest"]).then_some(())
            });
            let state = chain.connect().get("/ollana/status").json();
            assert_eq!(state["aliases"][0]["model"], "llama3.2", "{state}");
            assert_eq!(state["aliases"][2]["model"], Value::Null, "nobody has it");
        }
    }
}

#[test]
fn a_model_that_nobody_has_is_refused_by_its_own_name() {
    let ollama = Ollama::with(&["alpha"]);
    for chain in fronts(&[&ollama]) {
        let answer = chain.connect().post("/api/chat", r#"{"model":"gpt-4o","messages":[]}"#);
        assert_eq!(answer.status(), 404, "{}", answer.text());
        assert!(answer.text().contains("qwen3:8b"), "{}", answer.text());
    }
}

#[test]
fn what_manages_models_and_other_machines_mean_the_names_as_they_are() {
    let ollama = Ollama::start(World { ..World::with(&["llama3.2"]) });
    let manages = |settings: &mut Settings| {
        named(settings);
        settings.policy.manage = true;
    };
    let chain = Chain::start(Way::TwoHops, &[&ollama], manages);
    for (method, path, body) in [
        ("DELETE", "/api/delete", r#"{"model":"gpt-4o"}"#),
        ("POST", "/api/copy", r#"{"source":"gpt-4o","destination":"x"}"#),
    ] {
        let answer = chain.connect().ask(request(method, path, body));
        assert_eq!(answer.status(), 404, "{path}: {}", answer.text());
    }
    // A server's proxy serves other machines, and has no aliases.
    let chain = Chain::start(Way::OneHop, &[&ollama], named);
    let answer = chain.connect().ask(post("/api/show", r#"{"model":"gpt-4o"}"#));
    assert_eq!(answer.status(), 404, "{}", answer.text());
}
