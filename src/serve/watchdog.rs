//! Tells the service manager that this process is alive, while its Manager works, and what it knows.

use std::time::{Duration, Instant};

use super::systemd::Notifier;
use crate::manager::Presence;

/// How often the status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What the service manager was told last, and when.
pub(super) struct Watchdog {
    pub(super) notifier: Notifier,
    told_alive: Option<Instant>,
    /// The Manager's count of events then.
    events_handled: Option<u32>,
    status: Option<(bool, u32)>,
}

impl Watchdog {
    pub(super) fn new(notifier: Notifier) -> Self {
        Watchdog { notifier, told_alive: None, events_handled: None, status: None }
    }

    /// How often [`report`](Self::report) must be called, if there is a service manager.
    pub(super) fn interval(&self) -> Option<Duration> {
        let third = self.notifier.watchdog().map_or(STATUS_INTERVAL, |period| period / 3);
        self.notifier.is_connected().then_some(third.min(STATUS_INTERVAL))
    }

    /// Says that this process is alive if the Manager has done something since that was said last,
    /// or if there is no Manager, because the role changes.
    pub(super) fn report(&mut self, now: Instant, presence: Option<&Presence>) {
        let events_handled = presence.map(Presence::events_handled);
        if let Some(period) = self.notifier.watchdog()
            && (events_handled.is_none() || events_handled != self.events_handled)
            // Not much more often than it asks for.
            && self.told_alive.is_none_or(|at| now.saturating_duration_since(at) >= period / 4)
        {
            self.notifier.alive();
            self.told_alive = Some(now);
            self.events_handled = events_handled;
        }
        let Some(presence) = presence else { return };
        let status = (presence.is_up(), presence.backends());
        if self.status.replace(status) != Some(status) {
            let servers = if status.1 == 1 { "server" } else { "servers" };
            self.notifier.status(&match status {
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
        let name = format!("ollana-watchdog-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut watchdog = Watchdog::new(Notifier::from_env(&|variable| match variable {
            "NOTIFY_SOCKET" => Some(format!("@{name}").into()),
            "WATCHDOG_USEC" => Some("600000".into()),
            _ => None,
        }));
        assert_eq!(watchdog.interval(), Some(Duration::from_millis(200)));
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
        watchdog.report(at(0), Some(&presence));
        assert_eq!(heard(), ["WATCHDOG=1", "STATUS=no server found yet"]);
        presence.event_handled();
        watchdog.report(at(0) + Duration::from_millis(1), Some(&presence));
        assert_eq!(heard(), [] as [&str; 0], "not so often");
        watchdog.report(at(1), Some(&presence));
        assert_eq!(heard(), ["WATCHDOG=1"]);
        for n in 2..50 {
            watchdog.report(at(n), Some(&presence));
        }
        assert_eq!(heard(), [] as [&str; 0], "the Manager is stuck");
        watchdog.report(at(50), None);
        watchdog.report(at(51), None);
        assert_eq!(heard(), ["WATCHDOG=1", "WATCHDOG=1"], "there is none");
        presence.event_handled();
        watchdog.report(at(52), Some(&presence));
        assert_eq!(heard(), ["WATCHDOG=1"]);
    }
}
