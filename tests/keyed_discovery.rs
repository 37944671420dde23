//! Discovery among paired machines: who has no key is told so and nothing else, and is not believed.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use ollana::config::Settings;
use ollana::discovery::packet::{self, Datagram, Kind, MAX_LEN, PROBE_LEN, Packet, flags};
use ollana::ollama::version::OllamaVersion;
use ollana::pairing::identity::Identity;
use ollana::pairing::key_files;
use ollana::pairing::noise::Key;
use ollana::pairing::peers::{self, Peer};
use ollana::serve::Daemon;
use support::{
    Client, Fake, MODEL, Ollama, PATIENCE, client_settings, eventually, free_udp_port, key_file,
    server_settings, start,
};

/// Nothing that was going to be answered takes so long.
const SILENCE: Duration = Duration::from_millis(400);

fn secret() -> Key {
    Key::new([0x5e, 0xed].repeat(16).try_into().expect("32 bytes"))
}

fn probe(nonce: [u8; 16]) -> Datagram {
    Datagram {
        kind: Kind::Probe,
        nonce,
        sender: Identity(*b"a test's own id!"),
        http_port: 0,
        flags: 0,
        capabilities: 0,
        version: OllamaVersion::default(),
        in_flight: 0,
        instance: 7,
        name: String::new(),
        key: None,
    }
}

fn sealed(datagram: &Datagram, key: &Key) -> Vec<u8> {
    let mut bytes = datagram.encode(PROBE_LEN);
    let from = (datagram.kind == Kind::Probe).then_some([127, 0, 0, 1].into());
    packet::authenticate(&mut bytes, from, key);
    bytes
}

fn server(fake: &Fake, unpaired: Option<bool>) -> (Daemon, SocketAddr) {
    let mut settings = server_settings(fake.address);
    settings.discovery_port = free_udp_port();
    settings.key_file = Some(key_file());
    settings.unpaired = unpaired;
    let daemon = start(&settings);
    let address = daemon.discovery_address().expect("it answers probes");
    (daemon, address)
}

fn seeking(port: u16, unpaired: Option<bool>) -> Settings {
    let mut settings = client_settings(&[]);
    settings.discovery_port = port;
    settings.interfaces = vec!["lo".to_owned()];
    settings.timing.probe_interval = Duration::from_millis(200);
    settings.key_file = Some(key_file());
    settings.unpaired = unpaired;
    settings
}

fn socket(patience: Duration) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    socket.set_read_timeout(Some(patience)).expect("a time-out");
    socket
}

fn answer(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; MAX_LEN];
    let (n, _) = socket.recv_from(&mut buffer).ok()?;
    Some(buffer[..n].to_vec())
}

#[test]
fn paired_machines_find_each_other() {
    let fake = Ollama::with(&["m"]);
    let (_server, address) = server(&fake, None);
    let client = Daemon::start(&seeking(address.port(), None)).unwrap();
    eventually("the server to be found", || client.presence().is_up().then_some(()));
    assert_eq!(Client::connect(client.addresses()[0]).get(MODEL).status(), 200);
}

#[test]
fn only_who_has_the_key_gets_an_answer() {
    let fake = Ollama::with(&["m"]);
    for unpaired in [None, Some(true)] {
        let (_server, address) = server(&fake, unpaired);
        let key = secret();
        let keyed = |nonce| Datagram { key: Some(key.id()), ..probe(nonce) };
        let good = sealed(&keyed([1; 16]), &key);
        let asking = socket(PATIENCE);
        asking.send_to(&good, address).unwrap();
        let bytes = answer(&asking).expect("an answer");
        assert!(packet::is_authentic(&bytes, None, &key), "authenticated with the same key");
        let Ok(Packet::V1(datagram)) = packet::decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!((datagram.kind, datagram.nonce), (Kind::Announce, [1; 16]));
        assert_ne!(datagram.flags & flags::ENCRYPTED, 0);
        assert_eq!(datagram.flags & flags::KEY_REQUIRED == 0, unpaired == Some(true));
        assert!(bytes.len() <= good.len());
        // The code covers every byte: none can be changed.
        let stranger = socket(SILENCE);
        let mut forged = vec![
            sealed(&keyed([2; 16]), &Key::new([1; 32])),
            keyed([3; 16]).encode(PROBE_LEN),
            sealed(&probe([4; 16]), &key),
        ];
        for at in [8, 24, 40, 64, 79, 82, 100] {
            let mut changed = good.clone();
            changed[at] ^= 1;
            forged.push(changed);
        }
        if unpaired.is_none() {
            forged.push(probe([5; 16]).encode(PROBE_LEN));
            forged.push(packet::encode_legacy().to_vec());
        } else {
            // Without a key record it is a machine without a key, which may ask here.
            forged.remove(2);
        }
        for (number, bytes) in forged.iter().enumerate() {
            stranger.send_to(bytes, address).unwrap();
            // So that silence isn't the limiter's.
            if number % 3 == 2 {
                std::thread::sleep(SILENCE);
            }
        }
        while let Some(bytes) = answer(&stranger) {
            let Ok(Packet::V1(told)) = packet::decode(&bytes) else { panic!("{bytes:?}") };
            assert!(told.is_notice() && told.key.is_none(), "unpaired: {unpaired:?}, {told:?}");
            let told = (told.flags, told.version, told.in_flight, told.http_port);
            let flag = if unpaired.is_none() { flags::KEY_REQUIRED } else { 0 };
            assert_eq!(told, (flag, OllamaVersion::default(), 0, 0), "unpaired: {unpaired:?}");
        }
        let open = socket(PATIENCE);
        let bytes = probe([6; 16]).encode(PROBE_LEN);
        open.send_to(&bytes, address).unwrap();
        let told = answer(&open).expect("an answer");
        assert!(told.len() <= bytes.len());
        let Ok(Packet::V1(told)) = packet::decode(&told) else { panic!("{told:?}") };
        assert_eq!((told.is_notice(), told.nonce), (unpaired.is_none(), [6; 16]));
    }
}

