//! `exceptions:page_fault_user` and `page_fault_kernel` (tp_btf): a page is about to come. Tier B, and since Linux
//! 6.4 tier A, to which they cost less than a function.
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

/// What the kernel's way to a program and back costs by itself. No run attaches it, only the measurement of the
/// others.
#[btf_tracepoint]
pub fn ledger_empty_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint]
pub fn ledger_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    before_fault(current_mm(), ctx.arg(0));
    0
}
