//! What choosing a server costs: 64 servers with 100 models each, in the pool alone and through
//! the Manager's thread. Neither talks to anybody, so nothing is compared here.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ollana::manager::liveness::job_queue;
use ollana::manager::pool::{Action, Input, Outcome, Pool, Report, Rules, Sighting, Wanted};
use ollana::manager::{Handle, Patience};
use ollana::ollama::inventory::Inventory;
use ollana::ollama::model_name::ModelName;
use ollana::pairing::identity::Identity;
use ollana::upstream::{CheckResult, Target};
use serde_json::{Value, json};

use super::children::Failable;
use super::measure::{percentile, resident_kib};

const SERVERS: usize = 64;
const MODELS: usize = 100;
/// Models in all: each is on a quarter of the servers.
const NAMES: usize = 400;
/// Models in memory on each server.
const LOADED: usize = 3;
/// Requests under way all the time.
const IN_FLIGHT: usize = 100;
/// More than are remembered.
const CONVERSATIONS: u64 = 10_000;
/// What a decision may cost, so that 10,000 a second take less than half of one core.
const BUDGET_US: f64 = 50.0;

/// What came out of it.
pub(crate) struct Costs {
    /// Pool alone: mean, median and 99th percentile in µs.
    pool: [f64; 3],
    /// Through the Manager, by one and by 16 askers: µs per lease and return, leases a second.
    manager: [(f64, f64); 2],
    /// Resident KiB that the second half of the decisions added to the first half's.
    grown_kib: i64,
}

impl Costs {
    /// Measures with about this many decisions.
    pub(crate) fn measure(decisions: usize) -> Failable<Costs> {
        let mut world = World::new();
        world.decide(decisions / 10);
        let before = own_kib();
        let start = Instant::now();
        let mut times = world.decide(decisions);
        let mean = start.elapsed().as_secs_f64() * 1e6 / decisions as f64;
        let grown_kib = own_kib() - before - (times.len() * 8 / 1024) as i64;
        times.sort_unstable();
        let us = |fraction| percentile(&times, fraction) as f64 / 1e3;
        let pool = [mean, us(0.5), us(0.99)];
        let manager = [through_manager(1, decisions / 10)?, through_manager(16, decisions / 10)?];
        Ok(Costs { pool, manager, grown_kib })
    }

    pub(crate) fn text(&self) -> String {
        let [mean, p50, p99] = self.pool;
        let [(one_us, one), (_, many)] = self.manager;
        format!(
            "choosing a server, {SERVERS} servers x {MODELS} models, µs (budget {BUDGET_US})\n  \
             in the pool: mean {mean:.1}, p50 {p50:.1}, p99 {p99:.1}; memory {:+} KiB\n  \
             through its thread: {one_us:.1} each, {one:.0} a second; by 16 at once {many:.0}",
            self.grown_kib
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "servers": SERVERS,
            "models": MODELS,
            "pool_us": {"mean": self.pool[0], "p50": self.pool[1], "p99": self.pool[2]},
            "manager_1": {"us": self.manager[0].0, "per_second": self.manager[0].1},
            "manager_16": {"us": self.manager[1].0, "per_second": self.manager[1].1},
            "grown_kib": self.grown_kib,
        })
    }
}

fn own_kib() -> i64 {
    resident_kib(&[std::process::id()]) as i64
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Some requests name no model, most continue a conversation.
    fn wanted(&mut self) -> Wanted {
        let name = format!("family{}:8b", self.below(NAMES as u64 + 20));
        Wanted {
            model: ModelName::parse(&name).filter(|_| self.below(10) > 0),
            conversation: Some(self.below(CONVERSATIONS)).filter(|_| self.below(4) > 0),
            client: Some(([10, 9, 0, self.below(250) as u8]).into()),
            ..Wanted::default()
        }
    }

    fn report(&mut self, wanted: &Wanted) -> Report {
        let outcome = match self.below(200) {
            0 => Outcome::Failed,
            1 => Outcome::Overloaded,
            _ => Outcome::Answered,
        };
        let speed = wanted.model.clone().map(|model| (model, 20.0 + self.below(100) as f64));
        Report { speed, first_byte: Some(Duration::from_millis(9)), ..outcome.into() }
    }
}

/// A pool whose servers have all passed a check, and a clock that runs by itself.
struct World {
    pool: Pool,
    now: Instant,
    random: Random,
    inventories: Vec<Arc<Inventory>>,
}

