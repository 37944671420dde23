//! Web pages: which may use Ollama, who decides, and what their browsers are told.

mod support;

use std::net::SocketAddr;

use ollana::access::cors::Origins;
use ollana::config::Settings;
use support::{
    Answer, Chain, Client, Fake, Ollama, Process, Way, client_settings, server_settings, start,
};

const LOCAL: &str = "http://localhost:3000";
const EVIL: &str = "http://evil.example";

/// A fake that answers as an Ollama that lets every page in.
fn generous() -> Fake {
    Fake::unlike_ollama(|call| {
        call.read_body();
        call.send(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVary: Accept\r\n\
             Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n\r\nok",
        );
    })
}

fn ask(address: SocketAddr, method: &str, target: &str, fields: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n"));
    client.answer_to(method)
}

/// Requests at the fake besides health checks.
fn asked(fake: &Fake) -> usize {
    fake.count()
}

fn allowing(origins: &'static str) -> impl Fn(&mut Settings) {
    move |settings| settings.origins = Origins::new(origins).0
}

#[test]
fn a_known_page_gets_its_cors_fields_once_and_ollama_sees_no_page() {
    for way in Way::ALL {
        let fake = generous();
        let chain = way.to(&fake);
        let fields =
            format!("Origin: {LOCAL}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n");
        let answer = ask(chain.address(), "GET", "/x", &fields);
        assert_eq!(answer.status(), 200, "{way:?} {answer:?}");
        assert_eq!(answer.head.all("access-control-allow-origin"), [LOCAL], "{way:?}");
        assert_eq!(answer.head.all("vary"), ["Accept", "Origin"], "{way:?}");
        assert!(!answer.head.has("access-control-allow-credentials"), "{way:?}");
        let request = fake.request(0);
        for field in ["origin", "sec-fetch-site", "sec-fetch-mode"] {
            assert!(!request.head.has(field), "{way:?} {field}: {request:?}");
        }
        // Without a page, an answer stays as it is.
        let answer = ask(chain.address(), "GET", "/x", "");
        assert_eq!(answer.head.all("access-control-allow-origin"), ["*"], "{way:?}");
        assert_eq!(answer.head.all("vary"), ["Accept"], "{way:?}");
    }
}

#[test]
fn foreign_pages_are_refused_before_ollama_hears_of_them() {
    for way in Way::ALL {
        let fake = generous();
        let chain = way.to(&fake);
        let own = format!("http://{}", chain.address());
        for (method, fields, status) in [
            ("GET", format!("Origin: {EVIL}\r\n"), 403),
            ("POST", format!("Origin: {EVIL}\r\nContent-Length: 0\r\n"), 403),
            ("OPTIONS", format!("Origin: {EVIL}\r\nAccess-Control-Request-Method: POST\r\n"), 403),
            ("GET", "Origin: null\r\n".to_owned(), 403),
            ("GET", "Sec-Fetch-Site: cross-site\r\n".to_owned(), 403),
            ("HEAD", "Sec-Fetch-Site: cross-site\r\n".to_owned(), 403),
            ("GET", format!("Origin: {LOCAL}\r\nOrigin: {EVIL}\r\n"), 403),
            ("GET", format!("Origin: {own}\r\nSec-Fetch-Site: same-origin\r\n"), 200),
            ("GET", "Sec-Fetch-Site: none\r\n".to_owned(), 200),
        ] {
            let before = asked(&fake);
            let answer = ask(chain.address(), method, "/x", &fields);
            assert_eq!(answer.status(), status, "{way:?} {method} {fields:?} {answer:?}");
            let heard = usize::from(status == 200);
            assert_eq!(asked(&fake), before + heard, "{way:?} {method} {fields:?}");
            if status == 403 {
                assert_eq!(answer.head.one("x-ollana-error").as_deref(), Some("origin"));
                assert!(!answer.head.has("access-control-allow-origin"), "{way:?} {fields:?}");
            }
        }
    }
}

