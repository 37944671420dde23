//! The thread that owns the pool: its mailbox, leases, and what it tells the rest.
//!
//! ```text
//!  discovery ─┐                       ┌─► health check jobs (liveness)
//!  liveness  ─┼─► mailbox ─► Manager ─┼─► leases to the proxy's workers
//!  workers   ─┘   (bounded)           └─► Presence, read by the discovery's responder
//! ```
//!
//! It decides and never does I/O: it blocks only on its mailbox. Sending an event never waits
//! for an answer; asking for a lease does, on a reply channel of its own.

pub mod fast_path;
pub mod liveness;
pub mod pool;
pub mod queue;
pub mod store;
pub mod wake;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, TrySendError, bounded};

use crate::config::Timing;
use crate::counters::Counters;
use crate::manager::fast_path::{Board, Offer};
use crate::manager::pool::{
    Action, BackendId, CheckResult, History, Input, Known, Outcome, Pick, Pool, Report, ServerNow,
    Target, Transition, Wanted,
};
use crate::manager::queue::{Answers, Asker, Dispatch, Request};
use crate::ollama::inventory::Inventory;
use crate::ollama::version::OllamaVersion;
use crate::proxy::connections::Connections;
use crate::system::lock;

pub use crate::manager::queue::{Patience, Refused};

/// Events that may wait. A full mailbox makes workers wait a moment; every place costs 136 bytes.
const MAILBOX: usize = 512;

/// How long a list waits for a change to be known; a slow server delays it no longer.
const LIST_PATIENCE: Duration = Duration::from_millis(500);
/// How long somebody who looks at the state waits for models that nobody asked for before.
const LOOK_PATIENCE: Duration = Duration::from_millis(400);
/// How long somebody who looks at the state waits for the Manager.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);
/// Transitions remembered for those who look at the state.
const MAX_TRANSITIONS: usize = 32;
/// How often a waiting request's client is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Something that takes time, for the checkers.
#[derive(Debug)]
pub enum Job {
    /// Check a backend.
    Check(CheckJob),
    /// Remember these servers for the next start.
    Remember(Vec<Known>),
    /// These servers are up and go by these names: remember how to wake them.
    Learn(Vec<(SocketAddr, Vec<String>)>),
    /// Wake those that may be woken.
    Wake,
}

/// A health check to run.
#[derive(Debug)]
pub struct CheckJob {
    /// Whom the result is about.
    pub id: BackendId,
    /// What to ask.
    pub target: Target,
    /// Whether to ask for its models too.
    pub wants_inventory: bool,
}

#[derive(Debug)]
enum Event {
    Pool(Input),
    Lease(Caller, Request),
    Inventories(Sender<Inventories>),
    Snapshot(Sender<Snapshot>),
    Stop,
}

/// Somebody who asked for a lease.
#[derive(Debug)]
struct Caller {
    reply: Sender<Result<Handed, Refused>>,
    /// Alive as long as somebody waits for the reply.
    waits: Weak<()>,
    mailbox: Mailbox,
}

impl Asker for Caller {
    fn is_present(&self) -> bool {
        self.waits.strong_count() > 0
    }
}

impl Caller {
    /// Hands over the answer; a pick comes back if nobody is there any more.
    fn answer(self, answer: Result<Pick, Refused>) -> Option<Pick> {
        let handed = answer.map(|pick| Handed { pick: Some(pick), mailbox: self.mailbox });
        match self.reply.send(handed) {
            Err(SendError(Ok(handed))) => handed.take(),
            _ => None,
        }
    }
}

/// A pick on its way to whom it is for. It is given back if nobody takes it.
#[derive(Debug)]
struct Handed {
    pick: Option<Pick>,
    mailbox: Mailbox,
}

impl Handed {
    fn take(mut self) -> Option<Pick> {
        self.pick.take()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some(pick) = self.pick.take() {
            self.mailbox.send(Input::Finished(pick.id, Outcome::Void.into()));
        }
    }
}

/// What the ready backends have.
#[derive(Debug, Default)]
pub struct Inventories {
    /// Ready backends, whether their models are known or not.
    pub backends: usize,
    /// Names and models of those that are known.
    pub known: Vec<(String, Arc<Inventory>)>,
    /// The lowest version among them.
    pub version: OllamaVersion,
}

