//! What Ollama answers before any of its handlers runs. Go's mux redirects to the clean path; gin,
//! with or without a slash at the end, to the path that it has, and answers 405 or 404 itself
//! (`RedirectTrailingSlash` and `HandleMethodNotAllowed` are on, `RedirectFixedPath` isn't).

use http::Method;

use super::{ENDPOINTS, Endpoint};
use crate::http::target::{percent_decode, split_query};

/// What becomes of a request that no row of the table is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Routed {
    /// To a path of the table, with the request's query. Never to another host: no clean path
    /// begins with two slashes.
    Moved(String),
    /// The path has these methods.
    NoMethod(String),
    NoPath,
    /// Ollama may have a handler for it, such as for escapes where none are needed.
    Unclear,
}

/// By the request's method and target.
pub(crate) fn routed(method: &Method, target: &str) -> Routed {
    let (path, query) = split_query(target);
    let moved = |path: &str| {
        Routed::Moved(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
    };
    let clean = clean(path);
    if clean != path {
        let is_known = |path: &str| fitting(path).next().is_some();
        return match is_known(&clean) || is_known(&with_other_end(&clean)) {
            true => moved(&clean),
            false => unknown(&clean),
        };
    }
    let other = with_other_end(path);
    if fitting(&other).any(|row| row.takes(method)) {
        return moved(&other);
    }
    let allowed = [Method::HEAD, Method::GET, Method::POST, Method::DELETE];
    let allowed = allowed.iter().filter(|method| fitting(path).any(|row| row.takes(method)));
    match allowed.map(Method::as_str).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => unknown(path),
        allowed => Routed::NoMethod(allowed),
    }
}

/// The rows that are for this path.
fn fitting(path: &str) -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS.iter().filter(move |row| row.fits(path))
}

fn unknown(path: &str) -> Routed {
    let decoded = percent_decode(path).and_then(|bytes| String::from_utf8(bytes).ok());
    // Go's own handlers for profiles are there, too.
    let is_there = |path: String| fitting(&path).next().is_some() || path.starts_with("/debug/");
    if decoded.is_some_and(is_there) { Routed::Unclear } else { Routed::NoPath }
}

/// Without empty, `.` and `..` segments; a slash at the end stays.
fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    let end = if path.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

/// Without the slash at the end, or with one.
fn with_other_end(path: &str) -> String {
    path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_ollamas_router_does() {
        let moved = |to: &str| Routed::Moved(to.to_owned());
        let no_method = |allowed: &str| Routed::NoMethod(allowed.to_owned());
        for (request, want) in [
            ("GET //api/tags", moved("/api/tags")),
            ("GET ////api///tags?a=//b/../c&d", moved("/api/tags?a=//b/../c&d")),
            ("POST /api//chat", moved("/api/chat")),
            ("POST //api/tags", moved("/api/tags")),
            ("GET /api/./tags", moved("/api/tags")),
            ("GET /x/../api/tags", moved("/api/tags")),
            ("GET /../../api/tags", moved("/api/tags")),
            ("GET //evil.example/../api/tags", moved("/api/tags")),
            ("GET /\\evil.example/../api/tags", moved("/api/tags")),
            ("GET //", moved("/")),
            ("GET //evil.example/..", moved("/")),
            ("GET //v1/models/a%3Ab", moved("/v1/models/a%3Ab")),
            ("GET /api/tags/", moved("/api/tags")),
            ("GET /api/tags/?x=1", moved("/api/tags?x=1")),
            // In two steps, as Ollama does it.
            ("GET //api/tags//", moved("/api/tags/")),
            ("POST /api/chat/", moved("/api/chat")),
            ("GET /v1/models/", moved("/v1/models")),
            ("GET /v1/models/a/", moved("/v1/models/a")),
            ("POST /api/tags/", Routed::NoPath),
            ("GET /api/chat", no_method("POST")),
            ("OPTIONS /api/chat", no_method("POST")),
            ("POST /api/tags", no_method("HEAD, GET")),
            ("HEAD /api/ps", no_method("GET")),
            ("POST /", no_method("HEAD, GET")),
            ("GET /api/blobs/sha256:0", no_method("HEAD, POST")),
            ("get /api/tags", no_method("HEAD, GET")),
            ("GET /api/nosuch", Routed::NoPath),
            ("GET //evil.example/x", Routed::NoPath),
            ("GET //evil.example:80/api/tags", Routed::NoPath),
            ("GET /%2Fevil.example/../api/x", Routed::NoPath),
            ("GET /api", Routed::NoPath),
            ("GET /api/", Routed::NoPath),
            ("GET /v1/", Routed::NoPath),
            ("POST /api/blobs/", Routed::NoPath),
            ("GET /v1/models/a/b", Routed::NoPath),
            ("GET /API/tags", Routed::NoPath),
            ("GET /favicon.ico", Routed::NoPath),
            ("GET /%zz", Routed::NoPath),
            ("POST /api/pull%00", Routed::NoPath),
            ("POST /api/generate/%2e%2e/pull", Routed::NoPath),
            ("POST /api/%70ull", Routed::Unclear),
            ("POST /api%2fpull", Routed::Unclear),
            ("POST //api/%70ull", Routed::Unclear),
            ("GET /debug/pprof/heap", Routed::Unclear),
        ] {
            let (method, target) = request.split_once(' ').expect("two words");
            let method = Method::from_bytes(method.as_bytes()).expect("method");
            assert_eq!(routed(&method, target), want, "{request}");
        }
    }

    #[test]
    fn no_redirect_leaves_this_host() {
        let parts = ["/", "//", "..", ".", "evil.example", "api", "tags", "\\", "%2f", "@", ":80"];
        let mut random: usize = 1;
        for _ in 0..20_000 {
            let path: String = (0..8)
                .map(|_| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    parts[(random >> 33) % parts.len()]
                })
                .collect();
            if let Routed::Moved(to) = routed(&Method::GET, &format!("/{path}")) {
                assert!(
                    to.starts_with("/api/") || to.starts_with("/v1/") || to == "/",
                    "{path} {to}"
                );
            }
        }
    }
}
