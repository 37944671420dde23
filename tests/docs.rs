//! README.md, the texts of `ollana help` and scripts/bench/README.md: what they name is there.

#[path = "docs/claims.rs"]
mod claims;
mod support;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{
    Ollama, Process, World, assert_is_there, eventually, free_tcp_port, free_udp_port, readme,
};

/// Topics that are made of the table of options, and have no file.
const FROM_OPTIONS: [&str; 4] = ["access", "limits", "options", "service"];
/// Options of other programs, and the file of ours that has them, if there is one.
const FOREIGN: &[(&str, &str)] = &[
    ("--uninstall", "scripts/install.sh"),
    ("--bench", ""),
    ("--quick", "scripts/bench/main.rs"),
    ("--full", "scripts/bench/main.rs"),
    ("--paired", "scripts/bench/main.rs"),
    ("--only", "scripts/bench/main.rs"),
    ("--page", "scripts/bench/main.rs"),
    ("--redraw", "scripts/bench/main.rs"),
    ("--locked", ""),
    ("--root", ""),
    ("--network", "scripts/service/Dockerfile"),
    ("--from", "scripts/install.sh"),
    ("--open", ""),
    ("--add-port", ""),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of help topics, by topic.
fn topics() -> Vec<(String, String)> {
    let folder = std::fs::read_dir(root().join("src/cli/help")).expect("the folder of help texts");
    let paths = folder.map(|entry| entry.expect("a file").path());
    let topic = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
    paths.map(|path| (topic(&path), read(&path))).collect()
}

/// Every text that is looked at, by its name.
fn texts() -> Vec<(String, String)> {
    let files = ["README.md", "scripts/bench/README.md"];
    files.map(|path| (path.to_owned(), read(path))).into_iter().chain(topics()).collect()
}

fn ollana(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ollana")).args(arguments).env_clear().output();
    let output = output.expect("run ollana");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What bash is offered: every option, every command, and more.
fn completions() -> BTreeSet<String> {
    let script = ollana(&["completions", "bash"]);
    words(&script, |c| matches!(c, 'a'..='z' | '0'..='9' | '-')).map(str::to_owned).collect()
}

/// The longest runs of such characters.
fn words(text: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !is_part(c)).filter(|word| !word.is_empty())
}

/// The words of every command line: what Markdown has as code, and help texts in quotes.
fn command_lines(name: &str, text: &str) -> Vec<Vec<String>> {
    let mut code = String::new();
    let odd = |text: &str, quote: &str| {
        let spans = text.split(quote).skip(1).step_by(2);
        spans.map(|span| span.replace('\n', " ") + "\n").collect::<String>()
    };
    if name.ends_with(".md") {
        for (at, part) in text.split("```").enumerate() {
            code += &if at % 2 == 0 { odd(part, "`") } else { part.replace("$ ", "\n") };
        }
    } else {
        code += &odd(text, "\"");
    }
    let lines = code.split(['\n', ';']).map(|line| line.trim().trim_start_matches("sudo "));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn readme_is_short() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 220, "README.md has {} lines", readme.lines().count());
    let prose = readme.lines().filter(|line| !line.starts_with('|'));
    for line in prose {
        assert!(line.chars().count() <= 80, "wider than a terminal: {line}");
    }
}

#[test]
fn topics_fit_a_terminal() {
    for (topic, text) in topics() {
        let title = text.lines().next().unwrap_or_default();
        assert!(title.to_lowercase().starts_with(&format!("{topic}: ")), "{topic}: {title}");
        assert!(text.lines().count() <= 70 && text.ends_with("\n"), "{topic}");
        for line in text.lines() {
            assert!(line.len() <= 78 && line.trim_end() == line, "{topic}: {line:?}");
            assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')), "{topic}: {line:?}");
        }
    }
}

