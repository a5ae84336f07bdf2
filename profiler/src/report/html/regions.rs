//! The regions at the peak, with what made each and why it counts as what it does.

use std::cmp::Reverse;

use maud::{Markup, html};

use crate::report::call_stacks::origin;
use crate::report::run::identifier;
use crate::results::{Peak, Region, Run};
use crate::units::human;

use super::markup::{mark, number_cell, rest, scrolled, size_cell, sorting};

/// The table, of `most` rows at the most, with a field to filter them.
pub fn regions(run: &Run, peak: &Peak, id: usize, most: usize) -> Markup {
    let mut regions: Vec<&Region> = peak.regions.iter().collect();
    regions.sort_by_key(|region| Reverse(region.resident_bytes));
    let name = format!("regions-{id}");
    let caption = rest(
        most,
        ["row", "s"],
        regions.iter().map(|region| region.resident_bytes),
    );
    let made = regions.iter().any(|region| region.made_by.is_some());
    let shown = &regions[..regions.len().min(most)];
    let table = html! {
        table id=(name) {
            thead {
                tr {
                    (sorting("resident", true, true))
                    (sorting("mapped", true, false))
                    (sorting("regions", true, false))
                    (sorting("leaf", false, false))
                    (sorting("what it is", false, false))
                    (sorting("backing", false, false))
                    @if made { (sorting("made by", false, false)) }
                    (sorting("rule", false, false))
                    (sorting("process", true, false))
                    (sorting("start", false, false))
                }
            }
            tbody { @for region in shown { (row(region, made.then(|| origin(run, region)))) } }
        }
    };
    html! {
        section {
            h3 { "Regions of the address space" }
            div.tools {
                label.needs-script {
                    "Filter"
                    input type="search" data-filters=(name) placeholder="words of a path, rule, leaf or process";
                }
                span.note id={ (name) "-count" } role="status" { (caption) }
            }
            (scrolled("regions", table))
        }
    }
}

fn row(region: &Region, origin: Option<String>) -> Markup {
    html! {
        tr data-bytes=(region.resident_bytes) {
            (size_cell(region.resident_bytes))
            (size_cell(region.length_bytes))
            (number_cell(region.count))
            td.name { (leaves(region)) }
            td.wide { (region.kind) }
            td.wide { (region.backing.as_deref().unwrap_or("anonymous")) }
            @if let Some(origin) = origin { td.wide { (origin) } }
            td { code { (region.rule) } }
            td.number data-key=(region.tgid) { (region.tgid) }
            td { @match &region.start { Some(start) => code { (start) }, None => "several" } }
        }
    }
}

/// Its leaf, or those that an adapter has divided it into.
fn leaves(region: &Region) -> Markup {
    html! {
        @if region.leaves.is_empty() {
            (mark(region.leaf.class().name()))
            (identifier(&region.leaf))
        }
        @for leaf in &region.leaves {
            div {
                (mark(leaf.class.name()))
                (identifier(&leaf.leaf)) " " (human(leaf.bytes))
            }
        }
    }
}
