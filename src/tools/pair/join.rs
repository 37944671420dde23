//! The machine on which the code is typed: it looks for machines that show a code, and tries each.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::{HALF, KEPT, Own, STEP_TIMEOUT, keep};
use crate::config::parse_host_port;
use crate::discovery::{scan::Scan, schedule};
use crate::net::interfaces::{Interface, Subnets, broadcast_interfaces};
use crate::net::lane::Lane;
use crate::pairing::noise::{Key, NoiseError, Purpose};
use crate::pairing::secure::{self, SecureError};
use crate::pairing::{code::PairingCode, peers::Peer, stream::Stream};
use crate::system::{self, failed};

/// How long further machines may answer after the first.
const MORE_ANSWERS: Duration = Duration::from_millis(250);

pub(super) fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let server = parse_host_port(host, port)?;
    let addresses = (server.host.as_str(), server.port).to_socket_addrs();
    let mut addresses = addresses.map_err(failed(format!("can't resolve {host}")))?;
    addresses.next().ok_or_else(|| format!("{host} has no address"))
}

/// The machines that show a code: their addresses and names.
pub(super) fn search(
    interfaces: &[String],
    own: &Own,
    port: u16,
) -> Result<Vec<(SocketAddr, String)>, String> {
    let identity = own.introduction.identity;
    let mut interfaces = broadcast_interfaces(interfaces);
    interfaces.push(Interface::loopback());
    let (lanes, _) = Lane::open_all(&interfaces, port);
    let mut scan = Scan::new(&lanes, identity, &[], schedule::PAIR);
    let mut known = vec![identity];
    let mut found = Vec::new();
    while let Some(answer) = scan.next() {
        let (ip, name) = (answer.address.ip(), answer.name);
        let Some(shown) = answer.identity.filter(|shown| !known.contains(shown)) else { continue };
        if !Subnets::now().contain(ip) {
            continue;
        }
        if found.is_empty() {
            scan.end_within(MORE_ANSWERS);
        }
        known.push(shown);
        let name = if name.is_empty() { ip.to_string() } else { format!("{name} ({ip})") };
        found.push((answer.address, name));
    }
    if found.is_empty() {
        return Err("no machine here shows a code: run 'ollana pair' on the other one first.\n\
                    If it does, name its address: ollana pair CODE ADDRESS"
            .to_owned());
    }
    Ok(found)
}

/// Tries the code on each machine until one takes it.
pub(super) fn join_any(
    own: &Own,
    code: &PairingCode,
    machines: &[(SocketAddr, String)],
) -> Result<Peer, String> {
    let key = code.key();
    let mut joined = Err(String::new());
    for (address, name) in machines {
        joined = joined.or_else(|_| join(own, &key, *address, name));
    }
    joined
}

fn join(own: &Own, key: &Key, address: SocketAddr, name: &str) -> Result<Peer, String> {
    let unreached = failed(format!("cannot pair with {name}"));
    let socket = TcpStream::connect_timeout(&address, STEP_TIMEOUT).map_err(&unreached)?;
    socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).map_err(&unreached)?;
    let stream = Stream::new(socket);
    let refused = |error| match error {
        SecureError::Handshake(error @ NoiseError::OwnIdentity) => unreached(error.into()),
        SecureError::Connect(error) if !is_end(&error) => unreached(error),
        _ => format!(
            "{name} does not take this code:\nit is mistyped, used, or older than 3 minutes"
        ),
    };
    let me = &own.introduction;
    let peer = secure::initiate(&stream, Purpose::Pairing, key, me, STEP_TIMEOUT, None);
    let peer = peer.map_err(refused)?;
    let key = exchange_halves(&stream).map_err(&unreached)?;
    keep(own, peer, key)
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
}

fn exchange_halves(stream: &Stream) -> io::Result<Key> {
    let receive = |buffer: &mut [u8]| {
        secure::receive(stream, buffer, STEP_TIMEOUT, None).map_err(|(_, error)| error)
    };
    let (mut theirs, mut kept) = ([0; HALF], [0; KEPT.len()]);
    receive(&mut theirs)?;
    let half = system::random()?;
    stream.write_all(&half, STEP_TIMEOUT)?;
    receive(&mut kept)?;
    if kept != KEPT {
        return Err(NoiseError::Record.into());
    }
    Ok(Key::of_halves(&theirs, &half))
}
