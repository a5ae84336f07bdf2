//! A literal machine of two allocators and a few processes.

use proptest::prelude::*;

use super::*;
use crate::{
    adapters::memory::fake::Fake,
    classify::{division::Division as Divided, rules::RULES as ALL_RULES},
    units::PAGE,
};

const MACHINE: Machine = Machine {
    processes: 0x5555_0000_0000,
    instances: 0x5555_0000_1000,
    infos: 0x5555_0000_2000,
};
const TABLE: u64 = 0x5555_0000_3000;
const ARRAYS: u64 = 0x5555_0000_4000;
const FIX_INSTANCE: u64 = 0x5555_0000_5000;
const HEAP_INSTANCE: u64 = 0x5555_0000_6000;
const POOL: u64 = 0x5555_0000_7000;

const HEADER: u64 = 440;
const CARRIER: u64 = 0x4000;
const PROCESSES: u64 = 0x7f00_0001_0000;
const HEAPS: u64 = 0x7f00_0010_0000;
const SINGLE: u64 = 0x7f00_0020_0000;
const POOLED: u64 = 0x7f00_0030_0000;
const KEPT: u64 = 0x7f00_0040_0000;

/// Heads of blocks: in use, free.
const USED: u64 = 0;
const FREE: u64 = 1;
/// `ERTS_PSFLG_RUNNING`
const RUNNING: u64 = 1 << 15;

struct Scene {
    fake: Fake,
    processes: u64,
}

impl Scene {
    /// No process, no carrier.
    fn new() -> Scene {
        let mut fake = Fake::default();
        fake.touch(MACHINE.processes, POOL + PAGE);
        for (number, instance) in [(FIX, FIX_INSTANCE), (EHEAP, HEAP_INSTANCE)] {
            let at = MACHINE.instances + 24 * u64::from(number);
            let array = ARRAYS + 64 * u64::from(number);
            fake.write(at, &1_u32.to_le_bytes());
            fake.write(at + 12, &2_u32.to_le_bytes());
            fake.put(at + 16, array);
            // The first may be missing.
            fake.put(array + 8, instance);
            fake.write(instance + 128, &number.to_le_bytes());
            fake.put(instance + 296, HEADER);
            fake.put(instance + 312, 64);
            fake.put(instance + 392, POOL);
        }
        fake.put(POOL + 16, POOL);
        let table = MACHINE.processes;
        fake.put(table + 192, TABLE);
        fake.write(table + 208, &64_u32.to_le_bytes());
        fake.put(table + 248, 0x1234_5678);
        fake.put(table + 272, 776);
        Scene { fake, processes: 0 }
    }

    /// Writes blocks in a row, from the end of the header; what is left is free. Addresses of the blocks.
    fn carrier(&mut self, start: u64, instance: u64, blocks: &[(u64, u64)]) -> Vec<u64> {
        self.fake.touch(start, start + CARRIER);
        self.fake.put(start, CARRIER | 1);
        self.fake.put(start + 24, instance);
        let mut at = start + HEADER;
        let mut row = Vec::new();
        let (mut before, mut used) = (USED, 0);
        let rest = CARRIER - HEADER - blocks.iter().map(|block| block.0).sum::<u64>();
        for (size, kind) in blocks.iter().copied().chain([(rest, FREE)]) {
            let last = if at + size == start + CARRIER { 4 } else { 0 };
            self.fake.put(at, size | kind | before << 1 | last);
            row.push(at);
            before = kind;
            used += if kind == USED { size } else { 0 };
            at += size;
        }
        let number = if instance == FIX_INSTANCE { FIX } else { EHEAP };
        self.fake
            .put(start + 32 + 168 + 8 * (u64::from(number) - 1), used);
        self.fake.put(start + 32 + 264, used);
        row
    }

    /// Makes a carrier the only one of a list: 336 for many blocks, 352 for single ones.
    fn list(&mut self, instance: u64, list: u64, carrier: u64) {
        self.fake.put(instance + list, carrier);
        self.fake.put(instance + list + 8, carrier);
        let stats = if list == 336 { 1744 } else { 1088 };
        self.fake.put(instance + stats, 1);
        self.fake.put(instance + stats + 8, CARRIER);
    }

