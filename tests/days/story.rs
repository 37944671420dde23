//! The story of a week.

use std::time::Duration;

use super::world::{Kind, World};

/// What happens in the house.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// People come or go: programs ask this often.
    Session(bool, Asking),
    /// Somebody asks for something.
    Arrival,
    /// A server sleeps, or wakes.
    Sleeps(usize),
    Wakes(usize),
    /// A laptop is closed, or opened.
    Closes(usize),
    Opens(usize),
    /// A laptop's daemon is started anew.
    Restarts(usize),
    /// The router is gone, and back with other addresses.
    RouterGoes,
    RouterComes,
    /// Its packets get lost.
    BadWifi(usize, usize),
    Pulls(usize, &'static str),
    Removes(usize, &'static str),
    Renamed(usize, &'static str),
    /// Its Ollama answers late while it works.
    Slow(usize, u64),
    /// Its account's quota is used up, or there again.
    Quota(usize, bool),
    /// A second desktop comes into the house.
    Joins,
}

impl Act {
    /// For the report.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Act::Session(..) | Act::Arrival => "sessions",
            Act::Sleeps(_) => "a server sleeps",
            Act::Wakes(_) => "a server wakes",
            Act::Closes(_) => "a laptop is closed",
            Act::Opens(_) => "a laptop is opened",
            Act::Restarts(_) => "a laptop's daemon is started anew",
            Act::RouterGoes => "the router goes",
            Act::RouterComes => "the router comes back, with new addresses",
            Act::BadWifi(..) => "a laptop's Wi-Fi gets bad, or better",
            Act::Pulls(..) => "a server gets a model",
            Act::Removes(..) => "a server loses a model",
            Act::Renamed(..) => "a server is renamed",
            Act::Slow(..) => "an Ollama gets slow, or fast again",
            Act::Quota(..) => "an account's quota is used up, or there again",
            Act::Joins => "a second desktop joins",
        }
    }
}

/// How busy an evening is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    Seldom,
    Often,
    Nobody,
}

/// After the last requests, until all is quiet: in seconds.
const QUIET: u64 = 400;

/// Servers, in the order in which they are there.
const BOX: usize = 0;
const DESK: usize = 1;
const STUDIO: usize = 2;
const MODELS: [&str; 6] = ["llama", "small", "big", "coder", "vision", "nobody-has-it"];
const CLOUD: &str = "gpt-oss:120b-cloud";

const fn hours(hours: u64) -> u64 {
    hours * 3600
}

impl World {
    /// Writes the week down.
    pub(crate) fn plan(&mut self) {
        self.add_server("box", &["llama", "small"]);
        self.add_server("desk", &["llama", "big", "coder"]);
        self.servers[BOX].queue = self.random.below(3);
        self.servers[DESK].parallel = 1 + self.random.below(3);
        for _ in 0..3 {
            self.add_laptop();
        }
        for day in 0..7u64 {
            let morning = day * hours(24) + hours(8);
            let evening = day * hours(24) + hours(19);
            self.session(morning, 300, Asking::Seldom);
            let is_busy = matches!(day, 1 | 4 | 5);
            self.session(evening, 420, if is_busy { Asking::Often } else { Asking::Seldom });
            // Whoever is there sleeps at night.
            for laptop in 0..3 {
                let closes = evening + 480 + 60 * self.random.below(60) as u64;
                self.plan_at(closes, Act::Closes(laptop));
                self.plan_at(morning + hours(24) - 30 - 5 * laptop as u64, Act::Opens(laptop));
            }
            self.desk_sleeps(morning, evening);
            self.events_of(day, morning, evening);
        }
    }

    fn plan_at(&mut self, seconds: u64, act: Act) {
        let jitter = self.random.below(900) as u64;
        self.at(Duration::from_millis(seconds * 1000 + jitter), act);
    }

    fn session(&mut self, from: u64, seconds: u64, asking: Asking) {
        self.at(Duration::from_secs(from - 40), Act::Session(true, Asking::Nobody));
        self.at(Duration::from_secs(from), Act::Session(true, asking));
        self.at(Duration::from_secs(from + seconds), Act::Session(true, Asking::Nobody));
        self.at(Duration::from_secs(from + seconds + QUIET), Act::Session(false, Asking::Nobody));
    }

