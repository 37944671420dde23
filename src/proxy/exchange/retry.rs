//! How often a request is sent, and where it was. Pure.
//!
//! As long as nothing reached a server, everything may go on to the next. Of what did, only reads
//! and inference are sent again: as long as servers only refuse it, to all of them, and once if one
//! may have begun with it. Either way the body must still be there to be sent from its beginning.

use crate::manager::pool::{BackendId, Outcome};

/// The attempts of one request.
#[derive(Debug)]
pub struct Attempts {
    is_repeatable: bool,
    resent: bool,
    tried: Vec<BackendId>,
}

impl Attempts {
    /// None so far. A repeatable request does no harm when it is served twice.
    pub fn new(is_repeatable: bool) -> Self {
        Attempts { is_repeatable, resent: false, tried: Vec::new() }
    }

    /// Servers that failed it; it goes to none of them again.
    pub fn tried(&self) -> &[BackendId] {
        &self.tried
    }

    /// An attempt failed, or was answered poorly. Whether another server may have it next; if so,
    /// it is taken to get it.
    pub fn may_go_on(&mut self, id: BackendId, outcome: Outcome, is_replayable: bool) -> bool {
        self.tried.push(id);
        // What a proxy refused by itself was answered, but reached no Ollama.
        let may_have_arrived = !matches!(outcome, Outcome::Unreachable | Outcome::Answered);
        let may_have_begun = outcome == Outcome::Failed;
        let may_repeat = self.is_repeatable && !(may_have_begun && self.resent);
        let again = is_replayable && (!may_have_arrived || may_repeat);
        self.resent |= again && may_have_begun;
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Declined, Failed, Overloaded, TurnedAway, Unreachable};

    #[test]
    fn what_may_have_begun_is_sent_at_most_once_more() {
        let id = BackendId::default();
        let go = |is_repeatable, outcomes: &[(Outcome, bool)]| {
            let mut attempts = Attempts::new(is_repeatable);
            for (n, (outcome, again)) in outcomes.iter().enumerate() {
                assert_eq!(attempts.may_go_on(id, *outcome, true), *again, "attempt {n}");
                assert_eq!(attempts.tried().len(), n + 1);
            }
        };
        go(
            true,
            &[
                (Unreachable, true),
                (Failed, true),
                (Unreachable, true),
                (Overloaded, true),
                (Failed, false),
            ],
        );
        go(true, &[(Overloaded, true), (Declined, true), (TurnedAway, true), (Failed, true)]);
        go(false, &[(Unreachable, true), (Unreachable, true), (Overloaded, false)]);
        go(false, &[(Failed, false)]);
        let gone = Attempts::new(true).may_go_on(id, Unreachable, false);
        assert!(!gone, "the body is not there any more");
    }
}
