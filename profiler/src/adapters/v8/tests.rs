//! Literal heaps, in the layout of every version that is known.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{layout::LAYOUTS, *};
use crate::{
    adapters::memory::fake::Fake,
    classify::{division::Division, rules::RULES, runtime::Image},
    residency::ProcessSnapshot,
};

const HEAP: u64 = 0x5000_0000;
const SPACES: u64 = 0x5100_0000;
const STRUCTURES: u64 = 0x5200_0000;
const INFOS: u64 = 0x5300_0000;
const ALLOCATORS: u64 = 0x5400_0000;
const LISTS: u64 = 0x5500_0000;
const PAGES: u64 = 0x10_0000_0000;
/// A header as long as that of 11.3, in every version.
const HEADER: u64 = 0x1148;
const MAP: u64 = 0x77_0001;

/// A heap: old space of one page, code space of one, new space of two and two, a large object.
struct Heap {
    layout: &'static Layout,
    fake: Fake,
    regions: Vec<Region<'static>>,
}

fn region(rule: &str, range: Range<u64>) -> Region<'static> {
    Region {
        resident_bytes: range.end - range.start,
        range,
        rule: RULES
            .iter()
            .find(|known| known.id == rule)
            .expect("a rule of this name"),
        backing: None,
    }
}

impl Heap {
    fn id(&self, name: &str) -> u64 {
        let position = self.layout.spaces.iter().position(|&space| space == name);
        position.expect("a space") as u64
    }

    fn space_at(&self, name: &str) -> u64 {
        SPACES + 0x1000 * self.id(name)
    }

    fn page_at(number: u64) -> u64 {
        PAGES + number * PAGE_SIZE
    }

    fn structure_at(&self, number: u64) -> u64 {
        match self.layout.page_structure {
            PageStructure::InPage => Heap::page_at(number),
            PageStructure::Pointer => STRUCTURES + number * 0x1000,
        }
    }

    fn area(number: u64) -> Range<u64> {
        Heap::page_at(number) + HEADER..Heap::page_at(number) + PAGE_SIZE
    }

    /// A space with these pages.
    fn space(&mut self, at: u64, id: u64, pages: &[u64]) {
        let layout = self.layout;
        self.fake.put(at + SPACE_HEAP, HEAP);
        // The upper half of the word is padding.
        self.fake.put(at + SPACE_ID, id | 0x1f18_0000_0000);
        self.fake
            .put(at + SPACE_COMMITTED, pages.len() as u64 * PAGE_SIZE);
        self.fake.put(at + SPACE_FIRST_PAGE, 0);
        self.fake.put(at + layout.free_list, LISTS);
        let mut link = at + SPACE_FIRST_PAGE;
        for &number in pages {
            let structure = self.structure_at(number);
            let area = Heap::area(number);
            self.fake.put(link, structure);
            self.fake.touch(Heap::page_at(number), area.end);
            if layout.page_structure == PageStructure::Pointer {
                self.fake.put(Heap::page_at(number) + 8, structure);
            }
            for (offset, value) in [
                (layout.size, PAGE_SIZE),
                (layout.heap, HEAP),
                (layout.owner, at),
                (layout.area_start, area.start),
                (layout.area_end, area.end),
                (layout.allocated, area.end - area.start),
                (layout.sweeping, 0),
                (layout.next, 0),
                (layout.categories, LISTS + 0x1000 * (number + 1)),
            ] {
                self.fake.put(structure + offset, value);
            }
            self.fake.touch(LISTS, LISTS + 0x1000 * (number + 2));
            link = structure + layout.next;
        }
    }

    /// Puts pieces on list `number` of a page: where they begin in its area, and their bytes.
    fn free(&mut self, page: u64, number: u64, pieces: &[(u64, u64)]) {
        let table = LISTS + 0x1000 * (page + 1);
        let category = table + 0x100 + 0x20 * number;
        let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
        self.fake.put(table + 8 * number, category);
        self.fake.put(category, number | bytes << 32);
        let mut link = category + CATEGORY_TOP;
        for (begin, bytes) in pieces {
            let at = Heap::area(page).start + begin;
            self.fake.put(link, at + TAG);
            self.fake.put(at, MAP);
            self.fake
                .put(at + FREE_SIZE, (bytes / self.layout.free_unit) << 32);
            self.fake.put(at + FREE_NEXT, 0);
            link = at + FREE_NEXT;
        }
        let area = Heap::area(page);
        let structure = self.structure_at(page);
        self.fake.put(
            structure + self.layout.allocated,
            area.end - area.start - bytes,
        );
    }

