//! `make bench-arm`: instructions of Ollana for ARM, counted under qemu-user.
//!
//! ```text
//!  load ──► ollana client ──► ollana server ──► upstream
//!  native   under qemu        under qemu        native
//! ```
//!
//! Both proxies of a chain are counted side by side, while they run (`count.c`). What one more token,
//! request or MB costs is what a load of 2 N takes more than one of N: starting, connecting and
//! closing cancel out. What an idle daemon does in the same time is taken off. So the counts don't
//! depend on how busy the machine is, except a little on how many bytes each read finds.
//!
//! A pair speaks AES-GCM if both machines compute AES in hardware. A Raspberry Pi 3 or 4 doesn't, but
//! every 64-bit processor that qemu knows does, and no 32-bit one. So one of 64 bits and one of 32
//! bits are a pair that speaks ChaCha20-Poly1305, once in each role.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::arm_table::{self, AES, CHACHA, NARROW, Results};
use super::bulk::{self, Way};
use super::children::{Child, Failable, free_address};
use super::load::{self, Ask};
use super::measure::median;
use super::proxies::{self, Family, Role};
use super::streams::{self, Plan};
use super::upstream::Upstream;

/// Measurements of each kind in a chain; the median counts.
const REPEATS: usize = 3;
/// Streams of tokens at a time.
const STREAMS: usize = 16;
/// How long the shorter load of tokens goes on.
const WINDOW: Duration = Duration::from_secs(1);
/// Requests of the shorter load.
const REQUESTS: u64 = 100;
/// Bytes of the shorter load.
const BYTES: u64 = 4 << 20;
/// A daemon is at rest if it makes no system call for so long; its ticker makes some every 200 ms.
const REST: Duration = Duration::from_millis(50);
/// No longer is waited for that.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an idle daemon is watched.
const IDLE: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) calls: f64,
}

impl Cost {
    fn less(self, other: Cost) -> Cost {
        Cost {
            instructions: self.instructions - other.instructions,
            calls: self.calls - other.calls,
        }
    }

    fn times(self, factor: f64) -> Cost {
        Cost { instructions: self.instructions * factor, calls: self.calls * factor }
    }
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Token,
    Chat,
    Tags,
    Bulk(Way),
}

/// In the order of the table.
pub(crate) const WORKS: [Work; 7] = [
    Work::Token,
    Work::Chat,
    Work::Tags,
    Work::Bulk(Way::DownByLength),
    Work::Bulk(Way::DownChunked),
    Work::Bulk(Way::UpByLength),
    Work::Bulk(Way::UpChunked),
];

impl Work {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Work::Token => "token",
            Work::Chat => "small chat",
            Work::Tags => "list of models",
            Work::Bulk(Way::DownByLength) => "MB down by length",
            Work::Bulk(Way::DownChunked) => "MB down in chunks",
            Work::Bulk(Way::UpByLength) => "MB up by length",
            Work::Bulk(Way::UpChunked) => "MB up in chunks",
        }
    }

    /// Does it `times` as often as in the shorter load.
    fn load(self, address: SocketAddr, times: u64) -> Failable<()> {
        match self {
            Work::Token => {
                let plan = Plan { address, streams: STREAMS, pids: Vec::new() };
                streams::run(&[plan], WINDOW * times as u32).map(drop)
            }
            Work::Chat => load::exactly(address, Ask::Chat, REQUESTS * times),
            Work::Tags => load::exactly(address, Ask::Tags, REQUESTS * times),
            Work::Bulk(way) => bulk::copy(address, way, BYTES * times).map(drop),
        }
    }

    /// Tokens, requests or MB of the shorter load.
    fn units(self) -> f64 {
        match self {
            Work::Token => STREAMS as f64 * streams::RATE as f64 * WINDOW.as_secs_f64(),
            Work::Chat | Work::Tags => REQUESTS as f64,
            Work::Bulk(_) => BYTES as f64 / 1e6,
        }
    }
}

/// A processor, and what runs on it.
#[derive(Clone, Debug)]
struct Machine {
    name: &'static str,
    qemu: PathBuf,
    processor: &'static str,
    program: PathBuf,
}

/// One daemon under qemu.
struct Counted {
    file: PathBuf,
    address: SocketAddr,
    _child: Child,
}

impl Counted {
    fn start(
        family: &Family,
        machine: &Machine,
        plugin: &Path,
        dir: &Path,
        role: Role,
        target: SocketAddr,
    ) -> Failable<Counted> {
        let listen = free_address()?;
        let dir = dir.join(listen.port().to_string());
        fs::create_dir(&dir)?;
        let file = dir.join("counts");
        let plugin = format!("{},into={}", plugin.display(), file.display());
        let program = machine.program.display().to_string();
        let words = ["-cpu", machine.processor, "-plugin", &plugin, &program];
        let mut args: Vec<String> = words.into_iter().map(str::to_owned).collect();
        args.extend(family.arguments(&dir, role, listen, target)?);
        // The first check comes at once, further ones would not cancel out.
        args.extend(["--health-interval", "1m", "--health-timeout", "30s"].map(str::to_owned));
        let mut child = Child::start(&dir, &machine.qemu, &args)?;
        child.wait_ready(listen)?;
        Ok(Counted { file, address: listen, _child: child })
    }

