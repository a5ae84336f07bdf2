//! The processes of a run, those with most memory at the peak first.

use std::cmp::Reverse;

use maud::{Markup, html};

use crate::classify::Class;
use crate::results::{Process, Run};

use super::markup::{bar, number_cell, rest, scrolled, size_cell, sorting};

/// The table, of `most` rows at the most.
pub fn processes(run: &Run, id: usize, most: usize) -> Markup {
    let mut processes: Vec<&Process> = run.processes.iter().collect();
    processes.sort_by_key(|process| Reverse(process.rss_bytes_at_peak));
    let longest = processes.first().map_or(0, |first| first.rss_bytes_at_peak);
    let at_peak = processes.iter().map(|process| process.rss_bytes_at_peak);
    let caption = rest(most, ["process", "es"], at_peak);
    let shown = &processes[..processes.len().min(most)];
    let table = html! {
        table id={ "processes-" (id) } {
            thead {
                tr {
                    (sorting("process", true, false))
                    (sorting("executable", false, false))
                    (sorting("runtime", false, false))
                    (sorting("RSS at the peak", true, true))
                    th scope="col" { "by class" }
                    (sorting("own highest", true, false))
                    (sorting("at", true, false))
                    (sorting("threads", true, false))
                    (sorting("parent", true, false))
                    @for class in Class::ALL { (sorting(class.name(), true, false)) }
                }
            }
            tbody { @for process in shown { (row(process, longest)) } }
        }
    };
    html! {
        section {
            h3 { "Processes" }
            p.note { (caption) @if caption.starts_with("the") { " at the peak" } "." }
            (scrolled("processes", table))
        }
    }
}

fn row(process: &Process, longest: u64) -> Markup {
    let classes = &process.classes_at_peak;
    html! {
        tr {
            td.number data-key=(process.tgid) { (process.tgid) }
            td.wide { (process.executable) }
            td.name { (process.runtime) }
            (size_cell(process.rss_bytes_at_peak))
            td { @if process.rss_bytes_at_peak > 0 { (bar(classes, None, longest, true)) } }
            @match process.highest_rss_bytes {
                Some(bytes) => (size_cell(bytes)),
                None => td.number data-key="0" { "not told" },
            }
            td.number data-key=(process.highest_at_seconds.unwrap_or(0.0)) {
                @if let Some(seconds) = process.highest_at_seconds { (format!("{seconds:.2} s")) }
            }
            (number_cell(process.threads_peak))
            td.number data-key=(process.parent.unwrap_or(0)) { @if let Some(parent) = process.parent { (parent) } }
            @for class in Class::ALL { (size_cell(classes.get(class))) }
        }
    }
}
