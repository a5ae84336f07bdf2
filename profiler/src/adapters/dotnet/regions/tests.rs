//! A literal heap of regions: debuggers' table, the collector's, the descriptor, two regions and a free one.

use super::super::variable as common;
use super::*;
use crate::adapters::memory::{Memory, fake::Fake};

const DAC_TABLE: u64 = 0x10_0000;
const VARS: u64 = 0x11_0000;
const VALUES: u64 = 0x12_0000;
const FIELDS: u64 = 0x13_0000;
const GENERATION_TABLE: u64 = 0x14_0000;
const DESCRIPTOR: u64 = 0x15_0000;
const JSON: u64 = 0x16_0000;
const FREE_LISTS: u64 = 0x17_0000;
const GLOBAL: u64 = 0x18_0000;
const POINTER: u64 = 0x19_0000;
const REGIONS: u64 = 0x1a_0000;
const FREE: u64 = 0x40_0000;
const HEAP: u64 = 0x7f00_0000_0000;
const GENERATION: u64 = 256;
const START: u64 = 56;

const DESCRIBED: &str = r#"{"version":0,"baseline":"empty","types":{"Object":{"m_pMethTab":0},
    "MethodTable":{"!":64,"MTFlags":0,"BaseSize":[4,"uint32"]},"Array":{"!":16,"m_NumComponents":8}},
    "globals":{"ObjectHeaderSize":["0x8","uint64"],"FreeObjectMethodTable":[[1],"pointer"]},"contracts":{}}"#;

fn region(fake: &mut Fake, at: u64, mem: u64, allocated: u64, next: u64) {
    fake.put(at + segment::MEM, mem);
    fake.put(at + segment::ALLOCATED, mem + allocated);
    fake.put(at + segment::COMMITTED, mem + 0x4000);
    fake.put(at + segment::NEXT, next);
}

/// Generation 0 has two regions, of which the second is allocated from; one region is free.
fn heap() -> Fake {
    let mut fake = Fake::default();
    for entry in 0..MOST_ENTRIES {
        fake.put(DAC_TABLE + 8 * entry, 0x7777_7777);
    }
    fake.put(DAC_TABLE + 8 * 20, GLOBAL);
    fake.put(GLOBAL, VARS);
    fake.put(VARS, 0x0102);
    fake.put(VARS + GENERATION_SIZE, GENERATION);
    fake.put(VARS + GENERATIONS, LISTS);
    for place in 0..34 {
        fake.put(VARS + VARIABLES + 8 * place, VALUES + 8 * place);
        fake.put(VALUES + 8 * place, 0);
    }
    let pointer = |fake: &mut Fake, place: u64, to: u64| fake.put(VARS + VARIABLES + 8 * place, to);
    pointer(&mut fake, common::GENERATIONS, GENERATION_TABLE);
    pointer(&mut fake, common::HEAPS, 0);
    pointer(&mut fake, variable::GENERATION_FIELDS, FIELDS);
    for place in [
        variable::TO_DECOMMIT,
        variable::FREE_HUGE,
        variable::FREE_REGIONS,
    ] {
        pointer(&mut fake, place, FREE_LISTS + 0x1000 * place);
        fake.touch(
            FREE_LISTS + 0x1000 * place,
            FREE_LISTS + 0x1000 * (place + 1),
        );
    }
    fake.put(VALUES + 8 * common::HIGHEST_GENERATION, 2);
    fake.put(VALUES + 8 * variable::BACKGROUND, u64::from(NO_BACKGROUND));
    fake.put(VALUES + 8 * common::EPHEMERAL_SEGMENT, REGIONS + 0x100);
    fake.put(VALUES + 8 * common::ALLOCATED, HEAP + 0x40_0028 + 0x80);
    fake.put(FIELDS, START << 32);
    fake.put(FIELDS + 8, u64::from(u32::MAX));
    fake.touch(GENERATION_TABLE, GENERATION_TABLE + 0x1000);
    fake.put(GENERATION_TABLE + START, REGIONS);
    region(&mut fake, REGIONS, HEAP + 0x28, 0x60, REGIONS + 0x100);
    region(&mut fake, REGIONS + 0x100, HEAP + 0x40_0028, 0, 0);
    region(&mut fake, REGIONS + 0x200, HEAP + 0x80_0028, 0x77, 0);
    fake.put(
        FREE_LISTS + 0x1000 * variable::FREE_REGIONS + FREE_LIST_HEAD,
        REGIONS + 0x200,
    );
    fake.put(DESCRIPTOR, descriptor::MAGIC);
    fake.put(DESCRIPTOR + 8, (DESCRIBED.len() as u64) << 32);
    fake.put(DESCRIPTOR + descriptor::JSON, JSON);
    fake.put(DESCRIPTOR + descriptor::POINTERS, 2);
    fake.put(DESCRIPTOR + descriptor::POINTER_DATA, POINTER);
    fake.put(POINTER + 8, POINTER + 0x100);
    fake.put(POINTER + 0x100, FREE);
    fake.write(JSON, DESCRIBED.as_bytes());
    fake
}

