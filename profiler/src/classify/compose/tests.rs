//! Literal snapshots and what they are made of. Places are in pages.

#![expect(
    clippy::single_range_in_vec_init,
    reason = "a single resident range is meant as one range"
)]

use super::*;
use crate::{
    classify::division::DivisionBuilder,
    events::{Call, Event},
    regions::script::*,
    residency::{ResidentRange, Vma},
    units::MIB,
};

const CHILD: u32 = 200;
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
const VFORK: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;

fn pages(place: Range<u64>) -> Range<u64> {
    place.start * P..place.end * P
}

fn exec() -> Call {
    Call::Exec {
        path: "/usr/bin/program".into(),
    }
}

/// A thread on a stack; as glibc does it, the top is not that of the mapping.
fn thread(child_tid: u32, stack: Range<u64>) -> Call {
    Call::Fork {
        child_tid,
        flags: THREAD,
        stack: stack.start,
        stack_top: stack.end,
    }
}

fn process(child_tid: u32, flags: u64) -> Call {
    Call::Fork {
        child_tid,
        flags,
        stack: 0,
        stack_top: 0,
    }
}

/// The tree after these calls of its first thread.
fn tree(calls: impl IntoIterator<Item = Call>) -> ProcessTree {
    let mut tree = ProcessTree::new(TGID);
    let all = std::iter::once(exec()).chain(calls);
    in_order(all).iter().for_each(|event| tree.apply(event));
    tree
}

/// A process with anonymous VMAs where the region map has pieces and `vmas` has none; these pages are
/// resident.
fn found(tree: &ProcessTree, tgid: u32, vmas: &[Vma], resident: &[Range<u64>]) -> ProcessSnapshot {
    let mut all = vmas.to_vec();
    for (range, piece) in tree.space(tgid).expect("alive").pieces() {
        if !vmas
            .iter()
            .any(|vma| vma.start < range.end && range.start < vma.end)
        {
            all.push(vma(range, piece.protection.into(), ""));
        }
    }
    all.sort_by_key(|vma| vma.start);
    let bytes = resident
        .iter()
        .map(|range| (range.end - range.start) * P)
        .sum();
    let resident = resident.iter().map(|range| ResidentRange {
        start: range.start * P,
        end: range.end * P,
        file: false,
    });
    ProcessSnapshot {
        tgid,
        vmas: all,
        resident: resident.collect(),
        rss_bytes: bytes,
        pss_bytes: bytes / 2,
        vm_hwm_bytes: bytes,
        page_tables_bytes: 40_960,
        threads: 1,
        ..ProcessSnapshot::default()
    }
}

fn composed(tree: &ProcessTree, processes: Vec<ProcessSnapshot>) -> Composition {
    composed_of(tree, processes, &HashMap::new())
}

/// Composes, and checks what always holds.
fn composed_of(
    tree: &ProcessTree,
    processes: Vec<ProcessSnapshot>,
    images: &HashMap<u32, Image>,
) -> Composition {
    let snapshot = Snapshot {
        taken_ns: 5,
        processes,
        ..Snapshot::default()
    };
    let composition = compose(&snapshot, tree, images, &HashMap::new());
    let sum: u64 = composition
        .regions
        .iter()
        .map(|region| region.resident_bytes)
        .sum();
    assert_eq!(composition.rss_bytes, sum);
    assert_eq!(composition.classes.total(), sum);
    assert_eq!(composition.leaves.values().sum::<u64>(), sum);
    let by_process = composition.processes.iter().map(|(_, rss, _)| rss);
    assert_eq!(by_process.sum::<u64>(), sum);
    composition
}

/// One line a region: `tgid pages rule resident pages`.
fn lines(composition: &Composition) -> Vec<String> {
    let line = |region: &ClassifiedRegion| {
        format!(
            "{} {}-{} {} {}",
            region.tgid,
            region.range.start / P,
            region.range.end / P,
            region.rule.id,
            region.resident_bytes / P
        )
    };
    composition.regions.iter().map(line).collect()
}

