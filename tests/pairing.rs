//! Paired machines: what a wire between them shows, and what somebody on that wire can do.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ollana::config::Settings;
use ollana::pairing::identity::Identity;
use ollana::pairing::key_files;
use ollana::pairing::noise::{self, FIRST_BYTE, Introduction, Key, Purpose};
use ollana::pairing::peers::{self, Peer};
use ollana::serve::Daemon;
use support::{
    Client, End, Fake, client_settings, eventually, key_file, lock, ndjson, post, server_settings,
    start,
};

const PROMPT: &str = "marker-of-the-prompt";
const ANSWER: &str = "marker-of-the-answer";
const MODEL: &str = "marker-of-the-model";

/// What somebody between two machines does to the server's bytes, and to the client's.
type Meddle = dyn Fn(&mut Vec<u8>, usize) -> bool + Send + Sync;

/// A wire that is tapped.
struct Relay {
    address: SocketAddr,
    /// What went to the server, and what came back, connection by connection.
    heard: Arc<Mutex<Vec<[Vec<u8>; 2]>>>,
}

impl Relay {
    fn tap(server: SocketAddr) -> Relay {
        Relay::meddle(server, |_, _| true)
    }

    /// `meddle` gets each piece of the server's bytes and how many came before; false cuts the
    /// wire.
    fn meddle(
        server: SocketAddr,
        meddle: impl Fn(&mut Vec<u8>, usize) -> bool + Send + Sync + 'static,
    ) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a relay");
        let address = listener.local_addr().expect("its address");
        let heard: Arc<Mutex<Vec<[Vec<u8>; 2]>>> = Arc::default();
        let (record, meddle): (_, Arc<Meddle>) = (Arc::clone(&heard), Arc::new(meddle));
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.expect("a client"), TcpStream::connect(server));
                let Ok(far) = far else { continue };
                let at = {
                    let mut heard = lock(&record);
                    heard.push(Default::default());
                    heard.len() - 1
                };
                let pass: Arc<Meddle> = Arc::new(|_, _| true);
                for (side, meddle, from, to) in
                    [(0, pass, &near, &far), (1, Arc::clone(&meddle), &far, &near)]
                {
                    let from = from.try_clone().expect("a socket");
                    let to = to.try_clone().expect("a socket");
                    let record = Arc::clone(&record);
                    let keep = move |bytes: &[u8]| lock(&record)[at][side].extend(bytes);
                    thread::spawn(move || copy(from, to, &*meddle, keep));
                }
            }
        });
        Relay { address, heard }
    }

    fn shows(&self, text: &str) -> bool {
        let heard = lock(&self.heard);
        let mut sides = heard.iter().flatten();
        sides.any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, meddle: &Meddle, keep: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0;
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..n]);
        let mut piece = buffer[..n].to_vec();
        if !meddle(&mut piece, passed) {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
        passed += n;
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// An Ollama that says the same thing again and again.
fn fake(times: usize) -> Fake {
    Fake::unlike_ollama(move |call| {
        call.read_body();
        call.send(ndjson());
        for _ in 0..times {
            call.send_chunk(format!("{{\"response\":\"{ANSWER}\"}}\n"));
        }
        call.send("0\r\n\r\n");
    })
}

fn server(fake: &Fake, is_paired: bool) -> Daemon {
    let mut settings = server_settings(fake.address);
    settings.key_file = is_paired.then(key_file);
    start(&settings)
}

fn client_of(server: SocketAddr, is_paired: bool) -> Settings {
    let mut settings = client_settings(&[server]);
    settings.key_file = is_paired.then(key_file);
    settings
}

fn ask(daemon: &Daemon) -> support::Answer {
    let mut client = Client::connect(daemon.addresses()[0]);
    client.ask(post("/api/chat", format!("{{\"model\":\"{MODEL}\",\"prompt\":\"{PROMPT}\"}}")))
}

#[test]
fn nothing_that_is_said_is_on_the_wire() {
    for is_paired in [false, true] {
        let fake = fake(3);
        let server = server(&fake, is_paired);
        let relay = Relay::tap(server.addresses()[0]);
        let client = start(&client_of(relay.address, is_paired));
        let answer = ask(&client);
        assert_eq!((answer.status(), answer.end), (200, End::Whole));
        assert!(answer.text().contains(ANSWER));
        for text in [PROMPT, ANSWER, MODEL, "/api/chat", "/api/version", "HTTP/1.1"] {
            assert_eq!(relay.shows(text), !is_paired, "{text} on the wire, paired: {is_paired}");
        }
        let body = fake.whole_request(0).body;
        assert!(String::from_utf8_lossy(&body).contains(PROMPT));
        let mut looking = Client::connect(client.addresses()[0]);
        let state = looking.get("/ollana/status").json();
        assert_eq!(state["servers"][0]["encrypted"], is_paired);
        assert_eq!(state["machine"]["keys"], u64::from(is_paired));
        assert_eq!(state["machine"]["unpaired"], !is_paired);
        let metrics = looking.get("/ollana/metrics").text();
        let is = u8::from(is_paired);
        for start in ["ollana_keys ", "ollana_server_encrypted{server="] {
            let found = metrics.lines().find(|line| line.starts_with(start));
            assert!(found.is_some_and(|found| found.ends_with(&format!(" {is}"))), "{metrics}");
        }
        // This machine's own Ollama is no hop.
        let state = Client::connect(server.addresses()[0]).get("/ollana/status").json();
        assert!(state["servers"][0]["encrypted"].is_null(), "{state}");
    }
}

#[test]
fn what_is_changed_on_the_way_is_never_taken_for_an_answer() {
    const LINES: usize = 2000;
    let whole = format!("{{\"response\":\"{ANSWER}\"}}\n").repeat(LINES);
    let fake = fake(LINES);
    let server = server(&fake, true);
    // Every place in the handshake's answer, in the answer's first records, and one far behind.
    for at in (0..65).step_by(8).chain((65..400).step_by(41)).chain([30_000usize]) {
        let spoil = move |piece: &mut Vec<u8>, passed: usize| {
            if let Some(byte) = at.checked_sub(passed).and_then(|at| piece.get_mut(at)) {
                *byte ^= 1;
            }
            true
        };
        let cut = move |piece: &mut Vec<u8>, passed: usize| passed + piece.len() < at;
        let relays = [
            Relay::meddle(server.addresses()[0], spoil),
            Relay::meddle(server.addresses()[0], cut),
        ];
        for relay in relays {
            let mut settings = client_of(relay.address, true);
            // A health check reads less than is changed here, or fails as well.
            settings.timing.health_interval = Duration::from_secs(60);
            settings.timing.wait_timeout = Duration::from_millis(100);
            let client = Daemon::start(&settings).expect("a client");
            let answer = ask(&client);
            let is_whole = answer.status() == 200 && answer.end == End::Whole;
            let text = answer.text();
            assert!(!is_whole || text == whole, "changed at {at}: {:?}", answer.end);
            if answer.status() == 200 && !is_whole {
                // What Ollama said, up to some byte of it; then at most one line that tells.
                let (said, told) = text.split_at(text.find("{\"error\":").unwrap_or(text.len()));
                let is_start = |text: &str| whole.starts_with(text);
                let is_kept = is_start(said) || said.strip_suffix('\n').is_some_and(is_start);
                let is_told = told.is_empty() || told.find('\n') == Some(told.len() - 1);
                assert!(
                    is_kept && is_told,
                    "changed at {at}: {:?}",
                    &text[text.len().saturating_sub(200)..]
                );
            }
        }
    }
}

#[test]
fn a_recorded_request_does_nothing_a_second_time() {
    let fake = fake(1);
    let server = server(&fake, true);
    let relay = Relay::tap(server.addresses()[0]);
    let client = start(&client_of(relay.address, true));
    assert_eq!(ask(&client).status(), 200);
    let asked = || fake.count();
    assert_eq!(asked(), 1);
    let heard: Vec<[Vec<u8>; 2]> = lock(&relay.heard).clone();
    for [said, _] in heard.iter().filter(|[said, _]| !said.is_empty()) {
        let mut replayer = TcpStream::connect(server.addresses()[0]).expect("connect");
        replayer.set_read_timeout(Some(support::PATIENCE)).expect("a limit");
        replayer.write_all(said).expect("sent");
        replayer.shutdown(Shutdown::Write).expect("said");
        let mut got = Vec::new();
        let _ = replayer.read_to_end(&mut got);
        assert!(got.len() <= 65, "{} bytes for a replay", got.len());
    }
    assert_eq!(asked(), 1, "nothing of it reached Ollama");
}

#[test]
fn strangers_get_nothing_for_their_handshakes() {
    let fake = fake(1);
    let server = server(&fake, true);
    let mut hello = vec![0xF5, b'L', b'N', 1];
    hello.resize(77, 7);
    for len in [1, 4, 12, 76, 77] {
        let mut stranger = TcpStream::connect(server.addresses()[0]).expect("connect");
        stranger.set_read_timeout(Some(support::PATIENCE)).expect("a limit");
        stranger.write_all(&hello[..len]).expect("sent");
        stranger.shutdown(Shutdown::Write).expect("said");
        let mut got = Vec::new();
        let _ = stranger.read_to_end(&mut got);
        assert_eq!(got, b"", "{len} bytes");
    }
    // One that says no more holds its connection no longer than a slow head.
    let mut settings = server_settings(fake.address);
    settings.key_file = Some(key_file());
    settings.timing.head_timeout = Duration::from_millis(100);
    let hasty = start(&settings);
    let mut slow = TcpStream::connect(hasty.addresses()[0]).expect("connect");
    slow.set_read_timeout(Some(support::PATIENCE)).expect("a limit");
    slow.write_all(&hello[..20]).expect("sent");
    let mut got = Vec::new();
    let _ = slow.read_to_end(&mut got);
    assert_eq!(got, b"");
}

#[test]
fn who_repeats_a_handshake_is_cut_off_soon() {
    let fake = fake(1);
    let mut settings = server_settings(fake.address);
    settings.key_file = Some(key_file());
    settings.timing.head_timeout = Duration::from_secs(1);
    let server = start(&settings);
    let secret = std::fs::read_to_string(key_file()).expect("a secret");
    let key = ollana::pairing::peers::parse_secret(&secret).expect("a key");
    let caller = Introduction::of(Identity([9; 16]));
    let (_, recorded) = noise::initiate(Purpose::Requests, &key, &caller).expect("a handshake");
    let mut replayer = TcpStream::connect(server.addresses()[0]).expect("connect");
    replayer.set_read_timeout(Some(support::PATIENCE)).expect("a limit");
    replayer.write_all(&recorded).expect("sent");
    let mut got = Vec::new();
    let end = replayer.read_to_end(&mut got);
    assert!(end.is_ok(), "{end:?}");
    assert!(got.len() >= Purpose::Requests.reply_len(), "the key is right");
}

/// Gives a daemon that keeps its state there a key of another machine.
fn pair(dir: &Path, n: u8, is_confirmed: bool) {
    let other = Peer {
        name: "other".to_owned(),
        identity: Some(Identity([n; 16])),
        key: Key::new([7; 32]),
        is_confirmed,
        added: 0,
    };
    key_files::update(dir, |peers| peers::add(peers, other)).expect("kept");
}

fn takes_key(server: SocketAddr) -> bool {
    let caller = Introduction::of(Identity([9; 16]));
    let (_, hello) =
        noise::initiate(Purpose::Requests, &Key::new([7; 32]), &caller).expect("a handshake");
    let mut stream = TcpStream::connect(server).expect("connected");
    stream.set_read_timeout(Some(support::PATIENCE)).expect("a limit");
    stream.write_all(&hello).expect("sent");
    stream.read_exact(&mut vec![0; Purpose::Requests.reply_len()]).is_ok()
}

/// Whether the key was used before, by a check, or is for the request to try, and whoever takes it up first.
#[test]
fn a_connection_in_clear_is_used_no_more_once_machines_are_paired() {
    for (is_checked, is_server_first) in [(true, true), (false, true), (false, false)] {
        let fake = fake(1);
        let folder = |name: &str| {
            let name = format!("{name}-{}-{is_checked}", std::process::id());
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            // Process numbers come again.
            let _ = std::fs::remove_dir_all(&dir);
            dir
        };
        let dirs = [folder("clear-server"), folder("clear-client")];
        let state_dir = Some(dirs[0].clone());
        let server = start(&Settings { state_dir, ..server_settings(fake.address) });
        let relay = Relay::tap(server.addresses()[0]);
        let mut settings = client_settings(&[relay.address]);
        if !is_checked {
            settings.timing.health_interval = Duration::from_secs(60);
        }
        let client = start(&Settings { state_dir: Some(dirs[1].clone()), ..settings });
        let mut program = Client::connect(client.addresses()[0]);
        assert_eq!(program.ask(post("/api/chat", "{\"prompt\":\"one\"}")).status(), 200);
        assert!(relay.shows("\"one\""), "not paired yet");
        let pair_server = || {
            pair(&dirs[0], 1, is_checked);
            eventually("the server's key", || takes_key(server.addresses()[0]).then_some(()));
        };
        if is_server_first {
            pair_server();
        }
        pair(&dirs[1], 2, is_checked);
        let shakes = |is_refused: bool| {
            let heard = lock(&relay.heard);
            let mut asked = heard.iter().filter(|[said, _]| said.first() == Some(&FIRST_BYTE));
            asked.any(|[_, answer]| !answer.is_empty() && answer.starts_with(b"HTTP") == is_refused)
        };
        let mut ask = || program.ask(post("/api/chat", "{\"prompt\":\"two\"}"));
        if !is_server_first {
            eventually("a handshake that is no request to it", || {
                ask();
                shakes(true).then_some(())
            });
            pair_server();
        }
        eventually("something encrypted", || {
            if !is_checked {
                ask();
            }
            shakes(false).then_some(())
        });
        let answer = program.ask(post("/api/chat", format!("{{\"prompt\":\"{PROMPT}\"}}")));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(!relay.shows(PROMPT), "in clear");
        for dir in dirs {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// What a client says that may not use its only server.
fn refusal(settings: &Settings) -> String {
    let client = Daemon::start(settings).expect("a client");
    let answer = eventually("the check of the server", || {
        let answer = ask(&client);
        (!answer.text().contains("not checked yet")).then_some(answer)
    });
    assert_eq!(answer.status(), 503, "{}", answer.text());
    answer.text()
}

#[test]
fn a_paired_client_uses_no_server_without_the_key() {
    let fake = fake(1);
    let open = server(&fake, false);
    let relay = Relay::tap(open.addresses()[0]);
    let settings = client_of(relay.address, true);
    let said = refusal(&settings);
    assert!(said.contains("ollana pair") && said.contains("--unpaired on"), "{said}");
    assert!(!relay.shows(PROMPT) && !relay.shows("/api/version"), "nothing in clear");
    // The way out that it names.
    let mixed = start(&Settings { unpaired: Some(true), ..settings });
    assert_eq!(ask(&mixed).status(), 200);
}

/// An Ollama without ollana, which is as strict as Go's server: it waits for a line, and what is no
/// request gets a 400.
fn plain_ollama() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let answer = |stream: &TcpStream| {
        let mut reader = BufReader::new(stream);
        let (mut line, mut len) = (Vec::new(), 0);
        reader.read_until(b'\n', &mut line)?;
        let is_request = line.ends_with(b" HTTP/1.1\r\n");
        while is_request && line != b"\r\n" {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line).to_lowercase();
            let told = text.strip_prefix("content-length:").and_then(|it| it.trim().parse().ok());
            len = told.unwrap_or(len);
        }
        reader.read_exact(&mut vec![0; len])?;
        let (status, body) = match is_request {
            true => ("200 OK", "{\"version\":\"0.9.9\"}"),
            false => ("400 Bad Request", "400 Bad Request"),
        };
        let len = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close");
        (&*stream).write_all(format!("{head}\r\n\r\n{body}").as_bytes())
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&stream));
        }
    });
    address
}

