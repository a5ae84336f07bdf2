//! Kernel memory, bottom up, against the kernel's own figure for the group of the target, and against what
//! a fixture is known to have.

use profiler::{
    results::{GroupCheck, Kernel, Peak, SlabKind},
    units::PAGE,
};

use crate::profiled::profile;

/// Threads of the fixture: the group's figure is then so large that what is left open by the batches in
/// which CPUs report is less than the bound.
const THREADS: u64 = 3000;
/// How far bottom up and group may be apart, in percent: the figure for 10,000 threads.
const LIMIT_PERCENT: f64 = 1.0;
/// Pages that one CPU may hold back from `memory.stat` (`MEMCG_CHARGE_BATCH`, include/linux/memcontrol.h).
const BATCH: u64 = 64;

fn peak_of(name: &str, arguments: &[&str]) -> Peak {
    profile(name, arguments).peak().clone()
}

fn kind<'a>(kernel: &'a Kernel, name: &str) -> &'a SlabKind {
    let found = kernel.slab.iter().find(|kind| kind.kind == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", kernel.slab))
}

/// What the batches of version 2 leave open; version 1 counts each page.
fn open_bytes(check: &GroupCheck) -> u64 {
    let cpus = std::thread::available_parallelism().expect("CPUs").get() as u64;
    match check.group.slab_bytes {
        Some(_) => cpus * BATCH * PAGE,
        None => 0,
    }
}

#[test]
fn threads_take_what_the_group_is_charged() {
    let few = peak_of("threads", &["1000"]);
    let many = peak_of("threads", &[&THREADS.to_string()]);
    let added = THREADS - 1000;
    assert_eq!(many.threads - few.threads, added);
    // What holds without a group: each thread has its objects once, and its stack is two mappings.
    for (name, each) in [("task_struct", 1), ("pid", 1), ("vm_area_struct", 2)] {
        let objects = kind(&many.kernel, name).objects - kind(&few.kernel, name).objects;
        assert!(
            objects.abs_diff(each * added) <= 4,
            "{objects} {name} for {added} threads"
        );
    }
    let part = |of: fn(&Kernel) -> Option<u64>| {
        of(&many.kernel).expect("measured") - of(&few.kernel).expect("measured")
    };
    assert_eq!(part(|kernel| kernel.stacks_bytes), added * 16_384);
    let each = (part(|kernel| kernel.stacks_bytes) + part(|kernel| kernel.slab_bytes)) / added;
    // 16 KiB of stack; the rest depends on the kernel and on how much state the CPU's registers have.
    assert!((19_000..32_000).contains(&each), "{each} bytes a thread");
    match &many.kernel.check {
        None => eprintln!(
            "NO GROUP: compared the objects of {THREADS} threads with those of 1,000 alone: {each} bytes \
             a thread ({})",
            many.kernel.source
        ),
        Some(check) => {
            let percent = check.residue_bytes as f64 / check.group.kernel_bytes as f64 * 100.0;
            eprintln!(
                "{each} bytes a thread; {} bytes bottom up, {} in {}: {percent:.3} %",
                check.bottom_up_bytes, check.group.kernel_bytes, check.group.source
            );
            let limit = check.group.kernel_bytes as f64 * LIMIT_PERCENT / 100.0;
            assert!(
                check.residue_bytes.unsigned_abs() <= limit as u64 + open_bytes(check),
                "{check:?}"
            );
        }
    }
}

#[test]
fn open_files_are_counted_by_their_sort() {
    // Six files each, and 1,024 may be open.
    const EACH: u64 = 150;
    let none = peak_of("open_files", &["0", "0"]).kernel;
    let some = peak_of("open_files", &[&EACH.to_string(), "0"]).kernel;
    let before = |name: &str| {
        let found = none.slab.iter().find(|kind| kind.kind == name);
        found.map_or(0, |kind| kind.objects)
    };
    // A pipe and a pair of sockets are two files each.
    let expected = [
        ("pipe", EACH),
        ("socket", 2 * EACH),
        ("eventfd", EACH),
        ("timerfd", EACH),
        ("epoll_entry", EACH),
        ("file", 6 * EACH),
        ("posix_timer", EACH),
    ];
    for (name, objects) in expected {
        assert_eq!(kind(&some, name).objects - before(name), objects, "{name}");
    }
}

/// Pages that are written to a memfd and mapped nowhere are in nobody's RSS.
#[test]
fn shared_memory_that_nobody_maps_is_kernel_memory() {
    const PAGES: u64 = 5000;
    let kernel = peak_of("open_files", &["0", &PAGES.to_string()]).kernel;
    let Some(check) = &kernel.check else {
        assert_eq!(kernel.unmapped_shmem_bytes, None);
        eprintln!(
            "NO GROUP: shared memory that nobody maps is not told ({})",
            kernel.source
        );
        return;
    };
    let found = kernel.unmapped_shmem_bytes.expect("the group tells");
    let cpus = std::thread::available_parallelism().expect("CPUs").get() as u64;
    // `memory.stat` of either version is put together from what CPUs report in batches, and not anew before
    // as much again has come (`memcg_vmstats_needs_flush`, mm/memcontrol.c).
    let open = 2 * cpus * BATCH * PAGE;
    assert!(
        found.abs_diff(PAGES * PAGE) <= open,
        "{found} of {} bytes: {check:?}",
        PAGES * PAGE
    );
}
