//! Hosts on the same network that send what they shouldn't, and one that is just old.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{get, post};
use super::lan::{Host, Lan, can_filter};
use super::ollama::{Ollama, all_lines};
use super::packets::{DISCOVERY, Dice, Spoofer, announcement, nonce_of, overhear, probe, udp};
use super::watch::{judge, limits, takes, throughout, until};

/// What an attack may add to a daemon's memory.
const MOST_GROWTH_KIB: u64 = 8 * 1024;
/// Longer than any answer on this network takes.
const PATIENCE: Duration = Duration::from_millis(500);
const ANYWHERE: &str = "0.0.0.0:0";

struct Setting {
    server: Host,
    client: Host,
    attacker: Host,
    ollama: Ollama,
    server_daemon: Daemon,
    client_daemon: Daemon,
    /// Hears the client's probes.
    ear: UdpSocket,
}

fn setting(lan: &mut Lan) -> Setting {
    let [server, client, attacker] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let ear = udp(&attacker, "0.0.0.0:11436", Duration::from_secs(10));
    let ollama = Ollama::start(&server, "gpu");
    let server_daemon = Daemon::start(&server, &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    Setting { server, client, attacker, ollama, server_daemon, client_daemon, ear }
}

fn assert_modest(daemon: &Daemon, before: u64) {
    let after = daemon.resident_kib();
    println!("memory {before} KiB before, {after} KiB after");
    assert!(after < before + MOST_GROWTH_KIB, "{before} KiB grew to {after} KiB");
}

#[test]
fn forged_announcements_reach_nobody() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { client, mut client_daemon, ear, server_daemon: _s, ollama: _o, .. } =
        setting(&mut lan);
    let (_, target) = overhear(&ear);
    let before = client_daemon.resident_kib();
    let mut dice = Dice(7);
    let send = |bytes: &[u8]| ear.send_to(bytes, target).expect("sent");
    let genuine = announcement(dice.bytes(), dice.bytes(), 80);
    for len in 0..genuine.len() {
        send(&genuine[..len]);
    }
    for len in 0..600 {
        let garbage: Vec<u8> = (0..len).map(|_| dice.next() as u8).collect();
        send(&garbage);
    }
    send(b"LANB");
    let start = Instant::now();
    for round in 0..10_000 {
        send(&announcement(dice.bytes(), dice.bytes(), 1024 + (round % 60_000) as u16));
        if round % 1000 == 0 {
            works(&client).expect("an answer");
        }
    }
    println!("10000 forged announcements in {} ms", start.elapsed().as_millis());
    works(&client).expect("an answer");
    assert_modest(&client_daemon, before);
    assert_eq!(client_daemon.count("] server "), 1, "no line for any of them");
    client_daemon.signal(Signal::TERM);
    assert!(client_daemon.wait().success());
    client_daemon.wait_for("discovery ends");
    let counts = client_daemon.lines("discovery ends").concat();
    println!("{counts}");
    let ignored = counts.split("ignored=").nth(1).and_then(|text| text.parse().ok());
    assert!(ignored >= Some(1000), "they did arrive: {counts}");
}

/// Runs `other` in a thread of its own until `test` has passed or failed.
fn alongside(other: impl FnOnce(&AtomicBool) + Send, test: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| other(&over));
        let result = catch_unwind(AssertUnwindSafe(test));
        over.store(true, Relaxed);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Answers each probe that is heard with many servers that don't exist.
fn announce_many(ear: &UdpSocket, mouths: &[UdpSocket], over: &AtomicBool) {
    let mut dice = Dice(11);
    ear.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
    let mut buffer = [0; 512];
    while !over.load(Relaxed) {
        let Ok((len, client)) = ear.recv_from(&mut buffer) else { continue };
        let nonce = nonce_of(&buffer[..len]);
        for mouth in mouths.iter().cycle().take(500) {
            let port = 20_000 + (dice.next() % 20_000) as u16;
            let _ = mouth.send_to(&announcement(nonce, dice.bytes(), port), client);
        }
    }
}

