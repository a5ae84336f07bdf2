//! Tier A: the functions of the kernel through which page tables change (fentry). Which of them a
//! kernel has is found out at load (`profiler/src/probes/functions.rs`); what stands above each program
//! is what all kernels from 5.10 to 7.2 agree in.
//!
//! A space is known by the `mm` of the mapping, so what others do to it counts too: `process_madvise`,
//! a file that is truncated, reclaim, `ptrace`.
//!
//! Since Linux 6.13 kernels preempt these programs, and skip one on a CPU where it is under way for another
//! task (`prog->active`, kernel/bpf/trampoline.c). There, tier B's tracepoints stand in front of them, see
//! what a program does itself, and copy it first: those of page faults and of exit run without preemption
//! (include/linux/tracepoint.h), those of system calls did so up to 6.18 and not in 7.2. What is skipped
//! here has then been done, unless the kernel did it by itself.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use profiler_ebpf::ledger_wire::CHUNK_BYTES;

use super::{
    change::{before_arrival, before_change, before_fault, before_removal, forget, space_of},
    kernel::read,
    lifecycle::{end, mm_of_caller},
    maps::{move_length, move_new, move_old, move_vma, space, state, vma_mm},
    peak::look,
};

/// `vma->vm_mm`
macro_rules! mm_of {
    ($vma:expr) => {{
        let vma: *const c_void = $vma;
        // SAFETY: the kernel hands a mapping to this function, the verifier knows its type and finds a
        // pointer at this offset, which is a constant to it.
        unsafe {
            vma.cast::<u8>()
                .add(vma_mm() as usize)
                .cast::<u64>()
                .read()
        }
    }};
}

/// `handle_mm_fault(vma, address, flags, …)`, mm/memory.c: every fault, and every page that the kernel
/// itself brings as if there had been one (populate, mlock, ptrace, direct I/O).
#[fentry]
pub fn ledger_before_fault(ctx: FEntryContext) -> i32 {
    before_fault(mm_of!(ctx.arg(0)), ctx.arg(1));
    0
}

/// `follow_page_mask(vma, address, …)`, mm/gup.c; inlined since Linux 6.12, and then `follow_page_pte(vma, address,
/// …)`: looks for a page that a call needs (populate, mlock, ptrace, direct I/O), before `__get_user_pages`
/// brings it as if there had been a fault.
#[fentry]
pub fn ledger_before_lookup(ctx: FEntryContext) -> i32 {
    before_fault(mm_of!(ctx.arg(0)), ctx.arg(1));
    0
}

/// `no_page_table(vma, flags, address)`, mm/gup.c, since Linux 6.12: what a lookup comes to where
/// `follow_page_pte` finds nothing to look at.
#[fentry]
pub fn ledger_before_first(ctx: FEntryContext) -> i32 {
    before_fault(mm_of!(ctx.arg(0)), ctx.arg(2));
    0
}

/// `fixup_user_fault(mm, address, …)`, mm/gup.c: how futexes and drivers bring a page.
#[fentry]
pub fn ledger_before_fixup(ctx: FEntryContext) -> i32 {
    before_fault(ctx.arg::<*const c_void>(0) as u64, ctx.arg(1));
    0
}

/// At `handle_mm_fault`, what the kernel's way to a program and back costs by itself. No run attaches it,
/// only the measurement of [`ledger_before_fault`].
#[fentry]
pub fn ledger_empty(_ctx: FEntryContext) -> i32 {
    0
}

/// `unmap_page_range(tlb, vma, start, end, …)`, mm/memory.c, since Linux 7.1 `__zap_vma_range`: munmap,
/// MADV_DONTNEED, truncation and exit come to it, once for each mapping.
#[fentry]
pub fn ledger_before_unmap(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(mm_of!(ctx.arg(1))) {
        before_removal(index, ctx.arg(2), ctx.arg(3));
    }
    0
}

/// `exit_mmap(mm)`, mm/mmap.c: nobody lives here any more. What is in it goes mapping by mapping, by the
/// function above; in no candidate from now on it counts.
#[fentry]
pub fn ledger_before_end(ctx: FEntryContext) -> i32 {
    let mm = ctx.arg::<*const c_void>(0) as u64;
    if let Some(index) = space_of(mm) {
        look(index);
        if let (Some(state), Some(space)) = (state(), space(index)) {
            end(space, state);
        }
    }
    0
}

/// The same function's return. `mm` is freed later, so nobody else can have its address yet.
#[fexit]
pub fn ledger_after_end(ctx: FExitContext) -> i32 {
    let mm = ctx.arg::<*const c_void>(0) as u64;
    if space_of(mm).is_some() {
        forget(mm);
    }
    0
}

/// `try_to_unmap_one(folio, vma, address, …)`, mm/rmap.c: reclaim and MADV_PAGEOUT, page by page.
#[fentry]
pub fn ledger_before_reclaim(ctx: FEntryContext) -> i32 {
    unmap_one(ctx)
}

