//! Requests that wait for a busy server: who comes first, who gives up, and that nothing of those
//! who left stays behind.

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use ollana::config::{ServerName, Settings};
use ollana::manager::pool::{
    Action, BackendId, CheckId, Input, Outcome, Pick, Pool, Rules, Wanted,
};
use ollana::manager::queue::{Answers, Asker, MAX_PER_CLIENT, MAX_QUEUE, Queue, Request};
use ollana::manager::{Handle, Job, Patience, Refused};
use ollana::ollama::aliases::Aliases;
use ollana::ollama::inventory::Inventory;
use ollana::ollama::model_name::ModelName;
use ollana::upstream::CheckResult;
use support::{Answer, Call, Chain, Client, Fake, Gate, Ollama, Way, World, eventually, request};

const SOON: Duration = Duration::from_secs(1);
/// Inference that lasts until the gate opens.
const HOLD: &str = "/api/generate";

const ASKED: &str = r#"{"model":"a","prompt":"hi","messages":[{"role":"user"}],"stream":false}"#;

/// An Ollama whose inference lasts until the gate opens.
fn ollama(gate: &Gate) -> Ollama {
    Ollama::start(World { hold: Some(gate.clone()), ..World::with(&["a"]) })
}

/// Whether an answer is one of inference on this path.
fn assert_answers(answer: &Answer, path: &str, way: Way) {
    let member = if path == HOLD { "response" } else { "message" };
    assert_eq!(answer.status(), 200, "{way:?}: {}", answer.text());
    assert!(answer.json()[member].is_string() == (path == HOLD), "{way:?}: {}", answer.text());
    assert!(answer.json().get(member).is_some(), "{way:?}: {}", answer.text());
}

fn one_at_a_time(settings: &mut Settings) {
    settings.limits.max_in_flight = 1;
}

/// A request that has the server to itself.
fn hold(client: &mut Client, fake: &Fake) {
    client.send(request("POST", HOLD, ASKED));
    fake.wait("a request to be held", |state| {
        state.records.iter().any(|record| record.head.target() == HOLD).then_some(())
    });
}

#[test]
fn who_waits_is_served_when_the_server_is_free() {
    for way in Way::ALL {
        let gate = Gate::new();
        let fake = ollama(&gate);
        let chain = way.with(&fake, one_at_a_time);
        let mut holder = chain.connect();
        hold(&mut holder, &fake);
        let mut waiting: Vec<Client> = (0..5).map(|_| chain.connect()).collect();
        for client in &mut waiting {
            client.send(request("POST", "/api/chat", ASKED));
        }
        gate.open();
        assert_answers(&holder.answer_to("POST"), HOLD, way);
        for client in &mut waiting {
            assert_answers(&client.answer_to("POST"), "/api/chat", way);
        }
        assert_eq!(fake.count(), 6, "{way:?}");
    }
}

#[test]
fn who_leaves_while_waiting_is_forgotten() {
    for way in Way::ALL {
        let gate = Gate::new();
        let fake = ollama(&gate);
        let chain = way.with(&fake, one_at_a_time);
        let mut holder = chain.connect();
        hold(&mut holder, &fake);
        let mut leaving: Vec<Client> = (0..20).map(|_| chain.connect()).collect();
        leaving.iter_mut().for_each(|client| client.send(request("POST", "/api/chat", ASKED)));
        eventually("all of them to wait", || (chain.front().connections() == 21).then_some(()));
        leaving.into_iter().for_each(|client| {
            client.leave();
        });
        let start = Instant::now();
        eventually("those who left to be let go", || {
            (chain.front().connections() == 1).then_some(())
        });
        println!("{way:?}: let go after {} ms", start.elapsed().as_millis());
        assert!(start.elapsed() < 4 * SOON, "{way:?}: let go only after {:?}", start.elapsed());
        let mut patient = chain.connect();
        patient.send(request("POST", "/api/chat", ASKED));
        gate.open();
        assert_answers(&holder.answer_to("POST"), HOLD, way);
        let freed = Instant::now();
        assert_answers(&patient.answer_to("POST"), "/api/chat", way);
        assert!(freed.elapsed() < 4 * SOON, "{way:?}: served only after {:?}", freed.elapsed());
        assert_eq!(fake.count(), 2, "{way:?}: somebody who had left was served");
    }
}

