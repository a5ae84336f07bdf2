//! `base-slope`: what a runtime costs against what each of its tasks costs, both logarithmic, a dot a program with
//! its intervals.

mod labels;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange, LogCoord, WithKeyPoints};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor, TRANSPARENT};

use crate::results::Results;
use crate::results::slopes::{Slope, whole};
use crate::results::summary::{Cell, programs};
use crate::units::MIB;

use super::drawing::{self, Area, Block, Drawn, Figure, Space};
use super::frame::{self, Heading, signed_thousands};
use super::log_axis::{self, Tick, ticks};
use super::style::{self, AXIS, GRID, MARGIN, NAME, SMALL};

/// Height of the plot without its axis.
const HEIGHT: i32 = 900;
/// Below the plot: ticks, and what they are.
const AXIS_ROOM: i32 = 78;
/// Widest that a name may be.
const NAME_ROOM: i32 = 340;

type Axis = WithKeyPoints<LogCoord<f64>>;
type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// The figure; `None` where no program has both a base and a slope above 0.
pub fn figure(results: &Results, cells: &[Cell], slopes: &[Slope]) -> Option<Figure> {
    let mut dots = Vec::new();
    let mut left_out = Vec::new();
    for (place, program) in programs(cells).into_iter().enumerate() {
        let run = cells.iter().find(|cell| cell.program() == program)?.run();
        let Some(slope) = whole(slopes, program) else {
            continue;
        };
        if slope.base_bytes > 0.0 && slope.bytes_per_task > 0.0 {
            let colour = style::program_colour(run.colour.as_deref(), place);
            dots.push(Dot::new(&run.label, slope, colour));
        } else {
            left_out.push(run.label.as_str());
        }
    }
    if dots.is_empty() {
        return None;
    }
    let heading = Heading {
        finding: finding(&dots),
        failures: String::new(),
        explanations: explanations(&dots),
    };
    let mut body: Vec<Box<dyn Block>> = vec![
        Box::new(Space(28)),
        Box::new(Plot { dots }),
        Box::new(Space(20)),
    ];
    if !left_out.is_empty() {
        let left_out = frame::enumeration(&left_out);
        let note = format!("Not shown, because base or growth is not above 0: {left_out}.");
        body.push(frame::paragraph(SMALL, &note, 2));
        body.push(Box::new(Space(12)));
    }
    let shown: Vec<&Cell> = cells.iter().collect();
    let facts = frame::circumstances(results, &shown);
    Some(frame::figure(&heading, body, &facts))
}

/// One program.
struct Dot {
    label: String,
    detail: String,
    colour: RGBColor,
    base: f64,
    slope: f64,
    base_range: Option<[f64; 2]>,
    interval: Option<[f64; 2]>,
}

impl Dot {
    fn new(label: &str, slope: &Slope, colour: RGBColor) -> Dot {
        // What a logarithmic axis can show of a range.
        let positive = |range: Option<[f64; 2]>| range.filter(|[low, _]| *low > 0.0);
        Dot {
            label: NAME.shorten(label, NAME_ROOM),
            detail: format!("{} B", signed_thousands(slope.bytes_per_task)),
            colour,
            base: slope.base_bytes,
            slope: slope.bytes_per_task,
            base_range: positive(slope.base_range),
            interval: positive(slope.ci95),
        }
    }
}

struct Plot {
    dots: Vec<Dot>,
}

impl Plot {
    fn ranges(&self) -> [(f64, f64); 2] {
        let widened = |(low, high): (f64, f64), more: f64| (low / more, high * more);
        let bases = self
            .dots
            .iter()
            .flat_map(|dot| dot.base_range.unwrap_or([dot.base, dot.base]));
        let slopes = self
            .dots
            .iter()
            .flat_map(|dot| dot.interval.unwrap_or([dot.slope, dot.slope]));
        [
            widened(log_axis::range(bases), 1.6),
            widened(log_axis::range(slopes), 1.6),
        ]
    }
}

impl Block for Plot {
    fn height(&self) -> i32 {
        HEIGHT + AXIS_ROOM
    }

