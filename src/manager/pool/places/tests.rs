//! Scenarios of strangers who want the checkers for themselves.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::config::ServerName;
use crate::manager::pool::tests::{World, address, healthy, ms, with_inventory};
use crate::manager::pool::{Input, Sighting, Verdict};
use crate::pairing::identity::Identity;
use crate::upstream::{CheckResult, CheckTime, Target};

/// A frozen server gets no more requests.
const NOTICED: Duration = ms(7000);
/// What it may wait for a place, if sixteen others fall silent in the same moment.
const WAITS: Duration = ms(1500);
/// One that is back does again.
const BACK: Duration = ms(3000);
/// Divides all other times.
const STEP: Duration = ms(100);
const PROBES: Duration = ms(5000);

/// What a server does with a check.
#[derive(Clone, Copy)]
enum Answer {
    After(u64),
    Never,
    Refusal,
}

/// What the servers do: by address, how many checks came there before, and the time since the start.
type Behaviour<'a> = &'a dyn Fn(SocketAddr, u32, Duration) -> Answer;

/// The pool with a network whose checks take their time.
struct Net<'a> {
    w: World,
    start: Instant,
    behaviour: Behaviour<'a>,
    running: Vec<(Instant, CheckId, CheckResult)>,
    asked: HashMap<SocketAddr, u32>,
}

fn sighting(address: SocketAddr) -> Input {
    let SocketAddr::V4(v4) = address else { panic!("IPv4") };
    let mut identity = [0; 16];
    identity[..4].copy_from_slice(&v4.ip().octets());
    identity[4..6].copy_from_slice(&v4.port().to_be_bytes());
    Input::Sighted(Sighting {
        address,
        identity: Identity(identity),
        instance: 1,
        name: String::new(),
        ollama_up: true,
        management_open: false,
    })
}

impl<'a> Net<'a> {
    fn new(behaviour: Behaviour<'a>) -> Self {
        let mut w = World::new();
        w.pool.rules.max_servers = 64;
        let start = w.now;
        Net { w, start, behaviour, running: Vec::new(), asked: HashMap::new() }
    }

    fn elapsed(&self) -> Duration {
        self.w.now - self.start
    }

    /// So much time passes, with these announcements every five seconds.
    fn live(&mut self, time: Duration, announced: &[SocketAddr]) {
        let end = self.w.now + time;
        while self.w.now < end {
            if self.elapsed().as_millis().is_multiple_of(PROBES.as_millis()) {
                announced.iter().for_each(|address| self.w.input(sighting(*address)));
            }
            self.step();
        }
    }

    fn step(&mut self) {
        self.ask();
        self.w.pass(STEP);
        self.ask();
        let now = self.w.now;
        for (_, id, result) in
            self.running.extract_if(.., |(end, ..)| *end <= now).collect::<Vec<_>>()
        {
            self.w.input(Input::Checked(id, result));
            self.ask();
        }
    }

    fn ask(&mut self) {
        for (id, target, _, time) in self.w.raw_checks() {
            let answer = time.answer;
            let at = match target {
                Target::Address(address) => address,
                Target::Name(name) => name.to_string().parse().expect("an address"),
            };
            let count = self.asked.entry(at).or_default();
            let (took, result) = match (self.behaviour)(at, *count, self.w.now - self.start) {
                Answer::After(time) if ms(time) <= answer => (ms(time), healthy(at, time)),
                Answer::Refusal => (ms(1), CheckResult::Refused("refused".to_owned())),
                _ => (answer, CheckResult::Silent("no answer in time".to_owned())),
            };
            *count += 1;
            self.running.push((self.w.now + took, id, result));
            assert!(self.running.len() <= MAX_CHECKS);
        }
    }

    /// How long it takes until the server is ready, or isn't.
    fn until(&mut self, at: SocketAddr, is_ready: bool, announced: &[SocketAddr]) -> Duration {
        let start = self.w.now;
        while self.is_ready(at) != is_ready {
            assert!(self.w.now - start < ms(60_000), "{at} isn't ready: {is_ready}");
            self.live(STEP, announced);
        }
        self.w.now - start
    }

    fn is_ready(&self, at: SocketAddr) -> bool {
        self.w.pool.backends.iter().any(|b| b.addresses.confirmed() == Some(at) && b.gets_work())
    }
}

fn named(at: SocketAddr) -> ServerName {
    ServerName { host: at.ip().to_string(), port: at.port() }
}

/// What a stranger does, after so many checks and at this time.
type Attack = fn(u32, Duration) -> Answer;

