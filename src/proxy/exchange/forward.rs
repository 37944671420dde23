//! Sends a request to a server, and to another one where that does no harm.
//!
//! A request is sent again only while nothing of an answer has been passed on, and only if that
//! can't do harm: nothing was sent yet (any method), or it is a read or an inference whose body
//! was kept. Pull, push, create, copy, delete and blobs are never sent twice.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, Uri};
use ureq::Body;

use super::judged::{Judged, Others, judge};
use super::retry::Attempts;
use super::{End, Exchange, OwnAnswer, token};
use crate::access::cors;
use crate::counters::{Retry, TransferGuard};
use crate::http::fields::{self, COPY_FIELD, FROM_FIELD};
use crate::http::head::{Framing, Head};
use crate::manager::pool::{BackendId, Outcome, Wanted};
use crate::manager::{Lease, Refused};
use crate::ollama::endpoints::{Class, Task};
use crate::proxy::request_body::{BodyReader, RequestBody};
use crate::upstream::exchange_io::{self, Attempt, Failure, Fault};
use crate::upstream::{self, IDLE_AGE};

/// Bytes of a body that is worth larger buffers on the way to the upstream.
const LARGE_BODY: u64 = 16 * 1024;
/// Bytes of a line of the head that needs the larger buffer too.
const LONG_LINE: usize = 3 * 1024;

/// A request on its way: what is sent, for what, and where it was.
struct Forwarding<'a> {
    body: RequestBody<'a>,
    wanted: Wanted,
    attempts: Attempts,
    /// What a server that failed it means, if no other one can do it.
    failed: Option<OwnAnswer>,
    /// What a server said that could not do it, which tells more than that another one has no such model
    /// or is away.
    refused: Option<(Lease, Judged)>,
    /// Whether a kept connection may take it.
    may_reuse: bool,
}

impl Forwarding<'_> {
    fn may_go_on(&mut self, id: BackendId, outcome: Outcome) -> bool {
        self.attempts.may_go_on(id, outcome, self.body.kept.is_whole)
    }

    /// What comes of an earlier attempt, if that tells more than that a server is away or lacks the model.
    fn earlier(&mut self) -> Option<Result<Next, OwnAnswer>> {
        if let Some((lease, answer)) = self.refused.take() {
            return Some(Ok(Next::Done(lease, answer)));
        }
        self.failed.take_if(|failed| !is_unreached(failed)).map(Err)
    }
}

fn is_unreached(own: &OwnAnswer) -> bool {
    matches!(own, OwnAnswer::Unreached(_))
}

/// What becomes of it after an attempt.
enum Next {
    /// It goes to whichever server is chosen.
    Any,
    /// It goes to this one, which may have a kept connection.
    To(Lease, bool),
    /// This is the answer.
    Done(Lease, Judged),
}

impl<'a> Exchange<'a> {
    pub(super) fn forward(
        &mut self,
        body: RequestBody<'a>,
        wanted: Wanted,
    ) -> Result<End, OwnAnswer> {
        let underway = self.show_progress(&wanted, &body);
        let is_repeatable = self.endpoint.is_repeatable;
        let mut forwarding = Forwarding {
            body,
            wanted: Wanted { may_try: self.is_client(), ..wanted },
            attempts: Attempts::new(is_repeatable),
            failed: None,
            refused: None,
            may_reuse: is_repeatable && !self.context.presence.is_network_new(IDLE_AGE),
        };
        if self.endpoint.is_upload() {
            forwarding.body.transfer = underway.as_ref().map(|underway| Arc::clone(underway));
        }
        let mut next = Next::Any;
        loop {
            next = match next {
                Next::Any => self.choose(&mut forwarding)?,
                Next::To(lease, may_reuse) => {
                    self.check_donor(&lease)?;
                    if let Some(underway) = &underway {
                        underway.goes_to(&lease.pick.name, lease.pick.is_local);
                    }
                    match self.attempt(&mut forwarding, &lease, may_reuse) {
                        Ok(answer) => self.after_answer(&mut forwarding, lease, answer)?,
                        Err(reason) => self.after_failure(&mut forwarding, lease, &reason)?,
                    }
                }
                Next::Done(lease, answer) => {
                    return self.pass_on(forwarding, lease, answer, underway.as_ref());
                }
            };
        }
    }

    fn choose(&self, forwarding: &mut Forwarding<'a>) -> Result<Next, OwnAnswer> {
        let refused = match self.lease(forwarding.attempts.tried(), &forwarding.wanted) {
            Ok(lease) => {
                forwarding.failed.take_if(|failed| is_unreached(failed));
                return Ok(Next::To(lease, forwarding.may_reuse));
            }
            Err(refused) => refused,
        };
        if let Some(earlier) = forwarding.earlier() {
            return earlier;
        }
        Err(match (refused, forwarding.failed.take()) {
            (Refused::OwnerAway(why), _) => OwnAnswer::NoServer(why),
            (_, Some(unreached)) => unreached,
            // No machine but this one may have it, as if there were no such path.
            (_, None) if self.endpoint.class == Class::Local => OwnAnswer::NoPath,
            (Refused::QueueFull, None) => OwnAnswer::QueueFull,
            (Refused::NoServer(_), None) if self.has_client_left() => {
                OwnAnswer::Fault(Fault::ClientLeft)
            }
            (Refused::NoServer(why), None) => OwnAnswer::NoServer(why),
        })
    }

