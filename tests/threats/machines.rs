//! Other machines, on the LAN and beyond, without any: a network namespace whose loopback interface
//! has the LAN's addresses, and those of the internet.
//!
//! ```text
//!   10.80.0.1:11435, [fd80::1]:11435   ollana, a server          127.0.0.1  an Ollama
//!   10.80.0.2 …, fd80::2 …             the LAN                   one subnet with the server
//!   203.0.113.9, 2001:db8::9 …         everybody else            on no subnet of this machine
//! ```
//!
//! A daemon tells machines apart by the two ends of a connection alone, and those are as they would
//! be; that packets cross no wire is what `netns` is for. A namespace of one's own takes no root
//! where the system lets users have them (`unshare -Urn`); elsewhere the tests say so and pass.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use ollana::discovery::packet::{Datagram, PROBE_LEN};
use ollana::pairing::identity::Identity;

use super::OK;
use crate::support::{Answer, Client, End, Fake, PATIENCE, Process, REDIRECTS};

/// Set where a test runs within its namespace.
const INSIDE: &str = "OLLANA_TEST_INSIDE";
const SET_UP: &str = "ip link set lo up && ip address add 10.80.0.1/24 dev lo && \
    ip address add fd80::1/64 dev lo nodad && ip route add local 203.0.113.0/24 dev lo && \
    ip -6 route add local fd80::/64 dev lo && ip -6 route add local 2001:db8::/64 dev lo";

/// Runs a test of this suite in a namespace: one of this file, unless its name has another in front. True there, false outside, where it is over.
pub(super) fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-Urn", "sh", "-c", script]);
        command
    };
    let reason = match unshare(SET_UP).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    if let Some(reason) = reason {
        let _ = writeln!(io::stderr(), "{test} skipped, no network namespace: {reason}");
        return false;
    }
    let mut again = unshare(&format!("{SET_UP} && exec timeout --signal=KILL 120 \"$0\" \"$@\""));
    again.arg(std::env::current_exe().expect("this program"));
    let file = if test.contains("::") { "" } else { "machines::" };
    again.args(["--exact", &format!("threats::{file}{test}"), "--nocapture"]);
    let output = again.env(INSIDE, "1").output().expect("it runs");
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    let text = text.concat();
    assert!(output.status.success() && text.contains("1 passed"), "in the namespace:\n{text}");
    println!("{text}");
    false
}

/// A server with an Ollama.
pub(super) struct Server {
    pub(super) fake: Fake,
    _process: Process,
}

pub(super) const SERVER: [&str; 2] = ["10.80.0.1", "fd80::1"];
pub(super) const LAN: [&str; 2] = ["10.80.0.2", "fd80::2"];
pub(super) const INTERNET: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

impl Server {
    pub(super) fn start(options: &str) -> Self {
        let fake = Fake::unlike_ollama_saying(OK);
        let process = Process::start(&format!(
            "--mode server --listen 0.0.0.0:11435 --listen [::]:11435 --ollama {} {options}",
            fake.address
        ));
        drop(process.connect_ready());
        Server { fake, _process: process }
    }

    /// A connection from this address to the server's of the same kind.
    pub(super) fn try_connect(&self, from: &str) -> io::Result<Client> {
        let from: IpAddr = from.parse().expect("an address");
        let to: IpAddr = SERVER[usize::from(from.is_ipv6())].parse().expect("an address");
        Client::connect_from(from, SocketAddr::new(to, 11435))
    }

    pub(super) fn connect(&self, from: &str) -> Client {
        self.try_connect(from).unwrap_or_else(|error| panic!("connect from {from}: {error}"))
    }

