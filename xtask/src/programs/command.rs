//! `cargo xtask programs`: prepares the programs and prints how each is started.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Prepared, Variant, load, prepare, select};

/// The arguments in the commands that are printed.
const EXAMPLE_TASKS: u64 = 10_000;
const EXAMPLE_SECONDS: f64 = 10.0;

/// The options of `cargo xtask programs`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these programs, with commas between them
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    programs: Vec<String>,
    /// Install on the system what cannot be had otherwise
    #[arg(long)]
    install: bool,
}

/// Prepares the programs and prints a few lines about each to stdout; `root` is the workspace's folder.
pub fn run(options: &Options, root: &Path) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    for program in select(load(root)?, &options.programs)? {
        let progress = Progress::new(&program.name);
        let prepared = prepare(
            &program,
            Variant::Measured,
            root,
            options.install,
            &|step| progress.show(step),
        );
        progress.finish();
        match prepared {
            Prepared::Ready(ready) => {
                writeln!(
                    stdout,
                    "{}: {} on {} ({})",
                    program.name, program.label, program.runtime, ready.version
                )?;
                for (name, value) in &ready.environment {
                    writeln!(stdout, "  {name}={value}")?;
                }
                writeln!(
                    stdout,
                    "  {}",
                    ready.argv(EXAMPLE_TASKS, EXAMPLE_SECONDS).join(" ")
                )?;
                let mebibytes =
                    program.estimated_bytes(EXAMPLE_TASKS, 0) as f64 / f64::from(1 << 20);
                writeln!(
                    stdout,
                    "  needs about {mebibytes:.0} MiB ({})",
                    program.estimate.source
                )?;
            }
            Prepared::Unavailable { reason } => {
                writeln!(
                    stdout,
                    "{} is unavailable\n  {}",
                    program.name,
                    reason.replace('\n', "\n  ")
                )?;
            }
        }
    }
    Ok(())
}

/// What is being done now, on stderr: one line that changes on a terminal, a line for each step elsewhere.
struct Progress {
    name: String,
    spinner: Option<ProgressBar>,
}

impl Progress {
    fn new(name: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})")
            {
                spinner.set_style(style);
            }
            spinner.set_prefix(name.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        Self {
            name: name.to_owned(),
            spinner,
        }
    }

    fn show(&self, step: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(step.to_owned()),
            None => eprintln!("{}: {step}", self.name),
        }
    }

    fn finish(self) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
    }
}
