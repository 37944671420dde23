//! Scenarios over the pure pool: time is `t0 + ms(n)`, nothing sleeps.

use std::collections::HashMap;
use std::time::Duration;

use super::addresses::MAX_ADDRESSES;
use super::health::FIRST_RETRY;
use super::load::{COOL_DOWN, FIRST_EJECTION, STRIKES};
use super::places::MAX_STRANGERS;
use super::*;
use crate::ollama::aliases::Aliases;
use crate::pairing::identity::Identity;
use crate::upstream::{CheckResult, CheckTime, Target};

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn rules() -> Rules {
    Rules {
        health_interval: ms(1000),
        health_timeout: ms(1500),
        rise: 1,
        fall: 2,
        max_servers: 4,
        inventories: false,
        max_in_flight: 0,
        pins: Vec::new(),
        bans: Vec::new(),
        aliases: Aliases::default(),
        preferred: Vec::new(),
        wake: Vec::new(),
    }
}

/// A pool with a clock of its own and the actions it asked for.
pub(super) struct World {
    pub(super) pool: Pool,
    pub(super) now: Instant,
    actions: Vec<Action>,
    /// The last check of each server, and the time that it had.
    asked: HashMap<BackendId, (CheckId, CheckTime)>,
}

pub(super) fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 11435))
}

pub(super) fn sighting(host: u8, id: u8, instance: u32) -> Input {
    Input::Sighted(Sighting {
        address: address(host),
        identity: Identity([id; 16]),
        instance,
        name: format!("host{id}"),
        ollama_up: true,
        management_open: false,
    })
}

pub(super) fn healthy(address: SocketAddr, rtt: u64) -> CheckResult {
    CheckResult::Healthy {
        address,
        round_trip: ms(rtt),
        version: "0.5.4".to_owned(),
        name: None,
        identity: None,
        open: None,
        saved: 0,
        inventory: None,
    }
}

/// The same check, which tells these models.
pub(super) fn with_inventory(mut result: CheckResult, told: Option<Arc<Inventory>>) -> CheckResult {
    if let CheckResult::Healthy { inventory, .. } = &mut result {
        *inventory = told;
    }
    result
}