#[test]
fn every_resident_page_is_in_one_region() {
    let tree = tree([
        mmap(pages(1000..1100), RW, ANON),
        mmap(pages(1100..1110), RW, ANON),
        mmap(pages(1200..1300), RW, ANON),
        mprotect(pages(1240..1250), R),
    ]);
    let file = vma(pages(100..120), R, "/some/file");
    let stack = vma(pages(9000..9033), RW, "[stack]");
    // The second run goes on from one mapping into the next, the third over three pieces of one.
    let resident = [100..104, 1090..1105, 1235..1255, 9030..9033];
    let snapshot = found(&tree, TGID, &[file, stack], &resident);
    let composition = composed(&tree, vec![snapshot]);
    assert_eq!(
        lines(&composition),
        [
            "100 100-120 file 4",
            "100 1000-1100 malloc.large 10",
            "100 1100-1110 libc.small 5",
            "100 1200-1240 malloc.large 5",
            "100 1240-1250 malloc.large 10",
            "100 1250-1300 malloc.large 5",
            "100 9000-9033 stack.main 3",
        ]
    );
    assert_eq!(
        composition.classes,
        Classes {
            stacks: 3 * P,
            heap: 30 * P,
            runtime: 9 * P,
            unclassified: 0
        }
    );
    assert_eq!((composition.taken_ns, composition.rss_bytes), (5, 42 * P));
    assert_eq!(
        (composition.pss_bytes, composition.objects.page_tables_bytes),
        (21 * P, 40_960)
    );
    assert_eq!(composition.reserved_bytes, (20 + 100 + 10 + 100 + 33) * P);
    assert_eq!(
        composition.regions[0].backing.as_deref(),
        Some("/some/file")
    );
    assert_eq!(composition.regions[1].backing, None);
}

#[test]
fn memory_that_no_event_told_of_is_unknown() {
    let tree = tree([mmap(pages(1010..1060), RW, ANON)]);
    // The kernel has merged what we know with what we do not.
    let merged = vma(pages(1000..1100), RW, "");
    let snapshot = found(&tree, TGID, &[merged], &[1000..1100]);
    let composition = composed(&tree, vec![snapshot]);
    assert_eq!(
        lines(&composition),
        [
            "100 1000-1010 unknown 10",
            "100 1010-1060 malloc.large 50",
            "100 1060-1100 unknown 40",
        ]
    );
    assert_eq!(composition.unclassified_share(), 0.5);
}

#[test]
fn bytes_that_the_scan_did_not_see_are_unknown() {
    let tree = tree([mmap(pages(1000..1100), RW, ANON)]);
    let snapshot = ProcessSnapshot {
        rss_bytes: 13 * P,
        unexplained_bytes: 3 * P as i64,
        ..found(&tree, TGID, &[], &[1000..1010])
    };
    let composition = composed(&tree, vec![snapshot]);
    assert_eq!(
        lines(&composition),
        ["100 1000-1100 malloc.large 10", "100 0-0 unknown 3"]
    );
    assert_eq!(composition.rss_bytes, 13 * P);
}

#[test]
fn what_the_scan_saw_and_the_kernel_does_not_count_is_part_of_rss() {
    let tree = tree([mmap(pages(1000..1100), RW, ANON)]);
    let snapshot = ProcessSnapshot {
        rss_bytes: 8 * P,
        unexplained_bytes: -2 * P as i64,
        ..found(&tree, TGID, &[], &[1000..1010])
    };
    assert_eq!(composed(&tree, vec![snapshot]).rss_bytes, 10 * P);
}

#[test]
fn a_process_of_which_nothing_is_known_is_unknown_but_for_files() {
    let known = tree([]);
    let snapshot = ProcessSnapshot {
        tgid: 999,
        ..found(
            &known,
            TGID,
            &[
                vma(pages(10..20), R, "/lib/x.so"),
                vma(pages(30..40), RW, ""),
            ],
            &[10..12, 30..33],
        )
    };
    assert_eq!(
        lines(&composed(&known, vec![snapshot])),
        ["999 10-20 image 2", "999 30-40 unknown 3"]
    );
}

/// ```text
/// guard | stack .......... | TLS, control block |      one mapping
/// ```
#[test]
fn the_stack_of_a_thread_is_its_whole_mapping() {
    let tree = tree([
        mmap(pages(1000..1065), NONE, ANON | STACK),
        mprotect(pages(1001..1065), RW),
        thread(101, 1000 * P..1065 * P - 2304),
        mmap(pages(1065..1100), RW, ANON),
    ]);
    let snapshot = found(&tree, TGID, &[], &[1060..1070]);
    let composition = composed(&tree, vec![snapshot]);
    assert_eq!(
        lines(&composition),
        [
            "100 1001-1065 stack.thread 5",
            "100 1065-1100 malloc.large 5"
        ]
    );
}

#[test]
fn a_stack_in_much_larger_memory_is_only_itself() {
    let large = 16 * MIB / P;
    let tree = tree([
        mmap(pages(1000..1000 + large), RW, ANON),
        thread(101, pages(1100..1116)),
    ]);
    let snapshot = found(&tree, TGID, &[], &[1090..1120]);
    assert_eq!(
        lines(&composed(&tree, vec![snapshot])),
        [
            "100 1000-1100 malloc.large 10".to_owned(),
            "100 1100-1116 stack.thread 16".to_owned(),
            format!("100 1116-{} malloc.large 4", 1000 + large),
        ]
    );
}

