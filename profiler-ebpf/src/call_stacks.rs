//! Copies the call stack of a call that makes memory, once for each distinct chain of return addresses.
//!
//! Two stacks are the same when their return addresses are, whatever else lies between them. A word is taken
//! for a return address when the instruction before it is a call: data that looks like one only makes two
//! stacks out of one, which costs a copy and is no error. What cannot be read is none: code that is to be
//! returned to has run, so its page is there unless memory is so short that text is reclaimed, while stacks are
//! full of addresses of guard pages and of memory that nobody has touched.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_user, generated},
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use profiler_ebpf::call_stack_wire::{CallStackRecord, SLICE_BYTES, counter, id};

use crate::{follow::Caller, registers::Registers};

/// User space sets its size, and that of the table, at load.
#[map]
static CALL_STACK_RING: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
static CALL_STACK_IDS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map]
static CALL_STACK_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);
/// Too large for the stack of a BPF program.
#[map]
static CALL_STACK_SCRATCH: PerCpuArray<CallStackRecord> = PerCpuArray::with_max_entries(1, 0);

const PAGE: u64 = 4096;
const WORDS: usize = SLICE_BYTES / 8;
/// User addresses lie below, and nothing is mapped in the first 64 KiB (`vm.mmap_min_addr`).
const ADDRESSES: core::ops::Range<u64> = 0x1_0000..1 << 47;

/// The call stack of the caller: its number, or why there is none.
#[inline(always)]
pub fn take(caller: &Caller) -> u32 {
    add(counter::CALLS);
    let Some(scratch) = CALL_STACK_SCRATCH.get_ptr_mut(0) else {
        return id::NONE;
    };
    // SAFETY: this CPU's own slot; a program does not move to another CPU, and is not started on one where it is
    // under way.
    let stack = unsafe { &mut *scratch };
    stack.tgid = caller.tgid;
    if !copy(stack) {
        add(counter::UNREADABLE);
        return id::UNREADABLE;
    }
    let hash = hash_of_calls(stack);
    if let Some(known) = CALL_STACK_IDS.get_ptr(hash) {
        // SAFETY: entries are never removed, so the value stays.
        return unsafe { *known };
    }
    send(stack, hash)
}

/// Registers, and the stack up to the end of its slice or of its mapping, which is the end of a page.
#[inline(always)]
fn copy(stack: &mut CallStackRecord) -> bool {
    let Some(registers) = Registers::of_caller() else {
        return false;
    };
    stack.ip = registers.ip();
    stack.sp = registers.sp();
    stack.bp = registers.bp();
    let sp = stack.sp;
    if sp % 8 != 0 {
        return false;
    }
    let bytes = stack.slice.as_mut_ptr().cast::<u8>();
    if read(bytes, SLICE_BYTES as u64, sp) {
        stack.length = SLICE_BYTES as u64;
        return true;
    }
    let to_end_of_page = PAGE - sp % PAGE;
    stack.length = to_end_of_page;
    read(bytes, to_end_of_page, sp)
}

/// Whether all of it could be read.
#[inline(always)]
fn read(to: *mut u8, bytes: u64, from: u64) -> bool {
    if bytes == 0 || bytes > SLICE_BYTES as u64 {
        return false;
    }
    // SAFETY: there is room for SLICE_BYTES; the helper checks the address.
    unsafe { generated::bpf_probe_read_user(to.cast(), bytes as u32, from as *const _) == 0 }
}

/// Of the process and the return addresses of the slice.
///
/// The fewer values live from one word to the next, and the fewer ways there are through the loop, the fewer
/// states the verifier looks at.
#[inline(always)]
fn hash_of_calls(stack: &CallStackRecord) -> u64 {
    let mut hash = mix(u64::from(stack.tgid), stack.ip);
    for index in 0..WORDS {
        if index as u64 * 8 >= stack.length {
            break;
        }
        let word = stack.slice[index];
        // One comparison each: below the first wraps around.
        let is_address = word.wrapping_sub(ADDRESSES.start) < ADDRESSES.end - ADDRESSES.start;
        let is_own = word.wrapping_sub(stack.sp) < stack.length;
        if is_address & !is_own && follows_a_call(word) {
            hash = mix(hash, word);
        }
    }
    hash
}

#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    // The fractional part of the golden ratio, as in include/linux/hash.h.
    (hash ^ word)
        .rotate_left(23)
        .wrapping_mul(0x61c8_8646_80b5_83eb)
}

/// `call rel32` is E8 and four bytes; `call r/m64` is FF with 2 in the middle of its second byte, and two to
/// seven bytes long.
#[inline(always)]
fn follows_a_call(address: u64) -> bool {
    // SAFETY: the helper checks the address.
    let Ok(code) = (unsafe { bpf_probe_read_user((address - 8) as *const u64) }) else {
        return false;
    };
    // The byte so many before the address.
    let before = |bytes: u32| code >> (64 - 8 * bytes) & 0xff;
    let indirect = |length: u32| {
        let call = before(length) ^ 0xff | (before(length - 1) & 0x38) ^ 0x10;
        is_zero(call)
    };
    let direct = is_zero(before(5) ^ 0xe8);
    direct | indirect(2) | indirect(3) | indirect(4) | indirect(6) | indirect(7) != 0
}

/// 1 for 0, else 0, for values of a byte: no branch.
#[inline(always)]
fn is_zero(byte: u64) -> u64 {
    byte.wrapping_sub(1) >> 63
}

#[inline(always)]
fn send(stack: &mut CallStackRecord, hash: u64) -> u32 {
    let number = add(counter::NUMBERS);
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: as above.
    stack.taken_ns = unsafe { bpf_ktime_get_ns() };
    stack.id = cpu << id::BITS_OF_A_CPU | number as u32 & ((1 << id::BITS_OF_A_CPU) - 1);
    // First the number: when it is known and the slice is not there, it is not captured; the other way round
    // the slice would come again and again.
    if CALL_STACK_IDS.insert(hash, stack.id, 0).is_err() {
        add(counter::TABLE_FULL);
        return id::TABLE_FULL;
    }
    // No wake-up: user space looks every few milliseconds.
    if CALL_STACK_RING
        .output::<CallStackRecord>(&*stack, u64::from(BPF_RB_NO_WAKEUP))
        .is_err()
    {
        let _ = CALL_STACK_IDS.remove(hash);
        add(counter::LOST);
        return id::LOST;
    }
    stack.id
}

/// Adds one to a counter of this CPU; the new value.
#[inline(always)]
fn add(index: u32) -> u64 {
    let Some(value) = CALL_STACK_COUNTERS.get_ptr_mut(index) else {
        return 0;
    };
    // SAFETY: as in `maps::count`.
    unsafe {
        *value += 1;
        *value
    }
}
