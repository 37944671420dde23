//! What a server has: its models, and those loaded; and the lists of several servers as one. Pure.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::aliases::Aliases;
use super::entry::{Entry, text_of};
use super::facts::{Capabilities, Facts, number};
use super::list_reader::{ListReader, Read};
use super::{endpoints::List, model_name::ModelName};
use crate::counters::Share;

/// Longest fact about a model that is told, in characters.
const MAX_FACT: usize = 64;

fn fact(json: &Value, member: &str) -> String {
    text_of(json, member).chars().take(MAX_FACT).collect()
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
    /// Empty if it doesn't say.
    pub(crate) digest: String,
    pub(crate) modified_at: String,
    /// `None` if it doesn't say.
    pub(crate) capabilities: Option<Capabilities>,
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

/// One of a server's lists.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    entries: Arc<Entries>,
    is_known: bool,
    /// It came to its end, whatever is missing in it.
    is_whole: bool,
    problem: Option<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Entries(Vec<Entry>, Share);

impl From<Read> for Told {
    fn from(read: Read) -> Self {
        let Read { entries, share, is_whole, problem } = read;
        // What there is of a list that broke off is more than nothing.
        let is_known = is_whole || !entries.is_empty();
        Told { entries: Arc::new(Entries(entries, share)), is_known, is_whole, problem }
    }
}

/// What one server has, as it said itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// In the order of [`List::ALL`].
    lists: [Told; 3],
    on_disk: HashMap<ModelName, Facts>,
    loaded: HashMap<ModelName, Facts>,
    /// Stubs of models that run elsewhere.
    remote: HashSet<ModelName>,
    /// Bytes free for more models, where the server says so.
    pub(crate) room: Option<u64>,
    /// Whether its Ollama lets models run in the cloud, if it says so.
    pub(crate) cloud: Option<bool>,
}

impl Inventory {
    /// Puts the answers to the three lists together, in the order of [`List::ALL`]; an empty one
    /// stands for a list that the server doesn't have. `room` is in bytes.
    pub fn new(answers: [&str; 3], room: Option<u64>) -> Self {
        let mut lists = List::ALL.into_iter();
        let read = |answer: &str| match lists.next() {
            Some(list) if !answer.is_empty() => {
                let mut reader = ListReader::new(list);
                reader.push(answer.as_bytes());
                reader.finish(None)
            }
            _ => Read::none(),
        };
        Inventory::of(answers.map(read), room)
    }

    /// The same from lists that were read as they came.
    pub(crate) fn of(lists: [Read; 3], room: Option<u64>) -> Self {
        let inventory = Inventory { lists: lists.map(Told::from), room, ..Inventory::default() };
        inventory.indexed()
    }

    fn indexed(mut self) -> Self {
        let facts = |list: List| {
            self.entries(list).iter().map(|entry| (entry.name.clone(), entry.facts)).collect()
        };
        (self.on_disk, self.loaded) = (facts(List::Tags), facts(List::Loaded));
        let remote = self.entries(List::Tags).iter().filter(|entry| entry.is_remote);
        self.remote = remote.map(|entry| entry.name.clone()).collect();
        self
    }

    fn entries(&self, list: List) -> &[Entry] {
        &self.lists[list as usize].entries.0
    }

    /// With the last good lists of this server where these failed.
    pub(crate) fn keeping(mut self, last: &Inventory) -> Self {
        for (list, last) in self.lists.iter_mut().zip(&last.lists) {
            if !list.is_whole && last.is_known {
                (list.entries, list.is_known) = (Arc::clone(&last.entries), true);
            }
        }
        self.indexed()
    }

    /// The same without what programs are better not told, because they wouldn't get it there.
    pub(crate) fn without(self: &Arc<Self>, hidden: impl Fn(&ModelName) -> bool) -> Arc<Self> {
        if !self.on_disk.keys().any(&hidden) {
            return Arc::clone(self);
        }
        let mut rest = Inventory::clone(self);
        for list in [List::Tags, List::OpenAi] {
            rest.retain(list, |entry| !hidden(&entry.name));
        }
        Arc::new(rest.indexed())
    }

    fn retain(&mut self, list: List, is_kept: impl Fn(&Entry) -> bool) {
        let rest = self.entries(list).iter().filter(|entry| is_kept(entry)).cloned().collect();
        self.lists[list as usize].entries = Arc::new(Entries(rest, Share::default()));
    }

