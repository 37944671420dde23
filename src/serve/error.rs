//! Why a daemon can't start, in words that say what to do.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use crate::pairing::key_files::KeysError;

/// Why a daemon can't start; exit code 1.
#[derive(Debug)]
pub enum StartError {
    /// An HTTP address can't be bound. The text says what to do.
    Listen(SocketAddr, io::Error, String),
    /// The discovery's UDP port can't be bound.
    Discovery(u16, io::Error),
    /// The keys can't be used.
    Keys(KeysError),
    /// The system refuses what the text says.
    System(&'static str, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen(address, error, hint) => {
                write!(f, "cannot listen on {address}: {} ({hint})", plain(error))
            }
            StartError::Discovery(port, error) => write!(
                f,
                "cannot listen on UDP port {port}: {} (is another ollana server running here? \
                 try --discovery-port N)",
                plain(error)
            ),
            StartError::Keys(error) => write!(f, "{error}"),
            StartError::System(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

fn plain(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "address in use".to_owned(),
        ErrorKind::AddrNotAvailable => "not an address of this machine".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// For `map_err`: `what` was being done.
pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System(what, error)
}
