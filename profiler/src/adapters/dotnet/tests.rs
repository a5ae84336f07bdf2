//! A literal heap of the collector: two segments and a few objects.

use super::{
    segments::{INTERFACE, START_SEGMENT, VARIABLES},
    *,
};
use crate::units::PAGE;
use crate::{adapters::memory::fake::Fake, classify::division::Division};
use std::collections::BTreeMap;

const TABLE_AT: u64 = 0x10_0000;
const VALUES: u64 = 0x20_0000;
const GENERATIONS: u64 = 0x30_0000;
const SMALL: u64 = 0x7f00_0000_0000;
const LARGE: u64 = 0x7f10_0000_0000;
const TASK: u64 = 0x40_0000;
const ARRAY: u64 = 0x40_1000;
const FREE: u64 = 0x40_2000;

fn method_table(fake: &mut Fake, at: u64, base: u32, element: u32) {
    let flags = if element > 0 {
        HAS_ELEMENTS | element
    } else {
        0
    };
    fake.put(at, u64::from(flags) | u64::from(base) << 32);
}

fn segment(fake: &mut Fake, at: u64, allocated: u64) {
    fake.put(at + segment::MEM, at + 0x1000);
    fake.put(at + segment::ALLOCATED, allocated);
    fake.put(at + segment::COMMITTED, at + 0x4000);
    fake.touch(at + 0x1000, at + 0x3000);
}

/// The ephemeral segment has an object of 32 bytes, a free one of 64, two words that a thread allocates from and
/// the header of an object of 32; the other an array of 1000 bytes.
fn heap() -> Fake {
    let mut fake = Fake::default();
    for place in 0..27 {
        fake.put(TABLE_AT + VARIABLES + 8 * place, VALUES + 8 * place);
    }
    fake.write(TABLE_AT, &[INTERFACE]);
    fake.put(TABLE_AT + GENERATION_SIZE, 0x100);
    fake.put(TABLE_AT + VARIABLES + 8 * variable::HEAPS, 0);
    fake.put(VALUES + 8 * variable::HIGHEST_GENERATION, 2);
    fake.put(
        TABLE_AT + VARIABLES + 8 * variable::GENERATIONS,
        GENERATIONS,
    );
    fake.put(VALUES + 8 * variable::EPHEMERAL_SEGMENT, SMALL);
    fake.put(
        VALUES + 8 * variable::ALLOCATED,
        SMALL + 0x1000 + 32 + 64 + 24 + 32,
    );
    fake.put(GENERATIONS + 2 * 0x100 + START_SEGMENT, SMALL);
    fake.put(GENERATIONS + 3 * 0x100 + START_SEGMENT, LARGE);
    method_table(&mut fake, TASK, 32, 0);
    method_table(&mut fake, ARRAY, 24, 1);
    method_table(&mut fake, FREE, 24, 1);
    segment(&mut fake, SMALL, 0);
    let mut at = SMALL + 0x1000;
    fake.put(at, TASK);
    at += 32;
    fake.put(at, FREE);
    fake.put(at + 8, 40);
    // Two words of zeros, and a header whose upper half is in use (a hash code).
    at += 64 + 16;
    fake.put(at, 0x1234 << 32);
    // Marked by the collector.
    fake.put(at + 8, TASK | 1);
    segment(&mut fake, LARGE, LARGE + 0x1000 + 1024);
    fake.put(LARGE + 0x1000, ARRAY);
    fake.put(LARGE + 0x1008, 1000);
    fake
}

fn divided(fake: &Fake) -> Result<(Division, Tally), Refusal> {
    let resident = fake.resident();
    let memory = Memory::new(fake, &resident);
    let heap = segments::read(&memory, TABLE_AT, FREE)?;
    let mut into = DivisionBuilder::default();
    let tally = heap.divide(&memory, &mut into)?;
    Ok((into.build().expect("no overlap"), tally))
}

