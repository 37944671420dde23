//! Models of an Ollama whose folder can't be read: it pushes them itself to those that copy them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::pull_command::ollana;
use crate::support::{
    Answer, Call, Client, Gate, Ollama, Package, Process, Random, Store, eventually, lan_address,
    ndjson, symlink,
};

/// A machine whose ollana doesn't find the models of its Ollama.
struct Donor {
    store: Store,
    ollama: Ollama,
    process: Process,
    alpha: Package,
    made: Package,
}

const RANDOM: &str = "0123456789abcdef0123456789abcdef";

fn start(ollama: &Ollama, models: &str, more: &str) -> Process {
    let arguments = format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} {more}",
        ollama.address
    );
    Process::with_env(&arguments, &[("OLLAMA_MODELS", models)])
}

impl Donor {
    fn start(more: &str) -> Self {
        let mut random = Random::new(11);
        let alpha = Package::of(&[&random.bytes(7 << 20), b"{{ .Prompt }}", b""]);
        let from = "/root/.ollama/models/blobs/sha256-00";
        let mut made = Package::made(&[&random.bytes(2 << 20), b"mine"], Some(from));
        made.manifest.push('\n');
        let store = Store::new();
        store.add("Alpha:1b", &alpha);
        store.add("me/made", &made);
        let ollama = Ollama::with_store(&store, None);
        let process = start(&ollama, "/nowhere/models", more);
        process.connect_ready();
        Donor { store, ollama, process, alpha, made }
    }

    fn connect(&self) -> Client {
        Client::connect(self.process.address())
    }

    fn names(&self) -> Vec<String> {
        names(&self.ollama)
    }

    /// Waits until nothing is left of pushes.
    fn is_clean(&self) {
        eventually("the names to be gone", || {
            (self.names() == ["Alpha:1b", "me/made:latest"]).then_some(())
        });
    }
}

fn names(ollama: &Ollama) -> Vec<String> {
    let tags = Client::connect(ollama.address).get("/api/tags").json();
    let models = tags["models"].as_array().expect("models");
    models.iter().map(|model| model["name"].as_str().expect("a name").to_owned()).collect()
}

fn ask(client: &mut Client, method: &str, target: &str, fields: &str) -> Answer {
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
    client.answer_to(method)
}

fn blob(package: &Package, index: usize) -> (String, &[u8]) {
    let (digest, bytes) = &package.blobs[index];
    (format!("/ollana/blobs/{digest}"), bytes)
}

#[test]
fn a_copy_needs_no_files_of_the_donor() {
    let donor = Donor::start("");
    let store = Store::new();
    let ollama = Ollama::with_store(&store, None);
    let path = store.path().to_string_lossy().into_owned();
    let target = start(&ollama, &path, &format!("--server {}", donor.process.address()));
    target.connect_ready();
    for (name, package) in [("alpha:1b", &donor.alpha), ("me/made", &donor.made)] {
        let from = donor.process.address();
        let (text, errors, code) =
            ollana(&format!("cp {name}@{from} --listen {}", target.address()));
        assert_eq!(code, 0, "{name}: {text}{errors}");
        assert_eq!(store.digests(name), package.digests());
        for (digest, bytes) in &package.blobs {
            assert!(std::fs::read(store.blob(digest)).expect("a blob") == *bytes, "{digest}");
        }
        donor.is_clean();
    }
    let text = |name: &str| std::fs::read_to_string(store.manifest(name)).expect("a manifest");
    assert_eq!(text("alpha:1b"), donor.alpha.manifest, "byte by byte");
    let made = text("me/made");
    assert!(!made.contains("/root") && made.ends_with("}\n"), "it is known as made here: {made}");
}

/// Ollama was told of another folder, or moved a large layer to another disk: what we read isn't all of
/// what it has.
#[test]
fn a_copy_is_what_ollama_has_now() {
    let Donor { store, ollama, process, alpha, .. } = Donor::start("");
    drop(process);
    let former = Store::new();
    former.add("Alpha:1b", &Package::of(&[b"of last year", b"{{ .Prompt }}", b""]));
    let elsewhere = Store::new();
    let blob = store.blob(&alpha.blobs[0].0);
    let moved = elsewhere.path().join("large");
    let move_it = || {
        std::fs::copy(&blob, &moved).expect("a copy");
        std::fs::remove_file(&blob).expect("a blob");
        symlink(&moved, &blob).expect("a link");
    };
    let prepare: [(&Store, &dyn Fn()); 2] = [(&former, &|| {}), (&store, &move_it)];
    // A link takes a right on Windows.
    let cases = if cfg!(unix) { 2 } else { 1 };
    for (read, before) in prepare.into_iter().take(cases) {
        before();
        let donor = start(&ollama, &read.path().to_string_lossy(), "");
        donor.connect_ready();
        let target_store = Store::new();
        let target_ollama = Ollama::with_store(&target_store, None);
        let path = target_store.path().to_string_lossy().into_owned();
        let target = start(&target_ollama, &path, &format!("--server {}", donor.address()));
        target.connect_ready();
        let (text, errors, code) =
            ollana(&format!("cp alpha:1b@{} --listen {}", donor.address(), target.address()));
        assert_eq!(code, 0, "{text}{errors}");
        assert_eq!(target_store.digests("alpha:1b"), alpha.digests());
    }
}

