//! Which request gets to which handler, and what gin and Go's mux answer before any of them.

use super::super::{Call, Head, host_name};
use super::body::{self, Fields};
use super::inference::{self, Kind};
use super::reply::{Dialect, Reply};
use super::{Machine, World, account, library, lists};

/// The methods of each path; a last part of `*` stands for one that isn't empty.
const ROUTES: &[(&str, &str)] = &[
    ("HEAD", "/"),
    ("GET", "/"),
    ("HEAD", "/api/version"),
    ("GET", "/api/version"),
    ("GET", "/api/status"),
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("HEAD", "/api/tags"),
    ("GET", "/api/tags"),
    ("POST", "/api/show"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/*"),
    ("POST", "/api/create"),
    ("POST", "/api/blobs/*"),
    ("HEAD", "/api/blobs/*"),
    ("POST", "/api/copy"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("GET", "/api/experimental/model-recommendations"),
    ("GET", "/api/ps"),
    ("POST", "/api/generate"),
    ("POST", "/api/chat"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/*"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/messages"),
];

/// Those that come after 0.33.
const COMING: &[(&str, &str)] = &[
    ("POST", "/v1/chat/completions/input_tokens"),
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/api/usage"),
];

/// Answers one request.
pub(super) fn serve(machine: &Machine, call: &mut Call<'_>) {
    let method = call.head.method().to_owned();
    let target = call.head.target().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = decoded(path);
    let script = |world: &mut World| world.script.get(&path).or(world.fate.as_ref()).cloned();
    if let Some(script) = machine.world(script) {
        return script(call);
    }
    let mut reply = Reply::new(machine, call, &path, dialect(&path));
    // Go's server.
    let hosts = reply.call.head.all("host").len();
    if hosts == 0 && reply.call.head.start[2] == "HTTP/1.1" {
        return reply.malformed(": missing required Host header");
    }
    if hosts > 1 {
        return reply.malformed(": too many Host headers");
    }
    if target == "*" {
        return match method.as_str() {
            "OPTIONS" => reply.send(200, "", ""),
            _ => reply.malformed(""),
        };
    }
    if !has_whole_escapes(target.split('?').next().unwrap_or_default()) {
        return reply.malformed("");
    }
    respond(machine, &mut reply, &method, &path, query);
}

/// Whether every percent sign of a path has its two digits.
fn has_whole_escapes(path: &str) -> bool {
    path.split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

/// The path without its percent signs.
fn decoded(path: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let hex = path.as_bytes().get(path.len() - bytes.len()..path.len() - bytes.len() + 2);
        let value = hex
            .filter(|_| byte == b'%')
            .and_then(|hex| u8::from_str_radix(&String::from_utf8_lossy(hex), 16).ok());
        if value.is_some() {
            bytes.nth(1);
        }
        out.push(value.unwrap_or(byte));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Ollama's own handlers answer below `/v1` too; the middleware there translates.
fn dialect(path: &str) -> Dialect {
    match path {
        "/v1/messages" | "/v1/messages/count_tokens" => Dialect::Anthropic,
        _ if path.starts_with("/v1/") => Dialect::OpenAi,
        _ => Dialect::Ollama,
    }
}

fn has_route(routes: &[(&str, &str)], method: &str, path: &str) -> bool {
    routes.iter().any(|(other, pattern)| {
        *other == method
            && match pattern.strip_suffix('*') {
                Some(front) => path
                    .strip_prefix(front)
                    .is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
                None => path == *pattern,
            }
    })
}

/// Whether the host that a request names is this one.
pub(super) fn is_own_host(head: &Head) -> bool {
    let host = head.one("host").unwrap_or_default();
    let host = without_port(&host);
    is_local_address(host) || is_local_name(host)
}

/// Host names that Ollama takes for its own; the address of a test is a loopback one.
fn is_local_name(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let own = host_name().to_ascii_lowercase();
    host.is_empty()
        || host == "localhost"
        || host == own
        || [".localhost", ".local", ".internal"].iter().any(|tld| host.ends_with(tld))
}

fn is_local_address(host: &str) -> bool {
    match host.parse() {
        Ok(std::net::IpAddr::V4(address)) => {
            address.is_loopback() || address.is_private() || address.is_unspecified()
        }
        Ok(std::net::IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unspecified() || address.is_unique_local()
        }
        Err(_) => false,
    }
}

/// A host without its port, as Go splits it.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if name.starts_with('[') && name.ends_with(']') => &name[1..name.len() - 1],
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

fn respond(machine: &Machine, reply: &mut Reply<'_, '_>, method: &str, path: &str, query: &str) {
    let moved = |reply: &mut Reply<'_, '_>, path: &str| {
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let (status, name) = match method {
            "GET" => (301, "Moved Permanently"),
            _ => (307, "Temporary Redirect"),
        };
        let body = match method {
            "GET" => format!("<a href=\"{path}{query}\">{name}</a>.\n\n"),
            _ => String::new(),
        };
        let kind = "Content-Type: text/html; charset=utf-8\r\n";
        reply.send(status, &format!("Location: {path}{query}\r\n{kind}"), body);
    };
    // Go's mux.
    let clean = cleaned(path);
    if clean != path {
        return moved(reply, &clean);
    }
    // gin: its tree, then the middleware of the address, then the handlers.
    let coming = machine.world(|world| if world.is_coming { COMING } else { &[] });
    let routes = [ROUTES, coming].concat();
    let exists = has_route(&routes, method, path);
    let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
    if !exists && path != "/" && has_route(&routes, method, &other) {
        return moved(reply, &other);
    }
    let host = reply.call.head.one("host").unwrap_or_default();
    let host = without_port(&host);
    if !is_local_address(host) {
        if !is_local_name(host) {
            return reply.send(403, "", "");
        }
        if method == "OPTIONS" {
            return reply.send(204, "", "");
        }
    }
    if exists {
        return handle(machine, reply, method, path);
    }
    // In the order in which its trees were begun.
    let methods = ["HEAD", "GET", "POST", "DELETE"];
    let allowed: Vec<&str> =
        methods.into_iter().filter(|method| has_route(&routes, method, path)).collect();
    if allowed.is_empty() {
        reply.send(404, "Content-Type: text/plain\r\n", "404 page not found");
    } else {
        let allow = format!("Allow: {}\r\nContent-Type: text/plain\r\n", allowed.join(", "));
        reply.send(405, &allow, "405 method not allowed");
    }
}

/// The path without empty, `.` and `..` parts; a slash at the end stays.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

fn handle(machine: &Machine, reply: &mut Reply<'_, '_>, method: &str, path: &str) {
    let last = path.rsplit('/').next().unwrap_or_default();
    match (method, path) {
        (_, "/") => {
            return reply.send(
                200,
                "Content-Type: text/plain; charset=utf-8\r\n",
                "Ollama is running",
            );
        }
        ("GET", "/v1/models") => {
            let body = machine.world(|world| lists::list(world, path));
            return reply.send(200, "Content-Type: application/json\r\n", body);
        }
        ("GET" | "HEAD", "/api/version" | "/api/status" | "/api/tags" | "/api/ps") => {
            return reply.json(200, machine.world(|world| lists::list(world, path)));
        }
        ("GET", "/api/experimental/model-recommendations") => {
            return reply.json(200, "{\"recommendations\":[]}");
        }
        ("GET", "/api/usage") => {
            if account::reaches_cloud(machine, reply, "account usage is unavailable") {
                reply.json(200, "{\"weekly\":{\"used\":12,\"limit\":100}}");
            }
            return;
        }
        ("GET", _) => return library::show(machine, reply, &Fields::default(), Some(last)),
        ("POST", "/api/me") => return account::me(machine, reply),
        ("POST", "/api/signout") | ("DELETE", "/api/user/keys/*") => {
            return account::sign_out(machine, reply);
        }
        _ if path.starts_with("/api/user/keys/") => return account::sign_out(machine, reply),
        _ => {}
    }
    if path.starts_with("/api/blobs/") {
        return library::blob(machine, reply, last);
    }
    let body = body::read(machine, reply.call);
    if reply.call.has_ended() {
        return reply.error(400, "unexpected EOF");
    }
    if path == "/v1/audio/transcriptions" {
        return transcribe(machine, reply, &body);
    }
    let is_compatible = reply.dialect != Dialect::Ollama;
    let body = if is_compatible { body::decoded(&reply.call.head, body) } else { Ok(body) };
    let fields = match body.and_then(|body| Fields::parse(&body)) {
        Ok(fields) => fields,
        Err(_) if path == "/api/me" => Fields::default(),
        Err(error) if is_compatible && error == "missing request body" => {
            return reply.error(400, "EOF");
        }
        Err(error) => return reply.error(400, &error),
    };
    let kind = match path {
        "/api/show" => return library::show(machine, reply, &fields, None),
        "/api/delete" => return library::delete(machine, reply, &fields),
        "/api/copy" => return library::copy(machine, reply, &fields),
        "/api/pull" => return library::pull(machine, reply, &fields),
        "/api/push" => return library::push(machine, reply, &fields),
        "/api/create" => return library::create(machine, reply, &fields),
        "/api/experimental/web_search" | "/api/experimental/web_fetch" => {
            let name = last.replace('_', " ");
            if account::reaches_cloud(machine, reply, &format!("{name} is unavailable")) {
                reply.json(200, "{\"results\":[]}");
            }
            return;
        }
        _ if last == "input_tokens" || last == "count_tokens" => {
            reply.model = fields.text("model").ok();
            let count = machine.world(|world| world.prompt_tokens);
            return reply.json(200, format!("{{\"input_tokens\":{count}}}"));
        }
        "/api/generate" => Kind::Generate,
        "/api/chat" => Kind::Chat,
        "/api/embed" => Kind::Embed,
        "/api/embeddings" => Kind::Embeddings,
        "/v1/chat/completions" => Kind::OpenAiChat,
        "/v1/completions" => Kind::OpenAiCompletion,
        "/v1/embeddings" => Kind::OpenAiEmbeddings,
        "/v1/responses" => Kind::Responses,
        _ => Kind::Messages,
    };
    inference::serve(machine, reply, kind, &fields);
}

fn transcribe(machine: &Machine, reply: &mut Reply<'_, '_>, body: &[u8]) {
    let (model, has_file) = match body::form_field(&reply.call.head, body, "model") {
        Ok(found) => found,
        Err(error) => return reply.error(400, &error),
    };
    if model.is_empty() {
        return reply.error(400, "model is required");
    }
    reply.model = Some(model.clone());
    if !has_file {
        return reply.error(400, "file is required: http: no such file");
    }
    let fields = Fields::parse(serde_json::json!({"model": model}).to_string().as_bytes());
    inference::serve(machine, reply, Kind::Transcription, &fields.unwrap_or_default());
}
