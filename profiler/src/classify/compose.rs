//! A snapshot of resident pages and the region map → how the memory of the tree is composed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use super::{
    Class, Classes, Leaf,
    alike::AlikeRegions,
    division::Division,
    place::{Region, place},
    rules::Rule,
    runtime::{Image, Runtime},
};
use crate::{
    regions::{AddressSpace, Origin, OriginKind, ProcessTree},
    residency::{ProcessSnapshot, ResidentRange, Snapshot, objects::Objects, ranges::clip},
};

/// So many of the largest regions of a composition stay by themselves.
pub const LARGEST: usize = 100;

/// The memory of the tree at one moment.
#[derive(Debug, Clone, Default)]
pub struct Composition {
    /// When: `CLOCK_MONOTONIC`, in ns.
    pub taken_ns: u64,
    /// RSS of the tree in bytes: the sum over `regions`.
    pub rss_bytes: u64,
    /// PSS of the tree in bytes.
    pub pss_bytes: u64,
    /// Address space of the tree in bytes.
    pub reserved_bytes: u64,
    /// What the kernel holds objects for.
    pub objects: Objects,
    /// RSS by class; sums to `rss_bytes`.
    pub classes: Classes,
    /// RSS by leaf; sums to `rss_bytes`.
    pub leaves: BTreeMap<Leaf, u64>,
    /// Every region with a resident page, or, where a program has hundreds of thousands, the largest of them.
    pub regions: Vec<ClassifiedRegion>,
    /// All others.
    pub alike: AlikeRegions,
    /// RSS in bytes and runtime of each process.
    pub processes: Vec<(u32, u64, Runtime)>,
}

/// A region of one process and the rule that fired for it.
#[derive(Debug, Clone)]
pub struct ClassifiedRegion {
    /// Process.
    pub tgid: u32,
    /// Address range.
    pub range: Range<u64>,
    /// Resident bytes in it.
    pub resident_bytes: u64,
    /// The rule; its leaf is the region's, as far as the region is not divided.
    pub rule: &'static Rule,
    /// Resident bytes by leaf; they sum to `resident_bytes`.
    pub leaves: BTreeMap<Leaf, u64>,
    /// Path of the mapped file, or the kernel's or program's name; `None` for anonymous memory.
    pub backing: Option<String>,
    /// The call that made it; of a heap that grew by several, the first one.
    pub made_by: MadeBy,
    /// Of a heap with known growths, its resident bytes by growth, which sum to `leaves`; else empty.
    pub growths: Vec<Made>,
    /// It was there before anybody looked: flags and shape of the mapping are all the evidence.
    pub before_attach: bool,
}

impl ClassifiedRegion {
    /// What regions are sorted by.
    pub fn largest_first(&self) -> (Reverse<u64>, u64) {
        (Reverse(self.resident_bytes), self.range.start)
    }

    /// Each call that made a part of it, and the resident bytes of that part by leaf.
    pub fn makers(&self) -> impl Iterator<Item = (MadeBy, &BTreeMap<Leaf, u64>)> {
        let whole = self.growths.is_empty();
        let whole = whole.then_some((self.made_by, &self.leaves));
        let growths = self.growths.iter().map(|made| (made.by, &made.leaves));
        whole.into_iter().chain(growths)
    }
}

/// Resident bytes that one call made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The call.
    pub by: MadeBy,
    /// Resident bytes by leaf.
    pub leaves: BTreeMap<Leaf, u64>,
}

/// Who made memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MadeBy {
    /// `mmap`, with the number of its call stack.
    Mmap(u32),
    /// A growth of the program break, with the number of its call stack.
    Brk(u32),
    /// The kernel, at exec.
    Exec,
    /// Some call before anybody looked.
    BeforeAttach,
    /// No call was seen.
    Unknown,
}

