//! Locks for kernels without atomic instructions that fetch: those came with Linux 5.12, and an older
//! one refuses a program in which such an instruction merely stands.
//!
//! `lock xadd` without a fetch is as old as eBPF, and enough. Whoever adds one and then reads exactly
//! one has the lock: an addition of somebody else before that read would show in it, and one after it
//! makes somebody else read two. Whoever reads more takes its one back. Two that meet may both fail,
//! never both succeed.

use core::intrinsics;

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::map, maps::Array};

/// What a lock of its own protects.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Lock {
    /// The next free address space.
    Spaces = 0,
    /// Making a new candidate.
    Candidate = 1,
}

#[map]
static LOCKS: Array<u64> = Array::with_max_entries(2, 0);

/// How often a held lock is looked at before it is given up: some 50 µs, ten times as long as the
/// longest is held, unless whoever holds it has been preempted.
const ATTEMPTS: u32 = 1000;

/// Adds, without a result.
#[inline(always)]
pub fn add(word: *mut u64, value: u64) {
    // SAFETY: callers pass a word of a map value, which lives as long as the program. The result is
    // not used, which makes the instruction the old one.
    unsafe {
        intrinsics::atomic_xadd::<u64, u64, { intrinsics::AtomicOrdering::Relaxed }>(word, value)
    };
}

/// Takes the lock in this word, if it is free. `word` lies in a map value.
#[inline(always)]
pub fn try_lock(word: *mut u64) -> bool {
    // SAFETY: see `add`; volatile, because others write.
    let read = || unsafe { word.read_volatile() };
    if read() != 0 {
        return false;
    }
    add(word, 1);
    if read() == 1 {
        return true;
    }
    add(word, u64::MAX);
    false
}

/// Gives it back.
#[inline(always)]
pub fn unlock(word: *mut u64) {
    add(word, u64::MAX);
}

/// A moment's rest before the next look at a held lock.
#[inline(always)]
fn pause() {
    // SAFETY: the helper has no preconditions; it takes some 20 to 50 ns.
    let _ = unsafe { bpf_ktime_get_ns() };
}

/// As [`lock`]; a function of its own to the verifier, which so follows the loop once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_lock(which: u32) -> u32 {
    let Some(word) = LOCKS.get_ptr_mut(which) else {
        return 0;
    };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        if try_lock(word) {
            return 1;
        }
        pause();
        attempt += 1;
    }
    0
}

/// Waits for a lock for a while; whether it was to be had.
#[inline(always)]
pub fn lock(which: Lock) -> bool {
    ledger_lock(which as u32) != 0
}

/// Gives it back.
#[inline(always)]
pub fn release(which: Lock) {
    if let Some(word) = LOCKS.get_ptr_mut(which as u32) {
        unlock(word);
    }
}
