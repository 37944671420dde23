//! The measurements of one round, each on all routes in turn.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::bulk::{self, WAYS, Way};
use super::children::Failable;
use super::events;
use super::instructions;
use super::load::{self, Ask, Load};
use super::measure::{self, Cpu, percentile, resident_kib, threads};
use super::proxies::{Family, Role, Route};
use super::run::Scale;
use super::streams::{self, Outcome, Plan};
use super::table::{Book, Kind, Row};
use super::upstream::Upstream;

pub(crate) const FIRST_BYTE: &str = "first byte of a small answer, µs";
pub(crate) const REQUESTS: &str = "small requests per second";
pub(crate) const REQUEST_CPU: &str = "CPU per small request, µs";
pub(crate) const TOKENS: &str = "delay of a token, µs, 25 per second and stream";
pub(crate) const TOKEN_CPU: &str = "CPU per token, µs";
pub(crate) const MEMORY: &str = "memory and threads";
pub(crate) const BULK: &str = "bulk, GB/s";
pub(crate) const BULK_CPU: &str = "bulk, CPU-seconds per GB";
pub(crate) const EVENTS: &str = "single events";

/// Streams at a time, for tokens and for memory.
pub(crate) const STREAMS: [usize; 5] = [1, 10, 64, 256, 1000];
/// Connections that idle at the same time.
const IDLE: usize = 2000;

/// One round.
pub(crate) struct Bench<'a> {
    pub(crate) families: &'a [Family],
    pub(crate) routes: Vec<Route>,
    pub(crate) upstream: &'a Upstream,
    pub(crate) dir: &'a Path,
    pub(crate) scale: &'a Scale,
    pub(crate) book: &'a mut Book,
    pub(crate) round: usize,
    /// Who begins; changes with every measurement.
    pub(crate) turn: usize,
}

