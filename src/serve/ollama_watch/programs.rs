//! Which program Ollama is on this machine: the one whose process has Ollama's port while it
//! answers. It is remembered over restarts, as it may be anywhere: below /opt, in a home, behind a
//! script. What another user's process was started from, only root sees whole; its arguments
//! everybody does.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use crate::net::holders::holders;
use crate::system::files::{self, in_time, replace};

/// Most programs that are remembered.
const MOST: usize = 8;
const MEMORY: &str = "ollama-programs.json";

/// What a process of Ollama was started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The process's name, of which Linux keeps 15 bytes: the file's, or its interpreter's.
    name: String,
    pub(super) file: PathBuf,
}

/// The programs of earlier runs, the last seen first.
pub(super) fn recall(dir: &Path) -> Vec<Program> {
    // What can't be read is learnt again when Ollama answers.
    let dir = dir.to_owned();
    let text = in_time(move || files::read(&dir, &dir.join(MEMORY))).unwrap_or_default();
    let list: Value = serde_json::from_str(&text).unwrap_or_default();
    let program = |entry: &Value| {
        let text = |name: &str| Some(entry.get(name)?.as_str()?.to_owned());
        let file = PathBuf::from(text("file")?);
        Some(Program { name: text("name")?, file }).filter(|program| program.file.is_absolute())
    };
    list.as_array().into_iter().flatten().filter_map(program).take(MOST).collect()
}

/// Puts programs in front of those remembered; true if that changes anything.
pub(super) fn add(known: &mut Vec<Program>, found: Vec<Program>) -> bool {
    let is_new = found.iter().any(|program| !known.contains(program));
    if is_new {
        known.retain(|program| !found.contains(program));
        known.splice(..0, found);
        known.truncate(MOST);
    }
    is_new
}

pub(super) fn remember(dir: &Path, programs: &[Program]) {
    let entry =
        |Program { name, file }: &Program| Some(json!({ "name": name, "file": file.to_str()? }));
    let list: Value = programs.iter().filter_map(entry).collect();
    if let Err(error) = replace(dir, &dir.join(MEMORY), &list.to_string()) {
        log::debug!("Ollama's program not remembered dir={dir:?} reason={error}");
    }
}

/// The process that has Ollama's port, or why its start couldn't be seen.
pub(super) fn holder(port: u16, known: &[Program]) -> Result<Process, String> {
    let mut sockets = holders(&[port]);
    sockets.retain(|socket| !socket.is_udp);
    if sockets.is_empty() {
        return Err("no process here has its port".to_owned());
    }
    let seen = sockets.into_iter().filter_map(|socket| socket.program);
    let (mut servers, others): (Vec<Process>, Vec<Process>) = seen
        .filter_map(|(_, pid)| Process::read(PathBuf::from(format!("/proc/{pid}"))))
        .partition(|process| process.is_server() == Some(true));
    if let ([], [other, ..]) = (&servers[..], &others[..]) {
        return Err(format!("{} has its port, not ollama serve", other.name));
    }
    if servers.is_empty() {
        // Whose sockets can't be seen is another user's.
        servers = processes(known);
        servers.retain(|process| process.is_server() == Some(true));
    }
    let process = servers.into_iter().next().ok_or("its process can't be seen")?;
    if process.is_contained() { Err("it runs in a container".to_owned()) } else { Ok(process) }
}

/// The processes in this network that run Ollama, or one of these programs.
pub(super) fn processes(programs: &[Program]) -> Vec<Process> {
    let is_one = |process: &Process| {
        (is_ollamas(process.name.as_bytes()) || process.runs(programs))
            && process.is_in_our_network()
    };
    let is_likely = |name: &str| {
        is_ollamas(name.as_bytes()) || programs.iter().any(|program| program.name == name)
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let dir = entry.path();
        let name = Process::name_of(&dir).filter(|name| is_likely(name))?;
        Some(Process::with_name(dir, name)).filter(is_one)
    })
    .collect()
}

pub(super) struct Process {
    /// In /proc.
    pub(super) dir: PathBuf,
    name: String,
    words: Vec<Vec<u8>>,
}

impl Process {
    fn read(dir: PathBuf) -> Option<Self> {
        let name = Self::name_of(&dir)?;
        Some(Self::with_name(dir, name))
    }

    fn name_of(dir: &Path) -> Option<String> {
        let name = fs::read(dir.join("comm")).ok()?;
        Some(String::from_utf8_lossy(&name).trim_end().to_owned())
    }

    fn with_name(dir: PathBuf, name: String) -> Self {
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        Process { words: words.filter(|word| !word.is_empty()).collect(), dir, name }
    }

    /// Whether its command is `serve`, for which Ollama also takes `start`; `None` while that can't
    /// be told: the arguments appear a moment after the name. Options and a script's path may stand
    /// before it.
    pub(super) fn is_server(&self) -> Option<bool> {
        let (_, rest) = self.words.split_first()?;
        Some(rest.iter().find(|word| is_command(word)).is_some_and(|word| is_serve(word)))
    }