#[test]
fn a_recorded_probe_is_worth_nothing_elsewhere() {
    let fake = Ollama::with(&["m"]);
    let (_server, address) = server(&fake, None);
    let key = secret();
    let keyed = Datagram { key: Some(key.id()), ..probe([1; 16]) };
    let recorded = sealed(&keyed, &key);
    let thief = UdpSocket::bind("127.0.0.2:0").expect("another address");
    thief.set_read_timeout(Some(SILENCE)).expect("a time-out");
    thief.send_to(&recorded, address).unwrap();
    assert_eq!(answer(&thief), None, "nothing for who only repeats");
    // There are no other reasons for that silence.
    let mut own = keyed.encode(PROBE_LEN);
    packet::authenticate(&mut own, Some([127, 0, 0, 2].into()), &key);
    thief.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    thief.send_to(&own, address).unwrap();
    assert!(answer(&thief).is_some());
}

#[test]
fn only_answers_with_the_key_are_believed() {
    let fake = Ollama::with(&["m"]);
    let key = secret();
    let ear = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    ear.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let port = ear.local_addr().expect("its port").port();
    let (server, _) = server(&fake, None);
    let client = Daemon::start(&seeking(port, None)).unwrap();
    let mut buffer = [0; MAX_LEN];
    let mut next_probe = || {
        let (n, from) = ear.recv_from(&mut buffer).expect("a probe");
        let Ok(Packet::V1(datagram)) = packet::decode(&buffer[..n]) else { panic!("not a probe") };
        assert_eq!(datagram.key, Some(key.id()), "it asks with its key only");
        (datagram, from)
    };
    let announcement = |nonce| Datagram {
        kind: Kind::Announce,
        http_port: server.addresses()[0].port(),
        flags: flags::OLLAMA_UP,
        ..probe(nonce)
    };
    for round in 0..3 {
        let (asked, from) = next_probe();
        let mut forged = vec![
            announcement(asked.nonce).encode(PROBE_LEN),
            sealed(&announcement(asked.nonce), &Key::new([1; 32])),
            sealed(&announcement([round; 16]), &key),
            packet::encode_legacy().to_vec(),
            // The probe itself, sent back.
            sealed(&Datagram { http_port: 0, ..asked.clone() }, &key),
        ];
        let mut changed = sealed(&announcement(asked.nonce), &key);
        changed[41] ^= 1;
        forged.push(changed);
        for bytes in forged {
            ear.send_to(&bytes, from).unwrap();
        }
    }
    std::thread::sleep(SILENCE);
    assert_eq!(client.presence().backends(), 0, "none of it is even looked at");
    // An answer that comes after some more probes is void.
    eventually("a genuine one to count", || {
        let (asked, from) = next_probe();
        ear.send_to(&sealed(&announcement(asked.nonce), &key), from).unwrap();
        client.presence().is_up().then_some(())
    });
}

/// Machines without a key are talked to here, but nobody gets in by leaving out the key of one that
/// has one.
#[test]
fn a_paired_machine_is_not_believed_in_clear() {
    let name = format!("clear-discovery-{}", std::process::id());
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Process numbers come again.
    let _ = std::fs::remove_dir_all(&dir);
    let paired = Peer { name: "desk".to_owned(), ..Peer::of_key_file(secret()) };
    let paired = Peer { identity: Some(probe([0; 16]).sender), ..paired };
    key_files::update(&dir, |peers| peers::add(peers, paired)).expect("kept");
    let fake = Ollama::with(&["m"]);
    let open = start(&server_settings(fake.address));
    let ear = socket(PATIENCE);
    let mut settings = seeking(ear.local_addr().expect("its port").port(), Some(true));
    settings.key_file = None;
    settings.state_dir = Some(dir);
    let client = Daemon::start(&settings).unwrap();
    let mut buffer = [0; MAX_LEN];
    let mut announce = |sender| {
        loop {
            let (n, from) = ear.recv_from(&mut buffer).expect("a probe");
            let Ok(Packet::V1(asked)) = packet::decode(&buffer[..n]) else { panic!("no probe") };
            if asked.key.is_none() {
                let http_port = open.addresses()[0].port();
                let (kind, flags) = (Kind::Announce, flags::OLLAMA_UP);
                let clear = Datagram { kind, http_port, flags, sender, ..probe(asked.nonce) };
                return ear.send_to(&clear.encode(PROBE_LEN), from).expect("sent");
            }
        }
    };
    for _ in 0..3 {
        announce(probe([0; 16]).sender);
    }
    std::thread::sleep(SILENCE);
    assert_eq!(client.presence().backends(), 0);
    // An answer that comes after some more probes is void.
    eventually("somebody else to count", || {
        announce(Identity([9; 16]));
        client.presence().is_up().then_some(())
    });
}

#[test]
fn mixed_homes_use_both_kinds() {
    let fake = Ollama::with(&["m"]);
    let mut settings = server_settings(fake.address);
    settings.discovery_port = free_udp_port();
    let _open = start(&settings);
    let client = Daemon::start(&seeking(settings.discovery_port, Some(true))).unwrap();
    eventually("the server to be found", || client.presence().is_up().then_some(()));
    assert_eq!(Client::connect(client.addresses()[0]).get(MODEL).status(), 200);
}
