//! Which addresses may connect. Pure.

use std::net::IpAddr;
use std::str::FromStr;

use crate::net::interfaces::share_prefix;

/// Whether an address is one that only a local network or this machine uses: loopback,
/// private (RFC 1918, RFC 4193), link-local, or shared (RFC 6598, used by overlay networks).
pub(crate) fn is_local_address(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let is_shared = matches!(ip.octets(), [100, 64..128, ..]);
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || is_shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// A range of addresses, `10.0.0.0/8`; a single address is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl Cidr {
    /// Whether an address is within it. IPv4 within IPv6 counts as IPv4.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        share_prefix(self.base, ip.to_canonical(), self.bits)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!("{text}: expected an address or a range, such as 192.168.1.0/24 or fd00::/8")
        };
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let base: IpAddr = address.parse().map_err(|_| error())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if bits.starts_with('+') => return Err(error()),
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(error)?,
        };
        // Peers are compared as IPv4 where they are, and so are ranges.
        Ok(match base.to_canonical() {
            base @ IpAddr::V4(_) if bits >= 96 => Cidr { base, bits: bits - 96 },
            _ => Cidr { base, bits },
        })
    }
}

/// Which machines may connect: `--allow` and `--deny`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressLists {
    /// Only these and this machine; empty means local networks (private, link-local, shared, on-link).
    pub allow: Vec<Cidr>,
    /// Never these, allowed or not.
    pub deny: Vec<Cidr>,
}

impl AddressLists {
    /// Whether a peer may connect; `is_own` says whether it is this machine. `is_on_link` is called
    /// only where it decides.
    pub(crate) fn admits(
        &self,
        peer: IpAddr,
        is_own: bool,
        is_on_link: impl FnOnce(IpAddr) -> bool,
    ) -> bool {
        let peer = peer.to_canonical();
        let within = |ranges: &[Cidr]| ranges.iter().any(|range| range.contains(peer));
        if within(&self.deny) {
            false
        } else if self.allow.is_empty() {
            is_own || is_local_address(peer) || is_on_link(peer)
        } else {
            is_own || within(&self.allow)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn ranges_hold_what_they_say() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.1.2.3/8", "10.0.0.1", "9.255.255.255"),
            ("192.168.1.0/24", "192.168.1.255", "192.168.2.0"),
            ("192.168.1.7", "192.168.1.7", "192.168.1.6"),
            ("192.168.1.7/32", "192.168.1.7", "192.168.1.8"),
            ("192.168.1.6/31", "192.168.1.7", "192.168.1.5"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("fd00::/8", "fdff::1", "fc00::1"),
            ("fe80::1", "fe80::1", "fe80::2"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::ffff:11.1.1.1"),
            ("::ffff:10.0.0.0/104", "10.1.1.1", "11.1.1.1"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ] {
            assert!(cidr(range).contains(inside.parse().unwrap()), "{range} {inside}");
            assert!(!cidr(range).contains(outside.parse().unwrap()), "{range} {outside}");
        }
        for bad in [
            "",
            "/",
            "10",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::/129",
            "a/8",
            "10.0.0.0/8/8",
            "10.0.0.0 /8",
            "10.0.0.0/ 8",
            "010.0.0.1",
            "[::1]",
            "localhost",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn deny_wins_and_allow_replaces_the_usual() {
        let reach = |allow: &[&str], deny: &[&str]| AddressLists {
            allow: allow.iter().map(|range| cidr(range)).collect(),
            deny: deny.iter().map(|range| cidr(range)).collect(),
        };
        let admits = |lists: &AddressLists, ip: &str, on_link| {
            let ip: IpAddr = ip.parse().unwrap();
            lists.admits(ip, ip.is_loopback(), |_| on_link)
        };
        let usual = reach(&[], &[]);
        assert!(admits(&usual, "192.168.1.7", false) && admits(&usual, "203.0.113.1", true));
        assert!(!admits(&usual, "203.0.113.1", false));
        let only = reach(&["192.168.1.0/24", "203.0.113.0/24"], &["192.168.1.66"]);
        for (ip, want) in [
            ("192.168.1.7", true),
            ("::ffff:192.168.1.7", true),
            ("192.168.1.66", false),
            ("::ffff:192.168.1.66", false),
            ("192.168.2.7", false),
            ("203.0.113.5", true),
            ("10.0.0.1", false),
            ("127.0.0.1", true),
            ("::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(admits(&only, ip, true), want, "{ip}");
        }
        let denied = reach(&["10.0.0.0/8"], &["10.0.0.0/8", "127.0.0.0/8"]);
        assert!(!admits(&denied, "10.0.0.1", true) && !admits(&denied, "127.0.0.1", true));
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
