//! Pulls: the names that they may have, and the bodies that are sent on for them. Pure.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use crate::counters::FROM;

/// `model@server` of a pull, taken apart; a server may be told by its address and port. A digest
/// (`model@sha256:…`) is no server.
pub(crate) fn split_server(model: &str) -> Option<(&str, &str)> {
    let (model, server) = model.rsplit_once('@')?;
    let is_digest = server.split_once(':').is_some_and(|(kind, _)| kind == "sha256");
    let is_address = || server.parse::<SocketAddr>().is_ok() || server.parse::<IpAddr>().is_ok();
    let is_named = match server.split_once(':') {
        Some((host, port)) if !host.is_empty() => port.parse::<u16>().is_ok_and(|port| port > 0),
        Some(_) => false,
        None => !server.is_empty(),
    };
    let is_server = !is_digest && !server.contains('/') && (is_named || is_address());
    (is_server && !model.is_empty()).then_some((model, server))
}

/// A body with another model's name in it; `None` if it isn't a JSON object that names one.
pub(crate) fn rename_model(body: &[u8], model: &str) -> Option<Vec<u8>> {
    let mut json: Map<String, Value> = serde_json::from_slice(body).ok()?;
    // Go takes members in any case, so none of the others may stay.
    let has =
        |json: &Map<_, _>, name| json.keys().any(|key: &String| key.eq_ignore_ascii_case(name));
    let member = ["model", "name"].into_iter().find(|name| has(&json, name))?;
    json.retain(|key, _| !["model", "name"].iter().any(|name| key.eq_ignore_ascii_case(name)));
    json.insert(member.to_owned(), model.into());
    serde_json::to_vec(&json).ok()
}

/// The body to send on for a pull from Ollama's own registry; `None` for any other pull.
///
/// It is written anew from what was understood: Go's decoder takes members in any case, the last of
/// several, and ignores what follows the object, so the same bytes could name another model to it.
pub(crate) fn registry_pull(body: &[u8]) -> Option<Vec<u8>> {
    let object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |member: &str| object.get(member).and_then(Value::as_str).filter(|t| !t.is_empty());
    let model = text("model").or_else(|| text("name")).filter(|model| is_of_registry(model))?;
    if !matches!(object.get("insecure"), None | Some(Value::Null | Value::Bool(false))) {
        return None;
    }
    // Servers before 0.1.30 or so know only `name`.
    let mut known = json!({ "model": model, "name": model });
    if let Some(stream @ Value::Bool(_)) = object.get("stream") {
        known["stream"] = stream.clone();
    }
    serde_json::to_vec(&known).ok()
}

/// The body of a pull that asks for its answer in lines, and whether this one does not: then Ollama
/// answers with one object at the end. `None` for a body that Ollama might read in another way.
pub(crate) fn in_lines(body: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    // Go takes members in any case.
    let mut streams: Vec<String> = object.keys().cloned().collect();
    streams.retain(|key| key.eq_ignore_ascii_case("stream"));
    match (&streams[..], streams.first().and_then(|key| object.get(key))) {
        ([] | [_], None | Some(Value::Null | Value::Bool(true))) => Some((body.to_vec(), false)),
        ([stream], Some(Value::Bool(false))) => {
            object.insert(stream.clone(), true.into());
            Some((serde_json::to_vec(&object).ok()?, true))
        }
        _ => None,
    }
}

/// How far a layer is, as a line of a pull tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) digest: String,
    pub(crate) total: u64,
    pub(crate) completed: u64,
}

impl Progress {
    /// `None` for a line about something else.
    pub(crate) fn read(line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let digest = line.get("digest")?.as_str()?.to_owned();
        let total = line.get("total")?.as_u64()?;
        // Ollama leaves a zero out.
        let completed = line.get("completed").map_or(Some(0), Value::as_u64)?;
        Some(Progress { digest, total, completed })
    }
}

/// The line that tells how far a layer is which comes from a machine of the house, or is there.
pub(crate) fn layer_line(digest: &str, total: u64, completed: u64, from: Option<&str>) -> Value {
    let short: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
    let mut line =
        json!({ "status": format!("pulling {short}"), "digest": digest, "total": total });
    if completed > 0 {
        line["completed"] = completed.into();
    }
    if let Some(from) = from {
        line[FROM] = from.into();
    }
    line
}

/// The error that a line or a body tells, if it is one.
pub(crate) fn error(line: &[u8]) -> Option<String> {
    let line: Value = serde_json::from_slice(line).ok()?;
    line.get("error")?.as_str().map(str::to_owned)
}

