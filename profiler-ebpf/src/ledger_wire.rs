//! The wire contract of the page ledger (tiers A and B): which pages were resident at the peak.
//!
//! RSS falls only where something is removed, so the state at the peak is the state just before the
//! first removal after it. The page tables themselves hold it until something changes them. The
//! kernel side therefore does nothing while memory grows. When a removal begins and the tree has
//! more pages than at any removal before, that moment becomes the **candidate**, a new *epoch*; from
//! then on, whatever is about to change is copied first: the pages of 2 MiB of address space (one
//! page of page table entries) become the 512 bits of a [`Chunk`], once an epoch.
//!
//! ```text
//! pages at the candidate = the chunk's bits, if it was copied in this epoch
//!                          what the page tables hold now, if not: nothing has changed them
//! ```
//!
//! Each address space has a candidate of its own beside that of the tree, for its own peak: the same with
//! the space's pages in the place of the tree's. Where both are one moment, as always in a tree of one
//! process, the copies are the tree's, and nothing is copied twice:
//!
//! ```text
//! pages at a space's own candidate = the bits of its own chunk, if it was copied in its own epoch
//!                                    the bits of the tree's chunk, if that is of the shared epoch
//!                                    what the page tables hold now, if neither
//! ```
//!
//! When the tree goes on to a newer candidate and the space does not, they part: what a chunk of the tree
//! holds is moved to one of the space's own before it is overwritten.
//!
//! All structs are plain integers in maps that user space reads by `mmap`.

/// Bytes of address space in one [`Chunk`]: one page of page table entries.
pub const CHUNK_BYTES: u64 = 2 << 20;
/// 64-bit words of the bits of a [`Chunk`].
pub const CHUNK_WORDS: usize = 8;
/// Bits of an address above the chunk: user addresses have at most 57 bits, chunks 21.
pub const CHUNK_NUMBER_BITS: u32 = 36;
/// Address spaces that can be followed in one run, ended ones included.
pub const SPACES: u32 = 4096;

/// 2 MiB of one address space, as it was in one epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the [`Space`] << [`CHUNK_NUMBER_BITS`] | address / [`CHUNK_BYTES`].
    pub key: u64,
    /// The epoch that `bits` belong to; written after them. 0: not yet written.
    pub epoch: u64,
    /// The highest epoch for which somebody has begun to write `bits`.
    pub begun: u64,
    /// 1: taken. (64 bits, as the atomic instructions of the first BPF version are.)
    pub taken: u64,
    /// Bit n: page n was resident and counted in RSS.
    pub bits: [u64; CHUNK_WORDS],
}

/// One address space (`struct mm_struct`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Space {
    /// Address of its `mm_struct`, the only name that lasts as long as it does.
    pub mm: u64,
    /// Its page table of the highest level.
    pub pgd: u64,
    /// Pages at the candidate of the current epoch.
    pub candidate_pages: u64,
    /// Bytes of page tables at that moment.
    pub candidate_table_bytes: u64,
    /// Mappings at that moment.
    pub candidate_mappings: u64,
    /// Pages when last counted.
    pub pages: u64,
    /// The most pages that were counted.
    pub highest_pages: u64,
    /// When: `CLOCK_MONOTONIC`, in ns.
    pub highest_ns: u64,
    /// Where its main stack began, which `execve` decides: an address in its mapping.
    pub start_stack: u64,
    /// Thread group that it was made for.
    pub tgid: u32,
    /// Processes that live in it, more than one after vfork; 0 when it has ended. (A child that ends without an exec is
    /// not taken off in tier A before Linux 6.16.)
    pub users: u32,
    /// The epoch in which it was first seen: it has no page in any candidate up to this one.
    pub born_epoch: u32,
    /// The epoch in which it ended; 0 while it lives.
    pub ended_epoch: u32,
    /// Its pages at its own candidate.
    pub own_pages: u64,
    /// When that was: `CLOCK_MONOTONIC`, in ns.
    pub own_ns: u64,
    /// Number of its own candidate; 0 before the first one. Written after the three that describe it.
    pub own_epoch: u32,
    /// As [`State::growing_in`], of its own candidate.
    pub own_growing_in: u32,
    /// The tree's epoch that its own candidate is one moment with; 0: it is with none.
    pub own_is_trees: u32,
    /// Copies for its own candidates that could not be made, for whatever reason.
    pub own_lost: u32,
}

