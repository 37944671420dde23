//! Errors in the shape of the API that was called, so that every client library shows them.
//! Pure, but for the random number in an id.
//!
//! Shapes: Ollama `{"error":"…"}` (`server/routes.go`), OpenAI `{"error":{…}}`
//! (`openai/openai.go`), Anthropic `{"type":"error","error":{…}}` (`anthropic/anthropic.go`); the
//! end of a broken stream of `/v1/responses` (`middleware/openai.go`).

use memchr::memmem;
use serde_json::{Value, json};

use crate::ollama::stream_end::Format;
use crate::system::{self, Hex};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Ollama,
    OpenAi,
    /// OpenAI's, but for the end of a stream.
    Responses,
    Anthropic,
}

/// A stream that broke off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broken<'a> {
    pub(crate) format: Format,
    /// Named events that it had.
    pub(crate) events: u64,
    /// The id that a stream of `/v1/responses` began with.
    pub(crate) response: Option<&'a str>,
}

impl Dialect {
    pub(crate) fn error(self, status: u16, message: &str) -> Value {
        match self {
            Dialect::Ollama => json!({ "error": message }),
            Dialect::OpenAi | Dialect::Responses => {
                let kind = match status {
                    400 => "invalid_request_error",
                    404 => "not_found_error",
                    _ => "api_error",
                };
                json!({ "error": { "message": message, "type": kind, "param": null, "code": null } })
            }
            Dialect::Anthropic => {
                let kind = match status {
                    400 => "invalid_request_error",
                    401 => "authentication_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    429 => "rate_limit_error",
                    503 | 529 => "overloaded_error",
                    _ => "api_error",
                };
                let error = json!({ "type": kind, "message": message });
                json!({ "type": "error", "error": error, "request_id": id("req") })
            }
        }
    }

    /// A last line or event for a stream that ends in failure.
    pub(crate) fn in_band_error(self, broken: Broken<'_>, message: &str) -> String {
        let error = self.error(502, message);
        match (broken.format, self) {
            (Format::Ndjson, _) => format!("{error}\n"),
            (_, Dialect::Anthropic) => format!("event: error\ndata: {error}\n\n"),
            (_, Dialect::Responses) => {
                let failed = json!({
                    "type": "response.failed",
                    "sequence_number": broken.events,
                    "response": {
                        "id": broken.response.map_or_else(|| id("resp"), str::to_owned),
                        "object": "response", "status": "failed", "output": [],
                        "error": { "code": "server_error", "message": message },
                    },
                });
                format!("event: response.failed\ndata: {failed}\n\n")
            }
            (_, _) => format!("data: {error}\n\n"),
        }
    }
}

/// Whether a failed pull tells that it got no answer from the registry: Go's client says what it asked
/// for (`Get "https://…": dial tcp: …`, `net/url.Error`); what a registry answers has another form.
pub(crate) fn tells_unreached_registry(error: &str) -> bool {
    let is_asked = |method: &str| error.contains(&format!("{method} \"http"));
    ["Get", "Head", "Post"].into_iter().any(is_asked) && !error.contains("context canceled")
}

/// An id such as Ollama makes: random, so that it is found again in a log.
fn id(kind: &str) -> String {
    // Where the system has no random source, an id that is not unique harms nobody.
    let random: [u8; 12] = system::random().unwrap_or_default();
    format!("{kind}_{}", Hex(&random))
}

