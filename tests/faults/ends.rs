//! What the end of a process and its changes of role depend on, gone: name servers, servers that
//! are checked, an Ollama that is waited for.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Instant;

use rustix::process::Signal;

use crate::support::{Client, Fake, Process, eventually, free_tcp_port};
use crate::{judge, ms, serving};

/// Three name servers that never answer, and what a process needs to ask them. `None`, after saying
/// so, where that can't be had.
struct DeadNames {
    _servers: Vec<UdpSocket>,
    dir: PathBuf,
}

impl DeadNames {
    fn new(name: &str) -> Option<Self> {
        let dir = std::env::temp_dir().join(format!("ollana-names-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        // Each test has its own, for they may run side by side.
        let net = dir.to_string_lossy().bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31) ^ byte);
        let servers: Vec<String> = (1..4).map(|n| format!("127.53.{net}.{n}")).collect();
        let sockets = servers.iter().map(|ip| UdpSocket::bind((ip.as_str(), 53)).ok()).collect();
        let is_root = rustix::process::geteuid().is_root();
        let Some(_servers) = Option::<Vec<_>>::filter(sockets, |_| is_root) else {
            println!("fault: skipped, as dead name servers need root and port 53");
            return None;
        };
        let text: String = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
        fs::write(dir.join("resolv.conf"), text).expect("written");
        fs::write(dir.join("hosts"), "").expect("written");
        Some(DeadNames { _servers, dir })
    }

    fn start(&self, arguments: &str) -> Process {
        let dir = self.dir.display();
        let script = format!(
            "for f in resolv.conf hosts; do mount --bind {dir}/$f /etc/$f || exit 9; done; exec \"$@\""
        );
        Process::within(&["unshare", "--mount", "sh", "-c", &script, "sh"], arguments)
    }
}

impl Drop for DeadNames {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn fake() -> Fake {
    Fake::unlike_ollama(|call| {
        call.read_body();
        call.answer("200 OK", "text/plain", "ok");
    })
}

fn client(servers: &[String]) -> String {
    let servers: String = servers.iter().map(|server| format!(" --server {server}")).collect();
    format!("--mode client --listen 127.0.0.1:0 --discovery-port 0{servers}")
}

/// Ends a process that has no connection.
fn end(mut process: Process, beside: &str) {
    let start = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0), "beside {beside}");
    judge(&format!("SIGTERM beside {beside}, to the end"), start.elapsed(), ms(1000));
}

#[test]
fn dead_name_servers_hold_up_neither_requests_nor_the_end() {
    let Some(names) = DeadNames::new("dead") else { return };
    let fake = fake();
    let dead = (0..12).map(|n| format!("gpu{n}.test"));
    let servers: Vec<String> = dead.chain([fake.address.to_string()]).collect();
    let process = names.start(&client(&servers));
    let took = serving(process.address());
    judge("dead name servers, to the first answer of another server", took, ms(1000));
    let status = || Client::connect(process.address()).get("/ollana/status").text();
    eventually("the status to name the cause", || {
        status().contains("can't resolve gpu0.test: the name server didn't answer in").then_some(())
    });
    end(process, "dead name servers");
}

#[test]
fn a_server_stays_when_its_name_is_not_answered_any_more() {
    let Some(names) = DeadNames::new("stale") else { return };
    let fake = fake();
    fs::write(names.dir.join("hosts"), "127.0.0.1 gpu.test\n").expect("written");
    let process = names.start(&client(&[format!("gpu.test:{}", fake.address.port())]));
    serving(process.address());
    fs::write(names.dir.join("hosts"), "").expect("written");
    process.line("name not found, its last known address is used name=\"gpu.test\"");
    let took = serving(process.address());
    judge("a name that isn't answered any more, to an answer of its server", took, ms(200));
    assert!(!process.log().contains("server down"), "it is well");
    end(process, "a name that isn't answered any more");
}

#[test]
fn a_local_ollama_by_a_dead_name_holds_up_neither_role_nor_end() {
    let Some(names) = DeadNames::new("role") else { return };
    let fake = fake();
    let (server, own) = (fake.address, "--ollama http://own.test:11434");
    let arguments = format!("--listen 127.0.0.1:0 --discovery-port 0 --server {server} {own}");
    let start = Instant::now();
    let process = names.start(&arguments);
    process.line("ready mode=client");
    judge("Ollama's name not answered, to the role", start.elapsed(), ms(2500));
    serving(process.address());
    end(process, "an Ollama whose name isn't answered");
    // Before it has a role.
    let process = names.start(&arguments);
    eventually("its signals to be handled", || {
        let caught = process.file("status");
        let caught = caught.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).expect("a set of signals");
        // What is caught isn't handled yet; SIGINT follows when SIGTERM is. The shell that starts ollana
        // catches SIGINT alone.
        let is_caught = |signal: Signal| caught >> (signal.as_raw() - 1) & 1 == 1;
        (is_caught(Signal::TERM) && is_caught(Signal::INT)).then_some(())
    });
    end(process, "an Ollama that is being asked");
}

#[test]
fn checks_that_hang_do_not_hold_up_the_end() {
    let silent: Vec<TcpListener> =
        (0..20).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let address = |it: &TcpListener| it.local_addr().expect("its address").to_string();
    let servers: Vec<String> = silent.iter().map(address).collect();
    let process = Process::start(&format!("{} --health-timeout 30s", client(&servers)));
    process.address();
    let asked = |listener: &TcpListener| {
        listener.set_nonblocking(true).expect("set");
        listener.accept().is_ok()
    };
    eventually("checks that hang", || silent.iter().any(asked).then_some(()));
    end(process, "checks that hang");
}

/// On a machine that has just booted and has an Ollama service.
#[test]
fn a_machine_that_boots_and_stops_starts_no_client() {
    let uptime = fs::read_to_string("/proc/uptime").expect("the time since boot");
    let uptime = uptime.split('.').next().and_then(|it| it.parse::<i64>().ok()).expect("a number");
    let boottime = format!("--boottime={}", 20 - uptime);
    let script = "mount -t tmpfs none /etc/systemd && d=/etc/systemd/system/default.target.wants &&
        mkdir -p $d && touch $d/ollama.service && exec \"$@\"";
    let within = ["unshare", "--mount", "--time", &boottime, "sh", "-c", script, "sh"];
    let can = std::process::Command::new("unshare").args(&within[1..]).arg("true").status();
    if !can.is_ok_and(|status| status.success()) {
        return println!("fault: skipped, as a time of boot needs root and unshare --time");
    }
    let ollama = free_tcp_port();
    let listen = "--listen 127.0.0.1:0 --discovery-port 0";
    let mut process = Process::within(&within, &format!("{listen} --ollama {ollama}"));
    process.line("this machine is starting and has an Ollama service");
    let start = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0));
    judge("SIGTERM while Ollama is waited for, to the end", start.elapsed(), ms(1000));
    assert!(!process.log().contains("ready mode="), "it didn't start first");
}
