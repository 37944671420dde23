//! What the proxies answer about themselves, below `/ollana/`. Nothing of it goes upstream.
//!
//! | path | answer |
//! |---|---|
//! | `/ollana/` | the page |
//! | `/ollana/status` | the state as JSON (`status::json`); `?brief` without models on disk |
//! | `/ollana/metrics` | Prometheus' text |
//! | `/ollana/health` | 200 while the Manager answers, else 503 |
//! | `/ollana/ready` | 200 while requests can be served, else 503 |
//! | `/ollana/blobs/…`, `/ollana/manifests/…` | models, for other machines (`donate`) |
//! | `DELETE /ollana/servers/NAME` | forgets a server that is away; for programs of this machine |
//! | `POST /ollana/unload?…` | takes a model out of memory; for the page on this machine (`unload`) |
//!
//! But for models, only this machine may ask, and whom `--status-from` lets. `Host` was checked before. A page of
//! another site can't read the answers, for want of CORS fields, and isn't answered at all where
//! the browser says who asks (`Sec-Fetch-Site`).

use std::time::Instant;

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, Method};
use serde_json::json;

use super::{Context, End, Exchange, OwnAnswer, unload};
use crate::access::cors::SEC_FETCH_SITE;
use crate::http::target::{percent_decode, split_query};
use crate::manager::pool::Forgot;
use crate::net::interfaces::unknown_interfaces;
use crate::proxy::answers;
use crate::status::{self, View};
use crate::system::{self, Hex};

const HTML: &str = "text/html; charset=utf-8";
/// The text format's own media type.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// For what isn't a page: it runs nothing and shows nowhere.
const CLOSED: &str = "default-src 'none'; frame-ancestors 'none'";
/// Where the page's number of one use goes: only the script and the style that carry it run.
const NONCE: &str = "{nonce}";
/// Where the token for `unload` goes.
const TOKEN: &str = "{token}";
/// The page talks to nobody but us.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'nonce-{nonce}'; \
                           style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is answered on a path of ours.
struct Content {
    status: u16,
    media: &'static str,
    body: String,
    policy: HeaderValue,
    fields: HeaderMap,
}

impl Content {
    fn new(status: u16, media: &'static str, body: String) -> Self {
        let policy = HeaderValue::from_static(CLOSED);
        Content { status, media, body, policy, fields: HeaderMap::new() }
    }

    fn json(status: u16, body: &serde_json::Value) -> Self {
        Content::new(status, answers::JSON, format!("{body}\n"))
    }

    /// With the token for who may unload models.
    fn page(token: Option<String>) -> Result<Self, OwnAnswer> {
        let random = system::random::<16>().map_err(|_| OwnAnswer::NoRandomBytes)?;
        let nonce = Hex(&random).to_string();
        let page = status::PAGE.replace(NONCE, &nonce).replace(TOKEN, &token.unwrap_or_default());
        let page = Content::new(200, HTML, page);
        match HeaderValue::from_str(&PAGE_POLICY.replace(NONCE, &nonce)) {
            Ok(policy) => Ok(Content { policy, ..page }),
            Err(_) => Ok(page),
        }
    }
}

fn allowed(path: &str) -> &'static str {
    match path {
        unload::PATH => "POST",
        _ if path.starts_with("/servers/") => "DELETE",
        _ => "GET, HEAD",
    }
}

impl From<OwnAnswer> for Content {
    fn from(own: OwnAnswer) -> Self {
        let row = own.row();
        let content = Content::json(row.status, &json!({ "error": row.text }));
        Content { fields: own.fields(), ..content }
    }
}