    fn ask(&self, from: &str, method: &str, target: &str, body: &str) -> Answer {
        let length = body.len();
        let mut client = self.connect(from);
        client.send(format!(
            "{method} {target} HTTP/1.1\r\nHost: gpu.local\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        client.answer_to(method)
    }

    /// The targets that reached Ollama.
    pub(super) fn reached(&self) -> Vec<String> {
        self.fake.look(|state| state.records.iter().map(|r| r.head.start.join(" ")).collect())
    }
}

pub(super) const MANAGING: &[(&str, &str)] = &[
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:00"),
];

/// What stays closed whatever the flags, with the status: the owner's account, and what may be
/// another handler to Ollama's router than it looks. What Ollama doesn't have, or spells otherwise,
/// is answered as it would be.
const CLOSED: &[(&str, &str, u16)] = &[
    ("GET", "/api/me", 405),
    ("POST", "/api/signout", 403),
    ("DELETE", "/api/user/keys/x", 403),
    ("POST", "/api/experimental/web_search", 403),
    ("GET", "/api/experimental/aliases", 403),
    ("POST", "/api/%70ull", 403),
    ("POST", "/%61pi/pull", 403),
    ("POST", "/api%2fpull", 403),
    ("POST", "/api%2Fpull", 403),
    ("POST", "/api/%2570ull", 404),
    ("POST", "//api/pull", 307),
    ("POST", "/api//pull", 307),
    ("POST", "/./api/pull", 307),
    ("POST", "/api/../api/pull", 307),
    ("POST", "/v1/models/../../api/pull", 307),
    ("POST", "/api/generate/../pull", 307),
    ("POST", "/api/generate/%2e%2e/pull", 404),
    ("POST", "/api/generate/..%2fpull", 404),
    ("POST", "/api/pull/", 307),
    ("POST", "/api/pull/.", 307),
    ("POST", "/api/pull;x", 404),
    ("POST", "/api/pull%00", 404),
    ("POST", "/api/pull%20", 404),
    ("POST", "/api/pull%3Fx", 404),
    ("POST", "/api/pull%23", 404),
    ("POST", "/API/pull", 404),
    ("POST", "/api/PULL", 404),
    ("POST", "/api\\pull", 404),
    ("DELETE", "/api/%64elete", 403),
    ("DELETE", "/api/delete/", 307),
    ("POST", "/api/blobs/../pull", 307),
    ("POST", "/api/blobs/%2e%2e%2fpull", 404),
    ("POST", "/api/blobs/", 404),
    ("POST", "/api/delete", 405),
    ("GET", "/api/pull", 405),
    ("PUT", "/api/pull", 405),
    ("PATCH", "/api/pull", 405),
    ("PUT", "/api/blobs/sha256:00", 405),
    ("PUT", "/api/chat", 405),
    ("DELETE", "/api/tags", 405),
    ("FROB", "/api/chat", 405),
    ("post", "/api/pull", 405),
    ("TRACE", "/", 405),
    ("GET", "/debug/pprof/heap", 403),
    ("GET", "/metrics", 404),
    ("POST", "/api/nosuch", 404),
    ("POST", "/v1/nosuch", 404),
    ("PUT", "/v1/chat/completions", 405),
    ("DELETE", "/v1/models/m", 405),
    ("GET", "/v1/models/a/b", 404),
    ("POST", "/v1/messages/batches", 404),
    ("PATCH", "/v1/messages", 405),
];

/// A refusal in the shape of the API that was called.
fn assert_refused(answer: &Answer, target: &str, what: &str) {
    let what = format!("{what}: {answer:?}");
    assert_eq!((answer.status(), answer.end), (403, End::Whole), "{what}");
    assert_eq!(answer.head.one("x-ollana-error").as_deref(), Some("policy"), "{what}");
    let json = answer.json();
    let error = &json["error"];
    match target {
        _ if target.starts_with("/v1/messages") => {
            assert_eq!(json["type"], "error", "{what}");
            assert_eq!(error["type"], "permission_error", "{what}");
            assert!(error["message"].is_string(), "{what}");
        }
        _ if target.starts_with("/v1/") => {
            assert_eq!(error["type"], "permission_error", "{what}");
            assert!(error["message"].is_string() && error["param"].is_null(), "{what}");
        }
        _ => assert!(error.is_string(), "{what}"),
    }
}

/// An answer as Ollama's router gives it, errors in the shape of the API that was called.
fn assert_routed(answer: &Answer, status: u16, target: &str, what: &str) {
    let what = format!("{what}: {answer:?}");
    assert_eq!((answer.status(), answer.end), (status, End::Whole), "{what}");
    let location = answer.head.one("location");
    if status == 307 {
        let known = ["/api/pull", "/api/delete"];
        assert!(location.is_some_and(|to| known.contains(&to.as_str())), "{what}");
        return;
    }
    let text = if status == 404 { "404 page not found" } else { "405 method not allowed" };
    assert!(location.is_none() && answer.head.has("allow") == (status == 405), "{what}");
    match target {
        _ if target.starts_with("/v1/messages") => {
            let json = answer.json();
            assert_eq!((&json["type"], &json["error"]["message"]), (&"error".into(), &text.into()));
        }
        _ if target.starts_with("/v1/") => {
            assert_eq!(answer.json()["error"]["message"], text, "{what}");
            assert!(answer.json()["error"]["type"].is_string(), "{what}");
        }
        _ if target.starts_with("/api/") => assert_eq!(answer.json()["error"], text, "{what}"),
        _ => assert_eq!(answer.text(), text, "{what}"),
    }
}

/// Redirects keep the query, and other spellings lead nowhere else.
#[test]
fn another_machine_is_led_to_the_paths_that_ollama_has() {
    if !is_inside("another_machine_is_led_to_the_paths_that_ollama_has") {
        return;
    }
    let server = Server::start("--discovery-port 0");
    let reached = server.reached();
    for from in LAN {
        for (method, target, status, location) in REDIRECTS {
            let answer = server.ask(from, method, target, "");
            assert_eq!(answer.status(), *status, "{from} {target}: {answer:?}");
            assert_eq!(answer.head.one("location").as_deref(), Some(*location), "{from} {target}");
        }
        for (target, host, status) in [
            ("/api/chat", "gpu.local", 204),
            ("/nothing", "gpu.local", 204),
            ("/api/chat", "10.80.0.1", 405),
            ("/nothing", "10.80.0.1", 404),
        ] {
            let mut client = server.connect(from);
            client.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(client.answer_to("OPTIONS").status(), status, "{from} {target} {host}");
        }
        assert_eq!(server.reached(), reached, "{from}");
    }
}

#[test]
fn another_machine_uses_models_and_changes_none() {
    if !is_inside("another_machine_uses_models_and_changes_none") {
        return;
    }
    let model = r#"{"model":"m"}"#;
    for (options, manages, pulls) in
        [("", false, false), ("--pull on", false, true), ("--manage on", true, true)]
    {
        let server = Server::start(&format!("--discovery-port 0 {options}"));
        for from in LAN {
            let ask = |method: &str, target: &str| server.ask(from, method, target, model);
            for (method, target) in [("POST", "/api/chat"), ("POST", "/v1/messages")] {
                assert_eq!(ask(method, target).status(), 200, "{options} {from} {target}");
            }
            let mut want = server.reached();
            for (method, target) in MANAGING {
                let answer = ask(method, target);
                let what = format!("{options} {from} {method} {target}");
                if manages || (pulls && *target == "/api/pull") {
                    assert_eq!(answer.status(), 200, "{what}");
                    want.push(format!("{method} {target} HTTP/1.1"));
                } else {
                    assert_refused(&answer, target, &what);
                    assert!(answer.text().contains("--manage on"), "{what}: {answer:?}");
                }
            }
            for (method, target, status) in CLOSED {
                let what = format!("{options} {from} {method} {target}");
                match status {
                    403 => assert_refused(&ask(method, target), target, &what),
                    _ => assert_routed(&ask(method, target), *status, target, &what),
                }
            }
            // A HEAD tells by its status alone.
            let heads = [("/", 200), ("/api/pull", 405), ("/api/nosuch", 404), ("/api/%6de", 403)];
            for (target, status) in heads {
                let mut client = server.connect(from);
                let head = client.ask(format!("HEAD {target} HTTP/1.1\r\nHost: pi.local\r\n\r\n"));
                assert_eq!((head.status(), head.body.len()), (status, 0), "{from} HEAD {target}");
            }
            want.push("HEAD / HTTP/1.1".to_owned());
            // Claims of being another change nothing.
            let mut client = server.connect(from);
            let answer = client.ask(
                "DELETE /api/user/keys/x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 127.0.0.1\
                 \r\nX-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Ollana-Open: manage\
                 \r\nVia: 1.1 ollana-00000000\r\n\r\n",
            );
            assert_refused(&answer, "/api/user", "claims");
            assert_eq!(server.reached(), want, "{options} {from}");
            for path in ["/ollana/status", "/ollana/metrics", "/ollana/", "/ollana/health"] {
                let answer = server.connect(from).get(path);
                assert_eq!(answer.status(), 403, "{from} {path}: {answer:?}");
                assert!(!answer.text().contains("in_flight"), "{from} {path}");
            }
        }
        // This machine may, at every address of its own.
        for own in SERVER {
            for (method, target) in MANAGING.iter().chain(&[("POST", "/api/me")]) {
                let answer = server.ask(own, method, target, model);
                assert_eq!(answer.status(), 200, "{own} {method} {target}: {answer:?}");
            }
        }
    }
}

/// Whether this address gets an answer to a request, and to a probe.
fn hears(server: &Server, from: &str) -> (bool, bool) {
    let answer = match server.try_connect(from) {
        Ok(mut client) => {
            client
                .try_send("GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let (bytes, _) = client.read_to_close();
            let answer = bytes.starts_with(b"HTTP/1.1 200 ");
            assert!(answer || bytes.is_empty(), "{from}: {bytes:?}");
            answer
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{from}");
            false
        }
    };
    let ip: IpAddr = from.parse().expect("an address");
    if ip.is_ipv6() {
        return (answer, answer); // Probes are for IPv4 alone.
    }
    let responder = (SERVER[0], 11436);
    let socket = UdpSocket::bind((ip, 0)).expect("a source");
    let probe = Datagram::probe(Identity([1; 16]), [5; 16]).encode(PROBE_LEN);
    socket.send_to(&probe, responder).expect("sent");
    socket.send_to(b"LANA", responder).expect("sent");
    // Probes are answered in order; this machine's next, whose source has a rate of its own.
    static NEXT: AtomicU8 = AtomicU8::new(100);
    let own = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, NEXT.fetch_add(1, SeqCst)), 0));
    let own = own.expect("a source");
    own.set_read_timeout(Some(PATIENCE)).expect("a limit");
    own.send_to(&probe, responder).expect("sent");
    own.recv(&mut [0; 512]).expect("an answer to this machine");
    socket.set_nonblocking(true).expect("no wait");
    (answer, socket.recv(&mut [0; 512]).is_ok())
}

