//! Figures from finished [`Results`]: one file a figure, each drawn as SVG and, from it, as PNG.

mod drawing;
mod frame;
mod hatching;
mod label_column;
mod scaling;
mod style;
mod tasks;
mod text;

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::results::Results;
use crate::results::store::{StoreError, write_atomically};
use crate::results::summary::{cells, task_counts};

pub use drawing::Figure;

/// Why a figure could not be drawn.
#[derive(Debug, Error)]
pub enum ChartError {
    /// The file could not be written; the figures before it were.
    #[error("a chart could not be saved")]
    Save(#[from] StoreError),
    /// The renderer refused the figure.
    #[error("a chart could not be rendered: {0}")]
    Render(String),
}

/// Every figure that `results` have the figures for, with the file name it goes by, without extension.
///
/// `tasks-<N>` for each N, and `scaling` when there is more than one. Runs that are not of a benchmark
/// program (no N) are not drawn.
pub fn figures(results: &Results) -> Vec<(String, Figure)> {
    let cells = cells(results);
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
    if counts.len() > 1 {
        figures.push(("scaling".to_owned(), scaling::figure(results, &cells)));
    }
    figures
}

/// Draws every figure of `results` into `directory`, which must exist, as `.svg` and `.png`. Returns
/// the files written. Each file is replaced whole or not at all.
pub fn draw_all(results: &Results, directory: &Path) -> Result<Vec<PathBuf>, ChartError> {
    let mut written = Vec::new();
    for (name, figure) in figures(results) {
        for (extension, bytes) in [
            ("svg", figure.svg.clone().into_bytes()),
            ("png", figure.png()?),
        ] {
            let path = directory.join(format!("{name}.{extension}"));
            write_atomically(&path, &bytes, None)?;
            written.push(path);
        }
    }
    Ok(written)
}
