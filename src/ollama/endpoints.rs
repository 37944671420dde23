//! What a request is for, by its method and path, and what it therefore needs. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use http::Method;

use crate::access::permissions::{self, Class};
use crate::counters::Kind;
use crate::manager::pool::{Task, Wanted};
use crate::ollama::model_name::ModelName;
use crate::ollama::subject::Subject;

/// What is known of a request before its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// It may be sent again after it may have reached an upstream: reads and inference. Pull,
    /// push, create, copy, delete and blobs never are.
    pub is_repeatable: bool,
    /// What it does, as far as that is known.
    pub class: Class,
    /// The kind of work.
    pub task: Task,
    /// Its body is JSON that names a model.
    pub names_model: bool,
    /// It changes which models a server has.
    pub changes_models: bool,
    /// It has the model in memory when it is done.
    pub uses_model: bool,
    /// What it counts as.
    pub kind: Kind,
    /// The model that its path names.
    pub model: Option<ModelName>,
}

impl Route {
    /// By method and target.
    pub fn of(method: &Method, target: &str) -> Self {
        let path = target.split('?').next().unwrap_or(target);
        let is_read = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let is_blob = path.starts_with("/api/blobs/");
        let (task, changes_models) = match (method.as_str(), path) {
            ("POST", "/api/create") => (Task::Build, true),
            _ if is_blob => (Task::Build, false),
            ("POST", "/api/pull") => (Task::Pull, true),
            ("POST", "/api/copy") | ("DELETE", "/api/delete") => (Task::Use, true),
            _ => (Task::Use, false),
        };
        let is_api = path.starts_with("/api/") || path.starts_with("/v1/");
        let model = path.strip_prefix("/v1/models/").filter(|_| is_read);
        let infers = *method == Method::POST && is_inference(path);
        let kind = if infers && path.contains("embed") {
            Kind::Embed
        } else if infers && path != "/api/show" {
            Kind::Generate
        } else if is_blob || task != Task::Use || changes_models || path == "/api/push" {
            Kind::Manage
        } else {
            Kind::Other
        };
        Route {
            is_repeatable: is_read || infers,
            class: Class::of(method, target),
            kind,
            task,
            names_model: !is_read && is_api && !is_blob && !path.starts_with("/v1/audio/"),
            changes_models,
            uses_model: infers && path != "/api/show",
            model: model.and_then(|model| {
                let decoded = permissions::percent_decode(model)?;
                ModelName::parse(&String::from_utf8_lossy(&decoded))
            }),
        }
    }

    /// What it needs, given what its body says and who asks.
    pub fn wanted(&self, subject: &Subject, client: IpAddr, server: Option<String>) -> Wanted {
        // What a create makes is new, and what it is made from matters.
        let named = if self.task == Task::Build { &subject.base } else { &subject.model };
        let named = named.as_deref().and_then(ModelName::parse);
        let model = self.model.clone().or(named);
        let conversation = subject.opening.as_ref().map(|opening| {
            let mut hasher = DefaultHasher::new();
            (client, &model, opening).hash(&mut hasher);
            hasher.finish()
        });
        let task = if subject.unloads { Task::Unload } else { self.task };
        let needs = permissions::needed(self.class, subject.model.as_deref());
        let client = Some(client);
        Wanted { task, model, server, client, conversation, needs, local_only: false }
    }
}

fn is_inference(path: &str) -> bool {
    matches!(
        path,
        "/api/generate"
            | "/api/chat"
            | "/api/embed"
            | "/api/embeddings"
            | "/api/show"
            | "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/embeddings"
            | "/v1/responses"
            | "/v1/messages"
    )
}

/// `model@server` of a pull, taken apart. A digest (`model@sha256:…`) is no server.
pub fn split_server(model: &str) -> Option<(&str, &str)> {
    let (model, server) = model.rsplit_once('@')?;
    let is_name = !server.is_empty() && !server.contains([':', '/']);
    (is_name && !model.is_empty()).then_some((model, server))
}

