//! What becomes of a program's request, and what no program may be told.

use super::*;

impl World {
    /// A program asks.
    pub(crate) fn ask(&mut self, laptop: usize, kind: Kind, model: &str, tokens: usize) {
        if !self.laptops[laptop].is_awake {
            return;
        }
        let wanted = Wanted {
            model: ModelName::parse(model),
            client: Some([127, 0, 0, 1].into()),
            conversation: Some(self.random.below(40) as u64).filter(|talk| *talk < 20),
            is_exempt: kind != Kind::Chat,
            may_try: true,
            ..Wanted::default()
        };
        self.note(|it| format!("request {}: laptop {laptop} {kind:?} {model}", it.asks.len()));
        self.asks.push(Ask {
            laptop,
            kind,
            model: model.to_owned(),
            wanted,
            tokens,
            attempts: Attempts::new(true),
            is_present: Rc::new(Cell::new(true)),
            lease: None,
            attempt: 0,
            is_connected: false,
            begun_at: self.now,
            at: None,
            inner: None,
            is_begun: false,
            failed_on: BTreeSet::new(),
            last: None,
            is_over: false,
        });
        let ask = self.asks.len() - 1;
        if self.random.is_one_in(30) {
            let patience = self.between(500, 20_000);
            self.after(patience, Event::Leaves(ask));
        }
        self.lease(ask);
    }

    fn lease(&mut self, ask: usize) {
        let (laptop, tried) = (self.asks[ask].laptop, self.asks[ask].attempts.tried().to_vec());
        let wanted = self.asks[ask].wanted.clone();
        let daemon = &mut self.laptops[laptop].daemon;
        if tried.is_empty()
            && let Some(lease) = daemon.enter_fast_path(wanted.is_exempt)
        {
            return self.leased(ask, lease);
        }
        self.waiting.insert(ask);
        let token = Token { request: ask, is_present: Rc::clone(&self.asks[ask].is_present) };
        self.deliver(Who::Laptop(laptop), Mail::Ask(token, Request { tried, wanted }));
    }

    pub(super) fn leased(&mut self, ask: usize, lease: Lease) {
        self.waiting.remove(&ask);
        let laptop = self.asks[ask].laptop;
        if self.asks[ask].is_over {
            return self.give_back(Who::Laptop(laptop), &lease, Outcome::Void.into());
        }
        let address = lease.pick.address;
        let connect = if lease.pick.is_sole { PATIENT_CONNECT } else { CONNECT_TIMEOUT };
        self.note(|_| format!("request {ask} goes to {} at {address}", lease.pick.name));
        let request = &mut self.asks[ask];
        request.lease = Some(lease);
        request.attempt += 1;
        request.is_connected = false;
        let attempt = request.attempt;
        let there = self.travel(laptop, 1000);
        match self.reaches(laptop, Some(address)) {
            Some(server) if there < connect => {
                self.after(there, Event::Arrives(ask, attempt, server));
            }
            _ => self.after(connect, Event::Unreached(ask, attempt)),
        }
    }

    /// Whether news of an attempt is still about the present one.
    pub(super) fn is_at(&self, ask: usize, attempt: u32) -> bool {
        let request = &self.asks[ask];
        !request.is_over && request.attempt == attempt && request.lease.is_some()
    }

    /// Whether the way between a request and its server is broken.
    pub(super) fn is_cut_off(&self, ask: usize) -> bool {
        let request = &self.asks[ask];
        request.at.is_none() || self.reaches(request.laptop, self.address_of(ask)) != request.at
    }

    pub(super) fn token(&mut self, ask: usize, attempt: u32, left: usize) {
        if !self.is_at(ask, attempt) {
            return;
        }
        if self.is_cut_off(ask) {
            return self.after(VANISHED, Event::Vanished(ask, attempt));
        }
        let Ask { laptop, at: Some(at), .. } = self.asks[ask] else { return };
        self.hear(laptop, at);
        self.asks[ask].lease.iter().for_each(|lease| lease.pick.received(40));
        let wait = self.now - self.asks[ask].begun_at;
        if !std::mem::replace(&mut self.asks[ask].is_begun, true) {
            self.tally.longest_wait = self.tally.longest_wait.max(wait);
        }
        match left {
            0 => self.answered(ask, attempt, Outcome::Answered, Answer::Fine),
            _ => self.after(TOKEN, Event::Token(ask, attempt, left - 1)),
        }
    }

    /// The attempt brought no answer, or none that came to its end.
    pub(super) fn failed(&mut self, ask: usize, attempt: u32, outcome: Outcome, answer: Answer) {
        if !self.is_at(ask, attempt) {
            return;
        }
        self.note(|_| format!("request {ask}: attempt {attempt} failed, {outcome:?}"));
        let address = self.address_of(ask);
        let at = self.servers.iter().position(|it| Some(it.address) == address);
        self.asks[ask].failed_on.extend(at);
        let is_trial = self.asks[ask].lease.as_ref().is_some_and(|lease| lease.pick.is_trial);
        if outcome == Outcome::Unreachable && is_trial {
            return self.try_no_more(ask, outcome);
        }
        self.go_on(ask, outcome, answer);
    }

