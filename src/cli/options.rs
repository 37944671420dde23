//! What an option is: how it is written and shown, and what its value does to the settings.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::config::{self, ServerName, Settings};
use crate::ollama::model_name::ModelName;

/// An option with a value; the table of all is [`super::topics::TOPICS`].
pub(crate) struct OptionSpec {
    /// As it is written, without dashes: `listen ADDR:PORT`.
    usage: &'static str,
    pub(super) text: &'static str,
    /// As it is shown; empty if there is none.
    pub(super) default: &'static str,
    meaning: Meaning,
}

type Effect = fn(&mut Settings);
type Setter = fn(&mut Settings, &str) -> Result<(), String>;

/// What an option does with its value.
pub(super) enum Meaning {
    /// One of these words, in any case; each does something.
    Words(&'static [(&'static str, Effect)]),
    /// `on` or `off`.
    Switch(fn(&mut Settings) -> &mut bool),
    Time(fn(&mut Settings) -> &mut Duration),
    /// Everything else that is given once.
    Scalar(Setter),
    /// May be repeated; the second function forgets what was given so far.
    List(Setter, Effect),
}

const ON_OFF: [&str; 2] = ["on", "off"];

pub(super) const fn option(
    usage: &'static str,
    text: &'static str,
    default: &'static str,
    meaning: Meaning,
) -> OptionSpec {
    OptionSpec { usage, text, default, meaning }
}

impl OptionSpec {
    pub(crate) fn name(&self) -> &'static str {
        self.usage.split_once(' ').map_or(self.usage, |(name, _)| name)
    }

    /// What stands for its value in the help, such as `ADDR:PORT`.
    pub(crate) fn value(&self) -> &'static str {
        self.usage.split_once(' ').map_or("", |(_, value)| value)
    }

    /// Gives it a value; one of a list is added to those before. The error says what is expected.
    pub(super) fn set(&self, settings: &mut Settings, value: &str) -> Result<(), String> {
        let expected = || format!("{value}: expected {}", either(&self.choices()));
        let is_meant = |word: &str| word.eq_ignore_ascii_case(value);
        match self.meaning {
            Meaning::Words(words) => {
                let word = words.iter().find(|(word, _)| is_meant(word));
                word.map(|(_, set)| set(settings)).ok_or_else(expected)
            }
            Meaning::Switch(field) => {
                let word = ON_OFF.iter().position(|word| is_meant(word));
                word.map(|word| *field(settings) = word == 0).ok_or_else(expected)
            }
            Meaning::Time(field) => {
                config::parse_duration(value).map(|time| *field(settings) = time)
            }
            Meaning::Scalar(set) | Meaning::List(set, _) => set(settings, value),
        }
    }

    /// Forgets what a list has from elsewhere.
    pub(super) fn clear(&self, settings: &mut Settings) {
        if let Meaning::List(_, clear) = self.meaning {
            clear(settings);
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.meaning, Meaning::List(..))
    }

    /// The words that it takes, if it takes only these.
    pub(crate) fn choices(&self) -> Vec<&'static str> {
        match self.meaning {
            Meaning::Words(words) => words.iter().map(|(word, _)| *word).collect(),
            Meaning::Switch(_) => ON_OFF.to_vec(),
            _ => Vec::new(),
        }
    }

    /// The variable that does the same, such as `OLLANA_LOG_LEVEL`.
    pub(super) fn variable(&self) -> String {
        format!("OLLANA_{}", self.name().to_uppercase().replace('-', "_"))
    }

    /// As it is written: `--listen ADDR:PORT`.
    pub(crate) fn usage(&self) -> String {
        format!("--{}", self.usage)
    }

    /// What it does, in a line: its text, whether it may be repeated, its default.
    pub(crate) fn description(&self) -> String {
        let repeatable = if self.is_list() { "; repeatable" } else { "" };
        match self.default {
            "" => format!("{}{repeatable}", self.text),
            default => format!("{}{repeatable} [{default}]", self.text),
        }
    }
}

/// `on` stands for the default.
pub(super) fn keep_awake(value: &str) -> Result<Option<Duration>, String> {
    match value.to_ascii_lowercase().as_str() {
        "off" => Ok(None),
        "on" => Ok(Settings::default().keep_awake),
        _ => config::parse_duration(value).map(Some),
    }
}

/// `auto, client, server or both`
pub(super) fn either(words: &[&str]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

pub(super) fn text(value: &str) -> Result<String, String> {
    Ok(value.to_owned())
}

/// A name in a `Host` field, without its port and the dot that may end it.
pub(super) fn host_name(value: &str) -> Result<String, String> {
    let host = config::parse_host_port(value, 0).map(|named| named.host).unwrap_or_default();
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    // Only an IPv6 address has colons, perhaps behind them a zone.
    if name.contains(':') || name.parse::<IpAddr>().is_ok() {
        return Err(format!(
            "{value}: expected a name; the address to answer at is --listen ADDR:PORT"
        ));
    }
    match name.as_str() {
        "" => Err(format!("{value}: expected a name, such as gpu.example.com")),
        _ => Ok(name),
    }
}

pub(super) fn absolute(value: &str) -> Result<PathBuf, String> {
    std::path::absolute(value).map_err(|error| format!("{value}: {error}"))
}

pub(super) fn number<T>(text: &str, least: T, most: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display + Copy,
{
    let n = text.parse().ok().filter(|n| *n >= least && *n <= most);
    n.ok_or_else(|| format!("{text}: expected a number from {least} to {most}"))
}

/// A size of a request head: `1k` to `1m`.
pub(super) fn head_size(text: &str) -> Result<usize, String> {
    let size = Some(config::parse_size(text)?).filter(|size| (1 << 10..=1 << 20).contains(size));
    size.ok_or_else(|| format!("{text}: expected 1k to 1m"))
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text}: expected ADDR:PORT, such as 127.0.0.1:11434"))
}

/// `HOST[:PORT]` of a proxy or an Ollama.
pub(super) fn server(text: &str) -> Result<ServerName, String> {
    // As people have it in OLLAMA_HOST.
    let named = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let server = config::parse_host_port(named, 0)?;
    let is_zero = config::parse_host_port(named, 1)?.port == 0;
    match server.host.is_empty() || is_zero {
        true => Err(format!("{text}: expected HOST or HOST:PORT")),
        false => Ok(server),
    }
}

/// `MODEL=SERVER`
pub(super) fn route(text: &str) -> Result<(ModelName, String), String> {
    let parts = text.split_once('=').map(|(model, server)| (model, server.trim()));
    parts
        .filter(|(_, server)| !server.is_empty())
        .and_then(|(model, server)| Some((ModelName::parse(model)?, server.to_owned())))
        .ok_or_else(|| format!("{text}: expected MODEL=SERVER, such as llama3.2=desktop"))
}