    /// Another server may do better than a poor answer, if the request can be sent again.
    fn after_answer(
        &self,
        forwarding: &mut Forwarding<'a>,
        mut lease: Lease,
        answer: Judged,
    ) -> Result<Next, OwnAnswer> {
        if let Some(own) = self.misses_copy(answer.answer.headers(), &lease) {
            lease.report.outcome = Outcome::Answered;
            return Err(own);
        }
        let id = lease.pick.id;
        let (poor, lacks_model) = (answer.poor, answer.lacks_model);
        let Some(outcome) = poor.filter(|poor| forwarding.may_go_on(id, *poor)) else {
            if lacks_model && forwarding.wanted.model.is_none() {
                // Another one may have it; a 404 would tell that nobody has.
                lease.report.outcome = Outcome::Answered;
                return Err(OwnAnswer::NoServer(format!(
                    "the body is too large to find its model in it, and {} has no such model: \
                     start ollana with a larger --replay-budget",
                    lease.pick.label()
                )));
            }
            return Ok(Next::Done(lease, answer));
        };
        // Two that hold what the other waits for would wait for ever.
        lease.report.outcome = outcome;
        lease.report.removed = forwarding.wanted.model.clone().filter(|_| lacks_model);
        lease.release();
        // This answer tells more than that one more server is away.
        forwarding.wanted.may_try = false;
        let says_little = lacks_model || outcome == Outcome::Unreachable;
        match self.lease(forwarding.attempts.tried(), &forwarding.wanted) {
            Ok(other) => {
                self.count_retry(outcome);
                // The next attempt ends the connection that this answer comes from.
                if !says_little && let Some(kept) = answer.detached() {
                    forwarding.refused = Some((lease, kept));
                }
                Ok(Next::To(other, forwarding.may_reuse))
            }
            Err(refused) if says_little => match (forwarding.earlier(), refused) {
                (Some(earlier), _) => earlier,
                (None, Refused::OwnerAway(why)) => Err(OwnAnswer::NoServer(why)),
                (None, _) => Ok(Next::Done(lease, answer)),
            },
            Err(_) => Ok(Next::Done(lease, answer)),
        }
    }

    fn after_failure(
        &mut self,
        forwarding: &mut Forwarding<'a>,
        mut lease: Lease,
        reason: &str,
    ) -> Result<Next, OwnAnswer> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        if let Some(watch) = forwarding.body.watch.take_if(|watch| watch.has_turned()) {
            self.reconsider(&mut forwarding.body, watch, &mut forwarding.wanted)?;
            return Ok(Next::Any);
        }
        let failure = exchange_io::with(|io| io.failure());
        if failure == Failure::Stale && forwarding.body.kept.is_whole {
            // Nothing is known against the server; the connection was just old.
            self.context.presence.counters().retried(Retry::Stale);
            return Ok(Next::To(lease, false));
        }
        let is_known = lease.pick.is_trial || lease.pick.hope.is_gone();
        if is_known && failure == Failure::Unreached && forwarding.wanted.may_try {
            // It is as down as it was known to be, or elsewhere by now: what that means is told as usual.
            if lease.pick.is_trial {
                lease.report.outcome = Outcome::Unreachable;
            }
            forwarding.wanted.may_try = false;
            return Ok(Next::Any);
        }
        let name = lease.pick.label();
        log::warn!("attempt failed server={name:?} reason={reason:?}");
        let message = format!("{name}: {reason}");
        let (outcome, own) = match failure {
            Failure::Unreached => (Outcome::Unreachable, OwnAnswer::Unreached(message)),
            Failure::Stale | Failure::Unanswered => (Outcome::Failed, OwnAnswer::Failed(message)),
        };
        lease.report.outcome = outcome;
        if !forwarding.may_go_on(lease.pick.id, outcome) {
            return Err(own);
        }
        self.count_retry(outcome);
        self.note(0, own.row().cause, own.row().text);
        // That one more server is away tells less than how the request failed before.
        if forwarding.failed.is_none() || !is_unreached(&own) {
            forwarding.failed = Some(own);
        }
        Ok(Next::Any)
    }

    /// Passes on the answer that no other server is asked to better.
    fn pass_on(
        &mut self,
        mut forwarding: Forwarding<'a>,
        mut lease: Lease,
        mut answer: Judged,
        underway: Option<&TransferGuard>,
    ) -> Result<End, OwnAnswer> {
        if let Some(outcome) = answer.poor.filter(|_| self.greets()) {
            lease.report.outcome = outcome;
            return Err(OwnAnswer::Failed("no server greets".to_owned()));
        }
        forwarding.body.kept.release();
        if self.hides_account(answer.answer.status()) {
            answer.look_on();
            if let Some(end) = self.reduce(&answer) {
                lease.report.outcome = answer.outcome();
                return Ok(end);
            }
        }
        let shown = (&forwarding.wanted, underway);
        self.relay(&mut lease, forwarding.body.is_done(), shown, answer)
    }

    pub(super) fn lease(&self, tried: &[BackendId], wanted: &Wanted) -> Result<Lease, Refused> {
        self.context.mailbox.lease(tried, wanted, &|| !self.has_client_left())
    }

    pub(super) fn has_client_left(&self) -> bool {
        exchange_io::has_left(&self.connection.stream, self.half_closed())
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
        forwarding: &mut Forwarding<'a>,
        lease: &Lease,
        may_reuse: bool,
    ) -> Result<Judged, String> {
        let before = forwarding.body.sent;
        let answer = self.send(&mut forwarding.body, (lease, &forwarding.wanted), may_reuse);
        let has_others = self.is_client() && self.context.presence.has_choice();
        let others = Others {
            may_have_path: has_others && self.endpoint.class != Class::Unknown,
            may_have_model: has_others && self.endpoint.asks_for_model(),
            may_be_signed_in: has_others && self.endpoint.is_repeatable,
        };
        let answer = answer.and_then(|answer| judge(answer, lease.pick.is_exempt, others));
        self.count(lease, forwarding.body.sent - before, |done, n| done.bytes_up.add(n));
        answer
    }

    fn send(
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
