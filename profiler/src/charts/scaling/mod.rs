//! `scaling`: RSS and kernel memory over the number of tasks, both logarithmic, a line a program. What one task
//! adds stands beside the end of its line; a cross is where a program failed.

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
use crate::results::slopes::Slope;
use crate::results::summary::{Cell, kernel_bytes, programs};
use crate::units::{MIB, thousands};

use super::drawing::{self, Area, Block, Drawn, Figure, Space};
use super::frame::{self, Heading, counted};
use super::label_column;
use super::log_axis::{self, Tick, range};
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
pub fn figure(results: &Results, cells: &[Cell], slopes: &[Slope]) -> Figure {
    let lines: Vec<Line> = programs(cells)
        .iter()
        .enumerate()
        .map(|(place, name)| Line::new(place, name, cells, slopes))
        .collect();
    let (drawn, absent): (Vec<&Line>, Vec<&Line>) =
        lines.iter().partition(|line| line.end().is_some());

    let heading = Heading {
        finding: finding(&drawn, cells),
        failures: String::new(),
        explanations: explanations(&drawn, cells),
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
    /// What N is.
    axis: String,
}

impl<'a> Plot<'a> {
    fn new(lines: Vec<&'a Line<'a>>, cells: &[Cell]) -> Self {
        let mut counts: Vec<u64> = cells.iter().map(|cell| cell.tasks.max(1)).collect();
        counts.sort_unstable();
        counts.dedup();
        let axis = swept(cells).unwrap_or("concurrent tasks").to_owned();
        Plot {
            lines,
            counts,
            axis,
        }
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
        let ticks = log_axis::ticks(bytes, MIB as f64, "MiB");
        let tick_widths = ticks.iter().map(|tick| SMALL.width(&tick.label));
        let left = MARGIN + 16 + tick_widths.max().unwrap_or(0);
        let tasks = self.task_range();
        let (labelled, between): (Vec<&Tick>, Vec<&Tick>) =
            ticks.iter().partition(|tick| !tick.label.is_empty());
        let values = |ticks: Vec<&Tick>| ticks.iter().map(|tick| tick.value).collect::<Vec<_>>();
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
            .x_desc(&self.axis)
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
        .map(|tick| (tick.value, tick.label.clone()))
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
        let completed = line.points.iter().map(|point| (point.tasks, point.rss));
        let failed = line
            .failure
            .as_ref()
            .and_then(|failure| Some((failure.tasks, failure.rss?)));
        let points: Vec<_> = completed.chain(failed).collect();
        let style = line.colour.stroke_width(3);
        plane.draw_series(DashedLineSeries::new(points, 10, 6, style))?;
    }
    let totals = line.points.iter().map(|point| (point.tasks, point.total));
    let totals: Vec<_> = totals.collect();
    let style = line.colour.stroke_width(4);
    plane.draw_series(LineSeries::new(totals.iter().copied(), style))?;
    if let Some(failure) = &line.failure {
        let at = (failure.tasks, failure.total);
        let from = totals.last().copied();
        let style = line.colour.stroke_width(3);
        plane.draw_series(DashedLineSeries::new(
            from.into_iter().chain([at]),
            4,
            6,
            style,
        ))?;
        plane.draw_series([Cross::new(at, 10, FAILURE.stroke_width(4))])?;
    }
    for point in &line.points {
        if let Some((least, greatest)) = point.spread {
            let whisker = [(point.tasks, least), (point.tasks, greatest)];
            let style = line.colour.stroke_width(8);
            plane.draw_series(LineSeries::new(whisker, style))?;
        }
        let at = (point.tasks, point.total);
        plane.draw_series(drawing::dot(at, line.colour))?;
    }
    Ok(())
}

/// From a little below the least to a little above the greatest, lines of RSS included.
fn byte_range(lines: &[&Line]) -> (f64, f64) {
    let values = lines.iter().flat_map(|line| {
        let failure = line.failure.as_ref();
        let rss = line
            .points
            .iter()
            .map(|point| point.rss)
            .chain(failure.and_then(|failure| failure.rss));
        let shown_rss: Vec<f64> = rss.filter(|_| line.kernel_matters()).collect();
        line.points
            .iter()
            .flat_map(|point| [point.total].into_iter().chain(ends(point.spread)))
            .chain(failure.map(|failure| failure.total))
            .chain(shown_rss)
    });
    let (low, high) = range(values);
    (low / 1.3, high * 1.3)
}

fn ends(spread: Option<(f64, f64)>) -> impl Iterator<Item = f64> {
    spread
        .into_iter()
        .flat_map(|(least, greatest)| [least, greatest])
}

/// The parameter of which the values are N, in a sweep of a command.
fn swept<'a>(cells: &[Cell<'a>]) -> Option<&'a str> {
    let mut runs = cells.iter().map(|cell| cell.run());
    runs.find_map(|run| run.parameter.as_deref())
}

/// The title: the least and the greatest cost of a task.
fn finding(lines: &[&Line], cells: &[Cell]) -> String {
    let most = cells.iter().map(|cell| cell.tasks).max().unwrap_or(0);
    let least = cells.iter().map(|cell| cell.tasks).min().unwrap_or(0);
    let span = match swept(cells) {
        Some(name) => format!("{name} {} to {}", thousands(least), thousands(most)),
        None => format!("{} to {}", thousands(least), counted(most, "task")),
    };
    let each = match swept(cells) {
        Some(_) => "one more",
        None => "each task",
    };
    let mut slopes: Vec<(f64, &str)> = lines
        .iter()
        .filter_map(|line| Some((line.slope?.bytes_per_task, line.run.label.as_str())))
        .collect();
    slopes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bytes = frame::signed_thousands;
    match slopes.as_slice() {
        [] => format!("{span}: peak memory"),
        [(slope, program)] => format!("{span}: {each} adds {} B ({program})", bytes(*slope)),
        [(low, first), .., (high, last)] => {
            format!(
                "{span}: each adds {} B ({first}) to {} B ({last})",
                bytes(*low),
                bytes(*high)
            )
        }
    }
}

fn explanations(lines: &[&Line], cells: &[Cell]) -> Vec<String> {
    let peaks = || cells.iter().filter_map(|cell| Some(cell.median()?.1));
    let what = match peaks().any(|peak| kernel_bytes(peak).is_some()) {
        true => "Peak memory, RSS and what the kernel holds beside it,",
        false => "Peak resident memory (RSS)",
    };
    let over = swept(cells).map_or_else(
        || "the number of concurrent tasks".to_owned(),
        |name| format!("the value of {{{name}}} in the command, of which one is a task here"),
    );
    let mut said = vec![format!("{what} over {over}, both axes logarithmic.")];
    if lines.iter().any(|line| line.slope.is_some()) {
        said.push("B/task: median slope between all pairs of runs (Theil-Sen).".to_owned());
    }
    said.extend(frame::whiskers(&cells.iter().collect::<Vec<_>>()));
    let rss = "Dashed: RSS alone, where the kernel adds at least half of it.";
    match (
        lines.iter().any(|line| line.kernel_matters()),
        lines.iter().any(|line| line.failure.is_some()),
    ) {
        (true, true) => said.push(format!("{rss} ×: failed.")),
        (true, false) => said.push(rss.to_owned()),
        (false, true) => said.push("×: failed.".to_owned()),
        (false, false) => {}
    }
    said
}