#[test]
fn who_waits_too_long_is_told() {
    for way in Way::ALL {
        let gate = Gate::new();
        let fake = ollama(&gate);
        let chain = way.with(&fake, |settings| {
            one_at_a_time(settings);
            settings.timing.queue_timeout = Duration::from_millis(300);
        });
        let mut holder = chain.connect();
        hold(&mut holder, &fake);
        let start = Instant::now();
        let answer = chain.connect().post("/v1/chat/completions", ASKED);
        assert_eq!(answer.status(), 503, "{way:?}: {answer:?}");
        assert!(answer.head.has("retry-after"), "{way:?}");
        assert!(answer.json()["error"]["message"].is_string(), "{way:?}: {}", answer.text());
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(300) && took < 5 * SOON, "{way:?}: after {took:?}");
        gate.open();
        assert_answers(&holder.answer_to("POST"), HOLD, way);
    }
}

/// A request whose body comes in part, and the rest of it.
fn slowly(chain: &Chain, path: &str, body: &str, framing: &str) -> (Client, String) {
    let rest = |body: &str| match framing {
        "chunked" => format!("{:x}\r\n{body}\r\n", body.len()),
        _ => body.to_owned(),
    };
    let framed = match framing {
        "chunked" => "Transfer-Encoding: chunked".to_owned(),
        _ => format!("Content-Length: {}", body.len()),
    };
    let (start, end) = body.split_at(body.len() / 2);
    let mut client = chain.connect();
    client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{framed}\r\n\r\n"));
    client.send(rest(start));
    let last = if framing == "chunked" { "0\r\n\r\n" } else { "" };
    (client, rest(end) + last)
}

#[test]
fn a_body_that_comes_slowly_takes_no_turn() {
    let image = "A".repeat(100_000);
    let first = format!(
        r#"{{"model":"a","stream":false,"messages":[{{"role":"user","content":"{image}"}}]}}"#
    );
    let last = format!(
        r#"{{"stream":false,"messages":[{{"role":"user","content":"{image}"}}],"model":"a"}}"#
    );
    let mut slowest = Duration::ZERO;
    for way in Way::ALL {
        for is_set in [true, false] {
            let gate = Gate::new();
            let world =
                World { parallel: 1, queue: 0, hold: Some(gate.clone()), ..World::with(&["a"]) };
            let fake = Ollama::start(world);
            let chain = way.with(&fake, |settings| {
                settings.limits.max_in_flight = u32::from(is_set);
                settings.timing.queue_timeout = 5 * SOON;
            });
            if !is_set {
                // Ollama's own refusal teaches the limit.
                let mut holder = chain.connect();
                hold(&mut holder, &fake);
                assert_eq!(chain.connect().post(HOLD, ASKED).status(), 503, "{way:?}");
                gate.open();
                assert_answers(&holder.answer_to("POST"), HOLD, way);
            }
            fake.change(|world| (world.hold, world.queue) = (None, 512));
            for (body, framing) in [(&first, "length"), (&last, "chunked")] {
                let mut slow: Vec<(Client, String)> =
                    (0..3).map(|_| slowly(&chain, "/api/chat", body, framing)).collect();
                eventually("what has come to be read", || {
                    slow.iter().any(|(client, _)| support::queues(client) == (0, 0)).then_some(())
                });
                for _ in 0..3 {
                    let start = Instant::now();
                    let answer = chain.connect().post(HOLD, ASKED);
                    assert_answers(&answer, HOLD, way);
                    slowest = slowest.max(start.elapsed());
                }
                for (client, rest) in &mut slow {
                    client.send(rest);
                    assert_answers(&client.answer_to("POST"), "/api/chat", way);
                }
            }
        }
    }
    println!("fault: a request beside slow bodies {} ms (limit 200 ms)", slowest.as_millis());
    assert!(slowest < 5 * SOON, "waited for {slowest:?}");
}

