//! The states of a server: one list for the choice, the log, JSON, metrics, the page and the tools.

/// What a server is to a request at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No check has shown yet whether it is well.
    New,
    Ready,
    /// It said that it is busy, or could not be reached just now: for a moment it gets work only
    /// where no other server can do it.
    CoolingDown,
    /// Its requests failed in a row: the same for longer, then one request at a time until one
    /// succeeds.
    OutlierEjected,
    /// Well, but another server that is well has more right to its name, address or identity.
    Quarantined,
    Down,
}

impl State {
    /// Whether requests go there.
    pub(crate) fn gets_work(self) -> bool {
        matches!(self, State::Ready | State::CoolingDown | State::OutlierEjected)
    }

    /// Whether the last checks found it well, quarantined or not.
    pub(crate) fn is_up(self) -> bool {
        !matches!(self, State::New | State::Down)
    }

    /// In tables and on the page; what the last checks found (`health` in JSON, `state` in
    /// metrics); why it is passed over while others can do (`rest` in JSON).
    fn words(self) -> (&'static str, &'static str, Option<&'static str>) {
        match self {
            State::New => ("new", "new", None),
            State::Ready => ("ready", "ready", None),
            State::CoolingDown => ("busy", "ready", Some(COOLING_DOWN)),
            State::OutlierEjected => ("rests", "ready", Some("ejected")),
            State::Quarantined => ("held", "ready", None),
            State::Down => ("down", "down", None),
        }
    }

    pub(crate) fn label(self) -> &'static str {
        self.words().0
    }

    pub(crate) fn health(self) -> &'static str {
        self.words().1
    }

    pub(crate) fn rest(self) -> Option<&'static str> {
        self.words().2
    }

    /// The state that JSON's members tell; any unknown `health` counts as new.
    pub(crate) fn parse(health: &str, trust: &str, rest: &str) -> State {
        match (health, trust, rest) {
            ("down", ..) => State::Down,
            ("ready", QUARANTINED, _) => State::Quarantined,
            ("ready", _, "") => State::Ready,
            ("ready", _, COOLING_DOWN) => State::CoolingDown,
            ("ready", ..) => State::OutlierEjected,
            _ => State::New,
        }
    }
}

/// `trust` in JSON of a server that is quarantined.
pub(crate) const QUARANTINED: &str = "held_back";
const COOLING_DOWN: &str = "busy";
