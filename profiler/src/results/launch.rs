//! What it takes to start a task: time, CPU, page faults and context switches.

use super::summary::{Cell, FEWEST_TASKS};
use super::theil_sen::median;
use super::{Counters, Phase, Run};

/// The cost of starting the tasks of one program at one N; each figure is the median over the completed
/// repeats, `None` where none of them has it. Those of a task are of the phase `launch` alone: the start of the
/// runtime is not in them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch {
    /// N.
    pub tasks: u64,
    /// From exec until all tasks are alive, in seconds.
    pub alive_after: Option<f64>,
    /// From `launch=N` to `alive=N`, in seconds a task.
    pub seconds: Option<f64>,
    /// CPU time in seconds a task.
    pub cpu_seconds: Option<f64>,
    /// Page faults a task, minor and major.
    pub faults: Option<f64>,
    /// Context switches a task.
    pub switches: Option<f64>,
    /// CPU time of the exit phase, in seconds a task.
    pub exit_cpu_seconds: Option<f64>,
    /// CPU time while all tasks wait, in seconds a second.
    pub plateau_cpus: Option<f64>,
}

/// The cost of starting the tasks of `cell`; `None` where no run completed.
pub fn launch(cell: &Cell) -> Option<Launch> {
    cell.median()?;
    let tasks = cell.tasks as f64;
    let of_phase = |name: &str, figure: &dyn Fn(&Phase) -> Option<f64>| {
        middle(cell, |run| {
            figure(run.phases.iter().find(|phase| phase.name == name)?)
        })
    };
    let enough = cell.tasks >= FEWEST_TASKS;
    let per_task = |name: &str, figure: &dyn Fn(&Phase) -> Option<f64>| {
        of_phase(name, figure)
            .filter(|_| enough)
            .map(|figure| figure / tasks)
    };
    let cpu = |phase: &Phase| Some(phase.counters?.task_clock_ns? as f64 / 1e9);
    Some(Launch {
        tasks: cell.tasks,
        alive_after: middle(cell, |run| run.launch_seconds),
        seconds: per_task("launch", &|phase| Some(seconds(phase))),
        cpu_seconds: per_task("launch", &cpu),
        faults: per_task("launch", &|phase| faults(&phase.counters?)),
        switches: per_task("launch", &|phase| {
            Some(phase.counters?.context_switches? as f64)
        }),
        exit_cpu_seconds: per_task("exit", &cpu),
        plateau_cpus: of_phase("plateau", &|phase| Some(cpu(phase)? / seconds(phase))),
    })
}

fn seconds(phase: &Phase) -> f64 {
    phase.to_seconds - phase.from_seconds
}

fn faults(counters: &Counters) -> Option<f64> {
    Some((counters.minor_faults? + counters.major_faults?) as f64)
}

/// The median of `figure` over the completed runs that have it.
fn middle(cell: &Cell, figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let mut figures: Vec<f64> = cell.completed_runs().filter_map(figure).collect();
    figures.sort_by(f64::total_cmp);
    median(&figures)
}
