//! When a daemon that chose its mode itself changes it: Ollama of this machine was stopped, or is
//! being started. Pure; the clock comes in with each look.
//!
//! ```text
//!  server ──Ollama unanswered for 5 s──► client
//!    ▲                                     │ Ollama's program is being started
//!    │ it answers                          ▼
//!    └────────────────────────────── makes room ──it doesn't come──► client
//! ```

use std::time::{Duration, Instant};

use super::Mode;

/// An Ollama that is being restarted or upgraded comes back within this.
const GRACE: Duration = Duration::from_secs(5);
/// From one change to the next, so that a flapping Ollama doesn't make us flap.
const LEAST_STAY: Duration = Duration::from_secs(10);
/// Room is made for so long, as long as nobody takes it.
const ROOM: Duration = Duration::from_secs(5);
/// An Ollama that has the port may take this long to answer.
const START: Duration = Duration::from_secs(60);
/// From a change that failed to the next attempt.
const RETRY: Duration = Duration::from_secs(2);
/// Signs of an arrival are ignored after one that came to nothing: from, doubling, up to.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What the local Ollama's address shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Ollama answers.
    Answers,
    /// Somebody has the port, but doesn't answer as Ollama.
    Silent,
    /// Nobody is there.
    Nobody,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    Become(Mode),
    /// Leave Ollama's port so that it can have it.
    MakeRoom,
}

/// The present role and what led to it.
#[derive(Debug)]
pub(super) struct Role {
    mode: Mode,
    changed: Option<Instant>,
    missing_since: Option<Instant>,
    room_since: Option<Instant>,
    /// Nothing is done before.
    idle_until: Option<Instant>,
    /// Signs of an arrival count from then on.
    deaf_until: Option<Instant>,
    pause: Duration,
}

