//! Finding each other on loopback: what is answered, what is believed, and how soon.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ollana::config::Settings;
use ollana::serve::Daemon;
use support::{
    Client, Fake, MODEL, Ollama, PATIENCE, client_settings, eventually, free_udp_port,
    server_settings,
};

/// The promise is 100 ms; this allows for a busy machine.
const SOON: Duration = Duration::from_secs(3);

const PROBE: u8 = 1;
const ANNOUNCE: u8 = 2;
const GOODBYE: u8 = 3;
const NONCE: std::ops::Range<usize> = 8..24;
const PORT: std::ops::Range<usize> = 40..42;
const FLAGS: std::ops::Range<usize> = 42..44;

/// A datagram of version 1, written from its layout and not by the code under test.
fn datagram(kind: u8, nonce: &[u8], http_port: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..8].copy_from_slice(&[0x4C, 0x41, 0x4E, 0x41, 1, kind, 0, length as u8]);
    bytes[NONCE].copy_from_slice(nonce);
    bytes[24..40].copy_from_slice(b"a test's own id!");
    bytes[PORT].copy_from_slice(&http_port.to_be_bytes());
    bytes[FLAGS].copy_from_slice(&[0, 1]);
    bytes[52..56].copy_from_slice(b"inst");
    bytes
}

fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("a UDP socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

fn receive(socket: &UdpSocket, awaited: &str) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let received = socket.recv_from(&mut buffer);
    let (n, from) =
        received.unwrap_or_else(|error| panic!("waited in vain for {awaited}: {error}"));
    (buffer[..n].to_vec(), from)
}

/// A server daemon that answers probes on a port of its own.
fn server(fake: &Fake, tweak: impl Fn(&mut Settings)) -> (Daemon, SocketAddr) {
    let mut settings = server_settings(fake.address);
    settings.discovery_port = free_udp_port();
    tweak(&mut settings);
    let daemon = support::start(&settings);
    let address = daemon.discovery_address().expect("it answers probes");
    assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], settings.discovery_port)));
    (daemon, address)
}

/// Settings of a client that looks for servers on this port of this machine alone.
fn seeking(port: u16) -> Settings {
    let mut settings = client_settings(&[]);
    settings.discovery_port = port;
    settings.interfaces = vec!["lo".to_owned()];
    settings.timing.probe_interval = Duration::from_millis(200);
    settings
}

fn wait_up(daemon: &Daemon) {
    eventually("the server to be found", || daemon.presence().is_up().then_some(()));
}

/// Announces a server on this port in answer to one probe after the other until the client has it: an
/// answer that comes after some more probes is void.
fn announce_until_up(discovery: &UdpSocket, client: &Daemon, http_port: u16) {
    eventually("the server to be found", || {
        let (probe, from) = receive(discovery, "a probe of the client");
        discovery.send_to(&datagram(ANNOUNCE, &probe[NONCE], http_port, 80), from).unwrap();
        client.presence().is_up().then_some(())
    });
}

#[test]
fn a_server_is_found_at_once() {
    let fake = Ollama::with(&["m"]);
    let (_server, address) = server(&fake, |_| {});
    let start = Instant::now();
    let client = Daemon::start(&seeking(address.port())).unwrap();
    wait_up(&client);
    let took = start.elapsed();
    println!("found after {} µs", took.as_micros());
    assert!(took < SOON, "found only after {took:?}");
    let answer = Client::connect(client.addresses()[0]).get(MODEL);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(answer.head.one("x-ollana-server").is_some_and(|name| !name.is_empty()));
}

#[test]
fn a_server_that_starts_later_is_found_too() {
    let fake = Ollama::with(&["m"]);
    let port = free_udp_port();
    let client = Daemon::start(&seeking(port)).unwrap();
    let mut connection = Client::connect(client.addresses()[0]);
    assert_eq!(connection.get(MODEL).status(), 503);
    let (_server, _) = server(&fake, |settings| settings.discovery_port = port);
    let start = Instant::now();
    wait_up(&client);
    println!("found {} ms after its start", start.elapsed().as_millis());
    assert!(start.elapsed() < SOON, "found only after {:?}", start.elapsed());
    assert_eq!(connection.get(MODEL).status(), 200);
}