impl World {
    pub(super) fn new() -> Self {
        World {
            pool: Pool::new(rules(), 7),
            now: Instant::now(),
            actions: Vec::new(),
            asked: HashMap::new(),
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        self.pool.handle(self.now, input, &mut self.actions);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
    }

    /// The checks asked for since the last call.
    pub(super) fn checks(&mut self) -> Vec<(BackendId, Target)> {
        let (checks, rest) = std::mem::take(&mut self.actions)
            .into_iter()
            .partition(|action| matches!(action, Action::Check(..)));
        self.actions = rest;
        let of = |action| match action {
            Action::Check(id, target, _, time) => (id, target, time),
            other => panic!("{other:?}"),
        };
        let checks: Vec<Action> = checks;
        let checks: Vec<_> = checks.into_iter().map(of).collect();
        self.asked.extend(checks.iter().map(|(id, _, time)| (id.backend, (*id, *time))));
        checks.into_iter().map(|(id, target, _)| (id.backend, target)).collect()
    }

    /// The checks asked for since the last call, as they are.
    pub(super) fn raw_checks(&mut self) -> Vec<(CheckId, Target, bool, CheckTime)> {
        let of = |action| match action {
            Action::Check(id, target, wants_inventory, time) => {
                Some((id, target, wants_inventory, time))
            }
            _ => None,
        };
        std::mem::take(&mut self.actions).into_iter().filter_map(of).collect()
    }

    /// The last check of a server that was asked for has found this.
    pub(super) fn checked(&mut self, backend: BackendId, result: CheckResult) {
        self.checks_kept();
        self.input(Input::Checked(self.asked[&backend].0, result));
    }

    /// Takes note of the checks that were asked for, and leaves them where they are.
    fn checks_kept(&mut self) {
        let checks = self.actions.iter().filter_map(|action| match action {
            Action::Check(id, _, _, time) => Some((id.backend, (*id, *time))),
            _ => None,
        });
        self.asked.extend(checks);
    }

    /// The time that the last check of a server has.
    fn check_time(&mut self, backend: BackendId) -> CheckTime {
        self.checks_kept();
        self.asked[&backend].1
    }

    pub(super) fn reports(&mut self) -> Vec<Transition> {
        let of = |action| match action {
            Action::Report(report) => Some(report),
            Action::Check(..) | Action::Remember => None,
        };
        std::mem::take(&mut self.actions).into_iter().filter_map(of).collect()
    }

    /// A discovered server that passed its first check.
    pub(super) fn server(&mut self, host: u8) -> BackendId {
        self.input(sighting(host, host, 1));
        let (id, target) = self.checks().pop().expect("a check");
        assert_eq!(target, Target::Address(address(host)));
        self.checked(id, healthy(address(host), u64::from(host)));
        assert!(matches!(self.reports()[..], [Transition::Up { .. }]));
        id
    }

    pub(super) fn done(&mut self, id: BackendId) {
        self.input(Input::Finished(id, Outcome::Answered.into()));
    }

    pub(super) fn down(&mut self, id: BackendId) {
        self.pass(ms(1300));
        for (checked, _) in self.checks() {
            let result = match checked == id {
                true => CheckResult::Refused("refused".to_owned()),
                false => {
                    let at = self.pool.backends.iter().find(|b| b.id == checked).expect("known");
                    healthy(at.addresses.known[0], 1)
                }
            };
            self.checked(checked, result);
        }
        self.pool.backends.iter_mut().for_each(|b| b.health.round_trip = None);
    }

    pub(super) fn pick(&mut self) -> Option<BackendId> {
        self.pool.pick(self.now, &[], &Wanted::default()).ok().map(|pick| pick.id)
    }
}

#[test]
fn an_announcement_only_proposes() {
    let mut w = World::new();
    w.input(sighting(1, 1, 1));
    assert_eq!(w.pick(), None);
    assert!(w.pool.expects_backend(w.now));
    let (id, _) = w.checks().pop().expect("a check");
    w.checked(id, CheckResult::Refused("not Ollama".to_owned()));
    assert_eq!(w.pick(), None);
    assert!(!w.pool.expects_backend(w.now));
    let reason = w.pool.explain(false);
    assert!(reason.contains("not Ollama"), "{reason}");
}

#[test]
fn one_server_is_one_entry_over_two_interfaces_and_after_a_move() {
    let mut w = World::new();
    let id = w.server(1);
    // The same run at a second address: used only after a check of that very address.
    w.input(sighting(2, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))]);
    assert_eq!(w.pool.pick(w.now, &[], &Wanted::default()).expect("ready").address, address(1));
    w.checked(id, CheckResult::Silent("no answer".to_owned()));
    assert_eq!(
        w.pool.pick(w.now, &[], &Wanted::default()).expect("still ready").address,
        address(1)
    );
    w.checks();
    w.checked(id, healthy(address(1), 1));
    w.pass(FIRST_RETRY);
    w.input(sighting(2, 1, 1));
    w.checks();
    w.checked(id, healthy(address(2), 1));
    let in_use =
        |w: &mut World| w.pool.pick(w.now, &[], &Wanted::default()).expect("ready").address;
    // Anyone can announce a server's identity, so it doesn't move while it is well …
    assert_eq!(in_use(&mut w), address(1));
    assert_eq!(w.pool.backends.len(), 1);
    // … and when the address in use fails, the other is checked before the server counts as down.
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.checked(id, CheckResult::Refused("refused".to_owned()));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))]);
    w.checked(id, healthy(address(2), 1));
    assert_eq!(in_use(&mut w), address(2));
}

#[test]
fn a_refusal_at_one_address_says_nothing_about_another() {
    let refused = || CheckResult::Refused("refused".to_owned());
    let cases = [
        ([silent(), refused()], 2),
        ([refused(), silent()], 2),
        ([silent(), silent()], 2),
        ([refused(), refused()], 1),
    ];
    for (results, rounds) in cases {
        let mut w = World::new();
        let id = w.server(1);
        w.input(sighting(2, 1, 1));
        w.checks();
        w.checked(id, healthy(address(2), 1));
        w.checks();
        w.checked(id, healthy(address(1), 1));
        w.pass(ms(1300));
        for round in 1..=rounds {
            for (host, result) in [1, 2].into_iter().zip(&results) {
                assert_eq!(w.pool.ready(), 1, "{results:?}, round {round}");
                assert_eq!(w.checks(), [(id, Target::Address(address(host)))]);
                w.checked(id, result.clone());
            }
        }
        assert_eq!(w.pool.ready(), 0, "{results:?}");
        // One that passes ends the round.
        w.pass(ms(2000));
        w.checks();
        w.checked(id, healthy(address(1), 1));
        w.pass(ms(1300));
        w.checks();
        w.checked(id, silent());
        assert_eq!(w.checks(), [(id, Target::Address(address(2)))]);
        w.checked(id, healthy(address(2), 1));
        let is_moved = |report: &Transition| matches!(report, Transition::Moved { .. });
        assert!(w.reports().iter().any(is_moved), "{results:?}");
    }
}

