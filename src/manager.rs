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

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, TrySendError, bounded};

use crate::catalog::Inventory;
use crate::offer::{Board, Offer};
use crate::pool::{
    Action, BackendId, Input, NoPick, Outcome, Pick, Pool, Report, Target, Transition, Wanted,
};
use crate::wire::OllamaVersion;

/// Events that may wait. A full mailbox makes workers wait a moment; every place costs 136 bytes.
const MAILBOX: usize = 512;

/// How long a list waits for a change to be known; a slow server delays it no longer.
const LIST_PATIENCE: Duration = Duration::from_millis(500);
/// How often a waiting request's client is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Requests that may wait for a backend that is busy; more are refused.
const MAX_QUEUE: usize = 256;

/// Something that takes time, for the checkers.
#[derive(Debug)]
pub enum Job {
    /// Check a backend.
    Check(CheckJob),
    /// Remember these servers for the next start.
    Remember(Vec<(SocketAddr, String)>),
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
    Lease(Ask),
    Inventories(Sender<Inventories>),
    Stop,
}

/// A request for a lease.
#[derive(Debug)]
struct Ask {
    tried: Vec<BackendId>,
    wanted: Wanted,
    reply: Sender<Result<Handed, Refused>>,
    /// Whether somebody waits for the reply.
    asker: Weak<()>,
    mailbox: Mailbox,
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

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No server can do it now; the sentence says which and why.
    NoServer(String),
    /// Too many requests wait already.
    QueueFull,
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

/// What other threads may know without asking: updated after every event.
#[derive(Debug, Default)]
pub struct Presence {
    up: AtomicBool,
    local_up: AtomicBool,
    version: AtomicU32,
    in_flight: AtomicU32,
    backends: AtomicU32,
    /// For this machine's programs.
    own_board: Board,
    /// For the LAN: only ever the local Ollama.
    lan_board: Board,
}

impl Presence {
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

