//! Figures from finished [`Results`]: one file a figure, each drawn as SVG and, from it, as PNG.

mod accuracy;
mod bars;
mod base_slope;
mod composition;
mod depth;
mod drawing;
mod frame;
mod hatching;
mod label_column;
mod launch;
mod leaves;
mod log_axis;
mod scaling;
pub(crate) mod style;
mod tasks;
mod text;
mod timeline;
mod user_kernel;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use plotters::style::RGBColor;
use thiserror::Error;

use crate::classify::Class;
use crate::results::accuracy::Accuracy;
use crate::results::slopes::slopes_of;
use crate::results::store::{StoreError, write_atomically};
use crate::results::summary::{Cell, FEWEST_TASKS, cells, of_least_load, programs, task_counts};
use crate::results::{Outcome, Peak, Results, Run};

pub use drawing::Figure;

/// Why a figure could not be drawn.
#[derive(Debug, Error)]
pub enum ChartError {
    /// The file could not be written; the figures before it were.
    #[error("a chart could not be saved")]
    Save(#[from] StoreError),
    /// The folder for it could not be made.
    #[error("a folder for charts could not be made")]
    Folder(#[source] io::Error),
    /// The renderer refused the figure.
    #[error("a chart could not be rendered: {0}")]
    Render(String),
}

/// Folder of the timelines, beside the other figures.
pub const TIMELINES: &str = "timelines";
/// Folder of the figures of a single program by leaf.
pub const LEAVES: &str = "leaves";

/// Every figure that `results` have the figures for, with the file name it goes by, without extension.
///
/// `tasks-<N>` for each N; `launch-<N>` for each that is not small, where programs say when their tasks are
/// alive; `scaling`, `base-slope` and `composition` when there is more than one N; `user-kernel` where a program
/// has a thread a task; `load-<N>` where tasks held different loads (the others are of the least); and
/// `timelines/<program>-<N>` and
/// `leaves/<program>-<N>` of the first run of each program at the largest N that it completed. Runs that are not of a benchmark program
/// (no N) are not drawn; [`timeline_of`] draws any.
pub fn figures(results: &Results) -> Vec<(String, Figure)> {
    let all = cells(results);
    let cells = of_least_load(&all);
    let counts = task_counts(results);
    let mut figures: Vec<(String, Figure)> = counts
        .iter()
        .map(|count| {
            (
                format!("tasks-{count}"),
                tasks::figure(results, &cells, *count),
            )
        })
        .collect();
    let place = |name: &str| programs(&cells).iter().position(|program| *program == name);
    for count in counts.iter().filter(|count| **count >= FEWEST_TASKS) {
        let place = |name: &str| place(name).unwrap_or(0);
        let figure = launch::figure(results, &cells, *count, place);
        figures.extend(figure.map(|figure| (format!("launch-{count}"), figure)));
    }
    figures.extend(counts.iter().filter_map(|count| {
        let figure = depth::figure(results, &all, *count)?;
        Some((format!("load-{count}"), figure))
    }));
    let slopes = slopes_of(&cells);
    let mut add = |name: &str, figure: Option<Figure>| {
        figures.extend(figure.map(|figure| (name.to_owned(), figure)));
    };
    if counts.len() > 1 {
        add("scaling", Some(scaling::figure(results, &cells, &slopes)));
        add("base-slope", base_slope::figure(results, &cells, &slopes));
        add("composition", Some(composition::figure(results, &cells)));
    }
    add("user-kernel", user_kernel::figure(results, &cells, &slopes));
    let mut longest: BTreeMap<&str, &Run> = BTreeMap::new();
    let least = cells.first().map(|cell| cell.load);
    let of_least = |run: &&Run| least.is_none_or(|load| load.is_of(run));
    for run in results.runs.iter().filter(of_least) {
        let known = longest.get(run.program.as_str());
        if run.outcome == Outcome::Completed && known.is_none_or(|known| known.tasks < run.tasks) {
            longest.insert(&run.program, run);
        }
    }
    for (program, run) in longest {
        if let (Some(tasks), Some(figure)) = (run.tasks, timeline_of(results, run)) {
            figures.push((format!("{TIMELINES}/{program}-{tasks}"), figure));
        }
        if let (Some(tasks), Some(figure)) = (run.tasks, leaves::figure(results, run, &cells)) {
            figures.push((format!("{LEAVES}/{program}-{tasks}"), figure));
        }
    }
    figures
}

/// The one figure that says most about `results`: a run that is alone, or the first that
/// completed of several without N, over time; else growth, where there is
/// more than one N; else the bars of all programs. `None` where there is nothing to draw.
pub fn headline(results: &Results) -> Option<Figure> {
    if let [run] = results.runs.as_slice() {
        return timeline_of(results, run);
    }
    let cells = of_least_load(&cells(results));
    match task_counts(results).as_slice() {
        [] => results
            .runs
            .iter()
            .find(|run| run.outcome == Outcome::Completed)
            .and_then(|run| timeline_of(results, run)),
        [count] => Some(tasks::figure(results, &cells, *count)),
        _ => Some(scaling::figure(results, &cells, &slopes_of(&cells))),
    }
}

/// One run over time; `None` when it was too short to be looked at twice.
pub fn timeline_of(results: &Results, run: &Run) -> Option<Figure> {
    timeline::figure(results, run)
}

/// What [`timeline_of`] finds: the title of that figure.
pub fn finding_of_run(run: &Run, peak: &Peak) -> String {
    timeline::finding(run, peak)
}

/// What the figure `tasks-<count>` finds, of the cells at that N from least to most memory.
pub fn finding_of_tasks(cells: &[&Cell], count: u64) -> String {
    tasks::finding(cells, count)
}

/// The colour of a class in every figure, `#rrggbb`.
pub fn css_colour(class: Class) -> String {
    let RGBColor(red, green, blue) = style::class_colour(class);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Draws every figure of `results` into `directory`, which must exist, as `.svg` and `.png`. Returns
/// the files written. Each file is replaced whole or not at all.
pub fn draw_all(results: &Results, directory: &Path) -> Result<Vec<PathBuf>, ChartError> {
    save_all(&figures(results), directory)
}

/// As [`draw_all`], of figures that there are already.
pub fn save_all(
    figures: &[(String, Figure)],
    directory: &Path,
) -> Result<Vec<PathBuf>, ChartError> {
    let mut written = Vec::new();
    for folder in [TIMELINES, LEAVES] {
        if figures.iter().any(|(name, _)| name.starts_with(folder)) {
            make_folder(&directory.join(folder)).map_err(ChartError::Folder)?;
        }
    }
    for (name, figure) in figures {
        written.extend(save(figure, directory, name)?);
    }
    Ok(written)
}

/// Draws the comparisons with the runtimes' own books into `directory`, as [`draw_all`] does.
pub fn draw_accuracy(accuracy: &Accuracy, directory: &Path) -> Result<Vec<PathBuf>, ChartError> {
    save(&accuracy::figure(accuracy), directory, "accuracy")
}

fn save(figure: &Figure, directory: &Path, name: &str) -> Result<Vec<PathBuf>, ChartError> {
    let forms = [
        ("svg", figure.svg.clone().into_bytes()),
        ("png", figure.png()?),
    ];
    let mut written = Vec::new();
    for (extension, bytes) in forms {
        let path = directory.join(format!("{name}.{extension}"));
        write_atomically(&path, &bytes, None)?;
        written.push(path);
    }
    Ok(written)
}

/// Its parent must be there.
fn make_folder(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
