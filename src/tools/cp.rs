//! `ollana cp MODEL[@SERVER] [SERVER]`: a model as it is on one machine is copied to another, without
//! the internet. The ollana of the machine that gets it does that; this says who gives it, sends the
//! request by way of the daemon of this machine, and draws the answer.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::status::name;
use super::table::{clean, list, word, words};
use super::{complain, daemon, pull};
use crate::cli::Tool;
use crate::http::fields::{COPY_FIELD, SERVER_FIELD};
use crate::ollama::model_name::ModelName;
use crate::ollama::pull::split_server;

/// Why nothing is copied, and the exit code for that.
type Refused = (String, u8);

pub(super) fn run(tool: &Tool) -> ExitCode {
    match copy(tool) {
        Ok(()) => ExitCode::SUCCESS,
        Err((reason, code)) => complain(&reason, code),
    }
}

fn copy(tool: &Tool) -> Result<(), Refused> {
    let failed = |reason: String| (reason, 1);
    let (address, state) = daemon::state(&tool.settings, "/ollana/status").map_err(failed)?;
    let Plan { model, donor, target } =
        plan(&state, tool.operand(), tool.operands.get(1).map(String::as_str))?;
    let mut fields = vec![(COPY_FIELD, donor.as_str())];
    fields.extend(target.as_deref().map(|target| (SERVER_FIELD, target)));
    let body = json!({ "model": model });
    pull::send(&tool.settings, address, &body, &fields).map_err(|it| failed(it.reason))
}

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    model: String,
    donor: String,
    /// Who gets it, as the daemon calls it; `None`: it has no choice.
    target: Option<String>,
}

/// Who gives the model, and who gets it.
fn plan(state: &Value, operand: &str, target: Option<&str>) -> Result<Plan, Refused> {
    let machine = &state["machine"];
    let (own, mode) = (word(machine, "name"), word(machine, "mode"));
    let is_own = |name: &str| name.eq_ignore_ascii_case(&own);
    let (has_ollama, is_alone) = (mode != "client", mode == "server");
    let (model, donor) = match split_server(operand) {
        Some((model, donor)) => (model, Some(donor.to_owned())),
        None => (operand, None),
    };
    let other = target.filter(|target| !is_own(target));
    let shown = clean(model);
    if other.is_none() && !has_ollama {
        return Err((
            format!(
                "this machine has no Ollama to copy to; name the server that gets it: ollana cp {shown} SERVER"
            ),
            2,
        ));
    }
    let donor = match donor {
        Some(donor) => donor,
        None if has_ollama && other.is_some() => own.clone(),
        None if is_alone => {
            return Err((format!("who has it? say so: ollana cp {shown}@SERVER"), 2));
        }
        None => holder(state, model, other)?,
    };
    if other.map_or(is_own(&donor), |other| other.eq_ignore_ascii_case(&donor)) {
        let donor = clean(&donor);
        return Err((format!("{donor} would be both who gives {shown} and who gets it"), 2));
    }
    let servers = list(state, "servers");
    let local = servers.iter().find(|server| server["origin"] == "local");
    let local = local.filter(|_| !is_alone).and_then(|server| server["name"].as_str());
    let target = other.or(local).map(str::to_owned);
    let model = spelled(state, model, &donor).unwrap_or_else(|| model.to_owned());
    Ok(Plan { model, donor, target })
}

/// What a server is called where it is talked of.
fn called(server: &Value, state: &Value) -> String {
    match server["origin"] == "local" {
        true => word(&state["machine"], "name"),
        false => name(server),
    }
}

fn is_called(server: &Value, state: &Value, name: &str) -> bool {
    let is_named = called(server, state).eq_ignore_ascii_case(name);
    is_named || words(server, "addresses").iter().any(|address| address == name)
}

/// A name that means this server only: two machines may have the same.
fn handle(server: &Value, state: &Value) -> String {
    let name = called(server, state);
    let namesakes = list(state, "servers").iter().filter(|it| called(it, state) == name).count();
    let is_own = server["origin"] != "local" && name == word(&state["machine"], "name");
    let address = words(server, "addresses").into_iter().next();
    address.filter(|_| namesakes > 1 || is_own || name.is_empty()).unwrap_or(name)
}

fn find<'a>(server: &'a Value, model: &str) -> Option<&'a Value> {
    let wanted = ModelName::parse(model)?;
    let named = |model: &&Value| ModelName::parse(&word(model, "name")).as_ref() == Some(&wanted);
    list(server, "models").iter().find(named)
}

