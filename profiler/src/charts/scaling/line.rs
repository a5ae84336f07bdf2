//! One program's line: its points, where it failed, and what a task adds.

use plotters::style::RGBColor;

use crate::results::slopes::{Slope, whole};
use crate::results::summary::{Cell, total_bytes};
use crate::results::{Outcome, Run};
use crate::units::thousands;

use super::super::frame;
use super::super::style::{self, NAME};

/// Widest that a name may be, in pixels.
const NAME_ROOM: i32 = 340;

/// RSS gets a line of its own where the total is this many times it: below, the two lines could not be told
/// apart.
const KERNEL_MATTERS: f64 = 1.5;

/// One program: bytes over tasks.
pub struct Line<'a> {
    /// A run of the program, for its name.
    pub run: &'a Run,
    /// Its name, cut where it would leave no room for the plot.
    pub name: String,
    /// Its colour.
    pub colour: RGBColor,
    /// Tasks rising.
    pub points: Vec<Point>,
    /// Where it failed.
    pub failure: Option<Failure>,
    /// What a task adds, where the program ran at more than one N.
    pub slope: Option<&'a Slope>,
}

/// The median run at one N.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// N.
    pub tasks: f64,
    /// Bytes.
    pub rss: f64,
    /// RSS and kernel memory.
    pub total: f64,
    /// The least and the greatest total of repeats.
    pub spread: Option<(f64, f64)>,
}

/// The state in which a program failed.
pub struct Failure {
    /// Tasks alive then, or asked for where that is not known.
    pub tasks: f64,
    /// RSS in bytes, where it was looked at then.
    pub rss: Option<f64>,
    /// RSS and kernel memory.
    pub total: f64,
}

impl<'a> Line<'a> {
    /// The line of `program`, the `place`-th in the figure.
    pub fn new(place: usize, program: &str, cells: &[Cell<'a>], slopes: &'a [Slope]) -> Self {
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
                let visible = |bytes: u64| bytes.max(1) as f64;
                Some(Point {
                    tasks: visible(cell.tasks),
                    rss: visible(peak.rss_bytes),
                    total: visible(total_bytes(peak)),
                    spread: cell
                        .spread()
                        .map(|(least, greatest)| (visible(least), visible(greatest))),
                })
            })
            .collect();
        let failed = own
            .iter()
            .find(|cell| cell.median().is_none())
            .and_then(|cell| cell.failure());
        let failure = failed
            .filter(|run| run.outcome != Outcome::Unavailable)
            .and_then(|run| point_of_failure(run, &points));
        Line {
            run,
            name: NAME.shorten(&run.label, NAME_ROOM),
            colour: style::program_colour(run.colour.as_deref(), place),
            points,
            failure,
            slope: whole(slopes, program),
        }
    }

    /// Where the label belongs.
    pub fn end(&self) -> Option<(f64, f64)> {
        let failure = self
            .failure
            .as_ref()
            .map(|failure| (failure.tasks, failure.total));
        failure.or_else(|| self.points.last().map(|point| (point.tasks, point.total)))
    }

    /// Whether RSS deserves a line of its own beside the total.
    pub fn kernel_matters(&self) -> bool {
        self.points
            .last()
            .is_some_and(|point| point.total / point.rss >= KERNEL_MATTERS)
    }

    /// What stands beside the name.
    pub fn detail(&self) -> String {
        let slope = self
            .slope
            .map(|slope| format!("{} B/task", frame::signed_thousands(slope.bytes_per_task)));
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

/// The number of tasks that were alive when `run` failed, and its memory then. Without them: the number
/// asked for, at the height of the program's last point.
fn point_of_failure(run: &Run, points: &[Point]) -> Option<Failure> {
    let asked = run.tasks?.max(1);
    let alive = run
        .live_tasks_peak
        .filter(|alive| (1..asked).contains(alive));
    match (alive, &run.peak) {
        (Some(alive), Some(peak)) => Some(Failure {
            tasks: alive as f64,
            rss: Some(peak.rss_bytes.max(1) as f64),
            total: total_bytes(peak).max(1) as f64,
        }),
        _ => points.last().map(|point| Failure {
            tasks: asked as f64,
            rss: None,
            total: point.total,
        }),
    }
}
