//! How other threads reach the Manager, and what they get from it.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{
    Receiver, RecvTimeoutError, SendError, Sender, TrySendError, bounded, select_biased,
};

use super::fast_path::FastPath;
use super::pool::{
    AwayNow, BackendId, Forgot, History, Input, Outcome, Pick, Report, ServerNow, Sleeps,
    Transition, Wanted,
};
use super::presence::Presence;
use super::queue::{Asker, Refused, Request};
use crate::ollama::aliases::Alias;
use crate::ollama::inventory::Inventory;
use crate::ollama::version::OllamaVersion;

/// Events that may wait, and announcements. Full of events, the mailbox makes workers wait a moment;
/// full of announcements, it drops them. A place costs at most 200 bytes.
const EVENTS: usize = 512;
const ANNOUNCEMENTS: usize = 256;
/// Of so many turns while events keep coming one is an announcement's, so that a busy Manager hears
/// of servers too.
const TURNS: u32 = 16;
/// How long somebody who looks at the state waits for the Manager.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);
/// How often a waiting request's client is looked at.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) enum Event {
    Pool(Input),
    Lease(Caller, Request),
    Inventories(Sender<Inventories>),
    OthersUp(Sender<Vec<(String, SocketAddr)>>),
    Snapshot(Sender<Snapshot>),
    Forget(String, Sender<Forgot>),
    Stop,
}

/// What the servers have that get work.
#[derive(Debug, Default)]
pub struct Inventories {
    /// Servers, whether their models are known or not.
    pub(crate) backends: usize,
    /// Servers that are away but can be woken.
    pub(crate) sleeping: usize,
    /// Names and models of those that are known, and of those that can be woken.
    pub(crate) known: Vec<(String, Arc<Inventory>)>,
    pub(crate) version: OllamaVersion,
}

/// The state of the servers and of the queue at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// In the order in which they came.
    pub(crate) servers: Vec<ServerNow>,
    /// Servers that were well before, and can't be used now.
    pub(crate) away: Vec<AwayNow>,
    pub(crate) waiting: usize,
    /// Time that the first of them has waited.
    pub(crate) longest_wait: Option<Duration>,
    /// Time that the last queued request waited.
    pub(crate) last_wait: Option<Duration>,
    /// How long ago each of the last changes was, the newest first.
    pub(crate) transitions: Vec<(Duration, Transition)>,
    pub(crate) history: History,
    pub(crate) sleeps: Sleeps,
    /// What each alias stands for now; `None` if no server that is up has any of its models.
    pub(crate) aliases: Vec<(Alias, Option<String>)>,
    /// What people should know of rules and machines, in sentences.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Caller {
    reply: Sender<Result<PickInTransit, Refused>>,
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
    pub(super) fn answer(self, answer: Result<Pick, Refused>) -> Option<Pick> {
        let answer = answer.map(|pick| PickInTransit { pick: Some(pick), mailbox: self.mailbox });
        match self.reply.send(answer) {
            Err(SendError(Ok(mut unclaimed))) => unclaimed.pick.take(),
            _ => None,
        }
    }
}

/// A pick in transit; dropping it unclaimed returns the server.
#[derive(Debug)]
struct PickInTransit {
    pick: Option<Pick>,
    mailbox: Mailbox,
}

impl Drop for PickInTransit {
    fn drop(&mut self) {
        if let Some(pick) = self.pick.take() {
            self.mailbox.send(Input::Finished(pick.id, pick.report(Outcome::Void)));
        }
    }
}

/// Where events for the Manager go. Announcements, of which anyone on the LAN can make many, have a
/// channel of their own, behind everything else.
#[derive(Clone, Debug)]
pub struct Mailbox {
    pub(super) events: Sender<Event>,
    announcements: Sender<Input>,
    pub(crate) presence: Arc<Presence>,
}

/// The Manager's end of its mailbox.
pub(super) struct Inbox {
    events: Receiver<Event>,
    announcements: Receiver<Input>,
    turn: u32,
}

impl Inbox {
    /// What to handle next; `None` when nobody can send any more.
    pub(super) fn next(&mut self) -> Option<Event> {
        let Inbox { events, announcements, turn } = self;
        *turn = turn.wrapping_add(1);
        if turn.is_multiple_of(TURNS)
            && let Ok(input) = announcements.try_recv()
        {
            return Some(Event::Pool(input));
        }
        select_biased! {
            recv(events) -> event => event.ok(),
            recv(announcements) -> input => input.ok().map(Event::Pool),
        }
    }
}

impl Mailbox {
    pub(super) fn open(presence: Arc<Presence>) -> (Mailbox, Inbox) {
        let (events, received) = bounded(EVENTS);
        let (announcements, heard) = bounded(ANNOUNCEMENTS);
        let inbox = Inbox { events: received, announcements: heard, turn: 0 };
        (Mailbox { events, announcements, presence }, inbox)
    }

    /// Reports what a packet said. It will be said again: dropped when too much of it waits.
    pub(crate) fn announce(&self, input: Input) {
        if let Err(TrySendError::Full(_)) = self.announcements.try_send(input) {
            log::debug!("mailbox full, announcement dropped");
        }
    }

    /// Reports something that must not get lost; waits while the mailbox is full.
    pub fn send(&self, input: Input) {
        // A closed mailbox means that we are stopping.
        let _ = self.events.send(Event::Pool(input));
    }

