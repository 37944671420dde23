//! Tests that tables name, and whether they are there.

use std::path::Path;

/// The names of a file's tests.
pub fn tests_of(path: &Path) -> Vec<String> {
    let text = text_of(path);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let name = |line: &str| line.strip_prefix("fn ")?.split_once("()").map(|(n, _)| n.to_owned());
    let starts = lines.iter().enumerate().filter(|(_, line)| **line == "#[test]");
    starts
        .filter_map(|(at, _)| lines[at + 1..].iter().take(3).find_map(|line| name(line)))
        .collect()
}

/// A test as `FILE::NAME`, below `tests/` unless it says `src/`; or `FILE::TEXT` of a script.
pub fn assert_is_there(test: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (file, name) = test.split_once("::").expect("a file and a name");
    let is_there = if file.starts_with("scripts/") || file == "Makefile" {
        text_of(&root.join(file)).contains(name)
    } else {
        let folder = if file.starts_with("src/") { root.to_owned() } else { root.join("tests") };
        tests_of(&folder.join(file).with_extension("rs")).iter().any(|known| known == name)
    };
    assert!(is_there, "{test} is named, but isn't there");
}

fn text_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path);
    text.unwrap_or_else(|error| panic!("a table names {}: {error}", path.display()))
}
