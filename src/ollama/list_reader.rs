//! A list of models as it arrives: entry by entry, so that an odd one costs no other, and a list
//! without an end costs no memory. Pure.

use serde_json::Value;

use super::endpoints::List;
use super::entry::Entry;
use super::json_repair::repaired;
use crate::counters::Share;

/// Entries of one list that are kept.
const MAX_MODELS: usize = 10_000;
/// Longest entry that is kept, in bytes.
const MAX_ENTRY: usize = 256 * 1024;
/// Objects and lists in one another that an entry may have; Ollama's have three. Parsers give up at
/// some depth, and what wraps entries, such as the file that remembers them, adds to it.
const MAX_DEPTH: usize = 32;
/// The list that entries are in, and the object around it.
const LIST_DEPTH: usize = 2;
/// What the entries of one list may take, in bytes; and how much of that each has for itself, while
/// the rest comes out of what all lists share.
const MAX_LIST: usize = 8 << 20;
const OWN: usize = 1 << 20;
/// What an entry takes besides its texts.
const PER_ENTRY: usize = 200;

/// What came of reading a list.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Read {
    pub(super) entries: Vec<Entry>,
    pub(super) share: Share,
    /// It is a list, and it came to its end.
    pub(super) is_whole: bool,
    /// What is wrong with it, for people.
    pub(super) problem: Option<String>,
}

impl Read {
    /// A list that wasn't told, for this reason.
    pub(crate) fn failed(reason: String) -> Self {
        Read { problem: Some(reason), ..Read::default() }
    }

    /// One that the server doesn't have.
    pub(crate) fn none() -> Self {
        Read { is_whole: true, ..Read::default() }
    }
}

pub(crate) struct ListReader {
    list: List,
    read: Read,
    bytes: usize,
    depth: usize,
    is_text: bool,
    is_escaped: bool,
    /// The last text of the outermost object, as far as it may be the list's name.
    key: Vec<u8>,
    is_listing: bool,
    has_list: bool,
    entry: Vec<u8>,
    is_too_deep: bool,
    /// Entries that say nothing, and entries without a place.
    unread: usize,
    left_out: usize,
}

impl ListReader {
    pub(crate) fn new(list: List) -> Self {
        ListReader {
            list,
            read: Read::default(),
            bytes: 0,
            depth: 0,
            is_text: false,
            is_escaped: false,
            key: Vec::new(),
            is_listing: false,
            has_list: false,
            entry: Vec::new(),
            is_too_deep: false,
            unread: 0,
            left_out: 0,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.take(*byte));
    }

