//! Time, the network, and what becomes of each request; and what must hold throughout.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ollana::manager::pool::{
    CheckId, Input, Known, MAX_CHECKS, Outcome, Pool, Report, Transition, Wanted,
};
use ollana::manager::queue::{Refused, Request};
use ollana::ollama::model_name::ModelName;
use ollana::proxy::Attempts;
use ollana::upstream::CheckResult;

use super::house::{CHECK_TIMEOUT, Server, rules};
use super::report::{Answer, Tally};
use super::story::{Act, Asking};
use crate::client::{Client, Job, Lease, Mail, Token};
use crate::support::{Agenda, Random};

const TICK: Duration = Duration::from_millis(250);
const PROBE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1300);
/// Where no other server could do it.
const PATIENT_CONNECT: Duration = Duration::from_secs(15);
/// A peer that vanished is noticed after this.
const VANISHED: Duration = Duration::from_secs(11);
/// Between two tokens.
const TOKEN: Duration = Duration::from_millis(400);
/// A server that was as it is for so long is known to be: a probe and some checks have passed.
const SETTLED: Duration = Duration::from_secs(15);
/// Bytes from a server prove for so long that it is alive.
const PROOF: Duration = Duration::from_secs(3);

/// What happens in the house.
mod acts;
/// Requests.
mod requests;

/// A machine with programs and a client's daemon.
pub(crate) struct Laptop {
    daemon: Client,
    pub(crate) is_awake: bool,
    /// Counts the runs of the daemon: what belongs to an earlier one is lost.
    epoch: u32,
    /// Since when it is closed; and for how long its clock stood still.
    closed_at: Option<Instant>,
    slept: Duration,
    /// Its own Wi-Fi: packets lost of a hundred, each way.
    pub(crate) loss: usize,
    busy_checkers: usize,
    /// What its daemon wrote down last.
    saved: Vec<Known>,
    /// By server: the models that it has told this machine; when bytes of it came last; since when
    /// the way there is as it is.
    told: BTreeMap<usize, BTreeSet<String>>,
    heard: BTreeMap<usize, Instant>,
    /// When its own bad Wi-Fi last hid the server.
    hidden: BTreeMap<usize, Instant>,
    pub(crate) stable_since: Instant,
}

