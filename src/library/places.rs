//! Where Ollama keeps its models: where it is told to, or in one of its usual places.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::net::holders::holders;
use crate::system::files;

const VARIABLE: &str = "OLLAMA_MODELS";
/// The service's home where Ollama's own installer for Linux has made it.
const SERVICE: &str = "/usr/share/ollama";
/// What systemd is told of Ollama's service: by a package, then on this machine.
const UNITS: [&str; 2] =
    ["usr/lib/systemd/system/ollama.service", "etc/systemd/system/ollama.service"];

/// The folders that may be the store, the likeliest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) dirs: Vec<PathBuf>,
    /// This program or a running Ollama was told of it; it is the only one.
    pub(super) is_told: bool,
}

pub(super) fn places(port: u16) -> Places {
    let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let told = set(VARIABLE)
        .and_then(|told| files::path_from(bare(told.as_os_str().as_encoded_bytes())))
        .filter(|told| !told.as_os_str().is_empty());
    if let Some(told) = told.or_else(|| of_running(port)) {
        return Places { dirs: vec![told], is_told: true };
    }
    let guessed = |dirs| Places { dirs, is_told: false };
    if cfg!(windows) {
        return guessed(set("USERPROFILE").map(in_home).into_iter().collect());
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let homes = [Some(SERVICE.into()), home_of_service(&users), set("HOME")];
    let unit = of_unit(Path::new("/")).into_iter();
    guessed(unit.chain(homes.into_iter().flatten().map(in_home)).collect())
}

/// The usual place in a home, which Windows calls a profile.
fn in_home(home: PathBuf) -> PathBuf {
    home.join(".ollama").join("models")
}

/// The store of the Ollama that has this port, where its environment may be read.
fn of_running(port: u16) -> Option<PathBuf> {
    let programs = holders(&[port]).into_iter().filter_map(|holder| holder.program);
    programs.filter(|(name, _)| name.contains("ollama")).find_map(|(_, pid)| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let told = of_environment(&fs::read(process.join("environ")).ok()?)?;
        // In a container the same path is another folder.
        let number = |path: &Path| files::file_number(&fs::metadata(path).ok()?);
        let there = process.join("root").join(told.strip_prefix("/").ok()?);
        (number(&told).is_some() && number(&told) == number(&there)).then_some(told)
    })
}

/// A value without the blanks and quotes around it, as Ollama takes it.
fn bare(value: &[u8]) -> &[u8] {
    let is_quote = |byte: &u8| matches!(byte, b'"' | b'\'');
    let value = value.trim_ascii();
    let start = value.iter().take_while(|byte| is_quote(byte)).count();
    let end = value[start..].iter().rev().take_while(|byte| is_quote(byte)).count();
    &value[start..value.len() - end]
}

fn of_environment(environment: &[u8]) -> Option<PathBuf> {
    let value = |name: &str| {
        let prefix = format!("{name}=");
        let mut all = environment.split(|byte| *byte == 0);
        let value = bare(all.find_map(|one| one.strip_prefix(prefix.as_bytes()))?);
        files::path_from(value).filter(|path| path.is_absolute())
    };
    value(VARIABLE).or_else(|| value("HOME").map(in_home))
}

/// What the files of Ollama's service below `root` set, the last of them. One in /etc stands for the one
/// of a package.
fn of_unit(root: &Path) -> Option<PathBuf> {
    let units = UNITS.map(|unit| root.join(unit));
    let mut drop_ins = BTreeMap::new();
    for unit in &units {
        let folder = unit.with_extension("service.d");
        let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = files.filter(|file| file.extension().is_some_and(|end| end == "conf"));
        drop_ins.extend(files.map(|file| (file.file_name().map(ToOwned::to_owned), file)));
    }
    let unit = units.into_iter().rfind(|unit| unit.exists());
    let files = unit.into_iter().chain(drop_ins.into_values());
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| of_settings(&text)).next_back()
}

