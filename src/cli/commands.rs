//! The table of commands: how each is written, what it does, and which options it heeds.

use super::options::OptionSpec;
use super::topics::{TOPICS, options};

/// A command.
pub(crate) struct CommandSpec {
    /// As it is written, with a word for each operand: `pair [CODE [ADDRESS]]`.
    pub(super) usage: &'static str,
    pub(super) action: Action,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// What else is to be known about it.
    more: &'static str,
    pub(crate) switches: &'static [Switch],
    /// The options that change what it does. It accepts the others too, so that the variables of a
    /// service can be used with every command.
    pub(super) options: &'static [&'static str],
    /// What an operand may be, if that is a list.
    pub(crate) words: fn() -> Vec<&'static str>,
}

/// An option without a value, of one command.
pub(crate) struct Switch {
    /// Without dashes.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

#[derive(Clone, Copy)]
pub(super) enum Action {
    Serve,
    Help,
    Tool(Verb),
}

/// What a command besides `serve` and `help` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Completions,
    Discover,
    Doctor,
    Man,
    Models,
    Pair,
    Peers,
    Status,
    Takeover,
    Unpair,
}

const JSON: Switch = Switch { name: "json", text: "print JSON, for programs" };

/// Where a running ollana is asked.
const RUNNING: &[&str] = &["listen", "share", "connect-timeout"];

#[rustfmt::skip]
const DOCTORS: &[&str] = &[
    "mode", "listen", "share", "ollama", "server", "discovery-port", "interface", "connect-timeout",
    "state-dir", "key-file", "unpaired",
];

const fn command(usage: &'static str, action: Action, about: &'static str) -> CommandSpec {
    CommandSpec { usage, action, about, more: "", switches: &[], options: &[], words: Vec::new }
}

const fn tool(usage: &'static str, verb: Verb, about: &'static str) -> CommandSpec {
    command(usage, Action::Tool(verb), about)
}

pub(crate) const COMMANDS: &[CommandSpec] = &[
    command("serve", Action::Serve, "share this machine's Ollama, or use the LAN's")
        .more(
            "Where an Ollama answers on this machine, ollana shares it (server mode). Elsewhere \
             it finds the servers and answers on Ollama's own port (client mode).",
        )
        .switches(&[Switch {
            name: "daemon",
            text: "go to the background once it is ready; exit code 0 says that it is",
        }]),
    tool("status", Verb::Status, "servers, queue and this machine, as ollana sees them")
        .more("Asks the ollana that runs on this machine, at --listen if that is given.")
        .switches(&[
            Switch { name: "watch", text: "show it anew every second, until q is pressed" },
            JSON,
        ])
        .options(RUNNING),
    tool("models", Verb::Models, "which server has which model, and how fast")
        .more("Asks the ollana that runs on this machine, at --listen if that is given.")
        .switches(&[JSON])
        .options(RUNNING),
    tool("discover", Verb::Discover, "look around once: who answers, on which interface")
        .more("Needs no running ollana. Exit code 1: nobody answered.")
        .switches(&[JSON])
        .options(&["discovery-port", "interface", "state-dir", "key-file", "unpaired"]),
    tool("doctor", Verb::Doctor, "say what is wrong and what to do about it")
        .more(
            "Looks at ports, interfaces, firewall, Ollama and servers; with sudo it sees more. It \
             asks a running ollana for its options. Exit code 1: something is wrong.",
        )
        .switches(&[JSON])
        .options(DOCTORS),
    tool(
        "pair [CODE [ADDRESS]]",
        Verb::Pair,
        "pair with another machine: all between them is encrypted",
    )
    .more(
        "Without a CODE it shows one, for three minutes. With a CODE it takes the one that \
             the other machine shows; - asks for it. The other machine is looked for by \
             broadcast, or is at ADDRESS. A running ollana takes the key up by itself.",
    )
    .options(&["discovery-port", "interface", "state-dir"]),
    tool("peers", Verb::Peers, "show the paired machines").options(&["state-dir", "key-file"]),
    tool("unpair NAME", Verb::Unpair, "forget a paired machine: its key is worth nothing here")
        .more("'ollana peers' shows the NAME. A running ollana cuts its connections by itself.")
        .options(&["state-dir"]),
    tool("takeover", Verb::Takeover, "make Ollama's port 11434 show all models of the LAN")
        .more(
            "Moves an Ollama that systemd runs to port 11438 and sets ollana to --mode both; says \
             what it will do and asks first.",
        )
        .switches(&[
            Switch { name: "yes", text: "don't ask first" },
            Switch { name: "undo", text: "move it back" },
        ])
        .options(&["ollama", "connect-timeout"]),
    tool("completions SHELL", Verb::Completions, "print completions for bash, zsh or fish")
        .words(|| vec!["bash", "zsh", "fish"]),
    tool("man", Verb::Man, "print the man page (ollana man | man -l -)"),
    command("help [COMMAND|TOPIC]", Action::Help, "show help about a command or a topic")
        .more("Without either it shows all commands and the most used options.")
        .words(pages),
];

impl CommandSpec {
    const fn more(self, more: &'static str) -> Self {
        CommandSpec { more, ..self }
    }

    const fn switches(self, switches: &'static [Switch]) -> Self {
        CommandSpec { switches, ..self }
    }

    const fn options(self, options: &'static [&'static str]) -> Self {
        CommandSpec { options, ..self }
    }

    const fn words(self, words: fn() -> Vec<&'static str>) -> Self {
        CommandSpec { words, ..self }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.usage.split(' ').next().unwrap_or_default()
    }

    pub(super) fn most_operands(&self) -> usize {
        self.usage.split(' ').count() - 1
    }

    /// As it is written, with its switches.
    pub(crate) fn synopsis(&self) -> String {
        let switches = self.switches.iter().map(|switch| format!(" [--{}]", switch.name));
        self.usage.to_owned() + &switches.collect::<String>()
    }

    /// What it does, in sentences.
    pub(crate) fn description(&self) -> String {
        let (first, rest) = self.about.split_at(1);
        format!("{}{rest}. {}", first.to_uppercase(), self.more)
    }

    /// The options that change what it does.
    pub(super) fn taken(&self) -> impl Iterator<Item = &'static OptionSpec> {
        let is_serve = matches!(self.action, Action::Serve);
        options().filter(move |option| is_serve || self.options.contains(&option.name()))
    }
}

/// Everything that there is help about.
pub(super) fn pages() -> Vec<&'static str> {
    let commands = COMMANDS.iter().map(|command| command.name());
    let topics = TOPICS.iter().map(|topic| topic.name);
    let topics = topics.filter(|topic| !commands.clone().any(|name| name == *topic));
    commands.clone().chain(topics).collect()
}
