//! The real binary, started and stopped as a service manager would.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use super::system::{Signal, clear_environment, send_signal, with_signals};
use super::{Client, eventually, lock};

/// An address of 127.0.0.1 whose TCP port nobody has.
pub fn free_tcp_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}

/// A UDP port of 127.0.0.1 that nobody has.
pub fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free UDP port");
    socket.local_addr().expect("local address").port()
}

/// Where programs keep their state that are told nothing else; not those of another run of the tests.
pub fn state_dir() -> PathBuf {
    std::env::temp_dir().join(format!("ollana-tests-{}", std::process::id()))
}

/// An output whose reader has left, as that of `| head -0`.
pub fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A running `ollana`; dropping it kills it.
pub struct Process {
    child: Child,
    /// What it has written to its standard error so far.
    log: Arc<Mutex<String>>,
    reading: Arc<Mutex<Reading>>,
}

/// Whether its standard error is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    On,
    /// Nobody reads it, so that its pipe gets full.
    Stalled,
    Closed,
}

impl Process {
    /// Starts it with these arguments, in an environment without any of its variables. `OLLANA_BIN` of the
    /// test's own environment is another build of it.
    pub fn start(arguments: &str) -> Self {
        let other = std::env::var_os("OLLANA_BIN");
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_ollana").into());
        Process::run(Command::new(program), arguments, &[])
    }

    /// The same with these variables.
    pub fn with_env(arguments: &str, variables: &[(&str, &str)]) -> Self {
        Process::run(Command::new(env!("CARGO_BIN_EXE_ollana")), arguments, variables)
    }

    /// The same with so few file descriptors.
    pub fn with_descriptors(arguments: &str, count: usize) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {count}; exec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_ollana"));
        Process::run(command, arguments, &[])
    }

    /// The same by way of another program, which gets its path and arguments behind its own.
    pub fn within(program: &[&str], arguments: &str) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(env!("CARGO_BIN_EXE_ollana"));
        Process::run(command, arguments, &[])
    }

    fn run(mut command: Command, arguments: &str, variables: &[(&str, &str)]) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.args(arguments.split_whitespace());
        clear_environment(with_signals(&mut command)).env("PATH", path);
        command.env("OLLANA_STATE_DIR", state_dir());
        // Tests must not keep the machine that they run on from its sleep.
        command.env("OLLANA_KEEP_AWAKE", "off");
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start ollana");
        let stderr = child.stderr.take().expect("its standard error");
        let log = Arc::new(Mutex::new(String::new()));
        let reading = Arc::new(Mutex::new(Reading::On));
        let (copy, switch) = (Arc::clone(&log), Arc::clone(&reading));
        thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|n| n > 0) {
                lock(&copy).push_str(&line);
                line.clear();
                match *lock(&switch) {
                    Reading::On => {}
                    // Kept open until the end of the test process.
                    Reading::Stalled => return std::mem::forget(stderr),
                    Reading::Closed => return,
                }
            }
        });
        Process { child, log, reading }
    }

    /// Closes the other side of its standard error with its next line.
    pub fn close_log(&self) {
        *lock(&self.reading) = Reading::Closed;
    }

    /// Leaves its standard error open, and unread from its next line on.
    pub fn stall_log(&self) {
        *lock(&self.reading) = Reading::Stalled;
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// Waits for a line with this text.
    pub fn line(&self, text: &str) -> String {
        eventually(&format!("{text:?} in the log"), || {
            let log = lock(&self.log);
            log.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Waits until it says that it is ready: the addresses it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let line = self.line("ready mode=");
        let listen = line.split(" listen=").nth(1).and_then(|rest| rest.split(' ').next());
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text}: {line}"));
        listen.unwrap_or_else(|| panic!("{line}")).split(',').map(parse).collect()
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses()[0]
    }

    /// A connection, once requests on new ones get through to an Ollama.
    pub fn connect_ready(&self) -> Client {
        let address = self.address();
        eventually("a request to get through", || {
            let mut client = Client::connect(address);
            (client.get("/api/status").status() == 200).then_some(client)
        })
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Waits until it has ended.
    pub fn exit(&mut self) -> ExitStatus {
        eventually("the process to end", || self.child.try_wait().expect("its status"))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }

    /// A file of /proc/PID.
    pub fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }

    /// What the kernel tells of it in this file of /proc/PID.
    pub fn file(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A figure of /proc/PID/status, in KB or plain; 0 on other systems, where it has no limit.
    pub fn status(&self, name: &str) -> usize {
        if !cfg!(target_os = "linux") {
            return 0;
        }
        let text = self.file("status");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        figure.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Changes one of its limits while it runs.
    #[cfg(target_os = "linux")]
    pub fn limit(&self, resource: rustix::process::Resource, current: Option<u64>) {
        let maximum = rustix::process::getrlimit(resource).maximum;
        let limit = rustix::process::Rlimit { current: current.or(maximum), maximum };
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::prlimit(Some(pid), resource, limit).expect("a limit");
    }

    /// CPU time that it has used, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = self.file("stat");
        let (_, fields) = stat.rsplit_once(')').expect("its name");
        let field = |at: usize| -> u64 {
            fields.split_whitespace().nth(at).and_then(|text| text.parse().ok()).expect("a number")
        };
        field(11) + field(12)
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).expect("its descriptors").count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::env::var_os("LLVM_PROFILE_FILE").is_some() {
            // For `make coverage`: what was reached is written at an end, once to drain, once more
            // to end at once.
            for _ in 0..2 {
                if matches!(self.child.try_wait(), Ok(None)) {
                    send_signal(&self.child, Signal::TERM);
                }
                thread::sleep(std::time::Duration::from_millis(200));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("ollana wrote:\n{}", self.log());
        }
    }
}