/// The state of the ledger: one for the whole tree.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// Number of the current candidate; 0 before the first removal.
    pub epoch: u32,
    /// The epoch in which the tree was last seen to have more than the candidate. While that is the
    /// current one, nothing is copied: the next removal makes a new candidate. (The epoch and not a
    /// flag, so that a CPU that is late cannot switch off the copying for a newer candidate.)
    pub growing_in: u32,
    /// [`Space`]s in use, ended ones included.
    pub spaces: u64,
    /// Pages of the tree at the candidate.
    pub candidate_pages: u64,
    /// When that was: `CLOCK_MONOTONIC`, in ns.
    pub candidate_ns: u64,
    /// The most pages that were counted at any removal. Exceeds `candidate_pages` by the slack at most.
    pub highest_pages: u64,
    /// When that was: `CLOCK_MONOTONIC`, in ns.
    pub highest_ns: u64,
    /// [`Chunk`]s in use, at most.
    pub chunks: u64,
    /// Chunks that could not be copied because the pool was full.
    pub pool_full: u64,
    /// Address spaces that could not be followed because their table was full.
    pub spaces_full: u64,
    /// Parts of page tables that could not be copied: not readable, more than one walk reaches, a lock
    /// that was held for too long, or a late copy that came into the next epoch's.
    pub unreadable: u64,
    /// Times that copying was off although the tree was not above the candidate: pages had gone
    /// without a removal that we know, or in one that had been looked at before others grew the tree.
    pub unseen_removals: u64,
    /// Chunks copied, and removals looked at.
    pub copies: u64,
    /// Removals looked at.
    pub removals: u64,
    /// [`Chunk`]s in use for spaces' own candidates, at most.
    pub own_chunks: u64,
    /// Changes whenever what was not to be copied may have to be, for the tree or for any space.
    pub stamp: u64,
    /// 1: there may be something to copy for a space although there is nothing for the tree.
    pub apart: u64,
}

impl State {
    /// Whether what is about to change must be copied first.
    #[inline(always)]
    pub const fn copies_changes(&self) -> bool {
        self.epoch != self.growing_in
    }
}

const _: () =
    assert!(size_of::<Chunk>() == 96 && size_of::<Space>() == 120 && size_of::<State>() == 128);

/// A [`Chunk`] as user space reads it, word for word; likewise the others.
pub type ChunkWords = [u64; size_of::<Chunk>() / 8];
/// See [`ChunkWords`].
pub type SpaceWords = [u64; size_of::<Space>() / 8];
/// See [`ChunkWords`].
pub type StateWords = [u64; size_of::<State>() / 8];

