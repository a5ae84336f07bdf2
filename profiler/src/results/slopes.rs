//! What a task costs: base and bytes per task of each program, by class, from its runs at several N.

use serde::{Deserialize, Serialize};

use super::summary::{Cell, cells, kernel_bytes, of_least_load, programs, total_bytes};
use super::theil_sen::{self, Fit, median};
use super::{Peak, Results};
use crate::classify::Class;

/// What is summed up in one figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// The class of that name, as the three below.
    Stacks,
    /// The class of that name.
    Heap,
    /// The class of that name.
    Runtime,
    /// The class of that name.
    Unclassified,
    /// The four classes together.
    Rss,
    /// Kernel memory, outside RSS: the parts that were measured.
    Kernel,
    /// RSS and kernel memory.
    Total,
}

/// The line of one program and class: `base_bytes + bytes_per_task * N`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slope {
    /// Name of the program's folder.
    pub program: String,
    /// What grows.
    pub class: Quantity,
    /// Bytes with no task. May be below 0 where the smallest N is a large one.
    pub base_bytes: f64,
    /// The least and the greatest base that the runs at the smallest N give; `None` where nothing is known
    /// of its spread.
    pub base_range: Option<[f64; 2]>,
    /// Bytes that a task adds.
    pub bytes_per_task: f64,
    /// 95 % interval of `bytes_per_task`; `None` where the runs are too few for one.
    pub ci95: Option<[f64; 2]>,
    /// Completed runs that the line was fitted to.
    pub points: usize,
    /// The N at which the line is furthest off; `None` where it goes through two N only.
    pub largest_residual: Option<Residual>,
}

/// By how much the median run at one N departs from the line: tables that double, for example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    /// N.
    pub tasks: u64,
    /// Measured less fitted.
    pub bytes: f64,
    /// The same in percent of what was measured.
    pub percent: f64,
}

impl Quantity {
    /// All, in the order of tables.
    pub const ALL: [Quantity; 7] = [
        Quantity::Stacks,
        Quantity::Heap,
        Quantity::Runtime,
        Quantity::Unclassified,
        Quantity::Rss,
        Quantity::Kernel,
        Quantity::Total,
    ];

    /// Its bytes at a peak; `None` where they were not measured.
    pub fn of(self, peak: &Peak) -> Option<u64> {
        let class = |class| Some(peak.classes.get(class));
        match self {
            Quantity::Stacks => class(Class::Stacks),
            Quantity::Heap => class(Class::Heap),
            Quantity::Runtime => class(Class::Runtime),
            Quantity::Unclassified => class(Class::Unclassified),
            Quantity::Rss => Some(peak.rss_bytes),
            Quantity::Kernel => kernel_bytes(peak),
            Quantity::Total => kernel_bytes(peak).map(|_| total_bytes(peak)),
        }
    }
}

/// The slopes of every program that completed at two N or more, in the order of running.
pub fn slopes(results: &Results) -> Vec<Slope> {
    slopes_of(&of_least_load(&cells(results)))
}

/// As [`slopes`], from cells.
pub fn slopes_of(cells: &[Cell]) -> Vec<Slope> {
    let of_program = |program: &&str| {
        let own: Vec<&Cell> = cells
            .iter()
            .filter(|cell| cell.program() == *program)
            .collect();
        Quantity::ALL.map(|class| slope(program, &own, class))
    };
    programs(cells)
        .iter()
        .flat_map(of_program)
        .flatten()
        .collect()
}

/// The slope of one program and class among `slopes`.
pub fn find<'a>(slopes: &'a [Slope], program: &str, class: Quantity) -> Option<&'a Slope> {
    slopes
        .iter()
        .find(|slope| slope.program == program && slope.class == class)
}

/// RSS and kernel memory, or RSS where the kernel's was not measured.
pub fn whole<'a>(slopes: &'a [Slope], program: &str) -> Option<&'a Slope> {
    find(slopes, program, Quantity::Total).or_else(|| find(slopes, program, Quantity::Rss))
}

/// `None` also where some runs lack the figure: a line through different things would be none.
fn slope(program: &str, own: &[&Cell], class: Quantity) -> Option<Slope> {
    let runs: Option<Vec<(u64, f64)>> = own
        .iter()
        .flat_map(|cell| cell.peaks().map(|peak| (cell.tasks, peak)))
        .map(|(tasks, peak)| Some((tasks, class.of(peak)? as f64)))
        .collect();
    let runs = runs?;
    let fit = theil_sen::fit(&runs)?;
    Some(Slope {
        program: program.to_owned(),
        class,
        base_bytes: fit.base,
        base_range: fit.base_range,
        bytes_per_task: fit.slope,
        ci95: fit.slope_interval,
        points: runs.len(),
        largest_residual: largest_residual(&runs, &fit),
    })
}

fn largest_residual(runs: &[(u64, f64)], fit: &Fit) -> Option<Residual> {
    let mut runs = runs.to_vec();
    runs.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    let residual = |runs: &[(u64, f64)]| {
        let tasks = runs.first()?.0;
        let bytes: Vec<f64> = runs.iter().map(|(_, bytes)| *bytes).collect();
        let measured = median(&bytes).filter(|bytes| *bytes > 0.0)?;
        let bytes = measured - (fit.base + fit.slope * tasks as f64);
        Some(Residual {
            tasks,
            bytes,
            percent: bytes / measured * 100.0,
        })
    };
    let counts = runs.chunk_by(|one, other| one.0 == other.0);
    if counts.clone().count() < 3 {
        return None;
    }
    counts
        .filter_map(residual)
        .max_by(|one, other| one.percent.abs().total_cmp(&other.percent.abs()))
}
