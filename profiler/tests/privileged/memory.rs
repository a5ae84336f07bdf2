//! What programs do to their address space, to the page.

use profiler::classify::Leaf;

use crate::profiled::profile;

#[test]
fn the_program_break() {
    let (some, none) = (profile("brk", &["100"]), profile("brk", &["0"]));
    assert_eq!(some.leaf(Leaf::Malloc) - none.leaf(Leaf::Malloc), 100);
    for row in some
        .peak()
        .regions
        .iter()
        .filter(|row| row.leaf == Leaf::Malloc)
    {
        assert_eq!(row.rule, "malloc.brk");
    }
}

#[test]
fn a_large_block_of_malloc() {
    let run = profile("malloc_large", &[]);
    assert_eq!(run.pages("block"), [("malloc.large", 101)]);
    assert_eq!(run.leaf(Leaf::MallocLarge), 101);
}

#[test]
fn zero_pages_and_pages_given_back_do_not_count() {
    let run = profile("anonymous", &[]);
    assert_eq!(run.pages("written"), [("libc.small", 5)]);
    assert_eq!(run.pages("zero"), [("libc.small", 2)]);
    assert_eq!(run.pages("dontneed"), [("malloc.large", 16)]);
    assert_eq!(run.pages("locked"), [("malloc.large", 64)]);
    assert_eq!(run.pages("hidden"), [("libc.small", 4)]);
}

#[test]
fn a_file_and_private_copies_of_its_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("300 pages");
    let run = profile("file_read", &[path.to_str().expect("UTF-8")]);
    assert_eq!(run.pages("file"), [("file", 300)]);
    let row = run
        .peak()
        .regions
        .iter()
        .find(|row| row.rule == "file" && row.length_bytes == 300 * 4096);
    assert_eq!(row.and_then(|row| row.backing.as_deref()), path.to_str());
}

#[test]
fn memory_committed_in_reservations() {
    let run = profile("mappings", &[]);
    // No rule of a native program claims these: who chooses addresses is no malloc that we know.
    assert_eq!(run.pages("laid"), [("unknown", 5)]);
    assert_eq!(run.pages("opened"), [("unknown", 6)]);
    assert_eq!(run.pages("between"), [("unknown", 3)]);
    assert_eq!(run.leaf(Leaf::Unknown), 14);
}

#[test]
fn mappings_that_were_moved_or_cut() {
    let run = profile("mappings", &[]);
    assert_eq!(run.pages("moved"), [("malloc.large", 17)]);
    assert_eq!(run.pages("below"), [("malloc.large", 32)]);
    assert_eq!(run.pages("above"), [("malloc.large", 32)]);
    assert_eq!(run.smaps["moved"], 17 * 4096);
}

#[test]
fn shared_memory() {
    let run = profile("mappings", &[]);
    assert_eq!(run.pages("memfd"), [("shared", 20)]);
    assert_eq!(run.leaf(Leaf::SharedMemory), 20);
}
