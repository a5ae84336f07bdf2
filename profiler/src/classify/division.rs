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

/// Bytes of one leaf on each page of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Share {
    /// More than a page has are what [`Overlap`] tells of.
    bytes: u16,
    leaf: Leaf,
    /// The next share is of other pages.
    is_last: bool,
}

/// Pages one after the other that are divided alike. A million tasks make hundreds of thousands of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Run {
    /// Number of the first page, its lower half and its upper one: a `u64` would stand at every eighth byte.
    page: [u32; 2],
    /// Up to 16 TiB.
    pages: u32,
}

impl Run {
    /// Pages of the longest run.
    const LONGEST: u64 = u32::MAX as u64;

    /// `pages` is at most [`Run::LONGEST`].
    fn new(page: u64, pages: u64) -> Run {
        debug_assert!(pages <= Self::LONGEST);
        Run {
            page: [page as u32, (page >> 32) as u32],
            pages: pages as u32,
        }
    }

    /// Number of the first page.
    fn page(self) -> u64 {
        let [lower, upper] = self.page.map(u64::from);
        upper << 32 | lower
    }

    fn pages(self) -> u64 {
        self.pages.into()
    }

    /// One past the last page.
    fn end(self) -> u64 {
        self.page() + self.pages()
    }
}

/// Runs and the shares of each: 12 bytes a run and 4 a share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct DividedRuns {
    runs: Vec<Run>,
    /// Those of all runs, one after the other.
    shares: Vec<Share>,
    /// Where those of every [`STRIDE`]th run begin.
    begins: Vec<usize>,
}

/// Shares are looked for from so many runs before.
const STRIDE: usize = 16;

impl DividedRuns {
    /// `shares` is not empty, and none but the last is one.
    fn push(&mut self, run: Run, shares: &[Share]) {
        if self.runs.len().is_multiple_of(STRIDE) {
            self.begins.push(self.shares.len());
        }
        self.runs.push(run);
        self.shares.extend_from_slice(shares);
        if let Some(last) = self.shares.last_mut() {
            last.is_last = true;
        }
    }

    /// The runs from this one on, each with its shares.
    fn from(&self, index: usize) -> impl Iterator<Item = (Run, &[Share])> {
        let mark = index / STRIDE;
        let runs = self.runs.get(mark * STRIDE..).unwrap_or_default();
        let begin = self.begins.get(mark).copied().unwrap_or(self.shares.len());
        let shares = self.shares.get(begin..).unwrap_or_default();
        let shares = shares.chunk_by(|share, _| !share.is_last);
        runs.iter().copied().zip(shares).skip(index % STRIDE)
    }

    fn iter(&self) -> impl Iterator<Item = (Run, &[Share])> {
        self.from(0)
    }

    /// The last run, and its shares.
    fn last(&self) -> Option<(Run, &[Share])> {
        let run = *self.runs.last()?;
        let (_, before) = self.shares.split_last()?;
        let begin = before.iter().rposition(|share| share.is_last);
        Some((run, &self.shares[begin.map_or(0, |index| index + 1)..]))
    }

    fn append(&mut self, other: DividedRuns) {
        if self.runs.is_empty() {
            *self = other;
            return;
        }
        self.runs.reserve(other.runs.len());
        self.shares.reserve(other.shares.len());
        for (run, shares) in other.iter() {
            self.push(run, shares);
        }
    }
}

