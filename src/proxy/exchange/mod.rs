//! One request from its head to the end of its answer.
//!
//! ```text
//!  checks ─► own answers ─► wanted ─► lease ─► attempt ─► answer's head ─► relay
//!                                       ▲         │ failed before the head   │ failed behind it
//!                                       └─────────┴─ may be sent again?      └► in-band error, cut
//!                                                    no: 502 / 503 in the API's shape
//! ```
//!
//! An [`Exchange`] owns all that is known of a request while it is served. Its files follow the picture:
//! this one checks, `token` tells who calls, `own_paths`, `routes` and `lists` answer without an
//! upstream, `alias` puts a model in the place of a name that stands for it, `wanted` tells what the
//! request needs, for which `look` looks at its body, `forward` sends it (again, if `retry` allows and
//! `judged` finds its answer poor), `copy` has another machine give a model, `donate` and `push` give
//! one, `unload` has one taken out of memory, `account` keeps back what others needn't know of the
//! owner's account, `relay` passes the answer on while `observed` reads along (and `pull` has layers
//! come from the LAN), `record` counts and logs. Where its bytes are at any moment is one enum, in
//! `upstream::exchange_io`.

mod account;
mod alias;
mod copy;
mod donate;
mod donations;
mod forward;
mod judged;
mod lists;
mod look;
mod observed;
mod own;
mod own_paths;
mod pull;
mod push;
mod record;
mod relay;
mod retry;
mod routes;
mod token;
mod unload;
mod wanted;

use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

pub(crate) use self::donations::Donations;
pub use self::retry::Attempts;
use super::answers::{self, CLIENT_LEFT, Form, OwnAnswer};
use super::connection::Connection;
use super::connections::Connections;
use super::kept::Budget;
use super::request_body::RequestBody;
use crate::access::cors::{Cors, Decision};
use crate::access::host::HostRule;
use crate::access::permissions::{Refusal, Verdict};
use crate::config::Settings;
use crate::counters::Kind;
use crate::http::fields::{self, UNREACHED, UPSTREAM};
use crate::http::head::{Framing, Head};
use crate::library::Library;
use crate::manager::{Mailbox, Presence};
use crate::ollama::endpoints::Endpoint;
use crate::pairing::keyring::Keyring;
use crate::sharing::Sharing;
use crate::upstream::Upstream;
use crate::upstream::exchange_io::{self, ExchangeIo, Fault};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// In front of the LAN's servers: it chooses among them.
    Client,
    /// In front of the one local Ollama.
    Server,
}

/// What all exchanges of a proxy share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) side: Side,
    pub(crate) mailbox: Mailbox,
    /// What is known of the servers without asking the Manager.
    pub(crate) presence: Arc<Presence>,
    /// Where this machine's Ollama keeps its models, if that is shared.
    pub(crate) library: Option<Arc<Library>>,
    pub(crate) donations: Donations,
    /// This process in `Via` fields.
    pub(crate) via: HeaderValue,
    /// This machine's name, for its refusals.
    pub(crate) machine: String,
    /// A server's name for `X-Ollana-Server`; a client uses that of the server it chose.
    pub(crate) own_name: Option<HeaderValue>,
    /// This server's identity, for `X-Ollana-Identity`.
    pub(crate) identity: Option<HeaderValue>,
    /// Put in front of targets for the local Ollama (the path of `--ollama`).
    pub(crate) prefix: String,
    pub(crate) hosts: HostRule,
    pub(crate) budget: Budget,
    pub(crate) keyring: Arc<Keyring>,
    /// For blobs that other machines have.
    pub(crate) sharing: Sharing,
    pub(crate) connections: Arc<Connections>,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It serves the next request.
    Keep,
    /// It is closed; what the client still sends is drained.
    Close,
    /// It is closed at once, without a clean end of the answer.
    Cut,
}

pub(super) fn run(
    context: &Context,
    upstream: &Upstream,
    connection: &mut Connection,
    head: &Head,
) -> End {
    let mut exchange = Exchange {
        context,
        upstream,
        connection,
        head,
        framing: head.framing,
        endpoint: Endpoint::of(&head.method, &head.target),
        target: None,
        is_unpacked: false,
        is_last: false,
        cors: None,
        pull: None,
        started: Instant::now(),
    };
    let end = exchange.serve().unwrap_or_else(|own| exchange.refuse(&own));
    exchange_io::with(ExchangeIo::end);
    end
}

struct Exchange<'a> {
    context: &'a Context,
    upstream: &'a Upstream,
    connection: &'a mut Connection,
    head: &'a Head,
    /// The head's, unless the body was rewritten.
    framing: Framing,
    endpoint: Endpoint,
    /// In place of the head's, if that names an alias.
    target: Option<String>,
    /// The body was packed, and isn't any more.
    is_unpacked: bool,
    /// Nothing else is read from the connection.
    is_last: bool,
    /// What an answer needs for a web page to read it.
    cors: Option<Cors>,
    /// How it is driven, if it is a pull that can profit from the LAN.
    pull: Option<pull::Plan>,
    started: Instant,
}