#[test]
fn options_and_variables_exist() {
    let known = completions();
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    for (name, text) in texts() {
        for word in words(&text, is_part) {
            if let Some(variable) = word.strip_prefix("OLLANA_") {
                let option = format!("--{}", variable.to_lowercase().replace('_', "-"));
                let is_bench = read("scripts/bench/main.rs").contains(&format!("`{word}`"));
                assert!(known.contains(&option) || is_bench, "{name}: {word}");
            } else if word.starts_with("--")
                && word.contains(char::is_alphabetic)
                && !known.contains(word)
            {
                let foreign = FOREIGN.iter().find(|(option, _)| *option == word);
                let (_, place) = foreign.unwrap_or_else(|| panic!("{name}: no option {word}"));
                let is_there = place.is_empty() || read(place).contains(word);
                assert!(is_there, "{name}: {place} has no {word}");
            }
        }
    }
}

#[test]
fn commands_topics_and_targets_exist() {
    let known = completions();
    let makefile = read("Makefile");
    let files: Vec<String> = topics().into_iter().map(|(topic, _)| topic).collect();
    let mut seen = BTreeSet::new();
    for (name, text) in texts() {
        for line in command_lines(&name, &text) {
            let line: Vec<&str> = line.iter().map(String::as_str).collect();
            match line[..] {
                ["ollana", "help", topic, ..] => {
                    let is_file = files.iter().any(|file| file == topic);
                    assert!(is_file || FROM_OPTIONS.contains(&topic), "{name}: no topic {topic}");
                    seen.insert(topic.to_owned());
                }
                ["ollana", command, ..] if !command.starts_with("--") => {
                    assert!(known.contains(command), "{name}: no command {command}");
                    seen.insert(format!("ollana {command}"));
                }
                ["make", target, ..] => {
                    assert!(makefile.contains(&format!("\n{target}:")), "{name}: make {target}");
                }
                _ => {}
            }
        }
    }
    for topic in files.iter().map(String::as_str).chain(FROM_OPTIONS) {
        assert!(seen.contains(topic), "nothing names the topic {topic}");
        let shown = ollana(&["help", topic]);
        let texts = topics();
        let written = texts.iter().find(|(name, _)| name == topic);
        assert!(written.is_none_or(|(_, text)| shown.contains(text.trim_end())), "help {topic}");
    }
    for command in ["pair", "peers", "unpair", "status", "models", "discover", "doctor", "takeover"]
    {
        assert!(seen.contains(&format!("ollana {command}")), "nothing names {command}");
    }
    let phony = makefile.lines().find_map(|line| line.strip_prefix(".PHONY: ")).expect("targets");
    for target in phony.split(' ').filter(|target| *target != "help") {
        assert!(
            makefile.contains(&format!("make {target} ")),
            "make help says nothing of {target}"
        );
    }
}

#[test]
fn paths_exist() {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '*');
    let scripts = std::fs::read_dir(root().join("scripts")).expect("the scripts");
    let scripts = scripts.map(|entry| entry.expect("a file").path()).filter(|path| path.is_file());
    let files = scripts.chain(["Makefile", ".ci/run"].map(PathBuf::from));
    let files = files.map(|path| (path.display().to_string(), read(path)));
    for (name, text) in files.chain(texts()) {
        for path in words(&text, is_part) {
            let path = path.trim_end_matches('.');
            let is_ours = ["src/", "tests/", "scripts/"].iter().any(|top| path.starts_with(top));
            if is_ours && !path.contains('*') {
                assert!(root().join(path).exists(), "{name} names {path}, which isn't there");
            }
        }
    }
}

/// The Rust of a folder, without the line breaks within its sentences.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).expect("a folder of src");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let text: String = paths
        .map(|path| match path.extension() {
            None => sources(&path),
            Some(extension) if extension == "rs" => read(path),
            Some(_) => String::new(),
        })
        .collect();
    let parts = text.split("\\\n").enumerate();
    parts.map(|(at, part)| if at == 0 { part } else { part.trim_start() }).collect()
}

