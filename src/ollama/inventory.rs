//! What a server has: its models, those loaded, and the merged lists of several servers. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use crate::ollama::model_name::ModelName;

/// Models of one server that are looked at; the rest is left out.
const MAX_MODELS: usize = 2000;
/// Longest fact about a model that is told, in characters.
const MAX_FACT: usize = 64;

/// The lists that Ollama has of its models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `/api/tags`: on disk.
    Tags,
    /// `/api/ps`: in memory.
    Loaded,
    /// `/v1/models`: on disk, in OpenAI's shape.
    OpenAi,
}

impl List {
    /// All of them.
    pub const ALL: [List; 3] = [List::Tags, List::Loaded, List::OpenAi];

    /// Where Ollama answers with it.
    pub fn path(self) -> &'static str {
        match self {
            List::Tags => "/api/tags",
            List::Loaded => "/api/ps",
            List::OpenAi => "/v1/models",
        }
    }

    /// By the request's target.
    pub fn of(target: &str) -> Option<Self> {
        List::ALL.into_iter().find(|list| list.path() == target)
    }

    fn member(self) -> &'static str {
        match self {
            List::Tags | List::Loaded => "models",
            List::OpenAi => "data",
        }
    }

    /// What makes two entries one: name and digest, or OpenAI's name.
    fn key(self, entry: &Value) -> (String, String) {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        match self {
            List::Tags | List::Loaded => {
                (name_of(entry).unwrap_or_default(), text("digest").to_owned())
            }
            List::OpenAi => (text("id").to_owned(), String::new()),
        }
    }
}

fn number(json: &Value, member: &str) -> u64 {
    json.get(member).and_then(Value::as_u64).unwrap_or_default()
}

fn text(json: &Value, member: &str) -> String {
    let text = json.get(member).and_then(Value::as_str).unwrap_or_default();
    text.chars().take(MAX_FACT).collect()
}

fn name_of(entry: &Value) -> Option<String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    text("model").or_else(|| text("name")).map(str::to_owned)
}

/// An entry of a list: as text, because parsed JSON takes up to sixteen times the memory, and what
/// a server says of itself is as long as it likes.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    key: (String, String),
    /// When it was made or changed: OpenAI's number, Ollama's text.
    time: (i64, String),
    text: String,
}

impl Entry {
    fn new(list: List, entry: &Value) -> Self {
        let created = entry.get("created").and_then(Value::as_i64).unwrap_or_default();
        let modified = entry.get("modified_at").and_then(Value::as_str).unwrap_or_default();
        Entry {
            key: list.key(entry),
            time: (created, modified.to_owned()),
            text: entry.to_string(),
        }
    }
}

/// A model of one server, as far as the server tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// As the server writes it.
    pub label: String,
    /// To compare it with others.
    pub name: ModelName,
    /// Bytes on disk; 0 if it isn't there or doesn't say.
    pub size: u64,
    /// Such as `8.0B`, and `Q4_K_M`.
    pub kind: [String; 2],
    /// What it is like in memory, if it was there when the list was made.
    pub loaded: Option<Loaded>,
}

/// A model in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// Bytes of it.
    pub size: u64,
    /// Those of them on a graphics card.
    pub size_vram: u64,
    /// When it will be unloaded, as Ollama writes it; empty if it doesn't say.
    pub expires_at: String,
    /// Tokens that it takes in; 0 if it doesn't say.
    pub context_length: u64,
}

/// What one server has, as it said itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    entries: [Vec<Entry>; 3],
    on_disk: HashSet<ModelName>,
    loaded: HashSet<ModelName>,
    /// Bytes free for more models, where the server says so.
    pub room: Option<u64>,
}

