//! A PC with Windows among machines with Linux: `ollana.exe` under Wine, each PC with a Wine of its
//! own. `make windows` says where those are; without it nothing is tested here.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::basics::{is_without_server, works};
use super::daemon::Daemon;
use super::hangup::closed;
use super::http::send;
use super::lan::{Host, Lan};
use super::ollama::{Ollama, TOKENS, token_line};
use super::paired::pair;
use super::watch::{limits, takes, until};

/// From the start of a client to its first answer where one of both runs under Wine, which itself
/// takes seconds to start.
const FOUND: Duration = Duration::from_secs(10);

/// A PC. Its Windows ends when this is dropped.
struct Pc {
    host: Host,
    runner: PathBuf,
}

impl Pc {
    /// `None` where there is no Wine.
    fn new(lan: &mut Lan) -> Option<Pc> {
        let variable = |name: &str| std::env::var_os(format!("OLLANA_WINDOWS_{name}"));
        let Some(exe) = variable("EXE") else {
            println!("skipped: see make windows");
            return None;
        };
        let mut host = lan.host(&[("eth0", 0)]);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(variable("PREFIX")?).arg(host.dir().join("wine"));
        assert!(copy.status().expect("cp runs").success(), "a Windows of its own");
        let runner = PathBuf::from(variable("RUNNER")?);
        host.run_windows(runner.clone(), exe.into());
        Some(Pc { host, runner })
    }
}

impl Drop for Pc {
    fn drop(&mut self) {
        let mut end = Command::new(&self.runner);
        end.args(["wineboot", "--kill"]).env("WINEPREFIX", self.host.dir().join("wine"));
        let _ = end.status();
    }
}

/// Each token reaches the client before the next one leaves, and a client that hangs up, before the
/// first or behind it, is seen to.
fn streams(client: &Host, ollama: &Ollama) {
    let chat = || send(client, "POST", "/api/chat", "{}").expect("sent");
    ollama.release(1);
    let mut stream = chat().head().expect("an answer");
    for number in 1..=TOKENS {
        assert_eq!(stream.line().expect("a token"), token_line("gpu", number));
        ollama.release(number + 1);
    }
    assert_eq!(stream.rest(), Ok(String::new()), "a clean end");
    for _ in 0..3 {
        ollama.release(1);
        let mut stream = chat().head().expect("an answer");
        stream.line().expect("a token");
        let start = Instant::now();
        stream.hang_up();
        closed(ollama, "hang-up while streaming", start);
        ollama.release(0);
        let before = ollama.requests("/api/chat");
        let call = chat();
        let reached = || (ollama.requests("/api/chat") > before).then_some(());
        until("the request at Ollama", Duration::from_secs(20), reached);
        let start = Instant::now();
        call.hang_up();
        closed(ollama, "hang-up while waiting", start);
    }
    ollama.release(TOKENS);
}

/// A server is found by broadcast and used in clear; then two commands pair both machines, and it is
/// used with the key.
fn used(server: &Host, client: &Host) -> (Ollama, [Daemon; 2]) {
    let ollama = Ollama::start(server, "gpu");
    let daemons = [server, client].map(|host| Daemon::start(host, &[]));
    takes("found", FOUND, || works(client));
    streams(client, &ollama);
    pair(server, client);
    daemons.iter().for_each(|daemon| daemon.wait_for("key taken up"));
    takes("back in use with a key", FOUND, || works(client));
    streams(client, &ollama);
    (ollama, daemons)
}

#[test]
fn linux_uses_windows() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Some(pc) = Pc::new(&mut lan) else { return };
    let client = lan.host(&[("eth0", 0)]);
    let (ollama, [mut server, _client]) = used(&pc.host, &client);
    ollama.release(1);
    let mut stream = send(&client, "POST", "/api/chat", "{}").expect("sent").head().expect("head");
    stream.line().expect("a token");
    // Ctrl-C, as Wine takes it.
    server.signal(Signal::INT);
    takes("Ctrl-C to 503", limits::REFUSING, || is_without_server(&client));
    ollama.release(TOKENS);
    let rest: String = (2..=TOKENS).map(|number| token_line("gpu", number)).collect();
    assert_eq!(stream.rest(), Ok(rest), "streams finish");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn windows_uses_linux() {
    let Some(mut lan) = Lan::new(1) else { return };
    let Some(pc) = Pc::new(&mut lan) else { return };
    let server = lan.host(&[("eth0", 0)]);
    let (_ollama, [_server, mut client]) = used(&server, &pc.host);
    client.signal(Signal::INT);
    assert_eq!(client.wait().code(), Some(0));
}
