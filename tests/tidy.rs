//! The house rules that a compiler doesn't check: rooms, arrows, owners of libraries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of src/, highest first, in floors. A room imports only from floors below its own.
const FLOORS: &[&[&str]] = &[
    &["tools"],
    &["serve"],
    &["proxy", "discovery"],
    &["status"],
    &["sharing"],
    &["manager"],
    &["upstream"],
    &["pairing"],
    &["cli", "log"],
    &["config"],
    &["library"],
    &["access"],
    &["ollama"],
    &["http"],
    &["counters"],
    &["net"],
    &["system"],
];

/// Crates that only these files may name.
const OWNERS: &[(&str, &[&str])] = &[
    ("tiny_http", &["proxy::tiny_gate"]),
    // The exchange only names the type of an answer's body.
    (
        "ureq",
        &[
            "upstream",
            "proxy::exchange::forward",
            "proxy::exchange::judged",
            "proxy::exchange::relay",
            "proxy::exchange::pull",
        ],
    ),
    ("lexopt", &["cli::parse"]),
    ("simplelog", &["log"]),
    ("ctrlc", &["serve::signals", "tools::screen"]),
    ("signal_hook", &["serve::signals", "tools::screen"]),
    ("if_addrs", &["net::interfaces"]),
    ("httparse", &["http::head"]),
    ("snow", &["pairing::noise"]),
    ("blake2", &["pairing::noise::key"]),
    ("ring", &["pairing::noise::session", "proxy::exchange::own", "sharing::put"]),
    ("ruzstd", &["proxy::zstd"]),
    ("qrcodegen", &["tools::qr"]),
];

/// Where it is asked which operating system this is; elsewhere one line of a file may.
const SYSTEMS: &[&str] = &[
    "main",
    "net::os",
    "serve::ollama_watch",
    "serve::signals",
    "system::os",
    "serve::systemd",
    "tools::doctor::firewall",
    "tools::doctor::local",
    "tools::screen",
];

/// Rooms, and files of other rooms, that must not know of sockets, threads, clocks or the log.
const PURE: &[&str] = &[
    "access",
    "ollama",
    "http",
    "config",
    "manager::pool",
    "manager::queue",
    "discovery::matching",
    "discovery::packet",
    "discovery::rate_limit",
    "discovery::schedule",
    "pairing::code",
    "pairing::identity",
    "pairing::noise",
    "pairing::peers",
    "proxy::exchange::retry",
    "net::untrusted_text",
];

/// Lines that a file may have without a reason in its head.
const LONG: usize = 450;

struct Source {
    /// Path of its module below the crate, such as `manager::pool`; `main` and `lib` for the roots.
    module: String,
    /// Everything in front of its tests.
    text: String,
    lines: usize,
}

impl Source {
    fn code(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.trim_start().starts_with("//"))
    }

    fn room(&self) -> &str {
        self.module.split("::").next().unwrap_or_default()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        let within = |place: &&str| {
            self.module
                .strip_prefix(*place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        places.iter().any(within)
    }
}

/// All of src/ but files of tests.
fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of src/") {
            let path = entry.expect("an entry").path();
            let is_code = path.extension().is_some_and(|kind| kind == "rs");
            if path.is_dir() {
                walk(&path, found);
            } else if is_code && path.file_stem().is_some_and(|stem| stem != "tests") {
                found.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&src, &mut paths);
    paths.sort();
    assert!(paths.len() > 60, "src/ was found");
    let source = |path: PathBuf| {
        let place = path.strip_prefix(&src).expect("within src/").with_extension("");
        let module = place.to_str().expect("UTF-8").replace('/', "::");
        let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
        let text = fs::read_to_string(&path).expect("text");
        let text = without_tests(&text).to_owned();
        let lines = text.lines().count();
        Source { module, text, lines }
    };
    paths.into_iter().map(source).collect()
}

