//! Targets of requests: path, query, escapes. Pure.

/// Path and query of a target, without the `?` between them.
pub(crate) fn split_query(target: &str) -> (&str, &str) {
    target.split_once('?').unwrap_or((target, ""))
}

/// What a text with `%xx` in it stands for; `None` where Go would call it malformed.
pub(crate) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => (digit(bytes.next()?)? * 16 + digit(bytes.next()?)?) as u8,
            plain => plain,
        });
    }
    Some(out)
}

/// The first value that a query has for a name, as Go reads queries (`url.ParseQuery`).
pub(crate) fn query_value(query: &str, name: &str) -> Option<String> {
    let decode = |text: &str| percent_decode(&text.replace('+', " "));
    query.split('&').filter(|pair| !pair.contains(';')).find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).filter(|_| decode(key).as_deref() == Some(name.as_bytes()))?;
        Some(String::from_utf8_lossy(&value).into_owned())
    })
}

/// A target with another value for that name.
pub(crate) fn with_query_value(target: &str, name: &str, value: &str) -> String {
    let (path, query) = split_query(target);
    let (mut is_done, value) = (false, percent_encode(value));
    let pairs = query.split('&').map(|pair| match query_value(pair, name) {
        Some(_) if !std::mem::replace(&mut is_done, true) => format!("{name}={value}"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// A text as one segment of a path.
pub(crate) fn percent_encode(text: &str) -> String {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let escaped = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(percent_decode("a%2Fb%3a"), Some(b"a/b:".to_vec()));
        assert_eq!(percent_encode("a/ä b-1"), "a%2F%C3%A4%20b-1");
        for bad in ["%", "%2", "%+1", "%-1", "% 1", "%zz", "a%2g"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_of_queries() {
        let of = |query| query_value(query, "a");
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(of("b=1&%61=x%2Fy+z&a=2"), some("x/y z"));
        assert_eq!((of("a"), of("a=")), (some(""), some("")));
        let other = with_query_value("/x?b=1&%61=x%2Fy&a=2", "a", "c d");
        assert_eq!(other, "/x?b=1&a=c%20d&a=2");
        assert_eq!((of(""), of("b=a"), of("A=1"), of("a=%zz"), of("a=1;b")), Default::default());
    }
}