#[test]
fn a_copied_identity_does_not_displace_a_ready_server() {
    let mut w = World::new();
    let id = w.server(1);
    w.input(sighting(9, 1, 99));
    assert_eq!(w.pool.backends.len(), 2);
    assert_eq!(w.pick(), Some(id));
}

#[test]
fn silence_needs_two_checks_a_refusal_one() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    assert_eq!(w.checks().len(), 1);
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    assert!(w.pool.ready() > 0);
    assert_eq!(w.checks().len(), 1, "the second check follows at once");
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    assert_eq!(w.pool.ready(), 0);
    // Back as soon as a check passes; a sighting starts one at once.
    w.now += ms(10);
    w.input(sighting(1, 1, 1));
    w.checks();
    w.checked(id, healthy(address(1), 1));
    assert!(w.pool.ready() > 0);
    w.pass(ms(1300));
    w.checks();
    w.checked(id, CheckResult::Refused("502".to_owned()));
    assert_eq!(w.pool.ready(), 0);
}

#[test]
fn a_down_server_is_asked_within_two_seconds_then_rarely_and_forgotten() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    let mut asked = Vec::new();
    let start = w.now;
    while w.now - start < Duration::from_secs(70) && !w.pool.backends.is_empty() {
        for (_, _) in w.checks() {
            asked.push(w.now - start);
            w.checked(id, CheckResult::Refused("refused".to_owned()));
        }
        w.pass(ms(100));
    }
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] <= ms(2500), "{pair:?}");
    }
    assert!(asked.len() < 60, "{} checks in a minute", asked.len());
    assert!(w.pool.backends.is_empty(), "forgotten after a minute");
    assert!(w.reports().iter().any(|r| matches!(r, Transition::Forgotten { .. })));
}

#[test]
fn a_named_server_stays_for_ever() {
    let mut w = World::new();
    let name = ServerName { host: "gpu".to_owned(), port: 11435 };
    w.pool.add_named(w.now, name.clone());
    w.pool.add_named(w.now, name.clone());
    w.pass(ms(0));
    let checks = w.checks();
    assert_eq!(checks, [(BackendId(0), Target::Name(name))]);
    w.checked(BackendId(0), CheckResult::Refused("no such name".to_owned()));
    for _ in 0..100 {
        w.pass(Duration::from_secs(10));
        for (id, _) in w.checks() {
            w.checked(id, CheckResult::Refused("no such name".to_owned()));
        }
    }
    assert_eq!(w.pool.backends.len(), 1);
    w.pass(Duration::from_secs(20));
    w.checks();
    w.checked(BackendId(0), healthy(address(7), 1));
    assert_eq!(w.pool.pick(w.now, &[], &Wanted::default()).map(|p| p.address), Ok(address(7)));
}

