//! `ollana cp` between machines that are paired, each with an Ollama and its models on disk.

use std::net::SocketAddr;

use serde_json::Value;

use super::pull_command::ollana;
use crate::support::{Client, Ollama, Package, Process, Random, Store, eventually, key_file};

struct Machine {
    store: Store,
    ollama: Ollama,
    process: Process,
}

fn start(mode: &str, store: &Store, more: &str) -> (Ollama, Process) {
    let ollama = Ollama::with_store(store, None);
    let arguments = format!(
        "--mode {mode} --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --key-file {} {more}",
        ollama.address,
        key_file().display()
    );
    let dir = store.path().to_string_lossy().into_owned();
    (ollama, Process::with_env(&arguments, &[("OLLAMA_MODELS", &dir)]))
}

impl Machine {
    fn start(store: &Store, more: &str) -> Self {
        let (ollama, process) = start("server", store, more);
        Machine { store: store.clone(), ollama, process }
    }

    fn address(&self) -> SocketAddr {
        self.process.address()
    }

    fn names(&self) -> Vec<String> {
        let tags = Client::connect(self.ollama.address).get("/api/tags").json();
        let models = tags["models"].as_array().expect("models");
        models.iter().map(|model| model["name"].as_str().expect("a name").to_owned()).collect()
    }
}

/// A house with a machine that has models, one that has none, and one without an Ollama.
struct House {
    donor: Machine,
    target: Machine,
    client: Process,
    pulled: Package,
    made: Package,
}

impl House {
    fn new() -> Self {
        let mut random = Random::new(5);
        let pulled = Package::of(&[&random.bytes(3 << 20), b"{{ .Prompt }}"]);
        let from = "/usr/share/ollama/.ollama/models/blobs/sha256-00";
        let made = Package::made(&[&random.bytes(2 << 20), b"mine"], Some(from));
        let store = Store::new();
        store.add("Alpha:1b", &pulled);
        store.add("me/made", &made);
        let donor = Machine::start(&store, "");
        let target = Machine::start(&Store::new(), &format!("--server {}", donor.address()));
        let client = Process::start(&format!(
            "--mode client --listen 127.0.0.1:0 --discovery-port 0 --key-file {} --server {} --server {}",
            key_file().display(),
            donor.address(),
            target.address()
        ));
        let house = House { donor, target, client, pulled, made };
        house.knows(house.client.address(), 2);
        house.knows(house.donor.address(), 1);
        house.knows(house.target.address(), 1);
        house
    }

    /// Waits until a daemon knows so many servers that are up, and what they have.
    fn knows(&self, daemon: SocketAddr, count: usize) {
        eventually("the servers and their lists", || {
            let state = Client::connect(daemon).get("/ollana/status").json();
            let servers = state["servers"].as_array()?;
            let ready = servers.iter().filter(|server| {
                server["health"] == "ready" && (count == 1 || server["models"].is_array())
            });
            (ready.count() == count).then_some(())
        });
    }

    fn cp(&self, words: &str, listen: SocketAddr) -> (String, String, i32) {
        let words = words.replace("DONOR", &self.donor.address().to_string());
        let words = words.replace("TARGET", &self.target.address().to_string());
        ollana(&format!("cp {words} --listen {listen}"))
    }
}

/// The bytes of the manifest are the donor's, but for paths of the donor.
#[track_caller]
fn assert_same(machine: &Machine, name: &str, package: &Package) {
    assert_eq!(machine.store.digests(name), package.digests());
    for (digest, bytes) in &package.blobs {
        assert!(std::fs::read(machine.store.blob(digest)).expect("a blob") == *bytes);
    }
    let text = std::fs::read_to_string(machine.store.manifest(name)).expect("a manifest");
    let known: Value = serde_json::from_str(&text).expect("JSON");
    assert!(known["layers"].as_array().expect("layers").iter().all(|it| it.get("from").is_none()));
    if !package.manifest.contains("\"from\"") {
        assert_eq!(text, package.manifest);
    }
}

