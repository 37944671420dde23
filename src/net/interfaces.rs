//! This machine's interfaces, on which broadcasts are sent, and its subnets, whose addresses need no
//! router.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use if_addrs::{IfAddr, IfOperStatus, Interface as Found};

use super::untrusted_text::printable;

/// How long a listing of the subnets is relied on: listing costs more than all else about a packet.
const SUBNETS_AGE: Duration = Duration::from_secs(2);
/// The same for an address that isn't on the list: its interface may just have come up.
const UNLISTED_AGE: Duration = Duration::from_millis(100);

/// An IPv4 address of an interface, and where broadcasts from it go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) broadcast: Ipv4Addr,
}

impl Interface {
    pub(crate) fn new(name: &str, address: Ipv4Addr, broadcast: Ipv4Addr) -> Self {
        Interface { name: name.to_owned(), address, broadcast }
    }

    /// A broadcast on it reaches this machine's own servers.
    pub(crate) fn loopback() -> Self {
        Self::new("loopback", Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
    }

    /// The one interface that the default route leads to.
    pub(crate) fn default_route() -> Self {
        Self::new("default route", Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    }
}

/// Interfaces of containers and virtual machines: a broadcast there reaches no LAN. Those of Windows
/// go by names such as "vEthernet (WSL)" and "VMware Network Adapter VMnet8", macOS's by bridge100.
const VIRTUAL: &[&str] = &[
    "docker",
    "br-",
    "veth",
    "virbr",
    "cni",
    "flannel",
    "podman",
    "lxcbr",
    "lxdbr",
    "vEthernet",
    "VMware",
    "vmnet",
    "VirtualBox",
    "vboxnet",
    "bridge10",
    "vmenet",
    "epair",
];

fn is_virtual(name: &str) -> bool {
    VIRTUAL.iter().any(|prefix| name.starts_with(prefix))
}

/// The interfaces to broadcast on: the `wanted` ones, or every one that is up, can broadcast, and
/// isn't virtual (unless all are). Loopback is never among them.
pub(crate) fn broadcast_interfaces(wanted: &[String]) -> Vec<Interface> {
    choose(broadcasting(), wanted)
}

fn broadcasting() -> Vec<Interface> {
    let all = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let fit = all
        .filter(|interface| !interface.is_loopback() && !interface.is_p2p())
        .filter(|interface| interface.oper_status != IfOperStatus::Down);
    let broadcasting = fit.filter_map(|interface| {
        let IfAddr::V4(addr) = &interface.addr else { return None };
        let broadcast = addr.broadcast.filter(|b| *b != addr.ip).or_else(|| directed(addr));
        Some(Interface::new(&interface.name, addr.ip, broadcast?))
    });
    broadcasting.collect()
}

/// What is odd about the `wanted` ones, for people: those on which nothing can be broadcast.
pub(crate) fn unknown_interfaces(wanted: &[String]) -> Vec<String> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let all = broadcasting();
    // Loopback is used without being named, which keeps it to this machine.
    let loopback = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let loopback: Vec<String> =
        loopback.filter(|one| one.is_loopback()).map(|one| one.name).collect();
    let is_known =
        |name: &String| loopback.contains(name) || all.iter().any(|one| one.name == *name);
    let unknown = wanted.iter().filter(|name| !is_known(name));
    let mut others: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
    others.dedup();
    let others = match others.is_empty() {
        true => "none can".to_owned(),
        false => format!("these can: {}", others.join(", ")),
    };
    let told = unknown.map(|name| {
        let name = printable(name);
        format!("--interface {name}: no interface of that name can broadcast ({others})")
    });
    told.collect()
}

/// Where a client's probes go: to [`broadcast_interfaces`] or, where none is suitable and none was
/// named, along the default route; and to this machine itself.
pub(crate) fn probed_interfaces(wanted: &[String]) -> Vec<Interface> {
    let mut interfaces = broadcast_interfaces(wanted);
    if interfaces.is_empty() && wanted.is_empty() {
        interfaces.push(Interface::default_route());
    }
    interfaces.push(Interface::loopback());
    interfaces
}

/// Why a tunnel is left out.
pub(crate) const TUNNEL: &str = "is a tunnel, such as a VPN's";

/// The interfaces with an IPv4 address that [`broadcast_interfaces`] leaves out, and why.
pub(crate) fn other_interfaces(wanted: &[String]) -> Vec<(String, Ipv4Addr, &'static str)> {
    let used: Vec<Ipv4Addr> = broadcast_interfaces(wanted).iter().map(|i| i.address).collect();
    let all = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let others = all.filter_map(|interface| {
        let IpAddr::V4(ip) = interface.ip() else { return None };
        let why = match &interface.oper_status {
            _ if interface.is_loopback() || used.contains(&ip) => return None,
            IfOperStatus::Down => "is down",
            _ if interface.is_p2p() => TUNNEL,
            _ if is_virtual(&interface.name) => "is of containers or virtual machines",
            _ if !wanted.is_empty() => "is not named by --interface",
            _ => "has no broadcast address",
        };
        Some((interface.name, ip, why))
    });
    others.collect()
}

/// Addresses of this machine by which a container of it can reach it, bridges first.
pub(crate) fn addresses_for_containers() -> Vec<Ipv4Addr> {
    let mut all = if_addrs::get_if_addrs().unwrap_or_default();
    all.retain(|one| !one.is_loopback() && !one.is_p2p());
    all.sort_by_key(|one| !is_virtual(&one.name));
    let ip = |one: &if_addrs::Interface| match one.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    all.iter().filter_map(ip).collect()
}

/// The number of an interface that has an address, by its name or by the number itself.
pub(crate) fn index_of(zone: &str) -> Option<u32> {
    let number: Option<u32> = zone.parse().ok();
    let all = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let is_it = |one: &Found| one.name == zone || (number.is_some() && one.index == number);
    // On Windows, an address may have no number where others of the interface have.
    all.filter(is_it).find_map(|one| one.index)
}

/// What this system calls an interface, and its number.
#[cfg(test)]
pub(crate) fn any_number() -> Option<(String, u32)> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    all.into_iter().find_map(|one| Some((one.name, one.index?)))
}

