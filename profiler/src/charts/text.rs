//! Type: the embedded font, and how wide a text is in it, so that layout needs no font of the
//! machine that draws.

use std::sync::{Arc, LazyLock};

use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontFamily, FontStyle, IntoFont, RGBColor, TextStyle};
use resvg::usvg::fontdb::{Database, Source};
use resvg::usvg::{Node, Options, Tree};

use super::style;

/// Weight of the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Plain.
    Regular,
    /// For titles and values.
    SemiBold,
}

impl From<Weight> for FontStyle {
    /// plotters knows only bold; the semi-bold is the boldest that is embedded, and so what is taken.
    fn from(weight: Weight) -> Self {
        match weight {
            Weight::Regular => FontStyle::Normal,
            Weight::SemiBold => FontStyle::Bold,
        }
    }
}

/// Size, weight and colour of a text.
#[derive(Debug, Clone, Copy)]
pub struct Type {
    /// In pixels.
    pub size: i32,
    weight: Weight,
    colour: RGBColor,
}

impl Type {
    /// plotters makes type smaller by this, for the usual height of a line.
    const SHRINKAGE: f64 = 1.24;

    /// Type of `size` pixels.
    pub const fn new(size: i32, weight: Weight, colour: RGBColor) -> Self {
        Type {
            size,
            weight,
            colour,
        }
    }

    /// The same in another colour.
    pub const fn coloured(self, colour: RGBColor) -> Self {
        Type { colour, ..self }
    }

    /// Height of a line.
    pub const fn leading(&self) -> i32 {
        self.size * 33 / 25
    }

    /// Style for plotters, with its anchor at the left, middle or right of the text, at the top.
    pub fn style(&self, anchor: HPos) -> TextStyle<'static> {
        let size = f64::from(self.size) * Self::SHRINKAGE;
        (
            FontFamily::Name(style::FONT_FAMILY),
            size,
            FontStyle::from(self.weight),
        )
            .into_font()
            .color(&self.colour)
            .pos(Pos::new(anchor, VPos::Top))
    }

    /// From the baseline up to the top that plotters hangs text from.
    pub fn ascent(&self) -> i32 {
        (f64::from(self.size) * 0.76).round() as i32
    }

    /// Width of `text` in whole pixels, rounded up.
    pub fn width(&self, text: &str) -> i32 {
        measure(&escape(text), f64::from(self.size), self.weight).ceil() as i32
    }

    /// `text` in at most `lines` lines of `max_width` pixels, broken at spaces; what does not fit ends
    /// in an ellipsis.
    pub fn wrap(&self, text: &str, max_width: i32, lines: usize) -> Vec<String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        self.wrap_pieces(&words, " ", max_width, lines)
    }

    /// `pieces` in lines, as [`Type::wrap`] does it, with `joint` between two pieces of a line; no
    /// piece is broken unless it is longer than a line.
    pub fn wrap_pieces(
        &self,
        pieces: &[&str],
        joint: &str,
        max_width: i32,
        lines: usize,
    ) -> Vec<String> {
        let mut wrapped: Vec<String> = Vec::new();
        let mut pieces = pieces.iter().peekable();
        while pieces.peek().is_some() && wrapped.len() < lines {
            let mut line = String::new();
            while let Some(piece) = pieces.peek() {
                let longer = if line.is_empty() {
                    (**piece).to_owned()
                } else {
                    format!("{line}{joint}{piece}")
                };
                if !line.is_empty() && self.width(&longer) > max_width {
                    break;
                }
                line = longer;
                pieces.next();
            }
            wrapped.push(self.shorten(&line, max_width));
        }
        if let Some(last) = wrapped.last_mut().filter(|_| pieces.peek().is_some()) {
            last.push('…');
            *last = self.shorten(last, max_width);
        }
        wrapped
    }

    /// `text` cut to `max_width` pixels, with an ellipsis where something is missing.
    pub fn shorten(&self, text: &str, max_width: i32) -> String {
        if self.width(text) <= max_width {
            return text.to_owned();
        }
        let letters: Vec<char> = text.trim_end_matches('…').chars().collect();
        let cut =
            |kept: usize| format!("{}…", letters[..kept].iter().collect::<String>().trim_end());
        // Binary search: measuring is the costly part.
        let (mut fits, mut too_long) = (0, letters.len() + 1);
        while too_long - fits > 1 {
            let middle = usize::midpoint(fits, too_long);
            if middle <= letters.len() && self.width(&cut(middle)) <= max_width {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        cut(fits)
    }
}

static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    // IBM Plex Sans: a one, an l and an I that differ, and figures of one width, so columns align.
    let mut fonts = Database::new();
    let files: [&[u8]; 2] = [
        include_bytes!("fonts/IBMPlexSans-Regular.ttf"),
        include_bytes!("fonts/IBMPlexSans-SemiBold.ttf"),
    ];
    for file in files {
        fonts.load_font_source(Source::Binary(Arc::new(file)));
    }
    Arc::new(fonts)
});

