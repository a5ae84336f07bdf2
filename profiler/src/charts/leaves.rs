//! `leaves/<program>-<N>`: where the bytes of a task go. One bar a leaf, longest first, in the colour of its
//! class, then kernel memory hatched.

use plotters::style::text_anchor::HPos;

use crate::classify::{Class, Leaf};
use crate::results::summary::{Cell, FEWEST_TASKS, kernel_bytes};
use crate::results::{LeafBytes, Peak, Results, Run};
use crate::units::{human, thousands};

use super::drawing::{self, Area, Block, Drawn, Figure, Fill, Space};
use super::frame::{self, Heading, Legend, counted};
use super::style::{self, GREY, MARGIN, NAME, SMALL, TEXT};

/// From one bar to the next.
const ROW: i32 = 62;
/// Thickness of a bar.
const BAR: i32 = 34;
/// Between names and bars, and between bars and values.
const GAP: i32 = 18;
/// Leaves with less than this part of the whole are summed in one row.
const LEAST_SHARE: f64 = 0.002;

/// The figure of one run; `None` when it has no peak. `cells` are those of all N: what was there before the
/// tasks comes from another one.
pub fn figure(results: &Results, run: &Run, cells: &[Cell]) -> Option<Figure> {
    let peak = run.peak.as_ref()?;
    let tasks = run.tasks?;
    let base = cells
        .iter()
        .filter(|cell| cell.program() == run.program && cell.tasks < tasks)
        .filter_map(|cell| Some((cell.tasks, cell.median()?.1)))
        .min_by_key(|(tasks, _)| *tasks);
    let rows = rows(peak, tasks, base);
    let finding = finding(run, peak, tasks, &rows);
    let how = match base {
        Some((fewest, _)) => format!(
            "B/task: growth since N = {}, divided by the tasks added.",
            thousands(fewest)
        ),
        None => "≤ B/task: the whole divided by N, so the runtime's base is in it.".to_owned(),
    };
    let heading = Heading {
        finding,
        failures: String::new(),
        explanations: vec![format!(
            "Resident memory at the peak, {}, by what it holds. {how}",
            counted(tasks, "task")
        )],
    };
    let shown = |class: &Class| peak.classes.get(*class) > 0;
    let classes = Class::ALL.into_iter().filter(shown);
    let mut entries: Vec<(Fill, &'static str)> = classes
        .map(|class| (Fill::Plain(style::class_colour(class)), class.name()))
        .collect();
    if kernel_bytes(peak).is_some() {
        entries.push((Fill::Hatched, "kernel, outside RSS"));
    }
    let body: Vec<Box<dyn Block>> = vec![
        Box::new(Space(24)),
        Box::new(Legend::new(&entries)),
        Box::new(Space(14)),
        Box::new(Rows::new(rows)),
        Box::new(Space(14)),
    ];
    let facts = frame::circumstances_of_run(results, run);
    Some(frame::figure(&heading, body, &facts))
}

/// The largest parts of a task's memory, or the whole where nothing can be said of a task.
fn finding(run: &Run, peak: &Peak, tasks: u64, rows: &[Row]) -> String {
    let mut parts: Vec<(f64, &Row)> = rows
        .iter()
        .filter_map(|row| Some((row.per_task?.0, row)))
        .collect();
    parts.sort_by(|one, other| other.0.total_cmp(&one.0));
    let all: f64 = parts.iter().map(|(bytes, _)| bytes.max(0.0)).sum();
    let large = parts
        .iter()
        .filter(|(bytes, _)| *bytes >= all * LEAST_SHARE_OF_A_TASK)
        .take(3);
    let words: Vec<String> = large
        .map(|(_, row)| format!("{} {}", beside(row).trim_end_matches("/task"), row.name))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => format!(
            "{}: {} for {}",
            run.label,
            human(peak.rss_bytes),
            counted(tasks, "task")
        ),
        words => format!("{}, each task: {}", run.label, frame::enumeration(words)),
    }
}

/// Parts of a task below this are not in the title.
const LEAST_SHARE_OF_A_TASK: f64 = 0.02;

