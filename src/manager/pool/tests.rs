//! Scenarios over the pure pool: time is `t0 + ms(n)`, nothing sleeps.

use std::collections::HashMap;

use serde_json::json;

use super::*;
use crate::ollama::endpoints::Task;

pub(super) fn ms(n: u64) -> Duration {
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
        preferred: Vec::new(),
    }
}

/// A pool with a clock of its own and the actions it asked for.
pub(super) struct World {
    pub(super) pool: Pool,
    pub(super) now: Instant,
    actions: Vec<Action>,
}

pub(super) fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 11435))
}

fn sighting(host: u8, id: u8, instance: u32) -> Input {
    Input::Sighted(Sighting {
        address: address(host),
        identity: Identity([id; 16]),
        instance,
        name: format!("host{id}"),
        ollama_up: true,
        management_open: false,
    })
}

fn healthy(address: SocketAddr, rtt: u64) -> CheckResult {
    CheckResult::Healthy {
        address,
        round_trip: ms(rtt),
        version: "0.5.4".to_owned(),
        name: None,
        identity: None,
        open: None,
        inventory: None,
    }
}

impl World {
    pub(super) fn new() -> Self {
        World { pool: Pool::new(rules(), 7), now: Instant::now(), actions: Vec::new() }
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
            Action::Check(id, target, _) => (id, target),
            other => panic!("{other:?}"),
        };
        let checks: Vec<Action> = checks;
        checks.into_iter().map(of).collect()
    }

    pub(super) fn reports(&mut self) -> Vec<Transition> {
        let of = |action| match action {
            Action::Report(report) => Some(report),
            Action::Check(..) | Action::Remember => None,
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
    w.input(Input::Checked(id, CheckResult::Refused("not Ollama".to_owned())));
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
    w.input(Input::Checked(id, CheckResult::Silent("no answer".to_owned())));
    assert_eq!(
        w.pool.pick(w.now, &[], &Wanted::default()).expect("still ready").address,
        address(1)
    );
    w.checks();
    w.input(Input::Checked(id, healthy(address(1), 1)));
    w.input(sighting(2, 1, 1));
    w.checks();
    w.input(Input::Checked(id, healthy(address(2), 1)));
    let in_use =
        |w: &mut World| w.pool.pick(w.now, &[], &Wanted::default()).expect("ready").address;
    // Anyone can announce a server's identity, so it doesn't move while it is well …
    assert_eq!(in_use(&mut w), address(1));
    assert_eq!(w.pool.backends.len(), 1);
    // … and when the address in use fails, the other is checked before the server counts as down.
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.input(Input::Checked(id, CheckResult::Refused("refused".to_owned())));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))]);
    w.input(Input::Checked(id, healthy(address(2), 1)));
    assert_eq!(in_use(&mut w), address(2));
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
    assert!(w.pool.ready() > 0);
    assert_eq!(w.checks().len(), 1, "the second check follows at once");
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    assert_eq!(w.pool.ready(), 0);
    // Back as soon as a check passes; a sighting starts one at once.
    w.now += ms(10);
    w.input(sighting(1, 1, 1));
    w.checks();
    w.input(Input::Checked(id, healthy(address(1), 1)));
    assert!(w.pool.ready() > 0);
    w.pass(ms(1300));
    w.checks();
    w.input(Input::Checked(id, CheckResult::Refused("502".to_owned())));
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
            w.input(Input::Checked(id, CheckResult::Refused("refused".to_owned())));
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
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    w.pass(ms(10));
    w.input(sighting(1, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
}

#[test]
fn the_lan_gets_the_local_ollama_alone_whatever_its_check_said() {
    let mut w = World::new();
    w.pool.add_local(w.now, ServerName { host: "127.0.0.1".to_owned(), port: 11434 });
    w.pass(ms(0));
    w.input(Input::Checked(BackendId(0), healthy(address(1), 1)));
    assert!(w.pool.is_local_ready());
    w.reports();
    let other = w.server(2);
    let lan = Wanted { local_only: true, ..Wanted::default() };
    for _ in 0..3 {
        let pick = w.pool.pick(w.now, &[], &lan).expect("local");
        assert!(pick.is_local);
    }
    w.pass(ms(1300));
    w.checks();
    w.input(Input::Checked(BackendId(0), CheckResult::Refused("refused".to_owned())));
    assert!(!w.pool.is_local_ready());
    assert_eq!(w.pool.pick(w.now, &[], &lan).map(|p| p.id), Ok(BackendId(0)));
    // This machine's own programs have a choice.
    assert_eq!(w.pick(), Some(other));
    let none = w.pool.pick(w.now, &[BackendId(0)], &lan);
    let Err(NoPick::NoneUp(reason)) = none else { panic!("{none:?}") };
    assert_eq!(reason, "Ollama does not answer (127.0.0.1:11434: refused)");
}

#[test]
fn requests_spread_by_work_then_by_distance() {
    let mut w = World::new();
    let near = w.server(2);
    let far = w.server(200);
    assert_eq!(w.pick(), Some(near));
    assert_eq!(w.pick(), Some(far));
    assert_eq!(w.pick(), Some(near));
    w.input(Input::Finished(far, Outcome::Answered.into()));
    assert_eq!(w.pick(), Some(far));
    assert_eq!(w.pool.pick(w.now, &[far], &Wanted::default()).map(|p| p.id), Ok(near));
    assert!(w.pool.pick(w.now, &[far, near], &Wanted::default()).is_err());
}

#[test]
fn a_failing_server_rests_gets_one_trial_and_the_last_one_is_never_ejected() {
    let mut w = World::new();
    let bad = w.server(1);
    let good = w.server(200);
    for _ in 0..3 {
        let _ = w.pool.pick(w.now, &[good], &Wanted::default());
        w.input(Input::Finished(bad, Outcome::Failed.into()));
    }
    assert!(w.reports().iter().any(|r| matches!(r, Transition::Ejected { .. })));
    for _ in 0..5 {
        assert_eq!(w.pick(), Some(good));
    }
    assert_eq!(
        w.pool.pick(w.now, &[good], &Wanted::default()).map(|p| p.id),
        Ok(bad),
        "better than none"
    );
    w.input(Input::Finished(bad, Outcome::Failed.into()));
    // After the pause: one trial at a time, and success ends it.
    w.now += ms(5100);
    assert_eq!(w.pick(), Some(bad));
    assert_eq!(w.pick(), Some(good));
    w.input(Input::Finished(bad, Outcome::Answered.into()));
    assert_eq!(w.pick(), Some(bad));
}

#[test]
fn an_overloaded_server_is_passed_over_for_a_moment() {
    let mut w = World::new();
    let busy = w.server(1);
    let other = w.server(200);
    w.pick();
    w.input(Input::Finished(busy, Outcome::Overloaded.into()));
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
    assert_eq!(w.reports(), [], "nor does it fill the log");
    w.input(sighting(2, 2, 1));
    let other = w.checks().pop().expect("there is room for an honest one").0;
    w.input(Input::Checked(other, healthy(address(2), 1)));
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
                    let ready = w.pool.backends.iter().any(|b| b.is_usable() && b.serves());
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
                assert!(backend.addresses.len() <= MAX_ADDRESSES, "seed {seed}");
            }
        }
    }
}

