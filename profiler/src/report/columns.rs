//! Rows of text under each other in aligned columns.

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Names and sentences.
    Left,
    /// Figures.
    Right,
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
