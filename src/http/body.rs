//! Framing of bodies: a strict chunk decoder and a chunk encoder. Pure: slices in, slices out.

/// Longest chunk-size line, extensions included.
const MAX_SIZE_LINE: usize = 256;
/// All trailer lines of one body together.
const MAX_TRAILERS: usize = 8 * 1024;
/// Bytes in front of a chunk's data that [`frame_chunk`] needs: 8 digits, CR, LF.
pub(crate) const CHUNK_PREFIX: usize = 10;
/// Bytes behind a chunk's data: CR, LF.
pub(crate) const CHUNK_SUFFIX: usize = 2;
/// Ends a chunked body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What comes next in a chunked body, behind `skip` bytes of framing.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `len` bytes of data, at least one.
    Data { skip: usize, len: usize },
    /// Nothing: all of the input was framing; more is needed.
    More,
    /// The body has ended; what follows is another request.
    End { skip: usize },
}

/// Decodes a chunked body (RFC 9112 §7.1), refusing what two readers could take differently.
/// Extensions and trailers are bounded and dropped.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    state: State,
    /// Of the current chunk: its size as far as it was read, then the bytes that are left of it.
    left: u64,
    /// Bytes of the current size line, or of all trailers.
    line: usize,
    /// Sizes may have spaces behind them, as old servers write them.
    is_padded: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Padding,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Ended,
}

impl ChunkDecoder {
    /// Looks at the next bytes of the body. The caller drops `skip` (all of the input for
    /// [`Step::More`]), uses `len` bytes of data, and calls again with what follows. An error says
    /// what is malformed.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, &'static str> {
        for (at, &byte) in input.iter().enumerate() {
            if let Some(len) = self.take_data(input.len() - at) {
                return Ok(Step::Data { skip: at, len });
            }
            self.state = self.next(byte)?;
            if self.state == State::Ended {
                return Ok(Step::End { skip: at + 1 });
            }
        }
        Ok(Step::More)
    }

    /// Takes extensions and trailers out of the next bytes of the body, for a reader behind this one;
    /// how many bytes are left. An error says what is malformed behind them.
    pub(crate) fn strip(&mut self, bytes: &mut [u8]) -> (usize, Result<(), &'static str>) {
        self.is_padded = true;
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let (before, rest) = (self.state, bytes.len() - at);
            let (len, is_kept) = match self.take_data(rest) {
                Some(len) => (len, true),
                // What follows the end isn't the body's, and for the reader to judge.
                None if before == State::Ended => (rest, true),
                None => match self.next(bytes[at]) {
                    Ok(state) => (1, self.moves_to(state)),
                    Err(reason) => return (kept, Err(reason)),
                },
            };
            if is_kept {
                if kept < at {
                    bytes.copy_within(at..at + len, kept);
                }
                kept += len;
            }
            at += len;
        }
        (kept, Ok(()))
    }

    /// Moves on by a byte of framing; whether that is needed to read the data.
    fn moves_to(&mut self, next: State) -> bool {
        use State::*;
        let before = std::mem::replace(&mut self.state, next);
        let is_extra = matches!(next, Padding | Extension | TrailerName | TrailerValue | TrailerLf);
        !is_extra && before != TrailerLf
    }

    /// Takes up to `most` bytes of data, if data is next.
    fn take_data(&mut self, most: usize) -> Option<usize> {
        if self.state != State::Data {
            return None;
        }
        let len = self.left.min(most as u64);
        self.left -= len;
        if self.left == 0 {
            self.state = State::DataCr;
        }
        // `len` is at most `most`, so it fits.
        Some(len as usize)
    }

    fn next(&mut self, byte: u8) -> Result<State, &'static str> {
        use State::*;
        self.line += 1;
        match (self.state, byte) {
            (Size | Padding | Extension, _) if self.line > MAX_SIZE_LINE => {
                Err("a chunk-size line is too long")
            }
            (Size | Padding | Extension, b'\r') if self.line > 1 => Ok(SizeLf),
            (Size | Padding, b';') if self.line > 1 => Ok(Extension),
            (Size, b' ' | b'\t') if self.is_padded && self.line > 1 => Ok(Padding),
            (Padding, b' ' | b'\t') => Ok(Padding),
            (Size | Padding, _) => match char::from(byte).to_digit(16) {
                // 15 hexadecimal digits stay far below u64::MAX.
                Some(digit) if self.line <= 15 && self.state == Size => {
                    self.left = self.left << 4 | u64::from(digit);
                    Ok(Size)
                }
                _ => Err("a chunk size is malformed"),
            },
            (Extension, b'\t' | 0x20..=0x7e) => Ok(Extension),
            (Extension, _) => Err("a chunk extension is malformed"),
            (SizeLf, b'\n') => {
                self.line = 0;
                Ok(if self.left == 0 { TrailerStart } else { Data })
            }
            (SizeLf, _) => Err("a bare CR in a chunk-size line"),
            (DataCr, b'\r') => Ok(DataLf),
            (DataLf, b'\n') => {
                self.line = 0;
                Ok(Size)
            }
            (DataCr | DataLf, _) => Err("a chunk is longer than its size"),
            (TrailerStart | TrailerName | TrailerValue, _) if self.line > MAX_TRAILERS => {
                Err("the trailers are too long")
            }
            (TrailerStart, b'\r') => Ok(LastLf),
            (TrailerName, b':') => Ok(TrailerValue),
            (TrailerStart | TrailerName, _) if is_token(byte) => Ok(TrailerName),
            (TrailerValue, b'\r') => Ok(TrailerLf),
            (TrailerValue, b'\t' | 0x20..=0x7e | 0x80..) => Ok(TrailerValue),
            (TrailerStart | TrailerName | TrailerValue, _) => Err("a trailer is malformed"),
            (TrailerLf, b'\n') => Ok(TrailerStart),
            (LastLf, b'\n') => Ok(Ended),
            (TrailerLf | LastLf, _) => Err("a bare CR in a trailer"),
            // `step` handles these two itself.
            (Data | Ended, _) => Ok(self.state),
        }
    }
}

