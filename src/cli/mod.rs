//! Arguments and `OLLANA_*` environment → [`Command`].
//!
//! One function, `set`, gives each option its meaning, so a flag and its variable can't
//! drift apart. Flags win over variables.

pub mod describe;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use log::LevelFilter;

use crate::access::cors::Origins;
use crate::config::{self, LogFormat, ModeChoice, Settings};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run the daemon.
    Serve(Box<Settings>),
    /// Do something else and exit.
    Tool(Box<Tool>),
    /// Print this text and exit 0.
    Print(&'static str),
}

/// What a [`Tool`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Finds out what is wrong.
    Doctor,
    /// Writes what a shell needs to complete our command line.
    Completions,
    /// Writes the man page.
    Man,
    /// Shows a code, or takes one: two machines get a key.
    Pair,
    /// Shows the paired machines.
    Peers,
    /// Forgets one of them.
    Unpair,
    /// Looks for servers, once.
    Discover,
    /// Shows which server has which model.
    Models,
    /// Shows what the running daemon does.
    Status,
    /// Gives Ollama's port to the pooled view, or back to Ollama.
    Takeover,
}

/// A command besides `serve`, as it was given.
#[derive(Debug)]
pub struct Tool {
    /// Which.
    pub verb: Verb,
    /// The same options that the daemon takes.
    pub settings: Settings,
    /// Those of its switches that were given.
    pub switches: Vec<&'static str>,
    /// What else was given.
    pub operands: Vec<String>,
}

impl Tool {
    /// Whether a switch was given.
    pub fn has(&self, switch: &str) -> bool {
        self.switches.contains(&switch)
    }
}

/// How a command is written.
struct Grammar {
    name: &'static str,
    verb: Verb,
    /// Options without a value that only this command takes.
    switches: &'static [&'static str],
    /// How many operands it takes at most.
    operands: usize,
    /// What they may be, if there is a list.
    words: &'static [&'static str],
}

/// Every command besides `serve` and `help`.
const VERBS: &[Grammar] = &[
    Grammar {
        name: "status",
        verb: Verb::Status,
        switches: &["watch", "json"],
        operands: 0,
        words: &[],
    },
    Grammar { name: "models", verb: Verb::Models, switches: &["json"], operands: 0, words: &[] },
    Grammar {
        name: "discover",
        verb: Verb::Discover,
        switches: &["json"],
        operands: 0,
        words: &[],
    },
    Grammar { name: "doctor", verb: Verb::Doctor, switches: &["json"], operands: 0, words: &[] },
    Grammar {
        name: "completions",
        verb: Verb::Completions,
        switches: &[],
        operands: 1,
        words: &["bash", "zsh", "fish"],
    },
    Grammar { name: "pair", verb: Verb::Pair, switches: &[], operands: 2, words: &[] },
    Grammar { name: "peers", verb: Verb::Peers, switches: &[], operands: 0, words: &[] },
    Grammar { name: "unpair", verb: Verb::Unpair, switches: &[], operands: 1, words: &[] },
    Grammar { name: "man", verb: Verb::Man, switches: &[], operands: 0, words: &[] },
    Grammar {
        name: "takeover",
        verb: Verb::Takeover,
        switches: &["undo", "yes"],
        operands: 0,
        words: &[],
    },
];

/// Options of `serve` without a value.
const SERVE_SWITCHES: &[&str] = &["daemon"];

/// A command line that can't be followed; exit code 2.
#[derive(Debug)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\ntry 'ollana --help'", self.0)
    }
}

const VERSION: &str = concat!("ollana ", env!("CARGO_PKG_VERSION"), "\n");

const HELP: &str = "\
Ollama over LAN: every Ollama program here uses the Ollama servers of your LAN.

