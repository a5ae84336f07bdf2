//! A figure in the making: plotters draws blocks from top to bottom into an SVG, and that SVG is
//! rasterised to the PNG, so both show the same.
//!
//! The PNG does not come from plotters' own bitmap backend because that sets type badly: without
//! kerning, and every letter at a whole pixel.

use std::io;

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor, WHITE};
use resvg::tiny_skia::{self, Pixmap, Transform};
use resvg::usvg::Tree;

use super::ChartError;
use super::hatching;
use super::style::{self, DENSITY, KERNEL, KERNEL_GROUND};
use super::text::{self, Type, Weight, escape};

/// Dots per inch that CSS takes a pixel for.
const CSS_PIXELS_PER_METRE: f64 = 96.0 / 0.0254;

/// Part of a figure; coordinates in pixels from its top left corner.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What plotters answers.
pub type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<io::Error>>;

/// A part of a figure, as wide as the figure.
pub trait Block {
    /// Height in pixels.
    fn height(&self) -> i32;
    /// Draws it into an area of that height.
    fn draw(&self, area: &Area) -> Drawn;
}

/// Nothing, so many pixels high.
pub struct Space(pub i32);

impl Block for Space {
    fn height(&self) -> i32 {
        self.0
    }

    fn draw(&self, _: &Area) -> Drawn {
        Ok(())
    }
}

/// Lines of text from the left margin on.
pub struct Paragraph {
    /// Their type.
    pub kind: Type,
    /// The lines; there may be none.
    pub lines: Vec<String>,
}

impl Block for Paragraph {
    fn height(&self) -> i32 {
        self.lines.len() as i32 * self.kind.leading()
    }

    fn draw(&self, area: &Area) -> Drawn {
        let first = (style::MARGIN, self.kind.size * 17 / 20);
        lines(area, first, &self.kind, &self.lines)
    }
}

/// What a rectangle is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// A colour.
    Plain(RGBColor),
    /// The hatching that stands for kernel memory.
    Hatched,
}

/// A filled rectangle between two opposite corners.
pub fn rectangle(area: &Area, corners: [(i32, i32); 2], fill: Fill) -> Drawn {
    let ground = match fill {
        Fill::Plain(colour) => colour,
        Fill::Hatched => KERNEL_GROUND,
    };
    area.draw(&Rectangle::new(corners, ground.filled()))?;
    if fill == Fill::Hatched {
        for band in hatching::bands(corners) {
            area.draw(&Polygon::new(band, KERNEL))?;
        }
        // An outline would be wider than the rectangle itself where there is next to nothing.
        let [(left, top), (right, bottom)] = corners;
        if right - left > 4 {
            let (left, top, right, bottom) = (left + 1, top + 1, right - 1, bottom - 1);
            line(
                area,
                &[
                    (left, top),
                    (right, top),
                    (right, bottom),
                    (left, bottom),
                    (left, top - 1),
                ],
                KERNEL,
                2,
            )?;
        }
    }
    Ok(())
}

/// A line through `points`.
pub fn line(area: &Area, points: &[(i32, i32)], colour: RGBColor, width: u32) -> Drawn {
    area.draw(&PathElement::new(points, colour.stroke_width(width)))
}

/// The dot of a data point, with a white rim that keeps it apart from the lines behind it.
pub fn dot<Point: Copy>(centre: Point, colour: RGBColor) -> [Circle<Point, i32>; 2] {
    [(8, WHITE), (6, colour)].map(|(radius, colour)| Circle::new(centre, radius, colour.filled()))
}

/// One line of text, its baseline at `y`. Returns its width in pixels.
pub fn text(area: &Area, (x, y): (i32, i32), anchor: HPos, kind: &Type, text: &str) -> Drawn<i32> {
    let top = (x, y - kind.ascent());
    area.draw_text(&text::printable(text), &kind.style(anchor), top)?;
    Ok(kind.width(text))
}

/// Lines of text under each other from baseline `y` on.
pub fn lines(area: &Area, (x, mut y): (i32, i32), kind: &Type, lines: &[String]) -> Drawn {
    for line in lines {
        text(area, (x, y), HPos::Left, kind, line)?;
        y += kind.leading();
    }
    Ok(())
}

/// A finished figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// What it shows, in a sentence.
    pub title: String,
    /// The figure as an SVG document.
    pub svg: String,
}

