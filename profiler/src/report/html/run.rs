//! One run: summary, classes, kernel memory, timeline, processes, regions, and how far all that can be trusted.

use maud::{Markup, html};

use crate::classify::Class;
use crate::report::run::{check_sentence, failure, identifier, share};
use crate::report::trust::exactness;
use crate::results::summary::{kernel_bytes, total_bytes};
use crate::results::{Peak, Run};
use crate::units::{human, thousands};

use super::data::has_timeline;
use super::markup::{bar, mark, perhaps, scrolled, size};
use super::{flame, overview, processes, regions, trust};

/// The run at this place of the page, with so many rows in its tables at the most.
pub fn run(run: &Run, id: usize, rows: usize) -> Markup {
    html! {
        @if let Some(failure) = failure(run) { p.failure { (failure) } }
        @match &run.peak {
            Some(peak) => {
                (tiles(run, peak))
                (overview::legend())
                (bar(&peak.classes, kernel_bytes(peak), total_bytes(peak), false))
                div.columns {
                    section { h3 { "Classes of resident memory" } (classes(peak)) }
                    section { h3 { "Kernel memory, outside RSS" } (kernel(peak)) }
                }
                @if has_timeline(run) { (timeline(id)) }
                (flame::flame(run, id))
                (processes::processes(run, id, rows))
                (regions::regions(run, peak, id, rows))
            },
            None => @if failure(run).is_none() { p { "It ended before its memory was looked at." } },
        }
        (trust::trust(run))
    }
}

fn tiles(run: &Run, peak: &Peak) -> Markup {
    let exit = run
        .exit_status
        .map_or("none".to_owned(), |status| status.to_string());
    html! {
        dl.tiles {
            div { dt { "peak RSS" } dd { (size(peak.rss_bytes)) small { "PSS " (human(peak.pss_bytes)) } } }
            div { dt { "kernel memory" } dd { (perhaps(kernel_bytes(peak))) small { "outside RSS" } } }
            div { dt { "both" } dd { (size(total_bytes(peak))) small { "reserved " (human(peak.reserved_bytes)) } } }
            div {
                dt { "the peak's time" }
                dd { (format!("{:.2} s", peak.at_seconds)) small { (format!("of {:.2} s", run.wall_seconds)) } }
            }
            div {
                dt { "threads" }
                dd { (thousands(peak.threads)) small { "at the peak" } }
            }
            div {
                dt { "residency followed by" }
                dd { "tier " (peak.tier) small { (exactness(peak)) "; exit status " (exit) } }
            }
        }
    }
}

/// Classes, and within each its leaves.
fn classes(peak: &Peak) -> Markup {
    let whole = peak.rss_bytes;
    let table = html! {
        table {
            thead { tr { th scope="col" { "class, leaf" } th.number scope="col" { "resident" } th.number scope="col" { "of RSS" } } }
            tbody {
                @for class in Class::ALL {
                    @let bytes = peak.classes.get(class);
                    tr.class {
                        th scope="row" { (mark(class.name())) (class.name()) }
                        td.number { (size(bytes)) }
                        td.number { (share(bytes, whole)) }
                    }
                    @for leaf in peak.leaves.iter().filter(|leaf| leaf.class == class && leaf.bytes > 0) {
                        tr.leaf {
                            th scope="row" { (identifier(&leaf.leaf)) }
                            td.number { (size(leaf.bytes)) }
                            td.number { (share(leaf.bytes, whole)) }
                        }
                    }
                }
                tr.sum { th scope="row" { "RSS" } td.number { (size(whole)) } td.number { "100.0 %" } }
            }
        }
    };
    scrolled("classes of resident memory", table)
}

/// Its parts, and the kinds of objects within slab memory.
fn kernel(peak: &Peak) -> Markup {
    let kernel = &peak.kernel;
    let Some(whole) = kernel_bytes(peak) else {
        return html! { p { "It was not measured." } p.note { (kernel.source) } };
    };
    let table = html! {
        table {
            thead { tr { th scope="col" { "part" } th.number scope="col" { "bytes" } th.number scope="col" { "objects" } } }
            tbody {
                @for (name, bytes) in kernel.parts() {
                    tr.class { th scope="row" { (name) } td.number { (perhaps(bytes)) } td {} }
                    @if name == "slab" {
                        @for kind in &kernel.slab {
                            tr.leaf {
                                th scope="row" { (kind.kind) }
                                td.number { (size(kind.bytes)) }
                                td.number { @if kind.estimated { "about " } (thousands(kind.objects)) }
                            }
                        }
                    }
                }
                tr.sum { th scope="row" { (mark("kernel")) "kernel" } td.number { (size(whole)) } td {} }
            }
        }
    };
    html! {
        (scrolled("kernel memory", table))
        p.note {
            (kernel.source)
            @if let Some(check) = &kernel.check { "; " (check_sentence(check)) }
        }
    }
}

/// A place for the script to draw in. A slider is what moves from point to point by keys and tells each.
fn timeline(id: usize) -> Markup {
    html! {
        section {
            h3 { "Over time" }
            figure.timeline {
                div.plot data-run=(id) tabindex="0" role="slider" aria-valuemin="0" aria-valuemax="0" aria-valuenow="0"
                    aria-label="Memory over time; arrow keys go from point to point" {
                    noscript { "The timeline is drawn by a script; the figures of the peak stand above." }
                }
                figcaption {
                    "The line is RSS; below it its classes where pages were looked at, grey where they were not; hatched \
                     on top, kernel memory, outside RSS. Point at it, or use the arrow keys, for figures."
                }
            }
        }
    }
}
