//! Requests that wait for a busy server: who comes first, who gives up, and that nothing of those
//! who left stays behind.

mod support;

use std::cell::Cell;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use ollana::config::{Limits, ServerName, Settings};
use ollana::manager::pool::{Input, Pool, Rules, Wanted};
use ollana::manager::{Handle, Job, Patience};
use ollana::upstream::CheckResult;
use support::{Chain, Client, Fake, Gate, Way, eventually, request};

const SOON: Duration = Duration::from_secs(1);

/// A fake that answers `/hold` when the gate opens, and everything else at once.
fn fake(gate: &Gate) -> Fake {
    let held = gate.clone();
    Fake::start(move |call| {
        call.read_body();
        if call.target() == "/hold" {
            call.wait(&held, "the test to let it go");
        }
        let target = call.target().to_owned();
        call.answer("200 OK", "text/plain", target);
    })
}

fn one_at_a_time(settings: &mut Settings) {
    settings.limits.max_in_flight = 1;
}

/// A request that has the server to itself.
fn hold(client: &mut Client, fake: &Fake) {
    client.send(request("GET", "/hold", ""));
    fake.wait("a request to be held", |state| {
        state.records.iter().any(|record| record.head.target() == "/hold").then_some(())
    });
}

#[test]
fn who_waits_is_served_when_the_server_is_free() {
    for way in Way::ALL {
        let gate = Gate::new();
        let fake = fake(&gate);
        let chain = way.with(&fake, one_at_a_time);
        let mut holder = chain.connect();
        hold(&mut holder, &fake);
        let mut waiting: Vec<Client> = (0..5).map(|_| chain.connect()).collect();
        for (n, client) in waiting.iter_mut().enumerate() {
            client.send(request("POST", "/api/chat", format!("{n}")));
        }
        gate.open();
        assert_eq!(holder.answer_to("GET").text(), "/hold", "{way:?}");
        for client in &mut waiting {
            assert_eq!(client.answer_to("POST").text(), "/api/chat", "{way:?}");
        }
        assert_eq!(fake.count(), 6, "{way:?}");
    }
}

#[test]
fn who_leaves_while_waiting_is_forgotten() {
    for way in Way::ALL {
        let gate = Gate::new();
        let fake = fake(&gate);
        let chain = way.with(&fake, one_at_a_time);
        let mut holder = chain.connect();
        hold(&mut holder, &fake);
        let mut leaving: Vec<Client> = (0..20).map(|_| chain.connect()).collect();
        leaving.iter_mut().for_each(|client| client.send(request("POST", "/api/chat", "{}")));
        eventually("all of them to wait", || (chain.front().connections() == 21).then_some(()));
        leaving.into_iter().for_each(|client| {
            client.leave();
        });
        let start = Instant::now();
        eventually("those who left to be let go", || {
            (chain.front().connections() == 1).then_some(())
        });
        println!("{way:?}: let go after {} ms", start.elapsed().as_millis());
        assert!(start.elapsed() < SOON, "{way:?}: let go only after {:?}", start.elapsed());
        let mut patient = chain.connect();
        patient.send(request("GET", "/next", ""));
        gate.open();
        assert_eq!(holder.answer_to("GET").text(), "/hold", "{way:?}");
        let freed = Instant::now();
        assert_eq!(patient.answer_to("GET").text(), "/next", "{way:?}");
        assert!(freed.elapsed() < SOON, "{way:?}: served only after {:?}", freed.elapsed());
        assert_eq!(fake.count(), 2, "{way:?}: somebody who had left was served");
    }
}

#[test]
fn who_waits_too_long_is_told() {
    for way in Way::ALL {
        let gate = Gate::new();
        let fake = fake(&gate);
        let chain = way.with(&fake, |settings| {
            one_at_a_time(settings);
            settings.timing.queue_timeout = Duration::from_millis(300);
        });
        let mut holder = chain.connect();
        hold(&mut holder, &fake);
        let start = Instant::now();
        let answer = chain.connect().post("/v1/chat/completions", "{}");
        assert_eq!(answer.status(), 503, "{way:?}: {answer:?}");
        assert!(answer.head.has("retry-after"), "{way:?}");
        assert!(answer.json()["error"]["message"].is_string(), "{way:?}: {}", answer.text());
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(300) && took < 2 * SOON, "{way:?}: after {took:?}");
        gate.open();
        assert_eq!(holder.answer_to("GET").text(), "/hold", "{way:?}");
    }
}

/// A Manager with one backend that is up and takes one request at a time. Its checks stay unasked.
fn manager() -> (Handle, Receiver<Job>) {
    let limits = Limits { max_in_flight: 1, ..Settings::default().limits };
    let rules = Rules {
        health_interval: Duration::from_secs(3600),
        health_timeout: Duration::from_secs(3600),
        rise: 1,
        fall: 1,
        max_servers: 1,
        inventories: false,
        max_in_flight: limits.max_in_flight,
        pins: Vec::new(),
        bans: Vec::new(),
        preferred: Vec::new(),
    };
    let mut pool = Pool::new(rules, 1);
    pool.add_named(Instant::now(), ServerName { host: "127.0.0.1".to_owned(), port: 1 });
    let (jobs, queue) = unbounded();
    let patience = Patience { expected: SOON, busy: support::PATIENCE, wake: None };
    let handle = Handle::start(pool, jobs, patience).expect("a manager");
    handle.mailbox().send(Input::Tick);
    let Ok(Job::Check(job)) = queue.recv_timeout(support::PATIENCE) else { panic!("no check") };
    let result = CheckResult::Healthy {
        address: "127.0.0.1:1".parse().expect("an address"),
        round_trip: Duration::ZERO,
        version: "0.5.4".to_owned(),
        name: None,
        identity: None,
        open: None,
        inventory: None,
    };
    handle.mailbox().send(Input::Checked(job.id, result));
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
        Fake::start(move |call| {
            call.read_body();
            if call.target() != "/api/chat" {
                return call.answer("200 OK", "application/json", "{\"version\":\"0.13.1\"}");
            }
            call.wait(&both, "both to have a server");
            call.answer("503 Busy", "text/plain", "busy");
        })
    };
    let fakes = [busy(&gate), busy(&gate)];
    let chain = Chain::direct(&[&fakes[0], &fakes[1]], one_at_a_time);
    eventually("both servers to be up", || {
        (chain.front().presence().backends() == 2).then_some(())
    });
    let mut clients = [chain.connect(), chain.connect()];
    for client in &mut clients {
        client.send(support::post("/api/chat", "{}"));
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
