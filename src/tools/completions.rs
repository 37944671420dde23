//! `ollana completions SHELL`: what the shell needs to complete our command line, made from the
//! tables that the command line is read with.

use std::fmt::Write as _;

use crate::cli::commands::COMMANDS;
use crate::cli::options::OptionSpec;
use crate::cli::topics::options;

/// What completes a value.
enum Kind {
    Words(Vec<&'static str>),
    File,
    Folder,
    Unknown,
}

fn kind(option: &OptionSpec) -> Kind {
    match (option.choices(), option.value()) {
        (words, _) if !words.is_empty() => Kind::Words(words),
        (_, "FILE") => Kind::File,
        (_, "DIR") => Kind::Folder,
        _ => Kind::Unknown,
    }
}

/// The script for a shell.
///
/// # Errors
/// When the shell isn't known.
pub(super) fn script(shell: Option<&str>) -> Result<String, String> {
    match shell {
        Some("bash") => Ok(bash()),
        Some("zsh") => Ok(zsh()),
        Some("fish") => Ok(fish()),
        Some(other) => Err(format!("no completions for {other:?}; bash, zsh or fish")),
        None => Err("for which shell? ollana completions bash, zsh or fish".to_owned()),
    }
}

fn bash() -> String {
    let mut values = String::new();
    let mut unknown = Vec::new();
    for option in options() {
        let flag = format!("--{}", option.name());
        let action = match kind(option) {
            Kind::Words(words) => {
                format!("mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$cur\")", words.join(" "))
            }
            Kind::File => {
                "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")".to_owned()
            }
            Kind::Folder => {
                "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$cur\")".to_owned()
            }
            Kind::Unknown => {
                unknown.push(flag);
                continue;
            }
        };
        let _ = writeln!(values, "    {flag}) {action}; return ;;");
    }
    let _ = writeln!(values, "    {}) return ;;", unknown.join(" | "));
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name()).collect();
    let flags: Vec<String> = options().map(|option| format!("--{}", option.name())).collect();
    let mut own = String::new();
    for command in COMMANDS {
        let switches: Vec<String> =
            command.switches.iter().map(|switch| format!("--{}", switch.name)).collect();
        let _ = writeln!(
            own,
            "    {}) switches='{}' words='{}' ;;",
            command.name(),
            switches.join(" "),
            (command.words)().join(" ")
        );
    }
    format!(
        "\
# bash completion for ollana; made by `ollana completions bash`.
_ollana() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    local word command='' switches='' words=''
    COMPREPLY=()
    # --mode=both is three words here.
    if [[ $cur == '=' ]]; then
        cur=''
    elif [[ $prev == '=' && $COMP_CWORD -gt 2 ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    case $prev in
{values}    esac
    for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do
        case $word in
        {all_names}) command=$word; break ;;
        esac
    done
    case ${{command:-serve}} in
{own}    esac
    if [[ $cur == -* ]]; then
        words=\"{all_flags} --help --version $switches\"
    elif [[ -z $command ]]; then
        words='{some_names}'
    fi
    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")
}}
complete -F _ollana ollana
",
        all_names = names.join(" | "),
        some_names = names.join(" "),
        all_flags = flags.join(" "),
    )
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
        let action = match kind(option) {
            Kind::Words(words) => format!("({})", words.join(" ")),
            Kind::File => "_files".to_owned(),
            Kind::Folder => "_files -/".to_owned(),
            Kind::Unknown => " ".to_owned(),
        };
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
            let spec =
                format!("--{}[{} (for {})]", switch.name, plain(switch.text), command.name());
            let _ = writeln!(switches, "        {} \\", quoted(&spec));
        }
        if !(command.words)().is_empty() {
            let all = (command.words)().join(" ");
            let _ = writeln!(words, "        {}) compadd {all} ;;", command.name());
        }
    }
    format!(
        "\
#compdef ollana
# zsh completion for ollana; made by `ollana completions zsh`.
_ollana() {{
    local context state state_descr line
    typeset -A opt_args
    local -a commands
    commands=(
{names}    )
    _arguments -C \\
{specs}{switches}        '(- *)'{{-h,--help}}'[what it can do]' \\
        '(- *)'{{-V,--version}}'[the version]' \\
        '1:command:->command' \\
        '*::word:->word'
    case $state in
    command) _describe -t commands command commands ;;
    word)
        case $line[1] in
{words}        esac
        ;;
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _ollana \"$@\"
else
    compdef _ollana ollana
fi
"
    )
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
            let _ = writeln!(script, "complete -c ollana {seen} -l {} -d {text}", switch.name);
        }
        if !(command.words)().is_empty() {
            let words = (command.words)().join(" ");
            let _ = writeln!(script, "complete -c ollana {seen} -a '{words}'");
        }
    }
    for option in options() {
        let action = match kind(option) {
            Kind::Words(words) => format!("-x -a '{}'", words.join(" ")),
            Kind::File => "-r -F".to_owned(),
            Kind::Folder => "-x -a '(__fish_complete_directories)'".to_owned(),
            Kind::Unknown => "-x".to_owned(),
        };
        let text = quoted(&option.description());
        let _ = writeln!(script, "complete -c ollana -l {} {action} -d {text}", option.name());
    }
    script.push_str("complete -c ollana -s h -l help -d 'what it can do'\n");
    script.push_str("complete -c ollana -s V -l version -d 'the version'\n");
    script
}
