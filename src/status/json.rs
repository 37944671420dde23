//! `/ollana/status`: the state as JSON, version 1. Members are only ever added.
//!
//! ```text
//! version    1
//! ollana     this program's version
//! machine    name, mode, why, listen [..], discovery, uptime_s, keys (machines it is paired with),
//!            unpaired: whether it talks to machines without a key, in clear; advice: what to set;
//!            awake {kept: whether the system is told not to sleep, as there is work; problem};
//!            share_models {with: on|paired|off, problem: why the store can't be read}: of a server
//! tokens     [{name, requests, last_s: since the last of them}]: since the start; of this machine
//! aliases    [{name, models [..]: that it stands for, model: the one for now; null if no server that
//!            is up has one of them}]
//! limits     connections [{now, most_of_one, max, max_per_source}] for each proxy, the client's
//!            first; head_s, idle_s, body_s, stall_s, queue_s: timeouts
//! ready      whether requests can be served
//! warnings   [sentence ..]
//! queue      length, longest_wait_s, last_wait_s, waits
//! totals     requests, in_flight, tokens, bytes_up, bytes_down, retries, failures {cause: n}
//! servers    [{id, name, origin, given, addresses [..], health: new|ready|down, reason, since_s,
//!            trust: known|new|contested|held_back, contest, encrypted: the hop to it; null for
//!            this machine's own, plain: whether it is an Ollama without ollana, rest: null|busy|ejected, rest_s, round_trip_ms, ollama,
//!            in_flight, limit, first_byte_ms, requests, failures, tokens, tokens_per_s, bytes_up, bytes_down,
//!            room_bytes, cloud: whether its Ollama lets models run in the cloud; null where it
//!            doesn't say or lists none of those, model_count, models [{name, size, digest,
//!            modified_at, kind, capabilities [word ..]: those that Ollama 0.33 knows; null where
//!            its server doesn't say, loaded, size_vram: of size_loaded, on a graphics card,
//!            expires_at, context_length: that it is loaded with, tokens_per_s}], models_problem:
//!            what is wrong with its lists; null if nothing is, history {tokens_per_s [..],
//!            in_flight [..]}}]
//! away       [{name, address, id: of the entry in servers, if there is one, since_s, model_count,
//!            models [..]}]: remembered servers that can't be used now
//! history    step_s, requests [..], queue [..]: oldest first, the last minutes
//! transfers  [{kind, name, server, is_here: that is this machine's Ollama, state, done, total,
//!            bytes_per_s, seconds, left_s: for the layer, from: the server that gives a pull's
//!            bytes; null: the registry, names_layers: whether its lines name layers, so that
//!            others can be asked for them}]
//! shared     bytes of models since the start: registry, servers [{name, bytes}]: from whom this
//!            machine's pulls got them; saved: what they did not need the registry for;
//!            saved_in_house: this machine and the servers together; given: to other machines
//! failures   [{ago_s, status, cause, method, path, reason}], newest first
//! changes    [{ago_s, what, server, detail}], newest first
//! ```
//!
//! What isn't known is `null`. `?brief` leaves out models that are only on disk.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::View;
use crate::counters::{CAUSES, Counter, Failure, Transfer, Usage, Words};
use crate::manager::About;
use crate::manager::pool::history::STEP;
use crate::manager::pool::{AwayNow, Backend, Known, Models, QUARANTINED, ServerNow, Transition};
use crate::net::untrusted_text::printable;
use crate::ollama::inventory::Model;

