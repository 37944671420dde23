//! Text of strangers on its way to a log, a terminal, a page or a scraper.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use ollana::discovery::packet::{Datagram, Kind, PROBE_LEN};
use ollana::pairing::identity::Identity;
use serde_json::{Value, json};

use super::rogue::{Rogue, answer, ok};
use crate::support::{Client, Process, clear_environment, eventually};

/// Clears a screen, sets a title, writes a line of its own, goes back, and turns the direction.
const NASTY: &str = "\u{1b}[2J\u{1b}]0;pwned\u{7}\n[ERROR] forged\r\n\u{8}\u{7f}\u{9b}31m\u{202e}\
                     \u{2066}\u{200b}\u{2028}\u{feff}\"}\\ x\ty";

/// The same with 10 KiB behind it.
fn nasty() -> String {
    format!("{NASTY}{}", "A".repeat(10 * 1024))
}

/// What moves a cursor, turns the direction of what follows, or can't be seen.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{61c}' | '\u{ad}' | '\u{e0000}'..='\u{e007f}')
}

/// Lines without harm, each within a length.
fn assert_harmless(text: &str, longest: usize, what: &str) {
    for line in text.lines() {
        let harm: Vec<char> = line.chars().filter(|c| is_harmful(*c)).collect();
        assert!(harm.is_empty(), "{what}: {harm:?} in {line:?}");
        let length = line.chars().count();
        assert!(length <= longest, "{what}: a line of {length} characters: {line:.300}");
    }
    assert!(!text.lines().any(|line| line.starts_with("[ERROR]")), "{what}: a forged line");
}

/// Every text in a JSON value.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(all) => all.iter().for_each(|value| texts(value, found)),
        Value::Object(members) => members.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// Fields as bytes, in which a control character makes the whole answer worthless.
fn server_field(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_ascii_control()).collect();
    format!("X-Ollana-Server: {name}\r\n")
}

/// Says well-formed things, with everything it names being nasty.
fn eloquent(target: &str) -> Vec<u8> {
    let fields = server_field(&nasty()[..3000]);
    let model = json!({
        "name": nasty(), "model": nasty(), "digest": nasty(), "modified_at": nasty(), "size": 1,
        "expires_at": nasty(),
        "details": { "parameter_size": nasty(), "quantization_level": nasty() },
    });
    let body = match target {
        "/api/version" => json!({ "version": format!("0.5.4 {}", nasty()) }),
        "/api/tags" | "/api/ps" => json!({ "models": [model] }),
        "/v1/models" => json!({ "object": "list", "data": [{ "id": nasty() }] }),
        _ => json!({ "error": nasty() }),
    };
    answer("200 OK", &fields, body.to_string())
}

/// A health check's answer that makes it fail with words of the server's.
fn failing(kind: usize) -> Vec<u8> {
    let body = json!({ "error": nasty() }).to_string();
    match kind {
        0 => answer("500 \u{1b}[2J\u{202e}", "", body),
        1 => answer("503 Busy", &server_field(NASTY), body),
        2 => format!("HTTP/1.1 200 OK\r\n{NASTY}: x\r\n\r\n").into_bytes(),
        3 => {
            format!("HTTP/1.1 200 OK\r\nX: {NASTY}\r\nContent-Length: {NASTY}\r\n\r\n").into_bytes()
        }
        4 => format!("{}\r\n\r\n", nasty()).into_bytes(),
        5 => answer("302 Found", &format!("Location: {NASTY}\r\n"), ""),
        6 => {
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{NASTY}\r\n").into_bytes()
        }
        7 => format!("HTTP/1.1 200 OK\r\nContent-Encoding: {NASTY}\r\n\r\n").into_bytes(),
        8 => ok(nasty()),
        _ => format!("HTTP/9{NASTY} 200 OK\r\n\r\n").into_bytes(),
    }
}

const FAILINGS: usize = 10;

fn run(arguments: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    clear_environment(command.args(arguments.split_whitespace()));
    let output = command.output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap_or_else(|error| panic!("{arguments}: {error}"))
}

/// A client of these servers, one that logs text or JSON.
fn client(servers: &[&Rogue], discovery: u16, format: &str) -> Process {
    let named: Vec<String> = servers.iter().map(|s| format!("--server {}", s.address)).collect();
    Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port {discovery} --interface lo {} \
         --log-level debug --log-format {format} --health-interval 100ms --probe-interval 200ms",
        named.join(" ")
    ))
}

fn address(process: &Process) -> SocketAddr {
    let line = process.line("listen");
    let start = line.find("127.0.0.1:").expect("an address");
    let end = line[start..].find(|c: char| !c.is_ascii_digit() && !".:".contains(c));
    line[start..start + end.unwrap_or(line.len() - start)].parse().expect("an address")
}

