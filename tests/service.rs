//! The real binary as a service: what it tells its manager, how it goes to the background, and how
//! releases and the command bring it there.
#![cfg(target_os = "linux")]

#[path = "service/command.rs"]
mod command;
#[path = "service/release.rs"]
mod release;
mod support;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getsid, kill_process, kill_process_group, test_kill_process};
use support::{Fake, Ollama, PATIENCE, Process, eventually};

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn at(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Manager(socket)
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 1024];
        // What stops and continues the test interrupts a wait that has a time-out.
        let n = loop {
            match self.0.recv(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                n => break n.expect("a word from ollana"),
            }
        };
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }

    /// The first of what it hears that begins like this, and what it heard before.
    fn hear_until(&self, start: &str) -> (String, Vec<String>) {
        let mut before = Vec::new();
        loop {
            let heard = self.hear();
            if heard.starts_with(start) {
                return (heard, before);
            }
            before.push(heard);
        }
    }
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ollana-service-{}-{name}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder");
    path
}

fn arguments(fake: &Fake) -> String {
    format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --health-interval 100ms",
        fake.address
    )
}

fn fake() -> Ollama {
    Ollama::with(&["m"])
}

#[test]
fn a_service_manager_hears_of_start_and_end() {
    let dir = folder("notify");
    let path = dir.join("notify.sock");
    let name = format!("ollana-service-{}", std::process::id());
    for (address, variable) in [
        (SocketAddr::from_pathname(&path), path.display().to_string()),
        (SocketAddr::from_abstract_name(&name), format!("@{name}")),
    ] {
        let manager = Manager::at(&address.expect("an address"));
        let fake = fake();
        let mut process =
            Process::with_env(&arguments(&fake), &[("NOTIFY_SOCKET", variable.as_str())]);
        let (_, before) = manager.hear_until("READY=1");
        assert!(before.iter().all(|heard| heard.starts_with("STATUS=")), "{before:?}");
        // Whoever was told so may connect at once.
        TcpStream::connect(process.address()).expect("it listens");
        manager.hear_until("STATUS=1 server known, Ollama answers");
        process.signal(Signal::TERM);
        let (_, before) = manager.hear_until("STOPPING=1");
        assert!(!before.iter().any(|heard| heard == "WATCHDOG=1"), "no watchdog was asked for");
        assert_eq!(process.exit().code(), Some(0));
    }
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn the_watchdog_is_fed_while_it_works() {
    let name = format!("ollana-watchdog-{}", std::process::id());
    let manager = Manager::at(&SocketAddr::from_abstract_name(&name).expect("an address"));
    let fake = fake();
    let process = Process::with_env(
        &arguments(&fake),
        &[("NOTIFY_SOCKET", &format!("@{name}")), ("WATCHDOG_USEC", "6000000")],
    );
    manager.hear_until("READY=1");
    let start = Instant::now();
    for _ in 0..4 {
        let last = Instant::now();
        manager.hear_until("WATCHDOG=1");
        assert!(last.elapsed() < Duration::from_secs(6), "too late: {:?}", last.elapsed());
    }
    assert!(start.elapsed() > Duration::from_secs(3), "no more often than is sensible");
    // Frozen, it doesn't.
    process.signal(Signal::STOP);
    let frozen = Instant::now();
    manager.0.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    while manager.0.recv(&mut [0; 1024]).is_ok() {
        assert!(frozen.elapsed() < PATIENCE, "it goes on and on");
    }
    process.signal(Signal::CONT);
    manager.0.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    manager.hear_until("WATCHDOG=1");
}

#[test]
fn a_manager_that_does_not_listen_is_no_reason_to_fail() {
    let fake = fake();
    for socket in ["/nowhere/notify.sock", "@ollana-nobody", "vsock:2:1"] {
        let mut process = Process::with_env(&arguments(&fake), &[("NOTIFY_SOCKET", socket)]);
        process.connect_ready();
        process.signal(Signal::TERM);
        assert_eq!(process.exit().code(), Some(0));
    }
}

/// A daemon that a failed test must not leave behind.
struct Left(Pid);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

fn pid_in(file: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(file).ok()?.trim().parse().ok()?)
}

