//! Results as tables and charts want them: repeats of the same program at the same N in one
//! [`Cell`], the middle one speaking for all, and the cost of one task.

use super::{Outcome, Peak, Results, Run};
use crate::units::human;

/// N from which memory says something about a task rather than about the runtime's base: below, the noise of
/// a few pages is larger than what the tasks take.
pub const FEWEST_TASKS: u64 = 1000;

/// What each task held while it waited, in bytes: see [`Run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// How far down its stack it had called.
    pub stack_depth_bytes: u64,
    /// An array.
    pub payload_bytes: u64,
}

impl Load {
    fn of(run: &Run) -> Load {
        Load {
            stack_depth_bytes: run.stack_depth_bytes,
            payload_bytes: run.payload_bytes,
        }
    }

    /// Whether the tasks of the run held this much.
    pub fn is_of(self, run: &Run) -> bool {
        self == Load::of(run)
    }
}

/// All repeats of one program at one N with the same load.
#[derive(Debug, Clone)]
pub struct Cell<'a> {
    /// Number of tasks asked for.
    pub tasks: u64,
    /// What each of them held.
    pub load: Load,
    /// Completed runs with a peak, by rising total. May be empty.
    completed: Vec<(&'a Run, &'a Peak)>,
    /// The others.
    failed: Vec<&'a Run>,
}

/// Bytes of memory per task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerTask {
    /// Resident bytes.
    pub rss: f64,
    /// Resident and kernel bytes.
    pub total: f64,
    /// How it was worked out.
    pub method: PerTaskMethod,
}

/// How bytes per task were worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PerTaskMethod {
    /// Growth since the program's smallest N, divided by the tasks added: the runtime's base is out.
    GrowthSince(u64),
    /// The whole divided by N: an upper limit, the base is in it.
    WholeDividedByN,
}

/// RSS and kernel memory in bytes. Saturates: charts must survive absurd documents.
pub fn total_bytes(peak: &Peak) -> u64 {
    peak.rss_bytes.saturating_add(peak.kernel.total())
}

/// Kernel memory in bytes, `None` when no part of it was measured.
pub fn kernel_bytes(peak: &Peak) -> Option<u64> {
    peak.kernel.measured()
}

impl<'a> Cell<'a> {
    /// Any of the runs: for what they share, such as label, colour and version.
    pub fn run(&self) -> &'a Run {
        self.median()
            .map(|(run, _)| run)
            .or_else(|| self.failed.first().copied())
            .expect("a cell has at least one run")
    }

    /// The completed run in the middle by total; of an even number the lower one, so that what is
    /// shown was measured in one run and its classes sum.
    pub fn median(&self) -> Option<(&'a Run, &'a Peak)> {
        self.completed
            .get(self.completed.len().saturating_sub(1) / 2)
            .copied()
    }

    /// Least and greatest total in bytes over the completed repeats; `None` when there is but one.
    pub fn spread(&self) -> Option<(u64, u64)> {
        match self.completed.as_slice() {
            [(_, least), .., (_, greatest)] => Some((total_bytes(least), total_bytes(greatest))),
            _ => None,
        }
    }

    /// The peaks of all completed runs, by rising total.
    pub fn peaks(&self) -> impl Iterator<Item = &'a Peak> {
        self.completed.iter().map(|(_, peak)| *peak)
    }

    /// All completed runs with a peak.
    pub fn completed_runs(&self) -> impl Iterator<Item = &'a Run> {
        self.completed.iter().map(|(run, _)| *run)
    }

    /// Least and greatest RSS in bytes over the completed repeats; `None` when there is but one.
    pub fn rss_spread(&self) -> Option<(u64, u64)> {
        let rss = || self.peaks().map(|peak| peak.rss_bytes);
        (self.completed.len() > 1).then_some((rss().min()?, rss().max()?))
    }

    /// The first run that did not complete.
    pub fn failure(&self) -> Option<&'a Run> {
        self.failed.first().copied()
    }

    /// Runs that did not complete.
    pub fn failures(&self) -> usize {
        self.failed.len()
    }

    /// All runs.
    pub fn repeats(&self) -> usize {
        self.completed.len() + self.failed.len()
    }

    /// Name for people, with what each task held: `Go goroutines, 8.0 KiB deep`.
    pub fn label(&self) -> String {
        [self.run().label.clone(), self.load_label()].concat()
    }

    /// What each task held, `, 8.0 KiB deep`; empty when that is nothing.
    pub fn load_label(&self) -> String {
        let mut label = String::new();
        let Load {
            stack_depth_bytes,
            payload_bytes,
        } = self.load;
        for (bytes, what) in [(stack_depth_bytes, "deep"), (payload_bytes, "held")] {
            if bytes > 0 {
                label += &format!(", {} {what}", human(bytes));
            }
        }
        label
    }

    /// Program of the cell.
    pub fn program(&self) -> &'a str {
        &self.run().program
    }
}