    /// The linear area of a space: its top and limit.
    fn linear(&mut self, name: &str, rest: Range<u64>) {
        let info = INFOS + 0x100 * self.id(name);
        for (offset, value) in [(0, rest.start), (8, rest.start), (16, rest.end)] {
            self.fake.put(info + offset, value);
        }
    }

    fn new(layout: &'static Layout) -> Heap {
        let mut heap = Heap {
            layout,
            fake: Fake::default(),
            regions: vec![
                region("v8.heap", Heap::page_at(0)..Heap::page_at(1)),
                region("v8.code", Heap::page_at(1)..Heap::page_at(2)),
                region("v8.heap", Heap::page_at(2)..Heap::page_at(8)),
            ],
        };
        heap.fake.touch(HEAP, HEAP + 0x1000);
        heap.fake.put(LISTS + FREE_LIST_CATEGORIES, 4);
        for (id, &name) in layout.spaces.iter().enumerate() {
            let at = SPACES + 0x1000 * id as u64;
            let present = ["new", "old", "code", "large_object"]
                .iter()
                .any(|kind| name.trim_end_matches("_space") == *kind);
            heap.fake.put(
                HEAP + layout.heap_spaces + 8 * id as u64,
                if present { at } else { 0 },
            );
            heap.fake.touch(INFOS, INFOS + 0x2000);
            if let Linear::OfSpace { pointer } = layout.linear {
                heap.fake.put(at + pointer, INFOS + 0x100 * id as u64);
            }
        }
        let old = heap.space_at(OLD_SPACE);
        heap.space(old, heap.id(OLD_SPACE), &[0]);
        let code = heap.space_at("code_space");
        heap.space(code, heap.id("code_space"), &[1]);
        let new = heap.space_at(NEW_SPACE);
        let id = heap.id(NEW_SPACE);
        heap.fake.put(new + SPACE_HEAP, HEAP);
        heap.fake.put(new + SPACE_ID, id);
        heap.space(new + layout.to_space, id, &[2, 3]);
        heap.space(new + layout.from_space, id, &[4, 5]);
        let to_space = new + layout.to_space;
        let first = heap.structure_at(2);
        heap.fake.put(to_space + layout.current_page, first);
        heap.fake.put(to_space + layout.current_capacity, PAGE_SIZE);
        let large = heap.space_at("large_object_space");
        heap.space(large, heap.id("large_object_space"), &[6]);
        if let Linear::OfHeap {
            allocator,
            always,
            optional,
            pointer,
        } = layout.linear
        {
            heap.fake.put(HEAP + allocator, ALLOCATORS);
            heap.fake.touch(ALLOCATORS, ALLOCATORS + 0x1000);
            heap.fake
                .put(ALLOCATORS + optional[0].0 + pointer, INFOS + 0x100 * id);
            heap.fake.write(ALLOCATORS + optional[0].1, &[1]);
            for (name, offset) in [OLD_SPACE, "code_space", "shared_space"].iter().zip(always) {
                let info = INFOS + 0x100 * heap.id(name);
                heap.fake.put(ALLOCATORS + offset + pointer, info);
            }
        }
        let top = Heap::area(2).start + 0x2000;
        if let Some(offset) = layout.allocation_top {
            // Main's linear area has been taken from it.
            heap.fake.put(new + offset, top + 0x1000);
        }
        heap.linear(NEW_SPACE, top..top + 0x1000);
        heap
    }

    fn divided(&self) -> Result<(Division, Books), Refusal> {
        let process = ProcessSnapshot {
            tgid: 7,
            resident: self.fake.resident(),
            ..ProcessSnapshot::default()
        };
        let target = Target {
            memory: &Memory::new(&self.fake, &process.resident),
            process: &process,
            regions: &self.regions,
            runtime: Runtime::Node,
            image: &Image::default(),
            threads: &[],
        };
        let mut into = DivisionBuilder::default();
        let books = divide_by(self.layout, &target, &mut into)?;
        let division = into
            .build()
            .map_err(|overlap| Refusal(overlap.to_string()))?;
        Ok((division, books))
    }

    fn leaves(&self, page: u64) -> BTreeMap<Leaf, u64> {
        let (division, _) = self.divided().expect("a sound heap");
        let leaves = division.leaves(Heap::page_at(page)..Heap::page_at(page + 1));
        leaves.into_iter().collect()
    }
}