/// A server's models: on disk, and of those the loaded ones.
fn models(disk: &[&str], loaded: &[&str]) -> Option<Arc<Inventory>> {
    let list = |names: &[&str]| {
        let models: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
        json!({ "models": models }).to_string()
    };
    Some(Arc::new(Inventory::new([&list(disk), &list(loaded), ""], None)))
}

fn model(name: &str) -> Wanted {
    Wanted { model: ModelName::parse(name), ..Wanted::default() }
}

impl World {
    /// Servers 1, 2, 3 … with these models, all equally near.
    fn with_models(inventories: &[Option<Arc<Inventory>>]) -> (Self, Vec<BackendId>) {
        let mut w = World::new();
        w.pool.rules.max_servers = 64;
        let ids = inventories
            .iter()
            .zip(1..)
            .map(|(inventory, host)| {
                let id = w.server(host);
                w.pool.backends.iter_mut().for_each(|b| {
                    b.round_trip = None;
                    if b.id == id {
                        b.inventory = inventory.clone();
                    }
                });
                id
            })
            .collect();
        (w, ids)
    }

    fn choose(&mut self, wanted: &Wanted) -> Result<BackendId, NoPick> {
        self.pool.pick(self.now, &[], wanted).map(|pick| pick.id)
    }

    fn done(&mut self, id: BackendId) {
        self.input(Input::Finished(id, Outcome::Answered.into()));
    }