/// A body with another model's name in it; `None` if it isn't a JSON object that names one.
pub fn rename_model(body: &[u8], model: &str) -> Option<Vec<u8>> {
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    let member = if json.contains_key("model") { "model" } else { "name" };
    *json.get_mut(member)? = model.into();
    serde_json::to_vec(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &str, target: &str) -> Route {
        Route::of(&Method::from_bytes(method.as_bytes()).expect("method"), target)
    }

    #[test]
    fn only_reads_and_inference_are_sent_twice() {
        for (method, target) in [
            ("GET", "/api/tags"),
            ("HEAD", "/"),
            ("HEAD", "/api/blobs/sha256:00"),
            ("OPTIONS", "/api/chat"),
            ("POST", "/api/chat"),
            ("POST", "/api/generate?x"),
            ("POST", "/v1/messages"),
        ] {
            assert!(route(method, target).is_repeatable, "{method} {target}");
        }
        for (method, target) in [
            ("POST", "/api/pull"),
            ("POST", "/api/push"),
            ("POST", "/api/create"),
            ("POST", "/api/copy"),
            ("DELETE", "/api/delete"),
            ("POST", "/api/blobs/sha256:00"),
            ("POST", "/api/chatter"),
            ("PUT", "/api/chat"),
        ] {
            assert!(!route(method, target).is_repeatable, "{method} {target}");
        }
    }

    #[test]
    fn tasks_and_models() {
        assert_eq!(route("POST", "/api/blobs/sha256:0").task, Task::Build);
        assert_eq!(route("HEAD", "/api/blobs/sha256:0").task, Task::Build);
        assert_eq!(route("POST", "/api/create").task, Task::Build);
        assert_eq!(route("POST", "/api/pull").task, Task::Pull);
        assert!(!route("POST", "/api/blobs/sha256:0").names_model);
        assert!(!route("POST", "/v1/audio/transcriptions").names_model);
        assert!(route("DELETE", "/api/delete").names_model);
        assert!(route("DELETE", "/api/delete").changes_models);
        assert!(!route("POST", "/api/chat").changes_models);
        let model = route("GET", "/v1/models/llama3.2%3A1b").model;
        assert_eq!(model.map(|m| m.as_str().to_owned()).as_deref(), Some("llama3.2:1b"));
        assert_eq!(route("GET", "/v1/models").model, None);
    }

    #[test]
    fn every_request_counts_as_something() {
        for (method, target, kind) in [
            ("POST", "/api/chat", Kind::Generate),
            ("POST", "/v1/messages", Kind::Generate),
            ("POST", "/v1/embeddings", Kind::Embed),
            ("POST", "/api/embed", Kind::Embed),
            ("POST", "/api/show", Kind::Other),
            ("GET", "/api/tags", Kind::Other),
            ("POST", "/api/push", Kind::Manage),
            ("DELETE", "/api/delete", Kind::Manage),
            ("HEAD", "/api/blobs/sha256:0", Kind::Manage),
        ] {
            assert_eq!(route(method, target).kind, kind, "{method} {target}");
        }
    }

    #[test]
    fn a_conversation_is_told_by_client_model_and_opening() {
        let subject = |model: &str, opening: &str| Subject {
            model: Some(model.to_owned()),
            opening: Some(opening.to_owned()),
            ..Subject::default()
        };
        let chat = route("POST", "/api/chat");
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let of = |client, model, opening| {
            chat.wanted(&subject(model, opening), client, None).conversation
        };
        assert_eq!(of(one, "a", "hi"), of(one, "A:latest", "hi"));
        assert_ne!(of(one, "a", "hi"), of(two, "a", "hi"));
        assert_ne!(of(one, "a", "hi"), of(one, "b", "hi"));
        assert_ne!(of(one, "a", "hi"), of(one, "a", "ho"));
        assert_eq!(chat.wanted(&Subject::default(), one, None).conversation, None);
    }

    #[test]
    fn servers_behind_an_at_sign() {
        assert_eq!(split_server("llama3.2:1b@desktop"), Some(("llama3.2:1b", "desktop")));
        for plain in ["llama3.2", "llama3.2@sha256:00", "@desktop", "a@", "a@b/c"] {
            assert_eq!(split_server(plain), None, "{plain}");
        }
        let renamed = rename_model(br#"{"name":"a@b","stream":true}"#, "a").expect("an object");
        assert_eq!(renamed, br#"{"name":"a","stream":true}"#);
        assert_eq!(rename_model(b"[]", "a"), None);
        assert_eq!(rename_model(b"{}", "a"), None);
    }

    #[test]
    fn unloading_is_a_task_of_its_own() {
        let subject = Subject { unloads: true, ..Subject::default() };
        let client = IpAddr::from([10, 0, 0, 1]);
        let wanted = route("POST", "/api/generate").wanted(&subject, client, None);
        assert_eq!(wanted.task, Task::Unload);
        let text = |text: &str| Some(text.to_owned());
        let subject = Subject { model: text("new"), base: text("old"), ..Subject::default() };
        let wanted = route("POST", "/api/create").wanted(&subject, client, None);
        assert_eq!(wanted.model, ModelName::parse("old"));
    }
}
