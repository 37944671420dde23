//! Time, chance and the network between the client and the servers; and what must hold throughout.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::access::permissions::Permission;
use ollana::config::ServerName;
use ollana::discovery::matching::Received;
use ollana::discovery::packet::{self, Datagram};
use ollana::manager::pool::{
    BackendId, Input, Known, MAX_CHECKS, Outcome, Pick, Pool, Report, Rules, Wanted,
};
use ollana::manager::queue::{MAX_QUEUE, Refused, Request};
use ollana::ollama::endpoints::Task;
use ollana::ollama::model_name::ModelName;
use ollana::proxy::Attempts;
use ollana::upstream::CheckResult;

use super::client::{Client, Job, Lease, Mail, Token, plain};
use super::lan::{COMMON, Condition, Lan, Meeting, OTHERS};
use crate::support::{Agenda, Random};

/// Within this time after the faults a server that is well must be in use.
pub(crate) const RECOVERED: Duration = Duration::from_secs(6);
/// Every stranger that was announced before may keep a server that was never well waiting for its
/// first check: three of them are checked at a time, 1.5 s each if they stay silent.
const PER_STRANGER: Duration = Duration::from_millis(500);
/// From a probe to the next one, at most.
const PROBE_INTERVAL: Duration = Duration::from_millis(5500);
/// Health checks and connects give up after these.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1500);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1300);
/// A peer that vanished is noticed after this.
const VANISHED: Duration = Duration::from_secs(11);
/// Silent checks in a row that take a server out.
const FALL: u32 = 2;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    /// 502 or 503 with its reason.
    Error(String),
    /// Within its answer, visibly.
    Cut,
    /// The program hung up.
    Left,
}

/// One request in its worker's hands.
#[derive(Debug)]
struct Exchange {
    wanted: Wanted,
    is_repeatable: bool,
    is_replayable: bool,
    attempts: Attempts,
    is_present: Rc<Cell<bool>>,
    lease: Option<Lease>,
    /// Counts the leases, so that news of an earlier one is told apart.
    attempt: u32,
    /// The server that works on it, and whether its answer has begun.
    at: Option<usize>,
    has_begun: bool,
    /// How often an Ollama may have got it.
    received: u32,
    end: Option<End>,
    /// It has to succeed, for the faults are over.
    is_proof: bool,
}

#[derive(Debug)]
enum Event {
    Tick,
    Probe,
    Packet(Vec<u8>, SocketAddr),
    Mail(Mail),
    CheckEnds(Job, CheckResult),
    Arrive,
    Proof,
    /// The request's connection is where it is going.
    Reach(usize, u32),
    Unreached(usize, u32),
    /// The server is half done, or done; so long it could not be heard of.
    Work(usize, u32, bool, Duration),
    Leave(usize),
    Fault,
    Calm,
    Judge,
}

impl Event {
    /// For the trace.
    fn text(&self) -> String {
        let result = |result: &CheckResult| match result {
            CheckResult::Healthy { .. } => "well".to_owned(),
            other => format!("{other:?}"),
        };
        match self {
            Event::Packet(bytes, source) => match packet::decode(bytes) {
                Ok(packet::Packet::V1(packet)) => {
                    let (kind, sender) = (packet.kind, packet.sender.0[0]);
                    format!("packet {kind:?} by {sender} run {} from {source}", packet.instance)
                }
                other => format!("packet {other:?} from {source}"),
            },
            Event::CheckEnds(job, found) => {
                format!("check of {} ends: {}", job.address, result(found))
            }
            Event::Mail(Mail::Checked(Input::Checked(id, found), address)) => {
                format!("mail: {id:?} checked at {address}: {}", result(found))
            }
            Event::Mail(Mail::Ask(token, request)) => {
                let Request { tried, wanted } = request;
                let model = wanted.model.as_ref().map(ModelName::as_str);
                format!(
                    "mail: request {} asks, {:?} {model:?} tried {tried:?}",
                    token.request, wanted.task
                )
            }
            other => format!("{other:?}"),
        }
    }
}

/// What was seen of a backend's address by checks that the pool got to hear of.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    is_well: bool,
    silences: u32,
    /// A request was answered since the last check: then its silence says nothing.
    has_answered: bool,
}

