//! One request from its head to the end of its answer.
//!
//! ```text
//!  checks ─► lease ─► send ─► answer's head ─► relay ─► Answered
//!              ▲        │ failed before the head         │ failed behind the head
//!              └────────┴── may be sent again?           └► in-band error, cut unclean
//!                            no: 502 / 503 in the API's shape
//! ```
//!
//! A request is sent again only while nothing of an answer has been passed on, and only if that
//! can't do harm: nothing was sent yet (any method), or it is a read or an inference whose body
//! was kept. Pull, push, create, copy, delete and blobs are never sent twice.

mod answer;
mod own;
mod relay;
pub mod retry;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use ureq::Body;

use crate::access::addresses::{Cidr, Reach};
use crate::access::cors::{self, Cors, Decision, Origins};
use crate::access::host::HostRule;
use crate::access::permissions::{self, Policy, Verdict};
use crate::config::{Limits, Timing};
use crate::counters::{Failure as Failed, Kind, Retry, Underway};
use crate::http::fields::{self, ERROR_FIELD, POLICY, SERVER_FIELD, UNREACHED, UPSTREAM};
use crate::http::head::{Framing, Head};
use crate::manager::pool::{BackendId, Outcome, Task, Wanted};
use crate::manager::{Lease, Mailbox, Presence, Refused};
use crate::net::socket;
use crate::ollama::endpoints::{self, Route};
use crate::ollama::errors::Dialect;
use crate::ollama::subject::{self, Subject};
use crate::pairing::keyring::Keyring;
use crate::proxy::connection::{BodyFault, BodyReader, BodyState, Budget, Downstream};
use crate::proxy::connections::Connections;
use crate::proxy::exchange::retry::Attempts;
use crate::upstream::exchange_io::{Attempt, ExchangeIo, Fault};
use crate::upstream::{self, IDLE_AGE, Upstream};

/// Bytes of a body that are looked at for the model's name.
const SUBJECT_LIMIT: usize = 64 * 1024;
/// Bodies of more than this get larger buffers on the way to the upstream.
const LARGE_BODY: u64 = 16 * 1024;
/// Lines of the head longer than this need the larger buffer too.
const LONG_LINE: usize = 3 * 1024;

/// Characters of a method and of a path that are logged.
const LOGGED_METHOD: usize = 20;
const LOGGED_PATH: usize = 200;

/// Which of the two proxies this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In front of the LAN's servers: it chooses among them.
    Client,
    /// In front of the one local Ollama.
    Server,
}

/// What all exchanges of a proxy share.
#[derive(Debug)]
pub struct Context {
    /// Who hands out backends.
    pub mailbox: Mailbox,
    /// What is known of them without asking.
    pub presence: Arc<Presence>,
    /// Where a server's Ollama keeps its models.
    pub models_dir: Option<PathBuf>,
    /// This process in `Via` fields.
    pub via: HeaderValue,
    /// Whether there is a choice of servers.
    pub side: Side,
    /// This server's name for `X-Ollana-Server`; a client uses the backend's.
    pub own_name: Option<HeaderValue>,
    /// Which server this is, for `X-Ollana-Identity`.
    pub identity: Option<HeaderValue>,
    /// Put in front of targets for the local Ollama (the path of `--ollama`).
    pub prefix: String,
    /// Whether machines may be woken, so that it matters what a request needs.
    pub wakes: bool,
    /// Which names a `Host` may have.
    pub hosts: HostRule,
    /// Who may ask for the state besides this machine.
    pub status_from: Vec<Cidr>,
    /// What other machines may do here.
    pub policy: Policy,
    /// Which web pages may ask.
    pub origins: Origins,
    /// Which machines may connect.
    pub reach: Reach,
    /// This machine's name, for its refusals.
    pub machine: String,
    /// Time-outs.
    pub timing: Timing,
    /// Sizes.
    pub limits: Limits,
    /// Memory for kept bodies.
    pub budget: Budget,
    /// With whom requests are encrypted.
    pub keyring: Arc<Keyring>,
    /// All connections.
    pub connections: Arc<Connections>,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It serves the next request.
    Keep,
    /// It is closed, whatever the client still sends is drained.
    Close,
    /// It is closed at once, without a clean end of the answer.
    Cut,
}

