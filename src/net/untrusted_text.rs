//! Names, reasons and other text that came from the network, made fit for a log, a header or a
//! terminal. Pure.

/// Longest text that [`printable`] returns, in characters.
pub(crate) const MOST: usize = 200;

/// Whether a character shows itself and nothing else: it moves no cursor, turns no direction, and
/// isn't invisible. The rule is that of Rust's `{:?}`, by which the log quotes values.
pub(crate) fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// The first [`MOST`] characters of a text, with `?` in place of what isn't printable.
pub(crate) fn printable(text: &str) -> String {
    replaced(text.chars().take(MOST))
}

/// A text of any length, with `?` in place of what isn't printable.
pub(crate) fn printable_whole(text: &str) -> String {
    replaced(text.chars())
}

fn replaced(text: impl Iterator<Item = char>) -> String {
    text.map(|c| if is_printable(c) { c } else { '?' }).collect()
}

/// The longest start of a text that has at most `bytes` bytes and ends between characters.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_turns_or_hides_is_replaced() {
        assert_eq!(
            printable("a\x1b[2Jb\u{202e}c\u{9b}d\ne\u{200b}\u{2028}\u{7f}"),
            "a?[2Jb?c?d?e???"
        );
        let plain = "räksmörgås 日本 Jörg’s \"Mac\\'; 🦙";
        assert_eq!(printable(plain), plain);
        assert_eq!(printable(&"é".repeat(1000)).chars().count(), MOST);
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        for (bytes, want) in
            [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (6, "aé"), (7, "aé🦙"), (99, "aé🦙")]
        {
            assert_eq!(cut("aé🦙", bytes), want, "{bytes}");
        }
    }
}
