//! How the bytes of pages divide among leaves, where an adapter looked inside a heap or a stack.
//!
//! Only whole pages are resident, so all that is needed of an allocator's blocks is how many bytes of
//! each page belong to which leaf. Pages that are divided alike are kept as one run: the blocks of a million
//! tasks take some megabytes so, and a million stacks that are used alike next to nothing.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::Leaf;
use crate::{
    residency::ResidentRange,
    units::{PAGE, page_ceil, page_floor},
};

/// Bytes of one leaf on each page of a run. Those of the same pages stand together, one a leaf: a group.
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
    /// In the order of pages, then of leaves. Parts that share a page are of the same pages.
    parts: Vec<Part>,
}

/// Ranges that lay claim to the same bytes: whoever gave them misread something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page at {address:#x} has been given more than its bytes")]
pub struct Overlap {
    /// First byte of the page.
    pub address: u64,
}

/// Collects ranges that come one after the other, where those that touch and have one leaf are one: what a heap's
/// objects make.
#[derive(Debug, Default)]
pub struct Runs {
    /// The last range, which the next may make longer.
    last: Option<(Range<u64>, Leaf)>,
    before: DivisionBuilder,
}

impl Runs {
    /// The next range.
    pub fn add(&mut self, range: Range<u64>, leaf: Leaf) {
        match &mut self.last {
            Some((last, same)) if *same == leaf && last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => {
                self.end_last();
                self.last = Some((range, leaf));
            }
        }
    }

    /// Takes over others, which come behind.
    pub fn append(&mut self, other: Runs) {
        self.end_last();
        self.before.append_builder(other.before);
        self.last = other.last;
    }

    /// All of them.
    pub fn into_builder(mut self) -> DivisionBuilder {
        self.end_last();
        self.before
    }

    /// Nothing makes the last range longer any more.
    fn end_last(&mut self) {
        if let Some((range, leaf)) = self.last.take() {
            self.before.add(range, leaf);
        }
    }
}

/// Collects ranges of bytes; cheapest, in time and in memory, when they come in address order.
#[derive(Debug, Default)]
pub struct DivisionBuilder {
    /// Groups, in the order in which they came; none that is closed has the same parts as the one before it
    /// where they touch.
    parts: Vec<Part>,
    /// Where the last group begins, to which bytes of its page are added.
    open: usize,
    /// Where the group before that begins.
    before: usize,
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
        let open = &mut self.parts[self.open..];
        if open
            .first()
            .is_none_or(|part| part.page != page || part.pages != 1)
            || pages != 1
        {
            self.close();
        } else if let Some(part) = open.iter_mut().find(|part| part.leaf == leaf) {
            part.bytes = part.bytes.saturating_add(bytes);
            return;
        }
        self.parts.push(Part {
            page,
            pages,
            bytes,
            leaf,
        });
    }

    /// These bytes are on each of so many pages, of which nothing was said before. The sum of each leaf has room.
    fn group(&mut self, page: u64, pages: u32, parts: &[Part]) {
        self.close();
        for &Part { bytes, leaf, .. } in parts {
            let mut group = self.parts[self.open..].iter_mut();
            match group.find(|part| part.leaf == leaf) {
                Some(part) => part.bytes += bytes,
                None => self.parts.push(Part {
                    page,
                    pages,
                    bytes,
                    leaf,
                }),
            }
        }
    }

    /// The last group is complete: it joins the one before where both are divided alike.
    fn close(&mut self) {
        let (before, open) = (self.before, self.open);
        self.parts[open..].sort_unstable_by_key(|part| part.leaf);
        let (first, last) = (&self.parts[before..open], &self.parts[open..]);
        let alike = |(one, other): (&Part, &Part)| {
            let pages = u64::from(one.pages) + u64::from(other.pages);
            one.end() == other.page
                && (one.bytes, one.leaf) == (other.bytes, other.leaf)
                && pages <= LONGEST_RUN
        };
        if first.len() == last.len() && !last.is_empty() && first.iter().zip(last).all(alike) {
            let pages = last[0].pages;
            self.parts.truncate(open);
            for part in &mut self.parts[before..] {
                part.pages += pages;
            }
        } else {
            self.before = open;
        }
        self.open = self.parts.len();
    }

    /// Takes over a division.
    pub fn append(&mut self, other: Division) {
        let complete = other.parts.len();
        self.append_builder(DivisionBuilder {
            parts: other.parts,
            open: complete,
            before: complete,
        });
    }

    /// Takes over what another has collected, whose last page may be added to.
    pub fn append_builder(&mut self, mut other: DivisionBuilder) {
        self.close();
        let here = self.parts.len();
        if here == 0 {
            self.parts = other.parts;
        } else {
            self.parts.append(&mut other.parts);
        }
        (self.open, self.before) = (here + other.open, here + other.before);
    }

    /// The division; refused when ranges overlap, as far as that shows: by page.
    pub fn build(mut self) -> Result<Division, Overlap> {
        self.close();
        if !self.is_in_order() {
            self = sweep(self.parts)?;
        }
        let too_many =
            |group: &[Part]| group.iter().map(|part| u64::from(part.bytes)).sum::<u64>() > PAGE;
        if let Some(group) = groups(&self.parts).find(|group| too_many(group)) {
            return Err(Overlap {
                address: group[0].page * PAGE,
            });
        }
        self.parts.shrink_to_fit();
        Ok(Division { parts: self.parts })
    }

    /// Every page is in one group, groups are in the order of pages and parts in that of leaves.
    fn is_in_order(&self) -> bool {
        let mut end = 0;
        groups(&self.parts).all(|group| {
            let first = group[0];
            let follows = first.page >= end;
            end = first.end();
            let same_pages = group.iter().all(|part| part.pages == first.pages);
            follows && same_pages && group.is_sorted_by(|one, other| one.leaf < other.leaf)
        })
    }
}

