//! Hours in minutes: as many small requests as the machine can do, one in a hundred of them a
//! failure, through the real binaries. Every body is compared, and when it is over nothing is left
//! behind: `make soak`, with `SOAK=90s`, `20m` or `2h` for how long (two minutes if not said).
//!
//! ```text
//!  8 clients ──► ollana client ──► two ollana servers ──► two Ollamas of ours
//! ```
//!
//! Flat means: memory at the end is at most 512 KB above that after the first fifth of the run, in
//! each process; descriptors and threads are what they were after one request, but for the few
//! connections on which the client goes on asking what the servers have. In the first
//! fifth there are twice the clients, so that what they need later, stacks above all, is there.
//!
//! The other test lives with what changes: servers, the role, and clients that leave.
#![cfg(target_os = "linux")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::{Client, End, Process, Random, Sum, eventually, free_tcp_port};

const CLIENTS: usize = 8;
/// What one process may have more at the end than after the first fifth. Of 16 bytes left behind
/// by each request, the allocator makes 32: in two minutes that is ten times as much.
const GROWTH_KB: usize = 512;
/// Connections that the client's checkers may have to two servers, and threads of a server that serve
/// them. Of ten thousand failures, far more would be left.
const CHECKS: [usize; 2] = [4, 10];
/// One request in so many fails on purpose.
const FAILURES: usize = 100;

/// What becomes of a request; all that see it know it from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Answer,
    Stream,
    /// Ollama dies before its answer, or within it.
    DieBefore,
    DieWithin,
    Overloaded,
    /// The client leaves before the answer.
    Leave,
    Malformed,
}

fn deed(number: u64) -> Deed {
    let mut random = Random::new(number);
    if random.is_one_in(FAILURES) {
        let failures =
            [Deed::DieBefore, Deed::DieWithin, Deed::Overloaded, Deed::Leave, Deed::Malformed];
        return *random.pick(&failures);
    }
    if random.is_one_in(3) { Deed::Stream } else { Deed::Answer }
}

/// What the client sends, and what it gets for it.
fn bodies(number: u64) -> [Vec<u8>; 2] {
    let mut random = Random::new(number ^ 0x50AC);
    let sizes = [random.below(600), 1 + random.below(1500)];
    sizes.map(|size| random.bytes(size))
}

/// An Ollama without memory: thousands of requests a second leave no trace in it.
fn ollama() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = move || while serve(&stream).unwrap_or(false) {};
            let thread = thread::Builder::new().stack_size(128 * 1024);
            thread.spawn(serve).expect("a thread");
        }
    });
    address
}

/// Serves one request; whether another may follow.
fn serve(mut stream: &TcpStream) -> std::io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(at) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(false),
            n => input.extend_from_slice(&buffer[..n]),
        }
    };
    let head = String::from_utf8_lossy(&input[..end]).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
    let length: u64 = field("content-length: ").unwrap_or(0);
    while ((input.len() - end) as u64) < length {
        match stream.read(&mut buffer)? {
            0 => return Ok(false),
            n => input.extend_from_slice(&buffer[..n]),
        }
    }
    let Some(number) = field("number: ") else {
        let version = "{\"version\":\"0.13.1\",\"models\":[]}";
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{version}", version.len())?;
        return Ok(true);
    };
    let [sent, answer] = bodies(number);
    if Sum::of(&input[end..]) != Sum::of(&sent) {
        stream.write_all(b"HTTP/1.1 400 Bad\r\nContent-Length: 5\r\n\r\nwrong")?;
        return Ok(true);
    }
    match deed(number) {
        Deed::DieBefore => return die(stream, number),
        Deed::Overloaded => {
            stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")?;
        }
        Deed::Stream | Deed::DieWithin => {
            let mut out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for piece in answer.chunks(300) {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
                stream.write_all(&out)?;
                out.clear();
                if deed(number) == Deed::DieWithin {
                    return die(stream, number);
                }
            }
            stream.write_all(b"0\r\n\r\n")?;
        }
        _ => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
            stream.write_all(&[head.as_bytes(), &answer].concat())?;
        }
    }
    Ok(true)
}

