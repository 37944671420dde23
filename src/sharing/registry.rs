//! A registry of this machine that has one manifest, so that Ollama itself writes it: what it pulls from
//! there has its layers on disk already, so that nothing else is asked for (`server/images.go`,
//! `PullModel`).
//!
//! The model's name has 128 random bits, so that nobody else finds the manifest, and a name that a
//! crash leaves behind is known by its form. Plain HTTP: Ollama wants `"insecure": true` for it. It is on
//! loopback; an Ollama in a container, which has a loopback of its own, reaches another address.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Method;
use rustix::event::{PollFd, PollFlags, poll};

use crate::http::head::{self, Head, HeadLimits};
use crate::net::interfaces;
use crate::net::socket::{self, Waker};
use crate::ollama::manifest::MEDIA_TYPE;
use crate::system::{self, Hex, parse_hex};

/// The namespace of such names.
const NAMESPACE: &str = "ollana-copy";
/// The tags: of what is copied, and of what was there before. They have no letters, as Ollama writes a
/// tag in the case in which any of its models has it (`getExistingName` in `server/routes.go`).
pub(super) const NEW: &str = "1";
const OLD: &str = "2";
/// The tags that earlier versions gave.
const FORMER: [&str; 2] = ["new", "old"];

/// The port that a URL needn't name.
const HTTP: u16 = 80;
/// Addresses besides loopback that are tried.
const MOST_OTHERS: usize = 2;
/// A program of this machine that asks is that quick.
const TIME: Duration = Duration::from_secs(2);
const LIMITS: HeadLimits = HeadLimits { max_bytes: 16 << 10, max_fields: 64 };

/// Where a registry may be that the own Ollama reaches, the likeliest first.
pub(crate) fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    let others = interfaces::addresses_for_containers().into_iter().take(MOST_OTHERS);
    [Ipv4Addr::LOCALHOST].into_iter().chain(others)
}

/// Where a registry is, which nobody else finds.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) listener: TcpListener,
    /// `ADDRESS:PORT/ollana-copy/RANDOM`, on Windows without a port
    pub(super) model: String,
    /// What begins all paths of the model, and their addresses.
    pub(super) path: String,
    pub(super) url: String,
}

impl Place {
    pub(super) fn open(on: Ipv4Addr) -> io::Result<Self> {
        let listener = match cfg!(windows) && on.is_loopback() {
            true => listen_without_a_port()?,
            false => socket::listen(SocketAddr::from((on, 0)))?,
        };
        let random = Hex(&system::random::<16>()?).to_string();
        let host = match listener.local_addr()? {
            address if address.port() == HTTP => address.ip().to_string(),
            address => address.to_string(),
        };
        let path = format!("/v2/{NAMESPACE}/{random}/");
        let url = format!("http://{host}{path}");
        Ok(Place { listener, model: format!("{host}/{NAMESPACE}/{random}"), path, url })
    }

