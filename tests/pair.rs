//! `ollana pair`, `peers` and `unpair`: the real binary, two machines' state on one machine.

mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ollana::config::{ModeChoice, Settings};
use ollana::pairing::code::PairingCode;
use ollana::pairing::identity::Identity;
use ollana::pairing::key_files;
use ollana::pairing::noise::{self, Introduction, Purpose};
use ollana::serve::Daemon;
use socket2::{Domain, Socket, Type};
use support::{
    Client, End, Fake, Gate, PATIENCE, clear_environment, eventually, ndjson, open_to_others, post,
    readme, server_settings, start, unread,
};

/// A machine: a folder for its state. It goes when this is dropped.
struct Machine {
    dir: PathBuf,
    /// The pairing's is three above it.
    discovery_port: u16,
}

/// Machines that can find each other, and nobody else.
fn machines<const N: usize>() -> [Machine; N] {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // One whose third neighbour is free as well, for UDP and TCP; below those that connections get.
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let discovery_port = eventually("free ports", || {
        let number = std::process::id() * 64 + TRIED.fetch_add(8, Relaxed);
        let port = 12_000 + u16::try_from(number % 20_000).ok()?;
        let is_free = TcpListener::bind(("127.0.0.1", port + 3)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port + 3)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok();
        is_free.then_some(port)
    });
    std::array::from_fn(|_| {
        let number = MADE.fetch_add(1, Relaxed);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("machine-{}-{number}", std::process::id()));
        let dir = std::path::absolute(dir).expect("a path");
        fs::create_dir_all(&dir).expect("a folder");
        Machine { dir, discovery_port }
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Machine {
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        let port = self.discovery_port.to_string();
        clear_environment(&mut command)
            .args(arguments.split_whitespace())
            .args(["--interface", "lo", "--discovery-port", &port, "--state-dir"])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    fn run(&self, arguments: &str) -> Said {
        Said::of(self.command(arguments).stdin(Stdio::null()).output().expect("ollana runs"))
    }

    /// Starts `ollana pair` and waits for the code that it shows.
    fn show(&self) -> (Shown, String) {
        let mut child = self.command("pair").spawn().expect("ollana runs");
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        while !line.contains("ollana pair") {
            line.clear();
            assert!(lines.read_line(&mut line).is_ok_and(|n| n > 0), "it shows a code");
        }
        let code = line.split_whitespace().last().expect("a code").to_owned();
        (Shown { child, lines }, code)
    }

    /// The options of a client here.
    fn as_client(&self) -> String {
        let port = self.discovery_port;
        format!("--mode client --listen 127.0.0.1:0 --interface lo --discovery-port {port}")
    }

    fn pair_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.discovery_port + 3))
    }

    fn keys(&self) -> Vec<ollana::pairing::identity::KeyId> {
        key_files::load(&self.dir).expect("keys").iter().map(|peer| peer.id()).collect()
    }

    /// A daemon with this machine's state, which doesn't look for others.
    fn settings(&self, settings: Settings) -> Settings {
        Settings { state_dir: Some(self.dir.clone()), ..settings }
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = Said {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        };
        let lines = said.out.lines().chain(said.err.lines());
        let machine = format!("machine-{}-", std::process::id());
        for line in lines.filter(|line| !line.contains(&machine)) {
            assert!(line.chars().count() <= 80, "too wide: {line}");
        }
        said
    }
}

