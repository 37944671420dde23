//! What a web page in a browser of this machine or of the LAN may try.

use crate::support::{Answer, Chain, Fake, MODEL, Ollama, Way, host_name};

const EVIL: &str = "http://evil.example";

/// Names that lead a browser here although they aren't ours, and spellings that could be taken for
/// one of ours.
const FOREIGN: &[&str] = &[
    "evil.example",
    "evil.example:11434",
    "evil.example.",
    "EVIL.EXAMPLE",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io",
    "localtest.me",
    "xlocalhost",
    "localhost.localdomain",
    "evil-local",
    "local",
    "gpu.example.com.evil.example",
    "xgpu.example.com",
    "localhost@evil.example",
    "evil.example@localhost",
    "user:password@localhost",
    "localhost, evil.example",
    "localhost evil.example",
    "localhost;evil.example",
    "evil.example#.local",
    "evil.example/.local",
    "evil.example?.local",
    "evil.example\\.local",
    "evil.example%00.local",
    "localhost:11434:evil.example",
    "localhost:x",
    "[::1",
    "[::1]evil.example",
    "[::1]:80:80",
    "[evil.example]",
    "2130706433",
    "0x7f.1",
    "0x7f000001",
    "127.1",
    "0177.0.0.1",
    "127.0.0.1.1",
    "loc\u{430}lhost",
    "\u{ff11}27.0.0.1",
    "\u{b2}130706433",
];

/// Ours, in every spelling; those of mDNS, which no page of the internet can have; and any address,
/// because a name is what is rebound.
const OURS: &[&str] = &[
    "",
    "localhost",
    "localhost:1",
    "LocalHost.",
    "127.0.0.1:11434",
    "192.168.1.20",
    "[::1]:11434",
    "[::ffff:127.0.0.1]",
    "[fe80::1%25eth0]",
    "pi.local",
    "evil.local",
    "x.localhost",
    "gpu.internal",
    "GPU.Example.Com.:11435",
];

#[test]
fn a_rebound_name_reaches_no_ollama() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.with(&fake, |settings| settings.hosts.push("gpu.example.com".to_owned()));
        for host in FOREIGN {
            for version in ["1.0", "1.1"] {
                let head = format!("GET {MODEL} HTTP/{version}\r\nHost: {host}\r\n\r\n");
                let answer = chain.connect().ask(head);
                assert!(matches!(answer.status(), 400 | 403), "{way:?} {host}: {answer:?}");
                assert!(!answer.head.has("access-control-allow-origin"), "{way:?} {host}");
            }
        }
        // Neither behind a request that was in order, nor by what other fields say.
        let mut client = chain.connect();
        assert_eq!(client.get("/ollana/health").status(), 200);
        let head = "DELETE /api/delete HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://localhost\r\n\
                    X-Forwarded-Host: localhost\r\nForwarded: host=localhost\r\n\r\n";
        assert_eq!(client.ask(head).head.one("x-ollana-error").as_deref(), Some("host"));
        assert_eq!(fake.count(), 0, "{way:?}: a foreign name reached the Ollama");
        let own = host_name().to_uppercase();
        for host in OURS.iter().copied().chain([&*own]) {
            let answer =
                chain.connect().ask(format!("GET {MODEL} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(answer.status(), 200, "{way:?} {host}: {answer:?}");
        }
    }
}

fn ask(chain: &Chain, method: &str, target: &str, fields: &str, body: &str) -> Answer {
    let length = body.len();
    let mut client = chain.connect();
    client.send(format!(
        "{method} {target} HTTP/1.1\r\nHost: {}\r\n{fields}Content-Length: {length}\r\n\r\n{body}",
        chain.address()
    ));
    client.answer_to(method)
}

/// Requests for which a browser asks nobody first, and those for which it would: pages that send
/// them don't need to read the answer.
#[test]
fn a_page_of_another_site_changes_nothing() {
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
    let plain = format!("Origin: {EVIL}\r\nContent-Type: text/plain\r\n");
    let form = format!("Origin: {EVIL}\r\nContent-Type: application/x-www-form-urlencoded\r\n");
    let parts = format!("Origin: {EVIL}\r\nContent-Type: multipart/form-data; boundary=x\r\n");
    let sandboxed = "Origin: null\r\nContent-Type: text/plain\r\n";
    let foreign = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n";
    let site = format!("Origin: {EVIL}\r\n{foreign}");
    let preflight = format!("Origin: {EVIL}\r\nAccess-Control-Request-Method: DELETE\r\n");
    let socket = format!(
        "Origin: {EVIL}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    let mut attacks = vec![
        ("POST", "/api/chat", plain.as_str(), chat),
        ("POST", "/v1/chat/completions", &plain, chat),
        ("POST", "/v1/messages", sandboxed, chat),
        ("POST", "/api/pull", &form, "model=m"),
        ("POST", "/api/delete?_method=DELETE", &form, "_method=DELETE&model=m"),
        ("POST", "/api/create", &parts, "--x\r\n\r\n{}\r\n--x--\r\n"),
        ("POST", "/api/copy", "Origin: null\r\n", "{}"),
        ("DELETE", "/api/delete", &site, "{\"model\":\"m\"}"),
        ("PUT", "/api/anything", &site, ""),
        ("GET", "/api/tags", foreign, ""),
        ("HEAD", "/", foreign, ""),
        ("GET", "/api/tags", "Sec-Fetch-Site: CROSS-SITE\r\nReferer: http://localhost/\r\n", ""),
        ("GET", "/", &socket, ""),
        ("OPTIONS", "/api/delete", &preflight, ""),
        ("OPTIONS", "*", &preflight, ""),
    ];
    let lookalikes: Vec<String> = [
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example:11434",
        "https://evil.example",
        "http://evil.example/localhost",
        "http://pi.local",
        "file:",
        "https://app.evil.example",
        "http://localhost, http://evil.example",
        "http://localhost\r\nOrigin: http://evil.example",
    ]
    .iter()
    .map(|origin| format!("Origin: {origin}\r\n"))
    .collect();
    attacks.extend(lookalikes.iter().map(|fields| ("POST", "/api/generate", &**fields, chat)));
    for way in Way::ALL {
        // An Ollama that would let every page in.
        let fake = Fake::unlike_ollama(|call| {
            call.read_body();
            call.send(
                "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n",
            );
        });
        let chain = way.to(&fake);
        for (method, target, fields, body) in &attacks {
            // A HEAD with a length would be refused for that.
            let answer = match *method {
                "HEAD" => chain
                    .connect()
                    .ask(format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")),
                _ => ask(&chain, method, target, fields, body),
            };
            let what = format!("{way:?} {method} {target} {fields:?}: {answer:?}");
            assert_eq!(answer.status(), 403, "{what}");
            assert_eq!(answer.head.one("x-ollana-error").as_deref(), Some("origin"), "{what}");
            assert!(!answer.head.has("access-control-allow-origin"), "{what}");
        }
        assert_eq!(fake.count(), 0, "{way:?}: a page's request reached the Ollama");
        let own = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", chain.address());
        assert_eq!(ask(&chain, "POST", "/api/chat", &own, chat).status(), 200, "{way:?}");
    }
}
