//! The Manager's thread. It decides and never does I/O: it blocks only on its mailbox.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::liveness::{CheckJob, Job};
use super::mailbox::{Caller, Event, Inbox, Inventories, Mailbox, Snapshot};
use super::pool::{Action, Backend, Forgot, History, Input, Pool, Transition};
use super::presence::Presence;
use super::queue::{Answers, Patience, Queue};
use super::store;
use crate::net::untrusted_text::printable_whole;
use crate::system::spawn_vital;
use crate::upstream::CheckResult;

/// How long a list waits for a change to be known; a slow server delays it no longer.
const LIST_PATIENCE: Duration = Duration::from_millis(500);
/// How long somebody who looks at the state waits for models that nobody asked for before.
const LOOK_PATIENCE: Duration = Duration::from_millis(400);
/// A client that has found no server by then says so.
const NOBODY_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked for what people should know.
const NOTE_LOOK: Duration = Duration::from_secs(5);
/// Transitions remembered for those who look at the state.
const MAX_TRANSITIONS: usize = 32;
/// What is known of the servers is written down at most so often, and at least so often: the disk
/// may be an SD card.
const WRITE_PAUSE: Duration = Duration::from_secs(5);
const WRITE_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// The Manager's thread; dropping the handle stops and joins it.
#[derive(Debug)]
pub struct Handle {
    mailbox: Mailbox,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Starts the thread. `jobs` takes the health checks; a full queue drops them, and the pool
    /// asks again. What is known of the servers is kept in `memory`.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(
        pool: Pool,
        jobs: Sender<Job>,
        patience: Patience,
        memory: Option<store::Memory>,
    ) -> io::Result<Self> {
        let presence = Arc::new(Presence::default());
        let (mailbox, inbox) = Mailbox::open(Arc::clone(&presence));
        let manager = Manager {
            queue: Queue::new(pool, patience),
            inbox,
            jobs,
            presence,
            questions: Vec::new(),
            transitions: VecDeque::new(),
            history: History::default(),
            last_wait: None,
            memory: Memory { place: memory, ..Memory::default() },
            notices: Notices {
                start: Instant::now(),
                has_told_of_none: false,
                notes: Vec::new(),
                looked: Instant::now(),
            },
            actions: Vec::new(),
            answers: Vec::new(),
        };
        let thread = spawn_vital("manager", move || manager.run())?;
        Ok(Handle { mailbox, thread: Some(thread) })
    }

    /// Where events go.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// What everybody may know.
    pub fn presence(&self) -> Arc<Presence> {
        Arc::clone(&self.mailbox.presence)
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
    queue: Queue<Caller>,
    inbox: Inbox,
    jobs: Sender<Job>,
    presence: Arc<Presence>,
    /// Questions that are answered once the models are known, and since when they wait.
    questions: Vec<(Instant, Event)>,
    /// The last ones, oldest first.
    transitions: VecDeque<(Instant, Transition)>,
    history: History,
    last_wait: Option<Duration>,
    memory: Memory,
    notices: Notices,
    actions: Vec<Action>,
    answers: Answers<Caller>,
}

/// What people are told once.
struct Notices {
    start: Instant,
    /// Whether it was told that there is no server, or there was one.
    has_told_of_none: bool,
    notes: Vec<String>,
    /// When it was looked for such notes last.
    looked: Instant,
}

/// When what is known of the servers was written down, and whether that has changed since.
#[derive(Default)]
struct Memory {
    place: Option<store::Memory>,
    written_at: Option<Instant>,
    has_changed: bool,
}

impl Memory {
    fn is_due(&self, now: Instant) -> bool {
        let pause = if self.has_changed { WRITE_PAUSE } else { WRITE_AGAIN };
        self.written_at.map_or(self.has_changed, |at| now.saturating_duration_since(at) >= pause)
    }
}

