//! A literal heap: two arenas' worth of addresses, one span of each kind, and books about them.

use super::*;
use crate::{adapters::memory::fake::Fake, classify::division::Division};
use proptest::prelude::*;

const HEAP: u64 = 0x0012_3400_0000 * 16;
const PAGE: u64 = 8192;
/// Where the runtime's own structures are.
const BOOKS: u64 = 0x7f00_0000_0000;
const MHEAP: u64 = BOOKS;
const ALLGS: u64 = BOOKS + 0x100;
const ALLM: u64 = BOOKS + 0x180;
const SPANS: u64 = BOOKS + 0x200;
const GS: u64 = BOOKS + 0x400;
const BITS: u64 = BOOKS + 0x800;
const MSPAN: u64 = BOOKS + 0x1000;
const MSPAN_BYTES: u64 = 0x80;
const G: u64 = BOOKS + 0x2000;
const G_BYTES: u64 = 0x100;
const M: u64 = BOOKS + 0x4000;

const fn field(offset: u64, bytes: u64) -> Field {
    Field { offset, bytes }
}

fn fields() -> Fields {
    Fields {
        mheap_allspans: field(0x10, 24),
        mheap_pages_in_use: field(0x40, 8),
        mspan_start: field(0x18, 8),
        mspan_pages: field(0x20, 8),
        mspan_free_index: field(0x30, 2),
        mspan_slots: field(0x32, 2),
        mspan_alloc_bits: field(0x40, 8),
        mspan_alloc_count: field(0x60, 2),
        mspan_class: field(0x62, 1),
        mspan_state: field(0x63, 1),
        mspan_slot_bytes: field(0x68, 8),
        mspan_limit: field(0x70, 8),
        mspan_large_type: Some(field(0x78, 8)),
        g_stack: field(0, 16),
        g_sched: field(0x38, 56),
        g_status: field(0x90, 4),
        stack_lo: field(0, 8),
        stack_hi: field(8, 8),
        gobuf_sp: field(0, 8),
        m_g0: field(0, 8),
        m_gsignal: field(0x48, 8),
        m_next: field(0x80, 8),
        inline_marks_bytes: 128,
        g_bytes: 0x94,
    }
}

/// An `mspan`.
#[derive(Clone, Copy, Default)]
struct Mspan {
    page: u64,
    pages: u64,
    state: u8,
    class: u8,
    each: u64,
    slots: u16,
    free_index: u16,
    taken: u16,
}

struct World {
    fake: Fake,
    spans: u64,
    gs: u64,
    threads: Vec<u64>,
}

impl World {
    /// One span of each kind:
    ///
    /// ```text
    /// page 0   slots of 512 bytes with pointers, 15 of them, 6 taken
    ///      1   a large object of two pages
    ///      3   nothing
    ///      4   stacks of 8 KiB: a goroutine, an ended one, a thread, a free one
    ///      8   a stack of 32 KiB for signals
    ///     12   the collector's
    ///     13   nothing, to the end of the arena
    /// ```
    fn new() -> World {
        let mut fake = Fake::default();
        fake.touch(BOOKS, BOOKS + 0x5000);
        fake.touch(HEAP, HEAP + 14 * PAGE);
        let mut world = World {
            fake,
            spans: 0,
            gs: 0,
            threads: vec![HEAP + 6 * PAGE + 0x1f00],
        };
        let small = Mspan {
            pages: 1,
            state: 1,
            class: 2 * 20,
            each: 512,
            slots: 15,
            free_index: 4,
            taken: 6,
            ..Mspan::default()
        };
        // Before `freeindex` all are taken, whatever the bits say; behind it slots 5 and 9.
        world.fake.write(BITS, &[0b0010_0001, 0b0000_0010]);
        world.span(small);
        world.span(Mspan {
            page: 1,
            pages: 2,
            state: 1,
            each: 2 * PAGE,
            slots: 1,
            free_index: 1,
            taken: 1,
            ..Mspan::default()
        });
        for (page, each, taken) in [(4, 0x2000, 3), (8, 0x8000, 0), (12, 0, 0)] {
            world.span(Mspan {
                page,
                pages: if each == 0 { 1 } else { 4 },
                state: 2,
                each,
                taken,
                ..Mspan::default()
            });
        }
        // Dead, and one that nobody has written yet.
        world.span(Mspan::default());
        world.fake.put(SPANS + 8 * world.spans, 0x7fff_0000_0000);
        world.slice(MHEAP + 0x10, SPANS, world.spans + 1);
        world.fake.put(MHEAP + 0x40, 3);

        let stacks = HEAP + 4 * PAGE;
        world.goroutine(4, stacks, 0x2000, stacks + 0x1e00);
        world.goroutine(6, stacks + PAGE, 0x2000, 0);
        world.slice(ALLGS, GS, 2);
        // Of the first thread g0 is on the stack of the system; the second has both in the heap.
        let system = 0x7ffe_0000_0000;
        let first = world.g(G + 8 * G_BYTES, 0, system, 0x10000, system + 0x8000);
        let g0 = world.g(G + 9 * G_BYTES, 0, stacks + 2 * PAGE, 0x2000, 0);
        let signals = world.g(G + 10 * G_BYTES, 0, HEAP + 8 * PAGE, 0x8000, 0);
        world.fake.put(ALLM, M);
        world.fake.put(M, first);
        world.fake.put(M + 0x80, M + 0x100);
        world.fake.put(M + 0x100, g0);
        world.fake.put(M + 0x148, signals);
        world
    }

