//! More large bodies at once than there is memory to look at: they wait for it, and none goes to a server
//! that hasn't its model.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ollana::config::Settings;

use crate::support::{
    Answer, Chain, Client, End, Gate, Ollama, Way, World, eventually, lan_address, post,
    server_settings, start,
};

/// Memory for seven bodies of [`LARGE`] bytes, as the last quarter is for others.
const BUDGET: usize = 4 << 20;
const LARGE: usize = 400_000;
const PATH: &str = "/v1/chat/completions";

fn tight(settings: &mut Settings) {
    settings.limits.replay_budget = BUDGET;
}

fn impatient(settings: &mut Settings) {
    tight(settings);
    settings.timing.queue_timeout = Duration::from_millis(300);
}

/// A request that names its model behind everything else.
fn asks(model: &str, size: usize) -> Vec<u8> {
    let said = "x".repeat(size);
    let body =
        format!(r#"{{"messages":[{{"role":"user","content":"{said}"}}],"model":"{model}"}}"#);
    post(PATH, body)
}

/// In front of these, once it is known which of them has which model.
fn fronts(ollamas: [&Ollama; 2], tweak: fn(&mut Settings)) -> [Chain; 2] {
    let chains = [Chain::direct(&ollamas, tweak), Chain::start(Way::TwoHops, &ollamas, tweak)];
    for chain in &chains {
        eventually("both servers' models to be known", || {
            let tags = chain.connect().get("/api/tags").text();
            (tags.contains("alpha") && tags.contains("beta")).then_some(())
        });
    }
    chains
}

/// A request of which all has come but its last bytes.
fn hog(mut client: Client) -> Client {
    client.send(&asks("beta", LARGE)[..LARGE]);
    client
}

/// Takes all memory, one by one, until a request like this finds none; its answer, and how long it
/// waited.
fn fill(connect: impl Fn() -> Client, request: &[u8]) -> (Vec<Client>, Answer, Duration) {
    let mut hogs = Vec::new();
    let (answer, waited) = eventually("all memory to be taken", || {
        hogs.push(hog(connect()));
        let begun = Instant::now();
        let answer = connect().ask(request);
        (answer.status() != 200).then(|| (answer, begun.elapsed()))
    });
    (hogs, answer, waited)
}

/// Whether it is the answer to a request that found no memory.
fn assert_no_memory(answer: &Answer) {
    let text = answer.text();
    assert_eq!((answer.status(), answer.end), (503, End::Whole), "{text}");
    assert!(text.contains("--replay-budget"), "{text}");
    assert_eq!(answer.head.one("retry-after").as_deref(), Some("1"));
    assert_eq!(answer.head.one("x-ollana-error").as_deref(), Some("busy"));
}

#[test]
fn many_large_bodies_at_once_reach_the_owner_of_their_model() {
    const COUNT: usize = 20;
    for way in 0..2 {
        let loading = Gate::new();
        let alpha = Ollama::with(&["alpha"]);
        let beta =
            Ollama::start(World { loading: Some(loading.clone()), ..World::with(&["beta"]) });
        let chain = &fronts([&alpha, &beta], tight)[way];
        let (halves, request) = (Barrier::new(COUNT), asks("beta", LARGE));
        thread::scope(|scope| {
            let ask = || {
                let mut client = chain.connect();
                let (begun, rest) = request.split_at(LARGE / 2);
                client.send(begun);
                halves.wait();
                client.send(rest);
                client.answer_to("POST")
            };
            let asking: Vec<_> = (0..COUNT).map(|_| scope.spawn(ask)).collect();
            // Those that were sent wait for Ollama, and keep no memory from the others meanwhile.
            beta.wait("all requests", |state| {
                let whole = state.records.iter().filter(|record| record.is_whole);
                (whole.count() == COUNT).then_some(())
            });
            loading.open();
            for answer in asking.into_iter().map(|asking| asking.join().expect("an answer")) {
                assert_eq!(answer.status(), 200, "way {way}: {}", answer.text());
            }
        });
        assert_eq!(alpha.count(), 0, "way {way}");
    }
}

#[test]
fn who_waits_for_memory_hears_of_it_in_the_end() {
    let ollamas = [Ollama::with(&["alpha"]), Ollama::with(&["beta"])];
    for chain in fronts([&ollamas[0], &ollamas[1]], impatient) {
        let request = asks("beta", LARGE);
        let (hogs, answer, waited) = fill(|| chain.connect(), &request);
        assert_no_memory(&answer);
        assert!(waited >= Duration::from_millis(300), "{waited:?}");
        // Small ones have memory of their own.
        assert_eq!(chain.connect().ask(asks("beta", 10_000)).status(), 200);
        drop(hogs);
        eventually("memory", || (chain.connect().ask(&request).status() == 200).then_some(()));
        assert_eq!(ollamas[0].count(), 0, "alpha was asked");
    }
}

#[test]
fn who_leaves_waits_for_no_memory() {
    let ollamas = [Ollama::with(&["alpha"]), Ollama::with(&["beta"])];
    for mut chain in fronts([&ollamas[0], &ollamas[1]], tight) {
        let hogs: Vec<_> = (0..BUDGET / LARGE).map(|_| hog(chain.connect())).collect();
        let connected = |count: usize| {
            let is_so = || (chain.front().connections() == count).then_some(());
            eventually(&format!("{count} connections"), is_so);
        };
        connected(hogs.len());
        let wait = || {
            let mut client = chain.connect();
            // As much as the kernels take, or they would keep the end behind it.
            client.send(&asks("beta", LARGE)[..LARGE / 4]);
            connected(hogs.len() + 1);
            client
        };
        wait().leave();
        connected(hogs.len());
        // Nor is it waited for when ollana is stopped.
        let waiting = wait();
        let begun = Instant::now();
        chain.client.take().expect("a client").stop(Duration::from_millis(100));
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
        assert_eq!([ollamas[0].count(), ollamas[1].count()], [0, 0]);
        drop((waiting, hogs));
    }
}

/// With `--cloud off` a body that can't be looked at is refused, but not because of others' bodies.
#[test]
fn a_local_model_is_not_refused_for_want_of_memory() {
    let Some(lan) = lan_address() else { return };
    let ollama = Ollama::with(&["alpha"]);
    let mut settings = server_settings(ollama.address);
    impatient(&mut settings);
    settings.policy.cloud = false;
    let server = start(&settings);
    let connect = || Client::connect_from(lan, server.addresses()[0]).expect("a connection");
    let (hogs, answer, _) = fill(connect, &asks("alpha", LARGE));
    assert_no_memory(&answer);
    assert_eq!(connect().ask(asks("alpha", 10_000)).status(), 200, "a small one");
    drop(hogs);
    eventually("memory", || (connect().ask(asks("alpha", LARGE)).status() == 200).then_some(()));
}