Usage: ollana [serve] [OPTION ...]
Where an Ollama answers on this machine, ollana shares it (server mode).
Elsewhere it finds the servers and answers on Ollama's own port (client mode).
  --mode MODE           auto, client, server or both [auto]
  --listen ADDR:PORT    HTTP address of this mode's proxy; repeatable
                        [client localhost:11434, server 0.0.0.0:11435]
  --share ADDR:PORT     with --mode both, the server's address [0.0.0.0:11435]
  --ollama URL          this machine's Ollama [$OLLAMA_HOST or 127.0.0.1:11434]
  --server HOST[:PORT]  a server that broadcasts don't reach; repeatable
  --discovery-port N    UDP port of the discovery, 0 turns it off [11436]
  --interface NAME      broadcast on this interface; repeatable [all suitable]
  --prefer SERVER       use this server first while it is up; repeatable
  --wake SERVER|MAC     wake this machine when nobody else can; repeatable
  --pin MODEL=SERVER    this model goes to this server; --ban: never; repeatable
  --host NAME           accept this name in a request's Host; repeatable
  --log-level LEVEL     off, error, warn, info or debug [info]
  --help, --version     this text, the version
  help commands         what else it can do
  help service          as a service, in the background, log file, keys
  help access, limits   who may do what; intervals, time-outs and limits

Every option is a variable too: OLLANA_LOG_LEVEL=debug (lists take commas).
";

const HELP_COMMANDS: &str = "\
Commands: ollana COMMAND [OPTION ...]
  serve                 what it does when no command is given; --daemon: in the
                        background, once it is ready
  pair                  show a code that pairs this machine with another:
                        between the two everything is encrypted from then on
  pair CODE [ADDRESS]   take the code that the other one shows; - asks for it
  peers                 show the paired machines
  unpair NAME           forget one: its key is worth nothing here any more
  status                servers, queue and this machine, as the running ollana
                        sees them; --watch every second, --json for programs
  models                which server has which model, and how fast; --json
  discover              looks around once: who answers, through which interface;
                        needs no running ollana; --json
  takeover              move an Ollama that systemd runs to port 11438, so that
                        port 11434 shows all models of the LAN; says what it
                        will do and asks first, --yes doesn't; --undo: move back
  doctor                look at ports, interfaces, firewall, Ollama and servers,
                        say what is wrong and what to do about it; --json
  completions SHELL     print completions for bash, zsh or fish
  man                   print the man page: ollana man | man -l -
  help [PAGE]           options; access, commands, limits or service
";

const HELP_SERVICE: &str = "\
As a service. scripts/install.sh sets it up (systemd, OpenRC, launchd, SysV);
systemd is told when it is ready, and that it is alive.
  --log-file FILE       log there instead of to stderr; SIGHUP reopens it
  --log-format FORMAT   text, or json: an object per line [text]
  --pid-file FILE       write the process number there
  --state-dir DIR       where the identity and the servers of the last run are
                        [$STATE_DIRECTORY or ~/.local/state/ollana]
  --daemon              go to the background once it is ready; exit code 0 says
                        that it is
  --key-file FILE       a secret of 32 bytes in hexadecimal or base64; machines
                        that have the same are paired
  --unpaired on|off     talk to machines without a key, unencrypted
                        [on without keys, off with keys]
";

const HELP_ACCESS: &str = "\
What other machines may do here. Programs of this machine may do everything, and
so may machines that are paired with it.
  --manage on|off       they may pull, push, create, copy, delete models [off]
  --pull on|off         they may pull from Ollama's own registry [off]
  --allow RANGE         only these addresses may connect, and this machine;
                        repeatable [loopback, private, link-local, own subnets]
  --deny RANGE          these may not, whatever is allowed; repeatable
Ranges are written 192.168.1.0/24, fd00::/8 or 192.168.1.7.
  OLLAMA_ORIGINS=LIST   web pages that may ask besides Ollama's own list; set it
                        for the ollana that they reach, as for Ollama itself
Inference and lists are open to them; account routes and what ollana doesn't
know stay closed.
";

const HELP_LIMITS: &str = "\
Intervals, time-outs and limits. Times: 250ms, 5s, 2m. Sizes: 4096, 64k, 4m.
  --probe-interval T    between two discovery probes [5s]
  --health-interval T   between two health checks of a server [1s]
  --health-timeout T    for the answer to a health check [1500ms]
  --rise N --fall N     checks until a server gets work or none [1, 2]
  --connect-timeout T   to connect to a server [1300ms]
  --wait-timeout T      a request waits for a server being checked [1500ms]
  --queue-timeout T     a request waits while all servers are busy [60s]
  --wake-timeout T      a request waits for a machine that was woken [60s]
  --head-timeout T      for a request's whole head [10s]
  --idle-timeout T      until an idle connection is closed [2m]
  --body-timeout T      a client sends nothing of its body [60s]
  --stall-timeout T     a peer reads nothing of what we send [2m]
  --drain-timeout T     for streams to finish after SIGTERM [30s]
  --max-connections N   in all; one thread each [2048]
  --max-connections-per-source N   of one address; as many must be free [1024]
  --max-head SIZE       bytes of a request head [64k]
  --max-fields N        fields of a request head, 10 to 128 [100]
  --replay-limit SIZE   body kept to try another server [4m]
  --replay-budget SIZE  all kept bodies together [64m]
  --max-servers N       in the pool [64]
  --max-in-flight N     requests on one server; 0: learned when it is busy [0]
  --status-from NET     who else may see /ollana/, as 192.168.1.0/24; repeatable
  --legacy on|off       answer four-byte probes of older versions [on]
