//! The real binary: how it ends. Streams finish, nobody new comes in, and what is cut doesn't look
//! whole.

mod support;

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::{Client, Closed, End, Fake, Gate, Process, Signal, eventually, ndjson, soon};

/// Streams and idle connections last longer.
const SOON: Duration = Duration::from_secs(5);
/// Threads that can't be cut are given up 2.3 s after the signal.
const CUT: Duration = Duration::from_secs(2);

/// A fake that sends one line, then another when the gate opens.
fn fake(gate: &Gate) -> Fake {
    let held = gate.clone();
    Fake::unlike_ollama(move |call| {
        call.read_body();
        if call.target() != "/api/chat" {
            return call.answer("200 OK", "text/plain", "ok");
        }
        call.send(ndjson());
        call.send_chunk("{\"a\":1}\n");
        if held.wait() {
            call.send_chunk("{\"a\":2}\n");
            call.send("0\r\n\r\n");
        }
    })
}

fn start(fake: &Fake, more: &str) -> Process {
    Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} {more}",
        fake.address
    ))
}

/// A stream that has brought its first line.
fn stream(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.send(support::post("/api/chat", "{}"));
    assert_eq!(client.head_of("POST").status(), 200);
    client.read_until(b"\n");
    client
}

/// Waits until nobody new is let in, and tells how long that took.
fn refused(address: SocketAddr) -> Duration {
    let start = Instant::now();
    eventually("new connections to be refused", || TcpStream::connect(address).err());
    start.elapsed()
}

#[test]
fn streams_finish_and_nobody_new_comes_in() {
    for signal in [Signal::TERM, Signal::INT] {
        let gate = Gate::new();
        let fake = fake(&gate);
        let mut process = start(&fake, "");
        let address = process.address();
        let mut idle = process.connect_ready();
        let mut streams: Vec<Client> = (0..20).map(|_| stream(address)).collect();
        process.signal(signal);
        let took = refused(address);
        println!("{signal:?}: new connections refused after {} ms", took.as_millis());
        assert!(took < SOON, "{signal:?}: refused only after {took:?}");
        assert_eq!(idle.expect_close(), End::CutByClose, "an idle connection is closed in order");
        process.line("stopping");
        assert!(process.is_running(), "{signal:?}: ended before its streams did");
        gate.open();
        let last = Instant::now();
        for client in &mut streams {
            assert_eq!(client.rest(), (b"{\"a\":2}\n".to_vec(), End::Whole), "{signal:?}");
            assert_eq!(client.expect_close(), End::CutByClose, "{signal:?}");
        }
        assert_eq!(process.exit().code(), Some(0), "{signal:?}");
        assert!(last.elapsed() < SOON, "{signal:?}: ended only after {:?}", last.elapsed());
        process.line("stopped cut=false");
        assert!(!process.log().contains("did not end in time"), "{}", process.log());
    }
}

#[test]
fn a_stream_that_takes_too_long_is_cut() {
    let fake = Fake::unlike_ollama(|call| {
        call.read_body();
        if call.target() != "/api/chat" {
            return call.answer("200 OK", "text/plain", "ok");
        }
        call.send(ndjson());
        call.send_chunk("{\"a\":1}\n");
        call.hang();
    });
    soon("cut", CUT, || {
        let mut process = start(&fake, "--drain-timeout 300ms");
        process.connect_ready();
        let mut client = stream(process.address());
        // One whose end would be its connection's end, were it not reset.
        let mut old = Client::connect(process.address());
        old.send("POST /api/chat HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}");
        old.head_of("POST");
        old.read_until(b"\n");
        let start = Instant::now();
        process.signal(Signal::TERM);
        assert_ne!(client.rest().1, End::Whole);
        assert_eq!(old.rest().1, End::CutByReset);
        let cut = start.elapsed();
        println!("cut after {} ms", cut.as_millis());
        assert!(cut >= Duration::from_millis(300), "cut after {cut:?}");
        assert_eq!(process.exit().code(), Some(0));
        for request in [fake.count() - 2, fake.count() - 1] {
            let (_, how) = fake.closed(request);
            assert_ne!(how, Closed::ByUs, "the Ollama still works for nobody");
        }
        cut
    });
}

