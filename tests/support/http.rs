//! Just enough HTTP/1.1 to say what was on the wire, kept apart from the code under test.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;

/// A head as it was received.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Every byte, the empty line included.
    pub bytes: Vec<u8>,
    /// The three parts of the first line.
    pub start: [String; 3],
    /// Names in lower case, values as they are.
    pub fields: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// Takes a whole head off the front of `input`, if there is one.
    pub fn take(input: &mut Vec<u8>) -> Option<Head> {
        let end = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let bytes = take_front(input, end);
        let mut lines = bytes[..end - 4].split(|byte| *byte == b'\n').map(|line| {
            line.strip_suffix(b"\r").unwrap_or(line) //
        });
        let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let mut parts = first.splitn(3, ' ').map(str::to_owned);
        let start = std::array::from_fn(|_| parts.next().unwrap_or_default());
        let fields = lines
            .map(|line| {
                let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
                let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
                let value = line.get(colon + 1..).unwrap_or_default();
                (name, value.trim_ascii().to_vec())
            })
            .collect();
        Some(Head { bytes, start, fields })
    }

    pub fn method(&self) -> &str {
        &self.start[0]
    }

    pub fn target(&self) -> &str {
        &self.start[1]
    }

    pub fn status(&self) -> u16 {
        self.start[1].parse().unwrap_or(0)
    }

    /// All values of a field, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        let named = self.fields.iter().filter(|(other, _)| other == name);
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The only value of a field; none when it is missing, or there are more.
    pub fn one(&self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        let first = all.pop();
        first.filter(|_| all.is_empty())
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(other, _)| other == name)
    }

    pub fn length(&self) -> Option<usize> {
        self.one("content-length")?.parse().ok()
    }

    pub fn is_chunked(&self) -> bool {
        self.one("transfer-encoding").is_some_and(|coding| coding == "chunked")
    }
}

/// One chunk.
pub fn chunk(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
    out
}

/// A whole chunked body of these pieces.
pub fn chunked(pieces: &[&[u8]]) -> Vec<u8> {
    let mut out: Vec<u8> = pieces.iter().flat_map(chunk).collect();
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Head of a chunked answer of Ollama's own streaming format.
pub fn ndjson() -> &'static str {
    "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
}

/// Takes chunked framing off bytes as they come.
#[derive(Debug, Default)]
pub struct Dechunker {
    pub is_done: bool,
}

impl Dechunker {
    /// Takes the next whole chunk off the front of `input`; an empty one is the last.
    pub fn take(&mut self, input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
        let Some(line) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let text = String::from_utf8_lossy(&input[..line]).into_owned();
        let size = usize::from_str_radix(text.split(';').next().unwrap_or_default(), 16)
            .map_err(|_| format!("malformed chunk size {text:?}"))?;
        let end = line + 2 + size;
        if size == 0 {
            // No test sends trailers through a proxy that keeps them.
            match input.get(line + 2..line + 4) {
                None => return Ok(None),
                Some(b"\r\n") => {}
                Some(other) => return Err(format!("after the last chunk: {other:?}")),
            }
            input.drain(..line + 4);
            self.is_done = true;
            return Ok(Some(Vec::new()));
        }
        match input.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => {}
            Some(other) => return Err(format!("after a chunk of {size}: {other:?}")),
        }
        let data = input[line + 2..end].to_vec();
        input.drain(..end + 2);
        Ok(Some(data))
    }
}

/// Reads once, behind what is there.
pub fn read_once(mut stream: &TcpStream, input: &mut Vec<u8>) -> io::Result<usize> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(n) => {
                input.extend_from_slice(&piece[..n]);
                return Ok(n);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the first bytes off; in one piece, because an iterator is slow in a debug build.
pub fn take_front(input: &mut Vec<u8>, count: usize) -> Vec<u8> {
    let rest = input.split_off(count);
    std::mem::replace(input, rest)
}
