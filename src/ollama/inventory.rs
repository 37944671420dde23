//! What a server has: its models, and those loaded; and the lists of several servers as one. Pure.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use super::{endpoints::List, model_name::ModelName};

/// Models of one server that are looked at; the rest is left out.
const MAX_MODELS: usize = 2000;
/// Longest fact about a model that is told, in characters.
const MAX_FACT: usize = 64;

fn number(json: &Value, member: &str) -> u64 {
    json[member].as_u64().unwrap_or_default()
}

fn text<'a>(json: &'a Value, member: &str) -> &'a str {
    json[member].as_str().unwrap_or_default()
}

fn fact(json: &Value, member: &str) -> String {
    text(json, member).chars().take(MAX_FACT).collect()
}

fn name_of(entry: &Value) -> &str {
    entry["model"].as_str().unwrap_or_else(|| text(entry, "name"))
}

/// An entry of a list: as text, because parsed JSON takes up to sixteen times the memory, and
/// servers may send entries of any length.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// What makes two entries one: name and digest, or OpenAI's name.
    key: (String, String),
    /// When it was made or changed: OpenAI's number, Ollama's text.
    time: (i64, String),
    text: String,
}

impl Entry {
    fn new(list: List, entry: &Value) -> Self {
        let (name, digest) = match list {
            List::Tags | List::Loaded => (name_of(entry), text(entry, "digest")),
            List::OpenAi => (text(entry, "id"), ""),
        };
        let created = entry["created"].as_i64().unwrap_or_default();
        Entry {
            key: (name.to_owned(), digest.to_owned()),
            time: (created, text(entry, "modified_at").to_owned()),
            text: entry.to_string(),
        }
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.key.0.len() + self.key.1.len() + self.time.1.len()
    }
}

/// A model of one server, as far as the server tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    /// As the server writes it.
    pub(crate) label: String,
    pub(crate) name: ModelName,
    /// Bytes on disk; 0 if it isn't there or doesn't say.
    pub(crate) size: u64,
    /// Such as `8.0B`, and `Q4_K_M`.
    pub(crate) kind: [String; 2],
    pub(crate) loaded: Option<Loaded>,
}

/// A model in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Loaded {
    /// In bytes.
    pub(crate) size: u64,
    /// Those bytes of them that are on a graphics card.
    pub(crate) size_vram: u64,
    /// When it will be unloaded, as Ollama writes it.
    pub(crate) expires_at: String,
    /// Tokens that it takes in; 0 if it doesn't say.
    pub(crate) context_length: u64,
}

/// What one server has, as it said itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// In the order of [`List::ALL`].
    entries: [Vec<Entry>; 3],
    on_disk: HashSet<ModelName>,
    loaded: HashSet<ModelName>,
    /// Stubs of models that run elsewhere.
    remote: HashSet<ModelName>,
    /// Bytes free for more models, where the server says so.
    pub(crate) room: Option<u64>,
}

impl Inventory {
    /// Puts the answers to the three lists together, in the order of [`List::ALL`]. A list that
    /// isn't JSON of the known shape counts as empty. `room` is in bytes.
    pub fn new(answers: [&str; 3], room: Option<u64>) -> Self {
        let mut inventory = Inventory { room, ..Inventory::default() };
        for (list, answer) in List::ALL.into_iter().zip(answers) {
            let answer: Value = serde_json::from_str(answer).unwrap_or_default();
            let member = if list == List::OpenAi { "data" } else { "models" };
            let Some(all) = answer[member].as_array() else { continue };
            let all = || all.iter().take(MAX_MODELS);
            inventory.entries[list as usize] = all().map(|entry| Entry::new(list, entry)).collect();
            let names = all().filter_map(|entry| ModelName::parse(name_of(entry)));
            match list {
                List::Tags => {
                    inventory.on_disk = names.collect();
                    let is_remote = |entry: &&Value| !text(entry, "remote_host").is_empty();
                    let remote = all().filter(is_remote);
                    inventory.remote =
                        remote.filter_map(|entry| ModelName::parse(name_of(entry))).collect();
                }
                List::Loaded => inventory.loaded = names.collect(),
                List::OpenAi => {}
            }
        }
        inventory
    }

    /// Whether the model is on this server's disk, as whatever is loaded must be.
    pub(crate) fn has(&self, model: &ModelName) -> bool {
        self.on_disk.contains(model) || self.loaded.contains(model)
    }