/// The state of the backends and of the queue at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// In the order in which they came.
    pub servers: Vec<ServerNow>,
    /// Requests that wait for a server.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Option<Duration>,
    /// How long the last request waited that had to.
    pub last_wait: Option<Duration>,
    /// How long ago each of the last changes was, the newest first.
    pub transitions: Vec<(Duration, Transition)>,
    /// The course of the last minutes.
    pub history: History,
}

/// What this daemon is, for those who look at its state.
#[derive(Clone, Debug)]
pub struct About {
    /// This machine's name.
    pub name: String,
    /// `client`, `server` or `both`.
    pub mode: String,
    /// Why it is that.
    pub why: String,
    /// Where its proxies listen, the client's first.
    pub listen: Vec<SocketAddr>,
    /// Where its discovery goes or answers.
    pub discovery: String,
    /// Who is connected, for each proxy, the client's first.
    pub connections: Vec<Arc<Connections>>,
    /// For how long whom is waited for.
    pub timing: Timing,
    /// Since when.
    pub started: Instant,
}

/// What other threads may know without asking: updated after every event.
#[derive(Debug)]
pub struct Presence {
    start: Instant,
    /// Milliseconds from `start` to the last change of the network, plus one.
    network_changed: AtomicU64,
    up: AtomicBool,
    local_up: AtomicBool,
    version: AtomicU32,
    in_flight: AtomicU32,
    backends: AtomicU32,
    /// Events handled, which tells that the Manager is alive.
    beats: AtomicU32,
    counters: Counters,
    about: Mutex<Option<Arc<About>>>,
    /// For this machine's programs.
    own_board: Board,
    /// For the LAN: only ever the local Ollama.
    lan_board: Board,
}

impl Default for Presence {
    fn default() -> Self {
        Presence {
            start: Instant::now(),
            network_changed: AtomicU64::default(),
            beats: AtomicU32::default(),
            counters: Counters::default(),
            about: Mutex::default(),
            up: AtomicBool::default(),
            local_up: AtomicBool::default(),
            version: AtomicU32::default(),
            in_flight: AtomicU32::default(),
            backends: AtomicU32::default(),
            own_board: Board::default(),
            lan_board: Board::default(),
        }
    }
}

impl Presence {
    /// Whether the network has changed within this time, or the machine has slept: connections
    /// from before may lead nowhere.
    pub fn is_network_new(&self, time: Duration) -> bool {
        let changed = self.network_changed.load(Relaxed);
        let since = || self.millis().saturating_sub(changed);
        changed > 0 && u128::from(since()) <= time.as_millis()
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn board(&self, local_only: bool) -> &Board {
        if local_only { &self.lan_board } else { &self.own_board }
    }

    /// Whether any backend is ready.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Whether the Ollama of this machine is ready.
    pub fn is_local_up(&self) -> bool {
        self.local_up.load(Relaxed)
    }

    /// The local Ollama's version, or the lowest of the ready backends.
    pub fn version(&self) -> OllamaVersion {
        OllamaVersion::from_bits(self.version.load(Relaxed))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        let offers = [&self.own_board, &self.lan_board].map(Board::look);
        let taken: u32 = offers.iter().flatten().map(|offer| offer.count()).sum();
        self.in_flight.load(Relaxed) + taken
    }

    /// Changes whenever the Manager has handled an event.
    pub fn beats(&self) -> u32 {
        self.beats.load(Relaxed)
    }

    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Relaxed);
    }

    /// Backends, ready or not.
    pub fn backends(&self) -> u32 {
        self.backends.load(Relaxed)
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Says what this daemon is.
    pub fn describe(&self, about: About) {
        *lock(&self.about) = Some(Arc::new(about));
    }

    /// What this daemon is, once it has started.
    pub fn about(&self) -> Option<Arc<About>> {
        lock(&self.about).clone()
    }

    /// How many requests have taken the backend without asking.
    fn taken(&self, id: BackendId) -> u32 {
        let offers = [&self.own_board, &self.lan_board].map(Board::look);
        let own = offers.iter().flatten().filter(|offer| offer.pick.id == id);
        own.map(|offer| offer.count()).sum()
    }
}

/// The Manager's thread; dropping the handle stops and joins it.
#[derive(Debug)]
pub struct Handle {
    mailbox: Mailbox,
    presence: Arc<Presence>,
    thread: Option<JoinHandle<()>>,
}

/// Where events for the Manager go.
#[derive(Clone, Debug)]
pub struct Mailbox {
    events: Sender<Event>,
    presence: Arc<Presence>,
}

