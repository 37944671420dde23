//! Tells a service manager the state of this process. systemd names a socket in `NOTIFY_SOCKET` and
//! wants to hear `READY=1` once, `STOPPING=1` at the end, and `WATCHDOG=1` at least every
//! `WATCHDOG_USEC` microseconds (sd_notify(3), sd_watchdog_enabled(3)). Elsewhere nothing is said.

use std::ffi::OsString;
use std::io;
use std::time::{Duration, Instant};

use crate::manager::Presence;
use crate::net::untrusted_text::printable;

#[derive(Default)]
pub(super) struct Notifier {
    socket: Option<Socket>,
    /// How often at least the service manager wants to hear that this process is alive.
    watchdog: Option<Duration>,
}

impl Notifier {
    pub(super) fn from_env(env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Notifier::default();
        };
        let socket = Socket::open(&name);
        if let Err(error) = &socket {
            log::warn!("the service manager can't be told socket={name:?} reason={error}");
        }
        let number = |name| env(name).and_then(|value| value.to_str()?.parse::<u64>().ok());
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|period| is_ours && *period > 0);
        let socket = socket.ok();
        let watchdog = period.filter(|_| socket.is_some()).map(Duration::from_micros);
        Notifier { socket, watchdog }
    }

    pub(super) fn ready(&self) {
        self.say("READY=1");
    }

    pub(super) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=letting streams finish");
    }

    fn status(&self, status: &str) {
        self.say(&format!("STATUS={}", printable(status)));
    }

    fn say(&self, text: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(text) {
            log::debug!("the service manager wasn't told {text:?}: {error}");
        }
    }
}

/// Where the service manager listens.
#[cfg(unix)]
struct Socket(std::os::unix::net::UnixDatagram, std::os::unix::net::SocketAddr);

#[cfg(unix)]
impl Socket {
    fn open(name: &std::ffi::OsStr) -> io::Result<Self> {
        let address = address(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        // A service manager that doesn't read is never waited for.
        socket.set_nonblocking(true)?;
        Ok(Socket(socket, address))
    }

    fn send(&self, text: &str) -> io::Result<usize> {
        self.0.send_to_addr(text.as_bytes(), &self.1)
    }
}

/// There is no such service manager.
#[cfg(windows)]
struct Socket;

#[cfg(windows)]
impl Socket {
    fn open(_: &std::ffi::OsStr) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn send(&self, _: &str) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(unix)]
/// A path or, with `@` in front, a name without a file.
fn address(name: &[u8]) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::unix::net::SocketAddr;
    match name {
        [b'/', ..] => SocketAddr::from_pathname(std::path::Path::new(
            std::os::unix::ffi::OsStrExt::from_bytes(name) as &std::ffi::OsStr,
        )),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor @name")),
    }
}

/// How often the status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Watchdog {
    pub(super) notifier: Notifier,
    told_alive: Option<Instant>,
    /// The Manager's count of loops then.
    loops: Option<u32>,
    status: Option<(bool, u32)>,
}

impl Watchdog {
    pub(super) fn new(notifier: Notifier) -> Self {
        Watchdog { notifier, told_alive: None, loops: None, status: None }
    }

    /// How often [`report`](Self::report) must be called, if there is a service manager.
    pub(super) fn interval(&self) -> Option<Duration> {
        let third = self.notifier.watchdog.map_or(STATUS_INTERVAL, |period| period / 3);
        self.notifier.socket.is_some().then_some(third.min(STATUS_INTERVAL))
    }

    /// Says that this process is alive if the Manager has done something since that was said last,
    /// or if there is no Manager, because the role changes.
    pub(super) fn report(&mut self, now: Instant, presence: Option<&Presence>) {
        let loops = presence.map(Presence::events_handled);
        if let Some(period) = self.notifier.watchdog
            && (loops.is_none() || loops != self.loops)
            // Not much more often than it asks for.
            && self.told_alive.is_none_or(|at| now.saturating_duration_since(at) >= period / 4)
        {
            self.notifier.say("WATCHDOG=1");
            self.told_alive = Some(now);
            self.loops = loops;
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
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn notifier(variables: &[(&str, String)]) -> Notifier {
        Notifier::from_env(&|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn without_a_service_manager_nothing_is_said() {
        for name in ["", "relative", "vsock:2:1234"] {
            let silent = notifier(&[
                ("NOTIFY_SOCKET", name.to_owned()),
                ("WATCHDOG_USEC", "1000000".to_owned()),
            ]);
            assert!(silent.socket.is_none() && silent.watchdog.is_none(), "{name}");
            silent.ready();
        }
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let name = format!("@ollana-notify-{}", std::process::id());
        let socket = ("NOTIFY_SOCKET", name);
        let period = ("WATCHDOG_USEC", "3000000".to_owned());
        let own = ("WATCHDOG_PID", std::process::id().to_string());
        let other = ("WATCHDOG_PID", "1".to_owned());
        let three = Some(Duration::from_secs(3));
        assert_eq!(notifier(&[socket.clone(), period.clone()]).watchdog, three);
        assert_eq!(notifier(&[socket.clone(), period.clone(), own]).watchdog, three);
        assert_eq!(notifier(&[socket.clone(), period, other]).watchdog, None);
        let zero = ("WATCHDOG_USEC", "0".to_owned());
        assert_eq!(notifier(&[socket, zero]).watchdog, None);
    }

    #[test]
    fn what_is_said_is_one_line_per_key() {
        let name = format!("@ollana-notify-{}-said", std::process::id());
        let socket = UnixDatagram::bind_addr(&address(name.as_bytes()).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        notifier(&[("NOTIFY_SOCKET", name)]).status("a\nREADY=0\u{1b}b");
        let mut bytes = [0; 300];
        let n = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"STATUS=a?READY=0?b");
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod watchdog_tests {
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
