//! Requests to an upstream, which is an Ollama or another machine's proxy, through ureq.
//!
//! The room owns ureq, the connections to upstreams and the exchange's two sockets. It knows nothing
//! of which upstream is chosen, or why.
//!
//! [`Upstream`] sends a request; [`exchange_io`] moves its bytes and the answer's; [`health_check`]
//! asks whether an upstream is well; [`fetch`] asks a daemon of ours about itself.

pub(crate) mod buffers;
pub(crate) mod exchange_io;
mod health_check;
mod hope;
mod transport;

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use ureq::{Agent, Body, SendBody, Timeout};

use self::buffers::MAX_ANSWER_HEAD;
use self::exchange_io::Attempt;
use self::transport::{IoConnector, Literal};
use crate::config::Timing;
use crate::net::{names, untrusted_text};
use crate::pairing::keyring::Keyring;

pub(crate) use self::health_check::{Check, LISTS_IN_PASSING};
pub use self::health_check::{CheckResult, CheckTime, Target};
pub(crate) use self::hope::Hope;

/// Idle connections kept per worker; it rarely talks to more than one server.
const MAX_IDLE: usize = 2;
/// The same for all checkers, which ask each of many servers for its lists, two at a time.
const MAX_CHECKERS_IDLE: usize = 256;
/// Idle connections are closed after this, well before the next proxy's idle limit.
pub(crate) const IDLE_AGE: Duration = Duration::from_secs(30);
/// A daemon on this machine tells its state within this, and in no more than so many bytes.
const FETCH_TIME: Duration = Duration::from_secs(5);
const MAX_FETCHED: u64 = 64 << 20;

/// A thread's way to the upstreams. Clones have the same connections.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    pooled: Agent,
    fresh: Agent,
    keyring: Arc<Keyring>,
    connect: Duration,
    stall: Duration,
}

impl Upstream {
    pub(crate) fn new(timing: &Timing, keyring: &Arc<Keyring>) -> Self {
        Self::keeping(MAX_IDLE, timing, keyring)
    }

    /// For the clones of all checkers.
    pub(crate) fn for_checkers(timing: &Timing, keyring: &Arc<Keyring>) -> Self {
        Self::keeping(MAX_CHECKERS_IDLE, timing, keyring)
    }

    /// Keeps so many idle connections.
    fn keeping(most: usize, timing: &Timing, keyring: &Arc<Keyring>) -> Self {
        let agent = |max_idle: usize| {
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
                .max_idle_connections_per_host(max_idle.min(MAX_IDLE))
                .max_idle_age(IDLE_AGE)
                .max_response_header_size(MAX_ANSWER_HEAD)
                .build();
            Agent::with_parts(config, IoConnector { keyring: Arc::clone(keyring) }, Literal)
        };
        let (connect, stall) = (timing.connect_timeout, timing.stall_timeout);
        let keyring = Arc::clone(keyring);
        Upstream { pooled: agent(most), fresh: agent(0), keyring, connect, stall }
    }

    /// The agent for the attempt that was begun.
    fn agent(&self) -> &Agent {
        let may_reuse = exchange_io::with(|io| io.attempt.may_reuse);
        if may_reuse { &self.pooled } else { &self.fresh }
    }

    /// Starts an attempt: the exchange of this thread goes on with it.
    pub(crate) fn begin(&self, attempt: Attempt) {
        let connect = attempt.connect.or(Some(self.connect));
        exchange_io::with(|io| io.begin(Attempt { connect, stall: self.stall, ..attempt }));
    }

    /// Sends a request and waits for the head of its answer. The error is a sentence; the exchange's
    /// [`failure`](exchange_io::ExchangeIo::failure) says how far it came.
    pub(crate) fn send(
        &self,
        mut request: Request<()>,
        body: Option<&mut dyn Read>,
    ) -> Result<Response<Body>, String> {
        name_host(&mut request);
        let result = match body {
            Some(body) => self.agent().run(request.map(|()| SendBody::from_reader(body))),
            None => self.agent().run(request),
        };
        result.and_then(check_coding).map_err(|error| describe(&error))
    }

