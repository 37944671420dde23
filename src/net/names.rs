//! Machines as people name them: the addresses to connect to.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};

use super::interfaces;

/// The addresses behind a name or an address (without brackets), IPv4 first, as Ollama listens on
/// that unless told otherwise. At least one; else a sentence about why not.
///
/// A link-local address (`fe80::…`) is one of a machine on one of our links. Which link, a zone says
/// behind `%` (RFC 4007): an interface's name or number. Without one, all links are tried.
pub(crate) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let mut addresses = match split_zone(host) {
        Some((ip, zone)) => {
            let index = interfaces::index_of(zone)
                .ok_or_else(|| format!("there is no network interface {zone} with an address"))?;
            vec![SocketAddrV6::new(ip, port, 0, index).into()]
        }
        None => (host, port)
            .to_socket_addrs()
            .map_err(|error| format!("can't resolve {host}: {error}"))?
            .flat_map(on_each_link)
            .collect(),
    };
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() {
        return Err(format!("{host} has no address that can be reached from here"));
    }
    Ok(addresses)
}

fn split_zone(host: &str) -> Option<(Ipv6Addr, &str)> {
    let (ip, zone) = host.split_once('%')?;
    Some((ip.parse().ok()?, zone))
}

fn on_each_link(address: SocketAddr) -> Vec<SocketAddr> {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            let on = |index| SocketAddrV6::new(*v6.ip(), v6.port(), 0, index).into();
            interfaces::links().into_iter().map(on).collect()
        }
        _ => vec![address],
    }
}

/// An address as another machine is told it: a zone means something on this one alone (RFC 6874 §1).
pub(crate) fn without_zone(address: SocketAddr) -> SocketAddr {
    SocketAddr::from((address.ip(), address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn zones_name_interfaces() {
        let lo = interfaces::index_of("lo").expect("a loopback interface");
        let shown = SocketAddr::from(SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 0, lo));
        let want = Ok(vec![shown]);
        assert_eq!(resolve("fe80::1%lo", 7), want);
        assert_eq!(resolve(&format!("fe80::1%{lo}"), 7), want);
        for zone in ["nosuch0", "4000000000", "-1"] {
            let error = resolve(&format!("fe80::1%{zone}"), 7).unwrap_err();
            assert_eq!(error, format!("there is no network interface {zone} with an address"));
        }
        assert_eq!(shown.to_string().parse(), Ok(shown));
        assert_eq!(without_zone(shown).to_string(), "[fe80::1]:7");
    }

    #[test]
    fn addresses_resolve_to_themselves() {
        for host in ["127.0.0.1", "::1", "10.0.0.9"] {
            let ip: IpAddr = host.parse().unwrap();
            assert_eq!(resolve(host, 7), Ok(vec![SocketAddr::from((ip, 7))]));
        }
        assert!(resolve("localhost", 7).is_ok_and(|all| all[0].ip().is_loopback()));
        assert!(resolve("no such name", 7).is_err());
    }
}
