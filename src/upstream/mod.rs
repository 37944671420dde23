//! Requests to an upstream (an Ollama or the next proxy) through ureq.
//!
//! The only importer of ureq. It gives ureq a transport of ours on a non-blocking socket, because
//! the exchange's promises (see `io`) have to be kept where the bytes move: in ureq's reads
//! and writes.

pub mod exchange_io;

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use rustix::event::PollFlags;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Agent, Body, SendBody, Timeout};

use crate::access::permissions::Permission;
use crate::config::{MAX_FIELD_LINE, OllamaUrl, Timing};
use crate::http::fields::{self, IDENTITY_FIELD, PERMISSION_FIELD, ROOM_FIELD, SERVER_FIELD};
use crate::manager::pool::{CheckResult, Target};
use crate::net::socket::{self, UNACKNOWLEDGED};
use crate::net::untrusted_text::is_printable;
use crate::ollama::inventory::{Inventory, List};
use crate::pairing::identity::{Identity, MAX_NAME};
use crate::pairing::keyring::Keyring;
use crate::pairing::secure::{self, HopError, Patience};
use crate::pairing::stream::Stream;
use crate::upstream::exchange_io::{Attempt, ExchangeIo, Fault, Woken};

/// A request on a connection that was used before must be acknowledged within this: a machine of a
/// LAN does that in milliseconds, and one that has gone or moved never. Then a new connection tells
/// which.
const PROOF: Duration = Duration::from_secs(1);
/// An answer that comes before this is proof enough, and costs no system call.
const PROMPT: Duration = Duration::from_millis(300);
/// Buffers start this small, which is all that a stream of tokens needs …
pub const SMALL: usize = 4 * 1024;
/// Less still is enough for one token after the other …
const TOKENS: usize = 1024;
/// … and grow up to this while data comes faster than it leaves.
const LARGE: usize = 32 * 1024;
/// Idle connections kept per worker; it rarely talks to more than one server.
const MAX_IDLE: usize = 2;
/// Idle connections are closed after this, well before the next proxy's idle limit.
pub const IDLE_AGE: Duration = Duration::from_secs(30);
/// Longest answer to a check that is read: lists of some thousand models.
const MAX_CHECK_ANSWER: u64 = 1 << 20;
/// A daemon on this machine tells its state within this, and in no more than so many bytes.
const FETCH_TIME: Duration = Duration::from_secs(5);
const MAX_FETCHED: u64 = 64 << 20;

/// One worker's way to the upstreams, with its own pooled connections.
#[derive(Debug)]
pub struct Upstream {
    pooled: Agent,
    fresh: Agent,
    io: Arc<ExchangeIo>,
}

impl Upstream {
    /// For one worker thread.
    pub fn new(timing: &Timing, keyring: &Arc<Keyring>) -> Self {
        let io = Arc::new(ExchangeIo::new(timing.stall_timeout));
        let agent = |max_idle| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(None)
                .user_agent("")
                .accept("")
                .accept_encoding("")
                .allow_non_standard_methods(true)
                .max_idle_connections(max_idle)
                .max_idle_connections_per_host(max_idle)
                .max_idle_age(IDLE_AGE)
                .timeout_connect(Some(timing.connect_timeout))
                .build();
            Agent::with_parts(
                config,
                IoConnector { io: Arc::clone(&io), keyring: Arc::clone(keyring) },
                Literal,
            )
        };
        Upstream { pooled: agent(MAX_IDLE), fresh: agent(0), io }
    }

    /// The io of the exchange under way.
    pub fn io(&self) -> &Arc<ExchangeIo> {
        &self.io
    }

    /// Sends a request and waits for the head of its answer. With `fresh`, on a connection of
    /// its own, which can't be stale: for what must not be sent twice.
    ///
    /// # Errors
    /// A sentence; [`ExchangeIo::progress`] says how far it came.
    pub fn send(
        &self,
        request: Request<()>,
        body: Option<&mut dyn Read>,
        fresh: bool,
    ) -> Result<Response<Body>, String> {
        let agent = if fresh { &self.fresh } else { &self.pooled };
        let result = match body {
            Some(body) => agent.run(request.map(|()| SendBody::from_reader(body))),
            None => agent.run(request),
        };
        result.map_err(|error| describe(&error))
    }
}