fn assert_log(process: &Process, format: &str) {
    let log = process.log();
    assert_harmless(&log, 1500, format);
    for line in log.lines() {
        match format {
            "json" => {
                drop(serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            }
            // A line begins with its time.
            _ => assert!(line.starts_with("20") && line[..24].ends_with('Z'), "{line}"),
        }
    }
}

/// Announces a server by a name that no honest one has.
fn announcer(http_port: u16, over: &Arc<AtomicBool>) -> (u16, thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("its address").port();
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
    let over = Arc::clone(over);
    let names =
        ["\u{1b}[2J", "a\nb", "\u{9b}31m", "\u{202e}gpu\u{2066}", "x\u{200b}\u{feff}", "\"}\\ 1"];
    let answer = move || {
        let mut buffer = [0; 512];
        while !over.load(SeqCst) {
            let Ok((_, client)) = socket.recv_from(&mut buffer) else { continue };
            for (n, name) in names.iter().enumerate() {
                let nonce = buffer[8..24].try_into().expect("a nonce");
                let mut datagram = Datagram::probe(Identity([n as u8; 16]), nonce);
                (datagram.kind, datagram.flags) = (Kind::Announce, 1);
                (datagram.http_port, datagram.name) = (http_port, (*name).to_owned());
                let _ = socket.send_to(&datagram.encode(PROBE_LEN), client);
            }
        }
    };
    (port, thread::spawn(answer))
}

#[test]
fn what_servers_say_harms_no_log_and_no_terminal() {
    let rogues: Vec<Rogue> = (0..FAILINGS)
        .map(|kind| Rogue::start(move |_, stream| drop(stream.write_all(&failing(kind)))))
        .collect();
    let eloquent = Rogue::start(|head, stream| drop(stream.write_all(&eloquent(head.target()))));
    let announced =
        Rogue::start(|head, stream| drop(stream.write_all(&self::eloquent(head.target()))));
    let over = Arc::new(AtomicBool::new(false));
    let (port, announcing) = announcer(announced.address.port(), &over);
    let servers: Vec<&Rogue> = rogues.iter().chain([&eloquent]).collect();
    for format in ["json", "text"] {
        let process = client(&servers, port, format);
        let address = address(&process);
        let mut looking = Client::connect(address);
        // Every server was looked at, and told something.
        let state = eventually("all servers to be known", || {
            let state = looking.get("/ollana/status").json();
            let servers = state["servers"].as_array()?;
            let is_known = |s: &Value| s["health"] == "ready" || s["reason"].is_string();
            let has_all = servers.len() >= FAILINGS + 2 && servers.iter().all(is_known);
            let has_models = servers.iter().any(|server| server["model_count"] == 1);
            (has_all && has_models).then_some(state)
        });
        for target in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
            Client::connect(address).post(target, format!("{{\"model\":{}}}", json!(nasty())));
        }
        assert_log(&process, format);
        let state = state.to_string();
        assert_harmless(&state, usize::MAX, "the state");
        let state: Value = serde_json::from_str(&state).expect("JSON");
        let mut found = Vec::new();
        texts(&state, &mut found);
        for text in found {
            assert_harmless(text, 400, "a text of the state");
        }
        let metrics = looking.get("/ollana/metrics").text();
        assert_harmless(&metrics, 1500, "the metrics");
        let is_ours = |line: &str| line.starts_with("ollana_") || line.starts_with("# ");
        assert!(metrics.lines().all(is_ours), "{metrics}");
        for command in ["status", "status --json", "models", "models --json"] {
            let text = run(&format!("{command} --listen {address}"));
            assert!(text.len() > 100, "{command}: {text}");
            // Tables are cut for terminals alone.
            assert_harmless(&text, 1500, command);
        }
        let answer = Client::connect(address).get("/api/version");
        let names = answer.head.all("x-ollana-server").concat();
        assert_harmless(&names, 200, "X-Ollana-Server");
    }
    for command in ["discover", "discover --json"] {
        let text = run(&format!("{command} --discovery-port {port} --interface none"));
        assert!(text.contains(&announced.address.to_string()), "{command}: {text}");
        assert_harmless(&text, 1500, command);
    }
    over.store(true, SeqCst);
    announcing.join().expect("the announcer");
}

/// Its words reach a program's user in an error, which many write to a terminal as it is.
#[test]
fn errors_tell_programs_nothing_harmful() {
    for kind in 0..FAILINGS {
        let rogue = Rogue::start(move |head, stream| {
            let told = match head.target() {
                "/api/version" => ok("{\"version\":\"0.5.4\"}"),
                _ => failing(kind),
            };
            let _ = stream.write_all(&told).and_then(|()| stream.shutdown(Shutdown::Write));
        });
        let process = client(&[&rogue], 0, "text");
        let address = address(&process);
        eventually("it to be ready", || {
            (Client::connect(address).get("/ollana/ready").status() == 200).then_some(())
        });
        for target in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
            let answer = Client::connect(address).post(target, "{\"model\":\"m\"}");
            if answer.head.has("x-ollana-error") {
                let json = answer.json();
                let mut found = Vec::new();
                texts(&json, &mut found);
                found.iter().for_each(|text| assert_harmless(text, 400, target));
            }
            let names = answer.head.all("x-ollana-server").concat();
            assert_harmless(&names, 200, "X-Ollana-Server");
        }
        assert_log(&process, "text");
    }
}

/// A model's or a server's name is text to the page, never markup.
#[test]
fn the_page_makes_no_markup_of_names() {
    for word in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc"]
    {
        assert!(!ollana::status::PAGE.contains(word), "{word} in the page");
    }
}
