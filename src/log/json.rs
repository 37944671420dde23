//! Lines of the log as JSON objects, one per line.
//!
//! Our messages are a phrase and then keys: `server down addr=10.0.0.7:11435 failures=3`. They
//! become members of their own: `"message":"server down","addr":"10.0.0.7:11435","failures":3`.

use log::Level;
use serde_json::{Map, Value};

use super::text;

pub(super) fn line(level: Level, thread: Option<&str>, message: &str) -> Vec<u8> {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
    set("time", text::now().into());
    set("level", level.as_str().to_ascii_lowercase().into());
    if let Some(thread) = thread {
        set("thread", thread.into());
    }
    match members(message) {
        Some((phrase, found)) if found.iter().all(|(key, _)| !object.contains_key(*key)) => {
            object.insert("message".to_owned(), phrase.into());
            object.extend(found.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        _ => drop(object.insert("message".to_owned(), message.into())),
    }
    format!("{}\n", Value::from(object)).into_bytes()
}

/// Takes a message apart, if all behind its phrase is `key=value`.
fn members(text: &str) -> Option<(&str, Vec<(&str, Value)>)> {
    let start = text.match_indices(' ').find(|(at, _)| key(&text[at + 1..]).is_some());
    let (phrase, mut rest) = text.split_at(start?.0);
    let mut found: Vec<(&str, Value)> = Vec::new();
    while !rest.is_empty() {
        let (name, after) = key(rest.strip_prefix(' ')?)?;
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => bare(after),
        };
        if name == "message" || found.iter().any(|(other, _)| *other == name) {
            return None;
        }
        found.push((name, value));
    }
    Some((phrase, found))
}

fn key(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once('=')?;
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (!name.is_empty() && name.bytes().all(is_name)).then_some((name, rest))
}

/// A value up to the next blank; a number if it is written like one.
fn bare(text: &str) -> (Value, &str) {
    let (word, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
    let number = word.parse::<i64>().ok().filter(|n| n.to_string() == word);
    let known = word.parse().ok().map(Value::Bool).or_else(|| number.map(Value::from));
    (known.unwrap_or_else(|| word.into()), rest)
}

/// Undoes what `{:?}` does to a string, up to its closing quote.
fn unquote(text: &str) -> Option<(Value, &str)> {
    let mut value = String::new();
    let mut rest = text.chars();
    loop {
        match rest.next()? {
            '"' => return Some((value.into(), rest.as_str())),
            '\\' => value.push(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let (digits, after) = rest.as_str().strip_prefix('{')?.split_once('}')?;
                    rest = after.chars();
                    char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
                }
                plain @ ('"' | '\\' | '\'') => plain,
                _ => return None,
            }),
            plain => value.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Value {
        let line = line(Level::Info, Some("t"), text);
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one line: {text:?}");
        serde_json::from_slice(&line).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn keys_become_members() {
        let line =
            parsed("server down addr=10.0.0.7:11435 failures=3 why=\"a \\\"b\\\" c\" up=true");
        assert_eq!(line["message"], "server down");
        assert_eq!(line["addr"], "10.0.0.7:11435");
        assert_eq!(line["failures"], 3);
        assert_eq!(line["why"], "a \"b\" c");
        assert_eq!(line["up"], true);
        assert_eq!(line["level"], "info");
        assert_eq!(line["thread"], "t");
    }

    #[test]
    fn what_is_no_list_of_keys_stays_one_message() {
        for text in [
            "",
            "plain words",
            "a=1",
            "stopping connections=3 drain_s=30 (and a word)",
            "x a=\"open",
            "x a=\"bad \\q\"",
            "x a=1 a=2",
            "x time=1",
            "x message=1",
            "x a=1  b=2",
            "x =1",
        ] {
            assert_eq!(parsed(text)["message"], text, "{text:?}");
        }
    }

    /// Whatever a value holds comes back as it was.
    #[test]
    fn any_value_survives() {
        let mut state = 7_u64;
        for round in 0..20_000 {
            let mut value = String::new();
            for _ in 0..round % 12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let wild = (state >> 33) as u32;
                let wild = if wild & 1 == 0 { wild % 128 } else { wild % 0x11_0000 };
                value.extend(char::from_u32(wild));
            }
            let line = parsed(&format!("phrase first=1 value={value:?} last=2"));
            assert_eq!((&line["value"], &line["last"]), (&value.into(), &2.into()));
        }
    }
}