/// The numbers of the interfaces with a link-local IPv6 address, virtual ones last.
pub(crate) fn links() -> Vec<u32> {
    let mut all = if_addrs::get_if_addrs().unwrap_or_default();
    all.retain(|one| matches!(one.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()));
    all.sort_by_key(|one| is_virtual(&one.name));
    let mut links: Vec<u32> = all.iter().filter_map(|one| one.index).collect();
    links.dedup();
    links
}

fn choose(mut all: Vec<Interface>, wanted: &[String]) -> Vec<Interface> {
    if !wanted.is_empty() {
        all.retain(|interface| wanted.contains(&interface.name));
    } else if !all.iter().all(|interface| is_virtual(&interface.name)) {
        all.retain(|interface| !is_virtual(&interface.name));
    }
    all
}

/// The last address of the subnet, if the subnet is large enough to have one.
fn directed(addr: &if_addrs::Ifv4Addr) -> Option<Ipv4Addr> {
    let mask = u32::from(addr.netmask);
    (mask.leading_ones() < 31).then(|| Ipv4Addr::from(u32::from(addr.ip) | !mask))
}

/// The subnets that this machine was on when they were listed: an address and the prefix's bits.
#[derive(Clone, Debug)]
pub(crate) struct Subnets(Vec<(IpAddr, u8)>);

impl Subnets {
    pub(crate) fn now() -> Self {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
        let subnets = interfaces.map(|interface| match interface.addr {
            IfAddr::V4(addr) => (IpAddr::V4(addr.ip), addr.prefixlen),
            IfAddr::V6(addr) => (IpAddr::V6(addr.ip), addr.prefixlen),
        });
        Subnets(subnets.filter(|(_, bits)| *bits > 0).collect())
    }

    /// Whether an address is loopback or within one of the subnets.
    pub(crate) fn contain(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_loopback() || self.0.iter().any(|(own, bits)| share_prefix(*own, ip, *bits))
    }

    /// The bits of the prefix, if an address of this machine and another one are on one subnet.
    pub(crate) fn shared(&self, own: IpAddr, other: IpAddr) -> Option<u8> {
        let subnets = self.0.iter().filter(|(ip, _)| *ip == own).map(|(_, bits)| *bits);
        subnets.filter(|bits| share_prefix(own, other, *bits)).max()
    }