#[test]
fn a_model_goes_from_one_server_to_another() {
    let house = House::new();
    let client = house.client.address();
    let (text, errors, code) = house.cp("alpha:1b@DONOR TARGET", client);
    assert_eq!(code, 0, "{text}{errors}");
    assert!(text.ends_with("writing manifest\nsuccess\n"), "{text}");
    assert!(text.contains("from 127.0.0.1: 100 % of 3.1 MB"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_same(&house.target, "Alpha:1b", &house.pulled);
    // The donor isn't named, but there is only one.
    let (text, errors, code) = house.cp("ME/made TARGET", client);
    assert_eq!(code, 0, "{text}{errors}");
    assert_same(&house.target, "me/made", &house.made);
    assert_eq!(house.target.names(), ["Alpha:1b", "me/made:latest"]);
    let was_asked_to_push = |ollama: &Ollama| {
        ollama.look(|all| all.records.iter().any(|it| it.head.target() == "/api/push"))
    };
    assert!(!was_asked_to_push(&house.donor.ollama), "its store can be read");
}

#[test]
fn a_model_comes_to_this_machine() {
    let house = House::new();
    let (text, errors, code) = house.cp("alpha:1b@DONOR", house.target.address());
    assert_eq!(code, 0, "{text}{errors}");
    assert_same(&house.target, "alpha:1b", &house.pulled);

    let store = Store::new();
    let servers = format!("--share 127.0.0.1:0 --server {}", house.donor.address());
    let (ollama, process) = start("both", &store, &servers);
    house.knows(process.address(), 2);
    let both = Machine { store, ollama, process };
    for words in ["me/made@DONOR", "alpha:1b"] {
        let (text, errors, code) = house.cp(words, both.address());
        assert_eq!(code, 0, "{words}: {text}{errors}");
    }
    assert_same(&both, "me/made", &house.made);
    assert_same(&both, "alpha:1b", &house.pulled);
}

/// A machine that is only a server has the other one's ollana do it.
#[test]
fn a_model_goes_from_this_machine_to_another() {
    let house = House::new();
    let donor = Machine::start(&house.donor.store, &format!("--server {}", house.target.address()));
    let own = donor.address().to_string();
    let target = Machine::start(&Store::new(), &format!("--server {own}"));
    let donor = Machine::start(&house.donor.store, &format!("--server {}", target.address()));
    let (text, errors, code) =
        house.cp(&format!("alpha:1b@{own} {}", target.address()), donor.address());
    assert_eq!(code, 0, "{text}{errors}");
    assert!(text.contains("100 % of 3.1 MB") && text.ends_with("success\n"), "{text}");
    assert_same(&target, "alpha:1b", &house.pulled);
    assert_eq!(target.names(), ["alpha:1b"]);
}

#[test]
fn who_pulls_without_the_internet_hears_who_has_the_model() {
    let house = House::new();
    let body = r#"{"model":"alpha:1b"}"#;
    let pull = |address, body: &str| Client::connect(address).post("/api/pull", body).text();
    let text = pull(house.target.address(), body);
    let want = "the registry can't be reached; 127.0.0.1 has it: ollana cp alpha:1b@127.0.0.1 (";
    assert!(text.lines().last().is_some_and(|last| last.contains(want)), "{text}");
    assert!(text.contains("dial tcp"), "and what Ollama says: {text}");
    let text = pull(house.target.address(), r#"{"model":"alpha:1b","stream":false}"#);
    assert!(text.contains(want), "{text}");
    for other in [r#"{"model":"gamma"}"#, r#"{"model":"hf.co/a/b"}"#] {
        let text = pull(house.target.address(), other);
        assert!(text.contains("dial tcp") && !text.contains("ollana cp"), "{text}");
    }
    let words = format!("pull alpha:1b --listen {}", house.target.address());
    let (_, errors, code) = ollana(&words);
    assert_eq!(code, 1);
    assert_eq!(errors.matches("ollana cp").count(), 1, "{errors}");
}

#[test]
fn what_can_not_be_copied_is_said() {
    let house = House::new();
    let (client, target) = (house.client.address(), house.target.address());
    for (words, listen, code, want) in [
        ("", client, 2, "cp takes MODEL"),
        ("alpha:1b@DONOR", client, 2, "has no Ollama to copy to"),
        ("alpha:1b@DONOR DONOR", client, 2, "both who gives"),
        ("gamma TARGET", client, 1, "no server that is up has gamma"),
        ("gamma@DONOR TARGET", client, 1, "does not have gamma"),
        ("alpha:1b@nowhere TARGET", client, 1, "knows no server \"nowhere\""),
        ("alpha:1b@DONOR nowhere", client, 1, "nowhere"),
        ("a:b:c@DONOR TARGET", client, 1, "invalid model name"),
        ("alpha:1b", target, 2, "who has it?"),
        ("alpha:1b@DONOR elsewhere", target, 1, "knows no server \"elsewhere\""),
        ("gamma@TARGET DONOR", target, 1, "127.0.0.1: "),
    ] {
        let (text, errors, got) = house.cp(words, listen);
        assert_eq!((got, text.as_str()), (code, ""), "{words}: {errors}");
        assert!(errors.contains(want), "{words}: {errors}");
    }
    assert!(house.target.names().is_empty());
}
