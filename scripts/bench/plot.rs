//! Plots with two logarithmic axes, as SVG that is readable on a light and on a dark page.

use std::fmt::Write;

use super::table::number;

/// A picture: one or two panels side by side with the same axes, and what the lines are.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x_axis: &'static str,
    pub(crate) y_axis: &'static str,
    pub(crate) panels: Vec<Panel>,
}

#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) look: Look,
    pub(crate) is_dashed: bool,
    /// All above zero.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Colour and mark; the marks tell lines apart where colours don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Own,
    Second,
    Third,
    Plain,
}

/// Colours of Okabe and Ito, which colour-blind people tell apart, lighter ones for the dark page.
const STYLE: &str = "<style>
  svg { font-family: system-ui, sans-serif; font-size: 15px; }
  .page { fill: #ffffff; }
  text { fill: #24292f; }
  .title { font-size: 18px; font-weight: 600; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .fine { stroke: #eaeef2; stroke-width: 1; }
  .frame { fill: none; stroke: #8c959f; stroke-width: 1; }
  .line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
  .dashed { stroke-dasharray: 7 5; }
  .own { color: #0072b2; } .second { color: #009e73; } .third { color: #d55e00; } .plain { color: #6e7781; }
  .line { stroke: currentColor; }
  .mark { fill: currentColor; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; }
    text { fill: #e6edf3; }
    .grid { stroke: #3d444d; }
    .fine { stroke: #21262d; }
    .frame { stroke: #7d8590; }
    .own { color: #56b4e9; } .second { color: #2fd3a3; } .third { color: #ff9248; } .plain { color: #a4adb8; }
  }
</style>
";

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 78.0;
const PANEL_HEIGHT: f64 = 330.0;
const GAP: f64 = 34.0;
/// Of one line of the legend.
const LEGEND: f64 = 26.0;

/// A logarithmic axis between two values, on some stretch of the picture.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Whole steps of 1, 2, 5 around all values.
    fn around(values: impl Iterator<Item = f64> + Clone) -> Axis {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let low = steps(low / 10.0, low).pop().map_or(low, |(step, _)| step);
        let high = steps(high, high * 10.0).first().map_or(high, |(step, _)| *step);
        Axis { low, high: high.max(low * 2.0), from: 0.0, to: 1.0 }
    }

    fn on(self, from: f64, to: f64) -> Axis {
        Axis { from, to, ..self }
    }

    fn at(self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }
}

/// The values 1, 2 and 5 of each decade from `low` to `high`, and whether each is a 1.
fn steps(low: f64, high: f64) -> Vec<(f64, bool)> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = decades
        .flat_map(|decade| [1.0, 2.0, 5.0].map(|step| (step * 10_f64.powi(decade), step == 1.0)));
    // A little room, since powers of ten aren't exact.
    all.filter(|(value, _)| *value >= low * 0.9999 && *value <= high * 1.0001).collect()
}

impl Look {
    fn class(self) -> &'static str {
        match self {
            Look::Own => "own",
            Look::Second => "second",
            Look::Third => "third",
            Look::Plain => "plain",
        }
    }

    fn mark(self, x: f64, y: f64) -> String {
        let class = self.class();
        let (left, right, top, bottom) = (x - 5.5, x + 5.5, y - 5.0, y + 5.0);
        match self {
            Look::Own => {
                format!("<circle class=\"mark {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>")
            }
            Look::Second => format!(
                "<rect class=\"mark {class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"10\" height=\"10\"/>"
            ),
            Look::Third => format!(
                "<path class=\"mark {class}\" d=\"M{left:.1} {bottom:.1}H{right:.1}L{x:.1} {top:.1}Z\"/>"
            ),
            Look::Plain => {
                format!("<circle class=\"mark {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>")
            }
        }
    }
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let points = || {
            let lines = self.panels.iter().flat_map(|panel| &panel.lines);
            lines.flat_map(|line| &line.points).copied()
        };
        let x = Axis::around(points().map(|(x, _)| x));
        let y = Axis::around(points().map(|(_, y)| y)).on(TOP + PANEL_HEIGHT, TOP);
        let count = self.panels.len().max(1) as f64;
        let panel = (WIDTH - LEFT - RIGHT - GAP * (count - 1.0)) / count;
        let legend = self.legend();
        let height = TOP + PANEL_HEIGHT + 62.0 + LEGEND * legend.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n{STYLE}\
             <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"30\">{title}</text>\n",
            title = self.title
        );
        let middle = TOP + PANEL_HEIGHT / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"22\" y=\"{middle}\" transform=\"rotate(-90 22 {middle})\" \
             text-anchor=\"middle\">{}</text>",
            self.y_axis
        );
        for (nth, one) in self.panels.iter().enumerate() {
            let left = LEFT + nth as f64 * (panel + GAP);
            // Points at both ends are whole.
            one.draw(&mut svg, x.on(left + 14.0, left + panel - 14.0), y, nth == 0, self.x_axis);
        }
        let top = TOP + PANEL_HEIGHT + 62.0;
        for (row, lines) in legend.iter().enumerate() {
            for (column, line) in lines.iter().enumerate() {
                let (x, y) = (LEFT + 220.0 * column as f64, top + LEGEND * row as f64 + 8.0);
                let (class, dashed) = (line.look.class(), line.dashes());
                let _ = writeln!(
                    svg,
                    "<path class=\"line {class}{dashed}\" d=\"M{x} {y}h44\"/>{}\
                     <text x=\"{}\" y=\"{}\">{}</text>",
                    line.look.mark(x + 22.0, y),
                    x + 54.0,
                    y + 5.0,
                    line.name
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Every line once, dashed ones below the others.
    fn legend(&self) -> Vec<Vec<&Line>> {
        let mut rows: [Vec<&Line>; 2] = [Vec::new(), Vec::new()];
        for line in self.panels.iter().flat_map(|panel| &panel.lines) {
            let row = &mut rows[usize::from(line.is_dashed)];
            if !row.iter().any(|known| known.name == line.name) {
                row.push(line);
            }
        }
        rows.into_iter().filter(|row| !row.is_empty()).collect()
    }
}

impl Panel {
    fn draw(&self, svg: &mut String, x: Axis, y: Axis, has_labels: bool, x_axis: &str) {
        let (left, right) = (x.from - 14.0, x.to + 14.0);
        let (width, middle) = (right - left, (left + right) / 2.0);
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            TOP - 14.0,
            self.title
        );
        // Few lines need more numbers.
        let is_short = y.high / y.low < 200.0;
        for (value, is_decade) in steps(y.low, y.high) {
            let at = y.at(value);
            let class = if is_decade { "grid" } else { "fine" };
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{left:.1} {at:.1}H{right:.1}\"/>");
            if has_labels && (is_decade || is_short) {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    left - 8.0,
                    at + 5.0,
                    thousands(value)
                );
            }
        }
        let mut seen: Vec<f64> = Vec::new();
        for (value, _) in self.lines.iter().flat_map(|line| &line.points) {
            if seen.contains(value) {
                continue;
            }
            seen.push(*value);
            let at = x.at(*value);
            let _ = writeln!(
                svg,
                "<path class=\"fine\" d=\"M{at:.1} {TOP}v{PANEL_HEIGHT}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                TOP + PANEL_HEIGHT + 20.0,
                thousands(*value)
            );
        }
        let _ = writeln!(
            svg,
            "<rect class=\"frame\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
             height=\"{PANEL_HEIGHT}\"/>\n\
             <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_axis}</text>",
            TOP + PANEL_HEIGHT + 42.0
        );
        // The first line is drawn last, above the others.
        for line in self.lines.iter().rev() {
            let at = |(px, py): &(f64, f64)| format!("{:.1} {:.1}", x.at(*px), y.at(*py));
            let path: Vec<String> = line.points.iter().map(at).collect();
            let (class, dashed) = (line.look.class(), line.dashes());
            let _ =
                writeln!(svg, "<path class=\"line {class}{dashed}\" d=\"M{}\"/>", path.join("L"));
            for (px, py) in &line.points {
                let _ = writeln!(svg, "{}", line.look.mark(x.at(*px), y.at(*py)));
            }
        }
    }
}

impl Line {
    fn dashes(&self) -> &'static str {
        if self.is_dashed { " dashed" } else { "" }
    }
}

/// A round number as people write it.
fn thousands(value: f64) -> String {
    if value < 10.0 {
        return number(value).trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
