//! What the demo and the bench say: plain lines on standard output, in colour on a terminal unless `NO_COLOR` is set.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

#[derive(Debug)]
pub(crate) struct Voice {
    is_colourful: bool,
}

impl Voice {
    pub(crate) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_colourful: wanted && io::stdout().is_terminal() }
    }

    pub(crate) fn title(&self, title: &str) {
        self.text(&format!("\n{}", self.paint(BOLD, title)));
    }

    /// `Jira      mailed an invitation`
    pub(crate) fn line(&self, who: &str, what: &str) {
        self.text(&format!("  {} {what}", self.paint(GREEN, &format!("{who:<9}"))));
    }

    pub(crate) fn bad(&self, who: &str, what: &str) {
        self.text(&format!("  {} {what}", self.paint(RED, &format!("{who:<9}"))));
    }

    /// In columns, each as wide as what it holds.
    pub(crate) fn table(&self, columns: &[String], rows: &[Vec<String>]) {
        let width = |at: usize| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells.chain(columns.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let aligned = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.text(&format!("    {}", self.paint(DIM, &aligned(columns))));
        for row in rows {
            self.text(&format!("    {}", aligned(row)));
        }
    }

    /// A reader who goes away (`| head`) does not end the story: then it ends by itself, unheard.
    pub(crate) fn text(&self, text: &str) {
        let _ = writeln!(io::stdout().lock(), "{text}");
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.is_colourful { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// `1.4 ms`, `230 ms`, `2.1 s`
pub(crate) fn readable(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1000.0;
    match milliseconds {
        ..10.0 => format!("{milliseconds:.1} ms"),
        ..1000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1000.0),
    }
}
