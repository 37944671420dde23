//! Text for a terminal: tables that fit its width, cleaned names, figures with units. Pure.

use serde_json::Value;

use crate::config::elapsed;
pub(super) use crate::net::untrusted_text::printable as clean;
pub(super) use crate::system::size_text as bytes;

pub(super) struct Column {
    title: &'static str,
    align: Align,
    /// It is cut when nothing else can be: without it, a row says nothing.
    is_main: bool,
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// A line of a table.
pub(super) enum Row {
    Cells(Vec<Cell>),
    /// Text below a row, indented, cut to the table's width.
    Note(String, Tone),
}

pub(super) struct Cell(pub(super) String, pub(super) Tone);

/// The meaning of a text, shown as its colour. The words say it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Bad,
    Faint,
    Bold,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell(text.into(), Tone::Plain)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) width: usize,
    pub(super) is_coloured: bool,
}

impl Style {
    pub(super) fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            _ if !self.is_coloured => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Columns by their titles; one of numbers, with `>` in front, is aligned to the right, and the main
/// one has `!` in front.
pub(super) fn titled(titles: &'static str) -> Vec<Column> {
    let column = |word: &'static str| {
        let title = word.trim_start_matches(['>', '!']);
        let align = if word.starts_with('>') { Align::Right } else { Align::Left };
        Column { title, align, is_main: word.starts_with('!') }
    };
    titles.split(' ').map(column).collect()
}

/// Columns of a text, and of the main one, that are left of it before other columns are left out.
const LEAST_TEXT: usize = 6;
const LEAST_MAIN: usize = 16;

/// The table's lines. If it is too wide, columns are left out from the right until the others have
/// room; then texts are cut from the left to the right, and last of all the main column.
pub(super) fn table(columns: &[Column], rows: &[Row], style: Style) -> Vec<String> {
    let mut widths: Vec<usize> = columns.iter().map(|column| width(column.title)).collect();
    for row in rows {
        let Row::Cells(cells) = row else { continue };
        for (most, cell) in widths.iter_mut().zip(cells) {
            *most = (*most).max(width(&cell.0));
        }
    }
    let least = |widths: &[usize], shown: usize| {
        let shown = columns.iter().zip(widths).take(shown);
        let least = shown.map(|(column, most)| match column.align {
            _ if column.is_main => (*most).min(LEAST_MAIN) + 1,
            Align::Left => (*most).min(LEAST_TEXT) + 1,
            Align::Right => most + 1,
        });
        least.sum::<usize>() - 1
    };
    let fits = |shown: &usize| least(&widths, *shown) <= style.width;
    let shown = (2..=columns.len()).rev().find(fits).unwrap_or(columns.len().min(2));
    let (columns, _) = columns.split_at(shown);
    widths.truncate(shown);
    let total = |widths: &[usize], gap| widths.iter().sum::<usize>() + gap * (widths.len() - 1);
    let gap = if total(&widths, 2) > style.width { 1 } else { 2 };
    let cut = |widths: &mut [usize], at: usize, least: usize| {
        let over = total(widths, gap).saturating_sub(style.width);
        widths[at] = widths[at].min(widths[at].saturating_sub(over).max(least));
    };
    let all = || columns.iter().enumerate();
    let texts = || all().filter(|(_, it)| !it.is_main && matches!(it.align, Align::Left));
    let main = all().filter(|(_, it)| it.is_main);
    for least in [15, LEAST_TEXT] {
        texts().for_each(|(at, _)| cut(&mut widths, at, least));
    }
    main.for_each(|(at, _)| cut(&mut widths, at, 4));
    texts().for_each(|(at, _)| cut(&mut widths, at, 3));
    let line = |cells: &[Cell]| {
        let mut out = String::new();
        for (at, ((cell, most), column)) in cells.iter().zip(&widths).zip(columns).enumerate() {
            let text = fit(&cell.0, *most);
            let pad = " ".repeat(most - width(&text));
            let text = style.paint(&text, cell.1);
            out.push_str(&" ".repeat(if at > 0 { gap } else { 0 }));
            match column.align {
                Align::Left => out.extend([text, pad]),
                Align::Right => out.extend([pad, text]),
            }
        }
        out.trim_end().to_owned()
    };
    let titles = columns.iter().map(|column| Cell(column.title.to_owned(), Tone::Faint));
    let titles = line(&titles.collect::<Vec<_>>());
    let rows = rows.iter().map(|row| match row {
        Row::Cells(cells) => line(cells),
        Row::Note(text, tone) => {
            let text = fit(text, style.width.saturating_sub(4));
            format!("    {}", style.paint(&text, *tone))
        }
    });
    [titles].into_iter().chain(rows).collect()
}

/// Text in lines of at most `most` columns, all but the first indented.
pub(super) fn wrap(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let shown = fit(word, most - 4);
        match lines.last_mut() {
            None => lines.push(shown),
            Some(line) if width(line) + 1 + width(word) > most => {
                lines.push(format!("    {shown}"))
            }
            Some(line) => line.extend([" ", &shown]),
        }
    }
    lines
}

/// A member's text, made printable; empty if there is none.
pub(super) fn word(json: &Value, member: &str) -> String {
    clean(json[member].as_str().unwrap_or_default())
}

pub(super) fn figure(json: &Value, member: &str) -> Option<f64> {
    json[member].as_f64()
}

