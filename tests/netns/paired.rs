//! Paired machines on a network with others on it: what they hear, what they get, what they are
//! believed.

use std::io::Read;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use ollana::discovery::packet::{self, Packet, flags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::http::{Answer, get, open, post, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, all_lines};
use super::packets::{DISCOVERY, probe, udp};
use super::watch::{limits, takes, throughout};

const PROMPT: &str = "marker-of-a-prompt";
/// The stand-in for Ollama repeats its name in every token.
const ANSWER: &str = "marker-of-an-answer";
/// Pairing two fresh machines; and how soon a key that is taken away counts for nothing.
const PAIRED: Duration = Duration::from_secs(20);
const REVOKED: Duration = Duration::from_secs(4);
/// Nothing that was going to be answered takes so long.
const SILENCE: Duration = Duration::from_millis(500);

/// Every packet between a host and its network, from now on.
struct Tap {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u8>>,
}

impl Tap {
    fn on(host: &Host) -> Tap {
        /// ETH_P_ALL in network order.
        const EVERYTHING: i32 = 0x0300;
        let open = || Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERYTHING)));
        let mut socket = host.run(open).expect("a packet socket");
        socket.set_recv_buffer_size(8 << 20).expect("a large buffer");
        socket.set_nonblocking(true).expect("a socket that doesn't block");
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let mut packet = vec![0; 1 << 16];
            loop {
                let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&pause));
                while let Ok(n) = socket.read(&mut packet) {
                    // IPv4 from and to the network; what programs say on their own machine isn't.
                    if n > 20 && packet[0] >> 4 == 4 && packet[12] == 10 {
                        heard.extend_from_slice(&packet[..n]);
                    }
                }
                if over.load(Relaxed) {
                    return heard;
                }
            }
        });
        Tap { is_over, thread }
    }

    fn heard(self) -> Vec<u8> {
        self.is_over.store(true, Relaxed);
        self.thread.join().expect("the tap")
    }
}