    fn down(&mut self, id: BackendId) {
        self.pass(ms(1300));
        for (checked, _) in self.checks() {
            let result = match checked == id {
                true => CheckResult::Refused("refused".to_owned()),
                false => {
                    let at = self.pool.backends.iter().find(|b| b.id == checked).expect("known");
                    healthy(at.addresses[0], 1)
                }
            };
            self.input(Input::Checked(checked, result));
        }
        self.pool.backends.iter_mut().for_each(|b| b.round_trip = None);
    }
}

#[test]
fn a_model_goes_where_it_is_loaded_then_where_it_is_at_all() {
    let disk = models(&["a", "b"], &[]);
    let loaded = models(&["a"], &["a"]);
    let other = models(&["c"], &["c"]);
    let (mut w, ids) = World::with_models(&[disk, loaded, other, None]);
    for (name, want) in [("a", 1), ("A:latest", 1), ("b", 0), ("c", 2), ("nobody", 3)] {
        let got = w.choose(&model(name)).expect(name);
        assert_eq!(got, ids[want], "{name}");
        w.done(got);
    }
    // Waiting behind many others isn't better than loading it elsewhere.
    for _ in 0..4 {
        assert_eq!(w.choose(&model("a")), Ok(ids[1]));
    }
    assert_eq!(w.choose(&model("a")), Ok(ids[0]));
    // But it can be unloaded only where it is loaded.
    let unload = Wanted { task: Task::Unload, ..model("a") };
    assert_eq!(w.choose(&unload), Ok(ids[1]));
}

#[test]
fn a_model_of_a_server_that_is_away_is_not_called_missing() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &[]), models(&["b"], &[])]);
    w.down(ids[0]);
    let Err(NoPick::Away(reason)) = w.choose(&model("a")) else { panic!("not away") };
    assert!(reason.contains("host1") && reason.contains("refused"), "{reason}");
    assert_eq!(w.choose(&model("b")), Ok(ids[1]));
    assert_eq!(w.choose(&model("never seen")), Ok(ids[1]), "Ollama's own 404");
    assert_eq!(w.choose(&model("x:cloud")), Ok(ids[1]));
}

#[test]
fn a_conversation_stays_unless_its_server_is_clearly_busier() {
    let both = || models(&["a"], &["a"]);
    let (mut w, ids) = World::with_models(&[both(), both()]);
    let talk = |n| Wanted { conversation: Some(n), ..model("a") };
    assert_eq!(w.choose(&talk(1)), Ok(ids[0]));
    assert_eq!(w.choose(&talk(2)), Ok(ids[1]));
    w.done(ids[0]);
    w.done(ids[1]);
    for _ in 0..3 {
        assert_eq!(w.choose(&talk(2)), Ok(ids[1]));
        w.done(ids[1]);
    }
    w.choose(&talk(2)).expect("picked");
    w.choose(&talk(2)).expect("picked");
    assert_eq!(w.choose(&talk(2)), Ok(ids[0]), "two ahead there, none here");
    // Affinity never outweighs a dead server.
    w.down(ids[0]);
    assert_eq!(w.choose(&talk(1)), Ok(ids[1]));
}