    /// Whether it tells what is on disk.
    pub(crate) fn is_known(&self) -> bool {
        self.lists[List::Tags as usize].is_known
    }

    /// Whether there may be more on disk than it tells.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.lists[List::Tags as usize].problem.is_some()
    }

    /// What is wrong with its lists, for people.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.lists.iter().find_map(|list| list.problem.as_deref())
    }

    /// Whether the model is on this server's disk, as whatever is loaded must be.
    pub(crate) fn has(&self, model: &ModelName) -> bool {
        self.on_disk.contains_key(model) || self.loaded.contains_key(model)
    }

    /// Whether any of its models runs elsewhere.
    pub(crate) fn has_remote(&self) -> bool {
        !self.remote.is_empty()
    }

    /// Whether the model runs elsewhere.
    pub(crate) fn is_remote(&self, model: &ModelName) -> bool {
        self.remote.contains(model)
    }

    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        self.loaded.contains_key(model)
    }

    /// What it tells of the model as it is on disk, and as it is in memory.
    pub(crate) fn stored(&self, model: &ModelName) -> Facts {
        self.on_disk.get(model).copied().unwrap_or_default()
    }

    pub(crate) fn loaded(&self, model: &ModelName) -> Facts {
        self.loaded.get(model).copied().unwrap_or_default()
    }

    /// The same without this model in memory.
    pub(crate) fn unloaded(&self, model: &ModelName) -> Self {
        let mut rest = self.clone();
        rest.loaded.remove(model);
        rest.retain(List::Loaded, |entry| entry.name != *model);
        rest
    }

    /// The same without this model.
    pub(crate) fn removed(&self, model: &ModelName) -> Self {
        let mut rest = self.clone();
        List::ALL.into_iter().for_each(|list| rest.retain(list, |entry| entry.name != *model));
        rest.indexed()
    }

    /// What is on the disk alone, as much of it as `most` bytes hold.
    pub(crate) fn on_disk(&self, most: usize) -> Self {
        let mut left = most;
        let mut some = |list| {
            let fits = |entry: &&Entry| {
                let rest = left.checked_sub(entry.size());
                left = rest.unwrap_or(0);
                rest.is_some()
            };
            let entries = self.entries(list).iter().take_while(fits).cloned().collect();
            let entries = Arc::new(Entries(entries, Share::default()));
            Told { entries, is_known: true, is_whole: true, problem: None }
        };
        let lists = [some(List::Tags), Told::default(), some(List::OpenAi)];
        Inventory { lists, ..Inventory::default() }.indexed()
    }

    /// Bytes that its lists take.
    pub(crate) fn bytes(&self) -> usize {
        List::ALL.into_iter().flat_map(|list| self.entries(list)).map(Entry::size).sum()
    }

    /// Every model, those on disk in the server's order, then those that are only in memory.
    pub(crate) fn models(&self) -> Vec<Model> {
        let parsed = |list| {
            self.entries(list).iter().map(|entry| {
                let json: Value = serde_json::from_str(&entry.text).unwrap_or_default();
                (entry, json)
            })
        };
        let described = |entry: &Entry, json: &Value| Model {
            label: entry.label.clone(),
            name: entry.name.clone(),
            size: 0,
            kind: Default::default(),
            digest: entry.digest.chars().take(MAX_FACT).collect(),
            modified_at: fact(json, "modified_at"),
            capabilities: entry.facts.capabilities,
            loaded: None,
        };
        let on_disk = parsed(List::Tags).map(|(entry, json)| Model {
            size: number(&json, "size").unwrap_or(0),
            kind: ["parameter_size", "quantization_level"]
                .map(|member| fact(&json["details"], member)),
            ..described(entry, &json)
        });
        let mut models: Vec<Model> = on_disk.collect();
        for (entry, json) in parsed(List::Loaded) {
            let loaded = Some(Loaded {
                size: number(&json, "size").unwrap_or(0),
                size_vram: number(&json, "size_vram").unwrap_or(0),
                expires_at: fact(&json, "expires_at"),
                context_length: entry.facts.context,
            });
            match models.iter_mut().find(|model| model.name == entry.name) {
                Some(model) => model.loaded = loaded,
                None => models.push(Model { loaded, ..described(entry, &json) }),
            }
        }
        models
    }

    /// How many models are on disk.
    pub(crate) fn len(&self) -> usize {
        self.on_disk.len()
    }
}

