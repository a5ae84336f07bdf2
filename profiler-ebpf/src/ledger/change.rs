//! Something is about to change in an address space: what every hook comes to.

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use profiler_ebpf::ledger_wire::{CHUNK_BYTES, Space, State};

use super::{
    copy::{copy_before_arrival, copy_one, copy_range, is_copied_at},
    maps::{SPACE_OF, space, state},
    peak::{look, pages_above_candidate},
};

/// The last chunk on this CPU that needs nothing in its epoch, so that the next page in it has nothing to
/// do. One word, so that a program that is preempted by another one on its CPU can never leave half of
/// one answer with half of another.
#[map]
static DONE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Words of [`PERHAPS`].
const FILTER_WORDS: u32 = 512;

/// Which spaces may be followed: one bit each, chosen by its address. Most of a machine's processes are
/// not, pay at each fault all the same, and have their answer here without a look into a hash map. Bits
/// stay when a space has ended; a stranger with the same bit is looked up.
#[map]
static PERHAPS: Array<u64> = Array::with_max_entries(FILTER_WORDS, 0);

/// Odd constants (the golden ratio, and two of xxHash) that spread the bits of what they multiply.
const SPREAD: [u64; 3] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
];

/// A space, a chunk and an epoch in one word. Two of them have the same word by accident only, one time
/// in 2^64.
#[inline(always)]
fn word(mm: u64, chunk: u64, epoch: u32) -> u64 {
    mm.wrapping_mul(SPREAD[0])
        ^ chunk.wrapping_mul(SPREAD[1])
        ^ u64::from(epoch).wrapping_mul(SPREAD[2])
}

/// Which word of [`PERHAPS`], and which bit of it.
#[inline(always)]
fn filter_bit(number: u64) -> (u32, u64) {
    const BITS: u32 = (FILTER_WORDS * 64).trailing_zeros();
    let bit = number.wrapping_mul(SPREAD[0]) >> (64 - BITS);
    ((bit / 64) as u32, bit & 63)
}

#[inline(always)]
fn may_be_followed(number: u64) -> bool {
    let (at, bit) = filter_bit(number);
    PERHAPS.get(at).is_some_and(|word| word >> bit & 1 != 0)
}

/// From now on [`may_be_followed`]. Whoever calls this holds [`Lock::Spaces`](super::lock::Lock::Spaces).
#[inline(always)]
pub fn mark_followed(mm: u64) {
    let (at, bit) = filter_bit(as_number(mm));
    if let Some(word) = PERHAPS.get_ptr_mut(at) {
        // SAFETY: the entry is never freed, and the lock keeps all other writers out.
        unsafe { *word |= 1 << bit };
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

/// Whether the candidate had pages of this space that are still there.
#[inline(always)]
fn is_of_candidate(space: &Space, state: &State) -> bool {
    space.born_epoch < state.epoch && (space.ended_epoch == 0 || space.ended_epoch == state.epoch)
}

/// A page is about to come to `address`, by way of a fault: the most frequent change by far.
#[inline(always)]
pub fn before_fault(state: &mut State, mm: u64, address: u64) {
    let number = as_number(mm);
    if !may_be_followed(number) {
        return;
    }
    let Some(last) = DONE.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own, and a single word.
    let last = unsafe { &mut *last };
    let epoch = state.epoch;
    let done = word(number, address / CHUNK_BYTES, epoch);
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
    if !is_copied_at(index, epoch, address) {
        if !space(index).is_some_and(|space| is_of_candidate(space, state)) {
            *last = done;
            return;
        }
        // Above the candidate again? Then the next removal makes a new one, and this copy would be for
        // nothing.
        if pages_above_candidate(state).is_some() {
            state.growing_in = epoch;
            return;
        }
        copy_one(index, epoch, address);
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
        look();
        // Others may have grown the tree beyond the candidate meanwhile, and stopped the copying because
        // of it: then this is the removal that makes the next one.
        if !state.copies_changes() {
            look();
        }
    }
    // Whatever others find out from here on: by what we found, this must be copied.
    if is_of_candidate(space, state) && is_range(start, end) {
        copy_range(index, state.epoch, start, end);
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
    if let Some(epoch) = epoch_to_copy(index, start, end) {
        copy_range(index, epoch, start, end);
    }
}

/// Pages are about to come to `start..end`.
#[inline(always)]
pub fn before_arrival(index: u32, start: u64, end: u64) {
    if let Some(epoch) = epoch_to_copy(index, start, end) {
        copy_before_arrival(index, epoch, start, end);
    }
}

/// The epoch, if what is in this range must be copied before it changes.
#[inline(always)]
pub fn epoch_to_copy(index: u32, start: u64, end: u64) -> Option<u32> {
    let (state, space) = (state()?, space(index)?);
    let wanted = state.copies_changes() && is_of_candidate(space, state);
    (wanted && is_range(start, end)).then_some(state.epoch)
}
