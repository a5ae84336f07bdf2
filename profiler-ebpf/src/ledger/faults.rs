//! `exceptions:page_fault_user` and `page_fault_kernel` (tp_btf): a page is about to come. Tier B, and in
//! front of tier A's functions where those may be skipped.
//!
//! ```text
//! TP_PROTO(unsigned long address, struct pt_regs *regs, unsigned long error_code)
//! ```
//!
//! Both fire before the fault is handled, so the page tables are still those of the candidate.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{change::before_fault, lifecycle::current_mm};

#[btf_tracepoint]
pub fn ledger_fault_user(ctx: BtfTracePointContext) -> i32 {
    before_fault(current_mm(), ctx.arg(0));
    0
}

#[btf_tracepoint]
pub fn ledger_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    before_fault(current_mm(), ctx.arg(0));
    0
}
