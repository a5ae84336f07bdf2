//! Markdown as GitHub and most blogs read it.

use crate::report::columns::{Flush, Noted};

/// `text` on one line, with nothing in it read as markup.
pub fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, word) in text.split_whitespace().enumerate() {
        if index > 0 {
            escaped.push(' ');
        }
        for letter in word.chars().filter(|letter| !letter.is_control()) {
            if "\\|<>*`[]&~".contains(letter) {
                escaped.push('\\');
            }
            escaped.push(letter);
        }
    }
    escaped
}

/// `text` as code, whatever it holds.
pub fn code(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // The fence is longer than any run of the same in the text.
    let mut fence = "`".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    let space = if fence.len() > 1 { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// The same in a cell of a table, where a bar ends the cell even within code.
pub fn code_cell(text: &str) -> String {
    code(text).replace('|', "\\|")
}

/// A picture, with what it shows as its caption.
pub fn picture(file: &str, finding: &str) -> String {
    let finding = plain(finding);
    format!("![{finding}]({file})\n\n*{finding}*\n")
}

/// `rows` below `headings`, which are no markup; cells are.
pub fn rows(headings: &[(&str, Flush)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut table = line(headings.iter().map(|(name, _)| plain(name)).collect());
    let flush = headings.iter().map(|(_, flush)| match flush {
        Flush::Left => "---".to_owned(),
        Flush::Right => "---:".to_owned(),
    });
    table += &line(flush.collect());
    for row in rows {
        table += &line(row);
    }
    table
}

/// A table of the report, with its notes.
pub fn table<const N: usize>(noted: &Noted<N>) -> String {
    let table = &noted.table;
    let headings: Vec<(&str, Flush)> = table.headings.into_iter().zip(table.flush).collect();
    let cells = |row: &[String; N]| row.iter().map(|cell| plain(cell)).collect();
    let mut text = rows(&headings, table.rows.iter().map(cells));
    for note in &noted.notes {
        text += &format!("\n{}\n", plain(note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(
            plain("a|b <script>\n*x* `y` [z](u) & \u{1b}c"),
            "a\\|b \\<script\\> \\*x\\* \\`y\\` \\[z\\](u) \\& c"
        );
        assert_eq!(code("a `b` c"), "`` a `b` c ``");
        assert_eq!(code_cell("a | b"), "`a \\| b`");
    }
}
