//! What is read of an answer while it passes: the tokens in it, and its end. Pure.
//!
//! The end of an answer's body says whether it failed, how many tokens it has, and how fast they
//! were made. No body is altered or held back for it.

use memchr::{memchr, memchr_iter, memmem};

/// Most bytes kept; longer last lines aren't looked at.
const KEPT: usize = 4 * 1024;
/// Bytes kept of the lines before: streams of events tell their counts in one of the last.
const RECENT: usize = 1024;
/// Longer than any count with its name.
const SEAM: usize = 128;
/// More than any answer has.
const MAX_TOKENS: f64 = 1e9;

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
pub(crate) struct StreamEnd {
    kept: Vec<u8>,
    /// What those bytes told that are no longer kept.
    told: Option<Told>,
    /// Of the line under way, not all is kept.
    is_long: bool,
}

/// What an answer says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) tokens: u64,
    /// How long they took, where it is said.
    pub(crate) seconds: Option<f64>,
}

impl StreamEnd {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.kept.len() > 2 * RECENT && self.kept.ends_with(b"\n") {
            self.kept.drain(..self.kept.len() - RECENT);
            self.is_long = false;
        }
        if self.kept.len() + bytes.len() > KEPT {
            // Probabilities and calls of tools may follow the counts, at any length.
            let was_long = std::mem::replace(&mut self.is_long, true);
            let unread = if was_long { self.kept.len().saturating_sub(SEAM) } else { 0 };
            let seam = [&self.kept[unread..], &bytes[..bytes.len().min(SEAM)]].concat();
            for piece in [&seam, bytes] {
                self.told = newer(self.told, told(piece));
            }
        }
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.kept.len() + bytes.len()).saturating_sub(KEPT);
        self.kept.drain(..excess);
        self.kept.extend_from_slice(bytes);
    }

    pub(crate) fn told(&self) -> Option<Told> {
        newer(self.told, told(&self.kept))
    }

    /// What has to stand between the body so far and one more message.
    pub(crate) fn separator(&self, format: Format) -> &'static str {
        let end = if format == Format::Ndjson { "\n" } else { "\n\n" };
        let there = self.kept.iter().rev().take_while(|byte| **byte == b'\n').count();
        if self.kept.is_empty() { "" } else { &end[there.min(end.len())..] }
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
        object.is_some_and(|object| {
            let is_failure = matches!(object["type"].as_str(), Some("error" | "response.failed"));
            is_failure || object.get("error").is_some()
        })
    }

    /// The last line that isn't empty, without its end.
    fn last_line(&self) -> &[u8] {
        self.kept.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default()
    }
}

/// Of two counts the later, unless only the earlier tells how long it took: then the later is no
/// count of Ollama's.
fn newer(old: Option<Told>, new: Option<Told>) -> Option<Told> {
    let is_timed = |told: Option<Told>| told.is_some_and(|told| told.seconds.is_some());
    new.filter(|_| is_timed(new) || !is_timed(old)).or(old)
}

/// The last counts in a piece of JSON. In its texts, the quotes would be escaped.
fn told(json: &[u8]) -> Option<Told> {
    let mut without_time = None;
    // The arguments of a tool's call may have members of this name too, but not side by side.
    for (tokens, rest) in numbers(json, "\"eval_count\":") {
        if let Some(rest) = rest.strip_prefix(b",\"eval_duration\":") {
            let seconds = number(rest).map(|(nanoseconds, _)| nanoseconds / 1e9);
            return Some(Told { seconds, ..tokens });
        }
        without_time.get_or_insert(tokens);
    }
    let others = ["\"completion_tokens\":", "\"output_tokens\":"];
    let of = |member| numbers(json, member).next().map(|(tokens, _)| tokens);
    without_time.or_else(|| others.into_iter().find_map(of))
}

/// The counts of a member, the last first, each with what follows it.
fn numbers<'a>(json: &'a [u8], member: &'a str) -> impl Iterator<Item = (Told, &'a [u8])> {
    memmem::rfind_iter(json, member).filter_map(move |at| {
        let (number, rest) = number(&json[at + member.len()..])?;
        Some((Told { tokens: number.clamp(0.0, MAX_TOKENS) as u64, seconds: None }, rest))
    })
}

