//! An answer on its way to the client: every read is passed on before the next.

use std::io::{Cursor, Read};

use http::header::{CONTENT_TYPE, HeaderValue, VIA};
use http::{HeaderMap, Method};

use super::judged::{Judged, declared_length};
use super::observed::Observed;
use super::pull::Lines;
use super::{End, Exchange, OwnAnswer, Side};
use crate::counters::{Kind, TransferGuard};
use crate::http::body::{CHUNK_PREFIX, CHUNK_SUFFIX, LAST_CHUNK, frame_chunk};
use crate::http::fields::{
    self, AnswerFraming, ERROR_FIELD, IDENTITY_FIELD, PERMISSION_FIELD, ROOM_FIELD, SAVED_FIELD,
    SERVER_FIELD,
};
use crate::manager::Lease;
use crate::manager::pool::{Outcome, Wanted};
use crate::net::{socket, untrusted_text};
use crate::ollama::endpoints::VERSION;
use crate::upstream::buffers::{LARGE, SMALL, TOKENS};
use crate::upstream::{self, exchange_io};

/// What Ollama writes into the last line of a pull or of another change of models.
const SUCCESS: &[u8] = b"\"success\"";

/// Reads of less than this are gathered with what precedes them into one write.
const GATHER: usize = 2 * 1024;

