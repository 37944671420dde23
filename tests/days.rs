//! A week in a house, in simulated time: servers that sleep, are busy, are renamed and move, and
//! several machines whose programs ask them, over the pure core of their daemons.
//!
//! ```text
//!  story ─► acts ─► the house's servers, router and laptops
//!  laptops: programs ─► daemon (pool, queue, attempts) ─► network ─► a server's daemon ─► its Ollama
//! ```
//!
//! What must hold after every step:
//!
//! - No 404 for a model that somebody in the house has, or had when a laptop last heard of it.
//! - No server is called down while it answers or streams.
//! - No request is refused, or waits for long, while a server that can do it is free.
//!
//! A server "answers" whose bytes, of an answer or of a check, came within the last 3 s: where 30 % of
//! the packets are lost, two checks in a row may honestly fail, and nothing tells it from one that
//! is gone.
//!
//! Everything follows from a seed, which is the number of the week. `make days DAYS=1000` lives
//! through so many of them and sums them up; `OLLANA_SEED=7 cargo test --test days` prints one.
#![allow(missing_docs, reason = "names of tests say what they are for")]

mod support;

#[allow(dead_code, reason = "the simulation of faults uses all of it")]
#[path = "simulation/client.rs"]
mod client;

/// The parts.
mod days {
    pub(crate) mod house;
    pub(crate) mod report;
    pub(crate) mod story;
    pub(crate) mod world;
}

use std::time::Instant;

use days::report::{Answer, Tally};
use days::world::World;
use support::{number, run_all, shown};

/// Weeks of an ordinary run.
const WEEKS: u64 = 4;
/// Lines of a failed week that are shown.
const SHOWN: usize = 100;

fn replay(week: u64) {
    let (result, trace) = World::new(week, true).run();
    shown(&trace, SHOWN).iter().for_each(|line| println!("{line}"));
    match result {
        Ok(tally) => println!("week {week}\n{}", tally.text()),
        Err(violation) => panic!("week {week} (OLLANA_SEED={week} replays it), {violation}"),
    }
}

#[test]
fn every_week_goes_well() {
    if let Some(week) = number("OLLANA_SEED") {
        return replay(week);
    }
    let weeks = number("DAYS").unwrap_or(WEEKS);
    let start = Instant::now();
    let mut all = Tally::default();
    match run_all(weeks, |week| World::new(week, false).run().0.ok()) {
        Ok(tallies) => tallies.iter().for_each(|tally| all.add(tally)),
        Err(week) => return replay(week),
    }
    println!("{weeks} weeks in {:.1} s\n{}", start.elapsed().as_secs_f64(), all.text());
    let all_kinds = [Answer::Fine, Answer::NotFound, Answer::Quota, Answer::Overload, Answer::Away];
    assert!(all_kinds.iter().all(|kind| all.count(*kind) > 0), "a dull week");
}

#[test]
fn a_week_says_it_all() {
    let runs: Vec<String> = (0..2).map(|_| World::new(1, true).run().1.join("\n")).collect();
    assert_eq!(runs[0], runs[1], "it went another way the second time");
}
