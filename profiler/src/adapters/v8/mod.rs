//! V8 (Node.js): which bytes of its heap hold objects, by space.
//!
//! The heap has spaces; a space has a list of pages of 256 KiB, aligned to that (one object may have a
//! larger one), and says how much memory it has committed. A page says which space owns it, where its
//! objects may lie (its *area*), and which pieces of that are on a free list:
//!
//! ```text
//! Heap -> space_[id] -> page -> next page ...          sizes sum to committed_
//!                       | header |     area: objects and free pieces     | rest |
//! ```
//!
//! Any page leads to the heap, and the heap to all pages; every step back must agree, so the table of
//! offsets proves itself on each process. What is in use is the area without the free pieces and without
//! the rest of the linear area that the main thread allocates from. In new space objects are laid one
//! after the other: what lies behind the last one, and the semispace that waits for the next collection,
//! hold nothing.
//!
//! Dead objects that no collection has found yet are in use, as V8 counts them too. Sources: src/heap of
//! the versions in [`layout`].

mod layout;

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
    path::PathBuf,
};

use self::layout::{
    CATEGORY_AVAILABLE, CATEGORY_TOP, FREE_LIST_CATEGORIES, FREE_NEXT, FREE_SIZE, Layout, Linear,
    PageStructure, SPACE_COMMITTED, SPACE_FIRST_PAGE, SPACE_HEAP, SPACE_ID, layout_of, version_of,
};
use super::{
    Books, Refusal, Target,
    memory::{Memory, Unreadable, Words},
};
use crate::{
    classify::{
        Leaf,
        division::DivisionBuilder,
        place::Region,
        runtime::{Runtime, file_name},
    },
    units::{KIB, PAGE},
};

/// Size and alignment of a page (`kPageSizeBits` is 18, src/base/build_config.h).
const PAGE_SIZE: u64 = 256 * KIB;
/// The smallest piece on a free list (`FreeList::min_block_size_`, three words).
const SMALLEST_FREE: u64 = 24;
/// Pointers to objects have this bit (`kHeapObjectTag`, include/v8-internal.h).
const TAG: u64 = 1;
/// More than any version has (24 in all that are known).
const MOST_CATEGORIES: u32 = 64;

/// Its pages have a list of another kind, and the rule `v8.read_only`.
const READ_ONLY_SPACE: &str = "read_only_space";
const OLD_SPACE: &str = "old_space";
const NEW_SPACE: &str = "new_space";

/// The rules whose regions hold V8's pages.
const RULES: [&str; 2] = ["v8.heap", "v8.code"];

/// Divides the pages of every heap of V8 in the process.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    if target.runtime != Runtime::Node || target.regions_of("v8.heap").next().is_none() {
        return Ok(None);
    }
    divide_by(layout_of(version_of(&image(target))?)?, target, into).map(Some)
}

/// The file that V8 is in: libnode, or the program.
fn image(target: &Target) -> PathBuf {
    let names = target.process.vmas.iter().filter_map(|vma| vma.name());
    let library = names
        .into_iter()
        .find(|path| file_name(path).starts_with("libnode.so"));
    let path = library.unwrap_or(&target.image.path);
    PathBuf::from(format!("/proc/{}/root{path}", target.process.tgid))
}

fn divide_by(
    layout: &'static Layout,
    target: &Target,
    into: &mut DivisionBuilder,
) -> Result<Books, Refusal> {
    let mut walk = Walk {
        memory: target.memory,
        layout,
        regions: target.regions,
        pages: HashSet::new(),
        free_map: None,
        books: Books::new(),
    };
    let mut heaps = BTreeSet::new();
    for region in target.regions_of("v8.heap") {
        let mut page = region.range.start.next_multiple_of(PAGE_SIZE);
        while page < region.range.end {
            if !walk.pages.contains(&page)
                && let Some(heap) = walk.heap_of(page)
                && heaps.insert(heap)
            {
                walk.heap(heap, into)?;
            }
            page += PAGE_SIZE;
        }
    }
    if heaps.is_empty() {
        return Err(Refusal("no page of V8's leads to a heap".into()));
    }
    walk.count("heaps", heaps.len() as u64);
    walk.count("pages", walk.pages.len() as u64);
    Ok(walk.books)
}

