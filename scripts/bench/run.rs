//! Options, the order of the measurements, and where the results go: `target/bench.json` has
//! every value, and the page ([`page`]) is made of that.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use lexopt::ValueExt;
use lexopt::prelude::Long;
use serde_json::json;

use super::arm;
use super::children::{self, BECOME, Failable};
use super::choosing::Costs;
use super::measure;
use super::page;
use super::parts::{Bench, STREAMS};
use super::proxies::{self, Family, Route};
use super::table::Book;
use super::upstream::Upstream;

/// What `--only` may name, in the order in which they run.
const PARTS: &[&str] = &[
    CHOOSING,
    "memory",
    "first-byte",
    "requests",
    "tokens",
    "bulk",
    "cancel",
    "idle",
    "start",
    "failover",
    "instructions",
];
/// Needs no proxies.
const CHOOSING: &str = "choosing";
/// Those start processes of their own, when the others are gone.
const LATE_PARTS: &[&str] = &["idle", "start", "failover", "instructions"];

/// For how long is looked whether the machine does other things, at both ends.
const BEFORE: Duration = Duration::from_secs(1);

/// How much of everything.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    rounds: usize,
    /// Slices of each small measurement in a round.
    pub(crate) repeats: usize,
    /// Length of such a slice.
    pub(crate) slice: Duration,
    /// How long tokens are counted.
    pub(crate) window: Duration,
    /// How long they are on few streams, where they are rare.
    pub(crate) long_window: Duration,
    /// How many streams at a time.
    pub(crate) streams: &'static [usize],
    pub(crate) bulk_bytes: u64,
    /// For one more upload, in the first round.
    pub(crate) big_upload: Option<u64>,
    /// How long connections idle before they are looked at. Ollana's idle workers end after 20 s.
    pub(crate) idle: Duration,
    /// Repetitions of single events.
    pub(crate) events: usize,
    /// Choices of a server, and for how long some are made at a fixed rate.
    decisions: usize,
    paced: Duration,
    /// An ollana without shared libraries, whose idle memory is measured.
    pub(crate) static_build: Option<PathBuf>,
}

const DEFAULT: Scale = Scale {
    rounds: 3,
    repeats: 3,
    slice: Duration::from_millis(120),
    window: Duration::from_millis(800),
    long_window: Duration::from_millis(2500),
    streams: &[64, 256, 1000],
    bulk_bytes: 512 << 20,
    big_upload: None,
    idle: Duration::from_secs(25),
    events: 4,
    decisions: 500_000,
    paced: Duration::from_secs(10),
    static_build: None,
};
const QUICK: Scale = Scale {
    rounds: 2,
    repeats: 2,
    slice: Duration::from_millis(80),
    window: Duration::from_millis(400),
    long_window: Duration::from_millis(1000),
    streams: &[1000],
    bulk_bytes: 128 << 20,
    big_upload: None,
    idle: Duration::from_secs(4),
    events: 2,
    decisions: 100_000,
    paced: Duration::from_secs(3),
    static_build: None,
};

struct Options {
    scale: Scale,
    form: &'static str,
    makes_page: bool,
    redraws: bool,
    only: Vec<String>,
    without: Vec<String>,
    with_paired: bool,
    counts_instructions: bool,
    shows_times: bool,
    /// Be the stand-in for Ollama at this address, and nothing else.
    serve: Option<SocketAddr>,
    /// Proxies that somebody else has started, instead of ours.
    through: Vec<(String, Route)>,
    /// The stand-in that they lead to.
    direct: Option<SocketAddr>,
}