fn has(heard: &[u8], text: &str) -> bool {
    heard.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Runs a command of ollana's on a host, with the state that its daemon has.
fn run(host: &Host, words: &[&str]) -> Output {
    command(host, words, |command| command.output()).expect("ollana runs")
}

fn command<T: Send>(
    host: &Host,
    words: &[&str],
    start: impl FnOnce(&mut Command) -> T + Send,
) -> T {
    let mut command = host.ollana(&[]);
    command.args(words).arg("--state-dir").arg(host.dir().join("ollana"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    host.run(|| start(&mut command))
}

/// `ollana pair` that shows a code, the code, and what was said so far.
fn show(host: &Host) -> (Child, String, String) {
    let mut shown = command(host, &["pair"], |command| command.spawn()).expect("ollana runs");
    let mut said = String::new();
    let out = shown.stdout.as_mut().expect("its output");
    let mut byte = [0];
    while !said.ends_with("\n\n") || !said.contains("ollana pair ") {
        assert_eq!(out.read(&mut byte).expect("a code"), 1, "{said}");
        said.push(char::from(byte[0]));
    }
    let code = said.split_whitespace().last().expect("a code").to_owned();
    (shown, code, said)
}

/// Two commands, and what they said.
pub(super) fn pair(one: &Host, other: &Host) -> (Output, String) {
    let (shown, code, _) = show(one);
    let joined = run(other, &["pair", &code]);
    assert!(joined.status.success(), "{joined:?}");
    let shown = shown.wait_with_output().expect("its end");
    assert!(shown.status.success());
    let said = String::from_utf8(joined.stdout.clone()).expect("text");
    (shown, said)
}

fn chat(host: &Host) -> Option<Answer> {
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{PROMPT}\"}}");
    let answer = send(host, "POST", "/api/chat", &body).ok()?.answer().ok()?;
    (answer.status == 200).then_some(answer)
}

/// Asks another machine's proxy straight away.
fn ask(host: &Host, server: &Host, method: &str, target: &str) -> Answer {
    let address = SocketAddr::from((server.address(0), 11435));
    let mut call = open(host, address, method, target, 2).expect("connected");
    if method == "POST" {
        call.upload(b"{}").expect("sent");
    }
    call.answer().expect("an answer")
}

#[test]
fn two_commands_hide_what_is_said() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, ANSWER);
    let server_daemon = Daemon::start(&server, &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    let tap = Tap::on(&client);
    assert_eq!(chat(&client).expect("an answer").body, all_lines(ANSWER));
    let heard = tap.heard();
    for text in [PROMPT, ANSWER, "/api/chat"] {
        assert!(has(&heard, text), "{text} is on the wire without keys");
    }
    takes("two commands", PAIRED, || {
        pair(&server, &client);
        Some(())
    });
    for daemon in [&server_daemon, &client_daemon] {
        daemon.wait_for("key taken up");
    }
    let tap = Tap::on(&client);
    takes("back in use with a key", limits::NOTICED, || chat(&client));
    // Health checks and lists of models as well.
    throughout(Duration::from_secs(2), || {
        assert_eq!(chat(&client).expect("an answer").body, all_lines(ANSWER));
    });
    let heard = tap.heard();
    for text in [PROMPT, ANSWER, "/api/", "HTTP/1.1"] {
        assert!(!has(&heard, text), "{text} is on the wire with keys");
    }
    assert!(heard.len() > 10_000, "the tap heard {} bytes", heard.len());
}

/// A pair of machines, and one that is neither.
struct Setting {
    server: Host,
    client: Host,
    rogue: Host,
    ollama: Ollama,
    server_daemon: Daemon,
    client_daemon: Daemon,
}

fn paired(lan: &mut Lan) -> Setting {
    let [server, client, rogue] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    pair(&client, &server);
    let ollama = Ollama::start(&server, "gpu");
    let server_daemon = Daemon::start(&server, &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || works(&client));
    Setting { server, client, rogue, ollama, server_daemon, client_daemon }
}

#[test]
fn a_rogue_client_gets_nothing() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { server, client, rogue, ollama, server_daemon: _s, client_daemon: _c } =
        paired(&mut lan);
    let before = ollama.requests("/api/chat");
    for (method, target) in [
        ("POST", "/api/chat"),
        ("POST", "/api/pull"),
        ("GET", "/api/tags"),
        ("GET", "/api/version"),
    ] {
        let answer = ask(&rogue, &server, method, target);
        assert!(answer.is_error(403), "{target}: {answer:?}");
        assert!(answer.body.contains("ollana pair"), "{answer:?}");
    }
    assert_eq!(ollama.requests("/api/chat"), before);
    let to = SocketAddrV4::new(server.address(0), DISCOVERY);
    let asking: UdpSocket = udp(&rogue, "0.0.0.0:0", SILENCE);
    let mut buffer = [0; 512];
    asking.send_to(&probe([7; 16]), to).expect("sent");
    let (len, _) = asking.recv_from(&mut buffer).expect("that it needs a key");
    let Ok(Packet::V1(told)) = packet::decode(&buffer[..len]) else { panic!("no datagram") };
    assert!(told.is_notice() && told.flags == flags::KEY_REQUIRED, "a stranger got {told:?}");
    asking.send_to(b"LANA", to).expect("sent");
    let answer = asking.recv_from(&mut buffer);
    assert!(answer.is_err(), "a stranger got {answer:?}");
    // An ollana without the key finds nobody.
    let daemon = Daemon::start(&rogue, &["--server", &server.address(0).to_string()]);
    takes("503 on the rogue", limits::SILENT, || is_without_server(&rogue));
    assert_eq!(daemon.count("server up "), 0);
    works(&client).expect("the paired one is served");
}

#[test]
fn a_rogue_server_is_not_used() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { client, rogue, ollama, server_daemon, client_daemon, .. } = paired(&mut lan);
    let evil = Ollama::start(&rogue, "evil");
    let _evil_daemon = Daemon::start(&rogue, &[]);
    throughout(Duration::from_secs(2), || {
        assert_eq!(post(&client, "/api/chat").expect("an answer").body, all_lines("gpu"));
    });
    drop(ollama);
    server_daemon.kill();
    // Rather none than that one.
    takes("503 without the paired server", limits::SILENT, || is_without_server(&client));
    throughout(Duration::from_secs(6), || assert_eq!(chat(&client).map(|a| a.body), None));
    assert_eq!(client_daemon.count("server up "), 1);
    assert_eq!(evil.requests("/api/chat") + evil.requests("/api/tags"), 0);
}