    /// The desktop sleeps whenever nobody sits there, which is at any time.
    fn desk_sleeps(&mut self, morning: u64, evening: u64) {
        for (from, length) in [(morning, 300), (evening, 420)] {
            let mut at = from + self.random.below(120) as u64;
            while at < from + length {
                self.plan_at(at, Act::Sleeps(DESK));
                at += 5 + self.random.below(90) as u64;
                self.plan_at(at, Act::Wakes(DESK));
                at += 20 + self.random.below(150) as u64;
            }
        }
        self.plan_at(evening + hours(4), Act::Sleeps(DESK));
        // Some mornings nobody wakes it.
        let wakes = if self.random.is_one_in(3) {
            evening + hours(24) - 60
        } else {
            morning + hours(24) - 60
        };
        self.plan_at(wakes, Act::Wakes(DESK));
    }

    fn events_of(&mut self, day: u64, morning: u64, evening: u64) {
        let laptop = self.random.below(3);
        let at = evening + 10 + self.random.below(240) as u64;
        let soon = morning + 10 + self.random.below(240) as u64;
        let pause = self.random.below(60) as u64;
        match day {
            0 => {
                self.plan_at(at, Act::Restarts(laptop));
                self.plan_at(at + 60, Act::Restarts(laptop));
            }
            1 => {
                self.plan_at(evening, Act::Slow(BOX, 1800));
                self.plan_at(evening, Act::Slow(DESK, 1800));
                self.plan_at(evening + 420, Act::Slow(BOX, 2));
                self.plan_at(evening + 420, Act::Slow(DESK, 2));
            }
            2 => {
                self.plan_at(at, Act::RouterGoes);
                self.plan_at(at + 20 + pause, Act::RouterComes);
                self.plan_at(soon, Act::Pulls(BOX, "vision"));
            }
            3 => {
                self.plan_at(at, Act::Joins);
                let from = soon;
                self.plan_at(from, Act::Quota(BOX, true));
                self.plan_at(from + 100, Act::Quota(DESK, true));
                self.plan_at(evening, Act::Quota(BOX, false));
                self.plan_at(evening, Act::Quota(DESK, false));
            }
            4 => {
                self.plan_at(at, Act::Renamed(DESK, "workstation"));
                self.plan_at(soon, Act::Removes(BOX, "vision"));
                self.plan_at(soon, Act::Pulls(DESK, "vision"));
            }
            5 => {
                let loss = *self.random.pick(&[5, 15, 30]);
                self.plan_at(evening + 20, Act::BadWifi(laptop, loss));
                self.plan_at(evening + 320, Act::BadWifi(laptop, 0));
                self.plan_at(soon, Act::Restarts(laptop));
            }
            _ => {
                self.plan_at(at, Act::Sleeps(STUDIO));
                self.plan_at(at + 100, Act::Restarts(laptop));
                self.plan_at(at + 150, Act::Wakes(STUDIO));
                self.plan_at(soon, Act::Removes(DESK, "coder"));
            }
        }
    }

    pub(crate) fn arrive(&mut self, asking: Asking) {
        let (least, most) = if asking == Asking::Often { (200, 4500) } else { (500, 9000) };
        self.soon(least, most, Act::Arrival);
        let laptop = self.random.below(3);
        let tokens = self.random.below(if asking == Asking::Often { 40 } else { 25 });
        match self.random.below(10) {
            0 => self.ask(laptop, Kind::Cloud, CLOUD, tokens),
            1 | 2 => {
                let model = *self.random.pick(&MODELS);
                self.ask(laptop, Kind::Show, model, 0);
            }
            // Few ask for what nobody has.
            3 => {
                let model = *self.random.pick(&MODELS);
                self.ask(laptop, Kind::Chat, model, tokens);
            }
            _ => {
                let model = *self.random.pick(&MODELS[..4]);
                self.ask(laptop, Kind::Chat, model, tokens);
            }
        }
    }

    /// Adds the second desktop.
    pub(crate) fn joins(&mut self) {
        let at = self.add_server("studio", &["llama", "big", "painter"]);
        assert_eq!(at, STUDIO);
    }
}
