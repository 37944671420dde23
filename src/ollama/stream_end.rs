//! The end of a streamed answer, kept while the answer passes. Pure.
//!
//! The last line of an answer's body says whether it failed, and how fast it was made. No body is
//! altered or held back for it.

/// Most bytes kept; longer last lines aren't looked at.
const KEPT: usize = 4 * 1024;

/// How a streamed body separates its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object per line.
    Ndjson,
    /// Server-sent events.
    EventStream,
}

impl Format {
    /// By the answer's Content-Type.
    pub(crate) fn of(content_type: &str) -> Option<Self> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let known =
            [("application/x-ndjson", Format::Ndjson), ("text/event-stream", Format::EventStream)];
        let format = known.into_iter().find(|(name, _)| media.eq_ignore_ascii_case(name));
        format.map(|(_, format)| format)
    }
}

/// The last bytes of a body.
#[derive(Debug, Default)]
pub(crate) struct StreamEnd(Vec<u8>);

impl StreamEnd {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        if self.0.ends_with(b"\n") && bytes.iter().any(|b| *b != b'\n') {
            self.0.clear(); // A new line begins; the ones before it don't matter any more.
        }
        let excess = (self.0.len() + bytes.len()).saturating_sub(KEPT);
        self.0.drain(..excess);
        self.0.extend_from_slice(bytes);
    }

    /// What has to stand between the body so far and one more message.
    pub(crate) fn separator(&self, format: Format) -> &'static str {
        let end = if format == Format::Ndjson { "\n" } else { "\n\n" };
        let there = self.0.iter().rev().take_while(|byte| **byte == b'\n').count();
        if self.0.is_empty() { "" } else { &end[there.min(end.len())..] }
    }

    /// Whether the last message is an error that another proxy or Ollama told in band.
    pub(crate) fn tells_error(&self, format: Format) -> bool {
        if !self.separator(format).is_empty() {
            return false;
        }
        let line = self.last_line();
        let json = match format {
            Format::Ndjson => line,
            Format::EventStream => line.strip_prefix(b"data:").unwrap_or(line),
        };
        let object: Option<serde_json::Value> = serde_json::from_slice(json).ok();
        object.is_some_and(|object| object.get("error").is_some())
    }

    /// A number that the last line gives for a member; the last of that name, as Ollama puts its
    /// counts behind everything else. The line may have begun before the kept bytes.
    pub(crate) fn number(&self, member: &str) -> Option<f64> {
        let line = std::str::from_utf8(self.last_line()).ok()?;
        // In text, the quotes would be escaped.
        let (_, after) = line.rsplit_once(&format!("\"{member}\":"))?;
        let end = after.find(|c: char| !c.is_ascii_digit() && !".-+eE".contains(c));
        after[..end.unwrap_or(after.len())].parse().ok()
    }

    /// The last line that isn't empty, without its end.
    fn last_line(&self) -> &[u8] {
        self.0.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default()
    }
}

/// Whole lines of a stream as they pass.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
    /// The line under way is too long to be looked at.
    is_skipping: bool,
}

impl Lines {
    /// Takes the next bytes and calls `look` with the lines that end in them.
    pub(crate) fn push(&mut self, bytes: &[u8], look: &mut dyn FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = piece.strip_suffix(b"\n");
            let text = line.unwrap_or(piece);
            self.is_skipping |= self.begun.len() + text.len() > KEPT;
            if !self.is_skipping {
                self.begun.extend_from_slice(text);
            }
            if line.is_some() {
                if !self.is_skipping {
                    look(&self.begun);
                }
                self.begun.clear();
                self.is_skipping = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_seen_whole_however_they_are_cut() {
        let long = "y".repeat(KEPT);
        let text = format!("one\ntwo two\n\n{long}y\n{long}\nlast\nno end");
        let want = ["one", "two two", &long, "last"];
        for size in [1, 2, 3, 7, 1000, 5000, text.len()] {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                lines
                    .push(piece, &mut |line| seen.push(String::from_utf8_lossy(line).into_owned()));
            }
            seen.retain(|line| !line.is_empty());
            assert_eq!(seen, want, "{size}");
        }
    }

    fn end(pieces: &[&str]) -> StreamEnd {
        let mut end = StreamEnd::default();
        pieces.iter().for_each(|piece| end.push(piece.as_bytes()));
        end
    }

    #[test]
    fn errors_are_seen_in_the_last_message_only() {
        let ndjson = Format::of("application/x-ndjson").unwrap();
        let sse = Format::of("Text/Event-Stream; charset=utf-8").unwrap();
        assert_eq!(Format::of("application/json"), None);
        assert!(end(&["{\"a\":1}\n{\"er", "ror\":\"gone\"}\n"]).tells_error(ndjson));
        assert!(!end(&["{\"error\":\"x\"}\n{\"a\":1}\n"]).tells_error(ndjson));
        assert!(!end(&["{\"a\":\"\\\"error\\\"\"}\n"]).tells_error(ndjson));
        assert!(!end(&["{\"error\":\"cut"]).tells_error(ndjson));
        assert!(!end(&[]).tells_error(ndjson));
        assert!(
            end(&["event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n"]).tells_error(sse)
        );
        assert!(!end(&["data: [DONE]\n\n"]).tells_error(sse));
    }

    #[test]
    fn a_new_message_starts_on_its_own_line() {
        for (body, ndjson, sse) in
            [("", "", ""), ("{}", "\n", "\n\n"), ("{}\n", "", "\n"), ("x\n\n", "", "")]
        {
            assert_eq!(end(&[body]).separator(Format::Ndjson), ndjson, "{body:?}");
            assert_eq!(end(&[body]).separator(Format::EventStream), sse, "{body:?}");
        }
    }

    #[test]
    fn counts_are_read_from_the_last_line() {
        let last = r#"{"response":"\"eval_count\":9","context":[1],"eval_count":120,"eval_duration":2000000000}"#;
        let end = end(&["{\"eval_count\":1}\n", last, "\n"]);
        assert_eq!(end.number("eval_count"), Some(120.0));
        assert_eq!(end.number("eval_duration"), Some(2e9));
        assert_eq!(end.number("load_duration"), None);
    }

    #[test]
    fn only_the_end_is_kept() {
        let mut end = StreamEnd::default();
        for _ in 0..10 {
            end.push(&[b'x'; 1000]);
        }
        end.push(&[b'y'; 9000]);
        assert_eq!(end.0.len(), KEPT);
        end.push(b"\n{\"error\":1}\n");
        assert!(end.tells_error(Format::Ndjson));
        assert_eq!(end.0.len(), KEPT);
    }
}
