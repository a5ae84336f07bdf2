//! What a task costs: base and bytes per task of each program, a row a program.

use crate::results::slopes::{Quantity, Residual, Slope, find, whole};
use crate::results::summary::{Cell, programs};
use crate::units::{MIB, thousands};

use super::columns::{Flush, Noted, Table};

const HEADINGS: [&str; 12] = [
    "program",
    "runs",
    "base",
    "stacks",
    "heap",
    "runtime",
    "unclassified",
    "RSS",
    "kernel",
    "total",
    "95 % of total",
    "furthest off",
];

const FLUSH: [Flush; 12] = {
    let mut flush = [Flush::Right; 12];
    flush[0] = Flush::Left;
    flush[11] = Flush::Left;
    flush
};

const EXPLANATION: &str = "\
bytes per task: median of the slopes between all pairs of runs (Theil-Sen), with its 95 % interval;
base in MiB of RSS; furthest off: of RSS from that line, in percent and MiB of what was measured";

const TOO_FEW: &str = "no interval: too few runs; it takes one run at each of five N, two at three (--repeat 2) \
                       or four at two";

/// A row a program that has slopes; `None` where none has.
pub fn slopes_rows(cells: &[Cell], slopes: &[Slope]) -> Option<Table<12>> {
    let rows: Vec<[String; 12]> = programs(cells)
        .iter()
        .filter_map(|program| {
            let run = cells.iter().find(|cell| cell.program() == *program)?.run();
            row(&run.label, |class| find(slopes, program, class))
        })
        .collect();
    (!rows.is_empty()).then_some(Table {
        headings: HEADINGS,
        flush: FLUSH,
        rows,
    })
}

/// The same with what there is to know of it.
pub fn slopes_table(cells: &[Cell], slopes: &[Slope]) -> Option<Noted<12>> {
    let table = slopes_rows(cells, slopes)?;
    let mut notes = vec![EXPLANATION.to_owned()];
    let without = |program: &&str| whole(slopes, program).is_some_and(|slope| slope.ci95.is_none());
    if programs(cells).iter().any(without) {
        notes.push(TOO_FEW.to_owned());
    }
    Some(Noted {
        failed: vec![false; table.rows.len()],
        table,
        notes,
    })
}

fn row<'a>(label: &str, of: impl Fn(Quantity) -> Option<&'a Slope>) -> Option<[String; 12]> {
    let rss = of(Quantity::Rss)?;
    let per_task = |class| of(class).map(|slope| signed(slope.bytes_per_task));
    let class = |class| per_task(class).unwrap_or_default();
    let interval = of(Quantity::Total).unwrap_or(rss).ci95;
    let interval = interval.map(|[low, high]| format!("{} to {}", signed(low), signed(high)));
    Some([
        label.to_owned(),
        rss.points.to_string(),
        format!("{:.1}", rss.base_bytes / MIB as f64),
        class(Quantity::Stacks),
        class(Quantity::Heap),
        class(Quantity::Runtime),
        class(Quantity::Unclassified),
        class(Quantity::Rss),
        class(Quantity::Kernel),
        class(Quantity::Total),
        interval.unwrap_or_else(|| "-".to_owned()),
        rss.largest_residual.map(residual).unwrap_or_default(),
    ])
}

fn residual(residual: Residual) -> String {
    format!(
        "{:+.1} % at {} ({:+.1})",
        residual.percent,
        thousands(residual.tasks),
        residual.bytes / MIB as f64
    )
}

/// A rounded number with thousands separators and, where it is below zero, a minus sign.
pub fn signed(value: f64) -> String {
    let rounded = value.round();
    let sign = if rounded < 0.0 { "-" } else { "" };
    format!("{sign}{}", thousands(rounded.abs() as u64))
}
