//! Every answer that a proxy makes itself instead of passing one on: one table of their statuses,
//! causes and texts, and how they are written.
//!
//! The cause goes into `X-Ollana-Error`, by which the next proxy knows that no Ollama has answered,
//! and into the metrics. The body has the shape of the API that was called (`ollama::errors`).

use http::header::{
    ALLOW, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, StatusCode};

use crate::http::fields::{self, AnswerFraming, ERROR_FIELD, POLICY, UNREACHED, UPSTREAM};
use crate::http::head::Refusal;
use crate::ollama::errors::Dialect;
use crate::upstream::exchange_io::Fault;

/// The status, for the log and the metrics, where no client is left to read an answer.
pub(crate) const CLIENT_LEFT: u16 = 499;

/// Media types, as Ollama writes them.
pub(crate) const JSON: &str = "application/json; charset=utf-8";
pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";

/// Texts come with those that name a machine or a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OwnAnswer {
    /// All places for connections are taken.
    Full,
    /// All places for connections of one address are taken.
    FullForSource,
    /// The head isn't served.
    Head(Refusal),
    ForeignHost,
    Unpaired,
    /// A token would do instead.
    NoToken,
    WrongToken,
    /// So many came from this address that none is looked at.
    WrongTokens,
    ForeignPage,
    Loop,
    Policy(String),
    /// As Ollama says it.
    NoPath,
    /// The path has these methods.
    NoMethod(String),
    NoServer(String),
    QueueFull,
    /// Nothing of the request reached an upstream.
    Unreached(String),
    /// The upstream failed before its answer.
    Failed(String),
    Fault(Fault),
    /// Of our own paths, below `/ollana/`.
    OwnPathClosed,
    OwnPathForeignPage,
    OwnPathMethod,
    OwnPathToken,
    OwnPathUnknown,
    NoRandomBytes,
    NoState,
    /// Of a model: there is none of this name that the caller may have.
    NotShared,
    /// As many others get blobs as may.
    DonorBusy,
    /// A blob of this size has nothing in the range that was asked for.
    NoSuchRange(u64),
    /// A model can't be copied: with which status, and why.
    NoCopy(u16, String),
}

pub(crate) struct Row<'a> {
    pub(crate) status: u16,
    pub(crate) cause: &'static str,
    pub(crate) text: &'a str,
}