/// Serves one request.
pub fn run(
    context: &Context,
    upstream: &Upstream,
    connection: &mut Downstream,
    head: &Head,
) -> End {
    let exchange = Exchange {
        context,
        upstream,
        head,
        framing: head.framing,
        route: Route::of(&head.method, &head.target),
        dialect: Dialect::of(&head.target),
        cors: None,
        started: Instant::now(),
    };
    let end = exchange.serve(connection);
    upstream.io().end();
    end
}

struct Exchange<'a> {
    context: &'a Context,
    upstream: &'a Upstream,
    head: &'a Head,
    /// The head's, unless the body was rewritten.
    framing: Framing,
    route: Route,
    dialect: Dialect,
    /// What an answer needs for a web page to read it.
    cors: Option<Cors>,
    started: Instant,
}

/// Why an attempt brought no answer.
struct Failure {
    reason: String,
    /// Nothing reached the upstream.
    unreached: bool,
    /// It was a connection from the pool, which may have been stale.
    stale: bool,
}

impl Exchange<'_> {
    fn serve(mut self, connection: &mut Downstream) -> End {
        let fields = &self.head.fields;
        if !self.context.hosts.allows(fields.get(HOST).map(HeaderValue::as_bytes)) {
            let message = "the Host of this request is not a name of this machine; \
                           if it is, start ollana with --host NAME";
            return self.refuse(connection, 403, message, "host");
        }
        if let Some(end) = self.answer_about_itself(connection) {
            return end;
        }
        if connection.is_reserve() {
            self.refuse(connection, 503, "too many connections", "full");
            return End::Close;
        }
        if !self.may_ask(connection) {
            let message = "this machine answers only machines that are paired with it: \
                           run ollana pair on both, or start it with --unpaired on";
            return self.refuse(connection, 403, message, "unpaired");
        }
        match self.context.origins.judge(&self.head.method, fields) {
            Decision::Plain => {}
            Decision::Cors(cors) => self.cors = Some(cors),
            Decision::Preflight(cors) => return self.answer_preflight(connection, &cors),
            Decision::Refuse => {
                let message = "web pages from there may not use this Ollama; to allow them, \
                               set OLLAMA_ORIGINS for the ollana on this machine";
                return self.refuse(connection, 403, message, "origin");
            }
        }
        if fields::is_loop(fields, &self.context.via) {
            let message = "this request has been here before: ollana proxies point at each other";
            return self.refuse(connection, 508, message, "loop");
        }
        let verdict = self.context.policy.judge(connection.caller(), self.route.class);
        if let Verdict::Refuse(refusal) = verdict {
            return self.refuse_by_policy(connection, refusal);
        }
        if let Some(end) = self.answer_from_lists(connection) {
            return end;
        }
        let limits = &self.context.limits;
        let repeatable = self.route.is_repeatable;
        let keep_limit = if repeatable { limits.replay_limit } else { SUBJECT_LIMIT };
        let mut body = BodyState::new(self.head, keep_limit, &self.context.budget);
        if verdict == Verdict::PassFromRegistry
            && let Some(end) = self.hold_to_registry(connection, &mut body)
        {
            return end;
        }
        let wanted = match self.wanted(connection, &mut body) {
            Ok(wanted) => wanted,
            Err(()) => {
                return self.answer_own_fault(connection, &body).unwrap_or(End::Cut);
            }
        };
        let underway = self.show_progress(&wanted);
        if self.is_upload() {
            body.transfer = underway.as_ref().map(|underway| Arc::clone(underway));
        }
        let stream = Arc::clone(connection.stream());
        let is_wanted = || !socket::is_gone(stream.socket());
        let lease = |tried: &[BackendId]| self.context.mailbox.lease(tried, &wanted, &is_wanted);
        let mut attempts = Attempts::new(repeatable);
        let mut failure: Option<(String, &'static str)> = None;
        let needs_fresh = !repeatable || self.context.presence.is_network_new(IDLE_AGE);
        let mut fresh = needs_fresh;
        let mut next_lease: Option<Lease> = None;
        loop {
            let leased = next_lease.take().map_or_else(|| lease(attempts.tried()), Ok);
            let mut leased = match (leased, failure.take()) {
                (Ok(leased), _) => leased,
                (Err(_), Some((message, cause))) => {
                    return self.refuse(connection, 502, &message, cause);
                }
                (Err(Refused::NoServer(_)), None) if !is_wanted() => {
                    return self.client_left(connection);
                }
                (Err(Refused::NoServer(why)), None) => {
                    return self.refuse(connection, 503, &why, UNREACHED);
                }
                (Err(Refused::QueueFull), None) => {
                    let why = "all servers are busy and the queue is full";
                    return self.refuse(connection, 503, why, "busy");
                }
            };
            if let Some(underway) = &underway {
                underway.goes_to(&leased.pick.name);
            }
            let before = body.sent;
            let attempt = self.attempt(connection, &mut body, &leased, fresh);
            self.count_up(&leased, body.sent - before);
            let failed = match attempt {
                Ok(answer) => {
                    // Another server may do better, if the request can be sent again.
                    if let Some(outcome) = poor_answer(&answer)
                        && attempts.may_go_on(leased.pick.id, outcome, body.is_replayable())
                    {
                        // Two that hold what the other waits for would wait for ever.
                        leased.report.outcome = outcome;
                        leased.give_back();
                        if let Ok(other) = lease(attempts.tried()) {
                            self.count_retry(outcome);
                            next_lease = Some(other);
                            fresh = needs_fresh;
                            continue;
                        }
                    }
                    body.let_go();
                    let shown = (&wanted, underway.as_ref());
                    return self.relay(connection, &mut leased, &body, shown, answer);
                }
                Err(failed) => failed,
            };
            if let Some(end) = self.answer_own_fault(connection, &body) {
                return end;
            }
            if failed.stale && body.is_replayable() {
                // Nothing is known against the server; the connection was just old.
                fresh = true;
                next_lease = Some(leased);
                self.context.presence.counters().retried(Retry::Stale);
                continue;
            }
            let name = leased.pick.label();
            log::warn!("attempt failed backend={name:?} reason={:?}", failed.reason);
            let outcome = if failed.unreached { Outcome::Unreachable } else { Outcome::Failed };
            leased.report.outcome = outcome;
            let message = format!("{name}: {}", failed.reason);
            let cause = if failed.unreached { UNREACHED } else { UPSTREAM };
            if !attempts.may_go_on(leased.pick.id, outcome, body.is_replayable()) {
                return self.refuse(connection, 502, &message, cause);
            }
            self.count_retry(outcome);
            self.note(0, cause, &message);
            failure = Some((message, cause));
            fresh = needs_fresh;
        }
    }

    /// Paired machines, this machine's own programs, and others as long as they may.
    fn may_ask(&self, connection: &Downstream) -> bool {
        connection.caller().is_trusted() || self.context.keyring.takes_unpaired()
    }

    fn refuse_by_policy(&self, connection: &mut Downstream, refusal: permissions::Refusal) -> End {
        self.refuse(connection, 403, &refusal.message(&self.context.machine), POLICY)
    }

    /// Lets a pull through only if it is one from Ollama's own connections, in words of our own.
    fn hold_to_registry(
        &mut self,
        connection: &mut Downstream,
        body: &mut BodyState<'_>,
    ) -> Option<End> {
        let io = Arc::clone(self.upstream.io());
        io.begin(Some(Arc::clone(connection.stream())), Attempt::default());
        let read = self.reader(connection, body, &io).prefetch(SUBJECT_LIMIT, &|_| false);
        if read.is_err() {
            return Some(self.answer_own_fault(connection, body).unwrap_or(End::Cut));
        }
        let is_plain = !self.head.fields.contains_key(http::header::CONTENT_ENCODING);
        let whole = Some(body.kept()).filter(|_| is_plain && body.is_done());
        let Some(known) = whole.and_then(permissions::registry_pull) else {
            return Some(self.refuse_by_policy(connection, permissions::Refusal::Registry));
        };
        self.framing = Framing::Length(known.len() as u64);
        body.replace(known);
        None
    }

    fn is_client(&self) -> bool {
        self.context.side == Side::Client
    }

    /// What the request needs. Reads as much of the body as it takes to see the model's name, if
    /// there is a choice.
    ///
    /// # Errors
    /// When the body can't be had; the fault is recorded.
    fn wanted(
        &mut self,
        connection: &mut Downstream,
        body: &mut BodyState<'_>,
    ) -> Result<Wanted, ()> {
        let client = connection.peer().ip();
        if !self.is_client() {
            return Ok(Wanted { client: Some(client), local_only: true, ..Wanted::default() });
        }
        // Only programs of this machine choose: a choice passes over bans.
        let server =
            self.head.fields.get(SERVER_FIELD).filter(|_| connection.caller().is_trusted());
        let mut server = server.and_then(|name| name.to_str().ok()).map(str::to_owned);
        let is_plain = !self.head.fields.contains_key(http::header::CONTENT_ENCODING);
        let is_pull = self.route.task == Task::Pull;
        let has_choice = is_pull || self.context.wakes || self.context.presence.backends() > 1;
        let mut subject = Subject::default();
        if has_choice && self.route.names_model && is_plain && self.framing != Framing::Empty {
            let io = Arc::clone(self.upstream.io());
            io.begin(Some(Arc::clone(connection.stream())), Attempt::default());
            let mut reader = self.reader(connection, body, &io);
            // Of a create the rest matters too, and a pull's body may have to be rewritten.
            let takes_all = matches!(self.route.task, Task::Pull | Task::Build);
            let names_model = |bytes: &[u8]| !takes_all && subject::subject(bytes).model.is_some();
            reader.prefetch(SUBJECT_LIMIT, &names_model).map_err(|_| ())?;
            subject = subject::subject(body.kept());
        }
        let named = subject.model.clone().filter(|_| is_pull && body.is_done());
        if let Some((model, place)) = named.as_deref().and_then(endpoints::split_server)
            && let Some(renamed) = endpoints::rename_model(body.kept(), model)
        {
            self.framing = Framing::Length(renamed.len() as u64);
            body.replace(renamed);
            subject.model = Some(model.to_owned());
            server = Some(place.to_owned());
        }
        Ok(self.route.wanted(&subject, client, server))
    }

    fn reader<'r, 'b>(
        &self,
        connection: &'r mut Downstream,
        state: &'r mut BodyState<'b>,
        io: &'r ExchangeIo,
    ) -> BodyReader<'r, 'b> {
        let idle_timeout = self.context.timing.body_timeout;
        BodyReader::new(connection, state, io, idle_timeout)
    }

    /// Sends the request to one backend and waits for the head of its answer.
    fn attempt(
        &self,
        connection: &mut Downstream,
        body: &mut BodyState<'_>,
        lease: &Lease,
        fresh: bool,
    ) -> Result<Response<Body>, Failure> {
        let io = Arc::clone(self.upstream.io());
        let has_body = self.framing != Framing::Empty;
        let holds_head = has_body && body.is_at_hand(connection);
        let is_lan = !lease.pick.is_local;
        let attempt = Attempt { holds_head, is_large: self.is_large(), is_lan };
        io.begin(Some(Arc::clone(connection.stream())), attempt);
        let sent = self.request(lease).and_then(|request| {
            if has_body {
                let mut reader = self.reader(connection, body, &io);
                self.upstream.send(request, Some(&mut reader as &mut dyn Read), fresh)
            } else {
                self.upstream.send(request, None, fresh)
            }
        });
        sent.map_err(|reason| {
            let progress = io.progress();
            let stale = progress.reused && !progress.received;
            Failure { reason, unreached: !progress.sent, stale }
        })
    }

    fn is_large(&self) -> bool {
        let large_body = match self.framing {
            Framing::Empty => false,
            Framing::Length(length) => length > LARGE_BODY,
            Framing::Chunked => true,
        };
        let long = |(name, value): (&http::HeaderName, &HeaderValue)| {
            name.as_str().len() + value.len() > LONG_LINE
        };
        large_body || self.head.target.len() > LONG_LINE || self.head.fields.iter().any(long)
    }

    fn request(&self, lease: &Lease) -> Result<Request<()>, String> {
        let address = lease.pick.address;
        let prefix = if lease.pick.is_local { self.context.prefix.as_str() } else { "" };
        let uri = upstream::build_uri(address, prefix, &self.head.target)?;
        let mut fields = self.head.fields.clone();
        fields::prepare_request(&mut fields, &self.context.via);
        cors::strip(&mut fields);
        match self.framing {
            Framing::Length(length) => {
                fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            Framing::Chunked => {
                fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Framing::Empty => {
                let takes_body =
                    matches!(self.head.method, Method::POST | Method::PUT | Method::PATCH);
                if takes_body {
                    fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
            }
        }
        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = fields;
        Ok(request)
    }

    /// Answers a failure that isn't the upstream's.
    fn answer_own_fault(&self, connection: &mut Downstream, body: &BodyState<'_>) -> Option<End> {
        match body.fault {
            Some(BodyFault::ClientLeft) => return Some(self.client_left(connection)),
            Some(BodyFault::Malformed(reason)) => {
                return Some(self.refuse(connection, 400, reason, "body"));
            }
            Some(BodyFault::TooSlow) => {
                return Some(self.refuse(connection, 408, "the body took too long", "body"));
            }
            Some(BodyFault::TooLong) => {
                return Some(self.refuse(connection, 413, "the body is too long", "body"));
            }
            None => {}
        }
        match self.upstream.io().progress().fault {
            Some(Fault::ClientLeft | Fault::ClientStalled) => Some(self.client_left(connection)),
            Some(Fault::OutOfResources) => {
                let message = "this machine is out of file descriptors or memory";
                log::warn!("{message}");
                Some(self.refuse(connection, 503, message, UNREACHED))
            }
            None => None,
        }
    }

    fn client_left(&self, connection: &Downstream) -> End {
        self.context.presence.counters().failed("left");
        self.log(connection, 499, "-", 0, None);
        End::Cut
    }

    /// Lets people see how far a pull, a push, a create or an upload has come.
    fn show_progress(&self, wanted: &Wanted) -> Option<Underway> {
        if self.route.kind != Kind::Manage || self.head.method != Method::POST {
            return None;
        }
        let path = self.head.target.split('?').next().unwrap_or_default();
        let (kind, name) = match path {
            _ if self.is_upload() => ("upload", path.rsplit('/').next().unwrap_or_default()),
            "/api/pull" => ("pull", ""),
            "/api/push" => ("push", ""),
            "/api/create" => ("create", ""),
            _ => return None,
        };
        let total = match self.framing {
            Framing::Length(length) if kind == "upload" => length,
            _ => 0,
        };
        let model = wanted.model.as_ref().map(|model| model.as_str()).filter(|_| name.is_empty());
        self.context.presence.counters().begin(kind, model.unwrap_or(name), total)
    }

    fn is_upload(&self) -> bool {
        self.route.kind == Kind::Manage
            && self.head.method == Method::POST
            && self.head.target.starts_with("/api/blobs/")
    }

    fn count_up(&self, lease: &Lease, bytes: u64) {
        if bytes > 0 {
            lease.pick.tally.bytes_up.add(bytes);
            self.context.presence.counters().all.bytes_up.add(bytes);
        }
    }

    fn count_retry(&self, outcome: Outcome) {
        let why = match outcome {
            Outcome::Unreachable => Retry::Unreached,
            Outcome::Overloaded => Retry::Busy,
            Outcome::Failed | Outcome::Answered | Outcome::Void => Retry::Failed,
        };
        self.context.presence.counters().retried(why);
    }

    /// Remembers a failure for those who look at the state.
    fn note(&self, status: u16, cause: &'static str, reason: &str) {
        self.context.presence.counters().note(Failed {
            at: Instant::now(),
            status,
            cause,
            method: self.head.method.to_string(),
            path: self.head.target.clone(),
            reason: reason.to_owned(),
        });
    }

    /// The access line; 499 stands for a client that left. Nothing that could be a prompt is in
    /// it: no body, and of the target only the path.
    fn log(
        &self,
        connection: &Downstream,
        status: u16,
        backend: &str,
        down: u64,
        first_byte: Option<Duration>,
    ) {
        self.context.presence.counters().request(self.route.kind, status, first_byte);
        if log::log_enabled!(log::Level::Debug) {
            let first_byte = first_byte.map(|time| format!(" ttfb_ms={}", time.as_millis()));
            log::debug!(
                "request method={:?} path={:?} status={status} backend={backend:?} up={} \
                 down={down}{} duration_ms={}",
                start_of(self.head.method.as_str(), LOGGED_METHOD),
                start_of(self.head.target.split('?').next().unwrap_or_default(), LOGGED_PATH),
                connection.body_bytes(),
                first_byte.unwrap_or_default(),
                self.started.elapsed().as_millis()
            );
        }
    }
}

fn start_of(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

/// An answer that another server might better: overloaded, or a proxy of ours whose Ollama died
/// before its answer, or that reached none, or whose owner doesn't allow it.
fn poor_answer(answer: &Response<Body>) -> Option<Outcome> {
    match answer.headers().get(ERROR_FIELD).map(HeaderValue::as_bytes) {
        Some(cause) if cause == UNREACHED.as_bytes() => Some(Outcome::Unreachable),
        Some(cause) if cause == UPSTREAM.as_bytes() => Some(Outcome::Failed),
        Some(cause) if cause == POLICY.as_bytes() => Some(Outcome::Answered),
        _ => poor_outcome(answer.status()),
    }
}

fn poor_outcome(status: StatusCode) -> Option<Outcome> {
    matches!(status.as_u16(), 429 | 503).then_some(Outcome::Overloaded)
}
