//! A request head: bytes → [`Head`], or a [`Refusal`]. Pure.
//!
//! Strict on purpose: a head that two readers could understand differently is refused
//! (RFC 9112 §2.2, §3, §6.3, §11.2), because the next hop might read it the other way. An accepted
//! head is written anew for the next hop, never copied.

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::http::fields::entries;

/// Most fields in one head; the parser needs their number when it is compiled.
pub const MAX_FIELDS: usize = 128;
/// Bytes of the longest single field line, name and value: ureq writes each in one piece of its
/// buffer.
pub(crate) const MAX_FIELD_LINE: usize = 16 * 1024;

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    Empty,
    /// Exactly so many bytes.
    Length(u64),
    /// Chunks until the last one.
    Chunked,
}

/// A request head that two readers can't understand differently.
#[derive(Clone, Debug)]
pub struct Head {
    /// Any method but CONNECT.
    pub method: Method,
    /// Origin form (`/path?query`), or `*` of OPTIONS; visible ASCII without `#`.
    pub target: String,
    pub(crate) http_10: bool,
    /// All fields as sent, names in lower case.
    pub fields: HeaderMap,
    /// The body that follows.
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// The connection may serve another request.
    pub(crate) keep_alive: bool,
}

/// A head that isn't served, with the status that says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 400, 414, 417, 431, 501 or 505.
    pub status: u16,
    /// What is wrong with it, for the client and the log.
    pub reason: &'static str,
}

const fn refuse<T>(status: u16, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

/// Sizes that a head must keep.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes, the final empty line included.
    pub max_bytes: usize,
    /// Fields, at most [`MAX_FIELDS`].
    pub max_fields: usize,
}

/// Looks for a whole head at the start of `bytes`; `scanned` bytes were looked at before.
///
/// Returns its length, or `None` while the end is missing.
///
/// # Errors
/// 400 for line ends other than CR LF and for NUL, 431 for a head over the limit.
pub fn find_end(
    bytes: &[u8],
    scanned: usize,
    limits: HeadLimits,
) -> Result<Option<usize>, Refusal> {
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return refuse(400, "empty line before the request");
    }
    // A line end may straddle the border of what was scanned, hence three bytes back.
    let start = scanned.saturating_sub(3);
    for at in start..bytes.len() {
        match bytes[at] {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => {
                return refuse(400, "bare LF in the head");
            }
            b'\r' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return refuse(400, "bare CR in the head");
            }
            0 => return refuse(400, "NUL in the head"),
            b'\n' if at >= 3 && bytes[at - 2] == b'\n' => {
                let len = at + 1;
                return if len > limits.max_bytes { too_large() } else { Ok(Some(len)) };
            }
            _ => {}
        }
    }
    if bytes.len() >= limits.max_bytes { too_large() } else { Ok(None) }
}

fn too_large<T>() -> Result<T, Refusal> {
    refuse(431, "the head is too large")
}

/// Reads a whole head, as [`find_end`] delimited it.
///
/// # Errors
/// [`Refusal`] with the status to answer; the connection must then be closed.
// A frame of its own: its 4 KiB of slots would stay resident under every stream.
#[inline(never)]
pub fn parse(bytes: &[u8], limits: HeadLimits) -> Result<Head, Refusal> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let most = limits.max_fields.min(MAX_FIELDS);
    let mut request = httparse::Request::new(&mut slots[..most]);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) if used == bytes.len() => {}
        Ok(_) => return refuse(400, "the head doesn't end where its empty line is"),
        Err(httparse::Error::TooManyHeaders) => return refuse(431, "too many fields"),
        Err(httparse::Error::Version) => {
            return refuse(505, "only HTTP/1.0 and HTTP/1.1 are served");
        }
        Err(httparse::Error::Token) => return refuse(400, "the request line is malformed"),
        Err(httparse::Error::HeaderName) => return refuse(400, "a field name is malformed"),
        Err(httparse::Error::HeaderValue) => return refuse(400, "a field value is malformed"),
        Err(_) => return refuse(400, "the head is malformed"),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return refuse(400, "the request line is incomplete");
    };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else {
        return refuse(400, "the method is malformed");
    };
    check_target(&method, target)?;
    let http_10 = version == 0;
    let fields = read_fields(request.headers)?;
    check_host(&fields, http_10)?;
    let framing = read_framing(&fields, http_10)?;
    if method == Method::HEAD && framing != Framing::Empty {
        return refuse(400, "HEAD with a body");
    }
    let expects_continue = match fields.get(EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => !http_10,
        Some(_) => return refuse(417, "only 100-continue can be expected"),
    };
    let closes = entries(&fields, CONNECTION).any(|option| option.eq_ignore_ascii_case("close"));
    let keep_alive = !http_10 && !closes;
    let target = target.to_owned();
    Ok(Head { method, target, http_10, fields, framing, expects_continue, keep_alive })
}