/// An attacker on the same link hears the probes, so its announcements count as answers. It has
/// many addresses, too.
fn false_answers(is_silent: bool) {
    let Some(mut lan) = Lan::new(1) else { return };
    if is_silent && !can_filter() {
        return;
    }
    let Setting { server, client, attacker, server_daemon, client_daemon, ear, ollama: _o } =
        setting(&mut lan);
    let newcomer = lan.host(&[("eth0", 0)]);
    let _newcomer_ollama = Ollama::start(&newcomer, "new");
    let mouths: Vec<UdpSocket> = (100..130)
        .map(|number| {
            let address = format!("10.80.0.{number}");
            attacker.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
            udp(&attacker, &format!("{address}:0"), PATIENCE)
        })
        .collect();
    if is_silent {
        attacker.nft("input", "meta l4proto tcp drop");
    }
    let before = client_daemon.resident_kib();
    alongside(
        |over| announce_many(&ear, &mouths, over),
        || {
            let kept = "the known server is kept";
            throughout(Duration::from_secs(6), || works(&client).expect(kept));
            server_daemon.kill();
            takes("killed to 503", limits::REFUSING, || is_without_server(&client));
            throughout(Duration::from_secs(1), || {});
            let _server_daemon = Daemon::start(&server, &[]);
            takes("restarted to first answer", limits::BACK, || works(&client));
            let _newcomer_daemon = Daemon::start(&newcomer, &[]);
            let found = || (client_daemon.count("server up ") == 3).then_some(());
            // Among hundreds of false answers to each probe its own may be lost once: what is allowed
            // are two probes.
            takes("a newcomer from start to in rotation", limits::NOTICED, found);
            // The two end with this.
            assert_eq!(client_daemon.count("server down "), 1, "no line for any of them");
        },
    );
    assert_modest(&client_daemon, before);
}

#[test]
fn servers_that_refuse_do_not_displace_the_known_one() {
    false_answers(false);
}

#[test]
fn servers_that_stay_silent_do_not_displace_the_known_one() {
    false_answers(true);
}

/// Addresses of one host from which servers are announced.
const MANY: u8 = 16;
/// Just within the time that a check has.
const SLOWLY: Duration = Duration::from_millis(1400);

/// Announces one server per mouth, always the same ones, in answer to each probe.
fn announce_same(ear: &UdpSocket, mouths: &[UdpSocket], over: &AtomicBool) {
    ear.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
    let mut buffer = [0; 512];
    while !over.load(Relaxed) {
        let Ok((len, client)) = ear.recv_from(&mut buffer) else { continue };
        let nonce = nonce_of(&buffer[..len]);
        for (mouth, number) in mouths.iter().zip(100..) {
            let _ = mouth.send_to(&announcement(nonce, [number; 16], 11435), client);
        }
    }
}

