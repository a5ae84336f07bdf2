//! Is this the most that the tree ever had? Asked whenever a removal begins.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_loop};
use profiler_ebpf::{Record, kind, ledger_wire::State};

use super::kernel::{read, read_int};
use super::maps::{
    CPU_OFFSETS, counter_count, counter_counters, counter_size, cpus, mm_rss, mm_table_bytes,
    slack_shift, space, state,
};
use crate::maps::write;

/// `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SHMEMPAGES` (include/linux/mm_types_task.h); 2 counts swap.
const MEMBERS: [u64; 3] = [0, 1, 3];

#[repr(C)]
struct Sum {
    pages: u64,
    now: u64,
    /// Not only count, but note the count as that of the candidate.
    note: u64,
}

/// One counter, exactly: what has been flushed and what each CPU still holds (`percpu_counter_sum`,
/// lib/percpu_counter.c). A flush in between would count a CPU's part twice or not at all; then it
/// is counted again.
#[inline(always)]
fn counter(address: u64) -> u64 {
    let mut total = 0_i64;
    let mut attempt = 0;
    while attempt < 2 {
        let Some(count) = read(address.wrapping_add(counter_count())) else {
            return 0;
        };
        let Some(parts) = read(address.wrapping_add(counter_counters())) else {
            return 0;
        };
        total = count as i64;
        let mut cpu = 0;
        while cpu < cpus() {
            if let Some(&offset) = CPU_OFFSETS.get(cpu as u32) {
                total += i64::from(read_int(parts.wrapping_add(offset)));
            }
            cpu += 1;
        }
        if read(address.wrapping_add(counter_count())) == Some(count) {
            break;
        }
        attempt += 1;
    }
    if total < 0 { 0 } else { total as u64 }
}

#[inline(never)]
extern "C" fn add_space(index: u32, sum: *mut Sum) -> i64 {
    // SAFETY: `bpf_loop` hands over what `count` gave it.
    let sum = unsafe { &mut *sum };
    let Some(space) = space(index) else { return 1 };
    if sum.note != 0 {
        space.candidate_pages = if space.users == 0 { 0 } else { space.pages };
        space.candidate_table_bytes = read(space.mm.wrapping_add(mm_table_bytes())).unwrap_or(0);
        return 0;
    }
    if space.users == 0 {
        return 0;
    }
    let base = space.mm.wrapping_add(mm_rss());
    let mut pages = 0;
    let mut member = 0;
    while member < MEMBERS.len() {
        pages += counter(base.wrapping_add(MEMBERS[member] * counter_size()));
        member += 1;
    }
    space.pages = pages;
    if pages > space.highest_pages {
        space.highest_pages = pages;
        space.highest_ns = sum.now;
    }
    sum.pages += pages;
    0
}

/// Pages of the tree now, to the page.
#[inline(always)]
pub fn tree_pages(state: &State, now: u64) -> u64 {
    let mut sum = Sum {
        pages: 0,
        now,
        note: 0,
    };
    // SAFETY: `add_space` has the form that the helper wants, and `sum` outlives the call.
    unsafe {
        bpf_loop(
            state.spaces,
            add_space as *mut c_void,
            (&raw mut sum).cast(),
            0,
        );
    }
    sum.pages
}

/// How much more than the candidate calls for a new one, in pages.
#[inline(always)]
pub fn slack(state: &State) -> u64 {
    (state.candidate_pages >> slack_shift()) + 4
}

/// Something is about to be removed: the state before it may be the peak.
#[inline(always)]
pub fn look() {
    let Some(state) = state() else { return };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let pages = tree_pages(state, now);
    state.removals += 1;
    if pages > state.highest_pages {
        state.highest_pages = pages;
        state.highest_ns = now;
    }
    if pages <= state.candidate_pages + slack(state) {
        if !state.copies_changes() && state.epoch != 0 {
            // We stopped copying because the tree was above the candidate; nothing we know of has
            // brought it down since.
            state.unseen_removals += 1;
            state.growing_in = 0;
        }
        return;
    }
    state.candidate_pages = pages;
    state.candidate_ns = now;
    state.epoch += 1;
    let mut sum = Sum {
        pages: 0,
        now,
        note: 1,
    };
    // SAFETY: as in `tree_pages`.
    unsafe {
        bpf_loop(
            state.spaces,
            add_space as *mut c_void,
            (&raw mut sum).cast(),
            0,
        );
    }
    let both = bpf_get_current_pid_tgid();
    write(Record {
        began_ns: now,
        ended_ns: now,
        args: [u64::from(state.epoch), pages, 0, 0, 0, 0],
        result: 0,
        kind: kind::PEAK,
        tgid: (both >> 32) as u32,
        tid: both as u32,
        padding: 0,
    });
}
