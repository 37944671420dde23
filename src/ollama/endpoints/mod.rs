//! Ollama's endpoints: the one table of what a request means by its method and path. Pure.
//!
//! Paths are those of Ollama's `GenerateRoutes` (`server/routes.go`, August 2026 and all earlier
//! ones), compared byte by byte. Go's router looks at the decoded path, and its mux cleans `//` and
//! `..`, so other spellings of a path may reach the same handler: they are all unknown here, and
//! [`routes`] tells what Ollama answers to them.

mod routes;

use http::Method;

use super::{errors::Dialect, model_name::ModelName, subject::Subject};
use crate::counters::Kind;
use crate::http::target::{percent_decode, split_query};

use Class::{Account, Local, Open, Unknown};
use Dialect::{Anthropic, OpenAi, Responses};
use Kind::{Embed, Generate, Manage, Other};
use ModelIn::{Body, Digest, Form, Nowhere, Path, Source};
use Task::Build;

pub(crate) use routes::{Routed, routed};

/// Ollama's version, and what our own servers tell besides.
pub(crate) const VERSION: &str = "/api/version";

// What this program itself asks of an Ollama besides.
pub(crate) const GENERATE: &str = "/api/generate";
const CHAT: &str = "/api/chat";
/// Whether it keeps from the cloud.
pub(crate) const STATUS: &str = "/api/status";
pub(crate) const PULL: &str = "/api/pull";
pub(crate) const PUSH: &str = "/api/push";
pub(crate) const COPY: &str = "/api/copy";
pub(crate) const DELETE_MODEL: &str = "/api/delete";
/// A digest follows.
pub(crate) const BLOBS: &str = "/api/blobs/";

/// What Ollama has or had. A path that ends in `/:` takes one more segment, one that ends in `*` any
/// rest. Where a row doesn't say otherwise, a body may name a model (none of a GET does), a request may
/// be sent once only, the task is [`Task::Use`], and errors have Ollama's shape.
const ENDPOINTS: &[Endpoint] = &[
    get("/", Open).or_head(),
    get(VERSION, Open).or_head(),
    get(STATUS, Open),
    get("/api/tags", Open).or_head().list(List::Tags),
    get("/api/ps", Open).list(List::Loaded),
    post("/api/show", Open, Other).repeatable().answers_half_closed(),
    post(GENERATE, Open, Generate).inference(),
    post(CHAT, Open, Generate).inference(),
    post("/api/embed", Open, Embed).inference(),
    post("/api/embeddings", Open, Embed).inference(),
    get("/v1/models", Open).list(List::OpenAi).errors(OpenAi),
    get("/v1/models/:", Open).model(Path).errors(OpenAi),
    post("/v1/chat/completions", Open, Generate).inference().errors(OpenAi),
    post("/v1/completions", Open, Generate).inference().errors(OpenAi),
    post("/v1/responses", Open, Generate).inference().errors(Responses),
    post("/v1/embeddings", Open, Embed).inference().errors(OpenAi),
    post("/v1/audio/transcriptions", Open, Other).inference().model(Form).errors(OpenAi),
    post("/v1/images/generations", Open, Other).errors(OpenAi),
    post("/v1/images/edits", Open, Other).errors(OpenAi),
    post("/v1/messages", Open, Generate).inference().errors(Anthropic),
    // Ollama doesn't count tokens yet; programs want to hear that from it.
    post("/v1/chat/completions/input_tokens", Open, Other).repeatable().errors(OpenAi),
    post("/v1/responses/input_tokens", Open, Other).repeatable().errors(OpenAi),
    post("/v1/messages/count_tokens", Open, Other).repeatable().errors(Anthropic),
    post("/api/pull", Class::Pull, Manage).task(Task::Pull).changes_models().progress("pull"),
    post("/api/push", Class::Manage, Manage).progress("push"),
    post("/api/create", Class::Manage, Manage).task(Build).changes_models().progress("create"),
    post("/api/copy", Class::Manage, Manage).model(Source).changes_models().answers_half_closed(),
    row(DELETE, "/api/delete", Class::Manage, Manage).changes_models().answers_half_closed(),
    row(HEAD, "/api/blobs/:", Class::Manage, Manage)
        .model(Digest)
        .task(Build)
        .answers_half_closed(),
    post("/api/blobs/:", Class::Manage, Manage)
        .model(Digest)
        .task(Build)
        .progress("upload")
        .answers_half_closed(),
    post("/api/me", Class::Whoami, Other).model(Nowhere).repeatable().answers_half_closed(),
    row(GET, "/api/usage", Account, Other).model(Nowhere).answers_half_closed(),
    post("/api/signout", Account, Other).answers_half_closed(),
    row(DELETE, "/api/user/keys/:", Account, Other).answers_half_closed(),
    row(GET_POST_DELETE, "/api/experimental/:", Account, Other),
    // `app/codexproxy`: by files of this machine, what isn't a model of Ollama's goes to OpenAI with the
    // caller's credentials.
    row(ANY, "/api/codex/*", Local, Other).model(Nowhere),
];