/// From this share of RSS on, kernel memory is shown by its parts.
const KERNEL_IS_MUCH: f64 = 0.1;
/// Names of [`Kernel::parts`](crate::results::Kernel::parts) here, in their order.
const KERNEL_PARTS: [&str; 6] = [
    "kernel stacks",
    "page tables",
    "kernel objects",
    "unmapped shared memory",
    "socket buffers",
    "kernel, other",
];

/// One bar.
struct Row {
    name: &'static str,
    fill: Fill,
    bytes: u64,
    /// Bytes of a task, and whether that is a limit only; `None` where it would mean nothing.
    per_task: Option<(f64, bool)>,
}

fn rows(peak: &Peak, tasks: u64, base: Option<(u64, &Peak)>) -> Vec<Row> {
    let before = |leaf: Leaf| {
        let known = base.map(|(_, peak)| peak.leaves.iter().find(|it| it.leaf == leaf));
        known.map(|leaf| leaf.map_or(0, |leaf| leaf.bytes))
    };
    let per_task = |bytes: u64, before: Option<u64>| match (base, before) {
        (Some((fewest, _)), Some(before)) => {
            let grown = bytes as f64 - before as f64;
            Some((grown / (tasks - fewest) as f64, false))
        }
        _ if tasks >= FEWEST_TASKS => Some((bytes as f64 / tasks as f64, true)),
        _ => None,
    };
    let least = (peak.rss_bytes as f64 * LEAST_SHARE) as u64;
    let (shown, rest): (Vec<&LeafBytes>, Vec<&LeafBytes>) = peak
        .leaves
        .iter()
        .filter(|leaf| leaf.bytes > 0)
        .partition(|leaf| leaf.bytes >= least);
    let mut rows: Vec<Row> = shown
        .iter()
        .map(|leaf| Row {
            name: leaf.leaf.words(),
            fill: Fill::Plain(style::class_colour(leaf.class)),
            bytes: leaf.bytes,
            per_task: per_task(leaf.bytes, before(leaf.leaf)),
        })
        .collect();
    let bytes = rest.iter().map(|leaf| leaf.bytes).sum();
    if bytes > 0 {
        rows.push(Row {
            name: "less than 0.2 % each",
            fill: Fill::Plain(GREY),
            bytes,
            per_task: None,
        });
    }
    let kernel = kernel_parts(peak).into_iter();
    rows.extend(kernel.map(|(name, bytes, of): KernelPart| Row {
        name,
        fill: Fill::Hatched,
        bytes,
        per_task: per_task(bytes, base.map(|(_, peak)| of(peak))),
    }));
    rows
}