/// See the module. Bytes that are in no run keep the leaf of their region.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Division {
    /// What each adapter found, none of it empty. In the order of pages, the shares of each in that of leaves; no page is in
    /// two runs of one layer.
    layers: Vec<DividedRuns>,
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
    /// Runs in the order in which they came. None is divided as the one before it where they touch.
    closed: DividedRuns,
    /// The last one, to which bytes of its page are added.
    open: Run,
    /// Its shares; empty where none is open.
    shares: Vec<Share>,
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

    /// So many bytes on each of some pages.
    fn part(&mut self, mut page: u64, mut pages: u64, bytes: u64, leaf: Leaf) {
        while pages > Run::LONGEST {
            self.part(page, Run::LONGEST, bytes, leaf);
            (page, pages) = (page + Run::LONGEST, pages - Run::LONGEST);
        }
        if pages == 0 || bytes == 0 {
            return;
        }
        let run = Run::new(page, pages);
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        // The blocks of one page mostly come one after the other, of two or three leaves.
        if self.open != run || pages != 1 {
            self.close();
            self.open = run;
        }
        self.share(bytes, leaf);
    }

    /// More bytes on each page of the open run.
    fn share(&mut self, bytes: u16, leaf: Leaf) {
        match self.shares.iter_mut().find(|share| share.leaf == leaf) {
            Some(share) => share.bytes = share.bytes.saturating_add(bytes),
            None => self.shares.push(Share {
                bytes,
                leaf,
                is_last: false,
            }),
        }
    }

    /// The last run is complete: it joins the one before where both are divided alike.
    fn close(&mut self) {
        let (run, shares) = (self.open, &mut self.shares);
        if shares.is_empty() {
            return;
        }
        shares.sort_unstable_by_key(|share| share.leaf);
        let alike =
            |(one, other): (&Share, &Share)| (one.bytes, one.leaf) == (other.bytes, other.leaf);
        let joined = self.closed.last().and_then(|(before, others)| {
            let pages = before.pages() + run.pages();
            (before.end() == run.page()
                && pages <= Run::LONGEST
                && others.len() == shares.len()
                && others.iter().zip(shares.iter()).all(alike))
            .then(|| Run::new(before.page(), pages))
        });
        match (joined, self.closed.runs.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => self.closed.push(run, shares),
        }
        shares.clear();
    }

    /// Takes over what another has collected, whose last page may be added to.
    pub fn append_builder(&mut self, other: DivisionBuilder) {
        self.close();
        self.closed.append(other.closed);
        (self.open, self.shares) = (other.open, other.shares);
    }

    /// The division; refused when ranges overlap, as far as that shows: by page.
    pub fn build(mut self) -> Result<Division, Overlap> {
        self.close();
        let mut divided = match is_in_order(&self.closed) {
            true => self.closed,
            false => sweep(self.closed)?,
        };
        if let Some((run, _)) = divided.iter().find(|(_, shares)| claimed(shares) > PAGE) {
            return Err(Overlap {
                address: run.page() * PAGE,
            });
        }
        divided.runs.shrink_to_fit();
        divided.shares.shrink_to_fit();
        divided.begins.shrink_to_fit();
        let layers = Vec::from_iter((!divided.runs.is_empty()).then_some(divided));
        Ok(Division { layers })
    }
}

/// Bytes on each page.
fn claimed(shares: &[Share]) -> u64 {
    shares.iter().map(|share| u64::from(share.bytes)).sum()
}

/// Every page is in one run.
fn is_in_order(divided: &DividedRuns) -> bool {
    let follows = |pair: &[Run]| pair[0].end() <= pair[1].page();
    divided.runs.windows(2).all(follows)
}

/// Cuts runs that came in any order where others begin and end.
fn sweep(divided: DividedRuns) -> Result<DividedRuns, Overlap> {
    let mut order: Vec<u32> = (0..divided.runs.len() as u32).collect();
    order.sort_unstable_by_key(|&index| divided.runs[index as usize].page());
    let run = |&index| divided.from(index as usize).next().expect("there is one");
    let mut swept = DivisionBuilder::default();
    cut(order.iter().map(run), |run, shares| {
        swept.close();
        swept.open = run;
        shares
            .flatten()
            .for_each(|share| swept.share(share.bytes, share.leaf));
    })?;
    swept.close();
    Ok(swept.closed)
}

