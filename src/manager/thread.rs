//! The Manager's thread. It decides and never does I/O: it blocks only on its mailbox.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::liveness::{CheckJob, Job};
use super::mailbox::{Caller, Event, Inventories, Mailbox, Snapshot};
use super::pool::{Action, History, Input, Pool, Transition};
use super::presence::Presence;
use super::queue::{Answers, Patience, Queue};
use crate::system::spawn;
use crate::upstream::CheckResult;

/// How long a list waits for a change to be known; a slow server delays it no longer.
const LIST_PATIENCE: Duration = Duration::from_millis(500);
/// How long somebody who looks at the state waits for models that nobody asked for before.
const LOOK_PATIENCE: Duration = Duration::from_millis(400);
/// Transitions remembered for those who look at the state.
const MAX_TRANSITIONS: usize = 32;

/// The Manager's thread; dropping the handle stops and joins it.
#[derive(Debug)]
pub struct Handle {
    mailbox: Mailbox,
    presence: Arc<Presence>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Starts the thread. `jobs` takes the health checks; a full queue drops them, and the pool
    /// asks again.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(pool: Pool, jobs: Sender<Job>, patience: Patience) -> io::Result<Self> {
        let presence = Arc::new(Presence::default());
        let (mailbox, events) = Mailbox::new(Arc::clone(&presence));
        let manager = Manager {
            queue: Queue::new(pool, patience),
            events,
            jobs,
            presence: Arc::clone(&presence),
            lists: Pending(Vec::new()),
            lookers: Pending(Vec::new()),
            transitions: VecDeque::new(),
            history: History::default(),
            last_wait: None,
            actions: Vec::new(),
            answers: Vec::new(),
        };
        let thread = spawn("manager", move || manager.run())?;
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
        self.mailbox.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Questions that are answered later, and since when they wait.
struct Pending<T>(Vec<(Instant, Sender<T>)>);

impl<T> Pending<T> {
    /// Answers all but those that wait, which they do for `patience` at most.
    fn answer(&mut self, now: Instant, patience: Option<Duration>, answer: impl Fn() -> T) {
        self.0.retain(|(since, reply)| {
            let waits = patience.is_some_and(|most| now.saturating_duration_since(*since) < most);
            if !waits {
                let _ = reply.send(answer());
            }
            waits
        });
    }
}

struct Manager {
    queue: Queue<Caller>,
    events: Receiver<Event>,
    jobs: Sender<Job>,
    presence: Arc<Presence>,
    lists: Pending<Inventories>,
    lookers: Pending<Snapshot>,
    /// The last ones, oldest first.
    transitions: VecDeque<(Instant, Transition)>,
    history: History,
    last_wait: Option<Duration>,
    actions: Vec<Action>,
    answers: Answers<Caller>,
}

impl Manager {
    fn run(mut self) {
        while let Ok(event) = self.events.recv() {
            let now = Instant::now();
            match event {
                Event::Stop => break,
                Event::Pool(input) => {
                    if matches!(&input, Input::Noted(_, report) if report.is_trouble()) {
                        // What it means for the backend depends on how many others it has.
                        self.retract(true);
                        self.retract(false);
                    }
                    self.queue.handle(now, input, &mut self.actions, &mut self.answers);
                    self.carry_out(now);
                    self.update_fast_path(now, true);
                    self.update_fast_path(now, false);
                }
                Event::Lease(caller, request) => {
                    self.queue.ask(now, caller, request, &mut self.answers);
                    self.carry_out(now);
                }
                Event::Inventories(reply) => self.lists.0.push((now, reply)),
                Event::Snapshot(reply) => self.look(now, reply),
            }
            if self.queue.take_wake() {
                self.hand_out(Job::Wake);
            }
            self.answer_lists(now);
            self.answer_lookers(now);
            self.record(now);
            self.presence.update(self.queue.pool());
        }
        // Replies that are still waiting are dropped with us, which their askers see.
    }

    /// Tells what there is, at once or as soon as a change that went through us is known.
    fn answer_lists(&mut self, now: Instant) {
        let pool = self.queue.pool();
        self.lists.answer(now, pool.has_stale_inventory().then_some(LIST_PATIENCE), || {
            let (backends, known) = (pool.ready(), pool.inventories());
            Inventories { backends, known, version: pool.version() }
        });
    }

    fn look(&mut self, now: Instant, reply: Sender<Snapshot>) {
        let pool = self.queue.pool();
        let waits = pool.lacks_inventory() && !pool.is_watched(now);
        self.queue.handle(now, Input::Watched, &mut self.actions, &mut self.answers);
        self.carry_out(now);
        if waits {
            self.lookers.0.push((now, reply));
        } else {
            let _ = reply.send(self.snapshot(now));
        }
    }

