//! What a request needs of a server, as far as that matters, and what has to be rewritten for it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use super::{Exchange, OwnAnswer};
use crate::access::permissions::{Refusal, needed};
use crate::http::fields::SERVER_FIELD;
use crate::http::head::Framing;
use crate::manager::pool::Wanted;
use crate::ollama::endpoints::{Endpoint, Task};
use crate::ollama::model_name::ModelName;
use crate::ollama::pull;
use crate::ollama::subject::{self, Subject};
use crate::proxy::request_body::{BodyReader, RequestBody};
use crate::upstream::exchange_io::{Attempt, Fault};

/// Bytes of a body that are looked at for the model's name.
const SUBJECT_LIMIT: usize = 64 * 1024;

/// Whether a body may still become a JSON object.
fn is_object(start: &[u8]) -> bool {
    start.trim_ascii_start().first().is_none_or(|first| *first == b'{')
}

fn is_plain(fields: &HeaderMap) -> bool {
    !fields.contains_key(CONTENT_ENCODING)
}

impl Exchange<'_> {
    /// Bytes of the body that are kept: all that may be sent again, or what tells its subject.
    pub(super) fn keep_limit(&self) -> usize {
        match self.endpoint.is_repeatable {
            true => self.context.settings.limits.replay_limit,
            false => SUBJECT_LIMIT,
        }
    }

    /// Receives the start of the body before there is an upstream.
    fn prefetch(
        &mut self,
        body: &mut RequestBody<'_>,
        is_enough: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), OwnAnswer> {
        let client = Some(Arc::clone(&self.connection.stream));
        self.upstream.begin(Attempt { client, ..Attempt::default() });
        BodyReader::new(self.connection, body, self.context.settings.timing.body_timeout)
            .prefetch(SUBJECT_LIMIT, is_enough)
            .map_err(|_| self.fault().unwrap_or(OwnAnswer::Fault(Fault::ClientLeft)))
    }

    fn replace_body(&mut self, body: &mut RequestBody<'_>, other: Vec<u8>) {
        self.framing = Framing::Length(other.len() as u64);
        body.kept.replace(other);
    }

    /// Lets a pull through only if it is one from Ollama's own registry, in words of our own.
    pub(super) fn hold_to_registry(&mut self, body: &mut RequestBody<'_>) -> Result<(), OwnAnswer> {
        self.prefetch(body, &|_| false)?;
        let whole =
            Some(&*body.kept.bytes).filter(|_| is_plain(&self.head.fields) && body.is_done());
        let known = whole.and_then(pull::registry_pull);
        let known = known.ok_or_else(|| self.forbidden(Refusal::Registry))?;
        self.replace_body(body, known);
        Ok(())
    }

    /// What the request needs. Reads as much of the body as it takes to see the model's name, if
    /// there is a choice.
    pub(super) fn wanted(&mut self, body: &mut RequestBody<'_>) -> Result<Wanted, OwnAnswer> {
        let client = self.connection.peer.ip();
        let is_pull = self.is_client() && self.endpoint.task == Task::Pull;
        let has_choice = is_pull
            || !self.context.settings.wake.is_empty()
            || self.context.presence.backends() > 1;
        let matters = (self.is_client() && has_choice)
            || (self.endpoint.is_inference() && self.may_be_exempt());
        let names_model = self.endpoint.names_model() && is_plain(&self.head.fields);
        let mut subject = Subject::default();
        if matters && names_model && self.framing != Framing::Empty {
            // Of a create the rest matters too, and a pull's body may have to be rewritten.
            let takes_all = matches!(self.endpoint.task, Task::Pull | Task::Build);
            let is_enough = |bytes: &[u8]| {
                !takes_all && (!is_object(bytes) || subject::subject(bytes).model.is_some())
            };
            self.prefetch(body, &is_enough)?;
            subject = subject::subject(&body.kept.bytes);
        }
        let is_exempt = is_exempt(&self.endpoint, &subject);
        if !self.is_client() {
            let client = Some(client);
            return Ok(Wanted { client, local_only: true, is_exempt, ..Wanted::default() });
        }
        let mut server = self.named_server();
        let named = subject.model.clone().filter(|_| is_pull && body.is_done());
        if let Some((model, place)) = named.as_deref().and_then(pull::split_server)
            && let Some(renamed) = pull::rename_model(&body.kept.bytes, model)
        {
            self.replace_body(body, renamed);
            subject.model = Some(model.to_owned());
            server = Some(place.to_owned());
        }
        let wanted = wanted(&self.endpoint, &self.head.target, &subject, client, server);
        Ok(Wanted { is_exempt, ..wanted })
    }

    /// Whether the body of an inference may say that no limit holds for it. Most are at hand, and
    /// don't have the words for it.
    fn may_be_exempt(&self) -> bool {
        let body = match self.framing {
            Framing::Empty => return false,
            Framing::Length(length) => {
                usize::try_from(length).ok().and_then(|n| self.connection.received().get(..n))
            }
            Framing::Chunked => None,
        };
        !is_plain(&self.head.fields) || body.is_none_or(hints_at_exemption)
    }

    /// The server that the request asks for. Only programs of this machine may choose: a choice
    /// passes over bans.
    fn named_server(&self) -> Option<String> {
        let name = self.head.fields.get(SERVER_FIELD)?.to_str().ok()?;
        self.connection.caller().is_trusted().then(|| name.to_owned())
    }
}

