//! What every check of the doctor asks: `GET /api/version`.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderName;
use http::header::HOST;
use http::response::Parts;

use crate::config::Settings;
use crate::http::fields;
use crate::ollama::endpoints::VERSION;
use crate::upstream;

/// An answer may take this long.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// For [`get`], where the answer shall not depend on the `Host`.
pub(super) const LOCALHOST: (HeaderName, &str) = (HOST, "localhost");

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Parts,
    body: String,
}

impl Answer {
    /// Whether a proxy of ours was involved.
    pub(super) fn is_from_ollana(&self) -> bool {
        fields::is_from_ollana(&self.head.headers)
    }

    /// Ollama's version, if this tells one.
    pub(super) fn version(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        Some(json.get("version")?.as_str()?.chars().take(64).collect())
    }
}

/// Asks an address of this machine.
///
/// # Errors
/// When nobody answers in time, or not in HTTP.
pub(super) fn get(
    settings: &Settings,
    address: SocketAddr,
    fields: &[(HeaderName, &str)],
) -> io::Result<Answer> {
    match upstream::get(&settings.timing, address, VERSION, fields, PATIENCE) {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            Ok(Answer { head, body })
        }
        Err(error) if matches!(error.kind(), ErrorKind::Other | ErrorKind::UnexpectedEof) => {
            Err(io::Error::other("this is no HTTP"))
        }
        Err(error) => Err(error),
    }
}