impl Laptop {
    fn new(now: Instant, seed: u64) -> Self {
        Laptop {
            daemon: Client::new(now, Pool::new(rules(true), seed)),
            is_awake: true,
            epoch: 0,
            closed_at: None,
            slept: Duration::ZERO,
            loss: 0,
            busy_checkers: 0,
            saved: Vec::new(),
            told: BTreeMap::new(),
            heard: BTreeMap::new(),
            hidden: BTreeMap::new(),
            stable_since: now,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Cloud,
    Show,
}

/// A program's request, in the hands of its laptop's daemon.
struct Ask {
    laptop: usize,
    kind: Kind,
    model: String,
    wanted: Wanted,
    tokens: usize,
    attempts: Attempts,
    is_present: Rc<Cell<bool>>,
    lease: Option<Lease>,
    attempt: u32,
    /// The attempt has got as far as the server.
    is_connected: bool,
    begun_at: Instant,
    /// The server that has it, and the lease of its daemon.
    at: Option<usize>,
    inner: Option<Lease>,
    is_begun: bool,
    /// Servers that refused or failed it, or whose way there did.
    failed_on: BTreeSet<usize>,
    /// How the last attempt ended, which the program gets if there is no other.
    last: Option<Answer>,
    is_over: bool,
}

/// What waits for a server's daemon.
#[derive(Clone, Copy, Debug)]
enum Visit {
    Ask(usize, u32),
    Check(usize),
}

/// A laptop's health check.
struct Check {
    laptop: usize,
    epoch: u32,
    job: Job,
    is_over: bool,
}

/// Whose daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Laptop(usize),
    Server(usize),
}

#[derive(Debug)]
enum Event {
    Act(Act),
    /// Of the chain with this number.
    Tick(Who, u64),
    Probe(usize, u64),
    Sighted(usize, u32, Input),
    /// A laptop's check, by its number, arrives at the server.
    CheckArrives(usize, usize),
    /// It ends, as this server or the time has it.
    Checked(usize, CheckResult, Option<usize>),
    /// A server's look at its own Ollama ends.
    SelfChecked(usize, u32, CheckId, CheckResult),
    /// A request is where it goes, or can't get there.
    Arrives(usize, u32, usize),
    Unreached(usize, u32),
    /// Its server is called down or elsewhere before it was connected to.
    Hopeless(usize, u32),
    /// Its next token, with so many to come.
    Token(usize, u32, usize),
    /// Its connection has been dead for long enough to be noticed.
    Vanished(usize, u32),
    Answered(usize, u32, Outcome, Answer),
    Leaves(usize),
}

fn silent() -> CheckResult {
    CheckResult::Silent("no answer in time".to_owned())
}

pub(crate) struct World {
    pub(crate) random: Random,
    start: Instant,
    pub(crate) now: Instant,
    events: Agenda<Event>,
    pub(crate) servers: Vec<Server>,
    pub(crate) laptops: Vec<Laptop>,
    /// Whether the router works.
    pub(crate) has_network: bool,
    /// Whether daemons tick: at other times nothing happens in the house.
    is_lively: bool,
    /// The ticks and probes of each daemon are chains of events, of which one goes on.
    chains: BTreeMap<Who, u64>,
    pub(super) asking: Asking,
    pub(super) is_arriving: bool,
    asks: Vec<Ask>,
    /// Those that wait for a lease.
    waiting: BTreeSet<usize>,
    visits: Vec<Visit>,
    checks: Vec<Check>,
    next_host: u8,
    pub(crate) tally: Tally,
    trace: Option<Vec<String>>,
    violation: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, traces: bool) -> Self {
        let start = Instant::now();
        World {
            random: Random::new(seed),
            start,
            now: start,
            events: Agenda::new(),
            servers: Vec::new(),
            laptops: Vec::new(),
            has_network: true,
            is_lively: false,
            chains: BTreeMap::new(),
            asking: Asking::Nobody,
            is_arriving: false,
            asks: Vec::new(),
            waiting: BTreeSet::new(),
            visits: Vec::new(),
            checks: Vec::new(),
            next_host: 50,
            tally: Tally::default(),
            trace: traces.then(Vec::new),
            violation: None,
        }
    }

