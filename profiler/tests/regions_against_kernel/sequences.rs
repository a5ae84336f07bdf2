//! Random sequences of calls, made by a forked child inside an arena that nothing else uses.
//!
//! ```text
//! parent   generate --fork--> wait for the stop --> read smaps of the child --> map from records == smaps?
//! child                       raw calls, a record of each in shared memory, SIGSTOP
//! ```
//! The child is a fork of a threaded process: it makes system calls and nothing else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use procfs::process::{MemoryMap, VmFlags};
use profiler::events::{Call, Event};
use profiler::regions::{AddressSpace, Advice, compare};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::{PAGE, call, now_ns, smaps, text, vma_inside};

/// Far below where the kernel looks for room by itself, far above every program break.
const ARENA: Range<u64> = 0x2000_0000_0000..0x2000_0000_0000 + ARENA_PAGES * PAGE;
const ARENA_PAGES: u64 = 32;
/// Room above the first program break that is checked.
const HEAP_PAGES: u64 = 32;
/// Calls in one sequence at most, and records that the child can leave.
const CALLS: usize = 40;
const RECORDS: usize = 3 * CALLS + 1;

/// A call to make. Places are pages of the arena.
#[derive(Debug, Clone, Copy)]
enum Step {
    Map {
        place: Place,
        protection: i32,
        flags: i32,
        of_file: bool,
    },
    Unmap(Place),
    Protect(Place, i32),
    Advise(Place, i32),
    /// `mremap` that may find another address if `flags` say so.
    Resize {
        place: Place,
        pages: u64,
        flags: i32,
    },
    /// `mremap` with `MREMAP_FIXED`; with no pages of the old range it duplicates.
    Move {
        place: Place,
        target: Place,
        flags: i32,
    },
    /// Sets the program break this many bytes above the first.
    Brk(u64),
}

#[derive(Debug, Clone, Copy)]
struct Place {
    page: u64,
    pages: u64,
    /// The length stops short of the last page's end.
    ragged: bool,
}

impl Place {
    fn start(self) -> u64 {
        ARENA.start + self.page * PAGE
    }

    fn length(self) -> u64 {
        let short = if self.ragged && self.pages > 0 {
            100
        } else {
            0
        };
        self.pages * PAGE - short
    }
}

fn place() -> impl Strategy<Value = Place> {
    (0..ARENA_PAGES, 1..=10_u64, any::<bool>()).prop_map(|(page, pages, ragged)| Place {
        page,
        pages: pages.min(ARENA_PAGES - page),
        ragged,
    })
}

/// Half of the arena, or most calls would find nothing there.
const FIRST: Step = Step::Map {
    place: Place {
        page: 0,
        pages: ARENA_PAGES / 2,
        ragged: false,
    },
    protection: libc::PROT_READ | libc::PROT_WRITE,
    flags: libc::MAP_PRIVATE | libc::MAP_FIXED,
    of_file: false,
};

fn protection() -> impl Strategy<Value = i32> {
    let (r, w, x) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    prop::sample::select(vec![libc::PROT_NONE, r, r | w, r | x, r | w | x, w])
}

fn step() -> impl Strategy<Value = Step> {
    let shared = prop::sample::select(vec![
        libc::MAP_PRIVATE,
        libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        libc::MAP_SHARED,
    ]);
    let spot = prop::sample::select(vec![
        0,
        libc::MAP_FIXED,
        libc::MAP_FIXED,
        libc::MAP_FIXED_NOREPLACE,
    ]);
    let map = (place(), protection(), shared, spot, any::<bool>());
    let advice = prop::sample::select(vec![
        libc::MADV_DONTFORK,
        libc::MADV_DOFORK,
        libc::MADV_DONTDUMP,
        libc::MADV_DODUMP,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_DONTNEED,
    ]);
    let resize = prop::sample::select(vec![0, libc::MREMAP_MAYMOVE]);
    prop_oneof![
        5 => map.prop_map(|(place, protection, shared, spot, of_file)| Step::Map {
            place, protection, flags: shared | spot, of_file,
        }),
        3 => place().prop_map(Step::Unmap),
        3 => (place(), protection()).prop_map(|(place, protection)| Step::Protect(place, protection)),
        3 => (place(), advice).prop_map(|(place, advice)| Step::Advise(place, advice)),
        3 => (place(), 1..10_u64, resize)
            .prop_map(|(place, pages, flags)| Step::Resize { place, pages, flags }),
        4 => (place(), place(), 0..8).prop_map(|(place, target, form)| {
            let same = place.pages.min(target.pages);
            let (old, new, flags) = match form {
                0 => (same, same, libc::MREMAP_DONTUNMAP),
                // With the same length, several mappings move at once.
                1 => (same, same, 0),
                // Before 6.17 a range of several mappings is refused; a single page never is one.
                2 => (1, 1, libc::MREMAP_DONTUNMAP),
                3..=5 => (0, target.pages, 0),
                _ => (place.pages, target.pages, 0),
            };
            let place = Place { pages: old, ..place };
            Step::Move { place, target: Place { pages: new, ..target }, flags }
        }),
        1 => (0..HEAP_PAGES * PAGE).prop_map(Step::Brk),
    ]
}