/// Everything, or all but the models that are only on disk.
pub(crate) fn write(view: &View<'_>, all_models: bool) -> Value {
    let View { about, snapshot, counters, now, .. } = view;
    let in_flight: u32 = snapshot.servers.iter().map(|server| server.backend.load.in_flight).sum();
    let failures = CAUSES.into_iter().zip(counters.failures()).filter(|(_, count)| *count > 0);
    let retries: u64 = counters.retries.iter().map(Counter::value).sum();
    let age = |at: Instant| snapshot.sleeps.age(at, *now);
    let failed = |failure: &Failure| {
        let Failure { at, status, cause, method, path, reason } = failure;
        let status = (*status > 0).then_some(status);
        json!({
            "ago_s": seconds(age(*at)),
            "status": status, "cause": cause, "method": method, "path": path, "reason": reason,
        })
    };
    json!({
        "version": 1,
        "ollana": env!("CARGO_PKG_VERSION"),
        "machine": {
            "name": about.name, "mode": about.mode, "why": about.why,
            "listen": about.listen, "discovery": about.discovery,
            "uptime_s": age(about.started).as_secs(),
            "keys": view.keyring.keys().len(), "unpaired": view.keyring.takes_unpaired(),
            "advice": view.advice,
            "share_models": about.library.as_ref().map(|library| json!({
                "with": about.share_models.word(), "problem": library.problem(),
            })),
            "awake": { "kept": view.awake.0, "problem": view.awake.1.as_deref().map(printable) },
        },
        "tokens": view.keyring.tokens.all().iter().map(|known| json!({
            "name": known.token.name, "requests": known.requests,
            "last_s": known.last.map(|at| seconds(age(at))),
        })).collect::<Value>(),
        "aliases": snapshot.aliases.iter().map(|(alias, model)| json!({
            "name": alias.label, "model": model,
            "models": alias.models.iter().map(|(label, _)| label).collect::<Vec<_>>(),
        })).collect::<Value>(),
        "limits": limits(about),
        "ready": view.is_ready,
        "warnings": view.warnings(),
        "queue": {
            "length": snapshot.waiting,
            "longest_wait_s": snapshot.longest_wait.map(seconds),
            "last_wait_s": snapshot.last_wait.map(seconds),
            "waits": counters.queue_wait.buckets().iter().sum::<u64>(),
        },
        "totals": {
            "requests": counters.requests_in_all(), "in_flight": in_flight,
            "tokens": counters.all.tokens.value(),
            "bytes_up": counters.all.bytes_up.value(),
            "bytes_down": counters.all.bytes_down.value(),
            "retries": retries, "failures": failures.collect::<Value>(),
        },
        "servers": snapshot.servers.iter().map(|s| server(s, view, all_models)).collect::<Value>(),
        "away": snapshot.away.iter().map(|it| away(it, all_models)).collect::<Value>(),
        "history": {
            "step_s": STEP.as_secs(),
            "requests": snapshot.history.requests.values().collect::<Vec<_>>(),
            "queue": snapshot.history.queue.values().collect::<Vec<_>>(),
        },
        "transfers": counters.transfers.all().iter().map(|t| transfer(t, view)).collect::<Vec<_>>(),
        "shared": shared(view),
        "failures": counters.recent_failures().iter().map(failed).collect::<Vec<_>>(),
        "changes": snapshot.transitions.iter().map(|(ago, t)| change(*ago, t)).collect::<Vec<_>>(),
    })
}

fn limits(about: &About) -> Value {
    let connections = about.connections.iter().map(|proxy| {
        let Usage { connections, most_of_one, max, max_per_source } = proxy.usage();
        json!({
            "now": connections, "most_of_one": most_of_one,
            "max": max, "max_per_source": max_per_source,
        })
    });
    let timing = &about.timing;
    json!({
        "connections": connections.collect::<Value>(),
        "head_s": seconds(timing.head_timeout), "idle_s": seconds(timing.idle_timeout),
        "body_s": seconds(timing.body_timeout), "stall_s": seconds(timing.stall_timeout),
        "queue_s": seconds(timing.queue_timeout),
    })
}

fn server(server: &ServerNow, view: &View<'_>, all_models: bool) -> Value {
    let history = &view.snapshot.history;
    let Backend { id, addresses, claims, health, load, models, tally, .. } = &server.backend;
    let trust = match &claims.conflict {
        Some(conflict) if conflict.is_quarantined => QUARANTINED,
        Some(conflict) if !conflict.is_settled => "contested",
        _ if claims.is_newcomer => "new",
        _ => "known",
    };
    let course = history.servers.get(id).cloned().unwrap_or_default();
    let per_second = |n: u32| round(f64::from(n) / STEP.as_secs_f64(), 10.0);
    let tokens: Vec<f64> = course.0.values().map(per_second).collect();
    let in_flight: Vec<u32> = course.1.values().collect();
    let inventory = models.inventory.as_ref();
    let known = inventory.map(|inventory| inventory.models());
    let shown = known.as_ref().map(|known| {
        let known = known.iter().filter(|it| all_models || models.has_loaded(&it.name));
        known.map(|known| model(known, models)).collect::<Value>()
    });
    json!({
        "id": id.0,
        "name": printable(&server.name),
        "origin": server.origin,
        "given": server.given,
        "addresses": addresses.known,
        "health": server.state.health(),
        "reason": health.down_reason().map(printable),
        "since_s": seconds(server.since),
        "trust": trust,
        "contest": claims.conflict.as_ref().map(|conflict| printable(&conflict.reason)),
        "encrypted": view.encrypts(server),
        "plain": server.backend.is_plain(),
        "rest": server.pause.and_then(|(why, _)| why.rest()),
        "rest_s": server.pause.map(|(_, left)| seconds(left)),
        "round_trip_ms": health.round_trip.map(milliseconds),
        "ollama": Some(printable(&health.version)).filter(|version| !version.is_empty()),
        "in_flight": load.in_flight,
        "limit": server.limit,
        "first_byte_ms": load.first_byte.map(milliseconds),
        "requests": tally.requests.value(),
        "failures": tally.failures.value(),
        "tokens": tally.tokens.value(),
        "tokens_per_s": tokens.last().copied().unwrap_or(0.0),
        "bytes_up": tally.bytes_up.value(),
        "bytes_down": tally.bytes_down.value(),
        "room_bytes": inventory.and_then(|inventory| inventory.room),
        "cloud": inventory.and_then(|inventory| inventory.cloud),
        "model_count": known.as_ref().map(Vec::len),
        "models": shown,
        "models_problem": models.problem.as_deref().map(printable),
        "history": { "tokens_per_s": tokens, "in_flight": in_flight },
    })
}

