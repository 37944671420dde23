//! Instructions per request, which don't depend on how busy the machine is (valgrind).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::children::{Child, Failable, free_address};
use super::load::{self, Ask};
use super::measure::median;
use super::proxies::{Family, Role};

/// Requests of the shorter run; the longer one has twice as many.
const REQUESTS: u64 = 3000;
/// Pairs of runs, of whose results the middle one counts.
const RUNS: usize = 3;

/// Instructions that a proxy spends on one small request: those of 2 N requests less those of N,
/// so that start and end cancel out. `None` without valgrind.
pub(crate) fn per_request(
    family: &Family,
    role: Role,
    dir: &Path,
    target: SocketAddr,
) -> Failable<Option<f64>> {
    let valgrind = PathBuf::from("/usr/bin/valgrind");
    if !valgrind.is_file() {
        println!("valgrind is not installed (apt-get install valgrind): no instruction counts");
        return Ok(None);
    }
    // What else a process does in a run, such as a check more or less, is no part of the middle one.
    let mut each = Vec::new();
    for _ in 0..RUNS {
        let fewer = count(&valgrind, family, role, dir, target, REQUESTS)?;
        let more = count(&valgrind, family, role, dir, target, REQUESTS * 2)?;
        each.push((more - fewer) / REQUESTS as f64);
    }
    Ok(median(&each))
}

/// Instructions of a proxy's whole life with so many requests.
fn count(
    valgrind: &Path,
    family: &Family,
    role: Role,
    dir: &Path,
    target: SocketAddr,
    requests: u64,
) -> Failable<f64> {
    let listen = free_address()?;
    let out = dir.join(format!("callgrind-{}.out", listen.port()));
    let mut args = vec![
        "--tool=callgrind".to_owned(),
        // On glibc, ollana starts itself a second time (`keep_one_heap`); that one serves.
        "--trace-children=yes".to_owned(),
        format!("--callgrind-out-file={}", out.display()),
        family.program.display().to_string(),
    ];
    args.extend(family.arguments(dir, role, listen, target)?);
    // The first check comes at once; further ones would not cancel out.
    args.extend(["--health-interval".to_owned(), "1m".to_owned()]);
    args.extend(["--health-timeout".to_owned(), "30s".to_owned()]);
    let mut child = Child::start_directly(dir, valgrind, &args)?;
    child.wait_ready(listen)?;
    load::exactly(listen, Ask::Tags, requests)?;
    let log = child.terminate()?;
    let collected = log.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.ok_or_else(|| format!("valgrind counted nothing: {log}"))?;
    Ok(number.trim().parse()?)
}
