//! A pull on the way through the machine whose Ollama pulls: the registry gives the name, the LAN gives
//! the bytes where somebody there has them.
//!
//! ```text
//!            ┌────────────────── pull again ◄──────────────────────┐
//!            ▼                                                     │ done, or it failed: then the
//!  Registry: Ollama's lines are passed on ──a neighbour has─► Taking: its bytes go into Ollama,
//!            │                              the layer        and lines of our own tell how far
//!            └──► Over
//! ```
//!
//! [`Lines`] is what `relay` reads instead of Ollama's answer, and passes on like any other: head,
//! counters, outcome, the error within a broken answer are the relay's. Here, only whole lines leave,
//! so that the answer can go on with other ones. While a large layer is under way, `sharing` seeks it
//! in a thread of its own. Once a neighbour sends it, Ollama's pull is ended and the blob is put into
//! Ollama, which hashes it; then the same pull is sent again, finds the layer, and goes on with the next
//! one; the client sees no step twice. A layer that failed to come from the house is left to the
//! registry.

mod lines;

use std::io::{self, Cursor, Read};
use std::sync::Arc;

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING,
};
use http::{Response, StatusCode};
use ureq::Body;

pub(super) use self::lines::Lines;
use super::judged::Judged;
use super::{Exchange, OwnAnswer};
use crate::counters::TransferGuard;
use crate::http::fields::FROM_FIELD;
use crate::http::head::Framing;
use crate::manager::Lease;
use crate::manager::pool::Wanted;
use crate::ollama::endpoints::Task;
use crate::ollama::pull;
use crate::ollama::stream_end::Format;
use crate::proxy::request_body::RequestBody;
use crate::sharing::Donors;
use crate::upstream::exchange_io::{self, Attempt};

/// How a pull is to be driven.
pub(super) struct Plan {
    /// The request's body, which asks for lines.
    body: Vec<u8>,
    /// The client asked for one object at the end.
    pub(super) wants_one: bool,
    /// Who is to give the bytes.
    donors: Donors,
}

impl Plan {
    /// Whether this answer can be driven, or has to be.
    pub(super) fn drives(&self, lease: &Lease, answer: &Response<Body>) -> bool {
        (lease.pick.is_local || self.wants_one) && has_lines(answer)
    }
}

impl<'a> Exchange<'a> {
    /// Looks whether the request is a pull of this machine's Ollama that can profit, and makes it one
    /// that is answered in lines.
    pub(super) fn plan_pull(
        &mut self,
        body: &mut RequestBody<'a>,
    ) -> Result<Option<Plan>, OwnAnswer> {
        let is_pull = self.endpoint.task == Task::Pull && self.framing != Framing::Empty;
        let may_be_here = !self.is_client() || self.context.presence.is_local_up();
        let from = self.head.fields.get(FROM_FIELD).and_then(|from| from.to_str().ok());
        let from = from.unwrap_or("any");
        let is_coded = self.head.fields.contains_key(CONTENT_ENCODING);
        if !is_pull || !may_be_here || is_coded {
            return Ok(None);
        }
        let asks = !from.eq_ignore_ascii_case("internet");
        if asks {
            // By the time a layer is under way, it is known who is there.
            self.context.sharing.look();
        }
        self.fetch_all(body)?;
        let is_whole = body.is_done() && body.kept.is_whole;
        let whole = Some(&body.kept.bytes).filter(|_| asks && is_whole);
        let Some((lines, wants_one)) = whole.and_then(|whole| pull::in_lines(whole)) else {
            return Ok(None);
        };
        if wants_one {
            self.replace_body(body, lines.clone());
        }
        let donors = match from.eq_ignore_ascii_case("any") {
            true => Donors::Anybody,
            false => Donors::Named(from.to_owned()),
        };
        Ok(Some(Plan { body: lines, wants_one, donors }))
    }

    /// The server that is to give the bytes has to be there, or all of them would come from the registry
    /// unnoticed.
    pub(super) fn check_donor(&self, lease: &Lease) -> Result<(), OwnAnswer> {
        match self.pull.as_ref().map(|plan| &plan.donors) {
            Some(Donors::Named(name)) if lease.pick.is_local => self.neighbour(name).map(drop),
            _ => Ok(()),
        }
    }

    /// Reads a pull to its end; the answer is that of Ollama to who wants one object.
    pub(super) fn collect(
        &self,
        plan: &Plan,
        lease: &Lease,
        shown: (&Wanted, Option<&TransferGuard>),
        mut judged: Judged,
    ) -> io::Result<Judged> {
        let none = Response::new(Body::builder().data(Vec::new()));
        let (mut parts, body) = std::mem::replace(&mut judged.answer, none).into_parts();
        let body = Cursor::new(std::mem::take(&mut judged.start)).chain(body.into_reader());
        let mut lines = Lines::new(self, plan, lease, shown, body);
        let mut last = Vec::new();
        while lines.advance()? {
            for line in lines.ready.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                shown.1.into_iter().for_each(|underway| underway.read(line));
                last.clear();
                last.extend_from_slice(line);
            }
            lines.ready.clear();
        }
        if last.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if pull::error(&last).is_some() {
            parts.status = StatusCode::INTERNAL_SERVER_ERROR;
        }
        parts.headers.remove(TRANSFER_ENCODING);
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(last.len()));
        judged.answer = Response::from_parts(parts, Body::builder().data(Vec::new()));
        judged.start = last;
        Ok(judged)
    }

    /// Sends a pull to Ollama once more.
    fn pull_again(
        &self,
        plan: &Plan,
        lease: &Lease,
        wanted: &Wanted,
    ) -> io::Result<Response<Body>> {
        exchange_io::with(|io| {
            io.flush()?;
            io.end();
            Ok::<_, io::Error>(())
        })?;
        self.upstream.begin(Attempt {
            client: Some(Arc::clone(&self.connection.stream)),
            is_large: self.has_long_line(),
            half_closed: self.half_closed(),
            ..Attempt::default()
        });
        let mut request = self.request(lease, wanted).map_err(io::Error::other)?;
        request.headers_mut().remove(TRANSFER_ENCODING);
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(plan.body.len()));
        let mut body = Cursor::new(&plan.body);
        self.upstream.send(request, Some(&mut body)).map_err(io::Error::other)
    }
}

fn has_lines(answer: &Response<Body>) -> bool {
    let media = answer.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    answer.status() == StatusCode::OK && media.and_then(Format::of) == Some(Format::Ndjson)
}