/// Two threads have ended; a third runs on the stack of the first.
#[test]
fn stacks_of_threads_that_ended_are_cached() {
    let place = |index: u64| pages(1000 + 100 * index..1065 + 100 * index);
    let stack = |index| place(index).start..place(index).end - 2304;
    let mut tree = tree([
        mmap(place(0), RW, ANON | STACK),
        thread(101, stack(0)),
        mmap(place(1), RW, ANON | STACK),
        thread(102, stack(1)),
    ]);
    let exits = [101, 102].map(|tid| by(TGID, tid, at(100, Call::Exit)));
    let again = at(200, thread(103, stack(0)));
    exits
        .iter()
        .chain([&again])
        .for_each(|event: &Event| tree.apply(event));
    let snapshot = found(&tree, TGID, &[], &[1060..1065, 1160..1165]);
    let composition = composed(&tree, vec![snapshot]);
    assert_eq!(
        lines(&composition),
        [
            "100 1000-1065 stack.thread 5",
            "100 1100-1165 stack.cached 5"
        ]
    );
    assert_eq!(composition.leaves[&Leaf::CachedStack], 5 * P);
    assert_eq!(composition.classes.stacks, 10 * P);
}

/// What was a stack can have been unmapped in part, and hold something else by now.
#[test]
fn other_memory_in_the_place_of_a_stack_is_no_stack() {
    let mut tree = tree([
        mmap(pages(1000..1064), RW, ANON | STACK),
        thread(101, pages(1000..1064)),
    ]);
    let later = [
        by(TGID, 101, at(100, Call::Exit)),
        at(200, munmap(pages(1000..1050))),
        at(300, mmap(pages(1000..1050), RW, ANON)),
    ];
    later.iter().for_each(|event| tree.apply(event));
    let snapshot = found(&tree, TGID, &[], &[1040..1064]);
    assert_eq!(
        lines(&composed(&tree, vec![snapshot])),
        [
            "100 1000-1050 malloc.large 10",
            "100 1050-1064 stack.cached 14"
        ]
    );
}

#[test]
fn an_alternate_stack_is_told_apart_even_inside_the_stack() {
    let alternate = Call::Sigaltstack {
        address: 1010 * P,
        length: 4 * P,
    };
    let mut tree = tree([
        mmap(pages(1000..1064), RW, ANON | STACK),
        thread(101, pages(1000..1064)),
    ]);
    tree.apply(&by(TGID, 101, at(100, alternate)));
    let snapshot = found(&tree, TGID, &[], &[1000..1064]);
    assert_eq!(
        lines(&composed(&tree, vec![snapshot])),
        [
            "100 1000-1010 stack.thread 10",
            "100 1010-1014 stack.alternate 4",
            "100 1014-1064 stack.thread 50",
        ]
    );
}

#[test]
fn a_stack_from_malloc_does_not_make_the_heap_one() {
    let alternate = Call::Sigaltstack {
        address: 1010 * P,
        length: 8 * P,
    };
    let tree = tree([
        brk(1000 * P),
        brk(1033 * P),
        thread(101, pages(1020..1024)),
        alternate,
    ]);
    let snapshot = found(&tree, TGID, &[], &[1000..1033]);
    assert_eq!(
        lines(&composed(&tree, vec![snapshot])),
        [
            "100 1000-1010 malloc.brk 10",
            "100 1010-1018 stack.alternate 8",
            "100 1018-1020 malloc.brk 2",
            "100 1020-1024 stack.thread 4",
            "100 1024-1033 malloc.brk 9",
        ]
    );
}

/// OTP takes alternate stacks from malloc, where nothing begins at a page.
#[test]
fn a_page_that_a_stack_shares_counts_once_also_where_the_heap_is_divided() {
    let alternate = Call::Sigaltstack {
        address: 1010 * P + 0x6a0,
        length: 8 * P,
    };
    let tree = tree([
        brk(1000 * P),
        brk(1033 * P),
        thread(101, 1020 * P + 16..1023 * P + 64),
        alternate,
    ]);
    let snapshot = Snapshot {
        processes: vec![found(&tree, TGID, &[], &[1000..1033])],
        ..Snapshot::default()
    };
    let mut division = DivisionBuilder::default();
    division.add(1000 * P..1020 * P, Leaf::HeapFree);
    division.add(1024 * P..1033 * P, Leaf::HeapFree);
    let division = Arc::new(division.build().expect("no overlap"));
    let composition = compose(
        &snapshot,
        &tree,
        &HashMap::new(),
        &HashMap::from([(TGID, division)]),
    );
    assert_eq!(
        lines(&composition),
        [
            "100 1000-1011 malloc.brk 11",
            "100 1011-1018 stack.alternate 7",
            "100 1018-1020 malloc.brk 2",
            "100 1020-1024 stack.thread 4",
            "100 1024-1033 malloc.brk 9",
        ]
    );
    assert_eq!(composition.leaves.values().sum::<u64>(), 33 * P);
    assert_eq!(composition.leaves[&Leaf::HeapFree], 22 * P);
}

