//! Scenarios of who is who. Hosts are numbered; a server is an identity and a name at a host.

use std::net::SocketAddr;

use super::*;
use crate::manager::pool::records::{MAX_RECORDS, PROBATION};
use crate::manager::pool::tests::{World, address, ms};
use crate::manager::pool::{BackendId, Input, NoPick, Outcome, Sighting, State, Wanted};
use crate::pairing::identity::Identity;
use crate::upstream::CheckResult;

/// One server as it presents itself.
#[derive(Clone, Copy)]
struct Server {
    host: u8,
    id: u8,
    name: &'static str,
}

const DESK: Server = Server { host: 20, id: 1, name: "desk" };
const OTHER: Server = Server { host: 31, id: 2, name: "other" };
/// Another machine in desk's name.
const IMPOSTOR: Server = Server { host: 66, id: 6, name: "Desk" };

fn identity(id: u8) -> Identity {
    Identity([id; 16])
}

fn known(server: Server, is_present: bool) -> Known {
    let Server { host, id, name } = server;
    let (identity, name) = (Some(identity(id)), name.to_owned());
    Known { identity, name, address: address(host), is_present, had: None }
}

/// What it answers to a check.
fn well(server: Server) -> CheckResult {
    CheckResult::Healthy {
        address: address(server.host),
        round_trip: ms(1),
        version: "0.13.1".to_owned(),
        name: Some(server.name.to_owned()),
        identity: Some(identity(server.id)),
        open: None,
        saved: 0,
        inventory: None,
    }
}

impl World {
    fn announces(&mut self, server: Server) {
        self.input(Input::Sighted(Sighting {
            address: address(server.host),
            identity: identity(server.id),
            instance: u32::from(server.id),
            name: server.name.to_owned(),
            ollama_up: true,
            management_open: false,
        }));
    }

    /// Answers every check that is asked for, as these servers do; how many those were.
    fn answer(&mut self, servers: &[Server]) -> usize {
        let checks = self.checks();
        let count = checks.len();
        for (id, target) in checks {
            let is_asked =
                |server: &&Server| target == crate::upstream::Target::Address(address(server.host));
            let result = match servers.iter().find(is_asked) {
                Some(server) => well(*server),
                None => CheckResult::Refused("connection refused".to_owned()),
            };
            self.checked(id, result);
        }
        count
    }

    /// So much time with these servers on the LAN.
    fn live(&mut self, time: Duration, servers: &[Server]) {
        let end = self.now + time;
        while self.now < end {
            servers.iter().for_each(|server| self.announces(*server));
            self.answer(servers);
            self.pass(ms(1000));
        }
        self.answer(servers);
    }

    /// Hosts that `n` requests at once go to.
    fn hosts(&mut self, n: usize) -> Vec<u8> {
        let mut picked = Vec::new();
        for _ in 0..n {
            if let Ok(pick) = self.pool.pick(self.now, &[], &Wanted::default()) {
                picked.push((pick.id, pick.address));
            }
        }
        picked
            .iter()
            .for_each(|(id, _)| self.input(Input::Finished(*id, Outcome::Answered.into())));
        let host = |address: SocketAddr| match address {
            SocketAddr::V4(v4) => v4.ip().octets()[3],
            SocketAddr::V6(_) => 0,
        };
        let mut hosts: Vec<u8> = picked.into_iter().map(|(_, address)| host(address)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    fn conflicts(&mut self) -> Vec<(u8, bool)> {
        let of = |report| match report {
            Transition::IdentityConflict {
                address: SocketAddr::V4(v4), is_quarantined, ..
            } => Some((v4.ip().octets()[3], is_quarantined)),
            _ => None,
        };
        self.reports().into_iter().filter_map(of).collect()
    }
}

#[test]
fn another_identity_at_a_known_name_gets_nothing_while_that_one_is_well() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    assert_eq!(w.conflicts(), []);
    w.live(ms(3000), &[DESK, IMPOSTOR, OTHER]);
    assert_eq!(w.conflicts(), [(66, true)], "said once");
    assert_eq!(w.hosts(9), [20, 31]);
    assert_eq!(w.pool.ready(), 2, "it isn't listed either");
    // Nor does it get what is meant for the known one by name; by its address it does.
    let to = |server: &str| Wanted { server: Some(server.to_owned()), ..Wanted::default() };
    let asked = w.pool.pick(w.now, &[], &to("desk")).expect("desk");
    assert_eq!(asked.address, address(20));
    assert!(matches!(w.pool.pick(w.now, &[asked.id], &to("desk")), Err(NoPick::Away(_))));
    let asked = w.pool.pick(w.now, &[], &to("10.0.0.66")).expect("by address");
    assert_eq!(asked.address, address(66));
    // A request that failed on the known one doesn't go to whoever has its name.
    let [desk, other] = [20, 31].map(|host| {
        let is_there = |b: &&Backend| b.addresses.known[0] == address(host);
        w.pool.backends.iter().find(is_there).expect("a server").id
    });
    for outcome in [Outcome::Failed, Outcome::Overloaded] {
        w.input(Input::Noted(desk, outcome.into()));
        let picked = w.pool.pick(w.now, &[desk, other], &Wanted::default());
        assert!(picked.is_err(), "{outcome:?}");
    }
    // But where the known one can't be reached at all, it does, until a check says otherwise.
    w.input(Input::Noted(desk, Outcome::Unreachable.into()));
    let picked = w.pool.pick(w.now, &[desk, other], &Wanted::default()).expect("the last");
    assert_eq!(picked.address, address(66));
    w.answer(&[DESK, IMPOSTOR, OTHER]);
    assert!(w.pool.pick(w.now, &[desk, other], &Wanted::default()).is_err());
}

#[test]
fn it_is_used_once_the_known_one_is_away_and_gives_way_when_that_returns() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    w.live(ms(3000), &[]);
    w.live(ms(3000), &[IMPOSTOR]);
    assert_eq!(w.conflicts(), [(66, false)]);
    assert_eq!(w.hosts(3), [66]);
    w.live(ms(3000), &[IMPOSTOR, DESK]);
    assert_eq!(w.hosts(9), [20]);
}