/// The number at the start of a piece of JSON, if all of it is there, and what follows it.
fn number(json: &[u8]) -> Option<(f64, &[u8])> {
    let json = json.trim_ascii_start();
    let end = json.iter().position(|b| !(b.is_ascii_digit() || b".-+eE".contains(b)))?;
    let number = std::str::from_utf8(&json[..end]).ok()?.parse().ok()?;
    Some((number, &json[end..]))
}

/// The tokens of an answer, counted while it passes: about one per line or event.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    lines: Lines,
    seen: Seen,
    /// Those that the caller knows of.
    counted: u64,
}

#[derive(Debug, Default)]
struct Seen {
    /// Lines of JSON, or named events.
    messages: u64,
    tokens: u64,
}

impl Tokens {
    /// Looks at the next bytes; returns how many tokens more there are. The last one isn't among
    /// them: the last message usually has none, and what the answer tells of itself comes then.
    pub(crate) fn push(&mut self, format: Format, bytes: &[u8]) -> u64 {
        let Tokens { lines, seen, counted } = self;
        match format {
            Format::Ndjson => {
                seen.messages += memchr_iter(b'\n', bytes).count() as u64;
                seen.tokens = seen.messages;
            }
            Format::EventStream => lines.push(bytes, &mut |line| seen.look(line)),
        }
        let tokens = seen.tokens.saturating_sub(1);
        tokens - std::mem::replace(counted, tokens)
    }

    /// Tokens beyond those that were counted, at the answer's end.
    pub(crate) fn rest(&self, format: Option<Format>, told: Option<Told>) -> u64 {
        let all = match (told, format) {
            // A stream that breaks off may have told what it began with.
            (Some(told), _) if told.tokens >= self.counted => told.tokens,
            (_, Some(Format::EventStream)) => self.seen.tokens,
            (_, _) => self.counted,
        };
        all.saturating_sub(self.counted)
    }

    /// Named events so far.
    pub(crate) fn events(&self) -> u64 {
        self.seen.messages
    }
}

impl Seen {
    /// Takes a line of a stream of events. Where events have names, these tell what is a token: the
    /// data of one takes its own line.
    fn look(&mut self, line: &[u8]) {
        if let Some(name) = line.strip_prefix(b"event:") {
            let name = name.trim_ascii();
            self.messages += 1;
            self.tokens += u64::from(name.ends_with(b".delta") || name == b"content_block_delta");
        } else if self.messages == 0
            && let Some(data) = line.strip_prefix(b"data:")
        {
            self.tokens += u64::from(has_text(data));
        }
    }
}