impl Exchange<'_> {
    /// Passes the answer on, or fails if it is none. `is_body_done` tells whether the request's body was
    /// received whole.
    pub(super) fn relay(
        &mut self,
        lease: &mut Lease,
        is_body_done: bool,
        (wanted, underway): (&Wanted, Option<&TransferGuard>),
        mut answer: Judged,
    ) -> Result<End, OwnAnswer> {
        let shown = (wanted, underway);
        let mut plan = self.pull.take().filter(|plan| plan.drives(lease, &answer.answer));
        if let Some(plan) = plan.take_if(|plan| plan.wants_one) {
            answer = self.collect(&plan, lease, shown, answer).map_err(|error| {
                let reason = upstream::describe_io(&error);
                self.fault().unwrap_or_else(|| {
                    lease.report.outcome = Outcome::Failed;
                    OwnAnswer::Failed(format!("{}: {reason}", lease.pick.label()))
                })
            })?;
        }
        let outcome = answer.outcome();
        let Judged { answer, start, .. } = answer;
        let (mut parts, body) = answer.into_parts();
        let status = parts.status;
        if status.is_informational() {
            lease.report.outcome = Outcome::Failed;
            let message = format!("{}: answered {status} to no upgrade", lease.pick.label());
            return Err(OwnAnswer::Failed(message));
        }
        let declared = declared_length(&parts.headers);
        let is_head = self.head.method == Method::HEAD;
        let framing = fields::answer_framing(is_head, self.head.http_10, status, declared);
        self.adapt_fields(&mut parts.headers, lease);
        let closes = !self.head.keep_alive
            || !is_body_done
            || framing == AnswerFraming::Close
            || self.context.connections.is_draining();
        if framing == AnswerFraming::Chunked {
            self.connection.release_buffer();
        }
        if self.endpoint.changes_models && declared.is_some() {
            lease.tell_of_change();
        }
        let mut head = Vec::with_capacity(1024);
        fields::write_answer_head(&mut head, status, &parts.headers, framing, declared, closes);
        exchange_io::with(|io| io.push(&head));
        let first_byte = self.started.elapsed();
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_counted = self.endpoint.kind == Kind::Generate && status.is_success();
        let mut observed = Observed::new(content_type, is_counted, underway);
        drop((head, parts)); // They were sent; the body may take minutes.

        let mut copied = 0;
        let body = Cursor::new(start).chain(body.into_reader());
        let passing = (framing, &mut copied, &mut observed);
        let result = match &plan {
            Some(plan) => {
                self.copy_body(Lines::new(self, plan, lease, shown, body), passing, lease)
            }
            None => self.copy_body(body, passing, lease),
        };
        let result =
            result.and_then(|()| exchange_io::with(|io| io.flush()).map_err(|_| String::new()));
        self.count(lease, observed.uncounted_tokens(), |done, n| done.tokens.add(n));

        let fault = self.fault();
        let has_erred = self.endpoint.is_inference() && status.is_server_error();
        lease.report.outcome = match (&result, &fault) {
            (Ok(()), _) if has_erred && outcome == Outcome::Answered => Outcome::Erred,
            (Ok(()), _) => outcome,
            (Err(_), Some(_)) => Outcome::Void,
            (Err(_), None) => Outcome::Failed,
        };
        if lease.report.outcome == Outcome::Erred {
            let model = wanted.model.clone();
            lease.report.erred = model.map(|model| (model, wanted.conversation));
        }
        lease.report.first_byte = Some(first_byte);
        lease.report.changed_models = self.endpoint.changes_models;
        if self.endpoint.changes_models && self.head.method == Method::DELETE && status.is_success()
        {
            lease.report.removed = wanted.model.clone();
        }
        if lease.report.outcome == Outcome::Answered && status.is_success() {
            let model = wanted.model.clone().filter(|_| self.endpoint.loads_model);
            lease.report.loaded = model.map(|model| (model, !wanted.unloads));
        }
        let model = wanted.model.clone().or(observed.model.take());
        lease.report.speed = model.zip(observed.speed());
        self.log(status.as_u16(), &lease.pick.name, copied, Some(first_byte));
        Ok(match result {
            Ok(()) if !closes => End::Keep,
            Ok(()) => End::Close,
            Err(reason) => {
                if fault.is_none() {
                    let message = format!("{}: {reason}", lease.pick.label());
                    self.note(0, "broken", &message);
                    log::warn!("answer broke off server={:?} reason={reason:?}", lease.pick.name);
                    self.end_in_failure(framing, &observed, &message);
                }
                End::Cut
            }
        })
    }

    /// The upstream's fields, with what belongs to a hop taken away and what is ours to tell put in.
    fn adapt_fields(&self, answer: &mut HeaderMap, lease: &Lease) {
        let context = self.context;
        let is_version = self.head.target == VERSION;
        fields::strip_hop_by_hop(answer);
        answer.append(VIA, context.via.clone());
        if context.side == Side::Server {
            let room = context.library.as_ref().filter(|_| is_version);
            if let Some(room) = room.and_then(|library| library.free_space()) {
                answer.insert(ROOM_FIELD, HeaderValue::from(room));
            }
            // Whatever an Ollama says of it, this is ours to tell.
            answer.remove(PERMISSION_FIELD);
            answer.remove(IDENTITY_FIELD);
            answer.remove(ERROR_FIELD);
            answer.remove(SAVED_FIELD);
            if is_version {
                answer.extend(context.identity.clone().map(|id| (IDENTITY_FIELD, id)));
                let permission =
                    context.settings.policy.permission(self.connection.caller()).word();
                answer.insert(PERMISSION_FIELD, HeaderValue::from_static(permission));
                let saved = context.presence.counters().transfers.sources.saved.value();
                if saved > 0 {
                    answer.insert(SAVED_FIELD, HeaderValue::from(saved));
                }
            }
        }
        if !names_itself_well(answer) {
            answer.remove(SERVER_FIELD);
            let name = context.own_name.clone();
            let name = name.or_else(|| HeaderValue::from_str(&lease.pick.name).ok());
            answer.extend(name.map(|name| (SERVER_FIELD, name)));
        }
        if let Some(cors) = &self.cors {
            cors.mark(answer);
        }
    }

    /// Copies a body, every read before the next. The error says why it didn't arrive whole; the
    /// exchange's fault tells if that was the client's.
    fn copy_body(
        &self,
        mut reader: impl Read,
        (framing, copied, observed): (AnswerFraming, &mut u64, &mut Observed<'_>),
        lease: &Lease,
    ) -> Result<(), String> {
        let room = match framing {
            AnswerFraming::None => return Ok(()),
            AnswerFraming::Chunked => TOKENS,
            // One more than is needed, or it would look too small.
            AnswerFraming::Length(length) if length < SMALL as u64 => length as usize + 1,
            AnswerFraming::Length(_) | AnswerFraming::Close => SMALL,
        };
        let mut buffer = vec![0; CHUNK_PREFIX + room + CHUNK_SUFFIX];
        loop {
            let space = CHUNK_PREFIX..buffer.len() - CHUNK_SUFFIX;
            let room = space.len();
            let n = reader.read(&mut buffer[space]).map_err(|e| upstream::describe_io(&e))?;
            if n == 0 {
                break;
            }
            let read = CHUNK_PREFIX..CHUNK_PREFIX + n;
            *copied += n as u64;
            self.count(lease, n as u64, |done, n| done.bytes_down.add(n));
            self.count(lease, observed.look(&buffer[read.clone()]), |done, n| done.tokens.add(n));
            // A program goes on once it reads this, and may ask for the new model before the end.
            if self.endpoint.changes_models && holds(&buffer[read.clone()], SUCCESS) {
                lease.tell_of_change();
            }
            let framed = match framing {
                AnswerFraming::Chunked => frame_chunk(&mut buffer, n),
                AnswerFraming::Length(declared) if *copied > declared => {
                    return Err("sent more than it declared".to_owned());
                }
                _ => read,
            };
            if n < GATHER {
                exchange_io::with(|io| io.push(&buffer[framed]));
            } else {
                exchange_io::with(|io| io.send(&buffer[framed])).map_err(|_| String::new())?;
            }
            if n == room && room < LARGE {
                buffer.resize(CHUNK_PREFIX + room * 2 + CHUNK_SUFFIX, 0);
            }
        }
        match framing {
            AnswerFraming::Chunked => exchange_io::with(|io| io.push(LAST_CHUNK)),
            AnswerFraming::Length(declared) if *copied < declared => {
                return Err("sent less than it declared".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells of a failure within the answer: a last line or event where its format has one and the
    /// upstream hasn't told it yet, and never a clean end.
    fn end_in_failure(&self, framing: AnswerFraming, observed: &Observed<'_>, message: &str) {
        exchange_io::with(|io| {
            if framing == AnswerFraming::Chunked
                && let Some((broken, separator)) = observed.room_for_error()
            {
                let error = self.endpoint.dialect.in_band_error(broken, message);
                let text = format!("{separator}{error}");
                io.push(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
            }
            let _ = io.flush();
        });
        if framing == AnswerFraming::Close {
            // Here an ordinary close would look like the end of the answer.
            socket::reset_on_close(self.connection.stream.socket());
        }
    }
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Whether an upstream says by one short printable name who answers: people get to see it.
fn names_itself_well(fields: &HeaderMap) -> bool {
    let mut names = fields.get_all(SERVER_FIELD).iter();
    let is_fit = |name: &HeaderValue| name.len() <= untrusted_text::MOST && name.to_str().is_ok();
    names.next().is_some_and(is_fit) && names.next().is_none()
}
