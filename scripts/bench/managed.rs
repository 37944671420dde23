//! Choices through the Manager's thread, as the workers of a proxy ask for them.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use ollana::manager::liveness::job_queue;
use ollana::manager::pool::Input;
use ollana::manager::{Handle, Job, Mailbox, Patience};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::children::Failable;
use super::choosing::{Random, World, healthy, own_kib};
use super::measure::percentile;

/// How often the Manager hears that time has passed.
const TICK: Duration = Duration::from_millis(200);
/// Requests that each asker has under way, at a fixed rate.
const UNDER_WAY: usize = 25;

/// What some decisions took.
pub(super) struct Managed {
    pub(super) seconds: f64,
    decisions: usize,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// CPU time of the Manager's thread and of all of us.
    manager: Duration,
    process: Duration,
    /// How often its thread waited for work.
    waits: u64,
    /// Resident KiB that the last third added: what is remembered is full by then.
    pub(super) grown_kib: i64,
}

impl Managed {
    pub(super) fn rate(&self) -> f64 {
        self.decisions as f64 / self.seconds
    }

    pub(super) fn manager_us(&self) -> f64 {
        self.manager.as_secs_f64() * 1e6 / self.decisions as f64
    }

    /// Of one core.
    pub(super) fn manager_share(&self) -> f64 {
        self.manager.as_secs_f64() / self.seconds
    }

    pub(super) fn process_share(&self) -> f64 {
        self.process.as_secs_f64() / self.seconds
    }

    /// Per decision.
    pub(super) fn sleeps(&self) -> f64 {
        self.waits as f64 / self.decisions as f64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "per_second": self.rate(),
            "seconds": self.seconds,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "manager_us": self.manager_us(),
            "manager_share": self.manager_share(),
            "process_share": self.process_share(),
            "waits_per_decision": self.sleeps(),
            "grown_kib": self.grown_kib,
        })
    }
}

/// `askers` threads make so many decisions together, at a rate if there is one.
pub(super) fn measure(askers: usize, decisions: usize, rate: Option<f64>) -> Failable<Managed> {
    let World { pool, inventories, .. } = World::new();
    let (jobs, checks) = job_queue();
    let second = Duration::from_secs(1);
    let patience = Patience { expected: second, busy: second, wake: None };
    let manager = Handle::start(pool, jobs, patience, None)?;
    let mailbox = manager.mailbox();
    // In the place of checkers and ticker; it ends with the Manager, whose checks it takes.
    let checker = thread::spawn(move || {
        loop {
            match checks.recv_timeout(TICK) {
                Ok(Job::Check(job)) => {
                    let result = healthy(&inventories, &job.target, job.wants_inventory);
                    mailbox.send(Input::Checked(job.id, result));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => mailbox.send(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    // A thread names itself, as its first act.
    let task = (0..100).find_map(|_| {
        thread::sleep(Duration::from_millis(1));
        task_of("manager")
    });
    let task = task.ok_or("the Manager has no thread")?;
    let each = decisions / askers;
    let pause = rate.map(|rate| Duration::from_secs_f64(askers as f64 / rate));
    let (cpu, process) = (on_cpu(&task), own_cpu());
    let waits = voluntary_switches(&task);
    let start = Instant::now();
    let mut before_kib = 0;
    let times: Vec<Vec<u64>> = thread::scope(|scope| {
        let ask = |nth| {
            let mailbox = manager.mailbox();
            move || ask(&mailbox, nth, each, start, pause)
        };
        let threads: Vec<_> = (0..askers).map(|nth| scope.spawn(ask(nth))).collect();
        if let Some(pause) = pause {
            thread::sleep(pause * each as u32 * 2 / 3);
            before_kib = own_kib();
        }
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let measured = Managed {
        seconds: start.elapsed().as_secs_f64(),
        decisions: times.iter().map(Vec::len).sum(),
        manager: on_cpu(&task).saturating_sub(cpu),
        process: own_cpu().saturating_sub(process),
        waits: voluntary_switches(&task) - waits,
        grown_kib: if pause.is_some() { own_kib() - before_kib } else { 0 },
        p50_us: 0.0,
        p99_us: 0.0,
    };
    drop(manager);
    let _ = checker.join();
    let mut times = times.concat();
    if times.len() < each * askers {
        return Err(format!("{} of {decisions} decisions found a server", times.len()).into());
    }
    times.sort_unstable();
    let us = |fraction| percentile(&times, fraction) as f64 / 1e3;
    Ok(Managed { p50_us: us(0.5), p99_us: us(0.99), ..measured })
}

/// Leases servers and gives them back; ns that each lease took.
fn ask(
    mailbox: &Mailbox,
    nth: usize,
    count: usize,
    start: Instant,
    pause: Option<Duration>,
) -> Vec<u64> {
    let mut random = Random(nth as u64 + 1);
    // Written to, so that no page of it is new afterwards.
    let mut times = vec![u64::MAX; count];
    times.clear();
    let mut under_way = VecDeque::with_capacity(UNDER_WAY + 1);
    let kept = pause.map_or(0, |_| UNDER_WAY);
    for at in 0..count {
        if let Some(pause) = pause {
            let due = start + pause * at as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let wanted = random.wanted();
        let asked = Instant::now();
        if let Ok(mut lease) = mailbox.lease(&[], &wanted, &|| true) {
            times.push(asked.elapsed().as_nanos() as u64);
            // Servers that learn a limit would make requests wait, which isn't measured here.
            lease.report = random.report(&wanted, false);
            under_way.push_back(lease);
        }
        if under_way.len() > kept {
            under_way.pop_front();
        }
    }
    times
}

/// The folder in /proc of our thread of this name.
fn task_of(name: &str) -> Option<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").ok()?.flatten().map(|entry| entry.path());
    let is_it =
        |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|it| it.trim() == name);
    tasks.filter(is_it).max()
}

/// Of all our threads, those that have ended too.
fn own_cpu() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

fn on_cpu(task: &Path) -> Duration {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

fn voluntary_switches(task: &Path) -> u64 {
    let text = fs::read_to_string(task.join("status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}
