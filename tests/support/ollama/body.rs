//! Bodies of requests as Go's `encoding/json` and `mime/multipart` understand them.

use std::io::Read;

use serde_json::Value;

use super::super::{Call, Head};
use super::Machine;

/// The members of a JSON object in the order in which they came, duplicates included.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    /// The first JSON value of a body, which must be an object; the error as Go words it, nearly.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let mut scan = Scan(body);
        if scan.peek().is_none() {
            return Err("missing request body".to_owned());
        }
        scan.take(b"{")?;
        let mut members = Vec::new();
        if scan.peek() == Some(b'}') {
            return Ok(Fields(members));
        }
        loop {
            let Value::String(name) = scan.value()? else { return Err(scan.error()) };
            scan.take(b":")?;
            members.push((name, scan.value()?));
            if scan.take(b",}")? == b'}' {
                return Ok(Fields(members));
            }
        }
    }

    /// The member with this name in any case: the last one that isn't null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let named = |(other, value): &&(String, Value)| fold(other) == name && !value.is_null();
        self.0.iter().rev().find(named).map(|(_, value)| value)
    }

    /// The same of an exact name, as a map has it.
    pub(super) fn exact(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    /// A text, empty if it isn't there; an error if it is something else.
    pub(super) fn text(&self, name: &str) -> Result<String, String> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => {
                let kind = match other {
                    Value::Bool(_) => "bool",
                    Value::Number(_) => "number",
                    Value::Array(_) => "array",
                    _ => "object",
                };
                Err(format!(
                    "json: cannot unmarshal {kind} into Go struct field .{name} of type string"
                ))
            }
        }
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    /// `keep_alive` is zero, as a number or as a duration.
    pub(super) fn unloads(&self) -> bool {
        match self.get("keep_alive") {
            Some(Value::Number(number)) => number.as_f64() == Some(0.0),
            Some(Value::String(text)) => {
                let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                number.parse::<f64>() == Ok(0.0)
            }
            _ => false,
        }
    }

    /// Whether a list or text has nothing in it.
    pub(super) fn is_empty(&self, name: &str) -> bool {
        match self.get(name) {
            None => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        }
    }
}

struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn peek(&mut self) -> Option<u8> {
        self.0 = self.0.trim_ascii_start();
        self.0.first().copied()
    }

    fn take(&mut self, expected: &[u8]) -> Result<u8, String> {
        let byte =
            self.peek().filter(|byte| expected.contains(byte)).ok_or_else(|| self.error())?;
        self.0 = &self.0[1..];
        Ok(byte)
    }

    fn value(&mut self) -> Result<Value, String> {
        let mut values = serde_json::Deserializer::from_slice(self.0).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else { return Err(self.error()) };
        self.0 = &self.0[values.byte_offset()..];
        Ok(value)
    }

    fn error(&self) -> String {
        match self.0.first() {
            Some(byte) => {
                let byte = char::from(*byte);
                format!("invalid character '{byte}' looking for beginning of value")
            }
            None => "unexpected EOF".to_owned(),
        }
    }
}

/// The form that Go compares names of members in.
fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_lowercase).map(|c| if c == 'ſ' { 's' } else { c }).collect()
}

/// Reads the whole body, as slowly as the machine does.
pub(super) fn read(machine: &Machine, call: &mut Call<'_>) -> Vec<u8> {
    let mut pause = machine.world(|world| world.reads_then_pauses);
    let mut body = Vec::new();
    while let Some(part) = call.read_part() {
        body.extend_from_slice(&part);
        if let Some((_, time)) = pause.take_if(|(bytes, _)| body.len() >= *bytes) {
            std::thread::sleep(time);
        }
    }
    body
}

/// Decodes what Ollama decodes on its OpenAI and Anthropic routes; other codings stay as they are.
pub(super) fn decoded(head: &Head, body: Vec<u8>) -> Result<Vec<u8>, String> {
    /// What a decoded body may have at most.
    const MAX: u64 = 20 << 20;
    if head.one("content-encoding").as_deref() != Some("zstd") {
        return Ok(body);
    }
    let mut out = Vec::new();
    let mut input = body.as_slice();
    while !input.is_empty() {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut input)
            .map_err(|_| "failed to decompress request body".to_owned())?;
        let left = MAX + 1 - out.len() as u64;
        decoder.by_ref().take(left).read_to_end(&mut out).map_err(|error| error.to_string())?;
        if out.len() as u64 > MAX {
            return Err("http: request body too large".to_owned());
        }
    }
    Ok(out)
}

/// A field of a form: of the query, or else of the body, whose parts may come in any order. The
/// second value says whether the body has a file that isn't empty.
pub(super) fn form_field(head: &Head, body: &[u8], name: &str) -> Result<(String, bool), String> {
    let failed = |why: &str| format!("failed to parse multipart form: {why}");
    let kind = head.one("content-type").unwrap_or_default();
    let boundary = kind
        .split(';')
        .skip(1)
        .find_map(|part| part.trim().strip_prefix("boundary="))
        .map(|boundary| boundary.trim_matches('"').to_owned());
    let Some(boundary) = boundary.filter(|_| kind.starts_with("multipart/form-data")) else {
        return Err(failed("request Content-Type isn't multipart/form-data"));
    };
    let query = head.target().split_once('?').map_or("", |(_, query)| query);
    let mut value = query.split('&').find_map(|pair| {
        pair.strip_prefix(name)?.strip_prefix('=').map(|value| value.to_owned()) //
    });
    let mut has_file = false;
    let dash = format!("\r\n--{boundary}").into_bytes();
    let body = [b"\r\n".as_slice(), body].concat();
    let mut rest = &body[find(&body, &dash).ok_or_else(|| failed("EOF"))? + dash.len()..];
    while !rest.starts_with(b"--") {
        let end = find(rest, &dash).ok_or_else(|| failed("unexpected EOF"))?;
        let part = &rest[..end];
        rest = &rest[end + dash.len()..];
        let split = find(part, b"\r\n\r\n").ok_or_else(|| failed("malformed MIME header"))?;
        let fields = String::from_utf8_lossy(&part[..split]).into_owned();
        let content = &part[split + 4..];
        let named = |key: &str, value: &str| {
            let exact = format!("{key}=\"{value}\"");
            fields.split([';', '\r', '\n']).any(|piece| piece.trim() == exact)
        };
        if fields.contains("filename=") {
            has_file |= named("name", "file") && !content.is_empty();
        } else if named("name", name) && value.is_none() {
            value = Some(String::from_utf8_lossy(content).into_owned());
        }
    }
    Ok((value.unwrap_or_default(), has_file))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
