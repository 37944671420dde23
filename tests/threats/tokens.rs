//! What a token lets a device do that can't be paired, and what it doesn't.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::OK;
use super::machines::{INTERNET, LAN, MANAGING, SERVER, Server, is_inside};
use crate::support::{
    Answer, Client, Fake, clear_environment, client_settings, eventually, key_file,
    server_settings, start,
};

/// The state of a machine; it goes when this is dropped.
struct State(PathBuf);

impl State {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.join(format!("tokens-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        State(dir)
    }

    /// Exit code, standard output and standard error of a command.
    fn run(&self, arguments: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        clear_environment(&mut command).args(arguments.split_whitespace());
        command.arg("--state-dir").arg(&self.0).stdin(Stdio::null());
        let output = command.output().expect("ollana runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn token(&self, name: &str) -> String {
        let (code, out, err) = self.run(&format!("token add {name}"));
        assert!(code == Some(0) && out.starts_with("ollana-"), "{out}{err}");
        out.trim().to_owned()
    }

    fn server(&self, options: &str) -> Server {
        Server::start(&format!("--discovery-port 0 --state-dir {} {options}", self.0.display()))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ask_with(mut client: Client, field: &str, method: &str, target: &str) -> Answer {
    let body = if method == "GET" { "" } else { r#"{"model":"m"}"# };
    client.send(format!(
        "{method} {target} HTTP/1.1\r\nHost: gpu.local\r\n{field}Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.answer_to(method)
}

fn ask(server: &Server, from: &str, token: &str, method: &str, target: &str) -> Answer {
    let field = match token {
        "" => String::new(),
        token => format!("Authorization: Bearer {token}\r\n"),
    };
    ask_with(server.connect(from), &field, method, target)
}

const USES: [(&str, &str); 5] = [
    ("POST", "/api/chat"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/messages"),
    ("GET", "/api/tags"),
    ("GET", "/v1/models"),
];

/// A refusal that says what to do, in the shape of the API that was called.
fn assert_unauthorized(answer: &Answer, target: &str) {
    assert_eq!(answer.status(), 401, "{target}: {answer:?}");
    assert_eq!(answer.head.one("www-authenticate").as_deref(), Some("Bearer"), "{answer:?}");
    let json = answer.json();
    let said = if target.starts_with("/v1/") { &json["error"]["message"] } else { &json["error"] };
    let said = said.as_str().unwrap_or_default();
    assert!(said.contains("ollana token add") && said.contains("Bearer TOKEN"), "{target}: {json}");
}

#[test]
fn a_token_opens_a_closed_server_to_inference_and_lists() {
    if !is_inside("tokens::a_token_opens_a_closed_server_to_inference_and_lists") {
        return;
    }
    let paired = format!("--key-file {}", key_file().display());
    for closed in ["--unpaired off", &paired] {
        opens_to_inference_and_lists(&format!("{closed} --manage on"));
    }
}

fn opens_to_inference_and_lists(options: &str) {
    let state = State::new("closed");
    let server = state.server(options);
    for from in LAN {
        let answer = ask(&server, from, "", "POST", "/api/chat");
        assert_eq!(answer.status(), 403, "no token would do: {answer:?}");
        assert!(answer.text().contains("ollana token add NAME"), "but one can be made: {answer:?}");
    }
    let phone = state.token("phone");
    eventually("the token to be taken up", || {
        let status = server.connect(SERVER[0]).get("/ollana/status").json();
        (status["tokens"][0]["name"] == "phone").then_some(())
    });
    for from in LAN {
        for (method, target) in USES {
            assert_unauthorized(&ask(&server, from, "", method, target), target);
            let answer = ask(&server, from, &phone, method, target);
            assert_eq!(answer.status(), 200, "{from} {target}: {answer:?}");
        }
        // As libraries of Anthropic send it.
        let field = format!("X-Api-Key: {phone}\r\n");
        let answer = ask_with(server.connect(from), &field, "GET", "/v1/models");
        assert_eq!(answer.status(), 200, "{from}: {answer:?}");
        for (method, target) in MANAGING {
            assert_unauthorized(&ask(&server, from, "", method, target), target);
            let answer = ask(&server, from, &phone, method, target);
            assert_eq!(answer.status(), 403, "{from} {target}: {answer:?}");
            assert!(answer.text().contains("a token is good for"), "{target}: {answer:?}");
        }
        for target in ["/ollana/", "/ollana/status", "/ollana/blobs/x", "/ollana/manifests/m"] {
            assert_eq!(ask(&server, from, &phone, "GET", target).status(), 403, "{target}");
        }
        // A browser asks first, without the token.
        let mut client = server.connect(from);
        let preflight = client.ask(
            "OPTIONS /v1/models HTTP/1.1\r\nHost: gpu.local\r\nOrigin: http://localhost\r\n\
             Access-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: authorization\r\n\r\n",
        );
        assert_eq!(preflight.status(), 204, "{preflight:?}");
    }
    // Lists are ollana's own.
    let reached: Vec<String> =
        server.reached().into_iter().filter(|it| it.starts_with("POST ")).collect();
    let uses: Vec<String> =
        USES.iter().map(|(m, target)| format!("{m} {target} HTTP/1.1")).collect();
    assert_eq!(reached, [&uses[..3], &uses[..3]].concat(), "the inference, once for each address");
    server.fake.look(|state| {
        assert!(state.records.iter().all(|record| !record.head.has("authorization")));
    });
    for from in INTERNET {
        let mut client = match server.try_connect(from) {
            Ok(client) => client,
            Err(_) => continue,
        };
        client.try_send(format!(
            "GET /api/tags HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {phone}\r\n\r\n"
        ));
        assert_eq!(client.read_to_close().0, b"", "{from}: not a byte");
    }
    let requests = state.run("token list").1;
    assert!(requests.contains("phone") && !requests.contains(&phone), "{requests}");
    let mut own = server.connect(SERVER[0]);
    let status = own.get("/ollana/status").json();
    let count = LAN.len() * (USES.len() + 1 + MANAGING.len());
    assert_eq!(status["tokens"][0]["requests"], count);
    let metric = format!("ollana_token_requests_total{{token=\"phone\"}} {count}");
    assert!(own.get("/ollana/metrics").text().contains(&metric), "{metric}");
    assert!(requests.contains(&format!(" {count} ")), "{requests}");
    assert!(state.run("status").1.contains(&format!("phone: {count} requests")));
    // The machine's own programs need none.
    assert_eq!(ask(&server, SERVER[0], "", "POST", "/api/pull").status(), 200);
    assert_eq!(state.run("token remove phone").0, Some(0));
    eventually("the token to be worth nothing", || {
        (ask(&server, LAN[0], &phone, "GET", "/api/tags").status() == 401).then_some(())
    });
}

#[test]
fn wrong_tokens_are_refused_and_soon_not_looked_at() {
    if !is_inside("tokens::wrong_tokens_are_refused_and_soon_not_looked_at") {
        return;
    }
    let state = State::new("wrong");
    let phone = state.token("phone");
    // Also where everybody may call.
    let server = state.server("");
    let get = |from: &str, token: &str| ask(&server, from, token, "GET", "/api/tags");
    // The same one twice is no second guess: a device may have it from before.
    for n in [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        assert_unauthorized(&get(LAN[0], &format!("ollana-{n}")), "/api/tags");
    }
    for token in ["ollana-0123456789", &phone] {
        let answer = get(LAN[0], token);
        assert_eq!(answer.status(), 429, "{answer:?}");
        assert_eq!(answer.head.one("retry-after").as_deref(), Some("60"), "{answer:?}");
    }
    assert_eq!((get(LAN[1], &phone).status(), get("10.80.0.3", &phone).status()), (200, 200));
    assert_eq!(get(LAN[0], "").status(), 200, "as everybody");
    let failures = server.connect(SERVER[0]).get("/ollana/status").json();
    assert_eq!(failures["totals"]["failures"]["token"], 13, "{failures}");
}

/// Neither to an Ollama nor to another machine, whoever sent it; tokens of others pass.
#[test]
fn no_token_leaves_the_proxy() {
    let fake = Fake::unlike_ollama_saying(OK);
    let server = start(&server_settings(fake.address));
    let client = start(&client_settings(&server.addresses()));
    for daemon in [&server, &client] {
        for (name, sent, passed) in [
            ("authorization", "Bearer ollana-0123", false),
            ("authorization", "bearer  ollana-0123 ", false),
            ("authorization", "ollana-0123", false),
            ("x-api-key", "ollana-0123", false),
            ("authorization", "Bearer sk-ollana-0123", true),
            ("authorization", "Basic b2xsYW5hLQ==", true),
            ("x-api-key", "sk-ant-0123", true),
        ] {
            let (to, field) =
                (Client::connect(daemon.addresses()[0]), format!("{name}: {sent}\r\n"));
            assert_eq!(ask_with(to, &field, "POST", "/api/chat").status(), 200, "{sent}");
            let got = fake.look(|state| {
                let last = state.records.iter().rfind(|it| it.head.start[1] == "/api/chat");
                last.expect("the request").head.one(name)
            });
            assert_eq!(got.as_deref(), passed.then_some(sent.trim()), "{name}: {sent}");
        }
    }
}

#[test]
fn tokens_are_made_listed_and_removed() {
    let state = State::new("command");
    assert!(state.run("token list").1.starts_with("no tokens"));
    let (code, out, err) = state.run("token add phone");
    assert_eq!((code, out.lines().count()), (Some(0), 1), "a script gets the token alone: {out}");
    for part in ["Authorization: Bearer TOKEN", ":11435", "/v1\n", "--unpaired off"] {
        assert!(err.contains(part), "{part} in {err}");
    }
    let listed = state.run("token list").1;
    assert!(listed.contains("\nphone ") && !listed.contains(&out.trim()[8..]), "{listed}");
    for (arguments, want, said) in [
        ("token add phone", 1, "ollana token remove phone"),
        ("token remove tv", 1, "ollana token list"),
        ("token remove phone", 0, "worth nothing"),
        ("token add", 2, "NAME"),
        ("token remove", 2, "NAME"),
        ("token add a/b", 2, "letters"),
        ("token list phone", 2, "does not take"),
        ("token ad phone", 2, "did you mean add"),
        ("token", 2, "ACTION"),
    ] {
        let (code, out, err) = state.run(arguments);
        assert!(code == Some(want) && (out + &err).contains(said), "{arguments}: {err}");
    }
    assert!(state.run("token list").1.starts_with("no tokens"));
}
