//! What results say, in sentences.

use std::cmp::Reverse;

use crate::classify::Class;
use crate::report::run::identifier;
use crate::report::slopes::signed;
use crate::results::slopes::{Quantity, Slope, find, whole};
use crate::results::summary::{Cell, kernel_bytes, programs, total_bytes};
use crate::results::{Kernel, Peak};
use crate::units::{KIB, human, thousands};

/// Parts below this are not named.
const LEAST_SHARE: f64 = 0.005;

/// `1 task`, `100,000 tasks`.
pub fn tasks(count: u64) -> String {
    match count {
        1 => "1 task".to_owned(),
        count => format!("{} tasks", thousands(count)),
    }
}

/// Each program at the largest N that it completed: those that came farthest first, of them the smallest first.
pub fn largest_of_each<'a, 'b>(cells: &'b [Cell<'a>]) -> Vec<(&'b Cell<'a>, &'a Peak)> {
    let largest = |program: &&str| {
        let own = cells.iter().filter(|cell| cell.program() == *program);
        own.filter_map(|cell| Some((cell, cell.median()?.1)))
            .max_by_key(|(cell, _)| cell.tasks)
    };
    let programs = programs(cells);
    let mut found: Vec<_> = programs.iter().filter_map(largest).collect();
    found.sort_by_key(|(cell, peak)| (Reverse(cell.tasks), total_bytes(peak)));
    found
}

/// The findings that the post opens with.
pub fn of_all(cells: &[Cell], slopes: &[Slope], most: u64) -> Vec<String> {
    let largest = largest_of_each(cells);
    let at_most: Vec<_> = largest
        .iter()
        .filter(|(cell, _)| cell.tasks == most)
        .collect();
    let named = |(cell, peak): &(&Cell, &Peak)| {
        let label = &cell.run().label;
        format!("{} ({label})", human(total_bytes(peak)))
    };
    let mut said = Vec::new();
    match at_most.as_slice() {
        [] => {}
        [one] => said.push(format!("{} take {}.", tasks(most), named(one))),
        [least, .., greatest] => said.push(format!(
            "{} take from {} to {}, the kernel's part included.",
            tasks(most),
            named(least),
            named(greatest)
        )),
    }
    let stacks =
        |peak: &Peak| peak.classes.get(Class::Stacks) as f64 / peak.rss_bytes.max(1) as f64;
    let most_stacks = largest
        .iter()
        .max_by(|one, other| stacks(one.1).total_cmp(&stacks(other.1)));
    said.extend(
        most_stacks
            .filter(|(_, peak)| stacks(peak) >= 0.5)
            .map(|(cell, peak)| {
                let label = &cell.run().label;
                let percent = stacks(peak) * 100.0;
                format!("{label}: {percent:.0} % of the resident memory is stacks.")
            }),
    );
    let times = |peak: &Peak| kernel_bytes(peak).unwrap_or(0) as f64 / peak.rss_bytes.max(1) as f64;
    let most_kernel = largest
        .iter()
        .max_by(|one, other| times(one.1).total_cmp(&times(other.1)));
    said.extend(most_kernel.filter(|(_, peak)| times(peak) >= 0.5).map(|(cell, peak)| {
        let label = &cell.run().label;
        let kernel = human(kernel_bytes(peak).unwrap_or(0));
        let times = times(peak);
        format!("Beside the RSS of {label}, the kernel holds {kernel}: {times:.1} times as much.")
    }));
    said.extend(cost_range(cells, slopes));
    said
}

/// The cheapest and the dearest task.
fn cost_range(cells: &[Cell], slopes: &[Slope]) -> Option<String> {
    let mut costs: Vec<(&str, f64)> = programs(cells)
        .iter()
        .filter_map(|program| {
            let cell = cells.iter().find(|cell| cell.program() == *program)?;
            Some((
                cell.run().label.as_str(),
                whole(slopes, program)?.bytes_per_task,
            ))
        })
        .collect();
    costs.sort_by(|one, other| one.1.total_cmp(&other.1));
    match costs.as_slice() {
        [(first, least), .., (last, most)] => Some(format!(
            "A task adds from {} bytes ({first}) to {} bytes ({last}).",
            signed(*least),
            signed(*most)
        )),
        _ => None,
    }
}

