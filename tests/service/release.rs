//! What a release consists of: the scripts that make it and install from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::folder;

const OLLANA: &str = env!("CARGO_BIN_EXE_ollana");
const TIME: &str = "1700000000";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v $0", tool]).output();
    found.is_ok_and(|output| output.status.success())
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn shell(dir: &Path, line: &str) {
    let output = run(Command::new("sh").args(["-ec", line]).current_dir(dir));
    assert!(output.status.success(), "{line}: {output:?}");
}

/// A release for this machine, in which the binary is a script that calls the real one.
fn release(name: &str) -> PathBuf {
    let dir = folder(name);
    let inner = dir.join("ollana-1.0");
    crate::support::script(&inner.join("ollana"), &format!("#!/bin/sh\nexec {OLLANA} \"$@\"\n"));
    fs::copy(script("install.sh"), inner.join("install.sh")).expect("a copy");
    fs::copy(script("install.sh"), dir.join("install.sh")).expect("a copy");
    let machine = std::env::consts::ARCH.replace("arm", "armv7");
    shell(&dir, &format!("tar -czf ollana-1.0-linux-{machine}.tar.gz ollana-1.0"));
    shell(&dir, "rm -r ollana-1.0; sha256sum ollana-* install.sh > SHA256SUMS");
    dir
}

fn install(script: &Path, from: &[&str], into: &Path) -> (bool, String) {
    let mut command = Command::new("sh");
    command.arg(script).args(from).args(["--yes", "--no-service"]);
    let output = run(command.env("DESTDIR", into).env("PREFIX", "/usr"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Every file of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(below).collect()
}

#[test]
fn a_release_says_what_it_will_do_and_asks() {
    let (dir, into) = (release("asked"), folder("asked-root"));
    for action in [&[][..], &["--uninstall"]] {
        let mut command = Command::new("sh");
        command.arg(dir.join("install.sh")).args(action).stdin(std::process::Stdio::null());
        let output = run(command.arg("--no-service").env("DESTDIR", &into).env("PREFIX", "/usr"));
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let place = into.join("usr/bin/ollana");
        assert!(text.contains("This will\n"), "{action:?}: {text}");
        assert!(text.contains(place.to_str().expect("a path")), "{action:?}: {text}");
        assert!(!output.status.success() && text.contains("nobody to ask here"), "{text}");
        assert_eq!(files(&into), [] as [PathBuf; 0], "{action:?}");
    }
    [dir, into].into_iter().for_each(|folder| fs::remove_dir_all(folder).expect("it can go"));
}

/// `make install PREFIX=…`: all of it below that folder, and away again with `make uninstall`.
#[test]
fn make_installs_below_a_prefix() {
    if !has("make") {
        return println!("skipped: no make");
    }
    let prefix = folder("prefix");
    let make = |target: &str| {
        let mut command = Command::new("make");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["CARGO=true", target]);
        command.arg(format!("OLLANA={OLLANA}")).arg(format!("PREFIX={}", prefix.display()));
        let output = run(command.env_remove("DESTDIR").env_remove("MAKEFLAGS"));
        assert!(output.status.success(), "{target}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let done = make("install");
    let is_within = |place: &&str| place.starts_with(prefix.to_str().expect("a path"));
    let places = done.split_whitespace().filter(|word| word.starts_with('/') && *word != OLLANA);
    let (within, outside): (Vec<&str>, Vec<&str>) = places.partition(is_within);
    assert!(within.len() > 5 && outside.is_empty(), "{outside:?} in {done}");
    let version = run(Command::new(prefix.join("bin/ollana")).arg("--version"));
    assert!(version.stdout.starts_with(b"ollana "), "{version:?}");
    assert!(files(&prefix).len() > 5, "{:?}", files(&prefix));
    make("uninstall");
    assert_eq!(files(&prefix), [] as [PathBuf; 0]);
    fs::remove_dir_all(prefix).expect("it can go");
}

#[test]
fn a_release_installs_from_its_folder_and_from_a_place() {
    let dir = release("release");
    let place = dir.to_str().expect("a path");
    for (script, from) in
        [(dir.join("install.sh"), &[][..]), (script("install.sh"), &["--from", place])]
    {
        let into = folder("release-root");
        let (is_well, text) = install(&script, from, &into);
        assert!(is_well && text.contains("installed"), "{text}");
        let version = run(Command::new(into.join("usr/bin/ollana")).arg("--version"));
        assert!(version.stdout.starts_with(b"ollana "), "{version:?}");
        let page = fs::read_to_string(into.join("usr/share/man/man1/ollana.1")).expect("a page");
        assert!(page.contains(".TH"));
        let moved = into.join("etc/systemd/system/ollama.service.d");
        fs::create_dir_all(&moved).expect("a folder");
        fs::write(moved.join("zz-ollana-takeover.conf"), "").expect("a file");
        let (is_well, text) = install(&script, &["--uninstall"], &into);
        assert!(is_well && text.contains("removed"), "{text}");
        assert!(text.contains("run before this: sudo ollana takeover --undo"), "{text}");
        fs::remove_dir_all(into.join("etc")).expect("it can go");
        assert_eq!(files(&into), [] as [PathBuf; 0]);
        fs::remove_dir_all(into).expect("it can go");
    }
    fs::remove_dir_all(dir).expect("it can go");
}

#[test]
fn a_release_that_is_damaged_or_of_other_machines_is_not_installed() {
    let into = folder("release-none");
    for (damage, why) in [
        ("for file in ollana-*; do echo >> $file; done", "another checksum"),
        ("sed -i s/-linux-/-beos-/ SHA256SUMS", "there is no ollana for linux-"),
        ("sed -i 's|  ollana|  ../ollana|' SHA256SUMS", "there is no ollana for linux-"),
        ("rm ollana-*", "no ollana-1.0-linux-"),
        ("rm SHA256SUMS", "no SHA256SUMS from "),
    ] {
        let dir = release("damaged");
        shell(&dir, damage);
        let place = dir.to_str().expect("a path");
        let (is_well, text) = install(&script("install.sh"), &["--from", place], &into);
        assert!(!is_well && text.contains(why), "{damage}: {text}");
        assert_eq!(fs::read_dir(&into).expect("a folder").count(), 0, "{damage}");
        fs::remove_dir_all(dir).expect("it can go");
    }
    fs::remove_dir_all(into).expect("it can go");
}

/// A package in which a script is in the place of the binary.
fn package(dir: &Path, mask: u32) -> PathBuf {
    fs::write(dir.join("binary"), "#!/bin/sh\n").expect("a file");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {mask:o}; exec \"$@\""), "sh"]);
    command.arg(script("deb.sh")).arg(dir.join("binary")).arg("amd64").arg(dir);
    let output = run(command.env("OLLANA", OLLANA).env("SOURCE_DATE_EPOCH", TIME));
    assert!(output.status.success(), "{output:?}");
    dir.join(concat!("ollana_", env!("CARGO_PKG_VERSION"), "_amd64.deb"))
}