impl Exchange<'_> {
    /// Answers a request for one of our own paths.
    pub(super) fn answer_own_path(&self) -> Option<End> {
        let rest = self.head.target.strip_prefix("/ollana")?;
        let (path, query) = split_query(rest);
        if !path.is_empty() && !path.starts_with('/') {
            return None;
        }
        let content = match self.donate(path) {
            Some(Ok(end)) => return Some(end),
            Some(Err(own)) => Err(own),
            None => self.own_content(path, query),
        };
        let mut content = content.unwrap_or_else(Content::from);
        let fields = &mut content.fields;
        match content.status {
            308 => fields.insert(LOCATION, HeaderValue::from_static("/ollana/")),
            405 => fields.insert(ALLOW, HeaderValue::from_static(allowed(path))),
            _ => None,
        };
        fields.insert(CONTENT_SECURITY_POLICY, content.policy);
        let fixed: [(HeaderName, &'static str); 6] = [
            (CONTENT_TYPE, content.media),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        fields.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
        let form = self.form();
        let answer = answers::write(content.status, fields, &content.body, form);
        Some(self.write_answer(&answer, form.closes))
    }

    fn own_content(&self, path: &str, query: &str) -> Result<Content, OwnAnswer> {
        let Exchange { context, connection, head, .. } = self;
        let may_see_state = connection.is_own()
            || context.settings.status_from.iter().any(|net| net.contains(connection.peer.ip()));
        if !may_see_state {
            return Err(OwnAnswer::OwnPathClosed);
        }
        // Following a link to the page is fine: the page shows itself to people, not to the site that
        // linked.
        let site = head.fields.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        if matches!(site, Some(b"cross-site" | b"same-site")) && !matches!(path, "" | "/") {
            return Err(OwnAnswer::OwnPathForeignPage);
        }
        if let Some(name) = path.strip_prefix("/servers/") {
            return self.forget(name);
        }
        if path == unload::PATH {
            return self.unload(query).map(|(status, body)| Content::json(status, &body));
        }
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(OwnAnswer::OwnPathMethod);
        }
        match path {
            "" => Ok(Content::new(308, HTML, String::new())),
            "/" => Content::page(connection.is_own().then(unload::token).flatten()),
            "/health" => match context.mailbox.snapshot() {
                Some(_) => Ok(Content::json(200, &json!({ "status": "ok" }))),
                None => Err(OwnAnswer::NoState),
            },
            "/ready" => {
                let presence = &context.presence;
                let is_client = self.is_client();
                Ok(match if is_client { presence.is_up() } else { presence.is_local_up() } {
                    true => Content::json(200, &json!({ "status": "ready" })),
                    false => Content::json(503, &json!({ "status": "no server is ready" })),
                })
            }
            "/status" => self.viewed(|view| {
                let is_brief = query.split('&').any(|part| part == "brief");
                let state = status::json(view, !is_brief);
                Content::json(200, &state)
            }),
            "/metrics" => self.viewed(|view| Content::new(200, METRICS, status::metrics(view))),
            _ => Err(OwnAnswer::OwnPathUnknown),
        }
    }

    /// Not even a page of our own may do that: it would have to tell its origin.
    fn forget(&self, name: &str) -> Result<Content, OwnAnswer> {
        let fields = &self.head.fields;
        if !self.connection.is_own() {
            return Err(OwnAnswer::OwnPathClosed);
        }
        if fields.contains_key(ORIGIN) || fields.contains_key(SEC_FETCH_SITE) {
            return Err(OwnAnswer::OwnPathForeignPage);
        }
        if self.head.method != Method::DELETE {
            return Err(OwnAnswer::OwnPathMethod);
        }
        let name = percent_decode(name).and_then(|name| String::from_utf8(name).ok());
        let name = name.ok_or(OwnAnswer::OwnPathUnknown)?;
        Ok(match self.context.mailbox.forget(&name).ok_or(OwnAnswer::NoState)? {
            Forgot::Done(servers) => {
                let forgotten = status::forgotten(&servers);
                Content::json(200, &json!({ "version": 1, "forgotten": forgotten }))
            }
            Forgot::IsUp => {
                let error = format!("{name} is up, and would be known again at once");
                Content::json(409, &json!({ "error": error }))
            }
            Forgot::Unknown(names) => {
                let error = format!("no server called {name:?} is known");
                Content::json(404, &json!({ "error": error, "known": names }))
            }
        })
    }

    fn viewed(&self, write: impl Fn(&View<'_>) -> Content) -> Result<Content, OwnAnswer> {
        let Context { presence, settings, .. } = self.context;
        let known = presence.about().zip(self.context.mailbox.snapshot());
        let (about, snapshot) = known.ok_or(OwnAnswer::NoState)?;
        Ok(write(&View {
            about: &about,
            snapshot: &snapshot,
            counters: presence.counters(),
            keyring: &self.context.keyring,
            is_ready: presence.is_up(),
            advice: presence.advice(),
            awake: presence.awake(),
            odd: settings
                .warnings
                .iter()
                .cloned()
                .chain(unknown_interfaces(&settings.interfaces))
                .collect(),
            now: Instant::now(),
        }))
    }
}
