//! Threads that a process can't do without: one of them panics, and the process ends, so that its
//! service manager starts it again. Builds for use have no way to plant a panic.
#![cfg(debug_assertions)]

use std::time::Instant;

use crate::support::{Fake, Process, eventually};
use crate::{arguments, judge, ms};

/// What a process can't do without, on a machine that shares its Ollama.
const VITAL: [&str; 6] = ["manager", "ticker", "checker", "acceptor", "rejector", "parking"];

#[test]
fn a_panic_in_a_vital_thread_ends_the_process() {
    let fake = Fake::unlike_ollama_saying(crate::OK);
    for name in VITAL {
        let start = Instant::now();
        let mut process = Process::with_env(&arguments(&fake), &[("OLLANA_TEST_PANIC", name)]);
        assert_eq!(process.exit().code(), Some(70), "{name}");
        judge(&format!("a panic in {name}, to the end"), start.elapsed(), ms(1000));
        eventually(&format!("the reason in the log: {name}"), || {
            let reason = format!("ending, because the thread {name:?} failed");
            process.log().contains(&reason).then_some(())
        });
    }
}
