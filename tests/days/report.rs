//! What is told of the weeks.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    Fine,
    /// 404 "model not found".
    NotFound,
    /// 429 of the cloud.
    Quota,
    /// Ollama's own 503.
    Overload,
    /// Our 503: all are busy for too long.
    Busy,
    /// Our 503: the model is on a server that is away, or there is none.
    Away,
    Unreached,
    /// It broke off, visibly.
    Cut,
    /// The program left first.
    Left,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) answers: BTreeMap<Answer, u64>,
    pub(crate) acts: BTreeMap<&'static str, u64>,
    pub(crate) checks: u64,
    pub(crate) downs: u64,
    pub(crate) resent: u64,
    /// Until the first byte, of those that were fine; and until a refusal.
    pub(crate) longest_wait: Duration,
    pub(crate) longest_refusal: Duration,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        for (answer, count) in &other.answers {
            *self.answers.entry(*answer).or_default() += count;
        }
        for (act, count) in &other.acts {
            *self.acts.entry(act).or_default() += count;
        }
        self.checks += other.checks;
        self.downs += other.downs;
        self.resent += other.resent;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.longest_refusal = self.longest_refusal.max(other.longest_refusal);
    }

    pub(crate) fn count(&self, answer: Answer) -> u64 {
        self.answers.get(&answer).copied().unwrap_or_default()
    }

    /// For people, in lines of at most 80 columns.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec!["what happened".to_owned()];
        lines.extend(self.acts.iter().map(|(act, count)| format!("  {count:>9}  {act}")));
        lines.push(format!("  {:>9}  health checks", self.checks));
        lines.push(format!("  {:>9}  times that a server was called down", self.downs));
        lines.push("what programs got".to_owned());
        let text = |answer| match answer {
            Answer::Fine => "an answer",
            Answer::NotFound => "404: nobody has or had the model",
            Answer::Quota => "429: the cloud's quota is used up",
            Answer::Overload => "503 by Ollama: overloaded",
            Answer::Busy => "503: all servers that could do it were busy for too long",
            Answer::Away => "503: the server with the model is away, or all are",
            Answer::Unreached => "502: no server could be reached",
            Answer::Cut => "an answer that broke off, visibly",
            Answer::Left => "nothing: they left first",
        };
        lines.extend(self.answers.iter().map(|(answer, n)| format!("  {n:>9}  {}", text(*answer))));
        lines.push(format!("  {:>9}  requests that went to a second server", self.resent));
        let longest = |what, wait: Duration| format!("  {:>7.1} s  {what}", wait.as_secs_f64());
        lines.push(longest("the longest wait for an answer's first byte", self.longest_wait));
        lines.push(longest("the longest wait for a refusal", self.longest_refusal));
        lines.join("\n")
    }
}
