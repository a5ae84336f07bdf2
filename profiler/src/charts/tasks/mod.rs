//! `tasks-<N>`: where the memory of N tasks goes. One stacked bar a program, shortest first: RSS by
//! class, then kernel memory hatched; a program that did not complete is a line that says why.

mod wording;

pub use wording::{explanations, failures, finding};

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::element::{Cross, PathElement};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, TRANSPARENT, WHITE};

use crate::classify::Class;
use crate::results::summary::{Cell, kernel_bytes, total_bytes};
use crate::results::{Outcome, Peak, Results, Run};
use crate::units::{MIB, thousands};

use super::drawing::{self, Area, Block, Drawn, Figure, Fill, Space};
use super::frame::{self, Heading, Legend, mib};
use super::style::{self, AXIS, FAILURE, GREY, GRID, INK, MARGIN, NAME, SMALL, TEXT};

/// From one bar to the next.
const ROW: i32 = 86;
/// Thickness of a bar.
const BAR: i32 = 48;
/// Below the bars: tick labels.
const AXIS_ROOM: i32 = 48;
/// Widest that a program's name may be.
const NAME_ROOM: i32 = 380;
/// Ticks on the axis, at most.
const TICKS: usize = 7;
/// Between names and bars, and between bars and values.
const GAP: i32 = 18;
/// Between two texts on a line.
const SPACE: i32 = 14;
/// From the middle of a row to the baselines of its text: a single line, or the first and the second of two.
const BASELINES: [i32; 3] = [9, -6, 24];

/// MiB to the right; down, the share of the height.
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The figure for `count` tasks. `cells` are those of all N: the base of a program comes from another one.
pub fn figure(results: &Results, cells: &[Cell], count: u64) -> Figure {
    let mut shown: Vec<&Cell> = cells.iter().filter(|cell| cell.tasks == count).collect();
    // Stable, so that failures stay in the order of running.
    shown.sort_by_key(|cell| {
        cell.median()
            .map_or(u64::MAX, |(_, peak)| total_bytes(peak))
    });
    let heading = Heading {
        finding: wording::finding(&shown, count),
        failures: wording::failures(&shown),
        explanations: wording::explanations(&shown, cells),
    };
    let mut body: Vec<Box<dyn Block + '_>> = vec![Box::new(Space(28))];
    body.extend(bars(&shown, cells));
    body.push(Box::new(Space(20)));
    frame::figure(&heading, body, &frame::circumstances(results, &shown))
}

/// The legend, and one bar a cell, in this order.
pub fn bars<'a>(shown: &[&Cell<'a>], cells: &[Cell]) -> Vec<Box<dyn Block + 'a>> {
    let mut blocks: Vec<Box<dyn Block + 'a>> = Vec::new();
    if shown.iter().any(|cell| cell.median().is_some()) {
        blocks.push(Box::new(legend(shown)));
        blocks.push(Box::new(Space(18)));
    }
    blocks.push(Box::new(Rows::new(shown, cells)));
    blocks
}

/// The programs under each other.
struct Rows<'a> {
    rows: Vec<Row<'a>>,
    /// Where names end and bars begin.
    left: i32,
}

impl<'a> Rows<'a> {
    fn new(shown: &[&Cell<'a>], cells: &[Cell]) -> Self {
        let rows: Vec<Row> = shown.iter().map(|cell| Row::new(cell, cells)).collect();
        let left = MARGIN + GAP + rows.iter().map(Row::name_width).max().unwrap_or(0);
        Rows { rows, left }
    }

    /// The end of the axis, in MiB and pixels. As many pixels a byte as leave room for each bar's own
    /// label, so that a single long bar does not press the others. `None` when there is no bar.
    fn scale(&self) -> Option<(f64, i32)> {
        let room = style::WIDTH - MARGIN - self.left - GAP;
        let bars = || {
            self.rows
                .iter()
                .filter_map(|row| Some((row, row.bar.as_ref()?)))
        };
        let longest = bars()
            .map(|(_, bar)| bar.reach())
            .reduce(f64::max)?
            .max(1.0);
        let pixels_per_byte = bars()
            .map(|(row, bar)| {
                let failure = match row.failure.as_deref() {
                    Some(text) => 20 + SMALL.width(text),
                    None => 0,
                };
                f64::from((room - bar.label_width() - failure).max(120)) / bar.reach().max(1.0)
            })
            .reduce(f64::min)?;
        let width = (longest * pixels_per_byte).round().max(1.0) as i32;
        Some((longest / MIB as f64, self.left + width))
    }
}

impl Block for Rows<'_> {
    fn height(&self) -> i32 {
        let axis = if self.scale().is_some() { AXIS_ROOM } else { 0 };
        self.rows.len() as i32 * ROW + axis
    }