#[test]
fn a_plain_ollama_is_known_as_such_at_the_first_check() {
    let mut settings = client_of(plain_ollama(), true);
    settings.timing.health_interval = Duration::from_secs(60);
    for _ in 0..10 {
        let said = refusal(&settings);
        assert!(said.contains("it is not paired with this machine"), "{said}");
        let mixed = start(&Settings { unpaired: Some(true), ..settings.clone() });
        assert_eq!(ask(&mixed).status(), 200);
    }
}

/// Places that any machine of the LAN can fill must not make a server look as if it had no keys.
#[test]
fn a_full_server_is_told_as_such_and_gets_nothing_in_clear() {
    const MAX: usize = 4;
    /// Of the server's own machine there may be a few more.
    const RESERVE: usize = 4;
    let fake = fake(1);
    let mut settings = server_settings(fake.address);
    settings.key_file = Some(key_file());
    settings.limits.max_connections = MAX;
    let server = start(&settings);
    let fill = |_| TcpStream::connect(server.addresses()[0]).expect("a place");
    let held: Vec<TcpStream> = (0..MAX + RESERVE).map(fill).collect();
    let relay = Relay::tap(server.addresses()[0]);
    let mut settings = client_of(relay.address, true);
    settings.unpaired = Some(true);
    settings.timing.health_interval = Duration::from_millis(50);
    let client = Daemon::start(&settings).expect("a client");
    eventually("why not", || ask(&client).text().contains("has no room").then_some(()));
    drop(held);
    eventually("a place", || (ask(&client).status() == 200).then_some(()));
    assert!(relay.shows("503") && !relay.shows("/api/") && !relay.shows(PROMPT), "in clear");
}

#[test]
fn a_server_with_another_key_is_not_used() {
    let fake = fake(1);
    let path = key_file().with_extension("other");
    std::fs::copy(key_file(), &path).expect("a copy keeps its permissions");
    std::fs::write(&path, "0dd1".repeat(16)).expect("another secret");
    let mut settings = server_settings(fake.address);
    settings.key_file = Some(path.clone());
    let other = start(&settings);
    for unpaired in [None, Some(true)] {
        let mut settings = client_of(other.addresses()[0], true);
        settings.unpaired = unpaired;
        settings.timing.health_interval = Duration::from_millis(50);
        if unpaired == Some(true) {
            // The server takes this machine's own programs in clear; so does a client that may.
            assert_eq!(ask(&start(&settings)).status(), 200);
        } else {
            let said = refusal(&settings);
            assert!(said.contains("does not take our key"), "{said}");
        }
    }
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn closed_without_keys_means_closed() {
    let fake = fake(1);
    let open = server(&fake, false);
    let settings = Settings { unpaired: Some(false), ..client_of(open.addresses()[0], false) };
    let said = refusal(&settings);
    assert!(said.contains("ollana pair"), "{said}");
}
