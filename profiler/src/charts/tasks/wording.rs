//! The words of the figure: its title, its explanations, and the labels of its rows.

use crate::results::summary::{Cell, PerTaskMethod, kernel_bytes, per_task, total_bytes};
use crate::results::{Kernel, Outcome, Peak, Run};
use crate::units::{MIB, thousands};

use super::super::frame::{self, counted, enumeration, mib};

/// The title: what the figure shows, in numbers.
pub fn finding(shown: &[&Cell], count: u64) -> String {
    let tasks = counted(count, "task");
    let bars: Vec<(&Run, &Peak)> = shown.iter().filter_map(|cell| cell.median()).collect();
    let kernel = if bars.iter().any(|(_, peak)| kernel_bytes(peak).is_some()) {
        ", kernel included"
    } else {
        ""
    };
    let round = |peak: &Peak| match total_bytes(peak) {
        small if small < 10 * MIB => format!("{:.1} MiB", small as f64 / MIB as f64),
        bytes => format!(
            "{} MiB",
            thousands((bytes as f64 / MIB as f64).round() as u64)
        ),
    };
    match bars.as_slice() {
        [] => format!("{tasks}: no program completed"),
        [(run, peak)] => format!("{tasks}: {} ({}){kernel}", round(peak), run.label),
        [(first, least), .., (last, most)] => {
            format!(
                "{tasks}: {} ({}) to {} ({}){kernel}",
                round(least),
                first.label,
                round(most),
                last.label
            )
        }
    }
}

/// Which programs have no bar: by name when they are few.
pub fn failures(shown: &[&Cell]) -> String {
    let runs: Vec<&Run> = shown
        .iter()
        .filter(|cell| cell.median().is_none())
        .filter_map(|cell| cell.failure())
        .collect();
    let (unavailable, failed): (Vec<&Run>, Vec<&Run>) = runs
        .into_iter()
        .partition(|run| run.outcome == Outcome::Unavailable);
    let clause = |runs: &[&Run], verb: &str| match runs {
        [] => None,
        [_] | [_, _] | [_, _, _] => {
            let labels: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
            Some(format!("{} {verb}", enumeration(&labels)))
        }
        many => Some(format!("{} programs {verb}", many.len())),
    };
    let clauses = [
        clause(&failed, "failed"),
        clause(&unavailable, "unavailable"),
    ];
    clauses.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// What the bars and the figures beside them are.
pub fn explanations(shown: &[&Cell], cells: &[Cell]) -> Vec<String> {
    let peaks: Vec<&Peak> = shown
        .iter()
        .filter_map(|cell| Some(cell.median()?.1))
        .collect();
    if peaks.is_empty() {
        return Vec::new();
    }
    let names = Kernel::default().parts().map(|(name, _)| name);
    // Which parts stand in a bar that can be seen, and which were not measured in one of them.
    let measured_in = |name: &str, least: u64| {
        let of = |peak: &&&Peak| {
            let mut parts = peak.kernel.parts().into_iter();
            parts.any(|(part, bytes)| part == name && bytes.is_some_and(|bytes| bytes >= least))
        };
        peaks.iter().filter(of).count()
    };
    let (always, sometimes) = names.split_at(3);
    let mut measured: Vec<&str> = always.to_vec();
    measured.retain(|name| measured_in(name, 0) > 0);
    measured.extend(sometimes.iter().filter(|name| measured_in(name, 1) > 0));
    // The others are what a cross-check leaves over, or rare: their absence is no gap in the sum.
    let mut missing: Vec<&str> = always.to_vec();
    missing.retain(|name| measured_in(name, 0) < peaks.len());
    let kernel = match (measured.as_slice(), missing.as_slice()) {
        ([], _) => "kernel memory was not measured".to_owned(),
        (measured, []) => format!(
            "hatched beside it, kernel memory: {}",
            enumeration(measured)
        ),
        (measured, missing) => {
            let (measured, missing) = (enumeration(measured), enumeration(missing));
            format!("hatched beside it, kernel memory: {measured} ({missing} not measured)")
        }
    };
    let mut lines = vec![format!("Peak resident memory (RSS) by class; {kernel}.")];

    let methods: Vec<PerTaskMethod> = shown
        .iter()
        .filter_map(|cell| Some(per_task(cell, cells)?.method))
        .collect();
    let base = methods.iter().find_map(|method| match method {
        PerTaskMethod::GrowthSince(tasks) => Some(*tasks),
        PerTaskMethod::WholeDividedByN => None,
    });
    if let Some(base) = base {
        lines.push(format!(
            "B/task: growth since N = {}, divided by the tasks added.",
            thousands(base)
        ));
    }
    if methods.contains(&PerTaskMethod::WholeDividedByN) {
        lines.push("≤ B/task: the whole divided by N, so the runtime's base is in it.".to_owned());
    }
    lines.extend(frame::whiskers(shown));
    lines
}

/// Bytes per task of `cell`, for the end of its bar; empty where they would mean nothing.
pub fn per_task_label(cell: &Cell, cells: &[Cell]) -> String {
    let Some(per_task) = per_task(cell, cells) else {
        return String::new();
    };
    let limit = if per_task.method == PerTaskMethod::WholeDividedByN {
        "≤ "
    } else {
        ""
    };
    let mut label = format!("{limit}{} B/task", frame::signed_thousands(per_task.rss));
    if cell
        .median()
        .is_some_and(|(_, peak)| kernel_bytes(peak).is_some())
    {
        label += &format!(", {} with kernel", frame::signed_thousands(per_task.total));
    }
    label
}

/// Why there is no bar.
pub fn failure(run: &Run) -> String {
    let reason = run
        .reason
        .as_deref()
        .unwrap_or("no reason was recorded")
        .trim_end_matches('.');
    let word = match run.outcome {
        Outcome::Unavailable => "unavailable",
        Outcome::Failed => "failed",
        Outcome::Completed => {
            return "completed, but ended before its memory was looked at".to_owned();
        }
    };
    if reason.starts_with(word) {
        reason.to_owned()
    } else {
        format!("{word}: {reason}")
    }
}

/// How much memory a failed run had come to; empty when that is not known.
pub fn reached(run: &Run) -> String {
    let Some(peak) = &run.peak else {
        return String::new();
    };
    let kernel = kernel_bytes(peak).map(|_| format!(", {} with kernel", mib(total_bytes(peak))));
    format!(
        "until then {} MiB{}",
        mib(peak.rss_bytes),
        kernel.unwrap_or_default()
    )
}
