//! The largest regions at the peak, with the rule that fired what backs them, and where they were made.

use crate::{
    classify::Leaf,
    results::{Peak, Run},
    units::{human, thousands},
};

use super::{
    call_stacks::origin,
    columns::{Flush, Table},
    run::identifier,
};

/// Regions shown; the JSON has all.
pub const SHOWN: usize = 12;

/// A row a region, or for several alike ones.
pub fn regions_table(run: &Run, peak: &Peak) -> Table<7> {
    let rows = peak.regions.iter().take(SHOWN).map(|region| {
        let backing = region.backing.as_deref().unwrap_or(match region.leaf {
            Leaf::File => "file, not known which",
            _ => "anonymous",
        });
        [
            human(region.resident_bytes),
            thousands(region.count),
            identifier(&region.leaf),
            region.rule.clone(),
            region.kind.clone(),
            backing.to_owned(),
            origin(run, region),
        ]
    });
    let origins = peak.regions.iter().any(|region| region.made_by.is_some());
    Table {
        headings: [
            "resident",
            "regions",
            "leaf",
            "rule",
            "kind",
            "backing",
            if origins { "made by" } else { "" },
        ],
        flush: {
            let mut flush = [Flush::Left; 7];
            flush[0] = Flush::Right;
            flush[1] = Flush::Right;
            flush
        },
        rows: rows.collect(),
    }
}