/// Settings under which figures are read by the renderer: the embedded font and no other.
pub fn options() -> Options<'static> {
    Options {
        fontdb: Arc::clone(&FONTS),
        font_family: "IBM Plex Sans".to_owned(),
        ..Options::default()
    }
}

/// Width in pixels of a text that is already escaped, as the renderer sets it.
pub fn measure(escaped: &str, size: f64, weight: Weight) -> f64 {
    if escaped.trim().is_empty() {
        return 0.0;
    }
    let svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><text font-family="{}" font-size="{size}" font-weight="{}">{escaped}</text></svg>"#,
        style::FONT_FAMILY,
        FontStyle::from(weight).as_str(),
    );
    let measured = Tree::from_str(&svg, &options()).ok().and_then(|tree| {
        match tree.root().children().first() {
            Some(Node::Text(text)) => Some(f64::from(text.bounding_box().width())),
            _ => None,
        }
    });
    // Only letters that the font lacks end here: half an em each is near enough for a layout.
    measured.unwrap_or(escaped.chars().count() as f64 * size / 2.0)
}

/// `text` on one line, and without the characters that XML forbids: plotters escapes, but keeps them.
pub fn printable(text: &str) -> String {
    text.replace(|letter: char| letter.is_control(), " ")
}

/// `text` with the characters that XML keeps for itself replaced, and those it forbids left out.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in printable(text).chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_one_width() {
        let ones = measure("1111", 20.0, Weight::SemiBold);
        assert!((ones - measure("8888", 20.0, Weight::SemiBold)).abs() < 0.01);
        assert!((ones - 4.0 * 0.6 * 20.0).abs() < 0.1, "{ones}");
    }

    #[test]
    fn bold_type_is_wider() {
        let [regular, bold] =
            [Weight::Regular, Weight::SemiBold].map(|weight| measure("Rust", 20.0, weight));
        assert!(bold > regular);
    }

    #[test]
    fn long_texts_are_wrapped_and_then_cut() {
        let text = "failed at 32,443: the kernel's pid_max is reached, so no thread can be made";
        let kind = Type::new(12, Weight::Regular, style::INK);
        let lines = kind.wrap(text, 200, 2);
        assert_eq!(lines.len(), 2);
        assert!(
            lines.iter().all(|line| kind.width(line) <= 200),
            "{lines:?}"
        );
        assert!(lines[1].ends_with('…'), "{lines:?}");
        assert_eq!(kind.wrap(text, 2000, 2), [text]);
        assert_eq!(kind.wrap("", 10, 2), Vec::<String>::new());
    }

    #[test]
    fn what_xml_forbids_does_not_reach_the_file() {
        assert_eq!(
            escape("a<b> & \"c\"\u{1b}"),
            "a&lt;b&gt; &amp; &quot;c&quot; "
        );
    }
}
