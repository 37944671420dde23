//! One list over several servers. Pure.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use crate::ollama::endpoints::List;
use crate::ollama::inventory::{Entry, Inventory};

/// The list as JSON: the same name and digest once, newest first as Ollama does.
pub fn merged(list: List, inventories: &[Arc<Inventory>]) -> String {
    let mut seen = HashSet::new();
    let mut entries: Vec<&Entry> = inventories
        .iter()
        .flat_map(|inventory| inventory.entries(list))
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
    use serde_json::{Value, json};

    use super::*;

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