/// Ollama writes each part of a name in the case in which any of its models has it.
#[test]
fn names_of_other_models_do_not_get_into_those_for_a_moment() {
    let donor = Donor::start("");
    let others = ["his:New", "mine:NEW", "Ollana-Copy/x:latest"];
    others.iter().for_each(|name| donor.store.add(name, &donor.made));
    let before = donor.names();
    for _ in 0..8 {
        let answer = ask(&mut donor.connect(), "GET", "/ollana/manifests/alpha:1b", "");
        assert_eq!((answer.status(), answer.text()), (200, donor.alpha.manifest.clone()));
        eventually("the name to be gone", || (donor.names() == before).then_some(()));
    }
}

#[test]
fn parts_of_blobs_are_what_they_should_be() {
    let donor = Donor::start("");
    let mut client = donor.connect();
    let (target, bytes) = blob(&donor.alpha, 0);
    assert_eq!(ask(&mut client, "HEAD", &target, "").status(), 404, "nobody asked for the model");
    let answer = ask(&mut client, "GET", "/ollana/manifests/ALPHA%3A1b", "");
    assert_eq!((answer.status(), answer.text()), (200, donor.alpha.manifest.clone()));
    let head = ask(&mut client, "HEAD", &target, "");
    assert_eq!(head.status(), 200);
    assert_eq!(head.head.one("content-length"), Some(bytes.len().to_string()));
    let size = bytes.len();
    for (range, want) in [
        (String::new(), 0..size),
        ("bytes=0-".to_owned(), 0..size),
        ("bytes=1000000-".to_owned(), 1_000_000..size),
        ("bytes=3000001-3999999".to_owned(), 3_000_001..4_000_000),
        ("bytes=999999-2000000".to_owned(), 999_999..2_000_001),
        (format!("bytes={}-", size - 1), size - 1..size),
        ("bytes=-5".to_owned(), size - 5..size),
    ] {
        let field = if range.is_empty() { range } else { format!("Range: {range}\r\n") };
        let part = ask(&mut client, "GET", &target, &field);
        assert_eq!(part.status(), if field.is_empty() { 200 } else { 206 }, "{field}");
        assert!(part.body == bytes[want], "{field}: other bytes");
        donor.is_clean();
    }
    let past = ask(&mut client, "GET", &target, &format!("Range: bytes={size}-\r\n"));
    assert_eq!(past.status(), 416);
    for index in [1, 2, 3] {
        let (target, bytes) = blob(&donor.alpha, index);
        let answer = ask(&mut client, "GET", &target, "");
        assert_eq!((answer.status(), answer.body.as_slice()), (200, bytes), "{target}");
    }
    let (of_another, _) = blob(&donor.made, 0);
    assert_eq!(ask(&mut client, "GET", &of_another, "").status(), 404);
    for name in ["beta", "..", "a/b/c/d/e", "127.0.0.1:5/ollana-copy/x:1"] {
        let answer = ask(&mut client, "GET", &format!("/ollana/manifests/{name}"), "");
        assert_eq!(answer.status(), 404, "{name}: {}", answer.text());
    }
}

#[test]
fn only_paired_machines_and_own_programs_get_them() {
    let Some(from) = lan_address() else { return };
    for more in ["", "--share-models off"] {
        let donor = Donor::start(more);
        let manifest = "/ollana/manifests/alpha:1b";
        let own = ask(&mut donor.connect(), "GET", manifest, "");
        assert_eq!(own.status(), if more.is_empty() { 200 } else { 404 });
        let mut client = Client::connect_from(from, donor.process.address()).expect("connected");
        assert_eq!(ask(&mut client, "GET", manifest, "").status(), 404);
        let (target, _) = blob(&donor.alpha, 0);
        for method in ["HEAD", "GET"] {
            assert_eq!(ask(&mut client, method, &target, "").status(), 404);
        }
        donor.is_clean();
    }
}