    /// The server has answered.
    pub(super) fn answered(&mut self, ask: usize, attempt: u32, outcome: Outcome, answer: Answer) {
        if !self.is_at(ask, attempt) {
            return;
        }
        if self.is_cut_off(ask) {
            return self.after(VANISHED, Event::Vanished(ask, attempt));
        }
        if let Ask { laptop, at: Some(at), .. } = self.asks[ask] {
            self.hear(laptop, at);
        }
        if answer != Answer::Fine {
            // This answer tells more than that one more server is away.
            self.asks[ask].wanted.may_try = false;
            return self.go_on(ask, outcome, answer);
        }
        let loaded =
            self.asks[ask].wanted.model.clone().filter(|_| self.asks[ask].kind == Kind::Chat);
        self.leave_server(ask, outcome);
        let report = Report { loaded: loaded.map(|model| (model, true)), ..outcome.into() };
        self.release(ask, report);
        self.end(ask, answer);
    }

    /// What it means that the server is down is told as usual.
    fn try_no_more(&mut self, ask: usize, outcome: Outcome) {
        self.asks[ask].wanted.may_try = false;
        self.release(ask, outcome.into());
        self.lease(ask);
    }

    /// Nobody connects any more to a server that is called down or is somewhere else.
    pub(super) fn end_hope(&mut self, laptop: usize, report: &Transition) {
        let (Transition::Down { name, .. } | Transition::Moved { name, .. }) = report else {
            return;
        };
        for ask in 0..self.asks.len() {
            let request = &self.asks[ask];
            let hopes = |lease: &Lease| lease.pick.is_sole && name.starts_with(&lease.pick.name);
            let is_due =
                request.laptop == laptop && !request.is_connected && request.wanted.may_try;
            if is_due && request.lease.as_ref().is_some_and(hopes) {
                self.after(Duration::ZERO, Event::Hopeless(ask, request.attempt));
            }
        }
    }

    pub(super) fn hopeless(&mut self, ask: usize, attempt: u32) {
        if self.is_at(ask, attempt) && !self.asks[ask].is_connected {
            self.try_no_more(ask, Outcome::Void);
        }
    }

    fn release(&mut self, ask: usize, report: Report) {
        if let Some(lease) = self.asks[ask].lease.take() {
            self.give_back(Who::Laptop(self.asks[ask].laptop), &lease, report);
        }
    }

    /// Another server may have it, or the program gets to hear this.
    fn go_on(&mut self, ask: usize, outcome: Outcome, answer: Answer) {
        let Some(id) = self.asks[ask].lease.as_ref().map(|lease| lease.pick.id) else { return };
        let at = self.asks[ask].at;
        self.leave_server(ask, outcome);
        let request = &mut self.asks[ask];
        request.failed_on.extend(at);
        // What was passed on stays.
        let may = !request.is_begun && request.attempts.may_go_on(id, outcome, true);
        request.last = Some(answer);
        let model = request.wanted.model.clone();
        let removed = model.filter(|_| answer == Answer::NotFound);
        self.release(ask, Report { removed, ..outcome.into() });
        match may {
            true => self.lease(ask),
            false => self.end(ask, answer),
        }
    }

    /// There is no lease for it.
    pub(super) fn refused(&mut self, ask: usize, refused: Refused) {
        let refusal = match &refused {
            Refused::QueueFull => Answer::Busy,
            Refused::NoServer(_) | Refused::OwnerAway(_) => Answer::Away,
        };
        self.note(|_| format!("request {ask} gets no server: {refused:?}"));
        // A server that failed says more than that there is no other one; that somebody has the
        // model says more than that this one doesn't.
        let answer = match (&refused, self.asks[ask].last) {
            (Refused::OwnerAway(_), Some(Answer::NotFound | Answer::Unreached)) => refusal,
            (_, last) => last.unwrap_or(refusal),
        };
        self.end(ask, answer);
    }

    pub(super) fn leaves(&mut self, ask: usize) {
        if !self.asks[ask].is_over {
            self.asks[ask].is_present.set(false);
            self.leave_server(ask, Outcome::Void);
            self.release(ask, Outcome::Void.into());
            self.end(ask, Answer::Left);
        }
    }

    /// The connections of a machine that has gone are dead, or its daemon has ended.
    pub(super) fn drop_all(&mut self, who: Who) {
        for ask in 0..self.asks.len() {
            match who {
                Who::Laptop(laptop) if self.asks[ask].laptop == laptop => self.leaves(ask),
                Who::Server(at) if self.asks[ask].at == Some(at) && !self.asks[ask].is_over => {
                    self.leave_server(ask, Outcome::Void);
                    let attempt = self.asks[ask].attempt;
                    self.after(VANISHED, Event::Vanished(ask, attempt));
                }
                _ => {}
            }
        }
    }

