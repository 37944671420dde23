//! Inference: whose turn it is, and how each path streams its tokens.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::{Gate, PATIENCE, lock};
use super::body::Fields;
use super::names::{Name, Reference, Source};
use super::reply::{Dialect, Reply, quoted};
use super::{Machine, Model, World, account};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Generate,
    Chat,
    Embed,
    Embeddings,
    OpenAiChat,
    OpenAiCompletion,
    OpenAiEmbeddings,
    Responses,
    Messages,
    Transcription,
}

impl Kind {
    /// What Ollama makes of the request before its own handler sees it; `None` if that is all.
    fn refusal(self, fields: &Fields) -> Option<String> {
        let is_missing = |name| fields.get(name).is_none();
        match self {
            Kind::OpenAiChat if fields.is_empty("messages") => {
                Some("[] is too short - 'messages'".to_owned())
            }
            Kind::OpenAiEmbeddings
                if is_missing("input")
                    || fields.get("input").is_some_and(|input| *input == json!([])) =>
            {
                Some("invalid input".to_owned())
            }
            Kind::Messages if fields.is_empty("model") => Some("model is required".to_owned()),
            Kind::Messages
                if fields.get("max_tokens").and_then(Value::as_i64).unwrap_or(0) <= 0 =>
            {
                Some("max_tokens is required and must be positive".to_owned())
            }
            Kind::Messages if fields.is_empty("messages") => {
                Some("messages is required".to_owned())
            }
            _ => None,
        }
    }

    fn is_embedding(self) -> bool {
        matches!(self, Kind::Embed | Kind::Embeddings | Kind::OpenAiEmbeddings)
    }

    fn not_found(self, model: &str) -> String {
        if self.is_embedding() {
            format!("model {} not found, try pulling it first", quoted(model))
        } else {
            format!("model '{model}' not found")
        }
    }
}

/// What a request asks for.
struct Ask {
    kind: Kind,
    /// As the request calls it.
    model: String,
    streams: bool,
    has_logprobs: bool,
    includes_usage: bool,
    tokens: usize,
    prompt_tokens: usize,
    token_takes: Duration,
    calls_tool: bool,
    hold: Option<Gate>,
    remote: Option<String>,
}

/// Answers a request for inference.
pub(super) fn serve(machine: &Machine, reply: &mut Reply<'_, '_>, kind: Kind, fields: &Fields) {
    let model = match fields.text("model") {
        Ok(model) => model,
        Err(error) => return reply.error(400, &error),
    };
    reply.model = Some(model.clone()).filter(|model| !model.is_empty());
    let is_compatible = reply.dialect != Dialect::Ollama;
    let searches = searches_web(kind, fields);
    // The middleware of the cloud looks at the raw body, and before everybody else.
    let explicit = fields.exact("model").and_then(Value::as_str).map(Reference::parse);
    let passes = kind != Kind::Transcription && is_compatible && !searches;
    if passes && matches!(&explicit, Some(Ok(reference)) if is_valid_cloud(reference)) {
        return at_cloud(machine, reply, kind, fields, model);
    }
    if let Some(refusal) = kind.refusal(fields) {
        return reply.error(400, &refusal);
    }
    let reference = match Reference::parse(&model) {
        Ok(reference) if reference.name().is_valid() => reference,
        Ok(_) => return reply.error(400, "invalid model name"),
        Err(error) if error.starts_with("use either") => return reply.error(400, &error),
        Err(_) if matches!(kind, Kind::Generate | Kind::OpenAiCompletion | Kind::Embed) => {
            return reply.error(404, &format!("model '{model}' not found"));
        }
        Err(_) => return reply.error(400, "model is required"),
    };
    if reference.source == Source::Cloud {
        return at_cloud(machine, reply, kind, fields, model);
    }
    let found = machine.world(|world| world.find(&reference.name()).cloned());
    let is_stub = found.as_ref().is_some_and(|found| found.remote_model.is_some());
    let Some(found) = found.filter(|_| !(is_stub && reference.source == Source::Local)) else {
        return reply.error(404, &kind.not_found(&model));
    };
    let prompt = if matches!(kind, Kind::Generate) { "prompt" } else { "messages" };
    let is_empty = matches!(kind, Kind::Generate | Kind::Chat) && fields.is_empty(prompt);
    if is_empty && fields.unloads() && !(is_stub && kind == Kind::Generate) {
        machine.world(|world| unload(world, &found));
        return reply.json(200, last_line(&model, kind, "unload"));
    }
    if is_stub {
        return at_cloud(machine, reply, kind, fields, model);
    }
    if let Some((status, refusal)) = unable(kind, fields, &found) {
        return reply.error(status, &refusal);
    }
    let Some(_slot) = slot(machine, reply) else { return };
    let loading = machine.world(|world| world.loading.clone());
    if !pass(reply, loading.as_ref(), "a model to be loaded") {
        return cancelled(reply);
    }
    machine.world(|world| {
        unload(world, &found);
        world.loaded.insert(0, found.name.clone());
    });
    if is_empty {
        return reply.json(200, last_line(&model, kind, "load"));
    }
    if searches {
        reply.used_account = machine.world(|world| !world.cloud_disabled);
    }
    run(reply, &ask(machine, kind, fields, model, None));
    if fields.unloads() {
        machine.world(|world| unload(world, &found));
    }
}

