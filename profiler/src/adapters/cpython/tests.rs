//! Literal arenas, pool by pool.

use proptest::prelude::*;

use super::*;
use crate::{
    adapters::memory::fake::Fake,
    classify::{division::Division, place::Region, rules::RULES, runtime::Image},
    residency::ProcessSnapshot,
};

const ARENA: u64 = 0x7f12_3450_0000;
const POOL: u64 = 16 * KIB;

/// Writes a pool with blocks of `block` bytes, `carved` of which were used once; those of `free` are on its
/// list, in this order.
fn pool_of(fake: &mut Fake, at: u64, block: u64, carved: u64, free: &[u64], size: u64) {
    let half = |value: u64| (value as u32).to_le_bytes();
    fake.touch(at, at + size);
    fake.write(at + COUNT, &half(carved - free.len() as u64));
    fake.write(at + ARENA_INDEX, &half(3));
    fake.write(at + CLASS, &half(block / QUANTUM - 1));
    fake.write(at + NEXT_OFFSET, &half(HEADER + carved * block));
    fake.write(at + LAST_OFFSET, &half(size - block));
    let mut link = at + FREE_BLOCK;
    for number in free {
        let address = at + HEADER + number * block;
        fake.put(link, address);
        link = address;
    }
    fake.put(link, 0);
}

fn region(start: u64, length: u64) -> Region<'static> {
    Region {
        range: start..start + length,
        resident_bytes: length,
        rule: RULES
            .iter()
            .find(|known| known.id == "cpython.arena")
            .expect("the rule"),
        backing: None,
    }
}

fn divided(fake: &Fake, regions: &[Region]) -> Result<(Division, Books), Refusal> {
    let process = ProcessSnapshot {
        tgid: 7,
        resident: fake.resident(),
        ..ProcessSnapshot::default()
    };
    let target = Target {
        memory: &Memory::new(fake, &process.resident),
        process: &process,
        regions,
        runtime: Runtime::Cpython,
        image: &Image::default(),
        threads: &[],
    };
    let mut into = DivisionBuilder::default();
    let books = divide(&target, &mut into)?.expect("there are arenas");
    Ok((into.build().expect("no overlap"), books))
}

#[test]
fn blocks_in_use_are_objects_to_the_byte() {
    let mut fake = Fake::default();
    pool_of(&mut fake, ARENA, 64, 10, &[3, 9, 0], POOL);
    let (division, books) = divided(&fake, &[region(ARENA, MIB)]).expect("a sound arena");
    assert_eq!(
        division.leaves(ARENA..ARENA + POOL),
        [
            (Leaf::HeapObjects, 7 * 64),
            (Leaf::HeapFree, POOL - HEADER - 7 * 64),
            (Leaf::RuntimeInternal, HEADER),
        ]
    );
    assert_eq!(books["allocated_bytes"], 7 * 64);
    assert_eq!(books["blocks_of_64"], 7);
    // 255 blocks fit behind the header.
    assert_eq!(books["available_bytes"], (255 - 7) * 64);
}

#[test]
fn an_empty_pool_is_free_and_so_is_one_never_used() {
    let mut fake = Fake::default();
    pool_of(&mut fake, ARENA, 512, 31, &[], POOL);
    pool_of(&mut fake, ARENA + POOL, 32, 2, &[1, 0], POOL);
    fake.touch(ARENA + 2 * POOL, ARENA + 3 * POOL);
    let (division, books) = divided(&fake, &[region(ARENA, MIB)]).expect("a sound arena");
    assert_eq!(
        division.leaves(ARENA + POOL..ARENA + 3 * POOL),
        [(Leaf::HeapFree, 2 * POOL)]
    );
    assert_eq!((books["pools_in_use"], books["pools_empty"]), (1, 1));
    // 31 blocks of 512 bytes leave 464 behind them.
    assert_eq!(
        division.leaves(ARENA..ARENA + POOL)[1],
        (Leaf::HeapFree, POOL - HEADER - 31 * 512)
    );
}

