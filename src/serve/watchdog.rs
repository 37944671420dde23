//! Tells the service manager how we are, while we are.

use std::time::{Duration, Instant};

use crate::manager::Presence;
use crate::serve::systemd::Notifier;

/// How often what we tell people may change.
const LOOK: Duration = Duration::from_secs(1);

/// What the service manager was told, and when.
#[derive(Debug)]
pub(super) struct Pulse {
    notifier: Notifier,
    alive_at: Option<Instant>,
    beats: Option<u32>,
    known: Option<(bool, u32)>,
}

impl Pulse {
    pub(super) fn new(notifier: Notifier) -> Self {
        Pulse { notifier, alive_at: None, beats: None, known: None }
    }

    /// How often [`tell`](Self::tell) wants to be called, if anybody listens.
    pub(super) fn interval(&self) -> Option<Duration> {
        let third = self.notifier.watchdog().map_or(LOOK, |period| period / 3);
        self.notifier.is_heard().then_some(third.min(LOOK))
    }

    /// Says that we are alive, only if the present Manager has done something since that was said
    /// last. While there is none, because the role changes, there is nothing to ask.
    pub(super) fn tell(&mut self, now: Instant, presence: Option<&Presence>) {
        let beats = presence.map(Presence::beats);
        if let Some(period) = self.notifier.watchdog()
            && (beats.is_none() || beats != self.beats)
            // Not much more often than asked for.
            && self.alive_at.is_none_or(|at| now.saturating_duration_since(at) >= period / 4)
        {
            self.notifier.alive();
            self.alive_at = Some(now);
            self.beats = beats;
        }
        let Some(presence) = presence else { return };
        let known = (presence.is_up(), presence.backends());
        if self.known.replace(known) != Some(known) {
            let servers = if known.1 == 1 { "server" } else { "servers" };
            self.notifier.status(&match known {
                (true, n) => format!("{n} {servers} known, Ollama answers"),
                (false, 0) => "no server found yet".to_owned(),
                (false, n) => format!("{n} {servers} known, none answers"),
            });
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    #[test]
    fn it_says_alive_only_while_the_manager_does_something() {
        let name = format!("ollana-pulse-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut pulse = Pulse::new(Notifier::from_env(&|variable| match variable {
            "NOTIFY_SOCKET" => Some(format!("@{name}").into()),
            "WATCHDOG_USEC" => Some("600000".into()),
            _ => None,
        }));
        assert_eq!(pulse.interval(), Some(Duration::from_millis(200)));
        let mut bytes = [0; 300];
        let mut heard = || {
            let said = std::iter::from_fn(|| {
                let n = socket.recv(&mut bytes).ok()?;
                Some(String::from_utf8_lossy(&bytes[..n]).into_owned())
            });
            said.collect::<Vec<_>>()
        };
        let start = Instant::now();
        let at = |n: u32| start + n * Duration::from_millis(200);
        let presence = Presence::default();
        pulse.tell(at(0), Some(&presence));
        assert_eq!(heard(), ["WATCHDOG=1", "STATUS=no server found yet"]);
        presence.beat();
        pulse.tell(at(0) + Duration::from_millis(1), Some(&presence));
        assert_eq!(heard(), [] as [&str; 0], "not so often");
        pulse.tell(at(1), Some(&presence));
        assert_eq!(heard(), ["WATCHDOG=1"]);
        for n in 2..50 {
            pulse.tell(at(n), Some(&presence));
        }
        assert_eq!(heard(), [] as [&str; 0], "the Manager is stuck");
        pulse.tell(at(50), None);
        pulse.tell(at(51), None);
        assert_eq!(heard(), ["WATCHDOG=1", "WATCHDOG=1"], "there is none");
        presence.beat();
        pulse.tell(at(52), Some(&presence));
        assert_eq!(heard(), ["WATCHDOG=1"]);
    }
}
