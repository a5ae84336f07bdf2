//! The memory at the peak by the call that made it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    call_stacks::Named,
    classify::{
        Leaf,
        compose::{ClassifiedRegion, Composition, MadeBy},
    },
    results::MadeBytes,
};

/// A call stack by its index, or `None`; and the call, or why there is no stack.
type Told = (Option<usize>, String);

/// The numbers of the call stacks that made what is resident.
pub(super) fn wanted(composition: &Composition) -> BTreeSet<u32> {
    let regions = composition
        .regions
        .iter()
        .flat_map(ClassifiedRegion::makers);
    let alike = composition.alike.iter().flat_map(|alike| alike.made.keys());
    let makers = regions.map(|(by, _)| by).chain(alike.copied());
    makers.filter_map(MadeBy::call_stack).collect()
}

/// How much each call made of one row of regions.
pub(super) struct Makers(BTreeMap<MadeBy, u64>);

impl Makers {
    /// Parts of what the row is of, by the call that made them.
    pub fn of<'a>(makers: impl Iterator<Item = (MadeBy, &'a BTreeMap<Leaf, u64>)>) -> Makers {
        let mut bytes = BTreeMap::new();
        for (by, leaves) in makers {
            *bytes.entry(by).or_default() += leaves.values().sum::<u64>();
        }
        Makers(bytes)
    }

    /// The one that made most.
    pub fn largest(&self, named: &Named) -> Option<Told> {
        let largest = self
            .0
            .iter()
            .max_by_key(|(by, bytes)| (*bytes, Reverse(*by)))?;
        Some(tell(*largest.0, named))
    }
}

/// RSS by call stack, largest first.
pub(super) fn rows(composition: &Composition, named: &Named) -> Vec<MadeBytes> {
    type Key<'a> = (u32, MadeBy, Leaf, Option<&'a str>);
    let mut bytes: BTreeMap<Key, u64> = BTreeMap::new();
    let mut add = |tgid, backing, by, leaves: &BTreeMap<Leaf, u64>| {
        for (&leaf, &resident) in leaves {
            *bytes.entry((tgid, by, leaf, backing)).or_default() += resident;
        }
    };
    for region in &composition.regions {
        for (by, leaves) in region.makers() {
            add(region.tgid, region.backing.as_deref(), by, leaves);
        }
    }
    for alike in composition.alike.iter() {
        for (&by, leaves) in &alike.made {
            add(alike.tgid, alike.backing.as_deref(), by, leaves);
        }
    }
    // Two captures may be one call stack.
    let mut rows: BTreeMap<(u32, Told, Leaf, Option<&str>), u64> = BTreeMap::new();
    for ((tgid, by, leaf, backing), bytes) in bytes {
        *rows
            .entry((tgid, tell(by, named), leaf, backing))
            .or_default() += bytes;
    }
    let mut rows: Vec<MadeBytes> = rows
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(
            |((tgid, (call_stack, made_by), leaf, backing), bytes)| MadeBytes {
                tgid,
                call_stack,
                made_by,
                leaf,
                backing: backing.map(str::to_owned),
                bytes,
            },
        )
        .collect();
    rows.sort_by_key(|row| Reverse(row.bytes));
    rows
}

fn tell(by: MadeBy, named: &Named) -> Told {
    let call = |call: &str, number| match named.of(number) {
        Ok(index) => (Some(index), call.to_owned()),
        Err(why) => (None, format!("{call}, not captured: {why}")),
    };
    match by {
        MadeBy::Mmap(number) => call("mmap", number),
        MadeBy::Brk(number) => call("brk", number),
        MadeBy::Exec => (None, "mapped by exec".to_owned()),
        MadeBy::BeforeAttach => (None, "mapped before attach".to_owned()),
        MadeBy::Unknown => (None, "not captured: no call was seen".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::{compose::Made, rules::RULES};

    #[test]
    fn rows_sum_to_rss_and_heaps_are_told_by_growth() {
        let leaves = |bytes| BTreeMap::from([(Leaf::Malloc, bytes)]);
        let region = |bytes, made_by, growths: &[(u32, u64)]| ClassifiedRegion {
            tgid: 7,
            range: 0..bytes,
            resident_bytes: bytes,
            rule: &RULES[0],
            leaves: leaves(bytes),
            backing: None,
            before_attach: false,
            made_by,
            growths: growths
                .iter()
                .map(|&(number, bytes)| Made {
                    by: MadeBy::Brk(number),
                    leaves: leaves(bytes),
                })
                .collect(),
        };
        let regions = vec![
            region(4096, MadeBy::Exec, &[]),
            region(20480, MadeBy::Brk(1), &[(1, 4096), (2, 16384)]),
            region(4096, MadeBy::Mmap(u32::MAX), &[]),
        ];
        let heap = Makers::of(regions[1].makers());
        let composition = Composition {
            rss_bytes: 28672,
            regions,
            ..Composition::default()
        };
        assert_eq!(wanted(&composition), BTreeSet::from([1, 2, u32::MAX]));
        let named = Named::default();
        let rows = rows(&composition, &named);
        let told: Vec<(u64, &str)> = rows
            .iter()
            .map(|row| (row.bytes, row.made_by.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (20480, "brk, not captured: its call stack did not arrive"),
                (4096, "mapped by exec"),
                (4096, "mmap, not captured: its stack could not be read"),
            ]
        );
        assert_eq!(heap.largest(&named), Some(tell(MadeBy::Brk(2), &named)));
    }
}