/// What a person can do whose pull doesn't reach the registry: who has the model, and how to copy it to
/// the machine that pulls, which has to be named where it is another one.
pub(crate) fn advice(model: &str, holder: &str, target: Option<&str>) -> String {
    let target = target.map(|target| format!(" {target}")).unwrap_or_default();
    format!("the registry can't be reached; {holder} has it: ollana cp {model}@{holder}{target}")
}

/// The model that a copy is asked for, and whether its answer is wanted in lines. What is behind an at
/// sign isn't part of the name.
pub(crate) fn copy_asked(body: &[u8]) -> Option<(String, bool)> {
    let object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    // Go takes members in any case.
    let member =
        |name: &str| object.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name)).map(|it| it.1);
    let text = |name: &str| member(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let named = text("model").or_else(|| text("name"))?;
    let model = split_server(named).map_or(named, |(model, _)| model);
    Some((plain_name(model)?, member("stream") != Some(&Value::Bool(false))))
}

/// A name that Ollama can store a model under, `[host/][namespace/]model[:tag]` with the lengths and
/// letters of `types/model/name.go`, without the scheme that it may have, and without what says where
/// the model runs.
fn plain_name(name: &str) -> Option<String> {
    let name = name.trim();
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let (base, place) = split_place(name);
    let base_has_tag = base.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let name = match place.to_ascii_lowercase().as_str() {
        "local" => base.to_owned(),
        "cloud" if base_has_tag => format!("{base}-cloud"),
        _ => name.to_owned(),
    };
    let [host, user, model, tag] = parts(&name)?;
    let is_name = is_part(host, 350, b"_-.:")
        && is_part(user, 80, b"_-")
        && is_part(model, 80, b"_-.")
        && is_part(tag, 80, b"_-.");
    is_name.then_some(name)
}

/// Whether a name is plain, or says Ollama's own registry: `[registry.ollama.ai/][user/]model[:tag]`,
/// behind which may stand where the model runs.
pub(crate) fn is_of_registry(name: &str) -> bool {
    let is_valid = |[host, user, model, tag]: [&str; 4]| {
        let is_fit = |part| is_part(part, usize::MAX, b"._-");
        host == REGISTRY && is_part(user, usize::MAX, b"_-") && is_fit(model) && is_fit(tag)
    };
    parts(split_place(name).0).is_some_and(is_valid)
}

const REGISTRY: &str = "registry.ollama.ai";

/// A name without the `:local` or `:cloud` at its end that says where the model runs, and that
/// (`internal/modelref/modelref.go`).
fn split_place(name: &str) -> (&str, &str) {
    let is_place = |place: &str| ["local", "cloud"].iter().any(|it| place.eq_ignore_ascii_case(it));
    name.rsplit_once(':').filter(|(_, place)| is_place(place)).unwrap_or((name, ""))
}

/// Host, user, model and tag of a name (`types/model/name.go`, whose host is what precedes two
/// slashes).
fn parts(name: &str) -> Option<[&str; 4]> {
    let parts: Vec<&str> = name.split('/').collect();
    let (host, user, last) = match parts[..] {
        [model] => (REGISTRY, "library", model),
        [user, model] => (REGISTRY, user, model),
        [host, user, model] => (host, user, model),
        _ => return None,
    };
    let (model, tag) = last.split_once(':').unwrap_or((last, "latest"));
    Some([host, user, model, tag])
}

