use std::ffi::OsString;

use super::commands::{COMMANDS, CommandSpec, Switch};
use super::options::OptionSpec;
use super::topics::{TOPICS, options};
use super::*;
use crate::config::{ModeChoice, Settings};

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

fn shown(args: &[&str]) -> String {
    match run(args, &[]) {
        Ok(Command::Print(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn refused(args: &[&str]) -> String {
    run(args, &[]).expect_err("refused").to_string()
}

fn option(name: &str) -> &'static OptionSpec {
    options().find(|option| option.name() == name).expect("an option")
}

/// A value that an option takes, and that isn't its default.
fn sample(option: &OptionSpec) -> &'static str {
    if let Some(word) = option.choices().into_iter().find(|word| *word != option.default) {
        return word;
    }
    match option.value() {
        "ADDR:PORT" => "127.0.0.9:9",
        "DIR" | "FILE" => "/somewhere",
        "HOST[:PORT]" | "NAME" | "SERVER" | "SERVER|MAC" => "desktop",
        "NAME=MODEL[,MODEL]" => "gpt-4o=qwen3,llama3.2",
        "MODEL=SERVER" => "llama3.2=desktop",
        "N" => "20",
        "RANGE" => "10.0.0.0/8",
        "SIZE" => "2k",
        "T" => "7s",
        "URL" => "127.0.0.1:9",
        other => panic!("what is {other}?"),
    }
}

#[test]
fn flags_win_over_variables_and_lists_add_up() {
    let env = [("OLLANA_MODE", "server"), ("OLLANA_SERVER", "a,b:7"), ("OLLANA_LISTEN", "")];
    let s = settings(&["serve"], &env);
    assert_eq!(s.mode, ModeChoice::Server);
    let names: Vec<String> = s.servers.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a", "b:7"]);
    let s = settings(&["--mode", "client", "--server=c", "--server", "[::1]:9"], &env);
    assert_eq!(s.mode, ModeChoice::Client);
    let names: Vec<String> = s.servers.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["c", "[::1]:9"]);
}

#[test]
fn every_flag_is_a_variable_and_the_first_flag_of_a_list_clears_it() {
    let debug = |args: &[&str], env: &[(&str, &str)]| format!("{:?}", settings(args, env));
    let usual = debug(&[], &[]);
    for option in options() {
        let (flag, variable) = (format!("--{}", option.name()), option.variable());
        let value = sample(option);
        let by_flag = debug(&[&flag, value], &[]);
        assert_ne!(by_flag, usual, "{flag}");
        assert_eq!(debug(&[], &[(&variable, value)]), by_flag, "{variable}");
        assert_eq!(debug(&[&flag, value], &[(&variable, value)]), by_flag, "{flag}");
        let twice = debug(&[&flag, value, &flag, value], &[]);
        assert_eq!(twice != by_flag, option.is_list(), "{flag}");
        let two = [value, value].join(",");
        let reads_two = run(&[], &[(&variable, &two)]);
        assert!(!option.is_list() || reads_two.is_ok(), "{variable}");
    }
    assert_eq!(option("log-level").variable(), "OLLANA_LOG_LEVEL");
}

#[test]
fn defaults_are_what_the_help_says() {
    // Lists are empty, and these say where a value comes from.
    let told: &[&str] = &["ollama", "state-dir", "unpaired"];
    for option in options().filter(|option| !option.is_list() && !told.contains(&option.name())) {
        let mut settings = Settings::default();
        if !option.default.is_empty() {
            option.set(&mut settings, option.default).expect("a value");
        }
        let want = format!("{:?}", Settings::default());
        assert_eq!(format!("{settings:?}"), want, "--{} {}", option.name(), option.default);
    }
}

#[test]
fn every_option_has_a_meaning_and_a_line_of_help() {
    // Texts may tell of an option, too.
    let pages = TOPICS.iter().filter(|topic| !topic.options.is_empty());
    let pages: Vec<String> = pages.map(|topic| shown(&["help", topic.name])).collect();
    for option in options() {
        let line = format!("\n  {} ", option.usage());
        let on = pages.iter().filter(|page| page.contains(&line)).count();
        assert_eq!(on, 1, "--{} is on {on} pages", option.name());
        assert_eq!(options().filter(|other| other.name() == option.name()).count(), 1);
        assert!(!option.text.is_empty() && !option.value().is_empty(), "{}", option.name());
        assert!(option.is_list() || option.set(&mut Settings::default(), sample(option)).is_ok());
    }
}

#[test]
fn everything_is_described() {
    for option in options() {
        assert!(!option.description().starts_with([';', ' ']), "--{}", option.name());
    }
    for command in COMMANDS {
        assert!(!command.about.is_empty(), "{}", command.name());
        assert!(
            command.switches.iter().all(|switch| !switch.text.is_empty()),
            "{}",
            command.name()
        );
    }
    for topic in TOPICS {
        assert!(!topic.text.is_empty() || !topic.options.is_empty(), "{}", topic.name);
    }
}

#[test]
fn help_fits_a_screen() {
    // 24 lines, the last of which is the prompt.
    let narrow = |args: &[&str]| {
        let page = shown(args);
        for line in page.lines() {
            assert!(line.chars().count() <= 80 && line.trim_end() == line, "{args:?}: {line:?}");
        }
        assert!(page.ends_with('\n') && !page.ends_with("\n\n"), "{args:?}");
        page.lines().count()
    };
    for topic in TOPICS {
        // Texts may be longer; they page.
        let lines = narrow(&["help", topic.name]);
        assert!(lines < 24 || topic.options.is_empty(), "{}: {lines} lines", topic.name);
    }
    for command in COMMANDS {
        // The doctor heeds half of the options.
        let lines = narrow(&[command.name(), "--help"]);
        assert!(lines < 24 || command.name() == "doctor", "{}: {lines} lines", command.name());
    }
    let overview = narrow(&["--help"]);
    assert!(overview < 24, "{overview} lines");
}

#[test]
fn the_first_page_shows_commands_first_and_where_to_read_on() {
    let page = shown(&["--help"]);
    for args in [&["help"][..], &["-h"], &["help", "commands"], &["--mode", "both", "--help"]] {
        assert_eq!(shown(args), page, "{args:?}");
    }
    let options_begin = page.find("\n  --").expect("options");
    for command in COMMANDS {
        let at = page.find(&format!("\n  {}", command.usage)).expect("the command");
        assert!(at < options_begin, "{}", command.name());
    }
    for topic in TOPICS {
        assert!(page.contains(topic.name), "{}", topic.name);
    }
    let options = page[options_begin..].matches("\n  --").count();
    assert_eq!(options, 3, "none of those most used is misspelled");
}

#[test]
fn every_command_has_help() {
    for command in COMMANDS {
        let name = command.name();
        let page = shown(&[name, "--help"]);
        let usage = format!("Usage: ollana {}", command.synopsis());
        assert!(page.starts_with(&usage), "{page}");
        for switch in command.switches {
            assert!(page.contains(&format!("\n  --{} ", switch.name)), "{name} --{}", switch.name);
        }
        for option in command.taken().filter(|_| name != "serve") {
            assert!(page.contains(&format!("\n  {} ", option.usage())), "{name} {}", option.name());
        }
        assert_eq!(shown(&["--help", name]), page);
        assert_eq!(shown(&[name, "-h"]), page);
        let with_topic = shown(&["help", name]);
        assert!(with_topic.starts_with(&page), "{name}");
        let has_topic = TOPICS.iter().any(|topic| topic.name == name);
        assert_eq!(with_topic == page, !has_topic, "{name}");
    }
    for topic in TOPICS.iter().filter(|topic| !topic.options.is_empty()) {
        assert!(shown(&["serve", "--help"]).contains(topic.name), "{}", topic.name);
    }
    assert_eq!(
        shown(&["status", "--version"]),
        concat!("ollana ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn commands_name_options_that_exist() {
    for command in COMMANDS {
        let is_known = |name: &&&str| options().any(|option| option.name() == **name);
        let unknown: Vec<&&str> = command.options.iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", command.name());
    }
}

#[test]
fn bad_command_lines_say_what_is_wrong() {
    for (args, want) in [
        (&["--nope"][..], "--nope"),
        (&["-x"], "unknown option -x"),
        (&["frobnicate"], "frobnicate"),
        (&["--mode", "neither"], "auto, client, server or both"),
        (&["--mode"], "mode"),
        (&["--listen", "11434"], "ADDR:PORT"),
        (&["--discovery-port", "65536"], "0 to 65535"),
        (&["--head-timeout", "0"], "250ms"),
        (&["--server", ":1"], "HOST"),
        (&["--server", "https://desktop"], "https://desktop: expected HOST or HOST:PORT"),
        (&["--server", "http://desktop/v1"], "desktop/v1: expected HOST or HOST:PORT"),
        (&["--host", "https://ai.example.com"], "https://ai.example.com: expected a name, such as"),
        (&["--host", "ai.example.com/"], "expected a name, such as gpu.example.com"),
        (&["--host", "*.example.com"], "expected a name"),
        (&["--host", "two names"], "expected a name"),
        (&["--host", "."], "expected a name"),
        (&["--host", "0.0.0.0"], "expected a name; the address to answer at is --listen ADDR:PORT"),
        (&["--host", "0.0.0.0:11434"], "--listen ADDR:PORT"),
        (&["--host", "[::]:11434"], "--listen ADDR:PORT"),
        (&["--host", "fe80::1%eth0"], "--listen ADDR:PORT"),
        (&["--allow", "10.0.0.0/33"], "192.168.1.0/24"),
        (&["--manage", "yes"], "on or off"),
        (&["--log-level", "trace"], "off, error, warn, info or debug"),
        (&["--max-head", "2m"], "1k to 1m"),
        (&["--max-fields", "129"], "10 to 128"),
        (&["--pin", "=x"], "MODEL=SERVER"),
        (&["--alias", "gpt-4o"], "NAME=MODEL"),
        (&["--alias", "a=A:latest"], "stand for itself"),
    ] {
        let error = refused(args);
        assert!(error.contains(want), "{args:?}: {error}");
        assert!(error.ends_with("\ntry 'ollana --help'"), "{args:?}: {error}");
    }
    let error = run(&[], &[("OLLANA_RISE", "0")]).expect_err("refused").to_string();
    assert!(error.starts_with("OLLANA_RISE: 0: expected a number from 1 to 100\n"), "{error}");
    for args in [&["--help"][..], &["help", "limits"], &["status", "-h"], &["--version"]] {
        let help = run(args, &[("OLLANA_RISE", "0")]);
        assert!(matches!(help, Ok(Command::Print(_))), "{args:?}: {help:?}");
    }
}

#[test]
fn a_host_is_a_name_however_it_is_written() {
    for value in
        ["gpu.example.com", "GPU.example.com.", "gpu.example.com:11434", "gpu.example.com.:80"]
    {
        assert_eq!(settings(&["--host", value], &[]).hosts, ["gpu.example.com"], "{value}");
    }
    assert_eq!(settings(&[], &[("OLLANA_HOST", "box:11434,my_pi")]).hosts, ["box", "my_pi"]);
    // By analogy with OLLAMA_HOST.
    let error = run(&[], &[("OLLANA_HOST", "0.0.0.0:11434")]).expect_err("refused").to_string();
    assert!(error.starts_with("OLLANA_HOST: 0.0.0.0:11434: expected a name; "), "{error}");
}

#[test]
fn a_server_may_be_written_as_in_ollama_host() {
    for (value, want) in [
        ("http://desktop:11434", "desktop:11434"),
        ("http://desktop:11434/", "desktop:11434"),
        ("desktop:11434/", "desktop:11434"),
        ("http://desktop", "desktop"),
        ("http://[fe80::1%eth0]:9/", "[fe80::1%eth0]:9"),
    ] {
        let servers = settings(&["--server", value], &[]).servers;
        assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), [want], "{value}");
    }
}

#[test]
fn only_lists_are_cut_at_commas() {
    let env = [("OLLANA_STATE_DIR", "/a,b"), ("OLLANA_LOG_FILE", " /c,d ")];
    let Settings { state_dir, log_file, .. } = settings(&[], &env);
    assert_eq!(state_dir, Some("/a,b".into()));
    assert_eq!(log_file, std::path::absolute("/c,d").ok());
}

#[test]
fn misspelled_names_are_recognised() {
    for (args, want) in [
        (&["satus"][..], "unknown command \"satus\"; did you mean status?"),
        (&["status", "--hepl"], "unknown option --hepl; did you mean --help?"),
        (&["--log-levl", "debug"], "unknown option --log-levl; did you mean --log-level?"),
        (&["status", "--wach"], "unknown option --wach; did you mean --watch?"),
        (&["help", "limts"], "no help about \"limts\"; did you mean limits?"),
        (&["help", "docter"], "no help about \"docter\"; did you mean doctor?"),
        (&["frobnicate"], "unknown command \"frobnicate\"\n"),
        (&["--frobnicate"], "unknown option --frobnicate\n"),
    ] {
        let error = refused(args);
        assert!(error.starts_with(want), "{args:?}: {error}");
    }
}

#[test]
fn help_about_nothing_lists_what_there_is() {
    let error = refused(&["help", "nobody"]);
    assert!(error.starts_with("no help about \"nobody\"\n"), "{error}");
    let listed = |name: &str| error.split([' ', ',', '\n']).filter(|word| *word == name).count();
    for command in COMMANDS {
        assert!(listed(command.name()) > 0, "{}", command.name());
    }
    for topic in TOPICS {
        assert!(listed(topic.name) > 0, "{}", topic.name);
    }
    assert!(error.lines().all(|line| line.len() <= 80), "{error}");
}

/// What a command can't do without.
fn operands(command: &CommandSpec) -> Vec<&'static str> {
    let word = |_| command.words().first().copied().unwrap_or("k7pm2-xvd9q");
    command.needed_operands().map(word).collect()
}