fn away(server: &AwayNow, all_models: bool) -> Value {
    let AwayNow { name, address, backend, since, models } = server;
    let known = models.models();
    let shown = known.iter().filter(|_| all_models);
    json!({
        "name": printable(name),
        "address": address,
        "id": backend.map(|id| id.0),
        "since_s": seconds(*since),
        "model_count": known.len(),
        "models": shown.map(|known| model(known, &Models::default())).collect::<Value>(),
    })
}

/// Servers that nothing is known of any more.
pub(crate) fn forgotten(servers: &[Known]) -> Value {
    let server = |known: &Known| {
        let models = known.had.as_ref().map(|had| had.models.len());
        json!({ "name": printable(&known.name), "address": known.address, "model_count": models })
    };
    servers.iter().map(server).collect()
}

fn model(model: &Model, known: &Models) -> Value {
    let loaded = model.loaded.clone().unwrap_or_default();
    let given = |n: u64| (n > 0).then_some(n);
    let expires = Some(printable(&loaded.expires_at)).filter(|at| !at.is_empty());
    json!({
        "name": printable(&model.label),
        "size": given(model.size),
        "digest": Some(printable(&model.digest)).filter(|digest| !digest.is_empty()),
        "modified_at": Some(printable(&model.modified_at)).filter(|at| !at.is_empty()),
        "kind": printable(model.kind.join(" ").trim()),
        "capabilities": model.capabilities.map(|all| all.words().collect::<Vec<_>>()),
        "loaded": known.has_loaded(&model.name),
        "size_vram": model.loaded.as_ref().map(|loaded| loaded.size_vram),
        "size_loaded": given(loaded.size),
        "expires_at": expires,
        "context_length": given(loaded.context_length),
        "tokens_per_s": known.speeds.get(&model.name).map(|speed| round(*speed, 10.0)),
    })
}

fn transfer(transfer: &Transfer, view: &View<'_>) -> Value {
    let (done, total) = transfer.progress();
    let Words { server, is_here, state, from, names_layers } = transfer.words();
    let speed = transfer.bytes_per_s(view.now);
    let left = total.saturating_sub(done).checked_div(speed).filter(|_| total > 0);
    json!({
        "kind": transfer.kind, "name": transfer.name, "server": server, "is_here": is_here,
        "state": state,
        "from": Some(from).filter(|from| !from.is_empty()), "names_layers": names_layers,
        "done": done, "total": (total > 0).then_some(total),
        "bytes_per_s": speed, "left_s": left,
        "seconds": view.snapshot.sleeps.age(transfer.since, view.now).as_secs(),
    })
}

fn shared(view: &View<'_>) -> Value {
    let sources = &view.counters.transfers.sources;
    let server = |(name, bytes)| json!({ "name": name, "bytes": bytes });
    json!({
        "registry": sources.registry.value(),
        "servers": sources.servers().into_iter().map(server).collect::<Value>(),
        "saved": sources.saved.value(), "saved_in_house": view.saved_in_house(),
        "given": sources.given.value(),
    })
}

fn change(ago: Duration, transition: &Transition) -> Value {
    let (what, server, detail) = match transition {
        Transition::Up { name, version, .. } => ("up", name, format!("Ollama {version}")),
        Transition::Down { name, reason } => ("down", name, reason.clone()),
        Transition::OutlierEjected { name, model, pause } => {
            let model = model.as_ref().map(|model| format!(" for {}", model.as_str()));
            let (model, pause) = (model.unwrap_or_default(), pause.as_secs());
            ("rests", name, format!("requests{model} failed; others are asked first for {pause} s"))
        }
        Transition::Lists { name, problem } => {
            ("models", name, problem.clone().unwrap_or("complete".to_owned()))
        }
        Transition::Forgotten { name } => ("forgotten", name, String::new()),
        Transition::Moved { name, address } => ("moved", name, format!("to {address}")),
        Transition::IdentityConflict { name, reason, is_quarantined, .. } => {
            let what = if *is_quarantined { "; gets no requests" } else { "" };
            ("contested", name, format!("{reason}{what}"))
        }
        Transition::Refused { address } => ("refused", &String::new(), format!("{address}")),
    };
    json!({ "ago_s": seconds(ago), "what": what, "server": printable(server), "detail": printable(&detail) })
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn seconds(time: Duration) -> f64 {
    round(time.as_secs_f64(), 10.0)
}

fn milliseconds(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1e3, 100.0)
}
