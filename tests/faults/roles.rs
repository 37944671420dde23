//! Changes of role leave nothing behind: neither a thread nor a descriptor.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::iter::from_fn;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use ollana::config::{ModeChoice, Settings};
use ollana::serve::Daemon;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{
    Fake, Process, clear_environment, client_settings, eventually, free_tcp_port, server_settings,
};
use crate::{judge, ms, serving};

/// Threads by name, and descriptors by kind, of a process.
fn things(pid: &str) -> BTreeMap<String, usize> {
    let mut things = BTreeMap::new();
    let mut count = |thing: String| *things.entry(thing).or_default() += 1;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten() {
        // One may end meanwhile.
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        count(format!("thread {}", name.trim()));
    }
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten() {
        let kind = fs::read_link(fd.path()).unwrap_or_default();
        let kind = kind.to_string_lossy().into_owned();
        count(kind.split(':').next().unwrap_or_default().to_owned());
    }
    things
}

/// Waits until there are no more of them than before.
fn expect_no_more(what: &str, pid: &str, before: &BTreeMap<String, usize>) {
    let mut more = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(40) {
        let now = things(pid);
        more = now.into_iter().filter(|(it, n)| before.get(it).unwrap_or(&0) < n).collect();
        if more.is_empty() {
            return;
        }
        std::thread::sleep(ms(50));
    }
    panic!("{what}: {more:?} are more than {before:?}");
}

/// Set in a copy of this program that runs one test for itself.
const STAGE: &str = "OLLANA_TEST_STAGE";

/// How long it may take, in seconds; the longest takes about 10.
const COPY_TIME: &str = "120";

/// Runs a test of this file again, by way of another program, if that can be had.
fn run_again(name: &str, way: &[&str]) {
    // A copy that hangs must not hold up all other tests.
    let within = |program: &str| {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", COPY_TIME]).args(way).arg(program);
        command
    };
    if !within("true").output().is_ok_and(|it| it.status.success()) {
        return println!("fault: skipped, as {} needs root", way[0]);
    }
    let own = std::env::current_exe().expect("this program");
    let name = format!("faults::roles::{name}");
    let mut again = within(&own.to_string_lossy());
    let done = again.args(["--exact", &name, "--nocapture"]).env(STAGE, "1").output();
    let done = done.expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout);
    said.lines().filter(|line| line.starts_with("fault: ")).for_each(|line| println!("{line}"));
    let status = done.status;
    assert!(status.success(), "{status}: {said}{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_hundred_changes_of_role_leave_nothing_behind() {
    if std::env::var_os(STAGE).is_some() {
        return change_a_hundred_times();
    }
    // In a network of its own it may discover.
    let way = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"];
    run_again("a_hundred_changes_of_role_leave_nothing_behind", &way);
}

fn change_a_hundred_times() {
    let fake = Fake::unlike_ollama_saying(crate::OK);
    let with_discovery = |mut settings: Settings| {
        settings.discovery_port = 11436;
        settings
    };
    let roles =
        [with_discovery(server_settings(fake.address)), with_discovery(client_settings(&[]))];
    let change = |settings: &Settings| {
        let daemon = Daemon::start(settings).expect("it starts");
        if settings.mode == ModeChoice::Server {
            serving(daemon.addresses()[0]);
        }
        daemon.stop(Duration::ZERO);
    };
    roles.iter().for_each(change);
    // Connections to the fake end with their threads.
    std::thread::sleep(ms(300));
    let before = things("self");
    let start = Instant::now();
    for _ in 0..50 {
        roles.iter().for_each(change);
    }
    judge("a hundred changes of role, each", start.elapsed() / 100, ms(100));
    expect_no_more("after a hundred changes", "self", &before);
}

/// As it is in a house: Ollama comes and goes.
#[test]
fn an_ollama_that_comes_and_goes_leaves_nothing_behind() {
    let mut fake = Fake::unlike_ollama_saying(crate::OK);
    let arguments = format!("--listen 127.0.0.1:0 --discovery-port 0 --ollama {}", fake.address);
    let process = Process::start(&arguments);
    let pid = process.path("").split('/').nth(2).expect("its number").to_owned();
    let mut before: [Option<BTreeMap<String, usize>>; 2] = [None, None];
    for change in 0..4 {
        let role = change % 2;
        let ready = ["ready mode=server", "ready mode=client"][role];
        let start = Instant::now();
        let is_ready = || process.log().matches(ready).count() > change / 2;
        eventually(ready, || is_ready().then_some(()));
        if change > 0 {
            judge("Ollama came or went, to the other role", start.elapsed(), ms(12_000));
        }
        match &before[role] {
            Some(before) => expect_no_more(ready, &pid, before),
            // Health checks and the like come and go.
            None => {
                std::thread::sleep(ms(1500));
                before[role] = Some(things(&pid));
            }
        }
        if role == 0 { fake.kill() } else { fake.restart() }
    }
}

