//! Is this the most that the tree ever had, or that the address space had? Asked whenever a removal begins.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use profiler_ebpf::{
    Record, kind,
    ledger_wire::{SPACES, Space, State, growth_limit},
};

use super::kernel::{read, read_int};
use super::lock::{self, Lock, add};
use super::maps::{
    CPU_OFFSETS, counter_count, counter_counters, counter_size, cpu_slack, cpus, mm_mappings,
    mm_rss, mm_table_bytes, slack_shift, space, state,
};
use crate::maps::write;

/// `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SHMEMPAGES` (include/linux/mm_types_task.h); 2 counts swap.
const MEMBERS: [u64; 3] = [0, 1, 3];

/// What [`ledger_tree_pages`] is to do with each space. Its parameter, a plain integer, because the
/// verifier takes nothing else there.
mod how {
    /// Not less than what it has: without what the CPUs hold, but with the most that this can be.
    pub const AT_MOST: u32 = 0;
    /// To the page.
    pub const EXACTLY: u32 = 1;
    /// Note the last count as that of the candidate.
    pub const NOTE: u32 = 2;
}

/// Spaces of a tree in each of two loops: see `ledger_walk` for why there are two.
const BLOCK: u32 = 64;
const _: () = assert!(BLOCK * BLOCK == SPACES);

/// What a counter's `count` says, which CPUs that are behind can make negative.
#[inline(always)]
fn flushed(counter: u64) -> i64 {
    read(counter.wrapping_add(counter_count())).unwrap_or(0) as i64
}

/// One counter, exactly: what has been flushed and what each CPU still holds (`percpu_counter_sum`,
/// lib/percpu_counter.c). A flush in between would count a CPU's part twice or not at all; then it
/// is counted again. Before Linux 6.2 it is a plain integer (`CPUS` is 0 then), to which each thread
/// adds its pages only when it has had 64 faults (`SPLIT_RSS_COUNTING`, mm/memory.c).
#[inline(always)]
fn counter(address: u64) -> u64 {
    let mut total = 0_i64;
    let mut attempt = 0;
    while attempt < 2 {
        let count = flushed(address);
        total = count;
        if cpus() == 0 {
            break;
        }
        let Some(parts) = read(address.wrapping_add(counter_counters())) else {
            return 0;
        };
        let mut cpu = 0;
        while cpu < cpus() {
            if let Some(&offset) = CPU_OFFSETS.get(cpu as u32) {
                total += i64::from(read_int(parts.wrapping_add(offset)));
            }
            cpu += 1;
        }
        if flushed(address) == count {
            break;
        }
        attempt += 1;
    }
    if total < 0 { 0 } else { total as u64 }
}

/// Pages of one space: see [`how`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_space_pages(index: u32, how: u32) -> u64 {
    let Some(space) = space(index) else { return 0 };
    if how == how::NOTE {
        space.candidate_pages = if space.users == 0 { 0 } else { space.pages };
        space.candidate_table_bytes = read(space.mm.wrapping_add(mm_table_bytes())).unwrap_or(0);
        space.candidate_mappings = read_int(space.mm.wrapping_add(mm_mappings())) as u64;
        return 0;
    }
    if space.users == 0 {
        return 0;
    }
    let base = space.mm.wrapping_add(mm_rss());
    if how == how::AT_MOST {
        let mut most = 0;
        let mut member = 0;
        while member < MEMBERS.len() {
            most +=
                flushed(base.wrapping_add(MEMBERS[member] * counter_size())) + cpu_slack() as i64;
            member += 1;
        }
        // Else it is worth knowing exactly: the space's own highest.
        if most <= space.highest_pages as i64 {
            return if most < 0 { 0 } else { most as u64 };
        }
    }
    let mut pages = 0;
    let mut member = 0;
    while member < MEMBERS.len() {
        pages += counter(base.wrapping_add(MEMBERS[member] * counter_size()));
        member += 1;
    }
    space.pages = pages;
    if pages > space.highest_pages {
        space.highest_pages = pages;
        // SAFETY: the helper has no preconditions.
        space.highest_ns = unsafe { bpf_ktime_get_ns() };
    }
    pages
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_block_pages(block: u32, how: u32) -> u64 {
    let Some(state) = state() else { return 0 };
    let mut pages = 0;
    let mut index = 0;
    while index < BLOCK {
        if u64::from(block * BLOCK + index) >= state.spaces {
            break;
        }
        pages += ledger_space_pages(block * BLOCK + index, how);
        index += 1;
    }
    pages
}

/// Pages of the tree now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_tree_pages(how: u32) -> u64 {
    let Some(state) = state() else { return 0 };
    let mut pages = 0;
    let mut block = 0;
    while block < BLOCK {
        if u64::from(block * BLOCK) >= state.spaces {
            break;
        }
        pages += ledger_block_pages(block, how);
        block += 1;
    }
    pages
}

