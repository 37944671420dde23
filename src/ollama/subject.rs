//! What a request is about, read from the start of its JSON body. Pure.
//!
//! A scan, not a parse: only a body's first bytes are looked at, so it may be cut anywhere; it may
//! hold megabytes of images, or be no JSON at all. Strings are bounded, whatever the body holds.

/// Longest string that is taken out of a body.
const MAX_STRING: usize = 512;
/// Bytes of a conversation's first text that tell it from others.
const OPENING: usize = 256;

/// What the first bytes of a body say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The top-level `model`, or else `name` or `source`.
    pub model: Option<String>,
    /// What a `create` starts from: `from`, or the `FROM` line of the Modelfile that servers before
    /// 0.5.5 take.
    pub(crate) base: Option<String>,
    /// The top-level `keep_alive` is zero, which unloads the model.
    pub(crate) unloads: bool,
    /// The first text of the conversation: the start of its first `content`, `system` or `prompt`.
    pub opening: Option<String>,
}

/// Scans the first bytes of a body. One that isn't an object, or ends early, tells what stands
/// before that.
pub fn subject(body: &[u8]) -> Subject {
    let mut subject = Subject::default();
    let _ = Scan(body).object(&mut subject);
    subject
}

fn from_line(modelfile: &str) -> Option<String> {
    modelfile.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_from = words.next()?.eq_ignore_ascii_case("from");
        words.next().filter(|_| is_from).map(str::to_owned)
    })
}

