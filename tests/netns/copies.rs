//! `ollana cp` between machines that find each other, paired and not; each only shares its own Ollama.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::daemon::Daemon;
use super::lan::{Host, Lan, key_in};
use crate::support::{Ollama, Package, Random, Store};

/// A machine with an Ollama and its models.
struct Machine {
    host: Host,
    store: Store,
    _ollama: Ollama,
    _daemon: Daemon,
}

impl Machine {
    /// Whose ollana finds the models, or not.
    fn start(lan: &mut Lan, store: Store, key: Option<&Path>, is_readable: bool) -> Self {
        let host = lan.host(&[("eth0", 0)]);
        let ollama = host.run(|| Ollama::with_store(&store, None));
        if is_readable {
            fs::create_dir_all(host.dir().join(".ollama")).expect("a folder");
            symlink(store.path(), host.dir().join(".ollama/models")).expect("a store");
        }
        let address = ollama.address.to_string();
        let mut words = vec!["--mode", "server", "--ollama", &address];
        words.extend(key.into_iter().flat_map(|key| ["--key-file", key.to_str().expect("UTF-8")]));
        let daemon = Daemon::start(&host, &words);
        Machine { host, store, _ollama: ollama, _daemon: daemon }
    }

    /// What a command says here, and whether it is done.
    fn say(&self, command: &str, words: &[&str]) -> (bool, String) {
        let mut program = Command::new(env!("CARGO_BIN_EXE_ollana"));
        program.arg(command).args(words).env_clear();
        let output = self.host.run(|| program.output()).expect("ollana runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

#[test]
fn models_go_from_machine_to_machine() {
    let Some(mut lan) = Lan::new(1) else { return };
    let mut random = Random::new(3);
    let package = Package::of(&[&random.bytes(3 << 20), b"{{ .Prompt }}"]);
    let has_it = || {
        let store = Store::new();
        store.add("alpha", &package);
        store
    };
    let key_dir = std::env::temp_dir().join(format!("ollana-copies-{}", std::process::id()));
    fs::create_dir_all(&key_dir).expect("a folder");
    let key = key_in(&key_dir);
    let donor = Machine::start(&mut lan, has_it(), Some(&key), true);
    let hidden = Machine::start(&mut lan, has_it(), Some(&key), false);
    let stranger = Machine::start(&mut lan, has_it(), None, true);
    let [one, other, third] =
        [0; 3].map(|_| Machine::start(&mut lan, Store::new(), Some(&key), true));
    let names = [&donor, &hidden, &stranger, &other].map(|machine| machine.host.name());
    let [donor_name, hidden_name, stranger_name, other_name] = &names;

    // Without the internet, a pull says who has it.
    let (is_done, text) = one.say("pull", &["alpha"]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_told = |name: &String| text.contains(&format!("{name} has it: ollana cp alpha@{name}"));
    assert!(!is_done && [donor_name, hidden_name].into_iter().any(is_told), "{text}");

    let (is_done, text) = one.say("cp", &[&format!("alpha@{donor_name}")]);
    assert!(is_done && text.ends_with("success\n"), "{text}");
    assert_eq!(one.store.digests("alpha"), package.digests());
    // The donor's Ollama sends it itself.
    let (is_done, text) = third.say("cp", &[&format!("alpha@{hidden_name}")]);
    assert!(is_done, "{text}");
    assert_eq!(third.store.digests("alpha"), package.digests());
    // From where it is, to another machine.
    let (is_done, text) = donor.say("cp", &["alpha", other_name]);
    assert!(is_done && text.ends_with("success\n"), "{text}");
    assert_eq!(other.store.digests("alpha"), package.digests());
    // Nobody gives it to strangers, and nobody takes it from them.
    let (is_done, text) = stranger.say("cp", &[&format!("alpha@{donor_name}")]);
    assert!(!is_done, "{text}");
    let (is_done, text) = stranger.say("cp", &["alpha", other_name]);
    assert!(!is_done, "{text}");
    let (is_done, text) = one.say("cp", &[&format!("alpha@{stranger_name}")]);
    assert!(!is_done, "{text}");
    let _ = fs::remove_dir_all(&key_dir);
}
