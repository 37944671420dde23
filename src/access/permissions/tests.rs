use http::Method;

use super::*;
use crate::http::target::percent_decode;
use crate::ollama::endpoints::Endpoint;

const MACHINE: &str = "desktop";
const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB"];

fn class(method: &str, target: &str) -> Class {
    Endpoint::of(&Method::from_bytes(method.as_bytes()).expect("method"), target).class
}

fn lan(manage: bool, pull: bool, class: Class) -> Verdict {
    Policy { manage, pull, cloud: true }.judge(Caller::Lan, class)
}

/// Every route that Ollama has or had (`GenerateRoutes`).
const OLLAMA: &[(&str, &str, Class)] = &[
    ("HEAD", "/", Class::Open),
    ("GET", "/", Class::Open),
    ("HEAD", "/api/version", Class::Open),
    ("GET", "/api/version", Class::Open),
    ("GET", "/api/status", Class::Open),
    ("HEAD", "/api/tags", Class::Open),
    ("GET", "/api/tags", Class::Open),
    ("GET", "/api/ps", Class::Open),
    ("POST", "/api/show", Class::Open),
    ("POST", "/api/generate", Class::Open),
    ("POST", "/api/chat", Class::Open),
    ("POST", "/api/embed", Class::Open),
    ("POST", "/api/embeddings", Class::Open),
    ("POST", "/v1/chat/completions", Class::Open),
    ("POST", "/v1/completions", Class::Open),
    ("POST", "/v1/embeddings", Class::Open),
    ("GET", "/v1/models", Class::Open),
    ("GET", "/v1/models/llama3.2:1b", Class::Open),
    ("GET", "/v1/models/llama3.2%3A1b", Class::Open),
    ("POST", "/v1/responses", Class::Open),
    ("POST", "/v1/audio/transcriptions", Class::Open),
    ("POST", "/v1/images/generations", Class::Open),
    ("POST", "/v1/images/edits", Class::Open),
    ("POST", "/v1/messages", Class::Open),
    ("POST", "/v1/messages/count_tokens", Class::Open),
    ("POST", "/v1/responses/input_tokens", Class::Open),
    ("POST", "/v1/chat/completions/input_tokens", Class::Open),
    ("POST", "/api/pull", Class::Pull),
    ("POST", "/api/push", Class::Manage),
    ("DELETE", "/api/delete", Class::Manage),
    ("POST", "/api/create", Class::Manage),
    ("POST", "/api/copy", Class::Manage),
    ("POST", "/api/blobs/sha256:00", Class::Manage),
    ("POST", "/api/blobs/sha256%3a00", Class::Manage),
    ("HEAD", "/api/blobs/sha256:00", Class::Manage),
    ("POST", "/api/me", Class::Whoami),
    ("GET", "/api/usage", Class::Account),
    ("POST", "/api/signout", Class::Account),
    ("DELETE", "/api/user/keys/c3No", Class::Account),
    ("POST", "/api/experimental/web_search", Class::Account),
    ("POST", "/api/experimental/web_fetch", Class::Account),
    ("GET", "/api/experimental/model-recommendations", Class::Account),
    ("GET", "/api/experimental/aliases", Class::Account),
    ("POST", "/api/experimental/aliases", Class::Account),
    ("DELETE", "/api/experimental/aliases", Class::Account),
    ("GET", "/api/codex/_health", Class::Local),
    ("POST", "/api/codex/v1/responses", Class::Local),
];

#[test]
fn every_route_of_ollama_has_its_class() {
    for (method, path, want) in OLLAMA {
        assert_eq!(class(method, path), *want, "{method} {path}");
        assert_eq!(class(method, &format!("{path}?a=b/../c&%zz")), *want, "{method} {path}?…");
    }
}

#[test]
fn other_methods_of_a_known_path_are_unknown() {
    for (_, path, _) in OLLAMA {
        for method in METHODS {
            let known = OLLAMA.iter().any(|(m, p, _)| (m, p) == (method, path));
            let has_class = class(method, path) != Class::Unknown;
            let is_param = path.contains("/blobs/")
                || ["/api/experimental/", "/api/codex/"].iter().any(|it| path.starts_with(it));
            assert!(has_class == known || is_param, "{method} {path}");
            assert!(known || class(method, path) != Class::Open, "{method} {path}");
        }
    }
    assert_eq!(class("OPTIONS", "*"), Class::Open);
    assert_eq!(class("OPTIONS", "/api/nosuch"), Class::Unknown);
    assert_eq!(class("get", "/api/tags"), Class::Unknown, "methods have a case");
}