/// Why the model can't do what is asked of it: tools, the scheduler refuses; images, its runner does.
fn unable(kind: Kind, fields: &Fields, model: &Model) -> Option<(u16, String)> {
    let is_chat = matches!(kind, Kind::Chat | Kind::OpenAiChat | Kind::Responses | Kind::Messages);
    let has_some = |name| matches!(fields.get(name), Some(Value::Array(all)) if !all.is_empty());
    let lacks = |word| !model.capabilities.contains(&word);
    if is_chat && has_some("tools") && lacks("tools") {
        let name = &model.name;
        return Some((400, format!("registry.ollama.ai/library/{name} does not support tools")));
    }
    let messages = ["messages", "input"].map(|name| fields.get(name).is_some_and(shows_image));
    let has_images = messages.contains(&true) || (kind == Kind::Generate && has_some("images"));
    let refusal = "Multimodal data provided, but model does not support multimodal requests.";
    (has_images && lacks("vision")).then(|| (500, refusal.to_owned()))
}

fn shows_image(value: &Value) -> bool {
    match value {
        Value::Array(all) => all.iter().any(shows_image),
        Value::Object(members) => {
            let is_image = |(name, value): (&String, &Value)| match name.as_str() {
                "images" => value.as_array().is_some_and(|all| !all.is_empty()),
                "type" => {
                    let kind = value.as_str().unwrap_or_default();
                    ["image", "image_url", "input_image"].contains(&kind)
                }
                _ => shows_image(value),
            };
            members.iter().any(is_image)
        }
        _ => false,
    }
}

fn is_valid_cloud(reference: &Reference) -> bool {
    reference.source == Source::Cloud && reference.name().is_valid()
}

/// Whether a request offers its model the search in the web, which goes by the owner's account.
fn searches_web(kind: Kind, fields: &Fields) -> bool {
    let tools = fields.get("tools").and_then(Value::as_array);
    let is_search = |tool: &Value| {
        tool["type"].as_str().is_some_and(|kind| kind.trim().starts_with("web_search"))
    };
    matches!(kind, Kind::Responses | Kind::Messages)
        && tools.is_some_and(|tools| tools.iter().any(is_search))
}

/// Inference at ollama.com takes no turn of this machine.
fn at_cloud(
    machine: &Machine,
    reply: &mut Reply<'_, '_>,
    kind: Kind,
    fields: &Fields,
    model: String,
) {
    if account::reaches_cloud(machine, reply, account::INFERENCE) {
        let reference = Reference::parse(&model).ok();
        let remote = reference.map_or(model.clone(), |reference| reference.base);
        run(reply, &ask(machine, kind, fields, model, Some(remote)));
    }
}

