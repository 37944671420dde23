//! Health checks: whether an upstream answers as Ollama does, and what models it has.

use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use http::{Request, Response};
use serde_json::Value;

use super::exchange_io::{self, Attempt, ExchangeIo, Failure};
use super::{NOT_CONNECTED, REFUSED, Upstream, build_uri, describe, describe_io};
use crate::access::permissions::Permission;
use crate::config::{OLLAMA_PORT, OllamaUrl, ServerName};
use crate::http::fields::{
    self, IDENTITY_FIELD, PERMISSION_FIELD, ROOM_FIELD, SAVED_FIELD, SERVER_FIELD,
};
use crate::net::untrusted_text::is_printable;
use crate::net::{names, socket};
use crate::ollama::endpoints::{List, STATUS, VERSION};
use crate::ollama::inventory::Inventory;
use crate::ollama::list_reader::{ListReader, Read};
use crate::ollama::version::OllamaVersion;
use crate::pairing::identity::{Identity, MAX_NAME};
use crate::system;

/// Longest version that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Longest list of models that is read, in bytes: some ten thousand. It is taken apart as it comes.
const MAX_LIST: u64 = 32 << 20;
const PIECE: usize = 16 << 10;
/// A checker waits so long for a server's name that was never found. One that comes later is there
/// for the next check.
const NAME_TIME: Duration = Duration::from_millis(250);
/// Ways to a server that are tried at once, if its name leads to several addresses or it isn't known on
/// which port it is; and by how much a better one may be later than a worse one.
const MOST_WAYS: usize = 8;
const GRACE: Duration = Duration::from_millis(300);
/// The first Ollama that tells whether it keeps from the cloud, and can be told to.
const TELLS_CLOUD: OllamaVersion = OllamaVersion { major: 0, minor: 16, patch: 2 };
/// How long a check waits for the lists. Those that take longer must not make it late: they are asked
/// for apart.
pub(crate) const LISTS_IN_PASSING: Duration = Duration::from_millis(500);

/// Where to check a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name to resolve first.
    Name(ServerName),
    /// An address.
    Address(SocketAddr),
}

/// What a health check found.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckResult {
    /// `/api/version` answered. What isn't Ollama's own is told by a server proxy of ours.
    Healthy {
        /// Where it was reached.
        address: SocketAddr,
        /// How long the answer took.
        round_trip: Duration,
        /// Ollama's version as it wrote it.
        version: String,
        /// What the proxy calls itself.
        name: Option<String>,
        /// Which proxy that is.
        identity: Option<Identity>,
        /// What the proxy lets us do.
        open: Option<Permission>,
        /// Bytes of models that its machine did not have to download.
        saved: u64,
        /// The models, if they were asked for and told in time.
        inventory: Option<Arc<Inventory>>,
    },
    /// An answer that rules the server out for now: refused, 5xx, not Ollama.
    Refused(String),
    /// No connection: refused, or no way there.
    Unreached(String),
    /// No answer in time.
    Silent(String),
    /// We couldn't ask, for want of descriptors or memory of our own.
    Void,
}

/// How long a check may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckTime {
    /// To connect, if that isn't as usual.
    pub connect: Option<Duration>,
    /// In all: for the addresses of a name, the version, and the lists that come in passing.
    pub answer: Duration,
    /// For the lists besides, if they are asked for apart.
    pub lists: Option<Duration>,
}

impl CheckTime {
    pub(crate) fn of(answer: Duration) -> Self {
        CheckTime { connect: None, answer, lists: None }
    }
}

/// How to check a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check<'a> {
    pub(crate) target: &'a Target,
    /// The local Ollama's URL, if it is that: it must not turn out to be a proxy of ours.
    pub(crate) local: Option<&'a OllamaUrl>,
    pub(crate) wants_inventory: bool,
    pub(crate) time: CheckTime,
}

