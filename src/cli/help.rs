//! The pages of the help, made of the tables.

use super::commands::{Action, COMMANDS, CommandSpec};
use super::options::either;
use super::topics::{TOPICS, Topic, options};

const WIDTH: usize = 80;
/// Where descriptions begin.
const COLUMN: usize = 24;

/// Options that the first page shows, each in one line.
const MOST_USED: &[&str] = &["mode", "ollama", "server"];

/// `ollana --help`: with the prompt below it, it fits a screen of 24 lines.
pub(super) fn overview() -> String {
    let mut page = String::from(
        "Ollama over LAN. Usage: ollana [COMMAND] [OPTION ...]; without one it serves.\n",
    );
    for command in COMMANDS {
        let about = match command.action {
            Action::Help => format!("on a command, {}", only_topics().join(", ")),
            _ => command.about.to_owned(),
        };
        entry(&mut page, command.usage, &about);
    }
    page.push_str(
        "Options; more: ollana help options. Each is a variable too: OLLANA_MODE=both.\n",
    );
    for option in options().filter(|option| MOST_USED.contains(&option.name())) {
        entry(&mut page, &option.usage(), option.text);
    }
    page
}

/// `ollana help PAGE`: a command, a topic, or both where they have the same name.
pub(super) fn page(name: &str) -> Option<String> {
    let command = COMMANDS.iter().find(|command| command.name() == name).map(command_page);
    let topic = TOPICS.iter().find(|topic| topic.name == name).map(topic_page);
    let pages: Vec<String> = command.into_iter().chain(topic).collect();
    (!pages.is_empty()).then(|| pages.join("\n"))
}

/// `ollana COMMAND --help`
pub(super) fn command_page(command: &CommandSpec) -> String {
    let mut page = format!("Usage: ollana {}", command.synopsis());
    if command.taken().next().is_some() {
        page.push_str(" [OPTION ...]");
    }
    page.push_str("\n\n");
    paragraph(&mut page, 0, &command.description());
    if !command.switches.is_empty() {
        page.push('\n');
    }
    for switch in command.switches {
        entry(&mut page, &switch.usage(), switch.text);
    }
    if matches!(command.action, Action::Serve) {
        let pages = TOPICS.iter().filter(|topic| !topic.options.is_empty());
        let pages: Vec<&str> = pages.map(|topic| topic.name).collect();
        let text = format!("It takes all options: ollana help {}.", either(&pages));
        page.push('\n');
        paragraph(&mut page, 0, &text);
    } else if command.taken().next().is_some() {
        page.push_str("\nOptions:\n");
        for option in command.taken() {
            entry(&mut page, &option.usage(), &option.description());
        }
    }
    page
}

fn topic_page(topic: &Topic) -> String {
    let mut page = String::new();
    if !topic.options.is_empty() {
        paragraph(&mut page, 0, topic.intro);
    }
    for option in topic.options {
        entry(&mut page, &option.usage(), &option.description());
    }
    for (usage, text) in topic.others {
        entry(&mut page, usage, text);
    }
    page + topic.text
}

/// What there is help about, for a user who asked about something else.
pub(super) fn contents() -> String {
    let mut text = String::new();
    let commands: Vec<&str> = COMMANDS.iter().map(|command| command.name()).collect();
    paragraph(&mut text, 2, &format!("commands: {}", commands.join(", ")));
    paragraph(&mut text, 2, &format!("topics: {}", topics().join(", ")));
    text.trim_end().to_owned()
}

/// Those that aren't named as a command is.
fn only_topics() -> Vec<&'static str> {
    let is_command = |name: &&str| COMMANDS.iter().any(|command| command.name() == *name);
    topics().into_iter().filter(|name| !is_command(name)).collect()
}

fn topics() -> Vec<&'static str> {
    TOPICS.iter().map(|topic| topic.name).collect()
}

/// What a user writes, and beside it what that does.
fn entry(page: &mut String, usage: &str, text: &str) {
    let gap = if usage.len() < COLUMN - 2 { " " } else { "  " };
    page.push_str(&format!("  {usage:<width$}{gap}", width = COLUMN - 3));
    paragraph(page, COLUMN, text);
}

/// Goes on in the page's last line, and then in further ones that are indented.
fn paragraph(page: &mut String, indent: usize, text: &str) {
    let mut column = page.rsplit('\n').next().unwrap_or_default().chars().count();
    let mut gap = "";
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if !gap.is_empty() && column + 1 + width > WIDTH {
            page.push_str(&format!("\n{:indent$}", ""));
            (column, gap) = (indent, "");
        }
        page.extend([gap, word]);
        column += gap.len() + width;
        gap = " ";
    }
    page.push('\n');
}
