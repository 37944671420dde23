//! What stands on a terminal after a drawing.

use super::*;

/// A terminal's characters and cursor, as far as what is drawn here needs them. Where one scrolls,
/// this one gets longer.
pub(in crate::tools) struct Terminal {
    columns: usize,
    lines: Vec<Vec<char>>,
    line: usize,
    column: usize,
    /// Whether what doesn't fit is continued on the next line. The cursor stays on the last column
    /// either way, and goes on with the next character only.
    wraps: bool,
    is_full: bool,
}

impl Terminal {
    pub(in crate::tools) fn new(columns: usize) -> Self {
        Terminal { columns, lines: vec![], line: 0, column: 0, wraps: true, is_full: false }
    }

    pub(in crate::tools) fn write(&mut self, text: &str) {
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\x1b' => {
                    assert_eq!(rest.next(), Some('['), "an escape that isn't known here: {text:?}");
                    let is_end = |c: &char| c.is_ascii_alphabetic();
                    let numbers: String = rest.clone().take_while(|c| !is_end(c)).collect();
                    let end = rest.find(is_end).expect("the end of an escape");
                    self.follow(&numbers, end);
                }
                '\r' => self.go_to(self.line, 0),
                '\n' => self.go_to(self.line + 1, self.column),
                c => self.put(c),
            }
        }
    }

    fn follow(&mut self, numbers: &str, end: char) {
        let number = |at: usize| {
            let number = numbers.split(';').nth(at).filter(|text| !text.is_empty());
            number.map_or(1, |text| text.parse::<usize>().expect("a number"))
        };
        match end {
            'h' | 'l' if numbers == "?7" => self.wraps = end == 'h',
            'h' | 'l' | 'm' => {}
            'A' => self.go_to(self.line.saturating_sub(number(0)), self.column),
            'H' => self.go_to(number(0) - 1, number(1) - 1),
            'J' => {
                self.erase();
                self.lines.truncate(self.line + 1);
            }
            'K' => self.erase(),
            _ => panic!("an escape that isn't known here: {numbers}{end}"),
        }
    }

    fn go_to(&mut self, line: usize, column: usize) {
        (self.line, self.column, self.is_full) = (line, column, false);
    }

    fn put(&mut self, c: char) {
        if self.is_full && self.wraps {
            self.go_to(self.line + 1, 0);
        }
        let column = self.column;
        self.cells()[column] = c;
        self.is_full = column + 1 == self.columns;
        self.column = (column + 1).min(self.columns - 1);
    }

    /// From the cursor on, the character below it included.
    fn erase(&mut self) {
        let column = self.column;
        self.cells()[column..].fill(' ');
    }

    fn cells(&mut self) -> &mut [char] {
        while self.lines.len() <= self.line {
            self.lines.push(vec![' '; self.columns]);
        }
        &mut self.lines[self.line]
    }

    /// The lines that aren't empty.
    pub(in crate::tools) fn text(&self) -> Vec<String> {
        let lines = self.lines.iter().map(|line| line.iter().collect::<String>());
        lines.map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
    }
}

#[test]
fn a_line_as_wide_as_the_terminal_is_shown_to_its_end() {
    let style = Style { width: 20, is_coloured: true };
    let drawings = [
        vec!["a line of twenty ch.", "short", "another of twenty c."],
        vec!["short", "a line of twenty ch.", "gone soon"],
        vec!["\x1b[31ma line of twenty ch.\x1b[0m", "x"],
    ];
    for enter in ["", ENTER] {
        let mut terminal = Terminal::new(20);
        terminal.write(enter);
        for lines in &drawings {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            terminal.write(&picture(lines.clone(), style, 8));
            let plain = |line: String| line.replace("\x1b[31m", "").replace("\x1b[0m", "");
            let mut want: Vec<String> = lines.into_iter().map(plain).collect();
            want.push("q quits".to_owned());
            assert_eq!(terminal.text(), want);
        }
    }
}

#[test]
fn lines_without_a_place_are_counted() {
    let style = Style { width: 80, is_coloured: false };
    let mut terminal = Terminal::new(80);
    terminal.write(&picture((1..=9).map(|n| n.to_string()).collect(), style, 6));
    let left = "... and 6 more lines (without --watch they are all shown)";
    assert_eq!(terminal.text(), ["1", "2", "3", left, "q quits"]);
}
