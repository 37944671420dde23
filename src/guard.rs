//! Who may ask, and under which name: the checks that keep a browser page or the internet out.
//! Pure.
//!
//! Ollama refuses requests whose `Host` it doesn't know, which is its defence against DNS
//! rebinding (`allowedHostsMiddleware`). A proxy has to send Ollama's own host onwards, so it
//! must make that check itself or it would switch the defence off.

use std::net::IpAddr;

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
        name.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || LOCAL_SUFFIXES.iter().any(|s| name.len() > s.len() && name.ends_with(s))
            || self.names.contains(&name)
    }
}

/// The host without its port and brackets; `None` if it can't be one.
fn strip_port(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']')? {
            (name, "") => (name, None),
            (name, after) => (name, Some(after.strip_prefix(':')?)),
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let port_fits = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let named =
        name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    (port_fits && named && !name.is_empty()).then_some(name)
}

/// Addresses that begin with the same bits, such as `192.168.1.0/24`; a single one has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u32,
}

impl Network {
    /// Reads `ADDRESS` or `ADDRESS/BITS`.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Network { ip, bits })
    }

    /// Whether an address is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let differ = u32::from(own) ^ u32::from(ip);
                differ.leading_zeros() >= self.bits
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let differ = u128::from(own) ^ u128::from(ip);
                differ.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

/// Whether an address is one that only a local network or this machine uses: loopback,
/// private (RFC 1918, RFC 4193), link-local, or shared (RFC 6598, used by overlay networks).
pub fn is_local_address(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
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
        ] {
            assert!(!rule.allows(Some(host.as_bytes())), "{host}");
        }
    }

    #[test]
    fn networks_hold_what_begins_like_them() {
        for (network, inside, outside) in [
            ("192.168.1.0/24", "192.168.1.255", "192.168.2.0"),
            ("192.168.1.7", "::ffff:192.168.1.7", "192.168.1.6"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::1", "::1", "::2"),
        ] {
            let network = Network::parse(network).expect(network);
            assert!(network.contains(inside.parse().unwrap()), "{inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{outside}");
        }
        for bad in ["", "x", "1.2.3.4/33", "::1/129", "1.2.3.4/", "1.2.3.4/-1", "1.2.3/8"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_internet_is_not_local() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_local_address(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "8.8.8.8",
            "172.32.0.1",
            "172.15.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.169.0.1",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "0.0.0.0",
        ] {
            assert!(!is_local_address(ip.parse().unwrap()), "{ip}");
        }
    }
}
