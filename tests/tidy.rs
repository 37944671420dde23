//! The house rules that a compiler doesn't check.

use std::fs;
use std::path::Path;

/// The layers, lowest first. A file may import from its own layer and from those below.
const LAYERS: &[&[&str]] = &[
    &[
        "text", "model", "wire", "headers", "body", "sniff", "tail", "guard", "origin", "policy",
        "counters",
    ],
    &["noise"],
    &["peers", "code"],
    &["config", "catalog", "dialect"],
    &["head", "pool"],
    &["route", "attempts", "dispatch", "probing"],
    &["socket", "interfaces", "state", "notify"],
    &["line"],
    &["keyring"],
    &["hop"],
    &["registry", "link", "offer", "wake"],
    &["manager"],
    &["upstream", "downstream", "status"],
    &["intake", "exchange", "liveness", "discovery"],
    &["proxy"],
    &["cli", "journal", "background", "serve"],
    &["tools", "doctor", "pair"],
    &["main", "lib"],
];

/// Crates that one file alone may import.
const OWNERS: &[(&str, &[&str])] = &[
    ("tiny_http", &["intake"]),
    ("ureq", &["upstream", "exchange"]), // exchange only names ureq's body type
    ("lexopt", &["cli"]),
    ("simplelog", &["main"]),
    ("signal_hook", &["serve", "tools"]), // status --watch gives the terminal back
    ("if_addrs", &["interfaces"]),
    ("httparse", &["head"]),
    ("snow", &["noise"]),
    ("blake2", &["noise"]),
    ("ring", &["noise"]),
];

/// Files that must not know of sockets, threads, clocks or the log.
const PURE: &[&str] = &[
    "config", "wire", "model", "catalog", "pool", "dispatch", "probing", "attempts", "head",
    "headers", "body", "sniff", "route", "tail", "dialect", "guard", "noise", "peers", "code",
    "origin", "policy", "text",
];

struct Source {
    module: String,
    text: String,
}

/// All of src/, each file without its tests; submodules count as their parent.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src").map(|entry| entry.expect("entry")) {
            let path = entry.path();
            let stem = path.file_stem().expect("name").to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if stem != "tests" && path.extension().is_some_and(|kind| kind == "rs") {
                let top = folder.file_name().expect("name").to_string_lossy().into_owned();
                let module = if top == "src" { stem } else { top };
                let text = fs::read_to_string(&path).expect("text");
                let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                found.push(Source { module, text });
            }
        }
    }
    assert!(found.len() > 20, "src/ was found");
    found
}

fn layer(module: &str) -> usize {
    let at = LAYERS.iter().position(|layer| layer.contains(&module));
    at.unwrap_or_else(|| panic!("{module} is in no layer: add it to LAYERS"))
}

fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_point_one_way() {
    for source in sources() {
        for line in code(&source.text) {
            for part in line.split("crate::").skip(1) {
                let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                let target = &part[..end.unwrap_or(part.len())];
                if target.is_empty() || source.module == target {
                    continue;
                }
                assert!(
                    layer(target) <= layer(&source.module),
                    "{} imports {target}, which is in a layer above it: {line}",
                    source.module
                );
            }
        }
    }
}

#[test]
fn each_library_has_one_owner() {
    for source in sources() {
        for (library, owners) in OWNERS {
            let path = format!("{library}::");
            let is_part = |c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':');
            let used = code(&source.text)
                .any(|line| line.split(is_part).any(|part| part.starts_with(&path)));
            assert!(
                !used || owners.contains(&source.module.as_str()),
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
    for source in sources().iter().filter(|source| PURE.contains(&source.module.as_str())) {
        for line in code(&source.text) {
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
        for line in code(&source.text) {
            for word in FORBIDDEN {
                assert!(!line.contains(word), "{}: {line}", source.module);
            }
        }
    }
}
