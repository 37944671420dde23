//! What Ollama says before any of its handlers runs: that it is running, where a path is spelled
//! otherwise, which paths and methods there are. Other machines' part of it is in
//! `threats::machines`.

use std::net::SocketAddr;
use std::sync::Arc;

use ollana::serve::Daemon;

use crate::support::{
    Answer, Call, Chain, Client, End, Ollama, REDIRECTS, Way, client_settings, eventually,
    lan_address, request, server_settings, start, wire,
};

fn ask(address: SocketAddr, method: &str, target: &str, host: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.answer_to(method)
}

/// The official CLI begins with it, and prints no error's text until it has heard this.
fn assert_greets(client: &mut Client, what: &str) {
    for method in ["HEAD", "GET"] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: 127.0.0.1:11434\r\n\r\n"));
        let answer = client.answer_to(method);
        assert_eq!((answer.status(), answer.end), (200, End::Whole), "{what}: {answer:?}");
        let one = |name| answer.head.one(name);
        assert_eq!(one("content-type").as_deref(), Some("text/plain; charset=utf-8"), "{what}");
        assert_eq!(one("content-length").as_deref(), Some("17"), "{what}");
        let body = if method == "GET" { "Ollama is running" } else { "" };
        assert_eq!(answer.text(), body, "{what}");
    }
}

/// `ollama run`: HEAD /, then show, whose error it prints.
fn assert_says_why(address: SocketAddr, what: &str) {
    let client = &mut Client::connect(address);
    assert_greets(client, what);
    client.send(request("POST", "/api/show", r#"{"model":"alpha"}"#));
    let answer = client.answer_to("POST");
    assert!(matches!(answer.status(), 502 | 503), "{what}: {answer:?}");
    assert!(answer.json()["error"].is_string(), "{what}: {answer:?}");
}

#[test]
fn a_client_greets_with_and_without_servers() {
    let alone = Daemon::start(&client_settings(&[])).expect("a daemon");
    assert_says_why(alone.addresses()[0], "no server");
    for way in Way::ALL.into_iter().filter(|way| way.hops() == 2) {
        let mut ollama = Ollama::with(&["alpha"]);
        let mut chain = way.to(&ollama);
        assert_greets(&mut chain.connect(), "a server");
        ollama.kill();
        // The client's proxy may not know yet.
        assert_says_why(chain.address(), "a server whose Ollama has just gone");
        eventually("the client to know", || (!chain.front().presence().is_up()).then_some(()));
        assert_says_why(chain.address(), "a server without Ollama");
        chain.servers.clear();
        assert_says_why(chain.address(), "a server that has gone");
    }
    let mut ollama = Ollama::with(&["alpha"]);
    let chain = Chain::direct(&[&ollama], |_| {});
    assert_greets(&mut chain.connect(), "an Ollama");
    ollama.kill();
    assert_says_why(chain.address(), "an Ollama that has gone");
}

#[test]
fn other_spellings_of_a_path_are_redirected() {
    let assert_redirects = |address, what: &str| {
        for (method, target, status, location) in REDIRECTS {
            let answer = ask(address, method, target, "127.0.0.1");
            let what = format!("{what} {method} {target}: {answer:?}");
            assert_eq!((answer.status(), answer.end), (*status, End::Whole), "{what}");
            assert_eq!(answer.head.one("location").as_deref(), Some(*location), "{what}");
        }
    };
    for way in Way::ALL {
        let ollama = Ollama::with(&["alpha"]);
        let chain = way.to(&ollama);
        assert_redirects(chain.address(), &format!("{way:?}"));
        assert_eq!(ollama.count(), 0, "{way:?}");
    }
    let alone = Daemon::start(&client_settings(&[])).expect("a daemon");
    assert_redirects(alone.addresses()[0], "no server");
}

/// A newer Ollama has more than we know, and this machine's programs may use it.
#[test]
fn this_machines_programs_hear_from_ollama_which_paths_it_has() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["alpha"]);
        let chain = way.to(&ollama);
        for (method, target, status, allow) in [
            ("GET", "/api/nosuch", 404, None),
            ("GET", "/v1/nosuch", 404, None),
            ("GET", "//evil.example/x", 301, None),
            ("GET", "/api/chat", 405, Some("POST")),
            ("PUT", "/api/tags", 405, Some("HEAD, GET")),
            ("HEAD", "/api/ps", 405, Some("GET")),
        ] {
            let answer = ask(chain.address(), method, target, "127.0.0.1");
            assert_eq!(answer.status(), status, "{way:?} {method} {target}: {answer:?}");
            assert_eq!(answer.head.one("allow").as_deref(), allow, "{way:?} {method} {target}");
            let moved = answer.head.one("location");
            assert!(moved.is_none_or(|to| to == "/evil.example/x"), "{way:?} {target}");
        }
        ollama.change(|world| {
            let new = |call: &mut Call<'_>| call.answer("200 OK", "text/plain", "new");
            world.script.insert("/api/new".to_owned(), Arc::new(new));
        });
        assert_eq!(ask(chain.address(), "GET", "/api/new", "127.0.0.1").text(), "new", "{way:?}");
    }
}