/// A backend for one request. Dropping it reports the outcome.
#[derive(Debug)]
pub struct Lease {
    /// Which backend, and where.
    pub pick: Pick,
    /// How the request ended; [`Outcome::Void`] until said otherwise.
    pub report: Report,
    mailbox: Mailbox,
    /// Whether it was had without asking.
    offer: Option<Arc<Offer>>,
    is_given_back: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Lease {
    /// Reports the outcome, so that others may have the backend. What the report says later comes
    /// too late.
    pub fn give_back(&mut self) {
        if std::mem::replace(&mut self.is_given_back, true) {
            return;
        }
        let void = Report::from(Outcome::Void);
        let report = std::mem::replace(&mut self.report, void);
        self.pick.tally.requests.add(1);
        if report.is_trouble() {
            self.pick.tally.failures.add(1);
        }
        let is_counted = self.offer.as_ref().is_none_or(|offer| !offer.give_back());
        if is_counted {
            self.mailbox.send(Input::Finished(self.pick.id, report));
        } else if report.is_news() {
            self.mailbox.send(Input::Noted(self.pick.id, report));
        }
    }
}

impl Mailbox {
    /// Reports something that must not get lost; waits while the mailbox is full.
    pub fn send(&self, input: Input) {
        // A closed mailbox means that we are stopping.
        let _ = self.events.send(Event::Pool(input));
    }

    /// Reports something that will be said again; dropped when the mailbox is full.
    pub fn offer(&self, input: Input) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(Event::Pool(input)) {
            log::debug!("mailbox full, event dropped");
        }
    }

    /// The network has changed, or the machine has slept.
    pub fn network_changed(&self) {
        self.presence.network_changed.store(self.presence.millis() + 1, Relaxed);
    }

    /// Asks for a backend, passing over the `tried` ones. While it waits, `is_wanted` is asked
    /// now and then; when it says no, so does the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub fn lease(
        &self,
        tried: &[BackendId],
        wanted: &Wanted,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Lease, Refused> {
        let report = Outcome::Void.into();
        let mailbox = self.clone();
        // An offer stands while there is no choice, so the model doesn't matter.
        if tried.is_empty()
            && wanted.server.is_none()
            && let Some(offer) = self.presence.board(wanted.local_only).take()
        {
            let pick = offer.pick.clone();
            let offer = Some(offer);
            return Ok(Lease { pick, report, mailbox, offer, is_given_back: false });
        }
        let (reply, answer) = bounded(1);
        let present = Arc::new(());
        let caller = Caller { reply, waits: Arc::downgrade(&present), mailbox: self.clone() };
        let request = Request { tried: tried.to_vec(), wanted: wanted.clone() };
        let stopping = || Refused::NoServer("ollana is stopping".to_owned());
        self.events.send(Event::Lease(caller, request)).map_err(|_| stopping())?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(handed) => {
                    let pick = handed?.take().ok_or_else(stopping)?;
                    return Ok(Lease { pick, report, mailbox, offer: None, is_given_back: false });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(stopping()),
                Err(RecvTimeoutError::Timeout) if is_wanted() => {}
                // What is handed over in this moment is dropped with the channel, and given back.
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Refused::NoServer("no longer wanted".to_owned()));
                }
            }
        }
    }

    /// The state as it is now. `None` when we are stopping, or busy beyond measure.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = bounded(1);
        self.events.send_timeout(Event::Snapshot(reply), SNAPSHOT_PATIENCE).ok()?;
        answer.recv_timeout(SNAPSHOT_PATIENCE).ok()
    }

    /// What the ready backends have.
    pub fn inventories(&self) -> Inventories {
        let (reply, answer) = bounded(1);
        let _ = self.events.send(Event::Inventories(reply));
        answer.recv().unwrap_or_default()
    }
}

impl Handle {
    /// Starts the thread. `jobs` takes the health checks; a full queue drops them, and the pool
    /// asks again.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(pool: Pool, jobs: Sender<Job>, patience: Patience) -> io::Result<Self> {
        let (sender, mailbox) = bounded(MAILBOX);
        let presence = Arc::new(Presence::default());
        let manager = Manager {
            dispatch: Dispatch::new(pool, patience),
            mailbox,
            jobs,
            presence: Arc::clone(&presence),
            lists: Vec::new(),
            lookers: Vec::new(),
            transitions: VecDeque::new(),
            history: History::default(),
            last_wait: None,
            actions: Vec::new(),
            answers: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("manager".to_owned())
            .stack_size(crate::system::THREAD_STACK)
            .spawn(move || manager.run())?;
        let mailbox = Mailbox { events: sender, presence: Arc::clone(&presence) };
        Ok(Handle { mailbox, presence, thread: Some(thread) })
    }