impl World {
    fn new() -> World {
        let rules = Rules {
            health_interval: Duration::from_secs(1),
            health_timeout: Duration::from_millis(1500),
            rise: 1,
            fall: 2,
            max_servers: SERVERS,
            inventories: true,
            max_in_flight: 0,
            pins: Vec::new(),
            bans: Vec::new(),
            aliases: ollana::ollama::aliases::Aliases::default(),
            preferred: Vec::new(),
            wake: Vec::new(),
        };
        let mut world = World {
            pool: Pool::new(rules, 1),
            now: Instant::now(),
            random: Random(0x9E37_79B9_7F4A_7C15),
            inventories: (0..SERVERS).map(inventory).collect(),
        };
        for server in 0..SERVERS {
            let sighting = Sighting {
                address: address(server),
                identity: Identity([server as u8; 16]),
                instance: 1,
                name: format!("server{server}"),
                ollama_up: true,
                management_open: false,
            };
            world.input(Input::Sighted(sighting));
        }
        assert_eq!(world.pool.ready(), SERVERS, "all are well");
        world
    }

    /// Whatever is checked is well.
    fn input(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.pool.handle(self.now, input, &mut actions);
        while let Some(action) = actions.pop() {
            let Action::Check(id, Target::Address(address), wants_inventory, _) = action else {
                continue;
            };
            let server = usize::from(address.port()) - FIRST_PORT;
            let inventory = wants_inventory.then(|| Arc::clone(&self.inventories[server]));
            let healthy = CheckResult::Healthy {
                address,
                round_trip: Duration::from_millis(1),
                version: "0.13.1".to_owned(),
                name: Some(format!("server{server}")),
                identity: None,
                open: None,
                saved: 0,
                inventory,
            };
            self.pool.handle(self.now, Input::Checked(id, healthy), &mut actions);
        }
    }

    /// Times of so many decisions in ns, each with the return of an earlier one.
    fn decide(&mut self, decisions: usize) -> Vec<u64> {
        let mut under_way = VecDeque::with_capacity(IN_FLIGHT + 1);
        let mut times = Vec::with_capacity(decisions);
        for n in 0..decisions {
            let wanted = self.random.wanted();
            self.now += Duration::from_micros(100);
            let start = Instant::now();
            if let Ok(pick) = self.pool.pick(self.now, &[], &wanted) {
                under_way.push_back((pick, wanted));
            }
            let mut took = start.elapsed();
            if under_way.len() > IN_FLIGHT
                && let Some((pick, wanted)) = under_way.pop_front()
            {
                let report = self.random.report(&wanted);
                let start = Instant::now();
                self.input(Input::Finished(pick.id, report));
                took += start.elapsed();
            }
            if n % 2000 == 0 {
                self.input(Input::Tick);
            }
            times.push(took.as_nanos() as u64);
        }
        for (pick, _) in under_way {
            self.input(Input::Finished(pick.id, Outcome::Answered.into()));
        }
        times
    }
}

/// Servers on one loopback address, told apart by their ports.
const FIRST_PORT: usize = 20_000;

fn address(server: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], (FIRST_PORT + server) as u16))
}

/// As different from its neighbours as those of different owners.
fn inventory(server: usize) -> Arc<Inventory> {
    let names: Vec<String> = (0..MODELS)
        .map(|n| format!("family{}:8b", (server * 37 + n * (NAMES / MODELS)) % NAMES))
        .collect();
    let list = |names: &[String]| {
        let models: Vec<Value> =
            names.iter().map(|name| json!({"name": name, "digest": "1"})).collect();
        json!({ "models": models }).to_string()
    };
    let (disk, memory) = (list(&names), list(&names[..LOADED]));
    Arc::new(Inventory::new([&disk, &memory, ""], None))
}

/// µs per lease and return as one asker sees it, and how many a second all of them get.
fn through_manager(askers: usize, leases: usize) -> Failable<(f64, f64)> {
    let world = World::new();
    let (jobs, checks) = job_queue();
    let second = Duration::from_secs(1);
    let patience = Patience { expected: second, busy: second, wake: None };
    let manager = Handle::start(world.pool, jobs, patience, None)?;
    let answerer = manager.mailbox();
    // Checks are taken and forgotten: none is due again within the measurement that matters.
    let sink = thread::spawn(move || for _ in checks {});
    let each = leases / askers;
    let start = Instant::now();
    thread::scope(|scope| {
        for asker in 0..askers {
            let mailbox = answerer.clone();
            scope.spawn(move || {
                let mut random = Random(asker as u64 + 1);
                for _ in 0..each {
                    let wanted = random.wanted();
                    if let Ok(mut lease) = mailbox.lease(&[], &wanted, &|| true) {
                        lease.report = random.report(&wanted);
                    }
                }
            });
        }
    });
    let elapsed = start.elapsed().as_secs_f64();
    drop(manager);
    let _ = sink.join();
    let all = (each * askers) as f64;
    Ok((elapsed * 1e6 / each as f64, all / elapsed))
}