    fn slice(&mut self, at: u64, data: u64, length: u64) {
        self.fake.put(at, data);
        self.fake.put(at + 8, length);
        self.fake.put(at + 16, length);
    }

    fn span(&mut self, it: Mspan) {
        let at = MSPAN + self.spans * MSPAN_BYTES;
        self.fake.put(SPANS + 8 * self.spans, at);
        self.spans += 1;
        self.fake.put(at + 0x18, HEAP + it.page * PAGE);
        self.fake.put(at + 0x20, it.pages);
        self.fake.write(at + 0x30, &it.free_index.to_le_bytes());
        self.fake.write(at + 0x32, &it.slots.to_le_bytes());
        self.fake.put(at + 0x40, BITS);
        self.fake.write(at + 0x60, &it.taken.to_le_bytes());
        self.fake.write(at + 0x62, &[it.class, it.state]);
        self.fake.put(at + 0x68, it.each);
        self.fake.put(at + 0x70, HEAP + it.page * PAGE);
    }

    fn g(&mut self, at: u64, status: u32, lo: u64, bytes: u64, pointer: u64) -> u64 {
        self.fake.put(at, lo);
        self.fake.put(at + 8, lo + bytes);
        self.fake.put(at + 0x38, pointer);
        self.fake.write(at + 0x90, &status.to_le_bytes());
        at
    }

    fn goroutine(&mut self, status: u32, lo: u64, bytes: u64, pointer: u64) {
        let at = self.g(G + self.gs * G_BYTES, status, lo, bytes, pointer);
        self.fake.put(GS + 8 * self.gs, at);
        self.gs += 1;
    }

    fn divided(&self) -> Result<(Division, Books), Refusal> {
        let resident = self.fake.resident();
        let program = Program {
            memory: &Memory::new(&self.fake, &resident),
            fields: &fields(),
            resident_bytes: resident.iter().map(|it| it.end - it.start).sum(),
            threads: self.threads.clone(),
            mheap: MHEAP,
            allgs: ALLGS,
            allm: ALLM,
        };
        let mut into = DivisionBuilder::default();
        let arena = HEAP..HEAP + ARENA;
        let books = program.divide(std::slice::from_ref(&arena), &mut into)?;
        let division = into.build().map_err(|it| Refusal(it.to_string()))?;
        Ok((division, books))
    }

    fn refusal(&self) -> String {
        self.divided().expect_err("something is wrong").0
    }
}

/// So many pages of the heap, from this one on.
fn pages(first: u64, count: u64) -> Range<u64> {
    HEAP + first * PAGE..HEAP + (first + count) * PAGE
}

