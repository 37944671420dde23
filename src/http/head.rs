//! A request head: bytes → [`Head`], or a [`Refusal`]. Pure.
//!
//! Strict on purpose: a head that two readers could understand differently is refused
//! (RFC 9112 §2.2, §3, §6.3, §11.2), because the next hop might read it the other way. An accepted
//! head is written anew for the next hop, never copied.
//!
//! What old and simple clients write is served where it can't be misunderstood: empty lines before
//! the request; lines that end in LF alone, all of them, if no body follows and nothing else is read
//! from the connection; a target in absolute form; characters of a target that no URI has.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::http::fields::entries;

/// Most fields in one head; the parser needs their number when it is compiled.
pub const MAX_FIELDS: usize = 128;
/// Bytes of the longest single field line, name and value: ureq writes each in one piece of its
/// buffer.
pub(crate) const MAX_FIELD_LINE: usize = 16 * 1024;
/// Bytes of the longest method that is passed on; IANA's registry has none with more than 17.
const MAX_METHOD: usize = 64;
/// Empty lines before a request that are skipped (RFC 9112 §2.2 asks for one).
pub(crate) const MAX_EMPTY_LINES: usize = 4;

/// How a request's body is framed.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(u64),
    Chunked,
}

/// A request head that two readers can't understand differently.
#[derive(Clone, Debug)]
pub struct Head {
    /// Any method but CONNECT.
    pub method: Method,
    /// Origin form (`/path?query`), or `*` of OPTIONS; visible ASCII without `#`, fit for a URI.
    pub target: String,
    pub(crate) http_10: bool,
    /// All fields as sent, names in lower case; but `Host` is what a target in absolute form says.
    pub fields: HeaderMap,
    /// The `Host` field that such a target replaced.
    pub(crate) replaced_host: Option<HeaderValue>,
    /// The body that follows.
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// The connection may serve another request.
    pub(crate) keep_alive: bool,
}

/// Why a head isn't served, for the client and the log: status 400, 414, 417, 431, 501 or 505.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

const fn refuse<T>(status: u16, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

fn refuse_if(is_wrong: bool, status: u16, reason: &'static str) -> Result<(), Refusal> {
    if is_wrong { refuse(status, reason) } else { Ok(()) }
}

/// Sizes that a head must keep: bytes, the final empty line included, and at most [`MAX_FIELDS`].
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub max_bytes: usize,
    pub max_fields: usize,
}

/// The length of an empty line at the start of `bytes`.
pub(crate) fn empty_line(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\n', ..] => Some(1),
        [b'\r', b'\n', ..] => Some(2),
        _ => None,
    }
}

/// The length of the head at the start of `bytes`, of which `scanned` were looked at before; `None`
/// while its end is missing. Refuses what can't begin a request, so that a handshake without a key for
/// it, or TLS, isn't waited for; NUL, bare CR, bare LF behind a line that ends in CR LF, and a
/// head over the limit.
pub fn find_end(
    bytes: &[u8],
    scanned: usize,
    limits: HeadLimits,
) -> Result<Option<usize>, Refusal> {
    refuse_if(empty_line(bytes).is_some(), 400, "empty lines before the request")?;
    let begins = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b'\r' | b'\n');
    refuse_if(!bytes.first().is_none_or(begins), 400, "the request line is malformed")?;
    // A line end may straddle the border of what was scanned, hence three bytes back.
    let start = scanned.saturating_sub(3);
    for at in start..bytes.len() {
        match bytes[at] {
            b'\n' if at > 0 && bytes[at - 1] != b'\r' => {
                let last = bytes[..at].iter().rposition(|byte| *byte == b'\n');
                let is_mixed = last.is_some_and(|last| bytes[last - 1] == b'\r');
                refuse_if(is_mixed, 400, BARE_LF)?;
                if last == Some(at - 1) {
                    return check_len(at < limits.max_bytes).map(|()| Some(at + 1));
                }
            }
            b'\r' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return refuse(400, "bare CR in the head");
            }
            0 => return refuse(400, "NUL in the head"),
            b'\n' if at >= 3 && bytes[at - 2] == b'\n' => {
                let len = at + 1;
                return check_len(len <= limits.max_bytes).map(|()| Some(len));
            }
            _ => {}
        }
    }
    check_len(bytes.len() < limits.max_bytes).map(|()| None)
}

const BARE_LF: &str = "bare LF in the head";

