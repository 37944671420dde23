//! A copy that another machine is to get, asked for at one that is only a server and has no other way
//! there: that machine's ollana is asked for it, and its answer passed on.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use serde_json::{Value, json};

use super::super::{End, Exchange, OwnAnswer, Side};
use super::answer::{Answer, Broken};
use super::{knows_copies, refused};
use crate::http::fields::{COPY_FIELD, SERVER_FIELD};
use crate::net::untrusted_text::printable;
use crate::ollama::endpoints::PULL;
use crate::ollama::pull;
use crate::proxy::request_body::RequestBody;
use crate::upstream::build_uri;
use crate::upstream::exchange_io::{self, Attempt};

/// Bytes of a line; those of a copy have two hundred.
const LONGEST_LINE: u64 = 64 << 10;

impl<'a> Exchange<'a> {
    /// The machine that is to get a copy, if a program of this machine names another one.
    pub(in super::super) fn copy_goes_to(&self) -> Option<&'a str> {
        let is_asked = self.context.side == Side::Server && self.connection.is_own();
        let target = self.head.fields.get(SERVER_FIELD).filter(|_| is_asked)?.to_str().ok()?;
        let is_here =
            target.eq_ignore_ascii_case(&self.context.machine) || self.is_own_address(target);
        Some(target).filter(|_| !is_here)
    }

    pub(in super::super) fn copy_onward(
        &mut self,
        mut body: RequestBody<'a>,
        target: &str,
        donor: &str,
    ) -> Result<End, OwnAnswer> {
        let (model, streams) = self.copy_asked(&mut body)?;
        let target = self.neighbour(target)?;
        let name = printable(&target.name);
        let failed = |reason: String| refused(502, format!("{name}: {reason}"));
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = build_uri(target.address, "", PULL).map_err(failed)?;
        // What takes it for an ordinary pull must find no such model.
        let body = json!({ "model": format!("{model}@copy"), "stream": true }).to_string();
        let fields = request.headers_mut();
        let donor = HeaderValue::from_str(donor).map_err(|error| failed(error.to_string()))?;
        fields.insert(COPY_FIELD, donor);
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        fields.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let client = Some(Arc::clone(&self.connection.stream));
        self.upstream.begin(Attempt { client, is_lan: true, ..Attempt::default() });
        let answer = self.upstream.send(request, Some(&mut body.as_bytes()));
        let answer = answer.map_err(|reason| self.fault().unwrap_or_else(|| failed(reason)))?;
        knows_copies(answer.headers(), &name)?;
        let status = answer.status();
        let mut lines = BufReader::new(answer.into_body().into_reader());
        if !status.is_success() {
            let mut text = Vec::new();
            let _ = lines.take(LONGEST_LINE).read_to_end(&mut text);
            let told =
                pull::error(&text).unwrap_or_else(|| format!("answers with status {status}"));
            return Err(refused(status.as_u16(), format!("{name}: {}", printable(&told))));
        }
        let mut answer = Answer { exchange: self, streams, transfer: None, bytes: 0 };
        let passed = answer.begin().and_then(|()| pass_on(&mut lines, &mut answer));
        let failed = match passed {
            Ok(()) => None,
            Err(Broken::Failed(reason)) => Some(format!("{name}: {reason}")),
            Err(Broken::ClientLeft) => {
                return Err(OwnAnswer::Fault(exchange_io::Fault::ClientLeft));
            }
        };
        Ok(answer.end(failed, &target.name))
    }
}

/// Passes lines on, up to that which says how it has ended.
fn pass_on(lines: &mut impl BufRead, answer: &mut Answer<'_, '_>) -> Result<(), Broken> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        answer.look()?;
        if !matches!(read, Ok(1..)) {
            return Err("the connection broke".to_owned().into());
        }
        if let Some(error) = pull::error(&line) {
            return Err(printable(&error).into());
        }
        let told: Value = serde_json::from_slice(&line).unwrap_or_default();
        if told["status"] == "success" {
            return Ok(());
        }
        answer.say(&told)?;
    }
}