    /// Where events go.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// What everybody may know.
    pub fn presence(&self) -> Arc<Presence> {
        Arc::clone(&self.presence)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.mailbox.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Manager {
    dispatch: Dispatch<Caller>,
    mailbox: Receiver<Event>,
    jobs: Sender<Job>,
    presence: Arc<Presence>,
    /// Requests for lists of models, and since when they wait.
    lists: Vec<(Instant, Sender<Inventories>)>,
    /// Who looks at the state, and since when they wait for models.
    lookers: Vec<(Instant, Sender<Snapshot>)>,
    /// The last ones, oldest first.
    transitions: VecDeque<(Instant, Transition)>,
    history: History,
    last_wait: Option<Duration>,
    actions: Vec<Action>,
    answers: Answers<Caller>,
}

impl Manager {
    fn run(mut self) {
        while let Ok(event) = self.mailbox.recv() {
            let now = Instant::now();
            match event {
                Event::Stop => break,
                Event::Pool(input) => {
                    if matches!(&input, Input::Noted(_, report) if report.is_trouble()) {
                        // What it means for the backend depends on how many others it has.
                        self.take_down(true);
                        self.take_down(false);
                    }
                    self.dispatch.handle(now, input, &mut self.actions, &mut self.answers);
                    self.carry_out(now);
                    self.update_offer(now, true);
                    self.update_offer(now, false);
                }
                Event::Lease(caller, request) => {
                    self.dispatch.ask(now, caller, request, &mut self.answers);
                    self.carry_out(now);
                }
                Event::Inventories(reply) => self.lists.push((now, reply)),
                Event::Snapshot(reply) => self.look(now, reply),
            }
            if self.dispatch.take_wake() {
                self.hand_out(Job::Wake);
            }
            self.serve_lists(now);
            self.serve_lookers(now);
            self.record(now);
            let pool = self.dispatch.pool();
            self.presence.up.store(pool.ready() > 0, Relaxed);
            self.presence.local_up.store(pool.is_local_ready(), Relaxed);
            self.presence.version.store(pool.announced_version().to_bits(), Relaxed);
            self.presence.in_flight.store(pool.in_flight(), Relaxed);
            self.presence.backends.store(pool.len() as u32, Relaxed);
            self.presence.beat();
        }
        // Replies that are still waiting are dropped with us, which their askers see.
    }

    /// Hands out the answers. What nobody takes any more goes to the next who waits.
    fn deliver(&mut self, now: Instant) {
        for (caller, answer) in std::mem::take(&mut self.answers) {
            if let Some(pick) = caller.answer(answer) {
                self.dispatch.untaken(now, &pick, &mut self.actions, &mut self.answers);
            }
        }
    }

    /// Tells what there is, at once or as soon as a change that went through us is known.
    fn serve_lists(&mut self, now: Instant) {
        let is_stale = self.dispatch.pool().has_stale_inventory();
        let Manager { lists, dispatch, .. } = self;
        let pool = dispatch.pool();
        lists.retain(|(since, reply)| {
            let waits = is_stale && now.saturating_duration_since(*since) < LIST_PATIENCE;
            if !waits {
                let (backends, known) = (pool.ready(), pool.inventories());
                let _ = reply.send(Inventories { backends, known, version: pool.version() });
            }
            waits
        });
    }

    fn look(&mut self, now: Instant, reply: Sender<Snapshot>) {
        let pool = self.dispatch.pool();
        let lacks = pool.lacks_inventory() && !pool.is_watched(now);
        self.dispatch.handle(now, Input::Watched, &mut self.actions, &mut self.answers);
        self.carry_out(now);
        if lacks {
            self.lookers.push((now, reply));
        } else {
            let _ = reply.send(self.snapshot(now));
        }
    }

    fn serve_lookers(&mut self, now: Instant) {
        let lacks = self.dispatch.pool().lacks_inventory();
        let waits = |since: Instant| lacks && now.saturating_duration_since(since) < LOOK_PATIENCE;
        for (since, reply) in std::mem::take(&mut self.lookers) {
            if waits(since) {
                self.lookers.push((since, reply));
            } else {
                let _ = reply.send(self.snapshot(now));
            }
        }
    }

    /// Writes down how long those waited who were served, and, now and then, where things stand.
    fn record(&mut self, now: Instant) {
        for waited in self.dispatch.take_waits() {
            self.presence.counters.queue_wait.add(waited);
            self.last_wait = Some(waited);
        }
        if self.history.is_due(now) {
            let requests = self.presence.counters.requests_in_all();
            let taken = |id| self.presence.taken(id);
            let waiting = self.dispatch.waiting();
            self.dispatch.pool().record(&mut self.history, now, waiting, requests, &taken);
        }
    }

    fn snapshot(&self, now: Instant) -> Snapshot {
        let ago = |at: Instant| now.saturating_duration_since(at);
        let mut servers = self.dispatch.pool().snapshot(now);
        for server in &mut servers {
            server.in_flight += self.presence.taken(server.id);
        }
        let newest_first = self.transitions.iter().rev();
        Snapshot {
            servers,
            waiting: self.dispatch.waiting(),
            longest_wait: self.dispatch.longest_wait(now),
            last_wait: self.last_wait,
            transitions: newest_first.map(|(at, change)| (ago(*at), change.clone())).collect(),
            history: self.history.clone(),
        }
    }

    /// Takes an offer down, so that the pool counts those who have it.
    fn take_down(&mut self, local_only: bool) {
        let board = self.presence.board(local_only);
        if let Some(old) = board.look() {
            board.hang_out(None);
            self.dispatch.adopt(old.pick.id, old.withdraw());
        }
    }

    /// Offers what there is no choice about.
    fn update_offer(&mut self, now: Instant, local_only: bool) {
        let sole = self.dispatch.sole(now, local_only);
        let present = self.presence.board(local_only).look();
        if present.map(|offer| offer.pick.clone()) != sole {
            self.take_down(local_only);
            let offer = sole.map(|pick| Arc::new(Offer::new(pick)));
            self.presence.board(local_only).hang_out(offer);
        }
    }

    /// False when the queue is full.
    fn hand_out(&self, job: Job) -> bool {
        let is_taken = self.jobs.try_send(job).is_ok();
        if !is_taken {
            log::debug!("job queue full, job dropped");
        }
        is_taken
    }

    /// Strangers that the full pool refuses are no news, and anyone can make many of them.
    fn keep(&mut self, transition: &Transition) {
        if !matches!(transition, Transition::Refused { .. }) {
            if self.transitions.len() >= MAX_TRANSITIONS {
                self.transitions.pop_front();
            }
            self.transitions.push_back((Instant::now(), transition.clone()));
        }
    }

    fn act(&mut self, now: Instant) {
        let mut changes_memory = false;
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Check(id, target, wants_inventory) => {
                    if !self.hand_out(Job::Check(CheckJob { id, target, wants_inventory })) {
                        // It is asked for again soon.
                        let void = Input::Checked(id, CheckResult::Void);
                        self.dispatch.handle(now, void, &mut self.actions, &mut self.answers);
                    }
                }
                Action::Report(transition) => {
                    report(&transition);
                    self.keep(&transition);
                    changes_memory |=
                        matches!(transition, Transition::Up { .. } | Transition::Moved { .. });
                }
                Action::Remember => changes_memory = true,
            }
        }
        if changes_memory {
            self.hand_out(Job::Remember(self.dispatch.pool().memorable()));
            self.hand_out(Job::Learn(self.dispatch.pool().present()));
        }
    }

    /// Hands out what was decided.
    fn carry_out(&mut self, now: Instant) {
        while !self.answers.is_empty() || !self.actions.is_empty() {
            self.deliver(now);
            self.act(now);
        }
    }
}

fn report(transition: &Transition) {
    match transition {
        Transition::Up { name, address, version } => {
            log::info!("backend up name={name:?} addr={address} ollama={version:?}");
        }
        Transition::Down { name, reason } => {
            log::warn!("backend down name={name:?} reason={reason:?}");
        }
        Transition::Ejected { name, pause } => {
            log::warn!("backend rests name={name:?} pause_ms={}", pause.as_millis());
        }
        Transition::Forgotten { name } => log::info!("backend forgotten name={name:?}"),
        Transition::Moved { name, address } => {
            log::info!("backend moved name={name:?} addr={address}");
        }
        Transition::Contested { name, address, reason, is_held_back } => {
            let what = if *is_held_back { "gets no requests" } else { "is used all the same" };
            log::warn!("backend contested, {what} name={name:?} addr={address} reason={reason:?}");
        }
        Transition::Refused { address } => log::debug!("pool full, refused addr={address}"),
    }
}