/// An `ollana pair` that waits; killed when this is dropped.
struct Shown {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Shown {
    fn end(mut self) -> Said {
        let mut out = String::new();
        self.lines.read_to_string(&mut out).expect("its output");
        let mut err = String::new();
        let mut stderr = self.child.stderr.take().expect("its errors");
        stderr.read_to_string(&mut err).expect("its errors");
        Said { code: self.child.wait().expect("its end").code(), out, err }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pairs two machines with two commands.
fn pair(one: &Machine, other: &Machine) {
    let (shown, code) = one.show();
    let said = other.run(&format!("pair {code}"));
    assert_eq!(said.code, Some(0), "{said:?}");
    let shown = shown.end();
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let key = |said: &Said| said.out.split("key ").nth(1).map(|rest| rest[..16].to_owned());
    assert!(key(&said).is_some() && key(&said) == key(&shown), "{said:?} {shown:?}");
}

#[test]
fn two_commands_make_a_pair() {
    let [one, other] = machines();
    let start = Instant::now();
    pair(&one, &other);
    println!("paired in {} ms", start.elapsed().as_millis());
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(one.keys(), other.keys());
    assert_eq!(one.keys().len(), 1);
    for machine in [&one, &other] {
        let said = machine.run("peers");
        assert!(said.out.contains(&machine.keys()[0].to_string()), "{said:?}");
    }
    // Again, the other way round: another key in the place of the first.
    let before = one.keys();
    pair(&other, &one);
    assert_eq!(one.keys(), other.keys());
    assert_eq!(one.keys().len(), 1, "the old key is gone");
    assert_ne!(one.keys(), before);
}

/// README.md shows what both commands say, with another code, name and key.
#[test]
fn the_two_commands_say_what_the_readme_shows() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    let said = other.run(&format!("pair {code}"));
    assert_eq!((said.code, shown.end().code), (Some(0), Some(0)), "{said:?}");
    let want = readme::said_to("laptop$ ollana pair k7pm2-xvd9q").split("…").next().expect("lines");
    // What the machine calls itself; without its environment, Windows has no name for it.
    let name = said.out.split([' ', ',']).nth(2).expect("a name");
    let want = want.replace("desktop", name);
    let want = want.replace("1f0c2a99d1b7e340", &one.keys()[0].to_string());
    assert!(want.lines().count() == 2 && said.out.starts_with(&want), "{want}\n{said:?}");
    let mut showing = one.command("pair").spawn().expect("ollana runs");
    let mut lines = BufReader::new(showing.stdout.take().expect("its output")).lines();
    let said = lines.by_ref().map_while(Result::ok).take(3).collect::<Vec<_>>().join("\n");
    let _ = showing.kill().and_then(|()| showing.wait());
    let code = said.split_whitespace().last().expect("a code");
    let want = readme::said_to("desktop$ ollana pair").replace("k7pm2-xvd9q", code);
    assert_eq!(said, want.trim_end());
}

#[test]
fn the_code_is_asked_for_and_addresses_can_be_named() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    let address = one.pair_address();
    let mut asking = other.command(&format!("pair - {address}")).spawn().expect("ollana runs");
    let mut stdin = asking.stdin.take().expect("its input");
    // As people type.
    writeln!(stdin, " {} ", code.to_uppercase().replace('-', " ")).expect("typed");
    drop(stdin);
    let said = Said::of(asking.wait_with_output().expect("its end"));
    assert_eq!((said.code, shown.end().code), (Some(0), Some(0)), "{said:?}");
    assert_eq!(one.keys(), other.keys());
}

/// Another code.
fn wrong(code: &str) -> String {
    if code.starts_with('0') { code.replacen('0', "1", 1) } else { format!("0{}", &code[1..]) }
}

#[test]
fn wrong_codes_are_counted_by_address() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    let wrong = wrong(&code);
    for _ in 0..5 {
        let said = other.run(&format!("pair {wrong}"));
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains("does not take this code"), "{said:?}");
    }
    // Even the right one is worth nothing from there now.
    let said = other.run(&format!("pair {code} {}", one.pair_address()));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(one.keys().is_empty() && other.keys().is_empty());
    drop(shown);
}

#[test]
fn nobody_can_end_a_code_for_others() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    let hello = hello(&wrong(&code));
    for from in [7, 8] {
        for _ in 0..20 {
            guess([127, 0, 1, from], &hello, one.pair_address());
        }
    }
    let said = other.run(&format!("pair {code}"));
    let shown = shown.end();
    assert_eq!((said.code, shown.code), (Some(0), Some(0)), "{said:?} {shown:?}");
    assert_eq!(shown.out.matches("typed a wrong code").count(), 10, "{shown:?}");
    assert!(shown.out.contains("127.0.1.7 isn't heard any more; for a new code, run it again"));
    assert_eq!(one.keys(), other.keys());
}

/// Types a code from this address; nobody who guesses wrong hears anything.
fn guess(from: [u8; 4], hello: &[u8], to: SocketAddr) {
    let mut stream = connect_from(from, to);
    let mut got = Vec::new();
    let _ = stream.write_all(hello);
    let _ = stream.read_to_end(&mut got);
    assert_eq!(got, b"");
}

