//! Which server gets a request: scenarios over the pure pool.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::access::permissions::Permission;
use crate::config::ServerName;
use crate::manager::pool::claims::IdentityConflict;
use crate::manager::pool::load::COOL_DOWN;
use crate::manager::pool::models::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::manager::pool::tests::{World, address, healthy, ms, sighting, with_inventory};
use crate::manager::pool::{Input, Outcome, Report, Transition};
use crate::ollama::inventory::Inventory;
use crate::upstream::CheckResult;

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
    pub(super) fn with_models(inventories: &[Option<Arc<Inventory>>]) -> (Self, Vec<BackendId>) {
        let mut w = World::new();
        w.pool.rules.max_servers = 64;
        let ids = inventories
            .iter()
            .zip(1..)
            .map(|(inventory, host)| {
                let id = w.server(host);
                w.pool.backends.iter_mut().for_each(|b| {
                    b.health.round_trip = None;
                    if b.id == id {
                        b.models.inventory = inventory.clone();
                    }
                });
                id
            })
            .collect();
        (w, ids)
    }

    pub(super) fn choose(&mut self, wanted: &Wanted) -> Result<BackendId, NoPick> {
        self.pool.pick(self.now, &[], wanted).map(|pick| pick.id)
    }
}

#[test]
fn the_lan_gets_the_local_ollama_alone_whatever_its_check_said() {
    let mut w = World::new();
    w.pool.add_local(w.now, ServerName { host: "127.0.0.1".to_owned(), port: 11434 });
    w.pass(ms(0));
    w.checked(BackendId(0), healthy(address(1), 1));
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
    w.checked(BackendId(0), CheckResult::Refused("refused".to_owned()));
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
    assert!(w.reports().iter().any(|r| matches!(r, Transition::OutlierEjected { .. })));
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
    let Err(NoPick::OwnerAway(reason)) = w.choose(&model("a")) else { panic!("not away") };
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

/// Where a request goes, to which the servers in `broken` answer with an error.
fn ask(w: &mut World, wanted: &Wanted, broken: &[BackendId]) -> BackendId {
    let id = w.choose(wanted).expect("picked");
    let model = wanted.model.clone();
    let report = match broken.contains(&id) {
        true => Report {
            erred: model.map(|model| (model, wanted.conversation)),
            ..Outcome::Erred.into()
        },
        false => Report { loaded: model.map(|model| (model, true)), ..Outcome::Answered.into() },
    };
    w.input(Input::Finished(id, report));
    id
}

#[test]
fn errors_attract_no_requests_for_that_model() {
    let both = || models(&["a", "b"], &["a", "b"]);
    // The other one is as good, or has to load the model first.
    for other in [both(), models(&["a", "b"], &[])] {
        let (mut w, ids) = World::with_models(&[both(), other]);
        w.pool.rules.preferred = vec!["host1".to_owned()];
        let asks = |w: &mut World, name: &str, broken: &[BackendId]| {
            (0..20).filter(|_| ask(w, &model(name), broken) == ids[0]).count()
        };
        assert_eq!(asks(&mut w, "a", &ids[..1]), 3);
        assert!(matches!(
            &w.reports()[..],
            [Transition::OutlierEjected { model: Some(_), pause: FIRST_PAUSE, .. }]
        ));
        assert_eq!(asks(&mut w, "b", &[]), 20, "other models work there");
        // It is tried again, less and less often, and used again once that succeeds.
        let mut tries = 0;
        for _ in 0..600 {
            w.now += Duration::from_secs(1);
            tries += usize::from(ask(&mut w, &model("a"), &ids[..1]) == ids[0]);
        }
        assert!((4..=6).contains(&tries), "{tries} in ten minutes");
        w.now += LONGEST_PAUSE;
        assert_eq!(asks(&mut w, "a", &[]), 20);
    }
}

#[test]
fn errors_cost_nothing_where_no_server_does_better() {
    let has = || models(&["a"], &["a"]);
    let (mut w, ids) = World::with_models(&[has(), has()]);
    let first = (0..20).filter(|_| ask(&mut w, &model("a"), &ids) == ids[0]).count();
    assert!((3..=17).contains(&first), "{first} of 20");
    let (mut w, ids) = World::with_models(&[has(), models(&["b"], &[])]);
    for _ in 0..20 {
        assert_eq!(ask(&mut w, &model("a"), &ids), ids[0], "the only one that has it");
    }
    // It can be unloaded only where it is loaded.
    let (mut w, ids) = World::with_models(&[has(), models(&["a"], &[])]);
    for _ in 0..20 {
        ask(&mut w, &model("a"), &ids[..1]);
    }
    w.pool.backends[1].models.inventory = models(&["a"], &[]);
    let unload = Wanted { task: Task::Unload, ..model("a") };
    assert_eq!(w.choose(&unload), Ok(ids[0]));
}

#[test]
fn a_busy_server_is_waited_for_where_the_other_one_is_broken() {
    let has = || models(&["a"], &["a"]);
    let (mut w, ids) = World::with_models(&[has(), has()]);
    w.pool.rules.preferred = vec!["host1".to_owned()];
    w.pool.rules.max_in_flight = 1;
    for _ in 0..3 {
        assert_eq!(ask(&mut w, &model("a"), &ids[..1]), ids[0]);
    }
    assert_eq!(w.choose(&model("a")), Ok(ids[1]));
    assert_eq!(w.choose(&model("a")), Err(NoPick::Busy));
    w.down(ids[1]);
    assert_eq!(w.choose(&model("a")), Ok(ids[0]), "better than none");
}

#[test]
fn errors_are_in_a_row_only_without_an_answer_between_them() {
    let has = || models(&["a"], &[]);
    for stays_loaded in [true, false] {
        let (mut w, ids) = World::with_models(&[has(), has()]);
        w.pool.rules.preferred = vec!["host1".to_owned()];
        for _ in 0..9 {
            assert_eq!(ask(&mut w, &model("a"), &ids[..1]), ids[0]);
            let loaded = ModelName::parse("a").map(|model| (model, stays_loaded));
            w.input(Input::Noted(ids[0], Report { loaded, ..Outcome::Answered.into() }));
        }
        assert!(w.reports().is_empty(), "it isn't passed over");
    }
}

#[test]
fn errors_of_one_moment_are_one_and_a_restart_ends_them() {
    let has = || models(&["a"], &["a"]);
    let (mut w, ids) = World::with_models(&[has(), has()]);
    w.pool.rules.preferred = vec!["host1".to_owned()];
    let break_all = |w: &mut World| {
        let erred = ModelName::parse("a").map(|model| (model, None));
        for _ in 0..20 {
            w.input(Input::Noted(ids[0], Report { erred: erred.clone(), ..Outcome::Erred.into() }));
        }
        assert_eq!(ask(w, &model("a"), &[]), ids[1]);
    };
    break_all(&mut w);
    w.now += FIRST_PAUSE;
    assert_eq!(ask(&mut w, &model("a"), &[]), ids[0]);
    break_all(&mut w);
    w.down(ids[0]);
    w.pass(ms(2000));
    w.checks();
    w.checked(ids[0], healthy(address(1), 1));
    assert_eq!(ask(&mut w, &model("a"), &[]), ids[0]);
}

#[test]
fn a_conversation_that_got_an_error_goes_elsewhere_next() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &["a"]), models(&["a"], &[])]);
    let talk = |n| Wanted { conversation: Some(n), ..model("a") };
    assert_eq!(ask(&mut w, &talk(1), &ids[..1]), ids[0]);
    w.now += Duration::from_secs(3600);
    for _ in 0..3 {
        assert_eq!(ask(&mut w, &talk(1), &[]), ids[1]);
    }
    // Its one error tells nothing of others; and where all err, none is worse.
    let (mut w, ids) = World::with_models(&[models(&["a"], &["a"]), models(&["a"], &[])]);
    assert_eq!(ask(&mut w, &talk(1), &ids), ids[0]);
    assert_eq!(ask(&mut w, &talk(2), &[]), ids[0]);
    assert_eq!(ask(&mut w, &talk(1), &ids), ids[1]);
    assert_eq!(ask(&mut w, &talk(1), &ids), ids[0]);
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
fn a_ban_where_the_model_is_sends_the_request_nowhere_else() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &[]), models(&["b"], &[])]);
    w.pool.rules.bans = vec![(ModelName::parse("a").expect("name"), "host1".to_owned())];
    let refused = w.choose(&model("a"));
    assert_eq!(refused, Err(NoPick::Away("no server that is up may run \"a:latest\"".to_owned())));
    assert_eq!(w.choose(&Wanted { task: Task::Pull, ..model("a") }), Ok(ids[1]));
    assert!(w.choose(&model("c")).is_ok(), "nobody has it");
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
        backend.models.inventory = room(if backend.id == ids[0] { 100 } else { 1 });
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
    let again = w.pool.pick(w.now, &[ids[0]], &Wanted::default());
    assert!(again.is_ok(), "one more after a minute");
    let to_second = w.pool.pick(w.now, &[ids[0]], &Wanted::default());
    assert_eq!(to_second, Err(NoPick::Busy), "but no more than one");
    w.done(ids[1]);
    w.now += Duration::from_secs(61);
    w.input(Input::Tick);
    w.checks();
    for _ in 0..3 {
        let more = w.pool.pick(w.now, &[ids[0]], &Wanted::default());
        assert!(more.is_ok(), "forgotten a minute after it wasn't reached");
    }
}

