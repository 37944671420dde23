//! What other machines may do on a server, asked of the real binary across a real network.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use super::basics::works;
use super::daemon::Daemon;
use super::http::{Answer, Call, open};
use super::lan::{Host, Lan};
use super::ollama::Ollama;
use super::packets::{probe, udp};
use super::watch::{limits, takes};

/// A server, and another machine that asks it without an ollana of its own.
struct Setting {
    ollama: Ollama,
    server: Host,
    other: Host,
    _daemon: Daemon,
}

fn setting(lan: &mut Lan, args: &[&str]) -> Setting {
    let [server, other] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let ollama = Ollama::start(&server, "gpu");
    let _daemon = Daemon::start(&server, args);
    Setting { ollama, server, other, _daemon }
}

impl Setting {
    /// Asks the server's port from a host.
    fn ask(&self, from: &Host, method: &str, target: &str, body: &str) -> Answer {
        ask(from, SocketAddr::from((self.server.address(0), 11435)), method, target, body)
    }
}

fn ask(from: &Host, to: SocketAddr, method: &str, target: &str, body: &str) -> Answer {
    let mut call = open(from, to, method, target, body.len()).expect("connected");
    // Who is refused may close before the body is there.
    let _ = call.upload(body.as_bytes());
    call.answer().unwrap_or_else(|error| panic!("{method} {target}: {error}"))
}

