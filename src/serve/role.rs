//! When a daemon that chose its mode itself changes it: this machine's Ollama was stopped, or is
//! being started. Pure; the clock comes in with each call.
//!
//! ```text
//!  server ──Ollama unanswered for 5 s──► client
//!    ▲                                     │ Ollama's program is being started
//!    │ it answers                          ▼
//!    └──────────────────────────── leaves the port ──it doesn't come──► client
//! ```

use std::time::{Duration, Instant};

use super::mode::Mode;

/// An Ollama that is being restarted or upgraded comes back within this time.
const GRACE: Duration = Duration::from_secs(5);
/// Least time from one change to the next, so that a flapping Ollama doesn't make the role flap.
const MIN_STAY: Duration = Duration::from_secs(10);
/// How long the port is left free while nobody takes it.
const FREE_TIME: Duration = Duration::from_secs(5);
/// How long an Ollama that has the port may take to answer.
const START_TIME: Duration = Duration::from_secs(60);
/// From a change that failed to the next attempt.
const RETRY_TIME: Duration = Duration::from_secs(2);
/// How long starts are ignored after one that came to nothing; doubles from the first to the last.
const FIRST_IGNORED: Duration = Duration::from_secs(10);
const LAST_IGNORED: Duration = Duration::from_secs(300);

/// What Ollama's address on this machine shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalOllama {
    Answers,
    /// A program has the port, but doesn't answer as Ollama.
    Silent,
    /// No program has the port.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    Become(Mode),
    /// Leave Ollama's port, so that Ollama can bind it.
    FreePort,
}

#[derive(Debug)]
pub(super) struct Role {
    mode: Mode,
    changed_at: Option<Instant>,
    missing_since: Option<Instant>,
    port_free_since: Option<Instant>,
    /// Set while a failed change waits for its next attempt.
    retry_at: Option<Instant>,
    ignore_starts_until: Option<Instant>,
    /// For how long the next start that comes to nothing makes others be ignored.
    ignored: Duration,
}

impl Role {
    pub(super) fn new(mode: Mode) -> Self {
        Role {
            mode,
            changed_at: None,
            missing_since: None,
            port_free_since: None,
            retry_at: None,
            ignore_starts_until: None,
            ignored: FIRST_IGNORED,
        }
    }

    fn leaves_port_free(&self) -> bool {
        self.port_free_since.is_some()
    }