/// Whether one of the words stands in a body, or an escape sequence that may hide it.
fn hints_at_exemption(body: &[u8]) -> bool {
    let starts = |at: usize, word: &[u8]| {
        body[at..].get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word))
    };
    body.iter().enumerate().any(|(at, byte)| match byte {
        b'c' | b'C' => starts(at, b"cloud"),
        b'k' | b'K' => starts(at, b"keep_alive"),
        b'\\' => starts(at, b"\\u"),
        _ => false,
    })
}

/// Whether no limit of requests holds for it: anything but inference, what Ollama's cloud computes,
/// and taking a model out of memory.
fn is_exempt(endpoint: &Endpoint, subject: &Subject) -> bool {
    let model = subject.model.as_deref().and_then(ModelName::parse);
    let has_text = subject.opening.as_ref().is_some_and(|text| !text.is_empty());
    !endpoint.is_inference()
        || model.is_some_and(|model| model.is_cloud())
        || (subject.unloads && !has_text)
}

/// By what its head and its body say, who asks, and which server the client chose.
fn wanted(
    endpoint: &Endpoint,
    target: &str,
    subject: &Subject,
    client: IpAddr,
    server: Option<String>,
) -> Wanted {
    // What a create makes is new, and what it is made from matters.
    let named = if endpoint.task == Task::Build { &subject.base } else { &subject.model };
    let named = || named.as_deref().and_then(ModelName::parse);
    let model = endpoint.model_in_path(target).or_else(named);
    let conversation = subject.opening.as_ref().map(|opening| {
        let mut hasher = DefaultHasher::new();
        (client, &model, opening).hash(&mut hasher);
        hasher.finish()
    });
    let task = if subject.unloads { Task::Unload } else { endpoint.task };
    let needs = needed(endpoint.class, subject.model.as_deref());
    let client = Some(client);
    Wanted { task, model, server, client, conversation, needs, ..Wanted::default() }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn of(target: &str, subject: &Subject, client: IpAddr) -> Wanted {
        super::wanted(&Endpoint::of(&Method::POST, target), target, subject, client, None)
    }

    #[test]
    fn a_conversation_is_told_by_client_model_and_opening() {
        let subject = |model: &str, opening: &str| Subject {
            model: Some(model.to_owned()),
            opening: Some(opening.to_owned()),
            ..Subject::default()
        };
        let chat = |subject: &Subject, client| of("/api/chat", subject, client);
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let key = |client, model, opening| chat(&subject(model, opening), client).conversation;
        assert_eq!(key(one, "a", "hi"), key(one, "A:latest", "hi"));
        assert_ne!(key(one, "a", "hi"), key(two, "a", "hi"));
        assert_ne!(key(one, "a", "hi"), key(one, "b", "hi"));
        assert_ne!(key(one, "a", "hi"), key(one, "a", "ho"));
        assert_eq!(chat(&Subject::default(), one).conversation, None);
    }

    #[test]
    fn unloading_is_a_task_of_its_own() {
        let subject = Subject { unloads: true, ..Subject::default() };
        let client = IpAddr::from([10, 0, 0, 1]);
        let wanted = of("/api/generate", &subject, client);
        assert_eq!(wanted.task, Task::Unload);
        let text = |text: &str| Some(text.to_owned());
        let subject = Subject { model: text("new"), base: text("old"), ..Subject::default() };
        let wanted = of("/api/create", &subject, client);
        assert_eq!(wanted.model, ModelName::parse("old"));
    }
}
