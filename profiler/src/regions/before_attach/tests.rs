use super::*;
use crate::regions::script::*;

const NH: VmFlags = VmFlags::NOHUGEPAGE;
const NR: VmFlags = VmFlags::NORESERVE;
const AC: VmFlags = VmFlags::ACCOUNTED;
const NO: VmFlags = VmFlags::empty();

fn mapping(range: Range<u64>, protection: u32, name: &str, flags: VmFlags) -> Mapping {
    Mapping {
        vma: vma(range, protection, name),
        flags,
    }
}

fn standing(mappings: Vec<Mapping>, threads: &[(u32, u64)]) -> Standing {
    let mut threads: Vec<(u32, Option<u64>)> =
        threads.iter().map(|&(tid, at)| (tid, Some(at))).collect();
    threads.push((TGID, None));
    Standing {
        tgid: TGID,
        mappings,
        threads,
        ..Standing::default()
    }
}

fn origin_at(space: &AddressSpace, address: u64) -> &super::super::Origin {
    let (_, piece) = space.piece_at(address).expect("mapped");
    let origin = space.origin(piece.origin);
    assert!(origin.before_attach);
    origin
}

#[test]
fn a_stack_has_a_guard_below_and_either_the_flag_or_a_thread() {
    let at = |page: u64| P * 1000 + P * page;
    let (space, stacks) = address_space(&standing(
        vec![
            // With a thread.
            mapping(at(0)..at(1), NONE, "", NO),
            mapping(at(1)..at(9), RW, "", AC | NH),
            // Without one, kept for the next.
            mapping(at(9)..at(10), NONE, "", NO),
            mapping(at(10)..at(18), RW, "", AC | NH),
            // Before Linux 6.7 there is no flag.
            mapping(at(18)..at(19), NONE, "", NO),
            mapping(at(19)..at(27), RW, "", AC),
            // No guard: a block of memory in which a stack pointer lies says nothing.
            mapping(at(40)..at(80), RW, "", AC),
        ],
        &[(101, at(5)), (102, at(20)), (103, at(60))],
    ));
    let stack = |range: Range<u64>| {
        Some(Stack {
            range,
            lower_end: LowerEnd::StackMapping,
        })
    };
    assert_eq!(
        stacks,
        [
            (101, stack(at(1)..at(9))),
            (102, stack(at(19)..at(27))),
            (103, None),
            (TGID, None)
        ]
    );
    for page in [0, 1, 10, 19] {
        assert!(
            origin_at(&space, at(page)).has_flag(libc::MAP_STACK),
            "page {page}"
        );
    }
    // The guard is part of what was mapped.
    assert_eq!(origin_at(&space, at(5)).range(), at(0)..at(9));
    assert!(!origin_at(&space, at(60)).has_flag(libc::MAP_STACK));
}

#[test]
fn heaps_of_arenas_are_64_mib_and_opened_by_mprotect() {
    let start = ARENA * 1000;
    let (space, _) = address_space(&standing(
        vec![
            // One that is open as far as it is used, and right above one that is open altogether.
            mapping(start..start + P * 33, RW, "", NR),
            mapping(start + P * 33..start + ARENA, NONE, "", NR),
            mapping(start + ARENA..start + ARENA * 2, RW, "", NR),
            // Aligned, but far too large.
            mapping(start + ARENA * 4..start + ARENA * 4 + P, RW, "", NR),
            mapping(start + ARENA * 4 + P..start + ARENA * 9, NONE, "", NR),
        ],
        &[],
    ));
    for begin in [start, start + ARENA] {
        let origin = origin_at(&space, begin);
        assert_eq!(origin.length, ARENA);
        assert!(origin.is_reservation() && origin.has_flag(libc::MAP_NORESERVE));
        let (_, piece) = space.piece_at(begin).unwrap();
        assert!(piece.committed_by_mprotect());
    }
    assert_eq!(origin_at(&space, start + ARENA * 4).length, ARENA * 5);
}

#[test]
fn what_is_accounted_in_an_unaccounted_reservation_was_laid_on_it() {
    // HotSpot's heap: below 32 GiB, where nobody puts anything by chance.
    let heap = 0x7_0000_0000;
    let (space, _) = address_space(&standing(
        vec![
            mapping(heap..heap + MIB * 20, RW, "", AC),
            mapping(heap + MIB * 20..heap + MIB * 400, NONE, "", NR),
            mapping(heap + MIB * 400..heap + MIB * 401, RW, "", AC),
            // Where the kernel chooses, what is open above the last closed part came from somebody else.
            mapping(ARENA * 5000..ARENA * 5000 + MIB, NONE, "", NR),
            mapping(ARENA * 5000 + MIB..ARENA * 5000 + MIB * 2, RW, "", AC),
        ],
        &[],
    ));
    for inside in [heap, heap + MIB * 400] {
        let (_, piece) = space.piece_at(inside).unwrap();
        let ground = space.origin(piece.reserved_by.expect("laid on something"));
        assert_eq!((ground.start, ground.length), (heap, MIB * 401));
        assert!(ground.is_reservation());
        assert!(matches!(ground.kind, OriginKind::Mmap { hint, .. } if hint == heap));
    }
    let (_, piece) = space.piece_at(ARENA * 5000 + MIB).unwrap();
    assert_eq!(piece.reserved_by, None);
}

#[test]
fn bss_ends_where_the_file_says() {
    let mut process = standing(
        vec![
            mapping(P * 10..P * 12, RX, "/lib/x.so", NO),
            mapping(P * 12..P * 13, RW, "/lib/x.so", AC),
            // A block of memory came right behind, and the kernel made one mapping of both.
            mapping(P * 13..P * 40, RW, "", AC),
        ],
        &[],
    );
    process.images.push(P * 10..P * 15);
    let (space, _) = address_space(&process);
    let (bss, piece) = space.piece_at(P * 13).unwrap();
    assert_eq!(bss, P * 13..P * 15);
    assert!(space.origin(piece.reserved_by.unwrap()).is_file());
    let rest = origin_at(&space, P * 15);
    assert_eq!(rest.range(), P * 15..P * 40);
    assert!(!rest.is_reservation());
}

#[test]
fn the_kernels_own_comparison_agrees_with_it() {
    let process = standing(
        vec![
            mapping(P * 10..P * 12, RX, "/bin/x", NO),
            mapping(P * 12..P * 13, RW, "/bin/x", AC),
            mapping(P * 20..P * 22, RW, "[heap]", AC),
            mapping(P * 30..P * 31, NONE, "", NO),
            mapping(P * 31..P * 40, RW, "", AC | NH),
            mapping(P * 50..P * 90, RW, "[anon:Go: heap]", VmFlags::DONTFORK),
            mapping(P * 600..P * 610, RW, "[stack]", VmFlags::GROWSDOWN),
            mapping(P * 700..P * 701, RX, "[vdso]", NO),
            mapping(P * 900..P * 901, RX, "[vsyscall]", NO),
        ],
        &[],
    );
    let (mut space, _) = address_space(&process);
    assert_eq!(space.program_break(), Some(P * 22));
    let vmas: Vec<Vma> = process.mappings.iter().map(|it| it.vma.clone()).collect();
    let comparison = crate::regions::compare(&mut space, &vmas);
    assert_eq!(comparison.disagreement_bytes(), 0, "{comparison:?}");
    assert_eq!(comparison.adopted_bytes, 0, "{comparison:?}");
    let (_, piece) = space.piece_at(P * 50).unwrap();
    assert!(piece.advice.contains(Advice::DONTFORK));
    assert_eq!(piece.name.map(|id| space.name(id)), Some("Go: heap"));
}
