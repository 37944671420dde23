//! What a server gives of its models, over a plain and an encrypted connection's way alike.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{self, Client, Fake, Process, Random, Signal, eventually, request};

struct Store(PathBuf);

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SIZE: usize = 20 << 20;

/// A store with one model of one large layer: its digest and its bytes.
fn store() -> (Store, String, Vec<u8>) {
    store_of(SIZE)
}

fn store_of(size: usize) -> (Store, String, Vec<u8>) {
    let name = format!("ollana-donor-{}-{:?}", std::process::id(), std::thread::current().id());
    let dir = std::env::temp_dir().join(name);
    let hex = "ab".repeat(32);
    let bytes = Random::new(7).bytes(size);
    fs::create_dir_all(dir.join("blobs")).expect("a store");
    fs::write(dir.join(format!("blobs/sha256-{hex}")), &bytes).expect("a blob");
    let folder = dir.join("manifests/registry.ollama.ai/library/m");
    fs::create_dir_all(&folder).expect("a folder");
    let layer = format!(r#"{{"mediaType":"x","digest":"sha256:{hex}","size":{size}}}"#);
    let manifest =
        format!(r#"{{"schemaVersion":2,"mediaType":"y","config":{layer},"layers":[{layer}]}}"#);
    fs::write(folder.join("latest"), manifest).expect("a manifest");
    (Store(dir), format!("sha256:{hex}"), bytes)
}

fn server(store: &Store, more: &str) -> (Fake, Process) {
    let fake = Fake::unlike_ollama_saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    let arguments = format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} {more}",
        fake.address
    );
    let dir = store.0.to_str().expect("UTF-8");
    (fake, Process::with_env(&arguments, &[("OLLAMA_MODELS", dir)]))
}

fn ask(client: &mut Client, method: &str, target: &str, fields: &str) -> support::Answer {
    let fields: String = fields.lines().map(|line| format!("{}\r\n", line.trim())).collect();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
    client.answer_to(method)
}

#[test]
fn blobs_and_parts_of_them() {
    let (store, digest, bytes) = store();
    let (_fake, process) = server(&store, "");
    let target = format!("/ollana/blobs/{digest}");
    let mut client = Client::connect(process.address());
    let head = ask(&mut client, "HEAD", &target, "");
    assert_eq!(
        (head.status(), head.head.one("content-length").as_deref()),
        (200, Some("20971520"))
    );
    assert_eq!(head.head.one("accept-ranges").as_deref(), Some("bytes"));
    let whole = ask(&mut client, "GET", &target, "");
    assert_eq!(whole.status(), 200);
    assert!(whole.body == bytes, "other bytes");
    for (range, want) in [
        ("bytes=5-", 5..SIZE),
        ("bytes=9000000-9000000", 9_000_000..9_000_001),
        ("bytes=-3", SIZE - 3..SIZE),
        ("bytes=20971519-99999999999", SIZE - 1..SIZE),
    ] {
        let part = ask(&mut client, "GET", &target, &format!("Range: {range}"));
        let told = format!("bytes {}-{}/{SIZE}", want.start, want.end - 1);
        assert_eq!(
            (part.status(), part.head.one("content-range").as_deref()),
            (206, Some(told.as_str()))
        );
        assert!(part.body == bytes[want], "{range}: other bytes");
    }
    let past = ask(&mut client, "GET", &target, "Range: bytes=20971520-");
    assert_eq!(
        (past.status(), past.head.one("content-range").as_deref()),
        (416, Some("bytes */20971520"))
    );
}

