//! What another machine hears of the account that a server's Ollama uses.
//!
//! Enough for the cloud's models to be used: whether the Ollama is signed in, and its plan. Nothing
//! that tells who its owner is, and no link by which somebody else could sign it in.

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::forward::Judged;
use super::{End, Exchange, Side};
use crate::http::fields::SERVER_FIELD;
use crate::ollama::endpoints::Class;

/// Characters of a plan's name that are told.
const PLAN: usize = 64;

impl Exchange<'_> {
    /// Whether an answer of this status may tell more of the account than the caller is to know.
    pub(super) fn hides_account(&self, status: StatusCode) -> bool {
        let is_told = self.context.side == Side::Client || self.connection.caller().is_trusted();
        let is_about = self.endpoint.class == Class::Whoami || status == StatusCode::UNAUTHORIZED;
        is_about && !is_told
    }

    /// Answers with what the caller may know of such an answer, if that is less.
    pub(super) fn reduce(&self, answer: &Judged) -> Option<End> {
        let status = answer.answer.status();
        let told: Value = serde_json::from_slice(&answer.start).unwrap_or_default();
        let is_whoami = self.endpoint.class == Class::Whoami;
        let error = |status, text| (status, self.endpoint.dialect.error(status, text));
        let (status, body) = match (status, told["plan"].as_str()) {
            (StatusCode::UNAUTHORIZED, _) if is_whoami || told.get("signin_url").is_some() => {
                error(401, "unauthorized")
            }
            _ if !is_whoami => return None,
            (StatusCode::OK, Some(plan)) => {
                let plan: String = plan.chars().take(PLAN).collect();
                // Ollama's programs take an account without a name for none.
                (200, json!({ "name": self.context.machine, "plan": plan }))
            }
            _ => error(503, "account unavailable"),
        };
        let mut fields = HeaderMap::new();
        fields.extend(self.context.own_name.clone().map(|name| (SERVER_FIELD, name)));
        Some(self.answer(status, fields, &body.to_string()))
    }
}