    pub(super) fn observe(&mut self, now: Instant, ollama: LocalOllama) -> Step {
        if self.retry_at.is_some_and(|until| now < until) {
            return Step::Stay;
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some(freed) = self.port_free_since {
            let most = match ollama {
                LocalOllama::Answers => {
                    self.ignored = FIRST_IGNORED;
                    return self.change_to(now, Mode::Server);
                }
                LocalOllama::Silent => START_TIME,
                LocalOllama::Absent => FREE_TIME,
            };
            if since(freed) < most {
                return Step::Stay;
            }
            self.ignore_starts_until = Some(now + self.ignored);
            self.ignored = (self.ignored * 2).min(LAST_IGNORED);
            return self.change_to(now, Mode::Client);
        }
        // A silent one is frozen, or another program: a client couldn't bind the port.
        let is_absent = ollama == LocalOllama::Absent;
        self.missing_since = is_absent.then(|| self.missing_since.unwrap_or(now));
        let is_gone = self.missing_since.is_some_and(|missing| since(missing) >= GRACE);
        let may_change = self.changed_at.is_none_or(|changed| since(changed) >= MIN_STAY);
        match (self.mode, ollama) {
            (Mode::Server, _) if may_change && is_gone => self.change_to(now, Mode::Client),
            (Mode::Client, LocalOllama::Answers) if may_change => self.change_to(now, Mode::Server),
            _ => Step::Stay,
        }
    }

    /// Ollama's program is being started while this daemon has its port.
    pub(super) fn ollama_starts(&mut self, now: Instant) -> Step {
        let is_ignored = self.ignore_starts_until.is_some_and(|until| now < until);
        if self.mode != Mode::Client || self.leaves_port_free() || is_ignored {
            return Step::Stay;
        }
        self.port_free_since = Some(now);
        Step::FreePort
    }

    /// The change couldn't be made: no daemon runs now.
    pub(super) fn failed(&mut self, now: Instant) {
        self.port_free_since = Some(now);
        self.retry_at = Some(now + RETRY_TIME);
    }

    fn change_to(&mut self, now: Instant, mode: Mode) -> Step {
        self.mode = mode;
        self.changed_at = Some(now);
        self.missing_since = None;
        self.port_free_since = None;
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
        for (at, ollama, want) in [
            (0, LocalOllama::Answers, Step::Stay),
            (1, LocalOllama::Absent, Step::Stay),
            (5, LocalOllama::Absent, Step::Stay),
            (6, LocalOllama::Answers, Step::Stay),
            (7, LocalOllama::Absent, Step::Stay),
            (8, LocalOllama::Silent, Step::Stay),
            (12, LocalOllama::Absent, Step::Stay),
            (16, LocalOllama::Absent, Step::Stay),
            (17, LocalOllama::Absent, Step::Become(Mode::Client)),
            (18, LocalOllama::Absent, Step::Stay),
        ] {
            assert_eq!(role.observe(t0 + secs(at), ollama), want, "at {at}");
        }
    }

    #[test]
    fn the_port_is_left_to_a_starting_ollama() {
        let t0 = Instant::now();
        let mut role = Role::new(Mode::Client);
        assert_eq!(role.observe(t0, LocalOllama::Absent), Step::Stay);
        assert_eq!(role.ollama_starts(t0), Step::FreePort);
        assert!(role.leaves_port_free());
        assert_eq!(role.ollama_starts(t0), Step::Stay, "once");
        assert_eq!(role.observe(t0 + secs(1), LocalOllama::Absent), Step::Stay);
        assert_eq!(role.observe(t0 + secs(20), LocalOllama::Silent), Step::Stay, "it has the port");
        assert_eq!(role.observe(t0 + secs(21), LocalOllama::Answers), Step::Become(Mode::Server));
        assert!(!role.leaves_port_free());
        assert_eq!(role.ollama_starts(t0 + secs(22)), Step::Stay, "a server has nothing to give");
    }

    #[test]
    fn starts_that_come_to_nothing_count_less_and_less() {
        let mut now = Instant::now();
        let mut role = Role::new(Mode::Client);
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(role.ollama_starts(now), Step::FreePort);
            assert_eq!(role.observe(now + secs(4), LocalOllama::Absent), Step::Stay);
            now += secs(5);
            assert_eq!(role.observe(now, LocalOllama::Absent), Step::Become(Mode::Client));
            assert_eq!(role.ollama_starts(now + secs(pause - 1)), Step::Stay, "pause {pause}");
            now += secs(pause);
        }
    }

    #[test]
    fn a_failed_change_is_tried_again_as_it_fits_then() {
        let t0 = Instant::now();
        let mut role = Role::new(Mode::Server);
        role.failed(t0);
        assert_eq!(role.observe(t0 + secs(1), LocalOllama::Answers), Step::Stay);
        assert_eq!(role.observe(t0 + secs(2), LocalOllama::Answers), Step::Become(Mode::Server));
        role.failed(t0 + secs(2));
        assert_eq!(role.observe(t0 + secs(4), LocalOllama::Absent), Step::Stay);
        assert_eq!(role.observe(t0 + secs(7), LocalOllama::Absent), Step::Become(Mode::Client));
    }

    /// Whatever is seen, two changes of role are at least ten seconds apart, and a port that was left
    /// free is taken or given up.
    #[test]
    fn no_flapping() {
        let mut random: u64 = 1;
        for _ in 0..200 {
            let mut now = Instant::now();
            let mut role = Role::new(Mode::Server);
            let (mut last, mut freed) = (None::<Instant>, None);
            for _ in 0..2000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                now += Duration::from_millis(random % 700);
                let ollama = [
                    LocalOllama::Answers,
                    LocalOllama::Silent,
                    LocalOllama::Absent,
                    LocalOllama::Absent,
                ][(random >> 20) as usize % 4];
                let before = role.mode;
                let step = if (random >> 30).is_multiple_of(50) {
                    role.ollama_starts(now)
                } else {
                    role.observe(now, ollama)
                };
                match step {
                    Step::FreePort => freed = Some(now),
                    Step::Become(mode) => {
                        if mode != before {
                            let pause = last.map(|last| now.duration_since(last));
                            let was_start = freed.is_some();
                            assert!(was_start || pause.is_none_or(|p| p >= MIN_STAY));
                            last = Some(now);
                        }
                        freed = None;
                    }
                    Step::Stay => {}
                }
                assert!(freed.is_none_or(|freed| now.duration_since(freed) < START_TIME + secs(1)));
                assert_eq!(freed.is_some(), role.leaves_port_free());
            }
        }
    }
}