impl Check<'_> {
    /// Asks for `/api/version`, and for the lists of models if they are wanted.
    pub(crate) fn run(self, upstream: &Upstream) -> CheckResult {
        let result = self.ask(upstream);
        // The exchange holds the socket, which would stay open until the next check.
        exchange_io::with(ExchangeIo::end);
        result
    }

    fn ask(self, upstream: &Upstream) -> CheckResult {
        let until = Instant::now() + self.time.answer;
        let (ways, is_told) = match self.ways(upstream) {
            Ok(ways) => ways,
            Err(reason) => return CheckResult::Refused(reason),
        };
        let mut result = CheckResult::Void;
        for (at, address) in ways.iter().enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            let share = left / (ways.len() - at) as u32;
            let is_ollana;
            (result, is_ollana) = self.ask_at(upstream, *address, Instant::now() + share);
            // Where an ollana refuses, nobody goes around it.
            if is_ollana || matches!(result, CheckResult::Healthy { .. } | CheckResult::Void) {
                break;
            }
        }
        match result {
            CheckResult::Unreached(reason) if !is_told => {
                CheckResult::Unreached(format!("{reason}, and so on port {OLLAMA_PORT}"))
            }
            // What that means of a machine in the LAN isn't known to everybody.
            CheckResult::Unreached(reason) if reason == REFUSED && self.local.is_none() => {
                CheckResult::Unreached(format!("{reason}: nothing listens there"))
            }
            CheckResult::Silent(reason) if reason == NOT_CONNECTED && self.local.is_none() => {
                CheckResult::Silent(format!("{reason}: it is off, or a firewall drops it"))
            }
            result => result,
        }
    }

    /// Where to ask, the best first; and whether one port was meant.
    fn ways(self, upstream: &Upstream) -> Result<(Vec<SocketAddr>, bool), String> {
        let server = match self.target {
            Target::Address(address) => return Ok((vec![*address], true)),
            Target::Name(server) => server,
        };
        let patience = if self.local.is_some() { self.time.answer } else { NAME_TIME };
        let ports = server.ports();
        let mut addresses = names::resolve(&server.host, ports[0], patience)?;
        addresses.truncate(MOST_WAYS / ports.len());
        let mut ways = addresses.clone();
        for port in &ports[1..] {
            // Who has a key there is never talked to in clear.
            let others =
                addresses.iter().filter(|it| upstream.keyring.encrypts(**it) != Some(true));
            ways.extend(others.map(|address| {
                let mut other = *address;
                other.set_port(*port);
                other
            }));
        }
        if ways.len() > 1 {
            ways = knock(&ways, self.time.connect.unwrap_or(self.time.answer / 2));
        }
        Ok((ways, ports.len() == 1))
    }

    /// The result, and whether it came from an ollana.
    fn ask_at(
        self,
        upstream: &Upstream,
        address: SocketAddr,
        until: Instant,
    ) -> (CheckResult, bool) {
        let start = Instant::now();
        let left = until.saturating_duration_since(start);
        if left.is_zero() {
            return (CheckResult::Silent("no time was left".to_owned()), false);
        }
        // On a connection of its own: an old one may be broken although the server is well.
        let request = self.request(upstream, false, address, VERSION);
        let answer = request.and_then(|request| upstream.get(request, left, MAX_ANSWER));
        match answer {
            Ok(answer) => {
                let is_ollana = fields::is_from_ollana(answer.headers());
                let result = self.judge(upstream, (address, until), &answer, start.elapsed());
                (result, is_ollana)
            }
            Err(error) => (failure(&error), false),
        }
    }

    fn judge(
        self,
        upstream: &Upstream,
        (address, until): (SocketAddr, Instant),
        answer: &Response<String>,
        round_trip: Duration,
    ) -> CheckResult {
        let fields = answer.headers();
        if self.local.is_some() && fields::is_from_ollana(fields) {
            return CheckResult::Refused("another ollana answers there, not Ollama".to_owned());
        }
        let json: Option<Value> = serde_json::from_str(answer.body()).ok();
        let member = |name, most| Some(start_of(json.as_ref()?.get(name)?.as_str()?, most));
        match (answer.status().as_u16(), member("version", 64)) {
            (200, Some(version)) => {
                let told = |field| fields.get(field).and_then(|word| word.to_str().ok());
                let room = told(ROOM_FIELD).and_then(|room| room.parse().ok());
                let tells_cloud = OllamaVersion::parse(&version) >= TELLS_CLOUD;
                let inventory = self.inventory(upstream, address, (room, tells_cloud), until);
                CheckResult::Healthy {
                    address,
                    round_trip,
                    version,
                    name: told(SERVER_FIELD).map(|name| start_of(name, MAX_NAME)),
                    identity: told(IDENTITY_FIELD).and_then(Identity::parse),
                    open: told(PERMISSION_FIELD).and_then(Permission::of_word),
                    saved: told(SAVED_FIELD).and_then(|n| n.parse().ok()).unwrap_or(0),
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
        (room, tells_cloud): (Option<u64>, bool),
        until: Instant,
    ) -> Option<Arc<Inventory>> {
        if !self.wants_inventory {
            return None;
        }
        let now = Instant::now();
        let apart = self.time.lists;
        let until = apart.map_or(until.min(now + LISTS_IN_PASSING), |time| now + time);
        let lists = List::ALL.map(|list| {
            let read = self.list(upstream, address, list, until);
            read.unwrap_or_else(|reason| Read::failed(format!("{} {reason}", list.path())))
        });
        if apart.is_none() && Instant::now() >= until {
            return None;
        }
        let mut inventory = Inventory::of(lists, room);
        if tells_cloud && inventory.has_remote() {
            inventory.cloud = self.cloud(upstream, address, until);
        }
        Some(Arc::new(inventory))
    }

    /// Whether its Ollama lets models run in the cloud. Asked only where one is listed, and in what is
    /// left of the time for the lists.
    fn cloud(self, upstream: &Upstream, address: SocketAddr, until: Instant) -> Option<bool> {
        let left = until.saturating_duration_since(Instant::now());
        let request =
            self.request(upstream, true, address, STATUS).ok().filter(|_| !left.is_zero())?;
        let answer = upstream.get(request, left, MAX_ANSWER).ok()?;
        let json: Value = serde_json::from_str(answer.body()).ok()?;
        let is_disabled = json["cloud"]["disabled"].as_bool()?;
        (answer.status() == 200).then_some(!is_disabled)
    }

    /// Reads a list as it comes. The error is what became of the request.
    fn list(
        self,
        upstream: &Upstream,
        address: SocketAddr,
        list: List,
        until: Instant,
    ) -> Result<Read, String> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("was not asked for, as the others took too long".to_owned());
        }
        let request = self.request(upstream, true, address, list.path());
        let answer = request.and_then(|request| upstream.get_head(request, left));
        let answer = answer.map_err(|error| format!("failed: {}", describe(&error)))?;
        match answer.status().as_u16() {
            200 => {}
            // Older servers don't have every list.
            404 | 405 => return Ok(Read::none()),
            // It died since it told its version: what it has is still on its disk.
            status => return Err(format!("failed with status {status}")),
        }
        let mut body = answer.into_body().into_reader().take(MAX_LIST);
        let (mut reader, mut piece) = (ListReader::new(list), vec![0; PIECE]);
        loop {
            match body.read(&mut piece) {
                Ok(0) => return Ok(reader.finish(None)),
                Ok(n) => reader.push(&piece[..n]),
                Err(error) => return Ok(reader.finish(Some(describe_io(&error)))),
            }
        }
    }

    fn request(
        self,
        upstream: &Upstream,
        may_reuse: bool,
        address: SocketAddr,
        path: &str,
    ) -> Result<Request<()>, ureq::Error> {
        let prefix = self.local.map_or("", |url| url.prefix.as_str());
        let uri = build_uri(address, prefix, path).map_err(ureq::Error::BadUri)?;
        let is_lan = self.local.is_none();
        let connect = self.time.connect;
        upstream.begin(Attempt { is_lan, may_reuse, connect, ..Attempt::default() });
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        Ok(request)
    }
}

