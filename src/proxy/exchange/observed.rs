//! What is read along of an answer that passes: tokens, the model, the progress of a pull.

use crate::counters::TransferGuard;
use crate::ollama::errors::{self, Broken};
use crate::ollama::model_name::ModelName;
use crate::ollama::stream_end::{Format, Lines, StreamEnd, Tokens};
use crate::ollama::subject;

#[derive(Default)]
pub(super) struct Observed<'a> {
    pub(super) format: Option<Format>,
    is_counted: bool,
    /// Something of interest may stand in its last line.
    keeps_tail: bool,
    tail: StreamEnd,
    has_begun: bool,
    tokens: Tokens,
    /// What a stream of `/v1/responses` calls itself.
    response: Option<String>,
    /// Where the progress is shown that its lines tell of.
    progress: Option<&'a TransferGuard>,
    lines: Lines,
    /// The model that the answer names first, for requests that weren't looked at.
    pub(super) model: Option<ModelName>,
}

impl<'a> Observed<'a> {
    pub(super) fn new(
        content_type: Option<&str>,
        is_counted: bool,
        progress: Option<&'a TransferGuard>,
    ) -> Self {
        let format = content_type.and_then(Format::of);
        let is_json = content_type.is_some_and(|media| media.starts_with("application/json"));
        Observed {
            format,
            is_counted,
            keeps_tail: format.is_some() || (is_counted && is_json),
            progress: progress.filter(|_| format == Some(Format::Ndjson)),
            ..Observed::default()
        }
    }

    /// Looks at the next bytes; returns how many tokens they have.
    pub(super) fn look(&mut self, bytes: &[u8]) -> u64 {
        if !self.keeps_tail {
            return 0;
        }
        if self.is_counted && !std::mem::replace(&mut self.has_begun, true) {
            let model = subject::subject(bytes).model;
            self.model = model.as_deref().and_then(ModelName::parse);
            self.response = errors::response_id(bytes);
        }
        self.tail.push(bytes);
        if let Some(underway) = self.progress {
            self.lines.push(bytes, &mut |line| underway.read(line));
        }
        match self.format {
            Some(format) if self.is_counted => self.tokens.push(format, bytes),
            _ => 0,
        }
    }

    /// Tokens that the answer has, beyond those that were counted as they passed.
    pub(super) fn uncounted_tokens(&self) -> u64 {
        if !self.is_counted {
            return 0;
        }
        self.tokens.rest(self.format, self.tail.told())
    }

    /// Tokens per second, as Ollama's own answers tell them.
    pub(super) fn speed(&self) -> Option<f64> {
        let told = if self.is_counted { self.tail.told()? } else { return None };
        let seconds = told.seconds.filter(|seconds| *seconds > 0.0)?;
        // A handful of tokens says little.
        (told.tokens >= 8).then(|| told.tokens as f64 / seconds)
    }

    /// Where the stream stands, if a failure can still be told in it, and what has to stand in front
    /// of that; none if the upstream has told one itself.
    pub(super) fn room_for_error(&self) -> Option<(Broken<'_>, &'static str)> {
        let format = self.format.filter(|format| !self.tail.tells_error(*format))?;
        let broken =
            Broken { format, events: self.tokens.events(), response: self.response.as_deref() };
        Some((broken, self.tail.separator(format)))
    }
}
