//! Bytes that are meant to be understood differently by those who read them, or to cost more than
//! they are.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use super::OK;
use super::rogue::{Rogue, answer, healthy, ok};
use crate::support::{
    Client, End, Fake, Gate, MODEL, Ollama, Process, Way, client_settings, eventually, post, start,
};

/// What a smuggler would like to be seen as a request of its own.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Chunks that one reader could take for the end of a body, and another for more of it.
const CHUNKS: &[&str] = &[
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello!\r\n0\r\n\r\n",
    "5\r\nhell\r\n0\r\n\r\n",
    "0\n\r\n",
    "0\r\n\n",
    "0\r\n\r",
    "0;\n\r\n\r\n",
    "5;a\nX\r\nhello\r\n0\r\n\r\n",
    " 0\r\n\r\n",
    "0 \r\n\r\n",
    "+0\r\n\r\n",
    "-0\r\n\r\n",
    "0x0\r\n\r\n",
    "0_0\r\n\r\n",
    "\r\n0\r\n\r\n",
    ";0\r\n\r\n",
    "5\r\r\nhello\r\n0\r\n\r\n",
    "0\r\nX: y\n\r\n",
    "0\r\n X: y\r\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\nno colon\r\n\r\n",
    // 2^64 and more, which wrap around to 0 or 5.
    "10000000000000000\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "100000000\u{660}\r\n\r\n",
    "fffffffffffffffff\r\n",
    "0000000000000000000000000000000000\r\n\r\n",
];

#[test]
fn chunks_hide_no_request() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        for (method, target) in [("POST", "/x"), ("POST", "/api/chat"), ("DELETE", "/api/delete")] {
            for body in CHUNKS {
                let mut client = chain.connect();
                client.send(format!(
                    "{method} {target} HTTP/1.1\r\nHost: localhost\r\n\
                     Transfer-Encoding: chunked\r\n\r\n{body}{HIDDEN}"
                ));
                let (answers, _) = client.read_to_close();
                let answers = String::from_utf8_lossy(&answers);
                let what = format!("{way:?} {target} {body:?}: {answers:?}");
                assert!(answers.starts_with("HTTP/1.1 400 "), "{what}");
                assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{what}");
            }
        }
        fake.look(|state| {
            let smuggled = state.records.iter().any(|r| r.head.target() == "/smuggled");
            let whole = state.records.iter().any(|r| r.is_whole);
            assert!(!smuggled && !whole, "{way:?}: a request came out of a body");
        });
    }
}