";

/// The options' names; `OLLANA_` plus the upper-cased name is the variable.
const OPTIONS: &[&str] = &[
    "mode",
    "listen",
    "share",
    "ollama",
    "server",
    "discovery-port",
    "interface",
    "host",
    "state-dir",
    "key-file",
    "unpaired",
    "log-level",
    "log-file",
    "log-format",
    "pid-file",
    "probe-interval",
    "health-interval",
    "health-timeout",
    "rise",
    "fall",
    "connect-timeout",
    "wait-timeout",
    "head-timeout",
    "idle-timeout",
    "body-timeout",
    "stall-timeout",
    "drain-timeout",
    "max-connections",
    "max-connections-per-source",
    "max-head",
    "max-fields",
    "replay-limit",
    "replay-budget",
    "max-servers",
    "legacy",
    "pin",
    "ban",
    "prefer",
    "queue-timeout",
    "wake",
    "wake-timeout",
    "max-in-flight",
    "status-from",
    "manage",
    "pull",
    "allow",
    "deny",
];

/// Reads the command line; `env` looks a variable up.
///
/// # Errors
/// [`UsageError`] names the option and what it takes.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Command, UsageError> {
    let text = |name: &str| env(name).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
    let mut settings = Settings { state_dir: default_state_dir(env), ..Settings::default() };
    if let Some(value) = text("OLLAMA_HOST") {
        // Only an address of this machine is a local Ollama; programs may name others there.
        match config::parse_ollama(&value) {
            Ok(url) if is_loopback(&url.host) => settings.ollama = Some(url),
            Ok(url) => eprintln!("ollana: OLLAMA_HOST={url} is not on this machine, ignored"),
            Err(error) => eprintln!("ollana: OLLAMA_HOST ignored: {error}"),
        }
    }
    if let Some(value) = text("OLLAMA_ORIGINS") {
        let (origins, unusable) = Origins::new(&value);
        settings.origins = origins;
        for entry in unusable {
            eprintln!("ollana: OLLAMA_ORIGINS: {entry:?} ignored: expected http://HOST or one *");
        }
    }
    for name in OPTIONS {
        let variable = format!("OLLANA_{}", name.to_uppercase().replace('-', "_"));
        let Some(value) = text(&variable) else { continue };
        for part in value.split(',').filter(|part| !part.trim().is_empty()) {
            set(&mut settings, name, part.trim())
                .map_err(|error| UsageError(format!("{variable}: {error}")))?;
        }
    }
    parse_flags(args, settings)
}