/// The rests of linear areas that lie in the area of a page.
fn rest_of<'a>(
    linear: &'a [Range<u64>],
    area: &Range<u64>,
) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let area = area.clone();
    linear
        .iter()
        .filter(move |rest| rest.start < rest.end && area.contains(&rest.start))
        .cloned()
}

/// One page, its numbers checked against each other.
#[derive(Debug, Clone)]
struct Page {
    /// Its structure, in the page or elsewhere.
    at: u64,
    /// All of it.
    whole: Range<u64>,
    /// Where objects may lie.
    area: Range<u64>,
    next: u64,
}

struct Walk<'a> {
    memory: &'a Memory<'a>,
    layout: &'static Layout,
    /// All of the process, in address order.
    regions: &'a [Region<'a>],
    /// First bytes of the pages seen; none is seen twice.
    pages: HashSet<u64>,
    /// The map of `FreeSpace`, the same for every free piece of the heap.
    free_map: Option<u64>,
    books: Books,
}

impl Walk<'_> {
    fn count(&mut self, name: &str, amount: u64) {
        let book = self.books.entry(name.into()).or_default();
        *book = book.saturating_add(amount);
    }

    fn word(&self, base: u64, offset: u64) -> Result<u64, Unreadable> {
        let address = base
            .checked_add(offset)
            .ok_or(Unreadable { address: base })?;
        self.memory.u64(address)
    }

    fn half(&self, base: u64, offset: u64) -> Result<u32, Unreadable> {
        let address = base
            .checked_add(offset)
            .ok_or(Unreadable { address: base })?;
        self.memory.u32(address)
    }

    /// The heap that this page belongs to, if it is a page of V8's.
    fn heap_of(&self, page: u64) -> Option<u64> {
        let at = match self.layout.page_structure {
            PageStructure::InPage => page,
            PageStructure::Pointer => self.word(page, 8).ok()?,
        };
        let heap = self.word(at, self.layout.heap).ok()?;
        let id = self
            .layout
            .spaces
            .iter()
            .position(|&name| name == OLD_SPACE)?;
        let space = self.space(heap, id).ok()??;
        (self.word(space, SPACE_HEAP) == Ok(heap) && self.half(space, SPACE_ID) == Ok(id as u32))
            .then_some(heap)
    }

    /// The space of this identity.
    fn space(&self, heap: u64, id: usize) -> Result<Option<u64>, Unreadable> {
        let space = self.word(heap, self.layout.heap_spaces + 8 * id as u64)?;
        Ok((space != 0).then_some(space))
    }

    fn heap(&mut self, heap: u64, into: &mut DivisionBuilder) -> Result<(), Refusal> {
        self.free_map = None;
        let linear = self.linear_areas(heap)?;
        for (id, &name) in self.layout.spaces.iter().enumerate() {
            if name == READ_ONLY_SPACE {
                continue;
            }
            // So that every space of the version stands in the books.
            self.count(&format!("{name}_used_bytes"), 0);
            self.count(&format!("{name}_committed_bytes"), 0);
            let Some(space) = self.space(heap, id)? else {
                continue;
            };
            self.check_space(space, heap, id)?;
            if name == NEW_SPACE {
                self.new_space(space, heap, id, &linear, into)?;
            } else {
                let pages = self.pages_of(space, heap)?;
                let leaf = match name.starts_with("code_") {
                    true => Leaf::Jit,
                    false => Leaf::HeapObjects,
                };
                for page in &pages {
                    let (free, lost) = match name.contains("large_object") {
                        true => (Vec::new(), 0),
                        false => self.free_of(page, space, &linear)?,
                    };
                    let used = self.split(name, page, free, leaf, into)?;
                    self.count(&format!("{name}_used_bytes"), used.saturating_sub(lost));
                    self.count("lost_bytes", lost);
                }
                if self.layout.linear_is_used {
                    let rests = pages.iter().flat_map(|page| rest_of(&linear, &page.area));
                    let bytes = rests.map(|rest| rest.end - rest.start).sum();
                    self.count(&format!("{name}_used_bytes"), bytes);
                }
            }
        }
        Ok(())
    }

    fn check_space(&self, space: u64, heap: u64, id: usize) -> Result<(), Refusal> {
        let (its_heap, its_id) = (self.word(space, SPACE_HEAP)?, self.half(space, SPACE_ID)?);
        if its_heap != heap || its_id != id as u32 {
            return Err(Refusal(format!(
                "what should be {} of the heap at {heap:#x} is no space of it: {space:#x}",
                self.layout.spaces[id]
            )));
        }
        Ok(())
    }

    /// What the main thread may still allocate without asking: `top..limit` of each linear area.
    fn linear_areas(&self, heap: u64) -> Result<Vec<Range<u64>>, Refusal> {
        let mut infos = Vec::new();
        match self.layout.linear {
            Linear::OfSpace { pointer } => {
                for (id, name) in self.layout.spaces.iter().enumerate() {
                    if name.contains("large_object") || *name == READ_ONLY_SPACE {
                        continue;
                    }
                    if let Some(space) = self.space(heap, id)? {
                        infos.push(self.word(space, pointer)?);
                    }
                }
            }
            Linear::OfHeap {
                allocator,
                always,
                optional,
                pointer,
            } => {
                let allocators = self.word(heap, allocator)?;
                for &offset in always {
                    infos.push(self.word(allocators, offset + pointer)?);
                }
                for &(offset, flag) in optional {
                    if self.half(allocators, flag)? & 0xff != 0 {
                        infos.push(self.word(allocators, offset + pointer)?);
                    }
                }
            }
        }
        let mut areas = Vec::new();
        for info in infos {
            let (start, top, limit) = (
                self.word(info, 0)?,
                self.word(info, 8)?,
                self.word(info, 16)?,
            );
            let one_page = limit == 0 || top / PAGE_SIZE == (limit - 1) / PAGE_SIZE || top == limit;
            if start > top || top > limit || !one_page {
                return Err(Refusal(format!(
                    "the linear area at {info:#x} goes from {start:#x} by {top:#x} to {limit:#x}"
                )));
            }
            areas.push(top..limit);
        }
        Ok(areas)
    }

    /// The pages in the list of a space, held against what it has committed.
    fn pages_of(&mut self, space: u64, heap: u64) -> Result<Vec<Page>, Refusal> {
        let committed = self.word(space, SPACE_COMMITTED)?;
        let mut pages = Vec::new();
        let mut bytes: u64 = 0;
        let mut at = self.word(space, SPACE_FIRST_PAGE)?;
        while at != 0 {
            let page = self.page(at, space, heap)?;
            bytes = bytes.saturating_add(page.whole.end - page.whole.start);
            if bytes > committed || !self.pages.insert(page.whole.start) {
                return Err(Refusal(format!(
                    "the pages of the space at {space:#x} do not end at {at:#x}"
                )));
            }
            at = page.next;
            pages.push(page);
        }
        if bytes != committed {
            return Err(Refusal(format!(
                "the space at {space:#x} has committed {committed} bytes, its pages have {bytes}"
            )));
        }
        Ok(pages)
    }

    /// Whether memory begins in a region with pages and reaches into no region without.
    fn holds_pages(&self, memory: &Range<u64>) -> bool {
        let first = self
            .regions
            .partition_point(|region| region.range.end <= memory.start);
        let mut inside = self.regions[first..]
            .iter()
            .take_while(|region| region.range.start < memory.end);
        let begins = self
            .regions
            .get(first)
            .is_some_and(|region| region.range.contains(&memory.start));
        begins && inside.all(|region| RULES.contains(&region.rule.id))
    }

    fn page(&self, at: u64, space: u64, heap: u64) -> Result<Page, Refusal> {
        let layout = self.layout;
        let area = self.word(at, layout.area_start)?..self.word(at, layout.area_end)?;
        let start = area.start & !(PAGE_SIZE - 1);
        let size = self.word(at, layout.size)?;
        let leads_back = match layout.page_structure {
            PageStructure::InPage => start == at,
            PageStructure::Pointer => self.word(start, 8)? == at,
        };
        let ours = self.word(at, layout.heap)? == heap && self.word(at, layout.owner)? == space;
        let end = start
            .checked_add(size)
            .filter(|&end| size.is_multiple_of(PAGE) && area.start <= area.end && area.end <= end);
        let end = end.filter(|&end| self.holds_pages(&(start..end)));
        match end {
            Some(end) if leads_back && ours => Ok(Page {
                at,
                whole: start..end,
                area,
                next: self.word(at, layout.next)?,
            }),
            _ => Err(Refusal(format!(
                "what should be a page of the space at {space:#x} is none: {at:#x}"
            ))),
        }
    }

    /// The free pieces of a page, in address order, and the bytes that are lost between its objects.
    fn free_of(
        &mut self,
        page: &Page,
        space: u64,
        linear: &[Range<u64>],
    ) -> Result<(Vec<Range<u64>>, u64), Refusal> {
        let mut free: Vec<Range<u64>> = rest_of(linear, &page.area).collect();
        if self.word(page.at, self.layout.sweeping)? != 0 {
            // Its lists are being made. What is free on it stays with the objects.
            self.count("unswept_pages", 1);
            return self.lost(page, 0).map(|lost| (free, lost));
        }
        let list = self.word(space, self.layout.free_list)?;
        let categories = self.half(list, FREE_LIST_CATEGORIES)?;
        if categories > MOST_CATEGORIES {
            return Err(Refusal(format!(
                "the free list at {list:#x} has {categories} categories"
            )));
        }
        let table = self.word(page.at, self.layout.categories)?;
        let mut listed: u64 = 0;
        for number in 0..categories {
            let category = self.word(table, 8 * u64::from(number))?;
            listed += self.category(category, number, page, &mut free)?;
        }
        free.sort_unstable_by_key(|piece| piece.start);
        self.lost(page, listed).map(|lost| (free, lost))
    }

    /// Bytes of a page that are neither allocated nor on a list: pieces too small for one, and what is free
    /// on a page that is not swept. Nothing tells where they are. (`wasted_memory_` would name the former,
    /// but 13.6 leaves it as it is when a page shrinks.)
    fn lost(&mut self, page: &Page, listed: u64) -> Result<u64, Refusal> {
        let area = page.area.end - page.area.start;
        let allocated = self.word(page.at, self.layout.allocated)?;
        let lost = area
            .checked_sub(listed)
            .and_then(|left| left.checked_sub(allocated));
        lost.ok_or_else(|| {
            Refusal(format!(
                "of the {area} bytes of the page at {:#x} {allocated} are allocated and {listed} free",
                page.whole.start
            ))
        })
    }

    /// Appends the pieces of one category of a page; their bytes.
    fn category(
        &mut self,
        category: u64,
        number: u32,
        page: &Page,
        free: &mut Vec<Range<u64>>,
    ) -> Result<u64, Refusal> {
        if category == 0 {
            return Ok(0);
        }
        let wrong = |at: u64| {
            Refusal(format!(
                "list {number} of free pieces of the page at {:#x} leads to {at:#x}, which is none",
                page.whole.start
            ))
        };
        let available = u64::from(self.half(category, CATEGORY_AVAILABLE)?);
        let mut next = self.word(category, CATEGORY_TOP)?;
        if self.half(category, 0)? != number && next != 0 {
            return Err(wrong(category));
        }
        let mut listed: u64 = 0;
        while next != 0 {
            let at = next.wrapping_sub(TAG);
            // The size is a Smi: the upper half of the word.
            let size = (self.word(at, FREE_SIZE)? >> 32) * self.layout.free_unit;
            let end = at.checked_add(size).filter(|&end| end <= page.area.end);
            let map = self.word(at, 0)?;
            listed = listed.saturating_add(size);
            let sound = at >= page.area.start
                && at.is_multiple_of(8)
                && size >= SMALLEST_FREE
                && listed <= available
                && *self.free_map.get_or_insert(map) == map;
            let Some(end) = end.filter(|_| sound) else {
                return Err(wrong(at));
            };
            free.push(at..end);
            next = self.word(at, FREE_NEXT)?;
        }
        if listed != available {
            return Err(wrong(category));
        }
        Ok(listed)
    }

    /// New space: two semispaces, of which one is filled page after page.
    fn new_space(
        &mut self,
        space: u64,
        heap: u64,
        id: usize,
        linear: &[Range<u64>],
        into: &mut DivisionBuilder,
    ) -> Result<(), Refusal> {
        let layout = self.layout;
        let to_space = space.saturating_add(layout.to_space);
        let from_space = space.saturating_add(layout.from_space);
        // With `--minor-ms` new space is another class, and this is no semispace.
        self.check_space(to_space, heap, id)?;
        self.check_space(from_space, heap, id)?;
        let current = self.word(to_space, layout.current_page)?;
        let filled = self.word(to_space, layout.current_capacity)? / PAGE_SIZE;
        let pages = self.pages_of(to_space, heap)?;
        let index = pages.iter().position(|page| page.at == current);
        let (Some(index), true) = (index, index.is_some_and(|index| filled == index as u64 + 1))
        else {
            return Err(Refusal(format!(
                "the semispace at {to_space:#x} is at its page {current:#x}, and {filled} pages are in use"
            )));
        };
        let area = pages[index].area.clone();
        let here = |area: &Range<u64>, at: u64| area.start <= at && at <= area.end;
        let linear_here = linear
            .iter()
            .find(|it| it.start != 0 && here(&area, it.start));
        let top = match layout.allocation_top {
            Some(offset) => self.word(space, offset)?,
            // Not yet allocated from since the last collection: it is empty.
            None => linear_here.map_or(area.start, |it| it.start),
        };
        if !here(&area, top) {
            return Err(Refusal(format!(
                "new space has its top at {top:#x}, outside its page {:#x}",
                area.start
            )));
        }
        for (number, page) in pages.iter().enumerate() {
            let mut free: Vec<Range<u64>> = rest_of(linear, &page.area).collect();
            if number == index {
                free.retain(|it| it.start < top);
                if let Some(last) = free.last_mut() {
                    last.end = last.end.min(top);
                }
                free.push(top..page.area.end);
            } else if number > index {
                free = vec![page.area.clone()];
            }
            let used = self.split(NEW_SPACE, page, free, Leaf::HeapObjects, into)?;
            self.count("new_space_used_bytes", used);
        }
        for page in self.pages_of(from_space, heap)? {
            let free = vec![page.area.clone()];
            self.split(NEW_SPACE, &page, free, Leaf::HeapObjects, into)?;
        }
        Ok(())
    }

    /// Gives the bytes of a page their leaves; `free` is in address order, inside the area. How many bytes
    /// of the area are not free.
    fn split(
        &mut self,
        name: &str,
        page: &Page,
        free: Vec<Range<u64>>,
        used: Leaf,
        into: &mut DivisionBuilder,
    ) -> Result<u64, Refusal> {
        let mut at = page.area.start;
        let mut used_bytes = 0;
        // With the structure of the page come its mark bits, most of it.
        into.add(page.whole.start..page.area.start, Leaf::GcBookkeeping);
        for piece in free {
            if piece.start < at || piece.end < piece.start || piece.end > page.area.end {
                return Err(Refusal(format!(
                    "the free piece at {:#x} is not of the page at {:#x}",
                    piece.start, page.whole.start
                )));
            }
            used_bytes += piece.start - at;
            into.add(at..piece.start, used);
            at = piece.end;
            into.add(piece, Leaf::HeapFree);
        }
        used_bytes += page.area.end - at;
        into.add(at..page.area.end, used);
        into.add(page.area.end..page.whole.end, Leaf::HeapFree);
        let whole = page.whole.end - page.whole.start;
        self.count(&format!("{name}_committed_bytes"), whole);
        Ok(used_bytes)
    }
}

#[cfg(test)]
mod tests;