    fn draw(&self, area: &Area) -> Drawn {
        let [bases, slopes] = self.ranges();
        let (x_ticks, y_ticks) = (ticks(bases, MIB as f64, "MiB"), ticks(slopes, 1.0, "B"));
        let widths = y_ticks.iter().map(|tick| SMALL.width(&tick.label));
        let left = MARGIN + 16 + widths.max().unwrap_or(0);
        let mut plane: Plane = ChartBuilder::on(area)
            .y_label_area_size(left)
            .margin_right(MARGIN)
            .x_label_area_size(AXIS_ROOM)
            .build_cartesian_2d(axis(bases, &x_ticks), axis(slopes, &y_ticks))?;
        mesh(&mut plane, &x_ticks, &y_ticks)?;
        for dot in &self.dots {
            draw_intervals(area, &plane, dot)?;
        }
        for dot in &self.dots {
            plane.draw_series(drawing::dot((dot.base, dot.slope), dot.colour))?;
        }
        let top = area.get_base_pixel().1;
        let centres: Vec<(i32, i32)> = self
            .dots
            .iter()
            .map(|dot| {
                let (x, y) = plane.backend_coord(&(dot.base, dot.slope));
                (x, y - top)
            })
            .collect();
        let width = |dot: &Dot| NAME.width(&dot.label) + 10 + SMALL.width(&dot.detail);
        let widths: Vec<i32> = self.dots.iter().map(width).collect();
        let bounds = (left, style::WIDTH - MARGIN, HEIGHT);
        let places = labels::place(&centres, &widths, bounds);
        for ((dot, centre), place) in self.dots.iter().zip(&centres).zip(places) {
            if place.far {
                drawing::line(area, &[*centre, place.anchor()], dot.colour, 2)?;
            }
            let (x, baseline) = (place.left, place.middle + 9);
            let name = drawing::text(area, (x, baseline), HPos::Left, &NAME, &dot.label)?;
            let beside = (x + name + 10, baseline);
            drawing::text(area, beside, HPos::Left, &SMALL, &dot.detail)?;
        }
        Ok(())
    }
}

fn axis((low, high): (f64, f64), ticks: &[Tick]) -> Axis {
    (low..high)
        .log_scale()
        .with_key_points(ticks.iter().map(|tick| tick.value).collect())
}

fn mesh(plane: &mut Plane, x_ticks: &[Tick], y_ticks: &[Tick]) -> Drawn {
    let labels = |ticks: &[Tick]| -> Vec<(f64, String)> {
        let label = |tick: &Tick| (tick.value, tick.label.clone());
        ticks.iter().map(label).collect()
    };
    let (x_labels, y_labels) = (labels(x_ticks), labels(y_ticks));
    plane
        .configure_mesh()
        .axis_style(AXIS.stroke_width(2))
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .x_label_style(SMALL.style(HPos::Center))
        .x_label_formatter(&|value| frame::label_at(&x_labels, *value))
        .y_label_style(SMALL.style(HPos::Right))
        .y_label_formatter(&|value| frame::label_at(&y_labels, *value))
        .y_label_offset(2)
        .x_desc("base: memory without a task")
        .set_tick_mark_size(LabelAreaPosition::Left, 8)
        .set_tick_mark_size(LabelAreaPosition::Bottom, 10)
        .draw()
}

/// A bar across for the base, and one up and down for the slope.
fn draw_intervals(area: &Area, plane: &Plane, dot: &Dot) -> Drawn {
    let top = area.get_base_pixel().1;
    let at = |base: f64, slope: f64| {
        let (x, y) = plane.backend_coord(&(base, slope));
        (x, y - top)
    };
    let across = dot
        .base_range
        .map(|[low, high]| [at(low, dot.slope), at(high, dot.slope)]);
    let upright = dot
        .interval
        .map(|[low, high]| [at(dot.base, low), at(dot.base, high)]);
    for ends in [across, upright].into_iter().flatten() {
        drawing::line(area, &ends, dot.colour, 3)?;
    }
    Ok(())
}

/// The title: who has the least of each.
fn finding(dots: &[Dot]) -> String {
    let by = |of: fn(&Dot) -> f64| {
        let mut sorted: Vec<&Dot> = dots.iter().collect();
        sorted.sort_by(|one, other| of(one).total_cmp(&of(other)));
        sorted
    };
    let (by_base, by_slope) = (by(|dot| dot.base), by(|dot| dot.slope));
    let mib = |dot: &Dot| format!("{:.1} MiB ({})", dot.base / MIB as f64, dot.label);
    let bytes = |dot: &Dot| format!("{} B ({})", signed_thousands(dot.slope), dot.label);
    match (by_base.as_slice(), by_slope.as_slice()) {
        ([first, .., last], [least, .., most]) => format!(
            "A runtime takes {} to {}, a task {} to {}",
            mib(first),
            mib(last),
            bytes(least),
            bytes(most)
        ),
        ([one, ..], _) => format!(
            "{} takes {:.1} MiB, and {} B a task",
            one.label,
            one.base / MIB as f64,
            signed_thousands(one.slope)
        ),
        _ => String::new(),
    }
}

fn explanations(dots: &[Dot]) -> Vec<String> {
    let mut said = vec![
        "Upwards: bytes that a task adds; to the right: what is there without one. RSS and kernel memory, from a line \
         through all runs (Theil-Sen); both axes logarithmic."
            .to_owned(),
    ];
    if dots.iter().any(|dot| dot.interval.is_some()) {
        said.push(
            "Bars: 95 % interval of the slope; the base's range over the runs at the smallest N."
                .to_owned(),
        );
    } else {
        said.push("No intervals: too few runs (--repeat).".to_owned());
    }
    said
}
