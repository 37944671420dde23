//! Why machines that were found can't be used, as they say themselves. Anyone can send that: it explains,
//! and decides nothing.

use std::time::{Duration, Instant};

use super::claims::Standing;
use super::events::not_running;
use super::{Backend, Notice, Pool, Verdict};

/// A machine that hasn't said it for so long is gone, or has nothing to say any more.
const NOTICE_AGE: Duration = Duration::from_secs(60);
/// An announcement explains what a check finds for so long after it.
const HEARD: Duration = Duration::from_secs(30);
/// Machines whose notices are kept.
const MOST_NOTICES: usize = 16;
/// A notice is told once it has stood for so long: a server's other answer may be on its way.
const STANDING: Duration = Duration::from_secs(2);

impl Notice {
    fn is_about(&self, backend: &Backend) -> bool {
        match backend.claims.identity {
            Some(identity) => identity == self.identity,
            None => backend.addresses.has_ip(self.from),
        }
    }
}

impl Pool {
    pub(super) fn noticed(&mut self, now: Instant, notice: Notice) {
        let told = self.backends.iter_mut().filter(|b| notice.is_about(b));
        told.for_each(|b| b.last_seen = now);
        let known = self.notices.iter().position(|it| it.notice.identity == notice.identity);
        match known {
            Some(at) => {
                let known = &mut self.notices[at];
                known.since = if known.notice.why == notice.why { known.since } else { now };
                (known.notice, known.at) = (notice, now);
            }
            None if self.notices.len() < MOST_NOTICES => {
                self.notices.push(Standing { notice, since: now, at: now });
            }
            None => {}
        }
    }

    /// What is known of why a server is down takes the place of what its last check found.
    pub(super) fn explain_downs(&mut self, now: Instant) {
        self.notices.retain(|it| now.saturating_duration_since(it.at) < NOTICE_AGE);
        let is_heard = |b: &Backend| now.saturating_duration_since(b.last_seen) < HEARD;
        for backend in &mut self.backends {
            let Verdict::Down(_) = &backend.health.verdict else { continue };
            let told = self.notices.iter().find(|it| it.notice.is_about(backend));
            let reason = match told {
                Some(told) => told.notice.sentence(),
                None if backend.claims.lacks_ollama && is_heard(backend) => {
                    not_running(&backend.short_name())
                }
                None => continue,
            };
            backend.health.verdict = Verdict::Down(reason);
        }
    }

    /// Notices of machines that no server in the pool is.
    pub(super) fn strangers(&self) -> impl Iterator<Item = &Standing> {
        let is_known = |it: &Standing| self.backends.iter().any(|b| it.notice.is_about(b));
        self.notices.iter().filter(move |it| !is_known(it))
    }

    /// Why machines that aren't in the pool can't be used, for people.
    pub(crate) fn unusable(&self, now: Instant) -> Vec<String> {
        let stands = |it: &&Standing| now.saturating_duration_since(it.since) >= STANDING;
        self.strangers().filter(stands).map(|it| it.notice.sentence()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{World, address, healthy, ms, sighting};
    use super::super::{Input, Unusable};
    use super::*;
    use crate::pairing::identity::Identity;
    use crate::upstream::CheckResult;

    fn notice(host: u8, why: Unusable) -> Notice {
        let name = format!("host{host}");
        Notice { identity: Identity([host; 16]), name, from: address(host).ip(), why }
    }

    fn reason(world: &World) -> String {
        let down = world.pool.backends.iter().find_map(|b| b.health.down_reason());
        down.unwrap_or_default().to_owned()
    }

    #[test]
    fn a_server_that_says_why_it_is_down_stays_and_is_quoted() {
        let mut world = World::new();
        world.input(sighting(1, 1, 1));
        let id = world.checks()[0].0;
        world.checked(id, healthy(address(1), 1));
        world.pass(ms(1500));
        world.checked(id, CheckResult::Unreached("connection refused".to_owned()));
        assert_eq!(reason(&world), "connection refused");
        for _ in 0..40 {
            world.pass(ms(5000));
            world.input(Input::Noticed(notice(1, Unusable::NotRunning)));
            assert_eq!(reason(&world), "Ollama isn't running on host1");
        }
        assert!(world.pool.unusable(world.now).is_empty(), "the server's own line says it");
        assert!(world.pool.explain(false).contains("Ollama isn't running on host1"));
        // When it stops to say so it is forgotten, as any other.
        for _ in 0..20 {
            world.pass(ms(5000));
        }
        assert!(world.pool.is_empty() && world.pool.notices.is_empty());
    }

    #[test]
    fn an_announcement_without_ollama_explains_too() {
        let mut world = World::new();
        world.input(sighting(1, 1, 1));
        let id = world.checks()[0].0;
        world.checked(id, healthy(address(1), 1));
        let Input::Sighted(told) = sighting(1, 1, 1) else { panic!("a sighting") };
        world.pass(ms(1500));
        world.input(Input::Sighted(super::super::Sighting { ollama_up: false, ..told }));
        world.checked(id, CheckResult::Refused("answers with status 503".to_owned()));
        assert_eq!(reason(&world), "Ollama isn't running on host1");
        world.pass(ms(30_000));
        world.checked(id, CheckResult::Silent("timed out".to_owned()));
        assert_eq!(reason(&world), "timed out", "it says nothing any more");
        world.pass(ms(1500));
        world.checked(id, healthy(address(1), 1));
        world.pass(ms(1500));
        world.checked(id, CheckResult::Refused("answers with status 500".to_owned()));
        assert_eq!(reason(&world), "answers with status 500", "it was well since");
    }

    #[test]
    fn strangers_are_told_of_while_they_say_it_and_bounded() {
        let mut world = World::new();
        world.input(Input::Noticed(notice(1, Unusable::KeyRequired)));
        let says = "host1 answers paired machines only: run 'ollana pair' on both";
        assert_eq!(world.pool.explain(false), format!("no Ollama server found on the LAN; {says}"));
        assert!(world.pool.unusable(world.now).is_empty(), "its other answer may come yet");
        world.pass(ms(2000));
        assert_eq!(world.pool.unusable(world.now), [says]);
        assert!(world.pool.is_empty(), "a notice proposes no server");
        for host in 2..100 {
            world.input(Input::Noticed(notice(host, Unusable::NotPaired)));
        }
        assert_eq!(world.pool.notices.len(), MOST_NOTICES);
        // It can be used after all.
        world.input(sighting(1, 1, 1));
        let id = world.checks()[0].0;
        world.checked(id, healthy(address(1), 1));
        assert!(!world.pool.unusable(world.now).iter().any(|it| it.starts_with("host1")));
        world.pass(NOTICE_AGE);
        assert!(world.pool.unusable(world.now).is_empty());
    }
}