/// What a task of each program costs.
pub fn costs(cells: &[Cell], slopes: &[Slope]) -> Vec<String> {
    let cost = |program: &&str| {
        let cell = cells.iter().find(|cell| cell.program() == *program)?;
        let slope = whole(slopes, program)?;
        let kernel = match slope.class {
            Quantity::Total => ", the kernel's part included",
            _ => ", without the kernel's part",
        };
        let interval = match slope.ci95 {
            Some([low, high]) => format!("95 % interval {} to {}", signed(low), signed(high)),
            None => "too few runs for an interval".to_owned(),
        };
        let parts = [
            Quantity::Stacks,
            Quantity::Heap,
            Quantity::Runtime,
            Quantity::Unclassified,
            Quantity::Kernel,
        ];
        let mut parts: Vec<(f64, &str)> = parts
            .into_iter()
            .filter_map(|class| Some((find(slopes, program, class)?.bytes_per_task, name(class))))
            .filter(|(bytes, _)| bytes.abs() >= slope.bytes_per_task.abs() * LEAST_SHARE)
            .collect();
        parts.sort_by(|one, other| other.0.total_cmp(&one.0));
        let parts: Vec<String> = parts
            .iter()
            .map(|(bytes, name)| format!("{name} {}", signed(*bytes)))
            .collect();
        Some(format!(
            "{}: a task adds {} bytes{kernel} ({interval}): {}.",
            cell.run().label,
            signed(slope.bytes_per_task),
            parts.join(", ")
        ))
    };
    programs(cells).iter().filter_map(cost).collect()
}

fn name(class: Quantity) -> &'static str {
    match class {
        Quantity::Stacks => "stacks",
        Quantity::Heap => "heap",
        Quantity::Runtime => "runtime",
        Quantity::Unclassified => "unclassified",
        Quantity::Rss => "RSS",
        Quantity::Kernel => "kernel",
        Quantity::Total => "total",
    }
}

/// `77 % stacks, 15 % heap, …; largest leaf: task_stack, 65 %`, all of RSS and kernel memory together.
pub fn parts(peak: &Peak) -> String {
    let total = total_bytes(peak).max(1) as f64;
    let mut parts: Vec<(u64, &str)> = Class::ALL
        .map(|class| (peak.classes.get(class), class.name()))
        .to_vec();
    parts.extend(kernel_bytes(peak).map(|bytes| (bytes, "kernel")));
    parts.retain(|(bytes, _)| *bytes as f64 >= total * LEAST_SHARE);
    parts.sort_by_key(|(bytes, _)| Reverse(*bytes));
    let percent = |bytes: u64| format!("{:.0} %", bytes as f64 / total * 100.0);
    let words: Vec<String> = parts
        .iter()
        .map(|(bytes, name)| format!("{} {name}", percent(*bytes)))
        .collect();
    let mut said = words.join(", ");
    let largest = peak.leaves.iter().max_by_key(|leaf| leaf.bytes);
    if let Some(leaf) = largest.filter(|leaf| leaf.bytes > 0) {
        said += &format!(
            "; largest leaf: {}, {}",
            identifier(&leaf.leaf),
            percent(leaf.bytes)
        );
    }
    said
}

/// What the kernel holds for a program.
pub fn kernel(cell: &Cell, peak: &Peak) -> String {
    let bytes = kernel_bytes(peak).unwrap_or(0);
    let times = bytes as f64 / peak.rss_bytes.max(1) as f64;
    let mut said = format!(
        "{}, {}: {} beside {} of RSS, {times:.1} times as much",
        cell.run().label,
        tasks(cell.tasks),
        human(bytes),
        human(peak.rss_bytes)
    );
    // Of few tasks it says nothing of a task.
    if cell.tasks >= crate::results::summary::FEWEST_TASKS {
        said += &format!(
            ", {:.1} KiB for each task ({})",
            kib(bytes, cell.tasks),
            kernel_parts(&peak.kernel, cell.tasks)
        );
    }
    said + "."
}

/// `stacks 16.0, page tables 4.0`, in KiB a task; those that come to a tenth of one.
fn kernel_parts(kernel: &Kernel, tasks: u64) -> String {
    let parts = kernel
        .parts()
        .into_iter()
        .filter_map(|(name, bytes)| Some((name, kib(bytes?, tasks))));
    let parts: Vec<String> = parts
        .filter(|(_, kib)| *kib >= 0.05)
        .map(|(name, kib)| format!("{name} {kib:.1}"))
        .collect();
    parts.join(", ")
}

fn kib(bytes: u64, tasks: u64) -> f64 {
    bytes as f64 / tasks as f64 / KIB as f64
}
