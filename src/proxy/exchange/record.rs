//! What is counted, remembered and logged of an exchange.

use std::time::{Duration, Instant};

use http::header::USER_AGENT;

use super::Exchange;
use crate::counters::{Done, Failure, Retry, TransferGuard};
use crate::http::fields;
use crate::http::head::Framing;
use crate::http::target::split_query;
use crate::manager::Lease;
use crate::manager::pool::{Outcome, Wanted};
use crate::ollama::{endpoints, model_name::ModelName, subject};
use crate::proxy::request_body::RequestBody;

/// Characters of a method and of a path that are logged.
const LOGGED_METHOD: usize = 20;
const LOGGED_PATH: usize = 200;

impl Exchange<'_> {
    pub(super) fn path(&self) -> &str {
        split_query(&self.head.target).0
    }

    /// Shows how far a pull, a push, a create or an upload has come, until the result is dropped.
    pub(super) fn show_progress(
        &self,
        wanted: &Wanted,
        body: &RequestBody<'_>,
    ) -> Option<TransferGuard> {
        let kind = self.endpoint.progress?;
        let is_upload = self.endpoint.is_upload();
        let digest = self.path().rsplit('/').next();
        let name = digest.filter(|_| is_upload).unwrap_or_default();
        let total = match self.framing {
            Framing::Length(length) if is_upload => length,
            _ => 0,
        };
        // Where there is one Ollama, only the bodies of pulls were received before.
        let seen =
            || subject::subject(&body.kept.bytes).model.as_deref().and_then(ModelName::parse);
        let model = wanted.model.clone().or_else(seen).filter(|_| name.is_empty());
        let transfers = &self.context.presence.counters().transfers;
        Some(transfers.begin(kind, model.as_ref().map_or(name, |model| model.as_str()), total))
    }

    /// Adds to a counter of the server, and to the same one of all servers.
    pub(super) fn count(&self, lease: &Lease, amount: u64, add: impl Fn(&Done, u64)) {
        if amount > 0 {
            add(&lease.pick.tally, amount);
            add(&self.context.presence.counters().all, amount);
        }
    }

    pub(super) fn count_retry(&self, outcome: Outcome) {
        let why = match outcome {
            Outcome::Unreachable => Retry::Unreached,
            Outcome::Overloaded | Outcome::TurnedAway | Outcome::Declined => Retry::Busy,
            Outcome::Failed
            | Outcome::Answered
            | Outcome::Erred
            | Outcome::Unauthorized
            | Outcome::Void => Retry::Failed,
        };
        self.context.presence.counters().retried(why);
    }

    /// Remembers a failure for people who look at the state, unless it was provoked.
    pub(super) fn note(&self, status: u16, cause: &'static str, reason: &str) {
        let is_doctors = self.head.fields.get(USER_AGENT).is_some_and(|it| it == fields::DOCTOR);
        if is_doctors && self.path() == endpoints::VERSION {
            return;
        }
        self.context.presence.counters().note(Failure {
            at: Instant::now(),
            status,
            cause,
            method: self.head.method.to_string(),
            path: self.head.target.clone(),
            reason: reason.to_owned(),
        });
    }

    /// The access line; 499 stands for a client that left. Nothing that could be a prompt is in
    /// it: no body, and of the target only the path.
    pub(super) fn log(&self, status: u16, backend: &str, down: u64, first_byte: Option<Duration>) {
        self.context.presence.counters().request(self.endpoint.kind, status, first_byte);
        if log::log_enabled!(log::Level::Debug) {
            let first_byte = first_byte.map(|time| format!(" ttfb_ms={}", time.as_millis()));
            log::debug!(
                "request method={:?} path={:?} status={status} server={backend:?} up={} \
                 down={down}{} duration_ms={}",
                start_of(self.head.method.as_str(), LOGGED_METHOD),
                start_of(self.path(), LOGGED_PATH),
                self.connection.body_bytes,
                first_byte.unwrap_or_default(),
                self.started.elapsed().as_millis()
            );
        }
    }
}

fn start_of(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}
