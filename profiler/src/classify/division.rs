//! How the bytes of pages divide among leaves, where an adapter looked inside a heap or a stack.
//!
//! Only whole pages are resident, so all that is needed of an allocator's blocks is how many bytes of
//! each page belong to which leaf. Pages that belong to one leaf as a whole are kept as runs: the blocks
//! of a million tasks take some megabytes so.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::Leaf;
use crate::{
    residency::ResidentRange,
    units::{PAGE, page_ceil, page_floor},
};

/// Bytes of one leaf on each page of a run. More than one page only where the leaf fills them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    /// Number of the first page.
    page: u64,
    /// Pages of the run: up to 16 TiB.
    pages: u32,
    /// Bytes on each of them. More than a page has are what [`Overlap`] tells of.
    bytes: u16,
    leaf: Leaf,
}

impl Part {
    fn end(&self) -> u64 {
        self.page + u64::from(self.pages)
    }
}

/// Pages of the longest run that a [`Part`] can tell of.
const LONGEST_RUN: u64 = u32::MAX as u64;

/// See the module. Bytes that are in no part keep the leaf of their region.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Division {
    /// In the order of pages; runs of more than one page overlap nothing.
    parts: Vec<Part>,
}

/// Ranges that lay claim to the same bytes: whoever gave them misread something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page at {address:#x} has been given more than its bytes")]
pub struct Overlap {
    /// First byte of the page.
    pub address: u64,
}

/// Ranges one after the other, where those that touch and have one leaf are one: what a heap's objects make.
#[derive(Debug, Default)]
pub struct Runs(Vec<(Range<u64>, Leaf)>);

impl Runs {
    /// The next range.
    pub fn add(&mut self, range: Range<u64>, leaf: Leaf) {
        match self.0.last_mut() {
            Some((last, same)) if *same == leaf && last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.0.push((range, leaf)),
        }
    }

    /// Takes over others, which come behind.
    pub fn append(&mut self, mut other: Runs) {
        self.0.append(&mut other.0);
    }
}

/// Collects ranges of bytes; cheapest when they come in address order.
#[derive(Debug, Default)]
pub struct DivisionBuilder {
    parts: Vec<Part>,
}

impl DivisionBuilder {
    /// These bytes are of this leaf.
    pub fn add(&mut self, range: Range<u64>, leaf: Leaf) {
        let (first, last) = (page_ceil(range.start), page_floor(range.end));
        if first > last || range.is_empty() {
            // Inside one page.
            self.part(
                range.start / PAGE,
                1,
                range.end.saturating_sub(range.start),
                leaf,
            );
            return;
        }
        self.part(range.start / PAGE, 1, first - range.start, leaf);
        self.part(first / PAGE, (last - first) / PAGE, PAGE, leaf);
        self.part(last / PAGE, 1, range.end - last, leaf);
    }

    /// Each of these bytes is of its leaf.
    pub fn add_runs(&mut self, runs: Runs) {
        for (range, leaf) in runs.0 {
            self.add(range, leaf);
        }
    }

    fn part(&mut self, mut page: u64, mut pages: u64, bytes: u64, leaf: Leaf) {
        while pages > LONGEST_RUN {
            self.part(page, LONGEST_RUN, bytes, leaf);
            (page, pages) = (page + LONGEST_RUN, pages - LONGEST_RUN);
        }
        if pages == 0 || bytes == 0 {
            return;
        }
        let (pages, bytes) = (pages as u32, u16::try_from(bytes).unwrap_or(u16::MAX));
        // The blocks of one page mostly come one after the other, of two or three leaves.
        let recent = self.parts.iter_mut().rev().take(3);
        for part in recent {
            if part.page == page && part.leaf == leaf && part.pages == 1 && pages == 1 {
                part.bytes = part.bytes.saturating_add(bytes);
                return;
            }
        }
        self.parts.push(Part {
            page,
            pages,
            bytes,
            leaf,
        });
    }

    /// Takes over a division.
    pub fn append(&mut self, mut other: Division) {
        self.parts.append(&mut other.parts);
    }

    /// Takes over what another has collected.
    pub fn append_builder(&mut self, mut other: DivisionBuilder) {
        self.parts.append(&mut other.parts);
    }

    /// The division; refused when ranges overlap, as far as that shows: by page.
    pub fn build(mut self) -> Result<Division, Overlap> {
        self.parts.sort_by_key(|part| (part.page, part.leaf));
        self.parts.dedup_by(|next, part| {
            let same = part.page == next.page && part.leaf == next.leaf;
            let joins = same && part.pages == 1 && next.pages == 1;
            if joins {
                part.bytes = part.bytes.saturating_add(next.bytes);
            }
            joins
        });
        let mut claimed = 0;
        let mut before: Option<Part> = None;
        for part in &self.parts {
            let same_page = before.is_some_and(|before| before.page == part.page);
            claimed = u64::from(part.bytes) + if same_page { claimed } else { 0 };
            let in_a_run = before.is_some_and(|before| before.end() > part.page && !same_page);
            let two_runs = same_page && (part.pages > 1 || before.is_some_and(|it| it.pages > 1));
            if claimed > PAGE || in_a_run || two_runs {
                return Err(Overlap {
                    address: part.page * PAGE,
                });
            }
            before = Some(*part);
        }
        Ok(Division { parts: self.parts })
    }
}