#[test]
fn what_a_command_needs_must_be_there() {
    let mut needy = Vec::new();
    for command in COMMANDS {
        let (name, operands) = (command.name(), operands(command));
        assert!(run(&[&[name][..], &operands].concat(), &[]).is_ok(), "{name}");
        let Some(needed) = command.needed_operands().next() else { continue };
        needy.push(name);
        for nothing in [&[name][..], &[name, ""]] {
            let error = refused(nothing);
            assert!(error.starts_with(&format!("{name} takes {needed}: ")), "{error}");
        }
    }
    assert_eq!(needy, ["pull", "cp", "forget", "unpair", "token", "service", "completions"]);
    for (args, want) in [
        (
            &["completions", "fihs"][..],
            "completions \"fihs\": expected bash, zsh or fish; did you mean fish?",
        ),
        (
            &["service", "instal"],
            "service \"instal\": expected install, remove, status or firewall; did you mean install?",
        ),
        (
            &["service", "uninstall"],
            "service \"uninstall\": expected install, remove, status or firewall; did you mean remove?",
        ),
        (&["unpair", "--all", "nas"], "unpair takes a name or --all, not both"),
    ] {
        assert!(refused(args).starts_with(want), "{args:?}: {}", refused(args));
    }
    assert!(run(&["unpair", "--all"], &[]).is_ok());
}

