//! `ollana completions SHELL`: what the shell needs to complete our command line, made from the
//! tables that the command line is read with.

use std::fmt::Write as _;

use crate::cli::commands::{COMMANDS, Switch};
use crate::cli::options::OptionSpec;
use crate::cli::topics::options;

/// What completes a value: its words between two texts, or what a shell has for files, for folders
/// and for everything else.
fn action(option: &OptionSpec, [before, after, file, folder, other]: [&str; 5]) -> String {
    match (option.choices(), option.value()) {
        (words, _) if !words.is_empty() => format!("{before}{}{after}", words.join(" ")),
        (_, "FILE") => file.to_owned(),
        (_, "DIR") => folder.to_owned(),
        _ => other.to_owned(),
    }
}

/// The switches that take a value.
fn valued_switches() -> impl Iterator<Item = &'static Switch> {
    COMMANDS.iter().flat_map(|command| command.switches).filter(|it| !it.value.is_empty())
}

/// A script with its lists in the places that are marked for them.
fn fill(script: &str, parts: &[(&str, &String)]) -> String {
    parts.iter().fold(script.to_owned(), |script, (place, part)| script.replace(place, part))
}

/// The script for a shell.
pub(super) fn script(shell: &str) -> String {
    match shell {
        "bash" => bash(),
        "zsh" => zsh(),
        _ => fish(),
    }
}

fn bash() -> String {
    let mut values = String::new();
    let mut unknown = Vec::new();
    for option in options() {
        let flag = format!("--{}", option.name());
        let action = action(option, ["-W '", "'", "-f", "-d", ""]);
        let names = if action.starts_with("-W") { "" } else { "compopt -o filenames; " };
        if action.is_empty() {
            unknown.push(flag);
            continue;
        }
        let reply = format!("mapfile -t COMPREPLY < <(compgen {action} -- \"$cur\")");
        let _ = writeln!(values, "    {flag}) {names}{reply}; return ;;");
    }
    for switch in valued_switches() {
        let words = switch.words().join(" ");
        let reply = format!("mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$cur\")");
        let _ = writeln!(values, "    --{}) {reply}; return ;;", switch.name);
    }
    let _ = writeln!(values, "    {}) return ;;", unknown.join(" | "));
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name()).collect();
    let flags: Vec<String> = options().map(|option| format!("--{}", option.name())).collect();
    let mut own = String::new();
    for command in COMMANDS {
        let switches = command.switches.iter().map(|switch| format!("--{}", switch.name));
        let (switches, words) = (switches.collect::<Vec<_>>().join(" "), command.words().join(" "));
        let _ = writeln!(own, "    {}) switches='{switches}' words='{words}' ;;", command.name());
    }
    let parts = [
        ("@values@", &values),
        ("@own@", &own),
        ("@all_names@", &names.join(" | ")),
        ("@some_names@", &names.join(" ")),
        ("@all_flags@", &flags.join(" ")),
    ];
    fill(include_str!("completions/ollana.bash"), &parts)
}

/// A text within single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn zsh() -> String {
    // Brackets and colons mean something to _arguments.
    let plain = |text: &str| text.replace('[', "(").replace(']', ")").replace(':', "\\:");
    let mut specs = String::new();
    for option in options() {
        let action = action(option, ["(", ")", "_files", "_files -/", " "]);
        let spec = format!(
            "*--{}=[{}]:{}:{action}",
            option.name(),
            plain(&option.description()),
            plain(option.value()).to_lowercase()
        );
        let _ = writeln!(specs, "        {} \\", quoted(&spec));
    }
    let (mut names, mut switches, mut words) = (String::new(), String::new(), String::new());
    for command in COMMANDS {
        let described = format!("{}:{}", command.name(), plain(command.about));
        let _ = writeln!(names, "        {}", quoted(&described));
        for switch in command.switches {
            let (is, value) = match switch.value {
                "" => ("", String::new()),
                value => ("=", format!(":{}:({})", value.to_lowercase(), switch.words().join(" "))),
            };
            let (name, text) = (switch.name, plain(switch.text));
            let spec = format!("--{name}{is}[{text} (for {})]{value}", command.name());
            let _ = writeln!(switches, "        {} \\", quoted(&spec));
        }
        if !command.words().is_empty() {
            let all = command.words().join(" ");
            let _ = writeln!(words, "        {}) compadd {all} ;;", command.name());
        }
    }
    let parts =
        [("@names@", &names), ("@specs@", &specs), ("@switches@", &switches), ("@words@", &words)];
    fill(include_str!("completions/ollana.zsh"), &parts)
}

fn fish() -> String {
    let mut script =
        "# fish completion for ollana; made by `ollana completions fish`.\n".to_owned();
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let _ = writeln!(script, "complete -c ollana -f");
    for command in COMMANDS {
        let (name, text) = (command.name(), quoted(command.about));
        let _ = writeln!(script, "complete -c ollana -n __fish_use_subcommand -a {name} -d {text}");
        let seen = format!("-n '__fish_seen_subcommand_from {name}'");
        for switch in command.switches {
            let text = quoted(switch.text);
            let value = match switch.value {
                "" => String::new(),
                _ => format!(" -x -a '{}'", switch.words().join(" ")),
            };
            let name = switch.name;
            let _ = writeln!(script, "complete -c ollana {seen} -l {name}{value} -d {text}");
        }
        if !command.words().is_empty() {
            let words = command.words().join(" ");
            let _ = writeln!(script, "complete -c ollana {seen} -a '{words}'");
        }
    }
    for option in options() {
        let folders = "-x -a '(__fish_complete_directories)'";
        let action = action(option, ["-x -a '", "'", "-r -F", folders, "-x"]);
        let text = quoted(&option.description());
        let _ = writeln!(script, "complete -c ollana -l {} {action} -d {text}", option.name());
    }
    script
        + "complete -c ollana -s h -l help -d 'what it can do'\n\
           complete -c ollana -s V -l version -d 'the version'\n"
}
