//! The page of results: the part of `scripts/bench/README.md` between two marks, and two plots
//! beside it. All of it is made of `bench.json`; what stands outside of the marks is written by
//! people, and stays.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::children::Failable;
use super::parts::{
    BULK, BULK_CPU, EVENTS, FIRST_BYTE, MEMORY, REQUEST_CPU, REQUESTS, STREAMS, TOKEN_CPU, TOKENS,
    streams_label,
};
use super::plot::{Line, Look, Panel, Plot};
use super::table::number;

const BEGIN: &str = "<!-- results: begin (cargo bench --bench bench -- --page) -->";
const END: &str = "<!-- results: end -->";
/// More than this and the figures are not to be quoted.
const BUSY: f64 = 0.1;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}
use Target::{AtLeast, AtMost, None as Free};

impl Target {
    /// Two cells: the target, and whether `value` meets it.
    fn cells(self, value: Option<f64>) -> String {
        let (sign, limit, is_met) = match self {
            Free => return "| | |".to_owned(),
            AtMost(limit) => ("≤", limit, value.map(|value| value <= limit)),
            AtLeast(limit) => ("≥", limit, value.map(|value| value >= limit)),
        };
        let mark = match is_met {
            Some(true) => "✓ met",
            Some(false) => "✗ missed",
            None => "–",
        };
        format!("| {sign} {limit} | {mark} |")
    }
}

/// Title, section and row of the results, what the ratio should be.
type Ratio = (&'static str, &'static str, &'static str, Target);

const LESS: &[Ratio] = &[
    ("added delay of a token, µs: 1 stream, p50", TOKENS, "1 stream, p50", Free),
    ("– p99", TOKENS, "1 stream, p99", Free),
    ("– 64 streams, p50", TOKENS, "64 streams, p50", Free),
    ("– p99", TOKENS, "64 streams, p99", Free),
    ("– 256 streams, p50", TOKENS, "256 streams, p50", Free),
    ("– p99", TOKENS, "256 streams, p99", Free),
    ("– 1,000 streams, p50", TOKENS, "1,000 streams, p50", Free),
    ("– p99", TOKENS, "1,000 streams, p99", AtMost(1.2)),
    ("CPU per token, µs: 10 streams", TOKEN_CPU, "10 streams", Free),
    ("– 64 streams", TOKEN_CPU, "64 streams", AtMost(1.1)),
    ("– 256 streams", TOKEN_CPU, "256 streams", AtMost(1.1)),
    ("– 1,000 streams", TOKEN_CPU, "1,000 streams", AtMost(1.1)),
    (
        "added to the first byte, µs: kept connection, p50",
        FIRST_BYTE,
        "kept connection, p50",
        AtMost(1.2),
    ),
    ("– p99", FIRST_BYTE, "kept connection, p99", Free),
    ("– new connection, p50", FIRST_BYTE, "new connection, p50", AtMost(1.4)),
    ("– p99", FIRST_BYTE, "new connection, p99", Free),
    ("CPU per small request, µs: 1 connection", REQUEST_CPU, "1 connection", AtMost(1.5)),
    ("– 16 connections", REQUEST_CPU, "16 connections", AtMost(1.5)),
    ("– 64 connections", REQUEST_CPU, "64 connections", AtMost(1.5)),
    ("CPU-seconds per GB: down by length", BULK_CPU, "down by length", Free),
    ("– down in chunks", BULK_CPU, "down in chunks", Free),
    ("– up by length", BULK_CPU, "up by length", Free),
    ("– up in chunks", BULK_CPU, "up in chunks", Free),
    ("hang-up until Ollama knows, µs: waiting", EVENTS, "hang-up, waiting, µs", Free),
    ("– streaming", EVENTS, "hang-up, streaming, µs", Free),
    ("from exec to listening, ms", EVENTS, "exec to listening, ms", Free),
];
const MORE: &[Ratio] = &[
    ("small requests per second: 1 connection", REQUESTS, "1 connection", Free),
    ("– 16 connections", REQUESTS, "16 connections", AtLeast(0.9)),
    ("– 64 connections", REQUESTS, "64 connections", AtLeast(0.8)),
    ("bulk, GB/s: down by length", BULK, "down by length", Free),
    ("– down in chunks", BULK, "down in chunks", AtLeast(1.0)),
    ("– up by length", BULK, "up by length", Free),
    ("– up in chunks", BULK, "up in chunks", Free),
];
/// Beside two hops in clear.
const ENCRYPTED: &[Ratio] = &[
    (
        "added to the first byte, µs: kept connection, p50",
        FIRST_BYTE,
        "kept connection, p50",
        AtMost(1.1),
    ),
    ("– new connection, p50", FIRST_BYTE, "new connection, p50", AtMost(1.1)),
    ("added delay of a token, µs: 1 stream, p50", TOKENS, "1 stream, p50", AtMost(1.1)),
    ("– 64 streams, p50", TOKENS, "64 streams, p50", AtMost(1.1)),
    ("– 1,000 streams, p50", TOKENS, "1,000 streams, p50", AtMost(1.1)),
    ("– p99", TOKENS, "1,000 streams, p99", Free),
    ("CPU per token, µs: 64 streams", TOKEN_CPU, "64 streams", Free),
    ("bulk, GB/s: down by length", BULK, "down by length", Free),
    ("– up by length", BULK, "up by length", Free),
];
/// Of the section on memory; the target is for the figure itself.
const RESIDENT: &[(&str, &str, Target)] = &[
    ("idle, KiB", "idle, resident KiB", Free),
    ("idle, static build, KiB (2.5 MB)", "idle, static build, KiB", AtMost(2441.0)),
    ("1 stream, KiB", "1 stream, KiB", Free),
    ("1,000 streams, KiB", "1,000 streams, KiB", Free),
    ("each further stream, KiB", "KiB per further stream", AtMost(32.0)),
    ("each of 2,000 idle kept connections, KiB", "KiB per idle connection", AtMost(4.0)),
    ("threads, idle", "idle, threads", Free),
    ("threads with 1,000 streams", "1,000 streams, threads", Free),
    ("threads with 2,000 idle kept connections", "2,000 idle, threads", Free),
];

/// Writes the page and its plots.
pub(crate) fn write(results: &Value) -> Failable<()> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/bench");
    let page = dir.join("README.md");
    let text = fs::read_to_string(&page)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) =
        parts.ok_or("scripts/bench/README.md has lost the marks of its results")?;
    let results = Results(results);
    fs::write(&page, format!("{before}{BEGIN}\n{}{END}{after}", results.markdown()))?;
    fs::write(dir.join("tokens.svg"), results.tokens().svg())?;
    fs::write(dir.join("memory.svg"), results.memory().svg())?;
    println!("The page: {}", page.display());
    Ok(())
}

