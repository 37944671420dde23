//! What the stand-in for Ollama answers.
//!
//! It is in the target's query, which every proxy passes on:
//!
//! | query | answer |
//! |---|---|
//! | none | a small JSON document with its length |
//! | `tokens=N&gap_us=G` | N lines of about 150 bytes, one chunk each, with the time of sending inside |
//! | `bytes=N`, `bytes=N&chunked=1` | N bytes, by length or in chunks of 32 KiB |
//! | `hang=ID` | nothing; arrival and the client's leaving are reported |
//! | `once=ID` | nothing the first time, the document when asked again |
//!
//! A request's body is read and counted; the document of an upload holds the count.

use std::sync::Arc;

use super::measure::now_ns;

/// What is read or written at a time.
pub(crate) const BLOCK: usize = 256 * 1024;
/// Data of one chunk in chunked bulk: what Go's `io.Copy` writes at a time.
const CHUNK: usize = 32 * 1024;
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What the present request asked for.
pub(crate) enum Plan {
    /// The small document.
    Document,
    Tokens {
        left: u64,
        gap_ns: u64,
        due_ns: u64,
        has_begun: bool,
    },
    /// So many bytes of a repeated pattern, then a tail.
    Bulk {
        pattern: Arc<[u8]>,
        at: u64,
        end: u64,
        tail: &'static [u8],
    },
    Hang,
}

/// The part of a target behind the question mark.
pub(crate) struct Query<'a>(&'a str);

impl Query<'_> {
    pub(crate) fn of(target: &str) -> Query<'_> {
        Query(target.split_once('?').map_or("", |(_, query)| query))
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name)?.1.parse().ok()
    }
}

/// Bytes for bulk answers, made once.
pub(crate) struct Patterns {
    plain: Arc<[u8]>,
    chunks: Arc<[u8]>,
}

impl Patterns {
    pub(crate) fn new() -> Patterns {
        let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &[b'x'; CHUNK], b"\r\n"].concat();
        let chunks = chunk.repeat(BLOCK / CHUNK).into();
        Patterns { plain: vec![b'x'; BLOCK].into(), chunks }
    }

    /// The answer to a query, on the connection of that number.
    pub(crate) fn plan(&self, query: &Query<'_>, connection: u64) -> Plan {
        if let Some(left) = query.number("tokens") {
            let gap_ns = query.number("gap_us").unwrap_or(0) * 1000;
            // Spread over the gap by the golden ratio, so that streams don't march in step.
            let phase = (connection as f64 * 0.618_034).fract();
            let due_ns = now_ns() + (phase * gap_ns as f64) as u64;
            return Plan::Tokens { left, gap_ns, due_ns, has_begun: false };
        }
        let Some(bytes) = query.number("bytes") else { return Plan::Document };
        if query.number("chunked").is_none() {
            return Plan::Bulk { pattern: Arc::clone(&self.plain), at: 0, end: bytes, tail: b"" };
        }
        let per_chunk = (self.chunks.len() / (BLOCK / CHUNK)) as u64;
        let end = bytes / CHUNK as u64 * per_chunk;
        Plan::Bulk { pattern: Arc::clone(&self.chunks), at: 0, end, tail: LAST_CHUNK }
    }
}

/// One line of a stream with the time inside, as a chunk.
pub(crate) fn token_chunk(now_ns: u64) -> String {
    let line = format!(
        "{{\"model\":\"bench\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"message\":\
         {{\"role\":\"assistant\",\"content\":\" token\"}},\"done\":false,\"t\":{now_ns:020}}}\n"
    );
    format!("{:x}\r\n{line}\r\n", line.len())
}

pub(crate) fn head(framing: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n\
         Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n{framing}\r\n\r\n"
    )
}

/// Also an answer to `/api/version`, which the proxies' health checks ask for.
pub(crate) fn document(received: u64) -> String {
    format!("{{\"version\":\"0.9.9\",\"received\":{received},\"text\":\"{}\"}}", "x".repeat(240))
}
