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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(percent_decode("a%2Fb%3a"), Some(b"a/b:".to_vec()));
        for bad in ["%", "%2", "%+1", "%-1", "% 1", "%zz", "a%2g"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
    }
}