fn die(stream: &TcpStream, number: u64) -> std::io::Result<bool> {
    if number.is_multiple_of(2) {
        SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(false)
}

/// One request; whether its connection can have the next.
fn ask(client: &mut Client, number: u64) -> bool {
    let [body, want] = bodies(number);
    let deed = deed(number);
    let extra = if deed == Deed::Malformed { "Content-Length: 7\r\n" } else { "" };
    let head = format!(
        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nNumber: {number}\r\n{extra}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    client.try_send([head.as_bytes(), &body].concat());
    if deed == Deed::Leave {
        return false;
    }
    let answer = client.answer_to("POST");
    let is_whole = answer.end == End::Whole;
    match (deed, answer.status()) {
        (Deed::Answer | Deed::Stream, 200) => {
            assert!(is_whole, "request {number} was cut");
            assert_eq!(Sum::of(&answer.body), Sum::of(&want), "request {number} {deed:?}");
        }
        (Deed::DieWithin, 200) => assert!(!is_whole, "request {number} looks whole"),
        (Deed::DieBefore | Deed::DieWithin, 502) | (Deed::Malformed, 400) => assert!(is_whole),
        (Deed::Overloaded, 503) => assert!(is_whole),
        // While both servers rest after failures of this kind in a row.
        (_, 502 | 503) => panic!("request {number} {deed:?}: {}", answer.text()),
        (_, other) => panic!("request {number} {deed:?}: {other} {}", answer.text()),
    }
    is_whole && answer.head.one("connection").is_none()
}

#[derive(Debug)]
struct Figures {
    descriptors: usize,
    threads: usize,
    /// Without pages of files, which the kernel may drop and bring back, in KB.
    memory: usize,
}

impl Figures {
    fn of(process: &Process) -> Figures {
        Figures {
            descriptors: process.descriptors(),
            threads: process.status("Threads"),
            memory: process.status("RssAnon"),
        }
    }
}

fn length() -> Duration {
    let text = std::env::var("SOAK").unwrap_or_default();
    let number = |digits: &str| digits.parse::<u64>().ok();
    let seconds = match text.trim() {
        "" => Some(120),
        text => match (text.strip_suffix('h'), text.strip_suffix('m'), text.strip_suffix('s')) {
            (Some(hours), ..) => number(hours).map(|n| n * 3600),
            (_, Some(minutes), _) => number(minutes).map(|n| n * 60),
            (_, _, Some(seconds)) => number(seconds),
            _ => number(text),
        },
    };
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("SOAK={text}: 90s, 20m or 2h")))
}