#[test]
fn unknown_variables_are_told() {
    let names =
        ["OLLANA_LOG_LEVL", "OLLANA_LOG_LEVEL", "PATH", "OLLANA_BACKGROUND", "OLLANA_QUITE_ELSE"];
    let told = unknown_variables(names.map(OsString::from));
    let want = [
        "the variable OLLANA_LOG_LEVL means nothing to ollana; did you mean OLLANA_LOG_LEVEL?",
        "the variable OLLANA_QUITE_ELSE means nothing to ollana",
    ];
    assert_eq!(told, want);
    let all = options().map(|option| OsString::from(option.variable()));
    assert!(unknown_variables(all).is_empty());
}

#[test]
fn commands_take_their_own_switches_only() {
    let Ok(Command::Tool(tool)) = run(&["takeover", "--undo", "--listen", "[::1]:9"], &[]) else {
        panic!("a command")
    };
    assert!(tool.has("undo") && !tool.has("yes") && tool.operands.is_empty());
    assert_eq!(tool.settings.listen.len(), 1);
    for (args, want) in [
        (&["serve", "--undo"][..], "serve does not take --undo"),
        (&["takeover", "now"], "takeover does not take \"now\""),
        (&["pair", "a", "b", "c"], "pair does not take \"c\""),
        (&["help", "nobody"], "no help about"),
        (&["help", "limits", "access"], "help does not take \"access\""),
    ] {
        let error = refused(args);
        assert!(error.contains(want), "{args:?}: {error}");
    }
    for command in COMMANDS {
        let operands = operands(command);
        let takes = |switch: &Switch| {
            let flag = match switch.value {
                "" => format!("--{}", switch.name),
                value => format!("--{}={value}", switch.name),
            };
            let operands = if switch.name == "all" { &[] } else { &operands[..] };
            run(&[&[command.name(), &flag], operands].concat(), &[]).is_ok()
        };
        let own = |command: &CommandSpec, name: &str| {
            command.switches.iter().any(|switch| switch.name == name)
        };
        for switch in COMMANDS.iter().flat_map(|command| command.switches) {
            let want = own(command, switch.name);
            assert_eq!(takes(switch), want, "{} --{}", command.name(), switch.name);
        }
    }
    assert!(settings(&["--daemon"], &[]).daemon && !settings(&["serve"], &[]).daemon);
}

