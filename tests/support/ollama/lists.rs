//! What an Ollama tells of itself: version, status, and the lists of its models.

use super::super::Head;
use super::reply::{JSON, quoted, whole};
use super::{Model, Name, World};

/// What daemons ask for on their own account.
pub(super) const LISTS: [&str; 4] = ["/api/version", "/api/tags", "/api/ps", "/v1/models"];

/// The answer to a request for one of them, behind whatever prefix.
pub fn checked(world: &World, head: &Head) -> Option<Vec<u8>> {
    if head.method() != "GET" {
        return None;
    }
    let path = head.target();
    let known = LISTS.into_iter().find(|known| path.ends_with(known))?;
    let kind = if known == "/v1/models" { "application/json" } else { JSON };
    Some(whole(head, 200, &format!("Content-Type: {kind}\r\n"), list(world, known)))
}

/// One of them by its path.
pub(super) fn list(world: &World, path: &str) -> String {
    if let Some(body) = world.raw_lists.get(path) {
        return body.clone();
    }
    let each = |one: fn(&World, &Model) -> String| -> Vec<String> {
        world.models.iter().map(|model| one(world, model)).collect()
    };
    match path {
        "/api/version" => format!("{{\"version\":{}}}", quoted(&world.version)),
        "/api/status" => format!(
            "{{\"cloud\":{{\"disabled\":{},\"source\":\"{}\"}}}}",
            world.cloud_disabled,
            if world.cloud_disabled { "env" } else { "none" }
        ),
        "/api/tags" => format!("{{\"models\":[{}]}}", each(tag).join(",")),
        "/api/ps" => {
            let loaded = world.loaded.iter().filter_map(|name| world.find(&Name::parse(name)));
            let models: Vec<String> = loaded.map(|model| process(world, model)).collect();
            format!("{{\"models\":[{}]}}", models.join(","))
        }
        _ if world.models.is_empty() => "{\"object\":\"list\",\"data\":null}\n".to_owned(),
        _ => format!("{{\"object\":\"list\",\"data\":[{}]}}\n", each(openai).join(",")),
    }
}

fn tag(_: &World, model: &Model) -> String {
    let Model { digest, size, modified_at, .. } = model;
    let name = quoted(&model.name);
    let remote = model.remote_model.as_ref().map_or(String::new(), |remote| {
        let remote = quoted(remote);
        format!("\"remote_model\":{remote},\"remote_host\":\"https://ollama.com:443\",")
    });
    let capabilities: Vec<String> = model.capabilities.iter().map(|one| quoted(one)).collect();
    format!(
        "{{\"name\":{name},\"model\":{name},{remote}\"modified_at\":\"{modified_at}\",\
         \"size\":{size},\"digest\":\"{digest}\",\"details\":{},\"capabilities\":[{}]}}",
        details(model, true),
        capabilities.join(",")
    )
}

fn process(world: &World, model: &Model) -> String {
    let Model { digest, size, .. } = model;
    let name = quoted(&model.name);
    let context = world.context_length.min(model.context_length);
    let on_card = world.card.min(*size);
    format!(
        "{{\"name\":{name},\"model\":{name},\"size\":{size},\"digest\":\"{digest}\",\
         \"details\":{},\"expires_at\":\"2318-11-28T07:55:00.123456789+02:00\",\
         \"size_vram\":{on_card},\"context_length\":{context}}}",
        details(model, false)
    )
}

pub(super) fn details(model: &Model, is_listed: bool) -> String {
    let family = quoted(&model.family);
    let context = model.context_length;
    let lengths = if is_listed {
        format!(",\"context_length\":{context},\"embedding_length\":2048")
    } else {
        String::new()
    };
    format!(
        "{{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":{family},\"families\":[{family}],\
         \"parameter_size\":\"1.2B\",\"quantization_level\":\"Q8_0\"{lengths}}}"
    )
}

fn openai(_: &World, model: &Model) -> String {
    let name = quoted(&model.name);
    format!(
        "{{\"id\":{name},\"object\":\"model\",\"created\":1787213472,\"owned_by\":\"library\"}}"
    )
}
