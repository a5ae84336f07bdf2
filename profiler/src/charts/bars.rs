//! Horizontal bars in groups: a name on the left, one or more bars under each other beside it, a value at the
//! end of each.

use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::element::Cross;
use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use super::drawing::{self, Area, Block, Drawn, Fill};
use super::frame;
use super::style::{self, AXIS, FAILURE, GRID, MARGIN, NAME, SMALL};

/// From one bar to the next of its group.
const STEP: i32 = 38;
/// Thickness of a bar.
const THICKNESS: i32 = 28;
/// Between two groups.
const APART: i32 = 18;
/// Least height of a group, which must hold a name and a second line.
const LEAST: i32 = 64;
/// Below the bars: tick labels.
const AXIS_ROOM: i32 = 48;
/// Ticks on the axis, at most.
const TICKS: usize = 6;
/// Widest that a name may be.
const NAME_ROOM: i32 = 380;
/// Between names, marks, bars and values.
const GAP: i32 = 16;

/// One bar, or the reason why there is none.
pub struct Bar {
    /// What stands left of it: which of the group's bars it is. May be empty.
    pub mark: String,
    /// From the axis on: what each is filled with, and its length in units of the axis.
    pub segments: Vec<(Fill, f64)>,
    /// At its end.
    pub value: String,
    /// Beside that, in small type.
    pub beside: String,
    /// Why there is no bar; then the fields above but `mark` do not count.
    pub missing: Option<String>,
}

/// Bars of one program.
pub struct Group {
    /// Its name.
    pub name: String,
    /// Below the name, in small type. May be empty.
    pub below: String,
    /// Its bars, from the top.
    pub bars: Vec<Bar>,
}

impl Group {
    fn height(&self) -> i32 {
        let least = if self.below.is_empty() { STEP } else { LEAST };
        (self.bars.len() as i32 * STEP).max(least)
    }
}

/// All groups under each other, on one axis.
pub struct Groups<F> {
    groups: Vec<Group>,
    /// The words of a tick.
    tick: F,
    /// End of the axis: the longest bar, or a length of its own.
    longest: f64,
    /// Where bars begin, and where marks end.
    left: i32,
}

impl<F: Fn(f64) -> String> Groups<F> {
    /// `least_axis` is the least length of the axis; names that are too long are cut.
    pub fn new(mut groups: Vec<Group>, least_axis: f64, tick: F) -> Self {
        for group in &mut groups {
            group.name = NAME.shorten(&group.name, NAME_ROOM);
            group.below = SMALL.shorten(&group.below, NAME_ROOM);
        }
        let bars = || groups.iter().flat_map(|group| &group.bars);
        let longest = bars().map(length).fold(least_axis, f64::max);
        let names = groups
            .iter()
            .map(|group| NAME.width(&group.name).max(SMALL.width(&group.below)));
        let marks = bars().map(|bar| SMALL.width(&bar.mark)).max().unwrap_or(0);
        let marks = if marks > 0 { marks + GAP } else { 0 };
        let left = MARGIN + names.max().unwrap_or(0) + GAP + marks;
        Groups {
            groups,
            tick,
            longest,
            left,
        }
    }

    /// As many pixels a unit as leave room for each bar's own words.
    fn pixels_per_unit(&self) -> f64 {
        let room = style::WIDTH - MARGIN - self.left;
        let of_bar = |bar: &Bar| {
            let words = GAP + NAME.width(&bar.value) + GAP + SMALL.width(&bar.beside);
            f64::from((room - words).max(120)) / length(bar)
        };
        let whole = f64::from(room - GAP) / self.longest;
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        bars.filter(|bar| length(bar) > 0.0)
            .map(of_bar)
            .fold(whole, f64::min)
    }

    fn draw_axis(&self, area: &Area, pixels_per_unit: f64, bottom: i32) -> Drawn {
        let axis: RangedCoordf64 = (0.0..self.longest).into();
        let place = |value: f64| self.left + (value * pixels_per_unit).round() as i32;
        let ticks = axis.key_points(BoldPoints(TICKS));
        let labels = ticks
            .iter()
            .map(|&tick| (tick, place(tick), (self.tick)(tick)));
        let labels = frame::with_room(&SMALL, labels.collect());
        for tick in ticks {
            let x = place(tick);
            let colour = if tick == 0.0 { AXIS } else { GRID };
            drawing::line(area, &[(x, 0), (x, bottom)], colour, 2)?;
            let label = frame::label_at(&labels, tick);
            drawing::text(area, (x, bottom + 32), HPos::Center, &SMALL, &label)?;
        }
        Ok(())
    }

    fn draw_bar(&self, area: &Area, bar: &Bar, middle: i32, pixels_per_unit: f64) -> Drawn {
        let baseline = middle + 9;
        let mark = (self.left - GAP, baseline);
        drawing::text(area, mark, HPos::Right, &SMALL, &bar.mark)?;
        if let Some(reason) = &bar.missing {
            let cross = Cross::new((self.left + 16, middle), 8, FAILURE.stroke_width(4));
            area.draw(&cross)?;
            let start = self.left + 38;
            let kind = SMALL.coloured(FAILURE);
            let reason = kind.shorten(reason, style::WIDTH - MARGIN - start);
            drawing::text(area, (start, baseline), HPos::Left, &kind, &reason)?;
            return Ok(());
        }
        let (top, bottom) = (middle - THICKNESS / 2, middle + THICKNESS / 2);
        let (mut reached, mut start) = (0.0, self.left);
        for (fill, length) in bar.segments.iter().filter(|(_, length)| *length > 0.0) {
            reached += length;
            let end = self.left + (reached * pixels_per_unit).round() as i32;
            drawing::rectangle(area, [(start, top), (end, bottom)], *fill)?;
            start = end;
        }
        let x = start + GAP;
        let width = drawing::text(area, (x, baseline), HPos::Left, &NAME, &bar.value)?;
        let beside = (x + width + GAP, baseline);
        drawing::text(area, beside, HPos::Left, &SMALL, &bar.beside)?;
        Ok(())
    }
}

fn length(bar: &Bar) -> f64 {
    bar.segments.iter().map(|(_, length)| length.max(0.0)).sum()
}

impl<F: Fn(f64) -> String> Block for Groups<F> {
    fn height(&self) -> i32 {
        let groups = self.groups.iter().map(|group| group.height() + APART);
        groups.sum::<i32>() + AXIS_ROOM
    }

    fn draw(&self, area: &Area) -> Drawn {
        let pixels_per_unit = self.pixels_per_unit();
        self.draw_axis(area, pixels_per_unit, self.height() - AXIS_ROOM)?;
        let marked = self.groups.iter().flat_map(|group| &group.bars);
        let marks = marked.map(|bar| SMALL.width(&bar.mark)).max().unwrap_or(0);
        let names = self.left - GAP - if marks > 0 { marks + GAP } else { 0 };
        let mut top = APART / 2;
        for group in &self.groups {
            let first = top + (group.height() - group.bars.len() as i32 * STEP) / 2 + STEP / 2;
            // A name and what is below it stand around the middle of a single bar, else at the first.
            let name = match group.below.is_empty() {
                true => first + 9,
                false => top + LEAST / 2 - 6,
            };
            drawing::text(area, (names, name), HPos::Right, &NAME, &group.name)?;
            drawing::text(area, (names, name + 30), HPos::Right, &SMALL, &group.below)?;
            for (bar, middle) in group.bars.iter().zip((first..).step_by(STEP as usize)) {
                self.draw_bar(area, bar, middle, pixels_per_unit)?;
            }
            top += group.height() + APART;
        }
        Ok(())
    }
}