/// The programs of `cells`, in the order of first appearance.
pub fn programs<'a>(cells: &[Cell<'a>]) -> Vec<&'a str> {
    let mut programs: Vec<&str> = Vec::new();
    for cell in cells {
        if !programs.contains(&cell.program()) {
            programs.push(cell.program());
        }
    }
    programs
}

/// Runs of benchmark programs grouped by program and N, in the order of first appearance.
pub fn cells(results: &Results) -> Vec<Cell<'_>> {
    let mut cells: Vec<Cell> = Vec::new();
    for run in &results.runs {
        let Some(tasks) = run.tasks else { continue };
        let load = Load::of(run);
        let index = cells.iter().position(|cell| {
            cell.tasks == tasks && cell.load == load && cell.program() == run.program
        });
        let cell = match index {
            Some(index) => &mut cells[index],
            None => {
                cells.push(Cell {
                    tasks,
                    load,
                    completed: Vec::new(),
                    failed: Vec::new(),
                });
                cells.last_mut().expect("just pushed")
            }
        };
        match (&run.peak, run.outcome) {
            (Some(peak), Outcome::Completed) => cell.completed.push((run, peak)),
            _ => cell.failed.push(run),
        }
    }
    for cell in &mut cells {
        cell.completed.sort_by_key(|(_, peak)| total_bytes(peak));
    }
    cells
}

/// The cells in which tasks held least: as a rule nothing, and all cells.
pub fn of_least_load<'a>(cells: &[Cell<'a>]) -> Vec<Cell<'a>> {
    let least = cells.iter().map(|cell| cell.load).min();
    let cells = cells.iter().filter(|cell| Some(cell.load) == least);
    cells.cloned().collect()
}

/// Every N that was asked for, rising.
pub fn task_counts(results: &Results) -> Vec<u64> {
    let mut counts: Vec<u64> = results.runs.iter().filter_map(|run| run.tasks).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// Bytes per task of `cell`, with the other cells of the same program to take the base from.
/// `None` where the figure would mean nothing: no completed run, or too few tasks.
pub fn per_task(cell: &Cell, cells: &[Cell]) -> Option<PerTask> {
    let (_, peak) = cell.median()?;
    let (rss, total) = (peak.rss_bytes as f64, total_bytes(peak) as f64);
    let base = cells
        .iter()
        .filter(|other| other.program() == cell.program() && other.load == cell.load)
        .filter(|other| other.tasks <= cell.tasks / 10)
        .filter_map(|other| Some((other.tasks, other.median()?.1)))
        .min_by_key(|(tasks, _)| *tasks);
    match base {
        Some((tasks, base)) => {
            let added = (cell.tasks - tasks) as f64;
            Some(PerTask {
                rss: (rss - base.rss_bytes as f64) / added,
                total: (total - total_bytes(base) as f64) / added,
                method: PerTaskMethod::GrowthSince(tasks),
            })
        }
        None if cell.tasks >= FEWEST_TASKS => {
            let tasks = cell.tasks as f64;
            Some(PerTask {
                rss: rss / tasks,
                total: total / tasks,
                method: PerTaskMethod::WholeDividedByN,
            })
        }
        None => None,
    }
}
