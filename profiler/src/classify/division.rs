//! How the bytes of pages divide among leaves, where an adapter looked inside a heap or a stack.
//!
//! Only whole pages are resident, so all that is needed of an allocator's blocks is how many bytes of
//! each page belong to which leaf. Neighbours that are divided alike are kept as one run, and a page between others takes
//! a number: heaps are divided in some hundreds of ways, which are kept once. The blocks of a million tasks take one or two
//! megabytes so, and a million stacks that are used alike next to nothing.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    iter::repeat_n,
    ops::Range,
};

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use super::Leaf;
use crate::{
    residency::ResidentRange,
    units::{PAGE, page_ceil, page_floor},
};

/// Bytes of one leaf on a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Share {
    /// More than a page has are what [`Overlap`] tells of.
    bytes: u16,
    leaf: Leaf,
}

/// Pages one after the other, all divided in the same way or each in its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Number of the first page, its lower half and its upper one: a `u64` would stand at every eighth byte.
    page: [u32; 2],
    /// Up to 16 TiB.
    pages: u32,
    /// The number of the way; with [`Run::EACH`], where those of its pages begin.
    way: u32,
}

impl Run {
    /// Pages of the longest run.
    const LONGEST: u64 = u32::MAX as u64;
    /// Each page has a way of its own.
    const EACH: u32 = 1 << 31;
    /// So many pages alike, in a run of pages with ways of their own, become a run by themselves.
    const ALIKE: u32 = 8;

    /// There are at most [`Run::LONGEST`] of them.
    fn new(pages: Range<u64>, way: u32) -> Run {
        let number = pages.end - pages.start;
        debug_assert!(number <= Self::LONGEST);
        Run {
            page: [pages.start as u32, (pages.start >> 32) as u32],
            pages: number as u32,
            way,
        }
    }

    /// Number of the first page.
    fn first(self) -> u64 {
        let [lower, upper] = self.page.map(u64::from);
        upper << 32 | lower
    }

    /// One past the last page.
    fn end(self) -> u64 {
        self.first() + u64::from(self.pages)
    }

    fn is_each(self) -> bool {
        self.way & Self::EACH != 0
    }
}

/// Pages, and the way in which each is divided. A million tasks have hundreds of thousands of pages that are divided as few
/// others are next to them, but in some hundred ways in all; so such a page takes four bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct DividedPages {
    runs: Vec<Run>,
    /// Ways of pages of runs that have one for each.
    each: Vec<u32>,
    /// Shares of all ways, one after the other.
    shares: Vec<Share>,
    /// Where those of each way begin.
    begins: Vec<u32>,
}

impl DividedPages {
    /// The shares of a way: not none, and in the order of leaves.
    fn shares(&self, way: u32) -> &[Share] {
        let begin = |way: usize| self.begins.get(way).map(|&at| at as usize);
        let from = begin(way as usize).unwrap_or(self.shares.len());
        let to = begin(way as usize + 1).unwrap_or(self.shares.len());
        &self.shares[from..to]
    }

    /// A way that is not there yet.
    fn add_way(&mut self, shares: &[Share]) -> u32 {
        let way = self.begins.len();
        let begin = u32::try_from(self.shares.len()).expect("fewer than 2^32: 16 GiB");
        self.begins.push(begin);
        self.shares.extend_from_slice(shares);
        way as u32
    }

    /// Pages that come behind all others, or anywhere.
    fn push(&mut self, pages: Range<u64>, way: u32) {
        let number = (pages.end - pages.start) as u32;
        let last = self
            .runs
            .last_mut()
            .filter(|last| last.end() == pages.start && last.pages.checked_add(number).is_some());
        match last {
            Some(last) if last.way == way => last.pages += number,
            Some(last) if last.is_each() && number < Run::ALIKE => {
                last.pages += number;
                self.each.extend(repeat_n(way, number as usize));
                self.part_alike();
            }
            Some(last) if last.pages < Run::ALIKE && number < Run::ALIKE => {
                let begin = self.each.len() as u32;
                debug_assert!(begin & Run::EACH == 0, "of 8 TiB, all resident");
                self.each.extend(repeat_n(last.way, last.pages as usize));
                self.each.extend(repeat_n(way, number as usize));
                (last.pages, last.way) = (last.pages + number, begin | Run::EACH);
            }
            _ => self.runs.push(Run::new(pages, way)),
        }
    }

    /// Makes a run of the last pages, which have a way for each, where enough of them are alike.
    fn part_alike(&mut self) {
        let Some(last) = self.runs.last_mut() else {
            return;
        };
        let Some(rest) = last.pages.checked_sub(Run::ALIKE) else {
            return;
        };
        let kept = self.each.len() - Run::ALIKE as usize;
        let way = self.each[kept];
        if self.each[kept..].iter().any(|&it| it != way) {
            return;
        }
        let end = last.end();
        last.pages = rest;
        if rest == 0 {
            self.runs.pop();
        }
        self.each.truncate(kept);
        self.runs
            .push(Run::new(end - u64::from(Run::ALIKE)..end, way));
    }