/// What was measured, as it is in `bench.json`.
struct Results<'a>(&'a Value);

impl Results<'_> {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    fn row(&self, section: &str, row: &str, proxy: &str, hops: u64) -> Option<&Value> {
        self.0["rows"].as_array()?.iter().find(|it| {
            it["section"] == section
                && it["row"] == row
                && it["proxy"] == proxy
                && it["hops"] == hops
        })
    }

    /// The median of one row, with what the direct way needs.
    fn whole(&self, section: &str, row: &str, proxy: &str, hops: u64) -> Option<f64> {
        self.row(section, row, proxy, hops)?["median"].as_f64()
    }

    /// The same without it, where the row is about that.
    fn shown(&self, section: &str, row: &str, proxy: &str, hops: u64) -> Option<f64> {
        self.row(section, row, proxy, hops)?["shown"].as_f64()
    }

    fn ratio(&self, section: &str, row: &str, proxy: &str, other: &str, hops: u64) -> Option<f64> {
        self.row(section, row, proxy, hops)?["ratios"][other].as_f64()
    }

    fn markdown(&self) -> String {
        let mut text = self.head();
        text.push_str(
            "\n| | Ollana | : nginx | : HAProxy | target | |\n|---|---|---|---|---|---|\n\
             | *less is better* | | | | | |\n",
        );
        self.compare(&mut text, LESS);
        text.push_str("| *more is better* | | | | | |\n");
        self.compare(&mut text, MORE);
        text.push_str(
            "\n![Delay of a token against the number of streams](tokens.svg)\n\n\
             | resident memory, one hop | Ollana | nginx | HAProxy | target | |\n\
             |---|---|---|---|---|---|\n",
        );
        for (title, row, target) in RESIDENT {
            let own = self.whole(MEMORY, row, "ollana", 1);
            let cells = ["ollana", "nginx", "haproxy"]
                .map(|proxy| self.whole(MEMORY, row, proxy, 1).map_or(String::new(), number));
            let _ = writeln!(text, "| {title} | {} {}", cells.join(" | "), target.cells(own));
        }
        text.push_str("\n![Resident memory against the number of streams](memory.svg)\n");
        if self.row(TOKENS, "1 stream, p50", "paired", 2).is_some() {
            text.push_str(
                "\n| two hops, encrypted between them | encrypted | in clear | ratio | target | |\n\
                 |---|---|---|---|---|---|\n",
            );
            for (title, section, row, target) in ENCRYPTED {
                let ratio = self.ratio(section, row, "paired", "ollana", 2);
                let [paired, clear] = ["paired", "ollana"]
                    .map(|proxy| self.shown(section, row, proxy, 2).map_or(String::new(), number));
                let shown = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
                let cells = target.cells(ratio);
                let _ = writeln!(text, "| {title} | {paired} | {clear} | {shown} {cells}");
            }
        }
        self.alone(&mut text);
        text
    }

    /// When and where.
    fn head(&self) -> String {
        let version = |proxy: &str| self.0["versions"][proxy].as_str().unwrap_or("(absent)");
        let busy = self.0["busy"].as_f64().unwrap_or(0.0);
        let mut text = format!(
            "Measured on {} on {}:\nOllana {} beside nginx {} and HAProxy {}. \
             Form: {}; rounds: {}; {} s.\n\
             Before and after that the machine was {:.0} % busy with other things.\n",
            self.text("date"),
            self.text("machine"),
            version("ollana"),
            version("nginx"),
            version("haproxy"),
            self.text("form"),
            self.0["rounds"],
            self.0["seconds"],
            busy * 100.0
        );
        if busy > BUSY || self.text("form") == "quick" {
            text.push_str(
                "\n**These figures are a trial:** the machine was busy or the form was quick. \
                 They are not to be quoted.\n",
            );
        }
        text
    }

    /// Ratios to the others. The target is for one hop beside nginx.
    fn compare(&self, text: &mut String, rows: &[Ratio]) {
        for (title, section, row, target) in rows {
            let cell = |value: &dyn Fn(u64) -> Option<f64>, show: &dyn Fn(f64) -> String| {
                let values = [1, 2].map(|hops| value(hops).map(show));
                match values {
                    [None, None] => String::new(),
                    [one, None] => one.unwrap_or_default(),
                    [one, two] => {
                        format!("{}, {}", one.unwrap_or("–".to_owned()), two.unwrap_or_default())
                    }
                }
            };
            let own = cell(&|hops| self.shown(section, row, "ollana", hops), &number);
            let [nginx, haproxy] = ["nginx", "haproxy"].map(|other| {
                cell(&|hops| self.ratio(section, row, "ollana", other, hops), &|it| {
                    format!("{it:.2}")
                })
            });
            let ratio = self.ratio(section, row, "ollana", "nginx", 1);
            let _ =
                writeln!(text, "| {title} | {own} | {nginx} | {haproxy} {}", target.cells(ratio));
        }
    }

    /// What the others can't do.
    fn alone(&self, text: &mut String) {
        text.push_str("\n| Ollana alone | |\n|---|---|\n");
        let rows = [
            (
                "exec of client and server until the first answer, ms",
                EVENTS,
                "exec of both to 200, ms",
                1,
            ),
            (
                "death of a server until another one's answer, ms",
                EVENTS,
                "dead server to answer, ms",
                2,
            ),
            ("instructions per small request, 1,000s", REQUEST_CPU, "instructions, 1,000s", 1),
        ];
        for (title, section, row, hops) in rows {
            if let Some(value) = self.whole(section, row, "ollana", hops) {
                let _ = writeln!(text, "| {title} | {} |", number(value));
            }
        }
        for pair in self.0["choosing"]["lines"].as_array().into_iter().flatten() {
            let [title, value] = [0, 1].map(|at| pair[at].as_str().unwrap_or_default());
            let _ = writeln!(text, "| {title} | {value} |");
        }
    }

    fn line(
        &self,
        (proxy, name, look): (&str, &str, Look),
        (section, hops): (&str, u64),
        row: impl Fn(usize) -> String,
        scale: f64,
    ) -> Line {
        let points = STREAMS.into_iter().filter_map(|count| {
            let value = self.whole(section, &row(count), proxy, hops)? / scale;
            Some((count as f64, value)).filter(|_| value > 0.0)
        });
        Line { name: name.to_owned(), look, is_dashed: false, points: points.collect() }
    }

    fn tokens(&self) -> Plot {
        let mut panels = Vec::new();
        for (hops, title) in [(1, "one hop"), (2, "two hops")] {
            let mut lines = Vec::new();
            for (part, is_dashed) in [("p50", false), ("p99", true)] {
                let row = |count| format!("{}, {part}", streams_label(count));
                for (proxy, name, look) in PROXIES {
                    let name = format!("{name}, {part}");
                    let line = self.line((proxy, &name, look), (TOKENS, hops), row, 1.0);
                    lines.push(Line { is_dashed, ..line });
                }
                let name = format!("no proxy, {part}");
                let direct = self.line(("direct", &name, Look::Plain), (TOKENS, 0), row, 1.0);
                lines.push(Line { is_dashed, ..direct });
            }
            lines.retain(|line| !line.points.is_empty());
            panels.push(Panel { title, lines });
        }
        Plot {
            title: "From the making of a token to its reading",
            x_axis: "streams at once, 25 tokens a second each",
            y_axis: "delay of a token, µs",
            panels,
        }
    }

    fn memory(&self) -> Plot {
        let row = |count| format!("{}, KiB", streams_label(count));
        let lines = PROXIES.map(|proxy| self.line(proxy, (MEMORY, 1), row, 1024.0));
        let lines = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
        Plot {
            title: "Resident memory of one proxy",
            x_axis: "streams at once",
            y_axis: "resident memory, MiB",
            panels: vec![Panel { title: "one hop", lines }],
        }
    }
}

/// As they are called in the results, as people call them, and how they look.
const PROXIES: [(&str, &str, Look); 3] = [
    ("ollana", "Ollana", Look::Own),
    ("nginx", "nginx", Look::Second),
    ("haproxy", "HAProxy", Look::Third),
];