/// `try_to_migrate_one(folio, vma, address, …)`, mm/rmap.c: a page is out of the page tables while it is
/// moved. A huge page is so too while it is split, and since Linux 6.12 those of its parts that hold only
/// zeros do not come back (`try_to_map_unused_to_zeropage`, mm/migrate.c). Before Linux 5.14 this is the
/// function above.
#[fentry]
pub fn ledger_before_migration(ctx: FEntryContext) -> i32 {
    unmap_one(ctx)
}

/// As [`ledger_before_reclaim`], once more: no tracepoint stands in front of what the kernel does by
/// itself. While the first one is under way on a CPU for one task, this one runs there for the others.
#[fentry]
pub fn ledger_before_reclaim_2(ctx: FEntryContext) -> i32 {
    unmap_one(ctx)
}

/// As [`ledger_before_migration`], once more, for the same reason.
#[fentry]
pub fn ledger_before_migration_2(ctx: FEntryContext) -> i32 {
    unmap_one(ctx)
}

#[inline(always)]
fn unmap_one(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(mm_of!(ctx.arg(1))) {
        let address: u64 = ctx.arg(2);
        // A folio has up to 2 MiB, which after an `mremap` may lie across two chunks.
        before_removal(index, address, address.wrapping_add(CHUNK_BYTES));
    }
    0
}

/// `ksm_madvise(vma, start, end, …)`, mm/ksm.c, before Linux 6.6: what `mremap` calls for the pages that
/// it is about to move. (`move_page_tables` is inlined there: Linux 5.10 calls it for `execve` alone.)
#[fentry]
pub fn ledger_before_move_away(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(mm_of!(ctx.arg(0))) {
        before_change(index, ctx.arg(1), ctx.arg(2));
    }
    0
}

/// `copy_vma(&vma, start, length, …)`, mm/mmap.c: the mapping to which `mremap` is about to move them. The
/// first argument is one that Linux 5.10 lets nobody read, but only the caller's own memory is moved.
#[fentry]
pub fn ledger_before_move_here(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(mm_of_caller()) {
        let start: u64 = ctx.arg(1);
        before_arrival(index, start, start.wrapping_add(ctx.arg(2)));
    }
    0
}

/// `move_page_tables(vma, old, new_vma, new, length, …)`, mm/mremap.c, since Linux 6.6.
#[fentry]
pub fn ledger_before_move(ctx: FEntryContext) -> i32 {
    moving(mm_of!(ctx.arg(0)), ctx.arg(1), ctx.arg(3), ctx.arg(4));
    0
}

/// `move_page_tables(control)`, mm/mremap.c, since Linux 6.16.
#[fentry]
pub fn ledger_before_move_by_control(ctx: FEntryContext) -> i32 {
    let control = ctx.arg::<*const c_void>(0) as u64;
    let field = |offset: u64| read(control.wrapping_add(offset)).unwrap_or(0);
    let mm = read(field(move_vma()).wrapping_add(vma_mm())).unwrap_or(0);
    moving(
        mm,
        field(move_old()),
        field(move_new()),
        field(move_length()),
    );
    0
}

#[inline(always)]
fn moving(mm: u64, old: u64, new: u64, length: u64) {
    if let Some(index) = space_of(mm) {
        before_change(index, old, old.wrapping_add(length));
        before_arrival(index, new, new.wrapping_add(length));
    }
}

/// `collapse_huge_page(mm, address, …)`, mm/khugepaged.c: 2 MiB become a huge page, those of its pages
/// too that nobody touched. Before Linux 6.1 it is no function of its own: see `huge.rs`.
#[fentry]
pub fn ledger_before_collapse(ctx: FEntryContext) -> i32 {
    collapse(ctx)
}

/// `collapse_pte_mapped_thp(mm, address, …)`, mm/khugepaged.c: the same for a file.
#[fentry]
pub fn ledger_before_collapse_file(ctx: FEntryContext) -> i32 {
    collapse(ctx)
}

#[inline(always)]
fn collapse(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(ctx.arg::<*const c_void>(0) as u64) {
        let address: u64 = ctx.arg(1);
        before_arrival(index, address, address.wrapping_add(1));
    }
    0
}

/// `mcopy_atomic(mm, start, source, length, …)`, mm/userfaultfd.c, before Linux 6.3.
#[fentry]
pub fn ledger_before_fill(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(ctx.arg::<*const c_void>(0) as u64) {
        let start: u64 = ctx.arg(1);
        before_arrival(index, start, start.wrapping_add(ctx.arg(3)));
    }
    0
}

/// `mfill_atomic_install_pte(pmd, vma, address, …)`, mm/userfaultfd.c, since Linux 6.3.
#[fentry]
pub fn ledger_before_fill_page(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(mm_of!(ctx.arg(1))) {
        let address: u64 = ctx.arg(2);
        before_arrival(index, address, address.wrapping_add(1));
    }
    0
}

/// `vm_insert_page(vma, address, page)`, mm/memory.c: a driver maps a page of its own.
#[fentry]
pub fn ledger_before_insert(ctx: FEntryContext) -> i32 {
    if let Some(index) = space_of(mm_of!(ctx.arg(0))) {
        let address: u64 = ctx.arg(1);
        before_arrival(index, address, address.wrapping_add(1));
    }
    0
}
