//! What a request needs of a server, as far as that matters, and what has to be rewritten for it.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, HeaderValue};

use super::{Exchange, OwnAnswer};
use crate::access::permissions::{self, Refusal};
use crate::http::fields::SERVER_FIELD;
use crate::http::head::Framing;
use crate::manager::pool::{Task, Wanted};
use crate::ollama::endpoints;
use crate::ollama::subject::{self, Subject};
use crate::proxy::request_body::{BodyReader, RequestBody};
use crate::upstream::exchange_io::{Attempt, Fault};

/// Bytes of a body that are looked at for the model's name.
const SUBJECT_LIMIT: usize = 64 * 1024;

fn is_plain(fields: &HeaderMap) -> bool {
    !fields.contains_key(CONTENT_ENCODING)
}

impl Exchange<'_> {
    /// Bytes of the body that are kept: all that may be sent again, or what tells its subject.
    pub(super) fn keep_limit(&self) -> usize {
        match self.route.is_repeatable {
            true => self.context.limits.replay_limit,
            false => SUBJECT_LIMIT,
        }
    }

    /// Receives the start of the body before there is an upstream.
    fn prefetch(
        &mut self,
        body: &mut RequestBody<'_>,
        is_enough: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), OwnAnswer> {
        let client = Some(self.connection.stream().clone());
        self.upstream.begin(Attempt { client, ..Attempt::default() });
        BodyReader::new(self.connection, body, self.context.timing.body_timeout)
            .prefetch(SUBJECT_LIMIT, is_enough)
            .map_err(|_| self.fault().unwrap_or(OwnAnswer::Fault(Fault::ClientLeft)))
    }

    fn replace_body(&mut self, body: &mut RequestBody<'_>, other: Vec<u8>) {
        self.framing = Framing::Length(other.len() as u64);
        body.replace(other);
    }

    /// Lets a pull through only if it is one from Ollama's own registry, in words of our own.
    pub(super) fn hold_to_registry(&mut self, body: &mut RequestBody<'_>) -> Result<(), OwnAnswer> {
        self.prefetch(body, &|_| false)?;
        let whole = Some(body.kept()).filter(|_| is_plain(&self.head.fields) && body.is_done());
        let known = whole.and_then(permissions::registry_pull);
        let known = known.ok_or_else(|| self.forbidden(Refusal::Registry))?;
        self.replace_body(body, known);
        Ok(())
    }

    /// What the request needs. Reads as much of the body as it takes to see the model's name, if
    /// there is a choice.
    pub(super) fn wanted(&mut self, body: &mut RequestBody<'_>) -> Result<Wanted, OwnAnswer> {
        let client = self.connection.peer().ip();
        if !self.is_client() {
            return Ok(Wanted { client: Some(client), local_only: true, ..Wanted::default() });
        }
        let mut server = self.named_server();
        let is_pull = self.route.task == Task::Pull;
        let has_choice = is_pull || self.context.wakes || self.context.presence.backends() > 1;
        let names_model = self.route.names_model && is_plain(&self.head.fields);
        let mut subject = Subject::default();
        if has_choice && names_model && self.framing != Framing::Empty {
            // Of a create the rest matters too, and a pull's body may have to be rewritten.
            let takes_all = matches!(self.route.task, Task::Pull | Task::Build);
            let is_enough = |bytes: &[u8]| !takes_all && subject::subject(bytes).model.is_some();
            self.prefetch(body, &is_enough)?;
            subject = subject::subject(body.kept());
        }
        let named = subject.model.clone().filter(|_| is_pull && body.is_done());
        if let Some((model, place)) = named.as_deref().and_then(endpoints::split_server)
            && let Some(renamed) = endpoints::rename_model(body.kept(), model)
        {
            self.replace_body(body, renamed);
            subject.model = Some(model.to_owned());
            server = Some(place.to_owned());
        }
        Ok(self.route.wanted(&subject, client, server))
    }

    /// The server that the request asks for. Only programs of this machine may choose: a choice
    /// passes over bans.
    fn named_server(&self) -> Option<String> {
        let name: &HeaderValue = self.head.fields.get(SERVER_FIELD)?;
        let name = name.to_str().ok().filter(|_| self.connection.caller().is_trusted());
        name.map(str::to_owned)
    }
}
