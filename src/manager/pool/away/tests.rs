//! Scenarios of servers that leave: what is still known of them, for how long, and who may say so.

use std::net::IpAddr;

use serde_json::json;

use super::*;
use crate::config::ServerName;
use crate::manager::pool::memory::{MAX_BYTES_IN_ALL, MAX_REMEMBERED};
use crate::manager::pool::tests::{World, address, ms};
use crate::manager::pool::{Input, Outcome, Report, Sighting};
use crate::ollama::endpoints::Task;
use crate::ollama::model_name::ModelName;
use crate::pairing::identity::Identity;
use crate::upstream::{CheckResult, Target};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// One server as it presents itself. Servers on the LAN are numbered by their hosts.
#[derive(Clone)]
struct Server {
    host: u8,
    id: u8,
    name: &'static str,
    models: Vec<String>,
}

fn server(host: u8, name: &'static str, models: &[&str]) -> Server {
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    Server { host, id: host, name, models }
}

fn inventory(models: &[String]) -> Arc<Inventory> {
    let tags: Vec<_> = models.iter().map(|name| json!({ "name": name, "size": 7 })).collect();
    Arc::new(Inventory::new([&json!({ "models": tags }).to_string(), "", ""], None))
}

fn well(server: &Server) -> CheckResult {
    CheckResult::Healthy {
        address: address(server.host),
        round_trip: ms(1),
        version: "0.33.0".to_owned(),
        name: Some(server.name.to_owned()),
        identity: Some(Identity([server.id; 16])),
        open: None,
        saved: 0,
        inventory: Some(inventory(&server.models)),
    }
}

fn wants(model: &str) -> Wanted {
    Wanted { model: ModelName::parse(model), ..Wanted::default() }
}

impl World {
    fn choosing() -> Self {
        let mut w = World::new();
        w.pool.rules.inventories = true;
        w
    }

    /// So much time with these servers on the LAN, in few steps however long it is.
    fn stay(&mut self, time: Duration, servers: &[&Server]) {
        let end = self.now + time;
        let step = (time / 100).max(ms(1000));
        while self.now < end {
            for server in servers {
                self.input(Input::Sighted(Sighting {
                    address: address(server.host),
                    identity: Identity([server.id; 16]),
                    instance: 1,
                    name: server.name.to_owned(),
                    ollama_up: true,
                    management_open: false,
                }));
            }
            self.reply(servers);
            self.pass(step);
        }
        self.reply(servers);
    }

    fn reply(&mut self, servers: &[&Server]) {
        for (id, target) in self.checks() {
            let is_asked = |server: &&&Server| match &target {
                Target::Address(asked) => *asked == address(server.host),
                Target::Name(name) => name.host == server.name,
            };
            let result = match servers.iter().find(is_asked) {
                Some(server) => well(server),
                None => CheckResult::Refused("connection refused".to_owned()),
            };
            self.checked(id, result);
        }
    }

    /// The host that a request for the model goes to, or what is said instead.
    fn ask(&mut self, model: &str) -> Result<IpAddr, String> {
        self.ask_for(&wants(model))
    }