fn check_target(method: &Method, target: &str) -> Result<(), Refusal> {
    if method == Method::CONNECT {
        return refuse(501, "CONNECT is not served");
    }
    if target.len() > MAX_FIELD_LINE - 64 {
        return refuse(414, "the target is too long");
    }
    if !target.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return refuse(400, "the target is not visible ASCII");
    }
    if target.contains('#') {
        return refuse(400, "the target has a fragment");
    }
    if !target.starts_with('/') && (target != "*" || method != Method::OPTIONS) {
        return refuse(400, "only targets in origin form are served");
    }
    if target.parse::<PathAndQuery>().is_err() {
        return refuse(400, "the target has characters that a URI can't have");
    }
    Ok(())
}

fn read_fields(parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, Refusal> {
    let mut fields = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        if field.name.len() + field.value.len() > MAX_FIELD_LINE - 64 {
            return refuse(431, "a field is too large");
        }
        let Ok(name) = HeaderName::from_bytes(field.name.as_bytes()) else {
            return refuse(400, "a field name is malformed");
        };
        let Ok(value) = HeaderValue::from_bytes(field.value) else {
            return refuse(400, "a field value is malformed");
        };
        if name == AUTHORIZATION && value.to_str().is_err() {
            // ureq can't send it, which would look like a failure of every server.
            return refuse(400, "Authorization is not ASCII");
        }
        fields.append(name, value);
    }
    Ok(fields)
}

fn check_host(fields: &HeaderMap, http_10: bool) -> Result<(), Refusal> {
    match fields.get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if http_10 => Ok(()),
        0 => refuse(400, "the Host field is missing"),
        _ => refuse(400, "more than one Host field"),
    }
}

fn read_framing(fields: &HeaderMap, http_10: bool) -> Result<Framing, Refusal> {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::Empty),
        (Some(_), Some(_)) => refuse(400, "both Transfer-Encoding and Content-Length"),
        (Some(_), None) if http_10 => refuse(400, "Transfer-Encoding in HTTP/1.0"),
        (Some(coding), None) => {
            let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            if codings.next().is_some() || !is_chunked {
                return refuse(501, "Transfer-Encoding other than exactly chunked");
            }
            Ok(Framing::Chunked)
        }
        (None, Some(_)) if lengths.next().is_some() => refuse(400, "more than one Content-Length"),
        (None, Some(length)) => match parse_length(length.as_bytes()) {
            Some(0) => Ok(Framing::Empty),
            Some(length) => Ok(Framing::Length(length)),
            None => refuse(400, "Content-Length is not a plain number"),
        },
    }
}

