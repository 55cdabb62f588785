// SPDX-License-Identifier: GPL-3.0-or-later
//! Aligned columns for people.

/// A table with a header line, left-aligned, two spaces between columns, no trailing blanks.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(str::to_owned)],
        }
    }

    /// Adds a row; each cell is made [`printable`].
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }

    /// The lines, each with its newline.
    pub(crate) fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` on one line and without control characters. Device names come from devices and domain
/// names from other administrators: neither may drive root's terminal.
pub(crate) fn printable(text: &str) -> String {
    // Bidirectional overrides can make one device look like another.
    let hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}');
    let text = text.trim();
    text.chars()
        .map(|c| if c.is_control() || hidden(c) { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let mut table = Table::new(["A", "LONGER", "C"]);
        table.row(["äöü".into(), "x".into(), "last".into()]);
        table.row(["1".into(), String::new(), String::new()]);
        assert_eq!(table.render(), "A    LONGER  C\näöü  x       last\n1\n");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable("\x1b[2Jevil\nname\u{9b}m "), "?[2Jevil?name?m");
        assert_eq!(printable("a\u{202e}b"), "a?b");
        assert_eq!(printable("Müller's Stick 3.0"), "Müller's Stick 3.0");
    }
}