    /// Sends a request without a body and reads the whole answer within `timeout`, at most `most`
    /// bytes of it.
    fn get(
        &self,
        request: Request<()>,
        timeout: Duration,
        most: u64,
    ) -> Result<Response<String>, ureq::Error> {
        let (parts, body) = self.get_head(request, timeout)?.into_parts();
        let mut bytes = Vec::new();
        body.into_reader().take(most).read_to_end(&mut bytes)?;
        // Without a copy of what may be a megabyte, unless it isn't text.
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Ok(Response::from_parts(parts, text))
    }

    /// The same, but for the body, which is read later within the same time.
    fn get_head(
        &self,
        mut request: Request<()>,
        timeout: Duration,
    ) -> Result<Response<Body>, ureq::Error> {
        name_host(&mut request);
        let agent = self.agent();
        agent
            .run(agent.configure_request(request).timeout_global(Some(timeout)).build())
            .and_then(check_coding)
    }
}

/// Refuses an answer in another transfer coding than chunks: nobody asked for one (no `TE` is sent),
/// and what reads the body here would leave it in it.
fn check_coding(answer: Response<Body>) -> Result<Response<Body>, ureq::Error> {
    let codings: Vec<&[u8]> =
        answer.headers().get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes).collect();
    let is_new = answer.version() == Version::HTTP_11;
    match codings[..] {
        [] => {}
        [coding] if is_new && coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            exchange_io::with(|io| io.begins_chunks = true);
        }
        _ => {
            let codings =
                untrusted_text::printable(&String::from_utf8_lossy(&codings.join(&b", "[..])));
            let reason = format!("answer has a transfer coding that nobody asked for: {codings}");
            return Err(io::Error::new(ErrorKind::InvalidData, reason).into());
        }
    }
    Ok(answer)
}

/// Gives a request to a link-local address its `Host`, which ureq would write with the zone.
fn name_host(request: &mut Request<()>) {
    let authority = request.uri().authority().map_or("", Authority::as_str);
    if authority.contains('%')
        && let Ok(address) = authority.parse().map(names::without_zone)
        && let Ok(host) = HeaderValue::from_str(&address.to_string())
    {
        request.headers_mut().insert(HOST, host);
    }
}

/// Puts an upstream's address and a client's target together; parts, so that no target can name
/// another host.
///
/// # Errors
/// A sentence when the target can't be part of a URI.
pub fn build_uri(address: SocketAddr, prefix: &str, target: &str) -> Result<Uri, String> {
    let prefix = if target == "*" { "" } else { prefix };
    Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query(format!("{prefix}{target}"))
        .build()
        .map_err(|_| "the target has characters that a URI can't have".to_owned())
}

/// Asks a daemon of ours for one of its own paths: status and body.
pub(crate) fn fetch(
    timing: &Timing,
    address: SocketAddr,
    target: &str,
) -> io::Result<(u16, String)> {
    let answer = get(timing, address, target, &[], FETCH_TIME)?;
    Ok((answer.status().as_u16(), answer.into_body()))
}

/// Asks a daemon of ours to remove something.
pub(crate) fn delete(
    timing: &Timing,
    address: SocketAddr,
    target: &str,
) -> io::Result<(u16, String)> {
    let answer = ask(timing, address, (Method::DELETE, target), &[], FETCH_TIME)?;
    Ok((answer.status().as_u16(), answer.into_body()))
}

