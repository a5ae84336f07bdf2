//! What stands around the data in every figure: the finding above, the circumstances below.

use plotters::style::text_anchor::HPos;

use crate::results::summary::Cell;
use crate::results::{Host, Peak, Results, Run};
use crate::units::{MIB, human, thousands};

use super::drawing::{self, Area, Block, Drawn, Figure, Fill, Paragraph, Space};
use super::style::{self, EXPLANATION, FOOTER, GRID, MARGIN, SUBTITLE, TEXT, TITLE};
use super::text::Type;

/// Room between the margins.
pub const ROOM: i32 = style::WIDTH - 2 * MARGIN;

/// The words above the data; each is a paragraph of its own.
pub struct Heading {
    /// What the figure shows, in numbers.
    pub finding: String,
    /// What failed or is missing; may be empty.
    pub failures: String,
    /// How to read the figure.
    pub explanations: Vec<String>,
}

/// The figure of `body` between its heading and `facts`, its circumstances.
pub fn figure<'a>(heading: &Heading, body: Vec<Box<dyn Block + 'a>>, facts: &[String]) -> Figure {
    let mut blocks: Vec<Box<dyn Block + 'a>> = vec![
        Box::new(Space(MARGIN)),
        paragraph(TITLE, &heading.finding, 3),
        Box::new(Space(5)),
        paragraph(SUBTITLE, &heading.failures, 3),
        Box::new(Space(5)),
    ];
    for explanation in &heading.explanations {
        blocks.push(paragraph(EXPLANATION, explanation, 3));
    }
    blocks.extend(body);
    let facts: Vec<&str> = facts.iter().map(String::as_str).collect();
    blocks.push(Box::new(Rule));
    blocks.push(Box::new(Paragraph {
        kind: FOOTER,
        lines: FOOTER.wrap_pieces(&facts, " · ", ROOM, 5),
    }));
    blocks.push(Box::new(Space(MARGIN - 4)));
    // The heading as one sentence, for those who hear it.
    let clauses = [heading.finding.as_str(), &heading.failures];
    let clauses: Vec<&str> = clauses.into_iter().filter(|it| !it.is_empty()).collect();
    Figure::new(&clauses.join("; "), &blocks)
}

/// `text` in at most `most` lines from margin to margin.
pub fn paragraph<'a>(kind: Type, text: &str, most: usize) -> Box<dyn Block + 'a> {
    let lines = kind.wrap(text, ROOM, most);
    Box::new(Paragraph { kind, lines })
}

/// The line above the footer.
struct Rule;

impl Block for Rule {
    fn height(&self) -> i32 {
        16
    }

    fn draw(&self, area: &Area) -> Drawn {
        drawing::line(area, &[(MARGIN, 0), (style::WIDTH - MARGIN, 0)], GRID, 2)
    }
}

/// The legend: marks and texts from left to right, in as many rows as they need.
pub struct Legend {
    /// Fill, name, and where the mark is: x and row.
    entries: Vec<(Fill, &'static str, i32, i32)>,
}

impl Legend {
    const MARK: i32 = 26;
    /// From a mark to its text.
    const GAP: i32 = 12;
    const ROW: i32 = 42;