/// Cuts runs that come in the order of their first pages where others begin and end, and gives each piece with the
/// shares of all that have it.
fn cut<'a>(
    coming: impl Iterator<Item = (Run, &'a [Share])>,
    mut each: impl FnMut(Run, &mut dyn Iterator<Item = &'a [Share]>),
) -> Result<(), Overlap> {
    let mut coming = coming.peekable();
    let mut here: Vec<(Run, &[Share])> = Vec::new();
    let mut page = 0;
    loop {
        here.retain(|(run, _)| run.end() > page);
        if here.is_empty() {
            let Some((next, _)) = coming.peek() else {
                return Ok(());
            };
            page = next.page();
        }
        while let Some(next) = coming.next_if(|(run, _)| run.page() == page) {
            here.push(next);
        }
        let of_all = here.iter().map(|(_, shares)| claimed(shares));
        if of_all.sum::<u64>() > PAGE {
            return Err(Overlap {
                address: page * PAGE,
            });
        }
        let ends = here
            .iter()
            .map(|(run, _)| run.end())
            .chain(coming.peek().map(|(run, _)| run.page()));
        let end = ends.min().expect("not empty");
        each(
            Run::new(page, end - page),
            &mut here.iter().map(|(_, shares)| *shares),
        );
        page = end;
    }
}

impl Division {
    /// Whether nothing is divided.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// What several adapters found in one process, each of it as it is: some divide pages that others have a part of. Refused
    /// where they overlap.
    pub fn of_layers(divisions: Vec<Division>) -> Result<Division, Overlap> {
        let layers: Vec<_> = divisions.into_iter().flat_map(|it| it.layers).collect();
        let mut coming: Vec<_> = layers.iter().map(|it| it.iter().peekable()).collect();
        let lowest_first = std::iter::from_fn(move || {
            let page = |(run, _): &(Run, &[Share])| run.page();
            let next = coming
                .iter_mut()
                .filter_map(|layer| Some((layer.peek().map(page)?, layer)));
            let (_, layer) = next.min_by_key(|(page, _)| *page)?;
            layer.next()
        });
        cut(lowest_first, |_, _| {})?;
        Ok(Division { layers })
    }

    /// Adds the bytes of a resident range, by leaf. Both ends lie on page boundaries.
    pub fn add_up(&self, resident: &ResidentRange, bytes: &mut BTreeMap<Leaf, u64>) {
        debug_assert!(resident.start.is_multiple_of(PAGE) && resident.end.is_multiple_of(PAGE));
        let (first, end) = (resident.start / PAGE, resident.end / PAGE);
        for layer in &self.layers {
            let from = layer.runs.partition_point(|run| run.end() <= first);
            if layer.runs.get(from).is_none_or(|run| run.page() >= end) {
                continue;
            }
            for (run, shares) in layer.from(from).take_while(|(run, _)| run.page() < end) {
                let pages = run.end().min(end) - run.page().max(first);
                for share in shares {
                    *bytes.entry(share.leaf).or_default() += pages * u64::from(share.bytes);
                }
            }
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

    /// Runs and shares of each layer.
    fn lengths(division: &Division) -> Vec<(usize, usize)> {
        let of_layer = |layer: &DividedRuns| (layer.runs.len(), layer.shares.len());
        division.layers.iter().map(of_layer).collect()
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
        let end = (Run::LONGEST + 10) * PAGE;
        let division = built(&[(0..end, Leaf::HeapFree)]).expect("nothing overlaps");
        assert_eq!(division.leaves(0..end + PAGE), [(Leaf::HeapFree, end)]);
    }

    #[test]
    fn adapters_may_divide_parts_of_one_page_but_not_the_same_bytes() {
        let chunks = built(&[
            (0x1000..0x1010, Leaf::MallocUsed),
            (0x4800..0x6000, Leaf::HeapFree),
        ])
        .expect("nothing overlaps");
        let arena = |end| built(&[(0x1010..end, Leaf::HeapObjects)]).expect("alone");
        let both = Division::of_layers(vec![chunks.clone(), Division::default(), arena(0x4800)])
            .expect("nothing overlaps");
        assert_eq!(
            both.leaves(0x1000..0x2000),
            [(Leaf::MallocUsed, 0x10), (Leaf::HeapObjects, 0xff0)]
        );
        assert_eq!(
            both.leaves(0x2000..0x6000),
            [(Leaf::HeapObjects, 0x2800), (Leaf::HeapFree, 0x1800)]
        );
        assert_eq!(
            Division::of_layers(vec![arena(0x4801), chunks]),
            Err(Overlap { address: 0x4000 })
        );
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
        assert_eq!(lengths(&division), [(1, 2)]);
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
        assert_eq!(lengths(&division), [(3, 4)]);
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
