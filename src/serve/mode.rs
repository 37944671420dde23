//! Client, server or both: the mode that is asked for, or that fits this machine.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::config::{ModeChoice, OllamaUrl, Settings};
use crate::pairing::keyring::Keyring;
use crate::system::{self, time_since_boot};
use crate::upstream::{Check, CheckResult, CheckTime, Target, Upstream};

/// How long the local Ollama may take to answer at start-up.
const DETECTION_TIME: Duration = Duration::from_secs(2);
/// Time since boot within which a machine counts as starting.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// How long a starting machine's Ollama is waited for.
const BOOT_WAIT: Duration = Duration::from_secs(60);
const BOOT_RETRY: Duration = Duration::from_millis(500);
/// How often a wait looks whether the process is to stop.
const STOP_LOOK: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Uses the LAN's servers.
    Client,
    /// Shares the local Ollama.
    Server,
    /// Shares the local Ollama and uses the LAN's servers next to it.
    Both,
}

impl Mode {
    pub(super) fn is_client(self) -> bool {
        self != Mode::Server
    }

    pub(super) fn is_server(self) -> bool {
        self != Mode::Client
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Client => "client",
            Mode::Server => "server",
            Mode::Both => "both",
        })
    }
}

/// The mode and, for people, the reason. Fails when the process is to stop meanwhile.
pub(super) fn choose(settings: &Settings, stopping: &AtomicBool) -> Result<(Mode, String), String> {
    let ollama = settings.ollama_url();
    match settings.mode {
        ModeChoice::Client => return Ok((Mode::Client, "asked for".to_owned())),
        ModeChoice::Server => return Ok((Mode::Server, format!("asked for, sharing {ollama}"))),
        ModeChoice::Both => return Ok((Mode::Both, format!("asked for, sharing {ollama}"))),
        ModeChoice::Auto => {}
    }
    let deadline = is_ollama_starting().then(|| Instant::now() + BOOT_WAIT);
    if deadline.is_some() {
        log::info!("this machine is starting and has an Ollama service; waiting for it");
    }
    loop {
        let reason = match ask_unless(stopping, settings, &ollama).ok_or("asked to stop")? {
            CheckResult::Healthy { version, .. } => {
                let why = format!("Ollama {version} answers at {ollama}");
                return Ok((Mode::Server, why));
            }
            CheckResult::Refused(why) | CheckResult::Unreached(why) | CheckResult::Silent(why) => {
                format!("no Ollama at {ollama}: {why}")
            }
            CheckResult::Void => format!("{ollama} could not be asked"),
        };
        if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            return Ok((Mode::Client, reason));
        }
        thread::sleep(BOOT_RETRY);
    }
}

/// Asks on another thread, which is left alone when the process is to stop.
fn ask_unless(
    stopping: &AtomicBool,
    settings: &Settings,
    ollama: &OllamaUrl,
) -> Option<CheckResult> {
    let (answer, answered) = bounded(1);
    let (settings, ollama) = (settings.clone(), ollama.clone());
    // Without a thread the channel is closed.
    let _ = system::spawn("detection", move || {
        let _ = answer.send(ask(&settings, &ollama, DETECTION_TIME));
    });
    while !stopping.load(SeqCst) {
        match answered.recv_timeout(STOP_LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            result => return Some(result.unwrap_or(CheckResult::Void)),
        }
    }
    None
}

/// Whether this machine booted a moment ago and has systemd start Ollama, whose port a client would
/// take.
fn is_ollama_starting() -> bool {
    let is_wanted = |target: &str| {
        Path::new(&format!("/etc/systemd/system/{target}.target.wants/ollama.service")).exists()
    };
    let is_enabled = is_wanted("default") || is_wanted("multi-user");
    is_enabled && time_since_boot().is_some_and(|time| time < BOOT_TIME)
}

/// Asks whether Ollama, and no proxy of ours, answers at a URL.
pub(crate) fn ask(settings: &Settings, ollama: &OllamaUrl, timeout: Duration) -> CheckResult {
    let check = Check {
        target: &Target::Name(ollama.server()),
        local: Some(ollama),
        wants_inventory: false,
        time: CheckTime::of(timeout),
    };
    check.run(&Upstream::new(&settings.timing, &Arc::new(Keyring::none())))
}