/// A change of role that fails leaves the process to try again, for which it needs its ports.
#[test]
fn a_start_that_fails_half_way_gives_everything_back() {
    if std::env::var_os(STAGE).is_none() {
        // A user that has no other process.
        let user = format!("--reuid={}", 100_000 + std::process::id());
        let way = ["setpriv", &user, "--regid=64124", "--clear-groups", "--inh-caps=-all"];
        return run_again("a_start_that_fails_half_way_gives_everything_back", &way);
    }
    fail_half_way(|more| {
        let threads = things("self").into_iter().filter(|(it, _)| it.starts_with("thread "));
        let taken: usize = threads.map(|(_, n)| n).sum();
        let current = Some((taken + more) as u64);
        let maximum = getrlimit(Resource::Nproc).maximum;
        setrlimit(Resource::Nproc, Rlimit { current, maximum }).expect("a limit");
    });
}

#[test]
fn a_start_that_runs_out_of_descriptors_gives_everything_back() {
    if std::env::var_os(STAGE).is_none() {
        let name = "a_start_that_runs_out_of_descriptors_gives_everything_back";
        return run_again(name, &["prlimit", "--nofile=300:300"]);
    }
    fail_half_way(|more| {
        let mut held: Vec<File> = from_fn(|| File::open("/dev/null").ok()).collect();
        held.truncate(held.len() - more);
        held
    });
}

/// The first start of a process makes what the others use too.
#[test]
fn a_process_that_runs_out_of_descriptors_says_so_and_leaves_nothing() {
    let dir = std::env::temp_dir().join(format!("ollana-few-{}", std::process::id()));
    fs::create_dir(&dir).expect("a folder");
    let own = free_tcp_port();
    let mut reasons = String::new();
    let is_enough = (5..64).any(|most| {
        let mut few = Command::new("prlimit");
        few.arg(format!("--nofile={most}:{most}")).args(["timeout", "--signal=INT", "5"]);
        few.arg(env!("CARGO_BIN_EXE_ollana")).args(["--mode", "server", "--discovery-port", "0"]);
        few.args(["--ollama", "127.0.0.1:1", "--listen", &own.to_string()]);
        clear_environment(&mut few)
            .env("RUNTIME_DIRECTORY", &dir)
            .env("OLLANA_STATE_DIR", dir.join("state"));
        let output = few.output().expect("prlimit and timeout");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("ready mode=server") {
            return true;
        }
        assert_eq!(output.status.code(), Some(1), "{most}: {said}");
        reasons.extend(said.lines().filter(|line| line.starts_with("ollana: ")));
        let left = fs::read_dir(&dir).expect("it is there").flatten().map(|it| it.file_name());
        assert_eq!(left.filter(|name| name != "state").collect::<Vec<_>>(), [""; 0], "{said}");
        false
    });
    assert!(is_enough, "{reasons}");
    for what in ["listen on", "use the keys", "start the proxy"] {
        assert!(reasons.contains(&format!("cannot {what}")), "{what}: {reasons}");
    }
    let _ = fs::remove_dir_all(dir);
}

/// Starts with more and more of a resource, until it is enough. `leave` takes away all of it but so much,
/// for as long as what it returns is kept.
fn fail_half_way<T>(leave: impl Fn(usize) -> T) {
    let ports = [(); 4].map(|()| free_tcp_port());
    let settings = Settings {
        mode: ModeChoice::Both,
        listen: ports[..2].to_vec(),
        share: ports[2..].to_vec(),
        ..server_settings(free_tcp_port())
    };
    // Some of what is started once stays.
    Daemon::start(&settings).expect("it starts").stop(Duration::ZERO);
    std::thread::sleep(ms(500));
    let before = things("self");
    let mut reasons = Vec::new();
    for more in 0.. {
        let taken_away = leave(more);
        let started = Daemon::start(&settings);
        drop(taken_away);
        match started {
            Ok(daemon) => {
                daemon.stop(Duration::ZERO);
                break;
            }
            Err(reason) => reasons.push(reason),
        }
        let reason = &reasons[more];
        assert!(!reason.contains("choose another") || reason.contains("in use"), "{reason}");
        for port in ports {
            TcpListener::bind(port).unwrap_or_else(|e| panic!("{port}: {e} after {reasons:?}"));
        }
        expect_no_more("after a start that failed", "self", &before);
    }
    let proxies = reasons.iter().filter(|reason| reason.contains("cannot start the proxy"));
    assert!(proxies.count() > 3, "of two of three threads and some descriptors each: {reasons:?}");
}