fn is_part(part: &str, most: usize, others: &[u8]) -> bool {
    let starts_well = part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    starts_well && part.len() <= most && part.bytes().all(is_fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_from_the_registry_are_written_anew() {
        let pull = |body: &str| {
            registry_pull(body.as_bytes()).map(|b| String::from_utf8(b).expect("UTF-8"))
        };
        for (body, want) in [
            (r#"{"model":"llama3.2"}"#, r#"{"model":"llama3.2","name":"llama3.2"}"#),
            (
                r#"{"name":"a/b:1b","stream":false}"#,
                r#"{"model":"a/b:1b","name":"a/b:1b","stream":false}"#,
            ),
            (r#"{"name":"","model":"a","insecure":false,"x":1}"#, r#"{"model":"a","name":"a"}"#),
            (r#" {"model":"","name":"a","stream":null} "#, r#"{"model":"a","name":"a"}"#),
            (
                r#"{"model":"registry.ollama.ai/library/a:latest"}"#,
                r#"{"model":"registry.ollama.ai/library/a:latest","name":"registry.ollama.ai/library/a:latest"}"#,
            ),
            // The last one counts, here as in Go; and no other case of a member gets through.
            (r#"{"model":"hf.co/a/b","model":"a"}"#, r#"{"model":"a","name":"a"}"#),
            (
                r#"{"Model":"hf.co/a/b","model":"a","MODEL":"x.y/a/b"}"#,
                r#"{"model":"a","name":"a"}"#,
            ),
        ] {
            let got = pull(body).unwrap_or_else(|| panic!("{body}: refused"));
            let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            assert_eq!(parse(&got), parse(want), "{body}");
        }
        for body in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"model":"a"#,
            r#"{"model":"a"}{"model":"hf.co/a/b"}"#,
            r#"{"model":"a"} x"#,
            r#"{"model":3}"#,
            r#"{"Model":"a"}"#,
            r#"{"model":"a","insecure":true}"#,
            r#"{"model":"a","insecure":1}"#,
            r#"{"model":"a","model":"hf.co/a/b"}"#,
            r#"{"model":"hf.co/a/b","name":"a"}"#,
        ] {
            assert_eq!(pull(body), None, "{body}");
        }
    }

    #[test]
    fn what_asks_for_one_object_asks_for_lines_then() {
        for (body, want) in [
            (r#"{"model":"a"}"#, r#"{"model":"a"}"#),
            (r#"{ "model":"a","stream":true}"#, r#"{ "model":"a","stream":true}"#),
            (r#"{"stream":null,"x":[1]}"#, r#"{"stream":null,"x":[1]}"#),
            (r#"{"stream":false,"stream":true}"#, r#"{"stream":false,"stream":true}"#),
        ] {
            assert_eq!(in_lines(body.as_bytes()), Some((want.into(), false)), "{body}");
        }
        for (body, want) in [
            (r#"{"model":"a","stream":false}"#, r#"{"model":"a","stream":true}"#),
            (r#"{"Stream":false,"insecure":true}"#, r#"{"Stream":true,"insecure":true}"#),
        ] {
            assert_eq!(in_lines(body.as_bytes()), Some((want.into(), true)), "{body}");
        }
        for body in [
            "",
            "[]",
            r#"{"stream":false"#,
            r#"{"stream":false} {}"#,
            r#"{"stream":"false"}"#,
            r#"{"stream":0}"#,
            r#"{"stream":false,"Stream":true}"#,
        ] {
            assert_eq!(in_lines(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn lines_about_layers_are_told_from_others() {
        let read = |line: &str| Progress::read(line.as_bytes());
        let is = |completed| Some(Progress { digest: "d".to_owned(), total: 7, completed });
        assert_eq!(read(r#"{"status":"pulling d","digest":"d","total":7}"#), is(0));
        assert_eq!(read(r#"{"digest":"d","total":7,"completed":3}"#), is(3));
        for other in [
            "",
            "{}",
            r#"{"status":"pulling manifest"}"#,
            r#"{"digest":"d"}"#,
            r#"{"digest":"d","total":-1}"#,
            r#"{"digest":"d","total":7,"completed":"x"}"#,
            r#"{"digest":3,"total":7}"#,
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(error(br#"{"error":"gone"}"#).as_deref(), Some("gone"));
        assert_eq!(error(br#"{"status":"success"}"#), None);
    }

    #[test]
    fn names_of_other_registries_are_told_apart() {
        for name in [
            "llama3.2",
            "llama3.2:1b-instruct-q4_K_M",
            "me/model",
            "me/model:v1.0",
            "registry.ollama.ai/me/model",
            "library/x",
            "_x",
            "gpt-oss:cloud",
            "gpt-oss:120b:cloud",
            "gpt-oss:120b-cloud",
            "me/x:7b:Local",
        ] {
            assert!(is_of_registry(name), "{name}");
        }
        for name in [
            "",
            "/",
            "a/",
            "/a",
            ":a",
            "a:",
            "a:b:c",
            "a:b:c:cloud",
            "a::cloud",
            ":cloud",
            "hf.co/a/b:7b:cloud",
            "a:b:cloud/c",
            "hf.co/a/b",
            "hf.co/a",
            "huggingface.co/a/b:Q4",
            "localhost:5000/a/b",
            "localhost:5000/a",
            "10.0.0.1/a/b",
            "REGISTRY.ollama.ai/a/b",
            "registry.ollama.ai.evil.com/a/b",
            "registry.ollama.ai:80/a/b",
            "user@registry.ollama.ai/a/b",
            "http://registry.ollama.ai/a/b",
            "https://registry.ollama.ai/a/b",
            "registry.ollama.ai//b",
            "registry.ollama.ai/../b",
            "../a/b",
            "a/b/c/d",
            "a b",
            "a%2fb",
            "a@sha256:00",
            "a\u{0}",
            "a\n",
            "\u{e9}",
            "-a",
            ".a",
            "..",
            " a",
        ] {
            assert!(!is_of_registry(name), "{name:?}");
        }
    }

    #[test]
    fn a_copy_may_have_any_name_that_ollama_can_store() {
        let asked = |name: &str| copy_asked(json!({ "model": name }).to_string().as_bytes());
        for (name, want) in [
            ("llama3.2", "llama3.2"),
            ("Llama3.2:1B-Instruct_q4.K", "Llama3.2:1B-Instruct_q4.K"),
            ("me/x", "me/x"),
            ("hf.co/Some-One/Model.GGUF:Q4_K_M", "hf.co/Some-One/Model.GGUF:Q4_K_M"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("https://registry.ollama.ai/library/x", "registry.ollama.ai/library/x"),
            ("x:local", "x"),
            ("x:7b:Local", "x:7b"),
            ("x:cloud", "x:cloud"),
            ("x:120b:cloud", "x:120b-cloud"),
            ("x:7b@copy", "x:7b"),
            ("hf.co/a/b@10.0.0.7:11435", "hf.co/a/b"),
            (" x ", "x"),
        ] {
            assert_eq!(asked(name), Some((want.to_owned(), true)), "{name}");
        }
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "a:",
            ":a",
            ":local",
            "a:b:c",
            "a/b/c/d",
            "..",
            "../a",
            "a/../b",
            "a b",
            "-a",
            "a.b/c",
            "a@",
            "a@b@c/d",
            "a%2fb",
            "a\u{0}",
            "\u{e9}",
            &"x".repeat(81),
        ] {
            assert_eq!(asked(name), None, "{name:?}");
        }
        let body = |body: &str| copy_asked(body.as_bytes());
        assert_eq!(body(r#"{"NAME":"a","Stream":false}"#), Some(("a".to_owned(), false)));
        assert_eq!(body(r#"{"model":"","name":"a","stream":null}"#), Some(("a".to_owned(), true)));
        for bad in ["", "[]", "{}", r#"{"model":3}"#, r#"{"model":"a"} x"#] {
            assert_eq!(body(bad), None, "{bad}");
        }
    }

    #[test]
    fn servers_behind_an_at_sign() {
        assert_eq!(split_server("llama3.2:1b@desktop"), Some(("llama3.2:1b", "desktop")));
        for server in ["desktop:11435", "10.0.0.7", "10.0.0.7:11435", "fe80::1", "[fe80::1]:7"] {
            assert_eq!(split_server(&format!("a/b:1@{server}")), Some(("a/b:1", server)));
        }
        let none = ["llama3.2", "llama3.2@sha256:00", "@desktop", "a@", "a@b/c", "a@b:c", "a@:1"];
        for plain in none.into_iter().chain(["a@sha256:12", "a@b:0", "a@b:65536"]) {
            assert_eq!(split_server(plain), None, "{plain}");
        }
        let renamed = rename_model(br#"{"name":"a@b","stream":true}"#, "a").expect("an object");
        assert_eq!(renamed, br#"{"name":"a","stream":true}"#);
        let renamed = rename_model(br#"{"Model":"a@b","NAME":"c","stream":true}"#, "a");
        assert_eq!(renamed.expect("an object"), br#"{"model":"a","stream":true}"#);
        assert_eq!(rename_model(b"[]", "a"), None);
        assert_eq!(rename_model(b"{}", "a"), None);
    }

    /// Whatever is asked for, what goes on is a name that Ollama can store, and none that leads elsewhere.
    #[test]
    fn no_name_leads_out_of_the_store() {
        const WORDS: [&str; 16] = [
            "a", "B9", "/", ":", "@", ".", "..", "-", "_", "%2f", "://", "local", "cloud", " ",
            "\\", "\u{e9}",
        ];
        let mut random = 0x5eed_u64;
        let mut known = 0;
        for _ in 0..50_000 {
            let mut next = |most: u64| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) % most
            };
            let words = 1 + next(9);
            let name: String = (0..words).map(|_| WORDS[next(16) as usize]).collect();
            let Some((asked, _)) = copy_asked(json!({ "model": name }).to_string().as_bytes())
            else {
                continue;
            };
            known += 1;
            let parts: Vec<&str> = asked.split('/').collect();
            let is_plain = |part: &&str| {
                let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
                part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                    && part.bytes().all(is_fit)
            };
            assert!(parts.len() <= 3 && parts.iter().all(is_plain), "{name:?}: {asked:?}");
            assert!(parts.last().is_some_and(|it| it.matches(':').count() <= 1), "{asked:?}");
            assert_eq!(plain_name(&asked).as_ref(), Some(&asked), "{name:?}");
        }
        assert!(known > 100, "{known}");
    }
}
