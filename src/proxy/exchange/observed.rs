//! What is read along of an answer that passes: tokens, the model, the progress of a pull.

use crate::counters::TransferGuard;
use crate::ollama::model_name::ModelName;
use crate::ollama::stream_end::{Format, Lines, StreamEnd};
use crate::ollama::subject;

#[derive(Default)]
pub(super) struct Observed<'a> {
    pub(super) format: Option<Format>,
    is_counted: bool,
    /// Something of interest may stand in its last line.
    keeps_tail: bool,
    tail: StreamEnd,
    has_begun: bool,
    line_breaks: u64,
    tokens: u64,
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
        }
        self.tail.push(bytes);
        if let Some(underway) = self.progress {
            self.lines.push(bytes, &mut |line| underway.read(line));
        }
        self.count(bytes)
    }

    /// Ollama sends about one token per line or event; what it tells at the end is exact, and makes
    /// up for the rest.
    fn count(&mut self, bytes: &[u8]) -> u64 {
        let per_message = match self.format {
            Some(Format::Ndjson) if self.is_counted => 1,
            Some(Format::EventStream) if self.is_counted => 2,
            _ => return 0,
        };
        self.line_breaks += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        // The last message holds no token.
        let tokens = (self.line_breaks / per_message).saturating_sub(1);
        tokens - std::mem::replace(&mut self.tokens, tokens)
    }

    /// Tokens that the answer says to have, beyond those that were counted as they passed.
    pub(super) fn uncounted_tokens(&self) -> u64 {
        if !self.is_counted {
            return 0;
        }
        (self.told_tokens().unwrap_or(0.0) as u64).saturating_sub(self.tokens)
    }

    fn told_tokens(&self) -> Option<f64> {
        ["eval_count", "completion_tokens", "output_tokens"]
            .into_iter()
            .find_map(|member| self.tail.number(member))
    }

    /// Tokens per second, as the last line of Ollama's streams tells them.
    pub(super) fn speed(&self) -> Option<f64> {
        self.format.filter(|format| *format == Format::Ndjson)?;
        let tokens = self.told_tokens()?;
        let seconds = self.tail.number("eval_duration")? / 1e9;
        // A handful of tokens says little.
        (tokens >= 8.0 && seconds > 0.0).then(|| tokens / seconds)
    }

    /// The format in which a failure can still be told, and what has to stand in front of it; none
    /// if the upstream has told one itself.
    pub(super) fn room_for_error(&self) -> Option<(Format, &'static str)> {
        let format = self.format.filter(|format| !self.tail.tells_error(*format))?;
        Some((format, self.tail.separator(format)))
    }
}