    /// What a target says behind the model's path, whose namespace may come in another case.
    pub(super) fn below<'t>(&self, target: &'t str) -> Option<&'t str> {
        let (path, rest) = target.split_at_checked(self.path.len())?;
        path.eq_ignore_ascii_case(&self.path).then_some(rest)
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<TcpStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(TIME))?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// At the port that needs no name, of an address that nobody else has: Ollama makes a folder of the host,
/// and no name of a file on Windows has a colon.
fn listen_without_a_port() -> io::Result<TcpListener> {
    let [a, b, c] = system::random::<3>()?;
    let address = SocketAddr::from((Ipv4Addr::new(127, a | 1, b, c & 0x7f | 1), HTTP));
    socket::listen(address).map_err(|error| {
        io::Error::new(error.kind(), format!("{address}, which copies take on Windows: {error}"))
    })
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    /// `ADDRESS:PORT/ollana-copy/RANDOM`, on Windows without a port
    model: String,
    was_asked: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    pub(crate) fn start(manifest: Vec<u8>, on: Ipv4Addr) -> io::Result<Self> {
        let place = Place::open(on)?;
        let model = place.model.clone();
        let (was_asked, waker) = (Arc::new(AtomicBool::new(false)), Arc::new(Waker::new()?));
        let server = Server {
            place,
            manifest,
            was_asked: Arc::clone(&was_asked),
            waker: Arc::clone(&waker),
        };
        let thread = system::spawn("registry", move || server.run())?;
        Ok(Registry { model, was_asked, waker, thread: Some(thread) })
    }

    /// The name under which Ollama can pull the model.
    pub(crate) fn name(&self) -> String {
        format!("{}:{NEW}", self.model)
    }

    /// A name for what was there before.
    pub(crate) fn other_name(&self) -> String {
        format!("{}:{OLD}", self.model)
    }

    /// Whether somebody has asked for the manifest: Ollama reaches this machine's loopback.
    pub(crate) fn was_asked(&self) -> bool {
        self.was_asked.load(SeqCst)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.waker.wake();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whether a model's name is one that a copy gives for a moment.
pub(crate) fn is_for_a_moment(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let [host, namespace, model] = parts[..] else { return false };
    let Some((random, tag)) = model.split_once(':') else { return false };
    let mut tags = [NEW, OLD].into_iter().chain(FORMER);
    namespace.eq_ignore_ascii_case(NAMESPACE)
        && tags.any(|it| it.eq_ignore_ascii_case(tag))
        && (host.parse::<SocketAddrV4>().is_ok() || host.parse::<Ipv4Addr>().is_ok())
        && parse_hex::<16>(random).is_some()
}

struct Server {
    place: Place,
    manifest: Vec<u8>,
    was_asked: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Server {
    fn run(self) {
        while self.wait() {
            match self.place.accept() {
                // One that hangs holds up others for a moment; only this machine's programs get here.
                Ok(stream) => drop(stream.map(|stream| self.serve(&stream))),
                // The kernel is out of descriptors; whoever asks doesn't wait for ever.
                Err(_) => std::thread::sleep(super::LOOK),
            }
        }
    }

    /// Waits for a connection; false once it is dropped.
    fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(&self.waker.watched, PollFlags::IN),
            PollFd::new(&self.place.listener, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        fds[0].revents().is_empty()
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let (head, _) = read_head(stream)?;
        let is_read = matches!(head.method, Method::GET | Method::HEAD);
        let path = self.place.below(&head.target).and_then(|path| path.split_once('/'));
        let (status, body) = if is_read && path == Some(("manifests", NEW)) {
            self.was_asked.store(true, SeqCst);
            ("200 OK", self.manifest.as_slice())
        } else {
            ("404 Not Found", &b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}"[..])
        };
        let fields = format!("Content-Type: {MEDIA_TYPE}\r\n");
        answer(stream, &head.method, status, &fields, body)
    }
}

/// Answers, after which the connection ends.
pub(super) fn answer(
    mut stream: &TcpStream,
    method: &Method,
    status: &str,
    fields: &str,
    body: &[u8],
) -> io::Result<()> {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let mut answer = text.into_bytes();
    if *method != Method::HEAD {
        answer.extend_from_slice(body);
    }
    stream.write_all(&answer)
}

/// A request's head, and what has come of its body.
pub(super) fn read_head(mut stream: &TcpStream) -> io::Result<(Head, Vec<u8>)> {
    let until = Instant::now() + TIME;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let refused = |refusal: head::Refusal| io::Error::other(refusal.reason);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let n = match stream.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            n => n?,
        };
        let scanned = bytes.len();
        bytes.extend_from_slice(&piece[..n]);
        if let Some(end) = head::find_end(&bytes, scanned, LIMITS).map_err(refused)? {
            let head = head::parse(&bytes[..end], LIMITS).map_err(refused)?;
            return Ok((head, bytes.split_off(end)));
        }
        if n == 0 || left.is_zero() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

    fn start() -> (Registry, SocketAddr, String) {
        let registry = Registry::start(MANIFEST.into(), Ipv4Addr::LOCALHOST).unwrap();
        let name = registry.name();
        let (host, rest) = name.split_once('/').unwrap();
        let path = format!("/v2/{}", rest.replace(':', "/manifests/"));
        let address =
            host.parse().unwrap_or_else(|_| (host.parse::<Ipv4Addr>().unwrap(), HTTP).into());
        (registry, address, path)
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn it_has_the_one_manifest_and_nothing_else() {
        let (registry, address, path) = start();
        assert!(address.ip().is_loopback());
        let other = path.replace("/v2/ollana-copy/", "/v2/ollana-copy/0");
        for target in ["/", "/v2/", "/v2/ollana-copy/", &other, &format!("{path}/"), &path[..40]] {
            let answer = ask(address, &format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
        }
        for request in [
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n"),
            "nonsense\r\n\r\n".to_owned(),
            "x".repeat(100_000),
        ] {
            let answer = ask(address, &request);
            assert!(!answer.contains("schemaVersion"), "{answer}");
        }
        assert!(!registry.was_asked());
        let answer = ask(address, &format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(
            answer.contains("Content-Length: 31\r\n") && answer.ends_with("\r\n\r\n"),
            "{answer}"
        );
        let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(MANIFEST), "{answer}");
        let cased = path.replace("ollana-copy", "Ollana-COPY");
        let answer = ask(address, &format!("GET {cased} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(answer.ends_with(MANIFEST), "{answer}");
        assert!(answer.contains(MEDIA_TYPE) && registry.was_asked());
        drop(registry);
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }

    #[test]
    fn who_says_nothing_holds_up_the_others_for_a_moment() {
        let (registry, address, path) = start();
        let _silent = TcpStream::connect(address).unwrap();
        let begun = Instant::now();
        let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(answer.ends_with(MANIFEST), "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        drop(registry);
    }

    #[test]
    fn its_names_are_known_and_never_the_same() {
        let (one, two) = (start().0, start().0);
        for name in [one.name(), one.other_name(), two.name(), two.other_name()] {
            assert!(is_for_a_moment(&name), "{name}");
        }
        assert_ne!(one.model.rsplit('/').next(), two.model.rsplit('/').next());
        let random = "0123456789abcdef0123456789abcdef";
        for (name, want) in [
            (format!("127.0.0.1:5/ollana-copy/{random}:1"), true),
            (format!("127.0.0.1:5/Ollana-Copy/{random}:2"), true),
            (format!("127.0.0.1:5/ollana-copy/{random}:new"), true),
            (format!("127.0.0.1:5/ollana-copy/{random}:OLD"), true),
            (format!("127.0.0.1:5/ollana-copy/{random}:3"), false),
            (format!("127.0.0.1:5/ollana-copy/{random}:latest"), false),
            (format!("127.0.0.1:5/ollana-copy/{random}"), false),
            (format!("127.3.5.7/ollana-copy/{random}:1"), true),
            (format!("127.0.0.1:99999/ollana-copy/{random}:1"), false),
            (format!("172.17.0.1:5/ollana-copy/{random}:1"), true),
            (format!("desktop:5/ollana-copy/{random}:1"), false),
            (format!("a/127.0.0.1:5/ollana-copy/{random}:1"), false),
            (format!("127.0.0.1:5/me/{random}:1"), false),
            (format!("127.0.0.1:5/ollana-copy/{}:1", &random[1..]), false),
            (format!("127.0.0.1:5/ollana-copy/{random}x:1"), false),
            ("ollana-copy:1".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_for_a_moment(&name), want, "{name}");
        }
    }
}
