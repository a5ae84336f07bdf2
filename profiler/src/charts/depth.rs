//! `load-<N>`: what becomes of memory as each task calls further down its stack, or holds a larger array. The
//! bars of a program stand under each other, by class, the least load first.

use crate::results::Results;
use crate::results::summary::{Cell, Load};
use crate::units::human;

use super::drawing::{Block, Figure, Space};
use super::frame::{self, Heading, counted};
use super::tasks;

/// The figure for `count` tasks; `None` where all were run with the same load.
pub fn figure(results: &Results, cells: &[Cell], count: u64) -> Option<Figure> {
    let mut shown: Vec<&Cell> = cells.iter().filter(|cell| cell.tasks == count).collect();
    let mut loads: Vec<Load> = shown.iter().map(|cell| cell.load).collect();
    loads.sort_unstable();
    loads.dedup();
    if loads.len() < 2 {
        return None;
    }
    // A program that can do without a load only has its bar in the figure of all programs.
    shown.retain(|cell| cell.load == loads[0] || cell.median().is_some());
    let mut programs: Vec<&str> = Vec::new();
    for cell in &shown {
        if cell.load != loads[0] && !programs.contains(&cell.program()) {
            programs.push(cell.program());
        }
    }
    shown.retain(|cell| programs.contains(&cell.program()));
    let place = |cell: &Cell| programs.iter().position(|name| *name == cell.program());
    shown.sort_by_key(|cell| (place(cell), cell.load));
    let heading = Heading {
        finding: finding(count, &loads),
        failures: String::new(),
        explanations: tasks::explanations(&shown, cells),
    };
    let mut body: Vec<Box<dyn Block + '_>> = vec![Box::new(Space(28))];
    body.extend(tasks::bars(&shown, cells));
    body.push(Box::new(Space(20)));
    let circumstances = frame::circumstances(results, &shown);
    Some(frame::figure(&heading, body, &circumstances))
}

fn finding(count: u64, loads: &[Load]) -> String {
    let range = |bytes: &dyn Fn(&Load) -> u64, what: &str| {
        let least = loads.iter().map(bytes).min().unwrap_or(0);
        let most = loads.iter().map(bytes).max().unwrap_or(0);
        (most > least).then(|| format!("{} to {} {what}", human(least), human(most)))
    };
    let ranges = [
        range(&|load| load.stack_depth_bytes, "down its stack"),
        range(&|load| load.payload_bytes, "held"),
    ];
    let ranges: Vec<String> = ranges.into_iter().flatten().collect();
    format!(
        "{}, each with {}",
        counted(count, "task"),
        ranges.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_tells_what_was_varied() {
        let load = |stack_depth_bytes, payload_bytes| Load {
            stack_depth_bytes,
            payload_bytes,
        };
        assert_eq!(
            finding(1_000, &[load(0, 64), load(8_192, 64)]),
            "1,000 tasks, each with 0 B to 8.0 KiB down its stack"
        );
        assert_eq!(
            finding(1, &[load(0, 0), load(512, 1_024)]),
            "1 task, each with 0 B to 512 B down its stack and 0 B to 1.0 KiB held"
        );
    }
}
