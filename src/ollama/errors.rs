//! Errors in the shape of the API that was called, so that every client library shows them.
//! Pure.
//!
//! Shapes: Ollama `{"error":"…"}` (`server/routes.go`), OpenAI `{"error":{…}}`
//! (`openai/openai.go`), Anthropic `{"type":"error","error":{…}}` (`anthropic/anthropic.go`).

use serde_json::{Value, json};

use crate::ollama::stream_end::Format;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Ollama,
    OpenAi,
    Anthropic,
}

impl Dialect {
    pub(crate) fn error(self, status: u16, message: &str) -> Value {
        match self {
            Dialect::Ollama => json!({ "error": message }),
            Dialect::OpenAi => json!({
                "error": { "message": message, "type": kind(status), "param": null, "code": null },
            }),
            Dialect::Anthropic => json!({
                "type": "error",
                "error": { "type": kind(status), "message": message },
            }),
        }
    }

    /// A last line or event for a stream that ends in failure.
    pub(crate) fn in_band_error(self, format: Format, message: &str) -> String {
        let error = self.error(502, message);
        match (format, self) {
            (Format::Ndjson, _) => format!("{error}\n"),
            (_, Dialect::Anthropic) => format!("event: error\ndata: {error}\n\n"),
            (_, _) => format!("data: {error}\n\n"),
        }
    }
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

fn kind(status: u16) -> &'static str {
    match status {
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
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
                r#"{"error":{"code":null,"message":"no \"x\"","param":null,"type":"overloaded_error"}}"#,
            ),
            (
                "/v1/messages?beta=true",
                r#"{"error":{"message":"no \"x\"","type":"overloaded_error"},"type":"error"}"#,
            ),
        ] {
            let dialect = Endpoint::of(&Method::GET, target).dialect;
            assert_eq!(dialect.error(503, "no \"x\"").to_string(), want, "{target}");
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
    fn streams_get_their_formats_error() {
        let ollama = Dialect::Ollama.in_band_error(Format::Ndjson, "gone");
        assert_eq!(ollama, "{\"error\":\"gone\"}\n");
        let openai = Dialect::OpenAi.in_band_error(Format::EventStream, "gone");
        assert!(openai.starts_with("data: {\"error\":{") && openai.ends_with("}\n\n"));
        let anthropic = Dialect::Anthropic.in_band_error(Format::EventStream, "gone");
        assert!(anthropic.starts_with("event: error\ndata: {"));
    }
}