#[test]
fn what_is_known_outlives_a_restart() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    let memory = w.pool.memorable(w.now);
    assert_eq!(memory, [known(DESK, true)]);
    let mut w = World::new();
    w.pool.recall(w.now, memory);
    // The impostor is faster; no request goes there before the known one was asked.
    w.announces(IMPOSTOR);
    w.input(Input::Tick);
    let checks = w.checks();
    let (late, early): (Vec<_>, Vec<_>) = checks.into_iter().partition(|(id, _)| id.0 == 0);
    assert_eq!((late.len(), early.len()), (1, 1));
    w.checked(early[0].0, well(IMPOSTOR));
    assert_eq!(w.pick(), None);
    assert!(w.pool.expects_backend(w.now), "a request waits meanwhile");
    w.checked(late[0].0, well(DESK));
    assert_eq!(w.pick(), Some(BackendId::default()));
}

#[test]
fn another_machine_at_a_known_address_is_told_and_used() {
    let mut w = World::new();
    w.pool.recall(w.now, vec![known(DESK, true)]);
    let visitor = Server { host: DESK.host, ..OTHER };
    w.live(ms(3000), &[visitor]);
    assert_eq!(w.conflicts(), [(20, false)]);
    assert_eq!(w.hosts(3), [20]);
    let conflict = w.pool.snapshot(w.now)[0].backend.claims.conflict.clone().expect("a conflict");
    assert!(conflict.reason.contains("\"desk\""), "{conflict:?}");
    // The known one is known wherever it is, and then its old address is the visitor's.
    let moved = Server { host: 50, ..DESK };
    w.live(ms(3000), &[visitor, moved]);
    assert_eq!(w.hosts(9), [20, 50]);
    assert!(w.pool.snapshot(w.now).iter().all(|server| server.backend.claims.conflict.is_none()));
    assert_eq!(w.conflicts(), []);
}

#[test]
fn a_known_server_may_move_to_where_another_was() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK, OTHER]);
    let swapped = [Server { host: OTHER.host, ..DESK }, Server { host: DESK.host, ..OTHER }];
    w.live(ms(70_000), &[]);
    w.live(ms(5000), &swapped);
    assert_eq!(w.conflicts(), []);
    assert_eq!(w.hosts(9), [20, 31]);
}

#[test]
fn of_two_that_swapped_their_names_one_is_used() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK, OTHER]);
    let swapped = [Server { name: OTHER.name, ..DESK }, Server { name: DESK.name, ..OTHER }];
    w.live(ms(5000), &swapped);
    assert_eq!(w.hosts(9).len(), 1);
    assert_eq!(w.conflicts().len(), 2);
}