/// A pure Go program runs its threads on memory of its heap, and tells `clone` the top alone.
#[test]
fn threads_on_the_heap_of_go_are_part_of_it() {
    let arena = 0xc0_0000_0000_u64;
    let hinted = |length: u64, protection, flags| Call::Mmap {
        hint: arena,
        length,
        protection,
        flags,
        fd: -1,
        offset: 0,
        address: arena,
    };
    let clone = Call::Fork {
        child_tid: 101,
        flags: THREAD,
        stack: 0,
        stack_top: arena + MIB,
    };
    let tree = tree([
        hinted(64 * MIB, NONE, ANON),
        hinted(4 * MIB, RW, ANON | FIXED),
        clone,
    ]);
    let first = arena / P;
    let snapshot = || vec![found(&tree, TGID, &[], &[first..first + 300])];
    let go = Image {
        path: "server".into(),
        go: true,
    };
    let composition = composed_of(&tree, snapshot(), &HashMap::from([(TGID, go)]));
    assert_eq!(composition.processes, [(TGID, 300 * P, Runtime::Go)]);
    assert_eq!(
        composition.leaves,
        BTreeMap::from([(Leaf::ManagedHeap, 300 * P)])
    );
}

#[test]
fn a_vfork_child_is_explained_by_the_memory_that_it_lives_in() {
    let tree = tree([mmap(pages(1000..1100), RW, ANON), process(CHILD, VFORK)]);
    assert!(tree.share_memory(TGID, CHILD));
    // The scan takes one of the two; whichever it is, the memory counts once.
    for tgid in [TGID, CHILD] {
        let snapshot = found(&tree, tgid, &[], &[1000..1010]);
        let composition = composed(&tree, vec![snapshot]);
        assert_eq!(
            lines(&composition),
            [format!("{tgid} 1000-1100 malloc.large 10")]
        );
    }
}

#[test]
fn memory_of_a_tree_is_summed_over_its_processes() {
    let tree = tree([mmap(pages(1000..1100), RW, ANON), process(CHILD, 0)]);
    let both = [TGID, CHILD].map(|tgid| found(&tree, tgid, &[], &[1000..1010]));
    let composition = composed(&tree, both.to_vec());
    assert_eq!(
        lines(&composition),
        [
            "100 1000-1100 malloc.large 10",
            "200 1000-1100 malloc.large 10"
        ]
    );
    assert_eq!(
        (composition.rss_bytes, composition.pss_bytes),
        (20 * P, 10 * P)
    );
    assert_eq!(composition.objects.threads, 2);
}

#[test]
fn of_very_many_regions_the_largest_stay_and_the_rest_is_summed_up() {
    let region = |index: u64| ClassifiedRegion {
        tgid: TGID,
        range: index * 100 * P..index * 100 * P + 50 * P,
        resident_bytes: if index % 50 == 7 { 40 * P } else { 2 * P },
        rule: &super::super::rules::RULES[0],
        leaves: BTreeMap::from([
            (Leaf::NativeStack, if index % 50 == 7 { 39 * P } else { P }),
            (Leaf::HeapFree, P),
        ]),
        backing: None,
        made_by: MadeBy::Mmap((index % 3) as u32),
        growths: Vec::new(),
        before_attach: false,
    };
    let mut composition = Composition::default();
    (0..2000).for_each(|index| composition.add(region(index)));
    composition.keep_largest();
    let large: Vec<u64> = composition
        .regions
        .iter()
        .filter(|region| region.resident_bytes == 40 * P)
        .map(|region| region.range.start)
        .collect();
    let expected: Vec<u64> = (0..40).map(|index| (index * 50 + 7) * 100 * P).collect();
    assert_eq!(large, expected);
    let alike: Vec<_> = composition.alike.iter().collect();
    let [alike] = alike[..] else {
        panic!("{alike:?}");
    };
    let singly = composition.regions.len() as u64;
    assert!((100..=200).contains(&singly), "{singly}");
    assert_eq!(alike.count, 2000 - singly);
    assert_eq!(alike.length_bytes, alike.count * 50 * P);
    assert_eq!(alike.leaves[&Leaf::NativeStack], alike.count * P);
    assert_eq!(alike.made.len(), 3);
    let made = alike.made.values().flat_map(|leaves| leaves.values());
    assert_eq!(made.sum::<u64>(), alike.resident_bytes);
    assert_eq!(composition.classes.total(), 2000 * 2 * P + 40 * 38 * P);
}