    fn draw(&self, area: &Area) -> Drawn {
        let scale = self.scale();
        let chart = scale.map(|scale| self.draw_axis(area, scale)).transpose()?;
        for (row, middle) in self.rows.iter().zip((ROW / 2..).step_by(ROW as usize)) {
            row.draw_name(area, (self.left - GAP, middle))?;
            match (&row.bar, &chart) {
                (Some(bar), Some(chart)) => {
                    let x_of = |bytes: f64| chart.backend_coord(&(bytes / MIB as f64, 0.0)).0;
                    let failure = row.failure.as_deref().unwrap_or_default();
                    bar.draw(area, middle, &x_of, failure)?;
                }
                _ => row.draw_failure(area, (self.left, middle))?,
            }
        }
        Ok(())
    }
}

impl Rows<'_> {
    /// Draws grid lines and their labels: the chart on whose x, in MiB, bars can be put.
    fn draw_axis<'b>(&self, area: &Area<'b>, (longest, right): (f64, i32)) -> Drawn<Chart<'_, 'b>> {
        let mut chart = ChartBuilder::on(area)
            .margin_right(style::WIDTH - right)
            .y_label_area_size(self.left)
            .x_label_area_size(AXIS_ROOM)
            .build_cartesian_2d(0.0..longest, 0.0..1.0)?;
        let ticks = chart.as_coord_spec().x_spec().key_points(BoldPoints(TICKS));
        let labels = ticks.iter().map(|tick| {
            let unit = if *tick == 0.0 { " MiB" } else { "" };
            let label = if ticks.get(1).is_some_and(|step| *step < 1.0) {
                format!("{tick:.1}{unit}")
            } else {
                format!("{}{unit}", thousands(tick.round() as u64))
            };
            (*tick, chart.backend_coord(&(*tick, 0.0)).0, label)
        });
        let labels = frame::with_room(&SMALL, labels.collect());
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .axis_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .light_line_style(TRANSPARENT)
            .x_labels(TICKS)
            .x_label_style(SMALL.style(HPos::Center))
            .x_label_formatter(&|tick| frame::label_at(&labels, *tick))
            .set_all_tick_mark_size(6)
            .draw()?;
        let base = PathElement::new([(0.0, 0.0), (0.0, 1.0)], AXIS.stroke_width(2));
        chart.draw_series([base])?;
        Ok(chart)
    }
}

/// One program: its name, and its bar with what stands at its end, or the reason why there is none.
struct Row<'a> {
    run: &'a Run,
    name: String,
    version: String,
    bar: Option<Bar<'a>>,
    failure: Option<String>,
    /// What a run that failed had come to.
    reached: String,
}

struct Bar<'a> {
    peak: &'a Peak,
    spread: Option<(u64, u64)>,
    value: String,
    with_kernel: String,
    per_task: String,
}

impl<'a> Row<'a> {
    fn new(cell: &Cell<'a>, cells: &[Cell]) -> Self {
        let run = cell.run();
        let bar = cell.median().map(|(_, peak)| Bar {
            peak,
            spread: cell.spread(),
            value: format!("{} MiB", mib(peak.rss_bytes)),
            with_kernel: kernel_bytes(peak)
                .map(|_| format!("{} with kernel", mib(total_bytes(peak))))
                .unwrap_or_default(),
            per_task: wording::per_task_label(cell, cells),
        });
        let reached = cell.failure().map(wording::reached).unwrap_or_default();
        let failure = match &bar {
            None => Some(wording::failure(cell.failure().unwrap_or(run))),
            Some(_) if cell.failures() > 0 => Some(format!(
                "{} of {} runs failed",
                cell.failures(),
                cell.repeats()
            )),
            Some(_) => None,
        };
        Row {
            run,
            name: NAME.shorten(&run.label, NAME_ROOM),
            version: match cell.load_label() {
                load if load.is_empty() => SMALL.shorten(&run.version, NAME_ROOM),
                load => load.trim_start_matches(", ").to_owned(),
            },
            bar,
            failure,
            reached,
        }
    }

    fn name_width(&self) -> i32 {
        NAME.width(&self.name).max(SMALL.width(&self.version))
    }

    fn draw_name(&self, area: &Area, (x, middle): (i32, i32)) -> Drawn {
        let [single, first, second] = BASELINES.map(|baseline| middle + baseline);
        let name = if self.version.is_empty() {
            single
        } else {
            first
        };
        drawing::text(area, (x, name), HPos::Right, &NAME, &self.name)?;
        drawing::text(area, (x, second), HPos::Right, &SMALL, &self.version)?;
        Ok(())
    }

    fn draw_failure(&self, area: &Area, (left, middle): (i32, i32)) -> Drawn {
        let colour = if self.run.outcome == Outcome::Unavailable {
            GREY
        } else {
            FAILURE
        };
        area.draw(&Cross::new((left + 16, middle), 10, colour.stroke_width(4)))?;
        let kind = TEXT.coloured(colour);
        let start = left + 44;
        let reason = self.failure.as_deref().unwrap_or_default();
        let lines = failure_lines(reason, &self.reached, style::WIDTH - MARGIN - start);
        let rise = (lines.len() as i32 - 1) * kind.leading() / 2;
        drawing::lines(area, (start, middle + BASELINES[0] - rise), &kind, &lines)
    }
}

