//! An answer on its way to the client: every read is passed on before the next.

use crate::system;
use std::io::Read;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, VIA};
use http::{HeaderMap, Method, Response};
use ureq::Body;

use super::{End, Exchange, Side, poor_outcome};
use crate::counters::{Kind, Underway};
use crate::http::body::{CHUNK_PREFIX, CHUNK_SUFFIX, LAST_CHUNK, frame_chunk};
use crate::http::fields::{
    self, AnswerFraming, ERROR_FIELD, IDENTITY_FIELD, PERMISSION_FIELD, ROOM_FIELD, SERVER_FIELD,
    UPSTREAM,
};
use crate::manager::Lease;
use crate::manager::pool::{Outcome, Task, Wanted};
use crate::net::socket;
use crate::net::untrusted_text;
use crate::ollama::model_name::ModelName;
use crate::ollama::stream_end::{Format, Lines, Tail};
use crate::ollama::subject;
use crate::proxy::connection::{BodyState, Downstream};
use crate::upstream;

/// Reads of less than this are gathered with what precedes them into one write.
const GATHER: usize = 2 * 1024;
/// Relay buffers start small and grow while the upstream fills them.
const SMALL: usize = 4 * 1024;
const LARGE: usize = 32 * 1024;
/// Where tokens are likely, this is enough.
const TOKENS: usize = 1024;

/// A body on its way to the client.
struct Copy<'a> {
    framing: AnswerFraming,
    format: Option<Format>,
    /// Whether something of interest may stand in its last line.
    keeps_tail: bool,
    total: u64,
    tail: Tail,
    tokens: Tokens,
    /// Where the progress is shown that its lines tell of.
    progress: Option<&'a Underway>,
    lines: Lines,
    /// The model that the answer names first, for requests that weren't looked at.
    model: Option<ModelName>,
}

/// Counts tokens while they pass. Ollama sends about one per line or event; what it tells at the
/// end is exact, and makes up for the rest.
#[derive(Default)]
struct Tokens {
    is_counted: bool,
    breaks: u64,
    counted: u64,
}

impl Tokens {
    /// How many more there are since the last call.
    fn seen(&mut self, bytes: &[u8], format: Option<Format>) -> u64 {
        let per_message = match format {
            Some(Format::Ndjson) => 1,
            Some(Format::EventStream) => 2,
            None => return 0,
        };
        if !self.is_counted {
            return 0;
        }
        self.breaks += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        // The last message holds no token.
        let tokens = (self.breaks / per_message).saturating_sub(1);
        let more = tokens - self.counted;
        self.counted = tokens;
        more
    }
}

impl Copy<'_> {
    /// Tokens per second, as the last line of Ollama's streams tells them.
    fn speed(&self) -> Option<f64> {
        self.format.filter(|format| *format == Format::Ndjson)?;
        let tokens = self.told_tokens()?;
        let seconds = self.tail.number("eval_duration")? / 1e9;
        // A handful of tokens says little.
        (tokens >= 8.0 && seconds > 0.0).then(|| tokens / seconds)
    }

    /// How many tokens the answer says that it has.
    fn told_tokens(&self) -> Option<f64> {
        ["eval_count", "completion_tokens", "output_tokens"]
            .into_iter()
            .find_map(|member| self.tail.number(member))
    }
}

