//! `user-kernel`: of programs with a thread a task, what the process sees (RSS) against what the kernel
//! holds for its threads.

use crate::classify::Class;
use crate::results::slopes::{Quantity, Slope, find};
use crate::results::summary::{Cell, kernel_bytes, programs};
use crate::results::{Kernel, Peak, Results};
use crate::units::{KIB, MIB, human, thousands};

use super::bars::{Bar, Group, Groups};
use super::composition::legend;
use super::drawing::{Block, Figure, Fill, Space};
use super::frame::{self, Heading};
use super::style;

/// The figure of the programs that have at least as many threads as tasks, each at the largest N that it
/// completed; `None` where there is none, or the kernel's part was not measured.
pub fn figure(results: &Results, cells: &[Cell], slopes: &[Slope]) -> Option<Figure> {
    let shown: Vec<&Cell> = programs(cells)
        .iter()
        .filter_map(|program| largest(program, cells))
        .collect();
    let peaks: Vec<(&Cell, &Peak)> = shown
        .iter()
        .filter_map(|cell| Some((*cell, cell.median()?.1)))
        .collect();
    if peaks.is_empty() {
        return None;
    }
    let groups = peaks
        .iter()
        .map(|(cell, peak)| group(cell, peak, slopes))
        .collect();
    let heading = Heading {
        finding: finding(&peaks),
        failures: String::new(),
        explanations: vec![
            "Programs with a thread a task, at the largest number that completed: resident memory, and what the \
             kernel holds beside it. A thread: slope over N; ≤: the whole divided by N."
                .to_owned(),
        ],
    };
    let of_shown: Vec<Cell> = shown.iter().map(|cell| (*cell).clone()).collect();
    let mib = |value: f64| {
        let unit = if value == 0.0 { " MiB" } else { "" };
        format!("{}{unit}", thousands(value.round() as u64))
    };
    let body: Vec<Box<dyn Block>> = vec![
        Box::new(Space(24)),
        Box::new(legend(&of_shown)),
        Box::new(Space(14)),
        Box::new(Groups::new(groups, 1.0, mib)),
        Box::new(Space(14)),
    ];
    let facts = frame::circumstances(results, &shown);
    Some(frame::figure(&heading, body, &facts))
}

/// The largest N that `program` completed with a thread for each of several tasks.
fn largest<'a, 'b>(program: &str, cells: &'b [Cell<'a>]) -> Option<&'b Cell<'a>> {
    let threads = |cell: &&Cell| {
        cell.median().is_some_and(|(_, peak)| {
            cell.tasks > 1 && peak.threads >= cell.tasks && kernel_bytes(peak).is_some()
        })
    };
    cells
        .iter()
        .filter(|cell| cell.program() == program)
        .filter(threads)
        .max_by_key(|cell| cell.tasks)
}

fn group(cell: &Cell, peak: &Peak, slopes: &[Slope]) -> Group {
    let in_mib = |bytes: u64| bytes as f64 / MIB as f64;
    let class = |class| {
        let fill = Fill::Plain(style::class_colour(class));
        (fill, in_mib(peak.classes.get(class)))
    };
    let kernel = kernel_bytes(peak).unwrap_or(0);
    let bar = |mark: &str, segments, bytes, beside| Bar {
        mark: mark.to_owned(),
        segments,
        value: human(bytes),
        beside,
        missing: None,
    };
    let a_thread = |class, bytes: u64| {
        let slope = find(slopes, cell.program(), class);
        match slope {
            Some(slope) => format!("{:.1} KiB a thread", slope.bytes_per_task / KIB as f64),
            None => format!(
                "≤ {:.1} KiB a thread",
                bytes as f64 / cell.tasks as f64 / KIB as f64
            ),
        }
    };
    let of_kernel = format!(
        "{} ({})",
        a_thread(Quantity::Kernel, kernel),
        kernel_parts(&peak.kernel, cell.tasks)
    );
    Group {
        name: cell.run().label.clone(),
        below: frame::counted(cell.tasks, "thread"),
        bars: vec![
            bar(
                "user",
                Class::ALL.into_iter().map(class).collect(),
                peak.rss_bytes,
                a_thread(Quantity::Rss, peak.rss_bytes),
            ),
            bar(
                "kernel",
                vec![(Fill::Hatched, in_mib(kernel))],
                kernel,
                of_kernel,
            ),
        ],
    }
}

/// `stacks 16.0, page tables 4.0`, in KiB of a thread.
fn kernel_parts(kernel: &Kernel, threads: u64) -> String {
    let parts = [
        ("stacks", kernel.stacks_bytes),
        ("page tables", kernel.page_tables_bytes),
        ("slab", kernel.slab_bytes),
        ("other", kernel.other_bytes),
    ];
    let words: Vec<String> = parts
        .iter()
        .filter_map(|(name, bytes)| {
            let kib = (*bytes)? as f64 / threads as f64 / KIB as f64;
            Some(format!("{name} {kib:.1}"))
        })
        .collect();
    words.join(", ")
}

/// The title: how much more the kernel holds than the process sees.
fn finding(peaks: &[(&Cell, &Peak)]) -> String {
    let times = |peak: &Peak| kernel_bytes(peak).unwrap_or(0) as f64 / peak.rss_bytes.max(1) as f64;
    let mut sorted: Vec<&(&Cell, &Peak)> = peaks.iter().collect();
    sorted.sort_by(|one, other| times(one.1).total_cmp(&times(other.1)));
    let said = |(cell, peak): &(&Cell, &Peak)| {
        format!("{:.1} times the RSS ({})", times(peak), cell.run().label)
    };
    match sorted.as_slice() {
        [] => String::new(),
        [one] => format!("Threads: the kernel holds {}", said(one)),
        [least, .., most] => format!(
            "Threads: the kernel holds {:.1} ({}) to {}",
            times(least.1),
            least.0.run().label,
            said(most)
        ),
    }
}
