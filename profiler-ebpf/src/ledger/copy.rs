//! Copying what is about to change: page table entries → the bits of a chunk.

use aya_ebpf::{helpers::bpf_probe_read_kernel_buf, macros::map, maps::PerCpuArray};
use profiler_ebpf::ledger_wire::{CHUNK_BYTES, CHUNK_NUMBER_BITS, CHUNK_WORDS, Chunk, State};

use super::kernel::read;
use super::lock::{add, try_lock, unlock};
use super::maps::{
    CHUNKS, OWN_CHUNKS, OWN_POOL, POOL, direct_map, frame_mask, huge_zero, migration_types, space,
    state, top_shift,
};

/// `arch/x86/include/asm/pgtable_types.h`: bits of a page table entry.
const PRESENT: u64 = 1 << 0;
/// In a directory: maps 2 MiB (or 1 GiB) itself.
const HUGE: u64 = 1 << 7;
/// Of an entry that is not PRESENT: present for the kernel, no access for the program.
const PROTNONE: u64 = 1 << 8;
/// The zero page and pages mapped by frame number: never RSS (`vm_normal_page`, mm/memory.c).
const SPECIAL: u64 = 1 << 9;

#[inline(always)]
fn key(space: u32, address: u64) -> u64 {
    u64::from(space) << CHUNK_NUMBER_BITS | address / CHUNK_BYTES
}

/// For which candidates something is to be copied: the tree's epoch in the lower half, the space's own in the
/// upper one, 0 where it is not. (One number, for functions that take no more than five.)
#[derive(Clone, Copy)]
pub struct Wanted(u64);

impl Wanted {
    #[inline(always)]
    pub fn of(tree: u32, own: u32) -> Wanted {
        Wanted(u64::from(tree) | u64::from(own) << 32)
    }

    #[inline(always)]
    pub fn any(self) -> bool {
        self.0 != 0
    }

    #[inline(always)]
    fn tree(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    fn own(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Without those of other epochs.
    #[inline(always)]
    pub fn of_epochs(self, tree: u32, own: u32) -> Wanted {
        let tree = if self.tree() == tree { tree } else { 0 };
        let own = if self.own() == own { own } else { 0 };
        Wanted::of(tree, own)
    }
}

#[inline(always)]
fn entry_at(address: u64) -> u64 {
    match read(address) {
        Some(value) => value,
        None => {
            lost();
            0
        }
    }
}

/// Something could not be copied: the composition will lack it or have it too much.
#[inline(always)]
fn lost() {
    if let Some(state) = state() {
        state.unreadable += 1;
    }
}

/// The same of a space's own candidate.
#[inline(always)]
fn own_lost(index: u32) {
    if let Some(space) = space(index) {
        space.own_lost += 1;
    }
}

/// A chunk of the tree's pool, or of that for spaces' own candidates.
#[inline(always)]
fn chunk<const OWN: bool>(index: u32) -> Option<&'static mut Chunk> {
    let found = if OWN {
        OWN_POOL.get_ptr_mut(index)
    } else {
        POOL.get_ptr_mut(index)
    };
    // SAFETY: never freed; see `keep` for what happens when two write it.
    found.map(|chunk| unsafe { &mut *chunk })
}

/// The chunk with this key, if there is one.
#[inline(always)]
fn known<const OWN: bool>(key: u64) -> Option<u32> {
    // SAFETY: entries are never removed while programs run; the value is copied at once.
    let found = unsafe {
        if OWN {
            OWN_CHUNKS.get(key)
        } else {
            CHUNKS.get(key)
        }
    };
    found.copied()
}

/// A word that other CPUs write.
#[inline(always)]
fn seen(word: &u64) -> u64 {
    // SAFETY: a reference is valid; volatile, so that it is read here and now.
    unsafe { (&raw const *word).read_volatile() }
}

/// The counterpart of [`seen`]: x86 makes stores visible in their order.
#[inline(always)]
fn tell(word: &mut u64, value: u64) {
    // SAFETY: as above.
    unsafe { (&raw mut *word).write_volatile(value) };
}

/// Whether the chunk around `address` has been copied in this epoch, of the tree or of the space.
#[inline(always)]
pub fn is_copied_at<const OWN: bool>(space: u32, epoch: u32, address: u64) -> bool {
    known::<OWN>(key(space, address))
        .and_then(chunk::<OWN>)
        .is_some_and(|chunk| seen(&chunk.epoch) >= u64::from(epoch))
}

/// The chunk with this key, if it has not been copied in this epoch; takes a free one for a new key.
#[inline(always)]
fn due<const OWN: bool>(key: u64, epoch: u32) -> Option<&'static mut Chunk> {
    if epoch == 0 {
        return None;
    }
    let index = known::<OWN>(key).or_else(|| enter::<OWN>(key))?;
    chunk::<OWN>(index).filter(|chunk| seen(&chunk.epoch) < u64::from(epoch))
}

