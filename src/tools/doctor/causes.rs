//! Why a server can't be used: one diagnosis for each cause, and what to do about it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::ask;
use crate::config::{OLLAMA_PORT, SERVER_PORT, Settings};
use crate::http::fields::{self, ERROR_FIELD};
use crate::net::interfaces::Subnets;
use crate::net::socket;
use crate::system;

/// To connect to a port may take this long: Windows tells after 2 s that nobody listens.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Linux doubts a hardware address that it has long known, and forgets it, within this time while
/// somebody sends there.
const DOUBT: Duration = Duration::from_secs(9);
const LOOK: Duration = Duration::from_millis(500);

/// What became of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Open,
    Refused,
    Silent,
    /// This machine, or a router, knows no way there.
    NoWay,
}

/// What was found out about a server that can't be used.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// The port where it should be.
    own: Port,
    /// Whether somebody listens on ollana's usual port, and on Ollama's, though not on that one.
    has_ollana: bool,
    has_ollama: bool,
    /// Whether its network card answers, where that can be told.
    is_on: Option<bool>,
    /// What ollana there gives as the cause of its refusal.
    refusal: Option<String>,
}

/// A diagnosis, and what to do.
pub(super) type Diagnosis = (String, String);

impl Evidence {
    pub(super) fn gather(settings: &Settings, address: SocketAddr) -> Self {
        let own = knock(address);
        let [has_ollana, has_ollama] = [SERVER_PORT, OLLAMA_PORT].map(|port| {
            let is_other = own == Port::Refused && port != address.port();
            is_other && knock(SocketAddr::new(address.ip(), port)) == Port::Open
        });
        let answer = ask::get(settings, address, &[]).ok();
        let refusal = answer.filter(|answer| fields::is_from_ollana(answer.headers()));
        let refusal = refusal.and_then(|answer| {
            let cause = answer.headers().get(ERROR_FIELD)?.to_str().ok()?;
            Some(cause.to_owned())
        });
        let is_on = match own {
            Port::Open | Port::Refused => Some(true),
            Port::Silent | Port::NoWay => is_on(address),
        };
        Evidence { own, has_ollana, has_ollama, is_on, refusal }
    }

    /// Whether it answers only machines whose key it has. The check's `reason` says so, too.
    pub(super) fn wants_pairing(&self, reason: &str) -> bool {
        self.refusal.as_deref() == Some("unpaired") || reason.contains("ollana pair")
    }

