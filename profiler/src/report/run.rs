//! The page about one run: what `profiler run` prints.

use std::fmt::Write;

use crate::classify::Class;
use crate::results::summary::{kernel_bytes, total_bytes};
use crate::results::{GroupCheck, Kernel, Outcome, Peak, Run};
use crate::units::{human, thousands};

use super::{
    Colour,
    processes::{own_peaks_table, processes_table},
    regions::{self, regions_table},
    trust::trust,
};

/// Kinds of slab objects shown.
const SLAB_KINDS: usize = 8;

/// Where the memory of one run went: by class, leaf and process, the largest regions with the rule that
/// fired and what backs them, and how far the figures can be trusted. Ends with a newline.
pub fn run_report(run: &Run, colour: Colour) -> String {
    let mut text = String::new();
    write_report(&mut text, run, colour).expect("a String takes everything");
    text
}

/// The run in one line: `RSS 12.0 MiB and kernel 1.1 MiB at the peak, completed after 1.20 s`.
pub fn run_summary(run: &Run) -> String {
    let memory = match &run.peak {
        Some(peak) => format!(
            "RSS {}{} at the peak",
            human(peak.rss_bytes),
            kernel_bytes(peak)
                .map(|bytes| format!(" and kernel {}", human(bytes)))
                .unwrap_or_default()
        ),
        None => "it ended before its memory was looked at".to_owned(),
    };
    format!("{memory}, {} after {:.2} s", ending(run), run.wall_seconds)
}

/// How it ended: the reason why it did not complete, or `completed`.
pub fn ending(run: &Run) -> String {
    run.reason.clone().unwrap_or_else(|| "completed".to_owned())
}

fn write_report(out: &mut String, run: &Run, colour: Colour) -> std::fmt::Result {
    let command = run.command.join(" ");
    writeln!(out, "{}", colour.bold(&title(run)))?;
    if !run.label.is_empty() && run.label != command && !command.is_empty() {
        writeln!(out, "{command}")?;
    }
    if let Some(failure) = failure(run) {
        writeln!(out, "{}", colour.red(&failure))?;
    }
    match &run.peak {
        Some(peak) => write_peak(out, run, peak, colour)?,
        None if run.outcome == Outcome::Completed => {
            writeln!(out, "it ended before its memory was looked at")?;
        }
        None => {}
    }
    if run.outcome != Outcome::Unavailable {
        writeln!(out)?;
        trust(run)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))?;
    }
    for warning in &run.warnings {
        writeln!(out, "{}", colour.red(&format!("warning: {warning}")))?;
    }
    Ok(())
}

/// What was run: `Go, 100,000 tasks`.
pub fn title(run: &Run) -> String {
    let command = run.command.join(" ");
    let name = if run.label.is_empty() {
        &command
    } else {
        &run.label
    };
    match (run.tasks, &run.parameter) {
        (Some(value), Some(parameter)) => format!("{name}, {parameter} = {}", thousands(value)),
        (Some(1), None) => format!("{name}, 1 task"),
        (Some(tasks), None) => format!("{name}, {} tasks", thousands(tasks)),
        (None, _) => name.clone(),
    }
}

/// Why it did not complete: `failed: exit status 2`; `None` when it did.
pub fn failure(run: &Run) -> Option<String> {
    let word = match run.outcome {
        Outcome::Completed => return None,
        Outcome::Failed => "failed",
        Outcome::Unavailable => "unavailable",
    };
    let reason = run.reason.as_deref().unwrap_or("no reason was recorded");
    Some(if reason.starts_with(word) {
        reason.to_owned()
    } else {
        format!("{word}: {reason}")
    })
}