fn check_len(fits: bool) -> Result<(), Refusal> {
    refuse_if(!fits, 431, "the head is too large")
}

/// Reads a whole head, as [`find_end`] delimited it. The connection of one that is refused must be
/// closed.
pub fn parse(bytes: &[u8], limits: HeadLimits) -> Result<Head, Refusal> {
    parse_exact(bytes, limits).or_else(|refusal| match with_escapes(bytes) {
        Some(bytes) => parse_exact(&bytes, limits),
        None => Err(refusal),
    })
}

/// The same head, if its target has characters that no URI has and Go takes (browsers and curl send
/// them): percent-encoded, which means the same.
fn with_escapes(bytes: &[u8]) -> Option<Vec<u8>> {
    let start = bytes.iter().position(|byte| *byte == b' ')? + 1;
    let len = bytes[start..].iter().position(u8::is_ascii_whitespace)?;
    let (before, target, behind) =
        (&bytes[..start], &bytes[start..start + len], &bytes[start + len..]);
    let mut escaped = before.to_vec();
    let mut is_query = false;
    for &byte in target {
        match byte {
            b'<' | b'>' => {}
            b'`' if !is_query => {}
            b'"' | 0x80.. if is_query => {}
            _ => {
                is_query |= byte == b'?';
                escaped.push(byte);
                continue;
            }
        }
        escaped.extend_from_slice(format!("%{byte:02X}").as_bytes());
    }
    escaped.extend_from_slice(behind);
    (escaped.len() > bytes.len()).then_some(escaped)
}

// A frame of its own: its 4 KiB of slots would stay resident under every stream.
#[inline(never)]
fn parse_exact(bytes: &[u8], limits: HeadLimits) -> Result<Head, Refusal> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let most = limits.max_fields.min(MAX_FIELDS);
    let mut request = httparse::Request::new(&mut slots[..most]);
    // The values are parts of it, here and on the way to the next hop, instead of copies.
    let shared = Bytes::copy_from_slice(bytes);
    let parsed = request.parse(&shared).or_else(|error| match error {
        httparse::Error::TooManyHeaders => refuse(431, "too many fields"),
        httparse::Error::Version => refuse(505, "only HTTP/1.0 and HTTP/1.1 are served"),
        httparse::Error::Token => refuse(400, "the request line is malformed"),
        httparse::Error::HeaderName => refuse(400, "a field name is malformed"),
        httparse::Error::HeaderValue => refuse(400, "a field value is malformed"),
        _ => refuse(400, "the head is malformed"),
    })?;
    let is_whole = parsed == httparse::Status::Complete(bytes.len());
    refuse_if(!is_whole, 400, "the head doesn't end where its empty line is")?;
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return refuse(400, "the request line is incomplete");
    };
    let line_len = method.len() + target.len() + "  HTTP/1.1".len();
    let has_bare_lf = bytes.get(line_len) != Some(&b'\r');
    refuse_if(has_bare_lf && bytes.contains(&b'\r'), 400, BARE_LF)?;
    refuse_if(method.len() > MAX_METHOD, 501, "the method is too long")?;
    let method = Method::from_bytes(method.as_bytes());
    let method = method.or_else(|_| refuse(400, "the method is malformed"))?;
    refuse_if(method == Method::CONNECT, 501, "CONNECT is not served: ollana is no tunnel")?;
    let (authority, target) = split_target(&method, target)?;
    check_target(&method, &target)?;
    let http_10 = version == 0;
    let mut fields = read_fields(request.headers, &shared)?;
    let hosts = fields.get_all(HOST).iter().count();
    refuse_if(hosts == 0 && !http_10, 400, "the Host field is missing")?;
    refuse_if(hosts > 1, 400, "more than one Host field")?;
    let mut replaced_host = None;
    if let Some(authority) = authority {
        let host = HeaderValue::from_str(authority);
        let host = host.or_else(|_| refuse(400, "the target's host is malformed"))?;
        replaced_host = fields.insert(HOST, host);
    }
    let is_framed = fields.contains_key(CONTENT_LENGTH) || fields.contains_key(TRANSFER_ENCODING);
    refuse_if(has_bare_lf && is_framed, 400, "bare LF in the head of a request with a body")?;
    let framing = read_framing(&fields, http_10)?;
    refuse_if(method == Method::HEAD && framing != Framing::Empty, 400, "HEAD with a body")?;
    let expects_continue = match fields.get(EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => !http_10,
        Some(_) => return refuse(417, "only 100-continue can be expected"),
    };
    let closes = entries(&fields, CONNECTION).any(|option| option.eq_ignore_ascii_case("close"));
    let keep_alive = !http_10 && !closes && !has_bare_lf;
    let target = target.into_owned();
    Ok(Head {
        method,
        target,
        http_10,
        fields,
        replaced_host,
        framing,
        expects_continue,
        keep_alive,
    })
}