impl Inventory {
    /// Puts the answers to the three lists together, in the order of [`List::ALL`]. A list that
    /// isn't JSON of the known shape counts as empty.
    pub fn new(answers: [&str; 3], room: Option<u64>) -> Self {
        let mut inventory = Inventory { room, ..Inventory::default() };
        for (at, list) in List::ALL.into_iter().enumerate() {
            let answer: Value = serde_json::from_str(answers[at]).unwrap_or_default();
            let Some(all) = answer.get(list.member()).and_then(Value::as_array) else { continue };
            let all = || all.iter().take(MAX_MODELS);
            inventory.entries[at] = all().map(|entry| Entry::new(list, entry)).collect();
            let names = all().filter_map(name_of).filter_map(|name| ModelName::parse(&name));
            match list {
                List::Tags => inventory.on_disk = names.collect(),
                List::Loaded => inventory.loaded = names.collect(),
                List::OpenAi => {}
            }
        }
        inventory
    }

    /// Whether the model is on this server's disk.
    pub fn has(&self, model: &ModelName) -> bool {
        self.on_disk.contains(model) || self.loaded.contains(model)
    }

    /// Whether the model is in this server's memory.
    pub fn has_loaded(&self, model: &ModelName) -> bool {
        self.loaded.contains(model)
    }

    /// The same without this model in memory.
    pub fn unloaded(&self, model: &ModelName) -> Self {
        let is_it = |entry: &Entry| ModelName::parse(&entry.key.0).as_ref() == Some(model);
        let mut rest = self.clone();
        rest.loaded.remove(model);
        rest.entries[1].retain(|entry| !is_it(entry));
        rest
    }

    /// Every model, those on disk in the server's order, then those that are only in memory.
    pub fn models(&self) -> Vec<Model> {
        let parse = |entry: &Entry| {
            let name = ModelName::parse(&entry.key.0)?;
            Some((name, serde_json::from_str::<Value>(&entry.text).unwrap_or_default()))
        };
        let [tags, loaded, _] = &self.entries;
        let tags = tags.iter().filter_map(|entry| Some((entry, parse(entry)?)));
        let mut models: Vec<Model> = tags
            .map(|(entry, (name, json))| Model {
                label: entry.key.0.clone(),
                name,
                size: number(&json, "size"),
                kind: ["parameter_size", "quantization_level"]
                    .map(|member| json.get("details").map(|d| text(d, member)).unwrap_or_default()),
                loaded: None,
            })
            .collect();
        for (entry, (name, json)) in loaded.iter().filter_map(|e| Some((e, parse(e)?))) {
            let facts = Loaded {
                size: number(&json, "size"),
                size_vram: number(&json, "size_vram"),
                expires_at: text(&json, "expires_at"),
                context_length: number(&json, "context_length"),
            };
            match models.iter_mut().find(|model| model.name == name) {
                Some(model) => model.loaded = Some(facts),
                None => models.push(Model {
                    label: entry.key.0.clone(),
                    name,
                    size: 0,
                    kind: Default::default(),
                    loaded: Some(facts),
                }),
            }
        }
        models
    }

    /// Models on disk.
    pub fn len(&self) -> usize {
        self.on_disk.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.on_disk.is_empty()
    }
}