    fn runs(&self, programs: &[Program]) -> bool {
        programs.iter().any(|Program { name, file }| {
            let file = file_name(file.as_os_str().as_bytes());
            let mut words = self.words.iter().take_while(|word| !is_serve(word));
            self.name == *name
                && (file.starts_with(name.as_bytes()) || words.any(|word| file_name(word) == file))
        })
    }

    /// A container has a network of its own. Where that can't be told, it is taken for this one.
    fn is_in_our_network(&self) -> bool {
        let own = fs::read_link("/proc/self/ns/net").ok();
        fs::read_link(self.dir.join("ns/net")).map_or(true, |net| own == Some(net))
    }

    /// Whether it has a number in a namespace below this one, as a container's processes have.
    fn is_contained(&self) -> bool {
        let depth = |dir: &Path| {
            let text = fs::read_to_string(dir.join("status")).unwrap_or_default();
            let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.map(|numbers| numbers.split_whitespace().count())
        };
        depth(&self.dir) > depth(Path::new("/proc/self"))
    }

    /// Whether its file can't be seen: it is another user's, and this isn't root.
    pub(super) fn is_hidden(&self) -> bool {
        fs::read_link(self.dir.join("exe")).is_err()
    }

    /// Readable while the process lives.
    pub(super) fn life(&self) -> Option<File> {
        File::open(self.dir.join("comm")).ok()
    }

    /// What it was started from, as far as that may be seen.
    pub(super) fn programs(&self) -> Vec<Program> {
        let link = |name: &str| fs::read_link(self.dir.join(name)).ok();
        let number = |path: &Path| fs::metadata(path).map(|about| (about.dev(), about.ino())).ok();
        let root = self.dir.join("root");
        // Under the same path, its root may have another file than ours.
        let is_ours = |file: &PathBuf| {
            let there = number(&root.join(file.strip_prefix("/").unwrap_or(file)));
            there.is_none() || there == number(file)
        };
        let files = files(link("exe"), &self.words, link("cwd").as_deref(), &|file| file.is_file());
        let files = files.into_iter().filter(is_ours);
        files.map(|file| Program { name: self.name.clone(), file }).collect()
    }
}

/// Such as `ollama`, or `.ollama-wrapped` where a script starts it.
fn is_ollamas(name: &[u8]) -> bool {
    name.windows(6).any(|part| part == b"ollama")
}

fn is_serve(word: &[u8]) -> bool {
    matches!(word, b"serve" | b"start")
}