/// The code in front of the first module of tests; single items for tests count as code.
fn without_tests(text: &str) -> &str {
    let is_module = |at: &usize| {
        let item = text[*at..].lines().find(|line| !line.starts_with('#'));
        item.is_some_and(|line| line.starts_with("mod "))
    };
    let mut marks = text.match_indices("#[cfg(test)]").map(|(at, _)| at);
    marks.find(is_module).map_or(text, |at| &text[..at])
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once('{') else {
        return vec![path.split(" as ").next().unwrap_or_default().trim().to_owned()];
    };
    let inner = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(expand).map(|part| format!("{}{part}", head.trim_start())).collect()
}

/// The modules that a file imports or names by their path. What it only passes on (`pub use`) is
/// left out.
fn imports(source: &Source, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let code: String = source.code().collect::<Vec<_>>().join("\n");
    let mut paths = Vec::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find("use ") {
        let (before, from) = rest.split_at(at);
        let line = before.rsplit('\n').next().unwrap_or_default().trim();
        let end = from.find(';').unwrap_or(from.len());
        if line.is_empty() {
            paths.extend(expand(&from["use ".len()..end]));
        }
        rest = &from["use ".len()..];
    }
    for line in code
        .lines()
        .filter(|line| !line.trim_start().starts_with("use ") && !line.contains("pub use"))
    {
        for (at, _) in line.match_indices("crate::").chain(line.match_indices("super::")) {
            let end = line[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            paths.push(line[at..end.map_or(line.len(), |end| at + end)].to_owned());
        }
    }
    let resolve = |path: &String| {
        let mut base: Vec<&str> = source.module.split("::").collect();
        let mut parts: Vec<&str> = path.split("::").map(str::trim).collect();
        match parts.first().copied() {
            Some("crate") => base.clear(),
            Some("super") => {
                base.pop();
            }
            Some("self") => {}
            // In the 2018 way: a submodule, or another crate.
            Some(_) => parts.insert(0, "self"),
            None => {}
        }
        parts.remove(0);
        while parts.first() == Some(&"super") {
            base.pop();
            parts.remove(0);
        }
        let full: Vec<&str> = base.into_iter().chain(parts).collect();
        (1..=full.len()).rev().map(|len| full[..len].join("::")).find(|path| modules.contains(path))
    };
    let found = paths.iter().filter_map(resolve);
    found.filter(|module| *module != source.module).collect()
}

fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let modules: BTreeSet<String> = sources.iter().map(|source| source.module.clone()).collect();
    sources.iter().map(|source| (source.module.clone(), imports(source, &modules))).collect()
}