impl Division {
    /// Whether nothing is divided.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds the bytes of a resident range, by leaf. Both ends lie on page boundaries.
    pub fn add_up(&self, resident: &ResidentRange, bytes: &mut BTreeMap<Leaf, u64>) {
        debug_assert!(resident.start.is_multiple_of(PAGE) && resident.end.is_multiple_of(PAGE));
        let (first, end) = (resident.start / PAGE, resident.end / PAGE);
        let from = self.parts.partition_point(|part| part.end() <= first);
        for part in self.parts[from..].iter().take_while(|part| part.page < end) {
            let pages = part.end().min(end) - part.page.max(first);
            *bytes.entry(part.leaf).or_default() += pages * u64::from(part.bytes);
        }
    }

    /// The same of whole pages, as a list.
    #[cfg(test)]
    pub fn leaves(&self, pages: Range<u64>) -> Vec<(Leaf, u64)> {
        let mut bytes = BTreeMap::new();
        let resident = ResidentRange {
            start: pages.start,
            end: pages.end,
            file: false,
        };
        self.add_up(&resident, &mut bytes);
        bytes.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn built(ranges: &[(Range<u64>, Leaf)]) -> Result<Division, Overlap> {
        let mut builder = DivisionBuilder::default();
        for (range, leaf) in ranges {
            builder.add(range.clone(), *leaf);
        }
        builder.build()
    }

    #[test]
    fn a_block_over_pages_counts_on_each_as_far_as_it_goes() {
        //  page      0      1      2      3
        //  block          |==================|     0x1800..0x4010
        //  then                               |=|  0x4010..0x4030, free
        let division = built(&[
            (0x1800..0x4010, Leaf::MallocUsed),
            (0x4010..0x4030, Leaf::HeapFree),
        ])
        .expect("nothing overlaps");
        assert_eq!(division.leaves(0x1000..0x2000), [(Leaf::MallocUsed, 0x800)]);
        assert_eq!(
            division.leaves(0x3000..0x5000),
            [(Leaf::MallocUsed, 0x1010), (Leaf::HeapFree, 0x20)]
        );
        assert_eq!(division.leaves(0x5000..0x9000), []);
    }

    #[test]
    fn order_does_not_matter() {
        let ascending = [
            (0x1000..0x1010, Leaf::MallocUsed),
            (0x1010..0x1040, Leaf::HeapFree),
            (0x1040..0x1050, Leaf::MallocUsed),
            (0x2000..0x6000, Leaf::HeapFree),
        ];
        let mut descending = ascending.clone();
        descending.reverse();
        assert_eq!(built(&ascending), built(&descending));
        assert_eq!(
            built(&descending)
                .expect("nothing overlaps")
                .leaves(0x1000..0x3000),
            [(Leaf::MallocUsed, 0x20), (Leaf::HeapFree, 0x1030)]
        );
    }

    #[test]
    fn bytes_claimed_twice_are_refused() {
        let twice = built(&[
            (0x1000..0x1900, Leaf::MallocUsed),
            (0x1800..0x2000, Leaf::HeapFree),
        ]);
        assert_eq!(twice, Err(Overlap { address: 0x1000 }));
        let in_a_run = built(&[
            (0x1000..0x8000, Leaf::MallocUsed),
            (0x3010..0x3020, Leaf::HeapFree),
        ]);
        assert_eq!(in_a_run, Err(Overlap { address: 0x3000 }));
        let runs = built(&[
            (0x1000..0x8000, Leaf::MallocUsed),
            (0x1000..0x8000, Leaf::MallocUsed),
        ]);
        assert_eq!(runs, Err(Overlap { address: 0x1000 }));
    }

    #[test]
    fn ranges_that_touch_and_have_one_leaf_are_one_run() {
        let mut runs = Runs::default();
        for (range, leaf) in [
            (0x1000..0x1010, Leaf::HeapObjects),
            (0x1010..0x1010, Leaf::HeapFree),
            (0x1010..0x3000, Leaf::HeapObjects),
            (0x3000..0x3008, Leaf::HeapFree),
            (0x3010..0x3018, Leaf::HeapFree),
        ] {
            runs.add(range, leaf);
        }
        assert_eq!(runs.0.len(), 3);
        assert_eq!(runs.0[0], (0x1000..0x3000, Leaf::HeapObjects));
    }

    #[test]
    fn a_range_longer_than_a_run_can_be_is_counted_as_a_whole() {
        let end = (LONGEST_RUN + 10) * PAGE;
        let division = built(&[(0..end, Leaf::HeapFree)]).expect("nothing overlaps");
        assert_eq!(division.leaves(0..end + PAGE), [(Leaf::HeapFree, end)]);
    }

    proptest! {
        /// Whatever an adapter has misread: refused, or no page has more bytes than it has.
        #[test]
        fn no_page_ever_has_more_than_its_bytes(
            ranges in prop::collection::vec((0..20_000_u64, 0..9000_u64, any::<bool>()), 0..12)
        ) {
            let leaf = |used| if used { Leaf::HeapObjects } else { Leaf::HeapFree };
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(start, bytes, used)| (start..start + bytes, leaf(used)))
                .collect();
            if let Ok(division) = built(&ranges) {
                for page in 0..8 {
                    let leaves = division.leaves(page * PAGE..(page + 1) * PAGE);
                    prop_assert!(leaves.iter().map(|(_, bytes)| bytes).sum::<u64>() <= PAGE);
                }
                let claimed: u64 = ranges.iter().map(|(range, _)| range.end - range.start).sum();
                let all = division.leaves(0..8 * PAGE);
                prop_assert_eq!(all.iter().map(|(_, bytes)| bytes).sum::<u64>(), claimed);
            }
        }
    }
}