#[test]
fn a_server_that_was_away_for_long_is_seen_as_soon_as_it_is_back() {
    let mut w = World::new();
    w.pool.add_named(w.now, ServerName { host: "gpu".to_owned(), port: 11435 });
    let (start, mut asked) = (w.now, Vec::new());
    while w.now - start < Duration::from_secs(600) {
        for (id, _) in w.checks() {
            asked.push(w.now);
            w.checked(id, CheckResult::Refused("refused".to_owned()));
            w.actions.retain(|action| matches!(action, Action::Check(..)));
        }
        w.pass(ms(100));
    }
    let longest = asked.windows(2).map(|pair| pair[1] - pair[0]).max().expect("checks");
    assert!(longest <= ms(2500), "{longest:?} between two checks");
    // A discovered one is asked in the moment in which it is heard again.
    let mut w = World::new();
    let id = w.server(1);
    w.down(id);
    w.pass(ms(30_000));
    w.checks();
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    w.pass(ms(10));
    w.input(sighting(1, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
}

#[test]
fn a_flood_of_strangers_never_displaces_a_server() {
    let mut w = World::new();
    let id = w.server(1);
    for n in 0..200u8 {
        w.input(sighting(n + 20, n + 20, 1));
        w.pass(ms(10));
        for (checked, _) in w.checks() {
            let result = match checked == id {
                true => healthy(address(1), 1),
                false => CheckResult::Refused("not Ollama".to_owned()),
            };
            w.checked(checked, result);
        }
    }
    assert!(w.pool.backends.len() <= rules().max_servers);
    assert_eq!(w.pick(), Some(id));
    assert_eq!(w.reports(), [], "nor does it fill the log");
    w.input(sighting(2, 2, 1));
    let other = w.checks().pop().expect("there is room for an honest one").0;
    w.checked(other, healthy(address(2), 1));
    assert_eq!(w.pool.ready(), 2);
}

#[test]
fn farewell_and_bad_news_only_start_a_check() {
    let mut w = World::new();
    let id = w.server(1);
    w.input(Input::Farewell { identity: Identity([1; 16]), from: address(66).ip() });
    assert_eq!(w.checks(), [], "from elsewhere it means nothing");
    w.input(Input::Farewell { identity: Identity([1; 16]), from: address(1).ip() });
    assert_eq!(w.checks().len(), 1);
    assert_eq!(w.pick(), Some(id));
}

#[test]
fn whatever_packets_say_a_server_is_asked_twice_a_second_at_most() {
    let other_port = |port| {
        let Input::Sighted(sighting) = sighting(1, 1, 1) else { panic!("a sighting") };
        let address = SocketAddr::new(sighting.address.ip(), port);
        Input::Sighted(Sighting { address, ..sighting })
    };
    let goodbye = |_| Input::Farewell { identity: Identity([1; 16]), from: address(1).ip() };
    let not_up = |_| {
        let Input::Sighted(it) = sighting(1, 1, 1) else { panic!("a sighting") };
        Input::Sighted(Sighting { ollama_up: false, ..it })
    };
    let ways: [&dyn Fn(u16) -> Input; 5] =
        [&goodbye, &other_port, &not_up, &|n| sighting(1, 1, u32::from(n)), &|n| {
            sighting(1, n as u8 | 2, 1)
        }];
    for (way, packet) in ways.iter().enumerate() {
        for is_well in [true, false] {
            let mut w = World::new();
            let id = w.server(1);
            let (start, mut asked) = (w.now, 0);
            for n in 0..5000 {
                w.pass(ms(2));
                w.input(packet(n));
                for (checked, target) in w.checks() {
                    let is_it = is_well && target == Target::Address(address(1));
                    let refused = || CheckResult::Refused("refused".to_owned());
                    let result = if is_it { healthy(address(1), 1) } else { refused() };
                    asked += u32::from(checked == id);
                    w.checked(checked, result);
                }
                w.actions.clear();
            }
            let seconds = (w.now - start).as_secs() as u32;
            // Besides what is due anyway, and the address in use after each candidate.
            assert!(asked <= seconds * 5, "way {way}, well: {is_well}: {asked} in {seconds} s");
        }
    }
}

#[test]
fn an_older_server_is_tried_once_a_minute() {
    let mut w = World::new();
    w.input(Input::LegacySighted(address(5).ip()));
    let (id, target) = w.checks().pop().expect("a check");
    assert_eq!(target, Target::Address(address(5)));
    w.checked(id, CheckResult::Refused("not Ollama".to_owned()));
    for _ in 0..11 {
        w.pass(Duration::from_secs(5));
        w.input(Input::LegacySighted(address(5).ip()));
        assert_eq!(w.checks(), []);
    }
    w.pass(Duration::from_secs(6));
    assert_eq!(w.checks().len(), 1);
}

#[test]
fn an_older_server_that_was_well_is_asked_again_as_soon_as_others() {
    let mut w = World::new();
    w.input(Input::LegacySighted(address(5).ip()));
    let (id, _) = w.checks().pop().expect("a check");
    w.checked(id, healthy(address(5), 1));
    for failure in [silent(), CheckResult::Refused("refused".to_owned())] {
        w.pass(ms(1300));
        w.checks();
        w.checked(id, failure.clone());
        w.pass(ms(1000));
        assert_eq!(w.checks(), [(id, Target::Address(address(5)))], "after {failure:?}");
        w.checked(id, healthy(address(5), 1));
        assert_eq!(w.pick(), Some(id));
        w.done(id);
    }
}

#[test]
fn random_events_keep_the_invariants() {
    for seed in 1..200u64 {
        let mut w = World::new();
        let mut random = seed;
        let mut next = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        let mut checking: Vec<(BackendId, Target)> = Vec::new();
        let mut flying: HashMap<BackendId, u32> = HashMap::new();
        for _ in 0..400 {
            match next(8) {
                0 => {
                    let (host, id) = (next(6) as u8, next(4) as u8);
                    w.input(sighting(host, id, next(2) as u32));
                }
                1 | 2 if !checking.is_empty() => {
                    let at = next(checking.len() as u64) as usize;
                    let (id, target) = checking.swap_remove(at);
                    let Target::Address(address) = target else { panic!("{target:?}") };
                    let result = match next(3) {
                        0 => CheckResult::Refused("r".to_owned()),
                        1 => CheckResult::Silent("s".to_owned()),
                        _ => healthy(address, next(20)),
                    };
                    w.checked(id, result);
                }
                3 | 4 => {
                    let ready = w.pool.backends.iter().any(|b| b.is_verified() && b.gets_work());
                    match w.pick() {
                        Some(id) => *flying.entry(id).or_default() += 1,
                        None => assert!(!ready, "seed {seed}: a ready server wasn't picked"),
                    }
                }
                5 => {
                    let ids: Vec<BackendId> = flying.keys().copied().collect();
                    if let Some(id) = ids.first() {
                        let outcome = [Outcome::Answered, Outcome::Failed, Outcome::Unreachable]
                            [next(3) as usize];
                        w.input(Input::Finished(*id, outcome.into()));
                        let left = flying.get_mut(id).expect("flying");
                        *left -= 1;
                        if *left == 0 {
                            flying.remove(id);
                        }
                    }
                }
                6 => w.pass(ms(next(3000))),
                _ => w.pass(ms(10)),
            }
            checking.extend(w.checks());
            assert!(w.pool.backends.len() <= rules().max_servers, "seed {seed}");
            let sum: u32 = flying.values().sum();
            assert_eq!(w.pool.in_flight(), sum, "seed {seed}: leases are counted exactly");
            for backend in &w.pool.backends {
                assert!(backend.addresses.known.len() <= MAX_ADDRESSES, "seed {seed}");
            }
        }
    }
}

#[test]
fn servers_of_the_last_run_are_tried_first_and_forgotten_like_others() {
    let mut w = World::new();
    let known = |name: &str, host| Known {
        identity: None,
        name: name.to_owned(),
        address: address(host),
        is_present: true,
        had: None,
    };
    w.pool.recall(w.now, vec![known("desk", 1), known("gone", 2)]);
    assert!(w.pool.expects_backend(w.now));
    w.pass(ms(0));
    for (id, target) in w.checks() {
        let result = match target == Target::Address(address(1)) {
            true => healthy(address(1), 1),
            false => CheckResult::Silent("no answer".to_owned()),
        };
        w.checked(id, result);
    }
    assert_eq!(w.pick(), Some(BackendId(0)));
    assert_eq!(w.pool.memorable(w.now), [known("desk", 1)]);
    for _ in 0..70 {
        w.pass(Duration::from_secs(1));
        for (id, target) in w.checks() {
            let result = match target == Target::Address(address(1)) {
                true => healthy(address(1), 1),
                false => CheckResult::Silent("no answer".to_owned()),
            };
            w.checked(id, result);
        }
    }
    assert_eq!(w.pool.len(), 1);
}

#[test]
fn an_address_that_was_only_announced_gets_no_request() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    w.checks();
    w.checked(id, CheckResult::Refused("restarting".to_owned()));
    // Somebody who has heard its announcements repeats one while it is down.
    w.input(sighting(9, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(9)))]);
    w.checked(id, CheckResult::Refused("refused".to_owned()));
    w.pass(ms(2000));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.checked(id, healthy(address(1), 1));
    let in_use = |w: &mut World| w.pool.pick(w.now, &[], &Wanted::default()).map(|p| p.address);
    assert_eq!(in_use(&mut w), Ok(address(1)));
    // Its own address has a hiccup: the other one may be tried, but by a check only.
    w.pass(ms(1300));
    w.checks();
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    assert_eq!(w.checks(), [(id, Target::Address(address(9)))]);
    assert!(in_use(&mut w).is_err(), "nobody knows who is at {}", address(9));
    assert_eq!(w.pool.sole(w.now, false), None);
    assert!(w.pool.expects_backend(w.now), "requests wait for the check");
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.checked(id, healthy(address(1), 1));
    assert_eq!(in_use(&mut w), Ok(address(1)));
}

