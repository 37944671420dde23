//! Everything at once: clients and Ollamas that misbehave at random. What comes back is whole and
//! right, or an explicit failure; and when it is over, nothing is left behind.

mod support;

use std::thread;

use support::{Call, Chain, Client, End, Fake, INFERENCE, Random, Way, chunk};

const THREADS: u64 = 8;
const ROUNDS: u64 = 300;

/// What the fake does with a request; both sides know it from the request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Answer,
    Stream,
    /// Closes or resets before its answer, or in the midst of a stream.
    DieBefore(bool),
    DieWithin(bool),
    /// Answers without reading the body.
    AnswerEarly,
    Nonsense,
    /// Waits until the client leaves.
    Hang,
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Patient,
    Pipelining,
    LeavesWaiting(bool),
    LeavesUploading(bool),
    LeavesReading(bool),
    Malformed,
}

fn plan(case: u64) -> (Deed, Manner) {
    let mut random = Random::new(case);
    let hard = random.is_one_in(2);
    let manner = match random.below(12) {
        0 => Manner::LeavesWaiting(hard),
        1 => Manner::LeavesUploading(hard),
        2 => Manner::LeavesReading(hard),
        3 => Manner::Pipelining,
        4 => Manner::Malformed,
        _ => Manner::Patient,
    };
    let deed = match random.below(12) {
        0 => Deed::DieBefore(hard),
        1 => Deed::DieWithin(hard),
        2 => Deed::AnswerEarly,
        3 => Deed::Nonsense,
        4..=7 => Deed::Stream,
        _ => Deed::Answer,
    };
    // Who waits for ever must be left.
    let hangs = matches!(manner, Manner::LeavesWaiting(_)) && random.is_one_in(2);
    (if hangs { Deed::Hang } else { deed }, manner)
}

fn body(case: u64) -> Vec<u8> {
    let mut random = Random::new(case ^ 0xB0D7);
    let size = if random.is_one_in(10) { 100_000 } else { 1 + random.below(2000) };
    random.bytes(size)
}

/// The body of the answer.
fn text(case: u64) -> Vec<u8> {
    let mut random = Random::new(case ^ 0x7E87);
    let size = random.below(5000);
    random.bytes(size)
}

fn act(call: &mut Call<'_>) {
    let case = call.head.one("case").and_then(|case| case.parse().ok()).expect("a case's number");
    let (deed, _) = plan(case);
    let text = text(case);
    if deed == Deed::AnswerEarly {
        return call.answer("200 OK", "application/octet-stream", text);
    }
    call.read_body();
    let die = |call: &mut Call<'_>, hard| if hard { call.reset() } else { call.close() };
    match deed {
        Deed::Answer | Deed::AnswerEarly => call.answer("200 OK", "application/octet-stream", text),
        Deed::DieBefore(hard) => die(call, hard),
        Deed::Nonsense => {
            call.send("I am no HTTP\r\n\r\n");
            call.close();
        }
        Deed::Hang => call.hang(),
        Deed::Stream | Deed::DieWithin(_) => {
            call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let pieces = text.len().div_ceil(700);
            for (n, piece) in text.chunks(700).enumerate() {
                if let (Deed::DieWithin(hard), true) = (deed, n >= pieces / 2) {
                    return die(call, hard);
                }
                call.send(chunk(piece));
            }
            if let Deed::DieWithin(hard) = deed {
                return die(call, hard);
            }
            call.send("0\r\n\r\n");
        }
    }
}

fn leave(client: Client, hard: bool) {
    if hard {
        client.reset()
    } else {
        client.leave()
    };
}

