//! A flame graph of the memory at the peak: the wider a call, the more resident bytes it made.

use std::collections::HashMap;

use inferno::flamegraph::{self, Options, TextTruncateDirection, color};

use super::{
    ExportError,
    made_by::{Stack, folded_word, stacks},
};
use crate::{
    charts::{Figure, style::class_colour},
    results::Results,
    units::human,
};

/// Pixels, as a post shows it.
const WIDTH: usize = 1200;

/// How it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// In a browser: calls can be clicked into and searched. Its words are set by a script.
    Interactive,
    /// As a picture.
    Still,
}

/// As an SVG.
pub fn figure(results: &Results, purpose: Use) -> Result<Figure, ExportError> {
    let stacks = stacks(results);
    let mut palette = palette(&stacks);
    let mut options = Options::default();
    options.palette_map = Some(&mut palette);
    options.bgcolors = Some(color::BackgroundColor::Flat(WHITE));
    let title = title(results, &stacks);
    options.title.clone_from(&title);
    options.subtitle = Some(
        "width: resident bytes at the peak; from bottom to top: process, the calls that mapped the memory, what it is"
            .to_owned(),
    );
    options.count_name = "bytes".to_owned();
    options.name_type = "Call:".to_owned();
    options.image_width = Some(WIDTH);
    options.text_truncate_direction = TextTruncateDirection::Right;
    // One family: more than one would be quoted as one.
    options.font_type = match purpose {
        Use::Interactive => "sans-serif".to_owned(),
        Use::Still => "IBM Plex Sans".to_owned(),
    };
    options.min_width = 0.05;
    options.no_javascript = purpose == Use::Still;
    let lines: Vec<String> = stacks.iter().map(line).collect();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .map_err(ExportError::Form)?;
    let svg = String::from_utf8_lossy(&svg).into_owned();
    Ok(Figure { svg, title })
}

fn line(stack: &Stack) -> String {
    let words = stack.levels.iter().map(|level| folded_word(&level.label));
    format!("{} {}", words.collect::<Vec<_>>().join(";"), stack.bytes)
}

fn title(results: &Results, stacks: &[Stack]) -> String {
    let total = human(stacks.iter().map(|stack| stack.bytes).sum());
    match results.runs.as_slice() {
        [run] => format!("{}: who made the {total} at the peak", run.label),
        _ => format!("Who made the {total} of all runs at their peaks"),
    }
}

const WHITE: color::Color = color::Color {
    r: 255,
    g: 255,
    b: 255,
};
/// Calls: quiet, so that what the memory is stands out.
const CALLS: [color::Color; 3] = [
    color::Color {
        r: 0xe9,
        g: 0xe4,
        b: 0xda,
    },
    color::Color {
        r: 0xf0,
        g: 0xec,
        b: 0xe4,
    },
    color::Color {
        r: 0xe2,
        g: 0xdc,
        b: 0xd0,
    },
];

/// What the memory is has the colour of its class, as in every figure.
fn palette(stacks: &[Stack]) -> color::PaletteMap {
    let mut colours: HashMap<String, color::Color> = HashMap::new();
    for stack in stacks {
        for (depth, level) in stack.levels.iter().enumerate() {
            colours
                .entry(folded_word(&level.label))
                .or_insert(CALLS[depth % CALLS.len()]);
        }
        if let Some(purpose) = stack.levels.last() {
            let (r, g, b) = lighter(class_colour(stack.class));
            colours.insert(folded_word(&purpose.label), color::Color { r, g, b });
        }
    }
    let mut palette = color::PaletteMap::default();
    // The root has no name.
    palette.insert("", CALLS[0]);
    for (name, colour) in colours {
        palette.insert(name, colour);
    }
    palette
}

/// Half way to white, since black text stands on it.
fn lighter(colour: plotters::style::RGBColor) -> (u8, u8, u8) {
    let half = |part: u8| part / 2 + 128;
    (half(colour.0), half(colour.1), half(colour.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_bytes_and_purposes_have_the_colour_of_their_class() {
        let results = super::super::made_by::tests::results();
        let figure = figure(&results, Use::Still).expect("a figure");
        assert!(
            figure.svg.contains("main (8,192 bytes, 66.67%)"),
            "{}",
            figure.svg
        );
        // Heap, half way to white.
        assert!(figure.svg.contains("rgb(128,185,217)"), "{}", figure.svg);
        figure.png().expect("can be drawn");
    }
}