    fn end(&mut self, ask: usize, answer: Answer) {
        if std::mem::replace(&mut self.asks[ask].is_over, true) {
            return;
        }
        self.waiting.remove(&ask);
        self.note(|_| format!("request {ask} ends: {answer:?}"));
        *self.tally.answers.entry(answer).or_default() += 1;
        self.tally.resent += u64::from(self.asks[ask].attempt > 1);
        if !matches!(answer, Answer::Fine | Answer::Cut | Answer::Left) {
            let wait = self.now - self.asks[ask].begun_at;
            self.tally.longest_refusal = self.tally.longest_refusal.max(wait);
        }
        match answer {
            Answer::NotFound => self.judge_not_found(ask),
            Answer::Busy | Answer::Away | Answer::Overload | Answer::Unreached => {
                self.judge_refusal(ask, answer);
            }
            Answer::Fine | Answer::Quota | Answer::Cut | Answer::Left => {}
        }
    }

    /// No 404 for a model that somebody in the house has or had.
    fn judge_not_found(&mut self, ask: usize) {
        let Ask { laptop, model, .. } = &self.asks[ask];
        let told = &self.laptops[*laptop].told;
        let owner = (0..self.servers.len()).find(|at| {
            let knows = told.get(at).is_some_and(|models| models.contains(model));
            self.servers[*at].has(model) && (knows || self.is_settled(*laptop, *at))
        });
        let text = owner.map(|at| {
            format!("request {ask}: {model} is on {}, but is \"not found\"", self.servers[at].name)
        });
        self.must_not(text);
    }

    /// No request is refused while a server that can do it is free.
    fn judge_refusal(&mut self, ask: usize, answer: Answer) {
        let Ask { laptop, model, kind, failed_on, .. } = &self.asks[ask];
        let owner = (0..self.servers.len()).find(|at| {
            let server = &self.servers[*at];
            let is_able = *kind == Kind::Cloud || server.has(model);
            let is_free = *kind != Kind::Chat || self.is_free(*at);
            is_able && is_free && self.is_settled(*laptop, *at) && !failed_on.contains(at)
        });
        let text = owner.map(|at| {
            format!("request {ask}: {answer:?} for {model}, but {} is free", self.servers[at].name)
        });
        self.must_not(text);
    }

    /// No request waits for long while a server that can do it is free, and has nothing of this
    /// laptop's: whatever the limit, it would take one.
    pub(super) fn judge_waiting(&mut self, laptop: usize) {
        let mine = |ask: &&usize| self.asks[**ask].laptop == laptop;
        let late = |ask: &&usize| self.now - self.asks[**ask].begun_at > SETTLED;
        let all: Vec<usize> = self.waiting.iter().filter(mine).filter(late).copied().collect();
        for ask in all {
            let Ask { model, failed_on, .. } = &self.asks[ask];
            let idle = (0..self.servers.len()).find(|at| {
                let address = Some(self.servers[*at].address);
                let has = |ask: &Ask| ask.laptop == laptop && ask.lease.is_some();
                let is_used = || {
                    (0..self.asks.len())
                        .any(|it| has(&self.asks[it]) && self.address_of(it) == address)
                };
                self.servers[*at].has(model)
                    && !failed_on.contains(at)
                    && self.is_settled(laptop, *at)
                    && self.is_free(*at)
                    && !is_used()
            });
            let text = idle
                .map(|at| format!("request {ask} waits, but {} is free", self.servers[at].name));
            self.must_not(text);
        }
    }

    /// Whether a server's Ollama would begin with another request, all that go there counted.
    fn is_free(&self, at: usize) -> bool {
        let address = Some(self.servers[at].address);
        let goes_there =
            |ask: &usize| self.asks[*ask].kind == Kind::Chat && self.address_of(*ask) == address;
        let there = (0..self.asks.len()).filter(goes_there).count();
        there < self.servers[at].parallel
    }

    /// Whether a laptop must know a server as it is.
    fn is_settled(&self, laptop: usize, at: usize) -> bool {
        let Laptop { stable_since, hidden, loss, .. } = &self.laptops[laptop];
        let since = self.servers[at].stable_since.max(*stable_since);
        let since = hidden.get(&at).map_or(since, |hidden| since.max(*hidden));
        let reaches = self.reaches(laptop, Some(self.servers[at].address)) == Some(at);
        // Where packets get lost, the probe that finds a server again may be the tenth.
        let settled = if *loss > 0 { 4 * SETTLED } else { SETTLED };
        reaches && self.now.saturating_duration_since(since) >= settled
    }
}
