//! `ollana pull`: what it asks of the daemon, and what a person sees of the answer.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::support::{
    Call, Chain, Gate, Ollama, Signal, Way, World, clear_environment, ctrl_c_code, eventually,
    free_tcp_port, ignores_ctrl_c, ndjson, send_signal, server_settings, start, with_signals,
};

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    clear_environment(with_signals(command.args(arguments.split_whitespace())));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Its output, its errors in one line, its exit code.
pub(super) fn ollana(arguments: &str) -> (String, String, i32) {
    ended(command(arguments).spawn().expect("start ollana"))
}

fn ended(child: Child) -> (String, String, i32) {
    let output = child.wait_with_output().expect("its end");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let errors = text(&output.stderr);
    for line in errors.lines() {
        assert!(line.chars().count() <= 80, "wider than a terminal: {line}");
    }
    let errors = errors.split_whitespace().collect::<Vec<_>>().join(" ");
    (text(&output.stdout), errors, output.status.code().unwrap_or(-1))
}

fn scripted(script: impl Fn(&mut Call<'_>) + Send + Sync + 'static) -> Ollama {
    let mut world = World::with(&["alpha"]);
    world.script.insert("/api/pull".to_owned(), Arc::new(script));
    Ollama::start(world)
}

/// Answers a pull with these lines.
fn saying(lines: &'static [&'static str]) -> Ollama {
    scripted(move |call| {
        call.read_body();
        call.send(ndjson());
        lines.iter().all(|line| call.send_chunk(format!("{line}\n")));
        call.send("0\r\n\r\n");
    })
}

fn pull(address: SocketAddr, words: &str) -> (String, String, i32) {
    ollana(&format!("pull {words} --listen {address}"))
}

#[test]
fn a_pull_goes_through_the_daemon() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["alpha"]);
        let chain = way.to(&ollama);
        let (text, errors, code) = pull(chain.address(), "beta:7b --from internet");
        assert_eq!((code, errors.as_str()), (0, ""), "{way:?}: {text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.first(), lines.last()), (Some(&"pulling manifest"), Some(&"success")));
        assert!(!text.contains('\u{1b}'), "no terminal: {text}");
        assert_eq!(ollama.served_models(), ["beta:7b"], "{way:?}");
    }
}

#[test]
fn a_server_to_pull_from_that_is_not_there_is_told() {
    let ollama = Ollama::with(&["alpha"]);
    let chain = Way::OneHop.to(&ollama);
    let (text, errors, code) = pull(chain.address(), "beta --from desktpo");
    assert_eq!((code, text.as_str()), (1, ""), "{errors}");
    assert!(errors.contains("knows no server \"desktpo\" (it knows none)"), "{errors}");
    assert!(ollama.served_models().is_empty(), "{:?}", ollama.served());
}

const LAYERS: &[&str] = &[
    r#"{"status":"pulling manifest"}"#,
    r#"{"status":"pulling 74701a8c35f6","digest":"sha256:74701a8c35f6","total":1300000000}"#,
    r#"{"status":"pulling 74701a8c35f6","digest":"sha256:74701a8c35f6","total":1300000000,"completed":650000000}"#,
    r#"{"status":"pulling 74701a8c35f6","digest":"sha256:74701a8c35f6","total":1300000000,"completed":1300000000}"#,
    r#"{"status":"success"}"#,
];

#[test]
fn layers_are_shown_in_plain_lines() {
    let ollama = saying(LAYERS);
    let chain = Way::OneHop.to(&ollama);
    let (text, _, code) = pull(chain.address(), "beta");
    assert_eq!(code, 0);
    let want = "pulling manifest\n\
        pulling 74701a8c35f6: 0 % of 1.3 GB\n\
        pulling 74701a8c35f6: 50 % of 1.3 GB\n\
        pulling 74701a8c35f6: 100 % of 1.3 GB\n\
        success\n";
    assert_eq!(text, want);
}

/// `script` (util-linux) makes a terminal.
#[test]
fn bars_are_drawn_over_on_a_terminal() {
    let ollama = saying(LAYERS);
    let chain = Way::OneHop.to(&ollama);
    let program = env!("CARGO_BIN_EXE_ollana");
    let line = format!("stty rows 24 cols 80; {program} pull beta --listen {}", chain.address());
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let Ok(child) = script.stderr(Stdio::piped()).spawn() else {
        return println!("skipped: script is not installed");
    };
    let (text, _, code) = ended(child);
    assert_eq!(code, 0, "{text}");
    let text = text.replace('\r', "");
    assert!(text.contains("pulling 74701a8c35f6: 100 % ▕█████"), "{text:?}");
    assert!(text.contains("\u{1b}[1A"), "the bar is drawn over itself: {text:?}");
    assert!(text.ends_with("\u{1b}[Ksuccess\n\u{1b}[J"), "{text:?}");
}

const MISSING: &[&str] = &[
    r#"{"status":"pulling manifest"}"#,
    r#"{"error":"pull model manifest: file does not exist"}"#,
];