/// What sixteen addresses of a stranger do.
const ATTACKS: [(&str, Attack); 7] = [
    ("slow", |_, _| Answer::After(1400)),
    ("silent", |_, _| Answer::Never),
    ("just below what is slow", |_, _| Answer::After(240)),
    ("fast, then slow", |_, at| Answer::After(if at < ms(30_000) { 1 } else { 1400 })),
    ("fast, then silent", |_, at| match at < ms(30_000) {
        true => Answer::After(1),
        false => Answer::Never,
    }),
    ("every other one silent", |n, _| match n.is_multiple_of(2) {
        true => Answer::After(1),
        false => Answer::Never,
    }),
    ("down, then slow, and so on", |n, _| match n % 4 {
        0 => Answer::After(1),
        1 => Answer::Refusal,
        _ => Answer::After(1490),
    }),
];

#[test]
fn whatever_strangers_do_a_frozen_server_is_noticed_and_one_that_is_back_used() {
    let [found, other, given] = [1, 2, 3].map(address);
    let attackers: Vec<SocketAddr> = (100..116).map(address).collect();
    for (attack, answer) in ATTACKS {
        for (frozen, is_killed) in [(found, false), (given, false), (found, true), (given, true)] {
            let is_frozen = |at: Duration| (ms(33_000)..ms(45_000)).contains(&at);
            let behaviour = |at: SocketAddr, n: u32, now: Duration| match at {
                // It answers what it was asked meanwhile.
                _ if at == frozen && is_frozen(now) && is_killed => Answer::Refusal,
                _ if at == frozen && is_frozen(now) => {
                    Answer::After((ms(45_000) - now).as_millis() as u64)
                }
                _ if attackers.contains(&at) => answer(n, now),
                _ => Answer::After(2),
            };
            let mut net = Net::new(&behaviour);
            net.w.pool.add_named(net.start, named(given));
            // The server that the user named never announces itself.
            let announced: Vec<SocketAddr> =
                [found, other].into_iter().chain(attackers.iter().copied()).collect();
            net.live(ms(33_000), &announced);
            assert!([found, other, given].iter().all(|at| net.is_ready(*at)), "{attack}");
            let took = net.until(frozen, false, &announced);
            println!("{attack}: {frozen} noticed after {took:?}");
            assert!(took <= NOTICED + WAITS, "{attack}: {frozen} noticed after {took:?}");
            let well = [found, other, given].into_iter().filter(|at| *at != frozen);
            well.for_each(|at| assert!(net.is_ready(at), "{attack}: {at}"));
            net.live(ms(45_000) - net.elapsed(), &announced);
            let took = net.until(frozen, true, &announced);
            println!("{attack}: {frozen} back after {took:?}");
            // What isn't named may have to be heard again.
            let limit = if frozen == given { BACK } else { BACK + PROBES };
            assert!(took <= limit, "{attack}: {frozen} back after {took:?}");
        }
    }
}

#[test]
fn a_newcomer_is_found_within_two_probes_among_hundreds_that_are_forged() {
    for silent in [Answer::Never, Answer::Refusal] {
        let [known, newcomer] = [1, 2].map(address);
        let behaviour = |at: SocketAddr, _: u32, _: Duration| match at {
            _ if at == known || at == newcomer => Answer::After(2),
            _ => silent,
        };
        let mut net = Net::new(&behaviour);
        let mut port = 20_000;
        let mut forged = || -> Vec<SocketAddr> {
            let mut at = |n: u16| {
                port += 1;
                SocketAddr::new(address(100 + (n % 30) as u8).ip(), port)
            };
            (0..500).map(&mut at).collect()
        };
        net.live(ms(2000), &[known]);
        let mut found = None;
        for round in 0..6 {
            let mut all = forged();
            all.push(known);
            if round >= 3 {
                all.push(newcomer);
            }
            let start = net.w.now;
            all.iter().for_each(|at| net.w.input(sighting(*at)));
            while net.w.now - start < PROBES {
                net.step();
                assert!(net.is_ready(known));
                if found.is_none() && net.is_ready(newcomer) {
                    found = Some(net.elapsed());
                }
            }
        }
        let took = found.expect("found") - ms(17_000);
        println!("newcomer found after {took:?}");
        assert!(took <= PROBES * 2, "{took:?}");
    }
}

