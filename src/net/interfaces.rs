//! This machine's interfaces: where broadcasts go, and who is on the same link.

use std::net::{IpAddr, Ipv4Addr};

/// An IPv4 address of an interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, such as `eth0`.
    pub name: String,
    /// The address.
    pub address: Ipv4Addr,
    /// Where a packet reaches everyone on its link.
    pub broadcast: Ipv4Addr,
}

/// Bridges and pairs of containers and virtual machines: a broadcast there reaches no LAN.
const VIRTUAL: &[&str] = &["docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "lxcbr"];

/// The interfaces to broadcast on: the `wanted` ones, or every one that is up, can broadcast, and
/// isn't a container's bridge (unless there are no others). Loopback is never among them.
pub fn broadcast_interfaces(wanted: &[String]) -> Vec<Interface> {
    let all: Vec<Interface> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_p2p())
        .filter(|interface| !matches!(interface.oper_status, if_addrs::IfOperStatus::Down))
        .filter_map(|interface| match interface.addr {
            if_addrs::IfAddr::V4(addr) => Some(Interface {
                name: interface.name,
                address: addr.ip,
                broadcast: addr.broadcast.filter(|b| *b != addr.ip).or_else(|| directed(&addr))?,
            }),
            if_addrs::IfAddr::V6(_) => None,
        })
        .collect();
    choose(all, wanted)
}

/// The interfaces with an IPv4 address that [`broadcast_interfaces`] leaves out, and why.
pub fn other_interfaces(wanted: &[String]) -> Vec<(String, Ipv4Addr, &'static str)> {
    let used: Vec<Ipv4Addr> = broadcast_interfaces(wanted).iter().map(|i| i.address).collect();
    let is_virtual = |name: &str| VIRTUAL.iter().any(|prefix| name.starts_with(prefix));
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let others = all.into_iter().filter(|interface| !interface.is_loopback());
    others
        .filter_map(|interface| {
            let IpAddr::V4(ip) = interface.ip() else { return None };
            let why = match &interface.oper_status {
                _ if used.contains(&ip) => return None,
                if_addrs::IfOperStatus::Down => "is down",
                _ if interface.is_p2p() => "is a tunnel, such as a VPN's, without broadcasts",
                _ if is_virtual(&interface.name) => "is of containers or virtual machines",
                _ if !wanted.is_empty() => "is not named by --interface",
                _ => "has no broadcast address",
            };
            Some((interface.name, ip, why))
        })
        .collect()
}

fn choose(all: Vec<Interface>, wanted: &[String]) -> Vec<Interface> {
    if !wanted.is_empty() {
        return all.into_iter().filter(|i| wanted.contains(&i.name)).collect();
    }
    let is_virtual = |i: &Interface| VIRTUAL.iter().any(|prefix| i.name.starts_with(prefix));
    if all.iter().all(is_virtual) {
        return all;
    }
    all.into_iter().filter(|interface| !is_virtual(interface)).collect()
}

/// The last address of the subnet, if the subnet is large enough to have one.
fn directed(addr: &if_addrs::Ifv4Addr) -> Option<Ipv4Addr> {
    let mask = u32::from(addr.netmask);
    (mask.leading_ones() < 31).then(|| Ipv4Addr::from(u32::from(addr.ip) | !mask))
}

/// The subnets that this machine is on, as they were when it was made.
#[derive(Clone, Debug)]
pub struct Subnets(Vec<if_addrs::Interface>);

impl Subnets {
    /// The subnets now.
    pub fn now() -> Self {
        Subnets(if_addrs::get_if_addrs().unwrap_or_default())
    }

    /// Whether an address is loopback or within one of the subnets.
    pub fn contain(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if ip.is_loopback() {
            return true;
        }
        self.0.iter().any(|interface| match (&interface.addr, ip) {
            (if_addrs::IfAddr::V4(addr), IpAddr::V4(ip)) => {
                let mask = u32::from(addr.netmask);
                mask != 0 && u32::from(addr.ip) & mask == u32::from(ip) & mask
            }
            (if_addrs::IfAddr::V6(addr), IpAddr::V6(ip)) => {
                let mask = u128::from(addr.netmask);
                mask != 0 && u128::from(addr.ip) & mask == u128::from(ip) & mask
            }
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Interface {
        let address = Ipv4Addr::new(10, 0, 0, 1);
        Interface { name: name.to_owned(), address, broadcast: Ipv4Addr::new(10, 0, 0, 255) }
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
        assert!(Subnets::now().contain(IpAddr::from([127, 9, 9, 9])));
        assert!(!Subnets::now().contain(IpAddr::from([203, 0, 113, 1])));
    }
}
