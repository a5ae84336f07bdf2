//! `scaling`: RSS over the number of tasks, both logarithmic, a line a program. What one task adds
//! stands beside the end of its line; a cross is where a program failed.

mod line;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange, LogCoord, WithKeyPoints};
use plotters::element::{Cross, DashedPathElement};
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, TRANSPARENT};

use crate::results::Results;
use crate::results::summary::{Cell, programs};
use crate::units::{MIB, thousands};

use super::drawing::{self, Area, Block, Drawn, Figure, Space};
use super::frame::{self, Heading, counted};
use super::label_column;
use super::style::{self, AXIS, FAILURE, GRID, MARGIN, NAME, SMALL};

use line::Line;

/// Least height of the plot.
const HEIGHT: i32 = 800;
/// From one label to the next.
const LABEL: i32 = 36;
/// Between the end of the plot and the labels: room for the leaders to bend.
const LEADER: i32 = 52;
/// Between a name and what stands beside it.
const SPACE: i32 = 14;
/// Below the plot: numbers of tasks and what they are.
const AXIS_ROOM: i32 = 78;

/// The plane of the plot: tasks and bytes.
type Axis = WithKeyPoints<LogCoord<f64>>;
type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// The figure over all N.
pub fn figure(results: &Results, cells: &[Cell]) -> Figure {
    let lines: Vec<Line> = programs(cells)
        .iter()
        .enumerate()
        .map(|(place, name)| Line::new(place, name, cells))
        .collect();
    let (drawn, absent): (Vec<&Line>, Vec<&Line>) =
        lines.iter().partition(|line| line.end().is_some());

    let heading = Heading {
        finding: finding(&drawn, cells),
        failures: String::new(),
        explanations: explanations(&drawn),
    };
    let mut body: Vec<Box<dyn Block + '_>> = vec![Box::new(Space(28))];
    if !drawn.is_empty() {
        body.push(Box::new(Plot::new(drawn, cells)));
        body.push(Box::new(Space(24)));
    }
    for line in absent {
        let reason = line
            .run
            .reason
            .as_deref()
            .unwrap_or("no reason was recorded");
        let note = format!("No figure for {}: {reason}", line.run.label);
        body.push(frame::paragraph(SMALL.coloured(FAILURE), &note, 2));
        body.push(Box::new(Space(4)));
    }
    body.push(Box::new(Space(16)));
    let shown: Vec<&Cell> = cells.iter().collect();
    frame::figure(&heading, body, &frame::circumstances(results, &shown))
}

/// Axes, lines and labels.
struct Plot<'a> {
    lines: Vec<&'a Line<'a>>,
    /// Every N, rising.
    counts: Vec<u64>,
}

impl<'a> Plot<'a> {
    fn new(lines: Vec<&'a Line<'a>>, cells: &[Cell]) -> Self {
        let mut counts: Vec<u64> = cells.iter().map(|cell| cell.tasks.max(1)).collect();
        counts.sort_unstable();
        counts.dedup();
        Plot { lines, counts }
    }

    /// From the least to the greatest number of tasks, failures included.
    fn task_range(&self) -> (f64, f64) {
        let counts = self.counts.iter().map(|count| *count as f64);
        let failures = self.lines.iter().filter_map(|line| line.failure.as_ref());
        range(counts.chain(failures.map(|failure| failure.tasks)))
    }
}

