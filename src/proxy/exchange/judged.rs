//! What an answer tells of the server that gave it, and whether another one might better it.

use std::io::Read;
use std::mem::take;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};
use ureq::Body;

use crate::http::fields::{ERROR_FIELD, POLICY, UNREACHED, UPSTREAM};
use crate::manager::pool::Outcome;
use crate::ollama::errors;
use crate::upstream;
use crate::upstream::exchange_io;

/// Bytes of a refusal or of a 404 that are looked at for its reason, and how long they are waited for.
/// Ollama's have a hundred, in one packet with their head.
const REASON: usize = 4 * 1024;
const REASON_TIME: Duration = Duration::from_secs(1);
/// What Ollama says of a path that it doesn't have, before it has looked at the request.
const NO_PATH: &[u8] = b"404 page not found";

/// The head of an upstream's answer, and what of its body was looked at.
pub(super) struct Judged {
    pub(super) answer: Response<Body>,
    pub(super) start: Vec<u8>,
    /// What the answer tells of the server, if another one may do better.
    pub(super) poor: Option<Outcome>,
    /// It says that the server has no such model.
    pub(super) lacks_model: bool,
}

impl Judged {
    /// Looks at its body for what it says of an account.
    pub(super) fn look_on(&mut self) {
        self.start.extend(look(&mut self.answer).unwrap_or_default());
    }

    /// The same without its connection, if it is short.
    pub(super) fn detached(mut self) -> Option<Judged> {
        let length = declared_length(self.answer.headers()).filter(|it| *it <= REASON as u64)?;
        self.look_on();
        let start = take(&mut self.start);
        let is_whole = start.len() as u64 == length;
        let answer = self.answer.map(|_| Body::builder().data(start));
        is_whole.then_some(Judged { answer, ..self })
    }

    /// What it tells of the server once it was passed on.
    pub(super) fn outcome(&self) -> Outcome {
        match self.poor {
            Some(outcome) if outcome != Outcome::Answered => outcome,
            _ if is_refusal(&self.answer) => Outcome::TurnedAway,
            _ => Outcome::Answered,
        }
    }
}

/// What other servers may be good for, if this one isn't.
#[derive(Clone, Copy)]
pub(super) struct Others {
    pub(super) may_have_path: bool,
    pub(super) may_have_model: bool,
    pub(super) may_be_signed_in: bool,
}

/// Looks at an answer that another server might better: a refusal, or one of a proxy of ours whose
/// Ollama died before its answer, or that reached none, or whose owner doesn't allow it; or one that
/// has no such model, or whose account doesn't do for a cloud's, where that may be otherwise elsewhere.
pub(super) fn judge(
    mut answer: Response<Body>,
    is_exempt: bool,
    others: Others,
) -> Result<Judged, String> {
    let (mut start, mut lacks_model) = (Vec::new(), false);
    let mark = answer.headers().get(ERROR_FIELD).and_then(|cause| cause.to_str().ok());
    let poor = match mark {
        Some(UNREACHED) => Some(Outcome::Unreachable),
        Some(UPSTREAM) => Some(Outcome::Failed),
        Some(POLICY) => Some(Outcome::Answered),
        _ if others.may_have_path && answer.status() == StatusCode::NOT_FOUND => {
            start = look(&mut answer)?;
            lacks_model = others.may_have_model && errors::tells_missing_model(&start);
            // One of another version may have the path.
            (lacks_model || start == NO_PATH).then_some(Outcome::Answered)
        }
        None if others.may_be_signed_in && matches!(answer.status().as_u16(), 401 | 403) => {
            Some(Outcome::Unauthorized)
        }
        _ if !is_refusal(&answer) => None,
        Some(_) => Some(Outcome::TurnedAway),
        None if is_exempt || answer.status() != StatusCode::SERVICE_UNAVAILABLE => {
            Some(Outcome::Declined)
        }
        None => {
            start = look(&mut answer)?;
            let is_overload = errors::tells_overload(&start);
            Some(if is_overload { Outcome::Overloaded } else { Outcome::TurnedAway })
        }
    };
    Ok(Judged { answer, start, poor, lacks_model })
}

fn is_refusal(answer: &Response<Body>) -> bool {
    matches!(answer.status().as_u16(), 429 | 503)
}

/// The first bytes of an answer's body, as far as they come soon.
fn look(answer: &mut Response<Body>) -> Result<Vec<u8>, String> {
    let until = Instant::now() + REASON_TIME;
    exchange_io::with(|io| io.look_until = Some(until));
    let mut start = Vec::new();
    let read = answer.body_mut().as_reader().take(REASON as u64).read_to_end(&mut start);
    exchange_io::with(|io| io.look_until = None);
    match read {
        Err(error) if Instant::now() < until => Err(upstream::describe_io(&error)),
        _ => Ok(start),
    }
}

/// The body's length as the upstream declares it; chunks come without one (RFC 9112 §6.3).
pub(super) fn declared_length(fields: &HeaderMap) -> Option<u64> {
    if fields.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_path_that_a_server_does_not_have_tells_nothing_of_its_models() {
        let others =
            |may_have_model| Others { may_have_path: true, may_have_model, may_be_signed_in: true };
        let missing = r#"{"error":"model \"m\" not found, try pulling it first"}"#;
        for (mark, body, may_have_model, want) in [
            (Some(POLICY), "404 page not found", true, (Some(Outcome::Answered), false)),
            (Some(POLICY), missing, true, (Some(Outcome::Answered), false)),
            (None, "404 page not found", true, (Some(Outcome::Answered), false)),
            (None, "404 page not found", false, (Some(Outcome::Answered), false)),
            (None, "404 page not found, of another program", true, (None, false)),
            (None, missing, true, (Some(Outcome::Answered), true)),
            (None, missing, false, (None, false)),
        ] {
            let mut answer = Response::new(Body::builder().data(body));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
                .headers_mut()
                .extend(mark.map(|mark| (ERROR_FIELD, HeaderValue::from_static(mark))));
            let judged = judge(answer, false, others(may_have_model)).expect("an answer");
            assert_eq!((judged.poor, judged.lacks_model), want, "{mark:?} {body}");
        }
    }
}
