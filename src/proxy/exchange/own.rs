//! What the proxies answer about themselves, below `/ollana/`. Nothing of it goes upstream.
//!
//! | path | answer |
//! |---|---|
//! | `/ollana/` | the page |
//! | `/ollana/status` | the state as JSON (`status::json`); `?brief` without models on disk |
//! | `/ollana/metrics` | Prometheus' text |
//! | `/ollana/health` | 200 while the Manager answers, else 503 |
//! | `/ollana/ready` | 200 while requests can be served, else 503 |
//!
//! Only this machine may ask, and whom `--status-from` lets. `Host` was checked before. A page of
//! another site can't read the answers, for want of CORS fields, and isn't answered at all where
//! the browser says who asks (`Sec-Fetch-Site`).

use crate::system;
use std::time::Instant;

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use super::{End, Exchange};
use crate::access::permissions::Caller;
use crate::http::fields::{self, AnswerFraming};
use crate::http::head::Framing;
use crate::manager::{About, Snapshot};
use crate::proxy::connection::Downstream;
use crate::status::{self, View};

const JSON: &str = "application/json; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// The text format's own media type.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What isn't a page runs nothing and shows nowhere.
const CLOSED: &str = "default-src 'none'; frame-ancestors 'none'";
/// Where the page's number of one use goes: only the script and the style that carry it run.
const NONCE: &str = "{nonce}";
/// The page talks to nobody but us.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'nonce-{nonce}'; \
                           style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is answered.
struct Own {
    status: u16,
    media: &'static str,
    body: String,
    policy: HeaderValue,
}

impl Own {
    fn new(status: u16, media: &'static str, body: String) -> Self {
        Own { status, media, body, policy: HeaderValue::from_static(CLOSED) }
    }

    fn json(status: u16, body: &serde_json::Value) -> Self {
        Own::new(status, JSON, format!("{body}\n"))
    }

    fn page() -> Self {
        let Ok(random) = system::random::<16>() else {
            return Own::error(503, "the system has no random bytes");
        };
        let nonce = format!("{:032x}", u128::from_ne_bytes(random));
        let policy = HeaderValue::from_str(&PAGE_POLICY.replace(NONCE, &nonce));
        let closed = HeaderValue::from_static(CLOSED);
        let page = Own::new(200, HTML, status::PAGE.replace(NONCE, &nonce));
        Own { policy: policy.unwrap_or(closed), ..page }
    }

    fn error(status: u16, message: &str) -> Self {
        Own::json(status, &json!({ "error": message }))
    }
}

impl Exchange<'_> {
    /// Answers a request for one of our own paths.
    pub(super) fn answer_about_itself(&self, connection: &mut Downstream) -> Option<End> {
        let rest = self.head.target.strip_prefix("/ollana")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !rest.is_empty() && !rest.starts_with('/') {
            return None;
        }
        let mut fields = HeaderMap::new();
        let own = if !self.is_welcome(connection) {
            let why = "only programs on this machine may ask for this; \
                       others with: ollana --status-from ADDRESS";
            Own::error(403, why)
        } else if self.is_foreign_page(rest) {
            Own::error(403, "a page of another site may not ask for this")
        } else if !matches!(self.head.method, Method::GET | Method::HEAD) {
            fields.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            Own::error(405, "only GET and HEAD")
        } else {
            if rest.is_empty() {
                fields.insert(LOCATION, HeaderValue::from_static("/ollana/"));
            }
            self.own_answer(rest, query)
        };
        Some(self.send_own(connection, own, fields))
    }

    fn own_answer(&self, path: &str, query: &str) -> Own {
        match path {
            "" => Own::new(308, HTML, String::new()),
            "/" => Own::page(),
            "/health" => match self.context.mailbox.snapshot() {
                Some(_) => Own::json(200, &json!({ "status": "ok" })),
                None => Own::error(503, "the state can't be had"),
            },
            "/ready" => {
                let presence = &self.context.presence;
                let is_ready =
                    if self.is_client() { presence.is_up() } else { presence.is_local_up() };
                match is_ready {
                    true => Own::json(200, &json!({ "status": "ready" })),
                    false => Own::json(503, &json!({ "status": "no server is ready" })),
                }
            }
            "/status" => self.viewed(|view| {
                let is_brief = query.split('&').any(|part| part == "brief");
                let state = if is_brief { status::brief(view) } else { status::full(view) };
                Own::json(200, &state)
            }),
            "/metrics" => self.viewed(|view| Own::new(200, METRICS, status::metrics(view))),
            _ => Own::error(
                404,
                "no such path; there are the page at /ollana/, status, metrics, health and ready",
            ),
        }
    }

    fn viewed(&self, write: impl Fn(&View<'_>) -> Own) -> Own {
        let presence = &self.context.presence;
        let known: Option<(_, Snapshot)> = presence.about().zip(self.context.mailbox.snapshot());
        match known {
            Some((about, snapshot)) => {
                let about: &About = &about;
                let keyring = &self.context.keyring;
                write(&View::new(about, &snapshot, presence, keyring, Instant::now()))
            }
            None => Own::error(503, "the state can't be had"),
        }
    }

    /// Whether the caller is this machine, or one that may ask.
    fn is_welcome(&self, connection: &Downstream) -> bool {
        let peer = connection.peer().ip();
        let own = connection.stream().socket().local_addr().ok().map(|own| own.ip());
        Caller::of(peer, own) == Caller::Own
            || self.context.status_from.iter().any(|network| network.contains(peer))
    }

    /// Whether a browser says that a page of another site asks. Following a io to the page is
    /// fine: the page shows itself to people, not to who linked.
    fn is_foreign_page(&self, path: &str) -> bool {
        let site = self.head.fields.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let is_foreign = matches!(site, Some(b"cross-site" | b"same-site"));
        is_foreign && !matches!(path, "" | "/")
    }

    fn send_own(&self, connection: &Downstream, own: Own, mut fields: HeaderMap) -> End {
        let status = StatusCode::from_u16(own.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        fields.insert(CONTENT_SECURITY_POLICY, own.policy);
        let fixed: [(HeaderName, &'static str); 6] = [
            (CONTENT_TYPE, own.media),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        for (name, value) in fixed {
            fields.insert(name, HeaderValue::from_static(value));
        }
        let unread = self.framing != Framing::Empty;
        let close = unread
            || connection.is_reserve()
            || !self.head.keep_alive
            || self.context.connections.is_draining();
        let is_head = self.head.method == Method::HEAD;
        let length = own.body.len() as u64;
        let framing = if is_head { AnswerFraming::None } else { AnswerFraming::Length(length) };
        let mut out = Vec::with_capacity(1024 + own.body.len());
        fields::write_answer_head(&mut out, status, &fields, framing, Some(length), close);
        if !is_head {
            out.extend_from_slice(own.body.as_bytes());
        }
        let stall = self.context.timing.stall_timeout;
        match connection.stream().write_all(&out, stall) {
            Ok(()) if !close => End::Keep,
            Ok(()) => End::Close,
            Err(_) => End::Cut,
        }
    }
}