#[test]
fn hundreds_of_wrong_codes_end_it_for_all() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    let hello = hello(&wrong(&code));
    for n in 0..300u16 {
        guess([127, 0, 1, 1 + (n / 5) as u8], &hello, one.pair_address());
    }
    let shown = shown.end();
    assert!(shown.err.contains("wrong 300 times"), "{shown:?}");
    let said = other.run(&format!("pair {code} {}", one.pair_address()));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(one.keys().is_empty() && other.keys().is_empty());
}

#[test]
fn noise_on_the_port_is_no_guess() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", &[0xF5; 139], &[0; 500]] {
        for _ in 0..3 {
            let mut stranger = TcpStream::connect(one.pair_address()).expect("connect");
            stranger.write_all(bytes).expect("sent");
            let _ = stranger.shutdown(std::net::Shutdown::Write);
            let mut got = Vec::new();
            let _ = stranger.read_to_end(&mut got);
            assert_eq!(got, b"");
        }
    }
    let said = other.run(&format!("pair {code}"));
    assert_eq!((said.code, shown.end().code), (Some(0), Some(0)), "{said:?}");
}

/// Connects from that address.
fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of ours");
    socket.connect(&to.into()).expect("connect");
    socket.into()
}

/// Connections that say nothing, from several addresses, anew as soon as they are closed.
struct Silence {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Silence {
    fn start(connections: u8, to: SocketAddr) -> Silence {
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let open = move |n: u8| {
            let stream = connect_from([127, 0, 1, n % 10 + 1], to);
            stream.set_nonblocking(true).expect("an option");
            stream
        };
        let mut held: Vec<TcpStream> = (0..connections).map(open).collect();
        let thread = thread::spawn(move || {
            let mut renewed = 0;
            while !stop.load(Relaxed) {
                for (n, stream) in (0..).zip(&mut held) {
                    let is_open = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
                    if !stream.peek(&mut [0]).is_err_and(|error| is_open(&error)) {
                        *stream = open(n);
                        renewed += 1;
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
            renewed
        });
        Silence { is_over, thread: Some(thread) }
    }

    fn end(&mut self) -> u32 {
        self.is_over.store(true, Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or_default())
    }
}

#[test]
fn silent_connections_hold_nobody_up() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    for connections in [50, 100] {
        let mut silence = Silence::start(connections, one.pair_address());
        // Only a wrong code leaves the right one as it is.
        let arguments = match connections {
            50 => format!("pair {} {}", wrong(&code), one.pair_address()),
            _ => format!("pair {code} {}", one.pair_address()),
        };
        let start = Instant::now();
        let said = other.run(&arguments);
        let took = start.elapsed();
        println!("{connections}: {} ms, {} renewed", took.as_millis(), silence.end());
        assert_eq!(said.code, Some(i32::from(connections == 50)), "{said:?}");
        assert!(!said.err.contains("cannot pair"), "{said:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    let shown = shown.end();
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.out.contains("(1 of 5)") && !shown.out.contains("(2 of 5)"), "{shown:?}");
    assert_eq!(one.keys(), other.keys());
}

/// The first message of somebody who typed this code.
fn hello(code: &str) -> Vec<u8> {
    let key = PairingCode::parse(code).expect("a code").key();
    let stranger = Introduction::of(Identity([9; 16]));
    noise::initiate(Purpose::Pairing, &key, &stranger).expect("a handshake").1
}

#[test]
fn wrong_codes_are_counted_however_they_come() {
    let [one, other] = machines();
    let (shown, code) = one.show();
    let hello = hello(&wrong(&code));
    // All are there before the first one guesses, byte by byte in turn.
    let mut guessing: Vec<TcpStream> =
        (1..=12).map(|_| connect_from([127, 0, 1, 7], one.pair_address())).collect();
    for byte in &hello {
        for stream in &mut guessing {
            let _ = stream.write_all(&[*byte]);
        }
    }
    for mut stream in guessing {
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert_eq!(got, b"", "nobody who guesses wrong hears anything");
    }
    let said = other.run(&format!("pair {code}"));
    let shown = shown.end();
    assert_eq!((said.code, shown.code), (Some(0), Some(0)), "{said:?} {shown:?}");
    assert_eq!(shown.out.matches("typed a wrong code").count(), 5, "{shown:?}");
    assert_eq!(one.keys(), other.keys());
}

#[test]
fn what_cannot_be_done_is_said() {
    let [one, other, third] = machines();
    for (arguments, says, code) in [
        ("pair k7pm2-xvd9u", "not a code", 2),
        ("pair 192.168.1.20", "not a code", 2),
        ("pair k7pm2-xvd9q", "run 'ollana pair' on the other one first", 1),
        ("unpair nobody", "no paired machine is called \"nobody\"", 1),
        ("unpair", "takes NAME", 2),
        ("unpair nobody --all", "not both", 2),
    ] {
        let said = other.run(arguments);
        assert_eq!(said.code, Some(code), "{arguments}: {said:?}");
        assert!(said.err.contains(says), "{arguments}: {said:?}");
    }
    assert!(other.run("peers").out.contains("no paired machines"));
    let (_shown, code) = one.show();
    let said = third.run("pair");
    assert!(said.code == Some(1) && said.err.contains("another 'ollana pair'"), "{said:?}");
    // With itself.
    let said = one.run(&format!("pair {code} {}", one.pair_address()));
    assert_eq!(said.code, Some(1), "{said:?}");
}

#[test]
fn where_keys_cannot_be_kept_safely_nothing_is_paired() {
    let [one, other] = machines();
    let (_shown, code) = one.show();
    fs::create_dir(other.dir.join("keys")).expect("a folder");
    open_to_others(&other.dir.join("keys")).expect("loose");
    let said = other.run(&format!("pair {code}"));
    assert!(said.code == Some(1) && said.err.contains("chmod 700"), "{said:?}");
    let mut daemon = other.command("serve --mode client --listen 127.0.0.1:0");
    let said = Said::of(daemon.output().expect("ollana runs"));
    assert!(said.code == Some(1) && said.err.contains("chmod 700"), "{said:?}");
}

#[test]
fn running_daemons_take_keys_up_and_lose_them() {
    let [here, there] = machines();
    let gate = Gate::new();
    let held = gate.clone();
    let fake = Fake::unlike_ollama(move |call| {
        call.read_body();
        if call.target() != "/api/chat" {
            return call.answer("200 OK", "text/plain", "ok");
        }
        call.send(ndjson());
        call.send_chunk("{\"a\":1}\n");
        let _ = held.wait();
        call.send_chunk("{\"a\":2}\n");
        call.send("0\r\n\r\n");
    });
    let mut settings = here.settings(server_settings(fake.address));
    settings.discovery_port = here.discovery_port;
    let _server = start(&settings);
    let mut settings = there.settings(support::client_settings(&[]));
    settings.mode = ModeChoice::Client;
    settings.discovery_port = there.discovery_port;
    settings.interfaces = vec!["lo".to_owned()];
    settings.timing.probe_interval = Duration::from_millis(200);
    settings.unpaired = Some(false);
    let client = Daemon::start(&settings).expect("a client");
    let mut program = Client::connect(client.addresses()[0]);
    assert_eq!(program.get("/x").status(), 503, "nobody is paired yet");
    pair(&here, &there);
    let start = Instant::now();
    eventually("the key to be taken up", || client.presence().is_up().then_some(()));
    println!("taken up within {} ms", start.elapsed().as_millis());
    assert_eq!(program.get("/x").text(), "ok");
    // A stream that is under way when the server forgets the client.
    let mut stream = Client::connect(client.addresses()[0]);
    stream.send(post("/api/chat", "{}"));
    assert_eq!(stream.head_of("POST").status(), 200);
    stream.read_until(b"\n");
    let name = key_files::load(&here.dir).expect("keys")[0].name.clone();
    let said = here.run(&format!("unpair {name}"));
    assert!(said.code == Some(0) && said.out.contains("--unpaired off"), "{said:?}");
    let start = Instant::now();
    let (rest, end) = stream.rest();
    assert_ne!(end, End::Whole, "{}", String::from_utf8_lossy(&rest));
    println!("cut after {} ms", start.elapsed().as_millis());
    assert!(start.elapsed() < Duration::from_secs(4), "cut after {:?}", start.elapsed());
    eventually("the server to be out", || (!client.presence().is_up()).then_some(()));
    gate.open();
    assert_eq!(program.get("/x").status(), 503);
}

/// What the messages of a pairing are long, as they go to the machine that shows the code, and come
/// from it: handshake, half a key, and the last words.
fn messages() -> [Vec<usize>; 2] {
    let record = |len| len + noise::OVERHEAD;
    let (hello, reply) = (Purpose::Pairing.hello_len(), Purpose::Pairing.reply_len());
    [vec![hello, record(32), record(4)], vec![reply, record(32), record(4), record(4)]]
}

/// A wire to `server` on which so many bytes pass in each direction; false is sent when more are
/// to, and true when one of the sides has ended.
fn short_wire(server: SocketAddr, limits: [usize; 2]) -> (SocketAddr, Receiver<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a wire");
    let address = listener.local_addr().expect("its address");
    let (report, events) = channel();
    thread::spawn(move || {
        let (near, _) = listener.accept().expect("a machine");
        let far = TcpStream::connect(server).expect("the other machine");
        for (from, to, limit) in [(&near, &far, limits[0]), (&far, &near, limits[1])] {
            let (mut from, mut to) = (from.try_clone().expect("it"), to.try_clone().expect("it"));
            let report = report.clone();
            thread::spawn(move || {
                let (mut left, mut buffer) = (limit, [0; 4096]);
                loop {
                    match from.read(&mut buffer) {
                        Ok(n) if n > left => {
                            let _ = to.write_all(&buffer[..left]);
                            return report.send(false);
                        }
                        Ok(n) if n > 0 && to.write_all(&buffer[..n]).is_ok() => left -= n,
                        _ => return report.send(true),
                    }
                }
            });
        }
    });
    (address, events)
}

/// Pairs two machines and kills both when this message of one side (0: the one that types the code)
/// is on its way; what they write between two messages, a machine has written or has not.
fn killed_pairing(shows: &Machine, types: &Machine, side: usize, message: usize) {
    let mut limits = [usize::MAX; 2];
    limits[side] = messages()[side][..message].iter().sum();
    let (shown, code) = shows.show();
    let (address, events) = short_wire(shows.pair_address(), limits);
    let mut child = types.command(&format!("pair {code} {address}")).spawn().expect("ollana runs");
    let lines = BufReader::new(child.stdout.take().expect("its output"));
    let joining = Shown { child, lines };
    let cut = events.recv_timeout(Duration::from_secs(20)).expect("the message");
    assert!(!cut, "side {side}, message {message}: one of them ended before");
    drop((shown, joining));
}

/// That requests pass between daemons with these machines' keys; returns once they do, with what
/// is left of the daemons.
fn works(server: &Machine, client: &Machine, fake: &Fake) -> [Daemon; 2] {
    let sharing = start(&server.settings(server_settings(fake.address)));
    let named = [sharing.addresses()[0]];
    let using = start(&client.settings(support::client_settings(&named)));
    let mut program = Client::connect(using.addresses()[0]);
    eventually("a request to pass", || (program.get("/x").status() == 200).then_some(()));
    [sharing, using]
}

/// Whatever is killed, whenever: both machines have what worked before, or the new key, and each
/// new key replaces the old one once it has been used.
fn killed_at_each_message(is_first: bool) {
    let fake = Fake::unlike_ollama(|call| {
        call.read_body();
        call.answer("200 OK", "text/plain", "ok");
    });
    let points = (0..2).flat_map(|side| (0..messages()[side].len()).map(move |at| (side, at)));
    for (n, (side, message)) in points.enumerate() {
        let [shows, types] = machines();
        if !is_first {
            pair(&shows, &types);
        }
        let (before, what) = (shows.keys(), format!("side {side}, message {message}"));
        killed_pairing(&shows, &types, side, message);
        let common = |key| types.keys().contains(key);
        assert!(is_first || shows.keys().iter().any(common), "{what}: no key in common");
        let [server, client] = if n % 2 == 0 { [&shows, &types] } else { [&types, &shows] };
        // Both have the new key from the last words of the one that types the code on.
        let is_shared = (side, message) == (0, 2) || (side, message) == (1, 3);
        drop(works(server, client, &fake));
        let running = works(server, client, &fake); // Over restarts.
        if is_shared {
            eventually(&format!("{what}: one key that was used"), || {
                let keys = shows.keys();
                (keys.len() == 1 && keys == types.keys() && keys != before).then_some(())
            });
        } else {
            assert!(before.iter().all(|key| shows.keys().contains(key)), "{what}");
            assert_eq!(types.keys(), before, "{what}");
        }
        drop(running);
        // As often as it is killed.
        for _ in 0..2 {
            killed_pairing(&shows, &types, 1, 2);
        }
        drop(works(server, client, &fake));
        pair(&shows, &types);
        assert!(shows.keys().len() == 1 && shows.keys() == types.keys(), "{what}");
        drop(works(client, server, &fake));
    }
}

#[test]
fn pairing_that_is_killed_leaves_what_was_before() {
    killed_at_each_message(true);
}

#[test]
fn pairing_again_that_is_killed_leaves_the_old_key() {
    killed_at_each_message(false);
}

/// A daemon or another command of this machine, whose home holds its state: of Unix and of Windows.
fn command_at_home(home: &Path, state: &str, arguments: &str) -> Command {
    let state = &*home.join(state);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    clear_environment(&mut command).args(arguments.split_whitespace());
    command.env("XDG_STATE_HOME", state).env("LOCALAPPDATA", state);
    command.env("APPDATA", home.join("config"));
    // On Windows, some shells set it, and it means nothing.
    command.env("HOME", if cfg!(windows) { state } else { home });
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The same where new files are for their owner alone.
#[cfg(unix)]
fn with_strict_umask(command: &Command) -> Command {
    let mut strict = Command::new("/bin/sh");
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    clear_environment(&mut strict).envs(set).args(["-c", "umask 077; exec \"$0\" \"$@\""]);
    strict.arg(command.get_program()).args(command.get_args());
    strict.stdin(Stdio::null()).stderr(Stdio::piped());
    strict
}

/// What it says until it ends, or is killed.
fn at_home(home: &Path, state: &str, arguments: &str) -> Said {
    said_by(command_at_home(home, state, arguments))
}

fn said_by(mut command: Command) -> Said {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("ollana runs");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("its status").is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    Said::of(child.wait_with_output().expect("its output"))
}

/// Whether it says within patience that it is ready; it is killed then.
fn gets_ready(mut command: Command) -> bool {
    let mut child = command.spawn().expect("it runs");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let is_ready = lines.any(|line| line.is_ok_and(|line| line.contains("ready mode=")));
    let _ = child.kill().and_then(|()| child.wait());
    is_ready
}

/// Pairs with a state directory that nobody names.
fn pair_at_home(one: &Machine, home: &Machine) {
    let (shown, code) = one.show();
    let said = at_home(&home.dir, "s", &format!("pair {code} {}", one.pair_address()));
    assert_eq!((said.code, shown.end().code), (Some(0), Some(0)), "{said:?}");
}

fn has_installed_ollana() -> bool {
    let is_there = ["/var/lib/ollana", "/var/db/ollana"].iter().any(|dir| Path::new(dir).exists());
    if is_there {
        println!("skipped: commands without --state-dir would mean the installed ollana");
    }
    is_there
}

/// What changes keys does all of it, also where nobody reads what it says.
#[test]
fn keys_and_their_mark_go_together_though_nobody_reads() {
    if has_installed_ollana() {
        return;
    }
    let [one, home] = machines();
    let config = if cfg!(windows) { "config" } else { ".config" };
    let mark = home.dir.join(config).join("ollana/paired");
    let unheard = |arguments: &str| {
        let mut command = command_at_home(&home.dir, "s", arguments);
        let said = Said::of(command.stdout(unread()).output().expect("ollana runs"));
        assert_eq!(said.code, Some(0), "{arguments}: {said:?}");
    };
    for unpair in ["unpair --all", "unpair NAME"] {
        let (shown, code) = one.show();
        unheard(&format!("pair {code} {} --discovery-port 0", one.pair_address()));
        assert_eq!(shown.end().code, Some(0));
        assert!(mark.exists(), "{mark:?}");
        unheard("peers");
        let name = key_files::load(&home.dir.join("s/ollana")).expect("keys")[0].name.clone();
        unheard(&unpair.replace("NAME", &name));
        assert!(!mark.exists(), "{unpair}: {:?}", fs::read_to_string(&mark));
    }
    unheard("token add phone");
    unheard("token remove phone");
    assert!(at_home(&home.dir, "s", "token list").out.starts_with("no tokens"));
}

/// A machine that is paired with nobody any more needs no keys.
#[test]
fn the_last_unpair_leaves_no_mark() {
    if has_installed_ollana() {
        return;
    }
    let [one, home] = machines();
    let serve = home.as_client();
    let config = if cfg!(windows) { "config" } else { ".config" };
    let mark = home.dir.join(config).join("ollana/paired");
    for unpair in ["unpair --all", "unpair NAME"] {
        pair_at_home(&one, &home);
        assert!(mark.exists(), "{mark:?}");
        let state = home.dir.join("s/ollana");
        let name = key_files::load(&state).expect("keys")[0].name.clone();
        let said = at_home(&home.dir, "s", &unpair.replace("NAME", &name));
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(!mark.exists(), "{unpair}: {:?}", fs::read_to_string(&mark));
        fs::remove_dir_all(&state).expect("it was there");
        assert!(gets_ready(command_at_home(&home.dir, "s", &serve)), "{unpair}");
    }
    // As an older version left it.
    fs::write(&mark, "\n").expect("a mark");
    assert!(gets_ready(command_at_home(&home.dir, "s", &serve)), "a blank line");
}

/// A service is another user than who pairs for it.
#[cfg(unix)]
#[test]
fn the_mark_can_be_read_or_nothing_starts() {
    use std::os::unix::fs::PermissionsExt;

    if has_installed_ollana() {
        return;
    }
    let [one, home] = machines();
    let (shown, code) = one.show();
    let typed = format!("pair {code} {}", one.pair_address());
    let said = said_by(with_strict_umask(&command_at_home(&home.dir, "s", &typed)));
    assert_eq!((said.code, shown.end().code), (Some(0), Some(0)), "{said:?}");
    let folder = home.dir.join(".config/ollana");
    let mark = folder.join("paired");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&mark)), (0o755, 0o644));
    // Not even root reads this one.
    fs::remove_file(&mark).expect("it was there");
    fs::create_dir(&mark).expect("a folder");
    fs::remove_dir_all(home.dir.join("s/ollana")).expect("it was there");
    let said = at_home(&home.dir, "s", &home.as_client());
    let told = format!("{}, which ollana cannot read: not a plain file", mark.display());
    assert!(said.code == Some(1) && said.err.contains(&told), "{said:?}");
}

/// Keys that are gone with their folder, with all state, or because the state is elsewhere now.
#[test]
fn without_its_keys_a_paired_machine_does_not_talk() {
    if has_installed_ollana() {
        return;
    }
    let [one, home] = machines();
    let pair = || pair_at_home(&one, &home);
    let serve = |state: &str| at_home(&home.dir, state, &home.as_client());
    let [state, other] = ["s", "other"].map(|name| home.dir.join(name).join("ollana"));
    let told = |said: Said, what: &str| {
        assert!(said.code == Some(1) && said.err.contains(what), "{what}: {said:?}");
        assert!(!said.err.contains("ready mode="), "{said:?}");
    };
    pair();
    for lost in [state.join("keys"), state.clone()] {
        fs::remove_dir_all(&lost).expect("it was there");
        told(serve("s"), "are gone");
        // Code that nobody takes is no reason to go on.
        let said = at_home(&home.dir, "s", "pair k7pm2-xvd9q 127.0.0.1:1");
        assert_eq!(said.code, Some(1), "{said:?}");
        told(serve("s"), "are gone");
        let listen = "--listen 127.0.0.1:1";
        told(at_home(&home.dir, "s", &format!("status {listen}")), "are gone");
        let said = at_home(&home.dir, "s", &format!("doctor {listen}"));
        assert!(said.out.contains("are gone"), "{said:?}");
        pair();
    }
    // An update that has its state elsewhere.
    told(serve("other"), "name it with --state-dir");
    told(serve("other"), state.to_str().expect("a path"));
    // Somebody wants it so.
    let said = at_home(&home.dir, "other", "unpair --all");
    assert!(said.code == Some(0) && other.join("keys/peers").exists(), "{said:?}");
    assert!(gets_ready(command_at_home(&home.dir, "other", &home.as_client())), "in clear");
}
