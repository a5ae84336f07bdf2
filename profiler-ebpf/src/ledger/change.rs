//! Something is about to change in an address space: what every hook comes to.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use profiler_ebpf::ledger_wire::{CHUNK_BYTES, SPACES, Space, State};

use super::{
    copy::{Wanted, copy_before_arrival, copy_one, copy_range, is_copied_at},
    lock::add,
    maps::{SPACE_OF, space, state},
    peak::{look, own_pages_above_candidate, pages_above_candidate},
};

/// The last chunk on this CPU that needs nothing until the stamp changes, so that the next page in it has nothing to
/// do. One word, so that a program that is preempted by another one on its CPU can never leave half of
/// one answer with half of another.
#[map]
static DONE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Entries of [`PERHAPS`]: as many as there can be spaces, so that few share one.
const ENTRIES: usize = SPACES as usize;

/// How many followed spaces there are with this hash of their address. Most of a machine's processes are
/// not followed, pay at each fault all the same, and have their answer here: a global, which takes no look
/// into a map. (A process often gets the address of one that has just ended, so who has ended must not
/// count.)
static mut PERHAPS: [u64; ENTRIES] = [0; ENTRIES];

/// Odd constants (the golden ratio, and two of xxHash) that spread the bits of what they multiply.
const SPREAD: [u64; 3] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
];

/// A space, a chunk and a stamp in one word. Two of them have the same word by accident only, one time
/// in 2^64.
#[inline(always)]
fn word(mm: u64, chunk: u64, stamp: u64) -> u64 {
    mm.wrapping_mul(SPREAD[0]) ^ chunk.wrapping_mul(SPREAD[1]) ^ stamp.wrapping_mul(SPREAD[2])
}

/// The entry of [`PERHAPS`] for an address as a number.
#[inline(always)]
fn entry_of(number: u64) -> *mut u64 {
    let entry = number.wrapping_mul(SPREAD[0]) >> (64 - ENTRIES.trailing_zeros());
    // SAFETY: the shift leaves a number below `ENTRIES`.
    unsafe { (&raw mut PERHAPS).cast::<u64>().add(entry as usize) }
}

/// False: it is not followed.
#[inline(always)]
fn may_be_followed(mm: u64) -> bool {
    // SAFETY: an entry of a static; volatile, because other CPUs write it.
    unsafe { entry_of(as_number(mm)).read_volatile() != 0 }
}

/// Follows a space, if there is room for it. (A page that comes between the two lines is of no candidate.)
#[inline(always)]
pub fn follow(mm: u64, index: u32) -> Result<(), i32> {
    SPACE_OF.insert(mm, index, 0)?;
    add(entry_of(as_number(mm)), 1);
    Ok(())
}

/// Follows a space no more.
#[inline(always)]
pub fn forget(mm: u64) {
    // Only one of two that meet here finds it.
    if SPACE_OF.remove(mm).is_ok() {
        add(entry_of(as_number(mm)), u64::MAX);
    }
}

/// A pointer as a number to reckon with, without its lowest byte, in which no two `mm_struct`s differ
/// alone. The verifier knows that it is a pointer and lets nobody multiply it, until a byte of it has
/// been written over on the stack.
#[inline(always)]
fn as_number(pointer: u64) -> u64 {
    let mut slot = core::mem::MaybeUninit::<u64>::uninit();
    let at = slot.as_mut_ptr();
    // SAFETY: all accesses lie inside `slot`, which is written whole before it is read.
    unsafe {
        at.write_volatile(pointer);
        at.cast::<u8>().write_volatile(0);
        at.read_volatile()
    }
}

/// Index of the space, if it is followed.
#[inline(always)]
pub fn space_of(mm: u64) -> Option<u32> {
    // SAFETY: the value is copied at once.
    unsafe { SPACE_OF.get(mm) }.copied()
}

/// Whether the tree's candidate had pages of this space that are still there.
#[inline(always)]
fn is_of_candidate(space: &Space, state: &State) -> bool {
    space.born_epoch < state.epoch && (space.ended_epoch == 0 || space.ended_epoch == state.epoch)
}

/// The epoch of the space's own candidate, if what changes is to be copied for it; else 0. `by_tree`: it is
/// copied for the tree's latest, which may be the same one.
#[inline(always)]
fn own_epoch(space: &Space, state: &State, by_tree: bool) -> u32 {
    // SAFETY: references are valid; volatile and in this order, because another CPU writes the other one
    // first.
    let (epoch, is_trees) = unsafe {
        let epoch = (&raw const space.own_epoch).read_volatile();
        (epoch, (&raw const space.own_is_trees).read_volatile())
    };
    if by_tree && is_trees == state.epoch {
        return 0;
    }
    epoch
}

