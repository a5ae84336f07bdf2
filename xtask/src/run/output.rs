//! What is made from finished results: the table on stdout, the charts, `REPORT.md` and `report.html`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiler::{
    charts,
    report::{Chart, Colour, html_report, post, results_table},
    results::{
        Results,
        store::{self, StoreError},
    },
};

/// Prints the table, writes the files into `folder`, and prints their names below that of `results_file`.
pub fn write(results: &Results, folder: &Path, results_file: &Path) -> Result<()> {
    print!("{}", results_table(results, Colour::for_stdout()));
    let figures = charts::figures(results);
    let drawn = charts::save_all(&figures, folder).context("cannot draw the charts")?;
    let charts: Vec<Chart> = figures
        .into_iter()
        .map(|(name, figure)| Chart {
            name,
            finding: figure.title,
        })
        .collect();
    let post = text(folder, "REPORT.md", &post(results, &charts))?;
    let page = text(folder, "report.html", &html_report(results))?;
    println!();
    let of_a_program = [charts::TIMELINES, charts::LEAVES].map(|name| folder.join(name));
    let inside = |path: &Path, folder: &PathBuf| path.starts_with(folder);
    let single = drawn
        .iter()
        .filter(|path| !of_a_program.iter().any(|folder| inside(path, folder)));
    for path in [results_file, &post, &page]
        .into_iter()
        .chain(single.map(PathBuf::as_path))
    {
        println!("{}", path.display());
    }
    for folder in &of_a_program {
        let files = drawn.iter().filter(|path| inside(path, folder)).count();
        if files > 0 {
            println!("{}/ ({files} files)", folder.display());
        }
    }
    Ok(())
}

fn text(folder: &Path, name: &str, text: &str) -> Result<PathBuf, StoreError> {
    let path = folder.join(name);
    store::write_atomically(&path, text.as_bytes(), None)?;
    Ok(path)
}
