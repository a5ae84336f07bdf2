//! Finished [`Results`] in the forms that files have: one file a form, each from results to bytes, so that
//! whatever was measured once can be written again in any of them.

mod csv;
mod flame;
mod made_by;
mod openmetrics;
mod pprof;

use std::path::Path;

use thiserror::Error;

use flame::Use;

use crate::{
    charts::{self, ChartError},
    report::{self, Colour},
    results::{Results, store},
};

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The document itself: what all others are made from.
    Json,
    /// Memory over time, a line a point.
    Csv,
    /// What the terminal shows.
    Text,
    /// The same as Markdown, for an issue or a job's summary.
    Markdown,
    /// Peaks as gauges, in the text format of OpenMetrics.
    OpenMetrics,
    /// A page for a browser, see [`report::html_report`].
    Html,
    /// Call stacks with the bytes that each made, a line a stack.
    Folded,
    /// The same for `go tool pprof`.
    Pprof,
    /// That, not compressed.
    PlainPprof,
    /// The same as a flame graph, as SVG.
    FlameSvg,
    /// The same as PNG.
    FlamePng,
    /// The figure that says most, see [`charts::headline`], as SVG.
    Svg,
    /// The same as PNG.
    Png,
}

/// Why results have no such form.
#[derive(Debug, Error)]
pub enum ExportError {
    /// There is too little in them.
    #[error("{0}")]
    TooLittle(&'static str),
    /// The renderer refused a figure.
    #[error(transparent)]
    Chart(#[from] ChartError),
    /// A form could not be made.
    #[error("cannot make this form of the results: {0}")]
    Form(#[from] std::io::Error),
    /// A number or string that JSON cannot hold.
    #[error("the results cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Format {
    /// How files of each form end, which is also what the form is called by on the command line. Of names that
    /// end in another one, the longer stands first.
    pub const ENDINGS: [(&str, Format); 13] = [
        ("json", Format::Json),
        ("csv", Format::Csv),
        ("txt", Format::Text),
        ("html", Format::Html),
        ("md", Format::Markdown),
        ("prom", Format::OpenMetrics),
        ("folded", Format::Folded),
        ("pb.gz", Format::Pprof),
        ("pb", Format::PlainPprof),
        ("flame.svg", Format::FlameSvg),
        ("flame.png", Format::FlamePng),
        ("svg", Format::Svg),
        ("png", Format::Png),
    ];

    /// The form that a file's name says; case does not matter.
    pub fn of_file(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let ends = |ending: &str| {
            let stem = name.strip_suffix(ending)?.strip_suffix('.')?;
            (!stem.is_empty()).then_some(())
        };
        Format::ENDINGS
            .into_iter()
            .find_map(|(ending, format)| ends(ending).map(|()| format))
    }

    /// The form that is called so.
    pub fn named(name: &str) -> Option<Format> {
        let known = Format::ENDINGS.into_iter();
        known
            .filter_map(|(ending, format)| (ending == name).then_some(format))
            .next()
    }

    /// All endings, for sentences: `.json, .csv or .png`.
    pub fn known_endings() -> String {
        let endings = Format::ENDINGS.map(|(ending, _)| format!(".{ending}"));
        let (last, others) = endings.split_last().expect("there are forms");
        format!("{} or {last}", others.join(", "))
    }

    /// `results` in this form.
    pub fn bytes(self, results: &Results) -> Result<Vec<u8>, ExportError> {
        match self {
            Format::Json => Ok(store::json(results)?),
            Format::Csv => Ok(csv::timelines(results).into_bytes()),
            Format::Text => Ok(report::results_report(results, Colour::Off).into_bytes()),
            Format::Markdown => Ok(report::markdown(results).into_bytes()),
            Format::OpenMetrics => Ok(openmetrics::text(results).into_bytes()),
            Format::Html => Ok(report::html_report(results).into_bytes()),
            Format::Folded => Ok(made_by::folded(with_call_stacks(results)?).into_bytes()),
            Format::Pprof => Ok(pprof::compressed(with_call_stacks(results)?)?),
            Format::PlainPprof => Ok(pprof::plain(with_call_stacks(results)?)),
            Format::FlameSvg => Ok(flame::figure(with_call_stacks(results)?, Use::Interactive)?
                .svg
                .into_bytes()),
            Format::FlamePng => Ok(flame::figure(with_call_stacks(results)?, Use::Still)?.png()?),
            Format::Svg => Ok(headline(results)?.svg.into_bytes()),
            Format::Png => Ok(headline(results)?.png()?),
        }
    }
}

fn with_call_stacks(results: &Results) -> Result<&Results, ExportError> {
    let peaks = results.runs.iter().filter_map(|run| run.peak.as_ref());
    match peaks.flat_map(|peak| &peak.made_by).next() {
        Some(_) => Ok(results),
        None => Err(ExportError::TooLittle(
            "no call stacks were taken, or the command ended before it was looked at",
        )),
    }
}

fn headline(results: &Results) -> Result<charts::Figure, ExportError> {
    charts::headline(results).ok_or(ExportError::TooLittle(
        "the command ended before it was looked at twice, so there is nothing to draw over time",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_form() {
        let of = |name: &str| Format::of_file(Path::new(name));
        assert_eq!(of("result.json"), Some(Format::Json));
        assert_eq!(of("/tmp/a.b/memory.CSV"), Some(Format::Csv));
        assert_eq!(of("out/peak.v2.png"), Some(Format::Png));
        for unknown in ["result", "json", ".json", "result.xml", "-", "/dev/null"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
        assert_eq!(Format::named("svg"), Some(Format::Svg));
        assert_eq!(Format::named("SVG file"), None);
    }

    #[test]
    fn each_form_has_one_name_that_is_found() {
        for (ending, format) in Format::ENDINGS {
            assert_eq!(Format::named(ending), Some(format));
            let file = format!("result.{ending}");
            assert_eq!(Format::of_file(Path::new(&file)), Some(format));
        }
        assert!(Format::known_endings().starts_with(".json, .csv, "));
    }
}
