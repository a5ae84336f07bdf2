//! Peaks in the text format of OpenMetrics 1.0 (github.com/prometheus/OpenMetrics,
//! specification/OpenMetrics.md), which Prometheus and node_exporter's textfile collector read too.
//!
//! All are gauges: a result is the state at one moment. What was not measured has no sample.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    classify::Class,
    results::{Outcome, Peak, Results, Run},
};

/// Labels of one sample.
type Labels = Vec<(&'static str, String)>;
/// Labels beside those of the run, and the value.
type Sample = (Labels, f64);

/// A metric family: its samples must stand together.
struct Family {
    name: &'static str,
    /// The name must end with it; empty for a plain number.
    unit: &'static str,
    help: &'static str,
    samples: fn(&Run) -> Vec<Sample>,
}

const FAMILIES: [Family; 13] = [
    Family {
        name: "profiler_peak_rss_bytes",
        unit: "bytes",
        help: "Highest RSS of the process tree.",
        samples: |run| of_peak(run, |peak| vec![alone(peak.rss_bytes)]),
    },
    Family {
        name: "profiler_peak_class_bytes",
        unit: "bytes",
        help: "RSS at the peak by class; the classes sum to profiler_peak_rss_bytes.",
        samples: |run| of_peak(run, classes),
    },
    Family {
        name: "profiler_peak_leaf_bytes",
        unit: "bytes",
        help: "RSS at the peak by leaf; the leaves sum to profiler_peak_rss_bytes.",
        samples: |run| of_peak(run, leaves),
    },
    Family {
        name: "profiler_peak_kernel_bytes",
        unit: "bytes",
        help: "Memory that the kernel held for the tree at the peak, outside RSS, by part.",
        samples: |run| of_peak(run, kernel_parts),
    },
    Family {
        name: "profiler_peak_pss_bytes",
        unit: "bytes",
        help: "PSS of the tree at the peak.",
        samples: |run| of_peak(run, |peak| vec![alone(peak.pss_bytes)]),
    },
    Family {
        name: "profiler_peak_error_bound_bytes",
        unit: "bytes",
        help: "By how much the true peak may exceed profiler_peak_rss_bytes.",
        samples: |run| of_peak(run, |peak| vec![alone(peak.error_bound_bytes)]),
    },
    Family {
        name: "profiler_peak_at_seconds",
        unit: "seconds",
        help: "When the peak was, after exec.",
        samples: |run| of_peak(run, |peak| vec![(Labels::new(), peak.at_seconds)]),
    },
    Family {
        name: "profiler_peak_threads",
        unit: "",
        help: "Live threads of the tree at the peak.",
        samples: |run| of_peak(run, |peak| vec![alone(peak.threads)]),
    },
    Family {
        name: "profiler_process_rss_bytes",
        unit: "bytes",
        help: "RSS of each process that was alive at the tree's peak.",
        samples: processes,
    },
    Family {
        name: "profiler_wall_seconds",
        unit: "seconds",
        help: "From exec to exit.",
        samples: |run| match run.exit_status {
            Some(_) => vec![(Labels::new(), run.wall_seconds)],
            None => Vec::new(),
        },
    },
    Family {
        name: "profiler_exit_status",
        unit: "",
        help: "Exit status of the command, 128 + signal number when a signal ended it.",
        samples: |run| {
            let status = run.exit_status.into_iter();
            status
                .map(|status| (Labels::new(), status.into()))
                .collect()
        },
    },
    Family {
        name: "profiler_events_dropped",
        unit: "",
        help: "Events that were lost because the ring was full.",
        samples: |run| vec![alone(run.events.dropped)],
    },
    Family {
        name: "profiler_completed",
        unit: "",
        help: "1 where the command did what it should; of others the figures are those reached up to then.",
        samples: |run| vec![alone((run.outcome == Outcome::Completed).into())],
    },
];

/// Every run's peak, and what a task costs.
pub fn text(results: &Results) -> String {
    let mut text = String::new();
    write_all(&mut text, results).expect("a String takes everything");
    text
}

fn write_all(out: &mut String, results: &Results) -> std::fmt::Result {
    for family in &FAMILIES {
        let samples: Vec<Sample> = results
            .runs
            .iter()
            .flat_map(|run| {
                let samples = (family.samples)(run).into_iter();
                samples.map(|(labels, value)| ([labels_of(run), labels].concat(), value))
            })
            .collect();
        write_family(out, family.name, family.unit, family.help, &samples)?;
    }
    let slopes: Vec<Sample> = results
        .slopes
        .iter()
        .map(|slope| {
            let labels = vec![
                ("program", slope.program.clone()),
                ("class", identifier(&slope.class)),
            ];
            (labels, slope.bytes_per_task)
        })
        .collect();
    let help = "Bytes that a task adds, by class.";
    write_family(out, "profiler_bytes_per_task", "", help, &slopes)?;
    writeln!(out, "# EOF")
}

fn write_family(
    out: &mut String,
    name: &str,
    unit: &str,
    help: &str,
    samples: &[Sample],
) -> std::fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    writeln!(out, "# TYPE {name} gauge")?;
    if !unit.is_empty() {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    writeln!(out, "# HELP {name} {help}")?;
    for (labels, value) in samples {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        writeln!(out, "{name}{{{}}} {value}", labels.join(","))?;
    }
    Ok(())
}

/// What tells the runs of one document apart.
fn labels_of(run: &Run) -> Labels {
    let mut labels = vec![("program", run.program.clone())];
    labels.extend(run.tasks.map(|tasks| ("tasks", tasks.to_string())));
    for (name, bytes) in [
        ("stack_depth_bytes", run.stack_depth_bytes),
        ("payload_bytes", run.payload_bytes),
    ] {
        if bytes > 0 {
            labels.push((name, bytes.to_string()));
        }
    }
    labels.push(("repeat", run.repeat.to_string()));
    labels
}

fn of_peak(run: &Run, samples: fn(&Peak) -> Vec<Sample>) -> Vec<Sample> {
    run.peak.as_ref().map(samples).unwrap_or_default()
}

/// A sample with no labels but those of the run. Bytes up to 2^53 are exact in a double.
fn alone(value: u64) -> Sample {
    (Labels::new(), value as f64)
}

fn classes(peak: &Peak) -> Vec<Sample> {
    let of = |class: Class| {
        let labels = vec![("class", class.name().to_owned())];
        (labels, peak.classes.get(class) as f64)
    };
    Class::ALL.map(of).into()
}

fn leaves(peak: &Peak) -> Vec<Sample> {
    let leaves = peak.leaves.iter();
    leaves
        .map(|leaf| {
            let labels = vec![
                ("class", leaf.class.name().to_owned()),
                ("leaf", identifier(&leaf.leaf)),
            ];
            (labels, leaf.bytes as f64)
        })
        .collect()
}

fn kernel_parts(peak: &Peak) -> Vec<Sample> {
    let parts = peak.kernel.parts().into_iter();
    parts
        .filter_map(|(name, bytes)| {
            let labels = vec![("part", name.replace(' ', "_"))];
            Some((labels, bytes? as f64))
        })
        .collect()
}

fn processes(run: &Run) -> Vec<Sample> {
    let alive = run
        .processes
        .iter()
        .filter(|process| process.rss_bytes_at_peak > 0);
    alive
        .map(|process| {
            let labels = vec![
                ("tgid", process.tgid.to_string()),
                ("executable", process.executable.clone()),
            ];
            (labels, process.rss_bytes_at_peak as f64)
        })
        .collect()
}

/// The name that a value has in the JSON.
fn identifier(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