#[test]
fn a_machine_set_up_anew_succeeds_its_former_self_in_an_hour() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    let anew = Server { id: 9, ..DESK };
    w.live(ms(3000), &[anew]);
    assert_eq!(w.conflicts(), [(20, false)]);
    w.live(PROBATION + ms(10_000), &[anew]);
    let claims = w.pool.snapshot(w.now)[0].backend.claims.clone();
    assert!(claims.conflict.is_none() && !claims.is_newcomer);
    assert_eq!(w.conflicts(), []);
    let mut next = World::new();
    next.pool.recall(next.now, w.pool.memorable(w.now));
    next.live(ms(3000), &[anew]);
    assert_eq!(next.conflicts(), [], "and is known after a restart");
}

#[test]
fn whoever_had_a_name_first_has_it_even_after_its_absence_was_used() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    w.live(PROBATION + PROBATION, &[IMPOSTOR]);
    assert_eq!(w.hosts(3), [66]);
    w.live(ms(3000), &[IMPOSTOR, DESK]);
    assert_eq!(w.hosts(9), [20]);
    // One that was known before under another name doesn't inherit by renaming itself either.
    let mut w = World::new();
    w.live(ms(3000), &[OTHER]);
    w.live(ms(3000), &[OTHER, DESK]);
    let renamed = Server { name: DESK.name, ..OTHER };
    w.live(ms(3000), &[renamed, DESK]);
    assert_eq!(w.hosts(9), [20]);
    w.live(PROBATION + PROBATION, &[renamed]);
    w.live(ms(3000), &[renamed, DESK]);
    assert_eq!(w.hosts(9), [20]);
}

#[test]
fn a_copied_identity_gets_nothing_beside_the_original() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    let copy = Server { host: 77, name: "copy", ..DESK };
    // Another run, or it would be a second way to the same server.
    let announce = |w: &mut World| {
        w.input(Input::Sighted(Sighting {
            address: address(copy.host),
            identity: identity(copy.id),
            instance: 999,
            name: copy.name.to_owned(),
            ollama_up: true,
            management_open: false,
        }));
    };
    for _ in 0..3 {
        announce(&mut w);
        w.live(ms(1000), &[DESK]);
        announce(&mut w);
        w.answer(&[DESK, copy]);
    }
    assert_eq!(w.conflicts(), [(77, true)]);
    assert_eq!(w.hosts(9), [20]);
}

#[test]
fn a_forged_announcement_changes_nothing_about_a_server() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK, OTHER]);
    for name in ["other", "desk", "x"] {
        // In desk's address: with another identity, and with its own and another name.
        w.announces(Server { id: 9, name, ..DESK });
        assert_eq!(
            w.pool.backends[0].claims.identity,
            Some(identity(DESK.id)),
            "before it was asked"
        );
        w.announces(Server { name, ..DESK });
        assert_eq!(w.pool.backends[0].claims.name, "desk");
        w.answer(&[DESK, OTHER]);
        assert_eq!(w.hosts(9), [20, 31]);
    }
    w.live(ms(2000), &[DESK, OTHER]);
    let desk = &w.pool.snapshot(w.now)[0];
    assert_eq!((desk.name.as_str(), desk.state), ("desk", State::Ready));
    assert_eq!(w.pool.backends[0].claims.identity, Some(identity(DESK.id)));
    assert_eq!(w.conflicts(), [(20, false)], "people are told once");
    // A flood of them doesn't become a flood of checks.
    let mut checks = 0;
    for _ in 0..1000 {
        w.now += ms(1);
        w.announces(Server { id: 9, ..DESK });
        checks += w.answer(&[DESK, OTHER]);
    }
    assert!(checks <= 6, "{checks} checks in a second");
}