#[test]
fn a_check_of_the_old_address_says_nothing_about_the_new_one() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    w.checks();
    w.checked(id, CheckResult::Refused("refused".to_owned()));
    w.pass(ms(700));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    // While that is under way, it is announced where it is now.
    w.input(sighting(2, 1, 1));
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))], "at once");
    w.checked(id, healthy(address(2), 1));
    assert_eq!(w.pick(), Some(id));
}

#[test]
fn a_named_server_that_was_announced_first_is_one_entry() {
    let mut w = World::new();
    let name = ServerName { host: "desk".to_owned(), port: 11435 };
    w.pool.add_named(w.now, name.clone());
    // Its announcement comes before its name is resolved.
    w.input(sighting(1, 1, 1));
    let [(named, target), (announced, _)] = &w.checks()[..] else { panic!("two checks") };
    assert_eq!(*target, Target::Name(name));
    w.checked(*announced, healthy(address(1), 1));
    assert_eq!(w.pick(), Some(*announced));
    w.checked(*named, healthy(address(1), 1));
    assert_eq!(w.pool.len(), 2, "somebody uses it");
    w.done(*announced);
    w.pass(ms(1300));
    for (id, _) in w.checks() {
        w.checked(id, healthy(address(1), 1));
    }
    assert_eq!(w.pool.len(), 1);
    assert_eq!(w.pick(), Some(*named));
    w.input(sighting(1, 1, 1));
    assert_eq!(w.pool.len(), 1);
}