    /// Reports that time has passed, which is said again; dropped when the mailbox is full.
    pub(crate) fn try_send(&self, input: Input) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(Event::Pool(input)) {
            log::debug!("mailbox full, event dropped");
        }
    }

    /// Asks for a server, passing over the `tried` ones. While it waits, `is_wanted` is asked
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
        // The fast path is there while there is no choice, so the model doesn't matter.
        if tried.is_empty()
            && wanted.server.is_none()
            && let Some(path) = self.presence.slot(wanted.local_only).enter(wanted.is_exempt)
        {
            let pick = Pick { is_exempt: wanted.is_exempt, ..path.pick.clone() };
            return Ok(Lease::new(pick, self.clone(), Some(path)));
        }
        let (reply, answer) = bounded(1);
        let present = Arc::new(());
        let caller = Caller { reply, waits: Arc::downgrade(&present), mailbox: self.clone() };
        let request = Request { tried: tried.to_vec(), wanted: wanted.clone() };
        let stopping = || Refused::NoServer("ollana is stopping".to_owned());
        self.events.send(Event::Lease(caller, request)).map_err(|_| stopping())?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => {
                    let pick = answer?.pick.take().ok_or_else(stopping)?;
                    return Ok(Lease::new(pick, self.clone(), None));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(stopping()),
                Err(RecvTimeoutError::Timeout) if is_wanted() => {}
                // What is handed over in this moment is dropped with the channel, and returned.
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Refused::NoServer("no longer wanted".to_owned()));
                }
            }
        }
    }

    /// The Manager's reply; `None` when we are stopping, or busy beyond measure.
    fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Event) -> Option<T> {
        let (reply, answer) = bounded(1);
        self.events.send_timeout(question(reply), SNAPSHOT_PATIENCE).ok()?;
        answer.recv_timeout(SNAPSHOT_PATIENCE).ok()
    }

    /// The state as it is now. `None` when we are stopping, or busy beyond measure.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.ask(Event::Snapshot)
    }

    /// Name and address of each server that is up, this machine's Ollama left out.
    pub(crate) fn others_up(&self) -> Vec<(String, SocketAddr)> {
        self.ask(Event::OthersUp).unwrap_or_default()
    }

    /// Forgets what is known of a server by this name that isn't up. `None` when we are stopping, or
    /// busy beyond measure.
    pub(crate) fn forget(&self, name: &str) -> Option<Forgot> {
        self.ask(|reply| Event::Forget(name.to_owned(), reply))
    }

    /// What the servers have that get work.
    pub fn inventories(&self) -> Inventories {
        let (reply, answer) = bounded(1);
        let _ = self.events.send(Event::Inventories(reply));
        answer.recv().unwrap_or_default()
    }
}

/// A server for one request. Dropping it reports the outcome.
#[derive(Debug)]
pub struct Lease {
    /// Which server, and where.
    pub pick: Pick,
    /// How the request ended; [`Outcome::Void`] until said otherwise.
    pub report: Report,
    mailbox: Mailbox,
    fast_path: Option<Arc<FastPath>>,
    is_released: bool,
}

impl Lease {
    fn new(pick: Pick, mailbox: Mailbox, fast_path: Option<Arc<FastPath>>) -> Self {
        let report = pick.report(Outcome::Void);
        Lease { pick, report, mailbox, fast_path, is_released: false }
    }

    /// Tells that the server has other models now, before the request has ended.
    pub(crate) fn tell_of_change(&self) {
        let report = Report { changed_models: true, ..Outcome::Void.into() };
        self.mailbox.send(Input::Noted(self.pick.id, report));
    }

    /// Reports the outcome, so that others may have the server. What the report says later comes
    /// too late.
    pub(crate) fn release(&mut self) {
        if std::mem::replace(&mut self.is_released, true) {
            return;
        }
        let report = std::mem::replace(&mut self.report, Outcome::Void.into());
        self.pick.tally.requests.add(1);
        if report.is_trouble() {
            self.pick.tally.failures.add(1);
        }
        let is_counted =
            self.fast_path.as_ref().is_none_or(|path| !path.leave(self.pick.is_exempt));
        if is_counted {
            self.mailbox.send(Input::Finished(self.pick.id, report));
        } else if report.is_news() {
            self.mailbox.send(Input::Noted(self.pick.id, report));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_before_announcements_which_come_nevertheless() {
        let (mailbox, mut inbox) = Mailbox::open(Arc::default());
        let ip = [10, 0, 0, 1].into();
        for _ in 0..2 * ANNOUNCEMENTS {
            mailbox.announce(Input::LegacySighted(ip));
        }
        for _ in 0..EVENTS {
            mailbox.send(Input::Watched);
        }
        let is_event = |event| matches!(event, Some(Event::Pool(Input::Watched)));
        let order: Vec<bool> =
            (0..EVENTS + ANNOUNCEMENTS).map(|_| is_event(inbox.next())).collect();
        let late = order.iter().rposition(|is_event| *is_event).expect("events");
        let between = order[..late].iter().filter(|is_event| !**is_event).count();
        assert_eq!(between, (late + 1) / TURNS as usize, "one in {TURNS}");
        drop(mailbox);
        assert!(inbox.next().is_none());
    }
}