fn ask(
    machine: &Machine,
    kind: Kind,
    fields: &Fields,
    model: String,
    remote: Option<String>,
) -> Ask {
    let is_ollama = matches!(kind, Kind::Generate | Kind::Chat);
    let streams = fields.flag("stream").unwrap_or(is_ollama) && kind != Kind::Transcription;
    let usage = fields.get("stream_options").map(|options| &options["include_usage"]);
    machine.world(|world| Ask {
        kind,
        model,
        streams: streams && !kind.is_embedding(),
        has_logprobs: fields.flag("logprobs").unwrap_or(false),
        includes_usage: usage == Some(&Value::Bool(true)),
        tokens: world.tokens,
        prompt_tokens: world.prompt_tokens,
        token_takes: world.token_takes,
        calls_tool: world.calls_tool,
        hold: world.hold.clone(),
        remote,
    })
}

fn unload(world: &mut World, model: &Model) {
    let name = Name::parse(&model.name);
    world.loaded.retain(|other| Name::parse(other) != name);
}

/// The turn of a request; given back when it is dropped.
struct Slot<'m>(&'m Machine);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        lock(&self.0.load).running -= 1;
        self.0.freed.notify_all();
    }
}

/// Waits for a turn; none when too many wait already, or when the client leaves.
fn slot<'m>(machine: &'m Machine, reply: &mut Reply<'_, '_>) -> Option<Slot<'m>> {
    let limits = || machine.world(|world| (world.parallel, world.queue));
    let (mut parallel, queue) = limits();
    let mut load = lock(&machine.load);
    if load.running >= parallel {
        if load.waiting >= queue {
            drop(load);
            reply.error(503, "server busy, please try again.  maximum pending requests exceeded");
            return None;
        }
        load.waiting += 1;
        while load.running >= parallel {
            if reply.call.has_left() {
                load.waiting -= 1;
                drop(load);
                cancelled(reply);
                return None;
            }
            let waited = machine.freed.wait_timeout(load, LOOK);
            load = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            parallel = limits().0;
        }
        load.waiting -= 1;
    }
    load.running += 1;
    Some(Slot(machine))
}

/// How often a wait looks whether the client is still there.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for a gate; false when the client leaves before it opens.
fn pass(reply: &mut Reply<'_, '_>, gate: Option<&Gate>, awaited: &str) -> bool {
    let Some(gate) = gate else { return !reply.call.has_left() };
    // Hundreds of others may have to come before it opens.
    let deadline = Instant::now() + 3 * PATIENCE;
    while !gate.wait_for(LOOK) {
        if reply.call.has_left() {
            return false;
        }
        assert!(Instant::now() < deadline, "the stand-in waited in vain: {awaited}");
    }
    true
}

/// The client has gone, or has closed its half: Ollama gives the work up, and answers nobody.
fn cancelled(reply: &mut Reply<'_, '_>) {
    if !reply.has_begun() {
        reply.error(499, "request canceled");
    }
    reply.note_cancelled();
    reply.end();
    reply.call.close();
}

const CREATED: &str = "2026-08-21T18:48:22.123456789Z";

fn run(reply: &mut Reply<'_, '_>, ask: &Ask) {
    if !ask.streams {
        if !pass(reply, ask.hold.as_ref(), "the end of a generation") {
            return cancelled(reply);
        }
        let kind =
            if reply.dialect == Dialect::Ollama { super::reply::JSON } else { "application/json" };
        return reply.send(200, &format!("Content-Type: {kind}\r\n"), whole(ask));
    }
    reply.stream(match reply.dialect {
        Dialect::Ollama => "application/x-ndjson",
        _ => "text/event-stream",
    });
    let mut events = Events { ask, number: 0 };
    reply.part(events.start());
    for token in 0..ask.tokens {
        if token > 0 {
            std::thread::sleep(ask.token_takes);
        }
        if token == 1 && !pass(reply, ask.hold.as_ref(), "the rest of a generation")
            || reply.call.has_left()
        {
            return cancelled(reply);
        }
        reply.part(events.token(token));
    }
    reply.part(events.end());
    reply.end();
}

fn text(token: usize) -> String {
    format!("token{token} ")
}

fn all_text(ask: &Ask) -> String {
    (0..ask.tokens).map(text).collect()
}

/// Which model at which host answered, if it wasn't this one.
fn remote(ask: &Ask) -> String {
    ask.remote.as_ref().map_or(String::new(), |remote| {
        format!("\"remote_model\":{},\"remote_host\":\"https://ollama.com\",", quoted(remote))
    })
}

