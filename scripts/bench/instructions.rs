//! Instructions per request, which don't depend on how busy the machine is (valgrind).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::children::{Child, Failable, free_address};
use super::load::{self, Ask};
use super::proxies::{Family, Role};

/// Requests of the shorter run; the longer one has twice as many.
const REQUESTS: u64 = 500;

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
    let mut counts = [0.0; 2];
    for (count, requests) in counts.iter_mut().zip([REQUESTS, REQUESTS * 2]) {
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
        let mut child = Child::start_directly(dir, &valgrind, &args)?;
        child.wait_ready(listen)?;
        load::exactly(listen, Ask::Tags, requests)?;
        let log = child.terminate()?;
        let collected = log.lines().find_map(|line| line.split_once("Collected : "));
        let (_, number) = collected.ok_or_else(|| format!("valgrind counted nothing: {log}"))?;
        *count = number.trim().parse()?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Some((counts[1] - counts[0]) / REQUESTS as f64))
}
