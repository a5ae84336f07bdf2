//! `profiler compare`: what changed between two results, with an exit status for CI.

use std::path::PathBuf;

use clap::Args;
use profiler::{
    report::{Colour, comparison_report},
    results::compare::compare,
};

use super::{BAD_INPUT, Failure, output, report::read};

/// Something grew past the threshold.
const PAST_THRESHOLD: u8 = 1;

#[derive(Args)]
pub struct Arguments {
    /// By how much RSS, RSS with kernel memory, and what a task costs may grow; beyond it, and beyond
    /// the noise where repeats tell it, the exit status is 1
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse_percent)]
    threshold: f64,

    /// Results from before
    #[arg(value_name = "A")]
    before: PathBuf,

    /// Results from after
    #[arg(value_name = "B")]
    after: PathBuf,
}

pub fn execute(arguments: &Arguments) -> Result<u8, Failure> {
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    if before.host != after.host {
        output::say_line(format_args!(
            "warning: they were measured on different machines, or with different settings or versions"
        ));
    }
    let comparison = compare(&before, &after);
    if comparison.changes.is_empty() && comparison.broken.is_empty() {
        let sentence = format!(
            "{} and {} have nothing in common to compare: expected the same program and N, completed in both",
            arguments.before.display(),
            arguments.after.display()
        );
        return Err(Failure::new(BAD_INPUT, sentence));
    }
    let text = comparison_report(&comparison, arguments.threshold, Colour::for_stdout());
    output::print(text.as_bytes()).map_err(|error| Failure::new(BAD_INPUT, error))?;
    Ok(match comparison.is_past(arguments.threshold) {
        true => PAST_THRESHOLD,
        false => 0,
    })
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(percent),
        _ => Err("expected a percentage such as 5% or 0.5%".into()),
    }
}
