//! Results as one HTML file: nothing is loaded from anywhere, all figures stand in the markup, and scripts only
//! add what moves. maud escapes every text; what scripts read goes through [`data`].

mod data;
mod flame;
mod markup;
mod overview;
mod processes;
mod regions;
mod run;
mod trust;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::charts;
use crate::classify::Class;
use crate::results::summary::cells;
use crate::results::{Host, Results, Run};
use crate::units::human;

use super::run::title;

/// Rows of a table of regions or processes, where one run is shown.
const ROWS_OF_ONE: usize = 500;
/// The same where there are several.
const ROWS_OF_SEVERAL: usize = 40;

const STYLE: &str = include_str!("page/report.css");
/// In the order in which they use each other.
const SCRIPTS: [&str; 7] = [
    include_str!("page/format.js"),
    include_str!("page/theme.js"),
    include_str!("page/tooltip.js"),
    include_str!("page/timeline.js"),
    include_str!("page/flame.js"),
    include_str!("page/tables.js"),
    include_str!("page/start.js"),
];
/// A page that may load nothing: whatever stands in a name, no request leaves it.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The page. Of several repeats of a program at one N, the one in the middle is shown, as in tables and charts.
pub fn html_report(results: &Results) -> String {
    let shown = shown_runs(results);
    let heading = heading(results, &shown);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                link rel="icon" href="data:,";
                title { (heading) }
                style { (PreEscaped(STYLE)) (PreEscaped(colours())) }
            }
            body {
                header {
                    div {
                        h1 { (heading) }
                        @if let [run] = shown.as_slice() {
                            p.command { code { (run.command.join(" ")) } }
                        }
                    }
                    button #theme .needs-script type="button" { "Show dark" }
                }
                main { (body(results, &shown)) }
                footer { (footer(results, &shown)) }
                div #tooltip role="tooltip" hidden {}
                script #data type="application/json" { (PreEscaped(data::of(&shown))) }
                script { (PreEscaped(SCRIPTS.join("\n"))) }
            }
        }
    };
    page.into_string()
}

fn body(results: &Results, shown: &[&Run]) -> Markup {
    html! {
        @match shown {
            [] => p { "Nothing was run." },
            [run] => (run::run(run, 0, ROWS_OF_ONE)),
            several => {
                (overview::overview(results, several))
                h2 { "Each run" }
                @for (id, run) in several.iter().enumerate() {
                    details.run id={ "run-" (id) } {
                        summary { (summary(run)) }
                        p.command { code { (run.command.join(" ")) } }
                        (run::run(run, id, ROWS_OF_SEVERAL))
                    }
                }
            },
        }
        (host(&results.host))
    }
}

/// What stands for a run that is folded up.
fn summary(run: &Run) -> Markup {
    html! {
        (title(run))
        @if run.repeat > 0 { small { " (repeat " (run.repeat) ")" } }
        @if let Some(peak) = &run.peak {
            small { " · RSS " (human(peak.rss_bytes)) " · kernel " (markup::perhaps(peak.kernel.measured())) }
        }
        @if let Some(failure) = super::run::failure(run) {
            small.failure { " · " (failure) }
        }
    }
}

/// The runs that are told in full, in the order of running: those that tables and charts show.
fn shown_runs(results: &Results) -> Vec<&Run> {
    let cells = cells(results);
    let speaks =
        |run: &&Run| run.tasks.is_none() || cells.iter().any(|cell| std::ptr::eq(cell.run(), *run));
    results.runs.iter().filter(speaks).collect()
}

/// What the page shows, in a sentence.
fn heading(results: &Results, shown: &[&Run]) -> String {
    match shown {
        [] => "profiler: nothing was run".to_owned(),
        [run] => match &run.peak {
            Some(peak) => charts::finding_of_run(run, peak),
            None => title(run),
        },
        several => overview::finding(results)
            .unwrap_or_else(|| format!("Peak memory of {} commands", several.len())),
    }
}

/// The colours of the charts.
fn colours() -> String {
    let colour = |class: Class| format!("--{}: {};", class.name(), charts::css_colour(class));
    format!(":root {{ {} }}", Class::ALL.map(colour).join(" "))
}

/// The machine, and its settings that move figures.
fn host(host: &Host) -> Markup {
    let rows = [
        ("kernel", host.kernel.clone()),
        ("system", host.os.clone()),
        ("CPU", format!("{} × {}", host.cpus, host.cpu)),
        ("memory", human(host.memory_bytes)),
        ("swap", human(host.swap_bytes)),
        ("transparent hugepages", host.transparent_hugepages.clone()),
        ("vm.overcommit_memory", host.overcommit_memory.to_string()),
        (
            "kernel.randomize_va_space",
            host.randomize_va_space.to_string(),
        ),
        ("profiler", host.profiler_version.clone()),
        ("eBPF object", host.ebpf_object.clone()),
    ];
    html! {
        section aria-labelledby="machine" {
            h2 #machine { "The machine" }
            (markup::facts("the machine", rows.map(|(name, value)| (name, html! { (value) }))))
        }
    }
}

fn footer(results: &Results, shown: &[&Run]) -> Markup {
    let mut days: Vec<&str> = shown.iter().map(|run| run.started_at.as_str()).collect();
    days.sort_unstable();
    html! {
        "profiler " (results.host.profiler_version)
        @match days.as_slice() {
            [] => "",
            [one] => { " · started " (one) },
            [first, .., last] => { " · started " (first) " to " (last) },
        }
        " · memory in binary units: 1 MiB is 1,048,576 bytes; point at a figure for its bytes"
    }
}