/// What ollana says in `ollana help trouble` is what it says.
#[test]
fn messages_are_quoted_as_they_are() {
    let sources = sources(&root().join("src"));
    let is_quote = |line: &&str| {
        line.starts_with("  \"") || line.starts_with("  403") || line.starts_with("  503")
    };
    let text = read("src/cli/help/trouble.txt");
    let quotes = text.lines().filter(is_quote).filter_map(|line| line.split('"').nth(1));
    let pieces: Vec<&str> = quotes.flat_map(|quote| quote.split("...")).map(str::trim).collect();
    assert!(pieces.len() > 4, "{pieces:?}");
    for piece in pieces {
        assert!(sources.contains(piece), "nothing says {piece:?}");
    }
}

/// What README.md shows of a demonstration is what that prints.
#[test]
fn make_run_shows_what_the_readme_shows() {
    let demo = read("scripts/demo.rs");
    let printed = demo.split("println!(").skip(1).filter_map(|rest| rest.split('"').nth(1));
    // The fixed pieces of each line, between what is filled in.
    let printed: Vec<Vec<&str>> = printed
        .map(|line| line.trim_start_matches("\\n").trim_end_matches("\\n"))
        .map(|line| line.split('{').map(|it| it.split_once('}').map_or(it, |it| it.1)).collect())
        .filter(|pieces: &Vec<&str>| pieces.concat().trim().len() > 3)
        .collect();
    let is_printed = |line: &str, pieces: &[&str]| {
        let mut rest = line.strip_prefix(pieces[0])?;
        for piece in &pieces[1..] {
            rest = rest.split_once(piece)?.1;
        }
        Some(())
    };
    for line in readme::block("a stand-in for Ollama").lines().filter(|line| line.trim() != "…") {
        let is_known = printed.iter().any(|pieces| is_printed(line, pieces).is_some());
        assert!(is_known, "the demo does not print {line:?}");
    }
    let answer = demo.split("const ANSWER: &[&str] = &[").nth(1).expect("the answer");
    let answer = answer.split("];").next().expect("its end");
    let tokens = answer.matches('"').count() / 2;
    assert!(answer.contains("\"Every\"") && readme::README.contains(" + 100 ms Every\n"));
    assert!(readme::README.contains(&format!("\n  {tokens} tokens through")), "{tokens} tokens");
    assert!(read("Makefile").contains("target/quick/examples/demo target/quick/ollana"));
}

/// The lines of a server and of a client that have started, with the usual ports in the place of
/// those of this test.
#[test]
fn ollana_is_ready_with_the_lines_of_the_readme() {
    let ollama = Ollama::start(World { version: "0.13.1".to_owned(), ..World::default() });
    let udp = free_udp_port();
    let ready = |arguments: &str, usual: &str, own: &str| {
        let process = Process::start(&format!("{arguments} --discovery-port {udp} --ollama {own}"));
        let addresses = process.addresses();
        let line = process.line("ready mode=");
        let line = line.split_once(' ').expect("a time").1.replace(&format!("//{own}"), "//OLLAMA");
        let listen: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let line = line.replace(&format!("listen={}", listen.join(",")), usual);
        line.replace("OLLAMA", "127.0.0.1:11434").replace(&format!("{udp}"), "11436")
    };
    let shown = |command: &str| {
        let said = readme::said_to(command).split_whitespace().collect::<Vec<_>>().join(" ");
        said.strip_prefix("… ").expect("the time is left out").to_owned()
    };
    let address = ollama.address.to_string();
    let server = ready("--listen 127.0.0.1:0", "listen=0.0.0.0:11435", &address);
    // Where it listens decides where it hears probes.
    let server = server.replace("discovery=127.0.0.1:", "discovery=0.0.0.0:");
    assert_eq!(server, shown("desktop$ ollana"));
    let listen = "listen=127.0.0.1:11434,[::1]:11434";
    let nobody = free_tcp_port().to_string();
    // Not every machine has the other loopback.
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let also = if has_ipv6 { "--listen [::1]:0" } else { "" };
    let client = ready(&format!("--listen 127.0.0.1:0 {also} --interface lo"), listen, &nobody);
    assert_eq!(client, shown("laptop$ ollana"));
}