fn parse_flags(
    args: impl IntoIterator<Item = OsString>,
    mut settings: Settings,
) -> Result<Command, UsageError> {
    use lexopt::prelude::{Long, Short, Value};
    let usage = |error: lexopt::Error| UsageError(error.to_string());
    let mut parser = lexopt::Parser::from_iter(args);
    let mut words: Vec<String> = Vec::new();
    let mut switches = Vec::new();
    // The first flag of a list replaces what the environment said.
    let mut seen = Vec::new();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Print(HELP)),
            Short('V') | Long("version") => return Ok(Command::Print(VERSION)),
            Long(name) => {
                let known = VERBS.iter().flat_map(|verb| verb.switches).chain(SERVE_SWITCHES);
                if let Some(switch) = known.into_iter().find(|switch| **switch == name) {
                    switches.push(*switch);
                    continue;
                }
                let Some(name) = OPTIONS.iter().find(|option| **option == name) else {
                    return Err(UsageError(format!("unknown option --{name}")));
                };
                let value = parser.value().map_err(usage)?;
                let value = value
                    .into_string()
                    .map_err(|v| UsageError(format!("--{name}: {v:?} is not UTF-8")))?;
                if !seen.contains(name) {
                    seen.push(name);
                    clear_list(&mut settings, name);
                }
                set(&mut settings, name, &value)
                    .map_err(|error| UsageError(format!("--{name}: {error}")))?;
            }
            Value(word) => {
                let word = word.into_string();
                words.push(word.map_err(|w| UsageError(format!("{w:?} is not UTF-8")))?);
            }
            Short(other) => return Err(UsageError(format!("unknown option -{other}"))),
        }
    }
    let mut words = words.into_iter();
    let word = words.next().unwrap_or_else(|| "serve".to_owned());
    let operands: Vec<String> = words.collect();
    let verb = VERBS.iter().find(|verb| verb.name == word);
    let most = match (word.as_str(), verb) {
        (_, Some(verb)) => verb.operands,
        ("help", _) => 1,
        ("serve", _) => 0,
        _ => return Err(UsageError(format!("unknown command {word:?}"))),
    };
    if let Some(operand) = operands.get(most) {
        return Err(UsageError(format!("{word} does not take {operand:?}")));
    }
    let own = match (verb, word.as_str()) {
        (Some(verb), _) => verb.switches,
        (None, "serve") => SERVE_SWITCHES,
        _ => &[],
    };
    if let Some(switch) = switches.iter().find(|switch| !own.contains(switch)) {
        return Err(UsageError(format!("{word} does not take --{switch}")));
    }
    match (verb, word.as_str(), operands.first().map(String::as_str)) {
        (Some(verb), _, _) => {
            Ok(Command::Tool(Box::new(Tool { verb: verb.verb, settings, switches, operands })))
        }
        (None, "help", None) => Ok(Command::Print(HELP)),
        (None, "help", Some("commands")) => Ok(Command::Print(HELP_COMMANDS)),
        (None, "help", Some("service")) => Ok(Command::Print(HELP_SERVICE)),
        (None, "help", Some("access")) => Ok(Command::Print(HELP_ACCESS)),
        (None, "help", Some("limits")) => Ok(Command::Print(HELP_LIMITS)),
        (None, "help", Some(other)) => Err(UsageError(format!("no help about {other:?}"))),
        _ => {
            settings.daemon = switches.contains(&"daemon");
            Ok(Command::Serve(Box::new(settings)))
        }
    }
}

fn clear_list(settings: &mut Settings, name: &str) {
    match name {
        "listen" => settings.listen.clear(),
        "share" => settings.share.clear(),
        "server" => settings.servers.clear(),
        "interface" => settings.interfaces.clear(),
        "host" => settings.hosts.clear(),
        "pin" => settings.pins.clear(),
        "ban" => settings.bans.clear(),
        "prefer" => settings.preferred.clear(),
        "wake" => settings.wake.clear(),
        "status-from" => settings.status_from.clear(),
        "allow" => settings.reach.allow.clear(),
        "deny" => settings.reach.deny.clear(),
        _ => {}
    }
}

