//! A snapshot of resident pages and the region map → how the memory of the tree is composed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use rangemap::RangeMap;

use super::{
    Class, Classes, Leaf,
    alike::AlikeRegions,
    division::Division,
    evidence::{Evidence, ProcessFacts, StackUse},
    rules::{Rule, classify},
    runtime::{Image, Runtime},
};
use crate::{
    regions::{AddressSpace, LowerEnd, Origin, OriginKind, Piece, Process, ProcessTree},
    residency::{ProcessSnapshot, ResidentRange, Snapshot, Vma, objects::Objects, ranges::clip},
    units::{KIB, page_ceil, page_floor},
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
pub fn classify_process(
    process: &ProcessSnapshot,
    tree: &ProcessTree,
    images: &HashMap<u32, Image>,
    division: Option<&Division>,
    mut each: impl FnMut(ClassifiedRegion),
) -> Runtime {
    let no_image = Image::default();
    let image = images.get(&process.tgid).unwrap_or(&no_image);
    let runtime = Runtime::recognise(image, &process.vmas);
    let unseen = AddressSpace::empty();
    let space = tree.space(process.tgid).unwrap_or(&unseen);
    let threads = tree.process(process.tgid);
    let facts = ProcessFacts::gather(runtime, space, &process.vmas);
    let stacks = threads
        .map(|threads| stack_ranges(threads, space, runtime))
        .unwrap_or_default();
    let mut resident = Resident::new(&process.resident);
    let mut placed = 0;
    for vma in &process.vmas {
        for (range, piece, stack) in parts(vma, space, &stacks) {
            let resident_bytes = resident.bytes_in(&range);
            if resident_bytes == 0 {
                continue;
            }
            let evidence = Evidence {
                facts: &facts,
                vma,
                piece,
                origin: piece.map(|piece| space.origin(piece.origin)),
                ground: piece
                    .and_then(|piece| piece.reserved_by)
                    .map(|id| space.origin(id)),
                given_name: piece.and_then(|piece| piece.name).map(|id| space.name(id)),
                stack,
            };
            let rule = classify(&evidence);
            let leaves_of = |part: &Range<u64>, resident_bytes| {
                leaves(part, resident_bytes, rule, &process.resident, division)
            };
            let leaves = leaves_of(&range, resident_bytes);
            placed += resident_bytes;
            each(ClassifiedRegion {
                tgid: process.tgid,
                made_by: MadeBy::of(evidence.origin),
                growths: growths(&range, evidence.origin, space, |part| {
                    let resident = clip(&process.resident, part.start, part.end);
                    leaves_of(part, resident.map(|it| it.end - it.start).sum())
                }),
                leaves,
                range,
                resident_bytes,
                rule,
                before_attach: evidence.origin.is_some_and(|origin| origin.before_attach),
                backing: vma
                    .name
                    .clone()
                    .or_else(|| evidence.given_name.map(str::to_owned)),
            });
        }
    }
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

type Part<'a> = (Range<u64>, Option<&'a Piece>, Option<StackUse>);

/// A VMA cut where a piece of the region map or a stack begins or ends.
fn parts<'a>(
    vma: &Vma,
    space: &'a AddressSpace,
    stacks: &RangeMap<u64, StackUse>,
) -> Vec<Part<'a>> {
    let whole = vma.start..vma.end;
    let mut pieces: Vec<(Range<u64>, Option<&Piece>)> = space
        .overlapping(&whole)
        .map(|(range, piece)| (range, Some(piece)))
        .collect();
    let mut next = whole.start;
    let mut gaps = Vec::new();
    for (range, _) in &pieces {
        if next < range.start {
            gaps.push((next..range.start, None));
        }
        next = range.end;
    }
    if next < whole.end {
        gaps.push((next..whole.end, None));
    }
    if !gaps.is_empty() {
        pieces.extend(gaps);
        pieces.sort_by_key(|(range, _)| range.start);
    }
    let mut parts = Vec::with_capacity(pieces.len());
    for (range, piece) in pieces {
        let mut next = range.start;
        for (stack, &using) in stacks.overlapping(&range) {
            let (start, end) = (stack.start.max(range.start), stack.end.min(range.end));
            if next < start {
                parts.push((next..start, piece, None));
            }
            parts.push((start..end, piece, Some(using)));
            next = end;
        }
        if next < range.end {
            parts.push((next..range.end, piece, None));
        }
    }
    parts
}

