//! The queue of requests in front of the pool.
//!
//! Pure: no channels, no threads, no clock. Requests come in with a token that stands for the
//! asker, answers go out into a list with the same token.
//!
//! A request waits while all servers that could do are busy, while one that may be ready in a
//! moment is being checked, or while a machine is woken for it. No request overtakes those that wait
//! for the same servers, and of those the one comes first whose client had its last turn longest
//! ago. Requests for other servers don't wait for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::manager::pool::{Action, BackendId, Forgot, Input, NoPick, Outcome, Pick, Pool, Wanted};
use crate::ollama::endpoints::Task;

/// Requests of one client that may wait for the same servers; more are refused.
pub const MAX_PER_CLIENT: usize = 256;
/// Requests that may wait in all. More are refused to the client that has most of them.
pub const MAX_QUEUE: usize = 2048;
/// Clients of which it is remembered when they had their last turn.
const MAX_TURNS: usize = 4096;

/// Wake-up calls are repeated after this long while somebody waits.
const WAKE_AGAIN: Duration = Duration::from_secs(10);

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No server can do it now; the sentence says which and why.
    NoServer(String),
    /// The same: the only one with the model is away, or was tried in vain.
    OwnerAway(String),
    /// Too many requests wait already.
    QueueFull,
}

/// How long requests wait for a server, by reason.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// While one that may be ready in a moment is being checked.
    pub expected: Duration,
    /// While all that could do are busy.
    pub busy: Duration,
    /// While a machine wakes up, where there are some to wake.
    pub wake: Option<Duration>,
}

/// Stands for somebody who waits for a server.
pub trait Asker {
    /// Whether somebody still does.
    fn is_present(&self) -> bool;
}

/// A request for a server.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Servers to pass over, because they were tried.
    pub tried: Vec<BackendId>,
    /// What it needs.
    pub wanted: Wanted,
}

/// Answers on their way out.
pub type Answers<A> = Vec<(A, Result<Pick, Refused>)>;

#[derive(Debug)]
struct Waiting<A> {
    asker: A,
    request: Request,
    since: Instant,
    /// Since when it hasn't waited for a busy server, but for one that may be ready in a moment.
    unready_since: Option<Instant>,
    /// The servers that could do it, as they were when it was last looked at.
    able: Vec<BackendId>,
}

/// The pool and the requests that wait for it.
#[derive(Debug)]
pub struct Queue<A> {
    pool: Pool,
    patience: Patience,
    /// In the order of arrival.
    waiting: Vec<Waiting<A>>,
    turns: HashMap<Option<IpAddr>, u64>,
    turn: u64,
    /// Whether machines are to be woken, and when that was last said.
    is_wake_due: bool,
    woken_at: Option<Instant>,
    /// When a packet was sent last: where no hardware address is known, none is.
    sent_at: Option<Instant>,
    /// How long the requests waited that were answered since the last look.
    waits: Vec<Duration>,
}

impl<A: Asker> Queue<A> {
    /// Nobody waits yet.
    pub fn new(pool: Pool, patience: Patience) -> Self {
        Queue {
            pool,
            patience,
            waiting: Vec::new(),
            turns: HashMap::new(),
            turn: 0,
            is_wake_due: false,
            woken_at: None,
            sent_at: None,
            waits: Vec::new(),
        }
    }

    /// The servers.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How long the first of them has waited.
    pub fn longest_wait(&self, now: Instant) -> Option<Duration> {
        self.waiting.first().map(|waiting| now.saturating_duration_since(waiting.since))
    }