/// What came out of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: usize,
    pub(crate) answered: usize,
    pub(crate) errors: usize,
    pub(crate) cut: usize,
    pub(crate) left: usize,
    pub(crate) resent: usize,
    pub(crate) checks: usize,
    pub(crate) packets: usize,
    pub(crate) faults: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.answered += other.answered;
        self.errors += other.errors;
        self.cut += other.cut;
        self.left += other.left;
        self.resent += other.resent;
        self.checks += other.checks;
        self.packets += other.packets;
        self.faults += other.faults;
    }
}

/// The whole simulation.
pub(crate) struct World {
    random: Random,
    start: Instant,
    now: Instant,
    events: Agenda<Event>,
    lan: Lan,
    client: Client,
    busy_checkers: usize,
    exchanges: Vec<Exchange>,
    standing: BTreeMap<(BackendId, SocketAddr), Standing>,
    /// Ends of leases that are on their way to the Manager.
    told: u32,
    most_servers: usize,
    /// Whether a server has changed its address.
    has_moved: bool,
    /// Whether one has got an address that another had.
    has_succeeded: bool,
    was_forged: bool,
    calm_at: Duration,
    /// How long after the faults everything must be well.
    recovery: Duration,
    tally: Tally,
    trace: Option<Vec<String>>,
    violation: Option<String>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn model(name: &str) -> Option<ModelName> {
    ModelName::parse(name)
}

impl World {
    pub(crate) fn new(seed: u64, traces: bool) -> World {
        let mut random = Random::new(seed);
        let start = Instant::now();
        // Mostly a home, now and then an office.
        let servers = if random.is_one_in(20) { 40 } else { 1 + random.below(5) };
        let lan = Lan::new(&mut random, servers);
        let named =
            if random.is_one_in(5) { lan.servers[0].addresses[..1].to_vec() } else { vec![] };
        let most_servers = if random.is_one_in(3) { servers + 2 } else { 64 };
        let rules = Rules {
            health_interval: Duration::from_secs(1),
            health_timeout: CHECK_TIMEOUT,
            rise: 1,
            fall: FALL,
            max_servers: most_servers,
            inventories: true,
            max_in_flight: if random.is_one_in(4) { 2 } else { 0 },
            pins: Vec::new(),
            bans: Vec::new(),
            aliases: ollana::ollama::aliases::Aliases::default(),
            preferred: Vec::new(),
            wake: Vec::new(),
        };
        let mut pool = Pool::new(rules, seed);
        for address in named {
            let name = ServerName { host: address.ip().to_string(), port: address.port() };
            pool.add_named(start, name);
        }
        if random.is_one_in(3) {
            // Of the last run: some are there still, some aren't.
            for server in lan.servers.iter().take(3) {
                let identity = random.is_one_in(2).then_some(server.identity);
                let name = "remembered".to_owned();
                let address = server.addresses[0];
                pool.recall(
                    start,
                    vec![Known { identity, name, address, is_present: true, had: None }],
                );
            }
        }
        let client = Client::new(start, pool);
        let longest = if random.is_one_in(8) { 90_000 } else { 15_000 };
        World {
            start,
            now: start,
            events: Agenda::new(),
            lan,
            client,
            busy_checkers: 0,
            exchanges: Vec::new(),
            standing: BTreeMap::new(),
            told: 0,
            most_servers,
            has_moved: false,
            has_succeeded: false,
            was_forged: false,
            calm_at: ms(1000 + random.below(longest) as u64),
            recovery: RECOVERED,
            tally: Tally::default(),
            trace: traces.then(Vec::new),
            violation: None,
            random,
        }
    }

