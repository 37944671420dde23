//! What was measured, and how it is shown: medians, and medians of paired ratios.

use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::median;
use super::proxies::{Family, Route};

/// How to read a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A time of which the direct way's part is taken off; less is better.
    Added,
    /// Less is better.
    Less,
    /// More is better.
    More,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) section: &'static str,
    pub(crate) label: String,
    pub(crate) kind: Kind,
}

impl Row {
    pub(crate) fn new(section: &'static str, label: impl Into<String>, kind: Kind) -> Row {
        Row { section, label: label.into(), kind }
    }
}

/// All values of one row on one kind of route, in the order in which they were taken.
#[derive(Debug)]
struct Series {
    row: Row,
    family: Option<usize>,
    hops: usize,
    values: Vec<f64>,
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Book {
    names: Vec<String>,
    series: Vec<Series>,
}

const LABEL: usize = 25;
const CELL: usize = 8;
const RATIO: usize = 7;

impl Book {
    pub(crate) fn new(families: &[Family]) -> Book {
        Book::of(families.iter().map(|family| family.name.clone()).collect())
    }

    /// The first of them is compared with the others.
    pub(crate) fn of(names: Vec<String>) -> Book {
        Book { names, series: Vec::new() }
    }

    /// Notes a value. The nth value of a route is compared with the nth of another, so all routes
    /// must be measured equally often, and next to each other.
    pub(crate) fn note(&mut self, row: &Row, route: &Route, value: f64) {
        let (family, hops) = (route.family, route.hops);
        let known =
            self.series.iter_mut().find(|s| s.family == family && s.hops == hops && s.row == *row);
        match known {
            Some(series) => series.values.push(value),
            None => {
                self.series.push(Series { row: row.clone(), family, hops, values: vec![value] })
            }
        }
    }

    fn values(&self, row: &Row, family: Option<usize>, hops: usize) -> &[f64] {
        let found =
            self.series.iter().find(|s| s.family == family && s.hops == hops && s.row == *row);
        found.map_or(&[], |series| &series.values)
    }

    /// The values as they are shown: what a proxy adds, where the row is about that.
    fn shown(&self, row: &Row, family: Option<usize>, hops: usize) -> Vec<f64> {
        let values = self.values(row, family, hops);
        if row.kind == Kind::Added && family.is_some() {
            let direct = self.values(row, None, 0);
            return values.iter().zip(direct).map(|(value, direct)| value - direct).collect();
        }
        values.to_vec()
    }

    /// The median of a family's values, each divided by its neighbour of another family.
    /// None where what is added mostly drowns in the noise.
    fn ratio(&self, row: &Row, hops: usize, family: usize, other: usize) -> Option<f64> {
        let own = self.shown(row, Some(family), hops);
        let theirs = self.shown(row, Some(other), hops);
        let pairs = own.iter().zip(&theirs).filter(|(own, theirs)| **own > 0.0 && **theirs > 0.0);
        let ratios: Vec<f64> = pairs.map(|(own, theirs)| own / theirs).collect();
        median(&ratios).filter(|_| ratios.len() * 2 > own.len())
    }

    fn rows(&self) -> Vec<&Row> {
        let mut sections: Vec<&str> = Vec::new();
        let mut rows: Vec<&Row> = Vec::new();
        for series in &self.series {
            if !sections.contains(&series.row.section) {
                sections.push(series.row.section);
            }
            if !rows.contains(&&series.row) {
                rows.push(&series.row);
            }
        }
        rows.sort_by_key(|row| sections.iter().position(|section| *section == row.section));
        rows
    }

    /// The table, at most 80 columns wide.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut title = format!("{:LABEL$}{:>CELL$}", "", "direct");
        for name in &self.names {
            let _ = write!(title, "{name:>CELL$}");
        }
        for name in self.names.iter().skip(1) {
            let short: String = name.chars().take(RATIO - 2).collect();
            let _ = write!(title, "{:>RATIO$}", format!(":{short}"));
        }
        text.push_str(&title);
        text.push('\n');
        let mut section = "";
        for row in self.rows() {
            if row.section != section {
                section = row.section;
                let better = if row.kind == Kind::More { ", more is better" } else { "" };
                let _ = writeln!(text, "\n{section}{better}");
            }
            let mut label = row.label.as_str();
            for hops in 1..=2 {
                let cells: Vec<Option<f64>> = (0..self.names.len())
                    .map(|family| median(&self.shown(row, Some(family), hops)))
                    .collect();
                if cells.iter().all(Option::is_none) {
                    continue;
                }
                let direct = if hops == 1 { median(self.values(row, None, 0)) } else { None };
                let _ = write!(text, "  {label:width$}", width = LABEL - 2);
                label = "    two hops";
                let _ = write!(text, "{:>CELL$}", direct.map_or(String::new(), number));
                for cell in cells {
                    let sign = if row.kind == Kind::Added { "+" } else { "" };
                    let cell = cell.map_or("-".to_owned(), |v| format!("{sign}{}", number(v)));
                    let _ = write!(text, "{:>CELL$}", cell.replace("+-", "-"));
                }
                for other in 1..self.names.len() {
                    let ratio = self.ratio(row, hops, 0, other);
                    let ratio = ratio.map_or(String::new(), |r| format!("{r:.2}"));
                    let _ = write!(text, "{ratio:>RATIO$}");
                }
                text = text.trim_end().to_owned();
                text.push('\n');
            }
        }
        text
    }

    /// The same and every single value, for machines.
    pub(crate) fn json(&self) -> Value {
        let name = |family: Option<usize>| {
            family.map_or("direct", |at| self.names.get(at).map_or("", String::as_str))
        };
        let series = self.series.iter().map(|s| {
            let ratios = (0..self.names.len()).filter_map(|other| {
                let family = s.family.filter(|family| *family != other)?;
                let ratio = self.ratio(&s.row, s.hops, family, other)?;
                Some((self.names[other].clone(), json!(ratio)))
            });
            let shown = self.shown(&s.row, s.family, s.hops);
            json!({
                "section": s.row.section,
                "row": s.row.label,
                "proxy": name(s.family),
                "hops": s.hops,
                "median": median(&s.values),
                "shown": median(&shown),
                "values": s.values,
                "ratios": ratios.collect::<serde_json::Map<String, Value>>(),
            })
        });
        series.collect()
    }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
