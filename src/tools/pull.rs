//! `ollana pull MODEL`: a pull by way of the daemon of this machine, which knows who in the LAN has the
//! bytes. What happens is decided there; this sends the request and draws the answer.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use http::HeaderName;
use serde_json::{Value, json};

use super::progress::Progress;
use super::status::name;
use super::table::{clean, list, word};
use super::{complain, daemon};
use crate::cli::Tool;
use crate::config::Settings;
use crate::http::fields::{FROM_FIELD, SERVER_FIELD};
use crate::ollama::errors::tells_unreached_registry;
use crate::ollama::model_name::ModelName;
use crate::ollama::pull::{advice, split_server};
use crate::upstream;

/// A line of an answer; Ollama's have two hundred bytes.
const MOST_OF_LINE: u64 = 64 << 10;

pub(super) fn run(tool: &Tool) -> ExitCode {
    let model = tool.operand();
    let from = tool.value("from").unwrap_or("any");
    if from.is_empty() {
        return complain("--from takes internet, any or the name of a server", 2);
    }
    match pull(&tool.settings, model, from) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => complain(&reason, 1),
    }
}

fn pull(settings: &Settings, model: &str, from: &str) -> Result<(), String> {
    let (address, state) = daemon::state(settings, "/ollana/status?brief")?;
    let machine = &state["machine"];
    let model = match split_server(model) {
        Some((model, server)) if machine["mode"] == "server" => {
            if !server.eq_ignore_ascii_case(&word(machine, "name")) {
                return Err(format!(
                    "the ollana of this machine only shares its own Ollama: run this on {0}, or copy \
                     what is here there with: ollana cp {model} {0}",
                    clean(server)
                ));
            }
            model
        }
        _ => model,
    };
    let body = json!({ "model": model });
    let failed = match send(settings, address, &body, &[(FROM_FIELD, from)]) {
        Ok(()) => return Ok(()),
        Err(failed) => failed,
    };
    let holder = (failed.is_unreached_registry())
        .then(|| holder(settings, model, failed.server.as_deref()))
        .flatten();
    Err(match holder {
        Some(advice) => format!("{advice} ({})", failed.reason),
        None => failed.reason,
    })
}

/// Who of the house has a model that the registry doesn't give, and what to do.
fn holder(settings: &Settings, model: &str, target: Option<&str>) -> Option<String> {
    let plain = split_server(model).map_or(model, |(model, _)| model);
    let wanted = ModelName::parse(plain)?;
    let (_, state) = daemon::state(settings, "/ollana/status").ok()?;
    let machine = word(&state["machine"], "name");
    let called = |server: &Value| match word(server, "origin").as_str() {
        "local" => machine.clone(),
        _ => name(server),
    };
    let has = |server: &&Value| {
        let mut models = list(server, "models").iter().map(|model| word(model, "name"));
        let is_target = target.is_some_and(|target| called(server).eq_ignore_ascii_case(target));
        !is_target
            && server["health"] == "ready"
            && models.any(|model| ModelName::parse(&model).as_ref() == Some(&wanted))
    };
    let holder = called(list(&state, "servers").iter().find(has)?);
    let place = target.filter(|target| !target.eq_ignore_ascii_case(&machine));
    let place = place.map(clean);
    Some(advice(&clean(plain), &holder, place.as_deref()))
}

/// Why a pull failed.
pub(super) struct Failed {
    pub(super) reason: String,
    /// The server that said so, if it is known.
    server: Option<String>,
}

impl Failed {
    /// Whether the registry wasn't reached, and nobody has said yet who has the model.
    fn is_unreached_registry(&self) -> bool {
        tells_unreached_registry(&self.reason) && !self.reason.contains("ollana cp ")
    }
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Failed { reason, server: None }
    }
}

/// Sends a pull and draws its lines until its end.
pub(super) fn send(
    settings: &Settings,
    address: SocketAddr,
    body: &Value,
    fields: &[(HeaderName, &str)],
) -> Result<(), Failed> {
    let answer = upstream::post(&settings.timing, address, "/api/pull", fields, &body.to_string())?;
    let server = answer.headers().get(SERVER_FIELD).and_then(|name| name.to_str().ok());
    let server = server.map(clean);
    let status = answer.status();
    let failed = |reason: String| Failed { reason, server: server.clone() };
    let mut answer = BufReader::new(answer.into_body());
    if !status.is_success() {
        let mut text = String::new();
        let _ = answer.take(MOST_OF_LINE).read_to_string(&mut text);
        let error = word(&serde_json::from_str(&text).unwrap_or_default(), "error");
        let error = if error.is_empty() { format!("answered {status}") } else { error };
        return Err(failed(error));
    }
    let mut progress = Progress::new();
    let end = follow(&mut answer, &mut progress);
    progress.end();
    end.map_err(failed)
}

fn follow(answer: &mut impl BufRead, progress: &mut Progress) -> Result<(), String> {
    let mut is_done = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = answer.by_ref().take(MOST_OF_LINE).read_until(b'\n', &mut line);
        match n {
            Ok(0) if is_done => return Ok(()),
            Ok(0) => return Err("the pull ended without success".to_owned()),
            Ok(_) => {}
            // The connection may end in any way behind the last line.
            Err(_) if is_done => return Ok(()),
            Err(error) => {
                return Err(format!("the pull broke off: {}", upstream::describe_io(&error)));
            }
        }
        let line: Value = serde_json::from_slice(&line).unwrap_or_default();
        let error = line.get("error").map(|error| error.as_str().unwrap_or("failed"));
        if let Some(error) = error {
            return Err(clean(error));
        }
        progress.take(&line, Instant::now());
        is_done = line["status"] == "success";
    }
}