impl Block for Plot<'_> {
    fn height(&self) -> i32 {
        HEIGHT.max(self.lines.len() as i32 * LABEL + 40) + AXIS_ROOM
    }

    fn draw(&self, area: &Area) -> Drawn {
        let label_width =
            |line: &&Line| NAME.width(&line.name) + SPACE + SMALL.width(&line.detail());
        let labels = self.lines.iter().map(label_width).max().unwrap_or(0);
        let right = (style::WIDTH - MARGIN - labels - LEADER).max(600);
        let bytes = byte_range(&self.lines);
        let ticks = byte_ticks(bytes);
        let tick_widths = ticks.iter().map(|tick| SMALL.width(&tick.label));
        let left = MARGIN + 16 + tick_widths.max().unwrap_or(0);
        let tasks = self.task_range();
        let (labelled, between): (Vec<&Tick>, Vec<&Tick>) =
            ticks.iter().partition(|tick| !tick.label.is_empty());
        let values = |ticks: Vec<&Tick>| ticks.iter().map(|tick| tick.bytes).collect::<Vec<_>>();
        let counts = self.counts.iter().map(|count| *count as f64).collect();
        let mut plane: Plane = ChartBuilder::on(area)
            .y_label_area_size(left)
            .margin_right(style::WIDTH - right)
            .x_label_area_size(AXIS_ROOM)
            .build_cartesian_2d(
                (tasks.0..tasks.1).log_scale().with_key_points(counts),
                (bytes.0..bytes.1)
                    .log_scale()
                    .with_key_points(values(labelled))
                    .with_light_points(values(between)),
            )?;
        byte_axis(&mut plane, &ticks)?;
        self.task_axis(&mut plane)?;
        let places = self.draw_leaders(area, &plane, right)?;
        for (line, place) in self.lines.iter().zip(places) {
            draw_line(&mut plane, line)?;
            let (x, baseline) = (right + LEADER, place + 9);
            let width = drawing::text(area, (x, baseline), HPos::Left, &NAME, &line.name)?;
            let beside = (x + width + SPACE, baseline);
            drawing::text(area, beside, HPos::Left, &SMALL, &line.detail())?;
        }
        Ok(())
    }
}

impl Plot<'_> {
    fn task_axis(&self, plane: &mut Plane) -> Drawn {
        // From the right: the largest N must have its label, whichever others lack the room.
        let labels = self.counts.iter().rev().map(|count| {
            let value = *count as f64;
            let (x, _) = plane.backend_coord(&(value, plane.y_range().start));
            (value, x, thousands(*count))
        });
        let labels = frame::with_room(&SMALL, labels.collect());
        plane
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .axis_style(AXIS.stroke_width(2))
            .x_label_style(SMALL.style(HPos::Center))
            .x_label_formatter(&|count| frame::label_at(&labels, *count))
            .set_tick_mark_size(LabelAreaPosition::Bottom, 10)
            .x_desc("concurrent tasks")
            .draw()
    }

    /// Draws from the end of each line to its label. Returns where the labels are, from the top.
    fn draw_leaders(&self, area: &Area, plane: &Plane, right: i32) -> Drawn<Vec<i32>> {
        let top = area.get_base_pixel().1;
        let ends: Vec<(i32, i32)> = self
            .lines
            .iter()
            .filter_map(|line| {
                let (x, y) = plane.backend_coord(&line.end()?);
                Some((x, y - top))
            })
            .collect();
        let wished: Vec<f64> = ends.iter().map(|(_, y)| f64::from(*y)).collect();
        let bottom = f64::from(self.height() - AXIS_ROOM - 12);
        let places = label_column::place(&wished, f64::from(LABEL), 12.0, bottom);
        let places: Vec<i32> = places.into_iter().map(|y| y.round() as i32).collect();
        for ((line, (x, y)), place) in self.lines.iter().zip(ends).zip(&places) {
            let bend = (right + 8).max(x);
            let leader = [
                (x, y),
                (bend, y),
                (right + LEADER - 16, *place),
                (right + LEADER - 6, *place),
            ];
            // A line that ends early has a long way to its label: dots thick enough to carry its colour.
            if bend - x > 24 {
                let style = line.colour.stroke_width(3);
                area.draw(&DashedPathElement::new(leader, 3, 6, style))?;
            } else {
                drawing::line(area, &leader, line.colour, 2)?;
            }
        }
        Ok(places)
    }
}

fn byte_axis(plane: &mut Plane, ticks: &[Tick]) -> Drawn {
    let labels: Vec<(f64, String)> = ticks
        .iter()
        .map(|tick| (tick.bytes, tick.label.clone()))
        .collect();
    plane
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .axis_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(GRID.stroke_width(1))
        .y_label_style(SMALL.style(HPos::Right))
        .y_label_formatter(&|bytes| frame::label_at(&labels, *bytes))
        // plotters puts the middle of small letters on the line; figures are taller.
        .y_label_offset(2)
        .set_tick_mark_size(LabelAreaPosition::Left, 8)
        .draw()
}