impl OwnAnswer {
    #[rustfmt::skip]
    pub(crate) fn row(&self) -> Row<'_> {
        let (status, cause, text) = match self {
            OwnAnswer::Full => (503, "full", "too many connections"),
            OwnAnswer::FullForSource => (429, "full", "too many connections from your address"),
            OwnAnswer::Head(refusal) => (refusal.status, "request", refusal.reason),
            OwnAnswer::ForeignHost => (403, "host",
                "the Host of this request is not a name of this machine; \
                 if it is, start ollana with --host NAME"),
            OwnAnswer::Unpaired => (403, "unpaired",
                "this machine answers only machines that are paired with it: run ollana pair on both \
                 (for a device that can't run ollana: ollana token add NAME on this machine), or \
                 start it with --unpaired on"),
            OwnAnswer::NoToken => (401, "unpaired",
                "this machine answers only paired machines and requests with a token: run ollana pair \
                 on both, or ollana token add NAME on it and send what that prints as API key \
                 (Authorization: Bearer TOKEN)"),
            OwnAnswer::WrongToken => (401, "token",
                "this token is not one of this machine's: run ollana token add NAME on it and \
                 send what that prints as API key (Authorization: Bearer TOKEN)"),
            OwnAnswer::WrongTokens => (429, "token",
                "too many wrong tokens came from your address: try again in a minute"),
            OwnAnswer::ForeignPage => (403, "origin",
                "web pages from there may not use this Ollama; to allow them, \
                 set OLLAMA_ORIGINS for the ollana on this machine"),
            OwnAnswer::Loop => (508, "loop",
                "this request has been here before: ollana proxies point at each other"),
            OwnAnswer::Policy(text) => (403, POLICY, text.as_str()),
            OwnAnswer::NoPath => (404, POLICY, "404 page not found"),
            OwnAnswer::NoMethod(_) => (405, POLICY, "405 method not allowed"),
            OwnAnswer::NoServer(text) => (503, UNREACHED, text.as_str()),
            OwnAnswer::QueueFull => (503, "busy", "all servers are busy and the queue is full"),
            OwnAnswer::Unreached(text) => (502, UNREACHED, text.as_str()),
            OwnAnswer::Failed(text) => (502, UPSTREAM, text.as_str()),
            OwnAnswer::Fault(Fault::ClientLeft | Fault::ClientStalled) => (CLIENT_LEFT, "left", ""),
            OwnAnswer::Fault(Fault::OutOfResources) => (503, UNREACHED,
                "this machine is out of file descriptors or memory"),
            OwnAnswer::Fault(Fault::NoMemoryForBody) => (503, "busy",
                "other requests' bodies take up all memory for them: try again, or start ollana \
                 with a larger --replay-budget"),
            OwnAnswer::Fault(Fault::BodyMalformed(reason)) => (400, "body", *reason),
            OwnAnswer::Fault(Fault::BodyTooSlow) => (408, "body", "the body took too long"),
            OwnAnswer::Fault(Fault::BodyTooLong) => (413, "body", "the body is too long"),
            OwnAnswer::OwnPathClosed => (403, "own",
                "only programs on this machine may ask for this; \
                 others with: ollana --status-from ADDRESS"),
            OwnAnswer::OwnPathForeignPage => (403, "own",
                "a page of another site may not ask for this"),
            OwnAnswer::OwnPathMethod => (405, "own", "this path takes other methods: Allow names them"),
            OwnAnswer::OwnPathToken => (403, "own",
                "only the page at /ollana/ may ask for this, since its token was made: load it again"),
            OwnAnswer::OwnPathUnknown => (404, "own",
                "no such path; there are the page at /ollana/, status, metrics, health and ready"),
            OwnAnswer::NoRandomBytes => (503, "own", "the system has no random bytes"),
            OwnAnswer::NoState => (503, "own", "ollana is too busy to tell its state, or stopping"),
            OwnAnswer::NotShared => (404, "own",
                "this machine has no such blob or manifest that it shares with yours"),
            OwnAnswer::DonorBusy => (503, "own",
                "as many others get models from this machine as may; try again in a moment"),
            OwnAnswer::NoSuchRange(_) => (416, "own", "the blob has no such bytes"),
            OwnAnswer::NoCopy(status, text) => (*status, "own", text.as_str()),
        };
        Row { status, cause, text }
    }

    pub(crate) fn fields(&self) -> HeaderMap {
        let Row { status, cause, .. } = self.row();
        let mut fields = HeaderMap::new();
        fields.insert(ERROR_FIELD, HeaderValue::from_static(cause));
        if matches!(status, 429 | 503) {
            let seconds = if *self == OwnAnswer::WrongTokens { "60" } else { "1" };
            fields.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if status == 401 {
            fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let OwnAnswer::NoSuchRange(size) = self
            && let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}"))
        {
            fields.insert(CONTENT_RANGE, range);
        }
        if let OwnAnswer::NoMethod(allowed) = self
            && let Ok(allowed) = HeaderValue::from_str(allowed)
        {
            fields.insert(ALLOW, allowed);
        }
        fields
    }

    pub(crate) fn body(&self, dialect: Dialect) -> String {
        let Row { status, text, .. } = self.row();
        dialect.error(status, text).to_string()
    }

    /// The whole answer in Ollama's own shape, for a connection that is closed after it.
    pub(crate) fn write_last(&self) -> Vec<u8> {
        let form = Form { is_head: false, closes: true };
        write_json(self.row().status, self.fields(), &self.body(Dialect::Ollama), form)
    }
}

/// How an answer of our own is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// The request's method is HEAD, so no body follows.
    pub(crate) is_head: bool,
    /// The connection ends after it.
    pub(crate) closes: bool,
}

/// The bytes of an answer with a body of JSON.
fn write_json(status: u16, mut fields: HeaderMap, body: &str, form: Form) -> Vec<u8> {
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    write(status, &fields, body, form)
}

pub(crate) fn write(status: u16, fields: &HeaderMap, body: &str, form: Form) -> Vec<u8> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let length = body.len() as u64;
    let framing = match form.is_head {
        true => AnswerFraming::None,
        false => AnswerFraming::Length(length),
    };
    let mut out = Vec::with_capacity(1024 + body.len());
    fields::write_answer_head(&mut out, status, fields, framing, Some(length), form.closes);
    if !form.is_head {
        out.extend_from_slice(body.as_bytes());
    }
    out
}