#[test]
fn faster_servers_get_more_and_failing_ones_none() {
    let both = || models(&["a"], &["a"]);
    let (mut w, ids) = World::with_models(&[both(), both()]);
    let name = ModelName::parse("a").expect("name");
    for (id, speed) in [(ids[0], 20.0), (ids[1], 100.0)] {
        let _ = w.pool.pick(w.now, &[], &Wanted::default());
        let speed = Some((name.clone(), speed));
        w.input(Input::Finished(id, Report { speed, ..Outcome::Answered.into() }));
    }
    let mut counts = [0; 2];
    for _ in 0..12 {
        let id = w.choose(&model("a")).expect("picked");
        counts[usize::from(id == ids[1])] += 1;
    }
    assert!((1..=2).contains(&counts[0]), "{counts:?} is not about 20 : 100");
    for _ in 0..12 {
        w.done(ids[0]);
        w.done(ids[1]);
    }
    // Failing fast keeps a server idle, but must not attract the traffic.
    w.choose(&model("a")).expect("picked");
    w.input(Input::Finished(ids[1], Outcome::Failed.into()));
    for _ in 0..5 {
        assert_eq!(w.choose(&model("a")), Ok(ids[0]));
    }
}

#[test]
fn headers_pins_bans_and_preferences_are_kept() {
    let all = || models(&["a", "b"], &[]);
    let (mut w, ids) = World::with_models(&[all(), all(), all()]);
    let name = |text: &str| ModelName::parse(text).expect("name");
    w.pool.rules.pins = vec![(name("a"), "host3".to_owned())];
    w.pool.rules.bans = vec![(name("b"), "host1".to_owned()), (name("b"), "10.0.0.2".to_owned())];
    assert_eq!(w.choose(&model("a")), Ok(ids[2]));
    assert_eq!(w.choose(&model("b")), Ok(ids[2]));
    let named = Wanted { server: Some("HOST2".to_owned()), ..model("a") };
    assert_eq!(w.choose(&named), Ok(ids[1]));
    let unknown = Wanted { server: Some("nobody".to_owned()), ..model("a") };
    assert!(matches!(w.choose(&unknown), Err(NoPick::Away(_))));
    w.down(ids[2]);
    assert!(w.choose(&model("a")).is_ok(), "a pin holds while its server is up");
    assert!(matches!(w.choose(&model("b")), Err(NoPick::Away(_))), "a ban always holds");
    w.pool.rules.preferred = vec!["host2".to_owned()];
    for _ in 0..5 {
        assert_eq!(w.choose(&model("c")), Ok(ids[1]));
    }
}

#[test]
fn builds_stay_together_and_pulls_go_where_there_is_room() {
    let room = |bytes| Some(Arc::new(Inventory::new(["", "", ""], Some(bytes))));
    let (mut w, ids) = World::with_models(&[room(1), room(9), room(5)]);
    let pull = Wanted { task: Task::Pull, ..model("new") };
    assert_eq!(w.choose(&pull), Ok(ids[1]));
    let build =
        |host| Wanted { task: Task::Build, client: Some(address(host).ip()), ..Wanted::default() };
    assert_eq!(w.choose(&build(50)), Ok(ids[1]));
    for backend in &mut w.pool.backends {
        backend.inventory = room(if backend.id == ids[0] { 100 } else { 1 });
    }
    assert_eq!(w.choose(&build(50)), Ok(ids[1]), "its blobs are there");
    assert_eq!(w.choose(&build(51)), Ok(ids[0]));
}

#[test]
fn full_servers_are_left_alone_and_busy_answers_teach_the_limit() {
    let (mut w, ids) = World::with_models(&[None, None]);
    w.pool.rules.max_in_flight = 1;
    assert!(w.choose(&model("a")).is_ok() && w.choose(&model("a")).is_ok());
    assert_eq!(w.choose(&model("a")), Err(NoPick::Busy));
    w.done(ids[1]);
    assert_eq!(w.choose(&model("a")), Ok(ids[1]));
    w.pool.rules.max_in_flight = 0;
    let only = |ids: &[BackendId]| ids[1];
    for _ in 0..2 {
        let _ = w.pool.pick(w.now, &[only(&[ids[1], ids[0]])], &Wanted::default());
    }
    w.input(Input::Finished(ids[1], Outcome::Overloaded.into()));
    let to_second = w.pool.pick(w.now, &[ids[0]], &Wanted::default());
    assert_eq!(to_second, Err(NoPick::Busy), "it refused the third, so it takes two");
    w.now += Duration::from_secs(61);
    w.input(Input::Tick);
    w.checks();
    assert!(w.pool.pick(w.now, &[ids[0]], &Wanted::default()).is_ok(), "forgotten after a minute");
}