/// One list over several servers, as JSON: the same name and digest once, newest first as Ollama
/// does.
pub fn merge(list: List, inventories: &[Arc<Inventory>]) -> String {
    let at = List::ALL.iter().position(|other| *other == list).unwrap_or_default();
    let mut seen = HashSet::new();
    let mut merged: Vec<&Entry> = inventories
        .iter()
        .flat_map(|inventory| &inventory.entries[at])
        .filter(|entry| seen.insert(&entry.key))
        .collect();
    if list != List::Loaded {
        merged.sort_by_key(|entry| std::cmp::Reverse(&entry.time));
    }
    let texts: Vec<&str> = merged.iter().map(|entry| entry.text.as_str()).collect();
    let texts = texts.join(",");
    match list {
        List::OpenAi => format!(r#"{{"object":"list","data":[{texts}]}}"#),
        List::Tags | List::Loaded => format!(r#"{{"models":[{texts}]}}"#),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(list: List, inventories: &[Arc<Inventory>]) -> Value {
        serde_json::from_str(&merge(list, inventories)).expect("JSON")
    }

    fn tags(entries: &[(&str, &str, &str)]) -> String {
        let models: Vec<Value> = entries
            .iter()
            .map(|(name, digest, at)| json!({"name": name, "model": name, "digest": digest, "modified_at": at}))
            .collect();
        json!({ "models": models }).to_string()
    }

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).expect("name")
    }

    #[test]
    fn an_inventory_knows_disk_and_memory() {
        let disk = tags(&[("a:latest", "1", "2026"), ("B:1b", "2", "2025")]);
        let memory = tags(&[("a:latest", "1", "")]);
        let inventory = Inventory::new([&disk, &memory, ""], Some(7));
        assert!(inventory.has(&name("a")) && inventory.has(&name("b:1B")));
        assert!(inventory.has_loaded(&name("A")) && !inventory.has_loaded(&name("b:1b")));
        assert!(!inventory.has(&name("c")));
        assert_eq!(inventory.len(), 2);
        let rest = inventory.unloaded(&name("a"));
        assert!(rest.has(&name("a")) && !rest.has_loaded(&name("a")));
        assert_eq!(merge(List::Loaded, &[Arc::new(rest)]).to_string(), r#"{"models":[]}"#);
        for junk in ["", "[]", "{\"models\":3}", "{\"models\":[1,{}]}", "<html>"] {
            assert!(Inventory::new([junk, junk, junk], None).is_empty(), "{junk}");
        }
    }

    #[test]
    fn models_are_described_from_both_lists() {
        let disk = json!({"models": [
            {"model": "A:1b", "size": 7, "details": {"parameter_size": "1B", "quantization_level": "Q8_0"}},
            {"name": "b"},
        ]});
        let memory = json!({"models": [
            {"model": "a:1b", "size": 9, "size_vram": 8, "expires_at": "2026", "context_length": 4096},
            {"model": "gone:latest"},
        ]});
        let models = Inventory::new([&disk.to_string(), &memory.to_string(), ""], None).models();
        let loaded = models[0].loaded.as_ref().expect("in memory");
        assert_eq!((models[0].label.as_str(), models[0].size), ("A:1b", 7));
        assert_eq!(models[0].kind, ["1B", "Q8_0"]);
        assert_eq!((loaded.size, loaded.size_vram, loaded.context_length), (9, 8, 4096));
        assert_eq!(loaded.expires_at, "2026");
        assert_eq!(models[1].loaded, None);
        assert_eq!((models[2].label.as_str(), models.len()), ("gone:latest", 3));
    }

    #[test]
    fn merged_lists_hold_each_model_once() {
        let one = tags(&[("a:latest", "1", "2026-01-02"), ("b:latest", "2", "2026-01-01")]);
        let two = tags(&[("b:latest", "3", "2026-01-03"), ("a:latest", "1", "2025-01-01")]);
        let openai = r#"{"object":"list","data":[{"id":"a","created":5},{"id":"b","created":9}]}"#;
        let inventories =
            [&one, &two].map(|list| Arc::new(Inventory::new([list.as_str(), list, openai], None)));
        let tags = merged(List::Tags, &inventories);
        let of = |value: &Value| {
            value["models"]
                .as_array()
                .expect("models")
                .iter()
                .map(|m| {
                    format!(
                        "{}={}",
                        m["name"].as_str().expect("name"),
                        m["digest"].as_str().expect("digest")
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&tags), ["b:latest=3", "a:latest=1", "b:latest=2"]);
        assert_eq!(merged(List::OpenAi, &inventories)["data"][0]["id"], "b");
        assert_eq!(merged(List::OpenAi, &inventories)["data"].as_array().map(Vec::len), Some(2));
        assert_eq!(merge(List::Tags, &[]), r#"{"models":[]}"#);
    }

    #[test]
    fn only_the_exact_paths_are_lists() {
        assert_eq!(List::of("/api/tags"), Some(List::Tags));
        assert_eq!(List::of("/v1/models"), Some(List::OpenAi));
        assert_eq!(List::of("/v1/models/a"), None);
        assert_eq!(List::of("/api/tags?x=1"), None);
    }
}
