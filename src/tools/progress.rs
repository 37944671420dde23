//! The lines of a pull (`{"status":…,"digest":…,"total":…,"completed":…}`) as a person sees them: bars
//! on a terminal, as Ollama's own program draws them, plain lines elsewhere. Pure, but for the writing.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::screen;
use super::table::{bytes, fit, number, time, width, word};
use crate::counters::FROM;

/// Between two drawings of bars that only have grown.
const PAUSE: Duration = Duration::from_millis(100);
/// Speeds are means of the last so many seconds.
const SAMPLES: usize = 10;
/// A bar that is shorter tells nothing.
const LEAST_BAR: usize = 8;
/// Plain lines of a layer are a tenth of it apart.
const STEPS: f64 = 10.0;

/// Shows what a pull says.
pub(super) struct Progress {
    rows: Rows,
    can_redraw: bool,
    /// Lines of the terminal that are drawn over next.
    drawn: usize,
    drawn_at: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let can_redraw = screen::can_redraw();
        Progress { rows: Rows::default(), can_redraw, drawn: 0, drawn_at: None }
    }

    /// Takes a line of the answer. A reader of ours that has left doesn't end the pull.
    pub(super) fn take(&mut self, line: &Value, now: Instant) {
        let news = self.rows.take(line, now);
        if !self.can_redraw {
            news.iter().for_each(|news| super::say(news));
            return;
        }
        if news.is_some() || self.drawn_at.is_none_or(|at| now - at >= PAUSE) {
            self.draw(now);
        }
    }

    /// Draws what is left, so that what is said next stands below it.
    pub(super) fn end(&mut self) {
        if self.can_redraw {
            self.draw(Instant::now());
        }
    }

    fn draw(&mut self, now: Instant) {
        let drawing = self.drawing(screen::size(), now);
        let mut out = io::stdout();
        let _ = out.write_all(drawing.as_bytes()).and_then(|()| out.flush());
    }

    /// Over what may still change; what can't is left behind above.
    fn drawing(&mut self, (columns, height): (usize, usize), now: Instant) -> String {
        let (done, under_way) = self.rows.split(height.saturating_sub(1).max(1));
        let up = if self.drawn > 0 { format!("\x1b[{}A\r", self.drawn) } else { "\r".to_owned() };
        self.drawn = under_way.len();
        self.drawn_at = Some(now);
        let lines = done.iter().chain(under_way).map(|row| row.line(columns, now));
        let drawing = up + &screen::over(lines) + "\x1b[J";
        let count = done.len();
        self.rows.rows.drain(..count);
        drawing
    }
}

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
    /// Layers that were there wholly. Where one came from a neighbour, Ollama begins anew and tells of
    /// all before it again.
    whole: HashSet<String>,
}

#[derive(Debug)]
enum Row {
    Said(String),
    Layer(Layer),
}

#[derive(Debug)]
struct Layer {
    digest: String,
    /// What the line says of it: `pulling 74701a8c35f6 from desktop`.
    label: String,
    total: f64,
    done: f64,
    /// When how much was there, about a second apart, the last one of now.
    samples: VecDeque<(Instant, f64)>,
}

impl Rows {
    /// What a line brings that is worth a line of its own, plain.
    fn take(&mut self, line: &Value, now: Instant) -> Option<String> {
        let (mut status, digest) = (word(line, "status"), word(line, "digest"));
        let from = word(line, FROM);
        let (total, done) = (number(line, "total"), number(line, "completed"));
        if digest.is_empty() || total <= 0.0 {
            let is_new = |row: &Row| !matches!(row, Row::Said(said) if *said == status);
            let is_news = !status.is_empty() && self.rows.last().is_none_or(is_new);
            return is_news.then(|| {
                self.rows.push(Row::Said(status.clone()));
                status
            });
        }
        if !from.is_empty() {
            status += &format!(" from {from}");
        }
        if done < total {
            self.whole.remove(&digest);
        } else if !self.whole.insert(digest.clone()) {
            return None;
        }
        let at =
            self.rows.iter().position(|row| matches!(row, Row::Layer(it) if it.digest == digest));
        let at = at.unwrap_or_else(|| {
            // What was there before this pull is no speed of it.
            let samples = VecDeque::from([(now, done)]);
            let layer = Layer { digest, label: String::new(), total, done: -1.0, samples };
            self.rows.push(Row::Layer(layer));
            self.rows.len() - 1
        });
        let Row::Layer(layer) = &mut self.rows[at] else { return None };
        let step = |done: f64| (done / total * STEPS).floor();
        let is_news = step(done) != step(layer.done) || layer.label != status;
        layer.grow(done.clamp(0.0, total), now);
        (layer.label, layer.total) = (status, total);
        is_news.then(|| {
            let percent = (layer.done / total * 100.0).floor();
            format!("{}: {percent:.0} % of {}", layer.label, bytes(total))
        })
    }