const AREA: u64 = PAGE_SIZE - HEADER;

#[test]
fn pieces_on_a_free_list_are_free_to_the_byte() {
    for layout in &LAYOUTS {
        let mut heap = Heap::new(layout);
        heap.free(0, 0, &[(0x40, 0x18)]);
        heap.free(0, 2, &[(0x9000, 0x100), (0x100, 0x100)]);
        // On both lists, and 8 bytes too few for one.
        let allocated = heap.structure_at(0) + layout.allocated;
        heap.fake.put(allocated, AREA - 0x218 - 8);
        assert_eq!(
            heap.leaves(0),
            BTreeMap::from([
                (Leaf::GcBookkeeping, HEADER),
                (Leaf::HeapFree, 0x218),
                (Leaf::HeapObjects, AREA - 0x218),
            ])
        );
        let (_, books) = heap.divided().expect("a sound heap");
        assert_eq!(books["old_space_used_bytes"], AREA - 0x220);
        assert_eq!(books["old_space_committed_bytes"], PAGE_SIZE);
        assert_eq!(
            (books["lost_bytes"], books["pages"], books["heaps"]),
            (8, 7, 1)
        );
    }
}

#[test]
fn code_is_code_and_a_large_object_is_one_object() {
    for layout in &LAYOUTS {
        let heap = Heap::new(layout);
        assert_eq!(heap.leaves(1)[&Leaf::Jit], AREA);
        assert_eq!(heap.leaves(6)[&Leaf::HeapObjects], AREA);
    }
}

#[test]
fn new_space_is_in_use_up_to_its_top() {
    for layout in &LAYOUTS {
        let mut heap = Heap::new(layout);
        assert_eq!(heap.leaves(2)[&Leaf::HeapObjects], 0x2000);
        assert_eq!(heap.leaves(2)[&Leaf::HeapFree], AREA - 0x2000);
        for page in [3, 4, 5] {
            assert_eq!(heap.leaves(page)[&Leaf::HeapFree], AREA);
        }
        // One page on: the one before is full.
        let (to_space, second) = (
            heap.space_at(NEW_SPACE) + layout.to_space,
            heap.structure_at(3),
        );
        heap.fake.put(to_space + layout.current_page, second);
        heap.fake
            .put(to_space + layout.current_capacity, 2 * PAGE_SIZE);
        let top = Heap::area(3).start + 0x500;
        if let Some(offset) = layout.allocation_top {
            heap.fake
                .put(heap.space_at(NEW_SPACE) + offset, top + 0x100);
        }
        heap.linear(NEW_SPACE, top..top + 0x100);
        let (_, books) = heap.divided().expect("a sound heap");
        assert_eq!(books["new_space_used_bytes"], AREA + 0x500);
        assert_eq!(books["new_space_committed_bytes"], 4 * PAGE_SIZE);
    }
}

#[test]
fn the_rest_of_a_linear_area_is_free_and_counts_as_that_version_counts_it() {
    for layout in &LAYOUTS {
        let mut heap = Heap::new(layout);
        let end = Heap::area(0).end;
        heap.linear(OLD_SPACE, end - 0x700..end);
        assert_eq!(heap.leaves(0)[&Leaf::HeapFree], 0x700);
        let (_, books) = heap.divided().expect("a sound heap");
        let counted = if layout.linear_is_used { 0 } else { 0x700 };
        assert_eq!(books["old_space_used_bytes"], AREA - counted);
    }
}

#[test]
fn lists_of_a_page_that_is_being_swept_are_not_read() {
    for layout in &LAYOUTS {
        let mut heap = Heap::new(layout);
        let (structure, start) = (heap.structure_at(0), Heap::area(0).start);
        heap.free(0, 1, &[(0, 0x100)]);
        heap.fake.put(start, 0);
        heap.fake.put(structure + layout.sweeping, 1);
        assert_eq!(heap.leaves(0)[&Leaf::HeapObjects], AREA);
        let (_, books) = heap.divided().expect("a sound heap");
        assert_eq!(books["unswept_pages"], 1);
    }
}

