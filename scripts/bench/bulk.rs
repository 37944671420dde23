//! Large bodies, each way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ollana::http::body::{ChunkDecoder, Step};

use super::children::Failable;

const BLOCK: usize = 256 * 1024;
/// What an uploading client sends in one chunk.
const CHUNK: usize = 32 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// Which way, and how the body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    DownByLength,
    DownChunked,
    UpByLength,
    UpChunked,
}

pub(crate) const WAYS: [Way; 4] =
    [Way::DownByLength, Way::DownChunked, Way::UpByLength, Way::UpChunked];

/// Copies `bytes` (a multiple of 256 KiB); an error unless every byte arrived.
pub(crate) fn copy(address: SocketAddr, way: Way, bytes: u64) -> Failable<Duration> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    let arrived = match way {
        Way::DownByLength | Way::DownChunked => {
            let chunked = if way == Way::DownChunked { "&chunked=1" } else { "" };
            let head =
                format!("GET /blob?bytes={bytes}{chunked} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            receive(&mut stream, bytes)?
        }
        Way::UpByLength | Way::UpChunked => {
            send(&mut stream, way == Way::UpChunked, bytes)?;
            counted(&mut stream)?
        }
    };
    if arrived != bytes {
        return Err(format!("{way:?}: {arrived} of {bytes} bytes arrived").into());
    }
    Ok(start.elapsed())
}

/// Reads until the head is whole; returns whether the body is chunked, and where it starts.
fn read_head(stream: &mut TcpStream, buffer: &mut [u8]) -> Failable<(bool, usize, usize)> {
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..])?;
        if n == 0 {
            return Err("closed before the answer's head".into());
        }
        filled += n;
        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut slots);
        if let httparse::Status::Complete(len) = response.parse(&buffer[..filled])? {
            if response.code != Some(200) {
                return Err(format!("an answer of status {:?}", response.code).into());
            }
            let mut names = response.headers.iter().map(|field| field.name);
            let chunked = names.any(|name| name.eq_ignore_ascii_case("transfer-encoding"));
            return Ok((chunked, len, filled));
        }
    }
}

fn receive(stream: &mut TcpStream, bytes: u64) -> Failable<u64> {
    let mut buffer = vec![0; BLOCK];
    let (chunked, start, mut filled) = read_head(stream, &mut buffer)?;
    let mut decoder = chunked.then(ChunkDecoder::default);
    let mut from = start;
    let mut arrived = 0;
    loop {
        let mut rest = &buffer[from..filled];
        match &mut decoder {
            None => arrived += rest.len() as u64,
            Some(decoder) => loop {
                match decoder.step(rest)? {
                    Step::Data { skip, len } => {
                        arrived += len as u64;
                        rest = &rest[skip + len..];
                    }
                    Step::More => break,
                    Step::End { .. } => return Ok(arrived),
                }
            },
        }
        if decoder.is_none() && arrived >= bytes {
            return Ok(arrived);
        }
        from = 0;
        filled = stream.read(&mut buffer)?;
        if filled == 0 {
            return Ok(arrived);
        }
    }
}

fn send(stream: &mut TcpStream, chunked: bool, bytes: u64) -> Failable<()> {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {bytes}"),
    };
    let head = format!("POST /api/blobs/sha256:0 HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let block = match chunked {
        true => [format!("{CHUNK:x}\r\n").as_bytes(), &[b'x'; CHUNK], b"\r\n"].concat(),
        false => vec![b'x'; CHUNK],
    };
    let block = block.repeat(BLOCK / CHUNK);
    for _ in 0..bytes / BLOCK as u64 {
        stream.write_all(&block)?;
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}

/// How many bytes the upstream says that it has received.
fn counted(stream: &mut TcpStream) -> Failable<u64> {
    let mut buffer = vec![0; 4096];
    let (_, start, mut filled) = read_head(stream, &mut buffer)?;
    loop {
        if let Ok(value) = serde_json::from_slice::<serde_json::Value>(&buffer[start..filled]) {
            return Ok(value["received"].as_u64().ok_or("no count in the answer")?);
        }
        let n = stream.read(&mut buffer[filled..])?;
        if n == 0 {
            return Err("the answer to an upload broke off".into());
        }
        filled += n;
    }
}