/// Names of programs, maps and globals, as user space looks them up.
pub mod names {
    /// Attached to `syscalls:sys_enter_*` of the calls that remove pages.
    pub const REMOVAL: &str = "ledger_removal";
    /// Attached to `syscalls:sys_enter_execve` and `sys_enter_execveat` where [`REMOVAL`] is not.
    pub const BEFORE_EXEC: &str = "ledger_before_exec";
    /// Attached to `syscalls:sys_exit_mmap` and `sys_exit_mremap`.
    pub const ARRIVAL: &str = "ledger_arrival";
    /// The two above once more, and again, for kernels that preempt them.
    pub const AGAIN: [(&str, &str); 2] = [
        ("ledger_removal_2", "ledger_arrival_2"),
        ("ledger_removal_3", "ledger_arrival_3"),
    ];
    /// Attached to `huge_memory:mm_khugepaged_scan_pmd` (tp_btf) where there is one.
    pub const HUGE: (&str, &str) = ("ledger_huge", "mm_khugepaged_scan_pmd");
    /// tp_btf of both tiers: name of the program, name of the tracepoint.
    pub const LIFECYCLE: [(&str, &str); 2] = [
        ("ledger_newtask", "task_newtask"),
        ("ledger_exec", "sched_process_exec"),
    ];
    /// fentry programs of tier A: see `profiler/src/probes/functions.rs` for what they attach to.
    pub const BEFORE_FAULT: &str = "ledger_before_fault";
    /// Before the kernel looks up a page for a call.
    pub const BEFORE_LOOKUP: &str = "ledger_before_lookup";
    /// When it has found no page table for it.
    pub const BEFORE_FIRST: &str = "ledger_before_first";
    /// Before a fault that the kernel mends for itself.
    pub const BEFORE_FIXUP: &str = "ledger_before_fixup";
    /// (fentry) does nothing: what the way to a program costs. Measurements alone attach it.
    pub const EMPTY: &str = "ledger_empty";
    /// (tp_btf) the same at the tracepoint of page faults.
    pub const EMPTY_TRACEPOINT: (&str, &str) = ("ledger_empty_tracepoint", "page_fault_user");
    /// Before pages are removed from a mapping.
    pub const BEFORE_UNMAP: &str = "ledger_before_unmap";
    /// Before an address space is emptied.
    pub const BEFORE_END: &str = "ledger_before_end";
    /// (fexit) after it has been emptied.
    pub const AFTER_END: &str = "ledger_after_end";
    /// Before a page is taken back by the kernel.
    pub const BEFORE_RECLAIM: &str = "ledger_before_reclaim";
    /// Before a page is moved, or a huge one split.
    pub const BEFORE_MIGRATION: &str = "ledger_before_migration";
    /// The two above once more, for kernels that preempt these programs.
    pub const BEFORE_RECLAIM_AGAIN: &str = "ledger_before_reclaim_2";
    /// See [`BEFORE_RECLAIM_AGAIN`].
    pub const BEFORE_MIGRATION_AGAIN: &str = "ledger_before_migration_2";
    /// Before page tables move: from where.
    pub const BEFORE_MOVE_AWAY: &str = "ledger_before_move_away";
    /// Before page tables move: to where.
    pub const BEFORE_MOVE_HERE: &str = "ledger_before_move_here";
    /// Before page tables move, with plain arguments.
    pub const BEFORE_MOVE: &str = "ledger_before_move";
    /// The same, with a `struct pagetable_move_control`.
    pub const BEFORE_MOVE_BY_CONTROL: &str = "ledger_before_move_by_control";
    /// Before a huge page is made of anonymous memory.
    pub const BEFORE_COLLAPSE: &str = "ledger_before_collapse";
    /// The same of a file.
    pub const BEFORE_COLLAPSE_FILE: &str = "ledger_before_collapse_file";
    /// Before userfaultfd fills a range.
    pub const BEFORE_FILL: &str = "ledger_before_fill";
    /// Before userfaultfd fills a page.
    pub const BEFORE_FILL_PAGE: &str = "ledger_before_fill_page";
    /// Before a driver maps a page of its own.
    pub const BEFORE_INSERT: &str = "ledger_before_insert";
    /// Attached to `syscalls:sys_enter_getppid` while the layout is found out.
    pub const PEEK: &str = "ledger_peek";
    /// tp_btf programs of page faults: name of the program, name of the tracepoint.
    pub const FAULTS: [(&str, &str); 2] = [
        ("ledger_fault_user", "page_fault_user"),
        ("ledger_fault_kernel", "page_fault_kernel"),
    ];
    /// tp_btf, where the memory of an ending process is still there (since Linux 6.16).
    pub const EXIT: (&str, &str) = ("ledger_exit", "sched_process_exit");
    /// tp_btf, where it is not: a signal is about to be acted on, and a thread has ended.
    pub const ENDS: [(&str, &str); 2] = [
        ("ledger_signal", "signal_deliver"),
        ("ledger_after_exit", "sched_process_exit"),
    ];

    /// An iterator over threads: follows address spaces that live already, and looks.
    pub const EXISTING: &str = "ledger_existing";

    /// Array of [`super::Chunk`], mappable.
    pub const POOL: &str = "POOL";
    /// Hash: key of a chunk → its index in the pool.
    pub const CHUNKS: &str = "CHUNKS";
    /// As [`POOL`], for spaces' own candidates.
    pub const OWN_POOL: &str = "OWN_POOL";
    /// As [`CHUNKS`], for spaces' own candidates.
    pub const OWN_CHUNKS: &str = "OWN_CHUNKS";
    /// Array of [`super::Space`], mappable.
    pub const SPACES: &str = "SPACES";
    /// Array of one [`super::State`], mappable.
    pub const STATE: &str = "STATE";
    /// Array: CPU → offset of its per-CPU memory.
    pub const CPU_OFFSETS: &str = "CPU_OFFSETS";
    /// Array of one [`super::Peek`].
    pub const PEEKS: &str = "PEEKS";