fn write_peak(out: &mut String, run: &Run, peak: &Peak, colour: Colour) -> std::fmt::Result {
    writeln!(out)?;
    writeln!(
        out,
        "peak RSS {} at {:.2} s of {:.2} s, {} threads (PSS {}, reserved {})",
        human(peak.rss_bytes),
        peak.at_seconds,
        run.wall_seconds,
        thousands(peak.threads),
        human(peak.pss_bytes),
        human(peak.reserved_bytes),
    )?;
    for class in Class::ALL {
        let bytes = peak.classes.get(class);
        writeln!(
            out,
            "  {:<22}{:>12}{:>8}",
            class.name(),
            human(bytes),
            share(bytes, peak.rss_bytes)
        )?;
        for leaf in peak
            .leaves
            .iter()
            .filter(|leaf| leaf.class == class && leaf.bytes > 0)
        {
            writeln!(
                out,
                "    {:<20}{:>12}{:>8}",
                identifier(&leaf.leaf),
                human(leaf.bytes),
                share(leaf.bytes, peak.rss_bytes)
            )?;
        }
    }
    write_kernel(out, peak, colour)?;

    writeln!(out, "\n{}", colour.bold("processes"))?;
    write_rows(out, &processes_table(run).lines(Colour::Off))?;
    if let Some(table) = own_peaks_table(run) {
        writeln!(
            out,
            "\n{}",
            colour.bold("processes that had more at another time")
        )?;
        write_rows(out, &table.lines(Colour::Off))?;
    }

    writeln!(out, "\n{}", colour.bold("largest regions"))?;
    write_rows(out, &regions_table(run, peak).lines(Colour::Off))?;
    if let Some(more @ 1..) = peak.regions.len().checked_sub(regions::SHOWN) {
        writeln!(out, "  and {} more in the JSON", thousands(more as u64))?;
    }
    Ok(())
}

fn write_rows(out: &mut String, rows: &[String]) -> std::fmt::Result {
    rows.iter().try_for_each(|row| writeln!(out, "  {row}"))
}

fn write_kernel(out: &mut String, peak: &Peak, colour: Colour) -> std::fmt::Result {
    let kernel = &peak.kernel;
    let Some(bytes) = kernel_bytes(peak) else {
        return writeln!(out, "kernel memory was not measured");
    };
    writeln!(
        out,
        "\n{}",
        colour.bold(&format!(
            "kernel memory, outside RSS: {} ({})",
            human(bytes),
            kernel.source
        ))
    )?;
    for (name, part) in kernel.parts() {
        let told = part.map_or_else(|| "not measured".to_owned(), human);
        // Most trees have none of these.
        if part.unwrap_or(0) == 0 && ["unmapped shmem", "socket buffers"].contains(&name) {
            continue;
        }
        writeln!(out, "  {name:<22}{told:>12}")?;
        if name == "slab" {
            write_slab(out, kernel)?;
        }
    }
    writeln!(
        out,
        "  {:<22}{:>12}",
        "RSS and kernel",
        human(total_bytes(peak))
    )?;
    match &kernel.check {
        Some(check) => writeln!(out, "  {}", check_sentence(check)),
        None => Ok(()),
    }
}

/// The kinds that take most; the JSON has all.
fn write_slab(out: &mut String, kernel: &Kernel) -> std::fmt::Result {
    let (shown, rest) = kernel.slab.split_at(kernel.slab.len().min(SLAB_KINDS));
    for kind in shown {
        writeln!(
            out,
            "    {:<20}{:>12}  {}{}",
            kind.kind,
            human(kind.bytes),
            if kind.estimated { "about " } else { "" },
            thousands(kind.objects)
        )?;
    }
    if rest.is_empty() {
        return Ok(());
    }
    let bytes = rest.iter().map(|kind| kind.bytes).sum();
    let name = format!("{} more kinds", rest.len());
    writeln!(out, "    {name:<20}{:>12}", human(bytes))
}

/// The kernel's own figure, and which one is higher.
pub fn check_sentence(check: &GroupCheck) -> String {
    let difference = human(check.residue_bytes.unsigned_abs());
    let compared = match check.residue_bytes {
        0 => "as much as was counted here".to_owned(),
        1.. => format!("{difference} more than was counted here: \"other\""),
        _ => format!("{difference} less than was counted here"),
    };
    format!(
        "at {:.2} s the kernel charged {} to the group, {compared}",
        check.at_seconds,
        human(check.group.kernel_bytes),
    )
}

/// `part` of `whole` in per cent.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        String::new()
    } else {
        format!("{:.1} %", part as f64 / whole as f64 * 100.0)
    }
}

/// The name that a leaf has in the JSON, so that report and document can be read side by side.
pub fn identifier(leaf: &impl serde::Serialize) -> String {
    serde_json::to_value(leaf)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