/// The last of several names counts, however late it comes.
#[test]
fn a_body_that_comes_slowly_goes_where_its_last_name_says() {
    let fakes = ["a", "b"].map(|model| Ollama::start(World::with(&[model])));
    let chain = Chain::start(Way::TwoHops, &[&fakes[0], &fakes[1]], one_at_a_time);
    eventually("the models to be known", || {
        let lists = chain.connect().get("/api/tags").text();
        (lists.contains("\"a:latest\"") && lists.contains("\"b:latest\"")).then_some(())
    });
    let text = "A".repeat(1000);
    let body = format!(r#"{{"model":"a","stream":false,"prompt":"{text}","model":"b"}}"#);
    let (mut slow, rest) = slowly(&chain, HOLD, &body, "length");
    // Longer than what is at hand is waited for.
    std::thread::sleep(SOON / 2);
    slow.send(rest);
    assert_answers(&slow.answer_to("POST"), HOLD, chain.way);
    assert_eq!(fakes.each_ref().map(|fake| fake.count()), [0, 1]);
}

/// Memory that a body which comes slowly takes up is missed by nobody whose model is known.
#[test]
fn a_body_has_its_turn_though_another_takes_up_the_memory() {
    let fakes = ["a", "b"].map(|model| Ollama::start(World::with(&[model])));
    let chain = Chain::start(Way::TwoHops, &[&fakes[0], &fakes[1]], |settings| {
        one_at_a_time(settings);
        settings.limits.replay_budget = 256 << 10;
        settings.timing.queue_timeout = 2 * SOON;
    });
    let body =
        |length| format!(r#"{{"model":"a","stream":false,"prompt":"{}"}}"#, "A".repeat(length));
    let _slow = slowly(&chain, HOLD, &body(190_000), "length");
    // Longer than what is at hand is waited for.
    std::thread::sleep(SOON / 2);
    assert_answers(&chain.connect().post(HOLD, body(125_000)), HOLD, chain.way);
}

/// What there is no memory for has its turn while it comes.
#[test]
fn a_body_that_is_too_large_to_be_kept_and_slow_loses_its_turn() {
    for way in Way::ALL {
        let fake = Ollama::start(World::with(&["a"]));
        let chain = way.with(&fake, |settings| {
            one_at_a_time(settings);
            settings.limits.replay_budget = 64 << 10;
            settings.timing.body_timeout = SOON;
        });
        let body = format!(r#"{{"model":"a","stream":false,"prompt":"{}"}}"#, "A".repeat(1 << 20));
        let (mut slow, rest) = slowly(&chain, HOLD, &body, "length");
        eventually("its turn", || (chain.servers[0].presence().in_flight() == 1).then_some(()));
        let start = Instant::now();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| chain.connect().post(HOLD, ASKED));
            // Never silent for as long as the time-out.
            let is_cut = rest.chars().take(50).any(|c| {
                slow.stream.set_read_timeout(Some(SOON / 10)).expect("a time-out");
                !slow.try_send(c.to_string()) || slow.stream.peek(&mut [0]).is_ok()
            });
            if !is_cut {
                slow.leave();
                panic!("{way:?}: not cut after {:?}", start.elapsed());
            }
            slow.stream.set_read_timeout(Some(support::PATIENCE)).expect("a time-out");
            assert_eq!(slow.answer_to("POST").status(), 408, "{way:?}");
            assert_answers(&other.join().expect("no panic"), HOLD, way);
        });
        // In time, it is served whatever its size.
        assert_answers(&chain.connect().post(HOLD, &body), HOLD, way);
    }
}

/// One request at a time on each server, whose checks don't end by themselves.
fn rules() -> Rules {
    Rules {
        health_interval: Duration::from_secs(3600),
        health_timeout: Duration::from_secs(3600),
        rise: 1,
        fall: 1,
        max_servers: 8,
        inventories: true,
        max_in_flight: 1,
        pins: Vec::new(),
        bans: Vec::new(),
        aliases: Aliases::default(),
        preferred: Vec::new(),
        wake: Vec::new(),
    }
}

fn name_of(host: u8) -> ServerName {
    ServerName { host: format!("10.0.0.{host}"), port: 1 }
}

