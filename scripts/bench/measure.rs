//! The clock, order statistics, and what /proc knows of a group of processes.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A tick of utime and stime: USER_HZ, 100 per second on every architecture that Rust knows.
const TICK_NS: u64 = 10_000_000;
/// Up to so many threads, CPU time is read thread by thread, which is exact but slower.
const MANY_THREADS: usize = 64;

/// Nanoseconds of the monotonic clock; the same for all processes.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The value below which `fraction` of them lie; 0 if there are none.
pub(crate) fn percentile(sorted: &[u64], fraction: f64) -> u64 {
    let at = (sorted.len() as f64 * fraction) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// The middle one; of an even number the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some((sorted[low] + sorted[high]) / 2.0)
}

/// The part of the processors' time that anything used during so long, from 0 to 1.
pub(crate) fn busy(pause: Duration) -> f64 {
    let times = || -> [u64; 2] {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let times: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        // The fourth is idle, the fifth waits for a disk; the ninth and tenth are in others.
        [times.iter().take(8).sum(), times.iter().skip(3).take(2).sum()]
    };
    let before = times();
    std::thread::sleep(pause);
    let after = times();
    let [all, idle] = [0, 1].map(|at| (after[at] - before[at]) as f64);
    1.0 - idle / all.max(1.0)
}

fn read(pid: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// The fields of /proc/PID/stat behind the name, which may hold blanks; the first is field 3.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = read(pid, "stat")?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// A process and its children, such as nginx's workers.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |other: &u32| stat(*other).is_some_and(|s| s.get(1) == Some(&pid.into()));
    std::iter::once(pid).chain(pids.filter(is_child)).collect()
}

fn status_number(pid: u32, file: &str, field: &str) -> Option<u64> {
    let text = read(pid, file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Threads of all of them.
pub(crate) fn threads(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| status_number(*pid, "status", "Threads:")).sum()
}

/// Resident KiB: of one process all of it, of several their proportional shares, because forked
/// workers share most of their pages.
pub(crate) fn resident_kib(pids: &[u32]) -> u64 {
    let whole = |pid: &u32| status_number(*pid, "status", "VmRSS:");
    match pids {
        [pid] => whole(pid).unwrap_or(0),
        _ => pids
            .iter()
            .filter_map(|pid| status_number(*pid, "smaps_rollup", "Pss:").or_else(|| whole(pid)))
            .sum(),
    }
}

/// CPU time that processes had used at some moment.
#[derive(Debug)]
pub(crate) struct Cpu {
    /// Per thread, if there were few.
    exact: Option<BTreeMap<u64, u64>>,
    ticks: u64,
}

impl Cpu {
    pub(crate) fn of(pids: &[u32]) -> Cpu {
        // Fields 14 and 15 are utime and stime.
        let ticks = pids.iter().filter_map(|pid| stat(*pid)).map(|s| s[11] + s[12]).sum();
        let exact = if threads(pids) as usize <= MANY_THREADS { Self::exact(pids) } else { None };
        Cpu { exact, ticks }
    }

    fn exact(pids: &[u32]) -> Option<BTreeMap<u64, u64>> {
        let mut found = BTreeMap::new();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
                let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
                let thread = task.file_name().to_str()?.parse().ok()?;
                found.insert(thread, text.split_whitespace().next()?.parse().ok()?);
            }
        }
        Some(found)
    }

    /// What was used since `earlier`, by the threads that are still there.
    pub(crate) fn since(&self, earlier: &Cpu) -> Duration {
        let ns = match (&self.exact, &earlier.exact) {
            (Some(now), Some(then)) => {
                let used = |(thread, ns): (&u64, &u64)| {
                    ns.saturating_sub(then.get(thread).copied().unwrap_or(0))
                };
                now.iter().map(used).sum()
            }
            _ => self.ticks.saturating_sub(earlier.ticks) * TICK_NS,
        };
        Duration::from_nanos(ns)
    }
}