    fn ask_for(&mut self, wanted: &Wanted) -> Result<IpAddr, String> {
        match self.pool.pick(self.now, &[], wanted) {
            Ok(pick) => {
                self.done(pick.id);
                Ok(pick.address.ip())
            }
            Err(NoPick::OwnerAway(why) | NoPick::NoneUp(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn restarted(&self) -> Self {
        let mut next = World::choosing();
        next.now = self.now;
        next.pool.recall(next.now, self.pool.memorable(self.now));
        next
    }
}

#[test]
fn a_server_that_left_the_pool_still_has_its_models() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    assert_eq!(w.ask("beta"), Ok(address(1).ip()));
    w.stay(ms(3000), &[&nas]);
    let said = w.ask("beta").expect_err("it is down");
    assert!(
        said.starts_with(
            "model \"beta:latest\" is on server \"desktop\", which is away, last seen"
        )
    );
    assert!(said.ends_with("s ago: connection refused"), "{said}");
    w.stay(HOUR * 3, &[&nas]);
    assert_eq!(w.pool.len(), 1, "the pool has dropped it");
    assert_eq!(
        w.ask("beta").expect_err("still away"),
        "model \"beta:latest\" is on server \"desktop\", which is away, last seen 3 h 0 m ago"
    );
    // Whatever names a model: only a pull may go elsewhere, and who asks for a server gets it.
    for task in [Task::Use, Task::Unload, Task::Build] {
        w.ask_for(&Wanted { task, ..wants("beta") }).expect_err("away");
    }
    assert_eq!(w.ask_for(&Wanted { task: Task::Pull, ..wants("beta") }), Ok(address(2).ip()));
    let chosen = Wanted { server: Some("nas".to_owned()), ..wants("beta") };
    assert_eq!(w.ask_for(&chosen), Ok(address(2).ip()));
    for other in ["alpha", "gamma", "beta:cloud"] {
        assert_eq!(w.ask(other), Ok(address(2).ip()), "{other}");
    }
    assert_eq!(w.pool.sole(w.now, false), None, "the model has to be looked at");
    // Another one that has it will do.
    let both = server(2, "nas", &["alpha", "beta"]);
    w.stay(ms(6000), &[&both]);
    assert_eq!(w.ask("beta"), Ok(address(2).ip()));
    // Where all are away, what is said is about the owner as well.
    w.stay(HOUR, &[]);
    assert!(w.ask("beta").expect_err("none is up").contains("which is away, last seen"));
}

#[test]
fn it_is_forgotten_after_thirty_days_and_over_restarts_as_well() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    w.stay(DAY * 20, &[&nas]);
    w.ask("beta").expect_err("away for 20 days");
    let mut w = w.restarted();
    w.stay(ms(3000), &[&nas]);
    assert!(w.ask("beta").expect_err("away").contains("last seen 20 d 0 h ago"));
    // The clock of this machine stands still while it sleeps.
    w.input(Input::Slept(DAY * 5));
    assert!(w.ask("beta").expect_err("away").contains("last seen 25 d 0 h ago"));
    w.stay(DAY * 6, &[&nas]);
    assert_eq!(w.ask("beta"), Ok(address(2).ip()));
    assert!(!w.pool.has_absent());
    assert_eq!(w.pool.memorable(w.now)[0].had, None);
}

#[test]
fn what_it_tells_when_it_is_back_is_what_counts() {
    let (desktop, nas) = (server(1, "desktop", &["beta", "old"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    w.stay(HOUR, &[&nas]);
    // It has another name and address now, and lost a model.
    let back = Server { host: 9, ..server(1, "workshop", &["beta"]) };
    w.stay(ms(9000), &[&back, &nas]);
    assert_eq!(w.ask("beta"), Ok(address(9).ip()));
    w.ask("old").expect("nobody has it: any server says so");
    w.stay(HOUR, &[&nas]);
    assert!(w.ask("beta").expect_err("away").contains("on server \"workshop\""));
    w.ask("old").expect("nobody has it");
    assert_eq!(w.pool.away(w.now).len(), 1);
}

#[test]
fn a_model_that_is_deleted_through_us_is_gone_with_the_next_look() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    let id = w.pool.pick(w.now, &[], &wants("beta")).expect("desktop").id;
    let removed = ModelName::parse("beta");
    let report = Report { changed_models: true, removed, ..Outcome::Answered.into() };
    w.input(Input::Finished(id, report));
    w.stay(HOUR, &[&nas]);
    w.ask("beta").expect("it went before the server did");
}

#[test]
fn strangers_that_come_and_go_are_soon_forgotten() {
    let nas = server(2, "nas", &["alpha"]);
    let liar = server(66, "liar", &["llama3.2", "qwen3"]);
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&nas]);
    // One that fails its checks, or was never checked, leaves nothing.
    for host in 100..120 {
        w.stay(ms(1000), &[&nas]);
        w.input(crate::manager::pool::tests::sighting(host, host, 1));
    }
    assert!(!w.pool.has_absent());
    w.stay(ms(60_000), &[&nas, &liar]);
    w.stay(HOUR, &[&nas]);
    w.ask("qwen3").expect_err("it may be a machine on its first day");
    w.stay(DAY, &[&nas]);
    w.ask("qwen3").expect("a stranger's word is worth a day");
    // Not even a restart makes more of it.
    let other = server(67, "other liar", &["gemma3"]);
    w.stay(ms(60_000), &[&nas, &other]);
    let mut w = w.restarted();
    w.stay(HOUR, &[&nas]);
    w.ask("gemma3").expect_err("remembered over the restart");
    w.stay(DAY, &[&nas]);
    w.ask("gemma3").expect("a stranger's word is worth a day");
}

#[test]
fn strangers_displace_nobody_and_take_little_room() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.pool.rules.max_servers = 300;
    w.stay(HOUR * 2, &[&desktop, &nas]);
    w.stay(HOUR, &[&nas]);
    let many: Vec<String> = (0..2000).map(|n| format!("model{n}:{}", "x".repeat(90))).collect();
    for round in 0..3u8 {
        let crowd: Vec<Server> = (10..80)
            .map(|host| Server { host, id: round * 70 + host, name: "crowd", models: many.clone() })
            .collect();
        let all: Vec<&Server> = crowd.iter().chain([&nas]).collect();
        w.stay(ms(5000), &all);
    }
    let bytes: usize = w.pool.memory.servers.iter().map(|it| it.had.models.bytes()).sum();
    assert!(bytes <= MAX_BYTES_IN_ALL, "{bytes}");
    assert!(w.pool.memory.servers.len() <= MAX_REMEMBERED);
    w.ask("beta").expect_err("the known one is remembered");
}

#[test]
fn a_named_server_is_remembered_by_its_name() {
    let nas = server(2, "nas", &["alpha"]);
    let given = ServerName { host: "box".to_owned(), port: 11434 };
    let mut w = World::choosing();
    w.pool.add_named(w.now, given.clone());
    let plain = Server { host: 7, id: 0, name: "box", models: vec!["beta".to_owned()] };
    let answer = |w: &mut World, is_up: bool| {
        for (id, target) in w.checks() {
            let result = match (target, well(&plain), is_up) {
                (
                    Target::Name(_),
                    CheckResult::Healthy {
                        address,
                        round_trip,
                        version,
                        open,
                        saved,
                        inventory,
                        ..
                    },
                    true,
                ) => CheckResult::Healthy {
                    address,
                    round_trip,
                    version,
                    name: None,
                    identity: None,
                    open,
                    saved,
                    inventory,
                },
                (Target::Address(_), ..) => well(&nas),
                _ => CheckResult::Refused("connection refused".to_owned()),
            };
            w.checked(id, result);
        }
    };
    w.input(Input::Tick);
    answer(&mut w, true);
    w.stay(ms(0), &[]);
    let mut next = w.restarted();
    next.pool.add_named(next.now, given);
    next.input(crate::manager::pool::tests::sighting(2, 2, 1));
    // Before its first check it may still be up, so the request waits for that.
    let first = next.pool.pick(next.now, &[], &wants("beta"));
    assert!(matches!(first, Err(NoPick::NoneUp(_))), "{first:?}");
    answer(&mut next, false);
    let said = next.ask("beta").expect_err("down since the start");
    assert!(said.contains("is on server \"box:11434\", which is away, last seen"), "{said}");
    assert!(said.ends_with(": connection refused"), "{said}");
}

#[test]
fn whatever_keeps_a_server_from_work_its_models_are_not_missing() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    let id = w.pool.pick(w.now, &[], &wants("beta")).expect("desktop").id;
    // Tried in this request.
    let again = w.pool.pick(w.now, &[id], &wants("beta"));
    let Err(NoPick::OwnerAway(said)) = again else { panic!("{again:?}") };
    assert!(said.ends_with("it does not answer"), "{said}");
    // In doubt: announced elsewhere, which no check has confirmed.
    let own = w.pool.backends.iter_mut().find(|b| b.id == id).expect("desktop");
    own.addresses.in_doubt = true;
    let doubt = w.pool.pick(w.now, &[], &wants("beta"));
    let Err(NoPick::NoneUp(said)) = doubt else { panic!("{doubt:?}") };
    assert!(said.ends_with("which is being checked"), "{said}");
    // Where another one doesn't have it after all, that one's 404 is not the answer.
    let other = w.pool.backends.iter().find(|b| b.id != id).expect("nas").id;
    let told = w.pool.pick(w.now, &[other], &wants("beta"));
    assert!(matches!(told, Err(NoPick::OwnerAway(_))), "{told:?}");
    w.stay(ms(3000), &[&desktop, &nas]);
    w.ask("beta").expect("desktop");
    // Quarantined: a copied disk with a model of its own.
    let copy = Server { host: 5, ..server(1, "copy", &["gamma"]) };
    let announced = |w: &mut World, server: &Server, instance| {
        w.input(Input::Sighted(Sighting {
            address: address(server.host),
            identity: Identity([server.id; 16]),
            instance,
            name: server.name.to_owned(),
            ollama_up: true,
            management_open: false,
        }));
    };
    announced(&mut w, &copy, 2);
    w.stay(ms(3000), &[&desktop, &nas, &copy]);
    let said = w.ask("gamma").expect_err("held");
    assert!(said.contains("which gets no requests: has the identity of desktop"), "{said}");
}