    fn take(&mut self, byte: u8) {
        if self.read.is_whole {
            return;
        }
        if self.is_text {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.is_text = false,
                _ if self.depth == 1 && self.key.len() < 16 => self.key.push(byte),
                _ => {}
            }
            return self.collect(byte);
        }
        match byte {
            b'"' => {
                self.is_text = true;
                if self.depth == 1 {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.is_too_deep |= self.is_listing && self.depth > LIST_DEPTH + MAX_DEPTH;
                if self.depth == LIST_DEPTH && byte == b'[' && self.is_named() {
                    (self.is_listing, self.has_list) = (true, true);
                    return;
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth <= 1 && std::mem::take(&mut self.is_listing) {
                    self.end_entry();
                }
                self.read.is_whole |= self.depth == 0;
            }
            b',' if self.is_listing && self.depth == LIST_DEPTH => return self.end_entry(),
            // Of members with one name, the last counts.
            b':' if self.depth == 1 && self.is_named() => {
                (self.read, self.bytes, self.has_list) = (Read::default(), 0, false);
                (self.unread, self.left_out) = (0, 0);
            }
            // Ollama writes an empty list of OpenAI's so.
            b'n' if self.depth == 1 => self.has_list |= self.is_named(),
            _ => {}
        }
        self.collect(byte);
    }

    fn is_named(&self) -> bool {
        let name: &[u8] = if self.list == List::OpenAi { b"data" } else { b"models" };
        self.key == name
    }

    fn collect(&mut self, byte: u8) {
        // One byte more tells that it is too long.
        if self.is_listing && self.entry.len() <= MAX_ENTRY {
            self.entry.push(byte);
        }
    }

    fn end_entry(&mut self) {
        let text = self.entry.trim_ascii();
        let is_plain = !std::mem::take(&mut self.is_too_deep) && text.len() <= MAX_ENTRY;
        if !text.is_empty() {
            match parsed(text).and_then(|(json, text)| Entry::new(self.list, &json, text)) {
                Some(entry) if is_plain => self.keep(entry),
                _ => self.unread += 1,
            }
        }
        self.entry.clear();
    }

    fn keep(&mut self, entry: Entry) {
        let size = entry.size() + PER_ENTRY;
        let is_ample = self.read.entries.len() < MAX_MODELS && self.bytes + size <= MAX_LIST;
        let has_room = is_ample && (self.bytes + size <= OWN || self.read.share.grow(size));
        if has_room {
            self.bytes += size;
            self.read.entries.push(entry);
        } else {
            self.left_out += 1;
        }
    }

    /// At the answer's end, or where it broke off.
    pub(crate) fn finish(mut self, failure: Option<String>) -> Read {
        let path = self.list.path();
        self.read.is_whole &= self.has_list && failure.is_none();
        let problem = match failure {
            Some(reason) => Some(format!("the answer to {path} failed: {reason}")),
            None if !self.has_list => Some(format!("the answer to {path} is no list of models")),
            None if !self.read.is_whole => Some(format!("the answer to {path} has no end")),
            None if self.left_out > 0 => {
                Some(format!("{path} has {} models more than are looked at", self.left_out))
            }
            None if self.unread > 0 => {
                Some(format!("{} entries of {path} can't be read", self.unread))
            }
            None => None,
        };
        Read { problem, ..self.read }
    }
}

/// An entry's JSON, and its text as other programs can read it.
fn parsed(text: &[u8]) -> Option<(Value, String)> {
    let strict =
        || Some((serde_json::from_slice(text).ok()?, String::from_utf8(text.into()).ok()?));
    strict().or_else(|| {
        let text = repaired(text);
        Some((serde_json::from_str(&text).ok()?, text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], size: usize) -> Read {
        let mut reader = ListReader::new(List::Tags);
        text.chunks(size).for_each(|piece| reader.push(piece));
        reader.finish(None)
    }

    fn names(read: &Read) -> Vec<&str> {
        read.entries.iter().map(|entry| entry.label.as_str()).collect()
    }

    #[test]
    fn one_bad_entry_costs_no_other() {
        for (text, want, unread) in [
            (r#"{"models":[{"name":"a"},{"name":"b"}]}"#, &["a", "b"][..], 0),
            (
                r#" { "x":{"models":[{"name":"z"}]}, "models" : [ {"name":"a"} , 7, "x", {}, null,
                {"model":7}, {"name":"b","y":[1,{"z":"]}"}]} ] } "#,
                &["a", "b"],
                5,
            ),
            (r#"{"models":[{"name":"z"}],"models":[{"name":"a"}]}"#, &["a"], 0),
            (r#"{"models":[{"name":"a","x":"\ud800"},{"name":"b","size":1e999}]}"#, &["a", "b"], 0),
            (
                "{\"models\":[{\"name\":\"a\u{1}\n\"},{\"name\":\"b\",\"x\":NaN}]}",
                &["a\u{1}\n", "b"],
                0,
            ),
            (r#"{"models":[{"name":"a",},{"name" "q"},{"name":"b"}]}"#, &["b"], 2),
            (r#"{"models":[{"name":"a","name":"b","size":-1.5}]}"#, &["b"], 0),
            (r#"{"models":[]}"#, &[], 0),
            (r#"{"models":null}"#, &[], 0),
        ] {
            for size in [1, 7, text.len()] {
                let read = read(text.as_bytes(), size);
                assert_eq!(names(&read), want, "{text}");
                assert!(read.is_whole, "{text}");
                let told = read.problem.unwrap_or_default();
                let unread =
                    (unread > 0).then(|| format!("{unread} entries of /api/tags can't be read"));
                assert_eq!(told, unread.unwrap_or_default(), "{text}");
            }
        }
        let odd = b"{\"models\":[{\"name\":\"a\xff\"},{\"name\":\"b\"}]}";
        assert_eq!(names(&read(odd, 5)), ["a\u{fffd}", "b"]);
    }

    #[test]
    fn entries_of_any_depth_are_read_or_counted() {
        for depth in 1..200 {
            let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
            let deep = format!(r#"{{"name":"deep","x":{open}1{close}}}"#);
            let text =
                format!(r#"{{"x":{open}{close},"models":[{{"name":"a"}},{deep},{{"name":"b"}}]}}"#);
            let read = read(text.as_bytes(), 7);
            let all: &[&str] = if depth <= MAX_DEPTH { &["a", "deep", "b"] } else { &["a", "b"] };
            assert_eq!(
                (names(&read), read.problem.is_some()),
                (all.to_vec(), all.len() == 2),
                "{depth}"
            );
        }
    }

    #[test]
    fn what_is_no_whole_list_is_said() {
        for text in
            ["", "[]", "<html>", "{", r#"{"models":3}"#, r#"{"models":{}}"#, r#"{"error":"x"}"#]
        {
            let read = read(text.as_bytes(), 3);
            assert!(!read.is_whole && read.problem.is_some(), "{text}: {read:?}");
        }
        let cut = read(br#"{"models":[{"name":"a"},{"na"#, 4);
        assert_eq!((names(&cut), cut.is_whole), (vec!["a"], false));
        assert!(cut.problem.is_some_and(|problem| problem.contains("no end")));
    }

    #[test]
    fn long_lists_are_bounded() {
        let many = |count: usize, pad: usize| {
            let pad = "x".repeat(pad);
            let all: Vec<String> =
                (0..count).map(|n| format!(r#"{{"name":"m{n}","pad":"{pad}"}}"#)).collect();
            format!(r#"{{"models":[{}]}}"#, all.join(","))
        };
        let long = read(many(5000, 300).as_bytes(), 60_000);
        assert_eq!((long.entries.len(), long.problem), (5000, None));
        let longer = read(many(12_000, 0).as_bytes(), 60_000);
        assert_eq!(longer.entries.len(), MAX_MODELS);
        assert!(longer.problem.is_some_and(|problem| problem.contains("2000 models more")));
        let fat = read(many(400, 60_000).as_bytes(), 60_000);
        assert!(fat.entries.len() < 140 && fat.problem.is_some(), "{}", fat.entries.len());
        let entry = read(many(1, 300_000).as_bytes(), 60_000);
        assert_eq!((entry.entries.len(), entry.is_whole), (0, true));
    }
}