/// Runs `ollana --daemon` to its end: its code, and what it wrote.
fn launch(arguments: &str, dir: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    command
        .arg("--daemon")
        .args(arguments.split_whitespace())
        .env_clear()
        .env("OLLANA_STATE_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("run ollana");
    let mut stderr = child.stderr.take().expect("its standard error");
    let (done, text) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        let _ = done.send(text);
    });
    let code = child.wait().expect("its end").code();
    let text = text.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let _left = pid_in(&dir.join("ollana.pid")).map(Left);
        panic!("the daemon holds on to the standard error of who started it");
    });
    (code, text)
}

#[test]
fn a_daemon_is_ready_when_its_first_process_ends() {
    let dir = folder("daemon");
    let (pid_file, log) = (dir.join("ollana.pid"), dir.join("ollana.log"));
    let fake = fake();
    let address = support::free_tcp_port();
    // This reads stderr to its end, so it also says that the daemon has let go of it.
    let (code, text) = launch(
        &format!(
            "--mode server --listen {address} --discovery-port 0 --ollama {} --pid-file {} \
             --log-file {}",
            fake.address,
            pid_file.display(),
            log.display()
        ),
        &dir,
    );
    assert_eq!(code, Some(0), "{text}");
    TcpStream::connect(address).expect("it listens");
    let number = fs::read_to_string(&pid_file).expect("its number");
    assert!(text.contains(&format!("pid {}", number.trim())), "{text}");
    assert!(text.contains(&format!("log: {}", log.display())), "{text}");
    let pid = pid_in(&pid_file).expect("a number");
    let left = Left(pid);
    assert_eq!(getsid(Some(pid)).expect("its session"), pid, "it leads a session of its own");
    for (fd, want) in [(0, "/dev/null"), (1, "/dev/null"), (2, "/dev/null")] {
        let link = fs::read_link(format!("/proc/{}/fd/{fd}", number.trim())).expect("a link");
        assert_eq!(link, Path::new(want), "descriptor {fd}");
    }
    // A second one finds the port taken, and says so where people read it.
    let (code, text) = launch(
        &format!("--mode server --listen {address} --discovery-port 0 --ollama {}", fake.address),
        &dir,
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("cannot listen on {address}: address in use")), "{text}");
    kill_process(pid, Signal::TERM).expect("signalled");
    eventually("it to end", || test_kill_process(pid).is_err().then_some(()));
    std::mem::forget(left);
    assert!(!pid_file.exists(), "its number is gone with it");
    assert!(fs::read_to_string(&log).expect("its log").contains("stopped cut=false"));
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn a_daemon_that_cannot_start_says_so() {
    let dir = folder("failing");
    let fake = fake();
    let common = arguments(&fake);
    for (more, code, want) in [
        ("--listen nonsense", 2, "nonsense: expected ADDR:PORT"),
        ("--listen 203.0.113.9:1", 1, "cannot listen on 203.0.113.9:1"),
        ("--pid-file /nowhere/at/all.pid", 1, "cannot write the pid file: /nowhere/at/all.pid"),
        ("--log-file /nowhere/at/all.log", 1, "cannot open the log file /nowhere/at/all.log"),
    ] {
        let (got, text) = launch(&format!("{common} {more}"), &dir);
        assert_eq!(got, Some(code), "{more}: {text}");
        assert!(text.contains(want), "{more}: {text}");
        assert!(!text.contains("in the background, pid"), "{more}: {text}");
    }
    let _ = fs::remove_dir_all(dir);
}