#[test]
fn a_busy_answer_to_the_only_request_teaches_no_limit() {
    let mut w = World::new();
    let id = w.server(1);
    assert_eq!(w.pick(), Some(id));
    w.input(Input::Finished(id, Outcome::Overloaded.into()));
    w.pass(COOL_DOWN);
    assert_eq!((w.pick(), w.pick()), (Some(id), Some(id)), "whatever kept it busy wasn't ours");
}

#[test]
fn random_routing_keeps_its_promises() {
    for seed in 1..300u64 {
        let mut random = seed;
        let mut next = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
        let inventories: Vec<_> = (0..2 + next(6))
            .map(|_| {
                let disk: Vec<&str> = NAMES.iter().copied().filter(|_| next(2) == 0).collect();
                let loaded: Vec<&str> = disk.iter().copied().filter(|_| next(3) == 0).collect();
                if next(5) == 0 { None } else { models(&disk, &loaded) }
            })
            .collect();
        let (mut w, ids) = World::with_models(&inventories);
        let mut picked = vec![0u32; ids.len()];
        for _ in 0..100 {
            let name = NAMES[next(5) as usize];
            let wanted = Wanted { conversation: Some(next(4)), ..model(name) };
            let id = w.choose(&wanted);
            let at = ids.iter().position(|known| Ok(*known) == id).unwrap_or_else(|| {
                panic!("seed {seed}: nothing picked for {name} although all are up")
            });
            picked[at] += 1;
            let has = |i: &Option<Arc<Inventory>>| {
                i.as_ref().is_some_and(|i| i.has(wanted.model.as_ref().expect("model")))
            };
            assert!(
                has(&inventories[at]) || !inventories.iter().any(has),
                "seed {seed}: {name} went to a server without it although another has it"
            );
            if next(3) > 0 {
                w.done(ids[at]);
                picked[at] -= 1;
            }
        }
        let total: u32 = picked.iter().sum();
        assert_eq!(w.pool.in_flight(), total, "seed {seed}");
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
    };
    w.pool.recall(w.now, vec![known("desk", 1), known("gone", 2)]);
    assert!(w.pool.expects_backend(w.now));
    w.pass(ms(0));
    for (id, target) in w.checks() {
        let result = match target == Target::Address(address(1)) {
            true => healthy(address(1), 1),
            false => CheckResult::Silent("no answer".to_owned()),
        };
        w.input(Input::Checked(id, result));
    }
    assert_eq!(w.pick(), Some(BackendId(0)));
    assert_eq!(w.pool.memorable(), [known("desk", 1)]);
    for _ in 0..70 {
        w.pass(Duration::from_secs(1));
        for (id, target) in w.checks() {
            let result = match target == Target::Address(address(1)) {
                true => healthy(address(1), 1),
                false => CheckResult::Silent("no answer".to_owned()),
            };
            w.input(Input::Checked(id, result));
        }
    }
    assert_eq!(w.pool.len(), 1);
}

#[test]
fn without_a_choice_there_is_a_standing_offer() {
    let mut w = World::new();
    assert_eq!(w.pool.sole(w.now, false), None);
    let id = w.server(1);
    assert_eq!(w.pool.sole(w.now, false).map(|pick| pick.id), Some(id));
    assert_eq!(w.pool.sole(w.now, true), None, "nothing local");
    // Trouble ends it until it has passed.
    w.input(Input::Noted(id, Outcome::Failed.into()));
    assert_eq!(w.pool.sole(w.now, false), None);
    w.input(Input::Noted(id, Outcome::Answered.into()));
    assert!(w.pool.sole(w.now, false).is_some());
    // Those who had it are counted once it is gone.
    w.pool.adopt(id, 3);
    w.input(Input::Finished(id, Outcome::Answered.into()));
    assert_eq!(w.pool.in_flight(), 2);
    w.input(Input::Noted(id, Outcome::Overloaded.into()));
    assert!(w.pool.pick(w.now, &[], &Wanted::default()) == Err(NoPick::Busy), "it took two");
    w.input(sighting(2, 2, 1));
    assert_eq!(w.pool.sole(w.now, false), None, "a second one is a choice");
}