    /// Whether the model runs elsewhere.
    pub(crate) fn is_remote(&self, model: &ModelName) -> bool {
        self.remote.contains(model)
    }

    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        self.loaded.contains(model)
    }

    /// The same without this model in memory.
    pub(crate) fn unloaded(&self, model: &ModelName) -> Self {
        let is_other = |entry: &Entry| ModelName::parse(&entry.key.0).as_ref() != Some(model);
        let mut rest = self.clone();
        rest.loaded.remove(model);
        rest.entries[List::Loaded as usize].retain(is_other);
        rest
    }

    /// The same without this model.
    pub(crate) fn removed(&self, model: &ModelName) -> Self {
        let is_other = |entry: &Entry| ModelName::parse(&entry.key.0).as_ref() != Some(model);
        let mut rest = self.unloaded(model);
        rest.on_disk.remove(model);
        rest.entries.iter_mut().for_each(|list| list.retain(is_other));
        rest
    }

    /// What is on the disk alone, as much of it as `most` bytes hold.
    pub(crate) fn on_disk(&self, most: usize) -> Self {
        let mut left = most;
        let mut some = |list| -> Vec<Entry> {
            let fits = |entry: &&Entry| {
                let rest = left.checked_sub(entry.bytes());
                left = rest.unwrap_or(0);
                rest.is_some()
            };
            self.entries[list as usize].iter().take_while(fits).cloned().collect()
        };
        let entries = [some(List::Tags), Vec::new(), some(List::OpenAi)];
        let names = entries[List::Tags as usize].iter();
        let on_disk: HashSet<_> =
            names.filter_map(|entry| ModelName::parse(&entry.key.0)).collect();
        let remote = self.remote.intersection(&on_disk).cloned().collect();
        Inventory { entries, on_disk, remote, ..Inventory::default() }
    }

    /// Bytes that its lists take.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.iter().flatten().map(Entry::bytes).sum()
    }

    /// Every model, those on disk in the server's order, then those that are only in memory.
    pub(crate) fn models(&self) -> Vec<Model> {
        let parsed = |list| {
            self.entries[list as usize].iter().filter_map(|entry| {
                let json: Value = serde_json::from_str(&entry.text).unwrap_or_default();
                Some((entry.key.0.clone(), ModelName::parse(&entry.key.0)?, json))
            })
        };
        let on_disk = parsed(List::Tags).map(|(label, name, json)| Model {
            label,
            name,
            size: number(&json, "size"),
            kind: ["parameter_size", "quantization_level"]
                .map(|member| fact(&json["details"], member)),
            loaded: None,
        });
        let mut models: Vec<Model> = on_disk.collect();
        for (label, name, json) in parsed(List::Loaded) {
            let loaded = Some(Loaded {
                size: number(&json, "size"),
                size_vram: number(&json, "size_vram"),
                expires_at: fact(&json, "expires_at"),
                context_length: number(&json, "context_length"),
            });
            let kind = Default::default();
            match models.iter_mut().find(|model| model.name == name) {
                Some(model) => model.loaded = loaded,
                None => models.push(Model { label, name, size: 0, kind, loaded }),
            }
        }
        models
    }

    /// How many models are on disk.
    pub(crate) fn len(&self) -> usize {
        self.on_disk.len()
    }
}

/// One list over several servers, as JSON: the same name and digest once, newest first as Ollama does.
pub fn merged(list: List, inventories: &[Arc<Inventory>]) -> String {
    let mut seen = HashSet::new();
    let mut entries: Vec<&Entry> = inventories
        .iter()
        .flat_map(|inventory| &inventory.entries[list as usize])
        .filter(|entry| seen.insert(&entry.key))
        .collect();
    if list != List::Loaded {
        entries.sort_by_key(|entry| Reverse(&entry.time));
    }
    let texts: Vec<&str> = entries.iter().map(|entry| entry.text.as_str()).collect();
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
        assert_eq!(merged(List::Loaded, &[Arc::new(rest)]), r#"{"models":[]}"#);
        for junk in ["", "[]", "{\"models\":3}", "{\"models\":[1,{}]}", "<html>"] {
            assert_eq!(Inventory::new([junk, junk, junk], None).len(), 0, "{junk}");
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
    fn list_of(list: List, inventories: &[Arc<Inventory>]) -> Value {
        serde_json::from_str(&merged(list, inventories)).expect("JSON")
    }

    #[test]
    fn merged_lists_hold_each_model_once() {
        let tags = |entries: &[(&str, &str, &str)]| {
            let models = entries.iter().map(|(name, digest, at)| {
                json!({"name": name, "model": name, "digest": digest, "modified_at": at})
            });
            json!({ "models": models.collect::<Vec<_>>() }).to_string()
        };
        let one = tags(&[("a:latest", "1", "2026-01-02"), ("b:latest", "2", "2026-01-01")]);
        let two = tags(&[("b:latest", "3", "2026-01-03"), ("a:latest", "1", "2025-01-01")]);
        let openai = r#"{"object":"list","data":[{"id":"a","created":5},{"id":"b","created":9}]}"#;
        let inventories =
            [&one, &two].map(|list| Arc::new(Inventory::new([list.as_str(), list, openai], None)));
        let tags = list_of(List::Tags, &inventories);
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
        assert_eq!(list_of(List::OpenAi, &inventories)["data"][0]["id"], "b");
        assert_eq!(list_of(List::OpenAi, &inventories)["data"].as_array().map(Vec::len), Some(2));
        assert_eq!(merged(List::Tags, &[]), r#"{"models":[]}"#);
    }
}