    /// How long the requests waited that were answered since the last call.
    pub(crate) fn take_waits(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.waits)
    }

    /// Whether it is time for a wake-up call; true once per call.
    pub fn take_wake(&mut self) -> bool {
        std::mem::take(&mut self.is_wake_due)
    }

    /// How long a request may wait for a machine that sleeps, if it needs a model that runs, and one
    /// is away that may have it.
    fn wake_patience(&self, request: &Request) -> Option<Duration> {
        let Wanted { task, model, local_only, .. } = &request.wanted;
        let is_use = *task == Task::Use && model.is_some() && !local_only;
        let is_first = is_use && request.tried.is_empty();
        self.patience.wake.filter(|_| is_first && self.pool.may_wake_for(&request.wanted))
    }

    pub(crate) fn forget_server(&mut self, now: Instant, name: &str) -> Forgot {
        self.pool.forget_server(now, name)
    }

    /// Counts in requests that were counted elsewhere until now, some of them exempt from limits.
    pub fn transfer(&mut self, id: BackendId, requests: u32, exempt: u32) {
        self.pool.transfer(id, requests, exempt);
    }

    /// The server that every request gets, while there is no choice and nobody waits. Not counted
    /// in.
    pub fn sole(&self, now: Instant, local_only: bool) -> Option<Pick> {
        self.pool.sole(now, local_only).filter(|_| self.waiting.is_empty())
    }

    /// Lets the pool decide what follows from an input, and serves the requests that wait.
    pub fn handle(
        &mut self,
        now: Instant,
        input: Input,
        actions: &mut Vec<Action>,
        answers: &mut Answers<A>,
    ) {
        if matches!(input, Input::Woken) {
            self.sent_at = Some(now);
        }
        self.pool.handle(now, input, actions);
        self.serve(now, answers);
    }

    /// Takes back a server that its asker didn't claim.
    pub fn unclaimed(
        &mut self,
        now: Instant,
        pick: &Pick,
        actions: &mut Vec<Action>,
        answers: &mut Answers<A>,
    ) {
        self.handle(now, Input::Finished(pick.id, pick.report(Outcome::Void)), actions, answers);
    }

    /// Answers a request, at once or when a server is free for it.
    pub fn ask(&mut self, now: Instant, asker: A, request: Request, answers: &mut Answers<A>) {
        let able = match request.wanted.is_exempt || self.waiting.is_empty() {
            true => Vec::new(),
            false => self.pool.able_ids(now, &request.tried, &request.wanted),
        };
        let picked = match !able.is_empty() && self.waiting.iter().any(|it| it.able == able) {
            true => Err(NoPick::Busy),
            false => self.pool.pick(now, &request.tried, &request.wanted),
        };
        let is_busy = picked == Err(NoPick::Busy);
        let is_expected = matches!(picked, Err(NoPick::NoneUp(_)))
            && request.tried.is_empty()
            && self.pool.expects_backend(now);
        let may_wait =
            is_busy || is_expected || (picked.is_err() && self.wake_patience(&request).is_some());
        match picked {
            Ok(pick) => answers.push((asker, Ok(pick))),
            Err(NoPick::NoneUp(reason) | NoPick::Away(reason)) if !may_wait => {
                answers.push((asker, Err(Refused::NoServer(reason))));
            }
            Err(NoPick::OwnerAway(reason)) if !may_wait => {
                answers.push((asker, Err(Refused::OwnerAway(reason))));
            }
            Err(_) => {
                let able = match able.is_empty() {
                    true => self.pool.able_ids(now, &request.tried, &request.wanted),
                    false => able,
                };
                let client = request.wanted.client;
                self.waiting.push(Waiting {
                    asker,
                    request,
                    since: now,
                    unready_since: None,
                    able,
                });
                if is_busy {
                    self.bound(client, answers);
                } else {
                    self.serve(now, answers);
                }
            }
        }
    }

    /// Refuses a request if too many wait: the one that has just come if its client has enough of
    /// them for the same servers, else the last one of the client that has most.
    fn bound(&mut self, client: Option<IpAddr>, answers: &mut Answers<A>) {
        let is_of = |it: &Waiting<A>, client| it.request.wanted.client == client;
        let has_enough = |waiting: &[Waiting<A>]| {
            let is_same = |it: &&Waiting<A>| {
                is_of(it, client) && waiting.last().is_some_and(|last| last.able == it.able)
            };
            waiting.iter().filter(is_same).count() > MAX_PER_CLIENT
        };
        if self.waiting.len() <= MAX_QUEUE && !has_enough(&self.waiting) {
            return;
        }
        self.waiting.retain(|waiting| waiting.asker.is_present());
        let client = match (has_enough(&self.waiting), self.waiting.len() > MAX_QUEUE) {
            (true, _) => client,
            (false, true) => self.greediest(),
            (false, false) => return,
        };
        if let Some(at) = self.waiting.iter().rposition(|it| is_of(it, client)) {
            answers.push((self.waiting.remove(at).asker, Err(Refused::QueueFull)));
        }
    }

    /// The client that has most requests waiting; of several, the one that came last.
    fn greediest(&self) -> Option<IpAddr> {
        let mut counts: HashMap<Option<IpAddr>, (usize, usize)> = HashMap::new();
        for (at, waiting) in self.waiting.iter().enumerate() {
            let count = counts.entry(waiting.request.wanted.client).or_default();
            *count = (count.0 + 1, at);
        }
        counts.into_iter().max_by_key(|(_, count)| *count).and_then(|(client, _)| client)
    }

    /// Serves the requests that wait, in the order of their clients' last turns.
    fn serve(&mut self, now: Instant, answers: &mut Answers<A>) {
        self.waiting.retain(|waiting| waiting.asker.is_present());
        if self.waiting.is_empty() {
            self.turns.clear();
            return;
        }
        let mut order: Vec<usize> = (0..self.waiting.len()).collect();
        order.sort_by_key(|at| {
            let client = self.waiting[*at].request.wanted.client;
            (self.turns.get(&client).copied().unwrap_or(0), *at)
        });
        // Sets of servers that are all busy: who waits for one of them needs no other look.
        let mut busy: Vec<Vec<BackendId>> = Vec::new();
        let answered = |at| Some((at, self.try_serve(now, at, &mut busy)?));
        let mut served: Vec<_> = order.into_iter().filter_map(answered).collect();
        served.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, answer) in served {
            let waiting = self.waiting.remove(at);
            self.waits.push(now.saturating_duration_since(waiting.since));
            answers.push((waiting.asker, answer));
        }
    }

    fn try_serve(
        &mut self,
        now: Instant,
        at: usize,
        busy: &mut Vec<Vec<BackendId>>,
    ) -> Option<Result<Pick, Refused>> {
        let Waiting { request, since, unready_since, able, .. } = &mut self.waiting[at];
        let ago = |at| now.saturating_duration_since(at);
        let waited = ago(*since);
        *able = self.pool.able_ids(now, &request.tried, &request.wanted);
        let picked = match busy.contains(able) {
            true => Err(NoPick::Busy),
            false => self.pool.pick(now, &request.tried, &request.wanted),
        };
        let mut reason = match picked {
            Ok(pick) => {
                if self.turns.len() >= MAX_TURNS {
                    self.turns.clear();
                }
                self.turn += 1;
                self.turns.insert(request.wanted.client, self.turn);
                return Some(Ok(pick));
            }
            Err(NoPick::Busy) => {
                *unready_since = None;
                if !busy.contains(able) {
                    busy.push(able.clone());
                }
                return (waited >= self.patience.busy).then_some(Err(Refused::QueueFull));
            }
            Err(NoPick::NoneUp(reason)) => {
                let Patience { expected, busy, .. } = self.patience;
                let is_patient = ago(*unready_since.get_or_insert(now)) < expected
                    && waited < busy.max(expected);
                if is_patient && self.pool.expects_backend(now) {
                    return None;
                }
                reason
            }
            Err(NoPick::Away(reason) | NoPick::OwnerAway(reason)) => reason,
        };
        let Waiting { request, since, .. } = &self.waiting[at];
        if let Some(patience) = self.wake_patience(request) {
            if waited < patience {
                if self.woken_at.is_none_or(|at| ago(at) >= WAKE_AGAIN) {
                    self.woken_at = Some(now);
                    self.is_wake_due = true;
                }
                return None;
            }
            // One that was sent a moment before it came was meant for it too.
            if self.sent_at.is_some_and(|at| at + WAKE_AGAIN >= *since) {
                reason.push_str("; a Wake-on-LAN packet didn't help");
            }
        }
        Some(Err(Refused::NoServer(reason)))
    }
}