/// The count, to the page, that calls for a new candidate when the last one had so many.
#[inline(always)]
fn limit(candidate: &u64) -> u64 {
    // SAFETY: a reference is valid; volatile, because another CPU may just have made a candidate.
    let candidate = unsafe { (&raw const *candidate).read_volatile() };
    growth_limit(candidate, slack_shift())
}

/// Pages of the tree, if they call for a new candidate. The cheap count comes first: mostly it is
/// enough to say no.
#[inline(always)]
pub fn pages_above_candidate(state: &mut State) -> Option<u64> {
    let limit = limit(&state.candidate_pages);
    if ledger_tree_pages(how::AT_MOST) <= limit {
        return None;
    }
    let pages = ledger_tree_pages(how::EXACTLY);
    if pages > state.highest_pages {
        state.highest_pages = pages;
        // SAFETY: the helper has no preconditions.
        state.highest_ns = unsafe { bpf_ktime_get_ns() };
    }
    (pages > limit).then_some(pages)
}

/// Pages of one space, if they call for a new candidate of its own.
#[inline(always)]
pub fn own_pages_above_candidate(index: u32, space: &Space) -> Option<u64> {
    let limit = limit(&space.own_pages);
    if ledger_space_pages(index, how::AT_MOST) <= limit {
        return None;
    }
    let pages = ledger_space_pages(index, how::EXACTLY);
    (pages > limit).then_some(pages)
}

/// As [`look`]; a function of its own to the verifier, which so follows it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ledger_look(index: u32) -> u32 {
    let (Some(state), Some(space)) = (state(), space(index)) else {
        return 0;
    };
    state.removals += 1;
    let own = own_pages_above_candidate(index, space);
    if own.is_none() && space.own_epoch != 0 && space.own_growing_in == space.own_epoch {
        // As below, of this space.
        space.own_growing_in = 0;
        add(&raw mut state.stamp, 1);
    }
    let whole = pages_above_candidate(state);
    if whole.is_none() && !state.copies_changes() && state.epoch != 0 {
        // We stopped copying because the tree was above the candidate; nothing we know of has
        // brought it down since.
        state.unseen_removals += 1;
        state.growing_in = 0;
        add(&raw mut state.stamp, 1);
    }
    // Another CPU may be making one of the same pages.
    if (own.is_none() && whole.is_none()) || !lock::lock(Lock::Candidate) {
        return 0;
    }
    let mut together = false;
    if let Some(pages) = whole
        && pages > limit(&state.candidate_pages)
    {
        make_candidate(state, pages);
        together = true;
    }
    match own {
        Some(pages) if pages > limit(&space.own_pages) => {
            make_own_candidate(state, space, index, pages, together);
        }
        // The tree goes on without it.
        _ if together => state.apart = 1,
        _ => {}
    }
    lock::release(Lock::Candidate);
    0
}

#[inline(always)]
fn make_candidate(state: &mut State, pages: u64) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    state.candidate_pages = pages;
    state.candidate_ns = now;
    state.epoch += 1;
    add(&raw mut state.stamp, 1);
    ledger_tree_pages(how::NOTE);
    tell(kind::PEAK, now, [u64::from(state.epoch), pages, 0, 0, 0, 0]);
}

/// `together`: with the tree's latest, and so at the same moment.
#[inline(always)]
fn make_own_candidate(
    state: &mut State,
    space: &mut Space,
    index: u32,
    pages: u64,
    together: bool,
) {
    let epoch = space.own_epoch + 1;
    let (pages, now) = match together {
        true => (space.candidate_pages, state.candidate_ns),
        // SAFETY: the helper has no preconditions.
        false => (pages, unsafe { bpf_ktime_get_ns() }),
    };
    if !together {
        state.apart = 1;
    }
    space.own_pages = pages;
    space.own_ns = now;
    let is_trees = if together { state.epoch } else { 0 };
    // SAFETY: references are valid; volatile, because others read both, in the opposite order.
    unsafe {
        (&raw mut space.own_is_trees).write_volatile(is_trees);
        (&raw mut space.own_epoch).write_volatile(epoch);
    }
    add(&raw mut state.stamp, 1);
    let args = [
        u64::from(epoch),
        pages,
        u64::from(index),
        u64::from(space.tgid),
        0,
        0,
    ];
    tell(kind::OWN_PEAK, now, args);
}

#[inline(always)]
fn tell(kind: u32, now: u64, args: [u64; 6]) {
    let both = bpf_get_current_pid_tgid();
    write(Record {
        began_ns: now,
        ended_ns: now,
        args,
        result: 0,
        kind,
        tgid: (both >> 32) as u32,
        tid: both as u32,
        call_stack: 0,
    });
}

/// Something of a space is about to be removed: the state before it may be the peak, of the tree and of
/// the space.
#[inline(always)]
pub fn look(index: u32) {
    ledger_look(index);
}