/// What Ollama isn't known to have: the first row that fits.
const UNKNOWN: &[Endpoint] = &[
    post("/api/blobs/*", Unknown, Manage).model(Digest).task(Build).progress("upload"),
    row(ANY, "/api/blobs/*", Unknown, Manage).model(Digest).task(Build),
    row(ANY, "/api/push", Unknown, Manage),
    row(READS, "/v1/models/*", Unknown, Other).model(Path).errors(OpenAi),
    row(ANY, "/v1/audio/*", Unknown, Other).model(Form).errors(OpenAi),
    row(ANY, "/v1/messages", Unknown, Other).errors(Anthropic),
    row(ANY, "/v1/messages/*", Unknown, Other).errors(Anthropic),
    row(ANY, "/v1/*", Unknown, Other).errors(OpenAi),
    row(ANY, "/api/*", Unknown, Other),
];
const ANYTHING: Endpoint = row(ANY, "*", Unknown, Other).model(Nowhere);

/// These change nothing: they may be sent again, and their bodies name no model.
const READS: &[Method] = &[Method::GET, Method::HEAD, Method::OPTIONS];
const GET: &[Method] = &[Method::GET];
const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];
const HEAD: &[Method] = &[Method::HEAD];
const POST: &[Method] = &[Method::POST];
const DELETE: &[Method] = &[Method::DELETE];
const GET_POST_DELETE: &[Method] = &[Method::GET, Method::POST, Method::DELETE];
const ANY: &[Method] = &[];

/// A row of the table, and what it says of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    methods: &'static [Method],
    path: &'static str,
    pub(crate) class: Class,
    pub(crate) kind: Kind,
    model: ModelIn,
    pub(crate) task: Task,
    /// It may be sent again after it may have reached an upstream.
    pub(crate) is_repeatable: bool,
    /// The model is in the server's memory afterwards.
    pub(crate) loads_model: bool,
    /// Other models are on the server's disk afterwards.
    pub(crate) changes_models: bool,
    /// The answer is this list, which can be merged over servers.
    pub(crate) list: Option<List>,
    /// A client that has ended its side behind its request gets the answer. Otherwise that cancels
    /// the request. (Go ends a request's context then; these handlers of Ollama don't look at it.)
    pub(crate) answers_half_closed: bool,
    /// How `status` calls it while it is under way.
    pub(crate) progress: Option<&'static str>,
    pub(crate) dialect: Dialect,
}

/// What a request does, as far as permissions depend on it (`access::permissions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Inference, and what only reads.
    Open,
    /// Changes the server's models, or publishes one.
    Manage,
    Pull,
    /// Tells whose account the server uses, and whether it is signed in.
    Whoami,
    Account,
    /// Ollama takes it from programs of its own machine alone.
    Local,
    /// Nothing that Ollama is known to have.
    Unknown,
}

/// What a server must be good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Anything that a model does or tells.
    #[default]
    Use,
    /// Takes the model out of memory: only of use where it is.
    Unload,
    /// Uploads of blobs and the `create` that follows: one place per client.
    Build,
    /// Needs room on a disk.
    Pull,
}

/// Where a request names its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelIn {
    Nowhere,
    /// A member of its JSON body, if it has one.
    Body,
    /// The last segment of its path.
    Path,
    /// No model, but a blob's digest in the path.
    Digest,
    /// A field of a form, anywhere among its files.
    Form,
    /// The member of its JSON body that says what is copied.
    Source,
}

/// The lists that Ollama has of its models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// On disk.
    Tags,
    /// In memory.
    Loaded,
    /// On disk, in OpenAI's shape.
    OpenAi,
}

impl List {
    /// All of them.
    pub const ALL: [List; 3] = [List::Tags, List::Loaded, List::OpenAi];

    /// Where Ollama answers with it.
    pub(crate) fn path(self) -> &'static str {
        ENDPOINTS.iter().find(|row| row.list == Some(self)).map_or("", |row| row.path)
    }
}

const fn get(path: &'static str, class: Class) -> Endpoint {
    row(GET, path, class, Other).model(Nowhere).answers_half_closed()
}

const fn post(path: &'static str, class: Class, kind: Kind) -> Endpoint {
    row(POST, path, class, kind)
}

const fn row(methods: &'static [Method], path: &'static str, class: Class, kind: Kind) -> Endpoint {
    Endpoint {
        methods,
        path,
        class,
        kind,
        model: Body,
        task: Task::Use,
        is_repeatable: false,
        loads_model: false,
        changes_models: false,
        list: None,
        answers_half_closed: false,
        progress: None,
        dialect: Dialect::Ollama,
    }
}

