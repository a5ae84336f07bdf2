//! Copying what is about to change: page table entries → the bits of a chunk.

use core::{ffi::c_void, intrinsics};

use aya_ebpf::{
    helpers::{bpf_loop, bpf_probe_read_kernel_buf},
    macros::map,
    maps::PerCpuArray,
};
use profiler_ebpf::ledger_wire::{CHUNK_BYTES, CHUNK_NUMBER_BITS, Chunk};

use super::kernel::read;
use super::maps::{
    CHUNKS, ENTRIES, POOL, direct_map, frame_mask, huge_zero, space, state, top_shift,
};

/// `arch/x86/include/asm/pgtable_types.h`: bits of a page table entry.
const PRESENT: u64 = 1 << 0;
/// In a directory: maps 2 MiB (or 1 GiB) itself.
const HUGE: u64 = 1 << 7;
/// Of an entry that is not PRESENT: present for the kernel, no access for the program.
const PROTNONE: u64 = 1 << 8;
/// The zero page and pages mapped by frame number: never RSS (`vm_normal_page`, mm/memory.c).
const SPECIAL: u64 = 1 << 9;

/// As many steps as `bpf_loop` takes: `BPF_MAX_LOOPS`, include/linux/bpf.h.
const MAX_STEPS: u64 = 8 << 20;

#[inline(always)]
fn key(space: u32, address: u64) -> u64 {
    u64::from(space) << CHUNK_NUMBER_BITS | address / CHUNK_BYTES
}

#[inline(always)]
fn entry_at(address: u64) -> u64 {
    match read(address) {
        Some(value) => value,
        None => {
            if let Some(state) = state() {
                state.unreadable += 1;
            }
            0
        }
    }
}

/// Whether the chunk with this key has been copied in this epoch.
#[inline(always)]
pub fn is_copied(key: u64, epoch: u32) -> bool {
    // SAFETY: entries are never removed while programs run.
    let Some(&index) = (unsafe { CHUNKS.get(key) }) else {
        return false;
    };
    // SAFETY: never freed; a word is read at once.
    POOL.get_ptr(index)
        .is_some_and(|chunk| unsafe { (*chunk).claimed } == u64::from(epoch))
}

/// The chunk with this key, if this CPU is the one to copy it in this epoch.
#[inline(always)]
fn claim(key: u64, epoch: u32) -> Option<&'static mut Chunk> {
    let state = state()?;
    // SAFETY: entries are never removed while programs run.
    let index = match unsafe { CHUNKS.get(key) } {
        Some(&index) => index,
        None => {
            // SAFETY: the word is in a map that lives as long as the program. Sequentially
            // consistent, because LLVM drops the fetch of a relaxed one.
            let next = unsafe {
                intrinsics::atomic_xadd::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(
                    &raw mut state.chunks,
                    1,
                )
            };
            let index = next as u32;
            // An existing entry means that another CPU was faster: its slot is the one, ours stays
            // empty.
            const BPF_NOEXIST: u64 = 1;
            if POOL.get_ptr(index).is_none() {
                state.pool_full += 1;
                return None;
            }
            if CHUNKS.insert(key, index, BPF_NOEXIST).is_err() {
                // SAFETY: as above.
                if unsafe { CHUNKS.get(key) }.is_none() {
                    state.pool_full += 1;
                }
                return None;
            }
            index
        }
    };
    // SAFETY: never freed.
    let chunk = unsafe { &mut *POOL.get_ptr_mut(index)? };
    // SAFETY: as above.
    let before = unsafe {
        intrinsics::atomic_xchg::<u64, { intrinsics::AtomicOrdering::SeqCst }>(
            &raw mut chunk.claimed,
            u64::from(epoch),
        )
    };
    if before == u64::from(epoch) {
        return None;
    }
    chunk.key = key;
    state.copies += 1;
    Some(chunk)
}

#[inline(always)]
fn fill(chunk: &mut Chunk, epoch: u32, bits: u64) {
    for word in &mut chunk.bits {
        *word = bits;
    }
    chunk.epoch = u64::from(epoch);
}

/// Copies the page of entries at `table` (kernel address).
#[inline(always)]
fn copy_entries(chunk: &mut Chunk, epoch: u32, table: u64) {
    let Some(entries) = ENTRIES.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own page; these programs cannot be preempted by one another.
    let entries = unsafe { &mut *entries };
    // SAFETY: a [u64; 512] is 4096 bytes.
    let bytes = unsafe { &mut *entries.as_mut_ptr().cast::<[u8; 4096]>() };
    // SAFETY: the helper checks the address.
    if unsafe { bpf_probe_read_kernel_buf(table as *const u8, bytes) }.is_err() {
        if let Some(state) = state() {
            state.unreadable += 1;
        }
        return;
    }
    let mut word = 0;
    while word < 8 {
        let mut bits = 0_u64;
        let mut bit = 0;
        while bit < 64 {
            // The index stays below 512: the mask is for the verifier.
            // SAFETY: see the line above.
            let entry = unsafe { *entries.as_ptr().add((word * 64 + bit) & 511) };
            let resident = (entry | entry >> 8) & !(entry >> 9) & 1;
            bits |= resident << bit;
            bit += 1;
        }
        // SAFETY: as above.
        unsafe { *chunk.bits.as_mut_ptr().add(word & 7) = bits };
        word += 1;
    }
    chunk.epoch = u64::from(epoch);
}

const _: () = assert!(PRESENT == 1 && PROTNONE == 1 << 8 && SPECIAL == 1 << 9);

