//! Faults of the machine that a daemon runs on, and clients that wear it out: what is injected,
//! what must be seen and within what time. Those of the network are in tests/netns, those of
//! Ollama in the files that are named after them; `make faults` puts all of them into one table.
//!
//! Each test prints a line for that table: what, the bound, what was measured. Lost is a request
//! that brought neither a whole answer nor an explicit error; none may be.
#![cfg(target_os = "linux")]

mod support;

mod faults {
    mod ends;
    mod roles;
    mod threads;
}

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Signal};
use socket2::{Domain, Socket, Type};
use support::{Client, End, Fake, Gate, PATIENCE, Process, eventually, ndjson};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// What a machine with other tests at the same time may take; `make faults` allows twice the limit.
const SLACK: u32 = 30;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The line for the table, and the verdict.
fn judge(what: &str, took: Duration, bound: Duration) {
    println!("fault: {what} {} ms (limit {} ms)", took.as_millis(), bound.as_millis());
    assert!(took <= bound * SLACK, "{what} took {took:?}, limit {bound:?} × {SLACK}");
}

fn arguments(fake: &Fake) -> String {
    format!("--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {}", fake.address)
}

/// Waits until a new connection's request is answered by Ollama; how long that took.
fn serving(address: SocketAddr) -> Duration {
    let start = Instant::now();
    eventually("a request to get through", || works(address).then_some(()));
    start.elapsed()
}

fn works(address: SocketAddr) -> bool {
    status(address).is_ok_and(|status| status == 200)
}

/// What one request on a new connection comes to: a status, or how it was cut before any.
fn status(address: SocketAddr) -> Result<u16, End> {
    let Ok(stream) = TcpStream::connect_timeout(&address, ms(10_000)) else {
        return Err(End::CutByReset);
    };
    drop(stream);
    let mut client = Client::connect(address);
    client.try_send(support::request("GET", "/x", ""));
    let head = client.try_head()?;
    Ok(head.status())
}

/// Streams that have begun; the gate lets them end.
fn streaming(gate: &Gate) -> Fake {
    let held = gate.clone();
    Fake::unlike_ollama(move |call| {
        call.read_body();
        if call.target() != "/api/chat" {
            return call.answer("200 OK", "text/plain", "ok");
        }
        call.send(ndjson());
        call.send_chunk("{\"a\":1}\n");
        // From the first of five hundred streams to the last one's beginning.
        if held.wait_for(3 * PATIENCE) {
            call.send_chunk("{\"a\":2}\n");
            call.send("0\r\n\r\n");
        }
    })
}

fn stream(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.send(support::post("/api/chat", "{}"));
    assert_eq!(client.head_of("POST").status(), 200);
    client.read_until(b"\n");
    client
}

/// That a stream goes on to its end.
fn finish(mut client: Client) {
    let (rest, end) = client.rest();
    assert_eq!((rest.as_slice(), end), (&b"{\"a\":2}\n"[..], End::Whole), "a stream was lost");
}

#[test]
fn no_descriptors_for_ten_seconds() {
    let gate = Gate::new();
    let fake = streaming(&gate);
    let mut process = Process::start(&arguments(&fake));
    drop(process.connect_ready());
    let address = process.address();
    let kept = stream(address);
    process.limit(Resource::Nofile, Some(process.descriptors() as u64));
    let (start, before) = (Instant::now(), process.cpu_ticks());
    let (mut refused, mut answered) = (0, 0);
    while start.elapsed() < Duration::from_secs(10) {
        // A connection that isn't accepted may wait in the kernel; it is not lost, for its client
        // sees no answer, and no other end than its own.
        let stream = TcpStream::connect_timeout(&address, ms(500)).expect("the port stays open");
        stream.set_read_timeout(Some(ms(300))).expect("a limit");
        drop(stream);
        match works_within(address, ms(300)) {
            Some(200) => answered += 1,
            Some(503) => refused += 1,
            Some(other) => panic!("status {other}"),
            None => {}
        }
    }
    let used = Duration::from_millis((process.cpu_ticks() - before) * 10);
    println!("fault: without descriptors: {answered} answered, {refused} refused with 503");
    judge("EMFILE for 10 s, CPU used meanwhile", used, ms(1000));
    process.limit(Resource::Nofile, Some(4096));
    judge("EMFILE over, to the first answer", serving(address), ms(1000));
    gate.open();
    finish(kept);
    assert!(process.is_running());
}

