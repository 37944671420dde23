//! Scenarios over the pure pool: time is `t0 + ms(n)`, nothing sleeps.

use std::collections::HashMap;

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn rules() -> Rules {
    Rules { health_interval: ms(1000), health_timeout: ms(1500), rise: 1, fall: 2, max_servers: 4 }
}

/// A pool with a clock of its own and the actions it asked for.
struct World {
    pool: Pool,
    now: Instant,
    actions: Vec<Action>,
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 11435))
}

fn sighting(host: u8, id: u8, instance: u32) -> Input {
    Input::Sighted(Sighting {
        address: address(host),
        identity: Identity([id; 16]),
        instance,
        name: format!("host{id}"),
        ollama_up: true,
    })
}

fn healthy(address: SocketAddr, rtt: u64) -> CheckResult {
    CheckResult::Healthy { address, round_trip: ms(rtt), version: "0.5.4".to_owned() }
}

impl World {
    fn new() -> Self {
        World { pool: Pool::new(rules(), 7), now: Instant::now(), actions: Vec::new() }
    }

    fn input(&mut self, input: Input) {
        self.pool.handle(self.now, input, &mut self.actions);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
    }

    /// The checks asked for since the last call.
    fn checks(&mut self) -> Vec<(BackendId, Target)> {
        let (checks, rest) = std::mem::take(&mut self.actions)
            .into_iter()
            .partition(|action| matches!(action, Action::Check(..)));
        self.actions = rest;
        let of = |action| match action {
            Action::Check(id, target) => (id, target),
            Action::Report(report) => panic!("{report:?}"),
        };
        let checks: Vec<Action> = checks;
        checks.into_iter().map(of).collect()
    }

    fn reports(&mut self) -> Vec<Transition> {
        let of = |action| match action {
            Action::Report(report) => Some(report),
            Action::Check(..) => None,
        };
        std::mem::take(&mut self.actions).into_iter().filter_map(of).collect()
    }

    /// A discovered server that passed its first check.
    fn server(&mut self, host: u8) -> BackendId {
        self.input(sighting(host, host, 1));
        let (id, target) = self.checks().pop().expect("a check");
        assert_eq!(target, Target::Address(address(host)));
        self.input(Input::Checked(id, healthy(address(host), u64::from(host))));
        assert!(matches!(self.reports()[..], [Transition::Up { .. }]));
        id
    }

    fn pick(&mut self) -> Option<BackendId> {
        self.pool.pick(self.now, &[]).map(|pick| pick.id)
    }
}

#[test]
fn an_announcement_only_proposes() {
    let mut w = World::new();
    w.input(sighting(1, 1, 1));
    assert_eq!(w.pick(), None);
    assert!(w.pool.expects_backend());
    let (id, _) = w.checks().pop().expect("a check");
    w.input(Input::Checked(id, CheckResult::Refused("not Ollama".to_owned())));
    assert_eq!(w.pick(), None);
    assert!(!w.pool.expects_backend());
    assert!(w.pool.explain().contains("not Ollama"), "{}", w.pool.explain());
}

#[test]
fn one_server_is_one_entry_over_two_interfaces_and_after_a_move() {
    let mut w = World::new();
    let id = w.server(1);
    // The same run at a second address: used only after a check of that very address.
    w.input(sighting(2, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))]);
    assert_eq!(w.pool.pick(w.now, &[]).expect("ready").address, address(1));
    w.input(Input::Checked(id, CheckResult::Silent("no answer".to_owned())));
    assert_eq!(w.pool.pick(w.now, &[]).expect("still ready").address, address(1));
    w.checks();
    w.input(Input::Checked(id, healthy(address(1), 1)));
    w.input(sighting(2, 1, 1));
    w.checks();
    w.input(Input::Checked(id, healthy(address(2), 1)));
    assert_eq!(w.pool.pick(w.now, &[]).expect("ready").address, address(2));
    assert_eq!(w.pool.backends.len(), 1);
    // When the one in use fails, the other is checked before the server counts as down.
    w.pass(ms(1300));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))]);
    w.input(Input::Checked(id, CheckResult::Refused("refused".to_owned())));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.input(Input::Checked(id, healthy(address(1), 1)));
    assert_eq!(w.pool.pick(w.now, &[]).expect("ready").address, address(1));
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
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    assert!(w.pool.is_ready());
    assert_eq!(w.checks().len(), 1, "the second check follows at once");
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    assert!(!w.pool.is_ready());
    // Back as soon as a check passes; a sighting starts one at once.
    w.now += ms(10);
    w.input(sighting(1, 1, 1));
    w.checks();
    w.input(Input::Checked(id, healthy(address(1), 1)));
    assert!(w.pool.is_ready());
    w.pass(ms(1300));
    w.checks();
    w.input(Input::Checked(id, CheckResult::Refused("502".to_owned())));
    assert!(!w.pool.is_ready());
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
            w.input(Input::Checked(id, CheckResult::Refused("refused".to_owned())));
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
    w.input(Input::Checked(BackendId(0), CheckResult::Refused("no such name".to_owned())));
    for _ in 0..100 {
        w.pass(Duration::from_secs(10));
        for (id, _) in w.checks() {
            w.input(Input::Checked(id, CheckResult::Refused("no such name".to_owned())));
        }
    }
    assert_eq!(w.pool.backends.len(), 1);
    w.pass(Duration::from_secs(20));
    w.checks();
    w.input(Input::Checked(BackendId(0), healthy(address(7), 1)));
    assert_eq!(w.pool.pick(w.now, &[]).map(|p| p.address), Some(address(7)));
}

