//! Arguments and variables → [`Command`]. Arguments win over variables.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use lexopt::prelude::{Long, Short, Value};

use super::commands::{ALL, Action, COMMANDS, CommandSpec, Switch, Verb, pages};
use super::help;
use super::nearest::did_you_mean;
use super::options::{OptionSpec, either};
use super::topics::options;
use crate::access::cors::Origins;
use crate::config::{self, Settings};
use crate::net::untrusted_text::printable;
use crate::system::to_stderr;

/// Set by `--daemon` in the environment of the process in the background.
pub(crate) const BACKGROUND_VARIABLE: &str = "OLLANA_BACKGROUND";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run the daemon.
    Serve(Box<Settings>),
    /// Do something else and exit.
    Tool(Box<Tool>),
    /// Show this text and exit 0.
    Print(String),
}

/// A command besides `serve` and `help`, as it was given.
#[derive(Debug)]
pub struct Tool {
    pub(crate) verb: Verb,
    pub(crate) settings: Settings,
    /// Their names and values.
    switches: Vec<(&'static str, String)>,
    pub(crate) operands: Vec<String>,
    /// The options of the command line, as `--name=value` that means the same everywhere.
    pub(crate) given: Vec<String>,
}

impl Tool {
    pub(crate) fn has(&self, switch: &str) -> bool {
        self.value(switch).is_some()
    }

    /// The first operand; empty if there is none.
    pub(crate) fn operand(&self) -> &str {
        self.operands.first().map_or("", String::as_str)
    }

    /// What a switch was given, the last one if there are several.
    pub(crate) fn value(&self, switch: &str) -> Option<&str> {
        let given = self.switches.iter().rfind(|(name, _)| *name == switch);
        given.map(|(_, value)| value.as_str())
    }
}

/// A command line that can't be followed; exit code 2.
#[derive(Debug)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\ntry 'ollana --help'", self.0)
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        UsageError(error.to_string())
    }
}