#[test]
fn preflights_are_answered_where_they_arrive() {
    for way in Way::ALL {
        let fake = generous();
        let chain = way.to(&fake);
        let fields = format!(
            "Origin: {LOCAL}\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: content-type\r\n"
        );
        for target in ["/api/chat", "/nosuch"] {
            let answer = ask(chain.address(), "OPTIONS", target, &fields);
            assert_eq!((answer.status(), answer.text().as_str()), (204, ""), "{way:?} {answer:?}");
            assert!(!answer.head.has("content-length"), "{way:?} {answer:?}");
            let one = |name: &str| answer.head.all(name);
            assert_eq!(one("access-control-allow-origin"), [LOCAL]);
            assert_eq!(
                one("access-control-allow-methods"),
                ["GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"]
            );
            assert_eq!(one("access-control-max-age"), ["43200"]);
            assert_eq!(one("vary").len(), 3, "{answer:?}");
        }
        assert_eq!(asked(&fake), 0, "{way:?}");
        // Without an origin it is an ordinary request.
        assert_eq!(ask(chain.address(), "OPTIONS", "/x", "").status(), 200, "{way:?}");
        assert_eq!(asked(&fake), 1, "{way:?}");
    }
}

/// The page runs beside the first proxy, whose user says what it may; no other hop is asked again.
#[test]
fn the_first_proxy_decides() {
    let fake = generous();
    let fields = format!("Origin: {EVIL}\r\nSec-Fetch-Site: cross-site\r\n");
    for (client_allows, server_allows, want) in [
        (EVIL, "", 200),
        ("*", "", 200),
        ("http://*.example", "", 200),
        ("", EVIL, 403),
        ("", "*", 403),
    ] {
        let mut settings = server_settings(fake.address);
        allowing(server_allows)(&mut settings);
        let server = start(&settings);
        let mut settings = client_settings(&server.addresses());
        allowing(client_allows)(&mut settings);
        let client = start(&settings);
        let answer = ask(client.addresses()[0], "GET", "/x", &fields);
        assert_eq!(answer.status(), want, "client {client_allows:?} server {server_allows:?}");
        if want == 200 {
            let origin = if client_allows == "*" { "*" } else { EVIL };
            assert_eq!(answer.head.all("access-control-allow-origin"), [origin]);
        }
        let at_server = ask(server.addresses()[0], "GET", "/x", &fields).status();
        assert_eq!(at_server, if server_allows.is_empty() { 403 } else { 200 });
    }
}

/// A page has to be able to read why it got nothing.
#[test]
fn our_own_answers_have_the_fields_too() {
    let mut fake = generous();
    let chain = Way::OneHop.to(&fake);
    fake.kill();
    let answer = ask(chain.address(), "GET", "/api/tags", &format!("Origin: {LOCAL}\r\n"));
    assert!(matches!(answer.status(), 502 | 503), "{answer:?}");
    assert_eq!(answer.head.all("access-control-allow-origin"), [LOCAL]);
    let one = Ollama::with(&["m"]);
    let other = Ollama::with(&["m"]);
    let chain = Chain::start(Way::TwoHops, &[&one, &other], |_| {});
    let answer = ask(chain.address(), "GET", "/api/tags", &format!("Origin: {LOCAL}\r\n"));
    assert_eq!(answer.head.all("access-control-allow-origin"), [LOCAL], "{answer:?}");
}

#[test]
fn the_variable_is_ollamas() {
    let fake = generous();
    let arguments =
        format!("--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {}", fake.address);
    let process =
        Process::with_env(&arguments, &[("OLLAMA_ORIGINS", "http://*.good.example,nonsense")]);
    let _ = process.connect_ready();
    let of = |origin: &str| ask(process.address(), "GET", "/x", &format!("Origin: {origin}\r\n"));
    assert_eq!(of("http://a.good.example").status(), 200);
    assert_eq!(of(LOCAL).status(), 200);
    assert_eq!(of(EVIL).status(), 403);
    process.line("\"nonsense\" ignored");
}