/// A call that succeeded: what a tracer would see.
#[derive(Clone, Copy)]
struct Record {
    number: i64,
    args: [u64; 6],
    result: u64,
    began_ns: u64,
    ended_ns: u64,
}

/// What the child leaves in shared memory.
struct Records {
    used: usize,
    records: [Record; RECORDS],
}

impl Records {
    /// Makes the call and records it if it succeeds. The result, or `None`.
    fn call(&mut self, number: i64, args: [u64; 6]) -> Option<u64> {
        let [a, b, c, d, e, f] = args;
        let began_ns = now_ns();
        // SAFETY: the numbers and arguments come from `perform`: they change mappings inside the
        // arena and above the program break, where no object of this program lives.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        let ended_ns = now_ns();
        let result = u64::try_from(result).ok()?;
        if let Some(record) = self.records.get_mut(self.used) {
            *record = Record {
                number,
                args,
                result,
                began_ns,
                ended_ns,
            };
            self.used += 1;
        }
        Some(result)
    }

    /// Gives back what the kernel put outside the arena.
    fn give_back_outside(&mut self, address: Option<u64>, length: u64) {
        if let Some(address) = address.filter(|address| !ARENA.contains(address)) {
            self.call(libc::SYS_munmap, [address, length, 0, 0, 0, 0]);
        }
    }

    fn perform(&mut self, step: Step, first_break: u64, file: i32) {
        match step {
            Step::Map {
                place,
                protection,
                flags,
                of_file,
            } => {
                let (fd, anonymous) = if of_file {
                    (file, 0)
                } else {
                    (-1, libc::MAP_ANONYMOUS)
                };
                let (at, length) = (place.start(), place.length());
                let flags = (flags | anonymous) as u64;
                let args = [at, length, protection as u64, flags, fd as u64, PAGE];
                let address = self.call(libc::SYS_mmap, args);
                self.give_back_outside(address, length);
            }
            Step::Unmap(place) => {
                let args = [place.start(), place.length(), 0, 0, 0, 0];
                self.call(libc::SYS_munmap, args);
            }
            // These two do half of their work and then fail when they meet a hole.
            Step::Protect(place, protection) if is_mapped(place) => {
                let args = [place.start(), place.length(), protection as u64, 0, 0, 0];
                self.call(libc::SYS_mprotect, args);
            }
            Step::Advise(place, advice) if is_mapped(place) => {
                let args = [place.start(), place.length(), advice as u64, 0, 0, 0];
                self.call(libc::SYS_madvise, args);
            }
            Step::Protect(..) | Step::Advise(..) => {}
            Step::Resize {
                place,
                pages,
                flags,
            } => {
                let length = pages.min(ARENA_PAGES - place.page) * PAGE;
                let args = [place.start(), place.length(), length, flags as u64, 0, 0];
                let address = self.call(libc::SYS_mremap, args);
                self.give_back_outside(address, length);
            }
            Step::Move {
                place,
                target,
                flags,
            } => {
                let (old, old_length) = (place.start(), place.length());
                let (new, new_length) = (target.start(), target.length());
                let flags = (flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                let args = [old, old_length, new_length, flags, new, 0];
                if self.call(libc::SYS_mremap, args).is_none() {
                    // A failed move can have emptied its target and moved half of its source; no
                    // event tells. Start afresh there.
                    self.call(libc::SYS_munmap, [new, new_length, 0, 0, 0, 0]);
                    self.call(libc::SYS_munmap, [old, old_length, 0, 0, 0, 0]);
                }
            }
            Step::Brk(above) => {
                self.call(libc::SYS_brk, [first_break + above, 0, 0, 0, 0, 0]);
            }
        }
    }
}

/// Every page of the place is mapped.
fn is_mapped(place: Place) -> bool {
    let mut pages = [0_u8; ARENA_PAGES as usize];
    let length = place.pages * PAGE;
    // SAFETY: `mincore` writes one byte a page, and a place has at most ARENA_PAGES pages.
    let result = unsafe {
        let out = pages.as_mut_ptr();
        libc::syscall(libc::SYS_mincore, place.start(), length, out)
    };
    result == 0
}

fn event(record: &Record) -> Event {
    let call = call(record.number, record.args, record.result);
    Event {
        began_ns: record.began_ns,
        ended_ns: record.ended_ns,
        tgid: 1,
        tid: 1,
        call_stack: 0,
        call: call.expect("every step makes calls that are followed"),
    }
}

/// The stopped child of one sequence; killed when dropped.
struct Child {
    pid: i32,
}

impl Child {
    /// Forks, lets the child perform the steps, and returns when it has stopped.
    fn perform(steps: &[Step], file: i32, records: &mut Records) -> Child {
        records.used = 0;
        // SAFETY: the child makes system calls and writes to the shared records, nothing that takes
        // a lock or allocates, and never returns from this block.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let first_break = records.call(libc::SYS_brk, [0; 6]).unwrap_or(0);
                for step in steps {
                    records.perform(*step, first_break, file);
                }
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
            pid
        };
        assert!(pid > 0, "fork failed");
        let mut status = 0;
        // SAFETY: `status` is a valid place to write to; `pid` is our child.
        unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) };
        let child = Child { pid };
        assert!(libc::WIFSTOPPED(status), "the child died: {status:#x}");
        child
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: `pid` is our child and has not been waited for since it stopped.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// Records that a forked child can write for us to read. Never unmapped: there is one a test.
fn shared_records() -> &'static mut Records {
    // SAFETY: a new mapping, large and aligned enough for `Records`, of which zeros are a valid
    // value; nothing else points to it.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            size_of::<Records>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(memory, libc::MAP_FAILED);
        &mut *memory.cast()
    }
}

