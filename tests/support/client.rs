//! A client that says what it sends and sees what it gets, byte for byte.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::PATIENCE;
use super::http::{Dechunker, Head, read_once, take_front};
use super::random::Sum;
use super::system::queues_of;

/// How what was read last ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As the framing says; for a body without framing, with an orderly close.
    Whole,
    /// The connection was closed before the end of the body.
    CutByClose,
    /// The connection was reset.
    CutByReset,
}

/// A whole answer, or what came of it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
    pub end: End,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The token that a page carries; empty for who gets none.
    pub fn page_token(&self) -> String {
        let text = self.text();
        let token = text.split_once("<meta name=\"ollana-token\" content=\"");
        let (_, token) = token.expect("a place for it");
        token.split('"').next().unwrap_or_default().to_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {}", self.text()))
    }
}

/// How the body that is being read is framed.
#[derive(Debug)]
enum Framing {
    Length(usize),
    Chunked(Dechunker),
    UntilClose,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
    framing: Framing,
    end: Option<End>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Client::on(stream)
    }

    /// A connection from this address, which the kernel must take for one of this machine.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        #[cfg(target_os = "linux")]
        if source.is_ipv6() {
            // For those that are ours by a route alone.
            socket.set_freebind_v6(true)?;
        }
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect(&address.into())?;
        Ok(Client::on(socket.into()))
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time-out");
        Client { stream, input: Vec::new(), framing: Framing::Length(0), end: None }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send to the daemon");
    }

    /// Sends to a peer that may be gone already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Reads what is there into the input; how it ended if nothing more comes.
    fn fill(&mut self, awaited: &str) -> Option<End> {
        let result = read_once(&self.stream, &mut self.input);
        match result {
            Ok(0) => Some(End::CutByClose),
            Ok(_) => None,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let got = String::from_utf8_lossy(&self.input).into_owned();
                panic!("waited in vain for {awaited}; {} bytes unread: {got:.300}", got.len())
            }
            Err(_) => Some(End::CutByReset),
        }
    }

    /// The next head, interim ones included; or how the connection ended instead.
    pub fn try_head(&mut self) -> Result<Head, End> {
        loop {
            if let Some(head) = Head::take(&mut self.input) {
                return Ok(head);
            }
            if let Some(end) = self.fill("the head of an answer") {
                return Err(end);
            }
        }
    }

    /// The head of the final answer to a request of this method.
    pub fn head_of(&mut self, method: &str) -> Head {
        let head = self.try_head().unwrap_or_else(|end| panic!("no answer to {method}: {end:?}"));
        self.expect_body_of(method, &head);
        head
    }

    /// The whole answer to a request of this method, if there is one; interim ones are passed over.
    pub fn try_answer_to(&mut self, method: &str) -> Result<Answer, End> {
        loop {
            let head = self.try_head()?;
            if !matches!(head.status(), 100 | 102..=199) {
                self.expect_body_of(method, &head);
                let (body, end) = self.rest();
                return Ok(Answer { head, body, end });
            }
        }
    }

    fn expect_body_of(&mut self, method: &str, head: &Head) {
        let status = head.status();
        self.end = None;
        self.framing = if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
            Framing::Length(0)
        } else if head.is_chunked() {
            assert!(!head.has("content-length"), "both framings: {head:?}");
            Framing::Chunked(Dechunker::default())
        } else if let Some(length) = head.length() {
            Framing::Length(length)
        } else {
            Framing::UntilClose
        };
    }

    /// The next piece of the body, as it came: one chunk, or what one read brought. None at the
    /// end, which [`end`](Self::end) then tells.
    pub fn piece(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.end.is_some() {
                return None;
            }
            let piece = match &mut self.framing {
                Framing::Length(0) => Some(Vec::new()),
                Framing::Length(left) => {
                    let n = (*left).min(self.input.len());
                    *left -= n;
                    Some(take_front(&mut self.input, n)).filter(|piece| !piece.is_empty())
                }
                Framing::Chunked(dechunker) => {
                    dechunker.take(&mut self.input).expect("well-formed chunks")
                }
                Framing::UntilClose => {
                    Some(std::mem::take(&mut self.input)).filter(|piece| !piece.is_empty())
                }
            };
            match piece {
                Some(piece) if piece.is_empty() => self.end = Some(End::Whole),
                Some(piece) => return Some(piece),
                None => {
                    self.end = self.fill("more of a body").map(|end| match self.framing {
                        Framing::UntilClose if end == End::CutByClose => End::Whole,
                        _ => end,
                    });
                }
            }
        }
    }

    /// Reads until the body so far ends with `tail`.
    pub fn read_until(&mut self, tail: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        while !body.ends_with(tail) {
            let piece = self.piece().unwrap_or_else(|| {
                let got = String::from_utf8_lossy(&body).into_owned();
                panic!("the body ended before {:?}: {got:?}", String::from_utf8_lossy(tail))
            });
            body.extend_from_slice(&piece);
        }
        body
    }

    /// Reads the rest of the body.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let mut body = Vec::new();
        while let Some(piece) = self.piece() {
            body.extend_from_slice(&piece);
        }
        (body, self.end.unwrap_or(End::Whole))
    }

    /// Reads the rest of the body without keeping it: its length and hash.
    pub fn drain(&mut self) -> ((u64, u64), End) {
        let mut sum = Sum::default();
        while let Some(piece) = self.piece() {
            sum.add(&piece);
        }
        (sum.get(), self.end.unwrap_or(End::Whole))
    }

    /// The whole answer to a request of this method that was sent before; interim ones are passed
    /// over.
    pub fn answer_to(&mut self, method: &str) -> Answer {
        let answer = self.try_answer_to(method);
        answer.unwrap_or_else(|end| panic!("no answer to {method}: {end:?}"))
    }

    /// Sends a request and reads the whole answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let request = request.as_ref();
        self.send(request);
        let method = request.split(|byte| *byte == b' ').next().unwrap_or_default();
        self.answer_to(&String::from_utf8_lossy(method))
    }

    /// A GET without fields of its own.
    pub fn get(&mut self, target: &str) -> Answer {
        self.ask(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// A POST with a body of known length.
    pub fn post(&mut self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask(post(target, body))
    }

    /// Waits until the daemon closes the connection and sends nothing before.
    pub fn expect_close(&mut self) -> End {
        match self.fill("the connection to close") {
            Some(end) => end,
            None => {
                let got = String::from_utf8_lossy(&self.input).into_owned();
                panic!("bytes instead of a close: {got:?}")
            }
        }
    }

    /// Whether something was received that nobody has read.
    pub fn has_unread(&self) -> bool {
        !self.input.is_empty()
    }

    /// Waits for a close, whatever comes before it: all those bytes.
    pub fn read_to_close(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Some(end) = self.fill("the connection to close") {
                return (std::mem::take(&mut self.input), end);
            }
        }
    }

    /// Leaves as a program does that is done: a FIN.
    pub fn leave(self) -> Instant {
        let now = Instant::now();
        let _ = self.stream.shutdown(Shutdown::Both);
        now
    }

    /// Leaves with a reset.
    pub fn reset(self) -> Instant {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("linger");
        let now = Instant::now();
        drop(self.stream);
        now
    }
}

