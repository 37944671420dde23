//! What every check of the doctor asks: `GET /api/version`.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderName, Response};

use crate::config::Settings;
use crate::http::fields;
use crate::ollama::endpoints::VERSION;
use crate::upstream;

/// An answer may take this long.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// For [`get`], where the answer shall not depend on the `Host`.
pub(super) const LOCALHOST: (HeaderName, &str) = (HOST, "localhost");

/// Whether a proxy of ours was involved.
pub(super) fn is_from_ollana(answer: &Response<String>) -> bool {
    fields::is_from_ollana(answer.headers())
}

/// Ollama's version, if the answer tells one.
pub(super) fn version(answer: &Response<String>) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(answer.body()).ok()?;
    Some(json.get("version")?.as_str()?.chars().take(64).collect())
}

pub(super) fn get(
    settings: &Settings,
    address: SocketAddr,
    fields: &[(HeaderName, &str)],
) -> io::Result<Response<String>> {
    let fields = [fields, &[(USER_AGENT, fields::DOCTOR)]].concat();
    let answer = upstream::get(&settings.timing, address, VERSION, &fields, PATIENCE);
    answer.map_err(|error| match error.kind() {
        ErrorKind::Other | ErrorKind::UnexpectedEof => io::Error::other("this is no HTTP"),
        _ => error,
    })
}
