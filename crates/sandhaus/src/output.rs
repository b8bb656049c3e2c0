//! What is written to standard output, so that nothing a sandbox says can steer the terminal it is shown on.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// Writes results to standard output. A reader that has gone is an error of kind BrokenPipe, which `main` turns into
/// the status that a shell expects.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Prints a value as indented JSON. Characters that could steer a terminal are escaped: JSON allows raw ones above
/// U+007F.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    let mut text = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        // Outside of strings JSON has no such character; line ends are the printer's own.
        if character != '\n' && steers_terminal(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(character);
        }
    }
    text.push('\n');
    print(&text)
}

/// Text as it may be shown in a line of its own: everything that could steer a terminal, or change the reading order,
/// is replaced by an escape that can be seen.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            character if steers_terminal(character) => {
                shown.push_str(&format!("\\u{{{:x}}}", u32::from(character)));
            }
            character => shown.push(character),
        }
    }
    shown
}

/// Control characters (also the eight-bit ones, which some terminals obey), and invisible ones that reorder or hide
/// text.
fn steers_terminal(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A table in the making: a head and rows of as many cells.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

/// Most characters of a cell; the rest is cut.
const CELL_CHARACTERS_MAX: usize = 80;

impl Table {
    /// A table with this head.
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// Adds a row; its cells may hold anything.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(cell).to_vec());
    }

    /// The table as text, columns aligned.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn cell(text: &str) -> String {
    let shown = visible(text);
    if shown.is_empty() {
        return "-".to_owned();
    }
    if shown.chars().count() <= CELL_CHARACTERS_MAX {
        return shown;
    }
    shown.chars().take(CELL_CHARACTERS_MAX - 1).chain(['…']).collect()
}

/// An amount of bytes for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 || amount.fract() == 0.0 {
        format!("{amount:.0} {}", UNITS[unit])
    } else {
        format!("{amount:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let hostile = "a\u{1b}[2J\u{9b}31m\r\n\u{7}\u{202e}\u{200b}\u{e0041}\u{7f}é日";
        let shown = visible(hostile);
        assert_eq!(shown, "a\\u{1b}[2J\\u{9b}31m\\r\\n\\u{7}\\u{202e}\\u{200b}\\u{e0041}\\u{7f}é日");
        for code in (0..0x20).chain(0x7f..0xa0) {
            let character = char::from_u32(code).unwrap();
            assert!(visible(&character.to_string()).chars().all(|shown| !shown.is_control()), "{code:x}");
        }
    }

    #[test]
    fn a_table_lines_up_whatever_the_cells_hold() {
        let mut table = Table::new(["ID", "NAME", "CWD"]);
        table.row(["1", "a\u{1b}]0;x\u{7}\nrow", ""]);
        table.row(["22", &"n".repeat(100), "/"]);
        let text = table.render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].chars().nth(4), Some('a'));
        assert!(lines[1].contains("\\u{1b}]0;x\\u{7}\\nrow"));
        assert!(lines[2].contains('…'));
        let column = |line: &str, last: &str| line.chars().count() - last.len();
        assert_eq!(column(lines[0], "CWD"), column(lines[1], "-"));
        assert_eq!(column(lines[0], "CWD"), column(lines[2], "/"));
    }

    #[test]
    fn amounts() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (512 << 20, "512 MiB")];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
