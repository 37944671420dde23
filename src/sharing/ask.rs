//! One question to a neighbour, and one to all of them at once.

use std::fmt;
use std::io::Read;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode};

use super::{Blob, Neighbour, Sharing};
use crate::system;
use crate::upstream::exchange_io::{self, Attempt, ExchangeIo};
use crate::upstream::{Upstream, build_uri};

/// How long a neighbour may take to connect, and then to answer. Nobody waits for the slow ones where
/// another has the blob.
pub(super) const TIME: Duration = Duration::from_secs(1);
/// Neighbours that are asked at once.
pub(super) const AT_ONCE: usize = 32;

/// Why a neighbour doesn't give a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Lacks,
    /// It gives to as many others as it may.
    Busy,
    Other(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Lacks => "it has it no more, or can't read it",
            Refusal::Busy => "it gives to others",
            Refusal::Other(reason) => reason,
        })
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal::Other(reason)
    }
}

/// Asks up to [`AT_ONCE`] neighbours at once whether they have something. Those that do come out in the
/// order of their answers; the channel closes behind the last one.
fn those(
    sharing: &Sharing,
    neighbours: &[Neighbour],
    has_it: impl Fn(&mut Asker, &Neighbour) -> bool + Clone + Send + 'static,
) -> Receiver<Neighbour> {
    let (yes, answers) = bounded(AT_ONCE);
    for neighbour in neighbours.iter().take(AT_ONCE).cloned() {
        let (sharing, has_it, yes) = (sharing.clone(), has_it.clone(), yes.clone());
        // Without a thread, that one isn't asked.
        let _ = system::spawn("asker", move || {
            if has_it(&mut Asker::new(&sharing), &neighbour) {
                let _ = yes.send(neighbour);
            }
            exchange_io::with(ExchangeIo::end);
        });
    }
    answers
}

/// Those of the neighbours that have a blob.
pub(super) fn all(sharing: &Sharing, blob: &Blob, neighbours: &[Neighbour]) -> Receiver<Neighbour> {
    let blob = blob.clone();
    those(sharing, neighbours, move |asker, it| asker.ask(Method::HEAD, it, &blob, 0).is_ok())
}

/// The first of the neighbours that has something at this path.
pub(super) fn first(sharing: &Sharing, target: &str, all: &[Neighbour]) -> Option<Neighbour> {
    let target = target.to_owned();
    let has_it = move |asker: &mut Asker, it: &Neighbour| {
        asker.status(it, &target, 2 * TIME) == Ok(StatusCode::OK)
    };
    let answers = those(sharing, all, has_it);
    answers.recv_timeout(2 * TIME).ok()
}

/// One thread's way to its neighbours.
pub(super) struct Asker {
    upstream: Upstream,
}

impl Asker {
    pub(super) fn new(sharing: &Sharing) -> Self {
        Asker { upstream: Upstream::new(&sharing.timing, &sharing.keyring) }
    }

    /// The blob's bytes from `at` on, or none for HEAD.
    pub(super) fn ask(
        &mut self,
        method: Method,
        neighbour: &Neighbour,
        blob: &Blob,
        at: u64,
    ) -> Result<Box<dyn Read>, Refusal> {
        let mut request =
            self.begin(method, neighbour, &format!("/ollana/blobs/{}", blob.digest), 2 * TIME)?;
        if at > 0 {
            let range =
                HeaderValue::from_str(&format!("bytes={at}-")).map_err(|e| e.to_string())?;
            request.headers_mut().insert(RANGE, range);
        }
        let answer = self.upstream.send(request, None)?;
        let fits = match answer.status() {
            StatusCode::OK => at == 0,
            StatusCode::PARTIAL_CONTENT => begins_at(answer.headers(), at),
            StatusCode::NOT_FOUND => return Err(Refusal::Lacks),
            StatusCode::SERVICE_UNAVAILABLE => return Err(Refusal::Busy),
            status => return Err(format!("answers with status {status}").into()),
        };
        match fits && number(answer.headers(), CONTENT_LENGTH) == Some(blob.size - at) {
            true => Ok(Box::new(answer.into_body().into_reader())),
            false => Err("has another blob of this name".to_owned().into()),
        }
    }

    /// What it says of this path within `time`.
    pub(super) fn status(
        &self,
        neighbour: &Neighbour,
        target: &str,
        time: Duration,
    ) -> Result<StatusCode, String> {
        let request = self.begin(Method::HEAD, neighbour, target, time)?;
        self.upstream.send(request, None).map(|answer| answer.status())
    }

    fn begin(
        &self,
        method: Method,
        neighbour: &Neighbour,
        target: &str,
        time: Duration,
    ) -> Result<Request<()>, String> {
        self.upstream.begin(Attempt { is_lan: true, connect: Some(TIME), ..Attempt::default() });
        exchange_io::with(|io| io.look_until = Some(Instant::now() + time));
        let mut request = Request::new(());
        *request.uri_mut() = build_uri(neighbour.address, "", target)?;
        *request.method_mut() = method;
        Ok(request)
    }
}

/// Whether a part of a body begins there (`bytes 7-99/100`).
fn begins_at(fields: &HeaderMap, at: u64) -> bool {
    let range = fields.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    first.and_then(|first| first.parse().ok()) == Some(at)
}

fn number(fields: &HeaderMap, name: HeaderName) -> Option<u64> {
    fields.get(name)?.to_str().ok()?.trim().parse().ok()
}