#[test]
fn the_internet_gets_not_a_byte() {
    if !is_inside("the_internet_gets_not_a_byte") {
        return;
    }
    const BOTH: (bool, bool) = (true, true);
    const NEITHER: (bool, bool) = (false, false);
    type Row = (&'static str, &'static [(&'static str, (bool, bool))]);
    let rows: &[Row] = &[
        ("", &[]),
        ("--manage on --unpaired on", &[]),
        ("--allow 10.80.0.0/24 --allow fd80::/64", &[]),
        ("--allow 10.80.0.7", &[(LAN[0], NEITHER), (LAN[1], NEITHER), ("10.80.0.7", BOTH)]),
        ("--deny 10.80.0.2/31", &[(LAN[0], NEITHER), ("10.80.0.3", NEITHER), ("10.80.0.4", BOTH)]),
        ("--deny fd80::/64", &[(LAN[1], NEITHER), (SERVER[1], NEITHER)]),
    ];
    for (options, others) in rows {
        let server = Server::start(options);
        for from in INTERNET.into_iter().chain(["203.0.113.255", "2001:db8::ffff:10.80.0.2"]) {
            assert_eq!(hears(&server, from), NEITHER, "{options} {from}");
        }
        for from in LAN.into_iter().filter(|from| others.iter().all(|(other, _)| other != from)) {
            assert_eq!(hears(&server, from), BOTH, "{options} {from}");
        }
        for (from, want) in *others {
            assert_eq!(hears(&server, from), *want, "{options} {from}");
        }
        assert!(hears(&server, SERVER[0]).0, "{options}: this machine");
    }
    // Who says so gets it: then the internet is a neighbour.
    let server = Server::start("--allow 203.0.113.0/24");
    assert!(hears(&server, INTERNET[0]).0 && !hears(&server, LAN[0]).0);
    let answer = server.ask(INTERNET[0], "POST", "/api/pull", "{}");
    assert_refused(&answer, "/api/pull", "from the internet");
}