/// Servers of a stranger, all of them well but slow, hold up nobody's check.
fn slow_servers(args: impl Fn(&Host) -> Vec<String>) {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, other, client, attacker] = [1, 2, 3, 4].map(|_| lan.host(&[("eth0", 0)]));
    let [ollama, _other_ollama] = [&server, &other].map(|host| Ollama::start(host, "m"));
    let [server_daemon, _other_daemon] = [&server, &other].map(|host| Daemon::start(host, &[]));
    let ear = udp(&attacker, "0.0.0.0:11436", Duration::from_secs(10));
    let addresses = (100..100 + MANY).map(|number| format!("10.80.0.{number}"));
    let (mouths, _slow): (Vec<UdpSocket>, Vec<Ollama>) = addresses
        .map(|address| {
            attacker.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
            let place = format!("{address}:11435");
            let slow = Ollama::listen_slowly(&attacker, &place, "slow", SLOWLY);
            (udp(&attacker, &format!("{address}:0"), PATIENCE), slow)
        })
        .unzip();
    let args = args(&server);
    let client_daemon =
        Daemon::start(&client, &args.iter().map(String::as_str).collect::<Vec<_>>());
    let up = |least| (client_daemon.count("server up ") >= least).then_some(());
    alongside(
        |over| announce_same(&ear, &mouths, over),
        || {
            until("all of them to be found", Duration::from_secs(60), || up(usize::from(MANY) + 2));
            // A request may be on its way to the server when it freezes; none is here.
            throughout(Duration::from_secs(3), || {
                assert_eq!(post(&client, "/api/chat").expect("an answer").status, 200);
            });
            server_daemon.signal(Signal::STOP);
            let at = server.address(0).to_string();
            let down = || client_daemon.lines("server down ").iter().any(|it| it.contains(&at));
            takes("frozen to out of rotation", limits::SILENT, || down().then_some(()));
            for _ in 0..10 {
                let start = Instant::now();
                assert_eq!(post(&client, "/api/chat").expect("an answer").status, 200);
                judge("a request's answer elsewhere", start.elapsed(), PATIENCE);
            }
            server_daemon.signal(Signal::CONT);
            let is_back = || up(usize::from(MANY) + 3);
            takes("going on to in rotation", limits::BACK, is_back);
        },
    );
    drop(ollama);
}

#[test]
fn slow_newcomers_do_not_hide_that_a_server_is_frozen() {
    slow_servers(|_| Vec::new());
}

#[test]
fn slow_newcomers_do_not_hide_that_a_named_server_is_frozen() {
    slow_servers(|server| vec!["--server".to_owned(), server.address(0).to_string()]);
}

#[test]
fn a_flood_of_probes_does_not_hide_an_honest_one() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { server, client, attacker, server_daemon, mut client_daemon, ollama: _o, .. } =
        setting(&mut lan);
    let before = server_daemon.resident_kib();
    let to = SocketAddrV4::new(server.address(0), DISCOVERY);
    let spoofer = Spoofer::new(&attacker);
    let flood = thread::spawn(move || {
        let mut dice = Dice(13);
        let start = Instant::now();
        for _ in 0..20_000 {
            let from =
                SocketAddrV4::new(Ipv4Addr::new(10, 80, 0, 3 + (dice.next() % 252) as u8), 9);
            let _ = spoofer.send(from, to, &probe(dice.bytes()));
        }
        start.elapsed()
    });
    let honest = udp(&client, ANYWHERE, Duration::from_millis(100));
    for round in 0..3 {
        let nonce = [round; 16];
        takes("an honest probe's answer in the flood", limits::PROBE_ANSWERED, || {
            honest.send_to(&probe(nonce), to).expect("sent");
            let mut buffer = [0; 512];
            let (len, _) = honest.recv_from(&mut buffer).ok()?;
            (buffer[5] == 2 && nonce_of(&buffer[..len]) == nonce).then_some(())
        });
        works(&client).expect("an answer");
    }
    let took = flood.join().expect("the flood");
    println!("20000 spoofed probes in {} ms", took.as_millis());
    works(&client).expect("an answer");
    assert_modest(&server_daemon, before);
    assert_eq!(client_daemon.count("server down "), 0);
    client_daemon.assert_alive();
}

/// Connects from an address of the host, and asks; what the first line of an answer says.
fn ask_from(host: &Host, from: Ipv4Addr, to: SocketAddrV4) -> String {
    let mut stream = host.run(|| connect_from(from, to));
    let mut line = String::new();
    let _ = stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _ = BufReader::new(&stream).read_line(&mut line);
    line
}

fn connect_from(from: Ipv4Addr, to: SocketAddrV4) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddrV4::new(from, 0).into()).expect("an address of this host");
    socket.connect(&to.into()).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    stream
}

