//! The real binary: what it becomes, what it says, and how it fails to start.

mod support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use support::{
    Client, Fake, MODEL, Ollama, Process, clear_environment, eventually, free_tcp_port, request,
    state_dir, unread,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn server(fake: &Fake) -> String {
    format!("--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {}", fake.address)
}

#[test]
fn it_is_a_server_where_an_ollama_answers() {
    let fake = Ollama::with(&["m"]);
    // Not every machine has the other loopback.
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    let also = if has_ipv6 { "--listen [::1]:0" } else { "" };
    let process = Process::start(&format!(
        "--listen 127.0.0.1:0 {also} --discovery-port 0 --ollama {}",
        fake.address
    ));
    let line = process.line("ready mode=");
    assert!(line.contains("mode=server"), "{line}");
    assert!(line.contains(&format!("Ollama 0.33.0 answers at http://{}", fake.address)), "{line}");
    assert!(line.contains("discovery=off"), "{line}");
    let addresses = process.addresses();
    assert_eq!(addresses.len(), if has_ipv6 { 2 } else { 1 }, "{line}");
    for address in addresses {
        assert_eq!(Client::connect(address).get(MODEL).status(), 200, "{address}");
    }
}

#[test]
fn it_is_a_client_where_none_does() {
    let nobody = free_tcp_port();
    let fake = Ollama::with(&["m"]);
    let process = Process::start(&format!(
        "--listen 127.0.0.1:0 --discovery-port 0 --ollama {nobody} --server {}",
        fake.address
    ));
    let line = process.line("ready mode=");
    assert!(line.contains("mode=client"), "{line}");
    assert!(line.contains(&format!("no Ollama at http://{nobody}: connection refused")), "{line}");
    assert_eq!(process.connect_ready().get(MODEL).status(), 200);
}

#[test]
fn a_complaint_that_nobody_hears_changes_no_exit_code() {
    for (arguments, code) in [
        ("satus", 2),
        ("token add", 2),
        ("status --listen 127.0.0.1:1", 1),
        ("--mode client --listen 192.0.2.1:1 --discovery-port 0", 1),
        ("man", 0),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ollana"));
        clear_environment(&mut command).args(arguments.split(' '));
        command.env("OLLANA_STATE_DIR", state_dir());
        command.envs([("OLLAMA_HOST", "192.0.2.1"), ("OLLAMA_ORIGINS", "x"), ("OLLANA_NO", "x")]);
        let output = command.stderr(unread()).output().expect("ollana runs");
        assert_eq!(output.status.code(), Some(code), "{arguments}");
    }
}

#[test]
fn another_ollana_is_no_ollama() {
    let fake = Ollama::with(&["m"]);
    let first = Process::start(&server(&fake));
    let second = Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {}",
        first.address()
    ));
    second.connect_ready();
    for other in [&first, &second] {
        let third = Process::start(&format!(
            "--listen 127.0.0.1:0 --discovery-port 0 --ollama {}",
            other.address()
        ));
        let line = third.line("ready mode=");
        assert!(line.contains("mode=client") && line.contains("ollana"), "{line}");
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_a_way_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let fake = Ollama::with(&["m"]);
    let other = Process::start(&server(&fake));
    for (option, holder, hint) in [
        ("--mode server --listen", silent.local_addr().unwrap(), "choose another with --listen"),
        ("--mode client --listen", silent.local_addr().unwrap(), "choose another with --listen"),
        ("--mode client --listen", fake.address, "share it with --mode server"),
        ("--mode server --listen", fake.address, "choose another address with --listen"),
        ("--mode both --listen 127.0.0.1:0 --share", fake.address, "another address with --share"),
        ("--mode client --listen", other.address(), "a second one needs --listen"),
    ] {
        let start = Instant::now();
        let mut process = Process::start(&format!(
            "{option} {holder} --discovery-port 0 --ollama {}",
            fake.address
        ));
        let status = process.exit();
        let took = start.elapsed();
        println!("{option} {holder}: gave up after {} ms", took.as_millis());
        let log = process.line("cannot listen");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(&holder.to_string()) && log.contains("in use"), "{log}");
        assert!(log.contains(hint), "{option}: no {hint:?} in {log}");
        assert!(took < Duration::from_secs(10), "{option} {holder}: gave up after {took:?}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense() {
    for (arguments, told) in [
        ("--nonsense", "--nonsense"),
        ("--mode sideways", "--mode"),
        ("--listen 11434", "--listen"),
        ("--listen", "--listen"),
        ("--server :", "--server"),
        ("--ollama https://127.0.0.1", "https"),
        ("--head-timeout soon", "--head-timeout"),
        ("--max-connections 0", "--max-connections"),
        ("frobnicate", "frobnicate"),
        ("forget", "takes NAME"),
        ("completions tcsh", "bash, zsh or fish"),
    ] {
        let mut process = Process::start(arguments);
        let status = process.exit();
        let log = process.line("--help");
        assert_eq!(status.code(), Some(2), "{arguments}: {log}");
        assert!(process.log().contains(told), "{arguments}: {}", process.log());
        assert!(!process.log().contains("panicked"), "{arguments}: {}", process.log());
    }
    let mut process = Process::with_env("", &[("OLLANA_MODE", "sideways")]);
    assert_eq!(process.exit().code(), Some(2));
    process.line("OLLANA_MODE");
}

#[test]
fn what_is_misspelled_is_told() {
    let unknown = [("OLLANA_LOG_LEVL", "debug"), ("OLLANA_INTERFACE", "lo-nope")];
    let told =
        "the variable OLLANA_LOG_LEVL means nothing to ollana; did you mean OLLANA_LOG_LEVEL?";
    let process = Process::with_env(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server 127.0.0.1:9",
        &unknown,
    );
    process.line(told);
    process.line("--interface lo-nope: no interface of that name can broadcast");
    let address = process.address();
    let mut client = Client::connect(address);
    let warnings = client.get("/ollana/status").json()["warnings"].to_string();
    assert!(warnings.contains(told) && warnings.contains("--interface lo-nope"), "{warnings}");
    let mut command = Process::with_env("peers", &unknown);
    assert_eq!(command.exit().code(), Some(0));
    command.line(told);
}

#[test]
fn two_daemons_side_by_side() {
    let fakes = ["one", "two"].map(|name| {
        Fake::unlike_ollama_saying(format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{name}"))
    });
    let servers = [&fakes[0], &fakes[1]].map(|fake| Process::start(&server(fake)));
    let clients = [&servers[0], &servers[1]].map(|server| {
        Process::start(&format!(
            "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {}",
            server.address()
        ))
    });
    for (n, name) in ["one", "two"].iter().enumerate() {
        assert_eq!(servers[n].connect_ready().get(MODEL).text(), *name);
        assert_eq!(clients[n].connect_ready().get(MODEL).text(), *name);
    }
}

#[test]
fn an_ollama_that_starts_later_and_restarts() {
    let mut fake = Ollama::with(&["m"]);
    fake.kill();
    let process = Process::start(&server(&fake));
    let mut client = Client::connect(process.address());
    for round in 0..3 {
        let answer = client.get(MODEL);
        assert!(matches!(answer.status(), 502 | 503), "round {round}: {answer:?}");
        fake.restart();
        let started = Instant::now();
        eventually("the Ollama to be used", || (client.get(MODEL).status() == 200).then_some(()));
        println!("round {round}: used after {} ms", started.elapsed().as_millis());
        assert!(started.elapsed() < Duration::from_secs(5), "after {:?}", started.elapsed());
        fake.kill();
    }
    process.line("server down");
    process.line("server up");
}

#[test]
fn variables_are_options_too() {
    let fake = Fake::unlike_ollama_saying(OK);
    let url = format!("http://{}/behind/", fake.address);
    let process = Process::with_env(
        "",
        &[
            ("OLLAMA_HOST", &url),
            ("OLLANA_LISTEN", "127.0.0.1:0"),
            ("OLLANA_DISCOVERY_PORT", "0"),
            ("OLLANA_MAX_HEAD", "2k"),
        ],
    );
    let mut client = process.connect_ready();
    assert_eq!(client.get(MODEL).status(), 200);
    fake.wait("the path of OLLAMA_HOST", |state| {
        state
            .records
            .iter()
            .find(|record| record.head.target() == "/behind/v1/models/m")
            .map(|_| ())
    });
    let long = request("GET", &format!("/{}", "x".repeat(3000)), "");
    assert_eq!(client.ask(long).status(), 431);
}

#[test]
fn memory_stays_flat_however_much_goes_through() {
    const BLOCKS: usize = 256;
    let fake = Fake::unlike_ollama(|call| {
        let (length, _) = call.drain_body();
        if call.target() != "/down" {
            return call.answer("200 OK", "text/plain", length.to_string());
        }
        let block = vec![b'x'; 1 << 20];
        call.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BLOCKS << 20));
        for _ in 0..BLOCKS {
            call.send(&block);
        }
    });
    let server = Process::start(&server(&fake));
    let client = Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {}",
        server.address()
    ));
    let mut connection = client.connect_ready();
    let block = vec![b'x'; 1 << 20];
    let before = [&server, &client].map(|process| process.status("VmHWM"));
    for (target, blocks, framing) in [
        ("/api/blobs/x", BLOCKS, format!("Content-Length: {}", BLOCKS << 20)),
        ("/api/chat", BLOCKS / 4, "Transfer-Encoding: chunked".to_owned()),
    ] {
        connection.send(format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"));
        let is_chunked = framing.starts_with('T');
        let piece = if is_chunked { support::chunk(&block) } else { block.clone() };
        (0..blocks).for_each(|_| connection.send(&piece));
        connection.send(if is_chunked { "0\r\n\r\n" } else { "" });
        assert_eq!(connection.answer_to("POST").text(), (blocks << 20).to_string(), "{target}");
    }
    connection.send(request("GET", "/down", ""));
    connection.head_of("GET");
    assert_eq!(connection.drain().0.0, (BLOCKS as u64) << 20);
    for (process, before) in [&server, &client].into_iter().zip(before) {
        let grown = process.status("VmHWM") - before;
        println!("VmHWM: {before} KB, then {grown} KB more");
        // A chat's body is kept for another try, up to 4 MiB.
        assert!(grown < 16 * 1024, "{grown} KB more for 576 MB that went through");
    }
}
