//! Hosts on bridges, each host a network namespace. All of it goes when the [`Lan`] is dropped.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Network segments that exist at once, however many threads run tests: two cores are enough.
const MOST_AT_ONCE: u32 = 8;
/// Every namespace's name begins with this, then the number of the process.
const PREFIX: &str = "ollana-netns-";

static MADE: AtomicU32 = AtomicU32::new(0);
static PRESENT: Mutex<u32> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

/// Bridges in a namespace of their own, and the hosts that are plugged in.
pub(crate) struct Lan {
    /// Of the bridges; the hosts' names begin with it.
    switch: String,
    namespaces: Vec<String>,
    dir: PathBuf,
}

/// One machine.
#[derive(Clone)]
pub(crate) struct Host {
    namespace: String,
    switch: String,
    number: u8,
    dir: PathBuf,
    cables: Vec<Cable>,
    /// The ollana that it runs, what runs that, and in what environment.
    program: Vec<PathBuf>,
    variables: Vec<(&'static str, PathBuf)>,
}

/// From a host's interface to a bridge.
#[derive(Clone)]
struct Cable {
    interface: String,
    port: String,
    bridge: u8,
}

impl Lan {
    /// With so many bridges; `None`, after saying why, where that can't be had.
    pub(crate) fn new(bridges: u8) -> Option<Lan> {
        if let Err(reason) = possible() {
            static SAID: Once = Once::new();
            SAID.call_once(|| skip(&reason));
            return None;
        }
        let present = PRESENT.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |count: &mut u32| *count >= MOST_AT_ONCE;
        let mut present = LEFT.wait_while(present, full).unwrap_or_else(PoisonError::into_inner);
        *present += 1;
        drop(present);
        let switch = format!("{PREFIX}{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        let dir = std::env::temp_dir().join(&switch);
        let lan = Lan { switch: switch.clone(), namespaces: vec![switch.clone()], dir };
        fs::create_dir_all(&lan.dir).expect("a temporary directory");
        ip(&["netns", "add", &switch]);
        for bridge in 0..bridges {
            ip(&["-n", &switch, "link", "add", &bridge_name(bridge), "type", "bridge"]);
            ip(&["-n", &switch, "link", "set", &bridge_name(bridge), "up"]);
        }
        Some(lan)
    }

    /// A host with interfaces on bridges; its address there is [`Host::address`].
    pub(crate) fn host(&mut self, interfaces: &[(&str, u8)]) -> Host {
        let number = self.namespaces.len() as u8;
        let namespace = format!("{}h{number}", self.switch);
        ip(&["netns", "add", &namespace]);
        self.namespaces.push(namespace.clone());
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        let dir = self.dir.join(format!("h{number}"));
        fs::create_dir_all(&dir).expect("a directory for the host");
        let switch = self.switch.clone();
        let variables = vec![("HOME", dir.clone()), ("XDG_STATE_HOME", dir.clone())];
        let program = vec![PathBuf::from(env!("CARGO_BIN_EXE_ollana"))];
        let cables = Vec::new();
        let mut host = Host { namespace, switch, number, dir, cables, program, variables };
        for (interface, bridge) in interfaces {
            host.add_cable(interface, *bridge);
        }
        host
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // Nothing more can be done about a failure, and the others have to go too.
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
        *PRESENT.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LEFT.notify_one();
    }
}

impl Host {
    /// Plugs one more interface in.
    pub(crate) fn add_cable(&mut self, interface: &str, bridge: u8) {
        let port = format!("p{}-{}", self.number, self.cables.len());
        let (host, switch) = (self.namespace.as_str(), self.switch.as_str());
        ip(&[
            "link", "add", interface, "netns", host, "type", "veth", "peer", "name", &port,
            "netns", switch,
        ]);
        ip(&["-n", switch, "link", "set", &port, "master", &bridge_name(bridge), "up"]);
        let address = format!("{}/24", self.address(bridge));
        self.ip(&["address", "add", &address, "broadcast", "+", "dev", interface]);
        self.ip(&["link", "set", interface, "up"]);
        self.cables.push(Cable { interface: interface.to_owned(), port, bridge });
    }

    /// Its address on a bridge.
    pub(crate) fn address(&self, bridge: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 80, bridge, self.number)
    }

    /// What it calls itself, by which its server is known.
    pub(crate) fn name(&self) -> String {
        format!("h{}", self.number)
    }

    /// Makes it one with Windows, whose programs this runner runs: `ollana.exe` is this one.
    pub(crate) fn run_windows(&mut self, runner: PathBuf, exe: PathBuf) {
        self.program = vec![runner, exe];
        let state = ("OLLANA_STATE_DIR", self.dir.join("ollana"));
        self.variables = vec![("WINEPREFIX", self.dir.join("wine")), state];
    }

    /// The command that runs ollana there, without arguments, behind another one's if there is one.
    pub(crate) fn ollana(&self, before: &[&str]) -> Command {
        let before = before.iter().map(PathBuf::from);
        let words: Vec<PathBuf> = before.chain(self.program.iter().cloned()).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(self.variables.iter().cloned());
        command
    }