#[test]
fn the_local_ollama_is_tried_even_when_its_check_failed() {
    let mut w = World::new();
    w.pool.add_local(w.now, ServerName { host: "127.0.0.1".to_owned(), port: 11434 });
    w.pass(ms(0));
    w.input(Input::Checked(BackendId(0), healthy(address(1), 1)));
    w.pass(ms(1300));
    w.input(Input::Checked(BackendId(0), CheckResult::Refused("refused".to_owned())));
    assert!(!w.pool.is_ready());
    assert_eq!(w.pick(), Some(BackendId(0)));
}

#[test]
fn requests_spread_by_work_then_by_distance() {
    let mut w = World::new();
    let near = w.server(2);
    let far = w.server(200);
    assert_eq!(w.pick(), Some(near));
    assert_eq!(w.pick(), Some(far));
    assert_eq!(w.pick(), Some(near));
    w.input(Input::Finished(far, Outcome::Answered));
    assert_eq!(w.pick(), Some(far));
    assert_eq!(w.pool.pick(w.now, &[far]).map(|p| p.id), Some(near));
    assert_eq!(w.pool.pick(w.now, &[far, near]), None);
}

#[test]
fn a_failing_server_rests_gets_one_trial_and_the_last_one_is_never_ejected() {
    let mut w = World::new();
    let bad = w.server(1);
    let good = w.server(200);
    for _ in 0..3 {
        w.pool.pick(w.now, &[good]);
        w.input(Input::Finished(bad, Outcome::Failed));
    }
    assert!(w.reports().iter().any(|r| matches!(r, Transition::Ejected { .. })));
    for _ in 0..5 {
        assert_eq!(w.pick(), Some(good));
    }
    assert_eq!(w.pool.pick(w.now, &[good]).map(|p| p.id), Some(bad), "better than none");
    w.input(Input::Finished(bad, Outcome::Failed));
    // After the pause: one trial at a time, and success ends it.
    w.now += ms(1100);
    assert_eq!(w.pick(), Some(bad));
    assert_eq!(w.pick(), Some(good));
    w.input(Input::Finished(bad, Outcome::Answered));
    assert_eq!(w.pick(), Some(bad));
}

#[test]
fn an_overloaded_server_is_passed_over_for_a_moment() {
    let mut w = World::new();
    let busy = w.server(1);
    let other = w.server(200);
    w.pick();
    w.input(Input::Finished(busy, Outcome::Overloaded));
    assert_eq!(w.pick(), Some(other));
    w.now += ms(1001);
    assert_eq!(w.pick(), Some(busy));
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
            w.input(Input::Checked(checked, result));
        }
    }
    assert!(w.pool.backends.len() <= rules().max_servers);
    assert_eq!(w.pick(), Some(id));
    assert!(w.reports().iter().any(|r| matches!(r, Transition::Refused { .. })));
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
fn an_older_server_is_tried_once_a_minute() {
    let mut w = World::new();
    w.input(Input::LegacySighted(address(5).ip()));
    let (id, target) = w.checks().pop().expect("a check");
    assert_eq!(target, Target::Address(address(5)));
    w.input(Input::Checked(id, CheckResult::Refused("not Ollama".to_owned())));
    for _ in 0..11 {
        w.pass(Duration::from_secs(5));
        w.input(Input::LegacySighted(address(5).ip()));
        assert_eq!(w.checks(), []);
    }
    w.pass(Duration::from_secs(6));
    assert_eq!(w.checks().len(), 1);
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
                    w.input(Input::Checked(id, result));
                }
                3 | 4 => {
                    let ready = w.pool.is_ready();
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
                        w.input(Input::Finished(*id, outcome));
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
                assert!(backend.addresses.len() <= MAX_ADDRESSES, "seed {seed}");
            }
        }
    }
}
