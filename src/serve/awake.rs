//! Keeps this machine awake while requests make it work, and a while longer.
//!
//! A program of the system does that for as long as its standard input is open: `systemd-inhibit` asks
//! logind, `caffeinate` macOS, and on Windows a PowerShell calls SetThreadExecutionState. So it ends with
//! this process, however that ends. Where there is no such program, the machine sleeps as it likes.

use std::io::{ErrorKind, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::manager::Presence;
use crate::system;

/// How often it is looked whether there is work, and whether the program still runs.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks whether the program has ended.
const STEP: Duration = Duration::from_millis(20);
/// The next try after the system has refused.
const PAUSE: Duration = Duration::from_secs(600);
/// Bytes of a refusal that are read.
const MAX_REFUSAL: u64 = 1024;

/// What keeps a system awake, the best first; each reads its standard input to the end.
fn programs() -> &'static [&'static [&'static str]] {
    const WHO: &str = "--who=ollana";
    const WHY: &str = "--why=other machines use this one's Ollama";
    match std::env::consts::OS {
        // A user who isn't at the machine may only keep it from idling, unless polkit has a rule.
        "linux" => &[
            &["systemd-inhibit", "--what=sleep:idle", "--mode=block", WHO, WHY, "cat"],
            &["systemd-inhibit", "--what=idle", "--mode=block", WHO, WHY, "cat"],
        ],
        "macos" => &[&["caffeinate", "-i", "cat"]],
        "windows" => &[&[
            "powershell",
            "-NoProfile",
            "-NonInteractive",
            "-Command",
            "$k = Add-Type -PassThru -Name Awake -MemberDefinition '[DllImport(\"kernel32.dll\")] \
             public static extern uint SetThreadExecutionState(uint flags);'; \
             [void]$k::SetThreadExecutionState([uint32]2147483649); \
             [void][Console]::In.ReadToEnd()",
        ]],
        _ => &[],
    }
}

/// Watches for work until it is dropped.
pub(super) struct Awake {
    _stop: Sender<()>,
}

impl Awake {
    /// `linger` is how long after the last request the machine is kept awake.
    pub(super) fn start(presence: Arc<Presence>, linger: Duration) -> Self {
        let (stop, stopped) = bounded(0);
        // Without a thread, the machine sleeps as it likes.
        let _ = system::spawn("awake", move || watch(&presence, linger, &stopped));
        Awake { _stop: stop }
    }
}

fn watch(presence: &Presence, linger: Duration, stopped: &Receiver<()>) {
    let work = &presence.counters().work;
    let (mut begun, mut last_work) = (work.begun(), None);
    let mut holder = Holder::default();
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let now = Instant::now();
        let before = std::mem::replace(&mut begun, work.begun());
        if work.is_under_way() || before != begun {
            last_work = Some(now);
        }
        match last_work.is_some_and(|last| now.saturating_duration_since(last) < linger) {
            true => holder.hold(now),
            false => holder.release(),
        }
        presence.tell_awake(holder.child.is_some(), holder.problem.clone());
    }
}

#[derive(Default)]
struct Holder {
    child: Option<Child>,
    /// Which of the programs is next.
    at: usize,
    /// Not before then, as the system has refused.
    pause: Option<Instant>,
    /// Why it can't be kept awake, for people.
    problem: Option<String>,
}

impl Holder {
    /// Starts a program, or the next one if the last has given up.
    fn hold(&mut self, now: Instant) {
        if let Some(refusal) = self.refusal() {
            log::debug!("not kept awake: {refusal}");
            self.at += 1;
            if self.at >= programs().len() {
                self.give_up(now, refusal);
            }
        }
        if self.child.is_some() || self.pause.is_some_and(|pause| now < pause) {
            return;
        }
        let Some(program) = programs().get(self.at) else { return };
        let mut command = Command::new(program[0]);
        command.args(&program[1..]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        system::without_console(&mut command);
        match command.spawn() {
            Ok(child) => {
                log::info!("this machine is kept awake, as it has work by={}", program[0]);
                self.child = Some(child);
            }
            Err(error) => {
                self.pause = Some(now + PAUSE);
                if error.kind() != ErrorKind::NotFound {
                    self.give_up(now, error.to_string());
                }
            }
        }
    }

    /// What the program said, if it has ended.
    fn refusal(&mut self) -> Option<String> {
        let ended = self.child.take_if(|child| !matches!(child.try_wait(), Ok(None)))?;
        let mut said = String::new();
        let _ = ended.stderr?.take(MAX_REFUSAL).read_to_string(&mut said);
        Some(said.lines().next().unwrap_or("no reason is given").to_owned())
    }

    fn give_up(&mut self, now: Instant, refusal: String) {
        (self.at, self.pause) = (0, Some(now + PAUSE));
        // Without a manager of power, as in a container, nothing puts the machine to sleep.
        let is_moot = refusal.contains("connect") || refusal.contains("booted");
        if !is_moot && self.problem.is_none() {
            log::info!("this machine can't be kept awake while it has work: {refusal}");
        }
        self.problem = (!is_moot).then_some(refusal);
    }

    fn release(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It ends with its input; one that doesn't is stopped.
        drop(child.stdin.take());
        let until = Instant::now() + LOOK;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
            thread::park_timeout(STEP);
        }
        let _ = child.kill();
        let _ = child.wait();
        log::info!("this machine may sleep again");
        self.at = 0;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.release();
    }
}