fn found(fake: &Fake) -> Result<Heap, Refusal> {
    let resident = fake.resident();
    read(&Memory::new(fake, &resident), DAC_TABLE, DESCRIPTOR)
}

#[test]
fn regions_of_all_generations_and_free_ones_are_found() {
    let heap = found(&heap()).expect("a sound heap");
    let ends: Vec<_> = heap
        .segments
        .iter()
        .map(|it| (it.mem, it.allocated))
        .collect();
    assert_eq!(
        ends,
        [
            (HEAP + 0x28, HEAP + 0x28 + 0x60),
            (HEAP + 0x40_0028, HEAP + 0x40_0028 + 0x80),
        ]
    );
    assert_eq!(heap.free_object, FREE);
    // What lies before the first object of each region, and all of the free one.
    assert_eq!(
        heap.spare,
        [
            HEAP..HEAP + 0x28,
            HEAP + 0x40_0000..HEAP + 0x40_0028,
            HEAP + 0x80_0000..HEAP + 0x80_0028 + 0x4000,
        ]
    );
}

#[test]
fn what_is_not_understood_is_refused() {
    let says = |change: &dyn Fn(&mut Fake), words: &str| {
        let mut fake = heap();
        change(&mut fake);
        let refusal = found(&fake).err().expect("it is not sound").0;
        assert!(refusal.contains(words), "{refusal}");
    };
    says(&|fake| fake.put(VARS, 0x0103), "interface 3");
    says(&|fake| fake.put(GLOBAL, 0), "no entry of g_dacTable");
    // A second table of that form.
    says(
        &|fake| {
            fake.put(DAC_TABLE + 8, GLOBAL + 8);
            fake.put(GLOBAL + 8, VARS + 0x800);
            fake.put(VARS + 0x800, 0x0102);
            fake.put(VARS + 0x800 + GENERATION_SIZE, GENERATION);
            fake.put(VARS + 0x800 + GENERATIONS, LISTS);
            let at = VARS + 0x800 + VARIABLES;
            fake.put(at + 8 * common::GENERATIONS, GENERATION_TABLE);
            fake.put(
                at + 8 * common::HIGHEST_GENERATION,
                VALUES + 8 * common::HIGHEST_GENERATION,
            );
        },
        "2 entries",
    );
    says(
        &|fake| fake.put(VALUES + 8 * common::INVALID, 1),
        "in the middle of a collection",
    );
    says(
        &|fake| fake.put(VALUES + 8 * variable::BACKGROUND, 0),
        "background collection",
    );
    says(
        &|fake| fake.put(VARS + VARIABLES + 8 * common::HEAPS, VALUES),
        "server",
    );
    says(&|fake| fake.put(FIELDS + 8, 16), "not a heap of regions");
    says(
        &|fake| fake.put(REGIONS + segment::NEXT, REGIONS),
        "goes in circles",
    );
    says(
        &|fake| fake.put(REGIONS + 0x200 + segment::COMMITTED, 0),
        "no sound free region",
    );
    says(&|fake| fake.put(DESCRIPTOR, 1), "magic number");
    says(&|fake| fake.write(JSON, b"["), "cannot be read");
    says(
        &|fake| fake.put(DESCRIPTOR + descriptor::POINTERS, 1),
        "a pointer that it has not",
    );
    let moved = DESCRIBED.replace("[4,\"uint32\"]", "[8,\"uint32\"]");
    says(
        &|fake| fake.write(JSON, moved.as_bytes()),
        "MethodTable.BaseSize at another place",
    );
}

proptest::proptest! {
    /// Any word of the structures may be anything: refused or read, never a panic.
    #[test]
    fn damaged_structures_never_panic(
        at in proptest::sample::select(vec![
            DAC_TABLE + 8 * 20, GLOBAL, VARS, VARS + GENERATION_SIZE, VARS + GENERATIONS,
            VARS + VARIABLES + 8 * common::GENERATIONS, VARS + VARIABLES + 8 * variable::FREE_REGIONS,
            VARS + VARIABLES + 8 * variable::GENERATION_FIELDS, FIELDS, FIELDS + 8,
            VALUES + 8 * common::EPHEMERAL_SEGMENT, VALUES + 8 * common::ALLOCATED,
            GENERATION_TABLE + START, REGIONS + segment::MEM, REGIONS + segment::NEXT,
            REGIONS + 0x200 + segment::MEM, DESCRIPTOR + 8, DESCRIPTOR + descriptor::JSON,
            DESCRIPTOR + descriptor::POINTER_DATA, JSON, JSON + 64, POINTER + 8,
        ]),
        word: u64,
    ) {
        let mut fake = heap();
        fake.put(at, word);
        let _ = found(&fake);
    }
}
