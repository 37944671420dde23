//! What Ollama tells of a model besides its name: what it can do, and how it is in memory. Pure.
//!
//! Ollama lists capabilities since 0.30. What isn't told is unknown, and rules nothing out.

use serde_json::Value;

/// The capabilities that Ollama 0.33 knows (`types/model/capability.go`), a bit for each: servers
/// may write any words, and any number of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u8);

impl Capabilities {
    const WORDS: [&str; 8] =
        ["completion", "tools", "insert", "vision", "embedding", "thinking", "image", "audio"];
    pub(crate) const TOOLS: Capabilities = Capabilities(1 << 1);
    pub(crate) const VISION: Capabilities = Capabilities(1 << 3);

    /// `None` if it isn't a list with at least one known word.
    pub(super) fn of(list: &Value) -> Option<Self> {
        let bit = |word: &Value| {
            let word = word.as_str()?;
            Some(1 << Self::WORDS.iter().position(|known| *known == word)?)
        };
        let bits = list.as_array()?.iter().filter_map(bit).fold(0, |bits, bit: u8| bits | bit);
        (bits > 0).then_some(Capabilities(bits))
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn has(self, needed: Capabilities) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// These and the others, if they are needed.
    pub(crate) fn with(self, others: Capabilities, are_needed: bool) -> Self {
        Capabilities(self.0 | if are_needed { others.0 } else { 0 })
    }

    /// As Ollama writes them.
    pub(crate) fn words(self) -> impl Iterator<Item = &'static str> {
        let is_set = move |bit: usize| self.0 & 1 << bit != 0;
        Self::WORDS.into_iter().enumerate().filter(move |(bit, _)| is_set(*bit)).map(|(_, w)| w)
    }
}

/// What an entry of a list tells that matters for where a request goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) capabilities: Option<Capabilities>,
    /// It is in memory, and not all of it is on a graphics card.
    pub(crate) is_split: bool,
    /// Tokens that it takes in as it is in memory, or of one on disk, that it was trained for; 0 if
    /// that isn't told.
    pub(crate) context: u64,
}

impl Facts {
    pub(super) fn of(entry: &Value) -> Self {
        let (size, on_card) = (number(entry, "size"), number(entry, "size_vram"));
        Facts {
            capabilities: Capabilities::of(&entry["capabilities"]),
            is_split: on_card.zip(size).is_some_and(|(on_card, size)| on_card < size),
            context: number(entry, "context_length")
                .or_else(|| number(&entry["details"], "context_length"))
                .unwrap_or(0),
        }
    }
}

/// A number of bytes or tokens, however it is written.
pub(super) fn number(json: &Value, member: &str) -> Option<u64> {
    let number = &json[member];
    number.as_u64().or_else(|| Some(number.as_f64()? as u64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn capabilities_are_known_words_and_nothing_else() {
        let of = |list: Value| Capabilities::of(&list).map(|all| all.words().collect::<Vec<_>>());
        for (list, want) in [
            (json!(["completion", "tools"]), Some(vec!["completion", "tools"])),
            (json!(["vision", "x", 7, "vision", "completion"]), Some(vec!["completion", "vision"])),
            (json!(Capabilities::WORDS), Some(Capabilities::WORDS.to_vec())),
            (json!(["x"]), None),
            (json!([]), None),
            (json!("tools"), None),
            (json!({"tools": true}), None),
            (json!(null), None),
        ] {
            assert_eq!(of(list.clone()), want, "{list}");
        }
        let all = Capabilities::of(&json!(["tools", "completion"])).expect("capabilities");
        let both = Capabilities::TOOLS.with(Capabilities::VISION, true);
        assert!(all.has(Capabilities::TOOLS) && !all.has(both) && all.has(Capabilities::default()));
        assert_eq!(Capabilities::TOOLS.with(Capabilities::VISION, false), Capabilities::TOOLS);
    }

    #[test]
    fn only_who_says_so_splits_a_model() {
        for (entry, is_split) in [
            (json!({"size": 10, "size_vram": 10}), false),
            (json!({"size": 10, "size_vram": 12}), false),
            (json!({"size": 10, "size_vram": 9}), true),
            (json!({"size": 10, "size_vram": 0}), true),
            (json!({"size": 1e9, "size_vram": 0.5e9}), true),
            (json!({"size": 10}), false),
            (json!({"size_vram": 0}), false),
            (json!({"size": 0, "size_vram": 0}), false),
            (json!({"size": "10", "size_vram": -1}), false),
            (json!({}), false),
        ] {
            assert_eq!(Facts::of(&entry).is_split, is_split, "{entry}");
        }
        assert_eq!(Facts::of(&json!({"context_length": 4096})).context, 4096);
    }
}