/// Takes the host and port off a target in absolute form (RFC 9112 §3.2.2), which is what a client
/// sends to its `http_proxy`.
fn split_target<'a>(
    method: &Method,
    target: &'a str,
) -> Result<(Option<&'a str>, Cow<'a, str>), Refusal> {
    if target.starts_with('/') {
        return Ok((None, target.into()));
    }
    let scheme = |name: &str| {
        let (scheme, rest) = target.split_once("://")?;
        scheme.eq_ignore_ascii_case(name).then_some(rest)
    };
    refuse_if(scheme("https").is_some(), 400, "https targets are not served, only http")?;
    let Some(rest) = scheme("http") else { return Ok((None, target.into())) };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    refuse_if(authority.is_empty(), 400, "the target has no host")?;
    refuse_if(authority.contains('@'), 400, "the target has a user name in front of its host")?;
    let path = match path {
        "" if method == Method::OPTIONS => "*".into(),
        path if path.starts_with('/') => path.into(),
        path => format!("/{path}").into(),
    };
    Ok((Some(authority), path))
}

fn check_target(method: &Method, target: &str) -> Result<(), Refusal> {
    refuse_if(target.len() > MAX_FIELD_LINE - 64, 414, "the target is too long")?;
    let is_visible = target.bytes().all(|b| b.is_ascii_graphic());
    refuse_if(!is_visible, 400, "the target is not visible ASCII")?;
    refuse_if(target.contains('#'), 400, "the target has a fragment")?;
    let is_origin_form = target.starts_with('/') || (target == "*" && method == Method::OPTIONS);
    refuse_if(!is_origin_form, 400, "only targets in origin form, and http:// ones, are served")?;
    let is_uri = target.parse::<PathAndQuery>().is_ok();
    refuse_if(!is_uri, 400, "the target has characters that a URI can't have")
}

