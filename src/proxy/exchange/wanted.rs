//! What a request needs of a server, as far as that matters, and what has to be rewritten for it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use http::header::CONTENT_ENCODING;

use super::{Exchange, OwnAnswer};
use crate::access::permissions::{Permission, Refusal, needed};
use crate::http::fields::SERVER_FIELD;
use crate::http::head::Framing;
use crate::manager::pool::Wanted;
use crate::ollama::endpoints::{Class, Endpoint, Task};
use crate::ollama::facts::Capabilities;
use crate::ollama::model_name::ModelName;
use crate::ollama::pull;
use crate::ollama::subject::Subject;
use crate::proxy::request_body::{RequestBody, Watch};
use crate::upstream::exchange_io::Fault;

/// Bytes that are kept of a body that can't be sent again once an upstream may have it.
const KEPT_FOR_REFUSALS: usize = 64 * 1024;
/// A prompt has at least one token for so many bytes of its text. English has one for four to five;
/// other languages and code have more. What is longer than a server's context by this is too long.
const BYTES_PER_TOKEN: u64 = 6;

impl<'a> Exchange<'a> {
    /// Bytes of the body that are kept once they were sent.
    pub(super) fn keep_limit(&self) -> usize {
        match self.endpoint.is_repeatable {
            true => self.context.settings.limits.replay_limit,
            false => KEPT_FOR_REFUSALS,
        }
    }

    pub(super) fn replace_body(&mut self, body: &mut RequestBody<'_>, other: Vec<u8>) {
        self.framing = Framing::Length(other.len() as u64);
        body.kept.replace(other.into());
    }

    /// Lets a pull through only if it is one from Ollama's own registry, in words of our own.
    pub(super) fn hold_to_registry(&mut self, body: &mut RequestBody<'a>) -> Result<(), OwnAnswer> {
        self.fetch_all(body)?;
        let is_plain = !self.head.fields.contains_key(CONTENT_ENCODING);
        let whole = Some(&*body.kept.bytes).filter(|_| is_plain && body.is_done());
        let known = whole.and_then(pull::registry_pull);
        let known = known.ok_or_else(|| self.forbidden(Refusal::Registry))?;
        self.replace_body(body, known);
        Ok(())
    }

    /// What the request needs. Looks at the body for the model's name, if there is a choice and it
    /// wasn't seen yet.
    pub(super) fn wanted(
        &mut self,
        body: &mut RequestBody<'a>,
        seen: Option<Subject>,
    ) -> Result<Wanted, OwnAnswer> {
        let is_pull = self.is_client() && self.endpoint.task == Task::Pull;
        let matters = self.has_choice() || (self.endpoint.is_inference() && self.may_be_exempt());
        let is_seen = seen.is_some();
        let mut subject = seen.unwrap_or_default();
        if matters && !is_seen && self.endpoint.names_model() && self.framing != Framing::Empty {
            subject = self.look(body)?;
        }
        if !self.is_client() {
            return Ok(self.wanted_by(&subject, None));
        }
        let mut server = self.named_server();
        let named = subject.model.clone().filter(|_| is_pull && body.is_done());
        if let Some(named) = named.as_deref().filter(|_| self.is_copy()) {
            // What takes it for an ordinary pull must find no such model, whatever it is.
            let model = pull::split_server(named).map_or(named, |(model, _)| model).to_owned();
            if let Some(renamed) = pull::rename_model(&body.kept.bytes, &format!("{model}@copy")) {
                self.replace_body(body, renamed);
            }
            subject.model = Some(model);
            let needs = Permission::Manage;
            return Ok(Wanted { needs, ..self.wanted_by(&subject, server) });
        }
        if let Some((model, place)) = named.as_deref().and_then(pull::split_server)
            && let Some(renamed) = pull::rename_model(&body.kept.bytes, model)
        {
            self.replace_body(body, renamed);
            subject.model = Some(model.to_owned());
            server = Some(place.to_owned());
        }
        Ok(self.wanted_by(&subject, server))
    }

    /// Whether it depends on the model where the request goes, or on its body what is sent.
    pub(super) fn has_choice(&self) -> bool {
        let settings = &self.context.settings;
        let is_restricted =
            !settings.wake.is_empty() || !settings.bans.is_empty() || !settings.aliases.is_empty();
        let is_pull = self.endpoint.task == Task::Pull;
        self.is_client() && (is_pull || is_restricted || self.context.presence.has_choice())
    }

    fn wanted_by(&self, subject: &Subject, server: Option<String>) -> Wanted {
        let client = self.connection.peer.ip();
        let is_exempt = is_exempt(&self.endpoint, subject);
        if !self.is_client() {
            let client = Some(client);
            return Wanted { client, local_only: true, is_exempt, ..Wanted::default() };
        }
        let wanted = wanted(&self.endpoint, self.target(), subject, client, server);
        Wanted { is_exempt, ..wanted }
    }

    /// The body has turned out to name another model than the one that its server was chosen for. No
    /// server has all of it yet, so it can go to another one.
    pub(super) fn reconsider(
        &mut self,
        body: &mut RequestBody<'a>,
        watch: Watch<'a>,
        wanted: &mut Wanted,
    ) -> Result<(), OwnAnswer> {
        if !body.kept.is_whole {
            let reason = "the body names its model too late, or another one than at its beginning";
            return Err(OwnAnswer::Fault(Fault::BodyMalformed(reason)));
        }
        let subject = self.look_on(body, watch.scan)?;
        let subject = self.resolve_in_body(body, subject)?;
        let may_try = wanted.may_try;
        *wanted = Wanted { may_try, ..self.wanted_by(&subject, wanted.server.take()) };
        Ok(())
    }