/// While it waits for an Ollama that hangs: Ctrl-C, which a terminal sends to all of its group, and a
/// signal to the command alone.
#[test]
fn who_ends_the_start_of_a_daemon_has_ended_it() {
    for (signal, to_all) in [(Signal::INT, true), (Signal::TERM, false), (Signal::KILL, false)] {
        let dir = folder("ended");
        let (pid_file, log) = (dir.join("ollana.pid"), dir.join("ollana.log"));
        let hanging = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        command
            .args(["--daemon", "--mode", "auto", "--discovery-port", "0", "--listen"])
            .arg(support::free_tcp_port().to_string())
            .arg("--ollama")
            .arg(hanging.local_addr().expect("its address").to_string())
            .arg("--pid-file")
            .arg(&pid_file)
            .arg("--log-file")
            .arg(&log)
            .env_clear()
            .env("OLLANA_STATE_DIR", &dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut launcher = command.spawn().expect("run ollana");
        let _asked = hanging.accept().expect("it asks for Ollama");
        let own = Pid::from_child(&launcher);
        let daemon = eventually("the daemon", || child_of(own));
        let left = Left(daemon);
        let sent = if to_all { kill_process_group(own, signal) } else { kill_process(own, signal) };
        sent.expect("signalled");
        assert!(!launcher.wait().expect("its end").success(), "{signal:?}");
        eventually("the daemon to end", || test_kill_process(daemon).is_err().then_some(()));
        std::mem::forget(left);
        assert!(!pid_file.exists(), "{signal:?}: its number is gone with it");
        let text = fs::read_to_string(&log).expect("its log");
        let reason = if to_all { "stopped before it was ready" } else { "not started" };
        assert!(text.contains(reason), "{signal:?}: {text}");
        let _ = fs::remove_dir_all(dir);
    }
}

fn child_of(parent: Pid) -> Option<Pid> {
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    let mut all = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
    all.find_map(|number: i32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        let mut behind_name = stat.rsplit_once(") ")?.1.split(' ').skip(1);
        (behind_name.next()? == parent.to_string()).then(|| Pid::from_raw(number)).flatten()
    })
}

/// The group of Ollama's service, while there is one: a unit with a group that is gone isn't started.
#[test]
fn the_service_is_in_the_group_of_an_ollama_that_is_there() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/service/ollana.generator");
    for (groups, want) in [
        ("root:x:0:\nollama:x:990:me\n", Some("[Service]\nSupplementaryGroups=ollama\n")),
        ("root:x:0:\nnotollama:x:990:ollama\nollama2:x:1:\n", None),
    ] {
        let dir = folder("generator");
        fs::write(dir.join("group"), groups).expect("a file of groups");
        let mut command = Command::new("sh");
        command.arg(script).arg(&dir).env("OLLANA_GROUPS", dir.join("group"));
        assert!(command.status().expect("sh").success(), "{groups}");
        let told = fs::read_to_string(dir.join("ollana.service.d/models.conf")).ok();
        assert_eq!(told.as_deref(), want, "{groups}");
        fs::remove_dir_all(dir).expect("it can go");
    }
}

/// What launchd would start by this file, if there is a Python that reads it; launchd.plist(5) knows
/// the keys.
#[cfg(debug_assertions)]
fn launchd_words(path: &Path) -> Option<Vec<String>> {
    const READ: &str = "import json, plistlib, sys; \
                        print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let output = Command::new("python3").args(["-c", READ]).arg(path).output();
    let Ok(output) = output else {
        println!("skipped: no python3 to read it with");
        return None;
    };
    let job: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let name = path.file_name().expect("a name").to_string_lossy();
    assert_eq!(format!("{}.plist", job["Label"].as_str().unwrap_or("")), name);
    let known = [
        ("Label", "string"),
        ("ProgramArguments", "array"),
        ("UserName", "string"),
        ("RunAtLoad", "boolean"),
        ("KeepAlive", "boolean"),
        ("ThrottleInterval", "integer"),
        ("ExitTimeOut", "integer"),
        ("SoftResourceLimits", "dictionary"),
    ];
    for (key, value) in job.as_object().expect("a dictionary") {
        let kind = match value {
            serde_json::Value::String(_) => "string",
            serde_json::Value::Array(_) => "array",
            serde_json::Value::Bool(_) => "boolean",
            serde_json::Value::Number(_) => "integer",
            _ => "dictionary",
        };
        assert!(known.contains(&(key.as_str(), kind)), "{key} {kind}");
    }
    let words = job["ProgramArguments"].as_array().expect("words").iter();
    let words: Vec<String> = words.map(|word| word.as_str().expect("a word").to_owned()).collect();
    // What it is started with is a command line that ollana knows.
    let output = Command::new(env!("CARGO_BIN_EXE_ollana"))
        .args(&words[1..])
        .arg("--version")
        .output()
        .expect("ollana runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(job["SoftResourceLimits"]["NumberOfFiles"].as_u64() >= Some(4096));
    // Streams have half a minute to finish.
    assert!(job["ExitTimeOut"].as_u64() > Some(30));
    Some(words)
}