pub(super) fn number(json: &Value, member: &str) -> f64 {
    figure(json, member).unwrap_or(0.0)
}

pub(super) fn list<'a>(json: &'a Value, member: &str) -> &'a [Value] {
    json[member].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A list's texts, made printable.
pub(super) fn words(json: &Value, member: &str) -> Vec<String> {
    list(json, member).iter().filter_map(Value::as_str).map(clean).collect()
}

/// Columns that a text takes on a terminal: East Asian characters and emoji take two.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(c: char) -> usize {
    let wide = matches!(u32::from(c), 0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1_F300..=0x3_FFFD);
    if wide { 2 } else { 1 }
}

/// A text cut to a width; a cut one ends in `~`.
pub(super) fn fit(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut out = String::new();
    for c in text.chars() {
        if width(&out) + columns(c) + 1 > most {
            break;
        }
        out.push(c);
    }
    if most > 0 {
        out.push('~');
    }
    out
}

/// `12 s`, `3 m 5 s`, `2 h 10 m`, `3 d 4 h`.
pub(super) fn time(seconds: f64) -> String {
    elapsed(seconds.max(0.0) as u64)
}

/// `50 s left`, `4 min left`: a guess, so in one unit.
pub(super) fn left(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s left"),
        s if s < 5400.0 => format!("{:.0} min left", s / 60.0),
        s => format!("{:.0} h left", s / 3600.0),
    }
}

/// Milliseconds, shown as such or as seconds.
pub(super) fn round_trip(ms: f64) -> String {
    match ms {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

/// Tokens per second; `-` if unknown.
pub(super) fn speed(per_second: f64) -> String {
    match per_second {
        n if n <= 0.0 => "-".to_owned(),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let sizes = [0.0, 999.0, 1000.0, 1_300_000_000.0, 38_000_000_000.0, 5e15].map(bytes);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "1.3 GB", "38 GB", "5000 TB"]);
        let times = [0.4, 59.0, 185.0, 7800.0, 273_600.0].map(time);
        assert_eq!(times, ["0 s", "59 s", "3 m 5 s", "2 h 10 m", "3 d 4 h"]);
        let lefts = [0.0, 89.4, 90.0, 240.0, 9000.0].map(left);
        assert_eq!(lefts, ["0 s left", "89 s left", "2 min left", "4 min left", "2 h left"]);
        assert_eq!([0.42, 12.4, 1234.0].map(round_trip), ["0.4 ms", "12 ms", "1.2 s"]);
        assert_eq!([0.0, 41.23, 312.0].map(speed), ["-", "41.2", "312"]);
    }

    #[test]
    fn what_the_network_says_does_no_harm() {
        assert_eq!(clean("a\x1b[2Jb\u{202e}c\u{9b}d\ne"), "a?[2Jb?c?d?e");
        assert_eq!(clean("räksmörgås 日本"), "räksmörgås 日本");
        assert_eq!(clean(&"x".repeat(1000)).len(), 200);
    }

    #[test]
    fn the_main_column_is_cut_last() {
        let model = "hf.co/someone/a-model-GGUF:Q4_K_M";
        let rows = [Row::Cells(vec![
            model.into(),
            "a-server-of-some-length".into(),
            "1.3 GB".into(),
            "loaded, 75 % on GPU".into(),
            "98.2".into(),
        ])];
        let columns = || titled("!MODEL SERVER >SIZE STATE >TOK/S");
        for (most, want) in [
            (
                200,
                "hf.co/someone/a-model-GGUF:Q4_K_M  a-server-of-some-length  1.3 GB  loaded, 75 % on GPU   98.2",
            ),
            (
                90,
                "hf.co/someone/a-model-GGUF:Q4_K_M a-server-of-some-length 1.3 GB loaded, 75 % on GPU  98.2",
            ),
            (70, "hf.co/someone/a-model-GGUF:Q4_K_M a-serv~ 1.3 GB loaded, 75 % o~  98.2"),
            (60, "hf.co/someone/a-model-GGUF:Q4_K_M a-ser~ 1.3 GB loade~  98.2"),
            (50, "hf.co/someone/a-model-~ a-ser~ 1.3 GB loade~  98.2"),
            (40, "hf.co/someone/a-mo~ a-ser~ 1.3 GB loade~"),
            (20, "hf.co/someon~ a-ser~"),
        ] {
            let style = Style { width: most, is_coloured: false };
            let lines = table(&columns(), &rows, style);
            assert_eq!(lines[1], want, "{most}");
            assert!(lines.iter().all(|line| width(line) <= most), "{most}");
        }
    }

    #[test]
    fn no_line_is_wider_than_asked() {
        let style = Style { width: 40, is_coloured: false };
        let columns = titled("NAME ADDRESS >N");
        let row =
            |name: &str| Row::Cells(vec![name.into(), "192.168.100.200:12345".into(), "7".into()]);
        let rows = [row(&"日本".repeat(30)), row("a"), Row::Note("x".repeat(99), Tone::Plain)];
        for line in table(&columns, &rows, style) {
            assert!(width(&line) <= 40, "{line}");
        }
        for line in wrap(&format!("one two {} three", "y".repeat(99)), 20) {
            assert!(width(&line) <= 20, "{line}");
        }
        assert_eq!(fit("abcdef", 4), "abc~");
    }
}