fn metrics(ask: &Ask) -> String {
    format!(
        "\"total_duration\":912345678,\"load_duration\":12345678,\"prompt_eval_count\":{},\
         \"prompt_eval_duration\":98765432,\"eval_count\":{},\"eval_duration\":765432109",
        ask.prompt_tokens, ask.tokens
    )
}

fn logprobs(ask: &Ask, tokens: std::ops::Range<usize>) -> String {
    if !ask.has_logprobs {
        return String::new();
    }
    let each = tokens.map(|token| {
        let text = quoted(&text(token));
        format!("{{\"token\":{text},\"logprob\":-0.25,\"bytes\":[116,111]}}")
    });
    format!(",\"logprobs\":[{}]", each.collect::<Vec<_>>().join(","))
}

/// A line of Ollama's own stream, in the order of its fields: `generate` has what belongs to tokens
/// behind the counts, `chat` before them.
fn line(ask: &Ask, text: &str, logprobs: &str, reason: Option<&str>) -> String {
    let model = quoted(&ask.model);
    let text = quoted(text);
    // Whose arguments look like counts.
    let call = "\"tool_calls\":[{\"function\":{\"index\":0,\"name\":\"look\",\
                \"arguments\":{\"done\":true,\"eval_count\":7}}}]";
    let (in_line, in_message) = match ask.kind {
        _ if reason.is_none() || !ask.calls_tool => (String::new(), String::new()),
        Kind::Generate => (format!(",{call}"), String::new()),
        _ => (String::new(), format!(",{call}")),
    };
    let content = match ask.kind {
        Kind::Generate => format!("\"response\":{text}"),
        _ => format!("\"message\":{{\"role\":\"assistant\",\"content\":{text}{in_message}}}"),
    };
    let counts = reason.map_or(String::new(), |_| format!(",{}", metrics(ask)));
    let done = match reason {
        Some(reason) => format!("\"done\":true,\"done_reason\":\"{reason}\""),
        None => "\"done\":false".to_owned(),
    };
    let rest = match ask.kind {
        Kind::Generate if reason.is_some() => {
            format!(",\"context\":[1,2,3]{counts}{in_line}{logprobs}")
        }
        Kind::Generate => format!("{counts}{logprobs}"),
        _ => format!("{logprobs}{counts}"),
    };
    let remote = remote(ask);
    format!("{{\"model\":{model},{remote}\"created_at\":\"{CREATED}\",{content},{done}{rest}}}\n")
}

/// The answer to a request that only loads or unloads.
fn last_line(model: &str, kind: Kind, reason: &str) -> String {
    let model = quoted(model);
    let content = match kind {
        Kind::Generate => "\"response\":\"\"",
        _ => "\"message\":{\"role\":\"assistant\",\"content\":\"\"}",
    };
    format!(
        "{{\"model\":{model},\"created_at\":\"{CREATED}\",{content},\"done\":true,\
         \"done_reason\":\"{reason}\"}}"
    )
}

/// The answer in one piece.
fn whole(ask: &Ask) -> String {
    let model = quoted(&ask.model);
    let (input, output) = (ask.prompt_tokens, ask.tokens);
    let total = input + output;
    let text = quoted(&all_text(ask));
    let usage = format!(
        "\"usage\":{{\"prompt_tokens\":{input},\"completion_tokens\":{output},\
         \"total_tokens\":{total}}}"
    );
    match ask.kind {
        Kind::Generate | Kind::Chat => {
            line(ask, &all_text(ask), &logprobs(ask, 0..ask.tokens), Some("stop"))
        }
        Kind::Embed => format!(
            "{{\"model\":{model},\"embeddings\":[[0.6,0.8]],\"total_duration\":14143917,\
             \"load_duration\":1019500,\"prompt_eval_count\":{input}}}"
        ),
        Kind::Embeddings => "{\"embedding\":[0.6000000238418579,0.800000011920929]}".to_owned(),
        Kind::OpenAiEmbeddings => format!(
            "{{\"object\":\"list\",\"data\":[{{\"object\":\"embedding\",\"embedding\":[0.6,0.8],\
             \"index\":0}}],\"model\":{model},\"usage\":{{\"prompt_tokens\":{input},\
             \"total_tokens\":{input}}}}}\n"
        ),
        Kind::OpenAiChat => format!(
            "{{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion\",\"created\":1787338102,\
             \"model\":{model},\"system_fingerprint\":\"fp_ollama\",\"choices\":[{{\"index\":0,\
             \"message\":{{\"role\":\"assistant\",\"content\":{text}}},\
             \"finish_reason\":\"stop\"}}],{usage}}}\n"
        ),
        Kind::OpenAiCompletion => format!(
            "{{\"id\":\"cmpl-7\",\"object\":\"text_completion\",\"created\":1787338102,\
             \"model\":{model},\"system_fingerprint\":\"fp_ollama\",\"choices\":[{{\"text\":{text},\
             \"index\":0,\"finish_reason\":\"stop\"}}],{usage}}}\n"
        ),
        Kind::Responses => format!("{}\n", response(ask, "completed")),
        Kind::Messages => format!(
            "{{\"id\":\"msg_7\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\
             \"content\":[{{\"type\":\"text\",\"text\":{text}}}],\"stop_reason\":\"end_turn\",\
             \"usage\":{{\"input_tokens\":{input},\"output_tokens\":{output}}}}}\n"
        ),
        Kind::Transcription => format!("{{\"text\":{}}}\n", quoted(all_text(ask).trim())),
    }
}

