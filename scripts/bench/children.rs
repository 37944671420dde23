//! Processes that we start: each ends with us, whatever happens, and only they are ever signalled.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::measure;

pub(crate) type Failable<T> = Result<T, Box<dyn Error>>;

/// First argument of ourselves in the place of a child, before it turns into the real one.
pub(crate) const BECOME: &str = "--become";
/// How long a child may take to answer, or to end.
/// Under valgrind, beside other work, a start takes several seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to end before it is ended.
const GRACE: Duration = Duration::from_secs(1);

/// In a child: asks the kernel to end it when we end, then becomes the program. Returns only
/// when that fails.
pub(crate) fn become_program(mut words: impl Iterator<Item = String>) -> io::Error {
    if let Err(errno) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return errno.into();
    }
    match words.next() {
        Some(program) => Command::new(program).args(words).exec(),
        None => io::ErrorKind::InvalidInput.into(),
    }
}

/// A process of ours; dropping it ends it.
pub(crate) struct Child {
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts a program whose standard error goes to a file in `dir`.
    pub(crate) fn start(dir: &Path, program: &Path, args: &[String]) -> Failable<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(BECOME).arg(program).args(args);
        Self::spawn(dir, program, command)
    }

    /// Like [`start`](Self::start) but with nothing in between, for measuring how it starts. It
    /// is not ended by the kernel when we end.
    pub(crate) fn start_directly(dir: &Path, program: &Path, args: &[String]) -> Failable<Child> {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(dir, program, command)
    }

    fn spawn(dir: &Path, program: &Path, mut command: Command) -> Failable<Child> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = dir.join(format!("{name}-{}.log", measure::now_ns()));
        // An environment of its own, so that no variable of the user's changes what is measured.
        command.env_clear().env("HOME", dir).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let process = command.spawn().map_err(|e| format!("{}: {e}", program.display()))?;
        Ok(Child { process, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its HTTP side answers 200.
    pub(crate) fn wait_ready(&mut self, address: SocketAddr) -> Failable<()> {
        let deadline = Instant::now() + PATIENCE;
        while !matches!(ask(address), Ok(true)) {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("a proxy ended, {status}: {}", self.log_text()).into());
            }
            if Instant::now() >= deadline {
                return Err(format!("{address} does not answer: {}", self.log_text()).into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Ends it like a power cut.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks it to end; returns what it wrote to standard error.
    pub(crate) fn terminate(mut self) -> Failable<String> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + PATIENCE * 2;
        while self.process.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                return Err("a process does not end".into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(self.log_text())
    }

    fn signal(&self, signal: Signal) {
        // Not yet waited for, so the number is still its own.
        if let Some(pid) = Pid::from_raw(self.process.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        // Asked first, because only nginx's master knows of the workers that it is just starting.
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(200));
        }
        if matches!(self.process.try_wait(), Ok(None)) {
            for pid in measure::family(self.process.id()).iter().skip(1) {
                if let Some(pid) = Pid::from_raw(*pid as i32) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            self.kill();
        }
    }
}

/// An address of ours that was free a moment ago.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// Whether `/api/version` answers 200 there.
pub(crate) fn ask(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .write_all(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