#[test]
fn objects_free_ones_and_what_threads_allocate_from_are_told_apart() {
    let (division, tally) = divided(&heap()).expect("a sound heap");
    assert_eq!((tally.objects, tally.number), (32 + 32 + 1024, 3));
    assert_eq!((tally.free, tally.allocating), (64, 24));
    let mut bytes = BTreeMap::new();
    for start in [SMALL, LARGE] {
        for (leaf, found) in division.leaves(start + 0x1000..start + 0x3000) {
            *bytes.entry(leaf).or_default() += found;
        }
    }
    assert_eq!(
        bytes,
        BTreeMap::from([
            (Leaf::HeapObjects, 32 + 32 + 1024),
            (Leaf::HeapFree, 4 * PAGE - 32 - 32 - 1024),
        ])
    );
}

#[test]
fn the_word_behind_the_last_object_may_be_of_one_that_is_gone() {
    let (sound, before) = divided(&heap()).expect("a sound heap");
    let mut fake = heap();
    let end = SMALL + 0x1000 + 32 + 64 + 24 + 32;
    fake.put(end, TASK);
    fake.put(VALUES + 8 * variable::ALLOCATED, end + 8);
    let (division, tally) = divided(&fake).expect("a sound heap");
    assert_eq!(tally.objects, before.objects);
    assert_eq!(tally.allocating, before.allocating + 8);
    let pages = SMALL + 0x1000..SMALL + 0x3000;
    assert_eq!(division.leaves(pages.clone()), sound.leaves(pages));
}

#[test]
fn what_is_not_understood_is_refused() {
    let refused = |change: &dyn Fn(&mut Fake)| {
        let mut fake = heap();
        change(&mut fake);
        match divided(&fake) {
            Err(refusal) => refusal.0,
            Ok(_) => panic!("a heap that is not sound"),
        }
    };
    let says = |change: &dyn Fn(&mut Fake), words: &str| {
        let refusal = refused(change);
        assert!(refusal.contains(words), "{refusal}");
    };
    says(&|fake| fake.write(TABLE_AT, &[5]), "interface 5");
    says(
        &|fake| fake.put(VALUES + 8 * variable::INVALID, 1),
        "in the middle of a collection",
    );
    says(
        &|fake| fake.put(TABLE_AT + VARIABLES + 8 * variable::HEAPS, VALUES),
        "server",
    );
    // A segment that leads to itself.
    says(
        &|fake| fake.put(LARGE + segment::NEXT, LARGE),
        "goes in circles",
    );
    says(&|fake| fake.put(SMALL + 0x1000, 0x999), "no method table");
    says(&|fake| fake.put(TASK, u64::MAX << 36), "bytes long");
    // An array that would reach beyond its segment.
    says(&|fake| fake.put(LARGE + 0x1008, u64::MAX), "bytes long");
}

proptest::proptest! {
    /// Any word of the collector's structures may be anything: refused or divided, never a panic.
    #[test]
    fn damaged_structures_never_panic(
        at in proptest::sample::select(vec![
            TABLE_AT, TABLE_AT + 8, TABLE_AT + VARIABLES + 8 * variable::GENERATIONS,
            GENERATIONS + 2 * 0x100 + START_SEGMENT, GENERATIONS + 3 * 0x100 + START_SEGMENT,
            SMALL + segment::MEM, SMALL + segment::NEXT, LARGE + segment::ALLOCATED,
            LARGE + segment::COMMITTED, LARGE + segment::MEM, SMALL + 0x1000, LARGE + 0x1008,
            VALUES + 8 * variable::ALLOCATED, TASK, ARRAY, FREE,
        ]),
        word: u64,
    ) {
        let mut fake = heap();
        fake.put(at, word);
        let resident = fake.resident();
        let memory = Memory::new(&fake, &resident);
        if let Ok(heap) = segments::read(&memory, TABLE_AT, FREE) {
            let mut into = DivisionBuilder::default();
            let _ = heap.divide(&memory, &mut into);
            let _ = into.build();
        }
    }
}