#[test]
fn what_is_no_blob_of_a_model_is_not_there() {
    let (store, digest, _) = store();
    let (_fake, process) = server(&store, "");
    let upper = digest.to_uppercase();
    let other = format!("sha256:{}", "0".repeat(64));
    let mut client = Client::connect(process.address());
    for name in [
        other.as_str(),
        upper.as_str(),
        &digest[..70],
        &format!("{digest}0"),
        &digest.replace(':', "-"),
        &format!("{digest}/.."),
        "..%2f..%2fetc%2fpasswd",
        "../manifests/registry.ollama.ai/library/m/latest",
        "",
        "%00",
        "%ff",
        "%",
    ] {
        let answer = ask(&mut client, "GET", &format!("/ollana/blobs/{name}"), "");
        assert_eq!(answer.status(), 404, "{name}");
    }
    for name in ["nosuch", "", "../../../../etc/passwd", "%2e%2e/m", "m:other", "%ff"] {
        let answer = ask(&mut client, "GET", &format!("/ollana/manifests/{name}"), "");
        assert_eq!(answer.status(), 404, "{name}");
    }
    let target = format!("/ollana/blobs/{digest}");
    for field in ["Origin: http://localhost", "Sec-Fetch-Site: same-origin"] {
        assert_eq!(ask(&mut client, "GET", &target, field).status(), 403, "{field}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        let answer = ask(&mut Client::connect(process.address()), method, &target, "");
        assert_eq!(
            (answer.status(), answer.head.one("allow").as_deref()),
            (405, Some("GET, HEAD"))
        );
    }
    let host = format!("GET {target} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let mut client = Client::connect(process.address());
    client.send(host);
    assert_eq!(client.answer_to("GET").status(), 403);
}

/// A model for several kinds of runner: its manifest names others.
#[test]
fn a_list_of_manifests_is_said_to_be_one() {
    let (store, digest, _) = store();
    let list = format!(r#"{{"manifests":[{{"layers":[{{"digest":"{digest}","size":{SIZE}}}]}}]}}"#);
    let folder = store.0.join("manifests/registry.ollama.ai/library/several");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("latest"), list).expect("a manifest");
    let (_fake, process) = server(&store, "");
    let answer =
        ask(&mut Client::connect(process.address()), "GET", "/ollana/manifests/several", "");
    assert_eq!(answer.status(), 501, "{}", answer.text());
    assert!(answer.text().contains("several:latest has several manifests"), "{}", answer.text());
}

#[test]
fn nothing_is_given_where_that_is_off() {
    let (store, digest, _) = store();
    let (_fake, process) = server(&store, "--share-models off");
    for target in [format!("/ollana/blobs/{digest}"), "/ollana/manifests/m".to_owned()] {
        assert_eq!(Client::connect(process.address()).get(&target).status(), 404, "{target}");
    }
}

#[test]
fn two_get_blobs_at_once_and_more_come_back() {
    let (store, digest, bytes) = store();
    let (_fake, process) = server(&store, "");
    let target = format!("/ollana/blobs/{digest}");
    let connect = || Client::connect(process.address());
    // They don't read on, so that they aren't done.
    let mut slow = [connect(), connect()];
    for client in &mut slow {
        client.send(request("GET", &target, ""));
        assert_eq!(client.head_of("GET").status(), 200);
    }
    for method in ["GET", "HEAD"] {
        let busy = ask(&mut connect(), method, &target, "");
        assert_eq!((busy.status(), busy.head.one("retry-after").as_deref()), (503, Some("1")));
    }
    // They are no work in flight, and hold nothing else up.
    let status = connect().get("/ollana/status?brief").json();
    assert_eq!(status["totals"]["in_flight"], 0, "{status:#}");
    let [mut first, second] = slow;
    second.leave();
    eventually("a free place", || {
        (ask(&mut connect(), "HEAD", &target, "").status() == 200).then_some(())
    });
    let (rest, _) = first.rest();
    assert!(rest == bytes, "other bytes");
}

/// The part of a file that is in the page cache.
#[cfg(target_os = "linux")]
fn cached(file: &fs::File, size: u64) -> f64 {
    use rustix::io::{ReadWriteFlags, preadv2};
    use std::io::IoSliceMut;

    let is_cached = |at: u64| {
        let mut byte = [0];
        let read = preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|n| n == 1)
    };
    let places: Vec<u64> = (0..size).step_by(64 << 10).collect();
    places.iter().filter(|at| is_cached(**at)).count() as f64 / places.len() as f64
}

#[cfg(target_os = "linux")]
#[test]
fn the_page_cache_is_after_a_gift_what_it_was_before() {
    use rustix::fs::{Advice, fadvise};

    // So large that what the sockets of this machine take is a small part.
    let size: u64 = 96 << 20;
    let (store, digest, _) = store_of(0);
    let name = digest.replace(':', "-");
    let path = store.0.join("blobs").join(&name);
    fs::write(&path, vec![b'a'; size as usize]).expect("a blob");
    let manifest = store.0.join("manifests/registry.ollama.ai/library/m/latest");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    fs::write(manifest, text.replace(r#""size":0"#, &format!(r#""size":{size}"#)))
        .expect("written");
    let (_fake, process) = server(&store, "");
    let file = fs::File::open(path).expect("a blob");
    file.sync_all().expect("it is on the disk");
    let drop_it = || fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
    // A look reads nothing ahead, but brings in what it looks at.
    fadvise(&file, 0, None, Advice::Random).expect("advice");
    // It was just written. Not every file system tells, and some have nothing else than memory.
    let was_told = cached(&file, size) > 0.9;
    drop_it();
    if !was_told || cached(&file, size) > 0.1 {
        println!("not tested: the files of this system are in memory");
        return;
    }
    let mut client = Client::connect(process.address());
    let mut part_after = |range: &str, want: u64| {
        let answer = ask(&mut client, "GET", &format!("/ollana/blobs/{digest}"), range);
        assert_eq!(answer.body.len() as u64, want);
        cached(&file, size)
    };
    for (range, want) in [("", size), ("Range: bytes=1000-", size - 1000)] {
        drop_it();
        let part = part_after(range, want);
        assert!(part < 0.25, "{part} of it is in the page cache");
    }
    std::io::Read::read_to_end(&mut &file, &mut Vec::new()).expect("a blob");
    let part = part_after("", size);
    assert!(part > 0.9, "{part} of it is in the page cache");
}

#[test]
fn a_machine_that_stops_does_not_wait_for_those_who_get_blobs() {
    let (store, digest, _) = store();
    let (_fake, mut process) = server(&store, "");
    let mut client = Client::connect(process.address());
    client.send(request("GET", &format!("/ollana/blobs/{digest}"), ""));
    assert_eq!(client.head_of("GET").status(), 200);
    let mut idle = Client::connect(process.address());
    assert_eq!(idle.get("/api/version").status(), 200);
    // Until it cuts, and closes idle connections with that, nothing is read, so that not all can be on
    // its way.
    process.signal(Signal::TERM);
    let begun = std::time::Instant::now();
    let address = process.address();
    eventually("an end of new connections", || TcpStream::connect(address).err());
    idle.rest();
    let (got, _) = client.rest();
    process.exit();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(got.len() < SIZE, "it was cut");
}

/// Names and ranges put together of what matters in them.
#[test]
fn whatever_is_asked_for_is_the_blob_or_nothing() {
    let size = 100_000;
    let (store, digest, bytes) = store_of(size);
    fs::write(store.0.join("secret"), "secret").expect("a file");
    let (_fake, process) = server(&store, "");
    let half = &digest[..40];
    let names = [
        &*digest,
        half,
        "sha256:",
        "sha256-",
        "..",
        "/",
        "%2f",
        "%2e",
        "%00",
        "secret",
        "blobs",
        "?",
        "#",
        ":",
        "A",
        "%73",
        "-partial",
        "manifests",
        "%C3%A9",
        "latest",
    ];
    let parts = [
        "bytes=",
        "0",
        "-",
        ",",
        "5",
        "99999",
        "99999999999999999999",
        " ",
        "=",
        "x",
        "+",
        "bytes",
    ];
    let mut random = Random::new(11);
    let mut put = |of: &[&str], most: usize| -> String {
        (0..1 + random.below(most)).map(|_| *random.pick(of)).collect()
    };
    let mut client = Client::connect(process.address());
    for _ in 0..400 {
        let name = put(&names, 4);
        let kind = put(&["blobs/", "manifests/", "blobs", "status/../blobs/"], 1);
        let target = format!("/ollana/{kind}{name}");
        let answer = ask(&mut client, "GET", &target, "Range: bytes=0-3");
        let is_blob = kind == "blobs/" && name.split('?').next() == Some(&*digest);
        let is_whole = answer.status() == 206 && answer.body == bytes[..4];
        // Without a name, a path of ours may be meant: those are tested elsewhere.
        let is_nothing =
            matches!(answer.status(), 400 | 404) && !answer.text().contains("secret\n");
        assert!(if is_blob { is_whole } else { is_nothing }, "{target}: {}", answer.status());
        if answer.head.one("connection").as_deref() == Some("close") {
            client = Client::connect(process.address());
        }
    }
    let target = format!("/ollana/blobs/{digest}");
    for _ in 0..200 {
        let range = format!("bytes={}-{}", size - 9, put(&parts[1..], 4));
        let answer = ask(&mut client, "GET", &target, &format!("Range: {range}"));
        match answer.status() {
            200 => assert!(answer.body == bytes, "{range}: other bytes"),
            206 => {
                let told = answer.head.one("content-range").expect("a range");
                let told = told.strip_prefix("bytes ").and_then(|told| told.split_once('/'));
                let (first, last) = told.and_then(|told| told.0.split_once('-')).expect("a range");
                let [first, last] = [first, last].map(|n| n.parse::<usize>().expect("a number"));
                assert!(answer.body == bytes[first..=last], "{range}: other bytes");
            }
            400 | 416 => {}
            other => panic!("{range}: {other}"),
        }
        if answer.head.one("connection").as_deref() == Some("close") {
            client = Client::connect(process.address());
        }
    }
}

/// `/ollana/status` says who gets the models, and warns where nobody can.
#[test]
fn status_says_who_gets_the_models() {
    let (store, ..) = store();
    fs::rename(store.0.join("manifests"), store.0.join("elsewhere")).expect("moved");
    fs::write(store.0.join("manifests"), "no folder").expect("a file");
    for (more, whom, warns) in [
        ("", "on", true),
        ("--share-models paired", "paired", true),
        ("--share-models off", "off", false),
    ] {
        let (_fake, process) = server(&store, more);
        let mut client = Client::connect(process.address());
        let state = eventually("the warning", || {
            let state = client.get("/ollana/status").json();
            let warnings = state["warnings"].to_string();
            let says = warnings.contains("can't be read") && warnings.contains("let the user");
            (says == warns).then_some(state)
        });
        assert_eq!(state["machine"]["share_models"]["with"], whom);
    }
}
