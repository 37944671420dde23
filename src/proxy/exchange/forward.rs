//! Sends a request to a server, and to another one where that does no harm.
//!
//! A request is sent again only while nothing of an answer has been passed on, and only if that
//! can't do harm: nothing was sent yet (any method), or it is a read or an inference whose body
//! was kept. Pull, push, create, copy, delete and blobs are never sent twice.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Uri};
use rustix::event::PollFlags;
use ureq::Body;

use super::retry::Attempts;
use super::{End, Exchange, OwnAnswer, token};
use crate::access::cors;
use crate::counters::Retry;
use crate::http::fields::{self, COPY_FIELD, ERROR_FIELD, FROM_FIELD, POLICY, UNREACHED, UPSTREAM};
use crate::http::head::{Framing, Head};
use crate::manager::pool::{BackendId, Outcome, Wanted};
use crate::manager::{Lease, Refused};
use crate::net::socket::{self, HANGUP};
use crate::ollama::endpoints::{Class, Task};
use crate::ollama::errors;
use crate::proxy::request_body::{BodyReader, RequestBody};
use crate::upstream::exchange_io::{self, Attempt, Failure, Fault};
use crate::upstream::{self, IDLE_AGE};

/// Bytes of a body that is worth larger buffers on the way to the upstream.
const LARGE_BODY: u64 = 16 * 1024;
/// Bytes of a line of the head that needs the larger buffer too.
const LONG_LINE: usize = 3 * 1024;
/// Bytes of a refusal or of a 404 that are looked at for its reason, and how long they are waited for.
/// Ollama's have a hundred, in one packet with their head.
const REASON: usize = 4 * 1024;
const REASON_TIME: Duration = Duration::from_secs(1);

/// The head of an upstream's answer, and what of its body was looked at.
pub(super) struct Judged {
    pub(super) answer: Response<Body>,
    pub(super) start: Vec<u8>,
    /// What the answer tells of the server, if another one may do better.
    poor: Option<Outcome>,
    /// It says that the server has no such model.
    lacks_model: bool,
}

impl Judged {
    /// What it tells of the server once it was passed on.
    pub(super) fn outcome(&self) -> Outcome {
        match self.poor {
            Some(outcome @ (Outcome::Overloaded | Outcome::Declined | Outcome::Unauthorized)) => {
                outcome
            }
            _ if is_refusal(&self.answer) => Outcome::TurnedAway,
            _ => Outcome::Answered,
        }
    }
}

/// What other servers may be good for, if this one isn't.
#[derive(Clone, Copy)]
struct Others {
    may_have_model: bool,
    may_be_signed_in: bool,
}

