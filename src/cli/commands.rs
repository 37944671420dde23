//! The table of commands: how each is written, what it does, and which options it heeds.

use Action::Tool;
use Verb::{
    Completions, Cp, Discover, Doctor, Forget, Man, Models, Pair, Peers, Pull, Service, Status,
    Takeover, Token, Unpair,
};

use super::options::OptionSpec;
use super::topics::{TOPICS, options};

pub(crate) struct CommandSpec {
    /// As it is written, with a word for each operand: `pair [CODE [ADDRESS]]`.
    pub(super) usage: &'static str,
    pub(super) action: Action,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    more: &'static str,
    pub(crate) switches: &'static [Switch],
    /// The options that change what it does. It accepts the others too, so that the variables of a
    /// service can be used with every command.
    pub(super) options: &'static [&'static str],
}

/// An option of one command.
pub(crate) struct Switch {
    pub(crate) name: &'static str,
    /// What it takes, such as `internet|any|SERVER`; empty if it takes no value.
    pub(crate) value: &'static str,
    pub(crate) text: &'static str,
}

impl Switch {
    const fn plain(name: &'static str, text: &'static str) -> Self {
        Switch { name, value: "", text }
    }

    /// As it is written: `--from internet|any|SERVER`.
    pub(crate) fn usage(&self) -> String {
        let gap = if self.value.is_empty() { "" } else { " " };
        format!("--{}{gap}{}", self.name, self.value)
    }

    /// The words that it takes, perhaps among others.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let is_word = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
        self.value.split('|').filter(is_word).collect()
    }
}

pub(super) enum Action {
    Serve,
    Help,
    Tool(Verb),
}

/// What a command besides `serve` and `help` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Completions,
    Cp,
    Discover,
    Doctor,
    Forget,
    Man,
    Models,
    Pair,
    Peers,
    Pull,
    Service,
    Status,
    Takeover,
    Token,
    Unpair,
}

/// A switch that stands for the operand.
pub(super) const ALL: &str = "all";
const DRY_RUN: Switch = Switch::plain("dry-run", "only say what would be done");
const JSON: Switch = Switch::plain("json", "print JSON, for programs");

/// Where a running ollana is asked.
const RUNNING: &[&str] = &["listen", "share", "connect-timeout"];

#[rustfmt::skip]
const DOCTORS: &[&str] = &[
    "mode", "listen", "share", "ollama", "server", "discovery-port", "interface", "connect-timeout",
    "state-dir", "key-file", "unpaired",
];

const fn command(
    usage: &'static str,
    action: Action,
    about: &'static str,
    more: &'static str,
    switches: &'static [Switch],
    options: &'static [&'static str],
) -> CommandSpec {
    CommandSpec { usage, action, about, more, switches, options }
}

