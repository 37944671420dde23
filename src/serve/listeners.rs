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
    bind(settings, ("--listen", &settings.listen), &loopback)
}

/// Binds the server's addresses: the given ones, or every IPv4 address of this machine.
pub(super) fn server(settings: &Settings, mode: Mode) -> Result<Vec<TcpListener>, String> {
    if !mode.is_server() {
        return Ok(Vec::new());
    }
    let option = if mode == Mode::Both { "--share" } else { "--listen" };
    bind(
        settings,
        (option, settings.server_listen()),
        &[(Ipv4Addr::UNSPECIFIED, SERVER_PORT).into()],
    )
}

/// Binds the addresses given by an option, or the `default` ones, of which IPv6 ones may fail.
fn bind(
    settings: &Settings,
    (option, given): (&str, &[SocketAddr]),
    default: &[SocketAddr],
) -> Result<Vec<TcpListener>, String> {
    let wanted = if given.is_empty() { default } else { given };
    let mut listeners = Vec::new();
    for address in wanted {
        let may_fail = given.is_empty() && address.is_ipv6();
        match socket::listen(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error)
                if may_fail
                    && error.kind() != ErrorKind::AddrInUse
                    && !socket::is_shortage(&error) =>
            {
                log::debug!("no IPv6 loopback here: {error}");
            }
            Err(error) => {
                let (reason, hint) = (plain(&error), hint(settings, option, *address, &error));
                return Err(format!("cannot listen on {address}: {reason} ({hint})"));
            }
        }
    }
    Ok(listeners)
}

/// What to do about an address that can't be bound; asks the program that holds it what it is.
fn hint(settings: &Settings, option: &str, address: SocketAddr, error: &io::Error) -> String {
    if socket::is_shortage(error) {
        return "see ulimit -n".to_owned();
    }
    if error.kind() != ErrorKind::AddrInUse {
        return format!("choose another with {option} ADDR:PORT");
    }
    let ip = address.ip();
    let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
    let holder = OllamaUrl { host, port: address.port(), prefix: String::new() };
    let shares = matches!(settings.mode, ModeChoice::Server | ModeChoice::Both);
    match ask(settings, &holder, HOLDER_TIME) {
        CheckResult::Healthy { .. } if shares => {
            format!("Ollama is running there; choose another address with {option} ADDR:PORT")
        }
        CheckResult::Healthy { .. } => {
            "Ollama is running there; share it with --mode server, or with --mode both".to_owned()
        }
        CheckResult::Refused(reason) if reason.contains("ollana") => {
            format!(
                "another ollana is running there already; a second one needs {option} ADDR:PORT"
            )
        }
        _ => {
            let list = match std::env::consts::OS {
                "windows" => "netstat -ano",
                "macos" => "lsof -i -P",
                _ => "ss -ltnp",
            };
            format!("another program has it, see {list}; choose another with {option} ADDR:PORT")
        }
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
