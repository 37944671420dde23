//! Wake-on-LAN: remembers the hardware addresses of servers while they are up, and sends the packet
//! that switches them on (AMD's "Magic Packet": six bytes 0xFF, then the address sixteen times).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{Mac, Sleeper};
use crate::manager::store::Macs;
use crate::net::interfaces::{Interface, broadcast_interfaces};
use crate::net::lane::Lane;
use crate::system;

/// Where such packets are sent by custom: UDP discard.
const PORT: u16 = 9;

#[derive(Clone, Debug)]
pub(crate) struct Wake {
    pub(crate) sleepers: Vec<Sleeper>,
    /// Interfaces to send through; all suitable ones if empty.
    pub(crate) interfaces: Vec<String>,
    /// `None` without a directory for them.
    pub(crate) macs: Option<Arc<Macs>>,
}

impl Wake {
    /// Remembers the hardware addresses of those of these servers that may have to be woken; each
    /// comes with the names that it goes by.
    pub(crate) fn learn(&self, servers: &[(SocketAddr, Vec<String>)]) {
        let Some(macs) = &self.macs else { return };
        let neighbours = system::neighbours();
        let mut found = Vec::new();
        for (address, names) in servers {
            let ip = address.ip().to_canonical();
            let names = || names.iter().cloned().chain([ip.to_string(), address.to_string()]);
            let Some(mac) = neighbour(&neighbours, ip) else { continue };
            for sleeper in &self.sleepers {
                let Sleeper::Server(wanted) = sleeper else { continue };
                if names().any(|name| name.eq_ignore_ascii_case(wanted)) {
                    found.push((wanted.clone(), mac));
                }
            }
        }
        if !found.is_empty() {
            macs.learn(found);
        }
    }

    /// Wakes all of them that it can; whether there is any.
    pub(crate) fn call(&self) -> bool {
        let mut has_sent = false;
        for sleeper in &self.sleepers {
            let mac = match sleeper {
                Sleeper::Mac(mac) => Some(*mac),
                Sleeper::Server(name) => self.macs.as_ref().and_then(|macs| macs.of(name)),
            };
            match mac.map(|mac| (mac, self.send(mac))) {
                Some((mac, Ok(()))) => {
                    has_sent = true;
                    log::info!("sent a Wake-on-LAN packet server={sleeper} mac={mac}");
                }
                Some((_, Err(error))) => log::warn!("cannot wake server={sleeper}: {error}"),
                None => log::warn!(
                    "cannot wake server={sleeper}: its hardware address isn't known yet; it is \
                     learned while the server is up, or say --wake MAC"
                ),
            }
        }
        has_sent
    }

    /// Through every interface; one that works is enough.
    fn send(&self, mac: Mac) -> io::Result<()> {
        let packet = packet(mac);
        let mut interfaces = broadcast_interfaces(&self.interfaces);
        if interfaces.is_empty() {
            interfaces.push(Interface::default_route());
        }
        let mut sent = Err(io::ErrorKind::NetworkUnreachable.into());
        for interface in &interfaces {
            sent = sent.or(Lane::open(interface, PORT).and_then(|lane| lane.send(&packet)));
        }
        sent
    }
}

fn packet(mac: Mac) -> Vec<u8> {
    [0xFF; 6].into_iter().chain((0..16).flat_map(|_| mac.0)).collect()
}

/// A neighbour's hardware address, out of the system's table. Linux shows one that isn't known as
/// zeroes, BSD's arp leaves out leading ones.
fn neighbour(table: &str, ip: IpAddr) -> Option<Mac> {
    let ip = ip.to_string();
    let is_ip = |word: &str| word.trim_matches(['(', ')']) == ip;
    let line = table.lines().find(|line| line.split_whitespace().take(2).any(is_ip))?;
    let mac = |word: &str| {
        let bytes: Vec<String> = word.split([':', '-']).map(|byte| format!("{byte:0>2}")).collect();
        bytes.join(":").parse::<Mac>().ok()
    };
    line.split_whitespace().find_map(mac).filter(|mac| mac.0 != [0; 6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_the_kernels_table() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     192.168.1.20     0x1         0x2         D8:bb:c1:00:0a:ff     *        eth0\n\
                     192.168.1.2      0x1         0x0         00:00:00:00:00:00     *        eth0\n";
        let mac = neighbour(table, IpAddr::from([192, 168, 1, 20])).expect("known");
        assert_eq!(mac.to_string(), "d8:bb:c1:00:0a:ff");
        assert_eq!(neighbour(table, IpAddr::from([192, 168, 1, 2])), None, "asked, not answered");
        assert_eq!(neighbour(table, IpAddr::from([192, 168, 1, 3])), None);
        assert_eq!(neighbour("", IpAddr::from([192, 168, 1, 3])), None);
        // What "arp -an" prints on macOS and FreeBSD, and "arp -a" on Windows.
        for table in [
            "? (192.168.1.2) at (incomplete) on en0 ifscope [ethernet]\n\
             ? (192.168.1.20) at d8:bb:c1:0:a:ff on en0 ifscope [ethernet]\n",
            "? (192.168.1.2) at (incomplete) on em0 expired [ethernet]\n\
             ? (192.168.1.20) at d8:bb:c1:00:0a:ff on em0 expires in 1199 seconds [ethernet]\n",
            "\r\nInterface: 192.168.1.7 --- 0x5\r\n\
             \x20 Internet Address      Physical Address      Type\r\n\
             \x20 192.168.1.20          d8-bb-c1-00-0a-ff     dynamic   \r\n",
        ] {
            assert_eq!(neighbour(table, IpAddr::from([192, 168, 1, 20])), Some(mac), "{table}");
            for unknown in [2, 7, 0] {
                let ip = IpAddr::from([192, 168, 1, unknown]);
                assert_eq!(neighbour(table, ip), None, "{table}");
            }
        }
        let packet = packet(mac);
        assert_eq!(packet.len(), 102);
        assert_eq!(&packet[..8], &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xD8, 0xBB]);
        assert_eq!(&packet[96..], &mac.0);
    }
}