/// What a check finds of a server that has these models.
fn healthy(host: u8, models: &[&str]) -> CheckResult {
    let models: Vec<String> =
        models.iter().map(|name| format!("{{\"name\":\"{name}\"}}")).collect();
    let tags = format!("{{\"models\":[{}]}}", models.join(","));
    CheckResult::Healthy {
        address: SocketAddr::from(([10, 0, 0, host], 1)),
        round_trip: Duration::ZERO,
        version: "0.5.4".to_owned(),
        name: None,
        identity: None,
        open: None,
        saved: 0,
        inventory: Some(Arc::new(Inventory::new([&tags, "", ""], None))),
    }
}

/// A Manager with one backend that is up and takes one request at a time. Its checks stay unasked.
fn manager() -> (Handle, Receiver<Job>) {
    let mut pool = Pool::new(rules(), 1);
    pool.add_named(Instant::now(), name_of(1));
    let (jobs, queue) = unbounded();
    let patience = Patience { expected: SOON, busy: support::PATIENCE, wake: None };
    let handle = Handle::start(pool, jobs, patience, None).expect("a manager");
    handle.mailbox().send(Input::Tick);
    let Ok(Job::Check(job)) = queue.recv_timeout(support::PATIENCE) else { panic!("no check") };
    handle.mailbox().send(Input::Checked(job.id, healthy(1, &[])));
    eventually("the backend to be up", || handle.presence().is_up().then_some(()));
    (handle, queue)
}

#[test]
fn a_server_that_comes_as_its_client_leaves_is_given_back() {
    let (handle, _jobs) = manager();
    let mailbox = handle.mailbox();
    let lease = || mailbox.lease(&[], &Wanted::default(), &|| true).expect("a lease");
    let first = Cell::new(Some(lease()));
    // Asked whether the request is still wanted, the client sees to it that its turn comes, and
    // leaves in the same moment.
    let leaves = || {
        first.take();
        // Answered behind what the dropped lease reported.
        mailbox.inventories();
        assert_eq!(handle.presence().in_flight(), 1, "it isn't the waiting request's turn");
        false
    };
    let refused = mailbox.lease(&[], &Wanted::default(), &leaves);
    drop(refused);
    eventually("the server to be free", || (handle.presence().in_flight() == 0).then_some(()));
    drop(lease());
}

/// Each of two requests has a server that refuses it and would like to have the other's.
#[test]
fn who_was_refused_by_one_server_does_not_hold_it_while_waiting_for_another() {
    let gate = Gate::new();
    let busy = |gate: &Gate| {
        let both = gate.clone();
        let full = World { parallel: 0, queue: 0, ..World::with(&["a"]) };
        let mut world = World::with(&["a"]);
        let refuse = move |call: &mut Call<'_>| {
            call.wait(&both, "both to have a server");
            call.as_ollama(&full);
        };
        world.script.insert("/api/chat".to_owned(), Arc::new(refuse));
        Ollama::start(world)
    };
    let fakes = [busy(&gate), busy(&gate)];
    let chain = Chain::direct(&[&fakes[0], &fakes[1]], one_at_a_time);
    eventually("both servers to be up", || {
        (chain.front().presence().backends() == 2).then_some(())
    });
    let mut clients = [chain.connect(), chain.connect()];
    for client in &mut clients {
        client.send(support::post("/api/chat", ASKED));
    }
    eventually("both requests to have a server", || {
        fakes.iter().all(|fake| fake.count() == 1).then_some(())
    });
    let start = Instant::now();
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer_to("POST").status(), 503);
    }
    assert!(start.elapsed() < 5 * SOON, "after {:?}", start.elapsed());
}

/// Who asks the pure queue: a number, and whether somebody still waits for the answer.
#[derive(Clone)]
struct Token(usize, Rc<Cell<bool>>);

impl Asker for Token {
    fn is_present(&self) -> bool {
        self.1.get()
    }
}

/// The pure queue in front of servers that have these models.
struct House {
    queue: Queue<Token>,
    ids: Vec<BackendId>,
    now: Instant,
    asked: usize,
    answers: Answers<Token>,
}

impl House {
    fn with(servers: &[&[&str]]) -> Self {
        House::waking(servers, &[])
    }