#[test]
fn a_newcomer_wins_nothing_by_what_it_says() {
    use crate::manager::pool::Report;
    use crate::ollama::facts::Capabilities;
    use crate::ollama::inventory::Inventory;
    use crate::ollama::model_name::ModelName;
    use std::sync::Arc;
    let mut w = World::new();
    w.pool.recall(w.now, vec![known(DESK, true)]);
    w.live(ms(3000), &[DESK, OTHER]);
    let tags = r#"{"models":[{"name":"a:latest","model":"a:latest"}]}"#;
    let whole = r#"{"models":[{"name":"a:latest","size":9,"size_vram":9}]}"#;
    let split = r#"{"models":[{"name":"a:latest","size":9,"size_vram":1}]}"#;
    let give = |w: &mut World, at: usize, loaded: &str| {
        w.pool.backends[at].models.inventory =
            Some(Arc::new(Inventory::new([tags, loaded, ""], None)));
    };
    let model = ModelName::parse("a");
    let wanted = Wanted { model: model.clone(), ..Wanted::default() };
    give(&mut w, 0, "");
    give(&mut w, 1, tags);
    let pick = |w: &mut World| {
        let pick = w.pool.pick(w.now, &[], &wanted).expect("a server");
        w.pool.count_out(pick.id, false);
        pick.address
    };
    assert_eq!(pick(&mut w), address(20), "the newcomer says that it has the model loaded");
    give(&mut w, 0, split);
    give(&mut w, 1, whole);
    assert_eq!(pick(&mut w), address(20), "the newcomer says that it has all of it on a card");
    let told = |able: &str, context: u64| {
        let model = format!(
            r#"{{"models":[{{"name":"a:latest","capabilities":["{able}"],"context_length":{context}}}]}}"#
        );
        Some(Arc::new(Inventory::new([&model, &model, ""], None)))
    };
    let needs = |abilities, tokens| Wanted { abilities, tokens, ..wanted.clone() };
    for wanted in [needs(Capabilities::TOOLS, 0), needs(Capabilities::default(), 10_000)] {
        w.pool.backends[0].models.inventory = told("completion", 4096);
        w.pool.backends[1].models.inventory = told("tools", 32_768);
        let pick = w.pool.pick(w.now, &[], &wanted).expect("a server");
        w.pool.count_out(pick.id, false);
        assert_eq!(pick.address, address(20), "the newcomer says that it is able: {wanted:?}");
    }
    give(&mut w, 0, "");
    give(&mut w, 1, tags);
    let claim = |w: &mut World, at: usize, speed: f64| {
        let id = w.pool.backends[at].id;
        let speed = model.clone().map(|model| (model, speed));
        w.input(Input::Noted(id, Report { speed, ..Outcome::Answered.into() }));
    };
    claim(&mut w, 0, 10.0);
    claim(&mut w, 1, 1e9);
    assert_eq!(pick(&mut w), address(20), "the newcomer says that it is fast");
    // Beside one that is busy it helps, and after an hour it is one like the others.
    w.pool.transfer(w.pool.backends[0].id, 1, 0);
    assert_eq!(pick(&mut w), address(31));
    w.pool.count_out(w.pool.backends[0].id, false);
    w.live(PROBATION, &[DESK, OTHER]);
    assert_eq!(pick(&mut w), address(31));
}

#[test]
fn many_new_names_do_not_make_old_ones_forgotten() {
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    for n in 0..200u8 {
        let host = 100 + n % 100;
        let name = Box::leak(format!("fake{n}").into_boxed_str());
        let fake = Server { host, id: 50 + n, name };
        w.live(ms(2000), &[fake]);
        w.live(ms(64_000), &[]);
    }
    let memory = w.pool.memorable(w.now);
    assert!(memory.len() <= MAX_RECORDS);
    assert_eq!(memory[0], known(DESK, false));
    w.live(ms(3000), &[IMPOSTOR, DESK]);
    w.live(ms(3000), &[IMPOSTOR, DESK]);
    assert_eq!(w.hosts(9), [20]);
}

#[test]
fn two_servers_on_one_machine_may_share_its_name() {
    let mut w = World::new();
    let second = SocketAddr::from(([10, 0, 0, 20], 21435));
    w.live(ms(2000), &[DESK]);
    w.input(Input::Sighted(Sighting {
        address: second,
        identity: identity(3),
        instance: 3,
        name: "desk".to_owned(),
        ollama_up: true,
        management_open: false,
    }));
    for (id, target) in w.checks() {
        if target == crate::upstream::Target::Address(second) {
            w.checked(
                id,
                CheckResult::Healthy {
                    address: second,
                    round_trip: ms(1),
                    version: "0.13.1".to_owned(),
                    name: Some("desk".to_owned()),
                    identity: Some(identity(3)),
                    open: None,
                    saved: 0,
                    inventory: None,
                },
            );
        }
    }
    assert_eq!(w.conflicts(), []);
    assert_eq!(w.pool.ready(), 2);
}

/// The desk has moved; and another server, which may be where it was before.
fn moved() -> (World, Server, Server) {
    let nas = Server { host: DESK.host, ..OTHER };
    let desk = Server { host: 50, ..DESK };
    let mut w = World::new();
    w.live(ms(3000), &[DESK]);
    w.live(ms(5000), &[desk]);
    let known = [address(desk.host), address(DESK.host)];
    assert_eq!(w.pool.backends[0].addresses.known, known);
    (w, nas, desk)
}

