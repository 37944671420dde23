//! The ticker, and the checkers that do the Manager's jobs: above all asking servers for
//! `/api/version`.
//!
//! The Manager decides when a server is checked; the ticker only tells it that time passes, and
//! the checkers do what it asks for, each with its own connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::mailbox::Mailbox;
use super::pool::{CheckId, Input, MAX_CHECKS, MAX_LISTS};
use super::wake::Wake;
use crate::config::{OllamaUrl, Timing};
use crate::pairing::keyring::Keyring;
use crate::system::{keeper::Keeper, spawn_vital, time_slept};
use crate::upstream::{Check, CheckTime, Target, Upstream};

/// How often the Manager hears that time has passed.
const TICK: Duration = Duration::from_millis(200);
/// Sleep of this machine that is worth telling.
const SLEPT: Duration = Duration::from_secs(1);
/// Ticks from one look at the files of keys to the next.
const KEY_LOOK: u64 = 5;
/// Jobs that may wait. No more checks are under way than there are checkers.
const MAX_JOBS: usize = 128;

/// Something that takes time.
#[derive(Debug)]
pub enum Job {
    /// Check a server.
    Check(CheckJob),
    /// These servers are up and go by these names: remember how to wake them.
    Learn(Vec<(SocketAddr, Vec<String>)>),
    /// Wake the machines that may be woken.
    Wake,
}

/// A health check to run.
#[derive(Debug)]
pub struct CheckJob {
    /// Which check the result is of.
    pub id: CheckId,
    /// What to ask.
    pub target: Target,
    /// Whether to ask for its models too.
    pub wants_inventory: bool,
    /// How long it may take.
    pub time: CheckTime,
}

/// Where the Manager puts its jobs, and where the checkers take them from.
pub fn job_queue() -> (Sender<Job>, Receiver<Job>) {
    bounded(MAX_JOBS)
}

/// The ticker's thread; dropping it stops and joins it.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(crate) fn start(
        mailbox: Mailbox,
        keyring: Arc<Keyring>,
        keeper: Arc<Keeper>,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let keys = ("keys", keeper.enter());
        let thread = spawn_vital("ticker", move || {
            let mut slept = time_slept();
            for tick in 1u64.. {
                if stopped.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let slept_now = time_slept();
                let sleep = slept_now.saturating_sub(slept);
                if sleep >= SLEPT {
                    slept = slept_now;
                    mailbox.try_send(Input::Slept(sleep));
                }
                mailbox.try_send(Input::Tick);
                if tick.is_multiple_of(KEY_LOOK) {
                    let keyring = Arc::clone(&keyring);
                    keeper.put(keys, move || keyring.refresh());
                }
            }
        })?;
        Ok(Ticker { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The checkers' threads. They end when the queue's other side, the Manager, is gone. Dropping this
/// drops the checks that wait in the queue. A check under way is left alone: nobody waits for its
/// result, and it ends when its time is up.
#[derive(Debug)]
pub(crate) struct Checkers {
    is_stopping: Arc<AtomicBool>,
}

impl Checkers {
    pub(crate) fn start(jobs: &Receiver<Job>, checker: &Checker) -> io::Result<Self> {
        let checkers = Checkers { is_stopping: Arc::default() };
        // Else each of them would come to have a connection to each server.
        let upstream = Upstream::for_checkers(&checker.timing, &checker.keyring);
        for _ in 0..MAX_CHECKS + MAX_LISTS {
            let (jobs, checker) = (jobs.clone(), checker.clone());
            let is_stopping = Arc::clone(&checkers.is_stopping);
            let upstream = upstream.clone();
            spawn_vital("checker", move || {
                let is_wanted =
                    |job: &Job| !matches!(job, Job::Check(_)) || !is_stopping.load(SeqCst);
                jobs.iter().filter(is_wanted).for_each(|job| checker.run(&upstream, job));
            })?;
        }
        Ok(checkers)
    }
}

impl Drop for Checkers {
    fn drop(&mut self) {
        self.is_stopping.store(true, SeqCst);
    }
}

#[derive(Clone)]
pub(crate) struct Checker {
    pub(crate) mailbox: Mailbox,
    pub(crate) timing: Timing,
    pub(crate) keyring: Arc<Keyring>,
    /// The Ollama of this machine, if it is shared.
    pub(crate) local: Option<OllamaUrl>,
    pub(crate) wake: Option<Wake>,
}

impl Checker {
    fn run(&self, upstream: &Upstream, job: Job) {
        match job {
            Job::Check(CheckJob { id, target, wants_inventory, time }) => {
                let is_local = |url: &&OllamaUrl| target == Target::Name(url.server());
                let local = self.local.as_ref().filter(is_local);
                let check = Check { target: &target, local, wants_inventory, time };
                self.mailbox.send(Input::Checked(id, check.run(upstream)));
            }
            Job::Learn(servers) => self.wake.iter().for_each(|wake| wake.learn(&servers)),
            Job::Wake => {
                if self.wake.as_ref().is_some_and(Wake::call) {
                    self.mailbox.send(Input::Woken);
                }
            }
        }
    }
}