impl Bar<'_> {
    /// Width in pixels of what stands at the end of the bar.
    fn label_width(&self) -> i32 {
        let first = NAME.width(&self.value) + SPACE + SMALL.width(&self.with_kernel);
        first.max(SMALL.width(&self.per_task))
    }

    /// The greatest number of bytes that must have room: a whisker may reach beyond the bar.
    fn reach(&self) -> f64 {
        let total = total_bytes(self.peak);
        let reach = self
            .spread
            .map_or(total, |(_, greatest)| greatest.max(total)) as f64;
        // A document whose classes do not sum to RSS is wrong, but must not be drawn over its labels.
        reach.max(self.segments().last().map_or(0.0, |(_, end)| *end))
    }

    /// What each segment is filled with, and the byte at which it ends and the next begins.
    fn segments(&self) -> Vec<(Fill, f64)> {
        let classes = Class::ALL.into_iter().map(|class| {
            let bytes = self.peak.classes.get(class);
            (Fill::Plain(style::class_colour(class)), bytes)
        });
        let kernel = kernel_bytes(self.peak).map(|bytes| (Fill::Hatched, bytes));
        let mut end = 0.0;
        let segments = classes.chain(kernel).filter(|(_, bytes)| *bytes > 0);
        segments
            .map(|(fill, bytes)| {
                end += bytes as f64;
                (fill, end)
            })
            .collect()
    }

    fn draw(&self, area: &Area, middle: i32, x_of: &dyn Fn(f64) -> i32, failure: &str) -> Drawn {
        let (top, bottom) = (middle - BAR / 2, middle + BAR / 2);
        let mut start = x_of(0.0);
        for (fill, end) in self.segments() {
            let end = x_of(end);
            drawing::rectangle(area, [(start, top), (end, bottom)], fill)?;
            start = end;
        }
        if let Some((least, greatest)) = self.spread {
            let span = (x_of(least as f64), x_of(greatest as f64));
            whisker(area, span, middle)?;
        }
        let end = (x_of(self.reach()) + GAP, middle);
        self.draw_label(area, end, failure)
    }

    fn draw_label(&self, area: &Area, (x, middle): (i32, i32), failure: &str) -> Drawn {
        let [single, first, second] = BASELINES.map(|baseline| middle + baseline);
        let one_line = self.per_task.is_empty() && failure.is_empty();
        let y = if one_line { single } else { first };
        let width = drawing::text(area, (x, y), HPos::Left, &NAME, &self.value)?;
        let beside = (x + width + SPACE, y);
        drawing::text(area, beside, HPos::Left, &SMALL, &self.with_kernel)?;

        let width = drawing::text(area, (x, second), HPos::Left, &SMALL, &self.per_task)?;
        let space = if width > 0 { 20 } else { 0 };
        let beside = (x + width + space, second);
        let kind = SMALL.coloured(FAILURE);
        drawing::text(area, beside, HPos::Left, &kind, failure)?;
        Ok(())
    }
}

/// Reason and what was reached, in two lines at most; a long reason is cut, not the figures behind it.
fn failure_lines(reason: &str, reached: &str, room: i32) -> Vec<String> {
    let wrap = |text: &str, lines| TEXT.wrap(text, room, lines);
    if reached.is_empty() {
        return wrap(reason, 2);
    }
    let whole = wrap(&format!("{reason}; {reached}"), 3);
    if whole.len() <= 2 {
        whole
    } else {
        [wrap(reason, 1), wrap(reached, 1)].concat()
    }
}

fn whisker(area: &Area, (from, to): (i32, i32), middle: i32) -> Drawn {
    // White under the ink, so that it is seen over dark segments too.
    for (colour, width) in [(WHITE, 8), (INK, 3)] {
        drawing::line(area, &[(from, middle), (to, middle)], colour, width)?;
        for end in [from, to] {
            let stroke = [(end, middle - 10), (end, middle + 10)];
            drawing::line(area, &stroke, colour, width)?;
        }
    }
    Ok(())
}

fn legend(shown: &[&Cell]) -> Legend {
    let peaks: Vec<&Peak> = shown
        .iter()
        .filter_map(|cell| Some(cell.median()?.1))
        .collect();
    let mut entries: Vec<(Fill, &str)> = Class::ALL
        .iter()
        .map(|class| (Fill::Plain(style::class_colour(*class)), class.name()))
        .collect();
    if peaks.iter().any(|peak| kernel_bytes(peak).is_some()) {
        entries.push((Fill::Hatched, "kernel memory, outside RSS"));
    }
    Legend::new(&entries)
}