    /// Receives the body of an inference before that takes up a turn at a server, where turns may be
    /// rare: Ollama doesn't begin before it has the body either, and serves others meanwhile. What there
    /// is no room for comes during its turn, but not slowly.
    pub(super) fn receive_before_turn(
        &mut self,
        body: &mut RequestBody<'a>,
        wanted: &mut Wanted,
    ) -> Result<(), OwnAnswer> {
        let takes_turn = self.endpoint.is_inference() && !wanted.is_exempt;
        if body.is_done() || !takes_turn || !self.context.presence.has_limit() {
            return Ok(());
        }
        self.fetch_rest(body)?;
        if let Some(watch) = body.watch.take_if(|watch| watch.has_turned()) {
            self.reconsider(body, watch, wanted)?;
        }
        if !body.is_done() {
            body.hurry(self.connection, self.context.settings.timing.body_timeout);
        }
        Ok(())
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
        self.head.fields.contains_key(CONTENT_ENCODING) || body.is_none_or(hints_at_exemption)
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
    !endpoint.is_inference()
        || model.is_some_and(|model| model.is_cloud())
        || endpoint.only_unloads(subject)
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
    // Where a conversation goes whose model isn't known says nothing about where it should go.
    let opening = subject.opening.as_ref().filter(|_| model.is_some());
    let conversation = opening.map(|opening| {
        let mut hasher = DefaultHasher::new();
        (client, &model, opening).hash(&mut hasher);
        hasher.finish()
    });
    let task = if endpoint.only_unloads(subject) { Task::Unload } else { endpoint.task };
    let needs = needed(endpoint.class, subject.model.as_deref());
    let wanted = Wanted {
        task,
        model,
        server,
        client: Some(client),
        conversation,
        needs,
        local_only: endpoint.class == Class::Local,
        unloads: subject.unloads && endpoint.heeds_keep_alive(),
        ..Wanted::default()
    };
    if !endpoint.is_inference() {
        return wanted;
    }
    let abilities = Capabilities::default()
        .with(Capabilities::TOOLS, subject.has_tools)
        .with(Capabilities::VISION, subject.has_images);
    let tokens = subject.text_bytes / BYTES_PER_TOKEN;
    Wanted { abilities, tokens, num_ctx: subject.num_ctx, ..wanted }
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
        let nameless = Subject { model: None, ..subject("a", "hi") };
        assert_eq!(chat(&nameless, one).conversation, None, "nothing is learned from it");
    }

    #[test]
    fn what_the_model_must_do_counts_for_inference_only() {
        let client = IpAddr::from([10, 0, 0, 1]);
        let body =
            br#"{"model":"a","tools":[{}],"messages":[{"images":["A"],"content":"123456789012"}],
            "options":{"num_ctx":8192}}"#;
        let subject = crate::ollama::subject::subject(body);
        let chat = of("/api/chat", &subject, client);
        let both = Capabilities::TOOLS.with(Capabilities::VISION, true);
        assert_eq!((chat.abilities, chat.tokens, chat.num_ctx), (both, 2, Some(8192)));
        for target in ["/api/create", "/api/show", "/api/pull"] {
            let other = of(target, &subject, client);
            assert_eq!((other.abilities.is_empty(), other.tokens, other.num_ctx), (true, 0, None));
        }
    }

    #[test]
    fn unloading_is_a_task_of_its_own() {
        let client = IpAddr::from([10, 0, 0, 1]);
        let of = |target, body: &str| {
            let subject = crate::ollama::subject::subject(body.as_bytes());
            let endpoint = Endpoint::of(&Method::POST, target);
            let wanted = of(target, &subject, client);
            (wanted.task == Task::Unload, is_exempt(&endpoint, &subject), wanted.unloads)
        };
        let list = r#"{"model":"a","input":["x","y"],"keep_alive":0}"#;
        for (target, body, want) in [
            ("/api/generate", r#"{"model":"a","keep_alive":0}"#, (true, true, true)),
            (
                "/api/generate",
                r#"{"keep_alive":"0s","prompt":"","system":"x"}"#,
                (true, true, true),
            ),
            ("/api/chat", r#"{"messages":[],"keep_alive":0,"prompt":"x"}"#, (true, true, true)),
            // These compute something, and then unload.
            ("/api/generate", r#"{"keep_alive":0,"system":"","prompt":"x"}"#, (false, false, true)),
            (
                "/api/chat",
                r#"{"keep_alive":0,"messages":[{"role":"system","content":""}]}"#,
                (false, false, true),
            ),
            ("/api/embed", list, (false, false, true)),
            ("/api/embeddings", r#"{"keep_alive":0}"#, (false, false, true)),
            // Ollama has no such member there.
            ("/v1/embeddings", list, (false, false, false)),
            ("/v1/chat/completions", r#"{"keep_alive":0,"messages":[]}"#, (false, false, false)),
            ("/api/show", r#"{"model":"a","keep_alive":0}"#, (false, true, false)),
            ("/api/generate", r#"{"model":"a"}"#, (false, false, false)),
        ] {
            assert_eq!(of(target, body), want, "{target} {body}");
        }
        let text = |text: &str| Some(text.to_owned());
        let subject = Subject { model: text("new"), base: text("old"), ..Subject::default() };
        let wanted = super::wanted(
            &Endpoint::of(&Method::POST, "/api/create"),
            "/api/create",
            &subject,
            client,
            None,
        );
        assert_eq!(wanted.model, ModelName::parse("old"));
    }
}