#[test]
fn a_crowd_of_addresses_locks_nobody_out() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting {
        server, client, attacker, server_daemon: _s, client_daemon: _c, ollama: _o, ..
    } = setting(&mut lan);
    let to = SocketAddrV4::new(server.address(0), 11435);
    let stranger = lan.host(&[("eth0", 0)]);
    let (mut crowd, mut under_way) = (Vec::new(), Vec::new());
    for number in 0..12 {
        let from = Ipv4Addr::new(10, 80, 0, 100 + number);
        attacker.ip(&["address", "add", &format!("{from}/24"), "dev", "eth0"]);
        let mut stream = attacker.run(|| connect_from(from, to));
        let half = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n{ ";
        stream.write_all(half).expect("sent");
        under_way.push(stream);
        // Each takes half of what is left.
        let take_all = || (1..1024 >> number).map(|_| connect_from(from, to)).collect::<Vec<_>>();
        crowd.extend(attacker.run(take_all));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        let said = ask_from(&stranger, stranger.address(0), to);
        assert!(said.contains("200 OK"), "turned away: {said}");
        slowest = slowest.max(start.elapsed());
        works(&client).expect("an answer");
    }
    judge("crowded by twelve addresses, slowest of 20 requests", slowest, limits::RETRIED);
    for stream in &mut under_way {
        stream.write_all(b" }").expect("sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        assert!(line.contains("200 OK"), "a request under way was lost: {line}");
    }
    drop(crowd);
}

#[test]
fn old_probes_get_old_answers_and_strangers_none() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { server, client, attacker, server_daemon: _s, .. } = setting(&mut lan);
    let to = SocketAddrV4::new(server.address(0), DISCOVERY);
    let mut buffer = [0; 512];
    let old = udp(&client, ANYWHERE, PATIENCE);
    old.send_to(b"LANA", to).expect("sent");
    let start = Instant::now();
    let (len, from) = old.recv_from(&mut buffer).expect("an answer");
    judge("a bare probe's answer", start.elapsed(), limits::PROBE_ANSWERED);
    assert_eq!((&buffer[..len], from), (&b"LANA"[..], to.into()));
    // A stranger that the server could answer, if it wanted to.
    attacker.ip(&["address", "add", "192.0.2.1/32", "dev", "lo"]);
    let via = attacker.address(0).to_string();
    server.ip(&["route", "add", "192.0.2.0/24", "via", &via]);
    let stranger = udp(&attacker, "192.0.2.1:0", PATIENCE);
    for bytes in [b"LANA".to_vec(), probe([9; 16])] {
        stranger.send_to(&bytes, to).expect("sent");
        let answer = stranger.recv_from(&mut buffer);
        assert!(answer.is_err(), "a stranger got {answer:?}");
    }
    let neighbour = udp(&attacker, ANYWHERE, PATIENCE);
    neighbour.send_to(&probe([8; 16]), to).expect("sent");
    let (len, _) = neighbour.recv_from(&mut buffer).expect("a neighbour gets one");
    assert!(len <= probe([8; 16]).len(), "no longer than the probe");
}

#[test]
fn a_server_of_an_older_version_is_used() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _proxy = Ollama::listen(&server, "0.0.0.0:11435", "old");
    let ear = udp(&server, "0.0.0.0:11436", PATIENCE);
    let answer_all = |over: &AtomicBool| {
        let mut buffer = [0; 512];
        while !over.load(Relaxed) {
            if let Ok((_, client)) = ear.recv_from(&mut buffer)
                && buffer.starts_with(b"LANA")
            {
                let _ = ear.send_to(b"LANA", client);
            }
        }
    };
    alongside(answer_all, || {
        let client_daemon = Daemon::start(&client, &[]);
        takes("found", limits::FOUND, || works(&client));
        assert_eq!(post(&client, "/api/chat").expect("an answer").body, all_lines("old"));
        assert!(get(&client, "/api/tags").expect("an answer").body.contains("old"));
        assert_eq!(client_daemon.count("server up "), 1);
    });
}