/// The bytes of a POST with a body of known length.
pub fn post(target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// What the kernel holds of a client's bytes: not yet sent, and received by the daemon's side but
/// not read.
pub fn queues(client: &Client) -> (usize, usize) {
    let [own, peer] = ends(client);
    (queues_of(own, peer).0, queues_of(peer, own).1)
}

/// The same of the bytes for a client.
pub fn queues_to_client(client: &Client) -> (usize, usize) {
    let [own, peer] = ends(client);
    (queues_of(peer, own).0, queues_of(own, peer).1)
}

fn ends(client: &Client) -> [SocketAddrV4; 2] {
    let own = client.stream.local_addr().expect("own address");
    let peer = client.stream.peer_addr().expect("peer's address");
    [own, peer].map(|end| match end {
        SocketAddr::V4(end) => end,
        SocketAddr::V6(end) => panic!("{end} isn't IPv4"),
    })
}

/// The bytes of a request with a body of known length, or without one if it is empty.
pub fn request(method: &str, target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n");
    [head.as_bytes(), body].concat()
}

/// Requests that an Ollama must get once at most, however it fails.
pub const NEVER_TWICE: [(&str, &str); 7] = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:00"),
    ("PUT", "/something/else"),
];

/// What an Ollama with the model `m` answers with 200 and does nothing for.
pub const MODEL: &str = "/v1/models/m";

/// A chat that an Ollama with the model `m` answers with 200, in one piece.
pub const CHAT: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":false}"#;

/// What may be asked for again, of another server or on another connection.
pub const INFERENCE: [&str; 9] = [
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
];
