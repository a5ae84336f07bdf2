//! `timeline`: RSS of one run over time, as a stack of its classes, with the phases of the program and
//! the peak.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingArea;
use plotters::element::{DashedPathElement, Polygon};
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, TRANSPARENT};

use crate::classify::Class;
use crate::results::{Peak, Results, Run, TimelinePoint};
use crate::units::{MIB, human, thousands};

use super::drawing::{self, Area, Block, Drawn, Figure, Fill, Space};
use super::frame::{self, Heading, Legend, counted};
use super::style::{self, AXIS, GREY, GRID, INK, KERNEL, MARGIN, NAME, SMALL};

/// Height of the plot without its axis.
const HEIGHT: i32 = 640;
/// Above the plot: names of the phases.
const PHASE_ROOM: i32 = 44;
/// Below the plot: seconds, and what they are.
const AXIS_ROOM: i32 = 78;
/// Lines across the plot, at most.
const TICKS: f64 = 6.0;

type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The figure of one run; `None` when its timeline has fewer than two compositions.
pub fn figure(results: &Results, run: &Run) -> Option<Figure> {
    let peak = run.peak.as_ref()?;
    let plot = Plot::new(run, peak)?;
    let heading = Heading {
        finding: finding(run, peak),
        failures: run
            .reason
            .as_ref()
            .map(|reason| format!("failed: {reason}"))
            .unwrap_or_default(),
        explanations: explanations(run, &plot),
    };
    let classes = plot.classes.iter().map(|&class| {
        let fill = Fill::Plain(style::class_colour(class));
        (fill, class.name())
    });
    let body: Vec<Box<dyn Block + '_>> = vec![
        Box::new(Space(24)),
        Box::new(Legend::new(&classes.collect::<Vec<_>>())),
        Box::new(Space(12)),
        Box::new(plot),
        Box::new(Space(24)),
    ];
    let facts = frame::circumstances_of_run(results, run);
    Some(frame::figure(&heading, body, &facts))
}

/// What is drawn, in seconds and MiB.
struct Plot<'a> {
    run: &'a Run,
    peak: (f64, f64),
    /// From the bottom of the stack up; those that are ever there.
    classes: Vec<Class>,
    composed: Vec<&'a TimelinePoint>,
    /// RSS and kernel memory, where the difference can be seen.
    with_kernel: Vec<(f64, f64)>,
    seconds: f64,
    mib: f64,
}

/// A class below this part of the height cannot be seen.
const VISIBLE: f64 = 0.002;
/// Kernel memory below this part of RSS gets no line of its own.
const KERNEL_MATTERS: f64 = 0.03;

impl<'a> Plot<'a> {
    fn new(run: &'a Run, peak: &Peak) -> Option<Plot<'a>> {
        let composed: Vec<&TimelinePoint> = run
            .timeline
            .iter()
            .filter(|point| point.classes.is_some())
            .collect();
        if composed.len() < 2 {
            return None;
        }
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let highest = run
            .timeline
            .iter()
            .map(|point| mib(point.rss_bytes))
            .fold(mib(peak.rss_bytes), f64::max);
        let with_kernel: Vec<(f64, f64)> = composed
            .iter()
            .filter_map(|point| {
                let kernel = point.kernel_bytes?;
                Some((point.seconds, mib(point.rss_bytes) + mib(kernel)))
            })
            .collect();
        let highest_total = with_kernel.iter().map(|point| point.1).fold(0.0, f64::max);
        let kernel_matters = highest_total > highest * (1.0 + KERNEL_MATTERS);
        let classes = Class::ALL
            .into_iter()
            .filter(|&class| {
                let of = |point: &&TimelinePoint| bytes_of(point, class);
                mib(composed.iter().map(of).max().unwrap_or(0)) > highest * VISIBLE
            })
            .collect();
        let ended = run.timeline.last().map_or(0.0, |point| point.seconds);
        Some(Plot {
            run,
            peak: (peak.at_seconds, mib(peak.rss_bytes)),
            classes,
            composed,
            mib: if kernel_matters {
                highest_total
            } else {
                highest
            } * 1.12,
            with_kernel: if kernel_matters {
                with_kernel
            } else {
                Vec::new()
            },
            seconds: run.wall_seconds.max(ended).max(1e-3),
        })
    }

    /// Upper edge of the stack up to and with `class`, over time.
    fn edge(&self, class: Option<Class>) -> Vec<(f64, f64)> {
        let below = match class {
            None => &[][..],
            Some(class) => {
                let place = Class::ALL.iter().position(|&other| other == class);
                &Class::ALL[..=place.unwrap_or(0)]
            }
        };
        let height = |point: &&TimelinePoint| -> f64 {
            let bytes: u64 = below.iter().map(|&class| bytes_of(point, class)).sum();
            bytes as f64 / MIB as f64
        };
        self.composed
            .iter()
            .map(|point| (point.seconds, height(point)))
            .collect()
    }
}

fn bytes_of(point: &TimelinePoint, class: Class) -> u64 {
    point.classes.map_or(0, |classes| classes.get(class))
}

impl Block for Plot<'_> {
    fn height(&self) -> i32 {
        PHASE_ROOM + HEIGHT + AXIS_ROOM
    }

