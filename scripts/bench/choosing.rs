//! What choosing a server costs: 64 servers with 200 models each, in the pool alone and through
//! the Manager's thread ([`managed`]). Neither talks to anybody, so nothing is compared here.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ollana::manager::pool::{Action, Input, Outcome, Pool, Report, Rules, Sighting, Wanted};
use ollana::ollama::inventory::Inventory;
use ollana::ollama::model_name::ModelName;
use ollana::pairing::identity::Identity;
use ollana::upstream::{CheckResult, Target};
use serde_json::{Value, json};

use super::children::Failable;
use super::managed::{self, Managed};
use super::measure::{median, percentile, resident_kib};

const SERVERS: usize = 64;
const MODELS: usize = 200;
/// Models in all: each is on a quarter of the servers.
const NAMES: usize = 800;
/// Models in memory on each server.
const LOADED: usize = 3;
/// Requests under way all the time.
const IN_FLIGHT: usize = 100;
/// More than are remembered.
const CONVERSATIONS: u64 = 10_000;
/// Decisions a second at the fixed rate.
const PACE: f64 = 10_000.0;

/// What came out of it.
pub(crate) struct Costs {
    /// Pool alone: mean, median and 99th percentile in µs.
    pool: [f64; 3],
    /// Resident KiB that so many decisions added.
    grown_kib: i64,
    /// A question to another thread and a message to it, in µs: if it does nothing, and if it takes
    /// as long as the pool does.
    hand_over_us: [f64; 2],
    /// Through the Manager, as fast as it goes, by one and by 16 askers.
    fastest: [Managed; 2],
    paced: Managed,
}

impl Costs {
    /// Measures with about this many decisions, and for so long at a fixed rate.
    pub(crate) fn measure(decisions: usize, paced: Duration) -> Failable<Costs> {
        let mut world = World::new();
        world.decide(decisions / 10);
        let before = own_kib();
        let start = Instant::now();
        let mut times = world.decide(decisions);
        let mean = start.elapsed().as_secs_f64() * 1e6 / decisions as f64;
        let grown_kib = own_kib() - before - (times.len() * 8 / 1024) as i64;
        times.sort_unstable();
        let us = |fraction| percentile(&times, fraction) as f64 / 1e3;
        let few = decisions / 10;
        let middle = |think| -> Failable<f64> {
            let slices: Failable<Vec<f64>> = (0..5).map(|_| hand_over(few / 5, think)).collect();
            Ok(median(&slices?).unwrap_or(0.0))
        };
        let at_pace = (paced.as_secs_f64() * PACE) as usize;
        Ok(Costs {
            pool: [mean, us(0.5), us(0.99)],
            grown_kib,
            hand_over_us: [middle(Duration::ZERO)?, middle(Duration::from_secs_f64(mean / 1e6))?],
            fastest: [managed::measure(1, few, None)?, managed::measure(16, few, None)?],
            paced: managed::measure(4, at_pace, Some(PACE))?,
        })
    }

    /// Titles and what they are about, for the page.
    fn lines(&self) -> Vec<[String; 2]> {
        let [mean, p50, p99] = self.pool;
        let [one, many] = &self.fastest;
        let paced = &self.paced;
        vec![
            [
                format!(
                    "choice among {SERVERS} servers × {MODELS} models and its return, in the pool alone"
                ),
                format!(
                    "mean {mean:.1} µs, p50 {p50:.1}, p99 {p99:.1}; memory {:+} KiB",
                    self.grown_kib
                ),
            ],
            [
                format!("10,000 a second for {:.0} s through the Manager's thread", paced.seconds),
                format!(
                    "{:.0} a second; p50 {:.0} µs, p99 {:.0}; its thread uses {:.0} % of a core, the whole \
                     process {:.0} %; memory {:+} KiB in the last third",
                    paced.rate(),
                    paced.p50_us,
                    paced.p99_us,
                    paced.manager_share() * 100.0,
                    paced.process_share() * 100.0,
                    paced.grown_kib
                ),
            ],
            [
                "as fast as it goes, one asker".to_owned(),
                format!(
                    "{:.0} a second, {:.1} µs each, {:.1} of them CPU of the Manager's thread, which slept \
                     {:.1} times",
                    one.rate(),
                    1e6 / one.rate(),
                    one.manager_us(),
                    one.sleeps()
                ),
            ],
            [
                "the same messages, question, answer and return, to a thread that does nothing"
                    .to_owned(),
                format!(
                    "{:.1} µs; to one that lets as much time pass as the pool needs: {:.1} µs",
                    self.hand_over_us[0], self.hand_over_us[1]
                ),
            ],
            [
                "as fast as it goes, 16 askers".to_owned(),
                format!(
                    "{:.0} a second, {:.1} µs of CPU of the Manager's thread each, which slept {:.1} times",
                    many.rate(),
                    many.manager_us(),
                    many.sleeps()
                ),
            ],
        ]
    }