    /// `u64`s in read-only memory: offsets in bytes, and what was found out about page tables.
    pub const TASK_MM: &str = "TASK_MM";
    /// Offset of `tgid` in `task_struct`.
    pub const TASK_TGID: &str = "TASK_TGID";
    /// Offset of `active_mm` in `task_struct`.
    pub const TASK_ACTIVE_MM: &str = "TASK_ACTIVE_MM";
    /// Offset of `signal` in `task_struct`.
    pub const TASK_SIGNAL: &str = "TASK_SIGNAL";
    /// Offset of `live` in `signal_struct`.
    pub const SIGNAL_LIVE: &str = "SIGNAL_LIVE";
    /// Offset of `flags` in `signal_struct`.
    pub const SIGNAL_FLAGS: &str = "SIGNAL_FLAGS";
    /// Offset of `pgd` in `mm_struct`.
    pub const MM_PGD: &str = "MM_PGD";
    /// Offset of `brk` in `mm_struct`.
    pub const MM_BRK: &str = "MM_BRK";
    /// Offset of `start_stack` in `mm_struct`.
    pub const MM_START_STACK: &str = "MM_START_STACK";
    /// Offset of `pgtables_bytes` in `mm_struct`.
    pub const MM_TABLE_BYTES: &str = "MM_TABLE_BYTES";
    /// Offset of `map_count` in `mm_struct`.
    pub const MM_MAPPINGS: &str = "MM_MAPPINGS";
    /// Offset of `rss_stat` in `mm_struct`.
    pub const MM_RSS: &str = "MM_RSS";
    /// Size of `percpu_counter`.
    pub const COUNTER_SIZE: &str = "COUNTER_SIZE";
    /// Offset of `count` in `percpu_counter`.
    pub const COUNTER_COUNT: &str = "COUNTER_COUNT";
    /// Offset of `counters` in `percpu_counter`.
    pub const COUNTER_COUNTERS: &str = "COUNTER_COUNTERS";
    /// Offset of `index` in `folio`.
    pub const FOLIO_INDEX: &str = "FOLIO_INDEX";
    /// Pages that CPUs may hold back from one counter.
    pub const CPU_SLACK: &str = "CPU_SLACK";
    /// Offset of `vm_mm` in `vm_area_struct`.
    pub const VMA_MM: &str = "VMA_MM";
    /// Offset of `old` in `pagetable_move_control`.
    pub const MOVE_VMA: &str = "MOVE_VMA";
    /// Offset of `old_addr` in `pagetable_move_control`.
    pub const MOVE_OLD: &str = "MOVE_OLD";
    /// Offset of `new_addr` in `pagetable_move_control`.
    pub const MOVE_NEW: &str = "MOVE_NEW";
    /// Offset of `len_in` in `pagetable_move_control`.
    pub const MOVE_LENGTH: &str = "MOVE_LENGTH";
    /// CPUs in `CPU_OFFSETS`; 0 where counters have no part for each CPU.
    pub const CPUS: &str = "CPUS";
    /// Where all of physical memory is mapped.
    pub const DIRECT_MAP: &str = "DIRECT_MAP";
    /// Frame bits of a page table entry.
    pub const FRAME_MASK: &str = "FRAME_MASK";
    /// Bits of an address below the highest page table: 39, or 48 with five levels.
    pub const TOP_SHIFT: &str = "TOP_SHIFT";
    /// Frame of the huge zero page (address, not number); 0 when unknown.
    pub const HUGE_ZERO: &str = "HUGE_ZERO";
    /// Bit n: a swap entry of type n is a page that is being moved.
    pub const MIGRATION_TYPES: &str = "MIGRATION_TYPES";
    /// 1: [`BEFORE_END`] and [`AFTER_END`] tell when a space ends.
    pub const END_IS_HOOKED: &str = "END_IS_HOOKED";
    /// A new candidate has more pages than the last one by at least its count >> this.
    pub const SLACK_SHIFT: &str = "SLACK_SHIFT";
}

/// A question and its answer while the layout is found out: `getppid` of one process reads 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Peek {
    /// In: thread group whose `getppid` answers.
    pub tgid: u64,
    /// In: kernel address to read.
    pub address: u64,
    /// Out: what is there.
    pub value: u64,
    /// Out: 0, or the error of the read.
    pub error: i64,
    /// Out: `task_struct` of the caller.
    pub task: u64,
    /// Out: address of this CPU's slot of a per-CPU array.
    pub slot: u64,
    /// Out: address of that array's `bpf_array`.
    pub array: u64,
}

/// The count, to the page, that calls for a new candidate when the last one had so many: a part of it, by `slack_shift`,
/// and 4 pages more, so that what grows page by page is not copied again and again.
#[inline(always)]
pub const fn growth_limit(candidate_pages: u64, slack_shift: u64) -> u64 {
    candidate_pages + (candidate_pages >> slack_shift) + 4
}
