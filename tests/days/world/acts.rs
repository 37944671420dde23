//! What the acts of the story change.

use super::*;

impl World {
    pub(super) fn act(&mut self, act: Act) {
        if !matches!(act, Act::Arrival | Act::Session(..)) {
            self.note(|_| format!("{act:?}"));
            *self.tally.acts.entry(act.text()).or_default() += 1;
        }
        match act {
            Act::Session(is_lively, asking) => {
                self.set_lively(is_lively);
                self.asking = asking;
                if asking != Asking::Nobody && !std::mem::replace(&mut self.is_arriving, true) {
                    self.arrive(asking);
                }
            }
            Act::Arrival if self.asking == Asking::Nobody => self.is_arriving = false,
            Act::Arrival => self.arrive(self.asking),
            Act::Sleeps(at) => self.sleeps(at),
            Act::Wakes(at) => self.wakes(at),
            Act::Closes(laptop) => self.closes(laptop),
            Act::Opens(laptop) => self.opens(laptop),
            Act::Restarts(laptop) => self.restarts(laptop),
            Act::RouterGoes => {
                self.has_network = false;
                (0..self.servers.len()).for_each(|at| self.drop_all(Who::Server(at)));
            }
            Act::RouterComes => {
                self.has_network = true;
                for at in 0..self.servers.len() {
                    self.servers[at].address = self.new_address();
                    self.servers[at].stable_since = self.now;
                }
            }
            Act::BadWifi(laptop, loss) => {
                self.laptops[laptop].loss = loss;
                self.laptops[laptop].stable_since = self.now;
            }
            Act::Pulls(at, model) => {
                self.servers[at].change_models(|models| models.insert(model.to_owned()));
                self.servers[at].stable_since = self.now;
            }
            Act::Removes(at, model) => {
                self.servers[at].change_models(|models| models.remove(model));
                self.servers[at].stable_since = self.now;
            }
            Act::Renamed(at, name) => {
                // Its daemon is started anew.
                self.drop_all(Who::Server(at));
                let server = &mut self.servers[at];
                server.name = name.to_owned();
                server.start(self.now);
                self.start_daemon(Who::Server(at));
            }
            Act::Slow(at, ms) => self.servers[at].version_takes = Duration::from_millis(ms),
            Act::Quota(at, is_spent) => self.servers[at].is_quota_spent = is_spent,
            Act::Joins => self.joins(),
        }
    }

    fn sleeps(&mut self, at: usize) {
        if at < self.servers.len() && self.servers[at].is_awake {
            self.servers[at].is_awake = false;
            self.drop_all(Who::Server(at));
        }
    }

    fn wakes(&mut self, at: usize) {
        if at < self.servers.len() && !self.servers[at].is_awake {
            self.servers[at].is_awake = true;
            self.servers[at].stable_since = self.now;
            self.start_daemon(Who::Server(at));
        }
    }

    fn closes(&mut self, laptop: usize) {
        if self.laptops[laptop].is_awake {
            self.drop_all(Who::Laptop(laptop));
            self.laptops[laptop].is_awake = false;
            self.laptops[laptop].closed_at = Some(self.now);
        }
    }

    fn opens(&mut self, laptop: usize) {
        let Some(closed_at) = self.laptops[laptop].closed_at.take() else { return };
        let slept = self.now - closed_at;
        self.laptops[laptop].slept += slept;
        self.laptops[laptop].is_awake = true;
        self.laptops[laptop].stable_since = self.now;
        // What was under way then comes to nothing.
        for check in 0..self.checks.len() {
            if self.checks[check].laptop == laptop && !self.checks[check].is_over {
                self.after(CHECK_TIMEOUT, Event::Checked(check, silent(), None));
            }
        }
        self.start_daemon(Who::Laptop(laptop));
        self.deliver(Who::Laptop(laptop), Mail::Input(Input::Slept(slept)));
    }

    fn restarts(&mut self, laptop: usize) {
        self.drop_all(Who::Laptop(laptop));
        let now = self.local_time(Who::Laptop(laptop));
        let mut pool = Pool::new(rules(true), self.random.next());
        let laptop_now = &mut self.laptops[laptop];
        pool.recall(now, laptop_now.saved.clone());
        laptop_now.daemon = Client::new(now, pool);
        laptop_now.epoch += 1;
        laptop_now.busy_checkers = 0;
        laptop_now.stable_since = self.now;
        self.start_daemon(Who::Laptop(laptop));
    }
}