/// Classifies every resident page of a snapshot. `images` holds the executable of each process,
/// `divisions` what adapters found inside its regions.
///
/// Pages that the kernel counts and the scan could not place (`unexplained_bytes`) become a region of
/// their own that no rule explains, so the sum stays exact. Should the scan have placed more than the
/// kernel counts, RSS is what it placed.
pub fn compose(
    snapshot: &Snapshot,
    tree: &ProcessTree,
    images: &HashMap<u32, Image>,
    divisions: &HashMap<u32, Arc<Division>>,
) -> Composition {
    let mut composition = Composition {
        taken_ns: snapshot.taken_ns,
        rss_bytes: 0,
        pss_bytes: snapshot
            .processes
            .iter()
            .map(|process| process.pss_bytes)
            .sum(),
        reserved_bytes: 0,
        objects: Objects::of(snapshot),
        classes: Classes::default(),
        leaves: BTreeMap::new(),
        regions: Vec::new(),
        alike: AlikeRegions::default(),
        processes: Vec::new(),
    };
    for process in &snapshot.processes {
        composition.reserved_bytes += process
            .vmas
            .iter()
            .map(|vma| vma.end - vma.start)
            .sum::<u64>();
        let division = divisions.get(&process.tgid).map(Arc::as_ref);
        let mut rss_bytes = 0;
        let runtime = classify_process(process, tree, images, division, |region| {
            rss_bytes += region.resident_bytes;
            composition.add(region);
        });
        composition
            .processes
            .push((process.tgid, rss_bytes, runtime));
        composition.rss_bytes += rss_bytes;
    }
    composition.keep_largest();
    debug_assert_eq!(composition.classes.total(), composition.rss_bytes);
    composition
}

impl Composition {
    fn add(&mut self, region: ClassifiedRegion) {
        for (&leaf, &bytes) in &region.leaves {
            self.classes.add(leaf.class(), bytes);
            *self.leaves.entry(leaf).or_default() += bytes;
        }
        self.regions.push(region);
        if self.regions.len() >= 4 * LARGEST {
            self.keep_largest();
        }
    }

    /// Past twice [`LARGEST`], only so many of the largest regions stay by themselves, in their order.
    fn keep_largest(&mut self) {
        if self.regions.len() <= 2 * LARGEST {
            return;
        }
        let mut by_size: Vec<usize> = (0..self.regions.len()).collect();
        by_size.sort_unstable_by_key(|&index| (self.regions[index].largest_first(), index));
        let mut stays = vec![false; self.regions.len()];
        by_size[..LARGEST]
            .iter()
            .for_each(|&index| stays[index] = true);
        let mut stays = stays.into_iter();
        for region in std::mem::take(&mut self.regions) {
            match stays.next() {
                Some(true) => self.regions.push(region),
                _ => self.alike.add(&region),
            }
        }
    }
}

/// The runtime of one process. Its regions with a resident page are given to `each`, in address order.
fn classify_process(
    process: &ProcessSnapshot,
    tree: &ProcessTree,
    images: &HashMap<u32, Image>,
    division: Option<&Division>,
    mut each: impl FnMut(ClassifiedRegion),
) -> Runtime {
    let unseen = AddressSpace::empty();
    let space = tree.space(process.tgid).unwrap_or(&unseen);
    let threads = tree.process(process.tgid);
    let image = images.get(&process.tgid);
    let mut placed = 0;
    let runtime = place(process, space, threads, image, |region, origin| {
        let Region {
            range,
            resident_bytes,
            rule,
            backing,
        } = region;
        let leaves_of = |part: &Range<u64>, resident_bytes| {
            leaves(part, resident_bytes, rule, &process.resident, division)
        };
        placed += resident_bytes;
        each(ClassifiedRegion {
            tgid: process.tgid,
            made_by: MadeBy::of(origin),
            growths: growths(&range, origin, space, |part| {
                let resident = clip(&process.resident, part.start, part.end);
                leaves_of(part, resident.map(|it| it.end - it.start).sum())
            }),
            leaves: leaves_of(&range, resident_bytes),
            range,
            resident_bytes,
            rule,
            before_attach: origin.is_some_and(|origin| origin.before_attach),
            backing: backing.map(str::to_owned),
        });
    });
    if let Some(resident_bytes) = process
        .rss_bytes
        .checked_sub(placed)
        .filter(|&bytes| bytes > 0)
    {
        let rule = super::rules::RULES.last().expect("the table is not empty");
        let backing = Some("counted by the kernel, not seen by the scan".to_owned());
        each(ClassifiedRegion {
            tgid: process.tgid,
            range: 0..0,
            resident_bytes,
            leaves: BTreeMap::from([(rule.leaf, resident_bytes)]),
            rule,
            backing,
            made_by: MadeBy::Unknown,
            growths: Vec::new(),
            before_attach: false,
        });
    }
    runtime
}

