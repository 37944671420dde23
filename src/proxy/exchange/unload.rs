//! `POST /ollana/unload?server=ID&model=NAME`: takes a model out of a server's memory, for the button on
//! the page. The server goes by its `id` in the state, as names may be several servers'.
//!
//! Ollama's own way, `POST /api/generate` with `keep_alive: 0`, is open to pages of every origin that
//! Ollama's rules let in, and passed on by the model's name. This one is for our page in a browser of
//! this machine: the page carries a token that is made anew at every start. A page of another site can't
//! read it, for want of CORS fields, nor send the field that it is shown in without a preflight, which
//! nobody answers with a yes. `Origin` and `Sec-Fetch-Site` have to be those of our page, too.

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{HeaderName, ORIGIN};
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::own::ask;
use super::{Exchange, OwnAnswer};
use crate::access::cors::{self, SEC_FETCH_SITE};
use crate::http::target::query_value;
use crate::manager::Refused;
use crate::manager::pool::{Outcome, ServerNow, Wanted};
use crate::net::untrusted_text::printable;
use crate::ollama::endpoints::{GENERATE, Task};
use crate::ollama::model_name::ModelName;
use crate::ollama::pull;
use crate::pairing::noise::Key;
use crate::system::{Hex, parse_hex, random};
use crate::upstream::exchange_io::Attempt;

/// Below `/ollana`.
pub(super) const PATH: &str = "/unload";
const TOKEN: HeaderName = HeaderName::from_static("x-ollana-token");
/// What the key signs to make the token.
const PURPOSE: &[u8] = b"page";
/// Ollama answers at once, but its machine may be busy.
const TIME: Duration = Duration::from_secs(30);

/// None where the system has no random bytes: then no token is right.
static KEY: LazyLock<Option<Key>> = LazyLock::new(|| random().ok().map(Key::new));

/// What the page has to show.
pub(super) fn token() -> Option<String> {
    KEY.as_ref().map(|key| Hex(&key.authenticate(PURPOSE)).to_string())
}

/// Whether the browser says that a page of ours sends this. Programs say nothing.
fn is_of_our_page(fields: &HeaderMap) -> bool {
    fields.get_all(ORIGIN).into_iter().all(|origin| cors::is_own(origin, fields))
        && fields.get_all(SEC_FETCH_SITE).into_iter().all(|site| site == "same-origin")
}

/// Takes the same time for every wrong token.
fn shows_token(fields: &HeaderMap) -> bool {
    let shown = fields.get(TOKEN).and_then(|shown| parse_hex(shown.to_str().ok()?));
    let key = KEY.as_ref().zip(shown);
    key.is_some_and(|(key, shown)| key.verifies(PURPOSE, &shown))
}

fn failed(status: u16, error: String) -> (u16, Value) {
    (status, json!({ "error": error }))
}

impl Exchange<'_> {
    /// The status and the body of the answer.
    pub(super) fn unload(&self, query: &str) -> Result<(u16, Value), OwnAnswer> {
        let fields = &self.head.fields;
        if !self.connection.is_own() {
            return Err(OwnAnswer::OwnPathClosed);
        }
        if !is_of_our_page(fields) {
            return Err(OwnAnswer::OwnPathForeignPage);
        }
        if self.head.method != Method::POST {
            return Err(OwnAnswer::OwnPathMethod);
        }
        if !shows_token(fields) {
            return Err(OwnAnswer::OwnPathToken);
        }
        let id = query_value(query, "server").and_then(|id| id.parse::<u32>().ok());
        let model = query_value(query, "model").and_then(|name| ModelName::parse(&name));
        let Some((id, model)) = id.zip(model) else {
            return Ok(failed(400, "unload?server=ID&model=NAME: one is missing".to_owned()));
        };
        let snapshot = self.context.mailbox.snapshot().ok_or(OwnAnswer::NoState)?;
        // A server's proxy reaches no other Ollama than its own.
        let mut servers =
            snapshot.servers.iter().filter(|it| self.is_client() || it.origin == "local");
        let Some(server) = servers.find(|server| server.backend.id.0 == id) else {
            return Ok(failed(404, format!("no server has the id {id} here")));
        };
        let name = printable(&server.name);
        if let Some(reason) = server.backend.health.down_reason() {
            return Ok(failed(409, format!("{name} is down: {}", printable(reason))));
        }
        if !server.backend.models.has_loaded(&model) {
            let model = model.as_str();
            return Ok(failed(404, format!("{name} doesn't have {model:?} in memory")));
        }
        Ok(match self.unload_from(server, &model) {
            Ok(()) => (200, json!({ "server": name, "unloaded": model.as_str() })),
            Err(error) => failed(502, format!("{name}: {error}")),
        })
    }

    fn unload_from(&self, server: &ServerNow, model: &ModelName) -> Result<(), String> {
        let address = server.backend.addresses.first().ok_or("it has no address")?;
        let wanted = Wanted {
            task: Task::Unload,
            server: self.is_client().then(|| address.to_string()),
            client: Some(self.connection.peer.ip()),
            local_only: !self.is_client(),
            is_exempt: true,
            ..Wanted::default()
        };
        let mut lease = self.lease(&[], &wanted).map_err(|refused| match refused {
            Refused::NoServer(why) | Refused::OwnerAway(why) => why,
            Refused::QueueFull => "it is busy".to_owned(),
        })?;
        let attempt = Attempt { is_lan: !lease.pick.is_local, ..Attempt::default() };
        let uri = self.uri(&lease, GENERATE)?;
        let body = json!({ "model": model.as_str(), "keep_alive": 0, "stream": false });
        let request = (Method::POST, uri, Some(body.to_string()));
        let (status, answer) = ask(self.upstream, attempt, request, TIME)?;
        lease.report.outcome = Outcome::Answered;
        if !status.is_success() {
            let error = pull::error(&answer).map(|error| printable(&error));
            return Err(error.unwrap_or_else(|| format!("it answers with status {status}")));
        }
        log::info!("model unloaded model={:?} server={:?}", model.as_str(), lease.pick.name);
        lease.report.loaded = Some((model.clone(), false));
        Ok(())
    }
}
