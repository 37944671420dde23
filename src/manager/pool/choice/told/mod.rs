//! Which servers do a request best by what Ollama tells: what a model can do, how much context it
//! has, whether it is on a graphics card, whether models may run in the cloud.
//!
//! What isn't told is neither good nor bad. Nothing here refuses a request: where no server is known
//! to do better, Ollama's own answer tells what is wrong. A newcomer's word makes it no better than
//! servers that are known for longer.

use super::{believed, prefer, unless_busier};
use crate::manager::pool::{Backend, Wanted};
use crate::ollama::model_name::ModelName;

fn can(b: &Backend, model: &ModelName, wanted: &Wanted) -> Option<bool> {
    Some(b.models.stored(model).capabilities?.has(wanted.abilities))
}

/// Of those that have the model, those where it isn't known to lack what the request needs: Ollama
/// would refuse it there.
pub(super) fn capable<'a>(
    owners: Vec<&'a Backend>,
    model: &ModelName,
    wanted: &Wanted,
) -> Vec<&'a Backend> {
    if wanted.abilities.is_empty() {
        return owners;
    }
    unless_all(owners, |b| can(b, model, wanted) != Some(false))
}

/// Those that may do it as far as they tell; all if none of those may that are known for longer.
pub(super) fn unless_all(mut all: Vec<&Backend>, may: impl Fn(&Backend) -> bool) -> Vec<&Backend> {
    let is_believed = believed(&all);
    if all.iter().any(|b| is_believed(b) && may(b)) {
        all.retain(|b| may(b));
    }
    all
}

/// Of these, those that are known to be able.
pub(super) fn surely_capable<'a>(
    warm: Vec<&'a Backend>,
    model: &ModelName,
    wanted: &Wanted,
) -> Vec<&'a Backend> {
    if wanted.abilities.is_empty() {
        return warm;
    }
    let is_believed = believed(&warm);
    unless_busier(warm, |b| can(b, model, wanted) == Some(true) && is_believed(b))
}

/// Of those where the model is loaded, those where it is loaded as the request needs it, then those
/// where it is wholly on a card.
pub(super) fn well_loaded<'a>(
    mut loaded: Vec<&'a Backend>,
    model: &ModelName,
    wanted: &Wanted,
) -> Vec<&'a Backend> {
    let context = |b: &Backend| b.models.loaded(model).context;
    if let Some(num_ctx) = wanted.num_ctx {
        // With any other context than this, up to what it was trained for, Ollama loads it anew.
        let trained = |b: &Backend| match b.models.stored(model).context {
            0 => u64::MAX,
            trained => trained,
        };
        loaded = unless_busier(loaded, |b| context(b) == num_ctx.min(trained(b)));
    } else if wanted.tokens > 0 {
        // Of a prompt that is too long, Ollama leaves the beginning out.
        loaded = prefer(loaded, |b| context(b) == 0 || context(b) >= wanted.tokens);
    }
    unless_busier(loaded, |b| !b.models.loaded(model).is_split)
}

#[cfg(test)]
mod tests;
