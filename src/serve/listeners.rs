//! The addresses of the proxies, and what to say when one is taken.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::StartError;
use super::mode::{Mode, ask};
use crate::config::{ModeChoice, OLLAMA_PORT, OllamaUrl, POOLED_PORT, SERVER_PORT, Settings};
use crate::manager::pool::CheckResult;
use crate::net::socket;

/// How long the holder of a taken port may take to say who it is.
const HOLDER_TIME: Duration = Duration::from_millis(500);

/// Binds the client's addresses: the given ones, or Ollama's own. Next to an Ollama that has that
/// port, another one.
pub(super) fn client(
    settings: &Settings,
    mode: Mode,
    ollama: &OllamaUrl,
) -> Result<Vec<TcpListener>, StartError> {
    let is_taken = mode == Mode::Both && ollama.port == OLLAMA_PORT;
    let port = if is_taken { POOLED_PORT } else { OLLAMA_PORT };
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    bind(settings, &settings.listen, &own.map(|ip| SocketAddr::new(ip, port)))
}

/// Binds the server's addresses: the given ones, or every address of this machine.
pub(super) fn server(settings: &Settings, mode: Mode) -> Result<Vec<TcpListener>, StartError> {
    let given = if mode == Mode::Both { &settings.share } else { &settings.listen };
    bind(settings, given, &[SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVER_PORT)])
}

/// On a machine without IPv6, an own `[::1]` is left out.
fn bind(
    settings: &Settings,
    given: &[SocketAddr],
    own: &[SocketAddr],
) -> Result<Vec<TcpListener>, StartError> {
    let wanted = if given.is_empty() { own } else { given };
    let mut listeners = Vec::new();
    for address in wanted {
        match socket::listen(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error)
                if given.is_empty()
                    && address.is_ipv6()
                    && error.kind() != ErrorKind::AddrInUse =>
            {
                log::debug!("no IPv6 loopback here: {error}");
            }
            Err(error) => {
                let hint = hint(settings, *address, &error);
                return Err(StartError::Listen { address: *address, error, hint });
            }
        }
    }
    Ok(listeners)
}

/// What to do about an address that can't be had. Asks whoever holds it who it is.
fn hint(settings: &Settings, address: SocketAddr, error: &io::Error) -> String {
    if error.kind() != ErrorKind::AddrInUse {
        return "choose another with --listen ADDR:PORT".to_owned();
    }
    let ip = address.ip();
    let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
    let holder = OllamaUrl { host, port: address.port(), prefix: String::new() };
    match ask(settings, &holder, HOLDER_TIME) {
        CheckResult::Healthy { .. }
            if matches!(settings.mode, ModeChoice::Server | ModeChoice::Both) =>
        {
            "Ollama is running there; choose another address with --listen ADDR:PORT".to_owned()
        }
        CheckResult::Healthy { .. } => {
            "Ollama is running there; share it with --mode server, or with --mode both".to_owned()
        }
        CheckResult::Refused(reason) if reason.contains("ollana") => {
            "another ollana is running there already; a second one needs --listen ADDR:PORT"
                .to_owned()
        }
        _ => "another program has it, see ss -ltnp; choose another with --listen ADDR:PORT"
            .to_owned(),
    }
}