impl Endpoint {
    const fn or_head(self) -> Self {
        Endpoint { methods: GET_HEAD, ..self }
    }

    const fn model(self, model: ModelIn) -> Self {
        Endpoint { model, ..self }
    }

    const fn task(self, task: Task) -> Self {
        Endpoint { task, ..self }
    }

    const fn repeatable(self) -> Self {
        Endpoint { is_repeatable: true, ..self }
    }

    const fn inference(self) -> Self {
        Endpoint { is_repeatable: true, loads_model: true, ..self }
    }

    const fn changes_models(self) -> Self {
        Endpoint { changes_models: true, ..self }
    }

    const fn list(self, list: List) -> Self {
        Endpoint { list: Some(list), ..self }
    }

    const fn answers_half_closed(self) -> Self {
        Endpoint { answers_half_closed: true, ..self }
    }

    const fn progress(self, word: &'static str) -> Self {
        Endpoint { progress: Some(word), ..self }
    }

    const fn errors(self, dialect: Dialect) -> Self {
        Endpoint { dialect, ..self }
    }

    /// By the request's method and target.
    pub(crate) fn of(method: &Method, target: &str) -> Self {
        let (path, _) = split_query(target);
        let mut rows = ENDPOINTS.iter().chain(UNKNOWN);
        let mut endpoint =
            *rows.find(|row| row.fits(path) && row.takes(method)).unwrap_or(&ANYTHING);
        if READS.contains(method) {
            endpoint.is_repeatable = true;
            endpoint.model = if endpoint.names_model() { Nowhere } else { endpoint.model };
        }
        if *method == Method::OPTIONS && path == "*" {
            // No handler of Ollama's runs for it.
            endpoint.class = Open;
        }
        endpoint
    }

    fn takes(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    fn fits(&self, path: &str) -> bool {
        let rest = || path.strip_prefix(self.prefix());
        match self.path.as_bytes().last() {
            Some(b':') => rest().is_some_and(is_segment),
            Some(b'*') => rest().is_some(),
            _ => self.path == path,
        }
    }

    fn prefix(&self) -> &'static str {
        self.path.trim_end_matches([':', '*'])
    }

    /// Whether a model computes for it, on the server's own processors unless it is a cloud's.
    pub(crate) fn is_inference(&self) -> bool {
        self.loads_model
    }

    /// Whether Ollama heeds how long the model is to stay in memory. OpenAI's and Anthropic's requests
    /// have no word for it.
    pub(crate) fn heeds_keep_alive(&self) -> bool {
        self.is_inference() && self.dialect == Dialect::Ollama
    }

    /// Whether all that a request does is to take its model out of memory: Ollama's `GenerateHandler` and
    /// `ChatHandler` do, without a prompt and without messages.
    pub(crate) fn only_unloads(&self, subject: &Subject) -> bool {
        let has_text = match self.path {
            GENERATE => subject.has_prompt,
            CHAT => subject.has_messages,
            _ => true,
        };
        subject.unloads && !has_text
    }

    /// Whether the body may name a model.
    pub(crate) fn names_model(&self) -> bool {
        matches!(self.model, Body | Form | Source)
    }

    /// Whether it asks what only a server can answer that has a model.
    pub(crate) fn asks_for_model(&self) -> bool {
        self.is_repeatable && (self.names_model() || self.model == Path)
    }

    /// Whether the body is a form rather than JSON.
    pub(crate) fn takes_form(&self) -> bool {
        self.model == Form
    }

    /// The members of a JSON body that name the model; Ollama takes the first one that isn't empty.
    pub(crate) fn model_members(&self) -> &'static [&'static str] {
        if self.model == Source { &["source"] } else { &["model", "name"] }
    }

    /// The model that the path of the request's target names.
    pub(crate) fn model_in_path(&self, target: &str) -> Option<ModelName> {
        let (path, _) = split_query(target);
        let name = path.strip_prefix(self.prefix()).filter(|_| self.model == Path)?;
        ModelName::parse(&String::from_utf8_lossy(&percent_decode(name)?))
    }

    /// Whether the body is a blob.
    pub(crate) fn is_upload(&self) -> bool {
        self.model == Digest && self.progress.is_some()
    }
}

/// Whether Go sees one path segment here too, once it has decoded it.
fn is_segment(text: &str) -> bool {
    let Some(bytes) = percent_decode(text) else { return false };
    let plain = bytes.iter().all(|b| !matches!(b, b'/' | b'\\' | 0..=0x1f | 0x7f));
    plain && !bytes.is_empty() && bytes != b"." && bytes != b".."
}

#[cfg(test)]
mod tests;
