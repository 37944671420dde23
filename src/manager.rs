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

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::pool::{Action, BackendId, Input, Outcome, Pick, Pool, Target, Transition};
use crate::wire::OllamaVersion;

/// Events that may wait; more than a thousand workers can have under way at once.
const MAILBOX: usize = 8192;

/// A health check to run.
#[derive(Debug)]
pub struct CheckJob {
    /// Whom the result is about.
    pub id: BackendId,
    /// What to ask.
    pub target: Target,
}

#[derive(Debug)]
enum Event {
    Pool(Input),
    Lease { tried: Vec<BackendId>, reply: Sender<Result<Pick, String>> },
    Stop,
}

/// What other threads may know without asking: updated after every event.
#[derive(Debug, Default)]
pub struct Presence {
    up: AtomicBool,
    version: AtomicU32,
    in_flight: AtomicU32,
}

impl Presence {
    /// Whether any backend is ready.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// The lowest version of the ready backends.
    pub fn version(&self) -> OllamaVersion {
        OllamaVersion::from_bits(self.version.load(Relaxed))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
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
pub struct Mailbox(Sender<Event>);

/// A backend for one request. Dropping it reports the outcome.
#[derive(Debug)]
pub struct Lease {
    /// Which backend, and where.
    pub pick: Pick,
    /// How the request ended; [`Outcome::Void`] until said otherwise.
    pub outcome: Outcome,
    mailbox: Mailbox,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.mailbox.send(Input::Finished(self.pick.id, self.outcome));
    }
}

impl Mailbox {
    /// Reports something that must not get lost; waits while the mailbox is full.
    pub fn send(&self, input: Input) {
        // A closed mailbox means that we are stopping.
        let _ = self.0.send(Event::Pool(input));
    }

    /// Reports something that will be said again; dropped when the mailbox is full.
    pub fn offer(&self, input: Input) {
        if let Err(TrySendError::Full(_)) = self.0.try_send(Event::Pool(input)) {
            log::debug!("mailbox full, event dropped");
        }
    }

    /// Asks for a backend, passing over the `tried` ones.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn lease(&self, tried: &[BackendId]) -> Result<Lease, String> {
        let (reply, answer) = bounded(1);
        let ask = Event::Lease { tried: tried.to_vec(), reply };
        let stopping = |_| "ollana is stopping".to_owned();
        self.0.send(ask).map_err(|_| stopping(()))?;
        let pick = answer.recv().map_err(|_| stopping(()))??;
        Ok(Lease { pick, outcome: Outcome::Void, mailbox: self.clone() })
    }
}

impl Handle {
    /// Starts the thread. `jobs` takes the health checks; a full queue drops them, and the pool
    /// asks again. A lease waits up to `wait` while a backend is expected.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(pool: Pool, jobs: Sender<CheckJob>, wait: Duration) -> io::Result<Self> {
        let (sender, mailbox) = bounded(MAILBOX);
        let presence = Arc::new(Presence::default());
        let manager = Manager {
            pool,
            mailbox,
            jobs,
            wait,
            presence: Arc::clone(&presence),
            waiting: Vec::new(),
            actions: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("manager".to_owned())
            .stack_size(crate::config::THREAD_STACK)
            .spawn(move || manager.run())?;
        Ok(Handle { mailbox: Mailbox(sender), presence, thread: Some(thread) })
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
        let _ = self.mailbox.0.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request that waits for a backend.
struct Waiting {
    deadline: Instant,
    tried: Vec<BackendId>,
    reply: Sender<Result<Pick, String>>,
}

struct Manager {
    pool: Pool,
    mailbox: Receiver<Event>,
    jobs: Sender<CheckJob>,
    wait: Duration,
    presence: Arc<Presence>,
    waiting: Vec<Waiting>,
    actions: Vec<Action>,
}

impl Manager {
    fn run(mut self) {
        while let Ok(event) = self.mailbox.recv() {
            let now = Instant::now();
            match event {
                Event::Stop => break,
                Event::Pool(input) => {
                    self.pool.handle(now, input, &mut self.actions);
                    self.act();
                    self.serve_waiting(now);
                }
                Event::Lease { tried, reply } => self.lease(now, tried, reply),
            }
            self.presence.up.store(self.pool.is_ready(), Relaxed);
            self.presence.version.store(self.pool.version().to_bits(), Relaxed);
            self.presence.in_flight.store(self.pool.in_flight(), Relaxed);
        }
        // Replies that are still waiting are dropped with us, which their askers see.
    }

    fn lease(&mut self, now: Instant, tried: Vec<BackendId>, reply: Sender<Result<Pick, String>>) {
        match self.pool.pick(now, &tried) {
            Some(pick) => self.hand_over(pick, &reply),
            None if tried.is_empty() && self.pool.expects_backend() => {
                self.waiting.push(Waiting { deadline: now + self.wait, tried, reply });
            }
            None => {
                let _ = reply.send(Err(self.pool.explain()));
            }
        }
    }

    fn serve_waiting(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.waiting.len() {
            let pick = self.pool.pick(now, &self.waiting[at].tried);
            let hopeless = now >= self.waiting[at].deadline || !self.pool.expects_backend();
            match pick {
                Some(pick) => {
                    let waiting = self.waiting.swap_remove(at);
                    self.hand_over(pick, &waiting.reply);
                }
                None if hopeless => {
                    let waiting = self.waiting.swap_remove(at);
                    let _ = waiting.reply.send(Err(self.pool.explain()));
                }
                None => at += 1,
            }
        }
    }

    fn hand_over(&mut self, pick: Pick, reply: &Sender<Result<Pick, String>>) {
        let id = pick.id;
        if reply.send(Ok(pick)).is_err() {
            let void = Input::Finished(id, Outcome::Void);
            self.pool.handle(Instant::now(), void, &mut self.actions);
        }
    }

    fn act(&mut self) {
        for action in self.actions.drain(..) {
            match action {
                Action::Check(id, target) => {
                    if self.jobs.try_send(CheckJob { id, target }).is_err() {
                        log::debug!("check queue full, check dropped");
                    }
                }
                Action::Report(transition) => report(&transition),
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