#[test]
fn a_client_that_leaves_ends_the_push() {
    let donor = Donor::start("");
    let mut client = donor.connect();
    ask(&mut client, "GET", "/ollana/manifests/alpha:1b", "");
    let (target, bytes) = blob(&donor.alpha, 0);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    assert_eq!(client.head_of("GET").status(), 200);
    let mut other = donor.connect();
    let busy = ask(&mut other, "GET", &target, "");
    assert_eq!(busy.status(), 503, "one at a time: {}", busy.text());
    client.piece();
    client.leave();
    let answer = eventually("the place to be free", || {
        let answer = ask(&mut other, "GET", &target, "");
        (answer.status() == 200).then_some(answer)
    });
    assert!(answer.body == bytes);
    donor.is_clean();
}

#[test]
fn what_a_crash_has_left_is_cleaned_up() {
    let donor = Donor::start("");
    for port in [5, 65535] {
        donor.store.add(&format!("127.0.0.1:{port}/ollana-copy/{RANDOM}:new"), &donor.alpha);
    }
    let answer = ask(&mut donor.connect(), "GET", "/ollana/manifests/alpha:1b", "");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    donor.is_clean();
}

#[test]
fn an_ollama_that_does_not_push_is_told_of() {
    let script = |path: &str, script: Arc<dyn Fn(&mut Call<'_>) + Send + Sync>| {
        let donor = Donor::start("");
        donor.ollama.change(|world| {
            world.script.insert(path.to_owned(), script);
        });
        let answer = ask(&mut donor.connect(), "GET", "/ollana/manifests/alpha:1b", "");
        donor.ollama.change(|world| world.script.clear());
        donor.is_clean();
        (answer.status(), answer.json()["error"].as_str().unwrap_or_default().to_owned())
    };
    let refuses = |call: &mut Call<'_>| {
        call.read_body();
        let body =
            "{\"status\":\"retrieving manifest\"}\n{\"error\":\"connect: connection refused\"}\n";
        call.answer("200 OK", "application/x-ndjson", body);
    };
    let (status, error) = script("/api/push", Arc::new(refuses));
    assert_eq!(status, 502, "{error}");
    assert!(error.contains("it can't push") && error.contains("connection refused"), "{error}");
    let breaks = |call: &mut Call<'_>| call.reset();
    let (status, error) = script("/api/push", Arc::new(breaks));
    assert_eq!(status, 502, "{error}");
    let (status, error) = script("/api/copy", Arc::new(breaks));
    assert_eq!(status, 502, "{error}");
}

/// What isn't what Ollama sends doesn't reach the machine that copies.
#[test]
fn a_push_of_nonsense_is_no_model() {
    let donor = Donor::start("");
    let gate = Gate::new();
    let pushed = gate.clone();
    let nonsense = move |call: &mut Call<'_>| {
        let body: Value = serde_json::from_slice(&call.read_body()).expect("JSON");
        let name = body["model"].as_str().expect("a name").to_owned();
        let (host, rest) = name.split_once('/').expect("a host");
        let path = format!("/v2/{}", rest.replace(':', "/manifests/"));
        let host = host.parse().expect("an address");
        call.send(ndjson());
        for (method, path, body) in [
            ("PUT", "/v2/ollana-copy/00/manifests/1", "{}"),
            ("PUT", "/", "{}"),
            ("POST", path.as_str(), "{}"),
            ("PUT", path.as_str(), "no manifest"),
        ] {
            let mut client = Client::connect(host);
            let length = body.len();
            client.send(format!(
                "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
            client.head_of(method);
        }
        pushed.open();
        call.send_chunk("{\"status\":\"success\"}\n");
        call.send("0\r\n\r\n");
    };
    donor.ollama.change(|world| {
        world.script.insert("/api/push".to_owned(), Arc::new(nonsense));
    });
    let answer = ask(&mut donor.connect(), "GET", "/ollana/manifests/alpha:1b", "");
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(gate.wait_for(Duration::from_secs(20)));
    assert!(answer.json()["error"].is_string() && answer.json() != json!({}));
    donor.is_clean();
}

/// An Ollama in a container has a loopback of its own: it reaches this machine at another address.
#[test]
fn an_ollama_in_a_container_is_reached_as_well() {
    if lan_address().is_none() {
        return;
    }
    let donor = Donor::start("");
    let store = Store::new();
    let ollama = Ollama::with_store(&store, None);
    for one in [&donor.ollama, &ollama] {
        one.change(|world| world.is_contained = true);
    }
    let path = store.path().to_string_lossy().into_owned();
    let from = donor.process.address();
    let target = start(&ollama, &path, &format!("--server {from}"));
    target.connect_ready();
    let (text, errors, code) = ollana(&format!("cp alpha:1b@{from} --listen {}", target.address()));
    assert_eq!(code, 0, "{text}{errors}");
    assert_eq!(store.digests("alpha:1b"), donor.alpha.digests());
    assert_eq!(names(&ollama), ["alpha:1b"]);
    donor.is_clean();
}