/// Ways to write a path that some router on the way may take for another.
fn respellings(path: &str) -> Vec<String> {
    let mut all = Vec::new();
    for at in 1..=path.len() {
        if path.is_char_boundary(at) {
            let (before, after) = path.split_at(at);
            for inserted in [
                "/", "//", "/.", "/./", "/../", "%2f", "%2F", "%00", "%", "%2", ";", "\\", "%5c",
                ".", "%20", "+",
            ] {
                all.push(format!("{before}{inserted}{after}"));
            }
            let last = before.as_bytes()[at - 1];
            for escaped in
                [format!("%{last:02x}"), format!("%{last:02X}"), format!("%25{last:02x}")]
            {
                all.push(format!("{}{escaped}{after}", &before[..at - 1]));
            }
            let swapped = char::from(last);
            if swapped.is_ascii_lowercase() {
                let upper = swapped.to_ascii_uppercase();
                all.push(format!("{}{upper}{after}", &before[..at - 1]));
            }
        }
    }
    for prefix in [
        "/",
        "//",
        "/.",
        "/..",
        "/x/..",
        "/v1/..",
        "/api/..",
        "/v1/models/..",
        "/v1/models/x/../..",
        "/%2e%2e",
        "/api/blobs/../..",
    ] {
        all.push(format!("{prefix}{path}"));
    }
    all.push(format!("{path}/"));
    all.push(format!("{path}/."));
    all.push(format!("{path}/.."));
    all.push(format!("{path}#x"));
    all
}