fn draw_line(plane: &mut Plane, line: &Line) -> Drawn {
    if line.kernel_matters() {
        let completed = line.points.iter().map(|(tasks, _, total)| (*tasks, *total));
        let failed = line
            .failure
            .as_ref()
            .and_then(|failure| Some((failure.tasks, failure.total?)));
        let points: Vec<_> = completed.chain(failed).collect();
        let style = line.colour.stroke_width(3);
        plane.draw_series(DashedLineSeries::new(points, 10, 6, style))?;
    }
    let points: Vec<_> = line
        .points
        .iter()
        .map(|(tasks, rss, _)| (*tasks, *rss))
        .collect();
    let style = line.colour.stroke_width(4);
    plane.draw_series(LineSeries::new(points.iter().copied(), style))?;
    if let Some(failure) = &line.failure {
        let at = (failure.tasks, failure.rss);
        let from = points.last().copied();
        let style = line.colour.stroke_width(3);
        plane.draw_series(DashedLineSeries::new(
            from.into_iter().chain([at]),
            4,
            6,
            style,
        ))?;
        plane.draw_series([Cross::new(at, 10, FAILURE.stroke_width(4))])?;
    }
    for point in points {
        plane.draw_series(drawing::dot(point, line.colour))?;
    }
    Ok(())
}

/// A line across the plot.
struct Tick {
    bytes: f64,
    /// Empty for the lines between.
    label: String,
}

/// Powers of ten, and the steps between where there are few of those.
fn byte_ticks((low, high): (f64, f64)) -> Vec<Tick> {
    let (low, high) = (low / MIB as f64, high / MIB as f64);
    let (few, very_few) = (high / low < 1e5, high / low < 200.0);
    let mut ticks = Vec::new();
    for power in low.log10().floor() as i32..=high.log10().ceil() as i32 {
        for factor in [1.0, 2.0, 5.0] {
            let mib = factor * 10f64.powi(power);
            let is_power = factor == 1.0;
            if !(low..=high).contains(&mib) || !(is_power || few) {
                continue;
            }
            let label = match mib {
                _ if !(is_power || very_few) => String::new(),
                mib if mib < 1.0 => format!("{mib} MiB"),
                mib => format!("{} MiB", thousands(mib as u64)),
            };
            ticks.push(Tick {
                bytes: mib * MIB as f64,
                label,
            });
        }
    }
    ticks
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    (low, high.max(low * 2.0))
}

/// From a little below the least to a little above the greatest, kernel lines included.
fn byte_range(lines: &[&Line]) -> (f64, f64) {
    let values = lines.iter().flat_map(|line| {
        let failure = line.failure.as_ref();
        let totals = line
            .points
            .iter()
            .map(|(_, _, total)| *total)
            .chain(failure.and_then(|failure| failure.total));
        let shown_totals: Vec<f64> = totals.filter(|_| line.kernel_matters()).collect();
        line.points
            .iter()
            .map(|(_, rss, _)| *rss)
            .chain(failure.map(|failure| failure.rss))
            .chain(shown_totals)
    });
    let (low, high) = range(values);
    (low / 1.3, high * 1.3)
}

/// The title: the least and the greatest cost of a task.
fn finding(lines: &[&Line], cells: &[Cell]) -> String {
    let most = cells.iter().map(|cell| cell.tasks).max().unwrap_or(0);
    let least = cells.iter().map(|cell| cell.tasks).min().unwrap_or(0);
    let span = format!("{} to {}", thousands(least), counted(most, "task"));
    let mut slopes: Vec<(f64, &str)> = lines
        .iter()
        .filter_map(|line| Some((line.slope?, line.run.label.as_str())))
        .collect();
    slopes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bytes = frame::signed_thousands;
    match slopes.as_slice() {
        [] => format!("{span}: resident memory"),
        [(slope, program)] => format!("{span}: each task adds {} B ({program})", bytes(*slope)),
        [(low, first), .., (high, last)] => {
            format!(
                "{span}: each adds {} B ({first}) to {} B ({last})",
                bytes(*low),
                bytes(*high)
            )
        }
    }
}

fn explanations(lines: &[&Line]) -> Vec<String> {
    let mut said = vec![
        "Peak resident memory (RSS) over the number of concurrent tasks, both axes logarithmic."
            .to_owned(),
    ];
    if lines.iter().any(|line| line.slope.is_some()) {
        said.push("B/task: RSS at a program's largest N less that at its smallest, divided by the tasks added.".to_owned());
    }
    let kernel = "Dashed: with kernel memory, where that adds at least half of RSS.";
    match (
        lines.iter().any(|line| line.kernel_matters()),
        lines.iter().any(|line| line.failure.is_some()),
    ) {
        (true, true) => said.push(format!("{kernel} ×: failed.")),
        (true, false) => said.push(kernel.to_owned()),
        (false, true) => said.push("×: failed.".to_owned()),
        (false, false) => {}
    }
    said
}
