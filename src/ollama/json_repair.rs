//! JSON with odd characters or numbers in it, made readable for strict programs: Go and others write
//! and take what they refuse. Pure.

use std::iter::Peekable;
use std::str::Chars;

/// The same text with each character that no JSON may have replaced, as Go's decoder does, and each
/// number that no program can hold by 0. Everything else stays as it is.
pub(super) fn repaired(json: &[u8]) -> String {
    let json = String::from_utf8_lossy(json);
    let mut out = String::with_capacity(json.len() + 16);
    let mut rest = json.chars().peekable();
    let mut is_text = false;
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                is_text = !is_text;
                out.push(c);
            }
            '\\' if is_text => escape(&mut rest, &mut out),
            '\0'..='\x1f' if is_text => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            '+' | '-' | '.' | '0'..='9' | 'A'..='Z' | 'a'..='z' if !is_text => {
                let mut word = String::from(c);
                while let Some(c) =
                    rest.next_if(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c))
                {
                    word.push(c);
                }
                out.push_str(&value(word));
            }
            _ => out.push(c),
        }
    }
    out
}

/// A number, or another word, that stands for itself.
fn value(word: String) -> String {
    if serde_json::from_str::<serde_json::Value>(&word).is_ok() {
        return word;
    }
    match word.parse::<f64>() {
        Ok(number) if number.is_finite() => number.to_string(),
        Ok(_) => "0".to_owned(),
        Err(_) => "null".to_owned(),
    }
}

/// What follows a backslash.
fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    match rest.next() {
        Some('u') => {
            let unit = hex(rest);
            let low = |rest: &mut Peekable<Chars<'_>>| {
                let mut ahead = rest.clone();
                let is_escape = ahead.next() == Some('\\') && ahead.next() == Some('u');
                let low = hex(&mut ahead).filter(|low| is_escape && (0xdc00..0xe000).contains(low));
                low.inspect(|_| *rest = ahead)
            };
            match unit {
                Some(high @ 0xd800..0xdc00) => match low(rest) {
                    Some(low) => out.push_str(&format!("\\u{high:04x}\\u{low:04x}")),
                    None => out.push_str("\\ufffd"),
                },
                Some(0xdc00..0xe000) | None => out.push_str("\\ufffd"),
                Some(unit) => out.push_str(&format!("\\u{unit:04x}")),
            }
        }
        Some(c) if "\"\\/bfnrt".contains(c) => out.extend(['\\', c]),
        Some(c) => out.extend(['\\', '\\', c]),
        None => {}
    }
}

/// Four hexadecimal digits, if they are there.
fn hex(rest: &mut Peekable<Chars<'_>>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| {
        Some(unit * 16 + rest.next_if(char::is_ascii_hexdigit)?.to_digit(16)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_program_reads_is_changed() {
        for (json, want) in [
            (r#"{"a":"\ud83d\ude00 é \u00e9 \" \\ \n","b":[1.50,-2e3,true,null]}"#, None),
            (r#"{"big":123456789012345678901234567890,"a":1,"a":2}"#, None),
            (r#"["\ud800"]"#, Some(r#"["\ufffd"]"#)),
            (
                r#"["\udc00x","\ud800\u0041","\ud800\ud83d\ude00","\ud8"]"#,
                Some(r#"["\ufffdx","\ufffd\u0041","\ufffd\ud83d\ude00","\ufffd"]"#),
            ),
            (r#"["\x41"]"#, Some(r#"["\\x41"]"#)),
            ("[\"a\u{0}\tb\"]", Some(r#"["a\u0000\u0009b"]"#)),
            (r#"[1e999,-1e999,NaN,Infinity,+5,007,.5]"#, Some("[0,0,0,0,5,7,0.5]")),
            ("[nope]", Some("[null]")),
        ] {
            let repaired = repaired(json.as_bytes());
            assert_eq!(repaired, want.unwrap_or(json), "{json}");
            assert!(serde_json::from_str::<serde_json::Value>(&repaired).is_ok(), "{repaired}");
        }
        assert_eq!(repaired(b"[\"a\xffb\"]"), "[\"a\u{fffd}b\"]");
    }
}