/// Resident bytes of a region by leaf: what is not divided has the leaf of its rule.
fn leaves(
    range: &Range<u64>,
    resident_bytes: u64,
    rule: &Rule,
    resident: &[ResidentRange],
    division: Option<&Division>,
) -> BTreeMap<Leaf, u64> {
    let mut leaves = BTreeMap::new();
    if let Some(division) = division.filter(|_| rule.leaf.is_divisible()) {
        for part in clip(resident, range.start, range.end) {
            division.add_up(&part, &mut leaves);
        }
    }
    let divided: u64 = leaves.values().sum();
    if resident_bytes > divided {
        *leaves.entry(rule.leaf).or_default() += resident_bytes - divided;
    }
    leaves
}

/// A heap by the calls that it grew by, where they are known.
fn growths(
    range: &Range<u64>,
    origin: Option<&Origin>,
    space: &AddressSpace,
    leaves_of: impl Fn(&Range<u64>) -> BTreeMap<Leaf, u64>,
) -> Vec<Made> {
    let Some(OriginKind::Brk) = origin.map(|origin| &origin.kind) else {
        return Vec::new();
    };
    let first = MadeBy::of(origin);
    let mut growths = space.heap_growths(range).peekable();
    if growths.peek().is_none() {
        return Vec::new();
    }
    let mut by_call: BTreeMap<MadeBy, BTreeMap<Leaf, u64>> = BTreeMap::new();
    let mut add = |part: Range<u64>, by| {
        if !part.is_empty() {
            let known = by_call.entry(by).or_default();
            for (leaf, bytes) in leaves_of(&part) {
                *known.entry(leaf).or_default() += bytes;
            }
        }
    };
    let mut next = range.start;
    for (part, call_stack) in growths {
        add(next..part.start, first);
        next = part.end;
        add(part, MadeBy::Brk(call_stack));
    }
    add(next..range.end, first);
    let made = by_call.into_iter().map(|(by, leaves)| Made { by, leaves });
    made.filter(|made| made.leaves.values().any(|&bytes| bytes > 0))
        .collect()
}

impl MadeBy {
    fn of(origin: Option<&Origin>) -> MadeBy {
        if origin.is_some_and(|origin| origin.before_attach) {
            return MadeBy::BeforeAttach;
        }
        match origin.map(|origin| (&origin.kind, origin.call_stack)) {
            Some((OriginKind::Mmap { .. }, call_stack)) => MadeBy::Mmap(call_stack),
            Some((OriginKind::Brk, call_stack)) => MadeBy::Brk(call_stack),
            Some((OriginKind::Exec, _)) => MadeBy::Exec,
            Some((OriginKind::Unknown, _)) | None => MadeBy::Unknown,
        }
    }

    /// The number of its call stack, of a call.
    pub fn call_stack(self) -> Option<u32> {
        match self {
            MadeBy::Mmap(number) | MadeBy::Brk(number) => Some(number),
            MadeBy::Exec | MadeBy::BeforeAttach | MadeBy::Unknown => None,
        }
    }
}

impl Composition {
    /// Share of RSS that no rule explains, 0 to 1.
    pub fn unclassified_share(&self) -> f64 {
        match self.rss_bytes {
            0 => 0.0,
            rss => self.classes.get(Class::Unclassified) as f64 / rss as f64,
        }
    }
}

#[cfg(test)]
mod tests;