/// The object that events of `/v1/responses` carry; Go writes maps in the order of their names.
fn response(ask: &Ask, status: &str) -> Value {
    let is_done = status == "completed";
    let usage = json!({
        "input_tokens": ask.prompt_tokens,
        "output_tokens": ask.tokens,
        "total_tokens": ask.prompt_tokens + ask.tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    });
    json!({
        "id": "resp_7", "object": "response", "created_at": 1_787_338_102,
        "completed_at": is_done.then_some(1_787_338_103), "status": status,
        "incomplete_details": null, "model": ask.model, "previous_response_id": null,
        "instructions": null, "output": if is_done { vec![message(ask)] } else { Vec::new() },
        "error": null, "tools": [], "tool_choice": "auto", "truncation": "disabled",
        "parallel_tool_calls": true, "text": {"format": {"type": "text"}}, "top_p": 1.0,
        "presence_penalty": 0, "frequency_penalty": 0, "top_logprobs": 0, "temperature": 1.0,
        "reasoning": null, "usage": is_done.then_some(usage), "max_output_tokens": null,
        "max_tool_calls": null, "store": false, "background": false, "service_tier": "default",
        "metadata": {}, "safety_identifier": null, "prompt_cache_key": null,
    })
}

fn content(ask: &Ask) -> Value {
    json!({"type": "output_text", "text": all_text(ask), "annotations": [], "logprobs": []})
}

fn message(ask: &Ask) -> Value {
    json!({"id": "msg_7", "type": "message", "status": "completed", "role": "assistant",
           "content": [content(ask)]})
}

/// The events of one stream.
struct Events<'a> {
    ask: &'a Ask,
    /// Of the next event of `/v1/responses`.
    number: usize,
}

