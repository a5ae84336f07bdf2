//! What it takes to start a task: a row for each program and N.

use crate::results::Scope;
use crate::results::launch::{Launch, launch};
use crate::results::summary::Cell;
use crate::units::{thousands, three_digits};

use super::Colour;
use super::columns::{Flush, align};

const HEADINGS: [&str; 9] = [
    "program",
    "N",
    "all alive",
    "launch",
    "CPU",
    "faults",
    "switches",
    "exit CPU",
    "plateau CPU",
];

const FLUSH: [Flush; 9] = {
    let mut flush = [Flush::Right; 9];
    flush[0] = Flush::Left;
    flush
};

/// The table; empty where no program said when its tasks were alive.
pub fn launch_table(cells: &[Cell], colour: Colour) -> String {
    let known: Vec<(&Cell, Launch)> = cells
        .iter()
        .filter_map(|cell| Some((cell, launch(cell)?)))
        .filter(|(_, launch)| launch.seconds.is_some())
        .collect();
    if known.is_empty() {
        return String::new();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(
        known
            .iter()
            .map(|(cell, launch)| row(&cell.run().label, launch)),
    );
    let lines = align(&rows, FLUSH);
    let mut table = colour.bold(&lines[0]) + "\n" + &lines[1..].join("\n");
    table += "\n\nall alive: seconds from exec; launch, CPU, faults and switches: µs, µs of CPU, page faults and context\n";
    table += "switches a task, from launch=N to alive=N; exit CPU: µs a task; plateau CPU: percent of one CPU while all wait\n";
    let inherited = |(cell, _): &(&Cell, Launch)| {
        let mut runs = cell.completed_runs();
        runs.any(|run| run.counters.scope == Some(Scope::Inherited))
    };
    if known.iter().any(inherited) {
        table += "counted by counters that each thread inherits, which lengthens its launch by some µs: no cgroup could be counted\n";
    }
    table
}

fn row(label: &str, launch: &Launch) -> [String; 9] {
    let micros =
        |seconds: Option<f64>| seconds.map(|it| three_digits(it * 1e6)).unwrap_or_default();
    let number = |number: Option<f64>| number.map(three_digits).unwrap_or_default();
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    [
        label.to_owned(),
        thousands(launch.tasks),
        launch
            .alive_after
            .map(|seconds| format!("{seconds:.2}"))
            .unwrap_or_default(),
        micros(launch.seconds),
        micros(launch.cpu_seconds),
        number(launch.faults),
        number(launch.switches),
        micros(launch.exit_cpu_seconds),
        launch.plateau_cpus.map(percent).unwrap_or_default(),
    ]
}
