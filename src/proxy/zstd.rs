//! Decoding of zstd, to look at what is decoded: nothing of it is kept.

use std::io::{self, Read};

use ruzstd::decoding::BlockDecodingStrategy::UptoBlocks;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::FrameDecoderError::ReadFrameHeaderError;
use ruzstd::decoding::errors::ReadFrameHeaderError::SkipFrame;

/// Largest window: Ollama's (`middleware/openai.go`), and that of RFC 9659.
const MAX_WINDOW: u64 = 8 << 20;
/// Memory that decoding takes: the window, and some blocks of 128 KiB.
pub(crate) const MEMORY: usize = 9 << 20;
/// Bytes that are decoded: Ollama takes no more (`maxDecompressedBodySize`).
const MAX_DECODED: usize = 20 << 20;

/// Decodes `packed` and hands it on piece by piece, while `take` wants more.
pub(crate) fn decode(mut packed: impl Read, mut take: impl FnMut(&[u8]) -> bool) {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_WINDOW);
    let (mut piece, mut left) = (vec![0; 16 * 1024], MAX_DECODED);
    loop {
        match decoder.reset(&mut packed) {
            Ok(()) => {}
            Err(ReadFrameHeaderError(SkipFrame { length, .. })) => {
                let _ = io::copy(&mut packed.by_ref().take(length.into()), &mut io::sink());
                continue;
            }
            Err(_) => return,
        }
        while !decoder.is_finished() {
            if decoder.decode_blocks(&mut packed, UptoBlocks(1)).is_err() {
                return;
            }
            while let Ok(n @ 1..) = decoder.read(&mut piece) {
                if n > left || !take(&piece[..n]) {
                    return;
                }
                left -= n;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn decoded(packed: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        decode(packed, |piece| {
            all.extend_from_slice(piece);
            true
        });
        all
    }

    #[test]
    fn frames_one_after_another() {
        let pack = |text: &[u8]| compress_to_vec(text, CompressionLevel::Fastest);
        let long = b"abcdefgh".repeat(100_000);
        assert_eq!(decoded(&pack(&long)), long);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let both = [&skipped[..], &pack(b"one"), &skipped, &pack(b"two")].concat();
        assert_eq!(decoded(&both), b"onetwo");
        assert_eq!(decoded(&both[..both.len() - 1]), b"one");
        assert_eq!(decoded(b"{\"model\":\"m\"}"), b"");
    }

    #[test]
    fn what_would_take_too_much_is_left() {
        // Blocks of 128 KiB of one letter, four bytes each, in a window of 8 MiB and of 16.
        let bomb = |window: u8, blocks: usize| {
            let head = [0x28, 0xb5, 0x2f, 0xfd, 0, window];
            let block = ((128u32 << 10) << 3 | 1 << 1).to_le_bytes();
            [&head[..], &[&block[..3], b"x"].concat().repeat(blocks), &[1, 0, 0]].concat()
        };
        let (eight, sixteen) = (13 << 3, 14 << 3);
        assert_eq!(decoded(&bomb(eight, 100)).len(), 100 << 17);
        assert!(decoded(&bomb(eight, 1_000_000)).len() <= MAX_DECODED);
        assert_eq!(decoded(&bomb(sixteen, 1)).len(), 0);
    }

    #[test]
    fn no_input_makes_it_panic() {
        let body = br#"{"messages":[{"role":"user","content":"hello, hello, hello"}],"model":"m"}"#;
        let packed = compress_to_vec(&body.repeat(20)[..], CompressionLevel::Fastest);
        let mut random = 7u64;
        for _ in 0..20_000 {
            let mut mutated = packed.clone();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = (random >> 8) as usize % mutated.len();
                mutated[at] = random as u8;
            }
            decoded(&mutated);
        }
    }
}