/// Digits only, at most 18 of them: no sign, no blank, no overflow.
fn parse_length(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 18 || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(bytes.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { max_bytes: 4096, max_fields: 20 };

    fn read(text: &str) -> Result<Head, Refusal> {
        match find_end(text.as_bytes(), 0, LIMITS)? {
            Some(len) => parse(&text.as_bytes()[..len], LIMITS),
            None => refuse(0, "incomplete"),
        }
    }

    fn post(fields: &str) -> Result<Head, Refusal> {
        read(&format!("POST /api/chat HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
    }

    #[test]
    fn plain_requests_pass_unchanged() {
        let head = read(
            "DELETE /api/delete?x=%20&y=|{} HTTP/1.1\r\nhost: h:1\r\nX-A: 1\r\nx-a:  2 \r\n\
             X-Empty:\r\nX-\u{e9}\r\n\r\n",
        );
        assert_eq!(head.unwrap_err().reason, "a field name is malformed");
        let head = read(
            "DELETE /api/delete?x=%20&y=|{} HTTP/1.1\r\nhost: h:1\r\nX-A: 1\r\nx-a:  2 \r\n\
             X-Empty:\r\nX-Name: \u{e9}\r\nContent-Length: 12\r\n\r\n",
        )
        .unwrap();
        assert_eq!(head.target, "/api/delete?x=%20&y=|{}");
        assert_eq!(head.framing, Framing::Length(12));
        let values: Vec<_> = head.fields.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(head.fields["x-empty"], "");
        assert_eq!(head.fields["x-name"].as_bytes(), "\u{e9}".as_bytes());
        assert!(head.keep_alive);
    }

    #[test]
    fn framing_is_exact_or_refused() {
        assert_eq!(post("Transfer-Encoding: Chunked\r\n").unwrap().framing, Framing::Chunked);
        assert_eq!(post("Content-Length: 0\r\n").unwrap().framing, Framing::Empty);
        let big = post("Content-Length: 999999999999999999\r\n").unwrap();
        assert_eq!(big.framing, Framing::Length(999_999_999_999_999_999));
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length: 1 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 1000000000000000000000\r\n",
            "Content-Length : 1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding: chunked;x\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding\x0b: chunked\r\n",
            " Transfer-Encoding: chunked\r\n",
            "X: y\r\n Transfer-Encoding: chunked\r\n",
            "X: y\n Transfer-Encoding: chunked\r\n",
            "X: y\rTransfer-Encoding: chunked\r\n",
            "X: y\0\r\n",
            ": x\r\n",
            "NoColon\r\n",
        ] {
            let refusal = post(fields).expect_err(fields);
            assert!(matches!(refusal.status, 400 | 501), "{fields:?}: {refusal:?}");
        }
        assert!(read("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(read("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n").is_err());
    }

    #[test]
    fn request_lines_and_hosts() {
        for (text, status) in [
            ("GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET @evil HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
            ("GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /\tx HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
            ("GET /\r\nHost: x\r\n\r\n", 400),
            ("\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417),
        ] {
            let refusal = read(text).expect_err(text);
            // httparse reports a bad version and a bad token alike as 400 or 505.
            assert!(refusal.status == status || refusal.status == 505, "{text:?}: {refusal:?}");
        }
        assert!(read("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").is_ok());
        assert!(read("FROB /x HTTP/1.1\r\nHost:\r\n\r\n").is_ok());
        let old = read("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert!(old.http_10 && !old.keep_alive);
        let close = read("GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n").unwrap();
        assert!(!close.keep_alive);
    }

    #[test]
    fn limits_hold_and_partial_heads_wait() {
        let text = "GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
        let head_len = text.len() - 4;
        for len in 0..head_len {
            let got = find_end(&text.as_bytes()[..len], len.saturating_sub(1), LIMITS);
            assert_eq!(got, Ok(None), "{len} bytes");
        }
        assert_eq!(find_end(text.as_bytes(), head_len - 1, LIMITS), Ok(Some(head_len)));
        let long = format!("GET / HTTP/1.1\r\nHost: {}", "x".repeat(5000));
        assert_eq!(find_end(long.as_bytes(), 0, LIMITS).unwrap_err().status, 431);
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(20));
        assert_eq!(read(&many).unwrap_err().status, 431);
        let wide = HeadLimits { max_bytes: 65536, max_fields: 20 };
        let fat = format!("GET / HTTP/1.1\r\nHost: x\r\na: {}\r\n\r\n", "b".repeat(20_000));
        assert_eq!(parse(fat.as_bytes(), wide).unwrap_err().status, 431);
    }
}