/// Whether one of the servers has a model; a cloud's runs on any.
pub(crate) fn is_had(servers: &[(String, Arc<Inventory>)], model: &ModelName) -> bool {
    servers.iter().any(|(_, known)| known.has(model) || model.is_cloud())
}

/// One list over several servers, as JSON: each name once, as it was changed last or stays in memory
/// longest, and the latest first as Ollama does.
pub fn merged(list: List, inventories: &[Arc<Inventory>]) -> String {
    merged_with(list, inventories, &Aliases::default())
}

/// The same with the aliases of what is listed.
pub(crate) fn merged_with(list: List, inventories: &[Arc<Inventory>], aliases: &Aliases) -> String {
    let mut entries: Vec<&Entry> =
        inventories.iter().flat_map(|inventory| inventory.entries(list)).collect();
    entries.sort_by_key(|entry| Reverse(entry.time));
    let mut seen = HashSet::new();
    entries.retain(|entry| seen.insert(entry.key(list)));
    let named = aliases.entries(list, &entries);
    entries.retain(|entry| list == List::Loaded || aliases.named(&entry.name).is_none());
    let texts = entries.iter().map(|entry| entry.text.as_str());
    let texts: Vec<&str> = texts.chain(named.iter().map(String::as_str)).collect();
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

    #[test]
    fn names_that_ollama_takes_for_one_are_listed_once() {
        let at = |hour: &str| format!("2026-08-20T{hour}");
        let one = tags(&[
            ("Alpha", "1", &at("10:00:00+02:00")),
            ("hf.co/a/b:q8", "2", &at("07:00:00.5Z")),
        ]);
        let two = tags(&[
            ("registry.ollama.ai/library/alpha:latest", "3", &at("09:30:00.25Z")),
            ("HF.co/a/b:Q8", "4", &at("07:00:00.25Z")),
        ]);
        let inventories = [&one, &two].map(|tags| Arc::new(Inventory::new([tags, "", ""], None)));
        let both = list_of(List::Tags, &inventories);
        let digests: Vec<&Value> = both["models"]
            .as_array()
            .expect("models")
            .iter()
            .map(|model| &model["digest"])
            .collect();
        assert_eq!(digests, ["3", "2"]);
    }

    #[test]
    fn the_last_good_list_is_kept() {
        let good = Inventory::new([&tags(&[("a", "1", "")]), &tags(&[("a", "1", "")]), ""], None);
        let failed = || Read::failed("x".to_owned());
        let broken = Inventory::of([failed(), Read::none(), failed()], Some(3));
        assert!(!broken.is_known() && broken.is_incomplete());
        let kept = broken.keeping(&good);
        assert!(kept.has(&name("a")) && !kept.has_loaded(&name("a")), "{kept:?}");
        assert_eq!((kept.problem(), kept.room, kept.is_known()), (Some("x"), Some(3), true));
        let none = Inventory::new([&tags(&[]), "", ""], None).keeping(&good);
        assert!(!none.has(&name("a")) && none.problem().is_none());
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
        assert_eq!(of(&tags), ["b:latest=3", "a:latest=1"]);
        assert_eq!(list_of(List::OpenAi, &inventories)["data"][0]["id"], "b");
        assert_eq!(list_of(List::OpenAi, &inventories)["data"].as_array().map(Vec::len), Some(2));
        assert_eq!(merged(List::Tags, &[]), r#"{"models":[]}"#);
    }

    #[test]
    fn what_stays_in_memory_longest_comes_first() {
        let loaded = |entries: &[(&str, &str)]| {
            let models = entries.iter().map(|(name, until)| {
                json!({"model": name, "digest": "1", "expires_at": format!("2026-11-29T{until}")})
            });
            json!({ "models": models.collect::<Vec<_>>() }).to_string()
        };
        let one = loaded(&[("x", "10:01:00Z"), ("z", "10:00:05.5Z")]);
        let two = loaded(&[("y", "11:00:00+00:30"), ("z", "12:00:00+01:00")]);
        let of = |list: &String| Arc::new(Inventory::new(["", list, ""], None));
        let both = list_of(List::Loaded, &[of(&one), of(&two)]);
        let names = |n: usize| [&both["models"][n]["model"], &both["models"][n]["expires_at"]];
        assert_eq!(names(0), ["z", "2026-11-29T12:00:00+01:00"]);
        assert_eq!([names(1)[0], names(2)[0]], ["y", "x"]);
        assert_eq!(both["models"].as_array().map(Vec::len), Some(3));
    }
}