    /// Those that a request waits for are away for 10 s at most.
    fn waking(servers: &[&[&str]], sleepers: &[&str]) -> Self {
        let now = Instant::now();
        let wake = sleepers.iter().map(|sleeper| sleeper.parse().expect("a sleeper")).collect();
        let mut pool = Pool::new(Rules { wake, ..rules() }, 1);
        (1..).zip(servers).for_each(|(host, _)| pool.add_named(now, name_of(host)));
        let wake = (!sleepers.is_empty()).then_some(10 * SOON);
        let queue = Queue::new(pool, Patience { expected: SOON, busy: 60 * SOON, wake });
        let mut house = House { queue, ids: Vec::new(), now, asked: 0, answers: Vec::new() };
        let mut actions = Vec::new();
        house.queue.handle(now, Input::Tick, &mut actions, &mut house.answers);
        let checks = actions.into_iter().filter_map(|action| match action {
            Action::Check(id, ..) => Some(id),
            _ => None,
        });
        for ((id, host), models) in checks.zip(1..).zip(servers) {
            house.ids.push(id.backend);
            house.tell(Input::Checked(id, healthy(host, models)));
        }
        house
    }

    /// The checks that follow from the input.
    fn tell(&mut self, input: Input) -> Vec<CheckId> {
        let mut actions = Vec::new();
        self.queue.handle(self.now, input, &mut actions, &mut self.answers);
        let checks = actions.into_iter().filter_map(|action| match action {
            Action::Check(id, ..) => Some(id),
            _ => None,
        });
        checks.collect()
    }

    /// So much time later.
    fn pass(&mut self, time: Duration) -> Vec<CheckId> {
        self.now += time;
        self.tell(Input::Tick)
    }

    /// A request fails, and the check that follows is refused.
    fn goes_down(&mut self, server: BackendId) {
        let checks = self.tell(Input::Noted(server, Outcome::Failed.into()));
        self.tell(Input::Checked(checks[0], CheckResult::Refused("restarting".to_owned())));
    }

    fn ask(&mut self, client: u8, model: &str) -> usize {
        let wanted = Wanted {
            client: Some([127, 0, 0, client].into()),
            model: ModelName::parse(model),
            ..Wanted::default()
        };
        self.ask_for(wanted)
    }

    fn ask_for(&mut self, wanted: Wanted) -> usize {
        self.asked += 1;
        let token = Token(self.asked, Rc::new(Cell::new(true)));
        let request = Request { tried: Vec::new(), wanted };
        self.queue.ask(self.now, token, request, &mut self.answers);
        self.asked
    }

    /// What has been answered since the last call, by request.
    fn heard(&mut self) -> Vec<(usize, Result<Pick, Refused>)> {
        self.answers.drain(..).map(|(token, answer)| (token.0, answer)).collect()
    }

    /// The one answer since the last call, which must be a server.
    fn served(&mut self) -> (usize, Pick) {
        match &self.heard()[..] {
            [(asked, Ok(pick))] => (*asked, pick.clone()),
            other => panic!("not one server: {other:?}"),
        }
    }

    fn finish(&mut self, pick: &Pick) {
        self.tell(Input::Finished(pick.id, pick.report(Outcome::Answered)));
    }

    fn refused(&mut self) -> Vec<usize> {
        let is_full = |answer: &Result<Pick, Refused>| *answer == Err(Refused::QueueFull);
        self.heard().into_iter().filter(|(_, it)| is_full(it)).map(|(asked, _)| asked).collect()
    }
}

#[test]
fn who_waits_for_one_server_delays_nobody_at_another() {
    let mut house = House::with(&[&["a"], &["b"]]);
    house.ask(1, "a");
    let (_, on_a) = house.served();
    for _ in 0..MAX_PER_CLIENT {
        house.ask(1, "a");
    }
    assert_eq!(house.heard().len(), 0, "all of them wait");
    let last = house.ask(1, "a");
    assert_eq!(house.refused(), [last], "one too many");
    // Of the same client, and of another one.
    for client in [1, 2] {
        let asked = house.ask(client, "b");
        let (served, on_b) = house.served();
        assert_eq!((served, on_b.address.ip().to_string().as_str()), (asked, "10.0.0.2"));
        house.finish(&on_b);
    }
    // Another client may wait for the same server, and its turn comes at once.
    let other = house.ask(2, "a");
    assert_eq!(house.heard().len(), 0);
    house.finish(&on_a);
    let (first, on_a) = house.served();
    assert_eq!(first, 2, "of two that never had a turn, the one that came first");
    house.finish(&on_a);
    assert_eq!(house.served().0, other);
}

