//! Tells a service manager the state of this process: the sd_notify datagrams, in plain std.
//!
//! systemd names a socket in `NOTIFY_SOCKET` and wants to hear `READY=1` once, `STOPPING=1` at the
//! end, and `WATCHDOG=1` at least every `WATCHDOG_USEC` microseconds (sd_notify(3),
//! sd_watchdog_enabled(3)). Elsewhere nothing is said.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use crate::net::untrusted_text::printable;

/// The service manager's socket, if there is one.
#[derive(Default)]
pub(super) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// `WATCHDOG_USEC`.
    watchdog: Option<Duration>,
}

impl Notifier {
    pub(super) fn from_env(env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Notifier::default();
        };
        let socket = address(name.as_bytes()).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            // A service manager that doesn't read is never waited for.
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        });
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

    /// Whether there is a service manager.
    pub(super) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// How often at least the service manager wants to hear [`alive`](Self::alive), if it does.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    pub(super) fn ready(&self) {
        self.say("READY=1");
    }

    pub(super) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=letting streams finish");
    }

    /// Says in a line for people what this process is doing.
    pub(super) fn status(&self, status: &str) {
        self.say(&format!("STATUS={}", printable(status)));
    }

    pub(super) fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            log::debug!("the service manager wasn't told {text:?}: {error}");
        }
    }
}

/// A path or, with `@` in front, a name without a file.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name {
        [b'/', ..] => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(name))),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor @name")),
    }
}

#[cfg(test)]
mod tests {
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
            assert!(silent.socket.is_none() && silent.watchdog().is_none(), "{name}");
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
        assert_eq!(notifier(&[socket.clone(), period.clone()]).watchdog(), three);
        assert_eq!(notifier(&[socket.clone(), period.clone(), own]).watchdog(), three);
        assert_eq!(notifier(&[socket.clone(), period, other]).watchdog(), None);
        let zero = ("WATCHDOG_USEC", "0".to_owned());
        assert_eq!(notifier(&[socket, zero]).watchdog(), None);
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
