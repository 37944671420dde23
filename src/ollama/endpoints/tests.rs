use super::*;

fn endpoint(method: &str, target: &str) -> Endpoint {
    Endpoint::of(&Method::from_bytes(method.as_bytes()).expect("method"), target)
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
        ("POST", "/v1/audio/transcriptions"),
    ] {
        assert!(endpoint(method, target).is_repeatable, "{method} {target}");
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
        assert!(!endpoint(method, target).is_repeatable, "{method} {target}");
    }
}

#[test]
fn tasks_and_models() {
    assert_eq!(endpoint("POST", "/api/blobs/sha256:0").task, Task::Build);
    assert_eq!(endpoint("HEAD", "/api/blobs/sha256:0").task, Task::Build);
    assert_eq!(endpoint("POST", "/api/create").task, Task::Build);
    assert_eq!(endpoint("POST", "/api/pull").task, Task::Pull);
    assert!(!endpoint("POST", "/api/blobs/sha256:0").names_model());
    let transcription = endpoint("POST", "/v1/audio/transcriptions");
    assert!(transcription.takes_form() && transcription.loads_model);
    assert_eq!(endpoint("POST", "/api/copy").model_members(), ["source"]);
    for (method, target, asks) in [
        ("POST", "/api/show", true),
        ("POST", "/v1/audio/transcriptions", true),
        ("GET", "/v1/models/a", true),
        ("GET", "/api/tags", false),
        ("HEAD", "/api/blobs/sha256:0", false),
        ("POST", "/api/copy", false),
    ] {
        assert_eq!(endpoint(method, target).asks_for_model(), asks, "{method} {target}");
    }
    assert!(endpoint("DELETE", "/api/delete").names_model());
    assert!(endpoint("DELETE", "/api/delete").changes_models);
    assert!(!endpoint("POST", "/api/chat").changes_models);
    let model = |target| endpoint("GET", target).model_in_path(target);
    assert_eq!(model("/v1/models/llama3.2%3A1b"), ModelName::parse("llama3.2:1b"));
    assert_eq!(model("/v1/models"), None);
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
        assert_eq!(endpoint(method, target).kind, kind, "{method} {target}");
    }
}

const METHODS: [&str; 9] =
    ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "get"];

/// Every endpoint, and spellings that are none.
const TARGETS: &[&str] = &[
    "/",
    "/?",
    "/?x=1",
    "//",
    "*",
    "",
    "?x=/api/chat",
    "/x",
    "/index.html",
    "/metrics",
    "/debug/pprof/heap",
    "/ollana/status",
    "/api",
    "/api/",
    "/api/nosuch",
    "/API/tags",
    "/v1",
    "/v1/",
    "/v1/nosuch",
    "/v1x/chat",
    "/api/version",
    "/api/version?",
    "/api/version?x=1",
    "/api/version/",
    "/api/versions",
    "/api/status",
    "/api/tags",
    "/api/tags?",
    "/api/tags?x=1",
    "/api/tags/",
    "//api/tags",
    "/api//tags",
    "/api/./tags",
    "/api/x/../tags",
    "/api/%74ags",
    "/api/tags%3Fx",
    "/api/ps",
    "/api/ps?x=1",
    "/v1/models",
    "/v1/models?x=1",
    "/v1/models/",
    "/v1/models/llama3.2%3A1b",
    "/v1/models/llama3.2:1b?x=1",
    "/v1/models/a/b",
    "/v1/models/a%2Fb",
    "/v1/models/..",
    "/v1/models/%2e%2e",
    "/v1/models/%",
    "/v1/models/%ff",
    "/v1/models/%20",
    "/api/show",
    "/api/generate",
    "/api/chat",
    "/api/chat?x=1",
    "/api/chat/",
    "/api/chatter",
    "/api/embed",
    "/api/embeddings",
    "/api/embedx",
    "/v1/chat/completions",
    "/v1/chat/completions?x",
    "/v1/chat/completions/1",
    "/v1/chat/completions/input_tokens",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages?beta=true",
    "/v1/messages/",
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/messagesx",
    "/v1/audio/transcriptions",
    "/v1/audio/",
    "/v1/audio/speech",
    "/v1/audio",
    "/v1/images/generations",
    "/v1/images/edits",
    "/api/pull",
    "/api/pull?x=1",
    "/api/pull/",
    "/api/push",
    "/api/push?x=1",
    "/api/push/x",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/delete/",
    "/api/blobs/sha256:00",
    "/api/blobs/sha256%3a00?x=1",
    "/api/blobs/",
    "/api/blobs",
    "/api/blobs/a/b",
    "/api/blobs/a%2fb",
    "/api/blobs/../delete",
    "//api/blobs/sha256:00",
    "/api/me",
    "/api/me?x=1",
    "/api/usage",
    "/api/signout",
    "/api/user/keys/c3No",
    "/api/user/keys/",
    "/api/user/keys/a/b",
    "/api/user/keys",
    "/api/experimental/web_search",
    "/api/experimental/aliases",
    "/api/experimental/",
    "/api/experimental/a/b",
    "/api/codex",
    "/api/codex/_health",
    "/api/codex/v1/responses?x=1",
];