impl Events<'_> {
    /// What comes with the first token.
    fn start(&mut self) -> String {
        let model = quoted(&self.ask.model);
        let input = self.ask.prompt_tokens;
        match self.ask.kind {
            Kind::Messages => format!(
                "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\
                 \"id\":\"msg_7\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\
                 \"content\":[],\"usage\":{{\"input_tokens\":{input},\"output_tokens\":0}}}}}}\n\n\
                 event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":0,\
                 \"content_block\":{{\"type\":\"text\",\"text\":\"\"}}}}\n\n"
            ),
            Kind::Responses => {
                let part = json!({"type": "output_text", "text": "", "annotations": [],
                                  "logprobs": []});
                let item = json!({"id": "msg_7", "type": "message", "status": "in_progress",
                                  "role": "assistant", "content": []});
                let begun = json!({"response": response(self.ask, "in_progress")});
                [
                    self.event("response.created", begun.clone()),
                    self.event("response.in_progress", begun),
                    self.event(
                        "response.output_item.added",
                        json!({"output_index": 0, "item": item}),
                    ),
                    self.event(
                        "response.content_part.added",
                        json!({"item_id": "msg_7", "output_index": 0, "content_index": 0,
                               "part": part}),
                    ),
                ]
                .concat()
            }
            _ => String::new(),
        }
    }

    fn token(&mut self, token: usize) -> String {
        let ask = self.ask;
        let word = quoted(&text(token));
        match ask.kind {
            Kind::Messages => format!(
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
                 \"delta\":{{\"type\":\"text_delta\",\"text\":{word}}}}}\n\n"
            ),
            Kind::Responses => self.event(
                "response.output_text.delta",
                json!({"item_id": "msg_7", "output_index": 0, "content_index": 0,
                       "delta": text(token), "logprobs": []}),
            ),
            Kind::OpenAiChat => {
                let role = if token == 0 { "\"role\":\"assistant\"," } else { "" };
                let content = if ask.has_logprobs {
                    let probs = logprobs(ask, token..token + 1).replacen("logprobs", "content", 1);
                    format!(",\"logprobs\":{{{}}}", &probs[1..])
                } else {
                    String::new()
                };
                self.chunk(&format!(
                    "{{\"index\":0,\"delta\":{{{role}\"content\":{word}}},\
                     \"finish_reason\":null{content}}}"
                ))
            }
            Kind::OpenAiCompletion => {
                self.chunk(&format!("{{\"text\":{word},\"index\":0,\"finish_reason\":null}}"))
            }
            _ => line(ask, &text(token), &logprobs(ask, token..token + 1), None),
        }
    }

    fn end(&mut self) -> String {
        let ask = self.ask;
        let (input, output) = (ask.prompt_tokens, ask.tokens);
        match ask.kind {
            Kind::Messages => format!(
                "event: content_block_stop\ndata: {{\"type\":\"content_block_stop\",\"index\":0}}\
                 \n\nevent: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\
                 \"stop_reason\":\"end_turn\"}},\"usage\":{{\"input_tokens\":{input},\
                 \"output_tokens\":{output}}}}}\n\n\
                 event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"
            ),
            Kind::Responses => {
                let at = json!({"item_id": "msg_7", "output_index": 0, "content_index": 0});
                let with = |name: &str, value: Value| {
                    let mut data = at.clone();
                    data[name] = value;
                    data
                };
                let mut text = with("text", all_text(ask).into());
                text["logprobs"] = json!([]);
                let part = with("part", content(ask));
                [
                    self.event("response.output_text.done", text),
                    self.event("response.content_part.done", part),
                    self.event(
                        "response.output_item.done",
                        json!({"output_index": 0, "item": message(ask)}),
                    ),
                    self.event(
                        "response.completed",
                        json!({"response": response(ask, "completed")}),
                    ),
                ]
                .concat()
            }
            Kind::OpenAiChat => {
                let last = self.chunk("{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}");
                last + &self.usage() + "data: [DONE]\n\n"
            }
            Kind::OpenAiCompletion => {
                let last = self.chunk("{\"text\":\"\",\"index\":0,\"finish_reason\":\"stop\"}");
                last + &self.usage() + "data: [DONE]\n\n"
            }
            // The last token's probabilities may come with the counts.
            _ => line(ask, "", &logprobs(ask, 0..1), Some("stop")),
        }
    }

    /// One event of OpenAI's older streams.
    fn chunk(&self, choice: &str) -> String {
        let model = quoted(&self.ask.model);
        let (id, object) = match self.ask.kind {
            Kind::OpenAiChat => ("chatcmpl-7", "chat.completion.chunk"),
            _ => ("cmpl-7", "text_completion"),
        };
        format!(
            "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":1787338102,\
             \"model\":{model},\"system_fingerprint\":\"fp_ollama\",\"choices\":[{choice}]}}\n\n"
        )
    }

    fn usage(&self) -> String {
        if !self.ask.includes_usage {
            return String::new();
        }
        let (input, output) = (self.ask.prompt_tokens, self.ask.tokens);
        let total = input + output;
        self.chunk("").replacen(
            "\"choices\":[]",
            &format!(
                "\"choices\":[],\"usage\":{{\"prompt_tokens\":{input},\
                 \"completion_tokens\":{output},\"total_tokens\":{total}}}"
            ),
            1,
        )
    }

    /// One event of `/v1/responses`.
    fn event(&mut self, name: &str, mut data: Value) -> String {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        format!("event: {name}\ndata: {data}\n\n")
    }
}