#[test]
fn what_can_be_woken_stays_listed() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    w.stay(HOUR, &[&nas]);
    let listed = |w: &World| {
        let names: Vec<String> = w.pool.sleeping().into_iter().map(|(name, _)| name).collect();
        names.join(" ")
    };
    for (wake, want) in [
        ("nas", ""),
        ("Desktop", "desktop"),
        ("10.0.0.1", "desktop"),
        ("10.0.0.1:11435", "desktop"),
        ("d8:bb:c1:00:0a:ff", "desktop"),
    ] {
        w.pool.rules.wake = vec![wake.parse().expect("a sleeper")];
        assert_eq!(listed(&w), want, "{wake}");
    }
    w.stay(ms(3000), &[&desktop, &nas]);
    assert_eq!(listed(&w), "", "it is up");
}

#[test]
fn a_server_is_forgotten_on_request_unless_it_is_up() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    assert!(matches!(w.pool.forget_server(w.now, "DESKTOP"), Forgot::IsUp));
    w.stay(ms(3000), &[&nas]);
    let Forgot::Unknown(names) = w.pool.forget_server(w.now, "desktp") else { panic!("no such") };
    assert_eq!(names, ["desktop", "nas"]);
    let Forgot::Done(gone) = w.pool.forget_server(w.now, "Desktop") else { panic!("it is away") };
    assert_eq!((gone.len(), gone[0].name.as_str()), (1, "desktop"));
    assert_eq!(gone[0].had.as_ref().map(|had| had.models.len()), Some(1));
    w.ask("beta").expect("nobody has it");
    assert_eq!(w.pool.memorable(w.now).len(), 1);
    assert!(matches!(w.pool.forget_server(w.now, "desktop"), Forgot::Unknown(_)));
    // It comes back as if it were met for the first time.
    w.stay(ms(9000), &[&desktop, &nas]);
    assert_eq!(w.ask("beta"), Ok(address(1).ip()));
}

#[test]
fn the_lan_is_told_of_this_machines_ollama_only() {
    let (desktop, nas) = (server(1, "desktop", &["beta"]), server(2, "nas", &["alpha"]));
    let mut w = World::choosing();
    w.stay(HOUR * 2, &[&desktop, &nas]);
    w.stay(HOUR, &[&nas]);
    let lan = Wanted { local_only: true, ..wants("beta") };
    let Err(NoPick::NoneUp(said)) = w.pool.pick(w.now, &[], &lan) else { panic!("no local") };
    assert!(!said.contains("desktop"), "{said}");
}