#[test]
fn a_free_server_comes_before_a_full_one_that_has_the_model_loaded() {
    let (mut w, ids) =
        World::with_models(&[models(&["a"], &["a"]), models(&["a"], &[]), models(&["b"], &[])]);
    w.pool.rules.max_in_flight = 1;
    assert_eq!(w.choose(&model("a")), Ok(ids[0]));
    assert_eq!(w.choose(&model("a")), Ok(ids[1]));
    assert_eq!(w.choose(&model("a")), Err(NoPick::Busy), "the third doesn't have it");
    assert_eq!(w.pool.able_ids(w.now, &[], &model("a")), ids[..2]);
}

#[test]
fn only_an_overload_of_what_counts_teaches_a_limit() {
    for (outcome, is_exempt, want) in [
        (Outcome::Overloaded, false, Err(NoPick::Busy)),
        (Outcome::Overloaded, true, Ok(())),
        (Outcome::TurnedAway, false, Ok(())),
        (Outcome::Declined, false, Ok(())),
    ] {
        let mut w = World::new();
        let id = w.server(1);
        let other = Wanted { is_exempt, ..Wanted::default() };
        let under_way = w.pool.pick(w.now, &[], &other).expect("free");
        w.pick();
        w.input(Input::Finished(id, outcome.into()));
        let next = w.pool.pick(w.now, &[], &Wanted::default());
        assert_eq!(next.map(drop), want, "{outcome:?} {is_exempt}");
        w.input(Input::Finished(id, under_way.report(Outcome::Answered)));
    }
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
fn without_a_choice_there_is_a_fast_path() {
    let mut w = World::new();
    assert_eq!(w.pool.sole(w.now, false), None);
    let id = w.server(1);
    assert_eq!(w.pool.sole(w.now, false).map(|pick| pick.id), Some(id));
    assert_eq!(w.pool.sole(w.now, true), None, "nothing local");
    // What is only announced is no choice, nor is what failed its checks; what was well is.
    w.input(sighting(2, 2, 1));
    assert_eq!(w.pool.sole(w.now, false).map(|pick| pick.id), Some(id));
    let (stranger, _) = w.checks().pop().expect("a check");
    w.checked(stranger, CheckResult::Silent("no answer".to_owned()));
    assert_eq!(w.pool.sole(w.now, false).map(|pick| pick.id), Some(id));
    w.pass(ms(600));
    w.checks();
    w.checked(stranger, healthy(address(2), 1));
    assert_eq!(w.pool.sole(w.now, false), None);
    w.pool.backends.retain(|b| b.id == id);
    // Trouble ends it until it has passed.
    w.input(Input::Noted(id, Outcome::Failed.into()));
    assert_eq!(w.pool.sole(w.now, false), None);
    w.input(Input::Noted(id, Outcome::Answered.into()));
    assert!(w.pool.sole(w.now, false).is_some());
    // Those who had it are counted once it is gone.
    w.pool.transfer(id, 4, 1);
    w.input(Input::Finished(id, Outcome::Answered.into()));
    assert_eq!(w.pool.in_flight(), 3);
    w.input(Input::Noted(id, Outcome::Overloaded.into()));
    assert!(w.pool.pick(w.now, &[], &Wanted::default()) == Err(NoPick::Busy), "it took two");
    let exempt = Wanted { is_exempt: true, ..Wanted::default() };
    let pick = w.pool.pick(w.now, &[], &exempt).expect("no limit holds for it");
    w.input(Input::Finished(id, pick.report(Outcome::Answered)));
    assert!(w.pool.pick(w.now, &[], &Wanted::default()) == Err(NoPick::Busy), "as before");
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
    let with = |told| with_inventory(healthy(address(1), 1), told);
    // The answer to a question from before the change doesn't count; another one follows at once.
    w.checked(ids[0], with(models(&["a"], &[])));
    assert!(w.pool.has_stale_inventory());
    let again = w.checks();
    assert_eq!(again.first().map(|(id, _)| *id), Some(ids[0]));
    w.checked(ids[0], with(models(&["a", "new"], &[])));
    assert!(!w.pool.has_stale_inventory());
    assert_eq!(w.choose(&model("new")), Ok(ids[0]));
}

#[test]
fn the_first_check_of_a_named_server_is_waited_for_by_who_needs_its_model() {
    let ids = [BackendId(0), BackendId(1)];
    let has = |host, told| with_inventory(healthy(address(host), 1), told);
    // What it hasn't told once it was asked, it won't soon: then the other one gives its own answer.
    let refused = CheckResult::Refused("connection refused".to_owned());
    for (second, chosen) in [(has(2, models(&["b"], &[])), ids[1]), (refused, ids[0])] {
        let mut w = World::new();
        w.pool.rules.inventories = true;
        for host in ["one", "two"] {
            w.pool.add_named(w.now, ServerName { host: host.to_owned(), port: 11435 });
        }
        w.pass(ms(0));
        w.checks();
        w.checked(ids[0], has(1, models(&["a"], &[])));
        assert_eq!(w.choose(&model("a")), Ok(ids[0]), "nothing to wait for");
        let wait = w.choose(&model("b"));
        assert!(matches!(&wait, Err(NoPick::NoneUp(why)) if why.contains("checked")), "{wait:?}");
        assert!(w.pool.expects_backend(w.now));
        let again = w.pool.pick(w.now, &[BackendId(9)], &model("b")).map(|pick| pick.id);
        assert_eq!(again, Ok(ids[0]), "one that was elsewhere doesn't wait");
        w.checked(ids[1], second);
        assert_eq!(w.choose(&model("b")), Ok(chosen));
    }
}

#[test]
fn an_owner_that_just_failed_is_away_and_not_without_the_model() {
    let (mut w, ids) = World::with_models(&[models(&["a"], &[]), models(&["b"], &[])]);
    assert_eq!(w.choose(&model("a")), Ok(ids[0]));
    w.input(Input::Finished(ids[0], Outcome::Failed.into()));
    let again = w.pool.pick(w.now, &[ids[0]], &model("a"));
    assert!(matches!(again, Err(NoPick::OwnerAway(_))), "{again:?}: the other would say 404");
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

/// A discovered server that lets us do this.
fn open_server(w: &mut World, host: u8, open: Option<Permission>) -> BackendId {
    let id = w.server(host);
    w.pool.backends.iter_mut().find(|b| b.id == id).expect("there").claims.permission = open;
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
    w.pool.backends.iter_mut().find(|b| b.id == announces).expect("there").claims.management_open =
        true;
    let wanted = Wanted { task: Task::Pull, needs: Permission::Manage, ..Wanted::default() };
    assert_eq!(w.pool.pick(w.now, &[], &wanted).expect("picked").id, announces);
    assert_eq!(w.pool.pick(w.now, &[announces], &wanted).expect("picked").id, silent);
}

/// Servers with models, which then answer nothing any more.
fn all_silent(inventories: &[Option<Arc<Inventory>>]) -> (World, Vec<BackendId>) {
    let (mut w, ids) = World::with_models(inventories);
    for b in &mut w.pool.backends {
        b.health.round_trip = Some(ms(1));
    }
    for _ in 0..8 {
        w.pass(ms(1300));
        for (id, _) in w.checks() {
            w.checked(id, CheckResult::Silent("no answer in time".to_owned()));
        }
    }
    assert_eq!(w.pool.ready(), 0);
    w.reports();
    (w, ids)
}

#[test]
fn one_that_is_down_is_tried_where_nobody_else_could_do_it() {
    let (mut w, ids) = all_silent(&[models(&["a"], &[]), models(&["b"], &[])]);
    let trial = |name: &str| Wanted { may_try: true, ..model(name) };
    assert!(matches!(w.choose(&model("a")), Err(NoPick::NoneUp(_))), "not on the LAN's behalf");
    assert_eq!(w.choose(&trial("b")), Ok(ids[1]));
    // One at a time; the others wait for what it finds.
    assert!(matches!(w.choose(&trial("b")), Err(NoPick::NoneUp(_))));
    assert!(w.pool.expects_backend(w.now));
    w.done(ids[1]);
    let pick = w.pool.pick(w.now, &[], &trial("b")).expect("tried again");
    assert!(pick.is_trial && !pick.is_sole);
    // After a failure nobody tries for a moment, and it doesn't count against the server.
    for _ in 0..10 {
        w.input(Input::Finished(ids[1], Outcome::Unreachable.into()));
        assert!(w.choose(&trial("b")).is_err());
        w.pass(COOL_DOWN);
        w.checks();
        assert_eq!(w.choose(&trial("b")), Ok(ids[1]));
    }
    assert!(w.reports().is_empty());
}

#[test]
fn the_best_is_not_waited_for_where_another_may_do() {
    let pick = |w: &mut World| w.pool.pick(w.now, &[], &model("a")).expect("one is up");
    let (mut w, _) = World::with_models(&[models(&["a"], &[]), models(&["b"], &[])]);
    assert!(pick(&mut w).is_sole, "nobody else has it");
    // The second one may have it; if it can't be reached, the first one is asked.
    let (mut w, ids) = World::with_models(&[models(&["b"], &[]), None]);
    let pick = pick(&mut w);
    assert_eq!((pick.id, pick.is_sole), (ids[1], false));
}

#[test]
fn trials_are_safe() {
    let (mut w, ids) = all_silent(&[models(&["a"], &[])]);
    let trial = Wanted { may_try: true, ..model("a") };
    let can = |w: &mut World, wanted: &Wanted| {
        let picked = w.choose(wanted);
        if picked.is_ok() {
            w.done(ids[0]);
        }
        picked.is_ok()
    };
    assert!(can(&mut w, &trial));
    assert!(w.pool.pick(w.now, &ids, &trial).is_err(), "tried before");
    w.pool.rules.bans = vec![(ModelName::parse("a").expect("a name"), "10.0.0.1".to_owned())];
    assert!(!can(&mut w, &trial), "banned");
    w.pool.rules.bans.clear();
    w.pool.backends[0].claims.conflict =
        Some(IdentityConflict { is_quarantined: true, ..IdentityConflict::default() });
    assert!(!can(&mut w, &trial), "quarantined");
    w.pool.backends[0].claims.conflict = None;
    w.pool.backends[0].addresses.in_doubt = true;
    assert!(!can(&mut w, &trial), "announced elsewhere, unconfirmed");
    w.pool.backends[0].addresses.in_doubt = false;
    w.pool.backends[0].health.round_trip = None;
    assert!(!can(&mut w, &trial), "never well");
    w.pool.backends[0].health.round_trip = Some(ms(1));
    w.pool.backends[0].health.is_unanswered = false;
    assert!(!can(&mut w, &trial), "it said that it can't");
    w.pool.backends[0].health.is_unanswered = true;
    assert!(can(&mut w, &trial));
    w.now += TRUSTED_WHILE_DOWN;
    assert!(!can(&mut w, &trial), "its address may be somebody else's by now");
}

/// A server's models, all loaded, each with its size and the part of that on a card.
fn in_memory(models: &[(&str, u64, Option<u64>)]) -> Option<Arc<Inventory>> {
    let model = |(name, size, on_card): &(&str, u64, Option<u64>)| match on_card {
        Some(on_card) => json!({ "name": name, "size": size, "size_vram": on_card }),
        None => json!({ "name": name, "size": size }),
    };
    let list = json!({ "models": models.iter().map(model).collect::<Vec<_>>() }).to_string();
    Some(Arc::new(Inventory::new([&list, &list, ""], None)))
}

#[test]
fn a_model_wholly_on_a_card_comes_before_one_that_is_split() {
    let split = in_memory(&[("a", 100, Some(60)), ("b", 100, Some(0))]);
    let whole = in_memory(&[("a", 100, Some(100)), ("b", 100, Some(99))]);
    let (mut w, ids) = World::with_models(&[split.clone(), whole, models(&["a"], &[])]);
    for _ in 0..4 {
        assert_eq!(w.choose(&model("a")), Ok(ids[1]));
    }
    assert_eq!(w.choose(&model("a")), Ok(ids[0]), "clearly busier");
    w.done(ids[0]);
    // Where none has it wholly, it is as if none had told.
    assert_eq!(w.choose(&model("b")), Ok(ids[0]));
    // A server that doesn't say how it has the model is as good as one that has it wholly.
    let silent = in_memory(&[("a", 100, None)]);
    let (mut w, ids) = World::with_models(&[split, silent.clone()]);
    assert_eq!(w.choose(&model("a")), Ok(ids[1]));
    let whole = in_memory(&[("a", 100, Some(100))]);
    let (mut w, ids) = World::with_models(&[silent, whole]);
    assert_eq!(w.choose(&model("a")), Ok(ids[0]));
}

#[test]
fn where_no_server_has_the_model_loaded_cards_do_not_matter() {
    let other = in_memory(&[("b", 100, Some(10))]);
    let (mut w, ids) = World::with_models(&[models(&["a"], &[]), models(&["a"], &[]), other]);
    assert_eq!(w.choose(&model("a")), Ok(ids[0]));
    assert_eq!(w.choose(&model("a")), Ok(ids[1]));
}

#[test]
fn the_parts_of_a_create_follow_it_to_its_base() {
    let (mut w, ids) = World::with_models(&[models(&["x"], &[]), models(&["base"], &[])]);
    w.pool.rules.preferred = vec!["host1".to_owned()];
    let client = Some(address(50).ip());
    let part = Wanted { task: Task::Build, client, ..Wanted::default() };
    let create = Wanted { task: Task::Build, client, ..model("base") };
    assert_eq!((w.choose(&part), w.choose(&create)), (Ok(ids[0]), Ok(ids[1])));
    // It lacked the part there; done again, it has it.
    assert_eq!((w.choose(&part), w.choose(&create)), (Ok(ids[1]), Ok(ids[1])));
}
