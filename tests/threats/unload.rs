//! Who can take models out of memory with the path that the page has for it.

#[cfg(target_os = "linux")]
use super::machines::{LAN, SERVER, Server, is_inside};
use crate::support::{Answer, Chain, Client, Ollama, Way, World, eventually};

fn unload(mut client: Client, method: &str, target: &str, fields: &str) -> Answer {
    client.send(format!("{method} {target} HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n"));
    client.answer_to(method)
}

/// An Ollama with a model in memory, and the path that takes it out of there.
fn loaded(way: Way) -> (Ollama, Chain, String) {
    let fake = Ollama::start(World { loaded: vec!["m".to_owned()], ..World::with(&["m"]) });
    let chain = way.to(&fake);
    let mut looking = chain.connect();
    let id = eventually("the model to be known as loaded", || {
        let state = looking.get("/ollana/status").json();
        let server = &state["servers"][0];
        (server["models"][0]["loaded"] == true).then(|| server["id"].clone())
    });
    (fake, chain, format!("/ollana/unload?server={id}&model=m"))
}

#[test]
fn only_our_page_unloads_models() {
    for way in Way::ALL {
        let (fake, chain, path) = loaded(way);
        let host = chain.address();
        let page = chain.connect().get("/ollana/");
        let token = page.page_token();
        assert_eq!(token.len(), 32, "{token}");
        assert_eq!(chain.connect().get("/ollana/").page_token(), token, "of this start");
        let ours =
            format!("Host: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n");
        let shown = format!("X-Ollana-Token: {token}\r\n");
        let (mut wrong, last) = (token.clone(), token.ends_with('0'));
        wrong.replace_range(31.., if last { "1" } else { "0" });
        let with = |fields: &str| format!("Host: {host}\r\n{fields}{shown}");
        for (method, fields, status) in [
            ("POST", ours.clone(), 403),
            ("POST", format!("{ours}X-Ollana-Token: \r\n"), 403),
            ("POST", format!("{ours}X-Ollana-Token: {wrong}\r\n"), 403),
            ("POST", format!("{ours}X-Ollana-Token: {}\r\n", &token[1..]), 403),
            ("POST", format!("{ours}X-Ollana-Token: {token}0\r\n"), 403),
            ("POST", format!("{ours}Cookie: token={token}\r\n"), 403),
            ("POST", with("Origin: http://evil.example\r\n"), 403),
            ("POST", with("Origin: null\r\n"), 403),
            ("POST", with("Origin: http://localhost:3000\r\n"), 403),
            ("POST", with(&format!("Origin: http://{host}\r\nOrigin: null\r\n")), 403),
            ("POST", with("Sec-Fetch-Site: cross-site\r\n"), 403),
            ("POST", with("Sec-Fetch-Site: same-site\r\n"), 403),
            ("POST", with("Sec-Fetch-Site: none\r\n"), 403),
            ("POST", format!("Host: evil.example\r\n{shown}"), 403),
            ("POST", format!("Host: \r\nOrigin: http://\r\n{shown}"), 403),
            ("GET", format!("{ours}{shown}"), 405),
            ("PUT", format!("{ours}{shown}"), 405),
            ("DELETE", format!("{ours}{shown}"), 405),
            ("OPTIONS", with("Origin: http://evil.example\r\n"), 403),
        ] {
            let answer = unload(chain.connect(), method, &path, &fields);
            assert_eq!(answer.status(), status, "{way:?} {method} {fields}: {answer:?}");
            assert!(!answer.head.has("access-control-allow-origin"), "{way:?} {method} {fields}");
            if status == 405 {
                assert_eq!(answer.head.one("allow").as_deref(), Some("POST"), "{answer:?}");
            }
        }
        assert_eq!(fake.served(), [], "{way:?}: none of it reached the Ollama");
        let answer = unload(chain.connect(), "POST", &path, &format!("{ours}{shown}"));
        assert_eq!(answer.status(), 200, "{way:?}: {answer:?}");
        assert_eq!(fake.served().len(), 1, "{way:?}");
    }
}

/// Not even who may see the page, with the token of somebody who may.
#[cfg(target_os = "linux")]
#[test]
fn no_other_machine_unloads_models() {
    if !is_inside("unload::no_other_machine_unloads_models") {
        return;
    }
    let see = "--status-from 10.80.0.0/24 --status-from fd80::/64";
    let server = Server::start(&format!("--discovery-port 0 {see}"));
    let token = server.connect(SERVER[0]).get("/ollana/").page_token();
    assert_eq!(token.len(), 32, "{token}");
    let reached = server.reached();
    for from in LAN {
        let page = server.connect(from).get("/ollana/");
        assert_eq!((page.status(), page.page_token().as_str()), (200, ""), "{from}");
        let fields = format!("Host: gpu.local\r\nX-Ollana-Token: {token}\r\n");
        let answer =
            unload(server.connect(from), "POST", "/ollana/unload?server=0&model=m", &fields);
        assert_eq!(answer.status(), 403, "{from}: {answer:?}");
    }
    assert_eq!(server.reached(), reached);
}