/// Gives one option its value.
fn set(settings: &mut Settings, name: &str, value: &str) -> Result<(), String> {
    let timing = &mut settings.timing;
    let limits = &mut settings.limits;
    match name {
        "mode" => {
            settings.mode = match value {
                "auto" => ModeChoice::Auto,
                "client" => ModeChoice::Client,
                "server" => ModeChoice::Server,
                "both" => ModeChoice::Both,
                _ => return Err(format!("{value}: expected auto, client, server or both")),
            }
        }
        "listen" => settings.listen.push(parse_listen(value)?),
        "share" => settings.share.push(parse_listen(value)?),
        "ollama" => settings.ollama = Some(config::parse_ollama(value)?),
        "server" => {
            let server = config::parse_host_port(value, config::SERVER_PORT)?;
            if server.host.is_empty() || server.port == 0 {
                return Err(format!("{value}: expected HOST or HOST:PORT"));
            }
            settings.servers.push(server);
        }
        "interface" => settings.interfaces.push(value.to_owned()),
        "host" => settings.hosts.push(value.trim_end_matches('.').to_ascii_lowercase()),
        "key-file" => settings.key_file = Some(PathBuf::from(value)),
        "unpaired" => settings.unpaired = Some(parse_switch(value)?),
        "state-dir" => settings.state_dir = Some(PathBuf::from(value)),
        "discovery-port" => settings.discovery_port = parse_number(value, 0, 65535)?,
        "legacy" => settings.legacy = parse_switch(value)?,
        "manage" => settings.policy.manage = parse_switch(value)?,
        "pull" => settings.policy.pull = parse_switch(value)?,
        "allow" => settings.reach.allow.push(value.parse()?),
        "deny" => settings.reach.deny.push(value.parse()?),
        "log-level" => {
            // Nothing is more than debug: finer lines aren't compiled in (see Cargo.toml).
            let level = value.parse().ok().filter(|level| *level <= LevelFilter::Debug);
            settings.log_level =
                level.ok_or(format!("{value}: expected off, error, warn, info or debug"))?;
        }
        "log-file" => settings.log_file = Some(absolute(value)?),
        "pid-file" => settings.pid_file = Some(absolute(value)?),
        "log-format" => {
            settings.log_format = match value {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err(format!("{value}: expected text or json")),
            }
        }
        "probe-interval" => timing.probe_interval = config::parse_duration(value)?,
        "health-interval" => timing.health_interval = config::parse_duration(value)?,
        "health-timeout" => timing.health_timeout = config::parse_duration(value)?,
        "connect-timeout" => timing.connect_timeout = config::parse_duration(value)?,
        "wait-timeout" => timing.wait_timeout = config::parse_duration(value)?,
        "head-timeout" => timing.head_timeout = config::parse_duration(value)?,
        "idle-timeout" => timing.idle_timeout = config::parse_duration(value)?,
        "body-timeout" => timing.body_timeout = config::parse_duration(value)?,
        "stall-timeout" => timing.stall_timeout = config::parse_duration(value)?,
        "drain-timeout" => timing.drain_timeout = config::parse_duration(value)?,
        "rise" => limits.rise = parse_number(value, 1, 100)?,
        "fall" => limits.fall = parse_number(value, 1, 100)?,
        "max-connections" => limits.max_connections = parse_number(value, 1, 65536)?,
        "max-connections-per-source" => {
            limits.max_connections_per_source = parse_number(value, 1, 65536)?;
        }
        "max-head" => match config::parse_size(value)? {
            size @ 1024..=1_048_576 => limits.max_head = size,
            _ => return Err(format!("{value}: expected 1k to 1m")),
        },
        "max-fields" => limits.max_fields = parse_number(value, 10, config::MAX_FIELDS)?,
        "replay-limit" => limits.replay_limit = config::parse_size(value)?,
        "replay-budget" => limits.replay_budget = config::parse_size(value)?,
        "pin" => settings.pins.push(config::parse_route(value)?),
        "ban" => settings.bans.push(config::parse_route(value)?),
        "prefer" => settings.preferred.push(value.to_owned()),
        "wake" => settings.wake.push(config::Sleeper::parse(value)),
        "wake-timeout" => timing.wake_timeout = config::parse_duration(value)?,
        "status-from" => settings.status_from.push(value.parse()?),
        "queue-timeout" => timing.queue_timeout = config::parse_duration(value)?,
        "max-in-flight" => limits.max_in_flight = parse_number(value, 0, 65536)?,
        "max-servers" => limits.max_servers = parse_number(value, 1, 1024)?,
        _ => return Err("unknown option".to_owned()),
    }
    Ok(())
}

fn absolute(value: &str) -> Result<PathBuf, String> {
    std::path::absolute(value).map_err(|error| format!("{value}: {error}"))
}