    /// The way of a page of a run.
    fn way(&self, run: Run, page: u64) -> u32 {
        match run.is_each() {
            true => self.each[(run.way & !Run::EACH) as usize + (page - run.first()) as usize],
            false => run.way,
        }
    }

    /// Pages of a run that are divided in one way, each time with its number.
    fn ways(&self, run: Run, pages: Range<u64>) -> impl Iterator<Item = (Range<u64>, u32)> {
        let end = pages.end;
        let length = match run.is_each() {
            true => 1,
            false => end.saturating_sub(pages.start).max(1),
        };
        pages
            .step_by(length as usize)
            .map(move |page| (page..(page + length).min(end), self.way(run, page)))
    }

    /// The same with its shares.
    fn pieces(&self, run: Run, pages: Range<u64>) -> impl Iterator<Item = (Range<u64>, &[Share])> {
        let ways = self.ways(run, pages);
        ways.map(|(pages, way)| (pages, self.shares(way)))
    }

    /// All pieces, run after run.
    fn iter(&self) -> impl Iterator<Item = (Range<u64>, &[Share])> {
        let runs = self.runs.iter().copied();
        runs.flat_map(|run| self.pieces(run, run.first()..run.end()))
    }

    /// Every page is in one run.
    fn is_in_order(&self) -> bool {
        let follows = |pair: &[Run]| pair[0].end() <= pair[1].first();
        self.runs.windows(2).all(follows)
    }

    /// The pieces in the order of their first pages.
    fn sorted(&self) -> impl Iterator<Item = (Range<u64>, &[Share])> {
        let pieces = |(index, run): (usize, &Run)| {
            let number = if run.is_each() { run.pages } else { 1 };
            (0..number).map(move |behind| (index as u32, behind))
        };
        let mut order: Vec<(u32, u32)> = self.runs.iter().enumerate().flat_map(pieces).collect();
        let place = |&(index, behind): &(u32, u32)| {
            let run = self.runs[index as usize];
            (run, run.first() + u64::from(behind))
        };
        order.sort_unstable_by_key(|piece| place(piece).1);
        order.into_iter().flat_map(move |piece| {
            let (run, page) = place(&piece);
            let end = if run.is_each() { page + 1 } else { run.end() };
            self.pieces(run, page..end)
        })
    }
}