/// Answers whose end isn't clear, with another answer behind or within them. Whoever asks next on
/// the same way must not get that one.
#[test]
fn answers_hide_no_answer() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let cl = evil.len();
    let poisons = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{evil}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{evil}"),
        format!("HTTP/1.1 204 No Content\r\nContent-Length: {cl}\r\n\r\n{evil}"),
        format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {cl}\r\n\r\n{evil}"),
        format!("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n{evil}"),
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {cl}\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\n\r\n{evil}"
        ),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{evil}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n{evil}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\nok{evil}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\nok{evil}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{evil}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0, 2\r\n\r\n{evil}"),
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n{evil}"),
        format!("HTTP/1.1 200 OK\r\nX: y\rContent-Length: 0\r\n\r\n{evil}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n{evil}"),
    ];
    for poison in &poisons {
        let told = poison.clone();
        let rogue = Rogue::start(move |head, stream| {
            let told = match head.target() {
                "/poisoned" => told.clone().into_bytes(),
                target => healthy(target).unwrap_or_else(|| ok("good")),
            };
            drop(stream.write_all(&told));
        });
        let daemon = start(&client_settings(&[rogue.address]));
        let connect = || Client::connect(daemon.addresses()[0]);
        for method in ["GET", "HEAD", "POST", "GET"] {
            let mut client = connect();
            client.send(format!(
                "{method} /poisoned HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            ));
            let (answers, _) = client.read_to_close();
            let answers = String::from_utf8_lossy(&answers);
            let what = format!("{method} {poison:?}: {answers:?}");
            assert!(
                answers.matches("HTTP/1.1 ").count() <= 1 && !answers.contains("evil"),
                "{what}"
            );
            // The worker that becomes free last is the next to be used, with its connections.
            for _ in 0..2 {
                let next = connect().get("/next");
                assert_eq!((next.status(), &*next.text()), (200, "good"), "after {what}");
            }
        }
    }
}

/// The same, and it comes when the answer has been read and its connection was put aside.
#[test]
fn what_comes_late_is_no_answer() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for first in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let [was_read, was_sent] = [Gate::new(), Gate::new()];
        let (read, sent) = (was_read.clone(), was_sent.clone());
        let rogue = Rogue::start(move |head, stream| {
            if head.target() != "/poisoned" {
                let told = healthy(head.target()).unwrap_or_else(|| ok("good"));
                return drop(stream.write_all(&told));
            }
            let _ = stream.write_all(first.as_bytes());
            let _ = read.wait() && stream.write_all(evil.as_bytes()).is_ok();
            sent.open();
        });
        let daemon = start(&client_settings(&[rogue.address]));
        let mut client = Client::connect(daemon.addresses()[0]);
        assert!(client.get("/poisoned").status() < 300, "{first:?}");
        was_read.open();
        assert!(was_sent.wait());
        for n in 0..3 {
            let next = client.get("/next");
            assert_eq!((next.status(), &*next.text()), (200, "good"), "{n} after {first:?}");
        }
    }
}

/// Targets that name another host, and offers to leave HTTP.
#[test]
fn targets_lead_to_our_own_servers_alone() {
    let trap = Rogue::answering(answer("200 OK", "", "trapped"));
    let place = trap.address;
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| match call.target() {
            "/upgrade" => {
                assert!(!call.head.has("upgrade") && !call.head.has("connection"));
                call.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                           Upgrade: websocket\r\n\r\nframes",
                );
                call.hang();
            }
            _ => {
                call.read_body();
                call.send(OK);
            }
        });
        let chain = way.to(&fake);
        for line in [
            format!("GET http:{place}"),
            format!("GET http://x@{place}/x"),
            format!("GET https://{place}/x"),
            format!("GET {place}/x"),
            format!("GET @{place}/x"),
            format!("GET ?@{place}"),
            format!("GET :80@{place}/"),
            format!("GET \\\\{place}\\x"),
            format!("OPTIONS *@{place}"),
            "OPTIONS **".to_owned(),
            format!("CONNECT {place}"),
            format!("CONNECT http://{place}/"),
            "CONNECT /x".to_owned(),
            "GET *".to_owned(),
            format!("GET /x#@{place}/"),
            "GET file:///etc/passwd".to_owned(),
            "GET unix:/run/docker.sock".to_owned(),
        ] {
            let answer = chain.connect().ask(format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert!(matches!(answer.status(), 400 | 501), "{way:?} {line}: {answer:?}");
        }
        assert_eq!(fake.count(), 0, "{way:?}");
        // What is a path stays one, whatever it looks like.
        for target in [
            format!("//{place}/x"),
            format!("/@{place}/"),
            format!("/x@{place}:80/"),
            format!("/http://{place}/x"),
            format!("/..//{place}/"),
            format!("/x?url=http://{place}/"),
            // Of a target in absolute form, only its path is passed on.
            format!("http://{place}/x"),
            format!("HTTP://{place}/x"),
            format!("http://{place}//{place}/x"),
        ] {
            assert_eq!(chain.connect().get(&target).text(), "ok", "{way:?} {target}");
            let seen = fake.look(|state| state.records.last().map(|r| r.head.target().to_owned()));
            let host = format!("http://{place}");
            let is_absolute = target.to_lowercase().starts_with(&host);
            let path = if is_absolute { &target[host.len()..] } else { &target };
            assert_eq!(seen.as_deref(), Some(path), "{way:?}");
        }
        let upgrade = "GET /upgrade HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let answer = chain.connect().ask(upgrade);
        assert_eq!((answer.status(), answer.end), (502, End::Whole), "{way:?}: {answer:?}");
        assert!(!answer.text().contains("frames"), "{way:?}");
    }
    assert_eq!(trap.connections(), 0, "{:?}", trap.asked());
}

