//! `profiler report`: what was measured once, shown again or in another form.

use std::path::PathBuf;

use clap::Args;
use profiler::{
    report::{Colour, results_report},
    results::{Results, merge::merge, store},
};

use super::{
    BAD_INPUT, Failure,
    output::{self, OutputArguments},
};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    output: OutputArguments,

    /// Files of results: what `profiler run -o FILE.json` or `cargo xtask run` wrote
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<PathBuf>,
}

pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let bad = |sentence| Failure::new(BAD_INPUT, sentence);
    let outputs = arguments.output.outputs_or_stdout().map_err(bad)?;
    let documents = arguments
        .results
        .iter()
        .map(|path| read(path))
        .collect::<Result<Vec<Results>, Failure>>()?;
    let own = |error: anyhow::Error| Failure::new(BAD_INPUT, error);
    if outputs.is_empty() {
        let text = pages(&arguments.results, &documents);
        return output::print(text.as_bytes()).map(|()| 0).map_err(own);
    }
    output::ensure_writable(&outputs).map_err(own)?;
    let merged = merge(documents)
        .map_err(|why| Failure::new(BAD_INPUT, format!("the files cannot be one result: {why}")))?;
    if let Some(results) = merged {
        output::write(&results, &outputs).map_err(own)?;
    }
    Ok(0)
}

/// The report of each document, below its name where there are several.
fn pages(paths: &[PathBuf], documents: &[Results]) -> String {
    let page = |results| results_report(results, Colour::for_stdout());
    if let [alone] = documents {
        return page(alone);
    }
    let pages = paths.iter().zip(documents);
    let pages: Vec<String> = pages
        .map(|(path, results)| format!("{}\n\n{}", path.display(), page(results)))
        .collect();
    pages.join("\n")
}

/// A document; of a file that is none, or holds no run, a sentence.
pub fn read(path: &std::path::Path) -> Result<Results, Failure> {
    let results =
        store::read(path).map_err(|error| Failure::new(BAD_INPUT, anyhow::Error::from(error)))?;
    if results.runs.is_empty() {
        let sentence = format!(
            "{} holds no run: expected results of at least one",
            path.display()
        );
        return Err(Failure::new(BAD_INPUT, sentence));
    }
    Ok(results)
}