    fn draw(&self, area: &Area) -> Drawn {
        let ticks = steps(self.mib);
        let tick_width = ticks
            .iter()
            .map(|tick| SMALL.width(&label(*tick, " MiB")))
            .max()
            .unwrap_or(0);
        let left = MARGIN + 16 + tick_width;
        let (above, below) = area.split_vertically(PHASE_ROOM);
        let mut plane: Plane = ChartBuilder::on(&below)
            .y_label_area_size(left)
            .margin_right(MARGIN)
            .x_label_area_size(AXIS_ROOM)
            .build_cartesian_2d(0.0..self.seconds, 0.0..self.mib)?;
        plane
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .light_line_style(TRANSPARENT)
            .y_labels(ticks.len())
            .y_label_style(SMALL.style(HPos::Right))
            .y_label_formatter(&|mib| label(*mib, " MiB"))
            .y_label_offset(2)
            .set_tick_mark_size(LabelAreaPosition::Left, 8)
            .x_labels(TICKS as usize + 2)
            .x_label_style(SMALL.style(HPos::Center))
            .x_label_formatter(&|seconds| label(*seconds, ""))
            .set_tick_mark_size(LabelAreaPosition::Bottom, 10)
            .x_desc("seconds after exec")
            .draw()?;
        let mut lower = None;
        for &class in &self.classes {
            let mut outline = self.edge(Some(class));
            outline.extend(self.edge(lower).into_iter().rev());
            let fill = style::class_colour(class).filled();
            plane.draw_series([Polygon::new(outline, fill)])?;
            lower = Some(class);
        }
        let rss = self.run.timeline.iter();
        let rss = rss.map(|point| (point.seconds, point.rss_bytes as f64 / MIB as f64));
        plane.draw_series(LineSeries::new(rss, INK.stroke_width(2)))?;
        if !self.with_kernel.is_empty() {
            let style = KERNEL.stroke_width(3);
            let points = self.with_kernel.clone();
            plane.draw_series(DashedLineSeries::new(points, 10, 6, style))?;
        }
        self.draw_phases(&above, &below, &plane)?;
        self.draw_peak(&below, &plane)?;
        let (from, to) = ((0.0, 0.0), (self.seconds, 0.0));
        plane.draw_series(LineSeries::new([from, to], AXIS.stroke_width(2)))?;
        Ok(())
    }
}

