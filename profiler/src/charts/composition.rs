//! `composition`: what a program's memory consists of, in percent, at each N: RSS by class, and kernel memory
//! hatched.

use crate::classify::Class;
use crate::results::summary::{Cell, kernel_bytes, programs, total_bytes};
use crate::results::{Peak, Results};
use crate::units::{human, thousands};

use super::bars::{Bar, Group, Groups};
use super::drawing::{Block, Figure, Fill, Space};
use super::frame::{self, Heading, Legend};
use super::style;

/// The figure over all N.
pub fn figure(results: &Results, cells: &[Cell]) -> Figure {
    let groups: Vec<Group> = programs(cells)
        .iter()
        .map(|program| group(program, cells))
        .collect();
    let heading = Heading {
        finding: finding(cells),
        failures: String::new(),
        explanations: vec![
            "Peak memory in percent of the whole: resident memory (RSS) by class, and beside it what the \
             kernel holds. On the left, the number of tasks; on the right, the whole. ×: no figure."
                .to_owned(),
        ],
    };
    let mut body: Vec<Box<dyn Block>> = vec![Box::new(Space(24))];
    body.push(Box::new(legend(cells)));
    body.push(Box::new(Space(14)));
    let percent = |value: f64| format!("{value:.0} %");
    body.push(Box::new(Groups::new(groups, 100.0, percent)));
    body.push(Box::new(Space(14)));
    let shown: Vec<&Cell> = cells.iter().collect();
    frame::figure(&heading, body, &frame::circumstances(results, &shown))
}

/// Classes, and kernel memory where any was measured.
pub fn legend(cells: &[Cell]) -> Legend {
    let mut entries: Vec<(Fill, &'static str)> = Class::ALL
        .iter()
        .map(|class| (Fill::Plain(style::class_colour(*class)), class.name()))
        .collect();
    let mut peaks = cells.iter().filter_map(|cell| Some(cell.median()?.1));
    if peaks.any(|peak| kernel_bytes(peak).is_some()) {
        entries.push((Fill::Hatched, "kernel memory, outside RSS"));
    }
    Legend::new(&entries)
}

fn group(program: &str, cells: &[Cell]) -> Group {
    let mut own: Vec<&Cell> = cells
        .iter()
        .filter(|cell| cell.program() == program)
        .collect();
    own.sort_by_key(|cell| cell.tasks);
    Group {
        name: own[0].run().label.clone(),
        below: String::new(),
        bars: own.iter().map(|cell| bar(cell)).collect(),
    }
}

fn bar(cell: &Cell) -> Bar {
    let mark = thousands(cell.tasks);
    let Some((_, peak)) = cell.median() else {
        let reason = cell.failure().and_then(|run| run.reason.clone());
        return Bar {
            mark,
            segments: Vec::new(),
            value: String::new(),
            beside: String::new(),
            missing: Some(reason.unwrap_or_else(|| "no reason was recorded".to_owned())),
        };
    };
    let whole = total_bytes(peak).max(1) as f64;
    let segments = parts(peak)
        .into_iter()
        .map(|(fill, bytes)| (fill, bytes as f64 / whole * 100.0));
    Bar {
        mark,
        segments: segments.collect(),
        value: String::new(),
        beside: human(total_bytes(peak)),
        missing: None,
    }
}

/// The bytes of each class, and of the kernel.
fn parts(peak: &Peak) -> Vec<(Fill, u64)> {
    let class = |class| {
        let fill = Fill::Plain(style::class_colour(class));
        (fill, peak.classes.get(class))
    };
    let mut parts: Vec<(Fill, u64)> = Class::ALL.into_iter().map(class).collect();
    parts.push((Fill::Hatched, kernel_bytes(peak).unwrap_or(0)));
    parts
}

/// The title: which part is the largest in how many programs at the largest N.
fn finding(cells: &[Cell]) -> String {
    let most = cells
        .iter()
        .filter(|cell| cell.median().is_some())
        .map(|cell| cell.tasks)
        .max();
    let Some(most) = most else {
        return "No program completed".to_owned();
    };
    let mut counts = [0_usize; Class::ALL.len() + 1];
    let at_most = cells.iter().filter(|cell| cell.tasks == most);
    for (_, peak) in at_most.filter_map(|cell| cell.median()) {
        let largest = parts(peak)
            .iter()
            .enumerate()
            .max_by_key(|(_, (_, bytes))| *bytes)
            .map_or(0, |(index, _)| index);
        counts[largest] += 1;
    }
    let names = Class::ALL.map(Class::name);
    let mut said: Vec<(usize, &str)> = counts
        .into_iter()
        .zip(names.into_iter().chain(["kernel memory"]))
        .filter(|(count, _)| *count > 0)
        .collect();
    said.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let programs: usize = said.iter().map(|(count, _)| count).sum();
    let words: Vec<String> = said
        .iter()
        .map(|(count, name)| format!("{name} in {count}"))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let tasks = frame::counted(most, "task");
    match said.as_slice() {
        [(_, name)] if programs > 1 => {
            format!("{tasks}: {name} is the largest part in all {programs} programs that completed")
        }
        [(_, name)] => format!("{tasks}: {name} is the largest part"),
        _ => format!(
            "{tasks}: the largest part is {} of {programs} programs",
            frame::enumeration(&words)
        ),
    }
}
