//! What one hop may pass on of a head: end-to-end fields, `Via`, the framing of an answer. Pure.

use http::header::{CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, VIA};
use http::{HeaderMap, StatusCode};

/// Names the server that answered.
pub(crate) const SERVER_FIELD: HeaderName = HeaderName::from_static("x-ollana-server");
/// Marks an answer that a proxy of ours made itself, and says why.
pub(crate) const ERROR_FIELD: HeaderName = HeaderName::from_static("x-ollana-error");

/// Where a pull may have its bytes from: `internet`, `any`, or a server.
pub(crate) const FROM_FIELD: HeaderName = HeaderName::from_static("x-ollana-from");
/// The server from which a pull copies its model exactly, instead of from a registry; in an answer, that
/// this is such a copy.
pub(crate) const COPY_FIELD: HeaderName = HeaderName::from_static("x-ollana-copy");

// A server tells these together with its version.
pub(crate) const IDENTITY_FIELD: HeaderName = HeaderName::from_static("x-ollana-identity");
/// What the server lets this caller do.
pub(crate) const PERMISSION_FIELD: HeaderName = HeaderName::from_static("x-ollana-open");
/// Bytes free for models.
pub(crate) const ROOM_FIELD: HeaderName = HeaderName::from_static("x-ollana-room");
/// Bytes of models that its machine did not have to download.
pub(crate) const SAVED_FIELD: HeaderName = HeaderName::from_static("x-ollana-saved");

/// The `User-Agent` of `ollana doctor`, whose requests are meant to be refused.
pub(crate) const DOCTOR: &str = "ollana-doctor";

/// `Via` on the way to a cloud.
const HIDDEN_VIA: HeaderName = HeaderName::from_static("x-ollana-via");

// Values of `ERROR_FIELD` after which another server may be tried.
/// The request never reached an Ollama: any method may be sent again.
pub(crate) const UNREACHED: &str = "unreached";
/// The machine's owner doesn't allow it to other machines.
pub(crate) const POLICY: &str = "policy";
/// The upstream failed before its answer: repeatable requests may be sent again.
pub(crate) const UPSTREAM: &str = "upstream";

/// The entries of all fields of a name whose values are lists.
pub(crate) fn entries(fields: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = fields.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes all fields of these names.
pub(crate) fn remove_where(fields: &mut HeaderMap, is_meant: impl Fn(&str) -> bool) {
    while let Some(name) = fields.keys().find(|name| is_meant(name.as_str())).cloned() {
        fields.remove(name);
    }
}

/// Drops what belongs to this hop alone: the fields of RFC 9110 §7.6.1 and every field that
/// `Connection` names. Framing fields go too; the next hop gets its own.
pub(crate) fn strip_hop_by_hop(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        entries(fields, CONNECTION).filter_map(|name| name.parse().ok()).collect();
    for name in named {
        fields.remove(name);
    }
    remove_where(fields, |name| {
        matches!(
            name,
            "connection"
                | "content-length"
                | "keep-alive"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        )
    });
}

/// Makes a client's fields fit for the next hop, `via` being this proxy's pseudonym.
pub fn prepare_request(fields: &mut HeaderMap, via: &HeaderValue) {
    let hidden: Vec<HeaderValue> = fields.get_all(HIDDEN_VIA).into_iter().cloned().collect();
    strip_hop_by_hop(fields);
    fields.remove(HOST);
    fields.remove(EXPECT);
    // What proxies of ours tell each other is not for a client to say.
    remove_where(fields, |name| name.starts_with("x-ollana-"));
    for via in hidden.into_iter().chain([via.clone()]) {
        fields.append(VIA, via);
    }
}

/// Keeps the names of this LAN's proxies from a cloud: Ollama copies a request's fields into the one
/// that it sends there, but none that `Connection` names (`server/cloud_proxy.go`). Proxies of ours
/// still see a loop by them.
pub(crate) fn hide_via(fields: &mut HeaderMap) {
    let vias: Vec<HeaderValue> = fields.get_all(VIA).into_iter().cloned().collect();
    fields.remove(VIA);
    for via in vias {
        fields.append(HIDDEN_VIA, via);
    }
    fields.insert(CONNECTION, HeaderValue::from(HIDDEN_VIA));
}

/// The `Via` value of this process: `1.1 ollana-<instance>`.
pub fn via_value(instance: u32) -> HeaderValue {
    let text = format!("1.1 ollana-{instance:08x}");
    // ASCII digits and letters only, so this can't fail.
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("1.1 ollana"))
}

/// Whether the request has been through this process before.
pub(crate) fn is_loop(fields: &HeaderMap, via: &HeaderValue) -> bool {
    let is_own = |entry: &str| entry.as_bytes() == via.as_bytes();
    entries(fields, VIA).chain(entries(fields, HIDDEN_VIA)).any(is_own)
}

/// Whether an answer came through any proxy of ours.
pub(crate) fn is_from_ollana(fields: &HeaderMap) -> bool {
    fields.contains_key(ERROR_FIELD) || entries(fields, VIA).any(|entry| entry.contains(" ollana-"))
}

/// How an answer's body is framed towards the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerFraming {
    /// No body follows, whatever the fields say.
    None,
    Length(u64),
    Chunked,
    /// Until the connection closes (HTTP/1.0 clients).
    Close,
}