/// The status that comes within this time, if any does.
fn works_within(address: SocketAddr, time: Duration) -> Option<u16> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect_timeout(&address, time).ok()?;
    stream.set_read_timeout(Some(time)).ok()?;
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.split(' ').nth(1)?.parse().ok()
}

/// Everybody is answered or told while no thread can be started, and served once one can.
fn without_threads(name: &str, process: &mut Process, resource: Resource, enough: u64) {
    let address = process.address();
    drop(process.connect_ready());
    let start = Instant::now();
    let before = process.cpu_ticks();
    let mut counts = [0; 2];
    let mut held: Vec<Client> = Vec::new();
    for _ in 0..60 {
        let mut client = Client::connect(address);
        client.try_send(support::request("GET", "/x", ""));
        match client.try_head().map(|head| head.status()) {
            Ok(200) => {
                counts[0] += 1;
                held.push(client); // Its thread is not free for the next one.
            }
            Ok(503) => counts[1] += 1,
            other => panic!("{name}: {other:?}"),
        }
    }
    println!("fault: {name}: {} answered, {} refused with 503", counts[0], counts[1]);
    assert!(counts[1] > 0, "{name}: nothing was injected");
    judge(&format!("{name}, 60 connections answered or told"), start.elapsed(), ms(2000));
    let used = Duration::from_millis((process.cpu_ticks() - before) * 10);
    assert!(used < Duration::from_secs(2), "{name}: {used:?} of CPU");
    process.limit(resource, Some(enough));
    let mut client = Client::connect(address);
    let start = Instant::now();
    assert_eq!(client.get("/x").status(), 200, "{name}: as soon as it is over");
    judge(&format!("{name} over, to the first answer"), start.elapsed(), ms(1000));
    for mut client in held {
        assert_eq!(client.get("/x").status(), 200, "{name}: those that were in");
    }
    assert!(process.is_running());
}

#[test]
fn no_address_space_for_a_thread() {
    let fake = Fake::unlike_ollama_saying(OK);
    let mut process = Process::start(&arguments(&fake));
    drop(process.connect_ready());
    // Room for what malloc takes at a time, without which a process ends, but for no stack.
    let room = 192 * 1024;
    let size = process.status("VmSize") as u64 * 1024;
    process.limit(Resource::As, Some(size + room));
    without_threads("no address space", &mut process, Resource::As, 8 << 30);
}

/// More connections than there is room for: each is answered or told, and once they are gone the
/// next one is served.
fn crowded(name: &str, process: &mut Process, connections: usize) -> usize {
    let address = process.address();
    drop(process.connect_ready());
    let before = process.cpu_ticks();
    let start = Instant::now();
    let mut counts = [0; 2];
    let mut held: Vec<Client> = Vec::new();
    for _ in 0..connections {
        let mut client = Client::connect(address);
        client.try_send(support::request("GET", "/x", ""));
        match client.try_head().map(|head| head.status()) {
            Ok(200) => {
                counts[0] += 1;
                held.push(client);
            }
            Ok(503) => counts[1] += 1,
            other => panic!("{name}: {other:?} after {counts:?}"),
        }
    }
    let took = start.elapsed();
    println!("fault: {name}: {} answered, {} refused with 503", counts[0], counts[1]);
    assert!(counts[1] > 0, "{name}: nothing was injected");
    judge(&format!("{name}, {connections} connections answered or told"), took, ms(5000));
    let used = Duration::from_millis((process.cpu_ticks() - before) * 10);
    judge(&format!("{name}, CPU used meanwhile"), used, ms(2000));
    drop(held);
    judge(&format!("{name}, all gone, to the first answer"), serving(address), ms(1000));
    assert!(process.is_running());
    counts[0]
}

