//! What changed between two documents, for people.

use crate::{
    results::{
        compare::{Change, Comparison, Subject, Unit},
        slopes::Quantity,
    },
    units::{human, thousands},
};

use super::{
    Colour,
    columns::{Flush, Table},
    run::identifier,
    slopes::signed,
};

/// A class that moved by less than this part of RSS is not shown.
const VISIBLE: f64 = 0.001;

/// A row a figure: RSS and kernel memory of each program and N, and what else changed. Red where it grew and
/// green where it shrank beyond the noise. Then what cannot be compared, and the verdict. Ends with a newline.
pub fn comparison_report(comparison: &Comparison, percent: f64, colour: Colour) -> String {
    let shown: Vec<&Change> = comparison
        .changes
        .iter()
        .filter(|change| is_shown(change, &comparison.changes))
        .collect();
    let table = Table {
        headings: [
            "program", "N", "what", "before", "after", "change", "", "noise", "verdict",
        ],
        flush: [
            Flush::Left,
            Flush::Right,
            Flush::Left,
            Flush::Right,
            Flush::Right,
            Flush::Right,
            Flush::Right,
            Flush::Right,
            Flush::Left,
        ],
        rows: shown.iter().map(|change| row(change, percent)).collect(),
    };
    let mut text = String::new();
    if !shown.is_empty() {
        let lines = table.lines(colour);
        text += &format!("{}\n", lines[0]);
        for (change, line) in shown.iter().zip(&lines[1..]) {
            text += &format!("{}\n", coloured(change, line, colour));
        }
        text += "\nmedians of the completed runs; noise: how far repeats are apart (of bytes a task, the 95 % interval)\n";
        if shown.iter().any(|change| change.noise.is_none()) {
            text += "noise -: too few runs to tell noise from change; it takes two of each (--repeat 2, --runs 2)\n";
        }
    }
    for (subject, reason) in &comparison.broken {
        let line = format!("{} does not complete any more: {reason}", name(subject));
        text += &format!("{}\n", colour.red(&line));
    }
    for (subjects, which) in [(&comparison.gone, "first"), (&comparison.new, "second")] {
        for subject in subjects {
            text += &format!("{} is in the {which} file alone\n", name(subject));
        }
    }
    text + &verdict(comparison, percent, colour)
}

fn verdict(comparison: &Comparison, percent: f64, colour: Colour) -> String {
    let past = comparison.changes.iter().filter(|it| it.is_past(percent));
    let line = match (past.count(), comparison.broken.len()) {
        (0, 0) => return format!("nothing grew by more than {percent} %\n"),
        (grown, 0) => format!("{grown} figures grew by more than {percent} %"),
        (0, broken) => format!("{broken} do not complete any more"),
        (grown, broken) => format!(
            "{grown} figures grew by more than {percent} %, and {broken} do not complete any more"
        ),
    };
    format!("{}\n", colour.red(&line))
}

/// The sums always, a class where it changed by something that can be seen beside its RSS.
fn is_shown(change: &Change, all: &[Change]) -> bool {
    if matches!(change.quantity, Quantity::Rss | Quantity::Kernel) {
        return true;
    }
    let whole = all.iter().find(|it| {
        it.subject == change.subject && it.unit == change.unit && it.quantity == Quantity::Rss
    });
    let moved = (change.after - change.before).abs();
    whole.is_none_or(|whole| moved > whole.before.abs() * VISIBLE)
}

fn row(change: &Change, percent: f64) -> [String; 9] {
    let bytes = |bytes: f64| match change.unit {
        Unit::Bytes => human(bytes.max(0.0).round() as u64),
        Unit::BytesPerTask => format!("{} B", signed(bytes)),
    };
    let difference = change.after - change.before;
    let sign = if difference < 0.0 { "-" } else { "+" };
    let what = identifier(&change.quantity);
    [
        change.subject.label.clone(),
        match change.unit {
            Unit::Bytes => change.subject.tasks.map(thousands).unwrap_or_default(),
            Unit::BytesPerTask => "a task".to_owned(),
        },
        what,
        bytes(change.before),
        bytes(change.after),
        format!("{sign}{}", bytes(difference.abs())),
        match change.percent() {
            percent if percent.is_finite() => format!("{percent:+.1} %"),
            _ => "new".to_owned(),
        },
        change.noise.map_or_else(|| "-".to_owned(), bytes),
        match change {
            _ if difference == 0.0 => "same".to_owned(),
            _ if change.is_past(percent) => "grew past the threshold".to_owned(),
            Change { noise: None, .. } => String::new(),
            Change {
                beyond_noise: false,
                ..
            } => "within the noise".to_owned(),
            _ if difference > 0.0 => "grew".to_owned(),
            _ => "shrank".to_owned(),
        },
    ]
}

fn coloured(change: &Change, line: &str, colour: Colour) -> String {
    match change.beyond_noise {
        true if change.noise.is_none() => line.to_owned(),
        true if change.after > change.before => colour.red(line),
        true => colour.green(line),
        false => line.to_owned(),
    }
}

fn name(subject: &Subject) -> String {
    match subject.tasks {
        Some(tasks) => format!("{} at N = {}", subject.label, thousands(tasks)),
        None => subject.label.clone(),
    }
}
