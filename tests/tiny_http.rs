//! The defects of tiny_http 0.12 that a network can reach, tried from a socket. None of them may be
//! reached from one.

mod support;

use std::time::{Duration, Instant};

use support::{Client, End, Fake, MODEL, Ollama, Process, Way, eventually, request};

/// The promise is 100 ms; this allows for a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// A new client is served, and soon.
fn assert_serves(address: std::net::SocketAddr, what: &str) {
    let start = Instant::now();
    assert_eq!(Client::connect(address).get(MODEL).status(), 200, "{what}");
    let took = start.elapsed();
    println!("{what}: a new request took {} µs", took.as_micros());
    assert!(took < SOON, "{what}: a new request took {took:?}");
}

#[test]
fn k1_a_burst_of_connections_is_answered() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        for round in 0..3 {
            let start = Instant::now();
            let mut clients: Vec<Client> = (0..200).map(|_| chain.connect()).collect();
            for client in &mut clients {
                client.send(request("GET", MODEL, ""));
            }
            for (n, client) in clients.iter_mut().rev().enumerate() {
                assert_eq!(client.answer_to("GET").status(), 200, "{way:?} round {round}, {n}");
            }
            println!("{way:?}: 200 at once took {} ms", start.elapsed().as_millis());
        }
        // The same while connections that came before stay, busy and idle.
        let mut held: Vec<Client> = (0..16).map(|_| chain.connect()).collect();
        held.iter_mut().step_by(2).for_each(|client| client.send("POST /x HTTP/1.1\r\n"));
        let mut clients: Vec<Client> = (0..16).map(|_| chain.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get(MODEL).status(), 200, "{way:?}: beside connections that stay");
        }
    }
}

#[test]
fn k2_a_declared_length_is_only_a_number() {
    let fake = Fake::unlike_ollama(|call| {
        if call.target() == "/upload" {
            return call.hang_reading();
        }
        call.answer("200 OK", "text/plain", "ok");
    });
    let mut process = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {}",
        fake.address
    ));
    let address = process.address();
    process.connect_ready();
    let before = process.status("VmHWM");
    for length in ["100000000000", "999999999999999999"] {
        for (host, target) in
            [("evil.example", "/x"), ("localhost", "/x"), ("localhost", "/upload")]
        {
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
            );
            // Answered although the body is still to come, or left in the midst of it.
            let mut client = Client::connect(address);
            client.send(&head);
            if target == "/x" {
                let start = Instant::now();
                assert_eq!(client.answer_to("POST").end, End::Whole, "{host} {length}");
                assert!(start.elapsed() < SOON, "{host} {length}: after {:?}", start.elapsed());
            }
            for reset in [false, true] {
                let mut client = Client::connect(address);
                client.send(&head);
                client.try_send([b'x'; 100_000]);
                if reset {
                    client.reset()
                } else {
                    client.leave()
                };
            }
        }
    }
    assert_serves(address, "huge lengths");
    assert!(process.is_running());
    let grown = process.status("VmHWM") - before;
    // On a busy machine, a dozen threads are there at once, and in this build their stacks are deep.
    assert!(grown < 16 << 10, "{grown} KB more for bodies that never came");
}

#[test]
fn k3_no_descriptors_left_and_back_again() {
    let fake = Ollama::with(&["m"]);
    let mut process = Process::with_descriptors(
        &format!("--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {}", fake.address),
        48,
    );
    let address = process.address();
    drop(process.connect_ready());
    let start = Instant::now();
    let mut clients: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send(request("GET", MODEL, ""));
            client
        })
        .collect();
    let answers: Vec<u16> = clients.iter_mut().map(|c| c.answer_to("GET").status()).collect();
    let refused = answers.iter().filter(|status| **status == 503).count();
    println!("{refused} of 50 got 503 after {} ms", start.elapsed().as_millis());
    assert_eq!(refused + answers.iter().filter(|status| **status == 200).count(), 50);
    assert!(refused > 25, "{refused} were told that there are no descriptors");
    assert!(process.is_running(), "ended without descriptors");
    let cpu = cpu_ticks(&process);
    // It must not spin while the shortage lasts: half a second by a clock that isn't its own.
    let until = Instant::now() + Duration::from_millis(500);
    eventually("half a second", || (Instant::now() > until).then_some(()));
    let used = cpu_ticks(&process) - cpu;
    assert!(used < 25, "{used} of 50 ticks spent on waiting for descriptors");
    drop(clients);
    let start = Instant::now();
    eventually("the daemon to serve again", || {
        let mut client = Client::connect(address);
        client.try_send(request("GET", MODEL, ""));
        let head = client.try_head();
        head.is_ok_and(|head| head.status() == 200).then_some(())
    });
    println!("served again after {} ms", start.elapsed().as_millis());
    assert!(start.elapsed() < SOON, "served again only after {:?}", start.elapsed());
}

