//! The check of `Host`: under which names a request may address this machine. Pure.
//!
//! Ollama refuses requests whose `Host` it doesn't know, as a defence against DNS rebinding
//! (`allowedHostsMiddleware`). A proxy sends on Ollama's own host, so it must make that check
//! itself, or it would switch the defence off.

use std::net::{IpAddr, Ipv6Addr};

/// Names under which a request may address this machine.
#[derive(Clone, Debug, Default)]
pub struct HostRule {
    names: Vec<String>,
}

const LOCAL_SUFFIXES: &[&str] = &[".localhost", ".local", ".lan", ".home.arpa", ".internal"];

impl HostRule {
    /// Own host name and the names that the user added; lower case.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        HostRule { names: names.into_iter().filter(|name| !name.is_empty()).collect() }
    }

    /// Whether a `Host` value is absent, empty, an address, or a name of this machine.
    pub fn allows(&self, host: Option<&[u8]>) -> bool {
        let Some(host) = host.filter(|host| !host.is_empty()) else { return true };
        let Ok(host) = std::str::from_utf8(host) else { return false };
        let Some(name) = strip_port(host) else { return false };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name.contains('%') {
            return is_zoned(&name);
        }
        name.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || LOCAL_SUFFIXES.iter().any(|s| name.len() > s.len() && name.ends_with(s))
            || self.names.contains(&name)
    }
}

/// Whether a `Host` that is allowed is a name, or none, rather than an address.
pub(crate) fn is_name(host: Option<&[u8]>) -> bool {
    let host = host.and_then(|host| strip_port(std::str::from_utf8(host).ok()?));
    host.is_none_or(|host| host.parse::<IpAddr>().is_err() && !is_zoned(host))
}

/// Whether it is an IPv6 address with a zone, an interface of the client's, behind `%` or, as in a
/// URI, behind `%25` (RFC 6874).
fn is_zoned(name: &str) -> bool {
    name.split_once('%')
        .is_some_and(|(address, zone)| address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty())
}

/// The host without its port and brackets; `None` if it can't be one.
fn strip_port(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']')? {
            (name, "") => (name, ""),
            (name, after) => (name, after.strip_prefix(':')?),
        },
        None => host.split_once(':').unwrap_or((host, "")),
    };
    let port_fits = port.bytes().all(|b| b.is_ascii_digit());
    let named = name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:%".contains(&b));
    (port_fits && named && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        let rule = HostRule::new(["box".to_owned(), "gpu.example.com".to_owned(), String::new()]);
        for host in [
            "",
            "localhost",
            "localhost:11434",
            "127.0.0.1:11434",
            "[::1]:11434",
            "[fe80::1]",
            "[fe80::1%eth0]:11434",
            "[fe80::1%25wlan0.1]",
            "[::1%2]",
            "192.168.1.5",
            "8.8.8.8",
            "box",
            "BOX:1",
            "box.",
            "pi.local",
            "pi.lan:1",
            "a.home.arpa",
            "x.internal",
            "a.b.localhost",
            "GPU.example.com",
        ] {
            assert!(rule.allows(Some(host.as_bytes())), "{host}");
        }
        assert!(rule.allows(None));
        for host in [
            "evil.com",
            "evil.com:11434",
            "localhost.evil.com",
            "127.0.0.1.evil.com",
            ".local",
            "local",
            "xlocalhost",
            "box.evil",
            "evil.com/.local",
            "a b.local",
            "[::1",
            "[::1]x:y",
            "localhost:11434:1",
            "evil.com#.local",
            "user@localhost",
            "\u{e9}.local",
            "evil.com%eth0",
            "[evil.com%eth0]",
            "[fe80::1%]",
            "[fe80::1%eth0",
            "x%eth0.local",
        ] {
            assert!(!rule.allows(Some(host.as_bytes())), "{host}");
        }
    }
}