#[test]
fn a_change_that_went_through_us_is_not_answered_from_before_it() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &[]), models(&["b"], &[])]);
    w.pool.rules.inventories = true;
    w.pass(ms(1300));
    assert_eq!(w.checks().len(), 2, "checks are under way");
    w.choose(&model("a")).expect("picked");
    w.now += ms(1);
    let changed = Report { changed_models: true, ..Outcome::Answered.into() };
    w.input(Input::Finished(ids[0], changed));
    assert!(w.pool.has_stale_inventory());
    // What it has is unknown now, so a new model may be there.
    assert_eq!(w.choose(&model("new")), Ok(ids[0]));
    let with = |inventory| match healthy(address(1), 1) {
        CheckResult::Healthy { address, round_trip, version, name, identity, open, .. } => {
            CheckResult::Healthy { address, round_trip, version, name, identity, open, inventory }
        }
        other => other,
    };
    // The answer to a question from before the change doesn't count; another one follows at once.
    w.input(Input::Checked(ids[0], with(models(&["a"], &[]))));
    assert!(w.pool.has_stale_inventory());
    let again = w.checks();
    assert_eq!(again.first().map(|(id, _)| *id), Some(ids[0]));
    w.input(Input::Checked(ids[0], with(models(&["a", "new"], &[]))));
    assert!(!w.pool.has_stale_inventory());
    assert_eq!(w.choose(&model("new")), Ok(ids[0]));
}

#[test]
fn an_owner_that_just_failed_is_away_and_not_without_the_model() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &[]), models(&["b"], &[])]);
    assert_eq!(w.choose(&model("a")), Ok(ids[0]));
    w.input(Input::Finished(ids[0], Outcome::Failed.into()));
    let again = w.pool.pick(w.now, &[ids[0]], &model("a"));
    assert!(matches!(again, Err(NoPick::Away(_))), "{again:?}: the other would say 404");
}

#[test]
fn a_create_goes_where_its_base_is_and_an_unload_where_it_was_just_used() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &["a"]), models(&["a", "b"], &[])]);
    let create = Wanted { task: Task::Build, ..model("b") };
    assert_eq!(w.choose(&create), Ok(ids[1]));
    let unload = Wanted { task: Task::Unload, ..model("a") };
    assert_eq!(w.choose(&unload), Ok(ids[0]));
    // Faster than anyone asks: unloaded here, loaded there.
    for (id, is_loaded) in [(ids[1], true), (ids[1], false), (ids[0], false), (ids[1], true)] {
        let loaded = ModelName::parse("a").map(|name| (name, is_loaded));
        let _ = w.pool.pick(w.now, &[], &Wanted::default());
        w.input(Input::Finished(id, Report { loaded, ..Outcome::Answered.into() }));
    }
    assert!(w.pool.has_stale_inventory());
    assert_eq!(w.choose(&unload), Ok(ids[1]));
}

#[test]
fn a_conversation_stays_where_the_news_of_its_first_turn_is_not_in_yet() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &["a"]), models(&["a"], &[])]);
    let turn = Wanted { conversation: Some(1), ..model("a") };
    assert_eq!(w.pool.pick(w.now, &[ids[0]], &turn).map(|pick| pick.id), Ok(ids[1]));
    let again = w.pool.pick(w.now, &[], &turn).map(|pick| pick.id);
    assert_eq!(again, Ok(ids[1]), "the first turn's end is not told yet");
    for _ in 0..2 {
        let loaded = ModelName::parse("a").map(|name| (name, true));
        w.input(Input::Finished(ids[1], Report { loaded, ..Outcome::Answered.into() }));
    }
    assert_eq!(w.choose(&turn), Ok(ids[1]), "its inventory is not in yet");
}

