//! What another machine hears of the account that a server's Ollama uses, and what it may do with it.
//!
//! Enough for the cloud's models to be used: whether the Ollama is signed in, and its plan. Nothing
//! that tells who its owner is, and no link by which somebody else could sign it in. With
//! `--cloud off`, no request of another machine passes that might use the account.

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::judged::Judged;
use super::{End, Exchange, OwnAnswer, Side};
use crate::access::permissions::Refusal;
use crate::http::fields::SERVER_FIELD;
use crate::http::head::Framing;
use crate::manager::Inventories;
use crate::ollama::endpoints::Class;
use crate::ollama::model_name::ModelName;
use crate::ollama::subject::Subject;
use crate::proxy::request_body::RequestBody;

/// Characters of a plan's name that are told.
const PLAN: usize = 64;

impl<'a> Exchange<'a> {
    /// Whether an answer of this status may tell more of the account than the caller is to know.
    pub(super) fn hides_account(&self, status: StatusCode) -> bool {
        let is_told = self.context.side == Side::Client || self.connection.caller().is_trusted();
        let is_about = self.endpoint.class == Class::Whoami || status == StatusCode::UNAUTHORIZED;
        is_about && !is_told
    }

    /// Whether the request may not use the account.
    pub(super) fn keeps_from_cloud(&self) -> bool {
        let policy = self.context.settings.policy;
        self.context.side == Side::Server && policy.keeps_from_cloud(self.connection.caller())
    }

    /// Lets a request through only if the model that it names runs on this machine, and searches
    /// nothing in the web. What can't be looked at to its end doesn't pass. What its body is about.
    pub(super) fn hold_to_this_machine(
        &mut self,
        body: &mut RequestBody<'a>,
    ) -> Result<Option<Subject>, OwnAnswer> {
        let mut model = self.endpoint.model_in_path(&self.head.target);
        let mut is_fit = model.as_ref().is_none_or(|model| !model.is_cloud());
        let is_open = self.endpoint.class == Class::Open;
        let mut seen = None;
        if is_open && self.endpoint.names_model() && self.framing != Framing::Empty {
            seen = self.look_at_whole(body)?;
            is_fit = seen.as_ref().is_some_and(|subject| {
                let model = subject.model.as_deref().and_then(ModelName::parse);
                let is_cloud = subject.names_cloud || model.is_some_and(|model| model.is_cloud());
                !is_cloud && !subject.searches_web
            });
            let named = seen.as_ref().and_then(|subject| subject.model.as_deref());
            model = named.and_then(ModelName::parse);
        }
        if let Some(model) = model.filter(|_| is_open && is_fit) {
            // A stub may have any name.
            let Inventories { backends, known, .. } = self.context.mailbox.inventories();
            let is_told = backends == 0 || !known.is_empty();
            is_fit = is_told && !known.iter().any(|(_, known)| known.is_remote(&model));
        }
        if is_fit { Ok(seen) } else { Err(self.forbidden(Refusal::Cloud)) }
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