    pub(crate) fn text(&self) -> String {
        let lines =
            self.lines().into_iter().map(|[title, value]| format!("{title}\n    {value}\n"));
        lines.collect()
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "servers": SERVERS,
            "models": MODELS,
            "pool_us": {"mean": self.pool[0], "p50": self.pool[1], "p99": self.pool[2]},
            "grown_kib": self.grown_kib,
            "hand_over_us": self.hand_over_us,
            "manager_1": self.fastest[0].json(),
            "manager_16": self.fastest[1].json(),
            "paced": self.paced.json(),
            "lines": self.lines(),
        })
    }
}

/// What a question to another thread and a message to it cost, in the channels that a lease and its
/// return go through, if that thread decides nothing but takes as long: with `think` for both.
fn hand_over(count: usize, think: Duration) -> Failable<f64> {
    type Question = Option<Sender<u64>>;
    let (questions, asked): (Sender<Question>, Receiver<Question>) = bounded(512);
    let answerer = thread::spawn(move || {
        for question in asked {
            let start = Instant::now();
            while start.elapsed() < think / 2 {
                std::hint::spin_loop();
            }
            if let Some(reply) = question {
                let _ = reply.send(1);
            }
        }
    });
    let start = Instant::now();
    for _ in 0..count {
        let (reply, answer) = bounded(1);
        questions.send(Some(reply))?;
        answer.recv()?;
        questions.send(None)?;
    }
    let elapsed = start.elapsed();
    drop(questions);
    let _ = answerer.join();
    Ok(elapsed.as_secs_f64() * 1e6 / count as f64)
}

pub(super) fn own_kib() -> i64 {
    resident_kib(&[std::process::id()]) as i64
}

pub(super) struct Random(pub(super) u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Some requests name no model, most continue a conversation.
    pub(super) fn wanted(&mut self) -> Wanted {
        let name = format!("family{}:8b", self.below(NAMES as u64 + 20));
        Wanted {
            model: ModelName::parse(&name).filter(|_| self.below(10) > 0),
            conversation: Some(self.below(CONVERSATIONS)).filter(|_| self.below(4) > 0),
            client: Some(([10, 9, 0, self.below(250) as u8]).into()),
            ..Wanted::default()
        }
    }

    pub(super) fn report(&mut self, wanted: &Wanted, overloads: bool) -> Report {
        let outcome = match self.below(200) {
            0 => Outcome::Failed,
            1 if overloads => Outcome::Overloaded,
            _ => Outcome::Answered,
        };
        let speed = wanted.model.clone().map(|model| (model, 20.0 + self.below(100) as f64));
        Report { speed, first_byte: Some(Duration::from_millis(9)), ..outcome.into() }
    }
}

/// A pool whose servers have all passed a check, and a clock that runs by itself.
pub(super) struct World {
    pub(super) pool: Pool,
    now: Instant,
    random: Random,
    pub(super) inventories: Vec<Arc<Inventory>>,
}

impl World {
    pub(super) fn new() -> World {
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
            if let Action::Check(id, target, wants_inventory, _) = action {
                let result = healthy(&self.inventories, &target, wants_inventory);
                self.pool.handle(self.now, Input::Checked(id, result), &mut actions);
            }
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
                let report = self.random.report(&wanted, true);
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

/// The result of a check that finds a server well.
pub(super) fn healthy(
    inventories: &[Arc<Inventory>],
    target: &Target,
    wants_inventory: bool,
) -> CheckResult {
    let Target::Address(address) = *target else { unreachable!("servers have addresses") };
    let server = usize::from(address.port()) - FIRST_PORT;
    CheckResult::Healthy {
        address,
        round_trip: Duration::from_millis(1),
        version: "0.13.1".to_owned(),
        name: Some(format!("server{server}")),
        identity: None,
        open: None,
        saved: 0,
        inventory: wants_inventory.then(|| Arc::clone(&inventories[server])),
    }
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