/// Puts an upstream's address and a client's target together; parts, so that no target can
/// name another host.
///
/// # Errors
/// A sentence when the target can't be part of a URI.
pub fn build_uri(address: SocketAddr, prefix: &str, target: &str) -> Result<Uri, String> {
    let path = if prefix.is_empty() || target == "*" {
        target.to_owned()
    } else {
        format!("{prefix}{target}")
    };
    Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query(path)
        .build()
        .map_err(|_| "the target has characters that a URI can't have".to_owned())
}

/// Asks a daemon of ours for one of its own paths: status and body.
///
/// # Errors
/// A sentence.
pub fn fetch(timing: &Timing, address: SocketAddr, target: &str) -> Result<(u16, String), String> {
    let upstream = Upstream::new(timing, &Arc::new(Keyring::none()));
    upstream.io.begin(None, Attempt::default());
    let mut request = Request::new(());
    *request.uri_mut() = build_uri(address, "", target)?;
    let configured = upstream.fresh.configure_request(request);
    let request = configured.timeout_global(Some(FETCH_TIME)).build();
    let answer = upstream.fresh.run(request).map_err(|error| describe(&error))?;
    let (parts, body) = answer.into_parts();
    let mut text = String::new();
    let mut reader = body.into_reader().take(MAX_FETCHED);
    reader.read_to_string(&mut text).map_err(|error| describe_io(&error))?;
    Ok((parts.status.as_u16(), text))
}

/// A sentence about a failed call, without the library's words for it.
pub fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => describe_io(error),
        ureq::Error::Timeout(Timeout::Connect) => "connecting timed out".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::Protocol(error) => format!("answer is not HTTP: {error}"),
        other => other.to_string(),
    }
}

/// A sentence about an error of a socket or of a body.
pub fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".to_owned(),
        ErrorKind::UnexpectedEof => "connection closed early".to_owned(),
        ErrorKind::TimedOut => "timed out".to_owned(),
        ErrorKind::HostUnreachable => "no route to host".to_owned(),
        ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// How to check a backend.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    /// Whom.
    pub target: &'a Target,
    /// The local Ollama's URL, if it is that: it must not turn out to be a proxy of ours.
    pub local: Option<&'a OllamaUrl>,
    /// Whether to ask for its models too.
    pub wants_inventory: bool,
    /// For each answer.
    pub timeout: Duration,
}

impl Check<'_> {
    /// Asks for `/api/version`.
    pub fn run(self, upstream: &Upstream) -> CheckResult {
        let result = self.ask(upstream);
        // The io holds the socket, which would stay open until the next check.
        upstream.io.end();
        result
    }

    fn ask(self, upstream: &Upstream) -> CheckResult {
        let address = match resolve(self.target) {
            Ok(address) => address,
            Err(reason) => return CheckResult::Refused(reason),
        };
        let start = Instant::now();
        // On a connection of its own: an old one may be broken although the server is well.
        let answer = match self.get(upstream, &upstream.fresh, address, "/api/version") {
            Ok(answer) => answer,
            Err(_) if upstream.io.progress().fault.is_some() => return CheckResult::Void,
            Err(error @ ureq::Error::Timeout(_)) => return CheckResult::Silent(describe(&error)),
            Err(error) => return CheckResult::Refused(describe(&error)),
        };
        let round_trip = start.elapsed();
        let (status, fields, text) = answer;
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let member = |name: &str, most: usize| {
            let text = json.as_ref()?.get(name)?.as_str()?;
            Some(text.chars().filter(|c| is_printable(*c)).take(most).collect::<String>())
        };
        if self.local.is_some() && fields::is_from_ollana(&fields) {
            return CheckResult::Refused("another ollana answers there, not Ollama".to_owned());
        }
        match (status, member("version", 64)) {
            (200, Some(version)) => {
                let room = fields.get(ROOM_FIELD).and_then(|room| room.to_str().ok()?.parse().ok());
                let inventory = self.inventory(upstream, address, room);
                let told = |field| fields.get(field).and_then(|word| word.to_str().ok());
                let name = told(SERVER_FIELD)
                    .map(|name| name.chars().filter(|c| is_printable(*c)).take(MAX_NAME).collect());
                let open = told(PERMISSION_FIELD).and_then(Permission::of_word);
                let identity = told(IDENTITY_FIELD).and_then(Identity::parse);
                CheckResult::Healthy {
                    address,
                    round_trip,
                    version,
                    name,
                    identity,
                    open,
                    inventory,
                }
            }
            (200, None) => CheckResult::Refused("answers, but not as Ollama does".to_owned()),
            (status, _) => {
                let reason = member("error", 200).unwrap_or_default();
                let reason = format!("answers with status {status} {reason}");
                CheckResult::Refused(reason.trim().to_owned())
            }
        }
    }

    fn inventory(
        self,
        upstream: &Upstream,
        address: SocketAddr,
        room: Option<u64>,
    ) -> Option<Arc<Inventory>> {
        let mut answers = [const { String::new() }; 3];
        for (answer, list) in answers.iter_mut().zip(List::ALL).filter(|_| self.wants_inventory) {
            match self.get(upstream, &upstream.pooled, address, list.path()) {
                Ok((200, _, text)) => *answer = text,
                // Older servers don't have every list.
                Ok((404 | 405, ..)) => {}
                // It died since it told its version: what it has is still on its disk.
                Ok((status, ..)) => {
                    log::debug!("no list of models addr={address} status={status}");
                    return None;
                }
                Err(error) => {
                    log::debug!("no list of models addr={address} reason={}", describe(&error));
                    return None;
                }
            }
        }
        let [tags, loaded, openai] = &answers;
        self.wants_inventory.then(|| Arc::new(Inventory::new([tags, loaded, openai], room)))
    }

    fn get(
        self,
        upstream: &Upstream,
        agent: &Agent,
        address: SocketAddr,
        path: &str,
    ) -> Result<(u16, http::HeaderMap, String), ureq::Error> {
        let prefix = self.local.map_or("", |url| url.prefix.as_str());
        let uri = build_uri(address, prefix, path).map_err(ureq::Error::BadUri)?;
        let is_lan = self.local.is_none();
        upstream.io.begin(None, Attempt { is_lan, ..Attempt::default() });
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        let request = agent.configure_request(request).timeout_global(Some(self.timeout)).build();
        let (parts, body) = agent.run(request)?.into_parts();
        let mut text = String::new();
        body.into_reader().take(MAX_CHECK_ANSWER).read_to_string(&mut text)?;
        Ok((parts.status.as_u16(), parts.headers, text))
    }
}