impl Plot<'_> {
    /// A line where a phase begins, and its name above it where it has the room.
    fn draw_phases(
        &self,
        above: &Area,
        plot: &DrawingArea<SVGBackend, Shift>,
        plane: &Plane,
    ) -> Drawn {
        let top = plot.get_base_pixel().1;
        for phase in &self.run.phases {
            let (from, bottom) = plane.backend_coord(&(phase.from_seconds, 0.0));
            let (to, _) = plane.backend_coord(&(phase.to_seconds, 0.0));
            if phase.from_seconds > 0.0 {
                let ends = [(from, 0), (from, bottom - top)];
                plot.draw(&DashedPathElement::new(ends, 4, 6, GREY.stroke_width(2)))?;
            }
            if SMALL.width(&phase.name) + 12 < to - from {
                let at = ((from + to) / 2, PHASE_ROOM - 14);
                drawing::text(above, at, HPos::Center, &SMALL, &phase.name)?;
            }
        }
        Ok(())
    }

    fn draw_peak(&self, plot: &DrawingArea<SVGBackend, Shift>, plane: &Plane) -> Drawn {
        let top = plot.get_base_pixel().1;
        let (x, y) = plane.backend_coord(&self.peak);
        for circle in drawing::dot((x, y - top), INK) {
            plot.draw(&circle)?;
        }
        let text = format!(
            "peak {} MiB",
            frame::mib((self.peak.1 * MIB as f64).round() as u64)
        );
        // Beside the dot, on the side that has the room.
        let (anchor, x) = if x > style::WIDTH / 2 {
            (HPos::Right, x - 16)
        } else {
            (HPos::Left, x + 16)
        };
        drawing::text(plot, (x, y - top - 14), anchor, &NAME, &text)?;
        Ok(())
    }
}

/// Round values from 0 to `most`.
fn steps(most: f64) -> Vec<f64> {
    let raw = most / TICKS;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= raw)
        .unwrap_or(power);
    let count = (most / step).floor() as usize;
    (0..=count).map(|index| index as f64 * step).collect()
}

/// A round value with its unit.
fn label(value: f64, unit: &str) -> String {
    // Steps of a power of ten come out of the addition with a tail.
    let rounded = (value * 1e6).round() / 1e6;
    if rounded >= 1000.0 {
        format!("{}{unit}", thousands(rounded as u64))
    } else {
        format!("{rounded}{unit}")
    }
}

/// The title: how high, when, and of what.
pub fn finding(run: &Run, peak: &Peak) -> String {
    let tasks = run
        .tasks
        .map(|tasks| format!(", {}", counted(tasks, "task")))
        .unwrap_or_default();
    let (largest, bytes) = Class::ALL
        .into_iter()
        .map(|class| (class, peak.classes.get(class)))
        .max_by_key(|&(_, bytes)| bytes)
        .expect("there are classes");
    let part = bytes as f64 / peak.rss_bytes.max(1) as f64 * 100.0;
    format!(
        "{}{tasks}: {} at the peak after {:.1} s, {part:.0} % of it {}",
        run.label,
        human(peak.rss_bytes),
        peak.at_seconds,
        largest.name()
    )
}

fn explanations(run: &Run, plot: &Plot) -> Vec<String> {
    let mut said = vec!["Resident memory (RSS) over time, by class.".to_owned()];
    if !plot.with_kernel.is_empty() {
        said[0] += " Dashed: with kernel memory.";
    }
    let spread = plot.composed.iter().map(|point| point.spread_bytes).max();
    if let Some(spread) = spread.filter(|&spread| spread > 0) {
        said[0] += &format!(
            " Classes were told while the program ran: RSS moved by up to {} meanwhile.",
            human(spread)
        );
    }
    let phases: Vec<String> = run
        .phases
        .iter()
        .map(|phase| {
            let seconds = phase.to_seconds - phase.from_seconds;
            format!("{} {}", phase.name, duration(seconds))
        })
        .collect();
    if !phases.is_empty() {
        said.push(format!("Phases: {}.", phases.join(", ")));
    }
    said
}

fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(steps(12.4), [0.0, 5.0, 10.0]);
        assert_eq!(steps(262.0).len(), 6);
        assert_eq!(label(steps(0.7)[1], " MiB"), "0.2 MiB");
        assert_eq!(label(1000.0, " MiB"), "1,000 MiB");
    }
}