#[test]
fn an_address_that_was_only_announced_gets_no_request() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    w.checks();
    w.input(Input::Checked(id, CheckResult::Refused("restarting".to_owned())));
    // Somebody who has heard its announcements repeats one while it is down.
    w.input(sighting(9, 1, 1));
    assert_eq!(w.checks(), [(id, Target::Address(address(9)))]);
    w.input(Input::Checked(id, CheckResult::Refused("refused".to_owned())));
    w.pass(ms(2000));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.input(Input::Checked(id, healthy(address(1), 1)));
    let in_use = |w: &mut World| w.pool.pick(w.now, &[], &Wanted::default()).map(|p| p.address);
    assert_eq!(in_use(&mut w), Ok(address(1)));
    // Its own address has a hiccup: the other one may be tried, but by a check only.
    w.pass(ms(1300));
    w.checks();
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    assert_eq!(w.checks(), [(id, Target::Address(address(9)))]);
    assert!(in_use(&mut w).is_err(), "nobody knows who is at {}", address(9));
    assert_eq!(w.pool.sole(w.now, false), None);
    assert!(w.pool.expects_backend(w.now), "requests wait for the check");
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.input(Input::Checked(id, healthy(address(1), 1)));
    assert_eq!(in_use(&mut w), Ok(address(1)));
}

#[test]
fn a_check_of_the_old_address_says_nothing_about_the_new_one() {
    let mut w = World::new();
    let id = w.server(1);
    w.pass(ms(1300));
    w.checks();
    w.input(Input::Checked(id, CheckResult::Refused("refused".to_owned())));
    w.pass(ms(700));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    // While that is under way, it is announced where it is now.
    w.input(sighting(2, 1, 1));
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    assert_eq!(w.checks(), [(id, Target::Address(address(2)))], "at once");
    w.input(Input::Checked(id, healthy(address(2), 1)));
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
    w.input(Input::Checked(*announced, healthy(address(1), 1)));
    assert_eq!(w.pick(), Some(*announced));
    w.input(Input::Checked(*named, healthy(address(1), 1)));
    assert_eq!(w.pool.len(), 2, "somebody uses it");
    w.done(*announced);
    w.pass(ms(1300));
    for (id, _) in w.checks() {
        w.input(Input::Checked(id, healthy(address(1), 1)));
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
    assert_eq!((w.pool.len(), running.len()), (4, MAX_VERIFICATIONS), "the pool is full");
    // All of them stay silent, and each is being asked again.
    for _ in 0..12 {
        let (id, _) = running.remove(0);
        w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
        w.pass(ms(2000));
        running.extend(w.checks());
        assert_eq!(running.len(), MAX_VERIFICATIONS);
    }
    // A newcomer is let in nevertheless, and asked as soon as one of them has reported.
    w.input(sighting(5, 5, 1));
    assert!(w.pool.backends.iter().any(|b| b.addresses == [address(5)]));
    assert_eq!(w.checks(), [], "three are under way, one of them for nobody");
    let (id, _) = running.remove(0);
    w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
    let [(id, target)] = &w.checks()[..] else { panic!("one check") };
    assert_eq!(*target, Target::Address(address(5)));
    w.input(Input::Checked(*id, healthy(address(5), 1)));
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
        w.input(Input::Checked(id, CheckResult::Silent("timed out".to_owned())));
        assert_eq!(w.pool.ready(), left, "the second silence counts");
    }
}

#[test]
fn an_address_that_is_well_is_used_at_once_when_the_old_ones_fail() {
    let mut w = World::new();
    let id = w.server(1);
    for host in [2, 3] {
        w.input(sighting(host, 1, 1));
        w.checks();
        w.input(Input::Checked(id, healthy(address(host), 1)));
        w.checks();
        w.input(Input::Checked(id, healthy(address(1), 1)));
    }
    w.pass(ms(1300));
    assert_eq!(w.checks(), [(id, Target::Address(address(1)))]);
    w.input(sighting(4, 1, 1));
    w.input(Input::Checked(id, CheckResult::Refused("gone".to_owned())));
    // It has three places left; the one just announced is asked first and used if it is well.
    assert_eq!(w.checks(), [(id, Target::Address(address(4)))]);
    w.input(Input::Checked(id, healthy(address(4), 1)));
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
            w.input(Input::Checked(id, result));
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
        vec![Known { identity: None, name, address: address_then, is_present: true }],
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
    assert_eq!((&servers[0].health, &servers[1].health), (&HealthNow::New, &HealthNow::Ready));
    let server = &servers[1];
    assert_eq!((server.id, server.name.as_str()), (id, "host1"));
    assert_eq!((server.since, server.in_flight, server.limit), (ms(5000), 1, Some(1)));
    assert_eq!(server.rest, Some(Rest::Cooling(COOL_DOWN)));
    assert_eq!((server.round_trip, server.tally.tokens.value()), (Some(ms(1)), 7));
    for _ in 0..STRIKES {
        w.input(Input::Noted(id, Outcome::Failed.into()));
    }
    assert_eq!(w.pool.snapshot(w.now)[1].rest, Some(Rest::Ejected(FIRST_EJECTION)));
    w.input(Input::Checked(id, CheckResult::Refused("gone".to_owned())));
    let server = &w.pool.snapshot(w.now)[1];
    assert_eq!((&server.health, server.since), (&HealthNow::Down("gone".to_owned()), ms(0)));
}