/// Rows such as `--manage on`: the help has the option with this value, or with this kind of value.
#[test]
fn options_of_the_readme_are_those_of_the_help() {
    let help = ["options", "access"].map(|topic| ollana(&["help", topic])).join("\n");
    let rows = readme::README.lines().filter_map(|line| line.strip_prefix("| `--"));
    let options: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert!(options.len() >= 10, "{options:?}");
    for option in options {
        let (name, value) = option.split_once(' ').expect("a value");
        let line = help.lines().find_map(|line| line.strip_prefix(&format!("  --{name} ")));
        let known = line.unwrap_or_else(|| panic!("no help on --{name}")).split_whitespace().next();
        let mut known = known.expect("a value").split(['|', '[']);
        let is_one = known.any(|known| known == value);
        // `--share-models WHOM` has its values in what is said of it.
        let is_told = help.contains(&format!("  --{name} WHOM")) && help.contains(" or off: who ");
        assert!(is_one || (is_told && value == "off"), "--{option}: {line:?}");
    }
    let default = help.lines().find(|line| line.starts_with("  --mode MODE ")).expect("--mode");
    assert!(default.contains("auto, client, server or both [auto]"), "{default}");
}

/// Where README.md sends its readers, they find what it says.
#[test]
fn topics_are_about_what_the_readme_says() {
    let bench = read("scripts/bench/README.md");
    let code = read("src/lib.rs");
    let topic = |name: &str| ollana(&["help", name]);
    for (place, text, parts) in [
        ("models", topic("models"), &["HOW A SERVER IS CHOSEN", "--alias NAME=MODEL"][..]),
        ("sharing", topic("sharing"), &["PULL AND COPY", "WHO GETS WHAT"]),
        ("both", topic("both"), &["a machine that has an Ollama and uses the other machines'"]),
        ("service", topic("service"), &["systemd", "go to the background", "--log-file FILE"]),
        ("metrics", topic("metrics"), &["Prometheus", "JSON"]),
        ("trouble", topic("trouble"), &["what goes wrong, and what to do"]),
        ("protocol", topic("protocol"), &["UDP", "HTTP"]),
        ("access", topic("access"), &["What other machines may do here"]),
        ("token", topic("token"), &["devices that can't run ollana"]),
        ("security", topic("security"), &["what stands against it"]),
        ("bench", bench, &["nginx", "HAProxy"]),
        ("code", code, &["# The life of a request", "# Rooms", "# Invariants"]),
    ] {
        assert!(readme::README.contains(place), "{place}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{place} has no {part:?}"));
    }
}

/// Words of a clause that may stand between two phrases of the table.
const BETWEEN_CLAIMS: usize = 7;

/// Clauses of prose and bullets, rows of tables, lines of code with a comment, and whole blocks of
/// code without those: what can be claimed at once, each in one line.
fn clauses(text: &str) -> Vec<String> {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (at, part) in text.split("```").enumerate() {
        if at % 2 == 1 {
            let is_told = |line: &&str| line.contains("# ");
            let (told, plain): (Vec<&str>, Vec<&str>) = part.lines().partition(is_told);
            found.extend(told.into_iter().map(line).chain([line(&plain.join(" ")) + " ```"]));
            continue;
        }
        // Titles, pictures and heads of tables claim nothing.
        let is_claim = |line: &&str| !line.starts_with(['#', '!']) && !line.starts_with("|---");
        let lines: Vec<&str> = part.lines().filter(is_claim).collect();
        let text = lines.join("\n").replace("\n- ", "\n\n").replace("\n| ", "\n\n| ");
        let heads = ["| option | meaning |", "| to read about | open |"];
        for block in text.split("\n\n").filter(|block| !heads.contains(&block.trim())) {
            // What is bold is the beginning of the sentence behind it.
            let block = line(block).replace(".** ", " - ").replace(":** ", " - ").replace("**", "");
            let block = block.replace("; ", ";\n").replace(": ", ":\n").replace(". ", ".\n");
            match block.starts_with('|') {
                true => found.push(line(&block)),
                false => found.extend(block.lines().map(line)),
            }
        }
    }
    found.retain(|clause| clause.contains(char::is_alphabetic));
    found
}