    /// Backends, ready or not.
    pub fn backends(&self) -> u32 {
        self.backends.load(Relaxed)
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
}

impl Drop for Lease {
    fn drop(&mut self) {
        let void = Report::from(Outcome::Void);
        let report = std::mem::replace(&mut self.report, void);
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
            return Ok(Lease { pick: offer.pick.clone(), report, mailbox, offer: Some(offer) });
        }
        let (reply, answer) = bounded(1);
        let present = Arc::new(());
        let asker = Arc::downgrade(&present);
        let (tried, wanted) = (tried.to_vec(), wanted.clone());
        let ask = Ask { tried, wanted, reply, asker, mailbox: self.clone() };
        let stopping = || Refused::NoServer("ollana is stopping".to_owned());
        self.events.send(Event::Lease(ask)).map_err(|_| stopping())?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(handed) => {
                    let pick = handed?.take().ok_or_else(stopping)?;
                    return Ok(Lease { pick, report, mailbox, offer: None });
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
            pool,
            mailbox,
            jobs,
            patience,
            presence: Arc::clone(&presence),
            waiting: Vec::new(),
            turns: HashMap::new(),
            turn: 0,
            lists: Vec::new(),
            actions: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("manager".to_owned())
            .stack_size(crate::config::THREAD_STACK)
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

/// How long requests wait for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// While one that may be ready in a moment is being checked.
    pub expected: Duration,
    /// While all that could do are busy.
    pub busy: Duration,
}

/// A request that waits for a backend.
struct Waiting {
    ask: Ask,
    since: Instant,
    is_busy: bool,
}

struct Manager {
    pool: Pool,
    mailbox: Receiver<Event>,
    jobs: Sender<Job>,
    patience: Patience,
    presence: Arc<Presence>,
    /// In the order of arrival.
    waiting: Vec<Waiting>,
    /// When each waiting client had its last turn.
    turns: HashMap<Option<IpAddr>, u64>,
    turn: u64,
    /// Requests for lists of models, and since when they wait.
    lists: Vec<(Instant, Sender<Inventories>)>,
    actions: Vec<Action>,
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
                    self.pool.handle(now, input, &mut self.actions);
                    self.act();
                    self.serve_waiting(now);
                    self.update_offer(now, true);
                    self.update_offer(now, false);
                }
                Event::Lease(ask) => self.lease(now, ask),
                Event::Inventories(reply) => self.lists.push((now, reply)),
            }
            self.serve_lists(now);
            self.presence.up.store(self.pool.ready() > 0, Relaxed);
            self.presence.local_up.store(self.pool.is_local_ready(), Relaxed);
            self.presence.version.store(self.pool.announced_version().to_bits(), Relaxed);
            self.presence.in_flight.store(self.pool.in_flight(), Relaxed);
            self.presence.backends.store(self.pool.len() as u32, Relaxed);
        }
        // Replies that are still waiting are dropped with us, which their askers see.
    }

    /// Tells what there is, at once or as soon as a change that went through us is known.
    fn serve_lists(&mut self, now: Instant) {
        let is_stale = self.pool.has_stale_inventory();
        let Manager { lists, pool, .. } = self;
        lists.retain(|(since, reply)| {
            let waits = is_stale && now.saturating_duration_since(*since) < LIST_PATIENCE;
            if !waits {
                let (backends, known) = (pool.ready(), pool.inventories());
                let _ = reply.send(Inventories { backends, known, version: pool.version() });
            }
            waits
        });
    }

    /// Takes an offer down, so that the pool counts those who have it.
    fn take_down(&mut self, local_only: bool) {
        let board = self.presence.board(local_only);
        if let Some(old) = board.look() {
            board.hang_out(None);
            self.pool.adopt(old.pick.id, old.withdraw());
        }
    }

    /// Offers what there is no choice about.
    fn update_offer(&mut self, now: Instant, local_only: bool) {
        let sole = self.pool.sole(now, local_only).filter(|_| self.waiting.is_empty());
        let present = self.presence.board(local_only).look();
        if present.map(|offer| offer.pick.clone()) != sole {
            self.take_down(local_only);
            let offer = sole.map(|pick| Arc::new(Offer::new(pick)));
            self.presence.board(local_only).hang_out(offer);
        }
    }

    fn lease(&mut self, now: Instant, ask: Ask) {
        // Nobody overtakes those who wait for a busy backend.
        let picked = match self.waiting.iter().any(|waiting| waiting.is_busy) {
            true => Err(NoPick::Busy),
            false => self.pool.pick(now, &ask.tried, &ask.wanted),
        };
        let waiting = match picked {
            Ok(pick) => {
                self.hand_over(pick, &ask);
                return;
            }
            Err(NoPick::Busy) => Waiting { ask, since: now, is_busy: true },
            Err(NoPick::NoneUp(_)) if ask.tried.is_empty() && self.pool.expects_backend(now) => {
                Waiting { ask, since: now, is_busy: false }
            }
            Err(NoPick::NoneUp(reason) | NoPick::Away(reason)) => {
                let _ = ask.reply.send(Err(Refused::NoServer(reason)));
                return;
            }
        };
        if self.waiting.len() >= MAX_QUEUE {
            let _ = waiting.ask.reply.send(Err(Refused::QueueFull));
            return;
        }
        self.waiting.push(waiting);
        self.serve_waiting(now);
    }

    /// Serves those who wait, the client first whose last turn is longest ago.
    fn serve_waiting(&mut self, now: Instant) {
        while !self.serve_once(now) {}
    }

    /// False when somebody left in this moment, so that there is more to give.
    fn serve_once(&mut self, now: Instant) -> bool {
        self.waiting.retain(|waiting| waiting.ask.asker.strong_count() > 0);
        if self.waiting.is_empty() {
            self.turns.clear();
            return true;
        }
        let mut order: Vec<usize> = (0..self.waiting.len()).collect();
        order.sort_by_key(|at| {
            let client = self.waiting[*at].ask.wanted.client;
            (self.turns.get(&client).copied().unwrap_or(0), *at)
        });
        let mut served = Vec::new();
        for at in order {
            let ask = &self.waiting[at].ask;
            let answer = match self.pool.pick(now, &ask.tried, &ask.wanted) {
                Ok(pick) => {
                    self.turn += 1;
                    self.turns.insert(ask.wanted.client, self.turn);
                    Ok(pick)
                }
                Err(no_pick) => {
                    let waited = now.saturating_duration_since(self.waiting[at].since);
                    match no_pick {
                        NoPick::Busy if waited < self.patience.busy => continue,
                        NoPick::NoneUp(_)
                            if waited < self.patience.expected
                                && self.pool.expects_backend(now) =>
                        {
                            continue;
                        }
                        NoPick::Busy => Err(Refused::QueueFull),
                        NoPick::NoneUp(reason) | NoPick::Away(reason) => {
                            Err(Refused::NoServer(reason))
                        }
                    }
                }
            };
            served.push((at, answer));
        }
        served.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let mut all_taken = true;
        for (at, answer) in served {
            let waiting = self.waiting.remove(at);
            match answer {
                Ok(pick) => all_taken &= self.hand_over(pick, &waiting.ask),
                Err(refused) => {
                    let _ = waiting.ask.reply.send(Err(refused));
                }
            }
        }
        all_taken
    }

    /// False when nobody is there any more.
    fn hand_over(&mut self, pick: Pick, ask: &Ask) -> bool {
        let handed = Handed { pick: Some(pick), mailbox: ask.mailbox.clone() };
        let Err(SendError(Ok(handed))) = ask.reply.send(Ok(handed)) else { return true };
        if let Some(pick) = handed.take() {
            let void = Input::Finished(pick.id, Outcome::Void.into());
            self.pool.handle(Instant::now(), void, &mut self.actions);
            self.act();
        }
        false
    }

    fn hand_out(&self, job: Job) {
        if self.jobs.try_send(job).is_err() {
            log::debug!("job queue full, job dropped");
        }
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Check(id, target, wants_inventory) => {
                    self.hand_out(Job::Check(CheckJob { id, target, wants_inventory }));
                }
                Action::Report(transition) => {
                    report(&transition);
                    let changes_memory =
                        matches!(transition, Transition::Up { .. } | Transition::Moved { .. });
                    if changes_memory {
                        self.hand_out(Job::Remember(self.pool.memorable()));
                    }
                }
            }
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
        Transition::Refused { address } => log::debug!("pool full, refused addr={address}"),
    }
}