fn read_fields(parsed: &[httparse::Header<'_>], head: &Bytes) -> Result<HeaderMap, Refusal> {
    let mut fields = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let is_large = field.name.len() + field.value.len() > MAX_FIELD_LINE - 64;
        refuse_if(is_large, 431, "a field is too large")?;
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.or_else(|_| refuse(400, "a field name is malformed"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        let value = value.or_else(|_| refuse(400, "a field value is malformed"))?;
        // ureq can't send it, which would look like a failure of every server.
        let is_unfit = name == AUTHORIZATION && value.to_str().is_err();
        refuse_if(is_unfit, 400, "Authorization is not ASCII")?;
        fields.append(name, value);
    }
    Ok(fields)
}

fn read_framing(fields: &HeaderMap, http_10: bool) -> Result<Framing, Refusal> {
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        refuse_if(length.is_some(), 400, "both Transfer-Encoding and Content-Length")?;
        refuse_if(http_10, 400, "Transfer-Encoding in HTTP/1.0")?;
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        let is_exact = is_chunked && codings.next().is_none();
        refuse_if(!is_exact, 501, "Transfer-Encoding other than exactly chunked")?;
        return Ok(Framing::Chunked);
    }
    refuse_if(lengths.next().is_some(), 400, "more than one Content-Length")?;
    match length.map(|length| parse_length(length.as_bytes())) {
        None | Some(Some(0)) => Ok(Framing::Empty),
        Some(Some(length)) => Ok(Framing::Length(length)),
        Some(None) => refuse(400, "Content-Length is not a plain number"),
    }
}

/// Digits only, at most 18 of them: no sign, no blank, no overflow.
fn parse_length(bytes: &[u8]) -> Option<u64> {
    let is_plain = bytes.len() <= 18 && bytes.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(bytes).ok().filter(|_| is_plain)?.parse().ok()
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
            ("GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://x/#a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://x/ HTTP/1.1\r\n\r\n", 400),
            ("CONNECT http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
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
        for (len, refused) in [(MAX_METHOD, None), (MAX_METHOD + 1, Some(501)), (4000, Some(501))] {
            let head = read(&format!("{} /x HTTP/1.1\r\nHost: x\r\n\r\n", "M".repeat(len)));
            assert_eq!(head.err().map(|refusal| refusal.status), refused, "{len}");
        }
        let old = read("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert!(old.http_10 && !old.keep_alive);
        let close = read("GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n").unwrap();
        assert!(!close.keep_alive);
    }

    #[test]
    fn targets_in_absolute_form_replace_the_host() {
        for (line, target, host) in [
            ("GET http://box:1/a?b", "/a?b", "box:1"),
            ("GET HTTP://[::1]", "/", "[::1]"),
            ("GET http://box?b", "/?b", "box"),
            ("GET http://box?a/b", "/?a/b", "box"),
            ("GET http://box/http://other/", "/http://other/", "box"),
            ("OPTIONS http://box", "*", "box"),
        ] {
            let head = read(&format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).expect(line);
            assert_eq!(
                (&*head.target, &head.fields[HOST]),
                (target, &host.parse().unwrap()),
                "{line}"
            );
            assert_eq!(head.replaced_host.unwrap(), "x");
        }
        let old = read("GET http://box/ HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((&old.fields[HOST], old.replaced_host), (&"box".parse().unwrap(), None));
    }

    #[test]
    fn lines_may_end_in_lf_where_all_do_and_no_body_follows() {
        let text = "GET /a HTTP/1.1\nHost: x\nA: b\n\nrest";
        let len = text.len() - 4;
        for cut in 0..len {
            let got = find_end(&text.as_bytes()[..cut], cut.saturating_sub(1), LIMITS);
            assert_eq!(got, Ok(None), "{cut} bytes");
            assert_eq!(find_end(text.as_bytes(), cut, LIMITS), Ok(Some(len)), "{cut} bytes");
        }
        let head = parse(&text.as_bytes()[..len], LIMITS).unwrap();
        assert!(!head.keep_alive && head.fields["a"] == "b" && head.target == "/a");
        let short = HeadLimits { max_bytes: len - 1, max_fields: 20 };
        assert_eq!(find_end(text.as_bytes(), 0, short).unwrap_err().status, 431);
        // A handshake, TLS.
        for first in [b"\xf5LN\x01abc".as_slice(), b"\xf5", b"\x16\x03\x01", b" GET"] {
            assert_eq!(find_end(first, 0, LIMITS).unwrap_err().status, 400, "{first:?}");
        }
        for bad in [
            "GET / HTTP/1.0\nContent-Length: 0\n\n",
            "GET / HTTP/1.0\nContent-Length: 1\n\n",
            "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n",
            "GET / HTTP/1.0\r\n\n",
            "GET / HTTP/1.0\n\r\n",
            "GET / HTTP/1.0\nA: b\r\n\n",
            "GET / HTTP/1.0\nA: b\r\n\r\n",
            "GET / HTTP/1.0\r\nA: b\n\r\n",
            "GET / HTTP/1.0\r\nA: b\r\n\n",
            "GET / HTTP/1.0\nA: b\rc\n\n",
            "GET / HTTP/1.0\nA: b\n c\n\n",
        ] {
            assert_eq!(read(bad).expect_err(bad).status, 400, "{bad:?}");
        }
    }

    #[test]
    fn what_no_uri_has_is_escaped() {
        let read = |target: &[u8]| {
            let head = [b"GET ", target, b" HTTP/1.1\r\nHost: x\r\nA: <\"\xe9>\r\n\r\n"].concat();
            parse(&head, LIMITS).map(|head| (head.target, head.fields["a"].as_bytes().to_vec()))
        };
        for (target, escaped) in [
            (&b"/?q=\"x\""[..], "/?q=%22x%22"),
            (b"/<a>`?<\xe9>`", "/%3Ca%3E%60?%3C%E9%3E`"),
            (b"/?%\"%zz", "/?%%22%zz"),
            (b"http://x?\"", "/?%22"),
        ] {
            assert_eq!(read(target), Ok((escaped.to_owned(), b"<\"\xe9>".to_vec())));
        }
        for target in [&b"/\xc3\xa9"[..], b"/?\"#", b"/?\x7f\"", b"<"] {
            assert_eq!(read(target).map_err(|refusal| refusal.status), Err(400), "{target:?}");
        }
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
