//! What changed from one document to another: by program, N and class, held against how far repeats are apart.

use super::{
    Outcome, Peak, Results, Run,
    slopes::{Quantity, Slope, slopes},
    theil_sen::median,
};

/// What is told apart: runs that differ in one of these are of different things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Program.
    pub program: String,
    /// Name for people.
    pub label: String,
    /// N; `None` for a command without one.
    pub tasks: Option<u64>,
    stack_depth_bytes: u64,
    payload_bytes: u64,
}

/// One figure before and after.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Of what.
    pub subject: Subject,
    /// Which figure.
    pub quantity: Quantity,
    /// Bytes at the peak, or bytes per task.
    pub unit: Unit,
    /// Median of the runs.
    pub before: f64,
    /// Median of the runs.
    pub after: f64,
    /// How far repeats are apart: the larger range of both sides (of a slope, the larger 95 % interval).
    /// `None`: too few runs to tell.
    pub noise: Option<f64>,
    /// The ranges of both sides do not meet. Without noise: whether there is a difference at all.
    pub beyond_noise: bool,
}

/// What a [`Change`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes at the peak.
    Bytes,
    /// Bytes that a task adds: see [`Slope`].
    BytesPerTask,
}

/// Two documents, held against each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparison {
    /// By subject and quantity, in the order of the first document; slopes last.
    pub changes: Vec<Change>,
    /// Completed before, and has runs after, of which none completed; and why.
    pub broken: Vec<(Subject, String)>,
    /// In the first document alone.
    pub gone: Vec<Subject>,
    /// In the second document alone.
    pub new: Vec<Subject>,
}

impl Change {
    /// Growth in percent of what it was; infinite from nothing.
    pub fn percent(&self) -> f64 {
        if self.before == self.after {
            return 0.0;
        }
        (self.after - self.before) / self.before * 100.0
    }

    /// RSS, or RSS and kernel memory, grew by more than `percent` and beyond the noise. Parts do not count: they may
    /// move from class to class. Nor does what a task costs, where there is no telling its noise: a difference of
    /// two large figures.
    pub fn is_past(&self, percent: f64) -> bool {
        let whole = matches!(self.quantity, Quantity::Rss | Quantity::Total);
        let counts = whole && (self.unit == Unit::Bytes || self.noise.is_some());
        counts && self.beyond_noise && self.after > self.before && self.percent() > percent
    }
}

impl Comparison {
    /// Something grew past the threshold, or does not complete any more.
    pub fn is_past(&self, percent: f64) -> bool {
        !self.broken.is_empty() || self.changes.iter().any(|change| change.is_past(percent))
    }
}

/// All that can be compared.
pub fn compare(before: &Results, after: &Results) -> Comparison {
    let (old, new) = (groups(before), groups(after));
    let mut comparison = Comparison {
        new: new
            .iter()
            .filter(|group| find(&old, &group.subject).is_none())
            .map(|group| group.subject.clone())
            .collect(),
        ..Comparison::default()
    };
    for group in &old {
        let subject = &group.subject;
        match find(&new, subject) {
            None => comparison.gone.push(subject.clone()),
            Some(other) if other.peaks.is_empty() => {
                if !group.peaks.is_empty() {
                    let reason = other.reason.unwrap_or("no reason was recorded");
                    comparison.broken.push((subject.clone(), reason.to_owned()));
                }
            }
            Some(other) => comparison.changes.extend(
                Quantity::ALL
                    .iter()
                    .filter_map(|&quantity| change(group, other, quantity)),
            ),
        }
    }
    comparison
        .changes
        .extend(slope_changes(before, after, &old));
    comparison
}

struct Group<'a> {
    subject: Subject,
    /// Of completed runs.
    peaks: Vec<&'a Peak>,
    /// Why some run did not complete.
    reason: Option<&'a str>,
}

fn groups(results: &Results) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for run in &results.runs {
        let subject = subject(run);
        let index = groups.iter().position(|group| group.subject.is(&subject));
        let index = index.unwrap_or_else(|| {
            groups.push(Group {
                subject,
                peaks: Vec::new(),
                reason: None,
            });
            groups.len() - 1
        });
        match (&run.peak, run.outcome) {
            (Some(peak), Outcome::Completed) => groups[index].peaks.push(peak),
            (None, Outcome::Completed) => {
                groups[index].reason = Some("it ended before its memory was looked at");
            }
            _ => groups[index].reason = run.reason.as_deref(),
        }
    }
    groups
}

fn subject(run: &Run) -> Subject {
    Subject {
        program: run.program.clone(),
        label: run.label.clone(),
        tasks: run.tasks,
        stack_depth_bytes: run.stack_depth_bytes,
        payload_bytes: run.payload_bytes,
    }
}

impl Subject {
    /// The same thing; what it is called for people may have changed.
    fn is(&self, other: &Subject) -> bool {
        let key = |it: &Subject| (it.tasks, it.stack_depth_bytes, it.payload_bytes);
        self.program == other.program && key(self) == key(other)
    }
}

fn find<'g, 'a>(groups: &'g [Group<'a>], subject: &Subject) -> Option<&'g Group<'a>> {
    groups.iter().find(|group| group.subject.is(subject))
}

/// `None` where a run lacks the figure.
fn change(before: &Group, after: &Group, quantity: Quantity) -> Option<Change> {
    let figures = |group: &Group| -> Option<Vec<f64>> {
        let peaks = group.peaks.iter();
        let mut figures: Vec<f64> = peaks
            .map(|peak| quantity.of(peak).map(|bytes| bytes as f64))
            .collect::<Option<_>>()?;
        figures.sort_by(f64::total_cmp);
        Some(figures)
    };
    let (old, new) = (figures(before)?, figures(after)?);
    let range = |figures: &[f64]| match figures {
        [least, .., greatest] => Some([*least, *greatest]),
        _ => None,
    };
    Some(held_against_noise(
        before.subject.clone(),
        quantity,
        Unit::Bytes,
        [median(&old)?, median(&new)?],
        [range(&old), range(&new)],
    ))
}

fn slope_changes(before: &Results, after: &Results, groups: &[Group]) -> Vec<Change> {
    let new = slopes(after);
    let pairs = slopes(before).into_iter().filter_map(|old| {
        let same = |slope: &&Slope| slope.program == old.program && slope.class == old.class;
        let new = new.iter().find(same)?;
        let group = groups.iter().find(|it| it.subject.program == old.program)?;
        let subject = Subject {
            tasks: None,
            ..group.subject.clone()
        };
        Some(held_against_noise(
            subject,
            old.class,
            Unit::BytesPerTask,
            [old.bytes_per_task, new.bytes_per_task],
            [old.ci95, new.ci95],
        ))
    });
    pairs.collect()
}

fn held_against_noise(
    subject: Subject,
    quantity: Quantity,
    unit: Unit,
    [before, after]: [f64; 2],
    ranges: [Option<[f64; 2]>; 2],
) -> Change {
    let (noise, beyond_noise) = match ranges {
        [Some(old), Some(new)] => {
            let width = |range: [f64; 2]| range[1] - range[0];
            let apart = old[1] < new[0] || new[1] < old[0];
            (Some(width(old).max(width(new))), apart)
        }
        _ => (None, before != after),
    };
    Change {
        subject,
        quantity,
        unit,
        before,
        after,
        noise,
        beyond_noise,
    }
}
