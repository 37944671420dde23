//! Pulls through a machine whose neighbours may have what it lacks: the registry gives the name, the
//! house gives the bytes.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ollana::config::{ModeChoice, ServerName};
use serde_json::{Value, json};

use crate::support::{
    Call, Chain, Client, Fake, Gate, Ollama, Package, Process, Random, Registry, Store, Way,
    client_settings, eventually, free_tcp_port, is_root, key_file, post, server_settings, start,
};

/// More than what is left to the registry.
const LARGE: usize = 12_000_000;
const PULL: &str = r#"{"model":"alpha"}"#;

/// Neighbours that are no daemons have no keys.
const PLAIN: [Way; 2] = [Way::OneHop, Way::TwoHops];

/// A model of two large layers and two small ones, the same in all tests.
fn model() -> Package {
    static MODEL: OnceLock<Package> = OnceLock::new();
    let make = || {
        let mut random = Random::new(1);
        let [one, other] = [LARGE, 9_000_000].map(|size| random.bytes(size));
        Package::of(&[&one, b"{{ .Prompt }}", &other])
    };
    MODEL.get_or_init(make).clone()
}

/// A neighbour with these blobs, which does with a GET as told: the blob, and where to begin.
fn neighbour(
    blobs: Vec<(String, Vec<u8>)>,
    gives: impl Fn(&mut Call<'_>, &[u8], usize) + Send + Sync + 'static,
) -> Fake {
    Fake::unlike_ollama(move |call| {
        let digest = call.target().strip_prefix("/ollana/blobs/").unwrap_or_default();
        let Some((_, bytes)) = blobs.iter().find(|(known, _)| known == digest) else {
            return call.answer("404 Not Found", "application/json", "{}");
        };
        let range = call.head.one("range");
        let at = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let at: usize = at.map_or(0, |at| at.parse().expect("an offset"));
        let status = match range {
            None => "200 OK\r\n".to_owned(),
            Some(_) => format!(
                "206 Partial Content\r\nContent-Range: bytes {at}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            ),
        };
        call.send(format!("HTTP/1.1 {status}Content-Length: {}\r\n\r\n", bytes.len() - at));
        if call.head.method() == "GET" {
            gives(call, bytes, at);
        }
    })
}

fn gives_all(call: &mut Call<'_>, bytes: &[u8], at: usize) {
    call.send(&bytes[at..]);
}

/// GETs that a neighbour has had, with what they begin at.
fn gets(neighbour: &Fake) -> Vec<String> {
    neighbour.look(|state| {
        let gets = state.records.iter().filter(|record| record.head.method() == "GET");
        gets.map(|record| record.head.one("range").unwrap_or_default()).collect()
    })
}

/// A machine that has nothing, in a house, with a registry that has everything.
struct House {
    store: Store,
    registry: Registry,
    ollama: Ollama,
    package: Package,
}

impl House {
    /// The registry gives so many bytes per second.
    fn new(rate: u64) -> Self {
        let package = model();
        let (store, registry) = (Store::new(), Registry::start());
        registry.publish("alpha", &package);
        registry.change(|shelf| shelf.rate = Some(rate));
        let ollama = Ollama::with_store(&store, Some(registry.address));
        House { store, registry, ollama, package }
    }

    fn large(&self) -> &str {
        &self.package.blobs[0].0
    }

    fn chain(&self, way: Way, neighbours: &[SocketAddr]) -> Chain {
        way.with(&self.ollama, |settings| {
            if settings.mode == ModeChoice::Server {
                let named =
                    |at: &SocketAddr| ServerName { host: at.ip().to_string(), port: at.port() };
                settings.servers = neighbours.iter().map(named).collect();
            }
        })
    }

    /// Pulls that Ollama was asked for.
    fn pulls(&self) -> usize {
        self.ollama.served().iter().filter(|served| served.path == "/api/pull").count()
    }

    /// That the model is there as the registry has it, and nothing half.
    fn assert_whole(&self) {
        assert_eq!(self.store.digests("alpha"), self.package.digests());
        for (digest, bytes) in &self.package.blobs {
            let there = std::fs::read(self.store.blob(digest)).expect("a blob");
            assert!(there == *bytes, "{digest}: other bytes");
        }
    }
}

/// The lines of a pull that ended well, each taken apart.
fn lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let lines: Vec<Value> = text.lines().map(parse).collect();
    assert_eq!(lines.last(), Some(&json!({"status": "success"})), "{text}");
    lines
}

/// What is told of one layer: total and completed, and from where.
fn told(lines: &[Value], digest: &str) -> Vec<(u64, u64, String)> {
    let about = lines.iter().filter(|line| line["digest"] == digest);
    about
        .map(|line| {
            assert_eq!(line["status"], format!("pulling {}", &digest[7..19]));
            let number = |member: &str| line[member].as_u64().unwrap_or(0);
            let from = line["from"].as_str().unwrap_or_default().to_owned();
            (number("total"), number("completed"), from)
        })
        .collect()
}

#[test]
fn layers_of_the_house_come_from_there() {
    for way in PLAIN {
        let house = House::new(1_000_000);
        let neighbour = neighbour(house.package.blobs.clone(), gives_all);
        let chain = house.chain(way, &[neighbour.address]);
        let answer = chain.connect().post("/api/pull", PULL);
        assert_eq!(answer.head.one("content-type").as_deref(), Some("application/x-ndjson"));
        let lines = lines(&answer.text());
        house.assert_whole();
        for (digest, bytes) in [&house.package.blobs[0], &house.package.blobs[2]] {
            let told = told(&lines, digest);
            let size = bytes.len() as u64;
            assert!(told.iter().all(|(total, ..)| *total == size), "{way:?} {:?}", told.last());
            assert!(
                told.contains(&(size, size, "127.0.0.1".to_owned())),
                "{way:?} {:?}",
                told.last()
            );
            assert!(house.registry.given(digest) < size / 2, "{way:?}: from the registry");
        }
        let count = |status: &str| lines.iter().filter(|line| line["status"] == status).count();
        assert_eq!(count("pulling manifest"), 1, "{way:?}: the client sees no second beginning");
        assert_eq!(gets(&neighbour), ["", ""], "{way:?}");
        assert_eq!(house.pulls(), 3, "{way:?}: once, and again behind each layer that was taken");
    }
}

/// Nobody to ask, or nobody who has it, or a client that wants only the internet.
#[test]
fn without_a_neighbour_that_is_to_give_it_the_lines_are_ollamas() {
    for (has_it, from) in [(None, "any"), (Some(false), "any"), (Some(true), "Internet")] {
        let house = House::new(40_000_000);
        let blobs = if has_it == Some(true) { house.package.blobs.clone() } else { Vec::new() };
        let neighbour = neighbour(blobs, gives_all);
        let neighbours: Vec<SocketAddr> = has_it.map(|_| neighbour.address).into_iter().collect();
        let chain = house.chain(Way::TwoHops, &neighbours);
        let text = chain.connect().ask(pull_from(from)).text();
        let lines = lines(&text);
        assert!(lines.iter().all(|line| line.get("from").is_none()), "{text}");
        house.assert_whole();
        assert_eq!(house.pulls(), 1);
        assert!(gets(&neighbour).is_empty(), "{has_it:?} {from}");
    }
}

fn pull_from(from: &str) -> String {
    format!(
        "POST /api/pull HTTP/1.1\r\nHost: localhost\r\nX-Ollana-From: {from}\r\n\
         Content-Length: {}\r\n\r\n{PULL}",
        PULL.len()
    )
}

#[test]
fn the_server_that_is_asked_for_gives_it() {
    let house = House::new(1_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let chain = house.chain(Way::TwoHops, &[neighbour.address]);
    lines(&chain.connect().ask(pull_from("127.0.0.1")).text());
    house.assert_whole();
    assert_eq!(gets(&neighbour).len(), 2);
}

/// A name that is misspelt, or this machine's own, or of a server that is away.
#[test]
fn nothing_is_pulled_where_the_server_that_is_asked_for_is_not_there() {
    let house = House::new(40_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let chain = house.chain(Way::TwoHops, &[neighbour.address]);
    let own = chain.servers[0].addresses()[0].to_string();
    for (from, status, want) in [
        ("desk", 404, "knows no server \"desk\" (known are: 127.0.0.1)"),
        (own.as_str(), 400, "is the machine itself that would get the model"),
    ] {
        let answer = chain.connect().ask(pull_from(from));
        assert_eq!(answer.status(), status, "{}", answer.text());
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(want), "{from}: {error}");
    }
    assert_eq!(house.pulls(), 0);
    assert!(gets(&neighbour).is_empty());
}

/// Behind each layer, Ollama is asked once more with all that the client said.
#[test]
fn a_pull_with_a_long_field_profits_too() {
    let house = House::new(1_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let chain = house.chain(Way::TwoHops, &[neighbour.address]);
    let long = format!("any\r\nX-Long: {}", "v".repeat(5000));
    lines(&chain.connect().ask(pull_from(&long)).text());
    house.assert_whole();
    assert_eq!((gets(&neighbour).len(), house.pulls()), (2, 3));
}

/// What Python's library does where it isn't told otherwise.
#[test]
fn a_pull_that_wants_one_object_profits_too() {
    for way in PLAIN {
        let house = House::new(1_000_000);
        let neighbour = neighbour(house.package.blobs.clone(), gives_all);
        let chain = house.chain(way, &[neighbour.address]);
        let body = r#"{"model":"alpha","stream":false}"#;
        let answer = chain.connect().post("/api/pull", body);
        let media = answer.head.one("content-type");
        assert_eq!((answer.status(), media.as_deref()), (200, Some("application/json")), "{way:?}");
        assert_eq!(answer.text(), r#"{"status":"success"}"#);
        assert_eq!(answer.head.length(), Some(answer.body.len()));
        house.assert_whole();
        assert_eq!(gets(&neighbour).len(), 2, "{way:?}");
        let none = r#"{"model":"none","stream":false}"#;
        let direct = Client::connect(house.ollama.address).post("/api/pull", none);
        let answer = chain.connect().post("/api/pull", none);
        assert_eq!((answer.status(), answer.text()), (direct.status(), direct.text()), "{way:?}");
        assert_eq!(answer.status(), 500);
    }
}

/// At any byte: before the first one, within the first piece, behind some.
#[test]
fn the_next_neighbour_goes_on_where_one_died() {
    let mut random = Random::new(7);
    for at in [0, 1, random.below(LARGE), random.below(LARGE), LARGE - 1] {
        let house = House::new(1_000_000);
        let dies = neighbour(house.package.blobs.clone(), move |call, bytes, from| {
            call.send(&bytes[from..at.clamp(from, bytes.len())]);
            call.reset();
        });
        let lives = neighbour(house.package.blobs.clone(), gives_all);
        let chain = house.chain(Way::TwoHops, &[dies.address, lives.address]);
        let lines = lines(&chain.connect().post("/api/pull", PULL).text());
        house.assert_whole();
        let told = told(&lines, house.large());
        assert!(
            told.iter().any(|(total, done, from)| total == done && !from.is_empty()),
            "{:?}",
            told.last()
        );
        assert_eq!(house.pulls(), 3, "{at}");
    }
}

#[test]
fn where_nobody_is_left_the_registry_goes_on() {
    for at in [1, 1 << 20, LARGE - 1] {
        let house = House::new(20_000_000);
        let dies = neighbour(house.package.blobs.clone(), move |call, bytes, from| {
            call.send(&bytes[from..at.clamp(from, bytes.len())]);
            call.reset();
        });
        let chain = house.chain(Way::TwoHops, &[dies.address]);
        lines(&chain.connect().post("/api/pull", PULL).text());
        house.assert_whole();
        let begun = house.store.unfinished();
        assert!(
            !begun.iter().any(|name| name.starts_with(&house.large().replace(':', "-"))),
            "{begun:?}"
        );
        let begun = gets(&dies).iter().filter(|range| range.is_empty()).count();
        assert!(begun <= 2, "each layer once: {:?}", gets(&dies));
    }
}

/// A rogue machine only wastes time, and only once, in the next pulls too.
#[test]
fn wrong_bytes_are_left_to_the_registry() {
    let house = House::new(20_000_000);
    let lies = neighbour(house.package.blobs.clone(), |call, bytes, at| {
        let mut wrong = bytes.to_vec();
        wrong[LARGE / 2] ^= 1;
        call.send(&wrong[at..]);
    });
    let chain = house.chain(Way::TwoHops, &[lies.address]);
    lines(&chain.connect().post("/api/pull", PULL).text());
    house.assert_whole();
    assert_eq!(gets(&lies), [""], "one layer");
    let posts = house.ollama.served().into_iter().filter(|it| it.path.starts_with("/api/blobs/"));
    assert_eq!(posts.count(), 1);
    let mut files: Vec<String> =
        house.package.digests().iter().map(|digest| digest.replace(':', "-")).collect();
    files.sort();
    assert_eq!(house.store.files(), files, "nothing else");
    chain.connect().post("/api/delete", PULL);
    house.registry.change(|shelf| shelf.rate = Some(20_000_000));
    lines(&chain.connect().post("/api/pull", PULL).text());
    assert_eq!(gets(&lies), [""], "it isn't asked again for a while");
}

/// An Ollama that has no room, or dies, while it is given a layer.
#[test]
fn an_ollama_that_does_not_take_it_gets_it_from_the_registry() {
    let house = House::new(20_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let full = |call: &mut Call<'_>| {
        call.read_part();
        let error = r#"{"error":"write: no space left on device"}"#;
        call.answer("500 Internal Server Error", "application/json", error);
        call.close();
    };
    house.ollama.change(|world| {
        world.script.insert(format!("/api/blobs/{}", house.package.blobs[0].0), Arc::new(full));
    });
    let chain = house.chain(Way::TwoHops, &[neighbour.address]);
    let lines = lines(&chain.connect().post("/api/pull", PULL).text());
    house.assert_whole();
    assert!(
        told(&lines, house.large())
            .iter()
            .any(|(total, done, from)| total == done || from.is_empty())
    );
    assert!(house.registry.given(house.large()) as usize >= LARGE);
}

/// What the registry has finished before the house has begun isn't what the house has saved.
#[test]
fn a_layer_that_is_there_by_then_is_not_counted_as_taken() {
    let house = House::new(1_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let (digest, bytes) = house.package.blobs[0].clone();
    let small = Package::of(&[&bytes]);
    house.registry.publish("alpha", &small);
    let (path, file) = (format!("/api/blobs/{digest}"), house.store.blob(&digest));
    let has_it = move |call: &mut Call<'_>| {
        std::fs::write(&file, &bytes).expect("a blob");
        call.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        call.close_half();
    };
    house.ollama.change(|world| drop(world.script.insert(path, Arc::new(has_it))));
    let chain = house.chain(Way::OneHop, &[neighbour.address]);
    lines(&chain.connect().post("/api/pull", PULL).text());
    assert_eq!(house.store.digests("alpha"), small.digests());
    assert_eq!(gets(&neighbour).len(), 1);
    let state = chain.connect().get("/ollana/status").json();
    assert_eq!(state["shared"]["saved"], 0, "{}", state["shared"]);
}

/// What crawls would take a day for what the registry gives in minutes.
#[test]
fn a_neighbour_that_is_too_slow_is_left() {
    let house = House::new(20_000_000);
    let crawls = neighbour(house.package.blobs.clone(), |call, bytes, at| {
        let mut pieces = bytes[at..].chunks(1000);
        while pieces.next().is_some_and(|piece| call.send(piece)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let chain = house.chain(Way::OneHop, &[crawls.address]);
    // The second layer would take as long.
    let small = Package::of(&[&house.package.blobs[0].1]);
    house.registry.publish("alpha", &small);
    let start = Instant::now();
    lines(&chain.connect().post("/api/pull", PULL).text());
    assert_eq!(house.store.digests("alpha"), small.digests());
    assert!(start.elapsed() < Duration::from_secs(18), "{:?}", start.elapsed());
    assert_eq!(gets(&crawls), [""], "it isn't asked again");
}

/// Whichever side waits for the other.
#[test]
fn a_client_that_leaves_ends_both_sides() {
    for way in PLAIN {
        let house = House::new(1_000_000);
        let neighbour = neighbour(house.package.blobs.clone(), |call, bytes, _| {
            call.send(&bytes[..3_000_000]);
            call.hang();
        });
        let chain = house.chain(way, &[neighbour.address]);
        let mut client = chain.connect();
        client.send(post("/api/pull", PULL));
        client.head_of("POST");
        let mut got = Vec::new();
        while !String::from_utf8_lossy(&got).contains("completed\":3000000") {
            got.extend(client.piece().expect("more lines"));
        }
        let left = client.leave();
        let mut longest = Duration::ZERO;
        for fake in [&neighbour, &*house.ollama] {
            let record = fake.look(|state| state.records.len() - 1);
            let (closed, _) = fake.closed(record);
            let time = closed.saturating_duration_since(left);
            assert!(time < Duration::from_secs(2), "{way:?}: closed after {time:?}");
            longest = longest.max(time);
        }
        println!("fault: client leaves a pull, {way:?} {} ms (limit 200 ms)", longest.as_millis());
        eventually("what was begun to be removed", || {
            let begun = house.store.unfinished();
            (!begun.iter().any(|name| !name.contains("-partial"))).then_some(())
        });
        // The same pull later goes on.
        house.registry.change(|shelf| shelf.rate = None);
        let chain = house.chain(way, &[]);
        lines(&chain.connect().post("/api/pull", PULL).text());
        house.assert_whole();
    }
}

/// A neighbour that has the layer only later is asked again while the registry sends it.
#[test]
fn a_layer_that_a_neighbour_gets_meanwhile_comes_from_there() {
    let house = House::new(1_500_000);
    let has_it = Gate::new();
    let (blobs, is_there) = (house.package.blobs.clone(), has_it.clone());
    let late = Fake::unlike_ollama(move |call| {
        let digest = call.target().strip_prefix("/ollana/blobs/").unwrap_or_default();
        let blob = blobs.iter().find(|(known, _)| known == digest);
        let Some((_, bytes)) = blob.filter(|_| is_there.wait_for(Duration::ZERO)) else {
            return call.answer("404 Not Found", "application/json", "{}");
        };
        call.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len()));
        if call.head.method() == "GET" {
            call.send(bytes);
        }
    });
    let chain = house.chain(Way::OneHop, &[late.address]);
    let mut client = chain.connect();
    client.send(post("/api/pull", PULL));
    client.head_of("POST");
    let mut got = client.read_until(b"}\n");
    while told_by(&got, house.large()).is_none_or(|done| done == 0) {
        got.extend(client.read_until(b"}\n"));
    }
    has_it.open();
    got.extend(client.rest().0);
    let text = String::from_utf8(got).expect("text");
    let told = told(&lines(&text), house.large());
    house.assert_whole();
    assert!(
        told.iter().any(|(_, _, from)| from.is_empty()),
        "first from the registry: {:?}",
        told.last()
    );
    assert!(
        told.iter().any(|(total, done, from)| total == done && !from.is_empty()),
        "{:?}",
        told.last()
    );
}

/// How far the last whole line says that a layer is.
fn told_by(got: &[u8], digest: &str) -> Option<u64> {
    let text = String::from_utf8_lossy(got);
    let last = text.lines().rfind(|line| line.contains(digest))?;
    serde_json::from_str::<Value>(last).ok()?["completed"].as_u64()
}

/// From the line that names the layer to its first byte from the house.
#[test]
fn the_first_byte_comes_soon() {
    let house = House::new(1_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let chain = house.chain(Way::OneHop, &[neighbour.address]);
    // On a busy machine one of them may be late; not all.
    let times: Vec<Duration> = (0..5)
        .map(|_| {
            let _ = std::fs::remove_file(house.store.blob(house.large()));
            let before = house.ollama.count();
            let mut client = chain.connect();
            client.send(post("/api/pull", PULL));
            client.head_of("POST");
            let mut got = Vec::new();
            while told_by(&got, house.large()).is_none()
                && !String::from_utf8_lossy(&got).contains(house.large())
            {
                got.extend(client.piece().expect("lines"));
            }
            let line = Instant::now();
            house.ollama.wait("the layer's first bytes", |state| {
                let mut new = state.records.iter().skip(before);
                new.find(|it| {
                    it.head.target().starts_with("/api/blobs/") && !it.raw_body.is_empty()
                        || it.is_whole && it.head.target().starts_with("/api/blobs/")
                })
                .map(drop)
            });
            let time = line.elapsed();
            client.rest();
            time
        })
        .collect();
    assert!(times.iter().any(|time| *time < Duration::from_millis(300)), "{times:?}");
}

/// Bodies that can't be read, and such as are packed, go through as they are.
#[test]
fn a_pull_that_cannot_be_read_is_ollamas_business() {
    let house = House::new(1_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let chain = house.chain(Way::OneHop, &[neighbour.address]);
    for body in ["", "{", "[]", r#"{"model":3,"stream":false}"#, r#"{"model":""} {}"#] {
        let direct = Client::connect(house.ollama.address).post("/api/pull", body);
        let answer = chain.connect().post("/api/pull", body);
        assert_eq!((answer.status(), answer.text()), (direct.status(), direct.text()), "{body}");
    }
    let coded = format!(
        "POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\n\
         Content-Length: {}\r\n\r\n{PULL}",
        PULL.len()
    );
    house.registry.change(|shelf| shelf.rate = None);
    chain.connect().ask(coded);
    assert!(gets(&neighbour).is_empty());
    let record = house.ollama.request(house.ollama.count() - 1);
    assert_eq!(record.head.one("content-encoding").as_deref(), Some("zstd"));
}

/// A machine that shares its Ollama and uses others': its own programs' pulls, too, by way of the
/// client's side.
#[test]
fn a_machine_that_does_both_asks_its_servers() {
    let house = House::new(1_000_000);
    let neighbour = neighbour(house.package.blobs.clone(), gives_all);
    let own = house.ollama.address;
    let mut settings = server_settings(own);
    settings.mode = ModeChoice::Both;
    settings.share = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    settings.servers = client_settings(&[neighbour.address]).servers;
    let daemon = start(&settings);
    let by_way_of = |server: SocketAddr, method: &str, target: &str, body: &str| {
        Client::connect(daemon.addresses()[0]).ask(format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nX-Ollana-Server: {server}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    for server in [own, neighbour.address] {
        eventually("both to be up", || {
            (by_way_of(server, "POST", "/api/show", "{}").status() < 500).then_some(())
        });
    }
    for body in [PULL, r#"{"model":"alpha","stream":false}"#] {
        let before = gets(&neighbour).len();
        let text = by_way_of(own, "POST", "/api/pull", body).text();
        lines(&text);
        house.assert_whole();
        assert_eq!(gets(&neighbour).len() - before, 2, "{body}");
        for (digest, _) in &house.package.blobs {
            std::fs::remove_file(house.store.blob(digest)).expect("a blob");
        }
    }
    assert!(daemon.stop(Duration::ZERO), "no stream was left");
}

/// What is left of the first layer's download where Ollama was killed: of so many bytes, the first are
/// written and the others a hole, and none is counted.
fn leave_uncounted(house: &House, written: usize, length: usize) {
    let begun = house.store.blob(house.large()).display().to_string() + "-partial";
    std::fs::write(&begun, vec![1; written]).expect("a file");
    let file = std::fs::File::options().write(true).open(&begun).expect("the file");
    file.set_len(length as u64).expect("its length");
    let part = json!({"N": 0, "Offset": 0, "Size": length, "Completed": 0});
    std::fs::write(begun + "-0", part.to_string()).expect("the state of its part");
}

/// Nothing is fetched for which there is no room: not by Ollama, and not from the house.
#[test]
fn a_full_disk_is_told_before_anything_is_sent() {
    if !is_root() {
        return println!("needs root, for a small disk");
    }
    // What Ollama counts nothing of after a restart, it writes over: its blocks are there already.
    let [nothing, holes, blocks] = [(0, 0), (0, LARGE), (LARGE - 100_000, LARGE)];
    let cases = [(5, nothing, false), (30, nothing, true), (10, holes, false), (10, blocks, true)];
    for (megabytes, (written, length), fits) in cases {
        // What is refused has brought little even on a slow machine.
        let house = House::new(if fits { 2_000_000 } else { 200_000 });
        if length > 0 {
            leave_uncounted(&house, written, length);
        }
        let neighbour = neighbour(house.package.blobs.clone(), gives_all);
        let small = Store::new();
        let dir = small.path().display().to_string();
        let begun = house.package.blobs.iter().flat_map(|(digest, _)| {
            let path = house.store.blob(digest).display().to_string();
            ["-partial", "-partial-0"].map(|end| path.clone() + end)
        });
        let begun = begun.collect::<Vec<_>>().join(" ");
        // What is free is this disk's; what is on it is the Ollama's. A disk may be for the blobs alone.
        let mount = format!(
            "mkdir -p {dir}/blobs && mount -t tmpfs -o size={megabytes}m none {dir}/blobs && \
             ln -s {begun} {dir}/blobs && OLLAMA_MODELS={dir} exec \"$0\" \"$@\""
        );
        let arguments = format!(
            "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --server {}",
            house.ollama.address, neighbour.address
        );
        let daemon = Process::within(&["unshare", "--mount", "sh", "-c", &mount], &arguments);
        let text = daemon.connect_ready().post("/api/pull", PULL).text();
        if fits {
            lines(&text);
            house.assert_whole();
            let has_room_besides = megabytes > 12;
            assert_eq!(gets(&neighbour).len(), if has_room_besides { 2 } else { 1 });
            continue;
        }
        let last: Value =
            serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON");
        let error = last["error"].as_str().expect("an error").to_owned();
        let free = if megabytes == 5 { "5.2 MB are free" } else { "10 MB are free" };
        assert!(error.contains("too full") && error.contains(free), "{error}");
        assert!(error.contains("12 MB are still to come"), "{error}");
        assert!(gets(&neighbour).is_empty());
        let before = house.registry.given(house.large());
        assert!(before < 600_000, "{before}");
        let one = daemon.connect_ready().post("/api/pull", r#"{"model":"alpha","stream":false}"#);
        assert_eq!((one.status(), one.json()["error"].as_str()), (500, Some(error.as_str())));
    }
}

/// A machine of a house whose machines are all real: its Ollama, its store, its daemon.
struct Machine {
    store: Store,
    _ollama: Ollama,
    daemon: Process,
    address: SocketAddr,
}

/// Machines that know each other, in front of a registry; `more` are options of each daemon.
fn machines<const N: usize>(registry: &Registry, more: &str) -> [Machine; N] {
    let addresses = [(); N].map(|()| free_tcp_port());
    addresses.map(|address| {
        let store = Store::new();
        let ollama = Ollama::with_store(&store, Some(registry.address));
        let others = addresses.iter().filter(|other| **other != address);
        let others: String = others.map(|other| format!("--server {other} ")).collect();
        let dir = store.path().display().to_string();
        let daemon = Process::with_env(
            &format!(
                "--mode server --listen {address} --discovery-port 0 --ollama {} {others} {more}",
                ollama.address
            ),
            &[("OLLAMA_MODELS", &dir)],
        );
        Machine { store, _ollama: ollama, daemon, address }
    })
}

fn large_model(registry: &Registry, rate: u64) -> Package {
    let package = model();
    registry.publish("alpha", &package);
    registry.change(|shelf| shelf.rate = Some(rate));
    package
}

/// Over a connection in clear and over an encrypted one, on each hop.
#[test]
fn a_server_of_ours_gives_what_it_has() {
    let secret = key_file();
    let encrypted = format!("--key-file {}", secret.display());
    for more in ["", encrypted.as_str()] {
        let registry = Registry::start();
        let package = large_model(&registry, 1_000_000);
        let [from, to] = machines(&registry, more);
        from.store.add("alpha", &package);
        from.daemon.connect_ready();
        let client = Process::start(&format!(
            "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {} {more}",
            to.address
        ));
        to.daemon.connect_ready();
        let text = client.connect_ready().post("/api/pull", PULL).text();
        let lines = lines(&text);
        assert_eq!(to.store.digests("alpha"), package.digests());
        for (digest, bytes) in &package.blobs {
            assert!(std::fs::read(to.store.blob(digest)).expect("a blob") == *bytes, "{more}");
        }
        let (large, size) = (&package.blobs[0].0, LARGE as u64);
        let is_from_there =
            |(_, done, from): &(u64, u64, String)| *done == size && !from.is_empty();
        assert!(
            told(&lines, large).iter().any(is_from_there),
            "{more}: {:?}",
            told(&lines, large).last()
        );
        assert!(registry.given(large) < size / 2, "{more}");
        assert!(!from.daemon.log().contains("panicked"));
    }
}

/// What one has finished, the others take in the middle of their own downloads, though no manifest
/// names it yet.
#[test]
fn machines_that_pull_at_the_same_time_help_each_other() {
    let registry = Registry::start();
    let package = large_model(&registry, 2_500_000);
    let all: [Machine; 3] = machines(&registry, "");
    for machine in &all {
        machine.daemon.connect_ready();
    }
    std::thread::scope(|scope| {
        for (at, machine) in all.iter().enumerate() {
            let package = &package;
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(2500) * at as u32);
                let text = Client::connect(machine.address).post("/api/pull", PULL).text();
                lines(&text);
                assert_eq!(machine.store.digests("alpha"), package.digests());
            });
        }
    });
    let given: u64 = package.blobs.iter().map(|(digest, _)| registry.given(digest)).sum();
    let size: u64 = package.blobs.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(given < 3 * size, "{given} of {size} three times");
    let helped = all.iter().filter(|machine| machine.daemon.log().contains("layer taken")).count();
    assert!(helped >= 2, "{helped} machines were helped");
}