/// Whether a chunk of OpenAI's older streams has more than a role, an end or counts.
fn has_text(chunk: &[u8]) -> bool {
    const EMPTY: [&[u8]; 6] = [
        b"\"role\":\"assistant\"",
        b",",
        b" ",
        b"\"content\":\"\"",
        b"\"content\":null",
        b"\"text\":\"\"",
    ];
    let choice = memchr_iter(b'{', chunk).find_map(|at| {
        let (before, members) = (&chunk[..at], chunk[at + 1..].trim_ascii_start());
        let is_delta = before.trim_ascii_end().ends_with(b"\"delta\":");
        (is_delta || members.starts_with(b"\"text\":")).then_some(members)
    });
    let Some(mut members) = choice else { return false };
    while let Some(rest) = EMPTY.iter().find_map(|empty| members.strip_prefix(*empty)) {
        members = rest;
    }
    !members.starts_with(b"}") && !members.starts_with(b"\"index\"")
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
    pub(crate) fn push(&mut self, mut bytes: &[u8], look: &mut dyn FnMut(&[u8])) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            self.is_skipping |= self.begun.len() + line.len() > KEPT;
            match (self.is_skipping, self.begun.is_empty()) {
                (true, _) => {}
                // Most come whole, and need no copy.
                (false, true) => look(line),
                (false, false) => {
                    self.begun.extend_from_slice(line);
                    look(&self.begun);
                }
            }
            self.begun.clear();
            self.is_skipping = false;
            bytes = rest;
        }
        self.is_skipping |= self.begun.len() + bytes.len() > KEPT;
        if !self.is_skipping {
            self.begun.extend_from_slice(bytes);
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
        let failed =
            "event: response.failed\ndata: {\"response\":{},\"type\":\"response.failed\"}\n\n";
        assert!(end(&[failed]).tells_error(sse));
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
        assert_eq!(end.told(), Some(Told { tokens: 120, seconds: Some(2.0) }));
    }

    #[test]
    fn counts_are_found_whatever_follows_them() {
        let counts = r#"{"prompt_eval_count":7,"eval_count":100,"eval_duration":4000000000"#;
        let call = r#","tool_calls":[{"function":{"arguments":{"eval_count":5,"x":{"output_tokens":6}}}}]"#;
        let logprobs = format!(r#","logprobs":[{}]}}"#, r#"{"token":"x"},"#.repeat(2000));
        let text = format!("{counts}{call}{logprobs}\n");
        for size in [1, 7, 60, 100, 1000, 5000, text.len()] {
            let mut end = StreamEnd::default();
            text.as_bytes().chunks(size).for_each(|piece| end.push(piece));
            assert_eq!(end.told(), Some(Told { tokens: 100, seconds: Some(4.0) }), "{size}");
            assert!(end.kept.len() <= KEPT);
        }
        for (text, want) in [
            (r#"{"usage":{"prompt_tokens":1,"completion_tokens":12,"total_tokens":13}}"#, Some(12)),
            (
                r#"{"usage":{"input_tokens":1,"output_tokens":12,"output_tokens_details":{}}}"#,
                Some(12),
            ),
            (r#"{"input":{"output_tokens":5},"usage":{"output_tokens": 12}}"#, Some(12)),
            (r#"{"eval_count":3}"#, Some(3)),
            (r#"{"eval_count":-3}"#, Some(0)),
            (r#"{"eval_count":1e300}"#, Some(MAX_TOKENS as u64)),
            (r#"{"response":"\"eval_count\":9"}"#, None),
            (r#"{"eval_count":"many"}"#, None),
            (r#"{"eval_count":12"#, None),
        ] {
            assert_eq!(end(&[text]).told().map(|told| told.tokens), want, "{text}");
        }
    }

    /// What is counted while a stream passes, and in all.
    fn counted(format: Format, text: &str, size: usize) -> (u64, u64) {
        let (mut tokens, mut end, mut sum) = (Tokens::default(), StreamEnd::default(), 0);
        for piece in text.as_bytes().chunks(size) {
            end.push(piece);
            sum += tokens.push(format, piece);
        }
        (sum, sum + tokens.rest(Some(format), end.told()))
    }

    #[test]
    fn events_with_text_are_tokens() {
        let role = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
        let word = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"{x\"},\"finish_reason\":null}]}\n\n";
        let thought = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"reasoning\":\"x\"},\"finish_reason\":null}]}\n\n";
        let stop = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\n";
        let usage =
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":20}}\n\n";
        let done = "data: [DONE]\n\n";
        let text = "data: {\"choices\":[{\"text\":\"x\",\"index\":0}]}\n\n";
        let no_text =
            "data: {\"choices\":[{\"text\":\"\",\"index\":0,\"finish_reason\":\"stop\"}]}\n\n";
        let delta = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n";
        let start = "event: message_start\ndata: {\"usage\":{\"output_tokens\":0}}\n\n: ping\n\n";
        let end = "event: message_delta\ndata: {\"usage\":{\"output_tokens\":12}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
        let twelve = |event: &str| event.repeat(12);
        for (stream, want) in [
            (format!("{role}{}{thought}{stop}{done}", word.repeat(11)), (11, 12)),
            (format!("{}{stop}{usage}{done}", twelve(word)), (11, 20)),
            (format!("{}{no_text}{done}", twelve(text)), (11, 12)),
            (format!("{start}{}{end}", twelve(delta)), (11, 12)),
            (format!("{start}{}", twelve(delta).replace('\n', "\r\n")), (11, 12)),
        ] {
            for size in [1, 3, 50, 1000, stream.len()] {
                assert_eq!(counted(Format::EventStream, &stream, size), want, "{size} {stream}");
            }
        }
        let lines = "{\"response\":\"x\"}\n".repeat(12);
        assert_eq!(counted(Format::Ndjson, &format!("{lines}{{}}\n"), 50), (12, 12));
    }

    #[test]
    fn only_the_end_is_kept() {
        let mut end = StreamEnd::default();
        for _ in 0..10 {
            end.push(&[b'x'; 1000]);
        }
        end.push(&[b'y'; 9000]);
        assert_eq!(end.kept.len(), KEPT);
        end.push(b"\n{\"error\":1}\n");
        assert!(end.tells_error(Format::Ndjson));
        assert_eq!(end.kept.len(), KEPT);
    }
}
