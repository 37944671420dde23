//! The end of a streamed answer, kept while it passes. Pure.
//!
//! What matters of an answer's body stands in its last line: an error, or how fast it was made.
//! No body is altered or held back for it.

/// Most bytes kept; longer last lines aren't looked at.
const KEPT: usize = 4 * 1024;

/// How a streamed body separates its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Ndjson,
    /// Server-sent events.
    EventStream,
}

impl Format {
    /// By the answer's Content-Type.
    pub fn of(content_type: &str) -> Option<Self> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        if media.eq_ignore_ascii_case("application/x-ndjson") {
            Some(Format::Ndjson)
        } else if media.eq_ignore_ascii_case("text/event-stream") {
            Some(Format::EventStream)
        } else {
            None
        }
    }
}

/// The last bytes of a body.
#[derive(Debug, Default)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        if self.0.ends_with(b"\n") && bytes.iter().any(|b| *b != b'\n') {
            self.0.clear(); // A new line begins; the ones before it don't matter any more.
        }
        let excess = (self.0.len() + bytes.len()).saturating_sub(KEPT);
        self.0.drain(..excess);
        self.0.extend_from_slice(bytes);
    }

    /// What has to stand between the body so far and one more message.
    pub fn separator(&self, format: Format) -> &'static str {
        match (format, self.0.last()) {
            (_, None) => "",
            (Format::Ndjson, Some(b'\n')) => "",
            (Format::Ndjson, _) => "\n",
            (Format::EventStream, _) if self.0.ends_with(b"\n\n") => "",
            (Format::EventStream, Some(b'\n')) => "\n",
            (Format::EventStream, _) => "\n\n",
        }
    }

    /// Whether the last message is an error that another proxy or Ollama told in band.
    pub fn tells_error(&self, format: Format) -> bool {
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
    /// counts behind everything else. The line itself may be longer than what is kept.
    pub fn number(&self, member: &str) -> Option<f64> {
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

/// Whole lines of a stream as they pass, for those who want to look at them.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    /// The line under way is too long to be looked at.
    is_skipping: bool,
}

impl Lines {
    /// Takes the next bytes and shows the lines that end in them.
    pub fn push(&mut self, bytes: &[u8], look: &mut dyn FnMut(&[u8])) {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.is_skipping |= self.begun.len() + piece.len() > KEPT;
            let is_whole = pieces.peek().is_some();
            match (self.is_skipping, is_whole) {
                (true, _) => self.begun.clear(),
                (false, true) if self.begun.is_empty() => look(piece),
                (false, _) => self.begun.extend_from_slice(piece),
            }
            if is_whole {
                if !self.begun.is_empty() {
                    look(&self.begun);
                    self.begun.clear();
                }
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

    fn tail(pieces: &[&str]) -> Tail {
        let mut tail = Tail::default();
        pieces.iter().for_each(|piece| tail.push(piece.as_bytes()));
        tail
    }

    #[test]
    fn errors_are_seen_in_the_last_message_only() {
        let ndjson = Format::of("application/x-ndjson").unwrap();
        let sse = Format::of("Text/Event-Stream; charset=utf-8").unwrap();
        assert_eq!(Format::of("application/json"), None);
        assert!(tail(&["{\"a\":1}\n{\"er", "ror\":\"gone\"}\n"]).tells_error(ndjson));
        assert!(!tail(&["{\"error\":\"x\"}\n{\"a\":1}\n"]).tells_error(ndjson));
        assert!(!tail(&["{\"a\":\"\\\"error\\\"\"}\n"]).tells_error(ndjson));
        assert!(!tail(&["{\"error\":\"cut"]).tells_error(ndjson));
        assert!(!tail(&[]).tells_error(ndjson));
        assert!(
            tail(&["event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n"]).tells_error(sse)
        );
        assert!(!tail(&["data: [DONE]\n\n"]).tells_error(sse));
    }

    #[test]
    fn a_new_message_starts_on_its_own_line() {
        for (body, ndjson, sse) in
            [("", "", ""), ("{}", "\n", "\n\n"), ("{}\n", "", "\n"), ("x\n\n", "", "")]
        {
            assert_eq!(tail(&[body]).separator(Format::Ndjson), ndjson, "{body:?}");
            assert_eq!(tail(&[body]).separator(Format::EventStream), sse, "{body:?}");
        }
    }

    #[test]
    fn counts_are_read_from_the_last_line() {
        let last = r#"{"response":"\"eval_count\":9","context":[1],"eval_count":120,"eval_duration":2000000000}"#;
        let tail = tail(&["{\"eval_count\":1}\n", last, "\n"]);
        assert_eq!(tail.number("eval_count"), Some(120.0));
        assert_eq!(tail.number("eval_duration"), Some(2e9));
        assert_eq!(tail.number("load_duration"), None);
    }

    #[test]
    fn only_the_end_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..10 {
            tail.push(&[b'x'; 1000]);
        }
        tail.push(&[b'y'; 9000]);
        assert_eq!(tail.0.len(), KEPT);
        tail.push(b"\n{\"error\":1}\n");
        assert!(tail.tells_error(Format::Ndjson));
        assert_eq!(tail.0.len(), KEPT);
    }
}