/// Sends a daemon of ours a request with a JSON body. Its answer is read as it comes, however long that
/// takes. The error is a sentence.
pub(crate) fn post(
    timing: &Timing,
    address: SocketAddr,
    target: &str,
    fields: &[(HeaderName, &str)],
    body: &str,
) -> Result<Response<impl Read + use<>>, String> {
    let upstream = Upstream::new(timing, &Arc::new(Keyring::none()));
    upstream.begin(Attempt::default());
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = build_uri(address, "", target)?;
    let length = body.len().to_string();
    let own = [(CONTENT_TYPE, "application/json"), (CONTENT_LENGTH, length.as_str())];
    set(&mut request, fields).and_then(|()| set(&mut request, &own)).map_err(|e| e.to_string())?;
    let answer = upstream.send(request, Some(&mut body.as_bytes()))?;
    Ok(answer.map(Body::into_reader))
}

fn set(request: &mut Request<()>, fields: &[(HeaderName, &str)]) -> io::Result<()> {
    for (name, value) in fields {
        let value = HeaderValue::from_str(value).map_err(io::Error::other)?;
        request.headers_mut().insert(name, value);
    }
    Ok(())
}

/// Asks a program of this machine, on a connection of its own, within `time`. Errors are those of the
/// socket; `TimedOut`; and `Other` if the answer is no HTTP.
pub(crate) fn get(
    timing: &Timing,
    address: SocketAddr,
    target: &str,
    fields: &[(HeaderName, &str)],
    time: Duration,
) -> io::Result<Response<String>> {
    ask(timing, address, (Method::GET, target), fields, time)
}

fn ask(
    timing: &Timing,
    address: SocketAddr,
    (method, target): (Method, &str),
    fields: &[(HeaderName, &str)],
    time: Duration,
) -> io::Result<Response<String>> {
    let upstream = Upstream::new(timing, &Arc::new(Keyring::none()));
    upstream.begin(Attempt::default());
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = build_uri(address, "", target).map_err(io::Error::other)?;
    set(&mut request, fields)?;
    upstream.get(request, time, MAX_FETCHED).map_err(|error| match error {
        ureq::Error::Io(error) => error,
        ureq::Error::Timeout(_) => ErrorKind::TimedOut.into(),
        other => io::Error::other(describe(&other)),
    })
}

const HEAD_TOO_LARGE: &str = "answer's head is too large, it may have 32 KiB and 128 fields";

// What [`describe`] calls these.
const REFUSED: &str = "connection refused";
const NOT_CONNECTED: &str = "connecting timed out";

/// A sentence about a failed call, without the library's words for it.
fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => describe_io(error),
        ureq::Error::Timeout(Timeout::Connect) => NOT_CONNECTED.to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::LargeResponseHeader(..) => HEAD_TOO_LARGE.to_owned(),
        ureq::Error::Protocol(error) if error.to_string().contains("too many headers") => {
            HEAD_TOO_LARGE.to_owned()
        }
        ureq::Error::Protocol(error) => format!("answer is not HTTP: {error}"),
        other => other.to_string(),
    }
}

/// A sentence about an error of a socket or of a body.
pub(crate) fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => REFUSED.to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".to_owned(),
        ErrorKind::UnexpectedEof => "connection closed early".to_owned(),
        ErrorKind::TimedOut => "timed out".to_owned(),
        ErrorKind::HostUnreachable => "no route to host".to_owned(),
        ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_leads_there_and_is_not_told() {
        let address: SocketAddr = "[fe80::1%7]:11435".parse().unwrap();
        let mut request = Request::new(());
        *request.uri_mut() = build_uri(address, "/x", "/api/tags?a").unwrap();
        let authority = request.uri().authority().map(|authority| authority.as_str().parse());
        assert_eq!(authority, Some(Ok(address)));
        name_host(&mut request);
        assert_eq!(request.headers()[HOST], "[fe80::1]:11435");
        *request.uri_mut() = build_uri(([127, 0, 0, 1], 1).into(), "", "/").unwrap();
        request.headers_mut().clear();
        name_host(&mut request);
        assert!(request.headers().is_empty());
    }
}