impl Bench<'_> {
    /// All routes, beginning with another one each time.
    fn in_turn(&mut self) -> Vec<Route> {
        let mut routes = self.routes.clone();
        self.turn += 1;
        let first = self.turn % routes.len();
        routes.rotate_left(first);
        routes
    }

    fn note(&mut self, section: &'static str, label: &str, kind: Kind, route: &Route, value: f64) {
        self.book.note(&Row::new(section, label, kind), route, value);
    }

    fn note_load(&mut self, label: &str, route: &Route, load: &Load, cpu: Duration) {
        let rate = load.requests as f64 / load.elapsed.as_secs_f64();
        self.note(REQUESTS, label, Kind::More, route, rate);
        if !route.pids.is_empty() {
            let cpu = cpu.as_secs_f64() * 1e6 / load.requests as f64;
            self.note(REQUEST_CPU, label, Kind::Less, route, cpu);
        }
    }

    /// Of processes that have answered one request each.
    pub(crate) fn memory(&mut self) -> Failable<()> {
        for route in self.in_turn().iter().filter(|route| route.hops == 1) {
            let resident = resident_kib(&route.pids) as f64;
            self.note(MEMORY, "idle, resident KiB", Kind::Less, route, resident);
            self.note(MEMORY, "idle, threads", Kind::Less, route, threads(&route.pids) as f64);
        }
        if let Some(program) = &self.scale.static_build {
            let mut family = self.families[0].clone();
            family.program.clone_from(program);
            let (child, address) = family.start(self.dir, Role::Server, self.upstream.address)?;
            let pids = vec![child.pid()];
            let resident = resident_kib(&pids) as f64;
            let route = Route { family: Some(0), hops: 1, address, pids };
            self.note(MEMORY, "idle, static build, KiB", Kind::Less, &route, resident);
        }
        let mut before: Vec<(SocketAddr, f64)> = Vec::new();
        // Memory that was needed once may stay, so the numbers grow.
        for count in STREAMS {
            for route in self.in_turn().into_iter().filter(|route| route.hops == 1) {
                let plan =
                    Plan { address: route.address, streams: count, pids: route.pids.clone() };
                for outcome in streams::run(&[plan], self.scale.window / 4)? {
                    let resident = outcome.resident_kib as f64;
                    let label = format!("{}, KiB", streams_label(count));
                    self.note(MEMORY, &label, Kind::Less, &route, resident);
                    if count == STREAMS[3] {
                        before.push((route.address, resident));
                    }
                    let earlier = before.iter().find(|(address, _)| *address == route.address);
                    if let Some((_, earlier)) = earlier.filter(|_| count == STREAMS[4]) {
                        let each = (resident - earlier) / (STREAMS[4] - STREAMS[3]) as f64;
                        self.note(MEMORY, "KiB per further stream", Kind::Less, &route, each);
                        let threads = outcome.threads as f64;
                        self.note(MEMORY, "1,000 streams, threads", Kind::Less, &route, threads);
                    }
                }
            }
        }
        Ok(())
    }

    /// What kept connections cost that have had an answer and want nothing more for now.
    pub(crate) fn idle(&mut self) -> Failable<()> {
        let mut held = Vec::new();
        for route in self.in_turn() {
            let Some(index) = route.family.filter(|_| route.hops == 1) else { continue };
            let family = &self.families[index];
            let (child, address) = family.start(self.dir, Role::Server, self.upstream.address)?;
            let route = Route { address, pids: measure::family(child.pid()), ..route };
            let before = resident_kib(&route.pids) as f64;
            held.push((load::connections(address, IDLE)?, before, route, child));
        }
        std::thread::sleep(self.scale.idle);
        for (connections, before, route, _child) in held {
            let each = (resident_kib(&route.pids) as f64 - before) / connections.len() as f64;
            self.note(MEMORY, "KiB per idle connection", Kind::Less, &route, each);
            let threads = threads(&route.pids) as f64;
            self.note(MEMORY, "2,000 idle, threads", Kind::Less, &route, threads);
        }
        Ok(())
    }

    pub(crate) fn first_byte(&mut self) -> Failable<()> {
        for (new, p50, p99) in [
            (false, "kept connection, p50", "kept connection, p99"),
            (true, "new connection, p50", "new connection, p99"),
        ] {
            for _ in 0..self.scale.repeats {
                for route in self.in_turn() {
                    let load = load::one_by_one(route.address, Ask::Chat, self.scale.slice, new)?;
                    for (label, fraction) in [(p50, 0.5), (p99, 0.99)] {
                        let us = percentile(&load.first_bytes, fraction) as f64 / 1e3;
                        self.note(FIRST_BYTE, label, Kind::Added, &route, us);
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn requests(&mut self) -> Failable<()> {
        for _ in 0..self.scale.repeats {
            for route in self.in_turn() {
                let before = Cpu::of(&route.pids);
                let load = load::one_by_one(route.address, Ask::Tags, self.scale.slice, false)?;
                let cpu = Cpu::of(&route.pids).since(&before);
                self.note_load("1 connection", &route, &load, cpu);
            }
        }
        for (connections, label) in [(16, "16 connections"), (64, "64 connections")] {
            for _ in 0..self.scale.repeats {
                for route in self.in_turn() {
                    let slice = self.scale.slice;
                    let before = Cpu::of(&route.pids);
                    let load = load::all_at_once(route.address, Ask::Tags, connections, slice)?;
                    let cpu = Cpu::of(&route.pids).since(&before);
                    self.note_load(label, &route, &load, cpu);
                }
            }
        }
        Ok(())
    }

    /// On few streams, routes of equal length run side by side: they don't disturb each other,
    /// and get the same share of whatever else the machine does.
    pub(crate) fn tokens(&mut self) -> Failable<()> {
        let mut few = Vec::new();
        for hops in [1, 2] {
            for streams in [1, 10] {
                let routes: Vec<Route> = self
                    .in_turn()
                    .into_iter()
                    .filter(|route| route.hops == hops || (route.hops == 0 && hops == 1))
                    .collect();
                let plans: Vec<Plan> = routes
                    .iter()
                    .map(|route| Plan { address: route.address, streams, pids: route.pids.clone() })
                    .collect();
                let outcomes = streams::run(&plans, self.scale.long_window)?;
                for (route, outcome) in routes.iter().zip(&outcomes) {
                    self.note_tokens(streams, route, outcome);
                    if streams == 10 {
                        few.push((route.address, outcome.cpu_us));
                    }
                }
            }
        }
        for streams in self.scale.streams {
            for route in self.in_turn() {
                let pids = route.pids.clone();
                let plan = Plan { address: route.address, streams: *streams, pids };
                for outcome in streams::run(&[plan], self.scale.window)? {
                    self.note_tokens(*streams, &route, &outcome);
                    let at_10 = few.iter().find(|(address, _)| *address == route.address);
                    if let Some((_, at_10)) = at_10.filter(|_| *streams == 1000 && route.hops > 0) {
                        let growth = outcome.cpu_us / at_10;
                        self.note(TOKEN_CPU, "1,000 streams : 10", Kind::Less, &route, growth);
                    }
                }
            }
        }
        Ok(())
    }

    fn note_tokens(&mut self, streams: usize, route: &Route, outcome: &Outcome) {
        let label = streams_label(streams);
        for (name, fraction, kind) in
            [("p50", 0.5, Kind::Added), ("p99", 0.99, Kind::Added), ("max", 1.0, Kind::Less)]
        {
            let us = percentile(&outcome.delays, fraction) as f64 / 1e3;
            self.note(TOKENS, &format!("{label}, {name}"), kind, route, us);
        }
        if !route.pids.is_empty() && streams != 1 {
            self.note(TOKEN_CPU, &label, Kind::Less, route, outcome.cpu_us);
        }
    }

    pub(crate) fn bulk(&mut self) -> Failable<()> {
        for way in WAYS {
            self.copy(way, self.scale.bulk_bytes, name(way))?;
        }
        if let Some(bytes) = self.scale.big_upload.filter(|_| self.round == 0) {
            self.copy(Way::UpChunked, bytes, "up in chunks, 4 GiB")?;
        }
        Ok(())
    }

    fn copy(&mut self, way: Way, bytes: u64, label: &str) -> Failable<()> {
        for route in self.in_turn() {
            let before = Cpu::of(&route.pids);
            let elapsed = bulk::copy(route.address, way, bytes)?;
            let cpu = Cpu::of(&route.pids).since(&before);
            let gigabytes = bytes as f64 / 1e9;
            self.note(BULK, label, Kind::More, &route, gigabytes / elapsed.as_secs_f64());
            if !route.pids.is_empty() {
                let cpu = cpu.as_secs_f64() / gigabytes;
                self.note(BULK_CPU, label, Kind::Less, &route, cpu);
            }
        }
        Ok(())
    }

    pub(crate) fn cancel(&mut self) -> Failable<()> {
        for (streaming, label) in
            [(false, "hang-up, waiting, µs"), (true, "hang-up, streaming, µs")]
        {
            for _ in 0..self.scale.events {
                for route in self.in_turn().iter().filter(|route| route.hops > 0) {
                    let us = events::time_to_cancel(self.upstream, route.address, streaming)?;
                    self.note(EVENTS, label, Kind::Less, route, us);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn start(&mut self) -> Failable<()> {
        for _ in 0..self.scale.events {
            for route in self.in_turn() {
                let Some(index) = route.family.filter(|_| route.hops == 1) else { continue };
                let family = &self.families[index];
                let target = self.upstream.address;
                let ms = events::time_to_listen(family, self.dir, target)?;
                self.note(EVENTS, "exec to listening, ms", Kind::Less, &route, ms);
                if family.is_ollana() {
                    let ms = events::time_to_discover(family, self.dir, target)?;
                    self.note(EVENTS, "exec of both to 200, ms", Kind::Less, &route, ms);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn fail_over(&mut self) -> Failable<()> {
        for _ in 0..self.scale.events {
            for route in self.in_turn() {
                let Some(index) = route.family.filter(|_| route.hops == 2) else { continue };
                let family = &self.families[index];
                if family.is_ollana() {
                    let ms = events::time_to_fail_over(family, self.dir, self.upstream)?;
                    self.note(EVENTS, "dead server to answer, ms", Kind::Less, &route, ms);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn instructions(&mut self) -> Failable<()> {
        for route in self.routes.clone() {
            let Some(index) = route.family.filter(|_| route.hops == 1) else { continue };
            let family = &self.families[index];
            if family.is_ollana() {
                let target = self.upstream.address;
                let count = instructions::per_request(family, Role::Server, self.dir, target)?;
                if let Some(count) = count {
                    self.note(REQUEST_CPU, "instructions, 1,000s", Kind::Less, &route, count / 1e3);
                }
            }
        }
        Ok(())
    }
}

/// How rows call a number of streams.
pub(crate) fn streams_label(count: usize) -> String {
    match count {
        1 => "1 stream".to_owned(),
        1000 => "1,000 streams".to_owned(),
        _ => format!("{count} streams"),
    }
}

fn name(way: Way) -> &'static str {
    match way {
        Way::DownByLength => "down by length",
        Way::DownChunked => "down in chunks",
        Way::UpByLength => "up by length",
        Way::UpChunked => "up in chunks",
    }
}
