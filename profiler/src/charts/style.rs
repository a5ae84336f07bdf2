//! How every figure looks: colours, type sizes, widths. Lengths are in pixels of the PNG, which is also
//! the grid of whole numbers that plotters draws on; a reader sees [`DENSITY`] of them as one.

use plotters::style::RGBColor;

use crate::classify::Class;

use super::text::{Type, Weight};

/// Width of every figure.
pub const WIDTH: i32 = 1600;
/// Pixels of the PNG for one pixel of a post: sharp on screens of high density.
pub const DENSITY: i32 = 2;
/// White space around a figure.
pub const MARGIN: i32 = 40;

/// Families that an SVG asks for: the embedded one, then what browsers have.
pub const FONT_FAMILY: &str = "IBM Plex Sans, Helvetica, Arial, sans-serif";

/// Text that must be read.
pub const INK: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
/// Text that explains.
pub const GREY: RGBColor = RGBColor(0x5f, 0x63, 0x68);
/// Lines behind the data.
pub const GRID: RGBColor = RGBColor(0xe4, 0xe6, 0xe8);
/// The line that bars stand on.
pub const AXIS: RGBColor = RGBColor(0x8a, 0x8f, 0x94);
/// What went wrong. Always beside a cross and words, never colour alone.
pub const FAILURE: RGBColor = RGBColor(0xa4, 0x26, 0x2c);
/// Lines and outline of the hatching that stands for kernel memory.
pub const KERNEL: RGBColor = RGBColor(0x6b, 0x70, 0x75);
/// Ground of that hatching.
pub const KERNEL_GROUND: RGBColor = RGBColor(0xf3, 0xf4, 0xf5);

/// The finding.
pub const TITLE: Type = Type::new(40, Weight::SemiBold, INK);
/// What failed, above the data.
pub const SUBTITLE: Type = Type::new(30, Weight::SemiBold, FAILURE);
/// Names and values.
pub const NAME: Type = Type::new(26, Weight::SemiBold, INK);
/// Legend.
pub const TEXT: Type = Type::new(26, Weight::Regular, INK);
/// How to read the figure.
pub const EXPLANATION: Type = TEXT.coloured(GREY);
/// Second lines: versions, bytes per task, tick labels.
pub const SMALL: Type = Type::new(24, Weight::Regular, GREY);
/// The footer.
pub const FOOTER: Type = Type::new(21, Weight::Regular, GREY);

/// Colour of a class in every figure. Okabe and Ito's palette, which colour-blind readers can tell
/// apart; neighbours in a stack differ in lightness too, for print in grey.
pub fn class_colour(class: Class) -> RGBColor {
    match class {
        Class::Stacks => RGBColor(0xe6, 0x9f, 0x00),
        Class::Heap => RGBColor(0x00, 0x72, 0xb2),
        Class::Runtime => RGBColor(0x8c, 0xcb, 0xee),
        Class::Unclassified => RGBColor(0x3c, 0x3c, 0x3c),
    }
}

/// Colours of programs that bring none, after Paul Tol's "muted" scheme.
const PROGRAMS: [RGBColor; 12] = [
    RGBColor(0x33, 0x22, 0x88),
    RGBColor(0x11, 0x77, 0x33),
    RGBColor(0xcc, 0x66, 0x77),
    RGBColor(0x00, 0x77, 0xaa),
    RGBColor(0xaa, 0x44, 0x99),
    RGBColor(0x99, 0x99, 0x33),
    RGBColor(0x88, 0x22, 0x55),
    RGBColor(0x44, 0xaa, 0x99),
    RGBColor(0xbb, 0x77, 0x00),
    RGBColor(0x55, 0x66, 0x77),
    RGBColor(0x66, 0x99, 0xcc),
    RGBColor(0x66, 0x11, 0x00),
];

/// Colour of a program: its own where that is a `#rrggbb`, else one by its place in the list.
pub fn program_colour(own: Option<&str>, place: usize) -> RGBColor {
    own.and_then(parse)
        .unwrap_or(PROGRAMS[place % PROGRAMS.len()])
}

fn parse(colour: &str) -> Option<RGBColor> {
    let digits = colour.strip_prefix('#').filter(|digits| {
        digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })?;
    let [_, red, green, blue] = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
    Some(RGBColor(red, green, blue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_its_own_colour_where_that_is_one() {
        assert_eq!(program_colour(Some("#00ADd8"), 0), RGBColor(0, 0xad, 0xd8));
        for wrong in [
            None,
            Some("#00add"),
            Some("#+0add8"),
            Some("no colour \"/>"),
        ] {
            assert_eq!(program_colour(wrong, 13), PROGRAMS[1]);
        }
    }
}