/// Two machines of three are paired.
/// Over a router, to the ports that README.md names.
#[test]
fn machines_of_two_subnets_pair_by_address() {
    let Some(mut lan) = Lan::new(2) else { return };
    let hosts = [lan.host(&[("eth0", 0)]), lan.host(&[("eth0", 1)])];
    let router = lan.host(&[("eth0", 0), ("eth1", 1)]);
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("a router");
    for (bridge, host) in (0..).zip(&hosts) {
        host.ip(&["route", "add", "default", "via", &router.address(bridge).to_string()]);
    }
    let [one, other] = hosts;
    let (shown, code, _) = show(&one);
    let are_taken = one.run(|| {
        let port = ("0.0.0.0", 11439);
        TcpListener::bind(port).is_err() && UdpSocket::bind(port).is_err()
    });
    assert!(are_taken, "TCP and UDP port 11439");
    let joined = run(&other, &["pair", &code, &one.address(0).to_string()]);
    assert!(joined.status.success(), "{joined:?}");
    assert!(shown.wait_with_output().expect("its end").status.success());
    for host in [&one, &other] {
        let peers = String::from_utf8(run(host, &["peers"]).stdout).expect("text");
        assert_eq!(peers.lines().count(), 2, "a head and a peer: {peers}");
    }
}

#[test]
fn who_is_cut_off_by_a_pairing_is_told() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, client, third] = [1, 2, 3].map(|_| lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&server, "gpu");
    let _server = Daemon::start_as(&server, "desktop", &[]);
    let _attic_ollama = Ollama::start(&third, "attic");
    let attic = Daemon::start_as(&third, "attic", &[]);
    let client_daemon = Daemon::start(&client, &[]);
    takes("found", limits::FOUND, || (client_daemon.count("server up ") == 2).then_some(()));
    let said = pair(&server, &client).1;
    let told = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let names =
        format!("are cut off: attic ({}). To keep one, run 'ollana pair'", third.address(0));
    assert!(told.contains(&names) && told.contains("'ollana token add NAME' here"), "{said}");
    attic.kill();
    takes("the server's keys in use", REVOKED, || {
        ask(&third, &server, "GET", "/api/version").is_error(403).then_some(())
    });
    // The third machine is a client now, and has no key.
    let alone = Daemon::start(&third, &["--mode", "client", "--listen", "127.0.0.1:11499"]);
    let says = "desktop answers paired machines only: run 'ollana pair' on both";
    alone.wait_for(&format!("no server found in 5 s: no Ollama server found on the LAN; {says}"));
    alone.wait_for(&format!("[WARN] {says}"));
    let told = |words: &[&str]| {
        let output = run(&third, &[words, &["--listen", "127.0.0.1:11499"]].concat());
        let text = [output.stdout, output.stderr].map(|it| String::from_utf8(it).expect("text"));
        text.concat().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for command in [&["status"][..], &["discover"], &["doctor", "--mode", "client"]] {
        let text = told(command);
        assert!(text.contains(says), "{command:?}: {text}");
    }
    // The other way round: the client has a key, and this server has none.
    let attic = Daemon::start_as(&third, "attic", &["--mode", "server"]);
    let is_told = || {
        let state = get(&client, "/ollana/status").map(|answer| answer.body).unwrap_or_default();
        let says = "this machine talks to paired machines only, and attic isn't one";
        state.contains(says).then_some(())
    };
    takes("told that it has no key", Duration::from_secs(20), is_told);
    // Both ends say nothing of the sort once they are paired.
    pair(&third, &client);
    attic.wait_for("key taken up");
    takes("found again", Duration::from_secs(20), || {
        let state = String::from_utf8(run(&client, &["status"]).stdout).expect("text");
        (state.contains("attic") && !state.contains("isn't one")).then_some(())
    });
    let text = String::from_utf8(run(&client, &["discover"]).stdout).expect("text");
    assert!(text.contains("attic") && !text.contains("paired machines"), "{text}");
}

#[test]
fn a_forgotten_machine_loses_access() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Setting { server, client, rogue, ollama, server_daemon, client_daemon: _c } =
        paired(&mut lan);
    // So that the server keeps a key, and stays closed.
    pair(&server, &rogue);
    server_daemon.wait_for("key taken up");
    ollama.release(1);
    let held = send(&client, "POST", "/api/chat", "{}").expect("sent");
    let mut stream = held.head().expect("an answer");
    stream.line().expect("the first token");
    let peers = String::from_utf8(run(&server, &["peers"]).stdout).expect("text");
    let name = peers.lines().nth(1).and_then(|line| line.split_whitespace().next());
    let forgotten = run(&server, &["unpair", name.expect("a peer")]);
    assert!(forgotten.status.success(), "{forgotten:?}");
    takes("the stream's end", REVOKED, || stream.part().err());
    takes("503 on the forgotten machine", limits::SILENT, || is_without_server(&client));
    ollama.release(usize::MAX);
    let answer = ask(&client, &server, "POST", "/api/chat");
    assert!(answer.is_error(403), "{answer:?}");
}