/// Index of a new chunk with this key.
#[inline(always)]
fn enter<const OWN: bool>(key: u64) -> Option<u32> {
    let state = state()?;
    if let Some(index) = take_free::<OWN>(state) {
        // Somebody may have entered the key since; that index is the one then, and ours is wasted.
        const BPF_NOEXIST: u64 = 1;
        let _ = if OWN {
            OWN_CHUNKS.insert(key, index, BPF_NOEXIST)
        } else {
            CHUNKS.insert(key, index, BPF_NOEXIST)
        };
    }
    let found = known::<OWN>(key);
    match found {
        None if OWN => own_lost((key >> CHUNK_NUMBER_BITS) as u32),
        None => state.pool_full += 1,
        Some(_) => {}
    }
    found
}

/// Chunks that are looked at for a free one: as many as others may be taking at the same moment.
const CANDIDATES: u64 = 16;

/// Takes a chunk that nobody has. Each one looked at counts as used, for user space must find all that
/// are; those that two have met at and left are wasted.
#[inline(always)]
fn take_free<const OWN: bool>(state: &mut State) -> Option<u32> {
    let used = if OWN {
        &mut state.own_chunks
    } else {
        &mut state.chunks
    };
    let first = seen(used);
    let mut tried = 0;
    while tried < CANDIDATES {
        let index = first + tried;
        add(used, 1);
        if try_lock(&raw mut chunk::<OWN>(index as u32)?.taken) {
            return Some(index as u32);
        }
        tried += 1;
    }
    None
}

/// 1: this entry, which is not PRESENT, stands for a page that is on its way to another place (migration,
/// compaction, a huge page that is split) and counts as RSS all the while. The type of a swap entry is
/// in its bits 59 to 63 (arch/x86/include/asm/pgtable_64.h).
#[inline(always)]
fn is_moving(entry: u64) -> u64 {
    (migration_types() >> (entry >> 59)) & 1
}

/// The bits of a chunk.
type Bits = [u64; CHUNK_WORDS];

#[inline(always)]
fn fill(bits: &mut Bits, all: u64) {
    for word in bits {
        *word = all;
    }
}

/// Takes the bits from the page of entries at `table` (kernel address). False: it cannot be read.
#[inline(always)]
fn take_entries(into: &mut Bits, entries: &mut [u64; 512], table: u64) -> bool {
    // SAFETY: a [u64; 512] is 4096 bytes.
    let bytes = unsafe { &mut *entries.as_mut_ptr().cast::<[u8; 4096]>() };
    // SAFETY: the helper checks the address.
    if unsafe { bpf_probe_read_kernel_buf(table as *const u8, bytes) }.is_err() {
        lost();
        return false;
    }
    let mut word = 0;
    while word < CHUNK_WORDS {
        let mut bits = 0_u64;
        let mut bit = 0;
        while bit < 64 {
            // The index stays below 512: the mask is for the verifier.
            // SAFETY: see the line above.
            let entry = unsafe { *entries.as_ptr().add((word * 64 + bit) & 511) };
            let mapped = (entry | entry >> 8) & 1;
            let resident = (mapped & !(entry >> 9)) | (!mapped & is_moving(entry));
            bits |= resident << bit;
            bit += 1;
        }
        // SAFETY: as above.
        unsafe { *into.as_mut_ptr().add(word & 7) = bits };
        word += 1;
    }
    true
}

const _: () = assert!(PRESENT == 1 && PROTNONE == 1 << 8 && SPECIAL == 1 << 9);

/// A walk over part of an address space, and the page of entries that it looks at. In a map and not on
/// the stack: there, the verifier would follow every value that the cursor can take.
#[repr(C)]
struct Walk {
    /// A lock: see [`WALKS`].
    busy: u64,
    cursor: u64,
    end: u64,
    pgd: u64,
    /// One of the `WITH_…` below.
    how: u64,
    /// Pages in here came after the candidate (none when the end is 0).
    fresh_start: u64,
    fresh_end: u64,
    wanted: Wanted,
    space: u64,
    bits: Bits,
    /// What is moved from the tree's chunk to one of the space's own.
    moved: Bits,
    entries: [u64; 512],
}

