//! One program's line: its points, where it failed, and what a task adds.

use plotters::style::RGBColor;

use crate::results::summary::{Cell, PerTaskMethod, per_task, total_bytes};
use crate::results::{Outcome, Run};
use crate::units::thousands;

use super::super::frame;
use super::super::style::{self, NAME};

/// Widest that a name may be, in pixels.
const NAME_ROOM: i32 = 340;

/// Kernel memory gets a line of its own where it makes the total this many times RSS: below, the two
/// lines could not be told apart.
const KERNEL_MATTERS: f64 = 1.5;

/// One program: bytes over tasks.
pub struct Line<'a> {
    /// A run of the program, for its name.
    pub run: &'a Run,
    /// Its name, cut where it would leave no room for the plot.
    pub name: String,
    /// Its colour.
    pub colour: RGBColor,
    /// (tasks, RSS, RSS and kernel), tasks rising.
    pub points: Vec<(f64, f64, f64)>,
    /// Where it failed.
    pub failure: Option<Failure>,
    /// Bytes of RSS that a task adds, where the program ran at more than one N.
    pub slope: Option<f64>,
}

/// The state in which a program failed.
pub struct Failure {
    /// Tasks alive then, or asked for where that is not known.
    pub tasks: f64,
    /// Bytes.
    pub rss: f64,
    /// RSS and kernel, where both were measured.
    pub total: Option<f64>,
}

impl<'a> Line<'a> {
    /// The line of `program`, the `place`-th in the figure.
    pub fn new(place: usize, program: &str, cells: &[Cell<'a>]) -> Self {
        let mut own: Vec<&Cell> = cells
            .iter()
            .filter(|cell| cell.program() == program)
            .collect();
        own.sort_by_key(|cell| cell.tasks);
        let run = own[0].run();
        let points: Vec<_> = own
            .iter()
            .filter_map(|cell| {
                let (_, peak) = cell.median()?;
                Some((
                    cell.tasks.max(1) as f64,
                    peak.rss_bytes.max(1) as f64,
                    total_bytes(peak).max(1) as f64,
                ))
            })
            .collect();
        let failed = own
            .iter()
            .find(|cell| cell.median().is_none())
            .and_then(|cell| cell.failure());
        let slope = own.iter().rev().find_map(|cell| {
            let per_task = per_task(cell, cells)?;
            match per_task.method {
                PerTaskMethod::GrowthSince(_) => Some(per_task.rss),
                PerTaskMethod::WholeDividedByN => None,
            }
        });
        let failure = failed
            .filter(|run| run.outcome != Outcome::Unavailable)
            .and_then(|run| point_of_failure(run, &points));
        Line {
            run,
            name: NAME.shorten(&run.label, NAME_ROOM),
            colour: style::program_colour(run.colour.as_deref(), place),
            points,
            failure,
            slope,
        }
    }

    /// Where the label belongs.
    pub fn end(&self) -> Option<(f64, f64)> {
        let failure = self
            .failure
            .as_ref()
            .map(|failure| (failure.tasks, failure.rss));
        failure.or_else(|| self.points.last().map(|(tasks, rss, _)| (*tasks, *rss)))
    }

    /// Whether the total deserves a line of its own.
    pub fn kernel_matters(&self) -> bool {
        self.points
            .last()
            .is_some_and(|(_, rss, total)| total / rss >= KERNEL_MATTERS)
    }

    /// What stands beside the name.
    pub fn detail(&self) -> String {
        let slope = self
            .slope
            .map(|slope| format!("{} B/task", frame::signed_thousands(slope)));
        let failure = self
            .failure
            .as_ref()
            .map(|failure| format!("failed at {}", thousands(failure.tasks as u64)));
        [slope, failure]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// The number of tasks that were alive when `run` failed, and its RSS then. Without them: the number
/// asked for, at the height of the program's last point.
fn point_of_failure(run: &Run, points: &[(f64, f64, f64)]) -> Option<Failure> {
    let asked = run.tasks?.max(1);
    let alive = run
        .live_tasks_peak
        .filter(|alive| (1..asked).contains(alive));
    match (alive, &run.peak) {
        (Some(alive), Some(peak)) => Some(Failure {
            tasks: alive as f64,
            rss: peak.rss_bytes.max(1) as f64,
            total: Some(total_bytes(peak).max(1) as f64),
        }),
        _ => points.last().map(|(_, rss, _)| Failure {
            tasks: asked as f64,
            rss: *rss,
            total: None,
        }),
    }
}