#[test]
fn nobody_overtakes_those_who_wait_for_the_same_servers() {
    let mut house = House::with(&[&["a", "both"], &["b", "both"]]);
    house.ask(1, "a");
    let (_, on_a) = house.served();
    let first = house.ask(1, "a");
    // One that either can do takes the one that is free.
    let either = house.ask(1, "both");
    let (served, on_b) = house.served();
    assert_eq!(served, either);
    let second = house.ask(1, "both");
    let third = house.ask(1, "both");
    assert_eq!(house.heard().len(), 0);
    house.finish(&on_b);
    let (served, on_b) = house.served();
    assert_eq!(served, second, "the first that waits for it");
    house.finish(&on_a);
    assert_eq!(house.served().0, first);
    house.finish(&on_b);
    assert_eq!(house.served().0, third);
}

#[test]
fn what_no_limit_holds_for_neither_waits_nor_counts() {
    let mut house = House::with(&[&["a"]]);
    let exempt = || Wanted { is_exempt: true, ..Wanted::default() };
    house.ask_for(exempt());
    let (_, list) = house.served();
    house.ask(1, "a");
    let (_, chat) = house.served();
    let waiting = house.ask(1, "a");
    house.ask_for(exempt());
    let (_, other) = house.served();
    house.finish(&other);
    house.finish(&list);
    assert!(house.heard().is_empty(), "they took nobody's turn, so their end is nobody's turn");
    house.finish(&chat);
    assert_eq!(house.served().0, waiting);
}

#[test]
fn no_client_fills_the_queue_for_the_others() {
    let models: Vec<String> = (0..9).map(|at| format!("m{at}")).collect();
    // Nine models, each on a set of servers of its own.
    let on = |server: usize| {
        let has = |at: &usize| (at + 1) >> server & 1 == 1;
        (0..9).filter(has).map(|at| models[at].as_str()).collect::<Vec<&str>>()
    };
    let servers: Vec<Vec<&str>> = (0..4).map(on).collect();
    let servers: Vec<&[&str]> = servers.iter().map(Vec::as_slice).collect();
    let mut house = House::with(&servers);
    for model in ["m0", "m1", "m3", "m7"] {
        house.ask(1, model);
    }
    assert_eq!(house.heard().len(), 4, "all four servers are busy now");
    let mut last = 0;
    for _ in 0..MAX_PER_CLIENT {
        for model in &models {
            if house.queue.waiting() < MAX_QUEUE {
                last = house.ask(1, model);
            }
        }
    }
    assert!(house.heard().is_empty() && house.queue.waiting() == MAX_QUEUE, "the queue is full");
    house.ask(2, "m0");
    assert_eq!(house.refused(), [last], "the greedy one gives way");
    let more = house.ask(1, "m0");
    assert_eq!(house.refused(), [more], "and gets no place back");
    assert_eq!(house.queue.waiting(), MAX_QUEUE);
}

#[test]
fn who_has_waited_for_a_busy_server_waits_as_others_do_while_it_restarts() {
    let mut house = House::with(&[&["a"]]);
    house.ask(1, "a");
    let (_, on_a) = house.served();
    let first = house.ask(1, "a");
    for _ in 0..3 {
        house.pass(5 * SOON);
        house.goes_down(on_a.id);
        house.ask(2, "a");
        assert!(house.heard().is_empty(), "both wait for the next check");
        let checks = house.pass(SOON * 9 / 10);
        house.tell(Input::Checked(checks[0], healthy(1, &["a"])));
        assert!(house.heard().is_empty(), "it is busy");
    }
    house.finish(&on_a);
    let (served, on_a) = house.served();
    assert_eq!(served, first);
    // One that doesn't come back is waited for no longer than that, by nobody.
    house.goes_down(on_a.id);
    assert!(house.heard().is_empty());
    house.pass(SOON);
    let refused = house.heard();
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|(_, answer)| matches!(answer, Err(Refused::NoServer(_)))));
}