/// What it means that there is no answer.
fn failure(error: &ureq::Error) -> CheckResult {
    let reason = describe(error);
    match error {
        _ if exchange_io::with(|io| io.fault().is_some()) => CheckResult::Void,
        ureq::Error::Timeout(_) => CheckResult::Silent(reason),
        ureq::Error::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
            CheckResult::Refused(reason)
        }
        _ if exchange_io::with(|io| io.failure()) != Failure::Unreached => {
            CheckResult::Refused(reason)
        }
        _ => CheckResult::Unreached(reason),
    }
}

/// Connects to all of these at once: those that take it, in this order, or the first if none does.
fn knock(ways: &[SocketAddr], time: Duration) -> Vec<SocketAddr> {
    let (tell, told) = bounded(ways.len());
    for (at, way) in ways.iter().copied().enumerate() {
        let tell = tell.clone();
        // Without a thread, it isn't asked.
        let _ = system::spawn("knocker", move || {
            let _ = tell.send((at, socket::connect(way, None, time).is_ok()));
        });
    }
    drop(tell);
    let mut opens: Vec<Option<bool>> = vec![None; ways.len()];
    let mut until = Instant::now() + time;
    let best = |opens: &[Option<bool>]| opens.iter().find(|it| **it != Some(false)).copied();
    while best(&opens).flatten() != Some(true)
        && let Ok((at, is_open)) = told.recv_deadline(until)
    {
        opens[at] = Some(is_open);
        if is_open {
            until = until.min(Instant::now() + GRACE);
        }
    }
    let open = ways.iter().zip(&opens).filter(|(_, is_open)| **is_open == Some(true));
    let open: Vec<SocketAddr> = open.map(|(way, _)| *way).collect();
    if open.is_empty() { ways[..1].to_vec() } else { open }
}

/// The start of a text, without what isn't printable.
fn start_of(text: &str, most: usize) -> String {
    text.chars().filter(|c| is_printable(*c)).take(most).collect()
}

#[cfg(test)]
mod tests;