#[test]
fn every_kind_of_span_is_divided_to_the_byte() {
    let (division, books) = World::new().divided().expect("a sound heap");
    let objects = 6 * 512;
    assert_eq!(
        division.leaves(pages(0, 1)),
        [
            (Leaf::HeapObjects, objects),
            // A bit for each word, and the marks.
            (Leaf::GcBookkeeping, PAGE / 64 + 128),
            (Leaf::HeapFree, PAGE - objects - PAGE / 64 - 128),
        ]
    );
    assert_eq!(
        division.leaves(pages(1, 2)),
        [(Leaf::HeapObjects, 2 * PAGE)]
    );
    assert_eq!(division.leaves(pages(3, 1)), [(Leaf::HeapFree, PAGE)]);
    assert_eq!(
        division.leaves(pages(4, 1)),
        [(Leaf::TaskStack, 0x200), (Leaf::TaskStackUnused, 0x1e00)]
    );
    assert_eq!(division.leaves(pages(5, 1)), [(Leaf::HeapFree, PAGE)]);
    // The thread is on this stack.
    assert_eq!(
        division.leaves(pages(6, 1)),
        [
            (Leaf::NativeStack, 0x100),
            (Leaf::StackBelowPointer, 0x1f00)
        ]
    );
    assert_eq!(division.leaves(pages(7, 1)), [(Leaf::HeapFree, PAGE)]);
    assert_eq!(
        division.leaves(pages(8, 4)),
        [(Leaf::AlternateStack, 4 * PAGE)]
    );
    assert_eq!(division.leaves(pages(12, 1)), [(Leaf::GcBookkeeping, PAGE)]);
    assert_eq!(division.leaves(pages(13, 1)), [(Leaf::HeapFree, PAGE)]);

    assert_eq!(books["heap_in_use_bytes"], 3 * PAGE);
    assert_eq!(books["heap_objects_bytes"], objects + 2 * PAGE);
    assert_eq!(books["heap_objects"], 7);
    assert_eq!(books["stack_in_use_bytes"], 8 * PAGE);
    assert_eq!(books["goroutines"], 1);
    assert_eq!(books["goroutine_stacks_used_bytes"], 0x200);
    assert_eq!(books["pooled_stacks_bytes"], 2 * PAGE);
    assert_eq!(books["collector_spans_bytes"], PAGE);
}

#[test]
fn a_running_goroutine_whose_thread_is_elsewhere_may_use_all_of_its_stack() {
    let mut world = World::new();
    world.fake.write(G + 0x90, &2_u32.to_le_bytes());
    let (division, books) = world.divided().expect("a sound heap");
    assert_eq!(division.leaves(pages(4, 1)), [(Leaf::TaskStack, PAGE)]);
    assert_eq!(books["stacks_without_pointer"], 1);
}

#[test]
fn a_span_that_a_thread_is_at_work_on_is_left_whole() {
    let mut world = World::new();
    world.fake.write(MSPAN + 0x60, &7_u16.to_le_bytes());
    let (division, books) = world.divided().expect("one span for one thread");
    assert_eq!(division.leaves(pages(0, 1)), [(Leaf::HeapObjects, PAGE)]);
    assert_eq!(books["unsettled_spans"], 1);
    world.threads.clear();
    assert!(world.refusal().contains("slots of 1 spans"));
}

#[test]
fn bits_that_nobody_has_written_are_zero() {
    let mut world = World::new();
    world.fake.put(MSPAN + 0x40, 0x7fff_0000_0000);
    world.fake.write(MSPAN + 0x60, &4_u16.to_le_bytes());
    let (_, books) = world.divided().expect("a sound heap");
    assert_eq!(books["heap_objects"], 5);
}

