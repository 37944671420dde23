//! The stand-in's store and its pulls, asked without a proxy: they are what Ollama's are.

use std::fs;
use std::net::Shutdown;

use serde_json::Value;

use crate::support::{
    Client,
    Gate,
    Ollama,
    Package,
    Random,
    Registry,
    Store,
    World,
    eventually,
    post,
    request,
    sha256, //
};

const MB: usize = 1 << 20;

fn connect(ollama: &Ollama) -> Client {
    Client::connect(ollama.address)
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    Random::new(seed).bytes(len)
}

/// A registry with one model, and an Ollama whose internet it is.
fn house(name: &str, package: &Package) -> (Registry, Store, Ollama) {
    let registry = Registry::start();
    registry.publish(name, package);
    let store = Store::new();
    let ollama = Ollama::with_store(&store, Some(registry.address));
    (registry, store, ollama)
}

/// The lines of a whole pull.
fn pull(ollama: &Ollama, body: &str) -> Vec<Value> {
    let answer = connect(ollama).post("/api/pull", body);
    assert_eq!(answer.status(), 200);
    answer.text().lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
}

fn last_error(lines: &[Value]) -> &str {
    lines.last().and_then(|line| line["error"].as_str()).unwrap_or("none")
}

/// Begins a pull and leaves when its layer of 3 MB has come to the first of them.
fn leave_at_1_mb(ollama: &Ollama, digest: &str) {
    let mut client = connect(ollama);
    client.send(post("/api/pull", r#"{"model":"tiny"}"#));
    client.head_of("POST");
    client.read_until(at_1_mb(digest).as_bytes());
}

/// The end of such a line.
fn at_1_mb(digest: &str) -> String {
    format!("\"digest\":\"{digest}\",\"total\":3145728,\"completed\":1048576}}\n")
}

#[test]
fn a_pull_takes_layer_after_layer_and_what_is_there_is_skipped() {
    let [weights, license] = [bytes(1, 3 * MB), b"as you like".to_vec()];
    let package = Package::of(&[&weights, b"{{ .Prompt }}", &license]);
    let (registry, store, ollama) = house("tiny", &package);
    let gate = Gate::new();
    registry.change(|shelf| shelf.holds = Some((MB, gate.clone())));
    fs::write(store.blob(&sha256(&license)), &license).unwrap();
    let mut client = connect(&ollama);
    client.send(post("/api/pull", r#"{"model":"tiny"}"#));
    let digests = package.digests();
    client.head_of("POST");
    let mut text = client.read_until(at_1_mb(&digests[0]).as_bytes());
    assert_eq!(registry.given(&digests[1]), 0, "one layer after the other");
    gate.open();
    text.extend(client.rest().0);
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0].to_string(), r#"{"status":"pulling manifest"}"#);
    let skipped: Vec<&Value> = lines.iter().filter(|line| line["digest"] == digests[2]).collect();
    assert_eq!(skipped.len(), 1, "{text}");
    assert_eq!((&skipped[0]["total"], &skipped[0]["completed"]), (&11.into(), &11.into()));
    let end: Vec<&str> = lines.iter().rev().take(3).filter_map(|l| l["status"].as_str()).collect();
    assert_eq!(end, ["success", "writing manifest", "verifying sha256 digest"]);
    let manifest = store.path().join("manifests/registry.ollama.ai/library/tiny/latest");
    assert_eq!(fs::read_to_string(manifest).unwrap(), package.manifest);
    assert_eq!(store.digests("tiny"), digests);
    for (digest, bytes) in &package.blobs {
        assert!(fs::read(store.blob(digest)).unwrap() == *bytes, "{digest}");
    }
    assert!(store.unfinished().is_empty());
    let tags = connect(&ollama).get("/api/tags").json();
    assert_eq!(tags["models"][0]["digest"], sha256(package.manifest.as_bytes())[7..]);
}

#[test]
fn a_pull_that_is_left_stops_and_the_next_goes_on_from_there() {
    let package = Package::of(&[&bytes(2, 3 * MB)]);
    let digest = package.digests()[0].clone();
    let (registry, store, ollama) = house("tiny", &package);
    registry.change(|shelf| shelf.holds = Some((MB, Gate::new())));
    leave_at_1_mb(&ollama, &digest);
    // Its connection to the registry is closed too, and what came is kept.
    eventually("the download to end", || {
        let part = fs::read_to_string(format!("{}-partial-0", store.blob(&digest).display()));
        part.ok()?.contains("\"Completed\":1048576").then_some(())
    });
    eventually("the pull to be over", || ollama.served()[0].is_cancelled.then_some(()));
    assert!(!store.has(&digest));
    registry.change(|shelf| shelf.holds = None);
    // One that comes at once may still meet the end of the one before, as with Ollama.
    eventually("a pull that isn't the old one's", || {
        let lines = pull(&ollama, r#"{"model":"tiny"}"#);
        match last_error(&lines) {
            "none" => Some(()),
            error => (error != "context canceled").then(|| panic!("{error}")),
        }
    });
    assert_eq!(registry.given(&digest), 3 * MB as u64, "no byte twice");
    assert!(store.unfinished().is_empty());
}

/// What a pull has begun, an upload may finish; the next pull finds the layer there.
#[test]
fn an_upload_finishes_what_a_pull_has_begun() {
    let weights = bytes(3, 3 * MB);
    let package = Package::of(&[&weights]);
    let digest = package.digests()[0].clone();
    let (registry, store, ollama) = house("tiny", &package);
    registry.change(|shelf| shelf.holds = Some((MB, Gate::new())));
    leave_at_1_mb(&ollama, &digest);
    let upload = connect(&ollama).ask(post(&format!("/api/blobs/{digest}"), &weights));
    assert_eq!(upload.status(), 201);
    let lines = pull(&ollama, r#"{"model":"tiny"}"#);
    assert_eq!(last_error(&lines), "none", "{lines:?}");
    assert_eq!(store.digests("tiny"), package.digests());
    assert!(registry.given(&digest) < 2 * MB as u64);
}

#[test]
fn pulls_of_one_layer_share_its_download() {
    let package = Package::of(&[&bytes(4, 3 * MB)]);
    let digest = package.digests()[0].clone();
    let (registry, _store, ollama) = house("tiny", &package);
    let gate = Gate::new();
    registry.change(|shelf| shelf.holds = Some((MB, gate.clone())));
    let mut staying = connect(&ollama);
    staying.send(post("/api/pull", r#"{"model":"tiny"}"#));
    leave_at_1_mb(&ollama, &digest);
    gate.open();
    let text = staying.answer_to("POST").text();
    assert!(text.ends_with("{\"status\":\"success\"}\n"), "{text}");
    assert_eq!(registry.given(&digest), 3 * MB as u64);
}

#[test]
fn errors_are_worded_as_ollama_words_them() {
    let weights = bytes(5, MB);
    let package = Package::of(&[&weights]);
    let digest = package.digests()[0].clone();
    let (mut registry, store, ollama) = house("tiny", &package);
    let error = |body: &str| last_error(&pull(&ollama, body)).to_owned();
    let tiny = r#"{"model":"tiny"}"#;
    assert_eq!(error(r#"{"model":"big"}"#), "pull model manifest: file does not exist");
    registry.change(|shelf| shelf.wrong_byte = Some((digest.clone(), 70_000)));
    let mut wrong = weights.clone();
    wrong[70_000] ^= 1;
    let [want, got] = [&weights, &wrong].map(|bytes| sha256(bytes));
    let mismatch = "digest mismatch, file must be downloaded again: want";
    assert_eq!(error(tiny), format!("{mismatch} {want}, got {got}"));
    assert!(!store.has(&digest), "it is removed");
    registry.change(|shelf| (shelf.wrong_byte, shelf.cuts) = (None, Some(1000)));
    assert_eq!(error(tiny), "max retries exceeded: unexpected EOF");
    registry.change(|shelf| shelf.refuses = Some((503, "later".to_owned())));
    assert_eq!(error(tiny), "pull model manifest: 503: later");
    registry.change(|shelf| (shelf.refuses, shelf.cuts) = (None, None));
    let url = "https://registry.ollama.ai/v2/library/tiny/manifests/latest";
    registry.kill();
    let refused = format!("dial tcp {}: connect: connection refused", registry.address);
    assert_eq!(error(tiny), format!("pull model manifest: Get \"{url}\": {refused}"));
    ollama.change(|world| world.internet = None);
    let lookup = "dial tcp: lookup registry.ollama.ai on 127.0.0.53:53: no such host";
    assert_eq!(error(tiny), format!("pull model manifest: Get \"{url}\": {lookup}"));
    let answer = connect(&ollama).post("/api/pull", r#"{"model":"tiny","stream":false}"#);
    assert_eq!((answer.status(), answer.json()["error"].as_str().is_some()), (500, true));
    assert!(store.digests("tiny").is_empty(), "no manifest");
    registry.restart();
    ollama.change(|world| world.internet = Some(registry.address));
    let answer = connect(&ollama).post("/api/pull", r#"{"model":"tiny","stream":false}"#);
    assert_eq!((answer.status(), answer.text().as_str()), (200, "{\"status\":\"success\"}"));
}

#[test]
fn a_name_may_say_where_its_registry_is() {
    let package = Package::of(&[b"weights"]);
    let (registry, store, ollama) = house("home/tiny:1b", &package);
    ollama.change(|world| world.internet = None);
    let name = format!("{}/home/tiny:1b", registry.address);
    let lines = pull(&ollama, &format!(r#"{{"model":"{name}"}}"#));
    assert!(last_error(&lines).ends_with(": http: server gave HTTP response to HTTPS client"));
    let lines = pull(&ollama, &format!(r#"{{"model":"{name}","insecure":true}}"#));
    assert_eq!(last_error(&lines), "none", "{lines:?}");
    let path = format!("manifests/{}/home/tiny/1b", registry.address);
    assert!(store.path().join(path).exists());
    // The copy has the same manifest, and the blobs outlive the name that brought them.
    let copy = format!(r#"{{"source":"{name}","destination":"tiny"}}"#);
    assert_eq!(connect(&ollama).post("/api/copy", &copy).status(), 200);
    let delete = request("DELETE", "/api/delete", format!(r#"{{"model":"{name}"}}"#));
    assert_eq!(connect(&ollama).ask(delete).status(), 200);
    assert_eq!(fs::read_to_string(store.manifest("tiny")).unwrap(), package.manifest);
    assert!(package.digests().iter().all(|digest| store.has(digest)));
    let delete = request("DELETE", "/api/delete", r#"{"model":"TINY"}"#);
    assert_eq!(connect(&ollama).ask(delete).status(), 200);
    assert!(!package.digests().iter().any(|digest| store.has(digest)), "they go with the last");
    assert_eq!(fs::read_dir(store.path().join("manifests")).unwrap().count(), 0);
}

#[test]
fn an_upload_is_hashed_while_it_is_written() {
    let store = Store::new();
    let ollama = Ollama::with_store(&store, None);
    let data = bytes(6, MB);
    let digest = sha256(&data);
    let path = format!("/api/blobs/{digest}");
    let head = || connect(&ollama).ask(request("HEAD", &path, "")).status();
    assert_eq!(head(), 404);
    let mut client = connect(&ollama);
    client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhe"));
    client.stream.shutdown(Shutdown::Write).expect("half a close");
    client.read_to_close();
    assert!(store.unfinished().is_empty(), "what is cut short leaves nothing");
    let other = connect(&ollama).ask(post(&path, "hello"));
    let [expected, got] = [&digest, &sha256(b"hello")].map(|digest| format!("\"{digest}\""));
    let error = format!("digest mismatch, expected {expected}, got {got}");
    assert_eq!((other.status(), other.json()["error"].as_str()), (400, Some(error.as_str())));
    assert_eq!(head(), 404);
    assert_eq!(
        [&path, &path].map(|path| connect(&ollama).ask(post(path, &data)).status()),
        [201, 200]
    );
    assert_eq!(head(), 200);
    assert!(fs::read(store.blob(&digest)).unwrap() == data);
}

#[test]
fn models_made_here_say_from_what_and_an_update_removes_what_it_no_longer_needs() {
    let [first, second] = [bytes(7, 1000), bytes(8, 1000)];
    let [old, new] = [&first, &second].map(|weights| Package::of(&[weights]));
    let (registry, store, ollama) = house("tiny", &old);
    pull(&ollama, r#"{"model":"tiny"}"#);
    let made = connect(&ollama).post("/api/create", r#"{"model":"mine","from":"tiny"}"#);
    assert_eq!(made.status(), 200);
    let manifest: Value =
        serde_json::from_slice(&fs::read(store.manifest("mine")).unwrap()).unwrap();
    assert_eq!(manifest["layers"][0]["from"], "tiny:latest");
    let create = format!(r#"{{"model":"own","files":{{"a.gguf":"{}"}}}}"#, sha256(&first));
    assert_eq!(connect(&ollama).post("/api/create", create).status(), 200);
    let manifest = fs::read(store.manifest("own")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let from = manifest["layers"][0]["from"].as_str().unwrap();
    assert!(from.starts_with(store.path().to_str().unwrap()), "{manifest}");
    for name in ["mine", "own"] {
        let delete = request("DELETE", "/api/delete", format!(r#"{{"model":"{name}"}}"#));
        assert_eq!(connect(&ollama).ask(delete).status(), 200);
    }
    registry.publish("tiny", &new);
    let lines = pull(&ollama, r#"{"model":"tiny"}"#);
    assert!(lines.iter().any(|line| line["status"] == "removing unused layers"), "{lines:?}");
    assert_eq!([&first, &second].map(|bytes| store.has(&sha256(bytes))), [false, true]);
    // Another Ollama on the same store sees what somebody else put there.
    store.add("other", &old);
    let other = Ollama::start(World { store: Some(store.clone()), ..World::default() });
    assert_eq!(connect(&other).post("/api/show", r#"{"model":"other"}"#).status(), 200);
}