/// Whether a byte may be part of a field's name (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Frames the data at `buffer[CHUNK_PREFIX..]` as one chunk, in place; returns the range to write.
/// `len` is at least 1, and the buffer has [`CHUNK_SUFFIX`] bytes behind the data.
pub(crate) fn frame_chunk(buffer: &mut [u8], len: usize) -> std::ops::Range<usize> {
    let end = CHUNK_PREFIX + len;
    buffer[end..end + CHUNK_SUFFIX].copy_from_slice(b"\r\n");
    buffer[CHUNK_PREFIX - 2..CHUNK_PREFIX].copy_from_slice(b"\r\n");
    let mut start = CHUNK_PREFIX - 2;
    let mut rest = len;
    while rest > 0 {
        start -= 1;
        buffer[start] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
    }
    start..end + CHUNK_SUFFIX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` in pieces of `piece` bytes; returns data and what followed the end.
    fn decode(input: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
        let mut decoder = ChunkDecoder::default();
        let mut data = Vec::new();
        let mut used = 0;
        while used < input.len() {
            let window = &input[used..input.len().min(used + piece)];
            match decoder.step(window)? {
                Step::Data { skip, len } => {
                    data.extend_from_slice(&window[skip..skip + len]);
                    used += skip + len;
                }
                Step::More => used += window.len(),
                Step::End { skip } => return Ok(Some((data, input.len() - used - skip))),
            }
        }
        Ok(None)
    }

    #[test]
    fn bodies_decode_alike_in_pieces_of_any_size() {
        let input = b"5\r\nhello\r\n00006;a=\"b\" ;c\r\n world\r\n0\r\nX: y\r\nZ: \xe9\r\n\r\nGET";
        for piece in 1..=input.len() {
            assert_eq!(decode(input, piece), Ok(Some((b"hello world".to_vec(), 3))), "{piece}");
        }
        for len in 0..input.len() - 3 {
            assert_eq!(decode(&input[..len], 7), Ok(None), "a body cut at {len} isn't complete");
        }
    }

    /// The same by way of [`strip`](ChunkDecoder::strip): what is left of it.
    fn strip(input: &[u8], piece: usize) -> (Vec<u8>, Result<(), &'static str>) {
        let mut decoder = ChunkDecoder::default();
        let mut left = Vec::new();
        for piece in input.chunks(piece) {
            let mut piece = piece.to_vec();
            let (kept, result) = decoder.strip(&mut piece);
            left.extend_from_slice(&piece[..kept]);
            if result.is_err() {
                return (left, result);
            }
        }
        (left, Ok(()))
    }

    #[test]
    fn what_is_not_needed_to_read_the_data_is_taken_out() {
        let input =
            b"5 \t;a\r\nhello\r\n00006 ;b=\"c\" ;\r\n world\r\n0;d\r\nX: y\r\nZ: \xe9\r\n\r\nHTTP";
        for piece in 1..=input.len() {
            let want = b"5\r\nhello\r\n00006\r\n world\r\n0\r\n\r\nHTTP".to_vec();
            assert_eq!(strip(input, piece), (want, Ok(())), "{piece}");
        }
        let (left, result) = strip(b"5;a\r\nhello\r\n1\nx", 64);
        assert!(left == b"5\r\nhello\r\n1" && result.is_err());
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for bad in [
            &b"5\nhello\r\n"[..],
            b"5\r\nhello\n",
            b"5\r\nhello!\r\n",
            b"5\r\nhell\r\n0\r\n\r\n",
            b"+5\r\n",
            b"-5\r\n",
            b"0x5\r\n",
            b" 5\r\n",
            b"5 \r\n",
            b"\r\n",
            b";x\r\n",
            b"g\r\n",
            b"5\r\r\n",
            b"5;\n\r\n",
            b"5;a\0\r\n",
            b"1000000000000000\r\n",
            b"ffffffffffffffff\r\n",
            b"0\r\nX: y\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
            b"0\r\n X: y\r\n\r\n",
            b"0\r\nX: y\r\n z\r\n\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\n: y\r\n\r\n",
            b"0\r\nX: \x7f\r\n\r\n",
            b"0\r\nX: y\r\r\n",
            b"0\r\n\n",
        ] {
            assert!(decode(bad, 64).is_err(), "{:?}", String::from_utf8_lossy(bad));
            assert!(decode(bad, 1).is_err(), "{:?}", String::from_utf8_lossy(bad));
            // Padding behind a size is the only thing that an upstream may do and a client mustn't.
            let is_refused = strip(bad, 1).1.is_err();
            assert_eq!(is_refused, *bad != *b"5 \r\n", "{:?}", String::from_utf8_lossy(bad));
        }
        let long = [b"5;".as_slice(), &[b'x'; 300]].concat();
        assert!(decode(&long, 1000).is_err());
        let trailers = [b"0\r\nX: ".as_slice(), &[b'x'; 9000]].concat();
        assert!(decode(&trailers, 100).is_err());
    }

    #[test]
    fn chunks_are_framed_in_place() {
        for len in [1, 15, 16, 255, 4096, 65535] {
            let mut buffer = vec![b'x'; CHUNK_PREFIX + len + CHUNK_SUFFIX];
            let range = frame_chunk(&mut buffer, len);
            let mut framed = buffer[range].to_vec();
            assert!(framed.starts_with(format!("{len:x}\r\nx").as_bytes()));
            framed.extend_from_slice(LAST_CHUNK);
            assert_eq!(decode(&framed, 999), Ok(Some((vec![b'x'; len], 0))));
        }
    }
}