    /// This machine's addresses with their prefixes, of one kind, for people.
    pub(crate) fn own(&self, is_ipv4: bool) -> Vec<String> {
        let meant = self.0.iter().filter(|(ip, _)| ip.is_ipv4() == is_ipv4 && !ip.is_loopback());
        meant.map(|(ip, bits)| format!("{ip}/{bits}")).collect()
    }
}

/// The interface of a name. Of its further addresses some have a label, such as eth0:1, which
/// firewalls don't know.
pub(crate) fn without_label(name: &str) -> &str {
    name.split_once(':').map_or(name, |(interface, _)| interface)
}

/// Whether two addresses of one kind begin with the same `bits` bits.
pub(crate) fn share_prefix(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let same = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    same >= u32::from(bits)
}

/// The subnets, listed anew when an address is looked up and the listing is old.
#[derive(Debug)]
pub(crate) struct RecentSubnets {
    subnets: Subnets,
    listed: Instant,
}

impl RecentSubnets {
    pub(crate) fn new() -> Self {
        RecentSubnets { subnets: Subnets::now(), listed: Instant::now() }
    }

    pub(crate) fn contain(&mut self, now: Instant, ip: IpAddr) -> bool {
        let age = now.saturating_duration_since(self.listed);
        let is_listed = self.subnets.contain(ip);
        if age < SUBNETS_AGE && (is_listed || age < UNLISTED_AGE) {
            return is_listed;
        }
        *self = RecentSubnets { subnets: Subnets::now(), listed: now };
        self.subnets.contain(ip)
    }

    pub(crate) fn shared(&self, own: IpAddr, other: IpAddr) -> Option<u8> {
        self.subnets.shared(own, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Interface {
        Interface::new(name, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 255))
    }

    fn names(chosen: &[Interface]) -> Vec<&str> {
        chosen.iter().map(|i| i.name.as_str()).collect()
    }

    #[test]
    fn container_bridges_are_left_out_unless_named_or_alone() {
        let all = || ["eth0", "docker0", "veth12", "wlan0", "br-9f"].map(named).to_vec();
        assert_eq!(names(&choose(all(), &[])), ["eth0", "wlan0"]);
        assert_eq!(names(&choose(all(), &["docker0".to_owned()])), ["docker0"]);
        assert_eq!(names(&choose(vec![named("veth1")], &[])), ["veth1"]);
        let windows = [
            "vEthernet (Default Switch)",
            "Ethernet 2",
            "VMware Network Adapter VMnet8",
            "VirtualBox Host-Only Network",
            "Wi-Fi",
        ];
        let all = windows.map(named).to_vec();
        assert_eq!(names(&choose(all, &[])), ["Ethernet 2", "Wi-Fi"]);
        let all = ["en0", "bridge100", "vmnet1", "bridge0"].map(named).to_vec();
        assert_eq!(names(&choose(all, &[])), ["en0", "bridge0"], "macOS; bridge0 is Thunderbolt's");
    }

    #[test]
    fn subnets() {
        let addr = |prefixlen: u8, mask: [u8; 4]| if_addrs::Ifv4Addr {
            ip: Ipv4Addr::new(192, 168, 5, 9),
            netmask: Ipv4Addr::from(mask),
            prefixlen,
            broadcast: None,
        };
        let broadcast = directed(&addr(23, [255, 255, 254, 0]));
        assert_eq!(broadcast, Some(Ipv4Addr::new(192, 168, 5, 255)));
        assert_eq!(directed(&addr(32, [255; 4])), None);
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let subnets =
            Subnets(vec![(ip("10.0.0.5"), 8), (ip("10.1.0.5"), 16), (ip("192.168.1.5"), 24)]);
        let shared = |own, other| subnets.shared(ip(own), ip(other));
        assert_eq!(shared("192.168.1.5", "192.168.1.9"), Some(24));
        assert_eq!(shared("192.168.1.5", "10.1.2.3"), None);
        assert_eq!(
            (shared("10.0.0.5", "10.1.2.3"), shared("10.1.0.5", "10.1.2.3")),
            (Some(8), Some(16))
        );
        assert_eq!(shared("192.168.1.6", "192.168.1.9"), None, "it isn't this machine's");
        assert!(Subnets::now().contain(IpAddr::from([127, 9, 9, 9])));
        assert!(!Subnets::now().contain(IpAddr::from([203, 0, 113, 1])));
    }
}