#[test]
fn values_and_choices_are_the_parsers_own() {
    assert_eq!(option("mode").choices(), ["auto", "client", "server", "both"]);
    assert_eq!(option("log-level").choices(), ["off", "error", "warn", "info", "debug"]);
    assert_eq!(option("log-format").choices(), ["text", "json"]);
    for name in ["listen", "discovery-port", "head-timeout", "max-head", "server"] {
        assert_eq!(option(name).choices(), [] as [&str; 0], "{name}");
    }
    for option in options().filter(|option| !option.choices().is_empty()) {
        for word in option.choices() {
            option.set(&mut Settings::default(), word).expect("a choice");
            option.set(&mut Settings::default(), &word.to_uppercase()).expect("in any case");
            let says = format!("{} {}", option.value(), option.text);
            assert!(says.contains(word), "--{} {word}", option.name());
        }
        let error = option.set(&mut Settings::default(), "\u{0}").expect_err("no choice");
        assert!(option.choices().iter().all(|word| error.contains(word)), "{error}");
    }
    assert_eq!(option("listen").value(), "ADDR:PORT");
    assert_eq!(option("fall").value(), "N");
    assert_eq!(option("log-file").value(), "FILE");
    let listen = option("listen").description();
    let default = listen.rsplit_once(" [client ").expect("a default").1;
    assert_eq!(default, "127.0.0.1:11434 and [::1]:11434, server 0.0.0.0:11435]");
    for address in default.trim_end_matches(']').split([' ', ',']).filter(|it| it.contains(':')) {
        assert!(run(&["--listen", address], &[]).is_ok(), "{address}");
    }
}

#[test]
fn ollama_host_counts_only_on_this_machine() {
    assert_eq!(settings(&[], &[("OLLAMA_HOST", "127.0.0.2:9")]).ollama_url().port, 9);
    assert_eq!(settings(&[], &[("OLLAMA_HOST", "0.0.0.0:9")]).ollama_url().port, 9);
    assert_eq!(settings(&[], &[("OLLAMA_HOST", "10.1.2.3:9")]).ollama, None);
    assert_eq!(settings(&[], &[("OLLAMA_HOST", "https://x")]).ollama, None);
}

#[test]
fn a_variable_has_the_models_of_an_alias_between_its_commas() {
    let env = [("OLLANA_ALIAS", "gpt-4o=qwen3, llama3.2,fast=tiny")];
    for s in [
        settings(&[], &env),
        settings(&["--alias=gpt-4o=qwen3,llama3.2", "--alias", "fast=tiny"], &[]),
    ] {
        let models = |name: &str| s.aliases.find(name).expect(name).models.len();
        assert_eq!((models("gpt-4o"), models("fast")), (2, 1));
    }
    assert!(settings(&["--alias", "a=b"], &env).aliases.find("fast").is_none());
}