impl<'a> Exchange<'a> {
    /// The error is the answer that the client gets instead of an upstream's.
    fn serve(&mut self) -> Result<End, OwnAnswer> {
        let is_own =
            |host: Option<&HeaderValue>| self.context.hosts.allows(host.map(HeaderValue::as_bytes));
        if !is_own(self.head.fields.get(HOST)) || !is_own(self.head.replaced_host.as_ref()) {
            self.is_last = true;
            return Err(OwnAnswer::ForeignHost);
        }
        if let Some(end) = self.answer_own_path() {
            return Ok(end);
        }
        if self.connection.place.is_reserve() {
            return Err(OwnAnswer::Full);
        }
        match self.context.settings.origins.judge(&self.head.method, &self.head.fields) {
            Decision::Plain => {}
            Decision::Cors(cors) => self.cors = Some(cors),
            Decision::Preflight(cors) => return Ok(self.answer_preflight(&cors)),
            Decision::Refuse => return Err(OwnAnswer::ForeignPage),
        }
        // Behind the answer to what a browser asks first, which can't send a token with it.
        let caller = self.admit()?;
        if fields::is_loop(&self.head.fields, &self.context.via) {
            return Err(OwnAnswer::Loop);
        }
        if let Some(end) = self.answer_as_router(caller)? {
            return Ok(end);
        }
        let verdict = self.context.settings.policy.judge(caller, self.endpoint.class);
        if let Verdict::Refuse(refusal) = verdict {
            return Err(self.forbidden(refusal));
        }
        let is_work = self.endpoint.kind != Kind::Other;
        let _work = is_work.then(|| self.context.presence.counters().work.begin());
        let donor = self.copies_from()?;
        if let Some(end) = self.answer_from_lists() {
            return Ok(end);
        }
        let mut body = RequestBody::new(self.head, self.keep_limit(), &self.context.budget);
        if verdict == Verdict::PassFromRegistry {
            self.hold_to_registry(&mut body)?;
        }
        let seen = match self.keeps_from_cloud() {
            true => self.hold_to_this_machine(&mut body)?,
            false => None,
        };
        let seen = self.resolve_alias(&mut body)?.or(seen);
        let mut wanted = self.wanted(&mut body, seen)?;
        if let Some(donor) = donor {
            if let Some(target) = self.copy_goes_to() {
                return self.copy_onward(body, target, donor);
            }
            if let Some(lease) = self.lease_for_copy(&wanted)? {
                return self.copy(body, (lease, &wanted), donor);
            }
        }
        self.pull = self.plan_pull(&mut body)?;
        self.receive_before_turn(&mut body, &mut wanted)?;
        self.forward(body, wanted)
    }

    /// Where the request goes.
    fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.head.target)
    }

    fn forbidden(&self, refusal: Refusal) -> OwnAnswer {
        OwnAnswer::Policy(refusal.message(&self.context.machine))
    }

    fn is_client(&self) -> bool {
        self.context.side == Side::Client
    }

    /// Why the exchange can't go on, where that isn't the upstream's fault.
    fn fault(&self) -> Option<OwnAnswer> {
        exchange_io::with(|io| io.fault()).map(OwnAnswer::Fault)
    }

    /// Answers with an error of our own, if there is still a client.
    fn refuse(&self, own: &OwnAnswer) -> End {
        let row = own.row();
        if row.status == CLIENT_LEFT {
            self.context.presence.counters().failed(row.cause);
            self.log(row.status, "-", 0, None);
            return End::Cut;
        }
        if *own == OwnAnswer::Fault(Fault::OutOfResources) {
            log::warn!("{}", row.text);
        }
        if self.greets() && matches!(row.cause, UNREACHED | UPSTREAM | "busy") {
            return self.greet();
        }
        log::debug!("refused status={} message={:?}", row.status, row.text);
        self.note(row.status, row.cause, row.text);
        if matches!(own, OwnAnswer::NoPath | OwnAnswer::NoMethod(_)) && !self.is_of_api() {
            return self.answer_as(row.status, own.fields(), answers::PLAIN, row.text);
        }
        self.answer(row.status, own.fields(), &own.body(self.endpoint.dialect))
    }

    fn answer(&self, status: u16, fields: HeaderMap, body: &str) -> End {
        self.answer_as(status, fields, answers::JSON, body)
    }

    fn answer_as(
        &self,
        status: u16,
        mut fields: HeaderMap,
        media: &'static str,
        body: &str,
    ) -> End {
        if let Some(cors) = &self.cors {
            cors.mark(&mut fields);
        }
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        let form = self.form();
        let end = self.write_answer(&answers::write(status, &fields, body, form), form.closes);
        self.log(status, "-", body.len() as u64, None);
        end
    }

    /// Answers a browser that asks what a page may ask, as Ollama does.
    fn answer_preflight(&self, cors: &Cors) -> End {
        self.answer_empty(StatusCode::NO_CONTENT, cors.preflight())
    }

    fn form(&self) -> Form {
        Form { is_head: self.head.method == Method::HEAD, closes: self.closes() }
    }

    /// Whether the connection ends after an answer of our own, which leaves the body unread.
    fn closes(&self) -> bool {
        self.framing != Framing::Empty
            || !self.head.keep_alive
            || self.is_last
            || self.connection.place.is_reserve()
            || self.context.connections.is_draining()
    }

    fn write_answer(&self, answer: &[u8], closes: bool) -> End {
        let stall = self.context.settings.timing.stall_timeout;
        match self.connection.stream.write_all(answer, stall) {
            Ok(()) if closes => End::Close,
            Ok(()) => End::Keep,
            Err(_) => End::Cut,
        }
    }
}
