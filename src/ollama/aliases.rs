//! Names that stand for other models (`--alias`): programs ask for `gpt-4o`, and get the first model
//! of a list that some server has. Pure.

use serde_json::Value;

use super::endpoints::List;
use super::entry::Entry;
use super::model_name::ModelName;

/// A name, and the models that it stands for, the best one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// As the user writes it.
    pub(crate) label: String,
    name: ModelName,
    pub(crate) models: Vec<(String, ModelName)>,
}

impl Alias {
    /// The first of its models that is to be had.
    pub(crate) fn model(&self, is_had: impl Fn(&ModelName) -> bool) -> Option<&str> {
        self.models.iter().find(|(_, model)| is_had(model)).map(|(label, _)| label.as_str())
    }

    /// The first of its models, which counts where nobody has any.
    pub(crate) fn first(&self) -> &str {
        self.models.first().map_or("", |(label, _)| label)
    }
}

/// All aliases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases(Vec<Alias>);

impl Aliases {
    /// Adds `NAME=MODEL[,MODEL…]`. A part without a name belongs to the alias before, as variables part
    /// lists at commas; further models of a known alias come behind those that it has.
    ///
    /// # Errors
    /// What is expected.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let wrong =
            || format!("{text}: expected NAME=MODEL[,MODEL...], such as gpt-4o=qwen3,llama3.2");
        let (label, models) = match (text.split_once('='), self.0.last()) {
            (Some((label, models)), _) => (label.trim().to_owned(), models),
            (None, Some(last)) => (last.label.clone(), text),
            (None, None) => return Err(wrong()),
        };
        let name = ModelName::parse(&label).ok_or_else(wrong)?;
        let named = |model: &str| Some((model.trim().to_owned(), ModelName::parse(model)?));
        let models: Option<Vec<_>> = models.split(',').map(named).collect();
        let models = models.ok_or_else(wrong)?;
        if models.iter().any(|(_, model)| *model == name) {
            return Err(format!("{text}: {label} can't stand for itself"));
        }
        match self.0.iter_mut().find(|alias| alias.name == name) {
            Some(known) => known.models.extend(models),
            None => self.0.push(Alias { label, name, models }),
        }
        Ok(())
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn all(&self) -> &[Alias] {
        &self.0
    }

    /// The alias that a request names.
    pub(crate) fn find(&self, name: &str) -> Option<&Alias> {
        self.named(&ModelName::parse(name)?)
    }

    /// The alias of this name.
    pub(crate) fn named(&self, name: &ModelName) -> Option<&Alias> {
        self.0.iter().find(|alias| alias.name == *name)
    }

    /// Entries for the aliases in a list that has these: each is that of its model, under another name.
    /// What is in memory has its own name only.
    pub(super) fn entries(&self, list: List, entries: &[&Entry]) -> Vec<String> {
        if list == List::Loaded {
            return Vec::new();
        }
        let entry = |alias: &Alias| {
            let of = |model: &ModelName| entries.iter().find(|entry| entry.name == *model);
            let entry = alias.models.iter().find_map(|(_, model)| of(model))?;
            let mut json: Value = serde_json::from_str(&entry.text).ok()?;
            if list == List::OpenAi {
                json["id"] = alias.label.as_str().into();
            } else {
                let name = alias.name.as_str();
                (json["name"], json["model"]) = (name.into(), name.into());
            }
            Some(json.to_string())
        };
        self.0.iter().filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(texts: &[&str]) -> Aliases {
        let mut aliases = Aliases::default();
        texts.iter().for_each(|text| aliases.add(text).expect(text));
        aliases
    }

    fn models<'a>(aliases: &'a Aliases, name: &str) -> Vec<&'a str> {
        let alias = aliases.find(name);
        alias.map_or(Vec::new(), |it| it.models.iter().map(|(label, _)| label.as_str()).collect())
    }

    #[test]
    fn an_alias_has_models_in_the_order_given() {
        // As on a command line, and as a variable is split.
        for texts in [
            &["gpt-4o=Qwen3:8b, llama3.2", "fast=a"][..],
            &["gpt-4o=Qwen3:8b", "llama3.2", "fast=a"],
        ] {
            let aliases = aliases(texts);
            assert_eq!(models(&aliases, "GPT-4o:latest"), ["Qwen3:8b", "llama3.2"]);
            assert_eq!(models(&aliases, "fast"), ["a"]);
            assert_eq!(models(&aliases, "gpt-4o:mini"), [""; 0]);
        }
        assert_eq!(models(&aliases(&["a=b", "c=d", "A=e"]), "a"), ["b", "e"]);
        for wrong in ["", "a", "=a", "a=", "a=b,", "a=,b", "a=a", "a=b,A:latest"] {
            assert!(Aliases::default().add(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_stands_for_the_first_model_that_is_had() {
        let aliases = aliases(&["fast=a,b"]);
        let model = |had: &[&str]| {
            let is_had = |name: &ModelName| had.contains(&name.as_str());
            aliases.find("fast").and_then(|alias| alias.model(is_had).map(str::to_owned))
        };
        assert_eq!(model(&["b:latest"]).as_deref(), Some("b"));
        assert_eq!(model(&["b:latest", "a:latest"]).as_deref(), Some("a"));
        assert_eq!(model(&["c:latest"]), None);
    }
}
