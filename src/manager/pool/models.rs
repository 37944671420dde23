//! What models a server has: as it told, and as requests that went through us have changed since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::events::{CheckId, Report};
use super::health::doubled;
use super::load::STRIKES;
use crate::ollama::facts::Facts;
use crate::ollama::inventory::Inventory;
use crate::ollama::model_name::ModelName;
use crate::upstream::LISTS_IN_PASSING;

/// A server's lists of models are asked for again after this.
const INVENTORY_AGE: Duration = Duration::from_secs(4);
/// Models that may be loaded or unloaded through us between two looks at a server.
const MAX_LOADED_SINCE: usize = 16;
/// Ollama still lists a model as loaded for a moment after it was told to unload it.
const UNLOADING: Duration = Duration::from_millis(500);
/// Models whose speed, and whose errors, are remembered per server.
const MAX_MODELS: usize = 64;
/// How long a server is passed over for a model for which it answered [`STRIKES`] times in a row with
/// an error. Doubled with each further one: a broken driver stays broken, but a full graphics card
/// may have room again.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(10);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Default)]
pub(crate) struct Models {
    pub(crate) inventory: Option<Arc<Inventory>>,
    /// What is wrong with the server's lists, for people.
    pub(crate) problem: Option<String>,
    /// The problem that was last logged.
    pub(super) reported: Option<String>,
    /// When to ask for the inventory again; at once if it never told one.
    pub(super) due: Option<Instant>,
    /// Its lists came too late for a check, so they are asked for apart, and who asks now.
    pub(super) are_slow: bool,
    pub(super) asked: Option<(CheckId, Instant)>,
    /// Since when the inventory is known to be out of date.
    pub(super) stale_since: Option<Instant>,
    /// Models that requests have loaded or unloaded since the inventory was taken, oldest first.
    loaded_since: Vec<(ModelName, bool)>,
    /// Tokens per second, learned from answers.
    pub(crate) speeds: HashMap<ModelName, f64>,
    /// How many errors in a row it answered for a model, and when the last one counted.
    errors: HashMap<ModelName, (u32, Instant)>,
}

impl Models {
    pub(super) fn has(&self, model: &ModelName) -> bool {
        self.inventory.as_ref().is_some_and(|inventory| inventory.has(model))
    }

    /// Whether it may have models that aren't known of.
    pub(super) fn may_have_more(&self) -> bool {
        let is_incomplete = |known: &Arc<Inventory>| known.is_incomplete();
        self.stale_since.is_some() || self.inventory.as_ref().is_none_or(is_incomplete)
    }