/// A part of kernel memory: its name, its bytes, and how to find them at another peak.
type KernelPart = (&'static str, u64, Box<dyn Fn(&Peak) -> u64>);

/// Kernel memory; where it is much, by its parts.
fn kernel_parts(peak: &Peak) -> Vec<KernelPart> {
    let Some(bytes) = kernel_bytes(peak) else {
        return Vec::new();
    };
    let whole = |peak: &Peak| kernel_bytes(peak).unwrap_or(0);
    if (bytes as f64) < peak.rss_bytes as f64 * KERNEL_IS_MUCH {
        return vec![("kernel memory", bytes, Box::new(whole))];
    }
    let least = (bytes as f64 * LEAST_SHARE) as u64;
    let part = |at: usize, peak: &Peak| peak.kernel.parts()[at].1.unwrap_or(0);
    let mut parts: Vec<KernelPart> = Vec::new();
    let mut shown = Vec::new();
    for (at, name) in KERNEL_PARTS.into_iter().enumerate() {
        let bytes = part(at, peak);
        if bytes > least {
            shown.push(at);
            parts.push((name, bytes, Box::new(move |peak| part(at, peak))));
        }
    }
    let rest = move |peak: &Peak| {
        let shown = shown.iter().map(|&at| part(at, peak));
        whole(peak).saturating_sub(shown.fold(0, u64::saturating_add))
    };
    let bytes = rest(peak);
    if bytes > 0 {
        parts.push(("kernel, the rest", bytes, Box::new(rest)));
    }
    parts
}

/// The bars under each other.
struct Rows {
    rows: Vec<Row>,
    /// Where names end and bars begin.
    left: i32,
}

impl Rows {
    fn new(rows: Vec<Row>) -> Rows {
        let widest = rows
            .iter()
            .map(|row| TEXT.width(row.name))
            .max()
            .unwrap_or(0);
        Rows {
            rows,
            left: MARGIN + widest + GAP,
        }
    }

    /// Pixels for so many bytes: the longest bar leaves room for the words behind it.
    fn pixels(&self, bytes: u64) -> i32 {
        let words = |row: &Row| NAME.width(&human(row.bytes)) + GAP + SMALL.width(&beside(row));
        let words = self.rows.iter().map(words).max().unwrap_or(0);
        let room = style::WIDTH - MARGIN - self.left - GAP - words;
        let longest = self
            .rows
            .iter()
            .map(|row| row.bytes)
            .max()
            .unwrap_or(1)
            .max(1);
        (bytes as f64 / longest as f64 * f64::from(room.max(100))).round() as i32
    }
}

/// What stands behind the bytes of a row: `272 B/task`.
fn beside(row: &Row) -> String {
    match row.per_task {
        None => String::new(),
        Some((bytes, is_limit)) => format!(
            "{}{} B/task",
            if is_limit { "≤ " } else { "" },
            frame::signed_thousands(bytes)
        ),
    }
}

impl Block for Rows {
    fn height(&self) -> i32 {
        self.rows.len() as i32 * ROW
    }

    fn draw(&self, area: &Area) -> Drawn {
        for (row, top) in self.rows.iter().zip((0..).step_by(ROW as usize)) {
            let middle = top + ROW / 2;
            let name = (self.left - GAP, middle + 9);
            drawing::text(area, name, HPos::Right, &TEXT, row.name)?;
            let right = self.left + self.pixels(row.bytes).max(2);
            let corners = [(self.left, middle - BAR / 2), (right, middle + BAR / 2)];
            drawing::rectangle(area, corners, row.fill)?;
            let value = (right + GAP, middle + 9);
            let width = drawing::text(area, value, HPos::Left, &NAME, &human(row.bytes))?;
            let after = (value.0 + width + GAP, value.1);
            drawing::text(area, after, HPos::Left, &SMALL, &beside(row))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peak(leaves: &[(Leaf, u64)]) -> Peak {
        let leaves: Vec<LeafBytes> = leaves
            .iter()
            .map(|&(leaf, bytes)| LeafBytes {
                class: leaf.class(),
                leaf,
                bytes,
            })
            .collect();
        Peak {
            at_seconds: 1.0,
            rss_bytes: leaves.iter().map(|leaf| leaf.bytes).sum(),
            pss_bytes: 0,
            vm_hwm_bytes: 0,
            tier: "B".into(),
            error_bound_bytes: 0,
            classes: Default::default(),
            leaves,
            regions: Vec::new(),
            made_by: Vec::new(),
            kernel: Default::default(),
            threads: 1,
            reserved_bytes: 0,
        }
    }

    #[test]
    fn bytes_of_a_task_are_the_growth_of_each_leaf() {
        let few = peak(&[(Leaf::Image, 2_000_000), (Leaf::MallocUsed, 30_000)]);
        let many = peak(&[
            (Leaf::MallocUsed, 27_230_000),
            (Leaf::HeapFree, 17_500_000),
            (Leaf::Image, 2_000_000),
            (Leaf::NativeStack, 4_096),
        ]);
        let per_task = |rows: Vec<Row>| -> Vec<(&'static str, String)> {
            let of_row = |row: &Row| (row.name, beside(row));
            rows.iter().map(of_row).collect()
        };
        assert_eq!(
            per_task(rows(&many, 100_001, Some((1, &few)))),
            [
                (Leaf::MallocUsed.words(), "272 B/task".into()),
                (Leaf::HeapFree.words(), "175 B/task".into()),
                (Leaf::Image.words(), "0 B/task".into()),
                ("less than 0.2 % each", String::new()),
            ]
        );
        let alone = per_task(rows(&many, 100_000, None));
        assert_eq!(alone[0].1, "≤ 272 B/task");
        assert_eq!(per_task(rows(&few, 10, None))[0].1, "");
    }
}