#[test]
fn a_place_is_free_when_its_check_is_and_a_result_is_of_its_own_check() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    let [(hanging, ..)] = w.raw_checks()[..] else { panic!("one check") };
    // Nobody waits for it any more, but it hangs still.
    w.pass(ms(6100));
    let [(second, ..)] = w.raw_checks()[..] else { panic!("another one") };
    assert_eq!(w.pool.places.taken.len(), 2);
    let refused = || CheckResult::Refused("refused".to_owned());
    w.input(Input::Checked(hanging, refused()));
    assert_eq!((w.pool.ready(), w.pool.places.taken.len()), (1, 1), "it is no news");
    assert!(w.raw_checks().is_empty(), "the second one is under way");
    w.input(Input::Checked(second, refused()));
    assert_eq!(w.pool.ready(), 0);
    w.input(Input::Checked(second, healthy(address(1), 1)));
    assert_eq!(w.pool.ready(), 0, "only once");
    // A server whose checks hang takes no more than its share.
    let mut all = 0;
    for _ in 0..20 {
        w.pass(ms(20_000));
        w.input(sighting(address(1)));
        all += w.raw_checks().len();
    }
    assert!(w.pool.backends.iter().any(|b| b.id == id));
    assert!(all <= MAX_STUCK + 1, "{all} hang");
}

#[test]
fn lists_that_are_slow_are_asked_for_apart() {
    let mut w = World::new();
    w.pool.rules.inventories = true;
    let at = address(1);
    w.input(sighting(at));
    let [(id, _, true, _)] = w.raw_checks()[..] else { panic!("a check with lists") };
    w.input(Input::Checked(id, healthy(at, 1)));
    assert_eq!(w.pool.ready(), 1, "it is well, whatever it has");
    let [(lists, _, true, CheckTime { lists: Some(_), .. })] = w.raw_checks()[..] else {
        panic!("its lists apart");
    };
    assert!(w.pool.has_stale_inventory(), "who wants to know waits for a moment");
    // Meanwhile it is checked as ever.
    for _ in 0..2 {
        w.pass(ms(1300));
        let [(id, _, false, CheckTime { lists: None, .. })] = w.raw_checks()[..] else {
            panic!("a check without lists");
        };
        w.input(Input::Checked(id, healthy(at, 1)));
    }
    // What becomes of them says nothing about its health.
    w.input(Input::Checked(lists, CheckResult::Silent("no answer in time".to_owned())));
    assert_eq!((w.pool.ready(), w.raw_checks().len()), (1, 0));
    w.pass(ms(4100));
    let lists = w.raw_checks().into_iter().find(|(_, _, wants, _)| *wants).expect("lists again");
    assert!(matches!(w.pool.backends[0].health.verdict, Verdict::Ready));
    let inventory = crate::ollama::inventory::Inventory::new(["{\"models\":[]}", "", ""], None);
    let told = with_inventory(healthy(at, 1), Some(std::sync::Arc::new(inventory)));
    w.input(Input::Checked(lists.0, told));
    assert!(!w.pool.lacks_inventory());
    assert!(!w.pool.backends[0].models.are_slow, "they came fast this time");
}

#[test]
fn so_many_of_each_kind_run_at_once() {
    use Burden::*;
    let plain = Kind {
        is_list: false,
        is_long: false,
        is_down: false,
        is_newcomer: false,
        burden: None,
        at: None,
    };
    let newcomer = Kind { is_newcomer: true, ..plain };
    let burden = |burden| Kind { burden: Some(burden), is_long: true, ..newcomer };
    let list = |of: Kind| Kind { is_list: true, ..of };
    let neighbour = Kind { at: Some([10, 0, 0, 1].into()), ..burden(Stranger) };
    for (kinds, most) in [
        (vec![plain], MAX_CHECKS),
        (vec![Kind { is_long: true, ..plain }], MAX_LONG),
        (vec![Kind { is_long: true, is_down: true, ..plain }], MAX_DOWN),
        (vec![newcomer], MAX_NEWCOMERS),
        (vec![burden(Stranger)], MAX_STRANGERS),
        (vec![burden(Slow)], MAX_SLOW),
        (vec![burden(Doubtful)], MAX_DOUBTFUL),
        (vec![burden(Fallen)], MAX_FALLEN),
        (vec![burden(Stranger), burden(Slow), burden(Doubtful), burden(Fallen)], MAX_BURDENS),
        (vec![neighbour], 1),
        (vec![list(plain)], MAX_LISTS),
        (vec![list(newcomer)], MAX_NEWCOMERS_LISTS),
    ] {
        let mut places = Places::default();
        let takes = |n: &usize| places.take(BackendId(*n as u32), kinds[n % kinds.len()]).is_some();
        assert_eq!((0..40).filter(takes).count(), most, "{kinds:?}");
    }
    let mut places = Places::default();
    let of_one: Vec<CheckId> = (0..9).filter_map(|_| places.take(BackendId(1), plain)).collect();
    assert_eq!(of_one.len(), MAX_STUCK + 1, "those that hang, and one more");
    places.free(of_one[0]);
    assert!(places.take(BackendId(1), plain).is_some());
}