    /// Whether the model is in its memory. What went through us is younger than what it told.
    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        match self.loaded_since.iter().rfind(|(name, _)| name == model) {
            Some((_, is_loaded)) => *is_loaded,
            None => self.inventory.as_ref().is_some_and(|known| known.has_loaded(model)),
        }
    }

    /// What it told of the model in its memory.
    pub(super) fn loaded(&self, model: &ModelName) -> Facts {
        self.inventory.as_ref().map(|known| known.loaded(model)).unwrap_or_default()
    }

    /// What it told of the model on its disk.
    pub(super) fn stored(&self, model: &ModelName) -> Facts {
        self.inventory.as_ref().map(|known| known.stored(model)).unwrap_or_default()
    }

    /// Whether it told that its Ollama keeps from the cloud.
    pub(super) fn is_cloudless(&self) -> bool {
        self.inventory.as_ref().is_some_and(|known| known.cloud == Some(false))
    }

    /// Takes up what a request did. When the server is to be asked again, if that matters.
    pub(super) fn finished(&mut self, now: Instant, report: Report) -> Option<Instant> {
        let Report { speed, changed_models, removed, loaded, .. } = report;
        let mut again = None;
        if let (Some(model), Some(inventory)) = (&removed, &self.inventory)
            && inventory.has(model)
        {
            self.inventory = Some(Arc::new(inventory.removed(model)));
            again = Some(now);
        }
        if let Some((model, _)) = &loaded {
            self.errors.remove(model);
        }
        let loaded = loaded.filter(|(model, is_loaded)| self.has_loaded(model) != *is_loaded);
        if let (Some((model, false)), Some(inventory)) = (&loaded, &self.inventory) {
            self.inventory = Some(Arc::new(inventory.unloaded(model)));
            again = Some(now + UNLOADING);
        }
        if changed_models || matches!(loaded, Some((_, true))) {
            again = Some(now);
        }
        if again.is_some() {
            (self.due, self.stale_since) = (again, again);
        }
        if let Some(loaded) = loaded {
            if self.loaded_since.len() >= MAX_LOADED_SINCE {
                self.loaded_since.remove(0);
            }
            self.loaded_since.push(loaded);
        }
        if let Some((model, speed)) = speed.filter(|(_, speed)| speed.is_finite()) {
            let known = entry(&mut self.speeds, model, speed);
            *known = (*known * 3.0 + speed) / 4.0;
        }
        again
    }

    /// It answered a request for this model with an error. For how long it is passed over for the
    /// model, if that is the consequence.
    pub(super) fn erred(&mut self, now: Instant, model: ModelName) -> Option<Duration> {
        // What errs during its pause was under way before.
        if self.is_ejected(now, &model) {
            return None;
        }
        let (count, at) = entry(&mut self.errors, model, (0, now));
        (*count, *at) = (*count + 1, now);
        pause(*count)
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Whether it is passed over for this model while others can do.
    pub(super) fn is_ejected(&self, now: Instant, model: &ModelName) -> bool {
        let of =
            |(count, at): &(u32, Instant)| pause(*count).is_some_and(|pause| now < *at + pause);
        self.errors.get(model).is_some_and(of)
    }

    /// It was down, and what it answered before tells nothing any more.
    pub(super) fn came_up(&mut self) {
        self.errors.clear();
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// Whether nothing is known of them yet, but will be.
    pub(super) fn are_coming(&self) -> bool {
        self.asked.is_some() && self.inventory.is_none()
    }

    /// Lists that were asked for apart have come, or haven't.
    pub(super) fn told_apart(
        &mut self,
        now: Instant,
        asked_at: Instant,
        inventory: Option<Arc<Inventory>>,
    ) {
        let is_known = inventory.as_ref().is_some_and(|inventory| inventory.is_known());
        self.are_slow = !is_known || now.saturating_duration_since(asked_at) > LISTS_IN_PASSING / 2;
        self.told(now, asked_at, inventory);
        if !is_known {
            self.due = Some(now + INVENTORY_AGE);
        }
    }

    /// A check that began at `asked_at` has passed, and told this if it asked. When the next one
    /// has to be, if what is known is out of date.
    pub(super) fn told(
        &mut self,
        now: Instant,
        asked_at: Instant,
        inventory: Option<Arc<Inventory>>,
    ) -> Option<Instant> {
        if let Some(new) = &inventory {
            self.problem = new.problem().map(str::to_owned);
        }
        let has_news = inventory.as_ref().is_some_and(|new| new.is_known());
        let inventory = match (inventory, &self.inventory) {
            (Some(new), Some(last)) if new.problem().is_some() => {
                Some(Arc::new(Inventory::clone(&new).keeping(last)))
            }
            (new, _) => new,
        };
        if let Some(inventory) = inventory.filter(|inventory| inventory.is_known()) {
            self.inventory = Some(inventory);
        }
        if has_news {
            self.due = Some(now + INVENTORY_AGE);
            // An answer to an earlier question says nothing about the change.
            if self.stale_since.is_some_and(|since| since <= asked_at) {
                self.stale_since = None;
                self.loaded_since.clear();
            }
        }
        let again = self.stale_since?.max(now);
        self.due = Some(again);
        Some(again)
    }
}

/// The pause after so many errors in a row.
fn pause(errors: u32) -> Option<Duration> {
    Some(doubled(FIRST_PAUSE, errors.checked_sub(STRIKES)?, LONGEST_PAUSE))
}

fn entry<T>(map: &mut HashMap<ModelName, T>, model: ModelName, new: T) -> &mut T {
    if map.len() >= MAX_MODELS && !map.contains_key(&model) {
        map.clear(); // Rare, and learned again with the next answers.
    }
    map.entry(model).or_insert(new)
}