    /// The rows that can't change any more, and those that are drawn again, at most so many.
    fn split(&self, most: usize) -> (&[Row], &[Row]) {
        let last = self.rows.len().saturating_sub(1);
        let is_done = |(at, row): (usize, &Row)| match row {
            Row::Said(_) => at < last,
            Row::Layer(layer) => layer.done >= layer.total,
        };
        let done = self.rows.iter().enumerate().take_while(|row| is_done(*row)).count();
        self.rows.split_at(done.max(self.rows.len().saturating_sub(most)))
    }
}

impl Row {
    fn line(&self, columns: usize, now: Instant) -> String {
        match self {
            Row::Said(said) => fit(said, columns),
            Row::Layer(layer) => layer.line(columns, now),
        }
    }
}

impl Layer {
    fn grow(&mut self, done: f64, now: Instant) {
        self.done = done;
        let is_due = self.samples.len() < 2
            || self
                .samples
                .iter()
                .rev()
                .nth(1)
                .is_some_and(|(at, _)| now - *at >= Duration::from_secs(1));
        if is_due {
            self.samples.push_back((now, done));
        } else if let Some(last) = self.samples.back_mut() {
            *last = (now, done);
        }
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// Bytes in a second; `None` while nothing can be said.
    fn rate(&self, now: Instant) -> Option<f64> {
        let (begun, before) = self.samples.front()?;
        let seconds = now.saturating_duration_since(*begun).as_secs_f64();
        Some((self.done - before) / seconds).filter(|rate| seconds >= 0.5 && *rate > 0.0)
    }

    /// `pulling 74701a8c35f6:  42 % ▕███████     ▏ 550 MB/1.3 GB  112 MB/s, 7 s left`
    fn line(&self, columns: usize, now: Instant) -> String {
        let share = if self.total > 0.0 { self.done / self.total } else { 0.0 };
        let is_done = self.done >= self.total;
        let mut end = match is_done {
            true => bytes(self.total),
            false => format!("{}/{}", bytes(self.done), bytes(self.total)),
        };
        if let Some(rate) = self.rate(now).filter(|_| !is_done) {
            let left = time((self.total - self.done) / rate);
            end += &format!("  {}/s, {left} left", bytes(rate));
        }
        let percent = format!("{:3.0} %", (share * 100.0).floor());
        // The word that says nothing goes first where there is no room.
        let short = self.label.strip_prefix("pulling ").unwrap_or(&self.label);
        let room = |label: &str| {
            let taken = width(label) + width(&percent) + width(&end) + ":   ▕▏".chars().count();
            columns.checked_sub(taken).filter(|room| *room >= LEAST_BAR)
        };
        let Some((label, room)) =
            [&self.label, short].into_iter().find_map(|label| Some((label, room(label)?)))
        else {
            return fit(&format!("{short}: {percent} {end}"), columns);
        };
        let full = (room as f64 * share) as usize;
        let bar = "█".repeat(full) + &" ".repeat(room - full);
        format!("{label}: {percent} ▕{bar}▏ {end}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::screen::tests::Terminal;

    fn layer(digest: &str, done: u64, total: u64) -> Value {
        json!({"status": format!("pulling {digest}"), "digest": format!("sha256:{digest}"),
            "total": total, "completed": done})
    }

    #[test]
    fn plain_lines_are_few() {
        let (mut rows, begun) = (Rows::default(), Instant::now());
        let mut said: Vec<String> = Vec::new();
        let mut take = |line: Value, ms| {
            said.extend(rows.take(&line, begun + Duration::from_millis(ms)));
        };
        take(json!({"status": "pulling manifest"}), 0);
        take(json!({"status": "pulling manifest"}), 1);
        for n in 0..=1000 {
            take(layer("74701a8c35f6", n * 1_000_000, 1_000_000_000), 10 + n);
        }
        take(layer("small", 400, 400), 2000);
        for status in ["verifying sha256 digest", "success", "", "evil\u{1b}[2J"] {
            take(json!({"status": status}), 2001);
        }
        let parts = (0..=10).map(|n| format!("pulling 74701a8c35f6: {n}0 % of 1.0 GB"));
        let parts = parts.map(|line| line.replace(": 00 %", ": 0 %"));
        let mut want = vec!["pulling manifest".to_owned()];
        want.extend(parts);
        want.extend(
            ["pulling small: 100 % of 400 B", "verifying sha256 digest"].map(str::to_owned),
        );
        want.extend(["success", "evil?[2J"].map(str::to_owned));
        assert_eq!(said, want);
    }

    /// As a pull tells of two layers of which a neighbour has the second: after it, Ollama begins anew.
    #[test]
    fn no_layer_is_shown_twice() {
        let mut progress =
            Progress { rows: Rows::default(), can_redraw: true, drawn: 0, drawn_at: None };
        let mut terminal = Terminal::new(80);
        let (mut said, now) = (Vec::new(), Instant::now());
        let mut from = layer("second", 5, 10);
        from[FROM] = json!("desktop");
        let mut whole = from.clone();
        whole["completed"] = json!(10);
        let again = [("first", 10), ("second", 10), ("third", 2), ("first", 3), ("first", 10)];
        let again = again.map(|(name, done)| layer(name, done, 10));
        for line in [layer("first", 10, 10), from, whole].into_iter().chain(again) {
            said.extend(progress.rows.take(&line, now));
            terminal.write(&progress.drawing((80, 24), now));
        }
        let shown: Vec<String> = terminal
            .text()
            .iter()
            .filter_map(|line| Some(line.split_once(':')?.0.to_owned()))
            .collect();
        // The first fell back, so that its line stands below the one that can't change any more.
        let want =
            ["first", "second from desktop", "third", "first"].map(|it| format!("pulling {it}"));
        assert_eq!(shown, want);
        let plain: Vec<&String> = said.iter().filter(|line| line.contains("second")).collect();
        assert_eq!(plain.len(), 2, "{plain:?}");
    }

    #[test]
    fn bars_at_80_columns() {
        let (mut rows, begun) = (Rows::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        rows.take(&json!({"status": "pulling manifest"}), at(0));
        rows.take(&layer("74701a8c35f6", 0, 1_300_000_000), at(0));
        for second in 1..=5 {
            rows.take(&layer("74701a8c35f6", second * 100_000_000, 1_300_000_000), at(second));
        }
        rows.take(&layer("0ba8f0e314b4", 12_000, 12_000), at(5));
        let (done, under_way) = rows.split(23);
        assert_eq!((done.len(), under_way.len()), (1, 2), "{rows:?}");
        let shown: Vec<String> = rows.rows.iter().map(|row| row.line(80, at(5))).collect();
        let want = "\
pulling manifest
pulling 74701a8c35f6:  38 % ▕██████          ▏ 500 MB/1.3 GB  100 MB/s, 8 s left
pulling 0ba8f0e314b4: 100 % ▕████████████████████████████████████████████▏ 12 kB";
        assert_eq!(shown.join("\n"), want);
    }

    #[test]
    fn bars_that_fill_the_terminal_are_drawn_to_their_end() {
        let now = Instant::now();
        let mut progress =
            Progress { rows: Rows::default(), can_redraw: true, drawn: 0, drawn_at: None };
        let mut terminal = Terminal::new(80);
        let mut want = vec!["pulling manifest".to_owned()];
        progress.rows.take(&json!({"status": "pulling manifest"}), now);
        terminal.write(&progress.drawing((80, 24), now));
        want.push(String::new());
        for done in [0, 7, 40, 100] {
            progress.rows.take(&layer("74701a8c35f6", done, 100), now);
            want[1] = progress.rows.rows.last().expect("a layer").line(80, now);
            assert_eq!(width(&want[1]), 80);
            terminal.write(&progress.drawing((80, 24), now));
            assert_eq!(terminal.text(), want);
        }
        progress.rows.take(&json!({"status": "success"}), now);
        terminal.write(&progress.drawing((80, 24), now));
        want.push("success".to_owned());
        assert_eq!(terminal.text(), want);
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        let begun = Instant::now();
        for columns in [1, 10, 40, 60, 80, 200] {
            for (status, total) in
                [("pulling 74701a8c35f6", 4), ("日本\u{1b}".repeat(80).as_str(), 9)]
            {
                let mut rows = Rows::default();
                for (n, done) in [0.0, 1e9, 2.5e9, -4.0, 1e300, f64::NAN].into_iter().enumerate() {
                    let line = json!({"status": status, "digest": "d", "total": total * 1_000_000_000u64,
                        "completed": done});
                    let now = begun + Duration::from_secs(n as u64);
                    rows.take(&line, now);
                    for row in &rows.rows {
                        let line = row.line(columns, now);
                        assert!(width(&line) <= columns && !line.contains('\u{1b}'), "{line}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_finished_is_left_behind() {
        let (mut rows, now) = (Rows::default(), Instant::now());
        for n in 0..100 {
            rows.take(&layer(&format!("{n}"), n % 2, 1), now);
        }
        assert_eq!(rows.split(23).1.len(), 23, "no more than the terminal shows");
        let (done, under_way) = rows.split(1000);
        assert_eq!((done.len(), under_way.len()), (0, 100), "the first one is under way");
    }
}
