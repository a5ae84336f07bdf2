//! Runs of commands that have no N, a row a run: what repeats have in common.

use crate::{
    classify::Class,
    results::{Run, summary::kernel_bytes, theil_sen::median},
    units::human,
};

use super::{
    Colour,
    columns::{Flush, Table},
    run::ending,
};

/// A row a run, and below it the median and the range of the RSS of those that completed, where there are
/// several. Ends with a newline; empty when nothing ran.
pub fn repeats_table(runs: &[Run], colour: Colour) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let mut text = repeats_rows(runs).lines(colour).join("\n") + "\n";
    let mut rss: Vec<f64> = runs
        .iter()
        .filter(|run| run.reason.is_none())
        .filter_map(|run| Some(run.peak.as_ref()?.rss_bytes as f64))
        .collect();
    rss.sort_by(f64::total_cmp);
    if let ([least, .., greatest], Some(median)) = (rss.as_slice(), median(&rss)) {
        text += &format!(
            "\nRSS at the peak: median {}, {} to {} in {} runs\n",
            human(median.round() as u64),
            human(*least as u64),
            human(*greatest as u64),
            rss.len()
        );
    }
    text
}

/// The rows alone.
pub fn repeats_rows(runs: &[Run]) -> Table<9> {
    let rows = runs.iter().map(|run| {
        let peak = run.peak.as_ref();
        let class = |class| {
            peak.map(|peak| human(peak.classes.get(class)))
                .unwrap_or_default()
        };
        [
            run.label.clone(),
            class(Class::Stacks),
            class(Class::Heap),
            class(Class::Runtime),
            class(Class::Unclassified),
            peak.map(|peak| human(peak.rss_bytes)).unwrap_or_default(),
            peak.and_then(kernel_bytes).map(human).unwrap_or_default(),
            format!("{:.2} s", run.wall_seconds),
            ending(run),
        ]
    });
    let mut flush = [Flush::Right; 9];
    flush[0] = Flush::Left;
    flush[8] = Flush::Left;
    Table {
        headings: [
            "command",
            "stacks",
            "heap",
            "runtime",
            "unclassified",
            "RSS",
            "kernel",
            "wall",
            "outcome",
        ],
        flush,
        rows: rows.collect(),
    }
}