#[test]
#[ignore = "takes minutes: make soak"]
fn nothing_is_lost_and_nothing_is_left() {
    let length = length();
    let servers: Vec<Process> = (0..2)
        .map(|_| {
            let ollama = ollama();
            let arguments = format!(
                "--mode server --listen 127.0.0.1:0 --discovery-port 0 --log-level error \
                 --ollama {ollama}"
            );
            Process::start(&arguments)
        })
        .collect();
    // Without its start-up line the log doesn't tell the port, so it is looked up.
    let addresses: Vec<SocketAddr> = servers.iter().map(listening).collect();
    let arguments = format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --log-level error \
         --server {} --server {}",
        addresses[0], addresses[1]
    );
    let front = Process::start(&arguments);
    let address = listening(&front);
    eventually("a request to get through", || {
        (Client::connect(address).get("/api/version").status() == 200).then_some(())
    });
    let processes: Vec<&Process> = servers.iter().chain([&front]).collect();
    let look =
        || -> Vec<Figures> { processes.iter().map(|process| Figures::of(process)).collect() };
    let before = look();
    let (next, over, failures) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let start = Instant::now();
    let mut early = Vec::new();
    let is_early = || start.elapsed() <= length / 5;
    thread::scope(|scope| {
        for at in 0..2 * CLIENTS {
            let (next, over, failures, is_early) = (&next, &over, &failures, &is_early);
            scope.spawn(move || {
                let mut client = None;
                while !over.load(Relaxed) && (at < CLIENTS || is_early()) {
                    let number = next.fetch_add(1, Relaxed) as u64;
                    let fails = !matches!(deed(number), Deed::Answer | Deed::Stream);
                    failures.fetch_add(usize::from(fails), Relaxed);
                    let mut used = client.take().unwrap_or_else(|| Client::connect(address));
                    let asked = catch_unwind(AssertUnwindSafe(|| ask(&mut used, number)));
                    let Ok(may_go_on) = asked else {
                        over.store(true, Relaxed);
                        panic!("request {number}: {:?}", deed(number));
                    };
                    client = may_go_on.then_some(used);
                }
            });
        }
        while start.elapsed() < length && !over.load(Relaxed) {
            thread::sleep(Duration::from_millis(100).min(length));
            if early.is_empty() && !is_early() {
                early = look();
            }
        }
        over.store(true, Relaxed);
    });
    let end = look();
    let (requests, failures) = (next.load(Relaxed), failures.load(Relaxed));
    println!(
        "{requests} requests, {failures} failures on purpose, in {:.0} s; every body compared",
        start.elapsed().as_secs_f64()
    );
    let names = ["server 1", "server 2", "client"];
    for (at, name) in names.iter().enumerate() {
        let (early, end) = (early[at].memory, end[at].memory);
        println!("{name}: {early} KB of memory after a fifth of it, {end} KB at the end");
    }
    for (at, name) in names.iter().enumerate() {
        assert!(end[at].memory <= early[at].memory + GROWTH_KB, "{name} grows");
    }
    // Idle workers go home after 20 s, idle connections to Ollama a little later.
    let deadline = Instant::now() + Duration::from_secs(150);
    loop {
        let now = look();
        let is_back = now.iter().zip(&before).all(|(now, before)| {
            let [descriptors, threads] = CHECKS;
            now.descriptors <= before.descriptors + descriptors
                && now.threads <= before.threads + threads
        });
        if is_back || Instant::now() > deadline {
            for (name, (now, before)) in names.iter().zip(now.iter().zip(&before)) {
                println!(
                    "{name}: descriptors {} -> {}, threads {} -> {}, {} KB",
                    before.descriptors, now.descriptors, before.threads, now.threads, now.memory
                );
            }
            assert!(is_back, "something is left");
            return;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// How far a client comes with a request that it gives up.
fn give_up(address: SocketAddr, random: &mut Random) {
    let Ok(stream) = TcpStream::connect(address) else { return };
    let size = *random.pick(&[0, 700, 5000, 60_000, 300_000]);
    let mut request =
        format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n")
            .into_bytes();
    request.resize(request.len() + size, b'x');
    let is_whole = random.is_one_in(2);
    let sent = if is_whole { request.len() } else { random.below(request.len()) };
    let _ = (&stream).write_all(&request[..sent]);
    if is_whole && random.is_one_in(2) {
        let _ = (&stream).read(&mut vec![0; 1 + random.below(4000)]);
    }
    if random.is_one_in(2) {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

/// What a load may leave behind of the memory of the static binary, which is what `make soak` gives us, in
/// KB; and of one with glibc, whose heap gives back what is free at its end only (5,300 KB were left; with
/// the deeper stacks of builds for tests, of which glibc keeps some, 8,100).
const LEFT_KB: usize = 3 * 1024;
const LEFT_WITH_GLIBC_KB: usize = 12 * 1024;

/// Waits until the memory is back; idle workers go home after 20 s.
fn comes_back(what: &str, processes: &[(&str, &Process)], idle: &[usize]) {
    let deadline = Instant::now() + Duration::from_secs(100);
    let is_static = std::env::var_os("OLLANA_BIN").is_some();
    let left = if is_static { LEFT_KB } else { LEFT_WITH_GLIBC_KB };
    loop {
        let now: Vec<usize> = processes.iter().map(|it| it.1.status("RssAnon")).collect();
        let is_back = now.iter().zip(idle).all(|(now, idle)| *now <= idle + left);
        if is_back || Instant::now() > deadline {
            for (at, (name, process)) in processes.iter().enumerate() {
                let all = process.status("VmRSS");
                println!("{what}: {name} {} KB idle, {} left; {all} with files", idle[at], now[at]);
            }
            assert!(is_back, "{what}: memory is kept");
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Few requests of each kind, but all that make a process keep memory: many threads at once, bodies
/// and answers of every size, and clients that leave in the midst of them.
#[test]
fn memory_comes_back_after_any_load() {
    let ollama = ollama();
    let server = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --log-level error --ollama {ollama}"
    ));
    let front = Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --log-level error --server {}",
        listening(&server)
    ));
    let address = listening(&front);
    eventually("a request to get through", || {
        (Client::connect(address).get("/api/version").status() == 200).then_some(())
    });
    let processes = [("server", &server), ("client", &front)];
    let idle = processes.map(|(_, process)| process.status("RssAnon"));
    let count = 8000;
    thread::scope(|scope| {
        for worker in 0..16 {
            scope.spawn(move || {
                let mut random = Random::new(worker);
                let mut client = None;
                for number in (worker..count).step_by(16) {
                    if random.below(10) < 6 {
                        give_up(address, &mut random);
                        continue;
                    }
                    let mut used = client.take().unwrap_or_else(|| Client::connect(address));
                    let [body, _] = bodies(number);
                    let head = format!(
                        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nNumber: {number}\r\n\
                         Content-Length: {}\r\n\r\n",
                        body.len()
                    );
                    used.try_send([head.as_bytes(), &body].concat());
                    if used.try_head().is_ok() {
                        let _ = used.rest();
                    }
                }
            });
        }
    });
    comes_back("requests given up", &processes, &idle);

    // Sixteen bodies of 3 MB grow beside each other, and other requests come meanwhile.
    let body = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "x".repeat(3_000_000));
    let halfway = Barrier::new(16);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                let head = format!(
                    "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                client.send([head.as_bytes(), &body.as_bytes()[..1_500_000]].concat());
                halfway.wait();
                assert_eq!(Client::connect(address).get("/api/version").status(), 200);
                client.send(&body.as_bytes()[1_500_000..]);
                assert_eq!(client.answer_to("POST").status(), 200);
            });
        }
    });
    comes_back("large bodies", &processes, &idle);
}