/// What is written where, and the words that the refusal has.
type Corruption = (&'static str, fn(&mut Heap));

#[test]
fn what_does_not_agree_is_refused_with_its_address() {
    let corruptions: [Corruption; 11] = [
        ("no page of V8's leads to a heap", |heap| {
            let old = heap.space_at(OLD_SPACE);
            heap.fake.put(old + SPACE_HEAP, HEAP + 8);
        }),
        (
            "what should be code_space of the heap at 0x50000000",
            |heap| {
                let code = heap.space_at("code_space");
                heap.fake.put(code + SPACE_ID, 9);
            },
        ),
        (
            "has committed 524288 bytes, its pages have 262144",
            |heap| {
                let old = heap.space_at(OLD_SPACE);
                heap.fake.put(old + SPACE_COMMITTED, 2 * PAGE_SIZE);
            },
        ),
        ("do not end", |heap| {
            // A list that bites its tail.
            let (page, old) = (heap.structure_at(0), heap.space_at(OLD_SPACE));
            heap.fake.put(page + heap.layout.next, page);
            heap.fake.put(old + SPACE_COMMITTED, u64::MAX);
        }),
        ("is none: ", |heap| {
            let page = heap.structure_at(1);
            heap.fake.put(page + heap.layout.owner, SPACES);
        }),
        ("is none: ", |heap| {
            let page = heap.structure_at(6);
            heap.fake.put(page + heap.layout.size, u64::MAX);
        }),
        ("is none: ", |heap| {
            let page = heap.structure_at(6);
            heap.fake.put(page + heap.layout.area_end, u64::MAX);
        }),
        ("is none: ", |heap| {
            heap.regions[1] = region("malloc.brk", PAGES + PAGE_SIZE..PAGES + 2 * PAGE_SIZE)
        }),
        (
            "list 1 of free pieces of the page at 0x1000000000 leads to ",
            |heap| {
                // So does this one.
                let start = Heap::area(0).start;
                heap.free(0, 1, &[(0, 0x100)]);
                heap.fake.put(start + FREE_NEXT, start + TAG);
            },
        ),
        (
            "list 1 of free pieces of the page at 0x1000000000 leads to ",
            |heap| {
                let start = Heap::area(0).start;
                heap.free(0, 1, &[(0, 0x100)]);
                heap.fake.put(start + FREE_SIZE, u64::MAX);
            },
        ),
        ("is not of the page at 0x1000000000", |heap| {
            heap.free(0, 1, &[(0, 0x100), (0x80, 0x100)]);
        }),
    ];
    for layout in &LAYOUTS {
        for (says, corrupt) in &corruptions {
            let mut heap = Heap::new(layout);
            corrupt(&mut heap);
            let refusal = heap.divided().expect_err(says);
            assert!(refusal.0.contains(says), "{refusal}, not {says}");
        }
    }
}

#[test]
fn a_page_that_is_not_there_is_refused() {
    for layout in &LAYOUTS {
        let mut heap = Heap::new(layout);
        let page = heap.structure_at(0);
        heap.fake.put(page + layout.next, 0x6600_0000);
        let refusal = heap.divided().expect_err("nothing there");
        assert!(refusal.0.contains("0x66000"), "{refusal}");
    }
}

#[test]
fn other_versions_are_refused_by_name() {
    let refusal = layout_of((14, 0)).expect_err("not known");
    assert_eq!(refusal.0, "the layout of V8 14.0 is not known");
    assert_eq!(layout_of((12, 4)).map(|layout| layout.version), Ok((12, 4)));
    // What is no library of V8's says so.
    let ours = std::env::current_exe().expect("a path");
    let refusal = version_of(&ours).expect_err("no V8");
    assert!(
        refusal.0.contains("it exports no version of V8"),
        "{refusal}"
    );
}

proptest! {
    /// Whatever a word of it becomes: an answer or a refusal, never a panic.
    #[test]
    fn a_corrupted_heap_never_panics(
        version in 0..LAYOUTS.len(),
        words in prop::collection::vec((0_u64..6, 0_u64..0x300, any::<u64>(), 0_u8..4), 1..6),
    ) {
        let mut heap = Heap::new(&LAYOUTS[version]);
        let start = Heap::area(0).start;
        heap.free(0, 1, &[(0, 0x100), (0x200, 0x80)]);
        for (place, word, value, kind) in words {
            let base = match place {
                0 => HEAP,
                1 => SPACES + 0x1000 * (word % 8),
                2 => heap.structure_at(word % 7),
                3 => INFOS,
                4 => LISTS + 0x1000,
                _ => start,
            };
            let value = match kind {
                0 => value,
                1 => value % 64,
                2 => PAGES + value % (8 * PAGE_SIZE),
                _ => u64::MAX - value % 64,
            };
            heap.fake.put(base + 8 * (word % 0x60), value);
        }
        let _ = heap.divided();
    }
}
