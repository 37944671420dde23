//! Worlds in simulated time: what happens next in them, and many of them, each from a seed.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

/// What is to happen, by time and, at the same time, in the order in which it was put down.
#[derive(Debug)]
pub struct Agenda<E> {
    events: BTreeMap<(Instant, u64), E>,
    /// Events that were put down so far.
    pub number: u64,
}

impl<E> Agenda<E> {
    pub fn new() -> Self {
        Agenda { events: BTreeMap::new(), number: 0 }
    }

    pub fn add(&mut self, at: Instant, event: E) {
        self.number += 1;
        self.events.insert((at, self.number), event);
    }

    pub fn next(&mut self) -> Option<(Instant, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    /// All that is left, in its order; afterwards there is none.
    pub fn take_rest(&mut self) -> Vec<E> {
        std::mem::take(&mut self.events).into_values().collect()
    }
}

/// A number that a variable of the environment sets.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.trim().parse().ok()
}

/// Runs the worlds of the first `count` seeds on all processors. What they tell; or a seed for which
/// `run` has failed.
pub fn run_all<T: Send>(count: u64, run: impl Fn(u64) -> Option<T> + Sync) -> Result<Vec<T>, u64> {
    let workers = thread::available_parallelism().map_or(2, usize::from) as u64;
    let run = |first: u64| {
        let seeds = (first..count).step_by(workers as usize);
        seeds.map(|seed| run(seed).ok_or(seed)).collect::<Result<Vec<T>, u64>>()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|first| scope.spawn(move || run(first))).collect();
        let told = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        told.collect::<Result<Vec<Vec<T>>, u64>>().map(|told| told.into_iter().flatten().collect())
    })
}

/// What of a trace is shown: the end, or all of it when the seed was asked for.
pub fn shown(trace: &[String], most: usize) -> &[String] {
    let most = if number("OLLANA_SEED").is_some() { trace.len() } else { most };
    &trace[trace.len().saturating_sub(most)..]
}
