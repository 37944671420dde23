//! Binds the addresses of the proxies, and says what to do when one is taken.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::StartError;
use super::mode::{Mode, ask};
use crate::config::{ModeChoice, OLLAMA_PORT, OllamaUrl, POOLED_PORT, SERVER_PORT, Settings};
use crate::net::socket;
use crate::upstream::CheckResult;

/// How long the program that holds a port may take to say what it is.
const HOLDER_TIME: Duration = Duration::from_millis(500);

/// Binds the client's addresses: the given ones, or Ollama's own on the loopback. Beside an Ollama
/// that has that port, another port.
pub(super) fn client(settings: &Settings, mode: Mode) -> Result<Vec<TcpListener>, StartError> {
    if !mode.is_client() {
        return Ok(Vec::new());
    }
    let is_taken = mode == Mode::Both && settings.ollama_url().port == OLLAMA_PORT;
    let port = if is_taken { POOLED_PORT } else { OLLAMA_PORT };
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    bind(settings, &settings.listen, &loopback.map(|ip| SocketAddr::new(ip, port)))
}

/// Binds the server's addresses: the given ones, or every IPv4 address of this machine.
pub(super) fn server(settings: &Settings, mode: Mode) -> Result<Vec<TcpListener>, StartError> {
    if !mode.is_server() {
        return Ok(Vec::new());
    }
    let given = if mode == Mode::Both { &settings.share } else { &settings.listen };
    bind(settings, given, &[SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVER_PORT)])
}

/// Binds the `given` addresses, or the `default` ones, of which IPv6 ones may fail.
fn bind(
    settings: &Settings,
    given: &[SocketAddr],
    default: &[SocketAddr],
) -> Result<Vec<TcpListener>, StartError> {
    let wanted = if given.is_empty() { default } else { given };
    let mut listeners = Vec::new();
    for address in wanted {
        match socket::listen(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => {
                let is_taken = error.kind() == ErrorKind::AddrInUse;
                if !given.is_empty() || address.is_ipv4() || is_taken {
                    let hint = hint(settings, *address, &error);
                    return Err(StartError::Listen(*address, error, hint));
                }
                log::debug!("no IPv6 loopback here: {error}");
            }
        }
    }
    Ok(listeners)
}

/// What to do about an address that can't be bound; asks the program that holds it what it is.
fn hint(settings: &Settings, address: SocketAddr, error: &io::Error) -> String {
    if error.kind() != ErrorKind::AddrInUse {
        return "choose another with --listen ADDR:PORT".to_owned();
    }
    let ip = address.ip();
    let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
    let holder = OllamaUrl { host, port: address.port(), prefix: String::new() };
    let shares = matches!(settings.mode, ModeChoice::Server | ModeChoice::Both);
    let hint = match ask(settings, &holder, HOLDER_TIME) {
        CheckResult::Healthy { .. } if shares => {
            "Ollama is running there; choose another address with --listen ADDR:PORT"
        }
        CheckResult::Healthy { .. } => {
            "Ollama is running there; share it with --mode server, or with --mode both"
        }
        CheckResult::Refused(reason) if reason.contains("ollana") => {
            "another ollana is running there already; a second one needs --listen ADDR:PORT"
        }
        _ => "another program has it, see ss -ltnp; choose another with --listen ADDR:PORT",
    };
    hint.to_owned()
}
