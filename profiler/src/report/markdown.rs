//! Results as Markdown with GitHub's tables: for an issue, a pull request or a job's summary.

use std::fmt::Write;

use crate::{
    classify::Class,
    results::{
        Outcome, Peak, Results, Run,
        slopes::slopes_of,
        summary::{cells, of_least_load, total_bytes},
    },
    units::{human, thousands},
};

use super::{
    columns::{Flush, Table},
    processes::processes_table,
    regions::regions_table,
    repeats::repeats_rows,
    run::{identifier, share},
    slopes::slopes_rows,
    table::{parameter, peaks_rows},
    trust::trust,
};

/// A page about a run that is alone, else the tables over all of them. Ends with a newline.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    match results.runs.as_slice() {
        [run] => write_run(&mut text, run),
        _ => write_tables(&mut text, results),
    }
    .expect("a String takes everything");
    let host = &results.host;
    let object = match host.ebpf_object.is_empty() {
        true => String::new(),
        false => format!(", eBPF object {}", host.ebpf_object),
    };
    text + &format!(
        "\nprofiler {}{object}; Linux {}, {}, {} with {} CPUs, {}.\n",
        host.profiler_version,
        host.kernel,
        host.os,
        host.cpu,
        host.cpus,
        human(host.memory_bytes)
    )
}

fn write_run(out: &mut String, run: &Run) -> std::fmt::Result {
    let tasks = run.tasks.map(|tasks| format!(", N = {}", thousands(tasks)));
    writeln!(
        out,
        "# Memory of {}{}\n",
        run.label,
        tasks.unwrap_or_default()
    )?;
    writeln!(out, "```sh\n{}\n```", run.command.join(" "))?;
    if run.outcome != Outcome::Completed {
        let reason = run.reason.as_deref().unwrap_or("no reason was recorded");
        writeln!(
            out,
            "\n**It did not complete: {reason}.** The figures are those up to then."
        )?;
    }
    if let Some(peak) = &run.peak {
        write_peak(out, run, peak)?;
    }
    writeln!(out, "\n## How far to trust it\n")?;
    for line in trust(run) {
        writeln!(out, "- {line}")?;
    }
    for warning in &run.warnings {
        writeln!(out, "- **warning**: {warning}")?;
    }
    Ok(())
}

fn write_peak(out: &mut String, run: &Run, peak: &Peak) -> std::fmt::Result {
    writeln!(
        out,
        "\nThe peak was **{}** of RSS, {:.2} s after exec (of {:.2} s), with {} threads; {} with the memory of the kernel.\n",
        human(peak.rss_bytes),
        peak.at_seconds,
        run.wall_seconds,
        thousands(peak.threads),
        human(total_bytes(peak))
    )?;
    write!(out, "{}", classes_table(peak).markdown())?;
    writeln!(
        out,
        "\n## By process\n\n{}",
        processes_table(run).markdown()
    )?;
    writeln!(out, "## Largest regions\n")?;
    write!(out, "{}", regions_table(run, peak).markdown())
}

/// Classes, their leaves, and the parts of kernel memory.
fn classes_table(peak: &Peak) -> Table<4> {
    let mut rows = Vec::new();
    for class in Class::ALL {
        let bytes = peak.classes.get(class);
        let name = format!("**{}**", class.name());
        rows.push([
            name,
            String::new(),
            human(bytes),
            share(bytes, peak.rss_bytes),
        ]);
        let leaves = peak.leaves.iter();
        rows.extend(
            leaves
                .filter(|leaf| leaf.class == class && leaf.bytes > 0)
                .map(|leaf| {
                    let share = share(leaf.bytes, peak.rss_bytes);
                    [
                        String::new(),
                        identifier(&leaf.leaf),
                        human(leaf.bytes),
                        share,
                    ]
                }),
        );
    }
    let known = peak.kernel.parts().into_iter();
    rows.extend(known.filter_map(|(part, bytes)| {
        let name = "kernel, outside RSS".to_owned();
        Some([name, part.to_owned(), human(bytes?), String::new()])
    }));
    Table {
        headings: ["class", "leaf", "memory", "of RSS"],
        flush: [Flush::Left, Flush::Left, Flush::Right, Flush::Right],
        rows,
    }
}

fn write_tables(out: &mut String, results: &Results) -> std::fmt::Result {
    let cells = cells(results);
    if cells.is_empty() {
        writeln!(out, "# Memory at the peak\n")?;
        return write!(out, "{}", repeats_rows(&results.runs).markdown());
    }
    writeln!(
        out,
        "# Memory at the peak\n\nIn MiB; kernel memory is outside RSS.\n{}",
        parameter(&cells).map_or_else(String::new, |what| what + ".\n")
    )?;
    write!(out, "{}", peaks_rows(&cells).markdown())?;
    let slopes = slopes_of(&of_least_load(&cells));
    if let Some(slopes) = slopes_rows(&cells, &slopes) {
        writeln!(
            out,
            "\n## What one more costs, in bytes\n\n{}",
            slopes.markdown()
        )?;
    }
    Ok(())
}