    /// Places the entries.
    pub fn new(entries: &[(Fill, &'static str)]) -> Self {
        let (mut x, mut row) = (MARGIN, 0);
        let place = |(fill, name): &(Fill, &'static str)| {
            let needed = Self::MARK + Self::GAP + TEXT.width(name);
            if x > MARGIN && x + needed > style::WIDTH - MARGIN {
                (x, row) = (MARGIN, row + 1);
            }
            let at = x;
            x += needed + 36;
            (*fill, *name, at, row)
        };
        Legend {
            entries: entries.iter().map(place).collect(),
        }
    }
}

impl Block for Legend {
    fn height(&self) -> i32 {
        let last = self.entries.last();
        last.map_or(0, |(.., row)| (row + 1) * Self::ROW)
    }

    fn draw(&self, area: &Area) -> Drawn {
        for (fill, name, x, row) in &self.entries {
            let top = row * Self::ROW;
            let corners = [(*x, top), (x + Self::MARK, top + Self::MARK)];
            drawing::rectangle(area, corners, *fill)?;
            let baseline = (x + Self::MARK + Self::GAP, top + Self::MARK - 4);
            drawing::text(area, baseline, HPos::Left, &TEXT, name)?;
        }
        Ok(())
    }
}

/// Those of `labels`, (value, middle, text), that have room beside those before them in the list, by
/// their value.
pub fn with_room(kind: &Type, labels: Vec<(f64, i32, String)>) -> Vec<(f64, String)> {
    let mut taken: Vec<(i32, i32)> = Vec::new();
    let mut kept = Vec::new();
    for (value, middle, label) in labels {
        let half = kind.width(&label) / 2;
        if taken
            .iter()
            .all(|(other, other_half)| (middle - other).abs() > half + other_half + 14)
        {
            taken.push((middle, half));
            kept.push((value, label));
        }
    }
    kept
}

/// The label for the tick at `value`; empty where it has none.
pub fn label_at(labels: &[(f64, String)], value: f64) -> String {
    let found = labels.iter().find(|(labelled, _)| *labelled == value);
    found.map(|(_, label)| label.clone()).unwrap_or_default()
}

/// Everything that a reader must know to compare the figure of `cells` with another.
pub fn circumstances(results: &Results, cells: &[&Cell]) -> Vec<String> {
    let runs: Vec<_> = cells.iter().map(|cell| cell.run()).collect();
    let peaks: Vec<&Peak> = cells
        .iter()
        .filter_map(|cell| Some(cell.median()?.1))
        .collect();

    let mut counts: Vec<u64> = cells.iter().map(|cell| cell.tasks).collect();
    counts.sort_unstable();
    counts.dedup();
    let counts: Vec<String> = counts.into_iter().map(thousands).collect();
    let mut seconds: Vec<f64> = runs.iter().filter_map(|run| run.task_seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.dedup();
    let seconds: Vec<String> = seconds
        .into_iter()
        .map(|seconds| format!("{seconds} s"))
        .collect();

    let mut days: Vec<&str> = runs
        .iter()
        .filter_map(|run| run.started_at.get(..10))
        .collect();
    days.sort_unstable();
    days.dedup();
    let mut tiers: Vec<&str> = peaks.iter().map(|peak| peak.tier.as_str()).collect();
    tiers.sort_unstable();
    tiers.dedup();

    let mut facts = of_host(&results.host);
    facts.push(match seconds.as_slice() {
        [] => format!("N = {}", counts.join(", ")),
        seconds => format!("N = {}, {} each", counts.join(", "), seconds.join(" or ")),
    });
    facts.push(
        match cells.iter().map(|cell| cell.repeats()).max().unwrap_or(0) {
            0 | 1 => "1 run each".to_owned(),
            repeats => format!("median of {repeats} runs"),
        },
    );
    if let Some(bound) = peaks.iter().map(|peak| peak.error_bound_bytes).max() {
        facts.push(exactness(&tiers.join(", "), bound));
    }
    match days.as_slice() {
        [] => {}
        [day] => facts.push((*day).to_owned()),
        [first, .., last] => facts.push(format!("{first} to {last}")),
    }
    facts.push(format!("profiler {}", results.host.profiler_version));
    facts
}

/// What the whiskers of a figure are, where it has any: for its explanations.
pub fn whiskers(cells: &[&Cell]) -> Option<String> {
    let has_spread = cells.iter().any(|cell| cell.spread().is_some());
    has_spread.then(|| "Whiskers: from the least to the greatest of the repeats.".to_owned())
}

/// As [`circumstances`], of a single run.
pub fn circumstances_of_run(results: &Results, run: &Run) -> Vec<String> {
    let mut facts = of_host(&results.host);
    facts.insert(0, run.version.clone());
    if let (Some(tasks), Some(seconds)) = (run.tasks, run.task_seconds) {
        facts.push(format!("N = {}, {seconds} s each", thousands(tasks)));
    }
    if let Some(peak) = &run.peak {
        facts.push(exactness(&peak.tier, peak.error_bound_bytes));
    }
    facts.extend(run.started_at.get(..10).map(str::to_owned));
    facts.push(format!("profiler {}", results.host.profiler_version));
    facts.retain(|fact| !fact.trim().is_empty());
    facts
}

/// The machine.
fn of_host(host: &Host) -> Vec<String> {
    let mut facts = vec![
        host.cpu.clone(),
        counted(u64::from(host.cpus), "CPU"),
        format!(
            "{:.0} GiB",
            host.memory_bytes as f64 / (1024.0 * MIB as f64)
        ),
        format!("Linux {}", host.kernel),
        host.os.clone(),
        format!("THP {}", host.transparent_hugepages),
    ];
    facts.retain(|fact| !fact.trim().is_empty());
    facts
}

/// The tier, and how far from the true peak it can be.
fn exactness(tier: &str, bound_bytes: u64) -> String {
    match bound_bytes {
        // The bound of scans is the kernel's high-water mark, which is not exact itself.
        0 if !tier.contains(['C', 'D']) => format!("tier {tier}: the exact peak"),
        bytes => format!(
            "tier {tier}: true peak at most {} higher",
            human(bytes).replace(".0 ", " ")
        ),
    }
}

/// `bytes` in MiB, without the unit: `46.2`, and from a thousand on `1,163`.
pub fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / MIB as f64;
    if mib < 1000.0 {
        format!("{mib:.1}")
    } else {
        thousands(mib.round() as u64)
    }
}

/// A rounded number with thousands separators and, where it is below zero, a minus sign.
pub fn signed_thousands(value: f64) -> String {
    let rounded = value.round();
    let sign = if rounded < 0.0 { "−" } else { "" };
    format!("{sign}{}", thousands(rounded.abs() as u64))
}

/// `1 CPU`, `2 CPUs`, `100,000 tasks`.
pub fn counted(count: u64, thing: &str) -> String {
    format!(
        "{} {thing}{}",
        thousands(count),
        if count == 1 { "" } else { "s" }
    )
}

/// `a`, `a and b`, `a, b and c`.
pub fn enumeration(items: &[&str]) -> String {
    match items {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_give_way_to_those_before_them() {
        let labels = [(1.0, 0), (2.0, 10), (3.0, 100)];
        let labels = labels.map(|(value, middle)| (value, middle, "1".to_owned()));
        let kept = with_room(&TEXT, labels.to_vec());
        assert_eq!(kept, [(1.0, "1".to_owned()), (3.0, "1".to_owned())]);
        assert_eq!(label_at(&kept, 2.0), "");
        assert_eq!(label_at(&kept, 3.0), "1");
    }

    #[test]
    fn lists_read_as_a_sentence() {
        assert_eq!(enumeration(&["a", "b", "c"]), "a, b and c");
        assert_eq!(counted(1, "task"), "1 task");
        assert_eq!(counted(100_000, "task"), "100,000 tasks");
    }
}
