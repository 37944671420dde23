//! Sizes of buffers on the way of a request; and ureq's buffers, which stay small for token streams
//! and grow for bulk data and large heads.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::mem::{replace, take};

use memchr::memmem;
use ureq::unversioned::transport::Buffers;

use crate::http::body::ChunkDecoder;
use crate::http::head::MAX_FIELD_LINE;

/// Buffers start with this many bytes, and grow up to [`LARGE`] while data comes faster than it
/// leaves.
pub(crate) const SMALL: usize = 4 * 1024;
pub(crate) const LARGE: usize = 32 * 1024;
/// Bytes of the longest head of an answer: with one more, the buffer is full.
pub(super) const MAX_ANSWER_HEAD: usize = LARGE - 1;
/// Enough for one token after the other.
pub(crate) const TOKENS: usize = 1024;

thread_local! {
    /// Of [`SMALL`] bytes each: what this thread's last request has used, its next one uses again.
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}
/// The input's and the output's.
const MAX_SPARES: usize = 2;

// ureq writes a field line in one piece.
const _: () = assert!(MAX_FIELD_LINE <= LARGE);

#[derive(Debug, Default)]
pub(super) struct GrowingBuffers {
    input: Vec<u8>,
    /// `input[consumed..filled]` isn't consumed yet.
    consumed: usize,
    filled: usize,
    /// Made when it is first used, `wanted_output` bytes large.
    pub(super) output: Vec<u8>,
    pub(super) wanted_output: usize,
    /// Whether the last use of the input consumed some of it.
    progress: bool,
    /// Whether the last read took all the space there was.
    pub(super) was_filled: bool,
    /// Whether more of an answer was awaited than its beginning.
    is_awaited: bool,
    /// Sees the chunks of an answer before ureq does, which waits for the end of a malformed line and
    /// takes long extensions for one.
    chunks: Option<ChunkDecoder>,
    /// What is wrong with the chunks, behind the input.
    malformed: Option<&'static str>,
}

impl GrowingBuffers {
    /// Makes them as small as a stream of tokens needs, if more is awaited than a body behind its head.
    pub(super) fn settle(&mut self) {
        if !replace(&mut self.is_awaited, true) || self.output.is_empty() {
            return;
        }
        self.output = Vec::new();
        self.wanted_output = 0;
        if !self.was_filled && self.filled == 0 {
            self.input = vec![0; TOKENS];
        }
    }

    /// Gives its memory up while its connection is idle; to this thread, if another request is likely.
    pub(super) fn rest(&mut self, is_more_likely: bool) {
        if self.consumed < self.filled {
            return;
        }
        let GrowingBuffers { input, output, .. } = take(self);
        if is_more_likely {
            let fit = [input, output].into_iter().filter(|buffer| buffer.len() == SMALL);
            SPARES.with_borrow_mut(|spares| spares.extend(fit.take(MAX_SPARES - spares.len())));
        }
    }

    /// From what isn't consumed yet on, the input is a body in chunks.
    pub(super) fn begin_chunks(&mut self) {
        self.chunks = Some(ChunkDecoder::default());
        self.strip(self.consumed);
    }

    /// The next answer begins.
    pub(super) fn begin_answer(&mut self) {
        (self.chunks, self.malformed, self.is_awaited) = (None, None, false);
    }

    /// Leaves of the input's chunks behind `start` what ureq needs.
    fn strip(&mut self, start: usize) {
        if let Some(chunks) = &mut self.chunks {
            let (left, result) = chunks.strip(&mut self.input[start..self.filled]);
            self.filled = start + left;
            self.malformed = result.err();
        }
    }

    /// Whether more input may come.
    pub(super) fn check(&self) -> io::Result<()> {
        self.malformed.map_or(Ok(()), |reason| {
            let message = format!("malformed chunks: {reason}");
            Err(io::Error::new(ErrorKind::InvalidData, message))
        })
    }
}

/// An interim answer in front, by itself: ureq takes all that came with it for its head.
fn interim(input: &[u8]) -> Option<&[u8]> {
    if !(input.starts_with(b"HTTP/1.") && input.get(8..10) == Some(b" 1")) {
        return None;
    }
    Some(&input[..memmem::find(input, b"\r\n\r\n")? + 4])
}

fn grow(buffer: &mut Vec<u8>, wanted: usize) {
    if buffer.is_empty()
        && wanted == SMALL
        && let Some(spare) = SPARES.with_borrow_mut(Vec::pop)
    {
        *buffer = spare;
    } else if buffer.len() < wanted {
        buffer.resize(wanted, 0);
    }
}

impl Buffers for GrowingBuffers {
    fn output(&mut self) -> &mut [u8] {
        grow(&mut self.output, self.wanted_output);
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        let input = &self.input[self.consumed..self.filled];
        interim(input).unwrap_or(input)
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.filled == self.input.len() || self.was_filled {
            // Twice as much, from 4 KiB up to 32 KiB; a larger head is refused by its size.
            let wanted = (self.input.len() * 2).clamp(SMALL, LARGE);
            grow(&mut self.input, wanted);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        let start = self.filled;
        self.filled += amount;
        self.strip(start);
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed += amount;
        if self.consumed == self.filled {
            self.consumed = 0;
            self.filled = 0;
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        grow(&mut self.output, self.wanted_output);
        grow(&mut self.input, self.filled + self.output.len().max(SMALL));
        (&mut self.input[self.filled..], &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.progress && self.filled > self.consumed
    }
}
