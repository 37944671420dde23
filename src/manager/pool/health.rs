//! Whether a server is well, as its checks found, and when the next check is due.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::events::CheckId;
use crate::ollama::version::OllamaVersion;

/// Pauses between checks of a server that is down: from, and up to. However long it was away, a
/// named server and this machine's Ollama are used within 3 s of being back.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_millis(1600);
/// A server whose checks take longer than this, smoothed, is slow.
const SLOW: Duration = Duration::from_millis(250);
/// A server that went down this recently may be back in a moment: requests wait for it.
const FRESHLY_DOWN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Never well, and not found down yet.
    New,
    Ready,
    /// With the reason of the last failed check.
    Down(String),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RunningCheck {
    pub(super) id: CheckId,
    pub(super) since: Instant,
    /// Bytes that the server had sent by then, to any request.
    pub(super) bytes: u64,
    /// It has answered a request since.
    pub(super) has_answered: bool,
    pub(super) of: Checked,
    pub(super) wants_inventory: bool,
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// The address that a name means now.
    Name,
    InUse(SocketAddr),
    /// A further address that was announced.
    Candidate,
}

#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(super) verdict: Verdict,
    /// Since when that is the verdict.
    pub(crate) since: Instant,
    /// Checks in a row that contradict the verdict.
    streak: u32,
    /// Failed checks in a row, for the backoff.
    pub(super) failures: u32,
    pub(super) next_check: Instant,
    /// The check that a packet asked for last.
    prompted_at: Option<Instant>,
    pub(super) running: Option<RunningCheck>,
    pub(super) checked_at: Option<Instant>,
    pub(super) passed_at: Option<Instant>,
    /// Smoothed; `None` if it never passed a check.
    pub(crate) round_trip: Option<Duration>,
    /// The same with the checks that it didn't answer before: what it costs to learn that it is well.
    effort: Duration,
    /// That part of it so far.
    unanswered: Duration,
    /// The time that the last check took that didn't pass.
    wasted: Duration,
    pub(crate) version: String,
    /// The same, read once: it is looked at after every event.
    pub(super) version_number: OllamaVersion,
    /// Bytes of models that its machine did not have to download, as it says.
    pub(crate) saved: u64,
    /// Nothing has told that it can't: its last check could not connect, or got no answer.
    pub(super) is_unanswered: bool,
    /// A request couldn't connect; the check that follows tells more.
    pub(super) is_unreached: bool,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Health {
            verdict: Verdict::New,
            since: now,
            streak: 0,
            failures: 0,
            next_check: now,
            prompted_at: None,
            running: None,
            checked_at: None,
            passed_at: None,
            round_trip: None,
            effort: Duration::ZERO,
            unanswered: Duration::ZERO,
            wasted: Duration::ZERO,
            version: String::new(),
            version_number: OllamaVersion::default(),
            saved: 0,
            is_unanswered: false,
            is_unreached: false,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.verdict == Verdict::Ready
    }

    pub(crate) fn down_reason(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Down(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether its last check failed, and the next one decides.
    pub(super) fn is_doubtful(&self) -> bool {
        self.is_ready() && self.streak > 0
    }

    /// Whether its checks take long although they pass.
    pub(super) fn is_slow(&self) -> bool {
        self.effort > SLOW
    }

    /// A check that took so long didn't pass.
    pub(super) fn cost(&mut self, time: Duration) {
        self.unanswered += time;
        self.wasted = time;
    }

    /// Whether the last check that didn't pass took long.
    pub(super) fn was_long(&self) -> bool {
        self.wasted > SLOW
    }

    fn settle(&mut self, round_trip: Duration) {
        let effort = std::mem::take(&mut self.unanswered) + round_trip;
        self.effort = smooth(self.round_trip.map(|_| self.effort), effort);
    }

    /// It has not answered a check, but others meanwhile. True if it was down until now.
    pub(super) fn proved_alive(&mut self, now: Instant, again: Instant) -> bool {
        self.settle(Duration::ZERO);
        (self.streak, self.failures, self.next_check) = (0, 0, again);
        if self.is_ready() {
            return false;
        }
        (self.verdict, self.since) = (Verdict::Ready, now);
        true
    }

    /// Whether it may be well in a moment: it wasn't asked yet, or was well until a moment ago, as
    /// while an Ollama restarts.
    pub(super) fn may_recover(&self, now: Instant) -> bool {
        match self.verdict {
            Verdict::New => self.failures == 0,
            Verdict::Ready => false,
            Verdict::Down(_) => {
                now.saturating_duration_since(self.since) < FRESHLY_DOWN
                    && self.round_trip.is_some()
            }
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.next_check <= now
    }

    pub(super) fn check_by(&mut self, at: Instant) {
        self.next_check = self.next_check.min(at);
    }

    /// A packet, which anyone can send, gives reason for a check: at once, but one of them in
    /// [`FIRST_RETRY`].
    pub(super) fn prompt(&mut self, now: Instant) {
        let at = self.prompted_at.map_or(now, |last| now.max(last + FIRST_RETRY));
        if at < self.next_check {
            (self.next_check, self.prompted_at) = (at, Some(at));
        }
    }

    /// A check passed. True if the server is ready from now on and wasn't before.
    pub(super) fn passed(&mut self, now: Instant, round_trip: Duration, rise: u32) -> bool {
        self.failures = 0;
        self.passed_at = Some(now);
        self.is_unreached = false;
        self.settle(round_trip);
        self.round_trip = Some(smooth(self.round_trip, round_trip));
        if self.is_ready() {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        if self.streak < rise {
            return false;
        }
        (self.verdict, self.since, self.streak) = (Verdict::Ready, now, 0);
        true
    }

    /// A check failed; the next one follows after a pause.
    pub(super) fn back_off(&mut self, now: Instant, jitter: u32) {
        self.failures += 1;
        let pause = doubled(FIRST_RETRY, self.failures.saturating_sub(1), LONGEST_RETRY);
        self.next_check = now + spread(pause, jitter);
    }

    /// All addresses failed their checks: a refusal decides at once, silence after `fall` times.
    /// True if the server is down from now on and wasn't before.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        reason: &str,
        is_refusal: bool,
        fall: u32,
    ) -> bool {
        let was_down = self.down_reason().is_some();
        if !was_down && !is_refusal && self.streak + 1 < fall {
            self.streak += 1;
            if self.is_ready() {
                self.next_check = now;
            }
            return false;
        }
        self.verdict = Verdict::Down(reason.to_owned());
        (self.streak, self.unanswered) = (0, Duration::ZERO);
        self.since = if was_down { self.since } else { now };
        !was_down
    }
}

/// The old value counts three times, the new one once.
pub(super) fn smooth(old: Option<Duration>, new: Duration) -> Duration {
    old.map_or(new, |old| (old * 3 + new) / 4)
}

/// `first`, doubled so many times, up to `longest`.
pub(super) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(8)).min(longest)
}

/// `pause` ± 20 %; `jitter` is 0 to 400.
pub(super) fn spread(pause: Duration, jitter: u32) -> Duration {
    pause * (800 + jitter) / 1000
}
