//! No answer goes to another request than its own, whatever both sides do to their connections:
//! pipelining, kept connections that die, early and broken answers, refusals, interim answers, clients
//! that leave.
//!
//! Each request has a number, by which both sides know its target, its body and its answer. The answer
//! has the number, the target and the hash of the body as they arrived, and bytes that no other answer
//! has; every byte is compared.

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use support::{Answer, Call, Chain, Client, End, Fake, INFERENCE, Random, Sum, Way, chunk};

const THREADS: u64 = 6;
/// Of each thread, one after the other; MIXUP=5000 sets another number.
const CONNECTIONS: u64 = 50;
const MOST_REQUESTS: usize = 8;

/// What the fake does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Length,
    Chunks,
    /// Answers before it has read the body.
    Early,
    /// Refuses, as a busy server does.
    Busy,
    /// Says something before its answer.
    Interim,
    /// Answers, and closes a connection that is to be kept.
    Closes,
    /// Breaks its answer off, by a reset or an orderly close.
    Breaks(bool),
}

#[derive(Clone, Debug)]
struct Case {
    number: u64,
    target: String,
    body: String,
    deed: Deed,
}

impl Case {
    fn of(number: u64) -> Case {
        let mut random = Random::new(number);
        let deed = match random.below(20) {
            0..=5 => Deed::Length,
            6..=10 => Deed::Chunks,
            11 | 12 => Deed::Early,
            13 => Deed::Busy,
            14 | 15 => Deed::Interim,
            16 | 17 => Deed::Closes,
            _ => Deed::Breaks(random.is_one_in(2)),
        };
        let path = random.pick(&INFERENCE);
        let length = if random.is_one_in(12) { 90_000 } else { random.below(900) };
        let body = format!(r#"{{"model":"m","number":{number},"pad":"{}"}}"#, "x".repeat(length));
        Case { number, target: format!("{path}?number={number}"), body, deed }
    }

    /// The answer to it, if this is what has arrived of its body.
    fn answer(&self, target: &str, sum: Option<(u64, u64)>) -> Vec<u8> {
        let mut random = Random::new(self.number ^ 0xA115);
        let length = if random.is_one_in(12) { 120_000 } else { random.below(3000) };
        let told = format!("{} {target} {sum:?}\n", self.number);
        [told.as_bytes(), &random.bytes(length)].concat()
    }

    fn expected(&self) -> Vec<u8> {
        let sum = (self.deed != Deed::Early).then(|| Sum::of(self.body.as_bytes()));
        self.answer(&self.target, sum)
    }

    fn request(&self) -> String {
        let Case { number, target, body, .. } = self;
        let length = body.len();
        format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nNumber: {number}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    }
}

fn act(call: &mut Call<'_>, swap: &dyn Fn(u64) -> u64) {
    let number = call.head.one("number").and_then(|it| it.parse().ok()).expect("a number");
    let case = Case::of(number);
    let sum = (case.deed != Deed::Early).then(|| call.drain_body());
    let told = Case::of(swap(number));
    let text = told.answer(call.head.target(), sum);
    let field = format!("Number: {}\r\n", told.number);
    let head = |status: &str| {
        let length = text.len();
        format!("HTTP/1.1 {status}\r\n{field}Content-Length: {length}\r\n\r\n").into_bytes()
    };
    match case.deed {
        Deed::Busy => drop(call.send([head("503 Service Unavailable"), text].concat())),
        Deed::Interim => {
            call.send("HTTP/1.1 103 Early Hints\r\nNumber: 1\r\n\r\n");
            call.send([head("200 OK"), text].concat());
        }
        Deed::Length | Deed::Early => drop(call.send([head("200 OK"), text].concat())),
        Deed::Closes => {
            call.send([head("200 OK"), text].concat());
            call.close();
        }
        Deed::Chunks | Deed::Breaks(_) => {
            call.send(format!("HTTP/1.1 200 OK\r\n{field}Transfer-Encoding: chunked\r\n\r\n"));
            let half = text.len() / 2;
            let whole = case.deed == Deed::Chunks;
            let pieces = if whole { &text[..] } else { &text[..half] }.chunks(1100);
            for piece in pieces {
                call.send(chunk(piece));
            }
            match case.deed {
                Deed::Breaks(true) => call.reset(),
                Deed::Breaks(false) => call.close(),
                _ => drop(call.send("0\r\n\r\n")),
            }
        }
    }
}

/// Compares an answer with what it has to be; whether it came from the fake.
fn check(case: &Case, answer: &Answer) -> Result<bool, String> {
    let Answer { head, body, end } = answer;
    let wrong = |what: &str| {
        let Case { number, target, deed, .. } = case;
        let told: String = answer.text().chars().take(200).collect();
        Err(format!("{what}, {end:?}: {number} {target} {deed:?}: {:?} {told}", head.start))
    };
    let Some(number) = head.one("number") else {
        let is_own = head.has("x-ollana-error") && matches!(head.status(), 502 | 503);
        let is_due = matches!(case.deed, Deed::Breaks(_) | Deed::Busy | Deed::Closes);
        return if is_own && is_due { Ok(false) } else { wrong("an answer of nobody") };
    };
    if number != case.number.to_string() {
        return wrong("the answer to another request");
    }
    let expected = case.expected();
    let is_right = match (case.deed, end) {
        (Deed::Breaks(_), End::Whole) => return wrong("broken, and looks whole"),
        (Deed::Breaks(_), _) => expected.starts_with(body),
        (_, End::Whole) => expected == *body,
        _ => return wrong("cut"),
    };
    let status = if case.deed == Deed::Busy { 503 } else { 200 };
    match (is_right, head.status() == status) {
        (false, _) => wrong("other bytes"),
        (_, false) => wrong("another status"),
        _ => Ok(true),
    }
}

/// Requests on one connection, some of which are sent before the answers to others have come.
fn converse(mut client: Client, first: u64, seen: &[AtomicU64; 2]) -> Result<(), String> {
    let mut random = Random::new(first ^ 0xC0DE);
    let count = 1 + random.below(MOST_REQUESTS);
    let mut cases = (first..first + count as u64).map(Case::of).collect::<Vec<_>>().into_iter();
    loop {
        let batch: Vec<Case> = cases.by_ref().take(1 + random.below(3)).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let sent: String = batch.iter().map(Case::request).collect();
        if !client.try_send(&sent) {
            return Ok(()); // Behind an answer that ends the connection.
        }
        for case in &batch {
            if random.is_one_in(15) {
                if random.is_one_in(2) {
                    client.reset()
                } else {
                    client.leave()
                };
                return Ok(());
            }
            let answer = client.try_answer_to("POST");
            let answer = answer
                .map_err(|end| format!("no answer, {end:?}: {} {:?}", case.number, case.deed))?;
            let is_theirs = check(case, &answer)?;
            seen[usize::from(is_theirs)].fetch_add(1, Relaxed);
            if answer.end != End::Whole || answer.head.has("connection") {
                return Ok(());
            }
        }
    }
}

/// All connections of all threads; how many answers were ours, and theirs.
fn run(chain: &Chain) -> Result<[u64; 2], String> {
    let (address, seen) = (chain.address(), [AtomicU64::new(0), AtomicU64::new(0)]);
    let connections = support::number("MIXUP").unwrap_or(CONNECTIONS);
    let one = |thread: u64| {
        (0..connections).try_for_each(|n| {
            let first = (thread * connections + n) * MOST_REQUESTS as u64 + 1;
            converse(Client::connect(address), first, &seen)
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok(seen.map(AtomicU64::into_inner))
}

fn fake() -> Fake {
    Fake::unlike_ollama(|call| act(call, &|number| number))
}

fn all_are_right(chain: &Chain, name: &str) {
    let [ours, theirs] = run(chain).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
    println!("{name}: {theirs} answers, {ours} errors of the proxy");
    assert!(theirs > 600 && ours < theirs / 5, "{name}: {theirs} answers, {ours} errors");
}

#[test]
fn every_answer_is_its_requests() {
    for way in Way::ALL {
        all_are_right(&way.to(&fake()), &format!("{way:?}"));
    }
}

#[test]
fn every_answer_is_its_requests_with_two_servers() {
    let fakes = [fake(), fake()];
    let both = [&fakes[0], &fakes[1]];
    all_are_right(&Chain::direct(&both, |_| {}), "two Ollamas");
    for way in [Way::TwoHops, Way::Paired] {
        all_are_right(&Chain::start(way, &both, |_| {}), &format!("two servers, {way:?}"));
    }
}

/// The judge itself: an answer in the place of another one, and one byte, are seen.
#[test]
fn a_planted_swap_is_seen() {
    let last = Mutex::new(1);
    let swap = move |number| {
        let before = std::mem::replace(&mut *support::lock(&last), number);
        if number % 97 == 0 { before } else { number }
    };
    let swapping = Fake::unlike_ollama(move |call| act(call, &swap));
    let wrong = run(&Way::TwoHops.to(&swapping)).expect_err("swapped answers");
    assert!(wrong.starts_with("the answer to another request"), "{wrong}");
    let case = (1..).map(Case::of).find(|case| case.deed == Deed::Length).expect("a case");
    let mut answer = Answer { head: Default::default(), body: case.expected(), end: End::Whole };
    answer.head.fields.push(("number".to_owned(), case.number.to_string().into_bytes()));
    answer.head.start[1] = "200".to_owned();
    assert_eq!(check(&case, &answer), Ok(true));
    *answer.body.last_mut().expect("bytes") ^= 1;
    assert!(check(&case, &answer).is_err_and(|wrong| wrong.starts_with("other bytes")));
}