/// The table in tests/docs/claims.rs has what README.md says, all of it, and tests that are there.
#[test]
fn what_the_readme_says_is_tested() {
    let rows =
        include_str!("docs/claims.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
    let rows = rows.filter(|row| *row != "README.md | tests |");
    let rows: Vec<(&str, &str)> = rows.filter_map(|row| row.rsplit_once(" | ")).collect();
    assert!(rows.len() > 100, "{} rows", rows.len());
    let clauses = clauses(readme::README);
    for (phrase, tests) in &rows {
        let is_said = clauses.iter().any(|clause| clause.contains(phrase));
        assert!(is_said, "README.md does not say {phrase:?} any more");
        let tests: Vec<&str> = tests.split('`').filter(|part| part.contains("::")).collect();
        assert!(!tests.is_empty(), "nothing tests {phrase:?}");
        tests.iter().for_each(|test| assert_is_there(test));
    }
    // What is new in a clause that has rows is seen if it is longer than what is between them today.
    let is_new = |clause: &&String| {
        let said = rows.iter().filter(|(phrase, _)| clause.contains(phrase));
        let rest =
            said.clone().fold((*clause).clone(), |rest, (phrase, _)| rest.replace(phrase, "\n"));
        let is_prose = !clause.contains("``") && !clause.starts_with("| ");
        let most = rest.lines().map(|run| run.split_whitespace().count()).max().unwrap_or(0);
        said.count() == 0 || (is_prose && most > BETWEEN_CLAIMS)
    };
    let new: Vec<&String> = clauses.iter().filter(is_new).collect();
    assert!(new.is_empty(), "in README.md, but not in tests/docs/claims.rs: {new:#?}");
}

/// Of what takes an engine, another system or another machine, what can be read.
#[test]
fn scripts_have_what_the_readme_says_of_them() {
    let has = |path: &str, parts: &[&str]| {
        let text = read(path).replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ");
        parts.iter().for_each(|part| assert!(text.contains(part), "{path} has no {part:?}"));
    };
    let install = readme::block("docker build ").replace("\\\n", " ");
    let docker = install.lines().filter(|line| line.starts_with("docker "));
    let docker = docker.map(|line| line.split('#').next().unwrap_or_default());
    let docker = docker.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let docker: Vec<String> = docker.collect();
    assert_eq!(docker.len(), 2);
    for line in &docker {
        // Its head says the same, over two lines.
        let words = read("scripts/service/Dockerfile").replace("\n#", "");
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(line.as_str()), "{line} in {words}");
    }
    has("scripts/service/Dockerfile", &["VOLUME /state", "ENV OLLANA_STATE_DIR=/state"]);
    has("scripts/deb.sh", &["ollana_"]);
    has("Makefile", &["deb: static", "scripts/static.sh $(TARGET)", "scripts/dist.sh"]);
    has("scripts/zig.sh", &["python3 -m venv", "pip\" install"]);
    has("scripts/static.sh", &["rustup --quiet target add", "scripts/zig.sh cargo zigbuild"]);
    let targets = ["-linux-musl", "-pc-windows-gnu", "-apple-darwin", "aarch64-unknown-linux-musl"];
    has("scripts/dist.sh", &targets);
    has("scripts/dist.sh", &["cp scripts/install.sh scripts/install.ps1 $dist", "sha256sum"]);
    has("scripts/install.ps1", &["$From", "SHA256SUMS", "Get-FileHash", "^https?://"]);
    has("scripts/install.sh", &["Darwin) system=macos", "shasum -a 256"]);
    has("Cargo.toml", &["publish = false", "license = \"MIT\""]);
    assert!(read("LICENSE").starts_with("MIT License"));
    for path in ["ollana.service", "ollana.openrc", "ollana.init"] {
        has(&format!("scripts/service/{path}"), &["/etc/default/ollana"]);
    }
}

