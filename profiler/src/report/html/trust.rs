//! How it was measured, and how far the figures can be trusted: everything that a run says of itself.

use maud::{Markup, html};

use crate::report::trust::trust as sentences;
use crate::results::{Counters, Ledger, Outcome, OwnCost, ProbeState, Run, Scope};
use crate::units::{human, thousands};

use super::markup::{facts, scrolled, size};

/// The block at the end of a run.
pub fn trust(run: &Run) -> Markup {
    if run.outcome == Outcome::Unavailable {
        return html! {};
    }
    html! {
        section {
            h3 { "How it was measured, and how far to trust it" }
            @if !run.warnings.is_empty() {
                ul.warnings { @for warning in &run.warnings { li { "warning: " (warning) } } }
            }
            ul { @for sentence in sentences(run) { li { (sentence) } } }
            p.note {
                "The unit is a resident page by the kernel's own rule for RSS. Each has one leaf, by the calls that mapped \
                 it and by what adapters found in it; leaves sum to classes and classes to RSS, to the byte. What no rule \
                 knows is unclassified. Kernel memory is beside RSS and never in it. A null is \"not measured\", never 0."
            }
            (folded("Probes, attached and off", probes(run)))
            @if let Some(ledger) = &run.ledger { (folded("The page ledger's account", ledger_facts(ledger))) }
            @if !run.adapters.is_empty() { (folded("What adapters found inside heaps and stacks", adapters(run))) }
            (folded("Counters of the kernel", counters(&run.counters)))
            @if let Some(cost) = &run.own_cost { (folded("What measuring took", own_cost(cost))) }
            (folded("Settings and circumstances", settings(run)))
        }
    }
}

fn folded(name: &str, content: Markup) -> Markup {
    html! { details.more { summary { (name) } (content) } }
}

fn probes(run: &Run) -> Markup {
    let (attached, off): (Vec<_>, Vec<_>) = run
        .probes
        .iter()
        .partition(|probe| probe.state == ProbeState::Attached);
    let names: Vec<&str> = attached.iter().map(|probe| probe.name.as_str()).collect();
    html! {
        p { (attached.len()) " attached, " (off.len()) " off." }
        @if !off.is_empty() {
            (facts("probes that are off", off.iter().map(|probe| {
                let reason = probe.reason.as_deref().unwrap_or("no reason was recorded");
                (probe.name.as_str(), html! { (reason) })
            })))
        }
        p.note { (names.join(", ")) }
    }
}

fn ledger_facts(ledger: &Ledger) -> Markup {
    let bytes = [
        ("highest RSS by the kernel's counters", ledger.highest_bytes),
        ("RSS at the moment that is told", ledger.composed_bytes),
        ("error bound", ledger.error_bound_bytes),
        ("counted, and in no page found", ledger.missing_bytes),
        (
            "in pages found that the kernel did not count",
            ledger.extra_bytes,
        ),
        (
            "in no mapping of that moment, left out",
            ledger.unmapped_bytes,
        ),
    ];
    let numbers = [
        ("moments that were the highest so far", ledger.candidates),
        ("removals looked at", ledger.removals),
        ("stretches of 2 MiB copied", ledger.copies),
        ("copies without room", ledger.pool_full),
        ("address spaces without room", ledger.spaces_full),
        ("page tables not readable", ledger.unreadable),
        ("removals not seen", ledger.unseen_removals),
        ("runs of probes skipped", ledger.recursion_misses),
        ("processes read at the end", ledger.rescans),
    ];
    let composed = match ledger.composed {
        true => "the ledger's",
        false => "that of a scan, which found more",
    };
    let losses = ledger.loss.as_deref().unwrap_or("none");
    let mut rows = vec![
        ("the composition above is", html! { (composed) }),
        ("losses", html! { (losses) }),
    ];
    rows.extend(bytes.map(|(name, bytes)| (name, size(bytes))));
    rows.extend(numbers.map(|(name, number)| (name, html! { (thousands(number)) })));
    facts("the page ledger", rows)
}

fn adapters(run: &Run) -> Markup {
    let table = html! {
        table {
            thead { tr { @for name in ["process", "adapter", "at", "took", "what it found"] { th scope="col" { (name) } } } }
            tbody {
                @for adapter in &run.adapters {
                    tr.failed[adapter.refusal.is_some()] {
                        td { (adapter.tgid) }
                        td { (adapter.name) }
                        td { (format!("{:.2} s", adapter.at_seconds)) }
                        td { (format!("{:.1} ms", adapter.took_seconds * 1000.0)) }
                        td.wide {
                            @if let Some(refusal) = &adapter.refusal { "gave up: " (refusal) " " }
                            (books(adapter.books.iter()))
                        }
                    }
                }
            }
        }
    };
    scrolled("adapters", table)
}

/// `arenas 3, used 1.2 MiB`: bytes where the name ends with `_bytes`.
fn books<'a>(books: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    let entry = |(name, value): (&String, &u64)| {
        let told = match name.strip_suffix("_bytes") {
            Some(name) => (name, human(*value)),
            None => (name.as_str(), thousands(*value)),
        };
        format!("{} {}", told.0.replace('_', " "), told.1)
    };
    books.map(entry).collect::<Vec<_>>().join(", ")
}

fn counters(counters: &Counters) -> Markup {
    let number = |value: Option<u64>| html! { (value.map_or("not counted".to_owned(), thousands)) };
    let cpu = counters.task_clock_ns;
    let cpu = cpu.map_or("not counted".to_owned(), |ns| {
        format!("{:.3} s", ns as f64 / 1e9)
    });
    let scope = match counters.scope {
        Some(Scope::Cgroup) => "whatever ran in the command's cgroup",
        Some(Scope::Inherited) => "the command and what it started, each thread some µs dearer",
        None => "nothing",
    };
    let rows = [
        ("counted", html! { (scope) }),
        ("CPU time", html! { (cpu) }),
        ("minor faults", number(counters.minor_faults)),
        ("major faults", number(counters.major_faults)),
        ("context switches", number(counters.context_switches)),
        ("cycles", number(counters.cycles)),
        ("instructions", number(counters.instructions)),
    ];
    facts("counters", rows)
}

fn own_cost(cost: &OwnCost) -> Markup {
    let seconds = |seconds: f64| html! { (format!("{seconds:.2} s")) };
    let mut rows = vec![
        (
            "CPU time before the command began",
            seconds(cost.start_cpu_seconds),
        ),
        (
            "highest RSS before the command began",
            size(cost.start_peak_rss_bytes),
        ),
        ("CPU time from then on", seconds(cost.cpu_seconds)),
        (
            "highest RSS from then on, without maps",
            size(cost.peak_rss_bytes.saturating_sub(cost.mapped_bytes)),
        ),
    ];
    rows.extend(
        cost.maps
            .iter()
            .map(|map| (map.name.as_str(), size(map.bytes))),
    );
    facts("what measuring took", rows)
}

fn settings(run: &Run) -> Markup {
    let or_none = |text: String| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text
        }
    };
    let frozen = format!("{:.3} s of {:.3} s", run.frozen_seconds, run.wall_seconds);
    let rows = [
        ("command", html! { code { (run.command.join(" ")) } }),
        ("version", html! { (or_none(run.version.clone())) }),
        (
            "variables and limits that move figures",
            html! { (or_none(run.settings.join(", "))) },
        ),
        ("started", html! { (run.started_at) }),
        ("stopped to be looked at", html! { (frozen) }),
    ];
    facts("settings", rows)
}