    /// A process at an address, whose heap and stack are `words`: heap, htop, stop, hend.
    fn process(&mut self, at: u64, words: [u64; 4], state: u64) {
        let [heap, htop, stop, hend] = words;
        for (offset, word) in [
            (80, htop),
            (88, stop),
            (128, heap),
            (136, hend),
            (152, (hend - heap) / 8),
            (640, state),
        ] {
            self.fake.put(at + offset, word);
        }
        self.processes += 1;
        self.fake.put(TABLE + 8 * (2 * self.processes), at);
        let count = (self.processes as u32).to_le_bytes();
        self.fake.write(MACHINE.processes + 136, &count);
    }

    fn divided(&self) -> Result<(Divided, Books), Refusal> {
        let regions = [
            region("beam.carrier", PROCESSES),
            region("beam.carrier", HEAPS),
            region("malloc.large.vm", SINGLE),
            region("beam.carrier", POOLED),
            region("malloc.large.vm", KEPT),
        ];
        let resident = self.fake.resident();
        let memory = Memory::new(&self.fake, &resident);
        let mut into = DivisionBuilder::default();
        let books = divide_machine(&memory, &regions, &MACHINE, &mut into)?;
        Ok((into.build().expect("no overlap"), books))
    }
}

fn region(rule: &str, start: u64) -> Region<'static> {
    Region {
        range: start..start + CARRIER,
        resident_bytes: CARRIER,
        rule: ALL_RULES
            .iter()
            .find(|known| known.id == rule)
            .expect("a rule of this name"),
        backing: None,
    }
}

/// Two processes, one of which runs; and a free block.
fn two_processes() -> Scene {
    let mut scene = Scene::new();
    let row = scene.carrier(PROCESSES, FIX_INSTANCE, &[(784, USED), (784, USED)]);
    scene.list(FIX_INSTANCE, 336, PROCESSES);
    let heaps = scene.carrier(
        HEAPS,
        HEAP_INSTANCE,
        &[(0x100, FREE), (0x758, USED), (0x758, USED)],
    );
    scene.list(HEAP_INSTANCE, 336, HEAPS);
    for (process, block, state) in [(row[0], heaps[1], 0), (row[1], heaps[2], RUNNING)] {
        let heap = block + 8;
        let hend = heap + 0x748;
        scene.process(process + 8, [heap, heap + 0x300, hend - 0x98, hend], state);
    }
    scene
}

#[test]
fn the_block_of_a_process_is_heap_gap_and_stack() {
    let (division, books) = two_processes().divided().expect("a sound machine");
    let gap = 0x748 - 0x98 - 0x300;
    assert_eq!(
        division.leaves(HEAPS..HEAPS + CARRIER),
        [
            (Leaf::TaskStack, 0x98),
            // The one that runs is whole.
            (Leaf::HeapObjects, 0x308 + 0x758),
            // Behind its heap, a process leaves a word.
            (
                Leaf::HeapFree,
                CARRIER - HEADER - 2 * 0x758 + gap + 0x758 - 0x750
            ),
            (Leaf::RuntimeInternal, HEADER),
        ]
    );
    assert_eq!(
        division.leaves(PROCESSES..PROCESSES + CARRIER),
        [
            (Leaf::HeapFree, CARRIER - HEADER - 2 * 784),
            (Leaf::RuntimeInternal, HEADER + 2 * 784),
        ]
    );
    for (name, value) in [
        ("processes", 2),
        ("processes_undivided", 1),
        ("process_heap_bytes", 0x748),
        ("process_stack_bytes", 0x98),
        ("process_objects_bytes", 0x300),
        ("process_gap_bytes", gap),
        ("eheap_carriers_bytes", CARRIER),
        ("eheap_blocks_bytes", 2 * 0x758),
        ("fix_blocks_bytes", 2 * 784),
    ] {
        assert_eq!(books[name], value, "{name}");
    }
}

#[test]
fn an_old_heap_has_no_stack() {
    let mut scene = Scene::new();
    let row = scene.carrier(PROCESSES, FIX_INSTANCE, &[(784, USED)]);
    scene.list(FIX_INSTANCE, 336, PROCESSES);
    let heaps = scene.carrier(HEAPS, HEAP_INSTANCE, &[(0x200, USED), (0x408, USED)]);
    scene.list(HEAP_INSTANCE, 336, HEAPS);
    let (heap, old) = (heaps[0] + 8, heaps[1] + 8);
    scene.process(row[0] + 8, [heap, heap, heap + 0x1f8, heap + 0x1f8], 0);
    for (offset, word) in [(504, old + 0x400), (512, old + 0x100), (520, old)] {
        scene.fake.put(row[0] + 8 + offset, word);
    }
    let (division, books) = scene.divided().expect("a sound machine");
    assert_eq!(books["process_objects_bytes"], 0x100);
    assert_eq!(books["process_heap_bytes"], 0x1f8 + 0x400);
    let leaves = division.leaves(HEAPS..HEAPS + CARRIER);
    assert!(
        leaves.contains(&(Leaf::HeapObjects, 8 + 8 + 0x100)),
        "{leaves:?}"
    );
}