#[test]
fn no_thread_can_be_started() {
    if !rustix::process::getuid().is_root() || !Path::new("/usr/bin/setpriv").exists() {
        return println!("fault: skipped, a limit of processes binds nobody but other users");
    }
    // A user that has no other process, and room for some threads more than it starts with.
    let fake = Fake::unlike_ollama_saying(OK);
    let dir = std::env::temp_dir().join(format!("ollana-nobody-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::os::unix::fs::chown(&dir, Some(64123), Some(64123)).expect("a directory of its own");

    let user = ["setpriv", "--reuid=64123", "--regid=64123", "--clear-groups", "--inh-caps=-all"];
    let mut process = Process::within(
        &[&user[..], &["prlimit", "--nproc=30", "--"]].concat(),
        &format!("{} --state-dir {}", arguments(&fake), dir.display()),
    );
    crowded("RLIMIT_NPROC 30", &mut process, 100);
    drop(process);
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn an_eighth_of_a_gigabyte_for_500_connections() {
    let fake = Fake::unlike_ollama_saying(OK);
    let mut process = Process::within(&["prlimit", "--as=134217728", "--"], &arguments(&fake));
    let answered = crowded("RLIMIT_AS 128 MB", &mut process, 500);
    assert!(answered > 100, "{answered}");
}

#[test]
fn a_log_that_cannot_be_written() {
    let fake = Fake::unlike_ollama_saying(OK);
    let all = format!("{} --log-level debug", arguments(&fake));
    let listen = support::free_tcp_port();
    let all = all.replace("127.0.0.1:0", &listen.to_string());
    for (what, shell) in [
        ("disk full under the log", "exec \"$0\" \"$@\" 2>/dev/full"),
        ("stderr closed", "exec \"$0\" \"$@\" 2>&-"),
        ("stdin, stdout and stderr closed", "exec \"$0\" \"$@\" 0<&- 1>&- 2>&-"),
        ("disk full under --log-file", "exec \"$0\" \"$@\" --log-file /dev/full"),
    ] {
        let mut process = Process::within(&["sh", "-c", shell], &all);
        eventually(what, || TcpStream::connect(listen).is_ok().then_some(()));
        let mut slowest = Duration::ZERO;
        for _ in 0..200 {
            let start = Instant::now();
            assert!(works(listen), "{what}");
            slowest = slowest.max(start.elapsed());
        }
        judge(&format!("{what}, slowest of 200 requests"), slowest, ms(250));
        assert!(process.is_running(), "{what}");
        process.signal(Signal::TERM);
        assert!(process.exit().success(), "{what}");
    }
}

#[test]
fn the_clock_jumps() {
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !Path::new(LIBRARY).exists() {
        return println!("fault: skipped, libfaketime is not installed: clock jumps");
    }
    let gate = Gate::new();
    let fake = streaming(&gate);
    let dir = std::env::temp_dir().join(format!("ollana-clock-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let file = dir.join("offset");
    let set = |offset: &str| std::fs::write(&file, offset).expect("an offset");
    set("+0");
    let mut process = Process::with_env(
        &format!("{} --log-level debug", arguments(&fake)),
        &[
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a path")),
            ("FAKETIME_NO_CACHE", "1"),
            // Monotonic clocks don't jump.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    drop(process.connect_ready());
    let address = process.address();
    let kept = stream(address);
    let mut slowest = Duration::ZERO;
    for offset in ["+10y", "-10y", "+0"] {
        set(offset);
        // Longer than between two checks, so that a clock that is trusted would be missed.
        let start = Instant::now();
        while start.elapsed() < ms(1500) {
            let asked = Instant::now();
            assert!(works(address), "at {offset}");
            slowest = slowest.max(asked.elapsed());
        }
    }
    let log = process.log();
    let years: std::collections::BTreeSet<&str> =
        log.lines().filter_map(|line| line.get(..4)).filter(|y| y.starts_with("20")).collect();
    assert!(years.len() >= 3, "the log's clock did jump: {years:?}");
    assert!(!log.contains("server down"), "{log}");
    judge("clock +10, -10 years, slowest request", slowest, ms(100));
    gate.open();
    finish(kept);
    assert!(process.is_running());
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn the_port_is_taken() {
    let fake = Fake::unlike_ollama_saying(OK);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let start = Instant::now();
    let mut process =
        Process::start(&arguments(&fake).replace("127.0.0.1:0", &address.to_string()));
    let code = process.exit().code();
    judge("port taken, to the exit", start.elapsed(), ms(1000));
    assert_eq!(code, Some(1));
    let said = process.line("cannot listen on");
    assert!(said.contains(&address.to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn sigterm_with_a_hundred_streams() {
    let gate = Gate::new();
    let fake = streaming(&gate);
    let mut process = Process::start(&arguments(&fake));
    drop(process.connect_ready());
    let address = process.address();
    let streams: Vec<Client> = (0..100).map(|_| stream(address)).collect();
    let start = Instant::now();
    process.signal(Signal::TERM);
    eventually("new connections to be refused", || {
        TcpStream::connect_timeout(&address, ms(100)).is_err().then_some(())
    });
    judge("SIGTERM, new connections refused", start.elapsed(), ms(100));
    gate.open();
    let start = Instant::now();
    streams.into_iter().for_each(finish);
    assert!(process.exit().success());
    judge("SIGTERM, 100 streams whole, to the exit", start.elapsed(), ms(1000));
}

#[test]
fn a_storm_of_resets() {
    let fake = Fake::unlike_ollama_saying(OK);
    let mut process = Process::start(&arguments(&fake));
    drop(process.connect_ready());
    let address = process.address();
    let over = AtomicBool::new(false);
    let mut slowest = Duration::ZERO;
    let mut served = 0;
    thread::scope(|scope| {
        for worker in 0..2 {
            let over = &over;
            scope.spawn(move || {
                for n in 0..4000 {
                    let mut client = Client::connect(address);
                    match (n + worker) % 4 {
                        0 => {}
                        1 => drop(client.try_send("GET /x HT")),
                        2 => drop(client.try_send(support::request("GET", "/x", ""))),
                        _ => drop(
                            client.try_send("POST /x HTTP/1.1\r\nContent-Length: 9999\r\n\r\nx"),
                        ),
                    }
                    client.reset();
                }
                over.store(true, Relaxed);
            });
        }
        while !over.load(Relaxed) {
            let start = Instant::now();
            let status = status(address);
            assert_eq!(status, Ok(200), "in the storm, after {:?}", start.elapsed());
            slowest = slowest.max(start.elapsed());
            served += 1;
        }
    });
    println!("fault: 8,000 resets, {served} requests served meanwhile");
    judge("RST storm of 8,000, slowest request", slowest, ms(250));
    assert!(process.is_running());
}

/// Whoever stands behind them in the queue would wait for all of them.
#[test]
fn a_connection_that_was_reset_in_the_queue_costs_no_worker() {
    let fake = Fake::unlike_ollama_saying(OK);
    let process = Process::start(&arguments(&fake));
    drop(process.connect_ready());
    let address = process.address();
    serving(address);
    let before = process.status("Threads");
    process.signal(Signal::STOP);
    eventually("it to stop", || process.file("stat").contains(") T ").then_some(()));
    for n in 0..500 {
        let mut client = Client::connect(address);
        if n % 2 == 0 {
            client.send(support::request("GET", "/x", ""));
        }
        client.reset();
    }
    let mut behind = Client::connect(address);
    behind.send(support::request("GET", "/x", ""));
    process.signal(Signal::CONT);
    assert_eq!(behind.head_of("GET").status(), 200);
    let workers = process.status("Threads").saturating_sub(before);
    assert!(workers <= 1, "{workers} workers for nobody");
}

/// A connection from another address of this machine: one source may have only so many.
fn from(source: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, source], 0)).into()).expect("a source");
    socket.connect(&to.into()).expect("connected");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    stream
}

#[test]
fn two_proxies_share_the_descriptors_of_their_process() {
    const DESCRIPTORS: usize = 256;
    let gate = Gate::new();
    let fake = streaming(&gate);
    let both = "--mode both --listen 127.0.0.1:0 --share 127.0.0.1:0 --discovery-port 0";
    let arguments = format!("{both} --ollama {}", fake.address);
    let process = Process::with_descriptors(&arguments, DESCRIPTORS);
    drop(process.connect_ready());
    let mut streams = Vec::new();
    for address in process.addresses() {
        // Each has a descriptor here, at Ollama, and two in between.
        loop {
            let mut client = Client::connect(address);
            client.send(support::post("/api/chat", "{}"));
            let head = client.head_of("POST");
            if head.status() != 200 {
                assert_eq!(head.status(), 503);
                break;
            }
            client.read_until(b"\n");
            streams.push(client);
        }
    }
    let (count, used) = (streams.len(), process.descriptors());
    println!("fault: {count} streams with {DESCRIPTORS} descriptors, of which {used} are used");
    assert!(count > DESCRIPTORS / 4 && used < DESCRIPTORS, "{count} streams, {used} descriptors");
    assert!(!process.log().contains("cannot accept"), "it never ran out of descriptors");
    gate.open();
    streams.into_iter().for_each(finish);
}

#[test]
fn twelve_addresses_that_take_all_places() {
    taken_by_twelve("", 0..4);
}

/// Nothing else gives way to a newcomer.
#[test]
fn twelve_addresses_that_take_all_places_with_bodies_that_drip() {
    taken_by_twelve(", with bodies", 3..4);
}

/// Addresses take all places with connections of these kinds.
fn taken_by_twelve(how: &str, kinds: std::ops::Range<usize>) {
    const CROWDERS: u8 = 12;
    let gate = Gate::new();
    let fake = streaming(&gate);
    // So few that the tests beside this one don't notice.
    let mut process = Process::with_descriptors(&arguments(&fake), 900);
    drop(process.connect_ready());
    let address = process.address();
    let places = process.line("allow fewer connections");
    let places = places.split("max=").nth(1).and_then(|max| max.trim().parse().ok());
    let places: usize = places.expect("how many places there are");
    let client = |n: u8| {
        let source = std::net::IpAddr::from([127, 0, 2, n]);
        Client::connect_from(source, address).expect("a connection")
    };
    let mut streams: Vec<Client> = (1..=CROWDERS).map(client).collect();
    for stream in &mut streams {
        stream.send(support::post("/api/chat", "{}"));
        assert_eq!(stream.head_of("POST").status(), 200);
        stream.read_until(b"\n");
    }
    // Connections without a request, with half a head, with a request that is over, and with one whose
    // body hardly comes.
    let kinds: Vec<usize> = kinds.collect();
    let crowd = |n: u8, kind: usize| {
        let mut client = client(n);
        match kinds[kind % kinds.len()] {
            0 => {}
            1 => drop(client.try_send("POST /api/chat HTTP/1.1\r\nHost: loc")),
            2 => {
                client.try_send(support::request("GET", "/x", ""));
                let _ = client.try_head();
            }
            _ => {
                let head = "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n";
                client.try_send(format!("{head}Expect: 100-continue\r\n\r\n"));
                let _ = client.try_head();
                client.try_send("x");
            }
        }
        client
    };
    let mut held: Vec<Client> = Vec::new();
    for kind in 0..places / usize::from(CROWDERS) + 9 {
        held.extend((1..=CROWDERS).map(|n| crowd(n, kind)));
    }
    assert!(process.descriptors() > places, "all {places} places are taken");
    let over = AtomicBool::new(false);
    let mut honest = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Those whose turn it is come back, whether they were closed or not.
            let turns = (1..=CROWDERS).cycle().zip((0..held.len()).cycle());
            for (n, at) in turns.take_while(|_| !over.load(Relaxed)) {
                held[at] = crowd(n, at);
            }
        });
        for _ in 0..20 {
            let start = Instant::now();
            let mut one = client(99);
            one.try_send(support::request("GET", "/x", ""));
            honest.push((one.try_head().map(|head| head.status()), start.elapsed()));
        }
        over.store(true, Relaxed);
    });
    assert!(honest.iter().all(|(status, _)| *status == Ok(200)), "turned away: {honest:?}");
    let slowest = honest.iter().map(|(_, took)| *took).max().unwrap_or_default();
    judge(&format!("crowded by twelve addresses{how}, slowest of 20 requests"), slowest, ms(100));
    gate.open();
    streams.into_iter().for_each(finish);
    assert!(process.is_running());
}

#[test]
fn five_hundred_slow_heads_bodies_and_readers() {
    use std::io::{Read, Write};
    let fake = Fake::unlike_ollama(|call| {
        if call.target().starts_with("/api/blobs/") {
            return call.hang_reading();
        }
        if call.target() == "/slow-reader" {
            call.read_body();
            call.send(ndjson());
            // More than the reader's buffer takes; all of them together must fit into the kernel's.
            call.send_chunk(vec![b'x'; 64 * 1024]);
            return call.hang();
        }
        call.read_body();
        call.answer("200 OK", "text/plain", "ok");
    });
    let mut process = Process::start(&arguments(&fake));
    drop(process.connect_ready());
    let address = process.address();
    let open = |source: u8, head: &str| {
        let mut stream = from(source, address);
        stream.write_all(head.as_bytes()).expect("sent");
        stream
    };
    // Each time, five hundred have come as far as they do: what that takes, a busy machine decides.
    let mut times = Vec::new();
    let mut request = |beside: &str| {
        let start = Instant::now();
        assert!(works(address), "beside {beside}");
        times.push(start.elapsed());
        println!("fault: beside {beside}, a new request {:?}", start.elapsed());
    };
    let slow_heads = Instant::now();
    let mut heads: Vec<TcpStream> =
        (0..500).map(|_| open(2, "GET /x HTTP/1.1\r\nHost: loc")).collect();
    request("500 slow heads");
    let body = "POST /api/blobs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nx";
    let before = fake.count();
    let mut bodies: Vec<TcpStream> = (0..500).map(|_| open(3, body)).collect();
    eventually("the bodies to be on their way", || (fake.count() >= before + 500).then_some(()));
    request("500 slow bodies more");
    let reader = "GET /slow-reader HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let readers: Vec<TcpStream> = (0..500).map(|_| open(4, reader)).collect();
    readers.iter().for_each(|stream| assert!(stream.peek(&mut [0]).is_ok_and(|n| n == 1)));
    request("500 slow readers more");
    for n in 0..7 {
        for stream in bodies.iter_mut().skip(n * 70).take(70) {
            let _ = stream.write_all(b"x");
        }
        request("all of them");
    }
    let slowest = times.iter().copied().max().unwrap_or_default();
    judge("1,500 slow heads, bodies and readers, slowest of 10 new requests", slowest, ms(100));
    let mut told = 0;
    for stream in &mut heads {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        told += usize::from(answer.starts_with(b"HTTP/1.1 408"));
    }
    assert_eq!(told, 500, "slow heads are told");
    judge("500 slow heads cut after", slow_heads.elapsed(), ms(12_000));
    println!("fault: 1,500 slow clients: {} KB resident", process.status("VmRSS"));
    drop((bodies, readers));
    judge("slow clients gone, to the first answer", serving(address), ms(1000));
    assert!(process.is_running());
}

/// A state directory on a file system that never answers, as a mount whose server is gone. It lives
/// as long as the process that is started in it.
#[test]
fn a_state_directory_that_never_answers() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return println!("fault: skipped, only root can mount what never answers");
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dead-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let script = format!("{} && echo mounted >&2 && exec \"$0\" \"$@\"", mount_silent(&dir));
    let within = ["unshare", "-m", "sh", "-c", &script];
    let fake = Fake::unlike_ollama_saying(OK);
    let state = |more: &str| format!("{} --state-dir {}{more}", arguments(&fake), dir.display());
    let mut process = Process::within(&within, &state(""));
    process.line("mounted");
    // It is given up, and said.
    let start = Instant::now();
    assert_eq!(process.exit().code(), Some(1), "{}", process.log());
    judge("state directory never answers, refused after", start.elapsed(), ms(8000));
    let error = process.line("cannot use the keys");
    assert!(error.ends_with("the disk does not answer"), "{error}");
    // A signal is heard meanwhile.
    let mut process = Process::within(&within, &state(""));
    process.line("mounted");
    eventually("it to wait for the disk", || {
        let tasks = std::fs::read_dir(process.path("task")).ok()?;
        let name = |task: std::path::PathBuf| std::fs::read_to_string(task.join("comm")).ok();
        let mut names = tasks.filter_map(|task| name(task.ok()?.path()));
        names.any(|name| name.trim() == "disk").then_some(())
    });
    let start = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0), "{}", process.log());
    judge("state directory never answers, SIGTERM to the end", start.elapsed(), ms(1000));
    // Log and pid file are given up as well.
    for (option, said) in [("--log-file", "cannot open the log file"), ("--pid-file", "pid file")] {
        let elsewhere = format!("{} {option} {}/file", arguments(&fake), dir.display());
        let mut process = Process::within(&within, &elsewhere);
        assert_eq!(process.exit().code(), Some(1), "{option}: {}", process.log());
        process.line(said);
    }
    std::fs::remove_dir(&dir).expect("the folder's end");
}