fn of_settings(text: &str) -> Option<PathBuf> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("Environment="));
    let mut values = lines.filter_map(|line| {
        let (before, value) = line.split_once("OLLAMA_MODELS=")?;
        let quote = before.chars().last().filter(|last| matches!(last, '"' | '\''));
        let is_end = |c: char| quote.map_or(c.is_whitespace(), |quote| c == quote);
        value.split(is_end).next().map(PathBuf::from)
    });
    values.rfind(|path| path.is_absolute())
}

/// The home of the user that Ollama's service has, in the file of users.
fn home_of_service(users: &str) -> Option<PathBuf> {
    let user = users.lines().find(|line| line.starts_with("ollama:"))?;
    user.split(':').nth(5).map(PathBuf::from).filter(|home| home.is_absolute())
}

#[cfg(test)]
#[cfg(unix)] // The paths are.
mod tests {
    use super::*;

    #[test]
    fn what_a_running_ollama_was_told() {
        for (environment, want) in [
            (&b"A=b\0OLLAMA_MODELS=/data/models\0HOME=/root\0"[..], Some("/data/models")),
            (b"HOME=/home/me\0XOLLAMA_MODELS=/x\0", Some("/home/me/.ollama/models")),
            (b"OLLAMA_MODELS=\0HOME=/h", Some("/h/.ollama/models")),
            (b"OLLAMA_MODELS= \"/my data/m\" \0HOME=/h", Some("/my data/m")),
            (b"OLLAMA_MODELS='/m'\0HOME=/h", Some("/m")),
            (b"OLLAMA_MODELS=\"\0HOME=/h", Some("/h/.ollama/models")),
            (b"OLLAMA_MODELS=models\0", None),
            (b"", None),
        ] {
            assert_eq!(of_environment(environment), want.map(PathBuf::from));
        }
    }

    #[test]
    fn what_its_service_was_told() {
        for (text, want) in [
            ("[Service]\nEnvironment=\"OLLAMA_MODELS=/my data/m\" \"A=b\"\n", Some("/my data/m")),
            ("Environment=A=b OLLAMA_MODELS=/data/m B=c", Some("/data/m")),
            ("Environment='OLLAMA_MODELS=/a'\nEnvironment=OLLAMA_MODELS=/b", Some("/b")),
            ("Environment=OLLAMA_MODELS=models", None),
            ("#Environment=OLLAMA_MODELS=/a", None),
            ("", None),
        ] {
            assert_eq!(of_settings(text), want.map(PathBuf::from), "{text}");
        }
        let root = std::env::temp_dir().join(format!("ollana-units-{}", std::process::id()));
        let write = |path: &str, models: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("[Service]\n{models}\n")).unwrap();
        };
        let told = |name: &str| format!("Environment=OLLAMA_MODELS=/{name}");
        assert_eq!(of_unit(&root), None);
        for (path, text, want) in [
            (UNITS[0], told("package"), Some("/package")),
            ("usr/lib/systemd/system/ollama.service.d/9.conf", told("drop-in"), Some("/drop-in")),
            ("etc/systemd/system/ollama.service.d/9.conf", told("own"), Some("/own")),
            ("etc/systemd/system/ollama.service.d/9.conf", String::new(), Some("/package")),
            (UNITS[1], String::new(), None),
            ("usr/lib/systemd/system/ollama.service.d/1.conf", told("first"), Some("/first")),
            (UNITS[1], told("unit"), Some("/first")),
        ] {
            write(path, &text);
            assert_eq!(of_unit(&root), want.map(PathBuf::from), "{path}: {text}");
        }
        fs::remove_dir_all(root).unwrap();
        let users = "root:x:0:0:root:/root:/bin/bash\nollama:x:1:2::/var/lib/ollama:/bin/false\n";
        assert_eq!(home_of_service(users), Some("/var/lib/ollama".into()));
        assert_eq!(home_of_service("ollama2:x:1:2::/a:/b\nollama:x"), None);
    }
}