/// One case from the client's side, on a connection of its own.
fn go(client: Client, case: u64) {
    let mut client = client;
    let (deed, manner) = plan(case);
    let target = INFERENCE[case as usize % INFERENCE.len()];
    let method = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nCase: {case}");
    let body = body(case);
    let whole = format!("{method}\r\nContent-Length: {}\r\n\r\n", body.len());
    match manner {
        Manner::Malformed => {
            client.send(format!("{method}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"));
            assert_eq!(client.answer_to("POST").status(), 400, "case {case}");
        }
        Manner::LeavesUploading(hard) => {
            client.send(&whole);
            client.try_send(&body[..body.len() / 2]);
            leave(client, hard);
        }
        Manner::LeavesWaiting(hard) => {
            client.try_send([whole.as_bytes(), &body].concat());
            leave(client, hard);
        }
        Manner::LeavesReading(hard) => {
            client.try_send([whole.as_bytes(), &body].concat());
            if client.try_head().is_ok() {
                leave(client, hard);
            }
        }
        Manner::Patient => {
            client.try_send([whole.as_bytes(), &body].concat());
            check(&mut client, case, deed);
        }
        Manner::Pipelining => {
            let one = [whole.as_bytes(), &body].concat();
            client.try_send([&*one, &*one].concat());
            if check(&mut client, case, deed) {
                check(&mut client, case, deed);
            }
        }
    }
}

/// Whether another answer may follow.
fn check(client: &mut Client, case: u64, deed: Deed) -> bool {
    let answer = client.answer_to("POST");
    let is_whole = answer.end == End::Whole;
    match answer.status() {
        200 if is_whole => {
            assert_eq!(answer.body, text(case), "case {case} {deed:?}: whole, but wrong");
            let dies = matches!(deed, Deed::DieBefore(_) | Deed::DieWithin(_) | Deed::Nonsense);
            assert!(!dies, "case {case} {deed:?}: an answer that broke off looks whole");
        }
        200 => assert!(matches!(deed, Deed::DieWithin(_)), "case {case} {deed:?}: cut"),
        502 => {
            assert!(
                is_whole && answer.json()["error"].is_object() | answer.json()["error"].is_string()
            );
            let fails = matches!(deed, Deed::DieBefore(_) | Deed::Nonsense);
            assert!(fails, "case {case} {deed:?}: {}", answer.text());
        }
        other => panic!("case {case} {deed:?}: {other} {}", answer.text()),
    }
    is_whole && !answer.head.has("connection")
}

/// All cases, from several threads at once; then nothing is left, and the next one is served.
fn run(chain: &Chain, name: &str) {
    let address = chain.address();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let name = name.to_owned();
            thread::spawn(move || {
                for case in thread * ROUNDS..(thread + 1) * ROUNDS {
                    let went = std::panic::catch_unwind(|| go(Client::connect(address), case));
                    assert!(went.is_ok(), "{name}, case {case}: {:?}", plan(case));
                }
            })
        })
        .collect();
    let ends: Vec<_> = threads.into_iter().map(thread::JoinHandle::join).collect();
    assert!(ends.iter().all(Result::is_ok), "{name}: a client saw something wrong");
    support::eventually("every connection to end", || {
        (chain.front().connections() == 0).then_some(())
    });
    let case = (0..).find(|case| plan(*case).0 == Deed::Answer).expect("a case");
    let head = format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nCase: {case}\r\n\r\n");
    assert_eq!(chain.connect().ask(head).body, text(case), "{name}");
}

#[test]
fn whatever_both_sides_do() {
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(act);
        run(&way.to(&fake), &format!("{way:?}"));
    }
}

#[test]
fn whatever_two_servers_do() {
    let fakes = [Fake::unlike_ollama(act), Fake::unlike_ollama(act)];
    run(&Chain::direct(&[&fakes[0], &fakes[1]], |_| {}), "two Ollamas");
    run(&Chain::start(Way::TwoHops, &[&fakes[0], &fakes[1]], |_| {}), "two servers");
    // Both had their part.
    for fake in &fakes {
        assert!(fake.count() > ROUNDS as usize, "{} of all requests", fake.count());
    }
}
