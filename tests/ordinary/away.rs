//! What a server had is remembered while it is away: a request for its model is told so, and isn't
//! answered "not found" by another machine, which would start a download.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use ollana::config::{ModeChoice, ServerName, Settings};
use ollana::serve::Daemon;
use serde_json::{Value, json};

use crate::support::{
    Call, Chain, Client, Gate, Ollama, Way, World, clear_environment, client_settings, eventually,
    ndjson, request, server_settings, start,
};

/// A folder for the state of one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("away-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Folder(dir)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.0.join("servers.json")).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything that names a model without wanting to get it.
const ABOUT_BETA: &[(&str, &str, &str)] = &[
    ("POST", "/api/show", r#"{"model":"beta"}"#),
    ("POST", "/api/show", r#"{"name":"beta:latest"}"#),
    ("POST", "/api/chat", r#"{"model":"beta","messages":[]}"#),
    ("POST", "/api/generate", r#"{"model":"BETA","prompt":"hi"}"#),
    ("POST", "/api/generate", r#"{"model":"beta","keep_alive":0}"#),
    ("POST", "/api/embed", r#"{"model":"beta","input":"hi"}"#),
    ("DELETE", "/api/delete", r#"{"model":"beta"}"#),
    ("POST", "/api/copy", r#"{"source":"beta","destination":"gamma"}"#),
    ("POST", "/api/push", r#"{"model":"beta"}"#),
    ("POST", "/api/create", r#"{"model":"gamma","from":"beta"}"#),
    ("GET", "/v1/models/beta", ""),
    ("POST", "/v1/chat/completions", r#"{"model":"beta","messages":[]}"#),
    ("POST", "/v1/messages", r#"{"model":"beta","messages":[],"max_tokens":5}"#),
];

const SENTENCE: &str = "which is away, last seen";

fn ask(client: &mut Client, (method, target, body): (&str, &str, &str)) -> (u16, Value) {
    let answer = client.ask(request(method, target, body));
    (answer.status(), serde_json::from_str(&answer.text()).unwrap_or_default())
}

fn is_away(chain: &Chain) {
    eventually("beta's server to be called down", || {
        let state = chain.connect().get("/ollana/status").json();
        (!state["away"].as_array()?.is_empty()).then_some(())
    });
}

fn all_say_away(address: SocketAddr, name: &str) {
    for about in ABOUT_BETA {
        let (status, body) = ask(&mut Client::connect(address), *about);
        assert_eq!(status, 503, "{about:?}: {body}");
        let error = body["error"]["message"].as_str().or(body["error"].as_str());
        let error = error.unwrap_or_else(|| panic!("{about:?}: {body}"));
        let wanted = format!("model \"beta:latest\" is on server {name:?}, {SENTENCE}");
        assert!(error.starts_with(&wanted), "{about:?}: {error}");
    }
    let claude = ask(&mut Client::connect(address), ABOUT_BETA[ABOUT_BETA.len() - 1]).1;
    assert_eq!(claude["type"], "error", "in the shape of the path: {claude}");
}

/// Both orders of two servers, one and two hops; `A` stays, `B` goes.
fn two(way: Way, swapped: bool, a: &Ollama, b: &Ollama, tweak: impl Fn(&mut Settings)) -> Chain {
    let both = if swapped { [b, a] } else { [a, b] };
    let chain = match way {
        Way::OneHop => Chain::direct(&both, tweak),
        way => Chain::start(way, &both, tweak),
    };
    both_are_known(&chain);
    chain
}

fn both_are_known(chain: &Chain) {
    eventually("both servers' models to be known", || {
        let tags = chain.connect().get("/api/tags").text();
        (tags.contains("alpha") && tags.contains("beta")).then_some(())
    });
}

const HOPS: [Way; 2] = [Way::OneHop, Way::TwoHops];

/// Where a client finds the second server.
fn second(chain: &Chain, b: &Ollama) -> SocketAddr {
    chain.servers.get(1).map_or(b.address, |server| server.addresses()[0])
}

#[test]
fn whatever_names_a_model_of_a_server_that_is_away_gets_503() {
    for (way, swapped) in
        [(Way::OneHop, false), (Way::OneHop, true), (Way::TwoHops, false), (Way::Paired, true)]
    {
        let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
        let chain = two(way, swapped, &a, &b, |_| {});
        assert_eq!(ask(&mut chain.connect(), ABOUT_BETA[0]).0, 200, "{way:?}");
        b.kill();
        is_away(&chain);
        let state = chain.connect().get("/ollana/status").json();
        let away = state["away"][0].clone();
        all_say_away(chain.address(), away["name"].as_str().expect("a name"));
        // What others have, what nobody has, and a pull go on as ever.
        let (status, _) = ask(&mut chain.connect(), ("POST", "/api/show", r#"{"model":"alpha"}"#));
        assert_eq!(status, 200);
        let (status, _) = ask(&mut chain.connect(), ("POST", "/api/show", r#"{"model":"gamma"}"#));
        assert_eq!(status, 404, "{way:?}: nobody has it");
        let pull = ("POST", "/api/pull", r#"{"model":"beta","stream":false}"#);
        let (status, pulled) = ask(&mut chain.connect(), pull);
        assert_eq!(
            (status, a.served().last().map(|last| last.path.clone())),
            (200, Some("/api/pull".to_owned())),
            "{pulled}"
        );
        assert_eq!(ask(&mut chain.connect(), ABOUT_BETA[0]).0, 200, "another one has it now");
        a.change(|world| world.models.retain(|model| model.name != "beta:latest"));
        eventually("it to be away again", || {
            (ask(&mut chain.connect(), ABOUT_BETA[0]).0 == 503).then_some(())
        });
        let server = chain.servers.get(usize::from(swapped));
        let server = server.map_or(a.address, |server| server.addresses()[0]);
        let chosen = format!(
            "POST /api/show HTTP/1.1\r\nHost: localhost\r\nX-Ollana-Server: {server}\r\n\
             Content-Length: 16\r\n\r\n{{\"model\":\"beta\"}}"
        );
        assert_eq!(chain.connect().ask(chosen).status(), 404, "that server was asked for");
        // It is back with the same models.
        b.restart();
        eventually("beta to be used again", || {
            (ask(&mut chain.connect(), ABOUT_BETA[0]).0 == 200).then_some(())
        });
    }
}

/// Programs go on when they read that a pull has succeeded, and don't wait for the answer's end.
#[test]
fn a_model_that_was_pulled_elsewhere_is_there_at_once() {
    for way in HOPS {
        for streams in [true, false] {
            let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
            let chain = two(way, false, &a, &b, |_| {});
            b.kill();
            is_away(&chain);
            let gate = Gate::new();
            let held = gate.clone();
            a.change(|world| {
                *world = World::with(&["alpha", "beta"]);
                let pull = move |call: &mut Call<'_>| {
                    call.read_body();
                    if streams {
                        call.send(ndjson());
                        call.send_chunk("{\"status\":\"success\"}\n");
                    } else {
                        call.send(
                            "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"status\":\"success\"",
                        );
                    }
                    call.wait(&held, "the program to go on");
                    call.send(if streams { "0\r\n\r\n" } else { "}" });
                };
                world.script.insert("/api/pull".to_owned(), Arc::new(pull));
            });
            let server = chain.servers.first().map_or(a.address, |server| server.addresses()[0]);
            let body = r#"{"model":"beta"}"#;
            let mut client = chain.connect();
            client.send(format!(
                "POST /api/pull HTTP/1.1\r\nHost: localhost\r\nX-Ollana-Server: {server}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            assert_eq!(client.head_of("POST").status(), 200, "{way:?}");
            client.read_until(if streams { b"\n" } else { b"\"" });
            let (status, told) = ask(&mut chain.connect(), ABOUT_BETA[0]);
            assert_eq!(status, 200, "{way:?}, streams: {streams}: {told}");
            gate.open();
            client.rest();
        }
    }
}

#[test]
fn the_request_that_finds_its_server_gone_is_told_so() {
    for way in [Way::OneHop, Way::TwoHops] {
        let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
        let slow =
            |settings: &mut Settings| settings.timing.health_interval = Duration::from_secs(60);
        let chain = two(way, false, &a, &b, slow);
        b.kill();
        let (status, body) = ask(&mut chain.connect(), ABOUT_BETA[2]);
        assert_ne!(status, 404, "{body}");
        if way == Way::OneHop {
            assert_eq!(status, 503, "{body}");
            assert!(body["error"].as_str().expect("text").contains(SENTENCE), "{body}");
        }
    }
}

#[test]
fn what_a_server_had_outlives_a_restart_of_the_client() {
    for way in [Way::OneHop, Way::TwoHops] {
        let folder = Folder::new(&format!("restart-{way:?}"));
        let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta", "delta"]));
        let mut chain = two(way, false, &a, &b, |_| {});
        let addresses = match way {
            Way::OneHop => vec![a.address, b.address],
            _ => chain.servers.iter().map(|server| server.addresses()[0]).collect(),
        };
        let settings =
            Settings { state_dir: Some(folder.0.clone()), ..client_settings(&addresses) };
        chain.client = Some(start(&settings));
        both_are_known(&chain);
        chain.client = None;
        assert!(folder.text().contains("delta"), "written down at the end: {}", folder.text());
        b.kill();
        chain.client = Some(start(&settings));
        let (status, body) = ask(&mut chain.connect(), ABOUT_BETA[0]);
        assert_eq!(status, 503, "{way:?}, before and after the first checks: {body}");
        is_away(&chain);
        let state = chain.connect().get("/ollana/status").json();
        let away = &state["away"][0];
        assert_eq!(away["model_count"], 2, "{away}");
        assert_eq!(away["models"][1]["name"], "delta:latest", "{away}");
        assert_eq!(away["models"][1]["kind"], "1.2B Q8_0", "{away}");
        all_say_away(chain.address(), away["name"].as_str().expect("a name"));
        // A server that isn't named any more is none of this client's business.
        chain.client = None;
        let servers: Vec<ServerName> = settings.servers[..1].to_vec();
        chain.client = Some(start(&Settings { servers, ..settings.clone() }));
        assert_eq!(ask(&mut chain.connect(), ABOUT_BETA[0]).0, 404, "{way:?}");
    }
}

/// What one server says about its models costs no other its place in what is remembered.
#[test]
fn odd_entries_of_one_server_make_no_other_forgotten() {
    for depth in [33, 124, 125, 126, 127] {
        let folder = Folder::new(&format!("odd-{depth}"));
        let (mut a, b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        let odd = format!(r#"{{"models":[{{"name":"beta"}},{{"name":"odd","x":{open}{close}}}]}}"#);
        b.change(|world| drop(world.raw_lists.insert("/api/tags".to_owned(), odd)));
        let (mut chain, settings) = beside(Way::OneHop, &a, &b, Some(folder.0.clone()));
        chain.client = None;
        a.kill();
        for start_number in 1..3 {
            chain.client = Some(start(&settings));
            eventually("beta", || {
                chain.connect().get("/api/tags").text().contains("beta").then_some(())
            });
            let about = ("POST", "/api/show", r#"{"model":"alpha"}"#);
            let (status, body) = ask(&mut chain.connect(), about);
            assert_eq!(status, 503, "depth {depth}, start {start_number}: {body}");
            chain.client = None;
        }
    }
}

#[test]
fn lists_have_what_can_be_used_and_what_can_be_woken() {
    let lists = |chain: &Chain| {
        ["/api/tags", "/v1/models", "/api/ps"].map(|path| {
            let list = chain.connect().get(path).text();
            [list.contains("alpha"), list.contains("beta")]
        })
    };
    let wake = |settings: &mut Settings| {
        if settings.mode == ModeChoice::Client {
            settings.wake = vec!["127.0.0.1".parse().expect("a sleeper")];
        }
        settings.timing.wake_timeout = Duration::from_millis(200);
    };
    for way in HOPS {
        let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
        a.change(|world| world.loaded = vec!["alpha:latest".to_owned()]);
        b.change(|world| world.loaded = vec!["beta:latest".to_owned()]);
        let plain = two(way, false, &a, &b, |_| {});
        let mut waking = two(way, false, &a, &b, wake);
        b.kill();
        // A machine that sleeps takes its server's proxy with it.
        waking.servers.truncate(1);
        is_away(&plain);
        is_away(&waking);
        assert_eq!(lists(&plain), [[true, false], [true, false], [true, false]], "{way:?}");
        assert_eq!(lists(&waking), [[true, true], [true, true], [true, false]], "{way:?}");
    }
}

fn ollana(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    clear_environment(command.args(arguments)).output().expect("run ollana")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr })
        .into_owned()
}

/// A client in front of `A`, and of `B` or its server's proxy: all servers here would have the same
/// name.
fn beside(way: Way, a: &Ollama, b: &Ollama, state_dir: Option<PathBuf>) -> (Chain, Settings) {
    let servers: Vec<Daemon> = match way {
        Way::OneHop => Vec::new(),
        _ => vec![start(&server_settings(b.address))],
    };
    let at = servers.first().map_or(b.address, |server| server.addresses()[0]);
    let settings = Settings { state_dir, ..client_settings(&[a.address, at]) };
    let chain = Chain { servers, client: Some(start(&settings)), way };
    both_are_known(&chain);
    (chain, settings)
}

#[test]
fn a_server_is_forgotten_by_name_with_or_without_a_running_ollana() {
    HOPS.into_iter().for_each(is_forgotten);
}

fn is_forgotten(way: Way) {
    let folder = Folder::new(&format!("forget-{way:?}"));
    let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
    let (mut chain, settings) = beside(way, &a, &b, Some(folder.0.clone()));
    let (listen, at) = (chain.address().to_string(), settings.servers[1].to_string());
    let state = chain.connect().get("/ollana/status").json();
    let gone = state["servers"][1]["name"].as_str().expect("a name").to_owned();
    let state = folder.0.display().to_string();
    let forget = |name: &str| ollana(&["forget", name, "--listen", &listen, "--state-dir", &state]);
    let up = forget(&gone);
    assert_eq!(up.status.code(), Some(1));
    assert!(said(&up).contains("is up, and would be known again"), "{}", said(&up));
    b.kill();
    is_away(&chain);
    let misspelled = forget(&at.replace("127", "126"));
    let text = said(&misspelled);
    assert_eq!(misspelled.status.code(), Some(1));
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if way == Way::OneHop {
        assert!(flat.contains(&format!("did you mean {gone}?")), "{text}");
    }
    assert!(flat.contains(&a.address.to_string()), "the known names: {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let done = forget(&gone);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(said(&done), format!("forgot {gone} ({at}) and its model\n"));
    assert_eq!(ask(&mut chain.connect(), ABOUT_BETA[0]).0, 404, "nobody is known to have it");
    eventually("it to be gone from the disk", || (!folder.text().contains("beta")).then_some(()));
    // Without a running ollana it is taken out of the file.
    b.restart();
    eventually("beta again", || {
        chain.connect().get("/api/tags").text().contains("beta").then_some(())
    });
    chain.client = None;
    assert!(folder.text().contains("beta"));
    let done = forget(&gone);
    assert_eq!(said(&done), format!("forgot {gone} ({at}) and its model\n"));
    assert!(!folder.text().contains("beta") && folder.text().contains("alpha"));
    assert!(said(&forget(&gone)).contains("no server called"));
}

#[test]
fn no_page_and_no_other_machine_makes_it_forget() {
    HOPS.into_iter().for_each(only_its_user_makes_it_forget);
}

fn only_its_user_makes_it_forget(way: Way) {
    let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["beta"]));
    let chain = two(way, false, &a, &b, |_| {});
    b.kill();
    is_away(&chain);
    let path = format!("/ollana/servers/{}", second(&chain, &b));
    let host = chain.address();
    let delete = |fields: &str| format!("DELETE {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    for fields in [
        "Origin: https://example.com\r\n",
        "Origin: null\r\n",
        &format!("Origin: http://{host}\r\n"),
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-origin\r\n",
    ] {
        let answer = chain.connect().ask(delete(fields));
        assert_eq!(answer.status(), 403, "{fields}");
    }
    assert_eq!(chain.connect().get(&path).status(), 405, "links and forms do nothing");
    assert_eq!(chain.connect().post(&path, "").status(), 405);
    let preflight = format!(
        "OPTIONS {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: https://example.com\r\n\
         Access-Control-Request-Method: DELETE\r\n\r\n"
    );
    let answer = chain.connect().ask(preflight);
    assert!(answer.status() >= 400 && !answer.head.has("access-control-allow-origin"));
    let foreign = format!("DELETE {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(chain.connect().ask(foreign).status(), 403, "DNS rebinding");
    assert_eq!(ask(&mut chain.connect(), ABOUT_BETA[0]).0, 503, "it is remembered still");
    assert_eq!(chain.connect().ask(delete("")).status(), 200);
    assert_eq!(ask(&mut chain.connect(), ABOUT_BETA[0]).0, 404);
}

#[test]
fn commands_show_what_is_away() {
    HOPS.into_iter().for_each(is_shown_as_away);
}

fn is_shown_as_away(way: Way) {
    let (a, mut b) = (Ollama::with(&["alpha"]), Ollama::with(&["alpha", "beta"]));
    let (chain, _) = beside(way, &a, &b, None);
    b.kill();
    is_away(&chain);
    let listen = chain.address().to_string();
    let models = said(&ollana(&["models", "--listen", &listen]));
    let rows: Vec<&str> = models.lines().collect();
    assert_eq!(rows.len(), 4, "{models}");
    let state = chain.connect().get("/ollana/status").json();
    let at = state["away"][0]["name"].as_str().expect("a name").to_owned();
    let away = |row: &&&str| row.contains(&at) && row.contains("away for");
    assert_eq!(rows.iter().filter(away).count(), 2, "{models}");
    assert!(rows.iter().all(|row| row.chars().count() <= 80), "{models}");
    let json: Value =
        serde_json::from_str(&said(&ollana(&["models", "--json", "--listen", &listen])))
            .expect("JSON");
    let beta = &json["models"][1]["servers"][0];
    assert_eq!((&beta["health"], &beta["server"]), (&json!("away"), &json!(at)), "{json}");
    assert!(beta["since_s"].is_number(), "{json}");
}
