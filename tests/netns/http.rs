//! A plain HTTP client: one request per connection, the answer as it comes.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::lan::Host;

/// Silence for longer than this fails a test.
const PATIENCE: Duration = Duration::from_secs(25);
const PORT: u16 = 11434;

/// A request under way.
pub(crate) struct Call {
    reader: BufReader<TcpStream>,
}

/// An answer's head, and its body as it comes.
pub(crate) struct Stream {
    pub(crate) status: u16,
    fields: String,
    reader: BufReader<TcpStream>,
    framing: Framing,
    /// What [`Stream::line`] has of the line after.
    begun: String,
}

enum Framing {
    Length(u64),
    Chunked,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Why a proxy made it itself, if one did.
    pub(crate) cause: Option<String>,
    pub(crate) body: String,
}

/// A GET of Ollama's address on a host.
pub(crate) fn get(host: &Host, target: &str) -> io::Result<Answer> {
    send(host, "GET", target, "")?.answer()
}

/// A POST of a small body to Ollama's address on a host.
pub(crate) fn post(host: &Host, target: &str) -> io::Result<Answer> {
    send(host, "POST", target, "{\"model\":\"m\"}")?.answer()
}

/// Sends a request and doesn't wait for its answer.
pub(crate) fn send(host: &Host, method: &str, target: &str, body: &str) -> io::Result<Call> {
    let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
    let call = open(host, loopback, method, target, body.len())?;
    call.reader.get_ref().write_all(body.as_bytes())?;
    Ok(call)
}

/// Sends the head of a request whose body has this length.
pub(crate) fn open(
    host: &Host,
    address: SocketAddr,
    method: &str,
    target: &str,
    length: usize,
) -> io::Result<Call> {
    let mut stream = host.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let framing = match method {
        "GET" => String::new(),
        _ => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{framing}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    Ok(Call { reader: BufReader::new(stream) })
}

impl Call {
    /// Sends a part of the body.
    pub(crate) fn upload(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Waits for the head of the answer.
    pub(crate) fn head(mut self) -> io::Result<Stream> {
        let mut fields = String::new();
        while !fields.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut fields)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let status = fields.get(9..12).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {fields:?}")))?;
        let fields = fields.to_ascii_lowercase();
        let framing = match field(&fields, "content-length").map(str::parse) {
            Some(Ok(length)) => Framing::Length(length),
            _ if field(&fields, "transfer-encoding") == Some("chunked") => Framing::Chunked,
            other => return Err(io::Error::other(format!("framing {other:?}: {fields:?}"))),
        };
        Ok(Stream { status, fields, reader: self.reader, framing, begun: String::new() })
    }

    /// Waits for the whole answer.
    pub(crate) fn answer(self) -> io::Result<Answer> {
        let mut stream = self.head()?;
        let mut body = String::new();
        while let Some(part) = stream.part()? {
            body.push_str(&part);
        }
        let cause = stream.field("x-ollana-error").map(str::to_owned);
        Ok(Answer { status: stream.status, cause, body })
    }

    /// Leaves at once.
    pub(crate) fn hang_up(self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
    }
}

impl Stream {
    /// A field of the answer, in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    /// The next part of the body: one chunk, or the rest. `None` at its clean end.
    pub(crate) fn part(&mut self) -> io::Result<Option<String>> {
        let chunked = matches!(self.framing, Framing::Chunked);
        let length = match &mut self.framing {
            Framing::Length(left) => std::mem::take(left),
            Framing::Chunked => {
                let mut line = String::new();
                self.reader.read_line(&mut line)?;
                let digits = line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?;
                u64::from_str_radix(digits, 16).map_err(io::Error::other)?
            }
        };
        let mut part = vec![0; length as usize];
        self.reader.read_exact(&mut part)?;
        if chunked {
            let mut end = [0; 2];
            self.reader.read_exact(&mut end)?;
            assert_eq!(&end, b"\r\n", "the end of a chunk");
        }
        let text = String::from_utf8(part).map_err(io::Error::other)?;
        Ok((length > 0).then_some(text))
    }

    /// The next line of the body.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.begun.find('\n') {
                let rest = self.begun.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.begun, rest));
            }
            let part = self.part()?.ok_or(ErrorKind::UnexpectedEof)?;
            self.begun.push_str(&part);
        }
    }

    /// The body up to its clean end, or what came before the failure.
    pub(crate) fn rest(&mut self) -> Result<String, String> {
        let mut text = std::mem::take(&mut self.begun);
        loop {
            match self.part() {
                Ok(Some(part)) => text.push_str(&part),
                Ok(None) => return Ok(text),
                Err(error) => return Err(format!("{text}[{error}]")),
            }
        }
    }

    /// Leaves at once.
    pub(crate) fn hang_up(self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
    }
}

impl Answer {
    /// Whether it is an error in Ollama's or OpenAI's shape with this status.
    pub(crate) fn is_error(&self, status: u16) -> bool {
        self.status == status && self.body.starts_with("{\"error\":")
    }
}

fn field<'a>(fields: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = fields.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(field, _)| *field == name).map(|(_, value)| value)
}