/// Time on a processor so far, in hundredths of a second.
fn cpu_ticks(process: &Process) -> u64 {
    let stat = process.file("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn k4_other_versions_hold_no_thread() {
    let fake = Ollama::with(&["m"]);
    let chain = Way::OneHop.to(&fake);
    let mut held = Vec::new();
    for version in ["2.0", "3.0", "1.2", "0.9", "11"] {
        for n in 0..50 {
            let mut client = chain.connect();
            client.send(format!("GET / HTTP/{version}\r\nHost: localhost\r\n\r\n"));
            let status = client.answer_to("GET").status();
            assert!(matches!(status, 400 | 505), "HTTP/{version}, {n}: {status}");
            held.push(client);
        }
    }
    eventually("all of them to be let go", || (chain.front().connections() == 0).then_some(()));
    assert_serves(chain.address(), "other versions");
}

#[test]
fn k5_resets_at_any_moment() {
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let whole = request("POST", "/x", "hello");
        for n in 0..300 {
            let mut client = chain.connect();
            client.try_send(&whole[..n % (whole.len() + 1)]);
            client.reset();
        }
        assert_serves(chain.address(), &format!("{way:?} after 300 resets"));
        eventually("all of them to be let go", || (chain.front().connections() == 0).then_some(()));
    }
}

#[test]
fn k6_a_head_has_an_end_and_a_deadline() {
    let fake = Ollama::with(&["m"]);
    let chain = Way::OneHop.to(&fake);
    let mut client = chain.connect();
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\nX: ");
    client.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let block = [b'x'; 64 * 1024];
    // It is told at once, and what it sends after that is drained for half a second at most.
    let start = Instant::now();
    while client.try_send(block) {
        assert!(start.elapsed() < SOON, "a head without an end is taken for ever");
    }
    drop(client);
    assert_serves(chain.address(), "an endless head");

    let mut slow: Vec<Client> = (0..500).map(|_| chain.connect()).collect();
    for (n, client) in slow.iter_mut().enumerate() {
        client.send(["G", "GET / HTTP/1.1\r\n", "POST /x HTTP/1.1\r\nHost: localhost\r\n"][n % 3]);
    }
    eventually("500 heads to be under way", || (chain.front().connections() == 500).then_some(()));
    for _ in 0..10 {
        assert_serves(chain.address(), "beside 500 slow heads");
    }
}

#[test]
fn k7_nobody_reads_two_requests_into_one() {
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for way in Way::ALL {
        let fake = Ollama::with(&["m"]);
        let chain = way.to(&fake);
        let chunked = format!("0\r\n\r\n{hidden}");
        let length = chunked.len();
        for head in [
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
            format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
            format!("Content-Length: {length}\r\nTransfer-Encoding: xchunked"),
            format!("Content-Length: +5\r\nX-Length: {length}"),
            format!("Content-Length: 5\r\nContent-Length: {length}"),
            "Transfer-Encoding: chunked, identity".to_owned(),
        ] {
            let mut client = chain.connect();
            client.send(format!("POST /x HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n{chunked}"));
            let (answers, _) = client.read_to_close();
            let answers = String::from_utf8_lossy(&answers).into_owned();
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{way:?} {head:?}: {answers}");
        }
        assert_eq!(fake.count(), 0, "{way:?}");
        // A length that is 5 in 32 bits: everything behind the head is its body.
        let mut client = chain.connect();
        let blob = format!("/api/blobs/sha256:{}", "0".repeat(64));
        client.send(format!(
            "POST {blob} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4294967301\r\n\r\nhello"
        ));
        client.send(hidden);
        fake.wait("the body of a long request", |state| {
            (state.records.first()?.body.len() == 5 + hidden.len()).then_some(())
        });
        client.leave();
        fake.closed(0);
        assert_eq!(fake.count(), 1, "{way:?}");
        assert!(!fake.request(0).is_whole, "{way:?}: a truncated body is no whole one");
    }
}