/// Reads the command line; `env` looks a variable up.
///
/// # Errors
/// [`UsageError`] names the option and what it takes.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Command, UsageError> {
    let (mut settings, wrong) = from_variables(env);
    let mut parser = lexopt::Parser::from_iter(args);
    let mut words = Vec::new();
    let mut switches = Vec::new();
    // The first flag of a list replaces what its variable said.
    let mut seen = Vec::new();
    let mut given = Vec::new();
    loop {
        // What a service is started with may stand behind "--".
        if words.first().is_some_and(|word| word == "service")
            && let Some(mut rest) = parser.try_raw_args()
        {
            let _ = rest.next_if(|word| word == "--");
        }
        let Some(arg) = parser.next()? else { break };
        match arg {
            Short('h') | Long("help") => {
                let word = words.first().cloned().or_else(|| match parser.next() {
                    Ok(Some(Value(word))) => word.into_string().ok(),
                    _ => None,
                });
                let command = word.and_then(|word| command(&word));
                return Ok(Command::Print(command.map_or_else(help::overview, help::command_page)));
            }
            Short('V') | Long("version") => {
                return Ok(Command::Print(format!("ollana {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Short(other) => return Err(UsageError(format!("unknown option -{other}"))),
            Long(name) => {
                if let Some(switch) = all_switches().find(|switch| switch.name == name) {
                    let takes_value = !switch.value.is_empty();
                    let value =
                        if takes_value { value(&mut parser, switch.name)? } else { String::new() };
                    switches.push((switch.name, value));
                    continue;
                }
                let option = options().find(|option| option.name() == name);
                let option = option.ok_or_else(|| unknown_option(name))?;
                let name = option.name();
                let wrong = |error: String| UsageError(format!("--{name}: {error}"));
                let value = value(&mut parser, name)?;
                if !seen.contains(&name) {
                    seen.push(name);
                    option.clear(&mut settings);
                }
                option.set(&mut settings, &value).map_err(wrong)?;
                let is_path = matches!(option.value(), "FILE" | "DIR");
                let path = is_path.then(|| std::path::absolute(&value).ok()).flatten();
                let value = path.map_or(value, |path| path.display().to_string());
                given.push(format!("--{name}={value}"));
            }
            Value(word) => {
                let word = word.into_string();
                words.push(word.map_err(|w| UsageError(format!("{w:?} is not UTF-8")))?);
            }
        }
    }
    let mut words = words.into_iter();
    let word = words.next().unwrap_or_else(|| "serve".to_owned());
    let Some(command) = command(&word) else {
        let meant = did_you_mean(&word, "", COMMANDS.iter().map(|command| command.name()));
        return Err(UsageError(format!("unknown command {word:?}{meant}")));
    };
    // Help is given whatever the variables say.
    match (wrong, &command.action) {
        (Some(error), Action::Serve | Action::Tool(_)) => Err(error),
        _ => follow(command, settings, Words { switches, given, operands: words.collect() }, env),
    }
}

/// What was given besides the command, and isn't in the settings.
struct Words {
    switches: Vec<(&'static str, String)>,
    given: Vec<String>,
    operands: Vec<String>,
}

fn follow(
    command: &CommandSpec,
    mut settings: Settings,
    Words { switches, given, operands }: Words,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Command, UsageError> {
    let name = command.name();
    if let Some(operand) = operands.get(command.most_operands()) {
        return Err(UsageError(format!("{name} does not take {operand:?}")));
    }
    let is_foreign = |name: &str| command.switches.iter().all(|own| own.name != name);
    if let Some((switch, _)) = switches.iter().find(|(name, _)| is_foreign(name)) {
        return Err(UsageError(format!("{name} does not take --{switch}")));
    }
    let has_all = switches.iter().any(|(switch, _)| *switch == ALL);
    check_operands(command, &operands, has_all)?;
    Ok(match command.action {
        Action::Serve => {
            let has = |switch: &str| switches.iter().any(|(name, _)| *name == switch);
            settings.daemon = has("daemon");
            if let (true, Some(dir)) = (has("at-log-in"), default_state_dir(env)) {
                settings.at_log_in = true;
                settings.pid_file = Some(pid_file_at_log_in(&dir));
                let dir = settings.state_dir.as_ref().unwrap_or(&dir);
                settings.log_file.get_or_insert_with(|| dir.join("ollana.log"));
            }
            Command::Serve(Box::new(settings))
        }
        Action::Help => Command::Print(help_about(operands.first().map(String::as_str))?),
        Action::Tool(verb) => {
            Command::Tool(Box::new(Tool { verb, settings, switches, operands, given }))
        }
    })
}

/// Whether what a command needs is there, and is one of its words where it takes only these.
fn check_operands(
    command: &CommandSpec,
    operands: &[String],
    has_all: bool,
) -> Result<(), UsageError> {
    let name = command.name();
    if has_all && !operands.is_empty() {
        return Err(UsageError(format!("{name} takes a name or --{ALL}, not both")));
    }
    let words = command.words();
    for (at, needed) in command.needed_operands().enumerate() {
        let operand = operands.get(at).map_or("", String::as_str);
        let expected = match words.is_empty() {
            true => format!("'ollana help {name}' says which"),
            false => either(&words),
        };
        if operand.is_empty() && !has_all {
            return Err(UsageError(format!("{name} takes {needed}: {expected}")));
        }
        if !(has_all || words.is_empty() || words.contains(&operand)) {
            let meant = did_you_mean(operand, "", words.iter().copied());
            return Err(UsageError(format!("{name} {operand:?}: expected {expected}{meant}")));
        }
    }
    Ok(())
}

fn help_about(name: Option<&str>) -> Result<String, UsageError> {
    // The first page has the commands.
    let Some(name) = name.filter(|name| *name != "commands") else { return Ok(help::overview()) };
    help::page(name).ok_or_else(|| {
        let meant = did_you_mean(name, "", pages());
        UsageError(format!("no help about {name:?}{meant}\n{}", help::contents()))
    })
}

fn command(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|command| command.name() == name)
}

fn all_switches() -> impl Iterator<Item = &'static Switch> {
    COMMANDS.iter().flat_map(|command| command.switches)
}

/// The value of an option.
fn value(parser: &mut lexopt::Parser, name: &str) -> Result<String, UsageError> {
    let value = parser.value()?.into_string();
    value.map_err(|value| UsageError(format!("--{name}: {value:?} is not UTF-8")))
}

fn unknown_option(name: &str) -> UsageError {
    let switches = all_switches().map(|switch| switch.name);
    let names = options().map(OptionSpec::name).chain(switches).chain(["help", "version"]);
    UsageError(format!("unknown option --{name}{}", did_you_mean(name, "--", names)))
}

/// The settings, and the first variable that can't be used.
fn from_variables(env: &dyn Fn(&str) -> Option<OsString>) -> (Settings, Option<UsageError>) {
    let text = |name: &str| env(name).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
    let mut settings = Settings { state_dir: default_state_dir(env), ..Settings::default() };
    let mut wrong = None;
    if let Some(value) = text("OLLAMA_HOST") {
        // Only an address of this machine is a local Ollama; programs may name others there.
        match config::parse_ollama(&value) {
            Ok(url) if is_loopback(&url.host) => settings.ollama = Some(url),
            Ok(url) => {
                to_stderr(&format!("ollana: OLLAMA_HOST={url} is not on this machine, ignored"));
            }
            Err(error) => to_stderr(&format!("ollana: OLLAMA_HOST ignored: {error}")),
        }
    }
    if let Some(value) = text("OLLAMA_ORIGINS") {
        let unusable;
        (settings.origins, unusable) = Origins::new(&value);
        for entry in unusable {
            to_stderr(&format!(
                "ollana: OLLAMA_ORIGINS: {entry:?} ignored: expected http://HOST or one *"
            ));
        }
    }
    for option in options() {
        let variable = option.variable();
        let value = text(&variable).unwrap_or_default();
        // A path may hold a comma.
        let most = if option.is_list() { usize::MAX } else { 1 };
        for part in value.splitn(most, ',').map(str::trim).filter(|part| !part.is_empty()) {
            if let Err(error) = option.set(&mut settings, part) {
                wrong.get_or_insert(UsageError(format!("{variable}: {error}")));
            }
        }
    }
    (settings, wrong)
}

/// Variables that are no options: of a daemon, and of the scripts that start it.
const OTHERS: [&str; 6] = [
    BACKGROUND_VARIABLE,
    "OLLANA_INSTALLED",
    "OLLANA_PROGRAM",
    "OLLANA_RUN",
    "OLLANA_STATE",
    "OLLANA_LOG",
];

/// What is wrong with the names of variables: those that begin as ours do, and mean nothing.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    const OURS: &str = "OLLANA_";
    let known: Vec<String> = options().map(OptionSpec::variable).collect();
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    let is_unknown = |name: &String| {
        let is_others = OTHERS.contains(&name.as_str()) || name.starts_with("OLLANA_TEST_");
        name.starts_with(OURS) && !is_others && !known.contains(name)
    };
    let mut unknown: Vec<String> = names.filter(is_unknown).collect();
    unknown.sort();
    let told = unknown.iter().map(|name| {
        let known = known.iter().filter_map(|name| name.strip_prefix(OURS));
        let meant = did_you_mean(&name[OURS.len()..], OURS, known);
        format!("the variable {} means nothing to ollana{meant}", printable(name))
    });
    told.collect()
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Where an ollana that Windows has started has its number.
pub(crate) fn pid_file_at_log_in(default_state_dir: &Path) -> PathBuf {
    default_state_dir.join("service.pid")
}

/// On Windows %LOCALAPPDATA%\ollana. Elsewhere systemd's directory, else the XDG place, else the system's
/// for a daemon without a home.
pub(crate) fn default_state_dir(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let dir = |name: &str| env(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    if cfg!(windows) {
        return dir("LOCALAPPDATA").map(|dir| dir.join("ollana"));
    }
    dir("STATE_DIRECTORY")
        .or_else(|| dir("XDG_STATE_HOME").map(|dir| dir.join("ollana")))
        .or_else(|| dir("HOME").map(|home| home.join(".local/state/ollana")))
        .or_else(|| Some(Path::new("/var/lib/ollana").to_owned()))
}
