//! `ollana forget NAME`: what a server had that is gone for good is remembered no longer.

use serde_json::Value;

use super::table::{clean, figure, list, word, words};
use super::{daemon, state_dir};
use crate::cli::{Tool, did_you_mean};
use crate::config::Settings;
use crate::http::target::percent_encode;
use crate::manager::store;
use crate::upstream;

pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let name = tool.operand();
    let mut known = match ask(&tool.settings, name)? {
        Answer::Done(lines) => return super::print(&lines),
        Answer::Unknown(known) => known,
    };
    if known.is_empty() {
        // No ollana runs here, or none that uses other machines.
        known = match erase(&tool.settings, name)? {
            Answer::Done(lines) => return super::print(&lines),
            Answer::Unknown(known) => known,
        };
    }
    let meant = did_you_mean(name, "", known.iter().map(String::as_str));
    let known = match known.is_empty() {
        true => "none is known".to_owned(),
        false => format!("known are: {}", known.join(", ")),
    };
    Err(format!("no server called {:?} is known{meant} ({known})", clean(name)))
}

enum Answer {
    /// What was forgotten, in lines.
    Done(String),
    /// The names of the servers that there are instead.
    Unknown(Vec<String>),
}

fn line(name: &str, address: &str, models: Option<f64>) -> String {
    let models = match models {
        Some(1.0) => " and its model".to_owned(),
        Some(n) if n > 0.0 => format!(" and its {n:.0} models"),
        _ => String::new(),
    };
    format!("forgot {name} ({address}){models}\n")
}

/// Lets the ollana that runs on this machine do it.
fn ask(settings: &Settings, name: &str) -> Result<Answer, String> {
    let target = format!("/ollana/servers/{}", percent_encode(name));
    let mut known = Vec::new();
    for address in daemon::places(settings) {
        let answer = upstream::delete(&settings.timing, address, &target);
        let Ok((status, text)) = answer else { continue };
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        match status {
            200 if json.get("forgotten").is_some() => {
                let line = |server| {
                    let models = figure(server, "model_count");
                    line(&word(server, "name"), &word(server, "address"), models)
                };
                return Ok(Answer::Done(list(&json, "forgotten").iter().map(line).collect()));
            }
            404 => known.extend(words(&json, "known")),
            403 | 409 | 503 => return Err(format!("{address}: {}", word(&json, "error"))),
            _ => {}
        }
    }
    Ok(Answer::Unknown(known))
}

/// Takes it out of what the next start reads.
fn erase(settings: &Settings, name: &str) -> Result<Answer, String> {
    let dir = state_dir(settings)?;
    let (gone, rest): (Vec<_>, Vec<_>) =
        store::recall(&dir).into_iter().partition(|known| known.is_called(name));
    if gone.is_empty() {
        return Ok(Answer::Unknown(rest.iter().map(|known| clean(&known.name)).collect()));
    }
    store::write(&dir, &rest).map_err(|error| format!("{}: {error}", dir.display()))?;
    let lines = gone.iter().map(|known| {
        let models = known.had.as_ref().map(|had| had.models.len() as f64);
        line(&clean(&known.name), &known.address.to_string(), models)
    });
    Ok(Answer::Done(lines.collect()))
}