/// Every column of a request's row.
fn columns(method: &str, target: &str) -> String {
    let endpoint = endpoint(method, target);
    let model = endpoint.model_in_path(target).map(|model| model.as_str().to_owned());
    let list = endpoint.list.map(|list| format!("{list:?}"));
    let Endpoint { class, kind, task, dialect, .. } = endpoint;
    let mut text = format!("{class:?} {kind:?} {task:?} {dialect:?}");
    for (is_so, word) in [
        (endpoint.is_repeatable, "repeatable"),
        (endpoint.names_model(), "body"),
        (endpoint.changes_models, "changes"),
        (endpoint.loads_model, "loads"),
        (endpoint.is_upload(), "blob"),
        (split_query(target).0 == VERSION, "version"),
    ] {
        if is_so {
            text += &format!(" {word}");
        }
    }
    let progress = endpoint.progress.map(str::to_owned);
    for (word, value) in [("model", model), ("list", list), ("progress", progress)] {
        if let Some(value) = value {
            text += &format!(" {word}={value}");
        }
    }
    text
}

/// The table in words: for each target the methods that mean the same, and what they mean.
fn table() -> String {
    let mut text = String::new();
    for target in TARGETS {
        text.push_str(&format!("{target:?}\n"));
        let mut rows: Vec<(Vec<&str>, String)> = Vec::new();
        for method in METHODS {
            let columns = columns(method, target);
            match rows.iter_mut().find(|(_, other)| *other == columns) {
                Some((methods, _)) => methods.push(method),
                None => rows.push((vec![method], columns)),
            }
        }
        for (methods, columns) in rows {
            text.push_str(&format!("  {}: {columns}\n", methods.join(" ")));
        }
    }
    text
}

#[test]
fn requests_mean_what_the_recorded_table_says() {
    let (now, recorded) = (table(), include_str!("table.txt"));
    let differs = now.lines().zip(recorded.lines()).find(|(now, recorded)| now != recorded);
    assert_eq!(differs, None, "now and recorded differ; all of it:\n{now}");
    assert_eq!(now, recorded);
}

#[test]
fn only_the_exact_paths_are_lists() {
    let list = |target| endpoint("GET", target).list;
    assert_eq!(list("/api/tags"), Some(List::Tags));
    assert_eq!(list("/v1/models"), Some(List::OpenAi));
    assert_eq!(list("/v1/models/a"), None);
    assert_eq!(list("/api/tags/"), None);
    assert_eq!(list("/api/tags?x=1"), Some(List::Tags));
    for list in List::ALL {
        assert_eq!(endpoint("GET", list.path()).list, Some(list));
    }
}