/// Walks that can be under way on one CPU. Most kernels never preempt these programs; those since
/// Linux 6.12 may, so that another task comes to a hook of its own in the middle of a walk.
const SLOTS: u32 = 4;

#[map]
static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(SLOTS, 0);

/// What has no page of entries is left out.
const PLAIN: u64 = 0;
/// Chunks without page table entries are worth a copy too: something is about to come there.
const WITH_EMPTY: u64 = 1;
/// The range holds only pages that came after the candidate.
const WITH_FRESH: u64 = 2;

/// Copies every chunk of `start..end` that has not been copied in these epochs, and has a page of entries.
#[inline(always)]
pub fn copy_range(space: u32, wanted: Wanted, start: u64, end: u64) {
    ledger_walk(space, wanted.0, start, end, PLAIN);
}

/// As [`copy_range`], empty chunks too: pages are about to come there.
#[inline(always)]
pub fn copy_before_arrival(space: u32, wanted: Wanted, start: u64, end: u64) {
    ledger_walk(space, wanted.0, start, end, WITH_EMPTY);
}

/// As [`copy_range`], after pages have come to the range: they were not there at the candidate.
#[inline(always)]
pub fn copy_beside(space: u32, wanted: Wanted, start: u64, end: u64) {
    ledger_walk(space, wanted.0, start, end, WITH_FRESH);
}

#[inline(always)]
fn walk_at(slot: u32) -> Option<&'static mut Walk> {
    // SAFETY: of this CPU; whoever holds its lock is alone with it.
    WALKS.get_ptr_mut(slot).map(|walk| unsafe { &mut *walk })
}

#[inline(always)]
fn free_slot() -> Option<u32> {
    let mut slot = 0;
    while slot < SLOTS {
        if walk_at(slot).is_some_and(|walk| try_lock(&raw mut walk.busy)) {
            return Some(slot);
        }
        slot += 1;
    }
    None
}

/// The whole walk. `bpf_loop` came with Linux 5.17; before it, a loop may only be as long as the
/// verifier is ready to follow. It does not follow a function of external linkage: that is verified
/// once, by itself. So do two loops around such functions make as many steps as are needed.
///
/// 0: done; else the walk was not finished, which is counted as a loss.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_walk(space_index: u32, wanted: u64, start: u64, end: u64, how: u64) -> u32 {
    let (Some(space), Some(slot)) = (space(space_index), free_slot()) else {
        walk_is_lost(space_index, wanted);
        return 1;
    };
    let Some(walk) = walk_at(slot) else { return 1 };
    walk.cursor = start;
    walk.end = end;
    walk.pgd = space.pgd;
    walk.space = u64::from(space_index);
    walk.wanted = Wanted(wanted);
    walk.how = how;
    walk.fresh_start = start;
    walk.fresh_end = if how == WITH_FRESH { end } else { 0 };
    let mut unfinished = 1;
    let mut times = 0;
    while times < STEPS {
        if ledger_steps(slot) != 0 {
            unfinished = 0;
            break;
        }
        times += 1;
    }
    unlock(&raw mut walk.busy);
    if unfinished != 0 {
        walk_is_lost(space_index, wanted);
    }
    unfinished
}

#[inline(always)]
fn walk_is_lost(space: u32, wanted: u64) {
    lost();
    if Wanted(wanted).own() != 0 {
        own_lost(space);
    }
}

/// Steps of a walk in each of the two loops: together 262,144, or 512 GiB of memory without a hole.
const STEPS: u32 = 512;

/// 1 at the end of the walk.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_steps(slot: u32) -> u32 {
    let mut times = 0;
    while times < STEPS {
        if ledger_step(slot) != 0 {
            return 1;
        }
        times += 1;
    }
    0
}

