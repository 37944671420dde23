//! The real binary, started and stopped as a service manager would.

use std::net::{SocketAddr, TcpListener, UdpSocket};

/// An address of 127.0.0.1 whose TCP port nobody has.
pub fn free_tcp_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}

/// A UDP port of 127.0.0.1 that nobody has.
pub fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free UDP port");
    socket.local_addr().expect("local address").port()
}