    /// Of the server called `label`, whose check found `reason`, and which answered over UDP or not.
    pub(super) fn diagnose(
        &self,
        (label, address): (&str, SocketAddr),
        reason: &str,
        udp: Option<u16>,
        subnets: &Subnets,
    ) -> Diagnosis {
        let port = address.port();
        let open = format!("ufw allow {port}/tcp, or firewall-cmd --add-port={port}/tcp");
        match (self.refusal.as_deref(), self.own, udp) {
            (Some("unpaired"), ..) => (
                format!("{label} answers paired machines only"),
                "ollana pair, here and there; or start it with --unpaired on".to_owned(),
            ),
            (Some("upstream" | "unreached"), ..) => (
                format!("ollana runs on {label}, but Ollama doesn't: {reason}"),
                "start Ollama there: ollama serve, or systemctl start ollama".to_owned(),
            ),
            (Some("full"), ..) => (
                format!("{label} has no room for another connection: {reason}"),
                "wait, or see there who has them: ollana status".to_owned(),
            ),
            // Keys that don't fit: the reason says which.
            _ if reason.contains("ollana pair") => (
                format!("{label} can't be used: {reason}"),
                "ollana pair, here and there; or start this one with --unpaired on".to_owned(),
            ),
            (_, Port::Open, _) => (
                format!("{label} is there, but can't be used: {reason}"),
                "ollana doctor there says more; another program on that port: --server HOST:PORT"
                    .to_owned(),
            ),
            (_, Port::Silent, Some(udp)) => (
                format!(
                    "{label} answers UDP {udp}, but TCP {port} doesn't: a firewall there drops it"
                ),
                format!("open it there: {open}"),
            ),
            (_, Port::Refused | Port::NoWay, Some(udp)) => (
                format!("{label} answers UDP {udp}, but refuses TCP {port}: {reason}"),
                format!("if a firewall there does: {open}; else restart ollana there"),
            ),
            (_, Port::Refused, None) => self.refused(label, address),
            (_, Port::Silent | Port::NoWay, None) if !subnets.contain(address.ip()) => (
                format!(
                    "{label} is on another network, and {reason}: {}",
                    places(subnets, address.ip())
                ),
                format!(
                    "connect both to one network or VPN; or let TCP {port} through on the routers \
                     between, and in its firewall"
                ),
            ),
            (_, Port::Silent | Port::NoWay, None) => match self.is_on {
                Some(true) => (
                    format!("{label} is on, but a firewall there drops TCP {port}"),
                    format!("open it there: {open}"),
                ),
                Some(false) => (
                    format!(
                        "{label} is off, asleep, or has another address, or the Wi-Fi keeps machines \
                         apart: no network card answers"
                    ),
                    "switch it on; asleep: --wake; with another address: --server its host name; \
                     Wi-Fi: turn its client isolation off, or leave its guest network"
                        .to_owned(),
                ),
                None => (
                    format!(
                        "{label} doesn't answer: it is off or asleep, or a firewall there drops TCP {port}"
                    ),
                    format!("switch it on; asleep: --wake; a firewall: {open}"),
                ),
            },
        }
    }

    /// The machine is there, and nobody listens.
    fn refused(&self, label: &str, address: SocketAddr) -> Diagnosis {
        let (ip, port) = (address.ip(), address.port());
        if self.has_ollama {
            return (
                format!(
                    "{label} runs no ollana (TCP {port} is closed), but something on {OLLAMA_PORT}"
                ),
                format!("start ollana there; if that is an Ollama, without ollana: --server {ip}"),
            );
        }
        if self.has_ollana {
            return (
                format!("{label} has nothing on TCP {port}, but something on {SERVER_PORT}"),
                format!("--server {ip}, without a port"),
            );
        }
        (
            format!("{label} is on, but neither ollana nor an open Ollama runs there"),
            format!(
                "start Ollama there, and ollana; without ollana, its Ollama has to listen on the \
                 network: OLLAMA_HOST=0.0.0.0, and TCP {OLLAMA_PORT} open in its firewall"
            ),
        )
    }
}

fn knock(address: SocketAddr) -> Port {
    match socket::connect(address, None, PATIENCE).map_err(|error| error.kind()) {
        // Somebody takes it, even if only to cut it off at once.
        Ok(_) | Err(ErrorKind::ConnectionReset) => Port::Open,
        Err(ErrorKind::ConnectionRefused) => Port::Refused,
        Err(ErrorKind::TimedOut) => Port::Silent,
        Err(_) => Port::NoWay,
    }
}

fn is_on(address: SocketAddr) -> Option<bool> {
    let until = Instant::now() + DOUBT;
    // Linux's table, which is of IPv4; 0x2 is an address that holds, 0x0 one that doesn't any more.
    let is_known = |ip: IpAddr| {
        let table = system::neighbours();
        table.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&ip.to_string()) && words.nth(1) != Some("0x0")
        })
    };
    let ip = address.ip().to_canonical();
    if !cfg!(target_os = "linux") || ip.is_ipv6() {
        return None;
    }
    while is_known(ip) {
        if Instant::now() >= until {
            return Some(true);
        }
        let _ = socket::connect(address, None, LOOK);
    }
    Some(false)
}

/// Where this machine is, and where that one.
fn places(subnets: &Subnets, other: IpAddr) -> String {
    match subnets.own(other.is_ipv4()).as_slice() {
        [] => format!("this machine has no network, the server is {other}"),
        own => format!("this machine is {}, the server {other}", own.join(", ")),
    }
}