/// Chooses the framing (RFC 9112 §6.3): as exact as the upstream's.
pub(crate) fn answer_framing(
    is_head: bool,
    http_10: bool,
    status: StatusCode,
    length: Option<u64>,
) -> AnswerFraming {
    let bodyless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    match length {
        _ if is_head || bodyless => AnswerFraming::None,
        Some(length) => AnswerFraming::Length(length),
        None if http_10 => AnswerFraming::Close,
        None => AnswerFraming::Chunked,
    }
}

/// Writes an answer's head: status line, the end-to-end fields, then `framing`. `declared` is the
/// upstream's own Content-Length, which answers without a body keep.
pub(crate) fn write_answer_head(
    out: &mut Vec<u8>,
    status: StatusCode,
    fields: &HeaderMap,
    framing: AnswerFraming,
    declared: Option<u64>,
    close: bool,
) {
    let reason = status.canonical_reason().unwrap_or("Unknown");
    write_all(out, [b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    for (name, value) in fields {
        write_field(out, name.as_str(), value.as_bytes());
    }
    match (framing, declared) {
        // It may not have a length (RFC 9110 §8.6).
        _ if status == StatusCode::NO_CONTENT => {}
        (AnswerFraming::Length(length), _) | (AnswerFraming::None, Some(length)) => {
            write_field(out, "content-length", length.to_string().as_bytes());
        }
        (AnswerFraming::Chunked, _) => write_field(out, "transfer-encoding", b"chunked"),
        (AnswerFraming::Close | AnswerFraming::None, _) => {}
    }
    if close {
        write_field(out, "connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    write_all(out, [name.as_bytes(), b": ", value, b"\r\n"]);
}

fn write_all<const N: usize>(out: &mut Vec<u8>, parts: [&[u8]; N]) {
    parts.into_iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        map
    }

    #[test]
    fn hop_by_hop_and_named_fields_go_the_rest_stays() {
        let mut fields = map(&[
            ("host", "a"),
            ("connection", "Upgrade, HTTP2-Settings, x-hop"),
            ("connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("via", "1.0 other"),
            ("x-ollana-server", "desk"),
            ("x-ollana-open", "manage"),
        ]);
        prepare_request(&mut fields, &via_value(0x1a2b));
        let left: Vec<_> =
            fields.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        assert_eq!(left, ["x-a=1", "x-a=2", "via=1.0 other", "via=1.1 ollana-00001a2b"]);
    }

    #[test]
    fn on_the_way_to_a_cloud_via_is_of_this_hop_alone() {
        let [one, two] = [via_value(1), via_value(2)];
        let mut fields = map(&[("via", "1.0 other"), ("x-a", "1")]);
        prepare_request(&mut fields, &one);
        hide_via(&mut fields);
        assert!(!fields.contains_key(VIA) && fields[CONNECTION] == "x-ollana-via");
        assert!(is_loop(&fields, &one) && !is_loop(&fields, &two));
        prepare_request(&mut fields, &two);
        assert!(is_loop(&fields, &one) && is_loop(&fields, &two));
        assert_eq!(entries(&fields, VIA).count(), 3);
        assert!(!fields.contains_key(HIDDEN_VIA) && !fields.contains_key(CONNECTION));
    }

    #[test]
    fn loops_are_seen_in_any_entry() {
        let via = via_value(7);
        assert!(is_loop(&map(&[("via", "1.0 a, 1.1 ollana-00000007")]), &via));
        assert!(is_loop(&map(&[("via", "1.0 a"), ("via", "1.1 ollana-00000007")]), &via));
        assert!(!is_loop(&map(&[("via", "1.1 ollana-00000008")]), &via));
        assert!(is_from_ollana(&map(&[("via", "1.1 ollana-00000008")])));
        assert!(is_from_ollana(&map(&[("x-ollana-error", "no server")])));
        assert!(!is_from_ollana(&map(&[("via", "1.1 nginx")])));
    }

    #[test]
    fn answers_keep_their_framing() {
        let ok = StatusCode::OK;
        assert_eq!(answer_framing(false, false, ok, Some(3)), AnswerFraming::Length(3));
        assert_eq!(answer_framing(false, false, ok, None), AnswerFraming::Chunked);
        assert_eq!(answer_framing(false, true, ok, None), AnswerFraming::Close);
        assert_eq!(answer_framing(true, false, ok, Some(3)), AnswerFraming::None);
        let none = answer_framing(false, false, StatusCode::NOT_MODIFIED, Some(3));
        assert_eq!(none, AnswerFraming::None);
        let mut out = Vec::new();
        let fields = map(&[("x-a", "1"), ("x-a", "\u{e9}")]);
        write_answer_head(&mut out, ok, &fields, AnswerFraming::None, Some(3), true);
        let want = "HTTP/1.1 200 OK\r\nx-a: 1\r\nx-a: \u{e9}\r\ncontent-length: 3\r\nconnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
        for framing in [AnswerFraming::None, AnswerFraming::Length(0)] {
            let mut out = Vec::new();
            let none = HeaderMap::new();
            write_answer_head(&mut out, StatusCode::NO_CONTENT, &none, framing, Some(3), false);
            assert_eq!(String::from_utf8(out).unwrap(), "HTTP/1.1 204 No Content\r\n\r\n");
        }
    }
}
