//! An ollana on a host, and what it says.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::lan::Host;
use super::watch::until;

/// A start, a line of the log, or an end that takes longer than this doesn't come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Lines of the log that a failed test shows.
const SHOWN: usize = 60;

/// A process, killed when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    place: String,
}

impl Daemon {
    /// Runs `ollana --log-level debug` and `args` on a host, without waiting for anything.
    pub(crate) fn spawn(host: &Host, args: &[&str]) -> Daemon {
        Daemon::spawn_in(host, &host.name(), Path::new("/nowhere"), args)
    }

    /// The same with programs in this directory, on a host that calls itself `place`.
    fn spawn_in(host: &Host, place: &str, programs: &Path, args: &[&str]) -> Daemon {
        // A file `hosts` in its directory is what it knows of names.
        let prepare = "echo \"$0\" >/proc/sys/kernel/hostname
            names=\"$XDG_STATE_HOME/hosts\"
            if [ -e \"$names\" ]; then /bin/mount --bind \"$names\" /etc/hosts; fi
            exec \"$@\"";
        let mut command =
            host.ollana(&["/usr/bin/unshare", "--uts", "--mount", "/bin/sh", "-c", prepare, place]);
        command
            .args(["--log-level", "debug"])
            .args(args)
            .env("PATH", programs)
            .env("XDG_RUNTIME_DIR", host.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = host.run(|| command.spawn()).expect("ollana runs");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Daemon { child, log, reader: Some(reader), place: place.to_owned() }
    }

    /// Like [`Daemon::spawn`], and waits until it listens.
    pub(crate) fn start(host: &Host, args: &[&str]) -> Daemon {
        let daemon = Daemon::spawn(host, args);
        daemon.wait_for("] ready mode=");
        daemon
    }

    /// Like [`Daemon::start`], with programs in this directory.
    pub(crate) fn start_in(host: &Host, programs: &Path, args: &[&str]) -> Daemon {
        let daemon = Daemon::spawn_in(host, &host.name(), programs, args);
        daemon.wait_for("] ready mode=");
        daemon
    }

    /// Like [`Daemon::start`], on a host that calls itself otherwise.
    pub(crate) fn start_as(host: &Host, name: &str, args: &[&str]) -> Daemon {
        let daemon = Daemon::spawn_in(host, name, Path::new("/nowhere"), args);
        daemon.wait_for("] ready mode=");
        daemon
    }

    /// Lines of the log that have this in them.
    pub(crate) fn lines(&self, with: &str) -> Vec<String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|line| line.contains(with)).cloned().collect()
    }

    /// How many those are.
    pub(crate) fn count(&self, with: &str) -> usize {
        self.lines(with).len()
    }

    /// Waits until a line has this in it.
    pub(crate) fn wait_for(&self, with: &str) {
        let what = format!("{:?} in the log of {}", with, self.place);
        until(&what, PATIENCE, || (self.count(with) > 0).then_some(()));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is there to be signalled");
    }

    /// Kills it; no goodbye, no drain.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is there to be killed");
        self.child.wait().expect("its end");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of ollana on {}", self.place);
        until(&what, PATIENCE, || self.child.try_wait().expect("its state")).0
    }

    /// Fails if it has ended.
    pub(crate) fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("its state");
        let signal = ended.and_then(|status| status.signal());
        assert!(ended.is_none(), "ollana on {} ended: {ended:?} signal {signal:?}", self.place);
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("its memory");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::env::var_os("LLVM_PROFILE_FILE").is_some() {
            // For `make coverage`, as in tests/support/process.rs.
            for _ in 0..2 {
                if matches!(self.child.try_wait(), Ok(None)) {
                    let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
                }
                thread::sleep(Duration::from_millis(200));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if thread::panicking() {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            let from = log.len().saturating_sub(SHOWN);
            println!("--- log of ollana on {} ({from} lines before)", self.place);
            log[from..].iter().for_each(|line| println!("{line}"));
        }
    }
}
