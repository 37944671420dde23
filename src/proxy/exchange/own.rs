//! What copies and donations by push ask of the own Ollama.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use crate::net::untrusted_text::printable;
use crate::ollama::endpoints::{BLOBS, COPY, DELETE_MODEL, List, PULL, PUSH};
use crate::ollama::model_name::ModelName;
use crate::ollama::pull;
use crate::sharing::{Blob, is_for_a_moment};
use crate::system::Hex;
use crate::upstream::exchange_io::{self, Attempt};
use crate::upstream::{self, Upstream, build_uri};

/// The own Ollama answers within this to what takes it a tenth of a second.
const OWN_TIME: Duration = Duration::from_secs(60);
/// Bytes of an answer of the own Ollama: a list has some hundred for each model.
const LONGEST_ANSWER: usize = 16 << 20;
/// The own Ollama.
#[derive(Clone, Copy)]
pub(super) struct Own<'e> {
    pub(super) upstream: &'e Upstream,
    pub(super) address: SocketAddr,
    pub(super) prefix: &'e str,
}

impl Own<'_> {
    fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        self.ask_within(OWN_TIME, method, path, body)
    }

    fn ask_within(
        &self,
        time: Duration,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let uri = build_uri(self.address, self.prefix, path)?;
        let body = body.map(|body| body.to_string());
        ask(self.upstream, Attempt::default(), (method, uri, body), time)
    }

    pub(super) fn has(&self, blob: &Blob) -> Result<bool, String> {
        let path = format!("{BLOBS}{}", blob.digest());
        Ok(self.ask(Method::HEAD, &path, None)?.0.is_success())
    }

    pub(super) fn models(&self) -> Result<Vec<Value>, String> {
        self.models_within(OWN_TIME)
    }

    pub(super) fn models_within(&self, time: Duration) -> Result<Vec<Value>, String> {
        let (status, list) = self.ask_within(time, Method::GET, List::Tags.path(), None)?;
        let mut list: Value = serde_json::from_slice(&list).unwrap_or_default();
        match list["models"].take() {
            Value::Array(models) if status.is_success() => Ok(models),
            Value::Null if status.is_success() => Ok(Vec::new()),
            _ => Err(format!("Ollama answers with status {status} to what models it has")),
        }
    }

    /// Deletes what copies that were broken off have left among its models.
    pub(super) fn clean_up(&self, models: &[Value]) -> Result<(), String> {
        for model in models {
            let name = model["name"].as_str().unwrap_or_default();
            if is_for_a_moment(name) {
                self.delete(name)?;
            }
        }
        Ok(())
    }

    pub(super) fn pull(&self, name: &str) -> Result<(), String> {
        let body = json!({ "model": name, "name": name, "insecure": true, "stream": false });
        match self.ask(Method::POST, PULL, Some(body))? {
            (status, answer) if !status.is_success() || holds_no_success(&answer) => {
                Err(reason(status, &answer))
            }
            _ => Ok(()),
        }
    }

    /// Copies a model; false if there is none.
    pub(super) fn copy(&self, from: &str, to: &str) -> Result<bool, String> {
        let body = json!({ "source": from, "destination": to });
        match self.ask(Method::POST, COPY, Some(body))? {
            (status, _) if status.is_success() => Ok(true),
            (StatusCode::NOT_FOUND, _) => Ok(false),
            (status, answer) => Err(reason(status, &answer)),
        }
    }

    /// Has a model pushed without TLS. The answer's lines follow; to drop them ends the push.
    pub(super) fn push(&self, name: &str) -> Result<Box<dyn Read>, String> {
        let uri = build_uri(self.address, self.prefix, PUSH)?;
        let body = json!({ "model": name, "name": name, "insecure": true, "stream": true });
        let body = Some(body.to_string());
        let request = (Method::POST, uri, body);
        let (status, answer) = begin(self.upstream, Attempt::default(), request, OWN_TIME)?;
        match status.is_success() {
            true => Ok(answer),
            false => Err(reason(status, &read_all(answer)?)),
        }
    }

    /// Deletes a model, if it is there.
    pub(super) fn delete(&self, name: &str) -> Result<(), String> {
        match self.ask(
            Method::DELETE,
            DELETE_MODEL,
            Some(json!({ "model": name, "name": name })),
        )? {
            (status, _) if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            (status, answer) => Err(reason(status, &answer)),
        }
    }
}

fn holds_no_success(answer: &[u8]) -> bool {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    answer["status"] != "success"
}

/// Why Ollama refuses something.
fn reason(status: StatusCode, answer: &[u8]) -> String {
    match pull::error(answer) {
        Some(error) => format!("Ollama: {}", printable(&error)),
        None => format!("Ollama answers with status {status}"),
    }
}

/// The name of a model of Ollama's list.
pub(super) fn name(model: &Value) -> Option<ModelName> {
    ModelName::parse(model["name"].as_str()?)
}

/// The digest that Ollama's list has of a manifest.
pub(super) fn sha256(manifest: &[u8]) -> String {
    Hex(ring::digest::digest(&ring::digest::SHA256, manifest).as_ref()).to_string()
}

/// Asks and reads the whole answer within `time`.
pub(super) fn ask(
    upstream: &Upstream,
    attempt: Attempt,
    request: (Method, Uri, Option<String>),
    time: Duration,
) -> Result<(StatusCode, Vec<u8>), String> {
    let (status, answer) = begin(upstream, attempt, request, time)?;
    Ok((status, read_all(answer)?))
}

/// Asks; the answer's body can be read up to the same time.
fn begin(
    upstream: &Upstream,
    attempt: Attempt,
    (method, uri, body): (Method, Uri, Option<String>),
    time: Duration,
) -> Result<(StatusCode, Box<dyn Read>), String> {
    upstream.begin(attempt);
    exchange_io::with(|io| io.look_until = Some(Instant::now() + time));
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    let fields = request.headers_mut();
    if let Some(body) = &body {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        fields.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    *request.method_mut() = method;
    let answer = match &body {
        Some(body) => upstream.send(request, Some(&mut body.as_bytes())),
        None => upstream.send(request, None),
    }?;
    Ok((answer.status(), Box::new(answer.into_body().into_reader())))
}

fn read_all(answer: Box<dyn Read>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let most = LONGEST_ANSWER as u64 + 1;
    let read = answer.take(most).read_to_end(&mut bytes);
    read.map_err(|error| upstream::describe_io(&error))?;
    match bytes.len() > LONGEST_ANSWER {
        true => Err("answer is too long".to_owned()),
        false => Ok(bytes),
    }
}
