//! `exceptions:page_fault_user` and `page_fault_kernel` (tp_btf): a page is about to come.
//!
//! ```text
//! TP_PROTO(unsigned long address, struct pt_regs *regs, unsigned long error_code)
//! ```
//!
//! Both fire before the fault is handled, so the page tables are still those of the candidate.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use aya_ebpf::helpers::bpf_ktime_get_ns;

use super::{
    copy::{copy_one, is_copied_at},
    lifecycle::current_mm,
    maps::{NOT_FOLLOWED, SPACE_OF, VERDICT, state},
    peak::{slack, tree_pages},
};
use profiler_ebpf::ledger_wire::CHUNK_BYTES;

#[btf_tracepoint]
pub fn ledger_fault_user(ctx: BtfTracePointContext) -> i32 {
    fault(ctx.arg(0));
    0
}

#[btf_tracepoint]
pub fn ledger_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    fault(ctx.arg(0));
    0
}

#[inline(always)]
fn fault(address: u64) {
    let Some(state) = state() else { return };
    if !state.copies_changes() {
        return;
    }
    let epoch = state.epoch;
    let mm = current_mm();
    let Some(verdict) = VERDICT.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own slot, and a fault does not nest in this program.
    let verdict = unsafe { &mut *verdict };
    let chunk = address / CHUNK_BYTES;
    if verdict.mm == mm
        && verdict.generation == state.generation
        && (verdict.space == NOT_FOLLOWED || (verdict.chunk == chunk && verdict.epoch == epoch))
    {
        return;
    }
    // Kernel addresses: nothing of a process.
    if address >> 63 != 0 {
        return;
    }
    verdict.mm = mm;
    verdict.generation = state.generation;
    verdict.chunk = chunk;
    verdict.epoch = epoch;
    // SAFETY: the value is copied at once.
    let Some(&index) = (unsafe { SPACE_OF.get(mm) }) else {
        verdict.space = NOT_FOLLOWED;
        return;
    };
    verdict.space = index;
    if is_copied_at(index, epoch, address) {
        return;
    }
    // Above the candidate again? Then the next removal makes a new one, and this copy would be for
    // nothing.
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let pages = tree_pages(state, now);
    if pages > state.candidate_pages + slack(state) {
        // A removal that is under way may already have been looked at: then this is the peak's count.
        if pages > state.highest_pages {
            state.highest_pages = pages;
            state.highest_ns = now;
        }
        state.growing_in = epoch;
        return;
    }
    copy_one(index, epoch, address);
}
