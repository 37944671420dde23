//! Models that are copied from another machine exactly (`X-Ollana-Copy`), without any registry.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use ollana::config::{ModeChoice, ServerName};
use serde_json::{Value, json};

use crate::support::{
    Answer, Call, Chain, Client, Fake, Gate, Ollama, Package, Process, Random, Signal, Store, Way,
    eventually, lan_address, lock,
};

const RANDOM: &str = "0123456789abcdef0123456789abcdef";

fn package(seed: u64) -> Package {
    let mut random = Random::new(seed);
    Package::of(&[&random.bytes(3 << 20), b"{{ .Prompt }}", &random.bytes(100)])
}

/// A machine that gives away these models. What it does with a layer may be told: it gets the call, the
/// bytes, and where to begin.
fn donor_that(
    models: &[(&str, &Package)],
    gives: impl Fn(&mut Call<'_>, &[u8]) + Send + Sync + 'static,
) -> Fake {
    moody_donor(models, |_| false, gives)
}

/// The same, which may answer a request in another way.
fn moody_donor(
    models: &[(&str, &Package)],
    answers: impl Fn(&mut Call<'_>) -> bool + Send + Sync + 'static,
    gives: impl Fn(&mut Call<'_>, &[u8]) + Send + Sync + 'static,
) -> Fake {
    let models: Vec<(String, Package)> =
        models.iter().map(|(name, package)| ((*name).to_owned(), (*package).clone())).collect();
    Fake::unlike_ollama(move |call| {
        if answers(call) {
            return;
        }
        let target = call.target().replace("%2F", "/").replace("%3A", ":");
        let path = target.strip_prefix("/ollana/").unwrap_or_default();
        let manifest = path.strip_prefix("manifests/").and_then(|name| {
            models.iter().find(|(known, _)| known == name).map(|(_, it)| it.manifest.clone())
        });
        if let Some(manifest) = manifest {
            return call.answer("200 OK", "application/json", manifest);
        }
        let blobs = models.iter().flat_map(|(_, package)| &package.blobs);
        let blob = path.strip_prefix("blobs/").and_then(|digest| {
            blobs.clone().find(|(known, _)| known == digest).map(|(_, bytes)| bytes)
        });
        let Some(bytes) = blob else {
            let error = r#"{"error":"there is no such model here"}"#;
            return call.answer("404 Not Found", "application/json", error);
        };
        let range = call.head.one("range");
        let at = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let at: usize = at.map_or(0, |at| at.parse().expect("an offset"));
        let (length, last) = (bytes.len(), bytes.len() - 1);
        let status = match range {
            None => "200 OK\r\n".to_owned(),
            Some(_) => format!("206 Partial\r\nContent-Range: bytes {at}-{last}/{length}\r\n"),
        };
        call.send(format!("HTTP/1.1 {status}Content-Length: {}\r\n\r\n", length - at));
        if call.head.method() == "GET" {
            gives(call, &bytes[at..]);
        }
    })
}

fn donor(models: &[(&str, &Package)]) -> Fake {
    donor_that(models, |call, bytes| assert!(call.send(bytes)))
}

/// Daemons in front of an Ollama, the neighbours being these.
fn chain(way: Way, ollama: &Ollama, neighbours: &[SocketAddr]) -> Chain {
    way.with(ollama, |settings| {
        if settings.mode == ModeChoice::Server {
            let named = |at: &SocketAddr| ServerName { host: at.ip().to_string(), port: at.port() };
            settings.servers = neighbours.iter().map(named).collect();
        }
        // Donors of tests have no keys.
        settings.unpaired = Some(true);
    })
}

fn request(donor: impl std::fmt::Display, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /api/pull HTTP/1.1\r\nHost: localhost\r\nX-Ollana-Copy: {donor}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn copy(address: SocketAddr, model: &str, donor: impl std::fmt::Display) -> Answer {
    Client::connect(address).ask(request(donor, &json!({ "model": model })))
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let text = answer.text();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[track_caller]
fn assert_copied(answer: &Answer) -> Vec<Value> {
    let lines = lines(answer);
    assert_eq!(lines.last(), Some(&json!({"status": "success"})), "{lines:?}");
    lines
}

/// Names of all models that the Ollama lists.
fn names(ollama: &Ollama) -> Vec<String> {
    let tags = Client::connect(ollama.address).get("/api/tags").json();
    let models = tags["models"].as_array().expect("models").clone();
    let mut names: Vec<String> =
        models.iter().map(|model| model["name"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

#[track_caller]
fn assert_same(store: &Store, name: &str, package: &Package) {
    let manifest = std::fs::read_to_string(store.manifest(name)).expect("a manifest");
    assert_eq!(manifest, package.manifest);
    for (digest, bytes) in &package.blobs {
        assert!(std::fs::read(store.blob(digest)).expect("a blob") == *bytes, "{digest}");
    }
    assert_eq!(store.unfinished(), [] as [&str; 0]);
}

#[test]
fn a_model_is_copied_byte_by_byte() {
    for way in [Way::OneHop, Way::TwoHops] {
        let package = package(1);
        let (store, donor) = (Store::new(), donor(&[("alpha:1b", &package)]));
        let ollama = Ollama::with_store(&store, None);
        // One of its layers is there already.
        let (digest, bytes) = &package.blobs[1];
        std::fs::write(store.blob(digest), bytes).expect("a blob");
        let chain = chain(way, &ollama, &[donor.address]);
        let answer = copy(chain.address(), "alpha:1b", donor.address);
        let lines = assert_copied(&answer);
        assert_eq!(answer.head.one("content-type").as_deref(), Some("application/x-ndjson"));
        assert_same(&store, "alpha:1b", &package);
        assert_eq!(names(&ollama), ["alpha:1b"], "{way:?}");
        assert_eq!(lines[0], json!({"status": "pulling manifest"}));
        for (at, (digest, bytes)) in package.blobs.iter().enumerate() {
            let about: Vec<&Value> =
                lines.iter().filter(|line| line["digest"] == digest.as_str()).collect();
            let last = about.last().expect("lines about each layer");
            assert_eq!((&last["total"], &last["completed"]), (&json!(bytes.len()), &last["total"]));
            assert_eq!(last["from"].is_string(), at != 1, "{last}");
        }
        let asked = donor.look(|state| {
            state.records.iter().filter(|it| it.head.target().contains(digest.as_str())).count()
        });
        assert_eq!(asked, 0, "what is there isn't fetched");
        // Once more: everything is there.
        assert_copied(&copy(chain.address(), "alpha:1b", donor.address));
        assert_same(&store, "alpha:1b", &package);
    }
}

#[test]
fn what_had_the_name_before_has_it_until_the_new_one_does() {
    let (old, new) = (package(1), package(2));
    let store = Store::new();
    store.add("Alpha:latest", &old);
    store.add("keeps", &Package::of(&[&old.blobs[0].1]));
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha", &new)]));
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    assert_copied(&copy(chain.address(), "alpha", donor.address));
    assert_same(&store, "alpha", &new);
    assert_eq!(names(&ollama), ["Alpha:latest", "keeps:latest"]);
    assert!(store.has(&old.blobs[0].0), "another model has it");
    assert!(!store.has(&old.blobs[2].0), "no model has it");
    let changes: Vec<(String, String)> = ollama
        .served()
        .into_iter()
        .filter(|it| it.path == "/api/copy" || it.path == "/api/delete")
        .map(|it| (it.method, it.path))
        .collect();
    let post = ("POST".to_owned(), "/api/copy".to_owned());
    let delete = ("DELETE".to_owned(), "/api/delete".to_owned());
    assert_eq!(changes, [post.clone(), post, delete.clone(), delete]);
}

#[test]
fn names_are_taken_as_ollama_takes_them() {
    let package = package(1);
    let all = ["hf.co/Some-One/Model.GGUF:Q4_K_M", "me/x", "Alpha:7B", "localhost:5000/a/b"];
    let models: Vec<(&str, &Package)> = all.iter().map(|name| (*name, &package)).collect();
    let (store, donor) = (Store::new(), donor(&models));
    let ollama = Ollama::with_store(&store, None);
    let chain = chain(Way::TwoHops, &ollama, &[donor.address]);
    for name in all {
        assert_copied(&copy(chain.address(), name, donor.address));
        assert_same(&store, name, &package);
    }
    assert_eq!(names(&ollama).len(), 4, "{:?}", names(&ollama));
    for name in ["", "a b", "../x", "a:b:c", "a/b/c/d"] {
        let answer = copy(chain.address(), name, donor.address);
        assert_eq!(answer.status(), 400, "{name}: {}", answer.text());
    }
    let body = json!({"name": "me/x", "stream": false});
    let answer = Client::connect(chain.address()).ask(request(donor.address, &body));
    assert_eq!((answer.status(), answer.json()), (200, json!({"status": "success"})));
}

/// Ollama writes each part of a name in the case in which any of its models has it.
#[test]
fn names_of_other_models_do_not_get_into_those_for_a_moment() {
    let (package, store) = (package(1), Store::new());
    let others = ["his:New", "his:OLD", "mine:NEW", "mine:Old", "Ollana-Copy/x:latest"];
    others.iter().for_each(|name| store.add(name, &self::package(8)));
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha:1b", &package)]));
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    for _ in 0..8 {
        assert_copied(&copy(chain.address(), "alpha:1b", donor.address));
        assert_same(&store, "alpha:1b", &package);
        let mut all: Vec<&str> = others.iter().chain(&["alpha:1b"]).copied().collect();
        all.sort_unstable();
        assert_eq!(names(&ollama), all);
    }
}

#[test]
fn what_can_not_be_copied_is_told() {
    let package = package(1);
    let (store, gives) = (Store::new(), donor(&[("alpha", &package)]));
    let ollama = Ollama::with_store(&store, None);
    let plain = Ollama::with(&["alpha"]);
    let refuses = Fake::unlike_ollama(|call| {
        let error = r#"{"error":"alpha was made here, and is given to paired machines only"}"#;
        call.answer("403 Forbidden", "application/json", error);
    });
    let nonsense = Fake::unlike_ollama(|call| {
        call.answer(
            "200 OK",
            "application/json",
            r#"{"layers":[{"digest":"sha256:..","size":1}]}"#,
        );
    });
    let dead = Fake::unlike_ollama(|call| call.reset());
    let all = [&gives, &*plain, &refuses, &nonsense, &dead].map(|fake| fake.address);
    for way in [Way::OneHop, Way::TwoHops] {
        let chain = chain(way, &ollama, &all);
        let own = chain.servers[0].addresses()[0].to_string();
        for (donor, model, status, want) in [
            (gives.address.to_string(), "beta", 404, "does not have beta"),
            (refuses.address.to_string(), "alpha", 403, "paired machines only"),
            (plain.address.to_string(), "alpha", 502, "runs no ollana"),
            (nonsense.address.to_string(), "alpha", 502, "no manifest"),
            (dead.address.to_string(), "alpha", 502, "connection"),
            (own, "alpha", 400, "the machine itself"),
            ("nowhere".to_owned(), "alpha", 404, "knows no server \"nowhere\""),
        ] {
            let answer = copy(chain.address(), model, &donor);
            let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
            assert_eq!(answer.status(), status, "{way:?} {donor}: {error}");
            assert!(error.contains(want), "{way:?} {donor}: {error}");
        }
    }
    assert_eq!(names(&ollama), [] as [&str; 0]);
}

#[test]
fn a_server_without_ollana_is_no_target() {
    let ollama = Ollama::with(&["alpha"]);
    let client = Chain::direct(&[&ollama], |_| {});
    let answer = copy(client.address(), "beta", "desktop");
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(answer.text().contains("runs no ollana"), "{}", answer.text());
    assert_eq!(names(&ollama), ["alpha:latest"], "nothing was pulled");
}

#[test]
fn wrong_bytes_leave_nothing_behind() {
    let (mut package, store) = (package(1), Store::new());
    package.blobs[0].1[1_000_000] ^= 1;
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha", &package)]));
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    let lines = lines(&copy(chain.address(), "alpha", donor.address));
    let error = lines.last().and_then(|line| line["error"].as_str()).unwrap_or_default();
    assert!(error.contains("digest"), "{lines:?}");
    assert_eq!(names(&ollama), [] as [&str; 0]);
    eventually("nothing to be left", || store.files().is_empty().then_some(()));
}

/// Gives a layer of this size as far as its first megabyte, opens the gate and breaks off; and what is asked
/// for less, whole.
fn breaks_off_once(size: usize, has_broken: Gate) -> impl Fn(&mut Call<'_>, &[u8]) {
    move |call, bytes| {
        if bytes.len() < size {
            return assert!(call.send(bytes));
        }
        call.send(&bytes[..1_000_000]);
        has_broken.open();
        call.close();
    }
}

/// That a new store gets the model of this donor, whole; the lines.
fn assert_taken(donor: &Fake, package: &Package) -> Vec<Value> {
    let store = Store::new();
    let ollama = Ollama::with_store(&store, None);
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    let lines = assert_copied(&copy(chain.address(), "alpha", donor.address));
    assert_same(&store, "alpha", package);
    lines
}

#[test]
fn a_donor_that_breaks_off_is_asked_again() {
    let package = package(1);
    let donor = donor_that(&[("alpha", &package)], |call, bytes| {
        if bytes.len() > 2_000_000 {
            call.send(&bytes[..1_000_000]);
            call.close();
        } else {
            call.send(bytes);
        }
    });
    assert_taken(&donor, &package);
}

/// Its machine roams, or its ollana is restarted: there is nobody else who has it.
#[test]
fn a_donor_that_is_away_for_a_while_is_waited_for() {
    let package = package(1);
    let breaks = Arc::new(Mutex::new(Vec::<Instant>::new()));
    let seen = Arc::clone(&breaks);
    let is_away = move |call: &mut Call<'_>| {
        let breaks = lock(&seen);
        let is_away = breaks.len() == 1 && breaks[0].elapsed() < Duration::from_secs(4);
        is_away.then(|| call.reset()).is_some()
    };
    // More often than where there is somebody else; and one time, nothing comes.
    let donor = moody_donor(&[("alpha", &package)], is_away, move |call, bytes| {
        let is_large = bytes.len() > 1000;
        let mut breaks = lock(&breaks);
        let end = if breaks.len() == 1 { 0 } else { bytes.len().min(700_000) };
        call.send(&bytes[..end]);
        if is_large && end < bytes.len() {
            breaks.push(Instant::now());
            call.close();
        }
    });
    assert_taken(&donor, &package);
}

/// A blob that a donor lacks, or can't read; at once, or in the middle.
#[test]
fn what_a_donor_has_no_more_is_told_soon() {
    let package = package(1);
    let (digest, size) = (package.blobs[0].0.clone(), package.blobs[0].1.len());
    for begins in [false, true] {
        let (store, has_begun) = (Store::new(), Gate::new());
        let (digest, begun) = (digest.clone(), has_begun.clone());
        let lacks = move |call: &mut Call<'_>| {
            let is_it = call.target().contains(&digest);
            let lacks = is_it && (!begins || begun.wait_for(Duration::ZERO));
            lacks.then(|| call.answer("404 Not Found", "application/json", "{}")).is_some()
        };
        let gives = breaks_off_once(size, has_begun);
        let donor = moody_donor(&[("alpha", &package)], lacks, gives);
        let ollama = Ollama::with_store(&store, None);
        let chain = chain(Way::OneHop, &ollama, &[donor.address]);
        let start = Instant::now();
        let lines = lines(&copy(chain.address(), "alpha", donor.address));
        let error = lines.last().and_then(|line| line["error"].as_str()).unwrap_or_default();
        assert!(error.contains("127.0.0.1") && error.contains("has it no more"), "{lines:?}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        eventually("what was begun to be removed", || store.unfinished().is_empty().then_some(()));
    }
}

/// Started anew, it doesn't know which blobs its Ollama can push until it is asked for the manifest.
#[test]
fn a_donor_that_knows_a_blob_by_its_manifest_alone_is_reminded() {
    let package = package(1);
    let (has_broken, is_reminded) = (Gate::new(), Gate::new());
    let breaks = has_broken.clone();
    let has_forgotten = move |call: &mut Call<'_>| {
        if call.head.method() == "HEAD" && call.target().contains("manifests/alpha") {
            call.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
            is_reminded.open();
            return true;
        }
        let is_open = |gate: &Gate| gate.wait_for(Duration::ZERO);
        let lacks =
            call.target().contains("blobs") && is_open(&has_broken) && !is_open(&is_reminded);
        lacks.then(|| call.answer("404 Not Found", "application/json", "{}")).is_some()
    };
    let size = package.blobs[0].1.len();
    let donor = moody_donor(&[("alpha", &package)], has_forgotten, breaks_off_once(size, breaks));
    assert_taken(&donor, &package);
}

#[test]
fn a_donor_that_gives_to_others_is_waited_for() {
    let (package, asked) = (package(1), OnceLock::new());
    let is_busy = move |call: &mut Call<'_>| {
        let since = || asked.get_or_init(Instant::now).elapsed();
        let is_busy = call.target().contains("blobs") && since() < Duration::from_secs(4);
        is_busy.then(|| call.answer("503 Service Unavailable", "application/json", "{}")).is_some()
    };
    let gives = |call: &mut Call<'_>, bytes: &[u8]| assert!(call.send(bytes));
    let donor = moody_donor(&[("alpha", &package)], is_busy, gives);
    let lines = assert_taken(&donor, &package);
    let waits = json!({"status": "waiting for 127.0.0.1, which gives to others"});
    assert_eq!(lines.iter().filter(|line| **line == waits).count(), 1, "{lines:?}");
}

#[test]
fn a_client_that_leaves_ends_it() {
    for way in [Way::OneHop, Way::TwoHops] {
        let (package, store, gate) = (package(1), Store::new(), Gate::new());
        let begun = gate.clone();
        let donor = donor_that(&[("alpha", &package)], move |call, bytes| {
            call.send(&bytes[..bytes.len().min(1_000_000)]);
            if bytes.len() > 1_000_000 {
                begun.open();
                call.hang();
            }
        });
        let ollama = Ollama::with_store(&store, None);
        let chain = chain(way, &ollama, &[donor.address]);
        let mut client = Client::connect(chain.address());
        client.send(request(donor.address, &json!({"model": "alpha"})));
        assert!(gate.wait(), "the donor begins");
        client.leave();
        eventually("nothing to be left of it", || {
            (store.unfinished().is_empty() && names(&ollama).is_empty()).then_some(())
        });
        let last = donor.count() - 1;
        donor.closed(last);
    }
}

#[test]
fn what_a_crash_has_left_is_cleaned_up() {
    let (package, store) = (package(1), Store::new());
    for name in ["1", "2", "new", "OLD"] {
        store.add(&format!("127.0.0.1:5/ollana-copy/{RANDOM}:{name}"), &self::package(7));
    }
    let kept = [format!("127.0.0.1:5/me/{RANDOM}:new"), format!("ollana-copy/{RANDOM}:new")];
    kept.iter().for_each(|name| store.add(name, &self::package(8)));
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha", &package)]));
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    assert_copied(&copy(chain.address(), "alpha", donor.address));
    assert_eq!(names(&ollama), [kept[0].as_str(), "alpha:latest", kept[1].as_str()]);
    assert!(!store.has(&self::package(7).blobs[0].0), "nor its layers");
}

/// Killed while Ollama has the new model under its name for a moment.
#[test]
fn a_kill_in_the_middle_leaves_the_old_model() {
    let (old, new, store) = (package(1), package(2), Store::new());
    store.add("alpha", &old);
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha", &new)]));
    let gate = Gate::new();
    let reached = gate.clone();
    let hangs = move |call: &mut Call<'_>| {
        call.read_body();
        reached.open();
        call.hang();
    };
    let arguments = format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --server {}",
        ollama.address, donor.address
    );
    ollama.change(|world| {
        world.script.insert("/api/copy".to_owned(), Arc::new(hangs));
    });
    let mut process = Process::start(&arguments);
    process.connect_ready();
    let mut client = Client::connect(process.address());
    client.send(request(donor.address, &json!({"model": "alpha"})));
    assert!(gate.wait(), "the new one is about to be put in place");
    process.signal(Signal::KILL);
    process.exit();
    assert_same(&store, "alpha", &old);
    assert_eq!(names(&ollama).len(), 2, "{:?}", names(&ollama));
    ollama.change(|world| world.script.clear());
    let process = Process::start(&arguments);
    process.connect_ready();
    assert_copied(&copy(process.address(), "alpha", donor.address));
    assert_same(&store, "alpha", &new);
    assert_eq!(names(&ollama), ["alpha:latest"]);
}

#[test]
fn an_ollama_that_reaches_no_loopback_is_told() {
    let (old, new, store) = (package(1), package(2), Store::new());
    store.add("alpha", &old);
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha", &new)]));
    ollama.change(|world| {
        let fails = |call: &mut Call<'_>| {
            call.read_body();
            let error = r#"{"error":"pull model manifest: dial tcp: connection refused"}"#;
            call.answer("500 Internal Server Error", "application/json", error);
        };
        world.script.insert("/api/pull".to_owned(), Arc::new(fails));
    });
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    let lines = lines(&copy(chain.address(), "alpha", donor.address));
    let error = lines.last().and_then(|line| line["error"].as_str()).unwrap_or_default();
    assert!(error.contains("container") && error.contains("connection refused"), "{lines:?}");
    assert_same(&store, "alpha", &old);
    assert_eq!(names(&ollama), ["alpha:latest"]);
}

/// Ollama writes no more once its disk is full, which a registry wouldn't have told either.
#[test]
fn a_disk_without_room_is_told_before_anything_is_sent() {
    let (package, store) = (package(1), Store::new());
    let mut large = package.clone();
    let (digest, bytes) = &package.blobs[0];
    let size = format!("\"digest\":\"{digest}\",\"size\":{}", bytes.len());
    assert!(large.manifest.contains(&size));
    large.manifest =
        large.manifest.replace(&size, &format!("\"digest\":\"{digest}\",\"size\":{}", 1u64 << 60));
    let (ollama, donor) = (Ollama::with_store(&store, None), donor(&[("alpha", &large)]));
    let path = store.path().to_string_lossy().into_owned();
    let process = Process::with_env(
        &format!(
            "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --server {}",
            ollama.address, donor.address
        ),
        &[("OLLAMA_MODELS", &path)],
    );
    process.connect_ready();
    let answer = copy(process.address(), "alpha", donor.address);
    assert_eq!(answer.status(), 507, "{}", answer.text());
    assert!(
        answer.text().contains("has no room for alpha: it needs 1152922 TB, and "),
        "{}",
        answer.text()
    );
    let blobs = donor
        .look(|state| state.records.iter().filter(|it| it.head.target().contains("blobs")).count());
    assert_eq!(blobs, 0);
}

#[test]
fn other_machines_may_where_they_may_manage_models() {
    let Some(from) = lan_address() else { return };
    let package = package(1);
    for (manage, pull, status) in [(false, false, 403), (false, true, 403), (true, false, 200)] {
        let (store, donor) = (Store::new(), donor(&[("alpha", &package)]));
        let ollama = Ollama::with_store(&store, None);
        let chain = Way::OneHop.with(&ollama, |settings| {
            (settings.policy.manage, settings.policy.pull) = (manage, pull);
            let (host, port) = (donor.address.ip().to_string(), donor.address.port());
            settings.servers = vec![ServerName { host, port }];
        });
        let mut client = Client::connect_from(from, chain.address()).expect("a connection");
        let answer = client.ask(request(donor.address, &json!({"model": "alpha"})));
        assert_eq!(answer.status(), status, "{}", answer.text());
        assert_eq!(names(&ollama).len(), usize::from(manage));
    }
}

#[test]
fn a_copy_is_seen_in_the_state_and_counted() {
    let (package, store, gate) = (package(1), Store::new(), Gate::new());
    let held = gate.clone();
    let donor = donor_that(&[("alpha", &package)], move |call, bytes| {
        call.send(&bytes[..bytes.len() / 2]);
        call.wait(&held, "the state to be looked at");
        call.send(&bytes[bytes.len() / 2..]);
    });
    let ollama = Ollama::with_store(&store, None);
    let chain = chain(Way::OneHop, &ollama, &[donor.address]);
    let mut client = Client::connect(chain.address());
    client.send(request(donor.address, &json!({"model": "alpha"})));
    let transfer = eventually("the copy in the state", || {
        let state = chain.connect().get("/ollana/status").json();
        Some(state["transfers"][0].clone()).filter(|it| it["done"].as_u64() > Some(0))
    });
    assert_eq!((&transfer["kind"], &transfer["name"]), (&json!("pull"), &json!("alpha:latest")));
    assert_eq!(transfer["from"], "127.0.0.1");
    gate.open();
    assert_copied(&client.answer_to("POST"));
}