#[test]
fn a_server_that_is_busy_or_restarts_by_turns_is_waited_for_no_longer_than_a_busy_one() {
    let mut house = House::with(&[&["a"]]);
    house.ask(1, "a");
    let (_, on_a) = house.served();
    house.ask(1, "a");
    let start = house.now;
    while house.heard().is_empty() {
        assert!(house.now - start <= 61 * SOON, "it still waits");
        house.goes_down(on_a.id);
        let checks = house.pass(SOON * 9 / 10);
        house.tell(Input::Checked(checks[0], healthy(1, &["a"])));
    }
    assert!(house.now - start >= 60 * SOON);
}

/// Servers 1 and 2 with their models, of which 2 is away, and what becomes of a request for `b`.
fn asked_while_away(models: [&[&str]; 2], sleepers: &[&str], wanted: Wanted) -> (House, bool) {
    let mut house = House::waking(&models, sleepers);
    house.goes_down(house.ids[1]);
    house.pass(3 * SOON);
    house.ask_for(Wanted { model: ModelName::parse("b"), ..wanted });
    let is_held = house.heard().is_empty();
    assert_eq!(house.queue.take_wake(), is_held, "{models:?} {sleepers:?}");
    (house, is_held)
}

#[test]
fn a_request_is_held_only_for_a_sleeper_that_may_do_it() {
    let wants =
        |server: Option<&str>| Wanted { server: server.map(str::to_owned), ..Wanted::default() };
    let (owner, other): ([&[&str]; 2], [&[&str]; 2]) = ([&["a"], &["b"]], [&["a"], &["c"]]);
    let mac = "02:00:00:00:00:01";
    for (models, sleepers, server, is_held) in [
        (owner, vec!["10.0.0.2"], None, true),
        (owner, vec!["10.0.0.2"], Some("10.0.0.2"), true),
        // The one that can be woken is up, or is known not to have it, or isn't asked for.
        (owner, vec!["10.0.0.1"], None, false),
        (owner, vec!["10.0.0.1", "10.0.0.2"], None, true),
        (owner, vec!["10.0.0.2"], Some("10.0.0.9"), false),
        // Of these, nothing is known.
        (owner, vec!["nas"], None, true),
        (owner, vec![mac], None, true),
    ] {
        let (_, was_held) = asked_while_away(models, &sleepers, wants(server));
        assert_eq!(was_held, is_held, "{sleepers:?} {server:?}");
    }
    // Both are away, and who can be woken has something else.
    let mut house = House::waking(&other, &["10.0.0.2"]);
    house.goes_down(house.ids[0]);
    house.goes_down(house.ids[1]);
    let checks = house.pass(3 * SOON);
    house.ask(1, "a");
    assert_eq!(house.heard().len(), 1);
    assert!(!house.queue.take_wake());
    house.ask(1, "c");
    assert!(house.heard().is_empty() && house.queue.take_wake());
    // It wakes up, and has it no more.
    let check = checks.into_iter().find(|check| check.backend == house.ids[1]).expect("a check");
    house.tell(Input::Checked(check, healthy(2, &["d"])));
    assert_eq!(house.heard().len(), 1, "there is nothing left to wait for");
}

#[test]
fn a_packet_is_told_of_only_if_it_was_sent() {
    for is_sent in [false, true] {
        let models: [&[&str]; 2] = [&["a"], &["b"]];
        let (mut house, _) = asked_while_away(models, &["10.0.0.2"], Wanted::default());
        if is_sent {
            house.tell(Input::Woken);
        }
        house.pass(10 * SOON);
        let heard = house.heard();
        let [(_, Err(Refused::NoServer(why)))] = &heard[..] else { panic!("{heard:?}") };
        assert_eq!(why.contains("Wake-on-LAN"), is_sent, "{why}");
    }
}