    /// Since its start.
    fn counts(&self) -> Failable<Cost> {
        let bytes = fs::read(&self.file)?;
        let number = |at: usize| {
            let eight = bytes.get(at..at + 8).ok_or("the plugin did not count")?;
            Ok::<_, Box<dyn Error>>(u64::from_ne_bytes(eight.try_into()?) as f64)
        };
        Ok(Cost { instructions: number(0)?, calls: number(8)? })
    }
}

/// The counts of both, once neither makes system calls any more.
fn at_rest(chain: &[Counted; 2]) -> Failable<[Cost; 2]> {
    let deadline = Instant::now() + PATIENCE;
    let read = || Ok::<_, Box<dyn Error>>([chain[0].counts()?, chain[1].counts()?]);
    let mut before = read()?;
    loop {
        thread::sleep(REST);
        let now = read()?;
        let is_quiet = now.iter().zip(&before).all(|(now, before)| now.calls == before.calls);
        if is_quiet || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

/// What a load costs on both sides, without what they do each second when they are `idle`.
fn spent(
    chain: &[Counted; 2],
    idle: &[Cost; 2],
    load: impl FnOnce() -> Failable<()>,
) -> Failable<[Cost; 2]> {
    let before = at_rest(chain)?;
    let start = Instant::now();
    load()?;
    let after = at_rest(chain)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok([0, 1].map(|side| after[side].less(before[side]).less(idle[side].times(seconds))))
}

/// What one more token, request or MB costs on both sides.
fn cost(chain: &[Counted; 2], idle: &[Cost; 2], work: Work) -> Failable<[Cost; 2]> {
    let address = chain[0].address;
    // The first of a kind makes threads and buffers that later ones find.
    work.load(address, 2)?;
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..REPEATS {
        let once = spent(chain, idle, || work.load(address, 1))?;
        let twice = spent(chain, idle, || work.load(address, 2))?;
        for (side, costs) in all.iter_mut().enumerate() {
            costs.push(twice[side].less(once[side]).times(1.0 / work.units()));
        }
    }
    Ok(all.map(|costs| {
        let middle = |of: fn(&Cost) -> f64| {
            let values: Vec<f64> = costs.iter().map(of).collect();
            median(&values).unwrap_or_default()
        };
        Cost { instructions: middle(|cost| cost.instructions), calls: middle(|cost| cost.calls) }
    }))
}

/// One chain: client, server, and whether there is a key between them.
fn measure_chain(
    [client, server]: [&Machine; 2],
    family: &Family,
    plugin: &Path,
    dir: &Path,
    upstream: &Upstream,
) -> Failable<BTreeMap<&'static str, [Cost; 2]>> {
    let start = |machine, role, target| {
        Counted::start(family, machine, plugin, dir, role, target)
            .map_err(|error| format!("{}: {error}", machine.name))
    };
    let near = start(server, Role::Server, upstream.address)?;
    let far = start(client, Role::Client, near.address)?;
    let chain = [far, near];
    load::exactly(chain[0].address, Ask::Chat, 1)?;
    let idle = spent(&chain, &Default::default(), || {
        thread::sleep(IDLE);
        Ok(())
    })?;
    let idle = idle.map(|cost| cost.times(1.0 / IDLE.as_secs_f64()));
    let mut costs = BTreeMap::from([(arm_table::IDLE, idle)]);
    for work in WORKS {
        let [client, server] = [client.name, server.name];
        eprint!("\r{:78}\r{}, {client} → {server}: {} ", "", family.name, work.label());
        costs.insert(work.label(), cost(&chain, &idle, work)?);
    }
    eprint!("\r{:78}\r", "");
    Ok(costs)
}

/// `plugin`, the program for 64 bits, and the one for 32 bits if it could be built.
pub(crate) fn run(words: &[String], dir: &Path, target: &Path) -> Failable<()> {
    let (plugin, wide, narrow) = match words {
        [plugin, wide] => (plugin, wide, None),
        [plugin, wide, narrow] => (plugin, wide, Some(narrow)),
        _ => return Err("--arm takes the plugin, ollana for aarch64, and for armv7".into()),
    };
    let plugin = Path::new(plugin);
    let machine = |name, qemu, processor, program: &String| Machine {
        name,
        qemu: PathBuf::from(qemu),
        processor,
        program: PathBuf::from(program),
    };
    let wide = machine("aarch64", "/usr/bin/qemu-aarch64", "cortex-a53", wide);
    let narrow = narrow.map(|path| machine("armv7", "/usr/bin/qemu-arm", "cortex-a7", path));
    let skipped = ["nginx", "haproxy"].map(str::to_owned);
    let families = proxies::families(&skipped, true);
    let family = |name: &str| families.iter().find(|family| family.name == name);
    let (Some(plain), Some(paired)) = (family("ollana"), family("paired")) else {
        return Err("neither plain nor paired".into());
    };
    let upstream = Upstream::start()?;
    let measure =
        |client, server, family| measure_chain([client, server], family, plugin, dir, &upstream);
    let mut results = Results::default();
    results.note([AES; 2], false, &measure(&wide, &wide, plain)?);
    results.note([AES; 2], true, &measure(&wide, &wide, paired)?);
    if let Some(narrow) = &narrow {
        for (family, is_encrypted) in [(plain, false), (paired, true)] {
            let chain = measure(&wide, narrow, family)?;
            results.note([CHACHA, NARROW], is_encrypted, &chain);
            let chain = measure(narrow, &wide, family)?;
            results.note([NARROW, CHACHA], is_encrypted, &chain);
        }
    }
    println!("{}", results.text());
    results.compare_and_keep(&target.join("bench-arm.json"))
}
