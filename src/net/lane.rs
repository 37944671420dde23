//! UDP broadcasts on every interface.
//!
//! A datagram to 255.255.255.255 leaves by the default route alone (and not at all without one). So
//! each interface has a lane: a socket bound to the interface's address, which sends to the
//! interface's own broadcast address. What is sent leaves through this interface, and can be
//! answered there. Lanes are opened anew when interfaces change; a lane never changes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::interfaces::Interface;

/// One socket on one interface, and the address that it sends to. Never blocks.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: String,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: SocketAddr,
    pub(crate) socket: UdpSocket,
}

impl Lane {
    /// To a UDP port of every machine that the interface's broadcasts reach. Fails when the address
    /// has just gone.
    pub(crate) fn open(interface: &Interface, port: u16) -> io::Result<Self> {
        let Interface { name, address, broadcast } = interface.clone();
        let socket = bind_udp(address, 0)?;
        Ok(Lane { name, from: address, to: (broadcast, port).into(), socket })
    }

    /// Lanes on these interfaces; and the names of those that can't have one, and why.
    pub(crate) fn open_all(
        interfaces: &[Interface],
        port: u16,
    ) -> (Vec<Self>, Vec<(String, io::Error)>) {
        let (mut lanes, mut failed) = (Vec::new(), Vec::new());
        for interface in interfaces {
            match Self::open(interface, port) {
                Ok(lane) => lanes.push(lane),
                Err(error) => failed.push((interface.name.clone(), error)),
            }
        }
        (lanes, failed)
    }

    /// The source address of what it sends. Where a route decides, the kernel is asked for it,
    /// without sending anything.
    pub(crate) fn source(&self) -> IpAddr {
        let routed = || {
            let socket = UdpSocket::bind((self.from, 0))?;
            socket.set_broadcast(true)?;
            socket.connect(self.to)?;
            socket.local_addr().map(|address| address.ip())
        };
        let own = IpAddr::V4(self.from);
        if own.is_unspecified() { routed().unwrap_or(own) } else { own }
    }

    /// No error is for good: the next datagram may pass.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, self.to).map(|_| ())
    }
}

/// A non-blocking UDP socket that may broadcast. It shares its address with no other: of several
/// sockets that share one, only one would get each packet.
pub(crate) fn bind_udp(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_tells_where_packets_come_from() {
        let source = |address: Ipv4Addr| {
            let interface = Interface { address, ..Interface::loopback() };
            Lane::open(&interface, 9).unwrap().source()
        };
        assert_eq!(source(Ipv4Addr::UNSPECIFIED), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(source(Ipv4Addr::new(127, 0, 0, 7)), IpAddr::from([127, 0, 0, 7]));
    }
}