fn parse_number<T>(text: &str, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + fmt::Display + Copy,
{
    match text.parse() {
        Ok(n) if n >= least && n <= most => Ok(n),
        _ => Err(format!("{text}: expected a number from {least} to {most}")),
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text}: expected on or off")),
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text}: expected ADDR:PORT, such as 127.0.0.1:11434"))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// systemd's directory, else the XDG place, else the system's for a daemon without a home.
pub(crate) fn default_state_dir(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let dir = |name: &str| env(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    dir("STATE_DIRECTORY")
        .or_else(|| dir("XDG_STATE_HOME").map(|dir| dir.join("ollana")))
        .or_else(|| dir("HOME").map(|home| home.join(".local/state/ollana")))
        .or_else(|| Some(Path::new("/var/lib/ollana").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Command, UsageError> {
        let env: Vec<(String, OsString)> =
            env.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        let args = std::iter::once("ollana").chain(args.iter().copied()).map(OsString::from);
        parse(args, &move |name| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    fn settings(args: &[&str], env: &[(&str, &str)]) -> Settings {
        match run(args, env) {
            Ok(Command::Serve(settings)) => *settings,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn flags_win_over_variables_and_lists_add_up() {
        let env = [("OLLANA_MODE", "server"), ("OLLANA_SERVER", "a,b:7"), ("OLLANA_LISTEN", "")];
        let s = settings(&["serve"], &env);
        assert_eq!(s.mode, ModeChoice::Server);
        let names: Vec<String> = s.servers.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a:11435", "b:7"]);
        let s = settings(&["--mode", "client", "--server=c", "--server", "[::1]:9"], &env);
        assert_eq!(s.mode, ModeChoice::Client);
        let names: Vec<String> = s.servers.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["c:11435", "[::1]:9"]);
    }

    #[test]
    fn every_option_has_a_meaning_and_a_line_of_help() {
        for name in OPTIONS {
            let error = set(&mut Settings::default(), name, "\u{0}").err();
            assert_ne!(error.as_deref(), Some("unknown option"), "{name}");
            let flag = [format!("--{name} "), format!("--{name}:")];
            let told = |text: &str| flag.iter().any(|flag| text.contains(flag));
            let texts = [HELP, HELP_LIMITS, HELP_COMMANDS, HELP_SERVICE, HELP_ACCESS];
            assert!(texts.into_iter().any(told), "{name}");
        }
    }

    #[test]
    fn help_fits_a_screen() {
        for text in [HELP, HELP_COMMANDS, HELP_SERVICE, HELP_ACCESS, HELP_LIMITS] {
            assert!(text.lines().count() <= 24, "{} lines", text.lines().count());
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn bad_command_lines_say_what_is_wrong() {
        for (args, want) in [
            (&["--nope"][..], "--nope"),
            (&["frobnicate"], "frobnicate"),
            (&["--mode", "neither"], "auto, client, server or both"),
            (&["--mode"], "mode"),
            (&["--listen", "11434"], "ADDR:PORT"),
            (&["--discovery-port", "65536"], "0 to 65535"),
            (&["--head-timeout", "0"], "250ms"),
            (&["--server", ":1"], "HOST"),
            (&["--allow", "10.0.0.0/33"], "192.168.1.0/24"),
            (&["--manage", "yes"], "on or off"),
        ] {
            let error = run(args, &[]).expect_err("refused").to_string();
            assert!(error.contains(want), "{args:?}: {error}");
        }
    }

    #[test]
    fn commands_take_their_own_switches_only() {
        let Ok(Command::Tool(tool)) = run(&["takeover", "--undo", "--listen", "[::1]:9"], &[])
        else {
            panic!("a command")
        };
        assert!(tool.has("undo") && !tool.has("yes") && tool.operands.is_empty());
        assert_eq!(tool.settings.listen.len(), 1);
        for (args, want) in [
            (&["serve", "--undo"][..], "serve does not take --undo"),
            (&["takeover", "now"], "takeover does not take \"now\""),
            (&["help", "nobody"], "no help about"),
        ] {
            let error = run(args, &[]).expect_err("refused").to_string();
            assert!(error.contains(want), "{args:?}: {error}");
        }
        for verb in VERBS {
            assert!(HELP_COMMANDS.contains(verb.name), "{}", verb.name);
            let is_told = |switch: &&&str| HELP_COMMANDS.contains(&format!("--{switch}"));
            assert!(verb.switches.iter().all(|s| is_told(&s)), "{}", verb.name);
        }
    }

    #[test]
    fn ollama_host_counts_only_on_this_machine() {
        assert_eq!(settings(&[], &[("OLLAMA_HOST", "127.0.0.2:9")]).ollama_url().port, 9);
        assert_eq!(settings(&[], &[("OLLAMA_HOST", "0.0.0.0:9")]).ollama_url().port, 9);
        assert_eq!(settings(&[], &[("OLLAMA_HOST", "10.1.2.3:9")]).ollama, None);
        assert_eq!(settings(&[], &[("OLLAMA_HOST", "https://x")]).ollama, None);
    }
}
