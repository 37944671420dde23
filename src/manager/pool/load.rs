//! What a server has to do, how much it can take, and how its last requests ended.

use std::time::{Duration, Instant};

use super::events::Outcome;
use super::health::{doubled, smooth};
use super::state::State;

/// Requests that fail in a row before a server is ejected.
pub(super) const STRIKES: u32 = 3;
/// First ejection; doubled each time, up to [`LONGEST_EJECTION`].
pub(super) const FIRST_EJECTION: Duration = Duration::from_secs(1);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// How long a server that is overloaded is passed over while other servers can do.
pub(super) const COOL_DOWN: Duration = Duration::from_secs(1);
/// A learned limit of concurrent requests is raised by one, or lifted where it isn't reached, after
/// this long without a busy answer: those who wait must not all find out at once that it still holds.
const LIMIT_AGE: Duration = Duration::from_secs(60);
/// How long a server whose account didn't do is passed over for the cloud's models.
const UNAUTHORIZED: Duration = Duration::from_secs(60);
/// How long a server that failed is passed over while others can do.
const RECENT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) in_flight: u32,
    /// Those of them that no limit holds for.
    pub(super) exempt: u32,
    /// From a request's head to the first byte of its answer, smoothed.
    pub(crate) first_byte: Option<Duration>,
    /// How many requests it takes, as a busy answer told, and when that was.
    pub(super) learned_limit: Option<(u32, Instant)>,
    cooling_until: Option<Instant>,
    strikes: u32,
    ejections: u32,
    /// Set until a request succeeds, even when the time is over.
    ejected_until: Option<Instant>,
    failed_at: Option<Instant>,
    unauthorized_at: Option<Instant>,
}

impl Load {
    /// A request ended. For how long the server is ejected, if that is the consequence.
    pub(super) fn finished(
        &mut self,
        now: Instant,
        outcome: Outcome,
        first_byte: Option<Duration>,
    ) -> Option<Duration> {
        self.first_byte = first_byte.map(|new| smooth(self.first_byte, new)).or(self.first_byte);
        if matches!(outcome, Outcome::Overloaded | Outcome::TurnedAway | Outcome::Unreachable) {
            self.cooling_until = Some(now + COOL_DOWN);
        }
        if outcome == Outcome::Unauthorized {
            self.unauthorized_at = Some(now);
        }
        match outcome {
            // An error may be about the model alone.
            Outcome::Void | Outcome::TurnedAway | Outcome::Erred => {}
            Outcome::Answered | Outcome::Declined | Outcome::Unauthorized => {
                self.strikes = 0;
                self.ejections = 0;
                self.ejected_until = None;
                self.failed_at = None;
            }
            // It took the others. If there are none, others than we keep it busy.
            Outcome::Overloaded if self.counted() > 0 => {
                self.learned_limit = Some((self.counted(), now));
            }
            Outcome::Overloaded => {}
            Outcome::Unreachable | Outcome::Failed => {
                self.failed_at = Some(now);
                // What fails during its pause was under way before: a server that dies while it has
                // many requests has failed once.
                if self.ejected_until.is_some_and(|until| now < until) {
                    return None;
                }
                self.strikes += 1;
                if self.strikes >= STRIKES {
                    let pause = doubled(FIRST_EJECTION, self.ejections, LONGEST_EJECTION);
                    self.strikes = 0;
                    self.ejections += 1;
                    self.ejected_until = Some(now + pause);
                    return Some(pause);
                }
            }
        }
        None
    }

    /// A check found the server well after it was down, which explains what failed before. If it was
    /// ejected, a request may try it at once, unless that has failed before: some requests bring a
    /// server down each time.
    pub(super) fn came_up(&mut self, now: Instant) {
        self.failed_at = None;
        if self.ejections < 2 {
            self.ejected_until = self.ejected_until.map(|until| until.min(now));
        }
    }

    pub(super) fn lift_old_limit(&mut self, now: Instant) {
        let is_old = |at| now.saturating_duration_since(at) > LIMIT_AGE;
        if let Some((limit, _)) = self.learned_limit.filter(|(_, at)| is_old(*at)) {
            self.learned_limit = (self.counted() >= limit).then_some((limit + 1, now));
        }
    }

    /// Requests that it takes at once, if that is known; `set` is the user's limit, or 0.
    pub(super) fn limit(&self, set: u32) -> Option<u32> {
        Some(set).filter(|set| *set > 0).or(self.learned_limit.map(|(limit, _)| limit))
    }

    pub(super) fn is_full(&self, set: u32) -> bool {
        self.limit(set).is_some_and(|limit| self.counted() >= limit)
    }

    /// Requests in flight that count towards the limit.
    fn counted(&self) -> u32 {
        self.in_flight.saturating_sub(self.exempt)
    }

    /// Whether it is passed over while others can do. After its pause, an ejected server gets one
    /// request at a time until one succeeds.
    pub(super) fn is_passed_over(&self, now: Instant) -> bool {
        let later = |until: Option<Instant>| until.is_some_and(|until| now < until);
        let is_on_trial = self.ejected_until.is_some() && self.in_flight > 0;
        later(self.cooling_until) || later(self.ejected_until) || is_on_trial
    }

    /// As which state, and for how long, it is passed over. An ejection may last zero seconds more.
    pub(super) fn pause(&self, now: Instant) -> Option<(State, Duration)> {
        let left = |until: Instant| until.saturating_duration_since(now);
        let ejected = self.ejected_until.map(|until| (State::OutlierEjected, left(until)));
        let cooling = self.cooling_until.filter(|until| now < *until);
        ejected.or(cooling.map(|until| (State::CoolingDown, left(until))))
    }

    /// Whether its account has just not done for a cloud's model.
    pub(super) fn is_unauthorized(&self, now: Instant) -> bool {
        self.unauthorized_at.is_some_and(|at| now.saturating_duration_since(at) < UNAUTHORIZED)
    }

    pub(super) fn failed_recently(&self, now: Instant) -> bool {
        self.failed_at.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }
}