/// The rest of a body. What is read of it is `None` where the body ends early or is no JSON.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    /// The next byte that isn't blank.
    fn peek(&mut self) -> Option<u8> {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.0 {
            self.0 = rest;
        }
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.0 = &self.0[1..])
    }

    /// The members of the top-level object.
    fn object(&mut self, subject: &mut Subject) -> Option<()> {
        self.take(b'{')?;
        let mut rank = None;
        while self.peek()? != b'}' {
            let key = self.string()?;
            self.take(b':')?;
            // `model` wins over `name`, which older programs send.
            let model_rank = ["source", "name", "model"].iter().position(|name| *name == key);
            match (key.as_str(), self.peek()?) {
                (_, b'"') if model_rank > rank => {
                    let text = self.string()?;
                    // Go's clients send both, one of them empty.
                    if !text.trim().is_empty() {
                        rank = model_rank;
                        subject.model = Some(text);
                    }
                }
                ("from", b'"') => subject.base = Some(self.string()?),
                ("modelfile", b'"') => {
                    let text = self.string()?;
                    subject.base = subject.base.take().or_else(|| from_line(&text));
                }
                ("system" | "prompt" | "input", b'"') if subject.opening.is_none() => {
                    subject.opening = Some(self.text(OPENING, true)?);
                }
                ("messages", b'[') => self.value(&mut subject.opening)?,
                ("keep_alive", b'"') => {
                    let text = self.string()?;
                    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                    subject.unloads = !digits.is_empty() && digits.bytes().all(|b| b == b'0');
                }
                ("keep_alive", b'0') => {
                    self.next();
                    subject.unloads = !matches!(self.peek()?, b'.' | b'0'..=b'9');
                    self.value(&mut None)?;
                }
                _ => self.value(&mut Some(String::new()))?,
            }
            let _ = self.take(b',');
        }
        Some(())
    }

    /// Skips a value; takes the first `content` text in it, if none was found before.
    fn value(&mut self, opening: &mut Option<String>) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'}' | b']' | b',' if depth == 0 => return Some(()),
                b'"' => {
                    let key = self.string()?;
                    let is_key = depth > 0 && self.take(b':').is_some();
                    let is_text = is_key && matches!(key.as_str(), "content" | "text");
                    if is_text && opening.is_none() && self.peek()? == b'"' {
                        *opening = Some(self.text(OPENING, true)?);
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.next();
        }
    }

    /// A string; what is beyond [`MAX_STRING`] is dropped.
    fn string(&mut self) -> Option<String> {
        self.text(MAX_STRING, false)
    }

    /// The start of a string. If it may be cut, the body may end behind that.
    fn text(&mut self, most: usize, may_be_cut: bool) -> Option<String> {
        self.take(b'"')?;
        let mut out = Vec::new();
        let is_closed = loop {
            let end = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\'));
            let plain = self.0.split_off(..end.unwrap_or(self.0.len()))?;
            out.extend_from_slice(&plain[..plain.len().min(most.saturating_sub(out.len()))]);
            let mut utf8 = [0; 4];
            let escaped = match self.next() {
                None => break false,
                Some(b'"') => break true,
                Some(_) => match self.next()? {
                    b'n' => b"\n",
                    b't' => b"\t",
                    b'u' => {
                        let digits = std::str::from_utf8(self.0.split_off(..4)?).ok()?;
                        let code = u32::from_str_radix(digits, 16).ok()?;
                        let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                        c.encode_utf8(&mut utf8).as_bytes()
                    }
                    other => &[other],
                },
            };
            if out.len() < most {
                out.extend_from_slice(escaped);
            }
        };
        let is_whole = is_closed || (may_be_cut && out.len() >= most);
        is_whole.then(|| String::from_utf8_lossy(&out).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> (Option<String>, bool, Option<String>) {
        let Subject { model, unloads, opening, .. } = subject(body.as_bytes());
        (model, unloads, opening)
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn models_of_all_kinds_of_requests() {
        for (body, model) in [
            (r#"{"model":"a"}"#, text("a")),
            (r#" { "name" : "a" , "stream":false}"#, text("a")),
            (r#"{"name":"old","model":"new"}"#, text("new")),
            (r#"{"model":"new","name":"old"}"#, text("new")),
            (r#"{"model":"","name":"old"}"#, text("old")),
            (r#"{"name":"old","model":""}"#, text("old")),
            (r#"{"source":"a","destination":"b"}"#, text("a")),
            (
                r#"{"messages":[{"role":"user","content":"\"model\":\"x\""}],"model":"a"}"#,
                text("a"),
            ),
            (r#"{"options":{"model":"x","a":[1,{"model":"y"}]},"model":"a"}"#, text("a")),
            (r#"{"images":["AAAA","BBBB"],"n":-1.5e3,"t":true,"z":null,"model":"a"}"#, text("a")),
            (r#"{"model":"a\u00e9\/b"}"#, text("aé/b")),
            (r#"{"model":3,"name":"a"}"#, text("a")),
            (r#"{"a":{},"b":[],"model":"a"}"#, text("a")),
            (r#"{"model":"a"#, None),
            (r#"["model","a"]"#, None),
            (r#"{"messages":[{"content":"cut"#, None),
            ("", None),
            ("model=a", None),
            ("{", None),
            (r#"{"model":"#, None),
            (r#"{"model":"a\"#, None),
        ] {
            assert_eq!(of(body).0, model, "{body}");
        }
    }

    #[test]
    fn what_a_create_starts_from() {
        for (body, base) in [
            (r#"{"model":"new","from":"old"}"#, text("old")),
            (r##"{"name":"new","modelfile":"# x\nfrom  old:1b\nPARAMETER a 1"}"##, text("old:1b")),
            (r#"{"model":"new","from":"old","modelfile":"FROM other"}"#, text("old")),
            (r#"{"model":"new"}"#, None),
        ] {
            assert_eq!(subject(body.as_bytes()).base, base, "{body}");
        }
    }

    #[test]
    fn unloading_is_seen() {
        for (body, unloads) in [
            (r#"{"model":"a","keep_alive":0}"#, true),
            (r#"{"keep_alive":"0","model":"a"}"#, true),
            (r#"{"keep_alive":"0s"}"#, true),
            (r#"{"keep_alive":0.5}"#, false),
            (r#"{"keep_alive":"5m"}"#, false),
            (r#"{"keep_alive":-1}"#, false),
            (r#"{"keep_alive":""}"#, false),
            (r#"{"options":{"keep_alive":0}}"#, false),
        ] {
            assert_eq!(of(body).1, unloads, "{body}");
        }
        assert_eq!(of(r#"{"keep_alive":0,"model":"a"}"#).0, text("a"));
    }

    #[test]
    fn a_conversation_keeps_its_opening() {
        let turn = |rest: &str| {
            let first = r#"{"role":"user","content":"hello there"}"#;
            of(&format!(r#"{{"model":"a","messages":[{first}{rest}],"stream":true}}"#)).2
        };
        assert_eq!(turn(""), text("hello there"));
        assert_eq!(turn(r#",{"role":"assistant","content":"hi"}"#), turn(""));
        let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hey"}]}]}"#;
        assert_eq!(of(parts).2, text("hey"));
        assert_eq!(of(r#"{"prompt":"once","model":"a"}"#), (text("a"), false, text("once")));
        let long = format!(r#"{{"prompt":"{}"#, "x".repeat(10_000));
        assert_eq!(of(&long).2.map(|opening| opening.len()), Some(OPENING));
    }

    #[test]
    fn no_input_makes_it_panic_or_run_away() {
        let body = br#"{"a":[{"b":"c\u0041"},[1,2,{}]],"model":"m","messages":[{"content":"x"}]}"#;
        for len in 0..body.len() {
            subject(&body[..len]);
        }
        let mut random = 9u64;
        for _ in 0..50_000 {
            let mut mutated = body.to_vec();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = (random >> 8) as usize % mutated.len();
                mutated[at] = b"{}[]\",:\\u0a"[random as usize % 11];
            }
            subject(&mutated);
        }
        subject(&[b'['; 100_000]);
        subject(&[b'{'; 100_000]);
    }
}