#[test]
fn silent_strangers_give_way_to_a_newcomer_and_do_not_hold_up_checks() {
    let mut w = World::new();
    for host in 1..=4 {
        w.input(sighting(host, host, 1));
    }
    let mut running = w.checks();
    assert_eq!((w.pool.len(), running.len()), (4, MAX_STRANGERS), "the pool is full");
    // All of them stay silent, and each is being asked again.
    for _ in 0..12 {
        let (id, _) = running.remove(0);
        w.checked(id, CheckResult::Silent("timed out".to_owned()));
        w.pass(ms(2000));
        running.extend(w.checks());
        assert_eq!(running.len(), MAX_STRANGERS);
    }
    // A newcomer is let in nevertheless, and asked as soon as one of them has reported.
    w.input(sighting(5, 5, 1));
    assert!(w.pool.backends.iter().any(|b| b.addresses.known == [address(5)]));
    assert_eq!(w.checks(), [], "three are under way, one of them for nobody");
    let (id, _) = running.remove(0);
    w.checked(id, CheckResult::Silent("timed out".to_owned()));
    let [(id, target)] = &w.checks()[..] else { panic!("one check") };
    assert_eq!(*target, Target::Address(address(5)));
    w.checked(*id, healthy(address(5), 1));
    assert_eq!(w.pick(), Some(*id));
}

#[test]
fn a_check_that_got_lost_is_not_mixed_up_with_the_next_one() {
    let mut w = World::new();
    let id = w.server(1);
    w.input(sighting(2, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))], "and that job is dropped");
    w.pass(ms(6100));
    for left in [1, 0] {
        assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
        w.checked(id, CheckResult::Silent("timed out".to_owned()));
        assert_eq!(w.pool.ready(), left, "the second silence counts");
    }
}

#[test]
fn an_address_that_is_well_is_used_at_once_when_the_old_ones_fail() {
    let mut w = World::new();
    let id = w.server(1);
    for host in [2, 3] {
        w.pass(FIRST_RETRY);
        w.input(sighting(host, 1, 1));
        w.checks();
        w.checked(id, healthy(address(host), 1));
        w.checks();
        w.checked(id, healthy(address(1), 1));
    }
    w.pass(ms(1300));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.input(sighting(4, 1, 1));
    w.checked(id, CheckResult::Refused("gone".to_owned()));
    // It has three places left; the one just announced is asked first and used if it is well.
    assert_eq!(w.checks(), [(id, Target::Address(address(4)))]);
    w.checked(id, healthy(address(4), 1));
    let in_use = w.pool.pick(w.now, &[], &Wanted::default()).map(|pick| pick.address);
    assert_eq!(in_use, Ok(address(4)));
}

#[test]
fn many_silent_servers_are_noticed_and_do_not_hold_up_one_that_comes_back() {
    let mut w = World::new();
    w.pool.rules.max_servers = 64;
    let ids: Vec<BackendId> = (1..=40).map(|host| w.server(host)).collect();
    // All vanish at once. Each check takes its whole time-out, and only so many run at once.
    let mut running: Vec<(Instant, BackendId, Target)> = Vec::new();
    let start = w.now;
    while w.now - start < Duration::from_secs(30) {
        w.pass(ms(100));
        running.extend(w.checks().into_iter().map(|(id, target)| (w.now, id, target)));
        assert!(running.len() <= MAX_CHECKS);
        while let Some(at) = running.iter().position(|(since, ..)| w.now - *since >= ms(1500)) {
            let (since, id, target) = running.remove(at);
            // The last one comes back after 25 s and says so.
            let is_back = Target::Address(address(40)) == target;
            let result = match is_back && since - start > Duration::from_secs(25) {
                true => healthy(address(40), 1),
                false => CheckResult::Silent("timed out".to_owned()),
            };
            w.checked(id, result);
            running.extend(w.checks().into_iter().map(|(id, target)| (w.now, id, target)));
        }
        w.actions.clear();
        if w.now - start == Duration::from_secs(24) {
            assert_eq!(w.pool.ready(), 0, "all were noticed");
        }
        if w.now - start == ms(25_100) {
            w.input(sighting(40, 40, 1));
            running.extend(w.checks().into_iter().map(|(id, target)| (w.now, id, target)));
        }
        if w.now - start > ms(28_500) {
            assert_eq!(w.pick(), Some(ids[39]), "asked before the silent ones");
            w.done(ids[39]);
        }
    }
}

