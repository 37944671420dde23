//! Ways to make a daemon talk to somebody else: redirects, proxies of the environment, itself.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use ollana::serve::Daemon;

use super::rogue::{Rogue, answer, healthy};
use crate::support::{
    CHAT, Chain, Client, End, Ollama, Process, clear_environment, client_settings, eventually,
    free_udp_port, post, start,
};

/// Whatever an upstream says of where else to go, nobody goes there: neither with a prompt, nor
/// with a health check, nor with a command's question.
#[test]
fn a_redirect_leads_nowhere() {
    let trap = Rogue::answering(answer("200 OK", "", "{\"version\":1}"));
    let place = trap.address;
    let locations = [
        format!("Location: http://{place}/api/chat\r\n"),
        format!("Location: //{place}/api/chat\r\n"),
        format!("Location: http://user:password@{place}/\r\nLocation: http://{place}/b\r\n"),
        format!("Content-Location: http://{place}/\r\nRefresh: 0; url=http://{place}/\r\n"),
        format!("Alt-Svc: http/1.1=\"{place}\"; ma=3600\r\n"),
    ];
    for status in [300, 301, 302, 303, 305, 307, 308, 421, 200] {
        for fields in &locations {
            let told = answer(&format!("{status} Go"), fields, "");
            let rogue = Rogue::start(move |head, stream| {
                drop(stream.write_all(&healthy(head.target()).unwrap_or(told.clone())));
            });
            let daemon = start(&client_settings(&[rogue.address]));
            let mut client = Client::connect(daemon.addresses()[0]);
            let answer = client.post("/api/chat", "{\"secret\":1}");
            let what = format!("{status} {fields:?}");
            assert_eq!((answer.status(), answer.end), (status, End::Whole), "{what}");
            let passed = |name: &str| fields.lines().filter(|l| l.starts_with(name)).count();
            assert_eq!(answer.head.all("location").len(), passed("Location"), "{what}");
        }
    }
    // Where a health check is led astray, there is no server.
    let fields = format!("Location: http://{place}/api/version\r\n");
    let rogue = Rogue::answering(answer("302 Found", &fields, ""));
    let daemon = Daemon::start(&client_settings(&[rogue.address])).expect("started");
    eventually("three checks", || (rogue.asked().len() >= 3).then_some(()));
    assert!(!daemon.presence().is_up());
    let status = run(&["status", "--listen", &rogue.address.to_string()], &[]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    assert_eq!(trap.connections(), 0, "a redirect was followed: {:?}", trap.asked());
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    clear_environment(command.args(arguments)).envs(variables.iter().copied());
    command.output().expect("it runs")
}

#[test]
fn proxies_of_the_environment_see_nothing() {
    let trap = Rogue::answering(answer("200 OK", "", "trapped"));
    let urls = ["http", "socks5"].map(|scheme| format!("{scheme}://{}", trap.address));
    let names =
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    for url in &urls {
        let mut variables: Vec<(&str, &str)> = names.iter().map(|name| (*name, &**url)).collect();
        variables.extend([("NO_PROXY", ""), ("no_proxy", "")]);
        let fake = Ollama::with(&["m"]);
        let discovery = free_udp_port().to_string();
        let server = format!(
            "--mode server --listen 127.0.0.1:0 --discovery-port {discovery} --ollama {}",
            fake.address
        );
        let server = Process::with_env(&server, &variables);
        let client = format!(
            "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {}",
            server.address()
        );
        let client = Process::with_env(&client, &variables);
        assert_eq!(client.connect_ready().post("/api/chat", CHAT).status(), 200);
        let listen = client.address().to_string();
        for arguments in [
            &["status", "--listen", &listen][..],
            &["models", "--listen", &listen],
            &["discover", "--discovery-port", &discovery, "--interface", "none"],
        ] {
            let output = run(arguments, &variables);
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        }
    }
    assert_eq!(trap.connections(), 0, "the environment's proxy was asked: {:?}", trap.asked());
}

/// A server that health checks find well, and that sends everything else back to where it came
/// from. It gives up when that would go on for ever.
#[test]
fn a_loop_through_a_stranger_ends_after_one_round() {
    const MOST: usize = 20;
    let front: Arc<OnceLock<SocketAddr>> = Arc::default();
    let back = Arc::clone(&front);
    let rounds = std::sync::atomic::AtomicUsize::new(0);
    let rogue = Rogue::start(move |head, stream| {
        if let Some(checked) = healthy(head.target()) {
            return drop(stream.write_all(&checked));
        }
        if rounds.fetch_add(1, std::sync::atomic::Ordering::SeqCst) >= MOST {
            return drop(stream.write_all(&answer("200 OK", "", "went round and round")));
        }
        let mut client = Client::connect(*back.get().expect("the front"));
        client.send(&head.bytes);
        let came = client.answer_to(head.method());
        let cause = came.head.one("x-ollana-error").unwrap_or_default();
        let fields = format!("X-Ollana-Error: {cause}\r\n");
        let status = format!("{} Came back", came.status());
        drop(stream.write_all(&answer(&status, &fields, came.body)));
    });
    let chain = Chain {
        servers: Vec::new(),
        client: Some(start(&client_settings(&[rogue.address]))),
        way: crate::support::Way::OneHop,
    };
    front.set(chain.address()).expect("once");
    for (method, target) in [("GET", "/x"), ("POST", "/api/chat"), ("OPTIONS", "*")] {
        let before = rogue.asked().len();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nVia: 1.0 a\r\n\r\n");
        let answer = chain.connect().ask(head);
        assert_eq!(answer.status(), 508, "{method} {target}: {answer:?}");
        let asked = rogue.asked();
        let asked = asked[before..].iter().filter(|asked| *asked == target).count();
        assert_eq!(asked, 1, "{method} {target} went round {asked} times");
    }
    // The mark is found wherever it stands.
    let seen = Ollama::with(&["m"]);
    let daemon = start(&client_settings(&[seen.address]));
    Client::connect(daemon.addresses()[0]).get("/api/status");
    let via = seen.request(0).head.one("via").expect("our mark");
    for fields in [
        format!("Via: {via}\r\nVia: 1.1 other\r\n"),
        format!("Via: 1.1 other,{via} ,1.0 fred\r\n"),
        format!("X-Forwarded-For: 10.0.0.1\r\nvia:\t{via}\t\r\n"),
    ] {
        let mut client = Client::connect(daemon.addresses()[0]);
        let ask = post("/api/chat", "{}");
        let ask = String::from_utf8_lossy(&ask).replace("Host:", &format!("{fields}Host:"));
        assert_eq!(client.ask(ask).status(), 508, "{fields:?}");
    }
    assert_eq!(seen.count(), 1);
}