/// An Ollama that comes and goes: its port refuses, and its connections end, while it is away.
fn flapping(address: SocketAddr, seed: u64, times: [u64; 2], over: &AtomicBool) {
    let mut random = Random::new(seed);
    let mut pause = |most: u64| {
        let until = Instant::now() + Duration::from_millis(most / 2 + random.next() % (most / 2));
        while Instant::now() < until && !over.load(Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
    };
    while !over.load(Relaxed) {
        // Meanwhile a connection of this machine may have the port.
        let Ok(listener) = TcpListener::bind(address) else {
            pause(100);
            continue;
        };
        let is_away = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (away, all) = (Arc::clone(&is_away), Arc::clone(&streams));
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !away.load(Relaxed)) {
                all.lock().expect("its streams").push(stream.try_clone().expect("a descriptor"));
                let serve = move || while serve(&stream).unwrap_or(false) {};
                let thread = thread::Builder::new().stack_size(128 * 1024);
                thread.spawn(serve).expect("a thread");
            }
        });
        pause(times[0]);
        is_away.store(true, Relaxed);
        drop(TcpStream::connect(address));
        acceptor.join().expect("its end");
        for stream in streams.lock().expect("its streams").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        pause(times[1]);
    }
}

/// A machine whose Ollama comes and goes, so that its role changes every ten seconds or so, among 64
/// servers that come and go too, with clients that leave at any point. At the end it has the threads, the
/// descriptors and, within 1 MB, the memory of its second minute.
#[test]
#[ignore = "takes minutes: make soak"]
fn nothing_grows_while_servers_and_roles_come_and_go() {
    let length = length();
    let [own, listen] = [free_tcp_port(), free_tcp_port()];
    let others: Vec<SocketAddr> = (0..64).map(|_| free_tcp_port()).collect();
    let named: String = others.iter().map(|address| format!(" --server {address}")).collect();
    let process = Process::start(&format!(
        "--listen {listen} --discovery-port 0 --log-level error --ollama {own}{named}"
    ));
    let figures = |until: Duration, seed: u64| {
        let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let (over, served) = (&over, &served);
            scope.spawn(move || flapping(own, seed, [12_000, 12_000], over));
            for (at, address) in others.iter().enumerate() {
                scope.spawn(move || flapping(*address, seed + at as u64, [6000, 4000], over));
            }
            for worker in 0..CLIENTS as u64 {
                scope.spawn(move || {
                    let mut random = Random::new(seed ^ (worker + 1));
                    while !over.load(Relaxed) {
                        if random.below(10) < 6 {
                            give_up(listen, &mut random);
                        } else if let Ok(stream) = TcpStream::connect(listen) {
                            drop(stream);
                            served.fetch_add(usize::from(is_served(listen)), Relaxed);
                        }
                        // While it changes its role, nothing listens.
                        thread::sleep(Duration::from_millis(5));
                    }
                });
            }
            thread::sleep(until);
            over.store(true, Relaxed);
        });
        println!("{} requests served", served.load(Relaxed));
        // With nobody there: idle workers go home after 20 s, idle connections a little later.
        let quiet = Instant::now();
        let mut least = Figures::of(&process);
        while quiet.elapsed() < Duration::from_secs(45) {
            thread::sleep(Duration::from_secs(1));
            let now = Figures::of(&process);
            least.threads = least.threads.min(now.threads);
            least.descriptors = least.descriptors.min(now.descriptors);
            least.memory = least.memory.min(now.memory);
        }
        println!("{least:?}");
        least
    };
    let early = figures(length.min(Duration::from_secs(120)) / 2, 1);
    let end = figures(length.saturating_sub(Duration::from_secs(60)).max(length / 2), 2);
    assert!(end.threads <= early.threads + 1, "{early:?}, then {end:?}");
    // Checkers notice that a kept connection has ended when they need it again; and the roles differ.
    assert!(end.descriptors <= early.descriptors + CHECKS[0] + 4, "{early:?}, then {end:?}");
    assert!(end.memory <= early.memory + 1024, "{early:?}, then {end:?}");
}

/// Whether one request on a new connection is answered with 200.
fn is_served(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let _ = stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut start = [0; 12];
    stream.read_exact(&mut start).is_ok() && start.ends_with(b"200")
}

/// Where a process listens, from the kernel's table.
fn listening(process: &Process) -> SocketAddr {
    eventually("a listening socket", || {
        let links = std::fs::read_dir(process.path("fd")).ok()?;
        let sockets: Vec<String> = links
            .flatten()
            .filter_map(|link| std::fs::read_link(link.path()).ok())
            .filter_map(|name| {
                let name = name.to_str()?.strip_prefix("socket:[")?;
                Some(name.strip_suffix(']')?.to_owned())
            })
            .collect();
        let table = process.file("net/tcp");
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_own = fields[3] == "0A" && sockets.iter().any(|socket| socket == fields[9]);
            let port = u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok()?;
            is_own.then(|| SocketAddr::from(([127, 0, 0, 1], port)))
        })
    })
}