#[test]
fn a_snapshot_tells_what_the_pool_goes_by() {
    let mut w = World::new();
    let (name, address_then) = ("old".to_owned(), address(9));
    w.pool.recall(
        w.now,
        vec![Known { identity: None, name, address: address_then, is_present: true, had: None }],
    );
    w.input(Input::Tick);
    w.actions.clear();
    let id = w.server(1);
    w.now += ms(5000);
    let pick = w.pool.pick(w.now, &[], &Wanted::default()).expect("ready");
    pick.tally.tokens.add(7);
    w.pool.pick(w.now, &[], &Wanted::default()).expect("ready");
    w.input(Input::Finished(id, Outcome::Overloaded.into()));
    let servers = w.pool.snapshot(w.now);
    assert_eq!(servers.len(), 2);
    assert_eq!((servers[0].origin, servers[1].origin), ("remembered", "discovered"));
    assert_eq!((servers[0].state, servers[1].state), (State::New, State::CoolingDown));
    let server = &servers[1];
    assert_eq!((server.backend.id, server.name.as_str()), (id, "host1"));
    assert_eq!((server.since, server.backend.load.in_flight, server.limit), (ms(5000), 1, Some(1)));
    assert_eq!(server.pause, Some((State::CoolingDown, COOL_DOWN)));
    assert_eq!(
        (server.backend.health.round_trip, server.backend.tally.tokens.value()),
        (Some(ms(1)), 7)
    );
    for _ in 0..STRIKES {
        w.input(Input::Noted(id, Outcome::Failed.into()));
    }
    assert_eq!(w.pool.snapshot(w.now)[1].pause, Some((State::OutlierEjected, FIRST_EJECTION)));
    w.checked(id, CheckResult::Refused("gone".to_owned()));
    let server = &w.pool.snapshot(w.now)[1];
    assert_eq!((server.state, server.since), (State::Down, ms(0)));
    assert_eq!(server.backend.health.down_reason(), Some("gone"));
    w.now += ms(2000);
    w.input(Input::Slept(ms(3_600_000)));
    assert_eq!(w.pool.snapshot(w.now)[1].since, ms(3_602_000), "the clock stood still");
}

#[test]
fn requests_that_a_restart_breaks_are_one_failure() {
    let mut w = World::new();
    w.pool.rules.preferred = vec!["10.0.0.1".to_owned()];
    let (id, other) = (w.server(1), w.server(2));
    for pause in [FIRST_EJECTION, FIRST_EJECTION * 2] {
        w.pool.transfer(id, 30, 0);
        for _ in 0..30 {
            w.input(Input::Finished(id, Outcome::Failed.into()));
        }
        w.checks_kept();
        let ejected = |report: &Transition| matches!(report, Transition::OutlierEjected { .. });
        assert_eq!(w.reports().iter().filter(|report| ejected(report)).count(), 1);
        assert_eq!(w.pool.snapshot(w.now)[0].pause, Some((State::OutlierEjected, pause)));
        w.pass(pause);
    }
    // It was found down, and is well again: then it is on trial at once.
    w.checked(id, CheckResult::Refused("restarting".to_owned()));
    assert_eq!(w.pick(), Some(other));
    w.pass(FIRST_RETRY * 2);
    w.checked(id, healthy(address(1), 1));
    assert_eq!((w.pick(), w.pick()), (Some(id), Some(other)));
    w.done(id);
    assert_eq!((w.pick(), w.pick()), (Some(id), Some(id)));
}

/// A model for which there is too little memory: each time, the system ends Ollama and starts it anew.
#[test]
fn a_server_that_requests_bring_down_each_time_is_passed_over_in_the_end() {
    let mut w = World::new();
    w.pool.rules.preferred = vec!["10.0.0.1".to_owned()];
    let (id, other) = (w.server(1), w.server(2));
    let mut failed = 0;
    for _ in 0..40 {
        if w.pick() == Some(other) {
            w.done(other);
            continue;
        }
        failed += 1;
        w.input(Input::Finished(id, Outcome::Failed.into()));
        w.checked(id, CheckResult::Refused("restarting".to_owned()));
        w.pass(FIRST_RETRY * 2);
        w.checked(id, healthy(address(1), 1));
    }
    assert!((3..20).contains(&failed), "{failed} of 40");
}