#[test]
fn another_server_where_a_known_one_was_before_is_its_own() {
    let (mut w, nas, desk) = moved();
    w.live(ms(5000), &[nas, desk]);
    assert_eq!(w.hosts(9), [20, 50]);
    assert_eq!(w.pool.len(), 2);
    assert_eq!(w.conflicts(), []);
    // A bare answer, which tells no identity, is reason enough to ask who it is.
    let (mut w, ..) = moved();
    w.input(Input::LegacySighted(address(nas.host).ip()));
    w.live(ms(3000), &[desk]);
    assert_eq!(w.pool.backends[0].addresses.known.len(), 2, "nobody else is there");
    w.input(Input::LegacySighted(address(nas.host).ip()));
    w.pass(ms(1000));
    while w.answer(&[nas, desk]) > 0 {}
    assert_eq!(w.pool.backends[0].addresses.known, [address(50)]);
    // One that the user names doesn't displace the known one either.
    let (mut w, ..) = moved();
    let host = "nas".to_owned();
    w.pool.add_named(w.now, crate::config::ServerName { host, port: 11435 });
    w.input(Input::Tick);
    let named = w.checks().pop().expect("a check of it").0;
    w.checked(named, well(nas));
    assert_eq!(w.hosts(9), [20, 50]);
}

#[test]
fn another_server_where_a_known_one_was_is_not_taken_for_it_when_that_fails() {
    let (mut w, nas, desk) = moved();
    // Its announcements are lost, or it has none.
    for _ in 0..3 {
        w.pass(ms(1300));
        w.answer(&[nas]);
        w.answer(&[nas]);
        assert!(w.hosts(9).is_empty());
        assert_eq!(w.pool.backends[0].claims.identity, Some(identity(DESK.id)));
        assert_eq!(w.pool.backends[0].addresses.known, [address(50)]);
    }
    w.live(ms(3000), &[desk]);
    assert_eq!(w.hosts(9), [50]);
    assert_eq!(w.conflicts(), []);
    // Nor is it when its address is announced in the name of the known one.
    w.announces(Server { host: nas.host, ..DESK });
    w.answer(&[desk, nas]);
    w.answer(&[desk, nas]);
    assert_eq!(w.pool.backends[0].addresses.known, [address(50)]);
    w.live(ms(5000), &[desk, nas]);
    assert_eq!(w.hosts(9), [20, 50]);
}

#[test]
fn a_forged_announcement_at_another_of_its_addresses_changes_nothing() {
    let second = Server { host: 21, ..DESK };
    let forged = Server { id: 9, name: "x", ..second };
    let mut w = World::new();
    w.live(ms(3000), &[DESK, second]);
    let is_unchanged = |w: &World| {
        let desk = &w.pool.backends[0];
        let is_known = desk.addresses.known.contains(&address(21));
        is_known && desk.claims.identity == Some(identity(DESK.id)) && w.pool.len() == 1
    };
    let mut checks = 0;
    for _ in 0..1000 {
        w.now += ms(1);
        w.announces(forged);
        checks += w.answer(&[DESK, second]);
        assert!(is_unchanged(&w));
    }
    assert!(checks <= 6, "{checks} checks in a second");
    // While it is down as well.
    for _ in 0..5 {
        w.pass(ms(1300));
        w.announces(forged);
        w.answer(&[]);
    }
    assert!(w.hosts(1).is_empty());
    w.live(ms(5000), &[DESK, second]);
    assert!(is_unchanged(&w));
    assert_eq!(w.hosts(1).len(), 1);
    assert!(w.conflicts().iter().all(|(_, is_quarantined)| !is_quarantined));
}

#[test]
fn a_server_set_up_anew_is_one_entry_at_all_its_addresses() {
    let second = Server { host: 21, ..DESK };
    let anew = [21, 20].map(|host| Server { host, id: 9, ..DESK });
    let mut w = World::new();
    w.live(ms(3000), &[DESK, second]);
    for _ in 0..5 {
        anew.iter().for_each(|server| w.announces(*server));
        while w.answer(&anew) > 0 {}
        w.pass(ms(1000));
    }
    assert_eq!(w.pool.len(), 1);
    assert_eq!(w.conflicts(), [(20, false)]);
    assert_eq!(w.pool.backends[0].addresses.known.len(), 2);
}