/// The walk of this CPU. In a map and not on the stack: there, the verifier would follow every value
/// that the cursor can take.
#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// A walk over part of an address space.
#[repr(C)]
struct Walk {
    cursor: u64,
    end: u64,
    pgd: u64,
    space: u32,
    epoch: u32,
    /// Chunks without page table entries are worth a copy too: something is about to come there.
    empty_too: u64,
    /// Pages in here came after the candidate (none when the end is 0).
    fresh_start: u64,
    fresh_end: u64,
}

/// Copies every chunk of `start..end` that has not been copied in this epoch. Without `empty_too`,
/// what has no page of entries is left out.
#[inline(always)]
pub fn copy_range(index: u32, epoch: u32, start: u64, end: u64, empty_too: bool) {
    walk(index, epoch, start, end, empty_too, 0, 0);
}

/// As [`copy_range`], after pages have come to the range: they were not there at the candidate.
#[inline(always)]
pub fn copy_beside(index: u32, epoch: u32, start: u64, end: u64) {
    walk(index, epoch, start, end, false, start, end);
}

#[inline(always)]
fn walk(
    index: u32,
    epoch: u32,
    start: u64,
    end: u64,
    empty_too: bool,
    fresh_start: u64,
    fresh_end: u64,
) {
    let (Some(space), Some(walk)) = (space(index), WALK.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: this CPU's own slot; these programs cannot be preempted by one another.
    unsafe {
        *walk = Walk {
            cursor: start,
            end,
            pgd: space.pgd,
            space: index,
            epoch,
            empty_too: u64::from(empty_too),
            fresh_start,
            fresh_end,
        };
    }
    let chunks = (end.wrapping_sub(start) >> 21).wrapping_add(2);
    let steps = if chunks > MAX_STEPS {
        MAX_STEPS
    } else {
        chunks
    };
    // SAFETY: `step` has the form that the helper wants.
    unsafe { bpf_loop(steps as u32, step as *mut c_void, core::ptr::null_mut(), 0) };
}

/// One entry of the page tables, from the top: a hole is stepped over, a page of entries is copied.
#[inline(never)]
extern "C" fn step(_index: u32, _context: *mut c_void) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: see `copy_range`.
    let walk = unsafe { &mut *walk };
    let at = walk.cursor;
    if at >= walk.end {
        return 1;
    }
    let mut shift = top_shift();
    let mut table = walk.pgd;
    let mut entry = 0;
    let mut level = 0;
    while level < 4 {
        entry = entry_at(table.wrapping_add((at >> shift & 511) * 8));
        if entry & PRESENT == 0 || (entry & HUGE != 0 && shift <= 30) || shift <= 21 {
            break;
        }
        table = direct_map().wrapping_add(entry & frame_mask());
        shift -= 9;
        level += 1;
    }
    // A directory entry of a huge page may be without access, as a page table entry may.
    let present = entry & PRESENT != 0 || (entry & (PROTNONE | HUGE)) == PROTNONE | HUGE;
    if shift > 21 && !walk.empty_too() {
        // Nothing below (or a page of 1 GiB, which is hugetlbfs and no RSS).
        walk.cursor = (at | ((1_u64 << shift) - 1)).wrapping_add(1);
        return 0;
    }
    walk.cursor = (at | (CHUNK_BYTES - 1)).wrapping_add(1);
    if !present && !walk.empty_too() {
        return 0;
    }
    let Some(chunk) = claim(key(walk.space, at), walk.epoch) else {
        return 0;
    };
    if !present || shift > 21 {
        fill(chunk, walk.epoch, 0);
    } else if entry & HUGE != 0 {
        let zero = entry & SPECIAL != 0
            || (huge_zero() != 0 && entry & frame_mask() & !(CHUNK_BYTES - 1) == huge_zero());
        fill(chunk, walk.epoch, if zero { 0 } else { u64::MAX });
    } else {
        copy_entries(
            chunk,
            walk.epoch,
            direct_map().wrapping_add(entry & frame_mask()),
        );
    }
    if walk.fresh_end != 0 {
        clear(chunk, at, walk.fresh_start, walk.fresh_end);
    }
    0
}

/// Clears the bits of the pages in `start..end`. `at` is any address in the chunk.
#[inline(always)]
fn clear(chunk: &mut Chunk, at: u64, start: u64, end: u64) {
    let base = at & !(CHUNK_BYTES - 1);
    let mut word = 0;
    while word < 8 {
        let first = base + word as u64 * WORD_BYTES;
        // The pages of this word from `from` up to `to` are fresh.
        let from = if start > first {
            (start - first) >> 12
        } else {
            0
        };
        let to = if end > first {
            (end - first + 4095) >> 12
        } else {
            0
        };
        if from < 64 && to > from {
            let above = u64::MAX << (from & 63);
            let below = if to >= 64 {
                u64::MAX
            } else {
                !(u64::MAX << (to & 63))
            };
            // SAFETY: the mask keeps the index inside; it is for the verifier.
            unsafe { *chunk.bits.as_mut_ptr().add(word & 7) &= !(above & below) };
        }
        word += 1;
    }
}

/// Bytes of address space in one word of bits.
const WORD_BYTES: u64 = 64 * 4096;

impl Walk {
    #[inline(always)]
    fn empty_too(&self) -> bool {
        self.empty_too != 0
    }
}

/// Copies the chunk around `address`, which is about to get a page.
#[inline(always)]
pub fn copy_one(index: u32, epoch: u32, address: u64) {
    copy_range(index, epoch, address, address + 1, true);
}

/// Whether the chunk around `address` has been copied.
#[inline(always)]
pub fn is_copied_at(index: u32, epoch: u32, address: u64) -> bool {
    is_copied(key(index, address), epoch)
}