/// Which addresses are stacks, and how they are used: whole pages, because a page has one region.
///
/// glibc gives `clone3` the stack without the thread's control block and TLS, which lie above it in
/// the same mapping, so the whole mapping counts. A stack inside a much larger mapping (memory of a
/// program that manages its own stacks) counts with its own range alone.
fn stack_ranges(
    process: &Process,
    space: &AddressSpace,
    runtime: Runtime,
) -> RangeMap<u64, StackUse> {
    let mut ranges = RangeMap::new();
    for past in space.past_stacks() {
        mark(&mut ranges, space, &past, StackUse::Cached);
    }
    for thread in process.threads.values() {
        if let Some(stack) = &thread.stack {
            // Go runs threads on memory of its heap (rule go.arena accounts for it).
            let certain = stack.lower_end != LowerEnd::AnyMapping || runtime == Runtime::Native;
            if certain {
                mark(&mut ranges, space, &stack.range, StackUse::Live);
            }
        }
    }
    for thread in process.threads.values() {
        if let Some(alternate) = &thread.alt_stack
            && runtime != Runtime::Go
        {
            // Its own range alone: programs take it from malloc, or from the stack of its thread, and the pages at
            // its ends, which it shares with them, stay theirs.
            let pages = page_ceil(alternate.start)..page_floor(alternate.end);
            if !pages.is_empty() {
                ranges.insert(pages, StackUse::Alternate);
            }
        }
    }
    ranges
}

/// A mapping that exceeds its stack by no more than this was made for it: guard pages, TLS, control
/// block.
const AROUND_A_STACK: u64 = 256 * KIB;

fn mark(
    ranges: &mut RangeMap<u64, StackUse>,
    space: &AddressSpace,
    stack: &Range<u64>,
    using: StackUse,
) {
    let whole = stack
        .end
        .checked_sub(1)
        .and_then(|last| space.piece_at(last))
        .and_then(|(_, piece)| {
            let call = space.origin(piece.origin);
            let origin = call.range();
            // All growth of the program break is one origin, whose range is that of the first.
            let made_for_it = call.kind != OriginKind::Brk
                && origin.start <= stack.start
                && origin.end - origin.start <= stack.end - stack.start + AROUND_A_STACK;
            made_for_it.then_some((origin, piece.origin))
        });
    match whole {
        // The pages at its ends are in use for it, whatever else is on them.
        None => {
            if !stack.is_empty() {
                ranges.insert(page_floor(stack.start)..page_ceil(stack.end), using);
            }
        }
        // Parts that were unmapped meanwhile may hold something else by now.
        Some((origin, id)) => {
            for (part, piece) in space.overlapping(&origin) {
                if piece.origin == id || piece.reserved_by == Some(id) {
                    ranges.insert(part, using);
                }
            }
        }
    }
}

/// Counts resident bytes in ranges that are asked for in ascending order.
struct Resident<'a> {
    ranges: &'a [ResidentRange],
}

impl<'a> Resident<'a> {
    fn new(ranges: &'a [ResidentRange]) -> Self {
        Resident { ranges }
    }

    fn bytes_in(&mut self, range: &Range<u64>) -> u64 {
        let mut bytes = 0;
        while let Some(first) = self.ranges.first() {
            if first.start >= range.end {
                break;
            }
            bytes += first
                .end
                .min(range.end)
                .saturating_sub(first.start.max(range.start));
            if first.end > range.end {
                break;
            }
            self.ranges = &self.ranges[1..];
        }
        bytes
    }
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
