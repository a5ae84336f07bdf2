//! Stacks and what else threads have, to the page.

use profiler::classify::Leaf;

use crate::{
    fixtures::build,
    profiled::{Profiled, Profiling, profile},
};

/// Profiles `stack_pages` at addresses that are the same each time: by how many pages the first
/// frames reach into the stack depends on where in a page it begins. For the same reason the two
/// counts that are compared have as many digits.
fn stack_pages(stack: &str, pages: &str) -> Profiled {
    let program = build("stack_pages");
    let program = program.to_str().expect("UTF-8");
    let profiling = Profiling::start(1, &["setarch", "-R", program, stack, pages]);
    let pid = profiling.told["pid"].0 as u32;
    profiling.finish(&[pid])
}

#[test]
fn pages_of_the_main_stack() {
    let (some, none) = (stack_pages("main", "100"), stack_pages("main", "000"));
    assert_eq!(some.rule("stack.main") - none.rule("stack.main"), 100);
    assert_eq!(some.leaf(Leaf::NativeStack), some.rule("stack.main"));
    assert_eq!(
        some.peak().classes.stacks - none.peak().classes.stacks,
        100 * 4096
    );
    assert_eq!(some.peak().classes.heap, none.peak().classes.heap);
}

#[test]
fn pages_of_the_stack_of_a_thread() {
    let (some, none) = (stack_pages("thread", "100"), stack_pages("thread", "000"));
    assert_eq!(some.rule("stack.thread") - none.rule("stack.thread"), 100);
    assert_eq!(some.rule("stack.main"), none.rule("stack.main"));
    assert_eq!(some.peak().threads, 2);
}

#[test]
fn every_thread_has_a_stack() {
    let run = profile("thread_stacks", &["7", "0"]);
    let stacks: Vec<u64> = run.regions(Leaf::NativeStack);
    assert_eq!(stacks.len(), 8);
    assert_eq!(run.peak().threads, 8);
    assert_eq!(run.run.processes[0].threads_peak, 8);
    // 5 pages each where the fixture wrote, and at the top the frames and the thread's own data.
    let of_threads = run.rule("stack.thread");
    assert!(
        (7 * 7..=7 * 9).contains(&of_threads),
        "{of_threads} pages in {stacks:?}"
    );
    assert_eq!(run.leaf(Leaf::CachedStack), 0);
}

#[test]
fn stacks_of_threads_that_ended_wait_for_the_next() {
    let (kept, ended) = (
        profile("thread_stacks", &["7", "0"]),
        profile("thread_stacks", &["7", "4"]),
    );
    assert_eq!(ended.peak().threads, 4);
    assert_eq!(ended.run.processes[0].threads_peak, 8);
    assert_eq!(ended.regions(Leaf::NativeStack).len(), 4);
    // A live stack costs the same as it did; glibc gives back most of a cached one, and keeps what
    // is near its top.
    assert_eq!(
        ended.rule("stack.thread") * 7,
        kept.rule("stack.thread") * 3
    );
    let cached = ended.leaf(Leaf::CachedStack);
    assert!((4..=4 * 9).contains(&cached), "{cached} pages");
    assert_eq!(ended.rule("stack.cached"), cached);
}

#[test]
fn an_alternate_signal_stack() {
    let run = profile("alt_stack", &[]);
    assert_eq!(run.pages("alternate"), [("stack.alternate", 9)]);
    assert_eq!(run.leaf(Leaf::AlternateStack), 9);
}

#[test]
fn arenas_of_threads() {
    let run = profile("arenas", &[]);
    for arena in ["one", "two"] {
        let pages: Vec<_> = run.pages(arena);
        assert_eq!(pages, [("malloc.arena", run.smaps[arena] / 4096)]);
        // 60 blocks of 16 pages, each with a header of 16 bytes, and the arena's own page.
        assert!((960..=964).contains(&pages[0].1), "{pages:?}");
    }
}
