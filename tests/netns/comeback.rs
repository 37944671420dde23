//! An Ollama that was stopped and is started again from wherever its program is gets its port back.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::daemon::Daemon;
use super::lan::{Host, Lan};
use super::ollama::Ollama;
use super::watch::{is_strict, throughout, until};
use crate::support::{copy_program, script};

/// Set where a copy of this program shall be an Ollama.
pub(crate) const IS_OLLAMA: &str = "OLLANA_TEST_IS_OLLAMA";
/// Roles change within this time: five seconds of grace, ten between two changes.
const PATIENCE: Duration = Duration::from_secs(40);
const MEMORY: &str = "ollana/ollama-programs.json";

/// `start` is how many milliseconds it tries to get its port.
pub(crate) fn serve_as_ollama(start: &str) {
    Ollama::serve("own", Duration::from_millis(start.parse().expect("milliseconds")));
}

/// A program of this host, killed when it is dropped.
struct Running(Child);

impl Running {
    fn start(host: &Host, program: &Path) -> Running {
        let mut command = Command::new(program);
        let start = if is_strict() { "200" } else { "3000" };
        command.args(["serve", "--exact"]).env_clear().env(IS_OLLAMA, start).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = || command.spawn();
        Running(host.run(start).unwrap_or_else(|error| panic!("{}: {error}", program.display())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies this program.
fn copy(to: &Path) {
    copy_program(&std::env::current_exe().expect("this program"), to);
}

/// What is done while Ollama is away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Nothing,
    /// ollana is restarted.
    Restart,
    /// The program is replaced by a newer one.
    Upgrade,
}

/// Ollama is started, stopped and started again; `program` is what is called.
fn comes_back(host: &Host, program: &Path, file: &Path, meanwhile: Meanwhile) {
    let what = format!("{} {meanwhile:?}", program.display());
    let ollama = Running::start(host, program);
    until(&format!("{what}: Ollama"), PATIENCE, || {
        host.run(|| std::net::TcpStream::connect("127.0.0.1:11434")).ok().map(|_| ())
    });
    let mut daemon = Daemon::start(host, &[]);
    daemon.wait_for("ready mode=server");
    assert_eq!(daemon.count("can't be seen"), 0, "{what}");
    drop(ollama);
    daemon.wait_for("ready mode=client");
    match meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::Restart => {
            daemon.kill();
            daemon = Daemon::start(host, &[]);
            daemon.wait_for("ready mode=client");
        }
        Meanwhile::Upgrade => {
            fs::remove_file(file).expect("removed");
            throughout(Duration::from_millis(1500), || daemon.assert_alive());
            copy(file);
        }
    }
    let servers = daemon.count("ready mode=server");
    let mut again = Running::start(host, program);
    until(&format!("{what}: shared again"), PATIENCE, || {
        assert_eq!(again.0.try_wait().expect("its state"), None, "{what}: address already in use");
        (daemon.count("ready mode=server") > servers).then_some(())
    });
}

#[test]
fn an_ollama_outside_the_path_gets_its_port_back() {
    let Some(mut lan) = Lan::new(1) else { return };
    let mut stories: Vec<(Host, PathBuf, PathBuf, Meanwhile)> = Vec::new();
    let mut add = |make: &dyn Fn(&Path) -> [PathBuf; 2], meanwhile| {
        let host = lan.host(&[("eth0", 0)]);
        let [program, file] = make(host.dir());
        stories.push((host, program, file, meanwhile));
    };
    let odd = |dir: &Path| {
        let program = dir.join("opt/odd place/bin/ollama");
        copy(&program);
        [program.clone(), program]
    };
    add(&odd, Meanwhile::Nothing);
    add(&odd, Meanwhile::Upgrade);
    let with_junk = |dir: &Path| {
        fs::create_dir_all(dir.join("ollana")).expect("made");
        fs::write(dir.join(MEMORY), b"\xff[{\"file\":").expect("written");
        odd(dir)
    };
    add(&with_junk, Meanwhile::Restart);
    let other_name = |dir: &Path| {
        let program = dir.join("opt/llm/inference-engine-cuda");
        copy(&program);
        [program.clone(), program]
    };
    add(&other_name, Meanwhile::Restart);
    let wrapper = |dir: &Path| {
        let (program, file) = (dir.join("home/bin/llm"), dir.join("home/lib/ollama"));
        copy(&file);
        script(&program, &format!("#!/bin/sh\nexec {} \"$@\"\n", file.display()));
        [program, file]
    };
    add(&wrapper, Meanwhile::Restart);
    let interpreted = |dir: &Path| {
        let (program, file) = (dir.join("home/ollama"), dir.join("home/interpreter"));
        copy(&file);
        script(&program, &format!("#!{}\n", file.display()));
        [program, file]
    };
    add(&interpreted, Meanwhile::Restart);
    let linked = |dir: &Path| {
        let (program, file) = (dir.join("home/.local/bin/ollama"), dir.join("opt/ollama-1/ollama"));
        copy(&file);
        fs::create_dir_all(program.parent().expect("a folder")).expect("made");
        symlink(&file, &program).expect("linked");
        [program, file]
    };
    add(&linked, Meanwhile::Upgrade);
    thread::scope(|scope| {
        for (host, program, file, meanwhile) in &stories {
            scope.spawn(move || comes_back(host, program, file, *meanwhile));
        }
    });
}

/// As with a container that publishes its port, or a tunnel.
#[test]
fn where_ollamas_start_cant_be_seen_it_is_said_while_all_is_well() {
    let Some(mut lan) = Lan::new(1) else { return };
    let host = lan.host(&[("eth0", 0)]);
    let _ollama = Ollama::start(&host, "own");
    let daemon = Daemon::start(&host, &[]);
    daemon.wait_for("ready mode=server");
    daemon.wait_for("Ollama's start can't be seen here");
    let advice = daemon.lines("Ollama's start can't be seen here").remove(0);
    assert!(advice.contains("WARN") && advice.contains("--mode server"), "{advice}");
    for tool in ["status", "doctor"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        command.arg(tool).env_clear().env("XDG_STATE_HOME", host.dir()).stdin(Stdio::null());
        let output = host.run(|| command.output()).expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).replace("\n", " ");
        assert!(text.contains("can't be seen here") && text.contains("--mode server"), "{text}");
    }
    throughout(Duration::from_millis(2500), || {
        assert_eq!(daemon.count("can't be seen"), 1, "once");
    });
    // Who has set it isn't told.
    drop(daemon);
    let daemon = Daemon::start(&host, &["--mode", "server"]);
    throughout(Duration::from_millis(1500), || assert_eq!(daemon.count("can't be seen"), 0));
}