#[test]
fn models_are_asked_for_while_somebody_looks() {
    let mut w = World::new();
    let wants = |w: &mut World| -> Vec<bool> {
        let of = |action: Action| match action {
            Action::Check(_, _, wants_inventory, _) => Some(wants_inventory),
            Action::Report(_) | Action::Remember => None,
        };
        std::mem::take(&mut w.actions).into_iter().filter_map(of).collect()
    };
    let id = w.server(1);
    assert!(w.pool.lacks_inventory());
    w.input(Input::Watched);
    assert_eq!(wants(&mut w), [true], "at once");
    w.checked(id, healthy(address(1), 1));
    w.input(Input::Watched);
    assert_eq!(wants(&mut w), [false; 0], "the second look asks for nothing by itself");
    w.pass(ms(60_000));
    assert!(!w.pool.is_watched(w.now));
    assert_eq!(wants(&mut w), [false], "nobody looks any more");
}

#[test]
fn changes_of_models_that_nobody_asks_for_cause_no_checks() {
    use crate::manager::pool::Report;
    let mut w = World::new();
    let id = w.server(1);
    let changed = Report { changed_models: true, ..Outcome::Answered.into() };
    w.input(Input::Noted(id, changed.clone()));
    assert_eq!(w.checks(), []);
    let mut asked = 0;
    for _ in 0..600 {
        w.pass(ms(100));
        for (id, _) in w.checks() {
            asked += 1;
            w.checked(id, healthy(address(1), 1));
        }
    }
    assert!((50..=75).contains(&asked), "{asked} checks in a minute, one a second is usual");
    // While somebody looks, they are asked for.
    w.input(Input::Watched);
    w.checks();
    w.checked(id, with_inventory(healthy(address(1), 1), Some(Arc::default())));
    w.input(Input::Noted(id, changed));
    assert_eq!(w.checks().len(), 1);
}

fn silent() -> CheckResult {
    CheckResult::Silent("no answer in time".to_owned())
}

#[test]
fn bytes_are_proof_of_life() {
    let mut w = World::new();
    let id = w.server(1);
    for _ in 0..10 {
        w.pass(ms(1300));
        w.checks();
        w.pool.backends[0].tally.bytes_down.add(1);
        w.checked(id, silent());
        assert_eq!((w.pool.ready(), w.checks().len()), (1, 0), "asked again as if it were well");
    }
    // Bytes from before the check prove nothing.
    w.pool.backends[0].tally.bytes_down.add(1);
    w.pass(ms(1300));
    for _ in 0..2 {
        assert_eq!((w.pool.ready(), w.checks().len()), (1, 1));
        w.checked(id, silent());
    }
    assert_eq!(w.pool.ready(), 0);
    w.reports();
    w.pass(ms(2000));
    w.checks();
    w.pool.backends[0].tally.bytes_down.add(1);
    w.checked(id, silent());
    assert!(matches!(w.reports()[..], [Transition::Up { .. }]));
    // What refuses new connections takes no requests, whatever it still answers.
    w.pass(ms(1300));
    w.checks();
    w.pool.backends[0].tally.bytes_down.add(1);
    w.checked(id, CheckResult::Unreached("refused".to_owned()));
    assert_eq!(w.pool.ready(), 0);
}

#[test]
fn an_answer_that_is_not_passed_on_is_proof_of_life_too() {
    let mut w = World::new();
    let id = w.server(1);
    for outcome in [Outcome::Answered, Outcome::Declined, Outcome::TurnedAway] {
        for _ in 0..3 {
            w.pass(ms(1300));
            w.checks();
            w.input(Input::Noted(id, outcome.into()));
            w.checked(id, silent());
            assert_eq!(w.pool.ready(), 1, "{outcome:?}");
        }
    }
}

#[test]
fn the_check_that_decides_has_more_time() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    w.checks();
    assert_eq!(w.check_time(id).answer, ms(1500));
    w.checked(id, silent());
    w.checks();
    let time = w.check_time(id);
    assert_eq!(time.connect, Some(time.answer));
    let longest = ms(1200) + ms(1500) + time.answer;
    assert!(
        longest > ms(5000) && longest < ms(7000),
        "a frozen server goes within 7 s: {longest:?}"
    );
    // Meanwhile another one comes first.
    w.pool.rules.preferred = vec!["10.0.0.1".to_owned()];
    let other = w.server(2);
    assert_eq!(w.pick(), Some(other));
}