#[test]
fn a_client_that_reads_nothing_holds_nobody_up() {
    let fake = Fake::unlike_ollama(|call| {
        call.read_body();
        call.send(ndjson());
        let deadline = Instant::now() + 2 * support::PATIENCE;
        while call.send_chunk(vec![b'x'; 64 * 1024]) && Instant::now() < deadline {}
    });
    soon("ended", CUT, || {
        let mut process = start(&fake, "--drain-timeout 300ms");
        let mut client = Client::connect(process.address());
        client.send(support::post("/api/chat", "{}"));
        client.head_of("POST");
        let mut last = 0;
        eventually("every buffer to be full", || {
            let (_, unread) = support::queues_to_client(&client);
            std::mem::replace(&mut last, unread).eq(&unread).then_some(()).filter(|()| unread > 0)
        });
        let start = Instant::now();
        process.signal(Signal::TERM);
        assert_eq!(process.exit().code(), Some(0));
        println!("ended after {} ms", start.elapsed().as_millis());
        start.elapsed()
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let gate = Gate::new();
    let fake = fake(&gate);
    let mut process = start(&fake, "");
    process.connect_ready();
    let mut client = stream(process.address());
    process.signal(Signal::TERM);
    refused(process.address());
    let start = Instant::now();
    process.signal(Signal::TERM);
    let status = process.exit();
    println!("ended {} ms after the second signal", start.elapsed().as_millis());
    assert!(start.elapsed() < SOON, "ended only after {:?}", start.elapsed());
    assert_eq!(status.code(), Some(support::SECOND_TERM_CODE));
    assert_ne!(client.rest().1, End::Whole);
    gate.open();
}

#[test]
fn without_work_it_ends_at_once() {
    let fake = fake(&Gate::new());
    let mut process = start(&fake, "");
    let idle: Vec<Client> = (0..20).map(|_| process.connect_ready()).collect();
    let start = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0));
    println!("ended after {} ms", start.elapsed().as_millis());
    assert!(start.elapsed() < SOON, "ended only after {:?}", start.elapsed());
    drop(idle);
}

#[test]
fn half_a_request_is_not_waited_for() {
    let fake = fake(&Gate::new());
    let mut process = start(&fake, "");
    process.connect_ready();
    let mut halves: Vec<Client> = (0..20).map(|_| Client::connect(process.address())).collect();
    halves.iter_mut().for_each(|half| half.send("GET /x HTTP/1.1\r\nHost: local"));
    // So long that all have come.
    assert_eq!(process.connect_ready().get("/x").text(), "ok");
    let start = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0));
    println!("ended after {} ms", start.elapsed().as_millis());
    assert!(start.elapsed() < SOON, "ended only after {:?}", start.elapsed());
}

#[test]
fn a_request_under_way_is_answered() {
    let gate = Gate::new();
    let held = gate.clone();
    let fake = Fake::unlike_ollama(move |call| {
        call.read_body();
        call.wait(&held, "the daemon to be told to stop");
        call.answer("200 OK", "text/plain", "done");
    });
    let mut process = start(&fake, "");
    let mut client = Client::connect(process.address());
    client.send(support::post("/api/chat", "{}"));
    fake.whole_request(0);
    process.signal(Signal::TERM);
    refused(process.address());
    gate.open();
    let answer = client.answer_to("POST");
    assert_eq!((answer.status(), &*answer.text(), answer.end), (200, "done", End::Whole));
    assert_eq!(process.exit().code(), Some(0));
}

#[test]
fn nobody_reads_its_log() {
    let fake = fake(&Gate::new());
    let mut process = start(&fake, "--log-level debug");
    let mut client = process.connect_ready();
    process.close_log();
    for _ in 0..50 {
        assert_eq!(client.get("/x").text(), "ok");
    }
    let mut other = Client::connect(process.address());
    assert_eq!(other.get("/x").text(), "ok");
    assert!(process.is_running());
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_stalls_no_request() {
    let fake = fake(&Gate::new());
    let process = start(&fake, "--log-level debug");
    let mut client = process.connect_ready();
    process.stall_log();
    // More than a pipe holds, and more than a queue in front of it should.
    for n in 0..4000 {
        assert_eq!(client.get(&format!("/{}", "x".repeat(190))).text(), "ok", "request {n}");
    }
}