pub(crate) fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(BECOME) {
        eprintln!("{}", children::become_program(words));
        return ExitCode::FAILURE;
    }
    // `cargo test --all-targets` runs benchmarks too, without this word.
    if !std::env::args().any(|word| word == "--bench") {
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().collect();
    let result = match words.iter().position(|word| word == "--arm") {
        Some(at) => {
            Scratch::new().and_then(|dir| arm::run(&words[at + 1..], &dir.0, &target_dir()))
        }
        None => options().and_then(|options| act(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(options: &Options) -> Failable<()> {
    match (options.serve, options.direct) {
        _ if options.redraws => redraw(),
        (Some(address), _) => {
            raise_descriptor_limit();
            let _upstream = Upstream::start_at(address)?;
            loop {
                std::thread::park();
            }
        }
        (None, Some(direct)) => run_through(options, direct),
        (None, None) => run(options),
    }
}

fn options() -> Failable<Options> {
    let mut parser = lexopt::Parser::from_env();
    let mut options = Options {
        scale: DEFAULT,
        form: "whole",
        makes_page: false,
        redraws: false,
        only: Vec::new(),
        without: Vec::new(),
        with_paired: false,
        counts_instructions: false,
        shows_times: false,
        serve: None,
        through: Vec::new(),
        direct: None,
    };
    let list = |text: String| text.split(',').map(str::to_owned).collect::<Vec<String>>();
    let mut rounds = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Long("bench") => {}
            Long("quick") => (options.scale, options.form) = (QUICK, "quick"),
            Long("full") => {
                options.form = "full";
                options.scale = Scale { bulk_bytes: 1 << 30, big_upload: Some(4 << 30), ..DEFAULT };
                options.counts_instructions = true;
            }
            Long("page") => options.makes_page = true,
            Long("redraw") => options.redraws = true,
            Long("serve") => options.serve = Some(parser.value()?.parse()?),
            Long("direct") => options.direct = Some(parser.value()?.parse()?),
            Long("through") => {
                let family = Some(options.through.len());
                options.through.push(through(&parser.value()?.string()?, family)?);
            }
            Long("times") => options.shows_times = true,
            Long("rounds") => rounds = Some(parser.value()?.parse()?),
            Long("only") => options.only = list(parser.value()?.string()?),
            Long("paired") => options.with_paired = true,
            Long("without") => options.without = list(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    options.scale.rounds = rounds.unwrap_or(options.scale.rounds);
    if let Some(unknown) = options.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("no part is called {unknown}; there are {}", PARTS.join(", ")).into());
    }
    if options.makes_page {
        if !options.only.is_empty() {
            return Err("the page has every part: --page without --only".into());
        }
        options.with_paired = true;
        options.counts_instructions = true;
        options.scale.streams = &STREAMS[2..];
    }
    options.scale.static_build = std::env::var_os("OLLANA_BENCH_STATIC").map(PathBuf::from);
    options.counts_instructions |= options.only.iter().any(|part| part == "instructions");
    Ok(options)
}

/// `NAME=ADDRESS=PID,PID`: a way of two hops.
fn through(text: &str, family: Option<usize>) -> Failable<(String, Route)> {
    let words: Vec<&str> = text.split('=').collect();
    let [name, address, pids] = words[..] else { return Err("NAME=ADDRESS=PID,PID".into()) };
    let pids: Result<Vec<u32>, _> = pids.split(',').map(str::parse).collect();
    Ok((name.to_owned(), Route { family, hops: 2, address: address.parse()?, pids: pids? }))
}

/// Compares proxies that are there already, on another machine or in other namespaces.
fn run_through(options: &Options, direct: SocketAddr) -> Failable<()> {
    raise_descriptor_limit();
    let direct = Route { family: None, hops: 0, address: direct, pids: Vec::new() };
    let routes = options.through.iter().map(|(_, route)| route.clone());
    let routes: Vec<Route> = std::iter::once(direct).chain(routes).collect();
    let mut book = Book::of(options.through.iter().map(|(name, _)| name.clone()).collect());
    let scratch = Scratch::new()?;
    let upstream = Upstream::start()?;
    let scale = Scale { streams: &STREAMS[2..], ..options.scale.clone() };
    for round in 0..options.scale.rounds {
        let mut bench = Bench {
            families: &[],
            routes: routes.clone(),
            upstream: &upstream,
            dir: &scratch.0,
            scale: &scale,
            book: &mut book,
            round,
            turn: round,
        };
        for part in &options.only {
            match part.as_str() {
                "first-byte" => bench.first_byte()?,
                "requests" => bench.requests()?,
                "tokens" => bench.tokens()?,
                other => return Err(format!("{other} needs proxies of its own").into()),
            }
        }
    }
    println!("{}", book.table());
    Ok(())
}

/// A directory that goes with us.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Failable<Scratch> {
        let name = format!("ollana-bench-{}-{}", std::process::id(), measure::now_ns());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(options: &Options) -> Failable<()> {
    let start = Instant::now();
    raise_descriptor_limit();
    let scratch = Scratch::new()?;
    let families = proxies::families(&options.without, options.with_paired);
    let date = date();
    let mut busy = measure::busy(BEFORE);
    let machine = machine();
    println!("{date}, {machine}, {:.0} % busy with other things", busy * 100.0);
    for family in &families {
        let size = fs::metadata(&family.program).map_or(0, |file| file.len() / 1024);
        println!("{:9}{} ({size} KiB)", family.name, family.program.display());
    }
    let is_wanted = options.only.is_empty() || options.only.iter().any(|part| part == CHOOSING);
    let costs = is_wanted.then(|| Costs::measure(options.scale.decisions, options.scale.paced));
    let costs = costs.transpose()?;
    let upstream = Upstream::start()?;
    let mut book = Book::new(&families);
    let alone = options.only.iter().all(|part| part == CHOOSING) && !options.only.is_empty();
    for round in 0..if alone { 0 } else { options.scale.rounds } {
        run_round(options, &families, &scratch.0, &upstream, &mut book, round)?;
    }
    eprint!("\r{:78}\r", "");
    if !alone {
        println!("\n{}", book.table());
        println!(
            "Medians of {} rounds in {} s; +: what the proxy adds to direct. The ratios are \
             ollana's\nfigure to the other's, medians over neighbouring measurements.",
            options.scale.rounds,
            start.elapsed().as_secs()
        );
    }
    if let Some(costs) = &costs {
        println!("\n{}", costs.text());
    }
    busy = busy.max(measure::busy(BEFORE));
    let sizes = families.iter().map(|family| {
        let size = fs::metadata(&family.program).map_or(0, |file| file.len());
        (family.name.clone(), json!(size))
    });
    let versions = families.iter().map(|family| (family.name.clone(), json!(family.version())));
    let all = json!({
        "date": date,
        "machine": machine,
        "busy": busy,
        "form": options.form,
        "rounds": options.scale.rounds,
        "seconds": start.elapsed().as_secs(),
        "binary_bytes": sizes.collect::<serde_json::Map<_, _>>(),
        "versions": versions.collect::<serde_json::Map<_, _>>(),
        "rows": book.json(),
        "choosing": costs.as_ref().map(Costs::json),
    });
    let file = results();
    fs::write(&file, format!("{all:#}\n"))?;
    println!("Every single value: {}", file.display());
    if options.makes_page { page::write(&all) } else { Ok(()) }
}

/// The page again, of what was measured last.
fn redraw() -> Failable<()> {
    let file = results();
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    page::write(&serde_json::from_str(&text)?)
}

fn run_round(
    options: &Options,
    families: &[Family],
    dir: &Path,
    upstream: &Upstream,
    book: &mut Book,
    round: usize,
) -> Failable<()> {
    let (children, routes) = proxies::start_all(families, dir, upstream.address)?;
    let mut children = Some(children);
    let mut bench =
        Bench { families, routes, upstream, dir, scale: &options.scale, book, round, turn: round };
    for part in PARTS {
        let wanted = options.only.is_empty() || options.only.iter().any(|only| only == part);
        let is_due = match *part {
            // These hardly vary.
            "memory" | "idle" => round == 0,
            "instructions" => round == 0 && options.counts_instructions,
            _ => true,
        };
        if !wanted || !is_due || *part == CHOOSING {
            continue;
        }
        if LATE_PARTS.contains(part) {
            children = None;
        }
        let start = Instant::now();
        eprint!("\r{:78}\rround {} of {}: {part} ", "", round + 1, options.scale.rounds);
        match *part {
            "memory" => bench.memory()?,
            "first-byte" => bench.first_byte()?,
            "requests" => bench.requests()?,
            "tokens" => bench.tokens()?,
            "bulk" => bench.bulk()?,
            "cancel" => bench.cancel()?,
            "idle" => bench.idle()?,
            "start" => bench.start()?,
            "failover" => bench.fail_over()?,
            _ => bench.instructions()?,
        }
        if options.shows_times {
            eprintln!("{:.1} s", start.elapsed().as_secs_f64());
        }
    }
    drop(children);
    Ok(())
}

fn date() -> String {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    date.map_or(String::new(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Kernel, cores and processor: figures of another machine can't be compared.
fn machine() -> String {
    let system = rustix::system::uname();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(':')).map_or("", |(_, name)| name.trim());
    format!(
        "Linux {} {}, {} cores {model}",
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
        available_parallelism().map_or(0, usize::from)
    )
}

fn results() -> PathBuf {
    target_dir().join("bench.json")
}

fn target_dir() -> PathBuf {
    // target/release/deps/bench-…
    let own = std::env::current_exe().ok();
    let target = own.as_deref().and_then(|path| path.ancestors().nth(3)).map(Path::to_path_buf);
    target.unwrap_or_else(std::env::temp_dir)
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