#[test]
fn single_blocks_pooled_carriers_and_kept_segments_count() {
    let mut scene = two_processes();
    // A single block of 0x3000 bytes.
    scene.fake.touch(SINGLE, SINGLE + CARRIER);
    scene.fake.put(SINGLE, CARRIER | 3);
    scene.fake.put(SINGLE + 24, HEAP_INSTANCE);
    scene.fake.put(SINGLE + 32, 0x3000 | 7);
    scene.list(HEAP_INSTANCE, 352, SINGLE);
    // A carrier that was given up, by the instance of heaps.
    scene.carrier(POOLED, HEAP_INSTANCE, &[(0x100, USED)]);
    scene.fake.put(POOLED + 24, HEAP_INSTANCE | 1);
    scene.fake.put(POOLED + 32 + 16, POOL);
    scene.fake.put(POOLED + 32 + 32, HEAP_INSTANCE);
    scene.fake.put(POOL + 16, POOLED + 32);
    scene.fake.put(HEAP_INSTANCE + 648, CARRIER);
    scene.fake.put(HEAP_INSTANCE + 656, 1);
    // What was a single block, on three of its four pages.
    scene.fake.touch(KEPT, KEPT + 3 * PAGE);
    scene.fake.put(KEPT, CARRIER | 3);
    scene.fake.put(KEPT + 24, HEAP_INSTANCE);
    let (division, books) = scene.divided().expect("a sound machine");
    assert_eq!(
        division.leaves(SINGLE..SINGLE + CARRIER),
        [
            (Leaf::HeapObjects, 0x3000),
            (Leaf::HeapFree, CARRIER - 0x3020),
            (Leaf::RuntimeInternal, 0x20),
        ]
    );
    assert_eq!(
        division.leaves(POOLED..POOLED + CARRIER),
        [
            (Leaf::HeapObjects, 0x100),
            (Leaf::HeapFree, CARRIER - HEADER - 0x100),
            (Leaf::RuntimeInternal, HEADER),
        ]
    );
    assert_eq!(
        division.leaves(KEPT..KEPT + CARRIER),
        [(Leaf::HeapFree, CARRIER)]
    );
    assert_eq!(books["eheap_carriers_bytes"], 3 * CARRIER);
    assert_eq!(books["mapped_bytes"], 5 * CARRIER);
    assert_eq!(books["cached_segments_resident_bytes"], 3 * PAGE);
    assert_eq!(books["not_carriers_resident_bytes"], 0);
}

#[test]
fn a_carrier_in_memory_of_another_adapter_is_read_and_left_to_it() {
    let scene = two_processes();
    let resident = scene.fake.resident();
    let memory = Memory::new(&scene.fake, &resident);
    let regions = [
        region("malloc.brk.vm", PROCESSES),
        region("beam.carrier", HEAPS),
    ];
    let mut into = DivisionBuilder::default();
    divide_machine(&memory, &regions, &MACHINE, &mut into).expect("a sound machine");
    let division = into.build().expect("no overlap");
    assert_eq!(division.leaves(PROCESSES..PROCESSES + CARRIER), []);
    assert!(
        division
            .leaves(HEAPS..HEAPS + CARRIER)
            .contains(&(Leaf::TaskStack, 0x98))
    );
}