/// Numbers that are written down elsewhere.
#[test]
fn versions_and_sizes_agree() {
    let readme = read("README.md").replace('\n', " ");
    let value = |text: &str, start: &str| {
        let rest = text.split(start).nth(1).unwrap_or_else(|| panic!("no {start}"));
        rest.split(['"', ' ', '\n']).next().unwrap_or_default().to_owned()
    };
    let rust = value(&read("Cargo.toml"), "rust-version = \"");
    assert!(readme.contains(&format!("{rust} or newer")), "Rust {rust} or newer");
    let budgets = read("scripts/dist.sh");
    let budget: f64 = value(&budgets, " linux-x86_64 amd64 ").parse().expect("bytes");
    assert!(readme.contains(&format!("at most {:.1} MB on Linux", budget / 1e6)), "{budget}");
}

/// What a public forge runs is what anybody can run.
#[test]
fn workflows_run_make_check_and_make_dist() {
    let text = read(".github/workflows/check.yml");
    let commands: Vec<&str> = text.lines().filter_map(|line| line.split("run: ").nth(1)).collect();
    assert_eq!(commands, ["make check", "make dist"]);
}

/// The layout of datagrams in `ollana help protocol`, tried on a running server.
#[test]
fn datagrams_are_as_the_help_says() {
    let text = read("src/cli/help/protocol.txt");
    let mut fields: Vec<(usize, usize, String)> = Vec::new();
    for line in text.lines() {
        let mut cells = line.split_whitespace();
        let mut number = || cells.next()?.parse().ok();
        if let Some((at, length)) = number().and_then(|at| Some((at, number()?))) {
            fields.push((at, length, cells.collect::<Vec<_>>().join(" ")));
        }
    }
    let end = fields.iter().fold(0, |end, (at, length, field)| {
        assert_eq!(end, *at, "{field} follows what is before it");
        at + length
    });
    assert_eq!(end, 80);
    let range = |name: &str| {
        let field = fields.iter().find(|(_, _, field)| field.starts_with(name));
        let (at, length, _) = field.unwrap_or_else(|| panic!("no field {name}"));
        *at..at + length
    };

    let ollama = Ollama::start(World { version: "0.33.4".to_owned(), ..World::default() });
    let port = free_udp_port();
    let process = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port {port} --ollama {}",
        ollama.address
    ));
    let http = process.addresses()[0].port();
    let nonce = *b"sixteen bytes ..";
    let mut probe = vec![0; 128];
    probe[range("magic")].copy_from_slice(b"LANA");
    probe[range("version, 1")].copy_from_slice(&[1]);
    probe[range("kind")].copy_from_slice(&[1]);
    probe[range("length")].copy_from_slice(&128u16.to_be_bytes());
    probe[range("nonce")].copy_from_slice(&nonce);
    probe[range("identity")].copy_from_slice(b"a test's own id!");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
    let mut answer = [0; 512];
    let answer = eventually("an answer that knows of Ollama", || {
        socket.send_to(&probe, ("127.0.0.1", port)).expect("a probe is sent");
        // Not each of many probes in a short time is answered.
        let n = socket.recv(&mut answer).ok()?;
        (answer[range("flags")] == [0, 1]).then(|| answer[..n].to_vec())
    });
    assert!(answer.len() <= probe.len());
    assert_eq!(answer[range("magic")], *b"LANA");
    assert_eq!(answer[range("version, 1")], [1]);
    assert_eq!(answer[range("kind")], [2]);
    assert_eq!(answer[range("length")], (answer.len() as u16).to_be_bytes());
    assert_eq!(answer[range("nonce")], nonce);
    assert_eq!(answer[range("HTTP port")], http.to_be_bytes());
    assert_eq!(answer[range("capabilities")], [0, 0]);
    assert_eq!(answer[range("version of Ollama")], [0, 33, 0, 4]);
    assert_eq!(answer[range("requests")], [0, 0]);
    assert_ne!(answer[range("instance")], [0; 4]);
    assert_eq!(answer[range("zero")], [0; 8]);
    assert_eq!(answer[range("authentication")], [0; 16]);
    assert_eq!(answer[80], 1, "a record with the name");
}