/// As [`own_epoch`]; 0 too while the space has more than at its own candidate.
#[inline(always)]
fn own_epoch_of_change(space: &Space, state: &State, by_tree: bool) -> u32 {
    let epoch = own_epoch(space, state, by_tree);
    if epoch == space.own_growing_in {
        0
    } else {
        epoch
    }
}

/// A page is about to come to `address`, by way of a fault: the most frequent change by far. The first
/// question is that of all the other processes, the second that of a tree that grows.
#[inline(always)]
pub fn before_fault(mm: u64, address: u64) {
    if !may_be_followed(mm) {
        return;
    }
    let Some(state) = state() else { return };
    if !state.copies_changes() && state.apart == 0 {
        return;
    }
    let Some(last) = DONE.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own, and a single word.
    let last = unsafe { &mut *last };
    // SAFETY: a reference is valid; volatile, and before what it stands for is read.
    let stamp = unsafe { (&raw const state.stamp).read_volatile() };
    let done = word(as_number(mm), address / CHUNK_BYTES, stamp);
    if *last == done {
        return;
    }
    let Some(index) = space_of(mm) else {
        return;
    };
    // Kernel addresses: nothing of a process.
    if address >> 63 != 0 {
        return;
    }
    let Some(space) = space(index) else {
        return;
    };
    // Above the candidate again? Then the next removal makes a new one, and this copy would be for
    // nothing.
    let mut epoch = state.epoch;
    let mut by_tree = state.copies_changes() && is_of_candidate(space, state);
    if by_tree && is_copied_at::<false>(index, epoch, address) {
        epoch = 0;
    } else if by_tree && pages_above_candidate(state).is_some() {
        state.growing_in = epoch;
        by_tree = false;
    }
    if !by_tree {
        epoch = 0;
    }
    let mut own = own_epoch_of_change(space, state, by_tree);
    if own != 0 && is_copied_at::<true>(index, own, address) {
        own = 0;
    } else if own != 0 && own_pages_above_candidate(index, space).is_some() {
        space.own_growing_in = own;
        own = 0;
    }
    let wanted = Wanted::of(epoch, own);
    if wanted.any() {
        copy_one(index, wanted, address);
    }
    *last = done;
}

/// What lies in `start..end` is about to go.
#[inline(always)]
pub fn before_removal(index: u32, start: u64, end: u64) {
    let (Some(state), Some(space)) = (state(), space(index)) else {
        return;
    };
    // An ending space was looked at when its end began.
    if space.users != 0 {
        look(index);
        // Others may have grown the tree beyond the candidate meanwhile, and stopped the copying because
        // of it: then this is the removal that makes the next one.
        if !state.copies_changes() || space.own_growing_in == space.own_epoch {
            look(index);
        }
    }
    // Whatever others find out from here on: by what we found, this must be copied.
    let by_tree = is_of_candidate(space, state);
    let epoch = if by_tree { state.epoch } else { 0 };
    let wanted = Wanted::of(epoch, own_epoch(space, state, by_tree));
    if wanted.any() && is_range(start, end) {
        copy_range(index, wanted, start, end);
    }
}

/// Whether there is anything in it, and that of a process: the second half of all addresses is the
/// kernel's.
#[inline(always)]
fn is_range(start: u64, end: u64) -> bool {
    end > start && end >> 63 == 0
}

/// What lies in `start..end` is about to change, without an effect on how much it is.
#[inline(always)]
pub fn before_change(index: u32, start: u64, end: u64) {
    if let Some(wanted) = wanted_at(index, start, end) {
        copy_range(index, wanted, start, end);
    }
}

/// Pages are about to come to `start..end`.
#[inline(always)]
pub fn before_arrival(index: u32, start: u64, end: u64) {
    if let Some(wanted) = wanted_at(index, start, end) {
        copy_before_arrival(index, wanted, start, end);
    }
}

/// For which candidates what is in this range must be copied before it changes.
#[inline(always)]
pub fn wanted_at(index: u32, start: u64, end: u64) -> Option<Wanted> {
    let (state, space) = (state()?, space(index)?);
    let by_tree = state.copies_changes() && is_of_candidate(space, state);
    let epoch = if by_tree { state.epoch } else { 0 };
    let wanted = Wanted::of(epoch, own_epoch_of_change(space, state, by_tree));
    (wanted.any() && is_range(start, end)).then_some(wanted)
}