#[test]
fn what_does_not_fit_is_refused_with_its_name_and_address() {
    let stack = HEAP + 4 * PAGE;
    for (at, word, says) in [
        // mheap_.allspans and allgs: longer than memory, or not there.
        (MHEAP + 0x18, u64::MAX, "mheap_.allspans at 0x7f0000000010"),
        (MHEAP + 0x20, 1, "mheap_.allspans at 0x7f0000000010"),
        (MHEAP + 0x10, 0xdead_0000, "0xdead0000 is not there"),
        (ALLGS + 8, 1 << 60, "allgs at"),
        (MHEAP + 0x40, 4, "have 3 pages, the runtime counts 4"),
        // The first mspan: start, pages, slots, bytes of a slot, state.
        (MSPAN + 0x18, HEAP + 1, "mspan at 0x7f0000001000"),
        (MSPAN + 0x18, HEAP + PAGE, "slots that do not fit it"),
        (MSPAN + 2 * MSPAN_BYTES + 0x18, HEAP + PAGE, "overlap"),
        (MSPAN + 0x20, u64::MAX, "an impossible size"),
        (MSPAN + 0x20, 0, "an impossible size"),
        (MSPAN + 0x30, 15 << 16 | 16, "behind its 15 slots"),
        (MSPAN + 0x30, 17 << 16, "more slots than bytes"),
        (MSPAN + 0x68, 0, "more slots than bytes"),
        (MSPAN + 0x60, 9 << 24, "an unknown state"),
        // The stacks of 8 KiB: of another size, and fewer taken.
        (
            MSPAN + 2 * MSPAN_BYTES + 0x68,
            0x3000,
            "stacks that do not fit",
        ),
        (
            MSPAN + 2 * MSPAN_BYTES + 0x68,
            0x1000,
            "none of the span of stacks",
        ),
        (
            MSPAN + 2 * MSPAN_BYTES + 0x60,
            2 << 24 | 1,
            "fewer stacks taken",
        ),
        // The goroutine.
        (G, stack + 8, "none of the span of stacks"),
        (G, HEAP + 3 * PAGE, "in no span of stacks"),
        (G + 8, stack, "has a stack from"),
        (G + 0x38, stack, "sleeps at"),
        (GS, 0x10, "0x10 is not there"),
        // The list of threads comes back, or leads nowhere.
        (M + 0x180, M, "allm comes back"),
        (ALLM, 0x10, "is not there"),
    ] {
        let mut world = World::new();
        world.fake.put(at, word);
        let refusal = world.refusal();
        assert!(refusal.contains(says), "{at:#x} = {word:#x}: {refusal}");
    }
}

#[test]
fn one_object_may_be_as_large_as_memory() {
    let mut world = World::new();
    let pages = 5 << 20;
    let large = MSPAN + MSPAN_BYTES;
    world.fake.put(large + 0x18, HEAP + 16 * PAGE);
    world.fake.put(large + 0x20, pages);
    world.fake.put(large + 0x68, pages * PAGE);
    world.fake.put(large + 0x70, HEAP + 16 * PAGE);
    world.fake.put(MHEAP + 0x40, 1 + pages);
    let (_, books) = world.divided().expect("a sound heap");
    assert_eq!(books["heap_objects_bytes"], 6 * 512 + (40 << 30));
}

#[test]
fn a_stack_that_two_goroutines_have_is_refused() {
    let mut world = World::new();
    let stack = HEAP + 4 * PAGE;
    world.fake.put(G + G_BYTES, stack);
    world.fake.put(G + G_BYTES + 8, stack + PAGE);
    let refusal = world.refusal();
    let says = format!("{stack:#x}..{:#x} of an ended goroutine", stack + PAGE);
    assert!(refusal.contains(&says), "{refusal}");
}

#[test]
fn a_span_outside_of_the_arenas_is_refused() {
    let mut world = World::new();
    let far = HEAP + 2 * ARENA;
    world.fake.touch(far, far + PAGE);
    world.fake.put(MSPAN + 4 * MSPAN_BYTES + 0x18, far);
    assert!(world.refusal().contains("in no arena"));
}

#[test]
fn a_goroutine_at_the_end_of_all_addresses_is_refused() {
    let mut world = World::new();
    world.fake.put(GS + 8, u64::MAX - 3);
    assert!(world.refusal().contains("is not there"));
}

proptest! {
    /// Whatever is wrong with the books, the answer is a refusal or a division without overlaps.
    #[test]
    fn damaged_books_never_panic(
        damage in prop::collection::vec((0_u64..0xa00, any::<u64>(), 0_u32..64), 1..6)
    ) {
        let mut world = World::new();
        for (word, value, shift) in damage {
            world.fake.put(BOOKS + 8 * word, value >> shift);
        }
        let _ = world.divided();
    }
}
