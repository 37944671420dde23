//! What the tables and the help text say, for whoever writes it in another form: the man page and
//! the completions. There is no second list that could drift from them.

use super::{
    HELP, HELP_ACCESS, HELP_COMMANDS, HELP_LIMITS, HELP_SERVICE, OPTIONS, SERVE_SWITCHES, VERBS,
    set,
};
use crate::config::Settings;

/// An option with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name without dashes.
    pub name: &'static str,
    /// What it takes, such as `ADDR:PORT`.
    pub value: &'static str,
    /// The words that it takes, if it takes only these.
    pub choices: Vec<String>,
    /// What it does, in a line.
    pub text: String,
}

/// A command, its own switches and the words that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedCommand {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub text: String,
    /// Options without a value that only it takes, without dashes.
    pub switches: &'static [&'static str],
    /// What may follow it, if that is known.
    pub words: &'static [&'static str],
}

/// An entry of a help text: `--mode MODE`, and what it says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How it is written.
    pub head: &'static str,
    /// What it does.
    pub text: String,
}

/// The entries of the help pages: options, commands, service, access, limits.
pub fn help_entries() -> [Vec<Entry>; 5] {
    [HELP, HELP_COMMANDS, HELP_SERVICE, HELP_ACCESS, HELP_LIMITS].map(entries)
}

/// Every option with a value.
pub fn options() -> Vec<Described> {
    let entries = help_entries().concat();
    let described = OPTIONS.iter().map(|name| {
        let flag = format!("--{name}");
        let is_told = |text: &str| words(text).any(|word| word == flag);
        let entry = entries.iter().find(|entry| is_told(entry.head));
        // Some are told in another one's line.
        let entry = entry.or_else(|| entries.iter().find(|entry| is_told(&entry.text)));
        let head = entry.map(|entry| entry.head).unwrap_or_default();
        let value = head.split(' ').skip_while(|word| *word != flag).nth(1).unwrap_or("VALUE");
        let text = entry.map(|entry| entry.text.clone()).unwrap_or_default();
        Described { name, value, choices: choices(name), text }
    });
    described.collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').map(|word| word.trim_end_matches([':', ',', ';']))
}

/// The words that an option takes, as its own complaint about another one lists them.
fn choices(name: &str) -> Vec<String> {
    let Err(complaint) = set(&mut Settings::default(), name, "\u{0}") else { return Vec::new() };
    let Some((_, list)) = complaint.split_once(": expected ") else { return Vec::new() };
    let list: Vec<String> = list.replace(" or ", ", ").split(", ").map(str::to_owned).collect();
    let is_word = |word: &String| word.bytes().all(|b| b.is_ascii_lowercase());
    if list.len() > 1 && list.iter().all(is_word) { list } else { Vec::new() }
}

/// Every command, `serve` first.
pub fn commands() -> Vec<DescribedCommand> {
    let entries = entries(HELP_COMMANDS);
    let text = |name: &str| {
        let entry = entries.iter().find(|entry| entry.head.split(' ').next() == Some(name));
        entry.map(|entry| entry.text.clone()).unwrap_or_default()
    };
    let own = VERBS.iter().map(|verb| (verb.name, verb.switches, verb.words));
    let help: &[&str] = &["access", "commands", "service", "limits"];
    [("serve", SERVE_SWITCHES, &[][..])]
        .into_iter()
        .chain(own)
        .chain([("help", &[][..], help)])
        .map(|(name, switches, words)| DescribedCommand { name, text: text(name), switches, words })
        .collect()
}

fn entries(text: &'static str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        match (indent, entries.last_mut()) {
            (2, _) => {
                let line = line.trim_start();
                let (head, text) = line.split_once("  ").unwrap_or((line, ""));
                entries.push(Entry { head, text: text.trim().to_owned() });
            }
            (3.., Some(entry)) => {
                entry.text.push(' ');
                entry.text.push_str(line.trim());
            }
            _ => {}
        }
    }
    entries.iter_mut().for_each(|entry| entry.text = entry.text.trim().to_owned());
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_described() {
        for option in options() {
            assert!(!option.text.is_empty(), "{option:?}");
        }
        for command in commands() {
            assert!(!command.text.is_empty(), "{command:?}");
        }
    }

    #[test]
    fn values_and_choices_are_the_parsers_own() {
        let options = options();
        let find = |name| options.iter().find(|option| option.name == name).expect("an option");
        assert_eq!(find("mode").choices, ["auto", "client", "server", "both"]);
        assert_eq!(find("log-level").choices, ["off", "error", "warn", "info", "debug"]);
        assert_eq!(find("log-format").choices, ["text", "json"]);
        for name in ["listen", "discovery-port", "head-timeout", "max-head", "server"] {
            assert_eq!(find(name).choices, [] as [&str; 0], "{name}");
        }
        assert_eq!(find("listen").value, "ADDR:PORT");
        assert_eq!(find("fall").value, "N");
        assert_eq!(find("log-file").value, "FILE");
        assert!(find("listen").text.ends_with("[client localhost:11434, server 0.0.0.0:11435]"));
    }
}
