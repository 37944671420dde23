//! An entry of a list of models. Pure.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use super::{endpoints::List, facts::Facts, model_name::ModelName};

pub(super) fn text_of<'a>(json: &'a Value, member: &str) -> &'a str {
    json[member].as_str().unwrap_or_default()
}

fn name_of(entry: &Value) -> &str {
    entry["model"].as_str().unwrap_or_else(|| text_of(entry, "name"))
}

/// An entry of a list: as text, because parsed JSON takes up to sixteen times the memory, and
/// servers may send entries of any length.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// As the server writes its name.
    pub(super) label: String,
    pub(super) name: ModelName,
    pub(super) digest: String,
    /// It is a stub of a model that runs elsewhere.
    pub(super) is_remote: bool,
    /// When it was made or changed, or leaves the memory, in nanoseconds since 1970.
    pub(super) time: i128,
    pub(super) facts: Facts,
    pub(super) text: String,
}

impl Entry {
    /// `None` if it names no model.
    pub(super) fn new(list: List, entry: &Value, text: String) -> Option<Self> {
        let (label, digest) = match list {
            List::Tags | List::Loaded => (name_of(entry), text_of(entry, "digest")),
            List::OpenAi => (text_of(entry, "id"), ""),
        };
        let created = || i128::from(entry["created"].as_f64().unwrap_or_default() as i64);
        let member = if list == List::Loaded { "expires_at" } else { "modified_at" };
        let moment = nanoseconds(text_of(entry, member));
        Some(Entry {
            label: label.to_owned(),
            name: ModelName::parse(label)?,
            digest: digest.to_owned(),
            is_remote: !text_of(entry, "remote_host").is_empty(),
            time: moment.unwrap_or_else(|| created() * 1_000_000_000),
            facts: Facts::of(entry),
            text,
        })
    }

    /// Bytes of its texts.
    pub(super) fn size(&self) -> usize {
        2 * self.label.len() + self.digest.len() + self.text.len()
    }

    /// What makes two entries one. Programs know names only; of what is in memory, `ollama ps`
    /// shows the digest too.
    pub(super) fn key(&self, list: List) -> (&ModelName, &str) {
        (&self.name, if list == List::Loaded { &self.digest } else { "" })
    }
}

/// The moment of a text such as `2026-08-20T10:11:12.123456789+02:00` (RFC 3339), or of a day, in
/// nanoseconds since 1970.
fn nanoseconds(text: &str) -> Option<i128> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok();
    let day = || Date::parse(text.get(..10)?, format_description!("[year]-[month]-[day]")).ok();
    let moment = moment.or_else(|| Some(day()?.midnight().assume_utc()));
    moment.map(OffsetDateTime::unix_timestamp_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_compare_across_time_zones() {
        assert_eq!(nanoseconds("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        assert_eq!(nanoseconds("2026-03-01T00:00:00-01:30"), nanoseconds("2026-03-01T01:30:00Z"));
        assert_eq!(
            nanoseconds("2024-03-01T00:00:00Z")
                .zip(nanoseconds("2024-02-28T00:00:00Z"))
                .map(|(a, b)| a - b),
            Some(2 * 86_400 * 1_000_000_000)
        );
        for text in ["", "2026", "soon", "é".repeat(30).as_str()] {
            assert_eq!(nanoseconds(text), None, "{text}");
        }
    }
}
