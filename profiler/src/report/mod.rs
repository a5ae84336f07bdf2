//! Results for people: as text for a terminal, a table over many runs or a page about one, as an HTML file, and as
//! the draft of a post. Values in, text out.

mod call_stacks;
mod columns;
mod compare;
mod html;
mod launch;
mod markdown;
mod post;
mod processes;
mod regions;
mod repeats;
mod run;
mod slopes;
mod table;
mod trust;

pub use compare::comparison_report;
pub use html::html_report;
pub use markdown::markdown;
pub use post::{Chart, post};
pub use repeats::repeats_table;
pub use run::{run_report, run_summary};
pub use table::results_table;

use std::io::IsTerminal;

use crate::results::Results;

/// What there is to read: the page about a run that is alone, else the tables over all of them. Ends with a newline;
/// empty when nothing ran.
pub fn results_report(results: &Results, colour: Colour) -> String {
    match results.runs.as_slice() {
        [run] => run_report(run, colour),
        runs if runs.iter().all(|run| run.tasks.is_none()) => repeats_table(runs, colour),
        _ => results_table(results, colour),
    }
}

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colour {
    /// Plain text, for files and pipes.
    #[default]
    Off,
    /// With ANSI escapes, for terminals.
    On,
}

impl Colour {
    /// On when standard output is a terminal and `NO_COLOR` is unset or empty.
    pub fn for_stdout() -> Colour {
        Colour::for_stream(&std::io::stdout())
    }

    /// As [`Colour::for_stdout`], for standard error.
    pub fn for_stderr() -> Colour {
        Colour::for_stream(&std::io::stderr())
    }

    fn for_stream(stream: &impl IsTerminal) -> Colour {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if !forbidden && stream.is_terminal() {
            Colour::On
        } else {
            Colour::Off
        }
    }

    /// `text` in bold.
    fn bold(self, text: &str) -> String {
        self.escape("1", text)
    }

    /// `text` in red: something went wrong.
    fn red(self, text: &str) -> String {
        self.escape("31", text)
    }

    /// `text` in green: something got better.
    fn green(self, text: &str) -> String {
        self.escape("32", text)
    }

    fn escape(self, code: &str, text: &str) -> String {
        match self {
            Colour::On if !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}