impl Manager {
    fn run(mut self) {
        while let Some(event) = self.inbox.next() {
            let now = Instant::now();
            match event {
                Event::Stop => {
                    self.write_down(now);
                    break;
                }
                Event::Pool(input) => {
                    if matches!(&input, Input::Noted(_, report) if report.is_trouble()) {
                        // What it means for the server depends on how many others it has.
                        self.retract(true);
                        self.retract(false);
                    }
                    self.handle(now, input);
                    self.update_fast_path(now, true);
                    self.update_fast_path(now, false);
                }
                Event::Lease(caller, request) => {
                    self.queue.ask(now, caller, request, &mut self.answers);
                    self.carry_out(now);
                }
                Event::Forget(name, reply) => {
                    let forgot = self.queue.forget_server(now, &name);
                    if matches!(forgot, Forgot::Done(_)) {
                        self.write_down(now);
                        self.update_fast_path(now, false);
                    }
                    let _ = reply.send(forgot);
                }
                Event::Inventories(_) => self.questions.push((now, event)),
                Event::OthersUp(reply) => drop(reply.send(self.queue.pool().others_up())),
                Event::Snapshot(_) => {
                    let pool = self.queue.pool();
                    // A second look doesn't wait for the same models again.
                    let waits = pool.lacks_inventory() && !pool.is_watched(now);
                    self.handle(now, Input::Watched);
                    if waits {
                        self.questions.push((now, event));
                    } else {
                        self.answer(now, event);
                    }
                }
            }
            if self.queue.take_wake() {
                self.hand_out(Job::Wake);
            }
            self.answer_questions(now);
            self.record(now);
            self.give_notice(now);
            if self.memory.is_due(now) {
                self.write_down(now);
            }
            self.presence.update(self.queue.pool());
        }
        // Replies that are still waiting are dropped with us, which their askers see.
    }

    /// Answers the questions about models that are known, or for which there was time enough.
    fn answer_questions(&mut self, now: Instant) {
        for (since, question) in std::mem::take(&mut self.questions) {
            let pool = self.queue.pool();
            let (is_unknown, patience) = match question {
                Event::Inventories(_) => (pool.has_stale_inventory(), LIST_PATIENCE),
                _ => (pool.lacks_inventory(), LOOK_PATIENCE),
            };
            if is_unknown && now.saturating_duration_since(since) < patience {
                self.questions.push((since, question));
            } else {
                self.answer(now, question);
            }
        }
    }

    fn answer(&self, now: Instant, question: Event) {
        let pool = self.queue.pool();
        match question {
            Event::Inventories(reply) => {
                let (backends, mut known) = (pool.ready(), pool.inventories());
                let mut asleep = pool.sleeping();
                let (sleeping, version) = (asleep.len(), pool.version());
                known.append(&mut asleep);
                let _ = reply.send(Inventories { backends, sleeping, known, version });
            }
            Event::Snapshot(reply) => {
                let _ = reply.send(self.snapshot(now));
            }
            _ => {}
        }
    }

    fn handle(&mut self, now: Instant, input: Input) {
        self.queue.handle(now, input, &mut self.actions, &mut self.answers);
        self.carry_out(now);
    }

    /// Writes down how long served requests waited, and, now and then, where things stand.
    fn record(&mut self, now: Instant) {
        for waited in self.queue.take_waits() {
            self.presence.counters().queue_wait.add(waited);
            self.last_wait = Some(waited);
        }
        if self.history.is_due(now) {
            let requests = self.presence.counters().requests_in_all();
            let in_flight = |b: &Backend| b.load.in_flight + self.presence.in_flight_unasked(b.id);
            let servers = self.queue.pool().backends.iter();
            let servers = servers.map(|b| (b.id, b.tally.tokens.value(), in_flight(b)));
            self.history.record(now, self.queue.waiting(), requests, servers);
        }
    }

    fn snapshot(&self, now: Instant) -> Snapshot {
        let sleeps = self.queue.pool().sleeps.clone();
        let ago = |at: Instant| sleeps.age(at, now);
        let mut servers = self.queue.pool().snapshot(now);
        for server in &mut servers {
            let backend = &mut server.backend;
            backend.load.in_flight += self.presence.in_flight_unasked(backend.id);
        }
        let newest_first = self.transitions.iter().rev();
        Snapshot {
            servers,
            away: self.queue.pool().away(now),
            waiting: self.queue.waiting(),
            longest_wait: self.queue.longest_wait(now),
            last_wait: self.last_wait,
            transitions: newest_first.map(|(at, change)| (ago(*at), change.clone())).collect(),
            history: self.history.clone(),
            sleeps,
            aliases: self.queue.pool().aliases(),
            notes: notes(self.queue.pool(), now),
        }
    }

