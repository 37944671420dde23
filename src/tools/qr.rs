//! A text as a QR code of half blocks, for the camera of a phone.

use qrcodegen::{QrCode, QrCodeEcc};

/// Light modules that a reader wants around the code (ISO/IEC 18004 §5.3.8).
const QUIET: i32 = 4;
/// Black on white, whatever the terminal's colours are.
const COLOURS: &str = "\x1b[38;5;16;48;5;231m";
const USUAL: &str = "\x1b[0m";

/// The code in lines, each of which has two rows of modules; empty if the text is too long for one.
pub(super) fn drawn(text: &str) -> String {
    let Ok(code) = QrCode::encode_text(text, QrCodeEcc::Low) else { return String::new() };
    let end = code.size() + QUIET;
    let row = |y: i32| {
        let blocks =
            (-QUIET..end).map(|x| match (code.get_module(x, y), code.get_module(x, y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        format!("{COLOURS}{}{USUAL}\n", blocks.collect::<String>())
    };
    (-QUIET..end).step_by(2).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_where_it_belongs() {
        let text = "ollana-4f0c1be27a5d43e89bd16c70f2a8e935";
        let code = QrCode::encode_text(text, QrCodeEcc::Low).expect("short enough");
        let drawn = drawn(text);
        let lines = drawn.lines().map(|line| {
            let line = line.strip_prefix(COLOURS).and_then(|line| line.strip_suffix(USUAL));
            line.expect("its colours").chars().collect::<Vec<char>>()
        });
        let lines: Vec<_> = lines.collect();
        assert!(lines.len() <= 20 && lines[0].len() <= 40, "it fits any terminal");
        for (y, line) in (-QUIET..).step_by(2).zip(&lines) {
            for (x, block) in (-QUIET..).zip(line) {
                let dark = [matches!(block, '█' | '▀'), matches!(block, '█' | '▄')];
                assert_eq!(dark, [code.get_module(x, y), code.get_module(x, y + 1)], "{x} {y}");
            }
        }
        assert_eq!(super::drawn(&"x".repeat(3000)), "");
    }
}