    /// Runs it to its end; what was seen, or what must never be.
    pub(crate) fn run(mut self) -> (Result<Tally, String>, Vec<String>) {
        self.plan();
        while let Some((at, event)) = self.events.next() {
            self.now = at;
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                let at = self.clock();
                return (Err(format!("{at}: {violation}")), self.trace.unwrap_or_default());
            }
        }
        let left: u32 = self.laptops.iter().map(|it| it.daemon.in_flight()).sum();
        let result =
            if left == 0 { Ok(self.tally) } else { Err(format!("{left} leases are left")) };
        (result, self.trace.unwrap_or_default())
    }

    /// Day, hour, minute and second.
    fn clock(&self) -> String {
        let seconds = (self.now - self.start).as_secs_f64();
        let (day, rest) = ((seconds / 86400.0) as u32 + 1, seconds % 86400.0);
        format!(
            "day {day} {:02}:{:02}:{:06.3}",
            rest as u32 / 3600,
            rest as u32 / 60 % 60,
            rest % 60.0
        )
    }

    pub(crate) fn note(&mut self, text: impl FnOnce(&World) -> String) {
        if self.trace.is_some() {
            let line = format!("{} {}", self.clock(), text(self));
            self.trace.iter_mut().for_each(|trace| trace.push(line.clone()));
        }
    }

    fn must_not(&mut self, violation: Option<String>) {
        self.violation = self.violation.take().or(violation);
    }

    fn after(&mut self, pause: Duration, event: Event) {
        self.events.add(self.now + pause, event);
    }

    pub(crate) fn at(&mut self, time: Duration, act: Act) {
        self.events.add(self.start + time, Event::Act(act));
    }

    pub(crate) fn soon(&mut self, least: u64, most: u64, act: Act) {
        let pause = self.between(least, most);
        self.after(pause, Event::Act(act));
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.random.below((most - least).max(1) as usize) as u64)
    }

    fn epoch(&self, who: Who) -> u32 {
        match who {
            Who::Laptop(laptop) => self.laptops[laptop].epoch,
            Who::Server(server) => self.servers[server].instance,
        }
    }

    fn is_awake(&self, who: Who) -> bool {
        match who {
            Who::Laptop(laptop) => self.laptops[laptop].is_awake,
            Who::Server(server) => self.servers[server].is_awake,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act(act) => self.act(act),
            Event::Tick(who, chain) => {
                if self.goes_on(who, chain) {
                    self.after(TICK, Event::Tick(who, chain));
                    self.deliver(who, Mail::Input(Input::Tick));
                    if let Who::Laptop(laptop) = who {
                        self.judge_waiting(laptop);
                    }
                }
            }
            Event::Probe(laptop, chain) => self.probe(laptop, chain),
            Event::Sighted(laptop, epoch, input) => {
                if self.is_at_work(laptop, epoch) {
                    self.deliver(Who::Laptop(laptop), Mail::Input(input));
                }
            }
            Event::CheckArrives(check, server) => {
                if self.servers[server].is_awake {
                    self.visit(server, Visit::Check(check));
                }
            }
            Event::Checked(check, result, server) => self.checked(check, result, server),
            Event::SelfChecked(at, epoch, id, result) => {
                let who = Who::Server(at);
                if self.is_awake(who) && self.epoch(who) == epoch {
                    self.deliver(who, Mail::Input(Input::Checked(id, result)));
                }
            }
            Event::Arrives(ask, attempt, server) => {
                if self.is_at(ask, attempt) {
                    if self.reaches(self.asks[ask].laptop, self.address_of(ask)) == Some(server) {
                        self.asks[ask].at = Some(server);
                        self.asks[ask].is_connected = true;
                        self.visit(server, Visit::Ask(ask, attempt));
                    } else {
                        self.after(CONNECT_TIMEOUT, Event::Unreached(ask, attempt));
                    }
                }
            }
            Event::Unreached(ask, attempt) => {
                if !self.asks[ask].is_connected {
                    self.failed(ask, attempt, Outcome::Unreachable, Answer::Unreached);
                }
            }
            Event::Hopeless(ask, attempt) => self.hopeless(ask, attempt),
            Event::Token(ask, attempt, left) => self.token(ask, attempt, left),
            Event::Vanished(ask, attempt) => {
                if self.is_at(ask, attempt) && self.is_cut_off(ask) {
                    self.failed(ask, attempt, Outcome::Failed, Answer::Cut);
                }
            }
            Event::Answered(ask, attempt, outcome, answer) => {
                self.answered(ask, attempt, outcome, answer);
            }
            Event::Leaves(ask) => self.leaves(ask),
        }
    }

    // --- who is where

    fn is_at_work(&self, laptop: usize, epoch: u32) -> bool {
        self.laptops[laptop].is_awake && self.laptops[laptop].epoch == epoch
    }

    fn local_time(&self, who: Who) -> Instant {
        match who {
            Who::Laptop(laptop) => self.now - self.laptops[laptop].slept,
            Who::Server(_) => self.now,
        }
    }

    /// The server that a packet from this laptop reaches.
    fn reaches(&self, laptop: usize, address: Option<SocketAddr>) -> Option<usize> {
        let at = self.servers.iter().position(|it| Some(it.address) == address)?;
        let works = self.has_network && self.laptops[laptop].is_awake;
        (works && self.servers[at].is_awake).then_some(at)
    }

    fn address_of(&self, ask: usize) -> Option<SocketAddr> {
        self.asks[ask].lease.as_ref().map(|lease| lease.pick.address)
    }

    /// How long a packet takes, with its repetitions: the first after `retry`, then doubled.
    fn travel(&mut self, laptop: usize, retry: u64) -> Duration {
        let mut time = self.between(1, 4);
        let mut retry = Duration::from_millis(retry);
        while self.random.below(100) < self.laptops[laptop].loss && retry < 40 * PROBE {
            time += retry;
            retry *= 2;
        }
        time
    }

    pub(crate) fn new_address(&mut self) -> SocketAddr {
        self.next_host = if self.next_host == 250 { 50 } else { self.next_host + 1 };
        SocketAddr::from(([10, 0, 0, self.next_host], 11435))
    }

    // --- daemons

    pub(crate) fn add_server(&mut self, name: &str, models: &[&str]) -> usize {
        let number = self.servers.len();
        self.servers.push(Server::new(self.now, number as u8, name, models));
        self.start_daemon(Who::Server(number));
        number
    }

    pub(crate) fn add_laptop(&mut self) {
        let number = self.laptops.len();
        self.laptops.push(Laptop::new(self.now, 100 + number as u64));
        self.start_daemon(Who::Laptop(number));
    }

    pub(super) fn start_daemon(&mut self, who: Who) {
        if self.is_lively && self.is_awake(who) {
            let chain = self.events.number;
            self.chains.insert(who, chain);
            self.after(Duration::ZERO, Event::Tick(who, chain));
            if let Who::Laptop(laptop) = who {
                self.after(Duration::ZERO, Event::Probe(laptop, chain));
            }
        }
    }

    /// People are there, or not: then nothing happens, and the daemons needn't be looked at.
    pub(crate) fn set_lively(&mut self, is_lively: bool) {
        if std::mem::replace(&mut self.is_lively, is_lively) == is_lively {
            return;
        }
        (0..self.servers.len()).for_each(|at| self.start_daemon(Who::Server(at)));
        (0..self.laptops.len()).for_each(|at| self.start_daemon(Who::Laptop(at)));
    }

    fn daemon(&mut self, who: Who) -> &mut Client {
        match who {
            Who::Laptop(laptop) => &mut self.laptops[laptop].daemon,
            Who::Server(server) => &mut self.servers[server].daemon,
        }
    }

    pub(crate) fn deliver(&mut self, who: Who, mail: Mail) {
        let now = self.local_time(who);
        let heard = self.daemon(who).turn(now, mail);
        let reports = std::mem::take(&mut self.daemon(who).reports);
        let remembers = std::mem::take(&mut self.daemon(who).remembers);
        if let Who::Laptop(laptop) = who {
            reports.into_iter().for_each(|report| self.reported(laptop, report));
            if remembers {
                self.laptops[laptop].saved = self.daemon(who).queue.pool().memorable(now);
            }
        }
        self.run_jobs(who);
        for (number, answer) in heard {
            match (who, answer) {
                (Who::Laptop(_), Ok(lease)) => self.leased(number, lease),
                (Who::Laptop(_), Err(refused)) => self.refused(number, refused),
                (Who::Server(at), answer) => self.admitted(at, self.visits[number], answer.ok()),
            }
        }
    }

    /// No server is called down while it answers or streams.
    fn reported(&mut self, laptop: usize, report: Transition) {
        self.note(|_| format!("laptop {laptop}: {report:?}"));
        self.end_hope(laptop, &report);
        if let Transition::Down { name, reason } = report {
            self.tally.downs += 1;
            let is_meant = |it: &Server| name.starts_with(&format!("{} (", it.name));
            let Some(at) = self.servers.iter().position(is_meant) else { return };
            let heard = self.laptops[laptop].heard.get(&at).copied();
            let is_heard = heard.is_some_and(|at| self.now - at < PROOF);
            let reaches = self.reaches(laptop, Some(self.servers[at].address)) == Some(at);
            let text =
                || format!("laptop {laptop} calls {name} down ({reason}), which it just heard");
            self.must_not((is_heard && reaches).then(text));
            if self.laptops[laptop].loss > 0 {
                self.laptops[laptop].hidden.insert(at, self.now);
            }
        }
    }

    fn run_jobs(&mut self, who: Who) {
        loop {
            if matches!(who, Who::Laptop(at) if self.laptops[at].busy_checkers >= MAX_CHECKS) {
                return;
            }
            let Some(job) = self.daemon(who).jobs.pop_front() else { return };
            self.tally.checks += 1;
            match who {
                Who::Laptop(laptop) => self.check(laptop, job),
                Who::Server(at) => {
                    let takes = self.servers[at].answer_time();
                    let time = job.time.answer;
                    let result = match takes < time {
                        true => self.healthy(at, job.address, takes, false),
                        false => silent(),
                    };
                    let ends = Event::SelfChecked(at, self.epoch(who), job.id, result);
                    self.after(takes.min(time), ends);
                }
            }
        }
    }

    fn check(&mut self, laptop: usize, job: Job) {
        self.laptops[laptop].busy_checkers += 1;
        let there = self.travel(laptop, 1000);
        let number = self.checks.len();
        let server = self.reaches(laptop, Some(job.address));
        let epoch = self.laptops[laptop].epoch;
        let answer = job.time.answer;
        let connect = job.time.connect.unwrap_or(CONNECT_TIMEOUT).min(answer);
        self.checks.push(Check { laptop, epoch, job, is_over: false });
        let server = server.filter(|_| there < connect);
        if let Some(at) = server {
            self.after(there, Event::CheckArrives(number, at));
        }
        // Whichever comes first counts.
        let time = if server.is_some() { answer } else { connect };
        self.after(time, Event::Checked(number, silent(), None));
    }

    fn checked(&mut self, number: usize, result: CheckResult, server: Option<usize>) {
        let Check { laptop, epoch, is_over, .. } = self.checks[number];
        if is_over || !self.is_at_work(laptop, epoch) {
            return;
        }
        let check = &mut self.checks[number];
        check.is_over = true;
        let (id, tells) = (check.job.id, check.job.wants_inventory);
        self.laptops[laptop].busy_checkers -= 1;
        if let Some(at) = server {
            self.hear(laptop, at);
            if tells {
                let models = self.servers[at].models.clone();
                self.laptops[laptop].told.insert(at, models);
            }
        }
        self.deliver(Who::Laptop(laptop), Mail::Input(Input::Checked(id, result)));
    }

    fn healthy(
        &mut self,
        at: usize,
        address: SocketAddr,
        took: Duration,
        tells: bool,
    ) -> CheckResult {
        let server = &mut self.servers[at];
        CheckResult::Healthy {
            address,
            round_trip: took,
            version: "0.33.0".to_owned(),
            name: Some(server.name.clone()),
            identity: Some(server.identity),
            open: None,
            saved: 0,
            inventory: tells.then(|| server.inventory()),
        }
    }

    fn hear(&mut self, laptop: usize, server: usize) {
        self.laptops[laptop].heard.insert(server, self.now);
    }

    fn goes_on(&self, who: Who, chain: u64) -> bool {
        self.is_lively && self.is_awake(who) && self.chains.get(&who) == Some(&chain)
    }

    fn probe(&mut self, laptop: usize, chain: u64) {
        if !self.goes_on(Who::Laptop(laptop), chain) {
            return;
        }
        let epoch = self.laptops[laptop].epoch;
        self.after(PROBE, Event::Probe(laptop, chain));
        for at in 0..self.servers.len() {
            let loss = self.laptops[laptop].loss;
            let is_lost = self.random.below(100) < loss || self.random.below(100) < loss;
            let address = Some(self.servers[at].address);
            if !is_lost && self.reaches(laptop, address) == Some(at) {
                let sighting = self.servers[at].sighting();
                let pause = self.between(1, 5);
                self.after(pause, Event::Sighted(laptop, epoch, sighting));
            }
        }
    }

    // --- a server's daemon and its Ollama

    fn visit(&mut self, at: usize, visit: Visit) {
        let is_exempt = match visit {
            Visit::Ask(ask, _) => self.asks[ask].wanted.is_exempt,
            Visit::Check(..) => true,
        };
        if let Some(lease) = self.servers[at].daemon.enter_fast_path(is_exempt) {
            return self.admitted(at, visit, Some(lease));
        }
        let is_present = match visit {
            Visit::Ask(ask, _) => Rc::clone(&self.asks[ask].is_present),
            Visit::Check(..) => Rc::new(Cell::new(true)),
        };
        self.visits.push(visit);
        let token = Token { request: self.visits.len() - 1, is_present };
        let client = match visit {
            Visit::Ask(ask, _) => self.asks[ask].laptop,
            Visit::Check(check) => self.checks[check].laptop,
        };
        let client = Some(([10, 0, 1, client as u8]).into());
        let wanted = Wanted { client, local_only: true, is_exempt, ..Wanted::default() };
        self.deliver(Who::Server(at), Mail::Ask(token, Request { tried: Vec::new(), wanted }));
    }

    /// A server's daemon passes a visit on to its Ollama, or refuses it.
    fn admitted(&mut self, at: usize, visit: Visit, lease: Option<Lease>) {
        match (visit, lease) {
            (Visit::Check(number), Some(lease)) => {
                self.give_back(Who::Server(at), &lease, Outcome::Answered.into());
                let Check { laptop, ref job, .. } = self.checks[number];
                let (address, tells) = (job.address, job.wants_inventory);
                let takes = self.servers[at].answer_time() + self.travel(laptop, 200);
                let well = self.healthy(at, address, takes, tells);
                self.after(takes, Event::Checked(number, well, Some(at)));
            }
            (Visit::Check(..), None) => {}
            (Visit::Ask(ask, attempt), None) => {
                let answer = Answer::Busy;
                self.after(TICK / 50, Event::Answered(ask, attempt, Outcome::TurnedAway, answer));
            }
            (Visit::Ask(ask, attempt), Some(lease)) if !self.is_at(ask, attempt) => {
                self.give_back(Who::Server(at), &lease, Outcome::Void.into());
            }
            (Visit::Ask(ask, attempt), Some(lease)) => {
                self.asks[ask].inner = Some(lease);
                self.ollama_has(at, ask, attempt);
            }
        }
    }

    fn ollama_has(&mut self, at: usize, ask: usize, attempt: u32) {
        let back = self.travel(self.asks[ask].laptop, 200);
        let (server, request) = (&mut self.servers[at], &self.asks[ask]);
        let (kind, tokens) = (request.kind, request.tokens);
        let (outcome, answer) = match kind {
            Kind::Cloud if server.is_quota_spent => (Outcome::Declined, Answer::Quota),
            Kind::Chat | Kind::Show if !server.has(&request.model) => {
                (Outcome::Answered, Answer::NotFound)
            }
            Kind::Show => (Outcome::Answered, Answer::Fine),
            Kind::Cloud => return self.after(TOKEN, Event::Token(ask, attempt, tokens)),
            Kind::Chat if server.working.len() < server.parallel => {
                server.working.push(ask);
                let loads = self.between(300, 4000);
                return self.after(loads, Event::Token(ask, attempt, tokens));
            }
            Kind::Chat if server.pending.len() < server.queue => {
                return server.pending.push_back(ask);
            }
            Kind::Chat => (Outcome::Overloaded, Answer::Overload),
        };
        self.after(back, Event::Answered(ask, attempt, outcome, answer));
    }

    /// The Ollama and the server's daemon are done with a request.
    fn leave_server(&mut self, ask: usize, outcome: Outcome) {
        let Some(at) = self.asks[ask].at.take() else { return };
        let server = &mut self.servers[at];
        server.working.retain(|it| *it != ask);
        server.pending.retain(|it| *it != ask);
        let next = (server.working.len() < server.parallel).then(|| server.pending.pop_front());
        if let Some(next) = next.flatten() {
            self.servers[at].working.push(next);
            let (attempt, tokens) = (self.asks[next].attempt, self.asks[next].tokens);
            self.after(TOKEN, Event::Token(next, attempt, tokens));
        }
        if let Some(lease) = self.asks[ask].inner.take() {
            self.give_back(Who::Server(at), &lease, outcome.into());
        }
    }

    fn give_back(&mut self, who: Who, lease: &Lease, report: Report) {
        if let Some(input) = self.daemon(who).release(lease, report) {
            self.deliver(who, Mail::Input(input));
        }
    }
}