/// Parts that begin with the same page, as long as they stand together.
fn groups(parts: &[Part]) -> impl Iterator<Item = &[Part]> {
    parts.chunk_by(|one, other| one.page == other.page)
}

/// Cuts parts that came in any order where others begin and end, so that those of the same pages are a group.
fn sweep(mut parts: Vec<Part>) -> Result<DivisionBuilder, Overlap> {
    parts.sort_unstable_by_key(|part| part.page);
    let mut swept = DivisionBuilder::default();
    let mut coming = parts.iter().copied().peekable();
    let mut here: Vec<Part> = Vec::new();
    let mut page = 0;
    loop {
        here.retain(|part| part.end() > page);
        if here.is_empty() {
            let Some(next) = coming.peek() else {
                swept.close();
                return Ok(swept);
            };
            page = next.page;
        }
        while let Some(part) = coming.next_if(|part| part.page == page) {
            here.push(part);
        }
        let claimed: u64 = here.iter().map(|part| u64::from(part.bytes)).sum();
        if claimed > PAGE {
            return Err(Overlap {
                address: page * PAGE,
            });
        }
        let ends = here
            .iter()
            .map(Part::end)
            .chain(coming.peek().map(|part| part.page));
        let end = ends.min().expect("not empty");
        swept.group(page, (end - page) as u32, &here);
        page = end;
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
    fn runs_divide_as_their_ranges_do_and_so_do_those_that_others_take_over() {
        let ranges = [
            (0x1000..0x1010, Leaf::HeapObjects),
            (0x1010..0x1010, Leaf::HeapFree),
            (0x1010..0x3000, Leaf::HeapObjects),
            (0x3000..0x3008, Leaf::HeapFree),
            (0x3010..0x3018, Leaf::HeapFree),
            (0x3018..0x5000, Leaf::HeapObjects),
            (0x5000..0x9000, Leaf::HeapFree),
        ];
        let runs = |ranges: &[(Range<u64>, Leaf)]| {
            let mut runs = Runs::default();
            for (range, leaf) in ranges {
                runs.add(range.clone(), *leaf);
            }
            runs
        };
        assert_eq!(
            runs(&ranges[..3]).last,
            Some((0x1000..0x3000, Leaf::HeapObjects)),
            "those that touch and have one leaf are one"
        );
        let whole = built(&ranges).expect("nothing overlaps");
        assert!(!whole.is_empty());
        // Where they are parted, both have bytes of one page.
        for parted in 0..=ranges.len() {
            let (first, rest) = ranges.split_at(parted);
            let mut taken = runs(first);
            taken.append(runs(rest));
            let division = taken.into_builder().build().expect("nothing overlaps");
            for page in (0x1000..0x9000).step_by(PAGE as usize) {
                let page = page..page + PAGE;
                assert_eq!(
                    division.leaves(page.clone()),
                    whole.leaves(page),
                    "{parted}"
                );
            }
        }
    }

    #[test]
    fn a_range_longer_than_a_run_can_be_is_counted_as_a_whole() {
        let end = (LONGEST_RUN + 10) * PAGE;
        let division = built(&[(0..end, Leaf::HeapFree)]).expect("nothing overlaps");
        assert_eq!(division.leaves(0..end + PAGE), [(Leaf::HeapFree, end)]);
    }

    #[test]
    fn pages_that_are_divided_alike_are_one_run() {
        let stacks = |order: &mut dyn Iterator<Item = u64>| {
            let mut builder = DivisionBuilder::default();
            for stack in order {
                let start = 0x10_0000 + stack * 2048;
                builder.add(start..start + 1800, Leaf::TaskStackUnused);
                builder.add(start + 1800..start + 2048, Leaf::TaskStack);
            }
            builder.build().expect("nothing overlaps")
        };
        let division = stacks(&mut (0..20_000));
        assert_eq!(division.parts.len(), 2);
        assert_eq!(stacks(&mut (0..20_000).rev()), division);
        assert_eq!(
            division.leaves(0x10_1000..0x10_3000),
            [
                (Leaf::TaskStack, 4 * 248),
                (Leaf::TaskStackUnused, 4 * 1800)
            ]
        );
    }

    #[test]
    fn what_comes_late_divides_a_run_anew() {
        //  page     1     2     3     4
        //  first   |half |half |half |half |
        //  then          |rest|
        let mut ranges: Vec<_> = (1..5)
            .map(|page| (page * PAGE..page * PAGE + 2048, Leaf::MallocUsed))
            .collect();
        ranges.push((2 * PAGE + 2048..3 * PAGE, Leaf::HeapFree));
        let division = built(&ranges).expect("nothing overlaps");
        assert_eq!(division.parts.len(), 4);
        assert_eq!(division.leaves(PAGE..2 * PAGE), [(Leaf::MallocUsed, 2048)]);
        assert_eq!(
            division.leaves(2 * PAGE..4 * PAGE),
            [(Leaf::MallocUsed, 4096), (Leaf::HeapFree, 2048)]
        );
    }

    proptest! {
        /// Byte by byte, in whatever order they come.
        #[test]
        fn each_page_has_what_was_added(
            lengths in prop::collection::vec((1..3000_u64, 0..3_u8), 1..60),
            order in any::<u64>(),
        ) {
            let leaf = |of| [Leaf::HeapObjects, Leaf::HeapFree, Leaf::MallocUsed][usize::from(of)];
            let mut end = 0;
            let mut ranges: Vec<_> = lengths
                .iter()
                .map(|&(length, of)| {
                    end += length;
                    (end - length..end, leaf(of))
                })
                .collect();
            let ascending = built(&ranges).expect("nothing overlaps");
            ranges.sort_by_key(|(range, _)| (range.start + 1).wrapping_mul(order | 1));
            prop_assert_eq!(&built(&ranges).expect("nothing overlaps"), &ascending);
            for page in 0..end.div_ceil(PAGE) {
                let mut expected: BTreeMap<Leaf, u64> = BTreeMap::new();
                for (range, leaf) in &ranges {
                    let (start, end) = (range.start.max(page * PAGE), range.end.min((page + 1) * PAGE));
                    if start < end {
                        *expected.entry(*leaf).or_default() += end - start;
                    }
                }
                let found = ascending.leaves(page * PAGE..(page + 1) * PAGE);
                prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            }
        }

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
