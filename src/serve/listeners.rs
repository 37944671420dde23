//! Binds the addresses of the proxies, and says what to do about one that can't be bound.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::mode::{Mode, ask};
use crate::config::{ModeChoice, OLLAMA_PORT, OllamaUrl, POOLED_PORT, SERVER_PORT, Settings};
use crate::net::socket;
use crate::upstream::CheckResult;

/// How long the program that holds a port may take to say what it is.
const HOLDER_TIME: Duration = Duration::from_millis(500);

/// Binds the client's addresses: the given ones, or Ollama's own on the loopback. Beside an Ollama
/// that has that port, another port.
pub(super) fn client(settings: &Settings, mode: Mode) -> Result<Vec<TcpListener>, String> {
    if !mode.is_client() {
        return Ok(Vec::new());
    }
    let is_taken = mode == Mode::Both && settings.ollama_url().port == OLLAMA_PORT;
    let port = if is_taken { POOLED_PORT } else { OLLAMA_PORT };
    let loopback = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    bind(settings, &settings.listen, &loopback)
}

/// Binds the server's addresses: the given ones, or every IPv4 address of this machine.
pub(super) fn server(settings: &Settings, mode: Mode) -> Result<Vec<TcpListener>, String> {
    if !mode.is_server() {
        return Ok(Vec::new());
    }
    let given = if mode == Mode::Both { &settings.share } else { &settings.listen };
    bind(settings, given, &[(Ipv4Addr::UNSPECIFIED, SERVER_PORT).into()])
}

/// Binds the `given` addresses, or the `default` ones, of which IPv6 ones may fail.
fn bind(
    settings: &Settings,
    given: &[SocketAddr],
    default: &[SocketAddr],
) -> Result<Vec<TcpListener>, String> {
    let wanted = if given.is_empty() { default } else { given };
    let mut listeners = Vec::new();
    for address in wanted {
        let may_fail = given.is_empty() && address.is_ipv6();
        match socket::listen(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if may_fail && error.kind() != ErrorKind::AddrInUse => {
                log::debug!("no IPv6 loopback here: {error}");
            }
            Err(error) => {
                let (reason, hint) = (plain(&error), hint(settings, *address, &error));
                return Err(format!("cannot listen on {address}: {reason} ({hint})"));
            }
        }
    }
    Ok(listeners)
}

/// What to do about an address that can't be bound; asks the program that holds it what it is.
fn hint(settings: &Settings, address: SocketAddr, error: &io::Error) -> &'static str {
    if error.kind() != ErrorKind::AddrInUse {
        return "choose another with --listen ADDR:PORT";
    }
    let ip = address.ip();
    let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
    let holder = OllamaUrl { host, port: address.port(), prefix: String::new() };
    let shares = matches!(settings.mode, ModeChoice::Server | ModeChoice::Both);
    match ask(settings, &holder, HOLDER_TIME) {
        CheckResult::Healthy { .. } if shares => {
            "Ollama is running there; choose another address with --listen ADDR:PORT"
        }
        CheckResult::Healthy { .. } => {
            "Ollama is running there; share it with --mode server, or with --mode both"
        }
        CheckResult::Refused(reason) if reason.contains("ollana") => {
            "another ollana is running there already; a second one needs --listen ADDR:PORT"
        }
        _ => match std::env::consts::OS {
            "windows" => {
                "another program has it, see netstat -ano; choose another with --listen ADDR:PORT"
            }
            "macos" => {
                "another program has it, see lsof -i -P; choose another with --listen ADDR:PORT"
            }
            _ => "another program has it, see ss -ltnp; choose another with --listen ADDR:PORT",
        },
    }
}

pub(super) fn plain(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "address in use".to_owned(),
        ErrorKind::AddrNotAvailable => "not an address of this machine".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
