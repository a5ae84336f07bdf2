//! Rows of text under each other in aligned columns, for terminals and as Markdown.

use super::Colour;

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Names and sentences.
    Left,
    /// Figures.
    Right,
}

/// Rows under their headings. A last column without a heading is empty and left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table<const N: usize> {
    pub headings: [&'static str; N],
    pub flush: [Flush; N],
    pub rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// The heading first, in bold, then a line a row, all aligned.
    pub fn lines(&self, colour: Colour) -> Vec<String> {
        let mut rows = vec![self.headings.map(str::to_owned)];
        rows.extend(self.rows.iter().cloned());
        let mut lines = align(&rows, self.flush);
        lines[0] = colour.bold(&lines[0]);
        lines
    }

    /// As GitHub has tables. Ends with a newline.
    pub fn markdown(&self) -> String {
        let columns = self.headings.iter().take_while(|it| !it.is_empty()).count();
        let line = |cells: [String; N]| format!("| {} |\n", cells[..columns].join(" | "));
        let rules = self.flush.map(|flush| match flush {
            Flush::Left => "---".to_owned(),
            Flush::Right => "---:".to_owned(),
        });
        let mut text = line(self.headings.map(str::to_owned)) + &line(rules);
        for row in &self.rows {
            // A separator or a line break in a cell would end it.
            let cell = |cell: &String| cell.replace('|', "\\|").replace('\n', " ");
            text += &line(std::array::from_fn(|column| cell(&row[column])));
        }
        text
    }
}

/// A table that stands by itself: which of its rows tell of a failure, and what is said below it, broken into lines
/// as a terminal wants it.
pub struct Noted<const N: usize> {
    pub table: Table<N>,
    pub failed: Vec<bool>,
    pub notes: Vec<String>,
}

impl<const N: usize> Noted<N> {
    /// For a terminal: the table, an empty line and the notes. Ends with a newline.
    pub fn text(&self, colour: Colour) -> String {
        let lines = self.table.lines(colour);
        let mut text = lines[0].clone() + "\n";
        for (line, failed) in lines[1..].iter().zip(&self.failed) {
            text += &if *failed {
                colour.red(line)
            } else {
                line.clone()
            };
            text.push('\n');
        }
        text.push('\n');
        for note in &self.notes {
            text += note;
            text.push('\n');
        }
        text
    }
}

/// The first column is names, the others are figures.
pub const fn names_and_figures<const N: usize>() -> [Flush; N] {
    let mut flush = [Flush::Right; N];
    flush[0] = Flush::Left;
    flush
}

/// One line a row, each column as wide as its widest text, two spaces between columns, none at the end.
pub fn align<const N: usize>(rows: &[[String; N]], flush: [Flush; N]) -> Vec<String> {
    let widest: [usize; N] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| width(&row[column]))
            .max()
            .unwrap_or(0)
    });
    rows.iter()
        .map(|row| {
            let padded = row
                .iter()
                .zip(widest)
                .zip(flush)
                .map(|((text, widest), flush)| {
                    let padding = " ".repeat(widest - width(text));
                    match flush {
                        Flush::Left => format!("{text}{padding}"),
                        Flush::Right => format!("{padding}{text}"),
                    }
                });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

/// Columns that `text` takes: one a character, which holds for names and figures.
fn width(text: &str) -> usize {
    text.chars().count()
}