/// See the module. Bytes that are in no run keep the leaf of their region.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Division {
    /// What each adapter found, none of it empty. In the order of pages, the shares of each in that of leaves; no page is in
    /// two runs of one layer.
    layers: Vec<DividedPages>,
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
    /// Pages in the order in which they came.
    closed: DividedPages,
    /// Numbers of the ways, by their shares.
    known: HashTable<u32>,
    hashes: RandomState,
    /// The last pages, to which bytes are added.
    open: Range<u64>,
    /// Their shares; empty where none are open.
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
        let run = page..page + pages;
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        // The blocks of one page mostly come one after the other, of two or three leaves.
        if self.open != run || pages != 1 {
            self.close();
            self.open = run;
        }
        self.share(bytes, leaf);
    }

    /// More bytes on each of the open pages.
    fn share(&mut self, bytes: u16, leaf: Leaf) {
        match self.shares.iter_mut().find(|share| share.leaf == leaf) {
            Some(share) => share.bytes = share.bytes.saturating_add(bytes),
            None => self.shares.push(Share { bytes, leaf }),
        }
    }

    /// The open pages are complete.
    fn close(&mut self) {
        if self.shares.is_empty() {
            return;
        }
        self.shares.sort_unstable_by_key(|share| share.leaf);
        let mut shares = std::mem::take(&mut self.shares);
        let way = self.way(&shares);
        self.closed.push(self.open.clone(), way);
        shares.clear();
        self.shares = shares;
    }

    /// The number of the way with these shares, which are in the order of leaves.
    fn way(&mut self, shares: &[Share]) -> u32 {
        let hash = self.hashes.hash_one(shares);
        let known = self
            .known
            .find(hash, |&way| self.closed.shares(way) == shares);
        known.copied().unwrap_or_else(|| {
            let way = self.closed.add_way(shares);
            let hash_of = |&way: &u32| self.hashes.hash_one(self.closed.shares(way));
            self.known.insert_unique(hash, way, hash_of);
            way
        })
    }

    /// Takes over what another has collected, whose last page may be added to.
    pub fn append_builder(&mut self, other: DivisionBuilder) {
        self.close();
        if self.closed.runs.is_empty() {
            *self = other;
            return;
        }
        self.closed.runs.reserve(other.closed.runs.len());
        self.closed.each.reserve(other.closed.each.len());
        // Of its ways there are far fewer than of its pages.
        let its_ways = 0..other.closed.begins.len() as u32;
        let ours: Vec<u32> = its_ways
            .map(|way| self.way(other.closed.shares(way)))
            .collect();
        for &run in &other.closed.runs {
            for (pages, way) in other.closed.ways(run, run.first()..run.end()) {
                self.closed.push(pages, ours[way as usize]);
            }
        }
        (self.open, self.shares) = (other.open, other.shares);
    }

    /// The division; refused when ranges overlap, as far as that shows: by page.
    pub fn build(mut self) -> Result<Division, Overlap> {
        self.close();
        let mut divided = match self.closed.is_in_order() {
            true => self.closed,
            false => sweep(&self.closed)?,
        };
        if let Some((pages, _)) = divided.iter().find(|(_, shares)| claimed(shares) > PAGE) {
            return Err(Overlap {
                address: pages.start * PAGE,
            });
        }
        divided.runs.shrink_to_fit();
        divided.each.shrink_to_fit();
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

/// Cuts pieces that came in any order where others begin and end.
fn sweep(divided: &DividedPages) -> Result<DividedPages, Overlap> {
    let mut swept = DivisionBuilder::default();
    cut(divided.sorted(), |pages, shares| {
        swept.close();
        swept.open = pages;
        shares
            .flatten()
            .for_each(|share| swept.share(share.bytes, share.leaf));
    })?;
    swept.close();
    Ok(swept.closed)
}

/// Cuts pieces that come in the order of their first pages where others begin and end, and gives each part with the
/// shares of all that have it.
fn cut<'a>(
    coming: impl Iterator<Item = (Range<u64>, &'a [Share])>,
    mut each: impl FnMut(Range<u64>, &mut dyn Iterator<Item = &'a [Share]>),
) -> Result<(), Overlap> {
    let mut coming = coming.peekable();
    let mut here: Vec<(Range<u64>, &[Share])> = Vec::new();
    let mut page = 0;
    loop {
        here.retain(|(pages, _)| pages.end > page);
        if here.is_empty() {
            let Some((next, _)) = coming.peek() else {
                return Ok(());
            };
            page = next.start;
        }
        while let Some(next) = coming.next_if(|(pages, _)| pages.start == page) {
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
            .map(|(pages, _)| pages.end)
            .chain(coming.peek().map(|(pages, _)| pages.start));
        let end = ends.min().expect("not empty");
        each(page..end, &mut here.iter().map(|(_, shares)| *shares));
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
            let page = |(pages, _): &(Range<u64>, &[Share])| pages.start;
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
            let runs = layer.runs.iter().skip(from);
            for run in runs.take_while(|run| run.first() < end) {
                let inside = run.first().max(first)..run.end().min(end);
                for (pages, shares) in layer.pieces(*run, inside) {
                    for share in shares {
                        *bytes.entry(share.leaf).or_default() +=
                            (pages.end - pages.start) * u64::from(share.bytes);
                    }
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

    fn builder(ranges: &[(Range<u64>, Leaf)]) -> DivisionBuilder {
        let mut builder = DivisionBuilder::default();
        for (range, leaf) in ranges {
            builder.add(range.clone(), *leaf);
        }
        builder
    }

    fn built(ranges: &[(Range<u64>, Leaf)]) -> Result<Division, Overlap> {
        builder(ranges).build()
    }

    /// Runs, ways of single pages, and ways of each layer.
    fn lengths(division: &Division) -> Vec<(usize, usize, usize)> {
        let of_layer =
            |layer: &DividedPages| (layer.runs.len(), layer.each.len(), layer.begins.len());
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
        assert_eq!(lengths(&division), [(1, 0, 1)]);
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
    fn pages_that_are_divided_each_in_its_way_take_a_number_each_until_they_are_alike() {
        let used = [1, 2, 1, 3, 3, 2].into_iter().chain([5; 1000]);
        let ranges: Vec<_> = (10..)
            .zip(used)
            .map(|(page, used)| (page * PAGE..page * PAGE + 8 * used, Leaf::MallocUsed))
            .collect();
        let division = built(&ranges).expect("nothing overlaps");
        assert_eq!(lengths(&division), [(2, 6, 4)]);
        assert_eq!(
            division.leaves(11 * PAGE..14 * PAGE),
            [(Leaf::MallocUsed, 8 * (2 + 1 + 3))]
        );
        assert_eq!(
            division.leaves(15 * PAGE..2000 * PAGE),
            [(Leaf::MallocUsed, 8 * (2 + 1000 * 5))]
        );
        // In two parts, of which the second knows nothing of the first one's ways.
        let (first, rest) = ranges.split_at(3);
        let mut both = builder(first);
        both.append_builder(builder(rest));
        let both = both.build().expect("nothing overlaps");
        for page in (9 * PAGE..1100 * PAGE).step_by(PAGE as usize) {
            let page = page..page + PAGE;
            assert_eq!(both.leaves(page.clone()), division.leaves(page));
        }
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
        assert_eq!(lengths(&division), [(1, 4, 2)]);
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