/// The id in the first event of a stream of `/v1/responses`, if that is one.
pub(crate) fn response_id(start: &[u8]) -> Option<String> {
    /// Longer ones aren't told again.
    const MAX: usize = 100;
    let event = start.strip_prefix(b"event: response.")?;
    let at = memmem::find(event, b"\"id\":\"resp_")? + "\"id\":\"".len();
    let id = &event[at..event.len().min(at + MAX)];
    let id = id.split(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_')).next()?;
    String::from_utf8(id.to_vec()).ok()
}

/// Whether Ollama refuses inference because as many requests wait as it lets wait (`ErrMaxQueue` of
/// `server/sched.go`), in whatever shape.
pub(crate) fn tells_overload(body: &[u8]) -> bool {
    tells(body, |message| message.contains("maximum pending requests exceeded"))
}

/// Whether an answer says that there is no such model (`model 'x' not found` of `server/routes.go`,
/// with more words in some versions), in whatever shape.
pub(crate) fn tells_missing_model(body: &[u8]) -> bool {
    tells(body, |message| message.contains("model") && message.contains("not found"))
}

fn tells(body: &[u8], is_it: impl Fn(&str) -> bool) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &body["error"];
    error.as_str().or_else(|| error["message"].as_str()).is_some_and(is_it)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::ollama::endpoints::Endpoint;

    #[test]
    fn each_path_gets_its_apis_shape() {
        for (target, want) in [
            ("/api/chat", r#"{"error":"no \"x\""}"#),
            ("/", r#"{"error":"no \"x\""}"#),
            (
                "/v1/chat/completions?x",
                r#"{"error":{"code":null,"message":"no \"x\"","param":null,"type":"api_error"}}"#,
            ),
            (
                "/v1/messages?beta=true",
                r#"{"error":{"message":"no \"x\"","type":"overloaded_error"},"type":"error"}"#,
            ),
        ] {
            let dialect = Endpoint::of(&Method::GET, target).dialect;
            let mut error = dialect.error(503, "no \"x\"");
            let id = error.as_object_mut().and_then(|error| error.remove("request_id"));
            assert_eq!(id.is_some(), dialect == Dialect::Anthropic, "{target}");
            assert_eq!(error.to_string(), want, "{target}");
        }
    }

    #[test]
    fn an_overload_is_told_in_each_shape() {
        let busy = "server busy, please try again.  maximum pending requests exceeded";
        for dialect in [Dialect::Ollama, Dialect::OpenAi, Dialect::Anthropic] {
            assert!(tells_overload(dialect.error(503, busy).to_string().as_bytes()), "{dialect:?}");
            let other = dialect.error(503, "all servers are busy and the queue is full");
            assert!(!tells_overload(other.to_string().as_bytes()), "{dialect:?}");
        }
        for other in ["", busy, "[]", "{\"error\":3}", "{\"error\":\"maximum"] {
            assert!(!tells_overload(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_missing_model_is_told_in_each_shape() {
        for dialect in [Dialect::Ollama, Dialect::OpenAi, Dialect::Anthropic] {
            let tells =
                |text: &str| tells_missing_model(dialect.error(404, text).to_string().as_bytes());
            assert!(tells("model 'beta' not found"), "{dialect:?}");
            assert!(tells("model \"beta\" not found, try pulling it first"), "{dialect:?}");
            assert!(!tells("404 page not found") && !tells("model is required"), "{dialect:?}");
        }
        for body in ["", "404 page not found", "\"model not found\"", "{\"error\":[]}", "{}"] {
            assert!(!tells_missing_model(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn types_are_those_of_ollama() {
        for (status, openai, anthropic) in [
            (400, "invalid_request_error", "invalid_request_error"),
            (401, "api_error", "authentication_error"),
            (403, "api_error", "permission_error"),
            (404, "not_found_error", "not_found_error"),
            (413, "api_error", "api_error"),
            (429, "api_error", "rate_limit_error"),
            (500, "api_error", "api_error"),
            (503, "api_error", "overloaded_error"),
        ] {
            let kind = |dialect: Dialect| dialect.error(status, "x")["error"]["type"].clone();
            assert_eq!(kind(Dialect::OpenAi), openai, "{status}");
            assert_eq!(kind(Dialect::Responses), openai, "{status}");
            assert_eq!(kind(Dialect::Anthropic), anthropic, "{status}");
        }
        let [one, two] = [(); 2].map(|()| Dialect::Anthropic.error(400, "x")["request_id"].clone());
        assert!(one.as_str().is_some_and(|id| id.starts_with("req_") && id.len() == 28), "{one}");
        assert_ne!(one, two);
    }

    fn broken(format: Format) -> Broken<'static> {
        Broken { format, events: 7, response: Some("resp_1a") }
    }

    #[test]
    fn responses_end_in_an_event_of_their_own() {
        let text = Dialect::Responses.in_band_error(broken(Format::EventStream), "gone");
        let data = text.strip_prefix("event: response.failed\ndata: ").expect("the event's name");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(
            (&data["type"], &data["sequence_number"]),
            (&json!("response.failed"), &json!(7))
        );
        let response = &data["response"];
        assert_eq!((&response["id"], &response["status"]), (&json!("resp_1a"), &json!("failed")));
        assert_eq!(response["error"]["message"], "gone");
        let start =
            b"event: response.created\ndata: {\"response\":{\"id\":\"resp_12\",\"x\":1}}\n\n";
        assert_eq!(response_id(start).as_deref(), Some("resp_12"));
        assert_eq!(response_id(b"data: {\"id\":\"resp_12\"}\n\n"), None);
        assert_eq!(response_id(b"event: response.created\ndata: {}\n\n"), None);
    }

    #[test]
    fn streams_get_their_formats_error() {
        let ollama = Dialect::Ollama.in_band_error(broken(Format::Ndjson), "gone");
        assert_eq!(ollama, "{\"error\":\"gone\"}\n");
        let openai = Dialect::OpenAi.in_band_error(broken(Format::EventStream), "gone");
        assert!(openai.starts_with("data: {\"error\":{") && openai.ends_with("}\n\n"));
        let anthropic = Dialect::Anthropic.in_band_error(broken(Format::EventStream), "gone");
        assert!(anthropic.starts_with("event: error\ndata: {"));
    }
}
