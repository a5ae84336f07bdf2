//! What the parts of the page are put together from.

use maud::{Markup, html};

use crate::classify::Class;
use crate::report::columns::{Flush, Noted};
use crate::results::Classes;
use crate::units::{human, thousands};

/// Bytes as people read them; exactly when pointed at.
pub fn size(bytes: u64) -> Markup {
    html! { data value=(bytes) title={ (thousands(bytes)) " bytes" } { (human(bytes)) } }
}

/// The same where there may be no figure.
pub fn perhaps(bytes: Option<u64>) -> Markup {
    match bytes {
        Some(bytes) => size(bytes),
        None => html! { "not measured" },
    }
}

/// A cell with a size, that sorts by it.
pub fn size_cell(bytes: u64) -> Markup {
    html! { td.number data-key=(bytes) { (size(bytes)) } }
}

/// A cell with a number, that sorts by it.
pub fn number_cell(number: u64) -> Markup {
    html! { td.number data-key=(number) { (thousands(number)) } }
}

/// The square in a legend.
pub fn mark(fill: &str) -> Markup {
    html! { span class={ "fill mark " (fill) } aria-hidden="true" {} }
}

/// Classes and kernel memory beside each other, as long as they are of `longest`. What it shows stands in figures
/// beside it.
pub fn bar(classes: &Classes, kernel: Option<u64>, longest: u64, small: bool) -> Markup {
    let width = |bytes: u64| {
        let percent = bytes as f64 / longest.max(1) as f64 * 100.0;
        format!("width:{percent:.3}%")
    };
    html! {
        div.bar.small[small] aria-hidden="true" {
            @for class in Class::ALL {
                @let bytes = classes.get(class);
                @if bytes > 0 {
                    span class={ "fill " (class.name()) } style=(width(bytes)) title={ (class.name()) ": " (human(bytes)) } {}
                }
            }
            @if let Some(bytes @ 1..) = kernel {
                span.fill.kernel style=(width(bytes)) title={ "kernel, outside RSS: " (human(bytes)) } {}
            }
        }
    }
}

/// What is wider than the screen is moved within itself, by keys, too.
pub fn scrolled(label: &str, content: Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(label) { (content) } }
}

/// Names and values.
pub fn facts<'a>(label: &str, rows: impl IntoIterator<Item = (&'a str, Markup)>) -> Markup {
    let table = html! {
        table.facts {
            tbody { @for (name, value) in rows { tr { th scope="row" { (name) } td.wide { (value) } } } }
        }
    };
    scrolled(label, table)
}

/// A table of the report, with its notes.
pub fn table<const N: usize>(label: &str, noted: &Noted<N>) -> Markup {
    let table = &noted.table;
    let right = |column: usize| table.flush[column] == Flush::Right;
    let content = html! {
        table {
            thead {
                tr {
                    @for (column, heading) in table.headings.iter().enumerate() {
                        th.number[right(column)] scope="col" { (heading) }
                    }
                }
            }
            tbody {
                @for (row, failed) in table.rows.iter().zip(&noted.failed) {
                    tr.failed[*failed] {
                        @for (column, text) in row.iter().enumerate() {
                            td.number[right(column)].wide[!right(column) && column > 0].name[column == 0] { (text) }
                        }
                    }
                }
            }
        }
    };
    html! {
        (scrolled(label, content))
        @for note in &noted.notes { p.note { (note.replace('\n', " ")) } }
    }
}

/// The heading of a column that sorts its table.
pub fn sorting(name: &str, number: bool, sorted: bool) -> Markup {
    html! {
        th.number[number] scope="col" aria-sort=[sorted.then_some("descending")] {
            button type="button" { (name) }
        }
    }
}

/// What of a long list is not shown: `the 500 largest of 2,000; the rest sum to 1.2 MiB`.
pub fn rest(shown: usize, [what, plural]: [&str; 2], bytes: impl Iterator<Item = u64>) -> String {
    let bytes: Vec<u64> = bytes.collect();
    let all = bytes.len();
    if all <= shown {
        let plural = if all == 1 { "" } else { plural };
        return format!("{} {what}{plural}", thousands(all as u64));
    }
    let rest = bytes.iter().skip(shown).sum();
    format!(
        "the {} largest of {} {what}{plural}; the rest sum to {}",
        thousands(shown as u64),
        thousands(all as u64),
        human(rest)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_with_its_sum() {
        assert_eq!(
            rest(2, ["process", "es"], [3, 2].into_iter()),
            "2 processes"
        );
        assert_eq!(
            rest(1, ["row", "s"], [3 << 20, 2 << 20, 1 << 20].into_iter()),
            "the 1 largest of 3 rows; the rest sum to 3.0 MiB"
        );
    }

    #[test]
    fn texts_are_escaped() {
        let facts = facts("\"><script>", [("a<b", html! { ("&'\"") })]).into_string();
        assert!(
            facts.contains("aria-label=\"&quot;&gt;&lt;script&gt;\""),
            "{facts}"
        );
        assert!(
            facts.contains("a&lt;b") && facts.contains("&amp;'&quot;"),
            "{facts}"
        );
    }
}
