//! Another machine of the LAN, for tests that have none: to ollana, a connection from an address of
//! this machine that isn't a loopback one to a loopback address is one from another machine.

use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::{io, thread};

use super::Client;

/// An address of this machine that isn't a loopback one, if it has any.
pub fn lan_address() -> Option<IpAddr> {
    let all = if_addrs::get_if_addrs().ok()?;
    all.iter().map(|one| one.ip()).find(|ip| ip.is_ipv4() && !ip.is_loopback())
}

/// An address behind which is the one given, and to it everybody is another machine of the LAN.
pub fn wire(to: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let from = lan_address().unwrap_or(to.ip());
            // Once the server has gone, so has the wire.
            let Ok(far) = Client::connect_from(from, to).map(|client| client.stream) else {
                return;
            };
            for (mut one, mut other) in [(&near, &far), (&far, &near)].map(cloned) {
                thread::spawn(move || {
                    let _ = io::copy(&mut one, &mut other);
                    let _ = other.shutdown(Shutdown::Write);
                });
            }
        }
    });
    Ok(address)
}

fn cloned((one, other): (&TcpStream, &TcpStream)) -> (TcpStream, TcpStream) {
    (one.try_clone().expect("a stream"), other.try_clone().expect("a stream"))
}
