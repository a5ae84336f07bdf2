//! Several runs side by side: bars for each number of tasks, and the tables of the terminal.

use maud::{Markup, html};

use crate::charts;
use crate::report::launch::launch_table;
use crate::report::run::{failure, title};
use crate::report::slopes::slopes_table;
use crate::report::table::peaks_table;
use crate::results::slopes::slopes_of;
use crate::results::summary::{
    Cell, PerTaskMethod, cells, kernel_bytes, of_least_load, per_task, task_counts, total_bytes,
};
use crate::results::{Peak, Results, Run};
use crate::units::{human, thousands};

use super::markup::{bar, mark, table};

/// `shown` are the runs that the page tells, by whose place they are linked.
pub fn overview(results: &Results, shown: &[&Run]) -> Markup {
    let cells = cells(results);
    let place = |run: &Run| shown.iter().position(|it| std::ptr::eq(*it, run));
    let commands: Vec<&Run> = shown
        .iter()
        .copied()
        .filter(|run| run.tasks.is_none())
        .collect();
    html! {
        p.note {
            "Peak memory, one row a program: resident memory (RSS) by class, which sums to RSS exactly, and hatched \
             what the kernel holds beside it. Of repeats the one in the middle. A row leads to its run."
        }
        (legend())
        @for count in task_counts(results).into_iter().rev() {
            @let of_count = at(&cells, count);
            h2 { (thousands(count)) @if count == 1 { " task" } @else { " tasks" } }
            p.note { (charts::finding_of_tasks(&of_count, count)) }
            (rows(of_count.iter().map(|cell| Row::of_cell(cell, &cells, place(cell.run()))).collect()))
        }
        @if !commands.is_empty() {
            h2 { "Commands" }
            (rows(commands.iter().map(|run| Row::of_run(run, place(run))).collect()))
        }
        @if !cells.is_empty() {
            h2 { "In figures" }
            (table("peaks of all programs", &peaks_table(&cells)))
            @if let Some(slopes) = slopes_table(&cells, &slopes_of(&of_least_load(&cells))) {
                h2 { "What a task costs" }
                (table("bytes per task", &slopes))
            }
            @if let Some(launch) = launch_table(&cells) {
                h2 { "What it takes to start a task" }
                (table("launch", &launch))
            }
        }
    }
}

/// The cells at an N, from least to most memory, then those without.
fn at<'a, 'b>(cells: &'b [Cell<'a>], count: u64) -> Vec<&'b Cell<'a>> {
    let mut found: Vec<&Cell> = cells.iter().filter(|cell| cell.tasks == count).collect();
    found.sort_by_key(|cell| {
        let peak = cell.median().map(|(_, peak)| peak);
        peak.map_or(u64::MAX, total_bytes)
    });
    found
}

/// What was found at the largest N; `None` where no run has one.
pub fn finding(results: &Results) -> Option<String> {
    let count = *task_counts(results).last()?;
    Some(charts::finding_of_tasks(&at(&cells(results), count), count))
}

/// What the fills stand for.
pub fn legend() -> Markup {
    html! {
        ul.legend {
            @for class in crate::classify::Class::ALL { li { (mark(class.name())) (class.name()) } }
            li { (mark("kernel")) "kernel, outside RSS" }
        }
    }
}

/// A bar, or why there is none.
struct Row<'a> {
    name: String,
    version: &'a str,
    peak: Option<&'a Peak>,
    per_task: Option<String>,
    failure: Option<String>,
    place: Option<usize>,
}

impl<'a> Row<'a> {
    fn of_cell(cell: &Cell<'a>, cells: &[Cell], place: Option<usize>) -> Row<'a> {
        let run = cell.run();
        let per_task = per_task(cell, cells).map(|it| {
            let limit = match it.method {
                PerTaskMethod::WholeDividedByN => "≤ ",
                PerTaskMethod::GrowthSince(_) => "",
            };
            format!("{limit}{} B/task", super::super::slopes::signed(it.total))
        });
        Row {
            name: cell.label(),
            version: &run.version,
            peak: cell.median().map(|(_, peak)| peak),
            per_task,
            failure: cell.failure().and_then(failure),
            place,
        }
    }

    fn of_run(run: &'a Run, place: Option<usize>) -> Row<'a> {
        Row {
            name: title(run),
            version: &run.version,
            peak: run.peak.as_ref(),
            per_task: None,
            failure: failure(run),
            place,
        }
    }
}

fn rows(rows: Vec<Row>) -> Markup {
    let peaks = rows.iter().filter_map(|row| row.peak);
    let longest = peaks.map(total_bytes).max().unwrap_or(0);
    html! {
        ul.comparison {
            @for row in &rows {
                li {
                    a href=[row.place.map(|place| format!("#run-{place}"))] {
                        span.who { (row.name) small { (row.version) } }
                        @if let Some(peak) = row.peak {
                            (bar(&peak.classes, kernel_bytes(peak), longest, false))
                            span.what {
                                (human(total_bytes(peak)))
                                small {
                                    "RSS " (human(peak.rss_bytes))
                                    @if let Some(kernel) = kernel_bytes(peak) { " + kernel " (human(kernel)) }
                                }
                                @if let Some(per_task) = &row.per_task { small { (per_task) } }
                            }
                        }
                        @if let Some(failure) = &row.failure { span.why { (failure) } }
                    }
                }
            }
        }
    }
}