impl<'a> Exchange<'a> {
    pub(super) fn forward(
        &mut self,
        mut body: RequestBody<'a>,
        mut wanted: Wanted,
    ) -> Result<End, OwnAnswer> {
        let underway = self.show_progress(&wanted, &body);
        if self.endpoint.is_upload() {
            body.transfer = underway.as_ref().map(|underway| Arc::clone(underway));
        }
        let is_repeatable = self.endpoint.is_repeatable;
        let usual = is_repeatable && !self.context.presence.is_network_new(IDLE_AGE);
        let mut attempts = Attempts::new(is_repeatable);
        let mut failed = None;
        let mut next = None;
        wanted.may_try = self.is_client();
        loop {
            let (mut lease, may_reuse) = match next.take() {
                Some(next) => next,
                // A server that failed says more than that there is no other one.
                None => match (self.lease(attempts.tried(), &wanted), failed.take()) {
                    (Ok(lease), _) => (lease, usual),
                    (Err(Refused::OwnerAway(why)), None | Some(OwnAnswer::Unreached(_))) => {
                        return Err(OwnAnswer::NoServer(why));
                    }
                    (Err(_), Some(failed)) => return Err(failed),
                    // No machine but this one may have it, as if there were no such path.
                    (Err(_), None) if self.endpoint.class == Class::Local => {
                        return Err(OwnAnswer::NoPath);
                    }
                    (Err(Refused::QueueFull), None) => return Err(OwnAnswer::QueueFull),
                    (Err(Refused::NoServer(why)), None) => {
                        let left = self.has_client_left().then_some(Fault::ClientLeft);
                        return Err(left.map_or(OwnAnswer::NoServer(why), OwnAnswer::Fault));
                    }
                },
            };
            if let Some(underway) = &underway {
                underway.goes_to(&lease.pick.name, lease.pick.is_local);
            }
            let before = body.sent;
            let attempt = self.attempt(&mut body, (&lease, &wanted), may_reuse);
            let has_others = self.is_client() && self.context.presence.has_choice();
            let others = Others {
                may_have_model: has_others && self.endpoint.asks_for_model(),
                may_be_signed_in: has_others && is_repeatable,
            };
            let attempt = attempt.and_then(|answer| judge(answer, lease.pick.is_exempt, others));
            self.count(&lease, body.sent - before, |done, n| done.bytes_up.add(n));
            let reason = match attempt {
                Ok(mut answer) => {
                    if let Some(own) = self.misses_copy(answer.answer.headers(), &lease) {
                        lease.report.outcome = Outcome::Answered;
                        return Err(own);
                    }
                    // Another server may do better, if the request can be sent again.
                    if let Some(outcome) = answer.poor
                        && attempts.may_go_on(lease.pick.id, outcome, body.kept.is_whole)
                    {
                        // Two that hold what the other waits for would wait for ever.
                        lease.report.outcome = outcome;
                        let lacks_model = answer.lacks_model;
                        lease.report.removed = wanted.model.clone().filter(|_| lacks_model);
                        lease.release();
                        // This answer tells more than that one more server is away.
                        wanted.may_try = false;
                        match self.lease(attempts.tried(), &wanted) {
                            Ok(other) => {
                                self.count_retry(outcome);
                                next = Some((other, usual));
                                continue;
                            }
                            Err(Refused::OwnerAway(why))
                                if lacks_model || outcome == Outcome::Unreachable =>
                            {
                                return Err(OwnAnswer::NoServer(why));
                            }
                            Err(_) => {}
                        }
                    }
                    if let Some(outcome) = answer.poor.filter(|_| self.greets()) {
                        lease.report.outcome = outcome;
                        return Err(OwnAnswer::Failed("no server greets".to_owned()));
                    }
                    body.kept.release();
                    if self.hides_account(answer.answer.status()) {
                        answer.start.extend(look(&mut answer.answer).unwrap_or_default());
                        if let Some(end) = self.reduce(&answer) {
                            lease.report.outcome = answer.outcome();
                            return Ok(end);
                        }
                    }
                    let shown = (&wanted, underway.as_ref());
                    return self.relay(&mut lease, body.is_done(), shown, answer);
                }
                Err(reason) => reason,
            };
            if let Some(fault) = self.fault() {
                return Err(fault);
            }
            if let Some(watch) = body.watch.take_if(|watch| watch.has_turned()) {
                self.reconsider(&mut body, watch, &mut wanted)?;
                continue;
            }
            let failure = exchange_io::with(|io| io.failure());
            if failure == Failure::Stale && body.kept.is_whole {
                // Nothing is known against the server; the connection was just old.
                self.context.presence.counters().retried(Retry::Stale);
                next = Some((lease, false));
                continue;
            }
            let is_known = lease.pick.is_trial || lease.pick.hope.is_gone();
            if is_known && failure == Failure::Unreached && wanted.may_try {
                // It is as down as it was known to be, or elsewhere by now: what that means is told as
                // usual.
                if lease.pick.is_trial {
                    lease.report.outcome = Outcome::Unreachable;
                }
                wanted.may_try = false;
                continue;
            }
            let name = lease.pick.label();
            log::warn!("attempt failed server={name:?} reason={reason:?}");
            let message = format!("{name}: {reason}");
            let (outcome, own) = match failure {
                Failure::Unreached => (Outcome::Unreachable, OwnAnswer::Unreached(message)),
                Failure::Stale | Failure::Unanswered => {
                    (Outcome::Failed, OwnAnswer::Failed(message))
                }
            };
            lease.report.outcome = outcome;
            if !attempts.may_go_on(lease.pick.id, outcome, body.kept.is_whole) {
                return Err(own);
            }
            self.count_retry(outcome);
            self.note(0, own.row().cause, own.row().text);
            failed = Some(own);
        }
    }