/// A program asks its machine's proxy, which asks another machine's.
#[test]
fn programs_hear_which_paths_another_machine_has_for_them() {
    if lan_address().is_none() {
        return;
    }
    let ollama = Ollama::with(&["alpha"]);
    let server = start(&server_settings(ollama.address));
    let client = start(&client_settings(&[wire(server.addresses()[0]).expect("a wire")]));
    let at = client.addresses()[0];
    for (method, target, status, allow) in [
        ("GET", "/api/nosuch", 404, None),
        ("GET", "/v1/nosuch", 404, None),
        ("POST", "/v1/messages/batches", 404, None),
        ("GET", "/nosuch", 404, None),
        ("GET", "/api/chat", 405, Some("POST")),
        ("GET", "/v1/messages", 405, Some("POST")),
        ("PUT", "/api/tags", 405, Some("HEAD, GET")),
        ("HEAD", "/api/ps", 405, Some("GET")),
        ("OPTIONS", "/api/chat", 405, Some("POST")),
        ("POST", "/api/signout", 403, None),
        ("DELETE", "/api/user/keys/x", 403, None),
        ("DELETE", "/api/delete", 403, None),
        ("POST", "/api/create", 403, None),
    ] {
        let answer = ask(at, method, target, "127.0.0.1");
        let what = format!("{method} {target}: {answer:?}");
        assert_eq!((answer.status(), answer.end), (status, End::Whole), "{what}");
        assert_eq!(answer.head.one("allow").as_deref(), allow, "{what}");
        let text = match status {
            404 => "404 page not found",
            405 => "405 method not allowed",
            _ => "",
        };
        assert!(method == "HEAD" || answer.text().contains(text), "{what}");
        if method != "HEAD" && target != "/nosuch" {
            let json = answer.json();
            let message = json["error"]["message"].as_str().or(json["error"].as_str());
            assert!(message.is_some(), "{what}");
            let is_anthropic = target.starts_with("/v1/messages");
            assert_eq!(json["error"].is_object(), target.starts_with("/v1/"), "{what}");
            assert_eq!(json["type"] == "error", is_anthropic, "{what}");
        }
    }
    for (method, target, status, location) in REDIRECTS {
        let answer = ask(at, method, target, "127.0.0.1");
        assert_eq!(answer.status(), *status, "{method} {target}: {answer:?}");
        assert_eq!(answer.head.one("location").as_deref(), Some(*location), "{target}");
    }
    assert_eq!(ollama.served(), []);
}

#[test]
fn options_without_an_origin_are_answered_as_ollama_does() {
    for way in Way::ALL {
        let ollama = Ollama::with(&["alpha"]);
        let chain = way.to(&ollama);
        for host in ["localhost", "localhost:11434", "LOCALHOST", "x.localhost", "pi.local", ""] {
            for target in ["/", "/api/chat", "/v1/models", "/nothing"] {
                let answer = ask(chain.address(), "OPTIONS", target, host);
                let what = format!("{way:?} {host} {target}: {answer:?}");
                assert_eq!((answer.status(), answer.end), (204, End::Whole), "{what}");
                assert!(
                    answer.body.is_empty() && answer.head.one("content-length").is_none(),
                    "{what}"
                );
                assert!(answer.head.one("access-control-allow-origin").is_none(), "{what}");
            }
        }
        assert_eq!(ollama.count(), 0, "{way:?}");
        for (target, status) in [("/api/chat", 405), ("/nothing", 404)] {
            let answer = ask(chain.address(), "OPTIONS", target, "127.0.0.1:11434");
            assert_eq!(answer.status(), status, "{way:?} {target}: {answer:?}");
        }
    }
    let alone = Daemon::start(&client_settings(&[])).expect("a daemon");
    assert_eq!(ask(alone.addresses()[0], "OPTIONS", "/api/chat", "localhost").status(), 204);
}
