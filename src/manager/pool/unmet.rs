//! Names in the user's rules that nobody goes by, and why there is no server: for people.

use std::time::{Duration, Instant};

use super::Pool;
use crate::cli::did_you_mean;
use crate::config::Sleeper;
use crate::ollama::model_name::ModelName;

/// How long after the first server was found a name that it doesn't go by is worth a word.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names that are told instead.
const MOST_NAMES: usize = 8;

impl Pool {
    /// Notes when the first of the other machines' servers was up.
    pub(super) fn note_first_up(&mut self, now: Instant) {
        if self.first_up.is_none() && self.working().any(|b| !b.is_local()) {
            self.first_up = Some(now);
        }
    }

    /// Whether another machine's server was ever up.
    pub(crate) fn has_found(&self) -> bool {
        self.first_up.is_some()
    }

    /// The rules about servers and models that no server of this minute, or of earlier days, goes by or
    /// has: they are misspelled, most likely.
    pub(crate) fn unmet(&self, now: Instant) -> Vec<String> {
        let time = self.first_up.map(|at| now.saturating_duration_since(at));
        if time.is_none_or(|time| time < PATIENCE) {
            return Vec::new();
        }
        let rules = &self.rules;
        let mut told = Vec::new();
        told.extend(rules.preferred.iter().filter_map(|name| self.unmet_server("prefer", name)));
        for sleeper in &rules.wake {
            let Sleeper::Server(name) = sleeper else { continue };
            told.extend(self.unmet_server("wake", name));
        }
        for (option, list) in [("pin", &rules.pins), ("ban", &rules.bans)] {
            for (model, server) in list {
                told.extend(self.unmet_model(option, model));
                told.extend(self.unmet_server(option, server));
            }
        }
        for alias in rules.aliases.all() {
            let unmet = |(_, model): &(String, ModelName)| self.unmet_model("alias", model);
            let all: Vec<String> = alias.models.iter().filter_map(unmet).collect();
            if all.len() == alias.models.len() {
                told.extend(all);
            }
        }
        told.dedup();
        told
    }

    fn unmet_server(&self, option: &str, name: &str) -> Option<String> {
        let is_met = self.backends.iter().any(|b| b.who().is_called(name, &b.claims.name))
            || self.memory.servers.iter().any(|it| it.is_called(name))
            || self.records.0.iter().any(|it| it.is_called(name) || it.is_at(name));
        if is_met {
            return None;
        }
        let own = self.backends.iter().filter(|b| !b.is_local()).map(|b| b.short_name());
        let away = self.memory.servers.iter().map(|it| it.name.clone());
        let mut names: Vec<String> = own.chain(away).filter(|name| !name.is_empty()).collect();
        names.sort();
        names.dedup();
        let mut meant = did_you_mean(name, "", names.iter().map(String::as_str));
        if meant.is_empty() {
            names.truncate(MOST_NAMES);
            meant = format!(" (but {})", names.join(", "));
        }
        Some(format!("--{option}: no server is called {name:?}{meant}"))
    }

    fn unmet_model(&self, option: &str, model: &ModelName) -> Option<String> {
        let memory = &self.memory.servers;
        let is_met = self.backends.iter().any(|b| b.models.has(model))
            || memory.iter().any(|it| it.had.models.has(model));
        let is_known = !self.working().any(|b| b.models.may_have_more());
        if is_met || model.is_cloud() || !is_known {
            return None;
        }
        let own = self.backends.iter().filter_map(|b| b.models.inventory.as_ref());
        let all = own.chain(memory.iter().map(|it| &it.had.models));
        let names: Vec<ModelName> =
            all.flat_map(|known| known.models()).map(|model| model.name).collect();
        let meant = did_you_mean(short(model), "", names.iter().map(short));
        Some(format!("--{option}: no server has a model {:?}{meant}", short(model)))
    }
}

/// Without the tag that is meant where there is none.
fn short(model: &ModelName) -> &str {
    let name = model.as_str();
    name.strip_suffix(":latest").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{World, address, healthy, ms, sighting, with_inventory};
    use super::*;
    use crate::ollama::inventory::Inventory;
    use std::sync::Arc;

    fn rules(world: &mut World) {
        let model = |name: &str| ModelName::parse(name).unwrap();
        let rules = &mut world.pool.rules;
        rules.inventories = true;
        rules.preferred = vec!["hots1".to_owned(), "HOST1".to_owned(), "10.0.0.1".to_owned()];
        rules.wake = vec!["nas".parse().unwrap(), "02:00:00:00:00:01".parse().unwrap()];
        rules.pins = vec![(model("tinny"), "host1".to_owned())];
        rules.bans = vec![(model("tiny"), "hots2".to_owned())];
    }

    #[test]
    fn names_that_nobody_goes_by_are_told_after_a_minute() {
        let mut world = World::new();
        rules(&mut world);
        world.pass(ms(90_000));
        assert!(world.pool.unmet(world.now).is_empty(), "no server was found yet");
        assert!(!world.pool.has_found());
        world.input(sighting(1, 1, 1));
        let id = world.checks()[0].0;
        let models = Inventory::new([r#"{"models":[{"name":"tiny"}]}"#, "{}", "{}"], None);
        world.checked(id, with_inventory(healthy(address(1), 1), Some(Arc::new(models))));
        assert!(world.pool.has_found());
        assert!(world.pool.unmet(world.now).is_empty(), "others may answer yet");
        world.pass(ms(60_000));
        let want = [
            r#"--prefer: no server is called "hots1"; did you mean host1?"#,
            r#"--wake: no server is called "nas" (but host1)"#,
            r#"--pin: no server has a model "tinny"; did you mean tiny?"#,
            r#"--ban: no server is called "hots2" (but host1)"#,
        ];
        assert_eq!(world.pool.unmet(world.now), want);
    }

    #[test]
    fn a_server_that_is_down_or_away_has_been_met() {
        let mut world = World::new();
        world.pool.rules.preferred = vec!["host1".to_owned(), "host2".to_owned()];
        for host in [1, 2] {
            world.input(sighting(host, host, 1));
            let (id, _) = *world.checks().last().expect("a check");
            world.checked(id, healthy(address(host), 1));
        }
        world.pass(ms(61_000));
        assert!(world.pool.unmet(world.now).is_empty());
        // Whoever was well is remembered, though the pool has dropped it.
        world.pool.backends.retain(|b| b.claims.name != "host2");
        assert!(world.pool.unmet(world.now).is_empty(), "{:?}", world.pool.unmet(world.now));
    }
}