    pub(super) fn lease(&self, tried: &[BackendId], wanted: &Wanted) -> Result<Lease, Refused> {
        self.context.mailbox.lease(tried, wanted, &|| !self.has_client_left())
    }

    pub(super) fn has_client_left(&self) -> bool {
        let by = if self.half_closed().is_zero() { HANGUP } else { PollFlags::empty() };
        socket::is_gone(self.connection.stream.socket(), by)
    }

    /// How long the client is answered once it has ended its side.
    pub(super) fn half_closed(&self) -> Duration {
        match self.endpoint.answers_half_closed {
            true => self.context.settings.timing.half_closed_timeout,
            false => Duration::ZERO,
        }
    }

    /// Sends the request to one server and waits for the head of its answer.
    fn attempt(
        &mut self,
        body: &mut RequestBody<'_>,
        (lease, wanted): (&Lease, &Wanted),
        may_reuse: bool,
    ) -> Result<Response<Body>, String> {
        let has_body = self.framing != Framing::Empty;
        // A kept connection may have died, as that to a server which is down has. That is told by bytes
        // which stay unacknowledged, as those of a large body may at a peer that is alive; and what isn't
        // kept can't be sent again.
        let may_reuse = may_reuse && !lease.pick.is_trial;
        let mut fits = |length: u64| length <= LARGE_BODY && body.kept.reserve(length as usize);
        let may_meet_stale = match self.framing {
            Framing::Length(length) => may_reuse && fits(length),
            Framing::Empty => may_reuse,
            Framing::Chunked => false,
        };
        let timing = &self.context.settings.timing;
        self.upstream.begin(Attempt {
            client: Some(Arc::clone(&self.connection.stream)),
            holds_head: has_body && body.is_at_hand(self.connection),
            is_large: self.is_large(),
            is_lan: !lease.pick.is_local,
            may_reuse: may_meet_stale,
            half_closed: self.half_closed(),
            // To try another one soon is better than to wait, if there is another one.
            patience: (lease.pick.is_sole)
                .then(|| (timing.patient_connect_timeout, lease.pick.hope.clone())),
            ..Attempt::default()
        });
        let request = self.request(lease, wanted)?;
        if !has_body {
            return self.upstream.send(request, None);
        }
        let mut reader = BodyReader::new(self.connection, body, timing.body_timeout);
        self.upstream.send(request, Some(&mut reader as &mut dyn Read))
    }

    fn is_large(&self) -> bool {
        let has_large_body = match self.framing {
            Framing::Empty => false,
            Framing::Length(length) => length > LARGE_BODY,
            Framing::Chunked => true,
        };
        has_large_body || self.has_long_line()
    }

    /// Whether a line of the head that is sent needs the larger buffer.
    pub(super) fn has_long_line(&self) -> bool {
        let Head { method, fields, .. } = self.head;
        let start = method.as_str().len() + self.context.prefix.len() + self.target().len();
        start > LONG_LINE
            || fields.iter().any(|(name, value)| name.as_str().len() + value.len() > LONG_LINE)
    }

    /// Where the server that was chosen has this target.
    pub(super) fn uri(&self, lease: &Lease, target: &str) -> Result<Uri, String> {
        let prefix = if lease.pick.is_local { self.context.prefix.as_str() } else { "" };
        upstream::build_uri(lease.pick.address, prefix, target)
    }