impl Exchange<'_> {
    /// Passes the answer on, every read before the next.
    pub(super) fn relay(
        &self,
        connection: &mut Downstream,
        lease: &mut Lease,
        request_body: &BodyState<'_>,
        (wanted, underway): (&Wanted, Option<&Underway>),
        answer: Response<Body>,
    ) -> End {
        let (mut parts, body) = answer.into_parts();
        let status = parts.status;
        if status.is_informational() {
            lease.report.outcome = Outcome::Failed;
            let message = format!("{}: answered {status} to no upgrade", lease.pick.label());
            return self.refuse(connection, 502, &message, UPSTREAM);
        }
        let declared = declared_length(&parts.headers);
        let is_head = self.head.method == Method::HEAD;
        let framing = fields::answer_framing(is_head, self.head.http_10, status, declared);
        fields::strip_hop_by_hop(&mut parts.headers);
        parts.headers.append(VIA, self.context.via.clone());
        if let (Some(dir), "/api/version") = (&self.context.models_dir, self.head.target.as_str())
            && let Some(room) = system::files::free_space(dir)
        {
            parts.headers.insert(ROOM_FIELD, HeaderValue::from(room));
        }
        if self.context.side == Side::Server {
            // Whatever an Ollama says of it, this is ours to tell.
            parts.headers.remove(PERMISSION_FIELD);
            parts.headers.remove(IDENTITY_FIELD);
            parts.headers.remove(ERROR_FIELD);
            if self.head.target == "/api/version" {
                let identity = self.context.identity.clone().map(|id| (IDENTITY_FIELD, id));
                parts.headers.extend(identity);
                let open = self.context.policy.permission(connection.caller()).word();
                parts.headers.insert(PERMISSION_FIELD, HeaderValue::from_static(open));
            }
        }
        if !names_itself_well(&parts.headers) {
            parts.headers.remove(SERVER_FIELD);
            let name = self.context.own_name.clone();
            let name = name.or_else(|| HeaderValue::from_str(&lease.pick.name).ok());
            if let Some(name) = name {
                parts.headers.insert(SERVER_FIELD, name);
            }
        }
        if let Some(cors) = &self.cors {
            cors.mark(&mut parts.headers);
        }
        let close = !self.head.keep_alive
            || !request_body.is_done()
            || framing == AnswerFraming::Close
            || self.context.connections.is_draining();
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let format = content_type.and_then(Format::of);
        if framing == AnswerFraming::Chunked {
            connection.let_buffer_go();
        }
        let io = self.upstream.io();
        {
            let mut out = Vec::with_capacity(1024);
            fields::write_answer_head(&mut out, status, &parts.headers, framing, declared, close);
            io.push(&out);
        }
        let first_byte = self.started.elapsed();
        let is_counted = self.route.kind == Kind::Generate && status.is_success();
        let is_json = content_type.is_some_and(|media| media.starts_with("application/json"));
        drop(parts); // It was sent; the body may take minutes.
        let mut copy = Copy {
            framing,
            format,
            keeps_tail: format.is_some() || (is_counted && is_json),
            total: 0,
            tail: Tail::default(),
            tokens: Tokens { is_counted, ..Tokens::default() },
            progress: underway.filter(|_| format == Some(Format::Ndjson)),
            lines: Lines::default(),
            model: None,
        };
        let result = match framing {
            AnswerFraming::None => Ok(()),
            _ => self.copy_body(body, &mut copy, lease),
        };
        if is_counted && let Some(told) = copy.told_tokens() {
            self.count_tokens(lease, (told as u64).saturating_sub(copy.tokens.counted));
        }
        let result = result.and_then(|()| io.flush().map_err(|_| String::new()));
        lease.report.outcome = match (&result, io.progress().fault) {
            (Ok(()), _) => poor_outcome(status).unwrap_or(Outcome::Answered),
            (Err(_), Some(_)) => Outcome::Void,
            (Err(_), None) => Outcome::Failed,
        };
        lease.report.first_byte = Some(first_byte);
        lease.report.changed_models = self.route.changes_models;
        if lease.report.outcome == Outcome::Answered && status.is_success() {
            let is_loaded = wanted.task != Task::Unload;
            let model = wanted.model.clone().filter(|_| self.route.uses_model);
            lease.report.loaded = model.map(|model| (model, is_loaded));
        }
        lease.report.speed = wanted.model.clone().or(copy.model.take()).zip(copy.speed());
        self.log(connection, status.as_u16(), &lease.pick.name, copy.total, Some(first_byte));
        match result {
            Ok(()) if !close => End::Keep,
            Ok(()) => End::Close,
            Err(reason) => {
                if io.progress().fault.is_none() {
                    let message = format!("{}: {reason}", lease.pick.label());
                    self.note(0, "broken", &message);
                    log::warn!("answer broke off backend={:?} reason={reason:?}", lease.pick.name);
                    self.end_in_failure(connection, &copy, &message);
                }
                End::Cut
            }
        }
    }

    /// Copies a body, every read before the next.
    ///
    /// # Errors
    /// Why it didn't arrive whole; the io knows if that was the client's fault.
    fn copy_body(&self, body: Body, copy: &mut Copy<'_>, lease: &Lease) -> Result<(), String> {
        let io = self.upstream.io();
        let mut reader = body.into_reader();
        let room = match copy.framing {
            AnswerFraming::Chunked => TOKENS,
            // One more than is needed, or it would look too small.
            AnswerFraming::Length(length) if length < SMALL as u64 => length as usize + 1,
            _ => SMALL,
        };
        let mut buffer = vec![0; CHUNK_PREFIX + room + CHUNK_SUFFIX];
        loop {
            let space = CHUNK_PREFIX..buffer.len() - CHUNK_SUFFIX;
            let room = space.len();
            let n = reader.read(&mut buffer[space]).map_err(|e| upstream::describe_io(&e))?;
            if n == 0 {
                break;
            }
            copy.total += n as u64;
            lease.pick.tally.bytes_down.add(n as u64);
            self.context.presence.counters().all.bytes_down.add(n as u64);
            if copy.keeps_tail {
                self.look_at(&buffer[CHUNK_PREFIX..CHUNK_PREFIX + n], copy, lease);
            }
            let range = match copy.framing {
                AnswerFraming::Chunked => frame_chunk(&mut buffer, n),
                AnswerFraming::Length(declared) if copy.total > declared => {
                    return Err("sent more than it declared".to_owned());
                }
                _ => CHUNK_PREFIX..CHUNK_PREFIX + n,
            };
            if n < GATHER {
                io.push(&buffer[range]);
            } else {
                io.send(&buffer[range]).map_err(|_| String::new())?;
            }
            if n == room && room < LARGE {
                buffer.resize(CHUNK_PREFIX + room * 2 + CHUNK_SUFFIX, 0);
            }
        }
        match copy.framing {
            AnswerFraming::Chunked => io.push(LAST_CHUNK),
            AnswerFraming::Length(declared) if copy.total < declared => {
                return Err("sent less than it declared".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// Looks at what passes, for what stands in its lines.
    fn look_at(&self, bytes: &[u8], copy: &mut Copy<'_>, lease: &Lease) {
        if copy.tokens.is_counted && copy.total == bytes.len() as u64 {
            let model = subject::subject(bytes).model;
            copy.model = model.as_deref().and_then(ModelName::parse);
        }
        copy.tail.push(bytes);
        let tokens = copy.tokens.seen(bytes, copy.format);
        if tokens > 0 {
            self.count_tokens(lease, tokens);
        }
        if let Some(underway) = copy.progress {
            copy.lines.push(bytes, &mut |line| underway.read(line));
        }
    }

    fn count_tokens(&self, lease: &Lease, tokens: u64) {
        lease.pick.tally.tokens.add(tokens);
        self.context.presence.counters().all.tokens.add(tokens);
    }

    /// Tells of a failure within the answer: a last line or event where its format has one and
    /// nobody has told yet, and never a clean end.
    fn end_in_failure(&self, connection: &Downstream, copy: &Copy<'_>, message: &str) {
        let io = self.upstream.io();
        let format = copy.format.filter(|format| !copy.tail.tells_error(*format));
        if let (AnswerFraming::Chunked, Some(format)) = (copy.framing, format) {
            let error = self.dialect.in_band_error(format, message);
            let text = format!("{}{error}", copy.tail.separator(format));
            io.push(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
        }
        let _ = io.flush();
        if copy.framing == AnswerFraming::Close {
            // Here an ordinary close would look like the end of the answer.
            socket::reset_on_close(connection.stream().socket());
        }
    }
}

/// Whether an upstream says by one short printable name who answers: people get to see it.
fn names_itself_well(fields: &HeaderMap) -> bool {
    let mut names = fields.get_all(SERVER_FIELD).iter();
    let is_fit = |name: &HeaderValue| name.len() <= untrusted_text::MOST && name.to_str().is_ok();
    names.next().is_some_and(is_fit) && names.next().is_none()
}

/// The body's length as the upstream declares it; chunks come without one (RFC 9112 §6.3).
fn declared_length(fields: &HeaderMap) -> Option<u64> {
    if fields.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}