#[test]
fn an_arena_need_not_lie_at_a_multiple_of_a_pool() {
    let mut fake = Fake::default();
    let start = ARENA + 5 * PAGE;
    fake.touch(start, start + MIB);
    pool_of(&mut fake, ARENA + 2 * POOL, 16, 1021, &[], POOL);
    let (division, books) = divided(&fake, &[region(start, MIB)]).expect("a sound arena");
    assert_eq!(
        division.leaves(start..ARENA + 2 * POOL),
        [(Leaf::HeapFree, 3 * PAGE)]
    );
    assert_eq!(books["allocated_bytes"], 1021 * 16);
    let all: u64 = division
        .leaves(start..start + MIB)
        .iter()
        .map(|(_, bytes)| bytes)
        .sum();
    assert_eq!(all, MIB);
}

#[test]
fn before_3_10_pools_are_pages() {
    let mut fake = Fake::default();
    pool_of(&mut fake, ARENA, 128, 4, &[1], 4 * KIB);
    let (_, books) = divided(&fake, &[region(ARENA, 256 * KIB)]).expect("a sound arena");
    assert_eq!(books["allocated_bytes"], 3 * 128);
}

#[test]
fn a_large_block_of_mallocs_is_left_as_it_is() {
    let mut fake = Fake::default();
    pool_of(&mut fake, ARENA, 64, 1, &[], POOL);
    let other = ARENA + 4 * MIB;
    fake.touch(other, other + MIB);
    fake.put(other + 8, MIB | 2);
    let regions = [region(ARENA, MIB), region(other, MIB)];
    let (division, books) = divided(&fake, &regions).expect("a sound arena");
    assert_eq!((books["arenas"], books["regions_without_pools"]), (1, 1));
    assert_eq!(division.leaves(other..other + MIB), []);
}

#[test]
fn what_is_no_pool_is_refused_with_its_address() {
    let second = ARENA + POOL;
    let corruptions: [(&str, u64, u64); 7] = [
        // Words of the second pool: an absurd class, offset, count, other arena, and lists.
        (
            "what should be a pool of pymalloc is none: 0x7f1234504000",
            0x20,
            77 << 32 | 3,
        ),
        (
            "what should be a pool of pymalloc is none: 0x7f1234504000",
            0x28,
            u64::MAX,
        ),
        (
            "what should be a pool of pymalloc is none: 0x7f1234504000",
            0,
            500,
        ),
        ("another arena", 0x20, 3 << 32 | 4),
        ("which is no free block of it", FREE_BLOCK, 0x1234),
        // The first block is on the list already, so the list bites its tail.
        ("which is no free block of it", HEADER, second + HEADER),
        ("4 are in use and 2 free", 0, 4),
    ];
    for (says, offset, value) in corruptions {
        let mut fake = Fake::default();
        pool_of(&mut fake, ARENA, 64, 5, &[], POOL);
        pool_of(&mut fake, second, 64, 5, &[2, 0], POOL);
        fake.put(second + offset, value);
        let refusal = divided(&fake, &[region(ARENA, MIB)]).expect_err(says);
        assert!(refusal.0.contains(says), "{refusal}, not {says}");
    }
    let refusal = divided(&Fake::default(), &[region(ARENA, MIB)]).expect_err("nothing there");
    assert_eq!(refusal.0, "no arena of pymalloc begins with a pool");
}

proptest! {
    /// Whatever the words of a pool become: an answer or a refusal, never a panic or a range given twice.
    #[test]
    fn a_corrupted_pool_never_panics(
        words in prop::collection::vec((0_u64..12, any::<u64>(), any::<bool>()), 1..5),
    ) {
        let mut fake = Fake::default();
        pool_of(&mut fake, ARENA, 64, 5, &[], POOL);
        pool_of(&mut fake, ARENA + POOL, 48, 9, &[2, 7], POOL);
        for (word, value, near) in words {
            let value = if near { ARENA + POOL + value % POOL } else { value };
            fake.put(ARENA + POOL + 8 * word, value);
        }
        // `divided` itself asserts that nothing overlaps.
        let _ = divided(&fake, &[region(ARENA, MIB)]);
    }
}