/// What Go makes of a path before its router looks at it: it is decoded, then cleaned.
fn as_go_sees(path: &str) -> Option<String> {
    let decoded = String::from_utf8_lossy(&percent_decode(path)?).into_owned();
    let mut parts: Vec<&str> = Vec::new();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[test]
fn no_other_spelling_of_a_closed_path_is_open() {
    let closed = OLLAMA.iter().filter(|(_, _, class)| *class != Class::Open);
    let mut tried = 0;
    for (method, path, _) in closed {
        for other in respellings(path) {
            tried += 1;
            let opens = lan(false, false, class(method, &other)) == Verdict::Pass;
            assert!(!opens, "{method} {other}");
            // With what the owner opened, accounts and what nobody knows stay closed.
            let want = class(method, path);
            if matches!(want, Class::Whoami | Class::Account) {
                let verdict = lan(true, true, class(method, &other));
                assert!(matches!(verdict, Verdict::Refuse(_)), "{method} {other}");
            }
        }
    }
    assert!(tried > 5000, "{tried} spellings");
}

#[test]
fn what_is_open_means_to_go_what_it_means_here() {
    let mut open = 0;
    for (method, path, _) in OLLAMA {
        for other in respellings(path) {
            for method in [method, "GET", "POST", "DELETE", "HEAD"] {
                let here = class(method, &other);
                if matches!(here, Class::Local | Class::Unknown) {
                    continue;
                }
                open += 1;
                let there = other.split(['?', '#']).next().and_then(as_go_sees).expect(&other);
                let reached = OLLAMA
                    .iter()
                    .find(|(m, p, _)| *m == method && *p == there)
                    .map_or(here, |(_, _, class)| *class);
                assert_eq!(here, reached, "{method} {other} is {there} to Go");
            }
        }
    }
    assert!(open > 100, "{open} known spellings");
}

#[test]
fn parameters_are_one_segment() {
    for (method, path) in [
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/a/b"),
        ("GET", "/v1/models/a%2fb"),
        ("GET", "/v1/models/.."),
        ("GET", "/v1/models/%2e%2e"),
        ("GET", "/v1/models/%2E."),
        ("GET", "/v1/models/."),
        ("GET", "/v1/models/a%00"),
        ("GET", "/v1/models/a%0a"),
        ("GET", "/v1/models/a%5c"),
        ("GET", "/v1/models/a%"),
        ("GET", "/v1/models/a%+1"),
        ("GET", "/v1/models/a%zz"),
        ("HEAD", "/api/blobs/"),
        ("POST", "/api/blobs/../delete"),
        ("POST", "/api/blobs/x/y"),
        ("DELETE", "/api/user/keys/"),
        ("DELETE", "/api/user/keys/a/b"),
        ("GET", "/debug/pprof/heap"),
        ("GET", "/metrics"),
        ("POST", "/api"),
        ("POST", "/api/"),
        ("POST", ""),
        ("GET", "*"),
    ] {
        assert_eq!(class(method, path), Class::Unknown, "{method} {path}");
    }
}

#[test]
fn verdicts() {
    use Class::{Account, Local, Manage, Open, Pull, Unknown};
    for caller in [Caller::Paired, Caller::Token, Caller::Lan] {
        let all = Policy { manage: true, pull: true, cloud: true };
        let verdict = all.judge(caller, Local);
        assert_eq!(verdict, Verdict::Refuse(Refusal::Unknown), "{caller:?}");
    }
    assert_eq!(Policy::default().judge(Caller::Own, Local), Verdict::Pass);
    for class in [Open, Manage, Pull, Account, Unknown] {
        for policy in [Policy::default(), Policy { manage: true, pull: true, cloud: false }] {
            assert_eq!(policy.judge(Caller::Own, class), Verdict::Pass, "{class:?}");
            assert_eq!(policy.judge(Caller::Paired, class), Verdict::Pass, "{class:?}");
        }
    }
    let table = [
        // manage, pull: Open, Manage, Pull, Account, Unknown
        ((false, false), "pass manage pull account unknown"),
        ((false, true), "pass manage from-registry account unknown"),
        ((true, false), "pass pass pass account unknown"),
        ((true, true), "pass pass pass account unknown"),
    ];
    for ((manage, pull), want) in table {
        let words = [Open, Manage, Pull, Account, Unknown].map(|c| match lan(manage, pull, c) {
            Verdict::Pass => "pass",
            Verdict::PassFromRegistry => "from-registry",
            Verdict::Refuse(Refusal::Manage) => "manage",
            Verdict::Refuse(Refusal::Pull) => "pull",
            Verdict::Refuse(Refusal::Registry) => "registry",
            Verdict::Refuse(Refusal::Cloud) => "cloud",
            Verdict::Refuse(Refusal::Account) => "account",
            Verdict::Refuse(Refusal::Unknown) => "unknown",
            Verdict::Refuse(Refusal::Token) => "token",
        });
        assert_eq!(words.join(" "), want, "manage={manage} pull={pull}");
    }
}

#[test]
fn permissions_agree_with_the_verdicts() {
    for (manage, pull) in [(false, false), (false, true), (true, false), (true, true)] {
        let policy = Policy { manage, pull, cloud: true };
        for caller in [Caller::Own, Caller::Paired, Caller::Token, Caller::Lan] {
            let permission = policy.permission(caller);
            assert_eq!(Permission::of_word(permission.word()), Some(permission));
            for class in [Class::Open, Class::Manage, Class::Pull] {
                let passes = |verdict| match verdict {
                    Verdict::Pass => true,
                    Verdict::PassFromRegistry => true,
                    Verdict::Refuse(_) => false,
                };
                let fits = permission >= needed(class, Some("llama3.2"));
                assert_eq!(
                    fits,
                    passes(policy.judge(caller, class)),
                    "{policy:?} {caller:?} {class:?}"
                );
            }
        }
    }
    assert_eq!(needed(Class::Pull, Some("hf.co/a/b")), Permission::Manage);
    assert_eq!(needed(Class::Pull, None), Permission::Manage);
}

#[test]
fn callers() {
    let of = |peer: &str, local: &str| Caller::of(peer.parse().expect(peer), local.parse().ok());
    for (peer, local) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.9.9.9", ""),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("192.168.1.5", "192.168.1.5"),
        ("::ffff:192.168.1.5", "192.168.1.5"),
        ("fe80::1", "fe80::1"),
    ] {
        assert_eq!(of(peer, local), Caller::Own, "{peer} at {local}");
    }
    for (peer, local) in [
        ("192.168.1.6", "192.168.1.5"),
        ("192.168.1.6", ""),
        ("fe80::2", "fe80::1"),
        ("0.0.0.0", "127.0.0.1"),
        ("8.8.8.8", "192.168.1.5"),
        ("::ffff:192.168.1.6", "192.168.1.5"),
    ] {
        assert_eq!(of(peer, local), Caller::Lan, "{peer} at {local}");
    }
}

#[test]
fn messages_name_the_machine_and_the_flag() {
    for (refusal, flag) in [
        (Refusal::Manage, "--manage on"),
        (Refusal::Pull, "--pull on"),
        (Refusal::Registry, "--manage on"),
        (Refusal::Token, "on desktop itself"),
        (Refusal::Account, "on desktop itself"),
        (Refusal::Unknown, "on desktop itself"),
    ] {
        let message = refusal.message(MACHINE);
        assert!(message.contains(MACHINE) && message.contains(flag), "{message}");
        assert!(message.len() < 240, "{message}");
    }
}