impl Role {
    pub(super) fn new(mode: Mode) -> Self {
        Role {
            mode,
            changed: None,
            missing_since: None,
            room_since: None,
            idle_until: None,
            deaf_until: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Whether the port is left free for Ollama.
    pub(super) fn makes_room(&self) -> bool {
        self.room_since.is_some()
    }

    /// Looks at Ollama's address.
    pub(super) fn look(&mut self, now: Instant, sight: Sight) -> Step {
        if self.idle_until.is_some_and(|until| now < until) {
            return Step::Stay;
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some(room) = self.room_since {
            let is_over = match sight {
                Sight::Answers => {
                    self.pause = FIRST_PAUSE;
                    return self.become_(now, Mode::Server);
                }
                Sight::Silent => since(room) >= START,
                Sight::Nobody => since(room) >= ROOM,
            };
            if !is_over {
                return Step::Stay;
            }
            self.deaf_until = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return self.become_(now, Mode::Client);
        }
        if sight == Sight::Answers {
            self.missing_since = None;
        }
        let may_change = self.changed.is_none_or(|changed| since(changed) >= LEAST_STAY);
        match (self.mode, sight) {
            (Mode::Server, Sight::Nobody) => {
                let missing = *self.missing_since.get_or_insert(now);
                if may_change && since(missing) >= GRACE {
                    return self.become_(now, Mode::Client);
                }
            }
            // Frozen, or another program: the port isn't to be had.
            (Mode::Server, Sight::Silent) => self.missing_since = None,
            (Mode::Client, Sight::Answers) if may_change => {
                return self.become_(now, Mode::Server);
            }
            _ => {}
        }
        Step::Stay
    }

    /// Ollama's program is being started, and we have its port.
    pub(super) fn arrival(&mut self, now: Instant) -> Step {
        let is_deaf = self.deaf_until.is_some_and(|until| now < until);
        if self.mode != Mode::Client || self.makes_room() || is_deaf {
            return Step::Stay;
        }
        self.room_since = Some(now);
        Step::MakeRoom
    }

    /// The change couldn't be made, so that there is no role now.
    pub(super) fn failed(&mut self, now: Instant) {
        self.room_since = Some(now);
        self.idle_until = Some(now + RETRY);
    }

    fn become_(&mut self, now: Instant, mode: Mode) -> Step {
        self.mode = mode;
        self.changed = Some(now);
        self.missing_since = None;
        self.room_since = None;
        Step::Become(mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_restart_changes_nothing_and_an_end_does() {
        let t0 = Instant::now();
        let mut role = Role::new(Mode::Server);
        for (at, sight, want) in [
            (0, Sight::Answers, Step::Stay),
            (1, Sight::Nobody, Step::Stay),
            (5, Sight::Nobody, Step::Stay),
            (6, Sight::Answers, Step::Stay),
            (7, Sight::Nobody, Step::Stay),
            (8, Sight::Silent, Step::Stay),
            (12, Sight::Nobody, Step::Stay),
            (16, Sight::Nobody, Step::Stay),
            (17, Sight::Nobody, Step::Become(Mode::Client)),
            (18, Sight::Nobody, Step::Stay),
        ] {
            assert_eq!(role.look(t0 + secs(at), sight), want, "at {at}");
        }
    }

    #[test]
    fn room_is_made_for_an_arrival() {
        let t0 = Instant::now();
        let mut role = Role::new(Mode::Client);
        assert_eq!(role.look(t0, Sight::Nobody), Step::Stay);
        assert_eq!(role.arrival(t0), Step::MakeRoom);
        assert!(role.makes_room());
        assert_eq!(role.arrival(t0), Step::Stay, "once");
        assert_eq!(role.look(t0 + secs(1), Sight::Nobody), Step::Stay);
        assert_eq!(role.look(t0 + secs(20), Sight::Silent), Step::Stay, "it has the port");
        assert_eq!(role.look(t0 + secs(21), Sight::Answers), Step::Become(Mode::Server));
        assert!(!role.makes_room());
        assert_eq!(role.arrival(t0 + secs(22)), Step::Stay, "a server has nothing to give");
    }

    #[test]
    fn arrivals_that_come_to_nothing_count_less_and_less() {
        let mut now = Instant::now();
        let mut role = Role::new(Mode::Client);
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(role.arrival(now), Step::MakeRoom);
            assert_eq!(role.look(now + secs(4), Sight::Nobody), Step::Stay);
            now += secs(5);
            assert_eq!(role.look(now, Sight::Nobody), Step::Become(Mode::Client));
            assert_eq!(role.arrival(now + secs(pause - 1)), Step::Stay, "pause {pause}");
            now += secs(pause);
        }
    }

    #[test]
    fn a_failed_change_is_tried_again_as_it_fits_then() {
        let t0 = Instant::now();
        let mut role = Role::new(Mode::Server);
        role.failed(t0);
        assert_eq!(role.look(t0 + secs(1), Sight::Answers), Step::Stay);
        assert_eq!(role.look(t0 + secs(2), Sight::Answers), Step::Become(Mode::Server));
        role.failed(t0 + secs(2));
        assert_eq!(role.look(t0 + secs(4), Sight::Nobody), Step::Stay);
        assert_eq!(role.look(t0 + secs(7), Sight::Nobody), Step::Become(Mode::Client));
    }

    /// Whatever is seen, two changes of role are at least ten seconds apart, and room that was made
    /// is taken or given up.
    #[test]
    fn no_flapping() {
        let mut random: u64 = 1;
        for _ in 0..200 {
            let mut now = Instant::now();
            let mut role = Role::new(Mode::Server);
            let (mut last, mut room) = (None::<Instant>, None);
            for _ in 0..2000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                now += Duration::from_millis(random % 700);
                let sight = [Sight::Answers, Sight::Silent, Sight::Nobody, Sight::Nobody]
                    [(random >> 20) as usize % 4];
                let before = role.mode;
                let step = if (random >> 30).is_multiple_of(50) {
                    role.arrival(now)
                } else {
                    role.look(now, sight)
                };
                match step {
                    Step::MakeRoom => room = Some(now),
                    Step::Become(mode) => {
                        if mode != before {
                            let pause = last.map(|last| now.duration_since(last));
                            let was_arrival = room.is_some();
                            assert!(was_arrival || pause.is_none_or(|p| p >= LEAST_STAY));
                            last = Some(now);
                        }
                        room = None;
                    }
                    Step::Stay => {}
                }
                assert!(room.is_none_or(|room| now.duration_since(room) < START + secs(1)));
                assert_eq!(room.is_some(), role.makes_room());
            }
        }
    }
}
