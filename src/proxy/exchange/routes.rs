//! Answers that Ollama gives before any of its handlers runs, wherever it is and whether there is
//! one: that it is running, OPTIONS, redirects, 404 and 405.
//!
//! A newer Ollama may have paths that aren't known here. Programs of this machine, and paired ones,
//! hear from it whether it has; other machines get nothing that isn't known, so to them it hasn't.

use http::header::{HOST, HeaderValue, LOCATION, VIA};
use http::{HeaderMap, Method, StatusCode};

use super::{End, Exchange, OwnAnswer, answers};
use crate::access::host;
use crate::access::permissions::Caller;
use crate::http::fields::{self, AnswerFraming};
use crate::http::target::split_query;
use crate::ollama::endpoints::{Class, Routed, routed};

impl Exchange<'_> {
    /// Answers what gets to no handler of Ollama's.
    pub(super) fn answer_as_router(&self, caller: Caller) -> Result<Option<End>, OwnAnswer> {
        if self.greets() && !self.context.presence.is_up() {
            return Ok(Some(self.greet()));
        }
        if self.endpoint.class != Class::Unknown {
            return Ok(None);
        }
        // Ollama lets every OPTIONS pass that is sent to a name, and none that is sent to an address.
        let is_to_name = || host::is_name(self.head.fields.get(HOST).map(HeaderValue::as_bytes));
        if self.head.method == Method::OPTIONS && is_to_name() {
            return Ok(Some(self.answer_empty(StatusCode::NO_CONTENT, HeaderMap::new())));
        }
        match routed(&self.head.method, &self.head.target) {
            Routed::Moved(to) => Ok(Some(self.redirect(&to)?)),
            _ if caller.is_trusted() => Ok(None),
            Routed::NoMethod(allowed) => Err(OwnAnswer::NoMethod(allowed)),
            Routed::NoPath => Err(OwnAnswer::NoPath),
            Routed::Unclear => Ok(None),
        }
    }

    /// Whether this is the question whether Ollama is running, with which the official CLI begins: a
    /// client's proxy says yes whatever its servers do, so that the CLI asks on and prints why what
    /// it asks then can't be had.
    pub(super) fn greets(&self) -> bool {
        let is_read = matches!(self.head.method, Method::GET | Method::HEAD);
        self.is_client() && is_read && split_query(&self.head.target).0 == "/"
    }

    pub(super) fn greet(&self) -> End {
        let via = HeaderMap::from_iter([(VIA, self.context.via.clone())]);
        self.answer_as(200, via, answers::PLAIN, "Ollama is running")
    }

    /// Whether errors at this path have a shape, rather than being plain text.
    pub(super) fn is_of_api(&self) -> bool {
        ["/api/", "/v1/"].iter().any(|api| self.head.target.starts_with(api))
    }

    fn redirect(&self, to: &str) -> Result<End, OwnAnswer> {
        let status = match self.head.method {
            Method::GET => StatusCode::MOVED_PERMANENTLY,
            _ => StatusCode::TEMPORARY_REDIRECT,
        };
        let to = HeaderValue::from_str(to).map_err(|_| OwnAnswer::NoPath)?;
        Ok(self.answer_empty(status, HeaderMap::from_iter([(LOCATION, to)])))
    }

    /// Answers without a body.
    pub(super) fn answer_empty(&self, status: StatusCode, mut fields: HeaderMap) -> End {
        if let Some(cors) = &self.cors {
            cors.mark(&mut fields);
        }
        let (mut answer, closes) = (Vec::with_capacity(1024), self.closes());
        let length = (status != StatusCode::NO_CONTENT).then_some(0);
        let framing = AnswerFraming::None;
        fields::write_answer_head(&mut answer, status, &fields, framing, length, closes);
        let end = self.write_answer(&answer, closes);
        self.log(status.as_u16(), "-", 0, None);
        end
    }
}
