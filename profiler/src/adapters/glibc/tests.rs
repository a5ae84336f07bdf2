//! Literal heaps, chunk by chunk.

use super::*;
use crate::{
    adapters::memory::fake::Fake,
    classify::{
        division::Division,
        place::Region,
        rules::RULES,
        runtime::{Image, Runtime},
    },
    residency::ProcessSnapshot,
    units::PAGE,
};

const HEAP: u64 = 0x5555_0000_0000;
const ARENA: u64 = 0x7f12_4000_0000;

/// Writes a row of chunks that fills `start..end`: size, and whether it is in use. The rest is the top.
fn row(fake: &mut Fake, start: u64, end: u64, chunks: &[(u64, bool)]) -> u64 {
    let mut at = start;
    let mut previous = PREVIOUS_IN_USE;
    for &(size, in_use) in chunks {
        fake.put(at + 8, size | previous);
        previous = u64::from(in_use);
        at += size;
    }
    fake.put(at + 8, (end - at) | previous);
    at
}

fn region(rule: &str, start: u64, end: u64, backing: Option<&'static str>) -> Region<'static> {
    Region {
        range: start..end,
        resident_bytes: end - start,
        rule: RULES
            .iter()
            .find(|known| known.id == rule)
            .expect("a rule of this name"),
        backing,
    }
}

fn divided(
    fake: &Fake,
    regions: &[Region],
    runtime: Runtime,
) -> Result<(Division, Books), Refusal> {
    let process = ProcessSnapshot {
        tgid: 7,
        resident: fake.resident(),
        ..ProcessSnapshot::default()
    };
    let target = Target {
        memory: &Memory::new(fake, &process.resident),
        process: &process,
        regions,
        runtime,
        image: &Image::default(),
        threads: &[],
    };
    let mut into = DivisionBuilder::default();
    let books = divide(&target, &mut into)?.expect("there is a heap");
    Ok((into.build().expect("no overlap"), books))
}

#[test]
fn a_row_of_chunks_is_divided_to_the_byte() {
    let mut fake = Fake::default();
    let end = HEAP + 2 * PAGE;
    row(
        &mut fake,
        HEAP,
        end,
        &[(0x290, true), (0x100, false), (0x300, true)],
    );
    let (division, books) = divided(
        &fake,
        &[region("malloc.brk", HEAP, end, Some("[heap]"))],
        Runtime::Native,
    )
    .expect("a sound heap");
    assert_eq!(books["in_use_bytes"], 0x290 + 0x300);
    assert_eq!(books["free_bytes"], 2 * PAGE - 0x590);
    assert_eq!(books["in_use_blocks"], 2);
    assert_eq!(
        division.leaves(HEAP..end),
        [
            (Leaf::MallocUsed, 0x590),
            (Leaf::HeapFree, 2 * PAGE - 0x590)
        ]
    );
}

#[test]
fn in_a_static_program_thread_local_storage_lies_before_the_first_chunk() {
    let mut fake = Fake::default();
    let (start, end) = (HEAP + 0x12c0, HEAP + 3 * PAGE);
    fake.put(HEAP + 8, 0x7f00_0000_0000);
    row(&mut fake, start, end, &[(0x290, true), (0x100, true)]);
    let regions = [region("malloc.brk", HEAP, end, Some("[heap]"))];
    let (division, books) = divided(&fake, &regions, Runtime::Native).expect("a sound heap");
    assert_eq!(books["in_use_bytes"], 0x390);
    assert_eq!(
        division.leaves(HEAP..end),
        [
            (Leaf::MallocUsed, 0x390),
            (Leaf::HeapFree, end - start - 0x390),
            (Leaf::RuntimeInternal, 0x12c0)
        ]
    );
}

#[test]
fn under_a_virtual_machine_what_is_in_use_is_the_machines() {
    let mut fake = Fake::default();
    row(&mut fake, HEAP, HEAP + PAGE, &[(0x800, true)]);
    let regions = [region("malloc.brk.vm", HEAP, HEAP + PAGE, Some("[heap]"))];
    let (division, _) = divided(&fake, &regions, Runtime::Jvm).expect("a sound heap");
    assert_eq!(
        division.leaves(HEAP..HEAP + PAGE),
        [(Leaf::HeapFree, 0x800), (Leaf::VmMalloc, 0x800)]
    );
}

#[test]
fn chunks_that_a_thread_keeps_are_free_and_in_the_books_as_glibc_has_them() {
    let mut fake = Fake::default();
    let end = HEAP + PAGE;
    let kept = HEAP + TCACHE_CHUNK;
    row(
        &mut fake,
        HEAP,
        end,
        &[
            (TCACHE_CHUNK, true),
            (0x40, true),
            (0x40, true),
            (0x80, true),
        ],
    );
    // Two chunks of 0x40 bytes: bin 2. The first one's next pointer leads to the second.
    let lists = HEAP + 16;
    fake.write(lists + 2 * 2, &2_u16.to_le_bytes());
    fake.put(lists + 2 * u64::from(TCACHE_BINS) + 8 * 2, kept + 16);
    fake.put(kept + 16, (kept + 0x40 + 16) ^ ((kept + 16) >> 12));
    fake.put(kept + 0x40 + 16, (kept + 0x40 + 16) >> 12);
    let regions = [region("malloc.brk", HEAP, end, Some("[heap]"))];
    let (division, books) = divided(&fake, &regions, Runtime::Native).expect("a sound heap");
    assert_eq!(books["thread_cache_bytes"], 0x80);
    assert_eq!(books["in_use_bytes"], TCACHE_CHUNK + 0x100);
    assert_eq!(
        division.leaves(HEAP..end),
        [
            (Leaf::MallocUsed, TCACHE_CHUNK + 0x80),
            (Leaf::HeapFree, PAGE - TCACHE_CHUNK - 0x80)
        ]
    );
}

#[test]
fn arenas_have_a_header_and_may_have_several_heaps() {
    let mut fake = Fake::default();
    let second = ARENA + 2 * HEAP_ALIGNMENT;
    let state = ARENA + 0x30;
    let size = 3 * PAGE;
    for base in [ARENA, second] {
        fake.put(base, state);
        fake.put(base + HEAP_SIZE, size);
    }
    // The first heap ends with a fence: 16 bytes, and the place of a head without a size.
    let first_chunk = ARENA + 0x30 + STATE_BYTES + 8;
    let rest = size - (first_chunk - ARENA) - 0x200 - 32;
    let fence = row(
        &mut fake,
        first_chunk,
        ARENA + size,
        &[(0x200, true), (rest, false)],
    );
    fake.put(fence + 8, FENCE);
    fake.put(fence + FENCE + 8, PREVIOUS_IN_USE);
    row(&mut fake, second + 0x30, second + size, &[(0x150, true)]);
    let regions = [
        region("malloc.arena", ARENA, ARENA + size, None),
        region("malloc.arena", second, second + size, None),
    ];
    let (division, books) = divided(&fake, &regions, Runtime::Native).expect("sound heaps");
    assert_eq!(books["arenas"], 1);
    assert_eq!(books["in_use_bytes"], 0x350);
    let own = first_chunk - ARENA;
    assert_eq!(
        division.leaves(ARENA..ARENA + size),
        [
            (Leaf::MallocUsed, 0x200),
            (Leaf::HeapFree, size - own - 0x200),
            (Leaf::RuntimeInternal, own),
        ]
    );
}

#[test]
fn fast_chunks_are_free() {
    let mut fake = Fake::default();
    let end = HEAP + PAGE;
    let top = row(
        &mut fake,
        HEAP,
        end,
        &[(0x290, true), (0x40, true), (0x50, true)],
    );
    let fast = HEAP + 0x290;
    // The main arena, somewhere in libc's data.
    let data = 0x7f00_0000_0000;
    let state = data + 0xc60;
    fake.touch(data, data + 2 * PAGE);
    fake.put(state + STATE_TOP, top);
    fake.put(state + STATE_SYSTEM, PAGE);
    for bin in 0..BINS {
        let (itself, links) = (state + STATE_TOP + 16 * bin, state + STATE_BINS + 16 * bin);
        fake.put(links, itself);
        fake.put(links + 8, itself);
    }
    // Before it, a buffer of stdio that ends where the top chunk begins, and what would be taken for an arena's size and
    // for a fast chunk.
    fake.put(data + 0x200, top);
    fake.put(data + 0x200 - STATE_TOP + STATE_SYSTEM, u64::MAX);
    fake.put(data + 0x200 - STATE_TOP + STATE_FASTBINS, 0xfbad_2090);
    fake.put(state + STATE_FASTBINS + 8 * 2, fast);
    fake.put(fast + 16, (fast + 16) >> 12);
    let regions = [
        region("malloc.brk", HEAP, end, Some("[heap]")),
        region("image", data, data + 2 * PAGE, Some("/usr/lib/libc.so.6")),
    ];
    let (_, books) = divided(&fake, &regions, Runtime::Native).expect("a sound heap");
    assert_eq!(books["in_use_bytes"], 0x290 + 0x50);
}

#[test]
fn what_is_no_heap_of_glibc_is_refused_with_its_address() {
    let mut fake = Fake::default();
    let regions = [region("malloc.brk", HEAP, HEAP + PAGE, Some("[heap]"))];
    for (head, says) in [
        (0_u64, "0 bytes"),
        (0x1001 + 8, "4104 bytes"),
        (u64::MAX, "bytes"),
    ] {
        fake.put(HEAP + 8, head);
        let refusal = divided(&fake, &regions, Runtime::Native).expect_err("no chunk");
        assert!(refusal.0.contains("0x555500000000"), "{refusal}");
        assert!(refusal.0.contains(says), "{refusal}");
    }
    // A page that is not there ends the walk too.
    fake.put(HEAP + 8, 0x1001);
    let regions = [region("malloc.brk", HEAP, HEAP + 2 * PAGE, Some("[heap]"))];
    let refusal = divided(&fake, &regions, Runtime::Native).expect_err("unreadable");
    assert!(refusal.0.contains("0x555500001008"), "{refusal}");
}

proptest::proptest! {
    /// Any word of a heap may be anything: refused or divided, never a panic.
    #[test]
    fn damaged_heaps_never_panic(
        words in proptest::collection::vec((0_u64..2 * PAGE / 8, proptest::num::u64::ANY), 1..20),
        arena: bool,
    ) {
        let mut fake = Fake::default();
        let (rule, start) = match arena {
            true => ("malloc.arena", ARENA),
            false => ("malloc.brk", HEAP),
        };
        let end = start + 2 * PAGE;
        let first = if arena { start + 0x30 + STATE_BYTES + 8 } else { start };
        fake.touch(start, end);
        if arena {
            fake.put(start, start + 0x30);
            fake.put(start + HEAP_SIZE, 2 * PAGE);
        }
        row(&mut fake, first, end, &[(TCACHE_CHUNK, true), (0x40, true), (0x100, false), (0x300, true)]);
        for (place, word) in words {
            fake.put(start + 8 * place, word);
        }
        let _ = divided(&fake, &[region(rule, start, end, None)], Runtime::Native);
    }
}