impl Figure {
    /// Draws `blocks` under each other; `title` is what a screen reader says.
    pub fn new(title: &str, blocks: &[Box<dyn Block + '_>]) -> Self {
        let height: i32 = blocks.iter().map(|block| block.height()).sum();
        // Whole pixels at the size of a post, too.
        let height = height + height % DENSITY;
        let mut svg = String::new();
        draw(blocks, &mut svg, height).expect("a String takes every shape and text");
        Figure {
            title: title.to_owned(),
            svg: finish(&svg, height, title),
        }
    }

    /// The figure as a PNG of 1600 pixels' width: twice the SVG's size, for screens of high density.
    pub fn png(&self) -> Result<Vec<u8>, ChartError> {
        let tree = Tree::from_str(&self.svg, &text::options())
            .map_err(|error| ChartError::Render(error.to_string()))?;
        let size = tree
            .size()
            .to_int_size()
            .scale_by(DENSITY as f32)
            .ok_or_else(|| ChartError::Render("the figure has no size".to_owned()))?;
        let mut pixels = Pixmap::new(size.width(), size.height())
            .ok_or_else(|| ChartError::Render("the figure is too large".to_owned()))?;
        pixels.fill(tiny_skia::Color::WHITE);
        let scale = Transform::from_scale(DENSITY as f32, DENSITY as f32);
        resvg::render(&tree, scale, &mut pixels.as_mut());
        encode(&pixels).map_err(|error| ChartError::Render(error.to_string()))
    }
}

fn draw(blocks: &[Box<dyn Block + '_>], svg: &mut String, height: i32) -> Drawn {
    let size = (style::WIDTH as u32, height as u32);
    let mut area = SVGBackend::with_string(svg, size).into_drawing_area();
    area.fill(&WHITE)?;
    for block in blocks {
        let (own, below) = area.split_vertically(block.height());
        block.draw(&own)?;
        area = below;
    }
    area.present()
}

/// What plotters has no words for: the size at which a post shows the figure, its title, and how text
/// is set.
fn finish(svg: &str, height: i32, title: &str) -> String {
    let (_, body) = svg.split_once('\n').unwrap_or_default();
    let mut texts = body.split("<text ");
    // The white stroke under the letters keeps grid lines off them.
    let mut finished = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" viewBox="0 0 {} {height}" role="img" stroke-linejoin="round">
<title>{}</title>
<style>text {{ stroke: #ffffff; stroke-width: 6px; paint-order: stroke }}</style>
{}"##,
        style::WIDTH / DENSITY,
        height / DENSITY,
        style::WIDTH,
        escape(title),
        texts.next().unwrap_or_default(),
    );
    for text in texts {
        finished += &finish_text(text).unwrap_or_else(|| format!("<text {text}"));
    }
    finished
}

/// A text element (from behind its name on, and with what follows it) on one line and with its length:
/// where the font is missing, a browser squeezes another one into the room that the layout gave to
/// this text. Empty texts, which plotters writes for tick marks without a label, go.
fn finish_text(element: &str) -> Option<String> {
    let (attributes, rest) = element.split_once(">\n")?;
    let (content, rest) = rest.split_once("\n</text>\n")?;
    if content.is_empty() {
        return Some(rest.to_owned());
    }
    let size = attributes.split("font-size=\"").nth(1)?.split('"').next()?;
    let weight = if attributes.contains("font-weight=\"bold\"") {
        Weight::SemiBold
    } else {
        Weight::Regular
    };
    let length = text::measure(content, size.parse().ok()?, weight);
    Some(format!(
        r#"<text {attributes} textLength="{length:.2}" lengthAdjust="spacingAndGlyphs">{content}</text>
{rest}"#
    ))
}

/// PNG without an alpha channel: posts with a dark ground would otherwise shine through in some readers.
fn encode(pixels: &Pixmap) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, pixels.width(), pixels.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let per_metre = (CSS_PIXELS_PER_METRE * f64::from(DENSITY)).round() as u32;
    encoder.set_pixel_dims(Some(png::PixelDimensions {
        xppu: per_metre,
        yppu: per_metre,
        unit: png::Unit::Meter,
    }));
    let mut writer = encoder.write_header()?;
    let mut rgb = Vec::with_capacity(pixels.data().len() / 4 * 3);
    for rgba in pixels.data().chunks_exact(4) {
        rgb.extend_from_slice(&rgba[..3]);
    }
    writer.write_image_data(&rgb)?;
    writer.finish()?;
    Ok(file)
}
