//! What it takes to start a task: a row for each program and N.

use crate::results::Scope;
use crate::results::launch::{Launch, launch};
use crate::results::summary::Cell;
use crate::units::{thousands, three_digits};

use super::columns::{Noted, Table, names_and_figures};

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

const EXPLANATION: &str = "\
all alive: seconds from exec; launch, CPU, faults and switches: µs, µs of CPU, page faults and context
switches a task, from launch=N to alive=N; exit CPU: µs a task; plateau CPU: percent of one CPU while all wait";

const INHERITED: &str = "counted by counters that each thread inherits, which lengthens its launch by some µs: \
                         no cgroup could be counted";

/// The table; `None` where no program said when its tasks were alive.
pub fn launch_table(cells: &[Cell]) -> Option<Noted<9>> {
    let known: Vec<(&Cell, Launch)> = cells
        .iter()
        .filter_map(|cell| Some((cell, launch(cell)?)))
        .filter(|(_, launch)| launch.seconds.is_some())
        .collect();
    let rows = known
        .iter()
        .map(|(cell, launch)| row(&cell.run().label, launch));
    let inherited = |(cell, _): &(&Cell, Launch)| {
        let mut runs = cell.completed_runs();
        runs.any(|run| run.counters.scope == Some(Scope::Inherited))
    };
    let mut notes = vec![EXPLANATION.to_owned()];
    if known.iter().any(inherited) {
        notes.push(INHERITED.to_owned());
    }
    (!known.is_empty()).then(|| Noted {
        table: Table {
            headings: HEADINGS,
            flush: names_and_figures(),
            rows: rows.collect(),
        },
        failed: vec![false; known.len()],
        notes,
    })
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
