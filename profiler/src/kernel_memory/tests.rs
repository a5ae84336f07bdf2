use super::*;
use crate::{probes::object_sizes::Cache, residency::ProcessSnapshot};

const LAUNCHED: u32 = 7;

fn sizes() -> ObjectSizes {
    let cache = Cache {
        object_bytes: 5888,
        objects_per_slab: 5,
        slab_bytes: 32_768,
    };
    ObjectSizes {
        caches: [("task_struct".to_owned(), cache)].into(),
        structs: [].into(),
        top_tables_bytes: 4096,
    }
}

fn snapshot(tgid: u32, threads: u64, pss_shmem_bytes: Option<u64>) -> Snapshot {
    Snapshot {
        taken_ns: 3_000_000_000,
        processes: vec![ProcessSnapshot {
            tgid,
            page_tables_bytes: 40_960,
            threads,
            pss_shmem_bytes,
            ..ProcessSnapshot::default()
        }],
        ..Snapshot::default()
    }
}

fn group(kernel_bytes: u64) -> GroupMemory {
    GroupMemory {
        source: "a group".into(),
        kernel_bytes,
        has_page_tables: true,
        shmem_bytes: Some(10_000),
        ..GroupMemory::default()
    }
}

/// What nine threads are charged with, by hand, and the page tables of a process.
const NINE: u64 = 9 * (16_384 + 5888 + 8);
const TABLES: u64 = 40_960 + 4096;

#[test]
fn what_the_group_has_more_is_other() {
    let snapshot = snapshot(LAUNCHED, 10, Some(4000));
    let reading = Reading::of(&snapshot, group(NINE + TABLES + 500), LAUNCHED);
    let kernel = Kernel::of(
        &Objects::of(&snapshot),
        &sizes(),
        Some(&reading),
        1_000_000_000,
    );
    let check = kernel.check.as_ref().expect("a group");
    // The launched thread was forked elsewhere.
    assert_eq!(
        (check.bottom_up_bytes, check.residue_bytes),
        (NINE + TABLES, 500)
    );
    assert_eq!(check.at_seconds, 2.0);
    assert_eq!(kernel.stacks_bytes, Some(10 * 16_384));
    assert_eq!(kernel.page_tables_bytes, Some(TABLES));
    assert_eq!(
        kernel.slab_bytes,
        Some(kernel.slab.iter().map(|kind| kind.bytes).sum())
    );
    assert_eq!(kernel.other_bytes, Some(500));
    assert_eq!(kernel.unmapped_shmem_bytes, Some(6000));
    assert_eq!(
        kernel.total(),
        kernel
            .parts()
            .iter()
            .filter_map(|(_, bytes)| *bytes)
            .sum::<u64>()
    );
}

#[test]
fn a_group_that_has_less_leaves_no_other_and_says_so() {
    let snapshot = snapshot(LAUNCHED, 10, None);
    let reading = Reading::of(&snapshot, group(NINE + TABLES - 500), LAUNCHED);
    let kernel = Kernel::of(&Objects::of(&snapshot), &sizes(), Some(&reading), 0);
    assert_eq!(kernel.other_bytes, Some(0));
    assert_eq!(kernel.check.expect("a group").residue_bytes, -500);
    // Which part of shared memory is mapped was not told.
    assert_eq!(kernel.unmapped_shmem_bytes, None);
}

#[test]
fn a_group_without_page_tables_is_compared_without_them() {
    let snapshot = snapshot(LAUNCHED + 1, 9, None);
    let group = GroupMemory {
        has_page_tables: false,
        ..group(NINE)
    };
    let reading = Reading::of(&snapshot, group, LAUNCHED);
    let kernel = Kernel::of(&Objects::of(&snapshot), &sizes(), Some(&reading), 0);
    let check = kernel.check.expect("a group");
    assert_eq!((check.bottom_up_bytes, check.residue_bytes), (NINE, 0));
}

#[test]
fn without_sizes_and_group_it_is_an_estimate_and_says_so() {
    let objects = Objects::of(&snapshot(LAUNCHED, 10, None));
    let kernel = Kernel::of(&objects, &ObjectSizes::default(), None, 0);
    assert_eq!((kernel.slab_bytes, kernel.other_bytes), (None, None));
    assert_eq!(kernel.total(), 10 * 16_384 + 40_960);
    assert!(
        kernel.source.contains("slab not measured"),
        "{}",
        kernel.source
    );
    assert!(kernel.source.contains("not checked"), "{}", kernel.source);
}