fn memfd() -> i32 {
    // SAFETY: the name is a C string; a file descriptor is made, no memory is touched.
    let file = unsafe { libc::memfd_create(c"sequences".as_ptr(), 0) };
    assert!(file >= 0);
    // SAFETY: `file` is the descriptor just made.
    let grown = unsafe { libc::ftruncate(file, (2 * ARENA_PAGES * PAGE) as i64) };
    assert_eq!(grown, 0);
    file
}

/// Pages whose advice differs from the kernel's `VmFlags`.
fn advice_disagreements(space: &AddressSpace, maps: &[MemoryMap]) -> Vec<String> {
    let shown = [
        (Advice::DONTFORK, VmFlags::DC),
        (Advice::DONTDUMP, VmFlags::DD),
        (Advice::HUGEPAGE, VmFlags::HG),
        (Advice::NOHUGEPAGE, VmFlags::NH),
    ];
    let mut found = Vec::new();
    for map in maps {
        for (range, piece) in space.overlapping(&(map.address.0..map.address.1)) {
            for (advice, flag) in shown {
                if piece.advice.contains(advice) != map.extension.vm_flags.contains(flag) {
                    found.push(format!("{advice:?} at {range:x?}"));
                }
            }
        }
    }
    found
}

#[test]
fn every_sequence_of_calls_gives_the_kernels_map() {
    let records = RefCell::new(shared_records());
    let file = memfd();
    let succeeded = RefCell::new(BTreeMap::<String, u32>::new());
    let config = Config {
        cases: 400,
        rng_seed: RngSeed::Fixed(20_260_721),
        failure_persistence: None,
        ..Config::default()
    };
    let steps = prop::collection::vec(step(), 1..CALLS);
    let steps = steps.prop_map(|steps| [&[FIRST], &steps[..]].concat());
    let result = TestRunner::new(config).run(&steps, |steps| {
        let mut records = records.borrow_mut();
        let child = Child::perform(&steps, file, &mut records);
        let mut space = AddressSpace::empty();
        let records = &records.records[..records.used];
        for record in records {
            let event = event(record);
            *succeeded.borrow_mut().entry(form(&event.call)).or_default() += 1;
            space.apply(&event);
        }
        let first_break = records[0].result.next_multiple_of(PAGE);
        let heap = first_break..first_break + HEAP_PAGES * PAGE;
        let maps = smaps(child.pid);
        let inside = |frame| maps.iter().filter_map(move |map| vma_inside(map, frame));
        let vmas: Vec<_> = inside(&heap).chain(inside(&ARENA)).collect();

        let before = text(&space);
        let result = compare(&mut space, &vmas);
        prop_assert!(result.agrees(), "{result:?}\n{before}{vmas:#x?}");
        prop_assert_eq!(advice_disagreements(&space, &maps), Vec::<String>::new());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Calls that all fail would agree too.
    for form in FORMS {
        let times = succeeded.borrow().get(form).copied().unwrap_or_default();
        assert!(times >= 20, "{form}: succeeded {times} times");
    }
}

/// What must have happened often enough to believe the result.
const FORMS: [&str; 12] = [
    "mmap",
    "mmap fixed",
    "mmap noreplace",
    "munmap",
    "mprotect",
    "madvise",
    "mremap in place",
    "mremap moved",
    "mremap fixed",
    "mremap dontunmap",
    "mremap duplicate",
    "brk",
];

fn form(call: &Call) -> String {
    let form = match *call {
        Call::Mmap { flags, .. } => match flags as i32 {
            flags if flags & libc::MAP_FIXED != 0 => "mmap fixed",
            flags if flags & libc::MAP_FIXED_NOREPLACE != 0 => "mmap noreplace",
            _ => "mmap",
        },
        Call::Mremap {
            old_address,
            old_length,
            flags,
            address,
            ..
        } => match flags as i32 {
            _ if old_length == 0 => "mremap duplicate",
            flags if flags & libc::MREMAP_DONTUNMAP != 0 => "mremap dontunmap",
            flags if flags & libc::MREMAP_FIXED != 0 => "mremap fixed",
            _ if address == old_address => "mremap in place",
            _ => "mremap moved",
        },
        Call::Munmap { .. } => "munmap",
        Call::Mprotect { .. } => "mprotect",
        Call::Madvise { .. } => "madvise",
        Call::Brk { .. } => "brk",
        _ => "other",
    };
    form.to_owned()
}