/// Whatever is different where they are made.
#[test]
fn packages_of_a_commit_are_equal() {
    if !has("dpkg-deb") {
        return println!("skipped: no dpkg-deb");
    }
    let packages = [0o022, 0o077].map(|mask| {
        let dir = folder(&format!("deb-{mask:o}"));
        let package = package(&dir, mask);
        let bytes = fs::read(&package).expect("a package");
        let control = run(Command::new("dpkg-deb").arg("--field").arg(&package));
        let control = String::from_utf8(control.stdout).expect("text");
        assert!(!control.contains("ollama.com"), "{control}");
        fs::remove_dir_all(dir).expect("it can go");
        bytes
    });
    assert!(packages[0] == packages[1], "the same commit makes two packages");
}

/// Prepares what a package's scripts find: a root of their own, and stand-ins that note their calls.
const REMOVAL: &str = r#"
dpkg-deb --control ollana_*.deb control
sed -i "s| /| $PWD/root/|g" control/prerm control/postrm
mkdir -p fake root/run/systemd/system
printf '#!/bin/sh\necho "${0##*/} $*" >>calls\n' >fake/ollana
chmod +x fake/ollana
for name in systemctl deb-systemd-invoke deb-systemd-helper; do cp fake/ollana fake/$name; done
"#;
const REMOVE: &str =
    "rm -f calls; PATH=$PWD/fake:$PATH; control/prerm remove; control/postrm remove";
const PURGE: &str = r#"
for place in etc var/lib var/lib/private var/log var/log/private; do
    mkdir -p root/$place/ollana
    touch root/$place/ollana/file root/$place/kept
done
PATH=$PWD/fake:$PATH control/postrm purge
"#;

#[test]
fn a_package_gives_ollamas_port_back_and_leaves_nothing_when_it_is_purged() {
    if !has("dpkg-deb") {
        return println!("skipped: no dpkg-deb");
    }
    let dir = folder("deb-removed");
    package(&dir, 0o022);
    shell(&dir, REMOVAL);
    let calls = || fs::read_to_string(dir.join("calls")).expect("calls");
    let stopped =
        "deb-systemd-invoke stop ollana.service\nsystemctl --system daemon-reload\n".to_owned();
    shell(&dir, REMOVE);
    assert_eq!(calls(), stopped);
    let drop_ins = dir.join("root/etc/systemd/system/ollama.service.d");
    fs::create_dir_all(&drop_ins).expect("a folder");
    fs::write(drop_ins.join("zz-ollana-takeover.conf"), "").expect("a file");
    shell(&dir, REMOVE);
    assert_eq!(calls(), "ollana takeover --undo --yes\n".to_owned() + &stopped);
    fs::remove_dir_all(dir.join("root")).expect("it can go");
    shell(&dir, PURGE);
    let left = files(&dir.join("root"));
    assert!(left.len() == 5 && left.iter().all(|file| file.ends_with("kept")), "{left:?}");
    fs::remove_dir_all(dir).expect("it can go");
}

/// The bill of materials names what is built in, and its sums.
#[test]
fn the_bill_of_materials_is_cargos() {
    let python = Command::new("python3").args(["-c", "import tomllib"]).status();
    if !python.is_ok_and(|status| status.success()) {
        return println!("skipped: no python3 that reads TOML");
    }
    let bill = || {
        let mut command = Command::new("python3");
        command.arg("-B").arg(script("dist/sbom.py")).arg("x86_64-unknown-linux-musl");
        let output = run(command.env("SOURCE_DATE_EPOCH", TIME));
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let text = bill();
    assert_eq!(text, bill());
    let bill: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let crates = bill["components"].as_array().expect("a list");
    let tiny_http = crates.iter().find(|entry| entry["name"] == "tiny_http").expect("tiny_http");
    assert_eq!(tiny_http["hashes"][0]["content"].as_str().map(str::len), Some(64));
    assert_eq!(bill["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
    // What only other systems need isn't in it.
    assert!(!crates.iter().any(|entry| entry["name"] == "windows-sys"));
}