#[test]
fn what_fails_is_said_with_exit_code_1() {
    for (ollama, want) in [
        (saying(MISSING), "ollana: pull model manifest: file does not exist"),
        (saying(&MISSING[..1]), "ollana: the pull ended without success"),
        (
            scripted(|call| {
                call.read_body();
                call.send(ndjson());
                call.send_chunk("{\"status\":\"pulling manifest\"}\n");
                call.reset();
            }),
            "connection",
        ),
        (
            scripted(|call| {
                call.read_body();
                call.answer(
                    "400 Bad Request",
                    "application/json",
                    r#"{"error":"invalid model name"}"#,
                );
            }),
            "ollana: invalid model name",
        ),
        (
            scripted(|call| {
                call.read_body();
                call.answer("500 Internal Server Error", "text/plain", "what?");
            }),
            "ollana: answered 500",
        ),
    ] {
        let chain = Way::OneHop.to(&ollama);
        let (_, errors, code) = pull(chain.address(), "beta");
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains(want), "{errors}, not {want}");
    }
}

#[test]
fn what_is_missing_is_told() {
    for (words, want) in [("pull", "pull takes MODEL"), ("pull a --from=", "internet, any")] {
        let (text, errors, code) = ollana(words);
        assert_eq!((code, text.as_str()), (2, ""), "{words}");
        assert!(errors.contains(want), "{errors}");
    }
    // Nobody, and an Ollama, are no daemon.
    let ollama = Ollama::with(&["alpha"]);
    for nobody in [free_tcp_port(), ollama.address] {
        let (text, errors, code) = pull(nobody, "beta");
        assert_eq!((code, text.as_str()), (1, ""));
        assert!(errors.contains("no ollana runs on this machine"), "{errors}");
        assert!(errors.contains("start it with: ollana"), "{errors}");
    }
    assert!(ollama.served_models().is_empty(), "{:?}", ollama.served());
}

#[test]
fn a_server_is_chosen_behind_an_at_sign() {
    let (a, b) = (Ollama::with(&["alpha"]), Ollama::with(&["alpha"]));
    let chain = Chain::direct(&[&a, &b], |_| {});
    eventually("both servers to be up", || {
        let state = chain.connect().get("/ollana/status").json();
        let servers = state["servers"].as_array().expect("servers").clone();
        servers.iter().all(|server| server["health"] == "ready").then_some(())
    });
    let (_, errors, code) = pull(chain.address(), &format!("beta@127.0.0.1:{}", b.address.port()));
    assert_eq!(code, 0, "{errors}");
    // A port is part of a name behind an at sign as elsewhere.
    assert_eq!((a.served_models(), b.served_models()), (vec![], vec!["beta".to_owned()]));

    // A server knows no other servers.
    let only = start(&server_settings(a.address));
    let (_, errors, code) = pull(only.addresses()[0], "beta@elsewhere");
    assert_eq!(code, 1);
    assert!(errors.contains("ollana cp beta elsewhere"), "{errors}");
    let state = crate::support::Client::connect(only.addresses()[0]).get("/ollana/status").json();
    let own = state["machine"]["name"].as_str().expect("a name").to_owned();
    let (_, errors, code) = pull(only.addresses()[0], &format!("gamma@{own}"));
    assert_eq!(code, 0, "{errors}");
    assert_eq!(a.served_models(), ["gamma"]);
}

/// Ollama's words where its registry can't be reached.
const LOST: &str = r#"{"error":"pull model manifest: Get \"https://registry.ollama.ai/v2/library/beta/manifests/7b\": dial tcp: lookup registry.ollama.ai: no such host"}"#;

#[test]
fn without_the_internet_it_says_who_has_the_model() {
    let (a, b) = (saying(&[LOST]), saying(&[LOST]));
    b.change(|world| world.models = World::with(&["alpha", "Beta:7b"]).models);
    let chain = Chain::direct(&[&a, &b], |_| {});
    let state = || chain.connect().get("/ollana/status").json();
    let [a_name, b_name] = [&a, &b].map(|ollama| ollama.address.to_string());
    eventually("both lists", || {
        let text = state().to_string();
        (text.contains("Beta:7b") && text.matches("alpha").count() >= 2).then_some(())
    });
    let (_, errors, code) = pull(chain.address(), &format!("beta:7b@{a_name}"));
    assert_eq!(code, 1);
    let want = format!(
        "the registry can't be reached; {b_name} has it: ollana cp beta:7b@{b_name} {a_name}"
    );
    assert!(errors.contains(&want), "{errors}");
    assert!(errors.contains("no such host"), "the reason too: {errors}");
    // The one that pulled it has it already, and another model nobody has.
    for (model, place) in [("beta:7b", &b_name), ("gamma", &a_name)] {
        let (_, errors, code) = pull(chain.address(), &format!("{model}@{place}"));
        assert_eq!(code, 1);
        assert!(!errors.contains("ollana cp") && errors.contains("no such host"), "{errors}");
    }
}

#[test]
fn who_interrupts_it_ends_the_pull() {
    if ignores_ctrl_c() {
        return eprintln!("skipped: Ctrl-C is ignored in what a shell runs in the background");
    }
    for way in Way::ALL {
        let gate = Gate::new();
        let begun = gate.clone();
        let ollama = scripted(move |call| {
            call.read_body();
            call.send(ndjson());
            call.send_chunk("{\"status\":\"pulling manifest\"}\n");
            begun.open();
            call.hang();
        });
        let chain = way.to(&ollama);
        let words = format!("pull beta --listen {}", chain.address());
        let child = command(&words).spawn().expect("start ollana");
        assert!(gate.wait(), "the pull begins");
        send_signal(&child, Signal::INT);
        let (_, _, code) = ended(child);
        assert_eq!(code, ctrl_c_code().unwrap_or(-1), "ended by the signal");
        ollama.closed(0);
    }
}