#[test]
fn probes_get_answers_that_are_no_longer() {
    let fake = Ollama::with(&["m"]);
    let (server, address) = server(&fake, |_| {});
    let asking = socket("127.0.0.1:0");
    asking.send_to(b"\x4C\x41\x4E\x41", address).unwrap();
    let (answer, from) = receive(&asking, "an answer to a bare probe");
    assert_eq!(answer, b"\x4C\x41\x4E\x41");
    assert_eq!(from.ip(), address.ip());
    for length in [80, 90, 128, 200] {
        let nonce: Vec<u8> = (0..16).map(|n| n * 3 + length as u8).collect();
        asking.send_to(&datagram(PROBE, &nonce, 0, length), address).unwrap();
        let (answer, from) = receive(&asking, "an answer to a probe");
        // Its source address is where the client will look for the proxy.
        assert_eq!(from.ip(), server.addresses()[0].ip());
        assert!((80..=length).contains(&answer.len()), "{} for {length}", answer.len());
        assert_eq!(&answer[..6], [0x4C, 0x41, 0x4E, 0x41, 1, ANNOUNCE]);
        assert_eq!(usize::from(answer[6]) << 8 | usize::from(answer[7]), answer.len());
        assert_eq!(&answer[NONCE], nonce, "the nonce comes back");
        assert_eq!(answer[PORT], server.addresses()[0].port().to_be_bytes());
        assert_eq!(answer[FLAGS][1] & 1, 1, "its Ollama answers");
        assert_eq!(&answer[46..50], [0, 33, 0, 0], "Ollama 0.33.0");
    }
}

#[test]
fn whatever_is_no_probe_gets_nothing() {
    let fake = Ollama::with(&["m"]);
    let (_server, address) = server(&fake, |settings| settings.legacy = false);
    let asking = socket("127.0.0.1:0");
    let good = datagram(PROBE, &[7; 16], 0, 80);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut long = datagram(PROBE, &[7; 16], 0, 80);
    long.resize(600, 0);
    (long[6], long[7]) = (2, 88);
    let packets = [
        Vec::new(),
        b"\x4C".to_vec(),
        b"\x4C\x41\x4E".to_vec(),
        b"\x4C\x41\x4E\x41".to_vec(), // bare probes are turned off here
        b"\x4C\x41\x4E\x41\x0a".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        good[..79].to_vec(),
        with(0, 0),
        with(4, 0),
        with(4, 2),
        with(5, ANNOUNCE),
        with(5, GOODBYE),
        with(5, 9),
        with(7, 81),
        with(56, 1),
        long,
    ];
    for packet in &packets {
        asking.send_to(packet, address).unwrap();
    }
    // Loopback keeps the order, so whatever was answered comes before this one's answer.
    asking.send_to(&datagram(PROBE, &[9; 16], 0, 80), address).unwrap();
    let (answer, _) = receive(&asking, "the answer to the only probe");
    assert_eq!(&answer[NONCE], [9; 16], "something else was answered: {answer:?}");
}

#[test]
fn a_flood_from_one_source_is_not_answered_in_full() {
    let fake = Ollama::with(&["m"]);
    let (_server, address) = server(&fake, |_| {});
    let flooding = socket("127.0.0.1:0");
    for _ in 0..200 {
        flooding.send_to(b"\x4C\x41\x4E\x41", address).unwrap();
    }
    let honest = socket("127.0.0.2:0");
    honest.send_to(&datagram(PROBE, &[5; 16], 0, 80), address).unwrap();
    receive(&honest, "an answer beside a flood");
    flooding.set_nonblocking(true).unwrap();
    let answers = (0..200).take_while(|_| flooding.recv(&mut [0; 8]).is_ok()).count();
    println!("{answers} of 200 were answered");
    assert!((1..=20).contains(&answers), "{answers} of 200 were answered");
}