    /// Retracts the fast path, so that the pool counts those who use it.
    fn retract(&mut self, local_only: bool) {
        if let Some((pick, users)) = self.presence.slot(local_only).retract() {
            self.queue.transfer(pick.id, users.all, users.exempt);
        }
    }

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
            // An unclaimed server goes to the next request that waits.
            for (caller, answer) in std::mem::take(&mut self.answers) {
                if let Some(pick) = caller.answer(answer) {
                    self.queue.unclaimed(now, &pick, &mut self.actions, &mut self.answers);
                }
            }
            self.act(now);
        }
    }

    fn act(&mut self, now: Instant) {
        let mut is_news = false;
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Check(id, target, wants_inventory, time) => {
                    let job = CheckJob { id, target, wants_inventory, time };
                    if !self.hand_out(Job::Check(job)) {
                        // It is asked for again soon.
                        let void = Input::Checked(id, CheckResult::Void);
                        self.queue.handle(now, void, &mut self.actions, &mut self.answers);
                    }
                }
                Action::Report(transition) => {
                    is_news |=
                        matches!(transition, Transition::Up { .. } | Transition::Moved { .. });
                    // When it was well last is written down too.
                    self.memory.has_changed |= matches!(transition, Transition::Down { .. });
                    log_transition(&transition);
                    // Strangers that the full pool refuses are no news, and anyone can make many.
                    if !matches!(transition, Transition::Refused { .. }) {
                        if self.transitions.len() >= MAX_TRANSITIONS {
                            self.transitions.pop_front();
                        }
                        self.transitions.push_back((now, transition));
                    }
                }
                Action::Remember => is_news = true,
            }
        }
        if is_news {
            self.memory.has_changed = true;
            self.hand_out(Job::Learn(self.queue.pool().present()));
        }
    }

    /// Says once that no server was found, and what else people should know.
    fn give_notice(&mut self, now: Instant) {
        let (pool, notices) = (self.queue.pool(), &mut self.notices);
        if !notices.has_told_of_none {
            let has_found = pool.has_found() || pool.has_local();
            let is_late = now.saturating_duration_since(notices.start) >= NOBODY_AFTER;
            if !has_found && is_late {
                let silence = self
                    .presence
                    .silence()
                    .filter(|_| pool.is_empty() && notes(pool, now).is_empty());
                let why = silence.unwrap_or_else(|| pool.explain(false));
                let seconds = NOBODY_AFTER.as_secs();
                log::warn!("no server found in {seconds} s: {why}; ollana doctor says more");
            }
            notices.has_told_of_none = has_found || is_late;
        }
        if now.saturating_duration_since(notices.looked) >= NOTE_LOOK {
            notices.looked = now;
            let notes = notes(pool, now);
            let new = notes.iter().filter(|one| !notices.notes.contains(one));
            new.for_each(|one| log::warn!("{}", printable_whole(one)));
            notices.notes = notes;
        }
    }

    fn write_down(&mut self, now: Instant) {
        self.memory.written_at = Some(now);
        self.memory.has_changed = false;
        if let Some(place) = &self.memory.place {
            place.keep(self.queue.pool().memorable(now));
        }
    }

    fn hand_out(&self, job: Job) -> bool {
        let is_taken = self.jobs.try_send(job).is_ok();
        if !is_taken {
            log::debug!("job queue full, job dropped");
        }
        is_taken
    }
}

/// Rules that came to nothing, and machines that say why they can't be used.
fn notes(pool: &Pool, now: Instant) -> Vec<String> {
    let mut notes = pool.unmet(now);
    notes.extend(pool.unusable(now));
    notes
}

fn log_transition(transition: &Transition) {
    match transition {
        Transition::Up { name, address, version } => {
            log::info!("server up name={name:?} addr={address} ollama={version:?}");
        }
        Transition::Down { name, reason } => {
            log::warn!("server down name={name:?} reason={reason:?}");
        }
        Transition::OutlierEjected { name, model, pause } => {
            let model = model.as_ref().map(|model| format!(" model={:?}", model.as_str()));
            let (model, pause_ms) = (model.unwrap_or_default(), pause.as_millis());
            log::warn!("server rests name={name:?}{model} pause_ms={pause_ms}");
        }
        Transition::Lists { name, problem: Some(problem) } => {
            log::warn!("models incomplete server={name:?} reason={problem:?}");
        }
        Transition::Lists { name, problem: None } => log::info!("models complete server={name:?}"),
        Transition::Forgotten { name } => log::info!("server forgotten name={name:?}"),
        Transition::Moved { name, address } => {
            log::info!("server moved name={name:?} addr={address}");
        }
        Transition::IdentityConflict { name, address, reason, is_quarantined } => {
            let what = if *is_quarantined { "gets no requests" } else { "is used all the same" };
            log::warn!("server contested, {what} name={name:?} addr={address} reason={reason:?}");
        }
        Transition::Refused { address } => log::debug!("pool full, refused addr={address}"),
    }
}
