//! The table that a run of many programs ends with: a row for each program and N.

use crate::classify::Class;
use crate::results::slopes::slopes_of;
use crate::results::summary::{Cell, PerTaskMethod, cells, kernel_bytes, of_least_load, per_task};
use crate::results::{Outcome, Results};
use crate::units::{MIB, thousands};

use super::Colour;
use super::columns::{Flush, Noted, Table};
use super::launch::launch_table;
use super::slopes::{signed, slopes_table};

const HEADINGS: [&str; 11] = [
    "program",
    "N",
    "stacks",
    "heap",
    "runtime",
    "unclassified",
    "RSS",
    "kernel",
    "B/task",
    "wall",
    "outcome",
];

const FLUSH: [Flush; 11] = {
    let mut flush = [Flush::Right; 11];
    flush[0] = Flush::Left;
    flush[10] = Flush::Left;
    flush
};

/// Repeats whose RSS differs by more than this part of their median are named below the table.
const WIDE_SPREAD: f64 = 0.05;

/// Peak figures of every program and N, in the order of running; of repeats the median run. Memory in
/// MiB, wall time in seconds. Then what a task costs, and what it takes to start. Ends with a newline; empty when there is nothing to
/// show.
pub fn results_table(results: &Results, colour: Colour) -> String {
    let cells = cells(results);
    if cells.is_empty() {
        return String::new();
    }
    let slopes = slopes_of(&of_least_load(&cells));
    let tables = [
        Some(peaks_table(&cells).text(colour)),
        slopes_table(&cells, &slopes).map(|table| table.text(colour)),
        launch_table(&cells).map(|table| table.text(colour)),
    ];
    tables.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// In a sweep of a command, what N is.
pub fn parameter(cells: &[Cell]) -> Option<String> {
    let mut parameters = cells
        .iter()
        .filter_map(|cell| cell.run().parameter.as_ref());
    let name = parameters.next()?;
    Some(format!(
        "N is the value of {{{name}}} in the command, and a task is one of it"
    ))
}

/// A row a cell.
pub fn peaks_rows(cells: &[Cell]) -> Table<11> {
    Table {
        headings: HEADINGS,
        flush: FLUSH,
        rows: cells.iter().map(|cell| row(cell, cells)).collect(),
    }
}

/// The first of those tables.
pub fn peaks_table(cells: &[Cell]) -> Noted<11> {
    let mut notes =
        vec!["memory in MiB at the peak; kernel memory is outside RSS; wall in seconds".to_owned()];
    notes.extend(parameter(cells));
    let methods: Vec<PerTaskMethod> = cells
        .iter()
        .filter_map(|cell| Some(per_task(cell, cells)?.method))
        .collect();
    let growth = |method: &PerTaskMethod| matches!(method, PerTaskMethod::GrowthSince(_));
    if methods.iter().any(growth) {
        notes.push(
            "B/task: growth of RSS since the program's smallest N, divided by the tasks added"
                .to_owned(),
        );
    }
    if methods.contains(&PerTaskMethod::WholeDividedByN) {
        notes.push("<= B/task: RSS divided by N, the runtime's base included".to_owned());
    }
    notes.extend(wide_spreads(cells));
    Noted {
        table: peaks_rows(cells),
        failed: cells.iter().map(|cell| cell.failures() > 0).collect(),
        notes,
    }
}

/// The programs whose repeats differ, which is no error of measurement: above all, the size of a
/// garbage-collected heap is partly timing.
fn wide_spreads(cells: &[Cell]) -> Option<String> {
    let wide = |cell: &Cell| {
        let (least, greatest) = cell.rss_spread()?;
        let median = cell.median()?.1.rss_bytes.max(1);
        let share = (greatest - least) as f64 / median as f64;
        let name = &cell.run().label;
        let tasks = thousands(cell.tasks);
        (share > WIDE_SPREAD).then(|| format!("{name} at {tasks} by {:.0} %", share * 100.0))
    };
    let wide: Vec<String> = cells.iter().filter_map(wide).collect();
    (!wide.is_empty()).then(|| {
        format!(
            "RSS of repeats differs by more than {:.0} % of the median: {}",
            WIDE_SPREAD * 100.0,
            wide.join(", ")
        )
    })
}

fn row(cell: &Cell, cells: &[Cell]) -> [String; 11] {
    let run = cell.run();
    // A failed run shows what it had reached; the outcome beside it says that it is not the whole.
    let peak = run.peak.as_ref();
    let class = |class| {
        peak.map(|peak| mib(peak.classes.get(class)))
            .unwrap_or_default()
    };
    let wall = if run.outcome == Outcome::Unavailable {
        String::new()
    } else {
        format!("{:.1}", run.wall_seconds)
    };
    [
        cell.label(),
        thousands(cell.tasks),
        class(Class::Stacks),
        class(Class::Heap),
        class(Class::Runtime),
        class(Class::Unclassified),
        peak.map(|peak| mib(peak.rss_bytes)).unwrap_or_default(),
        peak.and_then(kernel_bytes).map(mib).unwrap_or_default(),
        per_task_text(cell, cells),
        wall,
        outcome(cell),
    ]
}

fn per_task_text(cell: &Cell, cells: &[Cell]) -> String {
    let Some(per_task) = per_task(cell, cells) else {
        return String::new();
    };
    let limit = if per_task.method == PerTaskMethod::WholeDividedByN {
        "<= "
    } else {
        ""
    };
    format!("{limit}{}", signed(per_task.rss))
}

fn outcome(cell: &Cell) -> String {
    let Some(failed) = cell.failure() else {
        return match cell.rss_spread() {
            None => "completed".to_owned(),
            Some((least, greatest)) => format!(
                "completed, median of {} (RSS {} to {})",
                cell.repeats(),
                mib(least),
                mib(greatest)
            ),
        };
    };
    let word = match failed.outcome {
        Outcome::Completed => "completed without a look at its memory",
        Outcome::Failed => "failed",
        Outcome::Unavailable => "unavailable",
    };
    let told = match &failed.reason {
        Some(reason) if reason.starts_with(word) => reason.clone(),
        Some(reason) => format!("{word}: {reason}"),
        None => word.to_owned(),
    };
    // A line break in a reason would break the table.
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    if cell.median().is_some() {
        format!("{} of {} {told}", cell.failures(), cell.repeats())
    } else {
        told
    }
}

/// MiB with one decimal and thousands separators.
fn mib(bytes: u64) -> String {
    let tenths = (bytes as f64 / MIB as f64 * 10.0).round() as u64;
    format!("{}.{}", thousands(tenths / 10), tenths % 10)
}