/// For a shell; the mount ends with the last process that has its descriptor.
fn mount_silent(dir: &Path) -> String {
    format!(
        "exec 7<>/dev/fuse; mount -i -t fuse -o fd=7,rootmode=40000,user_id=0,group_id=0 none {}",
        dir.display()
    )
}

/// The same for a daemon that runs already: it goes on, and ends when it is told to.
#[test]
fn a_state_directory_that_answers_no_longer() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return println!("fault: skipped, only root can mount what never answers");
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dies-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let fake = Fake::unlike_ollama_saying(OK);
    let state = format!("{} --state-dir {}", arguments(&fake), dir.display());
    let mut process = Process::within(&["unshare", "-m"], &state);
    drop(process.connect_ready());
    let pid = process.path("").trim_start_matches("/proc/").trim_end_matches('/').to_owned();
    let script = format!("{} && echo mounted && exec sleep 120", mount_silent(&dir));
    let mut mount = std::process::Command::new("nsenter")
        .args(["-t", &pid, "-m", "sh", "-c", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("nsenter runs");
    let mut said = [0; 7];
    let stdout = mount.stdout.as_mut().expect("its output");
    std::io::Read::read_exact(stdout, &mut said).expect("it is mounted");
    // The keys are looked at each second.
    let stacks = || -> Option<()> {
        let tasks = std::fs::read_dir(process.path("task")).ok()?;
        let stuck = tasks.flatten().find(|task| {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            read("comm").trim() == "keeper" && read("stat").contains(") D ")
        });
        stuck.map(drop)
    };
    eventually("a thread that waits for the disk", stacks);
    judge("state directory gone, requests go on", serving(process.address()), ms(1000));
    let start = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0), "{}", process.log());
    judge("state directory gone, SIGTERM to the end", start.elapsed(), ms(1000));
    let _ = mount.kill().and_then(|()| mount.wait());
    std::fs::remove_dir_all(&dir).expect("the folder's end");
}