#[test]
fn an_announcement_counts_only_for_one_of_the_last_probes() {
    let fake = Ollama::with(&["m"]);
    let discovery = socket("127.0.0.1:0");
    let client = Daemon::start(&seeking(discovery.local_addr().unwrap().port())).unwrap();
    let http_port = fake.address.port();
    let mut first = Vec::new();
    for n in 0..8 {
        let (probe, from) = receive(&discovery, "a probe of the client");
        assert_eq!(probe[..6], [0x4C, 0x41, 0x4E, 0x41, 1, PROBE]);
        assert_eq!(probe[PORT], [0, 0]);
        let nonce = probe[NONCE].to_vec();
        if n == 0 {
            first = nonce.clone();
        }
        let mut wrong = nonce;
        wrong[n] ^= 1;
        discovery.send_to(&datagram(ANNOUNCE, &wrong, http_port, 80), from).unwrap();
        discovery.send_to(&datagram(ANNOUNCE, &[0; 16], http_port, 80), from).unwrap();
        if n > 4 {
            // What answered a probe of long ago is heard again.
            discovery.send_to(&datagram(ANNOUNCE, &first, http_port, 80), from).unwrap();
        }
    }
    assert!(!client.presence().is_up(), "a forged announcement was believed");
    assert_eq!(fake.look(|state| state.checks), 0, "a forged announcement was followed");
    // The same announcement with the right nonce is.
    announce_until_up(&discovery, &client, http_port);
    assert_eq!(Client::connect(client.addresses()[0]).get(MODEL).status(), 200);
}

#[test]
fn an_announcement_only_proposes() {
    // Nobody listens there, or somebody who is no Ollama.
    let other = Ollama::with(&["m"]);
    let dead = support::free_tcp_port().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let discovery = socket("127.0.0.1:0");
    let client = Daemon::start(&seeking(discovery.local_addr().unwrap().port())).unwrap();
    for _ in 0..5 {
        let (probe, from) = receive(&discovery, "a probe of the client");
        for (port, id) in [(dead, b'1'), (silent.local_addr().unwrap().port(), b'2')] {
            let mut announcement = datagram(ANNOUNCE, &probe[NONCE], port, 80);
            announcement[24] = id;
            discovery.send_to(&announcement, from).unwrap();
        }
    }
    assert!(!client.presence().is_up());
    announce_until_up(&discovery, &client, other.address.port());
}

#[test]
fn goodbye_and_death_take_a_server_out_at_once() {
    let fake = Ollama::with(&["m"]);
    let rarely = |settings: &mut Settings| {
        // So that only the goodbye can tell.
        settings.timing.health_interval = Duration::from_secs(60);
    };
    let (server, address) = server(&fake, rarely);
    let mut settings = seeking(address.port());
    rarely(&mut settings);
    let client = Daemon::start(&settings).unwrap();
    wait_up(&client);
    let start = Instant::now();
    server.stop(Duration::ZERO);
    eventually("the server to be out", || (!client.presence().is_up()).then_some(()));
    println!("out {} ms after its end began", start.elapsed().as_millis());
    assert!(start.elapsed() < SOON, "out only after {:?}", start.elapsed());
    let answer = Client::connect(client.addresses()[0]).get(MODEL);
    assert_eq!(answer.status(), 503, "{}", answer.text());
}

#[test]
fn neither_goodbye_nor_silence_take_out_a_server_that_answers() {
    let fake = Ollama::with(&["m"]);
    let discovery = socket("127.0.0.1:0");
    let mut settings = seeking(discovery.local_addr().unwrap().port());
    settings.timing.health_interval = Duration::from_millis(100);
    let client = Daemon::start(&settings).unwrap();
    announce_until_up(&discovery, &client, fake.address.port());
    for _ in 0..5 {
        let (probe, from) = receive(&discovery, "a probe of the client");
        discovery
            .send_to(&datagram(GOODBYE, &probe[NONCE], fake.address.port(), 80), from)
            .unwrap();
    }
    drop(discovery);
    let checks = fake.look(|state| state.checks);
    fake.wait("ten more health checks", |state| (state.checks > checks + 10).then_some(()));
    assert!(client.presence().is_up(), "a server that answers was taken out");
    assert_eq!(Client::connect(client.addresses()[0]).get(MODEL).status(), 200);
}

#[test]
fn a_second_server_on_the_port_is_told_so() {
    let fake = Ollama::with(&["m"]);
    let (_server, address) = server(&fake, |_| {});
    let mut settings = server_settings(fake.address);
    settings.discovery_port = address.port();
    let Err(error) = Daemon::start(&settings) else { panic!("two servers on one port") };
    let text = error.to_string();
    assert!(text.contains(&address.port().to_string()) && text.contains("in use"), "{text}");
    assert!(text.contains("--discovery-port"), "{text}");
}
