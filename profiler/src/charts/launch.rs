//! `launch-<N>`: what it takes to start a task, a pair of bars a program: time, and CPU time.

use plotters::style::RGBColor;

use crate::results::Results;
use crate::results::launch::{Launch, launch};
use crate::results::summary::Cell;
use crate::units::three_digits;

use super::bars::{Bar, Group, Groups};
use super::drawing::{Block, Figure, Fill, Space};
use super::frame::{self, Heading, counted};
use super::style;
use super::tasks::failures;

/// The figure for `count` tasks; `None` where no program says when its tasks are alive. `place` gives each
/// program's place in the results, for its colour.
pub fn figure(
    results: &Results,
    cells: &[Cell],
    count: u64,
    place: impl Fn(&str) -> usize,
) -> Option<Figure> {
    let shown: Vec<&Cell> = cells.iter().filter(|cell| cell.tasks == count).collect();
    let mut known: Vec<(&Cell, Launch, f64)> = shown
        .iter()
        .filter_map(|cell| {
            let launch = launch(cell)?;
            Some((*cell, launch, launch.seconds?))
        })
        .collect();
    if known.is_empty() {
        return None;
    }
    known.sort_by(|one, other| one.2.total_cmp(&other.2));
    let groups = known
        .iter()
        .map(|(cell, launch, _)| {
            let run = cell.run();
            let colour = style::program_colour(run.colour.as_deref(), place(&run.program));
            group(&run.label, launch, colour)
        })
        .collect();
    let heading = Heading {
        finding: finding(&known, count),
        failures: failures(&shown),
        explanations: vec![
            "From the program's word that it begins to that of all tasks being alive, divided by N: time that passed, \
             and in the lighter colour CPU time, which exceeds it where several CPUs work; page faults and context switches \
             beside. The start of the runtime is not in it; what the profiler's probes cost is."
                .to_owned(),
        ],
    };
    let micros = |value: f64| {
        let unit = if value == 0.0 { " µs" } else { "" };
        format!("{}{unit}", tick(value))
    };
    let body: Vec<Box<dyn Block>> = vec![
        Box::new(Space(24)),
        Box::new(Groups::new(groups, 0.1, micros)),
        Box::new(Space(14)),
    ];
    let facts = frame::circumstances(results, &shown);
    Some(frame::figure(&heading, body, &facts))
}

/// As many decimals as it has, up to two.
fn tick(value: f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    rounded.to_string()
}

fn group(label: &str, launch: &Launch, colour: RGBColor) -> Group {
    let bar = |mark: &str, colour, seconds: Option<f64>, beside: String| {
        let micros = seconds.map(|seconds| seconds * 1e6);
        Bar {
            mark: mark.to_owned(),
            segments: vec![(Fill::Plain(colour), micros.unwrap_or(0.0))],
            value: micros
                .map(|micros| format!("{} µs", three_digits(micros)))
                .unwrap_or_default(),
            beside,
            missing: micros.is_none().then(|| "not counted".to_owned()),
        }
    };
    let alive = launch
        .alive_after
        .map(|seconds| format!("all alive {seconds:.2} s after exec"));
    let faults = launch
        .faults
        .map(|faults| format!("{} page faults", three_digits(faults)));
    let switches = launch
        .switches
        .map(|switches| format!("{} context switches", three_digits(switches)));
    let counted: Vec<String> = faults.into_iter().chain(switches).collect();
    Group {
        name: label.to_owned(),
        below: String::new(),
        bars: vec![
            bar("time", colour, launch.seconds, alive.unwrap_or_default()),
            bar(
                "CPU",
                lighter(colour),
                launch.cpu_seconds,
                counted.join(", "),
            ),
        ],
    }
}

/// Half way to white.
fn lighter(RGBColor(red, green, blue): RGBColor) -> RGBColor {
    let half = |part: u8| 128 + part / 2;
    RGBColor(half(red), half(green), half(blue))
}

fn finding(known: &[(&Cell, Launch, f64)], count: u64) -> String {
    let tasks = counted(count, "task");
    let said = |(cell, _, seconds): &(&Cell, Launch, f64)| {
        let micros = three_digits(seconds * 1e6);
        format!("{micros} µs ({})", cell.run().label)
    };
    match known {
        [] => tasks,
        [one] => format!("{tasks}: starting one takes {}", said(one)),
        [least, .., most] => format!(
            "{tasks}: starting one takes {} to {}",
            said(least),
            said(most)
        ),
    }
}