    /// Where it keeps its files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `ip` on this host.
    pub(crate) fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.namespace], args].concat());
    }

    /// What `ip` says on this host.
    pub(crate) fn output(&self, args: &[&str]) -> String {
        let shown = Command::new("ip").args(["-n", &self.namespace]).args(args).output();
        String::from_utf8(shown.expect("ip runs").stdout).expect("text")
    }

    /// Loads a rule for packets, which stays; see [`can_filter`]. It may keep ports in `@seen`.
    pub(crate) fn nft(&self, hook: &str, rule: &str) {
        let rules = format!(
            "table inet faults {{\n set seen {{ type inet_service; flags dynamic; }}\n chain {hook} {{\n  type filter hook {hook} priority 0\n  {rule}\n }}\n}}\n"
        );
        let done = self.run(|| feed(Command::new("nft").args(["-f", "-"]), &rules));
        assert!(done.is_ok(), "nft on {}: {done:?}: {rules}", self.namespace);
    }

    /// Takes all rules for packets out again.
    pub(crate) fn without_rules(&self) {
        let done = self.run(|| Command::new("nft").args(["flush", "ruleset"]).status());
        assert!(
            done.as_ref().is_ok_and(ExitStatus::success),
            "nft on {}: {done:?}",
            self.namespace
        );
    }

    /// Keeps an interface's carrier, but nothing comes through any more.
    pub(crate) fn part(&self, interface: &str) {
        self.switch_port(interface, &["nomaster"]);
    }

    /// The opposite of [`Host::part`].
    pub(crate) fn rejoin(&self, interface: &str) {
        let bridge = bridge_name(self.cable(interface).bridge);
        self.switch_port(interface, &["master", &bridge]);
    }

    /// As if somebody pulled the plug: no packet leaves this host any more, not even a FIN.
    pub(crate) fn cut_power(&self) {
        for cable in &self.cables {
            ip(&["-n", &self.switch, "link", "delete", &cable.port]);
        }
    }

    fn cable(&self, interface: &str) -> &Cable {
        self.cables.iter().find(|cable| cable.interface == interface).expect("a plugged interface")
    }

    fn switch_port(&self, interface: &str, change: &[&str]) {
        let port = &self.cable(interface).port;
        ip(&[&["-n", &self.switch, "link", "set", port], change].concat());
    }

    /// Runs something on this host. Sockets that it makes stay there.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            let inside = move || {
                self.enter();
                job()
            };
            let thread = thread::Builder::new().name(name).spawn_scoped(scope, inside);
            thread.expect("a thread").join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts something on this host, along with all threads and processes that it starts.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let host = self.clone();
        thread::spawn(move || {
            host.enter();
            job()
        })
    }

    /// Moves the calling thread, which must not go anywhere else afterwards.
    fn enter(&self) {
        let path = Path::new("/run/netns").join(&self.namespace);
        let file = fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|e| panic!("cannot enter {}: {e}", path.display()));
    }
}

/// A file with a key, for this user alone.
pub(crate) fn key_in(dir: &Path) -> PathBuf {
    let key = dir.join("key");
    fs::write(&key, "5eed".repeat(16)).expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a key of ours");
    key
}

fn bridge_name(bridge: u8) -> String {
    format!("br{bridge}")
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().expect("ip runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", args.join(" "));
}

/// Runs a command that reads `text`.
fn feed(command: &mut Command, text: &str) -> io::Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()))?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

/// Whether namespaces can be had here; if not, what is missing.
fn possible() -> Result<(), String> {
    static SWEPT: Once = Once::new();
    if !rustix::process::geteuid().is_root() {
        return Err("they need root".to_owned());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Err("they need the command ip (package iproute2)".to_owned());
    }
    let probe = format!("{PREFIX}{}-probe{}", std::process::id(), MADE.fetch_add(1, Relaxed));
    let made = Command::new("ip").args(["netns", "add", &probe]).output();
    let made = made.map_err(|error| format!("ip doesn't run: {error}"))?;
    let _ = Command::new("ip").args(["netns", "delete", &probe]).output();
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        return Err(format!("no namespaces can be made here ({})", said.trim()));
    }
    SWEPT.call_once(sweep);
    Ok(())
}

/// Whether [`Host::nft`] can be used; says once why not.
pub(crate) fn can_filter() -> bool {
    static SAID: Once = Once::new();
    let can = Command::new("nft").arg("-v").output().is_ok_and(|output| output.status.success());
    if !can {
        SAID.call_once(|| skip("some need the command nft (package nftables)"));
    }
    can
}

/// Removes namespaces that a killed run left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let process = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
            let _ = fs::remove_dir_all(std::env::temp_dir().join(&name));
        }
    }
}

/// Says past the test's captured output why nothing was tested.
fn skip(reason: &str) {
    let _ = writeln!(io::stderr(), "network namespace tests skipped: {reason}");
}
