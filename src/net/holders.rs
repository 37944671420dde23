//! The programs that have a port, from Linux's /proc/self/net (sockets) and /proc/PID/fd (their
//! processes). Only root sees those of other users.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// A socket that waits for connections or datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) address: SocketAddr,
    pub(crate) is_udp: bool,
    inode: u64,
    /// Its program and process number.
    pub(crate) program: Option<(String, u32)>,
}

/// Every such socket on these ports; nothing where /proc isn't Linux's.
pub(crate) fn holders(ports: &[u16]) -> Vec<Holder> {
    let mut found = Vec::new();
    for (file, is_udp) in [("tcp", false), ("tcp6", false), ("udp", true), ("udp6", true)] {
        let text = fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| parse(line, is_udp)));
    }
    found.retain(|holder| ports.contains(&holder.address.port()));
    if !found.is_empty() {
        let programs = programs(&found.iter().map(|holder| holder.inode).collect::<Vec<_>>());
        for holder in &mut found {
            holder.program = programs.get(&holder.inode).cloned();
        }
    }
    found
}

/// A line of /proc/net/tcp or udp, if it is of a socket that waits.
fn parse(line: &str, is_udp: bool) -> Option<Holder> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // TCP_CLOSE, which is what an unconnected UDP socket has, and TCP_LISTEN.
    let is_waiting = *fields.get(3)? == if is_udp { "07" } else { "0A" };
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => IpAddr::from(bytes),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    let address = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
    let inode = fields.get(9)?.parse().ok()?;
    is_waiting.then_some(Holder { address, is_udp, inode, program: None })
}

/// The programs that have these sockets open, where that may be seen.
fn programs(inodes: &[u64]) -> HashMap<u64, (String, u32)> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(fd.path()).unwrap_or_default();
            let inode = link.to_str().and_then(|link| {
                link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
            });
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.insert(inode, (name.trim().to_owned(), pid));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernels_tables() {
        let line = "   1: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4711 1 0";
        let holder = parse(line, false).unwrap();
        assert_eq!(holder.address, "127.0.0.1:11434".parse().unwrap());
        assert_eq!(holder.inode, 4711);
        assert_eq!(parse(&line.replace(" 0A ", " 01 "), false), None, "a connection");
        let line = line.replace("0100007F", "00000000000000000000000001000000");
        assert_eq!(parse(&line, false).unwrap().address, "[::1]:11434".parse().unwrap());
        for junk in ["", "1:", "a b c d", "1: zz:1 0:0 0A"] {
            assert_eq!(parse(junk, false), None, "{junk}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn own_sockets_are_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = holders(&[address.port()]);
        let holder = found.iter().find(|holder| holder.address == address).expect("found");
        assert_eq!(holder.program.as_ref().map(|(_, pid)| *pid), Some(std::process::id()));
    }
}