    pub(super) fn request(&self, lease: &Lease, wanted: &Wanted) -> Result<Request<()>, String> {
        let uri = self.uri(lease, self.target())?;
        let mut fields = self.head.fields.clone();
        fields::prepare_request(&mut fields, &self.context.via);
        token::strip(&mut fields);
        if self.is_unpacked {
            fields.remove(CONTENT_ENCODING);
        }
        if let Some(donor) = self.head.fields.get(COPY_FIELD).filter(|_| self.is_copy()) {
            fields.insert(COPY_FIELD, donor.clone());
        }
        // Where a pull is to get its bytes from, is for the proxy in front of the Ollama that pulls.
        let from = self.head.fields.get(FROM_FIELD).filter(|_| !lease.pick.is_local);
        if let Some(from) = from.filter(|_| self.endpoint.task == Task::Pull) {
            fields.insert(FROM_FIELD, from.clone());
        }
        // Of inference, the cloud's is exempt, and what unloads a model, which goes nowhere. Of what
        // else is about a model, it doesn't matter whose that is.
        let is_local = self.endpoint.is_inference() && !wanted.is_exempt;
        let may_leave = self.endpoint.asks_for_model() && !is_local;
        if may_leave || matches!(self.endpoint.class, Class::Account | Class::Local) {
            fields::hide_via(&mut fields);
        }
        cors::strip(&mut fields);
        let takes_body = matches!(self.head.method, Method::POST | Method::PUT | Method::PATCH);
        let framing = match self.framing {
            Framing::Length(length) => Some((CONTENT_LENGTH, HeaderValue::from(length))),
            Framing::Chunked => Some((TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
            Framing::Empty if takes_body => Some((CONTENT_LENGTH, HeaderValue::from_static("0"))),
            Framing::Empty => None,
        };
        if let Some((name, value)) = framing {
            fields.insert(name, value);
        }
        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = fields;
        Ok(request)
    }
}

/// Looks at an answer that another server might better: a refusal, or one of a proxy of ours whose
/// Ollama died before its answer, or that reached none, or whose owner doesn't allow it; or one that
/// has no such model, or whose account doesn't do for a cloud's, where that may be otherwise elsewhere.
fn judge(mut answer: Response<Body>, is_exempt: bool, others: Others) -> Result<Judged, String> {
    let (mut start, mut lacks_model) = (Vec::new(), false);
    let mark = answer.headers().get(ERROR_FIELD).and_then(|cause| cause.to_str().ok());
    let poor = match mark {
        Some(UNREACHED) => Some(Outcome::Unreachable),
        Some(UPSTREAM) => Some(Outcome::Failed),
        Some(POLICY) => Some(Outcome::Answered),
        _ if others.may_have_model && answer.status() == StatusCode::NOT_FOUND => {
            start = look(&mut answer)?;
            lacks_model = errors::tells_missing_model(&start);
            lacks_model.then_some(Outcome::Answered)
        }
        None if others.may_be_signed_in && matches!(answer.status().as_u16(), 401 | 403) => {
            Some(Outcome::Unauthorized)
        }
        _ if !is_refusal(&answer) => None,
        Some(_) => Some(Outcome::TurnedAway),
        None if is_exempt || answer.status() != StatusCode::SERVICE_UNAVAILABLE => {
            Some(Outcome::Declined)
        }
        None => {
            start = look(&mut answer)?;
            let is_overload = errors::tells_overload(&start);
            Some(if is_overload { Outcome::Overloaded } else { Outcome::TurnedAway })
        }
    };
    Ok(Judged { answer, start, poor, lacks_model })
}

fn is_refusal(answer: &Response<Body>) -> bool {
    matches!(answer.status().as_u16(), 429 | 503)
}

/// The first bytes of an answer's body, as far as they come soon.
fn look(answer: &mut Response<Body>) -> Result<Vec<u8>, String> {
    let until = Instant::now() + REASON_TIME;
    exchange_io::with(|io| io.look_until = Some(until));
    let mut start = Vec::new();
    let read = answer.body_mut().as_reader().take(REASON as u64).read_to_end(&mut start);
    exchange_io::with(|io| io.look_until = None);
    match read {
        Err(error) if Instant::now() < until => Err(upstream::describe_io(&error)),
        _ => Ok(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_a_server_does_not_have_tells_nothing_of_its_models() {
        let others = Others { may_have_model: true, may_be_signed_in: true };
        let missing = r#"{"error":"model \"m\" not found, try pulling it first"}"#;
        for (mark, body, want) in [
            (Some(POLICY), "404 page not found", (Some(Outcome::Answered), false)),
            (Some(POLICY), missing, (Some(Outcome::Answered), false)),
            (None, "404 page not found", (None, false)),
            (None, missing, (Some(Outcome::Answered), true)),
        ] {
            let mut answer = Response::new(Body::builder().data(body));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
                .headers_mut()
                .extend(mark.map(|mark| (ERROR_FIELD, HeaderValue::from_static(mark))));
            let judged = judge(answer, false, others).expect("an answer");
            assert_eq!((judged.poor, judged.lacks_model), want, "{mark:?} {body}");
        }
    }
}
