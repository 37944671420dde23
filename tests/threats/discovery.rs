//! Datagrams of strangers: what they get for them, and what they can make of us.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use ollana::config::ServerName;
use ollana::discovery::packet::{Datagram, Kind, MAX_LEN, Nonce, PROBE_LEN};
use ollana::pairing::identity::Identity;

use crate::support::{
    CHAT, Client, Gate, Ollama, PATIENCE, client_settings, eventually, free_udp_port,
    server_settings, start,
};

/// Every way to ask, told apart by its length.
fn probes() -> Vec<Vec<u8>> {
    let long = |length| Datagram::probe(Identity([1; 16]), [length as u8; 16]).encode(length);
    vec![b"LANA".to_vec(), long(80), long(PROBE_LEN), long(MAX_LEN)]
}

/// Whose address is forged in probes gets no more bytes than were sent, from each server few
/// packets, and all victims together get a bounded number of them.
#[test]
fn a_forged_source_gets_less_than_was_sent() {
    let fake = Ollama::with(&["m"]);
    let mut settings = server_settings(fake.address);
    settings.discovery_port = free_udp_port();
    let daemon = start(&settings);
    let server = daemon.discovery_address().expect("it answers probes");
    let source = |net: u8, n: u8| {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, net, n), 0)).expect("a source");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        socket
    };
    let mut buffer = [0; 2048];
    for (n, probe) in probes().iter().enumerate() {
        let socket = source(7, n as u8 + 1);
        socket.send_to(probe, server).expect("sent");
        // Padding makes no longer answer, nor does it make none.
        let (len, _) = socket.recv_from(&mut buffer).expect("an answer");
        assert!(len <= probe.len(), "{len} bytes for {}", probe.len());
    }
    let probe = &probes()[1];
    let start = Instant::now();
    let answered: Vec<usize> = (20..60)
        .map(|n| {
            let victim = source(7, n);
            for _ in 0..40 {
                victim.send_to(probe, server).expect("sent");
            }
            // Once this one is answered, so are those before it.
            let honest = source(8, n + 100);
            honest.send_to(probe, server).expect("sent");
            honest.recv_from(&mut buffer).expect("an answer beside a flood");
            victim.set_nonblocking(true).expect("no wait");
            (0..40).take_while(|_| victim.recv(&mut [0; 512]).is_ok()).count()
        })
        .collect();
    println!("answers of 40 each: {answered:?} in {} ms", start.elapsed().as_millis());
    // A burst of ten, and what a busy machine's time adds to it.
    assert!(answered.iter().all(|n| (1..=12).contains(n)), "{answered:?}");
    // Nothing that comes unasked is answered either: announcements, goodbyes, garbage.
    let other = source(7, 11);
    for kind in [Kind::Announce, Kind::Goodbye] {
        let bytes = announcement(kind, [3; 16], 1, 80);
        other.send_to(&bytes, server).expect("sent");
    }
    other.send_to(&[0; 1400], server).expect("sent");
    other.send_to(&Datagram::probe(Identity([1; 16]), [9; 16]).encode(80), server).expect("sent");
    let (len, _) = other.recv_from(&mut buffer).expect("the probe's answer");
    assert_eq!((len >= 80, &buffer[8..24]), (true, &[9; 16][..]), "something else was answered");
}

fn announcement(kind: Kind, nonce: Nonce, sender: u64, http_port: u16) -> Vec<u8> {
    let mut datagram = Datagram::probe(Identity([7; 16]), nonce);
    datagram.kind = kind;
    datagram.sender.0[..8].copy_from_slice(&sender.to_be_bytes());
    datagram.http_port = http_port;
    datagram.flags = 1;
    datagram.encode(PROBE_LEN)
}

/// A port at which many addresses take connections and say nothing, and how many there were at once.
fn silent(addresses: &[Ipv4Addr]) -> (u16, Arc<AtomicUsize>) {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut port = 0;
    for address in addresses {
        let listener = TcpListener::bind((*address, port)).expect("a port");
        port = listener.local_addr().expect("its address").port();
        let (most, now) = (Arc::clone(&most), Arc::clone(&now));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                let now = Arc::clone(&now);
                thread::spawn(move || {
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    now.fetch_sub(1, SeqCst);
                });
            }
        });
    }
    (port, most)
}

/// Each probe is answered with hundreds of servers that don't exist, say nothing, or aren't Ollama.
#[test]
fn a_flood_of_servers_displaces_nobody() {
    let known = Ollama::with(&["m"]);
    let ear = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut settings = client_settings(&[]);
    settings.discovery_port = ear.local_addr().expect("its address").port();
    settings.interfaces = vec!["lo".to_owned()];
    settings.timing.probe_interval = Duration::from_millis(100);
    settings.timing.health_interval = Duration::from_millis(100);
    settings.timing.health_timeout = Duration::from_millis(300);
    settings.servers =
        vec![ServerName { host: "127.0.0.1".to_owned(), port: known.address.port() }];
    let daemon = start(&settings);
    let sources: Vec<Ipv4Addr> = (1..=100).map(|n| Ipv4Addr::new(127, 0, 9, n)).collect();
    let (trap, most) = silent(&sources);
    let (over, flooded) = (Arc::new(AtomicBool::new(false)), Gate::new());
    let (done, full) = (Arc::clone(&over), flooded.clone());
    let flood = thread::spawn(move || {
        let bind = |source: &Ipv4Addr| UdpSocket::bind((*source, 0)).expect("a source");
        let mouths: Vec<UdpSocket> = sources.iter().map(bind).collect();
        ear.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
        let (mut buffer, mut sent) = ([0; 512], 0);
        while !done.load(SeqCst) {
            let Ok((_, client)) = ear.recv_from(&mut buffer) else { continue };
            let nonce = buffer[8..24].try_into().expect("a nonce");
            for mouth in mouths.iter().cycle().take(400) {
                sent += 1;
                let port = if sent % 2 == 0 { trap } else { 20_000 + (sent % 9973) as u16 };
                let _ = mouth.send_to(&announcement(Kind::Announce, nonce, sent, port), client);
            }
            if sent > 4000 {
                full.open();
            }
        }
        sent
    });
    assert!(flooded.wait(), "the flood");
    let mut client = Client::connect(daemon.addresses()[0]);
    eventually("some of them to be looked at", || (most.load(SeqCst) > 0).then_some(()));
    let until = Instant::now() + Duration::from_secs(2);
    let mut rounds = 0;
    while Instant::now() < until {
        assert_eq!(client.post("/api/chat", CHAT).status(), 200, "the known server was displaced");
        rounds += 1;
    }
    let state = client.get("/ollana/status").json();
    over.store(true, SeqCst);
    let sent = flood.join().expect("the flood");
    let servers = state["servers"].as_array().expect("servers");
    let addresses: HashSet<String> = servers.iter().map(|s| s["addresses"].to_string()).collect();
    println!(
        "{sent} announcements, {} servers, {} checked at once, {rounds} answers",
        servers.len(),
        most.load(SeqCst)
    );
    assert!((2..=64).contains(&servers.len()), "{} servers", servers.len());
    assert!(addresses.iter().any(|a| a.contains(&known.address.to_string())), "{addresses:?}");
    assert!(most.load(SeqCst) <= 8, "{} checks at once", most.load(SeqCst));
    let ready = servers.iter().filter(|server| server["health"] == "ready").count();
    assert_eq!(ready, 1, "one of them was believed");
}