/// What a debug build's threads and the kernel's buffers may take; any length below would be more.
const MOST_GROWTH_KIB: usize = 12 * 1024;

/// 2^63 - 1, 2^63, 2^64 - 1, 2^64, 2^64 + 5, what 32 bits can't hold, and more than a disk.
const LENGTHS: &[u128] = &[
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 64,
    (1 << 64) + 5,
    (1 << 32) + 5,
    1 << 50,
    999_999_999_999_999_999,
];

/// A server process in front of `upstream`, a client process in front of it, and what they use.
fn processes(upstream: SocketAddr) -> [Process; 2] {
    let server = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {upstream}"
    ));
    let client = Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {} --server {upstream}",
        server.address()
    ));
    [server, client]
}

fn assert_flat(processes: &mut [Process; 2], before: [usize; 2], what: &str) {
    for (process, before) in processes.iter_mut().zip(before) {
        assert!(process.is_running(), "{what}");
        let grown = process.status("VmHWM") - before;
        println!("{what}: {before} KiB, then {grown} KiB more");
        assert!(grown < MOST_GROWTH_KIB, "{what}: {grown} KiB more");
    }
}

#[test]
fn a_declared_length_takes_no_memory() {
    let fake = Fake::unlike_ollama(|call| match call.head.method() {
        "POST" => call.hang_reading(),
        _ => call.answer("200 OK", "text/plain", "ok"),
    });
    let mut processes = processes(fake.address);
    let addresses = [processes[0].address(), processes[1].address()];
    processes.iter().for_each(|process| drop(process.connect_ready()));
    let before = [processes[0].status("VmHWM"), processes[1].status("VmHWM")];
    let mut held = Vec::new();
    for address in addresses {
        for length in LENGTHS {
            for (target, framing) in [
                ("/api/chat", format!("Content-Length: {length}\r\n\r\n{{\"model\":\"m\",")),
                (
                    "/api/chat",
                    format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{{\"model\":\"m\","),
                ),
                ("/api/blobs/x", format!("Content-Length: {length}\r\n\r\nx")),
                ("/api/blobs/x", format!("Transfer-Encoding: chunked\r\n\r\n{length:X}\r\nx")),
                ("/api/pull", format!("Content-Length: {length}\r\n\r\n{{\"model\":\"m@x\",")),
                ("/api/create", format!("Content-Length: {length}\r\n\r\n{{\"model\":\"m\",")),
            ] {
                let mut client = Client::connect(address);
                client.send(format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{framing}"));
                if *length >= 10_u128.pow(18) {
                    assert_eq!(client.answer_to("POST").status(), 400, "{target} {framing:?}");
                } else {
                    held.push(client);
                }
            }
        }
    }
    fake.wait("the requests that may come", |state| {
        let streamed = |target: &str| matches!(target, "/api/chat" | "/api/blobs/x");
        let streamed = state.records.iter().filter(|record| streamed(record.head.target()));
        (streamed.count() >= held.len() * 4 / 6).then_some(())
    });
    assert_flat(&mut processes, before, "requests that declare a lot");
    drop(held);
    for address in addresses {
        assert_eq!(Client::connect(address).get(MODEL).status(), 200);
    }
}

/// Sends for as long as somebody reads, up to 64 MiB.
fn endless(stream: &mut TcpStream, head: &str, piece: &[u8]) {
    let pieces = piece.repeat(1 + 65_536 / piece.len());
    let mut sent = stream.write_all(head.as_bytes());
    for _ in 0..1024 {
        if sent.is_err() {
            return;
        }
        sent = stream.write_all(&pieces);
    }
}

/// One line of 24 MiB.
const LONG_LINE: usize = 24 << 20;

/// Answers of an upstream that wants memory. The lists of its models have no end.
fn say_too_much(target: &str, stream: &mut TcpStream) {
    let declaring = |length: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let lines = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n";
    let (kind, detail) = target[1..].split_once('/').unwrap_or_default();
    match (target, kind) {
        ("/api/tags", _) => endless(stream, &declaring("1099511627776"), b"{\"models\":[{},"),
        ("/api/ps", _) => endless(stream, &declaring("18446744073709551615"), b"{\"models\":"),
        ("/v1/models", _) => endless(stream, "HTTP/1.1 200 OK\r\nX: ", b"x"),
        ("/api/pull" | "/api/chat", _) => {
            endless_up_to(
                stream,
                &format!("{lines}Content-Length: {LONG_LINE}\r\n\r\n"),
                LONG_LINE,
            );
        }
        (_, "length") => drop(stream.write_all(declaring(detail).as_bytes())),
        (_, "chunk") => {
            let start = format!("{lines}Transfer-Encoding: chunked\r\n\r\n{detail}\r\nx");
            drop(stream.write_all(start.as_bytes()));
        }
        ("/endless/value", _) => endless(stream, "HTTP/1.1 200 OK\r\nX: ", b"x"),
        ("/endless/fields", _) => endless(stream, "HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        ("/endless/reason", _) => endless(stream, "HTTP/1.1 200 ", b"x"),
        ("/endless/extension", _) => {
            endless(stream, &format!("{lines}Transfer-Encoding: chunked\r\n\r\n1;"), b"x");
        }
        ("/endless/trailer", _) => {
            endless(stream, &format!("{lines}Transfer-Encoding: chunked\r\n\r\n0\r\nX: "), b"x");
        }
        _ => drop(stream.write_all(&healthy(target).unwrap_or_else(|| ok("ok")))),
    }
}

fn endless_up_to(stream: &mut TcpStream, head: &str, length: usize) {
    let block = vec![b'x'; 64 * 1024];
    let _ = stream.write_all(head.as_bytes());
    for _ in 0..length / block.len() {
        let _ = stream.write_all(&block);
    }
}

#[test]
fn an_upstream_that_says_too_much_takes_no_memory() {
    let rogue = Rogue::start(|head, stream| say_too_much(head.target(), stream));
    let mut processes = processes(rogue.address);
    let addresses = [processes[0].address(), processes[1].address()];
    processes.iter().for_each(|process| drop(process.connect_ready()));
    let before = [processes[0].status("VmHWM"), processes[1].status("VmHWM")];
    for address in addresses {
        // Looked at, a server asks for its lists too.
        assert_eq!(Client::connect(address).get("/ollana/status").status(), 200);
        let lengths =
            LENGTHS.iter().flat_map(|n| [format!("/length/{n}"), format!("/chunk/{n:x}")]);
        let endless = ["value", "fields", "reason", "extension", "trailer"];
        let endless = endless.map(|what| format!("/endless/{what}"));
        let mut held = Vec::new();
        for target in lengths.chain(endless) {
            let mut client = Client::connect(address);
            client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            let head = client.try_head();
            println!("{target}: {:?}", head.as_ref().map(|head| head.status()));
            held.push(client);
        }
        for target in ["/api/pull", "/api/chat"] {
            let mut client = Client::connect(address);
            client.send(post(target, "{\"model\":\"m\"}"));
            client.head_of("POST");
            let ((length, _), end) = client.drain();
            assert_eq!((length, end), (LONG_LINE as u64, End::Whole), "{target}");
        }
        assert_eq!(Client::connect(address).get(MODEL).status(), 200);
    }
    let asked = || rogue.asked().iter().filter(|target| target.contains("s")).count();
    eventually("the lists to be asked for", || (asked() >= 3).then_some(()));
    assert_flat(&mut processes, before, "answers that declare or send a lot");
}
