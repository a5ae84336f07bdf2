//! Regions of one kind as one: a program with 100,000 threads has as many stacks, and nobody asks for each.

use std::collections::BTreeMap;

use super::{
    Leaf,
    compose::{ClassifiedRegion, MadeBy},
    rules::Rule,
};

/// Regions by what they have in common.
#[derive(Debug, Clone, Default)]
pub struct AlikeRegions(BTreeMap<Key, Alike>);

/// Process, rule, backing, and whether they were there before anybody looked.
type Key = (u32, &'static str, Option<String>, bool);

/// Regions of one process that one rule fired for, with one backing.
#[derive(Debug, Clone)]
pub struct Alike {
    /// Process.
    pub tgid: u32,
    /// The rule.
    pub rule: &'static Rule,
    /// Path of the mapped file, or the kernel's or program's name; `None` for anonymous memory.
    pub backing: Option<String>,
    /// They were there before anybody looked.
    pub before_attach: bool,
    /// The first byte of the only one.
    pub start: Option<u64>,
    /// How many there are.
    pub count: u64,
    /// Address space, in bytes.
    pub length_bytes: u64,
    /// Resident bytes.
    pub resident_bytes: u64,
    /// Resident bytes by leaf.
    pub leaves: BTreeMap<Leaf, u64>,
    /// The same by the call that made them.
    pub made: BTreeMap<MadeBy, BTreeMap<Leaf, u64>>,
}

impl AlikeRegions {
    /// A region becomes one of them.
    pub fn add(&mut self, region: &ClassifiedRegion) {
        let backing = region.backing.clone();
        let key = (region.tgid, region.rule.id, backing, region.before_attach);
        let alike = self.0.entry(key).or_insert_with(|| Alike::none_of(region));
        alike.start = (alike.count == 0).then_some(region.range.start);
        alike.count += 1;
        alike.length_bytes += region.range.end - region.range.start;
        alike.resident_bytes += region.resident_bytes;
        add_up(&mut alike.leaves, &region.leaves);
        for (by, leaves) in region.makers() {
            add_up(alike.made.entry(by).or_default(), leaves);
        }
    }

    /// One for each kind, in the order of process and rule.
    pub fn iter(&self) -> impl Iterator<Item = &Alike> {
        self.0.values()
    }
}

impl Alike {
    fn none_of(region: &ClassifiedRegion) -> Alike {
        Alike {
            tgid: region.tgid,
            rule: region.rule,
            backing: region.backing.clone(),
            before_attach: region.before_attach,
            start: None,
            count: 0,
            length_bytes: 0,
            resident_bytes: 0,
            leaves: BTreeMap::new(),
            made: BTreeMap::new(),
        }
    }
}

fn add_up(sum: &mut BTreeMap<Leaf, u64>, leaves: &BTreeMap<Leaf, u64>) {
    for (&leaf, &bytes) in leaves {
        *sum.entry(leaf).or_default() += bytes;
    }
}