fn floor(room: &str) -> usize {
    let at = FLOORS.iter().position(|floor| floor.contains(&room));
    at.unwrap_or_else(|| panic!("{room} is on no floor: add it to FLOORS"))
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

#[test]
fn src_shows_rooms_and_nothing_else() {
    let rooms: BTreeSet<&str> = FLOORS.iter().flat_map(|floor| floor.iter().copied()).collect();
    for source in
        sources().iter().filter(|source| !matches!(source.module.as_str(), "main" | "lib"))
    {
        assert!(rooms.contains(source.room()), "{} is in no room", source.module);
    }
}

#[test]
fn arrows_between_rooms_go_down() {
    let mut wrong = Vec::new();
    for (module, imports) in graph() {
        for import in imports.iter().filter(|_| !matches!(module.as_str(), "main" | "lib")) {
            if room(import) != room(&module) && floor(room(import)) <= floor(room(&module)) {
                wrong.push(format!("{module} imports {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "which isn't below it: {}", wrong.join("\n"));
}

#[test]
fn no_circle_inside_a_room() {
    fn reach(from: &str, graph: &BTreeMap<String, BTreeSet<String>>, seen: &mut Vec<String>) {
        for next in graph.get(from).into_iter().flatten().filter(|next| room(next) == room(from)) {
            if !seen.contains(next) {
                seen.push(next.clone());
                reach(next, graph, seen);
            }
        }
    }
    let graph = graph();
    let circle = |module: &&String| {
        let mut seen = Vec::new();
        reach(module, &graph, &mut seen);
        seen.contains(module)
    };
    let circles: Vec<&String> = graph.keys().filter(circle).collect();
    assert!(circles.is_empty(), "these import each other: {circles:?}");
}

#[test]
fn the_map_names_files_that_exist() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(src.join("lib.rs")).expect("lib.rs");
    let is_path = |word: &&str| {
        word.contains('/') && word.bytes().all(|b| b.is_ascii_lowercase() || b"/_".contains(&b))
    };
    let lives = map.lines().filter(|line| line.starts_with("//! ") && !line.starts_with("//! |"));
    let named: Vec<&str> = lives.flat_map(|line| line.split('`')).filter(is_path).collect();
    assert!(named.len() > 30, "the lives of a request and of a datagram: {named:?}");
    for name in named {
        // Parts of the exchange are named without their room.
        let places = [src.join(name), src.join("proxy").join(name)];
        let exists = |place: &PathBuf| place.is_dir() || place.with_extension("rs").is_file();
        assert!(places.iter().any(exists), "lib.rs names {name}");
    }
    for life in ["request", "datagram"] {
        let start = map.find(&format!("# The life of a {life}")).expect("a life");
        let lines = map[start..].lines().skip(2).take_while(|line| line.len() > 3).count();
        assert!(lines <= 15, "the life of a {life} has {lines} lines");
    }
}

#[test]
fn long_files_say_why() {
    for source in sources().iter().filter(|source| source.lines > LONG) {
        let head = source.text.lines().take_while(|line| line.starts_with("//!"));
        let says = head.filter(|line| line.contains("Long because")).count() > 0;
        assert!(
            says,
            "{}: {} lines, and no \"Long because\" in its head",
            source.module, source.lines
        );
    }
}

#[test]
fn each_library_has_one_owner() {
    for source in sources() {
        for (library, owners) in OWNERS {
            let path = format!("{library}::");
            let is_part = |c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':');
            let used =
                source.code().any(|line| line.split(is_part).any(|part| part.starts_with(&path)));
            assert!(
                !used || source.is_in(owners),
                "{} uses {library}, which belongs to {owners:?}",
                source.module
            );
        }
    }
}

#[test]
fn the_pure_core_is_pure() {
    const IMPURE: &[&str] = &[
        "TcpStream",
        "UdpSocket",
        "std::thread",
        "std::fs",
        "std::io",
        "Instant::now",
        "SystemTime",
        "log::error",
        "log::warn",
        "log::info",
        "log::debug",
        "log::trace",
        "crossbeam",
        "Mutex",
        "Atomic",
    ];
    for source in sources().iter().filter(|source| source.is_in(PURE)) {
        for line in source.code() {
            for word in IMPURE {
                assert!(!line.contains(word), "{}: {line}", source.module);
            }
        }
    }
}

#[test]
fn no_async_and_nothing_that_panics_on_purpose() {
    const FORBIDDEN: &[&str] = &[
        "async ",
        ".await;",
        ".await?",
        "tokio",
        ".unwrap()",
        ".expect(",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "unreachable!(",
    ];
    for source in sources() {
        for line in source.code() {
            for word in FORBIDDEN {
                assert!(!line.contains(word), "{}: {line}", source.module);
            }
        }
    }
}

/// Those of std panic where the reader has left (`| head`), and where a disk is full.
#[test]
fn nothing_is_printed_by_macros() {
    for source in sources() {
        for line in source.code() {
            let has = ["print!(", "println!("].iter().any(|word| line.contains(word));
            assert!(!has, "{}: {line}: see tools::say and system::to_stderr", source.module);
        }
    }
}

#[test]
fn few_files_ask_which_system_this_is() {
    const WORDS: &[&str] = &["unix", "windows", "target_os", "target_family", "target_vendor"];
    let asks = |line: &&str| {
        let conditions = line.split("cfg").skip(1).map(|rest| rest.split(']').next());
        conditions
            .flatten()
            .any(|it| it.contains('(') && WORDS.iter().any(|word| it.contains(word)))
    };
    for source in sources().iter().filter(|source| !source.is_in(SYSTEMS)) {
        let lines: Vec<&str> = source.code().filter(asks).collect();
        assert!(
            lines.len() <= 1,
            "{} asks for the system: {lines:#?}\nwhat differs belongs into net::os or system::os",
            source.module
        );
    }
}

/// What people may get to read: every string of `src/` with a blank in it, tests left out, by module.
fn messages() -> Vec<(String, String)> {
    let texts = |source: Source| {
        let texts = strings(&source.text).into_iter();
        texts.map(move |text| (source.module.clone(), text))
    };
    let all = sources().into_iter().flat_map(texts);
    all.filter(|(_, text)| text.trim().contains(' ')).collect()
}

/// The string literals of a Rust source, lines joined as the compiler does it.
fn strings(code: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find(['/', '\'', '"']) {
        let is_raw = rest[..at].ends_with('r') || rest[..at].ends_with("r#");
        let (begin, here) = (&rest[at..at + 1], &rest[at + 1..]);
        rest = match begin {
            "/" if here.starts_with('/') => here.split_once('\n').map_or("", |(_, next)| next),
            "/" => here,
            // A character; a lifetime has no end like it.
            "'" => {
                let mut chars = here.char_indices();
                let is_escaped = here.starts_with('\\');
                let end = chars.nth(1 + usize::from(is_escaped)).filter(|(_, c)| *c == '\'');
                end.map_or(here, |(end, _)| &here[end + 1..])
            }
            _ if is_raw => {
                let end = if rest[..at].ends_with('#') { "\"#" } else { "\"" };
                let (text, next) = here.split_once(end).expect("the end of a raw string");
                found.push(text.to_owned());
                next
            }
            _ => {
                let (mut text, mut chars) = (String::new(), here.char_indices());
                let mut end = here.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = at;
                            break;
                        }
                        '\\' => match chars.next().map_or(' ', |(_, c)| c) {
                            '\n' => {
                                let blanks =
                                    chars.as_str().len() - chars.as_str().trim_start().len();
                                if let Some(last) = blanks.checked_sub(1) {
                                    chars.nth(last);
                                }
                            }
                            'n' => text.push('\n'),
                            c => text.push(c),
                        },
                        c => text.push(c),
                    }
                }
                found.push(text);
                here.get(end + 1..).unwrap_or_default()
            }
        };
    }
    found
}

#[test]
fn messages_have_the_words_that_people_know() {
    let all = messages();
    assert!(all.len() > 800, "{} messages", all.len());
    let known = "no server found in {seconds} s: {why}; ollana doctor says more";
    assert!(all.iter().any(|(_, text)| text == known), "the list has what is in the source");
    for (file, text) in &all {
        // Without what is put in.
        let said: String =
            text.split('{').map(|it| it.split_once('}').map_or(it, |it| it.1)).collect();
        let words: Vec<&str> = said.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        // Only the code tells members of the pool, and ends of connections, from servers and machines.
        for word in ["backend", "backends", "peer", "upstream", "downstream", "daemon"] {
            let is_told = words.contains(&word) && !text.contains("--daemon");
            assert!(!is_told, "{file}: {word:?} in {text:?}");
        }
    }
}

/// For `make messages`.
#[test]
#[ignore = "a list to read, no test"]
fn list_of_messages() {
    let mut last = String::new();
    for (module, text) in messages() {
        if module != last {
            println!("\n{module}");
            last = module;
        }
        println!("  {}", text.replace('\n', "\n  "));
    }
}