/// The only server that has the model, or any of those that have the same.
fn holder(state: &Value, model: &str, target: Option<&str>) -> Result<String, Refused> {
    let is_target = |server: &Value| match target {
        Some(target) => is_called(server, state, target),
        None => server["origin"] == "local",
    };
    let servers = list(state, "servers").iter();
    let others = servers.filter(|server| server["health"] == "ready" && !is_target(server));
    let holders = others.filter_map(|server| Some((handle(server, state), find(server, model)?)));
    let holders: Vec<(String, &Value)> = holders.collect();
    let shown = clean(model);
    let Some((first, known)) = holders.first() else {
        return Err((format!("no server that is up has {shown}"), 1));
    };
    let is_same = |(_, other): &(String, &Value)| {
        other["digest"].is_string() && other["digest"] == known["digest"]
    };
    if holders.len() > 1 && !holders.iter().all(is_same) {
        let names: Vec<&str> = holders.iter().map(|(name, _)| name.as_str()).collect();
        return Err((
            format!(
                "{} have different versions of {shown}; say which: ollana cp {shown}@{first}",
                names.join(" and ")
            ),
            1,
        ));
    }
    Ok(first.clone())
}

/// The model's name as the donor writes it.
fn spelled(state: &Value, model: &str, donor: &str) -> Option<String> {
    let mut servers = list(state, "servers").iter();
    let server = servers.find(|server| is_called(server, state, donor))?;
    find(server, model)?["name"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(mode: &str) -> Value {
        let model = |name: &str, digest: &str| json!({ "name": name, "digest": digest });
        let server = |name: &str, origin: &str, models: Value| json!({ "name": name, "origin": origin, "health": "ready", "models": models });
        json!({
            "machine": { "name": "laptop", "mode": mode },
            "servers": [
                server("127.0.0.1:11438", "local", json!([model("own:1b", "a")])),
                server("desktop", "discovered", json!([model("Alpha:latest", "a"), model("beta:1b", "b")])),
                server("nas", "discovered", json!([model("alpha:latest", "a"), model("beta:1b", "c")])),
                json!({ "name": "attic", "health": "down", "models": [model("gone:1b", "d")] }),
            ],
        })
    }

    #[test]
    fn who_gives_and_who_gets_it() {
        let some = |text: &str| Some(text.to_owned());
        let own = some("127.0.0.1:11438");
        for (mode, model, target, want) in [
            ("client", "alpha@desktop", Some("nas"), ("Alpha:latest", "desktop", some("nas"))),
            ("client", "alpha", Some("nas"), ("Alpha:latest", "desktop", some("nas"))),
            ("client", "beta:1b@NAS", Some("elsewhere"), ("beta:1b", "NAS", some("elsewhere"))),
            ("client", "new@elsewhere", Some("nas"), ("new", "elsewhere", some("nas"))),
            ("both", "alpha@desktop", None, ("Alpha:latest", "desktop", own.clone())),
            ("both", "alpha@desktop", Some("Laptop"), ("Alpha:latest", "desktop", own.clone())),
            ("both", "alpha", None, ("Alpha:latest", "desktop", own)),
            ("both", "own:1b", Some("nas"), ("own:1b", "laptop", some("nas"))),
            ("server", "alpha@desktop", None, ("Alpha:latest", "desktop", None)),
            ("server", "own:1b", Some("nas"), ("own:1b", "laptop", some("nas"))),
            ("server", "alpha@desktop", Some("nas"), ("Alpha:latest", "desktop", some("nas"))),
        ] {
            let (name, donor, to) = want;
            let want = Plan { model: name.to_owned(), donor: donor.to_owned(), target: to };
            assert_eq!(plan(&state(mode), model, target), Ok(want), "{mode} {model} {target:?}");
        }
    }

    #[test]
    fn what_can_not_be_meant() {
        for (mode, model, target, code, want) in [
            ("client", "alpha@desktop", None, 2, "has no Ollama to copy to"),
            ("client", "alpha@desktop", Some("laptop"), 2, "has no Ollama to copy to"),
            ("client", "alpha@desktop", Some("Desktop"), 2, "both who gives"),
            ("client", "beta:1b", Some("elsewhere"), 1, "desktop and nas have different versions"),
            ("client", "gone:1b", Some("nas"), 1, "no server that is up has gone:1b"),
            ("both", "own:1b@laptop", None, 2, "both who gives"),
            ("both", "gamma", None, 1, "no server that is up has gamma"),
            ("server", "alpha", None, 2, "who has it?"),
            ("server", "alpha@laptop", None, 2, "both who gives"),
        ] {
            let (reason, got) = plan(&state(mode), model, target).expect_err(model);
            assert!(got == code && reason.contains(want), "{mode} {model} {target:?}: {reason}");
        }
    }
}