fn resolve(target: &Target) -> Result<SocketAddr, String> {
    let server = match target {
        Target::Address(address) => return Ok(*address),
        Target::Name(server) => server,
    };
    let mut addresses = (server.host.as_str(), server.port)
        .to_socket_addrs()
        .map_err(|error| format!("can't resolve {}: {error}", server.host))?;
    // Ollama listens on IPv4 unless told otherwise.
    let first = addresses.next().ok_or_else(|| format!("{} has no address", server.host))?;
    Ok(std::iter::once(first).chain(addresses).find(SocketAddr::is_ipv4).unwrap_or(first))
}

/// Our URIs hold addresses, so there is nothing to look up (and no thread to do it in).
#[derive(Debug)]
struct Literal;

impl Resolver for Literal {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let address = authority.parse().map_err(|_| ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        addresses.push(address);
        Ok(addresses)
    }
}

#[derive(Debug)]
struct IoConnector {
    io: Arc<ExchangeIo>,
    keyring: Arc<Keyring>,
}

impl Connector for IoConnector {
    type Out = IoTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let address = details.addrs.first().copied().ok_or(ureq::Error::HostNotFound)?;
        let client = self.io.client();
        let timeout = details.timeout.not_zero().map_or(UNACKNOWLEDGED, |timeout| *timeout);
        let patience = Patience { timeout, watched: client.as_deref() };
        let stream = match self.io.is_lan() {
            true => secure::call(&self.keyring, address, patience),
            false => secure::connect(address, patience).map(|socket| Arc::new(Stream::new(socket))),
        };
        let stream = stream.map_err(|error| match error {
            HopError::Connect(error) => match error.kind() {
                ErrorKind::TimedOut => ureq::Error::Timeout(Timeout::Connect),
                ErrorKind::ConnectionAborted => self.io.fail(Fault::ClientLeft).into(),
                _ if is_shortage(&error) => {
                    self.io.fail(Fault::OutOfResources);
                    error.into()
                }
                _ => error.into(),
            },
            error => io::Error::new(ErrorKind::PermissionDenied, error.to_string()).into(),
        })?;
        Ok(Some(IoTransport {
            stream,
            address,
            keyring: Arc::clone(&self.keyring),
            buffers: GrowingBuffers::default(),
            io: Arc::clone(&self.io),
            held: Vec::new(),
            requests: 0,
            is_sending: false,
            has_received: false,
            was_just_read: false,
            is_patient: false,
            proof: Proof::Given,
            is_spoilt: false,
        }))
    }
}

fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether a connection that was used before still leads to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It does, or it is new.
    Given,
    /// A request was sent.
    Awaited,
    /// No answer came soon; now the kernel ends the connection unless the request was acknowledged.
    Demanded,
}

/// One connection to an upstream.
#[derive(Debug)]
struct IoTransport {
    stream: Arc<Stream>,
    address: SocketAddr,
    keyring: Arc<Keyring>,
    buffers: GrowingBuffers,
    io: Arc<ExchangeIo>,
    /// The head of a request, until the first bytes of its body.
    held: Vec<u8>,
    /// Requests that this connection began to carry.
    requests: u32,
    is_sending: bool,
    /// Whether the present request has got bytes back.
    has_received: bool,
    /// Whether the last thing that happened was a read.
    was_just_read: bool,
    /// Whether unacknowledged bytes may take as long as a stall.
    is_patient: bool,
    proof: Proof,
    /// Part of a request was left out, so nothing may follow it.
    is_spoilt: bool,
}

impl IoTransport {
    fn write(&mut self, start: usize, end: usize, from_held: bool) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let bytes = if from_held { &self.held[at..end] } else { &self.buffers.output[at..end] };
            match self.stream.try_write(bytes) {
                Ok(0) => {
                    let heeded =
                        if self.io.heeds_input() { PollFlags::IN } else { PollFlags::empty() };
                    let events = PollFlags::OUT | heeded;
                    match self.io.wait_upstream(&self.stream, events, Some(self.io.stall()))? {
                        Woken::Ready => {}
                        Woken::TimedOut => return Err(ErrorKind::TimedOut.into()),
                        Woken::Answered => {
                            if self.io.note_answer(&self.stream)? {
                                self.is_spoilt = true;
                                return Ok(());
                            }
                        }
                    }
                }
                Ok(n) => at += n,
                // It closed while we were sending: an answer may be there to read nevertheless.
                Err(e)
                    if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
                        && self.io.note_answer(&self.stream).unwrap_or(false) =>
                {
                    self.is_spoilt = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn send_held(&mut self) -> io::Result<()> {
        if !self.held.is_empty() {
            self.write(0, self.held.len(), true)?;
            self.held.clear();
        }
        Ok(())
    }

    fn set_patience(&mut self, patient: bool) {
        if self.is_patient != patient {
            let limit = if patient { self.io.stall() } else { UNACKNOWLEDGED };
            // Without it the system's own limits hold; nothing is lost.
            let _ = socket::limit_unacknowledged(self.stream.socket(), limit.max(UNACKNOWLEDGED));
            self.is_patient = patient;
        }
    }

    fn set_proof(&mut self, proof: Proof) {
        let demanded = |proof| proof == Proof::Demanded;
        if demanded(self.proof) != demanded(proof) {
            let limit = if demanded(proof) { PROOF } else { UNACKNOWLEDGED };
            let _ = socket::limit_unacknowledged(self.stream.socket(), limit);
        }
        self.proof = proof;
    }
}

impl Drop for IoTransport {
    /// A request that was given up half-way: a plain close would leave its last bytes queued in
    /// front of the FIN, and an Ollama that doesn't read would never hear of it.
    fn drop(&mut self) {
        if self.is_sending {
            socket::reset_on_close(self.stream.socket());
        }
    }
}

impl Transport for IoTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        if self.buffers.wanted_output < LARGE {
            self.buffers.wanted_output = if self.io.is_large() { LARGE } else { SMALL };
        }
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        if !self.is_sending {
            self.is_sending = true;
            self.requests += 1;
            self.has_received = false;
            self.io.sending(&self.stream, self.requests > 1);
            self.set_patience(self.io.is_large());
        }
        if self.io.answered_early() {
            self.is_spoilt = true;
            return Ok(());
        }
        if self.io.take_holds_head() {
            self.held.extend_from_slice(&self.buffers.output[..amount]);
            return Ok(());
        }
        if self.held.is_empty() {
            self.write(0, amount, false)?;
        } else {
            self.held.extend_from_slice(&self.buffers.output[..amount]);
            self.send_held()?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        if self.is_sending {
            self.is_sending = false;
            self.send_held()?;
            self.set_patience(false);
            self.set_proof(if self.requests > 1 { Proof::Awaited } else { Proof::Given });
        }
        if self.has_received {
            // The answer comes in pieces, perhaps for minutes.
            self.buffers.settle();
        }
        // Everything that was read before is with the client before more is read.
        self.io.flush()?;
        let limit = timeout.for_read();
        let limit_for_poll = limit.not_zero().map(|limit| *limit);
        // Bulk data is usually there already; tokens never are.
        let mut is_likely = self.buffers.was_filled;
        loop {
            if is_likely {
                let space = self.buffers.input_append_buf();
                let len = space.len();
                match self.stream.try_read(space) {
                    Ok(Some(n)) => {
                        self.buffers.was_filled = n == len;
                        self.buffers.input_appended(n);
                        self.was_just_read = true;
                        if n > 0 && !self.has_received {
                            self.has_received = true;
                            self.io.received();
                            self.set_proof(Proof::Given);
                        }
                        return Ok(n > 0);
                    }
                    Ok(None) => {}
                    // Unlike an end of file, a reset can't be the end of an answer.
                    Err(e) => return Err(io::Error::new(ErrorKind::BrokenPipe, e).into()),
                }
            }
            let (wait, next) = match self.proof {
                Proof::Given => (limit_for_poll, Proof::Given),
                Proof::Awaited => (Some(PROMPT), Proof::Demanded),
                // Without an error by then, it was acknowledged; the answer may take minutes.
                Proof::Demanded => (Some(PROOF * 2), Proof::Given),
            };
            match self.io.wait_upstream(&self.stream, PollFlags::IN, wait)? {
                Woken::TimedOut if self.proof != Proof::Given => self.set_proof(next),
                Woken::TimedOut => return Err(ureq::Error::Timeout(limit.reason)),
                Woken::Ready | Woken::Answered => is_likely = true,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        // ureq asks when it puts a connection into its pool, right after an answer, and when it
        // takes it out again; the second look sees whatever the first would.
        if std::mem::take(&mut self.was_just_read) {
            return !self.is_spoilt;
        }
        // The machine may have been paired since this connection was made.
        let is_plain = self.stream.key().is_none() && self.io.is_lan();
        if is_plain && !self.keyring.allows_plain(self.address) {
            return false;
        }
        !self.is_spoilt
            && self.stream.is_drained()
            && matches!(self.stream.socket().peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}

/// Buffers that stay small for token streams and grow for bulk data and large heads.
#[derive(Debug, Default)]
struct GrowingBuffers {
    input: Vec<u8>,
    /// `input[consumed..filled]` isn't consumed yet.
    consumed: usize,
    filled: usize,
    /// Made when it is first used, `wanted_output` bytes large.
    output: Vec<u8>,
    wanted_output: usize,
    /// Whether the last use of the input made progress.
    progress: bool,
    /// Whether the last read took all the space there was.
    was_filled: bool,
}

impl GrowingBuffers {
    fn grow_output(&mut self) {
        if self.output.len() < self.wanted_output {
            self.output.resize(self.wanted_output, 0);
        }
    }

    /// Makes them as small as a stream of tokens needs. The next request gets new ones.
    fn settle(&mut self) {
        if self.output.is_empty() {
            return;
        }
        self.output = Vec::new();
        self.wanted_output = 0;
        if !self.was_filled && self.filled == 0 {
            self.input = vec![0; TOKENS];
        }
    }

    fn grow_input(&mut self, wanted: usize) {
        if self.input.len() < wanted {
            self.input.resize(wanted, 0);
        }
    }
}

impl Buffers for GrowingBuffers {
    fn output(&mut self) -> &mut [u8] {
        self.grow_output();
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.filled == self.input.len() || self.was_filled {
            // Twice as much, from 4 KiB up to 32 KiB; a larger head is refused by its size.
            let wanted = (self.input.len() * 2).clamp(SMALL, LARGE);
            self.grow_input(wanted);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed += amount;
        if self.consumed == self.filled {
            self.consumed = 0;
            self.filled = 0;
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.grow_output();
        let wanted = self.filled + self.output.len().max(SMALL);
        self.grow_input(wanted);
        (&mut self.input[self.filled..], &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.progress && self.filled > self.consumed
    }
}

/// A field line is written in one piece.
const _: () = assert!(MAX_FIELD_LINE <= LARGE);