#[test]
fn what_does_not_add_up_is_refused_with_its_address() {
    let block = HEAPS + HEADER;
    let process = PROCESSES + HEADER + 8;
    let cases: &[(u64, u64, &str)] = &[
        (MACHINE.processes + 272, 768, "768 bytes long"),
        (MACHINE.processes + 208, 1, "cannot hold 2 of 1"),
        (MACHINE.processes + 136, 3, "has 2 processes, and says 3"),
        (TABLE + 16, 0x10, "is in no carrier of fix_alloc"),
        (MACHINE.instances + 24 * 6 + 8, u64::MAX, "instances"),
        (HEAP_INSTANCE + 128, 7, "instance of allocator 6"),
        (HEAP_INSTANCE + 296, 8, "instance of allocator 6"),
        (HEAP_INSTANCE + 1752, 1, "1 of 1"),
        (HEAP_INSTANCE + 656, 1, "the pools have"),
        // A carrier that follows itself, one that is too long, and one of another instance.
        (HEAPS + 8, HEAPS, "does not follow"),
        (HEAPS, !6, "cannot be"),
        (HEAPS + 24, FIX_INSTANCE, "is not of the instance"),
        (HEAPS + 32 + 264, 8, "should"),
        (block, 1, "does not fit"),
        (block, !6, "does not fit"),
        (block + 0x100, 0x758, "wrong about the one before"),
        (block + 0x100, 0x75a | 1 << 40, "of another carrier"),
        (block + 0x100, 0x75a | 4, "end at"),
        // Its heap begins in the middle of a block, ends behind it, or the stack is below the heap.
        (process + 128, HEAPS + 0x400, "no heap that could be one"),
        (process + 88, 8, "no heap that could be one"),
        (process + 520, 16, "no heap that could be one"),
    ];
    for (address, word, says) in cases {
        let mut scene = two_processes();
        scene.fake.put(*address, *word);
        let refusal = scene.divided().expect_err(says);
        assert!(refusal.0.contains(says), "{address:#x}: {refusal}");
    }
}

#[test]
fn a_heap_that_is_no_block_is_refused() {
    for shift in [0x10, 0x4000] {
        let mut scene = two_processes();
        let heap = HEAPS + HEADER + 0x108 + shift;
        scene.process(
            PROCESSES + HEADER + 8,
            [heap, heap, heap + 0x100, heap + 0x100],
            0,
        );
        scene.fake.put(TABLE + 8 * 6, 0);
        scene
            .fake
            .write(MACHINE.processes + 136, &2_u32.to_le_bytes());
        let refusal = scene.divided().expect_err("no block");
        assert!(refusal.0.contains("the heap of a process at"), "{refusal}");
    }
}

#[test]
fn a_heap_that_two_processes_have_and_one_outside_of_all_carriers_are_refused() {
    let second = PROCESSES + HEADER + 8 + 784;
    let own = HEAPS + HEADER + 0x108;
    for (heap, says) in [
        (
            own + 8,
            format!("two processes have the heap at {:#x}", own + 8),
        ),
        (HEAPS - 8, format!("at {:#x} is in no carrier", HEAPS - 8)),
        (1 << 50, format!("at {:#x} is in no carrier", 1_u64 << 50)),
    ] {
        let mut scene = two_processes();
        for (offset, word) in [(80, heap), (88, heap + 8), (128, heap), (136, heap + 8)] {
            scene.fake.put(second + offset, word);
        }
        scene.fake.put(second + 152, 1);
        scene.fake.put(second + 640, 0);
        let refusal = scene.divided().expect_err("not its own heap");
        assert!(refusal.0.contains(&says), "{says}: {refusal}");
    }
}

#[test]
fn an_executable_without_the_symbols_is_refused() {
    let own = std::fs::read("/proc/self/exe").expect("we have a file");
    let refusal = Machine::in_file(&own, 0x5555_0000_0000).expect_err("no BEAM");
    assert!(refusal.0.contains("etp_erts_version"), "{refusal}");
    assert!(Machine::in_file(b"#!/bin/sh", 0).is_err());
}

/// Words that a corrupted machine may have: small ones, addresses of its own, anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x1000_u64,
        (0..8_u64, 0..0x800_u64).prop_map(|(page, at)| 0x5555_0000_0000 + page * PAGE + at),
        (HEAPS..HEAPS + CARRIER),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

/// Where words that are read lie.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..PAGE / 8).prop_map(|at| MACHINE.processes + 8 * at),
        (0..40_u64).prop_map(|at| MACHINE.instances + 8 * at),
        (0..64_u64).prop_map(|at| TABLE + 8 * at),
        (0..8_u64).prop_map(|at| ARRAYS + 8 * (8 * 6 + at)),
        (0..300_u64).prop_map(|at| HEAP_INSTANCE + 8 * at),
        (0..800_u64).prop_map(|at| HEAPS + 8 * at),
        (0..400_u64).prop_map(|at| PROCESSES + 8 * at),
    ]
}

proptest! {
    #[test]
    fn nothing_that_is_read_makes_it_panic_or_overlap(
        changes in prop::collection::vec((place(), word()), 1..4)
    ) {
        let mut scene = two_processes();
        for (address, word) in changes {
            scene.fake.put(address, word);
        }
        // `divided` expects that nothing overlaps.
        let _ = scene.divided();
    }
}
