//! UDP broadcasts on every interface.
//!
//! A datagram to 255.255.255.255 leaves by the default route alone (and not at all without one). So
//! each interface has a lane: a socket bound to the interface's address, which sends to the
//! interface's own broadcast address. What is sent leaves through this interface, and can be
//! answered there. Lanes are opened anew when interfaces change; a lane never changes.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use rustix::io::Errno;
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

/// A lane on each interface that can have one at present.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    interfaces: Vec<Interface>,
    pub(crate) open: Vec<Lane>,
}

impl Lanes {
    /// Takes up the present interfaces: all lanes are opened anew if the interfaces have changed, and
    /// otherwise those that could not be opened before. True if there are others than before.
    pub(crate) fn refresh(
        &mut self,
        interfaces: Vec<Interface>,
        open: impl Fn(&Interface) -> io::Result<Lane>,
    ) -> bool {
        let is_new = interfaces != self.interfaces;
        if is_new {
            *self = Lanes { interfaces, open: Vec::new() };
        }
        let before = self.open.len();
        for interface in &self.interfaces {
            let is_its =
                |lane: &Lane| lane.from == interface.address && lane.name == interface.name;
            if self.open[..before].iter().any(is_its) {
                continue;
            }
            match open(interface) {
                Ok(lane) => self.open.push(lane),
                Err(error) if is_new => {
                    log::warn!("no probes through name={} yet reason={error}", interface.name);
                }
                Err(_) => {}
            }
        }
        is_new || self.open.len() > before
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

/// Receives a datagram. `None` for one that is longer than the buffer, and for the news that an
/// earlier one of ours was refused (ICMP), which Windows tells of unconnected sockets too.
///
/// # Errors
/// `WouldBlock` when nothing is there.
pub(crate) fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        Err(error) if is_nothing(&error) => Ok(None),
        received => received.map(Some),
    }
}

fn is_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, Interrupted};
    const NOTHING: [ErrorKind; 3] = [ConnectionRefused, ConnectionReset, Interrupted];
    NOTHING.contains(&error.kind())
        || matches!(Errno::from_io_error(error), Some(Errno::MSGSIZE | Errno::NETRESET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_could_not_be_opened_is_opened_later() {
        let interface = |name: &str, last| {
            let address = Ipv4Addr::new(127, 0, 0, last);
            Interface { name: name.to_owned(), address, ..Interface::loopback() }
        };
        let both = || vec![interface("a", 1), interface("b", 2)];
        let none_left = |_: &Interface| Err(io::Error::other("too many open files"));
        let works = |it: &Interface| Lane::open(it, 9);
        let mut lanes = Lanes::default();
        let names = |lanes: &Lanes| -> Vec<String> {
            lanes.open.iter().map(|lane| lane.name.clone()).collect()
        };
        assert!(lanes.refresh(both(), |it| if it.name == "a" { works(it) } else { none_left(it) }));
        assert_eq!(names(&lanes), ["a"]);
        assert!(!lanes.refresh(both(), none_left), "nothing has changed");
        let socket = lanes.open[0].socket.local_addr().unwrap();
        assert!(lanes.refresh(both(), works));
        assert_eq!(names(&lanes), ["a", "b"]);
        assert_eq!(lanes.open[0].socket.local_addr().unwrap(), socket, "the same as before");
        assert!(!lanes.refresh(both(), none_left));
        assert!(lanes.refresh(vec![interface("b", 3)], works));
        assert_eq!(names(&lanes), ["b"]);
    }

    #[test]
    fn the_route_tells_where_packets_come_from() {
        let source = |address: Ipv4Addr| {
            let interface = Interface { address, ..Interface::loopback() };
            Lane::open(&interface, 9).unwrap().source()
        };
        assert_eq!(source(Ipv4Addr::UNSPECIFIED), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(source(Ipv4Addr::new(127, 0, 0, 7)), IpAddr::from([127, 0, 0, 7]));
    }
    #[test]
    fn what_is_told_of_earlier_datagrams_is_nothing() {
        let socket = bind_udp(Ipv4Addr::LOCALHOST, 0).unwrap();
        let gone = bind_udp(Ipv4Addr::LOCALHOST, 0).unwrap().local_addr().unwrap();
        socket.connect(gone).unwrap();
        let mut buffer = [0; 4];
        let mut receive = || receive(&socket, &mut buffer);
        assert_eq!(receive().unwrap_err().kind(), ErrorKind::WouldBlock);
        for _ in 0..3 {
            let _ = socket.send(b"ping");
            assert_eq!(receive().unwrap(), None, "nobody was there, and it goes on");
            assert_eq!(receive().unwrap_err().kind(), ErrorKind::WouldBlock, "and doesn't spin");
        }
        // Windows' words for it.
        let windows = [ErrorKind::ConnectionReset.into(), Errno::MSGSIZE.into()];
        assert!(windows.iter().all(is_nothing));
        assert!(
            ![ErrorKind::WouldBlock, ErrorKind::NotConnected]
                .map(Into::into)
                .iter()
                .any(is_nothing)
        );
    }
}
