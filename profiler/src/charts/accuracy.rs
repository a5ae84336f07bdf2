//! `accuracy`: what adapters found from outside beside what the runtimes say themselves.

use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use crate::results::accuracy::{Accuracy, Comparison};

use super::drawing::{self, Area, Block, Drawn, Figure, Fill, Space};
use super::frame::{self, Heading, Legend, counted};
use super::style::{self, FAILURE, GREY, MARGIN, NAME, SMALL};

/// From one comparison to the next.
const ROW: i32 = 92;
/// Thickness of a bar; the second stands right below the first.
const BAR: i32 = 22;
/// Between names and bars, and between bars and values.
const GAP: i32 = 18;
/// Widest that a name may be.
const NAME_ROOM: i32 = 460;
const OURS: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const THEIRS: RGBColor = RGBColor(0xb9, 0xbd, 0xc1);

/// The figure of all comparisons.
pub fn figure(accuracy: &Accuracy) -> Figure {
    let all = &accuracy.comparisons;
    let missed: Vec<&Comparison> = all.iter().filter(|it| !it.holds()).collect();
    let widest = all
        .iter()
        .filter_map(Comparison::difference_percent)
        .map(f64::abs)
        .fold(0.0, f64::max);
    let heading = Heading {
        finding: format!(
            "What is seen from outside is what the runtimes say themselves, {}",
            match widest {
                0.0 => "to the byte".to_owned(),
                widest => format!("to within {:.2} %", widest.max(0.01)),
            }
        ),
        failures: match missed.len() {
            0 => String::new(),
            missed => format!("{missed} of {} past their limit or missing", all.len()),
        },
        explanations: vec![
            "Each figure was read from the memory of the frozen program; then the runtime was asked for its own.".into(),
        ],
    };
    let legend = Legend::new(&[
        (Fill::Plain(OURS), "found from outside"),
        (Fill::Plain(THEIRS), "the runtime's own books"),
    ]);
    let body: Vec<Box<dyn Block + '_>> = vec![
        Box::new(Space(24)),
        Box::new(legend),
        Box::new(Space(10)),
        Box::new(Rows::new(all)),
    ];
    frame::figure(&heading, body, &facts(accuracy))
}

fn facts(accuracy: &Accuracy) -> Vec<String> {
    let mut facts: Vec<String> = Vec::new();
    let mut counts: Vec<u64> = accuracy.comparisons.iter().map(|it| it.tasks).collect();
    counts.sort_unstable();
    counts.dedup();
    facts.extend(counts.into_iter().map(|count| counted(count, "task")));
    for comparison in &accuracy.comparisons {
        if !facts.contains(&comparison.version) && !comparison.version.is_empty() {
            facts.push(comparison.version.clone());
        }
    }
    facts.push(format!("Linux {}", accuracy.host.kernel));
    facts.push(format!("profiler {}", accuracy.host.profiler_version));
    facts
}

/// The comparisons under each other.
struct Rows<'a> {
    rows: &'a [Comparison],
    /// Where names end and bars begin.
    left: i32,
}

impl<'a> Rows<'a> {
    fn new(rows: &'a [Comparison]) -> Self {
        let width = |row: &Comparison| NAME.width(&row.label).max(SMALL.width(&row.what));
        let widest = rows.iter().map(width).max().unwrap_or(0).min(NAME_ROOM);
        Rows {
            rows,
            left: MARGIN + widest + GAP,
        }
    }

    /// Pixels for a figure of a row, on the scale of its unit. The longest bar leaves room for any row's words.
    fn pixels(&self, row: &Comparison, figure: u64) -> i32 {
        let words = self.rows.iter().map(|row| SMALL.width(&verdict(row)));
        let room = style::WIDTH - MARGIN - self.left - GAP - words.max().unwrap_or(0);
        let alike = self.rows.iter().filter(|other| other.unit == row.unit);
        let longest = alike.flat_map(|it| [it.ours, it.theirs]).flatten().max();
        let share = figure as f64 / longest.unwrap_or(1).max(1) as f64;
        (share * f64::from(room.max(100))).round() as i32
    }
}

/// `0.02 % apart, limit 0.1 %`
fn verdict(row: &Comparison) -> String {
    match (row.difference_percent(), &row.reason) {
        (Some(percent), _) => format!(
            "{} apart, limit {}",
            match percent.abs() {
                0.0 => "0 bytes".to_owned(),
                small if small < 0.005 => "less than 0.01 %".to_owned(),
                percent => format!("{percent:.2} %"),
            },
            row.limit()
        ),
        (None, reason) => reason
            .clone()
            .unwrap_or_else(|| "nothing to compare".into()),
    }
}

impl Block for Rows<'_> {
    fn height(&self) -> i32 {
        self.rows.len() as i32 * ROW
    }

    fn draw(&self, area: &Area) -> Drawn {
        for (row, top) in self.rows.iter().zip((0..).step_by(ROW as usize)) {
            let middle = top + ROW / 2;
            let name = self.left - GAP;
            let label = NAME.shorten(&row.label, NAME_ROOM);
            drawing::text(area, (name, middle - 6), HPos::Right, &NAME, &label)?;
            let what = SMALL.shorten(&row.what, NAME_ROOM);
            drawing::text(area, (name, middle + 24), HPos::Right, &SMALL, &what)?;
            let bars = [(row.ours, OURS, middle - BAR), (row.theirs, THEIRS, middle)];
            let mut end = self.left;
            for (bytes, colour, top) in bars {
                let Some(bytes) = bytes else { continue };
                let right = self.left + self.pixels(row, bytes).max(2);
                let corners = [(self.left, top), (right, top + BAR)];
                drawing::rectangle(area, corners, Fill::Plain(colour))?;
                end = end.max(right);
            }
            let x = end + GAP;
            if let Some(bytes) = row.ours.or(row.theirs) {
                drawing::text(area, (x, middle - 6), HPos::Left, &NAME, &row.shown(bytes))?;
            }
            let colour = if row.holds() { GREY } else { FAILURE };
            let room = style::WIDTH - MARGIN - x;
            let words = SMALL.shorten(&verdict(row), room);
            let kind = SMALL.coloured(colour);
            drawing::text(area, (x, middle + 24), HPos::Left, &kind, &words)?;
        }
        Ok(())
    }
}
