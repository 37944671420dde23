//! The daemon under test: everything that decides, put together as the threads do it, without
//! threads. What the real ones do besides is carrying messages.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ollana::discovery::matching::Expected;
use ollana::discovery::schedule::Schedule;
use ollana::manager::pool::{Action, CheckId, Input, Outcome, Pick, Pool, Report, Transition};
use ollana::manager::queue::{Answers, Asker, Patience, Queue, Refused, Request};
use ollana::pairing::identity::Identity;
use ollana::upstream::{CheckResult, CheckTime, Target};

/// Jobs that may wait for a checker.
const JOBS: usize = 128;

/// A worker that waits for a lease.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) request: usize,
    pub(crate) is_present: Rc<Cell<bool>>,
}

impl Asker for Token {
    fn is_present(&self) -> bool {
        self.is_present.get()
    }
}

/// What comes by the Manager's mailbox.
#[derive(Debug)]
pub(crate) enum Mail {
    Input(Input),
    /// With the address that was checked.
    Checked(Input, SocketAddr),
    Ask(Token, Request),
}

/// A health check to run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: CheckId,
    pub(crate) address: SocketAddr,
    pub(crate) wants_inventory: bool,
    /// How long it may take; the simulation of faults has one time for all.
    #[allow(dead_code, reason = "the story of days uses it")]
    pub(crate) time: CheckTime,
}

/// A lease, and which published pick it was taken from without asking.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) pick: Pick,
    fast_path: Option<u64>,
}

#[derive(Debug)]
struct FastPath {
    number: u64,
    pick: Pick,
    taken: u32,
    /// Those that no limit holds for.
    exempt: u32,
}

/// The client daemon.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) queue: Queue<Token>,
    pub(crate) schedule: Schedule,
    pub(crate) expected: Expected,
    pub(crate) jobs: VecDeque<Job>,
    fast_path: Option<FastPath>,
    published: u64,
    /// What it logged.
    pub(crate) reports: Vec<Transition>,
    /// It wants to write down what is known.
    pub(crate) remembers: bool,
    actions: Vec<Action>,
    answers: Answers<Token>,
    /// Whether the queue of jobs is full, whoever filled it.
    pub(crate) loses_jobs: bool,
}

/// Who we are.
pub(crate) const OWN: Identity = Identity([0xEE; 16]);

impl Client {
    pub(crate) fn new(now: Instant, pool: Pool) -> Client {
        let patience = Patience {
            expected: Duration::from_millis(1500),
            busy: Duration::from_secs(60),
            wake: None,
        };
        Client {
            queue: Queue::new(pool, patience),
            schedule: Schedule::new(now, Duration::from_secs(5)),
            expected: Expected::new(OWN),
            jobs: VecDeque::new(),
            fast_path: None,
            published: 0,
            reports: Vec::new(),
            remembers: false,
            actions: Vec::new(),
            answers: Vec::new(),
            loses_jobs: false,
        }
    }

    /// One turn of the Manager's loop; what its askers get to hear.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        mail: Mail,
    ) -> Vec<(usize, Result<Lease, Refused>)> {
        let mut heard = Vec::new();
        match mail {
            Mail::Ask(token, request) => {
                self.queue.ask(now, token, request, &mut self.answers);
                self.carry_out(now, &mut heard);
            }
            Mail::Input(input) | Mail::Checked(input, _) => {
                if matches!(&input, Input::Noted(_, report) if report.is_trouble()) {
                    self.retract();
                }
                self.queue.handle(now, input, &mut self.actions, &mut self.answers);
                self.carry_out(now, &mut heard);
                let sole = self.queue.sole(now, false);
                if self.fast_path.as_ref().map(|fast_path| &fast_path.pick) != sole.as_ref() {
                    self.retract();
                    self.published += 1;
                    let number = self.published;
                    self.fast_path =
                        sole.map(|pick| FastPath { number, pick, taken: 0, exempt: 0 });
                }
            }
        }
        heard
    }

    fn carry_out(&mut self, now: Instant, heard: &mut Vec<(usize, Result<Lease, Refused>)>) {
        while !self.answers.is_empty() || !self.actions.is_empty() {
            for (token, answer) in std::mem::take(&mut self.answers) {
                match answer {
                    Ok(pick) if !token.is_present() => {
                        self.queue.unclaimed(now, &pick, &mut self.actions, &mut self.answers);
                    }
                    Ok(pick) => heard.push((token.request, Ok(Lease { pick, fast_path: None }))),
                    Err(refused) => heard.push((token.request, Err(refused))),
                }
            }
            for action in std::mem::take(&mut self.actions) {
                self.act(now, action);
            }
        }
    }

    fn act(&mut self, now: Instant, action: Action) {
        let (id, target, wants_inventory, time) = match action {
            Action::Check(id, target, wants_inventory, time) => (id, target, wants_inventory, time),
            Action::Report(transition) => return self.reports.push(transition),
            Action::Remember => return self.remembers = true,
        };
        let address = match target {
            Target::Address(address) => address,
            Target::Name(name) => name.to_string().parse().expect("a name that is an address"),
        };
        if self.loses_jobs || self.jobs.len() >= JOBS {
            let void = Input::Checked(id, CheckResult::Void);
            self.queue.handle(now, void, &mut self.actions, &mut self.answers);
        } else {
            self.jobs.push_back(Job { id, address, wants_inventory, time });
        }
    }

    fn retract(&mut self) {
        if let Some(fast_path) = self.fast_path.take() {
            let FastPath { pick, taken, exempt, .. } = fast_path;
            self.queue.transfer(pick.id, taken, exempt);
        }
    }

    /// The published pick.
    pub(crate) fn enter_fast_path(&mut self, is_exempt: bool) -> Option<Lease> {
        let fast_path = self.fast_path.as_mut()?;
        fast_path.taken += 1;
        fast_path.exempt += u32::from(is_exempt);
        let mut pick = fast_path.pick.clone();
        pick.is_exempt = is_exempt;
        Some(Lease { pick, fast_path: Some(fast_path.number) })
    }

    /// What has to be told when a lease ends.
    pub(crate) fn release(&mut self, lease: &Lease, report: Report) -> Option<Input> {
        let report = Report { is_exempt: lease.pick.is_exempt, ..report };
        if let (Some(number), Some(fast_path)) = (lease.fast_path, &mut self.fast_path)
            && number == fast_path.number
        {
            fast_path.taken -= 1;
            fast_path.exempt -= u32::from(lease.pick.is_exempt);
            return report.is_news().then_some(Input::Noted(lease.pick.id, report));
        }
        Some(Input::Finished(lease.pick.id, report))
    }

    /// Leases that are out, as it knows.
    pub(crate) fn in_flight(&self) -> u32 {
        self.queue.pool().in_flight()
            + self.fast_path.as_ref().map_or(0, |fast_path| fast_path.taken)
    }
}

/// A lease that ends without more to tell.
pub(crate) fn plain(outcome: Outcome) -> Report {
    outcome.into()
}
