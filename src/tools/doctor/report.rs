//! The findings, as text and as JSON. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::net::untrusted_text::printable_whole;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Well,
    Note,
    /// It works, but not for everybody or not safely.
    Warning,
    /// It can't work.
    Wrong,
}

impl Level {
    /// Its word, and the colour that a terminal shows it in.
    fn look(self) -> (&'static str, &'static str) {
        match self {
            Level::Well => ("ok", "32"),
            Level::Note => ("note", "36"),
            Level::Warning => ("warn", "33"),
            Level::Wrong => ("WRONG", "31"),
        }
    }
}

pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) area: &'static str,
    pub(super) text: String,
    /// What to do about it.
    pub(super) fix: Option<String>,
}

/// Findings in the order in which they were made.
#[derive(Default)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    area: &'static str,
}

impl Report {
    pub(super) fn about(&mut self, area: &'static str) {
        self.area = area;
    }

    fn add(&mut self, level: Level, text: String, fix: Option<String>) {
        // Names in it come from the network.
        let (text, fix) = (printable_whole(&text), fix.as_deref().map(printable_whole));
        self.findings.push(Finding { level, area: self.area, text, fix });
    }

    pub(super) fn well(&mut self, text: impl Into<String>) {
        self.add(Level::Well, text.into(), None);
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.add(Level::Note, text.into(), None);
    }

    pub(super) fn hint(&mut self, text: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Note, text.into(), Some(fix.into()));
    }

    pub(super) fn warn(&mut self, text: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Warning, text.into(), Some(fix.into()));
    }

    pub(super) fn wrong(&mut self, text: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Wrong, text.into(), Some(fix.into()));
    }

    pub(super) fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.level < Level::Warning)
    }

    pub(super) fn text(&self, has_colours: bool) -> String {
        let mut out = String::new();
        let mut area = "";
        for finding in &self.findings {
            if finding.area != area {
                area = finding.area;
                let _ = writeln!(out, "{area}");
            }
            let (word, colour) = finding.level.look();
            let (on, off) = match has_colours {
                true => (format!("\u{1b}[{colour}m"), "\u{1b}[0m"),
                false => (String::new(), ""),
            };
            let text = wrapped(&finding.text, 72).join("\n        ");
            let _ = writeln!(out, "  {on}{word:5}{off} {text}");
            if let Some(fix) = &finding.fix {
                // Under a note, nothing is broken.
                let word = if finding.level < Level::Warning { "tip" } else { "fix" };
                let lines = wrapped(fix, 67).join("\n             ");
                let _ = writeln!(out, "        {word}: {lines}");
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        match (count(Level::Wrong), count(Level::Warning)) {
            (0, 0) => out + "all is well\n",
            (wrong, warnings) => out + &format!("wrong: {wrong}, warnings: {warnings}\n"),
        }
    }

    pub(super) fn json(&self) -> String {
        let value = |Finding { level, area, text, fix }: &Finding| {
            let level = level.look().0.to_ascii_lowercase();
            json!({ "level": level, "area": area, "text": text, "fix": fix })
        };
        let findings: Value = self.findings.iter().map(value).collect();
        format!("{}\n", json!({ "version": 1, "ok": self.is_well(), "findings": findings }))
    }
}

/// Lines of at most `width` characters, broken at blanks.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let room = |line: &str| line.chars().count() + 1 + word.chars().count() <= width;
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if room(line) => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// What to do on Linux, on macOS, or on Windows.
pub(super) fn by_system(
    linux: &'static str,
    macos: &'static str,
    windows: &'static str,
) -> &'static str {
    match std::env::consts::OS {
        "windows" => windows,
        "macos" => macos,
        _ => linux,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.about("ports");
        report.well("free");
        report.wrong("a very long line ".repeat(12), "a very long fix ".repeat(12));
        report.about("servers");
        report.hint("esc \u{1b}[31m", "nothing");
        report
    }

    #[test]
    fn lines_fit_a_terminal_and_names_cannot_colour_it() {
        let text = report().text(false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.starts_with("ports\n  ok    free\n  WRONG a very long"), "{text}");
        assert!(text.contains("\n        fix: a very"), "{text}");
        assert!(text.ends_with("wrong: 1, warnings: 0\n"), "{text}");
        assert!(report().text(true).contains("\u{1b}[31mWRONG\u{1b}[0m"));
    }

    #[test]
    fn only_what_has_to_be_done_counts() {
        let mut report = report();
        assert!(!report.is_well());
        report.findings.remove(1);
        assert!(report.is_well());
        assert!(report.text(false).ends_with("all is well\n"));
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["ok"], &json["findings"][1]["fix"]), (&true.into(), &"nothing".into()));
    }
}