fn is_command(word: &[u8]) -> bool {
    !word.starts_with(b"-") && !word.contains(&b'/') && !is_ollamas(word)
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The files that are opened when a process with this executable and these words is started: a
/// script, else the executable; under names that outlast an update, too.
fn files(
    exe: Option<PathBuf>,
    words: &[Vec<u8>],
    cwd: Option<&Path>,
    is_file: &dyn Fn(&Path) -> bool,
) -> Vec<PathBuf> {
    let named = |word: &Vec<u8>| {
        let path = PathBuf::from(OsString::from_vec(word.clone()));
        let path = match cwd {
            Some(cwd) if word.contains(&b'/') => cwd.join(path),
            _ => path,
        };
        Some(path).filter(|path| path.is_absolute() && is_file(path))
    };
    let arguments = words.iter().skip(1).take_while(|word| !is_serve(word));
    let script = arguments.filter(|word| !word.starts_with(b"-")).find_map(named);
    let mut files: Vec<PathBuf> = match script {
        Some(script) => vec![script],
        None => exe.map(undeleted).into_iter().chain(words.first().and_then(named)).collect(),
    };
    let current: Vec<PathBuf> = files.iter().filter_map(|file| current_snap(file)).collect();
    files.extend(current);
    files.dedup();
    files
}

/// Linux marks an executable whose file was replaced since.
fn undeleted(exe: PathBuf) -> PathBuf {
    let bytes = exe.as_os_str().as_bytes();
    let kept = bytes.strip_suffix(b" (deleted)").map(<[u8]>::to_vec);
    kept.map_or(exe, |kept| PathBuf::from(OsString::from_vec(kept)))
}

/// A file of a snap, whose third directory is the revision, in the revision that is current.
fn current_snap(file: &Path) -> Option<PathBuf> {
    let mut parts: Vec<Component<'_>> = file.components().collect();
    if parts.len() < 5 || parts[1].as_os_str() != "snap" {
        return None;
    }
    parts[3] = Component::Normal("current".as_ref());
    Some(parts.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::random;

    fn words(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
    }

    fn process(name: &str, line: &str) -> Process {
        Process { dir: PathBuf::new(), name: name.to_owned(), words: words(line) }
    }

    #[test]
    fn servers_are_told_from_commands() {
        for (line, want) in [
            ("ollama serve", true),
            ("ollama start", true),
            ("/opt/x/ollama serve", true),
            ("/bin/sh /home/me/bin/ollama serve", true),
            ("python3 -u ./bin/ollama.py serve", true),
            ("ollama --verbose serve", true),
            ("ollama run m serve", false),
            ("ollama run m start", false),
            ("ollama list", false),
            ("/opt/x/ollama runner --model /a/b --port 1", false),
            ("ollama", false),
        ] {
            assert_eq!(process("ollama", line).is_server(), Some(want), "{line}");
        }
        let young = Process { words: Vec::new(), ..process("ollama", "") };
        assert_eq!(young.is_server(), None);
    }

    #[test]
    fn the_files_that_a_start_opens() {
        let there = ["/opt/o/ollama", "/home/me/bin/ollama", "/opt/real", "/usr/bin/python3"];
        let is_file = |file: &Path| there.iter().any(|one| file == Path::new(one));
        for (exe, line, cwd, want) in [
            ("/opt/o/ollama", "ollama serve", "/", &["/opt/o/ollama"][..]),
            ("/opt/o/ollama (deleted)", "/opt/o/ollama serve", "/", &["/opt/o/ollama"]),
            // A link.
            ("/opt/real", "/opt/o/ollama serve", "/", &["/opt/real", "/opt/o/ollama"]),
            ("/opt/o/ollama", "./ollama serve", "/opt/o", &["/opt/o/ollama"]),
            // Scripts.
            ("/usr/bin/dash", "/bin/sh /home/me/bin/ollama serve", "/", &["/home/me/bin/ollama"]),
            ("/usr/bin/dash", "/bin/sh bin/ollama serve", "/home/me", &["/home/me/bin/ollama"]),
            ("/usr/bin/python3", "python3 -u /opt/real serve", "/", &["/opt/real"]),
            // Files behind the command are its arguments.
            ("/opt/real", "x serve /opt/o/ollama", "/", &["/opt/real"]),
            (
                "/snap/ollama/105/bin/ollama",
                "ollama serve",
                "/",
                &["/snap/ollama/105/bin/ollama", "/snap/ollama/current/bin/ollama"],
            ),
            // Another user's.
            ("", "/opt/o/ollama serve", "", &["/opt/o/ollama"]),
            ("", "ollama serve", "", &[]),
            ("", "bin/ollama serve", "", &[]),
        ] {
            let own = |path: &str| Some(PathBuf::from(path)).filter(|_| !path.is_empty());
            let files = files(own(exe), &words(line), own(cwd).as_deref(), &is_file);
            assert_eq!(files, want.iter().map(PathBuf::from).collect::<Vec<_>>(), "{line}");
        }
    }

    #[test]
    fn processes_are_known_by_their_programs() {
        let program = |name: &str, file: &str| Program { name: name.to_owned(), file: file.into() };
        let programs = [
            program("llm-server", "/opt/llm-server"),
            program("python3", "/opt/x.py"),
            program("a-name-that-is-", "/opt/a-name-that-is-long"),
        ];
        for (name, line, want) in [
            ("llm-server", "/elsewhere/llm-server serve", true),
            ("llm", "llm serve", false),
            ("python3", "python3 /opt/x.py serve", true),
            ("python3", "python3 x.py serve", true),
            ("python3", "python3 /opt/y.py serve", false),
            ("python3", "python3 /opt/y.py serve x.py", false),
            ("a-name-that-is-", "a serve", true),
        ] {
            assert_eq!(process(name, line).runs(&programs), want, "{name} {line}");
        }
    }

    #[test]
    fn programs_are_recalled_and_junk_is_not() {
        let dir =
            std::env::temp_dir().join(format!("ollana-programs-{:?}", random::<8>().unwrap()));
        assert_eq!(recall(&dir), []);
        let program =
            |n: usize| Program { name: "o\"".to_owned(), file: format!("/opt/{n}").into() };
        let mut known = Vec::new();
        for n in 0..20 {
            assert!(add(&mut known, vec![program(n)]));
            assert!(!add(&mut known, vec![program(n)]));
        }
        assert_eq!((known.len(), &known[0]), (MOST, &program(19)));
        remember(&dir, &known);
        assert_eq!(recall(&dir), known);
        let long = format!("[{}1]", "1,".repeat(3 << 20));
        for junk in [
            &b""[..],
            b"{}",
            b"[1,{}]",
            b"[{\"name\":\"o\",\"file\":\"relative\"}]",
            b"\xff\0",
            long.as_bytes(),
        ] {
            fs::write(dir.join(MEMORY), junk).unwrap();
            assert_eq!(recall(&dir), []);
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn own_process_is_no_ollama() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let reason = holder(port, &[]).err().expect("no Ollama");
        assert!(reason.ends_with("has its port, not ollama serve"), "{reason}");
        drop(socket);
        assert_eq!(holder(port, &[]).err().expect("nobody"), "no process here has its port");
    }
}
