//! Memory over time as CSV (RFC 4180, lines ended by a line feed): bytes and seconds, a line a point of each
//! run's timeline. What was not measured is an empty field, never 0.

use crate::results::{Results, Run, TimelinePoint};

const HEADINGS: &str = "program,tasks,repeat,seconds,rss_bytes,stacks_bytes,heap_bytes,runtime_bytes,\
                        unclassified_bytes,kernel_bytes,spread_bytes";

/// The timelines of all runs, in the order of running.
pub fn timelines(results: &Results) -> String {
    let mut text = format!("{HEADINGS}\n");
    for run in &results.runs {
        for point in &run.timeline {
            text += &line(run, point);
            text.push('\n');
        }
    }
    text
}

fn line(run: &Run, point: &TimelinePoint) -> String {
    let known = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let class = |of: fn(&crate::results::Classes) -> u64| known(point.classes.as_ref().map(of));
    [
        quoted(&run.program),
        known(run.tasks),
        run.repeat.to_string(),
        point.seconds.to_string(),
        point.rss_bytes.to_string(),
        class(|classes| classes.stacks),
        class(|classes| classes.heap),
        class(|classes| classes.runtime),
        class(|classes| classes.unclassified),
        known(point.kernel_bytes),
        point.spread_bytes.to_string(),
    ]
    .join(",")
}

/// A field that holds a separator stands in quotation marks, and its own are doubled.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}