const OPEN: &[(&str, &str)] = &[
    ("GET", "/"),
    ("GET", "/api/version"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("POST", "/api/show"),
    ("POST", "/api/generate"),
    ("POST", "/api/chat"),
    ("POST", "/api/embed"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models/m"),
    ("POST", "/v1/messages"),
];
const MANAGEMENT: &[(&str, &str)] = &[
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:00"),
];
const CLOSED: &[(&str, &str)] = &[
    ("GET", "/api/usage"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/x"),
    ("POST", "/api/experimental/web_fetch"),
    ("POST", "/api/codex/v1/responses"),
    ("POST", "/api/%70ull"),
    ("DELETE", "/api/%64elete"),
    ("GET", "/debug/pprof/heap"),
];
/// Answered as Ollama's router would.
const ROUTED: &[(&str, &str, u16)] = &[
    ("POST", "/api//pull", 307),
    ("POST", "/api/./pull", 307),
    ("POST", "/v1/../api/pull", 307),
    ("POST", "/api/pull/", 307),
    ("POST", "/API/pull", 404),
    ("POST", "/api/nosuch", 404),
    ("POST", "/v1/nosuch", 404),
    ("FROB", "/api/frob", 404),
    ("GET", "/api/pull", 405),
    ("GET", "/api/me", 405),
];
const PLAIN: &str = r#"{"model":"llama3.2","stream":false}"#;
const FOREIGN: &str = r#"{"model":"hf.co/a/b"}"#;

fn assert_refused(answer: &Answer, what: &str, says: &[&str]) {
    assert_eq!(
        (answer.status, answer.cause.as_deref()),
        (403, Some("policy")),
        "{what}: {answer:?}"
    );
    assert!(answer.body.starts_with("{\"error\":"), "{what}: {answer:?}");
    for word in says {
        assert!(answer.body.contains(word), "{what}: {word:?} in {answer:?}");
    }
}

#[test]
fn another_machine_uses_models_and_changes_nothing() {
    let Some(mut lan) = Lan::new(1) else { return };
    let setting = setting(&mut lan, &[]);
    let name = setting.server.name();
    for (method, target) in OPEN {
        let answer = setting.ask(&setting.other, method, target, PLAIN);
        assert_eq!(answer.status, 200, "{method} {target}: {answer:?}");
    }
    for (method, target) in MANAGEMENT {
        let answer = setting.ask(&setting.other, method, target, PLAIN);
        assert_refused(&answer, target, &[&name, "--manage on"]);
    }
    let answer = setting.ask(&setting.other, "POST", "/api/pull", PLAIN);
    assert_refused(&answer, "pull", &[&name, "--pull on", "--manage on"]);
    for (method, target) in CLOSED {
        let answer = setting.ask(&setting.other, method, target, PLAIN);
        assert_refused(&answer, target, &[&name]);
    }
    for (method, target, status) in ROUTED {
        let answer = setting.ask(&setting.other, method, target, PLAIN);
        assert_eq!(answer.status, *status, "{method} {target}: {answer:?}");
        assert_eq!(setting.ollama.requests(target), 0, "{target} reached Ollama");
    }
    for (_, target) in MANAGEMENT.iter().chain(CLOSED).chain(&[("", "/api/pull")]) {
        assert_eq!(setting.ollama.requests(target), 0, "{target} reached Ollama");
    }
    let me = setting.ask(&setting.other, "POST", "/api/me", "");
    assert_eq!(me.status, 503, "nothing that Ollama said of its account: {me:?}");
    assert!(!me.body.contains("gpu"), "{me:?}");
    let openai = setting.ask(&setting.other, "POST", "/v1/nosuch", "{}");
    assert!(openai.body.contains("\"message\":\"404 page not found\""), "{openai:?}");
}

#[test]
fn this_machine_may_do_everything_at_every_address_of_its_own() {
    let Some(mut lan) = Lan::new(1) else { return };
    let setting = setting(&mut lan, &[]);
    let loopback = SocketAddr::from(([127, 0, 0, 1], 11435));
    for (method, target) in
        OPEN.iter().chain(MANAGEMENT).chain(&[("POST", "/api/pull"), ("POST", "/api/me")])
    {
        let at_own = setting.ask(&setting.server, method, target, PLAIN);
        let at_loopback = ask(&setting.server, loopback, method, target, PLAIN);
        for answer in [at_own, at_loopback] {
            assert!(matches!(answer.status, 200 | 201), "{method} {target}: {answer:?}");
        }
    }
}

#[test]
fn manage_on_opens_management_and_nothing_else() {
    let Some(mut lan) = Lan::new(1) else { return };
    let setting = setting(&mut lan, &["--manage", "on"]);
    for (method, target) in OPEN.iter().chain(MANAGEMENT) {
        let answer = setting.ask(&setting.other, method, target, PLAIN);
        assert!(matches!(answer.status, 200 | 201), "{method} {target}: {answer:?}");
    }
    for body in [PLAIN, FOREIGN] {
        assert_eq!(setting.ask(&setting.other, "POST", "/api/pull", body).status, 200, "{body}");
    }
    for (method, target) in CLOSED {
        assert_refused(&setting.ask(&setting.other, method, target, PLAIN), target, &[]);
        assert_eq!(setting.ollama.requests(target), 0, "{target} reached Ollama");
    }
}

#[test]
fn pull_on_opens_ollamas_registry_alone() {
    let Some(mut lan) = Lan::new(1) else { return };
    let setting = setting(&mut lan, &["--pull", "on"]);
    assert_eq!(setting.ask(&setting.other, "POST", "/api/pull", PLAIN).status, 200);
    let long = format!("{{\"x\":\"{}\",\"model\":\"a\"}}", "x".repeat(100_000));
    let hidden = format!("{PLAIN}{FOREIGN}");
    let insecure = r#"{"model":"a","insecure":true}"#;
    for body in [FOREIGN, "", "{}", "[", insecure, &long, &hidden] {
        let answer = setting.ask(&setting.other, "POST", "/api/pull", body);
        assert_refused(&answer, body, &["--manage on"]);
    }
    assert_eq!(setting.ollama.requests("/api/pull"), 1, "only the first");
    for (method, target) in MANAGEMENT.iter().chain(CLOSED) {
        assert_refused(&setting.ask(&setting.other, method, target, PLAIN), target, &[]);
    }
}

/// A client passes a refusal on as it is, and doesn't go where it would be refused.
#[test]
fn a_client_prefers_servers_that_allow_it() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { ollama: closed, other: client, _daemon, .. } = setting(&mut lan, &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    let own = SocketAddr::from(([127, 0, 0, 1], 11434));
    for (method, target) in MANAGEMENT.iter().chain(&[("POST", "/api/pull")]) {
        let answer = ask(&client, own, method, target, PLAIN);
        assert_refused(&answer, target, &["--manage on"]);
    }
    let host = lan.host(&[("eth0", 0)]);
    let open = Ollama::start(&host, "open");
    let _open_daemon = Daemon::start(&host, &["--manage", "on"]);
    takes("both found", limits::FOUND, || (client_daemon.count("server up ") == 2).then_some(()));
    for round in 0..3 {
        for (method, target) in MANAGEMENT.iter().chain(&[("POST", "/api/pull")]) {
            let answer = ask(&client, own, method, target, PLAIN);
            assert!(matches!(answer.status, 200 | 201), "{round}: {method} {target}: {answer:?}");
        }
    }
    for (_, target) in MANAGEMENT.iter().chain(&[("POST", "/api/pull")]) {
        assert_eq!((closed.requests(target), open.requests(target)), (0, 3), "{target}");
    }
}

/// What would use the account goes to a server whose owner lets it.
#[test]
fn a_client_goes_past_a_server_that_keeps_its_account() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { ollama: closed, other: client, _daemon, .. } =
        setting(&mut lan, &["--cloud", "off"]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    let own = SocketAddr::from(([127, 0, 0, 1], 11434));
    let chat = |model: &str| {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
        ask(&client, own, "POST", "/api/chat", &body)
    };
    assert_refused(&chat("x:cloud"), "a cloud's model", &["--cloud on"]);
    assert_refused(&ask(&client, own, "POST", "/api/me", ""), "who am I", &["--cloud on"]);
    assert_eq!(chat("gpu").status, 200, "a model of its own");
    let host = lan.host(&[("eth0", 0)]);
    let open = Ollama::start(&host, "open");
    let _open_daemon = Daemon::start(&host, &[]);
    takes("both found", limits::FOUND, || (client_daemon.count("server up ") == 2).then_some(()));
    for _ in 0..3 {
        let answer = chat("x:cloud");
        assert!(answer.status == 200 && answer.body.contains("open"), "{answer:?}");
    }
    assert_eq!((closed.requests("/api/chat"), open.requests("/api/chat")), (1, 3));
}

/// A store with a model that was pulled and one that was made; their blobs and manifests.
fn store(host: &Host) -> [(String, String); 2] {
    let dir = host.dir().join(".ollama/models");
    fs::create_dir_all(dir.join("blobs")).expect("a store");
    [("pulled", 'a', ""), ("made", 'b', r#","from":"/home/me/secret.gguf""#)].map(
        |(name, digit, from)| {
            let hex = digit.to_string().repeat(64);
            fs::write(dir.join(format!("blobs/sha256-{hex}")), name).expect("a blob");
            let folder = dir.join("manifests/registry.ollama.ai/library").join(name);
            fs::create_dir_all(&folder).expect("a folder");
            let size = name.len();
            let layer = format!(r#"{{"digest":"sha256:{hex}","size":{size}{from}}}"#);
            let manifest = format!(r#"{{"layers":[{layer}]}}"#);
            fs::write(folder.join("latest"), &manifest).expect("a file");
            (format!("/ollana/blobs/sha256:{hex}"), manifest)
        },
    )
}

#[test]
fn models_are_given_as_their_owner_says() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, other] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let ollama = Ollama::start(&server, "made");
    let [pulled, made] = store(&server);
    ollama.has(&made.1);
    let blobs = [pulled.0, made.0];
    let to = SocketAddr::from((server.address(0), 11435));
    for (args, of_others, own) in [
        (&[][..], [200, 404], [200, 200]),
        (&["--share-models", "paired"], [404, 404], [200, 200]),
        (&["--share-models", "off"], [404, 404], [404, 404]),
        (&["--unpaired", "off"], [403, 403], [200, 200]),
    ] {
        let _daemon = Daemon::start(&server, args);
        let status = |from: &Host, target: &str| ask(from, to, "GET", target, "").status;
        let of = |from: &Host| [0, 1].map(|at| status(from, &blobs[at]));
        assert_eq!((of(&other), of(&server)), (of_others, own), "{args:?}");
        let is_open = args.first().is_none_or(|arg| *arg != "--share-models" || args[1] != "off");
        let manifest = "/ollana/manifests/made";
        let told = ask(&server, to, "GET", manifest, "");
        assert_eq!(told.status, if is_open { 200 } else { 404 }, "{args:?}");
        assert!(!told.body.contains("secret"), "{}", told.body);
        let names_unpaired = args.contains(&"--unpaired");
        let hidden = if names_unpaired { 403 } else { 404 };
        assert_eq!(status(&other, "/ollana/manifests/pulled"), hidden, "{args:?}");
        assert_eq!(status(&other, "/ollana/status"), 403, "{args:?}");
    }
}

/// Who may not connect is closed before a byte of his is read, and gets no announcement.
#[test]
fn allow_and_deny_decide_who_connects() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { server, other, _daemon, ollama: _o } = setting(&mut lan, &[]);
    let third = lan.host(&[("eth0", 0)]);
    let to = SocketAddr::from((server.address(0), 11435));
    let is_let_in = |from: &Host| {
        open(from, to, "GET", "/api/tags", 0).and_then(Call::answer).is_ok_and(|a| a.status == 200)
    };
    let hears = |from: &Host| {
        let ear = udp(from, "0.0.0.0:0", Duration::from_millis(300));
        let responder = SocketAddr::new(to.ip(), 11436);
        ear.send_to(&probe([7; 16]), responder).expect("sent");
        ear.recv_from(&mut [0; 512]).is_ok()
    };
    assert!(is_let_in(&other) && is_let_in(&third) && hears(&other) && hears(&third));
    let address = |host: &Host| host.address(0).to_string();
    let (allowed, denied) = (format!("{}/32", address(&third)), address(&other));
    let mut daemon = _daemon;
    for args in [
        &["--allow", &allowed][..],
        &["--deny", &denied],
        &["--allow", "10.80.0.0/24", "--deny", &denied],
    ] {
        daemon.kill();
        daemon = Daemon::start(&server, args);
        assert!(!is_let_in(&other) && !hears(&other), "{args:?}");
        assert!(is_let_in(&third) && hears(&third), "{args:?}");
        assert!(is_let_in(&server), "this machine: {args:?}");
    }
}