/// One entry of the page tables, from the top: a hole is stepped over, a page of entries is copied.
/// 1 at the end of the walk.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_step(slot: u32) -> u32 {
    let Some(walk) = walk_at(slot) else { return 1 };
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
    // A directory entry of a huge page may be without access, as a page table entry may, or on its way.
    let moving = shift == 21 && entry & PRESENT == 0 && is_moving(entry) != 0;
    let present = entry & PRESENT != 0 || (entry & (PROTNONE | HUGE)) == PROTNONE | HUGE || moving;
    if shift > 21 && walk.how != WITH_EMPTY {
        // Nothing below (or a page of 1 GiB, which is hugetlbfs and no RSS).
        walk.cursor = (at | ((1_u64 << (shift & 63)) - 1)).wrapping_add(1);
        return 0;
    }
    walk.cursor = (at | (CHUNK_BYTES - 1)).wrapping_add(1);
    let end = u32::from(walk.cursor >= walk.end);
    if !present && walk.how != WITH_EMPTY {
        return end;
    }
    let space = walk.space as u32;
    let key = key(space, at);
    let tree = due::<false>(key, walk.wanted.tree());
    let own = due::<true>(key, walk.wanted.own());
    if tree.is_none() && own.is_none() {
        return end;
    }
    let bits = &mut walk.bits;
    if !present || shift > 21 {
        fill(bits, 0);
    } else if moving {
        fill(bits, u64::MAX);
    } else if entry & HUGE != 0 {
        let zero = entry & SPECIAL != 0
            || (huge_zero() != 0 && entry & frame_mask() & !(CHUNK_BYTES - 1) == huge_zero());
        fill(bits, if zero { 0 } else { u64::MAX });
    } else {
        let table = direct_map().wrapping_add(entry & frame_mask());
        if !take_entries(bits, &mut walk.entries, table) {
            if own.is_some() {
                own_lost(space);
            }
            return end;
        }
    }
    if walk.fresh_end != 0 {
        clear(bits, at, walk.fresh_start, walk.fresh_end);
    }
    // What the tree's chunk holds may be worth moving: before it is overwritten.
    if let Some(chunk) = own {
        let epoch = u64::from(walk.wanted.own());
        walk.moved = match shared(key, space) {
            Some(of_tree) => of_tree.bits,
            None => *bits,
        };
        if keep(chunk, key, &walk.moved, epoch) {
            own_lost(space);
        }
    }
    if let Some(chunk) = tree
        && keep(chunk, key, bits, u64::from(walk.wanted.tree()))
    {
        lost();
    }
    end
}

/// The tree's chunk with this key, if it was copied in the epoch of a candidate that was the space's own, too.
#[inline(always)]
fn shared(key: u64, of: u32) -> Option<&'static mut Chunk> {
    let is_trees = u64::from(space(of)?.own_is_trees);
    let chunk = chunk::<false>(known::<false>(key)?)?;
    (is_trees != 0 && seen(&chunk.epoch) == is_trees).then_some(chunk)
}

/// Keeps what was read for an epoch. No lock is needed: whoever is about to change the chunk has its bits
/// kept first, by itself if nobody else has. So as long as nobody has finished, nobody has changed
/// anything, and all who come to the end of this function with the same epoch have read the same bits.
///
/// True: this came too late, and what is kept may not be what was there.
#[inline(always)]
fn keep(chunk: &mut Chunk, key: u64, bits: &Bits, epoch: u64) -> bool {
    // After the reading: whoever finished before it may have changed what was read.
    if seen(&chunk.epoch) >= epoch || seen(&chunk.begun) > epoch {
        return false;
    }
    tell(&mut chunk.begun, epoch);
    chunk.key = key;
    chunk.bits = *bits;
    tell(&mut chunk.epoch, epoch);
    if let Some(state) = state() {
        state.copies += 1;
    }
    // Preempted in here for so long that the next epoch's bits were written: they may be ours now.
    seen(&chunk.begun) > epoch
}

/// Clears the bits of the pages in `start..end`. `at` is any address in the chunk.
#[inline(always)]
fn clear(bits: &mut Bits, at: u64, start: u64, end: u64) {
    let base = at & !(CHUNK_BYTES - 1);
    let mut word = 0;
    while word < CHUNK_WORDS {
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
            unsafe { *bits.as_mut_ptr().add(word & 7) &= !(above & below) };
        }
        word += 1;
    }
}

/// Bytes of address space in one word of bits.
const WORD_BYTES: u64 = 64 * 4096;

/// Copies the chunk around `address`, which is about to get a page.
#[inline(always)]
pub fn copy_one(space: u32, wanted: Wanted, address: u64) {
    copy_before_arrival(space, wanted, address, address + 1);
}