#[test]
fn models_are_asked_for_while_somebody_looks() {
    let mut w = World::new();
    let wants = |w: &mut World| -> Vec<bool> {
        let of = |action: Action| match action {
            Action::Check(_, _, wants_inventory) => Some(wants_inventory),
            Action::Report(_) | Action::Remember => None,
        };
        std::mem::take(&mut w.actions).into_iter().filter_map(of).collect()
    };
    let id = w.server(1);
    assert!(w.pool.lacks_inventory());
    w.input(Input::Watched);
    assert_eq!(wants(&mut w), [true], "at once");
    w.input(Input::Checked(id, healthy(address(1), 1)));
    w.input(Input::Watched);
    assert_eq!(wants(&mut w), [false; 0], "the second look asks for nothing by itself");
    w.pass(ms(60_000));
    assert!(!w.pool.is_watched(w.now));
    assert_eq!(wants(&mut w), [false], "nobody looks any more");
}

/// A discovered server that lets us do this.
fn open_server(w: &mut World, host: u8, open: Option<Permission>) -> BackendId {
    let id = w.server(host);
    w.pool.backends.iter_mut().find(|b| b.id == id).expect("there").open = open;
    id
}

#[test]
fn what_a_server_does_not_allow_goes_to_one_that_does() {
    let mut w = World::new();
    let [closed, pulls, all] = [Permission::Use, Permission::Pull, Permission::Manage]
        .map(|open| open_server(&mut w, 1 + open as u8, Some(open)));
    let chosen = |w: &mut World, task, needs| {
        let wanted = Wanted { task, needs, ..Wanted::default() };
        let pick = w.pool.pick(w.now, &[], &wanted).expect("picked");
        w.input(Input::Finished(pick.id, Outcome::Answered.into()));
        pick.id
    };
    for _ in 0..3 {
        assert_eq!(chosen(&mut w, Task::Build, Permission::Manage), all);
        assert_eq!(chosen(&mut w, Task::Pull, Permission::Manage), all);
        assert_ne!(chosen(&mut w, Task::Pull, Permission::Pull), closed);
        assert_eq!(chosen(&mut w, Task::Use, Permission::Use), closed, "the nearest");
    }
    // Where none allows it, one of them has to say so.
    let wanted = Wanted { task: Task::Build, needs: Permission::Manage, ..Wanted::default() };
    assert!(
        w.pool.pick(w.now, &[all], &wanted).is_ok_and(|pick| [closed, pulls].contains(&pick.id))
    );
}

#[test]
fn who_does_not_say_what_it_allows_is_judged_by_its_announcement() {
    let mut w = World::new();
    let silent = open_server(&mut w, 1, None);
    let announces = open_server(&mut w, 2, None);
    w.pool.backends.iter_mut().find(|b| b.id == announces).expect("there").management_open = true;
    let wanted = Wanted { task: Task::Pull, needs: Permission::Manage, ..Wanted::default() };
    assert_eq!(w.pool.pick(w.now, &[], &wanted).expect("picked").id, announces);
    assert_eq!(w.pool.pick(w.now, &[announces], &wanted).expect("picked").id, silent);
}