    fn answer_lookers(&mut self, now: Instant) {
        let patience = self.queue.pool().lacks_inventory().then_some(LOOK_PATIENCE);
        let mut lookers = std::mem::replace(&mut self.lookers, Pending(Vec::new()));
        lookers.answer(now, patience, || self.snapshot(now));
        self.lookers = lookers;
    }

    /// Writes down how long served requests waited, and, now and then, where things stand.
    fn record(&mut self, now: Instant) {
        for waited in self.queue.take_waits() {
            self.presence.counters().queue_wait.add(waited);
            self.last_wait = Some(waited);
        }
        if self.history.is_due(now) {
            let requests = self.presence.counters().requests_in_all();
            let unasked = |id| self.presence.in_flight_unasked(id);
            let waiting = self.queue.waiting();
            self.queue.pool().record(&mut self.history, now, waiting, requests, &unasked);
        }
    }

    fn snapshot(&self, now: Instant) -> Snapshot {
        let ago = |at: Instant| now.saturating_duration_since(at);
        let mut servers = self.queue.pool().snapshot(now);
        for server in &mut servers {
            let backend = &mut server.backend;
            backend.load.in_flight += self.presence.in_flight_unasked(backend.id);
        }
        let newest_first = self.transitions.iter().rev();
        Snapshot {
            servers,
            waiting: self.queue.waiting(),
            longest_wait: self.queue.longest_wait(now),
            last_wait: self.last_wait,
            transitions: newest_first.map(|(at, change)| (ago(*at), change.clone())).collect(),
            history: self.history.clone(),
        }
    }

    /// Retracts the fast path, so that the pool counts those who use it.
    fn retract(&mut self, local_only: bool) {
        if let Some((pick, count)) = self.presence.slot(local_only).retract() {
            self.queue.transfer(pick.id, count);
        }
    }

    /// Publishes what there is no choice about.
    fn update_fast_path(&mut self, now: Instant, local_only: bool) {
        let sole = self.queue.sole(now, local_only);
        let published = self.presence.slot(local_only).published();
        if published.as_ref().map(|path| &path.pick) != sole.as_ref() {
            self.retract(local_only);
            if let Some(pick) = sole {
                self.presence.slot(local_only).publish(pick);
            }
        }
    }

    fn carry_out(&mut self, now: Instant) {
        while !self.answers.is_empty() || !self.actions.is_empty() {
            self.deliver(now);
            self.act(now);
        }
    }

    /// Hands out the answers. An unclaimed backend goes to the next request that waits.
    fn deliver(&mut self, now: Instant) {
        for (caller, answer) in std::mem::take(&mut self.answers) {
            if let Some(pick) = caller.answer(answer) {
                self.queue.unclaimed(now, &pick, &mut self.actions, &mut self.answers);
            }
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
                        self.queue.handle(now, void, &mut self.actions, &mut self.answers);
                    }
                }
                Action::Report(transition) => {
                    changes_memory |=
                        matches!(transition, Transition::Up { .. } | Transition::Moved { .. });
                    log_transition(&transition);
                    self.keep(now, transition);
                }
                Action::Remember => changes_memory = true,
            }
        }
        if changes_memory {
            self.hand_out(Job::Remember(self.queue.pool().memorable()));
            self.hand_out(Job::Learn(self.queue.pool().present()));
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
    fn keep(&mut self, now: Instant, transition: Transition) {
        if !matches!(transition, Transition::Refused { .. }) {
            if self.transitions.len() >= MAX_TRANSITIONS {
                self.transitions.pop_front();
            }
            self.transitions.push_back((now, transition));
        }
    }
}

fn log_transition(transition: &Transition) {
    match transition {
        Transition::Up { name, address, version } => {
            log::info!("backend up name={name:?} addr={address} ollama={version:?}");
        }
        Transition::Down { name, reason } => {
            log::warn!("backend down name={name:?} reason={reason:?}");
        }
        Transition::OutlierEjected { name, pause } => {
            log::warn!("backend rests name={name:?} pause_ms={}", pause.as_millis());
        }
        Transition::Forgotten { name } => log::info!("backend forgotten name={name:?}"),
        Transition::Moved { name, address } => {
            log::info!("backend moved name={name:?} addr={address}");
        }
        Transition::IdentityConflict { name, address, reason, is_quarantined } => {
            let what = if *is_quarantined { "gets no requests" } else { "is used all the same" };
            log::warn!("backend contested, {what} name={name:?} addr={address} reason={reason:?}");
        }
        Transition::Refused { address } => log::debug!("pool full, refused addr={address}"),
    }
}
