//! What scripts read: JSON within the page.

use serde::Serialize;

use crate::classify::Class;
use crate::results::Run;

use super::flame::{self, Node};

#[derive(Serialize)]
struct Data<'a> {
    runs: Vec<RunData<'a>>,
}

/// A run that was looked at.
#[derive(Serialize)]
struct RunData<'a> {
    /// Its place on the page.
    id: usize,
    /// Seconds from exec to exit.
    wall: f64,
    peak: PeakData,
    timeline: TimelineData,
    phases: Vec<PhaseData<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flame: Option<Node>,
}

#[derive(Serialize)]
struct PeakData {
    seconds: f64,
    /// Bytes.
    rss: u64,
}

/// A column a quantity: a third of the size of an object a point. Bytes, and seconds after exec.
#[derive(Serialize)]
struct TimelineData {
    seconds: Vec<f64>,
    rss: Vec<u64>,
    /// In the order of [`Class::ALL`].
    classes: Vec<Option<[u64; Class::ALL.len()]>>,
    kernel: Vec<Option<u64>>,
    spread: Vec<u64>,
}

#[derive(Serialize)]
struct PhaseData<'a> {
    name: &'a str,
    from: f64,
    to: f64,
}

/// The text of the data of `runs`, which are numbered as on the page; safe within a `script` element.
pub fn of(runs: &[&Run]) -> String {
    let runs = runs.iter().enumerate();
    let data = Data {
        runs: runs.filter_map(|(id, run)| run_data(id, run)).collect(),
    };
    embedded(&serde_json::to_string(&data).expect("numbers and strings become JSON"))
}

fn run_data(id: usize, run: &Run) -> Option<RunData<'_>> {
    let peak = run.peak.as_ref()?;
    let points = run.timeline.as_slice();
    Some(RunData {
        id,
        wall: run.wall_seconds,
        peak: PeakData {
            seconds: peak.at_seconds,
            rss: peak.rss_bytes,
        },
        timeline: TimelineData {
            seconds: points.iter().map(|point| point.seconds).collect(),
            rss: points.iter().map(|point| point.rss_bytes).collect(),
            classes: points
                .iter()
                .map(|point| {
                    let classes = point.classes?;
                    Some(Class::ALL.map(|class| classes.get(class)))
                })
                .collect(),
            kernel: points.iter().map(|point| point.kernel_bytes).collect(),
            spread: points.iter().map(|point| point.spread_bytes).collect(),
        },
        phases: run
            .phases
            .iter()
            .map(|phase| PhaseData {
                name: &phase.name,
                from: phase.from_seconds,
                to: phase.to_seconds,
            })
            .collect(),
        flame: flame::tree(run),
    })
}

/// Whether memory over time can be drawn.
pub fn has_timeline(run: &Run) -> bool {
    run.peak.is_some() && run.timeline.len() > 1
}

/// JSON that ends no element and no line of a script, whatever its strings hold. None of these characters stands
/// outside of strings.
fn embedded(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text += &format!("\\u{:04x}", u32::from(letter));
            }
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_string_ends_the_script() {
        let name = "</script><!--\u{2028}\u{2029}&";
        let text = embedded(&serde_json::to_string(name).unwrap());
        assert_eq!(text, r#""\u003c/script\u003e\u003c!--\u2028\u2029\u0026""#);
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), name);
    }
}
