//! The ticker, and the checkers that ask backends for `/api/version`.
//!
//! The Manager decides when a backend is checked; the ticker only tells it that time passes, and
//! the checkers do what it asks for, each with its own connection.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::config::{OllamaUrl, Timing};
use crate::manager::pool::{Input, MAX_CHECKS, Target};
use crate::manager::store;
use crate::manager::wake::Wake;
use crate::manager::{Job, Mailbox};
use crate::pairing::keyring::Keyring;
use crate::system::THREAD_STACK;
use crate::upstream::Upstream;
use crate::upstream::health_check::Check;

/// How often the Manager hears that time has passed.
const TICK: Duration = Duration::from_millis(200);
/// Ticks from one look at the files of keys to the next.
const KEY_LOOK: u32 = 5;

/// Where the Manager puts its jobs, and where the checkers take them from.
pub fn job_queue() -> (Sender<Job>, Receiver<Job>) {
    // One per backend is under way at most.
    bounded(128)
}

/// The ticker's thread; dropping it stops and joins it.
#[derive(Debug)]
pub struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts to tick.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(mailbox: Mailbox, keyring: Arc<Keyring>) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let thread = thread::Builder::new()
            .name("ticker".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || {
                let mut ticks = 0u32;
                while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    mailbox.offer(Input::Tick);
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(KEY_LOOK) {
                        keyring.refresh();
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

/// The checkers' threads. They end when the queue's other side, the Manager, is gone.
#[derive(Debug)]
pub struct Checkers(Vec<JoinHandle<()>>);

impl Checkers {
    /// Starts the checkers. `local` is the Ollama of this machine, if it is shared; `memory` takes
    /// the servers to remember; `wake` knows whom to wake.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(
        jobs: &Receiver<Job>,
        mailbox: &Mailbox,
        timing: &Timing,
        keyring: &Arc<Keyring>,
        local: Option<&OllamaUrl>,
        memory: Option<&Path>,
        wake: Option<&Wake>,
    ) -> io::Result<Self> {
        let mut threads = Vec::with_capacity(MAX_CHECKS);
        for _ in 0..MAX_CHECKS {
            let jobs = jobs.clone();
            let mailbox = mailbox.clone();
            let timeout = timing.health_timeout;
            let upstream = Upstream::new(timing, keyring);
            let local = local.cloned();
            let memory = memory.map(Path::to_owned);
            let wake = wake.cloned();
            let thread = thread::Builder::new()
                .name("checker".to_owned())
                .stack_size(THREAD_STACK)
                .spawn(move || {
                    for job in jobs {
                        let job = match job {
                            Job::Check(job) => job,
                            Job::Remember(servers) => {
                                if let Some(dir) = &memory {
                                    store::remember(dir, &servers);
                                }
                                continue;
                            }
                            Job::Learn(servers) => {
                                wake.iter().for_each(|wake| wake.learn(&servers));
                                continue;
                            }
                            Job::Wake => {
                                wake.iter().for_each(Wake::call);
                                continue;
                            }
                        };
                        let is_local = |url: &&OllamaUrl| job.target == Target::Name(url.server());
                        let check = Check {
                            target: &job.target,
                            local: local.as_ref().filter(is_local),
                            wants_inventory: job.wants_inventory,
                            timeout,
                        };
                        let result = check.run(&upstream);
                        mailbox.send(Input::Checked(job.id, result));
                    }
                })?;
            threads.push(thread);
        }
        Ok(Checkers(threads))
    }

    /// Waits for their end; the Manager must be gone.
    pub fn join(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}