    /// Runs it to its end; what was seen, or what must never be.
    pub(crate) fn run(mut self) -> (Result<Tally, String>, Vec<String>) {
        self.after(Duration::ZERO, Event::Tick);
        self.after(Duration::ZERO, Event::Probe);
        self.after(ms(5), Event::Arrive);
        self.after(ms(20), Event::Fault);
        self.after(self.calm_at, Event::Calm);
        while let Some((at, event)) = self.events.next() {
            self.now = at;
            if self.trace.is_some() && !matches!(event, Event::Tick) {
                let text = event.text();
                self.note(|| text);
            }
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                let at = self.now - self.start;
                return (Err(format!("at {at:?}: {violation}")), self.trace.unwrap_or_default());
            }
        }
        (Ok(self.tally), self.trace.unwrap_or_default())
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let at = self.now - self.start;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.4} {}", at.as_secs_f64(), text()));
        }
    }

    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    fn after(&mut self, pause: Duration, event: Event) {
        self.events.add(self.now + pause, event);
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(
            least * 1000 + self.random.below((most - least) as usize * 1000) as u64,
        )
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn is_over(&self) -> bool {
        self.elapsed() > self.calm_at + self.recovery + ms(3000)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => {
                if !self.is_over() {
                    self.after(ms(200), Event::Tick);
                }
                // A full mailbox drops a tick.
                if !self.random.is_one_in(50) {
                    self.deliver(Mail::Input(Input::Tick));
                }
            }
            Event::Probe => self.probe(),
            Event::Packet(bytes, source) => self.receive(&bytes, source),
            Event::Mail(mail) => self.deliver(mail),
            Event::CheckEnds(job, result) => {
                self.busy_checkers -= 1;
                let mail = Mail::Checked(Input::Checked(job.id, result), job.address);
                let pause = self.between(0, 1);
                self.after(pause, Event::Mail(mail));
                self.run_jobs();
            }
            Event::Arrive => {
                // After the faults the only requests are those that must succeed.
                if self.elapsed() < self.calm_at {
                    let pause = self.between(1, 900);
                    self.after(pause, Event::Arrive);
                    self.arrive(false);
                }
            }
            Event::Proof => self.arrive(true),
            Event::Reach(request, attempt) => self.reach(request, attempt),
            Event::Unreached(request, attempt) => {
                if self.is_at(request, attempt) {
                    self.failed(request, Outcome::Unreachable, "connect timed out");
                }
            }
            Event::Work(request, attempt, is_done, lost) => {
                self.work(request, attempt, is_done, lost)
            }
            Event::Leave(request) => self.leave(request),
            Event::Fault => {
                if self.elapsed() < self.calm_at {
                    let pause = self.between(5, 2500);
                    self.after(pause, Event::Fault);
                    self.fault();
                }
            }
            Event::Calm => self.calm(),
            Event::Judge => self.judge(),
        }
    }

    // --- discovery

    fn probe(&mut self) {
        if !self.is_over() {
            let due = self.client.schedule.due();
            if self.now < due {
                // The schedule has started over since.
                let pause = due - self.now;
                return self.after(pause, Event::Probe);
            }
            let mut nonce = [0; 16];
            nonce.copy_from_slice(&self.random.bytes(16));
            self.client.expected.asked(vec![(nonce, None)]);
            self.client.schedule.sent(self.now, self.random.next() as u8);
            let pause = self.client.schedule.due() - self.now;
            self.after(pause, Event::Probe);
            for (datagram, source) in self.lan.answers(nonce, &mut self.random) {
                self.send(&datagram, source);
            }
        }
    }

    fn send(&mut self, datagram: &Datagram, source: SocketAddr) {
        // Delayed past later probes, doubled, or as usual.
        let late = self.random.is_one_in(50) && self.elapsed() < self.calm_at;
        let pause = if late { self.between(1, 9000) } else { self.between(0, 4) };
        let source = SocketAddr::new(source.ip(), 11436);
        let bytes = match self.random.is_one_in(60) {
            true => packet::encode_legacy().to_vec(),
            false => datagram.encode(packet::PROBE_LEN),
        };
        if self.random.is_one_in(20) {
            self.after(pause, Event::Packet(bytes.clone(), source));
        }
        self.after(pause, Event::Packet(bytes, source));
    }

    fn receive(&mut self, bytes: &[u8], source: SocketAddr) {
        self.tally.packets += 1;
        let Ok(packet) = packet::decode(bytes) else { return };
        let received = Received { packet, bytes, source };
        if let Some((input, _)) = self.client.expected.accept(received, |_| true, || true) {
            // So does it with a sighting.
            if !self.random.is_one_in(50) || self.elapsed() > self.calm_at {
                let pause = self.between(0, 1);
                self.after(pause, Event::Mail(Mail::Input(input)));
            }
        }
    }

    // --- the Manager and its checkers

    fn deliver(&mut self, mail: Mail) {
        match &mail {
            Mail::Checked(Input::Checked(id, result), address) => {
                let standing = self.standing.entry((id.backend, *address)).or_default();
                match result {
                    CheckResult::Healthy { .. } => {
                        *standing = Standing { is_well: true, ..Standing::default() };
                    }
                    CheckResult::Refused(_) | CheckResult::Unreached(_) => standing.is_well = false,
                    CheckResult::Silent(_) if standing.has_answered => {
                        *standing = Standing { is_well: true, ..Standing::default() };
                    }
                    CheckResult::Silent(_) => standing.silences += 1,
                    CheckResult::Void => {}
                }
                standing.has_answered = false;
            }
            Mail::Input(Input::Finished(id, report) | Input::Noted(id, report)) => {
                self.told -= u32::from(matches!(mail, Mail::Input(Input::Finished(..))));
                if report.outcome.is_answer() {
                    let of_it = self.standing.iter_mut().filter(|((of, _), _)| of == id);
                    of_it.for_each(|(_, standing)| standing.has_answered = true);
                }
            }
            _ => {}
        }
        let heard = self.client.turn(self.now, mail);
        self.run_jobs();
        for (request, answer) in heard {
            match answer {
                Ok(lease) => self.leased(request, lease),
                Err(Refused::NoServer(why) | Refused::OwnerAway(why)) => {
                    self.end(request, End::Error(why))
                }
                Err(Refused::QueueFull) => self.end(request, End::Error("busy".to_owned())),
            }
        }
        let pool = self.client.queue.pool().len();
        self.must(pool <= self.most_servers, || format!("{pool} servers in the pool"));
        let waiting = self.client.queue.waiting();
        self.must(waiting <= MAX_QUEUE, || format!("{waiting} wait"));
        self.check_leases();
    }

    fn check_leases(&mut self) {
        let out = self.exchanges.iter().rev().take(400).filter(|e| e.lease.is_some()).count();
        let (counted, out) = (self.client.in_flight(), out as u32 + self.told);
        self.must(counted == out, || format!("{counted} leases are counted, {out} are out"));
    }

    fn run_jobs(&mut self) {
        while self.busy_checkers < MAX_CHECKS
            && let Some(job) = self.client.jobs.pop_front()
        {
            self.busy_checkers += 1;
            self.tally.checks += 1;
            let rtt = self.between(1, 6);
            let (pause, result) = match self.lan.meets(job.address) {
                Meeting::Refusal => (rtt, CheckResult::Refused("connection refused".to_owned())),
                Meeting::Silence => (CHECK_TIMEOUT, CheckResult::Silent("no answer".to_owned())),
                Meeting::Server(at) => self.check(at, &job, rtt),
            };
            self.after(pause, Event::CheckEnds(job, result));
        }
    }

    fn check(&self, at: usize, job: &Job, rtt: Duration) -> (Duration, CheckResult) {
        let server = &self.lan.servers[at];
        match server.condition {
            Condition::Frozen => (CHECK_TIMEOUT, CheckResult::Silent("no answer".to_owned())),
            Condition::NoOllama | Condition::Dead => {
                (rtt, CheckResult::Refused("no Ollama".to_owned()))
            }
            Condition::Well | Condition::Busy => {
                let healthy = CheckResult::Healthy {
                    address: job.address,
                    round_trip: rtt,
                    version: "0.13.1".to_owned(),
                    name: Some(format!("server{}", server.identity.0[0])),
                    identity: Some(server.identity),
                    open: None,
                    saved: 0,
                    inventory: job.wants_inventory.then(|| Arc::clone(&server.inventory)),
                };
                (rtt, healthy)
            }
        }
    }

    // --- requests

    fn arrive(&mut self, is_proof: bool) {
        let name = match self.random.below(6) {
            _ if is_proof => Some(COMMON),
            0 => None,
            1 => Some(*self.random.pick(&OTHERS)),
            2 => Some("nobody-has-it"),
            _ => Some(COMMON),
        };
        let is_repeatable = is_proof || !self.random.is_one_in(4);
        let task = match self.random.below(12) {
            0 if !is_repeatable => Task::Pull,
            1 if !is_repeatable => Task::Build,
            2 if is_repeatable && !is_proof => Task::Unload,
            _ => Task::Use,
        };
        let wanted = Wanted {
            needs: Permission::Use,
            task,
            model: name.and_then(model),
            server: None,
            client: Some(([127, 0, 0, 1 + self.random.below(3) as u8]).into()),
            conversation: Some(self.random.below(6) as u64).filter(|talk| *talk > 2),
            is_exempt: task != Task::Use || self.random.is_one_in(8),
            ..Wanted::default()
        };
        let request = self.exchanges.len();
        self.exchanges.push(Exchange {
            wanted,
            is_repeatable,
            is_replayable: is_proof || !self.random.is_one_in(6),
            attempts: Attempts::new(is_repeatable),
            is_present: Rc::new(Cell::new(true)),
            lease: None,
            attempt: 0,
            at: None,
            has_begun: false,
            received: 0,
            end: None,
            is_proof,
        });
        self.tally.requests += 1;
        if !is_proof && self.random.is_one_in(5) {
            let pause = self.between(0, 3000);
            self.after(pause, Event::Leave(request));
        }
        self.ask(request);
    }

    fn ask(&mut self, request: usize) {
        let exchange = &self.exchanges[request];
        let is_first = exchange.attempts.tried().is_empty() && exchange.wanted.server.is_none();
        if is_first && let Some(lease) = self.client.enter_fast_path(exchange.wanted.is_exempt) {
            return self.leased(request, lease);
        }
        let exchange = &self.exchanges[request];
        let token = Token { request, is_present: Rc::clone(&exchange.is_present) };
        let tried = exchange.attempts.tried().to_vec();
        let mail = Mail::Ask(token, Request { tried, wanted: exchange.wanted.clone() });
        let pause = self.between(0, 1);
        self.after(pause, Event::Mail(mail));
    }

    /// Safety: only a server that a check has found well gets a request, at an address of which the
    /// last checks say nothing worse than one silence.
    fn leased(&mut self, request: usize, lease: Lease) {
        let Pick { id, address, .. } = lease.pick;
        let standing = self.standing.get(&(id, address)).copied();
        let is_verified = standing.is_some_and(|it| it.is_well && it.silences < FALL);
        self.must(is_verified, || {
            format!("request {request} goes to {address}, of which checks say {standing:?}")
        });
        self.note(|| format!("request {request} has {address}"));
        let exchange = &mut self.exchanges[request];
        exchange.lease = Some(lease);
        exchange.attempt += 1;
        let attempt = exchange.attempt;
        let pause = self.between(0, 2);
        self.after(pause, Event::Reach(request, attempt));
    }

    /// Whether news of an attempt is still about the present one.
    fn is_at(&self, request: usize, attempt: u32) -> bool {
        let exchange = &self.exchanges[request];
        exchange.end.is_none() && exchange.attempt == attempt && exchange.lease.is_some()
    }

    fn reach(&mut self, request: usize, attempt: u32) {
        if !self.is_at(request, attempt) {
            return;
        }
        let Some(address) = self.exchanges[request].lease.as_ref().map(|lease| lease.pick.address)
        else {
            return;
        };
        let at = match self.lan.meets(address) {
            Meeting::Refusal => return self.failed(request, Outcome::Unreachable, "refused"),
            Meeting::Silence => {
                return self.after(CONNECT_TIMEOUT, Event::Unreached(request, attempt));
            }
            Meeting::Server(at) => at,
        };
        match self.lan.servers[at].condition {
            // Said by the server's proxy: no Ollama saw it.
            Condition::NoOllama => self.failed(request, Outcome::Unreachable, "no Ollama"),
            // It refuses the request without having begun with it.
            Condition::Busy => self.failed(request, Outcome::Overloaded, "busy"),
            _ => {
                self.received(request);
                self.exchanges[request].at = Some(at);
                let pause = self.between(1, 800);
                self.after(pause, Event::Work(request, attempt, false, Duration::ZERO));
            }
        }
    }

    /// Safety: what may have been acted upon is sent at most once more, or never again.
    fn received(&mut self, request: usize) {
        let exchange = &mut self.exchanges[request];
        exchange.received += 1;
        let (received, is_repeatable) = (exchange.received, exchange.is_repeatable);
        let most = if is_repeatable && exchange.is_replayable { 2 } else { 1 };
        self.tally.resent += usize::from(received > 1);
        self.must(received <= most, || format!("request {request} was sent {received} times"));
    }

    fn work(&mut self, request: usize, attempt: u32, is_done: bool, lost: Duration) {
        let Some(at) = self.exchanges[request].at.filter(|_| self.is_at(request, attempt)) else {
            return;
        };
        const LOOK: Duration = Duration::from_millis(200);
        let server = &self.lan.servers[at];
        // With its address a server loses the connections that came to it.
        let lease = self.exchanges[request].lease.as_ref();
        let is_there = lease.is_some_and(|it| server.addresses.contains(&it.pick.address));
        if !server.is_linked || self.lan.is_cut || !is_there {
            if lost > VANISHED {
                return self.failed(request, Outcome::Failed, "vanished");
            }
            return self.after(LOOK, Event::Work(request, attempt, is_done, lost + LOOK));
        }
        match (server.condition, is_done) {
            (Condition::Frozen, _) => {
                self.after(LOOK, Event::Work(request, attempt, is_done, Duration::ZERO));
            }
            (_, false) => {
                self.exchanges[request].has_begun = true;
                let pause = self.between(1, 1200);
                self.after(pause, Event::Work(request, attempt, true, Duration::ZERO));
            }
            (_, true) => {
                let wanted = self.exchanges[request].wanted.clone();
                if wanted.task == Task::Use && self.random.is_one_in(8) {
                    let erred = wanted.model.map(|name| (name, wanted.conversation));
                    self.give_back(request, Report { erred, ..plain(Outcome::Erred) });
                    return self.end(request, End::Answered);
                }
                let loaded = wanted.model.clone().map(|name| (name, wanted.task != Task::Unload));
                let speed = wanted.model.map(|name| (name, 10.0 + self.random.below(90) as f64));
                let report = Report {
                    first_byte: Some(ms(10)),
                    speed: speed.filter(|_| self.random.is_one_in(2)),
                    changed_models: wanted.task == Task::Pull,
                    removed: None,
                    loaded: loaded.filter(|_| wanted.task != Task::Pull),
                    erred: None,
                    outcome: Outcome::Answered,
                    is_exempt: false,
                };
                self.give_back(request, report);
                self.end(request, End::Answered);
            }
        }
    }

    fn failed(&mut self, request: usize, outcome: Outcome, why: &str) {
        self.note(|| format!("request {request} failed: {outcome:?}, {why}"));
        let Some(id) = self.exchanges[request].lease.as_ref().map(|lease| lease.pick.id) else {
            return;
        };
        self.give_back(request, plain(outcome));
        let exchange = &mut self.exchanges[request];
        if exchange.has_begun {
            return self.end(request, End::Cut);
        }
        if exchange.attempts.may_go_on(id, outcome, exchange.is_replayable) {
            return self.ask(request);
        }
        self.end(request, End::Error(why.to_owned()));
    }

    fn give_back(&mut self, request: usize, report: Report) {
        let Some(lease) = self.exchanges[request].lease.take() else { return };
        self.exchanges[request].at = None;
        if let Some(input) = self.client.release(&lease, report) {
            self.told += u32::from(matches!(input, Input::Finished(..)));
            let pause = self.between(0, 1);
            self.after(pause, Event::Mail(Mail::Input(input)));
        }
    }

    fn leave(&mut self, request: usize) {
        if self.exchanges[request].end.is_none() {
            self.exchanges[request].is_present.set(false);
            self.give_back(request, plain(Outcome::Void));
            self.end(request, End::Left);
        }
    }

    fn end(&mut self, request: usize, end: End) {
        if self.exchanges[request].end.is_some() {
            return;
        }
        self.note(|| format!("request {request} ends: {end:?}"));
        match end {
            End::Answered => self.tally.answered += 1,
            End::Error(_) => self.tally.errors += 1,
            End::Cut => self.tally.cut += 1,
            End::Left => self.tally.left += 1,
        }
        // Liveness.
        let recovery = self.recovery;
        let is_fine = !self.exchanges[request].is_proof || end == End::Answered;
        self.must(is_fine, || {
            format!("{recovery:?} after the last fault, request {request}: {end:?}")
        });
        self.exchanges[request].end = Some(end);
    }

    // --- faults

    fn set(&mut self, at: usize, condition: Condition) {
        self.note(|| format!("server{} becomes {condition:?}", at + 1));
        let was = std::mem::replace(&mut self.lan.servers[at].condition, condition);
        if condition == Condition::Dead {
            let here = |e: &Exchange| e.at == Some(at) && e.end.is_none();
            let lost: Vec<usize> =
                (0..self.exchanges.len()).filter(|n| here(&self.exchanges[*n])).collect();
            for request in lost {
                self.failed(request, Outcome::Failed, "the server died");
            }
        } else if was == Condition::Dead {
            self.lan.servers[at].instance += 1;
        }
    }

    /// One that was no server's before, or that a server has given up.
    fn free_address(&mut self) -> SocketAddr {
        let given_up = self.lan.given_up();
        if given_up.is_empty() || self.random.is_one_in(2) {
            return self.lan.new_address();
        }
        self.has_succeeded = true;
        *self.random.pick(&given_up)
    }

    fn fault(&mut self) {
        self.tally.faults += 1;
        let at = self.random.below(self.lan.servers.len());
        match self.random.below(18) {
            0 | 1 => self.set(at, Condition::Dead),
            2..=4 => self.set(at, Condition::Well),
            5 => self.set(at, Condition::Frozen),
            6 => self.set(at, Condition::NoOllama),
            7 => self.set(at, Condition::Busy),
            8 => self.lan.servers[at].is_linked = false,
            9 | 10 => self.lan.servers[at].is_linked = true,
            11 => self.lan.is_cut = !self.lan.is_cut,
            12 => self.lan.loss = *self.random.pick(&[0, 2, 3, 10]),
            13 => {
                self.lan.forged = *self.random.pick(&[0, 1, 5, 100]);
                self.was_forged |= self.lan.forged > 0;
            }
            14 => self.client.loses_jobs = !self.client.loses_jobs,
            15 => {
                // With the same run or a new one.
                let address = self.free_address();
                self.has_moved = true;
                self.lan.servers[at].addresses = vec![address];
                self.note(|| format!("server{} moves to {address}", at + 1));
            }
            16 => {
                let address = self.free_address();
                let addresses = &mut self.lan.servers[at].addresses;
                if addresses.len() > 1 {
                    self.has_moved = true;
                    addresses.remove(0);
                } else {
                    addresses.push(address);
                }
            }
            _ => {
                self.client.schedule.restart(self.now);
                self.after(Duration::ZERO, Event::Probe);
            }
        }
    }

    /// No more faults. Who is well now must be in use soon; some may stay as they are.
    fn calm(&mut self) {
        self.note(|| "the faults are over".to_owned());
        self.lan.is_cut = false;
        self.lan.loss = 0;
        self.lan.forged = 0;
        self.client.loses_jobs = false;
        let lucky = self.random.below(self.lan.servers.len());
        for at in 0..self.lan.servers.len() {
            if at == lucky || self.random.is_one_in(2) {
                self.set(at, Condition::Well);
                self.lan.servers[at].is_linked = true;
            } else if self.lan.servers[at].condition == Condition::Busy {
                self.set(at, Condition::NoOllama);
            }
        }
        let pool = self.client.queue.pool().len() as u32;
        let strangers = if self.was_forged { pool } else { 0 };
        // A check of the old address may have to end before the new one is asked.
        let moved = if self.has_moved { CHECK_TIMEOUT } else { Duration::ZERO };
        // Whether its former server still has an address is asked after the first announcement.
        let again = if self.has_succeeded { PROBE_INTERVAL } else { Duration::ZERO };
        let recovery = RECOVERED + moved + again + PER_STRANGER * strangers;
        self.recovery = recovery;
        for request in 0..self.exchanges.len() {
            let pause = self.between(0, 5000);
            self.after(pause, Event::Leave(request));
        }
        // A pool that is full, of servers that were well until a moment ago, takes no newcomer.
        if (pool as usize) < self.most_servers {
            for n in 0..4 {
                self.after(recovery + ms(n * 600), Event::Proof);
            }
            self.after(recovery, Event::Judge);
        }
        // Everything that still hangs is given up by whoever asked for it.
        self.after(recovery + ms(12_000), Event::Judge);
    }

    /// Liveness of all servers that are well, not only of one; and, in the end, that nothing is
    /// left.
    fn judge(&mut self) {
        if !self.is_over() {
            self.judge_servers();
            return;
        }
        for request in 0..self.exchanges.len() {
            self.leave(request);
        }
        for event in self.events.take_rest() {
            if let Event::Mail(mail) = event {
                self.deliver(mail);
            }
        }
        let counted = self.client.in_flight();
        self.must(counted == 0, || format!("{counted} leases are left"));
        self.events.take_rest();
    }

    fn judge_servers(&mut self) {
        let well = self.lan.servers.iter().filter(|server| server.is_well()).count();
        let ready = self.client.queue.pool().ready();
        // Who borrows identities can make two servers look like one.
        let least = if self.was_forged { well.min(1) } else { well.min(self.most_servers) };
        self.must(ready >= least, || format!("{ready} of {well} servers that are well get work"));
    }
}
