//! A thousand streams at once, each different, each whole.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use support::{Client, End, Fake, Gate, PATIENCE, Random, Sum, Way, chunk, ndjson};

/// Streams at once. Wine has one thread for the sockets of all programs: on two busy cores, 200 streams
/// begin within 6 s there, and a thousand don't within 20.
fn streams() -> usize {
    let is_wine = cfg!(windows) && std::env::var_os("WINEPREFIX").is_some();
    if is_wine { 200 } else { 1000 }
}

/// All streams are under way within this time, on whatever machine, and each of them waits a little
/// longer for that.
const ALL_BEGIN: Duration = Duration::from_secs(55);

/// Lines of one stream; half of them are sent before all streams have begun, half after.
const LINES: usize = 16;

/// The lines of a stream, which its number determines.
fn lines(stream: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut random = Random::new(stream);
    (0..LINES).map(move |n| {
        let size = if random.is_one_in(40) { 60_000 } else { 20 + random.below(600) };
        let mut line: Vec<u8> = random.bytes(size).iter().map(|b| b'a' + b % 26).collect();
        line.extend_from_slice(format!(" {stream} {n}\n").as_bytes());
        line
    })
}

fn whole(stream: u64) -> (u64, u64) {
    let mut sum = Sum::default();
    lines(stream).for_each(|line| sum.add(&line));
    sum.get()
}

/// A fake that holds every stream half-way until all have begun; and how many have.
fn fake() -> (Fake, Gate, Arc<AtomicUsize>) {
    let gate = Gate::new();
    let begun = Arc::new(AtomicUsize::new(0));
    let (held, count) = (gate.clone(), Arc::clone(&begun));
    let fake = Fake::unlike_ollama(move |call| {
        call.read_body();
        let stream = call.target().rsplit('/').next().and_then(|n| n.parse().ok());
        call.send(ndjson());
        for (n, line) in lines(stream.expect("a stream's number")).enumerate() {
            if n == LINES / 2 {
                count.fetch_add(1, SeqCst);
                assert!(held.wait_for(3 * PATIENCE), "not all streams began");
            }
            call.send(chunk(line));
        }
        call.send("0\r\n\r\n");
    });
    (fake, gate, begun)
}

#[test]
fn a_thousand_streams_at_once() {
    let streams = streams();
    for way in Way::ALL {
        let (fake, gate, begun) = fake();
        let chain = way.with(&fake, |settings| settings.limits.max_connections = 4096);
        let address = chain.address();
        let start = Instant::now();
        let clients: Vec<_> = (0..streams as u64)
            .map(|stream| {
                let client = move || {
                    let mut client = Client::connect(address);
                    client.stream.set_read_timeout(Some(3 * PATIENCE)).expect("a time-out");
                    client.send(support::post(&format!("/api/chat/{stream}"), "{}"));
                    assert_eq!(client.head_of("POST").status(), 200, "stream {stream}");
                    (stream, client.drain())
                };
                thread::Builder::new().stack_size(128 * 1024).spawn(client).expect("a client")
            })
            .collect();
        while begun.load(SeqCst) < streams {
            let begun = begun.load(SeqCst);
            assert!(start.elapsed() < ALL_BEGIN, "{way:?}: {begun} of {streams} are under way");
            thread::sleep(Duration::from_millis(2));
        }
        println!("{way:?}: {streams} under way after {} ms", start.elapsed().as_millis());
        assert!(chain.front().connections() >= streams, "{way:?}");
        gate.open();
        for client in clients {
            let (stream, got) = client.join().expect("a client");
            assert_eq!(got, (whole(stream), End::Whole), "{way:?} stream {stream}");
        }
        println!("{way:?}: all whole after {} ms", start.elapsed().as_millis());
        assert_eq!(fake.count(), streams, "{way:?}");
    }
}

#[test]
fn many_short_requests_at_once() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(|call| {
            let body = call.read_body();
            call.answer("200 OK", "text/plain", body);
        });
        let chain = way.to(&fake);
        let address = chain.address();
        let clients: Vec<_> = (0..16u64)
            .map(|number| {
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    let mut random = Random::new(number);
                    for n in 0..100 {
                        let size = random.below(3000);
                        let body = random.bytes(size);
                        let target = ["/api/chat", "/api/pull", "/x"][n % 3];
                        let answer = client.post(target, &body);
                        let same = answer.body == body && answer.end == End::Whole;
                        assert!(same, "{way:?} client {number}, request {n}: {:?}", answer.head);
                        if random.is_one_in(10) {
                            client = Client::connect(address);
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("a client");
        }
        assert_eq!(fake.count(), 1600, "{way:?}");
    }
}

/// Threads that there may be besides those of an idle process: checks, and workers that just began.
#[cfg(target_os = "linux")]
const FEW: usize = 12;

#[test]
#[cfg(target_os = "linux")]
fn connections_on_which_nothing_comes_cost_no_threads() {
    const COUNT: usize = 200;
    let ollama = support::Ollama::with(&["m"]);
    let process = support::Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama http://{}",
        ollama.address
    ));
    let mut first = process.connect_ready();
    let before = process.status("Threads");
    let mut used: Vec<Client> = (0..COUNT).map(|_| Client::connect(process.address())).collect();
    let mut silent: Vec<Client> = (0..COUNT).map(|_| Client::connect(process.address())).collect();
    for client in &mut used {
        assert_eq!(client.get("/api/tags").status(), 200);
    }
    // Idle workers end after 20 s.
    let deadline = Instant::now() + Duration::from_secs(60);
    while process.status("Threads") > before + FEW {
        assert!(Instant::now() < deadline, "{before} -> {} threads", process.status("Threads"));
        thread::sleep(Duration::from_millis(100));
    }
    for client in used.iter_mut().chain(&mut silent).chain([&mut first]) {
        assert_eq!(client.get("/api/tags").status(), 200);
    }
}