/// Not formatted by rustfmt. A row is: how a command is written, what it does in a line, what else
/// is to be known of it, its switches, its options.
#[rustfmt::skip]
pub(crate) const COMMANDS: &[CommandSpec] = &[
    command("serve", Action::Serve, "share this machine's Ollama, or use the LAN's",
        "Where an Ollama answers on this machine, ollana shares it (server mode). Elsewhere it \
         finds the servers and answers on Ollama's own port (client mode).",
        &[Switch::plain("daemon",
            "go to the background once it is ready; exit code 0 says that it is"),
        Switch::plain("at-log-in",
            "as Windows starts it: log and process number go to the state folder, and it ends when \
             the number's file is gone")], &[]),
    command("status", Tool(Status), "servers, queue and this machine, as ollana sees them",
        "Asks the ollana that runs on this machine, at --listen if that is given.",
        &[Switch::plain("watch", "show it anew every second, until q is pressed"), JSON],
        RUNNING),
    command("models", Tool(Models), "which server has which model, and how fast",
        "Asks the ollana that runs on this machine, at --listen if that is given.",
        &[JSON], RUNNING),
    command("pull MODEL", Tool(Pull), "download a model; what the LAN has comes from there",
        "The registry says what belongs to the name; layers that a machine of the LAN has come \
         from there (ollana help sharing). MODEL@SERVER puts it on that server. The ollana that \
         runs on this machine does it, at --listen if that is given. Exit code 1: it failed.",
        &[Switch {
            name: "from",
            value: "internet|any|SERVER",
            text: "whom to ask for the bytes before the registry [any]",
        }], RUNNING),
    command("cp MODEL[@SERVER] [SERVER]", Tool(Cp), "copy a model to another machine, as it is",
        "From the first SERVER to the second one, which is this machine where none is named. It \
         needs no internet, and copies what was made there too, between paired machines. What had \
         the name before has it until the copy is whole. The ollana that runs on this machine does \
         it, at --listen if that is given. Exit code 1: it failed.",
        &[], RUNNING),
    command("forget NAME", Tool(Forget), "forget a server that is gone, and its models",
        "What a server has is remembered for 30 days while it is away: requests for its models are \
         told so. 'ollana models' shows the NAME. A server that is up is not forgotten. It lets the \
         ollana that runs on this machine do it, at --listen if that is given.",
        &[], &["listen", "share", "connect-timeout", "state-dir"]),
    command("discover", Tool(Discover), "look around once: who answers, on which interface",
        "Needs no running ollana. Exit code 1: nobody answered.",
        &[JSON], &["discovery-port", "interface", "state-dir", "key-file", "unpaired"]),
    command("doctor", Tool(Doctor), "say what is wrong and what to do about it",
        "Looks at ports, interfaces, firewall, Ollama and servers; with sudo it sees more. It asks \
         a running ollana for its options. Exit code 1: something is wrong.",
        &[JSON], DOCTORS),
    command("pair [CODE [ADDRESS]]", Tool(Pair),
        "pair with another machine: requests are encrypted then",
        "Without a CODE it shows one, for three minutes. With a CODE it takes the one that the \
         other machine shows; - asks for it. The other machine is looked for by broadcast, or is \
         at ADDRESS. A running ollana takes the key up by itself.",
        &[], &["discovery-port", "interface", "state-dir"]),
    command("peers", Tool(Peers), "show the paired machines", "", &[], &["state-dir", "key-file"]),
    command("unpair NAME", Tool(Unpair),
        "forget a paired machine: its key is worth nothing here",
        "'ollana peers' shows the NAME. A running ollana cuts its connections by itself. Where the \
         keys are gone, ollana doesn't start; --all lets it, without them.",
        &[Switch::plain(ALL, "forget all of them, also where their keys are gone")],
        &["state-dir"]),
    command("token ACTION [NAME]", Tool(Token),
        "keys for what can't run ollana: add, list, remove",
        "add prints a token for the device NAME, once, and where to send it; list shows the tokens \
         and how many requests came with each since the ollana here started; remove makes one \
         worth nothing. A running ollana takes changes up by itself.",
        &[], &["listen", "share", "connect-timeout", "state-dir", "unpaired"]),
    command("service ACTION", Tool(Service), "install, remove or show the service, open the firewall",
        "install has the system start this program now and at every boot (root's) or log-in, with \
         the options given here, else those that it had; remove undoes that; status exits with 0 if \
         it runs; firewall lets the LAN in at the ports of those options.",
        &[DRY_RUN, Switch::plain("undo", "close the firewall again")], &[]),
    command("takeover", Tool(Takeover), "make Ollama's port 11434 show all models of the LAN",
        "Moves an Ollama that systemd runs to port 11438 and sets ollana to --mode both; says what \
         it will do and asks first.",
        &[Switch::plain("yes", "don't ask first"), Switch::plain("undo", "move it back")],
        &["ollama", "connect-timeout"]),
    command("completions SHELL", Tool(Completions), "print completions for bash, zsh or fish",
        "", &[], &[]),
    command("man", Tool(Man), "print the man page (ollana man | man -l -)", "", &[], &[]),
    command("help [COMMAND|TOPIC]", Action::Help, "show help about a command or a topic",
        "Without either it shows all commands and the most used options.", &[], &[]),
];

impl CommandSpec {
    /// What an operand may be, if that is a list.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        match self.action {
            Action::Help => pages(),
            Action::Tool(Verb::Completions) => vec!["bash", "zsh", "fish"],
            Action::Tool(Verb::Token) => vec!["add", "list", "remove"],
            Action::Tool(Verb::Service) => vec!["install", "remove", "status", "firewall"],
            _ => Vec::new(),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.usage.split(' ').next().unwrap_or_default()
    }

    pub(super) fn most_operands(&self) -> usize {
        self.usage.split(' ').count() - 1
    }

    /// What stands for the operands that can't be left out, such as `NAME`.
    pub(super) fn needed_operands(&self) -> impl Iterator<Item = &'static str> {
        self.usage.split(' ').skip(1).take_while(|word| !word.starts_with('['))
    }

    /// As it is written, with its switches.
    pub(crate) fn synopsis(&self) -> String {
        let switches = self.switches.iter().map(|switch| format!(" [{}]", switch.usage()));
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
